"""Losses against finite differences, their bounds against the losses, and labels that there are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.models.linear.losses import Logistic, Loss, Softmax, Squared

STEP = 1e-5
CASES: list[tuple[Loss, int, Any]] = [
    (Squared(), 1, [-1.5, 0.0, 2.0]),
    (Logistic((-1, 1)), 1, [-1, 1, 1]),
    (Softmax(), 4, [0, 3, 1]),
]
each_loss = pytest.mark.parametrize(("loss", "outputs", "labels"), CASES)


def differences(function: Any, scores: Any) -> Any:
    """Derivatives of function(scores) (rows, ...) by each score, (rows, ..., outputs)."""
    found = []
    for k in range(scores.shape[1]):
        step = np.zeros_like(scores)
        step[:, k] = STEP
        found.append((function(scores + step) - function(scores - step)) / (2 * STEP))
    return np.stack(found, axis=-1)


@each_loss
def test_slope_and_curvature_are_the_derivatives(loss: Loss, outputs: int, labels: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(3, outputs)) * 2
    y = loss.targets(np.array(labels), outputs)
    assert loss.slope(scores, y) == pytest.approx(differences(lambda s: loss.value(s, y), scores), abs=1e-9)
    assert loss.curvature(scores) == pytest.approx(differences(lambda s: loss.slope(s, y), scores), abs=1e-9)


@each_loss
def test_the_bound_s_parabola_is_nowhere_below_the_loss(loss: Loss, outputs: int, labels: Any) -> None:
    chance = np.random.default_rng(1)
    y = loss.targets(np.array(labels), outputs)
    for size in (0.0, 0.1, 1.0, 5.0, 30.0):
        at = chance.normal(size=(3, outputs)) * size
        step = chance.normal(size=(3, outputs)) * 4
        parabola = (
            loss.value(at, y)
            + np.einsum("nk,nk->n", loss.slope(at, y), step)
            + np.einsum("nk,nkl,nl->n", step, loss.bound(at), step) / 2
        )
        assert np.all(parabola >= loss.value(at + step, y) - 1e-9)


def test_between_two_likely_classes_the_bound_is_no_more_than_the_curvature() -> None:
    scores = np.array([[0.0, 0.0], [90.0, 90.0]])
    assert Softmax().bound(scores) == pytest.approx(Softmax().curvature(scores))
    assert Logistic().bound(np.zeros((1, 1))) == pytest.approx(Logistic().curvature(np.zeros((1, 1))))


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (Logistic(), [0, -1, 1], "a label is -1, expected 0 or 1: say which"),
        (Softmax(), [0, 3], "a label is 3, expected one of the classes 0 to 2"),
        (Softmax(), [0.5], "a label is 0.5"),
        (Squared(), [np.nan], "NaN"),
        (Squared(), ["high"], "expected numbers"),
    ],
)
def test_labels_that_there_are_not_are_refused(loss: Loss, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loss.targets(np.array(labels), 3)


def test_far_scores_are_no_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        far = np.array([[-800.0], [800.0]])
        y = np.array([1.0, -1.0])
        assert Logistic().value(far, y).tolist() == [800, 800]
        assert Logistic().slope(far, y).tolist() == [[-1], [1]]
        assert Logistic().curvature(far).max() < 1e-300
        assert Logistic().bound(far) == pytest.approx(1 / 1600)
