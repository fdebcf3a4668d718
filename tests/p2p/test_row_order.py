"""Rows in an order of their own: it depends on their contents only, and the fingerprint tells other rows apart."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import Row

from gossip.errors import UsageError
from p2p.row_order import NUMBER_BITS, in_order, numbered, taken_apart

MIB = 1 << 20


@dataclass(frozen=True)
class Point:
    x: int
    name: str


Pair = namedtuple("Pair", "left right")


def words(*numbers: int) -> list[str]:
    """Strings that are new objects each time."""
    return [f"word {number}" for number in numbers]


MAKERS: dict[str, Callable[[int], Any]] = {
    "texts": lambda i: f"row ä {i} \udc80",
    "bytes": lambda i: b"\x00row %d" % i,
    "token lists": lambda i: words(i, i, i + 1),
    "numbers": lambda i: i,
    "floats": lambda i: i * 0.1,
    "labelled": lambda i: (i % 2, [i * 0.5, float("inf"), -0.0], None),
    "dicts": lambda i: {"x": i, "y": {"z": words(i)}},
    "sets": lambda i: frozenset(range(i, i + 20)),
    "arrays": lambda i: np.arange(i, i + 3, dtype=np.float32),
    "with arrays": lambda i: (np.full((2, 2), i), np.float64(i)),
    "arrays of objects": lambda i: np.array(["a", i, None], object),
    "Spark's rows": lambda i: Row(id=i, text=f"text {i}", tokens=words(i)),
    "named tuples": lambda i: Pair(i, words(i)),
    "dataclasses": lambda i: Point(i, f"point {i}"),
    "of all kinds": lambda i: [i, str(i), str(i).encode(), (i,), None, True][i % 6],
}


def plain(row: Any) -> str:
    """What tells rows apart, also those with arrays."""
    return f"{type(row)} {getattr(row, 'dtype', '')} {row!r}"


def ordered(rows: Iterator[Any] | list[Any], memory_bytes: int = MIB, folder: str | None = None) -> tuple[Any, int]:
    again, fingerprint = in_order(rows, memory_bytes, folder)
    return list(again), fingerprint


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_order_and_the_fingerprint_are_those_of_the_contents(make: Callable[[int], Any]) -> None:
    numbers = [*range(60), 3, 3]
    rows, fingerprint = ordered([make(i) for i in numbers])
    assert Counter(map(plain, rows)) == Counter(plain(make(i)) for i in numbers)
    assert list(map(plain, rows)) != [plain(make(i)) for i in numbers]
    for seed in range(3):
        random.Random(seed).shuffle(numbers)
        again, the_same = ordered(iter([make(i) for i in numbers]))
        assert list(map(plain, again)) == list(map(plain, rows))
        assert the_same == fingerprint


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_other_rows_have_another_fingerprint(make: Callable[[int], Any]) -> None:
    rows = [make(i) for i in range(20)]
    others = [rows[:-1], [*rows, make(0)], [*rows[:-1], make(20)], [*rows, *rows], []]
    fingerprints = {ordered(some)[1] for some in [rows, *others]}
    assert len(fingerprints) == 6
    assert all(0 <= fingerprint < 1 << NUMBER_BITS for fingerprint in fingerprints)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", 1), ("1", b"1"), (1, 1.0), (True, 1), ((1,), [1]), (0.0, -0.0), (None, "None"), ("ab", ("a", "b"))],
)
def test_equals_of_another_kind_are_other_rows(one: Any, other: Any) -> None:
    assert ordered([one])[1] != ordered([other])[1]


def test_whether_equal_parts_are_one_object_makes_no_difference() -> None:
    (one,), (other,) = words(1), words(1)
    key = sys.intern("key")
    shared, apart = [one, one, {key: one}, (one, one)], [one, other, {"".join("key"): other}, (other, one)]
    assert pickle.dumps(shared) != pickle.dumps(apart), "as a pickle usually does"
    assert ordered([shared])[1] == ordered([apart])[1]


def test_rows_may_be_deep() -> None:
    row: Any = "core"
    for _ in range(100):
        row = [row]
    assert ordered([row])[0] == [row]


def test_arrays_can_be_written_to() -> None:
    rows, _ = ordered([np.zeros(2)])
    rows[0] += 1
    np.testing.assert_array_equal(rows[0], [1, 1])


def test_classes_that_no_module_has_stay_what_they_are() -> None:
    """As those of a notebook, which cloudpickle brings to the workers."""
    first, second = (make_dataclass("Cell", ["x"]) for _ in range(2))
    rows, fingerprint = ordered([first(1), second(1), first(2)])
    assert Counter(map(type, rows)) == {first: 2, second: 1}
    assert all(row in (first(1), second(1), first(2)) for row in rows)
    assert ordered([first(2), first(1), second(1)])[1] == fingerprint


def test_processes_agree_on_the_order() -> None:
    program = (
        "from dataclasses import make_dataclass\n"
        "from p2p.row_order import in_order\n"
        "Cell = make_dataclass('Cell', ['x'])\n"
        "rows, fingerprint = in_order([Cell(i) for i in range(9)] + ['a', 'b', ('c', 1.5)], 1 << 20)\n"
        "print([getattr(row, 'x', row) for row in rows], fingerprint)"
    )
    told = {
        subprocess.check_output(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize("row", [threading.Lock(), (1, lambda: 1), (number for number in [1])])
def test_a_row_that_cannot_be_pickled_is_named(row: Any) -> None:
    kind = type(row).__name__
    with pytest.raises(UsageError, match=f"a row of type {kind} cannot be pickled .*, expected one that can"):
        in_order([1, row], MIB)


def test_a_row_that_holds_itself_is_refused() -> None:
    row: list[Any] = []
    row.append(row)
    with pytest.raises(UsageError, match="a row of type list cannot be pickled"):
        in_order([row], MIB)


def test_rows_that_cannot_be_read_fail_as_they_do() -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        in_order(rows(), MIB)


# ------------------------------------------------------------------------------------------- more than fits into memory


@pytest.mark.parametrize("memory_bytes", [0, 2_000, 50_000])
def test_what_does_not_fit_into_memory_goes_to_files_and_comes_back_in_order(memory_bytes: int, tmp_path: Path) -> None:
    numbers = list(range(300))
    random.Random(5).shuffle(numbers)
    rows = [MAKERS["of all kinds"](i) for i in numbers]
    opened = len(os.listdir("/proc/self/fd"))
    again, fingerprint = in_order(iter(rows), memory_bytes, str(tmp_path))
    assert (len(os.listdir("/proc/self/fd")) > opened) == (memory_bytes < 50_000)
    assert list(tmp_path.iterdir()) == [], "the files have no name"
    assert (list(again), fingerprint) == ordered(rows)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_no_more_is_held_than_is_said() -> None:
    made: list[int] = []

    def rows() -> Iterator[str]:
        for i in range(3000):
            made.append(i)
            yield f"{i:010}" * 1000

    tracemalloc.start()
    try:
        again, _ = in_order(rows(), MIB)
        assert sum(len(row) for row in again) == 3000 * 10_000
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MIB, "of 30 MB"
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------------------------------- numbers of chunks


def test_a_chunk_has_the_fingerprint_above_its_number() -> None:
    assert taken_apart(numbered(5, 7)) == (5, 7)
    assert numbered(0, 7) == 7, "rows that come as they are have plain numbers"
    assert numbered(5, 8) == numbered(5, 7) + 1, "so that marks of a run stay one"
    highest = (1 << NUMBER_BITS) - 1
    assert taken_apart(numbered(highest, highest)) == (highest, highest)
    assert numbered(highest, highest) < 1 << 63
