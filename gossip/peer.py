"""The peer: a pure state machine that turns events into effects.

    handle(event, now) -> [effect, ...]      deadline() -> when Ticked is due

It advertises when something changed (at most every `advert_gap_s`) and every `advert_period_s` anyway, because an
advert may be lost; it pulls from whoever is ahead; it checks what comes in before it lets it near the replica.
`now` is seconds on any clock that never goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.arrays import Layout, check_finite
from gossip.errors import MismatchError
from gossip.events import (
    Computed,
    Deliver,
    Drained,
    Effect,
    Event,
    Exhausted,
    Joined,
    Progressed,
    Publish,
    Received,
    Send,
    Started,
    Ticked,
    Warn,
)
from gossip.messages import Advert, Credit, PeerId, Pull, Range, State, StateRequest, Unknown
from gossip.replicate import Replicator


@dataclass(frozen=True)
class Settings:
    """How a peer behaves. Times in seconds."""

    advert_period_s: float = 0.5
    """How long a lost advert may go unnoticed."""
    advert_gap_s: float = 0.02
    """Changes within this time share one advert."""
    pull_timeout_s: float = 1.5
    """How long a pull may go without any sign of an answer."""
    pulls_max: int = 8
    """How many pulls may be under way at once: each may hold one payload in memory."""
    coalesce: bool = True
    """Serve many updates as one sum; False where each must arrive by itself (the workers of a master)."""
    applies_own: bool = True
    """Merge the own updates into the own replica; False where the hub does (the workers of a master)."""


class Peer:
    """One member of the swarm. `layout` is what every payload must look like; None accepts any finite arrays."""

    def __init__(self, me: PeerId, layout: Layout | None, settings: Settings | None = None) -> None:
        self.me = me
        self.layout = layout
        self.settings = settings or Settings()
        self.replicator = Replicator(
            me,
            pull_timeout_s=self.settings.pull_timeout_s,
            pulls_max=self.settings.pulls_max,
            coalesce=self.settings.coalesce,
        )
        self.refused = 0
        """Ranges not merged because they did not fit or were not finite."""
        self._started = False
        self._changed = False
        self._advertised_at = float("-inf")
        self._give_up_at: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        effects: list[Effect] = []
        match event:
            case Started(frontiers):
                self.replicator.start(frontiers)
                self._started = self._changed = True
            case Joined(peer, reads, read):
                self.replicator.join(peer, reads, read)
                self._changed = True
            case Computed(payload):
                effects += self.replicator.publish(payload)
                if self.settings.applies_own:
                    effects.append(Deliver(self.me, self.replicator.n, self.replicator.n, payload))
                self._changed = True
            case Received(Advert(peer, n, frontiers)):
                self.replicator.heard(peer, n)
                effects += self.replicator.acknowledge(peer, frontiers.get(self.me, 0))
            case Received(Pull() as pull):
                effects += self.replicator.on_pull(pull)
            case Received(Range() as message):
                effects += self._on_range(message)
            case Received(Unknown(peer, frontier)):
                effects += self._on_unknown(peer, frontier)
            case Received(StateRequest(peer, k)):
                effects.append(Send(peer, State(self.me, self.replicator.frontiers(), k)))
            case Received(State() | Credit()):
                pass  # of the transport; a driver asks for a state on its own account
            case Progressed(peer):
                self.replicator.progressed(peer, now)
            case Exhausted(timeout_s):
                self._give_up_at = now + timeout_s
            case Ticked():
                pass
        if self._started:
            effects += self.replicator.pulls(now)
            effects += self._advertise(now)
            effects += self._drain(now)
        return effects

    def deadline(self) -> float:
        """When to come back with `Ticked`; infinite before `Started`."""
        if not self._started:
            return float("inf")
        advert = self._advertised_at + (self.settings.advert_gap_s if self._changed else self.settings.advert_period_s)
        give_up = float("inf") if self._give_up_at is None else self._give_up_at
        return min(advert, self.replicator.deadline(), give_up)

    def _on_range(self, message: Range) -> list[Effect]:
        if not self.replicator.is_next(message):
            return []
        assert message.payload is not None
        try:
            if self.layout is not None:
                message.payload.layout.check_fit(self.layout)
            check_finite(message.payload.arrays())
        except MismatchError as error:
            self.refused += 1
            return [Warn(f"updates {message.lo}..{message.hi} of peer {message.peer} are not merged: {error}")]
        self._changed = True
        return self.replicator.on_range(message)

    def _on_unknown(self, peer: PeerId, frontier: int) -> list[Effect]:
        origin = self.replicator.origins.get(peer)
        if origin is None or origin.frontier != frontier:
            return []
        return [Warn(f"peer {peer} cannot serve what follows update {frontier} of its lane: this replica stays behind")]

    def _advertise(self, now: float) -> list[Effect]:
        gap = self.settings.advert_gap_s if self._changed else self.settings.advert_period_s
        if now < self._advertised_at + gap:
            return []
        self._changed = False
        self._advertised_at = now
        frontiers = self.replicator.frontiers()
        return [Publish(Advert(self.me, frontiers.pop(self.me), frontiers))]

    def _drain(self, now: float) -> list[Effect]:
        if self._give_up_at is None:
            return []
        missing = self.replicator.behind()
        if missing and now < self._give_up_at:
            return []
        self._give_up_at = None
        return [Drained(missing)]
