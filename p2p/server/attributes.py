"""What a model has beside its trained arrays, as `descent` changes it on the master: a history, a counter, a list.

    master:  look() after each descent -> what was added, changed or taken away since the training began -> packed
    worker:  dress(model, packed)      -> its copy of the model has the same

Numbers, texts, arrays, and lists, tuples and dicts of them travel, as updates do. Anything else stays with the master,
and that is said. What changes is told by its value, where it is small or was changed before, and else by who it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from gossip.arrays import Packed
from gossip.errors import UsageError
from p2p.adapters import nesting
from p2p.adapters.model import Model
from p2p.server.any_update import flatten, inflate

FIRST = 3
"""At so many descents, and at those whose numbers are powers of two, arrays are looked at that never changed yet."""


class Attributes:
    """Those of the master's model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.version = 0
        """It grows when something changes."""
        self.packed: Packed | None = None
        """What changed since the training began, flattened; None if nothing did."""
        self.cautions: dict[str, str] = {}
        self._looks = 0
        self._changed: set[Any] = set()
        """Keys of what has changed since the training began: they are looked at each time."""
        self._parts: dict[Any, Any] = {}
        """All of them at the last look, each as it was,"""
        self._marked: dict[Any, Any] = {}
        """and what it was told by."""
        self.begin()

    def begin(self) -> None:
        """A training begins: workers get the model as it is now."""
        self._looks, self._changed = 0, set()
        self._marked = self._marks(True)
        if self.packed is not None:
            self.packed, self.version = None, self.version + 1

    def look(self) -> None:
        """A descent has run."""
        self._looks += 1
        before, self._marked = self._marked, self._marks(self._looks <= FIRST or self._looks & (self._looks - 1) == 0)
        changed = {key for key in {*before, *self._marked} if before.get(key) != self._marked.get(key)}
        if changed:
            self._changed |= changed
            self._pack()

    def _pack(self) -> None:
        found, gone = [], []
        for key in sorted(self._changed, key=repr):
            if key not in self._parts:
                gone.append(key)
                continue
            try:
                flatten([key, self._parts[key]])
            except UsageError as error:
                self.cautions[f"attribute {key}"] = (
                    f"descent changed {key!r} of the model, which stays with the master, and with dd.model: workers "
                    f"do not get it, as it is no number, text or array, nor a list, tuple or dict of them ({error})"
                )
                continue
            found.append([key, self._parts[key]])
        self.version += 1
        self.packed = Packed.of(flatten([found, gone]))

    def _others(self) -> list[tuple[Any, Any]]:
        """The model's own parts that are not trained, nor hold what is."""
        trained = {nesting.path_of(self._model.model, name)[:1] for name in self._model.names}
        return [(key, part) for key, part in nesting.parts(self._model.model) if (key,) not in trained]

    def _marks(self, in_full: bool) -> dict[Any, Any]:
        """What each part is told by; equal ones have the same."""
        before, self._parts = self._parts, dict(self._others())
        return {
            key: _mark(part)
            if in_full or key in self._changed or before.get(key) is not part or _is_plain(part)
            else self._marked[key]
            for key, part in self._parts.items()
        }


def dress(model: Any, packed: Mapping[str, Any]) -> None:
    """Give the model what `Attributes` of another one has packed."""
    (changed, gone), _ = inflate(packed)
    for key, value in changed:
        nesting.put(model, (key,), value)
    for key in gone:
        if isinstance(model, dict):
            model.pop(key, None)
        elif hasattr(model, key):
            delattr(model, key)


def _is_plain(part: Any) -> bool:
    return part is None or isinstance(part, str | bytes | bool | int | float | complex | np.generic)


def _mark(part: Any) -> Any:
    """A value by which a change of it is seen, also within it, as far as that takes little."""
    if isinstance(part, np.ndarray) and not part.dtype.hasobject:
        return part.shape, part.dtype.str, xxhash.xxh3_64_intdigest(np.ascontiguousarray(part).data) if part.size else 0
    if _is_plain(part):
        return type(part).__name__, repr(part)
    inside = nesting.parts(part)
    if isinstance(part, dict | list | tuple) and len(inside) <= nesting.PARTS_MAX:
        return type(part).__name__, tuple((repr(key), _mark(value)) for key, value in inside)
    return id(part), len(inside)
