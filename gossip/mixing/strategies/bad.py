"""Bad examples: strategies that look like averaging and are not, kept to be measured.

Each agrees with itself, and so passes a test that looks at the distance between peers only. Its docstring says what is
wrong, and what theory predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gossip.arrays import Array
from gossip.compression import Codec, Encoded
from gossip.errors import UsageError
from gossip.mixing.strategies.averaging import Averaged, DPsgd
from gossip.mixing.strategy import Exchange, Integers, Outbox, Packet, Strategy, averaged, floats, summed
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Replica:
    """Nothing but the parameters."""

    x: Array


class _Overwriting(Strategy[Replica]):
    """x_i <- x_i + a (x_j - x_i) for each replica that comes; the sender does not move."""

    amount: float
    synchronous = False
    needs = Needs.ROWS | Needs.NONNEGATIVE
    is_bad_example = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.amount < 1.0:
            raise UsageError(f"amount {self.amount}, expected a share between 0 and 1")

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        if delay:
            raise UsageError(f"{self!r} with delay is not built: its bias needs none; use loss only")

    def start(self, x: Array) -> Replica:
        return Replica(floats(x))

    def params(self, state: Replica) -> Array:
        return state.x

    def local(self, state: Replica, delta: Array, round: int) -> Replica:
        return Replica(state.x + delta)

    def send(self, state: Replica, round: int, links: Links, chance: np.random.Generator) -> tuple[Replica, Outbox]:
        return state, dict.fromkeys(sorted(links.heard_by), Packet({"x": state.x}))

    def receive(self, state: Replica, sender: int, packet: Packet) -> tuple[Replica, Outbox]:
        return Replica(state.x + self.amount * (packet.arrays["x"] - state.x)), {}

    def mix(self, state: Replica, exchange: Exchange) -> tuple[Replica, int]:
        """What comes to one peer is taken in the order of the senders' numbers."""
        x = state.x.copy()
        arrived = exchange.arrived
        receivers, senders = exchange.receivers[arrived], exchange.senders[arrived]
        order = np.lexsort((senders, receivers))
        receivers, senders = receivers[order], senders[order]
        turn = np.arange(len(receivers)) - np.searchsorted(receivers, receivers)
        for number in range(int(turn.max(initial=-1)) + 1):
            now = turn == number
            x[receivers[now]] += self.amount * (state.x[senders[now]] - x[receivers[now]])
        return Replica(x), len(exchange.values) * x[0].nbytes


@dataclass(frozen=True, repr=False)
class OneWayPull(_Overwriting):
    """Bad: a peer fetches another's replica and moves towards it; the other does not move, so the mean does.

    Peers agree, on a value whose squared distance to the true mean is a n / (n^2 (1 - a) + n a) of the variance they
    started with, in expectation, on `topology.random_pull`.
    """

    amount: float = 0.5
    """How far it moves, a."""


@dataclass(frozen=True, repr=False)
class PubSubAveraging(_Overwriting):
    """Bad: who publishes is heard by all, and all move towards it. Consensus looks perfect, S' = (1 - a)^2 S.

    E[(limit - mean)^2] is a / (2 - a) of the variance they started with, however many peers there are, on
    `topology.random_publisher`.
    """

    amount: float = 0.5
    """How far they move, a."""


@dataclass(frozen=True)
class Shared:
    """A sum and a weight; the packets of the vectorized form that are still on their way."""

    x: Array
    w: Array
    coming: tuple[tuple[int, Integers, Array], ...] = ()
    """(round of arrival, receivers, shares)."""


@dataclass(frozen=True, repr=False)
class PlainPushSum(Strategy[Shared]):
    """Bad on a network that loses packets: push-sum that sends shares, whose mass is gone with the packet.

    With loss q, one receiver and weight 1/2: E[sum of w / n] = (1 - q/2)^T after T rounds, and x / w tends to a mean of
    what happened to survive. A packet that comes twice makes mass. Without loss it is exact: Kempe et al.,
    Gossip-based computation of aggregate information, 2003.
    """

    needs = Needs.COLUMNS | Needs.NONNEGATIVE | Needs.CONNECTED
    synchronous = False
    is_bad_example = True
    _sends = "sends shares of a mass, and what a codec drops of a share is lost, not late"

    def start(self, x: Array) -> Shared:
        x = floats(x).astype(np.float64)
        return Shared(x, np.ones((*x.shape[:-1], 1)))

    def params(self, state: Shared) -> Array:
        params: Array = state.x / state.w
        return params

    def local(self, state: Shared, delta: Array, round: int) -> Shared:
        return replace(state, x=state.x + delta)

    def send(self, state: Shared, round: int, links: Links, chance: np.random.Generator) -> tuple[Shared, Outbox]:
        outbox = {
            neighbor: Packet({"x": weight * state.x}, {"w": float(weight * state.w[0])})
            for neighbor, weight in links.heard_by.items()
        }
        return replace(state, x=links.own * state.x, w=links.own * state.w), outbox

    def receive(self, state: Shared, sender: int, packet: Packet) -> tuple[Shared, Outbox]:
        return replace(state, x=state.x + packet.arrays["x"], w=state.w + packet.scalars["w"]), {}

    def mix(self, state: Shared, exchange: Exchange) -> tuple[Shared, int]:
        held = np.concatenate([state.x, state.w], axis=1)
        shares = exchange.values[:, None] * held[exchange.senders]
        lag = np.zeros(len(shares), np.int64) if exchange.lag is None else exchange.lag
        held = exchange.own * held
        coming = [
            *state.coming,
            *(
                (exchange.round + late, exchange.receivers[lag == late], shares[lag == late])
                for late in np.unique(lag[lag >= 0]).tolist()
            ),
        ]
        for at, receivers, values in coming:
            if at <= exchange.round:
                held = held + summed(receivers, values, len(held))
        still = tuple(packets for packets in coming if packets[0] > exchange.round)
        nbytes = len(shares) * (state.x[0].nbytes + 8)
        return replace(state, x=held[:, :-1], w=held[:, -1:], coming=still), nbytes

    def mass(self, state: Shared) -> tuple[Array, float]:
        x, w = state.x.sum(axis=0), float(state.w.sum())
        for _, _, shares in state.coming:
            x, w = x + shares[:, :-1].sum(axis=0), w + float(shares[:, -1].sum())
        return x, w


