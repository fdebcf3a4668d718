"""Losses of a linear model, of its scores alone: value, slope, curvature, and a curvature that is never too small.

    squared     1/2 (s - y)^2               curvature 1
    logistic    log(1 + exp(-t s))          t is -1 or 1; bound tanh(|s| / 2) / 2|s|  (Jaakkola and Jordan 1997)
    softmax     log sum exp(s) - s_y        bound 1/2 (I - 11'/K)                     (Boehning 1992)

Scores are (rows, outputs), K is the number of outputs. A parabola with the loss's value and slope at some scores, and
the bound's curvature there, is nowhere below the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.special import expit, log_softmax, softmax

from gossip.arrays import Array
from gossip.errors import UsageError


class Loss(Protocol):
    """What a linear model has to know of its loss. `y` is what `targets` made of labels, (rows,)."""

    def targets(self, labels: Array, outputs: int) -> Array:
        """Labels as the other methods take them. Raises `UsageError` for labels that there are not."""
        ...

    def value(self, scores: Array, y: Array) -> Array:
        """The loss of each row, (rows,)."""
        ...

    def slope(self, scores: Array, y: Array) -> Array:
        """Its derivatives by the scores, (rows, outputs)."""
        ...

    def curvature(self, scores: Array) -> Array:
        """Its second derivatives, (rows, outputs, outputs)."""
        ...

    def bound(self, scores: Array) -> Array:
        """The curvature of a parabola that touches the loss at these scores and is nowhere below it."""
        ...

    def predicted(self, scores: Array) -> Array:
        """The likeliest label, (rows,)."""
        ...


@dataclass(frozen=True)
class Squared:
    """Half the squared error."""

    def targets(self, labels: Array, outputs: int) -> Array:
        return numbers(labels)

    def value(self, scores: Array, y: Array) -> Array:
        return np.asarray((scores[:, 0] - y) ** 2 / 2)

    def slope(self, scores: Array, y: Array) -> Array:
        return np.asarray(scores - y[:, None])

    def curvature(self, scores: Array) -> Array:
        return np.ones((len(scores), 1, 1))

    def bound(self, scores: Array) -> Array:
        return self.curvature(scores)

    def predicted(self, scores: Array) -> Array:
        return scores[:, 0]


@dataclass(frozen=True)
class Logistic:
    """The log loss of two classes, of which `labels` names the first and the second."""

    labels: tuple[float, float] = (0, 1)

    def targets(self, labels: Array, outputs: int) -> Array:
        first, second = self.labels
        found = numbers(labels)
        if other := sorted({float(label) for label in found[(found != first) & (found != second)][:1]}):
            raise UsageError(
                f"a label is {other[0]:g}, expected {first:g} or {second:g}: say which there are, as in "
                "LogisticRegression(features, labels=(-1, 1))"
            )
        return np.where(found == second, 1.0, -1.0)

    def value(self, scores: Array, y: Array) -> Array:
        return np.asarray(np.logaddexp(0, -y * scores[:, 0]))

    def slope(self, scores: Array, y: Array) -> Array:
        return np.asarray((-y * expit(-y * scores[:, 0]))[:, None])

    def curvature(self, scores: Array) -> Array:
        return np.asarray(expit(scores) * expit(-scores))[:, :, None]

    def bound(self, scores: Array) -> Array:
        far = np.maximum(np.abs(scores), 1e-6)
        return np.asarray(np.tanh(far / 2) / (2 * far))[:, :, None]

    def predicted(self, scores: Array) -> Array:
        return np.where(scores[:, 0] > 0, self.labels[1], self.labels[0])


@dataclass(frozen=True)
class Softmax:
    """The cross entropy of classes 0, 1, ..."""

    def targets(self, labels: Array, outputs: int) -> Array:
        found = numbers(labels)
        classes = found.astype(np.int64)
        if np.any((classes != found) | (classes < 0) | (classes >= outputs)):
            bad = found[(classes != found) | (classes < 0) | (classes >= outputs)][0]
            raise UsageError(f"a label is {bad:g}, expected one of the classes 0 to {outputs - 1}")
        return classes

    def value(self, scores: Array, y: Array) -> Array:
        return np.asarray(-log_softmax(scores, axis=1)[np.arange(len(y)), y])

    def slope(self, scores: Array, y: Array) -> Array:
        slope = np.asarray(softmax(scores, axis=1))
        slope[np.arange(len(y)), y] -= 1
        return slope

    def curvature(self, scores: Array) -> Array:
        p = softmax(scores, axis=1)
        return np.asarray(p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :])

    def bound(self, scores: Array) -> Array:
        count, outputs = scores.shape
        return np.broadcast_to((np.eye(outputs) - 1 / outputs) / 2, (count, outputs, outputs))

    def predicted(self, scores: Array) -> Array:
        return np.asarray(np.argmax(scores, axis=1))


def numbers(labels: Any) -> Array:
    """Labels as finite floats, (rows,)."""
    try:
        found = np.asarray(labels, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise UsageError(f"labels are {labels!r:.80}, expected numbers") from None
    if not np.isfinite(found).all():
        raise UsageError("a label is NaN or infinite, expected numbers")
    return found
