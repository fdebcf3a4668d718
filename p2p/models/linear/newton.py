"""Newton's method by partitions: each keeps a parabola of its own loss, and the model is the minimum of their sum.

    f_p(w) = sum of the losses of partition p;   w_p: where its gradient was taken last
    q_p(w) = 1/2 w' H_p w - b_p' w,              H_p: curvature at w_p,   b_p = H_p w_p - gradient of f_p at w_p
    w      = argmin of sum q_p(w) + n (l1 |w|_1 + l2 / 2 |w|^2)

Dense features are taken less a center of their partition, and the intercept is that of the center: features far from 0
beside their spread would leave few digits of H_p. The parabolas are summed at the mean of the centers.

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
    """The model that peers train: the parabolas of all partitions, of `size` weights of so many features."""

    def __init__(self, partitions: int, size: int, features: int) -> None:
        self.curvature = np.zeros((partitions * size, size))
        """Row `p * size + i` is row i of H_p."""
        self.slope = np.zeros((partitions * size, 1))
        """b_p, likewise."""
        self.center = np.zeros((partitions, features))
        """What each partition's features are less of, there."""
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
        w = self.start if self.first else self.minimum(model)
        center: Array | None = None
        curvature, gradient, loss, count = np.zeros((size, size)), np.zeros(size), 0.0, 0
        for x, labels in blocks(rows, self.features):
            y = self.loss.targets(labels, self.outputs)
            if not len(y):
                continue
            if center is None:
                center = self._center(x)
                w = self._seen_from(center, w)
            if self.bias:
                x = with_ones(less(x, center))
            scores = np.asarray(x @ w.reshape(-1, self.outputs))
            curved = self.loss.bound if model.careful[0] else self.loss.curvature
            add_curvature(curvature, x, curved(scores))
            gradient += np.asarray(x.T @ self.loss.slope(scores, y)).reshape(-1)
            loss += float(self.loss.value(scores, y).sum())
            count += len(y)
        here = slice(partition * size, (partition + 1) * size)
        new = {
            "curvature": (here, curvature),
            "slope": (here, (curvature @ w - gradient)[:, None]),
            "center": (slice(partition, partition + 1), np.zeros(self.features) if center is None else center),
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
        curvature, slope, center = self._total(model)
        penalized = np.arange(len(slope)) < self.features * self.outputs
        found = minimum(curvature, slope, count * self.l1 * penalized, count * self.l2 * penalized)
        return self._seen_from(-center, found)

    def gain(self, model: Parabolas, step: Array) -> float:
        """By how much such a step from the minimum raises the mean of the parabolas."""
        curvature, _, center = self._total(model)
        step = self._seen_from(center, step)
        return float(step @ curvature @ step / 2 / model.totals[:, 0].sum())

    def _total(self, model: Parabolas) -> tuple[Array, Array, Array]:
        """(curvature, slope, center) of the sum of all parabolas."""
        size, rows = len(self.start), model.totals[:, 0]
        center = rows @ model.center / rows.sum()
        curvature, slope = np.zeros((size, size)), np.zeros(size)
        for partition, away in enumerate(model.center - center):
            here = slice(partition * size, (partition + 1) * size)
            h, b = model.curvature[here], model.slope[here, 0]
            if rows[partition] and away.any():
                h, b = h.copy(), b.copy()
                by_weight = h.reshape(-1, self.outputs, len(away) + 1, self.outputs)
                by_weight[:-1] += away[:, None, None, None] * by_weight[-1]
                by_weight[:, :, :-1] += by_weight[:, :, -1:] * away[:, None]
                b.reshape(-1, self.outputs)[:-1] += away[:, None] * b[-self.outputs :]
            curvature += h
            slope += b
        return curvature, slope, center

    def _center(self, x: Features) -> Array:
        """Of features like these, (features,); 0 for sparse ones, which are to stay so, or without an intercept."""
        return np.zeros(self.features) if sparse.issparse(x) or not self.bias else x.mean(axis=0)

    def _seen_from(self, center: Array, w: Array) -> Array:
        """The same weights for features less `center`: another intercept."""
        if not center.any():
            return w
        moved = w.reshape(-1, self.outputs).copy()
        moved[-1] += center @ moved[:-1]
        return moved.reshape(-1)


def less(x: Features, center: Array) -> Features:
    """Features less a center; of sparse ones a dense array, if it is not 0."""
    if not center.any():
        return x
    return (x.toarray() if sparse.issparse(x) else x) - center


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
