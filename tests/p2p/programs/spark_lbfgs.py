"""Two executors of one core: L-BFGS on full gradients, with a shard that is killed, a late task, and errors."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from spark_context import spark_context, write_results

from p2p import LBFGS, DeepDist, UsageError, current
from p2p.lbfgs.coordinator import Coordinator

HERE = Path(os.environ["TMPDIR"])
LONG_S = 120.0
OPTIMIZER = LBFGS(gradient_tolerance=1e-5, decrease_tolerance=0.0)

rng = np.random.default_rng(0)
x = rng.normal(size=(40, 5))
y = x @ np.arange(5.0) + rng.normal(size=40)
rows = [(row.tolist(), float(label)) for row, label in zip(x, y, strict=True)]
solution = np.linalg.lstsq(x, y, rcond=None)[0]


def squares(model, rows):
    x, y = map(np.array, zip(*rows, strict=True))
    off = x @ model["w"] - y
    return float(off @ off) / 2, {"w": x.T @ off}


def late(model, rows):
    """The first task that comes to the third pass waits for the end of the training."""
    task = current()
    if task.epoch == 2 and task.partition == 1:
        try:
            (HERE / "late").mkdir()
        except FileExistsError:
            pass
        else:
            give_up = time.monotonic() + LONG_S
            while time.monotonic() < give_up and not (HERE / "over").exists():
                time.sleep(0.05)
    return squares(model, rows)


def wrong(model, rows):
    if current().epoch == 2:
        raise KeyError("mine")
    return squares(model, rows)


def train(data, function=squares, **options):
    with DeepDist({"w": np.zeros(5)}, optimizer=OPTIMIZER, progress=False) as dd:
        try:
            report = dd.train(data, function, **options)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return {"error": type(error).__name__, "words": str(error), "notes": getattr(error, "__notes__", [])}
        return {
            "off": float(np.abs(dd.model["w"] - solution).max()),
            "passes": report.passes,
            "seconds": [round(each, 2) for each in report.pass_seconds],
            "rows": report.rows,
            "portions": report.updates,
            "restarts": report.restarts,
            "backups": report.backups,
            "ended": report.ended,
            "shards": sum(peer.role == "shard" for peer in report.peers),
            "workers": sum(peer.role == "worker" for peer in report.peers),
        }


sc = spark_context("local-cluster[2,1,1024]")
data = sc.parallelize(rows, 4)
results = {"plain": train(data, chunk_rows=4), "wrong": train(data, wrong)}
results["shuffled"] = train(data.map(lambda row: (row[1], row)).repartition(3).values())
results["shuffled chunks"] = train(data.repartition(3), chunk_rows=4)
results["peers"] = {}
try:
    with DeepDist({"w": np.zeros(5)}, optimizer=OPTIMIZER, peers=2) as dd:
        dd.train(data, squares)
except UsageError as error:
    results["peers"] = {"words": str(error)}

real, calls = Coordinator.evaluate, []


def killing(self, step):
    calls.append(step)
    if len(calls) == 5:
        os.kill(self.members[self._shards.names[1]].pid, signal.SIGKILL)
    return real(self, step)


Coordinator.evaluate = killing
results["killed"] = train(data, chunk_rows=4)
Coordinator.evaluate = real
results["late"] = train(data, late, chunk_rows=4)
(HERE / "over").touch()
sc.stop()
write_results(results)
sys.exit(0)
