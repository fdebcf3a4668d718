"""What happens to consensus if ...: algorithm x topology x peers x loss x delay x staleness x compression x churn.

Peers start apart and mix; nothing is trained unless `step` is above 0. Then peer i descends h/2 |x - b_i|^2 by steps of
`step` along a gradient with noise, its b_i standard normal: a training whose optimum is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from gossip import topology as topologies
from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing import CombineThenAdapt, DPsgd
from gossip.sim.vectorized import Gradient
from gossip.topology import DENSE_PEERS_MAX, Floats, Needs, Topology
from p2p.lab import rates
from p2p.lab.grid import Case, Grid, canonical
from p2p.lab.results import Row, Step
from p2p.lab.run import run
from p2p.lab.seeds import over_seeds
from p2p.lab.sweep import Tick

STARTS = ("slowest", "normal")


@dataclass(frozen=True)
class Consensus:
    """The settings of a sweep."""

    grid: Grid
    rounds: int = 200
    seed: int = 0
    parameters: int = 10
    start: str = "slowest"
    """"slowest": around a drawn mean, the direction that contracts as slowly as theory says from the first round on,
    where the topology repeats; "normal": all drawn, of which the slowest part may need more rounds to come out."""
    step: float = 0.0
    """eta, of the training; 0 for none."""
    curvature: float = 1.0
    """h, of what is trained."""
    noise: float = 0.0
    """sigma, of each coordinate of a gradient."""
    crash_after: int = 2
    """Rounds after which peers crash, if any do."""
    skip: bool = False
    """Leave out what cannot be, instead of refusing the whole sweep."""
    seeds: int = 1
    """A row is the mean over so many seeds, from `seed` on."""

    experiment = "consensus"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical(self.grid))
        if self.start not in STARTS:
            raise UsageError(f"start {self.start!r}, expected one of {', '.join(STARTS)}")
        check_counts(rounds=self.rounds, parameters=self.parameters, seeds=self.seeds)
        for name, value in (("step", self.step), ("noise", self.noise)):
            if not 0.0 <= value < math.inf:
                raise UsageError(f"{name} {value:g}, expected 0 or more")
        if not 0.0 < self.curvature < math.inf:
            raise UsageError(f"curvature {self.curvature:g}, expected more than 0")
        if self.step == 0.0 and (any(self.grid.staleness) or self.noise):
            what = "staleness" if any(self.grid.staleness) else "noise"
            raise UsageError(
                f"{what} is that of a training step, and without --step nothing is trained; add --step 0.1"
            )

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        settings = asdict(self)
        return {**{name: list(values) for name, values in settings.pop("grid").items()}, **settings}

    @staticmethod
    def from_json(settings: Mapping[str, Any]) -> Consensus:
        """The inverse of `to_json`."""
        grid, others = split_settings(settings)
        return Consensus(grid, **others)

    def cases(self) -> tuple[list[Case], list[str]]:
        """What can run, and why the rest cannot."""
        return self.grid.checked(seeds_of(self), skip=self.skip)

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Simulate one case, and set theory beside it."""
        logarithmic = () if self.step else ("distance",)
        one = replace(self, seeds=1)
        return over_seeds(seeds_of(self), lambda seed: replace(one, seed=seed)._answer(case, tick), logarithmic)

    def _answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        gradient = self._training(case) if self.step else None
        start = self._start(case)
        optimum = self._optima(case).mean(axis=0) if self.step else None
        done = run(
            case,
            self.rounds,
            self.seed,
            start,
            tick,
            gradient=gradient,
            crash_after=self.crash_after,
            optimum=optimum,
        )
        seen = rates.measured(done.result.distances, done.topology.period)
        predicted = rates.predicted(case.strategy(), done.topology) if case.is_ideal and not self.step else None
        row = {
            **done.row(case),
            **({} if self.step else {"mean_distance": None}),  # of what shrinks by decades a mean says nothing
            "predicted_rate": predicted,
            "expected_rate": _rate_of_expected_square(done.topology) if predicted is not None else None,
            "measured_rate": None if self.step else seen.rate,
            "off": None if self.step else off(seen.rate, predicted),
            "rate_error": None if self.step else seen.error,
            "exact_after": None if self.step else seen.exact_after,
            "measured_from": seen.first,
            "measured_to": seen.last,
            "settled": seen.is_settled if not self.step and case.is_ideal else None,
            "theory_rate": _rate_without_faults(done.topology),
            "predicted_distance": self._stationary(case, done.topology),
        }
        return row, done.steps

    def _start(self, case: Case) -> Array:
        random, graph = np.random.default_rng([self.seed, 0]), case.graph(self.seed)
        if self.start == "normal" or graph.period is None:
            return random.standard_normal((case.peers, self.parameters))
        _, direction = topologies.slowest(graph)
        mean, along = random.standard_normal((2, self.parameters))
        start: Array = mean + math.sqrt(case.peers) * np.outer(direction, along)
        return start

    def _optima(self, case: Case) -> Array:
        """b_i; their mean is the optimum of all."""
        return np.random.default_rng([self.seed, 3]).standard_normal((case.peers, self.parameters))

    def _training(self, case: Case) -> Gradient:
        optima = self._optima(case)
        noise = np.random.default_rng([self.seed, 4])

        def gradient(x: Array, round: int) -> Array:
            drawn = self.noise * noise.standard_normal(x.shape) if self.noise else 0.0
            return -self.step * (self.curvature * (x - optima) + drawn)

        return gradient

    def _stationary(self, case: Case, topology: Topology) -> float | None:
        """Theory's distance in the long run with training, for plain averaging with one symmetric matrix.

        Per coordinate and with b the optima, the noise gives sum_k eta^2 sigma^2 l_k^2 / (1 - l_k^2 (1 - eta h)^2) for
        adapt-then-combine, sum_k eta^2 sigma^2 / (1 - (l_k - eta h)^2) for combine-then-adapt, the differing optima
        the fixed point of the noiseless iteration.
        """
        strategy, eta, h = case.strategy(), self.step, self.curvature
        if not self.step or not case.is_ideal or topology.period != 1 or case.peers > DENSE_PEERS_MAX:
            return None
        if type(strategy) not in (DPsgd, CombineThenAdapt):
            return None
        try:
            topologies.check(topology.weights(0), Needs.SYMMETRIC)
        except UsageError:
            return None
        values, vectors = np.linalg.eigh(topology.weights(0).toarray())
        slow, modes = values[:-1], vectors[:, :-1]  # the last one is the mean, which is no distance
        optima = self._optima(case)
        if isinstance(strategy, CombineThenAdapt):
            decay, drive = slow - eta * h, np.ones_like(slow)
        else:
            decay, drive = slow * (1.0 - eta * h), slow
        if np.any(np.abs(decay) >= 1.0):
            return None
        noise = self.parameters * float(np.sum((eta * self.noise * drive) ** 2 / (1.0 - decay**2)))
        fixed: Floats = (eta * h * drive / (1.0 - decay))[:, None] * (modes.T @ optima)
        return math.sqrt((noise + float(np.sum(fixed**2))) / case.peers)


