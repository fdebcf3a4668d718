"""Losses when things fail: mass and bias by algorithm, one sort of fault at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.lab.consensus import check_counts, seeds_of, split_settings
from p2p.lab.grid import Case, Grid, canonical
from p2p.lab.results import Row, Step
from p2p.lab.run import run
from p2p.lab.seeds import over_seeds
from p2p.lab.sweep import Tick

KINDS = ("loss", "churn", "crash")
"""Faults that are swept, each alone: a row has at most one of them."""


@dataclass(frozen=True)
class Faults:
    """The settings of a sweep."""

    grid: Grid
    rounds: int = 200
    seed: int = 0
    parameters: int = 10
    crash_after: int = 2
    """Rounds after which peers crash: soon, since who has agreed with all takes nothing along."""
    skip: bool = False
    seeds: int = 1

    experiment = "faults"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical(self.grid))
        check_counts(rounds=self.rounds, parameters=self.parameters, seeds=self.seeds)
        if any(self.grid.staleness):
            raise UsageError("staleness is that of a training step, and here nothing is trained; see `lab consensus`")

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        settings = asdict(self)
        return {**{name: list(values) for name, values in settings.pop("grid").items()}, **settings}

    @staticmethod
    def from_json(settings: Mapping[str, Any]) -> Faults:
        """The inverse of `to_json`."""
        grid, others = split_settings(settings)
        return Faults(grid, **others)

    def cases(self) -> tuple[list[Case], list[str]]:
        """What can run, and why the rest cannot."""
        alone = replace(self.grid, loss=(0.0,), churn=(0.0,), crash=(0.0,))
        possible, refused = alone.checked(seeds_of(self), skip=self.skip)
        cases = []
        for case in possible:
            cases.append(case)
            for kind in KINDS:
                for value in getattr(self.grid, kind):
                    if not value:
                        continue
                    one = replace(case, **{kind: value})
                    try:
                        one.check(self.seed)
                        cases.append(one)
                    except UsageError as error:
                        if not self.skip:
                            raise
                        refused.append(str(error))
        return cases, refused

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Simulate one case."""
        one = replace(self, seeds=1)
        return over_seeds(seeds_of(self), lambda seed: replace(one, seed=seed)._answer(case, tick))

    def _answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        start = np.random.default_rng([self.seed, 0]).standard_normal((case.peers, self.parameters))
        done = run(case, self.rounds, self.seed, start, tick, crash_after=self.crash_after)
        spread = float(np.sqrt(self.parameters / case.peers))
        fault = next((f"{kind} {getattr(case, kind):g}" for kind in KINDS if getattr(case, kind)), "none")
        row = done.row(case)
        sent = 1.0 - float(done.topology.weights(0).diagonal().mean())
        bias = None if row["bias"] is None else row["bias"] / spread
        kept = {"mean_distance": None, "bias_in_errors": bias, "sent_share": sent}
        return {"fault": fault, **row, **kept}, done.steps
