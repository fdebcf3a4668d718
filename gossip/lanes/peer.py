"""The peer: a pure state machine that turns events into effects.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

The peer watches which peers are there (`detection`), or is told. It advertises when something changed (at most every
`advert_gap_s`), and every `advert_period_s` anyway, because an advert may be lost. It pulls from peers that are ahead,
and checks messages before they reach the replica. It adopts a replica when only that helps, and takes back an update
whose unit another peer had published first. `now` is seconds on any clock that never goes back.

    roster.py  who is there     replicate.py  lanes     adopt.py  another's replica     units.py  what counts once
    conduct.py  whose updates are merged
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gossip.arrays import Layout, Update, check_finite
from gossip.errors import MismatchError, hold
from gossip.events import (
    Closed,
    Computed,
    Congested,
    Deliver,
    Departed,
    Disconnected,
    Drained,
    Effect,
    Event,
    Exhausted,
    Gated,
    Joined,
    Leaving,
    Offended,
    Progressed,
    Publish,
    PutOut,
    Received,
    Retain,
    Returned,
    Started,
    Warn,
)
from gossip.identity import Identities
from gossip.lanes.adopt import Adopter, Chance, Settled
from gossip.lanes.conduct import Conduct
from gossip.lanes.replicate import Replicator
from gossip.lanes.roster import Member, Roster
from gossip.lanes.source import Source, owner
from gossip.lanes.units import Units
from gossip.membership import Detection, Membership, Told
from gossip.messages import (
    Ack,
    Advert,
    Bulk,
    Credit,
    Here,
    Mark,
    Nack,
    Offer,
    PacketReply,
    PacketRequest,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pinned,
    Pull,
    Range,
    Rumor,
    State,
    StateRequest,
    Unknown,
    Unpin,
)
from gossip.trust.norms import ANY, Limits
from gossip.updates import KINDS, check, kind_of, nothing
from gossip.updates.table import Kinds


@dataclass(frozen=True)
class Settings:
    """How a peer behaves. Times in seconds."""

    advert_period_s: float = 0.5
    """How long a lost advert may go unnoticed."""
    advert_gap_s: float = 0.02
    """Changes within this time share one advert."""
    advert_own_gap_s: float | None = None
    """So do own updates within this time; less than the gap, since nobody else can tell of them. None: the gap."""
    pull_timeout_s: float = 1.5
    """How long a pull may go without any sign of an answer."""
    pulls_max: int = 8
    """How many pulls may be under way at once: each may hold one payload in memory."""
    coalesce: bool = True
    """Serve many updates as one sum; False where each must arrive by itself (the workers of a master)."""
    applies_own: bool = True
    """Merge the own updates into the own replica; False where the hub does (the workers of a master)."""
    detection: Detection | None = None
    """How the dead are found; None where departures are told from outside."""
    settle_s: float = 5.0
    """After a departure: time for what the departed had sent to arrive, before the survivors agree on its lane."""
    forget_s: float = 600.0
    """After a departure: until then, a peer that was only cut off can go on where it stood."""
    segments_max: int = 64
    """Own segments to keep. Beyond, who departed is forgotten sooner; and while somebody adopts, publishing waits."""
    source: Source = owner
    """Who is asked for a lane."""
    kinds: Kinds = KINDS
    """Of updates that are merged here, from a task or from others; all peers of a run have the same."""
    limits: Limits = ANY
    """How long updates may be; all peers of a run have the same."""


class Adverts:
    """When the next advert is due."""

    def __init__(self, settings: Settings) -> None:
        self.changed = False
        """There is something to be told soon."""
        self.published = False
        """An own update is among it."""
        self._settings = settings
        self._said_at = float("-inf")

    def due(self) -> float:
        return self._said_at + self.gap_s()

    def said(self, now: float) -> None:
        self.changed = self.published = False
        self._said_at = now

    def gap_s(self) -> float:
        """From the last advert to the next."""
        if self.published and self._settings.advert_own_gap_s is not None:
            return min(self._settings.advert_own_gap_s, self._settings.advert_gap_s)
        return self._settings.advert_gap_s if self.changed else self._settings.advert_period_s


class Peer:
    """One member of the swarm. `layout` is what every payload must look like; None accepts any finite arrays."""

    def __init__(
        self, me: PeerId, layout: Layout | None, settings: Settings | None = None, chance: Chance | None = None
    ) -> None:
        """`chance` spreads adoptions in time and over donors; a peer without it never adopts."""
        self.me = me
        self.layout = layout
        self.settings = mine = settings or Settings()
        self.replicator = Replicator(
            me,
            pull_timeout_s=mine.pull_timeout_s,
            pulls_max=mine.pulls_max,
            coalesce=mine.coalesce,
            source=mine.source,
        )
        self.adopter = Adopter(me, self.replicator, chance) if chance is not None else Settled(self.replicator)
        self.membership = Membership(me, mine.detection, chance) if mine.detection is not None else Told()
        self.roster = Roster(me)
        self.units = Units(
            self.replicator,
            self.roster,
            settle_s=mine.settle_s,
            segments_max=mine.segments_max,
            applies_own=mine.applies_own,
            awaits=self.adopter.agrees,
        )
        self.conduct = Conduct(me, self.replicator, self.roster, mine.limits, mine.kinds)
        self.adverts = Adverts(mine)
        self.refused = 0
        """Ranges not merged because they did not fit or were not finite."""
        self.ready = False
        """It has a replica."""
        self.congested = False
        """Somebody adopts a replica, and so many segments are kept for it that publishing waits."""
        self.give_up_at: float | None = None
        """When to say that it has drained, come what may; None if nobody asks."""
        self._started = False

    @property
    def identities(self) -> Identities:
        """What it knows of units of work."""
        return self.units.identities

    @property
    def members(self) -> Mapping[PeerId, Member]:
        """Whom it was introduced to."""
        return self.roster.members

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        react = _REACTIONS.get(type(event))
        effects = react(self, event, now) if react is not None else []
        if self._started:
            effects += self._detect(now)
            effects += self._judge(now)
            effects += self._withdraw(now)
            effects += self._forget_departed(now)
            self._look_after_dead_lanes(now)
            if self.adopter.needed or self.adopter.under_way:
                effects += self.adopter.tick(now, self.roster.donors(), self.roster.readable())
            if self.ready:
                effects += self.replicator.pulls(now)
            effects += self._advertise(now)
            effects += self._drain(now)
        effects += self._keep_pace()
        return effects

    @property
    def pending(self) -> bool:
        """Something of its own is still to be decided: an adoption, or an update that may have to be taken back."""
        return self.adopter.needed or self.units.undecided

    def expects(self, header: Bulk) -> bool:
        """Whether its arrays are wanted."""
        match header:
            case Range():
                wanted = self.replicator.is_next(header)
                if wanted and self.layout is not None:
                    kind_of(header.layout, self.settings.kinds).check_fit(header.layout, self.layout)
            case State():
                wanted = self.adopter.expects(header)
                if wanted and self.layout is not None:
                    header.layout.check_fit(self.layout)
            case _:
                return False
        return wanted

    def deadline(self) -> float:
        """When to come back with `Ticked`; infinite before `Started`."""
        if not self._started:
            return float("inf")
        give_up = float("inf") if self.give_up_at is None else self.give_up_at
        adoption = float("inf")
        if self.adopter.under_way or (self.adopter.needed and self.roster.donors()):
            adoption = self.adopter.deadline()
        return min(self.adverts.due(), self.replicator.deadline(), give_up, adoption, self.membership.deadline())

    def check(self) -> None:
        """Look whether all holds that must hold between two events; `InvariantError` if something does not."""
        lane, roster = self.replicator, self.roster
        for room in (lane, roster, self.units, self.adopter, self.membership, self.conduct):
            room.check()
        hold(lane.away == roster.gone, "who is gone is away", sorted(lane.away), sorted(roster.gone))
        hold(lane.members <= roster.members.keys(), "members of the lane are known", sorted(lane.members))
        for peer, member in roster.members.items():
            hold(not member.reads or peer in lane.members, "who reads is a member of the lane", peer, member)
            if member.read:
                hold(peer in lane.origins, "lanes of members are read", peer, member)
                in_reach, is_here = lane.origins[peer].reachable, member.departed_at is None
                hold(in_reach == is_here, "who is not gone is in reach", peer, member, lane.origins[peer])
        if self._started:
            hold(self.ready or self.adopter.needed, "who has no replica looks for one")
            self.units.check_known_to()

    # ------------------------------------------------------------------------------------------------------- events

    def _on_started(self, event: Started, now: float) -> list[Effect]:
        self.replicator.start(event.frontiers)
        self.units.start(event.closed, event.units, event.marks)
        self._started = self.adverts.changed = self.roster.lanes_changed = True
        self.ready = event.ready
        if not event.ready:
            self.adopter.start_without_replica()
        return []

    def _on_joined(self, event: Joined, now: float) -> list[Effect]:
        self.replicator.join(event.peer, event.reads, event.read, event.level)
        self.roster.join(event.peer, event.reads, event.read)
        self.membership.join(event.peer, now, known=self.ready or not self._started)
        if event.exempt:
            self.conduct.exempt.add(event.peer)
        self.adverts.changed = True
        return self._leave_out(event.peer, now) if event.peer in self.roster.out else []

    def _on_departed(self, event: Departed, now: float) -> list[Effect]:
        self._reach(event.peer, now, now)
        return []

    def _on_returned(self, event: Returned, now: float) -> list[Effect]:
        self._reach(event.peer, None, now)
        return []

    def _on_disconnected(self, event: Disconnected, now: float) -> list[Effect]:
        self.membership.disconnected(event.peer, now)
        return []

    def _on_offended(self, event: Offended, now: float) -> list[Effect]:
        return self._put_out(self.conduct.offend(event.peer, event.why), now)

    def _on_progressed(self, event: Progressed, now: float) -> list[Effect]:
        if event.arrived:
            self.membership.heard(event.peer, now)
        self.replicator.progressed(event.peer, now)
        self.adopter.progressed(event.peer, now)
        return []

    def _on_exhausted(self, event: Exhausted, now: float) -> list[Effect]:
        self.give_up_at = now + event.timeout_s
        self.conduct.closing = True
        return []

    def _on_leaving(self, event: Leaving, now: float) -> list[Effect]:
        self._started = False
        farewell = self.membership.farewell()
        return [self._advert(farewell)] if farewell else []

    def _on_closed(self, event: Closed, now: float) -> list[Effect]:
        self.conduct.begin_anew()
        if self.units.close(event.epochs) and self.ready:
            self.units.drop_closed()
        return []

    def _on_received(self, event: Received, now: float) -> list[Effect]:
        message = event.message
        if message.peer in self.roster.out:
            return []
        # a bulk message may have waited for the replica; its parts were heard when they came
        if not isinstance(message, Bulk):
            self.membership.heard(message.peer, now)
        match message:
            case Advert():
                return self._on_advert(message, now)
            case Pull(lane=lane):
                return self.replicator.on_pull(message) if lane is None or lane == self.me else []
            case Range():
                return self._on_range(message)
            case Unknown(peer, frontier, lane=lane):
                return self._on_unknown(peer if lane is None else lane, frontier)
            case Pin():
                return self.replicator.on_pin(message)
            case Unpin():
                return self.replicator.on_unpin(message)
            case Pinned():
                return self.adopter.on_pinned(message, self.roster.readable())
            case StateRequest():
                return self._on_state_request(message)
            case State():
                return self._on_state(message)
            case Ping() | PingRequest() | Ack() | Nack():
                return self.membership.on_message(message, now)
            case Credit() | Here() | Offer() | PacketRequest() | PacketReply():
                return []  # of the transport, and of peers that mix

    # ---------------------------------------------------------------------------------------------------- members

    def _reach(self, peer: PeerId, departed_at: float | None, now: float) -> None:
        if self.roster.reach(peer, departed_at, now):
            self.replicator.reach(peer, departed_at is None)

    def _detect(self, now: float) -> list[Effect]:
        """Who is dead or out of reach, and who is back."""
        effects = self.membership.tick(now)
        self.adverts.changed |= self.membership.news
        for peer, gone in self.membership.changes(now):
            self._reach(peer, now if gone else None, now)
        return effects

    def _judge(self, now: float) -> list[Effect]:
        """Who is put out by now."""
        effects = self._put_out(self.conduct.judge(), now)
        self.adverts.changed |= self.conduct.news
        return effects

    def _put_out(self, verdicts: list[PutOut], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for verdict in verdicts:
            peer = verdict.peer
            self.roster.out[peer] = verdict.why
            effects.append(verdict)
            self.conduct.put_out(peer)
            effects += self._leave_out(peer, now)
        return effects

    def _leave_out(self, peer: PeerId, now: float) -> list[Effect]:
        """Take one that is put out for dead, if it was introduced: nothing is kept for it."""
        member = self.roster.members.get(peer)
        if member is None:
            return []
        self._reach(peer, now, now)
        member.forgotten = True
        return self.replicator.forget_reader(peer)

    def _forget_departed(self, now: float) -> list[Effect]:
        """Keep nothing more for readers that will hardly come back.

        Two halves of a cut must not both do so, or each would refuse the other when it is healed: only the one with
        the smallest name does. It can read the others' lanes then, from where any of its peers stood, and has replicas
        for those who cannot. Twice the cap is the end of that.
        """
        smallest_since = self.roster.is_smallest_since(now)
        effects: list[Effect] = []
        for departed_at, peer in self.roster.departures():
            kept, cap = len(self.replicator.segments), self.settings.segments_max
            patience_s = self.settings.forget_s if kept <= cap else self.settings.settle_s
            if now >= max(departed_at, smallest_since) + patience_s or kept > 2 * cap:
                self.roster.members[peer].forgotten = True
                effects += self.replicator.forget_reader(peer)
        return effects

    def _look_after_dead_lanes(self, now: float) -> None:
        """Survivors agree on what they have of a dead lane: whoever has less adopts from the one that has most."""
        self.roster.look_for_strangers(self.replicator.origins, now)
        dead = self.roster.dead_lanes(self.settings.settle_s, now)
        if not dead or not self.ready or not self.adopter.agrees or self.adopter.under_way:
            return
        ranks = {
            self.me: self.replicator.frontiers(),
            **{peer: self.roster.members[peer].frontiers for peer in self.roster.donors()},
        }
        best = self.conduct.donor(ranks, dead)
        if any(ranks[best].get(lane, 0) != ranks[self.me].get(lane, 0) for lane in dead):
            self.adopter.prefer(best)

    # ------------------------------------------------------------------------------------------------------- lanes

    def _on_computed(self, event: Computed, now: float) -> list[Effect]:
        assert self.ready, "a peer without a replica has nothing to compute from"
        unit, attempt = event.unit, event.attempt
        if unit is not None and self.identities.knows(unit):
            return [Gated(unit)]
        left_out: list[Effect] = []
        if unit is not None and self.layout is not None and self.conduct.leaves_out(event.payload, self.layout):
            # the unit counts, so that nobody computes it again
            event, left_out = replace(event, payload=nothing(self.layout)), [Gated(unit)]
        marks = () if unit is None else (Mark(unit, attempt),)
        self.identities.note(self.me, marks)
        self.adverts.changed = self.adverts.published = True
        effects = self.replicator.publish(event.payload, marks)
        number = self.replicator.n
        if self.settings.applies_own:
            effects.append(Deliver(self.me, number, number, event.payload))
        if unit is not None and attempt > 0:
            self.units.retain(number, unit, attempt)
            effects.append(Retain(number, event.payload))
        return left_out + effects

    def _withdraw(self, now: float) -> list[Effect]:
        before = self.units.withdrawn
        effects = self.units.withdraw(now)
        self.adverts.changed |= self.units.withdrawn > before
        return effects

    def _on_advert(self, advert: Advert, now: float) -> list[Effect]:
        self.replicator.heard(advert.peer, advert.n)
        self.membership.on_rumors(advert.rumors, now)
        member = self.roster.members.get(advert.peer)
        if member is None:
            return []
        self.conduct.heard(advert)
        if self.roster.heard(advert):
            self.units.heard(advert)
        if not member.reads or not advert.ready or member.forgotten:
            return []
        return self.replicator.acknowledge(advert.peer, advert.frontiers.get(self.me, 0), advert.k)

    def _on_range(self, message: Range) -> list[Effect]:
        if not self.ready or not self.replicator.is_next(message):
            return []
        assert message.payload is not None
        try:
            self._check(message.payload)
            self.units.check_marks(message)
        except MismatchError as error:
            self.refused += 1
            return [Warn(f"updates {message.lo}..{message.hi} of peer {message.of} are not merged: {error}")]
        if not self.conduct.admits(message, self.layout):
            return []
        self.adverts.changed = True
        self.units.note(message)
        effects = self.replicator.on_range(message)
        self.units.noted(message)
        return effects

    def _check(self, payload: Update) -> None:
        if self.layout is not None:
            check(payload, self.layout, self.settings.kinds)
        elif not payload.is_finite:
            check_finite(payload.arrays())  # which says where

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        origin = self.replicator.origins.get(peer)
        if origin is None or origin.frontier != frontier:
            return []
        return self.adopter.lacks(peer, frontier)

    # ---------------------------------------------------------------------------------------------------- replicas

    def _on_state_request(self, request: StateRequest) -> list[Effect]:
        if not self.ready:
            return []
        return self.adopter.on_request(request, self.roster.departed(), self.roster.readable(), self.identities)

    def _on_state(self, state: State) -> list[Effect]:
        assert state.payload is not None
        try:
            self._check(state.payload)
        except MismatchError as error:
            self.refused += 1
            return [Warn(f"the replica of peer {state.peer} is not adopted: {error}")]
        effects = self.adopter.on_state(state)
        if effects is None:
            return []
        self.units.adopt(state)
        self.conduct.adopted()
        self.ready = True
        self.adverts.changed = self.roster.lanes_changed = True
        return effects

    # ------------------------------------------------------------------------------------------------------- timers

    def _advertise(self, now: float) -> list[Effect]:
        if now < self.adverts.due():
            return []
        self.adverts.said(now)
        if self.ready:
            self.units.drop_closed()
        return [self._advert(self.membership.rumors())]

    def _advert(self, rumors: tuple[Rumor, ...]) -> Publish:
        frontiers = self.replicator.frontiers()
        n, refuses = frontiers.pop(self.me), self.conduct.said()
        norm = self.conduct.norm_left_out
        return Publish(Advert(self.me, n, frontiers, self.ready, self.replicator.k, rumors, refuses, norm))

    def _keep_pace(self) -> list[Effect]:
        congested = bool(self.replicator.pins) and len(self.replicator.segments) > self.settings.segments_max
        if congested == self.congested:
            return []
        self.congested = congested
        return [Congested(congested)]

    def _drain(self, now: float) -> list[Effect]:
        if self.give_up_at is None:
            return []
        missing = tuple(peer for peer in self.replicator.behind() if peer not in self.roster.departed())
        if (missing or self.pending or not self._level()) and now < self.give_up_at:
            return []
        self.give_up_at = None
        return [Drained(missing)]

    def _level(self) -> bool:
        """Everybody alive has as much as we of each lane that both know, as far as was heard.

        That goes for a dead peer's lane too, whose owner cannot say who lacks some of it. In the star of a master,
        where nobody adopts, members do not read the same lanes.
        """
        if not self.adopter.agrees:
            return True
        mine = self.replicator.frontiers()
        theirs = [self.roster.members[peer].frontiers for peer in self.roster.donors()]
        return all(mine[lane] == frontiers[lane] for frontiers in theirs for lane in frontiers.keys() & mine.keys())


_REACTIONS: dict[type, Callable[[Peer, Any, float], list[Effect]]] = {
    Started: Peer._on_started,
    Joined: Peer._on_joined,
    Departed: Peer._on_departed,
    Returned: Peer._on_returned,
    Disconnected: Peer._on_disconnected,
    Offended: Peer._on_offended,
    Progressed: Peer._on_progressed,
    Received: Peer._on_received,
    Computed: Peer._on_computed,
    Closed: Peer._on_closed,
    Exhausted: Peer._on_exhausted,
    Leaving: Peer._on_leaving,
}
