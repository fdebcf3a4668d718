"""Master mode: the coordinator in the driver program owns the model.

    workers -> p2p.master.serving -----------> submit -> descent, one after the other -> a snapshot -> workers
    whatever else brings updates -> a feeder -> submit

`descent` runs here. Of the attempts of one chunk the first that comes is applied, and no other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

from gossip.arguments import integer
from gossip.arrays import Array
from gossip.errors import NotFiniteError, UsageError
from gossip.marks import Counted, Mark, Unit, packed
from p2p.adapters.model import Model
from p2p.adapters.nesting import by_name
from p2p.adapters.watch import is_nothing
from p2p.master.served import Served, check_numbers
from p2p.master.staleness import Weighing, Weight
from p2p.master.tickets import Tickets, Turns
from p2p.row_order import taken_apart
from p2p.worker.errors import original
from p2p.worker.job import Descent

CANCEL_S = 0.2
"""How often an engine is asked to end."""


class Feeder(Protocol):
    """What brings updates to the coordinator of a training."""

    def start(self, coordinator: Coordinator) -> None:
        """From now on `coordinator.submit` may be called, from any thread."""
        ...

    def stop(self) -> None:
        """The tasks are over: bring nothing any more, and return when no `submit` is under way."""
        ...


class Coordinator:
    """Applies `descent` to the updates that feeders bring, for the time of one training."""

    def __init__(
        self,
        served: Served,
        descent: Descent | None,
        on_error: Callable[[], None],
        epochs_before: int = 0,
        applied: Iterable[Unit] = (),
        max_staleness: int | None = None,
        drops_bad: bool = False,
        weight: Weight | None = None,
    ) -> None:
        """`on_error` ends the tasks when `descent` failed: see `error`. What is still under way of a training that
        failed, or was cut short, belongs to one of the session's `epochs_before`, and is dropped. `applied` are units
        that an earlier session has taken. `drops_bad`: an update with a NaN or an infinity ends nothing. `weight` is
        that of an update by its staleness; None: all have the same.
        """
        self.error: Exception | None = None
        self.max_staleness = max_staleness
        """Of updates of tasks; None: any."""
        self.weighing = None if weight is None else Weighing(weight)
        """Updates of a known age, by that."""
        self.dropped = 0
        """Updates with a NaN or an infinity, which were not applied."""
        self.fed = 0
        """Updates applied that were of no task."""
        self.applied: set[Unit] = set(applied)
        """The training's units of work that `descent` has taken, of tasks,"""
        self._fed: set[Hashable] = set()
        """and of other feeders."""
        self._applied_before = len(self.applied)
        self._applying: int | None = None
        """The thread in which `descent` runs."""
        self.epochs_before = epochs_before
        self.served = served
        self._descent = descent
        self._drops_bad = drops_bad
        self._on_error = on_error
        self._closed = threading.Event()
        self._lock = threading.Lock()
        """Held while an update is applied."""
        served.begin()

    place: ClassVar[str] = "descent"
    """Where updates are taken, in words."""

    @property
    def turns(self) -> Turns[bytes]:
        """Who says whose turn it is, of the training's tasks."""
        return Tickets(self.max_staleness)

    def end(self, epoch: int, partition: int) -> None:
        """A task has come to the end of its partition; that matters where workers take steps together."""

    @property
    def cautions(self) -> dict[str, str]:
        """What the user should hear of `descent`, by name."""
        return {**self.served.model.watch.told(), **self.served.attributes.cautions}

    @property
    def applies_now(self) -> bool:
        """The thread that asks is the one in which `descent` runs."""
        return self._applying == threading.get_ident()

    @property
    def version(self) -> int:
        """Updates that were applied in the session."""
        return self.served.version

    def submit(
        self,
        update: Any,
        unit: Hashable | None = None,
        worker: str = "",
        merged_at: int | None = None,
        *,
        checked: bool = False,
        also: Sequence[Unit] = (),
        left_out: int = 0,
    ) -> bool:
        """Apply one update, as `descent` takes it; from any thread. False if it is nothing (None, 0, or empty), or its
        unit of work was applied before.

        `unit`: whatever tells it from others of this training, so that it counts once; a `Unit` is that of a task.
        `worker` says whose it is, in errors. `merged_at`: updates in the model that it was computed from, where that is
        known. `checked`: all its numbers are known to be numbers. `also` are other units of tasks that it stands for:
        all of them count with it, or none. `left_out`: so many of these had numbers that are none. What `descent`
        raises ends the training, and comes out here.

        Raises:
            UsageError: the training is over, or this is called from `descent`, or some of its units count already.
        """
        whose = worker or "a feeder"
        if self.applies_now:
            raise UsageError(f"submit() for {whose} was called from descent, expected other threads than its own")
        if merged_at is not None:
            integer("merged_at", merged_at)
        if is_nothing(update):
            return False
        if self._descent is None and by_name(self.served.model.model, update) is None:
            raise UsageError(f"an update of {whose} is a {type(update).__name__}, expected a dict of named arrays")
        with self._lock:
            if self.error is not None:
                raise self.error
            if self._closed.is_set():
                raise UsageError(f"an update of {whose} after the end of its training, expected none")
            if self._counts(unit, also, whose):
                return False
            try:
                with self._failing(f"in {self.place}, in the driver program, for an update of {whose}"):
                    if not checked:
                        check_numbers(update)
                    self._take(update, unit, also, merged_at)
            except NotFiniteError:
                if not self._drops_bad:
                    raise
                self._drop(unit, also, left_out + 1)
                return False
            self.dropped += left_out
            return True

    def _take(self, update: Any, unit: Hashable | None, also: Sequence[Unit], merged_at: int | None) -> None:
        """Change the model by an update that is new."""
        weight = 1.0
        if self.weighing is not None and merged_at is not None:
            update, weight = self.weighing.weighed(update, max(0, self.version - merged_at))
        self.served.apply(self._descent, update)
        if self.weighing is not None:
            self.weighing.count(weight)
        self._count(unit, also)
        if not isinstance(unit, Unit):
            self.fed += 1

    @contextmanager
    def _failing(self, where: str) -> Iterator[None]:
        """`descent` runs within; its errors end the training, and say where they were raised."""
        self._applying = threading.get_ident()
        try:
            yield
        except BaseException as error:
            if not (self._drops_bad and isinstance(error, NotFiniteError)):
                error.add_note(where)
                self.fail(error)
            raise
        finally:
            self._applying = None

    def drop(self, units: Sequence[Unit], bad: int = 1) -> None:
        """A worker has computed an update that is no number: its units of work are done, and nothing came of them.
        There were `bad` such updates."""
        with self._lock:
            if not self._counts(units[0], units[1:], "a worker"):
                self._drop(units[0], units[1:], bad)

    def _drop(self, unit: Hashable | None, also: Sequence[Unit], bad: int) -> None:
        self.dropped += bad
        self._count(unit, also)

    def _count(self, unit: Hashable | None, also: Sequence[Unit]) -> None:
        if isinstance(unit, Unit):
            self.applied.update((unit, *also))
        elif unit is not None:
            self._fed.add(unit)

    def _counts(self, unit: Hashable | None, also: Sequence[Unit], whose: str) -> bool:
        """Whether it counted before, with all that it stands for."""
        if not isinstance(unit, Unit):
            return unit in self._fed  # which may have tuples that look like units of tasks
        counted = sum(map(self.knows, (unit, *also)))
        if 0 < counted <= len(also):
            raise UsageError(
                f"an update of {whose} stands for {1 + len(also)} units, of which {counted} count already, expected "
                "all of them or none: nothing of it was applied. Attempts at a partition have to be cut at the same "
                "chunks"
            )
        return counted > 0

    def knows(self, unit: Unit) -> bool:
        """It counts, or all of its epoch do."""
        return unit in self.applied or unit.epoch < self.epochs_before

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of a partition that counts; -1 if none does."""
        return max(
            (unit.chunk for unit in list(self.applied) if (unit.epoch, unit.partition) == (epoch, partition)),
            default=-1,
        )

    def torn(self) -> list[tuple[int, int]]:
        """(epoch, partition) of which attempts with different rows count; see `p2p.row_order`."""
        found: dict[tuple[int, int], set[int]] = {}
        for unit in self.applied:
            found.setdefault((unit.epoch, unit.partition), set()).add(taken_apart(unit.chunk)[0])
        return [where for where, rows in found.items() if len(rows) > 1]

    @contextmanager
    def between_updates(self) -> Iterator[None]:
        """No update is applied within."""
        with self._lock:
            yield

    @property
    def taken(self) -> int:
        """Units of tasks that `descent` has taken in this session."""
        return len(self.applied) - self._applied_before

    def read(self, model: Model) -> int:
        """Copy the model's arrays as they are between two updates; returns how many are merged in it."""
        with self._lock:
            model.load(self.served.model.arrays())
            return self.served.version

    def cut(self, model: Model) -> tuple[int, Counted]:
        """The same, with the units that count in it."""
        with self._lock:
            model.load(self.served.model.arrays())
            merged, applied = self.served.version, list(self.applied)
        # of earlier trainings nobody knows here how many units there were
        return merged, Counted(self.epochs_before, len(applied), packed(Mark(unit, 0) for unit in sorted(applied)))

    @contextmanager
    def snapshot(self) -> Iterator[tuple[int, Mapping[str, Array]]]:
        """(version, the model's arrays), of one moment, which stay as they are within. Copy what is to stay longer.
        Waits for no `descent`.

        Raises:
            UsageError: the training is over.
        """
        if self._closed.is_set():
            raise UsageError("snapshot() after the end of its training, expected none")
        one = self.served.snapshots.pin()
        try:
            yield one.version, one.views()
        finally:
            self.served.snapshots.unpin(one)

    def fail(self, error: BaseException) -> None:
        """End the training by this error, unless there was another before."""
        if self.error is None and not self._closed.is_set():
            self.error = original(error)
            threading.Thread(target=self._end_tasks, name="deepdist-coordinator-error", daemon=True).start()

    def _end_tasks(self) -> None:
        while not self._closed.is_set():  # the engine may not have begun yet, when a feeder is that quick
            self._on_error()
            self._closed.wait(CANCEL_S)

    def close(self) -> None:
        """End; an update that is being applied is finished first."""
        with self._lock:
            self._closed.set()


