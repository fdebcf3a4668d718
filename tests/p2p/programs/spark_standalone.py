"""A bad day on a standalone cluster: slow partitions and their copies, attempts that fail, an executor that is killed.

The model has one slot for every row of every epoch, which only that row adds 1 to: what counts twice or not at all
shows. The killed one takes files of the input's shuffle with it, so that Spark runs the stage again while tasks of its
first run go on; and what is fetched again comes in another order. Environment variables say where the cluster is
(`MASTER`), which executor is killed (`VICTIM`, its host) and when (`DELAY_S`).
"""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from pyspark import TaskContext
from spark_context import spark_context, write_results

from p2p import DeepDist
from p2p.worker.task import current

HERE = Path(os.environ["TMPDIR"])
PARTITIONS, CHUNKS, CHUNK_ROWS, EPOCHS = 6, 10, 20, 2
ROWS = PARTITIONS * CHUNKS * CHUNK_ROWS
"""Spark deals them out by tens, so that a partition has a chunk more or less."""
SALT = 0
"""Of the chances: with this one three first attempts fail."""
SLOW_HOST = "127.0.0.2"
SLOW_CHUNKS, SLOW_S = 3, 0.6
"""Every second partition begins slowly on that host: it gets a copy on the other, which catches up with it."""
GRID_S = 0.1
"""Updates are published at whole multiples of this: of all attempts of a chunk at the same moment."""
WAIT_S = 120.0
STARTED = time.time()


def executor_of(pid):
    """(host, pid) of the executor's JVM above a Python worker's daemon."""
    executor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    words = Path(f"/proc/{executor}/cmdline").read_bytes().decode().split("\0")
    return words[words.index("--hostname") + 1], executor


def wait_for(condition):
    """Until it holds, at most until a while after the program began."""
    while not condition() and time.time() < STARTED + WAIT_S:
        time.sleep(0.02)


def executors():
    """What is known of the executors that have run a gradient so far: their hosts and pids."""
    return [path.name.split("-")[1:] for path in HERE.glob("executor-*")]


def unhurried(row):
    """So that both executors write some of the shuffle's files."""
    time.sleep(0.003)
    return row


def gradient(model, rows):
    where, task = current(), TaskContext.get()
    name = f"{where.epoch}-{where.partition}"
    host, executor = executor_of(os.getppid())
    (HERE / f"executor-{host}-{executor}").touch()
    (HERE / f"tried-{name}-{task.taskAttemptId()}").touch()
    chance = random.Random(f"{name}-{task.attemptNumber()}-{SALT}")
    if chance.random() < 0.1 and where.chunk == chance.randrange(CHUNKS):
        (HERE / f"failed-{name}-{task.taskAttemptId()}").touch()
        raise RuntimeError("an attempt that fails")
    if host == SLOW_HOST and where.partition % 2 and where.chunk < SLOW_CHUNKS:
        time.sleep(SLOW_S)
    if where.epoch == EPOCHS - 1 and where.partition % 2 and where.chunk == CHUNKS - 3:
        # not before the executor that comes for the killed one takes part, and a copy has caught up
        wait_for(lambda: len(executors()) > 2 and len(list(HERE.glob(f"tried-{name}-*"))) > 1)
    time.sleep(-time.time() % GRID_S)
    seen = np.zeros((EPOCHS, ROWS))
    np.add.at(seen[where.epoch], list(rows), 1)
    return {"seen": seen}


def kill_executor(session, host, delay_s):
    """Some time after updates have begun to flow from both."""

    def flow():
        peers = session._registrar.by_role("peer") if session._registrar is not None else []
        return len(peers) == 2 == len(executors()) and all(peer.figures.published > 2 for peer in peers)

    wait_for(flow)
    time.sleep(delay_s)
    for where, pid in executors():
        if where == host:
            os.kill(int(pid), signal.SIGKILL)


def attempts(context, group):
    """What Spark says of a group's last stage: how often it was run, how its tasks ended, how many were copies."""
    context._jsc.sc().listenerBus().waitUntilEmpty(10_000)
    tracker = context.statusTracker()
    count = Counter()
    stage = max(stage for job in tracker.getJobIdsForGroup(group) for stage in tracker.getJobInfo(job).stageIds)
    for attempt in range(tracker.getStageInfo(stage).currentAttemptId + 1):
        count["stage runs"] += 1
        tasks = context._jsc.sc().statusStore().taskList(stage, attempt, 10_000)
        for number in range(tasks.size()):
            task = tasks.apply(number)
            count[task.status()] += 1
            count["speculative"] += task.speculative()
    return count


def main():
    speculation = {
        "spark.speculation": "true",
        "spark.speculation.interval": "100ms",
        "spark.speculation.multiplier": "1.1",
        "spark.speculation.quantile": "0.2",
        "spark.speculation.minTaskRuntime": "100ms",
    }
    cluster = {"spark.cores.max": "4", "spark.executor.memory": "512m", "spark.task.maxFailures": "20"}
    context = spark_context(os.environ["MASTER"], **speculation, **cluster)
    rows = context.parallelize(range(ROWS), 12).map(unhurried).repartition(PARTITIONS)
    with DeepDist({"seen": np.zeros((EPOCHS, ROWS))}, progress=False) as dd:
        killer = threading.Thread(
            target=kill_executor, args=(dd._session, os.environ["VICTIM"], float(os.environ["DELAY_S"]))
        )
        killer.start()
        report = dd.train(rows, gradient, epochs=EPOCHS, chunk_rows=CHUNK_ROWS)
        killer.join()
        results = {
            "times": sorted(Counter(dd.model["seen"].ravel().tolist()).items()),
            "rows": report.rows,
            "chunk rows": CHUNK_ROWS,
            "lost": report.lost,
            "distance": report.consensus_distance,
            "updates": report.updates,
            "peers": [peer.name for peer in report.peers],
            "withdrawn": sum(member.figures.lanes.withdrawn for member in dd._session._registrar.members.values()),
            "missing": report.missing,
            "seconds": report.seconds,
            "failed": len(list(HERE.glob("failed-*"))),
            "attempts": attempts(context, dd._session._engine.current._group),
        }
    context.stop()
    write_results(results)


if __name__ == "__main__":
    sys.exit(main())
