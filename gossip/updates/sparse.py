"""The smallest exact form of a change: the rows or entries that changed, or whole arrays where that is hardly larger.

    whole array             all of its numbers
    SomeRows                k rows:       k * (4 bytes + those of a row)
    SomeEntries             k numbers:    k * (4 bytes + those of a number)

No number is rounded on the way. Rows and entries are gathered, copied and summed in memory, where whole arrays stay in
the file in which they lie: so that has to save at least half of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arrays import ALIGNMENT_BYTES, Array, Arrays, ArraySpec, Layout
from gossip.updates.dense import PIECE_BYTES
from gossip.updates.entries import STEPS, entries_of
from gossip.updates.rows import VALUES, rows_of

SHARE_MAX = 0.5
"""Of the bytes of whole arrays, up to which rows or entries are the better form."""
SAMPLE_ROWS = 256
"""Of each array so many rows tell at once that nearly all have changed; then no more of them is looked at."""
NUMBER_BYTES = 4
"""Of the number of a row, or of the place of an entry."""
ENTRIES_SAVE = 2.0
"""Entries are taken where they are so many times smaller: with updates of rows they add up as whole arrays only."""
NUMBERS_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True)
class SomeRows:
    """What is added to some rows of an array."""

    rows: Array
    """(k,) ascending, each once."""
    values: Array
    """(k, ...), of the array's dtype."""


@dataclass(frozen=True)
class SomeEntries:
    """What is added to some numbers of an array."""

    places: Array
    """(k,) ascending, each once: in the array as if it had one dimension."""
    numbers: Array
    """(k,), of the array's dtype."""


Change = Array | SomeRows | SomeEntries


def smallest(changes: Mapping[str, Change], model: Layout) -> dict[str, Array] | None:
    """The update that adds `changes`, by array of `model`, as rows or as entries; None if it is better whole.

    Arrays that are not named stay as they are. Of whole ones, which may be of another dtype, the rows are looked for
    that are not zero. The update's arrays may be those of `changes`.
    """
    arrays = {name: change for name, change in changes.items() if isinstance(change, np.ndarray)}
    if _sampled_bytes(arrays) > (SHARE_MAX + 1) / 2 * model.nbytes:
        return None
    room = SHARE_MAX * model.nbytes
    found: dict[str, Change] = {}
    for spec in model.specs:
        change = changes.get(spec.name)
        if isinstance(change, np.ndarray):
            change = _looked_through(change, spec, room)
            if change is None:
                return None
        if change is not None:
            found[spec.name] = change
            room -= min(_row_bytes(change, spec), _entry_bytes(change, spec))
    return _update_of(found, model)


def _looked_through(array: Array, spec: ArraySpec, room: float) -> Change | None:
    """The rows that are not zero, copied; None if they take more than `room`."""
    if not spec.shape or spec.shape[0] > NUMBERS_MAX:
        return array
    rows = rows_where(((start, is_changed(piece)) for start, piece in pieces(array)), spec, room)
    return None if rows is None else SomeRows(rows, array[rows].astype(spec.dtype, copy=False))


def rows_where(found: Iterable[tuple[int, NDArray[np.bool_]]], spec: ArraySpec, room: float) -> NDArray[Any] | None:
    """The rows for which it is said, by pieces (first row, (k,)), that they changed; None if they take more than `room`
    bytes: then no further piece is looked at."""
    rows = [np.zeros(0, np.int64)]
    for start, changed in found:
        rows.append(start + np.flatnonzero(changed))
        room -= len(rows[-1]) * (NUMBER_BYTES + row_nbytes(spec))
        if room < 0:
            return None
    return np.concatenate(rows)


def _update_of(changes: Mapping[str, Change], model: Layout) -> dict[str, Array] | None:
    specs = {spec.name: spec for spec in model.specs}
    by_rows = sum(_row_bytes(change, specs[name]) for name, change in changes.items())
    by_entries = sum(_entry_bytes(change, specs[name]) for name, change in changes.items())
    if min(by_rows, by_entries) > SHARE_MAX * model.nbytes:
        return None
    part = _as_rows if by_rows <= min(ENTRIES_SAVE * by_entries, SHARE_MAX * model.nbytes) else _as_entries
    update: dict[str, Array] = {}
    for name, change in changes.items():
        update.update(part(name, change, specs[name]))
    if update.keys() <= specs.keys():  # whose names do not say that what is not there did not change
        for spec in model.specs:
            if spec.shape and spec.name not in update:
                return update | rows_of(spec.name, np.zeros(0), np.zeros((0, *spec.shape[1:]), spec.dtype))
        return None
    return update


