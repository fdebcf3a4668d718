"""What coordinator, shards and workers tell each other: a message in MessagePack, and frames of numbers or a parcel.

    coordinator -> shard     Begin, Write, TryStep, Count, Measure, Settle, Accept, Direct, Forget, Read,
                             Ping, Leave
    coordinator -> worker    Placement (with the job), Source (with a partition), Compute
    worker -> shard          Fetch, Push
    shard -> worker          Numbers, Pushed
    shard -> coordinator     Here, Written, Measured, Accepted, Numbers
    worker -> coordinator    Here, Computed, Dropped, Failed (with the error)

Sockets are in a folder that only this user can enter: parcels are opened as they come.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import zmq
from msgspec import Struct

from gossip.arrays import Array, Bytes
from gossip.errors import WireError
from gossip.wire import BLOCK_BYTES
from gossip.zmq.sockets import Keys, open_socket

log = logging.getLogger("p2p")

Socket = zmq.Socket[bytes]


class Here(Struct, frozen=True, tag=True):
    """A process has started."""

    pid: int
    endpoint: str
    """Where a shard listens; empty of others."""


class Begin(Struct, frozen=True, tag=True):
    """Be a shard, of an x that is written next; what was before is forgotten."""

    dtype: str
    size: int
    history: int
    l2: float
    iterate: int


class Write(Struct, frozen=True, tag=True):
    """Numbers of x from this one on, of `size` of its range, which follow. Answer with `Written`."""

    start: int
    size: int


class Written(Struct, frozen=True, tag=True):
    """They are in x."""

    start: int


class TryStep(Struct, frozen=True, tag=True):
    """The next point."""

    point: int
    step: float


class Count(Struct, frozen=True, tag=True):
    """This attempt counts."""

    point: int
    partition: int
    chunk: int
    number: int


class Measure(Struct, frozen=True, tag=True):
    """All portions have counted: answer with `Measured`."""

    point: int


class Measured(Struct, frozen=True, tag=True):
    """The sums of a shard's range."""

    point: int
    slope: float
    gradient_square: float
    trial_square: float
    memory_peak_bytes: int
    bytes_in: int
    bytes_out: int


class Settle(Struct, frozen=True, tag=True):
    """The gradient is that at x."""


class Accept(Struct, frozen=True, tag=True):
    """x is the trial: answer with `Accepted`."""


class Accepted(Struct, frozen=True, tag=True):
    """Dot products of the new vectors with the basis, a row each."""

    iterate: int
    rows: list[list[float]]
    x_square: float


class Direct(Struct, frozen=True, tag=True):
    """The next direction."""

    coefficients: list[float]
    keeps: bool


class Ping(Struct, frozen=True, tag=True):
    """Nothing: that it can be sent says that its reader is there."""


class Leave(Struct, frozen=True, tag=True):
    """The training is over."""


class Forget(Struct, frozen=True, tag=True):
    """Drop all pairs."""


class Read(Struct, frozen=True, tag=True):
    """Answer with numbers of x, as it was then."""

    iterate: int
    start: int
    stop: int
    """Of the shard's range."""


class Placement(Struct, frozen=True, tag=True):
    """Where the shards are, and the range of each. The job follows, where the worker has none yet."""

    endpoints: list[str]
    spans: list[tuple[int, int]]


class Source(Struct, frozen=True, tag=True):
    """The rows of a partition, or what makes them, follow."""

    partition: int


class Compute(Struct, frozen=True, tag=True):
    """A portion to compute at a point."""

    point: int
    epoch: int
    """The pass, from 0."""
    partition: int
    chunk: int
    number: int


class Computed(Struct, frozen=True, tag=True):
    """All shards have the gradient of an attempt."""

    point: int
    partition: int
    chunk: int
    number: int
    loss: float
    rows: int
    count: int
    """Of elements: what a portion is cut by."""
    more: bool
    memory_peak_bytes: int
    bytes_in: int
    bytes_out: int


class Dropped(Struct, frozen=True, tag=True):
    """An attempt was given up."""


