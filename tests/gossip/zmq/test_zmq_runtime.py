"""Real sockets on loopback, all in this process: what strangers send, who reads slowly, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from gossip.arrays import Arrays, Bytes, Layout, Packed
from gossip.errors import UsageError
from gossip.events import Computed, Effect, Event, Joined
from gossip.lanes.peer import Peer, Settings
from gossip.membership import Detection
from gossip.messages import Ack, Advert, Credit, Here, PeerId, Pin, Ping, Pull, Range, State, StateRequest, Unknown
from gossip.trust import offences
from gossip.wire import (
    BLOCK_BYTES,
    BLOCK_PREFIX,
    MAGIC,
    PREFIX,
    VERSION,
    checksum,
    decode_block,
    decode_header,
    encode,
    encode_block,
    encode_header,
)
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import WINDOW_BLOCKS, Endpoints, Keys, fingerprint

pytestmark = pytest.mark.sockets

ROGUE = PeerId("rogue")
UPDATE = {"w": np.ones(3)}
ANSWERING = Settings(
    advert_period_s=0.05, advert_gap_s=0.002, detection=Detection(silent_s=1e9, unheard_s=1e9, greeting_s=1e9)
)
"""Such a peer answers pings, and misses nobody."""


def large(blocks: int) -> Arrays:
    """An update of so many blocks."""
    return {"w": np.arange(blocks * BLOCK_BYTES // 8)}


def header(kind: int, fields: Any) -> bytes:
    data = msgspec.msgpack.encode([kind, *fields])
    return PREFIX.pack(MAGIC, VERSION, len(data), zlib.crc32(data)) + data


def hear(swarm: Any, rogue: zmq.Socket[bytes]) -> list[bytes]:
    assert swarm.turn(lambda: rogue.poll(0))
    return rogue.recv_multipart()


def received(swarm: Any, rogue: zmq.Socket[bytes], count: int) -> list[list[bytes]]:
    """So many messages, and whatever else comes before the answer to a ping that is sent after them."""
    messages = [hear(swarm, rogue) for _ in range(count)]
    rogue.send(encode_header(Ping(ROGUE, 1)))
    while len(another := hear(swarm, rogue)) > 1 or not isinstance(decode_header(another[0]), Ack):
        messages.append(another)
    return messages


JUNK = [
    b"",
    b"x",
    b"GET / HTTP/1.1\r\n\r\n",
    bytes(1000),
    random.Random(1).randbytes(200),
    encode_header(Pull(ROGUE, 0, 1))[:-1],
    encode_header(Pull(ROGUE, 0, 1)) + b"x",
    header(2, ["rogue", -1, 1, None]),
    header(2, ["rogue", True, 1, None]),
    header(2, [["rogue"], 0, 1, None]),
    header(2, [msgspec.Raw(b"\xa1\xff"), 0, 1, None]),
    header(9, ["rogue", 0, 1]),
    header(3, ["rogue", 1, 1, 1, [], [[["w", "|i1", [1 << 62]]]], None, [0, 0, []], None]),
    header(3, ["rogue", 1, 1, 1, [], [[["w", "O", [1]]]], None, [0, 0, []], None]),
    b"gs\x06\x02" + b"\xff" * 8 + b"\x91" * 100_000,
]


class RogueOrigin:
    """Sockets in the place of a peer's, which `node` reads from; its adverts and answers are ours to invent."""

    def __init__(self, swarm: Any, node: Any) -> None:
        self.swarm, self.node = swarm, node
        self.adverts = swarm.rogue(zmq.XPUB)
        self.pulls = swarm.rogue(zmq.ROUTER)
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (self.adverts, self.pulls)]
        self.endpoints = Endpoints(*(f"tcp://127.0.0.1:{port}" for port in ports))
        self.route = b""
        """By which the node asked last."""
        node.runtime.connect(ROGUE, self.endpoints)
        node.runtime.happen(Joined(ROGUE))
        assert swarm.turn(lambda: self.adverts.poll(0))
        assert self.adverts.recv() == b"\x01"  # the subscription

    def advertise(self, *frames: bytes) -> None:
        self.adverts.send_multipart(frames)

    def pulled(self) -> Pull:
        """The next pull that comes in."""
        assert self.swarm.turn(lambda: self.pulls.poll(0))
        message: object = Here(ROGUE)
        while isinstance(message, Here):
            assert self.swarm.turn(lambda: self.pulls.poll(0))
            self.route, frame = self.pulls.recv_multipart()
            message = decode_header(frame)
        assert isinstance(message, Pull)
        assert message.peer == self.node.me
        return message

    def answer(self, *frames: Bytes) -> None:
        self.pulls.send_multipart([self.route, *frames])


