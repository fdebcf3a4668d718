"""Peers on virtual time: one process, one seed, any network.

Every message goes through the real codec; a range that is under way to several readers at a time is summed, encoded and
decoded once for all of them. The network loses, repeats and delays each delivery by its own draw, so messages overtake
each other. All randomness comes from one generator; the same seed gives the same run, to the digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import random
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from weakref import WeakValueDictionary

from msgspec.structs import replace

from gossip.arguments import check_fields, probability, seconds
from gossip.arrays import Array, Arrays, Bytes, Layout, Packed, Payload
from gossip.drivers import carry_out
from gossip.events import Computed, Event, Exhausted, Joined, Received, Started, StateMachine, Ticked
from gossip.lanes.peer import Peer, Settings
from gossip.messages import Message, PeerId, Range, State, Unit
from gossip.story import Witness
from gossip.trace import Digest, Observe, fingerprint
from gossip.updates import KINDS, merge
from gossip.updates.stamps import RowStamps
from gossip.updates.table import Kinds
from gossip.wire import decode, encode, encode_again
from gossip.zmq.segments import Segments

CONGESTED_RETRY_S = 0.05
"""How soon to publish again what had to wait."""


@dataclass(frozen=True)
class Network:
    """How deliveries fare. Each copy of each message draws for itself."""

    loss: float = 0.0
    """Probability that a delivery never arrives."""
    duplication: float = 0.0
    """Probability that it is sent twice (each copy may be lost)."""
    delay_mean_s: float = 0.05
    """Mean of the exponential delay."""
    replica_mean_s: float = 0.0
    """Mean of what a whole replica takes longer."""
    late: float = 0.0
    """Probability that a delivery takes a detour."""
    late_mean_s: float = 0.0
    """Mean of what it takes longer then: questions and answers come when nobody thinks of them any more."""

    def __post_init__(self) -> None:
        check_fields(self)
        probability("loss", self.loss)
        probability("duplication", self.duplication)
        seconds("delay_mean_s", self.delay_mean_s, zero=True)
        seconds("replica_mean_s", self.replica_mean_s, zero=True)
        probability("late", self.late)
        seconds("late_mean_s", self.late_mean_s, zero=True)


class InFlight:
    """Frames under way. Decoded once, by whoever gets them first: a message is a value, and all may share it."""

    def __init__(self, frames: list[Bytes]) -> None:
        self.frames = frames
        self.nbytes = sum(map(len, frames))

    @cached_property
    def received(self) -> Received:
        """What happens to whoever gets it."""
        return Received(decode(self.frames))

    @cached_property
    def digest(self) -> str:
        """A hash of the header and of the checksums of the blocks."""
        header, *blocks = self.frames
        return hashlib.sha256(b"".join([header, *blocks[::2]])).hexdigest()


class SameRange(InFlight):
    """A range that is under way to another reader already, in answer to another pull: only `k` is its own."""

    def __init__(self, first: InFlight, k: int) -> None:
        super().__init__(encode_again(first.frames, k))
        self._first = first
        self._k = k

    @cached_property
    def received(self) -> Received:
        message = self._first.received.message
        assert isinstance(message, Range)
        return Received(replace(message, k=self._k))


class Clock:
    """A peer's clock, which may be ahead, or go faster or slower than virtual time."""

    def __init__(self, rate: float = 1.0, ahead: float = 0.0) -> None:
        self.rate = rate
        """Its seconds per second of virtual time."""
        self.ahead = ahead
        self._shown = float("-inf")

    def now(self, time: float, not_before: float = float("-inf")) -> float:
        """What it shows at virtual `time`; it never goes back."""
        self._shown = max(self._shown, not_before, time * self.rate + self.ahead)
        return self._shown

    def when(self, now: float) -> float:
        """The virtual time at which it shows `now`."""
        return (now - self.ahead) / self.rate


