"""The vectorized simulator: what it records, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given
from hypothesis import strategies as st

from gossip import topology
from gossip.compression import TopK
from gossip.errors import UsageError
from gossip.mixing import (
    Choco,
    CombineThenAdapt,
    Compressed,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    PairwiseExchange,
    PushSum,
)
from gossip.mixing.strategies.bad import PlainPushSum
from gossip.sim.vectorized import simulate, without


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

    simulate(topology.ring(3), DPsgd(), start=np.zeros((3, 1)), rounds=3, gradient=gradient)
    assert given == pytest.approx([0, 1, 2])
    given.clear()
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


def test_peers_in_turn_step_from_what_those_before_them_made_of_their_replicas() -> None:
    """Against a plain loop over the same draws: a peer steps, and meets a neighbor, before the next one does."""
    minima = np.random.default_rng(3).standard_normal((4, 2))
    found = simulate(
        topology.complete(4),
        PairwiseExchange(),
        rounds=7,
        seed=5,
        start=np.zeros((4, 2)),
        gradient=lambda x, round: 0.5 * (minima - x),
        in_turn=True,
    )
    chance, x = np.random.default_rng([5, 1, 1]), np.zeros((4, 2))
    for _ in range(7):
        for me in chance.permutation(4).tolist():
            x[me] += 0.5 * (minima[me] - x[me])
            other = [peer for peer in range(4) if peer != me][int(chance.integers(3))]
            x[[me, other]] = (x[me] + x[other]) / 2
    np.testing.assert_allclose(found.params, x, atol=1e-12)
    np.testing.assert_allclose(found.params.mean(axis=0), found.mean, atol=1e-12)


def test_peers_in_turn_step_in_every_round_and_speak_in_some() -> None:
    every = simulate(topology.complete(6), Every(3, PairwiseExchange()), rounds=7, seed=5, in_turn=True)
    assert [record.nbytes > 0 for record in every.records] == [False, False, True, False, False, True, False]


def test_peers_in_turn_are_refused_where_nobody_answers_or_answers_are_late() -> None:
    """What a round in turn would be there is not defined."""
    with pytest.raises(UsageError, match=r"in_turn with DPsgd\(\); it is for strategies whose peers answer"):
        simulate(topology.ring(4), DPsgd(), rounds=1, in_turn=True)
    with pytest.raises(UsageError, match="in_turn with delay 2; it is for"):
        simulate(topology.ring(4), PairwiseExchange(), rounds=1, delay=2, in_turn=True)


# ---- against plain loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("loss", [0.0, 0.999999999])
def test_each_record_is_what_a_plain_loop_over_dense_matrices_gives(staleness: int, loss: float) -> None:
    links = topology.random_senders(5, 2, seed=4)
    start = np.random.default_rng(2).standard_normal((5, 3))

    def gradient(x: Any, round: int) -> Any:
        return 0.1 * np.cos(x + round)

    strategy = Every(2, CombineThenAdapt())
    seen: list[tuple[int, Any]] = []
    result = simulate(
        links,
        strategy,
        start=start,
        rounds=9,
        staleness=staleness,
        gradient=gradient,
        loss=loss,
        check=False,
        observe=lambda round, x: seen.append((round, x)),
    )
    x, true = start, start.mean(axis=0)
    past = [x]
    assert (result.start.round, result.start.links, result.start.nbytes, result.start.bias) == (-1, 0, 0, 0.0)
    for round, record in enumerate(result.records):
        delta = gradient(past[max(0, len(past) - 1 - staleness)], round)
        true = true + delta.mean(axis=0)
        packets = 10 if round % 2 else 0
        mixing = links.weights(round // 2).toarray() if packets and not loss else np.eye(5)
        x = mixing @ x + delta
        past.append(x)
        np.testing.assert_allclose(seen[round][1], x, atol=1e-14)
        assert seen[round][0] == record.round == round
        assert record.distance == pytest.approx(sum((row - x.mean(axis=0)) @ (row - x.mean(axis=0)) for row in x))
        assert record.bias == pytest.approx(np.linalg.norm(x.mean(axis=0) - true), abs=1e-14)
        np.testing.assert_allclose(record.mass, x.sum(axis=0))
        np.testing.assert_allclose(record.true_mean, true)
        assert (record.weight, record.links, record.nbytes) == (5.0, packets, packets * 3 * 8)
        assert record.nbytes_per_link == (24.0 if packets else 0.0)
        assert record.ages == ({} if not packets else {-1 if loss else 0: 10})
    np.testing.assert_allclose(result.distances, [result.start.distance, *(each.distance for each in result.records)])
    np.testing.assert_allclose(result.mean, true)
    assert result.staleness == {-1 if loss else 0: 40}


def test_by_default_a_hundred_rounds_of_one_parameter_from_normal_numbers() -> None:
    result = simulate(topology.exponential(400), DPsgd())
    assert len(result.records) == 100
    assert result.params.shape == (400, 1)
    assert result.start.distance == pytest.approx(400, rel=0.3)
    assert np.array_equal(result.params, simulate(topology.exponential(400), DPsgd(), seed=0).params)


def test_as_many_peers_are_absent_as_churn_says_and_what_they_would_have_learned_is_not_expected() -> None:
    links = topology.matrix(np.eye(50), needs=topology.Needs.ROWS)
    result = simulate(
        links, DPsgd(), start=np.zeros((50, 1)), rounds=200, churn=0.3, check=False, gradient=lambda x, _: x * 0 + 1.0
    )
    assert abs(result.params.mean() / 200 - 0.7) < 4 * (0.3 * 0.7 / 10_000) ** 0.5
    assert 1 < np.std(result.params) / (200 * 0.3 * 0.7) ** 0.5 * 1.5 < 2, "each for itself"
    assert max(record.bias for record in result.records) < 1e-12


@given(data=st.data(), needs=st.sampled_from([topology.Needs.ROWS, topology.Needs.COLUMNS]))
def test_links_of_the_absent_are_cut_and_their_weight_stays_at_home(data: st.DataObject, needs: topology.Needs) -> None:
    peers = data.draw(st.integers(1, 5))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=peers**2, max_size=peers**2)), float)
    weights = weights.reshape(peers, peers)
    absent = np.array(data.draw(st.lists(st.booleans(), min_size=peers, max_size=peers)))
    expected = weights.copy()
    for i in range(peers):
        for j in range(peers):
            if i != j and (absent[i] or absent[j]):
                home = i if needs is topology.Needs.ROWS else j
                expected[home, home] += weights[i, j]
                expected[i, j] = 0.0
    np.testing.assert_array_equal(without(sparse.csr_array(weights), absent, needs).toarray(), expected)


def test_losses_and_delays_are_drawn_for_each_packet_by_itself() -> None:
    def ages(**options: Any) -> dict[int, int]:
        result = simulate(topology.complete(30), PushSum(), rounds=40, **options)
        for record in result.records:
            assert sum(record.ages.values()) == 870
        return dict(result.staleness)

    assert ages() == {0: 40 * 870}
    assert set(ages(delay=1)) == {0, 1}
    lost = ages(loss=0.1)
    assert set(lost) == {-1, 0}
    assert abs(lost[-1] / (40 * 870) - 0.1) < 4 * (0.1 * 0.9 / (40 * 870)) ** 0.5
    each = [record.ages[-1] for record in simulate(topology.complete(30), PushSum(), rounds=40, loss=0.1).records]
    assert np.std(each) < 3 * (870 * 0.1 * 0.9) ** 0.5, "one draw for each packet, not for each round"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": -0.001}, "loss -0.001, expected a probability from 0 to less than 1"),
        ({"churn": 1.0}, "churn 1.0, expected a probability"),
        ({"delay": -1}, "delay -1, expected a number of rounds from 0"),
        ({"staleness": -1}, "staleness -1, expected"),
        ({"start": np.zeros((7, 2))}, r"start of shape \(7, 2\), expected \(8, parameters\)"),
        ({"start": np.zeros(8)}, r"start of shape \(8,\), expected"),
        ({"churn": 0.1, "loss": 0.1, "strategy": GradientTracking()}, "churn 0.1 with GradientTracking"),
        ({"loss": 0.2, "strategy": Choco()}, r"loss 0.2 with Choco\(\): .*holds another"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(options: dict[str, Any], says: str) -> None:
    options = {"strategy": PushSum(), **options}
    with pytest.raises(UsageError, match=says):
        simulate(topology.ring(8), **options)


def test_no_rounds_are_a_start_and_nothing_else() -> None:
    start = np.arange(16.0).reshape(8, 2)
    result = simulate(topology.ring(8), DPsgd(), start=start, rounds=0)
    assert result.records == ()
    assert np.array_equal(result.params, start)
    assert np.array_equal(result.mean, start.mean(axis=0))
    assert result.start.distance == np.sum((start - start.mean(axis=0)) ** 2)
    assert result.staleness == {}


def test_the_mean_of_short_floats_is_taken_in_long_ones() -> None:
    start = np.full((1_000, 1), 0.1, np.float32)
    result = simulate(topology.ring(1_000), DPsgd(), start=start, rounds=1, gradient=lambda x, _: x)
    assert result.start.bias == 0.0
    assert result.start.true_mean.dtype == np.float64
    assert result.start.true_mean[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert result.start.distance < 1e-20
    assert result.start.ages == {}


def test_answers_are_lost_and_late_as_offers_are() -> None:
    links = topology.random_matching(16, seed=1)
    result = simulate(links, PairwiseExchange(), rounds=100, loss=0.3)
    offers = 100 * 8
    answers = sum(result.staleness.values()) - offers
    # An answer in seven tenths of the rounds at the most, of which three tenths are lost again.
    assert result.staleness[-1] > 0.3 * offers + 0.2 * answers
