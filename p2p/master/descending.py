"""Where `descent` runs: in the thread of the server, or, where it takes long, in one of its own beside that.

    descents take up to 10 ms      the server's thread: a hand-over would cost as much as a small descent
    one took longer                the next 256 run in another thread, and the server answers whoever asks meanwhile

One update at a time, in the order in which they are given.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

LONG_S = 0.01
"""A descent of so long makes the next ones run beside the server: two hand-overs take some .1 ms."""
BESIDE = 256
"""So many: an evaluation within `descent` comes every so often, and what only the first of all take long for does not
last."""

Outcome = tuple[T | None, BaseException | None]
"""What came of it: a result, or an error."""


class Descending(Generic[T]):
    """For one training after the other. All but the descents themselves is called by the server's thread."""

    def __init__(self) -> None:
        self._left = 0
        """So many of the next ones run beside the server."""
        self._jobs: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome[T]] = SimpleQueue()
        self._finish: Callable[[Outcome[T]], None] | None = None
        """What is to be told of the one that runs beside the server."""
        self._thread: threading.Thread | None = None
        self.done, self._done = os.pipe()
        """It can be read from when that is over."""

    @property
    def is_under_way(self) -> bool:
        """One runs beside the server, or is to be settled."""
        return self._finish is not None

    def run(self, descend: Callable[[], T], finish: Callable[[Outcome[T]], None]) -> None:
        """Call `descend`, and tell `finish` what came of it: now, or in `settle`."""
        assert self._finish is None
        if not self._left:
            finish(self._outcome(descend))
            return
        self._left -= 1
        self._finish = finish
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="deepdist-descent", daemon=True)
            self._thread.start()
        self._jobs.put(descend)

    def settle(self) -> None:
        """Tell of the one that runs beside the server, when it is over: wait for that."""
        outcome = self._outcomes.get()
        os.read(self.done, 1)
        finish, self._finish = self._finish, None
        assert finish is not None
        finish(outcome)

    def stop(self) -> None:
        """The training is over: end the thread. None is under way."""
        self._left = 0
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Close what is open."""
        self.stop()
        os.close(self.done)
        os.close(self._done)

    def _outcome(self, descend: Callable[[], T]) -> Outcome[T]:
        began = time.perf_counter()
        try:
            return descend(), None
        except BaseException as error:  # noqa: BLE001 - whatever it is, who asked for it is told
            return None, error
        finally:
            if time.perf_counter() - began > LONG_S:
                self._left = BESIDE

    def _run(self) -> None:
        while (descend := self._jobs.get()) is not None:
            self._outcomes.put(self._outcome(descend))
            descend = None  # what it holds may be large
            os.write(self._done, b"x")
