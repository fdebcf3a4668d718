"""Sketches: a few numbers of each replica by which the driver program sees, many times a second, how far all are apart.

A sketch is linear and keeps lengths in expectation, so the distance of two sketches is that of the two replicas, to
some 2 / sqrt(128) = 18%. Source: count sketch, Charikar, Chen and Farach-Colton, "Finding frequent items in data
streams" (2002); its variance as a projection: Weinberger et al., "Feature hashing" (2009).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from gossip.arrays import Array

BUCKETS = 128
"""Numbers of a sketch."""


class Sketch:
    """The same projection for all peers of a run."""

    def __init__(self, size: int, run: str) -> None:
        """For vectors of `size` numbers; `run` draws the buckets and signs."""
        self._size = size
        self._seed = xxhash.xxh3_64_intdigest(run.encode())
        self._buckets: Array | None = None
        self._signs: Array | None = None

    def of(self, vector: Array) -> list[float]:
        """The sketch of (size,) `vector`."""
        if self._buckets is None or self._signs is None:
            chance = np.random.default_rng(self._seed)
            self._buckets = chance.integers(BUCKETS, size=self._size, dtype=np.uint8)
            self._signs = chance.integers(2, size=self._size, dtype=np.int8) * np.int8(2) - np.int8(1)
        sums = np.bincount(self._buckets, weights=self._signs * vector, minlength=BUCKETS)
        sketch: list[float] = sums.tolist()
        return sketch


def distance(sketches: Sequence[Sequence[float]]) -> float:
    """The largest distance of any from their mean, over the largest length; 0 for none."""
    if not sketches:
        return 0.0
    each = np.array(sketches)
    longest = float(np.linalg.norm(each, axis=1).max())
    apart = float(np.linalg.norm(each - each.mean(axis=0), axis=1).max())
    return apart / longest if apart else 0.0
