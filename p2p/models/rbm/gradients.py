"""The gradient of one block of rows: contrastive divergence, with chains at the data or persistent ones.

Both are pure functions of machine, block, chance and options; the chains of PCD are a value that comes in and goes out.
The result is that of minus the log-likelihood per row, which descents go down, as of any loss (`p2p.descents`). It has
the names of the machine's arrays.

    block -> V[:n]   H[:n] = means, -1/n         one product for W:   V' H = (V1' H1)/m - (V0' H0)/n
    chains -> V[n:]  H[n:] = means, 1/m

A `Workspace` holds V, H and all else that a step writes, so that the next step allocates nothing. What is returned
lies in it, and is valid until the next gradient with the same workspace.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.errors import UsageError
from p2p.models.rbm.machine import RBM, Chance, checked_rows, generator
from p2p.models.rbm.options import CD, PCD
from p2p.models.rbm.units import Floats, draw_ones, sigmoid

Gradient = dict[str, NDArray[Any]]
"""`W`, `b` and `c`, each of the shape and dtype of the machine's."""


class Workspace:
    """Memory for gradients of a machine on blocks of at most `rows` rows and `chains` chains (as many by default)."""

    def __init__(self, rbm: RBM, rows: int, chains: int | None = None) -> None:
        chains = rows if chains is None else chains
        kind, width = rbm.W.dtype, max(rbm.n_visible, rbm.n_hidden)
        self.rows, self.chains = rows, chains
        self.V: Floats = np.empty((rows + chains, rbm.n_visible), kind)
        self.H: Floats = np.empty((rows + chains, rbm.n_hidden), kind)
        self.drawn: Floats = np.empty((chains, rbm.n_hidden), kind)
        self.scratch: Floats = np.empty(max(rows, chains) * width, kind)
        self.W: Floats = np.empty_like(rbm.W)
        self.W_scratch: Floats = np.empty_like(rbm.W)

    def check(self, rbm: RBM, rows: int, chains: int) -> None:
        """`UsageError` unless a block of `rows` rows fits."""
        if self.W.shape != rbm.W.shape or self.W.dtype != rbm.W.dtype:
            raise UsageError(f"workspace for W {self.W.dtype} {self.W.shape}, expected {rbm.W.dtype} {rbm.W.shape}")
        if rows > self.rows or chains > self.chains:
            raise UsageError(
                f"workspace for {self.rows} rows and {self.chains} chains, got {rows} and {chains}: make a larger one"
            )

    def uniforms(self, like: Floats) -> Floats:
        """Scratch memory of the shape of `like`."""
        return self.scratch[: like.size].reshape(like.shape)


def cd_gradient(
    rbm: RBM, block: ArrayLike, random: Chance, options: CD | None = None, workspace: Workspace | None = None
) -> Gradient:
    """The CD-k gradient of rows `block`, (rows, n_visible), with weight decay and sparsity as `options` say.

    Rate and momentum are the caller's (`p2p.models.rbm.training`).
    """
    options = CD() if options is None else options
    if isinstance(options, PCD):
        raise UsageError("cd_gradient got PCD(...), expected CD(...): PCD has chains of its own, pcd_gradient")
    space, n = _begin(rbm, block, None, workspace)
    random = generator(random)
    V, H = _views(space, n, n)
    h = draw_ones(H[:n], random, space.uniforms(H[:n]), space.drawn[:n])
    _run(rbm, h, V[n:], H[n:], random, options, space)
    return _contrast(rbm, V, H, n, options, space)


def pcd_gradient(
    rbm: RBM,
    block: ArrayLike,
    chains: ArrayLike,
    random: Chance,
    options: PCD | None = None,
    workspace: Workspace | None = None,
) -> tuple[Gradient, Floats]:
    """The PCD-k gradient of rows `block`, and the chains as they are afterwards, a new array.

    `chains`, (chains, n_hidden), are hidden units of 0 and 1 (`new_chains`); their number need not be that of the rows.
    """
    options = PCD() if options is None else options
    if not isinstance(options, PCD):
        raise UsageError("pcd_gradient got CD(...), expected PCD(...)")
    before = checked_rows("chains", chains, rbm.n_hidden, rbm.W.dtype, (0.0, 1.0))
    m = len(before)
    space, n = _begin(rbm, block, m, workspace)
    random = generator(random)
    V, H = _views(space, n, m)
    h = space.drawn[:m]
    np.copyto(h, before)
    _run(rbm, h, V[n:], H[n:], random, options, space)
    after = draw_ones(H[n:], random, space.uniforms(h), np.empty_like(h))
    return _contrast(rbm, V, H, n, options, space), after


