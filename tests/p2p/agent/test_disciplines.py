"""The disciplines of agents, two or three of them in one process: what becomes of updates, and what is told of them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from gossip import topology
from gossip.arrays import Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.events import Event, Exhausted, Joined
from gossip.marks import Unit
from gossip.messages import PeerId, State
from gossip.mixing import DPsgd
from p2p.agent import discipline as discipline_module
from p2p.agent import lanes as lanes_module
from p2p.agent import mixing as mixing_module
from p2p.agent.client import START_TIMEOUT_S, AgentSettings
from p2p.agent.discipline import House
from p2p.agent.lanes import Lanes, lane_settings
from p2p.agent.mixing import Mixing, pack_strategy
from p2p.agent.registrar_messages import Listed
from p2p.agent.replica import Replica
from p2p.agent.sketch import BUCKETS, Sketch, distance
from p2p.agent.submissions import Outcome

pytestmark = pytest.mark.sockets

INITIAL = {"w": np.zeros(3)}
LAYOUT = Layout.of(INITIAL)
SOON_S = 60.0


class Swarm:
    """Agents without a process: their loops are turned one after the other."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.all: list[Any] = []
        self.names: dict[PeerId, str] = {}
        self.drained: dict[PeerId, list[str]] = {}
        self.warned: list[str] = []

    def house(self, role: Any = "peer", layout: Layout = LAYOUT, **settings: Any) -> House:
        me = PeerId(f"{len(self.all):032x}")
        self.names[me] = f"host:{len(self.all)}"
        return House(
            settings=AgentSettings("r" * 32, role, "tcp://127.0.0.1:1", layout, **settings),
            me=me,
            layout=layout,
            replica=Replica(layout),
            context=self.context,
            keys=None,
            address="127.0.0.1",
            names=self.names,
            drained=lambda missing: self.drained.update({me: missing}),
            warn=self.warned.append,
        )

    def add(self, kind: Callable[..., Any], role: Any = "peer", *rest: Any, **settings: Any) -> Any:
        self.all.append(kind(self.house(role, **settings), *rest))
        return self.all[-1]

    def listed(self, one: Any, level: bool = True) -> Listed:
        return Listed(
            peer=one.house.me,
            role=one.house.settings.role,
            name=self.names[one.house.me],
            pid=os.getpid(),
            adverts=one.runtime.endpoints.adverts,
            pulls=one.runtime.endpoints.pulls,
            key=None,
            level=level,
            answers=True,
        )

    def introduce(self) -> None:
        """Each to each."""
        for one in self.all:
            for other in self.all:
                if other is not one:
                    one.join(self.listed(other))

    def turn_until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + SOON_S
        while not condition():
            assert time.monotonic() < give_up, "it did not come to that"
            for one in self.all:
                one.runtime.poll(0.002)
                one.turn()

    def close(self) -> None:
        for one in self.all:
            one.runtime.close()
            one.house.replica.close()
        self.context.term()


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    swarm = Swarm()
    yield swarm
    swarm.close()


def update(*values: float) -> Packed:
    return Packed.of({"w": np.array(values, float)})


def w(one: Any) -> list[float]:
    found: list[float] = one.house.replica.arrays()["w"].tolist()
    return found


# --------------------------------------------------------------------------------------------------------------- lanes


def test_an_own_update_is_in_the_replica_and_its_unit_counts_once(swarm: Swarm) -> None:
    one = swarm.add(Lanes)
    one.load()
    first = one.submissions.submit(update(1, 2, 3), Unit(0, 1, 4))
    again = one.submissions.submit(update(1, 2, 3), Unit(0, 1, 4))
    assert (first.outcome, again.outcome) == (Outcome.PUBLISHED, Outcome.KNOWN)
    assert one.has_settled(first)
    assert w(one) == [1, 2, 3]
    assert (one.merged, one.house.replica.merged) == (1, 1)
    assert [one.knows(Unit(0, 1, chunk)) for chunk in (4, 5)] == [True, False]
    assert [one.furthest(0, partition) for partition in (1, 2)] == [4, -1]
    assert one.spans(0) == {(0, 1): (4, 4)}
    assert one.spans(1) == {}
    figures = one.figures(False)
    assert (figures.published, figures.refused, figures.lanes.frontiers) == (1, 0, {one.house.me: 1})
    assert (figures.lanes.units, figures.lanes.withdrawn, figures.lanes.adoptions) == (1, 0, 0)
    assert one.turn() == lanes_module.IDLE_S
    assert one.trouble is None
    assert bytes(one.state().read(0, LAYOUT.nbytes)) == bytes(update(1, 2, 3).buffer)


