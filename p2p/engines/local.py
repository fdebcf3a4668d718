"""The local engine: peers are processes on this machine, partitions the items of a list. No JVM.

Each peer is a seat: a worker process, which runs the user's code, and its agent. A seat takes the next partition as
soon as it is done with one; no seat waits for another.

    a worker ends       -> another one in its seat tries the partition again
    an agent ends       -> another one takes its place, which adopts a replica in flight; then the same
    user code raises    -> the training ends, with that error
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from gossip.errors import UsageError
from p2p import chance, parcel
from p2p.agent import local_socket
from p2p.agent.client import AgentClient, AgentGoneError, AgentSettings, failure, start_agent
from p2p.agent.local_socket import Process
from p2p.driver.registrar import Registrar
from p2p.engines import Progress
from p2p.standby.process import Settings, start_standby
from p2p.worker.errors import PartitionError, told
from p2p.worker.job import Job, TaskResult
from p2p.worker.task import run_partition

log = logging.getLogger("p2p")

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
WAIT_S = 0.1
"""How soon Ctrl-C is noticed while the workers train."""
LOOK_S = 0.02
"""How soon it is noticed that an agent is there."""
TRIES_MAX = 4
"""Of one partition, as Spark's spark.task.maxFailures."""


class LocalEngine:
    """`peers` worker processes with an agent each."""

    address = "127.0.0.1"

    def __init__(self, peers: int) -> None:
        if peers < 1:
            raise UsageError(f"peers={peers}, expected at least 1")
        self.peers = peers
        self._seats: list[_Seat] = []
        self._agents: list[_SeatWithAgent] = []
        """The same, where peers have agents."""
        self._ending = threading.Event()
        """Of the training that runs: nobody is to start a process any more."""
        self._standbys: list[subprocess.Popen[bytes]] = []
        self._cancelled = False

    @property
    def workers(self) -> int:
        return self.peers

    def partitions(self, data: Sequence[Any]) -> int:
        return len(data)

    def cautions(self, data: Sequence[Any]) -> Mapping[str, str]:
        return {}

    def start(self, settings: AgentSettings | None, registrar: Registrar | None, modules: Collection[str] = ()) -> None:
        if settings is None or registrar is None:
            while len(self._seats) < self.peers:
                self._seats.append(_Seat())
                self._seats[-1].begin()
            return
        while len(self._agents) < self.peers:
            self._agents.append(_SeatWithAgent(len(self._agents), settings, registrar))
            self._seats.append(self._agents[-1])
            self._agents[-1].begin()  # whoever is interrupted here finds it where it will be ended
        living = {seat.agent.pid for seat in self._agents if seat.has_agent}
        registrar.forget({member.peer for member in registrar.by_role("peer") if member.pid not in living})
        for seat in self._agents:
            if not seat.has_agent:
                seat.replace_agent()

        def all_there() -> bool:
            there = {member.pid for member in registrar.by_role("peer")}
            return all(seat.agent.pid in there for seat in self._agents)

        registrar.wait(lambda: all_there() or not all(seat.has_agent for seat in self._agents), START_TIMEOUT_S)
        if not all_there():
            words = "; ".join(filter(None, (seat.failure() for seat in self._agents))) or "see their messages above"
            raise UsageError(f"{self.peers} agents did not start within {START_TIMEOUT_S:g} s: {words}")

    def start_standby(self, settings: Settings) -> Callable[[], bool]:
        """Start another master, a process on this machine; what is returned says whether that is still there."""
        process = start_standby(settings, os.getpid())
        self._standbys.append(process)
        return lambda: process.poll() is None

    def without_task(self, tasks: int) -> Collection[int]:
        return {seat.agent.pid for seat in self._agents[tasks:]}

    def run(self, job: Job, data: Sequence[Any], progress: Progress) -> list[TaskResult]:
        todo = ((epoch, index) for epoch in range(job.epochs) for index in range(len(data)))
        total = job.epochs * len(data)
        results: list[TaskResult] = []
        errors: list[BaseException] = []
        lock = threading.Lock()
        self._cancelled = False
        self._ending.clear()
        sent = parcel.dumps(job)

        def feed(seat: _Seat, task: tuple[int, int] | None) -> None:
            try:
                while task is not None:
                    result = seat.train(job, sent, *task, data[task[1]], self._ending)
                    with lock:
                        results.append(result)
                        task = None if errors or self._cancelled else next(todo, None)
            except BaseException as error:  # noqa: BLE001 - raised again by the main thread
                with lock:
                    errors.append(error)

        # the first tasks go to the first seats, so that it is known before who gets none
        threads = [threading.Thread(target=feed, args=(seat, next(todo, None)), daemon=True) for seat in self._seats]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(WAIT_S)
                    progress(len(results), total)
                    if errors or self._cancelled:
                        self._end_workers()
        except BaseException:
            self._end_workers()
            for thread in threads:
                thread.join(STOP_TIMEOUT_S)
            raise
        if errors and not (self._cancelled and isinstance(errors[0], WorkerGoneError | AgentGoneError)):
            raise errors[0]
        for seat in self._agents:
            seat.tell_if_gone()
        return results

    def cancel(self) -> None:
        self._cancelled = True

    def stop(self) -> None:
        self._end_workers()
        for seat in self._agents:
            seat.ask_agent()
        for seat in self._agents:
            seat.end_agent(STOP_TIMEOUT_S)
        self._seats.clear()
        self._agents.clear()
        for process in self._standbys:
            process.kill()  # what they had is in the driver program by now
            process.wait()
        self._standbys.clear()

    def _end_workers(self) -> None:
        self._ending.set()
        for seat in self._seats:
            seat.end_worker()


