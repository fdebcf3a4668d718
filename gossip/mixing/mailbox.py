"""A peer's packets: those that wait for each reader, those that others offer, and those that are asked for.

put --> offered to all, pulled one by one <-- requests      accept: a packet that was asked for
"""

from __future__ import annotations

from collections.abc import Iterable

from gossip.errors import hold
from gossip.events import Effect, Send
from gossip.messages import Offer, PacketReply, PacketRequest, PeerId
from gossip.mixing.packets import Incoming, Outgoing
from gossip.mixing.strategy import Packet


class Mailbox:
    """One peer's."""

    def __init__(self, me: PeerId, timeout_s: float, requests_max: int) -> None:
        """A request without any sign of an answer is given up after `timeout_s`."""
        self.me = me
        self.incoming: dict[PeerId, Incoming] = {}
        self.outgoing: dict[PeerId, Outgoing] = {}
        self.early: dict[PeerId, PacketReply] = {}
        """Packets of rounds that were not begun here, one of each peer at most: no more is asked for before."""
        self._timeout_s = timeout_s
        self._requests_max = requests_max
        self._k = 0
        self._asking: set[PeerId] = set()
        """Of whom something may have to be asked for, or who is to be told that something came."""
        self._asked: dict[PeerId, float] = {}
        """Of whom something was asked, and when that is given up."""

    # ------------------------------------------------------------------------------------------------------- outgoing

    def put(self, reader: PeerId, place: int, packet: Packet, computed: int, *, answers: bool, replaces: bool) -> None:
        """A packet of the round of that place waits for `reader`."""
        outgoing = self.outgoing.setdefault(reader, Outgoing())
        outgoing.put(place, packet, computed, answers=answers, replaces=replaces)

    def waits(self, reader: PeerId) -> bool:
        """It has not taken all that there is for it."""
        return reader in self.outgoing and bool(self.outgoing[reader].waiting)

    def waiting(self) -> dict[PeerId, int]:
        """For whom something waits, and the newest of it: what an offer says."""
        return {peer: outgoing.n for peer, outgoing in sorted(self.outgoing.items()) if outgoing.waiting}

    def clear(self) -> None:
        """Nothing waits any more."""
        for outgoing in self.outgoing.values():
            outgoing.waiting.clear()

    def taken(self, request: PacketRequest) -> int:
        """The request says that packets came; how many updates were known to the newest of them."""
        outgoing = self.outgoing.get(request.peer)
        return outgoing.taken(request.n) if outgoing is not None else 0

    def answer(self, request: PacketRequest) -> list[Effect]:
        """The next packet; at once, or when there is one."""
        outgoing = self.outgoing.get(request.peer)
        if outgoing is None:
            return []
        outgoing.owed_k = None
        if outgoing.waiting:
            return [self._reply(request.peer, outgoing, request.k)]
        if request.n < outgoing.n:
            outgoing.owed_k = request.k
        return []

    def owed(self) -> list[Effect]:
        """Answers to requests that came when there was nothing to answer them with."""
        effects: list[Effect] = []
        for peer, outgoing in self.outgoing.items():
            if outgoing.owed_k is not None and outgoing.waiting:
                effects.append(self._reply(peer, outgoing, outgoing.owed_k))
                outgoing.owed_k = None
        return effects

    def _reply(self, reader: PeerId, outgoing: Outgoing, k: int) -> Effect:
        reply = outgoing.waiting[0].reply(self.me, outgoing.n, k)
        outgoing.nbytes += reply.layout.nbytes
        return Send(reader, reply)

    # ------------------------------------------------------------------------------------------------------- incoming

    def on_offer(self, offer: Offer, now: float) -> None:
        """How far its owner is, and whether there is something for us."""
        incoming = self.incoming.setdefault(offer.peer, Incoming())
        if offer.rounds > incoming.rounds:
            incoming.rounds, incoming.begun_at = offer.rounds, now
        waiting = offer.waiting.get(self.me, 0)
        incoming.offered = max(incoming.offered, waiting)
        if waiting:  # also if we have it: it has not heard so
            self._asking.add(offer.peer)

    def requests(self, now: float) -> list[Effect]:
        """Ask for what is offered, and say what came; one request to each at a time."""
        for peer in [peer for peer, due in self._asked.items() if now >= due]:
            del self._asked[peer]
            self._asking.add(peer)
        effects: list[Effect] = []
        for peer in sorted(self._asking):
            if peer in self._asked or len(self._asked) >= self._requests_max:
                continue
            self._asking.discard(peer)
            incoming = self.incoming[peer]
            self._k += 1
            incoming.k = self._k
            effects.append(Send(peer, PacketRequest(self.me, incoming.n, self._k)))
            if incoming.offered > incoming.n and peer not in self.early:
                self._asked[peer] = now + self._timeout_s
        return effects

    def progressed(self, peer: PeerId, now: float) -> None:
        """Part of an answer came."""
        if peer in self._asked:
            self._asked[peer] = now + self._timeout_s

    def expects(self, reply: PacketReply) -> bool:
        """It answers our newest request, and is new."""
        incoming = self.incoming.get(reply.peer)
        return incoming is not None and incoming.k == reply.k and reply.n > incoming.n

    def accept(self, reply: PacketReply) -> bool:
        """A packet came; whether it is to be dealt with."""
        if not self.expects(reply) or reply.peer in self.early:
            return False  # where links go one way, a neighbor may be further ahead: it is asked again in time
        incoming = self.incoming[reply.peer]
        incoming.n = reply.n
        incoming.offered = max(incoming.offered, reply.newest)
        self._asked.pop(reply.peer, None)
        self._asking.add(reply.peer)  # to say that it came
        return True

    def due(self, place: int) -> Iterable[PacketReply]:
        """Take out the early packets of rounds before `place`."""
        for peer in [peer for peer in self.early if self.early[peer].round < place]:
            yield self.early.pop(peer)
            self._asking.add(peer)

    def deadline(self) -> float:
        """When the first request is given up."""
        return min(self._asked.values(), default=float("inf"))

    def drop(self, peer: PeerId) -> Packet | None:
        """Nothing more is exchanged with it; the last packet that it took."""
        self._asking.discard(peer)
        self._asked.pop(peer, None)
        self.early.pop(peer, None)
        if peer not in self.outgoing:
            return None
        outgoing = self.outgoing[peer]
        outgoing.waiting.clear()
        outgoing.owed_k = None
        return outgoing.last

    def check(self) -> None:
        """What must hold between two events."""
        hold(self.me not in self.outgoing, "nobody sends packets to itself", self.me)
        for reader, outgoing in self.outgoing.items():
            before = 0
            for waiting in outgoing.waiting:
                hold(before < waiting.n, "packets wait in the order of their numbers", reader, before, waiting.n)
                before = waiting.n
            hold(before in (0, outgoing.n), "the newest packet that waits is number n", reader, before, outgoing.n)
            owes = outgoing.owed_k is not None and before > 0
            hold(not owes, "who waits for a packet is given it when there is one", reader, outgoing.owed_k)
        known = self.incoming.keys()
        for peer, incoming in self.incoming.items():
            hold(incoming.k is None or incoming.k <= self._k, "requests are numbered", peer, incoming, self._k)
        hold(self._asking <= known, "only owners of packets are to be asked", sorted(self._asking))
        hold(self._asked.keys() <= known, "only owners of packets are asked", sorted(self._asked))
        hold(len(self._asked) <= self._requests_max, "requests_max requests at the most", sorted(self._asked))
        for peer, early in self.early.items():
            n = self.incoming[peer].n
            hold(early.n == n, "no more is asked for before an early packet is taken in", peer, early.n, n)
