"""The way of posted updates into a training: a feeder of the coordinator, open as long as the tasks run.

    start(coordinator) -> open: submit(...) from any thread -> stop(): closed, and no submit is under way

What counts in one training stays counted in the session: a post that is tried again in the next one is known.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.http.messages import Refused
from p2p.master.coordinator import Coordinator

UNITS_MAX = 1 << 16
"""Names of counted posts that are remembered from one training to the next."""
STALENESS_MAX = 1 << 10
"""Updates whose staleness is told."""
CLOSED = "no training runs, expected one: post when /status says that one does"


class Gate:
    """One for each session."""

    def __init__(self) -> None:
        self.applied = 0
        """Updates that came this way and were applied,"""
        self.known = 0
        """that had counted before,"""
        self.empty = 0
        """and that were nothing."""
        self.strict = True
        """An update has to be of the model's arrays: there is no descent of the user's own that may know others."""
        self._coordinator: Coordinator | None = None
        self._trainings = 0
        self._open = False
        self._under_way = 0
        self._units: OrderedDict[str, None] = OrderedDict()
        self._staleness: deque[int] = deque(maxlen=STALENESS_MAX)
        self._changed = threading.Condition()

    # ------------------------------------------------------------------------------------------------- as a feeder

    def start(self, coordinator: Coordinator) -> None:
        with self._changed:
            self._coordinator = coordinator
            self._trainings += 1
            self._open = True

    def stop(self) -> None:
        with self._changed:
            self._open = False
            while self._under_way:
                self._changed.wait()

    # ------------------------------------------------------------------------------------------------- for requests

    @property
    def is_open(self) -> bool:
        """A training runs, and takes updates."""
        return self._open

    @property
    def version(self) -> int:
        """Updates in the model, of all sources."""
        coordinator = self._coordinator
        return 0 if coordinator is None else coordinator.version

    @property
    def moment(self) -> tuple[int, int] | None:
        """(training, version): as long as it is the same, so is the model. None where nothing says when it changes."""
        return (self._trainings, self.version) if self._open else None

    def staleness(self) -> dict[str, float]:
        """Of the last updates whose version was told: how many others were applied in between."""
        with self._changed:
            known = list(self._staleness)
        if not known:
            return {"updates": 0}
        return {
            "updates": len(known),
            "median": float(np.median(known)),
            "p95": float(np.percentile(known, 95)),
            "max": max(known),
        }

    def check_open(self) -> None:
        """Raise `Refused` where an update would not be taken."""
        if not self._open:
            raise Refused(409, CLOSED, {"Retry-After": "1"})

    @contextmanager
    def look(self) -> Iterator[tuple[int, Mapping[str, Array]] | None]:
        """The model of the training that runs; None if none does."""
        coordinator = self._coordinator
        with ExitStack() as stack:
            seen = None
            if coordinator is not None:
                try:
                    seen = stack.enter_context(coordinator.snapshot())
                except UsageError:
                    pass  # it is over
            yield seen

    def submit(self, update: Any, unit: str | None, worker: str, version: int | None) -> str:
        """Have it applied; returns "applied", "known" or "empty".

        Raises:
            Refused: no training runs, or `descent` raised an exception, which has ended it.
        """
        with self._changed:
            self.check_open()
            assert self._coordinator is not None
            coordinator = self._coordinator
            if unit is not None and unit in self._units:
                self.known += 1
                return "known"
            self._under_way += 1
        outcome = "failed"
        try:
            now = coordinator.version
            outcome = _submitted(coordinator, update, unit, worker, version)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()
                if outcome == "applied":
                    self.applied += 1
                    if version is not None:
                        self._staleness.append(max(0, now - version))
                    self._remember(unit)
                elif outcome == "known":
                    self.known += 1
                elif outcome == "empty":
                    self.empty += 1
        return outcome

    def _remember(self, unit: str | None) -> None:
        if unit is not None:
            self._units[unit] = None
            while len(self._units) > UNITS_MAX:
                self._units.popitem(last=False)


def _submitted(coordinator: Coordinator, update: Any, unit: str | None, worker: str, version: int | None) -> str:
    if update is None or (isinstance(update, Mapping) and not update):
        return "empty"
    try:
        applied = coordinator.submit(update, None if unit is None else ("posted", unit), worker, version)
    except BaseException as error:
        if coordinator.error is None:  # it has ended while this one waited
            if isinstance(error, UsageError):
                raise Refused(409, CLOSED) from None
            raise
        raise Refused(
            500, f"the training has ended by an exception, and this update is not in the model: {_words(error)}"
        ) from error
    return "applied" if applied else "known"


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error!s:.200}"
    except Exception:  # noqa: BLE001 - an exception of the user's may fail to say what it is
        return type(error).__name__
