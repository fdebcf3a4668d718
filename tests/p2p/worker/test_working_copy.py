"""The ledger of a working copy: what was published, what others published and what is left make up what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.updates import check, merge
from gossip.updates.rows import rows_of
from gossip.updates.stamps import RowStamps
from p2p.adapters import Adapter, ByPath
from p2p.adapters.model import Model
from p2p.worker.combine import combined
from p2p.worker.pace import ROWS_MIN, rows_for
from p2p.worker.row_schedule import RowSchedule
from p2p.worker.working_copy import ExchangeSettings, WorkingCopy

ROWS, WIDTH = 4000, 100
"""More than a small model, which is exchanged whole."""


class FakeReplica:
    """A replica in memory, to which the test adds what is published."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.packed = Packed.of(arrays)
        self.stamps = RowStamps(self.packed.layout)
        self.merged = 0
        self.copied: list[float] = []
        """What its counter was whenever all of it was copied."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        self.copied += [float(self.arrays()["n"][0])] if "n" in self.arrays() else []
        yield

    def arrays(self) -> dict[str, Any]:
        return self.packed.arrays()

    @property
    def replica(self) -> FakeReplica:
        """As an agent it stands beside itself."""
        return self

    def hand_over(self) -> Packed:
        return Packed(self.packed.layout, bytearray(self.packed.layout.nbytes))

    def pack(self, arrays: dict[str, Any]) -> Packed:
        return Packed.of(arrays)

    def add(self, update: dict[str, Any]) -> None:
        packed = Packed.of(update)
        check(packed, self.packed.layout)
        merge(self.packed.layout, self.packed.buffer, self.stamps, packed)
        self.merged += 1


def large() -> dict[str, Any]:
    chance = np.random.default_rng(0)
    return {"w": chance.standard_normal((ROWS, WIDTH)).astype(np.float32), "n": np.zeros(1)}


def begin(model: dict[str, Any], replica: FakeReplica, adapter: Adapter | None = None, **settings: Any) -> WorkingCopy:
    copy = WorkingCopy(Model(model, adapter=adapter), ExchangeSettings(**settings))
    copy.begin(replica)
    copy.keep_base()
    return copy


def exchange(copy: WorkingCopy, replica: FakeReplica, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Of a copy that exchanges all that changed, exactly."""
    found: dict[str, Any] = copy.exchanged(replica, extra or {}).arrays()  # type: ignore[arg-type]
    return found


def train(model: dict[str, Any], chance: np.random.Generator) -> Any:
    """Change some rows, frequent ones more often; returns the change."""
    change = np.zeros((ROWS, WIDTH), np.float32)
    rows = (ROWS ** chance.random(500)).astype(int) - 1
    np.add.at(change, rows, 0.01 * chance.standard_normal((500, WIDTH)).astype(np.float32))
    model["w"] += change
    return change


@pytest.mark.parametrize("codec", ["int8", "int16", "float"])
def test_what_is_not_sent_is_kept(codec: str) -> None:
    model, replica = large(), FakeReplica(large())
    copy = begin(model, replica, rows=300, codec=codec)
    trained = np.zeros((ROWS, WIDTH))
    chance = np.random.default_rng(1)
    for _ in range(30):
        trained += train(model, chance)
        update = copy.exchange(replica, {"n": np.array([5.0])})
        assert len(update["w[rows]"]) <= 300
        replica.add(update)
        copy.published(replica)
        # the replica and what is left in the copy are the initial model and all that was trained
        np.testing.assert_allclose(model["w"], large()["w"] + trained, atol=2e-5)
    assert replica.arrays()["n"] == [150.0]
    rest = np.abs(model["w"] - replica.arrays()["w"]).sum() / np.abs(trained).sum()
    assert 0 < rest < 0.5
    replica.add(copy.rest(replica))
    assert np.linalg.norm(model["w"] - replica.arrays()["w"], axis=1).max() < 0.02 * np.sqrt(WIDTH)
    assert copy.rest(replica) == {}


@pytest.mark.parametrize("codec", ["int8", "int16", "float"])
@pytest.mark.parametrize("still", ["v", "w"])
def test_where_one_array_has_nothing_left_the_rest_of_another_is_an_update_all_the_same(still: str, codec: str) -> None:
    def two() -> dict[str, Any]:
        return {name: np.ones((ROWS, WIDTH), np.float32) for name in ("v", "w")}

    model, replica = two(), FakeReplica(two())
    copy = begin(model, replica, rows=4, codec=codec)
    copy.exchange(replica, {})
    moving = "w" if still == "v" else "v"
    model[moving][:7] += 1
    replica.add(copy.rest(replica))
    np.testing.assert_allclose(replica.arrays()[moving][:7], 2.0, atol=0.02)
    assert (replica.arrays()[still] == 1.0).all()


