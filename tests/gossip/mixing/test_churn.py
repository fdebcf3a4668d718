"""What every strategy promises when peers crash, leave, come late, or are cut off and come back.

Peers train for a few steps towards different goals, so that their replicas and what they remember differ. Then all
steps are of length zero, and somebody comes or goes. Once everybody knows of it, the mean must not move any more, all
must agree, and nothing may drift, however long they go on.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import numpy as np
import pytest

from gossip import mixing, topology
from gossip.arrays import Array, Packed
from gossip.compression import Int8, TopK
from gossip.events import Computed, Leaving, Tasked
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
from gossip.topology import Links, Topology

PEERS, PARAMETERS = 6, 4
STEPS = 20
"""Of length zero; then they go on for ten times as long."""


@dataclass(frozen=True)
class Case:
    """A strategy, and how much of its mean stays where it is."""

    strategy: Strategy[Any]
    build: Callable[[int], Topology]
    keeps_mean: bool = True
    """From when all know of who came or went. Else from when all agree: its docstring says why."""


CASES = [
    Case(DPsgd(), topology.ring),
    Case(DPsgd(), topology.exponential),
    Case(DPsgd(), topology.one_peer_exponential),
    Case(CombineThenAdapt(), topology.ring),
    Case(ClippedGossip(0.7), topology.ring),
    Case(EpidemicLearning(), topology.random_senders, keeps_mean=False),
    Case(PushSum(), topology.exponential),
    Case(PairwiseExchange(), topology.complete),
    Case(Choco(), topology.ring),
    Case(Compressed(TopK(0.5), Choco(0.4)), topology.ring),
    Case(Compressed(Int8(), Choco()), topology.ring),
    Case(Every(2, Compressed(TopK(0.5), Choco(0.4))), topology.complete),
    Case(DiLoCo(momentum=0.5), topology.complete, keeps_mean=False),
    Case(Every(2, Compressed(TopK(0.5), DiLoCo(momentum=0.3))), topology.complete, keeps_mean=False),
    Case(NoLoCo(alpha=0.3, gamma=0.8), topology.random_matching, keeps_mean=False),
    Case(GradientTracking(), topology.ring),
    Case(RelaySum(), topology.path, keeps_mean=False),
    Case(Every(2, RelaySum()), topology.star, keeps_mean=False),
    Case(Every(3, DPsgd()), topology.ring),
    Case(Every(3, PushSum()), topology.exponential),
]


def classes(strategy: Strategy[Any]) -> set[type]:
    """Those of it, and of what it is made of."""
    inner = getattr(strategy, "strategy", None)
    return {type(strategy)} | (classes(inner) if inner is not None else set())


def test_no_strategy_is_left_out() -> None:
    exported = {getattr(mixing, name) for name in mixing.__all__}
    strategies = {
        each
        for each in exported
        if inspect.isclass(each) and issubclass(each, Strategy) and not inspect.isabstract(each)
    }
    assert set().union(*(classes(case.strategy) for case in CASES)) == strategies


# ------------------------------------------------------------------------------------------------------------ the swarm

Gradient = Callable[[PeerId, Array], Array]


def nothing(me: PeerId, params: Array) -> Array:
    return np.zeros_like(params)


def towards(me: PeerId, params: Array) -> Array:
    """Every peer has a goal of its own."""
    return -0.2 * (params - number_of(me) % 7)


def swarm_of(case: Case) -> MixSimulation:
    swarm = MixSimulation(
        PEERS,
        {"w": np.arange(1.0, 1.0 + PARAMETERS)},
        Plan(case.build, case.strategy),
        seed=1,
        network=Network(delay_mean_s=0.005),
        mixing=MixSettings(detection=Detection(), round_s=0.5),
    )
    swarm.resume()
    swarm.run(0.1)
    return swarm


def burst(swarm: MixSimulation, gradient: Gradient, steps: int, rest_s: float = 3.0) -> None:
    """Each peer that lives takes so many steps, in its own time, and then follows the others without any."""
    chance = random.Random(5)
    begun: set[PeerId] = set()
    ended: set[PeerId] = set()

    def begin(me: PeerId) -> None:
        begun.add(me)
        left, mixer, host = steps, swarm.mixers[me], swarm.peers[me]

        def go_on() -> None:
            nonlocal left
            if not host.alive:
                return
            if not mixer.ready or mixer.settled < mixer.steps.handed or swarm.now < host.paused_until:
                swarm.at(swarm.now + 0.01, go_on)
            elif left:
                if left == steps:
                    swarm.happen(me, Tasked(1))
                left -= 1
                swarm.happen(me, Computed(Packed.of({"w": gradient(me, mixer.params())})))
                swarm.at(swarm.now + chance.expovariate(50.0), go_on)
            else:
                ended.add(me)
                swarm.happen(me, Tasked(0))

        swarm.at(swarm.now + 0.05 * chance.random(), go_on)

    def is_over() -> bool:
        for me in swarm.live().keys() - begun:
            begin(me)
        return swarm.live().keys() <= ended

    swarm.run_while(lambda: not is_over())
    swarm.run(swarm.now + rest_s)


def know(swarm: MixSimulation) -> bool:
    """All know who lives."""
    living = set(swarm.live())
    return all(set(swarm.mixers[me].neighbors.live) == living for me in living)


def mean(swarm: MixSimulation) -> Array:
    """Of those who live, with what is under way between them."""
    states = {number_of(me): swarm.mixers[me].mixer.state for me in swarm.live()}
    strategy = swarm._plan.strategy
    while isinstance(strategy, Every):
        strategy = strategy.strategy
    if isinstance(strategy, PushSum):
        for me, state in states.items():
            sent = {to: each for to, each in state.sent.items() if to in states}
            states[me] = replace(state, sent=sent)
        sums, weight = ledger(states)
        return sums / weight
    total = swarm.params().sum(axis=0)
    if isinstance(strategy, PairwiseExchange):
        for me, state in states.items():
            if state.asked in states:
                n, moved = states[state.asked].answered.get(me, (0, None))
                total = total - (moved if n == state.n and moved is not None else 0.0)
    return total / len(states)


# --------------------------------------------------------------------------------------------------------- the contract


def crash(swarm: MixSimulation) -> None:
    swarm.crash(PeerId("p002"))


def leave(swarm: MixSimulation) -> None:
    swarm.happen(PeerId("p002"), Leaving())
    swarm.crash(PeerId("p002"))


def late(swarm: MixSimulation) -> None:
    swarm.join(PeerId("p0025"))


def cut(swarm: MixSimulation) -> None:
    Disruption(swarm, Faults(partitions=((swarm.now, swarm.now + 12.0, True),)), random.Random(3))


def stop(swarm: MixSimulation) -> None:
    """One stands still for so long that the others take it for dead; it does not notice."""
    swarm.peers[PeerId("p002")].paused_until = swarm.now + 12.0


CHURN = [crash, leave, late, cut, stop]


@pytest.mark.slow
@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(each, marks=[pytest.mark.long] * (number > 0), id=each.__name__)
        for number, each in enumerate(CHURN)
    ],
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.strategy!r}-{getattr(case.build, '__name__', '')}")
def test_whoever_comes_or_goes_the_mean_stays_and_all_agree_on_it(case: Case, happens: Any) -> None:
    swarm = swarm_of(case)
    burst(swarm, towards, 5, rest_s=0.0)
    assert np.ptp(swarm.params()) > 0.1
    swarm.at(swarm.now + 0.05, lambda: happens(swarm))
    burst(swarm, nothing, 8)
    swarm.run_while(lambda: swarm.now < 60.0 and not know(swarm))
    swarm.run(max(swarm.now, 25.0))
    assert know(swarm)
    means, distances = [mean(swarm)], [swarm.distance()]
    for steps in (STEPS, 5 * STEPS, 5 * STEPS):
        burst(swarm, nothing, steps)
        means.append(mean(swarm))
        distances.append(swarm.distance())
    assert distances[-1] < 1e-9, distances
    if case.keeps_mean:
        np.testing.assert_allclose(means, [means[0]] * len(means), rtol=0, atol=1e-9)
    else:
        np.testing.assert_allclose(means[-1], means[-2], rtol=0, atol=1e-6)
    assert not any(mixer.figures.refused or mixer.trouble for mixer in swarm.mixers.values())


def test_gradient_tracking_forgets_the_steps_of_the_dead() -> None:
    """What they took along of the tracked steps would leave the others away from their minimum for ever."""
    swarm = swarm_of(Case(GradientTracking(), topology.ring))
    burst(swarm, towards, 5, rest_s=0.0)
    swarm.at(swarm.now + 0.05, lambda: crash(swarm))
    burst(swarm, towards, 250)
    goals = [number_of(me) % 7 for me in swarm.live()]
    assert len(set(goals)) > 1
    np.testing.assert_allclose(swarm.params(), np.mean(goals), rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------- without messages, round by round


class Views:
    """Peers in lock-step, each with those links that it takes for the links of now."""

    def __init__(self, strategy: Strategy[Any], x: dict[int, Array]) -> None:
        self.strategy, self.chance = strategy, np.random.default_rng(1)
        self.states = {peer: strategy.start(each) for peer, each in x.items()}

    def round(
        self,
        number: int,
        views: dict[int, list[int]],
        build: Callable[[int], Topology],
        lost: tuple[int, int] | None = None,
    ) -> None:
        """`views`: whom each peer takes for alive; who is not in it does not live. `lost`: sender and receiver."""
        links, flying = {}, []
        for me, living in views.items():
            places = build(len(living)).all_links(number)[living.index(me)]
            hears = {living[place]: weight for place, weight in places.hears.items()}
            links[me] = Links(me, places.own, hears, hears, len(living))
            self.states[me], outbox = self.strategy.send(self.states[me], number, links[me], self.chance)
            flying += [(me, to, packet) for to, packet in outbox.items()]
        for sender, to, packet in flying:
            if to in views and (sender, to) != lost:
                self.states[to], _ = self.strategy.receive(self.states[to], sender, packet)
        for me in views:
            self.states[me] = self.strategy.finish(self.states[me], number, links[me])

    def params(self, peers: list[int]) -> Array:
        return np.stack([self.strategy.params(self.states[peer]) for peer in peers])


@pytest.mark.parametrize(
    "strategy", [Choco(), Compressed(TopK(0.5), Choco(0.4)), Compressed(Int8(), Choco())], ids=repr
)
def test_choco_keeps_the_mean_also_while_only_some_know_who_came_and_went(strategy: Strategy[Any]) -> None:
    chance = np.random.default_rng(2)
    x = {peer: chance.standard_normal(PARAMETERS) for peer in range(8)}
    views = Views(strategy, x)
    first = list(range(6))
    for number in range(4):
        views.round(number, dict.fromkeys(first, first), topology.complete)
    after = [0, 1, 3, 4, 5, 6, 7]  # 2 has died, and 6 and 7 are new
    expected = views.params(after).mean(axis=0)
    for number in range(4, 4 + len(after)):
        knows = after[: number - 3]
        before = [peer for peer in after if peer in first]
        seen = {peer: after if peer in knows else (first if peer in before else after) for peer in after}
        views.round(number, seen, topology.complete)
        np.testing.assert_allclose(views.params(after).mean(axis=0), expected, rtol=0, atol=1e-14)
    for number in range(20, 120):
        views.round(number, dict.fromkeys(after, after), topology.complete)
    assert np.ptp(views.params(after), axis=0).max() < 1e-6
    np.testing.assert_allclose(views.params(after).mean(axis=0), expected, rtol=0, atol=1e-13)


def test_who_missed_a_packet_of_choco_is_sent_the_whole_copy_and_the_mean_stays() -> None:
    """Both ends know of it in the next round, and neither moves towards the other. In the round itself one does."""
    strategy, everybody = Compressed(TopK(0.5), Choco(0.4)), list(range(5))
    views = Views(strategy, dict(enumerate(np.random.default_rng(2).standard_normal((5, PARAMETERS)))))
    all_know = dict.fromkeys(everybody, everybody)
    for number in range(3):
        views.round(number, all_know, topology.ring)
    views.round(3, {peer: everybody for peer in everybody if peer != 2}, topology.ring)  # 2 was away for a round
    views.round(4, all_know, topology.ring)
    views.round(5, all_know, topology.ring, lost=(3, 4))
    expected = views.params(everybody).mean(axis=0)
    for number in range(6, 200):
        views.round(number, all_know, topology.ring)
        np.testing.assert_allclose(views.params(everybody).mean(axis=0), expected, rtol=0, atol=1e-14)
    assert np.ptp(views.params(everybody), axis=0).max() < 1e-6
    for me in everybody:
        for other, (n, copy) in views.states[me].others.items():
            assert n == views.states[other].n
            np.testing.assert_array_equal(copy, views.states[other].public)


def test_relayed_sums_weigh_alike_again_as_many_rounds_after_a_change_as_the_tree_is_deep() -> None:
    x = dict(enumerate(np.random.default_rng(2).standard_normal((6, PARAMETERS))))
    views = Views(RelaySum(), x)
    first, after = list(range(6)), [0, 1, 3, 4, 5]
    for number in range(6):
        views.round(number, dict.fromkeys(first, first), topology.path)
    for number in range(6, 6 + len(after)):  # they know of it one by one
        knows = after[: number - 5]
        views.round(number, {peer: after if peer in knows else first for peer in after}, topology.path)
    hops = dict(nx.all_pairs_shortest_path_length(nx.path_graph(len(after))))
    past = [views.params(after)]
    for number in range(20, 40):
        views.round(number, dict.fromkeys(after, after), topology.path)
        past.append(views.params(after))
        if len(past) <= len(after):
            continue
        slow = [
            np.mean([past[-1 - max(1, hops[i][j])][j] for j in range(len(after))], axis=0) for i in range(len(after))
        ]
        np.testing.assert_allclose(past[-1], slow, rtol=0, atol=1e-12)
    assert np.ptp(past[-1], axis=0).max() < 0.1 * np.ptp(past[0], axis=0).max()
