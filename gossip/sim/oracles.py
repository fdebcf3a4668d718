"""What must hold of each peer of a simulated swarm after each event, whatever the network does.

These look from outside, at all peers at once, and so see a mistake when it is made and not when it has come to harm,
which most are mended before:

- the own lane is kept without a gap, and an origin keeps what follows wherever it has let a reader stand;
- a question is answered, once, and one that is older than what was heard since is not;
- what is known to be missing is asked for: at once, of one at a time, and not again while the answer may come;
- who adopts merges nothing meanwhile, and asks a donor only when all whom it hears have pinned;
- what a peer knows of units is what its replica holds; none is taken back but for an earlier attempt, and nothing is
  released or dropped that somebody lacks;
- what is pinned stays until its adopter has used it or given up, and holds all places where the donor may be, and the
  one where a replica that was given stands;
- nobody adopts without a reason, from one that cannot give, or for longer than it may take; who can give does;
- an epoch is dropped when all, by the newest that was heard of each, have as much of it;
- who was just heard is not taken for dead, and who was not heard for long is;
- everybody advertises when something changed and every so often anyway, and nobody is busy without end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Final

from gossip.events import (
    Adopt,
    Closed,
    Computed,
    Deliver,
    Drained,
    Effect,
    Event,
    Exhausted,
    Fold,
    Forget,
    Joined,
    Keep,
    Leaving,
    Negative,
    Progressed,
    Publish,
    Received,
    Release,
    Send,
    Started,
    Ticked,
)
from gossip.lanes.adopt import GIVE_UP_S, REPEAT_S
from gossip.lanes.peer import RETURN_S, Peer
from gossip.membership import LATE_S
from gossip.messages import (
    Ack,
    Advert,
    Bulk,
    Mark,
    Nack,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pinned,
    Pull,
    Range,
    State,
    StateRequest,
    Unit,
    Unknown,
    Unpin,
)
from gossip.sim.simulator import Simulation

SLACK_S: Final = 1e-6
"""Times lose a little when they are added."""
SLEPT_S: Final = 5.0
"""Who comes so late was surely late for one of its own deadlines."""
UNHEARD_SLACK_S: Final = 1.0
"""Until who is out of reach is noticed: the longest time between two looks."""
BUSY_MAX: Final = 200
"""Times that one peer wakes, or messages of one kind from one peer to another, in a second of its clock: adverts come
50 times a second at the most, and each may be a reason for something else."""
ADOPTS_MAX: Final = 12
"""The same of what is sent for an adoption, where everything is repeated after half a second."""


class ViolationError(AssertionError):
    """Something that must hold does not."""


class View:
    """What was seen of one peer."""

    def __init__(self, now: float, time: float) -> None:
        self.at = now
        """When something happened to it last, by its own clock."""
        self.second = -1
        self.busy: Counter[object] = Counter()
        """In this second of its clock."""
        self.advertised_at = now
        self.awake_at = time
        """The same by no clock."""
        self.changed_at: float | None = None
        """Since when something is new that was not advertised."""
        self.heard_at: dict[PeerId, float] = {}
        """By contact, or when it became one, or when we slept last."""
        self.arrives_at: dict[PeerId, float] = {}
        """When a part of an answer came last, perhaps of an old one."""
        self.pulled_at: dict[PeerId, float] = {}
        """By origin: when the pull was sent that may still be answered."""
        self.pinned: dict[int, set[PeerId]] = {}
        """By k of the newest adoption: who said to have pinned for it."""
        self.asked: set[PeerId] = set()
        """Whom we heard when that adoption began."""
        self.newest: dict[PeerId, int] = {}
        """The highest k that ever came from each."""
        self.pull_k: dict[PeerId, int] = {}
        """Of the newest pull of each reader that is known."""
        self.placed: set[PeerId] = set()
        """Readers that stand where this origin expects them, and so for as long as it remembers them."""
        self.relays: dict[tuple[PeerId, int], float] = {}
        """(who asked, k): when it must have heard at the latest what came of it."""
        self.away: set[PeerId] = set()
        self.adopting = False
        self.closed = 0
        self.waits_for: set[PeerId] = set()
        """Whom it knew when it heard of that: who comes later has published nothing of those epochs."""
        self.dropped = 0
        self.n = 0
        self.kept = 0
        """Segments."""
        self.forgotten: set[PeerId] = set()
        self.smallest_since = now
        """Since when nobody who is gone has a smaller name than all who are here."""
        self.left = False
        self.adverts: dict[PeerId, Advert] = {}
        """The newest from each."""
        self.told: dict[PeerId, int] = {}
        """How far each lane is, as its peer said."""
        self.gone_at: dict[PeerId, float] = {}
        self.returned_at = float("-inf")
        self.strangers_at: dict[PeerId, float] = {}
        self.needs = False
        """It is to adopt a replica."""
        self.k = -1
        """Of the newest adoption,"""
        self.donor: PeerId | None = None
        """whose replica it takes,"""
        self.gives_up_at = 0.0
        """until when it waits,"""
        self.progressed_at = float("-inf")
        """when some of it came in,"""
        self.pinned_at: float | None = None
        """since when nobody's pin is missing, and it was not asked for."""
        self.pins: dict[PeerId, tuple[int, frozenset[int]]] = {}
        """What is kept for each adopter: k and boundaries."""
        self.readers: frozenset[PeerId] = frozenset()
        self.question: dict[PeerId, int] = {}
        """The highest k of a pull, pin or request from each."""
        self.asks_k = 0
        """Of its newest pull or adoption."""
        self.asked_at: dict[PeerId, float] = {}
        """By origin: the last pull."""
        self.learned: dict[PeerId, int] = {}
        """Where the lanes stood when something was learned of epochs that are over and not dropped,"""
        self.awaited: set[PeerId] = set()
        """and whom it knew then."""
        self.exhausted_until: float | None = None


