"""The two-loop recursion of L-BFGS without vectors: all it needs are the dot products of pairs and gradient.

    basis       s_1 ... s_n, y_1 ... y_n, g         kept by the shards, n <= m
    table       (2n + 1)^2 dot products             kept here
    direction   2n + 1 coefficients of the basis    sent to the shards, who add the vectors up

Source: Chen, Wang and Zhou, Large-scale L-BFGS using MapReduce (NIPS 2014), algorithm 3. The two loops are those of
Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4, with H_0 of equation 7.20.
"""

from __future__ import annotations

import numpy as np

from gossip.arrays import Array

CURVATURE_MIN = 1e-10
"""A pair counts if s'y is larger than this part of |s| |y|: a smaller one is rounding, or curves downwards."""


class Table:
    """The dot products of the basis, oldest pair first."""

    def __init__(self, history: int) -> None:
        self.history = history
        self.pairs = 0
        self._dots = np.zeros((1, 1))

    def begin(self, gradient_square: float) -> None:
        """No pair is left; |g|^2 of the gradient."""
        self.pairs = 0
        self._dots = np.array([[gradient_square]])

    def add(self, rows: Array) -> bool:
        """Take a step in; returns whether its pair counts.

        `rows` are the dot products, (3, 2n + 3), of the new s, the new y and the new g with s_1 ... s_n, y_1 ... y_n,
        s, y, g, where g is the new gradient.
        """
        n = self.pairs
        assert rows.shape == (3, 2 * n + 3)
        whole = np.zeros((2 * n + 3, 2 * n + 3))
        whole[: 2 * n, : 2 * n] = self._dots[: 2 * n, : 2 * n]
        whole[2 * n :] = rows
        whole[:, 2 * n :] = rows.T
        s, y = 2 * n, 2 * n + 1
        counts = bool(whole[s, y] > CURVATURE_MIN * np.sqrt(whole[s, s] * whole[y, y]))
        old = range(1 if counts and n == self.history else 0, n)
        new_s, new_y = ([s], [y]) if counts else ([], [])
        order = [*old, *new_s, *(n + each for each in old), *new_y, 2 * n + 2]
        self._dots = whole[np.ix_(order, order)]
        self.pairs = len(old) + counts
        return counts

    def direction(self) -> Array:
        """The coefficients of -H g, (2n + 1,)."""
        n, dots = self.pairs, self._dots
        found = self.descent()
        weights = np.zeros(n)
        for i in reversed(range(n)):
            weights[i] = found @ dots[:, i] / dots[i, n + i]
            found[n + i] -= weights[i]
        if n:
            found *= dots[n - 1, 2 * n - 1] / dots[2 * n - 1, 2 * n - 1]
        for i in range(n):
            found[i] += weights[i] - found @ dots[:, n + i] / dots[i, n + i]
        return found

    def descent(self) -> Array:
        """The coefficients of -g."""
        found = np.zeros(2 * self.pairs + 1)
        found[-1] = -1.0
        return found

    def slope(self, coefficients: Array) -> float:
        """g'd of that direction."""
        return float(coefficients @ self._dots[:, -1])

    @property
    def gradient_square(self) -> float:
        """|g|^2."""
        return float(self._dots[-1, -1])
