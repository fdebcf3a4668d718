"""A task with a master: for each chunk the model as it is there by now -> gradient -> update -> the master's `descent`.

A worker waits until its update is applied, and then asks for the model: so its next gradient knows of it, and what it
does not know of are the updates of those that computed at the same time.

Where workers take steps together, the master has it wait for all others of the step, or sends it home: another task
goes on. Where models are averaged, the worker trains its own with the whole partition, and pushes that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gossip.arrays import Arrays
from gossip.errors import NotFiniteError
from gossip.marks import Unit
from p2p.adapters.watch import is_nothing
from p2p.server.any_update import flatten
from p2p.server.attributes import dress
from p2p.server.client import MasterClient, NotNowError
from p2p.server.messages import Begin
from p2p.worker.attempt import Attempt
from p2p.worker.delta import step_here
from p2p.worker.job import TaskResult
from p2p.worker.running import CountedRows, running
from p2p.worker.working_copy import Trained, WorkingCopy

MODEL, ROWS = "model", "rows"
"""Of what a worker pushes that has trained a model of its own: its arrays, and of how many rows they are."""


class WithMaster:
    """One attempt at a partition."""

    def __init__(self, attempt: Attempt[MasterClient], copy: WorkingCopy) -> None:
        self._attempt = attempt
        self._client = attempt.agent
        self._copy = copy

    def train(self, rows: Iterable[Iterable[object]], counted: CountedRows) -> TaskResult:
        """Train all chunks, which `rows` gives one after the other, of the rows that are `counted`."""
        attempt, copy = self._attempt, self._copy
        job = attempt.job
        updates = units = 0
        try:
            for chunk, chunk_rows in enumerate(rows):
                info, unit = attempt.info(chunk), Unit(*attempt.unit(chunk))
                with running(info, counted, copy):
                    try:
                        begun = self._begin(unit)
                    except NotNowError:  # the task that goes on counts the rows
                        return TaskResult(0, updates, units, copy.model.watch.told())
                    if not begun:
                        units += 1
                        continue
                    attempt.seed(chunk)
                    update = copy.model.watch.gradient(copy.model, job.gradient, chunk_rows)
                    if is_nothing(update):
                        continue
                    updates += self._push(unit, update, self._next(chunk))
                    units += 1
                update = None  # the next gradient may need the memory
            if job.wave is not None:
                self._client.ended(*attempt.unit(0)[:2])
        finally:
            self._client.leave()
        return TaskResult(counted.rows, updates, units, copy.model.watch.told())

    def _push(self, unit: Unit, update: Any, then: Begin | None) -> bool:
        """Whether it was the first of its unit, and all its numbers are numbers."""
        try:
            arrays = flatten(dict(update) if isinstance(update, Trained) else update)
        except NotFiniteError:
            if not self._attempt.job.drops_bad:
                raise
            self._client.drop(unit)
            return False
        return self._client.push(unit, self._copy.merged_at, arrays, then)

    def _next(self, chunk: int) -> Begin:
        """What is asked for after a chunk; there may be no more rows."""
        attempt, copy = self._attempt, self._copy
        return self._client.begins(Unit(*attempt.unit(chunk + 1)), attempt.number, _dressed.get(copy, 0))

    def _begin(self, unit: Unit) -> bool:
        """Have the model in the copy; False if the unit counts already."""
        copy = self._copy
        found = self._client.begin(unit, self._attempt.number, copy.model.own, _dressed.get(copy, 0))
        if found is None:
            return False
        attributes = None
        with found.reading():
            copy.begin_with(found.arrays(), found.version)
            if found.attributes is not None:
                attributes = found.attribute_arrays()
        if attributes is not None:
            dress(copy.model.model, attributes)
            _dressed.clear()
            _dressed[copy] = found.attributes_version
        return True


class LocalModel(WithMaster):
    """The same where each partition trains a model of its own: it is one unit of work."""

    def train(self, rows: Iterable[Iterable[object]], counted: CountedRows) -> TaskResult:
        attempt, copy = self._attempt, self._copy
        unit = Unit(*attempt.unit(0))
        # what descents remember in this process is of this partition alone: it matters to nobody who was here before
        copy.begin_training(~(unit.epoch * attempt.job.partitions + unit.partition))
        known = False
        try:
            for chunk, chunk_rows in enumerate(rows):
                info = attempt.info(chunk)
                with running(info, counted, copy):
                    known = known or (chunk == 0 and not self._begin(unit))
                    if not known:
                        attempt.seed(chunk)
                        self._step(chunk_rows)
            if known or not counted.count:
                return TaskResult(counted.rows, 0, int(known), copy.model.watch.told())
            with running(attempt.info(), counted, copy):
                copy.model.check_unchanged()
                new = self._push(unit, {MODEL: dict(copy.model.arrays()), ROWS: counted.rows}, None)
        finally:
            self._client.leave()
        return TaskResult(counted.rows, int(new), 1, copy.model.watch.told())

    def _step(self, rows: Iterable[object]) -> None:
        """Train the copy with a chunk."""
        copy, job = self._copy, self._attempt.job
        base = copy.keep_anew()
        update = copy.model.watch.gradient(copy.model, job.gradient, rows)
        if is_nothing(update):
            copy.model.load(base)
        elif not isinstance(update, Trained):
            step_here(copy.model, job.descent, update, base)
        elif job.descent is not None or update.copy is not copy:
            step_here(copy.model, job.descent, dict(update) if job.descent else update.as_summed(), base)
        else:
            copy.model.watch.in_place()
            _add_in_place(copy.model.arrays(), update.extra)


def _add_in_place(arrays: Arrays, extra: Arrays) -> None:
    for name, more in extra.items():
        arrays[name][...] += np.asarray(more, arrays[name].dtype)


_dressed: dict[WorkingCopy, int] = {}
"""The version of the master's attributes that this process's copy of the model has."""
