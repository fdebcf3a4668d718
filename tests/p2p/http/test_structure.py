"""Structures of updates that came from outside: what `flatten` makes passes, and nothing else does."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from p2p.http.messages import Refused
from p2p.http.structure import STRUCTURE_BYTES_MAX, check_structure
from p2p.server.any_update import flatten, inflate


class Step(NamedTuple):
    w: Any
    rate: Any


MUCH = 1 << 20
ZEROS = np.zeros((600, 4))
ZEROS[5] = 1
MOSTLY_ZERO = np.zeros(20_000)
MOSTLY_ZERO[-1] = 1


@pytest.mark.parametrize(
    ("update", "expanded"),
    [
        (None, 0),
        ({"w": np.ones(3), "b": 1.5, "s": "text", "t": True, "n": None}, 0),
        ([1, (2, [3.0, {"a": np.ones(1)}])], 0),
        ({"w": ZEROS}, ZEROS.nbytes),
        ({3: np.ones(2), 5: np.zeros(2)}, 0),
        ({3: np.ones(2), 5: np.zeros(3)}, 0),
        ({"w": dict.fromkeys(range(600), ZEROS[0])}, ZEROS.nbytes),
        ({("a", 1): np.float32(2), None: 1j, "c": np.ones(3, complex)}, 0),
        (OrderedDict(a=Step(np.ones(2), 0.5)), 0),
        (np.ones((4, 2), ">c8"), 64),
        (sparse.csr_array(np.eye(3)), 8 * 7),
        (sparse.coo_matrix((4, 5)), 8 * 10),
        (sparse.csc_matrix(sparse.diags_array(MOSTLY_ZERO + 1)), 8 * 40_001),
    ],
    ids=map(str, range(13)),
)
def test_what_a_gradient_may_return_passes_and_tells_what_it_takes(update: Any, expanded: int) -> None:
    arrays = flatten(update)
    assert check_structure(arrays, MUCH) == expanded
    inflate(arrays)
    if expanded:
        with pytest.raises(Refused, match="larger than any may be when it is unpacked"):
            check_structure(arrays, expanded - 1)


ARRAYS = {
    "rows": np.array([0, 3]),
    "two": np.ones((2, 4)),
    "five": np.ones(5),
    "floats": np.array([0.0, 1.0]),
    "negative": np.array([-1, 0]),
    "unsigned": np.array([0, 1], np.uint8),
}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([1, "none"], "names the array 'none', which is not there"),
        ([1, "structure"], "names the array 'structure'"),
        ([1, 5], "expected a number, text, array"),
        ([0, [1]], "expected a number, text"),
        ([0], "expected a number, text"),
        ([8, 1], "expected a number, text"),
        ([9, "<f4", "00"], "expected a number, text"),
        ([9, "O", "00" * 8], "dtype 'O' .*, expected one of numbers"),
        ([9, "nonsense", "00"], "dtype 'nonsense' .*, expected one of numbers"),
        ([10, 1.0, "x"], "expected a number, text"),
        ([11, "V8", [1, "two"]], "dtype 'V8' .*, expected one of numbers"),
        ([11, "<c16", [1, "five"]], "as complex128, expected an array, of pairs"),
        ([11, ">f8", [0, 1]], "expected an array, of pairs"),
        ([12, "m", "n", ["a"], []], "expected a number, text"),
        ([12, "m", "n", [1], [[0, 1]]], "expected a number, text"),
        ([13, "dict", [[0, 1]], []], "expected a number, text"),
        ([13, "dict", [[1, "none"]], [[0, 1]]], "names the array 'none'"),
        ("text", "expected a number, text"),
        ([4, [1]], "expected a number, text"),
        ([5, [4, 4], "floats", "two"], "'floats' is float64"),
        ([5, [4, 4], "two", "two"], r"'two' is float64 of shape \(2, 4\)"),
        ([5, [3, 4], "rows", "two"], "rows or places 0 to 3, expected 0 to 2"),
        ([5, [4, 4], "negative", "two"], "rows or places -1 to 0"),
        ([5, [4, 5], "rows", "two"], r"'two' has shape \(2, 4\), expected 2 rows"),
        ([5, [], "rows", "two"], "expected 2 rows of an array"),
        ([5, [-1, 4], "rows", "two"], r"shape \[-1, 4\], expected whole numbers"),
        ([5, [True, 4], "rows", "two"], r"shape \[True, 4\], expected whole numbers"),
        ([5, [1 << 50, 4], "rows", "two"], "expected whole numbers"),
        ([5, [1 << 40, 4], "rows", "two"], "larger than any may be"),
        ([5, [4] * 40, "rows", "two"], "expected whole numbers"),
        ([6, "rows", [1, "five"], None], r"vectors of shape \(5,\), expected 2 of them"),
        ([6, "rows", [0, 1], None], "vectors of shape None, expected 2"),
        ([6, "rows", None, [[1, "five"]]], "expected 2 vectors"),
        ([6, "rows", None, "two"], "'two', expected 2 vectors"),
        ([6, "floats", [1, "two"], None], "'floats' is float64"),
        ([7, [4, 4], "dia", True, [1, "floats"], [[1, "rows"], [1, "rows"]]], "a matrix 'dia'"),
        ([7, [4, 4, 4], "coo", True, [1, "floats"], [[1, "rows"]] * 3], "a matrix 'coo' of shape"),
        ([7, [4, 4], "coo", True, [1, "floats"], [[1, "rows"]]], "a matrix 'coo' of shape"),
        ([7, [4, 4], "csr", True, [1, "two"], [[1, "rows"], [1, "rows"]]], r"entries of shape \(2, 4\)"),
        ([7, [4, 4], "csr", True, [1, "five"], [[1, "rows"], [1, "rows"]]], "2 places, expected 5"),
        ([7, [4, 3], "csr", True, [1, "floats"], [[1, "rows"], [1, "rows"]]], "places 0 to 3, expected 0 to 2"),
        ([7, [4, 4], "csr", True, [1, "floats"], [[1, "floats"], [1, "rows"]]], "'floats' is float64"),
        ([7, [4, 4], "csr", True, [1, "floats"], [[0, 1], [1, "rows"]]], "expected the places of entries"),
        ([7, [1 << 40, 4], "csr", True, [1, "floats"], [[1, "rows"], [1, "unsigned"]]], "larger than any may be"),
    ],
    ids=map(str, range(44)),
)
def test_what_cannot_be_followed_is_refused_before_it_is(tree: Any, message: str) -> None:
    arrays = {**ARRAYS, "structure": np.frombuffer(json.dumps([tree, {}]).encode(), np.uint8)}
    with pytest.raises(Refused, match=message):
        check_structure(arrays, MUCH)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (None, "array 'structure' is not there"),
        (np.ones(3), "array 'structure' is not there"),
        (np.frombuffer(b"nonsense", np.uint8), "it is no JSON"),
        (np.frombuffer(b"[" * 100_000, np.uint8), "it is no JSON"),
        (np.frombuffer(b"[NaN, {}]", np.uint8), "it is no JSON"),
        (np.frombuffer(b"[[0, 1e999], {}]", np.uint8), "expected a number"),
        (np.frombuffer(b"[1]", np.uint8), r"expected \[tree, {}\]"),
        (np.frombuffer(b"[[0, 1], 2]", np.uint8), r"expected \[tree, {}\]"),
        (np.zeros(STRUCTURE_BYTES_MAX + 1, np.uint8), f"{STRUCTURE_BYTES_MAX + 1} bytes, expected at most"),
    ],
    ids=map(str, range(9)),
)
def test_what_is_no_structure_is_refused(structure: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        check_structure({} if structure is None else {"structure": structure}, MUCH)


def test_no_structure_is_deeper_than_it_may_be() -> None:
    for depth, passes in ((32, True), (33, False)):
        update: Any = 1
        for _ in range(depth):
            update = [update]
        if passes:
            check_structure(flatten(update), MUCH)
        else:
            with pytest.raises(Refused, match="more than 32 levels"):
                check_structure(flatten(update), MUCH)
