"""The change that `descent` would make to a replica, as an update that adds up with those of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import Arrays, check_finite
from gossip.errors import MismatchError, UsageError
from p2p.adapters.model import Model
from p2p.agent.ports import HandOver, Readable, refresh
from p2p.worker.job import Descent


def write_delta(model: Model, descent: Descent | None, update: Any, replica: Readable, out: HandOver) -> None:
    """What `descent(model, update)` would change in the replica, written to `out`. The model is overwritten."""
    delta = out.arrays()
    returned = None
    if descent is None:
        _copy_update(update, delta)
    else:
        if isinstance(update, Mapping):
            _check_numbers({name: value for name, value in update.items() if isinstance(value, np.ndarray)})
        update = _apart(update, model)
        refresh(model, replica)
        for name, array in model.arrays().items():
            np.copyto(delta[name], array)
        returned = model.watch.descent(model, descent, update)
        for name, array in model.arrays().items():
            np.subtract(array, delta[name], out=delta[name])
    _check_numbers(delta)
    model.watch.effect(model, update, returned, delta)


def _apart(update: Any, model: Model) -> Any:
    """The update, with copies of what lies in the model's arrays: they are loaded anew before `descent` is called."""
    if update is model.model:
        raise UsageError(
            "gradient returned its copy of the model, expected an update: what was learned, such as the difference to "
            "the model that it was given"
        )
    arrays = list(model.arrays().values())

    def apart(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy() if any(np.may_share_memory(value, array) for array in arrays) else value
        if type(value) is dict:
            return {key: apart(part) for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(apart(part) for part in value)
        return value

    return apart(update)


def _copy_update(update: Any, delta: Arrays) -> None:
    if not isinstance(update, Mapping):
        raise UsageError(
            f"gradient returned a {type(update).__name__}: without a descent, expected a dict of named arrays to add "
            f"to {sorted(delta)}, or None"
        )
    for name in update:
        if name not in delta:
            raise UsageError(f"the update has {name!r}, expected some of the model's arrays {sorted(delta)}")
    for name, target in delta.items():
        if name not in update:
            target[...] = 0
            continue
        source = np.asarray(update[name])
        if source.shape != target.shape:
            raise UsageError(f"the update's {name!r}: shape {source.shape}, expected {target.shape}")
        if not np.can_cast(source.dtype, target.dtype, "same_kind"):
            raise UsageError(f"the update's {name!r}: dtype {source.dtype}, expected {target.dtype}")
        if source.dtype != target.dtype and target.dtype.kind in "iu" and source.size:
            limits = np.iinfo(target.dtype)
            if int(source.min()) < limits.min or int(source.max()) > limits.max:
                raise UsageError(
                    f"the update's {name!r}: numbers from {source.min()} to {source.max()}, expected such as fit into "
                    f"{target.dtype}"
                )
        np.copyto(target, source, casting="same_kind")


def _check_numbers(arrays: Arrays) -> None:
    try:
        check_finite(arrays)
    except MismatchError as error:
        raise UsageError(f"the update's {error}; nothing of it was merged. A smaller learning rate may help") from None
