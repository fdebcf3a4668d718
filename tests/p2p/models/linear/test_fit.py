"""`fit` finds the minimum: by one peer and many, of all losses and penalties, under faults, and as rows on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from gossip.errors import UsageError
from gossip.sim.faults import Faults
from gossip.sim.simulator import Network
from p2p import SimulatedCluster
from p2p.descents import SGD, AdaGrad, Linear
from p2p.models.linear import LinearModel, LinearRegression, LogisticRegression, SoftmaxRegression, fit, gradient
from p2p.models.linear.newton import Newton, Parabolas, minimum
from p2p.models.linear.training import _Fitting, _newton
from p2p.testing import train_partition

ROWS, FEATURES = 240, 5


def data(classes: int = 2, seed: int = 0) -> tuple[Any, Any]:
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(ROWS, FEATURES)) + 0.5
    scores = x @ chance.normal(size=(FEATURES, classes)) + chance.gumbel(size=(ROWS, classes))
    return x, scores.argmax(axis=1)


def partitions(x: Any, y: Any, count: int = 6) -> list[Any]:
    return [[(x[part], y[part])] for part in np.array_split(np.arange(len(y)), count)]


def best(model: LinearModel, x: Any, y: Any) -> float:
    """The least objective that another method finds; without l1."""

    def objective(w: Any) -> Any:
        model.weights[...] = w[: model.weights.size].reshape(model.weights.shape)
        model.intercept[...] = w[model.weights.size :] * model.bias
        found = gradient(model, [(x, y)])
        return model.objective(x, y), np.concatenate([found["weights"].reshape(-1), found["intercept"]])

    start = np.zeros(model.weights.size + model.intercept.size)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    model.weights[...] = model.intercept[...] = 0
    return float(found.fun)


MODELS = [
    LinearRegression(FEATURES, l2=0.1),
    LogisticRegression(FEATURES, l2=1 / ROWS, bias=False),
    LogisticRegression(FEATURES),
    SoftmaxRegression(FEATURES, 3, l2=0.01),
    SoftmaxRegression(FEATURES, 3),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_peers_find_the_minimum_and_choose_no_rate(model: LinearModel, form: str) -> None:
    x, y = data(3 if isinstance(model, SoftmaxRegression) else 2)
    least = best(model, x, y)
    report = fit(model, partitions(x if form == "dense" else sparse.csr_array(x), y), engine=SimulatedCluster(4))
    assert model.objective(x, y) == pytest.approx(least, rel=1e-8)
    assert report.rows <= 12 * ROWS, "of blocks the rows are counted, and it ends when nothing changes any more"
    assert report.rows % ROWS == 0


def test_with_l1_the_minimum_has_zeros_and_no_way_down() -> None:
    x, y = data()
    x[:, 3:] = np.random.default_rng(5).normal(size=(ROWS, 2))
    model = LogisticRegression(FEATURES, l1=0.05, l2=0.01)
    fit(model, partitions(x, y), engine=SimulatedCluster(3), tolerance=1e-14)
    assert (model.weights[3:] == 0).all()
    assert model.weights[:3].any()
    smooth = LogisticRegression(FEATURES, l2=0.01)
    smooth.weights[...], smooth.intercept[...] = model.weights, model.intercept
    slope = gradient(smooth, [(x, y)])
    away = model.weights != 0
    assert slope["weights"][away] == pytest.approx(-0.05 * np.sign(model.weights[away]), abs=1e-7)
    assert (np.abs(slope["weights"][~away]) <= 0.05).all()
    assert slope["intercept"] == pytest.approx(0, abs=1e-7)


def test_least_squares_take_one_pass() -> None:
    x, _ = data()
    y = x @ np.arange(FEATURES) + 3
    model = LinearRegression(FEATURES)
    fit(model, partitions(x, y), epochs=1, engine=SimulatedCluster(4))
    assert model.weights[:, 0] == pytest.approx(np.arange(FEATURES))
    assert model.intercept == pytest.approx(3)


def test_faults_change_nothing_of_what_is_found() -> None:
    x, y = data()
    least = best(model := LogisticRegression(FEATURES, l2=0.01), x, y)
    cluster = SimulatedCluster(
        4, seed=3, network=Network(loss=0.1, duplication=0.1), faults=Faults(crashes=(2.5,)), fail=0.2, speculate=0.2
    )
    report = fit(model, partitions(x, y, 12), engine=cluster)
    assert any("crash" in line for line in report.story)
    assert model.objective(x, y) == pytest.approx(least, rel=1e-7)


def test_a_pass_goes_on_from_the_weights_that_are_there() -> None:
    x, y = data()
    model = LogisticRegression(FEATURES, l2=0.01)
    fit(model, partitions(x, y), engine=SimulatedCluster(2))
    weights = model.weights.copy()
    report = fit(model, partitions(x, y), engine=SimulatedCluster(2))
    assert report.rows == ROWS, "one pass shows that there is nothing to gain"
    assert model.weights == pytest.approx(weights, rel=1e-4)


def test_updates_travel_as_the_rows_of_features_that_the_partition_has() -> None:
    x = np.zeros((8, 50))
    x[:, [3, 40]] = np.random.default_rng(0).normal(size=(8, 2))
    model = LogisticRegression(50, l2=0.1, bias=False)
    newton = _newton(model)
    trained = train_partition(Parabolas(1, 50, 50), newton, [(sparse.csr_array(x), [0, 1] * 4)])
    (update,) = trained.updates
    of_rows = {f"{name}[{part}]" for name in ("curvature", "slope") for part in ("rows", "values")}
    assert of_rows <= set(update)
    assert update["curvature[rows]"].tolist() == update["slope[rows]"].tolist() == [3, 40]
    assert update["curvature[values]"].shape == (2, 50)
    assert np.flatnonzero(newton.minimum(trained.model)).tolist() == [3, 40]


@pytest.mark.parametrize("shift", [0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("form", ["blocks", "sorted blocks", "rows"])
def test_features_far_from_0_are_weighed_as_if_they_were_not(shift: float, form: str) -> None:
    """Against numpy's least squares of features whose mean was taken off."""
    chance = np.random.default_rng(3)
    x = chance.normal(size=(ROWS, FEATURES)) + shift * np.arange(1, FEATURES + 1)
    y = (x - x.mean(axis=0)) @ np.arange(1.0, FEATURES + 1) + 3 + 0.1 * chance.normal(size=ROWS)
    order = np.argsort(x[:, 0]) if form == "sorted blocks" else np.arange(ROWS)
    parts = partitions(x[order], y[order])
    if form == "rows":
        parts = [list(zip(*part[0], strict=True)) for part in parts]
    fit(model := LinearRegression(FEATURES), parts, engine=SimulatedCluster(3))
    mean = x.mean(axis=0)
    expected = np.linalg.lstsq(np.hstack([x - mean, np.ones((ROWS, 1))]), y, rcond=None)[0]
    rounding = 1e-15 * max(1, shift)
    assert model.weights[:, 0] == pytest.approx(expected[:-1], abs=1e-11 + 10 * rounding)
    assert model.predict(mean[None]) == pytest.approx(expected[-1:], abs=1e-9 + 200 * rounding)


