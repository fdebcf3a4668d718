"""The multilayer perceptron: its gradient against finite differences, training by one call, and errors of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from gossip.errors import UsageError
from p2p import SimulatedCluster
from p2p.descents import AdaGrad, Momentum
from p2p.models.mlp import MLP, fit, gradient
from p2p.testing import train_partition

STEP = 1e-6
chance = np.random.default_rng(0)
X = chance.normal(size=(30, 4)) * (chance.random((30, 4)) < 0.7)


def rings(seed: int, count: int = 200) -> tuple[Any, Any]:
    """Points within a circle and around it: no line parts them."""
    x = np.random.default_rng(seed).normal(size=(count, 2))
    return x, (np.hypot(*x.T) > 1.18).astype(int)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("form", ["rows", "blocks", "csr"])
def test_the_gradient_is_that_of_the_objective(activation: Any, hidden: Any, classes: Any, form: str) -> None:
    model = MLP(4, hidden, classes, activation=activation, l2=0.2, seed=1, dtype="float64")
    for layer in range(model.layers):
        getattr(model, f"b{layer}")[...] = np.random.default_rng(layer).normal(size=getattr(model, f"b{layer}").shape)
    y = np.arange(30) % 3 if classes else np.sin(np.arange(30))
    forms: dict[str, Any] = {
        "rows": list(zip(X, y, strict=True)),
        "blocks": [(X[:7], y[:7]), (X[7:], y[7:])],
        "csr": [(sparse.csr_matrix(X), y)],
    }
    found = gradient(model, iter(forms[form]))
    assert set(found) == {f"{kind}{layer}" for kind in "wb" for layer in range(len(hidden) + 1)}
    for name, values in found.items():
        array = getattr(model, name)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + STEP
            above = model.objective(X, y)
            array[index] = kept - STEP
            below = model.objective(X, y)
            array[index] = kept
            assert values[index] == pytest.approx((above - below) / (2 * STEP), abs=1e-7)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("form", ["rows", "blocks", "csr"])
def test_in_float32_it_is_that_of_float64_but_for_rounding(activation: Any, classes: Any, form: str) -> None:
    y = np.arange(30) % 3 if classes else np.sin(np.arange(30))
    forms: dict[str, Any] = {
        "rows": list(zip(X, y, strict=True)),
        "blocks": [(X[:7], y[:7]), (X[7:], y[7:])],
        "csr": [(sparse.csr_matrix(X), y)],
    }
    half = MLP(4, (5, 3), classes, activation=activation, l2=0.2, seed=1)
    whole = MLP(4, (5, 3), classes, activation=activation, l2=0.2, seed=1, dtype="float64")
    found, exact = (gradient(model, forms[form]) for model in (half, whole))
    for name, values in found.items():
        assert values.dtype == getattr(half, name).dtype == np.float32
        assert exact[name].dtype == getattr(whole, name).dtype == np.float64
        np.testing.assert_allclose(values, exact[name], rtol=1e-5, atol=3e-6)
    assert half.scores(X).dtype == np.float32
    assert half.objective(X, y) == pytest.approx(whole.objective(X, y), rel=1e-6)


def test_a_training_in_float32_stays_there() -> None:
    model = MLP(2, (4,), 2)
    trained = train_partition(model, gradient, [rings(0)], descent=Momentum(0.1))
    assert {array.dtype for update in trained.updates for array in update.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("descent", [None, AdaGrad(0.1), Momentum(0.05)], ids=lambda each: type(each).__name__)
def test_peers_learn_what_no_linear_model_can(descent: Any) -> None:
    model = MLP(2, (16,), classes=2, seed=3)
    data = [[(x[k : k + 20], y[k : k + 20]) for k in range(0, 200, 20)] for x, y in map(rings, range(4))]
    report = fit(model, data, descent, epochs=40, chunk_rows=1, engine=SimulatedCluster(2))
    assert model.accuracy(*rings(99)) > 0.9
    assert report.rows == 40 * 800, "of blocks the rows are counted"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mode", ["p2p", "master"])
def test_processes_learn_it_too(mode: Any) -> None:
    model = MLP(2, (16,), classes=2, seed=3)
    data = [list(zip(*rings(number), strict=True)) for number in range(4)]
    fit(model, data, epochs=30, chunk_rows=10, peers=2, mode=mode)
    assert model.accuracy(*rings(99)) > 0.9


def test_the_same_seed_draws_the_same_weights_and_another_others() -> None:
    one, same, other = (MLP(3, (4,), 2, seed=seed) for seed in (1, 1, 2))
    assert (one.w0 == same.w0).all()  # type: ignore[attr-defined]
    assert (one.w0 != other.w0).any()  # type: ignore[attr-defined]


def test_no_rows_are_no_update() -> None:
    assert gradient(MLP(2, (3,)), []) == {}
    assert train_partition(MLP(2, (3,)), gradient, [(np.zeros((5, 2)), np.zeros(5))]).result.rows == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0, (3,)), "features=0"),
        (lambda: MLP(2, 3), "hidden=3"),  # type: ignore[arg-type]
        (lambda: MLP(2, (0,)), "hidden=0"),
        (lambda: MLP(2, (3,), 1), "classes=1"),
        (lambda: MLP(2, (3,), activation="step"), "activation='step'"),  # type: ignore[arg-type]
        (lambda: MLP(2, (3,), l2=-1), "l2=-1"),
        (lambda: MLP(2, (3,), dtype="float16"), "dtype='float16'"),  # type: ignore[arg-type]
        (lambda: MLP(2, (3,)).predict([[1e300, 0]]), "NaN or infinite"),
        (lambda: MLP(2, (3,)).accuracy(np.ones((1, 2)), [1]), "accuracy of an MLP without classes"),
        (lambda: MLP(2, (3,), 2).objective(np.ones((1, 2)), [1, 0]), "1 rows with 2 labels"),
        (lambda: MLP(2, (3,), 2).predict(np.ones((1, 3))), r"expected \(1, 2\)"),
        (lambda: fit(3, []), "model is a int"),  # type: ignore[arg-type]
        (lambda: fit(MLP(2, ()), [[]], 3), "descent is a int"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
