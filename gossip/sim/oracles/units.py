"""A peer knows exactly the units that its replica holds; a unit is taken back only for an earlier attempt.

No update is released, and no epoch dropped, that some peer lacks: an epoch is dropped when all, by the newest word of
each, have as much of it.
"""

from __future__ import annotations

from gossip.events import Closed, Deliver, Negative, Release, Started
from gossip.messages import PeerId, Range, Unit
from gossip.sim.oracles.seen import Moments, Step, View, ViolationError


class KnowsTheUnitsItHolds:
    """What it knows is what its replica holds."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        if not (step.merged or isinstance(step.event, Closed)):
            return
        me, peer = self._view.me, self._view.peer
        known, held = peer.identities, _standing(self._view)
        for unit, attempts in held.items():
            if unit.epoch >= known.dropped and known.standing(unit) != attempts:
                raise ViolationError(
                    f"{me} takes {set(known.standing(unit))} for the attempts of {tuple(unit)}, and has {attempts}"
                )
            if unit.epoch >= known.dropped and not known.knows(unit):
                raise ViolationError(f"{me} does not know {tuple(unit)}")
        own = {retained.unit for retained in peer.units.retained.values()}
        for place, of_partition in known._watched.items():
            for chunk, watched in of_partition.items():
                if len(watched.standing) < 2 and Unit(*place, chunk) not in own:
                    raise ViolationError(f"{me} still watches {(*place, chunk)}, of which {watched.standing} stand")
        if known.dropped == 0 and known.units != sum(map(bool, held.values())):
            raise ViolationError(f"{me} counts {known.units} units, and has {sum(map(bool, held.values()))}")


class TakesBackOnlyWhatAnotherHadFirst:
    """An earlier attempt stands in the same replica, of one that lives or whose lane is agreed on."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.effects[Deliver].append(self._delivered)

    def _delivered(self, step: Step, effect: Deliver) -> None:
        if not isinstance(effect.payload, Negative):
            return
        view, me, peer = self._view, self._view.me, self._view.peer
        ((unit, attempt, _),) = view.outside.marks[me][effect.payload.number]
        frontiers = peer.replicator.frontiers()
        agreed = step.now - 3 * peer.settings.settle_s
        for lane, entries in view.outside.marks.items():
            if view.gone.since.get(lane, float("-inf")) > agreed:
                continue
            for entry in entries[1 : frontiers.get(lane, 0) + 1]:
                if any(mark.unit == unit and (mark.attempt, lane) < (attempt, me) for mark in entry):
                    return
        raise ViolationError(f"{me} takes back {tuple(unit)}, of which it has no earlier attempt")


