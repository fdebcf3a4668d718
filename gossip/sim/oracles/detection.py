"""Rules by which each peer of a simulated swarm finds the dead, held after each event.

- a peer that was heard is not suspected, nor dead for others' word, unless its connection broke or it said farewell;
- a suspected peer dies when its time is up, neither before nor after, and is cleared only if it was heard;
- the word of others is believed where it is news, and told on, as often as SWIM says;
- a peer that is suspected objects, and doubts itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gossip.events import Disconnected, Effect, Event, Leaving, Progressed, Publish, Received, Send, Ticked
from gossip.fields import RUMORS_MAX
from gossip.membership import LATE_S, TRANSMISSIONS_FACTOR, Contact, Detection, Membership
from gossip.messages import Ack, Advert, Bulk, Nack, PeerId, Ping, PingRequest, Rumor, Standing
from gossip.sim.oracles.seen import SLACK_S, ViolationError
from gossip.sim.simulator import Simulation


@dataclass
class Seen:
    """What was seen of one peer's contact."""

    heard_at: float
    """When it may have been heard last, or when we slept."""
    surely_at: float
    """When it was."""
    standing: Standing = Standing.ALIVE
    alive_since: float = float("-inf")
    incarnation: int = 0
    suspected_by: frozenset[PeerId] = frozenset()
    broken: bool = False
    requested: bool = False
    """Others were asked to ping it since,"""
    k: int = 0
    """by this k,"""
    silent: set[PeerId] = field(default_factory=set)
    """of whom these have not said what came of it."""

    def remember(self, now: float, contact: Contact) -> None:
        """This is what was before the next event."""
        if contact.standing is not Standing.ALIVE:
            self.alive_since = float("inf")
        elif self.standing is not Standing.ALIVE:
            self.alive_since = now
        self.standing, self.incarnation = contact.standing, contact.incarnation
        self.suspected_by = frozenset(contact.suspected_by)


@dataclass
class Look:
    """What was seen of one peer."""

    at: float
    due: float = float("inf")
    """When it was to look at the others next."""
    contacts: dict[PeerId, Seen] = field(default_factory=dict)
    incarnation: int = 0
    health: int = 0
    to_tell: set[PeerId] = field(default_factory=set)
    """Of whom there is news that it did not tell yet,"""
    since: float | None = None
    """since when."""
    told: dict[PeerId, tuple[Rumor, int, int]] = field(default_factory=dict)
    """By whom it is about: what the last advert said, how often it was said, and how often it must be."""
    times: int = 0
    """How often what is new is said."""
    left: bool = False


