"""When a task exchanges: after each chunk, once in a partition, or within a gradient; and what a retry then does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.adapters.model import Model
from p2p.row_order import in_order, numbered
from p2p.testing import Neighbor
from p2p.worker.attempt import Attempt
from p2p.worker.continuous import Continuous
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job, Rhythm, TaskResult
from p2p.worker.task import in_place, pause, run_partition
from p2p.worker.working_copy import ExchangeSettings, WorkingCopy, exchange_settings

ROWS, WIDTH = 3000, 100
"""Above the size up to which models are exchanged whole."""


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def model() -> Model:
    return Model({"w": np.zeros(10)})


def counting(model: dict[str, Array], rows: Iterable[int]) -> Any:
    """Count each row in place, and pause after it; -1 is a row at which the attempt dies."""
    copy = in_place(model)
    assert copy is not None
    for row in rows:
        if row == -1:
            raise ConnectionError("the worker is gone")
        model["w"][row] += 1
        pause()
    return copy.trained({})


def job_of(model: Model, gradient: Any, **options: Any) -> Job:
    return Job(run="run", skeleton=model.skeleton(), gradient=gradient, peers=1, seed=0, **options)


def job(gradient: Callable[[Any, Iterator[Any]], Any], rhythm: Rhythm) -> Job:
    settings = exchange_settings(model(), None, 1)
    return job_of(model(), gradient, partitions=1, exchange=settings, rhythm=rhythm)


def train(
    neighbor: Neighbor,
    rows: Iterable[Any],
    every_s: float,
    attempt: int = 0,
    gradient: Any = counting,
    fingerprint: int | None = None,
) -> TaskResult:
    """By a worker process of its own."""
    work = job(gradient, Rhythm("continuous", every_s))
    copy = WorkingCopy(Model.from_skeleton(work.skeleton), work.exchange)
    this = Attempt(job=work, agent=neighbor, epoch=0, partition=0, number=attempt, fingerprint=fingerprint)
    return Continuous(this, copy, Clock()).train(rows)


# ------------------------------------------------------------------------------------------------------ between tasks


@pytest.mark.parametrize("rhythm", [Rhythm("chunk"), Rhythm("continuous", 100.0)], ids=["chunk", "continuous"])
def test_what_changed_little_waits_for_the_end_of_the_last_partition(rhythm: Rhythm) -> None:
    def gradient(model: dict[str, Array], rows: Iterable[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        for row in rows:
            model["w"][row] += np.float32(0.5 if row < 2000 else 0.05)
        return copy.trained({})

    model = Model({"w": np.ones((ROWS, WIDTH), np.float32)})
    settings = ExchangeSettings(rows=64, codec="int8")
    work = job_of(model, gradient, partitions=2, exchange=settings, rhythm=rhythm)
    neighbor = Neighbor(model.arrays())
    for partition, changed in enumerate(([1000], [1000, 1001, 2001, 2002])):
        run_partition(work, neighbor, 0, partition, [1000 + partition, 2001 + partition])
        w = neighbor.replica.arrays()["w"]
        assert np.flatnonzero((w != 1).any(axis=1)).tolist() == changed
    np.testing.assert_allclose(w[[1000, 1001, 2001, 2002]].mean(axis=1), [1.5, 1.5, 1.05, 1.05], rtol=4e-3)  # 8 bits


# ---------------------------------------------------------------------------------------------------------- continuous


@pytest.mark.parametrize(("every_s", "units"), [(0.5, [1, 2, 3, 4, 5, 6]), (2.5, [3, 6]), (3.5, [4, 6]), (100.0, [6])])
def test_a_task_exchanges_every_so_often_and_at_the_end(every_s: float, units: list[int]) -> None:
    neighbor = Neighbor(model().arrays())
    result = train(neighbor, [0, 1, 2, 0, 1, 0], every_s)
    assert [chunk for _, _, chunk in neighbor.units] == units
    assert result == TaskResult(rows=6, updates=len(units), units=len(units))
    assert neighbor.replica.arrays()["w"].tolist() == [3, 2, 1] + [0] * 7


def test_what_others_learned_comes_in_while_the_gradient_runs() -> None:
    neighbor = Neighbor(model().arrays())
    seen = []

    def gradient(model: dict[str, Array], rows: Iterable[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        for row in rows:
            neighbor.replica.arrays()["w"][9] += 1
            model["w"][row] += 1
            pause()
            seen.append(model["w"][9])
        return copy.trained({})

    train(neighbor, [0, 1, 2], 0.5, gradient=gradient)
    assert seen == [1, 2, 3]
    assert neighbor.replica.arrays()["w"].tolist() == [1, 1, 1] + [0] * 6 + [3]


@pytest.mark.parametrize("every_s", [0.5, 2.5, 3.5, 100.0])
def test_an_attempt_that_comes_later_goes_on_where_the_first_has_published(every_s: float) -> None:
    neighbor = Neighbor(model().arrays())
    rows = [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(PartitionError):
        train(neighbor, [*rows[:5], -1, *rows[6:]], every_s)
    published = neighbor.replica.arrays()["w"].sum()
    assert published == {0.5: 5, 2.5: 3, 3.5: 4, 100.0: 0}[every_s]
    again = train(neighbor, rows, every_s, attempt=1)
    assert neighbor.replica.arrays()["w"].tolist() == [1] * 7 + [0] * 3, "every row counts once"
    assert again.rows == 7
    assert train(neighbor, rows, every_s, attempt=2).updates == 0


@pytest.mark.parametrize("every_s", [0.5, 2.5, 100.0])
def test_rows_that_come_in_another_order_count_once_and_other_rows_are_an_error(every_s: float) -> None:
    def dying(model: dict[str, Array], rows: Iterable[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        for number, row in enumerate(rows):
            if number == 5:
                raise ConnectionError("the worker is gone")
            model["w"][row] += 1
            pause()

    neighbor = Neighbor(model().arrays())
    first, fingerprint = in_order(range(8), 1 << 20)
    with pytest.raises(PartitionError):
        train(neighbor, first, every_s, attempt=1, gradient=dying, fingerprint=fingerprint)
    published = len(neighbor.units)
    assert (published > 0) == (every_s < 100)
    others, of_others = in_order(range(1, 9), 1 << 20)
    if published:
        with pytest.raises(PartitionError, match="got different ones, expected the same rows in any order"):
            train(neighbor, others, every_s, attempt=2, fingerprint=of_others)
    assert len(neighbor.units) == published
    again, the_same = in_order(reversed(range(8)), 1 << 20)
    result = train(neighbor, again, every_s, attempt=3, fingerprint=the_same)
    assert neighbor.replica.arrays()["w"].tolist() == [1] * 8 + [0] * 2, "every row counts once"
    assert result.rows == 8
    assert list(neighbor.units)[-1] == (0, 0, numbered(fingerprint, 8))


def test_rows_that_are_read_and_not_trained_are_left_to_the_next_attempt() -> None:
    def two_at_a_time(model: dict[str, Array], rows: Iterable[int]) -> Any:
        copy = in_place(model)
        assert copy is not None
        read: list[int] = []
        for row in rows:
            if row == -1:
                raise ConnectionError("the worker is gone")
            read.append(row)
            if len(read) == 3:
                for ready in read[:2]:
                    model["w"][ready] += 1
                read = read[2:]
                pause(untrained=1)
        for ready in read:
            model["w"][ready] += 1
        return copy.trained({})

    neighbor = Neighbor(model().arrays())
    with pytest.raises(PartitionError):
        train(neighbor, [0, 1, 2, 3, 4, -1], 0.5, gradient=two_at_a_time)
    assert list(neighbor.units) == [(0, 0, 2), (0, 0, 4)]
    train(neighbor, range(7), 0.5, attempt=1, gradient=two_at_a_time)
    assert neighbor.replica.arrays()["w"].tolist() == [1] * 7 + [0] * 3


def test_a_gradient_that_does_not_train_in_place_is_refused() -> None:
    with pytest.raises(PartitionError, match=r"gradient returned a dict with exchange='continuous', expected what"):
        train(Neighbor(model().arrays()), [1], 1.0, gradient=lambda model, rows: {"w": np.ones(10)})


def test_a_partition_without_rows_publishes_nothing() -> None:
    assert train(Neighbor(model().arrays()), [], 1.0) == TaskResult(rows=0, updates=0, units=0)


def test_there_is_no_pause_but_in_a_continuous_exchange() -> None:
    assert not pause()
    neighbor = Neighbor(model().arrays())
    assert run_partition(job(counting, Rhythm()), neighbor, 0, 0, [0, 1]).updates == 1


# ----------------------------------------------------------------------------------------------------------- partition


def adding(model: dict[str, Array], rows: Iterator[int]) -> Any:
    copy = in_place(model)
    assert copy is not None
    for row in rows:
        model["w"][row] += np.float32(0.1)
    return copy.trained({})


def test_with_one_exchange_in_a_partition_there_is_one_update_with_everything() -> None:
    chance = np.random.default_rng(0)
    data = [chance.integers(0, ROWS, 500).tolist() for _ in range(6)]
    cluster = SimulatedCluster(peers=3, seed=1, fail=0.3, speculate=0.3)
    with DeepDist({"w": np.ones((ROWS, WIDTH), np.float32)}, engine=cluster, progress=False) as dd:
        report = dd.train(data, adding, epochs=2, exchange="partition")
        found = dd.model["w"][:, 0]
    assert report.updates >= 12, "one each, and those of copies that are taken back"
    assert report.consensus_distance < 1e-5
    times = 2 * np.bincount(np.concatenate(data), minlength=ROWS)
    np.testing.assert_allclose(found, 1 + 0.1 * times, atol=0.002 * (1 + times.max()))


def test_without_copies_there_is_just_one_update_a_partition() -> None:
    data = [list(range(ROWS))] * 4
    with DeepDist({"w": np.ones((ROWS, WIDTH), np.float32)}, engine=SimulatedCluster(peers=2), progress=False) as dd:
        assert dd.train(data, adding, exchange="partition").updates == 4
        assert dd.train(data, adding).updates >= 4


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exchange": "always"}, r"exchange='always', expected 'chunk', 'partition' or 'continuous'"),
        ({"exchange": "partition", "chunk_rows": 3}, r"chunk_rows=3 with exchange='partition', expected None"),
        ({"exchange_s": 3}, r"exchange_s=3 with exchange='chunk', expected exchange='continuous'"),
        ({"exchange": "continuous", "exchange_s": 0}, r"exchange_s=0, expected more than 0 seconds"),
        ({"exchange": "continuous", "descent": print}, r"a descent with exchange='continuous', expected None"),
        ({"exchange": "continuous"}, r"exchange='continuous' on a simulated cluster"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with DeepDist({"w": np.zeros(3)}, engine=SimulatedCluster(peers=1)) as dd, pytest.raises(UsageError, match=message):
        dd.train([[1]], counting, **options)


def test_a_master_s_workers_do_not_exchange_continuously() -> None:
    with DeepDist({"w": np.zeros(3)}, "master") as dd, pytest.raises(UsageError, match=r"with mode='master', expected"):
        dd.train([[1]], counting, exchange="continuous")
