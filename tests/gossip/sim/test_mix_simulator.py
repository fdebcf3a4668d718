"""Swarms that mix on virtual time, against the vectorized simulator, under loss, and with peers that come and go."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Array, Packed
from gossip.compression import TopK
from gossip.errors import UsageError
from gossip.events import Computed, Tasked
from gossip.membership import Detection
from gossip.messages import PeerId
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
from gossip.mixing.neighbors import Plan, number_of
from gossip.mixing.peer import MixSettings
from gossip.mixing.strategies.push_sum import ledger
from gossip.sim.faults import Disruption, Faults
from gossip.sim.mix_simulator import MixSimulation
from gossip.sim.simulator import Network
from gossip.sim.vectorized import simulate

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


IN_STEP = [
    (DPsgd(), topology.ring, 8),
    (DPsgd(), topology.complete, 4),
    (DPsgd(), topology.one_peer_exponential, 6),
    (CombineThenAdapt(), topology.torus, 9),
    (ClippedGossip(0.7), topology.ring, 8),
    (Choco(0.8), topology.ring, 5),
    (Compressed(TopK(0.4), Choco(0.3)), topology.ring, 5),
    (Every(3, DPsgd()), topology.one_peer_exponential, 6),
    (Every(2, Compressed(TopK(0.4), Choco(0.3))), topology.ring, 4),
    (GradientTracking(), topology.ring, 6),
    (EpidemicLearning(), topology.random_senders, 7),
    (DiLoCo(), topology.complete, 4),
    (Every(4, DiLoCo()), topology.complete, 5),
    (NoLoCo(), topology.random_matching, 6),
    (RelaySum(), topology.path, 6),
]
in_step = pytest.mark.parametrize(
    ("strategy", "build", "peers"), IN_STEP, ids=lambda each: getattr(each, "__name__", repr(each))
)


def trained(strategy: Strategy[Any], build: Any, x: Array, rounds: int, ends: Mapping[int, int]) -> MixSimulation:
    """A swarm whose peers have trained, each with so many steps; a peer in `ends` with fewer."""
    swarm = swarm_of(x, strategy, build)
    swarm.resume()
    swarm.task(1)
    chance = random.Random(5)
    for index, me in enumerate(swarm.peers):

        def gradient(params: Array, round: int, index: int = index) -> Array:
            return step(np.tile(params, (len(x), 1)), round)[index]

        compute(swarm, me, gradient, ends.get(index, rounds), chance)
    swarm.run_while(lambda: any(mixer.settled < ends.get(i, rounds) for i, mixer in enumerate(swarm.mixers.values())))
    swarm.run(swarm.now + 3.0)
    return swarm


def compute(
    swarm: MixSimulation, me: PeerId, gradient: Callable[[Array, int], Array], steps: int, chance: random.Random
) -> None:
    """A task of `me`: so many gradients, each on the replica that has the step before. They take their time, as do
    packets."""
    mixer, host, taken = swarm.mixers[me], swarm.peers[me], 0

    def go_on() -> None:
        nonlocal taken
        if not mixer.ready or mixer.settled < taken or swarm.now < host.paused_until:
            swarm.at(swarm.now + 0.01, go_on)
        elif taken == steps:
            swarm.happen(me, Tasked(0))
        elif host.alive:
            if not taken:
                swarm.happen(me, Tasked(1))
            delta = gradient(mixer.params(), taken)
            taken += 1
            swarm.happen(me, Computed(Packed.of({"w": delta})))
            swarm.at(swarm.now + chance.expovariate(5.0), go_on)

    swarm.at(swarm.now + chance.random(), go_on)


def until(ends: Mapping[int, int], idle: Callable[[Array], Array]) -> Callable[[Array, int], Array]:
    """`step` of those that have not ended; of the others what `idle` makes of their last one."""
    last: dict[int, Array] = {}

    def taken(x: Array, round: int) -> Array:
        steps = step(x, round)
        for index, end in ends.items():
            if round < end:
                last[index] = steps[index].copy()
            else:
                steps[index] = idle(last[index])
        return steps

    return taken


@in_step
def test_with_messages_and_vectorized_a_strategy_computes_the_same(
    strategy: Strategy[Any], build: Any, peers: int
) -> None:
    x = starts(peers)
    x = np.tile(x[0], (peers, 1)) if build is topology.complete else x
    swarm = trained(strategy, build, x, 12, {})
    result = simulate(build(peers), strategy, rounds=12, start=x, gradient=step)
    assert [mixer.rounds for mixer in swarm.mixers.values()] == [12] * peers
    np.testing.assert_allclose(swarm.params(), result.params, rtol=1e-12, atol=1e-12)
    assert sum(mixer.figures.given_up for mixer in swarm.mixers.values()) == 0


@in_step
def test_who_ends_early_follows_without_steps(strategy: Strategy[Any], build: Any, peers: int) -> None:
    x = starts(peers)
    x = np.tile(x[0], (peers, 1)) if build is topology.complete else x
    ends = {0: 7, 2: 10}
    swarm = trained(strategy, build, x, 12, ends)
    idle = (lambda last: last) if isinstance(strategy, GradientTracking) else np.zeros_like
    result = simulate(build(peers), strategy, rounds=12, start=x, gradient=until(ends, idle))
    assert [mixer.rounds for mixer in swarm.mixers.values()] == [12] * peers
    np.testing.assert_allclose(swarm.params(), result.params, rtol=1e-12, atol=1e-12)
    if not strategy.says_nothing(is_trained=True) and not isinstance(strategy, EpidemicLearning | GradientTracking):
        np.testing.assert_allclose(swarm.params().mean(axis=0), result.mean, rtol=1e-12, atol=1e-12)
    before = swarm.params().mean(axis=0)
    apart = swarm.distance()
    swarm.settle()
    swarm.run(swarm.now + 20.0)
    swarm.run_until_drained(30.0)
    assert swarm.distance() <= 1e-9 * max(1.0, apart)
    if not isinstance(strategy, EpidemicLearning | RelaySum):
        np.testing.assert_allclose(swarm.params().mean(axis=0), before, rtol=1e-12, atol=1e-12)
    assert sum(mixer.figures.given_up + mixer.figures.refused for mixer in swarm.mixers.values()) == 0


def test_a_consensus_that_is_reached_sends_nothing_more() -> None:
    x = np.tile(starts(1), (4, 1))
    swarm = trained(Every(20, DPsgd()), topology.complete, x, 16, {})
    assert [mixer.figures.received for mixer in swarm.mixers.values()] == [0] * 4, "16 steps are no reason to mix"
    swarm.settle()
    swarm.run(swarm.now + 60.0)
    assert max(mixer.figures.received for mixer in swarm.mixers.values()) <= 2 * 3


def test_a_second_training_is_like_the_first() -> None:
    x = np.tile(starts(1), (4, 1))
    swarm = trained(Every(4, DiLoCo()), topology.complete, x, 8, {})
    swarm.settle()
    swarm.run(swarm.now + 5.0)
    swarm.run_until_drained()
    y = swarm.params().copy()
    swarm.resume()
    for round in range(8):
        for me, delta in zip(swarm.peers, step(swarm.params(), round), strict=True):
            swarm.compute(swarm.now, me, {"w": delta})
        swarm.run(swarm.now + 0.9)
    result = simulate(topology.complete(4), Every(4, DiLoCo()), rounds=8, start=np.tile(y[0], (4, 1)), gradient=step)
    np.testing.assert_allclose(swarm.params(), result.params, rtol=1e-12, atol=1e-12)


def test_pairs_of_a_matching_meet_by_the_clock_as_they_do_vectorized() -> None:
    rounds, x = 12, starts(8)
    swarm = swarm_of(x, PairwiseExchange(), topology.random_matching, mixing=SLOW)
    for round in range(rounds):
        swarm.run(round + 0.9)
        assert swarm.rounds() == round
        for me, delta in zip(swarm.peers, step(swarm.params(), round), strict=True):
            swarm.compute(swarm.now, me, {"w": delta})
        swarm.run(swarm.now)
        if round == 0:
            swarm.at(1.0, swarm.resume)
    swarm.run(rounds + 0.9)
    result = simulate(topology.random_matching(8), PairwiseExchange(), rounds=rounds, start=x, gradient=step)
    np.testing.assert_allclose(swarm.params(), result.params, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", [topology.exponential, topology.one_peer_exponential])
def test_push_sum_keeps_the_mass_that_the_vectorized_form_keeps(build: Any) -> None:
    x = starts(8)
    swarm = swarm_of(x, PushSum(), build, network=Network(loss=0.2, duplication=0.2, delay_mean_s=0.03))
    swarm.resume()
    for time in range(1, 8):
        swarm.run(time)
        for me in swarm.peers:
            swarm.compute(time, me, {"w": np.zeros(5)})
        sums, weight = ledger({number_of(me): mixer.mixer.state for me, mixer in swarm.mixers.items()})
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
        states = {number_of(me): mixer.mixer.state for me, mixer in swarm.mixers.items()}
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
    assert [host.missing for host in swarm.peers.values()] == [()] * 9
    states = [mixer.mixer.state for mixer in swarm.mixers.values()]
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
    swarm.run(30.0)
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
    if strategy.synchronous:
        swarm.settle()
    swarm.run(40.0)
    assert len(disruption.crashed_at) == 1
    assert len(swarm.live()) == 9
    for me in swarm.live():
        assert set(swarm.mixers[me].neighbors.live) == set(swarm.live()), "who is dead, and who only was away"
    assert swarm.distance() < 1e-6
    low, high = x.min(axis=0), x.max(axis=0)
    assert np.all((low <= swarm.params()) & (swarm.params() <= high)), "no mean lies outside of what it is of"


CHURN = {
    "crash": Faults(crashes=(2.0,)),
    "late": Faults(joins=(2.0,)),
    "cut": Faults(partitions=((2.0, 12.0, True),)),
    "pause": Faults(pauses=((2.0, 3.0),)),
}


@pytest.mark.parametrize("kind", CHURN)
@pytest.mark.parametrize(
    ("strategy", "build"),
    [
        (DPsgd(), topology.ring),
        (CombineThenAdapt(), topology.ring),
        (GradientTracking(), topology.ring),
        (Every(3, DPsgd()), topology.complete),
        (PushSum(), topology.exponential),
        (Every(3, PushSum()), topology.exponential),
    ],
    ids=lambda each: getattr(each, "__name__", repr(each)),
)
def test_whoever_comes_or_goes_all_others_train_to_the_end_and_agree(
    strategy: Strategy[Any], build: Any, kind: str
) -> None:
    start, steps, chance = starts(1, 3), 25, random.Random(2)
    x = np.tile(start, (5, 1))
    network = Network(delay_mean_s=0.01, loss=0.02)
    swarm = swarm_of(x, strategy, build, network=network, mixing=MixSettings(detection=Detection()))
    Disruption(swarm, CHURN[kind], random.Random(1))
    swarm.resume()
    for me in swarm.peers:
        compute(swarm, me, lambda params, round: -0.05 * (params - 2.0), steps, chance)
    swarm.run(2.5)
    for me in set(swarm.peers) - set(swarm._members):
        compute(swarm, me, lambda params, round: -0.05 * (params - 2.0), steps, chance)
    swarm.run_while(lambda: swarm.now < 120.0 and any(swarm.mixers[me].settled < steps for me in swarm.live()))
    assert [swarm.mixers[me].settled for me in swarm.live()] == [steps] * len(swarm.live())
    swarm.run(max(swarm.now, 15.0))
    swarm.settle()
    swarm.run(swarm.now + 10.0)
    swarm.run_until_drained(30.0)
    assert swarm.distance() < 1e-4
    reached = (swarm.params() - start) / (2.0 - start)
    assert np.all((reached > 0.5) & (reached < 1.0)), "25 steps go 72 % of the way"
    assert not any(mixer.figures.refused for mixer in swarm.mixers.values())


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