class _Seat:
    """A worker, and those that take its place."""

    def __init__(self) -> None:
        self._worker: _Worker | None = None
        self.folder = ""
        """Where its agent meets its tasks, if it has one."""

    def begin(self) -> None:
        """Start the worker."""
        self._begin_worker()

    def train(
        self, job: Job, sent: bytes, epoch: int, partition: int, rows: Any, ending: threading.Event
    ) -> TaskResult:
        """Train a partition, again if need be. `sent` is the job, ready to be sent."""
        for attempt in range(TRIES_MAX):
            try:
                self._make_ready(ending)
                assert self._worker is not None
                return self._worker.train(sent, self.folder, epoch, partition, attempt, rows)
            except (WorkerGoneError, AgentGoneError) as error:
                if isinstance(error, AgentGoneError):
                    self._lose_agent()
                if ending.is_set() or attempt + 1 == TRIES_MAX:
                    if attempt > 0:
                        error.add_note(f"partition {partition}, epoch {epoch} was tried {attempt + 1} times")
                    raise
                log.warning("%s; the partition is tried again (%d of %d)", error, attempt + 2, TRIES_MAX)
        raise AssertionError("the last try returns or raises")

    def end_worker(self) -> None:
        """End the worker, whatever it is doing."""
        if self._worker is not None:
            self._worker.end()

    def _make_ready(self, ending: threading.Event) -> None:
        """Have a worker that can take a task."""
        if self._worker is None or not self._worker.alive:
            if ending.is_set():
                raise WorkerGoneError("the training is being ended")
            self._begin_worker()

    def _lose_agent(self) -> None:
        """It has hung up."""

    def _begin_worker(self) -> None:
        self.end_worker()
        self._worker = _Worker()


class _SeatWithAgent(_Seat):
    """A worker and its agent, and those that take their places."""

    def __init__(self, index: int, settings: AgentSettings, registrar: Registrar) -> None:
        self._index = index
        self._settings = settings
        self._registrar = registrar
        self._begun = 0
        """Agents, so far."""
        self._agent: subprocess.Popen[bytes] | None = None
        super().__init__()

    def begin(self) -> None:
        """Start both."""
        self._begin_agent()
        super().begin()

    @property
    def agent(self) -> subprocess.Popen[bytes]:
        """The process of its agent, once that has begun."""
        assert self._agent is not None
        return self._agent

    @property
    def has_agent(self) -> bool:
        """Its agent's process has not ended; one that is being ended is seen as such before it can be waited for."""
        return self.agent.poll() is None and Process(self.agent.pid).alive

    def failure(self) -> str | None:
        """Why its agent could not start."""
        if self.has_agent:
            return None
        return failure(self.folder) or f"an agent ended with exit code {self.agent.wait()}"

    def replace_agent(self) -> None:
        """Start another agent; the old one is gone."""
        self.end_agent(0.0)
        self._begin_agent()

    def tell_if_gone(self) -> None:
        """Nobody is to wait for an agent that has ended."""
        if not self.has_agent:
            self._registrar.lose({self.agent.pid})

    def ask_agent(self) -> None:
        """Ask the agent to leave; the registrar may not know it yet."""
        if self._agent is not None:
            self._agent.terminate()

    def end_agent(self, timeout_s: float) -> None:
        """Wait for the agent, which was asked to leave; end it if it does not."""
        if self._agent is not None:
            try:
                self._agent.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make_ready(self, ending: threading.Event) -> None:
        """Have an agent as well."""
        if not self.has_agent:
            self.tell_if_gone()
            self.replace_agent()
            self._wait_for_agent(ending)
        super()._make_ready(ending)

    def _lose_agent(self) -> None:
        self.end_agent(0.0)  # whoever hung up is no use any more
        self.tell_if_gone()

    def _begin_agent(self) -> None:
        self.folder = local_socket.private_folder(f"{self._settings.run[:12]}-{self._index}-{self._begun}")
        self._begun += 1
        self._agent = start_agent(self._settings, os.getpid(), self.folder)

    def _wait_for_agent(self, ending: threading.Event) -> None:
        """Until it has adopted a replica and lets tasks in."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while not os.path.exists(os.path.join(self.folder, "agent.sock")):
            if not self.has_agent or time.monotonic() > give_up:
                words = self.failure() or f"it did not let tasks in within {START_TIMEOUT_S:g} s"
                raise UsageError(f"no agent could take the place of one that is gone: {words}")
            if ending.wait(LOOK_S):
                raise AgentGoneError("the training is being ended")


WORKER = "from p2p.engines.local import main; main()"
"""What a worker process runs, with two arguments: its end of the pipe, and the driver program's process."""


