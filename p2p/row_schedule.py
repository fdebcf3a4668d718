"""Which rows of an array are worth looking at now: those that have changed enough since they were looked at last.

Rows of an embedding change at rates that are orders of magnitude apart and hardly vary in time: frequent words at every
step, rare ones once a minute. So a row is looked at again when it should have changed by `threshold`, which follows a
budget of rows per exchange. The rest of the budget goes round all rows in turn. No clock, no chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUND_SHARE = 0.25
"""Part of the budget that goes round at least: a row of which nothing is expected may have begun to change."""
ADAPTATION = 1.1
"""Factor by which the threshold follows the budget each time."""
NEVER = np.iinfo(np.int32).max


class RowSchedule:
    """For one array with `rows` rows, of which `budget` at a time are to be looked at."""

    def __init__(self, rows: int, budget: int) -> None:
        self.rows = rows
        self.budget = max(1, min(rows, budget))
        """May be set to another number at any time."""
        self.threshold = 0.0
        """The change of a row for which it is looked at; 0 before the first one was."""
        self._time = 0
        self._round_at = 0
        self._first_round = True
        self._due = np.full(rows, NEVER, np.int32)
        self._last = np.zeros(rows, np.int32)
        self._rate = np.zeros(rows, np.float32)

    def next(self) -> NDArray[Any]:
        """The rows to look at in this exchange, ascending."""
        self._time += 1
        if self.budget >= self.rows:
            return np.arange(self.rows)
        due = np.flatnonzero(self._due <= self._time)
        most = max(1, int((1 - ROUND_SHARE) * self.budget))
        if len(due) > most:
            self.threshold *= ADAPTATION
            first = self._time * most % len(due)  # the others have their turn in the next ones
            due = np.sort(np.concatenate([due[first : first + most], due[: max(0, first + most - len(due))]]))
        elif len(due) < most / ADAPTATION and not self._first_round:
            self.threshold /= ADAPTATION
        begin = self._round_at
        end = min(self.rows, begin + max(1, self.budget - len(due)))
        self._round_at = end % self.rows
        self._first_round = self._first_round and end < self.rows
        return np.concatenate([due[due < begin], np.arange(begin, end), due[due >= end]])

    def looked_at(self, rows: NDArray[Any], changes: NDArray[Any]) -> None:
        """What `next` gave, and by how much each of them had changed since it was looked at last."""
        if self.threshold == 0 and changes.size:
            self.threshold = float(changes.mean())
        last = self._last[rows]
        rate = changes / (self._time - last)
        rate = np.where(last == 0, rate, (rate + self._rate[rows]) / 2)
        self._rate[rows] = rate
        self._last[rows] = self._time
        round_takes = self.rows / (ROUND_SHARE * self.budget)
        due = np.full(len(rows), NEVER, np.int32)
        often = rate * round_takes > self.threshold
        due[often] = self._time + np.maximum(1, self.threshold / rate[often]).astype(np.int32)
        self._due[rows] = due
