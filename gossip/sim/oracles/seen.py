"""A peer as it is seen from outside, and when oracles look at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gossip.events import Adopt, Deliver, Effect, Event, Fold, Forget, Keep, Received, Send
from gossip.lanes.peer import Peer
from gossip.membership import LATE_S
from gossip.messages import Advert, Mark, Message, PeerId, Pin, Pull, StateRequest, Unknown, Unpin
from gossip.sim.simulator import Simulation

SLACK_S: Final = 1e-6
"""Times lose a little when they are added."""
NUMBERED: Final[Mapping[type, bool]] = {Pull: True, Pin: True, StateRequest: True, Unpin: False, Advert: False}
"""Messages whose k grows with time: whether each is a question."""


class ViolationError(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Outside:
    """The whole swarm."""

    swarm: Simulation
    marks: Mapping[PeerId, Sequence[tuple[Mark, ...]]]
    """Of each lane's entries, from the first on behind one of none."""
    views: dict[PeerId, View] = field(default_factory=dict)


@dataclass
class Asked:
    """The numbers of what others asked of a peer."""

    newest: dict[PeerId, int] = field(default_factory=dict)
    """The highest k that ever came from each."""
    questions: dict[PeerId, int] = field(default_factory=dict)
    """The highest k of a pull, pin or request from each."""
    pulls: dict[PeerId, int] = field(default_factory=dict)
    """Of the newest pull of each reader that is known."""

    def is_new(self, asker: PeerId, k: int) -> bool:
        """Nothing that came from `asker` before is as new as its question `k`."""
        return k > self.questions.get(asker, 0) and k >= self.newest.get(asker, 0)

    def note(self, message: Any) -> None:
        """Remember the number of what came in, if it has one that counts."""
        asks = NUMBERED.get(type(message))
        if asks is None:
            return
        asker, k = message.peer, message.k
        self.newest[asker] = max(self.newest.get(asker, 0), k)
        if asks:
            self.questions[asker] = max(self.questions.get(asker, 0), k)


@dataclass
class Adoption:
    """The newest adoption of a peer."""

    k: int = -1
    donor: PeerId | None = None
    """Whose replica it takes,"""
    gives_up_at: float = 0.0
    """until when it waits,"""
    progressed_at: float = float("-inf")
    """when some of it came in,"""
    asked: set[PeerId] = field(default_factory=set)
    """whom it heard when it began,"""
    pinned: set[PeerId] = field(default_factory=set)
    """who said to have pinned for it,"""
    pinned_at: float | None = None
    """and since when nobody's pin is missing, and it was not asked for."""


@dataclass
class Gone:
    """Who is gone, as a peer knows."""

    since: dict[PeerId, float] = field(default_factory=dict)
    strangers: dict[PeerId, float] = field(default_factory=dict)
    """Whose lanes are known though nobody introduced them, since when."""
    returned_at: float = float("-inf")
    """When one was heard again."""


class View:
    """What was seen of one peer until now, as far as several oracles go by it."""

    def __init__(self, outside: Outside, me: PeerId, now: float) -> None:
        self.outside = outside
        self.me = me
        self.peer: Peer = outside.swarm.peers[me].peer
        self.at = now
        """When something happened to it last, by its own clock."""
        self.adverts: dict[PeerId, Advert] = {}
        """The newest from each."""
        self.asked = Asked()
        self.gone = Gone()
        self.adoption = Adoption()
        self.adopting = False
        """That adoption was under way after the last event."""
        self.away: set[PeerId] = set()
        """Whom it took for dead then."""
        self.kept = 0
        """Segments, then."""
        self.pins: dict[PeerId, tuple[int, frozenset[int]]] = {}
        """What it kept for each adopter then: k and boundaries."""
        self.placed: set[PeerId] = set()
        """Readers that stand where this origin expects them, and so for as long as it remembers them."""

    def hear(self, message: Message) -> None:
        """Remember the newest advert of each."""
        if isinstance(message, Advert):
            newest = self.adverts.get(message.peer)
            if message.peer in self.peer.members and (newest is None or message.k >= newest.k):
                self.adverts[message.peer] = message

    def remember(self, now: float) -> None:
        """All have looked: this is what was before the next event."""
        lane, adopter = self.peer.replicator, self.peer.adopter
        self.at = now
        self.adopting = adopter.under_way
        self.kept = len(lane.segments)
        if self.away != lane.away:
            self.away = set(lane.away)


class Step:
    """One event at one peer, and what the peer made of it."""

    __slots__ = ("adopted", "effects", "event", "merged", "message", "now", "shaped", "slept", "stopped")

    def __init__(self, view: View, now: float, event: Event, effects: list[Effect]) -> None:
        self.now = now
        self.event = event
        self.message = event.message if isinstance(event, Received) else None
        self.effects = effects
        self.slept = now > view.at + LATE_S
        self.merged = self.adopted = self.shaped = False
        for effect in effects:
            kind = type(effect)
            if kind is Deliver:
                self.merged = True
            elif kind is Adopt:
                self.merged = self.adopted = True
            elif kind in (Keep, Fold, Forget):
                self.shaped = True  # what is kept of the own lane
        adopter = view.peer.adopter
        self.stopped = view.adopting and not self.adopted and not adopter.under_way

    @property
    def refuses(self) -> bool:
        """Somebody is told that what it asks for is unknown."""
        return any(isinstance(effect, Send) and isinstance(effect.message, Unknown) for effect in self.effects)

    def sent(self, to: PeerId) -> list[Message]:
        """All messages to that peer alone."""
        return [effect.message for effect in self.effects if isinstance(effect, Send) and effect.to == to]


class Moments:
    """Who looks when; at one moment in the order of the table."""

    def __init__(self) -> None:
        self.begins: list[Callable[[Step], None]] = []
        """Before all else."""
        self.happens: defaultdict[type, list[Callable[[Step, Any], None]]] = defaultdict(list)
        """By kind of event, or of the message that came in: before the effects are looked at,"""
        self.effects: defaultdict[type, list[Callable[[Step, Any], None]]] = defaultdict(list)
        """by kind of effect: at each, in their order,"""
        self.sends: defaultdict[type, list[Callable[[Step, PeerId, Any], None]]] = defaultdict(list)
        """by kind of message: at each that is sent to one peer, among the effects,"""
        self.answers: defaultdict[type, list[Callable[[Step, Any], None]]] = defaultdict(list)
        """by kind of the message that came in: when all effects are known."""
        self.ends: list[Callable[[Step], None]] = []
        """After all else."""
        self.between: list[Callable[[], None]] = []
        """Now and then, though nothing happened."""

    def look(self, step: Step) -> None:
        """Let all look at one step."""
        for look in self.begins:
            look(step)
        what = step.event if step.message is None else step.message
        for look_at in self.happens.get(type(what), ()):
            look_at(step, what)
        effects, sends = self.effects, self.sends
        for effect in step.effects:
            if isinstance(effect, Send):
                for look_to in sends.get(type(effect.message), ()):
                    look_to(step, effect.to, effect.message)
            else:
                for look_at in effects.get(type(effect), ()):
                    look_at(step, effect)
        if step.message is not None:
            for look_at in self.answers.get(type(step.message), ()):
                look_at(step, step.message)

    def end(self, step: Step) -> None:
        """Let all look who look last."""
        for look in self.ends:
            look(step)