def off(measured: float | None, predicted: float | None) -> float | None:
    """By which share the measured rate is off the predicted one; 0 if both are 0."""
    if measured is None or predicted is None:
        return None
    if predicted == 0.0:
        return 0.0 if measured == 0.0 else math.inf
    return abs(measured / predicted - 1.0)


def _rate_without_faults(topology: Topology) -> float | None:
    """Of plain averaging on the topology, for the dashed line beside one that is disturbed."""
    return rates.predicted(DPsgd(), topology)


def _rate_of_expected_square(topology: Topology) -> float | None:
    return None if topology.expected is None else math.sqrt(topology.expected)


class _Seeded(Protocol):
    @property
    def seed(self) -> int: ...
    @property
    def seeds(self) -> int: ...


def seeds_of(question: _Seeded) -> range:
    """The seeds of a question."""
    return range(question.seed, question.seed + question.seeds)


def check_counts(**counts: int) -> None:
    """Raise `UsageError` for a count below one."""
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name} {count}, expected at least 1")


def split_settings(settings: Mapping[str, Any]) -> tuple[Grid, dict[str, Any]]:
    """(the grid, the others) of the settings in a JSON.

    Raises:
        UsageError: they are not those of a grid.
    """
    names = set(Grid.__dataclass_fields__)
    try:
        grid = Grid(**{name: tuple(values) for name, values in settings.items() if name in names})
    except TypeError as error:
        raise UsageError(f"the settings of the result cannot be read: {error}") from None
    return grid, {name: value for name, value in settings.items() if name not in names}
