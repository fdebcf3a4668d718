"""Starting the agent of an executor, and talking to it from a task or from the driver program.

ensure_agent     in a task: the first one of an executor starts the agent, under a lock; all connect to it
AgentClient      the connection: the replica's shared memory, and updates handed over
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from gossip.arrays import Array, Arrays, ArraySpec, Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from gossip.trust.norms import NormMax
from p2p.agent import local_socket, requests
from p2p.agent.ports import Left
from p2p.agent.registrar_messages import Role
from p2p.agent.replica import RESIDENT_BYTES_MAX, Replica
from p2p.agent.requests import (
    Begins,
    Done,
    Ends,
    Furthest,
    Hello,
    Known,
    Knows,
    Publish,
    Published,
    Reached,
    Refused,
    Remainder,
    Request,
    Said,
    Welcome,
)

log = logging.getLogger("p2p")

START_TIMEOUT_S = 60.0
"""An agent is up in 0.3 s on an idle machine; a loaded one may take long to import numpy."""

MALLOC_KEPT_BYTES = 32 << 20
"""What an agent's heap may keep for the next blocks and updates: as much as those on their way on a few links. A single
one that is larger is given back at once; glibc takes no more for that."""

STOPPED_MAX_S = 30.0
"""An agent that stands still by a signal (SIGSTOP) for so long, while somebody waits for it, is ended: then the task is
tried again with another. Who stops one for a moment has it back."""
LOOK_S = 1.0
"""How often who waits for an agent looks whether it stands still."""

LEAVE_SIGNALS = {signal.SIGTERM, signal.SIGHUP}
"""With these an agent is asked to leave. It is started with them blocked, and takes them from when it can."""
STORY_SIGNAL = signal.SIGUSR1
"""With this an agent is asked to write down what happened last; blocked at its start as well."""
CHECK_VARIABLE = "DEEPDIST_CHECK"
"""In the environment of the driver program: 1 has all agents check their state after each event."""

HAND_OVERS_MAX = 3
"""Files of one task for updates that are still read; more come and go in a hurry."""


A = TypeVar("A", bound=Said)


class AgentSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent is told at its start, as JSON on its standard input."""

    run: str
    """Of the training session: agents of another one are strangers."""
    role: Role
    registrar: str
    """Where the driver program's registrar listens."""
    layout: Layout
    registrar_key: str | None = None
    """The public half of the registrar's CURVE key; None, for tests, where nobody else can connect: then no agent has a
    key."""
    token: str | None = None
    """What all agents of the run have and nobody else: they show it to the registrar, and prove over links to have it.
    """
    anchor: int = 0
    """The process it lives and dies with; 0 until `ensure_agent` or `start_agent` fills it in."""
    segments_folder: str | None = None
    mixing: str | None = None
    """What `p2p.agent.mixing.pack_strategy` makes of the strategy and its topology; None for lanes."""
    kinds: str | None = None
    """What `p2p.codec.packed` makes of kinds of updates that agents do not know by themselves; None if there are none.
    """
    links: bool = True
    """Agents of one machine hand each other files; False: they exchange bytes over ZeroMQ, as those of two do."""
    update_norm_max: NormMax = None
    """See `gossip.trust.norms.Limits`."""
    adopts: bool = False
    """Of the driver program's agent: another one was there before it, so it begins with a living peer's replica."""
    secret: str = ""
    """The secret half of its own key, where who starts it has to know its name before it speaks; empty: it draws one.
    """
    checks: bool = field(default_factory=lambda: os.environ.get(CHECK_VARIABLE, "") not in ("", "0"))
    """It looks after each event whether the state of its peer is sound, and fails with its story if not."""


def read_settings(told: bytes) -> AgentSettings:
    """Those that somebody was told by `start_agent`. `UsageError` if they are none; the text says where."""
    try:
        return msgspec.json.decode(told, type=AgentSettings)
    except ValueError as error:  # msgspec's are ValueErrors
        raise UsageError(f"malformed settings of an agent: {error}") from None


