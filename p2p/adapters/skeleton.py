"""A model without the numbers of its arrays, as bytes: where an array stood, one of zeros stands when they are read.

References that led to one array lead to one array again: a list of layers that are attributes too, and views of an
array. Nothing of the model is touched meanwhile, so it may be read, and frozen objects can be sent.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import parcel


def dumps(value: Any, arrays: Mapping[str, Array]) -> bytes:
    """`value` by cloudpickle, without the numbers of `arrays`, which have names to be told by."""
    return parcel.dumps((list(arrays.values()), value), partial(_Pickler, arrays=arrays))


def loads(skeleton: bytes) -> tuple[list[Array], Any]:
    """(the arrays in the order of `dumps`, the value that has them)."""
    arrays, value = parcel.loads(skeleton)
    return arrays, value


class _Pickler(parcel.Pickler):
    def __init__(self, file: io.BytesIO, arrays: Mapping[str, Array]) -> None:
        super().__init__(file)
        self._arrays = arrays
        self._ours = {id(array) for array in arrays.values()}

    def reducer_override(self, value: Any) -> Any:
        """How to write `value`; pickle itself sees to it that each object is written once."""
        if isinstance(value, np.ndarray):
            if id(value) in self._ours:
                return np.zeros, (value.shape, value.dtype.str)
            for name, array in self._arrays.items():
                if np.may_share_memory(value, array) and np.shares_memory(value, array):
                    return view, (array, *_place(name, value, array))
        return super().reducer_override(value)


def is_within(value: Array, array: Array) -> bool:
    """Whether all of `value`'s memory is that of `array`, and can be found there again."""
    begin, end = _bounds(value)
    low, high = _bounds(array)
    return bool(array.flags.c_contiguous) and low <= begin and end <= high


def view(array: Array, shape: tuple[int, ...], dtype: str, offset: int, strides: tuple[int, ...]) -> Array:
    """A view of `array`; `offset` and `strides` in bytes."""
    return np.ndarray(shape, dtype, array.reshape(-1).view(np.uint8).data, offset, strides)


def _place(name: str, value: Array, array: Array) -> tuple[tuple[int, ...], str, int, tuple[int, ...]]:
    if not is_within(value, array):
        raise UsageError(
            f"an array of shape {value.shape} in the model shares memory with {name!r}, and is no part of it: expected "
            "arrays of their own, or views of a contiguous one that is named: copy one of them, or name the other"
        )
    start = value.__array_interface__["data"][0] - array.__array_interface__["data"][0]
    return value.shape, value.dtype.str, start, value.strides


def _bounds(array: Array) -> tuple[int, int]:
    """The first byte and the one behind the last."""
    start = low = high = int(array.__array_interface__["data"][0])
    for side, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (side - 1) * stride)
        high += max(0, (side - 1) * stride)
    return (start, start) if array.size == 0 else (low, high + array.itemsize)
