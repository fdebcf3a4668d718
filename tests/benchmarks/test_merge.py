"""The comparison of an exchange with hivemind and gloo: what counts as a miss, and that agents exchange at all."""

from __future__ import annotations

from benchmarks.merge import agents, shortfalls, small_updates


def test_targets_are_held_against_medians_of_the_sides_that_ran() -> None:
    assert list(shortfalls({"agents": 1.0, "hivemind": 5.0, "gloo": 0.7})) == []
    hivemind, gloo = shortfalls({"agents": 1.0, "hivemind": 4.9, "gloo": 0.69})
    assert "hivemind" in hivemind
    assert "gloo" in gloo
    assert list(shortfalls({"agents": 1.0, "add": 0.1})) == []


def test_a_round_ends_when_both_replicas_hold_both_updates() -> None:
    with agents(1000) as exchange:
        assert exchange().seconds > 0
        assert exchange().seconds > 0


def test_small_updates_arrive_beside_large_ones() -> None:
    with small_updates(10_000) as latency:
        for publishers in ((), (1,), (0, 1)):
            assert len(latency(publishers, 2)) == 2