def test_dense_and_sparse_blocks_of_one_partition_are_centered_alike() -> None:
    x, y = data()
    x += 1e4
    fit(dense := LogisticRegression(FEATURES, l2=0.1), partitions(x, y), engine=SimulatedCluster(2))
    mixed = [
        [(x[:0], y[:0]), (x[:20], y[:20]), (sparse.csr_array(x[20:120]), y[20:120])],
        [(sparse.csr_array(x[120:]), y[120:])],
    ]
    fit(model := LogisticRegression(FEATURES, l2=0.1), mixed, engine=SimulatedCluster(2))
    assert model.weights == pytest.approx(dense.weights, abs=1e-5)
    assert model.objective(x, y) == pytest.approx(dense.objective(x, y), rel=1e-8)


def test_a_peer_is_sent_the_parabola_that_changed_and_not_all() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 80)), np.arange(60) % 2
    report = fit(LogisticRegression(80, l2=0.1), partitions(x, y), engine=SimulatedCluster(3), epochs=2)
    whole = 6 * 81 * 81 * 8
    for peer in report.peers:
        assert peer.bytes_in < (report.updates - peer.published) * whole / 3


def test_of_many_minima_the_weights_stay_small() -> None:
    part = np.random.default_rng(0).normal(size=(10, 3))
    none = np.zeros(11)
    curvature = np.zeros((11, 11))
    curvature[:10, :10] = part @ part.T
    slope = curvature @ np.ones(11)
    w = minimum(curvature, slope, none, none)
    assert curvature @ w == pytest.approx(slope)
    assert np.abs(w).max() < 10
    assert w[10] == 0, "nothing depends on it"


def test_it_goes_on_after_a_pass_in_which_the_loss_rose() -> None:
    model = LogisticRegression(2, bias=False)
    fitting = _Fitting(model, _newton(model), 1e-8, None)
    report = fit(LogisticRegression(2), [[(np.eye(2), [0, 1])]], engine=SimulatedCluster(1), epochs=1)
    trained = Parabolas(1, 2, 2)
    trained.curvature[...] = np.eye(2)
    trained.slope[...] = 1
    trained.totals[...] = 10, 5
    assert not fitting.ends(report, trained), "the first step gains something"
    trained.totals[...] = 10, 6
    assert not fitting.ends(report, trained)
    assert trained.careful[0] == 1
    trained.totals[...] = 10, 5
    assert fitting.ends(report, trained)


