"""Messages to peers that listen and ask: adverts and small answers at once, bulk messages a few blocks at a time.

A bulk message is a header followed by blocks, each a ZeroMQ message of its own. The receiver grants credit: the sender
sends at most `WINDOW_BLOCKS` blocks beyond what was reported as received, so a slow reader holds a few blocks in
memory, whatever the size of the model, and no other reader waits for it. A block is read when it is sent.

A replica is copied before it is sent. Peers of the swarm always get a copy; strangers (as yet) get one as far as there
is room.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from msgspec.structs import replace

from gossip.arrays import Bytes, Payload
from gossip.errors import UsageError
from gossip.messages import Bulk, Credit, Message, PeerId, State
from gossip.wire import Body, block_count, block_span, encode_block, encode_header
from gossip.zmq.segments import FileSegment, MemorySegment
from gossip.zmq.sockets import WINDOW_BLOCKS
from gossip.zmq.traffic import Traffic

TURN_BLOCKS_MAX = 16
"""Blocks sent before the loop looks at what came in."""
STATES_MAX = 64
"""Replicas on their way at once, a few blocks each; one more takes the place of the oldest, which may be gone."""
STRANGERS_BYTES_MAX = 1 << 30
"""Copies of the replica for those who are not of the swarm (yet): what is beyond waits, and asks again. One is always
given, however large. There are `STATES_MAX` at the most."""
STRANGER_IDLE_S = 10.0
"""A stranger that takes nothing for so long is gone, and its copy is dropped. At .5 MB/s it says so every 8 s."""
ROUTES_MAX = 4096
"""Askers whose connections are remembered; beyond, who has not asked for longest has no answer until it asks again."""
FAREWELL_MS = 100
"""For the last advert to leave; only who has a reader that takes nothing waits for so long."""
STALLED_RETRY_S = 0.005
"""How soon to try again when a socket's queue is full."""


@dataclass
class Transfer:
    """A bulk message being sent."""

    to: PeerId
    message: Bulk
    body: Body
    limit: int
    """Blocks that the receiver's credit allows."""
    taken_at: float
    """When it last gave credit."""
    next: int = 0

    @property
    def is_granted(self) -> bool:
        """The next block may be sent."""
        return self.next < min(self.limit, block_count(self.body.nbytes))

    def close(self) -> None:
        """Give a copy of a replica back."""
        if isinstance(self.body.payload, FileSegment | MemorySegment):
            self.body.payload.close()


class Outgoing:
    """Adverts over the PUB, answers over the ROUTER, and at most one transfer to each receiver."""

    def __init__(
        self,
        pub: zmq.Socket[bytes],
        router: zmq.Socket[bytes],
        traffic: Traffic,
        *,
        in_swarm: Callable[[PeerId], bool],
    ) -> None:
        """Everybody is a stranger who is not `in_swarm`."""
        self.transfers: dict[PeerId, Transfer] = {}
        self._stalled: set[PeerId] = set()
        """Whose queue was full in this turn."""
        self._routes: dict[PeerId, bytes] = {}
        """The connection by which somebody asked last, in that order."""
        self._pub = pub
        self._router = router
        self._traffic = traffic
        self._in_swarm = in_swarm

    def asked(self, asker: PeerId, route: bytes) -> None:
        """Answers to it leave by this connection from now on."""
        self._routes.pop(asker, None)
        if len(self._routes) >= ROUTES_MAX:
            del self._routes[next(iter(self._routes))]
        self._routes[asker] = route

    def publish(self, header: bytes) -> None:
        """To all who subscribed; any of them may miss it."""
        self._traffic.send(self._pub, [header])

    def answer(self, to: PeerId, message: Message) -> None:
        """Send a message without blocks."""
        self._send(to, [encode_header(message)])

    def begin(self, to: PeerId, message: Bulk, payload: Payload) -> None:
        """Send a bulk message, in place of what was being sent there. A copy of a replica is closed at its end."""
        header = encode_header(replace(message, layout=payload.layout))
        if self._send(to, [header]):
            self.end(to)
            self.transfers[to] = Transfer(to, message, Body(message, payload), WINDOW_BLOCKS, time.monotonic())

    def end(self, to: PeerId) -> None:
        """Nothing more of the bulk message to this receiver."""
        transfer = self.transfers.pop(to, None)
        if transfer is not None:
            transfer.close()

    def grant(self, credit: Credit) -> None:
        """A receiver reports what it has."""
        transfer = self.transfers.get(credit.peer)
        if transfer is not None and transfer.message.k == credit.k:
            transfer.limit = max(transfer.limit, credit.blocks + WINDOW_BLOCKS)
            transfer.taken_at = time.monotonic()
            if credit.blocks >= block_count(transfer.body.nbytes):
                self.end(credit.peer)

    def has_room(self, to: PeerId, nbytes: int) -> bool:
        """For one more copy of the replica: one of the swarm takes the oldest one's place, strangers wait."""
        states = [one for one in self.transfers.values() if isinstance(one.message, State) and one.to != to]
        if self._in_swarm(to):
            ours = [one.to for one in states if self._in_swarm(one.to)]
            for oldest in ours[: max(0, len(ours) + 1 - STATES_MAX)]:
                self.end(oldest)
            return True
        strangers = [one for one in states if not self._in_swarm(one.to)]
        room = STRANGERS_BYTES_MAX - sum(one.body.nbytes for one in strangers)
        return not strangers or (len(strangers) < STATES_MAX and nbytes <= room)

    @property
    def wait_s(self) -> float:
        """How soon there is something to send: at once, a little later where all queues are full, or some day."""
        if any(self._is_sendable(transfer) for transfer in self.transfers.values()):
            return 0.0
        return STALLED_RETRY_S if self._stalled else math.inf

    def turn(self) -> None:
        """A few blocks to each receiver in turn, as far as their credit goes; what nobody takes is dropped."""
        self._send_blocks()
        self._leave_strangers()

    def close(self) -> None:
        """Close the sockets; what is still queued is dropped, but for adverts, of which the last may say farewell."""
        self._pub.close(linger=FAREWELL_MS)
        self._router.close(linger=0)
        for to in list(self.transfers):
            self.end(to)

    def _send_blocks(self) -> None:
        self._stalled.clear()
        for _ in range(TURN_BLOCKS_MAX):
            ready = [transfer for transfer in self.transfers.values() if self._is_sendable(transfer)]
            if not ready:
                return
            for transfer in ready:
                try:
                    data = transfer.body.read(*block_span(transfer.body.nbytes, transfer.next))
                except UsageError:  # the reader has moved on and the range is gone
                    self.end(transfer.to)
                    continue
                if self._send(transfer.to, [*encode_block(transfer.message.k, transfer.next, data)]):
                    transfer.next += 1
                elif transfer.to in self.transfers:
                    self._stalled.add(transfer.to)

    def _is_sendable(self, transfer: Transfer) -> bool:
        return transfer.to not in self._stalled and transfer.is_granted

    def _leave_strangers(self) -> None:
        if not self.transfers:
            return
        now = time.monotonic()
        for one in list(self.transfers.values()):
            if now >= one.taken_at + STRANGER_IDLE_S and isinstance(one.message, State) and not self._in_swarm(one.to):
                self.end(one.to)

    def _send(self, to: PeerId, frames: list[Bytes]) -> bool:
        """Whether it was queued; to a receiver that is gone, nothing more is sent."""
        route = self._routes.get(to)
        if route is not None:
            try:
                return self._traffic.send(self._router, [route, *frames])
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                del self._routes[to]
        self.end(to)
        return False