def pieces(array: Array) -> Iterator[tuple[int, Array]]:
    """(number of its first row, rows) of an array with rows, of some hundred KB or one row each."""
    count = len(array)
    step = max(1, PIECE_BYTES // max(1, array.nbytes // max(1, count)))
    for start in range(0, count, step):
        yield start, array[start : start + step]


def is_changed(rows: Array) -> NDArray[np.bool_]:
    """(k,): which of these rows have a number that is not zero."""
    found: NDArray[np.bool_] = np.not_equal(rows, 0)
    return found if found.ndim == 1 else np.asarray(found.reshape(len(found), -1).any(axis=1))


def whole(change: Change, like: Array) -> None:
    """Write a change to `like`, a whole array."""
    if isinstance(change, np.ndarray):
        np.copyto(like, change, casting="same_kind")
        return
    like[...] = 0
    if isinstance(change, SomeRows):
        like[change.rows] = change.values
    else:
        like.reshape(-1)[change.places] = change.numbers


def _sampled_bytes(delta: Arrays) -> float:
    """About so many bytes of whole arrays are in rows that are not zero."""
    total = 0.0
    for array in delta.values():
        if array.ndim and array.size:
            some = array[:: max(1, len(array) // SAMPLE_ROWS)]
            total += array.nbytes * np.count_nonzero(is_changed(some)) / len(some)
    return total


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def row_nbytes(spec: ArraySpec) -> int:
    """Of one row."""
    return math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize


def _rows_in(change: SomeRows | SomeEntries, spec: ArraySpec) -> Array:
    if isinstance(change, SomeRows):
        return change.rows
    return np.unique(change.places // max(1, math.prod(spec.shape[1:])))


def _row_bytes(change: Change, spec: ArraySpec) -> float:
    """What the part of an update takes, by rows or whole, whichever is less."""
    if isinstance(change, np.ndarray) or not spec.shape or spec.shape[0] > NUMBERS_MAX:
        return _padded(spec.nbytes)
    count = len(_rows_in(change, spec))
    return min(_padded(spec.nbytes), _padded(count * NUMBER_BYTES) + _padded(count * row_nbytes(spec)))


def _entry_bytes(change: Change, spec: ArraySpec) -> float:
    """The same by entries."""
    if isinstance(change, np.ndarray) or math.prod(spec.shape) > NUMBERS_MAX:
        return _padded(spec.nbytes)
    count = change.values.size if isinstance(change, SomeRows) else len(change.places)
    each = np.dtype(spec.dtype).itemsize
    return min(_padded(spec.nbytes), _padded(count * NUMBER_BYTES) + _padded(count * each))


def _as_rows(name: str, change: Change, spec: ArraySpec) -> dict[str, Array]:
    if isinstance(change, np.ndarray) or _row_bytes(change, spec) >= _padded(spec.nbytes):
        return _as_whole(name, change, spec)
    if isinstance(change, SomeRows):
        return rows_of(name, change.rows, change.values)
    rows, width = _rows_in(change, spec), math.prod(spec.shape[1:])
    values = np.zeros((len(rows), *spec.shape[1:]), spec.dtype)
    at = np.searchsorted(rows, change.places // width) * width + change.places % width
    values.reshape(-1)[at] = change.numbers
    return rows_of(name, rows, values)


def _as_entries(name: str, change: Change, spec: ArraySpec) -> dict[str, Array]:
    if isinstance(change, np.ndarray) or _entry_bytes(change, spec) >= _padded(spec.nbytes):
        return _as_whole(name, change, spec)
    if isinstance(change, SomeEntries):
        return entries_of(name, change.places, change.numbers)
    width = math.prod(spec.shape[1:])
    places = (np.asarray(change.rows, np.int64)[:, None] * width + np.arange(width)).reshape(-1)
    return entries_of(name, places, change.values.reshape(-1))


def _as_whole(name: str, change: Change, spec: ArraySpec) -> dict[str, Array]:
    array: Array = np.empty(spec.shape, spec.dtype)
    whole(change, array)
    return {name: array}


def named(update: Mapping[str, Any], model: Layout) -> dict[str, Array]:
    """By array of the model: the numbers that an update of `update_of` adds to it."""
    ends = ("", VALUES, STEPS)
    return {spec.name: update[spec.name + end] for spec in model.specs for end in ends if spec.name + end in update}
