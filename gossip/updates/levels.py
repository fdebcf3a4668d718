"""Levels: whole arrays of floats in two bits a number: up, down or neither, by one step of its block.

    w[levels]     (blocks, 64)    uint8: of a block of 256 numbers of `w`, as if it had one dimension, four in each
                                  byte, the first in its lowest bits: 0, 1, 2 for -1, 0, 1
                  (blocks, 256)   or, in sums: integers
    w[scales]     (blocks,)       int8: they are in units of 2 ** scales[i]

The last block is filled up with numbers that count for nothing. Other arrays travel whole, under their own names.
Integers times powers of two have exact sums: see `gossip.updates.rows`, which sums them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, ArraySpec, Layout, Packed, Payload, Update
from gossip.errors import MismatchError
from gossip.updates.kind import parts_of, read_whole, split
from gossip.updates.rows import EXPONENT_MAX, EXPONENTS, INTEGERS, VALUES, Rows, floats, rows_of, squares_in_units

LEVELS, SCALES = SUFFIXES = "[levels]", "[scales]"
BLOCK = 256
PER_BYTE = 4
_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)
_STEPS = np.array([sum((byte >> shift) & 3 != 1 for shift in _SHIFTS.tolist()) for byte in range(256)], np.float32)
"""How many of the four numbers in a byte are not zero."""
_PIECE_BLOCKS = 512
"""Are added at a time: what they are as floats stays in the cache."""


def levels_of(name: str, levels: Array, scales: Array) -> dict[str, Array]:
    """Part of an update for the array `name`: levels (blocks, 256), each -1, 0 or 1, and scales (blocks,)."""
    codes = (levels + np.int8(1)).astype("u1", copy=False).view("<u4")
    for shift in (6, 12):  # four bytes, each of two bits, go into the lowest one
        codes |= codes >> np.uint32(shift)
    return {name + LEVELS: codes.astype(np.uint8), name + SCALES: scales}


def in_blocks(array: Array) -> Array:
    """The numbers of an array as (blocks, 256), filled up with zeros; a copy where it has to be."""
    flat = array.reshape(-1)
    return np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)


@dataclass(frozen=True)
class Levels:
    """Updates of whole arrays, some of them in two bits a number."""

    suffixes = SUFFIXES
    in_blocks = False

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(LEVELS) for spec in layout.specs)

    def check_fit(self, layout: Layout, model: Layout) -> None:
        mine = {spec.name: spec for spec in layout.specs}
        for base, suffix, expected in parts_of(layout, model, SUFFIXES):
            if base in mine or base + LEVELS not in mine or base + SCALES not in mine:
                raise MismatchError(f"{sorted(mine)}, expected {base!r} whole, or as {LEVELS} and {SCALES}")
            _check_like(mine[base + suffix], suffix, expected)

    def check(self, update: Update, model: Layout) -> None:
        """Codes are of the three levels, and scales within their limits."""
        for name, array in update.arrays().items():
            if name.endswith(LEVELS) and array.dtype == np.uint8 and np.any(array & (array >> 1) & 0x55):
                raise MismatchError(f"{name!r}: the code 3, expected 0, 1 or 2")
            if name.endswith(SCALES) and array.size and (array.min() < -EXPONENT_MAX or array.max() > EXPONENT_MAX):
                raise MismatchError(
                    f"{name!r}: {array.min()} to {array.max()}, expected {-EXPONENT_MAX} to {EXPONENT_MAX}"
                )

    def squares(self, update: Update) -> float:
        """Of all numbers of each block, also of those with which the last one is filled up."""
        parts = update.arrays()
        found = update.squares
        for name, levels in parts.items():
            if name.endswith(LEVELS):
                scales = parts[name.removesuffix(LEVELS) + SCALES]
                found += (
                    _squares_of_codes(levels, scales) if levels.dtype == np.uint8 else squares_in_units(levels, scales)
                )
        return found

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        parts = read_whole(update).arrays()
        for name, target in model.views(buffer).items():
            _add(target.reshape(-1), 0, name, parts)

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        parts = read_whole(update).arrays()
        for spec, offset in zip(model.specs, model.offsets, strict=True):
            low, high = max(start, offset), min(start + len(block), offset + spec.nbytes)
            if low < high:
                itemsize = np.dtype(spec.dtype).itemsize
                target = np.frombuffer(block, spec.dtype, (high - low) // itemsize, low - start)
                _add(target, (low - offset) // itemsize, spec.name, parts)

    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        if {split(name, SUFFIXES)[0] for name in left} != {split(name, SUFFIXES)[0] for name in right}:
            return None
        result: dict[str, Array] = {}
        for name, part in left.items():
            base, suffix = split(name, SUFFIXES)
            if not suffix:
                if name not in right:
                    return None
                result[name] = part + right[name]
            elif suffix == LEVELS:
                if name not in right:
                    return None
                one, other = (_as_rows(base, arrays) for arrays in (left, right))
                total = Rows().total(one, other)
                result |= {name: total[base + VALUES], base + SCALES: total[base + EXPONENTS]}
        return result

    def negative(self, update: Payload) -> Packed:
        result: dict[str, Array] = {}
        for name, part in read_whole(update).arrays().items():
            base, suffix = split(name, SUFFIXES)
            if not suffix:
                result[name] = np.subtract(np.zeros((), part.dtype), part)
            elif suffix == LEVELS:
                rows = Packed.of(_as_rows(base, {name: part, base + SCALES: np.zeros(len(part), np.int8)}))
                result[name] = Rows().negative(rows).arrays()[base + VALUES]
            else:
                result[name] = part
        return Packed.of(result)

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        for spec in update.layout.specs:
            base, suffix = split(spec.name, SUFFIXES)
            if suffix != SCALES:
                yield base, None


def _add(target: Array, first: int, name: str, parts: Arrays) -> None:
    """Add to the numbers of the array from `first` on what an update has for them, in place."""
    if name in parts:
        target += parts[name].reshape(-1)[first : first + target.size]
    elif name + LEVELS in parts:
        levels, scales, stop = parts[name + LEVELS], parts[name + SCALES], first + target.size
        for block in range(first // BLOCK, -(-stop // BLOCK), _PIECE_BLOCKS):
            piece, begin = slice(block, block + _PIECE_BLOCKS), block * BLOCK
            numbers = floats(_unpacked(levels[piece]), scales[piece], target.dtype).reshape(-1)
            low, high = max(first, begin), min(stop, begin + numbers.size)
            target[low - first : high - first] += numbers[low - begin : high - begin]


def _squares_of_codes(levels: Array, scales: Array) -> float:
    total = 0.0
    for start in range(0, len(levels), _PIECE_BLOCKS):
        piece = slice(start, start + _PIECE_BLOCKS)
        total += float(np.dot(_STEPS[levels[piece]].sum(axis=1), np.ldexp(1.0, 2 * scales[piece].astype(np.int32))))
    return total


def _unpacked(levels: Array) -> Array:
    """(blocks, 256) integers."""
    if levels.dtype != np.uint8:
        return levels
    codes = (levels[:, :, None] >> _SHIFTS) & np.uint8(3)
    return codes.reshape(len(levels), BLOCK).astype(np.int8) - np.int8(1)


def _as_rows(base: str, arrays: Arrays) -> dict[str, Array]:
    levels = _unpacked(arrays[base + LEVELS])
    return rows_of(base, np.arange(len(levels)), levels, arrays[base + SCALES])


def _check_like(spec: ArraySpec, suffix: str, expected: ArraySpec) -> None:
    blocks = -(-math.prod(expected.shape) // BLOCK)
    if np.dtype(expected.dtype).kind != "f":
        raise MismatchError(f"{spec}, expected none for {expected}, which is not of floats")
    if suffix == SCALES:
        fits = spec.dtype == "|i1" and spec.shape == (blocks,)
    elif spec.dtype == "|u1":
        fits = spec.shape == (blocks, BLOCK // PER_BYTE)
    else:
        fits = spec.dtype in INTEGERS and spec.shape == (blocks, BLOCK)
    if not fits:
        raise MismatchError(f"{spec}, expected {blocks} blocks of {expected}")
