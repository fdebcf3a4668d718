"""The processes of a training on this machine: workers and shards, in a folder of their sockets."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

from p2p.agent import local_socket
from p2p.lbfgs.shard_process import SHARD
from p2p.lbfgs.worker_process import WORKER

Role = Literal["worker", "shard"]
PROGRAMS: dict[Role, str] = {"worker": WORKER, "shard": SHARD}
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Seat:
    """Where a process is, and another one after it."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


class Crew:
    """Processes by their seats. Each has a name of its own, also in a seat that another one had."""

    def __init__(self) -> None:
        self.folder = local_socket.private_folder(f"lbfgs-{secrets.token_hex(6)}")
        self._processes: dict[str, tuple[Seat, subprocess.Popen[bytes]]] = {}
        self._begun = 0

    def begin(self, seat: Seat) -> str:
        """Start a process; returns its name."""
        name = f"{seat.role}-{seat.index}-{self._begun}"
        self._begun += 1
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment.setdefault("PYTHONHASHSEED", "0")  # a set of rows has the same order in each process
        if seat.role == "shard":  # sums of vectors are bound by memory
            environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[seat.role], name, self.folder, str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        self._processes[name] = seat, process
        return name

    def endpoint(self, name: str) -> str:
        """Where a process, or the driver program ("driver"), listens."""
        return f"ipc://{self.folder}/{name}"

    def gone(self) -> dict[str, tuple[Seat, str]]:
        """Those that have ended since this was asked last, by name, and how."""
        ended = {
            name: (seat, process) for name, (seat, process) in self._processes.items() if process.poll() is not None
        }
        for name in ended:
            del self._processes[name]
        return {name: (seat, _words(seat, process)) for name, (seat, process) in ended.items()}

    def stop(self) -> None:
        """End all processes."""
        for _, process in self._processes.values():
            process.terminate()
        for _, process in self._processes.values():
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _words(seat: Seat, process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return f"the process {process.pid} of {seat} ended {how}"