def test_an_update_waits_while_somebody_reads_the_replica(swarm: Swarm) -> None:
    one = swarm.add(Lanes)
    one.load()
    reader = Replica(LAYOUT, os.dup(one.house.replica.descriptor))
    with reader.reading():
        waiting = one.submissions.submit(update(1, 2, 3))
        assert not one.has_settled(waiting)
        assert not one.submissions.are_taken
        assert w(one) == [0, 0, 0]
    swarm.turn_until(lambda: one.has_settled(waiting))
    assert w(one) == [1, 2, 3]
    assert reader.acquire(), "the writer's lock was given back"
    reader.close()


def test_what_one_publishes_is_merged_by_all(swarm: Swarm) -> None:
    one, two, observer = swarm.add(Lanes), swarm.add(Lanes), swarm.add(Lanes, "observer")
    for each in swarm.all:
        each.load()
    swarm.introduce()
    one.submissions.submit(update(1, 0, 0), Unit(0, 0, 0))
    two.submissions.submit(update(0, 2, 0), Unit(0, 1, 0))
    swarm.turn_until(lambda: all(w(each) == [1, 2, 0] for each in swarm.all))
    assert all(each.house.replica.merged == each.merged == 2 for each in swarm.all)
    assert observer.figures(True).lanes.frontiers[one.house.me] == 1
    assert observer.knows(Unit(0, 1, 0))
    assert one.departed() == []
    for each in swarm.all:
        each.runtime.happen(Exhausted(SOON_S))
    swarm.turn_until(lambda: len(swarm.drained) == 3)
    assert set(map(tuple, swarm.drained.values())) == {()}


@pytest.mark.parametrize("links", [True, False])
def test_agents_of_one_machine_hand_each_other_files_unless_they_are_told_not_to(swarm: Swarm, links: bool) -> None:
    one, two = swarm.add(Lanes, links=links), swarm.add(Lanes, links=links)
    for each in swarm.all:
        each.load()
    swarm.introduce()
    swarm.turn_until(lambda: bool(two.peer.members) and bool(one.peer.replicator.readers))
    give_up, n = time.monotonic() + SOON_S, 0
    while n < 30 or (links and not two.runtime.figures.handed_in):  # the first may go before the link is there
        assert time.monotonic() < give_up, "no link came to be"
        n += 1
        one.submissions.submit(update(1, 0, 0))
        swarm.turn_until(lambda n=n: w(two) == [n, 0, 0])
    assert (one.runtime.figures.handed_out > 0) is links
    assert (two.runtime.figures.handed_in > 0) is links


def test_updates_that_do_not_fit_are_refused_and_counted(swarm: Swarm) -> None:
    one, two = swarm.add(Lanes), swarm.add(Lanes)
    for each in swarm.all:
        each.load()
    swarm.introduce()
    two.peer.refused = 3
    assert (one.figures(False).refused, two.figures(False).refused) == (0, 3)


