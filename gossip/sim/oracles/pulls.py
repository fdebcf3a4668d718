"""Updates known to be missing are asked for: at once, of one peer at a time, not again while the answer may come."""

from __future__ import annotations

from gossip.events import Adopt, Deliver, Progressed, Publish
from gossip.messages import Advert, PeerId, Pin, Pull, StateRequest
from gossip.sim.oracles.seen import SLACK_S, Moments, Step, View, ViolationError


class NumbersItsQuestions:
    """Each pull and each adoption has its own number, and later ones a higher; an advert has one after the adoption."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._newest = 0
        moments.sends[Pull].append(self._asks)
        moments.sends[Pin].append(self._adopts)
        moments.sends[StateRequest].append(self._adopts)
        moments.effects[Publish].append(self._published)

    def _adopts(self, step: Step, to: PeerId, message: Pin | StateRequest) -> None:
        if message.k != self._view.adoption.k:
            self._asks(step, to, message)

    def _asks(self, step: Step, to: PeerId, message: Pull | Pin | StateRequest) -> None:
        if message.k <= self._newest:
            raise ViolationError(f"{self._view.me} asks with {message.k}, and did with {self._newest} before")
        self._newest = message.k

    def _published(self, step: Step, effect: Publish) -> None:
        view, message = self._view, effect.message
        if isinstance(message, Advert) and message.k <= view.adoption.k and not view.peer.replicator.frozen:
            raise ViolationError(f"{view.me} advertises with {message.k}, and adopted with {view.adoption.k}")


class PullsInTurn:
    """Whoever lives and waited longest is asked first."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._asked_at: dict[PeerId, float] = {}
        """By origin: the last pull."""
        moments.sends[Pull].append(self._pulls)

    def _pulls(self, step: Step, to: PeerId, pull: Pull) -> None:
        me, peer = self._view.me, self._view.peer
        if to in peer.roster.gone:
            raise ViolationError(f"{me} pulls from {to}, which it takes for dead")
        before = self._asked_at.get(to, float("-inf"))
        self._asked_at[to] = step.now
        for other, origin in peer.replicator.origins.items():
            waits = origin.n > origin.frontier and origin.pull is None and other not in peer.roster.gone
            if waits and self._asked_at.get(other, float("-inf")) < before:
                raise ViolationError(f"{me} pulls from {to}, and {other} has waited longer")


class PullsWhatItLacks:
    """Who lacks updates pulls them, as many at a time as it may, and none that may still come."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._arrives_at: dict[PeerId, float] = {}
        """When a part of an answer came last, perhaps of an old one."""
        self._pulled_at: dict[PeerId, float] = {}
        """By origin: when the pull was sent that may still be answered."""
        moments.begins.append(self._begin)
        moments.happens[Progressed].append(self._progressed)
        moments.effects[Deliver].append(self._merged)
        moments.effects[Adopt].append(self._adopted)
        moments.sends[Pull].append(self._pulls)
        moments.ends.append(self._look)

    def _begin(self, step: Step) -> None:
        before, away = self._view.away, self._view.peer.replicator.away
        for other in before ^ away if before != away else ():
            self._pulled_at.pop(other, None)

    def _progressed(self, step: Step, event: Progressed) -> None:
        self._arrives_at[event.peer] = step.now

    def _merged(self, step: Step, effect: Deliver) -> None:
        self._pulled_at.pop(effect.lane, None)

    def _adopted(self, step: Step, effect: Adopt) -> None:
        self._pulled_at.clear()

    def _pulls(self, step: Step, to: PeerId, pull: Pull) -> None:
        me, peer = self._view.me, self._view.peer
        lane, theirs = peer.replicator, self._view.outside.swarm.peers[to].peer.replicator
        if peer.adopter.under_way:
            raise ViolationError(f"{me} pulls while it adopts")
        if pull.frontier != lane.origins[to].frontier or theirs.n <= pull.frontier:
            raise ViolationError(f"{me} pulls {pull.frontier} from {to}, which has {theirs.n}")
        if sum([origin.pull is not None for origin in lane.origins.values()]) > lane.pulls_max:
            raise ViolationError(f"{me} pulls from more than {lane.pulls_max} at a time")
        if step.now < self._pulled_at.get(to, float("-inf")) + peer.settings.pull_timeout_s - SLACK_S:
            raise ViolationError(f"{me} pulls from {to} again, and was not answered")
        self._pulled_at[to] = step.now

    def _look(self, step: Step) -> None:
        peer, now = self._view.peer, step.now
        adopter, lane = peer.adopter, peer.replicator
        if not peer.ready or (adopter.under_way):
            return
        timeout_s, arrives_at = peer.settings.pull_timeout_s, self._arrives_at
        asked = {
            other
            for other, at in self._pulled_at.items()
            if now < max(at, arrives_at.get(other, at)) + timeout_s + SLACK_S
        }
        waiting = [
            other
            for other, origin in lane.origins.items()
            if origin.n > origin.frontier and other not in asked and other not in peer.roster.gone
        ]
        if waiting and len(asked) < lane.pulls_max:
            raise ViolationError(f"{self._view.me} lacks updates of {waiting}, and does not pull")
