"""Links between peers of one machine: messages over a Unix socket, with open files instead of bytes.

A reader that finds its origin on the same machine pulls over such a link, hears adverts there first, and is given the
file in which an update lies instead of the update's bytes. Nothing else changes: a link may lose what it carries, and
what it does not take goes over ZeroMQ.

    | first byte of the payload in its file | frame 0 of the message |  and, with a range, the file's descriptor

A link is a socket of whole messages (SOCK_SEQPACKET) in Linux' abstract namespace: it has no file that could be left
behind. Both ends ask the kernel whose process is at the other, and talk to their own user's only. Elsewhere there are
no links.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import NamedTuple

from gossip.errors import WireError
from gossip.messages import PeerId
from gossip.wire import BLOCK_BYTES

OFFSET = struct.Struct("!Q")
FRAME_BYTES_MAX = 1 << 16
"""A message over a link; what is longer goes over ZeroMQ. A socket takes 200 kB by default before it is full."""
LINKS_MAX = 1024
"""Peers of one machine; more of them read over ZeroMQ."""
SMALL_BYTES = BLOCK_BYTES
"""Payloads up to this size are copied to a file of their own to be handed over: a reader that stands still holds no
more memory than blocks on their way to it would."""
_CREDENTIALS = struct.Struct("3i")


class Packet(NamedTuple):
    """A message that came over a link."""

    frame: bytes
    offset: int
    """Of the payload in the file."""
    descriptor: int | None

    def close(self) -> None:
        """Close the file that came with it."""
        if self.descriptor is not None:
            os.close(self.descriptor)


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
    """The next reader that has come; None if it is of another user, or gone again."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    return _trusted(connection)


def connect(me: PeerId, origin: PeerId) -> socket.socket | None:
    """A link to read from `origin`; None if it is not on this machine, or of another user."""
    if sys.platform != "linux":
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        connection.connect(_address(origin))
        connection.send(me.encode())
    except OSError:
        connection.close()
        return None
    return _trusted(connection)


def send(connection: socket.socket, frame: bytes, offset: int = 0, descriptor: int | None = None) -> bool:
    """Whether the message was taken: not if it is long, the other is slow, or gone."""
    if len(frame) > FRAME_BYTES_MAX:
        return False
    try:
        if descriptor is None:
            connection.send(OFFSET.pack(offset) + frame)
        else:
            socket.send_fds(connection, [OFFSET.pack(offset), frame], [descriptor])
    except OSError:
        return False
    return True


def receive(connection: socket.socket) -> Packet | None:
    """The next message; None if there is none now. `EOFError` when the other end is gone, `WireError` for nonsense."""
    try:
        data, descriptors, _, _ = socket.recv_fds(connection, OFFSET.size + FRAME_BYTES_MAX, 2)
    except BlockingIOError:
        return None
    except OSError as error:
        raise EOFError(str(error)) from None
    if not data:
        raise EOFError("the other end of the link is gone")
    if len(data) < OFFSET.size or len(descriptors) > 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise WireError(f"message of {len(data)} bytes and {len(descriptors)} files over a link")
    return Packet(data[OFFSET.size :], OFFSET.unpack_from(data)[0], descriptors[0] if descriptors else None)


def receive_name(connection: socket.socket) -> PeerId:
    """What a new link begins with: who reads. `EOFError` and `WireError` as `receive`."""
    try:
        data = connection.recv(FRAME_BYTES_MAX)
    except OSError as error:
        raise EOFError(str(error)) from None
    try:
        name = data.decode()
    except UnicodeDecodeError:
        raise WireError("a link begins with what is no name") from None
    if not name:
        raise EOFError("the other end of the link is gone")
    return PeerId(name)


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


def _trusted(connection: socket.socket) -> socket.socket | None:
    """The connection, if the process at its other end is of the same user."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
        connection.close()
        return None
    connection.setblocking(False)
    return connection
