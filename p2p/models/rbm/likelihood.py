"""The partition function: by enumeration where one side is small, else by annealed importance sampling.

Sources: Salakhutdinov and Murray, On the Quantitative Analysis of Deep Belief Networks (ICML 2008), for the
sequence of distributions between a base-rate model and the machine; Neal, Annealed Importance Sampling (Statistics and
Computing 11, 2001), for the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gossip.arguments import integer
from gossip.errors import UsageError
from p2p.models.rbm.gradients import Gradient, moments
from p2p.models.rbm.machine import RBM, Chance, checked_rows, generator
from p2p.models.rbm.units import Floats, draw_ones, sigmoid, softplus

ENUMERATED_UNITS_MAX = 20
"""A million states; each further unit doubles the time."""
ENUMERATED_AT_ONCE = 12
"""Units whose states are one block of rows: 4096."""


class Estimate(NamedTuple):
    """Of the logarithm of the partition function."""

    log_z: float
    standard_error: float
    """Of `log_z`, by the spread of the chains' weights. It knows only of states that some chain came to."""


def exact_log_z(rbm: RBM) -> float:
    """The logarithm of the partition function, summed over all states of the side that has at most 20 units.

    `UsageError` if no side has so few units; Gaussian units cannot be enumerated.
    """
    logs = [log_weights for _, log_weights in _enumerated(rbm)]
    return _log_sum_exp(np.concatenate(logs))


def exact_gradient(rbm: RBM, v: ArrayLike) -> Gradient:
    """The gradient of minus the mean log-likelihood of rows `v`, with the machine's expectations by enumeration."""
    log_z = exact_log_z(rbm)
    found = {name: -array.astype(np.float64) for name, array in moments(rbm, v).items()}
    by_hidden = _side(rbm) == "hidden"
    for states, log_weights in _enumerated(rbm):
        share = np.exp(log_weights - log_z)
        if by_hidden:
            visible = rbm.units.means(states @ rbm.W.T.astype(np.float64) + rbm.b)
            of_model = {"W": visible.T @ (share[:, None] * states), "b": share @ visible, "c": share @ states}
        else:
            hidden = share[:, None] * sigmoid(states @ rbm.W.astype(np.float64) + rbm.c)
            of_model = {"W": states.T @ hidden, "b": share @ states, "c": hidden.sum(axis=0)}
        for name, array in of_model.items():
            found[name] += array
    return {name: array.astype(rbm.W.dtype) for name, array in found.items()}


def ais(rbm: RBM, means: ArrayLike, random: Chance, chains: int = 100, betas: int | ArrayLike = 1000) -> Estimate:
    """Estimate the logarithm of the partition function by annealed importance sampling.

    `means`, (n_visible,), are those of the data: the base-rate model has units of such means and no weights. `betas`
    are the inverse temperatures from 0 to 1, or how many of them, evenly spaced; the more, the smaller the error.
    """
    random, chains = generator(random), integer("chains", chains, 2)
    means = checked_rows("means", np.atleast_2d(np.asarray(means)), rbm.n_visible, rbm.W.dtype, rbm.units.range())
    base = rbm.units.bias_of(means[0]).astype(rbm.W.dtype)
    ladder = _ladder(betas)
    start = rbm.units.means(np.tile(base, (chains, 1)))
    v = rbm.units.draw(start, random, np.empty_like(start), start)
    log_w = np.zeros(chains)
    scratch = np.empty(chains * max(rbm.n_visible, rbm.n_hidden), rbm.W.dtype)
    for low, high in pairwise(ladder):
        x = v @ rbm.W + rbm.c
        log_w += (high - low) * (rbm.units.log_weight(v, rbm.b) - rbm.units.log_weight(v, base))
        log_w += (softplus(high * x) - softplus(low * x)).sum(axis=1, dtype=np.float64)
        if high == ladder[-1]:
            break
        h = sigmoid(high * x)
        draw_ones(h, random, scratch[: h.size].reshape(h.shape), h)
        v = high * (h @ rbm.W.T)
        v += (1 - high) * base + high * rbm.b
        rbm.units.means(v)
        rbm.units.draw(v, random, scratch[: v.size].reshape(v.shape), v)
    base_log_z = float(rbm.units.log_sum(np.zeros_like(base), base)) + rbm.n_hidden * math.log(2)
    log_mean = _log_sum_exp(log_w) - math.log(chains)
    spread = float(np.exp(log_w - log_mean).std(ddof=1)) / math.sqrt(chains)
    return Estimate(base_log_z + log_mean, spread)


def _ladder(betas: int | ArrayLike) -> list[float]:
    """Plain floats: a numpy float64 would make float64 of a float32 array."""
    if isinstance(betas, int | np.integer):
        return [float(beta) for beta in np.linspace(0, 1, integer("betas", betas, 2))]
    ladder = np.asarray(betas, np.float64)
    if ladder.ndim != 1 or len(ladder) < 2 or ladder[0] != 0 or ladder[-1] != 1 or not (np.diff(ladder) > 0).all():
        raise UsageError(f"betas={betas!r:.80}, expected how many there are, or numbers that rise from 0 to 1")
    return [float(beta) for beta in ladder]


def _side(rbm: RBM) -> str:
    """Which side is enumerated."""
    sides = {"hidden": rbm.n_hidden}
    if rbm.units.name == "bernoulli":
        sides["visible"] = rbm.n_visible
    side = min(sides, key=lambda name: sides[name])
    if sides[side] > ENUMERATED_UNITS_MAX:
        counts = " and ".join(f"{count} {name}" for name, count in sides.items())
        raise UsageError(
            f"{counts} units, expected at most {ENUMERATED_UNITS_MAX} on a side whose states can be enumerated: "
            "estimate the partition function with `ais`"
        )
    return side


def _enumerated(rbm: RBM) -> Iterator[tuple[Floats, Floats]]:
    """All states of a side, in blocks of rows, and the logarithms of their unnormalized probabilities; float64."""
    side = _side(rbm)
    W, b, c = (array.astype(np.float64) for array in (rbm.W, rbm.b, rbm.c))
    for states in _states(rbm.n_hidden if side == "hidden" else rbm.n_visible):
        if side == "hidden":
            yield states, states @ c + rbm.units.log_sum(states @ W.T, b)
        else:
            yield states, states @ b + softplus(states @ W + c).sum(axis=1)


def _states(units: int) -> Iterator[Floats]:
    """All rows of `units` zeros and ones, 4096 at a time."""
    at_once = min(units, ENUMERATED_AT_ONCE)
    bits = np.arange(units)
    for first in range(0, 1 << units, 1 << at_once):
        numbers = np.arange(first, first + (1 << at_once))
        yield (numbers[:, None] >> bits & 1).astype(np.float64)


def _log_sum_exp(logs: Floats) -> float:
    highest = float(logs.max())
    return highest + math.log(float(np.exp(logs - highest).sum()))
