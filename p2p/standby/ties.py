"""The sockets between the members of a group: each has one where it is spoken to, and one towards each of the others.

    envelope | message | what an entry, a copy or a training holds

What cannot be sent at once is dropped, as is what a member of another run, of another training or of an earlier life
says: the protocol bears that.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import msgspec
import zmq
from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from gossip.errors import WireError
from gossip.fields import Count
from gossip.zmq.sockets import Keys, bind, check_address, open_socket
from p2p.standby.messages import House, Said
from p2p.standby.messages import decode as decode_message
from p2p.standby.messages import encode as encode_message

QUEUE_MAX = 128
"""Messages on the way to one member."""
SHARED_MIN = 1 << 16
"""Larger entries go without a copy."""


class Envelope(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Around each message."""

    run: str
    """A secret of the run: who does not know it is not heard."""
    training: Count
    """Its number in the session."""
    sender: Count
    life: Count
    """Of the sender: it grows when another process takes its place."""


_encode = Encoder().encode
_decode = Decoder(Envelope).decode


class Ties:
    """Of one member."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], run: str, me: int, life: int, address: str, keys: Keys | None
    ) -> None:
        """Listen at a free port of `address`."""
        check_address(address, keys)
        self._context = context
        self._run = run
        self._me = me
        self._life = life
        self._keys = keys
        self.training = 0
        self.inbox = self._open(zmq.PULL)
        self.endpoint = bind(self.inbox, address)
        self._towards: dict[int, tuple[str, zmq.Socket[bytes]]] = {}
        self._lives: dict[int, int] = {}
        """The latest that was heard of, by member."""

    def connect(self, member: int, endpoint: str) -> None:
        """It listens there from now on."""
        if member == self._me:
            return
        old = self._towards.get(member)
        if old is not None:
            if old[0] == endpoint:
                return
            old[1].close(linger=0)
        socket = self._open(zmq.PUSH)
        socket.connect(endpoint)
        self._towards[member] = endpoint, socket

    def expect(self, member: int, life: int) -> None:
        """Another process is in its place from now on: earlier ones are not heard any more."""
        self._lives[member] = life

    def say(self, to: int, message: Said, data: bytes | None = None) -> None:
        """To one member, if it takes it."""
        if to not in self._towards:
            return
        envelope = Envelope(self._run, self.training, self._me, self._life)
        frames = [_encode(envelope), encode_message(message), *([] if data is None else [data])]
        try:
            self._towards[to][1].send_multipart(frames, zmq.NOBLOCK, copy=data is None or len(data) < SHARED_MIN)
        except zmq.Again:
            pass  # it stands still, or is gone

    def hear(self) -> Iterator[tuple[int, Said, bytes | None]]:
        """What has come, in order."""
        while self.inbox.poll(0):
            frames = self.inbox.recv_multipart()
            try:
                envelope = _decode(frames[0])
                if not secrets.compare_digest(envelope.run, self._run) or len(frames) < 2:
                    continue
                message = decode_message(frames[1])
            except (WireError, msgspec.MsgspecError, RecursionError):
                continue  # whoever says that is none of us
            if envelope.life < self._lives.get(envelope.sender, 0):
                continue
            self._lives[envelope.sender] = envelope.life
            if not isinstance(message, House) and envelope.training != self.training:
                continue
            yield envelope.sender, message, frames[2] if len(frames) > 2 else None

    def close(self) -> None:
        """Say and hear nothing any more."""
        self.inbox.close(linger=0)
        for _, socket in self._towards.values():
            socket.close(linger=0)

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        socket = open_socket(self._context, kind, self._keys, server=kind == zmq.PULL)
        socket.setsockopt(zmq.MAXMSGSIZE, -1)  # an entry is an update, of any size
        socket.setsockopt(zmq.SNDHWM if kind == zmq.PUSH else zmq.RCVHWM, QUEUE_MAX)
        return socket
