"""One executor whose Python workers are forked from `p2p.spark_daemon`: what they find there, and a training."""

import gc
import os
import sys
import threading

from gensim.models import Word2Vec
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.models.word2vec import build_vocab, gradient


def found(rows):
    """What a worker has before its first rows, and the threads of the daemon that it was forked from."""
    from p2p.models.word2vec import skipgram

    return [
        {
            "numba": "numba" in sys.modules,
            "loaded": skipgram._compiled.cache_info().currsize == 1,
            "frozen": gc.get_freeze_count(),
            "threads": [threading.active_count(), len(os.listdir(f"/proc/{os.getppid()}/task"))],
        }
    ]


sc = spark_context("local-cluster[1,1,1024]", **{"spark.python.daemon.module": "p2p.spark_daemon"})
(results,) = sc.parallelize(range(1), 1).mapPartitions(found).collect()
rows = sc.parallelize(["cat dog cow hen pig"] * 200, 2)
model = Word2Vec(sg=1, vector_size=16, min_count=1, sample=0)
build_vocab(model, rows)
before = model.wv["cat"].copy()
with DeepDist(model) as dd:
    report = dd.train(rows, gradient, chunk_rows=50)
    results["learned"] = bool((dd.model.wv["cat"] != before).any())
results |= {"words": model.corpus_total_words, "updates": report.updates, "distance": report.consensus_distance}
sc.stop()
write_results(results)
