"""A peer on real ZeroMQ sockets. One thread owns everything here and turns the loop with `poll`.

    PUB     adverts to all             SUB      one per origin: its adverts
    ROUTER  serves pulls               DEALER   one per origin: pulls, and takes what it serves
    REP     whose key is it?           (where there are keys: gossip.zmq.authenticator)

The peer is a `Peer` or a `MixPeer`; either knows its own messages only. The loop is here: it looks at messages that
come in and carries out the peer's effects. Work that lasts longer than a turn has a module of its own:

    peers       connections to others           links       files to and from others of this machine
    speaker     what the peer says              (effects: gossip.drivers)
    outgoing    bulk messages being sent        incoming    bulk messages being received
    held        events that wait for their turn at the replica
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from gossip import drivers
from gossip.arrays import Bytes
from gossip.drivers import carry_out
from gossip.errors import UsageError, WireError
from gossip.events import (
    Computed,
    Disconnected,
    Event,
    Gated,
    Offended,
    Progressed,
    Received,
    StateMachine,
    Ticked,
)
from gossip.messages import (
    Ack,
    Advert,
    Credit,
    Here,
    Nack,
    Offer,
    PacketReply,
    PacketRequest,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pinned,
    Pull,
    Range,
    State,
    StateRequest,
    Unknown,
    Unpin,
)
from gossip.story import Witness
from gossip.trace import Observe
from gossip.wire import decode_header
from gossip.zmq.authenticator import Servers
from gossip.zmq.figures import Figures
from gossip.zmq.held import Held, Replica, writes
from gossip.zmq.incoming import Incoming
from gossip.zmq.links import Links
from gossip.zmq.outgoing import Outgoing
from gossip.zmq.peers import Peers
from gossip.zmq.poller import Poller
from gossip.zmq.segments import Segments
from gossip.zmq.sockets import Endpoints, Keys
from gossip.zmq.speaker import Giver, Speaker
from gossip.zmq.traffic import Traffic, single


class Host(drivers.Host, Replica, Giver, Protocol):
    """What the runtime needs of the one who owns the replica. Merging is between `acquire` and `release`."""


class Runtime:
    """Drives one peer. Not to be used from another thread, nor after a fork (both raise)."""

    def __init__(
        self,
        peer: StateMachine,
        host: Host,
        segments: Segments,
        *,
        address: str = "127.0.0.1",
        keys: Keys | None = None,
        secret: str | None = None,
        observe: Observe | None = None,
        links: bool = False,
        checks: bool = False,
    ) -> None:
        """Bind to free ports of `address`, an interface of this machine; only a loopback one may go without keys.

        `keys` are the peer's own: its name is their fingerprint, and so are the names of all that it deals with. With
        `links`, peers of this machine and user exchange updates as open files; those of a run that has a `secret` prove
        to have it. With `checks`, it is looked after each event whether the peer's state is sound; `InvariantError` if
        not.
        """
        self.peer = peer
        self.witness = Witness(peer, checks=checks)
        self.figures = Figures()
        self._host = host
        self._segments = segments
        self._observe = observe
        self._owner = os.getpid(), threading.get_ident()
        self._poller = Poller()
        self._servers = Servers(peer.me, address, keys, self._poller)
        self.endpoints = self._servers.endpoints
        traffic = Traffic(self.figures, host.warn, lambda peer, why: self.happen(Offended(peer, why)))
        self._held = Held(host, self._step)
        self._links = Links(
            peer.me,
            self._poller,
            traffic,
            kinds=segments.kinds,
            expects=peer.expects,
            happen=self.happen,
            opens=links,
            secret=secret,
        )
        self._peers = Peers(
            peer.me,
            self._servers,
            self._poller,
            traffic,
            on_advert=self._on_advert,
            on_reply=self._on_reply,
            on_break=lambda broken: self.happen(Disconnected(broken)),
        )
        pub, router = self._servers.pub, self._servers.router
        self._poller.register(router, lambda: traffic.drain_frames(router, self._on_request))
        self._outgoing = Outgoing(pub, router, traffic, in_swarm=lambda asker: asker in self._peers)
        self._speaker = Speaker(host, segments, self._peers, self._links, self._outgoing, self.figures)
        self._incoming = Incoming(peer.me, send=self._peers.send, happen=self.happen, holds=lambda: self.holds)

    # ------------------------------------------------------------------------------------------------------ outside

    def connect(self, peer: PeerId, endpoints: Endpoints) -> None:
        """Listen to `peer`'s adverts and be able to pull from it. `UsageError` if the key is not that of its name."""
        self._check_owner()
        if peer in self._peers:
            return
        self._servers.check(peer, endpoints)
        self._links.connect(peer, endpoints.pid)
        self._peers.connect(peer, endpoints)

    def register(self, source: Any, callback: Callable[[], None]) -> None:
        """Call `callback` in `poll` when `source` (a ZeroMQ socket, or anything with a descriptor) is readable."""
        self._poller.register(source, callback)

    def unregister(self, source: Any) -> None:
        """Undo `register`, before the source is closed."""
        self._poller.unregister(source)

    def rest(self, source: Any, seconds: float) -> None:
        """Do not listen to `source` for a while: something is there, and cannot be dealt with now."""
        self._poller.rest(source, seconds)

    def happen(self, event: Event) -> None:
        """Tell the peer; what writes to the replica waits for its turn there, in order."""
        self._check_owner()
        if writes(event):
            self._held.add(event)
            self._held.release()
        else:
            self._step(event)

    @property
    def holds(self) -> bool:
        """Some events still wait for the replica."""
        return bool(self._held)

    def poll(self, timeout_s: float) -> None:
        """One turn: wait for something to happen, at most `timeout_s`, and deal with it."""
        self._check_owner()
        until_deadline_s = self.peer.deadline() - time.monotonic()
        wait_s = min(self._outgoing.wait_s, self._held.wait_s, self._peers.wait_s)
        self._poller.turn(min(timeout_s, until_deadline_s, wait_s))
        self._peers.greet()
        if time.monotonic() >= self.peer.deadline():
            for sender in self._held.senders():  # an answer that waits for the replica is not to be asked for again
                self._step(Progressed(sender, arrived=False))
            self._step(Ticked())
        self._held.release()
        self._outgoing.turn()
        for peer in self._peers.silent():
            self._disconnect(peer)

    def close(self) -> None:
        """Close everything; what is still queued is dropped, but for adverts, of which the last may say farewell."""
        self._peers.close()
        self._outgoing.close()
        self._servers.close()
        self._links.close()
        self._held.close()
        self._segments.close()

    def _check_owner(self) -> None:
        process, thread = self._owner
        if os.getpid() != process:
            raise UsageError(
                f"these sockets belong to process {process}, this is its child {os.getpid()}: "
                "open new ones after the fork"
            )
        if threading.get_ident() != thread:
            raise UsageError("these sockets belong to another thread: expected the one that opened them")

    # ------------------------------------------------------------------------------------------------------ effects

    def _step(self, event: Event) -> None:
        """Let the peer deal with it, and carry out what it wants done, in order. Assertions tell the story."""
        if isinstance(event, Computed):
            self.figures.computed += 1
        now = time.monotonic()
        effects = self.witness.handle(event, now)
        for effect in effects:
            self.figures.gated += isinstance(effect, Gated)
        try:
            if self._observe is not None:
                self._observe(now, self.peer.me, event, effects)
            carry_out(effects, self._speaker, self._held, self._segments, self._host)
        except AssertionError as error:
            self.witness.tell(error)
            raise

    # ----------------------------------------------------------------------------------------------------- messages

    def _on_advert(self, peer: PeerId, frames: list[Bytes]) -> None:
        message = decode_header(single(frames))
        if message.peer != peer:
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        if not isinstance(message, Advert | Offer):
            raise WireError(f"{type(message).__name__} among the adverts")
        self._heard(peer)
        self.happen(Received(message))

    def _on_request(self, frames: list[zmq.Frame]) -> None:
        if len(frames) != 2:
            raise WireError(f"request of {len(frames)} frames, expected 2")
        message = decode_header(frames[1].buffer)
        if not self._servers.sent(frames[1], message.peer):
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        self._outgoing.asked(message.peer, frames[0].bytes)
        self._heard(message.peer)
        match message:
            case Credit():
                self._outgoing.grant(message)
            case Here():
                pass
            case Pull() | StateRequest() | Pin() | Unpin() | Ping() | PingRequest() | PacketRequest():
                self.happen(Received(message))
            case _:
                raise WireError(f"{type(message).__name__} among the requests")

    def _on_reply(self, peer: PeerId, frames: list[Bytes]) -> None:
        self._heard(peer)
        if len(frames) == 2:
            self._incoming.add(peer, frames)
            return
        message = decode_header(single(frames))
        if message.peer != peer:
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        match message:
            case Range() | State() | PacketReply():
                if self.peer.expects(message):
                    self._incoming.begin(peer, message)
            case Unknown() | Pinned() | Ack() | Nack():
                self.happen(Received(message))
            case _:
                raise WireError(f"{type(message).__name__} among the replies")

    def _heard(self, peer: PeerId) -> None:
        """It said something."""
        endpoints = self._peers.hear(peer)
        if endpoints is not None:
            self.connect(peer, endpoints)

    def _disconnect(self, peer: PeerId) -> None:
        """Undo `connect`; who speaks to us again is connected to again."""
        self._peers.disconnect(peer)
        self._incoming.drop(peer)
        self._links.origins.drop(peer)
