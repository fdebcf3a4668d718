"""Two executors and a master: DeepDist's published word2vec with AdaGrad, with another import line and gensim's names.
`descent` makes sums of squares, a counter and a version as attributes of the model when it is called first, and
evaluates the model now and then.

Beside what it learns, each gradient tells what its copy of the model has of these, and `descent` notes what they were.
"""

import random

import numpy as np
from gensim.models.word2vec import Word2Vec
from spark_context import agents_go, spark_context, write_results

from p2p import DeepDist

ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]
SETTINGS = {"vector_size": 16, "min_count": 1, "sample": 0, "sg": 1, "workers": 1, "seed": 3}
ALPHA, EVERY = 0.05, 5


def gradient(model, sentences):  # executes on workers
    syn0, syn1 = model.wv.vectors.copy(), model.syn1neg.copy()
    seen = told(model)
    model.train(sentences, total_examples=model.corpus_count, epochs=1)
    return {"syn0": model.wv.vectors - syn0, "syn1": model.syn1neg - syn1, "seen": seen}


def descent(model, update):  # executes on master
    if not hasattr(model, "updates"):
        model.ssyn0, model.ssyn1 = np.zeros_like(model.wv.vectors), np.zeros_like(model.syn1neg)
        model.updates, model.version, model.scores = 0, "none", []
    model.ssyn0 += update["syn0"] ** 2
    model.ssyn1 += update["syn1"] ** 2
    model.wv.vectors += ALPHA * update["syn0"] / np.sqrt(model.ssyn0 + 1e-8)
    model.syn1neg += ALPHA * update["syn1"] / np.sqrt(model.ssyn1 + 1e-8)
    model.updates += 1
    model.version = f"of {model.updates} updates"
    if model.updates % EVERY == 0:
        model.scores.append([model.updates, margin(model)])
    squares.append(float(np.square(update["syn0"], dtype=np.float64).sum()))
    seen.append(update["seen"])
    history[model.updates] = told(model)


def told(model):
    """What a copy of the model has of the attributes that descent made; None if it has none."""
    if not hasattr(model, "updates"):
        return None
    sums = [float(array.sum(dtype=np.float64)) for array in (model.ssyn0, model.ssyn1)]
    return [model.updates, model.version, len(model.scores), *sums, float(model.wv.vectors.sum(dtype=np.float64))]


def margin(model):
    """How much more alike words of one topic are than words of two."""
    same = [model.wv.similarity(a, b) for topic in (ANIMALS, TOOLS) for a in topic for b in topic if a < b]
    other = [model.wv.similarity(a, b) for a in ANIMALS for b in TOOLS]
    return float(np.mean(same) - np.mean(other))


sc = spark_context("local-cluster[2,1,1024]")
chance = random.Random(5)
texts = [" ".join(chance.choices(topic, k=8)) for _ in range(200) for topic in (ANIMALS, TOOLS)]
corpus = sc.parallelize(texts, 4).map(lambda s: s.split())
squares, seen, history = [], [], {}
model = Word2Vec(corpus.collect(), **SETTINGS)
trainings = []
with DeepDist(model, "master") as dd:
    for _ in range(3):
        first = len(seen)
        report = dd.train(corpus, gradient, descent, chunk_rows=25)
        trainings.append(
            {
                "updates": report.updates,
                "rows": report.rows,
                "lost": report.updates_lost,
                "seen": seen[first:],
                "model": told(dd.model),
                "shapes": [list(dd.model.ssyn0.shape), list(dd.model.ssyn1.shape)],
            }
        )
    scores = dd.model.scores
results = {
    "trainings": trainings,
    "history": history,
    "squares": sum(squares),
    "scores": scores,
    "its own": dd.model is model,
    "after": told(model),
    "agents": agents_go(0),
}
sc.stop()
write_results(results)
