"""Coordinators of the synchronous baselines: they gather what workers come to, and change the model once for all.

    Stepping     updates of a step -> their mean, or sum -> descent -> the model of the next step
    Averaging    models of an epoch, each with its rows -> their mean by rows -> the model of the next epoch

A unit of work counts when the model has changed by it: what was gathered of a step or an epoch that was cut short is
gathered again by whoever goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar

from gossip.errors import NotFiniteError
from gossip.marks import Unit
from p2p.adapters.model import Model
from p2p.master.barrier import Barrier
from p2p.master.coordinator import Coordinator
from p2p.master.means import ModelSum, combined
from p2p.master.served import Served
from p2p.master.tickets import Turns
from p2p.worker.job import Descent
from p2p.worker.with_master import MODEL, ROWS


class Gathering(Coordinator, ABC):
    """What both have: units that are gathered, and do not count yet."""

    def __init__(
        self,
        served: Served,
        descent: Descent | None,
        on_error: Callable[[], None],
        epochs_before: int,
        applied: Iterable[Unit],
        drops_bad: bool,
    ) -> None:
        super().__init__(served, descent, on_error, epochs_before, applied, None, drops_bad)
        self._gathered: set[Unit] = set()

    def knows(self, unit: Unit) -> bool:
        return unit in self._gathered or super().knows(unit)

    def furthest(self, epoch: int, partition: int) -> int:
        mine = [unit.chunk for unit in list(self._gathered) if unit[:2] == (epoch, partition)]
        return max([super().furthest(epoch, partition), *mine])

    def _apply_gathered(self, change: Callable[[], None], where: str) -> None:
        """Change the model by what was gathered, by calling `change`; all of it counts then, or all is dropped."""
        units, self._gathered = self._gathered, set()
        try:
            with self._failing(where):
                change()
        except NotFiniteError:
            if not self._drops_bad:
                raise
            self.dropped += len(units)
        self.applied |= units

    def _take(self, update: Any, unit: Hashable | None, also: Sequence[Unit], merged_at: int | None) -> None:
        assert isinstance(unit, Unit), "nobody but tasks brings updates"
        self._gather(update, unit)
        self._gathered.add(unit)

    @abstractmethod
    def _gather(self, update: Any, unit: Unit) -> None:
        """Keep what a worker came to until all have."""


class Stepping(Gathering):
    """Of synchronous steps."""

    place: ClassVar[str] = "a step"

    def __init__(self, *given: Any, epochs: int, partitions: int, width: int, rule: str) -> None:
        """`given` as `Gathering` takes them. There are so many epochs and partitions, and tasks at a time; `rule` is
        "mean" or "sum"."""
        super().__init__(*given)
        model = self.served.model
        self._rule, self._counting = rule, _counts(model)
        self._updates: dict[Unit, Any] = {}
        """Of the step that goes on, where they lie."""
        numbers = range(self.epochs_before, self.epochs_before + epochs)
        self.barrier: Barrier[bytes] = Barrier(numbers, partitions, width, self._step)

    @property
    def turns(self) -> Turns[bytes]:
        return self.barrier

    def end(self, epoch: int, partition: int) -> None:
        self.barrier.end(epoch, partition)

    def knows(self, unit: Unit) -> bool:
        return super().knows(unit) or self.barrier.passed(unit)

    def _gather(self, update: Any, unit: Unit) -> None:
        self._updates[unit] = update

    def _step(self) -> None:
        """All updates of a step are there."""
        with self._lock:
            updates, self._updates = self._updates, {}
            if self.error is not None or not updates:
                return
            where = f"in descent, in the driver program, for {len(updates)} updates of step {self.barrier.step}"

            def change() -> None:
                in_order = [updates[unit] for unit in sorted(updates)]
                self.served.apply(self._descent, combined(in_order, self._rule, self._counting))

            self._apply_gathered(change, where)


class Averaging(Gathering):
    """Of models that workers train on their own."""

    place: ClassVar[str] = "the mean of an epoch's models"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._sum = self._begun()

    def _begun(self) -> ModelSum:
        model = self.served.model
        return ModelSum(model.arrays(), _counts(model))

    def _gather(self, update: Any, unit: Unit) -> None:
        self._sum.add(update[MODEL], update[ROWS])

    def average(self) -> None:
        """An epoch is over: its models become one."""
        with self._lock:
            if self.error is not None:
                return
            if self._sum.models:
                model, mean = self.served.model, self._sum.mean()
                where = f"in the mean of {self._sum.models} models, in the driver program"
                self._apply_gathered(lambda: self.served.apply(lambda user, arrays: model.load(arrays), mean), where)
            self._sum = self._begun()


def _counts(model: Model) -> frozenset[str]:
    """Arrays of which changes are summed: integers, and what counts something."""
    return model.counters | {spec.name for spec in model.own.specs if spec.dtype[1] != "f"}
