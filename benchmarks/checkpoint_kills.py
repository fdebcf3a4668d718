"""Whole runs are killed at random moments and go on from their checkpoints: every row counts once.

    python -m benchmarks.checkpoint_kills [--times 20] [--mode p2p|master] [--spark] [--seed N] [--json FILE] [--check]

Each line of the table is one training. Its driver program is started, killed with all its processes (SIGKILL, agents
and workers too) at a moment that is drawn, and started again, a few times; the last one is left alone. The model shows
what became of each row: the gradient adds 1 to the row's element of `seen`, one for each epoch, and the row's number to
all elements of `total`. All sums are of whole numbers, so they are exact in any order.

A line is right if at the end each row counts once in each epoch, and `total` is the sum of their numbers. The process
that starts the driver program finds those of a run by a mark in their environment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

MARK = "DEEPDIST_KILLS_MARK"
PEERS, PARTITIONS, EPOCHS, CHUNKS, CHUNK_ROWS = 2, 4, 2, 12, 2
ROWS, UNITS = PARTITIONS * CHUNKS * CHUNK_ROWS, EPOCHS * PARTITIONS * CHUNKS
CALL_S = 0.02
EVERY_S = 0.1
KILLS_MAX = 3
RUN_TIMEOUT_S = 240.0
LATEST, LATER_S = 0.9, 0.3
"""A run is killed when a checkpoint has at most so large a part of all units, or so many seconds later."""
POLL_S = 0.01


@dataclass(frozen=True)
class Outcome:
    """What one training came to."""

    seed: int
    kills: int
    units: tuple[int, ...]
    """That counted in the checkpoint which each run began with."""
    twice: int
    lost: int
    exact: bool
    seconds: float
    output: str = ""

    @property
    def wrong(self) -> list[str]:
        """What must not be."""
        found = [] if self.exact else ["total is not exact"]
        found += [f"{self.twice} rows count twice"] if self.twice else []
        found += [f"{self.lost} rows are lost"] if self.lost else []
        return found + ([self.output] if self.output else [])


# ---------------------------------------------------------------------------------------------- the program that trains


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    from p2p import current

    seen, total = np.zeros(EPOCHS * ROWS), np.zeros(8)
    for row in rows:
        seen[current().epoch * ROWS + row] += 1
        total += row
    time.sleep(CALL_S)
    return {"seen": seen, "total": total}


def descent(model: Any, update: dict[str, Any]) -> None:
    model["seen"] += update["seen"]
    model["total"] += update["total"]


def train(folder: str, results: str, mode: str, spark: bool) -> None:
    """The driver program: begin, or go on with what is there."""
    from p2p import DeepDist

    parts = [list(range(part * CHUNKS * CHUNK_ROWS, (part + 1) * CHUNKS * CHUNK_ROWS)) for part in range(PARTITIONS)]
    data: Any = parts
    if spark:
        from pyspark import SparkConf, SparkContext

        conf = SparkConf().setMaster(f"local-cluster[{PEERS},1,1024]").set("spark.ui.enabled", "false")
        data = SparkContext(conf=conf).parallelize([row for part in parts for row in part], PARTITIONS)
    found = list(Path(folder).glob("checkpoint-*.json")) if os.path.isdir(folder) else []
    where: dict[str, Any] = {"progress": False} if spark else {"peers": PEERS, "progress": False}
    if found:
        session = DeepDist.resume(folder, **where)
    else:
        session = DeepDist({"seen": np.zeros(EPOCHS * ROWS), "total": np.zeros(8)}, mode, **where)
    with session as dd:
        report = dd.train(
            data, gradient, descent, EPOCHS, chunk_rows=CHUNK_ROWS, checkpoint=folder, every_s=EVERY_S, keep=2
        )
        seen, total = dd.model["seen"].tolist(), dd.model["total"].tolist()
    figures = {"seen": seen, "total": total, "updates": report.updates, "lost": report.updates_lost}
    Path(results).write_text(json.dumps(figures))


# ------------------------------------------------------------------------------------------------------- who kills it


def processes(mark: str) -> list[int]:
    """Of a run."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdecimal() and wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(int(entry))
        except OSError:
            pass  # it ended meanwhile, or is another user's
    return found


