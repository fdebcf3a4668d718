"""The agent: one process per executor that owns the replica (shared memory) and the sockets.

    tasks of this executor --- Unix socket --->  agent  <--- ZeroMQ --->  the other agents
                           <-- shared memory --         <--- addresses --- registrar (driver program)

It runs no user code but, where agents mix, a strategy of the user's own, and with a codec of the user's own the kinds
of its updates: an exception, a slow `descent` or an
interpreter lock held for seconds cannot stop the sockets. It lives as long as its *anchor*: on Spark the daemon that
forks the Python workers of one executor, elsewhere the driver program. It ignores Ctrl-C, which is the driver program's
to handle.

What it does with updates is its discipline's (`p2p.agent.discipline`), which has the peer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from gossip.errors import GossipError, UsageError, ran_out_of_files
from gossip.events import Closed, Exhausted, Leaving
from gossip.messages import PeerId, Unit
from gossip.updates import KINDS
from gossip.updates.table import Kinds
from gossip.zmq.runtime import Keys, open_socket
from gossip.zmq.segments import FilePayload, LentFile
from p2p import open_files
from p2p.agent import local_socket
from p2p.agent.client import LEAVE_SIGNALS, START_TIMEOUT_S, AgentSettings
from p2p.agent.discipline import Discipline, House
from p2p.agent.hub import Hub
from p2p.agent.lanes import Lanes
from p2p.agent.local_socket import Json, Process
from p2p.agent.replica import HEADER_BYTES, Replica, shortage
from p2p.agent.submissions import Outcome, Submission
from p2p.agent.worker_lane import WorkerLane
from p2p.row_order import taken_apart

log = logging.getLogger("p2p.agent")

DRIVER_ROLES = ("observer", "hub")
"""Of the driver program's own agent, by mode."""
ON_LANES: dict[str, Callable[[House], Discipline]] = {
    "peer": Lanes,
    "observer": Lanes,
    "hub": Hub,
    "worker": WorkerLane,
}
"""By role: the discipline of an agent that does not mix."""
STATUS_PERIOD_S = 0.5
ACCEPT_RETRY_S = 0.5
"""How soon to let the next task in when no descriptor was left."""
STALENESS_SAMPLES_MAX = 10_000
"""The newest so many updates make up the staleness figures."""


@dataclass
class Waiting:
    """A task that waits for an answer."""

    connection: socket.socket | None
    """None: nobody does."""
    descriptors: list[int]
    submission: Submission


