"""A peer that mixes: a strategy of `gossip.mixing` as a state machine on messages, `Peer`'s other half.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

                       an update was computed, or time is up
    between rounds ----------------------------------------------> send: packets wait for their readers, offers go out
         ^                                                              |
         |  finish                                                      |  asynchronous: at once
         +--------------------------------------------------------------+  synchronous: when all that this round needs
                                                                              has come and was taken, or time is up

It has no lanes: what it learned is in its state, and moves as the strategy moves it. The replica follows from the
state: `Adopt` says that it has changed. Packets are offered to all and pulled one by one, so nobody is sent more than
it takes: an asynchronous peer leaves out whoever has not taken the last one yet.

Synchronous strategies go round by round with their neighbors: packets of a round that was not begun here wait, an
update that is computed during a round counts from the next one on, and whoever is begun by a neighbor follows at once.

At rest (before `Resumed` and after `Exhausted`) it begins no round of its own, but packets are still taken: so when
all are at rest and drained, nothing is in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gossip.arrays import Array, Layout, Payload
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
from gossip.mixing.strategy import Outbox
from gossip.neighbors import Neighbors, Plan, number_of
from gossip.packets import Incoming, Outgoing, check_packet, check_result, check_size, open_packet
from gossip.topology import Links

PACKET_SIZES_MAX = 8
"""A packet may be so many times as large as the parameters in float64: strategies send one or two vectors."""
BEHIND_MAX = 4
"""Rounds; neighbors are never further ahead, so who is was away or came late, and goes on where they are."""


@dataclass(frozen=True)
class MixSettings:
    """How a peer that mixes behaves. Times in seconds."""

    round_s: float = 0.05
    """From one round to the next where nothing was computed meanwhile."""
    gap_s: float = 0.02
    """From one round to the next where something was."""
    wait_s: float = 10.0
    """For neighbors, in a synchronous round; who is dead is found sooner."""
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
        self.identities = Identities()
        """Units of work that were computed here."""
        self.incoming: dict[PeerId, Incoming] = {}
        self.outgoing: dict[PeerId, Outgoing] = {}
        detection = self.settings.detection
        self.membership = Membership(me, detection, _Choice(chance)) if detection is not None else None
        self._chance = chance
        self._departed: set[PeerId] = set()
        self._rests = True
        self._open: tuple[int, Links] | None = None
        """The synchronous round of mixing under way."""
        self._came: set[PeerId] = set()
        """Whose packets of that round have come."""
        self._early: dict[PeerId, PacketReply] = {}
        """Packets of rounds that were not begun here, one of each peer at most: no more is asked for before."""
        self._pending: list[Array] = []
        """Updates that wait until that round is over."""
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
        if now >= self._round_due():
            effects += self._begin(now)
            effects += self._go_on(now)
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
        round_over = self._began_at + self.settings.wait_s if self._open is not None else float("inf")
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
        return self.strategy.params(self.state)

    def replica(self) -> Payload:
        """The model as it is now. It is computed when it is read, and stays what it was."""
        strategy, state = self.strategy, self.state
        return PackedLater(self.flat, lambda: strategy.params(state))

    @property
    def weight(self) -> float:
        """Of this replica in the mean of all."""
        return self.strategy.weight(self.state) if self.state is not None else 1.0

    @property
    def departed(self) -> list[PeerId]:
        """Who is taken for dead."""
        return sorted(self._departed)

    # ------------------------------------------------------------------------------------------------------- events

    def _on(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Initialized(payload):
                self.state = self.strategy.start(self.flat.flatten(payload))
                self._moved = self._news = True
            case Joined(peer):
                self.neighbors.add(peer)
                if self.membership is not None:
                    self.membership.join(peer, now, known=self.state is not None)
                self._news = True
            case Departed(peer):
                self._reach(peer, gone=True)
            case Returned(peer):
                self._reach(peer, gone=False)
            case Disconnected(peer):
                if self.membership is not None:
                    self.membership.disconnected(peer, now)
            case Computed(payload, unit, _):
                return self._on_computed(payload, unit)
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
            case Resumed():
                self._rests = False
                self._give_up_at = None
            case Exhausted(timeout_s):
                self._rests = True
                self._give_up_at = now + timeout_s
            case Leaving():
                rumors = (self.membership.farewell(),) if self.membership is not None else ()
                self.state = None
                return [Publish(Offer(self.me, self.rounds, {}, rumors))]
        return []

    def _reach(self, peer: PeerId, gone: bool) -> None:
        """`peer` is dead or out of reach, or back."""
        if peer == self.me or gone == (peer in self._departed):
            return
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
        if self.state is not None:
            taken = self.outgoing[peer].last if peer in self.outgoing else None
            self.state, outbox = self.strategy.give_up(self.state, number_of(peer), taken)
            self._moved = True
            self._put(outbox, answers=True)

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

    def _on_computed(self, payload: Payload, unit: Unit | None) -> list[Effect]:
        assert self.state is not None, "a peer without a replica has nothing to compute from"
        if unit is not None:
            if self.identities.knows(unit):
                self.gated += 1
                return [Gated(unit)]
            self.identities.note(self.me, (Mark(unit, 0),))
        self._fresh = True
        self._pending.append(self.flat.flatten(payload))
        return []

    def _learn(self) -> None:
        """Take in what was computed. Strategies that mix after each step get one step a round, nothing if need be."""
        if self.strategy.every_round and not self._pending:
            self._pending.append(np.zeros(self.flat.size, self.flat.dtype))
        if not self._pending:
            return
        steps = [sum(self._pending[1:], start=self._pending[0])] if self.strategy.every_round else self._pending
        for step in steps:
            self.state = self.strategy.local(self.state, step, self.rounds)
            self._moved = True
        self.computed += len(self._pending)
        self._pending = []

    # ------------------------------------------------------------------------------------------------------- rounds

    @property
    def pending(self) -> int:
        """Updates that are not in the state yet."""
        return len(self._pending)

    def _is_behind(self) -> bool:
        """Somebody in reach has begun a round that we have not."""
        return any(each.rounds > self.rounds for peer, each in self.incoming.items() if peer not in self._departed)

    def _round_due(self) -> float:
        """When the next round is to begin."""
        if self.state is None or self._open is not None or len(self.neighbors.live) == 1:
            return float("inf")
        if self.strategy.synchronous and self._is_behind():
            return float("-inf")
        if self._rests:
            return float("inf")
        return self._began_at + (self.settings.gap_s if self._fresh else self.settings.round_s)

    def _waits(self, reader: PeerId) -> bool:
        """It has not taken all that there is for it."""
        return reader not in self._departed and reader in self.outgoing and bool(self.outgoing[reader].waiting)

    def _begin(self, now: float) -> list[Effect]:
        """A round: local step, and packets to whoever hears us."""
        if self.strategy.synchronous:
            ahead = max((i.rounds for peer, i in self.incoming.items() if peer not in self._departed), default=0)
            if ahead > self.rounds + BEHIND_MAX:
                self.rounds = ahead - 1
        self._learn()
        self._began_at = now
        self._fresh = False
        self._moved = True
        mixing = self.strategy.mixing_round(self.rounds)
        self.rounds += 1
        if mixing is None:
            self.state = self.strategy.rest(self.state)
            return []
        links = self.neighbors.links(mixing)
        if not self.strategy.synchronous:
            links = self._links_to_takers(links)
        self.state, outbox = self.strategy.send(self.state, mixing, links, self._chance)
        self._readers = tuple(self.neighbors.peer(number) for number in outbox)
        self._put(outbox, answers=False)
        if self.strategy.synchronous:
            self._open = mixing, links
            self._came = set()
        else:
            self.state = self.strategy.finish(self.state, mixing, links)
        return self._complain()

    def _links_to_takers(self, links: Links) -> Links:
        """`links` without those to readers that have not taken what is there for them: their weight stays here."""
        heard_by = {to: weight for to, weight in links.heard_by.items() if not self._waits(self.neighbors.peer(to))}
        return links if len(heard_by) == len(links.heard_by) else replace(links, heard_by=heard_by)

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
            replaces = not self.strategy.synchronous
            outgoing.put(self.rounds - 1, packet, self.computed, answers=answers, replaces=replaces)
            self._news = True

    def _go_on(self, now: float) -> list[Effect]:
        """Take in what has come for the open round, and end it when it has all it needs; learn between rounds."""
        effects: list[Effect] = []
        if self._open is not None:
            for peer in [peer for peer in self._early if self._early[peer].round < self.rounds]:
                effects += self._take_in(peer, self._early.pop(peer))
                self._asking.add(peer)
            given_up = now >= self._began_at + self.settings.wait_s
            if not given_up and not self._has_all(self._open[1]):
                return effects
            self.given_up += given_up
            self.state = self.strategy.finish(self.state, *self._open)
            self._open = None
            self._moved = True
            for outgoing in self.outgoing.values():
                outgoing.waiting.clear()
        if not self.strategy.every_round:
            self._learn()
        return effects

    def _has_all(self, links: Links) -> bool:
        for number in links.hears:
            peer = self.neighbors.peer(number)
            if peer in self._departed or peer in self._came:
                continue
            incoming = self.incoming.get(peer)
            is_past = incoming is not None and incoming.rounds > self.rounds and incoming.n >= incoming.offered
            if not is_past:  # else its packet of this round will not come: it had left us out
                return False
        return not any(self._waits(reader) for reader in self._readers)

    # ------------------------------------------------------------------------------------------------------ packets

    def _on_offer(self, offer: Offer, now: float) -> None:
        if self.membership is not None:
            self.membership.on_rumors(offer.rumors, now)
        if offer.peer not in self.neighbors.live:
            return
        incoming = self.incoming.setdefault(offer.peer, Incoming())
        incoming.rounds = max(incoming.rounds, offer.rounds)
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
        if not outgoing.waiting:
            return []
        reply = outgoing.waiting[0].reply(self.me, outgoing.n, request.k)
        outgoing.nbytes += reply.layout.nbytes
        return [Send(request.peer, reply)]

    def _is_asked(self, reply: PacketReply) -> bool:
        incoming = self.incoming.get(reply.peer)
        return incoming is not None and incoming.k == reply.k and reply.n > incoming.n

    def _on_reply(self, reply: PacketReply) -> list[Effect]:
        if not self._is_asked(reply):
            return []
        incoming = self.incoming[reply.peer]
        incoming.n = reply.n
        incoming.offered = max(incoming.offered, reply.newest)
        self._asked.pop(reply.peer, None)
        self._asking.add(reply.peer)  # to say that it came
        if not self.strategy.synchronous or (self._open is not None and reply.round < self.rounds):
            return self._take_in(reply.peer, reply)
        if reply.round >= self.rounds:
            self._early[reply.peer] = reply
        else:
            self.late += 1
        return []

    def _take_in(self, peer: PeerId, reply: PacketReply) -> list[Effect]:
        if self.strategy.synchronous and (reply.round != self.rounds - 1 or peer in self._came):
            self.late += 1
            return []
        packet = open_packet(reply)
        try:
            check_packet(packet, self._whole, self.flat.size)
            state, outbox = self.strategy.receive(self.state, number_of(peer), packet)
            check_result(self.strategy.params(state), self.flat.size)
        except (MismatchError, KeyError, ValueError, TypeError) as error:
            self.refused += 1
            return [Warn(f"packet {reply.n} of peer {peer} is not taken in: {error!r}")]
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
        return Publish(Offer(self.me, self.rounds, waiting, tuple(rumors)))

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