def start_agent(settings: AgentSettings, anchor: int, folder: str) -> subprocess.Popen[bytes]:
    """Start an agent for `anchor` by exec, never by fork: a ZeroMQ context does not survive a fork."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # numpy's threads would only take cores and memory from the tasks
    environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    # glibc would give the memory of every block back, and have it again with a fault per page: half of an exchange
    environment.update(dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(MALLOC_KEPT_BYTES)))
    # until it can leave in order it hears of no end: what ends its anchor's whole group, as Ctrl-C does, would leave
    # its folder behind
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {*LEAVE_SIGNALS, STORY_SIGNAL, signal.SIGINT})
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", "from p2p.agent.process import main; main()", folder],
            stdin=subprocess.PIPE,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(replace(settings, anchor=anchor)))
    process.stdin.close()
    return process


def ensure_agent(settings: AgentSettings, anchor: int, segments_folder: str | None = None) -> AgentClient:
    """The agent of this executor, started by whichever task comes first.

    It lives and dies with the process `anchor`, which all tasks of the executor name.
    """
    settings = replace(settings, segments_folder=segments_folder)
    folder = local_socket.private_folder(f"{settings.run[:12]}-{anchor}")
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = os.path.join(folder, "agent.sock")
        if os.path.exists(path) and not _listens(path):
            os.unlink(path)  # that agent was killed: a new one adopts a replica from the others
        if not os.path.exists(path) and not os.path.exists(os.path.join(folder, "failed")):
            process = start_agent(settings, anchor, folder)
            try:
                return AgentClient(folder, process=process)
            finally:
                process.returncode = 0  # it outlives this worker: nobody here waits for it
        return AgentClient(folder)


def failure(folder: str) -> str | None:
    """Why the agent in `folder` could not start, in its own words; None if it left none."""
    try:
        with open(os.path.join(folder, "failed")) as file:
            return file.read()
    except FileNotFoundError:
        return None


def _listens(path: str) -> bool:
    """Whether somebody is behind the socket file."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


class AgentGoneError(UsageError):
    """The agent hung up, and its replica is gone: no fault of the user's code. Another may take its place."""


@dataclass(frozen=True)
class HandOverFile:
    """A packed update in an open file, behind a replica's header."""

    layout: Layout
    descriptor: int


class UpdateFile(Replica):
    """Where a task writes whole arrays. Until it begins to, a large one takes no memory of its process."""

    def arrays(self) -> dict[str, Array]:
        self.enter()
        return super().arrays()


