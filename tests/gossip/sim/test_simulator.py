"""Whole swarms on virtual time: whatever the network loses, repeats and reorders, every update is everywhere once.

Arrays hold integers, so that every check is for equality. A swarm is given by its seed; a failure names it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import Computed, Effect, Event, Fold, Forget, Joined, Received
from gossip.lanes.origin import Segment
from gossip.lanes.peer import Settings
from gossip.lanes.replicate import Replicator
from gossip.messages import PeerId, Pull, Range
from gossip.sim.simulator import InFlight, Line, Network, SimulatedPeer, Simulation
from gossip.wire import encode

INITIAL = {"w": np.array([[1, 2], [3, 4]]), "b": np.array([7])}
BAD_NETWORK = Network(loss=0.3, duplication=0.3)


def replica(values: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Five numbers as the arrays of `INITIAL`."""
    return {"w": values[:4].reshape(2, 2), "b": values[4:]}


def values(packed: Packed) -> np.ndarray[Any, Any]:
    arrays = packed.arrays()
    return np.concatenate([arrays["w"].reshape(-1), arrays["b"]])


class Swarm(Simulation):
    """A simulation that keeps the sums of all prefixes of all lanes, and can check every replica after every event."""

    def __init__(self, count: int, *, seed: int, watched: bool = False, **options: Any) -> None:
        self.prefixes: dict[PeerId, list[np.ndarray[Any, Any]]] = defaultdict(lambda: [np.zeros(5, np.int64)])
        self.watched = False
        super().__init__(count, INITIAL, seed=seed, **options)
        self.watched = watched
        self.seed = seed
        self.script = random.Random(seed)

    def publish(self, updates: int, within_s: float) -> None:
        """Let every peer publish so many updates of large integers, at any times."""
        for me in self.peers:
            for _ in range(updates):
                update = np.array([self.script.getrandbits(40) - (1 << 39) for _ in range(5)])
                self.compute(self.script.uniform(0, within_s), me, replica(update))

    def happen(self, me: PeerId, event: Event, not_before: float = float("-inf")) -> None:
        if isinstance(event, Computed):
            self.prefixes[me].append(self.prefixes[me][-1] + values(Packed.of(event.payload.arrays())))
        super().happen(me, event, not_before)
        if self.watched:
            self.check(me)

    def check(self, me: PeerId) -> None:
        """The replica is the initial one plus a prefix of every lane, and the log is no longer than it must be."""
        host = self.peers[me]
        replicator = host.peer.replicator
        expected = self.expected(replicator.frontiers())
        assert (values(host.replica) == expected).all(), f"seed {self.seed}: {me} at {self.now}"
        assert len(host.segments) == len(replicator.segments)
        segments_max = 2 * len(replicator.readers) + 1
        assert len(host.segments) <= segments_max, f"seed {self.seed}: {me} keeps {len(host.segments)} at {self.now}"

    def expected(self, frontiers: dict[PeerId, int]) -> np.ndarray[Any, Any]:
        start = values(Packed.of(INITIAL))
        return start + sum(self.prefixes[lane][frontier] for lane, frontier in frontiers.items())

    def wrong(self) -> list[PeerId]:
        """The peers whose replica is not the initial one plus every update."""
        total = self.expected({lane: len(prefixes) - 1 for lane, prefixes in self.prefixes.items()})
        return [me for me, host in self.peers.items() if not (values(host.replica) == total).all()]


def adoptions(host: SimulatedPeer) -> int:
    """How often a whole replica was adopted; where everybody is alive, loss alone makes nobody need one."""
    assert host.peer.adopter is not None
    return host.peer.adopter.done


# ------------------------------------------------------------------------------------------------------ exactly once


def everything_arrives_once(seed: int) -> None:
    swarm = Swarm(8, seed=seed, network=BAD_NETWORK)
    swarm.publish(50, within_s=5.0)
    swarm.run(5.0)
    swarm.run_until_drained(timeout_s=120.0)
    assert swarm.wrong() == [], f"seed {seed}"
    for me, host in swarm.peers.items():
        assert host.missing == (), f"seed {seed}: {me}"
        assert host.warnings == [], f"seed {seed}: {me}"
        assert adoptions(host) == 0, f"seed {seed}: {me}"
        assert host.peer.replicator.frontiers() == dict.fromkeys(swarm.peers, 50), f"seed {seed}: {me}"
        assert len(host.segments) == 0, f"seed {seed}: {me}"


