"""What agents and the registrar in the driver program say to each other: one class for each message.

    agent                                        registrar
    Hello    here I am                        -> Roster, to all; or Refused
    Status   my figures, twice a second       <- Question: your figures, now
    Drained  everybody has my updates         <- Drain: read everything
    Warned   tell the user
                                                 Begin, Settle   a training begins; all its updates are computed
                                                 Stop            leave

A message is a map in MessagePack, whose `op` is the name of its class; a new one is a class with its name in
`FromAgent` or `FromRegistrar`, and a case where it is dealt with. MessagePack, since a figure may be infinite, for
which JSON has no word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from msgspec import Meta, Struct, field
from msgspec.msgpack import Decoder, Encoder

from gossip.errors import WireError
from gossip.fields import Count, Name
from gossip.messages import Peer
from p2p.agent.sketch import BUCKETS

Role = Literal["peer", "observer"]
"""Of an agent; the observer is the driver program's."""
Endpoint = Annotated[str, Meta(pattern=r"^tcp://\S+:\d+$", max_length=512)]
Key = Annotated[str, Meta(min_length=40, max_length=40)]
"""The public half of a CURVE key, Z85."""
Seconds = Annotated[float, Meta(ge=0)]


class Told(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value within a message."""


class Message(Told, frozen=True, kw_only=True, tag_field="op", tag=str.lower):
    """What one says to the other."""


# ------------------------------------------------------------------------------------------------------------- figures


class Against(Told, frozen=True, kw_only=True):
    """What an agent holds against others, by lane."""

    refused: Mapping[Name, Count] = field(default_factory=dict)
    """Updates that were too long for it."""
    absurd: Mapping[Name, tuple[Count, float]] = field(default_factory=dict)
    """How many updates were far longer than those of others, and how many times as long the longest was."""
    put_out: Mapping[Name, str] = field(default_factory=dict)
    """Why, of those that were."""


AGAINST_NOBODY = Against()


class LaneFigures(Told, frozen=True, kw_only=True):
    """Of an agent whose peer has lanes."""

    frontiers: Mapping[Name, Count] = field(default_factory=dict)
    """By lane: the last update that its replica has."""
    units: Count = 0
    """Units of work that count in its replica."""
    withdrawn: Count = 0
    """Own updates that it took back, since another attempt at their unit counts."""
    adoptions: Count = 0
    """Replicas of others that it took over."""
    left_out: Count = 0
    """Own updates that it did not publish, as they were too long."""
    against: Against = AGAINST_NOBODY


class MixFigures(Told, frozen=True, kw_only=True):
    """Of an agent that mixes."""

    taken: Count = 0
    """Own updates that some neighbor has taken in."""
    received: Count = 0
    """Packets taken in."""
    late: Count = 0
    """Packets of rounds that were over."""
    given_up: Count = 0
    """Rounds that ended without all that they needed."""
    rounds: Count = 0
    """Begun."""
    era: Count = 0
    """What it is about; see `gossip.events.Resumed`."""
    era_rounds: Count = 0
    """Begun in this era."""
    trouble: str | None = None
    """Why it cannot mix any more."""
    weight: float = 1.0
    """Of its replica in the mean."""
    edges: Mapping[Name, Count] = field(default_factory=dict)
    """Bytes of packets sent to each neighbor, by name."""
    sketch: Annotated[Sequence[float], Meta(min_length=BUCKETS, max_length=BUCKETS)] | None = None
    """Of its replica; only where it was asked for."""


class Figures(Told, frozen=True, kw_only=True):
    """Of any agent, as of now."""

    question: Count = 0
    """The number of the last one that it has answered."""
    roster_version: Count = 0
    """Of the roster that it knows."""
    departed: Sequence[Peer] = ()
    """The peers that it takes for dead."""
    published: Count = 0
    """Own updates: in its lane, or in the state that it mixes."""
    gated: Count = 0
    """Updates that were not published, since their unit was before."""
    refused: Count = 0
    """Of what others sent: dropped because it did not fit, or was not finite."""
    bytes_out: Count = 0
    """Sent, or handed over as open files to agents of its host."""
    bytes_in: Count = 0
    malformed: Count = 0
    """Messages dropped because they were not well-formed."""
    memory_peak_bytes: Count = 0
    lanes: LaneFigures = LaneFigures()
    mixing: MixFigures = MixFigures()


# ------------------------------------------------------------------------------------------------------- of an agent


class Hello(Message, frozen=True, kw_only=True):
    """`peer` is there."""

    peer: Peer
    run: str
    """Of the training session that it belongs to."""
    role: Role
    name: Name
    """Host and process id."""
    pid: Count
    adverts: Endpoint
    """Where it publishes its adverts,"""
    pulls: Endpoint
    """and serves pulls."""
    key: Key | None = None
    """By which it is known there: the public half; `peer` is its fingerprint."""
    token: str = ""
    """Of the run, as it was told at its start."""
    shortage: str | None = None
    """What its host lacks, for the user to hear."""
    adopts: bool = False
    """Of the driver program's agent: it begins with a living peer's replica."""


class Status(Message, frozen=True, kw_only=True):
    """`peer`'s figures."""

    peer: Peer
    figures: Figures


class Drained(Message, frozen=True, kw_only=True):
    """`peer`'s answer to a request to drain."""

    peer: Peer
    missing: Sequence[str] = ()
    """Names of the agents that have not read everything."""
    staleness: Sequence[Count] = ()
    """Of its newest updates: how many were merged into the replica since the copy that each was computed from."""
    torn: Sequence[tuple[Count, Count]] = ()
    """(epoch, partition) of which updates count whose rows were different."""


class Warned(Message, frozen=True, kw_only=True):
    """The user is to be told this of `peer`."""

    peer: Peer
    text: str


# --------------------------------------------------------------------------------------------------- of the registrar


class Listed(Told, frozen=True, kw_only=True):
    """One agent on the roster."""

    peer: Peer
    role: Role
    name: Name
    pid: Count
    adverts: Endpoint
    pulls: Endpoint
    key: Key | None
    level: bool
    """It came while nothing was in flight, and began with all that had been learned; others adopt a replica."""
    answers: bool
    """It is alive, and has a replica itself."""


class Roster(Message, frozen=True, kw_only=True):
    """All agents, in the order in which they came; the newest is the last."""

    version: Count
    members: Annotated[Sequence[Listed], Meta(min_length=1)]


class Refused(Message, frozen=True, kw_only=True):
    """The agent does not belong to the session."""

    why: str


class Question(Message, frozen=True, kw_only=True):
    """The agent's figures are wanted now."""

    number: Count


class Begin(Message, frozen=True, kw_only=True):
    """A training begins; `era` is the number of what follows."""

    era: Count
    idle: Sequence[Peer] = ()
    """These get no task."""
    wait_s: Seconds | None = None
    """The others may wait so long for their first; None where nobody knows who gets one."""


class Settle(Message, frozen=True, kw_only=True):
    """All updates of the training are computed."""

    era: Count
    rounds: Count
    """Of it, that somebody has begun."""


class Drain(Message, frozen=True, kw_only=True):
    """Read everything, and say when everybody has read yours."""

    timeout_s: Seconds
    epochs: Count
    """Of the session, that are trained: what is still computed of them is not taken."""


class Stop(Message, frozen=True, kw_only=True):
    """Leave."""


FromAgent = Hello | Status | Drained | Warned
FromRegistrar = Roster | Refused | Question | Begin | Settle | Drain | Stop

TROUBLE_CHARACTERS_MAX = 200
"""Of what is wrong with a message, which may be told with words of its own."""

_ENCODER = Encoder()
_FROM_AGENT: Decoder[FromAgent] = Decoder(FromAgent)
_FROM_REGISTRAR: Decoder[FromRegistrar] = Decoder(FromRegistrar)

M = TypeVar("M", bound=Message)


def encode(message: FromAgent | FromRegistrar) -> bytes:
    """The frame of a message."""
    return _ENCODER.encode(message)


def from_agent(frames: Sequence[bytes]) -> FromAgent:
    """The message in `frames`. `WireError` if there is none; the text says where."""
    return _decoded(frames, _FROM_AGENT)


def from_registrar(frames: Sequence[bytes]) -> FromRegistrar:
    """The same, of the registrar's."""
    return _decoded(frames, _FROM_REGISTRAR)


def _decoded(frames: Sequence[bytes], decoder: Decoder[M]) -> M:
    if len(frames) != 1:
        raise WireError(f"{len(frames)} frames, expected 1")
    try:
        return decoder.decode(frames[0])
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise WireError(f"{error!s:.{TROUBLE_CHARACTERS_MAX}}") from None
