"""What peers say to each other.

    Advert         to all, by publish/subscribe: how far my lane is, and how far I have applied everybody's
    Pull           to an origin: give me everything of your lane after my frontier
    Range          the answer: one summed stretch (lo - 1, hi] of the origin's lane, with its arrays
    Unknown        the answer to a frontier that the origin cannot serve
    Pin            to all: I shall adopt the replica of that donor; keep what follows where it stands with you
    Pinned         the answer
    Unpin          to all: I have given that up
    StateRequest   to the donor: give me your whole replica, and the frontiers it stands at
    State          the answer
    Ping           are you there?
    Ack            yes; or, of one that was asked to ping: yes, it is
    PingRequest    to a third: ping that peer for me, I do not hear it
    Nack           the answer, when the third does not hear it either
    Offer          to all, of one that mixes: so far are my rounds, and this waits for you
    PacketRequest  to a neighbor: I have your packets so far, give me the next
    PacketReply    the answer: one packet of a strategy of mixing, with its arrays
    Credit         of the transport: so many blocks of your bulk message have arrived, send on

`Range`, `State` and `PacketReply` are bulk messages: their arrays travel as separate blocks behind the header, and
behind the arrays go marks, where they are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, NewType

from gossip.arrays import Layout, Packed, Update
from gossip.marks import Mark as Mark
from gossip.marks import Series
from gossip.marks import Unit as Unit

PeerId = NewType("PeerId", str)
"""One incarnation of a peer, and thereby its lane: a restart is a new one. 128 random bits in hex in production."""

EMPTY = Layout(())


class Standing(StrEnum):
    """What is thought of a peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    DEAD = "dead"


class Rumor(NamedTuple):
    """What is said of a peer, by whom. A peer objects by raising its `incarnation`; older ones are void."""

    about: PeerId
    standing: Standing
    incarnation: int
    by: PeerId


class Table(NamedTuple):
    """Marks that are still on their way: so many follow behind the arrays, and the message itself has none yet."""

    series: int = 0
    runs: int = 0
    lanes: tuple[PeerId, ...] = ()
    """Whose they are."""


NO_TABLE = Table()


@dataclass(frozen=True)
class Advert:
    """`peer`'s lane stands at `n`; `frontiers` says how far it has applied each other lane."""

    peer: PeerId
    n: int
    frontiers: Mapping[PeerId, int]
    ready: bool = True
    """It has a replica to give; False for one that came late and waits for its first."""
    k: int = 0
    """Of its newest pull, or of the newest adoption that it has done or given up: so an origin can tell whether the
    frontier is newer than what it knows of this peer otherwise."""
    rumors: tuple[Rumor, ...] = ()

    @cached_property
    def all_frontiers(self) -> Mapping[PeerId, int]:
        """`frontiers` with `n` of its own lane."""
        return {**self.frontiers, self.peer: self.n}


@dataclass(frozen=True)
class Pull:
    """`peer` has applied the addressee's lane up to `frontier`; `k` grows with each pull, so that old ones show."""

    peer: PeerId
    frontier: int
    k: int


@dataclass(frozen=True)
class Range:
    """Updates lo..hi of `peer`'s lane, summed. `k` is that of the pull it answers."""

    peer: PeerId
    lo: int
    hi: int
    k: int
    marks: tuple[Series, ...] = ()
    """Of the updates that have a logical identity."""
    layout: Layout = EMPTY
    payload: Update | None = field(default=None, compare=False, repr=False)
    table: Table = NO_TABLE


@dataclass(frozen=True)
class Unknown:
    """`peer` does not hold what follows `frontier` of its lane for the one who pulled with `k`."""

    peer: PeerId
    frontier: int
    k: int


@dataclass(frozen=True)
class Pin:
    """`peer` is about to adopt `donor`'s replica: whatever frontier the donor has in the addressee's lane, keep it a
    boundary until `peer` has pulled from it. `k` is of the same count as that of pulls: older pulls are void."""

    peer: PeerId
    donor: PeerId
    k: int


@dataclass(frozen=True)
class Pinned:
    """`peer` has done what the pin with `k` asked for."""

    peer: PeerId
    k: int


@dataclass(frozen=True)
class Unpin:
    """The pin with `k` is not needed any more."""

    peer: PeerId
    k: int


@dataclass(frozen=True)
class StateRequest:
    """`peer` asks for the addressee's replica, if that has at least `frontiers`, and if `pinned` are all that live."""

    peer: PeerId
    k: int
    frontiers: Mapping[PeerId, int] = field(default_factory=dict)
    pinned: tuple[PeerId, ...] = ()


@dataclass(frozen=True)
class State:
    """`peer`'s replica, which stands at `frontiers` (its own lane included)."""

    peer: PeerId
    frontiers: Mapping[PeerId, int]
    k: int
    marks: Mapping[PeerId, tuple[Series, ...]] = field(default_factory=dict)
    """What it knows of every lane's logical identities."""
    layout: Layout = EMPTY
    payload: Packed | None = field(default=None, compare=False, repr=False)
    closed: int = 0
    """Of earlier epochs only such marks are there as are still to be decided."""
    units: int = 0
    """Units that count in this replica, of all epochs."""
    table: Table = NO_TABLE


@dataclass(frozen=True)
class Ping:
    """`peer` has not heard the addressee for a while; `k` is of its pings, and comes back in the answer."""

    peer: PeerId
    k: int
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True)
class PingRequest:
    """`peer` does not hear `target`, and asks the addressee to ping it. `k` is that of its own ping."""

    peer: PeerId
    k: int
    target: PeerId


@dataclass(frozen=True)
class Ack:
    """`about` is there: `peer` itself, or the one that it was asked to ping. `k` is that of the ping or request."""

    peer: PeerId
    k: int
    about: PeerId
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True)
class Nack:
    """`peer` did what the request with `k` asked for, and does not hear `about` either."""

    peer: PeerId
    k: int
    about: PeerId


@dataclass(frozen=True)
class Offer:
    """`peer` has begun `rounds` rounds of mixing, and has packets that their readers have not taken."""

    peer: PeerId
    rounds: int
    waiting: Mapping[PeerId, int] = field(default_factory=dict)
    """By reader: the number of the newest packet for it."""
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True)
class PacketRequest:
    """`peer` has the addressee's packets for it up to `n`, and takes the next one. `k` grows with each request."""

    peer: PeerId
    n: int
    k: int


@dataclass(frozen=True)
class PacketReply:
    """Packet `n` of `peer` for the addressee, put there in `round`. `k` is that of the request it answers."""

    peer: PeerId
    n: int
    newest: int
    """The number of the newest packet that waits there for the addressee."""
    round: int
    k: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    layout: Layout = EMPTY
    payload: Packed | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Credit:
    """`peer` has received `blocks` blocks of bulk message `k`."""

    peer: PeerId
    k: int
    blocks: int


Bulk = Range | State | PacketReply
Message = (
    Advert
    | Pull
    | Range
    | Unknown
    | Pin
    | Pinned
    | Unpin
    | StateRequest
    | State
    | Ping
    | PingRequest
    | Ack
    | Nack
    | Offer
    | PacketRequest
    | PacketReply
    | Credit
)
