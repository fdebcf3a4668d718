"""The recursion on dot products is the two-loop recursion, as it is written with vectors here."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.arrays import Array
from p2p.lbfgs.method.recursion import Table


def two_loops(pairs: list[tuple[Array, Array]], gradient: Array) -> Array:
    """Nocedal and Wright, algorithm 7.4: -H g."""
    q, alphas = gradient.copy(), []
    for s, y in reversed(pairs):
        alpha = s @ q / (y @ s)
        alphas.append(alpha)
        q = q - alpha * y
    if pairs:
        s, y = pairs[-1]
        q = q * (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - y @ q / (y @ s))
    return -q


def rows_of(basis: list[Array], s: Array, y: Array, gradient: Array) -> Array:
    return np.array([[new @ each for each in (*basis, s, y, gradient)] for new in (s, y, gradient)])


@pytest.mark.parametrize("history", [1, 3, 10])
@pytest.mark.parametrize("size", [2, 40])
def test_it_is_the_two_loop_recursion(history: int, size: int) -> None:
    rng = np.random.default_rng(history * size)
    root = rng.normal(size=(size, size))
    curved = root @ root.T / size + np.eye(size)
    table, pairs, gradient = Table(history), [], rng.normal(size=size)
    table.begin(gradient @ gradient)
    for _ in range(14):
        basis = [*(s for s, _ in pairs), *(y for _, y in pairs), gradient]
        coefficients = table.direction()
        found = sum(c * each for c, each in zip(coefficients, basis, strict=True))
        expected = two_loops(pairs, gradient)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
        assert table.slope(coefficients) == pytest.approx(gradient @ expected, rel=1e-10)
        s, gradient = rng.normal(size=size), rng.normal(size=size)
        y = curved @ s
        assert table.add(rows_of(basis[:-1], s, y, gradient))
        pairs = [*pairs, (s, y)][-history:]


def test_a_pair_that_is_not_curved_upwards_is_left_out() -> None:
    rng = np.random.default_rng(0)
    g, s, other = rng.normal(size=(3, 5))
    table = Table(4)
    table.begin(g @ g)
    assert table.add(rows_of([], s, 2 * s, g))
    before = table.direction()
    for y in (-s, np.zeros(5), 1e-12 * s + (other - s * (other @ s) / (s @ s))):
        assert not table.add(rows_of([s, 2 * s], s, y, g))
        assert table.pairs == 1
        np.testing.assert_allclose(table.direction(), before, rtol=1e-14)


def test_the_gradient_of_a_step_counts_also_where_its_pair_does_not() -> None:
    table = Table(4)
    table.begin(25.0)
    s, y, g = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    assert not table.add(rows_of([], s, y, g))
    assert table.gradient_square == 4.0
