"""A worker of a master, in this process: when it fetches, what it makes of the model by itself, and what it pushes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from gossip.marks import Unit
from p2p.adapters.model import Model
from p2p.master.coordinator import Coordinator, feeding
from p2p.master.served import Served
from p2p.master.serving import Server
from p2p.server import client
from p2p.worker.errors import PartitionError, told
from p2p.worker.job import Job, Pushes, TaskResult
from p2p.worker.running import in_place
from p2p.worker.task import run_partition

pytestmark = pytest.mark.sockets

runs = iter(range(1_000_000))
GRIDS = [(1, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2), (4, 6), (20, 20)]


class World:
    """A master of one number, and the attempts at a partition of its job, one after the other."""

    def __init__(self, model: Any = None) -> None:
        self.model = {"w": np.zeros(1)} if model is None else model
        self.applied: list[float] = []
        """Updates that the master's descent was given."""
        self.served = Served(Model(self.model))
        self.run = f"run {next(runs)}"
        self.server = Server("127.0.0.1", self.run, None)
        self.coordinator = self.begin()

    def begin(self, applied: Any = (), **options: Any) -> Coordinator:
        self.coordinator = Coordinator(self.served, self.descent, lambda: None, 0, applied, **options)
        return self.coordinator

    def descent(self, model: Any, update: Any) -> None:
        self.applied.append(float(update["w"][0]))
        step(model, update)

    def attempt(self, gradient: Any, number: int = 0, rows: int = 7, **options: Any) -> TaskResult:
        job = Job(
            run=self.run,
            skeleton=Model({"w": np.zeros(1)}).skeleton(),
            gradient=gradient,
            partitions=1,
            chunk_rows=1,
            peers=1,
            seed=0,
            master=self.server.address,
        )
        descent = options.pop("descent", step)
        job = replace(job, descent=descent, pushes=Pushes(**options))
        with feeding([self.server], self.coordinator):
            return run_partition(job, None, 0, 0, range(rows), number)

    @property
    def staleness(self) -> list[int]:
        return [age for worker in self.server.workers.values() for age in worker.staleness]

    def close(self) -> None:
        for each in client._clients.values():
            each.close()
        client._clients.clear()
        self.server.close()
        self.served.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def step(model: Any, update: Any) -> None:
    """No sum: of a sum it makes something else than of the parts, one after the other."""
    model["w"] += np.sqrt(update["w"])


def units(chunks: Any) -> set[Unit]:
    return {Unit(0, 0, chunk) for chunk in chunks}


def downpour(rows: int, n_fetch: int, n_push: int) -> tuple[list[float], list[float], float]:
    """Algorithm 7.1 of Dean et al. 2012, with one client: (models that gradients saw, what was pushed, the model)."""
    master = accrued = local = 0.0
    seen, pushed = [], []
    for number in range(rows):
        if number % n_fetch == 0:
            local = master
        seen.append(local)
        gradient = number + 1 + local
        local += gradient**0.5
        accrued += gradient
        if (number + 1) % n_push == 0 or number + 1 == rows:
            pushed.append(accrued)
            master += accrued**0.5
            accrued = 0.0
    return seen, pushed, master


@pytest.mark.parametrize(("n_fetch", "n_push"), GRIDS)
def test_one_worker_does_as_the_paper_says(world: World, n_fetch: int, n_push: int) -> None:
    seen = []

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(float(model["w"][0]))
        update = {"w": model["w"]}  # which may lie in the copy, and the copy may be spoiled
        update["w"] += next(rows) + 1
        return update

    result = world.attempt(gradient, n_fetch=n_fetch, n_push=n_push)
    expected_seen, pushed, expected = downpour(7, n_fetch, n_push)
    np.testing.assert_allclose(seen, expected_seen)
    np.testing.assert_allclose(world.applied, pushed)
    np.testing.assert_allclose(world.model["w"], expected)
    assert result == TaskResult(rows=7, updates=len(pushed), units=7)
    assert world.coordinator.applied == units(range(7))


