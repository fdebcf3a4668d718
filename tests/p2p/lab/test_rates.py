"""What the laboratory calls a measured rate, against distances of which the rate is known."""

import math

import numpy as np
import pytest

from gossip import topology
from gossip.mixing import Choco, DPsgd, PairwiseExchange, PushSum
from gossip.mixing.strategies import bad
from gossip.sim.vectorized import simulate
from p2p.lab.rates import measured, predicted


def squares(*distances: float) -> np.ndarray:
    return np.square(distances)


def test_the_rate_of_a_geometric_series_is_its_factor() -> None:
    found = measured(0.9 ** (2 * np.arange(101.0)), 1)
    assert found.rate == pytest.approx(0.9, abs=1e-12)
    assert (found.first, found.last, found.exact_after, found.is_settled) == (50, 100, None, True)


def test_rounding_is_not_measured() -> None:
    distances = np.maximum(0.5 ** np.arange(200.0), 1e-16)
    found = measured(distances**2, 1)
    assert found.rate == pytest.approx(0.5, abs=1e-12)
    assert found.exact_after == found.last + 1 == 40


def test_a_mean_that_is_exact_within_the_first_period_has_rate_0_and_a_fast_one_has_not() -> None:
    assert measured(squares(1.0, 0.9, 0.8, 1e-16, 1e-16), 3).rate == 0.0
    fast = measured(squares(*(1e-5**t for t in range(3)), 1e-16), 1)
    assert fast.rate == pytest.approx(1e-5)


def test_too_few_rounds_give_no_rate() -> None:
    assert measured(squares(1.0, 0.9), 3).rate is None
    assert measured(squares(0.0, 0.0), 1).rate is None


def test_a_random_start_that_has_not_settled_is_told_from_one_that_has() -> None:
    rounds = np.arange(201.0)
    slowing = 0.9968**rounds + 0.987**rounds
    assert not measured(slowing**2, 1).is_settled
    assert measured((0.9**rounds + 0.5**rounds) ** 2, 1).is_settled


@pytest.mark.parametrize("name", ["random-matching", "random-pair"])
def test_where_links_are_drawn_a_run_falls_as_a_typical_one_and_faster_than_the_expected_square(name: str) -> None:
    graph = topology.named(name, peers=16, seed=4)
    result = simulate(graph, DPsgd(), parameters=20, rounds=200, seed=4)
    expected, of_square = predicted(DPsgd(), graph), topology.rate(graph)
    assert expected is not None
    found = measured(result.distances, None)
    assert found.rate is not None
    assert found.rate == pytest.approx(expected, abs=5 * found.error)
    assert 0.0 < found.error < 0.1 * expected
    assert expected < of_square


def test_the_dashed_line_of_theory_lies_where_runs_end_and_that_of_the_expected_square_above() -> None:
    ends = []
    for seed in range(10):
        distances = simulate(
            topology.random_matching(16, seed=seed), DPsgd(), parameters=10, rounds=60, seed=seed
        ).distances
        ends.append(0.5 * math.log(distances[-1] / distances[0]))
    expected, of_square = predicted(DPsgd(), topology.random_matching(16)), topology.rate(topology.random_matching(16))
    assert expected is not None
    error = np.std(ends, ddof=1) / math.sqrt(10)
    assert 60 * math.log(expected) == pytest.approx(np.mean(ends), abs=4 * error)
    assert 60 * math.log(of_square) > np.mean(ends) + 2 * error


@pytest.mark.parametrize("name", ["random-matching", "random-groups"])
@pytest.mark.parametrize("wrong", [{"loss": 0.2}, {"delay": 3}], ids=str)
def test_the_rate_under_loss_is_that_at_which_the_distance_fell(name: str, wrong: dict[str, float]) -> None:
    result = simulate(topology.named(name, 16), PushSum(), parameters=10, rounds=300, check=False, **wrong)
    found = measured(result.distances, None)
    assert found.rate is not None
    fell = (result.distances[found.last] / result.distances[0]) ** (0.5 / found.last)
    assert found.rate == pytest.approx(fell, rel=1e-9)
    assert 0.0 < found.error < 0.2


def test_theory_is_silent_where_it_does_not_apply() -> None:
    ring = topology.ring(8)
    assert (
        predicted(PushSum(), ring) == predicted(DPsgd(), ring) == pytest.approx(1 / 3 + 2 / 3 * math.cos(math.pi / 4))
    )
    assert predicted(Choco(), ring) is None
    assert predicted(PairwiseExchange(), ring) is None
    assert predicted(PairwiseExchange(), topology.one_peer_hypercube(8)) == 0.0
    assert predicted(bad.PlainPushSum(), ring) is None
