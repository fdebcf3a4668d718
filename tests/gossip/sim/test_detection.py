"""The dead are found in time: real processes on real sockets, killed, frozen, cut off and leaving."""

from __future__ import annotations

import multiprocessing
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed, Payload
from gossip.events import Event, Joined, Leaving, Started
from gossip.lanes.peer import Peer, Settings
from gossip.membership import Detection
from gossip.messages import PeerId, Unit
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import Endpoints

pytestmark = pytest.mark.sockets

LOOPBACK = "127.0.0.1"


class NoReplica:
    """The owner of a replica that nobody asks for."""

    def acquire(self, event: Event) -> bool:
        return True

    def release(self) -> None: ...

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None: ...

    def state(self) -> Payload:
        return Packed.of({"w": np.zeros(1)})

    def adopt(self, payload: Payload) -> None: ...

    def gated(self, unit: Unit) -> None: ...

    def drained(self, missing: tuple[PeerId, ...]) -> None: ...

    def warn(self, text: str) -> None: ...


def runtime(name: str, *, detection: Detection | None = None) -> Runtime:
    settings = Settings(detection=detection or Detection())
    peer = Peer(PeerId(name), None, settings, random.Random(name))
    return Runtime(peer, NoReplica(), Segments())


PATIENT = Detection(silent_s=600.0, unheard_s=1200.0, greeting_s=600.0)
"""Silence tells nothing within a test: who is found is found by its connections, or by what it said."""
TIMEOUT_S = 60.0
"""For what comes within seconds on a machine that has nothing else to do."""


def live(name: str, detection: Detection, outside: Connection) -> None:
    """One member: tells where it is, hears who the others are, and tells when all are there, who is gone, and who is
    back."""
    one = runtime(name, detection=detection)
    outside.send(one.endpoints)
    gone: dict[PeerId, bool] = {}
    leaves, complete = threading.Event(), False

    def hear() -> None:
        order = outside.recv()
        if order == "leave":
            one.happen(Leaving())
            leaves.set()
            return
        one.happen(Started({}))
        for peer, endpoints in order.items():
            one.connect(peer, endpoints)
            one.happen(Joined(peer))

    one.register(outside, hear)
    while not leaves.is_set():
        one.poll(1.0)
        if not complete and one.peer.members and all(member.ready for member in one.peer.members.values()):
            complete = True
            outside.send("complete")
        for peer, member in one.peer.members.items():
            departed_at = member.departed_at
            if (departed_at is not None) != gone.get(peer, False):
                gone[peer] = departed_at is not None
                outside.send((peer, gone[peer], time.monotonic() if departed_at is None else departed_at))
    one.close()
    outside.send(time.monotonic())


@dataclass
class Live:
    """A member in a process of its own, and what it told."""

    name: PeerId
    process: Any
    outside: Connection
    told: list[tuple[PeerId, bool, float]] = field(default_factory=list)

    def hears(self) -> Any:
        """The next thing that it tells."""
        assert self.outside.poll(TIMEOUT_S)
        return self.outside.recv()

    def listen(self) -> None:
        while self.outside.poll(0):
            self.told.append(self.outside.recv())


class Members:
    """Some of them."""

    def __init__(self, count: int, detection: Detection) -> None:
        context = multiprocessing.get_context("fork")
        self.all: dict[PeerId, Live] = {}
        for index in range(count):
            name = PeerId(f"p{index}")
            ours, theirs = context.Pipe()
            process = context.Process(target=live, args=(name, detection, theirs))
            process.start()
            self.all[name] = Live(name, process, ours)
        endpoints: dict[PeerId, Endpoints] = {name: member.hears() for name, member in self.all.items()}
        for name, member in self.all.items():
            member.outside.send({peer: where for peer, where in endpoints.items() if peer != name})
        for member in self.all.values():
            assert member.hears() == "complete"

    def others(self, name: str) -> list[Live]:
        return [member for member in self.all.values() if member.name != name]

    def know(self, about: str, gone: bool) -> list[float]:
        """When each of the others held `about` for gone or back."""
        give_up = time.monotonic() + TIMEOUT_S
        times: dict[PeerId, float] = {}
        others = self.others(about)
        while len(times) < len(others) and time.monotonic() < give_up:
            time.sleep(0.01)
            for member in others:
                member.listen()
                if member.told and member.told[-1][:2] == (about, gone):
                    times.setdefault(member.name, member.told[-1][2])
        assert set(times) == {member.name for member in others}
        return list(times.values())

    def close(self) -> None:
        for member in self.all.values():
            member.process.kill()
            member.process.join()
            member.outside.close()


@pytest.fixture
def members(request: pytest.FixtureRequest) -> Iterator[Members]:
    with closing(Members(4, request.param)) as members:
        yield members


by_word_only = pytest.mark.parametrize("members", [PATIENT], indirect=True, ids=["patient"])
by_silence = pytest.mark.parametrize("members", [Detection()], indirect=True, ids=["default"])


def signaled(members: Members, number: int) -> float:
    """Send p0 a signal; when."""
    at = time.monotonic()
    os.kill(members.all[PeerId("p0")].process.pid, number)
    return at


@by_word_only
def test_a_killed_process_is_found_by_its_connections(members: Members) -> None:
    killed_at = signaled(members, signal.SIGKILL)
    found = [at - killed_at for at in members.know("p0", gone=True)]
    print(f"killed: found after {min(found):.2f} to {max(found):.2f} s, promised 1 s")


