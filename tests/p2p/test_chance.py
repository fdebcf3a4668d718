"""User code draws from global generators: each task other numbers, each run the same, and the user's are untouched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, SimulatedCluster
from p2p.chance import Borrowed, seed
from p2p.worker.task import current

PARTITIONS, CHUNKS, EPOCHS = 3, 2, 2


def draw() -> list[float]:
    return [np.random.random(), random.random()]


def gradient(model: Any, rows: Iterator[list[float]]) -> dict[str, Any]:
    """At the place of its chunk in the model, what it draws, and what its row drew."""
    (row,) = rows
    task = current()
    assert task is not None
    drawn = np.zeros_like(model["drawn"])
    drawn[task.epoch, task.partition, task.chunk] = [*row, *draw()]
    return {"drawn": drawn}


def rows() -> Iterator[list[float]]:
    for _ in range(CHUNKS):
        yield draw()


def drawn(trainings: int = 1, **options: Any) -> Any:
    model = {"drawn": np.zeros((EPOCHS, PARTITIONS, CHUNKS, 4))}
    with DeepDist(model, progress=False, **options) as dd:
        for _ in range(trainings):
            before = dd.model["drawn"].copy()
            dd.train([rows] * PARTITIONS, gradient, epochs=EPOCHS, chunk_rows=1)
        return dd.model["drawn"] - before


def cluster(seed: int = 5) -> SimulatedCluster:
    return SimulatedCluster(peers=3, seed=seed)


def test_every_chunk_draws_numbers_of_its_own_and_the_same_in_every_run() -> None:
    first = drawn(engine=cluster())
    assert len(np.unique(first)) == first.size
    assert np.array_equal(drawn(engine=cluster()), first)
    assert np.array_equal(drawn(engine=cluster(seed=6)), first), "it is the seed of the session that counts"
    assert not np.isin(drawn(engine=cluster(), seed=1), first).any()


def test_a_second_training_draws_other_numbers() -> None:
    first, second = drawn(engine=cluster()), drawn(2, engine=cluster())
    assert not np.isclose(second.ravel()[:, None], first.ravel(), atol=1e-12).any()


def test_processes_draw_what_simulated_peers_draw() -> None:
    assert np.array_equal(drawn(peers=2), drawn(engine=cluster()))


def test_attempts_draw_the_same_and_the_user_s_generators_are_untouched() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    clean = drawn(engine=SimulatedCluster(peers=2, seed=1))
    assert draw() == expected
    again = drawn(engine=SimulatedCluster(peers=2, seed=2, fail=0.4, speculate=0.5))
    assert np.array_equal(again[..., 2:], clean[..., 2:])


@pytest.mark.parametrize("odd", [0, 1])
def test_a_normal_number_that_is_left_over_is_kept_for_whom_it_was_drawn(odd: int) -> None:
    def some(count: int) -> list[float]:
        return [float(np.random.standard_normal()) for _ in range(count)]  # the legacy function draws two at a time

    seed(3, 1, 2)
    mine = some(7)
    seed(4)
    theirs = some(7)
    borrowed = Borrowed()
    seed(4)
    found_theirs = some(2 + odd)
    with borrowed:
        seed(3, 1, 2)
        found_mine = some(3 - odd)
    found_theirs += some(3)
    with borrowed:
        found_mine += some(4 + odd)
    assert (found_theirs + some(2 - odd), found_mine) == (theirs, mine)


def test_a_generator_that_the_user_has_set_is_the_user_s_again() -> None:
    before = np.random.get_bit_generator()
    other = np.random.PCG64(1)
    np.random.set_bit_generator(other)
    try:
        drawn(engine=cluster())
        assert np.random.get_bit_generator() is other
        assert np.random.random() == np.random.Generator(np.random.PCG64(1)).random()
    finally:
        np.random.set_bit_generator(before)


def test_what_is_borrowed_goes_on_where_it_was_left() -> None:
    seed(3, 1, 2)
    expected = [draw(), draw()]
    borrowed = Borrowed()
    with borrowed:
        seed(3, 1, 2)
        found = [draw()]
    draw()
    with borrowed:
        found.append(draw())
    assert found == expected
