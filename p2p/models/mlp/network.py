"""Layers of a multilayer perceptron, forwards and backwards.

    h_0 = x,   h_i = f(h_i-1 w_i-1 + b_i-1),   scores = h_last w_last + b_last
    objective = mean loss of the rows + l2 / 2 sum |w_i|^2              the b_i are not penalized

f is tanh or relu. Rows, blocks and losses are those of `p2p.models.linear`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from gossip.arguments import integer, number, one_of, series
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.models.linear.blocks import block, blocks, rows_in
from p2p.models.linear.losses import Loss, Softmax, Squared

DTYPES = ("float32", "float64")


class MLP:
    """Arrays `w0` (features, hidden), `b0` (hidden,), `w1`, ... of `dtype`; `classes` None: it predicts numbers."""

    def __init__(
        self,
        features: int,
        hidden: tuple[int, ...],
        classes: int | None = None,
        *,
        activation: Literal["tanh", "relu"] = "relu",
        l2: float = 0.0,
        seed: int = 0,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> None:
        """Weights are drawn as He et al. (arXiv:1502.01852) do for relu, and Glorot and Bengio (2010) for tanh.

        Features are rounded to `dtype`: where they lie far from 0 beside their spread, take "float64" or center them.
        """
        self.dtype = np.dtype(one_of("dtype", dtype, DTYPES))
        self.features = integer("features", features, 1)
        self.activation = one_of("activation", activation, ("tanh", "relu"))
        self.l2 = number("l2", l2, "a number, at least 0", lambda value: 0 <= value < np.inf)
        self.loss: Loss = Squared() if classes is None else Softmax()
        outputs = 1 if classes is None else integer("classes", classes, 2)
        widths = series("hidden", hidden, lambda name, value: integer(name, value, 1), "widths of layers: (64,)")
        sizes = (self.features, *widths, outputs)
        self.layers = len(sizes) - 1
        chance = np.random.default_rng(integer("seed", seed, 0))
        for layer in range(self.layers):
            width, wide = sizes[layer : layer + 2]
            scale = np.sqrt(2 / width if activation == "relu" else 2 / (width + wide))
            setattr(self, f"w{layer}", np.asarray(chance.normal(size=(width, wide)) * scale, self.dtype))
            setattr(self, f"b{layer}", np.zeros(wide, self.dtype))

    def scores(self, x: Any) -> Array:
        """(rows, outputs) for features (rows, features), dense or sparse."""
        checked, _ = block(x, np.zeros(np.shape(x)[0]), self.features, self.dtype)
        return self.outputs(checked)[-1]

    def outputs(self, x: Any) -> list[Array]:
        """Of each layer, (rows, width); the last are the scores."""
        found: list[Array] = []
        for layer in range(self.layers):
            h = np.asarray((found[-1] if found else x) @ getattr(self, f"w{layer}") + getattr(self, f"b{layer}"))
            if layer < self.layers - 1:
                h = np.tanh(h) if self.activation == "tanh" else np.maximum(h, 0)
            found.append(h)
        return found

    def predict(self, x: Any) -> Array:
        """For features (rows, features): numbers, or the likeliest classes, (rows,)."""
        return self.loss.predicted(self.scores(x))

    def objective(self, x: Any, y: Any) -> float:
        """Mean loss of these rows and labels, and the penalty: what training makes small."""
        scores = np.asarray(self.scores(x), np.float64)
        targets = self._targets(y, scores)
        squares = sum(
            float(np.square(getattr(self, f"w{layer}"), dtype=np.float64).sum()) for layer in range(self.layers)
        )
        return float(self.loss.value(scores, targets).mean()) + self.l2 / 2 * squares

    def accuracy(self, x: Any, y: Any) -> float:
        """The share of rows whose class is predicted. Raises `UsageError` for a model that predicts numbers."""
        if isinstance(self.loss, Squared):
            raise UsageError("accuracy of an MLP without classes, which predicts numbers: expected objective(x, y)")
        scores = self.scores(x)
        return float(np.mean(self.loss.predicted(scores) == self._targets(y, scores)))

    def _targets(self, y: Any, scores: Array) -> Array:
        targets = self.loss.targets(np.asarray(y), scores.shape[1])
        if len(targets) != len(scores) or not len(targets):
            raise UsageError(f"{len(scores)} rows with {len(targets)} labels, expected as many, and at least one")
        return targets


def gradient(model: MLP, rows: Iterable[Any]) -> dict[str, Array]:
    """The gradient of the objective over these rows or blocks, by the arrays' names: what a descent takes.

    Where relu has a corner, its slope is taken to be 0.
    """
    sums: dict[str, Array] = {}
    count = 0
    for x, labels in blocks(rows, model.features, model.dtype):
        outputs = model.outputs(x)
        targets = model.loss.targets(labels, outputs[-1].shape[1])
        back = np.asarray(model.loss.slope(outputs[-1], targets), model.dtype)
        for layer in reversed(range(model.layers)):
            below = outputs[layer - 1] if layer else x
            _add(sums, f"w{layer}", below.T @ back)
            _add(sums, f"b{layer}", back.sum(axis=0))
            if layer:
                slope = 1 - below**2 if model.activation == "tanh" else below > 0
                back = (back @ getattr(model, f"w{layer}").T) * slope
        count += len(labels)
    found = {name: total / count for name, total in sums.items()}
    for name in found:
        if name.startswith("w"):
            found[name] += model.l2 * getattr(model, name)
    return found


gradient.rows_in = rows_in  # type: ignore[attr-defined]


def _add(sums: dict[str, Array], name: str, part: Any) -> None:
    sums[name] = sums[name] + part if name in sums else np.asarray(part)
