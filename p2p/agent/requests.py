"""What a task and the agent beside it say to each other: one class for each request and each answer.

    task, or driver program                                agent
    Hello       who are you?                            -> Welcome, with the replica's descriptor
    Loaded      the replica is filled: begin            -> Done
    Counts      which units count in the replica?       -> Counting
    Publish     an update, in the file that goes along  -> Published, once it is merged and in the log
    Knows       has this unit been published?           -> Known
    Furthest    how far has this partition been?        -> Reached
    Begins      I train a partition from now on         -> Done
    Ends        not any more                            -> Done
                                                           or Refused, to any of them

A message is a JSON object whose `op` is the name of its class. A new one is a class with its name in `Request` or
`Answer`, and a case where it is dealt with. JSON, since it can be read as it passes (strace, socat), and there are but
whole numbers and texts in it; msgspec writes and reads it in a few microseconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Annotated, TypeVar

from msgspec import Meta, Struct
from msgspec.json import Decoder, Encoder

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.fields import COUNT_MAX, Count
from gossip.marks import NO_UNITS, Counted, Unit
from gossip.messages import Peer
from p2p.agent import local_socket


class MalformedError(UsageError):
    """What came is no message."""


class Said(Struct, frozen=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """A request or an answer."""

    @property
    def files(self) -> int:
        """Open files that go with it."""
        return 0


class Hello(Said, frozen=True):
    """Of whoever has connected."""


class Loaded(Said, frozen=True):
    """The driver program has filled the replica."""

    counted: Counted = NO_UNITS
    """Units that count in it."""


class Counts(Said, frozen=True):
    """Which units count in the replica? Asked by who reads it, so that nobody merges meanwhile."""


class Remainder(Struct, frozen=True, forbid_unknown_fields=True):
    """What a codec has left of an update; see `p2p.agent.ports.Left`."""

    follows: bool
    layout: Layout | None = None
    """Of the file that has it; None if nothing is left."""


class Publish(Said, frozen=True, kw_only=True):
    """An update, in a file behind a replica's header."""

    layout: Layout
    merged_at: Count
    """The replica's `merged` when the model was copied that it was computed from,"""
    staleness: Count | None = None
    """or how many have been merged since."""
    unit: Unit | None = None
    """None: it is of no unit."""
    attempt: Count = 0
    lent: bool = False
    """Nobody writes to the file while somebody reads it."""
    left: Remainder | None = None
    """None where no codec leaves anything."""

    @property
    def files(self) -> int:
        return 1 if self.left is None or self.left.layout is None else 2


class Knows(Said, frozen=True):
    """Has some attempt of this unit been published?"""

    unit: Unit


class Furthest(Said, frozen=True):
    """Which is the highest chunk of this partition that has been published?"""

    epoch: Count
    partition: Count


class Begins(Said, frozen=True):
    """The task trains a partition from now on."""


class Ends(Said, frozen=True):
    """It does not any more."""


class Welcome(Said, frozen=True, kw_only=True):
    """What an agent is; its replica goes along."""

    layout: Layout
    peer: Peer
    name: str
    """Host and process id."""
    pid: Count
    mixes: bool

    @property
    def files(self) -> int:
        return 1


class Done(Said, frozen=True):
    """It is."""


class Published(Said, frozen=True):
    """The update is dealt with."""

    new: bool
    """False if its unit was there before."""


class Known(Said, frozen=True):
    """Whether the unit has been published."""

    known: bool


class Reached(Said, frozen=True):
    """The highest chunk that was published; -1 if none was."""

    chunk: Annotated[int, Meta(ge=-1, le=COUNT_MAX)]


class Counting(Said, frozen=True):
    """The units that count."""

    counted: Counted | None
    """None while two attempts of one do, of which one will be taken back."""


class Refused(Said, frozen=True):
    """Nothing has come of the request."""

    why: str


Request = Hello | Loaded | Counts | Publish | Knows | Furthest | Begins | Ends
Answer = Welcome | Done | Published | Known | Reached | Counting | Refused

TROUBLE_CHARACTERS_MAX = 200
"""Of what is wrong with a message, which may be told with words of its own."""

_ENCODER = Encoder()
_REQUESTS: Decoder[Request] = Decoder(Request)
_ANSWERS: Decoder[Answer] = Decoder(Answer)

S = TypeVar("S", bound=Said)


def send(connection: socket.socket, message: Request | Answer, descriptors: tuple[int, ...] = ()) -> None:
    """Send a message, and hand its open files over."""
    local_socket.send(connection, _ENCODER.encode(message), descriptors)


def receive_request(connection: socket.socket) -> tuple[Request, list[int]]:
    """The next request and its open files, which the caller closes; `EOFError` when the task has gone.

    `UsageError` if it is none, in words that say where; its files are closed then.
    """
    return _received(connection, _REQUESTS, "request of a task")


def take_request(incoming: local_socket.Incoming) -> tuple[Request, list[int]] | None:
    """As `receive_request`, of what is there already: None if that is not all of it. See `Incoming.take`."""
    came = incoming.take()
    return None if came is None else _with_files(*came, _REQUESTS, "request of a task")


def receive_answer(connection: socket.socket) -> tuple[Answer, list[int]]:
    """The same, of answers."""
    return _received(connection, _ANSWERS, "answer of an agent")


def _received(connection: socket.socket, decoder: Decoder[S], what: str) -> tuple[S, list[int]]:
    return _with_files(*local_socket.receive(connection), decoder, what)


def _with_files(body: bytes, descriptors: list[int], decoder: Decoder[S], what: str) -> tuple[S, list[int]]:
    try:
        message = _decoded(body, decoder, what)
        if len(descriptors) != message.files:
            raise MalformedError(
                f"a malformed {what}: {len(descriptors)} open files came with it, expected {message.files}"
            )
    except UsageError:
        close(descriptors)
        raise
    return message, descriptors


def decode_request(body: bytes) -> Request:
    """The request in a message, without its files. `UsageError` if there is none; the text says where."""
    return _decoded(body, _REQUESTS, "request of a task")


def decode_answer(body: bytes) -> Answer:
    """The same, of answers."""
    return _decoded(body, _ANSWERS, "answer of an agent")


def _decoded(body: bytes, decoder: Decoder[S], what: str) -> S:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise MalformedError(f"a malformed {what}: {error!s:.{TROUBLE_CHARACTERS_MAX}}") from None


def close(descriptors: Sequence[int]) -> None:
    """Nobody needs these open files."""
    for descriptor in descriptors:
        os.close(descriptor)
