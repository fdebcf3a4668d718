"""Replicas fetched over real sockets on loopback, in a thread: what donors send, and when they send nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zmq

from gossip.arrays import Arrays, Bytes, Layout, Packed
from gossip.errors import UsageError
from gossip.events import Joined
from gossip.marks import packed as packed_marks
from gossip.messages import Mark, PeerId, State, StateRequest, Unit
from gossip.wire import BLOCK_BYTES, decode_header, encode, encode_block
from gossip.zmq.fetch import fetch_state

pytestmark = pytest.mark.sockets

ROGUE = PeerId("rogue")
UPDATE = {"w": np.ones(3)}


def large(blocks: int) -> Arrays:
    """An update of so many blocks."""
    return {"w": np.arange(blocks * BLOCK_BYTES // 8)}


class Fetch:
    """`fetch_state` in a thread of its own, into a buffer."""

    def __init__(self, swarm: Any, endpoint: str, name: str, **options: float) -> None:
        self.begun = 0
        self.layout = Layout(())
        self.buffer = bytearray()
        self.outcome: State | UsageError | None = None

        def begin(state: State) -> Callable[[int, Bytes], None]:
            self.begun += 1
            self.layout = state.layout
            self.buffer = bytearray(state.layout.nbytes)
            return take

        def take(start: int, data: Bytes) -> None:
            self.buffer[start : start + len(data)] = data

        def fetch() -> None:
            try:
                self.outcome = fetch_state(swarm.context, endpoint, begin, **options)
            except UsageError as error:
                self.outcome = error

        self.thread = threading.Thread(target=fetch)
        self.thread.start()

    def arrays(self) -> dict[str, Any]:
        return self.layout.views(self.buffer)


@pytest.mark.parametrize("blocks", [0, 1, 2.5, 20])
def test_a_replica_is_fetched_whole_with_its_frontiers(swarm: Any, blocks: float) -> None:
    initial = {"w": np.arange(int(blocks * BLOCK_BYTES) // 8), "b": np.arange(3.0)}
    node = swarm.add("node", initial)
    node.runtime.happen(Joined(PeerId("other")))
    node.publish({"w": np.ones_like(initial["w"]), "b": np.ones(3)})
    marks = {PeerId("other"): packed_marks(Mark(Unit(0, partition, 7), 0) for partition in range(5))}
    node.runtime.peer.identities.note(PeerId("other"), marks[PeerId("other")])
    fetch = Fetch(swarm, node.runtime.endpoints.pulls, "joiner", timeout_s=20.0)
    assert swarm.turn(lambda: fetch.outcome is not None)
    fetch.thread.join()
    assert isinstance(fetch.outcome, State)
    assert fetch.outcome.marks == marks
    assert fetch.outcome.frontiers == {"node": 1, "other": 0}
    assert fetch.begun == 1
    np.testing.assert_array_equal(fetch.arrays()["w"], initial["w"] + 1)
    np.testing.assert_array_equal(fetch.arrays()["b"], initial["b"] + 1)
    assert node.runtime.figures.malformed == 0


def test_a_replica_that_is_interrupted_is_fetched_again_from_its_beginning(swarm: Any) -> None:
    packed = Packed.of(large(3))
    donor = swarm.rogue(zmq.ROUTER)
    port = donor.bind_to_random_port("tcp://127.0.0.1")
    fetch = Fetch(swarm, f"tcp://127.0.0.1:{port}", "joiner", timeout_s=20.0, retry_s=0.1)
    for frames_sent in (3, 7):  # header and one block; header and all three
        assert donor.poll(60_000)
        name, frame = donor.recv_multipart()
        request = decode_header(frame)
        assert isinstance(request, StateRequest)
        head, *blocks = encode(State(ROGUE, {ROGUE: 4}, request.k), packed)
        donor.send_multipart([name, head])
        donor.send_multipart([name, *encode_block(request.k - 1, 0, bytes(BLOCK_BYTES))])  # overtaken by the request
        for prefix, data in zip(blocks[: frames_sent - 1 : 2], blocks[1:frames_sent:2], strict=True):
            donor.send_multipart([name, prefix, data])
    fetch.thread.join(60)
    assert isinstance(fetch.outcome, State)
    assert fetch.outcome.frontiers == {"rogue": 4}
    assert fetch.begun == 2
    np.testing.assert_array_equal(fetch.arrays()["w"], large(3)["w"])


def test_an_answer_to_an_earlier_request_is_a_replica_too(swarm: Any) -> None:
    """A donor that takes longer to answer than its asker waits would else never be heard."""
    packed = Packed.of(large(2))
    donor = swarm.rogue(zmq.ROUTER)
    port = donor.bind_to_random_port("tcp://127.0.0.1")
    fetch = Fetch(swarm, f"tcp://127.0.0.1:{port}", "joiner", timeout_s=20.0, retry_s=0.01)
    requests = []
    for _ in range(3):
        assert donor.poll(60_000)
        name, frame = donor.recv_multipart()
        requests.append(decode_header(frame))
    assert isinstance(requests[0], StateRequest)
    head, *blocks = encode(State(ROGUE, {ROGUE: 4}, requests[0].k), packed)
    donor.send_multipart([name, head])
    for prefix, data in zip(blocks[::2], blocks[1::2], strict=True):
        donor.send_multipart([name, prefix, data])
    fetch.thread.join(60)
    assert isinstance(fetch.outcome, State)
    assert fetch.outcome.frontiers == {"rogue": 4}
    np.testing.assert_array_equal(fetch.arrays()["w"], large(2)["w"])


@pytest.mark.parametrize(
    "junk",
    [
        lambda k: [b"a", b"b", b"c"],
        lambda k: [b"a", b"b"],
        lambda k: [b"nonsense"],
        lambda k: [*encode_block(k, 0, b"short")],
        lambda k: [*encode_block(k, 0, bytes(1000))],
    ],
    ids=["three frames", "no block", "no header", "short block", "long block"],
)
def test_a_malformed_answer_is_not_taken_for_a_replica(swarm: Any, junk: Callable[[int], list[bytes]]) -> None:
    packed = Packed.of(UPDATE)
    donor = swarm.rogue(zmq.ROUTER)
    port = donor.bind_to_random_port("tcp://127.0.0.1")
    fetch = Fetch(swarm, f"tcp://127.0.0.1:{port}", "joiner", timeout_s=20.0, retry_s=0.1)
    for is_junk in (True, False):
        assert donor.poll(60_000)
        name, frame = donor.recv_multipart()
        request = decode_header(frame)
        assert isinstance(request, StateRequest)
        head, *block = encode(State(ROGUE, {}, request.k), packed)
        donor.send_multipart([name, head])
        donor.send_multipart([name, *(junk(request.k) if is_junk else block)])
    fetch.thread.join(60)
    assert isinstance(fetch.outcome, State)
    np.testing.assert_array_equal(fetch.arrays()["w"], UPDATE["w"])


def test_a_fetch_ends_in_time_however_often_it_asks(swarm: Any) -> None:
    closed = swarm.rogue(zmq.ROUTER)
    port = closed.bind_to_random_port("tcp://127.0.0.1")
    closed.close()
    fetch = Fetch(swarm, f"tcp://127.0.0.1:{port}", "joiner", timeout_s=0.5, retry_s=0.005)
    fetch.thread.join(60)
    assert isinstance(fetch.outcome, UsageError)


def test_a_replica_that_nobody_gives_is_not_waited_for_for_ever(swarm: Any) -> None:
    silent = swarm.rogue(zmq.ROUTER)
    port = silent.bind_to_random_port("tcp://127.0.0.1")
    fetch = Fetch(swarm, f"tcp://127.0.0.1:{port}", "joiner", timeout_s=0.2, retry_s=0.05)
    fetch.thread.join(60)
    assert isinstance(fetch.outcome, UsageError)
    assert f"no replica came from tcp://127.0.0.1:{port} within 0.2 s" in str(fetch.outcome)
