"""Small swarms that find out themselves who is gone: what becomes of lanes and replicas then, and when one is back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from gossip.arrays import ArraySpec, Layout, Packed
from gossip.errors import MismatchError
from gossip.events import (
    Computed,
    Disconnected,
    Effect,
    Joined,
    Keep,
    Leaving,
    Negative,
    Progressed,
    Received,
    Retain,
    Send,
    Started,
    Ticked,
    Warn,
)
from gossip.lanes.peer import Peer, Settings
from gossip.marks import packed
from gossip.membership import Detection
from gossip.messages import Ack, Advert, Mark, Message, PacketReply, PeerId, Pin, Ping, PingRequest, Range, State, Unit
from gossip.sim.simulator import Network, Simulation
from gossip.updates.rows import rows_of

P0, P1, P2, P3 = (PeerId(f"p00{index}") for index in range(4))
UPDATE = Packed.of({"w": np.ones(4)})
SETTINGS = Settings(detection=Detection(), settle_s=1.0, forget_s=8.0)


def swarm(settings: Settings = SETTINGS, **options: Any) -> Simulation:
    """Four peers on a good network, each with an update that all have."""
    made = Simulation(4, {"w": np.zeros(4)}, seed=1, network=Network(delay_mean_s=0.01), settings=settings, **options)
    for index, me in enumerate((P0, P1, P2, P3)):
        made.compute(0.1, me, {"w": np.eye(4)[index]})
    made.run(1.0)
    assert_level(made, [1.0] * 4)
    return made


def assert_level(made: Simulation, expected: list[float]) -> None:
    assert made.is_level()
    for me in made.live():
        assert made.arrays(me)["w"].tolist() == expected


def departed(made: Simulation, peer: PeerId) -> dict[PeerId, float]:
    """Who takes it for dead, and since when by its clock."""
    found = {me: host.peer.members[peer].departed_at for me, host in made.live().items() if me != peer}
    return {me: since for me, since in found.items() if since is not None}


def adoptions(made: Simulation) -> list[int]:
    adopters = [host.peer.adopter for host in made.live().values()]
    return [adopter.done for adopter in adopters if adopter is not None]


def test_what_one_survivor_has_of_a_dead_lane_all_have_in_the_end() -> None:
    made = swarm()
    made.blocked = lambda sender, to: sender == P3 and to != P1
    made.compute(1.1, P3, {"w": np.full(4, 2.0)})
    made.run(1.3)
    made.crash(P3)
    made.run(2.2)
    assert departed(made, P3) == {}
    made.run(5.0)
    assert departed(made, P3).keys() == {P0, P1, P2}
    made.run(9.0)
    assert_level(made, [3.0] * 4)
    assert adoptions(made) == [1, 0, 1]
    assert made.run_until_drained() < 1.0
    assert {host.missing for host in made.live().values()} == {()}
    assert all(P3 in host.peer.replicator.readers for host in made.live().values())
    made.run(16.0)
    assert not any(P3 in host.peer.replicator.readers for host in made.live().values())
    assert all(host.peer.members[P3].forgotten for host in made.live().values())


def test_who_leaves_is_gone_for_all_at_once_and_says_nothing_more() -> None:
    made = swarm()
    made.happen(P3, Leaving())
    assert made.peers[P3].machine.deadline() == float("inf")
    made.run(1.2)
    assert departed(made, P3).keys() == {P0, P1, P2}
    made.compute(1.3, P0, {"w": np.ones(4)})
    made.run(3.0)
    assert made.arrays(P3)["w"].tolist() == [1.0] * 4
    made.crash(P3)
    assert_level(made, [2.0] * 4)


def test_who_froze_is_taken_for_dead_and_goes_on_where_it_stood() -> None:
    made = swarm()
    made.peers[P3].paused_until = 6.0
    for time in (2.0, 4.0, 5.0):
        made.compute(time, P0, {"w": np.ones(4)})
    made.run(5.9)
    assert departed(made, P3).keys() == {P0, P1, P2}
    made.run(7.5)
    assert departed(made, P3) == {}
    assert_level(made, [4.0] * 4)
    assert adoptions(made) == [0] * 4


def test_a_connection_that_broke_tells_of_a_death_sooner_than_silence() -> None:
    made = swarm()
    made.crash(P3)
    for me in (P0, P1, P2):
        made.happen(me, Disconnected(P3))
    made.run(1.0 + Detection().suspicion_min_s + 0.1)
    assert departed(made, P3).keys() == {P0, P1, P2}


def test_one_that_comes_late_adopts_and_brings_in_what_nobody_told_it_of() -> None:
    made = swarm()
    made.blocked = lambda sender, to: sender == P3 and to != P1
    made.compute(1.1, P3, {"w": np.full(4, 2.0)})
    made.run(1.3)
    made.crash(P3)
    made.join(PeerId("late"))
    assert not made.peers[PeerId("late")].peer.ready
    made.run(12.0)
    assert made.peers[PeerId("late")].peer.ready
    assert_level(made, [3.0] * 4)


@pytest.mark.parametrize("segments_max", [64, 12])
def test_two_halves_of_a_cut_are_level_again_when_it_heals(segments_max: int) -> None:
    """With room for few segments the half of the smallest name forgets the others, who adopt then."""
    made = swarm(Settings(detection=Detection(), settle_s=1.0, segments_max=segments_max, coalesce=False))
    halves = {P0, P1}, {P2, P3}
    made.blocked = lambda sender, to: any((sender in half) != (to in half) for half in halves)
    for number in range(40):
        made.compute(1.5 + number / 4, (P0, P2)[number % 2], {"w": np.ones(4)})
    made.run(14.0)
    assert departed(made, P2).keys() == {P0, P1}
    assert departed(made, P0).keys() == {P2, P3}
    for me in (P0, P1):
        assert all(
            made.peers[me].peer.members[peer].forgotten == (segments_max == 12 and me == P0) for peer in halves[1]
        )
    assert not any(made.peers[P2].peer.members[peer].forgotten for peer in halves[0])
    made.blocked = lambda sender, to: False
    made.run(30.0)
    assert_level(made, [41.0] * 4)
    assert (sum(adoptions(made)) > 0) == (segments_max == 12)
    assert all(host.peer.refused == 0 for host in made.live().values())


def knows(*others: PeerId, detection: Detection | None = None) -> Peer:
    """A peer by itself that has a replica, and knows these."""
    one = Peer(P0, UPDATE.layout, Settings(detection=detection, settle_s=1.0), random.Random(1))
    for other in others:
        one.handle(Joined(other), 0.0)
    one.handle(Started({}), 0.0)
    return one


def sent(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def test_the_lane_of_one_whom_nobody_introduced_is_that_of_a_dead_one_until_it_joins() -> None:
    for joins in (False, True):
        one = knows(P1)
        one.handle(Received(Advert(P1, 0, {P3: 2})), 1.0)
        if joins:
            one.handle(Joined(P3), 1.5)
        early = sent(one.handle(Ticked(), 1.9))
        late = sent(one.handle(Ticked(), 2.1))
        assert not any(isinstance(message, Pin) for message in early)
        assert any(isinstance(message, Pin) for message in late) == (not joins)


def test_who_sends_a_large_answer_is_heard_while_it_comes_in() -> None:
    for arrived in (True, False):
        one = knows(P1, detection=Detection())
        one.handle(Progressed(P1, arrived), 0.9)
        assert any(isinstance(message, Ping) for message in sent(one.handle(Ticked(), 1.2))) == (not arrived)


def test_an_answer_to_a_ping_for_another_is_passed_on() -> None:
    one = knows(P1, P2, detection=Detection())
    (ping,) = sent(one.handle(Received(PingRequest(P1, 7, P2)), 0.1))
    assert isinstance(ping, Ping)
    assert Ack(P0, 7, P2) in sent(one.handle(Received(Ack(P2, ping.k, P2)), 0.2))


def test_only_later_attempts_may_have_to_be_taken_back_and_each_is_counted() -> None:
    one = knows(P1)
    first, second, third = (Unit(0, 0, chunk) for chunk in range(3))
    assert not any(isinstance(effect, Retain) for effect in one.handle(Computed(UPDATE, first, 0), 0.1))
    for unit in (second, third):
        assert any(isinstance(effect, Retain) for effect in one.handle(Computed(UPDATE, unit, 1), 0.1))
    kept: list[Any] = []
    for number, unit in enumerate((second, third), 1):
        marks = packed([Mark(unit, 0)])
        effects = one.handle(Received(Range(P1, number, number, 1, marks, UPDATE.layout, UPDATE)), 0.2)
        kept += [effect.payload for effect in effects if isinstance(effect, Keep)]
    assert kept == [Negative(2), Negative(3)]
    assert one.units.withdrawn == 2


def test_rows_that_are_none_of_the_model_are_refused() -> None:
    one = knows(P1)
    bad = Packed.of(rows_of("w", np.array([4]), np.ones(1)))
    effects = one.handle(Received(Range(P1, 1, 1, 1, (), bad.layout, bad)), 0.1)
    assert one.refused == 1
    assert any(isinstance(effect, Warn) for effect in effects)


def test_what_is_wanted_is_what_would_be_applied_and_fits() -> None:
    made = swarm()
    one = made.peers[P0].peer
    layout = made.layout
    other = Layout((ArraySpec("w", "<f4", (4,)),))
    one.replicator.void = 0
    assert one.expects(Range(P1, 2, 3, 9, (), layout))
    assert not one.expects(Range(P1, 3, 3, 9, (), other))
    with pytest.raises(MismatchError):
        one.expects(Range(P1, 2, 3, 9, (), other))
    assert not one.expects(State(P1, {}, 1, {}, layout))
    assert not one.expects(PacketReply(P1, 1, 1, 1, 1, {}, layout))
    late = Peer(PeerId("late"), layout, SETTINGS)
    assert not late.expects(State(P1, {}, 1, {}, other))
    made.join(late.me)
    made.run(1.005)
    joined = made.peers[late.me].peer
    adopter = joined.adopter
    assert adopter is not None
    made.run_while(lambda: not adopter.under_way)
    assert adopter._adoption is not None
    donor, k = adopter._adoption.donor, adopter._adoption.k
    assert joined.expects(State(donor, {}, k, {}, layout))
    assert not joined.expects(State(donor, {}, k + 1, {}, other))
    with pytest.raises(MismatchError):
        joined.expects(State(donor, {}, k, {}, other))


def test_a_peer_without_a_layout_wants_any() -> None:
    one = Peer(P0, None)
    one.handle(Started({}), 0.0)
    one.replicator.join(P1, reads=True, read=True, level=True)
    assert one.expects(Range(P1, 1, 1, 1, (), Packed.of({"x": np.ones(1)}).layout))
