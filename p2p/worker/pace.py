"""How many rows an exchange looks at: as many as take a small part of the time of training before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from p2p.worker.row_schedule import RowSchedule

SHARE_MIN, SHARE_PER_OTHER, SHARE_MAX = 0.01, 0.007, 0.2
"""After `SHARE_S` of training an exchange looks at as many rows as take this part of that time. The more peers, the
more is done blind meanwhile."""
SHARE_S = 0.05
"""After n times as long a chunk, at the root of n times as many: the different words of a text grow in number like the
root of its length (Heaps' law), so a long chunk changes each row more, but not so many more rows."""
ROWS_MIN = 512
"""An exchange looks at so many rows in any case."""
ROW_S = 0.4e-6
"""What looking at a row of 100 numbers takes, where no clock can tell."""


def rows_for(training_s: float, peers: int, row_s: float = ROW_S) -> int:
    """How many rows an exchange of one of `peers` looks at after `training_s` of training, if a row takes `row_s`."""
    share = min(SHARE_MAX, max(SHARE_MIN, SHARE_PER_OTHER * (peers - 1)))
    return max(ROWS_MIN, int(share * math.sqrt(training_s * SHARE_S) / row_s))


class Pace:
    """That of one worker's copy. Without a clock it stays as its schedules begin."""

    def __init__(self, schedules: Mapping[str, RowSchedule], peers: int, clock: Callable[[], float] | None) -> None:
        """`clock` in seconds."""
        self._schedules = schedules
        self._peers = peers
        self._clock = clock
        self._rows = max(1, sum(schedule.rows for schedule in schedules.values()))
        self._training_began = 0.0
        self._row_s: float | None = None
        """What looking at one row takes; None until the second exchange, as the first one loads the compiled loops."""
        self._exchanged = False

    def now(self) -> float:
        """By the clock; 0 without one."""
        return self._clock() if self._clock is not None else 0.0

    def begin(self) -> None:
        """Training goes on from now."""
        self._training_began = self.now()

    def exchanged(self, began: float, looking_s: float, rows: int) -> None:
        """An exchange that `began` then has looked at so many rows for so long: choose how many the next one takes."""
        if self._clock is None:
            return
        if not self._exchanged:
            self._exchanged = True
            return
        row_s = looking_s / max(1, rows)
        self._row_s = row_s if self._row_s is None else 0.9 * self._row_s + 0.1 * min(row_s, 2 * self._row_s)
        budget = min(self._rows, rows_for(began - self._training_began, self._peers, self._row_s))
        for schedule in self._schedules.values():
            schedule.budget = int(budget * schedule.rows / self._rows) + 1
