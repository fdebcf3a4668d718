"""A peer that was just heard is not taken for dead; one that was not heard for long is, and is forgotten in the end."""

from __future__ import annotations

from typing import Final

from gossip.events import Joined, Progressed, Started
from gossip.membership import LATE_S, Membership
from gossip.messages import Ack, Advert, Bulk, PeerId, Ping, State
from gossip.sim.oracles.seen import SLACK_S, Moments, Step, View, ViolationError

SLEPT_S: Final = 5.0
"""Who comes so late was surely late for one of its own deadlines."""
UNHEARD_SLACK_S: Final = 1.0
"""Until who is out of reach is noticed: the longest time between two looks."""


class BlamesNobodyForItsOwnPause:
    """Who was stopped itself blames nobody for that time; a farewell is none of that."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.begins.append(self._begin)

    def _begin(self, step: Step) -> None:
        view, message = self._view, step.message
        if step.now <= view.at + LATE_S + UNHEARD_SLACK_S + SLEPT_S:
            return
        blamed = view.peer.replicator.away - view.away
        says = message.rumors if isinstance(message, Advert | Ping | Ack) else ()
        if blamed - {rumor.about for rumor in says if rumor.about == rumor.by}:
            raise ViolationError(f"{view.me} was stopped itself, and takes {blamed} for dead")


class LooksAfterStrangers:
    """Lanes are looked after whose peers nobody introduced; and since when who is gone is remembered here."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.begins.append(self._begin)

    def _begin(self, step: Step) -> None:
        view, me, peer, gone, now = self._view, self._view.me, self._view.peer, self._view.gone, step.now
        if gone.since.keys() != peer.roster.gone:
            if gone.since.keys() - peer.roster.gone:
                gone.returned_at = now
            gone.since = {other: gone.since.get(other, now) for other in peer.roster.gone}
        elif not (isinstance(step.event, Joined | Started) or isinstance(step.message, Advert | State)):
            return
        lanes = set(peer.replicator.origins)
        for other, advert in view.adverts.items():
            if other not in peer.roster.gone:
                lanes |= advert.frontiers.keys()
        strangers = lanes - peer.members.keys() - {me}
        if strangers != peer.roster.strangers.keys() and peer._started:
            raise ViolationError(f"{me} knows lanes of {strangers}, and looks after {peer.roster.strangers}")
        gone.strangers = {lane: gone.strangers.get(lane, now) for lane in strangers}


class TakesForDeadWhomItDoesNotHear:
    """Who was just heard is not taken for dead, and who was not heard for long is."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._heard_at: dict[PeerId, float] = {}
        """By contact, or when it became one, or when we slept last."""
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        me, peer, now, heard_at = self._view.me, self._view.peer, step.now, self._heard_at
        if not isinstance(peer.membership, Membership):
            return
        away = peer.replicator.away
        if step.slept:
            for other in heard_at:
                if other not in away:
                    heard_at[other] = now
        for other in peer.members:
            if other not in heard_at:
                heard_at[other] = now
        self._hear(step)
        unheard_s = peer.membership.detection.unheard_s
        for other, at in heard_at.items():
            if now > at + unheard_s + UNHEARD_SLACK_S and other not in away:
                raise ViolationError(f"{me} has not heard {other} since {at}, and takes it for alive")

    def _hear(self, step: Step) -> None:
        me, event, message = self._view.me, step.event, step.message
        by = event.peer if isinstance(event, Progressed) and event.arrived else getattr(message, "peer", None)
        if by is None or by not in self._heard_at or isinstance(message, Bulk):
            return
        says = message.rumors if isinstance(message, Advert) else ()
        if by in self._view.peer.replicator.away and not any(by == rumor.about == rumor.by for rumor in says):
            raise ViolationError(f"{me} hears {by}, and takes it for dead")
        self._heard_at[by] = step.now


class ForgetsInTime:
    """Nobody is forgotten too soon, or by one of those who must wait for another to do so; but in the end."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._forgotten: set[PeerId] = set()
        self._smallest_since = view.at
        """Since when nobody who is gone has a smaller name than all who are here."""
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        me, peer = self._view.me, self._view.peer
        if forgotten := {other for other, member in peer.members.items() if member.forgotten} - peer.roster.gone:
            raise ViolationError(f"{me} has forgotten {forgotten}, and hears them")
        if not peer.roster.gone:
            self._smallest_since = step.now
            self._forgotten.clear()
            return
        smallest = min([me, *(p for p in peer.members if p not in peer.roster.gone)]) <= min(peer.roster.gone)
        if not smallest:
            self._smallest_since = step.now
        forgotten = {other for other in peer.roster.gone if peer.members[other].forgotten}
        self._check_soon(step.now, forgotten - self._forgotten, smallest)
        self._forgotten = forgotten
        held = peer.replicator.readers.keys() | peer.replicator.pins.keys()
        if held & {other for other, member in peer.members.items() if member.forgotten}:
            raise ViolationError(f"{me} keeps something for {forgotten}, which it has forgotten")
        self._check_late(step.now, peer.roster.gone - forgotten)

    def _check_soon(self, now: float, newly: set[PeerId], smallest: bool) -> None:
        me, peer, kept = self._view.me, self._view.peer, self._view.kept + 1
        if kept > 2 * peer.settings.segments_max:
            return
        for other in newly:
            at = peer.members[other].departed_at
            if at is None or now < at + self._patience_s(kept) - SLACK_S:
                raise ViolationError(f"{me} forgets {other}, which is gone since {at}")
            if not smallest:
                raise ViolationError(f"{me} forgets {other}, and is not the smallest")

    def _check_late(self, now: float, remembered: set[PeerId]) -> None:
        me, peer, kept = self._view.me, self._view.peer, len(self._view.peer.replicator.segments)
        for other in remembered:
            at = peer.members[other].departed_at
            if kept > 2 * peer.settings.segments_max or at is None:
                raise ViolationError(f"{me} keeps {kept} segments, and what {other} lacks")
            if now > max(at, self._smallest_since) + self._patience_s(kept) + SLACK_S:
                raise ViolationError(f"{me} still keeps what {other} lacks, which is gone since {at}")

    def _patience_s(self, kept: int) -> float:
        settings = self._view.peer.settings
        return settings.forget_s if kept <= settings.segments_max else settings.settle_s
