"""Pairwise symmetric exchange: two peers meet, and both sides move or neither.

    asks                                          is asked
     |  offer {x, n}                                 |
     |---------------------------------------------->|  free: x += d with d = share (offered x - own x)
     |                                               |        and it remembers d for this n
     |  answer {d, n}     or     busy {n}            |
     |<----------------------------------------------|
     x -= d                                         (an offer that comes again gets the same answer again)

A peer that has asked is taken until the answer comes, and asks again each round with the same n: so its x is still the
one that it offered, but for its own training. An n is decided once, also when it is refused, so nothing is applied
twice or late. The mean is exact at every instant if a d counts that one side has taken and of which the other has not
yet heard. When two peers ask each other at once, the one with the smaller number is served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, floats
from gossip.topology import Links, Needs, all_links

OFFER, ANSWER, BUSY = 0.0, 1.0, 2.0
"""What a packet is."""


@dataclass(frozen=True)
class Paired:
    """A replica, the offer that is open, and the last answer that each neighbor got."""

    x: Array
    me: int = -1
    asked: int | None = None
    """Whom it has made an offer to that is not answered."""
    offered: Array | None = None
    n: int = 0
    """Of its newest offer."""
    answered: Mapping[int, tuple[int, Array | None]] = field(default_factory=dict)
    """For each neighbor that asked, the n of its newest offer that was decided, and what moved; None if refused."""
    held: tuple[int, Packet] | None = None
    """An offer that waits until its own is answered."""
    meeting: Meeting | None = None
    """In the vectorized form, what lasts longer than a round."""


@dataclass(frozen=True)
class Meeting:
    """All peers' handshakes, and the packets that are under way."""

    peers: tuple[Paired, ...]
    flying: tuple[tuple[int, int, int, Packet], ...] = ()
    """(round of arrival, sender, receiver, packet), in the order in which they were sent."""
    ages: Mapping[int, int] = field(default_factory=dict)
    """Of the packets that were sent in this round; -1 for those that never come."""


