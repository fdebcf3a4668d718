"""Gradients for `DeepDist`: steps on blocks of rows, and what they changed in all is the update.

    dd.train(data, ContrastiveDivergence(CD(rate=0.1)), chunk_rows=...)      a machine
    dd.train(data, BackPropagation(FineTuning(rate=0.3)), chunk_rows=...)    a network

A step moves the worker's copy at once, so that the next one goes on from there; peers exchange after each chunk.
Velocities and the chains of PCD stay with the worker from chunk to chunk, and begin anew with each training: neither is
a sum, to which peers could add (see `p2p.descents`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import check_fields, flag, instance, integer
from gossip.errors import UsageError
from p2p.descents import progress
from p2p.models.rbm.elements import blocks, rows_in
from p2p.models.rbm.gradients import Gradient
from p2p.models.rbm.machine import RBM, generator
from p2p.models.rbm.networks import AutoEncoder, Classifier, FineTuning, Network, arrays, gradient
from p2p.models.rbm.options import CD
from p2p.models.rbm.training import Trainer, Velocity
from p2p.worker.combine import OUTER
from p2p.worker.running import copy_of, current
from p2p.worker.working_copy import WorkingCopy

OUTER_MOMENTUM_MAX = 0.8
"""Of local steps whose sums are outer steps. 784-500-500-2000-10 on MNIST, pretrained, six passes, four peers: rate .8
and momentum .8 came to 2.2 % errors so, .3 and .9 to 2.9; by "mean" .5 and .9 came to 2.5, one process to 2.0."""
BLOCK_ROWS = 100
"""Hinton's guide, section 5: a tenth of it to this, so that products of matrices are fast."""


@dataclass(frozen=True)
class ContrastiveDivergence:
    """`gradient(model, rows)` of an `RBM`: CD or PCD, as the class of `options` says.

    Rows are those of the lowest machine of `below`, if there is any: machines that are trained already, the lowest
    first, and turn rows into their hidden means. Labels beside the rows are not looked at.
    """

    options: CD = field(default_factory=lambda: CD(rate=0.1))
    block_rows: int = BLOCK_ROWS
    """Rows of a step."""
    below: tuple[RBM, ...] = ()
    shared: bool = False
    """The update is what steps changed, over the number of peers: for a master, which adds updates as they come."""

    rows_in = staticmethod(rows_in)

    @property
    def combine(self) -> str | None:
        """How updates of peers add up, if `train` is not told (`p2p.worker.combine`): whole steps overshoot."""
        return None if self.shared else "mean"

    def __post_init__(self) -> None:
        check_fields(self)
        instance("options", self.options, CD)
        integer("block_rows", self.block_rows, 1)
        flag("shared", self.shared)
        if not isinstance(self.below, tuple) or not all(isinstance(machine, RBM) for machine in self.below):
            raise UsageError(f"below={self.below!r:.80}, expected a tuple of RBM, the lowest first")

    def __call__(self, model: RBM, rows: Iterable[Any]) -> Gradient:
        """Train `model`, which is the worker's own copy, and return what changed; {} for no rows."""
        instance("model", model, RBM)
        trainer = _kept(model, lambda: Trainer(model, self.options, self.block_rows, 0))
        trainer.random = generator(_drawn_seed())
        before = _copies({"W": model.W, "b": model.b, "c": model.c})
        width = self.below[0].n_visible if self.below else model.n_visible
        count = 0
        for block, _ in blocks(rows, width, self.block_rows):
            for machine in self.below:
                block = machine.transform(block)
            trainer.step(block)
            count += len(block)
        return _changes(before, {"W": model.W, "b": model.b, "c": model.c}, self.shared) if count else {}


@dataclass(frozen=True)
class BackPropagation:
    """`gradient(model, rows)` of a `Classifier`, whose rows have labels, or of an `AutoEncoder`.

    Where `options.falling`, the rate falls along a line to 0 over the training, by partitions.
    """

    options: FineTuning = field(default_factory=FineTuning)
    block_rows: int = BLOCK_ROWS
    """Rows of a step."""
    shared: bool = False
    """As for `ContrastiveDivergence`."""

    rows_in = staticmethod(rows_in)

    @property
    def combine(self) -> str | None:
        """How updates of peers add up, if `train` is not told (`p2p.worker.combine`): whole steps overshoot. Outer
        steps go further than means, and do not go with more momentum than this."""
        if self.shared:
            return None
        return OUTER if self.options.momentum <= OUTER_MOMENTUM_MAX else "mean"

    def __post_init__(self) -> None:
        check_fields(self)
        instance("options", self.options, FineTuning)
        integer("block_rows", self.block_rows, 1)
        flag("shared", self.shared)

    def __call__(self, model: Network, rows: Iterable[Any]) -> Gradient:
        """Train `model`, which is the worker's own copy, and return what changed; {} for no rows."""
        instance("model", model, Network)
        memory = _kept(model, lambda: _Descent(arrays(model)))
        random, options = generator(_drawn_seed()), self.options
        rate = options.rate * (1 - progress() if options.falling and current() is not None else 1)
        named, count = arrays(model), 0
        before = _copies(named)
        for block, labels in blocks(rows, len(model.weights[0]), self.block_rows):
            target = _learned(model, block, labels)
            memory.found = gradient(model, target, random, options.dropout, memory.found)
            memory.velocity.step(named, memory.found, rate, options.momentum)
            count += len(block)
        return _changes(before, named, self.shared) if count else {}


class _Descent:
    """What a worker keeps of the training of a network."""

    def __init__(self, named: Mapping[str, NDArray[Any]]) -> None:
        self.velocity = Velocity(named)
        self.found: Gradient | None = None


def _learned(model: Network, block: NDArray[Any], labels: NDArray[Any] | None) -> Any:
    """The block as `gradient` takes it."""
    if isinstance(model, AutoEncoder):
        return block
    if isinstance(model, Classifier) and labels is None:
        raise UsageError("rows have no labels, expected (row, label) or (block, labels) for a Classifier")
    return block, labels


# ------------------------------------------------------------------------------------------------- what stays here

T = TypeVar("T")
_memory: weakref.WeakKeyDictionary[WorkingCopy, tuple[int, Any]] = weakref.WeakKeyDictionary()
"""By the worker's copy of the model: the number of the training, and what is kept in it."""


def _kept(model: Any, make: Callable[[], T]) -> T:
    """What an earlier chunk of this training left at this worker, or else a new one. Outside of a task it is new."""
    copy = copy_of(model)
    if copy is None:
        return make()
    if copy not in _memory or _memory[copy][0] != copy.training:
        _memory[copy] = copy.training, make()
    kept: T = _memory[copy][1]
    return kept


def _drawn_seed() -> int:
    """Of numpy's global state, which is set for each chunk: so another attempt draws the same."""
    return int(np.random.randint(1 << 31))


def _copies(named: Mapping[str, NDArray[Any]]) -> Gradient:
    return {name: array.copy() for name, array in named.items()}


def _changes(before: Gradient, now: Mapping[str, NDArray[Any]], shared: bool) -> Gradient:
    """In the place of `before`."""
    task = current()
    for name, array in before.items():
        np.subtract(now[name], array, out=array)
        if shared and task is not None:
            array /= array.dtype.type(task.peers)
    return before
