"""A task with a master: for each chunk the model as it is there by now -> gradient -> update -> the master's `descent`.

A worker waits until its update is applied, and then asks for the model: so its next gradient knows of it, and what it
does not know of are the updates of those that computed at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from gossip.errors import NotFiniteError
from gossip.marks import Unit
from p2p.adapters.watch import is_nothing
from p2p.server.any_update import flatten
from p2p.server.attributes import dress
from p2p.server.client import ComputeAgainError, MasterClient
from p2p.server.messages import Begin
from p2p.worker.attempt import Attempt
from p2p.worker.job import TaskResult
from p2p.worker.running import CountedRows, running
from p2p.worker.working_copy import Trained, WorkingCopy


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
                if job.master is not None and job.master.others and job.master.bounded:
                    chunk_rows = list(chunk_rows)
                with running(info, counted, copy):
                    done = None
                    while done is None:
                        done = self._train_chunk(unit, chunk, chunk_rows)
                updates += done == "published"
                units += done != "nothing"
        finally:
            self._client.leave()
        return TaskResult(counted.rows, updates, units, copy.model.watch.told())

    def _train_chunk(
        self, unit: Unit, chunk: int, rows: Iterable[object]
    ) -> Literal["published", "known", "nothing"] | None:
        """What came of it; None if it is to be computed again, from the model of the master that leads now."""
        attempt, copy = self._attempt, self._copy
        if not self._begin(unit):
            return "known"
        attempt.seed(chunk)
        update = copy.model.watch.gradient(copy.model, attempt.job.gradient, iter(rows))
        if is_nothing(update):
            return "nothing"
        try:
            return "published" if self._push(unit, update, self._next(chunk)) else "known"
        except ComputeAgainError:
            return None

    def _push(self, unit: Unit, update: Any, then: Begin) -> bool:
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


_dressed: dict[WorkingCopy, int] = {}
"""The version of the master's attributes that this process's copy of the model has."""
