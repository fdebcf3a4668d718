"""A peer that adopts has a reason, waits until all have pinned, takes the one that it waits for, and waits no
longer than it may."""

from __future__ import annotations

from collections.abc import Mapping

from gossip.events import Adopt, Deliver, Progressed
from gossip.lanes.adopt import GIVE_UP_S, REPEAT_S, Adopter
from gossip.lanes.roster import RETURN_S
from gossip.messages import PeerId, Pin, Pinned, Range, State, StateRequest, Unknown, Unpin
from gossip.sim.oracles.seen import SLACK_S, Adoption, Moments, Step, View, ViolationError


class AdoptsForAReason:
    """Who adopts was lost or has less of the dead lanes; it asks one that lives, has a replica, and most of these."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._needed = False
        """It was to adopt a replica before."""
        moments.sends[Pin].append(self._begins)
        moments.sends[StateRequest].append(self._begins)
        moments.answers[Unknown].append(self._refused)
        moments.ends.append(self._look)

    def _begins(self, step: Step, to: PeerId, message: Pin | StateRequest) -> None:
        view, me, peer, now = self._view, self._view.me, self._view.peer, step.now
        if message.k == view.adoption.k:
            return
        donor = message.donor if isinstance(message, Pin) else to
        advert = view.adverts.get(donor)
        if donor in peer.roster.gone or advert is None or not advert.ready:
            raise ViolationError(f"{me} wants the replica of {donor}, which is dead or has none")
        best = _best(now, view)
        if best is not None and peer.ready and best != donor:
            raise ViolationError(f"{me} wants the replica of {donor}, and {best} has more of the dead lanes")
        view.adoption = Adoption(message.k, donor, now + GIVE_UP_S, asked=set(peer.roster.readable()))

    def _refused(self, step: Step, message: Unknown) -> None:
        me, peer, other, frontier = self._view.me, self._view.peer, message.peer, message.frontier
        origin = peer.replicator.origins.get(other)
        adopts = not peer.adopter.agrees or peer.adopter.needed or peer.adopter.under_way
        if origin is not None and origin.frontier == frontier and not adopts:
            raise ViolationError(f"{other} does not know what follows {frontier}, and {me} does not adopt")

    def _look(self, step: Step) -> None:
        me, peer, adopter, message = self._view.me, self._view.peer, self._view.peer.adopter, step.message
        if not isinstance(adopter, Adopter):
            return
        if adopter.preferred is not None and not adopter.needed:
            raise ViolationError(f"{me} prefers {adopter.preferred}, and does not adopt")
        best = _best(step.now, self._view)
        if best is not None and peer.ready and not step.stopped and not (adopter.needed or adopter.under_way):
            raise ViolationError(f"{me} has less of the dead lanes than {best}, and does not adopt")
        if adopter.needed and peer.ready and (not self._needed or step.stopped or step.adopted):
            origin = peer.replicator.origins.get(message.peer) if isinstance(message, Unknown) else None
            lost = isinstance(message, Unknown) and origin is not None and origin.frontier == message.frontier
            if best is None and not lost:
                raise ViolationError(f"{me} is to adopt a replica, for no reason")
        self._needed = adopter.needed


class GivesUpInTime:
    """An adoption goes on while it may come to an end, and no longer; who gives up tells all whom it had asked."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.happens[Progressed].append(self._progressed)
        moments.ends.append(self._look)

    def _progressed(self, step: Step, event: Progressed) -> None:
        adoption = self._view.adoption
        if self._view.adopting and event.peer == adoption.donor:
            adoption.progressed_at, adoption.gives_up_at = step.now, step.now + GIVE_UP_S

    def _look(self, step: Step) -> None:
        me, peer, adoption = self._view.me, self._view.peer, self._view.adoption
        if step.stopped:
            self._check_given_up(step)
        if not peer.adopter.under_way:
            return
        if adoption.donor not in peer.roster.donors():
            raise ViolationError(f"{me} still wants the replica of {adoption.donor}, which is dead or has none")
        if step.now > adoption.gives_up_at + SLACK_S:
            raise ViolationError(f"{me} wants the replica of {adoption.donor} for longer than {GIVE_UP_S} s")

    def _check_given_up(self, step: Step) -> None:
        me, adoption = self._view.me, self._view.adoption
        if step.now < adoption.gives_up_at - SLACK_S and adoption.donor in self._view.peer.roster.donors():
            raise ViolationError(f"{me} gives up the replica of {adoption.donor} before {adoption.gives_up_at}")
        for other in adoption.asked:
            if not any(isinstance(m, Unpin) and m.k == adoption.k for m in step.sent(other)):
                raise ViolationError(f"{me} gives up adopting, and does not tell {other}")


