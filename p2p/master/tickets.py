"""Bounded staleness: who may compute a gradient now, and whose update may be applied next.

A ticket is given with the model as it is then, version b, and is given back with the update. It is due: the update is
to be applied while the model's version is at most b + `max_staleness`. So that all can be, one after the other,

    a ticket is given    while there are at most `max_staleness` others
    an update is applied if the others can still be applied in time, after it

The ticket that is due first can be applied at any time, so nobody waits for ever; the others wait for a slow one, as in
stale synchronous parallel training (Ho et al. 2013), when it is due. Nothing is computed in vain.

Several attempts may compute the same unit of work, of which one counts: where Spark speculates, or a worker has died.
They share one place, which is due when the first of them is, so whichever comes first is in time. The tickets of the
others then lapse: they hold nobody up. So does one whose worker is taken for dead, since a later attempt at its
partition has gone on to another unit. Should its update come, it is applied if that does not delay the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from gossip.marks import Unit

W = TypeVar("W", bound=Hashable)
"""By which a worker is known."""
NO_UNIT = Unit(0, 0, 0)
"""Where nobody waits for anybody."""


class Turns(Protocol[W]):
    """Who says whose turn it is."""

    @property
    def waits(self) -> bool:
        """`next` is to be asked again after some time, also where nothing has happened."""
        ...

    def ask(self, worker: W, unit: Unit, attempt: int) -> None:
        """A worker wants to compute the gradient of that unit."""
        ...

    def push(self, worker: W, version: int) -> bool:
        """A worker's update is there, and the model at this version; False if it is not to be taken."""
        ...

    def applied(self, worker: W) -> None:
        """What `next` gave to be applied is."""
        ...

    def counts(self, unit: Unit) -> None:
        """A unit does, by another way than an update."""
        ...

    def leave(self, worker: W) -> None:
        """It computes nothing now."""
        ...

    def next(self, version: int, at_once: bool = False) -> tuple[Literal["apply", "give", "settle", "later"], W] | None:
        """What to do now, with the model at this version; to be asked again once that is done. None: to wait."""
        ...


@dataclass
class Ticket:
    """What one worker computes."""

    unit: Unit
    attempt: int
    version: int
    """Of the model that it is computed from."""
    pushed: bool = False
    """Its update is there."""
    taken: bool = False
    """It is being applied."""
    lapsed: bool = False
    """Nobody waits for it."""


@dataclass
class Asking(Generic[W]):
    """A worker that waits for a ticket."""

    worker: W
    unit: Unit
    attempt: int
    counts: bool = False
    """Its unit does by now: it is to be told so."""


class Tickets(Generic[W]):
    """Of one training."""

    def __init__(self, max_staleness: int | None) -> None:
        """None: nobody waits."""
        self._max = max_staleness
        self._given: dict[W, Ticket] = {}
        """By worker, the oldest first."""
        self._asking: deque[Asking[W]] = deque()

    waits = False
    """Nobody waits but for others."""

    def ask(self, worker: W, unit: Unit, attempt: int) -> None:
        """A worker wants to compute the gradient of a unit. Whatever it had before, it gave up, and so did an earlier
        attempt at the same partition, if it is not at the same unit."""
        self.leave(worker)
        for ticket in self._given.values():
            is_earlier = ticket.unit[:2] == unit[:2] and ticket.attempt < attempt
            if is_earlier and ticket.unit != unit and not ticket.pushed:
                ticket.lapsed = self._max is not None
        self._asking.append(Asking(worker, unit, attempt))

    def push(self, worker: W, version: int) -> bool:
        """A worker's update is there, and the model at this version; False if it has no ticket, and would need one."""
        ticket = self._given.get(worker)
        if ticket is None:
            if self._max is not None:
                return False
            ticket = self._given[worker] = Ticket(NO_UNIT, 0, version)
        if ticket.lapsed and not self._in_time([*self._due().values(), self._due_at(ticket)], version):
            return False
        ticket.pushed, ticket.lapsed = True, False
        return True

    def applied(self, worker: W) -> None:
        """What `next` gave to be applied is."""
        self.counts(self._given.pop(worker).unit)

    def leave(self, worker: W) -> None:
        """It computes nothing now."""
        self._given.pop(worker, None)
        self._asking = deque(asking for asking in self._asking if asking.worker != worker)

    def counts(self, unit: Unit) -> None:
        """A unit does: whoever computes it, or waits for that, does so in vain."""
        if self._max is not None:
            for ticket in self._given.values():
                ticket.lapsed = ticket.lapsed or ticket.unit == unit
            for asking in self._asking:
                asking.counts = asking.counts or asking.unit == unit

    def next(self, version: int, at_once: bool = False) -> tuple[Literal["apply", "give", "settle"], W] | None:
        """What to do now, with the model at this version; to be asked again once that is done. None: to wait.

        While an update is being applied, models are given; the next one is applied after `applied`, or `leave`. Where
        staleness has no bound, more may be `at_once`.

        "give" may be for a unit that counts by now. "settle" is for an update that was pushed before another one of its
        unit was applied: if that does not count after all, it is to be pushed again.
        """
        is_taken = any(ticket.taken for ticket in self._given.values())
        for worker, ticket in self._given.items():
            if ticket.lapsed and ticket.pushed:
                ticket.pushed = False
                return "settle", worker
            may_be_taken = not ticket.taken if at_once and self._max is None else not is_taken
            if ticket.pushed and may_be_taken and self._may_apply(ticket, version):
                ticket.taken = True
                return "apply", worker
        due = {} if self._max is None else self._due()
        for place, asking in enumerate(self._asking):
            is_next = place == 0 and (self._max is None or len(due) <= self._max)
            if is_next or asking.counts or asking.unit in due:
                del self._asking[place]
                self._given[asking.worker] = Ticket(asking.unit, asking.attempt, version, lapsed=asking.counts)
                return "give", asking.worker
        return None

    def _may_apply(self, ticket: Ticket, version: int) -> bool:
        """The others can be applied in time after it, one by one."""
        return self._max is None or self._in_time(
            [due for unit, due in self._due().items() if unit != ticket.unit], version + 1
        )

    def _due(self) -> dict[Unit, int]:
        """By unit, the last version of the model at which its update may be applied."""
        due: dict[Unit, int] = {}
        for ticket in self._given.values():
            if not ticket.lapsed:
                due[ticket.unit] = min(self._due_at(ticket), due.get(ticket.unit, self._due_at(ticket)))
        return due

    def _due_at(self, ticket: Ticket) -> int:
        return ticket.version + (self._max or 0)

    @staticmethod
    def _in_time(due: list[int], version: int) -> bool:
        """Whether updates can be applied one after the other, beginning with the model at this version."""
        return all(last >= version + place for place, last in enumerate(sorted(due)))
