"""The processes of a training on this machine: workers and shards, in a folder of their sockets."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gossip.zmq.sockets import Keys
from p2p.agent import local_socket
from p2p.lbfgs.launch import Settings, begin
from p2p.lbfgs.messages import Socket
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


class Crew(Protocol):
    """Processes by their seats. Each has a name of its own, also in a seat that another one had."""

    keys: Keys | None

    def listen(self, socket: Socket) -> None:
        """Bind the coordinator's socket."""
        ...

    def begin(self, seats: Sequence[Seat]) -> list[str]:
        """Start a process in each; returns their names."""
        ...

    def unreachable(self, name: str) -> None:
        """A message to it could not be sent."""
        ...

    def gone(self) -> dict[str, tuple[Seat, str]]:
        """Those that have ended since this was asked last, by name, and in words how."""
        ...

    def stop(self) -> None:
        """End all processes."""
        ...


class LocalCrew:
    """Child processes of the driver program."""

    keys: Keys | None = None

    def __init__(self) -> None:
        self.folder = local_socket.private_folder(f"lbfgs-{secrets.token_hex(6)}")
        self._processes: dict[str, tuple[Seat, subprocess.Popen[bytes]]] = {}
        self._begun = 0

    def listen(self, socket: Socket) -> None:
        socket.bind(self._driver)

    def begin(self, seats: Sequence[Seat]) -> list[str]:
        names = []
        for seat in seats:
            name = f"{seat.role}-{seat.index}-{self._begun}"
            self._begun += 1
            environment = {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}  # sets have one order everywhere
            if seat.role == "shard":  # sums of vectors are bound by memory
                environment.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
            settings, speaks = self.settings(name), seat.role == "worker"
            self._processes[name] = seat, begin(PROGRAMS[seat.role], settings, environment, speaks=speaks)
            names.append(name)
        return names

    def settings(self, name: str) -> Settings:
        """What a process is told."""
        return Settings(name, self._driver, os.getpid(), self.folder)

    def unreachable(self, name: str) -> None:
        """Its process has ended, or is about to."""

    def gone(self) -> dict[str, tuple[Seat, str]]:
        ended = {name: each for name, each in self._processes.items() if each[1].poll() is not None}
        for name in ended:
            del self._processes[name]
        return {name: (seat, _words(seat, process)) for name, (seat, process) in ended.items()}

    def stop(self) -> None:
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

    @property
    def _driver(self) -> str:
        return f"ipc://{self.folder}/driver"


def _words(seat: Seat, process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return f"the process {process.pid} of {seat} ended {how}"
