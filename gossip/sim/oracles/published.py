"""A replica is the initial model plus a prefix of every lane, never twice and never half."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from gossip.arrays import Array, Packed
from gossip.events import Computed, Deliver, Event, Negative
from gossip.messages import Mark, PeerId, Unit
from gossip.sim.oracles.seen import ViolationError
from gossip.sim.simulator import SimulatedPeer, Simulation

LOST: Final = (
    "lost before anybody had pulled it",
    "lost with all who had pulled it",
    "dropped when the survivors agreed",
)
"""Causes, of updates of a lane whose peer crashed."""
NUMBERS: Final = 4
"""Elements of the model. Integers, so that every check is ==."""


class Published:
    """What each peer has published, and how far others have it."""

    def __init__(self, swarm: Simulation, counts: Counter[str], note: Callable[[str], None]) -> None:
        self.marks: dict[PeerId, list[tuple[Mark, ...]]] = {}
        """By lane: those of its entries, from the first on behind one of none."""
        self.retries: dict[PeerId, int] = {}
        """By lane: how many of its entries are second or later attempts."""
        self.frontiers: dict[PeerId, dict[PeerId, int]] = {}
        """By peer: those of its replica when that was checked last."""
        self._swarm = swarm
        self._counts = counts
        self._note = note
        self._founders = frozenset(swarm.peers)
        self._sums: dict[PeerId, list[Array]] = {}
        """By lane: the sum of its first n entries, for each n."""
        self._reached: dict[PeerId, dict[PeerId, int]] = {}
        """By lane: the furthest that each other peer ever was with it."""

    def append(self, me: PeerId, effect: Deliver, event: Event) -> None:
        """One more entry of a lane, as its origin published it."""
        peer = self._swarm.peers[me].peer
        sums = self._sums.setdefault(me, [np.zeros(NUMBERS, np.int64)])
        if isinstance(effect.payload, Negative):
            entry = sums[effect.payload.number - 1] - sums[effect.payload.number]
        else:
            assert isinstance(effect.payload, Packed)
            entry = effect.payload.arrays()["w"]
        if not peer.ready or (me not in self._founders and not self.frontiers.get(me)):
            raise ViolationError(f"{me} publishes before it has a replica")
        if isinstance(event, Computed) and event.unit and event.unit.epoch < peer.identities.closed:
            raise ViolationError(f"{me} publishes {tuple(event.unit)}, of an epoch that is over")
        if effect.lo != len(sums):
            raise ViolationError(f"{me} published {effect.lo}, expected {len(sums)}")
        sums.append(sums[-1] + entry)
        lane = self.marks.setdefault(me, [()])
        if isinstance(effect.payload, Negative):
            lane.append(tuple(mark._replace(withdraws=True) for mark in lane[effect.payload.number]))
        else:
            assert isinstance(event, Computed)
            lane.append(() if event.unit is None else (Mark(event.unit, event.attempt),))
            self.retries[me] = self.retries.get(me, 0) + (event.attempt > 0)
        self._counts["published"] += 1

    def check_replica(self, me: PeerId, host: SimulatedPeer) -> None:
        """It is the sum of what its frontiers say."""
        expected = np.zeros(NUMBERS, np.int64)
        frontiers = self.frontiers[me] = host.peer.replicator.frontiers()
        for lane, frontier in frontiers.items():
            if frontier:
                sums = self._sums.get(lane, [])
                reached = self._reached.setdefault(lane, {})
                reached[me] = max(reached.get(me, 0), frontier)
                if frontier >= len(sums):
                    raise ViolationError(f"{me} says it has {lane} up to {frontier}, which has only {len(sums) - 1}")
                expected = expected + sums[frontier]
        if not np.array_equal(host.replica.arrays()["w"], expected):
            raise ViolationError(f"the replica of {me} is not the sum of prefixes {host.peer.replicator.frontiers()}")

    def check_lost(self, level: Mapping[PeerId, int]) -> None:
        """All are at the frontiers `level`: nothing of a living lane is lost; of others it is counted, by cause."""
        for lane, marks in self.marks.items():
            published, kept = len(marks) - 1, level.get(lane, 0)
            if published != kept and self._swarm.peers[lane].alive:
                raise ViolationError(f"{published - kept} updates of {lane}, which is alive, are lost")
            self._count_lost(lane, published, kept)

    def check_causes(self, level: Mapping[PeerId, int]) -> None:
        """What was published is merged, or lost for a cause."""
        counts, merged = self._counts, sum(level.get(lane, 0) for lane in self.marks)
        counts["merged"] += merged
        if counts["published"] != merged + sum(counts[cause] for cause in LOST):
            raise ViolationError(f"published {counts['published']}, of which {merged} merged and others lost: {counts}")

    def units(self, level: Mapping[PeerId, int]) -> Counter[Unit]:
        """How often each unit counts where all are at the frontiers `level`."""
        net: Counter[Unit] = Counter()
        for lane, marks in self.marks.items():
            for entry in marks[1 : level.get(lane, 0) + 1]:
                for mark in entry:
                    net[mark.unit] += -1 if mark.withdraws else 1
        return net

    def _count_lost(self, lane: PeerId, published: int, kept: int) -> None:
        """Of a dead lane: by how far its readers ever were."""
        reached = {peer: frontier for peer, frontier in self._reached.get(lane, {}).items() if peer != lane}
        anybody = max(reached.values(), default=0)
        survivors = max([f for peer, f in reached.items() if self._swarm.peers[peer].alive], default=0)
        for cause, lost in zip(LOST, (published - anybody, anybody - survivors, survivors - kept), strict=True):
            self._counts[cause] += lost
            if lost:
                self._note(f"{lost} updates of {lane} {cause}")
