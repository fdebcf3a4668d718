"""Updates in float64 as the rows that changed: nothing is rounded, and nothing is left for later.

array (rows, columns)  ->  array[rows], array[values]      other arrays travel whole
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gossip.arrays import Array, Arrays
from gossip.updates import Kind
from gossip.updates.rows import rows_of


@dataclass(frozen=True)
class ChangedRows:
    """A codec of `DeepDist`; see `p2p.codec`."""

    kinds: ClassVar[tuple[Kind, ...]] = ()
    """Those of rows are there anyway."""

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        """(update, residual): all of it, and nothing."""
        update: dict[str, Array] = {}
        for name, change in delta.items():
            change = change + residual[name]  # which is 0: a sum, so that it shares no memory with what is written to
            if change.ndim < 2:
                update[name] = change
            else:
                rows = np.flatnonzero(change.any(axis=tuple(range(1, change.ndim))))
                update.update(rows_of(name, rows, change[rows]))
        return update, {name: np.zeros_like(change) for name, change in delta.items()}
