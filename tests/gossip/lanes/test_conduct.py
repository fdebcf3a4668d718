"""A peer that lies is left out of the model, and put out by the others: the sums stay sums, and equal everywhere."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Computed, Deliver, Gated, Joined, Keep, Offended, PutOut, Received
from gossip.lanes.peer import Settings
from gossip.membership import Detection
from gossip.messages import Advert, PeerId, Range, Unit
from gossip.sim.faults import Disruption, Faults, Lie
from gossip.sim.simulator import Network, Simulation
from gossip.trust.norms import Limits, NormMax

OBSERVER = PeerId("observer")
SIZE = 20
QUIET = Faults()
ROUGH = Faults(partitions=((4.0, 9.0, True), (8.0, 13.0, False)), pauses=((3.0, 4.0),), crashes=(11.0,))


class Swarm(Simulation):
    """Five peers and an observer; whole numbers are published, so that all checks are for equality."""

    def __init__(
        self, limit: NormMax, *lies: Lie, seed: int = 0, loss: float = 0.2, count: int = 5, faults: Faults = QUIET
    ) -> None:
        super().__init__(
            count,
            {"w": np.zeros(SIZE)},
            seed=seed,
            network=Network(loss=loss, duplication=loss),
            settings=Settings(detection=Detection(), limits=Limits(limit)),
            observer=OBSERVER,
            checks=True,
        )
        self.lanes: dict[PeerId, list[Any]] = {PeerId(f"p{index:03d}"): [] for index in range(count)}
        """What was published by each."""
        self.faults = Disruption(self, replace(faults, lies=lies), random.Random(seed))
        self.script = np.random.default_rng(seed)

    def train(self, updates: int, length: float = 100.0) -> None:
        """Each peer publishes so many updates, one a second, of about this norm."""
        begin = self.now
        for number in range(updates):
            for partition, me in enumerate(self.lanes):
                update = np.round(self.script.normal(0, length / SIZE**0.5, SIZE))
                unit = Unit(0, partition, round(begin) + number)
                self.at(begin + number + self.script.random(), lambda me=me, u=update, n=unit: self.publish(me, u, n))  # type: ignore[misc]
        self.run(begin + updates + 1)

    def publish(self, me: PeerId, update: Any, unit: Unit) -> None:
        self.lanes[me].append(update)
        self.happen(me, Computed(Packed.of({"w": update}), unit))

    def honest_sum(self, liar: PeerId, of_liar: int) -> Any:
        """That of all updates, but for those of one peer behind the first so many."""
        parts = (updates[: of_liar if me == liar else None] for me, updates in self.lanes.items())
        return sum(sum(part, np.zeros(SIZE)) for part in parts)

    @property
    def liars(self) -> list[PeerId]:
        return [me for me, host in self.peers.items() if host.lie is not None]


@pytest.mark.parametrize("limit", ["auto", 1e4])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("since", [0.0, 6.0])
def test_who_lies_is_put_out_and_all_others_have_the_same_exact_sum(limit: NormMax, noise: bool, since: float) -> None:
    for seed in range(3):
        swarm = Swarm(limit, Lie(since, noise=noise), seed=seed)
        swarm.train(12)
        swarm.run_until_drained()
        (liar,) = swarm.liars
        assert swarm.live().keys() == swarm.peers.keys() - {liar}, f"seed {seed}"
        assert swarm.is_level()
        fronts = {me: host.peer.replicator.frontiers()[liar] for me, host in swarm.live().items()}
        (front,) = set(fronts.values())
        assert front <= (0 if since == 0.0 else 7)
        for me, host in swarm.live().items():
            assert (swarm.arrays(me)["w"] == swarm.honest_sum(liar, front)).all()
            assert "others refuse its updates" in host.peer.roster.out[liar]
            assert host.peer.roster.out.keys() == {liar}
            assert liar not in host.peer.conduct.norms.known(OBSERVER), "it makes no other absurd update usual"


@pytest.mark.parametrize("seed", range(4))
def test_on_a_bad_day_with_a_liar_all_who_live_come_to_the_same_prefixes(seed: int) -> None:
    swarm = Swarm("auto", Lie(2.0), seed=seed, faults=ROUGH)
    swarm.train(16)
    swarm.faults.end()
    swarm.run_until_drained()
    (liar,) = swarm.liars
    live = swarm.live()
    assert swarm.is_level(), f"seed {seed}"
    assert liar not in live or not any(host.peer.roster.out for host in live.values())
    for me, host in live.items():
        fronts = host.peer.replicator.frontiers()
        parts = (sum(updates[: fronts.get(lane, 0)], np.zeros(SIZE)) for lane, updates in swarm.lanes.items())
        assert (swarm.arrays(me)["w"] == sum(parts)).all(), f"seed {seed}"
        assert np.abs(swarm.arrays(me)["w"]).max() < 1e5
        assert host.peer.roster.out.keys() <= {liar}


def test_survivors_agree_on_the_middle_of_a_lane_that_was_put_out_and_on_the_end_of_any_other() -> None:
    conduct, (a, b, c, bad) = (
        Swarm("auto").peers[OBSERVER].peer.conduct,
        (PeerId(f"p00{number}") for number in range(4)),
    )
    ranks = {a: {bad: 4}, b: {bad: 4}, c: {bad: 9}}
    assert conduct.donor(ranks, [bad]) == c
    conduct._roster.out[bad] = "it lies"
    assert conduct.donor(ranks, [bad]) == b
    assert conduct.donor({**ranks, a: {bad: 4, c: 1}}, [bad, c]) == a, "among these, the one that has most of the dead"


def test_who_comes_late_hears_of_a_peer_that_was_put_out_before() -> None:
    swarm = Swarm("auto", Lie(2.0), seed=3, faults=Faults(joins=(9.0,)))
    swarm.train(12)
    swarm.run_until_drained()
    (liar,) = swarm.liars
    late = swarm.peers[PeerId("q000")].peer
    assert swarm.is_level()
    assert liar in late.roster.out
    assert liar not in late.members, "nobody introduced it"
    swarm.happen(PeerId("q000"), Joined(liar))
    assert late.roster.gone == {liar}
    assert (swarm.arrays(PeerId("q000"))["w"] == swarm.arrays(OBSERVER)["w"]).all()


def test_whatever_the_limit_nobody_honest_is_put_out_or_left_out() -> None:
    for seed in range(3):
        swarm = Swarm("auto", seed=seed)
        swarm.train(6)
        swarm.train(6, length=1e4)  # all begin to take steps that are a hundred times as long
        swarm.train(6, length=3.0)
        swarm.run_until_drained()
        assert len(swarm.live()) == 6
        left_out = sum(host.peer.conduct.left_out for host in swarm.peers.values())
        missing = swarm.honest_sum(PeerId(""), 0) - swarm.arrays(OBSERVER)["w"]
        assert 1 <= left_out <= 10, "the first that are longer than those of others so far"
        assert missing.any()
        assert swarm.is_level()


def test_who_has_nobody_to_be_compared_with_is_merged_when_nothing_more_comes() -> None:
    swarm = Swarm("auto")
    swarm.lanes = {PeerId("p000"): []}
    swarm.train(5)
    assert swarm.peers[OBSERVER].peer.replicator.frontiers()[PeerId("p000")] == 0
    swarm.run_until_drained()
    assert (swarm.arrays(OBSERVER)["w"] == swarm.honest_sum(PeerId(""), 0)).all()


def test_a_single_peer_is_merged_at_once() -> None:
    swarm = Swarm("auto", count=1)
    swarm.train(3)
    assert (swarm.arrays(OBSERVER)["w"] == swarm.honest_sum(PeerId(""), 0)).all()


@pytest.mark.parametrize("limit", ["auto", 1e4])
def test_a_peer_leaves_out_its_own_absurd_updates_and_their_units_count(limit: NormMax) -> None:
    swarm = Swarm(limit, Lie(6.0, checks=True))
    swarm.train(12)
    swarm.run_until_drained()
    (liar,) = swarm.liars
    assert len(swarm.live()) == 6
    conduct = swarm.peers[liar].peer.conduct
    count = len(swarm.lanes[liar]) - conduct.left_out
    assert count in (6, 7)
    for me, host in swarm.live().items():
        assert (swarm.arrays(me)["w"] == swarm.honest_sum(liar, count)).all()
        assert host.peer.identities.units == 60
    assert swarm.peers[liar].units_gated == conduct.left_out, "its tasks are told"


def test_without_a_limit_all_is_merged_and_the_peer_is_named() -> None:
    swarm = Swarm(None, Lie(0.0))
    swarm.train(6)
    swarm.run_until_drained()
    (liar,) = swarm.liars
    assert len(swarm.live()) == 6
    assert np.abs(swarm.arrays(OBSERVER)["w"]).max() > 1e6
    for me, host in swarm.live().items():
        if me != liar:
            named = host.peer.conduct.norms.named(host.peer.replicator.origins)
            assert named.keys() == {liar}
            assert 1e5 < named[liar].ratio < 1e7


def told(swarm: Swarm, me: PeerId, refuses: tuple[PeerId, ...], to: PeerId) -> None:
    """`me` says whom it refuses."""
    front = swarm.peers[me].peer.replicator.frontiers()
    n = front.pop(me)

    swarm.happen(to, Received(Advert(me, n, front, True, 10**6, (), refuses)))


def test_few_that_slander_a_peer_put_nobody_out() -> None:
    swarm = Swarm("auto", loss=0.0)
    swarm.train(2)
    good, *others = swarm.lanes
    for liar in others[:2]:
        for to in (*others[2:], OBSERVER):
            told(swarm, liar, (good,), to)
    assert all(not host.peer.roster.out for host in swarm.peers.values())
    told(swarm, others[2], (good,), OBSERVER)
    assert swarm.peers[OBSERVER].peer.roster.out.keys() == {good}, "three of five others"


def test_who_offends_three_times_is_put_out_here_and_its_messages_are_not_heard() -> None:
    swarm = Swarm(None, loss=0.0)
    swarm.train(2)
    me, bad = PeerId("p000"), PeerId("p001")
    peer, now = swarm.peers[me].peer, swarm.now
    assert [peer.handle(Offended(bad, "no message"), now) for _ in range(2)] == [[], []]
    effects = peer.handle(Offended(bad, "no message"), now)
    assert [type(effect) for effect in effects if isinstance(effect, PutOut)] == [PutOut]
    assert peer.roster.gone == {bad}
    front = peer.replicator.frontiers()[bad]
    update = Packed.of({"w": np.ones(SIZE)})
    told_range = Range(bad, front + 1, front + 1, 10**6, (), update.layout, update)

    effects = peer.handle(Received(told_range), now)
    assert not any(isinstance(effect, Deliver | Keep) for effect in effects)
    assert peer.replicator.frontiers()[bad] == front
    assert peer.handle(Offended(PeerId("nobody"), "no message"), now) == []


def test_an_update_that_is_left_out_is_told_as_one_that_was_known() -> None:
    swarm = Swarm(5.0, loss=0.0)
    me = PeerId("p000")
    peer = swarm.peers[me].peer
    effects = peer.handle(Computed(Packed.of({"w": np.ones(SIZE)}), Unit(0, 0, 0)), 1.0)
    assert not any(isinstance(effect, Gated) for effect in effects)
    effects = peer.handle(Computed(Packed.of({"w": np.full(SIZE, 2.0)}), Unit(0, 0, 1)), 1.0)
    assert Gated(Unit(0, 0, 1)) in effects
    (delivered,) = (effect for effect in effects if isinstance(effect, Deliver))
    assert isinstance(delivered.payload, Packed)
    assert not delivered.payload.arrays()["w[rows]"].size
    # what the user writes, and what codecs have left, has no unit and may be of any length
    effects = peer.handle(Computed(Packed.of({"w": np.full(SIZE, 2.0)})), 1.0)
    assert not any(isinstance(effect, Gated) for effect in effects)
