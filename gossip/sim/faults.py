"""Faults of a simulated swarm: cuts, crashes, pauses, latecomers, and clocks that run and jump as they like.

`Faults` says which faults come when, on virtual time; `Disruption` writes them into a simulation's script. The peers
that are hit are drawn from the generator that it is given, so the same seed hits the same peers. Some faults wait for
the protocol: a `Strike` hits when a peer was just sent a replica, since donor and adopter are needed most then. An
observer is hit like every other peer; some faults are meant for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from gossip import arguments
from gossip.arguments import check_fields, flag, instance, number, series
from gossip.arrays import Array, Packed, Payload, squares_of
from gossip.errors import UsageError
from gossip.events import Disconnected, Effect, Event, Leaving, Progressed, Send
from gossip.lanes.peer import Peer
from gossip.messages import PeerId, Range, State
from gossip.sim.simulator import Simulation
from gossip.updates import read_whole
from gossip.updates.entries import POWERS, STEPS
from gossip.updates.levels import SCALES
from gossip.updates.rows import EXPONENT_MAX, EXPONENTS, VALUES


def _time(name: str, value: Any) -> float:
    return arguments.seconds(name, value, zero=True)


def _life(name: str, value: Any) -> float:
    return number(name, value, "seconds from 0 on, or infinity", lambda time: time >= 0)


def _parts(name: str, value: Any, checks: Sequence[Callable[[str, Any], Any]], expected: str) -> Any:
    if not isinstance(value, list | tuple) or len(value) != len(checks):
        raise UsageError(f"{name} holds {value!r:.80}, expected {expected}")
    return tuple(check(name, part) for check, part in zip(checks, value, strict=True))


class Victim(Enum):
    """Whom a strike hits."""

    LINKS = "a cut between two random halves, the adopter in the smaller one"
    DONOR = "the donor crashes"
    ADOPTER = "the adopter crashes"
    ONE_WAY = "a cut as of the links, in one direction"
    RESTART = "the adopter crashes, and comes back as another at once"
    LATECOMER = "nobody; somebody comes late, who may adopt from either"
    ORIGIN = "who answers a pull crashes: others lack what the one who asked gets"


@dataclass(frozen=True)
class Strike:
    """A fault that waits for a replica to be on its way."""

    since: float
    """It hits when the first one is sent after this time; for an origin, the first answer to a pull."""
    victim: Victim
    wait: float
    """How long after the replica was sent: it may arrive before, or be cut off."""
    seconds: float
    """How long a cut lasts."""

    def __post_init__(self) -> None:
        check_fields(self)
        instance("victim", self.victim, Victim)
        for name in ("since", "wait", "seconds"):
            _time(name, getattr(self, name))


@dataclass(frozen=True)
class Lie:
    """From `since` on a random peer publishes other updates than its tasks compute: `factor` times as long, and with
    `noise` into any direction. It lies to all alike."""

    since: float
    factor: float = 1e6
    noise: bool = False
    checks: bool = False
    """Its own agent looks at what it publishes, as that of a peer that is broken does; a liar's does not."""

    def __post_init__(self) -> None:
        check_fields(self)
        _time("since", self.since)
        number("factor", self.factor, "a number above 0", lambda factor: factor > 0)
        flag("noise", self.noise)
        flag("checks", self.checks)

    def told(self, truth: Payload, chance: np.random.Generator) -> Packed:
        """What is published in the place of an update, of the same kind."""
        return Packed.of({name: self._part(name, part, chance) for name, part in read_whole(truth).arrays().items()})

    def _part(self, name: str, part: Array, chance: np.random.Generator) -> Array:
        if name.endswith((EXPONENTS, POWERS, SCALES)):
            raised = part.astype(np.int64) + round(math.log2(self.factor))
            return np.asarray(np.clip(raised, -EXPONENT_MAX, EXPONENT_MAX), part.dtype)
        if name.endswith((VALUES, STEPS)) and part.dtype.kind == "i":
            signs = chance.choice([-1, 1], part.shape)
            return np.multiply(chance.permuted(part), signs, dtype=part.dtype, casting="unsafe") if self.noise else part
        if part.dtype.kind != "f":
            return part
        if self.noise:
            length = math.sqrt(squares_of(part.astype(np.float64)) / max(1, part.size))
            part = (length * chance.standard_normal(part.shape)).astype(part.dtype)
        return np.asarray(part * part.dtype.type(self.factor), part.dtype)


