"""The rows of a partition, by chunks: one after the other as a pass goes, or any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

SLICED = (list, tuple, range, np.ndarray)
"""What is cut at any row, and not read up to it."""


@dataclass(frozen=True)
class Chunk:
    """Rows, to be read once."""

    rows: Iterable[Any]
    more: bool
    """Others follow them in the partition."""


class Partition:
    """A partition of data: an iterable of rows, or a function that returns one, anew for each pass."""

    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]], chunk_rows: int | None) -> None:
        """`chunk_rows`: of a chunk; None: all of it is one."""
        self._source = source
        self._chunk_rows = chunk_rows
        self._kept: Any = None
        """What the function returned, where that can be cut."""
        self._rows: Iterator[Any] | None = None
        """Rows that follow those that were read before."""
        self._ahead: list[Any] = []
        """The first of these, if it was read already."""
        self._next = 0
        """The chunk that they begin."""

    def chunk(self, number: int) -> Chunk:
        """Chunk `number`, from 0; without rows where the partition has not so many."""
        count = self._chunk_rows
        if count is None:
            return Chunk(self._opened(), more=False)
        if self._rows is None or number != self._next:
            source = self._opened() if self._kept is None else self._kept
            if isinstance(source, SLICED):
                self._kept = source
                return Chunk(source[number * count : (number + 1) * count], more=(number + 1) * count < len(source))
            self._rows, self._ahead = iter(source), []
            for _ in islice(self._rows, number * count):
                pass
        found = [*self._ahead, *islice(self._rows, count + 1 - len(self._ahead))]
        more = len(found) > count
        self._ahead, self._next = found[count:], number + 1
        if not more:
            self._rows = None
        return Chunk(found[:count], more)

    def leave(self) -> None:
        """Another partition is read: keep no rows but those that were given."""
        self._kept = self._rows = None
        self._ahead = []

    def _opened(self) -> Iterable[Any]:
        return self._source() if callable(self._source) else self._source
