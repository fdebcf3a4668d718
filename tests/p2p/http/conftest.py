"""A server of a master with a training in memory: no agent and no process, but real sockets on loopback."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.http.connection import Limits
from p2p.http.server import Server
from p2p.http.settings import Master, checked
from p2p.http.tensors import packed

TIMEOUT_S = 60.0
TENSORS = "application/x-safetensors"


class Training:
    """What the face needs of a coordinator: `submit`, `snapshot`, `version` and `error`."""

    def __init__(self, arrays: Mapping[str, Any], descent: Callable[[Any, Any], Any] | None) -> None:
        self.model = {name: array.copy() for name, array in arrays.items()}
        self.descent = descent or self._add
        self.version = 0
        self.error: Exception | None = None
        self.updates: Any = []
        """(update, unit, worker, merged_at) of each."""
        self.closed = False
        self.units: set[Any] = set()
        self.lock = threading.Lock()

    def _add(self, model: Any, update: Any) -> None:
        for name, value in update.items():
            model[name] += value

    def submit(self, update: Any, unit: Any = None, worker: str = "", merged_at: int | None = None) -> bool:
        with self.lock:
            if self.error is not None:
                raise self.error
            if self.closed:
                raise UsageError("it is over")
            if unit is not None and unit in self.units:
                return False
            try:
                self.descent(self.model, update)
            except Exception as error:
                self.error = error
                raise
            self.units.add(unit)
            self.version += 1
            self.updates.append((update, unit, worker, merged_at))
            return True

    @contextmanager
    def snapshot(self) -> Iterator[tuple[int, Any]]:
        with self.lock:
            if self.closed:
                raise UsageError("it is over")
            yield self.version, self.model


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def told(self) -> Any:
        return json.loads(self.content)

    @property
    def why(self) -> str:
        found: str = self.told["error"]
        return found


@dataclass
class Serving:
    """A server, the model behind it, and the training that runs."""

    server: Server
    model: dict[str, Any]
    training: Training | None = None
    refreshed: list[int] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.address.rpartition(":")
        return host.strip("[]"), int(port)

    def train(self, descent: Callable[[Any, Any], Any] | None = None) -> Training:
        """From now on a training runs."""
        self.training = Training(self.model, descent)
        self.server.face.gate.strict = descent is None
        self.server.face.gate.start(self.training)  # type: ignore[arg-type]
        return self.training

    def end(self) -> None:
        assert self.training is not None
        self.server.face.gate.stop()
        with self.training.lock:
            self.training.closed = True

    def raw(self, content: bytes) -> Answer:
        """Send these bytes on a connection of their own; `ConnectionError` if it is closed without an answer."""
        with socket.create_connection(self.address, TIMEOUT_S) as sock:
            try:
                sock.sendall(content)
            except OSError:
                pass  # it is closed, and may have said why
            return received(sock, content.split(b" ", 1)[0].decode("latin-1"))

    def received(self, sock: socket.socket) -> Answer:
        """The next answer."""
        return received(sock)

    def ask(
        self, method: str, target: str, body: bytes | bytearray | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        lines = {"Host": self.server.address, **(headers or {})}
        if body is not None and "Transfer-Encoding" not in lines:
            lines.setdefault("Content-Length", str(len(body)))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return self.raw(head.encode("latin-1") + b"Connection: close\r\n\r\n" + bytes(body or b""))

    def post(self, body: Any, query: str = "", **headers: str) -> Answer:
        content = packed(body) if isinstance(body, dict) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", f"/update{query}", content, {"Content-Type": TENSORS, **named})


def received(sock: socket.socket, method: str = "GET") -> Answer:
    """The next answer; `ConnectionError` if the connection is closed before."""
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return Answer(response.status, response.headers, response.read())


Serve = Callable[..., Serving]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(arrays, limits=..., **settings)`: a server that listens on loopback, until the test ends."""
    opened: list[Server] = []

    def start(arrays: dict[str, Any] | None = None, limits: Limits | None = None, **settings: Any) -> Serving:
        model = (
            {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.zeros(2, np.int64)}
            if arrays is None
            else arrays
        )
        settings.setdefault("token", False)  # what is not about tokens asks for none
        chosen = checked(replace(Master("127.0.0.1:0"), **settings), None, "master")
        assert chosen is not None
        serving = Serving(None, model)  # type: ignore[arg-type]
        serving.server = Server(chosen, Model(model), lambda: serving.refreshed.append(1), limits)
        serving.server.open()
        opened.append(serving.server)
        return serving

    yield start
    for server in opened:
        server.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("deepdist-master")]
    assert left == []
