"""The structure of an update that came from outside, checked before anything is made of it.

`p2p.server.any_update` says how lists, dicts and sparse matrices lie in named arrays. Between agents that is trusted.
Here a few bytes could ask for an array of terabytes, or for one that is not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import MismatchError
from p2p.http.messages import Refused
from p2p.server.any_update import STRUCTURE, Node, numbers_dtype

FORM, STRUCTURED = "deepdist", "structured"
"""In the metadata of safetensors, for arrays that are more than a dict of them."""
STRUCTURE_BYTES_MAX = 1 << 18
"""As Python objects it takes some thirty times as much."""
DEPTH_MAX = 32
MATRICES = ("coo", "csr", "csc")
"""Others may take more memory than their entries."""


def check_structure(arrays: Mapping[str, Array], bytes_max: int) -> int:
    """Raise `Refused` unless `inflate` can make something of it; returns how many bytes that takes beside `arrays`,
    `bytes_max` at most."""
    structure = arrays.get(STRUCTURE)
    if structure is None or structure.dtype != np.uint8 or structure.ndim != 1:
        raise _wrong(f"array {STRUCTURE!r} is not there", "one of bytes that says how the others belong together")
    if structure.nbytes > STRUCTURE_BYTES_MAX:
        raise _wrong(f"{structure.nbytes} bytes", f"at most {STRUCTURE_BYTES_MAX}: stack rows in one array")
    try:
        found = json.loads(structure.tobytes(), parse_constant=_none_such)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is no JSON ({type(error).__name__})", "[tree, {}]") from None
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], dict):
        raise _wrong(f"{found!r:.80}", "[tree, {}]")
    check = _Check(arrays, bytes_max)
    check.node(found[0], 0)
    return bytes_max - check.left


class _Check:
    def __init__(self, arrays: Mapping[str, Array], bytes_max: int) -> None:
        self._arrays = arrays
        self.left = bytes_max

    def node(self, node: Any, depth: int) -> tuple[int, ...] | None:
        """Check one and what is below it; returns the shape where it is an array."""
        if depth > DEPTH_MAX:
            raise _wrong(f"more than {DEPTH_MAX} levels", "fewer")
        match node:
            case [0, None | bool() | str() | int()]:
                return None
            case [0, float() as value] if math.isfinite(value):
                return None
            case [1, str() as name]:
                return self._array(name).shape
            case [2 | 3, list() as items]:
                for item in items:
                    self.node(item, depth + 1)
                return None
            case [4, dict() as items]:
                for item in items.values():
                    self.node(item, depth + 1)
                return None
            case [5, list() as shape, str() as rows, str() as values]:
                return self._some_rows(_sides(shape), rows, values)
            case [6, str() as numbers, stacked, parts]:
                self._rows(self._whole(numbers), stacked, parts, depth)
                return None
            case [7, list() as shape, str() as kind, bool(), numbers, list() as places]:
                self._matrix(_sides(shape), kind, numbers, places)
                return None
        return self._other(node, depth)

    def _other(self, node: Any, depth: int) -> tuple[int, ...] | None:
        """Numbers of numpy, complex ones, arrays in another guise, namedtuples and dicts by any keys."""
        match node:
            case [Node.NUMBER, str() as dtype, str() as digits] if len(digits) == 2 * _dtype(dtype).itemsize:
                return None
            case [Node.COMPLEX, float() | int() as real, float() | int() as imaginary]:
                if math.isfinite(real) and math.isfinite(imaginary):
                    return None
            case [Node.AS, str() as dtype, inner]:
                return self._seen_as(_dtype(dtype), inner, depth)
            case [Node.NAMED, str(), str(), list() as fields, list() as items] if len(fields) == len(items):
                if all(isinstance(field, str) for field in fields):
                    self._all(items, depth)
                    return None
            case [Node.PAIRS, str(), list() as keys, list() as items] if len(keys) == len(items):
                self._all([*keys, *items], depth)
                return None
        raise _wrong(f"{node!r:.80}", "a number, text, array, list, tuple, dict, rows or matrix")

    def _all(self, nodes: list[Any], depth: int) -> None:
        for node in nodes:
            self.node(node, depth + 1)

    def _seen_as(self, dtype: np.dtype[Any], inner: Any, depth: int) -> tuple[int, ...]:
        shape = self.node(inner, depth + 1)
        if shape is None or (dtype.kind == "c" and shape[-1:] != (2,)):
            raise _wrong(f"{inner!r:.80} as {dtype}", "an array, of pairs where numbers are complex")
        seen = shape[:-1] if dtype.kind == "c" else shape
        if not dtype.isnative:
            self._take(math.prod(seen) * dtype.itemsize)
        return seen

    def _array(self, name: str) -> Array:
        if name not in self._arrays or name == STRUCTURE:
            raise _wrong(f"it names the array {name!r:.80}, which is not there", "one that was sent")
        return self._arrays[name]

    def _whole(self, name: str) -> Array:
        """An array of whole numbers in a row."""
        array = self._array(name)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise _wrong(f"{name!r:.80} is {array.dtype} of shape {array.shape}", "whole numbers in a row")
        return array

    def _take(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise Refused(413, "an update that is larger than any may be when it is unpacked: send fewer zeros")

    def _some_rows(self, shape: tuple[int, ...], rows_name: str, values_name: str) -> tuple[int, ...]:
        rows, values = self._whole(rows_name), self._array(values_name)
        if not shape or values.shape != (len(rows), *shape[1:]):
            raise _wrong(f"{values_name!r:.80} has shape {values.shape}", f"{len(rows)} rows of an array {shape}")
        self._take(math.prod(shape) * values.itemsize)
        _check_within(rows, shape[0])
        return shape

    def _rows(self, numbers: Array, stacked: Any, parts: Any, depth: int) -> None:
        if parts is None:
            shape = self.node(stacked, depth + 1)
            if shape is None or shape[:1] != (len(numbers),):
                raise _wrong(f"vectors of shape {shape}", f"{len(numbers)} of them, by their rows")
        elif isinstance(parts, list) and len(parts) == len(numbers):
            for part in parts:
                self.node(part, depth + 1)
        else:
            raise _wrong(f"{parts!r:.80}", f"{len(numbers)} vectors")

    def _matrix(self, shape: tuple[int, ...], kind: str, numbers: Any, places: list[Any]) -> None:
        if kind not in MATRICES or not 1 <= len(shape) <= 2 or len(places) != len(shape):
            raise _wrong(f"a matrix {kind!r:.20} of shape {shape}", f"{', '.join(MATRICES)} of one or two sides")
        self._take(8 * (sum(shape) + 1))  # where each row begins
        entries = self.node(numbers, DEPTH_MAX)
        if entries is None or len(entries) != 1:
            raise _wrong(f"entries of shape {entries}", "numbers in a row")
        for side, place in zip(shape, places, strict=True):
            match place:
                case [1, str() as name]:
                    where = self._whole(name)
                case [5, list(), str(), str() as name]:
                    where = self._whole(name)
                    self.node(place, DEPTH_MAX)
                case _:
                    raise _wrong(f"{place!r:.80}", "the places of entries, as an array")
            if (len(where) if place[0] == 1 else _sides(place[1])[0]) != entries[0]:
                raise _wrong(f"{len(where)} places", f"{entries[0]}, one for each entry")
            _check_within(where, side)


def _dtype(text: str) -> np.dtype[Any]:
    try:
        return numbers_dtype(text)
    except (MismatchError, TypeError, ValueError) as error:
        raise _wrong(f"dtype {text!r:.40} ({type(error).__name__})", "one of numbers") from None


def _check_within(numbers: Array, side: int) -> None:
    if numbers.size and not (int(numbers.min()) >= 0 and int(numbers.max()) < side):
        raise _wrong(f"rows or places {numbers.min()} to {numbers.max()}", f"0 to {side - 1}")


def _sides(shape: list[Any]) -> tuple[int, ...]:
    if len(shape) > DEPTH_MAX or not all(type(side) is int and 0 <= side < 1 << 48 for side in shape):
        raise _wrong(f"shape {shape!r:.80}", "whole numbers")
    return tuple(shape)


def _wrong(got: str, expected: str) -> Refused:
    return Refused(400, f"the structure of the update: {got}, expected {expected}")


def _none_such(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
