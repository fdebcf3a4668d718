"""Adopting another peer's replica: for a peer that came late, one that an origin does not know any more, and peers that
have less of a dead peer's lane than others.

    idle --begin--> pinning --all pinned--> asking --State--> idle
                       |                       |
                       +----- time is up ------+--> idle, and again after a random while

While an adoption lasts the adopter pulls and applies nothing, so that the donor catches up with it. Own updates go on,
and those that the donor had not seen are added to the adopted replica. A donor that is behind does not answer until it
has caught up. Every peer that waits still answers pins, and every peer that has a replica still gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from gossip.errors import hold
from gossip.events import Adopt, Deliver, Effect, Own, Send, Warn
from gossip.identity import Identities
from gossip.lanes.replicate import Replicator
from gossip.messages import PeerId, Pin, Pinned, State, StateRequest, Unpin

REPEAT_S = 0.5
"""Between two pins, or two requests, of which the first may be lost."""
GIVE_UP_S = 6.0
BACKOFF_MAX_S = 2.0


def state_of(replicator: Replicator, identities: Identities, request: StateRequest) -> State:
    """Our replica for one that asks. Who adopts it names those that have pinned; others get marks only of epochs that
    are not over: they publish nothing, or begin where a session goes on."""
    frontiers, units = replicator.frontiers(), identities.units
    if request.pinned:
        marks, closed = identities.by_lane(), identities.dropped
        return State(replicator.me, frontiers, request.k, marks, closed=closed, units=units)
    marks, closed = identities.by_lane(identities.closed), identities.closed
    return State(replicator.me, frontiers, request.k, marks, closed=closed, units=units)


class Chance(Protocol):
    """Where random numbers come from; `random.Random` is one."""

    def uniform(self, a: float, b: float) -> float:
        """A number between the two."""
        ...

    def choice(self, seq: Sequence[PeerId]) -> PeerId:
        """One of these."""
        ...


@dataclass
class Adoption:
    """One that is under way."""

    donor: PeerId
    k: int
    missing: set[PeerId]
    """Who has not pinned yet."""
    members: tuple[PeerId, ...]
    gives_up: float
    repeats: float


class Adopter:
    """The side that adopts, and the donor's answer."""

    agrees = True
    """Those who live come to have the same of each lane, of the dead ones too."""

    def __init__(self, me: PeerId, replicator: Replicator, chance: Chance) -> None:
        self.me = me
        self.needed = False
        """Something came up that only an adoption mends."""
        self.preferred: PeerId | None = None
        """The donor that has most of the dead lanes."""
        self.done = 0
        """Adoptions so far."""
        self._has_replica = True
        self._replicator = replicator
        self._chance = chance
        self._adoption: Adoption | None = None
        self._not_before = float("-inf")

    def start_without_replica(self) -> None:
        """There is nothing here yet but what will be adopted."""
        self._has_replica = False
        self.needed = True

    def lacks(self, peer: PeerId, frontier: int) -> list[Effect]:
        """The origin `peer` does not know any more what follows where we stand."""
        self.needed = True
        return []

    def prefer(self, donor: PeerId) -> None:
        """`donor` has most of the lanes of the dead, and more than we have."""
        self.needed = True
        self.preferred = donor

    @property
    def under_way(self) -> bool:
        return self._adoption is not None

    @property
    def stage(self) -> str:
        """Of the module's drawing."""
        if self._adoption is None:
            return "needs" if self.needed else "idle"
        return "pinning" if self._adoption.missing else "asking"

    def tick(self, now: float, donors: Collection[PeerId], members: Collection[PeerId]) -> list[Effect]:
        """Begin, go on, or give up. `donors` are alive and have a replica; `members` are all who are alive."""
        if self._adoption is None:
            if not self.needed or now < self._not_before or not donors:
                return []
            preferred = self.preferred
            donor = preferred if preferred in donors and preferred else self._chance.choice(sorted(donors))
            self._replicator.k += 1
            self._replicator.frozen = True
            self._adoption = Adoption(
                donor, self._replicator.k, set(members), tuple(sorted(members)), now + GIVE_UP_S, now
            )
        adoption = self._adoption
        if now >= adoption.gives_up or adoption.donor not in donors:
            return self._stop(now)
        if now < adoption.repeats:
            return []
        adoption.repeats = now + REPEAT_S
        return self._push(members)

    def on_pinned(self, message: Pinned, members: Collection[PeerId]) -> list[Effect]:
        """One more member keeps what we shall need."""
        adoption = self._adoption
        if adoption is None or message.k != adoption.k or message.peer not in adoption.missing:
            return []
        adoption.missing.discard(message.peer)
        return self._push(members) if not adoption.missing & set(members) else []

    def on_request(
        self,
        request: StateRequest,
        departed: Collection[PeerId],
        members: Collection[PeerId],
        identities: Identities,
    ) -> list[Effect]:
        """Give our replica to one that asks, if it has nothing of a living lane that we have not.

        Nor may it have taken for dead whom we hear: that origin keeps nothing of what we give for it.
        """
        if request.peer in self._replicator.members and not set(members) <= {*request.pinned, request.peer}:
            return []
        mine = self._replicator.frontiers()
        behind = any(
            mine.get(lane, 0) < frontier
            for lane, frontier in request.frontiers.items()
            if lane != request.peer and lane not in departed
        )
        if behind or not self._replicator.give_to(request.peer, request.k):
            return []
        return [Send(request.peer, state_of(self._replicator, identities, request))]

    def on_state(self, state: State) -> list[Effect] | None:
        """Adopt it, in one step; None if it is not what we asked for, or cannot be used."""
        if not self.expects(state):
            return None
        seen = state.frontiers.get(self.me, 0)
        if not self._replicator.keeps(seen):
            return None
        assert state.payload is not None
        self._replicator.start({lane: f for lane, f in state.frontiers.items() if lane != self.me})
        self._replicator.frozen = False
        self._replicator.k += 1
        self._replicator.void = self._replicator.k
        self._adoption = None
        self.needed = False
        self._has_replica = True
        self.preferred = None
        self.done += 1
        effects: list[Effect] = [Adopt(state.payload)]
        if seen < self._replicator.n:
            own = Own(seen + 1, self._replicator.n)
            effects.append(Deliver(self.me, own.lo, own.hi, own))
        return effects

    def progressed(self, peer: PeerId, now: float) -> None:
        """Part of the replica came in: it is on its way, and not to be asked for again."""
        if self._adoption is not None and peer == self._adoption.donor:
            self._adoption.gives_up = now + GIVE_UP_S
            self._adoption.repeats = now + GIVE_UP_S

    def expects(self, state: State) -> bool:
        """This is the replica that was asked for."""
        return self._adoption is not None and (state.peer, state.k) == (self._adoption.donor, self._adoption.k)

    def deadline(self) -> float:
        """When `tick` has something to do, if an adoption is needed or under way."""
        if self._adoption is not None:
            return min(self._adoption.repeats, self._adoption.gives_up)
        return self._not_before

    def check(self) -> None:
        """What must hold between two events."""
        lane, adoption = self._replicator, self._adoption
        hold(lane.frozen == self.under_way, "nothing is applied while a replica is adopted", lane.frozen, adoption)
        hold(self.needed or self._has_replica, "who has no replica needs one")
        hold(self.needed or self.preferred is None, "a donor is preferred where one is needed", self.preferred)
        if adoption is not None:
            hold(self.needed, "what is under way is needed", adoption)
            hold(adoption.donor != self.me, "nobody adopts its own replica", adoption)
            hold(lane.void < adoption.k == lane.k, "an adoption has the newest k", adoption, lane.void, lane.k)
            hold(adoption.missing <= set(adoption.members), "pins are awaited of those that were asked", adoption)

    def _push(self, members: Collection[PeerId]) -> list[Effect]:
        adoption = self._adoption
        assert adoption is not None
        missing = adoption.missing & set(members)
        if missing:
            return [Send(peer, Pin(self.me, adoption.donor, adoption.k)) for peer in sorted(missing)]
        mine = self._replicator.frontiers()
        del mine[self.me]
        pinned = (self.me, *(peer for peer in adoption.members if peer not in adoption.missing))
        return [Send(adoption.donor, StateRequest(self.me, adoption.k, mine, pinned))]

    def _stop(self, now: float) -> list[Effect]:
        adoption, self._adoption = self._adoption, None
        assert adoption is not None
        self._replicator.frozen = False
        self._replicator.k += 1
        self._replicator.void = self._replicator.k  # origins that had pinned know only where we stand now
        self.preferred = None
        self.needed = not self._has_replica  # what else called for it will call again, if it still does
        self._not_before = now + self._chance.uniform(0, BACKOFF_MAX_S)
        return [Send(peer, Unpin(self.me, adoption.k)) for peer in adoption.members]


