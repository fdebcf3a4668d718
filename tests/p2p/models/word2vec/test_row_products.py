"""Products and sums of rows are those of numpy, for rows of any width."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from p2p.models.word2vec.row_products import (
    add_six,
    add_six_to_two,
    add_three,
    add_three_to_two,
    copy_row,
    prefetch,
    products,
)

WIDTHS = (1, 3, 4, 5, 8, 11, 12, 16, 31, 100, 130)


@njit
def multiply(a, b, f):  # type: ignore[no-untyped-def]
    products(a, 2, 0, 2, b, 1, f, 1, 2)


@njit
def add(a, b, row, three, six, factors):  # type: ignore[no-untyped-def]
    add_three(a, row, b, three, factors[:3])
    add_six(a, row, b, six, factors)


@njit
def add_to_two(a, b, three, six, factors, more):  # type: ignore[no-untyped-def]
    add_three_to_two(a, 2, 0, b, three, factors[:3], more[:3])
    add_six_to_two(a, 2, 0, b, six, factors, more)


@njit
def copy(a, b):  # type: ignore[no-untyped-def]
    prefetch(a, 2)
    copy_row(a, 2, b, 1)


def rows(width: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_products_of_three_rows_with_three(width: int) -> None:
    a, b, f = rows(width, 3, 1), rows(width, 4, 2), np.full((5, 6), 9, np.float32)
    multiply(a, b, f)
    expected = np.full((5, 6), 9.0)
    expected[1:4, 2:5] = a[[2, 0, 2]].astype(float) @ b[1:4].T.astype(float)
    np.testing.assert_allclose(f, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_three_and_six_rows_are_added_to_one(width: int) -> None:
    a, b, factors = rows(width, 3, 1), rows(width, 4, 2), (0.5, -1.0, 2.0, 3.0, -0.25, 1.5)
    expected = a.astype(float)
    expected[1] += sum(factor * b[row].astype(float) for factor, row in zip(factors[:3], (3, 0, 3), strict=True))
    expected[1] += sum(factor * b[row].astype(float) for factor, row in zip(factors, (2, 1, 0, 3, 2, 1), strict=True))
    add(a, b, 1, (3, 0, 3), (2, 1, 0, 3, 2, 1), tuple(np.float32(factor) for factor in factors))
    np.testing.assert_allclose(a, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_adding_to_two_rows_at_once_is_adding_to_each_to_the_last_bit(width: int) -> None:
    a, b, three, six = rows(width, 3, 1), rows(width, 4, 2), (3, 0, 3), (2, 1, 0, 3, 2, 1)
    factors, more = (
        tuple(np.float32(factor) for factor in some)
        for some in ((0.5, -1.0, 2.0, 3.0, -0.25, 1.5), (1.5, 0.0, 0.1, -2.0, 0.7, 0.3))
    )
    expected = a.copy()
    add(expected, b, 2, three, six, factors)
    add(expected, b, 0, three, six, more)
    add_to_two(a, b, three, six, factors, more)
    assert np.array_equal(a, expected)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_is_copied_and_nothing_else(width: int) -> None:
    a, b = rows(width, 3, 1), rows(width, 3, 2)
    expected = b.copy()
    expected[1] = a[2]
    copy(a, b)
    assert np.array_equal(b, expected)
