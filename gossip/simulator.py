"""Peers on virtual time: one process, one seed, any network.

Every message goes through the real codec. The network loses, repeats and delays each delivery by its own draw, so
messages overtake each other. All randomness comes from one generator; the same seed gives the same run, to the digest.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gossip.arrays import Array, Arrays, Bytes, Layout, Packed
from gossip.events import (
    Computed,
    Deliver,
    Drained,
    Event,
    Exhausted,
    Fold,
    Forget,
    Joined,
    Keep,
    Publish,
    Received,
    Send,
    Started,
    Ticked,
    Warn,
)
from gossip.messages import Message, PeerId, Range, State
from gossip.peer import Peer, Settings
from gossip.segments import Segments
from gossip.trace import Digest, Observe
from gossip.wire import decode, encode


@dataclass(frozen=True)
class Network:
    """How deliveries fare. Each copy of each message draws for itself."""

    loss: float = 0.0
    """Probability that a delivery never arrives."""
    duplication: float = 0.0
    """Probability that it is sent twice (each copy may be lost)."""
    delay_mean_s: float = 0.05
    """Mean of the exponential delay."""


class SimulatedPeer:
    """A peer with the things its driver owns: replica, segments, and what it said."""

    def __init__(self, peer: Peer, replica: Packed) -> None:
        self.peer = peer
        self.replica = replica
        self.segments = Segments()
        self.drained: tuple[PeerId, ...] | None = None
        """What `Drained` named as missing; None before it."""
        self.warnings: list[str] = []
        self.due = float("inf")


class Simulation:
    """`count` peers that start from the same `initial` arrays and all know each other."""

    def __init__(
        self,
        count: int,
        initial: Arrays,
        *,
        seed: int,
        network: Network | None = None,
        settings: Settings | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.now = 0.0
        self.network = network or Network()
        self.random = random.Random(seed)
        self.layout = Layout.of(initial)
        self.digest = Digest()
        self._observers: list[Observe] = [self.digest.observe] + ([observe] if observe else [])
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        ids = [PeerId(f"p{index:03d}") for index in range(count)]
        self.peers = {me: SimulatedPeer(Peer(me, self.layout, settings), Packed.of(initial)) for me in ids}
        for me in ids:
            self.happen(me, Started({}))
            for other in ids:
                if other != me:
                    self.happen(me, Joined(other))

    # ------------------------------------------------------------------------------------------------------- script

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Run `action` at virtual `time`."""
        self._order += 1
        heapq.heappush(self._queue, (time, self._order, action))

    def compute(self, time: float, peer: PeerId, update: Arrays) -> None:
        """Let `peer` finish an update (named arrays to add) at `time`."""
        packed = Packed.of(update)
        self.at(time, lambda: self.happen(peer, Computed(packed)))

    def exhaust(self, timeout_s: float) -> None:
        """Tell every peer that no more updates will come."""
        for me in self.peers:
            self.happen(me, Exhausted(timeout_s))

    def run(self, until: float) -> None:
        """Advance virtual time to `until`."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def run_until_drained(self, timeout_s: float = 300.0) -> float:
        """Let every peer drain; returns the virtual seconds that it took. The time-out bounds it."""
        begin = self.now
        self.exhaust(timeout_s)
        while self._queue and any(p.drained is None for p in self.peers.values()):
            self.now, _, action = heapq.heappop(self._queue)
            action()
        return self.now - begin

    def arrays(self, peer: PeerId) -> Mapping[str, Array]:
        """The replica of a peer (not a copy)."""
        return self.peers[peer].replica.arrays()

    # ------------------------------------------------------------------------------------------------------- driver

    def happen(self, me: PeerId, event: Event) -> None:
        """Hand an event to a peer and carry out what it wants."""
        host = self.peers[me]
        effects = host.peer.handle(event, self.now)
        for observe in self._observers:
            observe(self.now, me, event, effects)
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._carry(to, self._frames(host, message))
                case Publish(message):
                    frames = encode(message)
                    for other in self.peers:
                        if other != me:
                            self._carry(other, frames)
                case Deliver(_, _, _, payload):
                    nbytes = self.layout.nbytes
                    self.layout.add(host.replica.buffer, payload.read(0, nbytes), 0, nbytes)
                case Keep(lo, hi, payload):
                    host.segments.keep(lo, hi, payload)
                case Fold(lo, hi):
                    host.segments.fold(lo, hi)
                case Forget(through):
                    host.segments.forget(through)
                case Drained(missing):
                    host.drained = missing
                case Warn(text):
                    host.warnings.append(text)
        self._wake(me)

    def _frames(self, host: SimulatedPeer, message: Message) -> list[Bytes]:
        match message:
            case Range(_, lo, hi):
                total = host.segments.sum(lo, hi)
                assert total is not None, f"the peer offered {lo}..{hi}, which it does not keep"
                return encode(message, total)
            case State():
                return encode(message, host.replica)
        return encode(message)

    def _carry(self, to: PeerId, frames: list[Bytes]) -> None:
        for _ in range(2 if self.random.random() < self.network.duplication else 1):
            if self.random.random() >= self.network.loss:
                arrival = self.now + self.random.expovariate(1 / self.network.delay_mean_s)
                self.at(arrival, lambda: self.happen(to, Received(decode(frames))))

    def _wake(self, me: PeerId) -> None:
        """Have `Ticked` happen at the peer's deadline; a timer that was set for a later one finds nothing to do."""
        due = self.peers[me].peer.deadline()
        if due < self.peers[me].due:
            self.peers[me].due = due
            self.at(due, lambda: self._tick(me, due))

    def _tick(self, me: PeerId, due: float) -> None:
        host = self.peers[me]
        if due != host.due:
            return
        host.due = float("inf")
        if host.peer.deadline() <= self.now:
            self.happen(me, Ticked())
        else:
            self._wake(me)
