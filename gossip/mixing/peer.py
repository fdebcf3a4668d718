"""A peer that mixes: a strategy of `gossip.mixing` as a state machine on messages, `Peer`'s other half.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

                       a step was computed, or a neighbor is ahead, or time is up
    between rounds ----------------------------------------------> send: packets wait for their readers, offers go out
         ^                                                              |
         |  finish                                                      |  asynchronous: at once
         +--------------------------------------------------------------+  synchronous: when all that this round needs
                                                                              has come and was taken

A peer that mixes has no lanes: its updates are in its state, and the strategy moves that. The replica follows from the
state: `Adopt` says that it has changed. Packets are offered to all and pulled one by one, so no reader is sent more
than it takes: an asynchronous peer leaves out readers that have not taken the last packet yet.

In training, a round of a strategy that goes by steps takes one step, and no step is without its round; the others have
rounds by the clock. In step with its neighbors a peer waits for those who are alive, however long they compute. One
that is idle, since no task of it computes, follows the rounds of others without a step, so that nobody waits for it and
nothing is made up. Settling, all complete the rounds that anybody has begun; then the strategy's `consensus` goes on by
the clock until nothing moves any more.

At rest it begins no round of its own, but packets are still taken, and the rounds of others are followed: so when all
are at rest and drained, nothing is in flight.

    course.py   its phase, era and round       mixer.py     the strategy's state      steps.py   what is to be learned
    mailbox.py  packets offered and asked for  neighbors.py who is linked to whom
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arrays import Array, Layout, Payload
from gossip.errors import MismatchError, hold
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
    Offended,
    Progressed,
    Publish,
    PutOut,
    Received,
    Resumed,
    Returned,
    Send,
    Settling,
    Tasked,
    Warn,
)
from gossip.identity import Identities
from gossip.membership import Detection, Membership, Told
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
    State,
    StateRequest,
)
from gossip.mixing.course import ERA, Course, Phase
from gossip.mixing.mailbox import Mailbox
from gossip.mixing.mixer import Mixer
from gossip.mixing.neighbors import Neighbors, Plan, number_of
from gossip.mixing.packets import Incoming
from gossip.mixing.steps import Steps
from gossip.mixing.strategy import Outbox
from gossip.topology import Links
from gossip.trust.offences import Offences

BEHIND_MAX = 4
"""Rounds of mixing. Who is in step is never further ahead, but for one more with each peer in between: so who is behind
by more was away or came late, and goes on where the others are."""
LIGHT = 1 / 4
"""A replica that weighs less gives nothing away: what was put on links to it is late, and every step that it takes
moves it by the step over its weight."""
STILL = 1e-12
"""A round that moves no number by more than this part of the largest has moved nothing; or by the precision of its
numbers, where that is less fine."""


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


@dataclass
class Figures:
    """What a peer that mixes has counted."""

    computed: int = 0
    """Updates in the state."""
    gated: int = 0
    """Updates of units that had been computed here before."""
    received: int = 0
    """Packets taken in."""
    taken: int = 0
    """Updates that were in the state when some neighbor took a packet."""
    refused: int = 0
    """Packets dropped because they did not fit or were not finite."""
    late: int = 0
    """Packets of rounds that were over."""
    given_up: int = 0
    """Synchronous rounds that ended without all that they needed."""


@dataclass
class Round:
    """A synchronous round of mixing that is under way."""

    number: int
    place: int
    """Of the round of which it is, as neighbors are told."""
    links: Links
    before: Array
    """The parameters as they were."""
    taking: int | None
    """The number of the step that it has."""
    readers: tuple[PeerId, ...]
    """Who was sent something."""
    came: set[PeerId] = field(default_factory=set)
    """Whose packets have come."""


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
        self.settings = settings or MixSettings()
        self.mixer = Mixer(layout, plan.strategy, chance)
        self.neighbors = Neighbors(me, plan, members)
        self.course = Course()
        self.steps = Steps()
        self.mailbox = Mailbox(me, self.settings.pull_timeout_s, self.settings.pulls_max)
        self.identities = Identities()
        """Units of work that were computed here."""
        detection = self.settings.detection
        self.membership = Membership(me, detection, _Choice(chance)) if detection is not None else Told()
        self.figures = Figures()
        self.trouble: str | None = None
        """Why it cannot go on."""
        self._departed: set[PeerId] = set()
        self._open: Round | None = None
        self._offers = Offers(self.settings.advert_period_s)
        self._complaints = Complaints()
        self._born = 0
        """The era in which its state began."""

    # ------------------------------------------------------------------------------------------------------ outside

    @property
    def layout(self) -> Layout:
        """The model's."""
        return self.mixer.flat.layout

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        match event:
            case Received(message) if message.peer in self._complaints.out:
                return []
            case Received(message):
                self.membership.heard(message.peer, now)
            case Progressed(peer, arrived=True):
                self.membership.heard(peer, now)
        react = _REACTIONS.get(type(event))
        effects = react(self, event, now) if react is not None else []
        if isinstance(event, Leaving) or not self.ready:
            return effects
        effects += self.membership.tick(now)
        self._offers.news |= self.membership.news
        for peer, gone in self.membership.changes(now):
            self._reach(peer, gone)
        effects += self._go_on(now)
        while now >= self._round_due():
            effects += self._begin(now)
            effects += self._go_on(now)
        effects += self.mailbox.owed()
        effects += self.mailbox.requests(now)
        if self.mixer.moved:
            self.mixer.moved = False
            effects.append(Adopt(self.mixer.replica()))
        if now >= self._offers.due():
            self._offers.said(now)
            effects.append(Publish(Offer(self.me, self.place, self.mailbox.waiting(), self.membership.rumors())))
        return effects + self._drain(now)

    def deadline(self) -> float:
        """When to come back with `Ticked`; infinite before `Initialized`."""
        if not self.ready:
            return float("inf")
        round_over = self._held_until(self._open) if self._open is not None else float("inf")
        give_up = float("inf") if self.course.give_up_at is None else self.course.give_up_at
        requests, membership = self.mailbox.deadline(), self.membership.deadline()
        return min(self._round_due(), self._offers.due(), round_over, requests, membership, give_up)

    @property
    def ready(self) -> bool:
        """It has a replica."""
        return self.mixer.state is not None

    def expects(self, header: Bulk) -> bool:
        """Whether its arrays are wanted; `MismatchError` if they are larger than any packet."""
        if not isinstance(header, PacketReply) or not self.mailbox.expects(header):
            return False
        self.mixer.check_size(header)
        return True

    def params(self) -> Array:
        """(parameters,) of the model, flat; not to be written to."""
        return self.mixer.params()

    def replica(self) -> Payload:
        """The model as it is now. It is computed when it is read, and stays what it was."""
        return self.mixer.replica()

    @property
    def weight(self) -> float:
        """Of this replica in the mean of all."""
        return self.mixer.weight

    @property
    def rounds(self) -> int:
        """Begun."""
        return self.course.rounds

    @property
    def place(self) -> int:
        """Of the round that comes next, as neighbors are told."""
        return self.course.place

    @property
    def settled(self) -> int:
        """Up to this number, updates are in the state or count elsewhere, and the rounds that have them are over."""
        return self.steps.settled(self._open.taking if self._open is not None else None)

    @property
    def departed(self) -> list[PeerId]:
        """Who is taken for dead."""
        return sorted(self._departed)

    def check(self) -> None:
        """Look whether all holds that must hold between two events; `InvariantError` if something does not."""
        course, steps, figures = self.course, self.steps, self.figures
        for room in (course, steps, self.neighbors, self.mailbox, self.mixer, self.identities, self.membership):
            room.check()
        handed = (figures.computed, len(steps), figures.gated)
        hold(sum(handed) == steps.handed, "steps are learned, wait, or are gated", handed, steps.handed)
        departed = self._departed.intersection(self.neighbors.live)
        hold(not departed, "who departed is nobody's neighbor", sorted(departed))
        hold(self._born <= course.era, "a state is not younger than its era", self._born, course.era)
        if self._open is not None and self.ready:
            self._check_round(self._open)

    def _check_round(self, open: Round) -> None:
        hold(self.mixer.acting.synchronous, "only rounds in step stay open", self.mixer.acting, open.number)
        hold(open.place == self.place - 1, "the open round is the one begun last", open.place, self.place)
        taking, steps = open.taking, self.steps
        taken = taking is None or taking <= steps.handed - len(steps)
        hold(taken, "the step of the open round does not wait any more", taking, steps.handed, len(steps))

    # ------------------------------------------------------------------------------------------------------- events

    def _on_initialized(self, event: Initialized, now: float) -> list[Effect]:
        self.mixer.start(event.payload)
        self.identities = Identities.resumed(event.counted)
        self._offers.news = True
        return []

    def _on_joined(self, event: Joined, now: float) -> list[Effect]:
        self.neighbors.add(event.peer)
        self._regroup()
        self.membership.join(event.peer, now, known=self.ready)
        self._offers.news = True
        self.course.still = 0
        return []

    def _on_departed(self, event: Departed, now: float) -> list[Effect]:
        self._reach(event.peer, gone=True)
        return []

    def _on_returned(self, event: Returned, now: float) -> list[Effect]:
        self._reach(event.peer, gone=False)
        return []

    def _on_disconnected(self, event: Disconnected, now: float) -> list[Effect]:
        self.membership.disconnected(event.peer, now)
        return []

    def _on_offended(self, event: Offended, now: float) -> list[Effect]:
        """Who breaks the protocol once too often has departed for good, as far as this peer goes."""
        effects = self._complaints.of_offence(event)
        if effects:
            self._reach(event.peer, gone=True)
        return effects

    def _on_progressed(self, event: Progressed, now: float) -> list[Effect]:
        self.mailbox.progressed(event.peer, now)
        return []

    def _on_computed(self, event: Computed, now: float) -> list[Effect]:
        assert self.ready, "a peer without a replica has nothing to compute from"
        self.steps.hand_over()
        if event.unit is not None:
            if self.identities.knows(event.unit):
                self.figures.gated += 1
                return [Gated(event.unit)]
            self.identities.note(self.me, (Mark(event.unit, 0),))
        self.course.computed(now + self.settings.grace_s)
        self.steps.put(self.mixer.flat.flatten(event.payload))
        return []

    def _on_closed(self, event: Closed, now: float) -> list[Effect]:
        self.identities.drop(event.epochs)
        return []

    def _on_resumed(self, event: Resumed, now: float) -> list[Effect]:
        """A training begins, from the replica as it is. Who knows of it already is told nothing new."""
        course = self.course
        if course.phase is Phase.TRAINING and event.era == course.era:
            return []
        course.train(now + (self.settings.wait_s if event.wait_s is None else event.wait_s))
        if event.era == course.era or not self.ready:
            course.era = event.era
            return []
        self._open = None
        self.mailbox.clear()
        self._enter(event.era)
        self.trouble = None
        if self.mixer.resume():
            self._born = event.era
        return []

    def _on_tasked(self, event: Tasked, now: float) -> list[Effect]:
        self.course.employ(event.tasks, now + self.settings.grace_s)
        return []

    def _on_settling(self, event: Settling, now: float) -> list[Effect]:
        self.course.settle(event)
        return []

    def _on_exhausted(self, event: Exhausted, now: float) -> list[Effect]:
        self.course.rest(now + event.timeout_s)
        return []

    def _on_leaving(self, event: Leaving, now: float) -> list[Effect]:
        self.mixer.state = None
        return [Publish(Offer(self.me, self.place, {}, self.membership.farewell()))]

    def _on_received(self, event: Received, now: float) -> list[Effect]:
        match event.message:
            case Offer() as offer:
                self.membership.on_rumors(offer.rumors, now)
                if offer.peer in self.neighbors.live:
                    self.mailbox.on_offer(offer, now)
            case PacketRequest() as request:
                self.figures.taken = max(self.figures.taken, self.mailbox.taken(request))
                return self.mailbox.answer(request)
            case PacketReply() as reply:
                return self._on_reply(reply)
            case StateRequest(peer, k) if self.ready:
                known = self.identities
                marks = known.by_lane(known.closed)
                return [Send(peer, State(self.me, {}, k, marks, closed=known.closed, units=known.units))]
            case Ping() | PingRequest() | Ack() | Nack() as message:
                return self.membership.on_message(message, now)
        return []

    def _enter(self, era: int) -> None:
        self._offers.news |= self.course.enter(era)

    def _agree(self, settling: Settling) -> None:
        """The training's rounds are complete: from here on the consensus has rounds."""
        self._enter(settling.era)
        self.course.settling = None
        self.course.still = 0
        self.mixer.agree()

    def _reach(self, peer: PeerId, gone: bool) -> None:
        """`peer` is dead or out of reach, or back."""
        if peer == self.me or (not gone and peer in self._complaints.out) or gone == (peer in self._departed):
            return
        self.course.still = 0
        self._regroup()
        if not gone:
            self._departed.discard(peer)
            self.neighbors.add(peer)
            return
        self._departed.add(peer)
        self.neighbors.remove(peer)
        taken = self.mailbox.drop(peer)
        if self.ready:
            self._put(self.mixer.give_up(number_of(peer), taken), answers=True)

    def _regroup(self) -> None:
        """Who is whose neighbor may have changed in the middle of an era."""
        if self.ready and self.course.round > 0:
            self.mixer.regroup()

    def _learn(self) -> int | None:
        """Take the next step into the state; its number, None if there is none."""
        if not self.steps:
            return None
        number, step = self.steps.take()
        self.mixer.learn(step, self.course.round)
        self.figures.computed += 1
        return number

    # ------------------------------------------------------------------------------------------------------- rounds

    @property
    def _goes_by_step(self) -> bool:
        """The next round takes a step, and the step a round."""
        return self.mixer.acting.by_step and self.course.trains

    def _ahead(self) -> int:
        """How many rounds of this era somebody in reach has begun that we have not."""
        places = (each.rounds for peer, each in self.mailbox.incoming.items() if peer not in self._departed)
        return max((place for place in places if place // ERA == self.course.era), default=self.place) - self.place

    def _round_due(self) -> float:
        """When the next round is to begin."""
        course, acting = self.course, self.mixer.acting
        if not self.ready or self._open is not None or self.trouble is not None:
            return float("inf")
        if self._goes_by_step:
            if self.steps or course.settling is not None:
                return float("-inf")
            if not acting.synchronous:  # what an idle peer is given must flow on
                return max(course.idle_at, course.began_at + self.settings.round_s)
            return course.idle_at if self._ahead() > 0 else float("inf")
        if len(self.neighbors.live) == 1:
            return float("inf")
        if acting.synchronous:
            if self._ahead() > 0:
                return float("-inf")
            if course.still >= self.neighbors.period:
                return float("inf")
        if course.phase is Phase.RESTING:
            return float("inf")
        return course.began_at + (self.settings.gap_s if course.fresh else self.settings.round_s)

    def _waits(self, reader: PeerId) -> bool:
        """It lives, and has not taken all that there is for it."""
        return reader not in self._departed and self.mailbox.waits(reader)

    def _begin(self, now: float) -> list[Effect]:
        """A round: local step, and packets to whoever hears us."""
        mixer = self.mixer
        if mixer.acting.synchronous:
            ahead = self._ahead()
            if ahead > (BEHIND_MAX + len(self.neighbors.live)) * mixer.acting.interval:
                self.course.rounds += ahead - 1
        taking = self._learn()  # where rounds are not steps, nothing is left to learn
        number = mixer.acting.mixing_round(self.course.round)
        self.course.begin(now)
        if number is None:
            mixer.rest()
            return []
        links = self.neighbors.links(number)
        if mixer.acting.synchronous:
            before = mixer.params()
        else:
            links = self._links_to_takers(links) if mixer.weight >= LIGHT else replace(links, heard_by={})
        outbox = mixer.send(number, links)
        try:
            mixer.check_own(outbox)
        except MismatchError as error:
            self.trouble = f"its replica is no good any more: {error}. A smaller learning rate may help"
            return [Warn(self.trouble)]
        self._put(outbox, answers=False)
        if mixer.acting.synchronous:
            readers = tuple(self.neighbors.peer(number) for number in outbox)
            self._open = Round(number, place=self.place - 1, links=links, before=before, taking=taking, readers=readers)
        else:
            mixer.finish(number, links)
        return self._complaints.of_links(self.neighbors)

    def _links_to_takers(self, links: Links) -> Links:
        """`links` without those to readers that have not taken what is there for them: their weight stays here."""
        heard_by = {to: weight for to, weight in links.heard_by.items() if not self._waits(self.neighbors.peer(to))}
        return replace(links, heard_by=heard_by)

    def _put(self, outbox: Outbox, *, answers: bool) -> None:
        for number, packet in outbox.items():
            self.mixer.sent(packet)
            reader, replaces = self.neighbors.peer(number), not self.mixer.acting.synchronous
            computed = self.figures.computed
            self.mailbox.put(reader, self.place - 1, packet, computed, answers=answers, replaces=replaces)
            self._offers.news = True

    def _go_on(self, now: float) -> list[Effect]:
        """Take in what has come for the open round, and end it when it has all it needs; learn between rounds."""
        effects: list[Effect] = []
        if self._open is not None:
            for reply in self.mailbox.due(self.place):
                effects += self._take_in(reply)
            held_until = self._held_until(self._open)
            if now < held_until:
                return effects
            if held_until > float("-inf"):
                self.figures.given_up += 1
                self._regroup()
            self._finish(self._open)
        settling = self.course.settling
        if settling is not None and not self._is_owed(settling):
            self._agree(settling)
        while self.steps and not self._goes_by_step:
            self._learn()
        return effects

    def _is_owed(self, settling: Settling) -> bool:
        """Somebody has begun a round of the training that is yet to be followed."""
        return self.mixer.acting.synchronous and self.course.round < settling.rounds and self.trouble is None

    def _finish(self, round: Round) -> None:
        """The open round is over."""
        self.mixer.finish(round.number, round.links)
        after = self.mixer.params()
        size = max(float(np.abs(after).max(initial=0.0)), float(np.finfo(after.dtype).tiny))
        moved = float(np.abs(after - round.before).max(initial=0.0)) / size
        self.course.still = self.course.still + 1 if moved <= max(STILL, 2 * float(np.finfo(after.dtype).eps)) else 0
        self._open = None
        self.mailbox.clear()

    def _held_until(self, round: Round) -> float:
        """When the open round is over, come what may: infinite while somebody who lives has not begun it, minus
        infinity if it has all."""
        held = float("-inf")
        for number in round.links.hears:
            peer = self.neighbors.peer(number)
            if peer in self._departed or peer in round.came:
                continue
            incoming = self.mailbox.incoming.get(peer)
            if incoming is None or incoming.rounds < self.place:
                return float("inf")
            if incoming.offered > incoming.n:  # else it has left us out
                held = max(held, self._patience(incoming))
        for reader in round.readers:
            if self._waits(reader):
                incoming = self.mailbox.incoming.get(reader)
                if incoming is None or incoming.rounds < self.place:
                    return float("inf")
                if incoming.rounds == self.place:  # else its round is over, with our packet or without
                    held = max(held, self._patience(incoming))
        return held

    def _patience(self, incoming: Incoming) -> float:
        return max(incoming.begun_at, self.course.began_at) + self.settings.wait_s

    # ------------------------------------------------------------------------------------------------------ packets

    def _on_reply(self, reply: PacketReply) -> list[Effect]:
        if not self.mailbox.accept(reply):
            return []
        if not self.mixer.acting.synchronous or (self._open is not None and reply.round < self.place):
            return self._take_in(reply)
        if reply.round >= self.place:
            self.mailbox.early[reply.peer] = reply
        else:
            self.figures.late += 1
        return []

    def _take_in(self, reply: PacketReply) -> list[Effect]:
        peer = reply.peer
        if self._open is not None:
            is_late = reply.round != self.place - 1 or peer in self._open.came
        else:
            is_late = reply.round < self._born * ERA
        if is_late:
            self.figures.late += 1
            return []
        try:
            outbox = self.mixer.receive(number_of(peer), reply)
        except (MismatchError, KeyError, ValueError, TypeError, OverflowError) as error:
            self.figures.refused += 1
            return self._complaints.of_packet(reply, error)
        if self._open is not None:
            self._open.came.add(peer)
        self.figures.received += 1
        self._put(outbox, answers=True)
        return []

    def _drain(self, now: float) -> list[Effect]:
        if self.course.give_up_at is None:
            return []
        missing = tuple(sorted(peer for peer in self.mailbox.outgoing if self._waits(peer)))
        if now < self.course.give_up_at and (missing or self._open is not None or self.steps):
            return []
        self.course.give_up_at = None
        return [Drained(missing)]


_REACTIONS: dict[type, Callable[[MixPeer, Any, float], list[Effect]]] = {
    Initialized: MixPeer._on_initialized,
    Joined: MixPeer._on_joined,
    Departed: MixPeer._on_departed,
    Returned: MixPeer._on_returned,
    Disconnected: MixPeer._on_disconnected,
    Offended: MixPeer._on_offended,
    Progressed: MixPeer._on_progressed,
    Received: MixPeer._on_received,
    Computed: MixPeer._on_computed,
    Closed: MixPeer._on_closed,
    Resumed: MixPeer._on_resumed,
    Tasked: MixPeer._on_tasked,
    Settling: MixPeer._on_settling,
    Exhausted: MixPeer._on_exhausted,
    Leaving: MixPeer._on_leaving,
}


class Offers:
    """When the next offer is due."""

    def __init__(self, period_s: float) -> None:
        self.news = False
        """There is something to be said at once."""
        self._period_s = period_s
        self._said_at = float("-inf")

    def due(self) -> float:
        return float("-inf") if self.news else self._said_at + self._period_s

    def said(self, now: float) -> None:
        self.news = False
        self._said_at = now


class Complaints:
    """What was warned of, so that each is said once."""

    def __init__(self) -> None:
        self.out: set[PeerId] = set()
        """Who was put out."""
        self._links: str | None = None
        self._packets: set[PeerId] = set()
        self._offences = Offences()

    def of_offence(self, event: Offended) -> list[Effect]:
        """A peer broke the protocol: what is done if that was once too often."""
        why = self._offences.offend(event.peer, event.why)
        if why is None:
            return []
        self.out.add(event.peer)
        return [PutOut(event.peer, why)]

    def of_links(self, neighbors: Neighbors) -> list[Effect]:
        """There is no topology for those who live."""
        without = neighbors.without
        text = None if without is None else f"with {len(neighbors.live)} peers the old links stay: {without}"
        said, self._links = self._links, text
        return [Warn(text)] if text is not None and text != said else []

    def of_packet(self, reply: PacketReply, error: Exception) -> list[Effect]:
        """A packet cannot be taken in: the first of each peer is told of."""
        if reply.peer in self._packets:
            return []
        self._packets.add(reply.peer)
        return [Warn(f"packet {reply.n} of peer {reply.peer} is not taken in: {error!r}")]


class _Choice:
    """A numpy generator as membership takes it."""

    def __init__(self, chance: np.random.Generator) -> None:
        self._chance = chance

    def choice(self, seq: Sequence[PeerId]) -> PeerId:
        return seq[int(self._chance.integers(len(seq)))]
