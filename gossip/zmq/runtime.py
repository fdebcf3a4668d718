"""A peer on real ZeroMQ sockets. One thread owns everything here and turns the loop with `poll`.

    PUB     adverts to all             SUB      adverts of all
    ROUTER  serves pulls               DEALER   one per origin: pulls, and takes what it serves

What is driven is a `Peer` or a `MixPeer`; either knows the messages of its own kind only. Peers of one machine have
links too (`same_host`), over which updates go as open files.

A bulk message is a header followed by blocks, each a ZeroMQ message of its own. The receiver grants credit: the origin
sends at most `WINDOW_BLOCKS` blocks beyond what was reported as received, so a slow reader holds a few blocks in
memory, whatever the size of the model, and nobody else waits for it. A block is read from the log when it is sent.

Off this machine every connection is encrypted with the run's `Keys`, and who does not have them gets nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from gossip.arrays import Bytes, Payload
from gossip.errors import TooLargeError, UsageError, WireError
from gossip.events import (
    Adopt,
    Computed,
    Deliver,
    Disconnected,
    Drained,
    Event,
    Fold,
    Forget,
    Gated,
    Keep,
    Progressed,
    Publish,
    Received,
    Release,
    Retain,
    Send,
    StateMachine,
    Ticked,
    Warn,
)
from gossip.messages import (
    Ack,
    Advert,
    Credit,
    Message,
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
    Unit,
    Unknown,
    Unpin,
)
from gossip.trace import Observe
from gossip.wire import (
    decode_header,
    encode_header,
)
from gossip.zmq.figures import Figures
from gossip.zmq.incoming import Incoming
from gossip.zmq.links import Links
from gossip.zmq.outgoing import Outgoing
from gossip.zmq.poller import Poller
from gossip.zmq.segments import LentFile, LentSum, Segments
from gossip.zmq.sockets import Endpoints, Keys, bind, check_address, open_socket
from gossip.zmq.traffic import Traffic, single

SILENT_S = 3600.0
"""A peer whose connection broke, and of whom nothing was heard for so long, is not listened for any more. Halves that
were cut off for longer than ten minutes may be unable to merge anyway."""
SOCKETS_MAX = 65_000
"""Of one runtime: three for each peer. libzmq's default of 1023 is enough for 340."""
FAREWELL_MS = 100
"""For the last advert to leave; only who has a reader that takes nothing waits for so long."""
HELD_RETRY_S = 0.001
"""How soon to try again when the replica is being read."""


