"""Memory for bodies of requests: a number of bytes that all of them share, reserved before a byte of one is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from p2p.master.messages import Refused

BODIES_MAX = 4
"""Updates of the largest size that may be in memory at once, each on its way through `descent` or waiting for it."""
STEP_BYTES = 1 << 20
"""By which a body is given more whose size was not told."""


class Share:
    """The memory of one body."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.nbytes = 0

    def grow(self, nbytes: int) -> None:
        """Have room for so many bytes in all. Raises `Refused` if there is none now."""
        if nbytes > self.nbytes:
            self.nbytes += self._budget.take(nbytes - self.nbytes)


class Budget:
    """The memory of all bodies."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._left = bytes_max
        self._lock = threading.Lock()

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
            with self._lock:
                self._left += share.nbytes

    def take(self, nbytes: int) -> int:
        """Reserve so many bytes."""
        with self._lock:
            if nbytes > self._left:
                raise Refused(
                    503,
                    f"other updates take {self.used} of the {self.bytes_max} bytes that there are for them: come again",
                    {"Retry-After": "1"},
                )
            self._left -= nbytes
        return nbytes
