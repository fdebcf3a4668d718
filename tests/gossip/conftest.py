"""What the tests of this folder share: real peers in one thread."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zmq

from gossip.arrays import Arrays, Packed, Payload
from gossip.events import Computed, Event, Exhausted, Initialized, Joined, Started
from gossip.lanes.peer import Peer, Settings
from gossip.messages import PeerId, Unit
from gossip.mixing.neighbors import Plan
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.story import Witness
from gossip.trace import Observe
from gossip.updates import merge
from gossip.updates.stamps import RowStamps
from gossip.zmq import same_host
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import fingerprint

Witness.always_checks = True


class MemoryHost:
    """The owner of a replica in memory."""

    def __init__(self, initial: Arrays) -> None:
        self.replica = Packed.of(initial)
        self.missing: tuple[PeerId, ...] | None = None
        self.warnings: list[str] = []
        self.out: dict[PeerId, str] = {}
        """Who was put out, and why."""
        self.gates: list[Unit] = []
        self.is_read = False
        """Somebody reads the replica: nothing may be merged."""

    def acquire(self, event: Event) -> bool:
        return not self.is_read

    def release(self) -> None:
        pass

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        merge(self.replica.layout, self.replica.buffer, RowStamps(self.replica.layout), payload)

    def state(self) -> Payload:
        return self.replica

    def adopt(self, payload: Payload) -> None:
        self.replica = Packed(self.replica.layout, bytearray(payload.read(0, payload.layout.nbytes)))

    def gated(self, unit: Unit) -> None:
        self.gates.append(unit)

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        self.missing = missing

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def put_out(self, peer: PeerId, why: str) -> None:
        self.out[peer] = why


@dataclass
class Node:
    """A peer on real sockets."""

    runtime: Runtime
    host: MemoryHost

    @property
    def me(self) -> PeerId:
        return self.runtime.peer.me

    @property
    def frontiers(self) -> dict[PeerId, int]:
        return self.runtime.peer.replicator.frontiers()

    def arrays(self) -> dict[str, Any]:
        return self.host.replica.arrays()

    def publish(self, update: Arrays) -> None:
        self.runtime.happen(Computed(Packed.of(update)))

    def exhaust(self, timeout_s: float = 30.0) -> None:
        self.runtime.happen(Exhausted(timeout_s))


class Swarm:
    """Peers on real sockets whose loops are turned by hand, one after the other, in this thread."""

    FAST = Settings(advert_period_s=0.05, advert_gap_s=0.002)

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._rogues: list[zmq.Socket[bytes]] = []
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        """For rogues."""

    def add(
        self,
        name: str,
        initial: Arrays | None = None,
        *,
        settings: Settings = FAST,
        any_layout: bool = False,
        observe: Observe | None = None,
        **options: Any,
    ) -> Node:
        """A peer that has keys has the name of its key."""
        if "keys" in options:
            name = fingerprint(options["keys"].public)
        host = MemoryHost(initial if initial is not None else {"w": np.zeros(3)})
        peer = Peer(PeerId(name), None if any_layout else host.replica.layout, settings)
        node = Node(Runtime(peer, host, Segments(), observe=observe, **options), host)
        node.runtime.happen(Started({}))
        self.nodes.append(node)
        return node

    def add_mixer(
        self,
        name: str,
        initial: Arrays,
        plan: Plan,
        *,
        seed: int = 0,
        settings: MixSettings | None = None,
        observe: Observe | None = None,
    ) -> Node:
        host = MemoryHost(initial)
        peer = MixPeer(PeerId(name), host.replica.layout, plan, np.random.default_rng(seed), settings)
        node = Node(Runtime(peer, host, Segments(), observe=observe), host)
        node.runtime.happen(Initialized(host.replica))
        self.nodes.append(node)
        return node

    def link(self) -> None:
        """Let everybody read everybody."""
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.runtime.connect(other.me, other.runtime.endpoints)
                    node.runtime.happen(Joined(other.me))

    def turn(self, until: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Turn all loops until something is true; whether it became so in time."""
        give_up = time.monotonic() + timeout_s
        while not until():
            if time.monotonic() > give_up:
                return False
            for node in self.nodes:
                node.runtime.poll(0.001)
        return True

    def turn_for(self, seconds: float) -> None:
        self.turn(lambda: False, seconds)

    def rogue(self, kind: int, name: str | None = None) -> zmq.Socket[bytes]:
        """A socket that is not ours."""
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        if name is not None:
            socket.setsockopt(zmq.ROUTING_ID, name.encode())
        self._rogues.append(socket)  # a socket that nobody refers to is closed
        return socket

    def close(self) -> None:
        for node in self.nodes:
            node.runtime.close()
        self.context.destroy(linger=0)


@pytest.fixture
def swarm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Swarm]:
    own = f"\0deepdist-{os.getpid()}-".encode()  # other tests on this machine have peers of the same names
    monkeypatch.setattr(same_host, "_address", lambda peer: own + peer.encode())
    swarm = Swarm()
    yield swarm
    swarm.close()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that are driven by hand are checked after each event, as drivers do it."""

    def checking(handle: Callable[..., Any]) -> Callable[..., Any]:
        def handle_and_check(peer: Any, event: Event, now: float) -> Any:
            effects = handle(peer, event, now)
            peer.check()
            return effects

        return handle_and_check

    for kind in (Peer, MixPeer):
        monkeypatch.setattr(kind, "handle", checking(kind.handle))


@pytest.fixture
def over_all_cores() -> Iterator[Callable[..., list[Any]]]:
    """Calls a function with each of many values, on as many processes as there are cores."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        yield lambda function, values: pool.map(function, values, chunksize=10)
