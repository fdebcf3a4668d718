"""Discipline 1: every update at every peer, exactly once.

Each peer has a *lane*, the numbered sequence of the updates it published. A reader of the lane has a *frontier*: the
last number it has applied. The origin keeps its own updates as *segments*, summed stretches, and cuts them only where a
reader may stand:

    own lane   1 ........ 40 | 41 ..... 57 | 58 ... 63 = n        reader A [acknowledged 40, served 57]
                             a             b                      reader B [acknowledged 57, served 57]

A reader has at most one pull to an origin under way. A pull with frontier b acknowledges b and is served (b, n] as one
sum; a pull with frontier a says that the reply was lost, and is served exactly (a, b] again; an old pull is ignored.
So a reader applies a range only if it begins right after its frontier, and nothing is ever applied twice or left out,
whatever the network loses, repeats or reorders. A slow reader gets fewer and larger sums: backpressure without waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossip.arrays import Payload
from gossip.events import Deliver, Effect, Fold, Forget, Keep, Send
from gossip.messages import PeerId, Pull, Range, Unknown


@dataclass
class Reader:
    """What the origin knows of one reader of its lane: a and b of the module's drawing."""

    acknowledged: int
    served: int
    k: int = 0
    """Of its newest pull."""


@dataclass
class PullState:
    """A pull under way."""

    frontier: int
    k: int
    due: float
    """When to give it up and ask again."""


@dataclass
class Origin:
    """What a reader knows of one lane it reads."""

    frontier: int
    n: int
    """How far the lane was when last heard of."""
    pulled_at: float = float("-inf")
    """When it was last asked: who waited longest is asked first."""
    pull: PullState | None = None