class SimulatedPeer:
    """A peer with the things its driver owns: replica, segments, and what it said."""

    def __init__(
        self,
        machine: StateMachine,
        replica: Packed,
        kinds: Kinds = KINDS,
        *,
        clock: Clock | None = None,
        checks: bool = False,
    ) -> None:
        """With `checks`, it is looked after each event whether the peer's state is sound."""
        self.witness = Witness(machine, checks=checks)
        self.replica = replica
        self.stamps = RowStamps(replica.layout)
        self.segments = Segments(model=replica.layout, kinds=kinds)
        self.units_gated = 0
        """Updates that were not published, since their unit was before."""
        self.bytes_out = 0
        """Of all that was sent, lost or not."""
        self.bytes_in = 0
        self.alive = True
        self.clock = clock or Clock()
        self.congested = False
        """What it computed waits until it may be published."""
        self.paused_until = 0.0
        """Virtual time before which it does nothing; what comes in waits."""
        self.missing: tuple[PeerId, ...] | None = None
        """Who was missing when it had drained; None before that."""
        self.warnings: list[str] = []
        self.lie: Callable[[Payload], Payload] | None = None
        """What it publishes in the place of what its tasks computed."""
        self.due = float("inf")
        """The deadline of its own clock that it is to be woken for."""
        self.line: Line

    @property
    def machine(self) -> StateMachine:
        """The peer, of whatever kind."""
        return self.witness.peer

    @property
    def peer(self) -> Peer:
        """The peer, where it has lanes."""
        assert isinstance(self.machine, Peer)
        return self.machine

    # ----------------------------------------------------------------------------------------- what the peer wants

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        merge(self.replica.layout, self.replica.buffer, self.stamps, payload, self.segments.kinds)

    def adopt(self, payload: Payload) -> None:
        layout = self.replica.layout
        self.replica = Packed(layout, bytearray(payload.read(0, layout.nbytes)))

    def gated(self, unit: Unit) -> None:
        self.units_gated += 1

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        self.missing = missing

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Line:
    """The network of one peer."""

    def __init__(
        self,
        host: SimulatedPeer,
        carry: Callable[[PeerId, InFlight, bool], None],
        audience: Callable[[], Iterable[PeerId]],
    ) -> None:
        """`carry` frames to a peer, the last argument tells whether it is a replica; `audience` hears adverts."""
        self._host = host
        self._carry = carry
        self._audience = audience
        self._ranges: WeakValueDictionary[tuple[tuple[int, int], ...], InFlight] = WeakValueDictionary()
        """Under way to readers, by the segments that they are the sum of."""

    def send(self, to: PeerId, message: Message) -> None:
        """To one peer, who may never get it."""
        self._carry(to, self._in_flight(message), isinstance(message, State))

    def publish(self, message: Message) -> None:
        """To all who hear this peer; each of them may miss it."""
        sent = InFlight(encode(message))
        for other in self._audience():
            self._carry(other, sent, False)

    def put_out(self, peer: PeerId, why: str) -> None:
        """Who is put out, and hears of it, ends."""
        if peer == self._host.machine.me:
            self._host.alive = False

    def _in_flight(self, message: Message) -> InFlight:
        match message:
            case Range():
                return self._range(message)
            case State():
                replica = self._host.replica
                return InFlight(encode(message, Packed(replica.layout, bytes(replica.buffer))))
        return InFlight(encode(message))

    def _range(self, message: Range) -> InFlight:
        """Many readers of a lane stand at the same place: what they are sent is summed, encoded and decoded once."""
        segments = self._host.segments
        total = segments.sum(message.lo, message.hi)
        assert total is not None, f"the peer offered {message.lo}..{message.hi}, which it does not keep"
        bounds = segments.bounds(message.lo, message.hi)
        first = self._ranges.get(bounds)
        if first is not None:
            return SameRange(first, message.k)
        sent = self._ranges[bounds] = InFlight(encode(message, total))
        return sent


