"""Updates in master mode: any value that `gradient` returned, as named arrays, so that it can travel without pickle.

Numbers, text, arrays, sparse matrices of scipy, and lists, tuples and dicts of them: arrays travel as arrays, the
structure around them as JSON in one more array. Of an array of which few rows have other bits than zeros these rows
travel, and a dict of rows by number as two arrays.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, ArraySpec, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.updates.sparse import SHARE_MAX, is_changed, pieces, rows_where
from p2p.adapters.sparse import is_matrix, plain

STRUCTURE = "structure"
SCANNED_BYTES_MIN = 1 << 12
"""Of smaller arrays all travels: to say which rows do would take as much."""


def flatten(update: Any, **extra: int) -> dict[str, Array]:
    """Named arrays that `inflate` turns into the update again; `extra` numbers come back beside it."""
    arrays: dict[str, Array] = {}
    structure = json.dumps([_flatten(update, arrays, "update"), extra]).encode()
    arrays[STRUCTURE] = np.frombuffer(structure, np.uint8)
    return arrays


def inflate(arrays: Arrays) -> tuple[Any, dict[str, int]]:
    """The update (its arrays alias `arrays`) and the extra numbers."""
    tree, extra = json.loads(arrays[STRUCTURE].tobytes())
    return _inflate(tree, arrays), extra


def _flatten(value: Any, arrays: dict[str, Array], path: str) -> Any:
    match value:
        case None | bool() | str() | int() | float():
            return [0, value]
        case np.ndarray() | np.generic():
            return _flatten_array(value, arrays, path)
        case list() | tuple():
            items = [_flatten(item, arrays, f"{path}[{index}]") for index, item in enumerate(value)]
            return [2 if isinstance(value, list) else 3, items]
        case dict() if value and all(map(_is_number, value)):
            return [6, *_flatten_rows(value, arrays, path)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise UsageError(f"{path} has the key {key!r}, expected text, or numbers of rows")
            return [4, {key: _flatten(item, arrays, f"{path}[{key!r}]") for key, item in value.items()}]
    if is_matrix(value):
        return _flatten_matrix(value, arrays, path)
    raise UsageError(
        f"{path} is a {type(value).__name__}: in master mode an update is made of numpy arrays, sparse matrices of "
        "scipy, numbers, text, and lists, tuples and dicts of them"
    )


def _flatten_array(value: Array | np.generic, arrays: dict[str, Array], path: str) -> Any:
    plain(path, value)
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.str not in DTYPES:
        raise UsageError(f"{path} has dtype {array.dtype}, expected numbers of at most 64 bits")
    try:
        check_finite({path: array})
    except MismatchError as error:
        raise UsageError(f"{error}; nothing of it was sent. A smaller learning rate may help") from None
    if array.ndim and array.nbytes >= SCANNED_BYTES_MIN:
        bits = array.view(f"u{array.itemsize}")  # a zero with a sign has some
        spec = ArraySpec(path, bits.dtype.str, bits.shape)
        rows = rows_where(((start, is_changed(piece)) for start, piece in pieces(bits)), spec, SHARE_MAX * array.nbytes)
        if rows is not None:
            return [5, list(array.shape), _put(rows, arrays), _put(array[rows], arrays)]
    return [1, _put(array, arrays)]


def _flatten_rows(value: dict[Any, Any], arrays: dict[str, Array], path: str) -> list[Any]:
    """Rows by number: [numbers, one array of all or None, each by itself or None]."""
    numbers = np.array(list(value), np.int64)
    vectors = list(value.values())
    alike = {(part.dtype.str, part.shape) if type(part) is np.ndarray else None for part in vectors}
    if len(alike) == 1 and None not in alike:
        return [_put(numbers, arrays), _flatten(np.stack(vectors), arrays, path), None]
    parts = [_flatten(part, arrays, f"{path}[{row}]") for row, part in value.items()]
    return [_put(numbers, arrays), None, parts]


def _flatten_matrix(value: Any, arrays: dict[str, Array], path: str) -> list[Any]:
    """As its entries, in the order in which they are, and the name of its format."""
    found = value.tocoo()
    coords = found.coords if hasattr(found, "coords") else (found.row, found.col)
    places = [_flatten(np.asarray(axis), arrays, path) for axis in coords]
    is_array = hasattr(found, "coords") and not hasattr(value, "getrow")
    return [7, list(map(int, value.shape)), value.format, is_array, _flatten(found.data, arrays, path), places]


def _is_number(key: Any) -> bool:
    return isinstance(key, int | np.integer) and not isinstance(key, bool) and abs(int(key)) < 1 << 63


def _put(array: Array, arrays: dict[str, Array]) -> str:
    name = f"a{len(arrays)}"
    arrays[name] = array
    return name


def _inflate(node: Any, arrays: Arrays) -> Any:
    kind, value, *more = node
    match kind:
        case 0:
            return value
        case 1:
            return arrays[value]
        case 2:
            return [_inflate(item, arrays) for item in value]
        case 3:
            return tuple(_inflate(item, arrays) for item in value)
        case 4:
            return {key: _inflate(item, arrays) for key, item in value.items()}
        case 5:
            rows, values = (arrays[name] for name in more)
            array = np.zeros(value, values.dtype)
            array[rows] = values
            return array
        case 6:
            stacked, parts = more
            vectors = _inflate(stacked, arrays) if parts is None else [_inflate(part, arrays) for part in parts]
            return dict(zip(arrays[value].tolist(), vectors, strict=True))
        case _:
            kind_of_matrix, is_array, numbers, places = more
            coords = tuple(_inflate(axis, arrays) for axis in places)
            return _matrix((_inflate(numbers, arrays), coords), tuple(value), kind_of_matrix, is_array)


def _matrix(entries: Any, shape: tuple[int, ...], kind: str, is_array: bool) -> Any:
    from scipy import sparse  # who sent one has it

    return (sparse.coo_array if is_array else sparse.coo_matrix)(entries, shape=shape).asformat(kind)
