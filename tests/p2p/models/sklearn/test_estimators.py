"""Estimators of scikit-learn: what a chunk trains, what travels, what is refused, and whole trainings."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from p2p import DeepDist, SimulatedCluster, UsageError, in_place
from p2p.adapters import adapter_of
from p2p.adapters.model import Model
from p2p.models.sklearn import fit, gradient
from p2p.models.sklearn.adapter import ADAPTER
from p2p.testing import train_partition
from p2p.worker.errors import PartitionError

FEATURES = 4
X = np.random.default_rng(0).normal(size=(240, FEATURES))
NUMBERS = X @ np.arange(1.0, FEATURES + 1)
TWO = (NUMBERS > 0).astype(int)
NAMED = np.array(["low", "middle", "high"])[np.digitize(NUMBERS, [-2, 2])]


def network(kind: Any = MLPClassifier, **options: Any) -> Any:
    return kind(
        **{"hidden_layer_sizes": (8,), "random_state": 0, "batch_size": 20, "learning_rate_init": 0.02, **options}
    )


ESTIMATORS = {
    "two classes": (lambda: SGDClassifier(loss="log_loss", random_state=0), TWO),
    "names of classes": (lambda: SGDClassifier(random_state=0), NAMED),
    "Perceptron": (lambda: Perceptron(random_state=0), NAMED),
    "numbers": (lambda: SGDRegressor(random_state=0), NUMBERS),
    "network": (network, NAMED),
    "network of numbers": (lambda: network(MLPRegressor, solver="sgd"), NUMBERS),
    "network of several numbers": (lambda: network(MLPRegressor), np.stack([NUMBERS, -NUMBERS], axis=1)),
}
each = pytest.mark.parametrize("name", ESTIMATORS)


def classes(y: Any) -> Any:
    return None if y.dtype.kind == "f" else np.unique(y)


def begun(name: str, rows: int = 10) -> Any:
    """An estimator that has seen some rows, and all labels."""
    make, y = ESTIMATORS[name]
    options = {} if classes(y) is None else {"classes": classes(y)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer rows than a batch
        return make().partial_fit(X[:rows], y[:rows], **options)


def rows_of(y: Any, begin: int = 0, end: int = len(X)) -> list[Any]:
    return list(zip(X[begin:end], y[begin:end], strict=True))


def weights(estimator: Any) -> list[Any]:
    if hasattr(estimator, "coefs_"):
        return [*estimator.coefs_, *estimator.intercepts_]
    return [estimator.coef_, estimator.intercept_]


# ------------------------------------------------------------------------------------------------------- the adapter


@each
def test_weights_and_the_counter_of_rows_are_trained(name: str) -> None:
    estimator = begun(name)
    assert adapter_of(estimator) is ADAPTER
    expected = ["coef_", "intercept_"]
    if "network" in name:
        expected = ["coefs_.0", "coefs_.1", "intercepts_.0", "intercepts_.1"]
    assert list(Model(estimator).names) == [*expected, "t_"]
    assert float(estimator.t_) == (10 if "network" in name else 11)


@each
def test_an_estimator_arrives_at_a_worker_as_it_is(name: str) -> None:
    estimator, (_, y) = begun(name), ESTIMATORS[name]
    model = Model(estimator)
    there = Model.from_skeleton(model.skeleton())
    there.load(model.arrays())
    assert type(there.model) is type(estimator)
    np.testing.assert_array_equal(there.model.predict(X), estimator.predict(X))
    there.model.partial_fit(X, y)
    estimator.partial_fit(X, y)
    for mine, theirs in zip(weights(estimator), weights(there.model), strict=True):
        np.testing.assert_array_equal(mine, theirs)


REFUSED = {
    "no partial_fit": (LogisticRegression(), r"LogisticRegression has no partial_fit.*SGDClassifier.*parameters="),
    "nor fitted": (LogisticRegression().fit(X, TWO), "has no partial_fit"),
    "a forest": (RandomForestClassifier(), "has no partial_fit"),
    "a pipeline": (make_pipeline(StandardScaler(), SGDClassifier()), "Pipeline has no partial_fit"),
    "lbfgs": (network(solver="lbfgs"), "solver='lbfgs' has no partial_fit, expected 'sgd' or 'adam'"),
    "no weights": (GaussianNB().partial_fit(X, TWO, classes=[0, 1]), "learns something else than coef_"),
    "clusters": (MiniBatchKMeans(), "learns something else than coef_"),
    "not fitted": (SGDClassifier(), r"SGDClassifier is not fitted yet.*partial_fit.*classes"),
    "averaged": (SGDClassifier(average=True), "average=True, expected average=False"),
    "sparse": (begun("two classes").sparsify(), r"coef_ of the SGDClassifier is sparse.*densify"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_trained_is_refused(why: str) -> None:
    estimator, words = REFUSED[why]
    with pytest.raises(UsageError, match=words):
        DeepDist(estimator)


def test_of_any_estimator_arrays_may_be_named_for_a_gradient_of_ones_own() -> None:
    estimator = LinearRegression().fit(X, NUMBERS)
    with DeepDist(estimator, parameters=["coef_"], engine=SimulatedCluster(peers=1, seed=1), progress=False) as dd:
        dd.train([[1.0]], lambda model, rows: {"coef_": np.ones(FEATURES)})
    np.testing.assert_allclose(estimator.coef_, np.arange(2.0, FEATURES + 2))


def test_a_class_with_a_fit_of_its_own_is_trained_as_any_object() -> None:
    class Own(BaseEstimator):
        def __init__(self) -> None:
            self.w = np.zeros(2)

        def fit(self, x: Any, y: Any) -> Any:
            return self

    assert list(Model(Own()).names) == ["w"]


# ------------------------------------------------------------------------------------------------------- the gradient


@each
def test_an_update_is_what_partial_fit_changes(name: str) -> None:
    (_, y), estimator, plain = ESTIMATORS[name], begun(name), begun(name)
    before = [w.copy() for w in weights(plain)]
    update = gradient(estimator, iter(rows_of(y)))
    plain.partial_fit(X, y)
    changes = [new - old for new, old in zip(weights(plain), before, strict=True)]
    for array, change in zip(list(update)[:-1], changes, strict=True):
        np.testing.assert_allclose(update[array], change, atol=1e-12)
        assert change.any()
    assert update["t_"] == len(X)


@each
def test_a_worker_learns_in_its_task_what_one_process_does(name: str) -> None:
    (_, y), estimator, plain = ESTIMATORS[name], begun(name), begun(name)
    trained = train_partition(estimator, gradient, rows_of(y), chunk_rows=100)
    for begin in (0, 100, 200):
        plain.partial_fit(X[begin : begin + 100], y[begin : begin + 100])
    for mine, theirs in zip(weights(plain), weights(trained.model), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert len(trained.updates) == 3
    assert trained.model.t_ == plain.t_


def test_rows_may_be_blocks_and_sparse() -> None:
    rest = [(sparse.csr_array(X[200:]), TWO[200:])]
    rows = [(sparse.csr_matrix(X[[row]]), [TWO[row]]) for row in range(240)]
    mixed = [(X[row].tolist(), TWO[row]) for row in range(200)] + rest
    for x, forms in (
        (X, ([(X, TWO)], [(X[:99], TWO[:99]), (X[99:], TWO[99:])])),
        (sparse.csr_array(X), ([(sparse.coo_array(X[:200]), TWO[:200]), *rest], rows, mixed)),
    ):
        plain = begun("two classes").partial_fit(x, TWO)
        for elements in forms:
            estimator = begun("two classes")
            gradient(estimator, elements)
            for mine, theirs in zip(weights(plain), weights(estimator), strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert gradient(begun("two classes"), []) == {}
    assert gradient.rows_in((X, TWO)) == len(X)


def test_features_get_the_dtype_of_the_weights() -> None:
    estimator = SGDClassifier(random_state=0).partial_fit(X.astype(np.float32), TWO, classes=[0, 1])
    assert gradient(estimator, rows_of(TWO))["coef_"].dtype == np.float32


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ([1.0], "a row is 1.0, expected"),
        ([(X[0], 0), (X[0, :2], 1)], "rows differ in their numbers of features"),
        ([(["a", "b", "c", "d"], 0)], "features of <U1, expected numbers"),
        ([(X[0], 2)], r"a row of class 2, expected one of the classes .* told of: 0, 1"),
    ],
)
def test_rows_that_cannot_be_are_refused(elements: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gradient(begun("two classes"), elements)


def test_rows_are_shuffled_by_the_seed_of_the_session() -> None:
    """Also of a network, whose generator travels with it."""
    estimator = network(random_state=None).partial_fit(X, NAMED, classes=classes(NAMED))

    def trained(seed: int) -> Any:
        there = pickle.loads(pickle.dumps(estimator))
        np.random.seed(seed)
        gradient(there, rows_of(NAMED))
        return there.coefs_[0]

    np.testing.assert_array_equal(trained(1), trained(1))
    assert not np.array_equal(trained(1), trained(2))


# ------------------------------------------------------------------------------------------------------ whole trainings


@each
def test_one_call_trains_an_estimator_that_is_not_fitted(name: str) -> None:
    make, y = ESTIMATORS[name]
    estimator = make()
    parts = [list(zip(X[part::6], y[part::6], strict=True)) for part in range(6)]
    report = fit(
        estimator,
        parts,
        classes=classes(y),
        epochs=15,
        chunk_rows=30,
        engine=SimulatedCluster(peers=2, seed=1),
        progress=False,
    )
    assert report.rows == 15 * len(X)
    assert report.updates == 15 * 6 * 2
    assert float(estimator.t_) == 15 * len(X) + (0 if "network" in name else 1), "as of scikit-learn's own"
    assert estimator.score(X, y) > 0.85
    assert type(estimator) is type(make())


@each
@pytest.mark.parametrize("blocks", [False, True], ids=["rows", "blocks, some without rows"])
def test_the_first_row_counts_once_as_all_others(name: str, blocks: bool) -> None:
    make, y = ESTIMATORS[name]
    estimator, plain = make().set_params(shuffle=False), make().set_params(shuffle=False)
    data: Any = rows_of(y)
    if blocks:
        data = [(X[:0], y[:0]), (X[:100], y[:100]), (X[:0], y[:0]), (X[100:], y[100:])]
    fit(
        estimator,
        [[], data, [(X[:0], y[:0])]],
        classes=classes(y),
        epochs=1,
        chunk_rows=len(X),
        engine=SimulatedCluster(peers=1, seed=1),
        progress=False,
    )
    plain.partial_fit(X, y, **({} if classes(y) is None else {"classes": classes(y)}))
    for mine, theirs in zip(weights(estimator), weights(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert float(estimator.t_) == float(plain.t_)
    assert estimator.get_params() == plain.get_params()


def test_classes_are_labels_or_how_many_there_are() -> None:
    for given in (2, range(2), [0, 1], np.arange(2), {0, 1}):
        estimator = SGDClassifier(random_state=0)
        fit(estimator, [rows_of(TWO)], classes=given, engine=SimulatedCluster(peers=1, seed=1), progress=False)
        assert estimator.classes_.tolist() == [0, 1]


def test_a_training_goes_on_with_what_an_estimator_has_learned() -> None:
    estimator = SGDRegressor(random_state=0).fit(X, NUMBERS)
    before = estimator.score(X, NUMBERS)
    with DeepDist(estimator, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train([rows_of(NUMBERS), rows_of(NUMBERS)], gradient, chunk_rows=40)
        assert dd.model is estimator
        assert dd.model.score(X, NUMBERS) > before - 1e-3
    seen = float(estimator.t_)
    assert float(estimator.partial_fit(X, NUMBERS).t_) == seen + len(X), "and goes on by itself"


def test_a_gradient_of_ones_own_may_call_partial_fit() -> None:
    def learn(estimator: Any, rows: Any) -> Any:
        x, y = zip(*rows, strict=True)
        copy = in_place(estimator)
        estimator.partial_fit(np.array(x), np.array(y))
        return {} if copy is None else copy.trained({})

    estimator = begun("two classes")
    with DeepDist(estimator, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train([rows_of(TWO, 0, 120), rows_of(TWO, 120)], learn, epochs=5, chunk_rows=40)
    assert estimator.score(X, TWO) > 0.9
    assert float(estimator.t_) == 11 + 5 * len(X)


@pytest.mark.parametrize("own", [False, True], ids=["ours", "of the user's own"])
def test_updates_of_peers_are_averaged(own: bool) -> None:
    def learn(estimator: Any, rows: Any) -> Any:
        return dict(gradient(estimator, rows))

    change = gradient(begun("numbers"), rows_of(NUMBERS))["coef_"]
    estimator = begun("numbers")
    before = estimator.coef_.copy()
    with DeepDist(estimator, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train([rows_of(NUMBERS)], learn if own else gradient)
    np.testing.assert_allclose(estimator.coef_ - before, change / 2, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "options", "words"),
    [
        (SGDClassifier(), {}, r"not fitted yet, expected classes=\(...\)"),
        (SGDRegressor(), {"classes": [0, 1]}, "which predicts numbers, expected None"),
        (begun("two classes"), {"classes": [0, 1, 2]}, r"classes=.*expected None, or those .* \[0, 1\]"),
        (LogisticRegression(), {}, "has no partial_fit"),
        ({"w": X}, {}, "estimator is a dict, expected one of scikit-learn"),
        (SGDClassifier(), {"chunk_rows": 0}, "chunk_rows"),
        (
            SGDClassifier,
            {"classes": 2},
            r"estimator is the class SGDClassifier, expected an object .*SGDClassifier\(\)",
        ),
        (SGDClassifier(), {"classes": "two"}, "classes='two', expected .* the labels, or how many there are"),
        (SGDClassifier(), {"classes": 1}, "classes=1, expected the labels, or how many there are"),
    ],
)
def test_calls_that_cannot_be_are_refused(estimator: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit(estimator, [rows_of(TWO)], engine=SimulatedCluster(peers=2, seed=1), progress=False, **options)


def test_data_without_rows_begin_nothing() -> None:
    with pytest.raises(UsageError, match="data has no rows"):
        fit(SGDClassifier(), [[], list], classes=[0, 1], engine=SimulatedCluster(peers=2, seed=1), progress=False)


def test_an_error_of_an_estimator_is_raised_as_it_is() -> None:
    estimator = begun("two classes")
    rows = [(np.full(FEATURES, np.nan), 1)]
    with pytest.raises((ValueError, PartitionError), match="NaN"):
        train_partition(estimator, gradient, rows)


# -------------------------------------------------------------------------------------------------- against one process


def digits(seed: int) -> tuple[Any, Any, Any, Any]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order] / 16, y[order]
    return x[:1400], y[:1400], x[1400:], y[1400:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: SGDClassifier(loss="log_loss", random_state=0),
        lambda: network(hidden_layer_sizes=(50,), solver="sgd", batch_size=32, learning_rate_init=0.05),
    ],
    ids=["SGDClassifier", "MLPClassifier"],
)
def test_four_peers_are_within_two_points_of_one_process_on_digits(make: Any) -> None:
    x, y, new_x, new_y = digits(seed=1)
    alone = make()
    for epoch in range(10):
        order = np.random.default_rng(epoch).permutation(len(x))
        for begin in range(0, len(x), 100):
            rows = order[begin : begin + 100]
            alone.partial_fit(x[rows], y[rows], classes=range(10))
    together = make()
    parts = [list(zip(x[part::8], y[part::8], strict=True)) for part in range(8)]
    fit(together, parts, classes=range(10), engine=SimulatedCluster(peers=4, seed=1), progress=False)
    assert together.score(new_x, new_y) > alone.score(new_x, new_y) - 0.02


@pytest.mark.slow
@pytest.mark.sockets
def test_processes_train_an_estimator(place: Any) -> None:
    estimator = network()
    parts = [rows_of(NAMED, begin, begin + 60) for begin in range(0, 240, 60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(estimator, parts, classes=classes(NAMED), epochs=30, chunk_rows=20, peers=2, progress=False)
    assert estimator.score(X, NAMED) > 0.9
    assert float(estimator.t_) == 30 * 240