def nothing_changed(node: Any) -> bool:
    return bool(
        (node.arrays()["w"] == 0).all()
        and node.runtime.peer.replicator.n == 0
        and set(node.frontiers.values()) == {0}
        and node.runtime.peer.refused == 0
    )


def goes_on(swarm: Any, node: Any) -> bool:
    """Whether the node still learns what another publishes."""
    other = swarm.add("other")
    swarm.link()
    other.publish(UPDATE)
    return bool(swarm.turn(lambda: node.frontiers.get(other.me) == 1)) and bool((node.arrays()["w"] == 1).all())


# --------------------------------------------------------------------------------------------------------- strangers


def test_junk_among_the_requests_is_counted_and_changes_nothing(swarm: Any) -> None:
    node = swarm.add("node")
    stranger = swarm.rogue(zmq.DEALER, "rogue")
    stranger.connect(node.runtime.endpoints.pulls)
    junk = [
        *([frame] for frame in JUNK),
        [encode_header(Pull(ROGUE, 0, 1)), b""],
        [b"", encode_header(Pull(ROGUE, 0, 1))],
        [b"x"] * 100,
        [encode_header(Advert(ROGUE, 1, {}))],
        [encode_header(Unknown(ROGUE, 0, 1))],
        [encode_header(Range(ROGUE, 1, 1, 1))],
        encode(Range(ROGUE, 1, 1, 1), Packed.of(UPDATE)),
    ]
    for frames in junk:
        stranger.send_multipart(frames)
    assert swarm.turn(lambda: node.runtime.figures.malformed == len(junk))
    assert len(node.host.warnings) == len(junk)
    assert all(text.startswith("a malformed message was dropped: ") for text in node.host.warnings)
    assert nothing_changed(node)
    assert goes_on(swarm, node)


def test_junk_without_end_is_counted_and_told_of_ever_more_seldom(swarm: Any) -> None:
    node = swarm.add("node")
    stranger = swarm.rogue(zmq.DEALER)
    stranger.connect(node.runtime.endpoints.pulls)
    for _ in range(1000):
        stranger.send(b"x")
        if stranger.getsockopt(zmq.EVENTS) & zmq.POLLOUT == 0:
            swarm.turn_for(0.01)
    assert swarm.turn(lambda: node.runtime.figures.malformed == 1000)
    assert len(node.host.warnings) == 64 + 3
    assert node.host.warnings[-1].endswith("(512 so far)")


def test_well_formed_requests_of_strangers_change_nothing(swarm: Any) -> None:
    node = swarm.add("node")
    stranger = swarm.rogue(zmq.DEALER, "rogue")
    stranger.connect(node.runtime.endpoints.pulls)
    stranger.send(encode_header(Credit(ROGUE, 1, 1 << 62)))
    stranger.send(encode_header(Pull(ROGUE, 1 << 62, 1 << 62)))
    assert swarm.turn(lambda: stranger.poll(0))
    assert decode_header(stranger.recv()) == Unknown(PeerId("node"), 1 << 62, 1 << 62)
    assert node.runtime.figures.malformed == 0
    assert nothing_changed(node)
    assert goes_on(swarm, node)


