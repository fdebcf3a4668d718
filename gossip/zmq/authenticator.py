"""Who is behind a connection. A peer's name is the fingerprint of its CURVE key, so nobody else can have it.

CurveZMQ (ZeroMQ RFC 26) proves that a process has the secret half of the key that it shows. ZeroMQ asks an
authenticator of the same context about each key that was proved (ZAP, RFC 27); the answer goes along with everything
that the connection says from then on.
"""

from __future__ import annotations

import os

import zmq

from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.zmq.poller import Poller
from gossip.zmq.sockets import Endpoints, Keys, bind, check_address, fingerprint, open_socket

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
SOCKETS_MAX = 65_000
"""Of one peer: four for each other. libzmq's default of 1023 is enough for 255."""


class Authenticator:
    """Names those who connect to the servers of one context, and refuses some. The loop that has the servers calls
    `answer` whenever `socket` is readable; until then whoever comes waits."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Before the first server of `context` is bound."""
        self.refused: set[PeerId] = set()
        """They are not let in any more; a connection that stands is not ended."""
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)

    def answer(self) -> None:
        """Say of each key that waits whose it is."""
        while self.socket.poll(0):
            version, number, *about = self.socket.recv_multipart()
            mechanism, credentials = about[3], about[4:]
            name = fingerprint(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else None
            if version != VERSION or name is None or name in self.refused:
                self.socket.send_multipart([VERSION, number, b"400", b"refused", b"", b""])
            else:
                self.socket.send_multipart([VERSION, number, b"200", b"", name.encode(), b""])

    def close(self) -> None:
        """After the servers; who waits is refused."""
        self.socket.close()


def name_of(frame: zmq.Frame) -> PeerId:
    """Who sent it, as the authenticator named the connection it came by."""
    return PeerId(str(frame.get("User-Id")))


class Servers:
    """The two of one peer, in a context of its own: the PUB of its adverts, and the ROUTER that serves pulls."""

    def __init__(self, me: PeerId, address: str, keys: Keys | None, poller: Poller) -> None:
        """Bind to free ports of `address`. `keys` are those of `me`; without, everybody is who he says to be."""
        check_address(address, keys)
        if keys is not None and me != fingerprint(keys.public):
            raise UsageError(f"peer {me}: expected the name of its key, {fingerprint(keys.public)}")
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._authenticator = None if keys is None else Authenticator(self._context)
        if self._authenticator is not None:
            poller.register(self._authenticator.socket, self._authenticator.answer)
        self.pub, self.router = (
            open_socket(self._context, kind, keys, server=True, named=True) for kind in (zmq.PUB, zmq.ROUTER)
        )
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        public = None if keys is None else keys.public
        self.endpoints = Endpoints(bind(self.pub, address), bind(self.router, address), public, os.getpid())

    def open_client(self, kind: int, server_key: str | None) -> zmq.Socket[bytes]:
        """A socket to the server of another peer, who has this key."""
        return open_socket(self._context, kind, self._keys, server_key=server_key)

    def check(self, peer: PeerId, endpoints: Endpoints) -> None:
        """`UsageError` if the key that `peer` is told to have is not that of its name."""
        if self._keys is not None and (endpoints.key is None or peer != fingerprint(endpoints.key)):
            raise UsageError(f"peer {peer} is told to have the key {endpoints.key}, of which that is not the name")

    def put_out(self, peer: PeerId) -> None:
        """It is not let in any more; a connection that stands is not ended."""
        if self._authenticator is not None:
            self._authenticator.refused.add(peer)

    def sent(self, frame: zmq.Frame, peer: PeerId) -> bool:
        """Whether it was `peer` who sent it."""
        return self._keys is None or name_of(frame) == peer

    def close(self) -> None:
        """After all sockets of the context are closed."""
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.term()
