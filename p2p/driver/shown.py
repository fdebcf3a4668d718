"""The model that the user sees: filled from one of the replicas, with the values that the user has written into it
since.

Values that the user writes between two trainings count. So the model is filled only where there is something new to
show, and a copy of the model that was shown last tells whether it was written to.
"""

from __future__ import annotations

import threading

import numpy as np
import xxhash

from gossip.arrays import Arrays, check_finite
from gossip.errors import MismatchError, UsageError
from p2p.adapters.model import Model
from p2p.agent.client import AgentClient
from p2p.agent.ports import Held, refresh


class Shown:
    """The user's model. From any thread."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._fingerprint = fingerprint(model.arrays())
        self._of: tuple[object, int] | None = None
        """The replica that it was filled from, and how many updates were merged there."""

    def fill(self, replica: Held) -> None:
        """Copy the replica into the model, if that is not what it was filled with last."""
        with self._lock:
            if self._of != (replica, replica.merged):
                self._of = replica, refresh(self.model, replica)
                self._fingerprint = fingerprint(self.model.arrays())

    def holds(self, replica: object) -> bool:
        """It was filled from this replica last."""
        return self._of is not None and self._of[0] is replica

    def is_written(self) -> bool:
        """The user has changed it since it was filled, or since the beginning."""
        with self._lock:
            arrays = self.model.arrays()
            if not all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values()):
                return True  # something else was put in its place, which the next training refuses
            return fingerprint(arrays) != self._fingerprint

    def hand_in(self, agent: AgentClient) -> bool:
        """Publish what the agent's replica differs by from what the user wrote; False if it holds just that.

        The difference is rounded, and so is its sum with another: once everybody has it, another round may be needed.
        """
        with self._lock:
            self.model.check_unchanged()
            written = self.model.arrays()
            update = agent.hand_over()
            with agent.replica.reading():
                for name, held in agent.replica.arrays().items():
                    with np.errstate(over="ignore", invalid="ignore"):
                        np.subtract(written[name], held, out=update.arrays()[name])
            try:
                check_finite(update.arrays())
            except MismatchError as error:
                raise UsageError(f"the model was given numbers that cannot be published: {error}") from None
            if any(array.any() for array in update.arrays().values()):
                return agent.publish(update, agent.replica.merged)
            self._of = agent.replica, agent.replica.merged
            self._fingerprint = fingerprint(written)
            return False


def fingerprint(arrays: Arrays) -> int:
    """A hash of all arrays."""
    found = xxhash.xxh3_64()
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.intdigest()
