"""A gradient for estimators of scikit-learn: `partial_fit` of a chunk; what it changed is the update.

row      (x (features,), y)                  x may be a sparse matrix of one row
block    (x (rows, features), y (rows,))     dense or sparse; a y of several outputs is (rows, outputs)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.models.linear.blocks import rows_in
from p2p.models.sklearn.adapter import ADAPTER
from p2p.worker import task

NO_RATE = 1e-300
"""Above 0, as scikit-learn wants it: a step of so little leaves any weight as it is."""


def gradient(estimator: Any, rows: Iterable[Any]) -> Mapping[str, Array]:
    """What `estimator.partial_fit` of these rows or blocks, all at once, changed, by the names of its arrays.

    A linear estimator takes a step for each row, a network for each `batch_size` of them. Features get the dtype of the
    estimator's weights. Where its `random_state` is None, rows are shuffled by the session's seed.

    Raises:
        UsageError: rows that differ in shape, or a class that the estimator was not told of.
    """
    elements = list(rows)
    if not elements:
        return {}
    x, y = stacked(elements)
    if not x.shape[0]:
        return {}
    copy = task.in_place(estimator)
    names = ADAPTER.names(estimator) if copy is None else copy.model.names
    keys = {name: ADAPTER.key(estimator, name) for name in names}
    before = {} if copy is not None else {name: ADAPTER.find(estimator, key).copy() for name, key in keys.items()}
    _check_classes(estimator, y)
    weights = estimator.coefs_[0] if hasattr(estimator, "coefs_") else estimator.coef_
    partial_fit(estimator, x.astype(weights.dtype, copy=False), y)
    if copy is None:  # outside of a training
        return {name: np.asarray(ADAPTER.find(estimator, keys[name]) - old) for name, old in before.items()}
    return dict(copy.trained({}))


gradient.rows_in = rows_in  # type: ignore[attr-defined]


def partial_fit(estimator: Any, x: Any, y: Array, **classes: Any) -> None:
    """`estimator.partial_fit`, which need not warn of fewer rows than the batch of a network: partitions end so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got `batch_size` less than 1 or larger than sample size")
        estimator.partial_fit(x, y, **classes)


def begin(estimator: Any, x: Any, y: Array, **classes: Any) -> None:
    """Give an estimator that is not fitted its arrays, as they are before it learns anything: of the rows only what
    they look like matters."""
    if not hasattr(estimator, "hidden_layer_sizes"):
        partial_fit(estimator, x, y, **classes)
        estimator.coef_[...] = 0
        estimator.intercept_[...] = 0
        estimator.t_ = 1.0
        return
    rate, estimator.learning_rate_init = estimator.learning_rate_init, NO_RATE
    try:
        partial_fit(estimator, x, y, **classes)
    finally:
        estimator.learning_rate_init = rate
    vars(estimator).pop("_optimizer", None)  # it has the rate, and moments of these rows; the next call makes another
    estimator.t_ = estimator.n_iter_ = 0
    estimator.loss_curve_, estimator.best_loss_ = [], np.inf


def stacked(elements: list[Any]) -> tuple[Any, Array]:
    """One block of all rows and blocks: (rows, features), and (rows,) or (rows, outputs)."""
    xs, ys = [], []
    for element in elements:
        if not isinstance(element, tuple | list) or len(element) != 2:
            raise UsageError(
                f"a row is {element!r:.80}, expected (features, y), or a block of rows: (features (n, d), y (n,))"
            )
        x, y = element
        is_block = len(getattr(x, "shape", ())) == 2
        xs.append(sparse.csr_matrix(x) if sparse.issparse(x) else np.atleast_2d(np.asarray(x)))
        ys.append(np.asarray(y) if is_block and np.ndim(y) else np.asarray(y)[None])
    if len({x.shape[1:] for x in xs}) > 1 or len({y.shape[1:] for y in ys}) > 1:
        raise UsageError("rows differ in their numbers of features or outputs, expected the same in each")
    x = sparse.vstack(xs, format="csr") if any(map(sparse.issparse, xs)) else np.concatenate(xs)
    if x.dtype.kind not in "biuf":
        raise UsageError(f"features of {x.dtype}, expected numbers")
    return x, np.concatenate(ys)


def _check_classes(estimator: Any, y: Array) -> None:
    """A linear classifier of scikit-learn takes a class that it does not know for none of its own, without a word."""
    known = getattr(estimator, "classes_", None)
    if isinstance(known, np.ndarray) and y.ndim == 1 and not (told := np.isin(y, known)).all():
        raise UsageError(
            f"a row of class {y[~told].tolist()[0]!r}, expected one of the classes that the estimator was told of: "
            f"{', '.join(map(str, known[:10]))}{', ...' if len(known) > 10 else ''}"
        )