class Replicator:
    """One peer's side of the protocol. `coalesce=False` serves updates one by one (nothing is ever summed)."""

    def __init__(self, me: PeerId, *, pull_timeout_s: float, pulls_max: int, coalesce: bool) -> None:
        self.me = me
        self.n = 0
        self.readers: dict[PeerId, Reader] = {}
        self.origins: dict[PeerId, Origin] = {}
        self.segments: list[tuple[int, int]] = []
        self._k = 0
        self._pull_timeout_s = pull_timeout_s
        self._pulls_max = pulls_max
        self._coalesce = coalesce

    # ------------------------------------------------------------------------------------------------- membership

    def start(self, frontiers: Mapping[PeerId, int]) -> None:
        """The replica stands at `frontiers`; lanes not named there are read from their beginning."""
        for lane, frontier in frontiers.items():
            if lane != self.me:
                self.origins[lane] = Origin(frontier, frontier)

    def join(self, peer: PeerId, reads: bool, read: bool) -> None:
        """`peer` has all that is published so far, and reads and is read from now on."""
        if reads:
            self.readers.setdefault(peer, Reader(self.n, self.n))
        if read:
            self.origins.setdefault(peer, Origin(0, 0))

    def frontiers(self) -> dict[PeerId, int]:
        """How far each lane is applied here, the own included."""
        return {**{lane: origin.frontier for lane, origin in self.origins.items()}, self.me: self.n}

    # --------------------------------------------------------------------------------------------------- the origin

    def publish(self, payload: Payload) -> list[Effect]:
        """Append one update to the own lane."""
        self.n += 1
        if not self.readers:
            return []
        if self.segments and self._joinable(self.segments[-1][1]):
            lo = self.segments.pop()[0]
        else:
            lo = self.n
        self.segments.append((lo, self.n))
        return [Keep(lo, self.n, payload)]

    def on_pull(self, pull: Pull) -> list[Effect]:
        """Serve a reader, see the module's rule."""
        reader = self.readers.get(pull.peer)
        if reader is None:
            return [Send(pull.peer, Unknown(self.me, pull.frontier, pull.k))]
        if pull.k < reader.k:
            return []
        reader.k = pull.k
        effects: list[Effect] = []
        if pull.frontier == reader.served:
            effects += self.acknowledge(pull.peer, pull.frontier)
            reader.served = self.n if self._coalesce else min(reader.served + 1, self.n)
        elif pull.frontier != reader.acknowledged:
            return [Send(pull.peer, Unknown(self.me, pull.frontier, pull.k))]
        if reader.served > pull.frontier:
            effects.append(Send(pull.peer, Range(self.me, pull.frontier + 1, reader.served, pull.k)))
        return effects

    def acknowledge(self, peer: PeerId, frontier: int) -> list[Effect]:
        """`peer` says that it has applied this lane up to `frontier`; anything but what it was served last is old."""
        reader = self.readers.get(peer)
        if reader is None or frontier != reader.served or frontier == reader.acknowledged:
            return []
        reader.acknowledged = frontier
        return self._compact()

    def _joinable(self, boundary: int) -> bool:
        """No reader may stand at `boundary`, so the segments on both sides of it may become one."""
        return self._coalesce and all(boundary not in (r.acknowledged, r.served) for r in self.readers.values())

    def _compact(self) -> list[Effect]:
        effects: list[Effect] = []
        through = min((r.acknowledged for r in self.readers.values()), default=self.n)
        if self.segments and self.segments[0][1] <= through:
            effects.append(Forget(through))
            self.segments = [s for s in self.segments if s[1] > through]
        kept: list[tuple[int, int]] = []
        folded: set[int] = set()
        for segment in self.segments:
            if kept and self._joinable(kept[-1][1]):
                kept[-1] = (kept[-1][0], segment[1])
                folded.add(len(kept) - 1)
            else:
                kept.append(segment)
        self.segments = kept
        return effects + [Fold(*kept[index]) for index in sorted(folded)]

    # --------------------------------------------------------------------------------------------------- the reader

    def heard(self, peer: PeerId, n: int) -> None:
        """`peer`'s lane stands at `n` or beyond."""
        origin = self.origins.get(peer)
        if origin is not None:
            origin.n = max(origin.n, n)

    def on_range(self, message: Range) -> list[Effect]:
        """Apply it if it begins right after the frontier; a repeated or overtaken one changes nothing."""
        origin = self.origins.get(message.peer)
        if origin is None or message.lo != origin.frontier + 1:
            return []
        assert message.payload is not None
        origin.frontier = message.hi
        origin.n = max(origin.n, message.hi)
        origin.pull = None
        return [Deliver(message.peer, message.lo, message.hi, message.payload)]

    def is_next(self, message: Range) -> bool:
        """This range would be applied."""
        origin = self.origins.get(message.peer)
        return origin is not None and message.lo == origin.frontier + 1

    def progressed(self, peer: PeerId, now: float) -> None:
        """Part of the answer came in: grant it another time-out."""
        origin = self.origins.get(peer)
        if origin is not None and origin.pull is not None:
            origin.pull.due = now + self._pull_timeout_s

    def pulls(self, now: float) -> list[Effect]:
        """Ask the origins that are ahead, at most `pulls_max` at a time, those first that waited longest."""
        under_way = 0
        behind = []
        for peer, origin in self.origins.items():
            if origin.pull is not None and now >= origin.pull.due:
                origin.pull = None
            if origin.pull is not None:
                under_way += 1
            elif origin.n > origin.frontier:
                behind.append((origin.pulled_at, peer, origin))
        effects: list[Effect] = []
        for _, peer, origin in sorted(behind, key=lambda entry: entry[:2])[: max(0, self._pulls_max - under_way)]:
            self._k += 1
            origin.pulled_at = now
            origin.pull = PullState(origin.frontier, self._k, now + self._pull_timeout_s)
            effects.append(Send(peer, Pull(self.me, origin.frontier, self._k)))
        return effects

    def deadline(self) -> float:
        """When the first pull under way is to be given up."""
        return min((o.pull.due for o in self.origins.values() if o.pull is not None), default=float("inf"))

    def behind(self) -> tuple[PeerId, ...]:
        """The readers that have not acknowledged all of this lane."""
        return tuple(sorted(peer for peer, reader in self.readers.items() if reader.acknowledged < self.n))
