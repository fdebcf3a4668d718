"""What a gradient returned, as named arrays and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from gossip.arrays import DTYPES, Layout, Packed
from gossip.errors import UsageError
from p2p.server.any_update import flatten, inflate

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )
)
UPDATES = st.recursive(
    PLAIN | ARRAYS,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=4).map(tuple)
        | st.dictionaries(st.text(st.characters(codec="utf-8")), inside, max_size=4)
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, of the same types, down to every array's dtype and bits."""
    if type(left) is not type(right):
        return False
    match left:
        case np.ndarray():
            return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        case list() | tuple():
            return len(left) == len(right) and all(map(same, left, right))
        case dict():
            return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@settings(deadline=None)
@given(UPDATES, st.dictionaries(st.sampled_from(["merged_at", "chunk", "ä"]), st.integers()))
def test_an_update_arrives_as_it_was(update: Any, extra: dict[str, int]) -> None:
    arrays = flatten(update, **extra)
    packed = Packed.of(arrays)  # the way it travels
    again, numbers = inflate(Packed(packed.layout, bytes(packed.buffer)).arrays())
    assert same(again, update)
    assert numbers == extra


def test_what_is_not_a_number_stays_so_outside_of_arrays() -> None:
    update, _ = inflate(flatten([float("inf"), float("-inf"), float("nan")]))
    np.testing.assert_array_equal(update, [np.inf, -np.inf, np.nan])


def test_numbers_of_numpy_keep_their_value_and_type() -> None:
    update, _ = inflate(flatten({"loss": np.float32(0.1), "n": np.int64(7), "yes": np.bool_(True)}))
    assert update["loss"] == np.float32(0.1)
    assert update["loss"].dtype == np.float32
    assert update["n"] == 7
    assert update["yes"]


def test_arrays_that_lie_scattered_in_memory_arrive_in_order() -> None:
    scattered = np.arange(24.0).reshape(4, 6)[::2, ::-3]
    update, _ = inflate(flatten(scattered))
    np.testing.assert_array_equal(update, scattered)
    update, _ = inflate(flatten(np.asfortranarray(np.arange(6).reshape(2, 3))))
    np.testing.assert_array_equal(update, [[0, 1, 2], [3, 4, 5]])


def test_every_update_has_a_layout() -> None:
    assert Layout.of(flatten(None)).nbytes > 0


@dataclass
class Gradient:
    w: Any


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (Gradient(1), r"update is a Gradient: .* made of numpy arrays, sparse matrices of scipy, numbers, text"),
        ({"a": [1, {2, 3}]}, r"update\['a'\]\[1\] is a set"),
        ([(1, b"bytes")], r"update\[0\]\[1\] is a bytes"),
        ({"a": {7: 1, "b": 1}}, r"update\['a'\] has the key 7, expected text, or numbers of rows"),
        ({"a": {1 << 63: 1}}, r"update\['a'\] has the key 9223372036854775808, expected text"),
        ({"a": {0: np.ma.array([1.0], mask=[True])}}, r"update\['a'\]\[0\] has masked numbers"),
        ((0, np.zeros(1, complex)), r"update\[1\] has dtype complex128, expected numbers of at most 64 bits"),
        ({"o": np.array([None])}, r"update\['o'\] has dtype object, expected numbers"),
        ([np.array(["text"])], r"update\[0\] has dtype <U4, expected numbers"),
        ([1j], r"update\[0\] is a complex"),
        (lambda: 1, "update is a function"),
    ],
)
def test_what_cannot_travel_is_named_by_its_place(update: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        flatten(update)


def sparse_forms() -> list[Any]:
    numbers = np.zeros((3000, 4), np.float32)
    numbers[[7, 2999], 2] = [1.5, -0.0]
    twice = ([1.0, 2.0, 3.0], ([5, 5, 0], [1, 1, 2]))
    matrices = [getattr(sparse, name)(numbers) for name in ("csr_matrix", "csr_array", "csc_array", "coo_array")]
    return [*matrices, sparse.coo_array(twice, shape=(9, 3)), sparse.coo_array(np.array([0.0, 4.0]))]


@pytest.mark.parametrize("matrix", sparse_forms())
def test_a_sparse_matrix_arrives_in_its_format_with_the_same_entries(matrix: Any) -> None:
    update, _ = inflate(flatten({"w": matrix}))
    assert (type(update["w"]), update["w"].dtype) == (type(matrix), matrix.dtype)
    np.testing.assert_array_equal(update["w"].toarray(), matrix.toarray())


def test_an_array_of_few_rows_travels_as_these_and_arrives_to_the_bit() -> None:
    array = np.zeros((3000, 4), np.float32)
    array[[7, 2999], 2] = [1.5, -0.0]
    arrays = flatten({"w": array, "n": np.zeros(3000, np.int64)})
    assert Layout.of(arrays).nbytes < 1000
    update, _ = inflate(arrays)
    assert same(update, {"w": array, "n": np.zeros(3000, np.int64)})
    assert Layout.of(flatten(np.ones((3000, 4)))).nbytes < 3000 * 4 * 8 + 1000


@pytest.mark.parametrize("rows", [{3: np.ones(2), 1: np.zeros(2)}, {0: 1.5, 4: [1, 2]}, {np.int64(2): np.ones(1)}])
def test_rows_by_number_arrive(rows: dict[int, Any]) -> None:
    update, _ = inflate(flatten({"w": rows}))
    assert list(update["w"]) == list(rows)
    for row, vector in rows.items():
        np.testing.assert_array_equal(update["w"][row], vector)
