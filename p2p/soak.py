"""Many bad days for a simulated swarm: run seeds over all cores, and say what they came to."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

from rich.table import Table

from gossip.proving_ground import LOST, Outcome, run

SUMS = (
    "published",
    "merged",
    *LOST,
    "withdrawn",
    "gated",
    "units",
    "doubled",
    "absent",
    "replicas sought",
    "replicas asked for",
    "replicas adopted",
    "replicas given up",
    "unknown",
    "observers crashed",
    "observers started anew",
    "replicas adopted by observers",
)
"""Counts that are summed over all seeds."""
MOST = (
    "adoptions of one peer",
    "peak segments",
    "peak pins",
    "peak pinned boundaries",
    "peak retained updates",
    "seconds until level",
)
"""Counts of which the most in any seed is told."""
CHUNK_SEEDS = 4
"""What a process takes at a time: some seconds, which is also how long it goes on after Ctrl-C."""


def soak(seeds: Iterable[int], progress: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every seed, on as many processes as there are cores; `progress` hears of each when it is done.

    Ctrl-C ends it early: then those are returned that were done.
    """
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count(), initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            for outcome in pool.map(run, seeds, chunksize=CHUNK_SEEDS):
                progress(outcome)
                outcomes.append(outcome)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    """What all seeds came to."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        for name in SUMS:
            totals[name] += outcome.counts[name]
        for name in MOST:
            totals[name] = max(totals[name], outcome.counts[name])
    result = Table(title=f"{len(outcomes)} seeds", title_justify="left")
    result.add_column("count")
    result.add_column("", justify="right")
    result.add_row("violations", str(sum(outcome.violation is not None for outcome in outcomes)))
    for name in SUMS:
        result.add_row(name, str(totals[name]))
    wrong = (totals["doubled"] + totals["absent"]) / max(totals["units"], 1)
    result.add_row("doubled or absent, of the units", f"{wrong:.3%}")
    for name in MOST:
        result.add_row(f"{name} (most)", str(totals[name]))
    return result


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
