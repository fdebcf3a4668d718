"""Events that write to the replica, from when they happen until they have their turn there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gossip.events import Computed, Event, Received
from gossip.messages import PeerId, Range, State
from gossip.zmq.segments import LentFile, LentSum

HELD_RETRY_S = 0.001
"""How soon to try again when the replica is being read."""


class Replica(Protocol):
    """What is written to, and read by others."""

    def acquire(self, event: Event) -> bool:
        """May `event` be merged now? If so, nobody reads the replica until `release`."""
        ...

    def release(self) -> None: ...


class Held:
    """They wait in order. The files that they came in are closed when they were dealt with."""

    def __init__(self, replica: Replica, deal: Callable[[Event], None]) -> None:
        """`deal` with an event while nobody reads the replica."""
        self._events: deque[Event] = deque()
        self._replica = replica
        self._deal = deal
        self.congested = False
        """Events of `Computed` wait."""

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Put it behind those that wait."""
        self._events.append(event)

    def release(self) -> None:
        """Deal with what may have its turn now.

        Updates of the own lane and ranges of others do not wait for each other, but each kind keeps its order.
        """
        blocked: set[type] = set()
        for _ in range(len(self._events)):
            event = self._events.popleft()
            waits = isinstance(event, Computed) and self.congested
            if type(event) in blocked or waits or not self._replica.acquire(event):
                blocked.add(type(event))
                self._events.append(event)
                continue
            try:
                self._deal(event)
            finally:
                self._replica.release()
                _give_back(event)

    @property
    def wait_s(self) -> float:
        """How soon to try again."""
        return HELD_RETRY_S if self._events else math.inf

    def senders(self) -> list[PeerId]:
        """Whose messages wait."""
        return [event.message.peer for event in self._events if isinstance(event, Received)]

    def close(self) -> None:
        """Drop what waits."""
        while self._events:
            _give_back(self._events.popleft())


def writes(event: Event) -> bool:
    """Whether it may write to the replica."""
    return isinstance(event, Computed) or (isinstance(event, Received) and isinstance(event.message, Range | State))


def _give_back(event: Event) -> None:
    """Close the file that a range came in."""
    if isinstance(event, Received) and isinstance(event.message, Range | State):
        payload = event.message.payload
        if isinstance(payload, LentFile | LentSum):
            payload.close()
