"""Numbers that user code draws from `numpy.random` and `random`: of every chunk its own, and the same in every run.

Workers are forked, and a fork has the state of its parent: without this, all workers of an executor would draw the same
numbers, and other ones each time. So the global state of Python and numpy is set before rows are read and before each
gradient. Where user code runs in the user's own process, `Borrowed` gives that state back as it was.
"""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np


def seed(of_session: int, *where: int) -> None:
    """Set Python's and numpy's global state by a session's seed and a place in it: epoch, partition, chunk."""
    words = np.random.SeedSequence(abs(of_session), spawn_key=where).generate_state(8)
    np.random.seed(words[:4])
    random.seed(words[4:].tobytes())


class Borrowed:
    """The global state of a worker that is simulated: in use within `with`, and kept until the next time."""

    def __init__(self) -> None:
        self._mine: tuple[Any, Any] | None = None
        self._theirs: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        self._theirs = _state()
        if self._mine is not None:
            _restore(self._mine)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._theirs is not None
        self._mine = _state()
        _restore(self._theirs)


def _state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _restore(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
