"""How many rows an exchange looks at, with a clock that a test sets."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from p2p.worker import pace as module
from p2p.worker.pace import Pace, rows_for
from p2p.worker.row_schedule import ADAPT_EVERY, FALL_MAX, RISE_MAX, ROUND_SHARE, RowSchedule


def test_the_share_of_time_grows_with_the_peers_between_its_limits() -> None:
    def share(peers: int) -> float:
        return rows_for(module.SHARE_S, peers, 1e-9) * 1e-9 / module.SHARE_S

    assert share(1) == share(2) == pytest.approx(module.SHARE_MIN)
    assert share(3) == pytest.approx(2 * module.SHARE_PER_OTHER)
    assert share(11) == pytest.approx(10 * module.SHARE_PER_OTHER)
    assert share(1000) == pytest.approx(module.SHARE_MAX)


def test_four_times_the_training_is_twice_the_rows_and_a_row_of_half_the_time_too() -> None:
    rows = rows_for(1.0, 8, 1e-6)
    assert rows == int(7 * module.SHARE_PER_OTHER * math.sqrt(module.SHARE_S) / 1e-6)
    assert rows_for(4.0, 8, 1e-6) == pytest.approx(2 * rows, abs=2)
    assert rows_for(1.0, 8, 0.5e-6) == pytest.approx(2 * rows, abs=2)
    assert rows_for(1.0, 8) == pytest.approx(rows / 0.4, abs=3)
    assert rows_for(0.0, 8) == module.ROWS_MIN


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def make(*rows: int, clock: Callable[[], float] | None = None) -> tuple[Pace, list[RowSchedule]]:
    schedules = {str(n): RowSchedule(count, 7) for n, count in enumerate(rows)}
    return Pace(schedules, 3, clock), list(schedules.values())


def test_without_a_clock_the_schedules_stay_as_they_begin() -> None:
    pace, (schedule,) = make(10_000)
    pace.begin()
    assert pace.now() == 0.0
    for _ in range(3):
        pace.exchanged(100.0, 1.0, 10)
    assert schedule.budget == 7


def test_the_second_exchange_is_the_first_to_tell_what_a_row_takes() -> None:
    clock = Clock()
    pace, (small, large) = make(10_000, 30_000, clock=clock)
    assert pace.now() == 5.0
    pace.begin()
    pace.exchanged(7.0, 50.0, 1)
    assert (small.budget, large.budget) == (7, 7), "it loads the compiled loops"
    pace.exchanged(7.0, 2e-3, 1000)
    expected = rows_for(2.0, 3, 2e-6)
    assert 512 < expected < 40_000
    assert (small.budget, large.budget) == (expected // 4 + 1, expected * 3 // 4 + 1)


def test_what_a_row_takes_is_an_average_that_one_slow_exchange_does_not_spoil() -> None:
    clock = Clock()
    pace, (schedule,) = make(10_000_000, clock=clock)
    pace.begin()
    pace.exchanged(6.0, 1.0, 1)
    for looking_s, row_s in (
        (1e-4, 1e-6),
        (2e-4, 0.9 * 1e-6 + 0.1 * 2e-6),
        (1.0, 1.1e-6 * (0.9 + 0.1 * 2)),
        (0.0, 1.1e-6 * 1.1 * 0.9),
    ):
        pace.exchanged(6.0, looking_s, 100)
        assert schedule.budget == pytest.approx(rows_for(1.0, 3, row_s) + 1, abs=1)


def test_no_more_rows_are_looked_at_than_there_are_and_no_row_costs_nothing() -> None:
    clock = Clock()
    pace, (schedule,) = make(100, clock=clock)
    pace.begin()
    for _ in range(2):
        pace.exchanged(6.0, 1e-6, 0)
    assert schedule.budget == 101
    pace, schedules = make(clock=clock)
    pace.begin()
    for _ in range(2):
        pace.exchanged(6.0, 1e-6, 1)
    assert schedules == []


# ----------------------------------------------------------------------------------------------------------- schedules


def test_a_budget_is_of_rows_that_there_are() -> None:
    assert [RowSchedule(10, budget).budget for budget in (0, 1, 10, 11)] == [1, 1, 10, 10]


def test_before_a_threshold_is_known_the_rows_are_gone_round() -> None:
    schedule = RowSchedule(10, 4)
    assert [schedule.next().tolist() for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    assert schedule.threshold == 0.0


def test_the_mean_of_the_first_changes_is_the_first_threshold() -> None:
    schedule = RowSchedule(10, 4)
    rows = schedule.next()
    schedule.looked_at(rows[:0], np.zeros(0, np.float32))
    assert schedule.threshold == 0.0
    schedule.looked_at(rows, np.array([1, 2, 3, 6], np.float32))
    assert schedule.threshold == 3.0
    schedule.looked_at(schedule.next(), np.full(4, 100, np.float32))
    assert schedule.threshold == 3.0


def test_a_rate_is_the_change_over_the_exchanges_since_and_the_mean_of_two() -> None:
    schedule = RowSchedule(10, 4)
    rows = schedule.next()
    schedule.looked_at(rows, np.array([1, 2, 3, 6], np.float32))
    assert schedule._rate.tolist() == [1, 2, 3, 6, *[0] * 6]
    schedule._time = 3
    schedule._expected[:] = 9
    schedule.looked_at(np.array([0, 5]), np.array([6, 6], np.float32))
    assert schedule._rate[[0, 5]].tolist() == [(1 + 6 / 2) / 2, 6 / 3]
    assert schedule._expected.tolist() == [0, 9, 9, 9, 9, 0, 9, 9, 9, 9]
    assert schedule._last.tolist() == [3, 1, 1, 1, 0, 3, 0, 0, 0, 0]


def test_due_rows_come_in_order_among_those_of_the_round() -> None:
    schedule = RowSchedule(20, 8)
    schedule.threshold = 1.0
    schedule._first_round = False
    schedule._time = 4
    schedule._round_at = 5
    schedule._expected[[2, 6, 12, 19]] = 1.0
    assert schedule.next().tolist() == [2, 5, 6, 7, 8, 12, 19]
    assert schedule._round_at == 9


def test_of_too_many_due_rows_those_wait_that_changed_least() -> None:
    schedule = RowSchedule(20, 8)
    schedule.threshold = 1.0
    schedule._first_round = False
    schedule._time = 4
    schedule._expected[:] = np.arange(20) / 10
    most = int((1 - ROUND_SHARE) * 8)
    assert schedule._due(most).tolist() == list(range(20 - most, 20))
    assert schedule._due(10).tolist() == list(range(10, 20)), "of just as many none waits"
    assert schedule._due(30).tolist() == list(range(10, 20))


def test_the_threshold_follows_how_many_are_due_on_average_within_its_limits() -> None:
    def after(rate: float, most: int, *, first: bool = False, beside: int = 0) -> float:
        schedule = RowSchedule(100, 50)
        schedule.threshold, schedule.beside, schedule._first_round = 2.0, beside, first
        schedule._rate[:] = rate
        schedule._adapt(most)
        return schedule.threshold

    assert after(1.0, 25) == pytest.approx(2.0 * 50 / 25)
    assert after(8.0, 50) == pytest.approx(2.0 * 100 / 50), "no row is due more than once"
    assert after(8.0, 1) == pytest.approx(2.0 * RISE_MAX)
    assert after(1.0, 50) == pytest.approx(2.0)
    assert after(1.0, 100) == pytest.approx(2.0 * 50 / 100)
    assert after(1.0, 1000) == pytest.approx(2.0 / FALL_MAX)
    assert after(1.0, 100, first=True) == 2.0, "rates that are not known yet may make it more"
    assert after(0.0, 100) == 2.0
    assert after(1.0, 100, beside=70) == pytest.approx(2.0 * 120 / 100)
    assert after(0.0, 10, first=True, beside=20) == pytest.approx(4.0)


def test_the_threshold_is_looked_at_in_the_first_round_and_every_few_exchanges() -> None:
    def adapted(first: bool) -> list[int]:
        schedule = RowSchedule(1000, 10)
        schedule._first_round = first
        times = []
        schedule._adapt = lambda most: times.append(schedule._time)  # type: ignore[method-assign]
        for _ in range(9):
            schedule.threshold = 1.0
            schedule.next()
        return times

    assert adapted(False) == [ADAPT_EVERY, 2 * ADAPT_EVERY]
    assert adapted(True) == list(range(1, 10))


def test_the_first_round_ends_with_the_last_row() -> None:
    schedule = RowSchedule(8, 4)
    states = []
    for _ in range(3):
        schedule.next()
        states.append((schedule._first_round, schedule._round_at))
    assert states == [(True, 4), (False, 0), (False, 4)]
