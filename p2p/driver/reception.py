"""Where agents reach the registrar, and who of them is let in.

Each connection is named by the key that it proved to have (`gossip.zmq.authenticator`), and heard in that name only.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from gossip.errors import WireError
from gossip.messages import PeerId
from gossip.zmq.authenticator import Authenticator, name_of
from gossip.zmq.poller import Poller
from gossip.zmq.sockets import Keys, bind, check_address, fingerprint, open_socket
from gossip.zmq.traffic import is_told
from p2p.agent.registrar_messages import FromAgent, FromRegistrar, Hello, encode, from_agent

log = logging.getLogger("p2p")


class Reception:
    """The registrar's socket. One thread receives and sends."""

    def __init__(self, address: str, keys: Keys | None, on_message: Callable[[bytes, FromAgent], None]) -> None:
        """`on_message` is called with each message and the connection it came by."""
        check_address(address, keys)
        self.key = None if keys is None else keys.public
        self._on_message = on_message
        self._malformed = 0
        """Messages dropped so far."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = Poller()
        self._authenticator = None if keys is None else Authenticator(self._context)
        if self._authenticator is not None:
            self._poller.register(self._authenticator.socket, self._authenticator.answer)
        self._socket = open_socket(self._context, zmq.ROUTER, keys, server=True, named=True)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        self._socket.setsockopt(zmq.RCVHWM, 1000)
        self.endpoint = bind(self._socket, address)
        self._poller.register(self._socket, self._receive)

    def turn(self, timeout_s: float) -> None:
        """Wait for a message, at most so long, and take it in."""
        self._poller.turn(timeout_s)

    def send(self, route: bytes, message: FromRegistrar) -> None:
        """To whoever is at the other end of a connection."""
        self._socket.send_multipart([route, encode(message)])

    def close(self) -> None:
        """Send what is left to be sent."""
        self._socket.close(linger=200)
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.term()

    def _receive(self) -> None:
        route, *frames = self._socket.recv_multipart(copy=False)
        try:
            message = from_agent([frame.bytes for frame in frames])
            if self._authenticator is not None and message.peer != name_of(frames[0]):
                raise WireError(f"an agent speaks for {message.peer}, which is not its name")
        except WireError as error:
            self._malformed += 1
            if is_told(self._malformed):
                log.warning("the registrar dropped a malformed message: %s (%d so far)", error, self._malformed)
        else:
            self._on_message(route.bytes, message)


@dataclass
class Admission:
    """Which agents are let in."""

    run: str
    """Of the session."""
    token: str | None
    """What they have to show; None: nothing."""
    has_keys: bool
    observer: PeerId | None = None
    """The only one that is let in as the driver program's; None: any."""
    given_up: str | None = None
    """Why nobody is any more."""

    def refusal(self, hello: Hello) -> str | None:
        """Why it is not let in; None if it is."""
        if self.given_up is not None:
            return self.given_up
        if hello.run != self.run:
            return f"agent {hello.name} belongs to another session"
        if self.token is not None and not hmac.compare_digest(hello.token.encode(), self.token.encode()):
            return f"agent {hello.name} does not have the session's token"
        if hello.role == "observer" and self.observer not in (None, hello.peer):
            return f"agent {hello.name} is not the driver program's"
        if self.has_keys and (hello.key is None or hello.peer != fingerprint(hello.key)):
            return f"agent {hello.name} tells another key than the one that it has"
        return None