@dataclass(frozen=True, repr=False)
class PairwiseExchange(Strategy[Paired]):
    """Randomized gossip with a handshake: the pair's mean is kept by every exchange, so the mean of all is exact.

    In each round a free peer asks one of its neighbors, drawn with `chance`; where the topology is a matching only the
    smaller number of each pair asks. E[S'/S] = 1 - 1/(n-1) for one random pair, (n-2) / (2(n-1)) for a random perfect
    matching. Source: Boyd et al., Randomized gossip algorithms, 2006.

    A neighbor that dies with an offer open blocks the asker until the driver calls `give_up`.
    """

    share: float = 0.5
    """How far each moves towards the other; 1/2 is the mean of the two."""

    needs = Needs.ROWS | Needs.COLUMNS | Needs.NONNEGATIVE | Needs.SYMMETRIC
    synchronous = False
    answers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.share <= 0.5:
            raise UsageError(f"share {self.share}, expected more than 0 and at most 0.5, where the two meet")

    def start(self, x: Array) -> Paired:
        return Paired(floats(x))

    def params(self, state: Paired) -> Array:
        return state.x

    def local(self, state: Paired, delta: Array, round: int) -> Paired:
        return replace(state, x=state.x + delta)

    def send(self, state: Paired, round: int, links: Links, chance: np.random.Generator) -> tuple[Paired, Outbox]:
        state = replace(state, me=links.me)
        if state.asked is None:
            neighbors = sorted(links.heard_by)
            if not neighbors or (len(neighbors) == 1 and neighbors[0] < links.me):
                return state, {}
            asked = neighbors[int(chance.integers(len(neighbors)))] if len(neighbors) > 1 else neighbors[0]
            state = replace(state, asked=asked, offered=state.x, n=state.n + 1)
        assert state.asked is not None
        assert state.offered is not None
        return state, {state.asked: Packet({"x": state.offered}, {"kind": OFFER, "n": state.n})}

    def receive(self, state: Paired, sender: int, packet: Packet) -> tuple[Paired, Outbox]:
        if packet.scalars["kind"] == OFFER:
            return self._offered(state, sender, packet)
        if sender != state.asked or packet.scalars["n"] != state.n:
            return state, {}
        state = replace(state, asked=None, offered=None)
        if packet.scalars["kind"] == ANSWER:
            state = replace(state, x=state.x - packet.arrays["d"])
        return self._release(state)

    def _release(self, state: Paired) -> tuple[Paired, Outbox]:
        if state.held is None:
            return state, {}
        sender, packet = state.held
        return self._offered(replace(state, held=None), sender, packet)

    def _offered(self, state: Paired, sender: int, packet: Packet) -> tuple[Paired, Outbox]:
        n = int(packet.scalars["n"])
        known, moved = state.answered.get(sender, (0, None))
        if n < known:
            return state, {}
        if n > known:
            if state.asked == sender and state.me > sender:
                return replace(state, held=(sender, packet)), {}
            moved = None
            if state.asked is None:
                moved = (self.share * (packet.arrays["x"] - state.x)).astype(state.x.dtype, copy=False)
                state = replace(state, x=state.x + moved)
            state = replace(state, answered={**state.answered, sender: (n, moved)})
        if moved is None:
            return state, {sender: Packet({}, {"kind": BUSY, "n": n})}
        return state, {sender: Packet({"d": moved}, {"kind": ANSWER, "n": n})}

    def give_up(self, state: Paired, neighbor: int, taken: Packet | None = None) -> tuple[Paired, Outbox]:
        """`neighbor` is gone: an offer to it is void. If it had taken it, the mean has moved by d / n for good."""
        held = None if state.held is not None and state.held[0] == neighbor else state.held
        state = replace(state, held=held)
        return self._release(replace(state, asked=None, offered=None)) if state.asked == neighbor else (state, {})

    def mix(self, state: Paired, exchange: Exchange) -> tuple[Paired, int]:
        """Pairs of a matching meet in one step where nothing is lost or late; else the handshake is gone through.

        There a packet may be lost or late, two may ask each other, and who is asked may be waiting for somebody else:
        then some exchanges come about a round or more later, or not at all, as they do with messages.
        """
        wanted = exchange.receivers > exchange.senders
        up, other = exchange.senders[wanted], exchange.receivers[wanted]
        is_matching = len(np.unique(np.concatenate([up, other]))) == 2 * len(up)
        apart = state.meeting is not None or exchange.lag is not None or exchange.speaker is not None
        if apart or not is_matching:
            return self._meet(state, exchange)
        moved = self.share * (state.x[up] - state.x[other])
        x = state.x.copy()
        x[other] += moved
        x[up] -= moved
        return replace(state, x=x), len(up) * 2 * (state.x[0].nbytes + 16)

    def _meet(self, state: Paired, exchange: Exchange) -> tuple[Paired, int]:
        before = state.meeting or Meeting(tuple(map(Paired, state.x)))
        peers = [replace(peer, x=row) for peer, row in zip(before.peers, state.x, strict=True)]
        post = _Post(exchange, [*before.flying])
        all_of = list(all_links(exchange.weights))
        for me in range(len(peers)) if exchange.speaker is None else (exchange.speaker,):
            peers[me], outbox = self.send(peers[me], exchange.round, all_of[me], exchange.chance)
            post.put(me, outbox)
        self._deliver(peers, post)
        meeting = Meeting(tuple(peers), tuple(post.flying), dict(sorted(post.ages.items())))
        return replace(state, x=np.stack([peer.x for peer in peers]), meeting=meeting), post.nbytes

    def _deliver(self, peers: list[Paired], post: _Post) -> None:
        while (flight := post.next()) is not None:
            sender, receiver, packet = flight
            peers[receiver], replies = self.receive(peers[receiver], sender, packet)
            post.put(receiver, replies)

    def mass(self, state: Paired) -> tuple[Array, float]:
        """What one side has taken and the other has not heard of is in flight."""
        x, weight = super().mass(state)
        for me, peer in enumerate(() if state.meeting is None else state.meeting.peers):
            if peer.asked is not None:
                n, moved = state.meeting.peers[peer.asked].answered.get(me, (0, None))  # type: ignore[union-attr]
                x = x - moved if n == peer.n and moved is not None else x
        return x, weight

    def ages(self, state: Paired, exchange: Exchange) -> Mapping[int, int]:
        return super().ages(state, exchange) if state.meeting is None else state.meeting.ages


class _Post:
    """What carries packets within one round."""

    def __init__(self, exchange: Exchange, flying: list[tuple[int, int, int, Packet]]) -> None:
        self.flying, self.nbytes = flying, 0
        self.ages: Counter[int] = Counter()
        self._round, self._later = exchange.round, exchange.later
        links = zip(exchange.senders.tolist(), exchange.receivers.tolist(), strict=True)
        self._lags = {} if exchange.lag is None else dict(zip(links, exchange.lag.tolist(), strict=True))

    def put(self, sender: int, outbox: Outbox) -> None:
        """An offer goes over its link in this round, if there is one; an answer, or an offer again, goes by itself."""
        for receiver, packet in outbox.items():
            self.nbytes += packet.nbytes
            lag = self._lags.get((sender, receiver), None) if packet.scalars["kind"] == OFFER else None
            if lag is None:
                lag = 0 if self._later is None else int(self._later(1)[0])
            self.ages[lag] += 1
            if lag >= 0:
                self.flying.append((self._round + lag, sender, receiver, packet))

    def next(self) -> tuple[int, int, Packet] | None:
        """The next packet that is due."""
        for at, (due, sender, receiver, packet) in enumerate(self.flying):
            if due <= self._round:
                del self.flying[at]
                return sender, receiver, packet
        return None
