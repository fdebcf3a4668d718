"""Two executors of one core, and three partitions: steps and averages, while a Python worker is killed in each mode.

Then one executor is killed, which takes its place among those that wait with it, in the middle of a step.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.master import barrier
from p2p.worker.task import current

ROWS, CHUNK_ROWS, EPOCHS, RATE = (5, 8, 3), 2, 2, 0.3
DATA = [[(partition + 1.0, row / 7) for row in range(rows)] for partition, rows in enumerate(ROWS)]
HERE = Path.cwd()


def slope(model, rows):
    found = np.array(list(rows))
    return {"w": found.mean(axis=0) * np.cos(model["w"]), "rows": np.array(len(found))}


def once(name):
    """Whether nobody was here before."""
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def killing(name, whose):
    def gradient(model, rows):
        where = current()
        if (where.epoch, where.partition, where.chunk) == (1, 1, 1) and once(name):
            os.kill(whose(), signal.SIGKILL)
            time.sleep(60)
        return slope(model, rows)

    return gradient


def executor():
    """The JVM above this Python worker and its daemon."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def descent(model, update):
    model["w"] -= RATE * update["w"]
    model["rows"] += update["rows"]


def zeros():
    return {"w": np.zeros(2), "rows": np.array(0)}


def cut(rows):
    return [rows[first : first + CHUNK_ROWS] for first in range(0, len(rows), CHUNK_ROWS)]


def stepped(waves):
    """What the steps of these waves come to in one process; how many there are."""
    model, steps = zeros(), 0
    for wave in waves:
        chunks = [cut(DATA[partition]) for partition in wave]
        for step in range(max(map(len, chunks))):
            updates = [slope(model, each[step]) for each in chunks if len(each) > step]
            descent(model, {"w": sum(u["w"] for u in updates) / len(updates), "rows": sum(u["rows"] for u in updates)})
            steps += 1
    return model["w"].tolist(), steps


def averaged():
    model = zeros()
    for _ in range(EPOCHS):
        found = []
        for rows in DATA:
            mine = {name: array.copy() for name, array in model.items()}
            for chunk in cut(rows):
                descent(mine, slope(mine, chunk))
            found.append(mine["w"])
        model["w"] = np.average(found, axis=0, weights=ROWS)
    return model["w"].tolist()


def main():
    context = spark_context("local-cluster[2,1,1024]")
    rdd = context.parallelize(range(len(DATA)), len(DATA)).flatMap(lambda partition: DATA[partition])
    results = {"expected": {"sync": stepped([(0, 1), (2,)] * EPOCHS), "averaging": [averaged(), EPOCHS]}}
    for mode in ("sync", "averaging"):
        with DeepDist(zeros(), mode, progress=False) as dd:
            report = dd.train(rdd, killing(mode, os.getpid), descent, EPOCHS, chunk_rows=CHUNK_ROWS)
            results[mode] = {
                "w": dd.model["w"].tolist(),
                "rows": [int(dd.model["rows"]), report.rows],
                "updates": report.updates,
                "lost": report.updates_lost,
                "mode": report.mode,
                "killed": (HERE / mode).exists(),
            }
    barrier.PATIENCE_S = 2.0
    with DeepDist(zeros(), "sync", progress=False) as dd:
        report = dd.train(rdd, killing("executor", executor), descent, EPOCHS, chunk_rows=CHUNK_ROWS)
        results["executor"] = {
            "rows": [int(dd.model["rows"]), report.rows],
            "lost": report.updates_lost,
            "killed": (HERE / "executor").exists(),
        }
    context.stop()
    write_results(results)


main()
