"""Which peers are there: SWIM's pings and rumors, with Lifeguard's doubt of a peer in itself.

    alive --silent, no answer to a ping, nor through others--> suspected --time is up--> dead
      ^                                                            |                      |
      +--------------------- heard, or it objects -----------------+----------------------+

Adverts come twice a second from every peer, so only silent peers are pinged. A ping that is not answered is tried again
through a few others; then the silent peer is suspected, and told so, that it may object. The more peers suspect it, the
sooner it is taken for dead. A connection that breaks is a reason to suspect at once. A peer that was wrong itself (its
pings fail though others answer, or it is suspected) gives all others more time. A peer that was stopped itself blames
no other for that time. A peer that was heard a moment ago is not dead, whatever others say.

Sources: Das, Gupta, Motivala, "SWIM" (DSN 2002), sections 3 and 4; Dadgar, Phillips, Currey, "Lifeguard: local health
awareness for more accurate failure detection" (DSN-W 2018), section IV.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from gossip.errors import hold
from gossip.events import Effect, Send
from gossip.fields import RUMORS_MAX
from gossip.messages import Ack, Nack, PeerId, Ping, PingRequest, Rumor, Standing

TRANSMISSIONS_FACTOR = 3
"""Each rumor is told so many times log2 of the swarm's size: SWIM's lambda."""
LATE_S = 1.0
"""Who comes so late to its own deadline was stopped itself."""


@dataclass(frozen=True)
class Detection:
    """How soon a peer is taken for dead, in seconds. Adverts come every 0.5 s."""

    silent_s: float = 1.0
    """Who was not heard for so long is pinged."""
    ping_s: float = 0.5
    """For an answer; after that others are asked to ping, for as long again."""
    suspicion_max_s: float = 1.5
    """From suspicion to death, when nobody else suspects it."""
    suspicion_min_s: float = 0.5
    """The same when `confirmations_max` others do, or when its connection broke."""
    confirmations_max: int = 3
    relays_max: int = 3
    """How many others are asked to ping."""
    unheard_s: float = 4.0
    """Who was not heard by ourselves for so long is out of our reach, though others may hear it."""
    greeting_s: float = 1.5
    """The same for those who were there before we came: they advertise as soon as they are connected, if they live."""
    health_max: int = 8
    """The most that a peer doubts itself: then others have 1 + health_max times as long."""


class Chance(Protocol):
    """Where random numbers come from; `random.Random` is one."""

    def choice(self, seq: Sequence[PeerId]) -> PeerId:
        """One of these."""
        ...


@dataclass
class Probe:
    """A ping under way."""

    k: int
    due: float
    relays: set[PeerId] | None = None
    """Who was asked to ping, and has not answered in either way; None while nobody was asked."""


@dataclass
class Contact:
    """What is known of one peer."""

    heard_at: float
    standing: Standing = Standing.ALIVE
    incarnation: int = 0
    """The newest it told. Only itself raises it, to object."""
    suspected_at: float = 0.0
    suspected_by: set[PeerId] = field(default_factory=set)
    """As of the last suspicion, which may be over."""
    broken: bool = False
    """Its connection broke, and it was not heard since."""
    probe: Probe | None = None
    ping_at: float = float("-inf")
    """Not to be pinged before."""
    gone: bool = False
    """As the peer was told last."""


@dataclass(frozen=True)
class Relay:
    """A ping that somebody asked us for."""

    to: PeerId
    k: int
    target: PeerId
    due: float


class Membership:
    """One peer's view of the others. Who is dead stays on the roster, and may come back."""

    def __init__(self, me: PeerId, detection: Detection, chance: Chance | None) -> None:
        """`chance` chooses who is asked to ping; without it nobody is, as in a star, whose rays are strangers."""
        self.me = me
        self.detection = detection
        self.contacts: dict[PeerId, Contact] = {}
        self.health = 0
        """How much we doubt ourselves; 0 is well."""
        self._doubted_at = float("-inf")
        """When that last changed."""
        self.incarnation = 0
        self._chance = chance
        self._k = 0
        self._relays: dict[int, Relay] = {}
        self._rumors: dict[PeerId, tuple[Rumor, int]] = {}
        """The newest about each peer, and how often it is still to be told."""
        self._untold: set[PeerId] = set()
        """Whom rumors are about that were not told to all yet."""
        self._due = float("inf")
        self._dirty = False

    def join(self, peer: PeerId, now: float, known: bool = True) -> None:
        """`peer` is on the roster; it counts as heard, unless it was there before us and may have died since."""
        if peer in self.contacts:
            return
        greeting_s = self.detection.silent_s if known else self.detection.greeting_s
        self.contacts[peer] = Contact(now if known else now + greeting_s - self.detection.unheard_s)
        self.contacts[peer].ping_at = now + greeting_s
        self._due = min(self._due, now + greeting_s)

    def changes(self, now: float) -> list[tuple[PeerId, bool]]:
        """Who is gone (dead, or out of our own reach) since the last call, and who is back."""
        if not self._dirty:
            return []
        self._dirty = False
        changed = []
        for peer, contact in self.contacts.items():
            gone = contact.standing is Standing.DEAD or now >= contact.heard_at + self.detection.unheard_s
            if gone != contact.gone:
                contact.gone = gone
                changed.append((peer, gone))
        return changed

    @property
    def news(self) -> bool:
        """There is a rumor that was not told to all yet."""
        return bool(self._untold)

    def rumors(self) -> tuple[Rumor, ...]:
        """To travel with the next message to all, the freshest first; each is told to all a few times only."""
        told = self._freshest()
        for rumor in told:
            left = self._rumors[rumor.about][1] - 1
            if left > 0:
                self._rumors[rumor.about] = rumor, left
            else:
                del self._rumors[rumor.about]
            self._untold.discard(rumor.about)
        return told

    def _freshest(self) -> tuple[Rumor, ...]:
        """To travel with a message to one, which does not count as told."""
        told = sorted(self._rumors.values(), key=lambda entry: -entry[1])[:RUMORS_MAX]
        return tuple(rumor for rumor, _ in told)

    def farewell(self) -> tuple[Rumor, ...]:
        """What to tell everybody when we leave for good."""
        return (Rumor(self.me, Standing.DEAD, self.incarnation, self.me),)

    # -------------------------------------------------------------------------------------------------- what comes in

    def heard(self, peer: PeerId, now: float) -> None:
        """Something came from `peer` itself."""
        contact = self.contacts.get(peer)
        if contact is None:
            return
        self._forgive_own_pause(now)
        if self.health and now >= self._doubted_at + self.detection.silent_s:
            self._doubt(-1, now)
        contact.heard_at = now
        contact.probe = None
        contact.broken = False
        self._clear(contact, now)
        self._dirty = self._dirty or contact.gone

    def disconnected(self, peer: PeerId, now: float) -> None:
        """The connection to `peer` broke: its process has ended, or does not answer."""
        contact = self.contacts.get(peer)
        if contact is None or contact.standing is Standing.DEAD:
            return
        contact.broken = True
        if contact.standing is Standing.ALIVE:
            self._suspect(peer, contact, self.me, now)
        self._due = min(self._due, now)

    def on_message(self, message: Ping | PingRequest | Ack | Nack, now: float) -> list[Effect]:
        """One of the messages that only membership has."""
        match message:
            case Ping():
                return self.on_ping(message, now)
            case PingRequest():
                return self.on_ping_request(message, now)
            case Ack():
                return self.on_ack(message, now)
            case Nack():
                self.on_nack(message)
                return []

    def on_ping(self, ping: Ping, now: float) -> list[Effect]:
        """Answer."""
        self.on_rumors(ping.rumors, now)
        return [Send(ping.peer, Ack(self.me, ping.k, self.me, self._freshest()))]

    def on_ping_request(self, request: PingRequest, now: float) -> list[Effect]:
        """Ping for somebody else, who hears what came of it in any case."""
        if request.target not in self.contacts or len(self._relays) >= self.detection.relays_max * len(self.contacts):
            return []
        self._k += 1
        relay = Relay(request.peer, request.k, request.target, now + 0.8 * self.detection.ping_s)
        self._relays[self._k] = relay
        self._due = min(self._due, relay.due)
        return [Send(request.target, Ping(self.me, self._k, self._freshest()))]

    def on_ack(self, ack: Ack, now: float) -> list[Effect]:
        """`ack.about` is there: it answered us, or the one who pinged it for us."""
        self.on_rumors(ack.rumors, now)
        relay = self._relays.get(ack.k)
        if relay is not None and relay.target == ack.peer:
            del self._relays[ack.k]
            return [Send(relay.to, Ack(self.me, relay.k, relay.target, self._freshest()))]
        if ack.about == ack.peer:
            self._doubt(-1, now)
        contact = self.contacts.get(ack.about)
        if contact is not None and contact.probe is not None and contact.probe.k == ack.k:
            contact.probe = None
            contact.ping_at = now + self._patient(self.detection.silent_s)
            self._clear(contact, now)
        return []

    def on_nack(self, nack: Nack) -> None:
        """Our relay answers, but the one we ask about does not answer it."""
        contact = self.contacts.get(nack.about)
        if contact is not None and contact.probe is not None and contact.probe.k == nack.k and contact.probe.relays:
            contact.probe.relays.discard(nack.peer)

    def on_rumors(self, rumors: Sequence[Rumor], now: float) -> None:
        """What others say of others, and of us."""
        for rumor in rumors:
            contact = self.contacts.get(rumor.about)
            if rumor.about == self.me:
                self._object_to(rumor, now)
            elif contact is not None and rumor.incarnation >= contact.incarnation:
                self._believe(rumor, contact, now)

    def _believe(self, rumor: Rumor, contact: Contact, now: float) -> None:
        """SWIM section 4.2: a newer incarnation outweighs all; within one, death outweighs suspicion, and that life."""
        newer = rumor.incarnation > contact.incarnation
        contact.incarnation = rumor.incarnation
        heard = now < contact.heard_at + self.detection.silent_s and not contact.broken
        match rumor.standing:
            case Standing.ALIVE:
                if newer:
                    self._clear(contact, now)
                    self._tell(rumor)
            case Standing.SUSPECTED:
                if contact.standing is Standing.SUSPECTED and not newer:
                    self._confirm(rumor, contact, now)
                elif (contact.standing is Standing.ALIVE or newer) and not heard:
                    self._suspect(rumor.about, contact, rumor.by, now)
            case Standing.DEAD:
                farewell = rumor.by == rumor.about
                if (contact.standing is not Standing.DEAD or newer) and (farewell or not heard):
                    self._bury(contact)
                    self._tell(rumor)

    def _object_to(self, rumor: Rumor, now: float) -> None:
        """Somebody takes us for worse than we are."""
        if rumor.standing is Standing.ALIVE or rumor.incarnation > self.incarnation:  # nobody but we raise it
            return
        if rumor.incarnation == self.incarnation:
            self.incarnation += 1
            self._doubt(1, now)
        elif self.me in self._rumors:  # the objection is being told
            return
        self._tell(Rumor(self.me, Standing.ALIVE, self.incarnation, self.me))

    def check(self) -> None:
        """What must hold between two events."""
        hold(self.me not in self.contacts, "nobody watches itself", self.me)
        hold(0 <= self.health <= self.detection.health_max, "doubts have bounds", self.health)
        hold(self._untold <= self._rumors.keys(), "what is not told yet is a rumor", self._untold, self._rumors)
        for peer, contact in self.contacts.items():
            if contact.standing is Standing.SUSPECTED:
                hold(bool(contact.suspected_by), "somebody suspects whoever is suspected", peer, contact)
            elif contact.standing is Standing.DEAD:
                hold(contact.probe is None, "the dead are not pinged", peer, contact)
            hold(contact.probe is None or contact.probe.k <= self._k, "pings are numbered", peer, contact, self._k)
        hold(all(k <= self._k for k in self._relays), "pings for others are numbered", self._relays, self._k)
        for about, (rumor, times) in self._rumors.items():
            hold(rumor.about == about and times > 0, "rumors are told until they are done", about, rumor, times)

    # ------------------------------------------------------------------------------------------------------- in time

    def tick(self, now: float) -> list[Effect]:
        """Ping who is silent, ask others to, suspect, and take for dead."""
        if now < self._due:
            return []
        self._forgive_own_pause(now)
        effects: list[Effect] = []
        for k, relay in list(self._relays.items()):
            if now >= relay.due:
                del self._relays[k]
                effects.append(Send(relay.to, Nack(self.me, relay.k, relay.target)))
        due, waiting = self._next_look(now)
        if waiting:
            for peer in waiting:
                effects += self._look_at(peer, self.contacts[peer], now)
            due, _ = self._next_look(now)
        self._due = min([due, *(relay.due for relay in self._relays.values())])
        return effects

    def deadline(self) -> float:
        """When `tick` has something to do."""
        return self._due

    def _look_at(self, peer: PeerId, contact: Contact, now: float) -> list[Effect]:
        if contact.standing is Standing.DEAD:
            return []
        probe = contact.probe
        if contact.standing is Standing.SUSPECTED:
            if probe is not None and now >= probe.due:  # it does not answer us either
                self._confirm(Rumor(peer, Standing.SUSPECTED, contact.incarnation, self.me), contact, now)
            if now >= self._dies_at(contact):
                self._bury(contact)
                self._tell(Rumor(peer, Standing.DEAD, contact.incarnation, self.me))
                return []
        if probe is None:
            return self._ping(peer, contact, now) if now >= self._pings_at(contact) else []
        if now < probe.due:
            return []
        if contact.standing is Standing.SUSPECTED:
            return self._ping(peer, contact, now)
        if probe.relays is None:
            probe.relays = self._some_alive(peer)
            probe.due = now + self._patient(self.detection.ping_s)
            return [Send(relay, PingRequest(self.me, probe.k, peer)) for relay in sorted(probe.relays)]
        # who was asked answers in any case: if not, it may be our own fault
        self._doubt(len(probe.relays), now)
        self._suspect(peer, contact, self.me, now)
        return self._ping(peer, contact, now)

    def _ping(self, peer: PeerId, contact: Contact, now: float) -> list[Effect]:
        self._k += 1
        rumors = self._freshest()
        if contact.standing is Standing.SUSPECTED:  # it shall know, and object
            rumors = (Rumor(peer, Standing.SUSPECTED, contact.incarnation, self.me), *rumors[: RUMORS_MAX - 1])
        contact.probe = Probe(self._k, now + self._patient(self.detection.ping_s))
        return [Send(peer, Ping(self.me, self._k, rumors))]

    def _pings_at(self, contact: Contact) -> float:
        return max(contact.ping_at, contact.heard_at + self._patient(self.detection.silent_s))

    def _next_look(self, now: float) -> tuple[float, list[PeerId]]:
        """When the first contact is to be looked at, and which are now; whoever is out of reach by now is noted.

        Each ack makes this be asked again, of all contacts: hence the comparisons in place of `min` and `max`.
        """
        unheard_s, silent_s = self.detection.unheard_s, self._patient(self.detection.silent_s)
        due, waiting = float("inf"), []
        for peer, contact in self.contacts.items():
            heard_at = contact.heard_at
            unheard_at = heard_at + unheard_s
            if unheard_at <= now:
                self._dirty = True
            elif unheard_at < due:
                due = unheard_at
            if contact.standing is Standing.DEAD:
                continue
            if contact.probe is not None:
                look_at = contact.probe.due
            else:  # as in `_pings_at`
                look_at = heard_at + silent_s
                if contact.ping_at > look_at:
                    look_at = contact.ping_at
            if contact.standing is Standing.SUSPECTED:
                look_at = min(look_at, self._dies_at(contact))
            if look_at < due:
                due = look_at
            if look_at <= now:
                waiting.append(peer)
        return due, waiting

    def _suspect(self, peer: PeerId, contact: Contact, by: PeerId, now: float) -> None:
        contact.standing, contact.suspected_at, contact.suspected_by = Standing.SUSPECTED, now, {by}
        contact.probe, contact.ping_at = None, float("-inf")
        self._dirty = self._dirty or contact.gone
        self._due = min(self._due, now)
        self._tell(Rumor(peer, Standing.SUSPECTED, contact.incarnation, by))

    def _confirm(self, rumor: Rumor, contact: Contact, now: float) -> None:
        """One more suspects it."""
        if rumor.by not in contact.suspected_by and len(contact.suspected_by) <= self.detection.confirmations_max:
            contact.suspected_by.add(rumor.by)
            # which may be over by now: that is not a deadline that we missed
            self._due = min(self._due, max(now, self._dies_at(contact)))
            self._tell(rumor)

    def _bury(self, contact: Contact) -> None:
        contact.standing, contact.probe = Standing.DEAD, None
        self._dirty = True

    def _clear(self, contact: Contact, now: float) -> None:
        """It is alive, and to be watched again."""
        if contact.standing is not Standing.ALIVE:
            contact.standing = Standing.ALIVE
            self._dirty = True
            self._due = min(self._due, now)

    def _dies_at(self, contact: Contact) -> float:
        """Lifeguard section IV-B: from the longest time down to the shortest, with the logarithm of confirmations."""
        longest, shortest = self.detection.suspicion_max_s, self.detection.suspicion_min_s
        if contact.broken:
            return contact.suspected_at + self._patient(shortest)
        enough = self.detection.confirmations_max
        confirmed = math.log(len(contact.suspected_by)) / math.log(1 + enough) if enough else 1.0
        return contact.suspected_at + self._patient(max(shortest, longest - (longest - shortest) * confirmed))

    def _doubt(self, change: int, now: float) -> None:
        """Lifeguard section IV-A. Who hears others on time is as well as one whose pings are answered."""
        self.health = min(self.detection.health_max, max(0, self.health + change))
        self._doubted_at = now
        if change < 0:  # all that waits for longer is due sooner
            self._due = min(self._due, now)

    def _patient(self, seconds: float) -> float:
        """Lifeguard section IV-A: the more we doubt ourselves, the longer we wait."""
        return seconds * (1 + self.health)

    def _some_alive(self, but: PeerId) -> set[PeerId]:
        """A few to ask."""
        if self._chance is None:
            return set()
        left = sorted(p for p, c in self.contacts.items() if p != but and c.standing is Standing.ALIVE)
        some: set[PeerId] = set()
        while left and len(some) < self.detection.relays_max:
            some.add(self._chance.choice(left))
            left = [peer for peer in left if peer not in some]
        return some

    def _tell(self, rumor: Rumor) -> None:
        times = TRANSMISSIONS_FACTOR * math.ceil(math.log2(2 + len(self.contacts)))
        self._rumors[rumor.about] = rumor, times
        self._untold.add(rumor.about)

    def _forgive_own_pause(self, now: float) -> None:
        """We slept ourselves: nobody was silent for that long, and nobody is to be blamed for what we missed."""
        if now < self._due + LATE_S:
            return
        for contact in self.contacts.values():
            if contact.standing is not Standing.DEAD:
                contact.probe = None
                self._clear(contact, now)
                if not contact.gone:
                    contact.heard_at = now
        self._due = now + self.detection.silent_s
        self._doubt(1, now)


class Told:
    """In the place of a `Membership`, where departures are told from outside: it finds nothing, and says nothing."""

    news = False
    contacts: Mapping[PeerId, Contact] = MappingProxyType({})

    def join(self, peer: PeerId, now: float, known: bool = True) -> None:
        """Nobody is watched."""

    def heard(self, peer: PeerId, now: float) -> None:
        """Nobody was doubted."""

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A broken connection says nothing."""

    def on_rumors(self, rumors: Sequence[Rumor], now: float) -> None:
        """They are not believed."""

    def on_message(self, message: Ping | PingRequest | Ack | Nack, now: float) -> list[Effect]:
        """They are not answered."""
        return []

    def rumors(self) -> tuple[Rumor, ...]:
        return ()

    def farewell(self) -> tuple[Rumor, ...]:
        return ()

    def check(self) -> None:
        """There is nothing that could be wrong."""

    def tick(self, now: float) -> list[Effect]:
        return []

    def changes(self, now: float) -> list[tuple[PeerId, bool]]:
        return []

    def deadline(self) -> float:
        return float("inf")