class Settled:
    """In the place of an `Adopter`, where nobody adopts: in the star of a master, or without chance."""

    agrees = False
    needed = False
    under_way = False
    stage = "idle"
    done = 0

    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator

    def start_without_replica(self) -> None:
        """It would wait for ever."""
        raise AssertionError("a peer that is not ready needs chance to adopt a replica")

    def lacks(self, peer: PeerId, frontier: int) -> list[Effect]:
        """Nothing mends it."""
        return [Warn(f"peer {peer} cannot serve what follows update {frontier} of its lane: we stay behind")]

    def prefer(self, donor: PeerId) -> None:
        """Nobody is asked."""

    def tick(self, now: float, donors: Collection[PeerId], members: Collection[PeerId]) -> list[Effect]:
        return []

    def on_pinned(self, message: Pinned, members: Collection[PeerId]) -> list[Effect]:
        return []

    def on_request(
        self,
        request: StateRequest,
        departed: Collection[PeerId],
        members: Collection[PeerId],
        identities: Identities,
    ) -> list[Effect]:
        """Whoever asks is given the replica: an observer, which keeps it as it is."""
        return [Send(request.peer, state_of(self._replicator, identities, request))]

    def on_state(self, state: State) -> list[Effect] | None:
        return None

    def progressed(self, peer: PeerId, now: float) -> None:
        """Nothing is on its way."""

    def expects(self, state: State) -> bool:
        return False

    def deadline(self) -> float:
        return float("inf")

    def check(self) -> None:
        """What must hold between two events."""
        hold(not self._replicator.frozen, "all that comes is applied where nobody adopts")
