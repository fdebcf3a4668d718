"""One executor, which is the driver program's own JVM: corpora as people have them, refusals, and accumulators."""

import bz2
import codecs
import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
from gensim.models import Word2Vec
from pyspark.accumulators import AccumulatorParam
from pyspark.sql import SparkSession
from spark_context import agents, spark_context, write_results

from p2p import DeepDist, UsageError
from p2p.models.word2vec import build_vocab, corpus, train
from p2p.worker.task import current

LINE = "the cat sat on the mat\n"


def gradient(model, rows):
    return {"sum": np.array([float(sum(rows))])}


def counting(model, rows):
    for row in rows:
        in_gradient.add(1)
        in_both.add(1)
        in_list.add([row, 1])
    return {"sum": np.ones(1)}


def drawing(model, rows):
    drawn = np.zeros((EPOCHS, PARTITIONS, 2))
    drawn[current().epoch, current().partition] = [np.random.random(), next(rows)]
    return {"drawn": drawn}


class Lists(AccumulatorParam):
    def zero(self, value):
        return [0] * len(value)

    def addInPlace(self, one, other):  # noqa: N802
        return [a + b for a, b in zip(one, other, strict=True)]


def put(name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def words(path, **options):
    try:
        return Counter(word for row in corpus.sentences(path, **options).collect() for word in row.split())
    except UsageError as error:
        return str(error).replace(str(folder), "")


def refused(function, *arguments, **options):
    """The error's text, and how many notes say where it was raised."""
    try:
        function(*arguments, **options)
    except UsageError as error:
        return [str(error), len(getattr(error, "__notes__", []))]
    return None


folder = Path(os.environ["TMPDIR"]) / "texts"
FILES = {
    "mark": put("mark.txt", codecs.BOM_UTF8 + LINE.encode()),
    "upper case": put("upper.GZ", gzip.compress(LINE.encode())),
    "no ending": put("packed", bz2.compress(LINE.encode())),
    "comma": put("d,e.txt", LINE.encode()),
    "brackets": put("f[1]{2}.txt", LINE.encode()),
    "colon": put("colon/g:h.txt", LINE.encode()),
    "within": put("wiki/AA/wiki_00", LINE.encode()).parents[1],
    "utf-16": put("utf-16", LINE.encode("utf-16")),
    "latin-1": put("latin/text", ("é " + LINE).encode("latin-1")),
}
results = {}
sc = spark_context("local[2]")
session = SparkSession(sc)
results["files"] = {name: words(path) for name, path in FILES.items()}
results["in latin-1"] = words(FILES["latin-1"], encoding="latin-1")


def by_hadoop(path, encoding=None):
    try:
        rows = corpus._read_by_hadoop(sc, f"file://{path}", 2, encoding).collect()
    except UsageError as error:
        return str(error).replace(str(folder), "")
    return Counter(word for row in rows for word in row.split())


results["by Hadoop"] = {name: by_hadoop(path) for name, path in FILES.items() if name != "no ending"}
results["by Hadoop in latin-1"] = by_hadoop(FILES["latin-1"].parent, "latin-1")
results["array"] = by_hadoop(put("array.npy", b""))

frame = session.createDataFrame([(LINE, (LINE, 1))], "`a.b` string, doc struct<text: string, id: int>")
results["columns"] = {name: Counter(corpus.sentences(frame, name).first().split()) for name in ("a.b", "doc.text")}
results["no columns"] = [refused(corpus.sentences, frame, name)[0] for name in ("a", "doc.id", "doc.other")]

small = {"min_count": 1, "vector_size": 4}
model = Word2Vec(["a b"], **small)
results["refused"] = {
    "rows": refused(build_vocab, Word2Vec(**small), sc.parallelize([["a"], {"text": "a"}], 2)),
    "rows of many parts": refused(build_vocab, Word2Vec(**small), sc.parallelize([7], 40)),
    "rows to go on with": refused(
        train, sc.parallelize([frame.first()], 1), start_from=Word2Vec([["a", "b"]], **small)
    ),
    "barrier": refused(train, sc.parallelize([["a"]]).barrier(), **small),
    "barrier of a training": refused(
        DeepDist({"sum": np.zeros(1)}).__enter__().train, sc.parallelize([1]).barrier(), gradient
    ),
}
results["agents"] = len(agents())
EPOCHS, PARTITIONS = 2, 10
in_gradient, in_both, in_list = sc.accumulator(0), sc.accumulator(0), sc.accumulator([0, 0], Lists())
with DeepDist({"sum": np.zeros(1)}) as dd:
    numbers = sc.parallelize(range(20), PARTITIONS).map(lambda row: in_both.add(100) or row)
    dd.train(numbers, counting, epochs=EPOCHS)
    results["accumulated"] = [in_gradient.value, in_both.value, in_list.value]
    dd.train(numbers, counting)
    results["accumulated more"] = [in_gradient.value, in_both.value, in_list.value]
results["drawn"] = []
for _ in range(2):
    with DeepDist({"drawn": np.zeros((EPOCHS, PARTITIONS, 2))}) as dd:
        dd.train(sc.parallelize(range(10), PARTITIONS).map(lambda _: np.random.random()), drawing, epochs=EPOCHS)
        results["drawn"].append(dd.model["drawn"].ravel().tolist())
rdd = sc.parallelize([["a", "b"]])
session.stop()
results["stopped"] = [refused(train, rdd, **small), refused(build_vocab, Word2Vec(**small), rdd)]
write_results(results)
