"""Linear models: gradients against finite differences, rows and blocks, predictions, and errors of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p.models.linear import LinearModel, LinearRegression, LogisticRegression, SoftmaxRegression, gradient
from p2p.models.linear.blocks import BLOCK_ROWS, blocks, rows_in
from p2p.testing import train_partition

STEP = 1e-6
chance = np.random.default_rng(0)
X = chance.normal(size=(30, 4)) * (chance.random((30, 4)) < 0.6)


def labels_of(model: LinearModel) -> Any:
    random = np.random.default_rng(1)
    return random.normal(size=30) if isinstance(model, LinearRegression) else random.integers(2, size=30)


def at_random(model: LinearModel) -> LinearModel:
    random = np.random.default_rng(2)
    model.weights[...] = random.normal(size=model.weights.shape)
    model.intercept[...] = random.normal(size=model.intercept.shape) * model.bias
    return model


MODELS = [
    LinearRegression(4, l1=0.1, l2=0.3),
    LogisticRegression(4, l2=0.2),
    LogisticRegression(4, l1=0.3, bias=False),
    SoftmaxRegression(4, 3, l1=0.1, l2=0.1),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("form", ["rows", "block", "csr"])
def test_the_gradient_is_that_of_the_objective(model: LinearModel, form: str) -> None:
    at_random(model)
    y = labels_of(model)
    elements: Any = {"rows": list(zip(X, y, strict=True)), "block": [(X, y)], "csr": [(sparse.csr_matrix(X), y)]}[form]
    found = gradient(model, iter(elements))
    for name in ("weights", "intercept"):
        array = getattr(model, name)
        if name == "intercept" and not model.bias:
            assert not found[name].any()
            continue
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + STEP
            above = model.objective(X, y)
            array[index] = kept - STEP
            below = model.objective(X, y)
            array[index] = kept
            assert found[name][index] == pytest.approx((above - below) / (2 * STEP), abs=1e-8)


def test_rows_are_stacked_and_blocks_stay_as_they_are() -> None:
    rows = [(x, 1) for x in np.ones((BLOCK_ROWS + 1, 2))]
    found = list(blocks([*rows, (np.zeros((3, 2)), [1, 2, 3]), (sparse.csr_array(np.eye(2)), [0, 1])], 2))
    assert sorted(x.shape for x, _ in found) == [(1, 2), (2, 2), (3, 2), (BLOCK_ROWS, 2)]
    assert sum(len(y) for _, y in found) == BLOCK_ROWS + 6


def test_the_report_counts_the_rows_of_blocks() -> None:
    model = LogisticRegression(4)
    y = labels_of(model)
    elements = [(X[:10], y[:10]), (sparse.csr_matrix(X[10:]), y[10:]), (X[0], y[0])]
    assert [rows_in(element) for element in elements] == [10, 20, 1]
    assert train_partition(model, gradient, elements).result.rows == 31


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (3, "a row is 3, expected"),
        ((np.ones(3), 1), r"features of shape \(3,\), expected \(4,\)"),
        ((np.ones((2, 3)), [0, 1]), r"features of shape \(2, 3\), expected \(2, 4\)"),
        ((np.ones((2, 4)), [0, 1, 1]), "a block of 2 rows with 3 labels"),
        ((sparse.csr_array(np.full((1, 4), np.inf)), 1), "NaN or infinite"),
        ((["a", "b", "c", "d"], 1), "expected numbers"),
    ],
)
def test_what_is_no_row_is_refused(element: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gradient(LogisticRegression(4), [element])
    assert rows_in(element) in (1, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRegression(0), "features=0"),
        (lambda: LinearRegression(2, l2=-1), "l2=-1"),
        (lambda: LinearRegression(2, l1=float("nan")), "l1=nan"),
        (lambda: LogisticRegression(2, bias=1), "bias=1"),  # type: ignore[arg-type]
        (lambda: LogisticRegression(2, labels=(1, 1)), "labels="),
        (lambda: SoftmaxRegression(2, 1), "classes=1"),
    ],
)
def test_models_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_predictions_are_labels_or_numbers() -> None:
    x = np.array([[1.0, 0], [0, 1]])
    linear, logistic, softmax = LinearRegression(2), LogisticRegression(2, labels=(-1, 1)), SoftmaxRegression(2, 3)
    linear.weights[:, 0] = logistic.weights[:, 0] = 2, -3
    softmax.weights[:, 1:] = [[1, 0], [0, 1]]
    assert linear.predict(x).tolist() == [2, -3]
    assert logistic.predict(sparse.csr_matrix(x)).tolist() == [1, -1]
    assert softmax.predict(x).tolist() == [1, 2]
    assert logistic.accuracy(x, [1, 1]) == 0.5
    assert linear.objective(x, [2, -1]) == 1
    with pytest.raises(UsageError, match="accuracy of a LinearRegression"):
        linear.accuracy(x, [1, 2])
    with pytest.raises(UsageError, match="2 rows with 3 labels"):
        softmax.objective(x, [1, 2, 0])
