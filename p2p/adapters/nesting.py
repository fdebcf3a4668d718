"""The parts of a model: dicts, lists, tuples and objects, one in another, down to arrays and numbers.

A *path* leads from the model to a part of it: keys, indices and attributes. As text they stand with dots between them:

    {"layers": [{"w": array}]}      ("layers", 0, "w")      "layers.0.w"
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

Path = tuple[Any, ...]

THINGS_MAX = 2000
"""A walk looks at no more: it takes some milliseconds, and has long passed all arrays that somebody wrote down."""
PARTS_MAX = 256
"""Of a dict or list with more parts, none is looked at: a vocabulary, and no layers."""
OPAQUE = (np.ndarray, np.generic, str, bytes, int, float, complex, type, ModuleType, FunctionType, MethodType)
OTHERS = frozenset(
    {
        *("gensim", "jax", "jaxlib", "networkx", "numba", "numpy", "p2p", "pandas", "py4j", "pyspark", "scipy"),
        *("sklearn", "tensorflow", "torch", "xgboost"),
    }
)
"""Packages whose objects have arrays of their own, which they alone know how to change."""


def parts(value: Any) -> Collection[tuple[Any, Any]]:
    """The parts of a dict, list, tuple or object, each behind its key, index or attribute; nothing else has any."""
    if value is None or isinstance(value, OPAQUE):
        return ()
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | deque):
        return list(enumerate(value))
    attributes = dict(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if not name.startswith("__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    return attributes.items()


def fields_of(value: Any) -> tuple[str, ...]:
    """The fields of a namedtuple; of anything else none."""
    found = getattr(type(value), "_fields", None) if isinstance(value, tuple) else None
    return found if isinstance(found, tuple) and len(found) == len(value) else ()


def is_others(value: Any) -> bool:
    """Whether it is an object of a library, which keeps its own arrays."""
    return any(kind.__module__.partition(".")[0] in OTHERS for kind in type(value).__mro__)


def walk(model: Any, within_others: bool = True) -> Iterator[tuple[Path, Any, Any]]:
    """(path, owner, part) of the model's parts, and of theirs, from the outside in, each owner once.

    Within the model, parts of long dicts and lists are left out, and what is more than `THINGS_MAX`.
    """
    seen = {id(model)}
    waiting: deque[tuple[Path, Any]] = deque([((), model)])
    count = 0
    while waiting:
        path, value = waiting.popleft()
        inside = parts(value)
        if len(inside) > PARTS_MAX and path:
            continue
        for key, part in inside:
            count += bool(path)
            if count > THINGS_MAX:
                return
            yield (*path, key), value, part
            if isinstance(part, OPAQUE) or id(part) in seen or (is_others(part) and not within_others):
                continue
            seen.add(id(part))
            waiting.append(((*path, key), part))


def text(path: Path) -> Any:
    """The name of what is at `path`; for the one key of a dict that is no text, the key."""
    return path[0] if len(path) == 1 else ".".join(map(str, path))


def path_of(model: Any, name: Any) -> Path:
    """Where `name` leads to, whether there is something or not."""
    if not isinstance(name, str):
        return (name,)
    path: Path = ()
    value, rest = model, name
    while rest:
        if isinstance(value, Mapping) and rest in value:
            return (*path, rest)
        key: Any
        key, _, rest = rest.partition(".")
        numbered = isinstance(value, list | tuple | deque) or (isinstance(value, Mapping) and key not in value)
        if numbered and key.isdecimal():
            key = int(key)
        path, value = (*path, key), _part(value, key)
    return path


def find(model: Any, path: Path) -> Any:
    """What is at `path`; None if there is nothing."""
    value = model
    for key in path:
        value = _part(value, key)
    return value


def put(model: Any, path: Path, value: Any) -> None:
    """Have `value` at `path`. Raises what its owner raises if that cannot be changed."""
    *outer, last = path
    owner = find(model, tuple(outer))
    if isinstance(owner, Mapping | list | tuple | deque):
        owner[last] = value  # type: ignore[index]
    else:
        setattr(owner, last, value)


def _part(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, list | tuple | deque):
        return value[key] if isinstance(key, int) and key < len(value) else None
    return getattr(value, key, None) if isinstance(key, str) else None
