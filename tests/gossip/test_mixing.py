"""Strategies: what each promises, in both forms, and that the two forms are one."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Array
from gossip.compression import Chain, Float16, Int8, RandomK, Sign, Threshold, TopK
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
from gossip.mixing.bad import CompressedReplicas, OneWayPull, PlainPushSum, PubSubAveraging
from gossip.mixing.push_sum import ledger
from gossip.mixing.rounds import Swarm, Weather
from gossip.mixing.strategy import Exchange
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
    (RelaySum(9), topology.graph(nx.balanced_tree(2, 3).subgraph(range(9)))),
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
