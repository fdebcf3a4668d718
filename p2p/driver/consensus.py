"""How far the replicas are apart: read from every agent, block by block, and compared with each other exactly."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
import zmq

from gossip.arrays import Array, Bytes, Layout, Packed, Payload
from gossip.errors import GossipError
from gossip.flat import Flat
from gossip.identity import Identities
from gossip.marks import Counted
from gossip.messages import State
from gossip.wire import BLOCK_BYTES
from gossip.zmq.fetch import fetch_state
from p2p.agent.replica import Replica
from p2p.driver.registrar import Member

TIMEOUT_S = 30.0
AT_ONCE = 4
"""Replicas that are read at the same time."""
BLOCKS_IN_MEMORY_MAX = 16
"""Of each the lowest and the highest values: 32 MB."""


class Envelope:
    """The element-wise lowest and highest values of the replicas seen so far.

    Where all are equal to the first, that is both. The bounds of other blocks are kept, those of many in a file.
    """

    def __init__(self, layout: Layout, first: Bytes | Payload) -> None:
        """`first` is a whole packed replica, which stays as it is."""
        self.layout = layout
        self._first = Packed(layout, first) if isinstance(first, Bytes) else first
        self._apart: dict[int, tuple[bytearray, bytearray] | None] = {}
        """By block that is not equal everywhere: lowest and highest; None where the file has them."""
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()

    def widen(self, start: int, data: Bytes) -> None:
        """Take in the packed bytes from `start` on of one more replica. From any thread."""
        view, end = memoryview(data), start + len(data)
        with self._lock:
            for index in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                begin = index * BLOCK_BYTES
                low, high = max(start, begin), min(end, begin + BLOCK_BYTES)
                theirs = view[low - start : high - start]
                if index not in self._apart and _equal(self._first.read(low, high), theirs):
                    continue
                bounds = self.bounds(index)
                for dtype, first, last in self.layout.pieces(low, high):
                    count = (last - first) // dtype.itemsize
                    numbers = np.frombuffer(theirs, dtype, count, first - low)
                    for bound, choose in zip(bounds, (np.minimum, np.maximum), strict=True):
                        mine = np.frombuffer(bound, dtype, count, first - begin)
                        choose(mine, numbers, out=mine)
                self._keep(index, bounds)

    def bounds(self, index: int) -> tuple[bytearray, bytearray]:
        """Lowest and highest values of a block of `BLOCK_BYTES`."""
        begin, end = index * BLOCK_BYTES, min((index + 1) * BLOCK_BYTES, self.layout.nbytes)
        kept = self._apart.get(index)
        if kept is not None:
            return kept
        if index in self._apart:
            assert self._file is not None
            places = (2 * begin, 2 * begin + BLOCK_BYTES)
            low, high = (bytearray(os.pread(self._file.fileno(), end - begin, place)) for place in places)
            return low, high
        first = self._first.read(begin, end)
        return bytearray(first), bytearray(first)

    def _keep(self, index: int, bounds: tuple[bytearray, bytearray]) -> None:
        if self._apart.get(index) is None and (index in self._apart or len(self._apart) >= BLOCKS_IN_MEMORY_MAX):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="deepdist-bounds-")  # noqa: SIM115 - as long as this object
            for place, bound in enumerate(bounds):
                os.pwrite(self._file.fileno(), bound, (2 * index + place) * BLOCK_BYTES)
            self._apart[index] = None
        else:
            self._apart[index] = bounds

    def distance(self) -> float:
        """For each array the largest difference in one element over the largest absolute value; the largest of all."""
        spreads = []
        at, bounds = -1, (bytearray(), bytearray())
        for spec, offset in zip(self.layout.specs, self.layout.offsets, strict=True):
            found = _Spread()
            end = offset + spec.nbytes
            for index in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                if index != at:
                    at, bounds = index, self.bounds(index)
                begin = index * BLOCK_BYTES
                first, last = max(offset, begin), min(end, begin + BLOCK_BYTES)
                dtype = np.dtype(spec.dtype)
                count = (last - first) // dtype.itemsize
                found.take_in(*(np.frombuffer(bound, dtype, count, first - begin) for bound in bounds))
            spreads.append(found.relative())
        return float(np.max(spreads, initial=0.0))  # which, unlike Python's, is a NaN if any of them is


class _Spread:
    """Of one array, piece by piece."""

    def __init__(self) -> None:
        self._spreads: list[float] = [0.0]
        self._sizes: list[float] = [0.0]

    def take_in(self, low: Array, high: Array) -> None:
        if low.size and not np.array_equal(low, high):
            self._spreads.append(float(np.max(np.subtract(high, low, dtype=np.float64))))
        if low.size:
            self._sizes += (abs(float(np.max(high))), abs(float(np.min(low))))

    def relative(self) -> float:
        spread = float(np.max(self._spreads))
        return spread / float(np.max(self._sizes)) if spread else 0.0


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
            self._envelope = Envelope(self._flat.layout, bytes(buffer))  # whose owner fills it anew
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


def fetch_replica(layout: Layout, member: Member, timeout_s: float) -> Fetched | None:
    """A copy of `member`'s replica; None if it did not give it in time, or it does not fit."""
    buffer = bytearray(layout.nbytes)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        state = _read(context, member, layout, partial(_put, buffer), timeout_s)
    finally:
        context.term()
    if state is None:
        return None
    counted = Identities.told(state.marks, state.closed, state.units).counted()
    return Fetched(layout, buffer, {str(lane): frontier for lane, frontier in state.frontiers.items()}, counted)


def consensus_distance(reference: Replica | Fetched, members: Sequence[Member]) -> tuple[float, list[str]]:
    """(largest relative difference between any two replicas, names of the agents that could not be read).

    `reference` is a replica at hand; it counts as one of them, and is read block by block. Meant for a swarm that has
    drained: it changes no more.
    """
    envelope = Envelope(reference.layout, reference)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def read(member: Member) -> bool:
        return _read(context, member, envelope.layout, envelope.widen) is not None

    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = list(pool.map(read, members))
    finally:
        context.term()
    return envelope.distance(), [member.name for member, read in zip(members, done, strict=True) if not read]


def read_replicas(layout: Layout, members: Sequence[Member]) -> Iterator[tuple[Member, bytearray, State | None]]:
    """Each member with its packed replica and what goes with it, one after the other; None if it could not be read.

    The same buffer is used for all.
    """
    buffer = bytearray(layout.nbytes)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for member in members:
            state = _read(context, member, layout, partial(_put, buffer))
            yield member, buffer, state
    finally:
        context.term()


def _read(
    context: zmq.Context[zmq.Socket[bytes]],
    member: Member,
    layout: Layout,
    take: Callable[[int, Bytes], None],
    timeout_s: float = TIMEOUT_S,
) -> State | None:
    """Have `take` put `member`'s replica away, block by block; None if it did not come in time, or does not fit."""

    def begin(state: State) -> Callable[[int, Bytes], None]:
        state.layout.check_fit(layout)
        return take

    try:
        return fetch_state(context, member.pulls, begin, timeout_s=timeout_s, key=member.key)
    except GossipError:
        return None


def _put(buffer: bytearray, start: int, data: Bytes) -> None:
    buffer[start : start + len(data)] = data


def _equal(one: Bytes, other: Bytes) -> bool:
    """Bit by bit."""
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))
