"""A question is answered once; a question older than a message heard since is not answered."""

from __future__ import annotations

from gossip.messages import (
    Ack,
    Advert,
    Nack,
    PeerId,
    Ping,
    PingRequest,
    Pull,
    Range,
    State,
    StateRequest,
    Unknown,
)
from gossip.sim.oracles.seen import SLACK_S, Moments, Step, View, ViolationError


class AnswersPings:
    """A ping is answered, and who asked another to ping hears in time what came of it."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._relays: dict[tuple[PeerId, int], float] = {}
        """(who asked, k): when it must have heard at the latest what came of it."""
        moments.begins.append(self._begin)
        moments.answers[Ping].append(self._pinged)
        moments.answers[PingRequest].append(self._requested)
        moments.ends.append(self._look)

    def _begin(self, step: Step) -> None:
        if step.slept and (detection := self._view.peer.settings.detection) is not None:
            self._relays = dict.fromkeys(self._relays, step.now + detection.silent_s)

    def _pinged(self, step: Step, ping: Ping) -> None:
        me = self._view.me
        if not any(isinstance(m, Ack) and (m.k, m.about) == (ping.k, me) for m in step.sent(ping.peer)):
            raise ViolationError(f"{me} does not answer a ping of {ping.peer}")

    def _requested(self, step: Step, request: PingRequest) -> None:
        peer = self._view.peer
        if request.target not in peer.members:
            return
        if not any(isinstance(m, Ping) for m in step.sent(request.target)):
            raise ViolationError(f"{self._view.me} does not ping {request.target} for {request.peer}")
        detection = peer.settings.detection
        assert detection is not None
        self._relays[request.peer, request.k] = step.now + detection.ping_s

    def _look(self, step: Step) -> None:
        for (asker, k), due in list(self._relays.items()) if self._relays else ():
            if any(isinstance(m, Ack | Nack) and m.k == k for m in step.sent(asker)):
                del self._relays[asker, k]
            elif step.now > due + SLACK_S:
                raise ViolationError(f"{self._view.me} does not tell {asker} what came of a ping")


class AnswersPulls:
    """A pull is answered by what follows where it stands, if there is any, and never after a newer one."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.answers[Pull].append(self._pulled)

    def _pulled(self, step: Step, pull: Pull) -> None:
        me, lane, asker, asked = self._view.me, self._view.peer.replicator, pull.peer, self._view.asked
        answers = [m for m in step.sent(asker) if isinstance(m, Range | Unknown) and m.k == pull.k]
        for answer in answers:
            if pull.frontier != (answer.lo - 1 if isinstance(answer, Range) else answer.frontier):
                raise ViolationError(f"{me} answers {pull} by {answer}")
        pin = lane.pins.get(asker)
        if answers and (pull.k < asked.pulls.get(asker, 0) or (pin is not None and pull.k < pin.k)):
            raise ViolationError(f"{me} answers {pull}, which is older than what came before")
        if pull.k < asked.pulls.get(asker, 0):
            return
        if len(answers) != 1 and asked.is_new(asker, pull.k) and pull.frontier != lane.n:
            raise ViolationError(f"{me}, at {lane.n}, answers {pull} by {answers}")
        if asker not in lane.readers:
            asked.pulls.pop(asker, None)
        elif not any(isinstance(answer, Unknown) for answer in answers):
            asked.pulls[asker] = pull.k


class GivesItsReplica:
    """Who gives its replica lacks nothing of a living lane that the other has; and whoever can give does."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        moments.answers[StateRequest].append(self._requested)

    def _requested(self, step: Step, request: StateRequest) -> None:
        given = [m for m in step.sent(request.peer) if isinstance(m, State)]
        self._check_whether(request, given)
        for state in given:
            self._check_what(request, state)

    def _check_whether(self, request: StateRequest, given: list[State]) -> None:
        view, me, peer, asker = self._view, self._view.me, self._view.peer, request.peer
        mine = peer.replicator.frontiers()
        strangers = {*peer.roster.gone, *view.gone.strangers}
        lacks = {other for other, n in request.frontiers.items() if mine.get(other, 0) < n}
        able = peer.ready and not lacks - strangers - {asker}
        agreed = asker not in peer.replicator.members or set(peer.roster.readable()) <= {*request.pinned, asker}
        if able and agreed and view.asked.is_new(asker, request.k) and asker not in view.away and not given:
            raise ViolationError(f"{me} could give {asker} its replica, and does not")
        if given and not (peer.ready and agreed):
            raise ViolationError(f"{me} gives its replica for {request}, and hears {peer.roster.readable()}")
        known = view.pins.get(asker, (0, frozenset[int]()))[0]
        if given and request.k < max(known, view.asked.pulls.get(asker, 0)):
            raise ViolationError(f"{me} gives its replica for {request}, which is older than what came before")

    def _check_what(self, request: StateRequest, state: State) -> None:
        me, peer, asker = self._view.me, self._view.peer, request.peer
        pin = peer.replicator.pins.get(asker)
        # it may have taken something back since, in the same step: then it is further itself
        kept = pin is not None and pin.k == request.k and state.frontiers[me] in pin.boundaries
        if asker in peer.replicator.members and not kept:
            raise ViolationError(f"{me} gives {state.frontiers[me]} updates for {request}, and keeps {pin}")
        over = peer.identities.dropped if request.pinned else peer.identities.closed
        if (state.closed, state.units) != (over, peer.identities.units):
            raise ViolationError(f"{me} gives {state.closed} epochs and {state.units} units, and has {over}")
        for other, frontier in request.frontiers.items():
            if other not in (asker, *peer.roster.departed()) and state.frontiers.get(other, 0) < frontier:
                raise ViolationError(f"{me} gives {asker} a replica that is behind in lane {other}")


class KnowsWhatItWasTold:
    """How far a lane is, as its own peer said, is known at once and never forgotten."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._told: dict[PeerId, int] = {}
        moments.answers[Advert].append(self._advertised)
        moments.ends.append(self._look)

    def _advertised(self, step: Step, advert: Advert) -> None:
        origin = self._view.peer.replicator.origins.get(advert.peer)
        if origin is None:  # it was not introduced yet
            return
        self._told[advert.peer] = max(self._told.get(advert.peer, 0), advert.n)
        if origin.n < advert.n:
            me = self._view.me
            raise ViolationError(f"{me} was told that {advert.peer} is at {advert.n}, and does not know it")

    def _look(self, step: Step) -> None:
        if not step.merged:
            return
        for other, known in self._view.peer.replicator.origins.items():
            if known.n < max(known.frontier, self._told.get(other, 0)):
                told = self._told.get(other, 0)
                raise ViolationError(f"{self._view.me} was told of {told} of {other}, and knows {known}")
