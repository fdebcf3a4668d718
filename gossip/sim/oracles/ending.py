"""A peer that says that it is drained is, and no work is left where all are level and no message is lost any more."""

from __future__ import annotations

from gossip.events import Drained, Exhausted
from gossip.membership import Membership
from gossip.sim.oracles.seen import Moments, Step, View, ViolationError
from gossip.sim.simulator import Simulation


class DrainsWhenNothingIsLeft:
    """Whoever it does not name, and does not take for dead, has all of its lane, and nothing is left to be done."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._exhausted_until: float | None = None
        moments.happens[Exhausted].append(self._exhausted)
        moments.effects[Drained].append(self._drained)

    def _exhausted(self, step: Step, event: Exhausted) -> None:
        self._exhausted_until = step.now + event.timeout_s

    def _drained(self, step: Step, effect: Drained) -> None:
        me, peer, missing = self._view.me, self._view.peer, effect.missing
        if self._exhausted_until is not None and step.now < self._exhausted_until:
            self._check_nothing_left()
        self._exhausted_until = None
        for other in peer.replicator.readers.keys() - peer.roster.gone - {*missing}:
            if self._view.outside.swarm.peers[other].peer.replicator.frontiers().get(me, 0) < peer.replicator.n:
                raise ViolationError(f"{me} says that all but {missing} have its lane, and {other} has not")

    def _check_nothing_left(self) -> None:
        me, peer = self._view.me, self._view.peer
        adopts = peer.adopter.needed
        undecided = [n for n, r in peer.units.retained.items() if min(peer.identities.standing(r.unit))[1] != me]
        if adopts or undecided:
            raise ViolationError(f"{me} drained, and adopts: {adopts}, may take back: {undecided}")
        mine = peer.replicator.frontiers()
        for other, advert in self._view.adverts.items():
            lanes = advert.all_frontiers if advert.ready and other not in peer.roster.gone else {}
            if any(mine[lane] != n for lane, n in lanes.items() if lane in mine):
                raise ViolationError(f"{me} drained at {mine}, and {other} was at {dict(lanes)}")


def restless(swarm: Simulation) -> str | None:
    """What is there yet though it was for a while, when nothing is lost or late any more, and all are level."""
    live = swarm.live()
    for me, host in live.items():
        peer = host.peer
        lane = peer.replicator
        if held := lane.pins.keys() & live.keys():
            return f"{me} still keeps what {held} pinned"
        if peer.adopter.needed or peer.adopter.under_way:
            return f"{me} still adopts"
        if peer.roster.gone & live.keys():
            return f"{me} takes {peer.roster.gone & live.keys()} for dead, which are alive"
        for other, contact in peer.membership.contacts.items():
            theirs = swarm.peers[other].peer.membership
            if isinstance(theirs, Membership) and contact.incarnation > theirs.incarnation:
                return f"{me} knows of an incarnation of {other} that it never had"
        for reader in lane.readers.keys() & live.keys():
            if (lane.readers[reader].acknowledged, lane.readers[reader].served) != (lane.n, lane.n):
                return f"{me}, at {lane.n}, does not know that {reader} has all: {lane.readers[reader]}"
    return None
