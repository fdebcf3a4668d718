"""Messages that peers send each other.

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
    Here           of the transport: by this connection I take your answers

`Range`, `State` and `PacketReply` are bulk messages: their arrays travel as separate blocks behind the header, and
behind the arrays go marks, where they are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, NamedTuple, NewType

from msgspec import Meta, Struct, field

from gossip.arrays import Layout, Packed, Update
from gossip.fields import (
    HEADER_RUNS_MAX,
    LANES_MAX,
    NAME_CHARACTERS_MAX,
    REFUSED_MAX,
    RUMORS_MAX,
    SCALARS_MAX,
    Count,
    Name,
)
from gossip.marks import Mark as Mark
from gossip.marks import Series
from gossip.marks import Unit as Unit

PeerId = NewType("PeerId", str)
"""One incarnation of a peer, and thereby its lane: a restart is a new one. 128 random bits in hex in production."""
Peer = Annotated[PeerId, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
"""As it comes from others."""
Peers = Annotated[tuple[Peer, ...], Meta(max_length=LANES_MAX)]
Frontiers = Annotated[Mapping[Peer, Count], Meta(max_length=LANES_MAX)]

if TYPE_CHECKING:
    Carried = Update
    CarriedWhole = Packed
else:  # behind the header, never in it
    Carried = CarriedWhole = type(None)

EMPTY = Layout(())


class Standing(StrEnum):
    """What is thought of a peer."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    DEAD = "dead"


class Rumor(NamedTuple):
    """What is said of a peer, by whom. A peer objects by raising its `incarnation`; older ones are void."""

    about: Peer
    standing: Standing
    incarnation: Count
    by: Peer


Rumors = Annotated[tuple[Rumor, ...], Meta(max_length=RUMORS_MAX)]
Refused = Annotated[tuple[Peer, ...], Meta(max_length=REFUSED_MAX)]


class Table(NamedTuple):
    """Marks that are still on their way: so many follow behind the arrays, and the message itself has none yet."""

    series: Count
    runs: Count
    lanes: Peers
    """Whose they are."""


NO_TABLE = Table(0, 0, ())


