"""The discipline of replication: an agent whose peer has lanes. Every update reaches every peer, exactly once.

Roles: a `peer` publishes and merges everything. An `observer` sits in the driver program, merges everything, and
publishes only what the user wrote into the model between two trainings.
In master mode there is one `hub`, whose lane carries the deltas, and `worker`s, whose lanes carry single updates to it.
"""

from __future__ import annotations

import os
import random
import socket
from collections import deque

from gossip.arrays import Layout, Payload
from gossip.events import Event, Joined, Received, Started
from gossip.lanes.peer import Peer, Settings
from gossip.membership import Detection
from gossip.messages import PeerId, Range, Unit
from gossip.wire import BLOCK_BYTES
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import Endpoints
from p2p.agent import local_socket
from p2p.agent.client import START_TIMEOUT_S
from p2p.agent.discipline import House, Spans
from p2p.agent.local_socket import Json
from p2p.agent.replica import anonymous_file

MASTER_ADVERT_GAP_S = 0.001
"""A worker waits for the master, which learns from adverts that there is something to take."""
PAYLOADS_BYTES_MAX = 16 << 20
"""Memory for payloads that are being received: as many at a time as fit, at least one."""
SEGMENTS_MEMORY_BYTES_MAX = 16 << 20
"""What the own log may hold in memory; the rest is in a temporary file."""
SEGMENTS_BYTES_MAX = 4 << 30
"""What the own log may hold altogether."""
QUEUE_MAX = 4
"""Updates that wait for the master's `descent`; further ones stay with their workers."""
OWN_ADVERT_GAP_S = 0.005
"""What is learned here is told of sooner than what was merged: eight peers that publish every 22 ms learned of it
too late otherwise (docs/ALGORITHMS.md)."""
OUTSTANDING_MAX = 2
"""Updates of one worker that the master has not taken yet; then the worker waits."""
IDLE_S = 0.5
"""One turn of the loop."""


