"""An attempt at one partition of one epoch: its units of work, and those that earlier attempts have published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from gossip.fields import COUNT_MAX
from p2p import chance
from p2p.agent.ports import Knowing, Neighbor
from p2p.row_order import numbered, other_rows, taken_apart
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job, TaskInfo

K = TypeVar("K", bound=Knowing, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Attempt(Generic[K]):
    """One of those that are made until one succeeds; several may run at the same time."""

    job: Job
    agent: K
    """Or the master."""
    epoch: int
    partition: int
    number: int = 0
    """It grows from one attempt to the next."""
    fingerprint: int | None = None
    """Of the rows, where another attempt might get others; see `p2p.row_order`."""

    def info(self, chunk: int = 0) -> TaskInfo:
        """What user code is told."""
        job, wave = self.job, self.job.pushes.wave
        epoch, epochs = (self.epoch, job.epochs) if wave is None else (wave.epoch, wave.epochs)
        return TaskInfo(job.run, epoch, epochs, self.partition, job.partitions, chunk, job.peers, job.seed)

    def unit(self, chunk: int) -> tuple[int, int, int]:
        """The unit of work that is published with a chunk: (epoch of the session, partition, number)."""
        return self.job.epochs_before + self.epoch, self.partition, numbered(self.fingerprint or 0, chunk)

    def seed(self, chunk: int) -> None:
        """From here on user code draws the numbers of this chunk, whichever attempt it is."""
        chance.seed(self.job.seed, self.job.epochs_before + self.epoch, self.partition, chunk)

    @property
    def is_over(self) -> bool:
        """All units of its epoch count already, in a session that goes on with another one's model; or it has no work
        in the part of the training that is run now."""
        job = self.job
        if job.pushes.wave is not None and self.partition not in job.pushes.wave.partitions:
            return True
        return (job.resumes or job.pushes.wave is not None) and self.agent.knows(
            (self.job.epochs_before + self.epoch, self.partition, COUNT_MAX)  # which no chunk has
        )

    def published(self) -> int:
        """The highest number that earlier attempts have published, 0 if none; an error if their rows were others."""
        furthest = self.agent.furthest(self.job.epochs_before + self.epoch, self.partition)
        if furthest < 0:
            return 0
        of_rows, number = taken_apart(furthest)
        if of_rows != (self.fingerprint or 0):
            epoch = self.info().epoch
            raise PartitionError.of(other_rows(epoch, [self.partition]), epoch, self.partition)
        return number


BesideAgent = Attempt[Neighbor]
"""One of a peer."""