class ReleasesOnlyWhatAllReadersHave:
    """What is not taken back stays: all readers have it, and nobody had published an earlier attempt before."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.effects[Release].append(self._released)

    def _released(self, step: Step, effect: Release) -> None:
        number = effect.number
        if any(
            isinstance(e, Deliver) and isinstance(e.payload, Negative) and e.payload.number == number
            for e in step.effects
        ):
            return
        me, peer, outside = self._view.me, self._view.peer, self._view.outside
        ((unit, attempt, _),) = outside.marks[me][number]
        frontiers, many = peer.replicator.frontiers(), len(peer.units.retained) > peer.settings.segments_max
        for other, member in peer.members.items():
            host = outside.swarm.peers[other]
            if not member.reads or not host.alive or (member.forgotten and many):
                continue
            if host.peer.replicator.frontiers().get(me, 0) < number:
                raise ViolationError(f"{me} releases {number}, which {other} lacks")
            for entry in outside.marks.get(other, ())[frontiers.get(other, 0) + 1 :]:
                if any(mark.unit == unit and (mark.attempt, other) < (attempt, me) for mark in entry):
                    raise ViolationError(f"{me} releases {number}, of which {other} published an earlier attempt")


class DropsWhatAllHave:
    """Epochs are dropped when all are heard to have what this one had when it learned that they are over, and do."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._closed = 0
        self._waits_for: set[PeerId] = set()
        """Whom it knew when it heard of that: who comes later has published nothing of those epochs."""
        self._dropped = 0
        self._learned: dict[PeerId, int] = {}
        """Where the lanes stood when something was learned of epochs that are over and not dropped,"""
        self._awaited: set[PeerId] = set()
        """and whom it knew then."""
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        peer, known = self._view.peer, self._view.peer.identities
        if not isinstance(step.event, Started):
            self._check_heard(step)
        if known.closed != self._closed:
            self._closed, self._waits_for = known.closed, set(peer.members)
        if known.dropped != self._dropped:
            if not step.adopted and not isinstance(step.event, Started):
                self._check_decided()
                self._check_held()
            self._dropped = known.dropped

    def _check_heard(self, step: Step) -> None:
        """It has heard that all have as much.

        Nobody needs to have what it took back at that: it is a unit less, whoever has dropped the epoch.
        """
        me, peer, adverts, message = self._view.me, self._view.peer, self._view.adverts, step.message
        known, lane = peer.identities, peer.replicator
        if known.closed < self._closed or known.dropped < self._dropped:
            raise ViolationError(f"{me} takes epochs for open that were over: {known.closed}, {known.dropped}")
        late = isinstance(message, Range) and step.merged and any(s.epoch < self._closed for s in message.marks)
        if known.closed > self._closed or step.adopted or late:
            withdrawn = sum(isinstance(e, Deliver) and isinstance(e.payload, Negative) for e in step.effects)
            self._learned, self._awaited = {**lane.frontiers(), me: lane.n - withdrawn}, set(peer.members)
        if known.dropped == self._dropped or step.adopted:
            return
        for other in self._awaited:
            theirs = adverts[other].all_frontiers if other in adverts else {}
            lacks = [origin for origin, n in self._learned.items() if theirs.get(origin, 0) < n]
            if not peer.members[other].forgotten and (other in peer.roster.gone or lacks):
                raise ViolationError(f"{me} drops {known.dropped} epochs, and has not heard that {other} has as much")

    def _check_decided(self) -> None:
        """What is still to be decided of the epochs that it drops is still known."""
        peer = self._view.peer
        own = {retained.unit for retained in peer.units.retained.values()}
        for unit, attempts in _standing(self._view).items():
            open_still = self._dropped <= unit.epoch < peer.identities.dropped and (len(attempts) > 1 or unit in own)
            if open_still and peer.identities.standing(unit) != attempts:
                raise ViolationError(f"{self._view.me} drops {tuple(unit)}, of which {attempts} stand")

    def _check_held(self) -> None:
        """Everybody has what this one had of them."""
        me, peer, outside = self._view.me, self._view.peer, self._view.outside
        epochs, frontiers = peer.identities.dropped, peer.replicator.frontiers()
        for other, host in outside.swarm.live().items():
            member = peer.members.get(other)
            if member is None or member.forgotten or not host.peer.ready or other not in self._waits_for:
                continue
            theirs = host.peer.replicator.frontiers()
            for lane, entries in outside.marks.items():
                lacks = [
                    mark for entry in entries[theirs.get(lane, 0) + 1 : frontiers.get(lane, 0) + 1] for mark in entry
                ]
                if any(mark.unit.epoch < epochs and not mark.withdraws for mark in lacks):
                    raise ViolationError(f"{me} drops {epochs} epochs, of which {other} lacks some in lane {lane}")


def _standing(view: View) -> dict[Unit, set[tuple[int, PeerId]]]:
    """The attempts that count in its replica, also where there is none left."""
    frontiers = view.peer.replicator.frontiers()
    found: dict[Unit, set[tuple[int, PeerId]]] = {}
    for lane, entries in view.outside.marks.items():
        for entry in entries[1 : frontiers.get(lane, 0) + 1]:
            for unit, attempt, withdraws in entry:
                attempts = found.setdefault(unit, set())
                if withdraws:
                    attempts.discard((attempt, lane))
                else:
                    attempts.add((attempt, lane))
    return found
