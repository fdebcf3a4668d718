"""What the table of processes that die takes for right."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.chaos_processes import CALLS, Case, Outcome, cases, note_rows, numbers

KILL = Case("lists", "agent", "kill", 0.5, 2)
RIGHT = Outcome(KILL, signaled=True, once=2 * CALLS, exact=True, reported=0)


def test_all_rows_once_is_right() -> None:
    assert RIGHT.wrong == []


def test_what_the_report_calls_lost_may_be_missing_where_something_died() -> None:
    lost = replace(RIGHT, once=2 * CALLS - 6, lost=6, reported=3)
    assert lost.wrong == []
    assert replace(lost, reported=2).wrong == ["6 rows are missing, the report explains 4"]
    assert replace(lost, reported=4).wrong == ["6 rows are missing, the report explains 8"]
    assert replace(lost, case=replace(KILL, signal="stop")).wrong == ["lost though nobody died"]


def test_an_incomplete_training_is_right_if_its_report_tells_what_is_missing() -> None:
    told = Outcome(
        replace(KILL, signal="stop"), signaled=True, lost=2, exact=True, reported=1, raised="it", incomplete=True
    )
    assert told.wrong == []
    assert replace(told, reported=0).wrong == ["2 rows are missing, the report explains 0"]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"twice": 1}, "rows count twice"),
        ({"exact": False}, "total is not exact"),
        ({"hangs": True}, "hangs"),
        ({"signaled": False}, "no signal"),
        ({"raised": "RuntimeError: gone", "reported": None}, "raised"),
    ],
)
def test_anything_else_is_wrong(change: dict[str, object], wrong: str) -> None:
    assert replace(RIGHT, **change).wrong == [wrong]


def test_rows_are_counted_one_by_one() -> None:
    seen = np.array([0.0, 1, 1, 2])
    total = np.full(8, (seen * numbers(np.arange(4))).sum())
    outcome = Outcome(KILL)
    note_rows(outcome, {"seen": seen, "total": total})
    assert (outcome.lost, outcome.once, outcome.twice, outcome.exact) == (1, 2, 1, True)
    total[7] += 1
    note_rows(outcome, {"seen": seen, "total": total})
    assert not outcome.exact


def test_every_kind_is_killed_and_stopped_where_it_is_there() -> None:
    everything = cases(("lists", "spark"), ("agent", "worker", "executor", "driver"), ("kill", "stop", "freeze"), True)
    assert [(case.engine, case.kind, case.signal) for case in everything] == [
        *((engine, kind, name) for engine in ("lists",) for kind in ("agent", "worker") for name in ("kill", "stop")),
        *(("lists", "driver", name) for name in ("kill", "stop", "freeze")),
        *(("spark", kind, name) for kind in ("agent", "worker", "executor") for name in ("kill", "stop")),
        *(("spark", "driver", name) for name in ("kill", "stop", "freeze")),
    ]
    assert {case.chunk_rows for case in everything} == {1, 2, 3, 4, 5}