class AsksWhenAllHavePinned:
    """A donor is asked when all who are heard have pinned, at once, and again when nothing came of it for a while."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.happens[Pinned].append(self._pinned)
        moments.sends[StateRequest].append(self._asks)
        moments.ends.append(self._look)

    def _pinned(self, step: Step, message: Pinned) -> None:
        if message.k == self._view.adoption.k:
            self._view.adoption.pinned.add(message.peer)

    def _asks(self, step: Step, to: PeerId, request: StateRequest) -> None:
        view, me, adoption = self._view, self._view.me, self._view.adoption
        said, pinned = adoption.pinned | {me}, request.pinned
        adoption.pinned_at = None
        if step.now < adoption.progressed_at + GIVE_UP_S - SLACK_S and not isinstance(step.message, Pinned):
            raise ViolationError(f"{me} asks for a replica again, of which some came at {adoption.progressed_at}")
        if not said >= set(pinned) or not said >= adoption.asked & set(view.peer.roster.readable()) - view.away:
            raise ViolationError(f"{me} asks for a replica, names {pinned}, and {said} have pinned")

    def _look(self, step: Step) -> None:
        me, peer, adoption, now = self._view.me, self._view.peer, self._view.adoption, step.now
        if not peer.adopter.under_way:
            return
        if adoption.progressed_at == float("-inf") and peer.adopter.stage == "pinning":
            if not adoption.asked & set(peer.roster.readable()) <= adoption.pinned:
                adoption.pinned_at = None
            elif adoption.pinned_at is None:
                adoption.pinned_at = now
            if adoption.pinned_at is not None and now > adoption.pinned_at + REPEAT_S + SLACK_S:
                raise ViolationError(f"{me} does not ask {adoption.donor} for its replica, though all have pinned")


class TakesOnlyWhatItWaitsFor:
    """A replica that it gave up waiting for is not taken, nor is an answer from before its last adoption."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.effects[Deliver].append(self._merges)
        moments.effects[Adopt].append(self._adopts)
        moments.ends.append(self._look)

    def _merges(self, step: Step, effect: Deliver) -> None:
        message = step.message
        if isinstance(message, Range) and message.k <= self._view.adoption.k:
            raise ViolationError(f"{self._view.me} merges an answer of before its last adoption: {message.k}")

    def _adopts(self, step: Step, effect: Adopt) -> None:
        message, adoption = step.message, self._view.adoption
        if not isinstance(message, State) or (message.peer, message.k) != (adoption.donor, adoption.k):
            raise ViolationError(f"{self._view.me} adopts what it does not wait for, of {adoption.donor}")

    def _look(self, step: Step) -> None:
        if not (step.stopped or step.adopted):
            return
        me, lane, k = self._view.me, self._view.peer.replicator, self._view.adoption.k
        for other, origin in lane.origins.items():
            if lane.is_next(Range(other, origin.frontier + 1, origin.frontier + 1, k, ())):
                raise ViolationError(f"{me} would merge what {other} answered before its last adoption")


class MergesNothingWhileItAdopts:
    """Who adopts merges nothing meanwhile, and whoever does not adopt merges."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.effects[Deliver].append(self._merges)
        moments.ends.append(self._look)

    def _merges(self, step: Step, effect: Deliver) -> None:
        me, adopter = self._view.me, self._view.peer.adopter
        if self._view.adopting and adopter.under_way and effect.lane != me:
            raise ViolationError(f"{me} merges an update of {effect.lane} while it adopts")

    def _look(self, step: Step) -> None:
        lane, adopter = self._view.peer.replicator, self._view.peer.adopter
        under_way = adopter.under_way
        if lane.frozen != under_way:
            what = "merges nothing" if lane.frozen else "is to merge"
            raise ViolationError(f"{self._view.me} {what}, adopting: {under_way}")


def _best(now: float, view: View) -> PeerId | None:
    """Who has most of the lanes of those that are dead for long enough, if it has more than this one."""
    gone, peer = view.gone, view.peer
    since = (*gone.since.items(), *gone.strangers.items())
    dead = [lane for lane, at in since if now >= at + peer.settings.settle_s]  # as it reckons, to the last bit
    if not dead or now < gone.returned_at + RETURN_S:
        return None
    ranks: dict[PeerId, Mapping[PeerId, int]] = {peer.me: peer.replicator.frontiers()}
    for other, advert in view.adverts.items():
        if advert.ready and other not in peer.roster.gone:
            ranks[other] = advert.all_frontiers
    most = max([(sum([lanes.get(lane, 0) for lane in dead]), other) for other, lanes in ranks.items()])[1]
    return most if any(ranks[most].get(lane, 0) != ranks[peer.me].get(lane, 0) for lane in dead) else None
