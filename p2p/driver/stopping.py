"""When a training ends before all partitions are done: because the evaluations say so, and what the model is then."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gossip.arguments import integer, one_of
from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.report import Evaluated

StopWhen = Callable[[Sequence[Evaluated]], Any]
"""`stop_when(evaluations)`: whether to end the training, by the evaluations so far, the oldest first."""


@dataclass(frozen=True)
class Patience:
    """Stop when a metric has not improved in `rounds` evaluations; the model is that of the best one then.

    `metric` is a name that `evaluate` returns, "value" for a single number. `mode`: "max" where more is better, "min"
    where less is. What is better by no more than `least` is no improvement. A NaN never is.
    """

    metric: str
    rounds: int = 3
    mode: Literal["max", "min"] = "max"
    least: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str):
            raise UsageError(f"metric is a {type(self.metric).__name__}, expected a name that evaluate returns")
        object.__setattr__(self, "rounds", integer("rounds", self.rounds, 1))
        one_of("mode", self.mode, ("max", "min"))
        if isinstance(self.least, bool) or not isinstance(self.least, int | float) or not 0 <= self.least < math.inf:
            raise UsageError(f"least={self.least!r}, expected a number of at least 0")

    def best(self, evaluations: Sequence[Evaluated]) -> int:
        """The place of the best evaluation: the first that none after it improved upon.

        Raises:
            UsageError: `evaluate` does not return the metric.
        """
        sign = 1.0 if self.mode == "max" else -1.0
        best, value = 0, -math.inf
        for index, evaluated in enumerate(evaluations):
            if self.metric not in evaluated.values:
                raise UsageError(
                    f"stop_when looks for the metric {self.metric!r}, which evaluate does not return: expected one of "
                    f"{', '.join(map(repr, evaluated.values))}"
                )
            if sign * evaluated.values[self.metric] > value + (self.least if value > -math.inf else 0.0):
                best, value = index, sign * evaluated.values[self.metric]
        return best

    def __call__(self, evaluations: Sequence[Evaluated]) -> bool:
        """Whether to stop."""
        return len(evaluations) - 1 - self.best(evaluations) >= self.rounds


class Stopping:
    """How one training ends, and its best model so far."""

    def __init__(self, decide: StopWhen | None = None, arrays_of: Callable[[Any], dict[str, Array]] = dict) -> None:
        """`arrays_of(model)` are those of a model that was shown."""
        self.ended = "done"
        """As `Report.ended`."""
        self.best: dict[str, Array] | None = None
        """Copies of the best model's arrays, where `decide` tells which that is."""
        self._decide = decide
        self._arrays_of = arrays_of
        self._candidate: dict[str, Array] | None = None

    @property
    def has_stopped(self) -> bool:
        """The evaluations have said so."""
        return self.ended.startswith("stopped")

    def about_to_evaluate(self, model: Any) -> None:
        """Keep a copy: the evaluation may change the model."""
        if isinstance(self._decide, Patience):
            self._candidate = {name: array.copy() for name, array in self._arrays_of(model).items()}

    def evaluated(self, evaluations: Sequence[Evaluated], training_ended: bool) -> None:
        """One more evaluation is there."""
        if self._decide is None:
            return
        if isinstance(self._decide, Patience) and self._decide.best(evaluations) == len(evaluations) - 1:
            # a first one that is no number is not better than what comes of training on
            self.best = None if math.isnan(evaluations[-1].values[self._decide.metric]) else self._candidate
        self._candidate = None
        if not training_ended and not self.has_stopped and self._decide(list(evaluations)):
            self.ended = f"stopped: {_why(self._decide)}"


def _why(decide: StopWhen) -> str:
    if isinstance(decide, Patience):
        return f"no improvement of {decide.metric} in {decide.rounds} evaluations"
    return f"{getattr(decide, '__name__', type(decide).__name__)}(evaluations) said so"
