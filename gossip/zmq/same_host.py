"""Links between peers of one machine: messages over a Unix socket, with open files instead of bytes.

A reader that finds its origin on the same machine pulls over such a link, hears adverts there first, and is given the
file in which an update lies instead of the update's bytes. Nothing else changes: a link may lose messages, and messages
that it does not take go over ZeroMQ.

    | parts | for each: first byte in its file, bytes of its frame | frame 0 of the message | frames of the parts |

A part is an open file, whose descriptor goes along, and a range is the sum of its parts. A part with rows has a frame
that says so, that of a range with its layout; one without a frame is laid out as the message says.

A link is a socket of whole messages (SOCK_SEQPACKET) in Linux' abstract namespace: it has no file that could be left
behind. Both ends ask the kernel whose process is at the other, and talk to their own user's only. Where the run has
a secret, both prove that they have it as well, before anything else is taken: a code by which the secret authenticates
who reads from whom (BLAKE2 with a key: RFC 7693). Which of the run's processes it is the kernel says, too: `process`.
Elsewhere there are no links.

    reader -> name | code       origin -> code       then pulls, and adverts with files
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import NamedTuple

from gossip.errors import WireError, ran_out_of_files
from gossip.messages import PeerId
from gossip.wire import BLOCK_BYTES
from gossip.zmq.sockets import digest

COUNT = struct.Struct("!B")
PLACE = struct.Struct("!QI")
PARTS_MAX = 16
FRAME_BYTES_MAX = 1 << 16
"""A message over a link; what is longer goes over ZeroMQ. A socket takes 200 kB by default before it is full."""
LINKS_MAX = 1024
"""Peers of one machine; more of them read over ZeroMQ."""
NAMELESS_MAX = 64
"""Links that have not said who reads; where there are more, the oldest are closed. A reader says it at once."""
SMALL_BYTES = BLOCK_BYTES
"""Payloads up to this size are copied to a file of their own to be handed over: a reader that stands still holds no
more memory than blocks on their way to it would."""
PROOF_BYTES = 32
_CREDENTIALS = struct.Struct("3i")


class Part(NamedTuple):
    """An open file with packed arrays."""

    descriptor: int
    offset: int = 0
    """Of the arrays in the file."""
    frame: bytes = b""
    """Of a range with its layout, where that is not the message's."""


class Packet(NamedTuple):
    """A message that came over a link."""

    frame: bytes
    parts: tuple[Part, ...] = ()

    def close(self) -> None:
        """Close the files that came with it."""
        for part in self.parts:
            os.close(part.descriptor)


def listen(me: PeerId) -> socket.socket | None:
    """Where readers of this machine find `me`; None where there are no links."""
    if sys.platform != "linux":
        return None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(_address(me))
        listener.listen(64)
    except OSError:
        listener.close()
        return None
    return listener


def accept(listener: socket.socket) -> socket.socket | None:
    """The next reader that has come; None if it is of another user, or gone again. `OSError` out of descriptors."""
    try:
        connection, _ = listener.accept()
    except OSError as error:
        if ran_out_of_files(error):
            raise
        return None
    return _trusted(connection)


def proof(secret: str | None, role: str, reader: PeerId, origin: PeerId) -> bytes:
    """By which the one in this `role`, "reader" or "origin", shows the other that it has the run's secret. Nothing,
    where there is none."""
    if secret is None:
        return b""
    told = "\0".join(("deepdist link", role, reader, origin)).encode()
    return digest(told, PROOF_BYTES, secret.encode())


def _is_same(one: bytes, other: bytes) -> bool:
    """Takes as long whatever their first bytes are."""
    key = os.urandom(16)
    return digest(one, PROOF_BYTES, key) == digest(other, PROOF_BYTES, key)


def connect(me: PeerId, origin: PeerId, secret: str | None = None) -> socket.socket | None:
    """A link to read from `origin`; None if it is not on this machine, or of another user. With a secret its first
    message is to be `proof(secret, "origin", me, origin)`: see `receive_proof`."""
    if sys.platform != "linux":
        return None
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    except OSError:
        return None
    try:
        connection.connect(_address(origin))
        connection.send(proof(secret, "reader", me, origin) + me.encode())
    except OSError:
        connection.close()
        return None
    return _trusted(connection)


