"""Evaluation while a training runs: a watcher that keeps what the user's `evaluate(model)` says of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gossip.arguments import seconds
from gossip.errors import UsageError
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import Moment
from p2p.report import Evaluated

Evaluate = Callable[[Any], float | Mapping[str, float]]
"""`evaluate(model)`: a number, or several by name; the model is a copy that it may change."""


class Evaluation:
    """What to evaluate, how often, and what came of it so far."""

    def __init__(
        self,
        evaluate: Evaluate,
        every_s: float,
        show: Callable[[Evaluated], object],
        stopping: Stopping | None = None,
    ) -> None:
        """`show` is called with each result as it comes, in the thread that looks; `stopping` hears of it as well."""
        self.every_s = every_s
        self.results: list[Evaluated] = []
        self._evaluate = evaluate
        self._show = show
        self._stopping = stopping or Stopping()

    def __str__(self) -> str:
        return "evaluate(model)"

    def look(self, model: Any, moment: Moment) -> None:
        """Evaluate now."""
        self._stopping.about_to_evaluate(model)
        values = {str(name): _number(value) for name, value in _named(self._evaluate(model)).items()}
        result = Evaluated(moment.seconds, moment.updates, values, moment.consensus_distance, moment.spread)
        self.results.append(result)
        self._show(result)
        self._stopping.evaluated(self.results, moment.ended)


def _named(found: Any) -> Mapping[Any, Any]:
    return found if isinstance(found, Mapping) else {"value": found}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"evaluate returned {value!r:.80}, a {type(value).__name__}: expected a number, or a mapping of names to "
            "numbers"
        ) from None


def checked(evaluate: Any, every_s: Any, otherwise: float) -> float:
    """How often to evaluate, `otherwise` if that is not said. Raise `UsageError` for what cannot be."""
    if evaluate is not None and not callable(evaluate):
        raise UsageError(
            f"evaluate is a {type(evaluate).__name__}, expected a function evaluate(model) that returns a number, or a "
            "mapping of names to numbers"
        )
    if every_s is None:
        return otherwise
    checked_s = seconds("evaluate_every_s", every_s)
    if evaluate is None:
        raise UsageError(f"evaluate_every_s={every_s!r} without evaluate, expected both: say what to evaluate")
    return checked_s
