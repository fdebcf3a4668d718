"""The discipline of replication: an agent whose peer has lanes. Every update reaches every peer, exactly once.

A `peer` publishes and merges everything. The `observer` in the driver program merges everything, and publishes only
what the user wrote into the model between two trainings.
"""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import Sequence

from gossip.arrays import Payload
from gossip.events import Event, Joined, Started
from gossip.identity import RESUMED
from gossip.lanes.peer import Peer, Settings
from gossip.marks import NO_UNITS, Counted
from gossip.membership import Detection
from gossip.messages import PeerId, Unit
from gossip.trust.norms import Limits
from gossip.zmq.runtime import Runtime
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import Endpoints
from p2p.agent.client import START_TIMEOUT_S
from p2p.agent.discipline import House, Spans
from p2p.agent.registrar_messages import Against, Figures, LaneFigures, Listed
from p2p.agent.submissions import Submission, Submissions

PAYLOADS_BYTES_MAX = 16 << 20
"""Memory for payloads that are being received: as many at a time as fit, at least one."""
SEGMENTS_MEMORY_BYTES_MAX = 16 << 20
"""What the own log may hold in memory; the rest is in a temporary file."""
SEGMENTS_BYTES_MAX = 4 << 30
"""What the own log may hold altogether."""
OWN_ADVERT_GAP_S = 0.005
"""What is learned here is told of sooner than what was merged: eight peers that publish every 22 ms learned of it
too late otherwise (docs/ALGORITHMS.md)."""
IDLE_S = 0.5
"""One turn of the loop."""

PARTNERS = {
    "peer": ("peer", "observer"),
    "observer": ("peer",),
}
"""By role: those whose lanes an agent reads, and who read its own."""


def lane_settings(house: House) -> Settings:
    """Those of a peer that merges what it publishes, and what others do."""
    payload_bytes = max(1, house.layout.nbytes)
    return Settings(
        advert_own_gap_s=OWN_ADVERT_GAP_S,
        pulls_max=max(1, PAYLOADS_BYTES_MAX // payload_bytes),
        detection=Detection(),
        segments_max=min(Settings.segments_max, max(8, SEGMENTS_BYTES_MAX // payload_bytes)),
        kinds=house.replica.kinds,
        limits=Limits(house.settings.update_norm_max, watches=house.settings.role == "observer"),
    )


def held_against(peer: Peer) -> Against:
    """What a peer holds against others."""
    named = peer.conduct.norms.named(peer.replicator.origins)
    return Against(
        refused={str(lane): count for lane, count in peer.conduct.refused.items()},
        absurd={str(lane): (each.updates, each.ratio) for lane, each in named.items()},
        put_out={str(lane): why for lane, why in peer.roster.out.items()},
    )


class Lanes:
    """A `Peer` on sockets, and the runtime's host: all that anybody publishes is in the replica, once."""

    trouble: str | None = None

    def __init__(self, house: House) -> None:
        self.house = house
        settings = lane_settings(house)
        self.peer = Peer(house.me, house.layout, settings, random.Random(house.me))
        segments = Segments(
            SEGMENTS_MEMORY_BYTES_MAX, house.settings.segments_folder, model=house.layout, kinds=settings.kinds
        )
        self.runtime = Runtime(
            self.peer,
            self,
            segments,
            address=house.address,
            keys=house.keys,
            secret=house.settings.token,
            links=house.settings.links,
            checks=house.settings.checks,
        )
        self.submissions = Submissions(self.runtime)

    @property
    def merged(self) -> int:
        """Updates in the replica, as tasks count them: of all lanes."""
        return sum(self.peer.replicator.frontiers().values())

    # ------------------------------------------------------------------------------------------------- the agent's

    def load(self, counted: Counted = NO_UNITS) -> None:
        marks = {RESUMED: counted.series} if counted.series else {}
        self.runtime.happen(Started({}, closed=counted.closed, units=counted.units, marks=marks))

    def enter(self, members: Sequence[Listed], level: bool) -> None:
        if level:
            state = self.house.fetch(members[0], START_TIMEOUT_S)
            self.runtime.happen(Started(state.frontiers, closed=state.closed, units=state.units, marks=state.marks))
        else:
            self.runtime.happen(Started({}, ready=False))

    def join(self, member: Listed) -> None:
        if member.role in PARTNERS[self.house.settings.role]:
            peer = member.peer
            self.runtime.connect(peer, Endpoints(member.adverts, member.pulls, member.key, member.pid))
            self.runtime.happen(Joined(peer, level=member.level, exempt=member.role == "observer"))

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

    def has_settled(self, submission: Submission) -> bool:
        """It is in the lane, or does not come there."""
        return submission.outcome is not None

    def knows(self, unit: Unit) -> bool:
        return self.peer.identities.knows(unit)

    def furthest(self, epoch: int, partition: int) -> int:
        return self.peer.identities.furthest(epoch, partition)

    def counted(self) -> Counted | None:
        return self.peer.identities.counted()

    def spans(self, epoch: int) -> Spans:
        return self.peer.identities.spans(epoch)

    def departed(self) -> list[PeerId]:
        return [peer for peer, member in self.peer.members.items() if member.departed_at is not None]

    def figures(self, asked: bool) -> Figures:
        peer = self.peer
        lanes = LaneFigures(
            frontiers={str(lane): n for lane, n in peer.replicator.frontiers().items()},
            units=peer.identities.units,
            withdrawn=peer.units.withdrawn,
            adoptions=peer.adopter.done,
            left_out=peer.conduct.left_out,
            against=held_against(peer),
        )
        return Figures(published=peer.replicator.n, refused=peer.refused, lanes=lanes)

    def hang_up(self, connection: socket.socket) -> None:
        """A task leaves nothing here."""

    # ----------------------------------------------------------------------------------------- the runtime's host

    def acquire(self, event: Event) -> bool:
        if not self.house.replica.acquire():
            return False
        self.submissions.begin(event)
        return True

    def release(self) -> None:
        self.submissions.end()
        self.house.replica.merged = self.merged
        self.house.replica.release()

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        self.house.replica.add(payload)

    def adopt(self, payload: Payload) -> None:
        self.house.replica.replace(payload)

    def gated(self, unit: Unit) -> None:
        self.submissions.known()

    def state(self) -> Payload:
        return self.house.replica

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        self.house.drained([self.house.names.get(peer, peer) for peer in missing])

    def warn(self, text: str) -> None:
        self.house.warn(text)

    def put_out(self, peer: PeerId, why: str) -> None:
        """An agent that the others have put out ends: its tasks are tried again beside another one."""
        if peer == self.peer.me:
            self.house.warn(f"the other peers have put this one out: {why}")
            signal.raise_signal(signal.SIGTERM)
        else:
            self.house.warn(f"peer {self.house.names.get(peer, peer)} is put out: {why}")
