"""The rest that the model's codec leaves of a worker's updates, to go with the next one (error feedback).

    delta + what was kept  ->  codec  ->  update, which is published, and residual, which is kept if the update counts

The update that the codec makes is compared with the one that it was given, its sum the first time: nothing may be lost
between the two. Source of error feedback: Seide et al. 2014.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gossip.arrays import Array, Arrays, Layout, Packed, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.updates import check, merge, rehearse
from gossip.updates.rows import rows_of
from gossip.updates.stamps import RowStamps
from p2p.adapters.model import Model
from p2p.agent.ports import Left
from p2p.codec import kinds_of


class Residual:
    """That of one worker, of updates that were not trained in place."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept: Arrays = {}
        """Empty before the first update of a training."""
        self._rehearsed = False
        """The kind of these updates was."""

    def drop(self) -> None:
        """Another training begins with nothing left."""
        self._kept = {}

    def add_to(self, model: Model) -> None:
        """Bring the copy of the replica, before a gradient, to where the worker by itself would be.

        Else what a codec leaves for long is learned again and again: the gradient does not see that it is on its way.
        """
        for name, array in model.arrays().items():
            kept = self._kept.get(name)
            if kept is None:
                continue
            if kept.dtype == array.dtype:
                array += kept
            else:  # integers, which are summed in more bits
                np.copyto(array, model.integers.fitted(name, array + kept))

    def of(self, name: str) -> Array | float:
        """What is kept of an array."""
        return self._kept.get(name, 0.0)

    def encoded(self, delta: Arrays) -> tuple[Arrays, Arrays]:
        """(update, residual) of what is to be published of whole arrays, by the model's codec; `leave` the residual if
        the update counts.

        Raises:
            UsageError: the codec made what cannot be added to the model.
        """
        codec = self._model.codec
        assert codec is not None
        before = self._kept or {name: np.zeros_like(change) for name, change in delta.items()}
        made = codec.encode(delta, before)
        name = type(codec).__name__
        if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, Mapping) for part in made)):
            raise UsageError(
                f"{name}.encode returned {made!r:.80}, expected (update, new residual), two dicts of arrays"
            )
        update, residual = made
        try:
            check(Packed.of(update), self._model.layout, kinds_of(codec))
        except MismatchError as error:
            raise UsageError(f"what {name} made of an update does not fit: {error}") from None
        try:
            Layout.of(residual).check_fit(self._model.layout)
            check_finite(residual)
        except MismatchError as error:
            raise UsageError(f"the residual that {name} made does not fit: {error}") from None
        for part, left in residual.items():
            if np.may_share_memory(left, delta[part]):
                raise UsageError(f"the residual that {name} made of {part!r} is in the delta's memory, expected a copy")
        if not self._rehearsed:
            rehearse(Packed.of(update), self._model.layout, kinds_of(codec))
            self._check_sum(update, residual, delta, before)
            self._rehearsed = True
        return update, residual

    def _check_sum(self, update: Arrays, residual: Arrays, delta: Arrays, before: Arrays) -> None:
        """Raise `UsageError` unless the update and what is left make up what there was."""
        layout, codec = self._model.layout, self._model.codec
        buffer = bytearray(layout.nbytes)
        merge(layout, buffer, RowStamps(layout), Packed.of(update), kinds_of(codec))
        for name, added in layout.views(buffer).items():
            wanted, found = delta[name] + before[name], added + residual[name]
            sizes = sum(np.abs(part.astype(np.float64)) for part in (added, residual[name], wanted))
            room = 16 * np.finfo(wanted.dtype).eps if wanted.dtype.kind == "f" else 0.0
            if np.any(np.abs(found - wanted) > room * sizes):
                raise UsageError(
                    f"{type(codec).__name__}.encode loses something of {name!r}: its update and its residual do not "
                    "add up to the delta and the residual that it was given"
                )

    def leave(self, residual: Arrays) -> None:
        """Of what was encoded this goes with the next update."""
        self._kept = residual

    def left(self, residual: Arrays) -> Left:
        """A residual of `encoded`, for the agent to keep: rows of which something is left, and other arrays whole."""
        if not any(left.any() for left in residual.values()):
            return Left(None, follows=bool(self._kept))
        update: dict[str, Array] = {}
        for name, left in residual.items():
            if left.ndim < 2:
                update[name] = left
            else:
                rows = np.flatnonzero(left.any(axis=tuple(range(1, left.ndim))))
                update.update(rows_of(name, rows, left[rows]))
        return Left(update, follows=bool(self._kept))
