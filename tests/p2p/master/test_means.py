"""Means of updates of any structure, and of models."""

from __future__ import annotations

from collections import Counter, OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p.master.means import ModelSum, combined

Line = namedtuple("Line", ["w", "b"])


def test_dicts_lists_and_tuples_are_averaged_part_by_part() -> None:
    one: Any = {"w": np.array([1.0, 2.0]), "more": [np.ones(2, np.float32), (3, 1.5)], 7: None}
    two: Any = {"w": np.array([3.0, 6.0]), "more": [np.zeros(2, np.float32), (4, 0.5)], 7: np.ones(1), "new": 2.0}
    found = combined([one, two], "mean")
    assert list(found) == ["w", "more", 7, "new"]
    assert found["w"].tolist() == [2, 4]
    assert (found["more"][0].tolist(), found["more"][0].dtype) == ([0.5, 0.5], np.float32)
    assert found["more"][1] == (3.5, 1.0)
    assert (found[7].tolist(), found["new"]) == ([0.5], 1.0), "what is not there is zeros"
    assert one["w"].tolist() == [1, 2], "what came stays as it is"
    assert combined([one, two], "sum")["more"][1] == (7, 2.0)


def test_one_update_is_its_own_mean_and_a_copy() -> None:
    update = {"w": np.ones(2)}
    found = combined([update], "mean")
    assert found["w"].tolist() == [1, 1]
    assert found["w"] is not update["w"]


def test_classes_stay_what_they_are() -> None:
    lines = combined([Line(np.ones(1), 1.0), Line(np.zeros(1), 0.0)], "mean")
    assert type(lines) is Line
    assert (lines.w.tolist(), lines.b) == ([0.5], 0.5)
    assert type(combined([OrderedDict(a=1), OrderedDict(b=1)], "mean")) is OrderedDict
    assert combined([Counter("aab"), Counter("b")], "sum") == Counter("aabb")


def test_counts_are_summed_and_other_integers_averaged() -> None:
    update = {"n": np.array([3]), "x": np.array([3]), "deep": [{"n": np.array([1])}]}
    found = combined([update, {**update, "x": np.array([4])}], "mean", {"n", "deep.0.n"})
    assert (found["n"].tolist(), found["x"].tolist(), found["deep"][0]["n"].tolist()) == ([6], [3.5], [2])


def test_sums_of_narrow_numbers_do_not_overflow() -> None:
    update = {"h": np.full(1, 60_000, np.float16), "i": np.full(1, 100, np.int8), "n": np.int8(100)}
    found = combined([update] * 4, "sum")
    assert (found["h"].tolist(), found["i"].tolist(), found["n"]) == ([4 * float(np.float16(60_000))], [400], 400)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "dok", "lil"])
def test_sparse_matrices_are_averaged_as_such(form: str) -> None:
    one, two = (sparse.random(5, 4, 0.4, form, np.float64, np.random.default_rng(seed)) for seed in (1, 2))
    found = combined([{"w": one}, {"w": two}, {}], "mean")["w"]
    assert sparse.issparse(found)
    np.testing.assert_allclose(found.toarray(), (one.toarray() + two.toarray()) / 3, rtol=1e-15)


def test_rows_by_number_are_averaged_each() -> None:
    found = combined([{"w": {3: np.ones(2), 5: np.ones(2)}}, {"w": {5: np.ones(2)}}], "mean")
    assert {row: values.tolist() for row, values in found["w"].items()} == {3: [0.5, 0.5], 5: [1, 1]}


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ({"w": np.ones(2)}, {"w": np.ones(3)}, r"'w' of a worker's update is of shape \(3,\), expected of \(2,\)"),
        ([1, 2], [1], "'update' of a worker's update is of 1 parts, expected of 2"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "'a.b' of a worker's update is 'y', expected 'x'"),
        ({"w": True}, {"w": False}, "'w' of a worker's update is False, expected True"),
        ({"w": 1.0}, {"w": {"b": 1.0}}, "'w' of a worker's update"),
        ({"w": sparse.eye(2)}, {"w": sparse.eye(3)}, r"is of shape \(3, 3\), expected of shape \(2, 2\)"),
    ],
)
def test_what_cannot_be_averaged_is_named(one: Any, two: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        combined([one, two], "mean")


def test_text_and_flags_that_are_the_same_stay() -> None:
    assert combined([{"kind": "dense", "last": False}] * 2, "mean") == {"kind": "dense", "last": False}


def test_models_are_averaged_by_weight_and_counts_by_what_was_added() -> None:
    start = {"w": np.array([1.0]), "n": np.array([10], np.uint8), "h": np.ones(1, np.float16)}
    total = ModelSum(start, {"n"})
    total.add({"w": np.array([2.0]), "n": np.array([13], np.uint8), "h": np.full(1, 3, np.float16)}, 3)
    total.add({"w": np.array([6.0]), "n": np.array([9], np.uint8), "h": np.full(1, 1, np.float16)}, 1)
    found = total.mean()
    assert {name: array.tolist() for name, array in found.items()} == {"w": [3.0], "n": [12], "h": [2.5]}
    assert (total.models, total.weight, found["h"].dtype) == (2, 4, np.float16)
