"""The parts of a model: dicts, lists, tuples and objects, one in another, down to arrays and numbers.

A *path* leads from the model to a part of it: keys, indices and attributes. As text they stand with dots between them:

    {"layers": [{"w": array}]}      ("layers", 0, "w")      "layers.0.w"
    [array, array]                  (0,)                    "0"
    Line(w=array), a namedtuple     ("w",)                  "w"
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from gossip.errors import UsageError

Path = tuple[Any, ...]

THINGS_MAX = 2000
"""A walk looks at no more beside arrays: it takes some milliseconds, and has long passed what somebody wrote down."""
PARTS_MAX = 256
"""Of a dict or list with more parts, none is looked at: a vocabulary, and no layers."""
SEQUENCES = (list, tuple, deque)
OPAQUE = (np.ndarray, np.generic, str, bytes, int, float, complex, type, ModuleType, FunctionType, MethodType)
OTHERS = frozenset(
    {
        *("gensim", "jax", "jaxlib", "networkx", "numba", "numpy", "p2p", "pandas", "py4j", "pyspark", "scipy"),
        *("sklearn", "tensorflow", "torch", "xgboost"),
    }
)
"""Packages whose objects have arrays of their own, which they alone know how to change."""


def parts(value: Any) -> Collection[tuple[Any, Any]]:
    """The parts of a dict, list, tuple or object, each behind its key, index or attribute (of a namedtuple its field);
    nothing else has any."""
    if value is None or isinstance(value, OPAQUE):
        return ()
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, SEQUENCES):
        return list(zip(fields_of(value), value, strict=True) if fields_of(value) else enumerate(value))
    attributes = dict(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
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
            count += bool(path) and not isinstance(part, np.ndarray)
            if count > THINGS_MAX:
                return
            yield (*path, key), value, part
            if isinstance(part, OPAQUE) or id(part) in seen or (is_others(part) and not within_others):
                continue
            seen.add(id(part))
            waiting.append(((*path, key), part))


def text(path: Path) -> str:
    """The name of what is at `path`."""
    return ".".join(map(str, path))


def path_of(model: Any, name: Any) -> Path:
    """Where `name` leads to: to an array if it can, else to something else or nothing."""
    if not isinstance(name, str):
        return (name,)
    first: Path | None = None
    for path, part in _paths(model, name):
        if isinstance(part, np.ndarray):
            return path
        first = path if first is None else first
    return tuple(name.split(".")) if first is None else first


def _paths(value: Any, name: str) -> Iterator[tuple[Path, Any]]:
    """All that `name` may mean, as keys may have dots in them, and (path, part) of each."""
    heads = [name[:at] for at, character in enumerate(name) if character == "."]
    for head in [name, *heads] if isinstance(value, Mapping) else [heads[0] if heads else name]:
        for key in _keys(value, head):
            part = _part(value, key)
            if head == name:
                yield (key,), part
            else:
                for path, inner in _paths(part, name[len(head) + 1 :]):
                    yield (key, *path), inner


def _keys(value: Any, head: str) -> Iterator[Any]:
    """The keys, index or attribute that `head` stands for."""
    if isinstance(value, Mapping):
        if head in value:
            yield head
        elif head.isdecimal() and int(head) in value:
            yield int(head)
        else:
            yield from (key for key in value if not isinstance(key, str) and str(key) == head)
    elif isinstance(value, SEQUENCES) and head.isdecimal():
        if int(head) < len(value):
            yield int(head)
    elif not isinstance(value, np.ndarray) and hasattr(value, head):
        yield head


def by_name(model: Any, update: Any) -> dict[str, Any] | None:
    """An update's parts by the names of the model's; None if it is no dict, nor a list or tuple like the model's own.
    Where a list or tuple has None, nothing is said of that part.

    Raises:
        UsageError: it is one of another length, or two of its keys are the same name.
    """
    if isinstance(update, Mapping):
        pairs = [(text((key,)), part) for key, part in update.items()]
    elif isinstance(update, SEQUENCES) and isinstance(model, SEQUENCES):
        if len(update) != len(model):
            raise UsageError(f"an update of {len(update)} parts, expected {len(model)}, as the model has")
        both = zip(parts(model), update, strict=True)
        pairs = [(text((key,)), part) for (key, _), part in both if part is not None]
    else:
        return None
    named = dict(pairs)
    if len(named) != len(pairs):
        raise UsageError(
            f"two keys of an update are the same name, expected names that differ: {sorted(map(str, update))}"
        )
    return named


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
    if isinstance(owner, tuple):
        raise TypeError(f"a {type(owner).__name__} keeps what it has")
    if isinstance(owner, Mapping | list | deque):
        owner[last] = value  # type: ignore[index]
    else:
        setattr(owner, last, value)


def _part(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if isinstance(value, SEQUENCES) and isinstance(key, int):
        return value[key] if key < len(value) else None
    return getattr(value, key, None) if isinstance(key, str) else None
