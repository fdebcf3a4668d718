"""Which peers are neighbors, as one peer sees it: the topology of all that live, on their names in sorted order.

Strategies know a neighbor by a number that must never change, whichever peers come and go: it is the name itself, read
as a number. The *place* of a peer in the topology does change: it is its rank among the names of living peers. So when
a peer comes or goes, the topology is made anew for the new count, and all peers that know of it make the same one.
Where there is no topology for that count (a hypercube of seven), the last one stays, and the weights on links to peers
that are gone go to their own diagonal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Any

from gossip.errors import UsageError, hold
from gossip.messages import PeerId
from gossip.mixing.strategy import Strategy
from gossip.topology import Links, Topology

ROUNDS_MAX = 64
"""Rounds whose links are remembered: the period of whatever repeats soon."""


def number_of(peer: PeerId) -> int:
    """The number by which strategies know `peer`; two peers compare alike everywhere."""
    return int.from_bytes(peer.encode())


class Plan:
    """The topologies of a run. It only remembers what it computes, so simulated peers may share one."""

    def __init__(self, build: Callable[[int], Topology], strategy: Strategy[Any]) -> None:
        """`build(count)` is the topology for `count` peers, on which `strategy` is to mix."""
        self.strategy = strategy
        self._build = build
        self._topologies: dict[int, Topology | UsageError] = {}
        self._links: dict[tuple[int, int], list[Links]] = {}

    def topology(self, count: int) -> Topology:
        """The topology for `count` peers.

        Raises:
            UsageError: there is none, or it is not what the strategy needs.
        """
        if count not in self._topologies:
            try:
                topology = self._build(count)
                if topology.peers != count:
                    raise UsageError(f"{topology.name} is for {topology.peers} peers, and there are {count}")
                self.strategy.check(topology)
                self._topologies[count] = topology
            except UsageError as error:
                self._topologies[count] = error
        found = self._topologies[count]
        if isinstance(found, UsageError):
            raise found
        return found

    def links(self, count: int, place: int, round: int) -> Links:
        """What the peer in `place` of `count` has in `round`, by places."""
        topology = self.topology(count)
        key = (count, round if topology.period is None else round % topology.period)
        if key not in self._links:
            if len(self._links) >= ROUNDS_MAX:
                del self._links[next(iter(self._links))]
            self._links[key] = topology.all_links(key[1])
        return self._links[key][place]


class Neighbors:
    """One peer's view: who lives, and its links of each round by the numbers of peers."""

    def __init__(self, me: PeerId, plan: Plan, others: Iterable[PeerId] = ()) -> None:
        """`others` live; whoever else comes is told by `add`."""
        self.me = me
        self._plan = plan
        self.live: tuple[PeerId, ...] = tuple(sorted({me, *others}))
        self._planned: tuple[PeerId, ...] = self.live
        """For whom the topology in use was made."""
        self.without: UsageError | None = None
        """Why there is no topology for just those who live."""
        self._peers = {number_of(peer): peer for peer in self.live}
        self._cache: dict[int, Links] = {}
        self._stale = True

    def add(self, peer: PeerId) -> None:
        """`peer` lives."""
        if peer not in self.live:
            self.live = tuple(sorted({*self.live, peer}))
            self._peers[number_of(peer)] = peer
            self._stale = True

    def remove(self, peer: PeerId) -> None:
        """`peer` does not."""
        if peer in self.live and peer != self.me:
            self.live = tuple(each for each in self.live if each != peer)
            self._stale = True

    def peer(self, number: int) -> PeerId:
        """Whose number it is."""
        return self._peers[number]

    def links(self, round: int) -> Links:
        """Whom this peer hears in `round`, and who hears it; by numbers. Nobody if it is alone, or without topology."""
        if self._stale:
            self._stale = False
            self._cache.clear()
            self._choose()
        period = self._plan.topology(len(self._planned)).period if self._is_planned else None
        key = round if period is None else round % period
        if key not in self._cache:
            if len(self._cache) >= ROUNDS_MAX:
                self._cache.clear()
            self._cache[key] = self._find(round)
        return self._cache[key]

    @property
    def period(self) -> int:
        """After so many rounds everybody has met all whom it ever meets; a guess where rounds are drawn anew."""
        period = self._plan.topology(len(self._planned)).period if self._is_planned else 1
        return len(self.live) if period is None else period

    def check(self) -> None:
        """What must hold between two events."""
        hold(self.me in self.live, "one lives to itself", self.me, self.live)
        hold(self.live == tuple(sorted(set(self.live))), "places go by name", self.live)
        hold(self.me in self._planned, "the topology has a place for its owner", self.me, self._planned)

    @property
    def _is_planned(self) -> bool:
        return len(self._planned) > 1

    def _choose(self) -> None:
        self.without = None
        if len(self.live) == 1:
            self._planned = self.live
            return
        try:
            self._plan.topology(len(self.live))
            self._planned = self.live
        except UsageError as error:
            self.without = error
            try:
                self._plan.topology(len(self._planned))
            except UsageError:
                self._planned = (self.me,)
            if self.me not in self._planned:
                self._planned = (self.me,)

    def _find(self, round: int) -> Links:
        me = number_of(self.me)
        if not self._is_planned:
            return Links(me, 1.0, {}, {}, 1)
        planned = self._planned
        by_place = self._plan.links(len(planned), bisect_left(planned, self.me), round)
        live = set(self.live)
        hears = {number_of(planned[j]): weight for j, weight in by_place.hears.items() if planned[j] in live}
        heard_by = {number_of(planned[i]): weight for i, weight in by_place.heard_by.items() if planned[i] in live}
        gone = sum(weight for j, weight in by_place.hears.items() if planned[j] not in live)
        return Links(me, by_place.own + gone, hears, heard_by, sum(peer in live for peer in planned))
