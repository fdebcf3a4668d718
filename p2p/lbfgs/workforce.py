"""Who computes the portions of a pass: worker processes of this machine, which are given one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq

from p2p import parcel
from p2p.lbfgs import messages
from p2p.lbfgs.crew import Seat
from p2p.lbfgs.messages import Compute, Computed, Dropped, Failed, Here, Message, Placement, Source
from p2p.lbfgs.portions import TRIES_MAX, Portions, Started
from p2p.worker.errors import told

log = logging.getLogger("p2p")

Send = Callable[[str, Message, Sequence[memoryview]], None]


class WorkerLostError(RuntimeError):
    """Workers ended at the same portion, one after the other."""


class Workforce(Protocol):
    """What a coordinator needs of it."""

    portions: Portions

    @property
    def seats(self) -> int:
        """Processes that the crew is to start for it."""
        ...

    def begin(self, point: int, epoch: int, placement: Placement) -> None:
        """A pass begins; `portions` has begun it."""
        ...

    def turn(self, send: Send) -> None:
        """Have somebody compute what is to be computed. What the user's code raised is raised here."""
        ...

    def wait_s(self) -> float | None:
        """In how many seconds `turn` may have something to do, if nobody says anything; None for any time."""
        ...

    def hear(self, name: str, message: Any, frames: Sequence[zmq.Frame]) -> bool:
        """Who computes has said something; whether a portion that was computed may count."""
        ...

    def ended(self, name: str, words: str) -> None:
        """A worker is gone. Raises `WorkerLostError` if that is its portion's fault."""
        ...

    def end(self) -> None:
        """The pass is over, or given up."""
        ...

    def close(self) -> None:
        """The training is over."""
        ...


class LocalWorkers:
    """Worker processes of a crew."""

    def __init__(self, count: int, job: bytes, data: Sequence[Any], portions: Portions) -> None:
        """`job` is a parcel, `data` the partitions."""
        self.portions = portions
        self.seats = count
        self._job = job
        self._data = data
        self._asked = (0, 0)
        """Point and epoch of the pass."""
        self._placement = Placement([], [])
        self._gone: set[str] = set()
        self._idle: list[str] = []
        self._knows: dict[str, set[int]] = {}
        """The partitions that workers have been sent; one that is in here has the job."""
        self._placed: dict[str, Placement] = {}
        """Where they think that the shards are."""

    def begin(self, point: int, epoch: int, placement: Placement) -> None:
        self._asked, self._placement = (point, epoch), placement

    def turn(self, send: Send) -> None:
        for name in list(self._knows):
            if self._placed[name] != self._placement:
                self._place(name, send, ())  # also who waits for a shard that is gone
        for name in list(self._idle):
            started = self.portions.take(name, time.monotonic())
            if started is not None:
                self._idle.remove(name)
                self._give(name, started, send)

    def wait_s(self) -> float | None:
        return self.portions.waits_s(time.monotonic()) if self._idle else None

    def hear(self, name: str, message: Any, frames: Sequence[zmq.Frame]) -> bool:
        if name in self._gone:
            return False  # what it said last comes late
        match message:
            case Failed():
                raise told(messages.joined(frames))
            case Dropped():
                self.portions.late(name)
                self.portions.dropped += 1
            case Computed() if message.point != self._asked[0]:
                self.portions.dropped += 1
            case _:
                assert isinstance(message, Here | Computed)
        if name not in self._idle:
            self._idle.append(name)
        return isinstance(message, Computed) and message.point == self._asked[0]

    def ended(self, name: str, words: str) -> None:
        log.warning("%s; another one takes its place", words)
        self._gone.add(name)
        self._knows.pop(name, None)
        if name in self._idle:
            self._idle.remove(name)
        if self.portions.lost(name) >= TRIES_MAX:
            raise WorkerLostError(f"{words}, as {TRIES_MAX - 1} before it at the same portion")

    def end(self) -> None:
        """Who is late finds that out."""

    def close(self) -> None:
        """The crew ends the workers."""

    def _give(self, name: str, started: Started, send: Send) -> None:
        """Have a worker compute a portion, with all that it needs for that. It may be gone, which is heard of then."""
        portion = started.portion
        if name not in self._knows:
            self._knows[name] = set()
            self._place(name, send, messages.blocks(self._job))
        known = self._knows.get(name, set())
        if portion.partition not in known:
            known.add(portion.partition)
            send(name, Source(portion.partition), messages.blocks(parcel.dumps(self._data[portion.partition])))
        send(name, Compute(*self._asked, portion.partition, portion.chunk, started.number), ())

    def _place(self, name: str, send: Send, frames: Sequence[memoryview]) -> None:
        self._placed[name] = self._placement
        send(name, self._placement, frames)


def seats_of(workforce: Workforce) -> list[Seat]:
    """Those of its workers."""
    return [Seat("worker", index) for index in range(workforce.seats)]
