"""Updates in master mode: what `gradient` returned, as named arrays, so that it can travel without pickle.

    arrays of numpy            bools, integers, floats, complex numbers, of either byte order and any shape
    numbers of numpy           with their dtype
    sparse matrices of scipy   in each of its formats
    None, bool, int, float, complex, text
    lists, tuples, namedtuples and dicts of all these, also OrderedDict and Counter
    keys of dicts              numbers, texts, None, and tuples of them

Arrays travel as arrays, the structure around them as JSON in one more array. Of an array of which few rows have other
bits than zeros these rows travel, and a dict of rows by number as two arrays. Everything else is refused by its place:
also subclasses, which would come out as something less than they were.

A namedtuple comes out as one of the same class, where the driver program has imported that under the same module and
name; nothing is imported or called for it. Else its class is a new one, of the same name and fields. A defaultdict
comes out as a dict.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from keyword import iskeyword
from types import ModuleType
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, ArraySpec, check_finite
from gossip.errors import MismatchError, NotFiniteError, UsageError
from gossip.updates.sparse import SHARE_MAX, is_changed, pieces, rows_where
from p2p.adapters import PLAIN, matrices
from p2p.adapters.nesting import fields_of
from p2p.adapters.sparse import is_matrix

STRUCTURE = "structure"


class Node(IntEnum):
    """The first item of each node of the structure, and what follows it there."""

    PLAIN = 0
    """A number, a text or None."""
    ARRAY = 1
    """The name of an array."""
    LIST = 2
    """Nodes."""
    TUPLE = 3
    """Nodes."""
    DICT = 4
    """Nodes by keys that are text."""
    ROWS = 5
    """A shape, and the names of two arrays: numbers of rows, and these rows. All others are zeros."""
    BY_NUMBER = 6
    """The name of an array of keys; a node whose rows are the values, or None and a node for each."""
    MATRIX = 7
    """A shape, a format, whether it is an array, a node of numbers, and a node of places for each axis."""
    PARTS = 8
    """A shape, a format, whether it is an array, and a node for each part of the format."""
    NUMBER = 9
    """A dtype, and the bytes in hexadecimal."""
    COMPLEX = 10
    """Real and imaginary part."""
    AS = 11
    """A dtype, and the node of an array to be seen as that: complex numbers are pairs in its last axis."""
    NAMED = 12
    """The module of a namedtuple, the name there, its fields, and a node for each."""
    PAIRS = 13
    """The class of a dict, nodes of keys, and nodes of values."""


SCANNED_BYTES_MIN = 1 << 12
"""Of smaller arrays all travels: to say which rows do would take as much."""
NESTED_MAX = 64
"""Far deeper than anybody writes; JSON is read by recursion."""
COMPLEX = ("<c8", "<c16")
SCALARS = (bool, int, float, str, type(None))
DICTS = {"OrderedDict": OrderedDict, "Counter": Counter}
"""Beside dict itself."""
CLASSES_MAX = 256
"""Of namedtuples that are kept; one more is made anew each time."""
KINDS = (
    "in master mode an update is made of numpy arrays, sparse matrices of scipy, numbers, text, and lists, tuples, "
    "namedtuples and dicts of them"
)


def flatten(update: Any, **extra: int) -> dict[str, Array]:
    """Named arrays that `inflate` turns into the update again; `extra` numbers come back beside it.

    Raises:
        UsageError: a part of it cannot travel; its place is named.
    """
    arrays: dict[str, Array] = {}
    structure = json.dumps([_flatten(update, arrays, _Place("update")), extra]).encode()
    arrays[STRUCTURE] = np.frombuffer(structure, np.uint8)
    return arrays


def inflate(arrays: Arrays) -> tuple[Any, dict[str, int]]:
    """The update (its arrays alias `arrays`) and the extra numbers."""
    tree, extra = json.loads(arrays[STRUCTURE].tobytes())
    return _inflate(tree, arrays), extra


@dataclass(frozen=True)
class _Place:
    """Of a part, within the update."""

    text: str
    depth: int = 0

    def __str__(self) -> str:
        return self.text

    def at(self, where: str) -> _Place:
        if self.depth == NESTED_MAX:
            raise UsageError(f"{self.text:.60} is nested deeper than {NESTED_MAX} levels, or in itself: expected less")
        return _Place(self.text + where, self.depth + 1)


def _flatten(value: Any, arrays: dict[str, Array], place: _Place) -> Any:
    kind = type(value)
    if kind in SCALARS:
        return [Node.PLAIN, value]
    if kind is complex:
        return [Node.COMPLEX, value.real, value.imag]
    if isinstance(value, np.generic):
        _check_dtype(value.dtype, place)
        return [Node.NUMBER, value.dtype.str, value.tobytes().hex()]
    if isinstance(value, np.ndarray):
        return _flatten_array(value, arrays, place)
    if is_matrix(value):  # also one that is a dict of its entries
        return _flatten_matrix(value, arrays, place)
    if kind in (list, tuple):
        return [Node.LIST if kind is list else Node.TUPLE, _flatten_items(value, arrays, place)]
    if isinstance(value, tuple) and (fields := fields_of(value)):
        return _flatten_named(value, fields, arrays, place)
    if kind in (dict, defaultdict) and value and all(map(_is_number, value)):
        return [Node.BY_NUMBER, *_flatten_rows(value, arrays, place)]
    if kind in (dict, defaultdict) and all(type(key) is str for key in value):
        return [Node.DICT, {key: _flatten(item, arrays, place.at(f"[{key!r}]")) for key, item in value.items()}]
    if kind in (dict, defaultdict, *DICTS.values()):
        keys = [_flatten(key, arrays, place.at(f" (its key {key!r:.60})")) for key in value]
        return [Node.PAIRS, kind.__name__, keys, [_flatten(i, arrays, place.at(f"[{k!r}]")) for k, i in value.items()]]
    raise UsageError(f"{place} is a {kind.__name__}: {KINDS}{_hint(value)}")


def _hint(value: Any) -> str:
    for kind in (dict, list, tuple, str, bool, int, float):
        if isinstance(value, kind):
            return f", and of no subclass of {kind.__name__}: send {kind.__name__}(...)"
    return ": send numpy.asarray(...)" if hasattr(value, "__array__") else ""


def _flatten_items(items: Sequence[Any], arrays: dict[str, Array], place: _Place) -> list[Any]:
    return [_flatten(item, arrays, place.at(f"[{index}]")) for index, item in enumerate(items)]


def _flatten_named(value: Any, fields: tuple[str, ...], arrays: dict[str, Array], place: _Place) -> Any:
    if more := sorted(getattr(value, "__dict__", ())):
        raise UsageError(f"{place} is a {type(value).__name__} with {', '.join(more)} beside its fields, expected none")
    items = [_flatten(item, arrays, place.at(f".{field}")) for field, item in zip(fields, value, strict=True)]
    return [Node.NAMED, type(value).__module__, type(value).__qualname__, fields, items]


def _flatten_array(value: Array, arrays: dict[str, Array], place: _Place) -> Any:
    if type(value) not in PLAIN:
        masked = isinstance(value, np.ma.MaskedArray)
        hint = "say what is added where it is masked, as in array.filled(0)" if masked else "numpy.asarray(...)"
        raise UsageError(f"{place} is a {type(value).__name__}, expected a plain numpy array: {hint}")
    _check_dtype(value.dtype, place)
    little = value.dtype.newbyteorder("<")
    array: Array = np.ascontiguousarray(value, little).reshape(np.shape(value))
    if little.str in COMPLEX:
        array = array.reshape(*array.shape, 1).view(f"<f{little.itemsize // 2}")
    try:
        check_finite({str(place): array})
    except MismatchError as error:
        raise NotFiniteError(f"{error}; nothing of it was sent. A smaller learning rate may help") from None
    found = _flatten_numbers(array, arrays, place)
    return found if value.dtype.str in DTYPES else [Node.AS, value.dtype.str, found]


def _flatten_numbers(array: Array, arrays: dict[str, Array], place: _Place) -> Any:
    """A contiguous array that can travel as it is, or the rows of it that are not zeros."""
    if array.ndim and array.nbytes >= SCANNED_BYTES_MIN:
        bits = array.view(f"u{array.itemsize}")  # a zero with a sign has some
        spec = ArraySpec(str(place), bits.dtype.str, bits.shape)
        rows = rows_where(((start, is_changed(piece)) for start, piece in pieces(bits)), spec, SHARE_MAX * array.nbytes)
        if rows is not None:
            return [Node.ROWS, list(array.shape), _put(rows, arrays), _put(array[rows], arrays)]
    return [Node.ARRAY, _put(array, arrays)]


def _is_of_numbers(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("<").str in (*DTYPES, *COMPLEX)


def _check_dtype(dtype: np.dtype[Any], place: _Place) -> None:
    if _is_of_numbers(dtype):
        return
    hint = ""
    if dtype.names:
        hint = ": send its fields, as in {name: array[name]}"
    elif dtype.hasobject:
        hint = ": send an array of one dtype, or a list of arrays"
    expected = "expected bools, or integers and floats of at most 64 bits, or complex numbers of them"
    raise UsageError(f"{place} has dtype {dtype}, {expected}{hint}")


def _flatten_rows(value: dict[Any, Any], arrays: dict[str, Array], place: _Place) -> list[Any]:
    """Rows by number: [numbers, one array of all or None, each by itself or None]."""
    numbers = np.array(list(value), np.int64)
    vectors = list(value.values())
    alike = {(part.dtype.str, part.shape) if type(part) is np.ndarray else None for part in vectors}
    if len(alike) == 1 and None not in alike:
        return [_put(numbers, arrays), _flatten(np.stack(vectors), arrays, place), None]
    parts = [_flatten(part, arrays, place.at(f"[{row}]")) for row, part in value.items()]
    return [_put(numbers, arrays), None, parts]


def _flatten_matrix(value: Any, arrays: dict[str, Array], place: _Place) -> list[Any]:
    form = matrices.format_of(value)
    if form is None:
        raise UsageError(f"{place} is a {type(value).__name__}, expected a matrix or array of scipy.sparse itself")
    parts = [_flatten_array(part, arrays, place) for part in matrices.apart(value)]
    about = [[int(side) for side in value.shape], form, matrices.is_array(value)]
    return [Node.PARTS, *about, parts] if form in matrices.BY_PARTS else [Node.MATRIX, *about, parts[0], parts[1:]]


def _is_number(key: Any) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool) and abs(int(key)) < 1 << 63


def _put(array: Array, arrays: dict[str, Array]) -> str:
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


# ------------------------------------------------------------------------------------------------------- and back again


def _inflate(node: Any, arrays: Arrays) -> Any:
    match node:
        case [Node.PLAIN, value]:
            return value
        case [Node.COMPLEX, real, imaginary]:
            return complex(real, imaginary)
        case [Node.NUMBER, dtype, digits]:
            return np.frombuffer(bytes.fromhex(digits), numbers_dtype(dtype))[0]
        case [Node.ARRAY | Node.ROWS | Node.AS, *_]:
            return _inflate_array(node, arrays)
        case [Node.LIST, items]:
            return [_inflate(item, arrays) for item in items]
        case [Node.TUPLE, items]:
            return tuple(_inflate(item, arrays) for item in items)
        case [Node.NAMED, module, name, fields, items]:
            kind = _named(module, name, tuple(fields))
            return tuple.__new__(kind, [_inflate(item, arrays) for item in items])
        case [Node.DICT, items]:
            return {key: _inflate(item, arrays) for key, item in items.items()}
        case [Node.PAIRS, kind, keys, items]:
            pairs = zip(keys, items, strict=True)
            return DICTS.get(kind, dict)({_inflate(key, arrays): _inflate(item, arrays) for key, item in pairs})
        case [Node.BY_NUMBER, numbers, stacked, parts]:
            vectors = _inflate(stacked, arrays) if parts is None else [_inflate(part, arrays) for part in parts]
            return dict(zip(arrays[numbers].tolist(), vectors, strict=True))
        case [Node.MATRIX, shape, form, is_array, numbers, places]:
            return matrices.together(form, is_array, shape, [_inflate(part, arrays) for part in (numbers, *places)])
        case [Node.PARTS, shape, form, is_array, parts]:
            return matrices.together(form, is_array, shape, [_inflate(part, arrays) for part in parts])
    raise MismatchError(f"{node!r:.80} is no part of an update")


def _inflate_array(node: Any, arrays: Arrays) -> Array:
    match node:
        case [Node.ARRAY, name]:
            return arrays[name]
        case [Node.ROWS, shape, rows, values]:
            array = np.zeros(shape, arrays[values].dtype)
            array[arrays[rows]] = arrays[values]
            return array
    _, dtype, inner = node
    found, kind = _inflate_array(inner, arrays), numbers_dtype(dtype)
    if kind.kind == "c":
        found = found.view(kind.newbyteorder("<")).reshape(found.shape[:-1])
    return found.astype(kind, copy=False)


def numbers_dtype(text: str) -> np.dtype[Any]:
    """One of numbers, by its name; `MismatchError` for others."""
    dtype = np.dtype(text)
    if not _is_of_numbers(dtype):
        raise MismatchError(f"an update's array of dtype {dtype}, expected numbers")
    return dtype


def _named(module: str, name: str, fields: tuple[str, ...]) -> type:
    """The class of a namedtuple: that which this program has, or else one like it."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
    if isinstance(found, type) and issubclass(found, tuple) and getattr(found, "_fields", None) == fields:
        return found
    return _like(name.rpartition(".")[2], fields)


@lru_cache(CLASSES_MAX)
def _like(name: str, fields: tuple[str, ...]) -> type:
    usable = name.isidentifier() and not iskeyword(name)
    return namedtuple(name if usable else "Update", fields, rename=True)
