"""Estimators of scikit-learn in one call: `fit(estimator, data, classes=...)` trains the estimator in place."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from gossip.arguments import integer
from gossip.errors import UsageError
from p2p import arguments
from p2p.adapters import adapter_of
from p2p.driver.stopping import StopWhen
from p2p.engines import Engine
from p2p.engines.choice import is_rdd
from p2p.models.checkpoints import Checkpointing
from p2p.models.sklearn.adapter import ADAPTER, check_learns_by_parts, is_fitted, is_sklearns
from p2p.models.sklearn.partial_fit import begin, gradient, stacked
from p2p.report import Report
from p2p.sessions.cluster import SimulatedCluster


def fit(
    estimator: Any,
    data: Any,
    *,
    classes: int | Iterable[Any] | None = None,
    epochs: int = 10,
    chunk_rows: int = 100,
    combine: str | None = None,
    peers: int | None = None,
    engine: SimulatedCluster | Engine | None = None,
    evaluate: Callable[[Any], float | Mapping[str, float]] | None = None,
    evaluate_every_s: float | None = None,
    stop_when: StopWhen | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every_s: float | None = None,
    keep: int | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    discipline: Literal["replicate", "mix"] = "replicate",
) -> Report:
    """Train `estimator` on `data` by its `partial_fit`, in place, and return the report.

    `data` is an RDD or a list of partitions of rows (features, y), or of blocks of rows (features (n, d), y (n,));
    features are dense arrays or sparse matrices of scipy. Training begins with what the estimator has learned. Of one
    that is not fitted yet the first rows of the data tell what it is to have; a classifier needs `classes` for that:
    all labels that the data has, or how many there are, from 0. Peers exchange after `chunk_rows` elements: where these
    are blocks, take 1. `resume` goes on with the newest of the checkpoints at `checkpoint`, and begins where none are.
    The other options are those of `DeepDist` and its `train`.

    Raises:
        UsageError: an estimator that cannot be trained so, or data, classes or an option that cannot be.
    """
    _check(estimator)
    checkpoints = Checkpointing(checkpoint, every_s, keep, resume)
    chunk_rows = integer("chunk_rows", chunk_rows, 1)
    labels = _all_of(classes)
    if engine is None or isinstance(engine, SimulatedCluster):
        data = arguments.partitions(data)
    if not is_fitted(estimator):
        _begin(estimator, data, labels)
    elif labels is not None and np.unique(labels).tolist() != (told := _labels(estimator)):
        raise UsageError(f"classes={labels.tolist()}, expected None, or those that the estimator was told of: {told}")
    options: dict[str, Any] = {"peers": peers, "engine": engine, "seed": seed, "progress": progress}
    with checkpoints.session(estimator, discipline=discipline, **options) as dd:
        return dd.train(
            data,
            gradient,
            epochs=epochs,
            chunk_rows=chunk_rows,
            combine=combine,
            evaluate=evaluate,
            evaluate_every_s=evaluate_every_s,
            stop_when=stop_when,
            **checkpoints.training,
        )


def _check(estimator: Any) -> None:
    """Raise `UsageError` for what is no estimator that learns by parts."""
    if isinstance(estimator, type):
        name = estimator.__name__
        raise UsageError(f"estimator is the class {name}, expected an object of it: {name}()")
    if adapter_of(estimator) is not ADAPTER or not is_sklearns(estimator):
        raise UsageError(f"estimator is a {type(estimator).__name__}, expected one of scikit-learn with partial_fit")
    check_learns_by_parts(estimator)


def _all_of(classes: Any) -> Any:
    """The labels, as an array."""
    if classes is None:
        return None
    if isinstance(classes, str | bytes) or not isinstance(classes, Iterable):
        return np.arange(integer("classes", classes, 2, "the labels, or how many there are, from 0: at least 2"))
    return np.asarray(list(classes))


def _begin(estimator: Any, data: Any, classes: Any) -> None:
    """Give the estimator its arrays, by the first element that has rows."""
    takes_classes = "classes" in inspect.signature(estimator.partial_fit).parameters
    if takes_classes and classes is None:
        raise UsageError(
            f"the {type(estimator).__name__} is not fitted yet, expected classes=(...): all labels that the data has, "
            "or how many, as a peer may not see each of them"
        )
    if classes is not None and not takes_classes:
        raise UsageError(f"classes for a {type(estimator).__name__}, which predicts numbers, expected None")
    x, y = stacked([_first(data)])
    begin(estimator, x, y, **({"classes": classes} if takes_classes else {}))


def _labels(estimator: Any) -> list[Any]:
    """All that a fitted estimator knows."""
    return list(np.asarray(getattr(estimator, "classes_", [])).tolist())


def _first(data: Any) -> Any:
    if is_rdd(data):
        partitions: Iterable[Any] = [data.filter(_has_rows).take(1)]
    elif isinstance(data, list):
        partitions = data
    else:
        raise UsageError("the estimator is not fitted yet, expected partial_fit of some rows before this engine trains")
    for partition in partitions:
        for element in partition() if callable(partition) else partition:
            if _has_rows(element):
                return element
    raise UsageError("data has no rows, expected some to train on")


def _has_rows(element: Any) -> bool:
    """It is a row, or a block of some; or something else, which is refused where it is read."""
    return not (isinstance(element, tuple | list) and element and np.shape(element[0])[:1] == (0,))
