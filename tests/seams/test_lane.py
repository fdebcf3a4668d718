"""A lane is a type apart from its peer: a relay, written here alone, serves another peer's lane to readers that ask it.

owner p000 --lane--> relay --lane--> readers, whose `source` names the relay
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Computed, Deliver, Effect, Fold, Forget, Keep, Send
from gossip.lanes.origin import LaneOrigin, Segment
from gossip.lanes.peer import Peer, Settings
from gossip.lanes.reader import LaneReader
from gossip.messages import Message, PeerId, Pull, Range, Unknown
from gossip.sim.simulator import Network, Simulation
from gossip.wire import decode, encode

OWNER, RELAY = PeerId("owner"), PeerId("relay")
READERS = tuple(PeerId(name) for name in ("far", "farther", "farthest"))


class Kept:
    """Segments of a lane in memory, by what `Keep`, `Fold` and `Forget` say."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], float] = {}

    def carry_out(self, effect: Effect) -> None:
        match effect:
            case Keep(lo, hi, payload):
                assert isinstance(payload, Packed)
                before = next((span for span in self._sums if span[0] == lo), None)
                sum_before = self._sums.pop(before) if before is not None else 0.0
                self._sums[lo, hi] = sum_before + float(payload.arrays()["w"][0])
            case Fold(lo, hi):
                inside = [span for span in self._sums if lo <= span[0] and span[1] <= hi]
                self._sums[lo, hi] = sum([self._sums.pop(span) for span in inside])
            case Forget(through):
                for span in [span for span in self._sums if span[1] <= through]:
                    del self._sums[span]

    def sum(self, lo: int, hi: int) -> Packed:
        spans = sorted(span for span in self._sums if lo <= span[0] and span[1] <= hi)
        assert spans[0][0] == lo
        assert spans[-1][1] == hi, "whole segments"
        return Packed.of({"w": np.array([sum(self._sums[span] for span in spans)])})


class RelayedLane(LaneOrigin):
    """A lane of another peer: what comes is a stretch of updates, which is kept as one."""

    def append(self, lo: int, hi: int, payload: Packed) -> list[Effect]:
        assert lo == self.n + 1
        self.n = hi
        self.segments.append(Segment(lo, hi))
        return [Keep(lo, hi, payload), *self.compact()]


class Relay:
    """Reads the owner's lane as anybody does, and serves what it has as a lane of the same name."""

    def __init__(self) -> None:
        self.reading = LaneReader(RELAY, pull_timeout_s=1.0, pulls_max=1)
        self.reading.read(OWNER)
        self.serving = RelayedLane(RELAY, OWNER, coalesce=True)
        self.kept = Kept()

    def take(self, message: Message) -> list[Effect]:
        if isinstance(message, Pull):
            assert message.lane == OWNER
            return self.serving.on_pull(message)
        assert isinstance(message, Range)
        effects: list[Effect] = []
        for effect in self.reading.on_range(message):
            assert isinstance(effect, Deliver)
            assert isinstance(effect.payload, Packed)
            effects += self.serving.append(effect.lo, effect.hi, effect.payload)
        return effects


class Reader:
    """One that is told of the owner's lane and asks the relay for it."""

    def __init__(self, me: PeerId) -> None:
        self.reading = LaneReader(me, pull_timeout_s=1.0, pulls_max=1, source=lambda lane: RELAY)
        self.reading.read(OWNER)
        self.value = 0.0
        self.ranges: list[tuple[int, int]] = []

    def take(self, message: Message) -> list[Effect]:
        assert not isinstance(message, Unknown)
        assert isinstance(message, Range)
        for effect in self.reading.on_range(message):
            assert isinstance(effect, Deliver)
            assert isinstance(effect.payload, Packed)
            assert effect.lane == OWNER
            self.value += float(effect.payload.arrays()["w"][0])
            self.ranges.append((effect.lo, effect.hi))
        return []


