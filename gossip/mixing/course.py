"""Where a peer stands in a training: its phase, its era and round, and when it may go on.

    at rest --Resumed--> training --Settling--> settling --Exhausted--> at rest

Rounds are counted on the wire by their *place*: the number of the era, which the driver program gives out, and the
round within it. So no peer takes a round of the training for one of the consensus that comes after it.
"""

from __future__ import annotations

from enum import Enum, auto

from gossip.errors import hold
from gossip.events import Settling

ERA = 1 << 32
"""More than the rounds of any era."""


class Phase(Enum):
    """What a peer is about."""

    RESTING = auto()
    TRAINING = auto()
    SETTLING = auto()


class Course:
    """One peer's."""

    def __init__(self) -> None:
        self.phase = Phase.RESTING
        self.era = 0
        self.rounds = 0
        """Begun, in all eras."""
        self.settling: Settling | None = None
        """How far the training is to be completed before the consensus begins; None once it has."""
        self.tasks = 0
        """That train here."""
        self.idle_at = float("-inf")
        """When it may follow rounds without a step."""
        self.began_at = float("-inf")
        """When the last round began."""
        self.fresh = False
        """Something was computed since then."""
        self.still = 0
        """Rounds in a row that moved nothing."""
        self.give_up_at: float | None = None
        """When to say that this peer has drained, come what may; None if nobody asks."""
        self._first = 0
        """The first round of the era."""

    @property
    def round(self) -> int:
        """The next one, within the era."""
        return self.rounds - self._first

    @property
    def place(self) -> int:
        """Of the round that comes next, as neighbors are told."""
        return self.era * ERA + self.round

    def enter(self, era: int) -> bool:
        """Go over to that era; whether it is another one."""
        if era == self.era:
            return False
        self.era, self._first = era, self.rounds
        return True

    def train(self, idle_at: float) -> None:
        """A training begins."""
        self.phase, self.settling, self.give_up_at = Phase.TRAINING, None, None
        self.idle_at = float("inf") if self.tasks else idle_at

    def settle(self, event: Settling) -> None:
        """All steps are taken. Who knows of it already is told nothing new."""
        if self.phase is not Phase.SETTLING or event.era != self.era:
            self.phase, self.settling = Phase.SETTLING, event
            self.give_up_at = None

    def rest(self, give_up_at: float) -> None:
        """No more rounds are begun here."""
        self.phase, self.settling = Phase.RESTING, None
        self.give_up_at = give_up_at

    def employ(self, tasks: int, idle_at: float) -> None:
        """So many tasks train here now."""
        self.tasks = tasks
        self.idle_at = float("inf") if tasks else idle_at

    def computed(self, idle_at: float) -> None:
        """A task has handed over a step."""
        self.fresh = True
        self.still = 0
        self.idle_at = max(self.idle_at, idle_at)

    def begin(self, now: float) -> None:
        """A round begins."""
        self.began_at = now
        self.fresh = False
        self.rounds += 1

    @property
    def trains(self) -> bool:
        """Its rounds are those of a training, not of the consensus after it."""
        return self.phase is Phase.TRAINING or self.settling is not None

    def check(self) -> None:
        """What must hold between two events."""
        hold(0 <= self.round < ERA, "rounds are of their era", self.rounds, self._first)
        settles = self.settling is None or self.phase is Phase.SETTLING
        hold(settles, "a training is completed while it settles", self.phase, self.settling)
        drains = self.give_up_at is None or self.phase is Phase.RESTING
        hold(drains, "only who rests drains", self.phase, self.give_up_at)
        works = self.tasks == 0 or self.idle_at == float("inf")
        hold(self.tasks >= 0 and works, "who has tasks is not idle", self.tasks, self.idle_at)
        hold(self.still >= 0, "rounds that moved nothing are counted", self.still)
