"""The options of `train`, as one value: a new option is a field here, and a line where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gossip.arrays import Arrays
from gossip.marks import Counted, Unit
from p2p.adapters.model import Model
from p2p.caution import warn
from p2p.checkpoint import likeness
from p2p.checkpoint.record import TrainingRecord
from p2p.checkpoint.writing import Writer
from p2p.driver.evaluation import Evaluation
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import Watcher
from p2p.master.coordinator import Feeder
from p2p.master.staleness import ANY, Staleness
from p2p.report import Checkpoints, Evaluated, Report
from p2p.worker.job import BY_CHUNK, EACH_CHUNK, Descent, Gradient, Progress, Pushes, Rhythm


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
    stopping: Stopping = field(default_factory=Stopping)
    """When it ends before all is done, and why it ended."""
    writer: Writer | None = None
    """Who writes checkpoints."""
    on_incomplete: Literal["raise", "warn"] = "raise"
    staleness: Staleness = ANY
    """Of a master: how stale updates may be, and what they weigh then."""
    pushes: Pushes = EACH_CHUNK
    """Of a master."""
    progress: Progress

    @property
    def rule(self) -> str | None:
        """How updates add up, as the call says, or else its descent or gradient."""
        return self.combine or getattr(self.descent, "combine", None) or getattr(self.gradient, "combine", None)

    @property
    def all_watchers(self) -> tuple[Watcher, ...]:
        """Who looks at the model while it is trained; the evaluation first, and checkpoints last."""
        return tuple(each for each in (self.evaluation, *self.watchers, self.writer) if each is not None)

    @property
    def evaluations(self) -> tuple[Evaluated, ...]:
        """What the evaluation has said so far."""
        return () if self.evaluation is None else tuple(self.evaluation.results)

    @property
    def checkpoints(self) -> Checkpoints | None:
        """What became of them so far."""
        return None if self.writer is None else self.writer.figures

    def reported(self, report: Report) -> Report:
        """The report, with what this training has kept."""
        return replace(report, evaluations=self.evaluations, ended=self.stopping.ended, checkpoints=self.checkpoints)

    def begins(self, model: Model, epochs_before: int, partitions: int, counters: Arrays | None) -> None:
        """Tell who writes checkpoints what units of work mean. `counters` are those of `model` when the training began,
        if that was in another session."""
        if self.writer is not None:
            arrays = {**model.arrays(), **(counters or {})}
            self.writer.training = TrainingRecord(
                epochs=self.epochs,
                epochs_before=epochs_before,
                partitions=partitions,
                chunk_rows=self.chunk_rows,
                combine=self.combine,
                exchange=self.rhythm.when,
                exchange_s=self.rhythm.every_s,
                counters={name: tuple(arrays[name].reshape(-1).tolist()) for name in sorted(model.counters)},
                data=likeness.of_data(self.data),
            )


@dataclass(frozen=True)
class Begun:
    """Where a session goes on that was another one's."""

    counted: Counted
    """Units of work that count in the model."""
    epochs_before: int
    """Of earlier trainings."""
    check_data: Callable[[Any, int], None]
    """Raises `UsageError` for data that has another number of partitions, and warns of other data."""
    counters: Arrays
    """Of the model, when the training began."""

    @property
    def epochs_done(self) -> int:
        """Of the training that goes on, those of which all units count."""
        return max(0, self.counted.closed - self.epochs_before)

    @property
    def units(self) -> Iterator[Unit]:
        """Those of the training that goes on, but for epochs of which all count."""
        return (mark.unit for series in self.counted.series for mark in series.marks())

    def skipped(self, rhythm: Rhythm) -> int:
        """How many of these tasks count among theirs, though they were published before."""
        return 0 if rhythm.when == "continuous" else sum(series.size for series in self.counted.series)


def warn_of_absurd(report: Report) -> None:
    """Warn of each peer whose absurd updates are in the model."""
    for peer in report.peers:
        if peer.conduct.is_merged:
            warn(f"{peer.name} {peer.conduct}")
