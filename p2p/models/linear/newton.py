"""Newton's method by partitions: each keeps a parabola of its own loss, and the model is the minimum of their sum.

    f_p(w) = sum of the losses of partition p;   w_p: where its gradient was taken last
    q_p(w) = 1/2 w' H_p w - b_p' w,              H_p: curvature at w_p,   b_p = H_p w_p - gradient of f_p at w_p
    w      = argmin of sum q_p(w) + n (l1 |w|_1 + l2 / 2 |w|^2)

A task takes w from its replica, and replaces H_p and b_p: its update is the difference of the new ones to those that
the replica has. Nothing is to be chosen, no rate and no rule of merging: the sum of parabolas does not depend on who
computed them, or in which order they come. An update that is lost, or computed next to another of the same partition,
is set right by the partition's next one, since all of its state is in the model.

Source: Rodomanov and Kropotov, A Superlinearly-Convergent Proximal Newton-Type Method for the Optimization of Finite
Sums (ICML 2016), with a partition in the place of a row. Where the loss rose, the next pass takes the bounds of
`p2p.models.linear.losses` for H_p: each step then goes down (Mairal, MISO, arXiv:1402.4419).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, sparse

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.compiled import compiled
from p2p.models.linear.blocks import Features, blocks, rows_in
from p2p.models.linear.losses import Loss
from p2p.worker.running import current

SWEEPS_MAX = 1000
"""Over all weights, to find a minimum with l1; a hundred are many."""
SETTLED = 1e-10
"""A sweep that changes the weights by less than this part of the largest is the last one."""


class Parabolas:
    """The model that peers train: the parabolas of all partitions, of `size` weights."""

    def __init__(self, partitions: int, size: int) -> None:
        self.curvature = np.zeros((partitions * size, size))
        """Row `p * size + i` is row i of H_p."""
        self.slope = np.zeros((partitions * size, 1))
        """b_p, likewise."""
        self.totals = np.zeros((partitions, 2))
        """Of each partition: its rows, and f_p(w_p)."""
        self.careful = np.zeros(1)
        """1: take bounds for curvatures."""


@dataclass(frozen=True)
class Newton:
    """The gradient: a callable, and what it has to know."""

    loss: Loss
    features: int
    outputs: int
    l1: float
    l2: float
    bias: bool
    start: Array
    """(size,): where all gradients of the first pass are taken; the minimum of few partitions may be far off."""
    first: bool = False
    """This is the first pass."""

    rows_in = staticmethod(rows_in)

    def __call__(self, model: Parabolas, rows: Iterable[Any]) -> dict[str, Array]:
        """The partition's new parabola, less its old one."""
        task = current()
        partition = 0 if task is None else task.partition
        size = len(self.start)
        w = (self.start if self.first else self.minimum(model)).reshape(-1, self.outputs)
        curvature, gradient, loss, count = np.zeros((size, size)), np.zeros(size), 0.0, 0
        for x, labels in blocks(rows, self.features):
            y = self.loss.targets(labels, self.outputs)
            if self.bias:
                x = with_ones(x)
            scores = np.asarray(x @ w)
            curved = self.loss.bound if model.careful[0] else self.loss.curvature
            add_curvature(curvature, x, curved(scores))
            gradient += np.asarray(x.T @ self.loss.slope(scores, y)).reshape(-1)
            loss += float(self.loss.value(scores, y).sum())
            count += len(y)
        here = slice(partition * size, (partition + 1) * size)
        new = {
            "curvature": (here, curvature),
            "slope": (here, (curvature @ w.reshape(-1) - gradient)[:, None]),
            "totals": (slice(partition, partition + 1), np.array([[count, loss]])),
        }
        update = {}
        for name, (rows_of_it, value) in new.items():
            old: Array = getattr(model, name)
            update[name] = np.zeros_like(old)
            update[name][rows_of_it] = value - old[rows_of_it]
        return update

    def minimum(self, model: Parabolas) -> Array:
        """w, (size,); `start` as long as no partition was seen."""
        count = model.totals[:, 0].sum()
        if count <= 0:
            return self.start
        size = len(self.start)
        curvature = model.curvature.reshape(-1, size, size).sum(axis=0)
        slope = model.slope.reshape(-1, size).sum(axis=0)
        penalized = np.arange(size) < self.features * self.outputs
        return minimum(curvature, slope, count * self.l1 * penalized, count * self.l2 * penalized)


def with_ones(x: Features) -> Features:
    """The features and one more, which is 1 in each row: its weight is the intercept."""
    ones = np.ones((x.shape[0], 1))
    return sparse.hstack([x, sparse.csr_array(ones)], format="csr") if sparse.issparse(x) else np.hstack([x, ones])


def add_curvature(total: Array, x: Features, curved: Array) -> None:
    """Add the sum over rows of x x' times the rows' curvature, (rows, outputs, outputs), by weight.

    Weight `f * outputs + k` is that of feature f and output k, in both dimensions of `total`.
    """
    outputs = curved.shape[1]
    for k in range(outputs):
        for other in range(k, outputs):
            scale = curved[:, k, other]
            if sparse.issparse(x):
                product = ((x.T @ sparse.diags_array(scale)) @ x).toarray()
            else:
                product = (x.T * scale) @ x
            total[k::outputs, other::outputs] += product
            if other > k:
                total[other::outputs, k::outputs] += product.T


def minimum(curvature: Array, slope: Array, l1: Array, l2: Array) -> Array:
    """argmin of 1/2 w' H w - b' w + sum l1_i |w_i| + l2_i / 2 w_i^2, (size,); of many the smallest.

    Weights that nothing depends on are 0.
    """
    h = curvature + np.diag(l2)
    scale = np.sqrt(np.diagonal(h))
    used = scale > 0
    w = np.zeros(len(slope))
    scale = scale[used]
    h = h[np.ix_(used, used)] / np.outer(scale, scale)
    values, vectors = linalg.eigh(h)
    kept = values > len(scale) * np.finfo(float).eps * values.max(initial=0)
    inverse = np.divide(1, values, out=np.zeros_like(values), where=kept)
    found = vectors @ (inverse * (vectors.T @ (slope[used] / scale)))
    if l1.any():
        found = _soften(h, slope[used] / scale, l1[used] / scale, found)
    w[used] = found / scale
    if not np.isfinite(w).all():
        raise UsageError("the weights are NaN or infinite, expected numbers: scale the features down, or set l2")
    return w


@compiled()
def _soften(h: Array, b: Array, l1: Array, w: Array) -> Array:
    """Coordinate descent for a minimum with l1, of h with ones on its diagonal, from w."""
    w = w.copy()
    rest = b - h @ w
    for _ in range(SWEEPS_MAX):
        moved, largest = 0.0, 0.0
        for i in range(len(w)):
            z = rest[i] + w[i]
            new = np.sign(z) * max(abs(z) - l1[i], 0.0)
            step = new - w[i]
            if step != 0.0:
                rest -= step * h[i]
                w[i] = new
            moved, largest = max(moved, abs(step)), max(largest, abs(new))
        if moved <= SETTLED * largest:
            break
    return w
