"""One partition on a worker: rows to gradient to update, and the errors of the user's code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters import ByPath
from p2p.adapters.model import Model
from p2p.agent.ports import refresh
from p2p.agent.replica import Replica
from p2p.row_order import in_order, numbered
from p2p.testing import Neighbor
from p2p.worker.delta import write_delta
from p2p.worker.errors import PartitionError, told
from p2p.worker.job import Job, Rhythm, TaskResult
from p2p.worker.task import current, in_place, run_partition
from p2p.worker.working_copy import ExchangeSettings


@pytest.fixture
def model() -> Model:
    """The model of a worker: `w`, two numbers, and `n`, a count."""
    return Model({"w": np.array([1.0, 2.0]), "n": np.array([10], np.int32)})


@pytest.fixture
def neighbor(model: Model) -> Neighbor:
    """An agent whose replica is further than the model."""
    return Neighbor({"w": np.array([100.0, 200.0]), "n": np.array([1000], np.int32)})


runs = iter(range(1_000_000))


def job_of(model: Model, gradient: Any, descent: Any = None, **changes: Any) -> Job:
    job = Job(
        run=f"run {next(runs)}",
        skeleton=model.skeleton(),
        gradient=gradient,
        descent=descent,
        epochs=2,
        partitions=5,
        peers=3,
        seed=7,
    )
    return replace(job, **changes)


def add_w(model: dict[str, Any], update: Any) -> None:
    model["w"] += update


class Named(NamedTuple):
    w: Any


@dataclass(frozen=True)
class Absent(ByPath):
    """Of a model that cannot be in a worker."""

    def dressed(self, bare: Any) -> Any:
        raise UsageError("not here")


def test_a_model_that_cannot_be_in_a_worker_is_an_error_of_the_partition(neighbor: Neighbor) -> None:
    model = Model({"w": np.zeros(2), "n": np.zeros(1, np.int32)}, adapter=Absent())
    with pytest.raises(PartitionError) as caught:
        run_partition(job_of(model, add_w), neighbor, 0, 3, [1])
    assert isinstance(told(caught.value.pickled), UsageError)
    assert "partition 3" in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize(
    ("epochs", "partitions", "workers", "last"),
    [
        (1, 4, 1, [(0, 3)]),
        (2, 4, 1, [(1, 3)]),
        (2, 4, 3, [(1, 1), (1, 2), (1, 3)]),
        (2, 2, 3, [(0, 1), (1, 0), (1, 1)]),
        (1, 2, 8, [(0, 0), (0, 1)]),
    ],
)
def test_as_many_partitions_as_there_are_workers_are_the_last_of_one(
    model: Model, epochs: int, partitions: int, workers: int, last: list[tuple[int, int]]
) -> None:
    job = job_of(model, None, epochs=epochs, partitions=partitions, workers=workers)
    going_on = {(e, p): job.going_on(e, p) for e in range(epochs) for p in range(partitions)}
    assert [unit for unit, count in going_on.items() if count == 0] == last
    assert set(going_on.values()) <= {0, workers}


# --------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize(
    ("count", "chunk_rows", "chunks"),
    [
        (5, None, [[0, 1, 2, 3, 4]]),
        (5, 2, [[0, 1], [2, 3], [4]]),
        (4, 2, [[0, 1], [2, 3]]),
        (3, 1, [[0], [1], [2]]),
        (3, 10, [[0, 1, 2]]),
        (1, 1, [[0]]),
        (0, None, []),
        (0, 3, []),
    ],
)
def test_a_gradient_gets_its_rows_in_chunks(
    model: Model, neighbor: Neighbor, count: int, chunk_rows: int | None, chunks: list[list[int]]
) -> None:
    seen = []

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        seen.append(list(rows))
        return {"w": np.ones(2)}

    result = run_partition(job_of(model, gradient, chunk_rows=chunk_rows), neighbor, 0, 0, iter(range(count)))
    assert seen == chunks
    assert result == TaskResult(rows=count, updates=len(chunks), units=len(chunks))
    assert len(neighbor.published) == len(chunks)


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_rows_that_a_gradient_leaves_belong_to_its_chunk_all_the_same(
    model: Model, neighbor: Neighbor, chunk_rows: int | None
) -> None:
    firsts = []

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        firsts.append(next(rows))

    result = run_partition(job_of(model, gradient, chunk_rows=chunk_rows), neighbor, 0, 0, range(7))
    assert firsts == ([0] if chunk_rows is None else [0, 3, 6])
    assert result == TaskResult(rows=7, updates=0, units=0)


def test_rows_are_read_as_they_are_asked_for(model: Model, neighbor: Neighbor) -> None:
    read = []

    def rows() -> Iterator[int]:
        for row in range(6):
            read.append(row)
            yield row

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        assert len(read) == 2 * current().chunk + 1
        list(rows)

    run_partition(job_of(model, gradient, chunk_rows=2), neighbor, 0, 0, rows())
    assert read == list(range(6))


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_learned_is_not_published(model: Model, neighbor: Neighbor, nothing: Any) -> None:
    result = run_partition(job_of(model, lambda model, rows: nothing), neighbor, 0, 0, [1])
    assert result == TaskResult(rows=1, updates=0, units=0)
    assert neighbor.published == []


def test_every_chunk_sees_what_was_merged_before_it(model: Model, neighbor: Neighbor) -> None:
    seen = []

    def gradient(model: dict[str, Any], rows: Iterator[int]) -> Any:
        seen.append(model["w"].tolist())
        model["w"][...] = -1  # a gradient may do what it likes with its copy
        return {"w": np.full(2, float(sum(rows)))}

    run_partition(job_of(model, gradient, chunk_rows=1), neighbor, 0, 0, [1, 2, 3])
    assert seen == [[100, 200], [101, 201], [103, 203]]
    assert neighbor.merged_at == [0, 1, 2]
    np.testing.assert_array_equal(neighbor.replica.arrays()["w"], [106, 206])


def test_the_model_keeps_its_own_state_between_the_tasks_of_a_session(neighbor: Neighbor) -> None:
    class Counting:
        def __init__(self) -> None:
            self.w = np.zeros(2)
            self.n = np.zeros(1, np.int32)
            self.calls = 0

    calls = []

    def gradient(model: Counting, rows: Iterator[int]) -> Any:
        model.calls += 1
        calls.append(model.calls)

    job = job_of(Model(Counting()), gradient)
    run_partition(job, neighbor, 0, 0, [1])
    run_partition(job, neighbor, 0, 1, [1])
    run_partition(replace(job, run="another session"), neighbor, 0, 0, [1])
    assert calls == [1, 2, 1]


# ----------------------------------------------------------------------------------------------------- the running task


def test_current_tells_gradient_and_descent_where_they_are(model: Model, neighbor: Neighbor) -> None:
    seen = []

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        seen.append(current())
        return 1.0

    def descent(model: Any, update: Any) -> None:
        assert current() is seen[-1]

    job = job_of(model, gradient, descent, chunk_rows=2)
    run_partition(job, neighbor, 1, 4, range(3))
    assert [(task.epoch, task.epochs, task.partition, task.partitions, task.chunk) for task in seen] == [
        (1, 2, 4, 5, 0),
        (1, 2, 4, 5, 1),
    ]
    assert {(task.run, task.peers, task.seed) for task in seen} == {(job.run, 3, 7)}


def test_outside_of_a_task_there_is_none(model: Model, neighbor: Neighbor) -> None:
    assert current() is None
    run_partition(job_of(model, lambda model, rows: None), neighbor, 0, 0, [1])
    assert current() is None

    def wrong(model: Any, rows: Any) -> Any:
        raise ValueError

    with pytest.raises(PartitionError):
        run_partition(job_of(model, wrong), neighbor, 0, 0, [1])
    assert current() is None


# ----------------------------------------------------------------------------------------------- the delta of an update


def delta_of(model: Model, descent: Any, update: Any, neighbor: Neighbor) -> dict[str, np.ndarray]:
    out = neighbor.hand_over()
    for view in out.arrays().values():
        view[...] = 77  # of the update before
    write_delta(model, descent, update, neighbor.replica, out)
    return out.arrays()


def test_without_descent_the_update_is_the_delta(model: Model, neighbor: Neighbor) -> None:
    delta = delta_of(model, None, {"w": [0.5, -1]}, neighbor)
    np.testing.assert_array_equal(delta["w"], [0.5, -1])
    np.testing.assert_array_equal(delta["n"], [0])


def test_without_descent_numbers_are_converted_within_their_kind(model: Model, neighbor: Neighbor) -> None:
    delta = delta_of(model, None, {"w": np.array([1, 2], np.float32), "n": np.array([3])}, neighbor)
    assert delta["w"].dtype == np.float64
    assert delta["n"].dtype == np.int64  # integers are summed so
    np.testing.assert_array_equal(delta["w"], [1, 2])
    np.testing.assert_array_equal(delta["n"], [3])


def rebind(model: dict[str, Any], update: Any) -> None:
    model["w"] = model["w"] + update


def add_to_the_list(model: dict[str, Any], update: Any) -> None:
    model["w"][:] = [number + update for number in model["w"]]


@pytest.mark.parametrize("descent", [add_w, rebind, add_to_the_list])
def test_descent_starts_from_the_replica_and_what_it_changes_is_the_delta(
    model: Model, neighbor: Neighbor, descent: Any
) -> None:
    delta = delta_of(model, descent, 0.5, neighbor)
    np.testing.assert_array_equal(delta["w"], [0.5, 0.5])
    np.testing.assert_array_equal(delta["n"], [0])
    np.testing.assert_array_equal(model.model["w"], [100.5, 200.5])
    np.testing.assert_array_equal(neighbor.replica.arrays()["w"], [100, 200])
    np.testing.assert_array_equal(delta_of(model, descent, 0.25, neighbor)["w"], [0.25, 0.25])


class Locked(Replica):
    """A replica that tells of reads without its lock: its agent may be half through a merge."""

    held = unlocked = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        with super().reading():
            self.held += 1
            yield
            self.held -= 1

    def arrays(self) -> Any:
        self.unlocked += not self.held
        return super().arrays()


@pytest.mark.parametrize("rule", ["sum", "mean"])
@pytest.mark.parametrize("descent", [None, lambda model, update: add_w(model, update["w"])], ids=["whole", "descent"])
def test_a_replica_is_read_while_nobody_writes_to_it(model: Model, descent: Any, rule: str) -> None:
    neighbor = Neighbor({"w": np.array([100.0, 200.0]), "n": np.array([1000], np.int32)})
    neighbor.replica.close()
    neighbor.replica = Locked(neighbor.layout)
    job = job_of(model, lambda model, rows: {"w": np.ones(2)}, descent, exchange=ExchangeSettings(rule, peers=2))
    neighbor.replica.unlocked = 0
    run_partition(job, neighbor, 0, 0, [1])
    assert neighbor.published
    assert neighbor.replica.unlocked == 0


def test_descent_may_put_the_update_itself_into_the_model(model: Model, neighbor: Neighbor) -> None:
    def replace_w(model: dict[str, Any], update: Any) -> None:
        model["w"] = update

    update = np.array([3.0, 4.0])
    np.testing.assert_array_equal(delta_of(model, replace_w, update, neighbor)["w"], [-97, -196])


def test_refresh_tells_how_many_updates_the_copy_holds(model: Model, neighbor: Neighbor) -> None:
    neighbor.replica.merged = 9
    assert refresh(model, neighbor.replica) == 9
    np.testing.assert_array_equal(model.model["n"], [1000])


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"v": 1}, r"the update has 'v', expected some of the model's arrays \['n', 'w'\]"),
        ({"w": np.ones(3)}, r"the update's 'w': shape \(3,\), expected \(2,\)"),
        ({"w": 1.0}, r"the update's 'w': shape \(\), expected \(2,\)"),
        ({"n": np.array([0.5])}, "the update's 'n': dtype float64, expected int32"),
        ({"w": np.array([1j, 2])}, "the update's 'w': dtype complex128, expected float64"),
        ({"w": np.array(["a", "b"])}, "the update's 'w': dtype <U1, expected float64"),
        ({"w": np.array([1, np.nan])}, "the update's 'w': 1 of 2 numbers are NaN or infinite.* smaller learning rate"),
        ({"w": np.array([np.inf, -np.inf])}, "the update's 'w': 2 of 2 numbers are NaN or infinite"),
        ((np.ones(2), 1), "gradient returned a tuple: without a descent, expected a dict of named arrays"),
        (np.ones(2), "gradient returned a ndarray: without a descent"),
        (0.5, "gradient returned a float: without a descent"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(
    model: Model, neighbor: Neighbor, update: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        delta_of(model, None, update, neighbor)


def test_an_update_too_large_for_the_model_s_numbers_is_refused(neighbor: Neighbor) -> None:
    model = Model({"w": np.zeros(2, np.float32)})
    neighbor = Neighbor(model.arrays())
    with np.errstate(over="ignore"), pytest.raises(UsageError, match="'w': 1 of 2 numbers are NaN or infinite"):
        delta_of(model, None, {"w": np.array([1e300, 1.0])}, neighbor)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(3), r"'w': shape \(3,\), expected \(2,\); assign in place"),
        (np.ones(2, np.float32), "'w': dtype float32, expected float64; assign in place"),
        ([1.0, 2.0], "'w' of the model is now a list, expected 'w'"),
        (np.array([np.nan, 0]), "the update's 'w': 1 of 2 numbers are NaN or infinite"),
    ],
)
def test_a_descent_that_spoils_the_model_is_refused_and_the_next_one_starts_afresh(
    model: Model, neighbor: Neighbor, value: Any, message: str
) -> None:
    def spoil(model: dict[str, Any], update: Any) -> None:
        model["w"] = value

    with pytest.raises(UsageError, match=message):
        delta_of(model, spoil, 1, neighbor)
    np.testing.assert_array_equal(delta_of(model, add_w, 0.5, neighbor)["w"], [0.5, 0.5])


def test_a_named_update_with_nan_is_refused_before_descent(model: Model, neighbor: Neighbor) -> None:
    with pytest.raises(UsageError, match="the update's 'g': 1 of 1 numbers are NaN"):
        delta_of(model, add_w, {"g": np.array([np.nan])}, neighbor)


# --------------------------------------------------------------------------------------------- never without a word


class Net:
    """Layers in a list, beside what is no array."""

    def __init__(self) -> None:
        self.w, self.b, self.rate, self.inner = np.zeros(2), 0.0, 0.5, {"calls": 0, "names": np.array(["a", "b"])}
        self.layers = [self.w]


def add_key(net: Net, update: Any) -> None:
    net.momentum = np.full(2, update)  # type: ignore[attr-defined]


def change_number(net: Net, update: Any) -> None:
    net.b += 1.0


def change_within(net: Net, update: Any) -> None:
    net.inner["calls"] += 1


def change_names(net: Net, update: Any) -> None:
    net.inner["names"][0] = "c"


def take_away(net: Net, update: Any) -> None:
    del net.inner["calls"]


def rebind_in_list(net: Net, update: Any) -> None:
    net.layers[0] = net.layers[0] + update


def rebind_and_leave_the_list(net: Net, update: Any) -> None:
    net.w = net.w + update


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (add_key, r"descent added 'momentum' of the model \(ndarray\), .* such as np.zeros_like\(w\)"),
        (
            change_number,
            r"descent changed 'b' of the model \(float\), which would be lost: .*'w'.* such as np.array\(0.0\)",
        ),
        (change_within, r"descent changed 'inner.calls' of the model \(int\)"),
        (change_names, r"descent changed 'inner.names' of the model \(ndarray\)"),
        (take_away, r"descent removed 'inner.calls' of the model,"),
        (rebind_in_list, r"descent changed 'layers.0' of the model \(ndarray\)"),
        (rebind_and_leave_the_list, r"descent changed 'layers.0' of the model \(ndarray\)"),
    ],
)
def test_what_a_descent_changes_and_is_not_trained_is_named(wrong: Any, message: str) -> None:
    model = Model.from_skeleton(Model(Net()).skeleton())
    neighbor = Neighbor(model.arrays())

    def right(net: Net, update: Any) -> None:
        net.layers[0] += update

    np.testing.assert_array_equal(delta_of(model, right, 1.0, neighbor)["w"], [1, 1])
    with pytest.raises(UsageError, match=message):
        delta_of(model, wrong, 1.0, neighbor)


def test_another_attempt_of_a_worker_begins_with_a_model_that_is_as_it_was() -> None:
    model = Model(Net())
    job = job_of(model, lambda net, rows: 1.0, add_key)
    for attempt in range(2):
        with pytest.raises(PartitionError) as caught:
            run_partition(job, Neighbor(model.arrays()), 0, 0, [1], attempt)
        assert "descent added 'momentum'" in str(told(caught.value.pickled))


@pytest.mark.parametrize(("wrong", "message"), [(add_key, "added 'momentum'"), (change_number, "changed 'b'")])
def test_what_the_model_itself_has_is_looked_at_every_time(wrong: Any, message: str) -> None:
    model = Model(Net())
    neighbor = Neighbor(model.arrays())
    for _ in range(4):
        delta_of(model, lambda net, update: None, 1.0, neighbor)
    with pytest.raises(UsageError, match=message):
        delta_of(model, wrong, 1.0, neighbor)


def test_a_descent_that_returns_a_new_model_is_told_to_change_the_old_one(model: Model, neighbor: Neighbor) -> None:
    def descent(model: dict[str, Any], update: Any) -> Any:
        return {**model, "w": model["w"] + update}

    with pytest.raises(
        UsageError, match="descent returned a dict and left the model as it was: what it returns is not"
    ):
        delta_of(model, descent, 1.0, neighbor)


def test_what_a_descent_returns_does_not_matter_if_it_changed_the_model(model: Model, neighbor: Neighbor) -> None:
    def descent(model: dict[str, Any], update: Any) -> Any:
        model["w"] += update
        return model["w"]

    np.testing.assert_array_equal(delta_of(model, descent, 1.0, neighbor)["w"], [1, 1])


@pytest.mark.parametrize(
    ("update", "told"), [(0.0, False), ({"w": np.zeros(2)}, False), ({"w": [0, np.ones(1)]}, True), (object(), True)]
)
def test_an_update_without_effect_is_told(model: Model, neighbor: Neighbor, update: Any, told: bool) -> None:
    job = job_of(model, lambda model, rows: update, lambda model, update: None)
    cautions = run_partition(job, neighbor, 0, 0, [1]).cautions
    assert [text[:55] for text in cautions.values()] == [
        "an update that was not zero changed none of the model's"
    ] * told


@pytest.mark.parametrize("nothing", [None, {}])
@pytest.mark.parametrize("when", ["chunk", "continuous"])
def test_a_gradient_that_trains_its_model_and_returns_nothing_is_refused(
    model: Model, neighbor: Neighbor, nothing: Any, when: Any
) -> None:
    def gradient(model: dict[str, Any], rows: Iterator[int]) -> Any:
        model["w"] += len(list(rows))
        return nothing

    job = job_of(model, gradient, rhythm=Rhythm(when))
    with pytest.raises(PartitionError) as caught:
        run_partition(job, neighbor, 0, 0, [1])
    error = told(caught.value.pickled)
    assert type(error) is UsageError
    assert str(error).startswith(
        f"gradient changed 'w' of its copy of the model and returned {nothing}, so nothing of it"
    )


def test_a_gradient_that_returned_updates_may_spoil_its_copy_and_return_nothing(
    model: Model, neighbor: Neighbor
) -> None:
    def gradient(model: dict[str, Any], rows: Iterator[int]) -> Any:
        model["w"][...] = -1
        return {"w": np.ones(2)} if sum(rows) == 1 else None

    result = run_partition(job_of(model, gradient, chunk_rows=1), neighbor, 0, 0, [1, 2, 3, 4])
    assert result == TaskResult(rows=4, updates=1, units=1)


def test_a_number_that_a_gradient_changes_in_place_is_told() -> None:
    model = Model({"w": np.zeros(2), "b": 0.0})

    def gradient(model: dict[str, Any], rows: Iterator[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        model["w"] += 1
        model["b"] += 1
        return copy.trained({})

    (text,) = run_partition(job_of(model, gradient), Neighbor(model.arrays()), 0, 0, [1]).cautions.values()
    assert text.startswith("a gradient that trains in place changed 'b' of the model, which stays with its worker")


# -------------------------------------------------------------------------------------------------- errors of user code


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("mine"), GeneratorExit()])
def test_what_would_end_the_worker_is_an_error_of_the_user_s_code(
    model: Model, neighbor: Neighbor, error: BaseException
) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        raise error

    with pytest.raises(PartitionError) as caught:
        run_partition(job_of(model, gradient), neighbor, 0, 0, [1])
    assert caught.value.__cause__ is error
    assert current() is None


def test_an_error_in_descent_is_wrapped_as_well(model: Model, neighbor: Neighbor) -> None:
    def descent(model: dict[str, Any], update: Any) -> None:
        model["w"] += 1000
        raise LookupError("descent")

    with pytest.raises(PartitionError) as caught:
        run_partition(job_of(model, lambda model, rows: 1, descent), neighbor, 0, 0, [1])
    assert type(told(caught.value.pickled)) is LookupError
    assert neighbor.published == []
    np.testing.assert_array_equal(neighbor.replica.arrays()["w"], [100, 200])


@pytest.mark.parametrize("error", [ValueError("row 2"), KeyboardInterrupt()])
@pytest.mark.parametrize("reads", [list, lambda rows: None])
def test_rows_that_cannot_be_read_are_not_the_user_s_error(
    model: Model, neighbor: Neighbor, error: BaseException, reads: Any
) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise error

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        reads(rows)

    with pytest.raises(type(error)) as caught:
        run_partition(job_of(model, gradient), neighbor, 0, 0, rows())
    assert caught.value is error
    assert current() is None


def test_an_error_of_the_user_about_rows_is_the_user_s(model: Model, neighbor: Neighbor) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise ValueError("row 2")

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        try:
            list(rows)
        except ValueError as error:
            raise LookupError("my words") from error

    with pytest.raises(PartitionError) as caught:
        run_partition(job_of(model, gradient), neighbor, 0, 0, rows())
    error = told(caught.value.pickled)
    assert type(error) is LookupError
    assert "row 2" in error.__notes__[0]


def test_chunks_of_an_earlier_attempt_are_not_computed_again(model: Model, neighbor: Neighbor) -> None:
    seen = []

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        seen.append(list(rows))
        if seen[-1] == [3] and len(seen) == 3:
            raise RuntimeError("the third chunk fails once")
        return {"w": np.ones(2)}

    job = job_of(model, gradient, chunk_rows=1, epochs_before=4)
    with pytest.raises(PartitionError):
        run_partition(job, neighbor, 0, 2, [1, 2, 3, 4])
    result = run_partition(job, neighbor, 0, 2, [1, 2, 3, 4], attempt=1)
    assert seen == [[1], [2], [3], [3], [4]]
    assert result == TaskResult(rows=4, updates=2, units=4)
    assert neighbor.units == {(4, 2, 0): 0, (4, 2, 1): 0, (4, 2, 2): 1, (4, 2, 3): 1}


# ------------------------------------------------------------------------------------ rows that come in another order


def train_in_order(job: Job, neighbor: Neighbor, rows: list[Any], attempt: int) -> TaskResult:
    """As a task does behind a shuffle."""
    again, fingerprint = in_order(iter(rows), 1 << 20)
    return run_partition(job, neighbor, 0, 2, again, attempt, fingerprint)


@pytest.mark.parametrize("dies_at", range(5))
def test_an_attempt_with_its_rows_in_another_order_trains_those_that_are_left(
    model: Model, neighbor: Neighbor, dies_at: int
) -> None:
    seen: list[int] = []

    def gradient(model: Any, rows: Iterator[int]) -> Any:
        rows = list(rows)
        if current().chunk == dies_at and not died:
            died.append(dies_at)
            raise RuntimeError("a bad day")
        seen.extend(rows)
        return {"w": np.ones(2)}

    died: list[int] = []
    job = job_of(model, gradient, chunk_rows=4, epochs_before=3)
    with pytest.raises(PartitionError):
        train_in_order(job, neighbor, list(range(18)), 1)
    result = train_in_order(job, neighbor, list(reversed(range(18))), 2)
    assert sorted(seen) == list(range(18))
    assert result == TaskResult(rows=18, updates=5 - dies_at, units=5)
    _, fingerprint = in_order(range(18), 1 << 20)
    assert set(neighbor.units) == {(3, 2, numbered(fingerprint, chunk)) for chunk in range(5)}


def test_an_attempt_with_other_rows_than_those_that_count_is_an_error(model: Model, neighbor: Neighbor) -> None:
    def gradient(model: Any, rows: Iterator[int]) -> Any:
        if current().chunk == 1:
            raise RuntimeError("a bad day")
        return {"w": np.full(2, float(sum(rows)))}

    job = job_of(model, gradient, chunk_rows=2)
    for attempt in (1, 2):
        with pytest.raises(PartitionError) as caught:
            train_in_order(job, neighbor, [1, 2, 3], attempt)
        assert type(told(caught.value.pickled)) is RuntimeError
    with pytest.raises(PartitionError) as caught:
        train_in_order(job, neighbor, [1, 2, 4], 3)
    error = told(caught.value.pickled)
    assert type(error) is UsageError
    assert "partition 2 of epoch 0: Spark computed the rows again for another attempt and got different ones" in str(
        error
    )
    assert "rdd.checkpoint()" in str(error)
    assert len(neighbor.published) == 1


def test_other_rows_than_those_of_an_attempt_that_published_nothing_are_trained(
    model: Model, neighbor: Neighbor
) -> None:
    job = job_of(model, lambda model, rows: {"w": np.full(2, float(sum(rows)))}, chunk_rows=2)
    with pytest.raises(PartitionError):
        train_in_order(replace(job, gradient=lambda model, rows: 1 / 0), neighbor, [1, 2, 3], 1)
    assert train_in_order(job, neighbor, [1, 2, 4], 2) == TaskResult(rows=3, updates=2, units=2)
    np.testing.assert_array_equal(neighbor.replica.arrays()["w"], [107, 207])


# ------------------------------------------------------------------------------------ updates within the model itself


def test_an_update_that_lies_in_the_copy_of_the_model_arrives_as_it_was_returned() -> None:
    """The copy is loaded anew before `descent` is called."""

    def gradient(model, rows):
        model["w"][:] = 5.0  # as scratch
        return {"w": model["w"], "parts": [model["w"][:1], (model["v"],)], "named": Named(model["w"])}

    def descent(model, update):
        assert update["named"].w.tolist() == [5, 5]
        model["w"] += update["w"]
        model["v"] += update["parts"][0][0]

    model = Model({"w": np.zeros(2), "v": np.zeros(3)})
    neighbor = Neighbor(model.arrays())
    run_partition(job_of(model, gradient, descent=descent), neighbor, 0, 0, [1])
    assert neighbor.replica.arrays()["w"].tolist() == [5, 5]
    assert neighbor.replica.arrays()["v"].tolist() == [5, 5, 5]


def test_a_gradient_that_returns_its_copy_of_the_model_is_told(model: Model, neighbor: Neighbor) -> None:
    job = job_of(model, lambda model, rows: model, descent=lambda model, update: None)
    with pytest.raises(PartitionError) as caught:
        run_partition(job, neighbor, 0, 0, [1])
    assert "gradient returned its copy of the model" in str(told(caught.value.pickled))


def test_names_that_a_gradient_has_bound_to_one_array_are_two_again() -> None:
    def gradient(model, rows):
        assert not np.shares_memory(model["w"], model["v"])
        model["v"] = model["w"]
        return {"w": np.ones(2)}

    model = Model({"w": np.zeros(2), "v": np.ones(2)})
    neighbor = Neighbor(model.arrays())
    run_partition(job_of(model, gradient, chunk_rows=1), neighbor, 0, 0, [1, 2, 3])
    assert neighbor.replica.arrays()["w"].tolist() == [3, 3]
    assert neighbor.replica.arrays()["v"].tolist() == [1, 1]


@pytest.mark.parametrize(("dtype", "value"), [(np.int8, 300), (np.int32, 2**40), (np.int64, 2**63)])
def test_numbers_that_do_not_fit_into_the_model_s_are_told(dtype: Any, value: int) -> None:
    model = Model({"w": np.zeros(2, dtype)})
    update = {"w": np.full(2, value, np.uint64 if value >= 2**63 else np.int64)}
    with pytest.raises(PartitionError) as caught:
        run_partition(job_of(model, lambda model, rows: update), Neighbor(model.arrays()), 0, 0, [1])
    assert "the update's 'w'" in str(told(caught.value.pickled))


@pytest.mark.parametrize("when", ["chunk", "continuous"])
def test_of_blocks_of_rows_their_rows_are_counted_if_the_gradient_tells_how_many(
    model: Model, neighbor: Neighbor, when: Any
) -> None:
    def gradient(model: Any, blocks: Iterator[list[int]]) -> Any:
        sum(map(len, blocks))

    blocks = [[1, 2, 3], [], [4, 5]]
    assert run_partition(job_of(model, gradient, rhythm=Rhythm(when)), neighbor, 0, 0, blocks).rows == 3
    gradient.rows_in = len  # type: ignore[attr-defined]
    assert run_partition(job_of(model, gradient, rhythm=Rhythm(when)), neighbor, 1, 0, blocks).rows == 5
