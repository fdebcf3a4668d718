"""What a user's update says of one array: all of its numbers, some rows by their numbers, or a sparse matrix of scipy.

    np.zeros((1000, 2))                         whole
    {3: [1.0, 2.0], 7: [0.5, 0.5]}              what is added to rows 3 and 7
    scipy.sparse.csr_array(...)                 any format, of the array's shape; entries that are there twice add up

scipy is not imported here: its arrays are told by what they can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import Array, ArraySpec
from gossip.errors import UsageError
from gossip.updates.sparse import Change, SomeEntries, SomeRows, whole

Dtype = np.dtype[Any]


def is_matrix(value: Any) -> bool:
    """Whether it is a sparse matrix or array of scipy, or does as one."""
    return all(hasattr(value, name) for name in ("tocoo", "nnz", "shape", "dtype"))


def is_sparse(value: Any) -> bool:
    """Whether it is one of the two forms that are not whole."""
    return isinstance(value, Mapping) or is_matrix(value)


def change_of(name: str, value: Any, like: ArraySpec, own: Dtype | None = None) -> Change:
    """What an update says of the array `like`, in its dtype but where it is whole; may alias the update.

    `own`: the dtype of the model's array, where that is another one than it is summed in. Then integers may be any
    difference between two of its numbers.

    Raises:
        UsageError: shape, dtype, row numbers or numbers cannot be, or some are masked.
    """
    if is_matrix(value):  # also one that is a dict of its entries
        return _of_matrix(name, value, like, own)
    if isinstance(value, Mapping):
        return _of_rows(name, value, like, own)
    return _numbers(name, value, like.shape, np.dtype(like.dtype), own)


def dense(name: str, value: Any, like: Array) -> Array:
    """The same as a whole array of the dtype that it came in, for who computes with all of it."""
    if not is_sparse(value):
        plain(f"the update's {name!r}", value)
        return np.asarray(value)
    found = np.empty(like.shape, like.dtype)
    whole(change_of(name, value, ArraySpec(name, like.dtype.str, like.shape)), found)
    return found


def plain(what: str, value: Any) -> None:
    """Raise `UsageError` for an array of which some numbers are masked: they would count as if they were not."""
    if np.ma.is_masked(value):
        raise UsageError(
            f"{what} has masked numbers, expected plain ones: say what is added there, as in array.filled(0)"
        )


def _numbers(name: str, value: Any, shape: tuple[int, ...], dtype: Dtype, own: Dtype | None) -> Array:
    """The numbers, looked at and not yet of that dtype."""
    plain(f"the update's {name!r}", value)
    try:
        source = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"the update's {name!r} is no array: {error}") from None
    if source.shape != shape:
        raise UsageError(f"the update's {name!r}: shape {source.shape}, expected {shape}")
    _check_dtype(name, source, dtype, own)
    return source


def _check_dtype(name: str, source: Array, dtype: Dtype, own: Dtype | None) -> None:
    if not np.can_cast(source.dtype, dtype, "same_kind"):
        raise UsageError(f"the update's {name!r}: dtype {source.dtype}, expected {own or dtype}")
    if source.dtype != (own or dtype) and dtype.kind in "iu" and source.size:
        limits = np.iinfo(own or dtype)
        least, most = int(limits.min), int(limits.max)
        if own is not None:
            least, most = least - most, most - least
        if int(source.min()) < least or int(source.max()) > most:
            raise UsageError(
                f"the update's {name!r}: numbers from {source.min()} to {source.max()}, expected such as fit into "
                f"{own or dtype}"
            )


def _of_rows(name: str, value: Mapping[Any, Any], like: ArraySpec, own: Dtype | None) -> SomeRows:
    if not like.shape:
        raise UsageError(f"the update's {name!r} is a dict of rows, expected a number: the array has no dimensions")
    for row in value:
        if isinstance(row, bool | np.bool_) or not isinstance(row, int | np.integer):
            raise UsageError(f"the update's {name!r} has the key {row!r}, expected the number of a row")
        if not 0 <= row < like.shape[0]:
            raise UsageError(f"the update's {name!r} has row {row}, expected 0 to {like.shape[0] - 1}")
    rows, dtype = sorted(value), np.dtype(like.dtype)
    values = np.empty((len(rows), *like.shape[1:]), dtype)
    for at, row in enumerate(rows):
        if is_matrix(value[row]):
            raise UsageError(
                f"the update's {name!r} has a sparse matrix in the place of row {row}, expected numbers of shape "
                f"{like.shape[1:]}: write {row}: row.toarray()[0], or give one sparse matrix of shape {like.shape} for "
                "all of the array"
            )
        values[at] = _numbers(f"{name}[{row}]", value[row], like.shape[1:], dtype, own)
    return SomeRows(np.array(rows, np.int64), values)


def _of_matrix(name: str, value: Any, like: ArraySpec, own: Dtype | None) -> SomeEntries:
    if tuple(value.shape) != like.shape:
        raise UsageError(f"the update's {name!r}: shape {tuple(value.shape)}, expected {like.shape}")
    found, dtype = value.tocoo(), np.dtype(like.dtype)
    coords = [np.asarray(axis) for axis in (found.coords if hasattr(found, "coords") else (found.row, found.col))]
    for axis, side in zip(coords, like.shape, strict=True):
        if axis.size and not (axis.min() >= 0 and axis.max() < side):
            raise UsageError(
                f"the update's {name!r} has entries at {axis.min()} to {axis.max()}, expected 0 to {side - 1}"
            )
    numbers = np.asarray(found.data)
    _check_dtype(name, numbers, dtype, own)
    places = np.zeros(len(numbers), np.int64)
    for axis, side in zip(coords, like.shape, strict=True):
        places = places * side + axis
    places, inverse = np.unique(places, return_inverse=True)
    # narrow integers would wrap around before anybody saw that their sum does not fit
    wide = np.promote_types(np.promote_types(numbers.dtype, dtype), np.int64 if dtype.kind == "i" else dtype)
    sums = np.zeros(len(places), np.uint64 if dtype.kind == "u" else wide)
    np.add.at(sums, inverse, numbers)
    _check_dtype(name, sums, dtype, own)
    return SomeEntries(places, sums.astype(dtype, copy=False))
