"""Word2vec with AdaGrad, on processes of this machine: a gradient and a descent, as in DeepDist's published example.

    python examples/word2vec_adagrad.py                       news texts that come with gensim
    python examples/word2vec_adagrad.py text8.txt --epochs 2 --plot curve.png

`gradient` returns the change that skip-gram makes to the rows of a replica. `descent` adds the square of the change to
sums, two more arrays of the model, merged like the weights, and scales the step by them (Duchi, Hazan, Singer, JMLR
2011).

While the peers train, copies of the model are evaluated in this process. It prints the share of gensim's analogies that
are right, and how well the model tells words that stand together from others. In the end it draws both against updates
(pip install 'deepdist-p2p[lab]').
"""

import argparse
import random
from itertools import islice, pairwise

import matplotlib
import numpy as np
from gensim.models import Word2Vec
from gensim.test.utils import datapath

from p2p import DeepDist
from p2p.models import word2vec
from p2p.models.word2vec import questions
from p2p.models.word2vec.corpus import rows, sentences

EPSILON = 1e-8
WORDS_FOR_ANALOGIES = 10_000_000  # with much less hardly any comes out right
SUMS = {"wv.vectors": "sums_in", "syn1neg": "sums_out"}  # the array of squares that belongs to each


def gradient(model, texts):
    """The change of each array, (words, vector_size), by training on `texts` at a constant rate; runs on the peers."""
    model.alpha = model.min_alpha = model.rate_of_change
    before = {name: array.copy() for name, array in arrays(model).items()}
    word2vec.gradient(model, texts)
    return {name: array - before[name] for name, array in arrays(model).items()}


def descent(model, update):
    """AdaGrad: every weight has its own rate, which falls with the changes that it has seen from everybody."""
    for name, array in arrays(model).items():
        change, sums = update[name], getattr(model, SUMS[name])
        sums += change**2
        array += model.rate * change / np.sqrt(sums + EPSILON)


def arrays(model):
    return {"wv.vectors": model.wv.vectors, "syn1neg": model.syn1neg}


def togetherness(model, texts):
    """How likely a word next to another is told from a random one by their scores; 0.5 is chance."""
    chance = random.Random(0)
    known = [[model.wv.key_to_index[word] for word in text.split() if word in model.wv] for text in texts]
    pairs = [pair for text in known for pair in pairwise(text) if pair[0] != pair[1]]
    words, near = np.array(chance.sample(pairs, min(20_000, len(pairs)))).T
    far = near[np.random.default_rng(0).permutation(len(near))]  # as frequent as those near
    vectors, outputs = model.wv.vectors[words], model.syn1neg
    lead = (vectors * outputs[near]).sum(1) - (vectors * outputs[far]).sum(1)
    return float(np.mean(np.sign(lead) + 1) / 2)  # a tie counts half


def draw(curve, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    updates = [point.updates for point in curve]
    together = [point.values["neighbors"] for point in curve]
    pyplot.plot(updates, together, "o-", markersize=3, label="words next to each other told from others (chance: 0.5)")
    asked = round(curve[-1].values["asked"])
    if asked:
        right = [point.values["analogies"] for point in curve]
        pyplot.plot(updates, right, "s-", markersize=3, label=f"analogies, share right of {asked}")
    pyplot.xlabel("updates")
    pyplot.ylim(0, 1)
    pyplot.legend()
    pyplot.savefig(path)


def main():
    arguments = parse_arguments()
    data = sentences(arguments.corpus, peers=arguments.peers)
    model = Word2Vec(sg=1, vector_size=arguments.size, min_count=arguments.min_count)
    word2vec.build_vocab(model, rows(data))
    model.rate, model.rate_of_change = arguments.rate, 0.025
    for name, array in arrays(model).items():
        setattr(model, SUMS[name], np.zeros_like(array))
    seen = list(islice(rows(data), 2000))
    analogies = questions.of("analogies")
    print(f"{model.corpus_total_words:,} words, {len(model.wv):,} in the vocabulary")
    if model.corpus_total_words < WORDS_FOR_ANALOGIES:
        print("The text is too small to learn analogies from: look at the words next to each other.")

    def evaluate(model):
        found = {"neighbors": togetherness(model, seen), **analogies(model)}
        print(
            "{neighbors:.3f} of neighbors told from others, {analogies:.1%} of {asked:.0f} analogies right".format(
                **found
            )
        )
        return found

    chunk_rows = max(1, round(arguments.chunk_words * model.corpus_count / model.corpus_total_words))
    with DeepDist(model, peers=arguments.peers, parameters=(*SUMS, *SUMS.values())) as dd:
        report = dd.train(
            data,
            gradient,
            descent,
            arguments.epochs,
            chunk_rows=chunk_rows,
            evaluate=evaluate,
            evaluate_every_s=arguments.evaluate_every_s,
        )
    print(report)
    for point in report.evaluations:
        print(f"{point.seconds:>6.1f} s, {point.updates:>6} updates: {point}")
    draw(report.evaluations, arguments.plot)
    print(f"{arguments.plot}: the learning curve")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", default=datapath("lee_background.cor"), help="text, one sentence a line")
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=50, help="numbers per word")
    parser.add_argument("--min-count", type=int, default=5)
    parser.add_argument("--chunk-words", type=int, default=2000, help="between two updates")
    parser.add_argument("--rate", type=float, default=0.2, help="of AdaGrad")
    parser.add_argument("--evaluate-every-s", type=float, default=3.0, help="while the peers train")
    parser.add_argument("--plot", default="word2vec_adagrad.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
