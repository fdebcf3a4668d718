"""How processes of workers and shards begin: what they are told on their standard input, and with whom they end."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import zmq
from msgspec import Struct

from gossip.zmq.sockets import Keys, bind
from p2p.agent import local_socket
from p2p.agent.local_socket import Process
from p2p.lbfgs import messages
from p2p.lbfgs.messages import Here, Socket

UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""Of `ru_maxrss`: the manual of getrusage of each system says so."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a process is told."""

    name: str
    driver: str
    """Where the coordinator listens."""
    anchor: int
    """The process that it ends with."""
    folder: str = ""
    """Where it has its socket, and which it removes if its anchor is gone; empty: it listens on TCP."""
    keys: tuple[str, str] | None = None
    """(public, secret) of the run; None where nobody else can connect."""


def begin(program: str, settings: Settings, environment: Mapping[str, str], *, speaks: bool) -> subprocess.Popen[bytes]:
    """Start a process by exec. `speaks`: what it prints is shown where this process's is."""
    path = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.PIPE,
        stdout=None if speaks else subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(settings))
    process.stdin.close()
    return process


class Begun:
    """This process, as it was told: its sockets, and its end."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver program ends us
        settings = msgspec.json.decode(sys.stdin.buffer.read(), type=Settings)
        local_socket.leave_with(Process(settings.anchor), settings.folder or None)
        self.settings = settings
        self.keys = None if settings.keys is None else Keys(*settings.keys)
        self.context: zmq.Context[Socket] = zmq.Context()
        self.control = messages.socket(self.context, zmq.DEALER, settings.name.encode(), self.keys)
        self.control.connect(settings.driver)

    def listen(self) -> Socket:
        """A router for others, of which the coordinator is told where it is."""
        listening = messages.socket(self.context, zmq.ROUTER, keys=self.keys)
        if self.settings.folder:
            endpoint = f"ipc://{self.settings.folder}/{self.settings.name}"
            listening.bind(endpoint)
        else:
            endpoint = bind(listening, address_towards(self.settings.driver))
        messages.send(self.control, Here(os.getpid(), endpoint))
        return listening


def address_towards(endpoint: str) -> str:
    """The address of the interface that routes to `tcp://host:port`; no packet is sent."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        address: str = probe.getsockname()[0]
        return address


def memory_peak_bytes() -> int:
    """The memory that this process has taken at most since it began its program, in bytes; shared pages count.

    `ru_maxrss` of Linux has the peak of the process that started it, too, so /proc is asked where it is there.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT_BYTES
