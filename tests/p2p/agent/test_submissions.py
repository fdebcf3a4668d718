"""What becomes of updates that tasks hand over: each has its own outcome, whenever its turn comes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from gossip.arrays import Packed
from gossip.events import Computed, Event, Ticked
from gossip.messages import Unit
from p2p.agent.submissions import Outcome, Submissions

UPDATE = Packed.of({"w": np.zeros(1)})


class FakeRuntime:
    """Holds events while somebody reads the replica; a peer takes the first update of each unit."""

    def __init__(self) -> None:
        self.submissions = Submissions(self)  # type: ignore[arg-type]
        self.reading = False
        self._held: deque[Event] = deque()
        self._units: set[Unit | None] = set()

    def happen(self, event: Event) -> None:
        self._held.append(event)
        while self._held and not self.reading:
            self._step(self._held.popleft())

    def _step(self, event: Event) -> None:
        self.submissions.begin(event)
        if isinstance(event, Computed):
            if event.unit is not None and event.unit in self._units:
                self.submissions.known()
            self._units.add(event.unit)
        self.submissions.end()


def outcomes(*submissions: Any) -> list[Outcome | None]:
    return [submission.outcome for submission in submissions]


def test_an_update_is_published_unless_its_unit_was_before() -> None:
    submissions = FakeRuntime().submissions
    first, again, other, none = (
        submissions.submit(UPDATE, u) for u in (Unit(0, 0, 0), Unit(0, 0, 0), Unit(0, 0, 1), None)
    )
    assert outcomes(first, again, other, none) == [
        Outcome.PUBLISHED,
        Outcome.KNOWN,
        Outcome.PUBLISHED,
        Outcome.PUBLISHED,
    ]
    assert [submission.number for submission in (first, again, other, none)] == [1, 2, 3, 4]
    assert submissions.are_taken


def test_updates_that_wait_for_the_replica_have_no_outcome_yet() -> None:
    runtime = FakeRuntime()
    runtime.reading = True
    first, again = (runtime.submissions.submit(UPDATE, Unit(0, 0, 0)) for _ in range(2))
    assert outcomes(first, again) == [None, None]
    assert not runtime.submissions.are_taken
    runtime.reading = False
    runtime.happen(Ticked())
    assert outcomes(first, again) == [Outcome.PUBLISHED, Outcome.KNOWN]
    assert runtime.submissions.are_taken
