"""A worker's connection to its master, over a network that fails."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist
from p2p.server.messages import Address
from p2p.sessions.master import MasterSession

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]


class Proxy:
    """Between workers and their master. It ends the first connection when so much of it has passed, and drops what it
    was about to pass on."""

    def __init__(self, endpoint: str, after_bytes: int, drops: str) -> None:
        """`drops` what "asked", or what "answered"."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._master = host, int(port)
        self._after_bytes = after_bytes
        self._drops = drops
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.broken = 0
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(self._master)
            for source, target, way in ((here, there, "asked"), (there, here, "answered")):
                threading.Thread(target=self._pass_on, args=(source, target, way), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if way == self._drops and not self.broken and passed > self._after_bytes:
                    self.broken += 1
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    return {"w": np.full(3, float(sum(rows)))}


@pytest.mark.parametrize("drops", ["asked", "answered"])
def test_what_a_broken_connection_has_lost_is_asked_again(monkeypatch: pytest.MonkeyPatch, drops: str) -> None:
    """And counts once."""
    proxies: list[Proxy] = []
    address = MasterSession._address

    def through_proxy(session: MasterSession, *arguments: Any) -> Address:
        found = address(session, *arguments)
        proxies.append(Proxy(found.endpoint, 8000, drops))
        return replace(found, endpoint=proxies[0].endpoint)

    monkeypatch.setattr(MasterSession, "_address", through_proxy)
    model = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=1) as dd:
        report = dd.train([list(range(100))], gradient, chunk_rows=1)
    for proxy in proxies:
        proxy.close()
    assert [proxy.broken for proxy in proxies] == [1]
    assert model["w"].tolist() == [4950.0] * 3
    assert report.updates == 100
