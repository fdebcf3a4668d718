"""The tasks of an executor, as its agent serves them: a connection each over a Unix socket, one request at a time.

    the door      a socket file that gets its name when there is something to compute from; who comes out of turn waits
    a publish     handed to the discipline as a submission, and answered when that has settled
    what is left  of a codec's updates, kept for the worker until it leaves something else, or hangs up

A malformed request is answered with an error, and the connection goes on. Where nobody knows where the next message
begins it is closed, and nobody waits for the rest of one that comes in parts. The user is told of the first of either.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from gossip.errors import GossipError, MismatchError, UsageError, WireError, ran_out_of_files
from gossip.marks import Counted
from gossip.updates import kind_of
from gossip.wire import check_marks
from gossip.zmq.segments import FilePayload, LentFile
from p2p import open_files
from p2p.agent import local_socket, requests
from p2p.agent.discipline import Discipline
from p2p.agent.replica import HEADER_BYTES, Replica
from p2p.agent.requests import (
    Begins,
    Counting,
    Counts,
    Done,
    Ends,
    Furthest,
    Hello,
    Known,
    Knows,
    Loaded,
    MalformedError,
    Publish,
    Published,
    Reached,
    Refused,
    Remainder,
    Request,
    Welcome,
)
from p2p.agent.submissions import Outcome, Submission

ACCEPT_RETRY_S = 0.5
"""How soon to let the next task in when no descriptor was left."""
COUNTED_BYTES_MAX = 10 << 20
"""Of runs, which a message has as text (`local_socket.MESSAGE_BYTES_MAX`): of some 800,000 exchanges by the clock."""
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
        welcome: Welcome,
        *,
        loaded: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        """`welcome`: what a task is told that says hello. `loaded()` is called when the driver program has filled the
        replica, `warn` tells the user."""
        self._discipline = discipline
        self._runtime = discipline.runtime
        self._replica = replica
        self._welcome = welcome
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
        self._incoming: dict[socket.socket, local_socket.Incoming] = {}
        self._told_of_nonsense = False

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
            requests.close(first.descriptors)
            if first.connection is None:
                continue
            new = first.submission.outcome is not Outcome.KNOWN
            try:
                requests.send(first.connection, Published(new) if trouble is None else Refused(trouble))
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
        self._incoming[connection] = local_socket.Incoming(connection)
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
                came = requests.take_request(self._incoming[connection])
                if came is not None:
                    self._on_request(connection, *came)
            except WireError as error:
                self._tell_of_nonsense(error)
                requests.send(connection, Refused(str(error)))
                self._hang_up(connection)
            except GossipError as error:
                if isinstance(error, MalformedError):
                    self._tell_of_nonsense(error)
                requests.send(connection, Refused(str(error)))
        except (EOFError, OSError):
            self._hang_up(connection)

    def _tell_of_nonsense(self, error: Exception) -> None:
        """Of the first only: who sends it may go on."""
        if not self._told_of_nonsense:
            self._told_of_nonsense = True
            self._warn(f"something that is no task of ours speaks to an agent, and is refused: {error}")

    def _hang_up(self, connection: socket.socket) -> None:
        self._runtime.unregister(connection)
        self._incoming.pop(connection).close()
        connection.close()
        self._discipline.hang_up(connection)
        if connection in self._left:
            self._publish_left(connection)

    # ----------------------------------------------------------------------------------------------------- requests

    def _on_request(self, connection: socket.socket, request: Request, descriptors: list[int]) -> None:
        match request:
            case Hello():
                requests.send(connection, self._welcome, (self._replica.descriptor,))
            case Loaded(counted):
                _check_counted(counted)
                self._discipline.load(counted)
                self._loaded()
                requests.send(connection, Done())
            case Counts():
                requests.send(connection, Counting(_few(self._discipline.counted())))
            case Publish(unit=unit) if unit is not None and unit.epoch < self.epochs_closed:
                requests.close(descriptors)
                requests.send(connection, Published(new=False))
            case Publish():
                self._publish(connection, request, descriptors)
            case Knows(unit):
                known = unit.epoch < self.epochs_closed or self._discipline.knows(unit)
                requests.send(connection, Known(known))
            case Furthest(epoch, partition):
                requests.send(connection, Reached(self._discipline.furthest(epoch, partition)))
            case Begins():
                self._discipline.begins(connection)
                requests.send(connection, Done())
            case Ends():
                self._discipline.ends(connection)
                requests.send(connection, Done())
            case _:
                assert_never(request)

    def _publish(self, connection: socket.socket, request: Publish, descriptors: list[int]) -> None:
        try:
            if not self._runtime.peer.ready:
                raise UsageError("an update comes before the replica that it is to be added to")
            self._check(request, descriptors)
        except GossipError:
            requests.close(descriptors)
            raise
        descriptor, *rest = descriptors
        staleness = request.staleness
        self.staleness.append(max(0, self._replica.merged - request.merged_at) if staleness is None else staleness)
        payload = FilePayload(request.layout, descriptor, HEADER_BYTES)
        if request.lent:
            payload = borrowed(payload) or payload
        submission = self._discipline.submissions.submit(payload, request.unit, request.attempt)
        self._waiting.append(Waiting(connection, [*{descriptor, payload.descriptor}], submission))
        if request.left is not None:
            self._keep_left(connection, request.left, rest, submission)
        self.answer()

    def _check(self, request: Publish, descriptors: list[int]) -> None:
        """`GossipError` unless what it is about can be an update of this model, and is there to be read."""
        layouts = [request.layout]
        if request.left is not None and request.left.layout is not None:
            layouts.append(request.left.layout)
        for layout, descriptor in zip(layouts, descriptors, strict=True):
            kind_of(layout, self._replica.kinds).check_fit(layout, self._replica.layout)
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_size < HEADER_BYTES + layout.nbytes:
                raise MismatchError(f"an update comes with what is no file of {HEADER_BYTES + layout.nbytes} bytes")
            try:
                os.pread(descriptor, 1, 0)
            except OSError as error:
                raise MismatchError(f"an update comes with a file that cannot be read: {error}") from None

    def _keep_left(self, connection: socket.socket, left: Remainder, files: list[int], of: Submission) -> None:
        """What a codec has left of an update; of one that does not count, what was left before stays."""
        if of.outcome is Outcome.KNOWN:
            requests.close(files)
            return
        if connection in self._left and not left.follows:
            self._publish_left(connection)
        before = self._left.pop(connection, None)
        if before is not None:
            os.close(before.descriptor)
        if left.layout is not None:
            (descriptor,) = files
            self._left[connection] = FilePayload(left.layout, descriptor, HEADER_BYTES)

    def _publish_left(self, connection: socket.socket) -> None:
        """It is of units that count already, so it is none itself."""
        payload = self._left.pop(connection)
        self._waiting.append(Waiting(None, [payload.descriptor], self._discipline.submissions.submit(payload)))
        self.answer()


def _check_counted(counted: Counted) -> None:
    try:
        check_marks(counted.series)
    except WireError as error:
        raise MalformedError(f"units of work that are none: {error}") from None


def _few(counted: Counted | None) -> Counted | None:
    """`UsageError` if they are too many for a message: runs that follow no rule, of a continuous exchange."""
    nbytes = 0 if counted is None else sum(len(series.runs) for series in counted.series)
    if nbytes > COUNTED_BYTES_MAX:
        raise UsageError(f"units of work in {nbytes} bytes of runs, at most {COUNTED_BYTES_MAX}")
    return counted


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
