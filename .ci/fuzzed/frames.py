"""What is decoded, and honest messages of every kind: each decoder takes bytes, and may raise one sort of error."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from fuzzed import mutations

from gossip import messages as gossip
from gossip import wire
from gossip.arrays import ArraySpec, Layout, Packed
from gossip.errors import UsageError, WireError
from gossip.marks import Counted, Mark, Series, Unit
from gossip.marks import packed as packed_marks
from gossip.messages import PeerId, Rumor, Standing
from gossip.zmq import same_host
from p2p.agent import registrar_messages as registrar
from p2p.agent import requests
from p2p.lbfgs import messages as lbfgs
from p2p.server import messages as server
from p2p.standby import entries
from p2p.standby import messages as standby

P, Q, R = map(PeerId, "pqr")


@dataclass(frozen=True)
class Decoder:
    """One of them, as it is tried."""

    name: str
    decode: Callable[[bytes], Any]
    errors: tuple[type[BaseException], ...]
    """What may come of bytes that are no message."""
    samples: Sequence[bytes]
    change: mutations.Change


WEIGHTS = Packed.of({"b": np.arange(3, dtype=np.float32), "w": np.arange(40.0).reshape(4, 10)})
MARKS = packed_marks([Mark(Unit(0, 2, 1), 0), Mark(Unit(0, 2, 1), 1, withdraws=True)])
MANY = packed_marks([Mark(Unit(0, 3, number * number), 0) for number in range(20)])
LOTS = packed_marks([Mark(Unit(1, 2, number * number), 0) for number in range(2 * wire.HEADER_RUNS_MAX + 3)])
RUMORS = (Rumor(Q, Standing.DEAD, 2, R), Rumor(R, Standing.SUSPECTED, 1, Q))
LAYOUT = WEIGHTS.layout
HEADERS: Sequence[gossip.Message] = [
    gossip.Advert(P, 3, {Q: 2, R: 1}, True, 5, RUMORS, (Q, R), 1.5),
    gossip.Pull(P, 3, 5, Q),
    gossip.Range(P, 3, 7, 5, MARKS, LAYOUT, WEIGHTS),
    gossip.Range(P, 3, 70, 5, MANY, Layout((ArraySpec("w[rows]", "<i4", (2,)), ArraySpec("w[values]", "<f4", (2, 3))))),
    gossip.Range(P, 3, 7000, 5, LOTS, LAYOUT, WEIGHTS),
    gossip.Unknown(P, 3, 5, Q),
    gossip.StateRequest(P, 5, {Q: 2}, (Q, R)),
    gossip.State(P, {Q: 2}, 5, {Q: MARKS, R: MANY}, LAYOUT, WEIGHTS, 3, 9),
    gossip.Credit(P, 5, 8),
    gossip.Here(P),
    gossip.Pin(P, Q, 5),
    gossip.Pinned(P, 5),
    gossip.Unpin(P, 5),
    gossip.Ping(P, 5, RUMORS),
    gossip.PingRequest(P, 5, Q),
    gossip.Ack(P, 5, Q, RUMORS),
    gossip.Nack(P, 5, Q),
    gossip.Offer(P, 3, {Q: 2}, RUMORS),
    gossip.PacketRequest(P, 3, 5),
    gossip.PacketReply(P, 3, 4, 7, 5, {"w": 0.1, "n": 3}, LAYOUT, WEIGHTS),
]


def framed(header: bytes) -> bytes:
    """As frame 0 of a message of gossip, its checksum right."""
    return wire.PREFIX.pack(wire.MAGIC, wire.VERSION, len(header), zlib.crc32(header)) + header


def _header(header: bytes) -> Any:
    return wire.decode_header(framed(header))


LENGTH = struct.Struct("!I")


def _whole(data: bytes) -> Any:
    """4 bytes: length of the header | header | body, which is cut into blocks."""
    length = LENGTH.unpack_from(data)[0] % (1 << 22) if len(data) >= LENGTH.size else 0
    header, body = data[4 : 4 + length], data[4 + length :]
    frames: list[Any] = [framed(header)]
    for index in range(wire.block_count(len(body))):
        frames += wire.encode_block(5, index, body[slice(*wire.block_span(len(body), index))])
    return wire.decode(frames)


def _wholes() -> list[bytes]:
    found = []
    for message in HEADERS:
        if isinstance(message, gossip.Bulk) and message.payload is not None:
            header, *blocks = wire.encode(message)
            header = bytes(header)[wire.PREFIX.size :]
            found.append(LENGTH.pack(len(header)) + header + b"".join(map(bytes, blocks[1::2])))
    return found


def _change_whole(chance: random.Random, data: bytes) -> bytes:
    """Mostly numbers of the table behind the arrays."""
    cut = 4 + LENGTH.unpack_from(data)[0] if len(data) >= 4 else 0
    body = bytearray(data[cut:])
    if len(body) < 8 or chance.random() < 0.1:
        return mutations.scribbled(chance, data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = 8 * chance.randrange(len(body) // 8)
        body[at : at + 8] = struct.pack("<Q", int(chance.choice(mutations.NUMBERS)) % (1 << 64))
    return data[:cut] + bytes(body)


def _link(data: bytes) -> Any:
    return same_host._packet(data, list(range(data[0] % 5))) if data else None


def _links() -> list[bytes]:
    frame = wire.encode_header(HEADERS[2])
    return [
        b"\0" + wire.encode_header(HEADERS[0]),
        b"\1" + same_host.PLACE.pack(0, 0) + frame,
        b"\2" + same_host.PLACE.pack(64, 0) + same_host.PLACE.pack(0, len(frame)) + frame + frame,
    ]


SERIES = (Series(0, 2, 0, False, struct.pack("3q", 0, 9, 1)),)
REGISTRAR_AGENT = [
    registrar.Hello(
        peer=P, run="r", role="peer", name="h:1", pid=3, adverts="tcp://127.0.0.1:1", pulls="tcp://127.0.0.1:2"
    ),
    registrar.Status(
        peer=P,
        figures=registrar.Figures(
            departed=[Q],
            lanes=registrar.LaneFigures(frontiers={"q": 3}),
            mixing=registrar.MixFigures(edges={"q": 3}, sketch=[0.5] * registrar.BUCKETS, trouble="no"),
        ),
    ),
    registrar.Drained(peer=P, missing=["q"], staleness=[1, 2, 3], torn=[(0, 1)]),
    registrar.Warned(peer=P, text="something"),
]
LISTED = registrar.Listed(
    pid=1,
    key="k" * 40,
    peer=Q,
    role="observer",
    name="h:2",
    adverts="tcp://h:1",
    pulls="tcp://h:2",
    level=True,
    answers=True,
)
REGISTRAR = [
    registrar.Roster(version=3, members=[LISTED, LISTED]),
    registrar.Refused(why="no"),
    registrar.Question(number=3),
    registrar.Begin(era=1, idle=[P], wait_s=3.5),
    registrar.Settle(era=1, rounds=3),
    registrar.Drain(timeout_s=3.0, epochs=2),
    registrar.Stop(),
]
TASK = [
    requests.Hello(),
    requests.Loaded(Counted(1, 20, SERIES)),
    requests.Counts(),
    requests.Publish(layout=LAYOUT, merged_at=3, unit=Unit(0, 1, 2), attempt=1),
    requests.Publish(layout=LAYOUT, merged_at=3, staleness=2, lent=True, left=requests.Remainder(True, LAYOUT)),
    requests.Knows(Unit(0, 1, 2)),
    requests.Furthest(0, 1),
    requests.Begins(),
    requests.Ends(),
]
AGENT = [
    requests.Welcome(layout=LAYOUT, peer=P, name="h:1", pid=3, mixes=False),
    requests.Done(),
    requests.Published(True),
    requests.Known(True),
    requests.Reached(-1),
    requests.Counting(Counted(1, 20, SERIES)),
    requests.Refused("no"),
]
UNIT = Unit(0, 1, 2)
BEGIN = server.Begin(UNIT, 1, 2, True)
WORKER = [
    server.Hello("run", "h:1"),
    BEGIN,
    server.Read(0, 100),
    server.Push(unit=UNIT, also=(UNIT,), bad=1, version=3, layout=LAYOUT, place=server.Place(1, 2, 3), then=BEGIN),
    server.Part(),
    server.Knows(UNIT),
    server.Dropped(UNIT, (UNIT,), 2),
    server.Which((UNIT, UNIT)),
    server.Furthest(0, 1),
    server.Ended(0, 1),
    server.Leaves(1),
    server.Where(),
]
MASTER = [
    server.Welcome(server.Place(1, 2, 3), b"token"),
    server.Ready(version=1, attributes=2, layout=LAYOUT, place=server.Place(1, 2, 3)),
    server.Piece(),
    server.Send(),
    server.Applied(True, True),
    server.Known(True),
    server.Those((UNIT,)),
    server.Reached(-1),
    server.Moved("tcp://127.0.0.1:1"),
    server.Again(),
    server.Refused("no"),
]
LOG = standby.Log(3, (1, 1, 2), 4)
PLACE = standby.Place("tcp://a:1", "tcp://a:2")
MEMBER = [
    standby.Prepare(view=1, number=2, tag=3, committed=4),
    standby.Prepared(view=1, number=2),
    standby.Committed(view=1, number=2, last=3),
    standby.Silent(view=1),
    standby.Suspect(view=1),
    standby.Report(view=1, normal_view=1, log=LOG),
    standby.Lead(view=1, log=LOG),
    standby.Fetch(view=1, numbers=(1, 2, 3)),
    standby.Entry(view=1, number=2, tag=3),
    standby.Copy(view=1, number=2),
    standby.Recover(view=1, nonce=3, place=PLACE),
    standby.Recovered(view=1, nonce=3, log=LOG),
    standby.Here(place=PLACE, pid=3),
    standby.Open(training=1, places=(PLACE, PLACE), recover=False),
    standby.Opened(training=1, trouble="no"),
    standby.Shut(),
    standby.Offer(),
    standby.Leave(),
]
HELD = [
    entries.Update(unit=UNIT, also=(UNIT,), bad=1, version=2, worker="h:1", layout=LAYOUT),
    entries.NoNumber(units=(UNIT,), bad=1),
    entries.Fed(offer="a", worker="h", version=None, checked=True, unit=b"parcel", layout=LAYOUT),
    entries.Mark(offer="a"),
]
LBFGS = [
    lbfgs.Here(1, "ipc://a"),
    lbfgs.Begin("<f8", 100, 5, 0.1, 0),
    lbfgs.Write(0, 100),
    lbfgs.Accepted(1, [[1.0, 2.0], [3.0]], 2.0),
    lbfgs.Direct([1.0, 2.0], True),
    lbfgs.Read(1, 0, 10),
    lbfgs.Placement(["ipc://a"], [(0, 10)]),
    lbfgs.Compute(1, 0, 1, 2, 3),
    lbfgs.Computed(1, 2, 3, 4, 0.5, 10, 10, True, 1, 2, 3),
    lbfgs.Fetch(1),
    lbfgs.Push(1, 2, 3, 4),
    lbfgs.Numbers(1, 0, None),
]


def _msgpack(
    name: str, decode: Callable[[bytes], Any], samples: Sequence[bytes], error: type[BaseException] = WireError
) -> Decoder:
    change = mutations.of(mutations.packed, msgspec.msgpack.decode, samples)
    return Decoder(name, decode, (error,), samples, change)


def _json(name: str, decode: Callable[[bytes], Any], samples: Sequence[bytes]) -> Decoder:
    return Decoder(name, decode, (UsageError,), samples, mutations.of(mutations.written, json.loads, samples))


def decoders() -> list[Decoder]:
    """All of them."""
    pack = msgspec.msgpack.encode
    headers = [wire.encode_header(message)[wire.PREFIX.size :] for message in HEADERS]
    packed_entries = [entries.packed(head, b"arrays" * 3) for head in HELD]
    return [
        _msgpack("header", _header, headers),
        Decoder("whole", _whole, (WireError,), _wholes(), _change_whole),
        Decoder("link", _link, (WireError,), _links(), mutations.scribbled),
        _msgpack("from-agent", lambda data: registrar.from_agent([data]), [*map(registrar.encode, REGISTRAR_AGENT)]),
        _msgpack("from-registrar", lambda data: registrar.from_registrar([data]), [*map(registrar.encode, REGISTRAR)]),
        _json("request", requests.decode_request, [*map(msgspec.json.encode, TASK)]),
        _json("answer", requests.decode_answer, [*map(msgspec.json.encode, AGENT)]),
        _msgpack("to-master", server.decode_request, [*map(pack, WORKER)]),
        _msgpack("from-master", server.decode_answer, [*map(pack, MASTER)]),
        _msgpack("standby", standby.decode, [*map(pack, MEMBER)]),
        Decoder("entry", entries.unpacked, (WireError,), packed_entries, mutations.scribbled),
        _msgpack("lbfgs", lbfgs.decode, [*map(pack, LBFGS)]),
    ]
