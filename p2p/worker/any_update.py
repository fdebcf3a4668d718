"""Updates in master mode: any value that `gradient` returned, as named arrays, so that it can travel without pickle.

Numbers, text, arrays, and lists, tuples and dicts of them: arrays travel as arrays, the structure around them as JSON
in one more array.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays, check_finite
from gossip.errors import MismatchError, UsageError

STRUCTURE = "structure"


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
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            if array.dtype.str not in DTYPES:
                raise UsageError(f"{path} has dtype {array.dtype}, expected numbers of at most 64 bits")
            try:
                check_finite({path: array})
            except MismatchError as error:
                raise UsageError(f"{error}; nothing of it was sent. A smaller learning rate may help") from None
            name = f"a{len(arrays)}"
            arrays[name] = array
            return [1, name]
        case list() | tuple():
            items = [_flatten(item, arrays, f"{path}[{index}]") for index, item in enumerate(value)]
            return [2 if isinstance(value, list) else 3, items]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise UsageError(f"{path} has the key {key!r}, expected text")
            return [4, {key: _flatten(item, arrays, f"{path}[{key!r}]") for key, item in value.items()}]
    raise UsageError(
        f"{path} is a {type(value).__name__}: in master mode an update is made of numpy arrays, numbers, text, and "
        "lists, tuples and dicts of them"
    )


def _inflate(node: Any, arrays: Arrays) -> Any:
    kind, value = node
    match kind:
        case 0:
            return value
        case 1:
            return arrays[value]
        case 2:
            return [_inflate(item, arrays) for item in value]
        case 3:
            return tuple(_inflate(item, arrays) for item in value)
        case _:
            return {key: _inflate(item, arrays) for key, item in value.items()}
