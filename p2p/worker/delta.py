"""The change that `descent` would make to a replica, as an update that adds up with those of others.

descent                   worked on a fresh copy: the difference, as whole arrays; as rows where few have changed
none, a sparse update     its rows or entries, and no whole array is made of them
none, whole arrays        the same arrays, or those of their rows that are not zero
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.updates.sparse import Change, SomeEntries, SomeRows, named, smallest, whole
from p2p.adapters.model import Model
from p2p.adapters.nesting import by_name, fields_of
from p2p.adapters.sparse import change_of, is_matrix
from p2p.agent.ports import HandOver, Neighbor, Readable, refresh
from p2p.worker.job import Descent


def write_delta(model: Model, descent: Descent | None, update: Any, replica: Readable, out: HandOver) -> None:
    """What `descent(model, update)` would change in the replica, written to `out`. The model is overwritten."""
    returned = None
    if descent is None:
        changes = changes_of(update, model)
        delta = out.arrays()
        for name, target in delta.items():
            if name in changes:
                whole(changes[name], target)
            else:
                target[...] = 0
    else:
        if isinstance(update, Mapping):
            _check_numbers({name: value for name, value in update.items() if isinstance(value, np.ndarray)})
        update = apart(update, model)
        refresh(model, replica)
        delta = out.arrays()
        for name, array in model.arrays().items():
            np.copyto(delta[name], array)
        returned = model.watch.descent(model, descent, update)
        for name, array in model.arrays().items():
            np.subtract(array, delta[name], out=delta[name])
    _check_numbers(delta)
    model.watch.effect(model, update, returned, delta)


def some_of(model: Model, update: Any) -> dict[str, Any] | None:
    """An update that is added as it is, by its rows or entries; None if it is better as whole arrays.

    Raises:
        UsageError: it cannot be added to the model.
    """
    made = smallest(changes_of(update, model), model.layout)
    if made is None:
        return None
    _check_numbers(made)
    model.watch.effect(model, update, None, named(made, model.layout))
    return made


def lighter(out: HandOver, model: Model, agent: Neighbor) -> Any:
    """What to publish of whole arrays: their rows that are not zero, where these take at most half of the bytes."""
    rows = smallest(out.arrays(), model.layout)
    return out if rows is None else agent.pack(rows)


def apart(update: Any, model: Model) -> Any:
    """The update, with copies of what lies in the model's arrays: they are loaded anew before `descent` is called."""
    if update is model.model:
        raise UsageError(
            "gradient returned its copy of the model, expected an update: what was learned, such as the difference to "
            "the model that it was given"
        )
    arrays = list(model.arrays().values())

    def parted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy() if any(np.may_share_memory(value, array) for array in arrays) else value
        if is_matrix(value) and isinstance(getattr(value, "data", None), np.ndarray):
            return value.copy() if parted(value.data) is not value.data else value
        if type(value) is dict:
            return {key: parted(part) for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(parted(part) for part in value)
        if fields_of(value):
            return tuple.__new__(type(value), map(parted, value))
        return value

    return parted(update)


def changes_of(update: Any, model: Model) -> dict[str, Change]:
    """What an update says of each array that it names."""
    specs = {spec.name: spec for spec in model.layout.specs}
    named_parts = by_name(model.model, update)
    if named_parts is None:
        raise UsageError(
            f"gradient returned a {type(update).__name__}: without a descent, expected a dict of named arrays to add "
            f"to {sorted(specs)}, or None"
        )
    for name in named_parts:
        if name not in specs:
            raise UsageError(f"the update has {name!r}, expected some of the model's arrays {sorted(specs)}")
    narrow = model.integers.narrow
    return {name: change_of(name, value, specs[name], narrow.get(name)) for name, value in named_parts.items()}


def step_here(model: Model, descent: Descent | None, update: Any, base: Arrays) -> None:
    """What `descent(model, update)` makes of a worker's own model, where it stays; the model begins as `base`, from
    which the gradient was computed."""
    returned, update = None, apart(update, model)
    model.load(base)
    if descent is None:
        add_to(model, update)
    else:
        returned = model.watch.descent(model, descent, update)
    if not model.watch.effective:
        changed = {name: array != base[name] for name, array in model.arrays().items()}
        model.watch.effect(model, update, returned, changed)


def add_to(model: Model, update: Mapping[str, Any]) -> None:
    """Add an update to the model's own arrays, in place.

    Raises:
        UsageError: it cannot be added, or a sum does not fit into the array's dtype.
    """
    arrays = model.arrays()
    with np.errstate(over="ignore", invalid="ignore"):
        for name, change in changes_of(update, model).items():
            array = arrays[name]
            where: Any
            if isinstance(change, SomeRows):
                where, numbers = change.rows, change.values
            elif isinstance(change, SomeEntries):
                where, numbers = np.unravel_index(change.places, array.shape), change.numbers
            else:
                where, numbers = ..., change
            if name in model.integers.narrow:
                array[where] = _fitted(name, array[where].astype(np.int64) + numbers, array.dtype)
            else:
                array[where] += np.asarray(numbers, array.dtype)


def _fitted(name: str, sums: Array, dtype: np.dtype[Any]) -> Array:
    limits = np.iinfo(dtype)
    if sums.size and not (sums.min() >= limits.min and sums.max() <= limits.max):
        raise UsageError(
            f"{name!r}: sums of updates from {sums.min()} to {sums.max()}, expected such as fit into {dtype}; nothing "
            "of this update was merged. Give the model a wider dtype"
        )
    return sums.astype(dtype)


def _check_numbers(arrays: Arrays) -> None:
    try:
        check_finite(arrays)
    except MismatchError as error:
        raise UsageError(f"the update's {error}; nothing of it was merged. A smaller learning rate may help") from None