class Lanes:
    """A `Peer` on sockets, and the runtime's host."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.gated_updates: set[int] = set()
        self.trouble: str | None = None
        self._replica = house.replica
        self._role = house.settings.role
        hub = self._role == "hub"
        worker = self._role == "worker"
        payload_bytes = max(1, house.layout.nbytes)
        settings = Settings(
            advert_gap_s=MASTER_ADVERT_GAP_S if hub or worker else Settings.advert_gap_s,
            advert_own_gap_s=OWN_ADVERT_GAP_S,
            pulls_max=max(1, PAYLOADS_BYTES_MAX // payload_bytes),
            coalesce=not worker,
            applies_own=not worker,
            detection=Detection(),
            segments_max=min(Settings.segments_max, max(8, SEGMENTS_BYTES_MAX // payload_bytes)),
            kinds=house.replica.kinds,
        )
        # in the star of a master nobody but the hub has a replica to give
        chance = None if hub or worker else random.Random(house.me)
        self.peer = Peer(house.me, None if hub else house.layout, settings, chance)
        segments = Segments(
            SEGMENTS_MEMORY_BYTES_MAX, house.settings.segments_folder, model=house.layout, kinds=settings.kinds
        )
        self.runtime = Runtime(
            self.peer, self, segments, address=house.address, keys=house.keys, links=house.settings.links
        )
        self._queue: deque[tuple[PeerId, Layout, int]] = deque()
        """Updates of workers, in files, until the master's descent takes them."""
        self._taker: socket.socket | None = None
        """The coordinator's connection, while it waits for an update."""
        self._in_descent = 0

    # ------------------------------------------------------------------------------------------------- the agent's

    def load(self) -> None:
        self.runtime.happen(Started({}))

    def enter(self, members: list[Json], level: bool) -> None:
        if level:
            state = self.house.fetch(members[0]["pulls"], START_TIMEOUT_S)
            self.runtime.happen(Started(state.frontiers, closed=state.closed, units=state.units))
        else:
            self.runtime.happen(Started({}, ready=False))

    def join(self, member: Json) -> None:
        reads, read = links(self._role, member["role"])
        if reads or read:
            peer = PeerId(member["peer"])
            self.runtime.connect(peer, Endpoints(member["adverts"], member["pulls"]))
            self.runtime.happen(Joined(peer, reads, read, member["level"]))

    def resume(self, era: int, wait_s: float | None) -> None:
        """Lanes never rest."""

    def settle(self, era: int, rounds: int) -> None:
        """Nor have they rounds."""

    def begins(self, connection: socket.socket) -> None:
        """Nobody waits for a task's updates."""

    def ends(self, connection: socket.socket) -> None:
        """So nobody is to be told."""

    def turn(self) -> float:
        return IDLE_S

    def has_settled(self, number: int) -> bool:
        """It is in the lane; those of a worker wait until the master keeps up."""
        if self.runtime.figures.computed < number:
            return False
        return self._role != "worker" or self._outstanding() <= OUTSTANDING_MAX

    def knows(self, unit: Unit) -> bool:
        return self.peer.identities.knows(unit)

    def furthest(self, epoch: int, partition: int) -> int:
        return self.peer.identities.furthest(epoch, partition)

    def spans(self, epoch: int) -> Spans:
        return self.peer.identities.spans(epoch)

    def departed(self) -> list[PeerId]:
        return [peer for peer, member in self.peer.members.items() if member.departed_at is not None]

    def figures(self, asked: bool) -> Json:
        replicator = self.peer.replicator
        return {
            "n": replicator.n,
            "frontiers": replicator.frontiers(),
            "units": self.peer.identities.units,
            "withdrawn": self.peer.units.withdrawn,
            "adoptions": self.peer.adopter.done,
            "refused": self.peer.refused,
            "waiting": len(self._queue) + self._in_descent,
        }

    def _outstanding(self) -> int:
        replicator = self.peer.replicator
        return replicator.n - min((r.acknowledged for r in replicator.readers.values()), default=replicator.n)

    # ----------------------------------------------------------------------------------------- the runtime's host

    def acquire(self, event: Event) -> bool:
        if self._is_for_queue(event):
            return len(self._queue) < QUEUE_MAX
        return self._replica.acquire()

    def release(self) -> None:
        frontiers = self.peer.replicator.frontiers()
        match self._role:
            case "hub":
                self._replica.merged = frontiers[self.house.me]
            case "worker":
                self._replica.merged = sum(frontiers.values()) - frontiers[self.house.me]
            case _:
                self._replica.merged = sum(frontiers.values())
        self._replica.release()

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        if self._role == "hub" and lane != self.house.me:
            self._enqueue(lane, payload)
        else:
            self._replica.add(payload)

    def adopt(self, payload: Payload) -> None:
        self._replica.replace(payload)

    def gated(self, unit: Unit) -> None:
        self.gated_updates.add(self.runtime.figures.computed)

    def state(self) -> Payload:
        return self._replica

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        self.house.drained([self.house.names.get(peer, peer) for peer in missing])

    def warn(self, text: str) -> None:
        self.house.warn(text)

    # ----------------------------------------------------------------------------------------- the hub's queue (master)

    def take(self, connection: socket.socket) -> None:
        self._in_descent = 0
        self._taker = connection
        self._serve_taker()

    def hang_up(self, connection: socket.socket) -> None:
        if self._taker is connection:
            self._taker = None

    def _is_for_queue(self, event: Event) -> bool:
        return self._role == "hub" and isinstance(event, Received) and isinstance(event.message, Range)

    def _enqueue(self, lane: PeerId, payload: Payload) -> None:
        descriptor = anonymous_file(payload.layout.nbytes)
        for start in range(0, payload.layout.nbytes, BLOCK_BYTES):
            os.pwrite(descriptor, payload.read(start, min(start + BLOCK_BYTES, payload.layout.nbytes)), start)
        self._queue.append((lane, payload.layout, descriptor))
        self._serve_taker()

    def _serve_taker(self) -> None:
        if self._taker is None or not self._queue:
            return
        lane, layout, descriptor = self._queue[0]
        message = {"lane": self.house.names.get(lane, lane), "layout": local_socket.layout_to_json(layout)}
        taker, self._taker = self._taker, None
        try:
            local_socket.send(taker, message, (descriptor,))
        except OSError:
            return  # the coordinator has gone; the next one takes it
        self._queue.popleft()
        self._in_descent = 1
        os.close(descriptor)


def links(mine: str, other: str) -> tuple[bool, bool]:
    """(the other reads my lane, I read the other's), by roles."""
    match mine, other:
        case ("peer", "peer" | "observer") | ("observer", "peer") | ("worker", "hub") | ("hub", "worker"):
            return True, True
    return False, False
