"""Which rows of an array are worth looking at now: those that have changed enough since they were looked at last.

Rows of an embedding change at rates that are orders of magnitude apart and hardly vary in time: frequent words at every
step, rare ones once a minute. So each row is looked at again when it should have changed by `threshold`, and at the
latest after `PERIOD_MAX` exchanges. The threshold follows a budget of rows per exchange. No clock, no chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PERIOD_MAX = 64
"""Exchanges after which a row is looked at though nothing is expected of it: who was still may have begun to move."""
BUDGET_EXCESS_MAX = 1.5
"""An exchange looks at so many times its budget at most; what is left comes next time."""
ADAPTATION = 1.1
"""Factor by which the threshold follows the budget each time."""


class RowSchedule:
    """For one array with `rows` rows, of which `budget` at a time are to be looked at."""

    def __init__(self, rows: int, budget: int) -> None:
        self.budget = max(1, min(rows, budget))
        self.threshold = 0.0
        """The change of a row for which it is looked at; 0 before the first one was."""
        self._everything = budget >= rows
        self._time = 0
        self._due = 1 + np.arange(rows, dtype=np.int32) // self.budget
        self._last = np.zeros(rows, np.int32)
        self._rate = np.zeros(rows, np.float32)

    def next(self) -> NDArray[Any]:
        """The rows to look at in this exchange, ascending."""
        self._time += 1
        if self._everything:
            return np.arange(len(self._due))
        due = np.flatnonzero(self._due <= self._time)
        if len(due) > self.budget:
            self.threshold *= ADAPTATION
        elif len(due) < self.budget / ADAPTATION:
            self.threshold /= ADAPTATION
        most = int(BUDGET_EXCESS_MAX * self.budget)
        if len(due) > most:
            expected = self._rate[due] * (self._time - self._last[due])
            expected[self._last[due] == 0] = np.inf
            due = np.sort(due[np.argpartition(-expected, most)[:most]])
        return due

    def looked_at(self, rows: NDArray[Any], changes: NDArray[Any]) -> None:
        """What `next` gave, and by how much each of them had changed since it was looked at last."""
        if self._everything:
            return
        if self.threshold == 0 and changes.size:
            self.threshold = float(changes.mean())
        last = self._last[rows]
        rate = changes / (self._time - last)
        rate = np.where(last == 0, rate, (rate + self._rate[rows]) / 2)
        period = np.full(len(rows), PERIOD_MAX, np.float64)
        np.divide(self.threshold, rate, out=period, where=rate * PERIOD_MAX > self.threshold)
        self._rate[rows] = rate
        self._last[rows] = self._time
        self._due[rows] = self._time + np.maximum(1, period).astype(np.int32)
