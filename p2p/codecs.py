"""Codecs for models of whole arrays: an update in fewer bytes, and the rest of it with the next one.

    DeepDist(model, codec="top-k")          by name, or as an object: codec=TopK(share=0.05)

| name      | what travels of an array of floats                          | bytes a number, for float32's 4  |
|---|---|---|
| "float16" | every number, as float16                                     | 2                                |
| "int8"    | every row, in integers times a power of two of its own       | 1, and 5 a row                   |
| "int2"    | every number, as a step up, one down or none; 256 numbers have steps of a length | .25, and 1 a block   |
| "top-k"   | the numbers that changed most, in eight bits each            | 6 times `share`, so .12 by default |
| "auto"    | for outer steps "int2", or few rows exactly; else as it is   | .25, or less                       |

What a codec leaves stays in the worker's copy of the model, and is added to the next update before that is coded
(error feedback, Seide et al. 2014; top-k: Aji and Heafield, arXiv:1704.05021). Sums of updates are exact:
`gossip.updates` has the kinds. Integers, and arrays of up to `WHOLE_MAX` numbers, travel as they are, and so do arrays
of one dimension by "int8".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gossip.arguments import probability
from gossip.arrays import Array, Arrays, Layout
from gossip.errors import UsageError
from gossip.updates import Kind
from gossip.updates.entries import entries_of
from gossip.updates.halves import HALF
from gossip.updates.levels import BLOCK, in_blocks, levels_of
from gossip.updates.rows import EXPONENT_MAX, floats, rows_of
from gossip.updates.sparse import smallest
from p2p.codec import Codec

WHOLE_MAX = 64
"""Numbers of an array that is not worth coding."""
PIECE_BLOCKS = 256
"""Of 256 numbers, are coded at a time: they stay in a cache."""
INT2_BITS = 2 + 8 / BLOCK
"""Of a number."""
LIGHT_BYTES_MIN = 1 << 14
"""Of a model. What is said beside an update, some hundred bytes, is a tenth of it then."""
AUTO = "auto"
BITS = 7
"""Of an integer of eight bits, beside its sign."""


class _Named(Protocol):
    def part(self, name: str, change: Array) -> tuple[Arrays, Array]: ...


def _encode(codec: _Named, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
    """Array by array."""
    update: dict[str, Array] = {}
    left: dict[str, Array] = {}
    for name, change in delta.items():
        whole = np.add(change, residual[name])
        if whole.dtype.kind != "f" or whole.size <= WHOLE_MAX:
            update[name], left[name] = whole, np.zeros_like(whole)
        else:
            part, left[name] = codec.part(name, whole)
            update |= part
    return update, left


@dataclass(frozen=True)
class Float16:
    """Every number as float16. Those beyond its range go in several updates."""

    kinds: tuple[Kind, ...] = ()

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        return _encode(self, delta, residual)

    def part(self, name: str, change: Array) -> tuple[Arrays, Array]:
        """(what travels of an array, what is left of it)"""
        limit = float(np.finfo(np.float16).max)
        half = change.clip(-limit, limit).astype(np.float16)
        return {name + HALF: half}, change - half.astype(change.dtype)


@dataclass(frozen=True)
class Int8:
    """Every row of an array in integers of eight bits, times a power of two of its own."""

    kinds: tuple[Kind, ...] = ()

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        return _encode(self, delta, residual)

    def part(self, name: str, change: Array) -> tuple[Arrays, Array]:
        """(what travels of an array, what is left of it): rows of zeros do not travel."""
        if change.ndim < 2:
            return {name: change}, np.zeros_like(change)
        flat = change.reshape(len(change), -1)
        largest = np.abs(flat).max(axis=1)
        rows = np.flatnonzero(largest)
        values, powers = _integers(flat[rows], largest[rows])
        left = flat.copy()
        left[rows] -= floats(values, powers, change.dtype)
        values = values.reshape(len(rows), *change.shape[1:])
        return rows_of(name, rows, values, powers), left.reshape(change.shape)


@dataclass(frozen=True)
class Int2:
    """Every number in two bits: a step up, one down or none. Each 256 numbers have a length of steps of their own: the
    power of two next to the largest of them."""

    kinds: tuple[Kind, ...] = ()

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        return _encode(self, delta, residual)

    def part(self, name: str, change: Array) -> tuple[Arrays, Array]:
        """(what travels of an array, what is left of it)"""
        blocks = in_blocks(change)
        left, levels = np.empty_like(blocks), np.empty(blocks.shape, np.int8)
        scales = np.empty(len(blocks), np.int8)
        exact, limits = np.promote_types(change.dtype, np.float32), _powers(change.dtype)
        for start in range(0, len(blocks), PIECE_BLOCKS):
            piece = slice(start, start + PIECE_BLOCKS)
            numbers = blocks[piece]
            largest = np.maximum(numbers.max(axis=1), -numbers.min(axis=1)).astype(exact)
            powers = np.rint(np.log2(largest, where=largest > 0, out=np.zeros_like(largest))).clip(*limits)
            scales[piece] = powers
            halves = np.ldexp(exact.type(0.5), powers.astype(np.int32))[:, None]
            np.subtract(numbers > halves, numbers < -halves, out=levels[piece], dtype=np.int8)
            np.subtract(numbers, floats(levels[piece], scales[piece], change.dtype), out=left[piece])
        return levels_of(name, levels, scales), left.reshape(-1)[: change.size].reshape(change.shape)


@dataclass(frozen=True)
class TopK:
    """The numbers of each array that changed most, in eight bits each: this share of them, and one at least."""

    share: float = 0.02
    kinds: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        if probability("share", self.share) == 0:
            raise UsageError("share=0, expected a part of an array's numbers to send, such as 0.02")

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        return _encode(self, delta, residual)

    def part(self, name: str, change: Array) -> tuple[Arrays, Array]:
        """(what travels of an array, what is left of it): zeros do not travel."""
        if change.size > np.iinfo(np.int32).max:
            raise UsageError(f"{name!r} has {change.size} numbers, expected fewer than 2^31: cut it into parts")
        left = change.copy()
        flat = left.reshape(-1)
        sizes = np.abs(flat)
        kept = max(1, round(self.share * flat.size))
        entries = np.sort(np.argpartition(sizes, -kept)[-kept:])
        entries = entries[sizes[entries] > 0]
        steps, powers = _integers(flat[entries, None], sizes[entries])
        flat[entries] -= floats(steps[:, 0], powers, change.dtype)
        return entries_of(name, entries, steps[:, 0], powers), left


@dataclass(frozen=True)
class Light:
    """As `Int2`; or exactly, as rows or entries, where so few changed that this takes fewer bytes."""

    kinds: tuple[Kind, ...] = ()

    def encode(self, delta: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        if not any(rest.any() for rest in residual.values()):
            update = smallest(delta, Layout.of(delta))
            whole = sum(change.nbytes * INT2_BITS / (8 * change.itemsize) for change in delta.values())
            if update is not None and sum(part.nbytes for part in update.values()) <= whole:
                return update, {name: np.zeros_like(change) for name, change in delta.items()}
        return Int2().encode(delta, residual)


def chosen(model_bytes: int, *, outer_steps: bool) -> Codec | None:
    """The codec of a training, where the user leaves the choice; `outer_steps`: its updates add up as these do.

    Outer steps go on in the direction of many updates, so they lose nothing by two bits: 16 peers told 97.72 % of
    MNIST right by a perceptron, 97.76 without a codec (`python -m benchmarks.dense`). Users' own functions are summed,
    and get what they computed.
    """
    return Light() if outer_steps and model_bytes >= LIGHT_BYTES_MIN else None


def _integers(rows: Array, largest: Array) -> tuple[Array, Array]:
    """(int8 (n, width), int8 exponents (n,)): the nearest to rows (n, width), whose largest sizes (n,) are given.

    The largest of a row has seven bits, unless that is more than an exponent can say.
    """
    lowest, highest = _powers(rows.dtype)
    limit, exact = np.iinfo(np.int8).max, np.promote_types(rows.dtype, np.float32)
    powers = (np.frexp(largest)[1] - BITS).clip(lowest, highest)
    rounds_up = np.rint(np.ldexp(largest.astype(exact), -powers)) > limit
    powers = (powers + rounds_up).clip(lowest, highest)
    found = np.empty(rows.shape, np.int8)
    step = max(1, PIECE_BLOCKS * BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        numbers = _halved(rows[piece].astype(exact), powers[piece])
        np.rint(numbers, out=numbers)
        found[piece] = numbers.clip(-limit, limit, out=numbers)
    return found, powers.astype(np.int8)


def _halved(rows: Array, powers: Array) -> Array:
    """Rows of floats over two to the power of each, in place where that is the same as a product."""
    with np.errstate(over="ignore"):
        units = np.ldexp(rows.dtype.type(1), -powers)
    if not np.isfinite(units).all():
        return np.ldexp(rows, -powers[:, None])
    rows *= units[:, None]
    return rows


def _powers(dtype: Any) -> tuple[int, int]:
    """The exponents that units of an array of floats may have: each unit is a number of its dtype, and not 0."""
    about = np.finfo(dtype)
    return max(-EXPONENT_MAX, int(about.minexp) - int(about.nmant)), min(EXPONENT_MAX, int(about.maxexp) - 1)


NAMES: Mapping[str, Codec] = {"float16": Float16(), "int8": Int8(), "int2": Int2(), "top-k": TopK()}
"""By which `DeepDist(codec=...)` finds them."""


def named(codec: Codec | str | None) -> Codec | None:
    """The codec of that name; any other value as it is. None for "auto", where each training has its own.

    Raises:
        UsageError: there is none of that name.
    """
    if not isinstance(codec, str):
        return codec
    if codec == AUTO:
        return None
    if codec not in NAMES:
        names = ", ".join(map(repr, (AUTO, *NAMES)))
        raise UsageError(f"codec={codec!r}, expected {names}, an object (p2p.Codec) or None")
    return NAMES[codec]
