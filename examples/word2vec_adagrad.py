"""Word2vec with AdaGrad, on processes of this machine: a gradient and a descent, as in DeepDist's published example.

    python examples/word2vec_adagrad.py                       news texts that come with gensim
    python examples/word2vec_adagrad.py text8.txt --epochs 2 --plot curve.png

`gradient` returns the change that gensim's kernels make to the rows of a replica; `descent` adds its square to sums,
two more arrays of the model, merged like the weights, and scales the step by them (Duchi, Hazan, Singer, JMLR 2011).
After each epoch it prints the share of gensim's analogies that are right, and how well the model tells words that stand
together from others. It draws both against updates (pip install 'deepdist-p2p[lab]').
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
from p2p.models.corpus import rows, sentences

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


def analogies(model):
    """The share of right answers to gensim's questions, and how many of the questions have all their words."""
    share, sections = model.wv.evaluate_word_analogies(datapath("questions-words.txt"))
    return share, len(sections[-1]["correct"]) + len(sections[-1]["incorrect"])


def togetherness(model, texts):
    """How likely a word next to another is told from a random one by their scores; 0.5 is chance."""
    chance = random.Random(0)
    known = [[model.wv.key_to_index[word] for word in text if word in model.wv] for text in texts]
    pairs = [pair for text in known for pair in pairwise(text) if pair[0] != pair[1]]
    words, near = np.array(chance.sample(pairs, min(20_000, len(pairs)))).T
    far = near[np.random.default_rng(0).permutation(len(near))]  # as frequent as those near
    vectors, outputs = model.wv.vectors[words], model.syn1neg
    return float(np.mean((vectors * outputs[near]).sum(1) > (vectors * outputs[far]).sum(1)))


def draw(curve, asked, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    updates, right, together = zip(*curve, strict=True)
    pyplot.plot(updates, together, "o-", label="words next to each other told from others (chance: 0.5)")
    if asked:
        pyplot.plot(updates, right, "s-", label=f"analogies, share right of {asked}")
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
    right, asked = analogies(model)
    print(f"{model.corpus_total_words:,} words, {len(model.wv):,} in the vocabulary; it has those of {asked} analogies")
    if model.corpus_total_words < WORDS_FOR_ANALOGIES:
        print("The text is too small to learn analogies from: look at the words next to each other.")
    curve = [(0, right, togetherness(model, seen))]
    chunk_rows = max(1, round(arguments.chunk_words * model.corpus_count / model.corpus_total_words))
    with DeepDist(model, peers=arguments.peers, parameters=(*SUMS, *SUMS.values())) as dd:
        for _ in range(arguments.epochs):
            report = dd.train(data, gradient, descent, chunk_rows=chunk_rows)
            curve.append((curve[-1][0] + report.updates, analogies(dd.model)[0], togetherness(dd.model, seen)))
            print("{:>6} updates: {:.1%} of analogies right, {:.3f} of neighbors told from others".format(*curve[-1]))
    draw(curve, asked, arguments.plot)
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
    parser.add_argument("--plot", default="word2vec_adagrad.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
