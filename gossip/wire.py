"""Messages as frames of bytes, and back. Nothing here executes the bytes that it reads; malformed bytes are a
`WireError`.

    frame 0     | "gs" | version | header bytes | crc32 of the header | header: MessagePack |
    block i     | k | i | xxh3 of the bytes |    followed by a frame with the bytes themselves

A header is the list of a message's fields, and before them the number of its kind; `messages` says what each may be. A
bulk message (`Range`, `State`) says in its header which arrays follow and how they lie (`Layout`), and how many marks
follow them; its *body*, the packed buffer and then the table of marks, comes in blocks of `BLOCK_BYTES`, each of which
may be sent, lost and checked by itself. `Assembly` puts them together again. `encode` and `decode` do it all at once,
for drivers that carry a whole message in one piece.

    table       | lane, epoch, partition, attempt, withdraws, runs | of each series, in order
                | first, last, step | of each run: 64-bit integers, all of them

A range of few marks has them in its header, and no table.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import msgspec
import numpy as np
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from gossip.arrays import ITEM_BYTES, ArraySpec, Bytes, Layout, Packed, Payload
from gossip.errors import TooLargeError, WireError
from gossip.fields import HEADER_RUNS_MAX
from gossip.marks import RUN_BYTES, Series
from gossip.messages import (
    NO_TABLE,
    Bulk,
    Message,
    PacketReply,
    PeerId,
    Range,
    State,
    Table,
)

MAGIC = b"gs"
VERSION = 6
PREFIX = struct.Struct("!2sBII")
BLOCK_PREFIX = struct.Struct("!QII")

HEADER_BYTES_MAX = 1 << 22
"""Room for as many lanes and arrays as one message may have, with names of sixty characters."""
HEADER_BYTES_SURE = 1 << 14
"""A header up to this size has no room for more of anything than it may have."""
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
"""Arrays of a layout that is kept for the next message,"""
LAYOUT_CACHED_CHARACTERS_MAX = 1 << 16
"""and characters of their names. Sixteen layouts are kept, which may be anybody's: they hold some 12 MB at the most."""
TROUBLE_CHARACTERS_MAX = 200
"""Of what is wrong with a header, which may be told with words of its own."""


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
    if isinstance(message, Bulk):
        message = _announced(message)
    return _frame(message, type(message).__name__)


def _frame(fields: Any, kind: str) -> bytes:
    header = _ENCODER.encode(fields)
    if len(header) > HEADER_BYTES_MAX:
        raise TooLargeError(f"{kind} with a header of {len(header)} bytes, at most {HEADER_BYTES_MAX}")
    if len(header) > HEADER_BYTES_SURE:
        try:
            _DECODER.decode(header)
        except msgspec.ValidationError as error:
            raise TooLargeError(f"{kind} that nobody would take: {error}") from None
    return PREFIX.pack(MAGIC, VERSION, len(header), zlib.crc32(header)) + header


def _announced(message: Bulk) -> Bulk:
    """What the header says: nothing of the arrays but how they lie, and of many marks how many they are."""
    match message:
        case Range(marks=marks):
            runs = _runs(marks)
            if runs > HEADER_RUNS_MAX:
                return replace(message, payload=None, marks=(), table=Table(len(marks), runs, ()))
        case State(marks=marks) if marks:
            count, runs = sum(map(len, marks.values())), sum(map(_runs, marks.values()))
            lanes = tuple(lane for lane, of_lane in marks.items() if of_lane)
            return replace(message, payload=None, marks={}, table=Table(count, runs, lanes))
    return replace(message, payload=None)


def _runs(marks: Sequence[Series]) -> int:
    return sum([len(series.runs) for series in marks]) // RUN_BYTES


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
    fields = msgspec.msgpack.decode(frames[0][PREFIX.size :])
    fields[_K_OF_RANGE] = k
    again: list[Bytes] = [_frame(fields, "Range")]
    for prefix, data in zip(frames[1::2], frames[2::2], strict=True):
        _, index, sum_of_it = BLOCK_PREFIX.unpack(prefix)
        again += BLOCK_PREFIX.pack(k, index, sum_of_it), data
    return again


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


# -------------------------------------------------------------------------------------------------------- decoding


def decode_header(frame: Bytes) -> Message:
    """The message of frame 0; a bulk message comes without its payload."""
    if len(frame) < PREFIX.size:
        raise WireError(f"frame of {len(frame)} bytes, expected at least {PREFIX.size}")
    magic, version, length, crc = PREFIX.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise WireError(f"frame begins with {magic!r} version {version}, expected {MAGIC!r} version {VERSION}")
    if length > HEADER_BYTES_MAX or length != len(frame) - PREFIX.size:
        raise WireError(f"header of {len(frame) - PREFIX.size} bytes says {length}, at most {HEADER_BYTES_MAX}")
    header = memoryview(frame)[PREFIX.size :]
    if zlib.crc32(header) != crc:
        raise WireError("header does not match its checksum")
    try:
        message: Message = _DECODER.decode(header)
    except (msgspec.MsgspecError, RecursionError, OverflowError, MemoryError) as error:
        raise WireError(f"header is no message: {error!s:.{TROUBLE_CHARACTERS_MAX}}") from None
    if header[0] != _LIST_OF + 1 + len(message.__struct_fields__):
        raise WireError(f"{type(message).__name__} without all of its fields")
    match message:
        case Range():
            _check_range(message)
        case State():
            _check_state(message)
        case PacketReply(scalars=scalars):
            if not all(-_LARGEST <= number <= _LARGEST for number in scalars.values()):
                raise WireError("a scalar is not a finite number")
    return replace(message, layout=_checked(message.layout)) if isinstance(message, Bulk) else message


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
            case Range(of=lane, table=table) if table.series:
                marks = _from_table(self._table, table._replace(lanes=(lane,)))
                return replace(self.message, payload=payload, marks=marks[lane], table=NO_TABLE)
            case State(table=table):
                by_lane = _from_table(self._table, table)
                return replace(self.message, payload=payload, marks=by_lane, table=NO_TABLE)
        return replace(self.message, payload=payload)


