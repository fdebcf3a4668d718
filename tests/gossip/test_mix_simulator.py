"""Swarms that mix on virtual time, against the vectorized simulator, under loss, and with peers that come and go."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.faults import Disruption, Faults
from gossip.membership import Detection
from gossip.messages import PeerId
from gossip.mix_peer import MixSettings
from gossip.mix_simulator import MixSimulation
from gossip.mixing import (
    ClippedGossip,
    CombineThenAdapt,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    PairwiseExchange,
    PushSum,
    Strategy,
)
from gossip.mixing.push_sum import ledger
from gossip.neighbors import Plan, number_of
from gossip.simulator import Network
from gossip.vectorized import simulate

SLOW = MixSettings(round_s=1.0, gap_s=1.0)
"""A round begins once a second, and is over long before the next."""


def starts(peers: int, parameters: int = 5) -> Array:
    return np.random.default_rng(3).standard_normal((peers, parameters))


def swarm_of(x: Array, strategy: Strategy[Any], build: Any, **options: Any) -> MixSimulation:
    options = {"seed": 1, "network": Network(delay_mean_s=0.005), **options}
    return MixSimulation(len(x), lambda index: {"w": x[index]}, Plan(build, strategy), **options)


def step(x: Array, round: int) -> Array:
    """Training towards minima that differ from peer to peer."""
    return -0.1 * (x - np.arange(len(x))[:, None] + 0.01 * round)


@pytest.mark.parametrize(
    ("strategy", "build", "peers"),
    [
        (DPsgd(), topology.ring, 8),
        (DPsgd(), topology.one_peer_exponential, 6),
        (CombineThenAdapt(), topology.torus, 9),
        (ClippedGossip(0.7), topology.ring, 8),
        (EpidemicLearning(), topology.random_senders, 7),
        (GradientTracking(), topology.ring, 6),
        (Every(3, DPsgd()), topology.one_peer_exponential, 6),
        (PairwiseExchange(), topology.random_matching, 8),
    ],
    ids=lambda each: getattr(each, "__name__", repr(each)),
)
def test_with_messages_and_vectorized_a_strategy_computes_the_same(
    strategy: Strategy[Any], build: Any, peers: int
) -> None:
    rounds, x = 12, starts(peers)
    swarm = swarm_of(x, strategy, build, mixing=SLOW)
    for round in range(rounds):
        swarm.run(round + 0.9)
        assert swarm.rounds() == round
        for me, delta in zip(swarm.peers, step(swarm.params(), round), strict=True):
            swarm.compute(swarm.now, me, {"w": delta})
        swarm.run(swarm.now)
        if round == 0:
            swarm.at(1.0, swarm.resume)
    swarm.run(rounds + 0.9)
    result = simulate(build(peers), strategy, rounds=rounds, start=x, gradient=step)
    np.testing.assert_allclose(swarm.params(), result.params, rtol=1e-12, atol=1e-12)
    assert sum(mixer.given_up for mixer in swarm.mixers.values()) == 0


@pytest.mark.parametrize("build", [topology.exponential, topology.one_peer_exponential])
def test_push_sum_keeps_the_mass_that_the_vectorized_form_keeps(build: Any) -> None:
    x = starts(8)
    swarm = swarm_of(x, PushSum(), build, network=Network(loss=0.2, duplication=0.2, delay_mean_s=0.03))
    swarm.resume()
    for time in range(1, 8):
        swarm.run(time)
        for me in swarm.peers:
            swarm.compute(time, me, {"w": np.zeros(5)})
        sums, weight = ledger({number_of(me): mixer.state for me, mixer in swarm.mixers.items()})
        result = simulate(build(8), PushSum(), rounds=time, start=x, loss=0.2)
        np.testing.assert_allclose(sums, result.records[-1].mass, atol=1e-12)
        assert weight == pytest.approx(result.records[-1].weight, abs=1e-12)
    assert 0 < swarm.distance() < np.ptp(x, axis=0).max()


def test_mass_is_exact_whatever_the_network_does() -> None:
    x = np.random.default_rng(0).integers(-64, 64, (10, 3)).astype(float)
    swarm = swarm_of(
        x, PushSum(grid=2.0**-32), topology.exponential, network=Network(loss=0.3, duplication=0.3, delay_mean_s=0.1)
    )
    swarm.resume()
    moving = 0
    for time in range(1, 15):
        swarm.run(time)
        states = {number_of(me): mixer.state for me, mixer in swarm.mixers.items()}
        sums, weight = ledger(states)
        assert weight == 10.0
        np.testing.assert_array_equal(sums, x.sum(axis=0))
        moving += sum(state.w[0] for state in states.values()) != 10.0
    assert moving > 5, "mass was under way when it was counted"
    assert swarm.distance() < 3.0


def test_once_all_are_drained_nothing_is_under_way() -> None:
    x = starts(9)
    swarm = swarm_of(x, PushSum(), topology.exponential, network=Network(loss=0.2, delay_mean_s=0.02))
    swarm.resume()
    swarm.run(5.0)
    swarm.run_until_drained(100.0)
    assert [host.drained for host in swarm.peers.values()] == [()] * 9
    states = [mixer.state for mixer in swarm.mixers.values()]
    np.testing.assert_allclose(sum(state.x for state in states), x.sum(axis=0), atol=1e-12)
    assert sum(state.w[0] for state in states) == pytest.approx(9.0, abs=1e-12)
    weights = [mixer.weight for mixer in swarm.mixers.values()]
    np.testing.assert_allclose(np.average(swarm.params(), axis=0, weights=weights), x.mean(axis=0), atol=1e-12)
    before = swarm.params()
    swarm.run(swarm.now + 100.0)
    np.testing.assert_array_equal(swarm.params(), before)


@pytest.mark.parametrize(
    ("strategy", "build", "tolerance"),
    [(PairwiseExchange(), topology.small_world, 1e-12), (PairwiseExchange(0.25), topology.random_matching, 1e-12)],
    ids=lambda each: getattr(each, "__name__", repr(each)),
)
def test_drained_pairs_have_kept_the_mean(strategy: Strategy[Any], build: Any, tolerance: float) -> None:
    x = starts(8)
    network, mixing = Network(loss=0.1, duplication=0.1, delay_mean_s=0.01), MixSettings(round_s=0.2)
    swarm = swarm_of(x, strategy, build, network=network, mixing=mixing)
    swarm.resume()
    swarm.run(10.0)
    swarm.network = Network(delay_mean_s=0.01)
    swarm.run(14.0)
    swarm.run_until_drained(100.0)
    np.testing.assert_allclose(swarm.params().mean(axis=0), x.mean(axis=0), atol=tolerance)
    assert swarm.distance() < 0.1 * np.ptp(x, axis=0).max()


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> tuple[str, bytes]:
        network = Network(loss=0.2, duplication=0.2)
        swarm = swarm_of(starts(6), PushSum(), topology.exponential, seed=seed, network=network)
        swarm.resume()
        swarm.run(3.0)
        return swarm.digest.hexdigest(), swarm.params().tobytes()

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("strategy", [PushSum(), DPsgd(), PairwiseExchange()], ids=repr)
def test_the_living_agree_though_peers_crash_pause_come_late_and_are_cut_off(strategy: Strategy[Any]) -> None:
    x = starts(8)
    mixing = MixSettings(round_s=0.3, detection=Detection())
    swarm = swarm_of(x, strategy, topology.complete, network=Network(delay_mean_s=0.01), mixing=mixing)
    faults = Faults(partitions=((4.0, 9.0, True),), crashes=(2.0,), pauses=((12.0, 3.0),), joins=(6.0, 16.0))
    disruption = Disruption(swarm, faults, random.Random(4))
    swarm.resume()
    swarm.run(30.0)
    assert len(disruption.crashed_at) == 1
    assert len(swarm.live()) == 9
    for me in swarm.live():
        assert set(swarm.mixers[me].neighbors.live) == set(swarm.live()), "who is dead, and who only was away"
    assert swarm.distance() < 1e-6
    low, high = x.min(axis=0), x.max(axis=0)
    assert np.all((low <= swarm.params()) & (swarm.params() <= high)), "no mean lies outside of what it is of"


def test_a_crash_takes_its_mass_and_the_others_go_on() -> None:
    x = starts(6)
    mixing = MixSettings(round_s=0.2, detection=Detection())
    swarm = swarm_of(x, PushSum(), topology.exponential, mixing=mixing)
    swarm.resume()
    swarm.run(1.1)
    gone = swarm.mixers[PeerId("p002")].weight
    swarm.crash(PeerId("p002"))
    swarm.run(15.0)
    swarm.run_until_drained(10.0)
    weights = np.array([swarm.mixers[me].weight for me in swarm.live()])
    assert weights.sum() == pytest.approx(6.0 - gone, abs=0.3), "what was under way to it came back"
    assert swarm.distance() < 1e-6


def test_a_large_swarm_needs_to_know_its_neighbors_only() -> None:
    x = starts(64, 2)
    swarm = swarm_of(x, PushSum(), topology.one_peer_exponential, only_neighbors=True)
    assert max(len(mixer.neighbors.live) for mixer in swarm.mixers.values()) == 64
    assert max(len(hearers) for hearers in swarm._hearers.values()) == 6
    swarm.resume()
    swarm.run(2.0)
    swarm.run_until_drained()
    assert swarm.distance() < 1e-3
    with pytest.raises(UsageError, match="new neighbors each round"):
        swarm_of(x, PushSum(), partial(topology.random_senders, weights="push"), only_neighbors=True)


def test_a_topology_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="7"):
        swarm_of(starts(7), DPsgd(), topology.hypercube)
    with pytest.raises(UsageError, match="DPsgd"):
        swarm_of(starts(6), DPsgd(), partial(topology.random_senders, weights="push"))
    ring = topology.ring(5)
    with pytest.raises(UsageError, match="5 peers, and there are 6"):
        swarm_of(starts(6), DPsgd(), lambda peers: ring)
