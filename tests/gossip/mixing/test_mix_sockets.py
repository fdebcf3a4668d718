"""The same peers that mix, over real ZeroMQ sockets and on virtual time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Array, Arrays, Packed
from gossip.events import Joined, Publish, Received, Resumed, Send, Settling
from gossip.messages import Message, PeerId
from gossip.mixing import DPsgd, PairwiseExchange, PushSum, Strategy
from gossip.mixing.neighbors import Plan
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.sim.mix_simulator import MixSimulation
from gossip.sim.simulator import Network
from gossip.trace import Recorder, Step, fingerprint, replay
from gossip.wire import decode, encode

pytestmark = pytest.mark.sockets

NAMES = [PeerId(f"p{index:03d}") for index in range(4)]
SETTINGS = MixSettings(round_s=0.02, gap_s=0.005)
PAIRS = [(PushSum(), topology.exponential), (DPsgd(), topology.ring), (PairwiseExchange(), topology.complete)]
pairs = pytest.mark.parametrize(("strategy", "build"), PAIRS, ids=lambda each: getattr(each, "__name__", repr(each)))


def initial(index: int, parameters: int) -> Arrays:
    return {"w": np.random.default_rng(index).standard_normal(parameters)}


def started(swarm: Any, strategy: Strategy[Any], build: Any, parameters: int, recorder: Recorder) -> list[Any]:
    nodes = []
    for index, name in enumerate(NAMES):
        plan = Plan(build, strategy)
        nodes.append(
            swarm.add_mixer(
                name, initial(index, parameters), plan, seed=index, settings=SETTINGS, observe=recorder.observe
            )
        )
    swarm.link()
    for node in nodes:
        node.runtime.happen(Settling() if strategy.synchronous else Resumed())
    return nodes


def params(nodes: list[Any]) -> Array:
    return np.stack([node.runtime.peer.params() for node in nodes])


def fresh(strategy: Strategy[Any], build: Any, parameters: int) -> dict[PeerId, MixPeer]:
    layout = Packed.of(initial(0, parameters)).layout
    return {
        name: MixPeer(name, layout, Plan(build, strategy), np.random.default_rng(index), SETTINGS)
        for index, name in enumerate(NAMES)
    }


def play_in_order(steps: list[Step], peers: dict[PeerId, MixPeer]) -> None:
    """Virtual peers live through the same order of events; every message is one that a virtual peer has sent."""
    sent: dict[tuple[PeerId, PeerId | None], dict[str, Message]] = defaultdict(dict)
    for step in steps:
        event = step.event
        if isinstance(event, Received):
            wanted = fingerprint(event.message)
            sender = event.message.peer
            message = sent[sender, step.peer].get(wanted) or sent[sender, None].get(wanted)
            assert message is not None, f"{sender} has not sent {event.message} on virtual time"
            event = Received(message)
        for effect in peers[step.peer].handle(event, step.now):
            match effect:
                case Send(to, message):
                    message = decode(encode(message))
                    sent[step.peer, to][fingerprint(message)] = message
                case Publish(message):
                    message = decode(encode(message))
                    sent[step.peer, None][fingerprint(message)] = message


@pairs
@pytest.mark.parametrize("parameters", [3, 140_000], ids=["small", "two blocks"])
def test_the_same_order_of_events_gives_the_same_replicas_to_the_last_bit(
    swarm: Any, strategy: Strategy[Any], build: Any, parameters: int
) -> None:
    recorder = Recorder()
    nodes = started(swarm, strategy, build, parameters, recorder)
    rng = np.random.default_rng(9)
    for round in range(2 if parameters > 3 else 3):
        for node in nodes:
            node.publish({"w": rng.standard_normal(parameters)})
        assert swarm.turn(lambda r=round: min(node.runtime.peer.rounds for node in nodes) >= 4 * (r + 1))
    for node in nodes:
        node.exhaust()
    assert swarm.turn(lambda: all(node.host.missing is not None for node in nodes))
    assert [node.host.missing for node in nodes] == [()] * 4
    assert [node.host.warnings for node in nodes] == [[]] * 4
    assert [node.runtime.peer.figures.given_up for node in nodes] == [0] * 4
    for node in nodes:
        np.testing.assert_array_equal(node.arrays()["w"], node.runtime.peer.params())

    again = replay(recorder.steps, fresh(strategy, build, parameters))
    for before, after in zip(recorder.steps, again, strict=True):
        assert after.effects == before.effects, before.event

    virtual = fresh(strategy, build, parameters)
    play_in_order(recorder.steps, virtual)
    for node in nodes:
        mixer = virtual[node.me]
        assert mixer.params().tobytes() == node.runtime.peer.params().tobytes()
        assert (mixer.rounds, mixer.figures.received) == (node.runtime.peer.rounds, node.runtime.peer.figures.received)


@pairs
def test_both_drivers_come_to_the_same_mean(swarm: Any, strategy: Strategy[Any], build: Any) -> None:
    nodes = started(swarm, strategy, build, 5, Recorder())

    def apart() -> float:
        return float(np.ptp(params(nodes), axis=0).max())

    assert swarm.turn(lambda: apart() < 1e-6)
    simulation = MixSimulation(
        4, lambda index: initial(index, 5), Plan(build, strategy), seed=1, network=Network(delay_mean_s=0.01)
    )
    simulation.resume()
    simulation.settle()
    simulation.run(20.0)
    mean = np.mean([initial(index, 5)["w"] for index in range(4)], axis=0)
    np.testing.assert_allclose(params(nodes), np.tile(mean, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(simulation.params(), np.tile(mean, (4, 1)), atol=1e-5)


def test_a_peer_whose_process_is_gone_does_not_stop_the_others(swarm: Any) -> None:
    nodes = started(swarm, PushSum(), topology.exponential, 5, Recorder())
    assert swarm.turn(lambda: min(node.runtime.peer.rounds for node in nodes) > 3)
    gone = swarm.nodes.pop()
    gone.runtime.close()
    before = [node.runtime.peer.rounds for node in swarm.nodes]
    assert swarm.turn(
        lambda: all(node.runtime.peer.rounds > n + 20 for node, n in zip(swarm.nodes, before, strict=True))
    )


def test_neighbors_must_be_introduced_to_be_heard() -> None:
    mixer = fresh(PushSum(), topology.exponential, 3)[NAMES[0]]
    assert mixer.neighbors.live == (NAMES[0],)
    mixer.handle(Joined(NAMES[1]), 0.0)
    assert mixer.neighbors.live == tuple(NAMES[:2])
