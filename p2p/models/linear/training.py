"""Linear models in one call: `fit(model, data)` trains by passes over the data, until nothing changes any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from gossip.arguments import function, instance, integer, number
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import arguments
from p2p.adapters.model import Model
from p2p.checkpoint import reading
from p2p.descents import SGD, AdaGrad
from p2p.driver.stopping import StopWhen
from p2p.engines import Engine
from p2p.models.checkpoints import Checkpointing
from p2p.models.linear.model import LinearModel, gradient
from p2p.models.linear.newton import Newton, Parabolas
from p2p.report import Checkpoints, Evaluated, Report
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
    stop_when: StopWhen | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every_s: float | None = None,
    keep: int | None = None,
    resume: bool = False,
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
    or several by name: see `Report.evaluations`. `resume` goes on with the newest of the checkpoints at
    `checkpoint`, and begins where none are. Passes that are done count; as it is not known any more how much the last
    one gained, there may be one more than without a break. The other options are those of `DeepDist` and its `train`.

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
    checkpoints = Checkpointing(checkpoint, every_s, keep, resume)
    options: dict[str, Any] = {"peers": peers, "engine": engine, "seed": seed, "progress": progress}
    options["drain_timeout_s"] = drain_timeout_s
    if descent is not None:
        told = {"chunk_rows": chunk_rows, "evaluate": evaluate, "stop_when": stop_when}
        return _by_descent(model, data, descent, epochs, tolerance, told, mode, checkpoints, options)
    if chunk_rows is not None:
        raise UsageError(f"chunk_rows={chunk_rows!r} without a descent, expected None: partitions are taken whole")
    tolerance = 1e-8 if tolerance is None else number("tolerance", tolerance, "a number, at least 0", _is_at_least_0)
    newton = _newton(model)
    parabolas = _parabolas(len(newton.start), partitions_of(data), model.features)
    fitting = _Fitting(model, newton, tolerance, evaluate, stop_when)
    return _by_newton(data, newton, parabolas, fitting, epochs, mode, checkpoints, options)


def _by_newton(
    data: Any,
    newton: Newton,
    parabolas: Parabolas,
    fitting: _Fitting,
    epochs: int,
    mode: Literal["p2p", "master"],
    checkpoints: Checkpointing,
    options: dict[str, Any],
) -> Report:
    """Each pass is a training, and those of a checkpoint that are done are before it."""
    path = checkpoints.path
    begun = 0 if path is None else reading.read(path).record.training.epochs_before
    if begun:
        fitting.go_on()
    with checkpoints.session(parabolas, mode, **options) as dd:
        for passes in range(begun, max(epochs, begun + 1)):
            report = dd.train(data, replace(newton, first=passes == 0), **checkpoints.training)
            if fitting.ends(report, dd.model):
                break
    return fitting.report()


def _by_descent(
    model: LinearModel,
    data: Any,
    descent: Any,
    epochs: int,
    tolerance: float | None,
    told: dict[str, Any],
    mode: Literal["p2p", "master"],
    checkpoints: Checkpointing,
    options: dict[str, Any],
) -> Report:
    function("descent", descent, "descent(model, update)")
    if tolerance is not None:
        raise UsageError(
            f"tolerance={tolerance!r} with a descent, expected None: it makes as many passes as it is told"
        )
    if isinstance(descent, AdaGrad):
        descent.prepare(model)
    with checkpoints.session(model, mode, **options) as dd:
        return dd.train(data, gradient, descent, epochs, **told, **checkpoints.training)


def _is_at_least_0(value: float) -> bool:
    return 0 <= value < np.inf


class _Fitting:
    """How a training stands between two passes."""

    def __init__(
        self, model: LinearModel, newton: Newton, tolerance: float, evaluate: Any, stop_when: StopWhen | None = None
    ) -> None:
        self.reports: list[Report] = []
        self._model = model
        self._parts = Model(model)
        self._newton = newton
        self._tolerance = tolerance
        self._evaluate = evaluate
        self._stopping = arguments.stopping(stop_when, evaluate, self._parts)
        self._points: list[Evaluated] = []
        self._w: Array | None = newton.start
        """Those of the pass before; None where it is not known which they were."""
        self._loss = np.inf

    def go_on(self) -> None:
        """Passes of another session were before."""
        self._w = None

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
            self._stopping.about_to_evaluate(self._model)
            self._points.append(Evaluated(seconds, updates, _values(self._evaluate(self._model))))
            self._stopping.evaluated(self._points, False)
        rose = objective > self._loss * (1 + ROSE)
        settled = self._w is not None and self._newton.gain(trained, w - self._w) <= self._tolerance * objective
        if (settled and not rose) or self._stopping.has_stopped:
            return True
        trained.careful[0] = float(rose)
        known = self._w is not None  # else the penalty was not that of the weights at which losses were taken
        self._w, self._loss = w, objective if known else np.inf
        return False

    def report(self) -> Report:
        """One report of all passes, and the best model; figures of peers are of the whole session anyway."""
        if self._stopping.best is not None:
            self._parts.load(self._stopping.best)
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
            ended=self._stopping.ended,
            checkpoints=_summed([each.checkpoints for each in self.reports if each.checkpoints is not None]),
            story=tuple(line for each in self.reports for line in each.story),
        )


def _summed(each: Sequence[Checkpoints]) -> Checkpoints | None:
    """Of all passes."""
    if not each:
        return None
    return replace(
        each[-1],
        written=sum(one.written for one in each),
        failed=sum(one.failed for one in each),
        seconds=sum(one.seconds for one in each),
        last_error=next((one.last_error for one in reversed(each) if one.last_error), each[-1].last_error),
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
