"""ZeroMQ sockets as all peers have them: encrypted by keys, with short queues, and kept alive by the kernel.

With a run's `Keys` every connection is encrypted, and a process that does not have them gets nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.wire import BLOCK_BYTES, HEADER_BYTES_MAX

try:
    from _blake2 import blake2b
except ImportError:  # the same, which brings all of OpenSSL into each agent
    from hashlib import blake2b

NAME_BYTES = 16
"""128 bits: to find a second key of the same name takes 2^128 tries."""
WINDOW_BLOCKS = 8
"""Blocks in flight on one link: 8 MiB keep 1 Gbit/s busy over 60 ms."""
KEEPALIVE_IDLE_S = 2
"""A connection on which nothing came for so long is tried with probes, a second apart."""
KEEPALIVE_PROBES = 3
"""So many without an answer end it: the host is gone, or cut off. For a process that is frozen its kernel answers."""


@dataclass(frozen=True)
class Endpoints:
    """Where a peer publishes its adverts and serves its pulls, and how it is known there."""

    adverts: str
    pulls: str
    key: str | None = None
    """The public half of its key; None where there are no keys."""
    pid: int | None = None
    """Of its process, by which a link knows it on one machine; None: not looked at."""


@dataclass(frozen=True)
class Keys:
    """A CURVE key pair, as Z85 text. The public half is told to the processes of the run alone: CurveZMQ never sends a
    server's, and without it nobody can begin to speak to it."""

    public: str
    secret: str

    @classmethod
    def generate(cls) -> Keys:
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def of(cls, secret: str) -> Keys:
        """The pair that has this secret half."""
        return cls(zmq.curve_public(secret.encode()).decode(), secret)


def digest(data: bytes, size: int, key: bytes = b"") -> bytes:
    """BLAKE2b (RFC 7693) of `data`, of so many bytes; with a key of at most 64 bytes, a code that only who has it can
    make."""
    return blake2b(data, digest_size=size, key=key).digest()


def fingerprint(public: str | bytes) -> PeerId:
    """The name of the peer that has the secret half of this public key, Z85 text or 32 bytes: 32 hex digits."""
    key = z85.decode(public) if isinstance(public, str) else public
    return PeerId(digest(key, NAME_BYTES).hex())


def open_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    keys: Keys | None = None,
    server: bool = False,
    *,
    server_key: str | None = None,
    named: bool = False,
) -> zmq.Socket[bytes]:
    """A socket with the limits that every socket of ours has, set before it is bound (`server`) or connected.

    A client connects to the server that has `server_key`; None: both have the same keys. A server whose clients are
    `named` lets in whom the context's authenticator lets in, and nobody where there is none.
    """
    socket = context.socket(kind)
    if keys is not None:
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        if server:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            if named:
                socket.setsockopt_string(zmq.ZAP_DOMAIN, "deepdist")
        else:
            socket.setsockopt(zmq.CURVE_SERVERKEY, (server_key or keys.public).encode())
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max(BLOCK_BYTES, HEADER_BYTES_MAX) + 1024)
    socket.setsockopt(zmq.SNDHWM, 4 * WINDOW_BLOCKS)
    socket.setsockopt(zmq.RCVHWM, 4 * WINDOW_BLOCKS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    # heartbeats of libzmq (4.3.5) end the process where a queue is full: it is the kernel that looks after connections
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, (KEEPALIVE_IDLE_S + KEEPALIVE_PROBES) * 1000)
    return socket


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address`, a name or an IP address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def check_address(address: str, keys: Keys | None) -> None:
    """Raise `UsageError` for an address that others can reach, without keys to keep them out."""
    if keys is None and not is_loopback(address):
        raise UsageError(f"{address} can be reached from other machines: expected keys=Keys.generate(), or 127.0.0.1")


def bind(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind to a free port of `address`; returns the endpoint to connect to."""
    socket.bind(f"tcp://{address}:*")
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)