@pytest.mark.slow
def test_every_update_is_at_every_peer_exactly_once(over_all_cores: Callable[..., list[None]]) -> None:
    # each mutant below is caught by at least nine of the first twelve seeds; hundreds of days: `make soak`
    assert len(over_all_cores(everything_arrives_once, range(20))) == 20


@pytest.mark.parametrize("loss", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_at_all_times_a_replica_is_a_prefix_of_every_lane(seed: int, loss: float) -> None:
    swarm = Swarm(5, seed=seed, watched=True, network=Network(loss=loss, duplication=0.4, delay_mean_s=0.2))
    swarm.publish(20, within_s=4.0)
    swarm.run(4.0)
    swarm.run_until_drained()
    assert swarm.wrong() == []


@pytest.mark.parametrize("pulls_max", [1, 2])
def test_few_pulls_at_a_time_are_enough(pulls_max: int) -> None:
    swarm = Swarm(6, seed=1, watched=True, network=BAD_NETWORK, settings=Settings(pulls_max=pulls_max))
    swarm.publish(10, within_s=4.0)
    swarm.run(4.0)
    swarm.run_until_drained()
    assert swarm.wrong() == []


def test_lanes_that_are_never_summed_are_complete_too() -> None:
    settings = Settings(coalesce=False, pull_timeout_s=0.3)
    for seed in range(3):
        swarm = Swarm(3, seed=seed, network=BAD_NETWORK, settings=settings)
        swarm.publish(15, within_s=4.0)
        swarm.run(4.0)
        swarm.run_until_drained()
        assert swarm.wrong() == [], f"seed {seed}"


@pytest.mark.slow
def test_seventy_percent_loss_only_takes_longer() -> None:
    for seed in range(5):
        swarm = Swarm(8, seed=seed, network=Network(loss=0.7, duplication=0.3))
        swarm.publish(20, within_s=5.0)
        swarm.run(5.0)
        assert swarm.run_until_drained(timeout_s=300.0) < 300.0, f"seed {seed}"
        assert swarm.wrong() == [], f"seed {seed}"


def test_a_network_that_loses_everything_is_told_by_the_drain() -> None:
    swarm = Swarm(3, seed=1, network=Network(loss=1.0))
    swarm.publish(3, within_s=1.0)
    swarm.run(1.0)
    assert swarm.run_until_drained(timeout_s=10.0) == 10.0
    for me, host in swarm.peers.items():
        assert host.missing == tuple(other for other in swarm.peers if other != me)


def test_after_an_outage_everything_is_level_again() -> None:
    swarm = Swarm(5, seed=1, watched=True, network=Network(loss=1.0))
    swarm.publish(20, within_s=5.0)
    swarm.run(20.0)
    assert swarm.wrong() == list(swarm.peers)
    swarm.network = Network()
    swarm.run(23.0)
    assert swarm.wrong() == []


def test_on_a_good_network_an_update_is_everywhere_at_once() -> None:
    swarm = Swarm(5, seed=1, network=Network(delay_mean_s=0.001))
    swarm.publish(1, within_s=0.1)
    swarm.run(0.2)
    assert swarm.wrong() == []


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("loss", [0.0, 0.4, 0.8])
def test_the_log_is_bounded_by_the_readers_not_by_the_updates(loss: float) -> None:
    swarm = Swarm(4, seed=3, watched=True, network=Network(loss=loss, duplication=0.3, delay_mean_s=0.3))
    swarm.publish(60, within_s=6.0)
    swarm.run(8.0)  # checked after every event: 2 segments per reader and 1
    assert all(len(host.segments) <= 7 for host in swarm.peers.values())


def test_a_reader_that_stands_still_does_not_make_the_log_grow() -> None:
    swarm = Swarm(3, seed=1, watched=True, network=BAD_NETWORK)
    for me in swarm.peers:
        swarm.happen(me, Joined(PeerId("gone"), read=False))
    swarm.publish(60, within_s=6.0)
    swarm.run(30.0)
    assert swarm.wrong() == []
    for host in swarm.peers.values():
        assert 1 <= len(host.segments) <= 2 * 3 + 1
        total = host.segments.sum(1, 60)
        assert total is not None  # whoever was left behind would still get everything
    swarm.run_until_drained(timeout_s=5.0)
    assert {host.missing for host in swarm.peers.values()} == {(PeerId("gone"),)}


# ------------------------------------------------------------------------------------------------------- same again

DIGEST = """
import numpy as np
from gossip.sim.simulator import Network, Simulation

simulation = Simulation(5, {{"w": np.zeros(3, np.int64)}}, seed={seed}, network=Network(loss=0.3, duplication=0.3))
for index, me in enumerate(simulation.peers):
    for time in range(5):
        simulation.compute(time + index / 10, me, {{"w": np.full(3, index + time)}})
simulation.run(5.0)
simulation.run_until_drained()
digest = simulation.digest.hexdigest()
"""


def digest(seed: int) -> str:
    names: dict[str, Any] = {}
    exec(DIGEST.format(seed=seed), names)
    return str(names["digest"])


def test_the_same_seed_is_the_same_run_and_another_seed_another() -> None:
    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_in_another_process_with_other_hashes() -> None:
    for hashes in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", DIGEST.format(seed=1) + "print(digest)"],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
            timeout=500,
        ).stdout
        assert printed.strip() == digest(1)


