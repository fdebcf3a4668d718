"""A stranger on this machine, who knows no key of the run, at every port that a training listens on; and a member that
speaks in the names of others.

The stranger knows more than it could: the names of all peers, and the number of the run. The member knows all that a
worker of the run can find out: the keys of all processes, but the secret halves.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from gossip import wire
from gossip.arrays import Layout
from gossip.marks import Unit
from gossip.messages import (
    Advert,
    Offer,
    PacketRequest,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pull,
    Range,
    Rumor,
    Standing,
    StateRequest,
    Unpin,
)
from gossip.zmq.sockets import Keys
from p2p import DeepDist, Report
from p2p.agent import registrar_messages
from p2p.server import messages as to_master

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

PARTITIONS, CHUNKS, CALL_S = 4, 60, 0.05
KINDS = (zmq.DEALER, zmq.REQ, zmq.SUB, zmq.PUSH, zmq.PUB, zmq.ROUTER)
HALF_OPEN = 300
ENDS_S = 100.0
"""So long a training takes at most, on a busy machine."""
MEMORY_MORE_MAX = 20_000_000
LISTENS = "0A"
"""A socket's state in /proc/net/tcp."""
MODES: dict[str, dict[str, Any]] = {
    "p2p": {},
    "mix": {"discipline": "mix"},
    "master": {"mode": "master"},
    "standbys": {"mode": "master", "standbys": 2},
    "sync": {"mode": "sync"},
}


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    time.sleep(CALL_S)
    return {"w": np.full(1000, float(sum(rows)))}


def data() -> list[list[int]]:
    return [list(range(1000 * partition, 1000 * partition + CHUNKS)) for partition in range(PARTITIONS)]


class Trains:
    """One training, in a thread."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.model = {"w": np.zeros(1000)}
        self.dd = DeepDist(self.model, peers=2, progress=False, **options)
        self.report: Report | None = None
        self._thread = threading.Thread(target=self._train, daemon=True)

    def __enter__(self) -> Trains:
        self._thread.start()
        give_up = time.monotonic() + 60
        while self.dd._session.snapshot().updates < 5 and self._thread.is_alive() and time.monotonic() < give_up:
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(ENDS_S)

    def _train(self) -> None:
        with self.dd:
            self.report = self.dd.train(data(), gradient, chunk_rows=1)

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def names(self) -> list[str]:
        """Of all agents; of a training without any, one that there is not."""
        registrar = getattr(self.dd._session, "_registrar", None)
        return list(registrar.members) if registrar is not None else ["a" * 32]

    def run(self) -> str:
        return str(self.dd._session._run)  # type: ignore[attr-defined]

    def keys(self) -> dict[int, str]:
        """The public half of the key of whoever listens, by port."""
        registrar = self.dd._session._registrar  # type: ignore[attr-defined]
        found = {registrar.endpoint: registrar.key}
        for member in registrar.members.values():
            found.update({member.adverts: member.key, member.pulls: member.key})
        return {int(endpoint.rpartition(":")[2]): key for endpoint, key in found.items()}


def ports(pids: set[int]) -> set[int]:
    """On which these processes listen."""
    sockets = set()
    for pid in pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                name = os.readlink(entry.path)
            except OSError:
                continue
            if name.startswith("socket:["):
                sockets.add(name[8:-1])
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENS and fields[9] in sockets:
            found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def forged(names: list[str], run: str) -> Iterator[bytes]:
    """What would do harm if it was believed."""
    arrays = {"w": np.full(1000, 669.0)}
    for name in (*map(PeerId, names), PeerId("stranger")):
        for other in map(PeerId, names):
            dead = Rumor(about=other, standing=Standing.DEAD, incarnation=9, by=name)
            for message in (
                StateRequest(name, 1),
                Pull(name, 0, 1),
                Pull(name, 10**9, 1),
                Pull(name, 0, 1, lane=other),
                Pin(name, other, 1),
                Unpin(name, 1),
                Advert(name, 10**9, {other: 10**9}),
                Advert(name, 0, {}, rumors=(dead,)),
                Ping(name, 1, rumors=(dead,)),
                PingRequest(name, 1, other),
                Range(name, 1, 1, 1, layout=Layout.of(arrays)),
                Offer(name, 10**6),
                PacketRequest(name, 0, 1),
            ):
                yield wire.encode_header(message)
        for told in (
            registrar_messages.Status(peer=name, figures=registrar_messages.Figures(published=10**9)),
            registrar_messages.Drained(peer=name),
            registrar_messages.Warned(peer=name, text="\x1b[2J a stranger"),
            registrar_messages.Stop(),
        ):
            yield registrar_messages.encode(told)
    for asked in (
        to_master.Hello(run, "a stranger"),
        to_master.Hello("", "a stranger"),
        to_master.Where(),
        to_master.Begin(Unit(0, 0, 0)),
        to_master.Read(0, 8000),
        to_master.Dropped(Unit(0, 3, 59)),
        to_master.Ended(0, 0),
    ):
        yield to_master.encode(asked)
    yield b""
    yield b"\x80\x04cposix\nsystem\n(S'true'\ntR."
    yield os.urandom(1000)


class Stranger:
    """Its sockets, and what it was told."""

    def __init__(self, names: list[str], run: str, known: Mapping[int, str] | None = None) -> None:
        """`known`: the keys of those who listen, by port."""
        self._known = known or {}
        self._messages = list(forged(names, run))
        self._names = names
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 20_000)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._plain: list[socket.socket] = []
        self.heard: list[bytes] = []

    def visit(self, port: int) -> None:
        """Say everything to a port: with no keys, with keys of its own, and with such as it could guess."""
        for keys in (None, Keys.generate()):
            for kind in KINDS:
                self._speak(port, kind, keys)
        for number in range(HALF_OPEN // 10):
            plain = socket.create_connection(("127.0.0.1", port), 5)
            plain.setblocking(False)
            greeting = bytes.fromhex("ff00000000000000017f03004355525645") + bytes(47)
            for sent in ([], [greeting], [greeting[:20]], [os.urandom(400)], [b"GET / HTTP/1.1\r\n\r\n"])[number % 5]:
                plain.send(sent)
            self._plain.append(plain)

    def listen(self, seconds: float) -> None:
        """Hear what comes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for each in self._sockets:
                if each.type in (zmq.PUSH, zmq.PUB):
                    continue
                while each.poll(0):
                    self.heard += each.recv_multipart()
            time.sleep(0.02)

    def close(self) -> None:
        self._context.destroy(linger=0)
        for plain in self._plain:
            plain.close()

    def _speak(self, port: int, kind: int, keys: Keys | None) -> None:
        one = self._context.socket(kind)
        self._sockets.append(one)
        one.setsockopt(zmq.LINGER, 0)
        if kind in (zmq.DEALER, zmq.ROUTER):
            one.setsockopt(zmq.ROUTING_ID, self._names[0].encode())
        if kind == zmq.SUB:
            one.subscribe(b"")
        if keys is not None:
            one.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
            one.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
            one.setsockopt(zmq.CURVE_SERVERKEY, self._known.get(port, keys.public).encode())
        one.connect(f"tcp://127.0.0.1:{port}")
        if kind == zmq.SUB:
            return
        for message in self._messages[:1] if kind == zmq.REQ else self._messages:
            try:
                one.send_multipart([b"x", message] if kind == zmq.ROUTER else [message], zmq.NOBLOCK)
            except zmq.ZMQError:
                return


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Report]:
    """Reports of trainings that nobody disturbed, by mode."""
    return {}


