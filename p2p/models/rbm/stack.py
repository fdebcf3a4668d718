"""A stack of machines: each learns the hidden means of the one below, one layer after the other.

Source: Hinton, Osindero and Teh, A Fast Learning Algorithm for Deep Belief Nets (Neural Computation 18, 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gossip.arguments import integer, series
from gossip.errors import UsageError
from p2p.models.rbm.machine import RBM, Chance, generator
from p2p.models.rbm.options import CD
from p2p.models.rbm.training import Trainer
from p2p.models.rbm.units import Floats


class Stack:
    """Machines on top of each other: `Stack([784, 500, 2000])` has two, `layers[0]` of 784 and 500 units.

    `visible` is of the lowest layer; those above have units of 0 and 1. The arrays are attributes of the stack, `W0`,
    `b0`, `c0`, `W1` and so on, as `DeepDist(stack)` needs them, and the machines of `layers` are made of them.
    """

    def __init__(
        self, sizes: Sequence[int], visible: str = "bernoulli", seed: Chance = 0, dtype: str = "float32"
    ) -> None:
        counts = series("sizes", sizes, lambda name, each: integer(name, each, 1), "a list of at least two counts")
        if len(counts) < 2:
            raise UsageError(f"sizes={sizes!r}, expected at least two: units of the data, and of one hidden layer")
        random = generator(seed)
        self.sizes, self.visible = counts, visible
        for number, (below, above) in enumerate(pairwise(counts)):
            layer = RBM(below, above, visible, random, dtype)
            vars(self).update({f"W{number}": layer.W, f"b{number}": layer.b, f"c{number}": layer.c})

    @property
    def layers(self) -> list[RBM]:
        """The machines, the lowest first; what is trained of them in place is trained of the stack."""
        own = vars(self)
        return [
            RBM.of(own[f"W{n}"], own[f"b{n}"], own[f"c{n}"], "bernoulli" if n else self.visible)
            for n in range(len(self.sizes) - 1)
        ]

    def transform(self, v: ArrayLike) -> Floats:
        """Hidden means of the highest layer given rows of the lowest one's visible units; (rows, sizes[-1])."""
        for layer in self.layers:
            v = layer.transform(v)
        return np.asarray(v)

    def reconstruct(self, v: ArrayLike) -> Floats:
        """Means of the visible units given those of the highest layer given `v`; (rows, sizes[0])."""
        h = self.transform(v)
        for layer in reversed(self.layers):
            h = layer.units.means(h @ layer.W.T + layer.b)
        return h


def pretrain(
    layers: Sequence[RBM],
    blocks: Iterable[ArrayLike],
    options: CD | Sequence[CD],
    random: Chance,
    epochs: int | Sequence[int] = 1,
    on_epoch: Callable[[int, int], Any] | None = None,
) -> None:
    """Train `layers` greedily and in place, the lowest first; each then turns the blocks into those of the next.

    `blocks` are arrays of rows of the lowest layer's visible units. They are kept in memory, as are the hidden means of
    one layer at a time. Blocks come in a new order each epoch. `options` and `epochs` are for all layers or one for
    each. `on_epoch(layer, epoch)` is called after each epoch.
    """
    random = generator(random)
    kept: list[Any] = [layers[0].rows(block, "block") for block in blocks] if layers else []
    if not kept:
        raise UsageError(f"{len(layers)} layers and no block of rows, expected at least one of each")
    ways: list[CD] = for_each("options", options, CD, layers)
    counts = [integer("epochs", each, 0) for each in for_each("epochs", epochs, int | np.integer, layers)]
    for number, (layer, way, count) in enumerate(zip(layers, ways, counts, strict=True)):
        trainer = Trainer(layer, way, max(map(len, kept)), random)
        for epoch in range(count):
            for index in random.permutation(len(kept)):
                trainer.step(kept[index])
            if on_epoch is not None:
                on_epoch(number, epoch)
        if layer is not layers[-1]:
            kept = [layer.transform(block) for block in kept]


def for_each(name: str, value: Any, kind: Any, layers: Sequence[RBM]) -> list[Any]:
    """One value of `kind` for each of the layers, which may be the same for all; else `UsageError`."""
    if isinstance(value, kind):
        return [value] * len(layers)
    if not isinstance(value, list | tuple) or len(value) != len(layers) or not all(isinstance(v, kind) for v in value):
        what = "CD(...)" if kind is CD else "integer"
        raise UsageError(f"{name}={value!r:.80}, expected one {what} for all layers, or a list of {len(layers)}")
    return list(value)