class Agent:
    """The process itself."""

    def __init__(self, settings: AgentSettings, folder: str) -> None:
        self.settings = settings
        self.folder = folder
        self.layout = local_socket.layout_from_json(settings.layout)
        self.me = PeerId(settings.peer or secrets.token_hex(16))
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._shortage = shortage(self.layout.nbytes)
        self.replica = Replica(self.layout, kinds=_kinds(settings.kinds))
        self.anchor = Process(settings.anchor)
        self._epochs_closed = 0
        """All units of earlier epochs are published: a task that still computes one is a copy that Spark is ending."""
        self._has_drained = False
        """The epochs so far are closed in the next turn."""
        self._drain_s: float | None = None
        """A request to drain that waits for the updates that were handed over before it."""
        self.staleness: deque[int] = deque(maxlen=STALENESS_SAMPLES_MAX)
        self._context = zmq.Context()
        self._keys = Keys(*settings.keys) if settings.keys is not None else None
        self._registrar = open_socket(self._context, zmq.DEALER, self._keys)
        self._registrar.connect(settings.registrar)
        address = _address_towards(settings.registrar)
        self._roster: dict[PeerId, str] = {}
        house = House(
            settings,
            self.me,
            self.layout,
            self.replica,
            self._context,
            self._keys,
            address,
            self._roster,
            self._on_drained,
            self._warn,
        )
        self.discipline = _discipline(house, settings)
        self.runtime = self.discipline.runtime
        self._listener = socket.socket(socket.AF_UNIX)
        self._waiting: deque[Waiting] = deque()
        self._left: dict[socket.socket, FilePayload] = {}
        """What codecs have left of the updates of workers, to be published when no more of these come."""
        self._roster_version = 0
        self._stopping = False
        self._refused: str | None = None
        self._next_status = 0.0
        self._reported_departed: list[PeerId] = []
        self._told_of_files = False

    # --------------------------------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Live until stopped or until the anchor is gone."""
        for name in LEAVE_SIGNALS:
            signal.signal(name, lambda *_: setattr(self, "_stopping", True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEAVE_SIGNALS)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._open_local_socket()
            if self._comes_later:
                self._enroll()
            self.runtime.register(self._registrar, self._on_registrar)
            while self._wanted:
                self.runtime.poll(self.discipline.turn())
                self._answer_waiting()
                self._begin_drain()
                self._close_epochs()
                self._report()
        finally:
            self._leave()

    @property
    def _comes_later(self) -> bool:
        """It begins with somebody's replica, and not with what the driver program puts into its own."""
        return self.settings.role not in DRIVER_ROLES or self.settings.adopts

    @property
    def _wanted(self) -> bool:
        """Nobody asked it to leave, and its anchor is there."""
        return not self._stopping and self.anchor.alive

    def _open_local_socket(self) -> None:
        temporary = os.path.join(self.folder, "agent.new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of one that was killed while it started
        self._listener.bind(temporary)
        self._listener.listen(64)
        if not self._comes_later:
            os.rename(temporary, os.path.join(self.folder, "agent.sock"))
        self.runtime.register(self._listener, self._on_connection)

    def _enroll(self) -> None:
        """Tell the registrar where we are, take the model's arrays from another agent, and let the tasks in."""
        self._hello()
        give_up = time.monotonic() + START_TIMEOUT_S
        while not self._roster and time.monotonic() < give_up and self._refused is None and self._wanted:
            if self._registrar.poll(200):
                self._on_registrar()
        if not self._wanted:
            return
        if self._refused is not None:
            raise UsageError(self._refused)
        if not self._roster:
            raise UsageError(
                f"the driver program's registrar at {self.settings.registrar} did not answer within "
                f"{START_TIMEOUT_S:g} s: can this host reach that address (spark.driver.host)?"
            )
        # who comes late adopts a replica first; until then there is nothing to compute from
        while not self.runtime.peer.ready and time.monotonic() < give_up and self._wanted:
            self.runtime.poll(0.1)
            self._on_registrar()
            self._report()
        if not self._wanted:
            return
        if not self.runtime.peer.ready:
            raise UsageError(f"no other agent gave its replica within {START_TIMEOUT_S:g} s: are they alive?")
        os.rename(os.path.join(self.folder, "agent.new"), os.path.join(self.folder, "agent.sock"))

    def _hello(self) -> None:
        self._to_registrar(
            op="hello",
            run=self.settings.run,
            peer=self.me,
            role=self.settings.role,
            name=self.name,
            pid=os.getpid(),
            adverts=self.runtime.endpoints.adverts,
            pulls=self.runtime.endpoints.pulls,
            shortage=self._shortage,
            adopts=self.settings.adopts,
        )

    def _leave(self) -> None:
        self._listener.close()
        for name in ("agent.sock", "agent.new", "lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))
        try:
            os.rmdir(self.folder)
        except OSError:
            pass  # the note of a failed start stays for the tasks to read
        self.runtime.happen(Leaving())
        self.runtime.close()
        self._registrar.close(linger=0)
        self._context.term()

    # ---------------------------------------------------------------------------------------------------- registrar

    def _to_registrar(self, **message: Any) -> None:
        try:
            self._registrar.send_json(message, zmq.NOBLOCK)
        except zmq.Again:
            pass  # the driver program does not listen; a status is sent again soon

    def _on_registrar(self) -> None:
        while self._registrar.poll(0):
            message: Any
            try:
                message = self._registrar.recv_json()
            except (ValueError, RecursionError) as error:
                message = error
            if isinstance(message, dict) and "op" in message:
                self._on_message(message)
            else:
                self._warn(f"a malformed message of the registrar was dropped: {message!r:.200}")

    def _on_message(self, message: Json) -> None:
        match message["op"]:
            case "roster":
                self._on_roster(message)
            case "refused":
                self._refused = message["why"]
            case "status":
                self._send_status(message["question"])
            case "begin":
                self.discipline.resume(message["era"], 0.0 if self.me in message["idle"] else message["wait_s"])
            case "settle":
                self.discipline.settle(message["era"], message["rounds"])
            case "drain":
                self._epochs_closed = message["epochs"]
                for worker in list(self._left):
                    self._publish_left(worker)
                self._drain_s = message["timeout_s"]
                self._begin_drain()
            case "stop":
                self._stopping = True

    def _on_roster(self, message: Json) -> None:
        members = sorted(message["members"], key=lambda member: member["role"] not in DRIVER_ROLES)
        if members[0]["role"] not in DRIVER_ROLES:
            return  # everybody begins from the driver program's agent, which is still starting
        for member in members:
            peer = PeerId(member["peer"])
            if peer == self.me or peer in self._roster:
                continue
            if not self._roster and self._comes_later:
                (level,) = [m["level"] for m in members if m["peer"] == self.me]
                self.discipline.enter([m for m in members if m["peer"] != self.me], level)
            self._roster[peer] = member["name"]
            self.discipline.join(member)
        self._roster_version = message["version"]
        self._send_status()

    def _report(self) -> None:
        """A status twice a second, and at once when somebody is taken for dead or comes back."""
        if time.monotonic() >= self._next_status or self.discipline.departed() != self._reported_departed:
            self._next_status = time.monotonic() + STATUS_PERIOD_S
            self._send_status()

    def _send_status(self, question: int | None = None) -> None:
        """`question`: the number of the one that this answers."""
        self._reported_departed = self.discipline.departed()
        self._to_registrar(
            op="status",
            peer=self.me,
            question=question or 0,
            roster_version=self._roster_version,
            departed=self._reported_departed,
            gated=self.runtime.gated,
            bytes_out=self.runtime.bytes_out + self.runtime.handed_out,
            bytes_in=self.runtime.bytes_in + self.runtime.handed_in,
            malformed=self.runtime.malformed,
            memory_peak_bytes=peak_memory_bytes(),
            **self.discipline.figures(question is not None),
        )

    def _begin_drain(self) -> None:
        if self._drain_s is not None and self.discipline.submissions.are_taken:
            timeout_s, self._drain_s = self._drain_s, None
            self.runtime.happen(Exhausted(timeout_s))

    def _close_epochs(self) -> None:
        """What is known of their units is not needed any more, now that everybody has them."""
        if self._has_drained:
            self._has_drained = False
            self.runtime.happen(Closed(self._epochs_closed))

    def _on_drained(self, missing: list[str]) -> None:
        self._has_drained = True
        self._send_status()
        # partitions of which updates count whose rows had different fingerprints
        spans = self.discipline.spans(0).items()
        torn = [where for where, (low, high) in spans if taken_apart(low)[0] != taken_apart(high)[0]]
        self._to_registrar(op="drained", peer=self.me, missing=missing, staleness=list(self.staleness), torn=torn)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._to_registrar(op="warning", peer=self.me, text=text)

    # -------------------------------------------------------------------------------------------------------- tasks

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if ran_out_of_files(error):
                self._has_run_out()
            return  # else it is gone again
        connection.settimeout(5.0)
        self.runtime.register(connection, lambda: self._on_task(connection))

    def _has_run_out(self) -> None:
        """Out of descriptors: tasks wait at the door until some are free."""
        self.runtime.rest(self._listener, ACCEPT_RETRY_S)
        if not self._told_of_files:
            self._told_of_files = True
            self._warn(open_files.words("tasks have to wait for their agent"))

    def _on_task(self, connection: socket.socket) -> None:
        try:
            try:
                message, descriptors = local_socket.receive(connection)
                check_request(message, descriptors)
                self._on_local(connection, message, descriptors)
            except GossipError as error:
                local_socket.send(connection, {"error": str(error)})
        except (EOFError, OSError):
            self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        self.runtime.unregister(connection)
        connection.close()
        self.discipline.hang_up(connection)
        if connection in self._left:
            self._publish_left(connection)

    def _publish_left(self, connection: socket.socket) -> None:
        """It is of units that count already, so it is none itself."""
        payload = self._left.pop(connection)
        self._waiting.append(Waiting(None, [payload.descriptor], self.discipline.submissions.submit(payload)))
        self._answer_waiting()

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

    def _on_local(self, connection: socket.socket, message: Json, descriptors: list[int]) -> None:
        match message["op"]:
            case "hello":
                about = {
                    "layout": self.settings.layout,
                    "peer": self.me,
                    "name": self.name,
                    "pid": os.getpid(),
                    "mixes": self.settings.mixing is not None,
                }
                local_socket.send(connection, about, (self.replica.descriptor,))
            case "loaded":
                self.discipline.load()
                self._hello()
                local_socket.send(connection, {"ok": True})
            case "publish" if message["unit"] is not None and message["unit"][0] < self._epochs_closed:
                for descriptor in descriptors:
                    os.close(descriptor)
                local_socket.send(connection, {"published": False})
            case "publish":
                descriptor, *rest = descriptors
                self.staleness.append(max(0, message.get("staleness", self.replica.merged - message["merged_at"])))
                layout = local_socket.layout_from_json(message["layout"])
                payload = FilePayload(layout, descriptor, HEADER_BYTES)
                if message.get("lent"):
                    payload = borrowed(payload) or payload
                unit = None if message["unit"] is None else Unit(*message["unit"])
                submission = self.discipline.submissions.submit(payload, unit, message["attempt"])
                self._waiting.append(Waiting(connection, [*{descriptor, payload.descriptor}], submission))
                if "follows" in message:
                    self._keep_left(connection, message, rest, submission)
                self._answer_waiting()
            case "known":
                unit = Unit(*message["unit"])
                known = unit.epoch < self._epochs_closed or self.discipline.knows(unit)
                local_socket.send(connection, {"known": known})
            case "furthest":
                chunk = self.discipline.furthest(message["epoch"], message["partition"])
                local_socket.send(connection, {"chunk": chunk})
            case "take":
                self.discipline.take(connection)
            case "begins":
                self.discipline.begins(connection)
                local_socket.send(connection, {"ok": True})
            case "ends":
                self.discipline.ends(connection)
                local_socket.send(connection, {"ok": True})

    def _answer_waiting(self) -> None:
        """Answer the tasks whose updates are dealt with."""
        while self._waiting:
            trouble = self.discipline.trouble
            if trouble is None and not self.discipline.has_settled(self._waiting[0].submission):
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


def peak_memory_bytes() -> int:
    """The most memory this process has held, shared and mapped pages included."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _address_towards(endpoint: str) -> str:
    """The address of the interface that routes to `tcp://host:port` (no packet is sent)."""
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        address: str = probe.getsockname()[0]
        return address


def _discipline(house: House, settings: AgentSettings) -> Discipline:
    if settings.mixing is None:
        return ON_LANES[settings.role](house)
    from p2p.agent.mixing import Mixing  # with scipy and networkx, 40 MB that replicas in lanes do not need

    return Mixing(house, settings.mixing)


def _kinds(sent: str | None) -> Kinds:
    if sent is None:
        return KINDS
    from p2p.codec import unpacked  # with cloudpickle, which other agents do not need

    return unpacked(sent)


def main() -> None:
    """Run an agent in the folder given as argument, with `AgentSettings` on the standard input."""
    logging.basicConfig(format="deepdist agent %(process)d: %(message)s", level=logging.WARNING)
    folder = sys.argv[1]
    open_files.allow_many()
    settings = AgentSettings(**json.loads(sys.stdin.buffer.read()))  # of a starter that was killed there is nothing
    anchor = Process(settings.anchor)
    try:
        local_socket.leave_with(anchor, folder)  # also out of a call that blocks
        Agent(settings, folder).run()
    except GossipError as error:
        _note_failure(folder, str(error), anchor)
        sys.exit(1)
    except BaseException:
        _note_failure(folder, traceback.format_exc(), anchor)
        raise


def _note_failure(folder: str, text: str, anchor: Process) -> None:
    """Leave a note for the tasks that wait for this agent; where their executor is gone, leave nothing."""
    if not anchor.alive:
        shutil.rmtree(folder, ignore_errors=True)
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    note = os.path.join(folder, "failed")
    with open(f"{note}.new", "w") as file:
        file.write(text)
    os.rename(f"{note}.new", note)  # nobody reads half of it
