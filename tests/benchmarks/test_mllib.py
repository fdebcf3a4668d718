"""The comparison with MLlib: what counts as a miss."""

from __future__ import annotations

from benchmarks.mllib import Quality, shortfalls, table

MLLIB = Quality("MLlib", 3, 60.0, 10.0)


def test_both_targets_are_held_against_the_figures() -> None:
    assert list(shortfalls({"MLlib": 100.0, "peers": 500.0}, MLLIB, Quality("peers", 9, 58.0, 10.1))) == []
    slow, poor = shortfalls({"MLlib": 100.0, "peers": 499.0}, MLLIB, Quality("peers", 9, 58.0, 10.0))
    assert slow.startswith("missed: 5.0 times")
    assert poor.startswith("missed: analogies 10.0 %")


def test_the_table_shows_both_sides_and_their_ratio() -> None:
    lines = table({"MLlib": 100.0, "peers": 450.0}, [MLLIB, Quality("peers", 9, 58.0, 20.0)], 1160).splitlines()
    assert lines[1].split()[-2:] == ["100", "450"]
    assert lines[4].split()[-2:] == ["58", "180"]
    assert lines[-1] == "peers / MLlib: 4.5 times the words per second"
