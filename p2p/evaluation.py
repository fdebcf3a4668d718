"""Evaluation while a training runs: copies of the driver program's replica, one after the other, in a thread.

    observer's replica  -- a copy, under the replica's lock -->  a model of this thread's own  --> evaluate(model)

Where peers mix, the copy is the mean of all their replicas, read from the agents one after the other; and how far these
are apart is part of the result.

The peers neither wait nor know of it: they train in other processes. What is left of a machine's cores is all it takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from gossip.arguments import seconds
from gossip.errors import UsageError
from p2p.model import Model
from p2p.report import Evaluated

CANCEL_S = 0.2
"""How often an engine is asked to end."""
STOP_TIMEOUT_S = 5.0
"""For an evaluation to end, when the training failed or was interrupted."""

Evaluate = Callable[[Any], float | Mapping[str, float]]
"""`evaluate(model)`: a number, or several by name; the model is a copy that it may change."""


@dataclass(frozen=True)
class Seen:
    """What was read for an evaluation, beside the model."""

    merged: int
    """Updates in it, of all trainings."""
    consensus_distance: float | None = None
    """Of the replicas that it is the mean of; None where one was read."""
    spread: float | None = None
    """The same; see `Evaluated`."""


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and how often."""

    evaluate: Evaluate
    every_s: float
    """Between the beginnings of two evaluations, at least."""
    show: Callable[[Evaluated], object]
    """Called with each result as it comes, in the thread of the evaluation."""

    def of(self, model: Any, seconds: float, updates: int, seen: Seen | None = None) -> Evaluated:
        """Evaluate now."""
        apart = (None, None) if seen is None else (seen.consensus_distance, seen.spread)
        found = self.evaluate(model)
        values = {str(name): _number(value) for name, value in _named(found).items()}
        result = Evaluated(seconds, updates, values, *apart)
        self.show(result)
        return result


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


class Evaluator:
    """The thread of one training; without an evaluation it does nothing. Errors of the user's are in `error`."""

    def __init__(
        self,
        evaluation: Evaluation | None,
        skeleton: bytes,
        read: Callable[[Model], Seen],
        cancel: Callable[[], None],
    ) -> None:
        """`read(model)` copies what has been learned so far into the model, and says what it read. `cancel` ends the
        training when `evaluate` fails."""
        self._evaluation = evaluation
        self._read = read
        self._cancel = cancel
        self.error: Exception | None = None
        self._results: list[Evaluated] = []
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._merged_before = 0
        self._model: Model | None = None
        if evaluation is not None:
            self._model = Model.from_skeleton(skeleton)
            self._merged_before = read(self._model).merged
        self._thread = threading.Thread(target=self._run, name="deepdist-evaluation", daemon=True)

    def __enter__(self) -> Self:
        if self._evaluation is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._evaluation is not None:
            self._thread.join(None if error is None else STOP_TIMEOUT_S)

    def finish(self) -> tuple[Evaluated, ...]:
        """All results, and that of the model as it is in the end. What `evaluate` raises comes out here."""
        if self._evaluation is not None:
            if self.error is not None:
                raise self.error
            self._evaluate()
        return tuple(self._results)

    def _run(self) -> None:
        assert self._evaluation is not None
        while not self._ended.is_set():
            begin = time.monotonic()
            try:
                self._evaluate()
            except Exception as error:  # noqa: BLE001 - raised again by the main thread
                error.add_note("in evaluate(model), while the training ran")
                self.error = error
                while not self._ended.is_set():  # the engine may not have begun yet
                    self._cancel()
                    self._ended.wait(CANCEL_S)
                return
            self._ended.wait(max(0.0, begin + self._evaluation.every_s - time.monotonic()))

    def _evaluate(self) -> None:
        assert self._evaluation is not None
        assert self._model is not None
        seconds = time.monotonic() - self._began
        seen = self._read(self._model)
        updates = max(0, seen.merged - self._merged_before)
        self._results.append(self._evaluation.of(self._model.model, seconds, updates, seen))


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
