"""A bad day for a swarm, drawn from one seed.

Each part of a day draws from a generator of its own, so that a new part does not change the other parts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from gossip.messages import PeerId
from gossip.sim.faults import Faults, Strike, Victim

EARLY_STRIKES: Final = {Victim.LINKS: 4, Victim.DONOR: 1, Victim.ADOPTER: 1}
"""By how likely each victim is."""
LATE_STRIKES: Final = {Victim.ONE_WAY: 1, Victim.RESTART: 1, Victim.LATECOMER: 2, Victim.ORIGIN: 2}


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
        chance, more = random.Random(f"options {seed}"), random.Random(f"more {seed}")
        peers = chance.randint(3, 7)
        partitions = _draw_partitions(chance)
        joins, short_lives = _draw_latecomers(chance, partitions)
        delay_mean_s = 10 ** chance.uniform(-2, -0.3)
        strikes = _draw_strikes(chance, _times(chance, chance.choice([0, 1, 2])), EARLY_STRIKES, delay_mean_s)
        streams = _draw_streams(chance)
        observer, faults = _draw_observer(random.Random(f"observer {seed}"))
        room = 0 if observer is None else 2 * (1 + len(faults.observer_crashes) + peers // 4 + len(strikes))
        faults = replace(
            faults,
            partitions=partitions,
            crashes=_times(chance, chance.randint(0, peers // 4)),
            pauses=tuple((begin, chance.uniform(0.5, 20)) for begin in _times(chance, chance.randint(0, 2))),
            joins=joins,
            short_lives=short_lives,
            strikes=strikes,
        )
        faults = _add_departures(more, faults, delay_mean_s)
        forget_s = chance.choice([600.0, 600.0, chance.uniform(90, 150)])
        segments_max = chance.choice([64, 64, 2 * (peers + len(faults.joins)) + chance.randint(2, 8)]) + room
        if more.random() < 0.25:
            faults = _shorten(faults)
            forget_s = more.uniform(36, 42)
            segments_max = more.choice([segments_max, more.randint(4, 10)])
        epochs, closes_s, racing = _draw_epochs(seed)
        return cls(
            seed=seed,
            peers=peers,
            loss=chance.choice([0.0, chance.uniform(0, 0.7)]),
            duplication=chance.choice([0.0, chance.uniform(0, 0.7)]),
            delay_mean_s=delay_mean_s,
            faults=_add_breaks(chance, more, faults),
            streams=streams,
            bursts=tuple((when, chance.randint(5, 30)) for when in _times(chance, chance.choice([0, 0, 1, 2]))),
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


def _times(chance: random.Random, count: int) -> tuple[float, ...]:
    return tuple(sorted(chance.uniform(5, 50) for _ in range(count)))


def _draw_partitions(chance: random.Random) -> tuple[tuple[float, float, bool], ...]:
    begins = _times(chance, chance.randint(0, 3))
    return tuple((begin, begin + chance.uniform(2, 40), chance.random() < 0.7) for begin in begins)


def _draw_latecomers(
    chance: random.Random, partitions: tuple[tuple[float, float, bool], ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """When they come, and how long they live."""
    joins = _times(chance, chance.randint(0, 3))
    if partitions and chance.random() < 0.3:  # some at the same time, in the middle of a cut
        begin, end, _ = chance.choice(partitions)
        first = chance.uniform(begin, min(end, 50.0))
        joins = tuple(sorted(first + chance.uniform(0, 1) for _ in range(chance.randint(2, 3))))
    return joins, tuple(chance.uniform(0, 15) if chance.random() < 0.15 else float("inf") for _ in joins)


def _draw_strikes(
    chance: random.Random, times: tuple[float, ...], victims: Mapping[Victim, int], delay_mean_s: float
) -> tuple[Strike, ...]:
    """One after each of `times`; `victims` by how likely they are."""
    kinds, weights = list(victims), list(victims.values())
    return tuple(
        Strike(since, victim, chance.uniform(0, 4) * delay_mean_s, chance.uniform(16, 40))
        for since in times
        for victim in chance.choices(kinds, weights)
    )


def _draw_streams(chance: random.Random) -> tuple[tuple[float, float, float], ...]:
    if chance.random() >= 0.25:
        return ()
    begins = _times(chance, chance.randint(1, 2))
    return tuple((begin, begin + chance.uniform(2, 10), chance.uniform(0.05, 0.2)) for begin in begins)


def _draw_observer(chance: random.Random) -> tuple[PeerId | None, Faults]:
    """Who observes, and what is meant for it."""
    observer = chance.choice([None, PeerId("observer"), PeerId("reader")])

    def times(most: int) -> tuple[float, ...]:
        count = chance.randint(0, most) if observer is not None else 0
        return tuple(sorted(chance.uniform(5, 55) for _ in range(count)))

    return observer, Faults(
        observer_crashes=times(2),
        observer_pauses=tuple((begin, chance.uniform(0.5, 20)) for begin in times(1)),
        observer_cuts=tuple((begin, begin + chance.uniform(2, 40)) for begin in times(1)),
    )


def _add_departures(chance: random.Random, faults: Faults, delay_mean_s: float) -> Faults:
    """Farewells, those who come when somebody has just gone, and more strikes."""
    farewells = _times(chance, chance.randint(0, 1)) if chance.random() < 0.3 else ()
    joins = faults.joins
    if chance.random() < 0.4:  # while the survivors agree on what the dead left
        joins = (*joins, *(when + chance.uniform(3, 10) for when in (*faults.crashes, *farewells)))
    most = chance.choice([0, 2, 4])
    strikes = _draw_strikes(chance, _times(chance, chance.randint(0, most)), LATE_STRIKES, delay_mean_s)
    return replace(faults, farewells=farewells, joins=joins, strikes=(*faults.strikes, *strikes))


def _shorten(faults: Faults) -> Faults:
    """Let nobody be out of reach for long: the dead are forgotten soon enough to see what comes then."""
    return replace(
        faults,
        partitions=tuple((begin, min(end, begin + 6), both) for begin, end, both in faults.partitions[:1]),
        pauses=tuple((begin, min(length, 3)) for begin, length in faults.pauses[:1]),
        observer_cuts=tuple((begin, min(end, begin + 6)) for begin, end in faults.observer_cuts),
        observer_pauses=tuple((begin, min(length, 3)) for begin, length in faults.observer_pauses),
        strikes=tuple(strike for strike in faults.strikes if strike.victim not in (Victim.LINKS, Victim.ONE_WAY)),
    )


def _add_breaks(chance: random.Random, more: random.Random, faults: Faults) -> Faults:
    """Clocks, and what becomes of connections and of a replica on its way."""
    clocks = chance.random() < 0.5
    jumps = tuple((when, 10 ** chance.uniform(-1, 2)) for when in _times(chance, chance.choice([0, 0, 1, 2])))
    breaks, most = more.choice([0.0, 0.5]), more.choice([0, 3])
    disconnections = _times(more, more.randint(0, most))
    return replace(
        faults,
        clocks=clocks,
        jumps=jumps,
        breaks=breaks,
        disconnections=disconnections,
        parts=more.choice([0, 3]),
    )


def _draw_epochs(seed: int) -> tuple[int, float, bool]:
    """How many there are, when peers hear that one is over, and whether units race."""
    closings, races = random.Random(f"closings {seed}"), random.Random(f"races {seed}")
    epochs = closings.choice([1, 2, 3, 4])
    closes_s = closings.choice([0.1, closings.uniform(0, 15)])
    if races.random() < 0.2:
        return races.choice([3, 6]), races.choice([0.0, 0.5]), True
    return epochs, closes_s, False
