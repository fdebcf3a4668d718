"""Which events have their turn at the replica, and in which order."""

from __future__ import annotations

import os

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Computed, Event, Received
from gossip.messages import PeerId, Pull, Range, State
from gossip.zmq.held import Held, writes
from gossip.zmq.segments import LentFile

UPDATE = Packed.of({"w": np.ones(3)})
OTHER = PeerId("other")


def computed() -> Computed:
    return Computed(UPDATE)


def received(number: int) -> Received:
    return Received(Range(OTHER, number, number, number, payload=UPDATE))


class Story:
    """Events that are held, and what becomes of them."""

    def __init__(self) -> None:
        self.dealt: list[Event] = []
        self.is_read: type | None = None
        """Events of this kind may not be merged now."""
        self.acquired = 0
        self.held = Held(self, self.dealt.append)

    def acquire(self, event: Event) -> bool:
        may = self.is_read is None or not isinstance(event, self.is_read)
        self.acquired += may
        return may

    def release(self) -> None:
        self.acquired -= 1


def test_only_updates_and_replicas_write() -> None:
    assert writes(computed())
    assert writes(received(1))
    assert writes(Received(State(OTHER, {}, 1, {}, UPDATE.layout)))
    assert not writes(Received(Pull(OTHER, 0, 1)))


def test_each_kind_keeps_its_order_and_does_not_wait_for_the_other() -> None:
    story = Story()
    ranges, own = [received(number) for number in (1, 2)], [computed(), computed()]
    for event in (ranges[0], own[0], ranges[1], own[1]):
        story.held.add(event)
    story.is_read = Received
    story.held.release()
    assert story.dealt == own
    assert story.held.senders() == [OTHER, OTHER]
    story.is_read = None
    story.held.release()
    assert story.dealt == own + ranges
    assert story.acquired == 0
    assert len(story.held) == 0


def test_own_updates_wait_while_the_peer_is_congested() -> None:
    story = Story()
    story.held.congested = True
    story.held.add(computed())
    story.held.add(received(1))
    story.held.release()
    assert [type(event) for event in story.dealt] == [Received]
    assert story.held.wait_s < 1.0
    story.held.congested = False
    story.held.release()
    assert story.held.wait_s == float("inf")


def test_the_replica_is_released_and_files_are_closed_whatever_becomes_of_the_event() -> None:
    story = Story()

    def fail(event: Event) -> None:
        raise ZeroDivisionError

    held = Held(story, fail)
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    for descriptor in descriptors:
        held.add(Received(Range(OTHER, 1, 1, 1, payload=LentFile(UPDATE.layout, descriptor))))
    with pytest.raises(ZeroDivisionError):
        held.release()
    assert story.acquired == 0
    held.close()  # what still waits is dropped
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
