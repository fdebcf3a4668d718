"""Means of updates, and of models: what the workers of a synchronous step come to.

    {"w": array, 3: row}, {"w": array}         dicts          each key by itself; one that is not there is zeros
    [a, b], [c, d]                             lists, tuples  each place by itself; None says nothing, and is zeros
    sparse matrices of scipy                                  their sum is sparse
    arrays and numbers                                        in float32 or wider

The same updates in the same order come to the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.adapters import nesting
from p2p.adapters.sparse import is_matrix

Path = nesting.Path


def combined(updates: Sequence[Any], rule: str, counts: Collection[str] = ()) -> Any:
    """What the updates of one step come to, by the rule "mean" or "sum", as a gradient would have returned it.

    The arrays `counts`, by the names of the model's, are summed in any case: integers, and what counts something.

    Raises:
        UsageError: updates have other parts; where is named.
    """
    total: Any = None
    for update in updates:
        total = _added(total, update, ())
    return total if rule == "sum" or len(updates) == 1 else _over(total, len(updates), counts, ())


class ModelSum:
    """Of models that began as `start`, each with a weight."""

    def __init__(self, start: Mapping[str, Array], counts: Collection[str]) -> None:
        """`counts`: arrays of which the changes are summed, whatever the weights."""
        self._start = {name: array.copy() for name, array in start.items() if name in counts}
        self._dtypes = {name: array.dtype for name, array in start.items()}
        self._sums: dict[str, Array] = {name: np.zeros(a.shape, _wide(a.dtype)) for name, a in start.items()}
        self.weight = 0
        self.models = 0

    def add(self, arrays: Mapping[str, Array], weight: int) -> None:
        """One more model; its arrays are copied."""
        for name, total in self._sums.items():
            if name in self._start:
                total += np.subtract(arrays[name], self._start[name], dtype=total.dtype)
            else:
                total += weight * np.asarray(arrays[name], total.dtype)
        self.weight += weight
        self.models += 1

    def mean(self) -> dict[str, Array]:
        """By weight, in the models' own dtypes; what is counted as wide as it is summed."""
        return {
            name: total + self._start[name] if name in self._start else (total / self.weight).astype(self._dtypes[name])
            for name, total in self._sums.items()
        }


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype.kind == "f" else np.uint64 if dtype == np.uint64 else np.int64)


def _copied(part: Any) -> Any:
    """Of the update's own memory nothing is kept; narrow floats become float32, in which sums are taken."""
    if is_matrix(part):
        return part.copy()
    if isinstance(part, Mapping):
        return _like(part, {key: _copied(each) for key, each in part.items()})
    if isinstance(part, list | tuple):
        return _like(part, [_copied(each) for each in part])
    if isinstance(part, np.ndarray):
        wide = {"f": np.float32, "i": np.int64, "u": np.uint64}.get(part.dtype.kind)
        return np.array(part, part.dtype if wide is None else np.promote_types(part.dtype, wide))
    return _plain(part)


def _plain(part: Any) -> Any:
    """An integer that cannot overflow; anything else as it is."""
    return int(part) if isinstance(part, np.integer) else part


def _like(part: Any, items: Any) -> Any:
    """Of the same class as `part`, which is a dict, list or tuple, or a namedtuple."""
    if isinstance(part, tuple):
        return tuple.__new__(type(part), items)
    return items if type(part) in (dict, list) else type(part)(items)


def _is_numbers(part: Any) -> bool:
    if isinstance(part, bool | np.bool_):
        return False
    numbers = isinstance(part, np.ndarray) and part.dtype.kind in "iufc"
    return numbers or isinstance(part, int | float | complex | np.number)


def _check(fits: bool, found: str, expected: str, path: Path) -> None:
    if not fits:
        where = nesting.text(path) or "update"
        raise UsageError(
            f"{where!r} of a worker's update is {found}, expected {expected} as in another one's of the same step: "
            "updates of a step are averaged, so give them the same parts"
        )


def _added(total: Any, update: Any, path: Path) -> Any:
    if update is None or total is None:
        return _copied(update) if total is None else total
    if is_matrix(update) and is_matrix(total):
        _check(total.shape == update.shape, f"of shape {update.shape}", f"of shape {total.shape}", path)
        return total.tocsr() + update.tocsr()
    if isinstance(update, Mapping) and isinstance(total, Mapping):
        more = {key: _added(total.get(key), part, (*path, key)) for key, part in update.items()}
        return _like(total, {**total, **more})
    if isinstance(update, list | tuple) and isinstance(total, list | tuple):
        _check(len(update) == len(total), f"of {len(update)} parts", f"of {len(total)}", path)
        pairs = enumerate(zip(total, update, strict=True))
        return _like(total, [_added(one, other, (*path, index)) for index, (one, other) in pairs])
    if _is_numbers(update) and _is_numbers(total):
        _check(np.shape(update) == np.shape(total), f"of shape {np.shape(update)}", f"of {np.shape(total)}", path)
        if not isinstance(total, np.ndarray):
            return total + _plain(update)
        kind = np.result_type(total, update)
        total = np.asarray(total, kind)
        total += update
        return total
    _check(type(update) is type(total) and update == total, f"{update!r:.40}", f"{total!r:.40}", path)
    return total


def _over(total: Any, updates: int, counts: Collection[str], path: Path) -> Any:
    """The mean, in place where it can be."""
    if isinstance(total, Mapping):
        return _like(total, {key: _over(part, updates, counts, (*path, key)) for key, part in total.items()})
    if isinstance(total, list | tuple):
        return _like(total, [_over(part, updates, counts, (*path, index)) for index, part in enumerate(total)])
    if not (_is_numbers(total) or is_matrix(total)) or nesting.text(path) in counts:
        return total
    if isinstance(total, np.ndarray) and total.dtype.kind in "fc":
        total /= updates
        return total
    return total / updates
