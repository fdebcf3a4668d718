"""The comparison of an exchange with hivemind and gloo: what counts as a miss, and that agents exchange at all."""

from __future__ import annotations

from benchmarks.merge import agents, latency_shortfalls, shortfalls, small_updates


def test_targets_are_held_against_medians_of_the_sides_that_ran() -> None:
    assert list(shortfalls({"agents": 1.0, "hivemind": 5.0, "gloo": 0.7})) == []
    hivemind, gloo = shortfalls({"agents": 1.0, "hivemind": 4.9, "gloo": 0.69})
    assert "hivemind" in hivemind
    assert "gloo" in gloo
    assert list(shortfalls({"agents": 1.0, "add": 0.1})) == []


def test_small_updates_that_wait_for_large_ones_are_a_miss() -> None:
    met = {"quiet": [0.004], "beside": [0.011], "among": [0.012], "flood": [1.0]}
    assert list(latency_shortfalls(met)) == []
    (missed,) = latency_shortfalls({**met, "among": [0.001, 0.02, 0.03]})
    assert "among large ones take 5.0 x quiet" in missed


def test_a_round_ends_when_both_replicas_hold_both_updates() -> None:
    with agents(1000) as exchange:
        assert exchange().seconds > 0
        assert exchange().seconds > 0


def test_small_updates_arrive_beside_large_ones() -> None:
    with small_updates(10_000) as latency:
        for publishers, period_s in (((), 0.25), ((1,), 0.25), ((0, 1), 0.25), ((0, 1), 0.0)):
            assert len(latency(publishers, period_s, 2)) == 2