class AgentClient:
    """A task's, or the driver program's, connection to the agent in `folder`."""

    def __init__(
        self, folder: str, timeout_s: float = START_TIMEOUT_S, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Connect, waiting for an agent that is starting. `UsageError` with its own words if it could not start.

        `process` is the agent's, where it is this process's child: when it ends, nobody waits any longer.
        """
        self.folder = folder
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connect(time.monotonic() + timeout_s, timeout_s, process)
            self._process = local_socket.process_behind(self._connection)
            self.about, (descriptor,) = self.ask(Hello(), Welcome)
        except BaseException:
            self._connection.close()
            raise
        self.layout = self.about.layout
        self.replica = Replica(self.layout, descriptor)
        self._hand_overs: list[Replica] = []
        """Files to write updates to. The first that nobody reads any more is the next to be written to."""
        self._hand_over: Replica | None = None
        """The one that is being written to."""
        self._file: Replica | None = None

    def _connect(self, give_up: float, timeout_s: float, process: subprocess.Popen[bytes] | None) -> None:
        while True:
            ended = process is not None and process.poll() is not None  # before the look at what it may have left
            try:
                self._connection.connect(os.path.join(self.folder, "agent.sock"))
                return
            except ConnectionRefusedError:  # an agent gets its name there when it listens
                raise AgentGoneError(f"the agent on {socket.gethostname()} is gone, and its replica with it") from None
            except OSError:
                words = failure(self.folder)
                if words is not None:
                    raise UsageError(f"the agent on {socket.gethostname()} did not start: {words}") from None
                if process is not None and ended:
                    raise UsageError(
                        f"the agent on {socket.gethostname()} ended with exit code {process.returncode} while it "
                        "started: see its last words in the stderr of this program, above"
                    ) from None
                if time.monotonic() > give_up:
                    raise UsageError(
                        f"the agent on {socket.gethostname()} did not start within {timeout_s:g} s: "
                        "see the executor's stderr"
                    ) from None
                time.sleep(0.02)

    def _wait(self) -> None:
        """Until there is an answer: for any time, as long as the agent is not stopped."""
        answers = select.poll()
        answers.register(self._connection, select.POLLIN)
        stopped_since = None
        while not answers.poll(LOOK_S * 1e3):
            if self._process is None or not self._process.stopped:
                stopped_since = None
                continue
            stopped_since = stopped_since or time.monotonic()
            if time.monotonic() - stopped_since > STOPPED_MAX_S:
                log.warning("agent %d stood still (SIGSTOP) for %g s, and is ended", self._process.pid, STOPPED_MAX_S)
                os.kill(self._process.pid, signal.SIGKILL)
                return

    def ask(self, request: Request, expected: type[A], descriptors: tuple[int, ...] = ()) -> tuple[A, list[int]]:
        """Send a request and wait for its answer; with it come open files, which the caller closes.

        `UsageError` if the agent says no; `AgentGoneError` if it is gone.
        """
        try:
            requests.send(self._connection, request, descriptors)
            self._wait()
            answer, files = requests.receive_answer(self._connection)
        except (EOFError, OSError) as error:
            raise AgentGoneError(
                f"the agent on {socket.gethostname()} is gone, and its replica with it ({error}): see its last words "
                "in the stderr of this executor, or of the driver program"
            ) from error
        if isinstance(answer, expected):
            return answer, files
        requests.close(files)
        raise UsageError(answer.why if isinstance(answer, Refused) else f"{request} was answered with {answer}")

    def pack(self, arrays: Arrays) -> HandOverFile:
        """Arrays of any layout, written where the agent can read them; the same place every time."""
        layout = Layout.of(arrays)
        if self._file is None or self._file.layout.nbytes < layout.nbytes:
            if self._file is not None:
                self._file.close()
            room = ArraySpec("room", "|u1", (layout.nbytes + layout.nbytes // 4,))
            self._file = Replica(Layout((room,)))
        for name, view in layout.views(self._file.buffer).items():
            view[...] = arrays[name]
        return HandOverFile(layout, self._file.descriptor)

    def hand_over(self) -> Replica:
        """A packed buffer of the model's layout to write an update to; the same one until it is published.

        What was published is lent: the agent and its readers may go on reading it where it is. So there are a few.
        """
        if self._hand_over is None:
            free = [file for file in self._hand_overs if is_free(file)]
            self._hand_over = free[0] if free else UpdateFile(self.layout)
            if not free:
                self._hand_overs.append(self._hand_over)
            spare = free[1:] if self.layout.nbytes > RESIDENT_BYTES_MAX else []
            for file in [*spare, *self._hand_overs[:-HAND_OVERS_MAX]]:
                self._hand_overs.remove(file)
                file.close()  # its memory goes with its last reader
        return self._hand_over

    @property
    def alive(self) -> bool:
        """The agent has not hung up."""
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def knows(self, unit: tuple[int, int, int]) -> bool:
        """Some attempt of this unit has been published, here or elsewhere."""
        return self.ask(Knows(Unit(*unit)), Known)[0].known

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that has been published, here or elsewhere; -1 if none was."""
        return self.ask(Furthest(epoch, partition), Reached)[0].chunk

    def publish(
        self,
        update: Replica | HandOverFile,
        merged_at: int = 0,
        staleness: int | None = None,
        unit: tuple[int, int, int] | None = None,
        attempt: int = 0,
        left: Left | None = None,
    ) -> bool:
        """Hand an update over; returns when it is in the agent's lane and replica. False if its unit was there before.

        `merged_at` is the replica's `merged` when the model was copied that the update was computed from; it tells how
        stale the update is. Who knows better says `staleness`. `unit` and `attempt` are the update's logical identity.
        `left`: see `p2p.agent.ports.Neighbor`.
        """
        request = Publish(
            layout=update.layout,
            merged_at=merged_at,
            staleness=staleness,
            unit=None if unit is None else Unit(*unit),
            attempt=attempt,
            lent=update is self._hand_over,
            left=None if left is None else Remainder(left.follows),
        )
        if request.lent:
            assert self._hand_over is not None
            self._hand_over.leave()
            self._hand_over = None
        elif self._file is not None:
            self._file.leave()
        if left is None or left.arrays is None:
            return self.ask(request, Published, (update.descriptor,))[0].new
        file = Replica(Layout.of(left.arrays))
        try:
            for name, view in file.arrays().items():
                view[...] = left.arrays[name]
            del view  # which would keep the file's memory
            request = replace(request, left=Remainder(left.follows, file.layout))
            return self.ask(request, Published, (update.descriptor, file.descriptor))[0].new
        finally:
            file.close()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within, this task trains a partition. Where agents mix, their neighbors wait for its updates; others are not
        told, so that nobody waits for their answer."""
        if not self.about.mixes:
            yield
            return
        self.ask(Begins(), Done)
        try:
            yield
        finally:
            with suppress(AgentGoneError):  # whoever trains hears of that otherwise
                self.ask(Ends(), Done)

    def interrupt(self) -> None:
        """Have whoever waits in `ask` get an error. From any thread."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the agent know that this task is gone, and give the shared memory back."""
        self._connection.close()
        self.replica.close()
        for file in (*self._hand_overs, self._file):
            if file is not None:
                file.close()


def is_free(file: Replica) -> bool:
    """Nobody reads the update that it holds any more."""
    if not file.acquire():
        return False
    file.release()
    return True
