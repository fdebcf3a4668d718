"""Adapters: where the arrays of a class of models are, and what has to be done around their training.

    DeepDist(model)                      the adapter of `TABLE` for the model's class, else `ByPath`
    DeepDist(model, adapter=MyAdapter()) any other; it travels to the workers, so it has to be importable there, or a
                                         class of the user's own program

An adapter belongs to no model: each of its methods is given the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from gossip.arrays import DTYPES, Array, Arrays
from gossip.errors import UsageError
from p2p.adapters import nesting, skeleton

PLAIN = (np.ndarray, np.memmap)
"""Subclasses, such as numpy.matrix, calculate in ways of their own, and a worker would have a plain array."""

ARRAYS_MAX = 2000
"""Each is compared with each, whether they share memory: a second or two."""

TABLE = {
    ("gensim", "Word2Vec"): "p2p.models.word2vec.adapter:ADAPTER",
    ("sklearn", "BaseEstimator"): "p2p.models.sklearn.adapter:ADAPTER",
    ("torch", "Module"): "p2p.models.torch.adapter:ADAPTER",
}
"""(package, class) to where its adapter is; it is imported when there is such a model, and its package never."""


class Adapter(Protocol):
    """What `DeepDist` has to know of a kind of model. `ByPath` is one to begin from."""

    @property
    def counters(self) -> frozenset[str]:
        """Names of arrays that count something: updates of these are summed, whatever becomes of the others."""
        ...

    @property
    def caches(self) -> frozenset[str]:
        """Attributes of the model's parts that may change without being trained."""
        ...

    @property
    def row_codec(self) -> str | None:
        """How rows travel that are trained in place: "int8", "int16" or "float" of `p2p.worker.working_copy`, which
        have rows wait that changed little; None: all that changed, exactly."""
        ...

    def names(self, model: Any) -> Sequence[str]:
        """The arrays to train. May give the model what it lacks. `UsageError` for a model that cannot be trained."""
        ...

    def key(self, model: Any, name: str) -> Any:
        """What `find` and `put` are given in the place of `name`, found once and sent to the workers."""
        ...

    def find(self, model: Any, key: Any) -> Any:
        """The array itself, or a view of the same memory; whatever else is there if it is none."""
        ...

    def put(self, model: Any, key: Any, array: Array) -> None:
        """Have the model hold this array. Raises what its owner raises if that cannot be changed."""
        ...

    def sending(self, model: Any, arrays: Arrays) -> None:
        """A training begins with these arrays."""
        ...

    def bare(self, model: Any) -> Any:
        """What is pickled in the model's place, if numbers of its arrays would travel that are not in numpy arrays."""
        ...

    def dressed(self, bare: Any) -> Any:
        """The model of what `bare` gave, on a worker; its arrays are loaded afterwards."""
        ...

    def loaded(self, model: Any) -> None:
        """The arrays have changed."""
        ...

    def meaning(self, model: Any) -> str:
        """What the rows of its arrays stand for, in a few words that differ where that does; "" for nothing else than
        their names and shapes say. A checkpoint goes on only with a model of the same."""
        ...

    def combine(self, peers: int) -> str:
        """The rule of `p2p.worker.combine` for so many peers, if the user chooses none."""
        ...

    def rule(self, model: Any, key: Any) -> str | None:
        """The rule of `p2p.worker.combine` for this array, whatever it is for the others; None: the same."""
        ...

    def preload(self) -> None:
        """Import and compile what workers will need, in the process from which they are forked."""
        ...


@dataclass(frozen=True)
class ByPath:
    """Dicts, lists, tuples and objects: their arrays, by keys and attributes with dots between them."""

    counters: frozenset[str] = frozenset()
    caches: frozenset[str] = frozenset()
    row_codec: str | None = None

    def names(self, model: Any) -> Sequence[str]:
        names = sorted(map(nesting.text, _arrays_within(model)))
        for one, other in pairwise(names):
            if one == other:
                raise UsageError(
                    f"two arrays of the model have the name {one!r}, expected one each: keys with dots in them, or "
                    "numbers beside their digits as text, make the same names; give one of them another key"
                )
        return names

    def key(self, model: Any, name: str) -> Any:
        return nesting.path_of(model, name)

    def find(self, model: Any, key: Any) -> Any:
        return nesting.find(model, key)

    def put(self, model: Any, key: Any, array: Array) -> None:
        nesting.put(model, key, array)

    def sending(self, model: Any, arrays: Arrays) -> None: ...

    def bare(self, model: Any) -> Any:
        return model

    def dressed(self, bare: Any) -> Any:
        return bare

    def loaded(self, model: Any) -> None: ...

    def meaning(self, model: Any) -> str:
        return ""

    def combine(self, peers: int) -> str:
        """What an update of the user's own means, and whether it is the step or its share of one, only they know."""
        return "sum"

    def rule(self, model: Any, key: Any) -> str | None:
        return None

    def preload(self) -> None: ...


