"""A user's model without its arrays as JSON: dicts, lists, tuples, numbers and texts, and objects of such attributes.

    {"dict": [[key, value], ...]}    {"list": [...]}    {"tuple": [...]}    {"array": name}
    {"object": "module:class", "attributes": [[name, value], ...]}          numbers, texts, None as they are

An object is only made anew of a class that the user hands over: what is read here imports and calls nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import DTYPES, Array
from gossip.errors import UsageError

DEPTH_MAX = 32
UNTRAINED = "untrained "
"""Arrays of the model that are not trained have this before their number."""
SCALARS = (bool, int, float, str, type(None))


class NotPlainError(Exception):
    """Something in the model is none of these."""


class Plain:
    """A model being taken apart: `value` is JSON, and `arrays` are those beside the trained ones."""

    def __init__(self, model: Any, trained: Mapping[str, Array]) -> None:
        """`NotPlainError` if that cannot be."""
        self.arrays: dict[str, Array] = {}
        self._names = {id(array): name for name, array in trained.items()}
        self._trained = trained
        self._seen: set[int] = set()
        """Containers; what is there twice would come back as two."""
        self.value = self._of(model, 0)

    def _of(self, value: Any, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise NotPlainError("nested too deeply, or in itself")
        if type(value) in SCALARS:
            if isinstance(value, float) and not math.isfinite(value):
                raise NotPlainError(f"{value} is no number in JSON")
            return value
        if type(value) is np.ndarray:
            return {"array": self._name(value)}
        if id(value) in self._seen:
            raise NotPlainError("something is there twice, or in itself")
        self._seen.add(id(value))
        if type(value) is dict:
            return {"dict": [[self._key(key), self._of(each, depth + 1)] for key, each in value.items()]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self._of(each, depth + 1) for each in value]}
        if not _is_plain(type(value)):
            raise NotPlainError(f"a {type(value).__name__}")
        found = [[name, self._of(each, depth + 1)] for name, each in vars(value).items()]
        return {"object": f"{type(value).__module__}:{type(value).__qualname__}", "attributes": found}

    def _key(self, key: Any) -> Any:
        if type(key) not in (str, int, bool, type(None)):
            raise NotPlainError(f"a key of type {type(key).__name__}")
        return key

    def _name(self, array: Array) -> str:
        name = self._names.get(id(array))
        if name is None:
            if array.dtype.str not in DTYPES:
                raise NotPlainError(f"an array of dtype {array.dtype}")
            if any(np.may_share_memory(array, other) for other in (*self._trained.values(), *self.arrays.values())):
                raise NotPlainError("a view of another array")
            name = self._names[id(array)] = f"{UNTRAINED}{len(self.arrays)}"
            self.arrays[name] = array
        return name


def _is_plain(kind: type) -> bool:
    """Its objects are their attributes, and nothing else."""
    plain = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
    return (
        all(getattr(kind, name) is getattr(object, name) for name in plain)
        and not hasattr(kind, "__setstate__")
        and not any("__slots__" in vars(each) for each in kind.__mro__)
    )


def class_of(plain: Any) -> str | None:
    """What an object is of, "module:class"; None if the model is no object."""
    return str(plain["object"]) if isinstance(plain, dict) and "object" in plain else None


def built(plain: Any, arrays: Mapping[str, Array], kind: type | None = None) -> Any:
    """The model again; `kind` is the class of an object, whose `__init__` is not called.

    Raises:
        UsageError: it is no model, or has objects of which no class was given.
    """
    try:
        if kind is None:
            return _built(plain, arrays)
        model: Any = object.__new__(kind)
        vars(model).update({str(name): _built(each, arrays) for name, each in plain["attributes"]})
        return model
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the checkpoint's model is malformed ({type(error).__name__}: {error})") from None


def _built(plain: Any, arrays: Mapping[str, Array]) -> Any:
    if type(plain) in SCALARS:
        return plain
    match plain:
        case {"array": str(name), **rest} if not rest:
            return arrays[name]
        case {"dict": list(pairs), **rest} if not rest:
            return {key: _built(each, arrays) for key, each in pairs}
        case {"list": list(each), **rest} if not rest:
            return [_built(one, arrays) for one in each]
        case {"tuple": list(each), **rest} if not rest:
            return tuple(_built(one, arrays) for one in each)
        case {"object": str(name)}:
            raise UsageError(f"the checkpoint's model holds a {name}: give a model like it, resume(path, model=...)")
    raise ValueError(f"{plain!r:.80} is no part of a model")
