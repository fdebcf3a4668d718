"""One executor, which is the driver program's own JVM: data of all kinds, and several trainings in one session."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from pyspark.sql import SparkSession
from spark_context import agents, spark_context, write_results

from p2p import DeepDist, UsageError
from p2p.engines.spark import _kept
from p2p.worker.task import current


def gradient(model, rows):
    return {"sum": np.array([float(sum(rows))])}


def gradient_of_frame(model, rows):
    return {"sum": np.array([float(sum(row.value for row in rows))])}


def gradient_of_epoch(model, rows):
    return {"epochs": np.eye(2)[current().epoch] * len(list(rows))}


def endless(model, rows):
    """Goes on for a while, unless its task is ended."""
    begun = Path(os.environ["TMPDIR"]) / f"begun-{next(rows)}"
    begun.touch()
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        time.sleep(0.05)
    return {"sum": np.array([1000.0])}


def press_ctrl_c():
    """When both cores are busy. As in a notebook, only the driver program gets it."""
    give_up = time.monotonic() + 30
    while len(list(Path(os.environ["TMPDIR"]).glob("begun-*"))) < 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)


def active_jobs():
    """How many jobs run, once there are none or ten seconds have passed."""
    give_up = time.monotonic() + 10
    while sc.statusTracker().getActiveJobsIds() and time.monotonic() < give_up:
        time.sleep(0.05)
    return len(sc.statusTracker().getActiveJobsIds())


results = {}
sc = spark_context("local[2]")
session = SparkSession(sc)
frame = session.createDataFrame([(i, float(i)) for i in range(10)], "id int, value double").repartition(3)
model = {"sum": np.zeros(1)}
with DeepDist(model) as dd:
    report = dd.train(sc.parallelize(range(20), 5), gradient, epochs=3)
    results["roles"] = [peer.role for peer in report.peers]
    results["agents"] = len(agents())
    results["epochs"] = [dd.model["sum"][0], report.rows, report.updates]
    report = dd.train(frame, gradient_of_frame)
    results["frame"] = [dd.model["sum"][0], report.rows]
    report = dd.train(sc.emptyRDD(), gradient)
    results["nothing"] = [dd.model["sum"][0], report.rows, report.updates]
    report = dd.train(sc.parallelize([7], 4), gradient)
    results["empty partitions"] = [dd.model["sum"][0], report.rows, report.updates]
    sc.setJobGroup("mine", "my own jobs")
    report = dd.train(sc.parallelize([1], 1), gradient)
    results["job group"] = sc.getLocalProperty("spark.jobGroup.id")
    try:
        dd.train([[1]], gradient)
    except UsageError as error:
        results["list"] = str(error)
model = {"epochs": np.zeros(2)}
with DeepDist(model) as dd:
    pairs = sc.parallelize([(key, 1) for key in range(3) for _ in range(5)], 2)
    report = dd.train(pairs.partitionBy(3), gradient_of_epoch, epochs=2)
    results["partitioned"] = [dd.model["epochs"].tolist(), report.updates, report.rows]
model = {"sum": np.zeros(1)}
with DeepDist(model) as dd:
    dd.train(sc.parallelize([1, 2], 2), gradient)
    pressing = threading.Thread(target=press_ctrl_c)
    try:
        pressing.start()
        dd.train(sc.parallelize(range(4), 4), endless)
        results["interrupted"] = False
    except KeyboardInterrupt:
        results["interrupted"] = True
    pressing.join()
    results["jobs after"] = active_jobs()
    report = dd.train(sc.parallelize([3, 4], 2), gradient)
    results["training after"] = [dd.model["sum"][0], report.updates, report.updates_lost]
try:
    with DeepDist({"sum": np.zeros(1)}, peers=2) as dd:
        dd.train(sc.parallelize([1]), gradient)
except UsageError as error:
    results["peers"] = str(error)
cached = sc.parallelize(range(3), 2).cache()
frame.cache()
kept = {"plain": sc.parallelize([1]), "cached": cached, "from cached": cached.map(str), "frame": frame.select("id").rdd}
results["kept"] = {name: _kept(rdd) for name, rdd in kept.items()}
session.stop()
write_results(results)
