"""Peers that this one listens to: to each a SUB, which hears its adverts, and a DEALER, which pulls and takes answers.

Each of the two connects to whoever has the peer's key, so what comes by it is the peer's own.

ZeroMQ tells when a connection broke, and makes it again by itself. A peer that stays silent all the same is not
listened for any more, but remembered: it is connected to again when it speaks.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from gossip.arrays import Bytes
from gossip.messages import Here, Message, PeerId
from gossip.wire import encode_header
from gossip.zmq.authenticator import Servers
from gossip.zmq.poller import Poller
from gossip.zmq.sockets import Endpoints
from gossip.zmq.traffic import Traffic

_EVENT = struct.Struct("=H")
"""What a message of a monitor begins with: the number of the event."""
GREETING_RETRY_S = 0.005
"""A connection that stands takes messages a moment later."""
SILENT_S = 3600.0
"""A peer whose connection broke, and of whom nothing was heard for so long, is not listened for any more. Halves that
were cut off for longer than ten minutes may be unable to merge anyway."""


@dataclass(frozen=True)
class Connection:
    """To one peer."""

    sub: zmq.Socket[bytes]
    dealer: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    """Where ZeroMQ tells that it stands, and that it broke."""

    def close(self) -> None:
        self.dealer.disable_monitor()
        self.sub.close(linger=0)
        self.dealer.close(linger=0)
        self.monitor.close(linger=0)


class Peers:
    """All connections, and how long ago those that broke were heard of."""

    def __init__(
        self,
        me: PeerId,
        servers: Servers,
        poller: Poller,
        traffic: Traffic,
        *,
        on_advert: Callable[[PeerId, list[Bytes]], None],
        on_reply: Callable[[PeerId, list[Bytes]], None],
        on_break: Callable[[PeerId], None],
    ) -> None:
        """`servers` are our own."""
        self.connections: dict[PeerId, Connection] = {}
        self.broken: dict[PeerId, float] = {}
        """Since when nothing was heard of those whose connections broke."""
        self._to_greet: set[PeerId] = set()
        """Those to whom a new connection stands, and who do not know whose it is."""
        self._addresses: dict[PeerId, Endpoints] = {}
        """Of all that were ever connected to."""
        self._me = me
        self._servers = servers
        self._poller = poller
        self._traffic = traffic
        self._on_advert = on_advert
        self._on_reply = on_reply
        self._on_break = on_break

    def __contains__(self, peer: object) -> bool:
        return peer in self.connections

    def connect(self, peer: PeerId, endpoints: Endpoints) -> None:
        """Listen to the adverts of one who is not connected to yet, and be able to pull from it."""
        self._addresses[peer] = endpoints
        sub = self._servers.open_client(zmq.SUB, endpoints.key)
        sub.subscribe(b"")
        sub.connect(endpoints.adverts)
        dealer = self._servers.open_client(zmq.DEALER, endpoints.key)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        dealer.connect(endpoints.pulls)
        self.connections[peer] = Connection(sub, dealer, monitor)
        drain = self._traffic.drain  # what comes by either is surely this peer's
        self._poller.register(sub, lambda: drain(sub, lambda frames: self._on_advert(peer, frames), peer))
        self._poller.register(dealer, lambda: drain(dealer, lambda frames: self._on_reply(peer, frames), peer))
        self._poller.register(monitor, lambda: self._drain_monitor(peer, monitor))  # after what came before it broke

    def disconnect(self, peer: PeerId) -> None:
        """Undo `connect`, but for the memory of where it was."""
        connection = self.connections.pop(peer)
        self.broken.pop(peer, None)
        self._poller.unregister(connection.sub)
        self._poller.unregister(connection.dealer)
        self._poller.unregister(connection.monitor)
        connection.close()

    def part_with(self, peer: PeerId) -> None:
        """Undo `connect` for good: it is not connected to again, whatever it says, nor let in."""
        self._servers.put_out(peer)
        if peer in self.connections:
            self.disconnect(peer)
        self._addresses.pop(peer, None)

    def hear(self, peer: PeerId) -> Endpoints | None:
        """It said something. Returns where it was, if it is to be connected to again."""
        self.broken.pop(peer, None)
        return None if peer in self.connections else self._addresses.get(peer)

    def silent(self) -> list[PeerId]:
        """Of whom nothing was heard for so long that they are not to be listened for."""
        if not self.broken:
            return []
        now = time.monotonic()
        return [peer for peer, since in self.broken.items() if now >= since + SILENT_S]

    def send(self, peer: PeerId, message: Message) -> None:
        """Send a message without blocks, if it is connected to."""
        connection = self.connections.get(peer)
        if connection is not None:
            self._traffic.send(connection.dealer, [encode_header(message)])

    @property
    def wait_s(self) -> float:
        """How soon there is somebody to greet."""
        return GREETING_RETRY_S if self._to_greet else math.inf

    def greet(self) -> None:
        """Say by each new connection whose it is: answers to what was asked by other ways come by it as well."""
        for peer in list(self._to_greet):
            connection = self.connections.get(peer)
            if connection is None or self._traffic.send(connection.dealer, [encode_header(Here(self._me))]):
                self._to_greet.discard(peer)

    def close(self) -> None:
        """Close the sockets; what is still queued is dropped."""
        for connection in self.connections.values():
            connection.close()

    def _drain_monitor(self, peer: PeerId, monitor: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            event, _ = monitor.recv_multipart()
            if _EVENT.unpack_from(event)[0] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._to_greet.add(peer)
                continue
            self.broken[peer] = time.monotonic()
            self._on_break(peer)
