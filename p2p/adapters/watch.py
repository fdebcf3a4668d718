"""Changes by the user's functions to a model beside its trained arrays: they would be lost, so they are reported by
name.

    before                           after
    w        trained                 trained         what changed in it is the update
    b        0.0                     1.0             "descent changed 'b' of the model, ..."
    calls                            1               "descent added 'calls' to the model, ..."

The model's own keys or attributes are compared at every `descent`. Their contents are compared only at the first ones
of a worker and then ever more rarely, as that takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import xxhash

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.adapters import nesting
from p2p.adapters.nesting import PARTS_MAX, Path, is_others, parts, walk
from p2p.adapters.sparse import is_matrix

FIRST = 3
"""So many calls of a worker are looked at in full, and those whose numbers are powers of two."""
HASHED_BYTES_MAX = 1 << 26
"""Of arrays that are not trained, in one look: some 3 ms. Those beyond are told by who they are."""
NUMBERS = (bool, int, float, complex, np.number, np.bool_)
UPDATE_KINDS = "biufc"
EMPTIES = (type(None), bool, int, str, bytes, list, tuple, set, frozenset)
"""A float that is 0.0 is a number that somebody computed."""

Marks = dict[Path, Any]


class Arrays(Protocol):
    """A model, as far as it is watched."""

    @property
    def model(self) -> Any: ...

    @property
    def caches(self) -> frozenset[str]: ...

    def arrays(self) -> Mapping[str, Array]: ...

    def check_unchanged(self) -> None: ...


class Watch:
    """Of one copy of the model. What it finds is raised, or is one of its `cautions`."""

    def __init__(self) -> None:
        self.cautions: dict[str, str] = {}
        """What the user should hear of, by name."""
        self.spoiled = False
        """The copy is not what it was, beside its arrays: another attempt needs a new one."""
        self._gradients = 0
        self._returned = False
        """A gradient has returned an update, so that one without is no mistake."""
        self._numbers: list[Any] = []
        """Keys of numbers of the model that the last gradient changed."""
        self._descents = 0
        self.effective = False
        """An update has changed the model, so that the next ones do."""

    def gradient(
        self, model: Arrays, gradient: Callable[[Any, Any], Any], rows: Any, others_train: bool = False
    ) -> Any:
        """What `gradient` returns; `UsageError` if it trained the model and returned nothing.

        That is not looked at if `others_train` the arrays meanwhile.
        """
        self._gradients += 1
        self._numbers = []
        if not _is_looked_at(self._gradients):
            return gradient(model.model, rows)
        numbers = _numbers(model.model)
        before = {} if self._returned or others_train else _digests(model.arrays())
        update = gradient(model.model, rows)
        self._numbers = [key for key, number in _numbers(model.model).items() if numbers.get(key) != number]
        if not is_nothing(update):
            self._returned = True
        elif before:
            after = _digests(model.arrays())
            if changed := [name for name in before if after.get(name) != before[name]]:
                raise UsageError(nothing_returned(update, changed))
        return update

    def told(self) -> dict[str, str]:
        """The cautions, for somebody to keep."""
        return dict(self.cautions)

    def in_place(self) -> None:
        """The last gradient has trained the model in place: what it changed is to be learned."""
        if self._numbers:
            self.cautions["numbers"] = (
                f"a gradient that trains in place changed {', '.join(map(repr, self._numbers))} of the model, which "
                "stays with its worker: only numpy arrays are trained, so make it one, as in np.array(0.0)"
            )

    def descent(self, model: Arrays, descent: Callable[[Any, Any], Any], update: Any) -> Any:
        """What `descent` returns; `UsageError` if it changed something that is not trained."""
        self._descents += 1
        in_full = _is_looked_at(self._descents)
        before = _marks(model) if in_full else _own(model)
        returned = descent(model.model, update)
        model.check_unchanged()
        after = _marks(model) if in_full else _own(model)
        if (found := _difference(before, after)) is not None:
            self.spoiled = True
            raise UsageError(_lost(*found, model))
        return returned

    def own_descent(self, model: Arrays, descent: Callable[[Any, Any], Any], update: Any) -> None:
        """Call `descent` on a copy that is a master's again with the next fetch. What it keeps on the model beside the
        arrays is not: then another task needs a new copy."""
        self._descents += 1
        marks = _marks if _is_looked_at(self._descents) else _own
        before = marks(model)
        descent(model.model, update)
        model.check_unchanged()
        self.spoiled = self.spoiled or _difference(before, marks(model)) is not None

    def effect(self, model: Arrays, update: Any, returned: Any, delta: Mapping[str, Array]) -> None:
        """Look whether `delta`, which came of `update`, changes anything."""
        if self.effective:
            return
        if any(change.any() for change in delta.values()):
            self.effective = True
        elif not is_zero(update):
            names = ", ".join(map(repr, delta))
            if returned is not None and returned is not model.model:
                raise UsageError(
                    f"descent returned a {type(returned).__name__} and left the model as it was: what it returns is "
                    f"not used, expected it to change the model's arrays ({names}), as in w -= rate * gradient"
                )
            self.cautions["no effect"] = (
                f"an update that was not zero changed none of the model's arrays ({names}): look whether descent "
                "changes them in place, as in w -= rate * gradient, and whether the step is lost in rounding"
            )


def is_nothing(update: Any) -> bool:
    """Whether a gradient returned that there is nothing to publish: None, 0, or what is empty."""
    return (isinstance(update, Mapping) or type(update) in EMPTIES) and not update


def nothing_returned(update: Any, changed: Iterable[str]) -> str:
    """What to say of a gradient that changed arrays and returned nothing."""
    return (
        f"gradient changed {', '.join(map(repr, changed))} of its copy of the model and returned {update!r}, so "
        "nothing of it would be learned: return the difference as a dict of named arrays, or train in place by "
        "copy = p2p.in_place(model) and return copy.trained({})"
    )


def is_zero(update: Any) -> bool:
    """Whether all that `update` holds is numbers that are zero."""
    match update:
        case None:
            return True
        case Mapping():
            return all(map(is_zero, update.values()))
        case list() | tuple():
            return all(map(is_zero, update))
        case np.ndarray() | np.generic() | bool() | int() | float() | complex():
            numbers = np.asarray(update)
            return numbers.dtype.kind in UPDATE_KINDS and not numbers.any()
    return is_matrix(update) and is_zero(update.tocoo().data)


def _is_looked_at(call: int) -> bool:
    return call <= FIRST or call & (call - 1) == 0


def _numbers(model: Any) -> dict[Any, Any]:
    """The model's own numbers, by key or attribute."""
    return {} if is_others(model) else {key: _plain(part) for key, part in parts(model) if isinstance(part, NUMBERS)}


