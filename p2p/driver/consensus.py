"""How far the replicas are apart: read from every agent, block by block, and compared with each other exactly."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import zmq

from gossip.arrays import Array, Bytes, Layout, Packed
from gossip.errors import GossipError
from gossip.flat import Flat
from gossip.identity import Identities
from gossip.marks import Counted
from gossip.messages import PeerId, State
from gossip.zmq.fetch import fetch_state
from gossip.zmq.sockets import Keys
from p2p.agent.replica import Replica
from p2p.driver.registrar import Member

TIMEOUT_S = 30.0
AT_ONCE = 4
"""Replicas that are read at the same time."""


class Envelope:
    """The element-wise lowest and highest values of the replicas seen so far."""

    def __init__(self, layout: Layout, first: Bytes) -> None:
        """`first` is a whole packed replica."""
        self.layout = layout
        self._low = bytearray(first)
        self._high = bytearray(first)
        self._lock = threading.Lock()

    def widen(self, start: int, data: Bytes) -> None:
        """Take in the packed bytes from `start` on of one more replica. From any thread."""
        with self._lock:
            for dtype, first, end in self.layout.pieces(start, start + len(data)):
                count = (end - first) // np.dtype(dtype).itemsize
                theirs = np.frombuffer(data, dtype, count, first - start)
                for bound, choose in ((self._low, np.minimum), (self._high, np.maximum)):
                    mine = np.frombuffer(bound, dtype, count, first)
                    if not np.array_equal(mine, theirs):  # most are equal, and seen to be in a third of the time
                        choose(mine, theirs, out=mine)

    def distance(self) -> float:
        """For each array the largest difference in one element over the largest absolute value; the largest of all."""
        lows, highs = self.layout.views(self._low), self.layout.views(self._high)
        spreads = [_spread(lows[name], highs[name]) for name in lows]
        return float(np.max(spreads, initial=0.0))  # which, unlike Python's, is a NaN if any of them is


class Average:
    """The weighted mean of replicas as they come, and how far they are apart; one after the other, and none is kept."""

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        self._weights = 0.0
        self._mean = np.zeros(flat.size)
        self._squares = 0.0
        """Sum of the squares of all distances to the mean, times the weights."""
        self._envelope: Envelope | None = None

    def take_in(self, buffer: Bytes, weight: float) -> None:
        """One more packed replica. The mean and the sum of squares are updated as Welford does: no digits are lost."""
        if self._envelope is None:
            self._envelope = Envelope(self._flat.layout, buffer)
        self._envelope.widen(0, buffer)
        if weight <= 0.0:
            return
        self._weights += weight
        apart = self._flat.flatten_buffer(buffer) - self._mean
        share = weight / self._weights
        self._mean += share * apart
        self._squares += weight * (1.0 - share) * float(apart @ apart)

    @property
    def is_empty(self) -> bool:
        """There is no mean."""
        return self._weights == 0.0

    def mean(self) -> Packed:
        """Each array rounded to its own dtype."""
        return self._flat.pack(self._mean)

    def distance(self) -> float:
        """As `Envelope.distance`."""
        return self._envelope.distance() if self._envelope is not None else 0.0

    def spread(self) -> float:
        """Root of the weighted mean square of a replica's distance to the mean, over all arrays."""
        return float(np.sqrt(self._squares / self._weights)) if self._weights else 0.0


@dataclass(frozen=True, eq=False)
class Fetched:
    """A copy of an agent's replica."""

    layout: Layout
    buffer: bytearray
    front: Mapping[str, int]
    """How far each lane is applied in it."""
    counted: Counted | None = None
    """The units that count in it; None while that is to be decided of one."""

    @property
    def merged(self) -> int:
        """Updates merged so far, of all lanes."""
        return sum(self.front.values())

    def arrays(self) -> dict[str, Array]:
        """The named arrays as views."""
        return self.layout.views(self.buffer)

    def read(self, start: int, stop: int) -> Bytes:
        """Packed bytes [start, stop)."""
        return memoryview(self.buffer)[start:stop]

    def reading(self) -> AbstractContextManager[None]:
        """Nobody writes to it."""
        return nullcontext()


def fetch_replica(layout: Layout, member: Member, keys: Keys | None, timeout_s: float) -> Fetched | None:
    """A copy of `member`'s replica; None if it did not give it in time, or it does not fit."""
    buffer = bytearray(layout.nbytes)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        state = _read(context, member, layout, partial(_put, buffer), keys, timeout_s)
    finally:
        context.term()
    if state is None:
        return None
    counted = Identities.told(state.marks, state.closed, state.units).counted()
    return Fetched(layout, buffer, {str(lane): frontier for lane, frontier in state.frontiers.items()}, counted)


def consensus_distance(
    reference: Replica | Fetched, members: Sequence[Member], keys: Keys | None = None
) -> tuple[float, list[str]]:
    """(largest relative difference between any two replicas, names of the agents that could not be read).

    `reference` is a replica at hand; it counts as one of them. Meant for a swarm that has drained.
    """
    with reference.reading():
        envelope = Envelope(reference.layout, reference.read(0, reference.layout.nbytes))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def read(member: Member) -> bool:
        return _read(context, member, envelope.layout, envelope.widen, keys) is not None

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = list(pool.map(read, members))
    finally:
        context.term()
    return envelope.distance(), [member.name for member, read in zip(members, done, strict=True) if not read]


def read_replicas(
    layout: Layout, members: Sequence[Member], keys: Keys | None = None
) -> Iterator[tuple[Member, bytearray, State | None]]:
    """Each member with its packed replica and what goes with it, one after the other; None if it could not be read.

    The same buffer is used for all.
    """
    buffer = bytearray(layout.nbytes)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for member in members:
            state = _read(context, member, layout, partial(_put, buffer), keys)
            yield member, buffer, state
    finally:
        context.term()


def _read(
    context: zmq.Context[zmq.Socket[bytes]],
    member: Member,
    layout: Layout,
    take: Callable[[int, Bytes], None],
    keys: Keys | None,
    timeout_s: float = TIMEOUT_S,
) -> State | None:
    """Have `take` put `member`'s replica away, block by block; None if it did not come in time, or does not fit."""

    def begin(state: State) -> Callable[[int, Bytes], None]:
        state.layout.check_fit(layout)
        return take

    try:
        return fetch_state(context, member.pulls, PeerId(secrets.token_hex(16)), begin, timeout_s=timeout_s, keys=keys)
    except GossipError:
        return None


def _put(buffer: bytearray, start: int, data: Bytes) -> None:
    buffer[start : start + len(data)] = data


def _spread(low: Array, high: Array) -> float:
    if np.array_equal(low, high):
        return 0.0
    spread = float(np.max(np.subtract(high, low, dtype=np.float64)))
    scale = max(abs(float(np.max(high))), abs(float(np.min(low))))
    return spread / scale if spread else 0.0
