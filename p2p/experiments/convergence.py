"""How well a real model trains: algorithm x topology x faults, with centralized SGD beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.experiments import images
from p2p.experiments.consensus import check_counts, split_settings
from p2p.experiments.grid import Case, Grid, canonical
from p2p.experiments.results import Row, Step
from p2p.experiments.run import run
from p2p.experiments.softmax import Softmax
from p2p.experiments.sweep import Tick
from p2p.experiments.workload import SHARDS, Workload, centralized

MODELS = ("digits", "mnist", "word2vec")
LOSSES_RECORDED = 100
"""About so many rounds of a row have a loss: it costs as much as some steps."""


@dataclass(frozen=True)
class Convergence:
    """The settings of a sweep."""

    grid: Grid
    rounds: int = 500
    seed: int = 0
    model: str = "digits"
    """"digits": softmax on drawn digits; "mnist": softmax on MNIST in `data`; "word2vec": skip-gram on `data`."""
    shards: str = "label"
    rows: int = 1600
    """Images, or at most so many texts."""
    rate: float = 0.5
    """Learning rate."""
    batch: int = 0
    """Rows of a step; 0 for all that a peer has."""
    data: str | None = None
    """MNIST's folder, or a file with one text per line."""
    crash_after: int = 100
    """Rounds after which peers crash, if any do."""
    skip: bool = False

    experiment = "convergence"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", canonical(self.grid))
        check_counts(rounds=self.rounds, rows=self.rows)
        for name, value, known in (("model", self.model, MODELS), ("shards", self.shards, SHARDS)):
            if value not in known:
                raise UsageError(f"{name} {value!r}, expected one of {', '.join(known)}")
        if not 0.0 < self.rate < math.inf:
            raise UsageError(f"rate {self.rate:g}, expected more than 0")
        if self.batch < 0:
            raise UsageError(f"batch {self.batch}, expected a number of rows, or 0 for all")
        if self.model == "mnist" and self.data is None:
            raise UsageError("model mnist needs --data FOLDER, the folder with MNIST's files")
        if self.model == "digits" and self.data is not None:
            raise UsageError("model digits draws its images; --data is for mnist (a folder) and word2vec (a file)")

    def to_json(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        settings = asdict(self)
        return {**{name: list(values) for name, values in settings.pop("grid").items()}, **settings}

    @staticmethod
    def from_json(settings: Mapping[str, Any]) -> Convergence:
        """The inverse of `to_json`."""
        grid, others = split_settings(settings)
        return Convergence(grid, **others)

    def cases(self) -> tuple[list[Case], list[str]]:
        """What can run, and why the rest cannot; the data is read."""
        possible, refused = self.grid.checked(self.seed, skip=self.skip)
        for peers in self.grid.peers:
            self._workload(peers)
        return possible, refused

    def answer(self, case: Case, tick: Tick) -> tuple[Row, list[Step]]:
        """Train one case."""
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
            gradient=workload.delta,
            parts=workload.parts,
            loss=workload.loss,
            loss_rounds=lambda number: number % every == 0 or number == self.rounds,
        )
        for number, step in enumerate(done.steps):
            step["centralized_loss"] = central[number]
        final = done.steps[-1]["loss"]
        worst = max(workload.loss(np.asarray(x, np.float64)) for x in done.result.params)
        row = {
            **done.row(case),
            "final_loss": final,
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

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {}

    def _workload(self, peers: int) -> Workload:
        key = f"workload {peers}"
        if key not in self._known:
            self._known[key] = self._make_workload(peers)
        workload: Workload = self._known[key]
        return workload

    def _centralized(self, peers: int) -> list[float]:
        key = f"centralized {peers}"
        if key not in self._known:
            self._known[key] = centralized(self._workload(peers), peers, self.rounds)[1]
        losses: list[float] = self._known[key]
        return losses

    def _make_workload(self, peers: int) -> Workload:
        if self.model == "word2vec":
            from p2p.experiments.skipgram import SkipGram, texts  # gensim takes a second to import

            corpus = texts(None if self.data is None else Path(self.data), self.rows)
            return SkipGram(corpus, peers, self.shards, self.rate, self.batch, self.seed)
        if self.model == "mnist":
            pixels, labels = images.mnist(Path(str(self.data)), self.rows, self.seed)
        else:
            pixels, labels = images.drawn(self.rows, self.seed)
        return Softmax(pixels, labels, peers, self.shards, self.rate, self.batch, self.seed)
