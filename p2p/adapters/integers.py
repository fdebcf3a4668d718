"""Integers of a model: where they are summed, and what is told of a sum that the model's own array cannot hold.

int8 to int32, unsigned as well    summed as int64; a sum beyond their limits is an error
int64, uint64                      summed as they are; half of their range is left to see a sum come near its end
"""

from __future__ import annotations

import numpy as np

from gossip.arrays import NARROW, Array, Arrays, Layout
from gossip.errors import UsageError

HALVES = {"<i8": (-(1 << 62), 1 << 62), "<u8": (0, 1 << 63)}
"""By dtype: the half of its numbers that sums should stay in."""


class Integers:
    """Those of one model, by the names of its arrays."""

    def __init__(self, own: Layout, arrays: Arrays, *, cuts: bool) -> None:
        """`own`: the layout of the model. `arrays` are what it begins with; `cuts`: numbers that the model cannot hold
        are cut to the nearest, and `beyond` says so, until others come; else they raise."""
        kinds = {spec.name: np.dtype(spec.dtype) for spec in own.specs}
        self.narrow = {name: kind for name, kind in kinds.items() if kind.str in NARROW}
        """By array: its dtype, where that is not the one in which it is summed."""
        wide = {name: HALVES[kind.str] for name, kind in kinds.items() if kind.str in HALVES} if cuts else {}
        self._wide = {name: half for name, half in wide.items() if _within(arrays[name], half)}
        """Not of arrays that begin with numbers beyond: these are none that count something."""
        self._cuts = cuts
        self.beyond: dict[str, str] = {}
        """By array: what is to be told of the numbers that came last."""

    def fitted(self, name: str, sums: Array) -> Array:
        """Numbers of the array `name`, as they are summed, for an array of the model's dtype.

        Raises:
            UsageError: some do not fit, and none are cut.
        """
        if name not in self.narrow and name not in self._wide:
            return sums
        self.beyond.pop(name, None)
        if name in self._wide:
            if not _within(sums, self._wide[name]):
                self.beyond[name] = (
                    f"{name!r}: sums of updates from {sums.min()} to {sums.max()}, beyond half of the numbers of "
                    f"{sums.dtype}: some may have wrapped around. Expected numbers that stay far from its ends"
                )
            return sums
        dtype = self.narrow[name]
        limits = np.iinfo(dtype)
        if sums.dtype == dtype:
            return sums
        if _within(sums, (limits.min, limits.max)):
            return sums.astype(dtype)
        text = (
            f"{name!r}: sums of updates from {sums.min()} to {sums.max()}, expected such as fit into {dtype} "
            f"({limits.min} to {limits.max}): give the model a wider dtype"
        )
        if not self._cuts:
            raise UsageError(text)
        self.beyond[name] = f"{text}. It has the nearest that fit"
        return np.clip(sums, limits.min, limits.max).astype(dtype)


def _within(array: Array, limits: tuple[int, int]) -> bool:
    return not array.size or (int(array.min()) >= limits[0] and int(array.max()) <= limits[1])
