"""Bounded staleness: who may compute a gradient now, and whose update may be applied next.

A ticket is given with the model as it is then, version b, and is given back with the update. It is due: the update is
to be applied while the model's version is at most b + `max_staleness`. So that all can be, one after the other,

    a ticket is given    while there are at most `max_staleness` others
    an update is applied if the others can still be applied in time, after it

The ticket that is due first can be applied at any time, so nobody waits for ever; the others wait for a slow one, as in
stale synchronous parallel training (Ho et al. 2013), when it is due. Nothing is computed in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from gossip.marks import Unit

W = TypeVar("W", bound=Hashable)
"""By which a worker is known."""
Where = tuple[int, int]
"""Epoch and partition."""


class Turns(Protocol[W]):
    """Who says whose turn it is."""

    @property
    def waits(self) -> bool:
        """`next` is to be asked again after some time, also where nothing has happened."""
        ...

    def ask(self, worker: W, unit: Unit, attempt: int) -> None:
        """A worker wants to compute the gradient of that unit."""
        ...

    def push(self, worker: W) -> bool:
        """A worker's update is there; False if it is not to be taken."""
        ...

    def leave(self, worker: W) -> None:
        """It computes nothing now."""
        ...

    def next(self, version: int) -> tuple[Literal["apply", "give", "later"], W] | None:
        """What to do now, with the model at this version; to be asked again once that is done. None: to wait."""
        ...


@dataclass
class Ticket:
    """What one worker computes."""

    where: Where
    attempt: int
    version: int
    """Of the model that it is computed from."""
    pushed: bool = False
    """Its update is there."""


class Tickets(Generic[W]):
    """Of one training."""

    def __init__(self, max_staleness: int | None) -> None:
        """None: nobody waits."""
        self._max = max_staleness
        self._given: dict[W, Ticket] = {}
        """By worker, the oldest first."""
        self._asking: deque[tuple[W, Where, int]] = deque()

    waits = False
    """Nobody waits but for others."""

    def ask(self, worker: W, unit: tuple[int, ...], attempt: int) -> None:
        """A worker wants to compute a gradient of that partition. Whatever it had before, it gave up, as did an earlier
        attempt at the same partition."""
        self.leave(worker)
        where = unit[0], unit[1]
        for other, ticket in list(self._given.items()):
            if ticket.where == where and ticket.attempt < attempt and not ticket.pushed:
                del self._given[other]
        self._asking.append((worker, where, attempt))

    def push(self, worker: W) -> bool:
        """A worker's update is there; False if it has no ticket any more, and would need one."""
        if worker not in self._given:
            if self._max is not None:
                return False
            self._given[worker] = Ticket((0, 0), 0, 0)
        self._given[worker].pushed = True
        return True

    def leave(self, worker: W) -> None:
        """It computes nothing now."""
        self._given.pop(worker, None)
        self._asking = deque(asking for asking in self._asking if asking[0] != worker)

    def next(self, version: int) -> tuple[Literal["apply", "give"], W] | None:
        """What to do now, with the model at this version; to be asked again once that is done. None: to wait."""
        for worker, ticket in self._given.items():
            if ticket.pushed and self._may_apply(worker, version):
                del self._given[worker]
                return "apply", worker
        if self._asking and (self._max is None or len(self._given) <= self._max):
            worker, where, attempt = self._asking.popleft()
            self._given[worker] = Ticket(where, attempt, version)
            return "give", worker
        return None

    def _may_apply(self, worker: W, version: int) -> bool:
        """The others can be applied in time after it, one by one."""
        if self._max is None:
            return True
        due = sorted(ticket.version + self._max for other, ticket in self._given.items() if other != worker)
        return all(last >= version + 1 + place for place, last in enumerate(due))
