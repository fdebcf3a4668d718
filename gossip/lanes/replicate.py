"""Discipline 1: every update at every peer, exactly once.

Each peer has a *lane*, the numbered sequence of the updates it published. A reader of the lane has a *frontier*: the
last number it has applied. The origin keeps its own updates as *segments*, each the sum of consecutive updates, and
cuts them only where a reader may stand:

    own lane   1 ........ 40 | 41 ..... 57 | 58 ... 63 = n        reader A [acknowledged 40, served 57]
                             a             b                      reader B [acknowledged 57, served 57]

A reader has at most one pull to an origin under way. A pull with frontier b acknowledges b and is served (b, n] as one
sum; a pull with frontier a says that the reply was lost, and is served exactly (a, b] again; an old pull is ignored.
So a reader applies a range only if it begins right after its frontier, and nothing is ever applied twice or left out,
whatever the network loses, repeats or reorders. A slow reader gets fewer and larger sums: backpressure without waiting.

A peer that adopts a donor's replica will stand where the donor stood. It *pins* that beforehand: from then on the
origin keeps every boundary at which the donor may stand, until the adopter has pulled from one of them. An origin that
was cut off, and could not be asked to, serves it all the same where a segment happens to begin.

    origin.py   a lane where it is served      reader.py   lanes where they are read      source.py   who is asked
"""

from __future__ import annotations

from gossip.lanes.origin import LaneOrigin
from gossip.lanes.reader import LaneReader
from gossip.lanes.source import Source, owner
from gossip.messages import PeerId


class Replicator(LaneOrigin, LaneReader):
    """One peer's side of the protocol: its own lane, and those that it reads. Neither knows the other."""

    def __init__(
        self, me: PeerId, *, pull_timeout_s: float, pulls_max: int, coalesce: bool, source: Source = owner
    ) -> None:
        LaneOrigin.__init__(self, me, me, coalesce=coalesce)
        LaneReader.__init__(self, me, pull_timeout_s=pull_timeout_s, pulls_max=pulls_max, source=source)

    def join(self, peer: PeerId, reads: bool, read: bool, level: bool) -> None:
        """`peer` reads and is read from now on; `level`: it has all that is published so far."""
        if reads:
            self.admit(peer, level)
        if read:
            self.read(peer)

    def reach(self, peer: PeerId, reachable: bool) -> None:
        """`peer` answers, or is taken for dead."""
        self.reached(peer, reachable)
        self.miss(peer, not reachable)

    def check(self) -> None:
        """What must hold between two events."""
        LaneOrigin.check(self)
        LaneReader.check(self)

    def frontiers(self) -> dict[PeerId, int]:
        """How far each lane is applied here, the own included."""
        return {**{lane: origin.frontier for lane, origin in self.origins.items()}, self.me: self.n}
