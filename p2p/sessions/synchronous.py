"""Sessions that train synchronously, as the baselines that others are compared with.

    mode="sync"         a run of the engine is a wave of partitions, in which workers take steps together
    mode="averaging"    a run of the engine is an epoch, at the end of which the workers' models are averaged

Both are sessions with a master: tasks find it as in `p2p.sessions.master`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from gossip.errors import UsageError
from gossip.marks import Unit
from p2p import engines
from p2p.driver.watchers import Watching
from p2p.engines.local import LocalEngine
from p2p.master.coordinator import Coordinator
from p2p.master.gathering import Averaging, Stepping
from p2p.master.served import Served
from p2p.sessions.master import MasterSession
from p2p.sessions.training import Training
from p2p.worker.job import Job, TaskResult, Wave


class SynchronousSession(MasterSession, ABC):
    """What both have: the engine is run for one part of the training after the other."""

    def _runs(
        self, training: Training, engine: engines.Engine, coordinator: Coordinator, job: Job, watching: Watching
    ) -> Iterator[list[TaskResult]]:
        def is_over() -> bool:
            """Whoever says so has the engine end, which may be between two runs just then."""
            return training.stopping.has_stopped or coordinator.error is not None or watching.error is not None

        data, total = training.data, job.epochs * job.partitions
        for wave in self._waves(coordinator, job, is_over):
            this = replace(
                job,
                descent=training.descent if wave.averages else None,
                epochs=1,
                epochs_before=job.epochs_before + wave.epoch,
                pushes=replace(job.pushes, wave=wave),
            )
            if isinstance(engine, LocalEngine):  # what has no work is not sent
                data = [rows if index in wave.partitions else () for index, rows in enumerate(training.data)]

            def tell(done: int, of: int, before: int = wave.epoch * job.partitions) -> None:
                self._done(self._count(coordinator, before + done), total)

            yield engine.run(this, data, tell)

    @abstractmethod
    def _waves(self, coordinator: Any, job: Job, is_over: Callable[[], bool]) -> Iterator[Wave]:
        """What is run one after the other, until all is, or `is_over()`."""

    def _count(self, coordinator: Any, done: int) -> int:
        """Partitions that are done, of all epochs, where it would be so many if each was run once."""
        return done


class SteppingSession(SynchronousSession):
    """Workers take steps together: one change of the model by the gradients of all."""

    mode: ClassVar[str] = "sync"

    def _coordinated(
        self, training: Training, engine: engines.Engine, job: Job, served: Served, applied: Iterable[Unit]
    ) -> Coordinator:
        return Stepping(
            *(served, training.descent, engine.cancel, job.epochs_before, applied, job.pushes.drops_bad),
            epochs=job.epochs,
            partitions=job.partitions,
            width=engine.workers,
            rule=training.combine or "mean",
        )

    def _waves(self, coordinator: Stepping, job: Job, is_over: Callable[[], bool]) -> Iterator[Wave]:
        barrier = coordinator.barrier
        while job.epochs and (place := barrier.wave) is not None and not is_over():
            before = barrier.step
            barrier.run_again()
            epoch = place.epoch - job.epochs_before
            yield Wave(epoch, job.epochs, place.partitions)
            if (barrier.wave, barrier.step) == (place, before) and not is_over():
                raise UsageError(
                    f"the engine is done, and step {before} of epoch {epoch} is not: some of partitions "
                    f"{place.partitions.start} to {place.partitions.stop - 1} have not been computed. Expected an "
                    "engine that runs each partition of a job once"
                )

    def _count(self, coordinator: Stepping, done: int) -> int:
        return coordinator.barrier.ended


class AveragingSession(SynchronousSession):
    """Workers train models of their own with each partition, which are averaged after each epoch."""

    mode: ClassVar[str] = "averaging"

    def _coordinated(
        self, training: Training, engine: engines.Engine, job: Job, served: Served, applied: Iterable[Unit]
    ) -> Coordinator:
        return Averaging(served, training.descent, engine.cancel, job.epochs_before, applied, job.pushes.drops_bad)

    def _waves(self, coordinator: Averaging, job: Job, is_over: Callable[[], bool]) -> Iterator[Wave]:
        for epoch in range(job.epochs):
            if is_over():
                return
            yield Wave(epoch, job.epochs, range(job.partitions), averages=True)
            if not is_over():  # else some partitions may be missing
                coordinator.average()
