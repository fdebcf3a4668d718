"""Two executors: a master that runs beside an executor is killed whole, twice, in the middle of a training."""

import os
import signal
import threading
import time

import numpy as np
from spark_context import spark_context, write_results

from p2p import DeepDist

sc = spark_context("local-cluster[2,1,1024]")
ROWS = 1200


def gradient(model, rows):
    time.sleep(0.004)
    return {"w": np.full(3, float(sum(rows)))}


def descent(model, update):
    model["w"] += update["w"]
    model["count"] = model.get("count", 0) + 1


def kill(dd, updates):
    give_up = time.monotonic() + 60
    while dd._session.snapshot().updates < updates and time.monotonic() < give_up:
        time.sleep(0.01)
    os.kill(dd._session._standbys.there[0].pid, signal.SIGKILL)


model = {"w": np.zeros(3)}
found = {"sum": sum(range(ROWS)), "trainings": [], "seconds": []}
began = time.monotonic()
with DeepDist(model, mode="master", standbys=2) as dd:
    for training in range(2):
        thread = threading.Thread(target=kill, args=(dd, training * ROWS + 200), daemon=True)
        thread.start()
        report = dd.train(sc.parallelize(range(ROWS), 4), gradient, descent, chunk_rows=1)
        thread.join()
        found["seconds"].append(time.monotonic() - began)
        found["trainings"].append([report.updates, report.failovers, dd.model["w"].tolist(), dd.model["count"]])
sc.stop()
write_results(found)