def test_an_observer_sees_every_step_in_order() -> None:
    seen: list[tuple[float, PeerId, Event, list[Effect]]] = []
    swarm = Swarm(3, seed=1, network=BAD_NETWORK, observe=lambda *step: seen.append(step))
    swarm.publish(3, within_s=1.0)
    swarm.run(2.0)
    times = [now for now, *_ in seen]
    assert times == sorted(times)
    assert {me for _, me, *_ in seen} == set(swarm.peers)
    assert sum(isinstance(event, Computed) for _, _, event, _ in seen) == 9


# ----------------------------------------------------------------------------------------------- who reads for the user

OBSERVER = PeerId("observer")


def observed() -> Swarm:
    """Three peers with an update each, and an observer; level."""
    swarm = Swarm(3, seed=1, observer=OBSERVER)
    for index in range(3):
        swarm.happen(PeerId(f"p00{index}"), Computed(Packed.of(replica(np.arange(5)))))
    swarm.run(5.0)
    assert swarm.is_level()
    return swarm


def test_an_observer_that_is_gone_is_replaced_by_one_that_adopts() -> None:
    swarm = observed()
    assert swarm.renew_observer() is None
    swarm.crash(OBSERVER)
    assert swarm.renew_observer() == "observer-2"
    assert swarm.renew_observer() is None
    assert not swarm.is_level()
    assert swarm.is_level(but=swarm.observing)
    swarm.run(20.0)
    assert swarm.is_level()
    assert adoptions(swarm.peers[PeerId("observer-2")]) == 1
    assert not any("observer" in lane for host in swarm.live().values() for lane in host.peer.replicator.origins)
    swarm.crash(PeerId("observer-2"))
    assert swarm.renew_observer() == "observer-3"


def test_the_model_is_that_of_who_has_most_and_lives() -> None:
    swarm = observed()
    assert swarm.source() == OBSERVER, "before its equals"
    assert swarm.source(but=swarm.observing) == "p000"
    swarm.happen(PeerId("p001"), Computed(Packed.of(replica(np.arange(5)))))
    assert swarm.source() == "p001"
    swarm.peers[PeerId("p001")].paused_until = 100.0
    assert swarm.source() == OBSERVER, "who pauses does not answer"
    swarm.crash(OBSERVER)
    assert swarm.source() == "p000"
    for me in ("p000", "p002"):
        swarm.crash(PeerId(me))
    assert swarm.source() == "p001", "nobody else is there"


# ------------------------------------------------------------------------------------- these tests can fail: mutants


class ReplaysRanges(Replicator):
    """Applies a range wherever it begins."""

    def is_next(self, message: Range) -> bool:
        return message.peer in self.origins

    def on_range(self, message: Range) -> list[Effect]:
        self.origins[message.peer].frontier = message.lo - 1
        return super().on_range(message)


class ServesMoreAgain(Replicator):
    """After a lost reply serves (a, now] instead of (a, b]."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        reader = self.readers.get(pull.peer)
        if reader is not None and pull.k >= reader.k and pull.frontier == reader.acknowledged:
            reader.served = self.n
        return super().on_pull(pull)


class TakesAnythingAsAcknowledged(Replicator):
    """Serves everything after whatever frontier is pulled from, as if nothing had been served before."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        reader = self.readers.get(pull.peer)
        if reader is not None:
            reader.acknowledged = reader.served = pull.frontier
        return super().on_pull(pull)


