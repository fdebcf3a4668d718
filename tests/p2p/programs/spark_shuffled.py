"""One executor; its input comes from shuffles, and later attempts get their rows in another order, or other rows."""

import gzip
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from pyspark import TaskContext
from pyspark.sql import SparkSession
from spark_context import spark_context, write_results

from p2p import DeepDist, UsageError
from p2p.engines.spark import order_of
from p2p.models.word2vec.corpus import sentences
from p2p.worker.task import current, in_place, pause

ROWS, CHUNK, PARTITIONS = 1000, 20, 4
HERE = Path(os.environ["TMPDIR"])


def turned(rows):
    """Later attempts get them in another order."""
    rows = list(rows)
    by = 7 * TaskContext.get().attemptNumber()
    return rows[by:] + rows[:by]


def renewed(rows):
    """Later attempts get other rows."""
    return [(row + TaskContext.get().attemptNumber()) % ROWS for row in rows]


def is_first():
    """Whether this attempt is the first at its partition, which dies."""
    return TaskContext.get().attemptNumber() == 0


def gradient(model, rows):
    """Count rows; the first attempt at each partition fails in its fourth chunk."""
    rows = list(rows)
    if is_first() and current().chunk == 3:
        (HERE / f"failed-{current().partition}").touch()
        raise RuntimeError("an attempt that fails")
    seen = np.zeros(ROWS)
    np.add.at(seen, [int(row) for row in rows], 1)
    return {"seen": seen}


def in_one_go(model, rows):
    """Count rows in place; the first attempt at each partition is killed at its hundredth row."""
    copy = in_place(model)
    dies = is_first()
    for number, row in enumerate(rows):
        if dies and number == 100:
            os._exit(1)
        model["seen"][row] += 1
        pause()
    return copy.trained({})


def trained(rows, gradient, **options):
    with DeepDist({"seen": np.zeros(ROWS)}, progress=False) as dd:
        report = dd.train(rows, gradient, **options)
        times = Counter(dd.model["seen"].tolist())
        return {"times": sorted(times.items()), "rows": report.rows, "lost": report.updates_lost}


def refused(rows, gradient):
    try:
        trained(rows, gradient, chunk_rows=CHUNK)
    except UsageError as error:
        return [str(error), error.__notes__[0].splitlines()[0]]
    return None


def main():
    context = spark_context("local[2,4]", **{"spark.python.worker.memory": "1m"})
    session = SparkSession(context)
    plain = context.parallelize(range(ROWS), 8)
    shuffled = plain.repartition(PARTITIONS)
    context.setCheckpointDir(str(HERE / "checkpoint"))
    kept = shuffled.map(lambda row: row)
    kept.checkpoint()
    kept.count()
    orders = {
        "plain": plain,
        "mapped": plain.map(str).filter(len),
        "shuffled": shuffled,
        "cached": shuffled.map(str).cache(),
        "by key": plain.map(lambda row: (row, row)).groupByKey(),
        "shuffled twice": shuffled.repartition(3),
        "frame": session.createDataFrame([(1,)], "id int").repartition(2).rdd,
        "checkpointed": kept,
    }
    with gzip.open(HERE / "text.gz", "wt") as file:
        file.writelines(f"{row}\n" for row in range(ROWS))
    text = sentences(HERE / "text.gz", sc=context)
    results = {
        "orders": {name: order_of(data) for name, data in orders.items()},
        "text": [order_of(text), trained(text.mapPartitions(turned), gradient, chunk_rows=CHUNK)],
        "failed": len(list(HERE.glob("failed-*"))),
        "continuous": trained(shuffled.mapPartitions(turned), in_one_go, exchange="continuous", exchange_s=1e-9),
        "other rows": refused(shuffled.mapPartitions(renewed), gradient),
        "locks": refused(shuffled.map(lambda _: threading.Lock()), gradient),
    }
    session.stop()
    write_results(results)


main()
