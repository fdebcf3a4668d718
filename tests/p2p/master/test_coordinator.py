"""The coordinator of a master, on a model of two numbers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from gossip.marks import Counted, Mark, Unit, packed
from p2p.adapters.model import Model
from p2p.master.coordinator import Coordinator, check_feeders, feeding
from p2p.master.served import Served
from p2p.row_order import numbered

SOON_S = 60.0


class World:
    """A model, and what is served of it."""

    def __init__(self) -> None:
        self.model = {"w": np.zeros(2)}
        self.served = Served(Model(self.model))

    @property
    def w(self) -> list[float]:
        found: list[float] = self.model["w"].tolist()
        return found


@pytest.fixture
def world() -> Any:
    world = World()
    yield world
    world.served.close()


def double(model: Any, update: Any) -> None:
    model["w"] += 2 * update["w"]


def make(
    world: World, descent: Any = double, on_error: Any = lambda: None, epochs_before: int = 0, applied: Any = ()
) -> Coordinator:
    return Coordinator(world.served, descent, on_error, epochs_before, applied)


ONES = {"w": np.ones(2)}


def test_an_update_is_applied_by_descent_and_a_unit_once(world: World) -> None:
    coordinator = make(world)
    assert coordinator.submit(ONES, Unit(0, 0, 0), "worker one")
    assert not coordinator.submit(ONES, Unit(0, 0, 0), "worker two")
    assert coordinator.submit(ONES, Unit(0, 0, 1), "worker two")
    assert world.w == [4, 4]
    assert (coordinator.applied, coordinator.fed) == ({Unit(0, 0, 0), Unit(0, 0, 1)}, 0)


def test_what_a_feeder_brings_counts_once_by_whatever_tells_it_from_others(world: World) -> None:
    coordinator = make(world)
    assert coordinator.submit(ONES)
    assert coordinator.submit(ONES), "nothing tells it from others"
    assert coordinator.submit(ONES, "a")
    assert not coordinator.submit(ONES, "a")
    assert coordinator.submit(ONES, (0, 0, 0))
    assert coordinator.submit(ONES, Unit(0, 0, 0)), "a task's, which looks like it"
    assert (coordinator.fed, coordinator.applied) == (4, {Unit(0, 0, 0)})
    assert world.w == [10, 10]


def test_what_earlier_trainings_left_under_way_is_dropped(world: World) -> None:
    coordinator = make(world, epochs_before=2)
    assert not coordinator.submit(ONES, Unit(1, 0, 0))
    assert coordinator.submit(ONES, Unit(2, 0, 0))
    assert world.w == [2, 2]


def test_what_an_earlier_session_has_applied_is_not_applied_again_and_counts_as_before(world: World) -> None:
    coordinator = make(world, applied=[Unit(0, 1, 0)])
    assert not coordinator.submit(ONES, Unit(0, 1, 0))
    assert coordinator.submit(ONES, Unit(0, 1, 1))
    assert coordinator.taken == 1
    merged, counted = coordinator.cut(Model({"w": np.zeros(2)}))
    assert (merged, counted) == (1, Counted(0, 2, packed([Mark(Unit(0, 1, 0), 0), Mark(Unit(0, 1, 1), 0)])))


def test_a_cut_is_of_no_moment_within_an_update(world: World) -> None:
    applying, go_on = threading.Event(), threading.Event()

    def slow(model: Any, update: Any) -> None:
        applying.set()
        assert go_on.wait(SOON_S)
        model["w"] += update["w"]

    coordinator = make(world, slow)
    submits = threading.Thread(target=coordinator.submit, args=(ONES, Unit(0, 0, 0)))
    submits.start()
    assert applying.wait(SOON_S)
    cuts: list[Any] = []
    model = Model({"w": np.zeros(2)})
    cut = threading.Thread(target=lambda: cuts.append(coordinator.cut(model)))
    cut.start()
    cut.join(0.05)
    assert not cuts, "it waits for the update"
    go_on.set()
    for thread in (submits, cut):
        thread.join(SOON_S)
    assert cuts == [(1, Counted(0, 1, packed([Mark(Unit(0, 0, 0), 0)])))]
    assert model.arrays()["w"].tolist() == [1, 1]


def test_nothing_is_no_update(world: World) -> None:
    coordinator = make(world)
    assert not coordinator.submit(None, "a")
    assert not coordinator.submit({}, "a")
    assert coordinator.version == 0
    assert coordinator.submit(ONES, "a"), "its unit was not used up"


def test_how_old_an_update_is_has_to_be_a_number(world: World) -> None:
    coordinator = make(world)
    for merged_at in (None, 0, 99):
        assert coordinator.submit(ONES, merged_at=merged_at)
    with pytest.raises(UsageError, match="merged_at"):
        coordinator.submit(ONES, merged_at="soon")  # type: ignore[arg-type]


def test_units_that_count_are_known_and_those_of_earlier_trainings_all_are(world: World) -> None:
    coordinator = make(world, epochs_before=1, applied=[Unit(1, 0, 3), Unit(1, 0, 7), Unit(1, 1, 9)])
    assert [coordinator.knows(unit) for unit in (Unit(1, 0, 3), Unit(1, 0, 4), Unit(0, 5, 5))] == [True, False, True]
    assert [coordinator.furthest(1, partition) for partition in range(3)] == [7, 9, -1]
    assert coordinator.torn() == []


def test_attempts_with_other_rows_are_told_by_their_units(world: World) -> None:
    of_rows = [Unit(0, 0, numbered(5, 0)), Unit(0, 0, numbered(5, 1)), Unit(0, 1, numbered(6, 0))]
    assert make(world, applied=of_rows).torn() == []
    assert make(world, applied=[*of_rows, Unit(0, 1, numbered(7, 1))]).torn() == [(0, 1)]


def test_a_copy_is_of_no_moment_within_an_update(world: World) -> None:
    coordinator = make(world)
    coordinator.submit(ONES)
    model = Model({"w": np.zeros(2)})
    assert coordinator.read(model) == 1
    assert model.arrays()["w"].tolist() == [2, 2]
    with coordinator.between_updates():
        submits = threading.Thread(target=coordinator.submit, args=(ONES,))
        submits.start()
        submits.join(0.05)
        assert world.w == [2, 2]
    submits.join(SOON_S)
    assert world.w == [4, 4]


@pytest.mark.parametrize(
    "update", [{"w": np.array([np.nan, 1])}, {"w": [np.ones(2), {"deep": np.array([1.0, np.inf])}]}], ids=["w", "deep"]
)
def test_numbers_that_are_none_are_refused_before_descent(world: World, update: Any) -> None:
    coordinator = make(world, lambda model, update: pytest.fail("descent was called"))
    with pytest.raises(UsageError, match="1 of 2 numbers are NaN or infinite"):
        coordinator.submit(update)


def test_what_descent_began_before_it_failed_is_undone(world: World) -> None:
    def half(model: Any, update: Any) -> None:
        model["w"][0] = 9
        if update["fails"]:
            raise ZeroDivisionError

    coordinator = make(world, half)
    coordinator.submit({"fails": 0})
    assert world.w == [9, 0]
    world.model["w"][1] = 5  # by nobody that counts
    with pytest.raises(ZeroDivisionError):
        coordinator.submit({"fails": 1})
    assert world.w == [9, 0], "what was published last"


def test_a_model_that_is_no_number_any_more_is_told_and_undone(world: World) -> None:
    def divide(model: Any, update: Any) -> None:
        with np.errstate(all="ignore"):
            model["w"] = model["w"] / update["by"]

    coordinator = make(world, divide)
    with pytest.raises(UsageError, match=r"the update made the model's 'w': 2 of 2 numbers are NaN .*nothing of it"):
        coordinator.submit({"by": np.zeros(2)})
    assert world.w == [0, 0]


def test_without_descent_an_update_is_a_dict_that_is_added(world: World) -> None:
    coordinator = make(world, descent=None)
    assert coordinator.submit(ONES)
    assert world.w == [1, 1]
    with pytest.raises(UsageError, match=r"an update of worker one is a list, expected a dict of named arrays"):
        coordinator.submit([1], worker="worker one")
    with pytest.raises(UsageError, match=r"an update of a feeder is a list"):
        coordinator.submit([1])
    assert coordinator.error is None, "nothing has failed but the call"


def test_an_error_of_descent_ends_the_training_and_is_told_to_whoever_submits(world: World) -> None:
    ended = threading.Event()
    calls = []

    def end() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:  # asked again and again, as the tasks may not have begun
            ended.set()

    coordinator = make(world, lambda model, update: 1 / update["zero"], end)
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


def test_an_exit_in_descent_is_an_error_in_words(world: World) -> None:
    def leave(model: Any, update: Any) -> None:
        raise SystemExit("enough")

    coordinator = make(world, leave)
    with pytest.raises(SystemExit):
        coordinator.submit(ONES)
    assert isinstance(coordinator.error, RuntimeError)
    assert "enough" in str(coordinator.error)
    coordinator.close()


def test_descent_may_not_submit_and_others_may_after_it(world: World) -> None:
    said = []

    def descent(model: Any, update: Any) -> None:
        with pytest.raises(UsageError, match=r"submit\(\) for worker two was called from descent") as caught:
            coordinator.submit(update, worker="worker two")
        said.append(caught.value)
        model["w"] += 1

    coordinator = make(world, descent)
    assert coordinator.submit(ONES)
    assert coordinator.submit(ONES), "it is over"
    assert len(said) == 2
    assert world.w == [2, 2]


def test_after_the_end_nothing_is_taken_and_nothing_fails(world: World) -> None:
    coordinator = make(world)
    coordinator.close()
    with pytest.raises(UsageError, match="an update of worker one after the end of its training"):
        coordinator.submit(ONES, worker="worker one")
    coordinator.fail(ValueError("late"))
    assert coordinator.error is None


def test_a_descent_without_effect_is_told_of(world: World) -> None:
    coordinator = make(world, lambda model, update: None)
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


def test_feeders_are_stopped_in_reverse(world: World) -> None:
    log: list[str] = []
    with feeding([Feeder(log, "a"), Feeder(log, "b")], make(world)):
        log.append("within")
    assert log == ["start a", "start b", "within", "stop b", "stop a"]
    with feeding([], None):
        pass


def test_a_feeder_that_cannot_start_has_those_before_it_stopped(world: World) -> None:
    log: list[str] = []
    with (
        pytest.raises(ValueError, match="start b") as caught,
        feeding([Feeder(log, "a"), Feeder(log, "b", "start"), Feeder(log, "c")], make(world)),
    ):
        log.append("within")
    assert log == ["start a", "start b", "stop a"]
    assert caught.value.__notes__ == ["in start(coordinator) of the feeder Feeder"]


def test_a_feeder_that_cannot_stop_does_not_hide_what_was_raised_before(world: World) -> None:
    log: list[str] = []
    with pytest.raises(KeyError) as caught, feeding([Feeder(log, "a", "stop"), Feeder(log, "b", "stop")], make(world)):
        raise KeyError("within")
    assert caught.value.__notes__ == [
        "a feeder failed as well: ValueError('stop b')",
        "a feeder failed as well: ValueError('stop a')",
    ]
    assert log[2:] == ["stop b", "stop a"], "each is stopped, whatever the other does"


def test_a_feeder_that_cannot_stop_fails_the_training(world: World) -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match="stop a") as caught, feeding([Feeder(log, "a", "stop")], make(world)):
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


def test_a_snapshot_is_of_one_moment_and_its_version_stays_after_the_end(world: World) -> None:
    coordinator = make(world)
    assert coordinator.version == 0
    coordinator.submit(ONES)
    with coordinator.snapshot() as (version, arrays):
        assert (version, arrays["w"].tolist()) == (1, [2.0, 2.0])
        for _ in range(5):
            coordinator.submit(ONES)
        assert arrays["w"].tolist() == [2.0, 2.0], "nobody writes there meanwhile"
    coordinator.close()
    assert coordinator.version == 6
    with pytest.raises(UsageError, match="after the end of its training"), coordinator.snapshot():
        pass


def test_a_snapshot_does_not_wait_for_descent(world: World) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(model: Any, update: Any) -> None:
        entered.set()
        assert go_on.wait(SOON_S)
        model["w"] += update["w"]

    coordinator = make(world, slow)
    thread = threading.Thread(target=coordinator.submit, args=(ONES,))
    thread.start()
    assert entered.wait(SOON_S)
    with coordinator.snapshot() as (version, arrays):
        assert (version, arrays["w"].tolist()) == (0, [0.0, 0.0])
    go_on.set()
    thread.join()
    assert coordinator.version == 1
    coordinator.close()
