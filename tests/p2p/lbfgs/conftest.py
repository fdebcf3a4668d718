"""A space of shards in this process: what the coordinator does with processes, without them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from gossip.arrays import Array
from p2p.lbfgs.flat import Flat
from p2p.lbfgs.method.minimizer import HistoryLost, Value
from p2p.lbfgs.shard import Attempt, Shard

Function = Callable[[Array], tuple[float, Array]]


class InProcess:
    """Shards of a vector, and the function whose minimum is looked for."""

    def __init__(self, function: Function, x: Array, shards: int = 3, history: int = 10, l2: float = 0.0) -> None:
        self.function, self.history, self.l2 = function, history, l2
        edges = [len(x) * index // shards for index in range(shards + 1)]
        self.spans = list(pairwise(edges))
        self.x = np.array(x)
        self.shards: list[Shard] = []
        self.points: list[Array] = []
        """All that were evaluated."""
        self.iterates = [self.x]
        self.dies_at: set[int] = set()
        """Evaluations at which a shard is lost."""
        self._fill()

    def _fill(self) -> None:
        iterate = len(self.iterates) - 1
        self.shards = [Shard(self.x[a:b].copy(), self.history, self.l2, iterate) for a, b in self.spans]

    def restart(self) -> None:
        self._fill()

    def forget(self) -> None:
        for shard in self.shards:
            shard.forget()

    def evaluate(self, step: float) -> Value:
        number = len(self.points) + 1
        for shard in self.shards:
            shard.try_step(number, step)
        point = np.concatenate([shard.trial for shard in self.shards])
        self.points.append(point)
        if number in self.dies_at:
            raise HistoryLost("shard 1")
        value, gradient = self.function(point)
        for shard, (a, b) in zip(self.shards, self.spans, strict=True):
            assert shard.push(Attempt(number, 0, 0, 0), gradient[a:b])
            shard.count(Attempt(number, 0, 0, 0))
        sums = [shard.measure() for shard in self.shards]
        self.square = sum(each.trial_square for each in sums)
        return Value(
            value + self.l2 / 2 * self.square,
            sum(each.slope for each in sums),
            sum(each.gradient_square for each in sums),
        )

    def settle(self) -> float:
        for shard in self.shards:
            shard.settle()
        return self.square

    def accept(self) -> tuple[Array, float]:
        found = [shard.accept() for shard in self.shards]
        self.x = self.points[-1]
        self.iterates.append(self.x)
        return sum(rows for rows, _ in found), sum(square for _, square in found)

    def direct(self, coefficients: Array, keeps: bool) -> None:
        for shard in self.shards:
            shard.direct(coefficients, keeps)


@pytest.fixture
def in_process() -> type[InProcess]:
    return InProcess


@pytest.fixture
def flat() -> type[Flat]:
    return Flat
