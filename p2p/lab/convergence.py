"""How well a real model trains: algorithm x topology x faults, with centralized SGD beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.lab.consensus import check_counts, seeds_of, split_settings
from p2p.lab.grid import Case, Grid, canonical
from p2p.lab.results import Row, Step
from p2p.lab.run import run
from p2p.lab.seeds import over_seeds
from p2p.lab.strategies import folded
from p2p.lab.sweep import Tick
from p2p.lab.workloads import table
from p2p.lab.workloads.workload import SHARDS, Workload, centralized

LOSSES_RECORDED = 100
"""About so many rounds of a row have a loss: it costs as much as some steps."""


def rates_of(algorithms: Sequence[str], written: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """{algorithm: the rates to try} from rates as one writes them: "0.5", or "relay=4" for one algorithm.

    >>> rates_of(("DPsgd()", "RelaySum()"), ("0.5", "1", "relay=4"))
    {'DPsgd()': (0.5, 1.0), 'RelaySum()': (4.0,)}

    Raises:
        UsageError: a rate is no number above 0, a name is that of none or several, or an algorithm is left without.
    """
    for_all: list[float] = []
    own: dict[str, list[float]] = {name: [] for name in algorithms}
    for text in written:
        name, _, number = text.rpartition("=")
        try:
            rate = float(number)
        except ValueError:
            raise UsageError(f"rate {text!r}, expected a number, or ALGORITHM=NUMBER as in relay=4") from None
        if not 0.0 < rate < math.inf:
            raise UsageError(f"rate {rate:g}, expected more than 0")
        if not name:
            for_all.append(rate)
            continue
        meant = [each for each in algorithms if name.strip() == each or folded(each.split("(")[0]) == folded(name)]
        meant = meant or [each for each in algorithms if folded(each).startswith(folded(name))]
        if len(meant) != 1:
            among = ", ".join(meant or algorithms)
            raise UsageError(f"rate {text!r} names {len(meant)} algorithms, expected one of {among}")
        own[meant[0]].append(rate)
    found = {name: tuple(rates or for_all) for name, rates in own.items()}
    for name, rates in found.items():
        if not rates:
            raise UsageError(f"no rate for {name}, expected one such as {folded(name.split('(')[0])}=0.5")
        repeated = [rate for at, rate in enumerate(rates) if rate in rates[:at]]
        if repeated:
            raise UsageError(f"rate {repeated[0]:g} of {name} is given twice, expected each once")
    return found


@dataclass(frozen=True)
class Convergence:
    """The settings of a sweep."""

    grid: Grid
    rounds: int = 500
    seed: int = 0
    model: str = "digits"
    """"digits": softmax on drawn digits; "mnist": softmax on MNIST in `data`; or one of `p2p.models`."""
    shards: str = "label"
    rows: int = 1600
    """Images, or at most so many texts."""
    rate: tuple[str, ...] = ("0.5",)
    """Learning rates, each of which is tried: "0.5" for all algorithms, "relay=4" for one, which then takes
    those only that name it."""
    batch: int = 0
    """Rows of a step; 0 for all that a peer has."""
    data: str | None = None
    """MNIST's folder, or a file with one text per line."""
    crash_after: int = 100
    """Rounds after which peers crash, if any do."""
    skip: bool = False
    seeds: int = 1

    experiment = "convergence"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical(self.grid))
        check_counts(rounds=self.rounds, rows=self.rows, seeds=self.seeds)
        written = (self.rate,) if isinstance(self.rate, str | float | int) else tuple(self.rate)
        object.__setattr__(self, "rate", tuple(map(str, written)))
        assert self._rates  # or it is refused
        table.check(self.model, self.data)
        if self.shards not in SHARDS:
            raise UsageError(f"shards {self.shards!r}, expected one of {', '.join(SHARDS)}")
        if self.batch < 0:
            raise UsageError(f"batch {self.batch}, expected a number of rows, or 0 for all")

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        settings = asdict(self)
        settings["rate"] = list(self.rate)
        return {**{name: list(values) for name, values in settings.pop("grid").items()}, **settings}

    @staticmethod
    def from_json(settings: Mapping[str, Any]) -> Convergence:
        """The inverse of `to_json`."""
        grid, others = split_settings(settings)
        return Convergence(grid, **others)

    def cases(self) -> tuple[list[Case], list[str]]:
        """What can run, and why the rest cannot; the data is read."""
        possible, refused = self.grid.checked(seeds_of(self), skip=self.skip, is_same_start=True)
        for peers in self.grid.peers:
            self._workload(peers)
        return [replace(case, rate=rate) for case in possible for rate in self._rates[case.algorithm]], refused

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Train one case."""
        return over_seeds(seeds_of(self), lambda seed: self._of(seed)._answer(case, tick))

    def _answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        assert case.rate is not None
        workload, central = self._workload(case.peers), self._centralized(case.peers)
        start = np.repeat(workload.start[None], case.peers, axis=0)
        every = max(1, self.rounds // LOSSES_RECORDED)
        done = run(
            case,
            self.rounds,
            self.seed,
            start,
            tick,
            crash_after=self.crash_after,
            gradient=workload.at(case.rate).delta,
            parts=workload.parts,
            loss=workload.loss,
            loss_rounds=lambda number: number % every == 0 or number == self.rounds,
        )
        for number, step in enumerate(done.steps):
            step["centralized_loss"] = central[number]
        final = done.steps[-1]["loss"]
        with np.errstate(over="ignore", invalid="ignore"):
            worst = max(workload.loss(np.asarray(x, np.float64)) for x in done.result.params)
        row = {
            **done.row(case),
            "final_loss": final,
            "mean_loss": done.late("loss"),
            "worst_loss": worst,
            "centralized_loss": central[-1],
            "above_centralized": final / central[-1] - 1.0,
            "worst_above_centralized": worst / central[-1] - 1.0,
        }
        return row, done.steps

    @property
    def measure(self) -> str:
        """What the loss is, in words."""
        return self._workload(self.grid.peers[0]).measure

    def _of(self, seed: int) -> Convergence:
        """The same with one seed."""
        if seed == self.seed and self.seeds == 1:
            return self
        if seed not in self._known:
            self._known[seed] = replace(self, seed=seed, seeds=1)
        question: Convergence = self._known[seed]
        return question

    @cached_property
    def _rates(self) -> dict[str, tuple[float, ...]]:
        return rates_of(self.grid.algorithm, self.rate)

    @cached_property
    def _known(self) -> dict[str | int, Any]:
        return {}

    def _workload(self, peers: int) -> Workload:
        key = f"workload {peers}"
        if key not in self._known:
            self._known[key] = self._make_workload(peers)
        workload: Workload = self._known[key]
        return workload

    def _centralized(self, peers: int) -> list[float]:
        """The losses of SGD in one place at the best of all rates."""
        key = f"centralized {peers}"
        if key not in self._known:
            tried = [
                centralized(self._workload(peers).at(rate), peers, self.rounds)[1]
                for rate in sorted({rate for rates in self._rates.values() for rate in rates})
            ]
            finite = [losses for losses in tried if math.isfinite(losses[-1])]
            self._known[key] = min(finite or tried, key=lambda losses: losses[-1])
        losses: list[float] = self._known[key]
        return losses

    def _make_workload(self, peers: int) -> Workload:
        rate = next(iter(self._rates.values()))[0]
        options = {"peers": peers, "shards": self.shards, "rate": rate, "batch": self.batch}
        return table.make(self.model, self.data, rows=self.rows, seed=self.seed, **options)
