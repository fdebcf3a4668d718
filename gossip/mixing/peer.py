"""A peer that mixes: a strategy of `gossip.mixing` as a state machine on messages, `Peer`'s other half.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

                       a step was computed, or a neighbor is ahead, or time is up
    between rounds ----------------------------------------------> send: packets wait for their readers, offers go out
         ^                                                              |
         |  finish                                                      |  asynchronous: at once
         +--------------------------------------------------------------+  synchronous: when all that this round needs
                                                                              has come and was taken

    at rest --Resumed--> training --Settling--> settling --Exhausted--> at rest

It has no lanes: what it learned is in its state, and moves as the strategy moves it. The replica follows from the
state: `Adopt` says that it has changed. Packets are offered to all and pulled one by one, so nobody is sent more than
it takes: an asynchronous peer leaves out whoever has not taken the last one yet.

In training, a round of a strategy that goes by steps takes one step, and no step is without its round; the others have
rounds by the clock. In step with its neighbors a peer waits for those who are alive, however long they compute. One
that is idle, since no task of it computes, follows the rounds of others without a step, so that nobody waits for it and
nothing is made up. Settling, all complete the rounds that anybody has begun; then the strategy's `consensus` goes on by
the clock until nothing moves any more.

At rest it begins no round of its own, but packets are still taken, and the rounds of others are followed: so when all
are at rest and drained, nothing is in flight.

Rounds are counted on the wire by their *place*: the number of the era, which the driver program gives out, and the
round within it. So nobody takes a round of the training for one of the consensus that comes after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import numpy as np

from gossip.arrays import Array, Layout, Payload, check_finite
from gossip.errors import MismatchError
from gossip.events import (
    Adopt,
    Closed,
    Computed,
    Departed,
    Disconnected,
    Drained,
    Effect,
    Event,
    Exhausted,
    Gated,
    Initialized,
    Joined,
    Leaving,
    Progressed,
    Publish,
    Received,
    Resumed,
    Returned,
    Send,
    Settling,
    Tasked,
    Warn,
)
from gossip.flat import Flat, PackedLater
from gossip.identity import Identities
from gossip.membership import Detection, Membership
from gossip.messages import (
    Ack,
    Bulk,
    Mark,
    Nack,
    Offer,
    PacketReply,
    PacketRequest,
    PeerId,
    Ping,
    PingRequest,
    Rumor,
    State,
    StateRequest,
    Unit,
)
from gossip.mixing.neighbors import Neighbors, Plan, number_of
from gossip.mixing.packets import Incoming, Outgoing, check_packet, check_result, check_size, open_packet
from gossip.mixing.strategy import Outbox, Strategy
from gossip.topology import Links

PACKET_SIZES_MAX = 8
"""A packet may be so many times as large as the parameters in float64: strategies send one or two vectors."""
BEHIND_MAX = 4
"""Rounds of mixing. Who is in step is never further ahead, but for one more with each peer in between: so who is behind
by more was away or came late, and goes on where the others are."""
ERA = 1 << 32
"""More than the rounds of any era."""
LIGHT = 1 / 4
"""A replica that weighs less gives nothing away: what was put on links to it is late, and every step that it takes
moves it by the step over its weight."""
STILL = 1e-12
"""A round that moves no number by more than this part of the largest has moved nothing; or by the precision of its
numbers, where that is less fine."""


class Phase(Enum):
    """What a peer is about."""

    RESTING = auto()
    TRAINING = auto()
    SETTLING = auto()


@dataclass(frozen=True)
class MixSettings:
    """How a peer that mixes behaves. Times in seconds."""

    round_s: float = 0.05
    """From one round to the next where nothing was computed meanwhile."""
    gap_s: float = 0.02
    """From one round to the next where something was."""
    wait_s: float = 10.0
    """For a packet of a neighbor that has begun the round; who is dead is found sooner. And for the first task of a
    training, where nobody says how long."""
    grace_s: float = 1.0
    """From the end of its last task until a peer is idle: the next task may be about to begin."""
    advert_period_s: float = 0.5
    """How long a lost offer may go unnoticed."""
    pull_timeout_s: float = 1.5
    """How long a request may go without any sign of an answer."""
    pulls_max: int = 8
    """How many requests may be under way at once: each may hold one packet in memory."""
    detection: Detection | None = None
    """How the dead are found; None where departures are told from outside."""


class MixPeer:
    """One member of a swarm that mixes."""

    def __init__(
        self,
        me: PeerId,
        layout: Layout,
        plan: Plan,
        chance: np.random.Generator,
        settings: MixSettings | None = None,
        members: Iterable[PeerId] = (),
    ) -> None:
        """`layout` is the model's. `members` have places in the topology from the beginning, introduced or not.

        Raises:
            UsageError: the model holds arrays that have no mean.
        """
        self.me = me
        self.layout = layout
        self.strategy = plan.strategy
        self.acting: Strategy[Any] = plan.strategy
        """Whose state it has: the strategy, or its consensus."""
        self.settings = settings or MixSettings()
        self.flat = Flat(layout)
        self.neighbors = Neighbors(me, plan, members)
        self.state: Any = None
        self.rounds = 0
        """Begun."""
        self.computed = 0
        """Updates in the state."""
        self.gated = 0
        """Updates of units that had been computed here before."""
        self.received = 0
        """Packets taken in."""
        self.taken = 0
        """Updates that were in the state when some neighbor took a packet."""
        self.refused = 0
        """Packets dropped because they did not fit or were not finite."""
        self.late = 0
        """Packets of rounds that were over."""
        self.given_up = 0
        """Synchronous rounds that ended without all that they needed."""
        self.trouble: str | None = None
        """Why it cannot go on."""
        self.identities = Identities()
        """Units of work that were computed here."""
        self.incoming: dict[PeerId, Incoming] = {}
        self.outgoing: dict[PeerId, Outgoing] = {}
        detection = self.settings.detection
        self.membership = Membership(me, detection, _Choice(chance)) if detection is not None else None
        self._chance = chance
        self._departed: set[PeerId] = set()
        self._phase = Phase.RESTING
        self._era = 0
        self._first = 0
        """The first round of the era."""
        self._born = 0
        """The era in which its state began."""
        self._settling: Settling | None = None
        """How far the training is to be completed before the consensus begins; None once it has."""
        self._tasks = 0
        self._idle_at = float("-inf")
        """When it may follow rounds without a step."""
        self._still = 0
        """Rounds in a row that moved nothing."""
        self._before: Array | None = None
        """The parameters before the round under way."""
        self._open: tuple[int, Links] | None = None
        """The synchronous round of mixing under way."""
        self._came: set[PeerId] = set()
        """Whose packets of that round have come."""
        self._early: dict[PeerId, PacketReply] = {}
        """Packets of rounds that were not begun here, one of each peer at most: no more is asked for before."""
        self._handed = 0
        """Updates that were handed over."""
        self._pending: deque[tuple[int, Array]] = deque()
        """Those that are not in the state yet, with their numbers: in training each waits for a round of its own."""
        self._taking: int | None = None
        """The number of the one that the open round has."""
        self._began_at = float("-inf")
        self._fresh = False
        """Something was computed since the last round began."""
        self._whole: set[str] = set()
        """Arrays of packets that are as long as the parameters, as far as our own packets tell."""
        self._readers: tuple[PeerId, ...] = ()
        """Who was sent something in the last round."""
        self._offered_at = float("-inf")
        self._news = False
        self._moved = False
        """The state has changed, and the replica with it."""
        self._give_up_at: float | None = None
        """When to say that this peer has drained, come what may; None if nobody asks."""
        self._warned: str | None = None
        self._warned_of: set[PeerId] = set()
        """Whose packets were not taken in."""
        self._k = 0
        self._asking: set[PeerId] = set()
        """Of whom something may have to be asked for, or who is to be told that something came."""
        self._asked: dict[PeerId, float] = {}
        """Of whom something was asked, and when that is given up."""

    # ------------------------------------------------------------------------------------------------------ outside

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        if self.membership is not None:
            match event:
                case Received(message):
                    self.membership.heard(message.peer, now)
                case Progressed(peer, arrived=True):
                    self.membership.heard(peer, now)
        effects = self._on(event, now)
        if isinstance(event, Leaving) or self.state is None:
            return effects
        if self.membership is not None:
            effects += self.membership.tick(now)
            self._news |= self.membership.news
            for peer, gone in self.membership.changes(now):
                self._reach(peer, gone)
        effects += self._go_on(now)
        while now >= self._round_due():
            effects += self._begin(now)
            effects += self._go_on(now)
        effects += self._owed()
        effects += self._requests(now)
        if self._moved:
            self._moved = False
            effects.append(Adopt(self.replica()))
        if now >= self._offer_due():
            effects.append(self._offer(now))
        return effects + self._drain(now)

    def deadline(self) -> float:
        """When to come back with `Ticked`; infinite before `Initialized`."""
        if self.state is None:
            return float("inf")
        requests = min(self._asked.values(), default=float("inf"))
        membership = self.membership.deadline() if self.membership is not None else float("inf")
        round_over = self._held_until(self._open[1]) if self._open is not None else float("inf")
        give_up = float("inf") if self._give_up_at is None else self._give_up_at
        return min(self._round_due(), self._offer_due(), round_over, requests, membership, give_up)

    @property
    def ready(self) -> bool:
        """It has a replica."""
        return self.state is not None

    @property
    def congested(self) -> bool:
        """Never: what is computed is in the state at once, or with the next round."""
        return False

    def expects(self, header: Bulk) -> bool:
        """Whether its arrays are wanted; `MismatchError` if they are larger than any packet."""
        if not isinstance(header, PacketReply) or not self._is_asked(header):
            return False
        check_size(header.layout, PACKET_SIZES_MAX * 8 * self.flat.size + 4096)
        return True

    def params(self) -> Array:
        """(parameters,) of the model, flat; not to be written to."""
        return self.acting.params(self.state)

    def replica(self) -> Payload:
        """The model as it is now. It is computed when it is read, and stays what it was."""
        strategy, state = self.acting, self.state
        return PackedLater(self.flat, lambda: strategy.params(state))

    @property
    def weight(self) -> float:
        """Of this replica in the mean of all."""
        return self.acting.weight(self.state) if self.state is not None else 1.0

    @property
    def place(self) -> int:
        """Of the round that comes next, as neighbors are told."""
        return self._era * ERA + self.rounds - self._first

    @property
    def settled(self) -> int:
        """Up to this number, updates are in the state or count elsewhere, and the rounds that have them are over."""
        if self._taking is not None:
            return self._taking - 1
        return self._pending[0][0] - 1 if self._pending else self._handed

    @property
    def departed(self) -> list[PeerId]:
        """Who is taken for dead."""
        return sorted(self._departed)

    # ------------------------------------------------------------------------------------------------------- events

    def _on(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Initialized(payload):
                self.acting, self.state = self.strategy, self.strategy.start(self.flat.flatten(payload))
                self._moved = self._news = True
            case Joined(peer):
                self.neighbors.add(peer)
                self._regroup()
                if self.membership is not None:
                    self.membership.join(peer, now, known=self.state is not None)
                self._news = True
                self._still = 0
            case Departed(peer):
                self._reach(peer, gone=True)
            case Returned(peer):
                self._reach(peer, gone=False)
            case Disconnected(peer):
                if self.membership is not None:
                    self.membership.disconnected(peer, now)
            case Computed(payload, unit, _):
                return self._on_computed(payload, unit, now)
            case Received(Offer() as offer):
                self._on_offer(offer, now)
            case Received(PacketRequest() as request):
                return self._on_request(request)
            case Received(PacketReply() as reply):
                return self._on_reply(reply)
            case Received(StateRequest(peer, k)) if self.state is not None:
                return [Send(peer, State(self.me, {}, k))]
            case Received(Ping() | PingRequest() | Ack() | Nack() as message):
                return self._on_membership(message, now)
            case Progressed(peer):
                if peer in self._asked:
                    self._asked[peer] = now + self.settings.pull_timeout_s
            case Closed(epochs):
                self.identities.drop(epochs)
            case Resumed(era, wait_s):
                self._resume(era, self.settings.wait_s if wait_s is None else wait_s, now)
            case Tasked(tasks):
                self._tasks = tasks
                self._idle_at = float("inf") if tasks else now + self.settings.grace_s
            case Settling():
                if self._phase is not Phase.SETTLING or event.era != self._era:
                    self._phase, self._settling = Phase.SETTLING, event
                    self._give_up_at = None
            case Exhausted(timeout_s):
                self._phase, self._settling = Phase.RESTING, None
                self._give_up_at = now + timeout_s
            case Leaving():
                rumors = (self.membership.farewell(),) if self.membership is not None else ()
                self.state = None
                return [Publish(Offer(self.me, self.place, {}, rumors))]
        return []

    def _resume(self, era: int, wait_s: float, now: float) -> None:
        """A training begins, from the replica as it is. Who knows of it already is told nothing new."""
        if self._phase is Phase.TRAINING and era == self._era:
            return
        self._phase, self._settling, self._give_up_at = Phase.TRAINING, None, None
        self._idle_at = float("inf") if self._tasks else now + wait_s
        if era == self._era or self.state is None:
            self._era = era
            return
        self._open = self._taking = None
        for outgoing in self.outgoing.values():
            outgoing.waiting.clear()
        self._enter(era)
        self.trouble = None
        if self.acting is not self.strategy or self.strategy.by_step:
            self.state = self.strategy.start(self.params())
            self.acting, self._born = self.strategy, era

    def _enter(self, era: int) -> None:
        if era != self._era:
            self._era, self._first = era, self.rounds
            self._news = True

    def _agree(self) -> None:
        """The training's rounds are complete: from here on the consensus has rounds."""
        assert self._settling is not None
        self._enter(self._settling.era)
        self._settling = None
        self._still = 0
        self.acting, self.state = self.acting.consensus(self.state)
        self._moved = True

    def _reach(self, peer: PeerId, gone: bool) -> None:
        """`peer` is dead or out of reach, or back."""
        if peer == self.me or gone == (peer in self._departed):
            return
        self._still = 0
        self._regroup()
        if not gone:
            self._departed.discard(peer)
            self.neighbors.add(peer)
            return
        self._departed.add(peer)
        self.neighbors.remove(peer)
        self._asking.discard(peer)
        self._asked.pop(peer, None)
        self._early.pop(peer, None)
        if peer in self.outgoing:
            self.outgoing[peer].waiting.clear()
            self.outgoing[peer].owed_k = None
        if self.state is not None:
            taken = self.outgoing[peer].last if peer in self.outgoing else None
            self.state, outbox = self.acting.give_up(self.state, number_of(peer), taken)
            self._moved = True
            self._put(outbox, answers=True)

    def _regroup(self) -> None:
        """Who is whose neighbor may have changed in the middle of an era."""
        if self.state is not None and self.rounds > self._first:
            self.state = self.acting.regroup(self.state)

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

    def _on_computed(self, payload: Payload, unit: Unit | None, now: float) -> list[Effect]:
        assert self.state is not None, "a peer without a replica has nothing to compute from"
        self._handed += 1
        if unit is not None:
            if self.identities.knows(unit):
                self.gated += 1
                return [Gated(unit)]
            self.identities.note(self.me, (Mark(unit, 0),))
        self._fresh = True
        self._still = 0
        self._pending.append((self._handed, self.flat.flatten(payload)))
        self._idle_at = max(self._idle_at, now + self.settings.grace_s)
        return []

    def _learn(self) -> int | None:
        """Take the next step into the state; its number, None if there is none."""
        if not self._pending:
            return None
        number, step = self._pending.popleft()
        self.state = self.acting.local(self.state, step, self.rounds - self._first)
        self.computed += 1
        self._moved = True
        return number

    # ------------------------------------------------------------------------------------------------------- rounds

    @property
    def pending(self) -> int:
        """Updates that are not in the state yet."""
        return len(self._pending)

    @property
    def _goes_by_step(self) -> bool:
        """The next round takes a step, and the step a round."""
        return self.acting.by_step and (self._phase is Phase.TRAINING or self._settling is not None)

    def _ahead(self) -> int:
        """How many rounds of this era somebody in reach has begun that we have not."""
        places = (each.rounds for peer, each in self.incoming.items() if peer not in self._departed)
        return max((place for place in places if place // ERA == self._era), default=self.place) - self.place

    def _round_due(self) -> float:
        """When the next round is to begin."""
        if self.state is None or self._open is not None or self.trouble is not None:
            return float("inf")
        if self._goes_by_step:
            if self._pending or self._settling is not None:
                return float("-inf")
            if not self.acting.synchronous:  # what an idle peer is given must flow on
                return max(self._idle_at, self._began_at + self.settings.round_s)
            return self._idle_at if self._ahead() > 0 else float("inf")
        if len(self.neighbors.live) == 1:
            return float("inf")
        if self.acting.synchronous:
            if self._ahead() > 0:
                return float("-inf")
            if self._still >= self.neighbors.period:
                return float("inf")
        if self._phase is Phase.RESTING:
            return float("inf")
        return self._began_at + (self.settings.gap_s if self._fresh else self.settings.round_s)

    def _waits(self, reader: PeerId) -> bool:
        """It has not taken all that there is for it."""
        return reader not in self._departed and reader in self.outgoing and bool(self.outgoing[reader].waiting)

    def _begin(self, now: float) -> list[Effect]:
        """A round: local step, and packets to whoever hears us."""
        if self.acting.synchronous:
            ahead = self._ahead()
            if ahead > (BEHIND_MAX + len(self.neighbors.live)) * self.acting.interval:
                self.rounds += ahead - 1
        taking = self._learn()  # where rounds are not steps, nothing is left to learn
        self._began_at = now
        self._fresh = False
        self._moved = True
        mixing = self.acting.mixing_round(self.rounds - self._first)
        self.rounds += 1
        if mixing is None:
            self.state = self.acting.rest(self.state)
            return []
        links = self.neighbors.links(mixing)
        if not self.acting.synchronous:
            links = self._links_to_takers(links) if self.weight >= LIGHT else replace(links, heard_by={})
        if self.acting.synchronous:
            self._before = self.params()
        self.state, outbox = self.acting.send(self.state, mixing, links, self._chance)
        if (complaint := self._check_own(outbox)) is not None:
            return [complaint]
        self._readers = tuple(self.neighbors.peer(number) for number in outbox)
        self._put(outbox, answers=False)
        if self.acting.synchronous:
            self._open = mixing, links
            self._taking = taking
            self._came = set()
        else:
            self.state = self.acting.finish(self.state, mixing, links)
        return self._complain()

    def _check_own(self, outbox: Outbox) -> Effect | None:
        """Numbers that are not finite reach nobody: who has them stops, and says so once."""
        try:
            for packet in {id(packet): packet for packet in outbox.values()}.values():
                check_finite(packet.arrays)
        except MismatchError as error:
            self.trouble = f"its replica is no good any more: {error}. A smaller learning rate may help"
            return Warn(self.trouble)
        return None

    def _links_to_takers(self, links: Links) -> Links:
        """`links` without those to readers that have not taken what is there for them: their weight stays here."""
        heard_by = {to: weight for to, weight in links.heard_by.items() if not self._waits(self.neighbors.peer(to))}
        return replace(links, heard_by=heard_by)

    def _complain(self) -> list[Effect]:
        without = self.neighbors.without
        text = None if without is None else f"with {len(self.neighbors.live)} peers the old links stay: {without}"
        complaint: list[Effect] = [Warn(text)] if text is not None and text != self._warned else []
        self._warned = text
        return complaint

    def _put(self, outbox: Outbox, *, answers: bool) -> None:
        for number, packet in outbox.items():
            outgoing = self.outgoing.setdefault(self.neighbors.peer(number), Outgoing())
            self._whole |= {name for name, array in packet.arrays.items() if array.size == self.flat.size}
            replaces = not self.acting.synchronous
            outgoing.put(self.place - 1, packet, self.computed, answers=answers, replaces=replaces)
            self._news = True

    def _go_on(self, now: float) -> list[Effect]:
        """Take in what has come for the open round, and end it when it has all it needs; learn between rounds."""
        effects: list[Effect] = []
        if self._open is not None:
            for peer in [peer for peer in self._early if self._early[peer].round < self.place]:
                effects += self._take_in(peer, self._early.pop(peer))
                self._asking.add(peer)
            held_until = self._held_until(self._open[1])
            if now < held_until:
                return effects
            if held_until > float("-inf"):
                self.given_up += 1
                self._regroup()
            self._finish()
        if self._settling is not None and not self._is_owed():
            self._agree()
        while self._pending and not self._goes_by_step:
            self._learn()
        return effects

    def _is_owed(self) -> bool:
        """Somebody has begun a round of the training that is yet to be followed."""
        assert self._settling is not None
        return self.acting.synchronous and self.rounds - self._first < self._settling.rounds and self.trouble is None

    def _finish(self) -> None:
        """The open round is over."""
        assert self._open is not None
        assert self._before is not None
        self.state = self.acting.finish(self.state, *self._open)
        after = self.params()
        size = max(float(np.abs(after).max(initial=0.0)), float(np.finfo(after.dtype).tiny))
        moved = float(np.abs(after - self._before).max(initial=0.0)) / size
        self._still = self._still + 1 if moved <= max(STILL, 2 * float(np.finfo(after.dtype).eps)) else 0
        self._open = self._taking = self._before = None
        self._moved = True
        for outgoing in self.outgoing.values():
            outgoing.waiting.clear()

    def _held_until(self, links: Links) -> float:
        """When the open round is over, come what may: infinite while somebody who lives has not begun it, minus
        infinity if it has all."""
        held = float("-inf")
        for number in links.hears:
            peer = self.neighbors.peer(number)
            if peer in self._departed or peer in self._came:
                continue
            incoming = self.incoming.get(peer)
            if incoming is None or incoming.rounds < self.place:
                return float("inf")
            if incoming.offered > incoming.n:  # else it has left us out
                held = max(held, self._patience(incoming))
        for reader in self._readers:
            if self._waits(reader):
                incoming = self.incoming.get(reader)
                if incoming is None or incoming.rounds < self.place:
                    return float("inf")
                if incoming.rounds == self.place:  # else its round is over, with our packet or without
                    held = max(held, self._patience(incoming))
        return held

    def _patience(self, incoming: Incoming) -> float:
        return max(incoming.begun_at, self._began_at) + self.settings.wait_s

    # ------------------------------------------------------------------------------------------------------ packets

    def _on_offer(self, offer: Offer, now: float) -> None:
        if self.membership is not None:
            self.membership.on_rumors(offer.rumors, now)
        if offer.peer not in self.neighbors.live:
            return
        incoming = self.incoming.setdefault(offer.peer, Incoming())
        if offer.rounds > incoming.rounds:
            incoming.rounds, incoming.begun_at = offer.rounds, now
        waiting = offer.waiting.get(self.me, 0)
        incoming.offered = max(incoming.offered, waiting)
        if waiting:  # also if we have it: it has not heard so
            self._asking.add(offer.peer)

    def _requests(self, now: float) -> list[Effect]:
        """Ask for what is offered, and say what came; one request to each at a time."""
        for peer in [peer for peer, due in self._asked.items() if now >= due]:
            del self._asked[peer]
            self._asking.add(peer)
        effects: list[Effect] = []
        for peer in sorted(self._asking):
            if peer in self._asked or len(self._asked) >= self.settings.pulls_max:
                continue
            self._asking.discard(peer)
            incoming = self.incoming[peer]
            self._k += 1
            incoming.k = self._k
            effects.append(Send(peer, PacketRequest(self.me, incoming.n, self._k)))
            if incoming.offered > incoming.n and peer not in self._early:
                self._asked[peer] = now + self.settings.pull_timeout_s
        return effects

    def _on_request(self, request: PacketRequest) -> list[Effect]:
        outgoing = self.outgoing.get(request.peer)
        if outgoing is None:
            return []
        self.taken = max(self.taken, outgoing.taken(request.n))
        outgoing.owed_k = None
        if outgoing.waiting:
            return [self._reply(request.peer, outgoing, request.k)]
        if request.n < outgoing.n:
            outgoing.owed_k = request.k
        return []

    def _owed(self) -> list[Effect]:
        """Answers to requests that came when there was nothing to answer them with."""
        effects: list[Effect] = []
        for peer, outgoing in self.outgoing.items():
            if outgoing.owed_k is not None and outgoing.waiting:
                effects.append(self._reply(peer, outgoing, outgoing.owed_k))
                outgoing.owed_k = None
        return effects

    def _reply(self, reader: PeerId, outgoing: Outgoing, k: int) -> Effect:
        reply = outgoing.waiting[0].reply(self.me, outgoing.n, k)
        outgoing.nbytes += reply.layout.nbytes
        return Send(reader, reply)

    def _is_asked(self, reply: PacketReply) -> bool:
        incoming = self.incoming.get(reply.peer)
        return incoming is not None and incoming.k == reply.k and reply.n > incoming.n

    def _on_reply(self, reply: PacketReply) -> list[Effect]:
        if not self._is_asked(reply):
            return []
        incoming = self.incoming[reply.peer]
        if reply.peer in self._early:
            return []  # where links go one way, a neighbor may be further ahead: it is asked again in time
        incoming.n = reply.n
        incoming.offered = max(incoming.offered, reply.newest)
        self._asked.pop(reply.peer, None)
        self._asking.add(reply.peer)  # to say that it came
        if not self.acting.synchronous or (self._open is not None and reply.round < self.place):
            return self._take_in(reply.peer, reply)
        if reply.round >= self.place:
            self._early[reply.peer] = reply
        else:
            self.late += 1
        return []

    def _take_in(self, peer: PeerId, reply: PacketReply) -> list[Effect]:
        if self.acting.synchronous:
            is_late = reply.round != self.place - 1 or peer in self._came
        else:
            is_late = reply.round < self._born * ERA
        if is_late:
            self.late += 1
            return []
        packet = open_packet(reply)
        try:
            check_packet(packet, self._whole, self.flat.size)
            state, outbox = self.acting.receive(self.state, number_of(peer), packet)
            check_result(self.acting.params(state), self.flat.size)
        except (MismatchError, KeyError, ValueError, TypeError, OverflowError) as error:
            self.refused += 1
            is_first = peer not in self._warned_of
            self._warned_of.add(peer)
            return [Warn(f"packet {reply.n} of peer {peer} is not taken in: {error!r}")] if is_first else []
        self.state = state
        self._came.add(peer)
        self.received += 1
        self._moved = True
        self._put(outbox, answers=True)
        return []

    # -------------------------------------------------------------------------------------------------------- offers

    def _offer_due(self) -> float:
        if self._news:
            return float("-inf")
        return self._offered_at + self.settings.advert_period_s

    def _offer(self, now: float) -> Effect:
        self._news = False
        self._offered_at = now
        rumors: Sequence[Rumor] = self.membership.rumors() if self.membership is not None else ()
        waiting = {peer: outgoing.n for peer, outgoing in sorted(self.outgoing.items()) if outgoing.waiting}
        return Publish(Offer(self.me, self.place, waiting, tuple(rumors)))

    def _drain(self, now: float) -> list[Effect]:
        if self._give_up_at is None:
            return []
        missing = tuple(sorted(peer for peer in self.outgoing if self._waits(peer)))
        if now < self._give_up_at and (missing or self._open is not None or self._pending):
            return []
        self._give_up_at = None
        return [Drained(missing)]


class _Choice:
    """A numpy generator as membership takes it."""

    def __init__(self, chance: np.random.Generator) -> None:
        self._chance = chance

    def choice(self, seq: Sequence[PeerId]) -> PeerId:
        return seq[int(self._chance.integers(len(seq)))]
