"""Two executors; attempts fail at random after some chunks, and one agent is killed while updates flow.

Then another one stands still when a training begins, until it was given up.
"""

import os
import random
import signal
import threading
import time

import numpy as np
from pyspark import TaskContext
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.worker.task import current

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
            before = {m.peer: m.figures.published for m in registrar.by_role("peer")}

            def busy():
                return [m for m in registrar.by_role("peer") if m.figures.published > before.get(m.peer, 0) + 5]

            if registrar.wait(lambda: bool(busy()), 60):
                victim = busy()[0]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.name)

        def stand_still():
            """One agent, from before the next training until that has taken it off the roster."""
            registrar = dd._session._registrar
            still = registrar.by_role("peer")[-1]
            os.kill(still.pid, signal.SIGSTOP)
            registrar.wait(lambda: registrar.is_silent(still), 60)

            def go_on():
                registrar.wait(lambda: still.peer not in registrar.members, 60)
                os.kill(still.pid, signal.SIGCONT)

            thread = threading.Thread(target=go_on)
            thread.start()
            return still.name, thread

        def train():
            return dd.train(context.parallelize(rows, PARTITIONS), gradient, epochs=EPOCHS, chunk_rows=5)

        clean = train()
        after_clean = {name: array.copy() for name, array in dd.model.items()}
        killer = threading.Thread(target=kill)
        killer.start()
        faulty = train()
        killer.join()
        after_faulty = {name: array.copy() for name, array in dd.model.items()}
        still, thread = stand_still()
        begin = time.monotonic()
        later = train()
        later_s = time.monotonic() - begin
        thread.join()
        results = {
            "units": PARTITIONS * CHUNKS * EPOCHS,
            "expected": float(sum(rows) * EPOCHS),
            "clean": [float(after_clean["sum"][0]), float(after_clean["updates"][0]), clean.updates_lost],
            "faulty": [
                float(after_faulty["sum"][0] - after_clean["sum"][0]),
                float(after_faulty["updates"][0] - after_clean["updates"][0]),
                faulty.updates_lost,
            ],
            "distance": faulty.consensus_distance,
            "killed": killed,
            "missing": list(faulty.missing),
            "still": still,
            "later_s": later_s,
            "later": [
                float(dd.model["sum"][0] - after_faulty["sum"][0]),
                float(dd.model["updates"][0] - after_faulty["updates"][0]),
                later.updates_lost,
            ],
            "later peers": [peer.name for peer in later.peers if peer.role == "peer"],
            "peers": [peer.name for peer in faulty.peers if peer.role == "peer"],
        }
    context.stop()
    write_results(results)


main()
