"""Named arrays as bytes of safetensors, and back: numpy and the standard library only, for who has nothing else.

    8 bytes: length of the head | head, JSON: {name: {dtype, shape, data_offsets}} | numbers, one array after the other

Nothing that is read is executed, and arrays alias the bytes that they were read from. The format is that of
https://github.com/huggingface/safetensors ("Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD = struct.Struct("<Q")
HEAD_BYTES_MAX = 1 << 20
"""Of its JSON: a hundred bytes an array, so some ten thousand arrays."""
ALIGNMENT_BYTES = 8
SIDES_MAX = 32
"""Dimensions of an array; numpy 1 has no more."""
METADATA = "__metadata__"
DTYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "|i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "|u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "|b1",
}
"""As safetensors has them, and numpy."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Array = NDArray[Any]


class TensorsError(ValueError):
    """Bytes that are no safetensors, or arrays that cannot be such; the text says what is the matter."""


def head(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> tuple[bytes, dict[str, int], int]:
    """(the bytes before the numbers of such arrays, where each array begins behind them, bytes of all numbers)."""
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    # the widest numbers first, so that each array is aligned
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = arrays[name]
        if array.dtype.str not in NAMES or name == METADATA:
            raise TensorsError(
                f"{name!r} has dtype {array.dtype}, expected numbers of at most 64 bits, by another name"
            )
        begins[name], end = end, end + array.nbytes
        offsets = [begins[name], end]
        entries[name] = {"dtype": NAMES[array.dtype.str], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    if len(text) > HEAD_BYTES_MAX:
        raise TensorsError(
            f"the head of {len(arrays)} arrays takes {len(text)} bytes, expected {HEAD_BYTES_MAX} at most"
        )
    return HEAD.pack(len(text)) + text, begins, end


def blank(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> tuple[bytearray, dict[str, Array]]:
    """(bytes with the head of such arrays and zeros for numbers, the arrays in them as views to be written)."""
    start, begins, end = head(arrays, metadata)
    buffer = bytearray(len(start) + end)
    buffer[: len(start)] = start
    return buffer, {
        name: np.ndarray(arrays[name].shape, arrays[name].dtype, buffer, len(start) + begin)
        if arrays[name].nbytes
        else np.zeros(arrays[name].shape, arrays[name].dtype)
        for name, begin in begins.items()
    }


def packed(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytearray:
    """`arrays` as safetensors (one copy)."""
    buffer, views = blank(arrays, metadata)
    for name, view in views.items():
        view[...] = arrays[name]
    return buffer


def parsed(data: bytes | bytearray | memoryview) -> tuple[dict[str, Array], dict[str, str]]:
    """(named arrays as views of `data`, its metadata).

    Raises:
        TensorsError: it is not exactly what the format says: numbers are left out, or told twice, or overlap.
    """
    head, start = _head(data)
    metadata = head.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorsError(f"{METADATA} is no object of texts")
    places = sorted(((*_place(name, entry), name) for name, entry in head.items()), key=lambda place: place[2:])
    end, room = 0, len(data) - start
    arrays: dict[str, Array] = {}
    for dtype, shape, begin, stop, name in places:
        if begin != end:
            raise TensorsError(f"{name!r:.80} begins at byte {begin} of the numbers, expected {end}: they lie in a row")
        if stop > room:
            raise TensorsError(f"{name!r:.80} ends at byte {stop} of the numbers, of which there are {room}")
        end = stop
        arrays[name] = np.zeros(shape, dtype) if begin == stop else np.ndarray(shape, dtype, data, start + begin)
        if dtype == np.bool_ and (arrays[name].view(np.uint8) > 1).any():
            raise TensorsError(f"{name!r:.80} has truth values other than 0 and 1")
    if end != room:
        raise TensorsError(f"{room - end} bytes follow the last array, expected none")
    return {name: arrays[name] for name in head}, metadata


def _head(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], int]:
    """(the head, the first byte of the numbers)."""
    if len(data) < HEAD.size:
        raise TensorsError(f"{len(data)} bytes, expected at least the {HEAD.size} that say how long the head is")
    (length,) = HEAD.unpack_from(data)
    if length > min(HEAD_BYTES_MAX, len(data) - HEAD.size):
        raise TensorsError(
            f"a head of {length} bytes is announced, expected at most {HEAD_BYTES_MAX}, and not more than the "
            f"{len(data) - HEAD.size} that follow"
        )
    start = HEAD.size + length
    try:
        head = json.loads(bytes(data[HEAD.size : start]), object_pairs_hook=_once, parse_constant=_none_such)
    except (ValueError, RecursionError) as error:
        raise TensorsError(f"the head is no JSON: {type(error).__name__}: {error!s:.200}") from None
    if not isinstance(head, dict):
        raise TensorsError(f"the head is a {type(head).__name__}, expected an object")
    return head, start


def _place(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """(dtype, shape, first byte, the one behind the last)."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorsError(f"{name!r:.80} is said to be {entry!r:.80}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorsError(f"{name!r:.80} has dtype {dtype!r:.40}, expected one of {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > SIDES_MAX:
        raise TensorsError(f"{name!r:.80} has shape {shape!r:.80}, expected at most {SIDES_MAX} whole numbers")
    if not _counts(offsets) or len(offsets) != 2:
        raise TensorsError(f"{name!r:.80} has data_offsets {offsets!r:.80}, expected two whole numbers")
    kind = np.dtype(DTYPES[dtype])
    if offsets[1] - offsets[0] != math.prod(shape) * kind.itemsize:
        raise TensorsError(
            f"{name!r:.80} has {offsets[1] - offsets[0]} bytes, expected {math.prod(shape) * kind.itemsize} for "
            f"{dtype} {tuple(shape)}"
        )
    return kind, tuple(shape), offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 62 for each in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _none_such(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