class ForgetsWhatIsServed(Replicator):
    """Does not wait until it is acknowledged."""

    def on_pull(self, pull: Pull) -> list[Effect]:
        effects = super().on_pull(pull)
        through = min(reader.served for reader in self.readers.values())
        if self.segments and self.segments[0].hi <= through:
            self.segments = [segment for segment in self.segments if segment.hi > through]
            effects.append(Forget(through))
        return effects


class EncodesEach(Swarm):
    """Sums, encodes and decodes every answer to every pull for itself."""

    def _line(self, me: PeerId, host: SimulatedPeer) -> Line:
        class Each(Line):
            def _range(self, message: Range) -> InFlight:
                return InFlight(encode(message, host.segments.sum(message.lo, message.hi)))

        return Each(host, partial(self._carry, me), partial(self._audience, me))


def run_with_readers(kind: type[Swarm], seed: int) -> tuple[str, int]:
    """The digest of a run, and to how many readers at most the very same payload came."""
    payloads: list[Packed | None] = []
    readers: dict[int, set[PeerId]] = defaultdict(set)
    """By the identity of the payload, which `payloads` keeps."""

    def observe(now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        if isinstance(event, Received) and isinstance(event.message, Range):
            payloads.append(event.message.payload)
            readers[id(event.message.payload)].add(me)

    swarm = kind(6, seed=seed, network=BAD_NETWORK, observe=observe)
    swarm.publish(5, within_s=1.0)
    swarm.run(until=1.0)
    swarm.run_until_drained()
    assert swarm.wrong() == []
    return swarm.digest.hexdigest(), max(len(who) for who in readers.values())


@pytest.mark.parametrize("seed", range(3))
def test_readers_that_share_a_range_get_what_each_would_have_got(seed: int) -> None:
    digest, readers = run_with_readers(Swarm, seed)
    assert readers > 1
    assert run_with_readers(EncodesEach, seed) == (digest, 1)


class FoldsAcrossServed(Replicator):
    """Keeps the places where readers stand, and not those where they may stand."""

    def _joinable(self, boundary: int) -> bool:
        return all(boundary != reader.acknowledged for reader in self.readers.values())


class FoldsEverything(Replicator):
    """Sums the whole lane at every acknowledgment."""

    def acknowledge(self, peer: PeerId, frontier: int, k: int = 0) -> list[Effect]:
        effects = super().acknowledge(peer, frontier, k)
        if len(self.segments) > 1:
            self.segments = [Segment(self.segments[0].lo, self.segments[-1].hi)]
            effects.append(Fold(self.segments[0].lo, self.segments[0].hi))
        return effects


class NeverAsksAgain(Replicator):
    """Waits for the answer to a pull for ever."""

    def pulls(self, now: float) -> list[Effect]:
        for origin in self.origins.values():
            if origin.pull is not None:
                origin.pull.due = now + 1e9
        return super().pulls(now)


class SkipsAhead(Replicator):
    """Believes that what it heard of is what it has."""

    def on_range(self, message: Range) -> list[Effect]:
        effects = super().on_range(message)
        self.origins[message.peer].frontier = self.origins[message.peer].n
        return effects


def holds(seed: int) -> bool:
    """Whether a small swarm of this seed keeps every promise."""
    try:
        swarm = Swarm(4, seed=seed, watched=True, network=Network(loss=0.3, duplication=0.3, delay_mean_s=0.3))
        swarm.publish(12, within_s=4.0)
        swarm.run(4.0)
        swarm.run_until_drained(timeout_s=120.0)
    except AssertionError:
        return False
    hosts = swarm.peers.values()
    return swarm.wrong() == [] and all(host.missing == () and adoptions(host) == 0 for host in hosts)


@pytest.mark.parametrize(
    ("mutant", "seeds"),
    [
        (ReplaysRanges, 1),
        (ServesMoreAgain, 5),
        (TakesAnythingAsAcknowledged, 3),
        (ForgetsWhatIsServed, 1),
        (FoldsAcrossServed, 1),
        (FoldsEverything, 1),
        (NeverAsksAgain, 1),
        (SkipsAhead, 1),
    ],
)
def test_a_broken_protocol_is_caught(mutant: type[Replicator], seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(holds(seed) for seed in range(seeds))
    monkeypatch.setattr("gossip.lanes.peer.Replicator", mutant)
    assert not all(holds(seed) for seed in range(seeds))
