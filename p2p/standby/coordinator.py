"""The coordinator of one member of a group: it applies entries as the group agrees on them, and nothing else.

a feeder: submit -> an entry -> the group -> take, here and at every member -> descent
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossip.arrays import Array, Packed
from gossip.errors import UsageError
from gossip.marks import Unit
from p2p import parcel
from p2p.adapters.model import Model
from p2p.adapters.watch import is_nothing
from p2p.master.coordinator import Coordinator
from p2p.server.any_update import flatten, inflate
from p2p.standby.entries import Fed, Held, NoNumber, Update, packed, unpacked
from p2p.worker.job import Descent


@dataclass(frozen=True)
class State:
    """All that descents have made so far."""

    skeleton: bytes
    arrays: dict[str, Array]
    descent: Descent | None
    applied: set[Unit]
    fed_units: set[Hashable]
    fed: int
    dropped: int
    version: int


@dataclass(frozen=True)
class Outcome:
    """Of an entry."""

    new: bool
    """It was the first of its unit, and not nothing."""
    stale: int = 0
    """Updates applied between the model that it was computed from, and it."""
    error: Exception | None = None
    """What descent raised."""


@dataclass
class WorkerFigures:
    """Of a worker whose updates were applied, at whichever master they came."""

    staleness: list[int] = field(default_factory=list)
    """Of each update."""
    seen: int = 0
    """Updates in the model that the last one was computed from."""
    bytes_out: int = 0
    """Of its updates."""
    bytes_in: int = 0
    """Of a model for each of them."""


class GroupCoordinator(Coordinator):
    """See `Coordinator`."""

    offer: Callable[[bytes, str], Outcome]
    """Have the group agree on an entry of this name, and wait until it is applied here. Of the driver program."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        """See `Coordinator`."""
        super().__init__(*arguments, **others)
        self.workers: dict[str, WorkerFigures] = {}
        """By name."""

    def submit(
        self,
        update: Any,
        unit: Hashable | None = None,
        worker: str = "",
        merged_at: int | None = None,
        *,
        checked: bool = False,
        also: Sequence[Unit] = (),
        left_out: int = 0,
    ) -> bool:
        """Apply one update, at all members of the group; see `Coordinator.submit`."""
        if self.applies_now:
            raise UsageError(f"submit() for {worker or 'a feeder'} was called from descent, expected other threads")
        if is_nothing(update):
            return False
        name, arrays = os.urandom(8).hex(), Packed.of(flatten(update))
        head = Fed(
            offer=name,
            worker=worker,
            version=merged_at,
            checked=checked,
            unit=parcel.dumps(name if unit is None else unit),
            layout=arrays.layout,
        )
        outcome = self.offer(packed(head, arrays.buffer), name)
        if outcome.error is not None:
            raise outcome.error
        return outcome.new

    def take(self, data: bytes) -> Outcome:
        """Apply an entry."""
        head, arrays = unpacked(data)
        before = self.version
        try:
            new = self._take_entry(head, bytearray(arrays))
        except Exception as error:  # noqa: BLE001 - the training has ended by it, and who waits is told
            return Outcome(False, error=error)
        stale = max(0, before - head.version) if isinstance(head, Update) else 0
        if new and isinstance(head, Update):
            figures = self.workers.setdefault(head.worker, WorkerFigures())
            figures.staleness.append(stale)
            figures.seen = head.version
            figures.bytes_out += head.layout.nbytes
            figures.bytes_in += self.served.snapshots.current.nbytes
        return Outcome(new, stale)

    def _take_entry(self, head: Held, arrays: bytearray) -> bool:
        match head:
            case Update():
                update, _ = inflate(head.layout.views(np.frombuffer(arrays, np.uint8)))
                whose = f"worker {head.worker}"
                return super().submit(
                    update, head.unit, whose, head.version, checked=True, also=head.also, left_out=head.bad
                )
            case Fed():
                update, _ = inflate(head.layout.views(np.frombuffer(arrays, np.uint8)))
                unit = parcel.loads(head.unit)
                return super().submit(update, unit, head.worker, head.version, checked=head.checked)
            case NoNumber():
                self.drop(head.units, head.bad)
                return True
            case _:
                return False

    def state(self) -> bytes:
        """All that was applied so far, as a parcel."""
        with self.between_updates():
            model = self.served.model
            return parcel.dumps(
                State(
                    skeleton=model.skeleton(),
                    arrays=model.arrays(),
                    descent=self._descent,
                    applied=self.applied,
                    fed_units=self._fed,
                    fed=self.fed,
                    dropped=self.dropped,
                    version=self.version,
                )
            )

    def become(self, sent: bytes) -> None:
        """Have applied what another member has."""
        state: State = parcel.loads(sent)
        with self.between_updates():
            self._descent, self.applied, self._fed = state.descent, state.applied, state.fed_units
            self.fed, self.dropped = state.fed, state.dropped
            self.served.become(Model.from_skeleton(state.skeleton), state.arrays, state.version)
