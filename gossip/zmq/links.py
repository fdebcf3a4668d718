"""Links of one peer to others of its machine: it reads from origins, and readers read from it.

    link to an origin        our pulls go out, adverts and open files come in
    link from a reader       its pulls come in, adverts and open files go out

Messages that a link does not take go over ZeroMQ, so every link may break at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from gossip.arrays import Payload
from gossip.errors import UsageError, WireError
from gossip.events import Event, Progressed, Received
from gossip.messages import Advert, Bulk, Message, PeerId, Pull, Range
from gossip.updates.table import Kinds
from gossip.wire import decode_header, encode_header, table_of
from gossip.zmq import handover, same_host
from gossip.zmq.poller import Poller
from gossip.zmq.traffic import TURN_MESSAGES_MAX, Traffic

ACCEPT_RETRY_S = 0.5
"""How soon to let the next one in when no descriptor was left."""


class Ends:
    """Links of one direction, by who is at the other end."""

    def __init__(
        self, poller: Poller, traffic: Traffic, on_message: Callable[[Message, same_host.Packet], None]
    ) -> None:
        """`on_message` is called with what comes; the files of the packet are closed when it returns."""
        self.links: dict[PeerId, socket.socket] = {}
        self._unproven: dict[PeerId, bytes] = {}
        """What the first message over a link has to be, until it came."""
        self._poller = poller
        self._traffic = traffic
        self._on_message = on_message

    def add(self, peer: PeerId, link: socket.socket, proof: bytes = b"") -> None:
        """A new link takes the place of an old one. Nothing goes over it, and nothing is taken, before the `proof`."""
        self.drop(peer)
        self.links[peer] = link
        if proof:
            self._unproven[peer] = proof
        self._poller.register(link, lambda: self.drain(peer))

    def drop(self, peer: PeerId) -> None:
        """Close the link, if there is one."""
        link = self.links.pop(peer, None)
        self._unproven.pop(peer, None)
        if link is not None:
            self._poller.unregister(link)
            link.close()

    def send(self, peer: PeerId, header: bytes, parts: Sequence[same_host.Part] = ()) -> bool:
        """Whether it was taken."""
        sent = peer in self.links and peer not in self._unproven and same_host.send(self.links[peer], header, parts)
        self._traffic.figures.bytes_out += len(header) if sent else 0
        return sent

    def drain(self, peer: PeerId) -> None:
        """Take in what has come, up to a limit."""
        if peer in self._unproven and not self._proves(peer):
            return
        for _ in range(TURN_MESSAGES_MAX):
            if peer not in self.links:  # put out for what came last
                return
            try:
                packet = same_host.receive(self.links[peer])
            except EOFError:
                self.drop(peer)
                return
            except WireError as error:
                self._traffic.refuse(error, peer)
                continue
            if packet is None:
                return
            self._traffic.figures.bytes_in += len(packet.frame)
            self._traffic.attempt(lambda: self._take(peer, packet), peer)  # noqa: B023 - it is called before the next turn
            packet.close()

    def close(self) -> None:
        for link in self.links.values():
            link.close()

    def _proves(self, peer: PeerId) -> bool:
        """Its first message is what it has to be. One that says something else has no link any more."""
        try:
            if not same_host.receive_proof(self.links[peer], self._unproven[peer]):
                return False
        except (EOFError, WireError) as error:
            if isinstance(error, WireError):
                self._traffic.refuse(error)
            self.drop(peer)
            return False
        del self._unproven[peer]
        return True

    def _take(self, peer: PeerId, packet: same_host.Packet) -> None:
        message = decode_header(packet.frame)
        if message.peer != peer:
            raise WireError(f"a peer speaks for {message.peer}, which is not its name")
        self._on_message(message, packet)


class Links:
    """Both directions, and the door at which readers come in."""

    def __init__(
        self,
        me: PeerId,
        poller: Poller,
        traffic: Traffic,
        *,
        kinds: Kinds,
        expects: Callable[[Bulk], bool],
        happen: Callable[[Event], None],
        opens: bool,
        secret: str | None = None,
    ) -> None:
        """Unless it `opens`, there are no links. `kinds`: of updates; `expects`: whether a range is wanted; `secret`:
        of the run, which both ends of a link prove to have."""
        self.origins = Ends(poller, traffic, self._on_answer)
        self.readers = Ends(poller, traffic, self._on_request)
        self._nameless: dict[socket.socket, PeerId | None] = {}
        """Links that have not said yet who reads, or said a name that is not known yet, the oldest first."""
        self._processes: dict[PeerId, int | None] = {}
        """By peer, the number of its process; None: any."""
        self._me = me
        self._secret = secret
        self._poller = poller
        self._figures = traffic.figures
        self._refuse = traffic.refuse
        self._kinds = kinds
        self._expects = expects
        self._happen = happen
        self._listener = same_host.listen(me) if opens else None
        if self._listener is not None:
            poller.register(self._listener, self._on_reader)

    def connect(self, peer: PeerId, pid: int | None = None) -> None:
        """Read from `peer` over a link, if it is on this machine and this is the number of its process there; and let
        it read if it comes, or has come."""
        if self._listener is None:
            return
        self._processes[peer] = pid
        for link in [link for link, name in self._nameless.items() if name == peer]:
            self._leave_nameless(link)
            self._let_in(peer, link)
        found = same_host.connect(self._me, peer, self._secret)
        if found is not None and pid is not None and same_host.process(found) != pid:
            found.close()
        elif found is not None:
            self.origins.add(peer, found, same_host.proof(self._secret, "origin", self._me, peer))

    def ask(self, origin: PeerId, pull: Pull) -> bool:
        """Whether a link took it."""
        return origin in self.origins.links and self.origins.send(origin, encode_header(pull))

    def drop(self, peer: PeerId) -> None:
        """Neither read from it nor let it read."""
        self.origins.drop(peer)
        self.readers.drop(peer)

    def publish(self, header: bytes) -> None:
        """To all readers; any of them may miss it."""
        for reader in self.readers.links:
            self.readers.send(reader, header)

    def lend(self, to: PeerId, message: Range, payload: Payload) -> bool:
        """Give a reader of this machine the files in which the range lies, and copies of what is small. Whether it was
        taken."""
        if to not in self.readers.links or table_of(message):
            return False
        terms = handover.Terms.of(payload)
        if not terms.is_small:
            return False
        try:
            with terms.opened(message) as parts:
                sent = self.readers.send(to, encode_header(replace(message, layout=payload.layout)), parts)
        except OSError:
            return False
        self._figures.handed_out += terms.nbytes if sent else 0
        return sent

    def close(self) -> None:
        self.origins.close()
        self.readers.close()
        for link in self._nameless:
            link.close()
        if self._listener is not None:
            self._listener.close()

    def _on_reader(self) -> None:
        """A reader of this machine has come."""
        assert self._listener is not None
        try:
            link = same_host.accept(self._listener)
        except OSError:  # meanwhile it reads over ZeroMQ
            self._poller.rest(self._listener, ACCEPT_RETRY_S)
            return
        if link is None:
            return
        if len(self.readers.links) >= same_host.LINKS_MAX:
            link.close()
            return
        if len(self._nameless) >= same_host.NAMELESS_MAX:
            oldest = next(iter(self._nameless))
            self._leave_nameless(oldest)
            oldest.close()
        self._nameless[link] = None
        self._poller.register(link, lambda: self._on_name(link))

    def _on_name(self, link: socket.socket) -> None:
        """Its first message says who reads; what follows are its pulls. Where peers have keys, who is not known yet
        waits until it is, which is soon; a pull of who waits is asked again elsewhere."""
        self._leave_nameless(link)
        try:
            reader = same_host.receive_name(link, self._me, self._secret)
        except EOFError:
            link.close()
        except WireError as error:
            self._refuse(error)
            link.close()
        else:
            if self._secret is None or reader in self._processes:
                self._let_in(reader, link)
            else:
                self._nameless[link] = reader

    def _leave_nameless(self, link: socket.socket) -> None:
        if self._nameless.pop(link) is None:
            self._poller.unregister(link)

    def _let_in(self, reader: PeerId, link: socket.socket) -> None:
        """It reads from now on, if the process at the other end is the reader's."""
        pid = self._processes.get(reader)
        if pid is not None and same_host.process(link) != pid:
            self._refuse(WireError("who comes in the name of a peer is another process"))
            link.close()
            return
        self.readers.add(reader, link)

    def _on_request(self, message: Message, packet: same_host.Packet) -> None:
        if not isinstance(message, Pull):
            raise WireError(f"{type(message).__name__} among the pulls of a link")
        self._happen(Received(message))

    def _on_answer(self, message: Message, packet: same_host.Packet) -> None:
        """An advert, or the files with a range: the answer is here, whole."""
        match message:
            case Advert():
                self._happen(Received(message))
            case Range(table=table) if packet.parts and not table.series:
                if not self._expects(message):
                    return
                try:
                    payload = handover.received(message, packet, self._kinds, self._figures)
                except (OSError, UsageError) as error:
                    raise WireError(f"a file that came over a link cannot be read: {error}") from None
                self._happen(Progressed(message.peer))
                self._happen(Received(replace(message, payload=payload)))
            case _:
                raise WireError(f"{type(message).__name__} among the answers of a link")
