"""Updates that tasks hand over, and the outcome of each: it was published, or its unit had been published before.

    submit -> waits for its turn at the peer -> taken: published, or known already -> settled, by the discipline

The peer takes them one after the other, in the order in which they were handed over. The discipline, which is the
runtime's host, says when one's turn begins and ends, and what the peer found.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from gossip.arrays import Payload
from gossip.events import Computed, Event
from gossip.messages import Unit
from gossip.zmq.runtime import Runtime


class Outcome(Enum):
    """What the peer did with an update."""

    PUBLISHED = "published"
    KNOWN = "its unit was published before"


@dataclass(eq=False)
class Submission:
    """One update that was handed over."""

    number: int
    """Its place among all of this agent, from 1."""
    outcome: Outcome | None = None
    """None until the peer has taken it."""


class Submissions:
    """Those of one agent."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._count = 0
        self._waiting: deque[Submission] = deque()
        """For their turn at the peer."""
        self._current: Submission | None = None
        """The peer takes it now."""

    def submit(self, payload: Payload, unit: Unit | None = None, attempt: int = 0) -> Submission:
        """Hand an update to the peer; it may be taken at once, or when nobody reads the replica."""
        self._count += 1
        submission = Submission(self._count)
        self._waiting.append(submission)
        self._runtime.happen(Computed(payload, unit, attempt))
        return submission

    @property
    def are_taken(self) -> bool:
        """All that were handed over."""
        return not self._waiting and self._current is None

    def begin(self, event: Event) -> None:
        """The peer handles this event now."""
        if isinstance(event, Computed):
            self._current = self._waiting.popleft()

    def known(self) -> None:
        """The peer has found that the unit was published before."""
        assert self._current is not None
        self._current.outcome = Outcome.KNOWN

    def end(self) -> None:
        """The event is handled."""
        if self._current is not None and self._current.outcome is None:
            self._current.outcome = Outcome.PUBLISHED
        self._current = None
