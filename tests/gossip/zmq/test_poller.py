"""Pipes that are polled: until they are unregistered, and not while they rest."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gossip.zmq.poller import Poller

Pipe = tuple[int, int]


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    """Two, each as the end to read from and the end to write to."""
    pair = os.pipe(), os.pipe()
    yield pair
    for pipe in pair:
        for descriptor in pipe:
            os.close(descriptor)


def test_who_is_unregistered_amid_a_turn_is_not_called_any_more(pipes: tuple[Pipe, Pipe]) -> None:
    poller = Poller()
    called = []

    def take(mine: int, other: int) -> None:
        called.append(mine)
        poller.unregister(other)

    (one, to_one), (two, to_two) = pipes
    poller.register(one, lambda: take(one, two))
    poller.register(two, lambda: take(two, one))
    os.write(to_one, b"x")
    os.write(to_two, b"x")
    poller.turn(1.0)
    assert len(called) == 1


def test_a_source_that_rests_shortens_the_wait_and_is_heard_afterwards(pipes: tuple[Pipe, Pipe]) -> None:
    poller = Poller()
    got: list[bytes] = []
    (resting, to_resting), (other, _) = pipes
    poller.register(resting, lambda: got.append(os.read(resting, 100)))
    poller.register(other, lambda: pytest.fail("nothing comes here"))
    os.write(to_resting, b"x")
    poller.rest(resting, 0.02)
    poller.turn(0.0)
    assert got == []
    poller.turn(60.0)  # until it wakes
    poller.turn(0.0)
    assert got == [b"x"]


def test_a_source_that_rests_can_be_unregistered(pipes: tuple[Pipe, Pipe]) -> None:
    poller = Poller()
    (resting, to_resting), _ = pipes
    poller.register(resting, lambda: pytest.fail("it was unregistered"))
    os.write(to_resting, b"x")
    poller.rest(resting, 0.0)
    poller.unregister(resting)
    poller.turn(0.0)