@pytest.mark.slow
@by_silence
def test_a_frozen_process_is_found_by_its_silence_and_back_when_it_goes_on(members: Members) -> None:
    frozen_at = signaled(members, signal.SIGSTOP)
    found = [at - frozen_at for at in members.know("p0", gone=True)]
    print(f"frozen: found after {min(found):.2f} to {max(found):.2f} s, promised 4 s")
    resumed_at = signaled(members, signal.SIGCONT)
    back = [at - resumed_at for at in members.know("p0", gone=False)]
    print(f"resumed: back after {min(back):.2f} to {max(back):.2f} s")
    time.sleep(3.0)  # in which it would blame the others, which it has not heard meanwhile
    for member in members.all.values():
        member.listen()
    assert [member.told[-1][:2] for member in members.others("p0")] == [("p0", False)] * 3
    assert members.all[PeerId("p0")].told == []  # it slept itself, and blames nobody


@by_word_only
def test_one_that_leaves_is_gone_and_closes(members: Members) -> None:
    leaver = members.all[PeerId("p0")]
    left_at = time.monotonic()
    leaver.outside.send("leave")
    found = [at - left_at for at in members.know("p0", gone=True)]
    closed_after = leaver.hears() - left_at
    print(f"left: found after {min(found):.2f} to {max(found):.2f} s, closed after {closed_after:.2f} s")


# ----------------------------------------------------------------------------------------------- in this process


def turn(runtimes: list[Runtime], until: Callable[[], bool], timeout_s: float) -> bool:
    """Turn all loops until something is true; whether it became so in time."""
    give_up = time.monotonic() + timeout_s
    while not until() and time.monotonic() < give_up:
        for one in runtimes:
            one.poll(0.001)
    return until()


def departed(one: Runtime, other: Runtime) -> bool:
    return one.peer.members[other.peer.me].departed_at is not None


def link(one: Runtime, other: Runtime, endpoints: Endpoints | None = None) -> None:
    one.connect(other.peer.me, endpoints or other.endpoints)
    one.happen(Joined(other.peer.me))


@pytest.mark.slow
def test_a_farewell_is_enough_without_a_connection_that_breaks() -> None:
    deaf = replace(PATIENT, suspicion_min_s=600.0, suspicion_max_s=600.0)
    one, other = runtime("one", detection=deaf), runtime("other", detection=deaf)
    with closing(one), closing(other):
        link(one, other)
        link(other, one)
        one.happen(Started({}))
        other.happen(Started({}))
        assert turn([one, other], lambda: bool(one.peer.members[PeerId("other")].ready), TIMEOUT_S)
        other.happen(Leaving())
        assert turn([one], lambda: departed(one, other), TIMEOUT_S)


class Wire:
    """A stretch of network between a peer and an address, which can be cut."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("tcp://").split(":")
        self._target = host, int(port)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address = f"tcp://{LOOPBACK}:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._cut = threading.Event()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def cut(self) -> None:
        """Break what is connected; who connects again is let through."""
        self._cut.set()

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _carry(self) -> None:
        while not self._ends.is_set():
            readable, _, _ = select.select([self._listener, *self._pairs], [], [], 0.02)
            if self._cut.is_set():
                self._hang_up()
                self._cut.clear()
                continue
            for source in readable:
                if source is self._listener:
                    near, far = source.accept()[0], socket.create_connection(self._target)
                    self._pairs |= {near: far, far: near}
                    self.connections += 1
                elif source in self._pairs:
                    self._pass_on(source)
        self._hang_up()
        self._listener.close()

    def _pass_on(self, source: socket.socket) -> None:
        try:
            passing = source.recv(1 << 16)
            self._pairs[source].sendall(passing)
        except OSError:
            passing = b""
        if not passing:
            self._hang_up()

    def _hang_up(self) -> None:
        for end in self._pairs:
            end.close()
        self._pairs.clear()


@pytest.mark.slow
def test_a_connection_that_breaks_and_is_made_again_leaves_nobody_dead() -> None:
    one, other = runtime("one"), runtime("other")
    with (
        closing(one),
        closing(other),
        closing(Wire(other.endpoints.adverts)) as adverts,
        closing(Wire(other.endpoints.pulls)) as pulls,
    ):
        link(one, other, Endpoints(adverts.address, pulls.address))
        link(other, one)
        one.happen(Started({}))
        other.happen(Started({}))
        assert turn([one, other], lambda: bool(one.peer.members[PeerId("other")].ready), TIMEOUT_S)
        membership = one.peer.membership
        assert membership is not None
        contact = membership.contacts[PeerId("other")]
        for made, wires in enumerate(([pulls], [adverts, pulls]), 2):
            turn([one, other], lambda: False, 0.3)
            for wire in wires:
                wire.cut()
            assert turn([one, other], lambda: contact.broken, TIMEOUT_S)
            assert turn([one, other], lambda: not contact.broken, TIMEOUT_S)
            turn([one, other], lambda: False, 1.0)
            assert pulls.connections == made
            assert not departed(one, other)
            assert not departed(other, one)


def test_what_watches_connections_is_closed_with_the_runtime() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def madeof_life() -> None:
        one, others = runtime("one"), [runtime(f"other {index}") for index in range(4)]
        for other in others:
            link(one, other)
        one.happen(Started({}))
        turn([one, *others], lambda: False, 0.1)
        for each in (one, *others):
            each.close()

    madeof_life()
    files, threads = open_files(), threading.active_count()
    for _ in range(5):
        madeof_life()
    assert open_files() == files
    assert threading.active_count() == threads
