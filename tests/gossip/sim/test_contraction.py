"""How fast peers agree: how the measure is taken, over which rounds, and what it says of its own error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.errors import UsageError
from gossip.mixing import DPsgd, PairwiseExchange
from gossip.sim.contraction import FLOOR, Contraction, Rate, mean_rate, measure, typical
from gossip.sim.vectorized import simulate
from gossip.topology import Topology, slem, slowest


def test_a_mean_rate_is_geometric_and_its_error_that_of_the_mean_of_twenty_parts() -> None:
    assert mean_rate(2.0 ** -np.arange(50.0)) == Rate(pytest.approx(0.5), pytest.approx(0.0, abs=1e-15))  # type: ignore[arg-type]
    logs = np.random.default_rng(0).normal(-0.5, 0.1, 200)
    found = mean_rate(7.0 * np.exp(np.concatenate([[0.0], np.cumsum(logs)])))
    parts = [sum(logs[10 * at : 10 * at + 10]) / 10 for at in range(20)]
    middle = sum(parts) / 20
    error = math.sqrt(sum((part - middle) ** 2 for part in parts) / 19 / 20)
    assert found.rate == pytest.approx(math.exp(middle), rel=1e-12)
    assert found.error == pytest.approx(found.rate * error, rel=1e-9)
    three = mean_rate(np.exp([0.0, -1.0, -1.5, -3.5]))  # fewer than twenty: each is a part
    assert three.error == pytest.approx(three.rate * np.std([1.0, 0.5, 2.0], ddof=1) / math.sqrt(3))
    two = mean_rate(np.exp([0.0, -1.0, -1.5]))
    assert two.error == pytest.approx(two.rate * np.std([1.0, 0.5], ddof=1) / math.sqrt(2))
    assert mean_rate(np.array([1.0, 0.25])) == Rate(0.25, 0.0)


def test_what_is_typical_of_random_links_is_taken_from_rounds_that_no_run_sees() -> None:
    asked: list[int] = []

    def counted(peers: int) -> Topology:
        ring = topology.ring(peers).weights(0)

        def weights(round: int) -> Any:
            asked.append(round)
            return ring

        return Topology("counted", peers, None, weights)

    for peers, rounds in ((8, 2_000), (64, 1_000), (640, 200)):
        asked.clear()
        typical.cache_clear()
        assert typical(counted(peers)) is not None
        assert asked == list(range(1 << 40, (1 << 40) + rounds))


@pytest.mark.parametrize(
    "links", [topology.random_pair(6), topology.random_matching(9), topology.random_groups(12, 4)], ids=lambda t: t.name
)
def test_what_is_typical_is_what_a_plain_loop_sees_in_other_rounds(links: Topology) -> None:
    found = typical(links)
    assert found is not None
    x, logs = np.random.default_rng(5).standard_normal((links.peers, 50)), []
    for round in range(600):
        before = np.linalg.norm(x - x.mean(axis=0))
        x = links.weights(round) @ x
        after = np.linalg.norm(x - x.mean(axis=0))
        logs.append(math.log(after / before))
        if after < 1e-6:  # a start of another size does not matter
            x = np.random.default_rng(round).standard_normal(x.shape)
    other = math.exp(np.mean(logs))
    assert 0 < found.error < 0.02
    assert abs(found.rate - other) < 4 * math.hypot(found.error, other * np.std(logs) / math.sqrt(len(logs)))


def test_where_all_agree_at_once_nothing_is_typical() -> None:
    assert typical(topology.random_groups(6, 6)) is None
    assert typical(topology.random_matching(2)) is None
    with pytest.raises(UsageError, match="random-matching of 2 peers agrees after few rounds, which is no rate"):
        measure(topology.random_matching(2), PairwiseExchange())


def test_a_ring_is_measured_from_its_slowest_start_until_the_floor() -> None:
    # A third is left after each round: 25 rounds until the next one is below the floor.
    assert (1 / 3) ** 26 < FLOOR < (1 / 3) ** 25
    found = measure(topology.ring(4))
    third = pytest.approx(1 / 3, rel=1e-9)
    assert found == Contraction(third, third, 25, 0.0, 26)  # type: ignore[arg-type]
    slow = measure(topology.ring(64), rounds=30)
    assert slow == Contraction(slow.predicted, pytest.approx(slow.predicted, rel=1e-9), 30, 0.0, None)  # type: ignore[arg-type]
    assert slow.predicted == slem(topology.ring(64))
    assert measure(topology.ring(64)).rounds == 200, "by default"


def test_only_whole_periods_are_measured() -> None:
    links = topology.one_peer_exponential(6)
    assert links.period == 3
    found = measure(links, rounds=20, seed=3)
    value, direction = slowest(links)
    distances = simulate(links, DPsgd(), rounds=18, start=direction[:, None]).distances
    assert found.rounds == 18
    assert found.measured == pytest.approx(math.sqrt(distances[18] / distances[0]) ** (1 / 18), rel=1e-12)
    assert found.predicted == value ** (1 / 3)
    assert measure(links, rounds=3).rounds == 3
    with pytest.raises(UsageError, match="2 rounds of one-peer-exponential, expected at least one period of 3"):
        measure(links, rounds=2)


def test_a_mean_that_is_exact_after_a_period_has_the_rate_zero() -> None:
    assert measure(topology.complete(5)) == Contraction(0.0, 0.0, 1, 0.0, 1)
    assert measure(topology.one_peer_exponential(8)) == Contraction(0.0, 0.0, 3, 0.0, 3)


def test_random_links_are_measured_above_the_floor_with_both_errors() -> None:
    links = topology.random_matching(9, seed=2)
    found = measure(links, PairwiseExchange(), seed=1)
    start = np.random.default_rng(1).standard_normal((9, 64))
    distances = simulate(links, PairwiseExchange(), rounds=200, seed=1, start=start).distances
    last = max(at for at in range(201) if distances[at] > FLOOR**2 * distances[0])
    assert found.rounds == last < 200
    assert found.exact_after == last + 1
    mean, theirs = mean_rate(np.sqrt(distances[: last + 1])), typical(links)
    assert theirs is not None
    assert (found.measured, found.predicted) == (mean.rate, theirs.rate)
    assert found.error == math.hypot(mean.error, theirs.error)
    short = measure(links, rounds=10)
    assert (short.rounds, short.exact_after) == (10, None)
    assert measure(links, rounds=2).rounds == 2
    with pytest.raises(UsageError, match="1 rounds of random-matching, expected enough to take a mean of"):
        measure(links, rounds=1)
    with pytest.raises(UsageError, match="random-senders is drawn anew each round and its expected contraction"):
        measure(topology.random_senders(8))