def test_a_partition_s_update_replaces_its_parabola_whatever_it_was() -> None:
    x, y = data()
    newton = _newton(LogisticRegression(FEATURES, bias=False))
    wrong = Parabolas(1, FEATURES, FEATURES)
    wrong.curvature[...] = np.eye(FEATURES)
    wrong.totals[...] = 7, 7
    found = train_partition(wrong, newton, [(x, y)]).model
    assert found.totals[0, 0] == ROWS
    assert found.curvature == pytest.approx(x.T @ (x * 0.25))


def test_where_the_loss_rose_the_bound_is_taken() -> None:
    x, y = data()
    newton = Newton(LogisticRegression(1).loss, FEATURES, 1, 0, 0, False, np.full(FEATURES, 3.0))
    curvatures = []
    for careful in (0, 1):
        model = Parabolas(1, FEATURES, FEATURES)
        model.careful[0] = careful
        curvatures.append(train_partition(model, newton, [(x, y)]).model.curvature)
    assert np.linalg.eigvalsh(curvatures[1] - curvatures[0]).min() > 0


def test_where_newton_s_steps_go_astray_bounds_bring_them_back() -> None:
    x, y = data()
    least = best(model := LogisticRegression(FEATURES, l2=0.01), x, y)
    model.weights[...] = 8
    report = fit(model, partitions(x, y), engine=SimulatedCluster(4), evaluate=lambda model: model.objective(x, y))
    values = [point.values["value"] for point in report.evaluations]
    assert values[1] > values[0], "a step too far"
    assert values[-1] == pytest.approx(least, rel=1e-7)


@pytest.mark.parametrize(
    ("descent", "arrays"), [(AdaGrad(Linear(0.5)), 2), (SGD(Linear(2.0)), 1)], ids=["AdaGrad", "SGD"]
)
def test_wide_models_train_by_a_descent_and_send_the_rows_of_the_features_of_a_chunk(descent: Any, arrays: int) -> None:
    chance = np.random.default_rng(0)
    features, weights = 20_000, np.linspace(-2, 2, 20_000)
    places = chance.integers(features, size=(ROWS, 8))
    x = sparse.csr_array((np.ones(ROWS * 8), places.reshape(-1), np.arange(ROWS + 1) * 8), (ROWS, features))
    y = (x @ weights > 0).astype(int)
    blocks = [[(x[k : k + 10], y[k : k + 10]) for k in range(first, first + 60, 10)] for first in range(0, ROWS, 60)]
    model = LogisticRegression(features)
    report = fit(model, blocks, descent, epochs=10, chunk_rows=1, engine=SimulatedCluster(2))
    assert model.accuracy(x, y) > 0.95
    assert report.rows == 10 * ROWS
    for peer in report.peers:
        assert peer.bytes_in < report.updates * 10 * 8 * 30 * arrays, "not the 20,000 rows of weights and of sums"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"descent": 3}, "descent is a int"),
        ({"descent": SGD(0.1), "tolerance": 0.1}, "tolerance=0.1 with a descent"),
        ({"chunk_rows": 3}, "chunk_rows=3 without a descent"),
        ({"epochs": 0}, "epochs=0"),
        ({"tolerance": -1}, "tolerance=-1"),
        ({"evaluate": 3}, "evaluate is a int"),
        ({"data": 3}, "data is a int, expected an RDD or a list"),
        ({"data": [[], []]}, "data has no rows"),
        ({"model": {"w": np.zeros(2)}}, "model is a dict"),
        ({"model": LogisticRegression(3000)}, "6 partitions of 3001 weights: their curvatures take"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, message: str) -> None:
    model = options.pop("model", LogisticRegression(FEATURES))
    rows = options.pop("data", partitions(*data()))
    with pytest.raises(UsageError, match=message):
        fit(model, rows, engine=SimulatedCluster(2), **options)


def test_each_pass_is_evaluated() -> None:
    x, y = data()
    model = LogisticRegression(FEATURES, l2=0.01)
    report = fit(model, partitions(x, y), engine=SimulatedCluster(2), evaluate=lambda model: model.objective(x, y))
    values = [point.values["value"] for point in report.evaluations]
    assert len(values) == report.rows / ROWS
    assert values[0] > values[1] > values[2] > values[-1] * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mode", ["p2p", "master"])
def test_processes_find_it_too(mode: Any) -> None:
    x, y = data()
    least = best(model := LogisticRegression(FEATURES, l2=0.01), x, y)
    report = fit(model, [list(zip(*rows[0], strict=True)) for rows in partitions(x, y)], peers=2, mode=mode)
    assert model.objective(x, y) == pytest.approx(least, rel=1e-7)
    assert report.rows % ROWS == 0