class WorkerGoneError(RuntimeError):
    """A worker process has ended."""


class _Worker:
    """A worker process, seen from the driver program: one message out, one back.

    What comes back is unpickled as it comes: the pipe's other end is held by our own child alone.
    """

    def __init__(self) -> None:
        self._job = b""
        """What it was sent last."""
        self._connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment.setdefault("PYTHONHASHSEED", "0")  # a set of rows has the same order when it is tried again
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until it passes it by
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def train(self, job: bytes, folder: str, epoch: int, partition: int, attempt: int, rows: Any) -> TaskResult:
        """Have it train a partition with the agent in `folder`; what the user's code raises is raised here."""
        task = pickle.dumps((folder, epoch, partition, attempt, parcel.dumps(rows)))
        try:
            if self._job is not job:
                self._connection.send_bytes(pickle.dumps(job))
                self._job = job
            self._connection.send_bytes(task)
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._gone(f"in partition {partition}, epoch {epoch}") from None
        if isinstance(answer, bytes):
            raise told(answer)
        assert isinstance(answer, TaskResult)
        return answer

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()

    def _gone(self, when: str) -> WorkerGoneError:
        code = self._process.wait()
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return WorkerGoneError(f"the worker process {self._process.pid} ended {when} {how}")


# ------------------------------------------------------------------------------------------------------ on a worker


def main() -> None:
    """A worker process: train what comes in until the driver program is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver program ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    local_socket.leave_with(Process(int(sys.argv[2])))  # the parent by now may be another, if that one is gone
    connection = Connection(int(sys.argv[1]))
    trainer = _Trainer()
    while True:
        try:
            message = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(message, bytes):
            trainer.take(message)
        else:
            answer = trainer.answer(*message)
            with contextlib.suppress(OSError):  # of a driver program that is gone we hear soon
                connection.send_bytes(pickle.dumps(answer))


class _Trainer:
    """What a worker keeps from task to task."""

    def __init__(self) -> None:
        self._sent = b""
        self._job: Job | None = None
        self._agent: AgentClient | None = None

    def take(self, sent: bytes) -> None:
        """The next tasks are of this job."""
        self._sent, self._job = sent, None

    def answer(self, folder: str, epoch: int, partition: int, attempt: int, rows: bytes) -> TaskResult | bytes:
        """Train; errors come out pickled in a `PartitionError`, also those of opening what was sent."""
        try:
            self._job = self._job or parcel.loads(self._sent)
            source = parcel.loads(rows)
            chance.seed(self._job.seed, self._job.epochs_before + epoch, partition)
            source = source() if callable(source) else source
            if self._job.master is not None:
                return run_partition(self._job, None, epoch, partition, source, attempt)
            agent = self._agent_in(folder)
            with agent.training():
                return run_partition(self._job, agent, epoch, partition, source, attempt)
        except PartitionError as error:
            return error.pickled
        except BaseException as error:  # noqa: BLE001 - raised again in the driver program
            return PartitionError.of(error, epoch, partition).pickled

    def _agent_in(self, folder: str) -> AgentClient:
        if self._agent is None or self._agent.folder != folder:
            agent, self._agent = self._agent, None
            if agent is not None:
                agent.close()
            self._agent = AgentClient(folder)
        return self._agent
