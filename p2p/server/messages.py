"""What a worker and the master say to each other: one class for each request and each answer.

    worker                                                     master
    Hello       I am of this run                            -> Welcome
    Begin       I compute the gradient of this unit next    -> Ready, with the model, or that the unit counts already
    Read        this piece of the model                     -> Piece; only where the two share no memory
    Push        an update, in shared memory or with it      -> Applied, once `descent` has taken it, and Ready
                                                               Send, where it is to come in pieces
    Part        a piece of it                                  (no answer, until the last one: Applied)
    Dropped     of this unit no number came                 -> Known
    Knows       does this unit count?                       -> Known
    Which       which of these units count?                 -> Those
    Furthest    how far has this partition been?            -> Reached
    Ended       this partition has no more chunks           -> Known
    Leaves      nothing more comes from me for now             (no answer)
    Where       who leads, of several masters?              -> Moved
                                                               Refused, to any of them; Moved, where another leads;
                                                               Again, to Push

The first frame of a message is one of these in MessagePack; arrays follow as a frame of packed bytes. A new message is
a class with its name in `Request` or `Answer`, and a case where it is dealt with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from msgspec import Meta, Struct
from msgspec.msgpack import Decoder, Encoder

from gossip.arrays import Layout
from gossip.errors import WireError
from gossip.fields import Count, Name
from gossip.marks import Unit

INLINE_BYTES_MAX = 1 << 16
"""Packed arrays up to this size go with the message."""
UNITS_MAX = 1 << 14
"""Of one message: a worker that pushes the sum of so many chunks names them all."""
Units = Annotated[tuple[Unit, ...], Meta(max_length=UNITS_MAX)]


@dataclass(frozen=True)
class Address:
    """Where tasks find the master of a run. It travels with the job."""

    endpoint: str
    run: str
    """A secret of the run: who does not know it is refused."""
    key: str | None
    """The public half of the masters'; None only on loopback. A worker connects with a pair of its own, and nobody
    takes it for a master."""
    others: tuple[str, ...] = ()
    """Of masters that take its place, if there are any."""
    bounded: bool = False
    """Staleness is: one that comes to lead does not take what was computed for another, so workers keep the rows."""


class Place(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An open file of a process, which others of this host and user open by it."""

    pid: Count
    descriptor: Count
    token: Count
    """Of the file: the descriptor may be another's by now."""


class Said(Struct, frozen=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """A request or an answer."""


class Hello(Said, frozen=True):
    """Of a worker that has connected."""

    run: Name
    name: Name
    """Host and process id, for people."""


class Begin(Said, frozen=True):
    """The worker computes the gradient of `unit` next; whatever it began before is done, or given up."""

    unit: Unit
    attempt: Count = 0
    attributes: Count = 0
    """The version of the model's attributes that it has."""
    shares: bool = False
    """It shares memory with the master."""


class Read(Said, frozen=True):
    """Bytes [start, stop) of the model that the last `Ready` spoke of: its arrays, and its attributes behind them."""

    start: Count
    stop: Count


class Push(Said, frozen=True, kw_only=True):
    """What the gradient of `unit` returned, flattened; see `p2p.server.any_update`. Or the sum over some chunks."""

    unit: Unit
    also: Units = ()
    """The units of the other chunks, of which all count with it, or none."""
    bad: Count = 0
    """How many of all these had an update with a NaN or an infinity, which is not in the sum."""
    version: Count
    """Of the model that it was computed from."""
    layout: Layout
    place: Place | None = None
    """None: it follows as a frame, or in pieces."""
    inline: bool = False
    """It is the next frame."""
    then: Begin | None = None
    """What the worker begins afterwards: `Ready` comes in the same message as `Applied`."""


class Part(Said, frozen=True):
    """The next piece of the update, in the frame behind it."""


class Knows(Said, frozen=True):
    """Does this unit, or any of its partition where the chunk is the highest number there is, count?"""

    unit: Unit


class Dropped(Said, frozen=True):
    """An update of this unit has a NaN or an infinity, and is not sent."""

    unit: Unit
    also: Units = ()
    """Units that would have counted with it,"""
    bad: Count = 1
    """and how many such updates they had."""


class Which(Said, frozen=True):
    """Which of these units count?"""

    units: Units


class Furthest(Said, frozen=True):
    """How far has this partition been?"""

    epoch: Count
    partition: Count


class Ended(Said, frozen=True):
    """This partition has no more chunks; of steps that workers take together."""

    epoch: Count
    partition: Count


class Leaves(Said, frozen=True):
    """A task is over."""

    memory_peak_bytes: Count


class Where(Said, frozen=True):
    """Which of several masters leads? It may come before `Hello`."""


class Welcome(Said, frozen=True):
    """To `Hello`."""

    host: Place
    """A file that begins with `token`: who can read that shares memory with the master."""
    token: bytes


class Ready(Said, frozen=True, kw_only=True):
    """To `Begin`."""

    known: bool = False
    """The unit counts already; nothing else is told."""
    later: bool = False
    """Not in this run: the task is to end, and another one goes on. Nothing else is told."""
    version: Count = 0
    attributes: Count = 0
    """Their version,"""
    layout: Layout | None = None
    """and their layout, flattened, if the worker has others."""
    place: Place | None = None
    """The file of the model; None: it is the next frame, or is to be read in pieces."""
    inline: bool = False


class Piece(Said, frozen=True):
    """To `Read`: the bytes are the next frame."""


class Send(Said, frozen=True):
    """To `Push`: it is this worker's turn to send the pieces."""


class Applied(Said, frozen=True):
    """To `Push`: the update was taken."""

    new: bool
    """It was the first of its unit, and not nothing."""
    kept: bool = False
    """Somebody holds on to its arrays: the file belongs to the master now."""


class Known(Said, frozen=True):
    """To `Knows`."""

    known: bool


class Those(Said, frozen=True):
    """To `Which`."""

    units: Units


class Reached(Said, frozen=True):
    """To `Furthest`."""

    chunk: int
    """The highest that counts; -1 if none does."""


class Moved(Said, frozen=True):
    """Another master leads, or this one led no more for a while: what was asked is to be asked there."""

    endpoint: str
    """Where it is; empty if nobody knows."""


class Again(Said, frozen=True):
    """To `Push`: the model that it was computed from is forgotten here. Begin, and compute it again."""


class Refused(Said, frozen=True):
    """To any request."""

    why: str


Request = Hello | Begin | Read | Push | Part | Dropped | Knows | Which | Furthest | Ended | Leaves | Where
Answer = Welcome | Ready | Piece | Send | Applied | Known | Those | Reached | Moved | Again | Refused

encode = Encoder().encode

TROUBLE_CHARACTERS_MAX = 200
"""Of what is wrong with a message, which may be told with words of its own."""

_REQUESTS: Decoder[Request] = Decoder(Request)
_ANSWERS: Decoder[Answer] = Decoder(Answer)
S = TypeVar("S", bound=Said)


def decode_request(frame: bytes) -> Request:
    """The request of a worker in a message's first frame. `WireError` if there is none; the text says where."""
    return _decoded(frame, _REQUESTS)


def decode_answer(frame: bytes) -> Answer:
    """The same, of a master's answers."""
    return _decoded(frame, _ANSWERS)


def _decoded(frame: bytes, decoder: Decoder[S]) -> S:
    try:
        return decoder.decode(frame)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise WireError(f"{error!s:.{TROUBLE_CHARACTERS_MAX}}") from None
