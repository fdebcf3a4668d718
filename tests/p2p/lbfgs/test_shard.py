"""A shard, its range of a vector, and the rows of a partition."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from p2p.lbfgs.flat import BLOCK_NUMBERS, Flat, dot
from p2p.lbfgs.rows import Partition
from p2p.lbfgs.shard import Attempt, Shard


def test_the_first_attempt_that_is_told_to_count_counts_and_no_other() -> None:
    shard = Shard(np.zeros(2), 5, 0.0, 0)
    shard.try_step(1, 0.0)
    first, second, other = Attempt(1, 0, 0, 0), Attempt(1, 0, 0, 1), Attempt(1, 0, 1, 0)
    assert shard.push(first, np.array([1.0, 0.0]))
    assert shard.push(second, np.array([2.0, 0.0]))
    assert shard.push(other, np.array([0.0, 4.0]))
    shard.count(second)
    shard.count(other)
    with pytest.raises(KeyError):
        shard.count(first)
    assert shard.measure().gradient_square == 4.0 + 16.0


def test_what_is_pushed_for_a_point_that_is_over_is_late() -> None:
    shard = Shard(np.zeros(2), 5, 0.0, 0)
    shard.try_step(1, 0.0)
    assert shard.push(Attempt(1, 0, 0, 0), np.ones(2))
    shard.try_step(2, 0.0)
    assert not shard.push(Attempt(1, 0, 0, 1), np.ones(2))
    with pytest.raises(KeyError):
        shard.count(Attempt(1, 0, 0, 0))
    assert shard.measure().gradient_square == 0.0


def test_the_iterate_before_is_there_until_the_next_trial() -> None:
    start = np.array([1.0, 2.0])
    shard = Shard(start, 5, 0.0, 4)
    shard.try_step(1, 0.0)
    shard.push(Attempt(1, 0, 0, 0), np.ones(2))
    shard.count(Attempt(1, 0, 0, 0))
    shard.settle()
    shard.direct(np.array([-1.0]), keeps=False)
    shard.try_step(2, 0.5)
    shard.accept()
    assert [None if (x := shard.iterate_of(n)) is None else x.tolist() for n in (3, 4, 5, 6)] == [
        None,
        [1.0, 2.0],
        [0.5, 1.5],
        None,
    ]
    shard.try_step(3, 0.5)
    assert shard.iterate_of(4) is None
    assert start.tolist() == [1.0, 2.0], "what it was given stays"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_a_model_is_one_vector_whatever_its_arrays(count: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {"b": rng.normal(size=(3, 4)), "a": np.array(1.5), "c": np.asfortranarray(rng.normal(size=(4, 5)))}
    flat = Flat(Layout.of(arrays))
    spans = flat.spans(count)
    assert spans[0][0] == 0
    assert spans[-1][1] == flat.size == 33
    assert len(spans) == min(count, 33)
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    vector = np.concatenate([flat.read(arrays, *span) for span in spans])
    for name, view in flat.views(vector).items():
        np.testing.assert_array_equal(view, arrays[name])
    new = rng.normal(size=33)
    kept = dict(arrays)
    for start, stop in spans:
        flat.write(arrays, start, new[start:stop])
    for name, view in flat.views(new).items():
        np.testing.assert_array_equal(view, kept[name])
        assert arrays[name] is kept[name], "written in place"


def test_a_float32_beside_a_float64_is_computed_in_float64() -> None:
    flat = Flat(Layout.of({"a": np.zeros(2, np.float32), "b": np.zeros(2)}))
    assert flat.dtype == np.float64
    assert flat.views(np.ones(4))["a"].dtype == np.float32
    assert Flat(Layout.of({"a": np.zeros(2, np.float32)})).dtype == np.float32


@pytest.mark.parametrize("dtype", ["int64", "float16"])
def test_other_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"'n' of the model has dtype {dtype}, expected float32 or float64"):
        Flat(Layout.of({"n": np.zeros(2, dtype), "w": np.zeros(2)}))


def test_products_of_float32_are_summed_in_float64() -> None:
    ones = np.full(3 * BLOCK_NUMBERS + 5, 1 / 3, np.float32)
    third = float(np.float32(1 / 3))
    assert dot(ones, ones) == pytest.approx(len(ones) * third * third, rel=1e-12)


def rows(count: int) -> Iterator[int]:
    yield from range(count)


SOURCES = {
    "a list": lambda: list(range(7)),
    "an array": lambda: np.arange(7),
    "a function": lambda: lambda: rows(7),
    "a function that returns a list": lambda: lambda: list(range(7)),
    "a set": lambda: set(range(7)),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 2, 0], [0, 2, 1, 0, 1, 2]])
def test_chunks_are_the_same_in_any_order(source: str, order: list[int]) -> None:
    partition = Partition(SOURCES[source](), 3)
    for number in order:
        chunk = partition.chunk(number)
        assert [int(row) for row in chunk.rows] == list(range(7))[3 * number : 3 * number + 3]
        assert chunk.more == (number < 2)


@pytest.mark.parametrize("source", SOURCES)
def test_a_whole_partition_is_one_chunk(source: str) -> None:
    partition = Partition(SOURCES[source](), None)
    for _ in range(2):
        chunk = partition.chunk(0)
        assert [int(row) for row in chunk.rows] == list(range(7))
        assert not chunk.more


@pytest.mark.parametrize("size", [0, 3, 6])
def test_the_last_chunk_is_told(size: int) -> None:
    for source in (list(range(size)), lambda: rows(size)):
        partition = Partition(source, 3)
        count = max(1, size // 3)
        assert [partition.chunk(number).more for number in range(count)] == [True] * (count - 1) + [False]


def test_a_function_is_called_once_a_pass() -> None:
    calls = []

    def source() -> Iterator[int]:
        calls.append(1)
        return rows(9)

    partition = Partition(source, 3)
    for _ in range(2):
        for number in range(3):
            partition.chunk(number)
    assert len(calls) == 2
    partition.chunk(0)
    partition.leave()
    partition.chunk(1)
    assert len(calls) == 4, "rows of a partition that was left are read again"
