"""A long training: what a peer keeps does not grow with it, and what an update costs does not either."""

from __future__ import annotations

import random
import tracemalloc
from array import array
from functools import partial

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Closed, Computed, Joined, Received, Send, Started, Ticked
from gossip.identity import Identities
from gossip.lanes.peer import Peer, Settings
from gossip.marks import Series
from gossip.messages import Advert, PeerId, Range, State, StateRequest, Unit
from gossip.sim.simulator import Simulation
from gossip.wire import decode, encode

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")
UPDATE = Packed.of({"w": np.ones(3)})
PARTITIONS = 100
AT_ONCE = 500
"""Units that one range sums."""


def started() -> Peer:
    peer = Peer(ME, UPDATE.layout, chance=random.Random(0))
    for other in (A, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    return peer


def steps(kind: str, begin: int, chance: random.Random) -> tuple[int, bytes]:
    """`AT_ONCE` chunks after `begin`, as runs: the last of them, and all."""
    if kind == "chunks":
        return begin + AT_ONCE, array("q", [begin + 1, begin + AT_ONCE, 1]).tobytes()
    runs = array("q")
    for _ in range(AT_ONCE // 2):
        step = chance.randint(900, 1054)
        runs.extend((begin + 901, begin + 901 + step, step))
        begin += 901 + step
    return begin, runs.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bytes_a_unit"), [("chunks", 0.2), ("continuous", 14)])
def test_a_million_units_are_known_in_little_room_and_told_of_in_blocks(kind: str, bytes_a_unit: float) -> None:
    peer, chance = started(), random.Random(0)
    last = dict.fromkeys(range(PARTITIONS), -1)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        for number in range(2_000):
            partition = number % PARTITIONS
            last[partition], runs = steps(kind, last[partition], chance)
            hi = AT_ONCE * (number + 1)
            marks = (Series(0, partition, 0, False, runs),)
            peer.handle(Received(Range(A, hi - AT_ONCE + 1, hi, 1, marks, UPDATE.layout, UPDATE)), 0.01 * number)
        for number in range(1_000):
            peer.handle(Computed(UPDATE, Unit(0, PARTITIONS, number)), 30 + 0.01 * number)
            peer.handle(Received(Advert(A, 1_000_000, {ME: number + 1}, k=1)), 30 + 0.01 * number)
            peer.handle(Received(Advert(B, 0, {ME: number + 1, A: 1_000_000}, k=1)), 30 + 0.01 * number)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert peer.identities.units == 1_001_000
    assert grown < 200_000 + bytes_a_unit * peer.identities.units
    assert peer.identities.runs == (PARTITIONS + 1 if kind == "chunks" else 500_001)
    assert len(peer.replicator.segments) <= 2
    for partition, chunk in last.items():
        assert peer.identities.furthest(0, partition) == chunk
        assert peer.identities.knows(Unit(0, partition, chunk))
        assert not peer.identities.knows(Unit(0, partition, chunk + 1))

    (sent,) = [e for e in peer.handle(Received(StateRequest(A, 1, {}, (A, B, ME))), 99.0) if isinstance(e, Send)]
    frames = encode(sent.message, UPDATE)
    assert len(frames[0]) < 1000
    state = decode(frames)
    assert isinstance(state, State)
    known = Identities.told(state.marks, state.closed, state.units)
    assert (known.units, known.runs) == (peer.identities.units, peer.identities.runs)

    peer.handle(Closed(1), 100.0)
    peer.handle(Ticked(), 101.0)
    assert peer.identities.units == 1_001_000
    assert (peer.identities.runs, peer.identities.watched) == (0, 0)


def kept(peer: Peer) -> dict[str, int]:
    """How much of everything."""
    lane = peer.replicator
    return {
        "runs": peer.identities.runs,
        "watched": peer.identities.watched,
        "segments": len(lane.segments),
        "runs of segments": sum(
            len(series.runs) // 24 for segment in lane.segments for series in segment.marks.packed()
        ),
        "pins": len(lane.pins),
        "readers": len(lane.readers),
        "origins": len(lane.origins),
        "members": len(peer.members),
        "retained": len(peer.units.retained),
        "awaited": len(peer.units.awaited),
    }


@pytest.mark.slow
def test_an_hour_of_training_leaves_nothing_behind() -> None:
    """Three peers, six trainings of ten minutes: two peers' tasks by chunk, one's continuous, and some tried twice."""
    settings = Settings(advert_period_s=4.0, advert_gap_s=2.0, pull_timeout_s=8.0)
    swarm = Simulation(3, {"w": np.zeros(4, np.int64)}, seed=1, settings=settings)
    update, chance = Packed.of({"w": np.ones(4, np.int64)}), random.Random(1)
    one = list(swarm.peers)
    units: set[Unit] = set()
    sizes, most_runs = [], 0
    for epoch in range(6):
        begin, trained = 600.0 * epoch, 0
        for number in range(250):
            trained += chance.randint(900, 1054)
            for index, chunk in ((0, number), (1, number), (2, trained)):
                unit = Unit(epoch, index, chunk)
                units.add(unit)
                swarm.at(begin + 2.0 * number, partial(swarm.happen, one[index], Computed(update, unit, 0)))
                if number % 50 == 0:  # a copy that is as far
                    copy = Computed(update, unit, 1)
                    swarm.at(begin + 2.0 * number + 0.1, partial(swarm.happen, one[index - 1], copy))
        for index in range(3):
            swarm.at(begin + 560.0 + 5.0 * index, partial(swarm.happen, one[index], Closed(epoch + 1)))
        swarm.run(begin + 550.0)
        peers = [host.peer for host in swarm.peers.values()]
        assert all(peer.identities.units == len(units) for peer in peers)
        most_runs = max(most_runs, *(peer.identities.runs for peer in peers))
        swarm.run(begin + 599.0)
        sizes.append([kept(peer) for peer in peers])
    assert sizes[-1] == sizes[0]
    assert all(size["runs"] == size["watched"] == size["retained"] == 0 for size in sizes[-1])
    assert most_runs < 200  # of 250 continuous units, two are a run
    assert all(peer.identities.units == len(units) for peer in peers)
    assert sum(peer.units.withdrawn for peer in peers) > 0
    assert swarm.is_level()