def kill_all(mark: str) -> None:
    """Until none is left: those that are killed may have started others meanwhile."""
    give_up = time.monotonic() + RUN_TIMEOUT_S
    while (left := processes(mark)) and time.monotonic() < give_up:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(POLL_S)


def units_in(folder: Path) -> int:
    """In the newest checkpoint; -1 if there is none."""
    for manifest in sorted(folder.glob("checkpoint-*.json"), reverse=True):
        try:
            return int(json.loads(manifest.read_bytes())["checkpoint"]["units"]["count"])
        except FileNotFoundError:
            pass  # there is a newer one now
    return -1


def killed_and_resumed(
    seed: int, place: Path, mode: str = "p2p", spark: bool = False, kills_max: int = KILLS_MAX
) -> Outcome:
    """One training below `place`, in several runs of which all but the last are killed."""
    chance, began = random.Random(seed), time.monotonic()
    kills, units = chance.randint(1, kills_max), []
    folder, results, log = place / "checkpoints", place / "results.json", place / "output.txt"
    temporary = place / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    for run in range(kills + 1):
        mark = secrets.token_hex(16)
        options = [*(["--spark"] if spark else []), "--mode", mode, "--train", str(folder), str(results)]
        units.append(units_in(folder))
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.checkpoint_kills", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=Path(__file__).resolve().parent.parent,
                env={**os.environ, MARK: mark, "TMPDIR": str(temporary), "PYSPARK_PYTHON": sys.executable},
                start_new_session=True,
            )
        try:
            if run < kills:
                _wait(process, folder, chance.uniform(units[-1], LATEST * UNITS), chance.uniform(0.0, LATER_S))
            else:
                process.wait(RUN_TIMEOUT_S)
        finally:
            kill_all(mark)
            process.wait()
        if results.exists():
            break  # it was done before it was killed
    return _outcome(seed, run, tuple(units), results, time.monotonic() - began, log)


def _wait(process: subprocess.Popen[bytes], folder: Path, units: float, then_s: float) -> None:
    """Until so many units are in a checkpoint, and a while longer; or until the run has ended."""
    give_up = time.monotonic() + RUN_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up and units_in(folder) < units:
        time.sleep(POLL_S)
    try:
        process.wait(then_s)
    except subprocess.TimeoutExpired:
        pass


def _outcome(seed: int, kills: int, units: tuple[int, ...], results: Path, seconds: float, log: Path) -> Outcome:
    if not results.exists():
        return Outcome(seed, kills, units, 0, 0, False, seconds, log.read_text(errors="replace")[-2000:])
    found = json.loads(results.read_text())
    seen = np.array(found["seen"])
    return Outcome(
        seed,
        kills,
        units,
        twice=int((seen > 1).sum()),
        lost=int((seen < 1).sum()),
        exact=found["total"] == [float(EPOCHS * sum(range(ROWS)))] * 8,
        seconds=seconds,
    )


def table(outcomes: list[Outcome]) -> Table:
    """A line for each training."""
    found = Table("seed", "kills", "units at the begin of each run", "twice", "lost", "exact", "s", "wrong")
    for each in outcomes:
        runs = " ".join("-" if count < 0 else str(count) for count in each.units)
        wrong = "; ".join(each.wrong)[-300:]
        found.add_row(
            str(each.seed), str(each.kills), runs, str(each.twice), str(each.lost), str(each.exact),
            f"{each.seconds:.1f}", wrong,
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--mode", choices=["p2p", "master"], default="p2p")
    parser.add_argument("--spark", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit 1 if a line is wrong")
    parser.add_argument("--train", nargs=2, metavar=("FOLDER", "RESULTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(*arguments.train, arguments.mode, arguments.spark)
        return
    outcomes = []
    for seed in range(arguments.seed, arguments.seed + arguments.times):
        with tempfile.TemporaryDirectory(prefix="dd-", dir="/tmp", ignore_cleanup_errors=True) as place:
            outcomes.append(killed_and_resumed(seed, Path(place), arguments.mode, arguments.spark))
    Console(width=160).print(table(outcomes))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    if arguments.check and any(each.wrong for each in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
