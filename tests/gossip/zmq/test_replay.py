"""Traffic that somebody recorded, played again to the same peer and to one of a later run: it changes nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossip.events import Joined
from gossip.zmq.sockets import Endpoints, Keys

pytestmark = pytest.mark.sockets

UPDATE = {"w": np.ones(3)}


class Recorder:
    """A TCP proxy that keeps what clients say, by connection."""

    def __init__(self, endpoint: str) -> None:
        self.target = int(endpoint.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.said: list[bytearray] = []
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self.said.append(bytearray())
                self._sockets += [client, server]
                for source, sink, kept in ((client, server, self.said[-1]), (server, client, None)):
                    threading.Thread(target=self._pass_on, args=(source, sink, kept), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, kept: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if kept is not None:
                    kept += data
                sink.sendall(data)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def recorded(swarm: Any) -> Iterator[tuple[Any, Any, list[Recorder]]]:
    """Two peers of which the second hears the first through recorders, and has merged three updates."""
    one, two = (swarm.add("", keys=Keys.generate()) for _ in range(2))
    ends = one.runtime.endpoints
    recorders = [Recorder(ends.adverts), Recorder(ends.pulls)]
    two.runtime.connect(one.me, replace(ends, adverts=recorders[0].endpoint, pulls=recorders[1].endpoint))
    two.runtime.happen(Joined(one.me))
    one.runtime.connect(two.me, two.runtime.endpoints)
    one.runtime.happen(Joined(two.me))
    for _ in range(3):
        one.publish(UPDATE)
        assert swarm.turn(lambda: two.frontiers[one.me] == one.frontiers[one.me])
    yield one, two, recorders
    for recorder in recorders:
        recorder.close()


def play(swarm: Any, streams: list[bytes], ends: Endpoints) -> int:
    """Say each of these to both ports, whole and in parts; how many bytes came back beyond the greetings."""
    heard = 0
    for endpoint in (ends.adverts, ends.pulls):
        for stream in streams:
            for part in (stream, stream[: len(stream) // 2], stream[64:]):
                with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))) as again:
                    again.settimeout(0.02)
                    with contextlib.suppress(OSError):
                        again.sendall(part)
                    give_up, count = time.monotonic() + 0.3, 0
                    with contextlib.suppress(ConnectionError):
                        while time.monotonic() < give_up:
                            swarm.turn_for(0.01)
                            with contextlib.suppress(TimeoutError):
                                count += len(again.recv(65536))
                    heard = max(heard, count)
    return heard


GREETING_BYTES, WELCOME_BYTES = 64, 170
"""What a server says before it knows anything of who connects, and its answer to a HELLO that it can open: a cookie,
under a key of that handshake."""


def test_what_was_recorded_says_nothing_when_it_is_played_again(swarm: Any, recorded: Any) -> None:
    """The stream has a valid HELLO, and what follows it is under keys of the connection that was recorded."""
    one, two, recorders = recorded
    streams = [bytes(said) for recorder in recorders for said in recorder.said]
    assert all(len(stream) > 400 for stream in streams), "greeting, HELLO, INITIATE and messages"
    figures = replace(one.runtime.figures)
    frontiers = dict(one.frontiers)
    routes = dict(one.runtime._outgoing._routes)
    heard = play(swarm, streams, one.runtime.endpoints)
    assert heard <= GREETING_BYTES + WELCOME_BYTES
    assert one.frontiers == frontiers
    assert one.runtime.figures.malformed == figures.malformed
    assert one.runtime._outgoing._routes == routes
    one.publish(UPDATE)
    assert swarm.turn(lambda: two.frontiers[one.me] == 4)
    np.testing.assert_array_equal(two.arrays()["w"], 4 * UPDATE["w"])


def test_what_was_recorded_in_an_earlier_run_is_not_even_welcome(swarm: Any, recorded: Any) -> None:
    _, _, recorders = recorded
    streams = [bytes(said) for recorder in recorders for said in recorder.said]
    later = swarm.add("", keys=Keys.generate())
    assert play(swarm, streams, later.runtime.endpoints) <= GREETING_BYTES
    assert later.runtime.figures.bytes_in == 0
