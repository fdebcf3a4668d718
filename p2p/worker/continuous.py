"""A partition by one call of the gradient, with exchanges in the middle, where it pauses and the time has come.

The chunk of an update's unit is the number of rows of the partition that are trained with it. So a later attempt goes
on behind the rows that earlier ones have published, as far as this agent knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

from gossip.errors import UsageError
from p2p.adapters.watch import is_nothing, nothing_returned
from p2p.worker.attempt import BesideAgent
from p2p.worker.job import TaskResult
from p2p.worker.running import CountedRows, running
from p2p.worker.working_copy import Trained, WorkingCopy


class Continuous:
    """One attempt at a partition."""

    def __init__(self, attempt: BesideAgent, copy: WorkingCopy, clock: Callable[[], float] = time.monotonic) -> None:
        self._attempt = attempt
        self._agent = attempt.agent
        self._copy = copy
        self._clock = clock
        self._rows = CountedRows(())
        self._exchanged = 0
        """Rows that are trained with what has been published."""
        self._merged_at = 0
        self._next_at = 0.0
        """When to exchange again."""
        self._updates = 0
        """Published by this attempt,"""
        self._units = 0
        """and by any."""

    def train(self, rows: Iterable[Any]) -> TaskResult:
        """Train with all rows that no earlier attempt has published."""
        attempt, copy = self._attempt, self._copy
        if attempt.is_over:
            return TaskResult(0, 0, 0)
        counted = self._rows = CountedRows(rows, getattr(self._attempt.job.gradient, "rows_in", None))
        published = attempt.published() if attempt.number or attempt.job.resumes else 0
        self._exchanged = sum(1 for _ in islice(counted, published))
        head = list(islice(counted, 1))
        if not head:
            return TaskResult(counted.rows, 0, 0)
        with running(attempt.info(), counted, copy, self._exchange):
            self._begin()
            attempt.seed(self._exchanged)
            watch, gradient = copy.model.watch, attempt.job.gradient
            update = watch.gradient(copy.model, gradient, chain(head, counted), others_train=True)
        with running(attempt.info(), counted, copy):
            for _ in counted:  # what the gradient left
                pass
            self._end(update)
        return TaskResult(counted.rows, self._updates, self._units, copy.model.watch.told())

    def _begin(self) -> None:
        self._merged_at = self._copy.begin(self._agent.replica)
        self._copy.keep_base()
        self._next_at = self._clock() + self._attempt.job.rhythm.every_s

    def _exchange(self, untrained: int) -> bool:
        """The gradient pauses; so many of the rows that it has read are not in the model yet."""
        trained = self._rows.count - untrained
        if self._clock() < self._next_at or trained <= self._exchanged:
            return False
        self._publish(self._copy.exchanged(self._agent, {}), trained)
        self._begin()
        return True

    def _publish(self, update: Any, trained: int) -> None:
        """Hand over what so many rows led to."""
        unit, number = self._attempt.unit(trained), self._attempt.number
        if self._agent.publish(update, self._merged_at, unit=unit, attempt=number):
            self._copy.published(self._agent.replica)
            self._updates += 1
        self._units += 1
        self._exchanged = trained

    def _end(self, update: Any) -> None:
        """Publish what the gradient has trained since the last exchange."""
        copy, attempt, count = self._copy, self._attempt, self._rows.count
        if isinstance(update, Trained) and update.copy is copy:
            copy.model.watch.in_place()
            if count > self._exchanged:
                self._publish(copy.exchanged(self._agent, update.extra), count)
            if rest := copy.rest(self._agent.replica, attempt.job.going_on(attempt.epoch, attempt.partition)):
                self._publish(self._agent.pack(rest), count + 1)
        elif is_nothing(update):
            changed = [name for name, change in copy.trained({}).items() if change.any()] if not self._updates else []
            if changed:
                raise UsageError(nothing_returned(update, changed))
        else:
            raise UsageError(
                f"gradient returned a {type(update).__name__} with exchange='continuous', expected what "
                "p2p.in_place(model).trained({}) returns, as the gradients of p2p.models do: train the model "
                "in place, or choose exchange='chunk'"
            )