class Failed(Struct, frozen=True, tag=True):
    """The user's code raised; the error follows."""


class Fetch(Struct, frozen=True, tag=True):
    """Answer with the numbers of a point, as soon as there is one."""

    point: int


class Push(Struct, frozen=True, tag=True):
    """A portion's gradient follows."""

    point: int
    partition: int
    chunk: int
    number: int


class Pushed(Struct, frozen=True, tag=True):
    """It is kept, or it was late."""

    point: int
    kept: bool


class Numbers(Struct, frozen=True, tag=True):
    """Numbers follow; None where there are none any more."""

    of: int
    """The point, or the iterate."""
    start: int
    """Of the shard's range."""
    size: int | None


Told = (
    Begin
    | Write
    | TryStep
    | Count
    | Measure
    | Settle
    | Accept
    | Direct
    | Ping
    | Leave
    | Forget
    | Read
    | Placement
    | Source
    | Compute
)
Asked = Fetch | Push
Answered = Here | Written | Measured | Accepted | Numbers | Pushed | Computed | Dropped | Failed
Message = Told | Asked | Answered
M = TypeVar("M")

_decoder = msgspec.msgpack.Decoder(Message)


def socket(context: zmq.Context[Socket], kind: int, identity: bytes | None = None, keys: Keys | None = None) -> Socket:
    """A socket that holds what it is given until the other side takes it; bounded, since each side waits for answers.

    A router says when it does not know who is written to.
    """
    made = open_socket(context, kind, keys, server=kind == zmq.ROUTER)
    made.setsockopt(zmq.SNDHWM, 0)
    made.setsockopt(zmq.RCVHWM, 0)
    if identity is not None:
        made.setsockopt(zmq.IDENTITY, identity)
    if kind == zmq.ROUTER:
        made.setsockopt(zmq.ROUTER_MANDATORY, 1)
        made.setsockopt(
            zmq.ROUTER_HANDOVER, 1
        )  # who connects anew is heard before the old connection is known to be gone
    return made


def send(to: Socket, message: Message, frames: Iterable[Any] = (), identity: bytes | None = None) -> None:
    """Send a message and its frames. What they lie in is not to be changed any more."""
    head = [] if identity is None else [identity]
    to.send_multipart([*head, msgspec.msgpack.encode(message), *frames], copy=False)


def receive(read: Socket) -> tuple[Any, list[zmq.Frame]]:
    """The next message of a dealer, and its frames."""
    head, *frames = read.recv_multipart(copy=False)
    return decode(head.buffer), frames


def decode(frame: Bytes) -> Any:
    """The message in a first frame. `WireError` if there is none."""
    try:
        return _decoder.decode(frame)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise WireError(f"{error!s:.200}") from None


def receive_from(read: Socket) -> tuple[bytes, Any, list[zmq.Frame]] | None:
    """The next message of a router: (who sent it, message, frames); None, and a warning, if it is no message."""
    identity, head, *frames = read.recv_multipart(copy=False)
    try:
        return identity.bytes, decode(head.buffer), frames
    except WireError as error:
        log.warning("%r sent what is no message of L-BFGS: %s", identity.bytes[:40], error)
        return None


def blocks(numbers: Array | bytes) -> list[memoryview]:
    """Frames of at most `BLOCK_BYTES`; views of what they are of."""
    view = memoryview(numbers if isinstance(numbers, bytes) else numbers.data).cast("B")
    return [view[start : start + BLOCK_BYTES] for start in range(0, len(view), BLOCK_BYTES)]


def numbers(frames: Sequence[zmq.Frame], into: Array) -> None:
    """Write the numbers in frames to `into`, which has room for just these."""
    view = into.data.cast("B")
    start = 0
    for frame in frames:
        part = frame.buffer
        view[start : start + len(part)] = part
        start += len(part)
    assert start == into.nbytes, f"{start} bytes of {into.dtype}, expected {into.nbytes}"


def joined(frames: Sequence[zmq.Frame]) -> bytes:
    """The bytes in frames."""
    return b"".join(frame.bytes for frame in frames)
