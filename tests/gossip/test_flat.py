"""Named arrays as one vector and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossip.arrays import Array, Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.flat import Flat, PackedLater
from gossip.updates.rows import rows_of

MODEL: dict[str, Any] = {
    "w": np.arange(6, dtype=np.float32).reshape(3, 2),
    "none": np.zeros((0, 4), np.float32),
    "b": np.array([0.1, -7.0]),
    "s": np.array(9.5, np.float16),
}
FLAT = Flat(Packed.of(MODEL).layout)


def test_a_vector_holds_the_arrays_one_after_the_other_in_the_widest_of_their_dtypes_and_gives_them_back() -> None:
    packed = Packed.of(MODEL)
    vector = FLAT.flatten(packed)
    names = [spec.name for spec in FLAT.layout.specs]
    np.testing.assert_array_equal(vector, np.concatenate([MODEL[name].ravel().astype(float) for name in names]))
    assert (vector.dtype, FLAT.dtype, FLAT.size) == (np.float64, np.float64, 9)
    assert bytes(FLAT.pack(vector).buffer) == bytes(packed.buffer)
    vector[:] = 0.0
    np.testing.assert_array_equal(packed.arrays()["b"], MODEL["b"])  # a copy
    rounded = FLAT.pack(np.full(9, 1 / 3)).arrays()
    assert rounded["w"].dtype == np.float32
    assert rounded["w"][2, 1] == np.float32(1 / 3)
    assert rounded["s"] == np.float16(1 / 3)


def test_the_dtype_is_no_wider_than_it_must_be() -> None:
    assert Flat(Packed.of({"w": np.zeros(2, np.float32), "s": np.zeros(1, np.float16)}).layout).dtype == np.float32
    short = Packed.of({"w": np.ones(3, np.float32)})
    assert Flat(short.layout).flatten(short).dtype == np.float32
    assert Flat(Packed.of({"s": np.zeros(1, np.float16)}).layout).dtype == np.float16
    nothing = Flat(Layout.of({}))
    assert (nothing.dtype, nothing.size) == (np.float64, 0)
    assert nothing.flatten(nothing.pack(np.zeros(0))).shape == (0,)


def test_rows_of_an_array_are_zero_elsewhere() -> None:
    rows = rows_of("w", np.array([0, 2]), np.array([[1, 2], [3, 4]], np.float32))
    vector = FLAT.flatten(Packed.of({**rows, "b": np.array([5.0, 6.0])}))
    arrays = FLAT.pack(vector).arrays()
    np.testing.assert_array_equal(arrays["w"], [[1, 2], [0, 0], [3, 4]])
    np.testing.assert_array_equal(arrays["b"], [5, 6])
    assert arrays["s"] == 0.0


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": MODEL["w"]},
        {**MODEL, "b": np.zeros(3)},
        rows_of("w", np.array([3]), np.zeros((1, 2), np.float32)),
        rows_of("w", np.array([1]), np.zeros((1, 3), np.float32)),
        rows_of("v", np.array([1]), np.zeros((1, 2), np.float32)),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(arrays: dict[str, Any]) -> None:
    with pytest.raises(MismatchError):
        FLAT.flatten(Packed.of(arrays))


def test_integers_have_no_mean() -> None:
    with pytest.raises(UsageError, match=r"'n'.*mixing takes means, which integers have none of"):
        Flat(Packed.of({"w": np.zeros(2), "n": np.zeros(2, np.int32)}).layout)


def test_what_is_packed_later_is_packed_once_and_when_it_is_read() -> None:
    asked: list[int] = []

    def vector() -> Array:
        asked.append(1)
        return np.arange(9.0)

    later = PackedLater(FLAT, vector)
    assert later.layout == FLAT.layout
    assert asked == []
    whole = bytes(FLAT.pack(np.arange(9.0)).buffer)
    assert bytes(later.read(0, len(whole))) == whole
    assert bytes(later.read(4, 20)) == whole[4:20]
    assert asked == [1]