class Simulation:
    """`count` peers that start from the same `initial` arrays and all know each other.

    With `observer`, one more peer of that name reads everybody and is read by nobody. It may die like any other:
    `renew_observer` starts the next one, and `source` is whose replica to show meanwhile.
    """

    def __init__(
        self,
        count: int,
        initial: Arrays,
        *,
        seed: int,
        network: Network | None = None,
        settings: Settings | None = None,
        observe: Observe | None = None,
        clock: Callable[[], tuple[float, float]] = lambda: (1.0, 0.0),
        observer: PeerId | None = None,
        checks: bool = False,
        begin: Started | None = None,
    ) -> None:
        """`clock` gives the rate of a peer's clock, and how far it is ahead, when the peer begins. `begin` tells where
        the units of work stand, if this is not their beginning.

        With `checks`, it is looked after each event whether the state of its peer is sound; `InvariantError` if not.
        """
        self.now = 0.0
        self.network = network or Network()
        self.random = random.Random(seed)
        self.layout = Layout.of(initial)
        self.digest = Digest()
        self.observers: list[Observe] = [observe] if observe else []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._settings = settings
        self._initial = initial
        self._clock = clock
        self._checks = checks
        self.blocked: Callable[[PeerId, PeerId], bool] = lambda sender, receiver: False
        """Whether nothing that the first sends reaches the second: a partition, perhaps in one direction."""
        self._observer = observer
        self.observing: set[PeerId] = set() if observer is None else {observer}
        """Who are or were observers."""
        ids = [PeerId(f"p{index:03d}") for index in range(count)] + ([observer] if observer is not None else [])
        self.peers: dict[PeerId, SimulatedPeer] = {}
        for me in ids:
            self._add(me)
        self._begin(ids, begin or Started({}))

    # ------------------------------------------------------------------------------------------------------- script

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Run `action` at virtual `time`."""
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def join(self, me: PeerId) -> None:
        """A peer comes late, now: it knows all who are there, and they it."""
        others = [other for other, host in self.peers.items() if host.alive]
        self._add(me)
        self.happen(me, Started({}, ready=False))
        for other in others:
            self._introduce(me, other, level=False)
            self._introduce(other, me, level=False)

    def renew_observer(self) -> PeerId | None:
        """If no observer is alive, another one comes late, now, under a new name, which is returned."""
        if self._observer is None or any(self.peers[me].alive for me in self.observing):
            return None
        me = PeerId(f"{self._observer}-{len(self.observing) + 1}")
        self.observing.add(me)
        self.join(me)
        return me

    def crash(self, me: PeerId) -> None:
        """A peer is gone, now, with all it holds."""
        self.peers[me].alive = False

    def live(self) -> dict[PeerId, SimulatedPeer]:
        """Those that did not crash."""
        return {me: host for me, host in self.peers.items() if host.alive}

    def compute(self, time: float, peer: PeerId, update: Arrays) -> None:
        """Let `peer` finish an update (named arrays to add) at `time`."""
        packed = Packed.of(update)
        self.at(time, lambda: self.happen(peer, Computed(packed)))

    def exhaust(self, timeout_s: float) -> None:
        """Tell every peer that no more updates will come."""
        for me in self.live():
            self.happen(me, Exhausted(timeout_s))

    def run(self, until: float) -> None:
        """Advance virtual time to `until`."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def run_while(self, condition: Callable[[], bool]) -> None:
        """Advance virtual time from event to event as long as `condition` holds."""
        while self._queue and condition():
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def source(self, but: Container[PeerId] = ()) -> PeerId:
        """Whose replica to show: that of who has most, an observer before its equals.

        Those in `but` are not looked at, nor who pauses, unless all do. There must be somebody with a replica.
        """
        ready = {me: host for me, host in self.live().items() if host.machine.ready and me not in but}
        awake = {me: host for me, host in ready.items() if self.now >= host.paused_until}
        merged = {me: sum(host.peer.replicator.frontiers().values()) for me, host in (awake or ready).items()}
        return max(sorted(merged), key=lambda me: (merged[me], me in self.observing))

    def is_level(self, but: Container[PeerId] = ()) -> bool:
        """All who live have a replica and the same frontiers, nothing of theirs is missing or to be taken back.

        Those in `but` are not looked at.
        """
        live = {me: host for me, host in self.live().items() if me not in but}
        levels = [_level(host) for host in live.values()]
        if any(level != levels[0] for level in levels):
            return False
        if any(not host.peer.ready or host.peer.pending for host in live.values()):
            return False
        return all(levels[0].get(me, 0) == host.peer.replicator.n for me, host in live.items())

    def run_until_drained(self, timeout_s: float = 300.0) -> float:
        """Let every peer drain; returns the virtual seconds that it took. The time-out bounds it."""
        begin = self.now
        self.exhaust(timeout_s)
        while self._queue and any(host.missing is None for host in self.live().values()):
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return self.now - begin

    def arrays(self, peer: PeerId) -> Mapping[str, Array]:
        """The replica of a peer (not a copy)."""
        return self.peers[peer].replica.arrays()

    # ------------------------------------------------------------------------------------------------------- driver

    def happen(self, me: PeerId, event: Event, not_before: float = float("-inf"), digest: str | None = None) -> None:
        """Hand an event to a peer and carry out what it wants; nothing happens to one that crashed.

        Its clock shows at least `not_before`: a deadline loses a little when it is converted between clocks.
        """
        host = self.peers[me]
        if not host.alive:
            return
        if self.now < host.paused_until:
            self.at(host.paused_until, lambda: self.happen(me, event))
            return
        if isinstance(event, Computed) and host.congested:
            self.at(self.now + CONGESTED_RETRY_S, lambda: self.happen(me, event))
            return
        if isinstance(event, Computed) and host.lie is not None:
            event = dataclasses.replace(event, payload=host.lie(event.payload))
        now = host.clock.now(self.now, not_before)
        if not isinstance(event, Received):
            self.digest.happened(now, me, fingerprint(event))
        effects = host.witness.handle(event, now)
        try:
            carry_out(effects, host.line, host, host.segments, host)
            for observe in self.observers:
                observe(now, me, event, effects)
        except AssertionError as error:
            host.witness.tell(error)
            raise
        self._wake(me)

    def _carry(self, sender: PeerId, to: PeerId, sent: InFlight, replica: bool) -> None:
        self.peers[sender].bytes_out += sent.nbytes
        for _ in range(2 if self.random.random() < self.network.duplication else 1):
            if self.random.random() >= self.network.loss and not self.blocked(sender, to):
                arrival = self.now + self.random.expovariate(1 / self.network.delay_mean_s)
                if replica and self.network.replica_mean_s:
                    arrival += self.random.expovariate(1 / self.network.replica_mean_s)
                if self.network.late and self.random.random() < self.network.late:
                    arrival += self.random.expovariate(1 / self.network.late_mean_s)
                self.at(arrival, lambda: self._arrive(sender, to, sent))

    def _arrive(self, sender: PeerId, to: PeerId, sent: InFlight) -> None:
        if to in self.peers and not self.blocked(sender, to):
            self.peers[to].bytes_in += sent.nbytes
            self.digest.happened(self.now, to, sent.digest)
            self.happen(to, sent.received)

    def _wake(self, me: PeerId) -> None:
        """Have `Ticked` happen at the peer's deadline; a timer that was set for a later one finds nothing to do."""
        host = self.peers[me]
        due = host.machine.deadline()
        if due < host.due:
            host.due = due
            self.at(max(self.now, host.clock.when(due)), lambda: self._tick(me, due))

    def _tick(self, me: PeerId, due: float) -> None:
        host = self.peers[me]
        if due != host.due or not host.alive:
            return
        if self.now < host.paused_until:
            self.at(host.paused_until, lambda: self._tick(me, due))
            return
        host.due = float("inf")
        if host.machine.deadline() <= due:
            self.happen(me, Ticked(), due)
        else:
            self._wake(me)

    def _begin(self, ids: Iterable[PeerId], begin: Started) -> None:
        """All start, and know each other."""
        for me in ids:
            self.happen(me, begin)
            for other in ids:
                if other != me:
                    self._introduce(me, other)

    def _audience(self, me: PeerId) -> Iterable[PeerId]:
        """Who hears what `me` publishes."""
        return [other for other in self.peers if other != me]

    def _introduce(self, me: PeerId, other: PeerId, level: bool = True) -> None:
        """Let `me` know of `other`."""
        reads, read = me not in self.observing, other not in self.observing
        self.happen(me, Joined(other, reads=reads, read=read, level=level))

    def _add(self, me: PeerId) -> None:
        machine, kinds = self._make(me, self.random.getrandbits(64)), (self._settings or Settings()).kinds
        clock, replica = Clock(*self._clock()), Packed.of(self._initial)
        host = self.peers[me] = SimulatedPeer(machine, replica, kinds, clock=clock, checks=self._checks)
        host.line = self._line(me, host)

    def _line(self, me: PeerId, host: SimulatedPeer) -> Line:
        return Line(host, partial(self._carry, me), partial(self._audience, me))

    def _make(self, me: PeerId, seed: int) -> StateMachine:
        """A new peer of that name."""
        return Peer(me, self.layout, self._settings, random.Random(seed))


def _level(host: SimulatedPeer) -> dict[PeerId, int]:
    """How far each lane is applied there; lanes without updates count as unknown ones."""
    return {lane: n for lane, n in host.peer.replicator.frontiers().items() if n}
