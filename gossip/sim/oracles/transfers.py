"""A peer that adopts goes back in no living lane, and no origin that had pinned for it calls it unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import Final

from gossip.events import Event, Received
from gossip.messages import PeerId, Pin, Pinned, Pull, State, StateRequest, Unknown, Unpin
from gossip.sim.oracles.seen import ViolationError
from gossip.sim.simulator import Simulation

ADOPTIONS_MAX: Final = 12
"""By one peer in a run: partitions, strikes and jumps of its clock may cut it off ten times, some peers crash beside
it. 6 is the most of 300 days; those that adopt without end do so fifty times a minute."""


class Transfers:
    """Replicas on their way from donors to adopters, and what is pinned for them."""

    def __init__(
        self,
        swarm: Simulation,
        frontiers: Mapping[PeerId, Mapping[PeerId, int]],
        counts: Counter[str],
        note: Callable[[str], None],
        on_its_way: Callable[[], None],
    ) -> None:
        """`frontiers` are of each peer before it adopts; `on_its_way` is called when a replica is sent first."""
        self._swarm = swarm
        self._frontiers = frontiers
        self._counts = counts
        self._note = note
        self._on_its_way = on_its_way
        self._said: dict[tuple[PeerId, PeerId], int] = {}
        """(origin, adopter): the k of what was said to be pinned, while the origin takes the adopter for alive."""
        self._given: dict[tuple[PeerId, PeerId, int], tuple[set[PeerId], set[PeerId]]] = {}
        """By donor, adopter and k: whom the donor took for dead when it gave, and who kept where it stood."""
        self._pinned: dict[PeerId, dict[PeerId, int]] = {}
        """By adopter: who must know it, by the k of the pin, when it pulls for the first time since it adopted."""
        self._sought: dict[PeerId, set[int]] = {}
        """By peer: the k of its adoptions that it did not give up."""
        self._asked: dict[PeerId, set[int]] = {}
        """By peer: the k of those for which it asked a donor."""

    def sent(self, me: PeerId, to: PeerId, message: object) -> None:
        """One peer sends another what may belong to a transfer."""
        match message:
            case Pin(_, donor, k) if k not in self._sought.setdefault(me, set()):
                self._sought[me].add(k)
                self._pinned.pop(me, None)
                self._counts["replicas sought"] += 1
                self._note(f"{me} wants the replica of {donor}")
            case StateRequest(_, k) if k not in self._asked.setdefault(me, set()):
                self._asked[me].add(k)
                self._counts["replicas asked for"] += 1
            case Unpin(_, k) if k in self._sought.get(me, ()):
                self._sought[me].discard(k)
                self._counts["replicas given up"] += 1
                self._note(f"{me} gives up adopting")
            case Pinned(_, k):
                self._said[me, to] = k
            case State(_, frontiers, k):
                if (me, to, k) not in self._given:
                    self._on_its_way()
                self._gave(me, to, k, frontiers)
            case Unknown(_, frontier):
                self._counts["unknown"] += 1
                self._note(f"{me} does not keep what {to} asks for after {frontier}")
                if me in self._pinned.get(to, ()):
                    raise ViolationError(f"{me} had pinned for {to}, and does not know what follows {frontier}")

    def adopted(self, me: PeerId, event: Event) -> None:
        """A replica has come, and takes the place of the one before."""
        assert isinstance(event, Received)
        assert isinstance(event.message, State)
        state = event.message
        self._counts["replicas adopted"] += 1
        self._counts["replicas adopted by observers"] += me in self._swarm.observing
        self._note(f"{me} adopts the replica of {state.peer}: {dict(state.frontiers)}")
        dead, kept = self._given[state.peer, me, state.k]
        self._pinned[me] = {origin: state.k for origin in kept if self._said.get((origin, me)) == state.k}
        for lane, frontier in self._frontiers.get(me, {}).items():
            if lane != me and lane not in dead and state.frontiers.get(lane, 0) < frontier:
                raise ViolationError(f"{me} goes back in lane {lane} from {frontier} to {state.frontiers.get(lane, 0)}")
        adopter = self._swarm.peers[me].peer.adopter
        self._counts["adoptions of one peer"] = max(self._counts["adoptions of one peer"], adopter.done)
        if adopter.done > ADOPTIONS_MAX:
            raise ViolationError(f"{me} adopted {adopter.done} times, expected at most {ADOPTIONS_MAX}")

    def pulled(self, me: PeerId, pull: Pull) -> None:
        """`me` was asked; if by one that had adopted, it was known, or `sent` had said that it is not."""
        if pull.k > self._pinned.get(pull.peer, {}).get(me, pull.k):
            del self._pinned[pull.peer][me]  # its first pull since it adopted

    def out_of_reach(self, me: PeerId, away: Set[PeerId]) -> None:
        """What `me` pinned for those need not grow, and may be forgotten."""
        for gone in away:
            self._said.pop((me, gone), None)
            self._pinned.get(gone, {}).pop(me, None)

    def _gave(self, me: PeerId, to: PeerId, k: int, frontiers: Mapping[PeerId, int]) -> None:
        """Keep whom the donor took for dead, and which origins said that they had pinned and keep where it stands."""
        members = self._swarm.peers[me].peer.members
        departed = {peer for peer, member in members.items() if member.departed_at is not None}
        kept = {
            origin
            for origin, host in self._swarm.live().items()
            if self._said.get((origin, to)) == k and host.peer.replicator.keeps(frontiers.get(origin, 0))
        }
        dead_before, kept_before = self._given.get((me, to, k), (set(), kept))
        dead = dead_before | departed | (self._swarm.peers.keys() - members.keys())
        self._given[me, to, k] = dead, kept & kept_before
