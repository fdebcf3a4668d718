"""A task with a master: for each chunk the model as it is there by now -> gradient -> update -> the master's `descent`.

A worker waits until its update is applied, and then asks for the model: so its next gradient knows of it, and what it
does not know of are the updates of those that computed at the same time.

With `n_fetch` and `n_push` it asks for the model before every so many chunks, and pushes the sum of the updates of so
many (Downpour SGD: Dean et al. 2012, algorithm 7.1). A *group* are the chunks that are pushed as one. All attempts at a
partition cut it at the same chunks, so the units of a group count all at once, or none of them does.

    n_fetch=3    fetch -> gradient -> descent here -> gradient -> descent here -> gradient    fetch -> ...
    n_push=2                   group 0                      push | group 1               ...    push | ...

Where workers take steps together, the master has it wait for all others of the step, or sends it home: another task
goes on. Where models are averaged, the worker trains its own with the whole partition, and pushes that.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, check_finite
from gossip.errors import MismatchError, NotFiniteError
from gossip.marks import Unit
from p2p.adapters.watch import is_nothing
from p2p.server.any_update import flatten
from p2p.server.attributes import dress
from p2p.server.client import ComputeAgainError, MasterClient, NotNowError
from p2p.server.messages import Begin
from p2p.server.sums import summed
from p2p.worker.attempt import Attempt
from p2p.worker.delta import add_to, apart, step_here
from p2p.worker.job import Descent, TaskResult
from p2p.worker.running import CountedRows, running
from p2p.worker.working_copy import Trained, WorkingCopy

MODEL, ROWS = "model", "rows"
"""Of what a worker pushes that has trained a model of its own: its arrays, and of how many rows they are."""


@dataclass
class Group:
    """Chunks that are pushed as one."""

    counting: set[Unit] = field(default_factory=set)
    """Units that counted before it began,"""
    units: list[Unit] = field(default_factory=list)
    """and those of the others, so far."""
    is_over: bool = False
    """They count by now: another attempt has pushed them."""
    version: int = 0
    """Of the oldest model that one of its gradients saw."""
    is_torn: bool = False
    """The model was fetched in the middle of it."""
    update: Any = None
    """What is to be pushed; None if nothing came so far."""
    good: int = 0
    """Updates that are in it,"""
    bad: int = 0
    """and that were left out: they had a NaN or an infinity."""


class OwnSteps:
    """What a worker makes of a fetched model until it fetches the next one."""

    def __init__(self, copy: WorkingCopy, descent: Descent | None) -> None:
        self._copy = copy
        self._descent = descent
        self._arrays: dict[str, Array] = {}
        """The copy as it is between two gradients, which may change it freely."""
        self.version = 0
        """Updates of the master that are in it: those of the fetched model, and what was pushed of its own since."""

    def keep(self) -> None:
        """The copy has been fetched."""
        self.version = self._copy.merged_at
        self._arrays = {name: array.copy() for name, array in self._copy.model.arrays().items()}

    def begin(self) -> None:
        """Before a gradient: have it in the copy."""
        self._copy.begin_with(self._arrays, self.version)

    def step(self, update: Any) -> None:
        """Have `descent` take an update, here. A step to numbers that are none is left out: the master tells of it."""
        model = self._copy.model
        update = apart(update, model)
        model.load(self._arrays)
        if self._descent is None:
            add_to(model, update)
        else:
            model.watch.own_descent(model, self._descent, update)
            _dressed.pop(self._copy, None)  # it may have changed what the master keeps on the model
        found = model.arrays()
        try:
            check_finite(found)
        except MismatchError:
            return
        self._arrays = {name: array.copy() for name, array in found.items()}


class WithMaster:
    """One attempt at a partition."""

    def __init__(self, attempt: Attempt[MasterClient], copy: WorkingCopy) -> None:
        self._attempt = attempt
        self._client = attempt.agent
        self._copy = copy
        self._pushes = attempt.job.pushes
        self._own = OwnSteps(copy, attempt.job.descent) if self._pushes.n_fetch > 1 else None
        self._group = Group()
        self._is_due = True
        """The model is to be fetched before the next gradient."""
        self._updates = self._units = 0
        self._kept: list[tuple[int, Iterable[object]]] = []
        """Chunks that are not pushed yet, with their rows, where they may have to be computed again."""

    def train(self, rows: Iterable[Iterable[object]], counted: CountedRows) -> TaskResult:
        """Train all chunks, which `rows` gives one after the other, of the rows that are `counted`."""
        attempt, copy, job = self._attempt, self._copy, self._attempt.job
        info = attempt.info()
        keeps = job.master is not None and job.master.bounded and job.master.others
        try:
            for chunk, chunk_rows in enumerate(rows):
                info = attempt.info(chunk)
                rows_again: Iterable[object] = list(chunk_rows) if keeps else chunk_rows
                self._kept += [(chunk, rows_again)] if keeps else []
                with running(info, counted, copy):
                    try:
                        update = self._compute(chunk, iter(rows_again))
                    except NotNowError:  # the task that goes on counts the rows
                        return TaskResult(0, self._updates, self._units, copy.model.watch.told())
                    if (chunk + 1) % self._pushes.n_push == 0:
                        self._push_surely(chunk)
                    self._step(chunk, update)
                update = None  # the next gradient may need the memory
            with running(info, counted, copy):
                self._push_surely(None)
            if self._pushes.wave is not None:
                self._client.ended(*attempt.unit(0)[:2])
        finally:
            self._client.leave()
        return TaskResult(counted.rows, self._updates, self._units, copy.model.watch.told())

    def _compute(self, chunk: int, rows: Iterable[object]) -> Any:
        """What the gradient makes of the rows; None if nothing comes of them."""
        if not self._begin(chunk):
            return None
        self._attempt.seed(chunk)
        return self._taken(self._copy.model.watch.gradient(self._copy.model, self._attempt.job.gradient, rows))

    def _step(self, chunk: int, update: Any) -> None:
        """Between two fetches. It comes last, as it may change what it is given."""
        if self._own is not None and update is not None and (chunk + 1) % self._pushes.n_fetch != 0:
            self._own.step(update)

    def _push_surely(self, chunk: int | None) -> None:
        """Push what came of the chunks, this one the last of them. A master that has come to lead may not be able to
        take what was computed for another one: then compute it again."""
        while True:
            try:
                self._push(None if chunk is None else self._next(chunk))
            except ComputeAgainError:
                self._is_due = True
                for each, rows in self._kept:
                    self._step(each, self._compute(each, iter(rows)))
            else:
                self._kept.clear()
                return

    # ------------------------------------------------------------------------------------------------- the model

    def _begin(self, chunk: int) -> bool:
        """Have the model in the copy; False if the chunk's unit counts already."""
        pushes, unit = self._pushes, self._unit(chunk)
        self._is_due = self._is_due or chunk % pushes.n_fetch == 0
        if chunk % pushes.n_push == 0:
            self._group = Group()
            if pushes.n_push > 1 or not self._is_due:  # else the answer to Begin says so
                self._group.counting = self._client.counting(
                    [self._unit(chunk + more) for more in range(pushes.n_push)]
                )
        group = self._group
        if group.is_over or unit in group.counting or not self._is_there(unit):
            self._units += 1
            return False
        version = self._copy.merged_at
        group.version = min(version, group.version) if group.units else version
        group.units.append(unit)
        return True

    def _is_there(self, unit: Unit) -> bool:
        """Have the model; False if the unit counts already, and so do all of its group."""
        group = self._group
        if not self._is_due:
            assert self._own is not None
            self._own.begin()
            return True
        if not self._fetch(unit):
            self._units += len(group.units)
            self._group = Group(is_over=True)
            return False
        self._is_due, group.is_torn = False, bool(group.units)
        return True

    def _fetch(self, unit: Unit) -> bool:
        """Have the master's model in the copy; False if the unit counts already."""
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
        if self._own is not None:
            self._own.keep()
        return True

    # ------------------------------------------------------------------------------------------------ the update

    def _taken(self, update: Any) -> Any:
        """What a gradient has returned goes into the group; returns the update that it is, None if it is left out."""
        group = self._group
        if is_nothing(update):
            return None
        update = dict(update) if isinstance(update, Trained) else update
        try:
            arrays = flatten(update)
        except NotFiniteError:
            if not self._pushes.drops_bad:
                raise
            group.bad += 1
            return None
        group.good += 1
        if self._pushes.n_push == 1:
            group.update = arrays
        else:
            group.update = deepcopy(update) if group.update is None else summed(group.update, update)
        return update

    def _push(self, then: Begin | None) -> None:
        """Hand over what came of the group."""
        group, self._group = self._group, Group()
        if group.update is None and not group.bad:
            return
        unit, *also = group.units
        arrays = group.update
        if arrays is not None and self._pushes.n_push > 1:
            try:
                arrays = flatten(group.update)
            except NotFiniteError:
                if not self._pushes.drops_bad:
                    raise
                arrays, group.bad = None, group.bad + group.good
        if arrays is None:
            self._client.drop(unit, also, group.bad)
        elif self._client.push(unit, group.version, arrays, then, also, group.bad):
            self._updates += 1
            if self._own is not None and not group.is_torn:
                self._own.version += 1
        self._units += len(group.units)

    def _next(self, chunk: int) -> Begin | None:
        """What is asked for after a chunk; there may be no more rows."""
        attempt = self._attempt
        if (chunk + 1) % self._pushes.n_fetch != 0:
            return None
        return self._client.begins(self._unit(chunk + 1), attempt.number, _dressed.get(self._copy, 0))

    def _unit(self, chunk: int) -> Unit:
        return Unit(*self._attempt.unit(chunk))


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
                    known = known or (chunk == 0 and not self._fetch(unit))
                    if not known:
                        attempt.seed(chunk)
                        self._train_chunk(chunk_rows)
            if known or not counted.count:
                return TaskResult(counted.rows, 0, int(known), copy.model.watch.told())
            with running(attempt.info(), counted, copy):
                copy.model.check_unchanged()
                new = self._hand_over(unit, {MODEL: dict(copy.model.arrays()), ROWS: counted.rows})
        finally:
            self._client.leave()
        return TaskResult(counted.rows, int(new), 1, copy.model.watch.told())

    def _hand_over(self, unit: Unit, trained: Any) -> bool:
        """Whether it was the first of its unit, and all its numbers are numbers."""
        try:
            arrays = flatten(trained)
        except NotFiniteError:
            if not self._pushes.drops_bad:
                raise
            self._client.drop(unit)
            return False
        return self._client.push(unit, self._copy.merged_at, arrays)

    def _train_chunk(self, rows: Iterable[object]) -> None:
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
