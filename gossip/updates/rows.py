"""Rows: an update that touches some rows only. They travel, and are kept and summed, as row numbers and rows.

An update names, for each array of the model, nothing (it did not change), the whole array under its own name, or

    w[rows]        (k,)         int32, ascending, each once
    w[values]      (k, ...)     what is added to those rows
    w[exponents]   (k,)         int8; if there: row i of the values is integers, in units of 2 ** exponents[i]

Integers times powers of two have exact sums: a coalesced range is exactly the sum of its updates, in rows that any of
them touched, and every replica adds the same numbers whoever of its neighbors it got them from, and in how many pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, ArraySpec, Layout, Packed, Payload, Update
from gossip.errors import MismatchError
from gossip.updates.kind import parts_of, read_whole, split

ROWS, VALUES, EXPONENTS = "[rows]", "[values]", "[exponents]"
SUFFIXES = (ROWS, VALUES, EXPONENTS)

INTEGERS = ("|i1", "<i2", "<i4")
"""How values with exponents may travel: the first that holds a sum is taken."""
EXPONENT_MAX = 64
"""Of either sign: 2**31 times 2**64 is still a float32."""

SHIFT_MAX = 31
"""By how many bits any row can be moved within 64, with room for the sum: 32 at the most and the sign are there."""

PIECE_BYTES = 1 << 18
"""Rows are added in pieces of about so many bytes: what is gathered stays in the cache until it is written back."""


def rows_of(name: str, rows: Array, values: Array, exponents: Array | None = None) -> dict[str, Array]:
    """Rows of the array `name` as part of an update; `rows` are ascending and distinct."""
    part = {name + ROWS: np.asarray(rows, np.int32), name + VALUES: values}
    return part if exponents is None else {**part, name + EXPONENTS: exponents}


@dataclass(frozen=True)
class Rows:
    """Updates of some rows of some arrays, beside others that are whole."""

    suffixes = SUFFIXES
    in_blocks = False

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(ROWS) for spec in layout.specs)

    # ------------------------------------------------------------------------------------------------------ checking

    def check_fit(self, layout: Layout, model: Layout) -> None:
        mine = {spec.name: spec for spec in layout.specs}
        for base, suffix, expected in parts_of(layout, model, SUFFIXES):
            if base in mine:
                raise MismatchError(f"{base!r} is there as a whole and as rows, expected one of them")
            if suffix == ROWS:
                _check_rows_like(base, mine, expected)
            elif base + ROWS not in mine:
                raise MismatchError(f"{base + suffix!r} comes without {base + ROWS!r}")

    def check(self, update: Update, model: Layout) -> None:
        """Rows are rows of the model, and exponents within their limits."""
        counts = {spec.name: spec.shape[0] for spec in model.specs if spec.shape}
        for name, array in update.arrays().items():
            base, suffix = split(name, SUFFIXES)
            if suffix == ROWS and array.size:
                if array[0] < 0 or array[-1] >= counts[base] or not np.all(array[1:] > array[:-1]):
                    raise MismatchError(f"{name!r}: expected ascending numbers of rows below {counts[base]}")
            elif suffix == EXPONENTS and array.size and (array.min() < -EXPONENT_MAX or array.max() > EXPONENT_MAX):
                raise MismatchError(
                    f"{name!r}: {array.min()} to {array.max()}, expected {-EXPONENT_MAX} to {EXPONENT_MAX}"
                )

    def squares(self, update: Update) -> float:
        parts = update.arrays()
        found = update.squares
        for name, exponents in parts.items():
            if name.endswith(EXPONENTS):
                found += squares_in_units(parts[name.removesuffix(EXPONENTS) + VALUES], exponents)
        return found

    # -------------------------------------------------------------------------------------------------------- adding

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        targets, parts = model.views(buffer), read_whole(update).arrays()
        for name, part in parts.items():
            base, suffix = split(name, SUFFIXES)
            if not suffix:
                np.add(targets[name], part, out=targets[name])
            elif suffix == ROWS and part.size:
                _add_rows(targets[base], part, parts[base + VALUES], parts.get(base + EXPONENTS))

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        parts = read_whole(update).arrays()
        stop = start + len(block)
        for spec, offset in zip(model.specs, model.offsets, strict=True):
            low, high = max(start, offset), min(stop, offset + spec.nbytes)
            if low >= high or not (spec.name in parts or spec.name + ROWS in parts):
                continue
            target = np.frombuffer(block, spec.dtype, (high - low) // np.dtype(spec.dtype).itemsize, low - start)
            first = (low - offset) // target.itemsize
            if spec.name in parts:
                np.add(target, parts[spec.name].reshape(-1)[first : first + target.size], out=target)
                continue
            width = spec.nbytes // target.itemsize // spec.shape[0]
            top, bottom = first // width, -(-(first + target.size) // width)
            rows = parts[spec.name + ROWS]
            chosen = slice(*np.searchsorted(rows, (top, bottom)))
            if chosen.start == chosen.stop:
                continue
            exponents = parts.get(spec.name + EXPONENTS)
            values = floats(
                parts[spec.name + VALUES][chosen], None if exponents is None else exponents[chosen], target.dtype
            )
            window = np.zeros((bottom - top, width), target.dtype)
            window[rows[chosen] - top] = values.reshape(-1, width)
            np.add(target, window.reshape(-1)[first - top * width :][: target.size], out=target)

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        for name, part in read_whole(update).arrays().items():
            base, suffix = split(name, SUFFIXES)
            if suffix in ("", ROWS):
                yield base, part if suffix else None

    # ------------------------------------------------------------------------------------------------------- summing

    def total(self, left: Arrays, right: Arrays) -> dict[str, Array]:
        """Rows that either touched. Never None."""
        bases = sorted({split(name, SUFFIXES)[0] for name in (*left, *right)})
        result: dict[str, Array] = {}
        for base in bases:
            one, other = (_part(arrays, base) for arrays in (left, right))
            result.update(_sum_parts(base, one, other))
        return result

    def negative(self, update: Payload) -> Packed:
        return Packed.of(
            {
                name: array if split(name, SUFFIXES)[1] in (ROWS, EXPONENTS) else _negated(array)
                for name, array in read_whole(update).arrays().items()
            }
        )


def squares_in_units(values: Array, exponents: Array) -> float:
    """The sum of the squares of rows of integers, of which row i is in units of 2 ** exponents[i]."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    step, total = max(1, PIECE_BYTES // max(1, 4 * rows.shape[1])), 0.0
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].astype(np.float32)
        units = np.ldexp(1.0, 2 * exponents[start : start + step].astype(np.int32))
        total += float(np.dot(np.einsum("ij,ij->i", piece, piece), units))
    return total