@pytest.mark.parametrize("level", [True, False])
def test_an_agent_knows_whether_another_began_level(swarm: Swarm, level: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = swarm.add(Lanes), swarm.add(Lanes)
    one.load()
    events: list[Event] = []
    monkeypatch.setattr(one.runtime, "happen", events.append)
    one.join(swarm.listed(two, level=level))
    assert events == [Joined(two.house.me, level=level)]


def test_an_agent_knows_those_of_the_roles_that_it_reads_from_or_is_read_by(swarm: Swarm) -> None:
    expected = {"peer": {"peer", "observer"}, "observer": {"peer"}}
    others = {role: swarm.add(Lanes, role) for role in expected}
    for role in expected:
        one = swarm.add(Lanes, role)
        one.load()
        for other in others.values():
            one.join(swarm.listed(other))
        met = {other for other, each in others.items() if each.house.me in one.peer.members}
        assert met == expected[role]


def test_who_misses_updates_at_the_end_is_named(swarm: Swarm) -> None:
    one, two = swarm.add(Lanes), swarm.add(Lanes)
    for each in swarm.all:
        each.load()
    swarm.introduce()
    swarm.all.remove(two)  # it does not turn any more
    one.submissions.submit(update(1, 0, 0))
    one.runtime.happen(Exhausted(0.05))
    swarm.turn_until(lambda: bool(swarm.drained))
    assert swarm.drained == {one.house.me: ["host:1"]}
    swarm.all.append(two)


def state_of(values: Any, frontiers: dict[str, int]) -> tuple[State, Packed]:
    packed = Packed.of({"w": np.array(values, float)})
    front = {PeerId(lane): n for lane, n in frontiers.items()}
    return State(peer=PeerId("they"), frontiers=front, k=1, layout=packed.layout, units=3, closed=2), packed


class Donor:
    """Gives a replica to whoever fetches it, unless it is one of those that are dead."""

    def __init__(self, values: Any = (4, 5, 6), dead: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[str, float]] = []
        self._values, self._dead = values, dead

    def __call__(self, context: Any, endpoint: str, begin: Any, *, timeout_s: float, key: Any) -> State:
        assert key is None
        self.asked.append((endpoint, timeout_s))
        if endpoint in self._dead:
            raise UsageError("nothing came")
        state, packed = state_of(self._values, {"ff": 7})
        take = begin(state)
        for start in range(0, packed.layout.nbytes, 8):
            take(start, bytes(packed.buffer[start : start + 8]))
        return state


def test_who_is_level_begins_with_the_replica_of_the_driver_program_s_agent(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer, one = swarm.add(Lanes, "observer"), swarm.add(Lanes)
    donor = Donor()
    monkeypatch.setattr(discipline_module, "fetch_state", donor)
    one.enter([swarm.listed(observer)], True)
    assert donor.asked == [(observer.runtime.endpoints.pulls, START_TIMEOUT_S)]
    assert one.peer.ready
    assert w(one) == [4, 5, 6]
    assert one.merged == 7
    figures = one.figures(False)
    assert (figures.lanes.units, figures.lanes.frontiers["ff"]) == (3, 7)
    assert one.house.replica.acquire()


def test_a_replica_of_another_layout_is_not_taken(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, one = swarm.add(Lanes, "observer"), swarm.add(Lanes)
    monkeypatch.setattr(discipline_module, "fetch_state", Donor((1, 2)))
    with pytest.raises(MismatchError, match="shape"):
        one.enter([swarm.listed(observer)], True)


def test_who_comes_late_is_ready_when_it_has_adopted(swarm: Swarm) -> None:
    one, late = swarm.add(Lanes), swarm.add(Lanes)
    one.load()
    one.submissions.submit(update(1, 2, 3), Unit(0, 0, 0))
    late.enter([swarm.listed(one)], False)
    assert not late.peer.ready
    late.join(swarm.listed(one))
    one.join(swarm.listed(late, level=False))
    swarm.turn_until(lambda: late.peer.ready)
    assert w(late) == [1, 2, 3]
    assert late.knows(Unit(0, 0, 0))
    assert late.figures(False).lanes.adoptions == 1


def test_what_lanes_are_told_of_trainings_and_tasks_changes_nothing(swarm: Swarm) -> None:
    one = swarm.add(Lanes)
    one.load()
    connection = socket.socket()
    for call in (
        lambda: one.resume(1, None),
        lambda: one.settle(1, 2),
        lambda: one.begins(connection),
        lambda: one.ends(connection),
        lambda: one.hang_up(connection),
    ):
        call()
    assert one.figures(True) == one.figures(False)
    one.warn("text")
    assert swarm.warned == ["text"]
    connection.close()


def test_what_peers_hold_in_memory_follows_the_size_of_the_model(swarm: Swarm) -> None:
    small = swarm.house()
    settings = lane_settings(small)
    assert settings.pulls_max == lanes_module.PAYLOADS_BYTES_MAX // LAYOUT.nbytes
    assert settings.segments_max == 64
    assert settings.advert_own_gap_s == lanes_module.OWN_ADVERT_GAP_S
    assert settings.detection is not None
    assert settings.kinds is small.replica.kinds
    small.replica.close()

    class Large:
        replica = small.replica
        settings = small.settings

        class layout:  # noqa: N801 - an attribute of a house
            nbytes = 3 << 27

    large = lane_settings(Large)  # type: ignore[arg-type]
    assert (large.pulls_max, large.segments_max) == (1, lanes_module.SEGMENTS_BYTES_MAX // (3 << 27))
    Large.layout.nbytes = 1 << 40
    assert lane_settings(Large).segments_max == 8  # type: ignore[arg-type]
    Large.layout.nbytes = 0
    assert lane_settings(Large).pulls_max == lanes_module.PAYLOADS_BYTES_MAX  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ a master's star


# -------------------------------------------------------------------------------------------------------------- mixing


def mixed(swarm: Swarm, role: Any = "peer") -> Any:
    return swarm.add(Mixing, role, pack_strategy(DPsgd(), topology.complete))


def begin(swarm: Swarm, peers: int) -> list[Any]:
    found = [mixed(swarm) for _ in range(peers)]
    for each in found:
        each.load()
    swarm.introduce()
    return found


def test_a_peer_that_mixes_alone_takes_its_steps(swarm: Swarm) -> None:
    (one,) = begin(swarm, 1)
    task = socket.socket()
    one.resume(1, None)
    one.begins(task)
    step = one.submissions.submit(update(1, 2, 3), Unit(0, 1, 4))
    swarm.turn_until(lambda: one.has_settled(step))
    assert w(one) == [1, 2, 3]
    assert one.house.replica.merged == 1
    assert one.knows(Unit(0, 1, 4))
    assert one.furthest(0, 1) == 4
    assert one.spans(0) == {(0, 1): (4, 4)}
    assert one.departed() == []
    again = one.submissions.submit(update(1, 2, 3), Unit(0, 1, 4))
    swarm.turn_until(lambda: one.has_settled(again))
    assert again.outcome is Outcome.KNOWN
    figures = one.figures(False)
    assert (figures.published, figures.refused, figures.mixing.sketch) == (1, 0, None)
    assert (figures.mixing.era, figures.mixing.weight, figures.mixing.edges) == (1, 1.0, {})
    sketch = one.figures(True).mixing.sketch
    assert sketch == Sketch(3, "r" * 32).of(np.array([1.0, 2.0, 3.0]))
    one.ends(task)
    one.ends(task)
    task.close()


def test_the_replica_follows_when_nobody_reads_it(swarm: Swarm) -> None:
    (one,) = begin(swarm, 1)
    task = socket.socket()
    one.resume(1, None)
    one.begins(task)
    reader = Replica(LAYOUT, os.dup(one.house.replica.descriptor))
    with reader.reading():
        step = one.submissions.submit(update(1, 2, 3))
        for _ in range(20):
            one.runtime.poll(0.005)
            assert not one.has_settled(step)
        assert one.turn() == mixing_module.RETRY_S
        assert w(one) == [0, 0, 0]
    assert one.turn() == mixing_module.IDLE_S
    assert one.has_settled(step)
    assert w(one) == [1, 2, 3]
    assert reader.acquire()
    reader.close()
    task.close()


def test_two_peers_average_their_replicas(swarm: Swarm) -> None:
    one, two = begin(swarm, 2)
    tasks = [socket.socket(), socket.socket()]
    for each, task in zip(swarm.all, tasks, strict=True):
        each.resume(1, SOON_S)
        each.begins(task)
    steps = [one.submissions.submit(update(2, 0, 0)), two.submissions.submit(update(0, 4, 0))]
    swarm.turn_until(lambda: one.has_settled(steps[0]) and two.has_settled(steps[1]))
    assert np.sum([w(one), w(two)], axis=0) == pytest.approx([2, 4, 0])
    for each, task in zip(swarm.all, tasks, strict=True):
        each.hang_up(task)
        each.settle(1, max(each.figures(False).mixing.era_rounds for each in swarm.all))
        each.runtime.happen(Exhausted(SOON_S))
    swarm.turn_until(lambda: len(swarm.drained) == 2)
    assert set(map(tuple, swarm.drained.values())) == {()}
    figures = one.figures(False).mixing
    assert figures.edges.keys() == {"host:1"}
    assert figures.edges["host:1"] > 0
    assert figures.received > 0
    assert figures.rounds >= figures.era_rounds > 0
    assert (figures.late, figures.given_up, figures.trouble) == (0, 0, None)
    assert one.house.replica.merged == 1 + figures.received
    for task in tasks:
        task.close()


def test_the_driver_program_s_agent_takes_no_part(swarm: Swarm) -> None:
    observer, one = mixed(swarm, "observer"), mixed(swarm)
    observer.house.replica.arrays()["w"][:] = 5
    observer.load()
    one.load()
    swarm.introduce()
    observer.resume(1, None)
    observer.settle(1, 0)
    assert observer.figures(False).mixing.era == 0
    assert observer.state() is observer.house.replica
    assert one.state() is not one.house.replica
    one.resume(1, None)
    assert one.figures(False).mixing.era == 1
    task = socket.socket()
    one.begins(task)
    step = one.submissions.submit(update(1, 1, 1))
    swarm.turn_until(lambda: one.has_settled(step))
    assert w(one) == [1, 1, 1], "no neighbor has a part in it"
    one.warn("text")
    assert swarm.warned == ["text"]
    task.close()


def test_who_comes_late_begins_with_a_peer_that_answers(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, dead, one, late = mixed(swarm, "observer"), mixed(swarm), mixed(swarm), mixed(swarm)
    listed = [swarm.listed(each) for each in (observer, dead, one)]
    pulls = [each.runtime.endpoints.pulls for each in (observer, dead, one)]
    donor = Donor(dead=(pulls[1],))
    monkeypatch.setattr(discipline_module, "fetch_state", donor)
    late.enter(listed, False)
    assert donor.asked == [(pulls[1], mixing_module.DONOR_TIMEOUT_S), (pulls[2], mixing_module.DONOR_TIMEOUT_S)]
    assert w(late) == [4, 5, 6]
    assert late.peer.ready


def test_who_is_level_or_alone_begins_as_the_driver_program_says(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, one, two, three = mixed(swarm, "observer"), mixed(swarm), mixed(swarm), mixed(swarm)
    donor = Donor()
    monkeypatch.setattr(discipline_module, "fetch_state", donor)
    first = observer.runtime.endpoints.pulls
    two.enter([swarm.listed(observer), swarm.listed(one)], True)
    three.enter([swarm.listed(observer)], False)
    assert donor.asked == [(first, START_TIMEOUT_S)] * 2
    assert w(two) == w(three) == [4, 5, 6]


def test_packets_in_memory_follow_the_size_of_the_model(swarm: Swarm) -> None:
    assert mixed(swarm).peer.settings.pulls_max == mixing_module.PACKETS_BYTES_MAX // LAYOUT.nbytes


# ------------------------------------------------------------------------------------------------------------ sketches


def test_a_sketch_is_linear_and_keeps_lengths() -> None:
    chance = np.random.default_rng(1)
    sketch, vectors = Sketch(5000, "run"), chance.standard_normal((2, 5000))
    first, second, both = (np.array(sketch.of(vector)) for vector in (*vectors, vectors[0] - 2 * vectors[1]))
    assert len(first) == BUCKETS
    np.testing.assert_allclose(both, first - 2 * second, atol=1e-9)
    for vector, of in zip(vectors, (first, second), strict=True):
        assert np.linalg.norm(of) == pytest.approx(np.linalg.norm(vector), rel=0.5)
    ones = np.array(sketch.of(np.ones(5000)))
    assert abs(ones.sum()) < 500, "signs are drawn as well"
    assert {-1.0, 1.0} >= {value for n in range(50) for value in sketch.of(np.eye(1, 5000, n)[0]) if value}


def test_all_of_a_run_draw_the_same_sketch_and_others_do_not() -> None:
    vector = np.arange(300.0)
    assert Sketch(300, "run").of(vector) == Sketch(300, "run").of(vector)
    assert Sketch(300, "run").of(vector) != Sketch(300, "other").of(vector)


def test_the_distance_of_sketches_is_that_of_the_farthest_from_the_mean_over_the_longest() -> None:
    assert distance([]) == 0.0
    assert distance([[3.0, 4.0]]) == 0.0
    assert distance([[0.0, 0.0], [0.0, 0.0]]) == 0.0
    assert distance([[3.0, 4.0], [3.0, 0.0]]) == pytest.approx(2.0 / 5.0)
    assert distance([[3.0, 4.0], [3.0, 4.0], [3.0, 1.0]]) == pytest.approx(2.0 / 5.0)
