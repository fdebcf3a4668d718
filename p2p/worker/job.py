"""The job that tasks are given, and the results that they return in the end: values that travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gossip.arguments import one_of, seconds
from p2p.server.messages import Address
from p2p.worker.working_copy import ExchangeSettings

Gradient = Callable[[Any, Iterator[Any]], Any]
"""`gradient(model, rows)`: what was learned from the rows; None or {} for nothing.

A function may have an attribute `light`: what to send to workers in place of the model, where only it sees the model.
Where elements of partitions are blocks of rows, `rows_in(element)` as another attribute says how many: the report then
counts these rows.
"""
Descent = Callable[[Any, Any], Any]
"""`descent(model, update)`: changes the model's arrays in place."""
Progress = Callable[[int, int], None]
"""Called with (partitions done, partitions in all, epochs counted in)."""
EXCHANGE = ExchangeSettings()


@dataclass(frozen=True)
class Rhythm:
    """When a task exchanges what it has learned."""

    when: Literal["chunk", "partition", "continuous"] = "chunk"
    """After each chunk; once, at the end of the partition; or every so often, in the middle of a gradient."""
    every_s: float = 1.0
    """Between two exchanges, where they are continuous."""

    def __post_init__(self) -> None:
        one_of("when", self.when, ("chunk", "partition", "continuous"))
        object.__setattr__(self, "every_s", seconds("every_s", self.every_s))


BY_CHUNK = Rhythm()


@dataclass(frozen=True)
class Wave:
    """The part of a training that is run now, where workers wait for each other."""

    epoch: int
    """Which one it is,"""
    epochs: int
    """of so many in the training. The engine knows of this one alone."""
    partitions: range
    """The others have no work in it."""
    averages: bool = False
    """Each task trains a model of its own, and these are averaged; else they take steps together."""


@dataclass(frozen=True)
class Pushes:
    """How a worker fetches a master's model, and pushes its updates."""

    n_fetch: int = 1
    """Chunks from one fetch to the next; between two, `descent` runs on the worker's copy."""
    n_push: int = 1
    """Chunks whose updates are pushed as one."""
    drops_bad: bool = False
    """Updates with a NaN or an infinity are left out."""
    wave: Wave | None = None
    """Of a synchronous training, which is run in parts; None: all of it is run at once."""


EACH_CHUNK = Pushes()


def codec_of(rhythm: Rhythm) -> str | None:
    """How rows travel; the one exchange of a partition brings what others send with the next ones."""
    return "int16" if rhythm.when == "partition" else None


@dataclass(frozen=True)
class TaskInfo:
    """Where the running task stands in the training; for gradients that follow a schedule or draw random numbers."""

    run: str
    epoch: int
    epochs: int
    partition: int
    partitions: int
    chunk: int
    peers: int
    """Peers that train at the same time."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of `train`, as the tasks need to know it. Sent by cloudpickle, by the user's own programs."""

    run: str
    skeleton: bytes
    gradient: Gradient
    descent: Descent | None = None
    epochs: int = 1
    partitions: int
    chunk_rows: int | None = None
    peers: int
    seed: int
    epochs_before: int = 0
    """Of earlier trainings of the session: their units are other ones."""
    exchange: ExchangeSettings = EXCHANGE
    """How updates travel and add up."""
    rhythm: Rhythm = BY_CHUNK
    resumes: bool = False
    """Some units of work were published in an earlier session."""
    pushes: Pushes = EACH_CHUNK
    """Of a master."""
    master: Address | None = None
    """Where the model is; None where every peer has it."""
    workers: int = 1
    """Tasks that run at the same time, each in a process with a copy of its own."""

    def going_on(self, epoch: int, partition: int) -> int:
        """How many workers get another partition like the one that is done with this, if tasks begin in order and take
        as long; 0 if it was its last."""
        return self.workers if (self.epochs - epoch) * self.partitions - partition > self.workers else 0


@dataclass(frozen=True)
class TaskResult:
    """What a task did."""

    rows: int
    updates: int
    """Published by this attempt."""
    units: int
    """Chunks that led to an update, of this attempt or an earlier one."""
    cautions: Mapping[str, str] = field(default_factory=dict)
    """What the user should hear of, by name; see `p2p.caution`."""
