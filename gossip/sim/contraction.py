"""How fast peers agree: the measured rate, and theory's prediction beside it.

The measure is the contraction of the distance |X - mean| per round, without training, by the same strategy that trains.

On a topology that repeats, the start is the slowest direction: the right singular vector of the largest singular value
of W_p ... W_1 - J over a period p. From there the bound SLEM is reached in the first period already, and in all later
ones where W is normal (every graph here with equal degrees, every symmetric W). So it neither needs a fit nor a tail to
fit in, and a start that happens to be fast cannot make a topology look good. Measured is the geometric mean over whole
periods, up to the last one that ends above `FLOOR` of the start: below, one measures rounding. A topology that is below
it after its first period has the rate 0: the mean is exact, and `exact_after` says from which round on.

On a topology that is drawn anew each round there are two rates. That of the expected square, the root of E[S'/S] with
S = |X - mean|^2, does not depend on X for the random topologies here and is known exactly; but it is the mean over all
draws, of which a few that contract late make up the most. A run falls faster: by the mean logarithm of the ratios,
which is what it is measured by, and for which there is no formula. `typical` takes it from draws of the same law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gossip.errors import UsageError
from gossip.mixing import DPsgd, Strategy
from gossip.sim.vectorized import simulate
from gossip.topology import Floats, Topology, slowest

FLOOR = 1e-12
"""Of the start's distance: rounding, about 1e-16 of it, is then less than 1e-4 of what is measured."""

PARAMETERS = 64
"""Of each peer where links are drawn: starts that one and the same draw is tried on."""

FRESH = 1 << 40
"""The first of the rounds whose draws `typical` takes: no run gets as far."""

BLOCKS = 20
"""Into so many parts a run is cut to see how far its rate varies: what one round gains the next may lose."""


@dataclass(frozen=True)
class Rate:
    """A contraction of the distance per round where links are drawn."""

    rate: float
    error: float
    """Standard error."""


def mean_rate(distances: Floats) -> Rate:
    """By which factor `distances` fell per round from the first to the last, on the average of logarithms."""
    return _mean_rate(np.diff(np.log(distances)))


def _mean_rate(logs: Floats) -> Rate:
    blocks = [part.mean() for part in np.array_split(logs, min(BLOCKS, len(logs)))]
    rate = math.exp(float(logs.mean()))
    return Rate(rate, rate * float(np.std(blocks, ddof=1)) / math.sqrt(len(blocks)) if len(blocks) > 1 else 0.0)


@lru_cache(maxsize=64)
def typical(topology: Topology) -> Rate | None:
    """The contraction of plain averaging on one of the random topologies as a run sees it, from draws of its own.

    From normal starts down to `FLOOR`, again and again. None where there is no slow way: all agree after few rounds.
    """
    chance = np.random.default_rng(0)
    logs: list[float] = []
    x, left = np.zeros((topology.peers, 1)), 0.0
    for round in range(FRESH, FRESH + max(200, min(2_000, 64_000 // topology.peers))):
        if left <= FLOOR:
            x, left = chance.standard_normal((topology.peers, 8)), 1.0
            x /= np.linalg.norm(x - x.mean(axis=0))
        x = topology.weights(round) @ x
        x -= x.mean(axis=0)
        ratio = float(np.linalg.norm(x)) / left
        left *= ratio
        if ratio > EXACT:
            logs.append(math.log(ratio))
    return _mean_rate(np.array(logs)) if len(logs) > BLOCKS else None


EXACT = 1e-8
"""A round that takes this much of the distance away has hit the mean exactly, as four peers in two rounds of pairs."""


@dataclass(frozen=True)
class Contraction:
    """Factors of the distance |X - mean| per round."""

    predicted: float
    measured: float
    rounds: int
    """Over how many it was measured."""
    error: float
    """Standard error of the difference of the two; 0 where nothing is drawn."""
    exact_after: int | None
    """After how many rounds the distance was below `FLOOR` of the start; None if it never was."""


def measure(topology: Topology, strategy: Strategy[Any] | None = None, rounds: int = 200, seed: int = 0) -> Contraction:
    """Contraction of `strategy` (D-PSGD if None) on `topology`, over `rounds` rounds or until the floor.

    The prediction is that of plain averaging, X <- W X; a strategy that does something else is seen to differ from it.

    Raises:
        UsageError: the topology does not fit the strategy, has fewer rounds than one period, or is drawn anew each
            round and has no known expectation.
    """
    strategy = DPsgd() if strategy is None else strategy
    if topology.period is None:
        return _measure_random(topology, strategy, rounds, seed)
    if rounds < topology.period:
        raise UsageError(f"{rounds} rounds of {topology.name}, expected at least one period of {topology.period}")
    slem, direction = slowest(topology)
    result = simulate(topology, strategy, rounds=rounds, seed=seed, start=direction[:, None])
    relative = np.sqrt(result.distances / result.distances[0])
    below = np.flatnonzero(relative < FLOOR)
    exact_after = int(below[0]) if len(below) else None
    last = rounds if exact_after is None else exact_after - 1
    last -= last % topology.period
    predicted = slem ** (1.0 / topology.period)
    if last == 0:
        return Contraction(predicted, 0.0, topology.period, 0.0, exact_after)
    return Contraction(predicted, float(relative[last]) ** (1.0 / last), last, 0.0, exact_after)


def _measure_random(topology: Topology, strategy: Strategy[Any], rounds: int, seed: int) -> Contraction:
    if topology.expected is None:
        raise UsageError(f"{topology.name} is drawn anew each round and its expected contraction is not known")
    predicted = typical(topology)
    if predicted is None:
        raise UsageError(f"{topology.name} of {topology.peers} peers agrees after few rounds, which is no rate")
    chance = np.random.default_rng(seed)
    result = simulate(
        topology, strategy, rounds=rounds, seed=seed, start=chance.standard_normal((topology.peers, PARAMETERS))
    )
    distances = result.distances
    above = distances > FLOOR**2 * distances[0]
    last = len(distances) - 1 if above.all() else int(np.argmin(above)) - 1
    if last < 2:
        raise UsageError(f"{rounds} rounds of {topology.name}, expected enough to take a mean of")
    measured = mean_rate(np.sqrt(distances[: last + 1]))
    exact = None if above.all() else last + 1
    error = math.hypot(measured.error, predicted.error)
    return Contraction(predicted.rate, measured.rate, last, error, exact)
