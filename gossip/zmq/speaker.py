"""What a peer says to others, by the way that suits it.

adverts                    to links and to the PUB socket
ranges                     as a file that is lent, where the reader is linked; else in blocks
states, packets            in blocks
short answers              to whoever asked
questions                  over a link, or to the socket of whom they are for
"""

from __future__ import annotations

from typing import Protocol

from gossip.arrays import Payload
from gossip.errors import TooLargeError
from gossip.messages import Ack, Message, Nack, PacketReply, PeerId, Pinned, Pull, Range, State, Unknown
from gossip.wire import encode_header
from gossip.zmq.figures import Figures
from gossip.zmq.links import Links
from gossip.zmq.outgoing import Outgoing
from gossip.zmq.peers import Peers
from gossip.zmq.segments import Segments


class Giver(Protocol):
    """Whose replica is sent."""

    def state(self) -> Payload:
        """The replica as it is now; a copy is made of it before anything else happens."""
        ...

    def warn(self, text: str) -> None:
        """A person should hear of it."""
        ...

    def put_out(self, peer: PeerId, why: str) -> None:
        """`peer`, which may be this one, does not belong to the swarm any more: a person should hear why."""
        ...


class Speaker:
    """The network of one runtime's peer."""

    def __init__(
        self, host: Giver, segments: Segments, peers: Peers, links: Links, outgoing: Outgoing, figures: Figures
    ) -> None:
        self._host = host
        self._segments = segments
        self._peers = peers
        self._links = links
        self._outgoing = outgoing
        self._figures = figures

    def send(self, to: PeerId, message: Message) -> None:
        """To one peer."""
        try:
            self._send(to, message)
        except TooLargeError as error:
            self._leave_unsaid(message, error)

    def publish(self, message: Message) -> None:
        """To all who subscribed."""
        try:
            header = encode_header(message)
            self._links.publish(header)
            self._outgoing.publish(header)
        except TooLargeError as error:
            self._leave_unsaid(message, error)

    def put_out(self, peer: PeerId, why: str) -> None:
        """Nothing more goes to this peer or comes from it, and the user hears why."""
        self._host.put_out(peer, why)
        self._outgoing.end(peer)
        self._links.drop(peer)
        self._peers.part_with(peer)

    def _send(self, to: PeerId, message: Message) -> None:
        match message:
            case Range(_, lo, hi):
                total = self._segments.sum(lo, hi)
                assert total is not None, f"the peer offered {lo}..{hi}, which it does not keep"
                if self._links.lend(to, message, total):
                    self._outgoing.end(to)
                else:
                    self._outgoing.begin(to, message, total)
            case PacketReply():
                assert message.payload is not None
                self._outgoing.begin(to, message, message.payload)
            case State():
                replica = self._host.state()
                if self._outgoing.has_room(to, replica.layout.nbytes):
                    self._outgoing.begin(to, message, self._segments.copy(replica))
            case Unknown() | Pinned() | Ack() | Nack():
                self._outgoing.answer(to, message)
            case Pull() if self._links.ask(to, message):
                pass
            case _:
                self._peers.send(to, message)

    def _leave_unsaid(self, message: Message, error: TooLargeError) -> None:
        """A swarm that large is not served, but trains on."""
        if type(message) not in self._figures.too_large:
            self._host.warn(f"a {type(message).__name__} is not sent, nor are those that follow: {error}")
        self._figures.too_large[type(message)] += 1
