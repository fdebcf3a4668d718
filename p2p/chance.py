"""Numbers that user code draws from `numpy.random` and `random`: of every chunk its own, and the same in every run.

Workers are forked, and a fork has the state of its parent: without this, all workers of an executor would draw the same
numbers, and other ones each time. So the global state of Python and numpy is set before rows are read and before each
gradient. Where user code runs in the user's own process, `Borrowed` gives that state back as it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.random import mtrand


def seed(of_session: int, *where: int) -> None:
    """Set Python's and numpy's global state by a session's seed and a place in it: epoch, partition, chunk."""
    words = np.random.SeedSequence(abs(of_session), spawn_key=where).generate_state(8)
    np.random.seed(words[:4])
    random.seed(words[4:].tobytes())


class Borrowed:
    """The global state of a worker that is simulated: in use within `with`, and kept until the next time.

    numpy's is swapped as a whole generator, which costs half a microsecond where reading and writing its state costs
    a hundred. Not part of that generator is the second of two normal numbers, drawn together by the legacy functions.
    """

    def __init__(self) -> None:
        self._mine = _Kept(random.getstate(), np.random.MT19937(0), None)
        self._theirs: _Kept | None = None

    def __enter__(self) -> None:
        self._theirs = _Kept.current()
        self._mine.restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._theirs is not None
        self._mine = _Kept.current()
        self._theirs.restore()


@dataclass(frozen=True)
class _Kept:
    """Python's and numpy's global state at one moment."""

    python: tuple[Any, ...]
    numpy: np.random.BitGenerator
    """The generator itself: nobody may draw from it until it is restored."""
    whole: dict[str, Any] | None
    """Of numpy, where a normal number is left over; a generator that is set loses it."""

    @classmethod
    def current(cls) -> _Kept:
        whole = np.random.get_state(legacy=False)
        assert isinstance(whole, dict)
        return cls(random.getstate(), mtrand.get_bit_generator(), whole if whole["has_gauss"] else None)

    def restore(self) -> None:
        random.setstate(self.python)
        mtrand.set_bit_generator(self.numpy)
        if self.whole is not None:
            np.random.set_state(self.whole)
