"""The barriers of synchronous steps: who may compute a gradient now, and whose update is taken next.

    an epoch   waves: as many partitions, in their order, as there are workers; one wave after the other
    a wave     steps: step s is chunk s of each of its partitions that has so many chunks
    a step     a model to each that asks -> all their updates -> one change of the model -> the next step

All partitions of a wave can be computed at the same time, so a barrier over them holds up nobody for ever. A cluster
may have fewer workers than it says, or lose some: then those that wait would hold the very places that the others need.
So when nothing has happened for a while, those that wait are sent home: their tasks end, and the wave is run again for
what is left of it. Steps are the same ones however often a wave is run. Where some partitions could not begin at all,
the next waves are as narrow as what there was room for.

An attempt at a partition that dies leaves nothing behind but what was taken of it; the next one goes on with that step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from gossip.fields import COUNT_MAX
from gossip.marks import Unit
from p2p.row_order import taken_apart

PATIENCE_S = 20.0
"""Nothing has happened for so long: those that wait are sent home. Then for twice as long, since gradients may be slow.
Spark takes some seconds to have another executor in the place of one that is lost."""
ENDED = COUNT_MAX
"""Chunks that are done of a partition that has no more."""

TAKEN = Unit(-1, -1, -1)
"""What a worker has whose update is being taken."""

W = TypeVar("W", bound=Hashable)
"""By which a worker is known."""


@dataclass(frozen=True)
class Place:
    """A wave, as units of work number it."""

    epoch: int
    """Of the session."""
    partitions: range


class Barrier(Generic[W]):
    """Of one training."""

    def __init__(
        self,
        epochs: range,
        partitions: int,
        width: int,
        change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`epochs` as the session numbers them. `width`: how many tasks can run at the same time. `change` is called
        when all updates of a step are taken, and what it raises comes out of `next`."""
        self._epochs = epochs
        self._partitions = partitions
        self._width = width
        self._change = change
        self._clock = clock
        self.wave: Place | None = Place(epochs.start, range(min(width, partitions)))
        """What is run now; None when all is over."""
        self.step = 0
        """Within the wave."""
        self._done: dict[int, int] = {}
        """Chunks of each of its partitions that count, or came to nothing."""
        self._asking: dict[W, Unit] = {}
        self._given: dict[W, Unit] = {}
        self._pushed: list[W] = []
        self._came: set[int] = set()
        """Partitions of which a task has come in this run of the wave."""
        self._narrow = False
        """There was no room for some of them."""
        self._apart = False
        """In this run nobody waits for anybody."""
        self._patience_s = PATIENCE_S
        self._since = clock()
        """When something happened last."""

    @property
    def waits(self) -> bool:
        """Somebody waits, and `next` is to be asked again now and then."""
        return bool(self._asking)

    @property
    def ended(self) -> int:
        """Partitions that have ended, in all epochs."""
        if (wave := self.wave) is None:
            return len(self._epochs) * self._partitions
        before = (wave.epoch - self._epochs.start) * self._partitions + wave.partitions.start
        return before + sum(done == ENDED for done in list(self._done.values()))

    def run_again(self) -> None:
        """A run of the wave begins."""
        self._came = set()
        self._apart = self._narrow
        self._since = self._clock()

    def passed(self, unit: Unit) -> bool:
        """Its step is over, or its partition has ended; of a partition that has ended, also any chunk there is not."""
        if (wave := self.wave) is None:
            return True
        if unit.epoch != wave.epoch or unit.partition not in wave.partitions:
            return (unit.epoch, unit.partition) < (wave.epoch, wave.partitions.start)
        return _chunk(unit) < self._done.get(unit.partition, 0)

    def ask(self, worker: W, unit: Unit, attempt: int = 0) -> None:
        """A worker wants to compute the gradient of that unit; all chunks before it are done."""
        self.leave(worker)
        self._since = self._clock()
        self._asking[worker] = unit
        if self._is_of_wave(unit):
            self._came.add(unit.partition)
            self._done[unit.partition] = max(self._done.get(unit.partition, 0), _chunk(unit))

    def push(self, worker: W, version: int = 0) -> bool:
        """A worker's update is there; False if it was given no model for it."""
        if self._given.pop(worker, None) is None:
            return False
        self._since = self._clock()
        self._pushed.append(worker)
        return True

    def applied(self, worker: W) -> None:
        """What `next` gave to be taken is."""
        self._given.pop(worker, None)

    def counts(self, unit: Unit) -> None:
        """A unit does by which nothing came: its partition asks for the next one."""

    def leave(self, worker: W) -> None:
        """It computes nothing now."""
        for units in (self._asking, self._given):
            units.pop(worker, None)
        self._pushed = [other for other in self._pushed if other != worker]

    def end(self, epoch: int, partition: int) -> None:
        """A partition has no more chunks."""
        self._since = self._clock()
        if self._is_of_wave(Unit(epoch, partition, 0)):
            self._done[partition] = ENDED

    def next(self, version: int = 0, at_once: bool = False) -> tuple[Literal["apply", "give", "later"], W] | None:
        """What to do now; to be asked again once that is done. None: to wait. One update is taken at a time."""
        while True:
            if self._pushed and TAKEN not in self._given.values():
                worker = self._pushed.pop(0)
                self._given[worker] = TAKEN
                return "apply", worker
            if self._is_complete():
                self._go_on()
                continue
            for worker, unit in self._asking.items():
                if self.passed(unit) or (self._is_of_wave(unit) and _chunk(unit) == self.step):
                    del self._asking[worker]
                    self._given[worker] = unit
                    return "give", worker
            self._look_at_the_time()
            for worker, unit in self._asking.items():
                if self._apart or not self._is_of_wave(unit):
                    del self._asking[worker]
                    return "later", worker
            return None

    # ------------------------------------------------------------------------------------------------------- parts

    def _is_of_wave(self, unit: Unit) -> bool:
        return self.wave is not None and unit.epoch == self.wave.epoch and unit.partition in self.wave.partitions

    def _is_complete(self) -> bool:
        wave = self.wave
        return wave is not None and all(self._done.get(each, 0) > self.step for each in wave.partitions)

    def _go_on(self) -> None:
        """To the next step, or wave."""
        assert self.wave is not None
        self.step += 1
        self._change()
        if all(self._done[each] == ENDED for each in self.wave.partitions):
            self.wave, self.step = self._wave_after(self.wave), 0
            self._done, self._narrow = {}, False

    def _wave_after(self, wave: Place) -> Place | None:
        first, epoch = wave.partitions.stop, wave.epoch
        if first == self._partitions:
            first, epoch = 0, epoch + 1
        if epoch == self._epochs.stop:
            return None
        return Place(epoch, range(first, min(first + self._width, self._partitions)))

    def _look_at_the_time(self) -> None:
        """Send home those that wait, if nothing has happened for long."""
        if self._apart or not self._asking or self._clock() - self._since <= self._patience_s:
            return
        assert self.wave is not None
        self._apart = True
        self._patience_s *= 2
        absent = [each for each in self.wave.partitions if each not in self._came and self._done.get(each) != ENDED]
        if absent:
            self._narrow = True
            self._width = max(1, len(self._came))


def _chunk(unit: Unit) -> int:
    return taken_apart(unit.chunk)[1]