def _check_rows_like(base: str, mine: Mapping[str, ArraySpec], expected: ArraySpec) -> None:
    rows, values, exponents = (mine.get(base + suffix) for suffix in SUFFIXES)
    if values is None:
        raise MismatchError(f"{base + ROWS!r} comes without {base + VALUES!r}")
    assert rows is not None
    if rows.dtype != "<i4" or len(rows.shape) != 1 or not expected.shape or rows.shape[0] > expected.shape[0]:
        raise MismatchError(f"{rows}, expected the numbers of some rows of {expected}")
    if values.shape != (*rows.shape, *expected.shape[1:]):
        raise MismatchError(f"{values}, expected {rows.shape[0]} rows of {expected}")
    if exponents is None:
        if values.dtype != expected.dtype:
            raise MismatchError(f"{values}, expected dtype {np.dtype(expected.dtype).name}")
    elif exponents.dtype != "|i1" or exponents.shape != rows.shape or values.dtype not in INTEGERS:
        raise MismatchError(f"{values} with {exponents}, expected integers with an int8 exponent each row")
    elif np.dtype(expected.dtype).kind != "f":
        raise MismatchError(f"{base!r} comes in units of powers of two, expected none for {expected}")


def _add_rows(target: Array, rows: Array, values: Array, exponents: Array | None) -> None:
    step = max(1, PIECE_BYTES // max(1, target[:1].nbytes))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        some = np.take(target, rows[piece], axis=0)
        some += floats(values[piece], None if exponents is None else exponents[piece], target.dtype)
        target[rows[piece]] = some


def floats(values: Array, exponents: Array | None, dtype: Any) -> Array:
    """The rows as plain numbers."""
    if exponents is None:
        return values
    exact = np.promote_types(dtype, np.float32)  # an integer times a unit may fit where one of both does not
    units = np.ldexp(np.ones((), exact), exponents.astype(np.int32))
    return np.multiply(values, units.reshape(-1, *[1] * (values.ndim - 1)), dtype=exact).astype(dtype, copy=False)


def _negated(array: Array) -> Array:
    if array.dtype.str in INTEGERS and array.size and array.min() == np.iinfo(array.dtype).min:
        minus = -array.astype(np.int64)
        return minus.clip(max=np.iinfo(INTEGERS[-1]).max).astype(_narrowest(minus))
    return np.subtract(np.zeros((), array.dtype), array)


def _part(arrays: Arrays, base: str) -> dict[str, Array]:
    return {suffix: arrays[base + suffix] for suffix in ("", *SUFFIXES) if base + suffix in arrays}


def _sum_parts(base: str, one: dict[str, Array], other: dict[str, Array]) -> dict[str, Array]:
    if not one or not other:
        return {base + suffix: array.copy() for suffix, array in (one or other).items()}
    if "" in one or "" in other:
        whole, rest = (one, other) if "" in one else (other, one)
        result = whole[""].copy()
        if "" in rest:
            np.add(result, rest[""], out=result)
        else:
            _add_rows(result, rest[ROWS], rest[VALUES], rest.get(EXPONENTS))
        return {base: result}
    rows = np.union1d(one[ROWS], other[ROWS])
    if EXPONENTS in one and EXPONENTS in other:
        return rows_of(base, rows, *_sum_integers(rows, one, other))
    values = np.zeros((len(rows), *one[VALUES].shape[1:]), _dtype_of(one, other))
    for part in (one, other):
        values[np.searchsorted(rows, part[ROWS])] += floats(part[VALUES], part.get(EXPONENTS), values.dtype)
    return rows_of(base, rows, values)


def _dtype_of(one: dict[str, Array], other: dict[str, Array]) -> Any:
    return (other if EXPONENTS in one else one)[VALUES].dtype


def _sum_integers(rows: Array, one: dict[str, Array], other: dict[str, Array]) -> tuple[Array, Array]:
    """(values, exponents) of the union: each row in the finer of the two units, so that nothing is rounded.

    Where the units are so far apart that 64 bits do not hold both, the finer loses its last bits.
    """
    parts = [one, other]
    places = [np.searchsorted(rows, part[ROWS]) for part in parts]
    exponents, count = np.zeros(len(rows), np.int8), np.zeros(len(rows), np.int8)
    for place, part in zip(places, parts, strict=True):
        exponents[place] = part[EXPONENTS]
        count[place] += 1
    both = np.flatnonzero(count == 2)
    mine = [np.searchsorted(place, both) for place in places]
    left, right = (part[EXPONENTS][at].astype(np.int64) for at, part in zip(mine, parts, strict=True))
    unit = np.minimum(left, right)
    if (np.abs(left - right) > SHIFT_MAX).any():
        for at, part, exponent in zip(mine, parts, (left, right), strict=True):
            unit = np.maximum(unit, _finest(part[VALUES][at], exponent))
    sums = np.zeros((len(both), *one[VALUES].shape[1:]), np.int64)
    for at, part, exponent in zip(mine, parts, (left, right), strict=True):
        shift = (exponent - unit).reshape(-1, *[1] * (sums.ndim - 1))
        sums += part[VALUES][at].astype(np.int64) << shift.clip(0, 62) >> (-shift).clip(0, 62)
    exponents[both] = unit
    sums, exponents[both] = _fitted(sums, exponents[both])
    dtype = max(sums.dtype.str, *(_narrowest(part[VALUES]) for part in parts), key=INTEGERS.index)
    values = np.empty((len(rows), *sums.shape[1:]), dtype)
    for place, part in zip(places, parts, strict=True):
        values[place] = part[VALUES]
    values[both] = sums
    return values, exponents


def _finest(values: Array, exponents: Array) -> Array:
    """The units below which rows do not fit in 62 bits; for rows of zeros there are none."""
    bits = _bits(values)
    return np.where(bits > 0, exponents + bits - 62, -2 * EXPONENT_MAX)


def _bits(values: Array) -> Array:
    """How many the largest number of each row has."""
    largest = np.abs(values.astype(np.float64)).max(axis=tuple(range(1, values.ndim)), initial=0)
    bits: Array = np.frexp(largest)[1]
    return bits


def _fitted(values: Array, exponents: Array) -> tuple[Array, Array]:
    """In the narrowest integers that hold them; rows too large for all of them lose their last bits."""
    excess = np.maximum(0, _bits(values) - 31)
    if excess.any():
        values >>= excess.reshape(-1, *[1] * (values.ndim - 1))
        exponents = exponents + excess
    return values.astype(_narrowest(values)), exponents


def _narrowest(values: Array) -> str:
    low, high = values.min(initial=0), values.max(initial=0)
    fits = (dtype for dtype in INTEGERS if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)
    return next(fits, INTEGERS[-1])
