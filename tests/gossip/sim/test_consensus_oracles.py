"""What theory says exactly, against what the simulator measures.

Where something is drawn, the tolerance is four standard errors of the samples taken, computed from them: a right
program fails one such test in 16,000 seeds, and the seeds are fixed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossip import topology
from gossip.arrays import Array
from gossip.compression import Chain, Codec, Int8, RandomK, Sign, TopK
from gossip.errors import UsageError
from gossip.mixing import (
    Choco,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Exchange,
    GradientTracking,
    NoLoCo,
    PairwiseExchange,
    PushSum,
    RelaySum,
    Strategy,
)
from gossip.mixing.strategies.bad import CompressedReplicas, DeltaBroadcast, OneWayPull, PlainPushSum, PubSubAveraging
from gossip.sim.contraction import measure
from gossip.sim.vectorized import simulate
from gossip.topology import Topology, named

ERRORS = 4.0
"""Standard errors of tolerance."""


def assert_mean(samples: NDArray[np.float64] | list[float], expected: float) -> None:
    """The mean of independent samples is `expected`, within `ERRORS` standard errors."""
    error = float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
    assert error > 0.0
    assert abs(float(np.mean(samples)) - expected) < ERRORS * error, (float(np.mean(samples)), expected, error)


# ---- without training ------------------------------------------------------------------------------------------

RATES = ["ring", "torus", "hypercube", "exponential", "one-peer-exponential", "complete", "path", "star", "base"]


@pytest.mark.parametrize("strategy", [DPsgd(), PushSum()], ids=repr)
@pytest.mark.parametrize("peers", [16, 64])
@pytest.mark.parametrize("name", RATES)
def test_the_measured_rate_is_the_predicted_one(name: str, peers: int, strategy: Strategy[Any]) -> None:
    result = measure(named(name, peers=peers), strategy)
    assert result.measured == pytest.approx(result.predicted, rel=1e-9)
    assert (result.predicted == 0.0) == (name in ("one-peer-exponential", "complete", "base"))
    if result.predicted == 0.0:
        assert result.exact_after == {"complete": 1}.get(name, int(math.log2(peers)))


def test_a_strategy_that_mixes_less_is_seen_to_differ_from_the_prediction() -> None:
    result = measure(topology.ring(16), Choco(gamma=0.5))
    assert result.measured == pytest.approx((1 + result.predicted) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        (topology.random_pair(10, seed=1), 1 - 1 / 9),
        (topology.random_matching(10, seed=1), 8 / 18),
        (topology.random_matching(9, seed=1), 1 / 2),
        (topology.random_groups(12, 4, seed=1), (3 - 1) / 11),
    ],
    ids=["pair", "matching", "odd matching", "groups"],
)
def test_random_links_contract_the_distance_as_expected(links: Topology, expected: float) -> None:
    strategy = DPsgd() if links.name == "random-groups" else PairwiseExchange()
    x = np.random.default_rng(0).standard_normal((links.peers, 3))
    x -= x.mean(axis=0)
    before = np.sum(x**2)
    ratios = []
    for round in range(1_000):
        state, _ = strategy.mix(strategy.start(x), Exchange(round, links.weights(round), np.random.default_rng(0)))
        after = strategy.params(state)
        np.testing.assert_allclose(after.mean(axis=0), 0.0, atol=1e-15)
        ratios.append(np.sum(after**2) / before)
    assert_mean(ratios, expected)
    assert links.expected == pytest.approx(expected)


def test_a_random_topology_is_measured_with_its_error() -> None:
    result = measure(topology.random_pair(16), PairwiseExchange(), rounds=400)
    assert result.error > 0.0
    assert abs(result.measured - result.predicted) < ERRORS * result.error
    with pytest.raises(UsageError, match="not known"):
        measure(topology.random_senders(8), EpidemicLearning())


def test_push_sum_keeps_its_mass_to_the_last_bit_under_loss_and_delay() -> None:
    x = np.random.default_rng(2).integers(-64, 64, (16, 4)).astype(float)
    result = simulate(
        topology.one_peer_exponential(16), PushSum(grid=2.0**-32), start=x, rounds=500, loss=0.1, delay=2, seed=3
    )
    for record in result.records:
        assert record.weight == 16.0
        assert np.array_equal(record.mass, x.sum(axis=0))
    assert result.staleness[-1] > 2_000 / 4
    assert result.records[-1].bias < 1e-6
    assert result.records[-1].distance < 1e-12


def test_push_sum_on_floats_keeps_its_mass_to_rounding_and_finds_the_mean() -> None:
    result = simulate(topology.random_senders(20, 2, weights="push"), PushSum(), parameters=3, rounds=500, loss=0.1)
    assert result.records[-1].weight == pytest.approx(20.0, abs=1e-12)
    np.testing.assert_allclose(result.records[-1].mass, result.start.mass, atol=1e-11)


def test_plain_push_sum_loses_mass_as_predicted() -> None:
    loss, rounds, peers = 0.1, 40, 64
    weights = [
        simulate(topology.one_peer_exponential(peers), PlainPushSum(), rounds=rounds, loss=loss, seed=seed)
        .records[-1]
        .weight
        / peers
        for seed in range(60)
    ]
    assert_mean(weights, (1 - loss / 2) ** rounds)


def test_plain_push_sum_has_lost_nearly_everything_after_500_rounds() -> None:
    # Each round the logarithm of the mass has a variance of about q (1 - q) / 4n, n the number of peers.
    loss, rounds, peers = 0.1, 500, 2_048
    result = simulate(topology.one_peer_exponential(peers), PlainPushSum(), rounds=rounds, loss=loss)
    error = math.sqrt(rounds * loss * (1 - loss) / 4 / peers)
    assert abs(math.log(result.records[-1].weight / peers) - rounds * math.log(1 - loss / 2)) < ERRORS * error


def test_push_sum_without_loss_is_plain_push_sum() -> None:
    links = topology.random_senders(12, 3, weights="push")
    plain, running = (simulate(links, each, parameters=2, rounds=40) for each in (PlainPushSum(), PushSum()))
    np.testing.assert_allclose(plain.params, running.params, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("amount", [0.3, 0.7])
def test_pub_sub_averaging_agrees_on_the_wrong_value(amount: float) -> None:
    peers, biases = 6, []
    for seed in range(100):
        links = topology.random_publisher(peers, amount, seed=seed)
        result = simulate(links, PubSubAveraging(amount), parameters=8, rounds=25, seed=seed)
        np.testing.assert_allclose(result.distances[1:6] / result.distances[:5], (1 - amount) ** 2, rtol=1e-9)
        biases.append(result.records[-1].bias ** 2 / (result.start.distance / peers))
    assert result.records[-1].distance < 1e-7 * result.start.distance
    assert_mean(biases, amount / (2 - amount))


@pytest.mark.slow
def test_one_way_pull_agrees_on_the_wrong_value() -> None:
    peers, amount, biases = 4, 0.5, []
    for seed in range(150):
        links = topology.random_pull(peers, amount, seed=seed)
        result = simulate(links, OneWayPull(amount), parameters=8, rounds=60, seed=seed)
        biases.append(result.records[-1].bias ** 2 / (result.start.distance / peers))
    assert result.records[-1].distance < 1e-3 * result.start.distance
    assert_mean(biases, amount * peers / (peers**2 * (1 - amount) + peers * amount))


@pytest.mark.parametrize("strategy", [DPsgd(), PushSum()], ids=repr)
@pytest.mark.parametrize("links", [topology.random_pull(6), topology.random_publisher(6)], ids=["pull", "publish"])
def test_one_sided_averaging_does_not_pass_the_validator(links: Topology, strategy: Strategy[Any]) -> None:
    with pytest.raises(UsageError, match=r"does not fit: random-pu.*the column of peer"):
        simulate(links, strategy)


def test_choco_keeps_the_mean_and_reaches_it_where_cut_down_replicas_stall() -> None:
    for codec in (TopK(0.1), RandomK(0.2), Int8(), Sign()):
        strategy = Compressed(codec, Choco())
        result = simulate(topology.hypercube(16), strategy, parameters=20, rounds=800)
        assert max(record.bias for record in result.records) < 1e-13
        assert result.records[-1].distance < 1e-9 * result.start.distance
    naive = simulate(topology.hypercube(16), CompressedReplicas(TopK(0.1)), parameters=20, rounds=800)
    assert naive.records[-1].bias < 1e-13
    assert naive.distances[800] > 0.9 * naive.distances[400]
    assert naive.distances[800] > 0.01 * naive.start.distance


@pytest.mark.parametrize(
    ("codec", "steps"),
    [(Sign(), (0.02, 0.1)), (Chain(TopK(0.5), Sign()), (0.02,)), (Int8(), (0.1, 0.5)), (TopK(0.1), (0.01,))],
    ids=repr,
)
@pytest.mark.parametrize("parameters", [20, 1_000])
def test_chocos_default_step_is_about_as_good_as_any(codec: Codec, steps: tuple[float, ...], parameters: int) -> None:
    def left(gamma: float | None) -> float:
        strategy = Compressed(codec, Choco(gamma))
        result = simulate(topology.ring(16), strategy, parameters=parameters, rounds=200, seed=1)
        return math.sqrt(result.records[-1].distance / result.start.distance)

    assert left(None) < 0.5 * min(left(step) for step in steps)


# ---- drift, staleness ------------------------------------------------------------------------------------------


def drifting(peers: int, loss: float, rounds: int, columns: int, seed: int = 0) -> Array:
    """Replicas after `rounds` of deltas of mean square one that nobody repairs."""
    chance = np.random.default_rng(seed)
    result = simulate(
        topology.complete(peers),
        DeltaBroadcast(scale=0.5),
        start=np.zeros((peers, columns)),
        rounds=rounds,
        loss=loss,
        seed=seed,
        gradient=lambda x, round: chance.standard_normal(x.shape),
    )
    return result.params


@pytest.mark.parametrize("loss", [0.05, 0.3])
def test_deltas_that_are_lost_and_not_repaired_part_the_replicas_for_ever(loss: float) -> None:
    peers, rounds = 5, 12
    squares = []
    for seed in range(100):  # a packet is lost as a whole, so parameters are no independent samples, and runs are
        x = drifting(peers, loss, rounds, 4, seed)
        squares.append(float(np.mean([(x[i] - x[j]) ** 2 for i in range(peers) for j in range(i)])))
    assert_mean(squares, rounds * 0.25 * ((peers - 2) * 2 * loss * (1 - loss) + 2 * loss))


@pytest.mark.slow
def test_a_random_matching_now_and_then_bounds_the_drift() -> None:
    peers, loss, every = 6, 0.2, 3
    g = (peers - 2) * 2 * loss * (1 - loss) + 2 * loss
    c = (peers - 2) / (2 * (peers - 1))
    links, pair, broadcast = topology.complete(peers), PairwiseExchange(), DeltaBroadcast()
    distances = []
    for seed in range(100):
        chance = np.random.default_rng(seed)
        matching = topology.random_matching(peers, seed=seed)
        x = np.zeros((peers, 4))
        for meeting in range(10):
            for _ in range(every):
                lag = np.where(chance.random(peers * (peers - 1)) < loss, -1, 0)
                state = broadcast.local(broadcast.start(x), chance.standard_normal(x.shape), 0)
                state, _ = broadcast.mix(state, Exchange(0, links.weights(0), chance, lag))
                x = broadcast.params(state)
            paired, _ = pair.mix(pair.start(x), Exchange(meeting, matching.weights(meeting), chance))
            x = pair.params(paired)
        distances.append(float(np.sum((x - x.mean(axis=0)) ** 2)) / x.shape[1])
    stationary = c / (1 - c) * (peers - 1) / 2 * g * every
    assert_mean(distances, stationary * (1 - c**10))  # ten meetings from a distance of zero


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_stale_gradients_are_stable_up_to_the_bound(staleness: int) -> None:
    bound = 2 * math.sin(math.pi / (4 * staleness + 2))

    def largest(rate: float) -> float:
        result = simulate(
            topology.complete(3),
            DPsgd(),
            start=np.ones((3, 1)),
            rounds=3_000,
            staleness=staleness,
            gradient=lambda x, round: -rate * x,
        )
        return float(np.max(np.abs(result.params)))

    assert largest(0.97 * bound) < 1e-6
    assert largest(1.03 * bound) > 1e3


# ---- training --------------------------------------------------------------------------------------------------

RATE, CURVATURE, NOISE = 0.2, 1.5, 0.7


def modes(links: Topology) -> Array:
    """The eigenvalues of W but that of the mean."""
    return np.linalg.eigvalsh(links.weights(0).toarray())[:-1]


@pytest.mark.parametrize("links", [topology.ring(8), topology.torus(9)], ids=["ring", "torus"])
@pytest.mark.parametrize("strategy", [DPsgd(), CombineThenAdapt()], ids=repr)
def test_the_noise_of_gradients_keeps_replicas_as_far_apart_as_predicted(
    strategy: Strategy[Any], links: Topology
) -> None:
    chance = np.random.default_rng(4)
    columns = 4_000  # each parameter is a simulation of its own
    result = simulate(
        links,
        strategy,
        start=np.zeros((links.peers, columns)),
        rounds=120,
        gradient=lambda x, round: -RATE * (CURVATURE * x + NOISE * chance.standard_normal(x.shape)),
    )
    lam, decay, step = modes(links), RATE * CURVATURE, RATE**2 * NOISE**2
    if isinstance(strategy, CombineThenAdapt):
        expected = np.sum(step / (1 - (lam - decay) ** 2))
    else:
        expected = np.sum(step * lam**2 / (1 - lam**2 * (1 - decay) ** 2))
    distances = np.sum((result.params - result.params.mean(axis=0)) ** 2, axis=0)
    assert_mean(distances, float(expected))


def test_different_data_leave_d_psgd_away_from_the_mean_and_gradient_tracking_at_it() -> None:
    links = topology.ring(8)
    minima = np.random.default_rng(6).standard_normal((8, 3))

    def gradient(x: Array, round: int) -> Array:
        return -RATE * CURVATURE * (x - minima)

    weights, decay = links.weights(0).toarray(), RATE * CURVATURE
    fixed = decay * np.linalg.inv(np.eye(8) - (1 - decay) * weights) @ weights @ minima
    averaged = simulate(links, DPsgd(), parameters=3, rounds=400, gradient=gradient)
    np.testing.assert_allclose(averaged.params, fixed, atol=1e-9)
    assert np.max(np.abs(fixed - minima.mean(axis=0))) > 0.1
    tracked = simulate(links, GradientTracking(), parameters=3, rounds=400, gradient=gradient)
    np.testing.assert_allclose(tracked.params, np.tile(minima.mean(axis=0), (8, 1)), atol=1e-9)


def test_relayed_sums_weigh_every_replica_alike_however_far_it_is() -> None:
    import networkx as nx

    tree = nx.balanced_tree(2, 2)
    links, hops = topology.graph(tree), dict(nx.all_pairs_shortest_path_length(tree))
    peers = len(tree)
    minima = np.random.default_rng(1).standard_normal((peers, 2))
    strategy = RelaySum()
    state = strategy.start(np.zeros((peers, 2)))
    moved: list[Array] = []
    for round in range(300):
        state = strategy.local(state, -0.05 * (strategy.params(state) - minima), round)
        moved.append(strategy.params(state))
        state, _ = strategy.mix(state, Exchange(round, links.weights(round), np.random.default_rng(0)))
        slow = np.zeros((peers, 2))
        for i in range(peers):
            for j in range(peers):
                ago = round - max(0, hops[i][j] - 1)
                slow[i] += (moved[ago][j] if ago >= 0 else moved[round][i]) / peers
        np.testing.assert_allclose(strategy.params(state), slow, atol=1e-12)
    assert np.max(np.abs(strategy.params(state) - minima.mean(axis=0))) < 0.05


def test_diloco_is_one_optimizer_of_the_mean_move() -> None:
    links = topology.complete(4)
    minima = np.random.default_rng(2).standard_normal((4, 3))
    result = simulate(
        links,
        DiLoCo(rate=0.5, momentum=0.8),
        start=np.zeros((4, 3)),
        rounds=30,
        gradient=lambda x, round: -0.1 * (x - minima),
    )
    anchor, velocity = np.zeros(3), np.zeros(3)
    for _ in range(30):
        moved = np.mean(-0.1 * (anchor - minima), axis=0)
        velocity = 0.8 * velocity + moved
        anchor = anchor + 0.5 * (moved + 0.8 * velocity)
    np.testing.assert_allclose(result.params, np.tile(anchor, (4, 1)), atol=1e-12)


def test_diloco_keeps_anchors_equal_whatever_a_codec_leaves_out() -> None:
    strategy = Compressed(TopK(0.3), DiLoCo(rate=0.7, momentum=0.5))
    minima = np.random.default_rng(2).standard_normal((5, 10))
    result = simulate(
        topology.complete(5),
        strategy,
        start=np.zeros((5, 10)),
        rounds=300,
        gradient=lambda x, round: -0.05 * (x - minima),
    )
    # The mean is put back together from what each is away from it, which rounds once.
    assert max(record.distance for record in result.records) < 1e-30
    assert np.max(np.abs(result.params - minima.mean(axis=0))) < 0.05


def test_noloco_agrees_without_anybody_hearing_all_and_moves_the_mean_as_momentum_does() -> None:
    start = np.random.default_rng(0).standard_normal((8, 2))
    still = simulate(topology.random_matching(8), NoLoCo(), start=start, rounds=200)
    assert still.records[-1].distance < 1e-9
    assert max(record.bias for record in still.records) < 1e-13
    step = np.array([0.1, -0.2])
    moving = simulate(
        topology.random_matching(8), NoLoCo(alpha=0.4), start=start, rounds=50, gradient=lambda x, round: step + 0 * x
    )
    velocity, anchor = np.zeros(2), start.mean(axis=0)
    for _ in range(50):
        velocity = 0.4 * velocity + 0.7 * step
        anchor = anchor + velocity
    np.testing.assert_allclose(moving.params.mean(axis=0), anchor, atol=1e-12)
