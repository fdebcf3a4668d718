"""Named arrays in one stretch of bytes: packed, viewed, cut into blocks, added and checked."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import (
    ALIGNMENT_BYTES,
    DTYPES,
    ArraySpec,
    Layout,
    Packed,
    check_finite,
    relative_distance,
    squares_of,
    squares_of_piece,
)
from gossip.errors import MismatchError

Named = dict[str, np.ndarray[Any, Any]]


@st.composite
def named_arrays(draw: st.DrawFn) -> Named:
    """Arrays of any dtype that travels, small whole numbers, so that every sum is exact; some empty, some scalars."""
    names = draw(st.lists(st.text(max_size=4), max_size=5, unique=True))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return {name: numbers(generator, draw(st.sampled_from(DTYPES)), draw(shapes)) for name in names}


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def numbers(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return generator.integers(0, 2 if dtype == "|b1" else 50, shape).astype(dtype)


# ---------------------------------------------------------------------------------------------------------- packing


@given(named_arrays())
def test_packing_and_reading_gives_the_same_arrays(arrays: Named) -> None:
    packed = Packed.of(arrays)
    views = packed.arrays()
    assert views.keys() == arrays.keys()
    for name, array in arrays.items():
        assert views[name].dtype == array.dtype
        np.testing.assert_array_equal(views[name], array, strict=True)
    assert bytes(packed.read(0, packed.layout.nbytes)) == bytes(packed.buffer)


@given(named_arrays())
def test_every_array_begins_on_a_cache_line_after_the_one_before_it(arrays: Named) -> None:
    layout = Layout.of(arrays)
    end = 0
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        assert offset % ALIGNMENT_BYTES == 0
        assert end <= offset < end + ALIGNMENT_BYTES
        assert spec.nbytes == arrays[spec.name].nbytes
        end = offset + spec.nbytes
    assert end <= layout.nbytes < end + ALIGNMENT_BYTES
    assert layout.nbytes % ALIGNMENT_BYTES == 0


@given(named_arrays(), st.randoms(use_true_random=False))
def test_a_layout_does_not_depend_on_the_order_of_the_names(arrays: Named, random: Any) -> None:
    names = list(arrays)
    random.shuffle(names)
    shuffled = Layout.of({name: arrays[name] for name in names})
    assert shuffled == Layout.of(arrays)
    assert shuffled.digest == Layout.of(arrays).digest


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros((3, 2))},
        {"w": np.zeros((2, 3), np.float32)},
        {"v": np.zeros((2, 3))},
        {"w": np.zeros((2, 3)), "b": np.zeros(1)},
        {},
    ],
)
def test_layouts_that_differ_have_different_digests(other: Named) -> None:
    assert Layout.of(other).digest != Layout.of({"w": np.zeros((2, 3))}).digest


def test_arrays_in_any_memory_order_are_packed_by_their_elements() -> None:
    matrix = np.arange(12.0).reshape(3, 4)
    packed = Packed.of({"fortran": np.asfortranarray(matrix), "transposed": matrix.T, "sparse": matrix[::2, ::3]})
    np.testing.assert_array_equal(packed.arrays()["fortran"], matrix)
    np.testing.assert_array_equal(packed.arrays()["transposed"], matrix.T)
    np.testing.assert_array_equal(packed.arrays()["sparse"], matrix[::2, ::3])


def test_packing_copies_and_viewing_does_not() -> None:
    array = np.ones(4)
    packed = Packed.of({"w": array})
    array[:] = 7
    np.testing.assert_array_equal(packed.arrays()["w"], np.ones(4))
    packed.arrays()["w"][2] = 5
    np.testing.assert_array_equal(packed.arrays()["w"], [1, 1, 5, 1])


def test_views_of_a_buffer_that_cannot_be_written_cannot_be_either() -> None:
    packed = Packed.of({"w": np.ones(4)})
    assert not packed.layout.views(bytes(packed.buffer))["w"].flags.writeable


def test_no_arrays_are_no_bytes() -> None:
    packed = Packed.of({})
    assert packed.layout.nbytes == 0
    assert packed.arrays() == {}
    assert list(packed.layout.pieces(0, 100)) == []


def test_a_spec_reads_like_a_sentence() -> None:
    assert str(ArraySpec("w", "<f4", (3, 4))) == "'w': float32 (3, 4)"


# ----------------------------------------------------------------------------------------------------------- pieces


@given(named_arrays(), st.integers(1, 5))
def test_pieces_of_blocks_cover_every_element_once_and_nothing_else(arrays: Named, lines: int) -> None:
    layout = Layout.of(arrays)
    covered = np.zeros(layout.nbytes, int)
    for start, stop in blocks(layout, lines):
        for dtype, low, high in layout.pieces(start, stop):
            assert start <= low < high <= stop
            assert low % np.dtype(dtype).itemsize == 0
            assert (high - low) % np.dtype(dtype).itemsize == 0
            covered[low:high] += 1
    expected = np.zeros(layout.nbytes, int)
    for spec, offset in zip(layout.specs, layout.offsets, strict=True):
        expected[offset : offset + spec.nbytes] = 1
    np.testing.assert_array_equal(covered, expected)


def blocks(layout: Layout, lines: int) -> list[tuple[int, int]]:
    """The packed buffer cut into blocks of so many cache lines."""
    step = lines * ALIGNMENT_BYTES
    return [(start, min(start + step, layout.nbytes)) for start in range(0, layout.nbytes, step)]


@given(named_arrays(), st.integers(1, 5), st.integers(0, 2**32))
def test_adding_block_by_block_equals_adding_whole_arrays(arrays: Named, lines: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    others = {name: numbers(generator, array.dtype.str, array.shape) for name, array in arrays.items()}
    whole, blocked, relative = Packed.of(arrays), Packed.of(arrays), Packed.of(arrays)
    source, layout = Packed.of(others), whole.layout
    layout.add(whole.buffer, source.buffer, 0, layout.nbytes)
    for start, stop in blocks(layout, lines):
        layout.add(blocked.buffer, source.read(start, stop), start, stop - start, target_start=0)
        layout.add(relative.read(start, stop), source.read(start, stop), start, stop - start)
    for name, array in arrays.items():
        np.testing.assert_array_equal(whole.arrays()[name], array + others[name], strict=True)
    assert blocked.buffer == relative.buffer == whole.buffer


def test_adding_leaves_other_blocks_and_the_padding_alone() -> None:
    layout = Layout.of({"a": np.zeros(20), "b": np.zeros(3, np.int8)})
    target, source = bytearray(b"\x01" * layout.nbytes), b"\x01" * layout.nbytes
    layout.add(target, source[128:], 128, layout.nbytes - 128, target_start=0)
    changed = [index for index, byte in enumerate(target) if byte != 1]
    assert changed
    assert all(128 <= index < 160 or 192 <= index < 195 for index in changed)


def test_adding_truths_is_or_and_adding_integers_wraps() -> None:
    target = Packed.of({"flags": np.array([True, True, False]), "count": np.array([255], np.uint8)})
    source = Packed.of({"flags": np.array([True, False, False]), "count": np.array([3], np.uint8)})
    target.layout.add(target.buffer, source.buffer, 0, target.layout.nbytes)
    np.testing.assert_array_equal(target.arrays()["flags"], [True, True, False])
    np.testing.assert_array_equal(target.arrays()["count"], [2])


# ----------------------------------------------------------------------------------------------------------- checks


def test_a_layout_fits_itself() -> None:
    Layout.of({"w": np.zeros(3)}).check_fit(Layout.of({"w": np.ones(3)}))


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ({"w": np.zeros((3, 4)), "b": np.zeros(3)}, "'w': shape (3, 4), expected (4, 3)"),
        ({"w": np.zeros((4, 3), np.float32), "b": np.zeros(3)}, "'w': dtype float32, expected float64"),
        ({"w": np.zeros((3, 4), np.int8), "b": np.zeros(3)}, "'w': shape (3, 4), expected (4, 3)"),
        ({"b": np.zeros(3)}, "'w' is missing, expected 'w': float64 (4, 3)"),
        (
            {"w": np.zeros((4, 3)), "b": np.zeros(3), "c": np.zeros(1)},
            "'c' is not one of the model's arrays ['b', 'w']",
        ),
        ({}, "'b' is missing, expected 'b': float64 (3,)"),
    ],
)
def test_what_does_not_fit_is_told_by_name_with_expected_and_got(got: Named, message: str) -> None:
    with pytest.raises(MismatchError) as raised:
        Layout.of(got).check_fit(Layout.of({"w": np.zeros((4, 3)), "b": np.zeros(3)}))
    assert str(raised.value) == message


def test_the_same_arrays_in_another_order_do_not_fit() -> None:
    expected = Layout.of({"a": np.zeros(2), "b": np.zeros(2)})
    with pytest.raises(MismatchError) as raised:
        Layout(expected.specs[::-1]).check_fit(expected)
    assert str(raised.value) == "arrays lie in the order ['b', 'a'], expected ['a', 'b']"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_numbers_that_are_not_finite_are_told_by_name_and_count(bad: float, dtype: str) -> None:
    weights = np.ones((4, 5), dtype)
    weights[1, 2] = weights[3, 0] = bad
    with pytest.raises(MismatchError) as raised:
        check_finite({"fine": np.ones(3), "w": weights})
    assert str(raised.value) == "'w': 2 of 20 numbers are NaN or infinite, expected none"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_large_but_finite_numbers_are_not_refused(dtype: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_finite({"w": np.full((10, 10), np.finfo(dtype).max, dtype)})
        check_finite({"w": np.full((10, 10), np.finfo(dtype).min, dtype)})


def test_integers_truths_and_empty_arrays_are_finite() -> None:
    check_finite({"i": np.full(3, 2**62), "b": np.ones(3, bool), "e": np.zeros((0, 4)), "s": np.array(1.5)})


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 1)])
def test_few_numbers_are_looked_at_too(shape: tuple[int, ...]) -> None:
    with pytest.raises(MismatchError):
        check_finite({"w": np.full(shape, np.nan)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_payload_knows_whether_it_is_finite(bad: float) -> None:
    assert Packed.of({"w": np.ones(3), "n": np.ones(2, np.int64)}).is_finite
    assert not Packed.of({"w": np.array([1.0, bad, 1.0]), "n": np.ones(2, np.int64)}).is_finite


def test_a_column_with_nan_is_found_whatever_its_memory_order() -> None:
    weights = np.zeros((50, 3), order="F")
    weights[7, 1] = np.nan
    check_finite({"w": weights[::2]})
    with pytest.raises(MismatchError, match="1 of 75"):
        check_finite({"w": weights[1::2]})


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.0]), 0.0),
        (np.array([1.0, 4.0]), np.array([1.0, 3.0]), 0.25),
        (np.array([0.0, 0.0]), np.array([0.0, -8.0]), 1.0),
        (np.array([2.0]), np.array([-2.0]), 2.0),
        (np.zeros(3), np.zeros(3), 0.0),
        (np.zeros((0, 2)), np.zeros((0, 2)), 0.0),
        (np.array([200], np.uint8), np.array([100], np.uint8), 0.5),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array(4.0), np.array(5.0), 0.2),
    ],
)
def test_the_relative_distance_is_the_largest_difference_over_the_largest_value(
    left: np.ndarray[Any, Any], right: np.ndarray[Any, Any], distance: float
) -> None:
    assert relative_distance(left, right) == distance
    assert relative_distance(right, left) == distance


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [64, 128, 1 << 20])
def test_a_piece_is_finite_if_its_numbers_are(step: int, bad: float) -> None:
    arrays = {"a": np.arange(20, dtype=np.int64), "b": np.full((5, 7), 1e300), "c": np.full(33, -1e30, np.float32)}
    layout = Layout.of(arrays)
    for name, place in (("b", 0), ("b", 17), ("b", 34), ("c", 0), ("c", 32)):
        packed = Packed.of(arrays)
        packed.arrays()[name].reshape(-1)[place] = bad
        at = layout.offsets[sorted(arrays).index(name)] + place * arrays[name].itemsize
        for start in range(0, layout.nbytes, step):
            stop = min(start + step, layout.nbytes)
            is_bad = math.isnan(squares_of_piece(layout, packed.read(start, stop), start))
            assert is_bad == (start <= at < stop)
            assert not math.isnan(squares_of_piece(layout, Packed.of(arrays).read(start, stop), start))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_squares_are_summed_of_floats_alone(dtype: str) -> None:
    numbers = np.full((300, 400), -3, dtype)  # whose sum of squares no float16 holds
    assert squares_of(numbers) == 9 * numbers.size
    assert Packed.of({"w": numbers, "n": np.ones(5, np.int64)}).squares == 9 * numbers.size
    assert squares_of(np.full(5, 7)) == 0
    assert not math.isfinite(squares_of(np.array([1, np.inf], dtype)))


def test_integers_are_summed_in_64_bits_and_all_else_as_it_is() -> None:
    kinds = {dtype: np.zeros((2, 3), dtype) for dtype in DTYPES}
    wide = Layout.of(kinds).for_sums
    assert [(spec.name, spec.shape) for spec in wide.specs] == [(name, (2, 3)) for name in sorted(kinds)]
    others = {spec.name: spec.dtype for spec in wide.specs if spec.name != spec.dtype}
    assert others == dict.fromkeys(("|i1", "<i2", "<i4", "|u1", "<u2", "<u4"), "<i8")
