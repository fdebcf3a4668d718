"""The model that a master serves: the user's own, changed by `descent` here, and published for workers to read.

    update -> descent(model, update) -> is it still numbers? -> snapshot -> workers
                                        else, or if descent raises: back to the last snapshot

So what `descent` keeps on the model, a history or a counter, stays there, and is in `dd.model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.arrays import Arrays, check_finite
from gossip.errors import MismatchError, NotFiniteError
from p2p.adapters import nesting
from p2p.adapters.model import Model
from p2p.master.snapshots import Snapshots
from p2p.server.attributes import Attributes
from p2p.worker.delta import add_to
from p2p.worker.job import Descent


class Served:
    """For a session, of any number of trainings. One thread at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.snapshots = Snapshots(model.own)
        self.attributes = Attributes(model)
        self.version = 0
        """Updates applied in this session."""
        self._own = model.arrays()
        """The user's own arrays."""
        model.make_writable()

    def begin(self) -> None:
        """A training begins with the model as it is, whatever the user wrote into it."""
        self.model.check_unchanged()
        self.model.check_numbers()
        self._own = self.model.arrays()
        if not self.snapshots.holds(self._own):
            self.version += 1  # what the user wrote counts as one
        self.attributes.begin()
        self._publish(self.version)

    def end(self) -> None:
        """A training is over: the user's own arrays hold what was learned, also where `descent` put others there."""
        self.model.take_back(self._own)
        self.model.adapter.loaded(self.model.model)

    def apply(self, descent: Descent | None, update: Any) -> None:
        """Change the model by one update.

        Raises:
            NotFiniteError: what `descent` made of the model has numbers that are none. The model's arrays are as they
                were, as they are after any error of `descent`.
            UsageError: the update cannot be added.
        """
        model, returned = self.model, None
        try:
            if descent is None:
                add_to(model, update)
            else:
                returned = descent(model.model, update)
                model.check_unchanged()
            if not model.watch.effective:
                self.snapshots.compare(
                    model.arrays(), lambda changed: model.watch.effect(model, update, returned, changed)
                )
            self.attributes.look()
            self._publish(self.version + 1)
        except MismatchError as error:
            self._back()
            raise NotFiniteError(
                f"the update made the model's {error}; nothing of it was merged. A smaller learning rate may help"
            ) from None
        except BaseException:
            self._back()
            raise

    def become(self, other: Model, arrays: Arrays, version: int) -> None:
        """Have what another master's model has: these arrays, and the parts of `other` that are not trained."""
        model = self.model
        trained = {nesting.path_of(model.model, name)[:1] for name in model.names}
        for key, part in nesting.parts(other.model):
            if (key,) not in trained:
                nesting.put(model.model, (key,), part)
        model.load(arrays)
        self.attributes.look()
        self._publish(version)

    def close(self) -> None:
        """Nobody reads it any more."""
        self.snapshots.close()

    def _publish(self, version: int) -> None:
        found = self.attributes
        self.snapshots.publish(self.model.arrays(), version, found.packed, found.version)
        self.version = version

    def _back(self) -> None:
        """What `descent` has changed of the arrays is undone."""
        self.snapshots.restore(self.model.load)


def check_numbers(update: Any) -> None:
    """Raise `NotFiniteError` if an array of an update, at any depth, has a NaN or an infinity."""
    for name, part in nesting.parts(update) if isinstance(update, Mapping | list | tuple) else ():
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            try:
                check_finite({name: part})
            except MismatchError as error:
                raise NotFiniteError(
                    f"the update's {error}; nothing of it was merged. A smaller learning rate may help"
                ) from None
        else:
            check_numbers(part)
