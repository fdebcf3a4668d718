"""How fast the distance to the mean shrinks: as measured, and as theory says.

Measured is the contraction of |X - mean| per round, over the later half of the rounds in which the distance is above
rounding: from a random start, the slowest part has outlived the others there, which is what theory is about; from the
slowest direction (`gossip.sim.contraction`) all rounds are alike. The steps are whole periods of the topology. Where
already the first period ends within rounding, the mean is reached exactly in finite time, no rate can be read off the
distances, and 0 is reported with the round in which it was reached; a method that is only fast, not exact, is still
above rounding then and gets its rate.

Where the links are drawn anew in each round, measured is the mean logarithm over all rounds above rounding: the rate at
which this run fell. The ratio of one round is no measure: under loss a distance may be nearly nothing for a round and
come back. Predicted beside it is the rate of a typical run of plain averaging (`gossip.sim.contraction.typical`); the
root of the expected ratio of squares, which has a formula, is the mean over all runs, and most lie far below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip import topology as topologies
from gossip.errors import UsageError
from gossip.mixing import CombineThenAdapt, DPsgd, PairwiseExchange, PushSum, Strategy
from gossip.sim.contraction import FLOOR, mean_rate, typical
from gossip.topology import Floats, Needs, Topology

ROUNDING = FLOOR
"""Distances below this share of the first one are rounding."""


@dataclass(frozen=True)
class Measured:
    """What the distances of one run say."""

    rate: float | None
    """Contraction of the distance per round; None where too few rounds were run to tell."""
    exact_after: int | None
    """Rounds after which the distance was within rounding; None if it never was."""
    first: int = 0
    """The rounds it was read from: after `first` ..."""
    last: int = 0
    """... to after `last`."""
    is_settled: bool = True
    """The first and the second half of these rounds agree on the rate's logarithm to SETTLED. If not, slower parts of
    the start are still coming out, and the rate would rise with more rounds."""
    error: float = 0.0
    """Standard error of the rate, where links are drawn; else 0."""


SETTLED = 0.05
"""A share, of the logarithm: a rate of 0.99 is told from 0.9905."""


def measured(squares: Floats, period: int | None) -> Measured:
    """The contraction per round from S at the start and after each round, (rounds + 1,).

    `period` is the topology's; None for one that is drawn anew each round.
    """
    distances = np.sqrt(squares)
    if not distances[0] > 0.0 or not np.all(np.isfinite(distances)):
        return Measured(None, None)
    within = np.flatnonzero(distances <= ROUNDING * distances[0])
    exact_after = int(within[0]) if len(within) else None
    above = len(distances) if exact_after is None else exact_after
    if period is None:
        last = above - 1
        if last < 2:
            return Measured(None, exact_after, 0, last)
        found = mean_rate(distances[: last + 1])
        return Measured(found.rate, exact_after, 0, last, error=found.error)
    periods = (above - 1) // period
    if periods == 0:
        exact = exact_after is not None and exact_after <= period
        return Measured(0.0 if exact else None, exact_after, 0, exact_after or 0)
    first, last = periods // 2 * period, periods * period
    if first == last:
        first = 0
    rounds = np.arange(first, last + 1, period)
    logs = np.log(distances[rounds])
    slope = float(np.polyfit(rounds, logs, 1)[0])
    middle = len(rounds) // 2
    settled = True
    if 0 < middle < len(rounds) - 1:
        early = (logs[middle] - logs[0]) / (rounds[middle] - rounds[0])
        late = (logs[-1] - logs[middle]) / (rounds[-1] - rounds[middle])
        settled = bool(abs(early - late) <= SETTLED * abs(late))
    return Measured(math.exp(slope), exact_after, first, last, settled)


COVERED = (DPsgd, CombineThenAdapt, PushSum, PairwiseExchange)
"""Strategies without compression and local rounds of which `predicted` speaks; not what is derived from them."""


def predicted(strategy: Strategy[Any], topology: Topology) -> float | None:
    """Theory's contraction per round without loss, delay, churn, compression or training; None where it has none.

    Plain averaging and pairwise exchange are covered, and push-sum where its weights stay at one. Where links are drawn
    it is the rate of a typical run.
    """
    if type(strategy) not in COVERED:
        return None
    if isinstance(strategy, PairwiseExchange):
        try:
            topologies.check_topology(topology, Needs.MATCHING)
        except UsageError:
            return None
    if topology.expected is not None:
        found = typical(topology)
        return None if found is None else found.rate
    try:
        return topologies.rate(topology)
    except UsageError:
        return None
