"""Pairwise symmetric exchange: two peers meet, and both sides move or neither.

    asks                                          is asked
     |  offer {x, n}                                 |
     |---------------------------------------------->|  free: x += d with d = share (offered x - own x)
     |                                               |        and it remembers d for this n
     |  answer {d, n}     or     busy {n}            |
     |<----------------------------------------------|
     x -= d                                         (an offer that comes again gets the same answer again)

Who has asked is taken until the answer comes, and asks again each round with the same n: so its x is still what it
offered, but for its own training. An n is decided once, also when it is refused, so nothing is applied twice or late.
The mean is exact at every instant if d counts that one side has taken and the other has not yet heard of. When two ask
each other at once, the one with the smaller number is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Integers, Outbox, Packet, Strategy, floats
from gossip.topology import Links, Needs

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
        """Both sides or neither, in one step.

        Where the topology is no matching, each peer draws whom it asks and pairs form greedily in random order. A pair
        one of whose packets is lost does not move (with messages it moves a round or more later).
        """
        peers = len(state.x)
        wanted = exchange.receivers > exchange.senders
        up, arrived = exchange.senders[wanted], exchange.arrived
        other = exchange.receivers[wanted]
        lost = set(zip(exchange.senders[~arrived].tolist(), exchange.receivers[~arrived].tolist(), strict=True))
        if len(np.unique(np.concatenate([up, other]))) < 2 * len(up):
            up, other = _draw_pairs(exchange, peers)
        kept = [(i, j) not in lost and (j, i) not in lost for i, j in zip(up.tolist(), other.tolist(), strict=True)]
        nbytes = len(up) * 2 * (state.x[0].nbytes + 16)
        up, other = up[kept], other[kept]
        moved = self.share * (state.x[up] - state.x[other])
        x = state.x.copy()
        x[other] += moved
        x[up] -= moved
        return replace(state, x=x), nbytes


def _draw_pairs(exchange: Exchange, peers: int) -> tuple[Integers, Integers]:
    """Disjoint pairs of linked peers: in random order each free peer takes a random free neighbor."""
    matrix = exchange.weights
    free = np.ones(peers, bool)
    left, right = [], []
    for peer in exchange.chance.permutation(peers).tolist():
        if not free[peer]:
            continue
        near = matrix.indices[matrix.indptr[peer] : matrix.indptr[peer + 1]]
        near = near[free[near] & (near != peer)]
        if len(near):
            partner = int(exchange.chance.choice(near))
            free[[peer, partner]] = False
            left.append(peer)
            right.append(partner)
    return np.array(left, np.int64), np.array(right, np.int64)
