"""Many bad days for a simulated swarm: run seeds over all cores, and say what they came to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

from rich.table import Table

from gossip.proving_ground import Outcome, run

MOST = ("peak segments", "seconds until level")
"""Counts of which the most is told; of the others, the sum."""
CHUNK_SEEDS = 10
"""What a process takes at a time: some seconds."""


def soak(seeds: Iterable[int], progress: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every seed, on as many processes as there are cores; `progress` hears of each when it is done."""
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for outcome in pool.map(run, seeds, chunksize=CHUNK_SEEDS):
            progress(outcome)
            outcomes.append(outcome)
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    """What all seeds came to."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        for name, count in outcome.counts.items():
            totals[name] = max(totals[name], count) if name in MOST else totals[name] + count
    result = Table(title=f"{len(outcomes)} seeds", title_justify="left")
    result.add_column("count")
    result.add_column("", justify="right")
    result.add_row("violations", str(sum(outcome.violation is not None for outcome in outcomes)))
    for name in sorted(totals):
        result.add_row(f"{name} (most)" if name in MOST else name, str(totals[name]))
    return result
