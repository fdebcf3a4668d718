"""The machine: parameters of a restricted Boltzmann machine, what they say of rows, and samples of them.

    E(v, h) = -v b - h c - v W h        visible units of 0 and 1
    E(v, h) = |v - b|^2 / 2 - h c - v W h     Gaussian ones, of variance 1

Rows are (rows, n_visible). Chance comes in as a generator or as a seed, and the machine holds none: `W`, `b` and `c`
are all that it learns, and `DeepDist(machine)` trains these.

Sources: Hinton, Training Products of Experts by Minimizing Contrastive Divergence (Neural Computation 14, 2002);
Fischer and Igel, Training Restricted Boltzmann Machines: An Introduction (Pattern Recognition 47, 2014), for the
conditional probabilities and the free energy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossip.arguments import integer, one_of
from gossip.errors import UsageError
from p2p.models.rbm.units import Floats, Visible, draw_ones, sigmoid, softplus, visible_units

DTYPES = ("float32", "float64")
WEIGHT_SCALE = 0.01
"""Standard deviation of the first weights: Hinton's guide, section 8."""

Chance = np.random.Generator | int
"""A generator that is drawn from, or a seed for one."""


def generator(random: Chance) -> np.random.Generator:
    """A generator of a seed, or the one that is given. SFC64 is the fastest of numpy's for uniform float32."""
    if isinstance(random, np.random.Generator):
        return random
    return np.random.Generator(np.random.SFC64(integer("random", random, 0, "a numpy Generator, or a seed from 0 up")))


