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
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import zmq

from gossip.arrays import Bytes, Packed, Payload
from gossip.errors import MismatchError, TooLargeError, UsageError, WireError
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
from gossip.updates import check
from gossip.wire import (
    decode_header,
    encode_header,
    table_of,
)
from gossip.zmq import same_host
from gossip.zmq.figures import Figures
from gossip.zmq.incoming import Incoming
from gossip.zmq.outgoing import Outgoing
from gossip.zmq.poller import Poller
from gossip.zmq.segments import LentFile, LentSum, RangeSum, Segments
from gossip.zmq.sockets import Endpoints, Keys, bind, check_address, open_socket
from gossip.zmq.traffic import TURN_MESSAGES_MAX, Traffic, single

SILENT_S = 3600.0
"""A peer whose connection broke, and of whom nothing was heard for so long, is not listened for any more. Halves that
were cut off for longer than ten minutes may be unable to merge anyway."""
SOCKETS_MAX = 65_000
"""Of one runtime: three for each peer. libzmq's default of 1023 is enough for 340."""
FAREWELL_MS = 100
"""For the last advert to leave; only who has a reader that takes nothing waits for so long."""
HELD_RETRY_S = 0.001
"""How soon to try again when the replica is being read."""
ACCEPT_RETRY_S = 0.5
"""How soon to let the next one in when no descriptor was left."""


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
        self._links: dict[PeerId, socket.socket] = {}
        """To origins of this machine."""
        self._reader_links: dict[PeerId, socket.socket] = {}
        """From readers of this machine."""
        self._nameless: set[socket.socket] = set()
        """Links that have not said yet who reads."""
        self._listener = same_host.listen(peer.me) if links else None
        if self._listener is not None:
            self.register(self._listener, self._on_reader)
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
        link = same_host.connect(self.peer.me, peer) if self._listener is not None else None
        if link is not None:
            self._links[peer] = link
            self.register(link, lambda: self._drain_link(self._links, peer, self._on_file))
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
        if peer in self._links:
            self._unlink(self._links, peer)

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
        for link in (*self._links.values(), *self._reader_links.values(), *self._nameless):
            link.close()
        if self._listener is not None:
            self._listener.close()
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
                for link in self._reader_links.values():
                    self._link_send(link, header)
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
                if self._lend(to, message, total):
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
            case Pull() if to in self._links and self._link_send(self._links[to], encode_header(message)):
                pass
            case _:
                self._ask(to, message)

    def _ask(self, to: PeerId, message: Message) -> None:
        if to in self._dealers:
            self._traffic.send(self._dealers[to], [encode_header(message)])

    def _lend(self, to: PeerId, message: Range, payload: Payload) -> bool:
        """Give a reader of this machine the files in which the range lies, and copies of what is small."""
        link = self._reader_links.get(to)
        if link is None or table_of(message):
            return False
        lent = payload.lent() if isinstance(payload, RangeSum) else None
        files = lent[0] if lent is not None else []
        small: Sequence[Payload] = lent[1] if lent is not None else [payload]
        if sum(part.layout.nbytes for part in small) > same_host.SMALL_BYTES:
            return False
        parts = [same_host.Part(file.descriptor, file.offset) for file in files]
        copies: list[int] = []
        try:
            for part in small:
                copies.append(same_host.small_file(part.read(0, part.layout.nbytes)))
                frame = encode_header(replace(message, marks=(), layout=part.layout)) if lent is not None else b""
                parts.append(same_host.Part(copies[-1], 0, frame))
            sent = self._link_send(link, encode_header(replace(message, layout=payload.layout)), parts)
        except OSError:
            return False
        finally:
            for descriptor in copies:
                os.close(descriptor)
        if sent:
            self.figures.handed_out += sum(part.layout.nbytes for part in (*files, *small))
        return sent

    def _link_send(self, link: socket.socket, header: bytes, parts: Sequence[same_host.Part] = ()) -> bool:
        sent = same_host.send(link, header, parts)
        self.figures.bytes_out += len(header) if sent else 0
        return sent

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

    def _on_reader(self) -> None:
        """A reader of this machine has come."""
        assert self._listener is not None
        try:
            link = same_host.accept(self._listener)
        except OSError:  # meanwhile it reads over ZeroMQ
            self.rest(self._listener, ACCEPT_RETRY_S)
            return
        if link is None:
            return
        if len(self._reader_links) + len(self._nameless) >= same_host.LINKS_MAX:
            link.close()
            return
        self._nameless.add(link)
        self.register(link, lambda: self._traffic.attempt(lambda: self._on_reader_name(link)))

    def _on_reader_name(self, link: socket.socket) -> None:
        """Its first message says who reads; what follows are its pulls."""
        self.unregister(link)
        self._nameless.discard(link)
        try:
            reader = same_host.receive_name(link)
        except (EOFError, WireError):
            link.close()
            return
        if reader in self._reader_links:
            self._unlink(self._reader_links, reader)
        self._reader_links[reader] = link
        self.register(link, lambda: self._drain_link(self._reader_links, reader, self._on_linked_request))

    def _unlink(self, links: dict[PeerId, socket.socket], peer: PeerId) -> None:
        link = links.pop(peer)
        self.unregister(link)
        link.close()

    def _drain_link(
        self, links: dict[PeerId, socket.socket], peer: PeerId, on_message: Callable[[Message, same_host.Packet], None]
    ) -> None:
        for _ in range(TURN_MESSAGES_MAX):
            try:
                packet = same_host.receive(links[peer])
            except EOFError:
                self._unlink(links, peer)
                return
            except WireError as error:
                self._traffic.refuse(error)
                continue
            if packet is None:
                return
            self.figures.bytes_in += len(packet.frame)
            self._traffic.attempt(lambda: self._on_packet(peer, packet, on_message))  # noqa: B023 - as above
            packet.close()

    def _on_packet(
        self, peer: PeerId, packet: same_host.Packet, on_message: Callable[[Message, same_host.Packet], None]
    ) -> None:
        message = decode_header(packet.frame)
        if message.peer != peer:
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        on_message(message, packet)

    def _on_linked_request(self, message: Message, packet: same_host.Packet) -> None:
        if not isinstance(message, Pull):
            raise WireError(f"{type(message).__name__} among the pulls of a link")
        self.happen(Received(message))

    def _on_file(self, message: Message, packet: same_host.Packet) -> None:
        """An advert, or the files with a range: the answer is here, whole."""
        match message:
            case Advert():
                self.happen(Received(message))
            case Range(table=table) if packet.parts and not table.series:
                if not self.peer.expects(message):
                    return
                try:
                    payload = self._lent(message, packet)
                except (OSError, UsageError) as error:
                    raise WireError(f"a file that came over a link cannot be read: {error}") from None
                self.happen(Progressed(message.peer))
                self.happen(Received(replace(message, payload=payload)))
            case _:
                raise WireError(f"{type(message).__name__} among the answers of a link")

    def _lent(self, message: Range, packet: same_host.Packet) -> LentFile | LentSum:
        """The sum of the parts; those that are no whole arrays are looked at here, the sum before it is merged."""
        files: list[LentFile] = []
        others: list[Packed] = []
        for part in packet.parts:
            described = decode_header(part.frame) if part.frame else message
            if not isinstance(described, Range):
                raise WireError(f"a part of a range is a {type(described).__name__}")
            file = LentFile(described.layout, part.descriptor, part.offset)
            about = os.fstat(part.descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise WireError("what came with a range is no file")
            if about.st_size < part.offset + file.layout.nbytes:
                raise WireError(f"a file is too short for the {file.layout.nbytes} bytes that it should hold")
            os.pread(part.descriptor, 1, part.offset)  # it is open for reading
            self.figures.handed_in += file.layout.nbytes
            if not part.frame:
                files.append(file)
                continue
            update = Packed(file.layout, file.read(0, file.layout.nbytes))
            check(update, message.layout, self._segments.kinds)
            others.append(update)
        if not files:
            raise WireError("a range of parts without the whole arrays to which they are added")
        kept: list[LentFile] = []
        try:
            kept += (file.again() for file in files)  # those of the packet are closed with it
        except OSError as error:  # no descriptor is left
            for file in kept:
                file.close()
            raise MismatchError(f"no room for another open file: {error}") from None
        return kept[0] if len(kept) == 1 and not others else LentSum(message.layout, kept, others, self._segments.kinds)

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
