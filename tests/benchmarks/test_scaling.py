"""The arithmetic of the scaling model, on cases that can be done by hand."""

from __future__ import annotations

import pytest

from benchmarks.scaling import (
    DEFAULT,
    Cost,
    Costs,
    Network,
    Result,
    Simulation,
    costs_of,
    pulls_of_an_agent,
    shortfalls,
)

WHOLE = Cost(rows=1000, nbytes=1e6, worker_s=0.03, own_s=0.01, send_s=0.005, merge_s=0.015)
COSTS = Costs(
    words_per_s=1000.0,
    model_bytes=1e6,
    rows_max=1000,
    intervals_s=(0.1, 1.0),
    measured=(
        Cost(rows=100, nbytes=10_500, worker_s=0.001, own_s=0.002, send_s=0.003, merge_s=0.004),
        Cost(rows=400, nbytes=42_000, worker_s=0.004, own_s=0.005, send_s=0.006, merge_s=0.010),
    ),
    whole=WHOLE,
)
FAST = Network(gbits=1e6, latency_s=1e-6)


def simulated(hosts: int, codec: str = "whole model", network: Network = FAST, intervals: int = 60) -> Result:
    return Simulation(hosts, 1.0, codec, COSTS, network).run(intervals)


def test_costs_are_those_measured_at_the_intervals_measured() -> None:
    for interval_s, cost in zip(COSTS.intervals_s, COSTS.measured, strict=True):
        found = COSTS.of(interval_s, "int8 rows")
        assert (found.rows, found.nbytes, found.merge_s) == pytest.approx((cost.rows, cost.nbytes, cost.merge_s))


def test_rows_grow_with_a_power_and_times_with_rows() -> None:
    between = COSTS.of(0.1 * 10**0.5, "int8 rows")
    assert between.rows == pytest.approx(200)
    assert between.merge_s == pytest.approx(0.006)
    assert COSTS.of(1000, "int8 rows").rows == 1000


def test_a_row_of_floats_is_four_times_its_dimensions() -> None:
    assert COSTS.of(0.1, "float32 rows").nbytes == pytest.approx(100 * (4 + 4 * 100))
    assert COSTS.of(0.1, "whole model") == WHOLE


def test_a_host_alone_loses_what_its_task_does_for_an_exchange() -> None:
    result = simulated(1)
    assert result.words_per_s == pytest.approx(1000 / 1.03, rel=0.05)
    assert result.efficiency == pytest.approx(1 / 1.03, rel=0.05)


@pytest.mark.parametrize("hosts", [2, 5])
def test_each_host_more_costs_a_range_served_and_one_merged(hosts: int) -> None:
    result = simulated(hosts)
    exchange = 0.03 + 0.01 + (hosts - 1) * (0.005 + 0.015)
    assert result.efficiency == pytest.approx(1 / (1 + exchange), rel=0.03)
    assert result.cpu == pytest.approx(exchange / (1 + exchange), rel=0.05)
    assert result.limit == "merge CPU"
    assert result.summed == 1


def test_a_full_card_makes_ranges_longer_and_stops_nobody() -> None:
    free = simulated(3)
    # one update takes one second through a card, and two come in each second
    full = simulated(3, network=Network(gbits=0.008, latency_s=1e-6))
    assert full.inward == pytest.approx(1, rel=0.05)
    assert full.limit in ("in-bandwidth", "out-bandwidth")
    assert full.pulls == 0
    assert full.summed == pytest.approx(2, rel=0.15)
    assert full.words_per_s >= free.words_per_s
    assert full.age_s > 1 > free.age_s


def test_one_pull_at_a_time_is_a_limit_where_messages_take_long() -> None:
    # request and answer of each of four origins take 0.8 s, and all four publish once a second
    network = Network(gbits=1e6, latency_s=0.4, pulls_max=1)
    slow = simulated(5, network=network)
    assert slow.limit == "pulls"
    assert slow.summed == pytest.approx(4 * 0.84, rel=0.2)
    assert simulated(5, network=Network(gbits=1e6, latency_s=0.4)).pulls == 0


def test_cards_are_used_for_what_is_sent() -> None:
    result = simulated(4, network=Network(gbits=0.08, latency_s=1e-6))
    updates_per_s = result.efficiency  # one a second of training
    assert result.inward == pytest.approx(3 * 0.1 * updates_per_s, rel=0.05)
    assert result.outward == pytest.approx(result.inward, rel=0.05)


def test_the_same_seed_gives_the_same_result() -> None:
    assert simulated(3, intervals=9) == simulated(3, intervals=9)


def test_figures_of_the_path_become_costs() -> None:
    steps = ("schedule, merge, encode", "hand over", "keep", "merge own", "send", "receive, check", "merge other")
    path = [
        {"interval_s": at, "rows": 10 * at, "bytes": 100.0, **{name: 0.001 * (1 + n) for n, name in enumerate(steps)}}
        for at in (0.5, 0.05)
    ]
    costs = costs_of(path, 1000.0, WHOLE)
    assert costs.intervals_s == (0.05, 0.5)
    assert costs.measured[0].worker_s == pytest.approx(0.003)
    assert costs.measured[0].own_s == pytest.approx(0.007)
    assert costs.measured[0].send_s == pytest.approx(0.005)
    assert costs.measured[0].merge_s == pytest.approx(0.013)


def test_sixteen_hosts_that_do_not_beat_eight_are_a_miss() -> None:
    def results(*words: float) -> dict[tuple[str, float, int], list[Result]]:
        return {DEFAULT: [Result(hosts, each, 1, 0, 0, 0, 0, 1, 0) for hosts, each in zip((8, 16), words, strict=True)]}

    assert shortfalls(results(8.0, 9.0)) == []
    assert "16 hosts train 8 words a second" in shortfalls(results(8.0, 8.0))[0]


def test_an_agent_pulls_one_large_model_or_several_small_ones_at_a_time() -> None:
    assert [pulls_of_an_agent(nbytes) for nbytes in (54e6, 4 << 20)] == [1, 4]
