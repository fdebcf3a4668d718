"""The peer: a pure state machine that turns events into effects.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

It watches who is there (`detection`), or is told; it advertises when something changed (at most every `advert_gap_s`)
and every `advert_period_s` anyway, because an advert may be lost; it pulls from whoever is ahead; it checks what comes
in before it lets it near the replica; it adopts a replica when only that helps; and it takes back an update whose unit
another peer had published first.
`now` is seconds on any clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gossip.arrays import Layout, Payload, Update, check_finite
from gossip.errors import MismatchError
from gossip.events import (
    Closed,
    Computed,
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
    Negative,
    Progressed,
    Publish,
    Received,
    Release,
    Retain,
    Returned,
    Send,
    Started,
    Ticked,
    Warn,
)
from gossip.identity import TOIL_MAX, Identities
from gossip.lanes.adopt import Adopter, Chance, state_of
from gossip.lanes.replicate import Replicator
from gossip.membership import Detection, Membership
from gossip.messages import (
    Ack,
    Advert,
    Bulk,
    Credit,
    Mark,
    Message,
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
    Unit,
    Unknown,
    Unpin,
)
from gossip.updates import KINDS, check, kind_of
from gossip.updates.table import Kinds

RETURN_S = 2.0
"""When a cut heals, all who were cut off are heard again within some adverts: nobody is buried before that."""


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
    kinds: Kinds = KINDS
    """Of updates that are merged here, from a task or from others; all peers of a run have the same."""


@dataclass
class Member:
    """Another peer, as far as it is known."""

    reads: bool
    read: bool
    ready: bool = False
    frontiers: Mapping[PeerId, int] = field(default_factory=dict)
    """Of its newest advert."""
    k: int = 0
    """Of the same: an adoption raises it, and may take its frontiers back in lanes of the dead."""
    departed_at: float | None = None
    forgotten: bool = False


@dataclass
class Retained:
    """An own update that may have to be taken back."""

    unit: Unit
    attempt: int
    known_to: dict[PeerId, int] = field(default_factory=dict)
    """Readers that have it, and how far their lane was then: what they publish later is gated by it. Not those that
    adopt or are out of reach: they may come out of that without it, and publish the unit."""


class Peer:
    """One member of the swarm. `layout` is what every payload must look like; None accepts any finite arrays."""

    def __init__(
        self, me: PeerId, layout: Layout | None, settings: Settings | None = None, chance: Chance | None = None
    ) -> None:
        """`chance` spreads adoptions in time and over donors; a peer without it never adopts."""
        self.me = me
        self.layout = layout
        self.settings = settings or Settings()
        self.replicator = Replicator(me, self.settings.pull_timeout_s, self.settings.pulls_max, self.settings.coalesce)
        self.adopter = Adopter(me, self.replicator, chance) if chance is not None else None
        detection = self.settings.detection
        self.membership = Membership(me, detection, chance) if detection is not None else None
        self.identities = Identities()
        self.members: dict[PeerId, Member] = {}
        self.refused = 0
        """Ranges not merged because they did not fit or were not finite."""
        self.withdrawn = 0
        """Own updates taken back because another attempt had come first."""
        self.ready = False
        """It has a replica."""
        self._gone: set[PeerId] = set()
        """Members that departed; mostly none, and asked for at every event."""
        self._started = False
        self._changed = False
        self._published = False
        self._advertised_at = float("-inf")
        self._give_up_at: float | None = None
        self._returned_at = float("-inf")
        """When somebody who was taken for dead was heard again."""
        self._retained: dict[int, Retained] = {}
        self._smallest_since = float("-inf")
        """For how long no departed peer had a smaller name than all who are here."""
        self._strangers: dict[PeerId, float] = {}
        """Lanes that are known while their peers are not, and since when."""
        self._lanes_changed = True
        """There may be other strangers than when it was looked for them."""
        self._closing: dict[PeerId, int] = {}
        """How far each lane was here when the last was learned of epochs that are closed, and not dropped yet."""
        self._awaited: set[PeerId] = set()
        """Who must have as much before these are dropped."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        effects: list[Effect] = []
        match event:
            case Received(message):
                effects = self._on_received(message, now)
            case Started(frontiers, ready, closed, units):
                self.replicator.start(frontiers)
                self.identities = Identities(closed, units)
                self._started = self._changed = self._lanes_changed = True
                self.ready = ready
                if not ready:
                    assert self.adopter is not None, "a peer that is not ready needs chance to adopt a replica"
                    self.adopter.start_without_replica()
            case Joined(peer, reads, read, level):
                self.replicator.join(peer, reads, read, level)
                self.members.setdefault(peer, Member(reads, read))
                if self.membership is not None:
                    self.membership.join(peer, now, known=self.ready or not self._started)
                self._changed = True
                self._lanes_changed |= bool(self._strangers)
            case Departed(peer):
                self._reach(peer, now, now)
            case Returned(peer):
                self._reach(peer, None, now)
            case Computed(payload, unit, attempt):
                effects = self._on_computed(payload, unit, attempt)
            case Closed(epochs):
                self._on_closed(epochs)
            case Disconnected(peer):
                if self.membership is not None:
                    self.membership.disconnected(peer, now)
            case Progressed(peer, arrived):
                if self.membership is not None and arrived:
                    self.membership.heard(peer, now)
                self.replicator.progressed(peer, now)
                if self.adopter is not None:
                    self.adopter.progressed(peer, now)
            case Exhausted(timeout_s):
                self._give_up_at = now + timeout_s
            case Leaving():
                self._started = False
                if self.membership is not None:
                    return [self._advert(self.membership.farewell())]
            case Ticked():
                pass
        if self._started:
            effects += self._detect(now)
            effects += self._withdraw(now)
            effects += self._forget_departed(now)
            self._look_after_dead_lanes(now)
            if self.adopter is not None and (self.adopter.needed or self.adopter.under_way):
                effects += self.adopter.tick(now, self._donors(), self._readable())
            if self.ready:
                effects += self.replicator.pulls(now)
            effects += self._advertise(now)
            effects += self._drain(now)
        return effects

    @property
    def pending(self) -> bool:
        """Something of its own is still to be decided: an adoption, or an update that may have to be taken back."""
        adopts = self.adopter is not None and self.adopter.needed
        return adopts or any(self._earlier(retained) for retained in self._retained.values())

    @property
    def congested(self) -> bool:
        """Somebody adopts a replica, and so many segments are kept for it that publishing should wait."""
        return bool(self.replicator.pins) and len(self.replicator.segments) > self.settings.segments_max

    def expects(self, header: Bulk) -> bool:
        """Whether its arrays are wanted."""
        match header:
            case Range():
                wanted = self.replicator.is_next(header)
                if wanted and self.layout is not None:
                    kind_of(header.layout, self.settings.kinds).check_fit(header.layout, self.layout)
            case State():
                wanted = self.adopter is not None and self.adopter.expects(header)
                if wanted and self.layout is not None:
                    header.layout.check_fit(self.layout)
            case _:
                return False
        return wanted

    def deadline(self) -> float:
        """When to come back with `Ticked`; infinite before `Started`."""
        if not self._started:
            return float("inf")
        advert = self._advertised_at + self._advert_gap_s()
        give_up = float("inf") if self._give_up_at is None else self._give_up_at
        adoption = float("inf")
        if self.adopter is not None and (self.adopter.under_way or (self.adopter.needed and self._donors())):
            adoption = self.adopter.deadline()
        membership = self.membership.deadline() if self.membership is not None else float("inf")
        return min(advert, self.replicator.deadline(), give_up, adoption, membership)

    def _on_received(self, message: Message, now: float) -> list[Effect]:
        # a bulk message may have waited for the replica; its parts were heard when they came
        if self.membership is not None and not isinstance(message, Bulk):
            self.membership.heard(message.peer, now)
        match message:
            case Advert():
                return self._on_advert(message, now)
            case Pull():
                return self.replicator.on_pull(message)
            case Range():
                return self._on_range(message)
            case Unknown(peer, frontier):
                return self._on_unknown(peer, frontier)
            case Pin():
                return self.replicator.on_pin(message)
            case Unpin():
                return self.replicator.on_unpin(message)
            case Pinned():
                return self.adopter.on_pinned(message, self._readable()) if self.adopter is not None else []
            case StateRequest():
                return self._on_state_request(message)
            case State():
                return self._on_state(message)
            case Ping() | PingRequest() | Ack() | Nack():
                return self._on_membership(message, now)
            case Credit() | Offer() | PacketRequest() | PacketReply():
                return []  # of the transport, and of peers that mix

    # ---------------------------------------------------------------------------------------------------- members

    def _reach(self, peer: PeerId, departed_at: float | None, now: float) -> None:
        member = self.members.get(peer)
        if member is None:
            return
        if departed_at is None and member.departed_at is not None:
            self._returned_at = now
        member.departed_at = departed_at
        member.forgotten = False
        if departed_at is None:
            self._gone.discard(peer)
        else:
            self._gone.add(peer)
        self._lanes_changed = True
        self.replicator.reach(peer, departed_at is None)

    def _detect(self, now: float) -> list[Effect]:
        """Who is dead or out of reach, and who is back."""
        if self.membership is None:
            return []
        effects = self.membership.tick(now)
        self._changed = self._changed or self.membership.news
        for peer, gone in self.membership.changes(now):
            self._reach(peer, now if gone else None, now)
        return effects

    def _on_membership(self, message: Ping | PingRequest | Ack | Nack, now: float) -> list[Effect]:
        if self.membership is None:
            return []
        match message:
            case Ping():
                return self.membership.on_ping(message, now)
            case PingRequest():
                return self.membership.on_ping_request(message, now)
            case Ack():
                return self.membership.on_ack(message, now)
            case Nack():
                self.membership.on_nack(message)
        return []

    def _alive(self) -> list[PeerId]:
        return [peer for peer in self.members if peer not in self._gone]

    def _readable(self) -> list[PeerId]:
        """Living peers whose lanes we read."""
        return [peer for peer in self._alive() if self.members[peer].read]

    def _donors(self) -> list[PeerId]:
        return [peer for peer in self._alive() if self.members[peer].ready]

    def _departed_at(self, peer: PeerId) -> float:
        departed_at = self.members[peer].departed_at
        assert departed_at is not None
        return departed_at

    def _departed(self) -> set[PeerId]:
        return self._gone | self._strangers.keys()

    def _look_for_strangers(self, now: float) -> None:
        """Lanes of peers that nobody introduced: they were dead before we came."""
        if not self._lanes_changed:
            return
        self._lanes_changed = False
        lanes = set(self.replicator.origins).union(*(self.members[peer].frontiers for peer in self._alive()))
        strangers = lanes - self.members.keys() - {self.me}
        self._strangers = {lane: self._strangers.get(lane, now) for lane in strangers}

    def _forget_departed(self, now: float) -> list[Effect]:
        """Keep nothing more for readers that will hardly come back.

        Two halves of a cut must not both do so, or each would refuse the other when it is healed: only the one with
        the smallest name does. It can read the others' lanes then, from where any of its peers stood, and has replicas
        for those who cannot. Twice the cap is the end of that.
        """
        if not self._gone:
            self._smallest_since = now
            return []
        effects: list[Effect] = []
        if min([self.me, *self._alive()]) > min(self._gone):
            self._smallest_since = now  # and not only for the moment in which a cut heals
        for departed_at, peer in sorted((self._departed_at(peer), peer) for peer in self._gone):
            kept, cap = len(self.replicator.segments), self.settings.segments_max
            patience_s = self.settings.forget_s if kept <= cap else self.settings.settle_s
            if now >= max(departed_at, self._smallest_since) + patience_s or kept > 2 * cap:
                self.members[peer].forgotten = True
                effects += self.replicator.forget_reader(peer)
        return effects

    def _look_after_dead_lanes(self, now: float) -> None:
        """Survivors agree on what they have of a dead lane: whoever has less adopts from the one that has most."""
        self._look_for_strangers(now)
        dead = [lane for lane, since in self._strangers.items() if now >= since + self.settings.settle_s]
        dead += [peer for peer in self._gone if now >= self._departed_at(peer) + self.settings.settle_s]
        if not dead or now < self._returned_at + RETURN_S:
            return
        if not self.ready or self.adopter is None or self.adopter.under_way:
            return
        ranks = {
            self.me: self.replicator.frontiers(),
            **{peer: self.members[peer].frontiers for peer in self._donors()},
        }
        best = max(ranks, key=lambda peer: (sum(ranks[peer].get(lane, 0) for lane in dead), peer))
        if any(ranks[best].get(lane, 0) != ranks[self.me].get(lane, 0) for lane in dead):
            self.adopter.needed = True
            self.adopter.preferred = best

    # ------------------------------------------------------------------------------------------------------- lanes

    def _on_computed(self, payload: Payload, unit: Unit | None, attempt: int) -> list[Effect]:
        assert self.ready, "a peer without a replica has nothing to compute from"
        if unit is not None and self.identities.knows(unit):
            return [Gated(unit)]
        marks = () if unit is None else (Mark(unit, attempt),)
        self.identities.note(self.me, marks)
        self._changed = self._published = True
        effects = self.replicator.publish(payload, marks)
        number = self.replicator.n
        if self.settings.applies_own:
            effects.append(Deliver(self.me, number, number, payload))
        if unit is not None and attempt > 0:
            self._retained[number] = Retained(unit, attempt)
            effects.append(Retain(number, payload))
        return effects

    def _withdraw(self, now: float) -> list[Effect]:
        """Take back what came second, and release what nobody can come before any more."""
        effects: list[Effect] = []
        for number, retained in list(self._retained.items()):
            for peer in (*self._gone, *self.replicator.pins):
                retained.known_to.pop(peer, None)
            earlier = self._earlier(retained)
            if any(self._stands(lane, now) for lane in earlier):
                mark = Mark(retained.unit, retained.attempt, withdraws=True)
                self.identities.note(self.me, (mark,))
                effects += self.replicator.publish(Negative(number), (mark,))
                if self.settings.applies_own:
                    effects.append(Deliver(self.me, self.replicator.n, self.replicator.n, Negative(number)))
                self.withdrawn += 1
                self._changed = True
            elif earlier or not self._settled(retained):
                continue
            effects.append(Release(number))
            del self._retained[number]
            self.identities.settle(retained.unit)
        return effects

    def _earlier(self, retained: Retained) -> list[PeerId]:
        """The lanes with an attempt of the same unit that goes before ours."""
        mine = (retained.attempt, self.me)
        return [lane for attempt, lane in self.identities.standing(retained.unit) if (attempt, lane) < mine]

    def _stands(self, lane: PeerId, now: float) -> bool:
        """What we have of `lane` will stay: it is alive, or the survivors have agreed on it."""
        member = self.members.get(lane)
        if member is None or member.departed_at is None:
            return True
        return now >= member.departed_at + 3 * self.settings.settle_s

    def _settled(self, retained: Retained) -> bool:
        """Every reader knows the unit, and all that it published before it did is known here."""
        for peer, member in self.members.items():
            if not member.reads or (member.forgotten and len(self._retained) > self.settings.segments_max):
                continue
            n = retained.known_to.get(peer)
            if n is None or (member.read and self.replicator.origins[peer].frontier < n):
                return False
        return True

    def _on_advert(self, advert: Advert, now: float) -> list[Effect]:
        self.replicator.heard(advert.peer, advert.n)
        seen = advert.frontiers.get(self.me, 0)
        member = self.members.get(advert.peer)
        if self.membership is not None:
            self.membership.on_rumors(advert.rumors, now)
        if member is not None:
            if advert.k >= member.k:  # else it is of before a pull or an adoption
                member.ready, member.frontiers, member.k = advert.ready, advert.all_frontiers, advert.k
                self._note_known(advert, seen)
            unknown = advert.frontiers.keys() - self.members.keys()
            self._lanes_changed |= bool(self._strangers) or not unknown <= {self.me}
        if member is None or not member.reads or not advert.ready or member.forgotten:
            return []
        return self.replicator.acknowledge(advert.peer, seen, advert.k)

    def _note_known(self, advert: Advert, seen: int) -> None:
        """Which of the updates that may have to be taken back its peer has; that may be fewer than it had."""
        for number, retained in self._retained.items():
            if seen < number:
                retained.known_to.pop(advert.peer, None)
            elif advert.peer not in self._gone:
                retained.known_to.setdefault(advert.peer, advert.n)

    def _on_range(self, message: Range) -> list[Effect]:
        if not self.ready or not self.replicator.is_next(message):
            return []
        assert message.payload is not None
        try:
            self._check(message.payload)
            if len(message.marks) > 1 or (message.marks and message.marks[0].chunk < 0):
                self._check_marks(message)
        except MismatchError as error:
            self.refused += 1
            return [Warn(f"updates {message.lo}..{message.hi} of peer {message.peer} are not merged: {error}")]
        self._changed = True
        self.identities.note(message.peer, message.marks)
        effects = self.replicator.on_range(message)
        known = self.identities
        if known.dropped < known.closed and any(series.epoch < known.closed for series in message.marks):
            self._await_everybody()
        return effects

    def _check(self, payload: Update) -> None:
        if self.layout is not None:
            check(payload, self.layout, self.settings.kinds)
        elif not payload.is_finite:
            check_finite(payload.arrays())  # which says where

    def _check_marks(self, message: Range) -> None:
        """A run of marks costs no more than one mark, unless it reaches into others of the same partition."""
        toil = self.identities.toil(message.peer, message.marks)
        if toil > TOIL_MAX:
            raise MismatchError(f"{toil} of their units lie among others of the same partition, at most {TOIL_MAX}")

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        origin = self.replicator.origins.get(peer)
        if origin is None or origin.frontier != frontier:
            return []
        if self.adopter is None:
            return [Warn(f"peer {peer} cannot serve what follows update {frontier} of its lane: we stay behind")]
        self.adopter.needed = True
        return []

    # ---------------------------------------------------------------------------------------------------- replicas

    def _on_state_request(self, request: StateRequest) -> list[Effect]:
        if not self.ready:
            return []
        if self.adopter is None:
            return [Send(request.peer, state_of(self.replicator, self.identities, request))]
        return self.adopter.on_request(request, self._departed(), self._readable(), self.identities)

    def _on_state(self, state: State) -> list[Effect]:
        if self.adopter is None:
            return []
        assert state.payload is not None
        try:
            self._check(state.payload)
        except MismatchError as error:
            self.refused += 1
            return [Warn(f"the replica of peer {state.peer} is not adopted: {error}")]
        effects = self.adopter.on_state(state)
        if effects is None:
            return []
        self._learn(state)
        self.ready = True
        self._changed = self._lanes_changed = True
        return effects

    def _learn(self, state: State) -> None:
        """What the donor knew of units is what goes with its replica, but for the own updates that it had not seen."""
        seen, before = state.frontiers.get(self.me, 0), self.identities
        self.identities = known = Identities.told(state.marks, state.closed, state.units)
        known.close(before.closed)
        known.drop(before.dropped, [retained.unit for retained in self._retained.values()])
        for number, retained in self._retained.items():
            if retained.unit.epoch < known.dropped:
                known.watch(retained.unit, (retained.attempt, self.me) if number <= seen else None)
        known.note(self.me, self.replicator.marks(seen, self.replicator.n))
        known.prune(retained.unit for retained in self._retained.values())
        self._await_everybody()

    # -------------------------------------------------------------------------------------------- epochs that are over

    def _on_closed(self, epochs: int) -> None:
        """What is known of these epochs is kept until everybody has as much of each lane as we have now.

        Then nobody holds an attempt that is to be taken back for one that it does not know of. Those that are out of
        reach may, as long as something is kept for them. What comes in when it is dropped is counted by itself
        (`identity`).
        """
        if epochs > self.identities.closed:
            self.identities.close(epochs)
            self._await_everybody()
            self._drop_closed()

    def _await_everybody(self) -> None:
        """We have learned something of epochs that are to be dropped."""
        self._closing = self.replicator.frontiers()
        self._awaited = set(self.members) if self.adopter is not None else set()

    def _drop_closed(self) -> None:
        if self.identities.dropped == self.identities.closed or not self.ready:
            return
        awaited = [peer for peer in self._awaited if not self.members[peer].forgotten]
        if not self._gone.isdisjoint(awaited):
            return
        for peer in awaited:  # all at once: who had as much may have less again, of the lanes of the dead
            theirs = self.members[peer].frontiers
            if any(theirs.get(lane, 0) < n for lane, n in self._closing.items()):
                return
        retained = [retained.unit for retained in self._retained.values()]
        self.identities.drop(self.identities.closed, retained)
        self._closing, self._awaited = {}, set()

    # ------------------------------------------------------------------------------------------------------- timers

    def _advert_gap_s(self) -> float:
        """From the last advert to the next."""
        if self._published and self.settings.advert_own_gap_s is not None:
            return min(self.settings.advert_own_gap_s, self.settings.advert_gap_s)
        return self.settings.advert_gap_s if self._changed else self.settings.advert_period_s

    def _advertise(self, now: float) -> list[Effect]:
        if now < self._advertised_at + self._advert_gap_s():
            return []
        self._changed = self._published = False
        self._advertised_at = now
        self._drop_closed()
        return [self._advert(self.membership.rumors() if self.membership is not None else ())]

    def _advert(self, rumors: tuple[Rumor, ...]) -> Publish:
        frontiers = self.replicator.frontiers()
        return Publish(Advert(self.me, frontiers.pop(self.me), frontiers, self.ready, self.replicator.k, rumors))

    def _drain(self, now: float) -> list[Effect]:
        if self._give_up_at is None:
            return []
        missing = tuple(peer for peer in self.replicator.behind() if peer not in self._departed())
        if (missing or self.pending or not self._level()) and now < self._give_up_at:
            return []
        self._give_up_at = None
        return [Drained(missing)]

    def _level(self) -> bool:
        """Everybody alive has as much as we of each lane that both know, as far as was heard.

        That goes for a dead peer's lane too, whose owner cannot say who lacks some of it. In the star of a master,
        where nobody adopts, members do not read the same lanes.
        """
        if self.adopter is None:
            return True
        mine = self.replicator.frontiers()
        theirs = [self.members[peer].frontiers for peer in self._alive() if self.members[peer].ready]
        return all(mine[lane] == frontiers[lane] for frontiers in theirs for lane in frontiers.keys() & mine.keys())