def test_the_more_workers_go_on_the_less_each_keeps() -> None:
    trained, kept = np.linspace(0, 0.4, ROWS, dtype=np.float32), []
    for going_on in (2, 8, 1000, 0):
        model, replica = (
            {"w": np.ones((ROWS, WIDTH), np.float32)},
            FakeReplica({"w": np.ones((ROWS, WIDTH), np.float32)}),
        )
        copy = begin(model, replica, rows=4, codec="int8")
        copy.exchange(replica, {})
        model["w"] += trained[:, None]
        kept.append(float(np.delete(trained, copy.rest(replica, going_on)["w[rows]"]).max()))
    np.testing.assert_allclose(kept, [0.2, 0.05, 0.01, 0.01], atol=1e-3)


def test_two_copies_of_one_replica_see_each_other() -> None:
    replica = FakeReplica(large())
    models = [large(), large()]
    copies = [begin(model, replica, rows=300, codec="int8") for model in models]
    chance = np.random.default_rng(2)
    trained = np.zeros((ROWS, WIDTH))
    for _ in range(40):
        for model, copy in zip(models, copies, strict=True):
            trained += train(model, chance)
            replica.add(copy.exchange(replica, {}))
    for copy in copies:
        if rest := copy.rest(replica):
            replica.add(rest)
    np.testing.assert_allclose(replica.arrays()["w"], large()["w"] + trained, atol=0.02 * np.sqrt(WIDTH))
    for model, copy in zip(models, copies, strict=True):
        for _ in range(2 * ROWS // 75):
            replica.add(copy.exchange(replica, {}))
        apart = np.linalg.norm(model["w"] - replica.arrays()["w"], axis=1)
        assert apart.max() < 0.02 * np.sqrt(WIDTH)


def test_rows_that_others_changed_are_merged_at_the_next_exchange_whether_due_or_not() -> None:
    model, replica = large(), FakeReplica(large())
    copy = begin(model, replica, rows=4, codec="int8")
    chance = np.random.default_rng(3)
    theirs = rows_of("w", np.arange(0, ROWS, 5), chance.standard_normal((ROWS // 5, WIDTH)).astype(np.float32))
    replica.add(theirs)
    model["w"][7] += 1  # trained here, and due at some time
    update = copy.exchange(replica, {})
    np.testing.assert_array_equal(model["w"][::5], replica.arrays()["w"][::5])
    assert not np.isin(update["w[rows]"], theirs["w[rows]"]).any(), "what others did is not sent back"


def test_an_exchange_looks_at_what_came_since_the_last_one_and_not_before() -> None:
    """Or it would look at ever more rows, in the end at all of them."""
    model, replica = large(), FakeReplica(large())
    copy = begin(model, replica, rows=4, codec="int8")
    rows = np.arange(1000, 3000)
    replica.add(rows_of("w", rows, np.ones((len(rows), WIDTH), np.float32)))
    copy.exchange(replica, {})
    np.testing.assert_array_equal(model["w"][rows], replica.arrays()["w"][rows])
    replica.arrays()["w"][rows] += 1  # behind the back of the stamps: seen only where it is looked at
    copy.exchange(replica, {})
    assert np.count_nonzero(model["w"][rows] == replica.arrays()["w"][rows]) <= 4 * WIDTH


def test_an_own_update_is_no_news_unless_another_came_between() -> None:
    model, replica = large(), FakeReplica(large())
    copy = begin(model, replica, rows=4, codec="int8")
    replica.add(copy.exchange(replica, {}))
    copy.published(replica)
    replica.arrays()["w"][99] += 1  # behind the back of the stamps: seen only if row 99 is looked at
    alone = rows_of("w", np.array([99]), np.zeros((1, WIDTH), np.float32))
    copy.exchange(replica, {})
    assert not np.array_equal(model["w"][99], replica.arrays()["w"][99])
    replica.add(alone)  # another's
    replica.add({"n": np.zeros(1), **rows_of("w", np.array([3]), np.zeros((1, WIDTH), np.float32))})  # the own
    copy.published(replica)
    copy.exchange(replica, {})
    np.testing.assert_array_equal(model["w"][99], replica.arrays()["w"][99])


def test_a_small_model_is_exchanged_whole_and_exactly() -> None:
    initial = {"w": np.zeros((6, 4), np.float32), "b": np.zeros(4, np.float32), "n": np.zeros(2, np.int64)}
    model, replica = {name: array.copy() for name, array in initial.items()}, FakeReplica(initial)
    copy = begin(model, replica)
    for step in range(3):
        model["w"][1:4] += 0.1 + step
        model["b"] += 3
        model["n"] += 7
        update = exchange(copy, replica)
        replica.add(update)
        for name, array in replica.arrays().items():
            np.testing.assert_array_equal(model[name], array)
    assert replica.arrays()["n"].tolist() == [21, 21]


@pytest.mark.parametrize("rule", ["damp", "adasum", "mean"])
def test_the_rule_is_applied_to_what_others_added_meanwhile(rule: str) -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    model, replica = {name: array.copy() for name, array in initial.items()}, FakeReplica(initial)
    copy = begin(model, replica, combine=rule, peers=4)
    own, others = np.array([[1.0, 2], [3, 1], [0, 0]]), np.array([[2.0, 2], [0, 0], [5, 5]])
    model["w"] += own.astype(np.float32)
    replica.arrays()["w"][...] += others
    replica.add(exchange(copy, replica))
    expected = initial["w"] + others + combined(rule, own, others, 4) * (own.any(axis=1, keepdims=True))
    np.testing.assert_allclose(replica.arrays()["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(model["w"], expected, rtol=1e-6)


def test_counters_are_summed_whatever_the_rule() -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    model, replica = {name: array.copy() for name, array in initial.items()}, FakeReplica(initial)
    copy = begin(model, replica, ByPath(counters=frozenset({"n"})), combine="damp", peers=4)
    replica.arrays()["n"][...] = 100
    model["n"] += 10
    replica.add(exchange(copy, replica, {"n": np.array([1.0])}))
    assert replica.arrays()["n"] == [111.0]


@dataclass(frozen=True)
class Averaging(ByPath):
    """Of a model whose array "n" is averaged."""

    def rule(self, model: Any, key: Any) -> str | None:
        return "mean" if key == ("n",) else None


@pytest.mark.parametrize("rule", ["sum", "damp"])
def test_an_array_adds_up_by_a_rule_of_its_own(rule: str) -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    model, replica = {name: array.copy() for name, array in initial.items()}, FakeReplica(initial)
    copy = begin(model, replica, Averaging(), combine=rule, peers=4)
    assert copy.corrects
    model["n"] += 10
    model["w"] += 1
    replica.add(exchange(copy, replica))
    assert replica.arrays()["n"] == [2.5]
    assert (replica.arrays()["w"] == 2).all()
    delta = {"w": np.full((3, 2), 1.0), "n": np.array([4.0])}
    copy.correct(delta, replica.arrays())
    assert delta["n"] == [1.0]
    assert (delta["w"] == 1).all()


def test_an_array_with_a_rule_of_its_own_takes_no_outer_step() -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    copy = begin(initial, FakeReplica(initial), Averaging(), combine="outer", peers=4)
    assert copy.compares
    for _ in range(3):
        delta = {"w": np.ones((3, 2), np.float32), "n": np.array([4.0])}
        copy.correct(delta, initial)
        copy.counted(True)
        assert delta["n"] == [1.0]
    assert (delta["w"] > 0.25).all()
    assert not begin(initial, FakeReplica(initial), combine="outer", peers=4).compares


def test_where_replicas_are_averaged_no_array_is_averaged_once_more() -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    copy = begin(initial, FakeReplica(initial), Averaging(), peers=4, counts=4)
    assert not copy.corrects


def test_where_replicas_are_averaged_a_counter_counts_for_all() -> None:
    initial = {"w": np.ones((3, 2), np.float32), "n": np.zeros(1)}
    model, replica = {name: array.copy() for name, array in initial.items()}, FakeReplica(initial)
    copy = begin(model, replica, ByPath(counters=frozenset({"n"})), peers=4, counts=4)
    for words in (10, 20):
        model["n"] += words
        model["w"] += 1
        replica.add(exchange(copy, replica))
        replica.arrays()["n"][...] /= 4  # the mean with three others that have counted nothing
        replica.arrays()["w"][...] = 1 + (replica.arrays()["w"] - 1) / 4
    assert replica.arrays()["n"] == [(10 * 4 / 4 + 20 * 4) / 4]
    delta = {"w": np.ones((3, 2)), "n": np.array([5.0])}
    copy.count(delta)
    assert delta["n"] == [20.0]
    assert (delta["w"] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_published(bad: float) -> None:
    model, replica = large(), FakeReplica(large())
    copy = begin(model, replica)
    model["w"][7, 3] = bad
    with np.errstate(invalid="ignore"), pytest.raises(UsageError, match="1 rows of 'w' NaN or infinite"):
        exchange(copy, replica)


def test_the_first_task_of_another_training_begins_with_the_replica_anew() -> None:
    """What the user wrote into the model between trainings comes as an update, but no exchange looks at its rows."""
    model, replica = large(), FakeReplica(large())
    copy = WorkingCopy(Model(model), ExchangeSettings(codec="int8"))
    for training, written in [(0, 0.0), (0, 5.0), (7, 9.0), (7, 11.0)]:
        replica.arrays()["n"][:] = written
        copy.begin_training(training)
        copy.begin(replica)
        copy.keep_base()
        copy.exchange(replica, {})
        copy.published(replica)
    assert replica.copied == [0.0, 9.0]


def test_a_gradient_that_ended_early_leaves_nothing_behind() -> None:
    initial = {"w": np.zeros((3, 2), np.float32)}
    model, replica = {"w": initial["w"].copy()}, FakeReplica(initial)
    copy = begin(model, replica)
    model["w"] += 1  # and no exchange: the task failed
    copy.begin(replica)
    assert not model["w"].any()


# -------------------------------------------------------------------------------------------------- which rows when


def looks(schedule: RowSchedule, changes: Any, exchanges: int, then: Callable[[int], Any] = int) -> list[Any]:
    """Let rows change by `changes` in each exchange, and call `then` with its number; returns what was looked at."""
    unseen, seen = np.zeros(schedule.rows), []
    for number in range(exchanges):
        unseen += changes
        rows = schedule.next()
        schedule.looked_at(rows, unseen[rows])
        unseen[rows] = 0
        seen.append(rows)
        then(number)
    return seen


def test_rows_are_looked_at_in_order_within_the_budget_and_all_of_them_in_turn() -> None:
    schedule = RowSchedule(1000, 50)
    seen = looks(schedule, 1 / np.arange(1, 1001), 200)
    assert all(0 < len(rows) <= 50 and np.all(np.diff(rows) > 0) for rows in seen)
    round_takes = 1000 // int(0.25 * 50) + 1
    for first in range(20, 200 - round_takes, 10):
        assert len(np.unique(np.concatenate(seen[first : first + round_takes]))) == 1000


def test_rows_that_change_more_are_looked_at_more_often() -> None:
    changes = np.full(1000, 0.001)
    changes[500:520] = 1.0
    seen = np.bincount(np.concatenate(looks(RowSchedule(1000, 50), changes, 200)[100:]), minlength=1000)
    assert seen[500:520].min() > 10 * np.delete(seen, np.s_[500:520]).mean()


def test_a_row_that_begins_to_change_is_found() -> None:
    schedule = RowSchedule(1000, 50)
    changes = np.zeros(1000)
    changes[:10] = 1.0
    looks(schedule, changes, 100)
    changes[700] = 1.0
    assert sum(700 in rows for rows in looks(schedule, changes, 200)) > 50


@pytest.mark.parametrize("budget", [50, 200, 800])
def test_the_threshold_follows_a_new_budget_and_does_not_overshoot(budget: int) -> None:
    changes = 10 / np.arange(1, 2001)
    schedule = RowSchedule(2000, 200)
    thresholds = []

    def then(number: int) -> None:
        thresholds.append(schedule.threshold)
        schedule.budget = 200 if number < 200 else budget

    looks(schedule, changes, 400, then)
    for threshold in (thresholds[200], min(thresholds[220:]), max(thresholds[220:])):
        wanted = 0.75 * (200 if threshold == thresholds[200] else budget)
        assert np.minimum(1, changes / threshold).sum() == pytest.approx(wanted, rel=0.1)


def test_rows_that_are_sent_without_being_due_count_against_the_budget() -> None:
    changes = 10 / np.arange(1, 2001)
    schedule = RowSchedule(2000, 200)
    looks(schedule, changes, 200, lambda _: setattr(schedule, "beside", 75))
    assert np.minimum(1, changes / schedule.threshold).sum() == pytest.approx(75, rel=0.1)


def test_a_budget_for_all_rows_looks_at_all_rows() -> None:
    assert all(len(rows) == 30 for rows in looks(RowSchedule(30, 100), np.ones(30), 5))


def test_the_layout_of_a_test_is_large() -> None:
    assert Layout.of(large()).nbytes > 1 << 20


def test_rows_to_look_at_grow_like_the_root_of_a_chunk_and_with_the_peers() -> None:
    assert rows_for(0.05, 2, row_s=1e-7) == pytest.approx(5_000, abs=1)  # 1 % of 50 ms
    assert rows_for(5.0, 2, row_s=1e-7) == pytest.approx(50_000, abs=1)
    assert rows_for(0.05, 16, row_s=1e-7) == pytest.approx(52_500, abs=1)
    assert rows_for(0.05, 1000, row_s=1e-7) == pytest.approx(100_000, abs=1)  # a fifth at the most
    assert rows_for(1e-9, 2) == ROWS_MIN
