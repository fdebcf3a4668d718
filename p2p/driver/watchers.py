"""Watchers of a running training: each is shown a copy of the model every so often, in the driver program.

    replica  -- a copy, under its lock -->  a model of this thread's own  --> watcher.look(model, moment), one by one

The replica is the observer's. Where peers mix, the copy is the mean of all their replicas, read from the agents one
after the other; and how far these are apart is part of the moment.

The peers neither wait for a watcher nor know of it: they train in other processes. A watcher takes only time that is
left on a machine's cores.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from gossip.arguments import seconds
from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.marks import Counted
from p2p.adapters.model import Model
from p2p.worker.errors import original

CANCEL_S = 0.2
"""How often an engine is asked to end."""
STOP_TIMEOUT_S = 5.0
"""For a look to end, when the training failed or was interrupted."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a training stands when a watcher looks."""

    seconds: float
    """Since the training began, when the copy was made; virtual ones on a simulated cluster."""
    updates: int
    """Of this training, merged in the copy."""
    partitions_done: int
    """In all epochs,"""
    partitions: int
    """of so many."""
    ended: bool = False
    """All replicas are level, and the model is that of the end."""
    consensus_distance: float | None = None
    """Where peers mix, of the replicas whose mean the model is, as `Report.consensus_distance`; on a simulated cluster
    of all that live. None where one replica was read."""
    spread: float | None = None
    """Of the same replicas: the root of the mean square of their (Euclidean) distances to the mean, over all arrays.
    Papers call this, or its square, the consensus distance."""
    counted: Counted | None = None
    """The units of work that count in the copy, for a watcher with `wants_units`; None if that could not be told."""


class Watcher(Protocol):
    """What looks at a training: an evaluation, a checkpoint, a page. `str(watcher)` names it in its errors.

    One with a true attribute `wants_units` is told which units of work count in the copy.
    """

    every_s: float
    """Between the beginnings of two looks, at least; virtual seconds on a simulated cluster."""

    def look(self, model: Any, moment: Moment) -> object:
        """Look at a copy of the user's model. It may be changed, and is read anew for each look of any watcher, so keep
        copies of its arrays where they are to last.

        Called at the beginning, every `every_s` and at the end: in a thread of the driver program while the training
        runs, in the caller's at its end. What it raises ends the training.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was read for a look, beside the model."""

    merged: int
    """Updates in it, of all trainings."""
    consensus_distance: float | None = None
    spread: float | None = None
    counted: Counted | None = None
    """Only where it was asked for."""


class Done:
    """Counts partitions, and tells `progress` of them."""

    def __init__(self, progress: Callable[[int, int], None], partitions: int) -> None:
        self._progress = progress
        self.count = 0
        self.partitions = partitions
        self(0, partitions)

    def __call__(self, done: int, of: int) -> None:
        self.count, self.partitions = done, of
        self._progress(done, of)


NOTHING_TO_DO = Done(lambda done, of: None, 0)
"""Between two trainings."""


