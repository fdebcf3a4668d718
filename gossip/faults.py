"""What goes wrong in a simulated swarm: cuts, crashes, pauses, latecomers and clocks of their own pace.

`Faults` says what and when, on virtual time; `inflict` writes it into a simulation's script. Who is hit is drawn from
the generator that it is given, so the same seed hits the same peers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from gossip.messages import PeerId
from gossip.simulator import SimulatedPeer, Simulation


@dataclass(frozen=True)
class Faults:
    """Times in virtual seconds since the beginning."""

    partitions: tuple[tuple[float, float, bool], ...] = ()
    """(begin, end, in both directions), each between two random halves."""
    crashes: tuple[float, ...] = ()
    """A random peer that has a replica is gone, with all it holds; never the last one."""
    pauses: tuple[tuple[float, float], ...] = ()
    """(begin, how long): a random peer does nothing; what comes in waits."""
    joins: tuple[float, ...] = ()
    """A new peer comes late."""
    clocks: bool = False
    """Clocks run at 0.5 to 2 times the speed, and are ahead by up to 1,000 s."""


class Disruption:
    """The faults of one simulation while they are carried out."""

    def __init__(
        self,
        swarm: Simulation,
        faults: Faults,
        chance: random.Random,
        note: Callable[[str], None] = lambda text: None,
        spared: Collection[PeerId] = (),
    ) -> None:
        """`spared` peers are neither crashed nor paused; cut off they may be."""
        self.crashed_at: dict[PeerId, float] = {}
        self.active = True
        """Faults whose time comes are carried out; else they are left out."""
        self._swarm = swarm
        self._faults = faults
        self._chance = chance
        self._note = note
        self._spared = spared
        self._cuts: list[tuple[frozenset[PeerId], bool]] = []
        swarm.blocked = self._blocked
        for host in swarm.peers.values():
            self._set_clock(host)
        for begin, end, both in faults.partitions:
            swarm.at(begin, partial(self._inflict, "a cut", partial(self._cut, both, end)))
        for time in faults.crashes:
            swarm.at(time, partial(self._inflict, "a crash", self._crash))
        for begin, seconds in faults.pauses:
            swarm.at(begin, partial(self._inflict, "a pause", partial(self._pause, seconds)))
        for index, time in enumerate(faults.joins):
            swarm.at(time, partial(self._inflict, "a latecomer", partial(self._join, index)))

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
        return any((sender in half) != (receiver in half) and (both or sender in half) for half, both in self._cuts)

    def _cut(self, both: bool, end: float) -> None:
        ids = sorted(self._swarm.peers)
        self._chance.shuffle(ids)
        cut = (frozenset(ids[: max(1, len(ids) // 2)]), both)
        self._cuts.append(cut)
        self._note(f"cut off {sorted(cut[0])}" + ("" if both else ", one way"))
        self._swarm.at(end, lambda: self._heal(cut))

    def _heal(self, cut: tuple[frozenset[PeerId], bool]) -> None:
        if cut in self._cuts:
            self._cuts.remove(cut)
            self._note(f"healed {sorted(cut[0])}")

    def _crash(self) -> None:
        ready = [me for me, host in self._swarm.live().items() if host.peer.ready and me not in self._spared]
        if len(ready) > 1:
            me = self._chance.choice(ready)
            self.crashed_at[me] = self._swarm.now
            self._swarm.crash(me)
            self._note(f"{me} crashed")

    def _pause(self, seconds: float) -> None:
        me = self._chance.choice(sorted(me for me in self._swarm.live() if me not in self._spared))
        self._swarm.peers[me].paused_until = self._swarm.now + seconds
        self._note(f"{me} paused for {seconds:.1f} s")

    def _join(self, index: int) -> None:
        me = PeerId(f"q{index:03d}")
        self._note(f"{me} comes late")
        self._swarm.join(me)
        self._set_clock(self._swarm.peers[me])

    def _set_clock(self, host: SimulatedPeer) -> None:
        if self._faults.clocks:
            host.clock_rate = self._chance.uniform(0.5, 2)
            host.clock_ahead = self._chance.uniform(0, 1000)
