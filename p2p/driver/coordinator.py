"""Master mode: the coordinator in the driver program owns the model.

    workers' lanes -> hub's queue -> HubQueue --\
    whatever else brings updates -> a feeder ----> submit -> descent, one after the other -> the hub's lane -> workers

`descent` runs here, and the hub's lane carries its changes to every executor. Of the attempts of one chunk the first
that comes is applied, and no other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from gossip.arguments import integer
from gossip.arrays import Array, Layout, Packed
from gossip.errors import UsageError
from gossip.marks import Counted, Mark, Unit, packed
from p2p.adapters.model import Model
from p2p.adapters.watch import is_nothing
from p2p.agent.client import AgentClient
from p2p.agent.ports import refresh
from p2p.agent.replica import Replica
from p2p.agent.requests import Take, Taken
from p2p.worker.any_update import inflate
from p2p.worker.delta import lighter, write_delta
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
        folder: str,
        skeleton: bytes,
        descent: Descent | None,
        on_error: Callable[[], None],
        epochs_before: int = 0,
        applied: Iterable[Unit] = (),
    ) -> None:
        """`folder` is the hub agent's; `on_error` ends the tasks when `descent` failed: see `error`. What is
        still under way of a training that failed, or was cut short, belongs to one of the session's `epochs_before`,
        and is dropped. `applied` are units that an earlier session has taken.
        """
        self.error: Exception | None = None
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
        self._descent = descent
        self._on_error = on_error
        self._model = Model.from_skeleton(skeleton)
        self._agent = AgentClient(folder)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        """Held while an update is applied,"""
        self._looking = threading.Lock()
        """and this while somebody looks at the model."""
        self._merged = 0
        """Updates in it when this was closed."""

    @property
    def cautions(self) -> dict[str, str]:
        """What the user should hear of `descent`, by name."""
        return self._model.watch.told()

    def submit(self, update: Any, unit: Hashable | None = None, worker: str = "", merged_at: int | None = None) -> bool:
        """Apply one update, as `descent` takes it; from any thread. False if it is nothing (None or {}), or its unit of
        work was applied before.

        `unit`: whatever tells it from others of this training, so that it counts once; a `Unit` is that of a task.
        `worker` says whose it is, in errors. `merged_at`: updates in the model that it was computed from, where that is
        known. What `descent` raises ends the training, and comes out here.

        Raises:
            UsageError: the training is over, or this is called from `descent`.
        """
        whose = worker or "a feeder"
        if self._applying == threading.get_ident():
            raise UsageError(f"submit() for {whose} was called from descent, expected other threads than its own")
        if merged_at is not None:
            merged_at = integer("merged_at", merged_at)
        if is_nothing(update):
            return False
        if self._descent is None and not isinstance(update, Mapping):
            raise UsageError(f"an update of {whose} is a {type(update).__name__}, expected a dict of named arrays")
        with self._lock:
            if self.error is not None:
                raise self.error
            if self._closed.is_set():
                raise UsageError(f"an update of {whose} after the end of its training, expected none")
            known = self.applied if isinstance(unit, Unit) else self._fed  # which may have tuples that look like them
            if unit in known or (isinstance(unit, Unit) and unit.epoch < self.epochs_before):
                return False
            hand_over = self._agent.hand_over()
            staleness = 0 if merged_at is None else max(0, self._agent.replica.merged - merged_at)
            self._applying = threading.get_ident()
            try:
                write_delta(self._model, self._descent, update, self._agent.replica, hand_over)
            except BaseException as error:
                error.add_note(f"in descent, in the driver program, for an update of {whose}")
                self.fail(error)
                raise
            finally:
                self._applying = None
            self._agent.publish(lighter(hand_over, self._model, self._agent), staleness=staleness)
            if isinstance(unit, Unit):
                self.applied.add(unit)
                return True
            self.fed += 1
            if unit is not None:
                self._fed.add(unit)
            return True

    @property
    def taken(self) -> int:
        """Units of tasks that `descent` has taken in this session."""
        return len(self.applied) - self._applied_before

    def cut(self, model: Model, replica: Replica) -> tuple[int, Counted]:
        """Copy the hub's `replica` into `model`; returns how many updates are merged in it, and the units that count.

        All is of one moment: no update is applied meanwhile.
        """
        with self._lock:
            merged, applied = refresh(model, replica), list(self.applied)
        # of earlier trainings nobody knows here how many units there were
        return merged, Counted(self.epochs_before, len(applied), packed(Mark(unit, 0) for unit in sorted(applied)))

    @property
    def version(self) -> int:
        """Updates that are merged in the model; when this is closed, those that were."""
        with self._looking:
            return self._merged if self._closed.is_set() else self._agent.replica.merged

    @contextmanager
    def snapshot(self) -> Iterator[tuple[int, Mapping[str, Array]]]:
        """(version, the model's arrays), of one moment: within, nothing is merged. Copy what is to stay.

        Raises:
            UsageError: the training is over.
        """
        with self._looking:
            if self._closed.is_set():
                raise UsageError("snapshot() after the end of its training, expected none")
            replica = self._agent.replica
            with replica.reading():
                yield replica.merged, replica.arrays()

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
        with self._lock, self._looking:
            self._merged = self._agent.replica.merged
            self._closed.set()
            self._agent.close()


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


class HubQueue:
    """The feeder of workers' updates: a thread that takes them from the queue of the hub agent."""

    def __init__(self, folder: str) -> None:
        self._queue = AgentClient(folder)
        """A connection of its own, to be interrupted while it waits."""
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, coordinator: Coordinator) -> None:
        self._thread = threading.Thread(target=self._run, args=(coordinator,), name="deepdist-coordinator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._queue.interrupt()
        if self._thread is not None:
            self._thread.join()
        self._queue.close()

    def _run(self, coordinator: Coordinator) -> None:
        try:
            while not self._stopping:
                taken, (descriptor,) = self._queue.ask(Take(), Taken)
                self._submit(coordinator, taken.layout, descriptor, taken.lane)
        except BaseException as error:  # noqa: BLE001 - whatever descent raises, train() raises
            if not self._stopping:
                coordinator.fail(error)

    def _submit(self, coordinator: Coordinator, layout: Layout, descriptor: int, lane: str) -> None:
        try:
            packed = Packed(layout, bytearray(os.pread(descriptor, layout.nbytes, 0)))
        finally:
            os.close(descriptor)
        update, extra = inflate(packed.arrays())
        unit = Unit(extra["epoch"], extra["partition"], extra["chunk"])
        coordinator.submit(update, unit, f"worker {lane}", extra["merged_at"])
