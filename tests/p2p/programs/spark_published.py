"""Two executors: the programs that DeepDist has published, with another import line and gensim's names of today.

The first one trains word2vec, by peers and with a master. The second one adds AdaGrad, whose sums `descent` makes as
attributes of the model when it is called first; peers refuse that, since each would have sums of its own.
"""

import random

import numpy as np
from gensim.models.word2vec import Word2Vec
from spark_context import agents_go, spark_context, write_results

from p2p import DeepDist, UsageError

ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]
SETTINGS = {"vector_size": 16, "min_count": 1, "sample": 0, "sg": 1, "workers": 1, "seed": 3}


def gradient(model, sentences):  # executes on workers
    syn0, syn1 = model.wv.vectors.copy(), model.syn1neg.copy()
    model.train(sentences, total_examples=model.corpus_count, epochs=1)
    return {"syn0": model.wv.vectors - syn0, "syn1": model.syn1neg - syn1}


def descent(model, update):  # executes on master, or where the gradient was
    model.wv.vectors += update["syn0"]
    model.syn1neg += update["syn1"]


def adagrad(model, update):
    if not hasattr(model, "ssyn0"):
        model.ssyn0, model.ssyn1 = np.zeros_like(model.wv.vectors), np.zeros_like(model.syn1neg)
    model.ssyn0 += update["syn0"] ** 2
    model.ssyn1 += update["syn1"] ** 2
    model.wv.vectors += 0.05 * update["syn0"] / np.sqrt(model.ssyn0 + 1e-8)
    model.syn1neg += 0.05 * update["syn1"] / np.sqrt(model.ssyn1 + 1e-8)


def margin(model):
    """How much more alike words of one topic are than words of two."""
    same = [model.wv.similarity(a, b) for topic in (ANIMALS, TOOLS) for a in topic for b in topic if a < b]
    other = [model.wv.similarity(a, b) for a in ANIMALS for b in TOOLS]
    return float(np.mean(same) - np.mean(other))


def trained(mode):
    model = Word2Vec(corpus.collect(), **SETTINGS)
    before, vectors = margin(model), model.wv.vectors.copy()
    with DeepDist(model, mode) as dd:
        reports = [dd.train(corpus, gradient, descent) for _ in range(3)]
        found = dd.model.wv.most_similar(positive=["cat", "dog"], negative=["saw"], topn=3)
    return {
        "updates": [report.updates for report in reports],
        "rows": [report.rows for report in reports],
        "lost": [report.updates_lost for report in reports],
        "moved": float(np.abs(dd.model.wv.vectors - vectors).max()),
        "its own": dd.model is model,
        "margins": [before, margin(model)],
        "similar": [word for word, _ in found],
    }


def refused():
    with DeepDist(Word2Vec(corpus.collect(), **SETTINGS)) as dd:
        try:
            dd.train(corpus, gradient, adagrad)
        except UsageError as error:
            return str(error)
    return None


sc = spark_context("local-cluster[2,1,1024]")
chance = random.Random(5)
texts = [" ".join(chance.choices(topic, k=8)) for _ in range(200) for topic in (ANIMALS, TOOLS)]
corpus = sc.parallelize(texts, 4).map(lambda s: s.split())
results = {mode: trained(mode) for mode in ("p2p", "master")}
results["AdaGrad by peers"] = refused()
results["agents"] = agents_go(0)
sc.stop()
write_results(results)
