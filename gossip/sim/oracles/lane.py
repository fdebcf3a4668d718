"""The own lane has no gap, and an origin keeps the updates that follow wherever it has let a reader stand."""

from __future__ import annotations

from collections.abc import Set

from gossip.events import Computed, Joined
from gossip.lanes.peer import Peer
from gossip.messages import Advert, PeerId, Pin, Pull, State, StateRequest, Unpin
from gossip.sim.oracles.seen import Moments, Step, View, ViolationError


class KeepsItsLane:
    """All that is not forgotten is kept, in the peer's eyes and in the driver's."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._n = 0
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        me, lane = self._view.me, self._view.peer.replicator
        if not step.shaped and lane.n == self._n:
            return
        if lane.n < self._n:
            raise ViolationError(f"the lane of {me} goes back from {self._n} to {lane.n}")
        self._n = lane.n
        known = tuple((segment.lo, segment.hi) for segment in lane.segments)
        kept = self._view.outside.swarm.peers[me].segments.bounds(lane.forgotten + 1, lane.n)
        if known != kept:
            raise ViolationError(f"{me} knows of the segments {known}, and has {kept}")
        ends = [lane.forgotten, *(hi for _, hi in known)]
        if any(lo != before + 1 for before, (lo, _) in zip(ends, known, strict=False)) or ends[-1] != lane.n:
            raise ViolationError(f"{me} has forgotten up to {lane.forgotten} of {lane.n}, and keeps {known}")
        allowed = lane._boundaries()
        if lane.coalesce and any(hi not in allowed for _, hi in known[:-1]):
            raise ViolationError(f"{me} keeps {known} apart, where nobody stands: {allowed}")


class KeepsNothingForWhoHasNoReplica:
    """Who has no replica adopts one, and reads from there on."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._readers: frozenset[PeerId] = frozenset()
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        me, readers, message = self._view.me, self._view.peer.replicator.readers, step.message
        if isinstance(message, Advert) and not message.ready and message.peer in readers.keys() - self._readers:
            raise ViolationError(f"{me} keeps what {message.peer} lacks, which has no replica")
        self._readers = frozenset(readers)


class KnowsWhereReadersStand:
    """Whoever stood where its origin expects it does so still, and what follows is kept."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.ends.append(self._look)

    def _look(self, step: Step) -> None:
        peer, lane, message = self._view.peer, self._view.peer.replicator, step.message
        if (
            step.shaped
            or isinstance(step.event, Computed | Joined)
            or isinstance(message, Pull | Pin | Unpin | StateRequest)
        ):
            self._check_readers(lane.readers.keys() | lane.pins.keys())
        elif isinstance(message, Advert):
            self._check_readers({message.peer} & (lane.readers.keys() | lane.pins.keys()))
        elif peer.roster.gone:
            self._check_readers(set())
        if step.merged:
            self._check_origins(message.k if isinstance(message, State) and step.adopted else None)

    def _check_readers(self, readers: Set[PeerId]) -> None:
        me, peer, placed = self._view.me, self._view.peer, self._view.placed
        lane, peers = peer.replicator, self._view.outside.swarm.peers
        for reader in readers:
            host = peers.get(reader)
            if host is None or not host.alive or me not in host.peer.replicator.origins:
                continue
            adopter = host.peer.adopter
            if adopter.under_way:
                if not self._stands(peer, reader, 0):
                    placed.discard(reader)  # it came out of one adoption and is in the next
                continue
            if self._stands(peer, reader):
                if host.peer.ready and self._stands(peer, reader, 0):
                    placed.add(reader)
                if reader in placed and not lane.keeps(host.peer.replicator.origins[me].frontier):
                    raise ViolationError(f"{me} does not keep what follows where {reader} stands")
            elif reader in placed:
                raise ViolationError(f"{me} does not know where {reader} stands any more")
        for reader in list(placed) if placed else ():
            member = peer.members.get(reader)
            if member is None or member.forgotten or not peers[reader].alive:
                placed.discard(reader)
            elif reader not in lane.readers and reader not in lane.pins:
                raise ViolationError(f"{me} keeps nothing for {reader} any more")

    def _check_origins(self, adoption: int | None) -> None:
        """Where we stand is where the origins expect us, but where we come out of an adoption."""
        me, lane, outside = self._view.me, self._view.peer.replicator, self._view.outside
        for origin in lane.origins:
            view, host = outside.views.get(origin), outside.swarm.peers.get(origin)
            if view is None or host is None or not host.alive:
                continue
            stands = self._stands(host.peer, me, adoption)
            if adoption is not None or lane.frozen:
                (view.placed.add if stands and not lane.frozen else view.placed.discard)(me)
            elif not stands and me in view.placed:
                raise ViolationError(f"{me} stands in the lane of {origin} where it is not expected")

    def _stands(self, origin: Peer, reader: PeerId, k: int | None = None) -> bool:
        """The origin expects the reader where it is; with `k`, not for another adoption than that, or 0 for none."""
        frontier = self._view.outside.swarm.peers[reader].peer.replicator.origins[origin.me].frontier
        place = origin.replicator.readers.get(reader)
        if place is not None and frontier in (place.acknowledged, place.served):
            return True
        pin = origin.replicator.pins.get(reader)
        return pin is not None and frontier in pin.boundaries and (k is None or pin.k == k)
