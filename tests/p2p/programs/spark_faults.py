"""Two executors; attempts fail at random after some chunks, and one agent is killed while updates flow."""

import os
import random
import signal
import threading

import numpy as np
from pyspark import TaskContext
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.task import current

PARTITIONS, CHUNKS, EPOCHS = 8, 4, 3


def gradient(model, rows):
    """Integer-valued, so that whatever counts twice or not at all shows. Every third attempt dies half way."""
    where = current()
    attempt = TaskContext.get().attemptNumber()
    chance = random.Random(f"{where.epoch} {where.partition} {attempt}")
    if chance.random() < 1 / 3 and where.chunk == chance.randrange(CHUNKS):
        raise RuntimeError("an attempt that fails")
    return {"sum": np.array([float(sum(rows))]), "updates": np.ones(1)}


def main():
    context = spark_context("local-cluster[2,1,1024]", **{"spark.task.maxFailures": "20"})
    rows = list(range(PARTITIONS * CHUNKS * 5))
    model = {"sum": np.zeros(1), "updates": np.zeros(1)}
    killed = []
    with DeepDist(model, progress=False) as dd:

        def kill():
            """One agent, as soon as it has published something."""
            registrar = dd._session._registrar
            before = {m.peer: m.status["n"] for m in registrar.by_role("peer")}

            def busy():
                return [m for m in registrar.by_role("peer") if m.status.get("n", 0) > before.get(m.peer, 0) + 5]

            if registrar.wait(lambda: bool(busy()), 60):
                victim = busy()[0]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.name)

        def train():
            return dd.train(context.parallelize(rows, PARTITIONS), gradient, epochs=EPOCHS, chunk_rows=5)

        clean = train()
        after_clean = {name: array.copy() for name, array in dd.model.items()}
        killer = threading.Thread(target=kill)
        killer.start()
        faulty = train()
        killer.join()
        results = {
            "units": PARTITIONS * CHUNKS * EPOCHS,
            "expected": float(sum(rows) * EPOCHS),
            "clean": [float(after_clean["sum"][0]), float(after_clean["updates"][0]), clean.updates_lost],
            "faulty": [
                float(dd.model["sum"][0] - after_clean["sum"][0]),
                float(dd.model["updates"][0] - after_clean["updates"][0]),
                faulty.updates_lost,
            ],
            "distance": faulty.consensus_distance,
            "killed": killed,
            "missing": list(faulty.missing),
            "peers": [peer.name for peer in faulty.peers if peer.role == "peer"],
        }
    context.stop()
    write_results(results)


main()
