"""A bad day for a swarm, drawn from one seed, and what must hold all the same.

A run has two phases. In the first, the network loses, repeats, delays and cuts; peers crash, pause and come late;
clocks run at their own pace; a scheduler in the manner of Spark computes units of work on them, tries them again and
tries them twice. In the second, the faults end, and the survivors must become level.

After every event: a replica is the initial model plus a prefix of every lane, never twice and never half; what an
origin keeps is bounded. At the end: replicas are equal; nothing of a living lane is lost; every unit counts once.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np

from gossip.arrays import Array, Packed
from gossip.events import Adopt, Computed, Deliver, Effect, Event, Negative, Own
from gossip.faults import Disruption, Faults
from gossip.messages import Mark, PeerId, Unit
from gossip.peer import Settings
from gossip.simulator import Network, SimulatedPeer, Simulation

FAULTS_END_S = 60.0
LEVEL_TIMEOUT_S = 60.0
"""Promise: after the faults end, survivors are level within this time."""
DETECT_S = 4.0
"""A peer that is silent for so long is taken for dead, as in production."""
NUMBERS = 4
"""Elements of the model. Integers, so that every check is ==."""


@dataclass(frozen=True)
class Options:
    """One bad day. `draw` makes it from a seed."""

    seed: int
    peers: int
    loss: float
    duplication: float
    delay_mean_s: float
    faults: Faults
    units: int
    fail: float
    """Probability that an attempt fails before it is done."""
    speculate: float
    """Probability that a second attempt is started beside the first."""

    @classmethod
    def draw(cls, seed: int) -> Options:
        """The options of a seed."""
        chance = random.Random(f"options {seed}")

        def times(count: int) -> tuple[float, ...]:
            return tuple(sorted(chance.uniform(5, 50) for _ in range(count)))

        peers = chance.randint(3, 8)
        partitions = []
        for begin in times(chance.randint(0, 3)):
            partitions.append((begin, begin + chance.uniform(2, 40), chance.random() < 0.7))
        return cls(
            seed=seed,
            peers=peers,
            loss=chance.choice([0.0, chance.uniform(0, 0.7)]),
            duplication=chance.choice([0.0, chance.uniform(0, 0.7)]),
            delay_mean_s=10 ** chance.uniform(-2, -0.3),
            faults=Faults(
                partitions=tuple(partitions),
                crashes=times(chance.randint(0, peers // 4)),
                pauses=tuple((begin, chance.uniform(0.5, 20)) for begin in times(chance.randint(0, 2))),
                joins=times(chance.randint(0, 3)),
                clocks=chance.random() < 0.5,
            ),
            units=chance.randint(20, 60),
            fail=chance.choice([0.0, 0.1]),
            speculate=chance.choice([0.0, 0.2]),
        )

    def __str__(self) -> str:
        return "\n".join(f"  {f.name} = {getattr(self, f.name)!r}" for f in fields(self))


class ViolationError(AssertionError):
    """Something that must hold does not."""


@dataclass
class Outcome:
    """What a run came to."""

    options: Options
    violation: str | None = None
    digest: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)


class ProvingGround:
    """One run."""

    def __init__(self, options: Options, settings: Settings | None = None, tell: bool = False) -> None:
        self.options = options
        self.chance = random.Random(f"script {options.seed}")
        self.outcome = Outcome(options)
        self._tell = tell
        self._sums: dict[PeerId, list[Array]] = {}
        """By lane: the sum of its first n entries, for each n."""
        self._marks: dict[PeerId, list[tuple[Mark, ...]]] = {}
        self._done: set[Unit] = set()
        network = Network(options.loss, options.duplication, options.delay_mean_s)
        self.swarm = Simulation(
            options.peers,
            {"w": np.zeros(NUMBERS, np.int64)},
            seed=options.seed,
            network=network,
            settings=settings or Settings(detect_s=DETECT_S),
        )
        self.swarm.observers.append(self._observe)
        self._disruption = Disruption(self.swarm, options.faults, self.chance, self._note)
        self._write_script()

    def run(self) -> Outcome:
        """Both phases; the outcome says what was violated, if anything."""
        try:
            self.swarm.run(FAULTS_END_S)
            self.swarm.network = Network(0.0, 0.0, self.options.delay_mean_s)
            self._disruption.end()
            level_at = self._run_until_level()
            self.outcome.counts["seconds until level"] = round(level_at - FAULTS_END_S)
            self._check_end()
        except AssertionError as violation:
            self.outcome.violation = f"{type(violation).__name__}: {violation}"
        self.outcome.digest = self.swarm.digest.hexdigest()
        for host in self.swarm.peers.values():
            if host.peer.adopter is not None:
                self.outcome.counts["adoptions"] += host.peer.adopter.done
            self.outcome.counts["withdrawn"] += host.peer.withdrawn
            self.outcome.counts["gated"] += host.gated
        return self.outcome

    # ------------------------------------------------------------------------------------------------------- script

    def _write_script(self) -> None:
        at, options = self.swarm.at, self.options
        for index in range(options.units):
            unit = Unit(0, index // 3, index % 3)
            time = self.chance.uniform(0, 50)
            at(time, partial(self._attempt, unit, 0))
            if self.chance.random() < options.speculate:
                at(time + self.chance.uniform(0, 6), partial(self._attempt, unit, 1))

    def _note(self, text: str) -> None:
        if self._tell:
            self.outcome.story.append(f"{self.swarm.now:8.3f}  {text}")

    # ---------------------------------------------------------------------------------------------------- scheduler

    def _attempt(self, unit: Unit, attempt: int) -> None:
        """Compute `unit` on some executor, and try again elsewhere if it fails or dies."""
        if unit in self._done or self.swarm.now > FAULTS_END_S:
            return
        ready = [me for me, host in self.swarm.live().items() if host.peer.ready]
        me = self.chance.choice(sorted(ready))
        seconds = self.chance.uniform(0.2, 4)
        if self.chance.random() < self.options.fail:
            self.swarm.at(self.swarm.now + seconds, lambda: self._attempt(unit, attempt + 1))
            return
        self.swarm.at(self.swarm.now + seconds, lambda: self._finish(unit, attempt, me))

    def _finish(self, unit: Unit, attempt: int, me: PeerId) -> None:
        host = self.swarm.peers[me]
        if not host.alive:
            self._attempt(unit, attempt + 1)
            return
        if host.paused_until > self.swarm.now:
            self.swarm.at(host.paused_until, lambda: self._finish(unit, attempt, me))
            return
        delta = np.array([self.chance.getrandbits(40) for _ in range(NUMBERS)], np.int64)
        self._note(f"{me} computed {tuple(unit)}, attempt {attempt}")
        self.swarm.happen(me, Computed(Packed.of({"w": delta}), unit, attempt))
        self._done.add(unit)

    # ------------------------------------------------------------------------------------------------------ oracles

    def _observe(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        host = self.swarm.peers[me]
        touched = False
        for effect in effects:
            if isinstance(effect, Deliver) and effect.lane == me and not _is_own_sum(effect):
                self._append(me, effect, event)
                touched = True
            elif isinstance(effect, Deliver | Adopt):
                touched = True
        if touched:
            self._check_replica(me, host)
        self.outcome.counts["peak segments"] = max(self.outcome.counts["peak segments"], len(host.segments))
        bound = 2 * len(self.swarm.peers) + 2 + sum(len(pin.boundaries) for pin in host.peer.replicator.pins.values())
        if len(host.segments) > bound:
            raise ViolationError(f"{me} keeps {len(host.segments)} segments, expected at most {bound}")

    def _append(self, me: PeerId, effect: Deliver, event: Event) -> None:
        """One more entry of a lane, as its origin published it."""
        sums = self._sums.setdefault(me, [np.zeros(NUMBERS, np.int64)])
        if isinstance(effect.payload, Negative):
            entry = sums[effect.payload.number - 1] - sums[effect.payload.number]
        else:
            assert isinstance(effect.payload, Packed)
            entry = effect.payload.arrays()["w"]
        if effect.lo != len(sums):
            raise ViolationError(f"{me} published {effect.lo}, expected {len(sums)}")
        sums.append(sums[-1] + entry)
        lane = self._marks.setdefault(me, [()])
        if isinstance(effect.payload, Negative):
            lane.append(tuple(mark._replace(withdraws=True) for mark in lane[effect.payload.number]))
        else:
            assert isinstance(event, Computed)
            lane.append(() if event.unit is None else (Mark(event.unit, event.attempt),))
        self.outcome.counts["published"] += 1

    def _check_replica(self, me: PeerId, host: SimulatedPeer) -> None:
        expected = np.zeros(NUMBERS, np.int64)
        for lane, frontier in host.peer.replicator.frontiers().items():
            if frontier:
                sums = self._sums.get(lane, [])
                if frontier >= len(sums):
                    raise ViolationError(f"{me} says it has {lane} up to {frontier}, which has only {len(sums) - 1}")
                expected = expected + sums[frontier]
        if not np.array_equal(host.replica.arrays()["w"], expected):
            raise ViolationError(f"the replica of {me} is not the sum of prefixes {host.peer.replicator.frontiers()}")

    def _run_until_level(self) -> float:
        """Until the survivors are level and nothing is left to be taken back; the time-out is a violation."""
        while self.swarm.now < FAULTS_END_S + LEVEL_TIMEOUT_S:
            self.swarm.run(self.swarm.now + 1.0)
            if self.swarm.is_level():
                return self.swarm.now
        raise ViolationError(f"not level {LEVEL_TIMEOUT_S:g} s after the faults ended: {self._stuck()}")

    def _stuck(self) -> str:
        return "; ".join(
            f"{me} {'ready' if host.peer.ready else 'not ready'} "
            f"{'adopting ' if host.peer.adopter and host.peer.adopter.under_way else ''}"
            f"{dict(host.peer.replicator.frontiers())}"
            for me, host in self.swarm.live().items()
        )

    def _check_end(self) -> None:
        replicas = [host.replica.arrays()["w"] for host in self.swarm.live().values()]
        if any(not np.array_equal(replica, replicas[0]) for replica in replicas):
            raise ViolationError("replicas differ though their frontiers are equal")
        level = next(iter(self.swarm.live().values())).peer.replicator.frontiers()
        net: Counter[Unit] = Counter()
        merged = 0
        for lane, marks in self._marks.items():
            kept = level.get(lane, 0)
            merged += kept
            lost = len(marks) - 1 - kept
            if lost and self.swarm.peers[lane].alive:
                raise ViolationError(f"{lost} updates of {lane}, which is alive, are lost")
            self.outcome.counts["lost with a crash"] += lost
            for entry in marks[1 : kept + 1]:
                for mark in entry:
                    net[mark.unit] += -1 if mark.withdraws else 1
        self.outcome.counts["merged"] += merged
        doubled = sum(1 for unit in self._done if net[unit] > 1)
        absent = sum(1 for unit in self._done if net[unit] < 1)
        self.outcome.counts["units"] += len(self._done)
        self.outcome.counts["doubled"] += doubled
        self.outcome.counts["absent"] += absent
        if not self._disruption.crashed_at and (doubled or absent):
            raise ViolationError(f"without a crash {doubled} units count twice and {absent} not at all")


def _is_own_sum(effect: Deliver) -> bool:
    return isinstance(effect.payload, Own)


def run(seed: int, settings: Settings | None = None, tell: bool = False) -> Outcome:
    """Draw the options of `seed` and run them."""
    return ProvingGround(Options.draw(seed), settings, tell).run()