@dataclass(frozen=True)
class Faults:
    """Times in virtual seconds since the beginning."""

    partitions: tuple[tuple[float, float, bool], ...] = ()
    """(begin, end, in both directions), each between two random halves."""
    crashes: tuple[float, ...] = ()
    """A random peer that has a replica is gone, with all it holds; never the last one that is no observer."""
    pauses: tuple[tuple[float, float], ...] = ()
    """(begin, how long): a random peer does nothing; what comes in waits."""
    joins: tuple[float, ...] = ()
    """A new peer comes late."""
    short_lives: tuple[float, ...] = ()
    """By index of `joins`: how long after it came this one crashes; infinite if it does not."""
    clocks: bool = False
    """Clocks run at 0.5 to 2 times the speed, and are ahead by up to 1,000 s."""
    jumps: tuple[tuple[float, float], ...] = ()
    """(when, how far): the clock of a random peer jumps forward, as after a suspended machine wakes."""
    strikes: tuple[Strike, ...] = ()
    breaks: float = 0.0
    """Probability that a connection breaks when a peer crashes, for each of the others: it hears so at once."""
    disconnections: tuple[float, ...] = ()
    """The connection of two random peers breaks, though both live."""
    farewells: tuple[float, ...] = ()
    """A random peer that has a replica leaves on purpose, and says so."""
    parts: int = 0
    """In which a replica comes in, if it does; the one who waits sees each."""
    observer_crashes: tuple[float, ...] = ()
    """Whoever observes is gone."""
    observer_pauses: tuple[tuple[float, float], ...] = ()
    """(begin, how long): whoever observes does nothing."""
    observer_cuts: tuple[tuple[float, float], ...] = ()
    """(begin, end): whoever observes at the begin is cut off from all others."""
    lies: tuple[Lie, ...] = ()
    """Each of another peer, as long as there are some."""

    def __post_init__(self) -> None:
        check_fields(self)
        arguments.probability("breaks", self.breaks)
        arguments.integer("parts", self.parts, 0)
        cut, pair = "tuples of (begin, end, in both directions)", "pairs of seconds"
        for name, check, expected in (
            ("partitions", partial(_parts, checks=(_time, _time, flag), expected=cut), cut),
            ("crashes", _time, "times in seconds"),
            ("pauses", partial(_parts, checks=(_time, _time), expected=pair), pair),
            ("observer_crashes", _time, "times in seconds"),
            ("observer_pauses", partial(_parts, checks=(_time, _time), expected=pair), pair),
            ("observer_cuts", partial(_parts, checks=(_time, _time), expected=pair), pair),
            ("joins", _time, "times in seconds"),
            ("short_lives", _life, "seconds"),
            ("disconnections", _time, "times in seconds"),
            ("farewells", _time, "times in seconds"),
            ("jumps", partial(_parts, checks=(_time, _time), expected=pair), pair),
            ("strikes", partial(instance, kind=Strike), "strikes"),
            ("lies", partial(instance, kind=Lie), "lies"),
        ):
            found = series(name, getattr(self, name), check, f"a tuple of {expected}")
            object.__setattr__(self, name, found)

    def clock(self, chance: random.Random) -> tuple[float, float]:
        """The rate of one peer's clock, and how far it is ahead."""
        return (chance.uniform(0.5, 2), chance.uniform(0, 1000)) if self.clocks else (1.0, 0.0)