@pytest.mark.parametrize("mode", ["p2p", *(pytest.param(each, marks=pytest.mark.long) for each in [*MODES][1:])])
def test_a_stranger_hears_nothing_and_changes_nothing(place: Any, mode: str) -> None:
    with Trains(MODES[mode]) as alone:
        pass
    with Trains(MODES[mode]) as training:
        found = ports({os.getpid(), *place.processes()})
        assert found
        stranger = Stranger(training.names(), training.run())
        try:
            for port in sorted(found):
                stranger.visit(port)
            assert training.runs
            stranger.listen(3.0)
        finally:
            give_up = time.monotonic() + ENDS_S
            while training.runs and time.monotonic() < give_up:
                stranger.listen(0.2)
            stranger.close()
    assert stranger.heard == []
    assert training.report is not None, "the training did not end"
    assert alone.report is not None
    np.testing.assert_array_equal(training.model["w"], alone.model["w"])
    if mode != "mix":
        assert training.report.updates == alone.report.updates
    before = max(peer.memory_peak_bytes for peer in alone.report.peers)
    after = max(peer.memory_peak_bytes for peer in training.report.peers if peer.role != "master")
    assert after - before < MEMORY_MORE_MAX


@pytest.mark.parametrize("mode", ["p2p", pytest.param("mix", marks=pytest.mark.long)])
def test_a_member_is_believed_in_its_own_name_only(place: Any, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """It has a key of its own, and says all that would do harm in the names of the others. Nothing comes of it; what
    it says is counted, and it may hear what every member may."""
    with Trains(MODES[mode]) as alone:
        pass
    with Trains(MODES[mode]) as training:
        known = training.keys()
        member = Stranger(training.names(), training.run(), known)
        try:
            for port in sorted(known):
                member.visit(port)
            assert training.runs
        finally:
            give_up = time.monotonic() + ENDS_S
            while training.runs and time.monotonic() < give_up:
                member.listen(0.2)
            member.close()
    assert training.report is not None, "the training did not end"
    assert alone.report is not None
    np.testing.assert_array_equal(training.model["w"], alone.model["w"])
    names = {peer.name for peer in training.report.peers}
    refused = {name for name in names if f"{name}: a malformed message was dropped: a peer speaks for" in caplog.text}
    assert refused == names
    assert "an agent speaks for" in caplog.text
    assert len(caplog.records) < 1000, "what goes on is not told each time"
    before = max(peer.memory_peak_bytes for peer in alone.report.peers)
    after = max(peer.memory_peak_bytes for peer in training.report.peers)
    assert after - before < MEMORY_MORE_MAX
