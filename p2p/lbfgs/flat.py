"""A model's arrays as one vector, and the ranges of it that shards have."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gossip.arrays import Array, Arrays, Layout
from gossip.errors import UsageError

BLOCK_NUMBERS = 1 << 16
"""Of float32 vectors, products are taken in float64, so many numbers at a time."""


class Flat:
    """The arrays of a layout, one after the other in its order, as one vector of `dtype`."""

    def __init__(self, layout: Layout) -> None:
        """`UsageError` where an array is not of float32 or float64."""
        for spec in layout.specs:
            if spec.dtype not in ("<f4", "<f8"):
                raise UsageError(
                    f"{spec.name!r} of the model has dtype {np.dtype(spec.dtype).name}, expected float32 or float64: "
                    "L-BFGS trains no others; choose arrays with parameters=(...)"
                )
        self.layout = layout
        self.dtype = np.dtype("<f8" if any(spec.dtype == "<f8" for spec in layout.specs) else "<f4")
        """float64 if any array is."""
        self._starts: list[int] = []
        end = 0
        for spec in layout.specs:
            self._starts.append(end)
            end += spec.nbytes // np.dtype(spec.dtype).itemsize
        self.size = end

    def spans(self, count: int) -> list[tuple[int, int]]:
        """At most `count` ranges (start, stop) of about the same length, none of them empty."""
        count = max(1, min(count, self.size))
        edges = [self.size * index // count for index in range(count + 1)]
        return list(pairwise(edges))

    def read(self, arrays: Arrays, start: int, stop: int) -> Array:
        """A copy of [start, stop) of the arrays."""
        found = np.empty(stop - start, self.dtype)
        for name, here, there in self._pieces(start, stop):
            found[there] = _numbers(arrays[name], here)
        return found

    def write(self, arrays: Arrays, start: int, numbers: Array) -> None:
        """Write from number `start` on into the arrays, in place."""
        for name, here, there in self._pieces(start, start + len(numbers)):
            array = arrays[name]
            if array.flags.c_contiguous:
                array.reshape(-1)[here] = numbers[there]
            else:
                array.flat[here] = numbers[there]

    def views(self, vector: Array) -> dict[str, Array]:
        """The arrays in a whole vector; views of it, where the dtype is that of the vector."""
        return {
            spec.name: vector[start : start + spec.nbytes // np.dtype(spec.dtype).itemsize]
            .reshape(spec.shape)
            .astype(spec.dtype, copy=False)
            for spec, start in zip(self.layout.specs, self._starts, strict=True)
        }

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[str, slice, slice]]:
        """The parts of arrays within [start, stop): name, range in the array, range from `start` on."""
        ends = [*self._starts[1:], self.size]
        for spec, first, end in zip(self.layout.specs, self._starts, ends, strict=True):
            low, high = max(start, first), min(stop, end)
            if low < high:
                yield spec.name, slice(low - first, high - first), slice(low - start, high - start)


def _numbers(array: Array, here: slice) -> Array:
    return array.reshape(-1)[here] if array.flags.c_contiguous else np.asarray(array.flat[here])


def dot(one: Array, other: Array) -> float:
    """The product of two vectors, in float64."""
    if one.dtype == other.dtype == np.float64:
        return float(one @ other)
    total = 0.0
    for start in range(0, len(one), BLOCK_NUMBERS):
        here = slice(start, start + BLOCK_NUMBERS)
        total += float(one[here].astype(np.float64) @ other[here].astype(np.float64))
    return total