@pytest.mark.parametrize("seed", range(20))
def test_every_update_reaches_every_reader_of_a_relay_exactly_once(seed: int) -> None:
    """Though messages are lost, repeated and late."""
    chance = random.Random(seed)
    owner, kept = LaneOrigin(OWNER, OWNER, coalesce=True), Kept()
    owner.admit(RELAY, level=True)
    relay, readers = Relay(), {name: Reader(name) for name in READERS}
    for name in READERS:
        relay.serving.admit(name, level=True)
    on_the_way: list[tuple[PeerId, list[Any]]] = []
    takers: dict[PeerId, tuple[Callable[[Message], list[Effect]], Kept]] = {
        OWNER: (lambda message: owner.on_pull(message) if isinstance(message, Pull) else [], kept),
        RELAY: (relay.take, relay.kept),
        **{name: (reader.take, Kept()) for name, reader in readers.items()},
    }

    def carry_out(effects: list[Effect], here: Kept) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                here.carry_out(effect)
                continue
            message = effect.message
            payload = here.sum(message.lo, message.hi) if isinstance(message, Range) else None
            for _ in range(chance.choice((0, 1, 1, 2))):
                on_the_way.insert(chance.randint(0, len(on_the_way)), (effect.to, list(encode(message, payload))))

    published = 0.0
    for now in range(400):
        if now < 60 and chance.random() < 0.5:
            update = Packed.of({"w": np.array([2.0 ** chance.randint(0, 9)])})
            published += float(update.arrays()["w"][0])
            carry_out(owner.publish(update, ()), kept)
        relay.reading.heard(OWNER, owner.n)
        carry_out(relay.reading.pulls(float(now)), relay.kept)
        for reader in readers.values():
            if chance.random() < 0.5:
                reader.reading.heard(OWNER, relay.serving.n)  # as an advert of the relay's would say
                carry_out(reader.reading.pulls(float(now)), Kept())
        while on_the_way and chance.random() < 0.8:
            to, frames = on_the_way.pop()
            take, here = takers[to]
            carry_out(take(decode(frames)), here)
    for reader in readers.values():
        assert reader.value == published
        assert [lo for lo, _ in reader.ranges] == [1, *(hi + 1 for _, hi in reader.ranges[:-1])]
    assert any(reader.ranges != readers[READERS[0]].ranges for reader in readers.values()), "each in its own stretches"


def test_a_range_is_taken_from_the_lane_s_source_alone() -> None:
    reader = Reader(READERS[0]).reading
    reader.heard(OWNER, 3)
    (pull,) = reader.pulls(0.0)
    assert pull == Send(RELAY, Pull(READERS[0], 0, 1, OWNER))
    update = Packed.of({"w": np.ones(1)})
    assert reader.on_range(Range(OWNER, 1, 3, 1, (), update.layout, update)) == []
    assert reader.on_range(Range(RELAY, 1, 3, 1, (), update.layout, update)) == [], "the relay's own lane"
    (applied,) = reader.on_range(Range(RELAY, 1, 3, 1, (), update.layout, update, lane=OWNER))
    assert applied == Deliver(OWNER, 1, 3, update)


def test_of_one_source_one_lane_is_asked_at_a_time() -> None:
    reader = LaneReader(READERS[0], pull_timeout_s=1.0, pulls_max=8, source=lambda lane: RELAY)
    for lane in (OWNER, PeerId("other")):
        reader.read(lane)
        reader.heard(lane, 1)
    (first,) = reader.pulls(0.0)
    assert isinstance(first, Send)
    assert isinstance(first.message, Pull)
    update = Packed.of({"w": np.ones(1)})
    reader.on_range(Range(RELAY, 1, 1, first.message.k, (), update.layout, update, lane=first.message.lane))
    (second,) = reader.pulls(0.1)
    assert isinstance(second, Send)
    assert isinstance(second.message, Pull)
    assert {first.message.lane, second.message.lane} == {OWNER, PeerId("other")}
    reader.progressed(RELAY, 0.9)
    assert reader.pulls(1.5) == [], "part of the answer came"
    assert reader.deadline() == 1.9
    assert second.message.lane is not None
    reader.progressed(second.message.lane, 1.0)
    assert reader.deadline() == 1.9, "of its owner nothing was asked"


def test_a_source_that_is_busy_keeps_nobody_from_asking_another() -> None:
    other, third, idle = (PeerId(name) for name in ("other", "third", "idle"))
    reader = LaneReader(
        READERS[0], pull_timeout_s=1.0, pulls_max=8, source=lambda lane: idle if lane == third else RELAY
    )
    for lane in (OWNER, other, third):
        reader.read(lane)
        reader.heard(lane, 1)
    assert [effect.to for effect in reader.pulls(0.0) if isinstance(effect, Send)] == [RELAY, idle]


def test_a_swarm_asks_whom_its_settings_name() -> None:
    """Here as by default, by a policy of one's own; one that names nobody who serves the lane moves nothing."""
    asked: list[PeerId] = []

    def owner_again(lane: PeerId) -> PeerId:
        asked.append(lane)
        return lane

    for source, level in ((owner_again, True), (lambda lane: PeerId("p000"), False)):
        swarm = Simulation(3, {"w": np.zeros(2)}, seed=1, network=Network(), settings=Settings(source=source))
        for me in swarm.live():
            assert isinstance(swarm.peers[me].peer, Peer)
            swarm.happen(me, Computed(Packed.of({"w": np.ones(2)})))
        swarm.run(5.0)
        assert swarm.is_level() == level
    assert asked
