"""Linear models in one call: `fit(model, data)` trains by passes over the data, until nothing changes any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from gossip.arguments import function, instance, integer, number
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.deepdist import DeepDist
from p2p.descents import SGD, AdaGrad
from p2p.engines import Engine
from p2p.models.linear.model import LinearModel, gradient
from p2p.models.linear.newton import Newton, Parabolas
from p2p.report import Evaluated, Report
from p2p.sessions.cluster import SimulatedCluster

PARABOLAS_BYTES_MAX = 1 << 26
"""Of all partitions together: every peer has them, and each update is written whole before its rows travel."""
ROSE = 1e-6
"""By more than this part the mean loss does not rise because of rounding."""


def fit(
    model: LinearModel,
    data: Any,
    descent: SGD | Callable[[Any, Any], Any] | None = None,
    *,
    epochs: int = 20,
    tolerance: float | None = None,
    chunk_rows: int | None = None,
    peers: int | None = None,
    mode: Literal["p2p", "master"] = "p2p",
    engine: SimulatedCluster | Engine | None = None,
    evaluate: Callable[[LinearModel], float | Mapping[str, float]] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    drain_timeout_s: float = 60.0,
) -> Report:
    """Train `model` on `data`, in place, and return the report of all passes.

    `data` is an RDD or a list of partitions, as in `DeepDist.train`, of rows (features, label) or of blocks of rows
    (features (n, d), labels (n,)), which are faster; features are dense arrays or sparse matrices of scipy. Training
    begins with the model's weights. There is no rate: every peer minimizes parabolas of all partitions' losses, see
    `p2p.models.linear.newton`. It takes at most `epochs` passes over the data, and ends earlier when a pass lowers the
    objective by less than `tolerance` of it (1e-8). `evaluate(model)` is called after each pass, and returns a number,
    or several by name: see `Report.evaluations`. The other options are those of `DeepDist`.

    Parabolas take the square of the number of features for each partition. Where that is too much, `descent` trains
    instead, such as `AdaGrad(Linear(0.3))` of `p2p.descents`, by an update for each `chunk_rows` elements, in just
    `epochs` passes. Updates then travel as the rows of features that they change: without l2, those that the
    chunk has.

    Raises:
        UsageError: data, labels or an option cannot be, or parabolas take too much.
    """
    instance("model", model, LinearModel)
    epochs = integer("epochs", epochs, 1)
    if evaluate is not None:
        function("evaluate", evaluate, "evaluate(model)")
    options: dict[str, Any] = {"peers": peers, "engine": engine, "seed": seed, "progress": progress}
    options["drain_timeout_s"] = drain_timeout_s
    if descent is not None:
        return _by_descent(model, data, descent, epochs, tolerance, chunk_rows, evaluate, mode, options)
    if chunk_rows is not None:
        raise UsageError(f"chunk_rows={chunk_rows!r} without a descent, expected None: partitions are taken whole")
    tolerance = 1e-8 if tolerance is None else number("tolerance", tolerance, "a number, at least 0", _is_at_least_0)
    newton = _newton(model)
    parabolas = _parabolas(len(newton.start), partitions_of(data), model.features)
    fitting = _Fitting(model, newton, tolerance, evaluate)
    with DeepDist(parabolas, mode, **options) as dd:
        for _ in range(epochs):
            first = not fitting.reports
            if fitting.ends(dd.train(data, replace(newton, first=first)), dd.model):
                break
    return fitting.report()


def _by_descent(
    model: LinearModel,
    data: Any,
    descent: Any,
    epochs: int,
    tolerance: float | None,
    chunk_rows: int | None,
    evaluate: Any,
    mode: Literal["p2p", "master"],
    options: dict[str, Any],
) -> Report:
    function("descent", descent, "descent(model, update)")
    if tolerance is not None:
        raise UsageError(
            f"tolerance={tolerance!r} with a descent, expected None: it makes as many passes as it is told"
        )
    if isinstance(descent, AdaGrad):
        descent.prepare(model)
    with DeepDist(model, mode, **options) as dd:
        return dd.train(data, gradient, descent, epochs, chunk_rows=chunk_rows, evaluate=evaluate)


def _is_at_least_0(value: float) -> bool:
    return 0 <= value < np.inf


class _Fitting:
    """How a training stands between two passes."""

    def __init__(self, model: LinearModel, newton: Newton, tolerance: float, evaluate: Any) -> None:
        self.reports: list[Report] = []
        self._model = model
        self._newton = newton
        self._tolerance = tolerance
        self._evaluate = evaluate
        self._points: list[Evaluated] = []
        self._w = newton.start
        self._loss = np.inf

    def ends(self, report: Report, trained: Parabolas) -> bool:
        """Take in a pass, and say what the next one has to know; whether there need be none."""
        self.reports.append(report)
        rows, loss = trained.totals.sum(axis=0)
        if not rows:
            raise UsageError("data has no rows, expected some to train on")
        objective = loss / rows + self._model.penalty()
        w = self._newton.minimum(trained)
        _show(self._model, w)
        if self._evaluate is not None:
            seconds, updates = (sum(getattr(each, name) for each in self.reports) for name in ("seconds", "updates"))
            self._points.append(Evaluated(seconds, updates, _values(self._evaluate(self._model))))
        rose = objective > self._loss * (1 + ROSE)
        settled = self._newton.gain(trained, w - self._w) <= self._tolerance * objective
        if settled and not rose:
            return True
        trained.careful[0] = float(rose)
        self._w, self._loss = w, objective
        return False

    def report(self) -> Report:
        """One report of all passes; figures of peers are of the whole session anyway."""
        lost: dict[str, int] = {}
        for report in self.reports:
            for cause, count in report.lost.items():
                lost[cause] = lost.get(cause, 0) + count
        return replace(
            self.reports[-1],
            rows=sum(each.rows for each in self.reports),
            seconds=sum(each.seconds for each in self.reports),
            updates=sum(each.updates for each in self.reports),
            updates_lost=sum(each.updates_lost for each in self.reports),
            lost=lost,
            evaluations=tuple(self._points),
            story=tuple(line for each in self.reports for line in each.story),
        )


def partitions_of(data: Any) -> int:
    """How many partitions an RDD or a list of them has."""
    if isinstance(data, list | tuple):
        return len(data)
    if hasattr(data, "getNumPartitions"):
        return int(data.getNumPartitions())
    raise UsageError(f"data is a {type(data).__name__}, expected an RDD or a list of partitions")


def _newton(model: LinearModel) -> Newton:
    outputs = len(model.intercept)
    start = np.concatenate([model.weights, model.intercept[None]]) if model.bias else model.weights
    return Newton(model.loss, model.features, outputs, model.l1, model.l2, model.bias, start.reshape(-1).copy())


def _parabolas(size: int, partitions: int, features: int) -> Parabolas:
    wanted = partitions * size * size * 8
    if wanted > PARABOLAS_BYTES_MAX:
        raise UsageError(
            f"{partitions} partitions of {size} weights: their curvatures take {wanted:,} bytes at every peer, "
            f"expected at most {PARABOLAS_BYTES_MAX:,}; merge partitions (rdd.coalesce), or train by a descent, as in "
            "fit(model, data, AdaGrad(Linear(0.3)), chunk_rows=100)"
        )
    return Parabolas(partitions, size, features)


def _show(model: LinearModel, w: Array) -> None:
    """Write the weights into the user's model."""
    rows = w.reshape(-1, len(model.intercept))
    model.weights[...] = rows[: model.features]
    if model.bias:
        model.intercept[...] = rows[-1]


def _values(found: Any) -> dict[str, float]:
    """What `evaluate` said, by name."""
    named = found if isinstance(found, Mapping) else {"value": found}
    return {str(name): number(f"evaluate(model)[{name!r}]", value, "a number") for name, value in named.items()}
