"""Many bad days for a simulated swarm: run seeds over all cores, and say what they came to."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from rich.table import Table

from gossip import identity, marks, membership
from gossip.lanes import adopt, origin, peer, reader, roster, units
from gossip.sim.branches import Branches
from gossip.sim.oracles.published import LOST
from gossip.sim.proving_ground import Outcome, run
from gossip.sim.states import STATES

CORE = (peer, roster, units, origin, reader, adopt, identity, membership, marks)
"""Whose branches are counted."""

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
    "epochs closed",
    "epochs dropped",
)
"""Counts that are summed over all seeds."""
MOST = (
    "adoptions of one peer",
    "peak segments",
    "peak pins",
    "peak pinned boundaries",
    "peak retained updates",
    "peak units watched",
    "seconds until level",
)
"""Counts of which the most in any seed is told."""
CHUNK_SEEDS = 4
"""What a process takes at a time: some seconds, which is also how long it goes on after Ctrl-C."""


def soak(seeds: Iterable[int], progress: Callable[[Outcome], None], coverage: bool = False) -> list[Outcome]:
    """Run every seed, on as many processes as there are cores; `progress` hears of each when it is done.

    With `coverage` the branches of the core are counted, which takes half as long again. Ctrl-C ends it early: then
    those are returned that were done.
    """
    outcomes = []
    with ProcessPoolExecutor(os.cpu_count(), initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            for outcome in pool.map(run_counted if coverage else run, seeds, chunksize=CHUNK_SEEDS):
                progress(outcome)
                outcomes.append(outcome)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
    return outcomes


def run_counted(seed: int) -> Outcome:
    """A day, and which branches of the core it took."""
    branches = _branches()
    branches.clear()
    with branches:
        outcome = run(seed)
    outcome.branches = list(branches.taken)
    return outcome


@cache
def _branches() -> Branches:
    return Branches(CORE)


def reached(outcomes: list[Outcome]) -> Table:
    """How often each event found a peer in each state."""
    total = sum((outcome.reached for outcome in outcomes), start=Counter[tuple[str, str]]())
    result = Table(title="events, by the states in which they found a peer", title_justify="left")
    result.add_column("event", no_wrap=True)
    for state in STATES:
        result.add_column(state, justify="right", no_wrap=True)
    for event in sorted({event for event, _ in total}):
        result.add_row(event, *(str(total[event, state] or "-") for state in STATES))
    return result


def branches(outcomes: list[Outcome]) -> list[str]:
    """How often each branch of the core was taken, a line each, and at the end a line for each module."""
    places = _branches().places
    counts = [sum(each) for each in zip(*(outcome.branches for outcome in outcomes), strict=True)]
    lines = [
        f"{count:>9}  {place.module}.py:{place.line} {place.function}: {place.text} [{place.way}]"
        for place, count in zip(places, counts, strict=True)
    ]
    for module in CORE:
        name = module.__name__.rpartition(".")[2]
        of_module = [count for place, count in zip(places, counts, strict=True) if place.module == name]
        lines.append(f"{name}.py: {sum(map(bool, of_module))} of {len(of_module)} branches were taken")
    return lines


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
