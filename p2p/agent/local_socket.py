"""How a task talks to the agent beside it: a Unix socket in a private folder, messages with open files in hand.

    | bytes of the message: 4 | message: `p2p.agent.requests` |    with descriptors, by SCM_RIGHTS

Arrays never pass through the socket: their writer puts them into an unnamed file and hands over its descriptor.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
import threading
import time

from gossip.errors import UsageError, WireError
from p2p import open_files

LENGTH = struct.Struct("!I")
CREDENTIALS = struct.Struct("3i")
MESSAGE_BYTES_MAX = 1 << 24
FILES_MAX = 4
"""Open files that go with one message; ours have one."""
PART_BYTES = 1 << 16
"""Of a message, that are read at a time."""
SOCKET_PATH_BYTES_MAX = 100
"""The system's limit is 104 on some and 108 on others."""
ROOTS_MAX = 10
"""Names for the private folder that are tried, where others have taken the first."""

WATCH_S = 1.0
"""How often a process looks whether the one it lives with is gone."""
UNKNOWN = "alive"
"""The start time of a process that is there, where the system does not tell more."""


def send(connection: socket.socket, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message and hand over open files."""
    frame = LENGTH.pack(len(message)) + message
    sent = socket.send_fds(connection, [frame], descriptors) if descriptors else connection.send(frame)
    if sent < len(frame):
        connection.sendall(frame[sent:])


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and its open files, which the caller closes; `EOFError` when the other side has gone.

    `UsageError` if it is longer than any of ours, or if this process may open no more files.
    """
    head, descriptors, flags, _ = socket.recv_fds(connection, LENGTH.size, FILES_MAX)
    try:
        message = _receive_message(connection, head)
        if flags & socket.MSG_CTRUNC:
            raise UsageError(open_files.words("the open files of a message could not be taken"))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


def _receive_message(connection: socket.socket, head: bytes) -> bytes:
    if head:
        head += _receive_exactly(connection, LENGTH.size - len(head))
    else:
        raise EOFError("the other side closed the connection")
    (length,) = LENGTH.unpack(head)
    if length > MESSAGE_BYTES_MAX:
        raise UsageError(f"a local message claims {length} bytes, at most {MESSAGE_BYTES_MAX}")
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("the other side closed the connection")
        data += part
    return bytes(data)


class Incoming:
    """What comes on one connection, as it comes: nobody waits for the rest of a message."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = bytearray()
        self._files: list[int] = []
        self._lacks_files = False

    def take(self) -> tuple[bytes, list[int]] | None:
        """Read what is there: the message and its open files, which the caller closes, if that was the last of it.

        Raises:
            EOFError: the other side has gone.
            WireError: it is no message, and nobody knows where the next one would begin.
            UsageError: this process may open no more files; the message is left out.
        """
        part, files, flags, _ = socket.recv_fds(self._connection, PART_BYTES, FILES_MAX)
        self._data += part
        self._files += files
        self._lacks_files |= bool(flags & socket.MSG_CTRUNC)
        if not part:
            raise EOFError("the other side closed the connection")
        length = LENGTH.unpack_from(self._data)[0] if len(self._data) >= LENGTH.size else 0
        if length > MESSAGE_BYTES_MAX:
            raise WireError(f"a local message claims {length} bytes, at most {MESSAGE_BYTES_MAX}")
        if len(self._files) > FILES_MAX:
            raise WireError(f"{len(self._files)} open files came with a message, at most {FILES_MAX}")
        missing = LENGTH.size + length - len(self._data)
        if missing > 0 or len(self._data) < LENGTH.size:
            return None
        if missing < 0:
            raise WireError(f"{-missing} bytes came behind a message, expected none before its answer")
        message, files, lacks = bytes(self._data[LENGTH.size :]), self._files, self._lacks_files
        self._data, self._files, self._lacks_files = bytearray(), [], False
        if lacks:
            for descriptor in files:
                os.close(descriptor)
            raise UsageError(open_files.words("the open files of a message could not be taken"))
        return message, files

    def close(self) -> None:
        """Nothing more is wanted: close the files of what is not whole."""
        for descriptor in self._files:
            os.close(descriptor)
        self._files = []


def private_folder(*names: str) -> str:
    """A folder below the temporary one that only this user can enter, made if it is not there."""
    path = os.path.join(_private_root(_base(*names)), *names)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def private_file(name: str) -> str | None:
    """The path of what has this name in the private folder; None if there is none. Nothing is made."""
    for root in roots(_base()):
        if is_private(root):
            path = os.path.join(root, name)
            return path if os.path.exists(path) else None
    return None


def _base(*names: str) -> str:
    """The folder below which the private one is, if a socket in `names` below that is to have a path."""
    base = tempfile.gettempdir()
    longest = os.path.join(base, f"deepdist-{os.getuid()}-{ROOTS_MAX}", *names, "agent.sock")
    return base if len(longest.encode()) <= SOCKET_PATH_BYTES_MAX else "/tmp"


def roots(base: str) -> list[str]:
    """What the private folder of this user may be called, the first choice first."""
    name = os.path.join(base, f"deepdist-{os.getuid()}")
    return [name, *(f"{name}-{number}" for number in range(1, ROOTS_MAX))]


def _private_root(base: str) -> str:
    """All processes of this user find the same one. Whoever has taken the first names cannot take them all away: then
    it is the next one."""
    found = roots(base)
    for root in found:
        if is_private(root):
            return root
    for root in found:
        try:
            os.mkdir(root, mode=0o700)
        except FileExistsError:
            if not is_private(root):  # else another process of ours has made it meanwhile
                continue
        return root
    name = found[0]
    raise UsageError(
        f"{name}, {name}-1 and so on to {name}-{ROOTS_MAX - 1} are there, and none is a folder that only this user can "
        "enter: set TMPDIR to a folder of your own"
    )


def is_private(path: str) -> bool:
    """It is a folder of this user, whom alone it lets in."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077


def address_towards(endpoint: str) -> str:
    """The address of the interface that routes to `tcp://host:port` (no packet is sent)."""
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        address: str = probe.getsockname()[0]
        return address


class Process:
    """A process on this machine by pid and start time, so that a pid used again is not taken for it."""

    def __init__(self, pid: int, started: str | None = None) -> None:
        self.pid = pid
        self.started = started if started is not None else _start_time(pid)

    @property
    def alive(self) -> bool:
        if self.started is None:
            return False
        now = _start_time(self.pid)
        return now == self.started or (now is not None and UNKNOWN in (now, self.started))

    @property
    def stopped(self) -> bool:
        """It was stopped by a signal, and waits for one to go on."""
        try:
            return self.alive and _stat(self.pid)[0] == "T"
        except OSError:
            return False


def process_behind(connection: socket.socket) -> Process | None:
    """The process that listens at the other end of a Unix socket; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, _, _ = CREDENTIALS.unpack(credentials)
    return Process(pid)


def leave_with(process: Process, folder: str | None = None) -> None:
    """End this process, whatever it is doing, soon after `process` is gone; it leaves no `folder` behind."""

    def watch() -> None:
        while process.alive:
            time.sleep(WATCH_S)
        time.sleep(WATCH_S)  # who notices by itself has time to leave in order
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name="deepdist-watch", daemon=True).start()


def _start_time(pid: int) -> str | None:
    """When `pid` was started, in ticks since boot; None if it is gone or only waits to be reaped."""
    try:
        fields = _stat(pid)
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return None
    except OSError:
        pass  # it tells nothing of that process: this one may be out of descriptors
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return UNKNOWN


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()
