"""Memory for bodies of requests: a number of bytes that all of them share, reserved before a byte of one is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from p2p.http.messages import Refused

BODIES_MAX = 4
"""Updates of the largest size that may be in memory at once, each on its way through `descent` or waiting for it."""
STEP_BYTES = 1 << 20
"""By which a body is given more whose size was not told."""
WAIT_S = 5.0
"""For room, before a body of which nothing was read is refused. Who has some does not wait for more."""


class Share:
    """The memory of one body."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.nbytes = 0

    def grow(self, nbytes: int) -> None:
        """Have room for so many bytes in all. Raises `Refused` if there is none."""
        if nbytes > self.nbytes:
            self._budget.take(nbytes - self.nbytes, 0.0 if self.nbytes else self._budget.wait_s)
            self.nbytes = nbytes


class Budget:
    """The memory of all bodies."""

    def __init__(self, bytes_max: int, wait_s: float = WAIT_S) -> None:
        self.bytes_max = bytes_max
        self.wait_s = wait_s
        self._left = bytes_max
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes that are reserved."""
        return self.bytes_max - self._left

    @contextmanager
    def share(self) -> Iterator[Share]:
        """For one body, given back in the end."""
        share = Share(self)
        try:
            yield share
        finally:
            with self._changed:
                self._left += share.nbytes
                self._changed.notify_all()

    def take(self, nbytes: int, wait_s: float) -> None:
        """Reserve so many bytes, as soon as they are there."""
        with self._changed:
            if not self._changed.wait_for(lambda: nbytes <= self._left, wait_s):
                raise Refused(
                    503,
                    f"other updates take {self.used} of the {self.bytes_max} bytes that there are for them: come again",
                    {"Retry-After": "1"},
                )
            self._left -= nbytes
