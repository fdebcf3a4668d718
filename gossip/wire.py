"""Messages as frames of bytes, and back. Nothing here executes what it reads; whatever is malformed is a `WireError`.

    frame 0     | "gs" | version | kind | header bytes | crc32 of kind and header | header: JSON |
    block i     | k | i | xxh3 of the bytes |    followed by a frame with the bytes themselves

A bulk message (`Range`, `State`) says in its header which arrays follow and how they lie (`Layout`), and how many marks
follow them; its *body*, the packed buffer and then the table of marks, comes in blocks of `BLOCK_BYTES`, each of which
may be sent, lost and checked by itself. `Assembly` puts them together again. `encode` and `decode` do it all at once,
for drivers that carry a whole message in one piece.

    table       | lane, epoch, partition, attempt, withdraws, runs | of each series, in order
                | first, last, step | of each run: 64-bit integers, all of them

A range of few marks has them in its header, and no table.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gossip.arrays import DTYPES, ArraySpec, Bytes, Layout, Packed, Payload
from gossip.errors import TooLargeError, WireError
from gossip.marks import RUN, RUN_BYTES, Series
from gossip.messages import (
    NO_TABLE,
    Ack,
    Advert,
    Bulk,
    Credit,
    Message,
    Nack,
    Offer,
    PacketReply,
    PacketRequest,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pinned,
    Pull,
    Range,
    Rumor,
    Standing,
    State,
    StateRequest,
    Table,
    Unknown,
    Unpin,
)

MAGIC = b"gs"
VERSION = 4
PREFIX = struct.Struct("!2sBBII")
_TO_JSON = json.JSONEncoder(separators=(",", ":"))
BLOCK_PREFIX = struct.Struct("!QII")

HEADER_BYTES_MAX = 1 << 22
"""Room for the frontiers of some 40,000 lanes, or the names of as many arrays."""
HEADER_RUNS_MAX = 512
"""Of marks, 10 to 20 kB: a range with more has them in a table. Links between peers of one machine carry no tables."""
SERIES_NUMBERS = np.dtype("<i8"), 6
RUN_NUMBERS = np.dtype("<i8"), 3
"""The type of the numbers of a table, and how many there are of each series and run."""
BLOCK_BYTES = 1 << 20
"""Measured on loopback: 64 messages of 1 MiB move three times as fast as one of 64 MiB, and hold less memory."""
PAYLOAD_BYTES_MAX = 1 << 36
"""What a header may claim, 64 GiB; a receiver that expects a certain layout refuses by that first."""
TABLE_BYTES_MAX = 1 << 31
"""The marks of 80 million updates that follow no rule, or of any number that do."""
LAYOUT_CACHED_MAX = 1024
"""Arrays of a layout that is kept for the next message: 16 of them hold some 20 MB, with the longest names."""
NAME_CHARACTERS_MAX = 256
DIMENSIONS_MAX = 16
SCALARS_MAX = 64
"""Of one packet; strategies have two or three."""
COUNT_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Block:
    """Block `index` of the bulk message `k`, its checksum verified."""

    k: int
    index: int
    data: Bytes


def block_count(nbytes: int) -> int:
    """Blocks that carry a body of this size."""
    return -(-nbytes // BLOCK_BYTES)


def block_span(nbytes: int, index: int) -> tuple[int, int]:
    """First and end byte of block `index` of a body of this size."""
    start = index * BLOCK_BYTES
    return start, min(start + BLOCK_BYTES, nbytes)


def table_bytes(table: Table) -> int:
    """Of a table in the body."""
    return 8 * (SERIES_NUMBERS[1] * table.series + RUN_NUMBERS[1] * table.runs)


def body_bytes(message: Bulk) -> int:
    """Of the body that the header announces."""
    return message.layout.nbytes + (table_bytes(message.table) if not isinstance(message, PacketReply) else 0)


class Body:
    """What follows the header of a bulk message: its arrays, and then the table of its marks."""

    def __init__(self, message: Bulk, payload: Payload) -> None:
        self.payload = payload
        self._table = table_of(message)
        self.nbytes = payload.layout.nbytes + len(self._table)

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop)."""
        arrays = self.payload.layout.nbytes
        if stop <= arrays:
            return self.payload.read(start, stop)
        marks = self._table[max(0, start - arrays) : stop - arrays]
        return marks if start >= arrays else b"".join((self.payload.read(start, arrays), marks))


