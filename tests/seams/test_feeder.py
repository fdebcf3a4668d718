"""A feeder of one's own: updates that no task has computed, from threads of the driver program, for a master."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist
from p2p.master.coordinator import Coordinator

pytestmark = [pytest.mark.slow, pytest.mark.sockets, pytest.mark.usefixtures("place")]
THREADS = 3


class Drip:
    """Each thread submits ones, as long as the training runs."""

    def __init__(self, value: Any = 1.0) -> None:
        self.value = value
        self.applied = 0
        self.coordinator: Coordinator | None = None
        self.errors: list[Exception] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(f"drip {number}",)) for number in range(THREADS)]

    def start(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str) -> None:
        assert self.coordinator is not None
        while not self._stopping.wait(0.005):
            try:
                applied = self.coordinator.submit({"w": np.full(2, self.value)}, worker=name)
            except Exception as error:  # noqa: BLE001 - what it is told
                self.errors.append(error)
                return
            with self._lock:
                self.applied += applied


def one_each(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    time.sleep(0.02)
    return {"w": np.full(2, float(len(list(rows))))}


def add(model: Any, update: Any) -> None:
    model["w"] += update["w"]


def test_updates_of_tasks_and_of_a_feeder_are_applied_once_each() -> None:
    drip = Drip()
    with DeepDist({"w": np.zeros(2)}, "master", peers=2, progress=False) as dd:
        report = dd.train([[1]] * 40, one_each, add, feeders=[drip])
        assert drip.errors == []
        assert drip.applied > THREADS
        assert dd.model["w"].tolist() == [40.0 + drip.applied] * 2
        assert (report.updates, report.updates_lost) == (40 + drip.applied, 0)
        assert drip.coordinator is not None
        with pytest.raises(UsageError, match="an update of late after the end of its training, expected none"):
            drip.coordinator.submit({"w": np.ones(2)}, worker="late")
        dd.train([[1]] * 2, one_each, add)
        assert dd.model["w"].tolist() == [42.0 + drip.applied] * 2


class Once:
    """Calls `then(coordinator)` when it is started."""

    def __init__(self, then: Any, stop: Any = lambda: None) -> None:
        self.then, self.stop = then, stop
        self.told: Any = None

    def start(self, coordinator: Coordinator) -> None:
        self.told = self.then(coordinator)


def test_a_unit_of_work_counts_once_in_each_training() -> None:
    def again(coordinator: Coordinator) -> list[bool]:
        ones = {"w": np.ones(2)}
        return [coordinator.submit(ones, unit) for unit in ((0, 0, 0), (0, 0, 0), "a line", "a line")]

    feeder = Once(again)
    with DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd:
        for training in (1, 2):
            report = dd.train([[1]], one_each, add, feeders=[feeder])
            assert feeder.told == [True, False, True, False], "it is not the unit of a task, whatever it looks like"
            assert (report.updates, report.updates_lost) == (3, 0)
            assert dd.model["w"].tolist() == [3.0 * training] * 2


def test_nothing_is_no_update_and_what_is_none_is_told() -> None:
    def nothings(coordinator: Coordinator) -> list[bool]:
        with pytest.raises(UsageError, match="an update of me is a list, expected a dict of named arrays"):
            coordinator.submit([1.0], worker="me")
        with pytest.raises(UsageError, match=r"merged_at=2\.5"):
            coordinator.submit({"w": np.ones(2)}, merged_at=2.5)  # type: ignore[arg-type]
        return [coordinator.submit(nothing) for nothing in (None, {})]

    feeder = Once(nothings)
    with DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd:
        report = dd.train([[1]], one_each, feeders=[feeder])
        assert feeder.told == [False, False]
        assert report.updates == 1


def test_errors_of_feeders_say_whose_they_are_and_hide_no_others() -> None:
    def fails(*_: Any) -> None:
        raise ConnectionError("no broker")

    def gradient(model: Any, rows: Any) -> Any:
        raise ZeroDivisionError("of the user")

    nothing = Once(lambda coordinator: None, fails)
    with DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd:
        with pytest.raises(ConnectionError) as caught:
            dd.train([[1]], one_each, add, feeders=[Once(fails, lambda: 1 / 0)])
        assert caught.value.__notes__ == ["in start(coordinator) of the feeder Once"], (
            "what did not start is not stopped"
        )
        with pytest.raises(ConnectionError) as caught:
            dd.train([[1]], one_each, add, feeders=[nothing])
        assert caught.value.__notes__ == ["in stop() of the feeder Once"]
        with pytest.raises(ZeroDivisionError) as caught_too:
            dd.train([[1]], gradient, add, feeders=[nothing])
        assert caught_too.value.__notes__[-1] == "a feeder failed as well: ConnectionError('no broker')"


def test_descent_may_not_submit() -> None:
    known: list[Coordinator] = []

    def descent(model: Any, update: Any) -> None:
        known[0].submit({"w": np.ones(2)})

    with (
        DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd,
        pytest.raises(UsageError, match="was called from descent, expected other threads"),
    ):
        dd.train([[1]], one_each, descent, feeders=[Once(known.append)])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [(np.nan, UsageError, "the update's 'w'"), ("a word", Exception, "dtype")],
    ids=["NaN", "a word"],
)
def test_an_update_that_descent_cannot_take_ends_the_training_and_is_told_to_its_feeder(
    value: Any, kind: type[Exception], message: str
) -> None:
    drip = Drip(value)
    with DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd:
        with pytest.raises(kind, match=message) as caught:
            dd.train([[1]] * 1000, one_each, add, feeders=[drip])
        assert caught.value.__notes__[0].startswith("in descent, in the driver program, for an update of drip ")
        assert len(drip.errors) == THREADS
        assert np.isfinite(dd.model["w"]).all()


def test_an_update_that_fails_before_the_tasks_begin_ends_the_training() -> None:
    def too_early(coordinator: Coordinator) -> None:
        with pytest.raises(UsageError):
            coordinator.submit({"w": np.full(2, np.nan)})

    with DeepDist({"w": np.zeros(2)}, "master", peers=1, progress=False) as dd:
        with pytest.raises(UsageError, match="the update's 'w'"):
            dd.train([[1]] * 1000, one_each, add, feeders=[Once(too_early)])
        dd.train([[1]], one_each, add)
        assert np.isfinite(dd.model["w"]).all()


def test_without_a_master_there_is_nothing_to_feed() -> None:
    with (
        DeepDist({"w": np.zeros(2)}, progress=False) as dd,
        pytest.raises(UsageError, match="feeders with mode='p2p', expected mode='master'"),
    ):
        dd.train([[1]], one_each, feeders=[Drip()])


def test_a_class_is_no_feeder() -> None:
    with (
        DeepDist({"w": np.zeros(2)}, "master", progress=False) as dd,
        pytest.raises(UsageError, match=r"feeders\[0\] is a type, expected a p2p\.Feeder"),
    ):
        dd.train([[1]], one_each, add, feeders=[Drip])  # type: ignore[list-item]
