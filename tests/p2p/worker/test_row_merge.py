"""The compiled loops of an exchange against the formulas they stand for, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.arrays import Array
from p2p.worker import row_merge


def three(count: int, width: int, dtype: str) -> tuple[Array, Array, Array]:
    chance = np.random.default_rng(count * width)
    w, base, r = (chance.standard_normal((count, width)).astype(dtype) for _ in range(3))
    return w, base, r


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("width", [1, 7, 100])
def test_products_are_those_of_the_rows_that_were_asked_for(width: int, dtype: str) -> None:
    w, base, r = three(20, width, dtype)
    rows = np.array([0, 3, 19])
    d, m = (w - base)[rows], (r - base)[rows]
    expected = [np.einsum("ij,ij->i", *pair) for pair in ((d, d), (d, m), (m, m))]
    np.testing.assert_allclose(row_merge.products(w, base, r, rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("codec", ["|i1", "<i2"])
@pytest.mark.parametrize("width", [1, 7, 100])
def test_a_merge_publishes_what_it_says_and_keeps_the_rest(width: int, codec: str, dtype: str) -> None:
    w, base, r = three(20, width, dtype)
    before = tuple(array.copy() for array in (w, base, r))
    rows = np.arange(0, 20, 2)
    own, others = (np.linspace(*ends, len(rows), dtype=dtype) for ends in ((0.1, 1), (0, -0.5)))
    send = np.arange(len(rows)) % 3 != 0
    sent = send.copy()
    values, exponents = row_merge.merge(
        w, base, r, rows, row_merge.products(w, base, r, rows), own, others, sent, codec
    )

    assert (sent == send).all()
    assert values.dtype == codec
    assert len(values) == len(exponents) == send.sum()
    d, m = ((before[0] - before[1])[rows], (before[2] - before[1])[rows])
    published = np.where(send[:, None], own[:, None] * d + others[:, None] * m, 0)
    travels = np.zeros_like(published)
    travels[send] = np.ldexp(values.astype(dtype), exponents[:, None].astype(np.int32))
    np.testing.assert_allclose(travels[send], published[send], atol=0.5 * 2.0 ** exponents.max(), rtol=0)
    bits = np.iinfo(codec).bits - 1
    largest = np.abs(values.astype(np.int64)).max()
    assert 2 ** (bits - 1) / np.sqrt(width) / 1.02 - 1 <= largest <= 2**bits - 1, "all bits are made use of"
    np.testing.assert_array_equal(base[rows], before[2][rows] + travels)
    kept = np.where(send[:, None], published, d)
    np.testing.assert_allclose(w[rows], before[2][rows] + kept, rtol=1e-6, atol=1e-6)
    others_rows = np.arange(1, 20, 2)
    for now, then in zip((w, base), before, strict=False):
        np.testing.assert_array_equal(now[others_rows], then[others_rows])
    np.testing.assert_array_equal(r, before[2])


def test_rows_that_nobody_changed_stay_as_they_are_to_the_bit() -> None:
    w, _, r = three(50, 100, "<f4")
    base = w.copy()
    rows = np.arange(50)
    products = row_merge.products(w, base, r, rows)
    one, none = np.ones(50, "<f4"), np.zeros(50, "<f4")
    row_merge.merge(w, base, r, rows, products, one, none, np.zeros(50, bool), "|i1")
    np.testing.assert_array_equal(w, r)
    np.testing.assert_array_equal(base, r)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_a_change_beyond_what_an_exponent_can_say_is_kept(size: float) -> None:
    base = r = np.zeros((1, 4))
    w = np.full((1, 4), size)
    rows, send = np.array([0]), np.array([True])
    one, none = np.ones(1), np.zeros(1)
    products = row_merge.products(w, base, r, rows)
    values, exponents = row_merge.merge(w, base.copy(), r, rows, products, one, none, send, "|i1")
    assert not send[0]
    assert values.shape == (0, 4)
    assert len(exponents) == 0
    np.testing.assert_array_equal(w, size)