def adapter_of(model: Any) -> Adapter:
    """The adapter of `TABLE` for the class of `model`, or for the first of its bases that has one; else `ByPath()`.

    By name, so that whoever does not use a package does not wait for its import.
    """
    for kind in type(model).__mro__:
        if found := TABLE.get((kind.__module__.partition(".")[0], kind.__name__)):
            return _adapter(found)
    return ByPath()


def check_adapter(adapter: Any) -> Adapter:
    """`adapter`, if it has all that an adapter has; else `UsageError`."""
    wanted = [name for name in vars(Adapter) if not name.startswith("_")]
    if isinstance(adapter, type) and hasattr(adapter, wanted[0]):
        raise UsageError(f"adapter is the class {adapter.__name__}, expected an object of it: {adapter.__name__}()")
    if lacking := [name for name in wanted if not hasattr(adapter, name)]:
        raise UsageError(
            f"adapter is a {type(adapter).__name__} without {', '.join(lacking)}, expected one that has what "
            "p2p.Adapter says: derive a class from p2p.ByPath, and pass an object of it"
        )
    found: Adapter = adapter
    return found


def everyone() -> Iterator[Adapter]:
    """All adapters of `TABLE`."""
    return map(_adapter, TABLE.values())


def known() -> Collection[str]:
    """The classes that have an adapter of their own, for the user to read."""
    return [".".join(names) for names in TABLE]


def _adapter(place: str) -> Adapter:
    module, _, name = place.partition(":")
    adapter: Adapter = getattr(import_module(module), name)
    return adapter


def _arrays_within(model: Any) -> list[nesting.Path]:
    """Where arrays are that can be trained: all of the model's own, and of the parts of it those of numbers.

    An array that is there again deeper down, or a view of it, is left out: it stays what it is.
    """
    found: dict[nesting.Path, Array] = {}
    _check_looked_at((), model)
    for path, _, part in nesting.walk(model, within_others=False):
        if not isinstance(part, np.ndarray):
            if not nesting.is_others(part):
                _check_looked_at(path, part)
            continue
        inner = len(path) > 1
        if inner and (nesting.is_others(model) or not _is_trainable(part) or _is_part_of_any(part, found.values())):
            continue
        found[path] = part
        if len(found) > ARRAYS_MAX:
            raise UsageError(
                f"the model has more than {ARRAYS_MAX} arrays, expected fewer: stack them, or say what is trained by "
                "parameters=(...)"
            )
    return list(found)


def _check_looked_at(path: nesting.Path, part: Any) -> None:
    """Raise `UsageError` for a container with arrays that a walk passes by: they would stay as they are."""
    if not isinstance(part, Mapping | list | tuple | deque):
        return
    name = repr(nesting.text(path)) if path else "the model"
    if path and len(part) > nesting.PARTS_MAX:
        first = next(iter(part.values() if isinstance(part, Mapping) else part))
        if any(isinstance(each, np.ndarray) for each in (first, *(inner for _, inner in nesting.parts(first)))):
            raise UsageError(
                f"{name} has {len(part)} parts, with arrays in them, expected at most {nesting.PARTS_MAX}: stack them "
                "to one array, or say what is trained by parameters=(...)"
            )
    own = getattr(part, "__dict__", part)
    beside = () if own is part else [each for each in own if isinstance(own[each], np.ndarray)]
    if more := [each for each in beside if not any(own[each] is inner for _, inner in nesting.parts(part))]:
        raise UsageError(
            f"{name} is a {type(part).__name__} with arrays beside its items ({', '.join(more)}), expected them among "
            "the items, or as attributes of an object that is no dict, list or tuple"
        )


def _is_trainable(array: Array) -> bool:
    return type(array) in PLAIN and array.dtype.str in DTYPES and array.dtype.kind != "b"


def _is_part_of_any(array: Array, others: Iterable[Array]) -> bool:
    return any(
        array is other or (np.shares_memory(array, other) and skeleton.is_within(array, other)) for other in others
    )
