"""Which rows of a model updates have changed, and since when: so that a reader of the replica looks at those rows
alone.

Each row has the number of the last update that changed it. The writer stamps rows before it changes them and counts the
update when it is done; a reader notes the count before it looks. A row that is being changed just then is newer than
the noted count, and found again next time: no row is missed, and neither side waits.

Updates of whole arrays are not stamped: to look at every row is what the reader does anyway, in turn. Nor are arrays of
one dimension, where a stamp would be larger than what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import Array, ArraySpec, Layout

COUNT_BYTES = 8


class RowStamps:
    """The stamps of a model's arrays, in memory that may be shared."""

    def __init__(self, layout: Layout, buffer: Any = None) -> None:
        """`buffer`, `stamps_bytes(layout)` of it, holds what others have stamped; None for memory of its own."""
        buffer = bytearray(stamps_bytes(layout)) if buffer is None else buffer
        self._count = np.frombuffer(buffer, "<i8", 1)
        self._stamps = _layout(layout).views(memoryview(buffer)[COUNT_BYTES:])

    @property
    def count(self) -> int:
        """Updates so far."""
        return int(self._count[0])

    def stamp(self, changed: Iterable[tuple[str, Array | None]]) -> None:
        """Before an update is added, which changes these rows: (name, rows), None for an array that may change whole
        (`Kind.changed_rows`)."""
        for name, rows in changed:
            if rows is not None and name in self._stamps:
                self._stamps[name][rows] = self.count + 1

    def done(self) -> None:
        """After it was added."""
        self._count[0] += 1

    def since(self, name: str, count: int) -> NDArray[Any]:
        """The rows of array `name` that updates after `count` have changed, ascending."""
        return np.flatnonzero(self._stamps[name] > count)


def stamps_bytes(layout: Layout) -> int:
    """What `RowStamps` takes for a model of this layout."""
    return COUNT_BYTES + _layout(layout).nbytes


def _layout(model: Layout) -> Layout:
    return Layout(tuple(ArraySpec(spec.name, "<i8", spec.shape[:1]) for spec in model.specs if len(spec.shape) > 1))
