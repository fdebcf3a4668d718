"""A bad day for a swarm, drawn from one seed, and the promises that must hold all the same.

A run has three phases. In the first, the network loses, repeats, delays and cuts; peers crash, pause and come late;
clocks run at their own pace and jump; a scheduler in the manner of Spark computes units of work on them, tries them
again and tries them twice; streams and bursts of other updates come between. On some days there is an observer, which
is hit by all this, and replaced when it is gone. In the second phase, the faults end, and the survivors must become
level. In the third, they must drain.

After every event: the peer finds nothing wrong with its own state (`check`); a replica is the initial model plus a
prefix of every lane, never twice and never half; the memory of a peer is bounded; a peer that adopts goes back in no
living lane, and no origin that had pinned calls it unknown. Every so often: nobody who could be asked for the user's
model has more than the one who is. At the end: that one has all of every living lane; replicas are equal; nothing of a
living lane is lost, and every loss has a cause; every unit counts once; everybody drains.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from gossip.events import Adopt, Deliver, Effect, Event, Gated, Own, Received, Send, Warn
from gossip.lanes.peer import Settings
from gossip.membership import Detection
from gossip.messages import PeerId, Pull, Unit
from gossip.sim import states
from gossip.sim.bad_day import Options
from gossip.sim.faults import Disruption
from gossip.sim.oracles.bounds import Bounds
from gossip.sim.oracles.detection import DetectionOracles
from gossip.sim.oracles.ending import restless
from gossip.sim.oracles.published import NUMBERS, Published
from gossip.sim.oracles.seen import ViolationError
from gossip.sim.oracles.table import Oracles
from gossip.sim.oracles.transfers import Transfers
from gossip.sim.scheduler import FAULTS_END_S, Scheduler
from gossip.sim.simulator import Network, SimulatedPeer, Simulation

LEVEL_TIMEOUT_S: Final = 60.0
"""Promise: after the faults end, survivors are level within this time."""
DRAIN_TIMEOUT_S: Final = 30.0
"""On a good network, with everybody level, the last acknowledgments need some adverts."""
LOOK_S: Final = 0.5
"""How often it is looked whether an observer is gone, and who would be asked for the user's model."""
ADVERTS_S: Final = 4.0
"""In which everybody advertises some times, on the slowest clock."""
PUNCTUAL_S: Final = 0.1
"""Mean delay with which adverts come in time: nobody is suspected then who lives."""


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
        chance = random.Random(f"script {options.seed}")
        self.options = options
        self.outcome = Outcome(options)
        self.swarm = _swarm(options, settings, chance)
        self._tell = tell
        self._states: dict[PeerId, list[str]] = {}
        """By peer: what it was in before the event."""
        self._departed: dict[PeerId, set[PeerId]] = {}
        """By peer: whom it takes for dead. For the story."""
        counts = self.outcome.counts
        self._scheduler = Scheduler(self.swarm, options, chance, counts, self._note)
        self._published = Published(self.swarm, counts, self._note)
        self._transfers = Transfers(
            self.swarm, self._published.frontiers, counts, self._note, self._scheduler.keep_busy
        )
        self._bounds = Bounds(self.swarm, self._published.marks, self._published.retries, counts)
        self.swarm.observers.append(self._observe)
        self._oracles = Oracles(self.swarm, self._published.marks)
        self._detection = DetectionOracles(self.swarm)
        self._disruption = Disruption(self.swarm, options.faults, chance, self._note)
        self._scheduler.write_script()
        self.swarm.at(LOOK_S, self._look)

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
            if self._tell:
                self.outcome.story += getattr(violation, "__notes__", [])
        self.outcome.digest = self.swarm.digest.hexdigest()
        for host in self.swarm.peers.values():
            self.outcome.counts["withdrawn"] += host.peer.units.withdrawn
            self.outcome.counts["gated"] += host.units_gated
        return self.outcome

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

    # ---------------------------------------------------------------------------------------------- after an event

    def _observe(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        host = self.swarm.peers[me]
        what = states.name(event)
        for state in self._states.get(me, ()):
            self.outcome.reached[what, state] += 1
        self._states[me] = states.states(host.peer)
        touched = False
        for effect in effects:
            match effect:
                case Deliver(lane=lane):
                    touched = True
                    if lane == me and not isinstance(effect.payload, Own):
                        self._published.append(me, effect, event)
                case Adopt():
                    touched = True
                    self._transfers.adopted(me, event)
                case Send(to, message):
                    self._transfers.sent(me, to, message)
                case Gated(unit):
                    self._note(f"{me} does not publish {tuple(unit)}: it is known")
                case Warn(text):
                    self._note(f"{me} warns: {text}")
        if touched:
            self._published.check_replica(me, host)
            self._bounds.check_units(me, host)
        if isinstance(event, Received) and isinstance(event.message, Pull):
            self._transfers.pulled(me, event.message)
        self._transfers.out_of_reach(me, host.peer.replicator.away)
        self._bounds.check(me, host)
        if self._tell:
            self._tell_departures(me, host)

    def _tell_departures(self, me: PeerId, host: SimulatedPeer) -> None:
        known = self._departed.setdefault(me, set())
        departed = {peer for peer, member in host.peer.members.items() if member.departed_at is not None}
        for other in sorted(departed - known):
            self._note(f"{me} takes {other} for dead")
        for other in sorted(known - departed):
            self._note(f"{me} hears {other} again")
        self._departed[me] = departed

    # ----------------------------------------------------------------------------------------------------- the end

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
        source, published = self.swarm.peers[self.swarm.source()], self._published
        for lane, host in self.swarm.live().items():
            if source.peer.replicator.frontiers().get(lane, 0) < host.peer.replicator.n:
                raise ViolationError(f"the user's model lacks updates of {lane}, which is alive")
        dead = self._disruption.crashed_at.keys() & self.swarm.observing
        self.outcome.counts["observers crashed"] += len(dead)
        replicas = [host.replica.arrays()["w"] for host in self.swarm.live().values()]
        if any(not np.array_equal(replica, replicas[0]) for replica in replicas):
            raise ViolationError("replicas differ though their frontiers are equal")
        level = next(iter(self.swarm.live().values())).peer.replicator.frontiers()
        published.check_lost(level)
        net = published.units(level)
        units = sum(1 for count in net.values() if count > 0)
        for me, host in self.swarm.live().items():
            if host.peer.identities.units != units:
                raise ViolationError(f"{me} counts {host.peer.identities.units} units, expected {units}")
        published.check_causes(level)
        self._check_units(net)

    def _check_units(self, net: Counter[Unit]) -> None:
        """Every unit that was computed counts once, unless a peer that crashed had it."""
        counts, done = self.outcome.counts, self._scheduler.done
        counts["units"] += len(done)
        counts["doubled"] += sum(1 for unit in done if net[unit] > 1)
        counts["absent"] += sum(1 for unit in done if net[unit] < 1)
        marks = self._published.marks
        crashed = {mark.unit for lane in self._disruption.crashed_at for entry in marks.get(lane, ()) for mark in entry}
        wrong = sorted(tuple(unit) for unit in done if net[unit] != 1 and unit not in crashed)
        if wrong:
            raise ViolationError(f"no lane of a crashed peer holds {wrong}, which do not count once")

    def _check_drain(self) -> None:
        """Nothing is under way any more, so everybody has what everybody published, and can be told so."""
        if not self.options.impatient:
            self.swarm.exhaust(2 * DRAIN_TIMEOUT_S)  # of a clock at up to twice the speed
        until = self.swarm.now + DRAIN_TIMEOUT_S
        while self.swarm.now < until and any(host.missing is None for host in self.swarm.live().values()):
            self.swarm.run(self.swarm.now + 0.5)
        for me, host in self.swarm.live().items():
            if host.missing != ():
                raise ViolationError(f"{me} did not drain within {DRAIN_TIMEOUT_S:g} s: {host.missing}")
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


def _swarm(options: Options, settings: Settings | None, chance: random.Random) -> Simulation:
    """The peers of that day, on its network, with the settings that it draws unless others are given."""
    return Simulation(
        options.peers,
        {"w": np.zeros(NUMBERS, np.int64)},
        seed=options.seed,
        network=Network(
            options.loss,
            options.duplication,
            options.delay_mean_s,
            options.replica_mean_s,
            options.late,
            options.late_mean_s,
        ),
        settings=settings
        or Settings(
            detection=Detection(),
            pulls_max=options.pulls_max,
            forget_s=options.forget_s,
            segments_max=options.segments_max,
        ),
        clock=partial(options.faults.clock, chance),
        observer=options.observer,
        checks=True,
    )


def _keeps_closed(host: SimulatedPeer) -> bool:
    """But for its own updates that it may have to take back, as it must while one who is dead may know others."""
    known = host.peer.identities
    return known.dropped < known.closed or known.watched > host.segments.retained


def run(seed: int, settings: Settings | None = None, tell: bool = False) -> Outcome:
    """Draw the options of `seed` and run them."""
    return ProvingGround(Options.draw(seed), settings, tell).run()