def _digests(arrays: Mapping[str, Array]) -> dict[str, int]:
    return {name: _digest(array) for name, array in arrays.items()}


def _digest(array: Array) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(array).data) if array.size else 0


# ------------------------------------------------------------------------------------------- what is beside the arrays


def _own(model: Arrays) -> Marks:
    """What the model itself has, by key or attribute, as far as that can be told without looking into it."""
    own, others = set(model.arrays()), is_others(model.model)
    marks: Marks = {}
    for key, part in parts(model.model):
        array = isinstance(part, np.ndarray)
        if nesting.text((key,)) not in own and (array or not others):
            marks[(key,)] = id(part) if array else _plain(part) or type(part).__name__
    return marks


def _marks(model: Arrays) -> Marks:
    """What everything in the model is told by, if it is not trained."""
    trained = model.arrays()
    by_id = {id(array): name for name, array in trained.items()}
    own = {nesting.path_of(model.model, name) for name in trained}
    marks: Marks = {}
    hashed = 0
    for path, owner, part in walk(model.model):
        if path in own:
            continue
        array = _as_array(part)
        if is_others(owner) and (array is None or path[-1] in model.caches):
            continue
        if array is None:
            marks[path] = _plain(part) or _mark(part)
        elif id(part) in by_id:
            marks[path] = ("the array", by_id[id(part)])
        elif not any(np.may_share_memory(array, other) for other in trained.values()):  # else it changes with that
            hashed += array.nbytes
            told = array.dtype.hasobject or hashed > HASHED_BYTES_MAX
            marks[path] = (array.shape, array.dtype.str, id(part) if told else _digest(array))
    return marks


def _as_array(part: Any) -> Array | None:
    """The numbers of an array, of this library or another; None for anything else."""
    if isinstance(part, np.ndarray) or not hasattr(part, "__array__") or isinstance(part, np.generic | type):
        return part if isinstance(part, np.ndarray) else None
    try:
        return np.asarray(part)
    except Exception:  # noqa: BLE001 - an array of another library, which may live where numpy does not reach
        return None


def _plain(part: Any) -> Any:
    """A number or a text, such that equal ones are told by the same; None for anything else."""
    if part is None or isinstance(part, str | bytes):
        return ("text", part)
    if isinstance(part, NUMBERS):
        return ("number", repr(part.item() if isinstance(part, np.generic) else part))
    return None


def _mark(part: Any) -> Any:
    if isinstance(part, set | frozenset) and len(part) <= PARTS_MAX:
        return frozenset(part)
    inside = parts(part)
    if len(inside) > PARTS_MAX:
        return (type(part).__name__, len(inside))
    return type(part).__name__ if inside or isinstance(part, Mapping | list | tuple) else id(part)


def _difference(before: Marks, after: Marks) -> tuple[str, Path] | None:
    """("added", "changed" or "removed", what), if anything was."""
    for path in after:
        if path not in before:
            return "added", path
    for path, mark in after.items():
        if mark != before[path]:
            return "changed", path
    for path in before:
        if path not in after:
            return "removed", path
    return None


def _lost(what: str, path: Path, model: Arrays) -> str:
    name = nesting.text(path)
    part = nesting.find(model.model, path)
    trained = ", ".join(map(repr, model.arrays()))
    kind = "" if what == "removed" else f" ({type(part).__name__})"
    hint = "np.array(0.0)" if isinstance(part, NUMBERS) else "np.zeros_like(w)"
    return (
        f"descent {what} {name!r} of the model{kind}, which would be lost: only the arrays {trained} are trained and "
        f"travel. Have it in the model as an array before training begins, such as {hint}, and change that in place, "
        "as in w -= rate * gradient; what is to stay with a worker does not belong in the model"
    )
