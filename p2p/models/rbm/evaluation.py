"""How far a training is: functions for `evaluate=`, of rows that are trained on and of rows that are not.

A machine that fits the rows it is trained on better and better, and not others, has a growing gap between their free
energies: Hinton's guide (UTML TR 2010-003), section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.errors import UsageError
from p2p.models.rbm.machine import RBM
from p2p.models.rbm.networks import AutoEncoder, Classifier, Network
from p2p.models.rbm.units import Floats

AT_ONCE = 1000
"""Rows whose activations are in memory together."""


def mean_squares(v: Floats, reconstructed: Floats) -> float:
    """The mean of the squared differences of all numbers."""
    return float(np.mean(np.square(v - reconstructed), dtype=np.float64))


@dataclass(frozen=True)
class MachineEvaluation:
    """`evaluate(machine)`: "reconstruction error" of the held-out rows, and "free-energy gap".

    The error is the mean square over rows and units. The gap is the mean free energy of held-out rows less that of
    training rows, in nats. Rows are those of the lowest machine of `below`, if there is any.
    """

    training: ArrayLike
    held_out: ArrayLike
    below: tuple[RBM, ...] = ()

    def __call__(self, model: RBM) -> dict[str, float]:
        """Of the machine as it is now."""
        trained, held_out = self.training, self.held_out
        for machine in self.below:
            trained, held_out = machine.transform(trained), machine.transform(held_out)
        gap = model.free_energy(held_out).mean() - model.free_energy(trained).mean()
        error = mean_squares(model.rows(held_out), model.reconstruct(held_out))
        return {"reconstruction error": error, "free-energy gap": float(gap)}


@dataclass(frozen=True)
class NetworkEvaluation:
    """`evaluate(network)`: "error %" of a classifier's held-out rows, or "reconstruction error" of an auto-encoder."""

    held_out: NDArray[np.floating]
    labels: NDArray[np.integer] | None = None

    def __call__(self, model: Network) -> dict[str, float]:
        """Of the network as it is now."""
        rows = self.held_out
        if isinstance(model, AutoEncoder):
            return {"reconstruction error": mean_squares(rows, model.reconstruct(rows))}
        if not isinstance(model, Classifier) or self.labels is None:
            raise UsageError(f"held_out has no labels for a {type(model).__name__}, expected held_out=(rows, labels)")
        return {"error %": error_percent(model, rows, self.labels)}


def error_percent(model: Classifier, rows: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The share of rows whose most probable class is another one."""
    found = [model.predict(rows[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE)]
    return 100 * float(np.mean(np.concatenate(found) != labels))