class Host(Protocol):
    """What the runtime needs of the one who owns the replica."""

    def acquire(self, event: Event) -> bool:
        """May `event` be merged now? If so, nobody reads the replica until `release`."""
        ...

    def release(self) -> None: ...

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        """Merge updates lo..hi of `lane`; called between `acquire` and `release`."""
        ...

    def state(self) -> Payload:
        """The replica as it is now; a copy is made of it before anything else happens."""
        ...

    def adopt(self, payload: Payload) -> None:
        """Replace the replica; called between `acquire` and `release`."""
        ...

    def gated(self, unit: Unit) -> None:
        """The unit was published before, here or elsewhere."""
        ...

    def drained(self, missing: tuple[PeerId, ...]) -> None: ...

    def warn(self, text: str) -> None: ...


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
        observe: Observe | None = None,
        links: bool = False,
    ) -> None:
        """Bind to free ports of `address`, an interface of this machine; only a loopback one may go without keys.

        With `links`, peers of this machine and user exchange updates as open files.
        """
        check_address(address, keys)
        self._keys = keys
        self.peer = peer
        self.figures = Figures()
        self._traffic = Traffic(self.figures, host.warn)
        self._host = host
        self._segments = segments
        self._observe = observe
        self._owner = os.getpid(), threading.get_ident()
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._poller = Poller()
        self._dealers: dict[PeerId, zmq.Socket[bytes]] = {}
        self._monitors: dict[PeerId, zmq.Socket[bytes]] = {}
        """Where ZeroMQ tells that a connection broke."""
        self._addresses: dict[PeerId, Endpoints] = {}
        """Of all that were ever connected to."""
        self._broken: dict[PeerId, float] = {}
        """Since when nothing was heard of those whose connections broke."""
        self._held: deque[Event] = deque()
        self._links = Links(
            peer.me,
            self._poller,
            self._traffic,
            kinds=segments.kinds,
            expects=peer.expects,
            happen=self.happen,
            opens=links,
        )
        self._pub = self._socket(zmq.PUB, server=True)
        self._sub = self._socket(zmq.SUB)
        self._sub.subscribe(b"")
        router = self._socket(zmq.ROUTER, server=True)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._outgoing = Outgoing(router, self._traffic, in_swarm=self._dealers.__contains__)
        self._incoming = Incoming(peer.me, send=self._ask, happen=self.happen, holds=lambda: self.holds)
        self.endpoints = Endpoints(bind(self._pub, address), bind(router, address))
        self.register(self._sub, lambda: self._traffic.drain(self._sub, self._on_advert))
        self.register(router, lambda: self._traffic.drain(router, self._on_request))

    # ------------------------------------------------------------------------------------------------------ outside

    def connect(self, peer: PeerId, endpoints: Endpoints) -> None:
        """Listen to `peer`'s adverts and be able to pull from it."""
        self._check_owner()
        if peer in self._dealers:
            return
        self._addresses[peer] = endpoints
        self._sub.connect(endpoints.adverts)
        dealer = self._socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, self.peer.me.encode())
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.connect(endpoints.pulls)
        self._dealers[peer] = dealer
        monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitors[peer] = monitor
        self._links.connect(peer)
        self.register(dealer, lambda: self._traffic.drain(dealer, lambda frames: self._on_reply(peer, frames)))
        self.register(monitor, lambda: self._on_monitor(peer, monitor))  # after what came before the connection broke

    def _disconnect(self, peer: PeerId) -> None:
        """Undo `connect`; who speaks to us again is connected to again."""
        dealer, monitor = self._dealers.pop(peer), self._monitors.pop(peer)
        self.unregister(dealer)
        self.unregister(monitor)
        dealer.disable_monitor()
        dealer.close(linger=0)
        monitor.close(linger=0)
        self._sub.disconnect(self._addresses[peer].adverts)
        self._incoming.drop(peer)
        self._links.origins.drop(peer)

    def _heard(self, peer: PeerId) -> None:
        """It said something."""
        self._broken.pop(peer, None)
        if peer in self._addresses and peer not in self._dealers:
            self.connect(peer, self._addresses[peer])

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
        if _writes(event):
            self._held.append(event)
            self._release_held()
        else:
            self._step(event)

    @property
    def holds(self) -> bool:
        """Some events still wait for the replica."""
        return bool(self._held)

    def poll(self, timeout_s: float) -> None:
        """One turn: wait for something to happen, at most `timeout_s`, and deal with it."""
        self._check_owner()
        wait = min(timeout_s, self.peer.deadline() - time.monotonic(), self._outgoing.wait_s)
        if self._held:
            wait = min(wait, HELD_RETRY_S)
        self._poller.turn(wait)
        if time.monotonic() >= self.peer.deadline():
            for event in self._held:
                if isinstance(event, Received):  # an answer that waits for the replica is not to be asked for again
                    self._step(Progressed(event.message.peer, arrived=False))
            self._step(Ticked())
        self._release_held()
        self._outgoing.turn()
        if self._broken:
            now = time.monotonic()
            for peer in [peer for peer, since in self._broken.items() if now >= since + SILENT_S]:
                del self._broken[peer]
                self._disconnect(peer)

    def close(self) -> None:
        """Close the sockets; what is still queued is dropped, but for adverts, of which the last may say farewell."""
        for dealer in self._dealers.values():
            dealer.disable_monitor()
        self._pub.close(linger=FAREWELL_MS)
        for zmq_socket in (self._sub, *self._dealers.values(), *self._monitors.values()):
            zmq_socket.close(linger=0)
        self._outgoing.close()
        self._context.term()
        self._links.close()
        while self._held:
            _give_back(self._held.popleft())
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

    def _release_held(self) -> None:
        """Updates of the own lane and ranges of others do not wait for each other, but each kind keeps its order."""
        blocked: set[type] = set()
        for _ in range(len(self._held)):
            event = self._held.popleft()
            waits = isinstance(event, Computed) and self.peer.congested
            if type(event) in blocked or waits or not self._host.acquire(event):
                blocked.add(type(event))
                self._held.append(event)
                continue
            try:
                self._step(event)
            finally:
                self._host.release()
                _give_back(event)

    def _step(self, event: Event) -> None:
        if isinstance(event, Computed):
            self.figures.computed += 1
        now = time.monotonic()
        effects = self.peer.handle(event, now)
        if self._observe is not None:
            self._observe(now, self.peer.me, event, effects)
        for effect in effects:
            match effect:
                case Send(_, message) | Publish(message):
                    try:
                        self._say(effect)
                    except TooLargeError as error:  # it is not said: a swarm that large is not served, but trains on
                        self._on_too_large(message, error)
                case Deliver(lane, lo, hi, payload):
                    self._host.deliver(lane, lo, hi, self._segments.resolve(payload))
                case Adopt(payload):
                    self._host.adopt(payload)
                case Keep(lo, hi, payload):
                    self._segments.keep(lo, hi, self._segments.resolve(payload))
                case Retain(number, payload):
                    self._segments.retain(number, payload)
                case Release(number):
                    self._segments.release(number)
                case Gated(unit):
                    self.figures.gated += 1
                    self._host.gated(unit)
                case Fold(lo, hi):
                    self._segments.fold(lo, hi)
                case Forget(through):
                    self._segments.forget(through)
                case Drained(missing):
                    self._host.drained(missing)
                case Warn(text):
                    self._host.warn(text)

    def _say(self, effect: Send | Publish) -> None:
        match effect:
            case Send(to, message):
                self._send(to, message)
            case Publish(message):
                header = encode_header(message)
                self._links.publish(header)
                self._traffic.send(self._pub, [header])

    def _on_too_large(self, message: Message, error: TooLargeError) -> None:
        if type(message) not in self.figures.too_large:
            self._host.warn(f"a {type(message).__name__} is not sent, nor are those that follow: {error}")
        self.figures.too_large[type(message)] += 1

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
                self._ask(to, message)

    def _ask(self, to: PeerId, message: Message) -> None:
        if to in self._dealers:
            self._traffic.send(self._dealers[to], [encode_header(message)])

    # ----------------------------------------------------------------------------------------------------- messages

    def _on_advert(self, frames: list[Bytes]) -> None:
        message = decode_header(single(frames))
        if not isinstance(message, Advert | Offer):
            raise WireError(f"{type(message).__name__} among the adverts")
        self._heard(message.peer)
        self.happen(Received(message))

    def _on_request(self, frames: list[Bytes]) -> None:
        if len(frames) != 2:
            raise WireError(f"request of {len(frames)} frames, expected 2")
        message = decode_header(frames[1])
        if message.peer.encode() != frames[0]:
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        self._heard(message.peer)
        match message:
            case Credit():
                self._outgoing.grant(message)
            case Pull() | StateRequest() | Pin() | Unpin() | Ping() | PingRequest() | PacketRequest():
                self.happen(Received(message))
            case _:
                raise WireError(f"{type(message).__name__} among the requests")

    def _on_monitor(self, peer: PeerId, monitor: zmq.Socket[bytes]) -> None:
        while monitor.poll(0):
            monitor.recv_multipart()
            self._broken[peer] = time.monotonic()
            self.happen(Disconnected(peer))

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

    def _socket(self, kind: int, server: bool = False) -> zmq.Socket[bytes]:
        return open_socket(self._context, kind, self._keys, server)


def _writes(event: Event) -> bool:
    return isinstance(event, Computed) or (isinstance(event, Received) and isinstance(event.message, Range | State))


def _give_back(event: Event) -> None:
    """Close the file that a range came in."""
    if isinstance(event, Received) and isinstance(event.message, Range | State):
        payload = event.message.payload
        if isinstance(payload, LentFile | LentSum):
            payload.close()
