"""Two executors of two cores, without a master and with one: who runs where, and what is there after each session."""

import os
import time
from pathlib import Path

import numpy as np
from spark_context import agents, agents_go, spark_context, write_results

from p2p import DeepDist

HERE = Path(os.environ["TMPDIR"])


def meet(name):
    """Leave a file and wait until all four workers have done so, so that each trains."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getppid()}-{os.getpid()}").touch()
    give_up = time.monotonic() + 60
    while len(list(folder.iterdir())) < 4:
        if time.monotonic() > give_up:
            raise TimeoutError(f"four workers were to meet in {folder}, there are {os.listdir(folder)}")
        time.sleep(0.05)


def trained(mode):
    def gradient(model, rows):
        meet(mode)
        return float(sum(rows)), os.getpid()

    def descent(model, update):
        model["sum"] += update[0]
        model["descents"] += np.array([1, os.getpid() == driver])
        model["gradients here"] += update[1] == os.getpid()

    driver = os.getpid()
    model = {"sum": np.full(3, 0.5), "descents": np.zeros(2, np.int64), "gradients here": np.zeros(1, np.int64)}
    with DeepDist(model, mode) as dd:
        report = dd.train(sc.parallelize(range(100), 12), gradient, descent, epochs=2)
        during = len(agents())
    return {
        "model": {name: array.tolist() for name, array in model.items()},
        "roles": [peer.role for peer in report.peers],
        "published": [peer.published for peer in report.peers],
        "applied": [peer.applied for peer in report.peers],
        "rows": report.rows,
        "updates": report.updates,
        "updates_lost": report.updates_lost,
        "consensus_distance": report.consensus_distance,
        "workers": [name.name.split("-") for name in (HERE / mode).iterdir()],
        "agents during": during,
        "agents after": agents_go(0),
        "folders after": [str(path) for path in HERE.glob("deepdist-*/*")],
    }


def changed():
    """A session of peers that trains with a master in between: (mode, model, updates, updates lost, agents)."""

    def gradient(model, rows):
        return {"sum": np.array([float(sum(rows))])}

    def descent(model, update):
        model["sum"] += update["sum"]

    model, seen = {"sum": np.zeros(1)}, []
    with DeepDist(model) as dd:
        for mode in (None, "master", None):
            report = dd.train(sc.parallelize(range(100), 12), gradient, descent, epochs=2, mode=mode)
            left = agents_go(0) if mode == "master" else len(agents())
            seen.append([report.mode, model["sum"][0], report.updates, report.updates_lost, left])
    return seen


sc = spark_context("local-cluster[2,2,1024]")
results = {mode: trained(mode) for mode in ("p2p", "master")}
results["changed"] = changed()
sc.stop()
write_results(results)