def with_marks(state: State, table: Bytes) -> State:
    """The same header with the marks of its table, which came behind its arrays. Marks that are none: `WireError`."""
    return replace(state, marks=_from_table(table, state.table), table=NO_TABLE)


def allocate(nbytes: int) -> Any:
    """A zeroed buffer. A large one is a mapping of its own, which goes back to the system as soon as it is dropped."""
    return mmap.mmap(-1, nbytes) if nbytes >= BLOCK_BYTES else bytearray(nbytes)


# ------------------------------------------------------------------------------------------------ fields, checked


def _check_range(message: Range) -> None:
    if not 1 <= message.lo <= message.hi:
        raise WireError(f"range {message.lo}..{message.hi} is empty")
    if message.table.lanes or (message.marks and message.table.series):
        raise WireError("a range has marks in its header, and others in a table, or marks of other lanes")
    _check_table(message.table)
    if _runs(message.marks) > HEADER_RUNS_MAX:
        raise WireError(f"more than {HEADER_RUNS_MAX} runs of marks in a header")
    check_marks(message.marks)


def _check_state(message: State) -> None:
    table = message.table
    if message.marks:
        raise WireError("the marks of a replica are in its header, expected a table")
    _check_table(table)
    if table.series < len(table.lanes) or len(set(table.lanes)) != len(table.lanes):
        raise WireError(f"{table.series} series of {len(table.lanes)} lanes, each of which is named once")


def _check_table(table: Table) -> None:
    if table.series > table.runs or (table.runs and not table.series):
        raise WireError(f"{table.series} series of {table.runs} runs of marks, of which each has one at least")
    if table_bytes(table) > TABLE_BYTES_MAX:
        raise WireError(f"marks of {table_bytes(table)} bytes, at most {TABLE_BYTES_MAX}")


def check_marks(marks: tuple[Series, ...]) -> None:
    """Raise `WireError` unless these are marks in the order in which they travel. One by one: for few."""
    before: tuple[Any, ...] = ()
    for series in marks:
        if not series.runs or len(series.runs) % RUN_BYTES:
            raise WireError(f"runs of marks in {len(series.runs)} bytes, expected {RUN_BYTES} for each")
        numbers = memoryview(series.runs).cast("q")
        end = -1
        for first, last, step in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            good = step == 1 if first == last else first < last and step >= 1 and (last - first) % step == 0
            if not good or first <= end:
                raise WireError(f"marks of chunks {first}..{last} by {step}, after {end}")
            end = last
        if before >= series[:4]:
            raise WireError("series of marks are out of order, or there twice")
        before = series[:4]


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


def _checked(layout: Layout) -> Layout:
    """The same layout, if it is one: of names that differ, and some size."""
    specs, total, characters = layout.specs, 0, 0
    for spec in specs:
        size = prod(spec.shape) or prod([side or 1 for side in spec.shape])  # none is without end where another is 0
        total += size * ITEM_BYTES[spec.dtype]
        if total > PAYLOAD_BYTES_MAX:
            raise WireError(f"arrays of {total} bytes, at most {PAYLOAD_BYTES_MAX}")
        characters += len(spec.name)
    if len({spec.name for spec in specs}) < len(specs):
        raise WireError("an array's name is there twice")
    is_small = len(specs) <= LAYOUT_CACHED_MAX and characters <= LAYOUT_CACHED_CHARACTERS_MAX
    return _same_layout(specs) if is_small else layout


@lru_cache(maxsize=16)
def _same_layout(specs: tuple[ArraySpec, ...]) -> Layout:
    """One object for equal layouts, which knows its offsets already: most messages have the same."""
    return Layout(specs)


_LARGEST = float(np.finfo(np.float64).max)
_LIST_OF = 0x90
"""The first byte of a list of no fields in MessagePack; up to 15 are counted in it."""
_K_OF_RANGE = 1 + Range.__struct_fields__.index("k")


def _as_dict(value: Any) -> dict[Any, Any]:
    """Any mapping; of all other kinds msgspec writes those that messages have."""
    if not isinstance(value, Mapping):
        raise TypeError(f"a {type(value).__name__} in a message")
    return dict(value)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_as_dict)
_DECODER = msgspec.msgpack.Decoder(Message)
