"""A lane, at the peer that serves it: its segments, its readers, and the boundaries that are pinned for adopters.

The peer is the lane's owner, or could be another peer that has the same updates: only the name here is the peer's own.
`replicate` says what a lane is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.arrays import Payload
from gossip.errors import hold
from gossip.events import Effect, Fold, Forget, Keep, Negative, Send
from gossip.marks import Mark, Marks, Series
from gossip.messages import PeerId, Pin, Pinned, Pull, Range, Unknown, Unpin


@dataclass
class Reader:
    """What the origin knows of one reader of its lane: a and b of the drawing in `replicate`."""

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


class LaneOrigin:
    """One lane. Without `coalesce` updates are served one by one: nothing is ever summed."""

    def __init__(self, me: PeerId, lane: PeerId, *, coalesce: bool) -> None:
        """`me` serves the updates of `lane`."""
        self.me = me
        self.lane = lane
        self.coalesce = coalesce
        self.n = 0
        self.forgotten = 0
        """Own updates up to here are no longer kept."""
        self.members: set[PeerId] = set()
        """Who may read: for a stranger nothing is kept."""
        self.readers: dict[PeerId, Reader] = {}
        self.pins: dict[PeerId, Pinning] = {}
        self.segments: list[Segment] = []
        self.away: set[PeerId] = set()
        """Members that are taken for dead: what is pinned for them stays, and does not grow."""
        self._named = lane if lane != me else None
        """The lane, as messages name it."""

    # ------------------------------------------------------------------------------------------------------- members

    def admit(self, peer: PeerId, level: bool) -> None:
        """`peer` may read; `level`: it has all that is published so far."""
        self.members.add(peer)
        if level or self.n == 0:
            self.readers.setdefault(peer, Reader(self.n, self.n))

    def miss(self, peer: PeerId, is_away: bool) -> None:
        """`peer` is taken for dead, or answers."""
        if is_away:
            self.away.add(peer)
        else:
            self.away.discard(peer)
            self._renew(peer)

    def forget_reader(self, peer: PeerId) -> list[Effect]:
        """`peer` will not come back: nothing is kept for it any more, unless it does."""
        self.readers.pop(peer, None)
        self.pins.pop(peer, None)
        return self.compact()

    def behind(self) -> tuple[PeerId, ...]:
        """The readers that have not acknowledged all of this lane."""
        return tuple(sorted(peer for peer, reader in self.readers.items() if reader.acknowledged < self.n))

    # ------------------------------------------------------------------------------------------------------- serving

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
        """Serve a reader, see the rule in `replicate`."""
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
            return [*self.compact(), Send(pull.peer, Unknown(self.me, pull.frontier, pull.k, self._named))]
        reader.k = pull.k
        effects: list[Effect] = []
        if pull.frontier == reader.served:
            reader.acknowledged = reader.served
            reader.served = self.n if self.coalesce else min(reader.served + 1, self.n)
            self._boundary_of(pull.peer, reader.served)
            effects += self.compact()
        if reader.served > pull.frontier:
            marks = self.marks(pull.frontier, reader.served)
            effects.append(
                Send(pull.peer, Range(self.me, pull.frontier + 1, reader.served, pull.k, marks, lane=self._named))
            )
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

    def check(self) -> None:
        """What must hold between two events."""
        end = self.forgotten
        for segment in self.segments:
            hold(segment.lo == end + 1, "segments follow each other, behind what is forgotten", end, segment)
            hold(segment.lo <= segment.hi, "no segment is empty", segment)
            hold(self.coalesce or segment.lo == segment.hi, "nothing is summed without coalesce", segment)
            end = segment.hi
        hold(end == self.n, "segments, or what is forgotten, end at n", end, self.n)
        hold(not self.segments or bool(self.readers or self.pins), "nothing is kept for nobody", self.segments)
        kept = {segment.lo - 1 for segment in self.segments} | {self.n}
        for peer, reader in self.readers.items():
            hold(reader.acknowledged <= reader.served <= self.n, "acknowledged <= served <= n", peer, reader, self.n)
            stands = {reader.acknowledged, reader.served}
            hold(stands <= kept, "readers stand at boundaries of segments", peer, reader, sorted(kept))
        hold(self.readers.keys() <= self.members, "readers are members", sorted(self.readers), sorted(self.members))
        hold(self.pins.keys() <= self.members, "pins are of members", sorted(self.pins), sorted(self.members))
        for peer, pin in self.pins.items():
            hold(pin.boundaries <= kept, "pins are boundaries of segments", peer, pin, sorted(kept))
            donor = self.readers.get(pin.donor)
            if donor is not None and peer not in self.away:
                stands = {donor.acknowledged, donor.served}
                hold(stands <= pin.boundaries, "pinned is wherever the donor may stand", peer, pin, donor)

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
