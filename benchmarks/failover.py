"""The master that leads is killed, stopped or stuck in the middle of a training: what it costs, and that none is lost.

    python -m benchmarks.failover [--times 5] [--seconds 30] [--kinds kill,freeze,stick] [--check] [--json FILE]

Each line of the table is one training with two standbys. When a third of its updates are applied, the process that
leads is struck: killed (SIGKILL), stopped (SIGSTOP) for so many seconds, or its `descent` holds the interpreter's lock
for as long. Of the last two it is there again before the training ends. Each chunk of rows is one update, which adds
the sum of its rows: whole numbers, so sums are exact in any order. "pause" is the longest time in which the driver
program's master applied nothing.

A line is right if each update counts once and another master led. The target is a pause of at most 5 s.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from p2p import DeepDist
from p2p.sessions.master import MasterSession

PARTITIONS, PEERS = 4, 2
CALL_S = 0.01
PAUSE_MAX_S = 5.0
AFTER_S = 12.0
"""A training goes on so long after the struck one is back, at least."""


@dataclass(frozen=True)
class Outcome:
    """What one training came to."""

    kind: str
    updates: int
    failovers: int
    pause_s: float
    exact: bool
    seconds: float

    @property
    def right(self) -> bool:
        """As it should be, but for the time that it took."""
        return self.exact and self.failovers >= 1


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    """The sum of the rows."""
    time.sleep(CALL_S)
    return {"w": np.full(8, float(sum(rows)))}


class Descent:
    """Adds, and holds the interpreter's lock of one process where a file says so."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.applied: list[float] = []
        """When; only this process's are looked at."""

    def __call__(self, model: Any, update: Any) -> None:
        model["w"] += update["w"]
        model["count"] = model.get("count", 0) + 1
        self.applied.append(time.monotonic())
        wish = os.path.join(self.folder, str(os.getpid()))
        if os.path.exists(wish):
            seconds = int(Path(wish).read_text())
            os.unlink(wish)
            ctypes.PyDLL(None).sleep(seconds)


def leader(dd: DeepDist[Any]) -> int:
    """The process of the standby that leads at first."""
    session = dd._session
    assert isinstance(session, MasterSession)
    assert session._standbys is not None
    return session._standbys.there[0].pid


def strike(kind: str, dd: DeepDist[Any], folder: str, after: int, seconds: int) -> None:
    """When so many updates are applied."""
    while dd._session.snapshot().updates < after:
        time.sleep(0.01)
    pid = leader(dd)
    if kind == "kill":
        os.kill(pid, signal.SIGKILL)
    elif kind == "freeze":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)
    else:
        wish = Path(folder, "wish")
        wish.write_text(str(seconds))
        wish.rename(Path(folder, str(pid)))  # nobody reads half of it


def struck(kind: str, seconds: int) -> Outcome:
    """One training."""
    lasts_s = AFTER_S + (0 if kind == "kill" else 1.5 * seconds)
    chunks = int(lasts_s / CALL_S / PARTITIONS * PEERS)
    data = [[1000 * partition + row for row in range(chunks)] for partition in range(PARTITIONS)]
    model: dict[str, Any] = {"w": np.zeros(8)}
    with (
        tempfile.TemporaryDirectory() as folder,
        DeepDist(model, mode="master", peers=PEERS, standbys=2, progress=False) as dd,
    ):
        descent = Descent(folder)
        total = PARTITIONS * chunks
        where = folder, total // 3 if kind == "kill" else total // 8, seconds
        thread = threading.Thread(target=strike, args=(kind, dd, *where), daemon=True)
        thread.start()
        report = dd.train(data, gradient, descent, chunk_rows=1)
        thread.join()
    exact = model["count"] == total == report.updates and model["w"].tolist() == [float(sum(map(sum, data)))] * 8
    pause = max(after - before for before, after in pairwise(descent.applied))
    return Outcome(kind, report.updates, report.failovers, pause, exact, report.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--kinds", default="kill,freeze,stick")
    parser.add_argument("--check", action="store_true", help="exit 1 if a line is wrong, or a pause above the target")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    outcomes = []
    for _ in range(arguments.times):
        for kind in arguments.kinds.split(","):
            outcomes.append(struck(kind, arguments.seconds))
            print(outcomes[-1], flush=True)
    table = Table("struck", "times", "exact", "longest pause s", "failovers")
    for kind in arguments.kinds.split(","):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        table.add_row(
            kind,
            str(len(of_kind)),
            str(sum(outcome.right for outcome in of_kind)),
            f"{max(outcome.pause_s for outcome in of_kind):.2f}",
            str(sum(outcome.failovers for outcome in of_kind)),
        )
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    if arguments.check and not all(outcome.right and outcome.pause_s <= PAUSE_MAX_S for outcome in outcomes):
        print(f"expected exact sums, another master, and pauses of at most {PAUSE_MAX_S:g} s")
        sys.exit(1)


if __name__ == "__main__":
    main()