class DetectionOracles:
    """Looks at every event of `swarm`."""

    def __init__(self, swarm: Simulation) -> None:
        self._swarm = swarm
        self._looks: dict[PeerId, Look] = {}
        swarm.observers.append(self._look)

    def is_quiet(self) -> bool:
        """Nobody has anything to tell any more, or doubts itself."""
        found = [host.peer.membership for host in self._swarm.live().values()]
        return not any(isinstance(m, Membership) and (m.news or m._rumors or m.health) for m in found)

    def _look(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        look = self._looks.setdefault(me, Look(now))
        membership = self._swarm.peers[me].peer.membership
        look.left = look.left or isinstance(event, Leaving)
        if not isinstance(membership, Membership) or look.left:
            return
        slept, look.at = now > look.at + LATE_S, now
        message = event.message if isinstance(event, Received) else None
        rumors = message.rumors if isinstance(message, Advert | Ping | Ack) else ()
        by = None if message is None or isinstance(message, Bulk) else message.peer
        if isinstance(event, Progressed) and event.arrived:
            by = event.peer
        self._meet(now, look, me, membership)
        self._hear(now, look, me, by, slept)
        doubt = look.health + (now >= look.due + LATE_S)
        for effect in effects:
            if isinstance(effect, Send):
                self._check_sent(look, me, membership, effect, message)
        for other, seen in look.contacts.items():
            contact = membership.contacts[other]
            about = [rumor for rumor in rumors if rumor.about == other]
            if isinstance(event, Disconnected) and event.peer == other:
                seen.broken = seen.standing is not Standing.DEAD or seen.broken
                if contact.standing is Standing.ALIVE and not slept:
                    raise ViolationError(f"the connection of {me} to {other} broke, and it does not suspect it")
            self._check_contact(now, look, me, membership, contact, other, seen, about, by)
            doubt += self._doubt(contact, other, seen, message)
            cleared = by == other or slept or (isinstance(message, Ack) and message.about == other)
            cleared = cleared or any(r.standing is Standing.ALIVE and r.incarnation > seen.incarnation for r in about)
            if seen.standing is not Standing.ALIVE and contact.standing is Standing.ALIVE and not cleared:
                raise ViolationError(f"{me} takes {other} for alive again, and has not heard it")
            self._check_believed(now, me, contact, other, seen, about)
            if self._is_news(contact, seen, about):
                look.to_tell.add(other)
            seen.remember(now, contact)
        if isinstance(event, Ticked) and membership.health != min(doubt, membership.detection.health_max):
            raise ViolationError(f"{me} doubts itself by {membership.health}, expected {doubt}")
        look.due = membership.deadline()
        self._check_self(look, me, membership, rumors, isinstance(message, Advert | Ping))
        self._check_told(now, look, me, membership, effects)

    def _hear(self, now: float, look: Look, me: PeerId, by: PeerId | None, slept: bool) -> None:
        away = self._swarm.peers[me].peer.replicator.away
        for other, seen in look.contacts.items() if slept else ():
            if other not in away:
                seen.heard_at = now
        if by is not None and (heard := look.contacts.get(by)) is not None:
            heard.heard_at = heard.surely_at = now
            heard.broken = heard.requested = False

    def _doubt(self, contact: Contact, other: PeerId, seen: Seen, message: object) -> int:
        """How many did not say what came of their pings to one that is suspected now: perhaps it is us."""
        if isinstance(message, Nack) and (message.about, message.k) == (other, seen.k):
            seen.silent.discard(message.peer)
        suspected = contact.standing is Standing.SUSPECTED and seen.standing is Standing.ALIVE
        silent = len(seen.silent) if suspected else 0
        if contact.probe is None or contact.standing is not seen.standing:
            seen.silent.clear()
        return silent

    def _meet(self, now: float, look: Look, me: PeerId, membership: Membership) -> None:
        """Whoever was there before us may have died since, and gets less time to be heard."""
        for other in membership.contacts.keys() - look.contacts.keys():
            peer, detection = self._swarm.peers[me].peer, membership.detection
            at = now if peer.ready else now + detection.greeting_s - detection.unheard_s
            look.contacts[other] = Seen(at, min(at, membership.contacts[other].heard_at), alive_since=now)

    def _check_contact(
        self,
        now: float,
        look: Look,
        me: PeerId,
        membership: Membership,
        contact: Contact,
        other: PeerId,
        seen: Seen,
        about: list[Rumor],
        by: PeerId | None,
    ) -> None:
        detection = membership.detection
        farewell = any(rumor.by == other and rumor.standing is Standing.DEAD for rumor in about)
        if contact.heard_at > seen.heard_at + SLACK_S:
            raise ViolationError(
                f"{me} believes to have heard {other} at {contact.heard_at}, and did at {seen.heard_at}"
            )
        if contact.incarnation < seen.incarnation:
            raise ViolationError(f"{me} goes back from incarnation {seen.incarnation} of {other}")
        waits = contact.standing is not Standing.ALIVE or contact.broken or contact.probe is not None
        if by == other and not farewell and waits:
            raise ViolationError(f"{me} hears {other}, and still waits for it: {contact}")
        heard = now < seen.surely_at + detection.silent_s - SLACK_S and not seen.broken
        if contact.standing is Standing.SUSPECTED:
            if seen.standing is not Standing.SUSPECTED:
                if heard:
                    raise ViolationError(f"{me} suspects {other}, which it heard at {seen.surely_at}")
                if not about and not seen.broken:
                    self._check_own_suspicion(now, look, me, detection, other, seen)
            if now > _dies_at(contact, len(contact.suspected_by), detection, membership.health) + SLACK_S:
                raise ViolationError(f"{me} still suspects {other}, which it does since {contact.suspected_at}")
        elif contact.standing is Standing.DEAD and seen.standing is not Standing.DEAD:
            if heard and not farewell:
                raise ViolationError(f"{me} takes {other} for dead, which it heard at {seen.surely_at}")
            if not any(rumor.standing is Standing.DEAD for rumor in about):
                confirmed = len(seen.suspected_by.union([me], [rumor.by for rumor in about]))
                health = min(look.health, membership.health)
                if now < _dies_at(contact, confirmed, detection, health) - SLACK_S:
                    raise ViolationError(f"{me} takes {other} for dead, which it suspects since {contact.suspected_at}")

    def _check_own_suspicion(
        self, now: float, look: Look, me: PeerId, detection: Detection, other: PeerId, seen: Seen
    ) -> None:
        """It was pinged, by others, too."""
        if now < seen.surely_at + detection.silent_s + 2 * detection.ping_s - SLACK_S:
            raise ViolationError(f"{me} suspects {other}, which it heard at {seen.surely_at}, and did not wait")
        able = [peer for peer, at in look.contacts.items() if peer != other and at.alive_since < seen.surely_at]
        if able and not seen.requested:
            raise ViolationError(f"{me} suspects {other}, and asked none of {able} to ping it")

    def _check_believed(
        self, now: float, me: PeerId, contact: Contact, other: PeerId, seen: Seen, about: list[Rumor]
    ) -> None:
        """What is not outweighed by what we know ourselves."""
        detection = self._swarm.peers[me].peer.settings.detection
        assert detection is not None
        for rumor in about:
            if contact.incarnation < rumor.incarnation:
                raise ViolationError(f"{me} was told {rumor}, and knows of incarnation {contact.incarnation}")
            unheard = now >= seen.heard_at + detection.silent_s or rumor.by == other
            if len(about) > 1 or rumor.incarnation < seen.incarnation or not unheard:
                continue
            if rumor.standing is Standing.DEAD and contact.standing is not Standing.DEAD:
                raise ViolationError(f"{me} was told {rumor}, and does not believe it")
            if rumor.standing is Standing.SUSPECTED and contact.standing is Standing.ALIVE:
                raise ViolationError(f"{me} was told {rumor}, and does not believe it")

    def _is_news(self, contact: Contact, seen: Seen, about: list[Rumor]) -> bool:
        if contact.standing is not seen.standing:
            if contact.standing is not Standing.ALIVE:
                return True
        elif contact.standing is Standing.SUSPECTED and not contact.suspected_by <= seen.suspected_by:
            return True
        return any(r.standing is Standing.ALIVE and r.incarnation > seen.incarnation for r in about)

    def _check_self(
        self, look: Look, me: PeerId, membership: Membership, rumors: tuple[Rumor, ...], doubts: bool
    ) -> None:
        if not 0 <= membership.health <= membership.detection.health_max:
            raise ViolationError(f"{me} doubts itself by {membership.health}")
        accused = any(
            r.about == me and r.standing is not Standing.ALIVE and r.incarnation == look.incarnation for r in rumors
        )
        if accused != (membership.incarnation > look.incarnation):
            raise ViolationError(f"{me} is of incarnation {membership.incarnation}, was {look.incarnation}: {rumors}")
        if accused:
            look.to_tell.add(me)
            if doubts and not membership.health:
                raise ViolationError(f"{me} is suspected, and does not doubt itself")
        look.incarnation, look.health = membership.incarnation, membership.health

    def _check_sent(self, look: Look, me: PeerId, membership: Membership, effect: Send, message: object) -> None:
        if isinstance(effect.message, PingRequest) and effect.message.target in look.contacts:
            target = look.contacts[effect.message.target]
            target.requested, target.k = True, effect.message.k
            target.silent.add(effect.to)
        if isinstance(effect.message, Ping) and not isinstance(message, PingRequest):
            contact = membership.contacts[effect.to]
            told = [rumor for rumor in effect.message.rumors if rumor.about == effect.to]
            if contact.standing is Standing.SUSPECTED and not any(r.standing is Standing.SUSPECTED for r in told):
                raise ViolationError(f"{me} pings {effect.to}, and does not say that it suspects it")

    def _check_told(self, now: float, look: Look, me: PeerId, membership: Membership, effects: list[Effect]) -> None:
        """News travels with the next advert, soon, and with as many as it must."""
        look.since = None if not look.to_tell else now if look.since is None else look.since
        for effect in effects:
            if not isinstance(effect, Publish) or not isinstance(effect.message, Advert):
                continue
            told = {rumor.about: rumor for rumor in effect.message.rumors}
            if len(membership.contacts) < RUMORS_MAX:
                if look.to_tell - told.keys():
                    raise ViolationError(f"{me} has news of {look.to_tell}, and tells {told}")
                for about, (rumor, times, expected) in look.told.items():
                    if about not in told and times < expected:
                        raise ViolationError(f"{me} has told {rumor} only {times} times, expected {expected}")
            before, look.told = look.told, {}
            for about, rumor in told.items():
                known = before.get(about)
                if known is not None and known[0] == rumor:
                    look.told[about] = rumor, known[1] + 1, known[2]
                else:
                    look.told[about] = rumor, 1, look.times
            look.times = TRANSMISSIONS_FACTOR * math.ceil(math.log2(2 + len(membership.contacts)))
            look.to_tell, look.since = set(), None
        if look.since is not None and now > look.since + self._swarm.peers[me].peer.settings.advert_gap_s + SLACK_S:
            raise ViolationError(f"{me} has news of {look.to_tell} since {look.since}, and has not told it")


def _dies_at(contact: Contact, confirmed: int, detection: Detection, health: int) -> float:
    """Lifeguard section IV-B."""
    longest, shortest = detection.suspicion_max_s, detection.suspicion_min_s
    share = math.log(confirmed) / math.log(1 + detection.confirmations_max) if detection.confirmations_max else 1.0
    seconds = shortest if contact.broken else max(shortest, longest - (longest - shortest) * share)
    return contact.suspected_at + seconds * (1 + health)