def new_chains(rbm: RBM, chains: int, random: Chance) -> Floats:
    """Chains for `pcd_gradient`: hidden units drawn by their biases alone, (chains, n_hidden)."""
    means = sigmoid(np.tile(rbm.c, (chains, 1)))
    return draw_ones(means, generator(random), np.empty_like(means), means)


def moments(rbm: RBM, v: ArrayLike, weights: ArrayLike | None = None) -> Gradient:
    """Means over rows, or sums with `weights` (rows,), of v h', v and h, where h is the mean given v.

    The gradient of minus the log-likelihood is those of the model, less those of the data.
    """
    rows = rbm.rows(v)
    H = rbm.transform(rows)
    share = np.full(len(rows), 1 / len(rows)) if weights is None else np.asarray(weights, np.float64)
    if share.shape != (len(rows),):
        raise UsageError(f"weights have shape {share.shape}, expected ({len(rows)},): one for each row of v")
    weighted = share[:, None].astype(rbm.W.dtype) * H
    return {"W": rows.T @ weighted, "b": (share @ rows).astype(rbm.W.dtype), "c": weighted.sum(axis=0)}


def _begin(rbm: RBM, block: ArrayLike, chains: int | None, workspace: Workspace | None) -> tuple[Workspace, int]:
    """The rows in V[:n], and their hidden means in H[:n]."""
    rows = rbm.rows(block, "block")
    n = len(rows)
    space = Workspace(rbm, n, chains) if workspace is None else workspace
    space.check(rbm, n, n if chains is None else chains)
    np.copyto(space.V[:n], rows)
    _hidden_means(rbm, space.V[:n], space.H[:n])
    return space, n


def _views(space: Workspace, n: int, m: int) -> tuple[Floats, Floats]:
    return space.V[: n + m], space.H[: n + m]


def _run(
    rbm: RBM, h: Floats, v: Floats, means: Floats, random: np.random.Generator, options: CD, space: Workspace
) -> None:
    """`k` steps from hidden units `h`, which are used up; `v` and the hidden `means` given it are those of the end."""
    for step in range(options.k):
        np.matmul(h, rbm.W.T, out=v)
        v += rbm.b
        rbm.units.means(v)
        if not options.visible_means:
            rbm.units.draw(v, random, space.uniforms(v), v)
        _hidden_means(rbm, v, means)
        if step + 1 < options.k:
            draw_ones(means, random, space.uniforms(h), h)


def _hidden_means(rbm: RBM, v: Floats, out: Floats) -> None:
    np.matmul(v, rbm.W, out=out)
    out += rbm.c
    sigmoid(out)


def _contrast(rbm: RBM, V: Floats, H: Floats, n: int, options: CD, space: Workspace) -> Gradient:
    """The difference between chains, V[n:], and data, V[:n]; H is used up."""
    H[:n] *= -1 / n
    H[n:] *= 1 / (len(H) - n)
    W = np.matmul(V.T, H, out=space.W)
    b = V[n:].mean(axis=0)
    b -= V[:n].mean(axis=0)
    c = H.sum(axis=0)
    if options.sparsity is not None:
        c -= options.sparsity.cost * (options.sparsity.target + H[:n].sum(axis=0))
    if options.weight_decay:
        W += np.multiply(rbm.W, rbm.W.dtype.type(options.weight_decay), out=space.W_scratch)
    if not np.isfinite(c).all():
        raise UsageError("the gradient has NaN or infinite numbers: the machine has diverged; use a smaller rate")
    return {"W": W, "b": b, "c": c}