class Watching:
    """The thread in which the watchers of one training look; without watchers it does nothing.

    What one raises is in `error`, with a note of whose it is.
    """

    def __init__(
        self,
        watchers: Sequence[Watcher],
        skeleton: Callable[[], bytes],
        read: Callable[[Model], Seen],
        done: Done,
        cancel: Callable[[], None],
        cut: Callable[[Model], Seen] | None = None,
        stops: Callable[[], bool] = lambda: False,
    ) -> None:
        """`skeleton()` is of the model that watchers are shown. `read(model)` copies what has been learned so far into
        it, and says what it read; `cut(model)` the same, with the units. `cancel` ends the training when a watcher
        fails, or when `stops()` after a look."""
        self._watchers = watchers
        self._reads = {False: read, True: cut or read}
        """By whether the units are asked for."""
        self._done = done
        self._cancel = cancel
        self._stops = stops
        self.error: Exception | None = None
        """In the words of `look`."""
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._merged_before = 0
        self._model: Model | None = None
        self._initial: dict[str, Array] = {}
        """Copies of the arrays as they were then, until all have looked at them; not for one watcher alone."""
        if watchers:
            self._model = Model.from_skeleton(skeleton())
            self._seen = self._reads[any(map(wants_units, watchers))](self._model)
            self._merged_before = self._seen.merged
            if len(watchers) > 1:
                self._initial = {name: array.copy() for name, array in self._model.arrays().items()}
        self._thread = threading.Thread(target=self._run, name="deepdist-watchers", daemon=True)

    def __enter__(self) -> Self:
        if self._watchers:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watchers:
            self._thread.join(None if error is None else STOP_TIMEOUT_S)

    def finish(self) -> None:
        """Have all look at the model as it is in the end. What they raise comes out here."""
        if self.error is not None:
            raise self.error
        for watcher in self._watchers:
            self._look(watcher, ended=True)

    def _run(self) -> None:
        due: list[float] = []
        while not self._ended.is_set():
            try:
                if len(due) < len(self._watchers):
                    watcher = self._watchers[len(due)]
                    due.append(time.monotonic() + float(watcher.every_s))
                    self._look_at_first(watcher)
                elif not self._ended.wait(max(0.0, min(due) - time.monotonic())):
                    watcher = self._watchers[index := due.index(min(due))]
                    due[index] = time.monotonic() + float(watcher.every_s)
                    self._look(watcher)
                if self._stops():
                    self._end_tasks()
            except BaseException as error:  # noqa: BLE001 - raised again by the main thread, which sys.exit() is not to end
                self.error = original(error)
                self._end_tasks()

    def _end_tasks(self) -> None:
        while not self._ended.is_set():  # the engine may not have begun yet
            self._cancel()
            self._ended.wait(CANCEL_S)

    def _look_at_first(self, watcher: Watcher) -> None:
        """At the model as it was when the training began, however far the peers are by now."""
        assert self._model is not None
        if self._initial:
            self._model.load(self._initial)
        if watcher is self._watchers[-1]:
            self._initial = {}
        self._show(watcher, 0.0, self._seen)

    def _look(self, watcher: Watcher, *, ended: bool = False) -> None:
        assert self._model is not None
        seconds = time.monotonic() - self._began
        self._show(watcher, seconds, self._reads[wants_units(watcher)](self._model), ended=ended)

    def _show(self, watcher: Watcher, seconds: float, seen: Seen, *, ended: bool = False) -> None:
        assert self._model is not None
        moment = Moment(
            seconds=seconds,
            updates=max(0, seen.merged - self._merged_before),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
            ended=ended,
            consensus_distance=seen.consensus_distance,
            spread=seen.spread,
            counted=seen.counted if wants_units(watcher) else None,
        )
        look(watcher, self._model.model, moment)


def wants_units(watcher: Watcher) -> bool:
    """It is told which units count."""
    return bool(getattr(watcher, "wants_units", False))


def look(watcher: Watcher, model: Any, moment: Moment) -> None:
    """Have it look; its errors say whose they are."""
    try:
        watcher.look(model, moment)
    except BaseException as error:
        try:
            name = str(watcher)
        except Exception:  # noqa: BLE001 - what it raised first matters more
            name = type(watcher).__name__
        error.add_note(f"in {name}, {'at the end of the training' if moment.ended else 'while the training ran'}")
        raise


def check_watchers(watchers: Any) -> tuple[Watcher, ...]:
    """Raise `UsageError` for what is none."""
    if not isinstance(watchers, list | tuple):
        raise UsageError(f"watchers is a {type(watchers).__name__}, expected a list of p2p.Watcher")
    for index, watcher in enumerate(watchers):
        name = f"watchers[{index}]"
        is_one = callable(getattr(watcher, "look", None)) and hasattr(watcher, "every_s")
        if not is_one or isinstance(watcher, type) or inspect.iscoroutinefunction(watcher.look):
            raise UsageError(
                f"{name} is a {type(watcher).__name__}, expected a p2p.Watcher: every_s, and a function "
                "look(model, moment)"
            )
        seconds(f"{name}.every_s", watcher.every_s)
    return tuple(watchers)
