"""Two executors of one core: a training is interrupted by its own watcher, and goes on from its newest checkpoint."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.checkpoint import likeness, reading
from p2p.descents import AdaGrad
from p2p.models import mlp

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


def slowly(row):
    time.sleep(0.01)
    return row


def evaluate(model):
    if reading.is_there(folder) and reading.read(folder).record.units.count:
        raise TimeoutError("some units are enough")
    return 0.0


chance = np.random.default_rng(0)
x = chance.normal(size=(160, 4))
y = (x @ np.arange(1.0, 5.0) > 0).astype(int)
data = sc.parallelize(list(zip(x, y, strict=True)), 4).map(slowly)
folder = os.path.join(tempfile.mkdtemp(), "checkpoints")
options = {"epochs": 4, "chunk_rows": 10, "checkpoint": folder, "every_s": 0.1, "resume": True, "progress": False}
try:
    mlp.fit(mlp.MLP(4, (8,), classes=2), data, AdaGrad(0.3), evaluate=evaluate, evaluate_every_s=0.3, **options)
except TimeoutError:
    pass
began = reading.read(folder).record.units.count
model = mlp.MLP(4, (8,), classes=2)
updates = [mlp.fit(model, data, AdaGrad(0.3), **options).updates for _ in range(2)]
results["mlp"] = {"began": began, "updates": updates, "accuracy": model.accuracy(x, y)}

texts = []
for name in ("a b", "c"):
    texts.append(os.path.join(tempfile.mkdtemp(), name))
    Path(texts[-1]).write_text("a line\n" * 10)
results["likeness"] = [likeness.of_data(sc.textFile(text).map(slowly)) for text in texts]
results["no likeness"] = likeness.of_data(data)
sc.stop()
write_results(results)
