"""Bulk messages block by block, without a socket: what is told, and what is reported."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.arrays import Bytes, Packed
from gossip.events import Event, Progressed, Received
from gossip.messages import Credit, PacketReply, PeerId, Range
from gossip.wire import BLOCK_BYTES, decode_header, encode
from gossip.zmq.incoming import Incoming
from gossip.zmq.sockets import WINDOW_BLOCKS

ME, ORIGIN = PeerId("me"), PeerId("origin")
LARGE = Packed.of({"w": np.arange(WINDOW_BLOCKS * BLOCK_BYTES // 8)})


class Story:
    """What comes in from one origin."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.credits: list[Credit] = []
        self.holds = False
        self.incoming = Incoming(
            ME,
            send=lambda peer, credit: self.credits.append(credit),
            happen=self.events.append,
            holds=lambda: self.holds,
        )

    def begin(self, k: int) -> list[list[Bytes]]:
        """The blocks that follow."""
        header, *frames = encode(Range(ORIGIN, 1, 1, k), LARGE)
        message = decode_header(header)
        assert isinstance(message, Range)
        self.incoming.begin(ORIGIN, message)
        return [[prefix, data] for prefix, data in zip(frames[::2], frames[1::2], strict=True)]

    def last_buffer(self) -> Bytes:
        received = self.events[-1]
        assert isinstance(received, Received)
        assert isinstance(received.message, Range | PacketReply)
        assert isinstance(received.message.payload, Packed)
        return received.message.payload.buffer


def test_half_windows_and_the_end_are_reported() -> None:
    story = Story()
    for block in story.begin(7):
        story.incoming.add(ORIGIN, block)
    assert story.credits == [Credit(ME, 7, WINDOW_BLOCKS // 2), Credit(ME, 7, WINDOW_BLOCKS)]
    assert story.events[:-1] == [Progressed(ORIGIN)] * (1 + WINDOW_BLOCKS)
    np.testing.assert_array_equal(np.frombuffer(story.last_buffer(), np.int64), LARGE.arrays()["w"])


def test_blocks_of_an_answer_that_was_given_up_change_nothing() -> None:
    story = Story()
    old = story.begin(1)
    new = story.begin(2)
    for block in old:
        story.incoming.add(ORIGIN, block)
    assert story.credits == []
    story.incoming.drop(ORIGIN)
    for block in new:
        story.incoming.add(ORIGIN, block)
    assert story.events == [Progressed(ORIGIN)] * 2


@pytest.mark.parametrize("holds", [False, True])
def test_a_buffer_serves_again_unless_what_came_in_it_still_waits(holds: bool) -> None:
    story = Story()
    story.holds = holds
    buffers = []
    for k in (1, 2):
        for block in story.begin(k):
            story.incoming.add(ORIGIN, block)
        buffers.append(story.last_buffer())
    assert (buffers[0] is buffers[1]) == (not holds)
