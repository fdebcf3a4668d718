"""Linear models: weights, an intercept, and what they say of features.

    objective = mean loss of the rows + l1 |w|_1 + l2 / 2 |w|^2        the intercept is not penalized

`gradient` is for `DeepDist` with a descent; `fit` needs neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gossip.arguments import flag, integer, number
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.models.linear.blocks import block, blocks, rows_in
from p2p.models.linear.losses import Logistic, Loss, Softmax, Squared


class LinearModel:
    """Weights (features, outputs) and an intercept (outputs,), of float64: what is trained."""

    def __init__(self, features: int, outputs: int, loss: Loss, l1: float, l2: float, bias: bool) -> None:
        self.features = integer("features", features, 1)
        self.loss = loss
        self.l1 = number("l1", l1, "a number, at least 0", lambda value: 0 <= value < np.inf)
        self.l2 = number("l2", l2, "a number, at least 0", lambda value: 0 <= value < np.inf)
        self.bias = flag("bias", bias)
        self.weights = np.zeros((self.features, outputs))
        self.intercept = np.zeros(outputs)

    def scores(self, x: Any) -> Array:
        """(rows, outputs) for features (rows, features), dense or sparse."""
        checked, _ = block(x, np.zeros(np.shape(x)[0]), self.features)
        return np.asarray(checked @ self.weights + self.intercept)

    def predict(self, x: Any) -> Array:
        """For features (rows, features): numbers, or the likelier labels, (rows,)."""
        return self.loss.predicted(self.scores(x))

    def objective(self, x: Any, y: Any) -> float:
        """Mean loss of these rows and labels, and the penalty: what training makes small."""
        scores = self.scores(x)
        losses = self.loss.value(scores, self._targets(y, len(scores)))
        return float(losses.mean()) + self.penalty()

    def penalty(self) -> float:
        """l1 |w|_1 + l2 / 2 |w|^2."""
        return float(self.l1 * np.abs(self.weights).sum() + self.l2 / 2 * np.square(self.weights).sum())

    def accuracy(self, x: Any, y: Any) -> float:
        """The share of rows whose label is predicted. Raises `UsageError` for a model that predicts numbers."""
        if isinstance(self.loss, Squared):
            raise UsageError("accuracy of a LinearRegression, which predicts numbers: expected objective(x, y)")
        scores = self.scores(x)
        self._targets(y, len(scores))
        return float(np.mean(self.loss.predicted(scores) == np.asarray(y).reshape(-1)))

    def _targets(self, y: Any, rows: int) -> Array:
        targets = self.loss.targets(np.asarray(y), self.weights.shape[1])
        if len(targets) != rows or not rows:
            raise UsageError(f"{rows} rows with {len(targets)} labels, expected as many, and at least one")
        return targets


class LinearRegression(LinearModel):
    """Least squares: half the mean squared error."""

    def __init__(self, features: int, *, l1: float = 0.0, l2: float = 0.0, bias: bool = True) -> None:
        super().__init__(features, 1, Squared(), l1, l2, bias)


class LogisticRegression(LinearModel):
    """Two classes; `labels` are the first and the second, as in the data."""

    def __init__(
        self,
        features: int,
        *,
        labels: tuple[float, float] = (0, 1),
        l1: float = 0.0,
        l2: float = 0.0,
        bias: bool = True,
    ) -> None:
        if not isinstance(labels, tuple | list) or len(labels) != 2 or labels[0] == labels[1]:
            raise UsageError(f"labels={labels!r}, expected two numbers, such as (-1, 1)")
        first, second = (number("labels", label) for label in labels)
        super().__init__(features, 1, Logistic((first, second)), l1, l2, bias)


class SoftmaxRegression(LinearModel):
    """Classes 0, 1, ..., `classes` - 1."""

    def __init__(self, features: int, classes: int, *, l1: float = 0.0, l2: float = 0.0, bias: bool = True) -> None:
        super().__init__(features, integer("classes", classes, 2), Softmax(), l1, l2, bias)


def gradient(model: LinearModel, rows: Iterable[Any]) -> dict[str, Array]:
    """The gradient of the objective over these rows or blocks: what a descent takes; `weights` and `intercept`.

    At a weight of 0 that of |w| is taken to be 0.
    """
    weights, intercept = np.zeros_like(model.weights), np.zeros_like(model.intercept)
    count = 0
    for x, labels in blocks(rows, model.features):
        y = model.loss.targets(labels, len(intercept))
        slope = model.loss.slope(np.asarray(x @ model.weights + model.intercept), y)
        weights += x.T @ slope
        intercept += slope.sum(axis=0)
        count += len(y)
    penalty = model.l1 * np.sign(model.weights) + model.l2 * model.weights
    if not count:
        return {}
    return {"weights": weights / count + penalty, "intercept": intercept / count * model.bias}


gradient.rows_in = rows_in  # type: ignore[attr-defined]
