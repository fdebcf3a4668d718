"""Named arrays, and how a set of them lies in one stretch of bytes.

A model, an update and a delta are all `{name: array}`. Underneath they are *packed*: one buffer and a `Layout` that
says where each array begins. Blocks on the wire, segments of the log, the shared replica and the hand-over from a task
are stretches of that buffer, so that each can be read, summed and sent without ever holding a second copy of the whole.

    | w ............. | pad | b ... | pad |      every array begins on a multiple of 64 bytes,
    ^0                      ^offset              so no element straddles a block of a multiple of 64
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
import xxhash
from msgspec import Meta, Struct
from numpy.typing import NDArray

from gossip.errors import MismatchError
from gossip.fields import ARRAYS_MAX, Name, Shape

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Bytes = bytes | bytearray | memoryview

ALIGNMENT_BYTES = 64
"""Where arrays may begin: a cache line, and a multiple of every item size allowed."""

DTYPES = ("<f2", "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "|b1")
"""What may travel: plain numbers in little-endian order, nothing that needs code to be read."""

_PIECE = 1 << 16
"""Numbers of float16 that are squared at a time."""

ITEM_BYTES = {dtype: np.dtype(dtype).itemsize for dtype in DTYPES}
"""Of one number."""

NARROW = {"|i1": "<i8", "|u1": "<i8", "<i2": "<i8", "<u2": "<i8", "<i4": "<i8", "<u4": "<i8"}
"""Integers of fewer bits, and those in which they are summed: they hold differences of either sign, and their sums."""

if TYPE_CHECKING:
    Dtype = str
else:
    Dtype = Literal[DTYPES]


class ArraySpec(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One array's name, dtype (a numpy type string of `DTYPES`) and shape."""

    name: Name
    dtype: Dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, padding not counted."""
        count = 1
        for side in self.shape:
            count *= side
        return count * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name!r}: {np.dtype(self.dtype).name} {self.shape}"


class Layout(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, dict=True):
    """Where each of a set of named arrays lies in one buffer. Equal layouts are interchangeable."""

    specs: Annotated[tuple[ArraySpec, ...], Meta(max_length=ARRAYS_MAX)]

    @classmethod
    def of(cls, arrays: Arrays) -> Layout:
        """The layout of `arrays`, sorted by name so that two processes agree on it."""
        return cls(tuple(ArraySpec(name, arrays[name].dtype.str, arrays[name].shape) for name in sorted(arrays)))

    @property
    def for_sums(self) -> Layout:
        """The same arrays, with integers as wide as their sums may become."""
        specs = (ArraySpec(spec.name, NARROW.get(spec.dtype, spec.dtype), spec.shape) for spec in self.specs)
        return Layout(tuple(specs))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First byte of each array, in the order of `specs`."""
        offsets, end = [], 0
        for spec in self.specs:
            offsets.append(end)
            end += -(-spec.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return tuple(offsets)

    @cached_property
    def _stretches(self) -> tuple[tuple[np.dtype[Any], int, int], ...]:
        """dtype, first byte and end byte of each array, in the order of `specs`."""
        return tuple(
            (np.dtype(spec.dtype), offset, offset + spec.nbytes)
            for spec, offset in zip(self.specs, self.offsets, strict=True)
        )

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the packed buffer, padding included."""
        if not self.specs:
            return 0
        return self.offsets[-1] + -(-self.specs[-1].nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @cached_property
    def digest(self) -> str:
        """A short hash that two peers compare before they exchange anything."""
        return xxhash.xxh3_64_hexdigest(repr(self.specs).encode())

    def views(self, buffer: Any) -> dict[str, Array]:
        """The named arrays as views of `buffer` (nothing is copied), writable where `buffer` is."""
        return {
            spec.name: np.frombuffer(buffer, dtype, (end - offset) // dtype.itemsize, offset).reshape(spec.shape)
            for spec, (dtype, offset, end) in zip(self.specs, self._stretches, strict=True)
        }

    def pieces(self, start: int, stop: int) -> Iterator[tuple[np.dtype[Any], int, int]]:
        """The parts of the arrays within bytes [start, stop): (dtype, first byte, end byte) in the packed buffer."""
        for dtype, offset, end in self._stretches:
            low, high = max(start, offset), min(stop, end)
            if low < high:
                yield dtype, low, high

    def add(self, target: Any, source: Any, start: int, length: int, target_start: int | None = None) -> None:
        """Add the packed bytes of `source`, which hold [start, start + length), to `target` in place, by dtype.

        `target` begins at byte `target_start` of the layout (`start` when it is None; 0 for a whole buffer).
        """
        base = start if target_start is None else target_start
        for dtype, low, high in self.pieces(start, start + length):
            count = (high - low) // dtype.itemsize
            into = np.frombuffer(target, dtype, count, low - base)
            np.add(into, np.frombuffer(source, dtype, count, low - start), out=into)

    def check_fit(self, expected: Layout) -> None:
        """Raise `MismatchError`, naming the first array that differs from `expected`."""
        if self == expected:
            return
        mine = {spec.name: spec for spec in self.specs}
        theirs = {spec.name: spec for spec in expected.specs}
        for name in sorted(theirs.keys() - mine.keys()):
            raise MismatchError(f"{name!r} is missing, expected {theirs[name]}")
        for name in sorted(mine.keys() - theirs.keys()):
            raise MismatchError(f"{name!r} is not one of the model's arrays {sorted(theirs)}")
        for name in sorted(mine):
            check_like(name, mine[name], theirs[name])
        raise MismatchError(f"arrays lie in the order {list(mine)}, expected {list(theirs)}")


class Payload(Protocol):
    """Packed arrays that can be read a stretch at a time, wherever they are kept."""

    @property
    def layout(self) -> Layout: ...

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the packed buffer."""
        ...


class Update(Payload, Protocol):
    """A payload that came from somebody else: it is looked at before it is merged."""

    @property
    def is_finite(self) -> bool:
        """No number is a NaN or an infinity."""
        ...

    @property
    def squares(self) -> float:
        """The sum of the squares of all floats as they travel; not finite where it is too large."""
        ...

    def arrays(self) -> dict[str, Array]:
        """The named arrays, in memory."""
        ...


@dataclass(frozen=True)
class Packed:
    """A layout and the buffer it describes, in memory. A value: nobody writes to the buffer any more."""

    layout: Layout
    buffer: Any

    @classmethod
    def of(cls, arrays: Arrays) -> Packed:
        """Pack `arrays` into a new buffer (one copy)."""
        layout = Layout.of(arrays)
        packed = cls(layout, bytearray(layout.nbytes))
        for name, view in packed.arrays().items():
            view[...] = arrays[name]
        return packed

    def arrays(self) -> dict[str, Array]:
        """The named arrays as views of the buffer."""
        return self.layout.views(self.buffer)

    @cached_property
    def squares(self) -> float:
        """The sum of the squares of all floats; looked at once, whoever asks."""
        return sum(map(squares_of, self.arrays().values()))

    @property
    def is_finite(self) -> bool:
        """No number is a NaN or an infinity."""
        return math.isfinite(self.squares) or all(map(_all_finite, self.arrays().values()))

    def read(self, start: int, stop: int) -> memoryview:
        return memoryview(self.buffer)[start:stop]


def check_like(name: str, got: ArraySpec, expected: ArraySpec) -> None:
    """Raise `MismatchError` unless shape and dtype are the same."""
    if got.shape != expected.shape:
        raise MismatchError(f"{name!r}: shape {got.shape}, expected {expected.shape}")
    if got.dtype != expected.dtype:
        raise MismatchError(f"{name!r}: dtype {np.dtype(got.dtype).name}, expected {np.dtype(expected.dtype).name}")


def squares_of(array: Array) -> float:
    """The sum of the squares of an array of floats; 0 of any other. Not finite where a number is not, or where it is
    too large for the array's dtype; of float16 for float32, since a few hundred of its numbers already are."""
    if array.dtype.kind != "f":
        return 0.0
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if flat.dtype.itemsize > 2:
            return float(np.dot(flat, flat))
        pieces = (flat[start : start + _PIECE].astype(np.float32) for start in range(0, flat.size, _PIECE))
        return sum(float(np.dot(piece, piece)) for piece in pieces)


def _all_finite(array: Array) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def check_finite(arrays: Arrays) -> None:
    """Raise `MismatchError`, naming the first array with a NaN or an infinity and how many it holds.

    The sum of squares is one pass without a temporary; only when it is not finite (which large but finite numbers can
    cause too) are the elements looked at one by one.
    """
    for name, array in arrays.items():
        if math.isfinite(squares_of(array)):
            continue
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise MismatchError(f"{name!r}: {bad} of {array.size} numbers are NaN or infinite, expected none")


def squares_of_piece(layout: Layout, data: Bytes, start: int) -> float:
    """The sum of the squares of all floats in the packed bytes `data`, which begin at byte `start` of `layout`: NaN if
    one of them is a NaN or an infinity, and infinite if it is too large."""
    total = 0.0
    for dtype, low, high in layout.pieces(start, start + len(data)):
        numbers = np.frombuffer(data, dtype, (high - low) // dtype.itemsize, low - start)
        squares = squares_of(numbers)
        if not math.isfinite(squares) and not _all_finite(numbers):
            return math.nan
        total += squares
    return total


def relative_distance(left: Array, right: Array) -> float:
    """Largest absolute difference over the largest absolute value; 0 for equal or empty arrays."""
    if left.size == 0 or np.array_equal(left, right):
        return 0.0
    a, b = left.astype(np.float64), right.astype(np.float64)
    scale = max(float(np.max(np.abs(a))), float(np.max(np.abs(b))))
    return float(np.max(np.abs(a - b))) / scale