@contextmanager
def feeding(feeders: Iterable[Feeder], coordinator: Coordinator | None) -> Iterator[None]:
    """They bring updates within. What is raised where one is stopped does not hide what was raised before."""
    started: list[Feeder] = []
    try:
        for feeder in feeders:
            assert coordinator is not None
            with _named(feeder, "start(coordinator)"):
                feeder.start(coordinator)
            started.append(feeder)
        yield
    except BaseException as error:
        for failed in _stopped(started):
            error.add_note(f"a feeder failed as well: {failed!r}")
        raise
    for failed in _stopped(started):
        raise failed


def _stopped(feeders: Sequence[Feeder]) -> list[Exception]:
    """Stop them all; returns what they raised."""
    errors = []
    for feeder in reversed(feeders):
        try:
            with _named(feeder, "stop()"):
                feeder.stop()
        except Exception as error:  # noqa: BLE001 - raised by the caller, or noted
            errors.append(error)
    return errors


@contextmanager
def _named(feeder: Feeder, call: str) -> Iterator[None]:
    """Errors say whose they are."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in {call} of the feeder {type(feeder).__name__}")
        raise


def check_feeders(feeders: Any, mode: str) -> tuple[Feeder, ...]:
    """Raise `UsageError` for what is none, and for any where there is no master."""
    if not isinstance(feeders, list | tuple):
        raise UsageError(f"feeders is a {type(feeders).__name__}, expected a list of p2p.Feeder")
    for index, feeder in enumerate(feeders):
        is_one = callable(getattr(feeder, "start", None)) and callable(getattr(feeder, "stop", None))
        if not is_one or isinstance(feeder, type):
            raise UsageError(
                f"feeders[{index}] is a {type(feeder).__name__}, expected a p2p.Feeder: start(coordinator) and stop()"
            )
    if feeders and mode != "master":
        raise UsageError(f"feeders with mode={mode!r}, expected mode='master': they bring updates to the master")
    return tuple(feeders)
