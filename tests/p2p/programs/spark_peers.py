"""Two executors of one core, no master: what every replica holds, an error of the user's, and a training after it."""

import os
import secrets
import sys
from pathlib import Path

import numpy as np
import zmq
from spark_context import spark_context, write_results

from gossip.zmq.fetch import fetch_state
from p2p import DeepDist

HERE = os.environ["TMPDIR"]


class UnreadableError(ValueError):
    """An exception of the user's own, with an `__init__` that pickle by itself would not do right."""

    def __init__(self, row):
        super().__init__("row", row)


class Unopened:
    """Cannot be unpickled."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise ZeroDivisionError("cannot be opened")


def gradient(model, rows):
    """What is learned depends on the rows alone, so the end can be foretold."""
    update = {"w": np.zeros((50, 8), np.float32), "count": np.zeros(1, np.int64)}
    for row in rows:
        update["w"][row % 50] += np.float32(row) / np.float32(7)
        update["count"] += 1
    return update


def descent(model, update):
    model["w"] -= update["w"]
    model["count"] += update["count"]


def expected(rows, times):
    """The model that has learned all rows so many times, computed here at double precision."""
    w = initial()["w"].astype(np.float64)
    for row in rows:
        w[row % 50] -= times * row / 7
    return {"w": w, "count": initial()["count"] + times * len(rows)}


def initial():
    return {"w": np.linspace(-1, 1, 400).reshape(50, 8).astype(np.float32), "count": np.array([1000])}


def replicas(dd):
    """The arrays of every agent, by role and name: asked of the agents themselves."""
    found = {}
    context = zmq.Context()
    for member in dd._session._registrar.members.values():
        buffer = None

        def begin(state):
            nonlocal buffer
            buffer = bytearray(state.layout.nbytes)

            def take(start, block):
                buffer[start : start + len(block)] = block

            return take

        state = fetch_state(context, member.pulls, begin, timeout_s=20.0, key=member.key)
        found[f"{member.role} {member.name}"] = state.layout.views(buffer)
    context.term()
    return found


def distance(arrays, wanted):
    """The largest difference, relative to the largest number of its array."""
    return max(float(np.max(np.abs(arrays[name] - wanted[name])) / np.max(np.abs(wanted[name]))) for name in wanted)


def described(report):
    return {
        "peers": [[peer.role, peer.published, peer.applied] for peer in report.peers],
        "rows": report.rows,
        "updates": report.updates,
        "updates_lost": report.updates_lost,
        "consensus_distance": report.consensus_distance,
        "missing": report.missing,
    }


results = {}
sc = spark_context("local-cluster[2,1,1024]")
rows = list(range(400))
data = sc.parallelize(rows, 8)
model = initial()
with DeepDist(model) as dd:
    report = dd.train(data, gradient, descent, epochs=2, chunk_rows=25)
    results["first"] = described(report)
    results["replicas"] = {name: distance(arrays, expected(rows, 2)) for name, arrays in replicas(dd).items()}

    def wrong(model, rows):
        """Fails in one partition, on whichever executor it is tried; the others learn nothing."""
        if 123 in rows:
            (Path(HERE) / f"tried-{os.getpid()}-{secrets.token_hex(4)}").touch()
            raise UnreadableError(123)

    try:
        dd.train(data, wrong, descent)
    except UnreadableError as error:
        results["error"] = {
            "same type": type(error) is UnreadableError,
            "args": error.args,
            "notes": error.__notes__,
            "tried": len(list(Path(HERE).glob("tried-*"))),
        }

    def leave(model, rows):
        sys.exit("out of here")

    def hold(model, rows, what=Unopened()):  # noqa: B008
        raise AssertionError("never called")

    for name, function in (("exit", leave), ("unreadable", hold)):
        try:
            dd.train(data.coalesce(1), function)
        except Exception as error:  # noqa: BLE001 - whatever it is
            results[name] = [type(error).__name__, str(error), error.__notes__[-1]]

    report = dd.train(data, gradient, descent)
    results["second"] = described(report)
    results["replicas after the error"] = {
        name: distance(arrays, expected(rows, 3)) for name, arrays in replicas(dd).items()
    }
results["model"] = distance(model, expected(rows, 3))
results["folders"] = [str(path) for path in Path(HERE).glob("deepdist-*/*")]
sc.stop()
write_results(results)
