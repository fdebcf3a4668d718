"""How a task talks to the agent beside it: a Unix socket in a private folder, JSON messages, open files in hand.

    task                                      agent
    {"op": "hello"}                   ->
                                      <-      {"layout": ..., ...} + descriptor of the replica
    {"op": "publish", ...} + descriptor of the packed update ->
                                      <-      {"ok": true}, once it is merged and in the log

Arrays never pass through the socket: who writes them puts them into an unnamed file and hands over its descriptor.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
from typing import Any

from gossip.arrays import ArraySpec, Layout
from gossip.errors import UsageError

LENGTH = struct.Struct("!I")
MESSAGE_BYTES_MAX = 1 << 24
SOCKET_PATH_BYTES_MAX = 100
"""The system's limit is 104 on some and 108 on others."""

WATCH_S = 1.0
"""How often a process looks whether the one it lives with is gone."""

Json = dict[str, Any]


def send(connection: socket.socket, message: Json, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message and hand over open files."""
    body = json.dumps(message, separators=(",", ":")).encode()
    frame = LENGTH.pack(len(body)) + body
    sent = socket.send_fds(connection, [frame], descriptors) if descriptors else connection.send(frame)
    if sent < len(frame):
        connection.sendall(frame[sent:])


def receive(connection: socket.socket) -> tuple[Json, list[int]]:
    """The next message and its open files, which the caller closes; `EOFError` when the other side has gone."""
    head, descriptors = _receive_with_files(connection)
    (length,) = LENGTH.unpack(head)
    if length > MESSAGE_BYTES_MAX:
        raise UsageError(f"a local message claims {length} bytes, at most {MESSAGE_BYTES_MAX}")
    body = bytearray()
    while len(body) < length:
        part = connection.recv(length - len(body))
        if not part:
            raise EOFError("the other side closed the connection")
        body += part
    return json.loads(body), descriptors


def _receive_with_files(connection: socket.socket) -> tuple[bytes, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, 4)
    while len(head) < LENGTH.size:
        part = connection.recv(LENGTH.size - len(head)) if head else b""
        if not part:
            raise EOFError("the other side closed the connection")
        head += part
    return head, descriptors


def layout_to_json(layout: Layout) -> list[list[Any]]:
    """A layout for a JSON message."""
    return [[spec.name, spec.dtype, *spec.shape] for spec in layout.specs]


def layout_from_json(value: list[list[Any]]) -> Layout:
    """And back."""
    return Layout(tuple(ArraySpec(name, dtype, tuple(shape)) for name, dtype, *shape in value))


def private_folder(*names: str) -> str:
    """A folder below the temporary one that only this user can enter, made if it is not there."""
    base = tempfile.gettempdir()
    root = os.path.join(base, f"deepdist-{os.getuid()}")
    path = os.path.join(root, *names)
    if len(os.path.join(path, "agent.sock").encode()) > SOCKET_PATH_BYTES_MAX:
        root = f"/tmp/deepdist-{os.getuid()}"
        path = os.path.join(root, *names)
    os.makedirs(root, mode=0o700, exist_ok=True)
    found = os.lstat(root)
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(f"{root} is not a private folder of this user: remove it or set TMPDIR to another place")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


class Process:
    """A process on this machine by pid and start time, so that a pid used again is not taken for it."""

    def __init__(self, pid: int, started: str | None = None) -> None:
        self.pid = pid
        self.started = started if started is not None else _start_time(pid)

    @property
    def alive(self) -> bool:
        return self.started is not None and _start_time(self.pid) == self.started


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
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