class RBM:
    """A restricted Boltzmann machine: `W` (n_visible, n_hidden), visible bias `b`, hidden bias `c`.

    The arrays are plain and may be changed in place. `visible` is "bernoulli" (units of 0 and 1) or "gaussian" (real
    numbers of variance 1); hidden units are 0 or 1. First weights are normal numbers of standard deviation 0.01 by
    `seed`, and biases 0. `dtype` is "float32", or "float64" where gradients are checked.
    """

    def __init__(
        self, n_visible: int, n_hidden: int, visible: str = "bernoulli", seed: Chance = 0, dtype: str = "float32"
    ) -> None:
        shape = integer("n_visible", n_visible, 1), integer("n_hidden", n_hidden, 1)
        self.units: Visible = visible_units(visible)
        kind = np.dtype(one_of("dtype", dtype, DTYPES))
        self.W: NDArray[Any] = (WEIGHT_SCALE * generator(seed).standard_normal(shape)).astype(kind)
        self.b: NDArray[Any] = np.zeros(shape[0], kind)
        self.c: NDArray[Any] = np.zeros(shape[1], kind)

    @classmethod
    def of(cls, W: NDArray[Any], b: NDArray[Any], c: NDArray[Any], visible: str = "bernoulli") -> RBM:
        """The machine of these arrays, which are not copied; `UsageError` if they do not fit together."""
        self = cls.__new__(cls)
        self.units = visible_units(visible)
        found = [(array.dtype.name, array.shape) for array in (W, b, c)]
        kind = one_of("dtype of W", W.dtype.name, DTYPES)
        if W.ndim != 2 or found[1:] != [(kind, W.shape[:1]), (kind, W.shape[1:])]:
            raise UsageError(f"W, b and c are {found}, expected (n_visible, n_hidden), (n_visible,) and (n_hidden,)")
        self.W, self.b, self.c = W, b, c
        return self

    @property
    def n_visible(self) -> int:
        """Rows of `W`."""
        return len(self.b)

    @property
    def n_hidden(self) -> int:
        """Columns of `W`."""
        return len(self.c)

    def rows(self, v: ArrayLike, name: str = "v") -> Floats:
        """`v` as rows of the dtype of `W`, without a copy where they are; `UsageError` if they are none of visible
        units: of another width, not numbers, none, or out of the range of the units."""
        return checked_rows(name, v, self.n_visible, self.W.dtype, self.units.range())

    def transform(self, v: ArrayLike) -> Floats:
        """Means of the hidden units given rows of visible ones, (rows, n_hidden)."""
        return self._hidden_means(self.rows(v))

    def sample_hidden(self, v: ArrayLike, random: Chance) -> Floats:
        """Hidden units, 0 or 1, given rows of visible ones; (rows, n_hidden)."""
        means = self.transform(v)
        return draw_ones(means, generator(random), np.empty_like(means), means)

    def sample_visible(self, h: ArrayLike, random: Chance) -> Floats:
        """Visible units given rows of hidden ones; (rows, n_visible)."""
        means = self._visible_means(checked_rows("h", h, self.n_hidden, self.W.dtype, (0.0, 1.0)))
        return self.units.draw(means, generator(random), np.empty_like(means), means)

    def reconstruct(self, v: ArrayLike) -> Floats:
        """Means of the visible units given the means of the hidden units, given `v`; (rows, n_visible)."""
        return self._visible_means(self.transform(v))

    def sample(self, n: int, steps: int, random: Chance, start: ArrayLike | None = None) -> Floats:
        """Visible units of `n` chains after `steps` steps of Gibbs sampling, (n, n_visible).

        The chains begin at `start`, (n, n_visible), or at visible units drawn by their biases alone.
        """
        n, steps, random = integer("n", n, 1), integer("steps", steps, 0), generator(random)
        if start is None:
            means = self.units.means(np.tile(self.b, (n, 1)))
            v = self.units.draw(means, random, np.empty_like(means), means)
        else:
            v = np.array(self.rows(start, "start"))
            if len(v) != n:
                raise UsageError(f"start has {len(v)} rows, expected n={n} of them")
        for _ in range(steps):
            v = self.sample_visible(self.sample_hidden(v, random), random)
        return v

    def free_energy(self, v: ArrayLike) -> Floats:
        """-log of the sum of exp(-E(v, h)) over all h, by row; (rows,), float64."""
        return self._free_energy(self.rows(v))

    def pseudo_likelihood(self, v: ArrayLike, random: Chance) -> Floats:
        """The logarithm of the pseudo-likelihood of each row, estimated by one unit of it drawn at random; (rows,).

        n_visible times log p(v_i | the other units), as scikit-learn's `BernoulliRBM.score_samples` has it. For units
        of 0 and 1: rows are rounded, and `UsageError` is raised for Gaussian ones. Source: Marlin, Swersky, Chen and
        de Freitas, Inductive Principles for Restricted Boltzmann Machine Learning (AISTATS 2010).
        """
        if self.units.name != "bernoulli":
            raise UsageError(
                f"pseudo_likelihood of {self.units.name} units, expected bernoulli: the probability that a real "
                "number has given the others has no closed form here; use log_likelihood with `ais`"
            )
        v = np.rint(self.rows(v))
        picked = generator(random).integers(0, self.n_visible, len(v))
        flip = 1 - 2 * v[np.arange(len(v)), picked]
        x = v @ self.W + self.c
        before = softplus(x).sum(axis=1, dtype=np.float64)
        x += flip[:, None] * self.W[picked]
        gain = softplus(x).sum(axis=1, dtype=np.float64) - before + flip * self.b[picked]
        found: Floats = -self.n_visible * softplus(gain)
        return found

    def log_likelihood(self, v: ArrayLike, log_z: float) -> Floats:
        """log p(v) of each row, (rows,), float64, by the logarithm of the partition function (`exact_log_z`, `ais`)."""
        return -self.free_energy(v) - log_z

    def _free_energy(self, v: Floats) -> Floats:
        hidden = softplus(v @ self.W + self.c).sum(axis=1, dtype=np.float64)
        found: Floats = -(self.units.log_weight(v, self.b) + hidden)
        return found

    def _hidden_means(self, v: Floats) -> Floats:
        x: Floats = v @ self.W
        x += self.c
        return sigmoid(x)

    def _visible_means(self, h: Floats) -> Floats:
        x: Floats = h @ self.W.T
        x += self.b
        return self.units.means(x)


def checked_rows(
    name: str, rows: ArrayLike, width: int, dtype: np.dtype[Any], limits: tuple[float, float]
) -> NDArray[Any]:
    """`rows` as an array of `dtype`, or `UsageError`."""
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise UsageError(f"{name} is not an array, expected rows of {width} numbers: {error}") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name} has dtype {array.dtype}, expected numbers, (rows, {width})")
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise UsageError(f"{name} has shape {array.shape}, expected (rows, {width}) with at least one row")
    low, high = array.min(), array.max()
    if not (limits[0] <= low and high <= limits[1] and np.isfinite(low) and np.isfinite(high)):
        expected = "finite numbers" if np.isinf(limits[0]) else f"numbers from {limits[0]:g} to {limits[1]:g}"
        raise UsageError(f"{name} has numbers from {low:g} to {high:g}, expected {expected}: scale the data")
    return array.astype(dtype, copy=False)
