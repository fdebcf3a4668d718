"""The tasks of an executor, as its agent serves them: a connection each over a Unix socket, one request at a time.

    the door      a socket file that gets its name when there is something to compute from; who comes out of turn waits
    a publish     handed to the discipline as a submission, and answered when that has settled
    what is left  of a codec's updates, kept for the worker until it leaves something else, or hangs up

A malformed request is answered with an error, and the connection goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gossip.errors import GossipError, UsageError, ran_out_of_files
from gossip.messages import Unit
from gossip.zmq.segments import FilePayload, LentFile
from p2p import open_files
from p2p.agent import local_socket
from p2p.agent.discipline import Discipline
from p2p.agent.local_socket import Json
from p2p.agent.replica import HEADER_BYTES, Replica
from p2p.agent.submissions import Outcome, Submission

ACCEPT_RETRY_S = 0.5
"""How soon to let the next task in when no descriptor was left."""
STALENESS_SAMPLES_MAX = 10_000
"""The newest so many updates make up the staleness figures."""


class Door:
    """The socket file in the agent's folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.listener = socket.socket(socket.AF_UNIX)

    def shut(self) -> None:
        """Listen under a name that tasks do not know."""
        self._unlink("agent.new")  # of one that was killed while it started
        self.listener.bind(os.path.join(self._folder, "agent.new"))
        self.listener.listen(64)

    def open(self) -> None:
        """Let the tasks in."""
        os.rename(os.path.join(self._folder, "agent.new"), os.path.join(self._folder, "agent.sock"))

    def close(self) -> None:
        """Leave nothing in the folder, nor the folder, but the note of a failed start for the tasks to read."""
        self.listener.close()
        for name in ("agent.sock", "agent.new", "lock"):
            self._unlink(name)
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, name))


@dataclass
class Waiting:
    """A task that waits for an answer."""

    connection: socket.socket | None
    """None: nobody does."""
    descriptors: list[int]
    submission: Submission


