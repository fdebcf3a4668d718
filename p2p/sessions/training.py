"""The options of `train`, as one value: a new option is a field here, and a line where it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from p2p.driver.coordinator import Feeder
from p2p.driver.evaluation import Evaluation
from p2p.driver.watchers import Watcher
from p2p.report import Evaluated
from p2p.worker.job import BY_CHUNK, Descent, Gradient, Progress, Rhythm


@dataclass(frozen=True, kw_only=True)
class Training:
    """One call of `DeepDist.train`; its arguments have been checked."""

    data: Any
    """An RDD, a list of partitions, or whatever the session's own engine takes."""
    gradient: Gradient
    descent: Descent | None = None
    epochs: int = 1
    chunk_rows: int | None = None
    """Rows of an update; None for whole partitions."""
    combine: str | None = None
    """A rule of `p2p.worker.combine`; None for that of the descent, or else of the model's adapter."""
    rhythm: Rhythm = BY_CHUNK
    evaluation: Evaluation | None = None
    watchers: tuple[Watcher, ...] = ()
    """Beside the evaluation."""
    feeders: tuple[Feeder, ...] = ()
    """Of a master: what brings it updates, beside the tasks."""
    on_incomplete: Literal["raise", "warn"] = "raise"
    progress: Progress

    @property
    def rule(self) -> str | None:
        """How updates add up, as the call says, or else its descent or gradient."""
        return self.combine or getattr(self.descent, "combine", None) or getattr(self.gradient, "combine", None)

    @property
    def all_watchers(self) -> tuple[Watcher, ...]:
        """Who looks at the model while it is trained; the evaluation first."""
        return self.watchers if self.evaluation is None else (self.evaluation, *self.watchers)

    @property
    def evaluations(self) -> tuple[Evaluated, ...]:
        """What the evaluation has said so far."""
        return () if self.evaluation is None else tuple(self.evaluation.results)