class Header(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A message, or what goes before the arrays of one: on the wire a list, its kind's number first.

    A new kind of message is a class with a number of its own here, and its name in `Message`.
    """


class WithArrays(Header, frozen=True):
    """A message with arrays, which do not count where two are compared."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._shown())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown())
        return f"{type(self).__name__}({shown})"

    def _shown(self) -> list[str]:
        return [name for name in self.__struct_fields__ if name != "payload"]


class Advert(Header, frozen=True, tag=1, dict=True):
    """`peer`'s lane stands at `n`; `frontiers` says how far it has applied each other lane."""

    peer: Peer
    n: Count
    frontiers: Frontiers
    ready: bool = True
    """It has a replica to give; False for one that came late and waits for its first."""
    k: Count = 0
    """Of its newest pull, or of the newest adoption that it has done or given up: so an origin can tell whether the
    frontier is newer than what it knows of this peer otherwise."""
    rumors: Rumors = ()
    refuses: Refused = ()
    """Of whose lanes it merges nothing more, since their updates are absurd, or they broke the protocol."""
    left_out: Annotated[float, Meta(ge=0)] = 0.0
    """The norm of its newest update, if that was too long to be published: so others learn that it takes longer steps.
    """

    @cached_property
    def all_frontiers(self) -> Mapping[PeerId, int]:
        """`frontiers` with `n` of its own lane."""
        return {**self.frontiers, self.peer: self.n}


class Pull(Header, frozen=True, tag=2):
    """`peer` has applied the addressee's lane up to `frontier`; `k` grows with each pull, so that old ones show."""

    peer: Peer
    frontier: Count
    k: Count
    lane: Peer | None = None
    """Whose updates are asked for; None: the addressee's own."""


class Range(WithArrays, frozen=True, tag=3):
    """Updates lo..hi of a lane, summed. `k` is that of the pull it answers."""

    peer: Peer
    lo: Count
    hi: Count
    k: Count
    marks: Annotated[tuple[Series, ...], Meta(max_length=HEADER_RUNS_MAX)] = ()
    """Of the updates that have a logical identity."""
    layout: Layout = EMPTY
    payload: Carried | None = None
    table: Table = NO_TABLE
    lane: Peer | None = None
    """Whose updates they are; None: the sender's own."""

    @property
    def of(self) -> PeerId:
        """The lane."""
        return self.lane if self.lane is not None else self.peer


class Unknown(Header, frozen=True, tag=4):
    """`peer` does not hold what follows `frontier` of its lane for the one who pulled with `k`."""

    peer: Peer
    frontier: Count
    k: Count
    lane: Peer | None = None
    """Whose updates were asked for; None: its own."""


class Pin(Header, frozen=True, tag=8):
    """`peer` is about to adopt `donor`'s replica: whatever frontier the donor has in the addressee's lane, keep it a
    boundary until `peer` has pulled from it. `k` is of the same count as that of pulls: older pulls are void."""

    peer: Peer
    donor: Peer
    k: Count


class Pinned(Header, frozen=True, tag=9):
    """`peer` has done what the pin with `k` asked for."""

    peer: Peer
    k: Count


class Unpin(Header, frozen=True, tag=10):
    """The pin with `k` is not needed any more."""

    peer: Peer
    k: Count


class StateRequest(Header, frozen=True, tag=5):
    """`peer` asks for the addressee's replica, if that has at least `frontiers`, and if `pinned` are all that live."""

    peer: Peer
    k: Count
    frontiers: Frontiers = field(default_factory=dict)
    pinned: Peers = ()


class State(WithArrays, frozen=True, tag=6):
    """`peer`'s replica, which stands at `frontiers` (its own lane included)."""

    peer: Peer
    frontiers: Frontiers
    k: Count
    marks: Annotated[Mapping[Peer, tuple[Series, ...]], Meta(max_length=0)] = field(default_factory=dict)
    """What it knows of every lane's logical identities; never in the header."""
    layout: Layout = EMPTY
    payload: CarriedWhole | None = None
    closed: Count = 0
    """Of earlier epochs only such marks are there as are still to be decided."""
    units: Count = 0
    """Units that count in this replica, of all epochs."""
    table: Table = NO_TABLE


class Ping(Header, frozen=True, tag=11):
    """`peer` has not heard the addressee for a while; `k` is of its pings, and comes back in the answer."""

    peer: Peer
    k: Count
    rumors: Rumors = ()


class PingRequest(Header, frozen=True, tag=12):
    """`peer` does not hear `target`, and asks the addressee to ping it. `k` is that of its own ping."""

    peer: Peer
    k: Count
    target: Peer


class Ack(Header, frozen=True, tag=13):
    """`about` is there: `peer` itself, or the one that it was asked to ping. `k` is that of the ping or request."""

    peer: Peer
    k: Count
    about: Peer
    rumors: Rumors = ()


class Nack(Header, frozen=True, tag=14):
    """`peer` did what the request with `k` asked for, and does not hear `about` either."""

    peer: Peer
    k: Count
    about: Peer


class Offer(Header, frozen=True, tag=15):
    """`peer` has begun `rounds` rounds of mixing, and has packets that their readers have not taken."""

    peer: Peer
    rounds: Count
    waiting: Frontiers = field(default_factory=dict)
    """By reader: the number of the newest packet for it."""
    rumors: Rumors = ()


class PacketRequest(Header, frozen=True, tag=16):
    """`peer` has the addressee's packets for it up to `n`, and takes the next one. `k` grows with each request."""

    peer: Peer
    n: Count
    k: Count


class PacketReply(WithArrays, frozen=True, tag=17):
    """Packet `n` of `peer` for the addressee, put there in `round`. `k` is that of the request it answers."""

    peer: Peer
    n: Count
    newest: Count
    """The number of the newest packet that waits there for the addressee."""
    round: Count
    k: Count
    scalars: Annotated[Mapping[Name, float], Meta(max_length=SCALARS_MAX)] = field(default_factory=dict)
    layout: Layout = EMPTY
    payload: CarriedWhole | None = None


class Credit(Header, frozen=True, tag=7):
    """`peer` has received `blocks` blocks of bulk message `k`."""

    peer: Peer
    k: Count
    blocks: Count


class Here(Header, frozen=True, tag=18):
    """`peer` takes answers by the connection over which this comes."""

    peer: Peer


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
    | Here
)
