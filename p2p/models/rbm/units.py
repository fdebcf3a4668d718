"""Units of a layer: their mean given their input, draws from it, and what they add to energy and partition function.

The input of a unit is its bias and the weighted sum of the other layer. Arrays are float32 or float64, and what has
`out` writes there, so that a training step allocates nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import one_of

Floats = NDArray[Any]
"""float32 or float64, as the parameters of the machine are."""


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) in the place of `x`, which is returned: as (1 + tanh(x/2)) / 2, which cannot overflow.

    numpy has vector instructions for tanh: four passes of it take less time than one of `scipy.special.expit`.
    """
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5
    return x


def softplus(x: Floats) -> Floats:
    """log(1 + exp(x)), a new array; finite for every finite `x`."""
    small = np.abs(x)
    np.negative(small, out=small)
    np.exp(small, out=small)
    np.log1p(small, out=small)
    small += np.maximum(x, 0)
    return small


def draw_ones(means: Floats, random: np.random.Generator, uniforms: Floats, out: Floats) -> Floats:
    """1 with the probability `means`, else 0, into `out`, which may be `means`; `uniforms` of its shape is used up."""
    random.random(out=uniforms, dtype=uniforms.dtype.type)
    return np.less(uniforms, means, out=out)


class Visible(Protocol):
    """What the visible units are; a value without state."""

    @property
    def name(self) -> str:
        """As users write it."""

    def means(self, x: Floats) -> Floats:
        """Means of units with input `x`, in its place."""

    def draw(self, means: Floats, random: np.random.Generator, scratch: Floats, out: Floats) -> Floats:
        """Units of these means, into `out`, which may be `means`; `scratch` of the same shape is used up."""

    def log_weight(self, v: Floats, b: Floats) -> Floats:
        """What bias `b` alone makes of rows `v` in the logarithm of the unnormalized probability; (rows,)."""

    def log_sum(self, x: Floats, b: Floats) -> Floats:
        """Logarithm of the sum, or integral, over all states of units with input `x` beside their bias; (rows,)."""

    def bias_of(self, means: Floats) -> Floats:
        """The bias by which units without any other input have such means."""

    def range(self) -> tuple[float, float]:
        """Between which numbers rows of data are."""


@dataclass(frozen=True)
class Bernoulli:
    """0 or 1; data may also be the probability of a 1."""

    name: str = "bernoulli"

    def means(self, x: Floats) -> Floats:
        return sigmoid(x)

    def draw(self, means: Floats, random: np.random.Generator, scratch: Floats, out: Floats) -> Floats:
        return draw_ones(means, random, scratch, out)

    def log_weight(self, v: Floats, b: Floats) -> Floats:
        found: Floats = v @ b
        return found

    def log_sum(self, x: Floats, b: Floats) -> Floats:
        found: Floats = softplus(x + b).sum(axis=-1, dtype=np.float64)
        return found

    def bias_of(self, means: Floats) -> Floats:
        likely = np.clip(means, 0.005, 0.995)  # a unit that is never on in the data may be on in the model
        found: Floats = np.log(likely) - np.log1p(-likely)
        return found

    def range(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True)
class Gaussian:
    """Real numbers of variance 1 around their input: data are to be scaled so, each column to mean 0 and variance 1.

    The energy is (v - b)^2 / 2, so that `W` has no unit: Hinton, A Practical Guide to Training Restricted Boltzmann
    Machines (UTML TR 2010-003), section 13.2, with sigma = 1.
    """

    name: str = "gaussian"

    def means(self, x: Floats) -> Floats:
        return x

    def draw(self, means: Floats, random: np.random.Generator, scratch: Floats, out: Floats) -> Floats:
        random.standard_normal(out=scratch, dtype=scratch.dtype.type)
        return np.add(scratch, means, out=out)

    def log_weight(self, v: Floats, b: Floats) -> Floats:
        distance = v - b
        found: Floats = -0.5 * np.einsum("ij,ij->i", distance, distance, dtype=np.float64)
        return found

    def log_sum(self, x: Floats, b: Floats) -> Floats:
        quadratic: Floats = (x * (0.5 * x + b)).sum(axis=-1, dtype=np.float64)
        quadratic += 0.5 * math.log(2 * math.pi) * b.shape[-1]
        return quadratic

    def bias_of(self, means: Floats) -> Floats:
        return np.array(means)

    def range(self) -> tuple[float, float]:
        return -math.inf, math.inf


def visible_units(name: str) -> Visible:
    """By their name, "bernoulli" or "gaussian"; else `UsageError`."""
    return Bernoulli() if one_of("visible", name, ("bernoulli", "gaussian")) == "bernoulli" else Gaussian()
