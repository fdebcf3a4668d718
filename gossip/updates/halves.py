"""Halves: whole arrays of floats in fewer bytes, as float16.

    w[half]     the shape of `w`, float16: what is added to it

A sum of several is float32 if that holds it exactly, else float64: numbers of float16 are whole multiples of 2^-24
below 2^16, so that a float64 holds the exact sum of 8,192 of them. Other arrays travel under their own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, Layout, Packed, Payload, Update, check_like
from gossip.errors import MismatchError
from gossip.updates.kind import read_whole

HALF = "[half]"
DTYPES = ("<f2", "<f4", "<f8")
"""Of one update, and of sums."""


@dataclass(frozen=True)
class Halves:
    """Updates of whole arrays, some of them in float16."""

    suffixes = (HALF,)
    in_blocks = False

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(HALF) for spec in layout.specs)

    def check_fit(self, layout: Layout, model: Layout) -> None:
        theirs = {spec.name: spec for spec in model.specs}
        mine = {spec.name for spec in layout.specs}
        for spec in layout.specs:
            base = spec.name.removesuffix(HALF)
            expected = theirs.get(base)
            if expected is None:
                raise MismatchError(f"{base!r} is not one of the model's arrays {sorted(theirs)}")
            if base == spec.name:
                check_like(base, spec, expected)
            elif base in mine:
                raise MismatchError(f"{base!r} is there twice, expected it whole or as {base + HALF!r}")
            elif spec.dtype not in DTYPES or spec.shape != expected.shape or np.dtype(expected.dtype).kind != "f":
                raise MismatchError(f"{spec}, expected float16 of the shape of an array of floats, which {expected} is")

    def check(self, update: Update, model: Layout) -> None:
        """Any numbers will do."""

    def squares(self, update: Update) -> float:
        return update.squares

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        targets = model.views(buffer)
        for name, part in read_whole(update).arrays().items():
            target = targets[name.removesuffix(HALF)]
            np.add(target, part, out=target, casting="same_kind")

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        parts = {name.removesuffix(HALF): part for name, part in read_whole(update).arrays().items()}
        for spec, offset in zip(model.specs, model.offsets, strict=True):
            low, high = max(start, offset), min(start + len(block), offset + spec.nbytes)
            if low < high and spec.name in parts:
                itemsize = np.dtype(spec.dtype).itemsize
                target = np.frombuffer(block, spec.dtype, (high - low) // itemsize, low - start)
                first = (low - offset) // itemsize
                part = parts[spec.name].reshape(-1)[first : first + len(target)]
                np.add(target, part, out=target, casting="same_kind")

    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        if left.keys() != right.keys():
            return None
        pairs = ((name, part, right[name]) for name, part in left.items())
        return {name: _sum(one, other) if name.endswith(HALF) else one + other for name, one, other in pairs}

    def negative(self, update: Payload) -> Packed:
        parts = read_whole(update).arrays()
        return Packed.of({name: np.subtract(np.zeros((), part.dtype), part) for name, part in parts.items()})

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        for spec in update.layout.specs:
            yield spec.name.removesuffix(HALF), None


def _sum(one: Array, other: Array) -> Array:
    exact = np.add(one, other, dtype=np.float64)
    single = exact.astype(np.float32)
    return single if np.array_equal(single, exact) else exact
