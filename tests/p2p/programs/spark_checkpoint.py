"""Two executors of one core: a training is interrupted by its own watcher, and goes on from its newest checkpoint."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
from spark_context import spark_context, write_results

from p2p import DeepDist

ROWS = 64


def gradient(model, rows):
    seen = np.zeros(ROWS)
    for row in rows:
        seen[row] += 1
    time.sleep(0.03)
    return {"seen": seen}


def descent(model, update):
    model["seen"] += update["seen"]


class Impatient:
    """Presses Ctrl-C, as it were, when half of the units are there."""

    every_s = 0.05
    wants_units = True

    def look(self, model, moment):
        if moment.counted is not None and moment.counted.units >= 32:
            raise TimeoutError("half of them are enough")


def tell(rows):
    Path(HERE, f"worker {os.getpid()}").touch()
    yield from rows


HERE = tempfile.mkdtemp()
sc = spark_context("local-cluster[2,1,1024]")
results = {}
for name, mode, data in (
    ("p2p", "p2p", sc.parallelize(range(ROWS), 4)),
    ("master", "master", sc.parallelize(range(ROWS), 4)),
    ("shuffled", "p2p", sc.parallelize(range(ROWS), 2).repartition(4)),
):
    folder = os.path.join(tempfile.mkdtemp(), "checkpoints")
    options = {"chunk_rows": 2, "checkpoint": folder, "every_s": 0.1}
    with DeepDist({"seen": np.zeros(ROWS)}, mode, progress=False) as dd:
        try:
            dd.train(data, gradient, descent, 2, watchers=[Impatient()], **options)
        except TimeoutError:
            pass
    with DeepDist.resume(folder, progress=False) as dd:
        began = float(dd.model["seen"].sum())
        report = dd.train(data, gradient, descent, **options)
        seen = dd.model["seen"].tolist()
    results[name] = {
        "began": began,
        "seen": seen,
        "updates": report.updates,
        "lost": report.updates_lost,
        "failed": report.checkpoints.failed,
    }
    if name == "p2p":
        with DeepDist.resume(folder, progress=False) as dd:
            done = dd.train(data.mapPartitions(tell), gradient, descent).updates
        results["done"] = {"updates": done, "workers": len(list(Path(HERE).glob("worker *")))}
sc.stop()
write_results(results)
