"""Strategies: what each promises, in both forms, and that the two forms are one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sparse

from gossip import topology
from gossip.arrays import Array
from gossip.compression import Chain, Float16, Int8, RandomK, Rows, Sign, Threshold, TopK
from gossip.errors import UsageError
from gossip.mixing import (
    Choco,
    ClippedGossip,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    NoLoCo,
    PairwiseExchange,
    PushSum,
    RelaySum,
    Strategy,
)
from gossip.mixing.rounds import Swarm, Weather
from gossip.mixing.strategies.bad import CompressedReplicas, DeltaBroadcast, OneWayPull, PlainPushSum, PubSubAveraging
from gossip.mixing.strategies.push_sum import REPLICAS_MAX, ledger
from gossip.mixing.strategy import Exchange, averaged
from gossip.sim.vectorized import simulate, without
from gossip.topology import Topology

PAIRS: list[tuple[Strategy[Any], Topology]] = [
    (DPsgd(), topology.ring(8)),
    (DPsgd(), topology.one_peer_exponential(6)),
    (DPsgd(), topology.base(7, 2)),
    (CombineThenAdapt(), topology.torus(9)),
    (EpidemicLearning(), topology.random_senders(9, 2)),
    (ClippedGossip(0.7), topology.ring(8)),
    (PushSum(), topology.exponential(7)),
    (PushSum(), topology.random_senders(9, 2, weights="push")),
    (PushSum(grid=2.0**-32), topology.one_peer_exponential(8)),
    (PairwiseExchange(), topology.random_matching(8)),
    (PairwiseExchange(0.25), topology.one_peer_hypercube(8)),
    (Choco(), topology.ring(8)),
    (Compressed(TopK(0.3), Choco(0.4)), topology.torus(9)),
    (Compressed(RandomK(0.5), Choco()), topology.ring(6)),
    (Compressed(Chain(TopK(0.5), Int8()), Choco()), topology.ring(6)),
    (Compressed(Threshold(0.25), Choco()), topology.ring(6)),
    (DiLoCo(), topology.complete(5)),
    (Every(3, Compressed(Sign(), DiLoCo(0.5, 0.3))), topology.complete(5)),
    (Every(4, Compressed(Float16(), DiLoCo())), topology.complete(5)),
    (Every(2, NoLoCo()), topology.random_matching(7)),
    (Every(3, CombineThenAdapt()), topology.one_peer_exponential(8)),
    (GradientTracking(), topology.exponential(8)),
    (RelaySum(), topology.graph(nx.balanced_tree(2, 3).subgraph(range(9)))),
    (PlainPushSum(), topology.exponential(7)),
    (OneWayPull(0.3), topology.random_senders(9, 2)),
    (PubSubAveraging(), topology.random_publisher(5)),
    (CompressedReplicas(TopK(0.4)), topology.ring(6)),
]
"""Each strategy with topologies that it fits."""


def start_of(peers: int, parameters: int = 5) -> Array:
    return np.random.default_rng(3).standard_normal((peers, parameters))


def training(x: Array, round: int) -> Array:
    """The step of a quadratic whose minimum differs from peer to peer."""
    return -0.1 * (x - np.arange(len(x))[:, None] + 0.01 * round)


@pytest.mark.parametrize(("strategy", "links"), PAIRS, ids=lambda each: str(getattr(each, "name", each)))
def test_both_forms_of_a_strategy_compute_the_same(strategy: Strategy[Any], links: Topology) -> None:
    strategy.check(links)
    x = np.tile(start_of(1), (links.peers, 1)) if strategy.needs == topology.Needs.EXACT else start_of(links.peers)
    swarm = Swarm(strategy, links, x, np.random.default_rng(5))
    state, chance, sent = strategy.start(x), np.random.default_rng(5), 0
    for round in range(20):
        deltas = training(swarm.params(), round)
        swarm.round(round, deltas)
        state = strategy.local(state, deltas, round)
        mixing = strategy.mixing_round(round)
        if mixing is None:
            state = strategy.rest(state)
        else:
            state, nbytes = strategy.mix(state, Exchange(mixing, links.weights(mixing), chance))
            sent += nbytes
        np.testing.assert_allclose(strategy.params(state), swarm.params(), rtol=1e-12, atol=1e-12)
    assert swarm.nbytes == sent


def test_push_sum_never_loses_mass_whatever_the_network_does() -> None:
    links = topology.random_senders(12, 2, weights="push")
    x = np.random.default_rng(0).integers(-64, 64, (12, 3)).astype(float)
    swarm = Swarm(PushSum(grid=2.0**-32), links, x, np.random.default_rng(1), Weather(0.1, 0.1, 0.3))
    for round in range(500):
        swarm.round(round)
        sums, weight = ledger(swarm.states)
        assert weight == 12.0
        assert np.array_equal(sums, x.sum(axis=0))
    # What is in flight lies on links that are drawn again now and then only.
    np.testing.assert_allclose(swarm.params(), np.tile(x.mean(axis=0), (12, 1)), atol=1e-4)


def test_a_pairwise_exchange_moves_both_sides_or_neither() -> None:
    links = topology.small_world(12, seed=2)
    x = start_of(12)
    swarm = Swarm(PairwiseExchange(), links, x, np.random.default_rng(1), Weather(0.2, 0.2, 0.2))
    for round in range(400):
        swarm.round(round)
        total = sum(swarm.params())
        for me, state in swarm.states.items():
            if state.asked is not None:  # its answer may have been given and not have come
                n, moved = swarm.states[state.asked].answered.get(me, (0, None))
                total = total - (moved if n == state.n and moved is not None else 0.0)
        np.testing.assert_allclose(total, x.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(swarm.params(), np.tile(x.mean(axis=0), (12, 1)), atol=1e-3)


@pytest.mark.parametrize("strategy", [PushSum(), PlainPushSum()], ids=repr)
@pytest.mark.parametrize(
    "links", [topology.exponential(6), topology.random_senders(6, 2, weights="push")], ids=["static", "drawn"]
)
def test_packets_that_are_late_or_lost_do_the_same_in_both_forms(strategy: Strategy[Any], links: Topology) -> None:
    draws, peers = np.random.default_rng(8), links.peers
    x = start_of(peers)
    state, states = strategy.start(x), [strategy.start(row) for row in x]
    coming: dict[int, list[tuple[int, int, Any]]] = {}
    for round in range(40):
        exchange = Exchange(round, links.weights(round), draws)
        lag = draws.integers(-1, 4, len(exchange.values))
        lags = dict(zip(zip(exchange.senders.tolist(), exchange.receivers.tolist(), strict=True), lag, strict=True))
        state, _ = strategy.mix(state, Exchange(round, links.weights(round), draws, lag))
        for peer in range(peers):
            states[peer], outbox = strategy.send(states[peer], round, links.links(peer, round), draws)
            for receiver, packet in outbox.items():
                if (late := int(lags[peer, receiver])) >= 0:
                    coming.setdefault(round + late, []).append((peer, receiver, packet))
        for sender, receiver, packet in coming.pop(round, []):
            states[receiver], _ = strategy.receive(states[receiver], sender, packet)
        params = [strategy.params(each) for each in states]
        np.testing.assert_allclose(strategy.params(state), params, rtol=1e-11, atol=1e-12)


WRONG: dict[str, dict[str, float]] = {
    "loss": {"loss": 0.3},
    "delay": {"delay": 3},
    "loss and delay": {"loss": 0.2, "delay": 2},
    "churn": {"churn": 0.3},
    "loss and churn": {"loss": 0.2, "churn": 0.2},
    "all": {"loss": 0.1, "delay": 2, "churn": 0.2},
}
"""What goes wrong, as `simulate` takes it."""


def drawn_lags(seed: int, loss: float = 0.0, delay: float = 0, churn: float = 0.0) -> Any:
    """(count) -> lags, the same for the same seed."""
    draws = np.random.default_rng(seed)

    def lags(count: int) -> Any:
        found = draws.integers(0, int(delay) + 1, count)
        found[draws.random(count) < loss] = -1
        return found

    return lags


class Late:
    """All peers with messages of their own, in rounds, each packet as late as it is told to be."""

    def __init__(self, strategy: Strategy[Any], x: Array, chance: np.random.Generator, later: Any) -> None:
        self.strategy, self.chance, self.later = strategy, chance, later
        self.states = [strategy.start(row) for row in x]
        self.flying: list[tuple[int, int, int, Any]] = []
        self.nbytes = 0

    def post(self, round: int, sender: int, outbox: Any, lags: Any) -> None:
        for receiver, packet in outbox.items():
            self.nbytes += packet.nbytes
            lag = lags[sender, receiver] if (sender, receiver) in lags else int(self.later(1)[0])
            if lag >= 0:
                self.flying.append((round + lag, sender, receiver, packet))

    def mix(self, round: int, weights: Any, lags: Any) -> None:
        links = topology.all_links(weights)
        for peer, each in enumerate(links):
            self.states[peer], outbox = self.strategy.send(self.states[peer], round, each, self.chance)
            self.post(round, peer, outbox, lags)
        while due := [flight for flight in self.flying if flight[0] <= round]:
            self.flying.remove(due[0])
            _, sender, receiver, packet = due[0]
            self.states[receiver], replies = self.strategy.receive(self.states[receiver], sender, packet)
            self.post(round, receiver, replies, {})
        self.states = [self.strategy.finish(state, round, each) for state, each in zip(self.states, links, strict=True)]

    def params(self) -> Array:
        return np.array([self.strategy.params(state) for state in self.states])


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    ("strategy", "links"),
    [*PAIRS, (PairwiseExchange(), topology.ring(8)), (DeltaBroadcast(0.2), topology.complete(5))],
    ids=lambda each: str(getattr(each, "name", each)),
)
def test_whatever_goes_wrong_both_forms_compute_the_same_or_it_is_refused(
    strategy: Strategy[Any], links: Topology, wrong: str
) -> None:
    options = WRONG[wrong]
    x = np.tile(start_of(1), (links.peers, 1)) if topology.Needs.EXACT in strategy.needs else start_of(links.peers)
    try:
        simulate(links, strategy, start=x, rounds=0, **options)  # type: ignore[arg-type]
    except UsageError:
        assert not isinstance(strategy, PushSum | PlainPushSum), "these bear everything"
        return
    absences, lags = np.random.default_rng(2), drawn_lags(7, **options)
    swarm = Late(strategy, x, np.random.default_rng(5), drawn_lags(9, **options))
    later, chance = drawn_lags(9, **options), np.random.default_rng(5)
    state, sent, ages = strategy.start(x), 0, Counter[int]()
    for round in range(30):
        absent = absences.random(links.peers) < options.get("churn", 0.0)
        deltas = training(swarm.params(), round) * ~absent[:, None]
        state = strategy.local(state, deltas, round)
        swarm.states = [strategy.local(each, delta, round) for each, delta in zip(swarm.states, deltas, strict=True)]
        mixing = strategy.mixing_round(round)
        if mixing is None:
            state, swarm.states = strategy.rest(state), [strategy.rest(each) for each in swarm.states]
            continue
        weights = without(links.weights(mixing), absent, strategy.needs)
        weights.sum_duplicates()
        weights.eliminate_zeros()
        exchange = Exchange(mixing, weights, chance)
        drawn = lags(len(exchange.values))
        exchange = exchange.delayed(drawn, later)
        state, nbytes = strategy.mix(state, exchange)
        ends = zip(exchange.senders.tolist(), exchange.receivers.tolist(), strict=True)
        swarm.mix(mixing, weights, dict(zip(ends, drawn.tolist(), strict=True)))
        sent += nbytes
        ages.update(strategy.ages(state, exchange))
        np.testing.assert_allclose(strategy.params(state), swarm.params(), rtol=1e-9, atol=1e-11)
    assert swarm.nbytes == sent
    assert sent == 0 or sum(ages.values()) > 0


def test_a_pair_whose_packets_are_late_meets_late_and_the_ledger_counts_what_is_under_way() -> None:
    result = simulate(topology.random_matching(16, seed=1), PairwiseExchange(), parameters=4, rounds=120, delay=4)
    assert sum(result.staleness.values()) > 5 * 120, "offers, answers, and offers again"
    fell = (result.distances[120] / result.distances[0]) ** (1 / 240)
    assert fell < 0.96, "where pairs were let go whose packets did not both come in their round it was .987"
    for record in result.records:
        np.testing.assert_allclose(record.mass, result.start.mass, atol=1e-12)


@pytest.mark.parametrize("strategy", [DPsgd(), EpidemicLearning(), ClippedGossip(0.5), GradientTracking()], ids=repr)
def test_a_packet_that_is_missing_when_the_round_ends_leaves_its_weight_to_the_own_value(
    strategy: Strategy[Any],
) -> None:
    links, draws = topology.ring(6), np.random.default_rng(8)
    x = start_of(6)
    state, states = strategy.start(x), [strategy.start(row) for row in x]
    for round in range(10):
        exchange = Exchange(round, links.weights(round), draws)
        lag = -draws.integers(0, 2, len(exchange.values))
        state, _ = strategy.mix(state, Exchange(round, links.weights(round), draws, lag))
        arrives = zip(exchange.senders.tolist(), exchange.receivers.tolist(), lag.tolist(), strict=True)
        outboxes = []
        for peer in range(6):
            states[peer], outbox = strategy.send(states[peer], round, links.links(peer, round), draws)
            outboxes.append(outbox)
        for sender, receiver, late in arrives:
            if late == 0:
                states[receiver], _ = strategy.receive(states[receiver], sender, outboxes[sender][receiver])
        states = [strategy.finish(each, round, links.links(peer, round)) for peer, each in enumerate(states)]
        np.testing.assert_allclose(strategy.params(state), [strategy.params(each) for each in states], atol=1e-12)
    alike = strategy.start(np.ones((6, 2)))
    lag = np.array([-1, 0] * 6)
    alike, _ = strategy.mix(alike, Exchange(0, links.weights(0), draws, lag))
    np.testing.assert_allclose(strategy.params(alike), 1.0, atol=1e-15)


def test_float32_parameters_stay_float32_where_they_may() -> None:
    x = start_of(8).astype(np.float32)
    for strategy, links in PAIRS:
        if links.peers != 8 or isinstance(strategy, PushSum):  # running totals need all the bits
            continue
        swarm = Swarm(strategy, links, x, np.random.default_rng(5))
        state = strategy.start(x)
        for round in range(4):
            swarm.round(round)
            if (mixing := strategy.mixing_round(round)) is not None:
                exchange = Exchange(mixing, links.weights(mixing), np.random.default_rng(5))
                state, _ = strategy.mix(state, exchange)
        assert swarm.params().dtype == np.float32, strategy
        assert strategy.params(state).dtype == np.float32, strategy


class Refusing(sparse.csr_array):  # type: ignore[misc]  # scipy ships no types
    """A matrix that is not multiplied as it is, in float64: that took ten times as long."""

    def __matmul__(self, other: Any) -> Any:
        assert other.dtype == np.float64
        return super().__matmul__(other)


def test_float32_is_averaged_in_float32_and_a_consensus_stays_what_it_is() -> None:
    x = np.random.default_rng(0).standard_normal((16, 20)).astype(np.float32)
    for links in (topology.ring(16), topology.exponential(16), topology.small_world(16)):
        seen = Refusing(links.weights(0))
        np.testing.assert_allclose(averaged(seen, x), links.weights(0) @ x.astype(float), atol=1e-6)
        alike = np.full((16, 1), 1.1, np.float32)
        for _ in range(3_000):
            alike = averaged(links.weights(0), alike)
        np.testing.assert_allclose(alike, 1.1, rtol=1e-5)


def test_shares_that_arrive_at_once_are_not_written_down() -> None:
    links, draws = topology.exponential(64), drawn_lags(1, loss=0.1)
    strategy, chance = PushSum(), np.random.default_rng(0)
    state = strategy.start(start_of(64))
    for round in range(100):
        exchange = Exchange(round, links.weights(round), chance)
        state, _ = strategy.mix(state, exchange.delayed(draws(len(exchange.values))))
        assert state.network is not None
        assert len(state.network.keys) < 0.25 * len(exchange.values), "those that were lost, until one comes"
        assert len(state.network.replicas) <= REPLICAS_MAX + 1


# ---- composition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "DPsgd()",
        "Choco(gamma=0.2)",
        "Every(4, Compressed(TopK(0.01), Choco()))",
        "Every(500, DiLoCo(momentum=0.5))",
        "Compressed(Chain(TopK(0.01), Int8()), DiLoCo())",
        "PairwiseExchange(share=0.25)",
        "ClippedGossip(2.0)",
        "PushSum(grid=0.25)",
        "RelaySum()",
        "OneWayPull(amount=0.3)",
        "CompressedReplicas(TopK(0.1))",
    ],
)
def test_a_strategy_prints_as_one_writes_it(text: str) -> None:
    strategy = eval(text)
    assert repr(strategy) == text
    assert eval(text) == strategy


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Compressed(TopK(0.1), DPsgd()), r"DPsgd sends whole replicas.*What composes: Choco\(\)"),
        (lambda: Compressed(TopK(0.1), PushSum()), "PushSum sends running totals, which are dense"),
        (lambda: Compressed(TopK(0.1), GradientTracking()), "does not compose: GradientTracking sends"),
        (lambda: Compressed(TopK(0.1), Every(4, Choco())), r"Every\(4, Compressed\(TopK\(0.1\), Choco\(\)\)\)"),
        (
            lambda: Compressed(Int8(), Compressed(TopK(0.1), Choco())),
            r"write Compressed\(Chain\(TopK\(0.1\), Int8\(\)\), Choco\(\)\)",
        ),
        (lambda: Compressed(Rows(), Choco()), r"packets are flat: Rows\(\) of an array of shape \(2,\)"),
        (lambda: Every(2, Every(3, DPsgd())), r"write Every\(6, DPsgd\(\)\)"),
        (lambda: Every(2, GradientTracking()), "GradientTracking corrects each local step"),
        (lambda: Every(0, DPsgd()), "expected a number of rounds from 1"),
        (lambda: Choco(gamma=2.0), "gamma 2.0, expected more than 0"),
        (lambda: NoLoCo(gamma=0.3), "gamma 0.3 with alpha 0.5, expected more than alpha"),
        (lambda: PairwiseExchange(0.7), "share 0.7"),
        (lambda: PushSum(grid=0.3), "expected a power of two"),
        (lambda: DiLoCo().start(start_of(3)), "start from different parameters"),
        (lambda: DPsgd().start(np.zeros((2, 2, 2))), r"shape \(2, 2, 2\)"),
    ],
)
def test_what_does_not_compose_is_refused_when_it_is_put_together(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_a_sum_over_a_given_number_of_peers_is_of_so_many() -> None:
    RelaySum(4).check(topology.path(4))
    with pytest.raises(UsageError, match=r"RelaySum\(peers=3\) on path of 4 peers, expected 3"):
        RelaySum(3).check(topology.path(4))
    with pytest.raises(UsageError, match=r"RelaySum\(peers=1\), expected the number of peers of the tree, at least 2"):
        RelaySum(1)


@pytest.mark.parametrize(
    ("strategy", "links", "says"),
    [
        (DPsgd(), topology.star(5, weights="push"), "the row of peer"),
        (PushSum(), topology.star(5, weights="uniform"), "the column of peer 0"),
        (Choco(), topology.one_peer_hypercube(8), "changes its links"),
        (Choco(), topology.exponential(7), "expected the same in both directions"),
        (DiLoCo(), topology.ring(6), "hears 3 of 6 peers"),
        (NoLoCo(), topology.ring(6), "expected one partner"),
        (RelaySum(), topology.ring(6), "6 links between 6 peers, expected 5, a tree"),
        (PairwiseExchange(), topology.directed_ring(6), "expected the same in both directions"),
    ],
)
def test_a_topology_that_breaks_the_promise_is_refused(strategy: Strategy[Any], links: Topology, says: str) -> None:
    with pytest.raises(UsageError, match=f"does not fit: .*{says}"):
        strategy.check(links)


def test_every_goes_through_all_graphs_of_a_topology_that_changes() -> None:
    links = topology.one_peer_exponential(8)  # a period of three: Every(3) would always see the same graph
    result = simulate(links, Every(3, DPsgd()), rounds=9)
    assert result.records[-1].distance < 1e-30
    assert [record.links for record in result.records] == [0, 0, 8] * 3
