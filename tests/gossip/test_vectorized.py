"""The vectorized simulator: what it records, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.compression import TopK
from gossip.errors import UsageError
from gossip.mixing import Choco, Compressed, DPsgd, EpidemicLearning, GradientTracking, PairwiseExchange, PushSum
from gossip.mixing.bad import PlainPushSum
from gossip.vectorized import simulate


def test_a_seed_repeats_a_simulation_exactly() -> None:
    def once(seed: int) -> Any:
        links = topology.random_senders(12, 2, seed=seed, weights="push")
        return simulate(links, PushSum(), parameters=3, rounds=40, seed=seed, loss=0.1, delay=2, churn=0.1)

    assert np.array_equal(once(1).params, once(1).params)
    assert once(1).records[-1].distance == once(1).records[-1].distance
    assert not np.array_equal(once(1).params, once(2).params)


def test_packets_are_counted_by_how_late_they_come() -> None:
    result = simulate(topology.ring(10), PushSum(), rounds=200, loss=0.25, delay=3)
    total = sum(result.staleness.values())
    assert total == 200 * 20
    assert list(result.staleness) == [-1, 0, 1, 2, 3]
    # Binomial: four standard errors of 4,000 packets.
    assert abs(result.staleness[-1] / total - 0.25) < 4 * (0.25 * 0.75 / total) ** 0.5
    assert abs(result.staleness[2] / total - 0.75 / 4) < 4 * (0.1875 * 0.8125 / total) ** 0.5


def test_bytes_are_those_of_the_packets() -> None:
    whole = simulate(topology.ring(10), DPsgd(), parameters=100, rounds=3)
    assert [record.nbytes_per_link for record in whole.records] == [800.0] * 3
    few = simulate(topology.ring(10), Compressed(TopK(0.05), Choco()), parameters=100, rounds=3)
    assert [record.nbytes_per_link for record in few.records] == [5 * (8 + 2) + 3 * 8] * 3, (
        "with three numbers of copies"
    )


def test_loss_moves_the_mean_of_plain_averaging_and_not_the_consensus() -> None:
    result = simulate(topology.ring(10), DPsgd(), rounds=300, loss=0.2)
    assert result.records[-1].distance < 1e-12
    assert result.records[-1].bias > 1e-3
    assert not np.allclose(result.records[-1].mass, result.start.mass)


@pytest.mark.parametrize("strategy", [DPsgd(), PushSum(), PairwiseExchange()], ids=repr)
def test_peers_that_come_and_go_keep_the_mean_where_weights_are_symmetric(strategy: Any) -> None:
    result = simulate(topology.torus(16), strategy, parameters=2, rounds=300, churn=0.3)
    assert max(record.bias for record in result.records[-5:]) < 1e-6
    assert result.records[-1].distance < 1e-6
    np.testing.assert_allclose(result.records[-1].mass, result.start.mass, atol=1e-11)


def test_absent_peers_neither_train_nor_mix() -> None:
    result = simulate(
        topology.ring(6),
        DPsgd(),
        start=np.arange(6.0)[:, None],
        rounds=1,
        churn=0.999999,
        gradient=lambda x, round: np.ones_like(x),
    )
    assert np.array_equal(result.params, np.arange(6.0)[:, None])
    with pytest.raises(UsageError, match="a step left out"):
        simulate(topology.ring(6), GradientTracking(), churn=0.1)


def test_gradients_are_given_the_parameters_of_as_many_rounds_ago_as_asked() -> None:
    given: list[float] = []

    def gradient(x: Any, round: int) -> Any:
        given.append(float(x[0, 0]))
        return np.ones_like(x)

    simulate(topology.ring(3), DPsgd(), start=np.zeros((3, 1)), rounds=6, staleness=2, gradient=gradient)
    assert given == pytest.approx([0, 0, 0, 1, 2, 3])


def test_what_is_in_flight_counts_as_mass_of_plain_push_sum_too() -> None:
    result = simulate(topology.exponential(8), PlainPushSum(), rounds=50, delay=3)
    assert all(record.weight == pytest.approx(8.0, abs=1e-12) for record in result.records)
    np.testing.assert_allclose(result.records[-1].mass, result.start.mass, atol=1e-12)


def test_a_topology_that_does_not_fit_can_be_tried_on_purpose() -> None:
    lopsided = topology.star(6, weights="uniform")
    with pytest.raises(UsageError, match="does not fit"):
        simulate(lopsided, DPsgd())
    result = simulate(lopsided, DPsgd(), rounds=200, check=False)
    assert result.records[-1].distance < 1e-12
    assert result.records[-1].bias > 1e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": 1.0}, "loss 1.0, expected a probability"),
        ({"churn": -0.1}, "churn -0.1"),
        ({"rounds": -1}, "rounds -1"),
        ({"parameters": 0}, "0 parameters"),
        ({"delay": 2}, r"delay 2 with DPsgd\(\), which waits"),
        ({"start": np.zeros((3, 2))}, r"start of shape \(3, 2\), expected \(8, parameters\)"),
        ({"gradient": lambda x, round: x[0]}, r"gradient of round 0 gave shape \(1,\), expected \(8, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        simulate(topology.ring(8), DPsgd(), **options)


@pytest.mark.parametrize("options", [{"loss": 0.1}, {"churn": 0.1}])
def test_choco_with_packets_that_do_not_come_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"Choco\(\): its vectorized form holds one public copy"):
        simulate(topology.ring(8), Choco(), **options)


def test_epidemic_learning_agrees_under_loss_without_anybody_waiting_for_the_missing() -> None:
    result = simulate(topology.random_senders(30, 3), EpidemicLearning(), rounds=120, loss=0.3)
    assert result.records[-1].distance < 1e-12
    assert 0 < result.records[-1].bias < 1.0


def test_what_peers_learn_counts_alike_in_push_sum_and_is_not_lost() -> None:
    minima = np.random.default_rng(0).standard_normal((12, 2))
    result = simulate(
        topology.random_senders(12, 2, weights="push"),
        PushSum(),
        parameters=2,
        rounds=300,
        loss=0.1,
        delay=1,
        gradient=lambda x, round: -0.02 * (x - minima),
    )
    np.testing.assert_allclose(result.records[-1].mass, 12 * result.mean, atol=1e-10)
    assert np.max(np.abs(result.mean - minima.mean(axis=0))) < 0.2


def test_peers_that_speak_in_turn_are_all_answered() -> None:
    """Where all ask at once, whoever is asked mostly waits for another itself, and says so."""
    of_packet = 3 * 8 + 16
    in_turn, at_once = (
        simulate(topology.complete(6), PairwiseExchange(), parameters=3, rounds=9, seed=5, in_turn=each)
        for each in (True, False)
    )
    assert [record.nbytes for record in in_turn.records] == [6 * 2 * of_packet] * 9
    assert all(record.nbytes < 6 * 2 * of_packet for record in at_once.records)
    np.testing.assert_allclose(in_turn.params.mean(axis=0), in_turn.mean, atol=1e-12)
    other = simulate(topology.complete(6), PairwiseExchange(), parameters=3, rounds=9, seed=5, in_turn=True)
    np.testing.assert_array_equal(in_turn.params, other.params)