# -------------------------------------------------------------------------------------------------------- encoding


def encode_header(message: Message) -> bytes:
    """Frame 0 of any message.

    Raises:
        TooLargeError: it says more than fits.
    """
    return _header(*_fields(message))


def _header(kind: int, fields: list[Any]) -> bytes:
    header = _TO_JSON.encode(fields).encode()
    if len(header) > HEADER_BYTES_MAX:
        raise TooLargeError(f"message of kind {kind} with a header of {len(header)} bytes, at most {HEADER_BYTES_MAX}")
    return PREFIX.pack(MAGIC, VERSION, kind, len(header), zlib.crc32(header, kind)) + header


def encode_block(k: int, index: int, data: Bytes) -> tuple[bytes, Bytes]:
    """The two frames of one block."""
    return BLOCK_PREFIX.pack(k, index, checksum(data)), data


def checksum(data: Bytes) -> int:
    """The lower half of a block's 64-bit xxh3, which takes a twelfth of the time of its crc32."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF


def encode(message: Message, payload: Payload | None = None) -> list[Bytes]:
    """All frames of a message; `payload` (by default the message's own) becomes the blocks of a bulk message."""
    if not isinstance(message, Bulk):
        return [encode_header(message)]
    payload = payload if payload is not None else message.payload
    assert payload is not None
    frames: list[Bytes] = [encode_header(replace(message, layout=payload.layout))]
    body = Body(message, payload)
    for index in range(block_count(body.nbytes)):
        frames += encode_block(message.k, index, body.read(*block_span(body.nbytes, index)))
    return frames


def encode_again(frames: Sequence[Bytes], k: int) -> list[Bytes]:
    """The frames of a `Range` in answer to another pull: the same stretch, neither read nor summed up again."""
    _, _, kind, _, _ = PREFIX.unpack_from(frames[0])
    peer, lo, hi, _, *others = json.loads(bytes(frames[0][PREFIX.size :]).decode())
    again: list[Bytes] = [_header(kind, [peer, lo, hi, k, *others])]
    for prefix, data in zip(frames[1::2], frames[2::2], strict=True):
        _, index, sum_of_it = BLOCK_PREFIX.unpack(prefix)
        again += BLOCK_PREFIX.pack(k, index, sum_of_it), data
    return again


def _fields(message: Message) -> tuple[int, list[Any]]:
    match message:
        case Advert(peer, n, frontiers, ready, k, rumors):
            return 1, [peer, n, dict(frontiers), ready, k, _rumor_fields(rumors)]
        case Pull(peer, frontier, k):
            return 2, [peer, frontier, k]
        case Range(peer, lo, hi, k, marks, layout, _, table):
            runs = sum([len(series.runs) for series in marks]) // RUN_BYTES
            if table.series or runs > HEADER_RUNS_MAX:  # they are on their way, or go into the table
                counts = [table.series, table.runs] if table.series else [len(marks), runs]
                return 3, [peer, lo, hi, k, [], _layout_fields(layout), counts]
            return 3, [peer, lo, hi, k, _series_fields(marks), _layout_fields(layout), [0, 0]]
        case Unknown(peer, frontier, k):
            return 4, [peer, frontier, k]
        case StateRequest(peer, k, frontiers, pinned):
            return 5, [peer, k, dict(frontiers), list(pinned)]
        case State(peer, frontiers, k, marks, layout, _, closed, units, table):
            if not table.series:
                runs = sum(len(series.runs) for of_lane in marks.values() for series in of_lane) // RUN_BYTES
                lanes = tuple(lane for lane, of_lane in marks.items() if of_lane)
                table = Table(sum(map(len, marks.values())), runs, lanes)
            described = _layout_fields(layout), [table.series, table.runs], list(table.lanes)
            return 6, [peer, dict(frontiers), k, closed, units, *described]
        case Credit(peer, k, blocks):
            return 7, [peer, k, blocks]
        case Pin(peer, donor, k):
            return 8, [peer, donor, k]
        case Pinned(peer, k):
            return 9, [peer, k]
        case Unpin(peer, k):
            return 10, [peer, k]
        case Ping(peer, k, rumors):
            return 11, [peer, k, _rumor_fields(rumors)]
        case PingRequest(peer, k, target):
            return 12, [peer, k, target]
        case Ack(peer, k, about, rumors):
            return 13, [peer, k, about, _rumor_fields(rumors)]
        case Nack(peer, k, about):
            return 14, [peer, k, about]
        case Offer(peer, rounds, waiting, rumors):
            return 15, [peer, rounds, dict(waiting), _rumor_fields(rumors)]
        case PacketRequest(peer, n, k):
            return 16, [peer, n, k]
        case PacketReply(peer, n, newest, round, k, scalars, layout):
            return 17, [peer, n, newest, round, k, dict(scalars), _layout_fields(layout)]


def _rumor_fields(rumors: Iterable[Rumor]) -> list[list[Any]]:
    return [list(rumor) for rumor in rumors]


def _series_fields(marks: Iterable[Series]) -> list[list[Any]]:
    """Of each series: [epoch, partition, attempt, withdraws, first, last, step, first, last, step, ...]."""
    return [
        [
            *series[:4],
            *(RUN.unpack(series.runs) if len(series.runs) == RUN_BYTES else memoryview(series.runs).cast("q")),
        ]
        for series in marks
    ]


def table_of(message: Bulk) -> bytes:
    """The marks that do not travel in the header."""
    lanes: list[tuple[Series, ...]] = []
    match message:
        case Range(marks=marks) if sum(len(series.runs) for series in marks) > HEADER_RUNS_MAX * RUN_BYTES:
            lanes = [marks]
        case State(marks=by_lane):
            lanes = [of_lane for of_lane in by_lane.values() if of_lane]
    heads = [
        (lane, *series[:4], len(series.runs) // RUN_BYTES) for lane, of_lane in enumerate(lanes) for series in of_lane
    ]
    runs = b"".join([series.runs for of_lane in lanes for series in of_lane])
    return (
        np.array(heads, SERIES_NUMBERS[0]).tobytes()
        + np.frombuffer(runs, np.int64).astype(RUN_NUMBERS[0], copy=False).tobytes()
    )


def _layout_fields(layout: Layout) -> list[list[Any]]:
    return [[spec.name, spec.dtype, *spec.shape] for spec in layout.specs]


# -------------------------------------------------------------------------------------------------------- decoding


def decode_header(frame: Bytes) -> Message:
    """The message of frame 0; a bulk message comes without its payload."""
    if len(frame) < PREFIX.size:
        raise WireError(f"frame of {len(frame)} bytes, expected at least {PREFIX.size}")
    magic, version, kind, length, crc = PREFIX.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise WireError(f"frame begins with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if length > HEADER_BYTES_MAX or length != len(frame) - PREFIX.size:
        raise WireError(f"header of {len(frame) - PREFIX.size} bytes says {length}, at most {HEADER_BYTES_MAX}")
    header = bytes(frame[PREFIX.size :])
    if zlib.crc32(header, kind) != crc:  # several kinds have the same fields
        raise WireError("header does not match its checksum")
    if kind not in _DECODERS:
        raise WireError(f"unknown kind of message {kind}")
    try:
        fields = json.loads(header.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"header is not JSON: {error}") from None
    decoders, build = _DECODERS[kind]
    if not isinstance(fields, list) or len(fields) != len(decoders):
        raise WireError(f"header of kind {kind} is not a list of {len(decoders)} fields")
    message: Message = build(*(decoder(field) for decoder, field in zip(decoders, fields, strict=True)))
    if isinstance(message, Range):
        if not 1 <= message.lo <= message.hi:
            raise WireError(f"range {message.lo}..{message.hi} is empty")
        if message.marks and message.table.series:
            raise WireError("a range has marks in its header, and others in a table")
    elif isinstance(message, State) and message.table.series < len(message.table.lanes):
        raise WireError(f"{message.table.series} series of {len(message.table.lanes)} lanes")
    return message


def decode_block(prefix: Bytes, data: Bytes) -> Block:
    """One block, checked."""
    if len(prefix) != BLOCK_PREFIX.size:
        raise WireError(f"block prefix of {len(prefix)} bytes, expected {BLOCK_PREFIX.size}")
    k, index, expected = BLOCK_PREFIX.unpack(prefix)
    if len(data) > BLOCK_BYTES:
        raise WireError(f"block of {len(data)} bytes, at most {BLOCK_BYTES}")
    if checksum(data) != expected:
        raise WireError(f"block {index} does not match its checksum")
    return Block(k, index, data)


def decode(frames: Sequence[Bytes]) -> Message:
    """The message in `frames`, whole."""
    if not frames:
        raise WireError("no frames")
    message = decode_header(frames[0])
    if not isinstance(message, Bulk):
        if len(frames) != 1:
            raise WireError(f"{len(frames)} frames, expected 1")
        return message
    expected = 1 + 2 * block_count(body_bytes(message))
    if len(frames) != expected:
        raise WireError(f"{len(frames)} frames, expected {expected}")
    assembly = Assembly(message)
    for prefix, data in zip(frames[1::2], frames[2::2], strict=True):
        assembly.add(decode_block(prefix, data))
    return assembly.finish()


class Assembly:
    """A bulk message being put together in one buffer; a block that comes twice changes nothing."""

    def __init__(self, message: Bulk, buffer: Any = None) -> None:
        """`buffer` holds at least `message.layout.nbytes` bytes and is written to; by default a new one is made."""
        self.message = message
        self.buffer = allocate(message.layout.nbytes) if buffer is None else buffer
        self.nbytes = body_bytes(message)
        self._table = allocate(self.nbytes - message.layout.nbytes)
        self._missing = set(range(block_count(self.nbytes)))

    @property
    def complete(self) -> bool:
        return not self._missing

    def add(self, block: Block) -> None:
        """Put a block in its place; one that does not belong here is a `WireError`."""
        if block.k != self.message.k:
            raise WireError(f"block of message {block.k}, expected {self.message.k}")
        if block.index >= block_count(self.nbytes):
            raise WireError(f"block {block.index} of {block_count(self.nbytes)}")
        start, stop = block_span(self.nbytes, block.index)
        if len(block.data) != stop - start:
            raise WireError(f"block {block.index} has {len(block.data)} bytes, expected {stop - start}")
        if block.index in self._missing:
            arrays = self.message.layout.nbytes
            here = max(0, min(stop, arrays) - start)
            data = memoryview(block.data)
            if here:
                memoryview(self.buffer)[start : start + here] = data[:here]
            if here < len(data):
                memoryview(self._table)[start + here - arrays : stop - arrays] = data[here:]
            self._missing.discard(block.index)

    def finish(self) -> Bulk:
        """The message with its marks and its payload, which aliases the buffer. Marks that are none: `WireError`."""
        if self._missing:
            raise WireError(f"{len(self._missing)} of {block_count(self.nbytes)} blocks are missing")
        payload = Packed(self.message.layout, self.buffer)
        match self.message:
            case Range(peer, table=table) if table.series:
                marks = _from_table(self._table, table._replace(lanes=(peer,)))
                return replace(self.message, payload=payload, marks=marks[peer], table=NO_TABLE)
            case State(table=table):
                by_lane = _from_table(self._table, table)
                return replace(self.message, payload=payload, marks=by_lane, table=NO_TABLE)
        return replace(self.message, payload=payload)


def allocate(nbytes: int) -> Any:
    """A zeroed buffer. A large one is a mapping of its own, which goes back to the system as soon as it is dropped."""
    return mmap.mmap(-1, nbytes) if nbytes >= BLOCK_BYTES else bytearray(nbytes)


# ------------------------------------------------------------------------------------------------ fields, checked


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise WireError("a field is not a count")
    return value


def _is_name(value: Any) -> bool:
    if type(value) is not str or len(value) > NAME_CHARACTERS_MAX:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell and nobody can write
        return False
    return True


def _peer(value: Any) -> PeerId:
    if not _is_name(value) or not value:
        raise WireError("a field is not the name of a peer")
    return PeerId(value)


def _peers(value: Any) -> tuple[PeerId, ...]:
    if type(value) is not list:
        raise WireError("a field is not a list of peers")
    return tuple(_peer(peer) for peer in value)


def _frontiers(value: Any) -> Mapping[PeerId, int]:
    if type(value) is not dict:
        raise WireError("a field does not map lanes to frontiers")
    return {_peer(lane): _count(frontier) for lane, frontier in value.items()}


def _scalars(value: Any) -> Mapping[str, float]:
    if type(value) is not dict or len(value) > SCALARS_MAX:
        raise WireError(f"a field does not map at most {SCALARS_MAX} names to numbers")
    for name, number in value.items():
        if not _is_name(name) or type(number) not in (int, float) or not -_LARGEST <= number <= _LARGEST:
            raise WireError("a scalar is not a name with a finite number")
    scalars: Mapping[str, float] = value
    return scalars


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise WireError("a field is not true or false")
    return value


def _rumors(value: Any) -> tuple[Rumor, ...]:
    if type(value) is not list:
        raise WireError("a field is not a list of rumors")
    rumors = []
    for entry in value:
        if type(entry) is not list or len(entry) != 4:
            raise WireError("a rumor is not about whom, what, which incarnation and by whom")
        if entry[1] not in _STANDINGS:
            raise WireError(f"a rumor says none of {', '.join(_STANDINGS)}")
        rumors.append(Rumor(_peer(entry[0]), Standing(entry[1]), _count(entry[2]), _peer(entry[3])))
    return tuple(rumors)


def _marks(value: Any) -> tuple[Series, ...]:
    """The marks of a header: few, one by one."""
    if type(value) is not list:
        raise WireError("a field is not a list of marks")
    marks: list[Series] = []
    room = HEADER_RUNS_MAX
    before: tuple[Any, ...] = ()
    for entry in value:
        if type(entry) is not list or len(entry) < 7 or len(entry) % 3 != 1:
            raise WireError("marks are not a series of epoch, partition, attempt, sign and runs")
        room -= len(entry) // 3 - 1
        if room < 0:
            raise WireError(f"more than {HEADER_RUNS_MAX} runs of marks in a header")
        epoch, partition, attempt, withdraws, *runs = entry
        key = _count(epoch), _count(partition), _count(attempt), _flag(withdraws)
        end = -1
        for at in range(0, len(runs), 3):
            first, last, step = _count(runs[at]), _count(runs[at + 1]), _count(runs[at + 2])
            good = step == 1 if first == last else first < last and step >= 1 and (last - first) % step == 0
            if not good or first <= end:
                raise WireError(f"marks of chunks {first}..{last} by {step}, after {end}")
            end = last
        if before >= key:
            raise WireError("series of marks are out of order, or there twice")
        before = key
        packed = RUN.pack(*runs) if len(runs) == 3 else array("q", runs).tobytes()
        marks.append(Series(*key, packed))
    return tuple(marks)


def _table(value: Any) -> Table:
    if type(value) is not list or len(value) != 2:
        raise WireError("a field does not say how many series and runs of marks there are")
    table = Table(_count(value[0]), _count(value[1]))
    if table.series > table.runs or (table.runs and not table.series):
        raise WireError(f"{table.series} series of {table.runs} runs of marks, of which each has one at least")
    if table_bytes(table) > TABLE_BYTES_MAX:
        raise WireError(f"marks of {table_bytes(table)} bytes, at most {TABLE_BYTES_MAX}")
    return table


def _from_table(data: Bytes, table: Table) -> dict[PeerId, tuple[Series, ...]]:
    """The marks of each lane, checked all at once."""
    marks: dict[PeerId, list[Series]] = {lane: [] for lane in table.lanes}
    if not table.series:
        return {}
    cut = 8 * SERIES_NUMBERS[1] * table.series
    head = np.frombuffer(memoryview(data)[:cut], SERIES_NUMBERS[0]).reshape(-1, SERIES_NUMBERS[1])
    runs = np.frombuffer(memoryview(data)[cut : table_bytes(table)], RUN_NUMBERS[0]).reshape(-1, RUN_NUMBERS[1])
    lengths = head[:, 5]
    if head.min() < 0 or runs.min() < 0 or lengths.min() < 1 or lengths.max() > table.runs:
        raise WireError("a number in a table of marks is not a count")
    if head[:, 0].max() >= len(table.lanes) or head[:, 4].max() > 1 or lengths.sum() != table.runs:
        raise WireError("a series in a table of marks is of no lane, of no sign, or of no runs")
    if not _increase(head[:, :5]):
        raise WireError("series of marks are out of order, or there twice")
    first, last, step = runs.T
    ends = np.cumsum(lengths)
    behind = first[1:] > last[:-1]
    behind[ends[:-1] - 1] = True  # where another series begins
    single = first == last
    good = (first <= last) & (step >= 1) & (~single | (step == 1))
    if not (behind.all() and good.all() and ((last - first) % step == 0).all()):
        raise WireError("runs of marks are not of chunks that go up")
    native = runs.astype(np.int64, copy=False).tobytes()
    begin = 0
    for (lane, epoch, partition, attempt, withdraws, _), end in zip(head.tolist(), ends.tolist(), strict=True):
        stretch = native[RUN_BYTES * begin : RUN_BYTES * end]
        marks[table.lanes[lane]].append(Series(epoch, partition, attempt, bool(withdraws), stretch))
        begin = end
    return {lane: tuple(of_lane) for lane, of_lane in marks.items()}


def _increase(rows: NDArray[np.int64]) -> bool:
    """Each row comes after the one before it, by the first number in which they differ."""
    decided = np.zeros(len(rows) - 1, bool)
    for before, after in zip(rows[:-1].T, rows[1:].T, strict=True):
        if (~decided & (after < before)).any():
            return False
        decided |= after > before
    return bool(decided.all())


def _range(peer: PeerId, lo: int, hi: int, k: int, marks: tuple[Series, ...], layout: Layout, table: Table) -> Range:
    return Range(peer, lo, hi, k, marks, layout, None, table)


def _state(
    peer: PeerId,
    frontiers: Mapping[PeerId, int],
    k: int,
    closed: int,
    units: int,
    layout: Layout,
    table: Table,
    lanes: tuple[PeerId, ...],
) -> State:
    if len(set(lanes)) != len(lanes):
        raise WireError("a lane is named twice")
    return State(peer, frontiers, k, {}, layout, None, closed, units, table._replace(lanes=lanes))


def _layout(value: Any) -> Layout:
    if type(value) is not list:
        raise WireError("a field is not a layout")
    specs, names, total = [], set(), 0
    for entry in value:
        if type(entry) is not list or len(entry) < 2 or len(entry) > 2 + DIMENSIONS_MAX:
            raise WireError("an array is not described by name, dtype and shape")
        name, dtype, *shape = entry
        if not _is_name(name) or name in names:
            raise WireError("an array's name is not text, too long or there twice")
        if type(dtype) is not str or dtype not in DTYPES:
            raise WireError(f"an array's dtype is none of {', '.join(DTYPES)}")
        nbytes = np.dtype(dtype).itemsize
        for side in shape:
            nbytes *= max(1, _count(side))
        total += nbytes
        if total > PAYLOAD_BYTES_MAX:
            raise WireError(f"arrays of {total} bytes, at most {PAYLOAD_BYTES_MAX}")
        names.add(name)
        specs.append(ArraySpec(name, dtype, tuple(shape)))
    return _same_layout(tuple(specs)) if len(specs) <= LAYOUT_CACHED_MAX else Layout(tuple(specs))


@lru_cache(maxsize=16)
def _same_layout(specs: tuple[ArraySpec, ...]) -> Layout:
    """One object for equal layouts, which knows its offsets already: most messages have the same."""
    return Layout(specs)


_LARGEST = float(np.finfo(np.float64).max)
_STANDINGS = tuple(standing.value for standing in Standing)
_DECODERS: dict[int, tuple[tuple[Callable[[Any], Any], ...], Callable[..., Message]]] = {
    1: ((_peer, _count, _frontiers, _flag, _count, _rumors), Advert),
    2: ((_peer, _count, _count), Pull),
    3: ((_peer, _count, _count, _count, _marks, _layout, _table), _range),
    4: ((_peer, _count, _count), Unknown),
    5: ((_peer, _count, _frontiers, _peers), StateRequest),
    6: ((_peer, _frontiers, _count, _count, _count, _layout, _table, _peers), _state),
    7: ((_peer, _count, _count), Credit),
    8: ((_peer, _peer, _count), Pin),
    9: ((_peer, _count), Pinned),
    10: ((_peer, _count), Unpin),
    11: ((_peer, _count, _rumors), Ping),
    12: ((_peer, _count, _peer), PingRequest),
    13: ((_peer, _count, _peer, _rumors), Ack),
    14: ((_peer, _count, _peer), Nack),
    15: ((_peer, _count, _frontiers, _rumors), Offer),
    16: ((_peer, _count, _count), PacketRequest),
    17: ((_peer, _count, _count, _count, _count, _scalars, _layout), PacketReply),
}