class Tasks:
    """Those of one agent."""

    def __init__(
        self,
        discipline: Discipline,
        replica: Replica,
        about: Json,
        *,
        loaded: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        """`about`: what a task is told that says hello. `loaded()` is called when the driver program has filled the
        replica, `warn` tells the user."""
        self._discipline = discipline
        self._runtime = discipline.runtime
        self._replica = replica
        self._about = about
        self._loaded = loaded
        self._warn = warn
        self.staleness: deque[int] = deque(maxlen=STALENESS_SAMPLES_MAX)
        """Of the newest updates."""
        self.epochs_closed = 0
        """All units of earlier epochs are published: a task that still computes one is a copy that Spark is ending."""
        self._waiting: deque[Waiting] = deque()
        self._left: dict[socket.socket, FilePayload] = {}
        """What codecs have left of the updates of workers, to be published when no more of these come."""
        self._told_of_files = False

    def listen(self, listener: socket.socket) -> None:
        """Serve those who come there."""
        self._runtime.register(listener, lambda: self._on_connection(listener))

    def close_epochs(self, epochs: int) -> None:
        """The first `epochs` of the session are trained: what is still computed of them is not taken."""
        self.epochs_closed = epochs
        for worker in list(self._left):
            self._publish_left(worker)

    def answer(self) -> None:
        """Answer the tasks whose updates are dealt with."""
        while self._waiting:
            trouble = self._discipline.trouble
            if trouble is None and not self._discipline.has_settled(self._waiting[0].submission):
                return
            first = self._waiting.popleft()
            for descriptor in first.descriptors:
                os.close(descriptor)
            if first.connection is None:
                continue
            published = first.submission.outcome is not Outcome.KNOWN
            answer = {"published": published} if trouble is None else {"error": trouble}
            try:
                local_socket.send(first.connection, answer)
            except OSError:
                pass  # the task was killed meanwhile; its update counts

    # -------------------------------------------------------------------------------------------------- connections

    def _on_connection(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            if ran_out_of_files(error):
                self._has_run_out(listener)
            return  # else it is gone again
        connection.settimeout(5.0)
        self._runtime.register(connection, lambda: self._on_task(connection))

    def _has_run_out(self, listener: socket.socket) -> None:
        """Out of descriptors: tasks wait at the door until some are free."""
        self._runtime.rest(listener, ACCEPT_RETRY_S)
        if not self._told_of_files:
            self._told_of_files = True
            self._warn(open_files.words("tasks have to wait for their agent"))

    def _on_task(self, connection: socket.socket) -> None:
        try:
            try:
                message, descriptors = local_socket.receive(connection)
                check_request(message, descriptors)
                self._on_request(connection, message, descriptors)
            except GossipError as error:
                local_socket.send(connection, {"error": str(error)})
        except (EOFError, OSError):
            self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        self._runtime.unregister(connection)
        connection.close()
        self._discipline.hang_up(connection)
        if connection in self._left:
            self._publish_left(connection)

    # ----------------------------------------------------------------------------------------------------- requests

    def _on_request(self, connection: socket.socket, message: Json, descriptors: list[int]) -> None:
        match message["op"]:
            case "hello":
                local_socket.send(connection, self._about, (self._replica.descriptor,))
            case "loaded":
                self._discipline.load()
                self._loaded()
                local_socket.send(connection, {"ok": True})
            case "publish" if message["unit"] is not None and message["unit"][0] < self.epochs_closed:
                for descriptor in descriptors:
                    os.close(descriptor)
                local_socket.send(connection, {"published": False})
            case "publish":
                self._publish(connection, message, descriptors)
            case "known":
                unit = Unit(*message["unit"])
                known = unit.epoch < self.epochs_closed or self._discipline.knows(unit)
                local_socket.send(connection, {"known": known})
            case "furthest":
                chunk = self._discipline.furthest(message["epoch"], message["partition"])
                local_socket.send(connection, {"chunk": chunk})
            case "take":
                self._discipline.take(connection)
            case "begins":
                self._discipline.begins(connection)
                local_socket.send(connection, {"ok": True})
            case "ends":
                self._discipline.ends(connection)
                local_socket.send(connection, {"ok": True})

    def _publish(self, connection: socket.socket, message: Json, descriptors: list[int]) -> None:
        descriptor, *rest = descriptors
        self.staleness.append(max(0, message.get("staleness", self._replica.merged - message["merged_at"])))
        payload = FilePayload(local_socket.layout_from_json(message["layout"]), descriptor, HEADER_BYTES)
        if message.get("lent"):
            payload = borrowed(payload) or payload
        unit = None if message["unit"] is None else Unit(*message["unit"])
        submission = self._discipline.submissions.submit(payload, unit, message["attempt"])
        self._waiting.append(Waiting(connection, [*{descriptor, payload.descriptor}], submission))
        if "follows" in message:
            self._keep_left(connection, message, rest, submission)
        self.answer()

    def _keep_left(self, connection: socket.socket, message: Json, rest: list[int], of: Submission) -> None:
        """What a codec has left of an update; of one that does not count, what was left before stays."""
        if of.outcome is Outcome.KNOWN:
            for descriptor in rest:
                os.close(descriptor)
            return
        if connection in self._left and not message["follows"]:
            self._publish_left(connection)
        before = self._left.pop(connection, None)
        if before is not None:
            os.close(before.descriptor)
        if rest:
            self._left[connection] = FilePayload(local_socket.layout_from_json(message["left"]), rest[0], HEADER_BYTES)

    def _publish_left(self, connection: socket.socket) -> None:
        """It is of units that count already, so it is none itself."""
        payload = self._left.pop(connection)
        self._waiting.append(Waiting(None, [payload.descriptor], self._discipline.submissions.submit(payload)))
        self.answer()


def check_request(message: Json, descriptors: list[int]) -> None:
    """`UsageError` if a task's request is not one that an agent knows; its open files are closed then."""
    files = 0
    try:
        match message["op"]:
            case "hello" | "loaded" | "take" | "begins" | "ends":
                pass
            case "publish":
                files = 1
                local_socket.layout_from_json(message["layout"])
                if "follows" in message:
                    _whole(message["follows"])
                    if "left" in message:
                        files = 2
                        local_socket.layout_from_json(message["left"])
                if message["unit"] is not None:
                    _unit(message["unit"])
                _whole(message["merged_at"], message["attempt"], message.get("staleness", 0))
            case "known":
                _unit(message["unit"])
            case "furthest":
                _whole(message["epoch"], message["partition"])
            case op:
                raise ValueError(f"{op!r:.50} is not known here")
        if len(descriptors) != files:
            raise ValueError(f"{len(descriptors)} open files came with it, expected {files}")
    except (KeyError, TypeError, ValueError, GossipError) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise UsageError(f"a malformed request of a task: {type(error).__name__}: {error}") from None


def _unit(value: Any) -> None:
    _whole(*Unit(*value))


def _whole(*values: Any) -> None:
    for value in values:
        if not isinstance(value, int):
            raise TypeError(f"{value!r:.50}, expected a whole number")


def borrowed(payload: FilePayload) -> LentFile | None:
    """The same file opened for reading and locked, so that its task leaves it alone; None where that cannot be done.

    The lock is the opened file's: it lasts until the last duplicate of its descriptor is closed, in any process.
    """
    try:
        descriptor = os.open(f"/proc/self/fd/{payload.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return LentFile(payload.layout, descriptor, payload.offset)
