"""Every peer advertises when something changed and every so often anyway, and no peer is busy without end."""

from __future__ import annotations

from collections import Counter
from typing import Final

from gossip.events import Publish, Ticked
from gossip.messages import Advert, PeerId, Pin, Ping, PingRequest, Pull, StateRequest
from gossip.sim.oracles.seen import SLACK_S, Moments, Step, View, ViolationError

BUSY_MAX: Final = 200
"""Times that one peer wakes, or messages of one kind from one peer to another, in a second of its clock: adverts come
50 times a second at the most, and each may be a reason for something else."""
ADOPTS_MAX: Final = 12
"""The same of what is sent for an adoption, where everything is repeated after half a second."""
SENT_MAX: Final[dict[type[object], tuple[str, int]]] = {
    Pull: ("pulls", BUSY_MAX),
    Pin: ("pins", ADOPTS_MAX),
    StateRequest: ("asks for a replica", ADOPTS_MAX),
    Ping: ("pings", BUSY_MAX),
    PingRequest: ("pings", BUSY_MAX),
}


class IsNotBusyWithoutEnd:
    """Nobody wakes, or sends the same to one peer, more often in a second than it may have reasons."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._me = view.me
        self._second = -1
        self._busy: Counter[object] = Counter()
        """In this second of its clock."""
        moments.happens[Ticked].append(self._wakes)
        for kind in SENT_MAX:
            moments.sends[kind].append(self._sends)

    def _wakes(self, step: Step, event: Ticked) -> None:
        self._count(step.now, "wakes", BUSY_MAX)

    def _sends(self, step: Step, to: PeerId, message: object) -> None:
        what, most = SENT_MAX[type(message)]
        self._count(step.now, (to, what), most)

    def _count(self, now: float, what: object, most: int) -> None:
        if int(now) != self._second:
            self._second, self._busy = int(now), Counter()
        self._busy[what] += 1
        if self._busy[what] > most:
            raise ViolationError(f"{self._me} does this without end: {what}")


class Advertises:
    """An advert follows soon on what is new, and on the last advert before long."""

    def __init__(self, view: View, moments: Moments) -> None:
        self._view = view
        self._advertised_at = view.at
        self._awake_at = view.outside.swarm.now
        """The same by no clock."""
        self._changed_at: float | None = None
        """Since when something is new that was not advertised."""
        moments.effects[Publish].append(self._published)
        moments.ends.append(self._look)
        moments.between.append(self._look_between)

    def _published(self, step: Step, effect: Publish) -> None:
        if isinstance(effect.message, Advert):
            self._advertised_at, self._changed_at, self._awake_at = step.now, None, self._view.outside.swarm.now

    def _look(self, step: Step) -> None:
        me, now, settings = self._view.me, step.now, self._view.peer.settings
        if step.merged and self._changed_at is None and not any(isinstance(e, Publish) for e in step.effects):
            self._changed_at = now
        if now > self._advertised_at + settings.advert_period_s + SLACK_S:
            raise ViolationError(f"{me} has not advertised since {self._advertised_at}")
        if self._changed_at is not None and now > self._changed_at + settings.advert_gap_s + SLACK_S:
            raise ViolationError(f"{me} has not advertised what is new since {self._changed_at}")

    def _look_between(self) -> None:
        swarm, me = self._view.outside.swarm, self._view.me
        host = swarm.peers[me]
        if swarm.now < host.paused_until:
            return
        late = (swarm.now - max(self._awake_at, host.paused_until)) * host.clock.rate
        if late > host.peer.settings.advert_period_s + 1e-3:
            raise ViolationError(f"{me} sleeps, and has not advertised for {late:.3f} s")
