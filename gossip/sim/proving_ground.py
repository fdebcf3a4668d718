"""A bad day for a swarm, drawn from one seed, and what must hold all the same.

A run has three phases. In the first, the network loses, repeats, delays and cuts; peers crash, pause and come late;
clocks run at their own pace and jump; a scheduler in the manner of Spark computes units of work on them, tries them
again and tries them twice; streams and bursts of other updates come between. On some days somebody observes, is hit by
all this, and replaced when it is gone. In the second phase, the faults end, and the survivors must become level. In the
third, they must drain.

After every event: a replica is the initial model plus a prefix of every lane, never twice and never half; what a peer
keeps is bounded; who adopts goes back in no living lane, and no origin that had pinned calls it unknown. Every so
often: nobody who could be asked for the user's model has more than the one who is. At the end: that one has all of
every living lane; replicas are equal; nothing of a living lane is lost, and every loss has a cause; every unit counts
once; everybody drains.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np

from gossip.arrays import Array, Packed
from gossip.events import Adopt, Closed, Computed, Deliver, Effect, Event, Gated, Negative, Own, Received, Send, Warn
from gossip.lanes.peer import Settings
from gossip.membership import Detection
from gossip.messages import Mark, PeerId, Pin, Pinned, Pull, State, StateRequest, Unit, Unknown, Unpin
from gossip.sim import states
from gossip.sim.faults import Disruption, Faults, Strike, Victim
from gossip.sim.oracles.detection import DetectionOracles
from gossip.sim.oracles.ending import restless
from gossip.sim.oracles.seen import ViolationError
from gossip.sim.oracles.table import Oracles
from gossip.sim.simulator import CONGESTED_RETRY_S, Network, SimulatedPeer, Simulation

FAULTS_END_S = 60.0
LEVEL_TIMEOUT_S = 60.0
"""Promise: after the faults end, survivors are level within this time."""
DRAIN_TIMEOUT_S = 30.0
"""On a good network, with everybody level, the last acknowledgments need some adverts."""
LOOK_S = 0.5
"""How often it is looked whether an observer is gone, and who would be asked for the user's model."""
ADVERTS_S = 4.0
"""In which everybody advertises some times, on the slowest clock."""
PUNCTUAL_S = 0.1
"""Mean delay with which adverts come in time: nobody is suspected then who lives."""
ADOPTIONS_MAX = 12
"""By one peer in a run: partitions, strikes and jumps of its clock may cut it off ten times, some peers crash beside
it. 6 is the most of 300 days; those that adopt without end do so fifty times a minute."""
BOUNDARIES_MAX = 200
"""Of one pin: a donor that pulls ten times a second until its adopter is taken for dead makes about that many."""
LOST = (
    "lost before anybody had pulled it",
    "lost with all who had pulled it",
    "dropped when the survivors agreed",
)
"""Causes, of updates of a lane whose peer crashed."""
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
    streams: tuple[tuple[float, float, float], ...]
    """(begin, end, period): some peer publishes beside the units, without an identity."""
    bursts: tuple[tuple[float, int], ...]
    """(when, how many): the same, all at once."""
    replica_mean_s: float
    """What a replica takes longer than other messages."""
    busy: bool
    """Everybody publishes while a replica is on its way: its donor moves on."""
    units: int
    epochs: int
    """Of which the units are. Where there are more than one, each is closed when all of it was computed."""
    closes_s: float
    """How long after that the first peer is told so; the last twice as long."""
    fail: float
    """Probability that an attempt fails before it is done."""
    speculate: float
    """Probability that a second attempt is started beside the first."""
    forget_s: float
    """As in the peers' settings. Longer than the longest cut, on the fastest clock: a shorter one may end in mutual
    refusal, and so may a cap without room for those that are there."""
    segments_max: int
    late: float
    """Probability that a message takes a detour,"""
    late_mean_s: float
    """which takes so long."""
    pulls_max: int
    """As in the peers' settings."""
    chunks: int
    """Units of a partition, which the same task computes one after the other."""
    stride: int
    """From one of them to the next; 0 where they follow no rule."""
    racing: bool
    """Units are computed twice at the same time, and some second attempts come when their epoch is long closed."""
    impatient: bool
    """Everybody is told that no more will come when the faults end, and not when all are level: more does."""
    observer: PeerId | None
    """The name of the first one, which is the smallest or the largest of all; None where nobody observes."""

    @classmethod
    def draw(cls, seed: int) -> Options:
        """The options of a seed."""
        chance = random.Random(f"options {seed}")

        def times(count: int) -> tuple[float, ...]:
            return tuple(sorted(chance.uniform(5, 50) for _ in range(count)))

        peers = chance.randint(3, 7)
        partitions = []
        for begin in times(chance.randint(0, 3)):
            partitions.append((begin, begin + chance.uniform(2, 40), chance.random() < 0.7))
        joins = times(chance.randint(0, 3))
        if partitions and chance.random() < 0.3:  # some at the same time, in the middle of a cut
            begin, end, _ = chance.choice(partitions)
            first = chance.uniform(begin, min(end, 50.0))
            joins = tuple(sorted(first + chance.uniform(0, 1) for _ in range(chance.randint(2, 3))))
        short_lives = tuple(chance.uniform(0, 15) if chance.random() < 0.15 else float("inf") for _ in joins)
        delay_mean_s = 10 ** chance.uniform(-2, -0.3)
        strikes = tuple(
            Strike(since, victim, chance.uniform(0, 4) * delay_mean_s, chance.uniform(16, 40))
            for since in times(chance.choice([0, 1, 2]))
            for victim in chance.choices([Victim.LINKS, Victim.DONOR, Victim.ADOPTER], [4, 1, 1])
        )
        streams: tuple[tuple[float, float, float], ...] = ()
        if chance.random() < 0.25:
            starts = times(chance.randint(1, 2))
            streams = tuple((begin, begin + chance.uniform(2, 10), chance.uniform(0.05, 0.2)) for begin in starts)
        watching = random.Random(f"observer {seed}")  # of its own: a day without one is as it was
        observer = watching.choice([None, PeerId("observer"), PeerId("reader")])

        def watched(most: int) -> tuple[float, ...]:
            count = watching.randint(0, most) if observer is not None else 0
            return tuple(sorted(watching.uniform(5, 55) for _ in range(count)))

        observer_crashes = watched(2)
        room = 0 if observer is None else 2 * (1 + len(observer_crashes) + peers // 4 + len(strikes))
        closings = random.Random(f"closings {seed}")
        more = random.Random(f"more {seed}")

        def moments(most: int) -> tuple[float, ...]:
            return tuple(sorted(more.uniform(5, 50) for _ in range(more.randint(0, most))))

        crashes = times(chance.randint(0, peers // 4))
        pauses = tuple((begin, chance.uniform(0.5, 20)) for begin in times(chance.randint(0, 2)))
        observer_pauses = tuple((begin, watching.uniform(0.5, 20)) for begin in watched(1))
        observer_cuts = tuple((begin, begin + watching.uniform(2, 40)) for begin in watched(1))
        farewells = moments(1) if more.random() < 0.3 else ()
        if more.random() < 0.4:  # while the survivors agree on what the dead left
            joins = (*joins, *(when + more.uniform(3, 10) for when in (*crashes, *farewells)))
        kinds = [Victim.ONE_WAY, Victim.RESTART, Victim.LATECOMER, Victim.ORIGIN]
        strikes += tuple(
            Strike(since, more.choices(kinds, [1, 1, 2, 2])[0], more.uniform(0, 4) * delay_mean_s, more.uniform(16, 40))
            for since in moments(more.choice([0, 2, 4]))
        )
        forget_s = chance.choice([600.0, 600.0, chance.uniform(90, 150)])
        segments_max = chance.choice([64, 64, 2 * (peers + len(joins)) + chance.randint(2, 8)]) + room
        if more.random() < 0.25:  # soon enough to see what comes then
            partitions = [(begin, min(end, begin + 6), both) for begin, end, both in partitions[:1]]
            pauses = tuple((begin, min(length, 3)) for begin, length in pauses[:1])
            observer_cuts = tuple((begin, min(end, begin + 6)) for begin, end in observer_cuts)
            observer_pauses = tuple((begin, min(length, 3)) for begin, length in observer_pauses)
            strikes = tuple(strike for strike in strikes if strike.victim not in (Victim.LINKS, Victim.ONE_WAY))
            forget_s = more.uniform(36, 42)
            segments_max = more.choice([segments_max, more.randint(4, 10)])
        epochs = closings.choice([1, 2, 3, 4])
        closes_s = closings.choice([0.1, closings.uniform(0, 15)])
        races = random.Random(f"races {seed}")
        racing = races.random() < 0.2
        if racing:
            epochs, closes_s = races.choice([3, 6]), races.choice([0.0, 0.5])
        return cls(
            seed=seed,
            peers=peers,
            loss=chance.choice([0.0, chance.uniform(0, 0.7)]),
            duplication=chance.choice([0.0, chance.uniform(0, 0.7)]),
            delay_mean_s=delay_mean_s,
            faults=Faults(
                partitions=tuple(partitions),
                crashes=crashes,
                pauses=pauses,
                joins=joins,
                short_lives=short_lives,
                clocks=chance.random() < 0.5,
                jumps=tuple((when, 10 ** chance.uniform(-1, 2)) for when in times(chance.choice([0, 0, 1, 2]))),
                strikes=strikes,
                breaks=more.choice([0.0, 0.5]),
                disconnections=moments(more.choice([0, 3])),
                farewells=farewells,
                parts=more.choice([0, 3]),
                observer_crashes=observer_crashes,
                observer_pauses=observer_pauses,
                observer_cuts=observer_cuts,
            ),
            streams=streams,
            bursts=tuple((when, chance.randint(5, 30)) for when in times(chance.choice([0, 0, 1, 2]))),
            units=chance.randint(20, 60),
            epochs=epochs,
            closes_s=closes_s,
            fail=chance.choice([0.0, 0.1]),
            speculate=more.choice([0.0, 0.2, 0.6]),
            forget_s=forget_s,
            segments_max=segments_max,
            replica_mean_s=chance.choice([0.0, chance.uniform(0.3, 2.0)]),
            busy=chance.random() < 0.5,
            late=more.choice([0.0, 0.0, more.uniform(0.01, 0.2)]),
            late_mean_s=more.uniform(1, 8),
            pulls_max=more.choice([8, 8, 1, 2]),
            chunks=more.choice([3, 10, 30]),
            stride=more.choice([1, 4, 0]),
            racing=racing,
            impatient=random.Random(f"end {seed}").random() < 0.5,
            observer=observer,
        )

    def __str__(self) -> str:
        return "\n".join(f"  {f.name} = {getattr(self, f.name)!r}" for f in fields(self))


@dataclass
class Outcome:
    """What a run came to."""

    options: Options
    violation: str | None = None
    digest: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    reached: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(what happened, a state in which it found a peer)."""
    branches: list[int] = field(default_factory=list)
    """How often each was taken, where somebody counts."""
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
        self._retries: dict[PeerId, int] = {}
        """By lane: how many of its entries are second or later attempts."""
        self._done: set[Unit] = set()
        self._open: dict[int, int] = {}
        """By epoch: how many of its units are not computed yet."""
        self._over = 0
        """Epochs that peers are told are over."""
        self._told: dict[PeerId, int] = {}
        """By peer: of how many it was told."""
        self._reached: dict[PeerId, dict[PeerId, int]] = {}
        """By lane: the furthest that each other peer ever was with it."""
        self._said: dict[tuple[PeerId, PeerId], int] = {}
        """(origin, adopter): the k of what was said to be pinned, while the origin takes the adopter for alive."""
        self._given: dict[tuple[PeerId, PeerId, int], tuple[set[PeerId], set[PeerId]]] = {}
        """By donor, adopter and k: whom the donor took for dead when it gave, and who kept where it stood."""
        self._pinned: dict[PeerId, dict[PeerId, int]] = {}
        """By adopter: who must know it, by the k of the pin, when it pulls for the first time since it adopted."""
        self._before: dict[PeerId, dict[PeerId, int]] = {}
        """By peer: its frontiers when the replica was checked last."""
        self._sought: dict[PeerId, set[int]] = {}
        """By peer: the k of its adoptions that it did not give up."""
        self._asked: dict[PeerId, set[int]] = {}
        """By peer: the k of those for which it asked a donor."""
        self._states: dict[PeerId, list[str]] = {}
        """By peer: what it was in before the event."""
        self._departed: dict[PeerId, set[PeerId]] = {}
        """By peer: whom it takes for dead. For the story."""
        network = Network(
            options.loss,
            options.duplication,
            options.delay_mean_s,
            options.replica_mean_s,
            options.late,
            options.late_mean_s,
        )
        self.swarm = Simulation(
            options.peers,
            {"w": np.zeros(NUMBERS, np.int64)},
            seed=options.seed,
            network=network,
            settings=settings
            or Settings(
                detection=Detection(),
                pulls_max=options.pulls_max,
                forget_s=options.forget_s,
                segments_max=options.segments_max,
            ),
            clock=partial(options.faults.clock, self.chance),
            observer=options.observer,
        )
        self.swarm.observers.append(self._observe)
        self._oracles = Oracles(self.swarm, self._marks)
        self._detection = DetectionOracles(self.swarm)
        self._founders = frozenset(self.swarm.peers)
        self._disruption = Disruption(self.swarm, options.faults, self.chance, self._note)
        self._write_script()

    def run(self) -> Outcome:
        """Both phases; the outcome says what was violated, if anything."""
        try:
            self.swarm.run(FAULTS_END_S)
            self.swarm.network = Network(0.0, 0.0, self.options.delay_mean_s)
            self._disruption.end()
            if self.options.impatient:
                self.swarm.exhaust(2 * (LEVEL_TIMEOUT_S + DRAIN_TIMEOUT_S))
            level_at = self._run_until_level()
            self.outcome.counts["seconds until level"] = round(level_at - FAULTS_END_S)
            self._check_end()
            self._check_drain()
        except AssertionError as violation:
            self.outcome.violation = f"{type(violation).__name__}: {violation}"
        self.outcome.digest = self.swarm.digest.hexdigest()
        for host in self.swarm.peers.values():
            self.outcome.counts["withdrawn"] += host.peer.withdrawn
            self.outcome.counts["gated"] += host.gated
        return self.outcome

    # ------------------------------------------------------------------------------------------------------- script

    def _write_script(self) -> None:
        at, options = self.swarm.at, self.options
        chunk = 0
        for index in range(options.units):
            epoch = index * options.epochs // options.units
            within = index % options.chunks
            chunk = chunk + (options.stride or self.chance.randint(1, 3)) if within else 0
            unit = Unit(epoch, index // options.chunks, chunk)
            self._open[epoch] = self._open.get(epoch, 0) + 1
            time = (50 * epoch + self.chance.uniform(0, 50)) / options.epochs
            at(time, partial(self._attempt, unit, 0))
            if options.racing:
                at(time + self.chance.uniform(0, 0.2), partial(self._attempt, unit, 1))
            elif self.chance.random() < options.speculate:
                at(time + self.chance.uniform(0, 6), partial(self._attempt, unit, 1))
        for begin, end, period in options.streams:
            at(begin, partial(self._stream, end, period, None))
        for time, count in options.bursts:
            at(time, partial(self._burst, count))
        at(LOOK_S, self._look)

    def _note(self, text: str) -> None:
        if self._tell:
            self.outcome.story.append(f"{self.swarm.now:8.3f}  {text}")

    def _look(self) -> None:
        """Replace an observer that is gone, and look whom the user's model would come from, now and every so often."""
        if (me := self.swarm.renew_observer()) is not None:
            self.outcome.counts["observers started anew"] += 1
            self._note(f"{me} observes from now on")
        self._check_source()
        self._oracles.look_from_outside()
        if self.swarm.now < FAULTS_END_S:
            self.swarm.at(self.swarm.now + LOOK_S, self._look)

    # ---------------------------------------------------------------------------------------------------- scheduler

    def _executors(self) -> dict[PeerId, SimulatedPeer]:
        """Who can compute."""
        live = self.swarm.live().items()
        return {me: host for me, host in live if host.peer.ready and me not in self.swarm.observing}

    def _attempt(self, unit: Unit, attempt: int) -> None:
        """Compute `unit` on some executor, and try again elsewhere if it fails or dies."""
        if unit in self._done or self.swarm.now > FAULTS_END_S:
            return
        me = self.chance.choice(sorted(self._executors()))
        seconds = self.chance.uniform(0.2, 15 if self.options.racing and attempt else 4)
        if self.chance.random() < self.options.fail:
            self.swarm.at(self.swarm.now + seconds, lambda: self._attempt(unit, attempt + 1))
            return
        self.swarm.at(self.swarm.now + seconds, lambda: self._finish(unit, attempt, me))

    def _finish(self, unit: Unit, attempt: int, me: PeerId) -> None:
        host = self.swarm.peers[me]
        if not host.alive:
            self._attempt(unit, attempt + 1)
            return
        if host.peer.congested:  # not handed over yet: the task waits
            self.swarm.at(self.swarm.now + CONGESTED_RETRY_S, lambda: self._finish(unit, attempt, me))
            return
        if host.paused_until > self.swarm.now:
            self.swarm.at(host.paused_until, lambda: self._finish(unit, attempt, me))
            return
        self._note(f"{me} computed {tuple(unit)}, attempt {attempt}")
        self.swarm.happen(me, Computed(self._delta(), unit, attempt))
        if unit not in self._done:
            self._done.add(unit)
            self._open[unit.epoch] -= 1
            self._close_epochs()

    def _close_epochs(self) -> None:
        """Tell each peer, at a time of its own, of the epochs of which all is computed."""
        over = 0
        while over in self._open and self._open[over] == 0:
            over += 1
        if self.options.epochs == 1 or over <= self._over:
            return
        self._over = over
        for me in self.swarm.live():
            time = self.swarm.now + self.chance.uniform(1, 2) * self.options.closes_s
            self.swarm.at(time, partial(self._close, me, over))

    def _close(self, me: PeerId, epochs: int) -> None:
        self.outcome.counts["epochs closed"] += 1
        self._note(f"{me} is told that {epochs} epochs are over")
        self.swarm.happen(me, Closed(epochs))

    def _delta(self) -> Packed:
        return Packed.of({"w": np.array([self.chance.getrandbits(40) for _ in range(NUMBERS)], np.int64)})

    def _stream(self, end: float, period: float, me: PeerId | None) -> None:
        """One update of a stream, and the next one a period later, until its peer crashes."""
        if me is None:
            me = self.chance.choice(list(self._executors()))
            self._note(f"{me} publishes every {period:.2f} s")
        if self.swarm.now < end and self.swarm.peers[me].alive:
            self.swarm.happen(me, Computed(self._delta()))
            self.swarm.at(self.swarm.now + period, partial(self._stream, end, period, me))

    def _keep_busy(self) -> None:
        """Let everybody publish a little while a replica is on its way."""
        seconds = 2 * (self.options.delay_mean_s + self.options.replica_mean_s)
        for me in self._executors():
            for _ in range(2):
                time = self.swarm.now + self.chance.uniform(0, seconds)
                self.swarm.at(time, partial(self.swarm.happen, me, Computed(self._delta())))

    def _burst(self, count: int) -> None:
        me = self.chance.choice(list(self._executors()))
        self._note(f"{me} publishes {count} updates at once")
        for _ in range(count):
            self.swarm.happen(me, Computed(self._delta()))

    # ------------------------------------------------------------------------------------------------------ oracles

    def _observe(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        host = self.swarm.peers[me]
        what = states.name(event)
        for state in self._states.get(me, ()):
            self.outcome.reached[what, state] += 1
        self._states[me] = states.states(host.peer)
        if isinstance(event, Closed):
            self._told[me] = event.epochs
        touched = False
        for effect in effects:
            match effect:
                case Deliver(lane=lane):
                    touched = True
                    if lane == me and not isinstance(effect.payload, Own):
                        self._append(me, effect, event)
                case Adopt():
                    touched = True
                    self._adopted(me, event)
                case Send(to, message):
                    self._sent(me, to, message, event)
                case Gated(unit):
                    self._note(f"{me} does not publish {tuple(unit)}: it is known")
                case Warn(text):
                    self._note(f"{me} warns: {text}")
        if touched:
            self._check_replica(me, host)
            self._check_units_kept(me, host)
        if isinstance(event, Received) and isinstance(event.message, Pull):
            pull = event.message
            if pull.k > self._pinned.get(pull.peer, {}).get(me, pull.k):
                del self._pinned[pull.peer][me]  # its first pull since it adopted, and not unknown
        for gone in host.peer.replicator.away:  # what was pinned for them need not grow, and may be forgotten
            self._said.pop((me, gone), None)
            self._pinned.get(gone, {}).pop(me, None)
        self._check_bounds(me, host)
        if self._tell:
            self._tell_departures(me, host)

    def _adopted(self, me: PeerId, event: Event) -> None:
        assert isinstance(event, Received)
        assert isinstance(event.message, State)
        state = event.message
        self.outcome.counts["replicas adopted"] += 1
        self.outcome.counts["replicas adopted by observers"] += me in self.swarm.observing
        self._note(f"{me} adopts the replica of {state.peer}: {dict(state.frontiers)}")
        dead, kept = self._given[state.peer, me, state.k]
        self._pinned[me] = {origin: state.k for origin in kept if self._said.get((origin, me)) == state.k}
        for lane, frontier in self._before.get(me, {}).items():
            if lane != me and lane not in dead and state.frontiers.get(lane, 0) < frontier:
                raise ViolationError(f"{me} goes back in lane {lane} from {frontier} to {state.frontiers.get(lane, 0)}")
        adopter = self.swarm.peers[me].peer.adopter
        assert adopter is not None
        self.outcome.counts["adoptions of one peer"] = max(self.outcome.counts["adoptions of one peer"], adopter.done)
        if adopter.done > ADOPTIONS_MAX:
            raise ViolationError(f"{me} adopted {adopter.done} times, expected at most {ADOPTIONS_MAX}")

    def _sent(self, me: PeerId, to: PeerId, message: object, event: Event) -> None:
        match message:
            case Pin(_, donor, k) if k not in self._sought.setdefault(me, set()):
                self._sought[me].add(k)
                self._pinned.pop(me, None)
                self.outcome.counts["replicas sought"] += 1
                self._note(f"{me} wants the replica of {donor}")
            case StateRequest(_, k) if k not in self._asked.setdefault(me, set()):
                self._asked[me].add(k)
                self.outcome.counts["replicas asked for"] += 1
            case Unpin(_, k) if k in self._sought.get(me, ()):
                self._sought[me].discard(k)
                self.outcome.counts["replicas given up"] += 1
                self._note(f"{me} gives up adopting")
            case Pinned(_, k):
                self._said[me, to] = k
            case State(_, frontiers, k):
                if self.options.busy and self.swarm.now < FAULTS_END_S and (me, to, k) not in self._given:
                    self._keep_busy()
                self._gave(me, to, k, frontiers)
            case Unknown(_, frontier):
                self.outcome.counts["unknown"] += 1
                self._note(f"{me} does not keep what {to} asks for after {frontier}")
                if me in self._pinned.get(to, ()):
                    raise ViolationError(f"{me} had pinned for {to}, and does not know what follows {frontier}")

    def _gave(self, me: PeerId, to: PeerId, k: int, frontiers: Mapping[PeerId, int]) -> None:
        """Keep whom the donor took for dead, and which origins said that they had pinned and keep where it stands."""
        members = self.swarm.peers[me].peer.members
        departed = {peer for peer, member in members.items() if member.departed_at is not None}
        kept = {
            origin
            for origin, host in self.swarm.live().items()
            if self._said.get((origin, to)) == k and host.peer.replicator.keeps(frontiers.get(origin, 0))
        }
        dead_before, kept_before = self._given.get((me, to, k), (set(), kept))
        self._given[me, to, k] = dead_before | departed | (self.swarm.peers.keys() - members.keys()), kept & kept_before

    def _append(self, me: PeerId, effect: Deliver, event: Event) -> None:
        """One more entry of a lane, as its origin published it."""
        sums = self._sums.setdefault(me, [np.zeros(NUMBERS, np.int64)])
        if isinstance(effect.payload, Negative):
            entry = sums[effect.payload.number - 1] - sums[effect.payload.number]
        else:
            assert isinstance(effect.payload, Packed)
            entry = effect.payload.arrays()["w"]
        if not self.swarm.peers[me].peer.ready or (me not in self._founders and not self._before.get(me)):
            raise ViolationError(f"{me} publishes before it has a replica")
        if (
            isinstance(event, Computed)
            and event.unit
            and event.unit.epoch < self.swarm.peers[me].peer.identities.closed
        ):
            raise ViolationError(f"{me} publishes {tuple(event.unit)}, of an epoch that is over")
        if effect.lo != len(sums):
            raise ViolationError(f"{me} published {effect.lo}, expected {len(sums)}")
        sums.append(sums[-1] + entry)
        lane = self._marks.setdefault(me, [()])
        if isinstance(effect.payload, Negative):
            lane.append(tuple(mark._replace(withdraws=True) for mark in lane[effect.payload.number]))
        else:
            assert isinstance(event, Computed)
            lane.append(() if event.unit is None else (Mark(event.unit, event.attempt),))
            self._retries[me] = self._retries.get(me, 0) + (event.attempt > 0)
        self.outcome.counts["published"] += 1

    def _check_replica(self, me: PeerId, host: SimulatedPeer) -> None:
        expected = np.zeros(NUMBERS, np.int64)
        frontiers = self._before[me] = host.peer.replicator.frontiers()
        for lane, frontier in frontiers.items():
            if frontier:
                sums = self._sums.get(lane, [])
                reached = self._reached.setdefault(lane, {})
                reached[me] = max(reached.get(me, 0), frontier)
                if frontier >= len(sums):
                    raise ViolationError(f"{me} says it has {lane} up to {frontier}, which has only {len(sums) - 1}")
                expected = expected + sums[frontier]
        if not np.array_equal(host.replica.arrays()["w"], expected):
            raise ViolationError(f"the replica of {me} is not the sum of prefixes {host.peer.replicator.frontiers()}")

    def _check_bounds(self, me: PeerId, host: SimulatedPeer) -> None:
        """Everything that grows has a limit."""
        peer, others = host.peer, len(self.swarm.peers)
        lane = peer.replicator
        boundaries = sum([len(pin.boundaries) for pin in lane.pins.values()])
        for what, kept, most in (
            ("segments", len(host.segments), 2 * len(lane.readers) + boundaries + 2),
            ("segments known", len(lane.segments), len(host.segments)),
            ("members", len(peer.members), others),
            ("readers", len(lane.readers), len(peer.members)),
            ("origins", len(lane.origins), others),
            ("pins", len(lane.pins), len(peer.members)),
            ("pinned boundaries", boundaries, BOUNDARIES_MAX * len(lane.pins)),
            ("retained updates", host.segments.retained, self._retries.get(me, 0)),
        ):
            self._bound(me, what, kept, most)

    def _check_units_kept(self, me: PeerId, host: SimulatedPeer) -> None:
        known = host.peer.identities
        self._bound(me, "runs of units", known.runs, sum(map(len, self._marks.values())))
        self._bound(me, "units watched", known.watched, sum(self._retries.values()))

    def _bound(self, me: PeerId, what: str, kept: int, most: int) -> None:
        if kept > self.outcome.counts[f"peak {what}"]:
            self.outcome.counts[f"peak {what}"] = kept
        if kept > most:
            raise ViolationError(f"{me} keeps {kept} {what}, expected at most {most}")

    def _tell_departures(self, me: PeerId, host: SimulatedPeer) -> None:
        known = self._departed.setdefault(me, set())
        departed = {peer for peer, member in host.peer.members.items() if member.departed_at is not None}
        for other in sorted(departed - known):
            self._note(f"{me} takes {other} for dead")
        for other in sorted(known - departed):
            self._note(f"{me} hears {other} again")
        self._departed[me] = departed

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

    def _check_source(self) -> None:
        """Whoever is asked for the user's model is there, and nobody who could be asked as well has more."""
        me, now = self.swarm.source(), self.swarm.now
        able = {peer: host for peer, host in self.swarm.live().items() if host.peer.ready}
        awake = {peer: host for peer, host in able.items() if now >= host.paused_until} or able
        if me not in awake:
            raise ViolationError(f"the user's model is asked of {me}, which is dead, has no replica or pauses")
        mine = awake[me].peer.replicator.frontiers()
        for peer, host in awake.items():
            theirs = host.peer.replicator.frontiers()
            if sum(theirs.values()) > sum(mine.values()):
                raise ViolationError(f"the user's model is asked of {me}, and {peer} has more: {mine}, {theirs}")

    def _check_end(self) -> None:
        self._check_source()
        source = self.swarm.peers[self.swarm.source()]
        for lane, host in self.swarm.live().items():
            if source.peer.replicator.frontiers().get(lane, 0) < host.peer.replicator.n:
                raise ViolationError(f"the user's model lacks updates of {lane}, which is alive")
        dead = self._disruption.crashed_at.keys() & self.swarm.observing
        self.outcome.counts["observers crashed"] += len(dead)
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
            self._count_lost(lane, len(marks) - 1, kept)
            for entry in marks[1 : kept + 1]:
                for mark in entry:
                    net[mark.unit] += -1 if mark.withdraws else 1
        counts = self.outcome.counts
        units = sum(1 for count in net.values() if count > 0)
        for me, host in self.swarm.live().items():
            if host.peer.identities.units != units:
                raise ViolationError(f"{me} counts {host.peer.identities.units} units, expected {units}")
        counts["merged"] += merged
        if counts["published"] != merged + sum(counts[cause] for cause in LOST):
            raise ViolationError(f"published {counts['published']}, of which {merged} merged and others lost: {counts}")
        doubled = sum(1 for unit in self._done if net[unit] > 1)
        absent = sum(1 for unit in self._done if net[unit] < 1)
        self.outcome.counts["units"] += len(self._done)
        self.outcome.counts["doubled"] += doubled
        self.outcome.counts["absent"] += absent
        crashed = {
            mark.unit for lane in self._disruption.crashed_at for entry in self._marks.get(lane, ()) for mark in entry
        }
        wrong = sorted(tuple(unit) for unit in self._done if net[unit] != 1 and unit not in crashed)
        if wrong:
            raise ViolationError(f"no lane of a crashed peer holds {wrong}, which do not count once")

    def _count_lost(self, lane: PeerId, published: int, kept: int) -> None:
        """Of a dead lane: by how far its readers ever were."""
        reached = {peer: frontier for peer, frontier in self._reached.get(lane, {}).items() if peer != lane}
        anybody = max(reached.values(), default=0)
        survivors = max([f for peer, f in reached.items() if self.swarm.peers[peer].alive], default=0)
        for cause, lost in zip(LOST, (published - anybody, anybody - survivors, survivors - kept), strict=True):
            self.outcome.counts[cause] += lost
            if lost:
                self._note(f"{lost} updates of {lane} {cause}")

    def _check_drain(self) -> None:
        """Nothing is under way any more, so everybody has what everybody published, and can be told so."""
        if not self.options.impatient:
            self.swarm.exhaust(2 * DRAIN_TIMEOUT_S)  # of a clock at up to twice the speed
        until = self.swarm.now + DRAIN_TIMEOUT_S
        while self.swarm.now < until and any(host.drained is None for host in self.swarm.live().values()):
            self.swarm.run(self.swarm.now + 0.5)
        for me, host in self.swarm.live().items():
            if host.drained != ():
                raise ViolationError(f"{me} did not drain within {DRAIN_TIMEOUT_S:g} s: {host.drained}")
        self.swarm.run(self.swarm.now + ADVERTS_S)
        live = self.swarm.live().values()
        until = self.swarm.now + DRAIN_TIMEOUT_S
        while (left := restless(self.swarm)) is not None:  # who was cut off last adopts now
            if self.swarm.now >= until:
                raise ViolationError(left)
            self.swarm.run(self.swarm.now + 0.5)
        # adverts of a slow clock or network come too late again and again, for a fast clock
        punctual = not self.options.faults.clocks and self.options.delay_mean_s < PUNCTUAL_S
        while punctual and not self._detection.is_quiet():
            if self.swarm.now >= until:
                raise ViolationError("somebody still has news, or doubts itself")
            self.swarm.run(self.swarm.now + 0.5)
        if not self._disruption.crashed_at and any(host.segments.retained for host in live):
            raise ViolationError("updates are retained though everybody knows their units")
        members = [member for host in live for member in host.peer.members.values()]
        if all(member.forgotten or member.departed_at is None for member in members):
            self._check_dropped()
        self.outcome.counts["epochs dropped"] += sum(h.peer.identities.dropped for h in self.swarm.live().values())

    def _check_dropped(self) -> None:
        """Everybody has as much, so nobody needs to know of units of epochs that are over."""
        until = self.swarm.now + DRAIN_TIMEOUT_S
        live = self.swarm.live()
        while left := [me for me, host in live.items() if _keeps_closed(host)]:
            if self.swarm.now >= until:
                raise ViolationError(f"{left} know of units of epochs that are over")
            self.swarm.run(self.swarm.now + 0.5)


def _keeps_closed(host: SimulatedPeer) -> bool:
    """But for its own updates that it may have to take back, as it must while one who is dead may know others."""
    known = host.peer.identities
    return known.dropped < known.closed or known.watched > host.segments.retained


def run(seed: int, settings: Settings | None = None, tell: bool = False) -> Outcome:
    """Draw the options of `seed` and run them."""
    return ProvingGround(Options.draw(seed), settings, tell).run()