def send(connection: socket.socket, frame: bytes, parts: Sequence[Part] = ()) -> bool:
    """Whether the message was taken: not if it is long, the other is slow, or gone."""
    places = b"".join(PLACE.pack(part.offset, len(part.frame)) for part in parts)
    data = COUNT.pack(len(parts)) + places + frame + b"".join(part.frame for part in parts)
    if len(data) > FRAME_BYTES_MAX or len(parts) > PARTS_MAX:
        return False
    try:
        socket.send_fds(connection, [data], [part.descriptor for part in parts])
    except OSError:
        return False
    return True


def receive(connection: socket.socket) -> Packet | None:
    """The next message; None if there is none now. `EOFError` when the other end is gone, `WireError` for nonsense.

    `EOFError` also where this process may not open the files that came: without the link they come as bytes.
    """
    try:
        data, descriptors, flags, _ = socket.recv_fds(connection, FRAME_BYTES_MAX, PARTS_MAX)
    except BlockingIOError:
        return None
    except OSError as error:
        raise EOFError(str(error)) from None
    if not data:
        raise EOFError("the other end of the link is gone")
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise EOFError("no descriptors are left for the files that came")
    try:
        return _packet(data, descriptors)
    except WireError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _packet(data: bytes, descriptors: list[int]) -> Packet:
    places_end = COUNT.size + data[0] * PLACE.size
    if data[0] != len(descriptors) or len(data) < places_end:
        raise WireError(f"message of {len(data)} bytes over a link with {len(descriptors)} files says {data[0]}")
    places = list(PLACE.iter_unpack(data[COUNT.size : places_end]))
    end = len(data) - sum(length for _, length in places)
    if end < places_end:
        raise WireError("a message over a link is shorter than its parts say")
    frame, parts = data[places_end:end], []
    for descriptor, (offset, length) in zip(descriptors, places, strict=True):
        parts.append(Part(descriptor, offset, data[end : end + length]))
        end += length
    return Packet(frame, tuple(parts))


def receive_proof(connection: socket.socket, expected: bytes) -> bool:
    """Whether the first message of an origin has come. `EOFError` as `receive`; `WireError` if it is another one."""
    try:
        found = connection.recv(FRAME_BYTES_MAX)
    except BlockingIOError:
        return False
    except OSError as error:
        raise EOFError(str(error)) from None
    if not found:
        raise EOFError("the other end of the link is gone")
    if not _is_same(found, expected):
        raise WireError("who listens in the name of a peer does not have the run's secret")
    return True


def receive_name(connection: socket.socket, me: PeerId, secret: str | None = None) -> PeerId:
    """What a new link begins with: who reads, which is answered. `EOFError` and `WireError` as `receive`, also for one
    that does not have the secret."""
    try:
        data = connection.recv(FRAME_BYTES_MAX)
    except OSError as error:
        raise EOFError(str(error)) from None
    if not data:
        raise EOFError("the other end of the link is gone")
    size = 0 if secret is None else PROOF_BYTES
    try:
        name = PeerId(data[size:].decode())
    except UnicodeDecodeError:
        raise WireError("a link begins with what is no name") from None
    if not _is_same(data[:size], proof(secret, "reader", name, me)):
        raise WireError("who comes in the name of a peer does not have the run's secret")
    if secret is not None:
        try:
            connection.send(proof(secret, "origin", name, me))
        except OSError as error:
            raise EOFError(str(error)) from None
    return name


def small_file(data: bytes | bytearray | memoryview) -> int:
    """A descriptor of an unnamed file in memory that holds `data`."""
    descriptor = os.memfd_create("deepdist-range", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _address(peer: PeerId) -> bytes:
    return b"\0deepdist-" + peer.encode()


def process(connection: socket.socket) -> int:
    """The number of the process at the other end, as the kernel says: whoever connected, or listened."""
    return _credentials(connection)[0]


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Process, user and group."""
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def _trusted(connection: socket.socket) -> socket.socket | None:
    """The connection, if the process at its other end is of the same user."""
    if _credentials(connection)[1] != os.getuid():
        connection.close()
        return None
    connection.setblocking(False)
    return connection