@pytest.mark.parametrize(("n_fetch", "n_push"), GRIDS)
@pytest.mark.parametrize("fails_at", range(7))
def test_of_two_attempts_each_chunk_counts_once(world: World, n_fetch: int, n_push: int, fails_at: int) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        row = next(rows)
        if failing and row == fails_at:
            raise ZeroDivisionError
        return {"w": np.array([2.0**row])}

    failing = True
    with pytest.raises(PartitionError):
        world.attempt(gradient, n_fetch=n_fetch, n_push=n_push)
    done = fails_at // n_push * n_push
    assert world.coordinator.applied == units(range(done)), "what was gathered of a group is gone with its attempt"
    failing = False
    result = world.attempt(gradient, 1, n_fetch=n_fetch, n_push=n_push)
    assert sum(world.applied) == 2**7 - 1
    assert result == TaskResult(rows=7, updates=-(-7 // n_push) - done // n_push, units=7)
    again = world.attempt(gradient, 2, n_fetch=n_fetch, n_push=n_push)
    assert again == TaskResult(rows=7, updates=0, units=7)
    assert sum(world.applied) == 2**7 - 1


@pytest.mark.parametrize("overtaken_at", range(7))
def test_an_attempt_that_is_overtaken_in_the_middle_of_a_group_adds_nothing_of_it(
    world: World, overtaken_at: int
) -> None:
    """Another one pushes all of it meanwhile, as when Spark speculates."""

    def gradient(model: Any, rows: Any) -> Any:
        row = next(rows)
        computed.append(row)
        if row == overtaken_at:
            for chunks in (range(4), range(4, 7)):
                first, *also = sorted(units(chunks))
                world.coordinator.submit({"w": np.array([sum(2.0**chunk for chunk in chunks)])}, first, also=also)
        return {"w": np.array([2.0**row])}

    computed: list[int] = []
    result = world.attempt(gradient, n_fetch=2, n_push=4)
    assert sum(world.applied) == 2**7 - 1
    assert len(world.applied) == 2
    assert result == TaskResult(rows=7, updates=int(overtaken_at >= 4), units=7)
    assert world.coordinator.applied == units(range(7))
    assert max(computed) <= overtaken_at // 2 * 2 + 1, "the next fetch tells that there is nothing left to do"


def test_a_chunk_that_came_to_nothing_counts_with_its_group(world: World) -> None:
    """Else attempts whose gradients found other chunks worth an update would stand for other units."""

    def gradient(model: Any, rows: Any) -> Any:
        row = next(rows)
        return {"w": np.ones(1)} if row in worth else None

    worth = {1, 6}
    world.attempt(gradient, n_push=2)
    assert world.coordinator.applied == units([0, 1, 6])
    worth = {0, 1, 2, 6}
    assert world.attempt(gradient, 1, n_push=2).updates == 1
    assert world.coordinator.applied == units([0, 1, 2, 3, 6])
    assert world.applied == [1, 1, 1]


@pytest.mark.parametrize("before", [{0}, {1, 2}, {0, 1, 5}, {3, 4, 6}, set(range(7))])
@pytest.mark.parametrize("n_push", [1, 2, 3, 7])
def test_what_an_earlier_session_cut_otherwise_counts_once(world: World, before: set[int], n_push: int) -> None:
    computed = []

    def gradient(model: Any, rows: Any) -> Any:
        computed.append(next(rows))
        return {"w": np.array([2.0 ** computed[-1]])}

    world.begin(units(before))
    world.attempt(gradient, n_fetch=2, n_push=n_push)
    assert set(computed) == set(range(7)) - before
    assert sum(world.applied) == sum(2**chunk for chunk in set(range(7)) - before)
    assert world.coordinator.applied == units(range(7))


def test_units_that_count_in_part_are_refused(world: World) -> None:
    update = {"w": np.ones(1)}
    assert world.coordinator.submit(update, Unit(0, 0, 0), also=[Unit(0, 0, 1)])
    assert not world.coordinator.submit(update, Unit(0, 0, 1), also=[Unit(0, 0, 0)])
    with pytest.raises(UsageError, match="stands for 2 units, of which 1 count already, expected all of them or none"):
        world.coordinator.submit(update, Unit(0, 0, 1), also=[Unit(0, 0, 2)])
    with pytest.raises(UsageError, match="stands for 2 units, of which 1 count already"):
        world.coordinator.drop([Unit(0, 0, 1), Unit(0, 0, 2)])
    assert world.applied == [1]
    assert world.coordinator.applied == units([0, 1])


@pytest.mark.parametrize(("n_fetch", "n_push", "updates"), [(1, 1, 5), (3, 1, 5), (1, 3, 3), (3, 3, 3)])
def test_a_bad_update_is_left_out_of_its_group(world: World, n_fetch: int, n_push: int, updates: int) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        row = next(rows)
        assert np.isfinite(model["w"]).all()
        return {"w": np.array([np.nan if row in (1, 6) else 2.0**row])}

    for attempt in range(2):
        result = world.attempt(gradient, attempt, n_fetch=n_fetch, n_push=n_push, drops_bad=True)
        assert (sum(world.applied), len(world.applied)) == (1 + 4 + 8 + 16 + 32, updates - (n_push == 3))
        assert world.coordinator.dropped == 2, "once, however many attempts there are"
        assert world.coordinator.applied == units(range(7))
    assert result.updates == 0
    world.begin()
    with pytest.raises(PartitionError, match="NaN or infinite"):
        world.attempt(gradient, n_fetch=n_fetch, n_push=n_push)


def test_a_sum_that_is_beyond_all_numbers_is_left_out_with_its_group(world: World) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        row = next(rows)
        return None if row == 1 else {"w": np.array([6e4 if row < 3 else 1], np.float16)}

    world.attempt(gradient, n_push=3, drops_bad=True)
    assert world.applied == [3, 1]
    assert world.coordinator.dropped == 2
    world.begin()
    with pytest.raises(PartitionError, match="NaN or infinite"), np.errstate(over="ignore"):
        world.attempt(gradient, n_push=3)


def test_a_step_to_infinity_is_left_out_of_the_worker_s_copy_too(world: World) -> None:
    def leap(model: Any, update: Any) -> None:
        model["w"] += np.inf if update["w"][0] == 2 else update["w"]

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(float(model["w"][0]))
        return {"w": np.array([float(next(rows))])}

    seen: list[float] = []
    world.coordinator = Coordinator(world.served, leap, lambda: None, drops_bad=True)
    world.attempt(gradient, rows=5, descent=leap, n_fetch=5, drops_bad=True)
    assert seen == [0, 0, 1, 1, 4]
    assert (world.model["w"], world.coordinator.dropped) == ([8], 1)


def test_a_worker_s_own_updates_do_not_make_it_stale(world: World) -> None:
    world.attempt(lambda model, rows: {"w": np.ones(1)}, n_fetch=7, n_push=1)
    assert world.staleness == [0] * 7

    def gradient(model: Any, rows: Any) -> Any:
        if next(rows) == 3:
            world.coordinator.submit({"w": np.ones(1)})
        return {"w": np.ones(1)}

    world.begin()
    world.attempt(gradient, n_fetch=7, n_push=2)
    assert world.staleness[7:] == [0, 1, 1, 1]


def test_what_was_fetched_in_the_middle_of_a_group_lacks_its_beginning(world: World) -> None:
    """So the group is as old as the first of its models."""

    def gradient(model: Any, rows: Any) -> Any:
        if next(rows) == 1:
            world.coordinator.submit({"w": np.ones(1)})
        return {"w": np.ones(1)}

    world.attempt(gradient, n_fetch=2, n_push=3)
    assert world.staleness == [1, 1, 0]


def test_a_gradient_may_train_in_place(world: World) -> None:
    seen = []

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(float(model["w"][0]))
        copy = in_place(model)
        assert copy is not None
        model["w"] += next(rows) + 1
        return copy.trained({})

    world.coordinator = Coordinator(world.served, None, lambda: None)
    world.attempt(gradient, n_fetch=3, n_push=2, descent=None)
    assert seen == [0, 1, 3, 3, 7, 12, 21]
    assert world.model["w"] == [28]


@pytest.mark.parametrize(
    ("n_fetch", "n_push", "expected"), [(3, 3, [0, 1, 2, 1, 2, 3, 2, 3]), (2, 4, [0, 1, 1, 2, 1, 2, 1, 2])]
)
def test_what_descent_keeps_on_the_model_is_the_master_s_after_a_fetch(
    world: World, n_fetch: int, n_push: int, expected: list[int]
) -> None:
    """But for what it kept before the master's first descent, of which the master says nothing."""
    seen = []

    def keep(model: Any, update: Any) -> None:
        model["w"] += update["w"]
        model["calls"] = model.get("calls", 0) + 1

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(model.get("calls", 0))
        return {"w": np.ones(1)}

    world.coordinator = Coordinator(world.served, keep, lambda: None)
    world.attempt(gradient, rows=8, n_fetch=n_fetch, n_push=n_push, descent=keep)
    assert seen == expected
    assert world.model["calls"] == -(-8 // n_push)


def test_what_descent_kept_in_an_attempt_that_failed_is_not_there_in_the_next_one(world: World) -> None:
    def keep(model: Any, update: Any) -> None:
        model["w"] += update["w"]
        model["history"] = [*model.get("history", ()), len(update)]

    def gradient(model: Any, rows: Any) -> Any:
        seen.append(len(model.get("history", ())))
        if next(rows) == 2 and len(seen) == 3:
            raise ZeroDivisionError
        return {"w": np.ones(1)}

    seen: list[int] = []
    with pytest.raises(PartitionError):
        world.attempt(gradient, descent=keep, n_fetch=7, n_push=7)
    world.coordinator = Coordinator(world.served, keep, lambda: None)
    world.attempt(gradient, 1, descent=keep, n_fetch=7, n_push=7)
    assert seen == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]
    assert world.model["history"] == [1]


def test_an_error_of_descent_on_the_worker_is_the_user_s(world: World) -> None:
    def fail(model: Any, update: Any) -> None:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(PartitionError) as caught:
        world.attempt(lambda model, rows: {"w": np.ones(1)}, n_fetch=2, descent=fail)
    assert isinstance(told(caught.value.pickled), ZeroDivisionError)


def test_updates_that_cannot_be_added_are_told(world: World) -> None:
    with pytest.raises(PartitionError, match=r"update\['w'\] is a ndarray of float64, shape \(1,\) in one chunk"):
        world.attempt(lambda model, rows: {"w": np.ones(next(rows) + 1)}, n_push=2)
