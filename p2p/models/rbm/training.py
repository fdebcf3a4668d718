"""Training in one process: steps with momentum along gradients, with all state in sight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.arguments import instance, integer
from gossip.errors import UsageError
from p2p.models.rbm.gradients import Gradient, Workspace, cd_gradient, new_chains, pcd_gradient
from p2p.models.rbm.machine import RBM, Chance, generator
from p2p.models.rbm.options import CD, PCD


class Velocity:
    """Momentum: each array's last step; Polyak's heavy ball, as in Hinton's guide, section 9.

    velocity = momentum velocity - rate gradient, and this is added to the arrays.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.of = {name: np.zeros_like(array) for name, array in arrays.items()}

    def step(self, arrays: Mapping[str, NDArray[Any]], gradient: Gradient, rate: float, momentum: float = 0.0) -> None:
        """Change `arrays` in place, down the gradient, which is used up."""
        for name, velocity in self.of.items():
            kind = velocity.dtype.type
            velocity *= kind(momentum)
            change = gradient[name]
            change *= kind(rate)
            velocity -= change
            array = arrays[name]
            array += velocity


class Trainer:
    """Steps of one machine: its velocity, the chains of PCD and the memory of a step, which is made once.

    `rows` is how many rows the largest block has. With `PCD` there are as many chains, if `chains` says no other.
    """

    def __init__(self, rbm: RBM, options: CD, rows: int, random: Chance, chains: int | None = None) -> None:
        self.rbm, self.options = rbm, instance("options", options, CD)
        rows = integer("rows", rows, 1)
        count = rows if chains is None else integer("chains", chains, 1)
        self.random = generator(random)
        self.workspace = Workspace(rbm, rows, max(rows, count))
        self.velocity = Velocity(_arrays(rbm))
        self.chains = new_chains(rbm, count, self.random) if isinstance(options, PCD) else None

    def step(self, block: ArrayLike, rate: float | None = None, momentum: float | None = None) -> None:
        """Train the machine on a block of rows, in place; `rate` and `momentum` of this step, else the options'."""
        options = self.options
        if self.chains is not None:
            assert isinstance(options, PCD)
            gradient, self.chains = pcd_gradient(self.rbm, block, self.chains, self.random, options, self.workspace)
        else:
            gradient = cd_gradient(self.rbm, block, self.random, options, self.workspace)
        self.velocity.step(
            _arrays(self.rbm),
            gradient,
            options.rate if rate is None else rate,
            options.momentum if momentum is None else momentum,
        )


def train(rbm: RBM, blocks: Iterable[ArrayLike], options: CD, random: Chance, epochs: int = 1) -> None:
    """Train `rbm` in place on blocks of rows, `epochs` times over all of them, in the order they have.

    `blocks` is gone through once an epoch: a list, or whatever can be iterated anew.
    """
    kept = [rbm.rows(block, "block") for block in blocks]
    if not kept:
        raise UsageError("no block of rows, expected at least one")
    trainer = Trainer(rbm, options, max(map(len, kept)), random)
    for _ in range(integer("epochs", epochs, 1)):
        for block in kept:
            trainer.step(block)


def _arrays(rbm: RBM) -> dict[str, NDArray[Any]]:
    return {"W": rbm.W, "b": rbm.b, "c": rbm.c}
