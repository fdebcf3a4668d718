"""A scheduler in the manner of Spark on a bad day: units of work that are computed, tried again, and tried twice.

Streams and bursts of other updates come between, which are not tried again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from gossip.arrays import Packed
from gossip.events import Closed, Computed
from gossip.messages import PeerId, Unit
from gossip.sim.bad_day import Options
from gossip.sim.oracles.published import NUMBERS
from gossip.sim.simulator import CONGESTED_RETRY_S, SimulatedPeer, Simulation

FAULTS_END_S: Final = 60.0
"""No attempt begins after it."""


class Scheduler:
    """Who computes what, and when."""

    def __init__(
        self,
        swarm: Simulation,
        options: Options,
        chance: random.Random,
        counts: Counter[str],
        note: Callable[[str], None],
    ) -> None:
        self.done: set[Unit] = set()
        self._swarm = swarm
        self._options = options
        self._chance = chance
        self._counts = counts
        self._note = note
        self._open: dict[int, int] = {}
        """By epoch: how many of its units are not computed yet."""
        self._over = 0
        """Epochs that peers are told are over."""

    def write_script(self) -> None:
        """Have all that the options name happen at its time."""
        at, options = self._swarm.at, self._options
        chunk = 0
        for index in range(options.units):
            epoch = index * options.epochs // options.units
            within = index % options.chunks
            chunk = chunk + (options.stride or self._chance.randint(1, 3)) if within else 0
            unit = Unit(epoch, index // options.chunks, chunk)
            self._open[epoch] = self._open.get(epoch, 0) + 1
            time = (50 * epoch + self._chance.uniform(0, 50)) / options.epochs
            at(time, partial(self._attempt, unit, 0))
            if options.racing:
                at(time + self._chance.uniform(0, 0.2), partial(self._attempt, unit, 1))
            elif self._chance.random() < options.speculate:
                at(time + self._chance.uniform(0, 6), partial(self._attempt, unit, 1))
        for begin, end, period in options.streams:
            at(begin, partial(self._stream, end, period, None))
        for time, count in options.bursts:
            at(time, partial(self._burst, count))

    def keep_busy(self) -> None:
        """Let everybody publish a little while a replica is on its way, on days when they do."""
        if not self._options.busy or self._swarm.now >= FAULTS_END_S:
            return
        seconds = 2 * (self._options.delay_mean_s + self._options.replica_mean_s)
        for me in self._executors():
            for _ in range(2):
                time = self._swarm.now + self._chance.uniform(0, seconds)
                self._swarm.at(time, partial(self._swarm.happen, me, Computed(self._delta())))

    def _executors(self) -> dict[PeerId, SimulatedPeer]:
        """Who can compute."""
        live = self._swarm.live().items()
        return {me: host for me, host in live if host.peer.ready and me not in self._swarm.observing}

    def _attempt(self, unit: Unit, attempt: int) -> None:
        """Compute `unit` on some executor, and try again elsewhere if it fails or dies."""
        if unit in self.done or self._swarm.now > FAULTS_END_S:
            return
        me = self._chance.choice(sorted(self._executors()))
        seconds = self._chance.uniform(0.2, 15 if self._options.racing and attempt else 4)
        if self._chance.random() < self._options.fail:
            self._swarm.at(self._swarm.now + seconds, lambda: self._attempt(unit, attempt + 1))
            return
        self._swarm.at(self._swarm.now + seconds, lambda: self._finish(unit, attempt, me))

    def _finish(self, unit: Unit, attempt: int, me: PeerId) -> None:
        host = self._swarm.peers[me]
        if not host.alive:
            self._attempt(unit, attempt + 1)
            return
        if host.congested:  # not handed over yet: the task waits
            self._swarm.at(self._swarm.now + CONGESTED_RETRY_S, lambda: self._finish(unit, attempt, me))
            return
        if host.paused_until > self._swarm.now:
            self._swarm.at(host.paused_until, lambda: self._finish(unit, attempt, me))
            return
        self._note(f"{me} computed {tuple(unit)}, attempt {attempt}")
        self._swarm.happen(me, Computed(self._delta(), unit, attempt))
        if unit not in self.done:
            self.done.add(unit)
            self._open[unit.epoch] -= 1
            self._close_epochs()

    def _close_epochs(self) -> None:
        """Tell each peer, at a time of its own, of the epochs of which all is computed."""
        over = 0
        while over in self._open and self._open[over] == 0:
            over += 1
        if self._options.epochs == 1 or over <= self._over:
            return
        self._over = over
        for me in self._swarm.live():
            time = self._swarm.now + self._chance.uniform(1, 2) * self._options.closes_s
            self._swarm.at(time, partial(self._close, me, over))

    def _close(self, me: PeerId, epochs: int) -> None:
        self._counts["epochs closed"] += 1
        self._note(f"{me} is told that {epochs} epochs are over")
        self._swarm.happen(me, Closed(epochs))

    def _delta(self) -> Packed:
        return Packed.of({"w": np.array([self._chance.getrandbits(40) for _ in range(NUMBERS)], np.int64)})

    def _stream(self, end: float, period: float, me: PeerId | None) -> None:
        """One update of a stream, and the next one a period later, until its peer crashes."""
        if me is None:
            me = self._chance.choice(list(self._executors()))
            self._note(f"{me} publishes every {period:.2f} s")
        if self._swarm.now < end and self._swarm.peers[me].alive:
            self._swarm.happen(me, Computed(self._delta()))
            self._swarm.at(self._swarm.now + period, partial(self._stream, end, period, me))

    def _burst(self, count: int) -> None:
        me = self._chance.choice(list(self._executors()))
        self._note(f"{me} publishes {count} updates at once")
        for _ in range(count):
            self._swarm.happen(me, Computed(self._delta()))
