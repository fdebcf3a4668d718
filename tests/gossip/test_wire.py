"""Messages as frames: all come back as they went, and whatever is not one is a `WireError` and costs nothing."""

from __future__ import annotations

import mmap
import random
import resource
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gossip.arrays import DTYPES, ArraySpec, Bytes, Layout, Packed
from gossip.errors import TooLargeError, WireError
from gossip.fields import (
    ARRAYS_MAX,
    COUNT_MAX,
    DIMENSIONS_MAX,
    LANES_MAX,
    NAME_CHARACTERS_MAX,
    REFUSED_MAX,
    SCALARS_MAX,
)
from gossip.identity import Identities
from gossip.marks import RUN, Chunks, Series, packed
from gossip.messages import (
    Ack,
    Advert,
    Bulk,
    Credit,
    Here,
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
from gossip.wire import (
    BLOCK_BYTES,
    BLOCK_PREFIX,
    HEADER_BYTES_MAX,
    HEADER_RUNS_MAX,
    LAYOUT_CACHED_CHARACTERS_MAX,
    LAYOUT_CACHED_MAX,
    MAGIC,
    PAYLOAD_BYTES_MAX,
    PREFIX,
    VERSION,
    Assembly,
    Block,
    allocate,
    block_count,
    block_span,
    checksum,
    decode,
    decode_block,
    decode_header,
    encode,
    encode_again,
    encode_block,
    encode_header,
)

KINDS = {
    "advert": 1,
    "pull": 2,
    "range": 3,
    "unknown": 4,
    "state request": 5,
    "state": 6,
    "credit": 7,
    "pin": 8,
    "pinned": 9,
    "unpin": 10,
    "ping": 11,
    "ping request": 12,
    "ack": 13,
    "nack": 14,
    "offer": 15,
    "packet request": 16,
    "packet reply": 17,
    "here": 18,
}

peers = st.text(min_size=1, max_size=20).map(PeerId)
counts = st.integers(0, COUNT_MAX)
frontiers = st.dictionaries(peers, counts, max_size=5)
units = st.builds(Unit, counts, counts, counts)
marks = st.lists(st.builds(Mark, units, counts, st.booleans()), max_size=4).map(packed)
neighbors = st.builds(Mark, st.builds(Unit, st.just(1), st.integers(0, 1), st.integers(0, 3000)), st.integers(0, 1))
many_marks = st.sets(neighbors, min_size=1).map(packed) | st.just(
    packed([Mark(Unit(1, 2, number * number), 0) for number in range(2 * HEADER_RUNS_MAX + 3)])
)
rumors = st.lists(st.builds(Rumor, peers, st.sampled_from(Standing), counts, peers), max_size=4).map(tuple)


@st.composite
def payloads(draw: st.DrawFn) -> Packed:
    """Packed arrays with any bits in them."""
    names = draw(st.lists(st.text(max_size=5), max_size=4, unique=True))
    shapes = st.lists(st.integers(0, 6), max_size=3).map(tuple)
    layout = Layout(tuple(ArraySpec(name, draw(st.sampled_from(DTYPES)), draw(shapes)) for name in names))
    return Packed(layout, draw(st.randoms(use_true_random=False)).randbytes(layout.nbytes))


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    lo = draw(st.integers(1, COUNT_MAX))
    payload = draw(payloads())
    return Range(
        draw(peers),
        lo,
        draw(st.integers(lo, COUNT_MAX)),
        draw(counts),
        draw(marks | many_marks),
        payload.layout,
        payload,
        lane=draw(st.none() | peers),
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    payload = draw(payloads())
    by_lane = draw(st.dictionaries(peers, (marks | many_marks).filter(bool), max_size=3))
    closed, units = draw(counts), draw(counts)
    return State(draw(peers), draw(frontiers), draw(counts), by_lane, payload.layout, payload, closed, units)


@st.composite
def replies(draw: st.DrawFn) -> PacketReply:
    payload = draw(payloads())
    numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(1 << 53), 1 << 53)
    scalars = draw(st.dictionaries(st.text(max_size=5), numbers, max_size=3))
    n, newest, round, k = (draw(counts) for _ in range(4))
    return PacketReply(draw(peers), n, newest, round, k, scalars, payload.layout, payload)


messages = (
    st.builds(Advert, peers, counts, frontiers, st.booleans(), counts, rumors)
    | st.builds(Pull, peers, counts, counts, st.none() | peers)
    | ranges()
    | st.builds(Unknown, peers, counts, counts, st.none() | peers)
    | st.builds(StateRequest, peers, counts, frontiers, st.lists(peers, max_size=4).map(tuple))
    | states()
    | st.builds(Credit, peers, counts, counts)
    | st.builds(Here, peers)
    | st.builds(Pin, peers, peers, counts)
    | st.builds(Pinned, peers, counts)
    | st.builds(Unpin, peers, counts)
    | st.builds(Ping, peers, counts, rumors)
    | st.builds(PingRequest, peers, counts, peers)
    | st.builds(Ack, peers, counts, peers, rumors)
    | st.builds(Nack, peers, counts, peers)
    | st.builds(Offer, peers, counts, frontiers, rumors)
    | st.builds(PacketRequest, peers, counts, counts)
    | replies()
)

WEIGHTS = Packed.of({"b": np.arange(3, dtype=np.float32), "w": np.arange(40.0).reshape(4, 10)})
LARGE = Packed.of({"w": np.arange(2 * BLOCK_BYTES // 8 + 1000, dtype=np.int64)})
MARKS = packed([Mark(Unit(0, 2, 1), 0), Mark(Unit(0, 2, 1), 1, withdraws=True)])
RUMORS = (Rumor(PeerId("q"), Standing.DEAD, 2, PeerId("r")),)
RANGE = Range(PeerId("p"), 3, 7, 5, MARKS, WEIGHTS.layout, WEIGHTS)
SAMPLES: list[Message] = [
    Advert(PeerId("p"), 3, {PeerId("q"): 2, PeerId("r"): 1}, True, 5, RUMORS, (PeerId("r"), PeerId("s")), 1e30),
    Pull(PeerId("p"), 3, 5, PeerId("q")),
    RANGE,
    Unknown(PeerId("p"), 3, 5, PeerId("q")),
    StateRequest(PeerId("p"), 5, {PeerId("q"): 2}, (PeerId("q"), PeerId("r"))),
    State(PeerId("p"), {PeerId("q"): 2}, 5, {PeerId("q"): MARKS}, WEIGHTS.layout, WEIGHTS, 3, 9),
    Credit(PeerId("p"), 5, 8),
    Here(PeerId("p")),
    Pin(PeerId("p"), PeerId("q"), 5),
    Pinned(PeerId("p"), 5),
    Unpin(PeerId("p"), 5),
    Ping(PeerId("p"), 5, RUMORS),
    PingRequest(PeerId("p"), 5, PeerId("q")),
    Ack(PeerId("p"), 5, PeerId("q"), RUMORS),
    Nack(PeerId("p"), 5, PeerId("q")),
    Offer(PeerId("p"), 3, {PeerId("q"): 2}, RUMORS),
    PacketRequest(PeerId("p"), 3, 5),
    PacketReply(PeerId("p"), 3, 4, 7, 5, {"w": 0.1, "n": 3}, WEIGHTS.layout, WEIGHTS),
]
each_kind = pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)


def header(kind: int, fields: Any, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    """Frame 0 around any fields, or the bytes of any list, its checksum right."""
    data = fields if isinstance(fields, bytes) else msgspec.msgpack.encode([kind, *fields])
    return PREFIX.pack(magic, version, len(data), zlib.crc32(data)) + data


def fields_of(frame: bytes) -> list[Any]:
    fields: list[Any] = msgspec.msgpack.decode(frame[PREFIX.size :])
    return fields[1:]


def refused(frames: Sequence[Bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)


@contextmanager
def little_memory(room: int = 64 << 20) -> Iterator[None]:
    """Whoever maps or allocates more than `room` fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ------------------------------------------------------------------------------------------------------ round trips


def test_a_message_with_arrays_shows_all_but_these() -> None:
    update = Packed.of({"w": np.ones(3)})
    shown = repr(PacketReply(PeerId("a"), 1, 2, 3, 4, {"weight": 0.5}, update.layout, update))
    assert shown == (
        f"PacketReply(peer='a', n=1, newest=2, round=3, k=4, scalars={{'weight': 0.5}}, layout={update.layout!r})"
    )


@each_kind
def test_each_kind_has_its_number_and_comes_back(message: Message) -> None:
    kinds = {kind.replace(" ", ""): number for kind, number in KINDS.items()}
    frames = encode(message)
    assert msgspec.msgpack.decode(frames[0][PREFIX.size :])[0] == kinds[type(message).__name__.lower()]
    back = decode(frames)
    assert back == message
    if isinstance(message, Bulk):
        assert isinstance(back, Bulk)
        assert back.payload == WEIGHTS


ONE_RUN, TWO_RUNS = (packed([Mark(Unit(0, 0, chunk), 0) for chunk in chunks])[0].runs for chunks in ((3,), (1, 2, 9)))
SERIES = (
    Series(0, 2, 1, False, TWO_RUNS),
    Series(0, 2, 1, True, ONE_RUN),
    Series(0, 3, 0, False, TWO_RUNS),
    Series(1, 0, 0, False, ONE_RUN),
)
"""In order; the runs of each begin below the end of those before it."""


def test_marks_of_several_lanes_come_back_from_a_table_that_the_header_announces() -> None:
    by_lane = {PeerId("q"): SERIES, PeerId("r"): SERIES[:1], PeerId("s"): SERIES[2:]}
    message = State(PeerId("p"), {PeerId("q"): 2}, 5, by_lane, WEIGHTS.layout, WEIGHTS, 3, 9)
    frames = encode(message)
    assert decode(frames) == message
    announced = decode_header(frames[0])
    assert isinstance(announced, State)
    assert announced.table[:2] == (7, 11)
    assert announced.marks == {}
    assert encode_header(announced) == frames[0]


@pytest.mark.parametrize("more", [0, 1])
def test_a_header_has_room_for_so_many_runs_and_a_table_has_the_others(more: int) -> None:
    message = Range(PeerId("p"), 1, 1, 5, irregular(HEADER_RUNS_MAX + more), WEIGHTS.layout, WEIGHTS)
    frames = encode(message)
    announced = decode_header(frames[0])
    assert isinstance(announced, Range)
    assert announced.table[:2] == ((1, HEADER_RUNS_MAX + 1) if more else (0, 0))
    assert encode_header(announced) == frames[0]
    assert decode(frames) == message


@dataclass(frozen=True)
class Elsewhere:
    """Arrays of which only stretches can be read that are there."""

    layout: Layout
    data: bytes

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.data)
        return self.data[start:stop]


@pytest.mark.parametrize("arrays", [WEIGHTS, LARGE], ids=["one block", "blocks"])
def test_arrays_that_are_not_in_memory_travel_with_their_marks(arrays: Packed) -> None:
    message = replace(RANGE, marks=irregular(HEADER_RUNS_MAX + 1), layout=arrays.layout)
    back = decode(encode(message, Elsewhere(arrays.layout, bytes(arrays.buffer))))
    assert back == replace(message, payload=arrays)
    assert isinstance(back, Range)
    assert back.payload is not None
    assert bytes(back.payload.buffer) == bytes(arrays.buffer)


def test_several_blocks_go_in_answer_to_another_pull() -> None:
    message = replace(RANGE, layout=LARGE.layout, payload=LARGE)
    assert encode_again(encode(message), 9) == encode(replace(message, k=9))


def test_a_header_as_long_as_may_be_is_made_and_read() -> None:
    layout = Layout(tuple(ArraySpec(f"{index:04}" + "\U0001f600" * 171, "|b1", (0,)) for index in range(ARRAYS_MAX)))
    message = Range(PeerId("p"), 1, 1, 1, (), layout)
    length = len(encode_header(message)) - PREFIX.size
    more = replace(message, peer=PeerId("n" * 256))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gossip.wire.HEADER_BYTES_MAX", length)
        assert decode_header(encode_header(message)) == message
        with pytest.raises(TooLargeError, match=f"header of .* bytes, at most {length}"):
            encode_header(more)
        with pytest.raises(WireError, match=f"at most {length}"):
            decode_header(PREFIX.pack(MAGIC, VERSION, length + 1, 0) + bytes(length + 1))


def test_as_many_lanes_and_arrays_as_may_be_come_back_and_one_more_is_not_sent() -> None:
    def lanes(count: int) -> dict[PeerId, int]:
        return {PeerId(f"{index:04}"): 1 for index in range(count)}

    def layout(count: int) -> Layout:
        return Layout(tuple(ArraySpec(f"{index:04}", "|b1", (0,)) for index in range(count)))

    def most(more: int) -> list[Message]:
        p, names = PeerId("p"), tuple(lanes(LANES_MAX + more))
        return [
            Advert(p, 1, lanes(LANES_MAX + more)),
            Offer(p, 1, lanes(LANES_MAX + more)),
            StateRequest(p, 1, lanes(LANES_MAX + more)),
            StateRequest(p, 1, {}, names),
            State(p, {}, 1, dict.fromkeys(names, MARKS)),
            State(p, {}, 1, {}, layout(ARRAYS_MAX + more)),
            Range(p, 1, 1, 1, (), layout(ARRAYS_MAX + more)),
            PacketReply(p, 1, 1, 1, 1, {}, layout(ARRAYS_MAX + more)),
        ]

    for message in most(0):
        again = decode_header(encode_header(message))
        assert encode_header(again) == encode_header(message)
    for message in most(1):
        with pytest.raises(
            TooLargeError,
            match=f"that nobody would take: Expected .* of length <= {LANES_MAX}|{ARRAYS_MAX}",
        ):
            encode_header(message)


@pytest.mark.parametrize(
    ("before", "each", "after"),
    [
        (b"\x97\x01\xa1p\x03\xdf", b"\xa1q\x01", b"\xc3\x05\x90"),
        (b"\x97\x01\xa1p\x03\x80\xc3\x05\xdd", b"\x94\xa1q\xa4dead\x02\xa1r", b""),
        (b"\x95\x05\xa1p\x05\x80\xdd", b"\xa1q", b""),
        (b"\x96\x0f\xa1p\x05\xdf", b"\xa1q\x01", b"\x90"),
        (b"\x9a\x03\xa1p\x03\x07\x05\xdd", b"\x95\x00\x00\x00\xc2\xc4\x00", b"\x91\x90\xc0\x93\x00\x00\x90\xc0"),
        (b"\x9a\x03\xa1p\x03\x07\x05\x90\x91\xdd", b"\x93\xa1w\xa3<f4\x90", b"\xc0\x93\x00\x00\x90\xc0"),
        (b"\x9a\x03\xa1p\x03\x07\x05\x90\x91\x90\xc0\x93\x01\x01\xdd", b"\xa1q", b"\xc0"),
        (b"\x9a\x06\xa1p\x80\x05\xdf", b"\xa1q\x90", b"\x91\x90\xc0\x00\x00\x93\x00\x00\x90"),
        (b"\x9a\x06\xa1p\xdf", b"\xa1q\x00", b"\x05\x80\x91\x90\xc0\x00\x00\x93\x00\x00\x90"),
    ],
    ids=["lanes", "rumors", "pinned", "waiting", "series", "arrays", "lanes of a table", "marks", "frontiers"],
)
def test_a_header_full_of_small_parts_is_refused_before_any_is_made(before: bytes, each: bytes, after: bytes) -> None:
    count = (HEADER_BYTES_MAX - len(before) - len(after) - 4) // len(each)
    for frame in (header(0, before + count.to_bytes(4, "big") + each * count + after),):
        tracemalloc.start()
        try:
            with pytest.raises(WireError, match="of length <="):
                decode_header(frame)
            assert tracemalloc.get_traced_memory()[1] < 1 << 18
        finally:
            tracemalloc.stop()


def test_no_more_peers_are_refused_in_one_message_than_may_be() -> None:
    names = [str(index) for index in range(REFUSED_MAX + 1)]
    decode_header(header(KINDS["advert"], ["p", 1, {}, True, 1, [], names[1:], 0.0]))
    with pytest.raises(WireError, match=f"of length <= {REFUSED_MAX}"):
        decode_header(header(KINDS["advert"], ["p", 1, {}, True, 1, [], names, 0.0]))


def test_what_is_wrong_with_a_header_is_told_in_few_words_of_its_own() -> None:
    with pytest.raises(WireError) as raised:
        decode_header(header(KINDS["advert"], ["p", 1, {}, True, 1, [["q", "x" * 100_000, 1, "r"]], [], 0.0]))
    assert "header is no message: Invalid enum value 'xxx" in str(raised.value)
    assert len(str(raised.value)) < 300


def test_scalars_as_many_and_as_large_as_may_be_come_back() -> None:
    largest = float(np.finfo(np.float64).max)
    for scalars in ({"low": -largest, "high": largest}, {str(number): number for number in range(SCALARS_MAX)}):
        message = PacketReply(PeerId("p"), 3, 4, 7, 5, scalars)
        back = decode_header(encode_header(message))
        assert isinstance(back, PacketReply)
        assert back.scalars == scalars


def test_a_layout_of_as_many_bytes_as_may_be_is_read_however_it_is_cut() -> None:
    for shape in ((PAYLOAD_BYTES_MAX,), (1, PAYLOAD_BYTES_MAX, 1), (PAYLOAD_BYTES_MAX // 2, 2), (PAYLOAD_BYTES_MAX, 0)):
        message = Range(PeerId("p"), 1, 1, 1, (), Layout((ArraySpec("w", "|i1", shape),)))
        assert decode_header(encode_header(message)) == message


def test_large_buffers_are_mappings_of_their_own() -> None:
    for nbytes in (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1):
        buffer = allocate(nbytes)
        assert bytes(buffer) == bytes(nbytes)
        assert isinstance(buffer, mmap.mmap) == (nbytes >= BLOCK_BYTES)


@given(messages)
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    back = decode(encode(message))
    assert back == message
    if isinstance(message, Bulk):
        assert isinstance(back, Bulk)
        assert back.payload is not None
        assert message.payload is not None
        assert bytes(back.payload.buffer) == bytes(message.payload.buffer)


def test_marks_of_neighboring_chunks_travel_as_runs() -> None:
    chunks = [Mark(Unit(1, 2, chunk), 0) for chunk in range(1000)]
    others = [Mark(Unit(1, 3, 1000), 0), Mark(Unit(1, 2, 1000), 1), Mark(Unit(1, 2, 7), 0, withdraws=True)]
    marks = packed([*others, *chunks])
    frame = encode_header(Range(PeerId("p"), 1, 1, 1, marks))
    back = decode_header(frame)
    assert isinstance(back, Range)
    assert back.marks == marks
    assert fields_of(frame)[4] == [
        [1, 2, 0, False, RUN.pack(0, 999, 1)],
        [1, 2, 0, True, RUN.pack(7, 7, 1)],
        [1, 2, 1, False, RUN.pack(1000, 1000, 1)],
        [1, 3, 0, False, RUN.pack(1000, 1000, 1)],
    ]


def irregular(count: int) -> tuple[Series, ...]:
    """Marks that are `count` runs of two each."""
    return packed([Mark(Unit(1, 2, number * number), 0) for number in range(2 * count)])


def test_many_marks_go_behind_the_arrays_and_few_in_the_header() -> None:
    for runs, blocks in ((HEADER_RUNS_MAX, 1), (HEADER_RUNS_MAX + 1, 1), (100_000, 3)):
        message = Range(PeerId("p"), 1, 1 << 40, 1, irregular(runs), WEIGHTS.layout, WEIGHTS)
        frames = encode(message)
        assert len(frames) == 1 + 2 * blocks
        assert len(frames[0]) < HEADER_RUNS_MAX * 40
        announced = decode_header(frames[0])
        assert isinstance(announced, Range)
        assert (announced.table.runs == 0) == (runs <= HEADER_RUNS_MAX)
        back = decode(frames)
        assert back == message
        assert isinstance(back, Range)
        assert back.payload is not None
        assert bytes(back.payload.buffer) == bytes(WEIGHTS.buffer)


def test_the_marks_of_a_replica_never_go_in_its_header() -> None:
    short = encode_header(State(PeerId("p"), {}, 1, {PeerId("q"): irregular(1)}))
    long = encode_header(State(PeerId("p"), {}, 1, {PeerId("q"): irregular(100_000)}))
    assert len(long) < len(short) + 20


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_payload_of_several_blocks_comes_back_from_any_kind_of_bytes(kind: Any) -> None:
    frames = [kind(frame) for frame in encode(replace(RANGE, payload=LARGE))]
    assert len(frames) == 1 + 2 * 3
    back = decode(frames)
    assert isinstance(back, Range)
    assert back.payload is not None
    np.testing.assert_array_equal(back.payload.arrays()["w"], LARGE.arrays()["w"])


def test_the_payload_given_is_the_one_that_travels() -> None:
    back = decode(encode(Range(PeerId("p"), 1, 1, 1), WEIGHTS))
    assert isinstance(back, Range)
    assert back.layout == WEIGHTS.layout
    assert back.payload is not None
    np.testing.assert_array_equal(back.payload.arrays()["w"], WEIGHTS.arrays()["w"])


@given(ranges(), st.integers(0, COUNT_MAX))
def test_a_range_for_another_pull_is_as_if_it_was_encoded_for_that(message: Range, k: int) -> None:
    again = encode_again(encode(message), k)
    assert [bytes(frame) for frame in again] == [bytes(frame) for frame in encode(replace(message, k=k))]


def test_a_bulk_message_without_arrays_has_no_blocks() -> None:
    frames = encode(Range(PeerId("p"), 1, 1, 1, payload=Packed.of({})))
    assert len(frames) == 1
    assert decode(frames) == Range(PeerId("p"), 1, 1, 1)


def test_the_largest_names_counts_and_shapes_come_back() -> None:
    name = "ü" * NAME_CHARACTERS_MAX
    layout = Layout((ArraySpec(name, "|i1", (1,) * DIMENSIONS_MAX),))
    message = Range(PeerId(name), COUNT_MAX, COUNT_MAX, COUNT_MAX, (), layout)
    assert decode_header(encode_header(message)) == message


# ---------------------------------------------------------------------------------------------------- damaged frames


@each_kind
def test_every_truncation_is_refused(message: Message) -> None:
    frames = encode(message)
    for position, frame in enumerate(frames):
        for length in range(len(frame)):
            refused([*frames[:position], bytes(frame)[:length], *frames[position + 1 :]])


@each_kind
def test_frames_that_are_missing_or_too_many_are_refused(message: Message) -> None:
    frames = encode(message)
    for count in range(len(frames)):
        refused(frames[:count])
    refused([*frames, b""])
    refused([*frames, *encode_block(5, 0, b"")])
    refused([*frames, *frames])


@each_kind
def test_every_flipped_bit_is_refused(message: Message) -> None:
    frames = [bytes(frame) for frame in encode(message)]
    for position, frame in enumerate(frames):
        for bit in range(8 * len(frame)):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            refused([*frames[:position], damaged, *frames[position + 1 :]])


def test_a_flipped_bit_in_a_large_block_is_refused() -> None:
    frames = [bytes(frame) for frame in encode(replace(RANGE, payload=LARGE))]
    generator = random.Random(1)
    for _ in range(20):
        position, bit = generator.choice([2, 4]), generator.randrange(8 * BLOCK_BYTES)
        damaged = bytearray(frames[position])
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError, match="does not match its checksum"):
            decode([*frames[:position], damaged, *frames[position + 1 :]])


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    refused(frames)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_a_block_of_random_bytes_is_refused(prefix: bytes, data: bytes) -> None:
    with pytest.raises(WireError):
        decode_block(prefix, data)


@given(st.sampled_from(sorted(KINDS.values())), st.binary(max_size=60))
def test_random_bytes_behind_a_right_checksum_are_refused(kind: int, data: bytes) -> None:
    refused([header(kind, data)])


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.integers(0, 9)
    | st.binary(max_size=5)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*DTYPES, 1 << 63, -1, 1.0, ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.integers(0, 15), plain_values | st.lists(plain_values, min_size=2, max_size=6))
def test_any_list_is_a_message_or_refused(kind: int, fields: Any) -> None:
    try:
        message = decode_header(header(kind, fields if isinstance(fields, list) else msgspec.msgpack.encode(fields)))
    except WireError:
        return
    assert decode_header(encode_header(message)) == message


GOOD: dict[str, list[Any]] = {
    "advert": ["p", 3, {"q": 2}, True, 4, [["q", "dead", 2, "r"]], ["r"], 2.5],
    "pull": ["p", 3, 5, "lane"],
    "range": ["p", 3, 7, 5, [[0, 2, 0, False, RUN.pack(1, 3, 1)]], [[["w", "<f4", [2, 3]]]], None, [0, 0, []], "lane"],
    "unknown": ["p", 3, 5, "lane"],
    "state request": ["p", 5, {"q": 2}, ["q", "r"]],
    "state": ["p", {"q": 2}, 5, {}, [[["w", "<f4", [2, 3]]]], None, 3, 9, [2, 5, ["q", "r"]]],
    "credit": ["p", 5, 8],
    "pin": ["p", "q", 5],
    "pinned": ["p", 5],
    "unpin": ["p", 5],
    "ping": ["p", 5, [["q", "dead", 2, "r"]]],
    "ping request": ["p", 5, "q"],
    "ack": ["p", 5, "q", [["q", "dead", 2, "r"]]],
    "nack": ["p", 5, "q"],
    "offer": ["p", 3, {"q": 2}, [["q", "dead", 2, "r"]]],
    "packet request": ["p", 3, 5],
    "packet reply": ["p", 3, 4, 7, 5, {"w": 0.5}, [[["w", "<f4", [2, 3]]]], None],
}

INVALID = msgspec.Raw(b"\xa1\xff")
"""A text that is none."""
BAD_COUNTS = [-1, True, False, 1.0, 1.5, 1 << 63, (1 << 64) - 1, None, "1", [1], {}]
BAD_NAMES = [None, "", 1, True, "x" * (NAME_CHARACTERS_MAX + 1), ["p"], {"p": 1}, b"p", INVALID]
BAD_FRONTIERS = [None, [], [["q", 2]], "q", 1, {"q": -1}, {"q": True}, {"q": 1.5}, {"q": None}, {"": 1}, {b"q": 1}]
BAD_SCALARS: list[Any] = [
    None,
    [],
    "w",
    1,
    {"w": None},
    {"w": True},
    {"w": "1"},
    {"w": float("nan")},
    {"w": float("inf")},
]
BAD_SCALARS += [
    {"w": float("inf")},
    {"w": -float("inf")},
    {b"w": 1.0},
    {str(number): 1.0 for number in range(SCALARS_MAX + 1)},
]
BAD_FLAGS = [None, 0, 1, 1.0, "true", [True], {}]
ONE = RUN.pack(1, 3, 1)
BAD_MARKS: list[Any] = [
    None,
    {},
    "m",
    [None],
    [[]],
    ["marks"],
    [[0, 2, 0, False]],
    [[0, 2, 0, False, b""]],
    [[0, 2, 0, False, ONE[:-1]]],
    [[0, 2, 0, False, ONE[:16]]],
    [[0, 2, 0, False, ONE + ONE[:8]]],
    [[0, 2, 0, False, [1, 3, 1]]],
    [[0, 2, 0, False, "m" * 24]],
    [[0, 2, 0, False, ONE, 0]],
    [[0, 2, 0, 0, ONE]],
    [[0, 2, 0, None, ONE]],
    [[-1, 2, 0, False, ONE]],
    [[0, 2.0, 0, False, ONE]],
    [[0, 2, True, False, ONE]],
    [[0, 2, 1 << 63, False, ONE]],
    [[0, 2, 0, False, RUN.pack(-1, 3, 1)]],
    [[0, 2, 0, False, RUN.pack(3, 1, 1)]],
    [[0, 2, 0, False, RUN.pack(1, 3, 0)]],
    [[0, 2, 0, False, RUN.pack(1, 3, -1)]],
    [[0, 2, 0, False, RUN.pack(1, 4, 2)]],
    [[0, 2, 0, False, RUN.pack(1, 1, 2)]],
    [[0, 2, 0, False, ONE + RUN.pack(3, 5, 1)]],
    [[0, 2, 0, False, ONE], [0, 2, 0, False, RUN.pack(5, 7, 1)]],
    [[0, 2, 1, False, ONE], [0, 2, 0, False, RUN.pack(5, 7, 1)]],
    [[0, 2, 0, False, ONE], [0]],
    [[0, 2, 0, False, b"".join(RUN.pack(chunk, chunk, 1) for chunk in range(HEADER_RUNS_MAX + 1))]],
]
BAD_TABLES: list[Any] = [
    None,
    {},
    "t",
    [],
    [2],
    [2, 5],
    [2, 0, []],
    [2, 5, [], 0],
    [-1, 5, []],
    [2, 5.0, []],
    [True, 5, []],
    [0, 5, []],
    [5, 2, []],
    [1, 1 << 62, []],
    [2, 5, None],
    [2, 5, "q"],
    [2, 5, ["q", "q"]],
    [2, 5, ["q", "r", "s"]],
]
BAD_PEERS = [None, {}, "q", 1, *([name] for name in BAD_NAMES)]
BAD_RUMORS = [
    None,
    {},
    "r",
    1,
    [None],
    [[]],
    ["rumor"],
    [["q", "dead", 2]],
    [["q", "dead", 2, "r", 0]],
    [["q", "gone", 2, "r"]],
    [["q", "DEAD", 2, "r"]],
    [["q", None, 2, "r"]],
    [["q", ["dead"], 2, "r"]],
    [["q", {}, 2, "r"]],
    *([[name, "dead", 2, "r"]] for name in BAD_NAMES),
    *([["q", "dead", count, "r"]] for count in BAD_COUNTS),
    *([["q", "dead", 2, name]] for name in BAD_NAMES),
    [["q", "dead", 2, "r"], ["q"]],
]
BAD_ARRAYS: list[Any] = [
    None,
    "w",
    [],
    ["w"],
    ["w", "<f4"],
    ["w", "<f4", [2], 0],
    [["w"], "<f4", []],
    [1, "<f4", []],
    ["w" * (NAME_CHARACTERS_MAX + 1), "<f4", []],
    [INVALID, "<f4", []],
    ["w", "O", [2]],
    ["w", ">f4", [2]],
    ["w", "<c8", [2]],
    ["w", "<U9", [2]],
    ["w", "<M8[s]", [2]],
    ["w", "|V64", [2]],
    ["w", "f4,f4", [2]],
    ["w", 4, [2]],
    ["w", ["<f4"], [2]],
    ["w", "<f4", 2],
    ["w", "<f4", [-1]],
    ["w", "<f4", [True]],
    ["w", "<f4", [2.5]],
    ["w", "<f4", [[2]]],
    ["w", "<f4", [None]],
    ["w", "<f4", [1] * (DIMENSIONS_MAX + 1)],
    ["w", "<f4", [1 << 63]],
    ["w", "<f4", [(1 << 64) - 1]],
    ["w", "<f4", [1 << 62, 1 << 62]],
    ["w", "<f4", [1 << 62, 0]],
    ["w", "|i1", [PAYLOAD_BYTES_MAX + 1]],
]
BAD_LAYOUTS: list[Any] = [
    None,
    {},
    "w",
    [],
    [None],
    [[], []],
    *([[each]] for each in BAD_ARRAYS),
    [[["w", "<f4", [2]], ["w", "<f8", [2]]]],
    [[["v", "|i1", [PAYLOAD_BYTES_MAX]], ["w", "|i1", [1]]]],
]


def bad_instead_of(value: Any) -> list[Any]:
    """What may not stand in the place of a good field."""
    match value:
        case "lane":
            return [name for name in BAD_NAMES if name is not None]
        case str():
            return BAD_NAMES
        case bool():
            return BAD_FLAGS
        case int():
            return BAD_COUNTS
        case None:
            return [0, "", [], {}, b"x", ["w"]]
        case {"q": int()}:
            return BAD_FRONTIERS
        case {"w": float()}:
            return BAD_SCALARS
        case {}:
            return [None, [], {"q": GOOD["range"][4]}]
    return bad_list(value)


def bad_list(value: list[Any]) -> list[Any]:
    match value:
        case [int(), int(), list() as lanes]:
            return [*BAD_TABLES, *([2, 5, other] for other in BAD_PEERS), *([] if lanes else [[2, 5, ["q"]]])]
        case [[int(), *_]]:
            return BAD_MARKS
        case [[_, "dead", *_]]:
            return BAD_RUMORS
        case [str(), *_]:
            return BAD_PEERS
        case _:
            return BAD_LAYOUTS


def bad_fields() -> Iterator[tuple[str, list[Any]]]:
    for kind, good in GOOD.items():
        for position, value in enumerate(good):
            for other in bad_instead_of(value):
                yield kind, [*good[:position], other, *good[position + 1 :]]


@pytest.mark.parametrize("kind", GOOD)
def test_the_good_fields_are_a_message(kind: str) -> None:
    message = decode_header(header(KINDS[kind], GOOD[kind]))
    assert type(message).__name__.lower() == kind.replace(" ", "")


def test_a_field_of_a_wrong_type_or_size_is_refused() -> None:
    passed = []
    for kind, fields in bad_fields():
        try:
            passed.append((kind, fields, decode_header(header(KINDS[kind], fields))))
        except WireError:
            pass
    assert passed == []


@pytest.mark.parametrize("kind", GOOD)
def test_fields_that_are_missing_or_too_many_are_refused(kind: str) -> None:
    for fields in (GOOD[kind][:-1], [*GOOD[kind], 1], []):
        refused([header(KINDS[kind], fields)])
    for other in (KINDS[kind], {"fields": GOOD[kind]}, [[KINDS[kind], *GOOD[kind]]]):
        refused([header(KINDS[kind], msgspec.msgpack.encode(other))])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"\x94",
        msgspec.msgpack.encode([2, "p", 3, 5, None])[:-1],
        msgspec.msgpack.encode([2, "p", 3, 5, None]) + b"\x00",
        b"\xdc\x00\x05" + msgspec.msgpack.encode([2, "p", 3, 5, None])[1:],
        b'[2,"p",3,5,null]',
        b"\x95\x02\xa1\xff\x03\x05\xc0",
        b"\x95\x02\xa1p\xc1\x05\xc0",
        b"\xc0",
        msgspec.msgpack.encode([2, "p", 3, msgspec.msgpack.Ext(5, b"5"), None]),
        msgspec.msgpack.encode(["2", "p", 3, 5, None]),
        msgspec.msgpack.encode([2.0, "p", 3, 5, None]),
        msgspec.msgpack.encode([-2, "p", 3, 5, None]),
        msgspec.msgpack.encode([258, "p", 3, 5, None]),
    ],
)
def test_a_header_that_is_no_list_of_the_right_kind_is_refused(data: bytes) -> None:
    refused([header(KINDS["pull"], data)])


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a", b"\x95\x02\xa1p\x91"])
def test_deep_nesting_is_refused_quickly(opening: bytes) -> None:
    begin = time.process_time()
    for kind in KINDS.values():
        refused([header(kind, opening * (HEADER_BYTES_MAX // len(opening)))])
        refused([header(kind, bytes([0x98, kind]) + opening * (HEADER_BYTES_MAX // len(opening) - 1))])
    assert time.process_time() - begin < 5


def test_deep_nesting_that_is_closed_is_refused() -> None:
    for depth in (10, 900, 100_000):
        before = msgspec.msgpack.encode([3, "p", 3, 7, 5, []])[1:]
        after = msgspec.msgpack.encode([None, [0, 0, []], None])[1:]
        refused([header(KINDS["range"], b"\x9a" + before + b"\x91" * depth + b"\x90" + after)])


@pytest.mark.parametrize(("lo", "hi"), [(0, 0), (0, 5), (2, 1)])
def test_an_empty_range_is_refused(lo: int, hi: int) -> None:
    refused([header(KINDS["range"], ["p", lo, hi, 1, [], [[]], None, [0, 0, []], None])])


def test_another_kind_version_or_beginning_is_refused() -> None:
    for kind in set(range(-40, 300)) - set(KINDS.values()):
        refused([header(kind, GOOD["pull"])])
    refused([header(KINDS["pull"], GOOD["pull"], version=VERSION + 1)])
    refused([header(KINDS["pull"], GOOD["pull"], magic=b"GS")])


# ------------------------------------------------------------------------------------------------------------ claims


@pytest.mark.parametrize(
    "layout",
    [
        [[["w", "|i1", [1 << 31]]]],
        [[["w", "<f8", [1 << 28]]]],
        [[["w", "|i1", [PAYLOAD_BYTES_MAX]]]],
        [[["v", "|i1", [1 << 30]], ["w", "|i1", [1 << 30]]]],
    ],
)
@pytest.mark.parametrize("kind", ["range", "state", "packet reply"])
def test_a_claim_of_gigabytes_without_data_allocates_nothing(kind: str, layout: list[Any]) -> None:
    fields = [layout if field == [[["w", "<f4", [2, 3]]]] else field for field in GOOD[kind]]
    frame = header(KINDS[kind], fields)
    tracemalloc.start()
    try:
        with little_memory():
            refused([frame])
            refused([frame, *encode_block(5, 0, b"x")])
            assert isinstance(decode_header(frame), Bulk)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["range", "state"])
def test_a_claim_of_many_marks_without_data_allocates_nothing(kind: str) -> None:
    fields = {
        "range": ["p", 3, 7, 5, [], [[]], None, [2, 50_000_000, []], None],
        "state": ["p", {"q": 2}, 5, {}, [[]], None, 3, 9, [2, 50_000_000, ["q", "r"]]],
    }
    frame = header(KINDS[kind], fields[kind])
    tracemalloc.start()
    try:
        refused([frame])
        refused([frame, *encode_block(5, 0, b"x")])
        assert isinstance(decode_header(frame), Bulk)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("last", [1 << 20, 1 << 62])
def test_a_run_of_any_length_is_read_and_known_without_being_written_out(last: int) -> None:
    frame = header(
        KINDS["range"], ["p", 1, 1, 1, [[0, 2, 0, False, RUN.pack(0, last, 1)]], [[]], None, [0, 0, []], None]
    )
    tracemalloc.start()
    try:
        begin = time.process_time()
        message = decode_header(frame)
        assert isinstance(message, Range)
        known = Identities()
        known.note(message.peer, message.marks)
        assert known.toil(PeerId("q"), message.marks) == last + 1
        assert known.units == last + 1
        assert time.process_time() - begin < 0.5
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


HEAD, RUNS = [0, 1, 2, 3, 0, 2], [1, 3, 1, 5, 9, 2]
"""A series of two runs, as in a table."""


def with_table(head: list[int], runs: list[int], series: int = 1, count: int = 2) -> list[Bytes]:
    """A state with this table."""
    fields = ["p", {}, 5, {}, [[]], None, 0, 0, [series, count, ["q"]]]
    return [header(KINDS["state"], fields), *encode_block(5, 0, np.array(head + runs, "<i8").tobytes())]


def test_a_table_is_read_as_it_was_written() -> None:
    back = decode(with_table(HEAD, RUNS))
    assert isinstance(back, State)
    (series,) = back.marks[PeerId("q")]
    assert series[:4] == (1, 2, 3, False)
    assert list(Chunks(series.runs)) == [1, 2, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("head", "runs", "series"),
    [
        ([1, *HEAD[1:]], RUNS, 1),
        ([0, -1, *HEAD[2:]], RUNS, 1),
        ([*HEAD[:4], 2, 2], RUNS, 1),
        ([*HEAD[:5], 1], RUNS, 1),
        ([*HEAD[:5], 3], RUNS, 1),
        ([*HEAD[:5], 0], RUNS, 1),
        (HEAD, [1, 3, 1, 3, 9, 2], 1),
        (HEAD, [1, 3, 1, 5, 8, 2], 1),
        (HEAD, [1, 3, 0, 5, 9, 2], 1),
        (HEAD, [1, 1, 2, 5, 9, 2], 1),
        (HEAD, [3, 1, 1, 5, 9, 2], 1),
        (HEAD, [-1, 3, 1, 5, 9, 2], 1),
        ([*HEAD[:5], 1, *HEAD[:5], 1], RUNS, 2),
        ([0, 1, 3, 3, 0, 1, 0, 1, 2, 4, 1, 1], RUNS, 2),
        ([*HEAD[:5], 2, *HEAD[:4], 1, 0], RUNS, 2),
        ([*HEAD[:5], 1, *HEAD[:5], 2], [*RUNS, 20, 29, 1], 2),
        ([*HEAD[:5], 3], [*RUNS, 8, 8, 1], 1),
        ([*HEAD[:5], 1, *HEAD[:4], 1, 2], [*RUNS, 9, 9, 1], 2),
        ([*HEAD[:5], 2, *HEAD[:4], 1, 1], [5, 9, 2, 8, 9, 1, 1, 1, 1], 2),
        ([0, 1, 3, 3, 0, 1, 0, 3, 0, 0, 0, 1, 0, 2, 0, 0, 0, 1], [*RUNS, 1, 1, 1], 3),
    ],
)
def test_a_table_that_is_not_one_is_refused(head: list[int], runs: list[int], series: int) -> None:
    with pytest.raises(WireError):
        decode(with_table(head, runs, series, len(runs) // 3))


@given(
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=6, max_size=6),
    st.lists(st.integers(-2, 9), min_size=6, max_size=6),
)
def test_a_table_of_any_numbers_is_marks_or_refused(head: list[int], runs: list[int]) -> None:
    for first in (head, [0, *(number % 4 for number in head[1:4]), head[4] % 2, 2]):
        try:
            back = decode(with_table(first, runs))
        except WireError:
            continue
        assert decode(encode(back)) == back


def test_a_header_that_outgrows_its_limit_is_not_made() -> None:
    lanes = {PeerId(f"{index:032}"): 1 << 40 for index in range(100_000)}
    with pytest.raises(TooLargeError, match="header of"):
        encode_header(Advert(PeerId("p"), 1, lanes))


def test_only_layouts_of_some_size_are_kept() -> None:
    long = LAYOUT_CACHED_CHARACTERS_MAX // 256
    for arrays, characters, kept in (
        (LAYOUT_CACHED_MAX, 4, True),
        (LAYOUT_CACHED_MAX + 1, 4, False),
        (long, 256, True),
        (long + 1, 256, False),
    ):
        layout = [[[f"{index:0{characters}}", "|b1", [0]] for index in range(arrays)]]
        frame = header(KINDS["range"], ["p", 1, 1, 1, [], layout, None, [0, 0, []], None])
        one, two = decode_header(frame), decode_header(frame)
        assert isinstance(one, Range)
        assert isinstance(two, Range)
        assert (one.layout is two.layout) == kept
        assert one.layout == two.layout
        assert len(one.layout.specs) == arrays


def test_a_claim_with_blocks_too_small_for_it_is_refused() -> None:
    frame = encode_header(replace(RANGE, layout=Layout((ArraySpec("w", "|i1", (4 * BLOCK_BYTES,)),))))
    refused([frame, *(part for index in range(4) for part in encode_block(5, index, b""))])


def test_a_header_that_claims_another_length_is_refused() -> None:
    frame = encode_header(SAMPLES[1])
    for claim in (0, len(frame) - PREFIX.size - 1, len(frame) - PREFIX.size + 1, HEADER_BYTES_MAX, 2**32 - 1):
        refused([frame[:3] + claim.to_bytes(4, "big") + frame[7:]])


def test_a_header_or_block_beyond_the_limit_is_refused_even_if_well_formed() -> None:
    refused(
        [
            header(
                KINDS["advert"], ["p", 1, {f"{index:08}": 1 for index in range(HEADER_BYTES_MAX // 9)}, True, 1, [], []]
            )
        ]
    )
    data = bytes(BLOCK_BYTES + 1)
    with pytest.raises(WireError, match=f"block of {BLOCK_BYTES + 1} bytes, at most {BLOCK_BYTES}"):
        decode_block(BLOCK_PREFIX.pack(1, 0, checksum(data)), data)


def test_a_header_full_of_arrays_or_lanes_is_read_in_a_moment() -> None:
    begin = time.process_time()
    layout = [[[str(index), "|b1", [0]] for index in range(ARRAYS_MAX)]]
    message = decode_header(header(KINDS["range"], ["p", 1, 1, 1, [], layout, None, [0, 0, []], None]))
    assert isinstance(message, Range)
    assert message.layout.nbytes == 0
    lanes = {str(index): index for index in range(LANES_MAX)}
    decode_header(header(KINDS["advert"], ["p", 1, lanes, True, 1, [], [], 0.0]))
    assert time.process_time() - begin < 5


# ---------------------------------------------------------------------------------------------------------- assembly


def blocks_of(message: Bulk) -> list[Block]:
    frames = encode(message)
    return [decode_block(*pair) for pair in zip(frames[1::2], frames[2::2], strict=True)]


LARGE_RANGE = replace(RANGE, layout=LARGE.layout, payload=LARGE)


@given(st.lists(st.integers(0, 2), max_size=3), st.permutations(range(3)))
def test_blocks_come_in_any_order_and_more_than_once(before: list[int], order: list[int]) -> None:
    blocks = blocks_of(LARGE_RANGE)
    assembly = Assembly(LARGE_RANGE)
    seen = set()
    for index in before + order:
        assembly.add(blocks[index])
        seen.add(index)
        assert assembly.complete == (len(seen) == 3)
    payload = assembly.finish().payload
    assert payload is not None
    assert payload.read(0, LARGE.layout.nbytes) == LARGE.buffer


def test_a_block_that_comes_twice_changes_nothing() -> None:
    assembly = Assembly(RANGE)
    (block,) = blocks_of(RANGE)
    assembly.add(block)
    assembly.add(Block(block.k, block.index, bytes(len(block.data))))
    assert bytes(assembly.buffer) == bytes(WEIGHTS.buffer)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(6, 0, bytes(BLOCK_BYTES)), "block of message 6, expected 5"),
        (Block(5, 3, bytes(BLOCK_BYTES)), "block 3 of 3"),
        (Block(5, 2**32 - 1, b""), "block 4294967295 of 3"),
        (Block(5, 0, bytes(BLOCK_BYTES - 1)), f"block 0 has {BLOCK_BYTES - 1} bytes, expected {BLOCK_BYTES}"),
        (Block(5, 2, bytes(BLOCK_BYTES)), f"block 2 has {BLOCK_BYTES} bytes, expected 8000"),
        (Block(5, 1, b""), f"block 1 has 0 bytes, expected {BLOCK_BYTES}"),
    ],
)
def test_a_block_that_does_not_belong_here_is_refused_and_changes_nothing(block: Block, message: str) -> None:
    assembly = Assembly(LARGE_RANGE)
    with pytest.raises(WireError) as raised:
        assembly.add(block)
    assert str(raised.value) == message
    assert bytes(assembly.buffer) == bytes(LARGE.layout.nbytes)
    for good in blocks_of(LARGE_RANGE):
        assembly.add(good)
    assert assembly.complete


def test_an_unfinished_assembly_tells_what_is_missing() -> None:
    assembly = Assembly(LARGE_RANGE)
    assembly.add(blocks_of(LARGE_RANGE)[1])
    with pytest.raises(WireError, match="2 of 3 blocks are missing"):
        assembly.finish()


def test_an_assembly_writes_into_the_buffer_it_is_given() -> None:
    buffer = bytearray(b"\xff" * WEIGHTS.layout.nbytes)
    assembly = Assembly(RANGE, buffer)
    assembly.add(blocks_of(RANGE)[0])
    assert assembly.finish().payload == Packed(WEIGHTS.layout, buffer)
    assert buffer == WEIGHTS.buffer


@given(st.integers(0, 3 * BLOCK_BYTES))
def test_the_spans_of_blocks_join_up(elements: int) -> None:
    layout = Layout((ArraySpec("w", "|i1", (elements,)),))
    end = 0
    for index in range(block_count(layout.nbytes)):
        start, stop = block_span(layout.nbytes, index)
        assert start == end
        assert 0 < stop - start <= BLOCK_BYTES
        end = stop
    assert end == layout.nbytes
