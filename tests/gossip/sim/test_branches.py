"""Which way conditions went, counted in functions that stay where they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from gossip.sim.branches import Branches

SOURCE = """
def grade(marks):
    \'\'\'Of some numbers.\'\'\'
    total = 0
    for mark in marks:
        total += mark
    if total > 3 and marks[0]:
        return "high"
    return "some" if [mark for mark in marks if mark > 0] else "none"

class Kind:
    @property
    def word(self):
        match self.number:
            case 1:
                return "one"
            case _:
                return "many"

    def __init__(self, number):
        self.number = number
"""


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    (tmp_path / "graded.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("graded", tmp_path / "graded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counts(branches: Branches) -> dict[tuple[str, str], int]:
    places = [(place.text, place.way) for place in branches.places]
    return dict(zip(places, branches.taken, strict=True))


def test_each_condition_counts_both_ways_and_results_stay_as_they_are(module: ModuleType) -> None:
    grade, kind = module.grade, module.Kind(2)
    with Branches([module]) as branches:
        assert [grade([1, 3]), grade([0, 4]), grade([0])] == ["high", "some", "none"]
        assert kind.word == "many"
    counted = counts(branches)
    assert counted["total > 3", "true"] == 2
    assert counted["total > 3", "false"] == 1
    assert counted["marks[0]", "true"] == 1
    assert counted["marks[0]", "false"] == 1
    assert counted["total > 3 and marks[0]", "true"] == 1
    assert counted["for mark in marks", "each"] == 5
    assert counted["mark > 0", "true"] == 1
    assert counted["case 1", "taken"] == 0
    assert counted["case _", "taken"] == 1


def test_afterwards_nothing_is_counted_and_clear_begins_anew(module: ModuleType) -> None:
    with Branches([module]) as branches:
        module.grade([1])
    before = list(branches.taken)
    module.grade([1])
    assert branches.taken == before
    branches.clear()
    assert not any(branches.taken)
    with branches:
        module.grade([1])
    assert branches.taken == before
