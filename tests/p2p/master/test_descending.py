"""Descents in the server's thread, and beside it where they take long."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from p2p.master import descending as module
from p2p.master.descending import Descending

SOON_S = 60.0


class World:
    """Descents, and what is told of them."""

    def __init__(self) -> None:
        self.descending: Descending[int] = Descending()
        self.told: list[Any] = []
        self.threads: list[str] = []

    def run(self, number: int, waits: threading.Event | None = None, error: BaseException | None = None) -> None:
        def descend() -> int:
            self.threads.append(threading.current_thread().name)
            assert waits is None or waits.wait(SOON_S)
            if error is not None:
                raise error
            return number

        self.descending.run(descend, lambda outcome: self.told.append(outcome))

    def settled(self) -> None:
        """As the server does, whose poll wakes up."""
        assert select.select([self.descending.done], [], [], SOON_S)[0]
        self.descending.settle()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "LONG_S", -1.0)
    monkeypatch.setattr(module, "BESIDE", 2)
    world = World()
    yield world
    world.descending.close()


def test_those_after_a_long_one_run_beside_the_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = threading.current_thread().name
    world.run(0)
    assert not world.descending.is_under_way
    assert (world.told, world.threads) == ([(0, None)], [here])
    monkeypatch.setattr(module, "LONG_S", SOON_S)
    for number in (1, 2):
        go_on = threading.Event()
        world.run(number, waits=go_on)
        assert world.descending.is_under_way
        assert not select.select([world.descending.done], [], [], 0)[0]
        assert len(world.told) == number, "nobody waits for it"
        go_on.set()
        world.settled()
        assert not world.descending.is_under_way
    world.run(3)
    assert world.told == [(number, None) for number in range(4)]
    assert world.threads == [here, "deepdist-descent", "deepdist-descent", here]


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit()])
def test_an_error_is_told_from_either_thread(world: World, error: BaseException) -> None:
    world.run(0, error=error)
    world.run(1, error=error)
    world.settled()
    world.run(2)
    world.settled()
    assert world.told == [(None, error), (None, error), (2, None)]


def test_short_ones_are_not_handed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_S", SOON_S)
    for number in range(5):
        world.run(number)
    assert set(world.threads) == {threading.current_thread().name}


def test_its_thread_ends_with_the_training_and_another_one_has_its_own(world: World, settled: Any) -> None:
    for training in range(2):
        world.run(0)
        world.run(1)
        world.settled()
        world.descending.stop()
        assert settled(lambda: [t for t in threading.enumerate() if t.name == "deepdist-descent"], []) == []
        assert len(world.threads) == 2 * (training + 1)
    assert world.threads[::2] == [threading.current_thread().name] * 2, "each training begins with none seen"
