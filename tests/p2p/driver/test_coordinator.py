"""The coordinator of a master, with a hub's agent that is no more than two replicas."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.marks import Counted, Mark, Unit, packed
from p2p.adapters.model import Model
from p2p.agent.client import AgentGoneError
from p2p.agent.replica import Replica, anonymous_file
from p2p.agent.requests import Take, Taken
from p2p.driver import coordinator as module
from p2p.driver.coordinator import Coordinator, HubQueue, check_feeders, feeding
from p2p.worker.any_update import flatten

INITIAL = {"w": np.zeros(2)}
SOON_S = 60.0


class Hub:
    """It merges what it is handed, and gives what is queued to whoever asks."""

    def __init__(self) -> None:
        self.replica = Replica(Layout.of(INITIAL))
        self.out = Replica(Layout.of(INITIAL))
        self.queue: list[tuple[str, dict[str, Any]]] = []
        self.staleness: list[int | None] = []
        self.closed = 0
        self.folders: list[str] = []
        self.gone = threading.Event()

    def __call__(self, folder: str) -> Self:
        self.folders.append(folder)
        return self

    def hand_over(self) -> Replica:
        return self.out

    def pack(self, arrays: dict[str, Any]) -> Packed:
        return Packed.of(arrays)

    def publish(self, update: Any, staleness: int | None = None) -> bool:
        for name, array in self.replica.arrays().items():
            parts = update.arrays()
            if name in parts:
                array += parts[name]
            else:
                array[parts[f"{name}[rows]"]] += parts[f"{name}[values]"]
        self.replica.merged += 1
        self.staleness.append(staleness)
        return True

    def ask(self, request: Any, expected: Any) -> tuple[Taken, list[int]]:
        assert (type(request), expected) == (Take, Taken)
        if not self.queue:
            assert self.gone.wait(SOON_S)
            raise AgentGoneError("it hung up")
        lane, arrays = self.queue.pop(0)
        packed = Packed.of(arrays)
        descriptor = anonymous_file(packed.layout.nbytes)
        os.pwrite(descriptor, packed.buffer, 0)
        return Taken(lane, packed.layout), [descriptor]

    def interrupt(self) -> None:
        self.gone.set()

    def close(self) -> None:
        self.closed += 1

    @property
    def w(self) -> list[float]:
        found: list[float] = self.replica.arrays()["w"].tolist()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr(module, "AgentClient", hub)
    yield hub
    hub.replica.close()
    hub.out.close()


def double(model: Any, update: Any) -> None:
    model["w"] += 2 * update["w"]


def make(descent: Any = double, on_error: Any = lambda: None, epochs_before: int = 0) -> Coordinator:
    return Coordinator("folder", Model(INITIAL).skeleton(), descent, on_error, epochs_before)


ONES = {"w": np.ones(2)}


def test_an_update_is_applied_by_descent_and_a_unit_once(hub: Hub) -> None:
    coordinator = make()
    assert hub.folders == ["folder"]
    assert coordinator.submit(ONES, Unit(0, 0, 0), "worker one")
    assert not coordinator.submit(ONES, Unit(0, 0, 0), "worker two")
    assert coordinator.submit(ONES, Unit(0, 0, 1), "worker two")
    assert hub.w == [4, 4]
    assert (coordinator.applied, coordinator.fed) == ({Unit(0, 0, 0), Unit(0, 0, 1)}, 0)


def test_what_a_feeder_brings_counts_once_by_whatever_tells_it_from_others(hub: Hub) -> None:
    coordinator = make()
    assert coordinator.submit(ONES)
    assert coordinator.submit(ONES), "nothing tells it from others"
    assert coordinator.submit(ONES, "a")
    assert not coordinator.submit(ONES, "a")
    assert coordinator.submit(ONES, (0, 0, 0))
    assert coordinator.submit(ONES, Unit(0, 0, 0)), "a task's, which looks like it"
    assert (coordinator.fed, coordinator.applied) == (4, {Unit(0, 0, 0)})
    assert hub.w == [10, 10]


def test_what_earlier_trainings_left_under_way_is_dropped(hub: Hub) -> None:
    coordinator = make(epochs_before=2)
    assert not coordinator.submit(ONES, Unit(1, 0, 0))
    assert coordinator.submit(ONES, Unit(2, 0, 0))
    assert hub.w == [2, 2]


def test_what_an_earlier_session_has_applied_is_not_applied_again_and_counts_as_before(hub: Hub) -> None:
    coordinator = Coordinator("folder", Model(INITIAL).skeleton(), double, lambda: None, 0, [Unit(0, 1, 0)])
    assert not coordinator.submit(ONES, Unit(0, 1, 0))
    assert coordinator.submit(ONES, Unit(0, 1, 1))
    assert coordinator.taken == 1
    merged, counted = coordinator.cut(Model({"w": np.zeros(2)}), hub.replica)
    assert (merged, counted) == (1, Counted(0, 2, packed([Mark(Unit(0, 1, 0), 0), Mark(Unit(0, 1, 1), 0)])))


def test_a_cut_is_of_no_moment_within_an_update(hub: Hub) -> None:
    applying, go_on = threading.Event(), threading.Event()

    def slow(model: Any, update: Any) -> None:
        applying.set()
        assert go_on.wait(SOON_S)
        model["w"] += update["w"]

    coordinator = make(slow)
    submits = threading.Thread(target=coordinator.submit, args=(ONES, Unit(0, 0, 0)))
    submits.start()
    assert applying.wait(SOON_S)
    cuts: list[Any] = []
    model = Model({"w": np.zeros(2)})
    cut = threading.Thread(target=lambda: cuts.append(coordinator.cut(model, hub.replica)))
    cut.start()
    cut.join(0.05)
    assert not cuts, "it waits for the update"
    go_on.set()
    for thread in (submits, cut):
        thread.join(SOON_S)
    assert cuts == [(1, Counted(0, 1, packed([Mark(Unit(0, 0, 0), 0)])))]
    assert model.arrays()["w"].tolist() == [1, 1]


def test_nothing_is_no_update(hub: Hub) -> None:
    coordinator = make()
    assert not coordinator.submit(None, "a")
    assert not coordinator.submit({}, "a")
    assert hub.staleness == []
    assert coordinator.submit(ONES, "a"), "its unit was not used up"


def test_an_update_is_as_old_as_what_was_merged_since(hub: Hub) -> None:
    coordinator = make()
    for merged_at in (None, 0, 1, 99):
        assert coordinator.submit(ONES, merged_at=merged_at)
    assert hub.staleness == [0, 1, 1, 0]
    with pytest.raises(UsageError, match="merged_at"):
        coordinator.submit(ONES, merged_at="soon")  # type: ignore[arg-type]


def test_without_descent_an_update_is_a_dict_that_is_added(hub: Hub) -> None:
    coordinator = make(descent=None)
    assert coordinator.submit(ONES)
    assert hub.w == [1, 1]
    with pytest.raises(UsageError, match=r"an update of worker one is a list, expected a dict of named arrays"):
        coordinator.submit([1], worker="worker one")
    with pytest.raises(UsageError, match=r"an update of a feeder is a list"):
        coordinator.submit([1])
    assert coordinator.error is None, "nothing has failed but the call"


def test_an_error_of_descent_ends_the_training_and_is_told_to_whoever_submits(hub: Hub) -> None:
    ended = threading.Event()
    calls = []

    def end() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:  # asked again and again, as the tasks may not have begun
            ended.set()

    coordinator = make(lambda model, update: 1 / update["zero"], end)
    with pytest.raises(ZeroDivisionError) as caught:
        coordinator.submit({"zero": 0}, Unit(0, 0, 0), "worker one")
    assert caught.value.__notes__ == ["in descent, in the driver program, for an update of worker one"]
    assert coordinator.error is caught.value
    assert ended.wait(SOON_S)
    assert set(calls) == {"deepdist-coordinator-error"}
    with pytest.raises(ZeroDivisionError):
        coordinator.submit({"zero": 1})
    coordinator.fail(ValueError("later"))
    assert coordinator.error is caught.value, "the first error is the one that counts"
    assert coordinator.applied == set()
    coordinator.close()


def test_an_exit_in_descent_is_an_error_in_words(hub: Hub) -> None:
    def leave(model: Any, update: Any) -> None:
        raise SystemExit("enough")

    coordinator = make(leave)
    with pytest.raises(SystemExit):
        coordinator.submit(ONES)
    assert isinstance(coordinator.error, RuntimeError)
    assert "enough" in str(coordinator.error)
    coordinator.close()


def test_descent_may_not_submit_and_others_may_after_it(hub: Hub) -> None:
    said = []

    def descent(model: Any, update: Any) -> None:
        with pytest.raises(UsageError, match=r"submit\(\) for worker two was called from descent") as caught:
            coordinator.submit(update, worker="worker two")
        said.append(caught.value)
        model["w"] += 1

    coordinator = make(descent)
    assert coordinator.submit(ONES)
    assert coordinator.submit(ONES), "it is over"
    assert len(said) == 2
    assert hub.w == [2, 2]


def test_after_the_end_nothing_is_taken_and_nothing_fails(hub: Hub) -> None:
    coordinator = make()
    coordinator.close()
    assert hub.closed == 1
    with pytest.raises(UsageError, match="an update of worker one after the end of its training"):
        coordinator.submit(ONES, worker="worker one")
    coordinator.fail(ValueError("late"))
    assert coordinator.error is None


def test_a_descent_without_effect_is_told_of(hub: Hub) -> None:
    coordinator = make(lambda model, update: None)
    assert coordinator.cautions == {}
    coordinator.submit(ONES)
    assert list(coordinator.cautions) == ["no effect"]


# --------------------------------------------------------------------------------------------------------- feeders


class Feeder:
    """It notes when it is called, and fails where it is told to."""

    def __init__(self, log: list[str], name: str, fails_in: str = "") -> None:
        self.log, self.name, self.fails_in = log, name, fails_in

    def _note(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if self.fails_in == what:
            raise ValueError(f"{what} {self.name}")

    def start(self, coordinator: Coordinator) -> None:
        assert coordinator is not None
        self._note("start")

    def stop(self) -> None:
        self._note("stop")


def test_feeders_are_stopped_in_reverse(hub: Hub) -> None:
    log: list[str] = []
    with feeding([Feeder(log, "a"), Feeder(log, "b")], make()):
        log.append("within")
    assert log == ["start a", "start b", "within", "stop b", "stop a"]
    with feeding([], None):
        pass


def test_a_feeder_that_cannot_start_has_those_before_it_stopped(hub: Hub) -> None:
    log: list[str] = []
    with (
        pytest.raises(ValueError, match="start b") as caught,
        feeding([Feeder(log, "a"), Feeder(log, "b", "start"), Feeder(log, "c")], make()),
    ):
        log.append("within")
    assert log == ["start a", "start b", "stop a"]
    assert caught.value.__notes__ == ["in start(coordinator) of the feeder Feeder"]


def test_a_feeder_that_cannot_stop_does_not_hide_what_was_raised_before(hub: Hub) -> None:
    log: list[str] = []
    with pytest.raises(KeyError) as caught, feeding([Feeder(log, "a", "stop"), Feeder(log, "b", "stop")], make()):
        raise KeyError("within")
    assert caught.value.__notes__ == [
        "a feeder failed as well: ValueError('stop b')",
        "a feeder failed as well: ValueError('stop a')",
    ]
    assert log[2:] == ["stop b", "stop a"], "each is stopped, whatever the other does"


def test_a_feeder_that_cannot_stop_fails_the_training(hub: Hub) -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="stop a") as caught, feeding([Feeder(log, "a", "stop")], make()):
        pass
    assert caught.value.__notes__ == ["in stop() of the feeder Feeder"]


class Half:
    start = 1

    def stop(self) -> None: ...


@pytest.mark.parametrize(
    ("feeders", "mode", "words"),
    [
        ({}, "master", "feeders is a dict, expected a list of p2p.Feeder"),
        ([1], "master", r"feeders\[0\] is a int, expected a p2p.Feeder: start\(coordinator\) and stop\(\)"),
        ([Feeder([], "a"), Half()], "master", r"feeders\[1\] is a Half"),
        ([Feeder], "master", r"feeders\[0\] is a type"),
        ([Feeder([], "a")], "p2p", "feeders with mode='p2p', expected mode='master'"),
    ],
)
def test_what_is_no_feeder_is_refused(feeders: Any, mode: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_feeders(feeders, mode)


def test_feeders_are_what_they_were() -> None:
    one = Feeder([], "a")
    assert check_feeders([one], "master") == (one,)
    assert check_feeders((one,), "master") == (one,)
    assert check_feeders([], "p2p") == ()


# ------------------------------------------------------------------------------------------------------- the queue


def test_the_queue_brings_updates_of_workers_as_they_were_computed(hub: Hub) -> None:
    coordinator = make()
    for chunk in (0, 1, 1):
        hub.queue.append(("one", flatten(ONES, epoch=0, partition=3, chunk=chunk, merged_at=chunk)))
    queue = HubQueue("folder")
    queue.start(coordinator)
    give_up = threading.Event()
    for _ in range(600):
        if len(coordinator.applied) == 2 and not hub.queue:
            break
        give_up.wait(0.1)
    queue.stop()
    assert coordinator.applied == {Unit(0, 3, 0), Unit(0, 3, 1)}
    assert hub.w == [4, 4]
    assert hub.staleness == [0, 0]
    assert coordinator.error is None, "who is interrupted has not failed"
    assert hub.closed == 1


def test_a_queue_that_is_gone_ends_the_training(hub: Hub) -> None:
    ended = threading.Event()
    coordinator = make(on_error=ended.set)
    hub.gone.set()
    queue = HubQueue("folder")
    queue.start(coordinator)
    assert ended.wait(SOON_S)
    assert isinstance(coordinator.error, AgentGoneError)
    queue.stop()
    coordinator.close()


def test_an_error_of_descent_names_the_worker_and_ends_the_queue(hub: Hub) -> None:
    ended = threading.Event()
    coordinator = make(lambda model, update: 1 / 0, ended.set)
    hub.queue.append(("one", flatten(ONES, epoch=0, partition=0, chunk=0, merged_at=0)))
    queue = HubQueue("folder")
    queue.start(coordinator)
    assert ended.wait(SOON_S)
    assert isinstance(coordinator.error, ZeroDivisionError)
    assert coordinator.error.__notes__ == ["in descent, in the driver program, for an update of worker one"]
    queue.stop()
    coordinator.close()


def test_a_queue_that_never_began_can_be_stopped(hub: Hub) -> None:
    HubQueue("folder").stop()
    assert hub.gone.is_set()
    assert hub.closed == 1


def test_a_snapshot_is_of_one_moment_and_its_version_stays_after_the_end(hub: Hub) -> None:
    coordinator = make()
    assert coordinator.version == 0
    coordinator.submit(ONES)
    with coordinator.snapshot() as (version, arrays):
        assert (version, arrays["w"].tolist()) == (1, [2.0, 2.0])
        writer = Replica(hub.replica.layout, os.dup(hub.replica.descriptor))
        assert not writer.acquire(), "nothing is merged meanwhile"
    assert writer.acquire()
    writer.close()
    coordinator.close()
    assert coordinator.version == 1
    with pytest.raises(UsageError, match="after the end of its training"), coordinator.snapshot():
        pass


def test_a_snapshot_does_not_wait_for_descent(hub: Hub) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(model: Any, update: Any) -> None:
        entered.set()
        assert go_on.wait(SOON_S)
        model["w"] += update["w"]

    coordinator = make(slow)
    thread = threading.Thread(target=coordinator.submit, args=(ONES,))
    thread.start()
    assert entered.wait(SOON_S)
    with coordinator.snapshot() as (version, arrays):
        assert (version, arrays["w"].tolist()) == (0, [0.0, 0.0])
    go_on.set()
    thread.join()
    assert coordinator.version == 1
    coordinator.close()
