"""Updates of any structure as vectors."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p.server.any_update import flatten
from p2p.server.sums import scaled, summed


class Pair(NamedTuple):
    w: Any
    b: Any


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same classes, dtypes and formats."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if sparse.issparse(one):
        return one.dtype == other.dtype and np.array_equal(one.toarray(), other.toarray())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


ONES, HALF = np.ones(2), np.full(2, 0.5, np.float32)
MATRIX = np.array([[0.0, 2.0], [0.0, 0.0]])
FORMATS = ("coo", "csr", "csc", "bsr", "dia", "dok", "lil")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (ONES, ONES, 2 * ONES),
        (HALF, HALF, 2 * HALF),
        (HALF, ONES, ONES + HALF),
        (np.array(1.0), np.array(2.0), np.float64(3.0)),
        (np.float32(1), np.float32(2), np.float32(3)),
        (np.array([100], np.int8), np.array([100], np.int8), np.array([200])),
        (np.array([200], np.uint8), np.array([200], np.uint8), np.array([400], np.uint64)),
        (1, 2, 3),
        (1.5, 2, 3.5),
        (1j, 2.0, 2 + 1j),
        (None, None, None),
        ("sgd", "sgd", "sgd"),
        ({"w": ONES}, {"w": ONES, "b": 1.0}, {"w": 2 * ONES, "b": 1.0}),
        ({"w": {3: ONES}}, {"w": {3: ONES, 7: HALF}}, {"w": {3: 2 * ONES, 7: HALF}}),
        ([ONES, [1]], [ONES, [2]], [2 * ONES, [3]]),
        ((ONES, 4), (ONES, 5), (2 * ONES, 9)),
        (Pair(ONES, 1.0), Pair(ONES, 2.0), Pair(2 * ONES, 3.0)),
        (OrderedDict(b=1, a=2), OrderedDict(a=1), OrderedDict(b=1, a=3)),
        (Counter(a=1), Counter(b=2), Counter(a=1, b=2)),
        (defaultdict(int, a=1), defaultdict(int, a=1), defaultdict(int, a=2)),
        *((sparse.csr_array(MATRIX), sparse.coo_array(MATRIX), sparse.csr_array(2 * MATRIX)) for _ in "1"),
    ],
)
def test_two_updates_are_added_where_both_have_numbers(one: Any, other: Any, expected: Any) -> None:
    assert same(summed(one, other), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_a_matrix_keeps_its_format_and_dtype(form: str) -> None:
    matrix = sparse.coo_array(MATRIX.astype(np.float32)).asformat(form)
    assert same(summed(matrix, matrix), sparse.coo_array(2 * MATRIX.astype(np.float32)).asformat(form))
    assert same(scaled(matrix, 0.5), sparse.coo_array(MATRIX.astype(np.float32) / 2).asformat(form))
    narrow = sparse.coo_array(np.array([[100]], np.int8)).asformat(form)
    assert same(summed(narrow, narrow), sparse.coo_array(np.array([[200]])).asformat(form))


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ({"w": ONES}, {"w": np.ones(3)}, r"update\['w'\] is a ndarray of float64, shape \(2,\) in one chunk and a nd"),
        ([ONES], [1.0], r"update\[0\]"),
        ([ONES], [ONES, ONES], r"update is a list of 1 in one chunk and a list of 2"),
        ([ONES], (ONES,), r"update is a list of 1 in one chunk and a tuple"),
        ({"w": [True]}, {"w": [True]}, r"update\['w'\]\[0\] is a bool"),
        (np.array([True]), np.array([True]), "update is a ndarray of bool"),
        ({"rule": "sgd"}, {"rule": "adam"}, r"update\['rule'\] is a str"),
        ({"w": None}, {"w": ONES}, r"update\['w'\] is a NoneType"),
        (sparse.csr_array(MATRIX), MATRIX, "update is a csr_array of float64"),
        (sparse.csr_array(MATRIX), sparse.csr_array(MATRIX[:1]), "update is a csr_array of float64"),
    ],
)
def test_what_cannot_be_added_is_named(one: Any, other: Any, place: str) -> None:
    with pytest.raises(UsageError, match=place + r".*or n_push=1"):
        summed(one, other)


def test_neither_is_changed_nor_held() -> None:
    one, other = {"w": np.ones(2)}, {"w": np.ones(2), "b": np.ones(2)}
    found = summed(one, other)
    found["w"] += 1
    found["b"] += 1
    assert all((array == 1).all() for update in (one, other) for array in update.values())


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (ONES, ONES / 4),
        (HALF, HALF / 4),
        (np.array([4], np.float16), np.array([1], np.float16)),
        (np.array([4j], np.complex64), np.array([1j], np.complex64)),
        (np.float32(4), np.float32(1)),
        (4.0, 1.0),
        (4j, 1j),
        ({"w": {3: ONES}, "rule": "sgd", "none": None}, {"w": {3: ONES / 4}, "rule": "sgd", "none": None}),
        (Pair([ONES], (4.0,)), Pair([ONES / 4], (1.0,))),
    ],
)
def test_a_multiple_is_of_all_numbers(update: Any, expected: Any) -> None:
    assert same(scaled(update, 0.25), expected)
    assert same(scaled(update, 1.0), update)


@pytest.mark.parametrize("part", [3, True, np.arange(2), np.int64(3), sparse.csr_array(np.eye(2, dtype=int)), {1}])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_part_of_an_integer_or_an_object_is_none(part: Any, weight: float) -> None:
    with pytest.raises(UsageError, match=r"staleness_weight and update\['w'\]\[0\], which is a .*expected floating"):
        scaled({"w": [part]}, weight)


def test_what_can_be_sent_in_parts_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    update = {"w": ONES, "rows": {3: HALF}, "pair": Pair(1.0, sparse.csr_array(MATRIX)), "count": 3}
    flatten(update)
    flatten(summed(update, update))
