"""Units of work at one peer: an own update that comes second is taken back, and epochs that are over are forgotten.

computed --known--> gated               retained --another attempt came first--> withdrawn
         --else---> published, and retained if it is not the first attempt --everybody knows it--> released
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gossip.errors import MismatchError, hold
from gossip.events import Deliver, Effect, Negative, Release
from gossip.fields import COUNT_MAX
from gossip.identity import TOIL_MAX, Identities
from gossip.lanes.replicate import Replicator
from gossip.lanes.roster import Roster
from gossip.marks import Series
from gossip.messages import Advert, Mark, PeerId, Range, State, Unit


@dataclass
class Retained:
    """An own update that may have to be taken back."""

    unit: Unit
    attempt: int
    known_to: dict[PeerId, int] = field(default_factory=dict)
    """Readers that have it, and how far their lane was then: what they publish later is gated by it. Not those that
    adopt or are out of reach: they may come out of that without it, and publish the unit."""


class Units:
    """What one peer knows of units, in its own lane and in those of others."""

    def __init__(
        self,
        replicator: Replicator,
        roster: Roster,
        *,
        settle_s: float,
        segments_max: int,
        applies_own: bool,
        awaits: bool,
    ) -> None:
        """`applies_own`: own updates are in the own replica. `awaits`: epochs are dropped when all have as much."""
        self.identities = Identities()
        self.retained: dict[int, Retained] = {}
        """By number, in the own lane."""
        self.closing: dict[PeerId, int] = {}
        """How far each lane was here when the last was learned of epochs that are closed, and not dropped yet."""
        self.awaited: set[PeerId] = set()
        """Who must have as much before these are dropped."""
        self.withdrawn = 0
        """Own updates taken back because another attempt had come first."""
        self._replicator = replicator
        self._roster = roster
        self._settle_s = settle_s
        self._segments_max = segments_max
        self._applies_own = applies_own
        self._awaits = awaits

    def start(self, closed: int, units: int, marks: Mapping[PeerId, Iterable[Series]]) -> None:
        """Begin where so many epochs are over, with so many units that count; `marks` are of epochs that are not."""
        self.identities = Identities.told(marks, closed, units)

    # ---------------------------------------------------------------------------------------------- what is told to us

    def check_marks(self, message: Range) -> None:
        """Raise `MismatchError` where a run of marks costs more than one mark: if it reaches into others. And where
        more units would count than can be told."""
        total = self.identities.units + sum([series.size for series in message.marks])
        if total > COUNT_MAX:
            raise MismatchError(f"{total} units would count with theirs, at most {COUNT_MAX}")
        if len(message.marks) > 1 or (message.marks and message.marks[0].chunk < 0):
            toil = self.identities.toil(message.of, message.marks)
            if toil > TOIL_MAX:
                raise MismatchError(f"{toil} of their units lie among others of the same partition, at most {TOIL_MAX}")

    def note(self, message: Range) -> None:
        """These updates are merged here."""
        self.identities.note(message.of, message.marks)

    def noted(self, message: Range) -> None:
        """They were: if they are of epochs that are to be dropped, everybody must have as much."""
        known = self.identities
        if known.dropped < known.closed and any(series.epoch < known.closed for series in message.marks):
            self._await_everybody()

    def heard(self, advert: Advert) -> None:
        """Which of the updates that may have to be taken back its peer has; that may be fewer than it had."""
        seen = advert.frontiers.get(self._replicator.me, 0)
        for number, retained in self.retained.items():
            if seen < number:
                retained.known_to.pop(advert.peer, None)
            elif advert.peer not in self._roster.gone:
                retained.known_to.setdefault(advert.peer, advert.n)

    def adopt(self, state: State) -> None:
        """What the donor knew of units is what goes with its replica, but for the own updates that it had not seen."""
        me = self._replicator.me
        seen, before = state.frontiers.get(me, 0), self.identities
        self.identities = known = Identities.told(state.marks, state.closed, state.units)
        known.close(before.closed)
        known.drop(before.dropped, self._own())
        for number, retained in self.retained.items():
            if retained.unit.epoch < known.dropped:
                known.watch(retained.unit, (retained.attempt, me) if number <= seen else None)
        known.note(me, self._replicator.marks(seen, self._replicator.n))
        for retained in self.retained.values():
            if not known.knows(retained.unit):  # of a donor that has the update, and does not say of which unit it is
                known.note(me, (Mark(retained.unit, retained.attempt),))
        known.prune(self._own())
        self._await_everybody()

    def _own(self) -> list[Unit]:
        return [retained.unit for retained in self.retained.values()]

    # -------------------------------------------------------------------------------------------------------- the lane

    @property
    def undecided(self) -> bool:
        """An own update may have to be taken back."""
        return any(self._earlier(retained) for retained in self.retained.values())

    def retain(self, number: int, unit: Unit, attempt: int) -> None:
        """The own update of that number may have to be taken back."""
        self.retained[number] = Retained(unit, attempt)

    def withdraw(self, now: float) -> list[Effect]:
        """Take back what came second, and release what nobody can come before any more."""
        effects: list[Effect] = []
        lane, me = self._replicator, self._replicator.me
        for number, retained in list(self.retained.items()):
            for peer in (*self._roster.gone, *lane.pins):
                retained.known_to.pop(peer, None)
            earlier = self._earlier(retained)
            if any(self._roster.stands(other, self._settle_s, now) for other in earlier):
                mark = Mark(retained.unit, retained.attempt, withdraws=True)
                self.identities.note(me, (mark,))
                effects += lane.publish(Negative(number), (mark,))
                if self._applies_own:
                    effects.append(Deliver(me, lane.n, lane.n, Negative(number)))
                self.withdrawn += 1
            elif earlier or not self._settled(retained):
                continue
            effects.append(Release(number))
            del self.retained[number]
            self.identities.settle(retained.unit)
        return effects

    def _earlier(self, retained: Retained) -> list[PeerId]:
        """The lanes with an attempt of the same unit that goes before ours."""
        mine = (retained.attempt, self._replicator.me)
        return [lane for attempt, lane in self.identities.standing(retained.unit) if (attempt, lane) < mine]

    def _settled(self, retained: Retained) -> bool:
        """Every reader knows the unit, and all that it published before it did is known here."""
        for peer, member in self._roster.members.items():
            if not member.reads or (member.forgotten and len(self.retained) > self._segments_max):
                continue
            n = retained.known_to.get(peer)
            if n is None or (member.read and self._replicator.origins[peer].frontier < n):
                return False
        return True

    # --------------------------------------------------------------------------------------------- epochs that are over

    def close(self, epochs: int) -> bool:
        """What is known of these epochs is kept until everybody has as much of each lane as we have now.

        Then nobody holds an attempt that is to be taken back for one that it does not know of. Those that are out of
        reach may, as long as something is kept for them. What comes in when it is dropped is counted by itself
        (`identity`). Whether that is new to us.
        """
        if epochs <= self.identities.closed:
            return False
        self.identities.close(epochs)
        self._await_everybody()
        return True

    def _await_everybody(self) -> None:
        """We have learned something of epochs that are to be dropped."""
        self.closing = self._replicator.frontiers()
        self.awaited = set(self._roster.members) if self._awaits else set()

    def drop_closed(self) -> None:
        """Forget the units of epochs that are over, if everybody has as much of each lane."""
        if self.identities.dropped == self.identities.closed:
            return
        members = self._roster.members
        awaited = [peer for peer in self.awaited if not members[peer].forgotten]
        if not self._roster.gone.isdisjoint(awaited):
            return
        for peer in awaited:  # all at once: who had as much may have less again, of the lanes of the dead
            theirs = members[peer].frontiers
            if any(theirs.get(lane, 0) < n for lane, n in self.closing.items()):
                return
        self.identities.drop(self.identities.closed, self._own())
        self.closing, self.awaited = {}, set()

    def check(self) -> None:
        """What must hold between two events."""
        lane, known = self._replicator, self.identities
        known.check()
        for number, retained in self.retained.items():
            hold(1 <= number <= lane.n, "retained are updates of the own lane", number, retained, lane.n)
            hold(retained.attempt > 0, "no first attempt is retained", number, retained)
            hold(known.knows(retained.unit), "units of retained updates are known", number, retained)
        hold(len(set(self._own())) == len(self.retained), "no unit is retained twice", self.retained)
        hold(self.awaited <= self._roster.members.keys(), "only members are awaited", sorted(self.awaited))
        if known.dropped < known.closed:
            hold(lane.me in self.closing, "epochs are dropped when all have as much as somebody had", self.closing)
        frontiers = lane.frontiers() if self.closing else {}
        for name, n in self.closing.items():
            hold(n <= frontiers.get(name, 0), "no more is awaited than is here", name, n, frontiers)

    def check_known_to(self) -> None:
        """What must hold behind `withdraw`."""
        doubtful = self._roster.gone | self._replicator.pins.keys()
        for number, retained in self.retained.items() if doubtful else ():
            hold(doubtful.isdisjoint(retained.known_to), "who adopts or is gone may lack it", number, retained)
