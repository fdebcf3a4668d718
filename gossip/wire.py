"""Messages as frames of bytes, and back. Nothing here executes what it reads; whatever is malformed is a `WireError`.

    frame 0     | "gs" | version | kind | header bytes | crc32 of kind and header | header: JSON |
    block i     | k | i | xxh3 of the bytes |    followed by a frame with the bytes themselves

A bulk message (`Range`, `State`) says in its header which arrays follow and how they lie (`Layout`); the packed buffer
follows in blocks of `BLOCK_BYTES`, each of which may be sent, lost and checked by itself. `Assembly` puts them together
again. `encode` and `decode` do it all at once, for drivers that carry a whole message in one piece.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import xxhash

from gossip.arrays import DTYPES, ArraySpec, Bytes, Layout, Packed, Payload
from gossip.errors import WireError
from gossip.messages import (
    Ack,
    Advert,
    Bulk,
    Credit,
    Mark,
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
    Unit,
    Unknown,
    Unpin,
)

MAGIC = b"gs"
VERSION = 3
PREFIX = struct.Struct("!2sBBII")
_TO_JSON = json.JSONEncoder(separators=(",", ":"))
_BY_RUN = attrgetter("withdraws", "attempt", "unit")
BLOCK_PREFIX = struct.Struct("!QII")

HEADER_BYTES_MAX = 1 << 22
"""Room for the frontiers of some 40,000 lanes, the names of as many arrays, or the marks of 100,000 partitions."""
MARKS_MAX = 1 << 20
"""Of one header, once its runs are written out, which take some 180 MB then: units of a long training."""
BLOCK_BYTES = 1 << 20
"""Measured on loopback: 64 messages of 1 MiB move three times as fast as one of 64 MiB, and hold less memory."""
PAYLOAD_BYTES_MAX = 1 << 36
"""What a header may claim, 64 GiB; a receiver that expects a certain layout refuses by that first."""
NAME_CHARACTERS_MAX = 256
DIMENSIONS_MAX = 16
SCALARS_MAX = 64
"""Of one packet; strategies have two or three."""
COUNT_MAX = (1 << 63) - 1

Run = tuple[int, int, range, int, bool]
"""Marks of one lane as they travel: epoch, partition, chunks, attempt, withdraws."""


@dataclass(frozen=True)
class Block:
    """Block `index` of the bulk message `k`, its checksum verified."""

    k: int
    index: int
    data: Bytes


def block_count(layout: Layout) -> int:
    """Blocks that carry a payload of this layout."""
    return -(-layout.nbytes // BLOCK_BYTES)


def block_span(layout: Layout, index: int) -> tuple[int, int]:
    """First and end byte of block `index`."""
    start = index * BLOCK_BYTES
    return start, min(start + BLOCK_BYTES, layout.nbytes)


# -------------------------------------------------------------------------------------------------------- encoding


def encode_header(message: Message) -> bytes:
    """Frame 0 of any message."""
    return _header(*_fields(message))


def _header(kind: int, fields: list[Any]) -> bytes:
    header = _TO_JSON.encode(fields).encode()
    assert len(header) <= HEADER_BYTES_MAX, f"header of {len(header)} bytes, at most {HEADER_BYTES_MAX}"
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
    for index in range(block_count(payload.layout)):
        frames += encode_block(message.k, index, payload.read(*block_span(payload.layout, index)))
    return frames


def encode_again(frames: Sequence[Bytes], k: int) -> list[Bytes]:
    """The frames of a `Range` in answer to another pull: the same stretch, neither read nor summed up again."""
    _, _, kind, _, _ = PREFIX.unpack_from(frames[0])
    peer, lo, hi, _, marks, layout = json.loads(bytes(frames[0][PREFIX.size :]).decode())
    again: list[Bytes] = [_header(kind, [peer, lo, hi, k, marks, layout])]
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
        case Range(peer, lo, hi, k, marks, layout):
            return 3, [peer, lo, hi, k, _mark_fields(marks), _layout_fields(layout)]
        case Unknown(peer, frontier, k):
            return 4, [peer, frontier, k]
        case StateRequest(peer, k, frontiers, pinned):
            return 5, [peer, k, dict(frontiers), list(pinned)]
        case State(peer, frontiers, k, marks, layout):
            by_lane = {lane: _mark_fields(of_lane) for lane, of_lane in marks.items()}
            return 6, [peer, dict(frontiers), k, by_lane, _layout_fields(layout)]
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


def _mark_fields(marks: Iterable[Mark]) -> list[list[Any]]:
    """Runs of chunks of one partition: [epoch, partition, first, last, attempt, withdraws]."""
    runs: list[list[Any]] = []
    next_of_run: tuple[int, int, int, int, bool] | None = None
    for (epoch, partition, chunk), attempt, withdraws in sorted(marks, key=_BY_RUN):
        if (epoch, partition, chunk, attempt, withdraws) == next_of_run:
            runs[-1][3] = chunk
        else:
            runs.append([epoch, partition, chunk, chunk, attempt, withdraws])
        next_of_run = epoch, partition, chunk + 1, attempt, withdraws
    return runs


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
    if isinstance(message, Range) and not 1 <= message.lo <= message.hi:
        raise WireError(f"range {message.lo}..{message.hi} is empty")
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
    if len(frames) != 1 + 2 * block_count(message.layout):
        raise WireError(f"{len(frames)} frames, expected {1 + 2 * block_count(message.layout)}")
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
        self._missing = set(range(block_count(message.layout)))

    @property
    def complete(self) -> bool:
        return not self._missing

    def add(self, block: Block) -> None:
        """Put a block in its place; one that does not belong here is a `WireError`."""
        layout = self.message.layout
        if block.k != self.message.k:
            raise WireError(f"block of message {block.k}, expected {self.message.k}")
        if block.index >= block_count(layout):
            raise WireError(f"block {block.index} of {block_count(layout)}")
        start, stop = block_span(layout, block.index)
        if len(block.data) != stop - start:
            raise WireError(f"block {block.index} has {len(block.data)} bytes, expected {stop - start}")
        if block.index in self._missing:
            memoryview(self.buffer)[start:stop] = block.data
            self._missing.discard(block.index)

    def finish(self) -> Bulk:
        """The message with its payload, which aliases the buffer."""
        if self._missing:
            raise WireError(f"{len(self._missing)} of {block_count(self.message.layout)} blocks are missing")
        return replace(self.message, payload=Packed(self.message.layout, self.buffer))


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


def _marks(value: Any) -> tuple[Mark, ...]:
    return _written_out(_runs(value, MARKS_MAX))


def _marks_by_lane(value: Any) -> Mapping[PeerId, tuple[Mark, ...]]:
    if type(value) is not dict:
        raise WireError("a field does not map lanes to marks")
    by_lane: dict[PeerId, list[Run]] = {}
    room = MARKS_MAX
    for lane, runs in value.items():
        by_lane[_peer(lane)] = checked = _runs(runs, room)
        room -= sum(len(chunks) for _, _, chunks, _, _ in checked)
    return {lane: _written_out(runs) for lane, runs in by_lane.items()}


def _runs(value: Any, room: int) -> list[Run]:
    """Checked, and `room` marks at most, before any is written out."""
    if type(value) is not list:
        raise WireError("a field is not a list of marks")
    runs: list[Run] = []
    for entry in value:
        if type(entry) is not list or len(entry) != 6:
            raise WireError("marks are not a run of chunks, attempt and sign")
        epoch, partition, first, last, attempt = (_count(number) for number in entry[:5])
        if last < first or last - first >= room:
            raise WireError(f"marks of chunks {first}..{last}, expected 1 to {MARKS_MAX} in all")
        chunks = range(first, last + 1)
        room -= len(chunks)
        runs.append((epoch, partition, chunks, attempt, _flag(entry[5])))
    return runs


def _written_out(runs: Iterable[Run]) -> tuple[Mark, ...]:
    return tuple(
        Mark(Unit(epoch, partition, chunk), attempt, withdraws)
        for epoch, partition, chunks, attempt, withdraws in runs
        for chunk in chunks
    )


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
    return _same_layout(tuple(specs))


@lru_cache(maxsize=16)
def _same_layout(specs: tuple[ArraySpec, ...]) -> Layout:
    """One object for equal layouts, which knows its offsets already: most messages have the same."""
    return Layout(specs)


_LARGEST = float(np.finfo(np.float64).max)
_STANDINGS = tuple(standing.value for standing in Standing)
_DECODERS: dict[int, tuple[tuple[Callable[[Any], Any], ...], Callable[..., Message]]] = {
    1: ((_peer, _count, _frontiers, _flag, _count, _rumors), Advert),
    2: ((_peer, _count, _count), Pull),
    3: ((_peer, _count, _count, _count, _marks, _layout), Range),
    4: ((_peer, _count, _count), Unknown),
    5: ((_peer, _count, _frontiers, _peers), StateRequest),
    6: ((_peer, _frontiers, _count, _marks_by_lane, _layout), State),
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
