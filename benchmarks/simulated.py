"""Simulated clusters: how long a training of many peers takes on the clock, and where the time goes.

    python -m benchmarks.simulated [--quick] [--json FILE] [--check]

Every peer publishes 100 updates of a model of 10,000 float32, without losses. The named peer of the large cluster is
the small one: what an update costs at each peer that merges it should not grow with the number of peers. Adverts are
sparse, so that many updates travel as one sum; so it would be on a cluster of that size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from p2p import DeepDist, SimulatedCluster

NUMBERS = 10_000
UPDATES = 100
SECONDS_MAX = 10.0
"""Target: 64 peers with 100 updates each take less on the clock, everything included."""
SECONDS_PER_CHUNK = 0.02
ADVERT_GAP_S = 1.0
"""Some fifty updates travel as one."""
ONES = np.ones(NUMBERS, np.float32)


@dataclass(frozen=True)
class Round:
    """One training's figures."""

    peers: int
    seconds: float
    """On the clock, from the `DeepDist` to the end of the `with` block."""
    phases: dict[str, float]
    """Seconds of it: until the first gradient, until the last one, and until level, with the report."""
    virtual_s: float
    exact: bool


class Phases:
    """A gradient that looks at the clock."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.first_task = self.last_task = self.begun

    def gradient(self, model: Any, rows: Any) -> dict[str, Any]:
        """An update of ones; notes when it was called."""
        self.last_task = time.perf_counter()
        if self.first_task == self.begun:
            self.first_task = self.last_task
        return {"w": ONES}

    def figures(self, end: float) -> dict[str, float]:
        """Seconds by phase."""
        return {
            "start": self.first_task - self.begun,
            "tasks": self.last_task - self.first_task,
            "level": end - self.last_task,
        }


def train(peers: int) -> Round:
    """One training."""
    model = {"w": np.zeros(NUMBERS, np.float32)}
    cluster = SimulatedCluster(peers, seed=1, seconds_per_chunk=SECONDS_PER_CHUNK, advert_gap_s=ADVERT_GAP_S)
    phases = Phases()
    with DeepDist(model, engine=cluster) as dd:
        report = dd.train([range(UPDATES)] * peers, phases.gradient, chunk_rows=1)
    end = time.perf_counter()
    exact = bool(np.all(model["w"] == peers * UPDATES)) and report.consensus_distance == 0
    return Round(peers, end - phases.begun, phases.figures(end), report.seconds, exact)


def main() -> None:
    """Run the trainings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 and 16 peers instead of 16 and 64, once each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    small, large = (4, 16) if arguments.quick else (16, 64)
    repetitions = 1 if arguments.quick else 3
    rounds = [train(peers) for _ in range(repetitions) for peers in (small, large)]
    table = Table(
        title=f"{UPDATES} updates per peer of {NUMBERS} float32; seconds on the clock, median of {repetitions}"
    )
    for column in ("peers", "seconds", "start", "tasks", "level", "virtual s", "us per merged update", "exact"):
        table.add_column(column, justify="right")
    median: dict[int, float] = {}
    for peers in (small, large):
        mine = [r for r in rounds if r.peers == peers]
        median[peers] = statistics.median(r.seconds for r in mine)
        table.add_row(
            str(peers),
            f"{median[peers]:.2f}",
            *(f"{statistics.median(r.phases[name] for r in mine):.2f}" for name in ("start", "tasks", "level")),
            f"{mine[0].virtual_s:.1f}",
            f"{1e6 * median[peers] / (peers * peers * UPDATES):.1f}",
            str(all(r.exact for r in mine)),
        )
    Console().print(table)
    ratio = median[large] / median[small] * (small / large) ** 2
    print(f"an update at one peer that merges it, {large} peers / {small} peers: {ratio:.2f}")
    if arguments.json:
        figures = {"seconds": median, "ratio": ratio, "rounds": [asdict(r) for r in rounds]}
        arguments.json.write_text(json.dumps(figures, indent=1))
    missed = [
        text
        for text, met in (
            (f"{large} peers took {median[large]:.1f} s, target {SECONDS_MAX:g} s", median[large] < SECONDS_MAX),
            ("replicas are not equal to the exact sum", all(r.exact for r in rounds)),
        )
        if not met
    ]
    if arguments.check and missed:
        print("\n".join(f"missed: {text}" for text in missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
