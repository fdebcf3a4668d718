"""The discipline of mixing: an agent whose peer averages its replica with those of its neighbors.

    task: delta -> Computed -> MixPeer: state -> (in a turn of the loop, when nobody reads) -> replica -> next task

The state is the peer's, in this process; the replica in shared memory is written anew from it, at most once a turn.
A task gets its answer when the round that has its update is over and in the replica: so the next gradient is computed
where the strategy's paper computes it. The peer knows how many tasks train, and its neighbors wait for their updates.

The driver program's agent takes no part: it keeps the arrays that a training begins with, for peers that join.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import numpy as np

from gossip.arrays import Payload
from gossip.errors import UsageError
from gossip.events import Event, Initialized, Joined, Resumed, Settling, Tasked
from gossip.identity import RESUMED
from gossip.marks import NO_UNITS, Counted
from gossip.membership import Detection
from gossip.messages import PeerId, Unit
from gossip.mixing import Strategy
from gossip.mixing.course import ERA
from gossip.mixing.neighbors import Plan
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.topology import Topology
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import Endpoints
from p2p.agent.client import START_TIMEOUT_S
from p2p.agent.discipline import House, Spans
from p2p.agent.registrar_messages import Figures, Listed, MixFigures
from p2p.agent.sketch import Sketch
from p2p.agent.submissions import Submission, Submissions

IDLE_S = 0.5
"""One turn of the loop."""
RETRY_S = 0.001
"""How soon to try again when the replica is being read."""
DONOR_TIMEOUT_S = 10.0
"""For the replica of one that may have died; then another is asked."""
PACKETS_BYTES_MAX = 32 << 20
"""Memory for packets that are being received: as many at a time as fit, at least one."""


def pack_strategy(strategy: Strategy[Any], build: Callable[[int], Topology]) -> str:
    """The strategy and its topologies, for agents: they are values of this run's own driver program."""
    return base64.b64encode(cloudpickle.dumps((strategy, build))).decode()


class Mixing:
    """A `MixPeer` on sockets, and the runtime's host."""

    def __init__(self, house: House, mixing: str) -> None:
        self.house = house
        strategy, build = cloudpickle.loads(base64.b64decode(mixing))
        settings = MixSettings(
            pulls_max=max(1, PACKETS_BYTES_MAX // max(1, house.layout.nbytes)), detection=Detection()
        )
        chance = np.random.default_rng(int(house.me, 16))
        self.peer = MixPeer(house.me, house.layout, Plan(build, strategy), chance, settings)
        self.runtime = Runtime(
            self.peer, self, Segments(), address=house.address, keys=house.keys, checks=house.settings.checks
        )
        self.submissions = Submissions(self.runtime)
        self._training: set[socket.socket] = set()
        """The connections of tasks that train."""
        self._newest: Payload | None = None
        """What the replica is to be, and is not yet."""
        self._sketch = Sketch(self.peer.mixer.flat.size, house.settings.run)

    # ------------------------------------------------------------------------------------------------- the agent's

    def load(self, counted: Counted = NO_UNITS) -> None:
        self.runtime.happen(Initialized(self.house.replica, counted))
        self._write()

    def enter(self, members: Sequence[Listed], level: bool) -> None:
        """Level, begin as the driver program's agent says; else from a peer that trains, whichever answers."""
        donors = [member for member in members if member.role == "peer" and member.answers]
        for donor in [] if level else donors:
            try:
                state = self.house.fetch(donor, DONOR_TIMEOUT_S)
            except UsageError:
                continue
            break
        else:
            state = self.house.fetch(members[0], START_TIMEOUT_S)
        # what the donor has computed itself is its own, and not told to anybody
        resumed = state.marks.get(RESUMED, ())
        self.load(Counted(state.closed, sum(series.size for series in resumed), resumed))

    def join(self, member: Listed) -> None:
        if self.house.settings.role == member.role == "peer":
            peer = member.peer
            self.runtime.connect(peer, Endpoints(member.adverts, member.pulls, member.key, member.pid))
            self.runtime.happen(Joined(peer))

    def resume(self, era: int, wait_s: float | None) -> None:
        self._tell(Resumed(era, wait_s))

    def settle(self, era: int, rounds: int) -> None:
        self._tell(Settling(era, rounds))

    def _tell(self, event: Event) -> None:
        if self.house.settings.role == "peer":  # the driver program's agent takes no part
            self.runtime.happen(event)

    def begins(self, connection: socket.socket) -> None:
        self._training.add(connection)
        self.runtime.happen(Tasked(len(self._training)))

    def ends(self, connection: socket.socket) -> None:
        if connection in self._training:
            self._training.discard(connection)
            self.runtime.happen(Tasked(len(self._training)))

    @property
    def trouble(self) -> str | None:
        return self.peer.trouble

    def turn(self) -> float:
        self._write()
        return RETRY_S if self._newest is not None else IDLE_S

    def has_settled(self, submission: Submission) -> bool:
        self._write()
        return self.peer.settled >= submission.number and self._newest is None

    def knows(self, unit: Unit) -> bool:
        return self.peer.identities.knows(unit)

    def furthest(self, epoch: int, partition: int) -> int:
        return self.peer.identities.furthest(epoch, partition)

    def counted(self) -> Counted | None:
        return self.peer.identities.counted()

    def spans(self, epoch: int) -> Spans:
        return self.peer.identities.spans(epoch)

    def departed(self) -> list[PeerId]:
        return self.peer.departed

    def figures(self, asked: bool) -> Figures:
        peer = self.peer
        mixing = MixFigures(
            taken=peer.figures.taken,
            received=peer.figures.received,
            late=peer.figures.late,
            given_up=peer.figures.given_up,
            rounds=peer.rounds,
            era=peer.place // ERA,
            era_rounds=peer.place % ERA,
            trouble=peer.trouble,
            weight=float(peer.weight),
            edges={self.house.names.get(to, to): outgoing.nbytes for to, outgoing in peer.mailbox.outgoing.items()},
            sketch=self._sketch.of(peer.params()) if asked and peer.ready else None,
        )
        return Figures(published=peer.figures.computed, refused=peer.figures.refused, mixing=mixing)

    def hang_up(self, connection: socket.socket) -> None:
        self.ends(connection)

    def _write(self) -> None:
        """The replica as the peer wants it, unless somebody reads it now."""
        if self._newest is not None and self.house.replica.acquire():
            try:
                self.house.replica.replace(self._newest)
                self.house.replica.merged = self.peer.figures.computed + self.peer.figures.received
            finally:
                self.house.replica.release()
            self._newest = None

    # ----------------------------------------------------------------------------------------- the runtime's host

    def acquire(self, event: Event) -> bool:
        """Always: events change the state, and the replica follows when it can."""
        self.submissions.begin(event)
        return True

    def release(self) -> None:
        self.submissions.end()

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        raise AssertionError("a peer that mixes delivers nothing")

    def adopt(self, payload: Payload) -> None:
        self._newest = payload

    def gated(self, unit: Unit) -> None:
        self.submissions.known()

    def state(self) -> Payload:
        if self.house.settings.role == "observer":  # the driver program writes to it between trainings
            return self.house.replica
        return self.peer.replica()

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        self._write()
        self.house.drained([self.house.names.get(peer, peer) for peer in missing])

    def warn(self, text: str) -> None:
        self.house.warn(text)

    def put_out(self, peer: PeerId, why: str) -> None:
        self.house.warn(f"peer {self.house.names.get(peer, peer)} is put out: {why}")