class Oracles:
    """Looks at every event of `swarm`."""

    def __init__(self, swarm: Simulation, marks: Mapping[PeerId, Sequence[tuple[Mark, ...]]]) -> None:
        """`marks` are of each lane's entries, from the first on behind one of none; they grow before this looks."""
        self._swarm = swarm
        self._marks = marks
        self._views: dict[PeerId, View] = {}
        self.most: Counter[str] = Counter()
        swarm.observers.append(self._look)

    # ------------------------------------------------------------------------------------------------ after an event

    def _look(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        view = self._views.get(me)
        if view is None:
            view = self._views[me] = View(now, self._swarm.now)
        peer = self._swarm.peers[me].peer
        if isinstance(event, Leaving):
            view.left = True
        if view.left:
            return
        lane = peer.replicator
        message = event.message if isinstance(event, Received) else None
        slept = now > view.at + LATE_S
        if now > view.at + LATE_S + UNHEARD_SLACK_S + SLEPT_S:
            self._check_own_pause(view, me, peer, message)
        view.at = now
        if int(now) != view.second:
            view.second, view.busy = int(now), Counter()
        if isinstance(event, Ticked):
            self._count(view, me, "wakes", BUSY_MAX)
        if slept and (detection := peer.settings.detection) is not None:
            view.relays = dict.fromkeys(view.relays, now + detection.silent_s)
        if isinstance(message, Advert):
            if message.peer in lane.origins:  # or it was not introduced yet
                view.told[message.peer] = max(view.told.get(message.peer, 0), message.n)
            newest = view.adverts.get(message.peer)
            if message.peer in peer.members and (newest is None or message.k >= newest.k):
                view.adverts[message.peer] = message
        if isinstance(event, Progressed):
            view.arrives_at[event.peer] = now
            if view.adopting and event.peer == view.donor:
                view.progressed_at, view.gives_up_at = now, now + GIVE_UP_S
        if isinstance(event, Exhausted):
            view.exhausted_until = now + event.timeout_s
        if isinstance(event, Computed) and view.pins and view.kept > peer.settings.segments_max:
            raise ViolationError(f"{me} keeps {view.kept} segments while somebody adopts, and publishes more")
        self._see_the_gone(
            now, view, me, peer, isinstance(event, Joined | Started) or isinstance(message, Advert | State)
        )
        for other in view.away ^ lane.away if view.away != lane.away else ():
            view.pulled_at.pop(other, None)
        if isinstance(message, Pinned):
            view.pinned.get(message.k, set()).add(message.peer)
        merged = adopted = shaped = False
        for effect in effects:
            match effect:
                case Deliver(lane=origin):
                    merged = True
                    view.pulled_at.pop(origin, None)
                    if view.adopting and peer.adopter is not None and peer.adopter.under_way and origin != me:
                        raise ViolationError(f"{me} merges an update of {origin} while it adopts")
                    if isinstance(message, Range) and message.k <= view.k:
                        raise ViolationError(f"{me} merges an answer of before its last adoption: {message.k}")
                    if isinstance(effect.payload, Negative):
                        self._check_withdrawal(now, view, me, peer, effect.payload.number)
                case Adopt():
                    merged = adopted = True
                    view.pulled_at.clear()
                    if not isinstance(message, State) or (message.peer, message.k) != (view.donor, view.k):
                        raise ViolationError(f"{me} adopts what it does not wait for, of {view.donor}")
                case Keep() | Fold() | Forget():
                    shaped = True
                case Publish(Advert(k=k)):
                    if k <= view.k and not peer.replicator.frozen:
                        raise ViolationError(f"{me} advertises with {k}, and adopted with {view.k}")
                    view.advertised_at, view.changed_at, view.awake_at = now, None, self._swarm.now
                case Drained(missing):
                    self._check_drained(now, view, me, peer, missing)
                case Release(number):
                    self._check_released(me, peer, number, effects)
                case Send(to, sent):
                    self._check_sent(now, view, me, peer, to, sent, message)
        if merged and not any(isinstance(effect, Publish) for effect in effects):
            view.changed_at = now if view.changed_at is None else view.changed_at
        if message is not None:
            self._check_answer(now, view, me, peer, message, effects)
        if view.relays:
            self._check_relays(now, view, me, effects)
        if lane.pins or view.pins:
            released = self._check_pins(view, me, peer, message)
            gone = any(isinstance(effect, Send) and isinstance(effect.message, Unknown) for effect in effects)
            shaped = shaped or (released and (gone or isinstance(message, Advert | Unpin)))
        if shaped or lane.n != view.n:
            self._check_lane(me, peer, view)
        if isinstance(message, Advert) and not message.ready and message.peer in lane.readers.keys() - view.readers:
            raise ViolationError(f"{me} keeps what {message.peer} lacks, which has no replica")
        view.readers = frozenset(lane.readers)
        self._check_adoption(now, view, me, peer, message, adopted, effects)
        self._check_liveness(now, view, me, peer)
        self._check_detection(now, view, me, peer, event, slept)
        if shaped or isinstance(event, Computed | Joined) or isinstance(message, Pull | Pin | Unpin | StateRequest):
            self._check_readers(view, me, peer, lane.readers.keys() | lane.pins.keys())
        elif isinstance(message, Advert):
            self._check_readers(view, me, peer, {message.peer} & (lane.readers.keys() | lane.pins.keys()))
        elif peer._gone:
            self._check_readers(view, me, peer, set())
        if merged:
            self._check_reader(me, peer, message.k if isinstance(message, State) and adopted else None)
            for other, known in lane.origins.items():
                if known.n < max(known.frontier, view.told.get(other, 0)):
                    raise ViolationError(f"{me} was told of {view.told.get(other)} of {other}, and knows {known}")
        if merged or isinstance(event, Closed):
            self._check_units(me, peer)
        if not isinstance(event, Started):
            late = isinstance(message, Range) and merged and any(s.epoch < view.closed for s in message.marks)
            self._check_closing(view, me, peer, adopted, late, effects)
        if peer.identities.closed != view.closed:
            view.closed, view.waits_for = peer.identities.closed, set(peer.members)
        if peer.identities.dropped != view.dropped:
            if not adopted and not isinstance(event, Started):
                self._check_dropped(me, peer, view)
            view.dropped = peer.identities.dropped
        self._check_forgotten(now, view, me, peer)
        view.adopting = peer.adopter is not None and peer.adopter.under_way
        view.kept = len(lane.segments)
        view.needs = peer.adopter is not None and peer.adopter.needed
        if view.away != lane.away:
            view.away = set(lane.away)

    def _count(self, view: View, me: PeerId, what: object, most: int) -> None:
        view.busy[what] += 1
        if view.busy[what] > most:
            raise ViolationError(f"{me} does this without end: {what}")

    # ------------------------------------------------------------------------------------------------- the own lane

    def _check_lane(self, me: PeerId, peer: Peer, view: View) -> None:
        """All that is not forgotten is kept, in the peer's eyes and in the driver's."""
        lane = peer.replicator
        if lane.n < view.n:
            raise ViolationError(f"the lane of {me} goes back from {view.n} to {lane.n}")
        view.n = lane.n
        known = tuple((segment.lo, segment.hi) for segment in lane.segments)
        kept = self._swarm.peers[me].segments.bounds(lane.forgotten + 1, lane.n)
        if known != kept:
            raise ViolationError(f"{me} knows of the segments {known}, and has {kept}")
        ends = [lane.forgotten, *(hi for _, hi in known)]
        if any(lo != before + 1 for before, (lo, _) in zip(ends, known, strict=False)) or ends[-1] != lane.n:
            raise ViolationError(f"{me} has forgotten up to {lane.forgotten} of {lane.n}, and keeps {known}")
        allowed = lane._boundaries()
        if lane.coalesce and any(hi not in allowed for _, hi in known[:-1]):
            raise ViolationError(f"{me} keeps {known} apart, where nobody stands: {allowed}")

    def _stands(self, origin: Peer, reader: PeerId, k: int | None = None) -> bool:
        """The origin expects the reader where it is; with `k`, not for another adoption than that, or 0 for none."""
        frontier = self._swarm.peers[reader].peer.replicator.origins[origin.me].frontier
        place = origin.replicator.readers.get(reader)
        if place is not None and frontier in (place.acknowledged, place.served):
            return True
        pin = origin.replicator.pins.get(reader)
        return pin is not None and frontier in pin.boundaries and (k is None or pin.k == k)

    def _check_readers(self, view: View, me: PeerId, peer: Peer, readers: Set[PeerId]) -> None:
        """Whoever stood where we expect it does so still, and what follows is kept."""
        lane, peers = peer.replicator, self._swarm.peers
        for reader in readers:
            host = peers.get(reader)
            if host is None or not host.alive or me not in host.peer.replicator.origins:
                continue
            adopter = host.peer.adopter
            if adopter is not None and adopter.under_way:
                if not self._stands(peer, reader, 0):
                    view.placed.discard(reader)  # it came out of one adoption and is in the next
                continue
            if self._stands(peer, reader):
                if host.peer.ready and self._stands(peer, reader, 0):
                    view.placed.add(reader)
                if reader in view.placed and not lane.keeps(host.peer.replicator.origins[me].frontier):
                    raise ViolationError(f"{me} does not keep what follows where {reader} stands")
            elif reader in view.placed:
                raise ViolationError(f"{me} does not know where {reader} stands any more")
        if view.placed:
            for reader in list(view.placed):
                member = peer.members.get(reader)
                if member is None or member.forgotten or not peers[reader].alive:
                    view.placed.discard(reader)
                elif reader not in lane.readers and reader not in lane.pins:
                    raise ViolationError(f"{me} keeps nothing for {reader} any more")

    def _check_reader(self, me: PeerId, peer: Peer, adoption: int | None) -> None:
        """Where we stand is where the origins expect us, but where we come out of an adoption."""
        for origin in peer.replicator.origins:
            view, host = self._views.get(origin), self._swarm.peers.get(origin)
            if view is None or host is None or not host.alive:
                continue
            stands = self._stands(host.peer, me, adoption)
            if adoption is not None or peer.replicator.frozen:
                (view.placed.add if stands and not peer.replicator.frozen else view.placed.discard)(me)
            elif not stands and me in view.placed:
                raise ViolationError(f"{me} stands in the lane of {origin} where it is not expected")

    # --------------------------------------------------------------------------------------------- questions, answers

    def _check_answer(
        self, now: float, view: View, me: PeerId, peer: Peer, message: object, effects: list[Effect]
    ) -> None:
        match message:
            case Ping(asker, k):
                if not any(isinstance(m, Ack) and (m.k, m.about) == (k, me) for m in _sent(effects, asker)):
                    raise ViolationError(f"{me} does not answer a ping of {asker}")
            case PingRequest(asker, k, target):
                if target in peer.members:
                    if not any(isinstance(m, Ping) for m in _sent(effects, target)):
                        raise ViolationError(f"{me} does not ping {target} for {asker}")
                    detection = peer.settings.detection
                    assert detection is not None
                    view.relays[asker, k] = now + detection.ping_s
            case Pull(asker, _, k):
                self._check_pull(view, me, peer, message, effects)
                self._newest(view, asker, k, True)
            case Pin(asker, _, k):
                self._check_pin(view, me, peer, message, effects)
                self._newest(view, asker, k, True)
            case StateRequest(asker, k):
                self._check_given(view, me, peer, message, [m for m in _sent(effects, asker) if isinstance(m, State)])
                self._newest(view, asker, k, True)
            case Unknown(other, frontier):
                origin = peer.replicator.origins.get(other)
                adopts = peer.adopter is None or peer.adopter.needed or peer.adopter.under_way
                if origin is not None and origin.frontier == frontier and not adopts:
                    raise ViolationError(f"{other} does not know what follows {frontier}, and {me} does not adopt")
            case Unpin(asker, k) | Advert(asker, k=k):
                self._newest(view, asker, k)
        if isinstance(message, Advert):
            origin = peer.replicator.origins.get(message.peer)
            if origin is not None and origin.n < message.n:
                raise ViolationError(f"{me} was told that {message.peer} is at {message.n}, and does not know it")

    def _check_relays(self, now: float, view: View, me: PeerId, effects: list[Effect]) -> None:
        for (asker, k), due in list(view.relays.items()):
            if any(isinstance(m, Ack | Nack) and m.k == k for m in _sent(effects, asker)):
                del view.relays[asker, k]
            elif now > due + SLACK_S:
                raise ViolationError(f"{me} does not tell {asker} what came of a ping")

    def _newest(self, view: View, asker: PeerId, k: int, asks: bool = False) -> None:
        view.newest[asker] = max(view.newest.get(asker, 0), k)
        if asks:
            view.question[asker] = max(view.question.get(asker, 0), k)

    def _check_pull(self, view: View, me: PeerId, peer: Peer, pull: Pull, effects: list[Effect]) -> None:
        lane, asker = peer.replicator, pull.peer
        answers = [m for m in _sent(effects, asker) if isinstance(m, Range | Unknown) and m.k == pull.k]
        for answer in answers:
            if pull.frontier != (answer.lo - 1 if isinstance(answer, Range) else answer.frontier):
                raise ViolationError(f"{me} answers {pull} by {answer}")
        pin = lane.pins.get(asker)
        if answers and (pull.k < view.pull_k.get(asker, 0) or (pin is not None and pull.k < pin.k)):
            raise ViolationError(f"{me} answers {pull}, which is older than what came before")
        if pull.k < view.pull_k.get(asker, 0):
            return
        is_new = pull.k > view.question.get(asker, 0) and pull.k >= view.newest.get(asker, 0)
        if len(answers) != 1 and is_new and pull.frontier != lane.n:
            raise ViolationError(f"{me}, at {lane.n}, answers {pull} by {answers}")
        if asker not in lane.readers:
            view.pull_k.pop(asker, None)
        elif not any(isinstance(answer, Unknown) for answer in answers):
            view.pull_k[asker] = pull.k

    def _check_pin(self, view: View, me: PeerId, peer: Peer, pin: Pin, effects: list[Effect]) -> None:
        lane, asker = peer.replicator, pin.peer
        answered = any(isinstance(m, Pinned) and m.k == pin.k for m in _sent(effects, asker))
        known = lane.pins.get(asker)
        if answered and (known is None or known.k != pin.k or known.donor != pin.donor):
            raise ViolationError(f"{me} says to have pinned for {pin}, and has pinned {known}")
        fits = asker in lane.members and (pin.donor in lane.readers or pin.donor == me)
        is_new = pin.k > view.question.get(asker, 0) and pin.k >= view.newest.get(asker, 0)
        if fits and not answered and is_new:
            raise ViolationError(f"{me} does not pin for {pin}")
        donor = self._swarm.peers.get(pin.donor)
        if answered and donor is not None and donor.alive and known is not None and pin.donor in view.placed:
            frontier = donor.peer.replicator.origins[me].frontier
            if frontier not in known.boundaries:
                raise ViolationError(f"{me} has pinned {known} for {asker}, and the donor stands at {frontier}")

    def _check_given(self, view: View, me: PeerId, peer: Peer, request: StateRequest, given: list[State]) -> None:
        """Who gives its replica lacks nothing of a living lane that the other has; and whoever can give does."""
        lane, asker, mine = peer.replicator, request.peer, peer.replicator.frontiers()
        strangers = {*peer._gone, *view.strangers_at}
        lacks = {other for other, n in request.frontiers.items() if mine.get(other, 0) < n}
        able = peer.ready and not lacks - strangers - {asker}
        is_new = request.k > view.question.get(asker, 0) and request.k >= view.newest.get(asker, 0)
        agreed = asker not in lane.members or set(peer._readable()) <= {*request.pinned, asker}
        if able and agreed and is_new and asker not in view.away and not given:
            raise ViolationError(f"{me} could give {asker} its replica, and does not")
        if given and not (peer.ready and agreed):
            raise ViolationError(f"{me} gives its replica for {request}, and hears {peer._readable()}")
        known = view.pins.get(asker, (0, frozenset[int]()))[0]
        if given and request.k < max(known, view.pull_k.get(asker, 0)):
            raise ViolationError(f"{me} gives its replica for {request}, which is older than what came before")
        pin = lane.pins.get(asker)
        for state in given:
            # it may have taken something back since, in the same step: then it is further itself
            kept = pin is not None and pin.k == request.k and state.frontiers[me] in pin.boundaries
            if asker in lane.members and not kept:
                raise ViolationError(f"{me} gives {state.frontiers[me]} updates for {request}, and keeps {pin}")
            over = peer.identities.dropped if request.pinned else peer.identities.closed
            if (state.closed, state.units) != (over, peer.identities.units):
                raise ViolationError(f"{me} gives {state.closed} epochs and {state.units} units, and has {over}")
            for other, frontier in request.frontiers.items():
                if other not in (request.peer, *peer._departed()) and state.frontiers.get(other, 0) < frontier:
                    raise ViolationError(f"{me} gives {request.peer} a replica that is behind in lane {other}")

    def _check_sent(
        self, now: float, view: View, me: PeerId, peer: Peer, to: PeerId, message: object, cause: object
    ) -> None:
        if isinstance(message, Pin | StateRequest):
            self._check_begun(now, view, me, peer, message.donor if isinstance(message, Pin) else to, message.k)
        match message:
            case Pull(_, frontier, k):
                self._check_number(view, me, k)
                if to in peer._gone:
                    raise ViolationError(f"{me} pulls from {to}, which it takes for dead")
                self._check_turn(now, view, me, peer, to)
                lane, host = peer.replicator, self._swarm.peers[to]
                self._count(view, me, (to, "pulls"), BUSY_MAX)
                if peer.adopter is not None and peer.adopter.under_way:
                    raise ViolationError(f"{me} pulls while it adopts")
                if frontier != lane.origins[to].frontier or host.peer.replicator.n <= frontier:
                    raise ViolationError(f"{me} pulls {frontier} from {to}, which has {host.peer.replicator.n}")
                if sum([origin.pull is not None for origin in lane.origins.values()]) > lane.pulls_max:
                    raise ViolationError(f"{me} pulls from more than {lane.pulls_max} at a time")
                if now < view.pulled_at.get(to, float("-inf")) + peer.settings.pull_timeout_s - SLACK_S:
                    raise ViolationError(f"{me} pulls from {to} again, and was not answered")
                view.pulled_at[to] = now
            case Pin():
                self._count(view, me, (to, "pins"), ADOPTS_MAX)
            case StateRequest(_, k, _, pinned):
                self._count(view, me, (to, "asks for a replica"), ADOPTS_MAX)
                said = view.pinned.get(k, set()) | {me}
                view.pinned_at = None
                if now < view.progressed_at + GIVE_UP_S - SLACK_S and not isinstance(cause, Pinned):
                    raise ViolationError(f"{me} asks for a replica again, of which some came at {view.progressed_at}")
                if not said >= set(pinned) or not said >= view.asked & set(peer._readable()) - view.away:
                    raise ViolationError(f"{me} asks for a replica, names {pinned}, and {said} have pinned")
            case Ping() | PingRequest():
                self._count(view, me, (to, "pings"), BUSY_MAX)

    # --------------------------------------------------------------------------------------------- pins, adoptions

    def _check_pins(self, view: View, me: PeerId, peer: Peer, message: object) -> bool:
        """What is pinned stays until its adopter says that it is over, and holds all places where the donor may be.

        Returns whether some was let go.
        """
        lane, by = peer.replicator, getattr(message, "peer", None)
        for adopter, (k, boundaries) in view.pins.items():
            pin = lane.pins.get(adopter)
            if pin is not None and pin.k == k:
                if not boundaries <= pin.boundaries:
                    raise ViolationError(f"{me} pinned {set(boundaries)} for {adopter}, and keeps {pin}")
                if adopter in lane.away & view.away and len(boundaries) < len(pin.boundaries):
                    raise ViolationError(f"{me} pins more for {adopter}, which it takes for dead: {pin}")
                continue
            over = by == adopter and (
                (isinstance(message, Unpin) and message.k == k)
                or (isinstance(message, Pull) and message.k >= k)
                or (isinstance(message, Advert | Pin | StateRequest) and message.k > k)
            )
            if over and isinstance(message, Advert) and adopter in lane.readers:
                view.pull_k[adopter] = max(view.pull_k.get(adopter, 0), k)  # pulls from before are void
            member = peer.members.get(adopter)
            if not over and not (member is not None and member.forgotten):
                raise ViolationError(f"{me} lets go of what it pinned for {adopter} with {k}, has {pin}")
        for adopter, pin in lane.pins.items():
            donor = lane.readers.get(pin.donor)
            if donor is not None and adopter not in lane.away:
                beyond = lane.pins[pin.donor].boundaries if pin.donor in lane.pins else set[int]()
                if not {donor.acknowledged, donor.served} | beyond <= pin.boundaries:
                    raise ViolationError(f"{me} keeps {pin} for {adopter}, and its donor may be at {donor} or {beyond}")
        before = view.pins
        view.pins = {adopter: (pin.k, frozenset(pin.boundaries)) for adopter, pin in lane.pins.items()}
        return any(before[adopter] != view.pins.get(adopter) for adopter in before)

    def _check_begun(self, now: float, view: View, me: PeerId, peer: Peer, donor: PeerId, k: int) -> None:
        """An adoption, from one that lives and has a replica, and has most of the dead lanes if it is for them."""
        if k == view.k:
            return
        self._check_number(view, me, k)
        advert = view.adverts.get(donor)
        if donor in peer._gone or advert is None or not advert.ready:
            raise ViolationError(f"{me} wants the replica of {donor}, which is dead or has none")
        best = self._best(now, view, peer)
        if best is not None and peer.ready and best != donor:
            raise ViolationError(f"{me} wants the replica of {donor}, and {best} has more of the dead lanes")
        view.k, view.donor, view.gives_up_at = k, donor, now + GIVE_UP_S
        view.progressed_at, view.pinned_at = float("-inf"), None
        view.pinned, view.asked = {k: set()}, set(peer._readable())

    def _check_adoption(
        self, now: float, view: View, me: PeerId, peer: Peer, message: object, adopted: bool, effects: list[Effect]
    ) -> None:
        """It has a reason, goes on while it may come to an end, and no longer."""
        adopter = peer.adopter
        if adopter is None:
            return
        if adopter.preferred is not None and not adopter.needed:
            raise ViolationError(f"{me} prefers {adopter.preferred}, and does not adopt")
        best = self._best(now, view, peer)
        stopped = view.adopting and not adopter.under_way and not adopted
        if best is not None and peer.ready and not stopped and not (adopter.needed or adopter.under_way):
            raise ViolationError(f"{me} has less of the dead lanes than {best}, and does not adopt")
        if adopter.needed and peer.ready and (not view.needs or stopped or adopted):
            origin = peer.replicator.origins.get(message.peer) if isinstance(message, Unknown) else None
            lost = isinstance(message, Unknown) and origin is not None and origin.frontier == message.frontier
            if best is None and not lost:
                raise ViolationError(f"{me} is to adopt a replica, for no reason")
        if stopped:
            self._check_given_up(now, view, me, peer, effects)
        if stopped or adopted:
            for other, lane in peer.replicator.origins.items():
                if peer.replicator.is_next(Range(other, lane.frontier + 1, lane.frontier + 1, view.k, ())):
                    raise ViolationError(f"{me} would merge what {other} answered before its last adoption")
        if not adopter.under_way:
            return
        if view.donor not in peer._donors():
            raise ViolationError(f"{me} still wants the replica of {view.donor}, which is dead or has none")
        if now > view.gives_up_at + SLACK_S:
            raise ViolationError(f"{me} wants the replica of {view.donor} for longer than {GIVE_UP_S} s")
        if view.progressed_at == float("-inf") and adopter.stage == "pinning":
            pinned = view.asked & set(peer._readable()) <= view.pinned.get(view.k, set())
            view.pinned_at = (now if view.pinned_at is None else view.pinned_at) if pinned else None
            if view.pinned_at is not None and now > view.pinned_at + REPEAT_S + SLACK_S:
                raise ViolationError(f"{me} does not ask {view.donor} for its replica, though all have pinned")

    def _check_given_up(self, now: float, view: View, me: PeerId, peer: Peer, effects: list[Effect]) -> None:
        if now < view.gives_up_at - SLACK_S and view.donor in peer._donors():
            raise ViolationError(f"{me} gives up the replica of {view.donor} before {view.gives_up_at}")
        for other in view.asked:
            if not any(isinstance(m, Unpin) and m.k == view.k for m in _sent(effects, other)):
                raise ViolationError(f"{me} gives up adopting, and does not tell {other}")

    def _see_the_gone(self, now: float, view: View, me: PeerId, peer: Peer, look: bool) -> None:
        """Since when who is gone, and whose lanes are known though nobody introduced them."""
        if view.gone_at.keys() != peer._gone:
            if view.gone_at.keys() - peer._gone:
                view.returned_at = now
            view.gone_at = {other: view.gone_at.get(other, now) for other in peer._gone}
        elif not look:
            return
        lanes = set(peer.replicator.origins)
        for other, advert in view.adverts.items():
            if other not in peer._gone:
                lanes |= advert.frontiers.keys()
        strangers = lanes - peer.members.keys() - {me}
        if strangers != peer._strangers.keys() and peer._started:
            raise ViolationError(f"{me} knows lanes of {strangers}, and looks after {peer._strangers}")
        view.strangers_at = {lane: view.strangers_at.get(lane, now) for lane in strangers}

    def _best(self, now: float, view: View, peer: Peer) -> PeerId | None:
        """Who has most of the lanes of those that are dead for long enough, if it has more than this one."""
        since = (*view.gone_at.items(), *view.strangers_at.items())
        dead = [lane for lane, at in since if now >= at + peer.settings.settle_s]  # as it reckons, to the last bit
        if not dead or now < view.returned_at + RETURN_S:
            return None
        ranks: dict[PeerId, Mapping[PeerId, int]] = {peer.me: peer.replicator.frontiers()}
        for other, advert in view.adverts.items():
            if advert.ready and other not in peer._gone:
                ranks[other] = advert.all_frontiers
        most = max([(sum([lanes.get(lane, 0) for lane in dead]), other) for other, lanes in ranks.items()])[1]
        return most if any(ranks[most].get(lane, 0) != ranks[peer.me].get(lane, 0) for lane in dead) else None

    def _check_number(self, view: View, me: PeerId, k: int) -> None:
        """Each pull and each adoption has its own, and later ones a higher."""
        if k <= view.asks_k:
            raise ViolationError(f"{me} asks with {k}, and did with {view.asks_k} before")
        view.asks_k = k

    def _check_turn(self, now: float, view: View, me: PeerId, peer: Peer, to: PeerId) -> None:
        """Whoever waited longest is asked first."""
        before = view.asked_at.get(to, float("-inf"))
        view.asked_at[to] = now
        for other, origin in peer.replicator.origins.items():
            waits = origin.n > origin.frontier and origin.pull is None and other not in peer._gone
            if waits and view.asked_at.get(other, float("-inf")) < before:
                raise ViolationError(f"{me} pulls from {to}, and {other} has waited longer")

    # ------------------------------------------------------------------------------------------------------- closing

    def _check_closing(
        self, view: View, me: PeerId, peer: Peer, adopted: bool, late: bool, effects: list[Effect]
    ) -> None:
        """Epochs are over for good, and dropped when all are heard to have what this one had when it learned of it.

        Nobody needs to have what it took back at that: it is a unit less, whoever has dropped the epoch.
        """
        known, lane = peer.identities, peer.replicator
        if known.closed < view.closed or known.dropped < view.dropped:
            raise ViolationError(f"{me} takes epochs for open that were over: {known.closed}, {known.dropped}")
        if known.closed > view.closed or adopted or late:
            withdrawn = sum(isinstance(e, Deliver) and isinstance(e.payload, Negative) for e in effects)
            view.learned, view.awaited = {**lane.frontiers(), me: lane.n - withdrawn}, set(peer.members)
        if known.dropped == view.dropped or adopted:
            return
        for other in view.awaited:
            theirs = view.adverts[other].all_frontiers if other in view.adverts else {}
            lacks = [lane for lane, n in view.learned.items() if theirs.get(lane, 0) < n]
            if not peer.members[other].forgotten and (other in peer._gone or lacks):
                raise ViolationError(f"{me} drops {known.dropped} epochs, and has not heard that {other} has as much")

    # ----------------------------------------------------------------------------------------------------- in time

    def _check_liveness(self, now: float, view: View, me: PeerId, peer: Peer) -> None:
        lane, settings = peer.replicator, peer.settings
        if now > view.advertised_at + settings.advert_period_s + SLACK_S:
            raise ViolationError(f"{me} has not advertised since {view.advertised_at}")
        if view.changed_at is not None and now > view.changed_at + settings.advert_gap_s + SLACK_S:
            raise ViolationError(f"{me} has not advertised what is new since {view.changed_at}")
        adopter = peer.adopter
        under_way = adopter is not None and adopter.under_way
        if lane.frozen != under_way:
            raise ViolationError(f"{me} {'merges nothing' if lane.frozen else 'is to merge'}, adopting: {under_way}")
        if under_way or not peer.ready:
            return
        asked = {
            other
            for other, at in view.pulled_at.items()
            if now < max(at, view.arrives_at.get(other, at)) + settings.pull_timeout_s + SLACK_S
        }
        waiting = [
            other
            for other, origin in lane.origins.items()
            if origin.n > origin.frontier and other not in asked and other not in peer._gone
        ]
        if waiting and len(asked) < lane.pulls_max:
            raise ViolationError(f"{me} lacks updates of {waiting}, and does not pull")

    def look_from_outside(self) -> None:
        """At those to whom nothing happens: they must be up to date, too."""
        for me, host in self._swarm.live().items():
            view = self._views.get(me)
            if view is None or view.left or self._swarm.now < host.paused_until:
                continue
            late = (self._swarm.now - max(view.awake_at, host.paused_until)) * host.clock_rate
            if late > host.peer.settings.advert_period_s + 1e-3:
                raise ViolationError(f"{me} sleeps, and has not advertised for {late:.3f} s")

    def _check_detection(self, now: float, view: View, me: PeerId, peer: Peer, event: Event, slept: bool) -> None:
        membership = peer.membership
        if membership is None:
            return
        message = event.message if isinstance(event, Received) else None
        heard_at, away = view.heard_at, peer.replicator.away
        detection = membership.detection
        if slept:
            for other in heard_at:
                if other not in away:
                    heard_at[other] = now
        for other in peer.members:
            if other not in heard_at:
                heard_at[other] = now
        by = event.peer if isinstance(event, Progressed) and event.arrived else getattr(message, "peer", None)
        if not isinstance(message, Bulk) and by in heard_at:
            says = message.rumors if isinstance(message, Advert) else ()
            if by in away and not any(by == rumor.about == rumor.by for rumor in says):
                raise ViolationError(f"{me} hears {by}, and takes it for dead")
            heard_at[by] = now
        for other, at in heard_at.items():
            if now > at + detection.unheard_s + UNHEARD_SLACK_S and other not in away:
                raise ViolationError(f"{me} has not heard {other} since {at}, and takes it for alive")

    def _check_own_pause(self, view: View, me: PeerId, peer: Peer, message: object) -> None:
        """Who was stopped itself blames nobody for that time; a farewell is none of that."""
        blamed = peer.replicator.away - view.away
        says = message.rumors if isinstance(message, Advert | Ping | Ack) else ()
        if blamed - {rumor.about for rumor in says if rumor.about == rumor.by}:
            raise ViolationError(f"{me} was stopped itself, and takes {blamed} for dead")

    # ------------------------------------------------------------------------------------------------------- units

    def _check_units(self, me: PeerId, peer: Peer) -> None:
        """What it knows is what its replica holds."""
        known, standing = peer.identities, self._standing(peer)
        for unit, attempts in standing.items():
            if unit.epoch >= known.dropped and known.standing(unit) != attempts:
                raise ViolationError(
                    f"{me} takes {set(known.standing(unit))} for the attempts of {tuple(unit)}, and has {attempts}"
                )
            if unit.epoch >= known.dropped and not known.knows(unit):
                raise ViolationError(f"{me} does not know {tuple(unit)}")
        own = {retained.unit for retained in peer._retained.values()}
        for place, of_partition in known._watched.items():
            for chunk, watched in of_partition.items():
                if len(watched.standing) < 2 and Unit(*place, chunk) not in own:
                    raise ViolationError(f"{me} still watches {(*place, chunk)}, of which {watched.standing} stand")
        if known.dropped == 0 and known.units != sum(map(bool, standing.values())):
            raise ViolationError(f"{me} counts {known.units} units, and has {sum(map(bool, standing.values()))}")

    def _standing(self, peer: Peer) -> dict[Unit, set[tuple[int, PeerId]]]:
        """The attempts that count in its replica, also where there is none left."""
        frontiers = peer.replicator.frontiers()
        standing: dict[Unit, set[tuple[int, PeerId]]] = {}
        for lane, entries in self._marks.items():
            for entry in entries[1 : frontiers.get(lane, 0) + 1]:
                for unit, attempt, withdraws in entry:
                    attempts = standing.setdefault(unit, set())
                    if withdraws:
                        attempts.discard((attempt, lane))
                    else:
                        attempts.add((attempt, lane))
        return standing

    def _check_withdrawal(self, now: float, view: View, me: PeerId, peer: Peer, number: int) -> None:
        """An earlier attempt stands in the same replica, of one that lives or whose lane is agreed on."""
        ((unit, attempt, _),) = self._marks[me][number]
        frontiers = peer.replicator.frontiers()
        agreed = now - 3 * peer.settings.settle_s
        for lane, entries in self._marks.items():
            if view.gone_at.get(lane, float("-inf")) > agreed:
                continue
            for entry in entries[1 : frontiers.get(lane, 0) + 1]:
                if any(mark.unit == unit and (mark.attempt, lane) < (attempt, me) for mark in entry):
                    return
        raise ViolationError(f"{me} takes back {tuple(unit)}, of which it has no earlier attempt")

    def _check_dropped(self, me: PeerId, peer: Peer, view: View) -> None:
        """Everybody has what this one had of the epochs that it drops, but for what is still to be decided."""
        own = {retained.unit for retained in peer._retained.values()}
        for unit, attempts in self._standing(peer).items():
            open_still = view.dropped <= unit.epoch < peer.identities.dropped and (len(attempts) > 1 or unit in own)
            if open_still and peer.identities.standing(unit) != attempts:
                raise ViolationError(f"{me} drops {tuple(unit)}, of which {attempts} stand")
        epochs, frontiers = peer.identities.dropped, peer.replicator.frontiers()
        for other, host in self._swarm.live().items():
            member = peer.members.get(other)
            if member is None or member.forgotten or not host.peer.ready or other not in view.waits_for:
                continue
            theirs = host.peer.replicator.frontiers()
            for lane, entries in self._marks.items():
                lacks = [
                    mark for entry in entries[theirs.get(lane, 0) + 1 : frontiers.get(lane, 0) + 1] for mark in entry
                ]
                if any(mark.unit.epoch < epochs and not mark.withdraws for mark in lacks):
                    raise ViolationError(f"{me} drops {epochs} epochs, of which {other} lacks some in lane {lane}")

    def _check_released(self, me: PeerId, peer: Peer, number: int, effects: list[Effect]) -> None:
        """What is not taken back stays: all readers have it, and nobody had published an earlier attempt before."""
        if any(
            isinstance(e, Deliver) and isinstance(e.payload, Negative) and e.payload.number == number for e in effects
        ):
            return
        ((unit, attempt, _),) = self._marks[me][number]
        frontiers, many = peer.replicator.frontiers(), len(peer._retained) > peer.settings.segments_max
        for other, member in peer.members.items():
            host = self._swarm.peers[other]
            if not member.reads or not host.alive or (member.forgotten and many):
                continue
            if host.peer.replicator.frontiers().get(me, 0) < number:
                raise ViolationError(f"{me} releases {number}, which {other} lacks")
            for entry in self._marks.get(other, ())[frontiers.get(other, 0) + 1 :]:
                if any(mark.unit == unit and (mark.attempt, other) < (attempt, me) for mark in entry):
                    raise ViolationError(f"{me} releases {number}, of which {other} published an earlier attempt")

    def _check_drained(self, now: float, view: View, me: PeerId, peer: Peer, missing: tuple[PeerId, ...]) -> None:
        """Whoever it does not name, and does not take for dead, has all of its lane, and nothing is left to be done."""
        if view.exhausted_until is not None and now < view.exhausted_until:
            adopts = peer.adopter is not None and peer.adopter.needed
            undecided = [n for n, r in peer._retained.items() if min(peer.identities.standing(r.unit))[1] != me]
            if adopts or undecided:
                raise ViolationError(f"{me} drained, and adopts: {adopts}, may take back: {undecided}")
            mine = peer.replicator.frontiers()
            for other, advert in view.adverts.items():
                lanes = advert.all_frontiers if advert.ready and other not in peer._gone else {}
                if any(mine[lane] != n for lane, n in lanes.items() if lane in mine):
                    raise ViolationError(f"{me} drained at {mine}, and {other} was at {dict(lanes)}")
        view.exhausted_until = None
        for other in peer.replicator.readers.keys() - peer._gone - {*missing}:
            if self._swarm.peers[other].peer.replicator.frontiers().get(me, 0) < peer.replicator.n:
                raise ViolationError(f"{me} says that all but {missing} have its lane, and {other} has not")

    # ------------------------------------------------------------------------------------------------------ the gone

    def _check_forgotten(self, now: float, view: View, me: PeerId, peer: Peer) -> None:
        """Nobody is forgotten too soon, or by one of those who must wait for another to do so; but in the end."""
        lane, settings = peer.replicator, peer.settings
        if forgotten := {other for other, member in peer.members.items() if member.forgotten} - peer._gone:
            raise ViolationError(f"{me} has forgotten {forgotten}, and hears them")
        if not peer._gone:
            view.smallest_since = now
            view.forgotten.clear()
            return
        if min([me, *(p for p in peer.members if p not in peer._gone)]) > min(peer._gone):
            view.smallest_since = now
        forgotten = {other for other in peer._gone if peer.members[other].forgotten}
        for other in forgotten - view.forgotten:
            kept = view.kept + 1
            if kept > 2 * settings.segments_max:
                continue
            patience_s = settings.forget_s if kept <= settings.segments_max else settings.settle_s
            at = peer.members[other].departed_at
            if at is None or now < at + patience_s - SLACK_S:
                raise ViolationError(f"{me} forgets {other}, which is gone since {at}")
            if min([me, *(p for p in peer.members if p not in peer._gone)]) > min(peer._gone):
                raise ViolationError(f"{me} forgets {other}, and is not the smallest")
        view.forgotten = forgotten
        held = lane.readers.keys() | lane.pins.keys()
        if held & {other for other, member in peer.members.items() if member.forgotten}:
            raise ViolationError(f"{me} keeps something for {forgotten}, which it has forgotten")
        for other in peer._gone - forgotten:
            at = peer.members[other].departed_at
            kept = len(lane.segments)
            patience_s = settings.forget_s if kept <= settings.segments_max else settings.settle_s
            if kept > 2 * settings.segments_max or at is None:
                raise ViolationError(f"{me} keeps {kept} segments, and what {other} lacks")
            if now > max(at, view.smallest_since) + patience_s + SLACK_S:
                raise ViolationError(f"{me} still keeps what {other} lacks, which is gone since {at}")

    # ------------------------------------------------------------------------------------------------------- the end

    def restless(self) -> str | None:
        """What is there yet though it was for a while, when nothing is lost or late any more, and all are level."""
        live = self._swarm.live()
        for me, host in live.items():
            peer = host.peer
            lane = peer.replicator
            if held := lane.pins.keys() & live.keys():
                return f"{me} still keeps what {held} pinned"
            if peer.adopter is not None and (peer.adopter.needed or peer.adopter.under_way):
                return f"{me} still adopts"
            if peer._gone & live.keys():
                return f"{me} takes {peer._gone & live.keys()} for dead, which are alive"
            for other, contact in peer.membership.contacts.items() if peer.membership is not None else ():
                theirs = self._swarm.peers[other].peer.membership
                if theirs is not None and contact.incarnation > theirs.incarnation:
                    return f"{me} knows of an incarnation of {other} that it never had"
            for reader in lane.readers.keys() & live.keys():
                if (lane.readers[reader].acknowledged, lane.readers[reader].served) != (lane.n, lane.n):
                    return f"{me}, at {lane.n}, does not know that {reader} has all: {lane.readers[reader]}"
        return None


def _sent(effects: list[Effect], to: PeerId) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Send) and effect.to == to]
