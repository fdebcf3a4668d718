"""The local engine: peers are processes on this machine, partitions the items of a list. No JVM.

Each peer is a worker process, which runs the user's code, and its agent. A worker takes the next partition as soon as
it is done with one; nobody waits for anybody else.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

import cloudpickle

from gossip.errors import UsageError
from p2p import localhost
from p2p.agent_client import AgentClient, AgentSettings, start_agent
from p2p.engines import Progress
from p2p.localhost import Process
from p2p.registrar import Registrar
from p2p.task import Job, PartitionError, TaskResult, original_error, run_partition

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
WAIT_S = 0.1
"""How soon Ctrl-C is noticed while the workers train."""


class LocalEngine:
    """`peers` worker processes with an agent each."""

    address = "127.0.0.1"

    def __init__(self, peers: int) -> None:
        if peers < 1:
            raise UsageError(f"peers={peers}, expected at least 1")
        self.peers = peers
        self._agents: list[subprocess.Popen[bytes]] = []
        self._workers: list[_Worker] = []
        self._folders: list[str] = []
        self._cancelled = False

    @property
    def workers(self) -> int:
        return self.peers

    def partitions(self, data: Sequence[Any]) -> int:
        return len(data)

    def cautions(self, data: Sequence[Any]) -> Mapping[str, str]:
        return {}

    def start(self, settings: AgentSettings, registrar: Registrar, modules: Collection[str] = ()) -> None:
        if self._agents:
            return
        for index in range(self.peers):
            folder = localhost.private_folder(f"{settings.run[:12]}-{index}")
            self._folders.append(folder)
            self._agents.append(start_agent(settings, os.getpid(), folder))
            self._workers.append(_Worker(folder))
        enough = registrar.wait(
            lambda: len(registrar.by_role("peer", "worker")) >= self.peers or any(a.poll() for a in self._agents),
            START_TIMEOUT_S,
        )
        if not enough or any(agent.poll() for agent in self._agents):
            raise UsageError(f"{self.peers} agents did not start within {START_TIMEOUT_S:g} s: {self._failures()}")

    def run(self, job: Job, data: Sequence[Any], progress: Progress) -> list[TaskResult]:
        self._workers = [
            worker if worker.alive else _Worker(folder)
            for worker, folder in zip(self._workers, self._folders, strict=True)
        ]
        todo = iter([(epoch, index) for epoch in range(job.epochs) for index in range(len(data))])
        total = job.epochs * len(data)
        results: list[TaskResult] = []
        errors: list[BaseException] = []
        lock = threading.Lock()
        self._cancelled = False
        parcel = cloudpickle.dumps(job)

        def feed(worker: _Worker) -> None:
            try:
                worker.send(parcel)
                while True:
                    with lock:
                        task = None if errors or self._cancelled else next(todo, None)
                    if task is None:
                        return
                    result = worker.train(*task, data[task[1]])
                    with lock:
                        results.append(result)
            except BaseException as error:  # noqa: BLE001 - raised again by the main thread
                with lock:
                    errors.append(error)

        threads = [threading.Thread(target=feed, args=(worker,), daemon=True) for worker in self._workers]
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
            raise
        if errors:
            raise errors[0]
        return results

    def cancel(self) -> None:
        self._cancelled = True

    def stop(self) -> None:
        self._end_workers()
        for agent in self._agents:
            try:
                agent.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._agents.clear()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end()

    def _failures(self) -> str:
        texts = []
        for folder in self._folders:
            path = os.path.join(folder, "failed")
            if os.path.exists(path):
                with open(path) as file:
                    texts.append(file.read())
        return "; ".join(texts) or "see their messages above"


class _Worker:
    """A worker process, seen from the driver program: one message out, one back."""

    def __init__(self, folder: str) -> None:
        self._connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from p2p.engines.local import main; main()", str(theirs.fileno()), folder],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, parcel: bytes) -> None:
        try:
            self._connection.send_bytes(parcel)
        except OSError:
            raise self._gone("before it got its work") from None

    def train(self, epoch: int, partition: int, rows: Any) -> TaskResult:
        self.send(cloudpickle.dumps((epoch, partition, rows)))
        try:
            kind, value = cloudpickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise self._gone(f"in partition {partition}, epoch {epoch}") from None
        if kind == "error":
            raise original_error(value) or RuntimeError(value)
        assert isinstance(value, TaskResult)
        return value

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()

    def _gone(self, when: str) -> RuntimeError:
        code = self._process.wait()
        return RuntimeError(f"the worker process {self._process.pid} ended {when} with exit code {code}")


def main() -> None:
    """A worker process: train what comes in until the driver program is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver program ends us
    localhost.leave_with(Process(os.getppid()))
    connection, folder = Connection(int(sys.argv[1])), sys.argv[2]
    agent: AgentClient | None = None
    job: Job | None = None
    while True:
        try:
            message = cloudpickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(message, Job):
            job = message
            continue
        assert job is not None
        epoch, partition, rows = message
        try:
            agent = agent or AgentClient(folder)
            source: Any = rows() if callable(rows) else rows
            answer: tuple[str, Any] = ("result", run_partition(job, agent, epoch, partition, source))
        except PartitionError as error:
            answer = ("error", str(error))
        except Exception as error:  # noqa: BLE001 - raised again in the driver program
            answer = ("error", str(PartitionError.of(error, epoch, partition)))
        connection.send_bytes(cloudpickle.dumps(answer))
