"""One executor; Python workers die in the middle of a gradient that exchanges continuously, and Spark tries again."""

import os
from pathlib import Path

import numpy as np
from pyspark import TaskContext
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.worker.task import current, in_place, pause

PARTITIONS, ROWS, EPOCHS = 4, 60, 2


def gradient(model, rows):
    """Count rows in place. The first attempt at every second partition is killed half way."""
    copy = in_place(model)
    where = current()
    dies = TaskContext.get().attemptNumber() == 0 and where.partition % 2 == 0
    for number, row in enumerate(rows):
        if dies and number == ROWS // 2:
            Path(os.environ["TMPDIR"], f"killed-{where.epoch}-{where.partition}").touch()
            os._exit(1)
        model["times"][row] += 1
        pause()
    return copy.trained({})


def main():
    context = spark_context("local[2,4]")
    rows = context.parallelize(range(PARTITIONS * ROWS), PARTITIONS)
    with DeepDist({"times": np.zeros(PARTITIONS * ROWS)}, progress=False) as dd:
        report = dd.train(rows, gradient, epochs=EPOCHS, exchange="continuous", exchange_s=1e-9)
        results = {
            "times": sorted({float(count) for count in dd.model["times"]}),
            "killed": len(list(Path(os.environ["TMPDIR"]).glob("killed-*"))),
            "updates": report.updates,
            "lost": report.updates_lost,
            "rows": report.rows,
        }
    context.stop()
    write_results(results)


main()