def test_junk_among_the_adverts_is_counted_and_changes_nothing(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offences, "OFFENCES_MAX", 1000)  # else it is put out
    node = swarm.add("node")
    origin = RogueOrigin(swarm, node)
    junk = [
        *([frame] for frame in JUNK),
        [encode_header(Advert(ROGUE, 1, {})), b""],
        [encode_header(Advert(PeerId("somebody else"), 1, {}))],
        [b"x"] * 100,
        [encode_header(Pull(ROGUE, 0, 1))],
        encode(Range(ROGUE, 1, 1, 1), Packed.of(UPDATE)),
    ]
    for frames in junk:
        origin.advertise(*frames)
    assert swarm.turn(lambda: node.runtime.figures.malformed == len(junk))
    assert len(node.host.warnings) == len(junk)
    assert nothing_changed(node)
    assert goes_on(swarm, node)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is put out for what he sends: so all of it can be tried on one peer."""
    monkeypatch.setattr(offences, "OFFENCES_MAX", 10**6)


@pytest.mark.usefixtures("patient")
def test_junk_among_the_answers_is_counted_and_changes_nothing(swarm: Any) -> None:
    node = swarm.add("node")
    origin = RogueOrigin(swarm, node)
    origin.advertise(encode_header(Advert(ROGUE, 1, {})))
    pull = origin.pulled()
    assert pull == Pull(node.me, 0, 1)
    update = Packed.of(UPDATE)
    head, prefix, data = encode(Range(ROGUE, 1, 1, pull.k), update)
    junk: list[list[Bytes]] = [
        *([frame] for frame in JUNK),
        [b"x", b"y"],
        [b"", b""],
        [b"x"] * 100,
        [encode_header(Advert(ROGUE, 1, {}))],
        [encode_header(Pull(ROGUE, 0, 1))],
        [encode_header(Range(PeerId("somebody else"), 1, 1, 1, (), update.layout))],
    ]
    for frames in junk:
        origin.answer(*frames)
    origin.answer(encode_header(State(ROGUE, {}, 1, {}, update.layout)))  # nobody asked: ignored, not malformed
    damaged = bytearray(data)
    damaged[5] ^= 1
    origin.answer(head)
    blocks: list[list[Bytes]] = [
        [prefix, damaged],
        [prefix[:-1], data],
        [prefix, data[:-1]],
        [prefix, b""],
        [BLOCK_PREFIX.pack(pull.k, 1, checksum(data)), data],
        [*encode_block(pull.k, 0, bytes(data) + b"x")],
        [*encode_block(pull.k, 0, bytes(BLOCK_BYTES + 1))],
    ]
    for frames in blocks:
        origin.answer(*frames)
    assert swarm.turn(lambda: node.runtime.figures.malformed == len(junk) + len(blocks))
    assert nothing_changed(node)
    origin.answer(prefix, data)  # the good block of the answer that was damaged
    assert swarm.turn(lambda: node.frontiers[ROGUE] == 1)
    np.testing.assert_array_equal(node.arrays()["w"], UPDATE["w"])


@pytest.mark.parametrize("what", ["no message", "a bad checksum"])
def test_who_answers_with_junk_three_times_is_put_out_and_not_heard_again(swarm: Any, what: str) -> None:
    node, other = swarm.add("node"), swarm.add("other")
    swarm.link()
    origin = RogueOrigin(swarm, node)
    origin.advertise(encode_header(Advert(ROGUE, 1, {})))
    pull = origin.pulled()
    head, prefix, data = encode(Range(ROGUE, 1, 1, pull.k), Packed.of(UPDATE))
    damaged = bytearray(data)
    damaged[5] ^= 1
    origin.answer(head)
    for number in range(1, 4):
        assert node.host.out == {}
        origin.answer(*([prefix, damaged] if what == "a bad checksum" else [b"x"]))
        assert swarm.turn(lambda: node.runtime.figures.malformed == number)  # noqa: B023
    assert node.host.out.keys() == {ROGUE}
    assert "broke the protocol 3 times" in node.host.out[ROGUE]
    assert ROGUE not in node.runtime._peers
    origin.answer(prefix, data)
    origin.advertise(encode_header(Advert(ROGUE, 5, {})))
    other.publish(UPDATE)
    assert swarm.turn(lambda: node.frontiers["other"] == 1), "training goes on"
    assert node.frontiers[ROGUE] == 0
    assert ROGUE not in node.runtime._peers
    assert node.runtime.peer.roster.gone == {ROGUE}


def test_an_answer_that_does_not_fit_is_not_even_received(swarm: Any) -> None:
    node = swarm.add("node")
    origin = RogueOrigin(swarm, node)
    origin.advertise(encode_header(Advert(ROGUE, 1, {})))
    k = origin.pulled().k
    for arrays in ({"w": np.ones(4)}, {"w": np.ones(3, np.float32)}, {"v": np.ones(3)}, {}):
        origin.answer(encode_header(Range(ROGUE, 1, 1, k, (), Layout.of(arrays))))
    origin.answer(header(3, ["rogue", 1, 1, k, [], [[["w", "<f8", [1 << 32]]]], None, [0, 0, []], None]))
    assert swarm.turn(lambda: len(node.host.warnings) == 5)
    assert "'w': shape (4,), expected (3,)" in node.host.warnings[0]
    assert "'w': shape (4294967296,), expected (3,)" in node.host.warnings[4]
    assert nothing_changed(node)
    assert goes_on(swarm, node)


def test_numbers_that_are_not_finite_are_refused_and_counted(swarm: Any) -> None:
    node = swarm.add("node")
    origin = RogueOrigin(swarm, node)
    origin.advertise(encode_header(Advert(ROGUE, 1, {})))
    head, prefix, data = encode(Range(ROGUE, 1, 1, origin.pulled().k), Packed.of({"w": np.array([1, np.nan, 1])}))
    origin.answer(head)
    origin.answer(prefix, data)
    assert swarm.turn(lambda: node.runtime.peer.refused == 1)
    assert "1 of 3 numbers are NaN" in node.host.warnings[0]
    assert (node.arrays()["w"] == 0).all()
    assert node.frontiers[ROGUE] == 0


def test_a_claim_of_more_memory_than_there_is_is_dropped(swarm: Any) -> None:
    node = swarm.add("node", any_layout=True)
    origin = RogueOrigin(swarm, node)
    origin.advertise(encode_header(Advert(ROGUE, 1, {})))
    k = origin.pulled().k
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 35, hard))
    try:
        origin.answer(header(3, ["rogue", 1, 1, k, [], [[["w", "|i1", [1 << 36]]]], None, [0, 0, []], None]))
        assert swarm.turn(lambda: node.host.warnings)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert f"no room for {1 << 36} bytes" in node.host.warnings[0]


def ask_for_replicas(swarm: Any, node: Any, names: list[str]) -> list[bool]:
    """Let strangers ask for the replica, who take nothing of it; who of them is given one."""
    given = []
    for name in names:
        stranger = swarm.rogue(zmq.DEALER, name)
        stranger.connect(node.runtime.endpoints.pulls)
        stranger.send(encode_header(StateRequest(PeerId(name), 1)))
        before = node.runtime.figures.bytes_in
        assert swarm.turn(lambda before=before: node.runtime.figures.bytes_in > before)
        given.append(PeerId(name) in node.runtime._outgoing.transfers)
        stranger.close(linger=0)
    return given


def test_strangers_that_ask_for_the_replica_and_take_nothing_are_few_and_not_for_long(
    swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.zmq.outgoing.STATES_MAX", 8)
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGER_IDLE_S", 1e9)
    node = swarm.add("node", {"w": np.zeros_like(large(12)["w"])})
    given = ask_for_replicas(swarm, node, [f"s{index}" for index in range(10)])
    assert given == 8 * [True] + 2 * [False]
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGER_IDLE_S", 0.0)
    swarm.turn_for(0.02)
    assert not node.runtime._outgoing.transfers
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGER_IDLE_S", 1e9)
    assert ask_for_replicas(swarm, node, ["later"]) == [True]


def test_copies_for_strangers_take_no_more_room_than_they_may(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = swarm.add("node", {"w": np.zeros_like(large(12)["w"])})
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGER_IDLE_S", 1e9)
    nbytes = node.host.replica.layout.nbytes
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGERS_BYTES_MAX", 2 * nbytes)
    assert ask_for_replicas(swarm, node, ["a", "b", "c"]) == [True, True, False]


def test_one_stranger_is_given_a_replica_of_any_size(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = swarm.add("node", {"w": np.zeros_like(large(12)["w"])})
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGERS_BYTES_MAX", 1)
    monkeypatch.setattr("gossip.zmq.outgoing.STRANGER_IDLE_S", 1e9)
    assert ask_for_replicas(swarm, node, ["a", "b"]) == [True, False]


def test_who_is_gone_for_good_is_not_listened_for_until_it_speaks_again(
    swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = swarm.add("one"), swarm.add("two")
    swarm.link()
    two.publish(UPDATE)
    assert swarm.turn(lambda: one.frontiers.get(two.me) == 1)
    swarm.nodes.remove(two)
    two.runtime.close()
    assert swarm.turn(lambda: two.me in one.runtime._peers.broken)
    swarm.turn_for(0.02)
    assert two.me in one.runtime._peers
    monkeypatch.setattr("gossip.zmq.peers.SILENT_S", 0.0)
    assert swarm.turn(lambda: two.me not in one.runtime._peers)
    assert not one.runtime._peers.broken
    monkeypatch.undo()
    again = swarm.rogue(zmq.DEALER, "two")
    again.connect(one.runtime.endpoints.pulls)
    again.send(encode_header(Ping(PeerId("two"), 1)))
    assert swarm.turn(lambda: two.me in one.runtime._peers)


def test_what_outgrows_a_header_is_told_once_and_the_peer_lives_on(swarm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = swarm.add("one"), swarm.add("two")
    swarm.link()
    monkeypatch.setattr("gossip.wire.HEADER_BYTES_MAX", 8)
    one.runtime.happen(Computed(Packed.of(UPDATE)))
    swarm.turn_for(0.6)
    told = [warning for warning in one.host.warnings if "Advert is not sent" in warning]
    assert len(told) == 1
    monkeypatch.undo()
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)


# ------------------------------------------------------------------------------------------------------ slow readers


def test_who_never_grants_credit_gets_one_window_and_the_others_get_everything(swarm: Any) -> None:
    initial = {"w": np.zeros_like(large(12)["w"])}
    origin, reader = swarm.add("origin", initial, settings=ANSWERING), swarm.add("reader", initial)
    origin.runtime.happen(Joined(ROGUE, read=False))
    swarm.link()
    stalled = swarm.rogue(zmq.DEALER, "rogue")
    stalled.connect(origin.runtime.endpoints.pulls)
    origin.publish(large(12))
    stalled.send(encode_header(Pull(ROGUE, 0, 1)))
    assert swarm.turn(lambda: reader.frontiers.get(origin.me) == 1)
    np.testing.assert_array_equal(reader.arrays()["w"], large(12)["w"])

    head, *blocks = received(swarm, stalled, 1 + WINDOW_BLOCKS)
    message = decode_header(head[0])
    assert isinstance(message, Range)
    assert (message.lo, message.hi) == (1, 1)
    assert [decode_block(*block).index for block in blocks] == list(range(WINDOW_BLOCKS))
    stalled.send(encode_header(Credit(ROGUE, message.k + 1, 12)))  # for another answer
    stalled.send(encode_header(Credit(ROGUE, message.k, 3)))
    assert [decode_block(*block).index for block in received(swarm, stalled, 3)] == [8, 9, 10]
    stalled.send(encode_header(Credit(ROGUE, message.k, 2)))  # an old one
    assert received(swarm, stalled, 0) == []


def test_who_asks_and_asks_and_reads_nothing_does_not_stop_the_others(swarm: Any) -> None:
    initial = {"w": np.zeros_like(large(12)["w"])}
    origin, reader = swarm.add("origin", initial), swarm.add("reader", initial)
    origin.runtime.happen(Joined(ROGUE, read=False))
    stalled = swarm.rogue(zmq.DEALER, "rogue")
    stalled.setsockopt(zmq.RCVHWM, 1)
    stalled.setsockopt(zmq.RCVBUF, 4096)
    stalled.connect(origin.runtime.endpoints.pulls)
    swarm.link()
    origin.publish(large(12))
    for k in range(1, 12):  # until its queue is full
        stalled.send(encode_header(Pull(ROGUE, 0, k)))
        for _ in range(20):
            origin.runtime.poll(0.001)
    assert swarm.turn(lambda: reader.frontiers.get(origin.me) == 1)


def test_a_reader_that_vanishes_amid_an_answer_does_no_harm(swarm: Any) -> None:
    initial = {"w": np.zeros_like(large(12)["w"])}
    origin, reader = swarm.add("origin", initial), swarm.add("reader", initial)
    origin.runtime.happen(Joined(ROGUE, read=False))
    swarm.link()
    gone = swarm.rogue(zmq.DEALER, "rogue")
    gone.connect(origin.runtime.endpoints.pulls)
    origin.publish(large(12))
    gone.send(encode_header(Pull(ROGUE, 0, 1)))
    assert swarm.turn(lambda: gone.poll(0))
    gone.send(encode_header(Credit(ROGUE, 1, 1)))
    gone.close(linger=0)
    assert swarm.turn(lambda: reader.frontiers.get(origin.me) == 1)
    origin.exhaust(0.1)
    assert swarm.turn(lambda: origin.host.missing is not None)
    assert origin.host.missing == (ROGUE,)


def test_an_answer_to_a_reader_that_has_moved_on_is_dropped(swarm: Any) -> None:
    origin = swarm.add("origin", {"w": np.zeros_like(large(12)["w"])}, settings=ANSWERING)
    origin.runtime.happen(Joined(ROGUE, read=False))
    stranger = swarm.rogue(zmq.DEALER, "rogue")
    stranger.connect(origin.runtime.endpoints.pulls)
    origin.publish(large(12))
    stranger.send(encode_header(Pull(ROGUE, 0, 1)))
    assert swarm.turn(lambda: stranger.poll(0))
    stranger.send(encode_header(Pull(ROGUE, 1, 2)))  # and the range is forgotten
    stranger.send(encode_header(Credit(ROGUE, 1, 8)))
    assert len(received(swarm, stranger, 0)) <= 1 + WINDOW_BLOCKS
    origin.publish(large(12))
    stranger.send(encode_header(Pull(ROGUE, 1, 3)))
    message = decode_header(hear(swarm, stranger)[0])
    assert isinstance(message, Range)
    assert (message.lo, message.hi) == (2, 2)


def test_own_updates_are_published_in_their_order_whenever_the_replica_is_free(swarm: Any) -> None:
    published: list[float] = []

    def observe(now: float, peer: PeerId, event: Event, effects: list[Effect]) -> None:
        if isinstance(event, Computed):
            published.append(event.payload.arrays()["w"][0])

    node = swarm.add("node", observe=observe)
    free = iter([False, False])  # and from then on
    node.host.acquire = lambda event: next(free, True)
    node.publish({"w": np.full(3, 1.0)})
    node.publish({"w": np.full(3, 2.0)})
    assert swarm.turn(lambda: not node.runtime.holds)
    assert published == [1.0, 2.0]


def test_nothing_is_merged_while_somebody_reads_the_replica(swarm: Any) -> None:
    one, two = swarm.add("one"), swarm.add("two")
    swarm.link()
    two.host.is_read = True
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.runtime.holds)
    two.publish({"w": np.full(3, 10.0)})
    swarm.turn_for(0.05)
    assert (two.arrays()["w"] == 0).all()
    assert two.frontiers == {one.me: 0, two.me: 0}
    two.host.is_read = False
    assert swarm.turn(lambda: all(node.frontiers == {one.me: 1, two.me: 1} for node in (one, two)))
    for node in (one, two):
        np.testing.assert_array_equal(node.arrays()["w"], [11, 11, 11])
    assert not two.runtime.holds


def test_an_answer_that_waits_for_the_replica_is_not_asked_for_again(swarm: Any) -> None:
    settings = Settings(advert_period_s=0.05, pull_timeout_s=0.3)
    one, two = (swarm.add(name, {"w": np.zeros(40_000)}, settings=settings) for name in ("one", "two"))
    swarm.link()
    two.host.is_read = True
    one.publish({"w": np.ones(40_000)})
    assert swarm.turn(lambda: two.runtime.holds)
    received = two.runtime.figures.bytes_in
    swarm.turn_for(0.8)
    assert two.runtime.figures.bytes_in - received < 8 * 40_000
    two.host.is_read = False
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)


def test_answers_that_wait_for_the_replica_are_not_written_over(swarm: Any) -> None:
    one, two, reader = (swarm.add(name, {"w": np.zeros(40_000)}) for name in ("one", "two", "reader"))
    swarm.link()
    reader.host.is_read = True
    for number, node in ((1, one), (10, two)):
        received = reader.runtime.figures.bytes_in
        node.publish({"w": np.full(40_000, float(number))})
        assert swarm.turn(lambda received=received: reader.runtime.figures.bytes_in > received + 8 * 40_000)
    assert reader.frontiers == {one.me: 0, two.me: 0, reader.me: 0}
    reader.host.is_read = False
    assert swarm.turn(lambda: reader.frontiers == {one.me: 1, two.me: 1, reader.me: 0})
    assert (reader.arrays()["w"] == 11).all()


# -------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_an_address_that_others_can_reach_needs_keys(swarm: Any, address: str) -> None:
    with pytest.raises(UsageError, match="can be reached from other machines"):
        swarm.add("node", address=address)


def speak(swarm: Any, kind: int, keys: Keys | None, server_key: str | None, endpoint: str) -> zmq.Socket[bytes]:
    """A socket of somebody who has these keys, to the server that has that one."""
    socket = swarm.rogue(kind)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        socket.setsockopt(zmq.CURVE_SERVERKEY, (server_key or keys.public).encode())
    socket.connect(endpoint)
    return socket


def test_each_peer_has_a_key_and_who_does_not_know_it_gets_nothing(swarm: Any) -> None:
    one, two = (swarm.add("", keys=Keys.generate()) for _ in range(2))
    swarm.link()
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)
    ends = one.runtime.endpoints
    strangers = [speak(swarm, zmq.DEALER, keys, None, ends.pulls) for keys in (None, Keys.generate())]
    for stranger in strangers:
        stranger.send(encode_header(StateRequest(ROGUE, 1)))
    listeners = [speak(swarm, zmq.SUB, keys, None, ends.adverts) for keys in (None, Keys.generate())]
    for listener in listeners:
        listener.subscribe(b"")
    received = one.runtime.figures.bytes_in
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 2)
    swarm.turn_for(0.3)
    assert not any(socket.poll(0) for socket in (*strangers, *listeners))
    assert one.runtime.figures.bytes_in < received + 1000
    assert one.runtime.figures.malformed == 0


def test_a_member_is_heard_in_its_own_name_only(swarm: Any) -> None:
    """It has a key of its own and knows those of others."""
    one, two = (swarm.add("", keys=Keys.generate()) for _ in range(2))
    swarm.link()
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)
    keys = Keys.generate()
    ends = one.runtime.endpoints
    member = speak(swarm, zmq.DEALER, keys, ends.key, ends.pulls)
    forged = [
        StateRequest(two.me, 1),
        Pull(two.me, 1, 1),
        Pin(two.me, one.me, 1),
        Ping(two.me, 1),
        Here(two.me),
    ]
    for message in forged:
        member.send(encode_header(message))
    assert swarm.turn(lambda: one.runtime.figures.malformed == len(forged))
    assert all("speaks for" in text for text in one.host.warnings)
    assert not member.poll(100)
    me = fingerprint(keys.public)
    member.send(encode_header(StateRequest(me, 1)))
    assert swarm.turn(lambda: member.poll(0))
    assert isinstance(decode_header(member.recv()), State)
    assert goes_on_between(swarm, one, two)


def goes_on_between(swarm: Any, one: Any, two: Any) -> bool:
    """Whether the one learns what the other publishes."""
    before = two.frontiers[one.me]
    one.publish(UPDATE)
    return bool(swarm.turn(lambda: two.frontiers[one.me] == before + 1))


def test_who_publishes_in_the_place_of_a_peer_without_its_key_is_not_heard(swarm: Any) -> None:
    """The roster says where a peer is, and which key it has: whoever takes the place does not have the key."""
    node = swarm.add("", keys=Keys.generate())
    theirs, mine = Keys.generate(), Keys.generate()
    adverts, pulls = swarm.rogue(zmq.XPUB), swarm.rogue(zmq.ROUTER)
    ports = []
    for socket in (adverts, pulls):
        socket.setsockopt(zmq.CURVE_SECRETKEY, mine.secret.encode())
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        ports.append(socket.bind_to_random_port("tcp://127.0.0.1"))
    peer = fingerprint(theirs.public)
    node.runtime.connect(peer, Endpoints(*(f"tcp://127.0.0.1:{port}" for port in ports), theirs.public))
    node.runtime.happen(Joined(peer))
    for _ in range(10):
        swarm.turn_for(0.05)
        adverts.send(encode_header(Advert(peer, 1, {})))
    assert not adverts.poll(0)
    assert not pulls.poll(0)
    assert node.runtime.figures.bytes_in == 0


def test_a_name_that_is_not_of_the_key_is_refused(swarm: Any) -> None:
    node, other = (swarm.add("", keys=Keys.generate()) for _ in range(2))
    for key in (None, Keys.generate().public):
        ends = replace(other.runtime.endpoints, key=key)
        with pytest.raises(UsageError, match="of which that is not the name"):
            node.runtime.connect(other.me, ends)
    with pytest.raises(UsageError, match="expected the name of its key"):
        Runtime(Peer(PeerId("me"), None, swarm.FAST), node.host, Segments(), keys=Keys.generate())


def test_who_was_put_out_is_not_let_in_again(swarm: Any) -> None:
    node = swarm.add("", keys=Keys.generate())
    keys = Keys.generate()
    node.runtime._servers.put_out(fingerprint(keys.public))
    ends = node.runtime.endpoints
    member = speak(swarm, zmq.DEALER, keys, ends.key, ends.pulls)
    member.send(encode_header(StateRequest(fingerprint(keys.public), 1)))
    swarm.turn_for(0.3)
    assert node.runtime.figures.bytes_in == 0
    assert not member.poll(0)


# --------------------------------------------------------------------------------------------------------- processes


def in_child(action: Callable[[], object]) -> str:
    """What comes of it in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)  # ends a child that hangs
        try:
            action()
            outcome = "nothing was raised"
        except BaseException as error:  # noqa: BLE001  the parent looks at it
            outcome = f"{type(error).__name__}: {error}"
        os.write(writer, outcome.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as outcome_file:
        outcome = outcome_file.read()
    os.waitpid(child, 0)
    return outcome


USES: dict[str, Callable[[Any], None]] = {
    "poll": lambda node: node.runtime.poll(0.0),
    "happen": lambda node: node.publish(UPDATE),
    "connect": lambda node: node.runtime.connect(ROGUE, node.runtime.endpoints),
}


@pytest.mark.parametrize("use", USES)
def test_sockets_inherited_by_a_fork_are_not_used(swarm: Any, use: str) -> None:
    node = swarm.add("node")
    assert in_child(lambda: USES[use](node)).startswith("UsageError: these sockets belong to process")
    assert goes_on(swarm, node)


@pytest.mark.parametrize("use", USES)
def test_sockets_of_another_thread_are_not_used(swarm: Any, use: str) -> None:
    node = swarm.add("node")
    raised: list[UsageError] = []

    def run() -> None:
        try:
            USES[use](node)
        except UsageError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "belong to another thread" in str(*raised)


def held() -> tuple[int, list[str]]:
    """Open descriptors of this process, and the names of its threads."""
    names = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            names.append(Path(f"/proc/self/task/{thread}/comm").read_text().strip())
    return len(os.listdir("/proc/self/fd")), sorted(names)


def test_a_closed_runtime_leaves_no_thread_and_no_descriptor(swarm: Any, settled: Any) -> None:
    def cycle() -> None:
        nodes = [swarm.add(name) for name in ("one", "two")]
        swarm.link()
        nodes[0].publish(UPDATE)
        assert swarm.turn(lambda: nodes[1].frontiers.get(nodes[0].me) == 1)
        for node in nodes:
            node.runtime.close()
        swarm.nodes.clear()

    cycle()
    before = held()
    for _ in range(20):
        cycle()
    assert settled(held, before) == before


def test_a_runtime_that_is_closed_amid_an_answer_leaves_nothing_either(swarm: Any, settled: Any) -> None:
    initial = {"w": np.zeros_like(large(12)["w"])}

    def cycle() -> None:
        origin, reader = swarm.add("origin", initial), swarm.add("reader", initial)
        swarm.link()
        origin.publish(large(12))
        assert swarm.turn(lambda: reader.runtime.figures.bytes_in > BLOCK_BYTES)
        assert reader.frontiers[origin.me] == 0
        for node in (origin, reader):
            node.runtime.close()
        swarm.nodes.clear()

    cycle()  # pyzmq starts a thread of its own with the first block that it does not copy, numpy with the first product
    before = held()
    for _ in range(3):
        cycle()
    assert settled(held, before) == before


def test_other_sources_are_polled_too_until_they_are_unregistered(swarm: Any) -> None:
    node = swarm.add("node")
    reader, writer = os.pipe()
    got: list[bytes] = []
    node.runtime.register(reader, lambda: got.append(os.read(reader, 100)))
    os.write(writer, b"one")
    assert swarm.turn(lambda: got == [b"one"])
    node.runtime.unregister(reader)
    os.write(writer, b"two")
    swarm.turn_for(0.02)
    assert got == [b"one"]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("rest_s", "heard"), [(0.01, [b"one"]), (1e9, [])], ids=["a moment", "for ever"])
