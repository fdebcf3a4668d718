"""Peers that mix, on virtual time: the simulator with `MixPeer` in the place of `Peer`. Faults are the same.

A peer publishes to those who were introduced to it: to all, or, in a large swarm, to its neighbors only.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np

from gossip.arrays import Array, Arrays, Packed
from gossip.errors import UsageError
from gossip.events import Event, Initialized, Joined, Resumed, Settling, Started, Tasked
from gossip.messages import PeerId
from gossip.mixing.course import ERA
from gossip.mixing.neighbors import Plan
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.sim.simulator import Network, Simulation
from gossip.trace import Observe

NEIGHBORS_ROUNDS_MAX = 64
"""To find all who are ever neighbors, so many rounds of the topology are looked at."""


class MixSimulation(Simulation):
    """`count` peers with replicas of their own, that mix as `plan` says. They rest until `resume`.

    Strategies that go by steps have a round when there are steps, or after `settle`.
    """

    def __init__(
        self,
        count: int,
        initial: Arrays | Callable[[int], Arrays],
        plan: Plan,
        *,
        seed: int,
        network: Network | None = None,
        mixing: MixSettings | None = None,
        observe: Observe | None = None,
        clock: Callable[[], tuple[float, float]] = lambda: (1.0, 0.0),
        only_neighbors: bool = False,
        checks: bool = False,
    ) -> None:
        """`initial` are the arrays that all start from, or a function of the index of a peer that gives its own.

        With `only_neighbors` a peer is introduced to those only who send to it in some round; then `plan` must repeat,
        and nobody may come or be found dead.

        Raises:
            UsageError: there is no topology for `count` peers, or the strategy does not fit it.
        """
        topology = plan.topology(count)
        if only_neighbors and (topology.period is None or topology.period > NEIGHBORS_ROUNDS_MAX):
            raise UsageError(f"{topology.name} has new neighbors each round, expected only_neighbors=False")
        first = initial(0) if callable(initial) else initial
        self.mixers: dict[PeerId, MixPeer] = {}
        self._plan = plan
        self._mixing = mixing
        self._only_neighbors = only_neighbors
        self._members = tuple(sorted(PeerId(f"p{index:03d}") for index in range(count)))
        self._own = initial if callable(initial) else None
        self._hearers: dict[PeerId, list[PeerId]] = {}
        self._era = 0
        self._said: tuple[Event, ...] = ()
        """What all were told of the training that runs; who comes late is told the same."""
        super().__init__(count, first, seed=seed, network=network, observe=observe, clock=clock, checks=checks)

    # ------------------------------------------------------------------------------------------------------- script

    def resume(self) -> None:
        """A training begins."""
        self._era += 1
        self._say(Resumed(self._era))

    def task(self, tasks: int) -> None:
        """So many tasks train at each peer now."""
        for me in self.live():
            self.happen(me, Tasked(tasks))

    def settle(self) -> None:
        """All steps are taken: let all come to agree."""
        self._era += 1
        rounds = max(self.mixers[me].place % ERA for me in self.live())
        self._say(*self._said, Settling(self._era, rounds))

    def _say(self, *events: Event) -> None:
        self._said = events
        for me in self.live():
            self.happen(me, events[-1])

    def run_until_drained(self, timeout_s: float = 300.0) -> float:
        begin = self.now
        for _ in range(2):  # what is taken while all drain may be answered, which the second time waits for
            for host in self.peers.values():
                host.missing = None
            super().run_until_drained(timeout_s)
        return self.now - begin

    def rounds(self) -> int:
        """That all live peers have begun."""
        return min(self.mixers[me].rounds for me in self.live())

    def params(self) -> Array:
        """(live peers, parameters)"""
        return np.stack([self.mixers[me].params() for me in self.live()])

    def distance(self) -> float:
        """The largest difference between two live replicas in one number."""
        params = self.params()
        return float((params.max(axis=0) - params.min(axis=0)).max())

    def join(self, me: PeerId) -> None:
        """A peer comes late, now, with the replica of the first that lives."""
        donor = next(iter(self.live()))
        others = list(self.live())
        replica = self.mixers[donor].replica()
        self._add(me)
        for other in others:
            self._meet(me, other)
            self._meet(other, me)
        self.happen(me, Initialized(replica))
        for event in self._said:
            self.happen(me, event)

    def is_level(self, but: Container[PeerId] = ()) -> bool:
        raise UsageError("peers that mix have no lanes that could be level: ask for distance()")

    # ------------------------------------------------------------------------------------------------------- driver

    def _make(self, me: PeerId, seed: int) -> MixPeer:
        members = self._members if me in self._members else tuple(self.live())
        mixer = MixPeer(me, self.layout, self._plan, np.random.default_rng(seed), self._mixing, members)
        self.mixers[me] = mixer
        self._hearers[me] = []
        return mixer

    def _begin(self, ids: Iterable[PeerId], begin: Started) -> None:
        for me in ids:
            for other in self._known_to(me):
                self._meet(me, other)
        for index, me in enumerate(ids):
            own: Mapping[str, Array] = self._own(index) if self._own is not None else self._initial
            self.happen(me, Initialized(Packed.of(own)))

    def _known_to(self, me: PeerId) -> Iterable[PeerId]:
        if not self._only_neighbors:
            return [other for other in self.peers if other != me]
        place, count = self._members.index(me), len(self._members)
        links = [self._plan.links(count, place, round) for round in range(self._plan.topology(count).period or 1)]
        return sorted({self._members[other] for each in links for other in each.hears})

    def _meet(self, me: PeerId, other: PeerId) -> None:
        """`me` hears what `other` publishes."""
        self._hearers[other].append(me)
        self.happen(me, Joined(other))

    def _audience(self, me: PeerId) -> Iterable[PeerId]:
        return self._hearers[me]
