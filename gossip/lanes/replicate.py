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

A peer that adopts a donor's replica will stand where the donor stood. It *pins* that beforehand: from then on the
origin keeps every boundary at which the donor may stand, until the adopter has pulled from one of them. An origin that
was cut off, and could not be asked to, serves it all the same where a segment happens to begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gossip.arrays import Payload
from gossip.events import Deliver, Effect, Fold, Forget, Keep, Negative, Send
from gossip.marks import Mark, Marks, Series
from gossip.messages import PeerId, Pin, Pinned, Pull, Range, Unknown, Unpin


@dataclass
class Reader:
    """What the origin knows of one reader of its lane: a and b of the module's drawing."""

    acknowledged: int
    served: int
    k: int = 0
    """Of its newest pull."""


@dataclass
class Pinning:
    """The boundaries at which an adopter may come out."""

    donor: PeerId
    k: int
    boundaries: set[int]


@dataclass
class Segment:
    """Own updates lo..hi, summed, and the marks of those that have one."""

    lo: int
    hi: int
    marks: Marks = field(default_factory=Marks)


@dataclass
class PullState:
    """A pull under way."""

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
    reachable: bool = True
    """False while its peer is taken for dead."""


@dataclass
class Replicator:
    """One peer's side of the protocol. `coalesce=False` serves updates one by one (nothing is ever summed)."""

    me: PeerId
    pull_timeout_s: float
    pulls_max: int
    coalesce: bool
    n: int = 0
    forgotten: int = 0
    """Own updates up to here are no longer kept."""
    members: set[PeerId] = field(default_factory=set)
    """Who may read: for a stranger nothing is kept."""
    readers: dict[PeerId, Reader] = field(default_factory=dict)
    pins: dict[PeerId, Pinning] = field(default_factory=dict)
    origins: dict[PeerId, Origin] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    away: set[PeerId] = field(default_factory=set)
    """Members that are taken for dead: what is pinned for them stays, and does not grow."""
    frozen: bool = False
    """An adoption is under way: nothing is pulled or applied, own updates go on."""
    k: int = 0
    """Of the newest pull or pin, to whomever, or one more since the pin is not needed any more."""
    void: int = 0
    """Answers to pulls up to this k are not applied: they are of before an adoption, done or given up. One may begin
    right after the frontier all the same, and end where the origin keeps no boundary any more."""
    looks_at: float = float("-inf")
    """Before that time there is nobody to ask who was not asked at the last look: when the first pull under way is to
    be given up. Minus infinity when something changed since that look."""

    # ------------------------------------------------------------------------------------------------- membership

    def start(self, frontiers: Mapping[PeerId, int]) -> None:
        """The replica stands at `frontiers`; lanes not named there are read from their beginning."""
        for lane, frontier in frontiers.items():
            if lane != self.me:
                origin = self.origins.setdefault(lane, Origin(0, 0))
                origin.frontier, origin.n, origin.pull = frontier, max(origin.n, frontier), None
        for lane, origin in self.origins.items():
            if lane not in frontiers:
                origin.frontier, origin.pull = 0, None
        self.looks_at = float("-inf")

    def join(self, peer: PeerId, reads: bool, read: bool, level: bool) -> None:
        """`peer` reads and is read from now on; `level`: it has all that is published so far."""
        if reads:
            self.members.add(peer)
        if reads and (level or self.n == 0):
            self.readers.setdefault(peer, Reader(self.n, self.n))
        if read:
            self.origins.setdefault(peer, Origin(0, 0))

    def reach(self, peer: PeerId, reachable: bool) -> None:
        """`peer` answers, or is taken for dead."""
        if peer in self.origins:
            self.origins[peer].reachable = reachable
            self.origins[peer].pull = None
        if reachable:
            self.away.discard(peer)
            self._renew(peer)
        else:
            self.away.add(peer)
        self.looks_at = float("-inf")

    def forget_reader(self, peer: PeerId) -> list[Effect]:
        """`peer` will not come back: nothing is kept for it any more, unless it does."""
        self.readers.pop(peer, None)
        self.pins.pop(peer, None)
        return self.compact()

    def frontiers(self) -> dict[PeerId, int]:
        """How far each lane is applied here, the own included."""
        return {**{lane: origin.frontier for lane, origin in self.origins.items()}, self.me: self.n}

    # --------------------------------------------------------------------------------------------------- the origin

    def publish(self, payload: Payload | Negative, marks: tuple[Mark, ...]) -> list[Effect]:
        """Append one update to the own lane."""
        self.n += 1
        if not self.readers and not self.pins:
            self.forgotten = self.n
            return []
        if self.segments and self._joinable(self.segments[-1].hi):
            segment = self.segments[-1]
            segment.hi = self.n
        else:
            segment = Segment(self.n, self.n)
            self.segments.append(segment)
        for mark in marks:
            segment.marks.add(mark)
        return [Keep(segment.lo, self.n, payload)]

    def on_pull(self, pull: Pull) -> list[Effect]:
        """Serve a reader, see the module's rule."""
        pin, reader = self.pins.get(pull.peer), self.readers.get(pull.peer)
        if pull.k < max(pin.k if pin else 0, reader.k if reader else 0):
            return []
        if pin is not None:
            del self.pins[pull.peer]  # who pulls does not adopt any more: it has, or has given up
        if pin is not None and pull.frontier in pin.boundaries:
            reader = self.readers[pull.peer] = Reader(pull.frontier, pull.frontier)
        elif reader is None or pull.frontier not in (reader.acknowledged, reader.served):
            reader = self._moved(pull, reader)
        if reader is None:
            return [*self.compact(), Send(pull.peer, Unknown(self.me, pull.frontier, pull.k))]
        reader.k = pull.k
        effects: list[Effect] = []
        if pull.frontier == reader.served:
            reader.acknowledged = reader.served
            reader.served = self.n if self.coalesce else min(reader.served + 1, self.n)
            self._boundary_of(pull.peer, reader.served)
            effects += self.compact()
        if reader.served > pull.frontier:
            marks = self.marks(pull.frontier, reader.served)
            effects.append(Send(pull.peer, Range(self.me, pull.frontier + 1, reader.served, pull.k, marks)))
        return effects

    def _moved(self, pull: Pull, reader: Reader | None) -> Reader | None:
        """The reader where its newest pull says it stands, if what follows is kept: it adopted while it was cut off."""
        if pull.peer not in self.members or not self.keeps(pull.frontier):
            return None
        if reader is None:
            reader = Reader(pull.frontier, pull.frontier)
        elif pull.k <= reader.k:
            return None
        else:
            # An advert may have overtaken this pull: it may stand at what was served before as well.
            reader.acknowledged, reader.served = pull.frontier, max(pull.frontier, reader.served)
        self.readers[pull.peer] = reader
        self._boundary_of(pull.peer, pull.frontier)
        return reader

    def acknowledge(self, peer: PeerId, frontier: int, k: int = 0) -> list[Effect]:
        """`peer` advertised that it has applied this lane up to `frontier`: it was served that, or adopted it.

        `k` tells whether the advert is newer than the peer's newest pull and pin.
        """
        reader, pin = self.readers.get(peer), self.pins.get(peer)
        adopts = pin is not None and k <= pin.k
        if pin is not None and not adopts:
            del self.pins[peer]  # it has adopted, or has given up
            if reader is not None:
                reader.k = max(reader.k, pin.k)  # pulls from before are void
        if reader is not None and frontier == reader.served:
            if frontier == reader.acknowledged and (pin is None or adopts):
                return []
            reader.acknowledged = frontier
        elif not adopts and (
            reader is None or pin is not None or (k > 0 and k >= reader.k and frontier > reader.served)
        ):
            if not self.keeps(frontier):
                return self.compact()
            self.readers[peer] = Reader(frontier, frontier, k)
        else:
            return []
        self._boundary_of(peer, frontier)
        return self.compact()

    def on_pin(self, pin: Pin) -> list[Effect]:
        """Keep, for the adopter, every boundary at which its donor may stand, until it has pulled from one or gives up.

        Silent if the donor is not a reader, or the adopter no member (yet).
        """
        if pin.peer not in self.members:
            return []
        known, reader = self.pins.get(pin.peer), self.readers.get(pin.peer)
        if pin.k < max(known.k if known else 0, reader.k if reader else 0):
            return []  # of an adoption that is over: nothing would end it, but an advert from before
        if known is None or known.k != pin.k:
            donor = self.readers.get(pin.donor)
            if donor is None and pin.donor != self.me:
                return []
            self.pins[pin.peer] = Pinning(pin.donor, pin.k, set())
        self._renew(pin.peer)
        return [*(self.compact() if known is not None else []), Send(pin.peer, Pinned(self.me, pin.k))]

    def on_unpin(self, unpin: Unpin) -> list[Effect]:
        """The adopter has given up."""
        pin = self.pins.get(unpin.peer)
        if pin is None or pin.k != unpin.k:
            return []
        del self.pins[unpin.peer]
        return self.compact()

    def give_to(self, peer: PeerId, k: int) -> bool:
        """`peer` asks for the replica as it is now: a member may come out at n. False if it has asked since."""
        if peer not in self.members:
            return True
        pin, reader = self.pins.get(peer), self.readers.get(peer)
        if k < max(pin.k if pin else 0, reader.k if reader else 0):
            return False
        if pin is None or pin.k != k:
            self.pins[peer] = Pinning(self.me, k, set())
        self._pin(peer, {self.n})
        return True

    def marks(self, after: int, through: int) -> tuple[Series, ...]:
        """The marks of own updates after+1 .. through, which begin and end at boundaries."""
        segments = [segment for segment in self.segments if after < segment.lo and segment.hi <= through]
        if len(segments) == 1:
            return segments[0].marks.packed()
        whole = Marks()
        for segment in segments:
            whole.merge(segment.marks)
        return whole.packed()

    def keeps(self, after: int) -> bool:
        """Whether the own updates after+1 .. n are there as whole segments."""
        return after == self.n or any(segment.lo == after + 1 for segment in self.segments)

    def _renew(self, adopter: PeerId) -> None:
        """Its donor may stand where it stands as a reader, or where it comes out if it adopts a replica itself."""
        pin = self.pins.get(adopter)
        donor = self.readers.get(pin.donor) if pin is not None else None
        if pin is not None and donor is not None:
            beyond = self.pins[pin.donor].boundaries if pin.donor in self.pins else set()
            self._pin(adopter, {donor.acknowledged, donor.served} | beyond)

    def _boundary_of(self, donor: PeerId, boundary: int) -> None:
        """`donor` may stand at `boundary` from now on."""
        for peer, pin in self.pins.items():
            if pin.donor == donor and peer not in self.away:
                self._pin(peer, {boundary})

    def _pin(self, adopter: PeerId, boundaries: set[int]) -> None:
        """`adopter` may come out at these, and whoever adopts its replica then."""
        pin = self.pins[adopter]
        new = boundaries - pin.boundaries
        pin.boundaries |= new
        for boundary in new:
            self._boundary_of(adopter, boundary)

    def _boundaries(self) -> set[int]:
        boundaries = {reader.acknowledged for reader in self.readers.values()}
        boundaries |= {reader.served for reader in self.readers.values()}
        return boundaries.union(*(pin.boundaries for pin in self.pins.values()))

    def _joinable(self, boundary: int) -> bool:
        """No reader may stand at `boundary`, so the segments on both sides of it may become one."""
        return self.coalesce and boundary not in self._boundaries()

    def compact(self) -> list[Effect]:
        """Forget what every reader has, and sum what no reader can tell apart."""
        if not self.segments:
            return []
        effects: list[Effect] = []
        boundaries = self._boundaries()
        through = min(boundaries, default=self.n)
        if self.segments[0].hi <= through:
            effects.append(Forget(through))
            self.segments = [segment for segment in self.segments if segment.hi > through]
            self.forgotten = through
        kept: list[Segment] = []
        folded: list[Segment] = []
        for segment in self.segments:
            if kept and self.coalesce and kept[-1].hi not in boundaries:
                kept[-1].hi = segment.hi
                kept[-1].marks.merge(segment.marks)
                if kept[-1] not in folded:
                    folded.append(kept[-1])
            else:
                kept.append(segment)
        self.segments = kept
        return effects + [Fold(segment.lo, segment.hi) for segment in folded]

    # --------------------------------------------------------------------------------------------------- the reader

    def heard(self, peer: PeerId, n: int) -> None:
        """`peer`'s lane stands at `n` or beyond."""
        origin = self.origins.get(peer)
        if origin is not None and n > origin.n:
            if origin.n <= origin.frontier:  # else it is asked already, or waits for its turn
                self.looks_at = float("-inf")
            origin.n = n

    def on_range(self, message: Range) -> list[Effect]:
        """Apply it if it begins right after the frontier; a repeated or overtaken one changes nothing."""
        if not self.is_next(message):
            return []
        origin = self.origins[message.peer]
        assert message.payload is not None
        origin.frontier = message.hi
        origin.n = max(origin.n, message.hi)
        origin.pull = None
        self.looks_at = float("-inf")
        return [Deliver(message.peer, message.lo, message.hi, message.payload)]

    def is_next(self, message: Range) -> bool:
        """This range would be applied."""
        origin = self.origins.get(message.peer)
        is_behind = origin is not None and message.lo == origin.frontier + 1
        return is_behind and not self.frozen and message.k > self.void

    def progressed(self, peer: PeerId, now: float) -> None:
        """Part of the answer came in: grant it another time-out."""
        origin = self.origins.get(peer)
        if origin is not None and origin.pull is not None:
            origin.pull.due = now + self.pull_timeout_s
            self.looks_at = float("-inf")

    def pulls(self, now: float) -> list[Effect]:
        """Ask the origins that are ahead, at most `pulls_max` at a time, those first that waited longest."""
        if self.frozen or now < self.looks_at:
            return []
        under_way, first_due = 0, float("inf")
        behind: list[tuple[float, PeerId, Origin]] = []
        for peer, origin in self.origins.items():
            if origin.pull is not None and now >= origin.pull.due:
                origin.pull = None
            if origin.pull is not None:
                under_way += 1
                if origin.pull.due < first_due:
                    first_due = origin.pull.due
            elif origin.n > origin.frontier and origin.reachable:
                behind.append((origin.pulled_at, peer, origin))
        room = max(0, self.pulls_max - under_way)
        effects: list[Effect] = []
        for _, peer, origin in sorted(behind, key=lambda entry: entry[:2])[:room]:
            self.k += 1
            origin.pulled_at = now
            origin.pull = PullState(now + self.pull_timeout_s)
            first_due = min(first_due, origin.pull.due)
            effects.append(Send(peer, Pull(self.me, origin.frontier, self.k)))
        self.looks_at = first_due
        return effects

    def deadline(self) -> float:
        """When the first pull under way is to be given up."""
        if self.frozen:
            return float("inf")
        if self.looks_at > float("-inf"):
            return self.looks_at
        return min([o.pull.due for o in self.origins.values() if o.pull is not None], default=float("inf"))

    def behind(self) -> tuple[PeerId, ...]:
        """The readers that have not acknowledged all of this lane."""
        return tuple(sorted(peer for peer, reader in self.readers.items() if reader.acknowledged < self.n))