def test_a_source_that_rests_is_heard_later(swarm: Any, rest_s: float, heard: list[bytes]) -> None:
    node = swarm.add("node")
    resting, other = os.pipe(), os.pipe()
    got: list[bytes] = []
    also: list[bytes] = []
    node.runtime.register(resting[0], lambda: got.append(os.read(resting[0], 100)))
    node.runtime.register(other[0], lambda: also.append(os.read(other[0], 100)))
    node.runtime.rest(resting[0], rest_s)
    os.write(resting[1], b"one")
    os.write(other[1], b"two")
    assert swarm.turn(lambda: also == [b"two"] and got == heard)
    node.runtime.unregister(resting[0])
    node.runtime.unregister(other[0])
    for descriptor in (*resting, *other):
        os.close(descriptor)


def test_connecting_twice_is_connecting_once(swarm: Any) -> None:
    one, two = swarm.add("one"), swarm.add("two")
    swarm.link()
    swarm.link()
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)
    assert (two.arrays()["w"] == 1).all()


def test_traffic_is_counted(swarm: Any) -> None:
    one, two = swarm.add("one"), swarm.add("two")
    swarm.link()
    one.runtime.happen(Computed(Packed.of(UPDATE)))
    assert swarm.turn(lambda: two.frontiers.get(one.me) == 1)
    assert one.runtime.figures.bytes_out > 64
    assert two.runtime.figures.bytes_in > 64
