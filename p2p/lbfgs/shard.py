"""A shard: its range of x, of the gradient, of the direction and of all pairs, and what is computed of them here.

    trial = x + step d          workers fetch it, and push their portions' gradients
    push -> pending -> counted  the coordinator says which attempt at a portion counts; the others are dropped
    accept: s = trial - x, y = new gradient - gradient; x and trial change places

All numbers that leave a shard, but for its range of x, are sums over its range.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from gossip.arrays import Array
from p2p.lbfgs.flat import dot


@dataclass(frozen=True)
class Attempt:
    """A gradient of one portion: at which point, of which chunk of which partition, by which worker's attempt."""

    point: int
    partition: int
    chunk: int
    number: int


@dataclass(frozen=True)
class Sums:
    """What a range adds to the figures of a point."""

    slope: float
    """gradient'd"""
    gradient_square: float
    trial_square: float


class Shard:
    """The vectors of one range. `x` is the caller's, and is not written to."""

    def __init__(self, x: Array, history: int, l2: float, iterate: int) -> None:
        self.iterate = iterate
        """The number of x among the accepted ones."""
        self.point = 0
        """The number of the trial among all that are evaluated."""
        self._x = x
        self._before: Array | None = None
        """The iterate before x, until the next trial."""
        self.trial = x
        self._l2 = l2
        self._history = history
        self._sum = np.zeros(len(x))
        """Of the gradients that count, in float64."""
        self._gradient: Array | None = None
        self._direction: Array | None = None
        self._steps: deque[Array] = deque()
        self._changes: deque[Array] = deque()
        """s and y of the pairs, oldest first."""
        self._candidate: tuple[Array, Array] | None = None
        """Of the last step; the coordinator says with the next direction whether it is a pair."""
        self._pending: dict[Attempt, Array] = {}

    def try_step(self, point: int, step: float) -> None:
        """The next point is x + step d."""
        self._before = None
        if step == 0.0:
            self.trial = self._x
        else:
            assert self._direction is not None
            self.trial = self._x + np.asarray(step, self._x.dtype) * self._direction
        self.point = point
        self._sum[:] = 0.0
        self._pending.clear()

    def push(self, attempt: Attempt, gradient: Array) -> bool:
        """Keep a portion's gradient until it counts; False if it is of a point that is over."""
        if attempt.point != self.point:
            return False
        self._pending[attempt] = gradient
        return True

    def count(self, attempt: Attempt) -> None:
        """This attempt counts, and no other of its portion."""
        gradient = self._pending.pop(attempt)
        self._sum += gradient
        for other in list(self._pending):
            if (other.partition, other.chunk) == (attempt.partition, attempt.chunk):
                del self._pending[other]

    def measure(self) -> Sums:
        """All portions have counted: the gradient is whole."""
        if self._l2:
            self._sum += self._l2 * self.trial
        slope = 0.0 if self._direction is None else dot(self._sum, self._direction)
        return Sums(slope, dot(self._sum, self._sum), dot(self.trial, self.trial))

    def settle(self) -> None:
        """The gradient is that at x."""
        self._gradient = self._sum.astype(self._x.dtype)

    def accept(self) -> tuple[Array, float]:
        """x is the trial from now on: (the rows of `Table.add`, |x|^2), summed over this range."""
        assert self._gradient is not None
        gradient = self._sum.astype(self._x.dtype)
        s, y = self.trial - self._x, gradient - self._gradient
        self._before, self._x = self._x, self.trial
        self.iterate += 1
        self._gradient, self._candidate = gradient, (s, y)
        basis = [*self._steps, *self._changes, s, y, gradient]
        rows = np.array([[dot(new, each) for each in basis] for new in (s, y, gradient)])
        return rows, dot(self._x, self._x)

    def direct(self, coefficients: Array, keeps: bool) -> None:
        """The next direction, of the pairs and the gradient; `keeps`: the last step's pair is one of them."""
        if self._candidate is not None and keeps:
            if len(self._steps) == self._history:
                self._steps.popleft()
                self._changes.popleft()
            self._steps.append(self._candidate[0])
            self._changes.append(self._candidate[1])
        self._candidate = None
        assert self._gradient is not None
        basis = [*self._steps, *self._changes, self._gradient]
        assert len(basis) == len(coefficients)
        direction = np.zeros_like(self._x)
        for coefficient, vector in zip(coefficients, basis, strict=True):
            direction += np.asarray(coefficient, direction.dtype) * vector
        self._direction = direction

    def forget(self) -> None:
        """Drop all pairs."""
        self._steps.clear()
        self._changes.clear()
        self._candidate = None

    def iterate_of(self, number: int) -> Array | None:
        """x as it was then; None if it is gone."""
        if number == self.iterate:
            return self._x
        return self._before if number == self.iterate - 1 else None