@dataclass(frozen=True, repr=False)
class CompressedReplicas(DPsgd):
    """Bad: D-PSGD with replicas cut down by a codec, x_i <- x_i + sum_j w_ij (Q(x_j) - Q(x_i)).

    The mean is kept and the distance falls at first, and then stalls: what the codec never sends is never averaged.
    """

    codec: Codec

    is_bad_example = True

    def send(self, state: Averaged, round: int, links: Links, chance: np.random.Generator) -> tuple[Averaged, Outbox]:
        encoded = self.codec.encode(state.x, chance)
        inbox = {**state.inbox, links.me: self.codec.decode(encoded)}
        return replace(state, inbox=inbox), dict.fromkeys(links.heard_by, Packet(encoded.parts))

    def receive(self, state: Averaged, sender: int, packet: Packet) -> tuple[Averaged, Outbox]:
        came = self.codec.decode(Encoded(packet.arrays, state.x.shape, state.x.dtype))
        return replace(state, inbox={**state.inbox, sender: came}), {}

    def finish(self, state: Averaged, round: int, links: Links) -> Averaged:
        own, x = state.inbox[links.me], state.x
        for sender, weight in links.hears.items():
            if sender in state.inbox:
                x = x + weight * (state.inbox[sender] - own)
        return replace(state, x=x, inbox={})

    def mix(self, state: Averaged, exchange: Exchange) -> tuple[Averaged, int]:
        sent, nbytes = self.codec.rows(state.x, exchange.chance)
        x = state.x + (averaged(exchange.mixing, sent) - sent)
        return replace(state, x=x), int(nbytes[exchange.senders].sum())


@dataclass(frozen=True)
class Broadcasting:
    """A replica, and what it learned since the last round."""

    x: Array
    delta: Array


@dataclass(frozen=True, repr=False)
class DeltaBroadcast(Strategy[Broadcasting]):
    """Bad on a network that loses packets: everybody adds everybody's deltas, and nothing repairs what is lost.

    Replicas drift apart for ever: E|x_i - x_j|^2 = T s^2 v [(n - 2) 2 q (1 - q) + 2 q] for each parameter after T
    rounds with loss q, v the mean square of a delta. On a complete graph, whose weights are not used.
    """

    scale: float = 1.0
    """What a delta is multiplied by, s: 1/n for the mean of all peers' steps, 1 for their sum."""

    needs = Needs.EXACT
    synchronous = False
    is_bad_example = True
    _sends = "sends deltas that nobody keeps, and what a codec drops of one is lost, not late"

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        if delay:
            raise UsageError(f"{self!r} with delay is not built: its drift needs none; use loss only")

    def says_nothing(self, is_trained: bool) -> str:
        return "it moves all peers by every delta, times its scale, and not by their mean" if is_trained else ""

    def start(self, x: Array) -> Broadcasting:
        x = floats(x)
        return Broadcasting(x, np.zeros_like(x))

    def params(self, state: Broadcasting) -> Array:
        return state.x

    def local(self, state: Broadcasting, delta: Array, round: int) -> Broadcasting:
        return Broadcasting(state.x + self.scale * delta, state.delta + delta)

    def send(
        self, state: Broadcasting, round: int, links: Links, chance: np.random.Generator
    ) -> tuple[Broadcasting, Outbox]:
        packet = Packet({"delta": state.delta})
        return replace(state, delta=np.zeros_like(state.x)), dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Broadcasting, sender: int, packet: Packet) -> tuple[Broadcasting, Outbox]:
        return replace(state, x=state.x + self.scale * packet.arrays["delta"]), {}

    def mix(self, state: Broadcasting, exchange: Exchange) -> tuple[Broadcasting, int]:
        arrived = exchange.arrived
        heard = exchange.matrix(np.ones(int(arrived.sum())), arrived, keep_rows=True)
        heard.setdiag(0.0)
        x = state.x + self.scale * averaged(heard, state.delta)
        return Broadcasting(x, np.zeros_like(x)), len(exchange.values) * x[0].nbytes
