"""What is lost when things fail: mass and bias by algorithm, one kind of fault at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.experiments.consensus import check_counts, split_settings
from p2p.experiments.grid import Case, Grid, canonical
from p2p.experiments.results import Row, Step
from p2p.experiments.run import run
from p2p.experiments.sweep import Tick

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

    experiment = "faults"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical(self.grid))
        check_counts(rounds=self.rounds, parameters=self.parameters)
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
        possible, refused = alone.checked(self.seed, skip=self.skip)
        cases = []
        for case in possible:
            swept = [case] + [
                replace(case, **{kind: value}) for kind in KINDS for value in getattr(self.grid, kind) if value
            ]
            for each in swept:
                each.check(self.seed)
            cases += swept
        return cases, refused

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Simulate one case."""
        start = np.random.default_rng([self.seed, 0]).standard_normal((case.peers, self.parameters))
        done = run(case, self.rounds, self.seed, start, tick, crash_after=self.crash_after)
        spread = float(np.sqrt(self.parameters / case.peers))
        fault = next((f"{kind} {getattr(case, kind):g}" for kind in KINDS if getattr(case, kind)), "none")
        row = done.row(case)
        sent = 1.0 - float(done.topology.weights(0).diagonal().mean())
        return {"fault": fault, **row, "bias_in_errors": row["bias"] / spread, "sent_share": sent}, done.steps
