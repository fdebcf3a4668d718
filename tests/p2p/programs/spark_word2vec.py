"""One executor, which is the driver program's own JVM: word2vec by one call from an RDD, DataFrames and files."""

import gzip
import os
import random
from pathlib import Path

from gensim.models import Word2Vec
from pyspark.sql import SparkSession
from spark_context import agents_go, spark_context, write_results

from p2p import UsageError
from p2p.models.word2vec import build_vocab, train

ANIMALS, TOOLS = ["cat", "dog", "cow", "hen", "pig"], ["saw", "axe", "file", "drill", "plane"]
SETTINGS = {"vector_size": 16, "min_count": 1, "sample": 0, "alpha": 0.05, "sg": 1, "epochs": 8, "chunk_words": 400}


def refused(*arguments, **options):
    try:
        train(*arguments, **options)
    except UsageError as error:
        return str(error)
    return None


def tell(name, *arguments, **options):
    """Train, and keep what came out under `name`."""
    reports = []
    model = train(*arguments, on_report=reports.append, **{**SETTINGS, **options})
    same = [model.wv.similarity(a, b) for topic in (ANIMALS, TOOLS) for a in topic for b in topic if a < b]
    other = [model.wv.similarity(a, b) for a in ANIMALS for b in TOOLS]
    results[name] = {
        "rows": reports[0].rows,
        "words": model.corpus_total_words,
        "roles": [peer.role for peer in reports[0].peers],
        "lost": reports[0].updates_lost,
        "margin": float(sum(same) / len(same) - sum(other) / len(other)),
    }
    return model


results = {}
chance = random.Random(5)
rows = [chance.choices(topic, k=8) for _ in range(200) for topic in (ANIMALS, TOOLS)]
folder = Path(os.environ["TMPDIR"]) / "text"
folder.mkdir()
with gzip.open(folder / "text.gz", "wt") as file:
    file.writelines(" ".join(row) + "\n" for row in rows)

sc = spark_context("local[2]")
session = SparkSession(sc)
tokens = session.createDataFrame([(row,) for row in rows] + [(None,)], "tokens array<string>").repartition(4)
text = session.createDataFrame([(1, " ".join(row)) for row in rows], "id int, text string").repartition(4)
model = tell("rdd", sc.parallelize(rows, 4))
tell("going on", sc.parallelize(rows, 4), start_from=model, epochs=1, alpha=0.01)  # at .05 it overshoots on a slow day
tell("tokens", tokens)
counted = Word2Vec(**{name: SETTINGS[name] for name in ("vector_size", "min_count", "sample")})
build_vocab(counted, sc.parallelize([" ".join(row) for row in rows], 40))
results["counted in many parts"] = {
    "words": counted.wv.index_to_key == model.wv.index_to_key,
    "counts": counted.wv.expandos["count"].tolist() == model.wv.expandos["count"].tolist(),
    "totals": [counted.corpus_count, counted.corpus_total_words],
}
tell("text", text, column="text", mode="master", epochs=1)
tell("folder", folder)
results["agents"] = agents_go(0)
results["refused"] = {
    "peers": refused(sc.parallelize(rows), peers=2),
    "column": refused(text, column="words"),
    "type": refused(text, column="id"),
    "path": refused(str(folder / "none.txt")),
    "other words": refused(sc.parallelize([["other"]], 1), start_from=model),
}
session.stop()
write_results(results)
