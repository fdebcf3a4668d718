"""Which rows of an array are worth looking at now: those that have changed enough since they were looked at last.

Rows of an embedding change at rates that are orders of magnitude apart and hardly vary in time: frequent words at every
step, rare ones once a minute. So a row is looked at again when it should have changed by `threshold`: with rates r that
is sum(min(1, r / threshold)) rows an exchange, which tells the threshold for a budget. The rest of the budget goes
around all rows in turn. No clock, no chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUND_SHARE = 0.25
"""Part of the budget that goes round at least: a row of which nothing is expected may have begun to change."""
ADAPT_EVERY = 4
"""Exchanges after which the threshold follows the budget; to add up all rates takes as long as some hundred rows."""
RISE_MAX, FALL_MAX = 8.0, 4.0
"""Factors by which it does at most."""


class RowSchedule:
    """For one array with `rows` rows, of which `budget` at a time are to be looked at."""

    def __init__(self, rows: int, budget: int) -> None:
        self.rows = rows
        self.budget = max(1, min(rows, budget))
        """May be set to another number at any time."""
        self.threshold = 0.0
        """The change of a row for which it is looked at; 0 before the first one was."""
        self.beside = 0
        """Rows that had changed by more than the threshold in the last exchange, and were not due; set by who saw them.
        They count against the budget of the next."""
        self._time = 0
        self._round_at = 0
        self._first_round = True
        self._last = np.zeros(rows, np.int32)
        self._rate = np.zeros(rows, np.float32)
        self._expected = np.zeros(rows, np.float32)
        """By how much each row should have changed since it was looked at."""

    def next(self) -> NDArray[Any]:
        """The rows to look at in this exchange, ascending."""
        self._time += 1
        if self.budget >= self.rows:
            return np.arange(self.rows)
        self._expected += self._rate
        due = np.arange(0)
        if self.threshold > 0:
            most = max(1, int((1 - ROUND_SHARE) * self.budget))
            if self._first_round or self._time % ADAPT_EVERY == 0:
                self._adapt(most)
            due = self._due(most)
        begin = self._round_at
        end = min(self.rows, begin + max(1, self.budget - len(due)))
        self._round_at = end % self.rows
        self._first_round = self._first_round and end < self.rows
        return np.concatenate([due[due < begin], np.arange(begin, end), due[due >= end]])

    def _adapt(self, most: int) -> None:
        """Have as many rows due on average, and no more; rates that are not known yet may make it more later."""
        on_average = float(np.minimum(self._rate, self.threshold).sum()) / self.threshold + self.beside
        if on_average > most:
            self.threshold *= min(RISE_MAX, on_average / most)
        elif on_average > 0 and not self._first_round:
            self.threshold *= max(1 / FALL_MAX, on_average / most)

    def _due(self, most: int) -> NDArray[Any]:
        """At most so many rows, ascending; those that should have changed least wait."""
        due = np.flatnonzero(self._expected >= self.threshold)
        if len(due) > most:
            last = len(due) - most
            due = np.sort(due[np.argpartition(self._expected[due], last)[last:]])
        return due

    def looked_at(self, rows: NDArray[Any], changes: NDArray[Any]) -> None:
        """What `next` gave, and by how much each of them had changed since it was looked at last."""
        if self.threshold == 0 and changes.size:
            self.threshold = float(changes.mean())
        last = self._last[rows]
        rate = changes / (self._time - last)
        self._rate[rows] = np.where(last == 0, rate, (rate + self._rate[rows]) / 2)
        self._last[rows] = self._time
        self._expected[rows] = 0
