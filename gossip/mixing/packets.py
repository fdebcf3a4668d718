"""Packets on their way between two peers that mix: those that wait for a reader, and how far their owner was read.

    owner                                       reader
    Outgoing: packets 7, 8       Offer          Incoming: has 6
              7                <--- request(6)
                                packet 7 --->   has 7
    drops 7                    <--- request(7)  (and so on; the last request only says that all came)

An owner that mixes at its own pace has one packet of a round for a reader at most, and one answer to what it received:
it sends nothing further to a reader that has not taken the last one, and a newer answer takes the place of an older.
One that mixes in step with others has at most those of the round. A packet may be gone when it is asked for, as a new
training has begun meanwhile. Then the next one is sent at once: its reader would not ask again before long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field

from gossip.arrays import Array, Layout, Packed, check_finite
from gossip.errors import MismatchError
from gossip.messages import PacketReply, PeerId
from gossip.mixing.strategy import Packet


@dataclass(frozen=True)
class Waiting:
    """A packet that was not taken yet."""

    n: int
    round: int
    packet: Packet
    answers: bool
    """It answers what was received, and does not begin a round."""
    computed: int
    """Updates that its owner had learned from when it was made."""

    def reply(self, owner: PeerId, newest: int, k: int) -> PacketReply:
        """The message that carries it."""
        payload = Packed.of(self.packet.arrays)
        return PacketReply(owner, self.n, newest, self.round, k, self.packet.scalars, payload.layout, payload)


@dataclass
class Outgoing:
    """What waits for one reader."""

    n: int = 0
    """Of the newest packet."""
    waiting: deque[Waiting] = field(default_factory=deque)
    last: Packet | None = None
    """Of those that began a round, the newest that was taken."""
    owed_k: int | None = None
    """Of a request for what had been offered and was gone when it came: the next packet answers it."""
    nbytes: int = 0
    """Of all that was sent to it, sent again or not."""

    def put(self, round: int, packet: Packet, computed: int, *, answers: bool, replaces: bool) -> None:
        """One more; with `replaces`, it takes the place of the last one of its kind."""
        if replaces:
            self.waiting = deque(each for each in self.waiting if each.answers != answers)
        self.n += 1
        self.waiting.append(Waiting(self.n, round, packet, answers, computed))

    def taken(self, n: int) -> int:
        """The reader has all up to `n`; returns how many updates were known to the newest of them, 0 for none."""
        computed = 0
        while self.waiting and self.waiting[0].n <= n:
            each = self.waiting.popleft()
            computed = each.computed
            self.last = self.last if each.answers else each.packet
        return computed


@dataclass
class Incoming:
    """How far one owner was read."""

    n: int = 0
    offered: int = 0
    """The newest packet that was offered."""
    rounds: int = 0
    """The place up to which its owner has begun rounds."""
    begun_at: float = float("-inf")
    """When we heard of the last of them."""
    k: int | None = None
    """Of the newest request."""


def open_packet(reply: PacketReply) -> Packet:
    """What the message carries."""
    assert reply.payload is not None
    return Packet(reply.payload.arrays(), reply.scalars)


def check_size(layout: Layout, nbytes_max: int) -> None:
    """Raise `MismatchError` for what is larger than any packet of this model."""
    if layout.nbytes > nbytes_max:
        raise MismatchError(f"a packet of {layout.nbytes} bytes, expected at most {nbytes_max}")


def check_packet(packet: Packet, whole: Set[str], size: int) -> None:
    """Raise `MismatchError` for numbers that are not finite, or if one of the arrays `whole` has another size."""
    check_finite(packet.arrays)
    for name, array in packet.arrays.items():
        if name in whole and array.shape != (size,):
            raise MismatchError(f"{name!r} of a packet: shape {array.shape}, expected ({size},)")


def check_result(params: Array, size: int) -> None:
    """Raise `MismatchError` if what a packet led to is no replica any more."""
    if params.shape != (size,):
        raise MismatchError(f"a packet makes a replica of shape {params.shape}, expected ({size},)")
