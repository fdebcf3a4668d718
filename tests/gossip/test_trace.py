"""A recorded run plays again: in the simulator, and from real sockets, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from gossip.arrays import Arrays, Packed
from gossip.events import Computed, Deliver, Keep, Received, Send, Ticked
from gossip.lanes.peer import Peer, Settings
from gossip.marks import Mark, Unit, packed
from gossip.messages import Advert, PeerId, Pull, Range, Rumor, Standing
from gossip.sim.simulator import Network, Simulation
from gossip.trace import Recorder, Step, fingerprint, replay
from gossip.zmq.segments import LentFile, Segments

SETTINGS = Settings(advert_period_s=0.3)
INITIAL = {"w": np.zeros(4, np.int64)}
SHORT = Packed.of({"w": np.arange(4)})


def recorded_simulation() -> tuple[Simulation, list[Step]]:
    recorder = Recorder()
    network = Network(loss=0.3, duplication=0.3)
    simulation = Simulation(3, INITIAL, seed=5, network=network, settings=SETTINGS, observe=recorder.observe)
    for index, me in enumerate(simulation.peers):
        for time in range(5):
            simulation.compute(time + index / 10, me, {"w": np.arange(4) * (index + time)})
    simulation.run(5.0)
    simulation.run_until_drained()
    return simulation, recorder.steps


def fresh(simulation: Simulation) -> dict[PeerId, Peer]:
    return {me: Peer(me, simulation.layout, SETTINGS, Random(0)) for me in simulation.peers}


def test_a_recorded_simulation_plays_again() -> None:
    simulation, steps = recorded_simulation()
    assert len(steps) > 100
    assert replay(steps, fresh(simulation)) == steps


def test_other_settings_play_otherwise() -> None:
    simulation, steps = recorded_simulation()
    peers = {me: Peer(me, simulation.layout, Settings(advert_period_s=0.4)) for me in simulation.peers}
    assert replay(steps, peers) != steps


def is_(step: Step, kind: Any) -> bool:
    return isinstance(step.event, kind) or (isinstance(step.event, Received) and isinstance(step.event.message, kind))


@pytest.mark.parametrize("kind", [Computed, Range])
def test_a_changed_event_plays_otherwise_from_there_on(kind: Any) -> None:
    simulation, steps = recorded_simulation()
    index = next(i for i, step in enumerate(steps) if is_(step, kind))
    event: Any = steps[index].event
    if kind is Computed:
        changed: Any = Computed(SHORT)
    else:
        message = event.message
        changed = Received(structs.replace(message, lo=message.lo + 1, hi=message.hi + 1))
    again = replay([*steps[:index], replace(steps[index], event=changed), *steps[index + 1 :]], fresh(simulation))
    assert again[:index] == steps[:index]
    assert again[index].effects != steps[index].effects


def test_a_missing_event_plays_otherwise() -> None:
    simulation, steps = recorded_simulation()
    index = next(i for i, step in enumerate(steps) if is_(step, Range) and step.effects)
    again = replay(steps[:index] + steps[index + 1 :], fresh(simulation))
    assert [step.effects for step in again] != [step.effects for step in steps[:index] + steps[index + 1 :]]


def test_a_recorder_keeps_arrays_as_they_were() -> None:
    recorder = Recorder()
    mine = Packed.of({"w": np.arange(4)})
    message = Range(PeerId("p"), 1, 1, 1, (), mine.layout, mine)
    recorder.observe(0.0, PeerId("p"), Computed(mine), [])
    recorder.observe(0.0, PeerId("p"), Received(message), [])
    mine.arrays()["w"][:] = 9
    for step in recorder.steps:
        event: Any = step.event
        payload = event.payload if isinstance(event, Computed) else event.message.payload
        np.testing.assert_array_equal(payload.arrays()["w"], np.arange(4))


@pytest.fixture
def in_a_file(tmp_path: Any) -> Iterator[LentFile]:
    """The same arrays as `SHORT`, in a file, of which only stretches within it can be read."""
    (tmp_path / "arrays").write_bytes(bytes(8) + SHORT.buffer)
    descriptor = os.open(tmp_path / "arrays", os.O_RDONLY)
    yield LentFile(SHORT.layout, descriptor, 8)
    os.close(descriptor)


def test_arrays_in_a_file_are_recorded_as_if_they_were_in_memory(in_a_file: LentFile) -> None:
    recorder = Recorder()
    recorder.observe(0.0, PeerId("p"), Computed(in_a_file), [Keep(1, 1, in_a_file)])
    (step,) = recorder.steps
    assert step.event == Computed(SHORT)
    assert step.effects == (fingerprint(Keep(1, 1, SHORT)),)


def test_a_fingerprint_reads_like_the_value() -> None:
    """Whoever looks for where two runs part has these texts before them."""
    p, q, r = (PeerId(name) for name in "pqr")
    said = (Rumor(q, Standing.DEAD, 2, r),)
    advert = Advert(p, 3, {r: 1, q: 2}, True, 7, said, (q,), 1.5)
    assert fingerprint(advert) == f"Advert('p',3,{{q:2,r:1}},True,7,{said!r},('q',),1.5)"
    assert fingerprint(Send(p, Pull(q, 1, 2))) == "Send('p',Pull('q',1,2,None))"
    assert fingerprint(Advert(p, 3, {})) == "Advert('p',3,{},True,0,(),(),0.0)"


def test_a_kind_of_value_that_was_never_seen_has_a_fingerprint() -> None:
    @dataclass(frozen=True)
    class New:
        number: int
        name: str

    assert fingerprint(New(1, "x")) == "New(1,'x')"
    assert fingerprint(New(2, "x")) == "New(2,'x')"


def test_equal_values_have_equal_fingerprints_and_others_others() -> None:
    segments = Segments()
    segments.keep(1, 1, SHORT)
    total = segments.sum(1, 1)
    assert total is not None
    p, q = PeerId("p"), PeerId("q")
    assert fingerprint(Computed(SHORT)) == fingerprint(Computed(Packed.of({"w": np.arange(4)})))
    assert fingerprint(Computed(SHORT)) == fingerprint(Computed(total))
    assert fingerprint(Advert(p, 1, {p: 1, q: 2})) == fingerprint(Advert(p, 1, {q: 2, p: 1}))
    different = [
        Computed(SHORT),
        Computed(Packed.of({"w": np.arange(4) * 2})),
        Computed(Packed.of({"w": np.arange(4) ^ [1, 0, 0, 0]})),  # by its first byte
        Computed(Packed.of({"v": np.arange(4)})),
        Computed(Packed.of({"w": np.arange(4.0)})),
        Keep(1, 1, SHORT),
        Keep(1, 2, SHORT),
        Deliver(p, 1, 1, SHORT),
        Deliver(q, 1, 1, SHORT),
        Advert(p, 1, {}),
        Advert(p, 1, {q: 1}),
        Send(p, Pull(q, 1, 1)),
        Send(q, Pull(q, 1, 1)),
        Send(q, Pull(q, 1, 2)),
        Ticked(),
        Range(p, 1, 1, 1),
        Range(p, 1, 1, 1, (), SHORT.layout),
        Range(p, 1, 1, 1, (), Packed.of({"v": np.arange(4)}).layout),
        Range(p, 1, 1, 1, packed([Mark(Unit(0, 0, 0), 0)])),
        Range(p, 1, 1, 1, packed([Mark(Unit(0, 0, 1), 0)])),
        Advert(p, 1, {}, rumors=(Rumor(q, Standing.DEAD, 2, p),)),
        Advert(p, 1, {}, rumors=(Rumor(q, Standing.DEAD, 3, p),)),
    ]
    assert len({fingerprint(value) for value in different}) == len(different)
    segments.close()


# -------------------------------------------------------------------------------------------------- both drivers


def updates_of(number: int, count: int, elements: int) -> list[Arrays]:
    generator = np.random.default_rng(number)
    return [{"w": generator.integers(0, 1 << 40, elements)} for _ in range(count)]


@pytest.mark.sockets
@pytest.mark.parametrize(("elements", "count"), [(4, 20), (400_000, 2)], ids=["small updates", "3 MB updates"])
def test_both_drivers_run_the_same_swarm_and_the_real_one_plays_again(swarm: Any, elements: int, count: int) -> None:
    names = [PeerId(f"p{index:03d}") for index in range(3)]
    updates = {name: updates_of(index, count, elements) for index, name in enumerate(names)}
    initial = {"w": np.arange(elements)}
    recorder = Recorder()
    nodes = [swarm.add(name, initial, observe=recorder.observe) for name in names]
    swarm.link()
    for step in range(count):
        for node in nodes:
            node.publish(updates[node.me][step])
            node.runtime.poll(0.0)
    for node in nodes:
        node.exhaust()
    assert swarm.turn(lambda: all(node.host.missing is not None for node in nodes))
    assert [node.host.missing for node in nodes] == [()] * 3
    assert swarm.turn(lambda: all(node.frontiers == dict.fromkeys(names, count) for node in nodes))

    expected = initial["w"] + sum(update["w"] for each in updates.values() for update in each)
    for node in nodes:
        np.testing.assert_array_equal(node.arrays()["w"], expected)
        assert node.host.warnings == []
        assert node.runtime.figures.malformed == 0

    layout = nodes[0].runtime.peer.layout
    again = replay(recorder.steps, {name: Peer(name, layout, swarm.FAST) for name in names})
    assert len(again) == len(recorder.steps)
    for before, after in zip(recorder.steps, again, strict=True):
        assert after.effects == before.effects, before.event

    simulation = Simulation(3, initial, seed=1, network=Network(loss=0.2, duplication=0.2))
    for name in names:
        for step, update in enumerate(updates[name]):
            simulation.compute(step / 10, name, update)
    simulation.run(count / 10)
    simulation.run_until_drained()
    for name in names:
        np.testing.assert_array_equal(simulation.arrays(name)["w"], expected)


def test_a_fingerprint_tells_whatever_differs_and_nothing_else() -> None:
    a, b, c = (PeerId(name) for name in "abc")
    events = [
        Computed(Packed.of({"w": np.array([1.0, 2.0])})),
        Computed(Packed.of({"w": np.array([3.0, 2.0])})),
        Computed(Packed.of({"w": np.array([1.0, 3.0])})),
        Computed(Packed.of({"v": np.array([1.0, 2.0])})),
        Received(Advert(a, 1, {b: 2, c: 3})),
        Received(Advert(a, 1, {b: 2, c: 4})),
        Received(Advert(a, 2, {b: 2, c: 3})),
        Ticked(),
    ]
    assert len({fingerprint(event) for event in events}) == len(events)
    assert fingerprint(Received(Advert(a, 1, {c: 3, b: 2}))) == fingerprint(events[4])
    assert fingerprint(Computed(Packed.of({"w": np.array([1.0, 2.0])}))) == fingerprint(events[0])