class Disruption:
    """The faults of one simulation while they are carried out."""

    def __init__(
        self,
        swarm: Simulation,
        faults: Faults,
        chance: random.Random,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.crashed_at: dict[PeerId, float] = {}
        self.active = True
        """Faults whose time comes are carried out; else they are left out."""
        self._swarm = swarm
        self._faults = faults
        self._chance = chance
        self._note = note
        self._cuts: list[tuple[frozenset[PeerId], bool]] = []
        self._strikes = list(faults.strikes)
        self._came = 0
        swarm.blocked = self._blocked
        swarm.observers.append(self._observe)
        for begin, end, both in faults.partitions:
            swarm.at(begin, partial(self._inflict, "a cut", partial(self._cut, both, end)))
        for time in faults.crashes:
            swarm.at(time, partial(self._inflict, "a crash", self._crash_any))
        for begin, seconds in faults.pauses:
            swarm.at(begin, partial(self._inflict, "a pause", partial(self._pause_any, seconds)))
        for index, time in enumerate(faults.joins):
            swarm.at(time, partial(self._inflict, "a latecomer", partial(self._join, index)))
        for time, seconds in faults.jumps:
            swarm.at(time, partial(self._inflict, "a jump of a clock", partial(self._jump, seconds)))
        for time in faults.disconnections:
            swarm.at(time, partial(self._inflict, "a broken connection", self._disconnect))
        for time in faults.farewells:
            swarm.at(time, partial(self._inflict, "a farewell", partial(self._crash_any, farewell=True)))
        for lie in faults.lies:
            swarm.at(lie.since, partial(self._inflict, "a lie", partial(self._lie, lie)))
        for time in faults.observer_crashes:
            swarm.at(time, partial(self._inflict, "a crash of the observer", partial(self._to_observer, self._crash)))
        for begin, seconds in faults.observer_pauses:
            pause = partial(self._to_observer, partial(self._pause, seconds))
            swarm.at(begin, partial(self._inflict, "a pause of the observer", pause))
        for begin, end in faults.observer_cuts:
            cut = partial(self._to_observer, partial(self._cut_off, end))
            swarm.at(begin, partial(self._inflict, "a cut of the observer", cut))

    def end(self) -> None:
        """Heal what is cut, and wake who pauses. Who crashed stays away, and clocks keep their pace.

        What is due from now on is left out, unless `active` is set again.
        """
        self.active = False
        self._cuts.clear()
        for host in self._swarm.peers.values():
            host.paused_until = min(host.paused_until, self._swarm.now)

    def _inflict(self, what: str, act: Callable[[], None]) -> None:
        if self.active:
            act()
        else:
            self._note(f"{what} was due and left out")

    def _blocked(self, sender: PeerId, receiver: PeerId) -> bool:
        if not self._cuts:
            return False
        return any((sender in half) != (receiver in half) and (both or sender in half) for half, both in self._cuts)

    def _observe(self, now: float, me: PeerId, event: Event, effects: list[Effect]) -> None:
        if not self.active or not (self._strikes or self._faults.parts):
            return
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, State | Range):
                gives = isinstance(effect.message, State)
                due = [
                    strike
                    for strike in self._strikes
                    if self._swarm.now >= strike.since and gives == (strike.victim is not Victim.ORIGIN)
                ]
                for strike in due[:1]:
                    self._strikes.remove(strike)
                    self._swarm.at(self._swarm.now + strike.wait, partial(self._strike, strike, me, effect.to))
                if gives and self._faults.parts:
                    self._come_in_parts(me, effect.to)

    def _come_in_parts(self, donor: PeerId, adopter: PeerId) -> None:
        """The adopter sees parts of a replica, which itself may be lost."""
        network = self._swarm.network
        most = 3 * (network.delay_mean_s + network.replica_mean_s)
        for _ in range(self._faults.parts):
            time = self._swarm.now + self._chance.uniform(0, most)
            self._swarm.at(time, partial(self._come_in, donor, adopter, self._chance.random() < 0.9))

    def _come_in(self, donor: PeerId, adopter: PeerId, arrived: bool) -> None:
        if adopter in self._swarm.live() and not self._blocked(donor, adopter):
            self._swarm.happen(adopter, Progressed(donor, arrived))

    def _strike(self, strike: Strike, sender: PeerId, to: PeerId) -> None:
        if not self.active:
            return
        match strike.victim:
            case Victim.LINKS:
                self._cut(True, self._swarm.now + strike.seconds, to)
            case Victim.ONE_WAY:
                self._cut(False, self._swarm.now + strike.seconds, to)
            case Victim.DONOR | Victim.ORIGIN:
                self._crash(sender)
            case Victim.ADOPTER:
                self._crash(to)
            case Victim.RESTART:
                self._crash(to)
                self._come_late()
            case Victim.LATECOMER:
                self._come_late()

    def _to_observer(self, act: Callable[[PeerId], None]) -> None:
        """Between the death of one and the next there is none, and nothing happens."""
        for me in sorted(self._swarm.observing & self._swarm.live().keys()):
            act(me)

    def _cut_off(self, end: float, me: PeerId) -> None:
        self._sever(frozenset([me]), True, end)

    def _cut(self, both: bool, end: float, inside: PeerId | None = None) -> None:
        ids = sorted(self._swarm.peers)
        self._chance.shuffle(ids)
        if inside is not None:
            ids.remove(inside)
            ids.insert(0, inside)
        self._sever(frozenset(ids[: max(1, len(ids) // 2)]), both, end)

    def _sever(self, half: frozenset[PeerId], both: bool, end: float) -> None:
        cut = (half, both)
        self._cuts.append(cut)
        self._note(f"cut off {sorted(cut[0])}" + ("" if both else ", one way"))
        self._swarm.at(end, lambda: self._heal(cut))

    def _heal(self, cut: tuple[frozenset[PeerId], bool]) -> None:
        if cut in self._cuts:
            self._cuts.remove(cut)
            self._note(f"healed {sorted(cut[0])}")

    def _crash_any(self, farewell: bool = False) -> None:
        ready = [me for me, host in self._swarm.live().items() if host.machine.ready]
        if ready:
            self._crash(self._chance.choice(ready), farewell)

    def _crash(self, me: PeerId, farewell: bool = False) -> None:
        """`me` crashes, unless nobody else has a replica; those of observers do not count: nobody could train."""
        kept = {me, *self._swarm.observing}
        others = [peer for peer, host in self._swarm.live().items() if host.machine.ready and peer not in kept]
        if others and self.active and self._swarm.peers[me].alive:
            if farewell:
                self._swarm.happen(me, Leaving())
            self.crashed_at[me] = self._swarm.now
            self._swarm.crash(me)
            self._note(f"{me} {'left' if farewell else 'crashed'}")
            for other in self._swarm.live() if self._faults.breaks else ():
                if self._chance.random() < self._faults.breaks:
                    self._swarm.happen(other, Disconnected(me))

    def _disconnect(self) -> None:
        live = sorted(self._swarm.live())
        if len(live) > 1:
            me, other = self._chance.sample(live, 2)
            self._note(f"the connection of {me} to {other} breaks")
            self._swarm.happen(me, Disconnected(other))
            self._swarm.happen(other, Disconnected(me))

    def _pause_any(self, seconds: float) -> None:
        self._pause(seconds, self._chance.choice(sorted(self._swarm.live())))

    def _pause(self, seconds: float, me: PeerId) -> None:
        host = self._swarm.peers[me]
        host.paused_until = max(host.paused_until, self._swarm.now + seconds)
        self._note(f"{me} paused for {seconds:.1f} s")

    def _lie(self, lie: Lie) -> None:
        honest = [me for me, host in self._swarm.live().items() if host.lie is None and me not in self._swarm.observing]
        if honest:
            me = self._chance.choice(sorted(honest))
            chance = np.random.default_rng(self._chance.getrandbits(64))
            host = self._swarm.peers[me]
            host.lie = lambda truth: lie.told(truth, chance)
            if isinstance(host.machine, Peer) and not lie.checks:
                host.machine.conduct.suspended = True
            self._note(f"{me} begins to lie")

    def _jump(self, seconds: float) -> None:
        me = self._chance.choice(sorted(self._swarm.live()))
        self._swarm.peers[me].clock.ahead += seconds
        self._note(f"the clock of {me} jumped by {seconds:.1f} s")

    def _join(self, index: int) -> None:
        me = PeerId(f"q{index:03d}")
        self._note(f"{me} comes late")
        self._swarm.join(me)
        if index < len(self._faults.short_lives) and self._faults.short_lives[index] < float("inf"):
            self._swarm.at(self._swarm.now + self._faults.short_lives[index], partial(self._crash, me))

    def _come_late(self) -> None:
        """Somebody of whom the script does not know when."""
        self._came += 1
        me = PeerId(f"s{self._came:03d}")
        self._note(f"{me} comes late")
        self._swarm.join(me)
