"""Everything that grows has a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sized
from typing import Final

from gossip.messages import PeerId
from gossip.sim.oracles.seen import ViolationError
from gossip.sim.simulator import SimulatedPeer, Simulation

BOUNDARIES_MAX: Final = 200
"""Of one pin: a donor that pulls ten times a second until its adopter is taken for dead makes about that many."""


class Bounds:
    """How much each peer keeps, and the most of it in `counts`."""

    def __init__(
        self,
        swarm: Simulation,
        published: Mapping[PeerId, Sized],
        retries: Mapping[PeerId, int],
        counts: Counter[str],
    ) -> None:
        """`published` by each lane; `retries` are how many of that were second or later attempts."""
        self._swarm = swarm
        self._published = published
        self._retries = retries
        self._counts = counts

    def check(self, me: PeerId, host: SimulatedPeer) -> None:
        """What it keeps for others, and knows of them."""
        peer, others = host.peer, len(self._swarm.peers)
        lane = peer.replicator
        boundaries = sum([len(pin.boundaries) for pin in lane.pins.values()])
        for what, kept, most in (
            ("segments", len(host.segments), 2 * len(lane.readers) + boundaries + 2),
            ("segments known", len(lane.segments), len(host.segments)),
            ("members", len(peer.members), others),
            ("readers", len(lane.readers), len(peer.members)),
            ("origins", len(lane.origins), others),
            ("pins", len(lane.pins), len(peer.members)),
            ("pinned boundaries", boundaries, BOUNDARIES_MAX * len(lane.pins)),
            ("retained updates", host.segments.retained, self._retries.get(me, 0)),
        ):
            self._bound(me, what, kept, most)

    def check_units(self, me: PeerId, host: SimulatedPeer) -> None:
        """What it knows of units."""
        known = host.peer.identities
        self._bound(me, "runs of units", known.runs, sum(map(len, self._published.values())))
        self._bound(me, "units watched", known.watched, sum(self._retries.values()))

    def _bound(self, me: PeerId, what: str, kept: int, most: int) -> None:
        if kept > self._counts[f"peak {what}"]:
            self._counts[f"peak {what}"] = kept
        if kept > most:
            raise ViolationError(f"{me} keeps {kept} {what}, expected at most {most}")
