"""Push-sum whose mass is never lost: each link carries the running total of all shares that were ever put on it.

A peer holds a sum x and a weight w, both of which it hands out in shares; x / w tends to the mean of all. A packet does
not carry a share but the total of all shares sent over that link so far, and the receiver adds what is new in it. So a
lost packet's mass comes with the next one, a repeated or overtaken one adds nothing, and at every instant

    sum over peers of x  +  sum over links of (total sent - total seen)  =  sum of what was started with and learned

exactly, if the numbers are multiples of `grid`; else to rounding. The same holds for w.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sparse

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Bools, Exchange, Integers, Outbox, Packet, Strategy, floats
from gossip.topology import Links, Needs

OPPOSITE_LINKS_MAX = 1 << 31
"""A link's key is receiver x this + sender."""


@dataclass(frozen=True)
class Total:
    """Of one link in one direction: how many packets, and the sums of all that they ever carried."""

    n: int
    x: Array
    w: Array


@dataclass(frozen=True)
class Pushed:
    """One peer's sum and weight, and the totals of its links."""

    x: Array
    w: Array
    """(1,) for one peer, (peers, 1) for all."""
    sent: Mapping[int, Total] = field(default_factory=dict)
    seen: Mapping[int, Total] = field(default_factory=dict)
    network: Network | None = None
    """All links of the vectorized form; None as long as nothing was ever late."""


@dataclass(frozen=True)
class Network:
    """What was put on links and not taken off them yet, all peers at once.

    The running totals of the message form are sums of all that a link ever carried; what counts is their difference,
    which these shares are. So a link whose packets come at once costs nothing here, and no share is written down: a
    share is a weight times a row of the replicas of its round, which are still there.
    """

    keys: Integers
    """(shares,) receiver and sender of the link."""
    rounds: Integers
    """(shares,) in which they were sent."""
    rows: Integers
    """(shares,) of the replicas of that round."""
    weights: Array
    """(shares,)"""
    replicas: Mapping[int, tuple[Array, Array]]
    """{round: (x, w)} as they were when shares were sent that wait."""
    coming: tuple[tuple[int, int, Integers], ...] = ()
    """Packets on their way: (round of sending, round of arrival, keys)."""

    def only(self, shares: Bools) -> Network:
        """Some of the shares."""
        rounds = self.rounds[shares]
        kept = {round: each for round, each in self.replicas.items() if (rounds == round).any()}
        return Network(self.keys[shares], rounds, self.rows[shares], self.weights[shares], kept, self.coming)

    def added(self, to: Integers, count: int) -> tuple[Array, Array]:
        """(count, ...) of x and of w: the shares, added up by the number in `to`."""
        x, w = (np.zeros((count, each.shape[1])) for each in next(iter(self.replicas.values())))
        for round, (of_x, of_w) in self.replicas.items():
            now = self.rounds == round
            at, rows, weights = to[now], self.rows[now], self.weights[now]
            if len(at) * of_x.shape[1] <= SMALL:
                np.add.at(x, at, weights[:, None] * of_x[rows])
            else:
                order = np.argsort(at, kind="stable")
                starts = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=count))])
                x += sparse.csr_array((weights[order], rows[order], starts), shape=(count, len(of_x))) @ of_x
            np.add.at(w[:, 0], at, weights * of_w[rows, 0])
        return x, w


SMALL = 2048
"""Up to so many numbers are added up sooner than a sparse matrix is made."""
REPLICAS_MAX = 8
"""So many rounds' replicas are held for shares that wait for a packet to bring them, before these are written down."""


@dataclass(frozen=True, repr=False)
class PushSum(Strategy[Pushed]):
    """Push-sum, with gradients stochastic gradient push, over running sums.

    Needs only that columns sum to one: any directed graph, weights='push'. Takes any delay, loss, duplication and
    reordering without losing mass. Sources: Assran et al., arXiv:1811.10792; running sums from Vaidya et al.,
    arXiv:1109.6391.

    A total grows with time, so the parameters of the state are float64 whatever they were; a float64 total is good
    for 10^6 rounds at 10^-10.
    """

    grid: float | None = None
    """Shares are rounded down to multiples of this power of two; the rest stays with the sender. Sums of such numbers
    are exact as long as they are below 2^53 grid, so the mass is kept to the last bit. None: as floats come."""

    needs = Needs.COLUMNS | Needs.NONNEGATIVE | Needs.CONNECTED
    synchronous = False
    _sends = "sends running totals, which are dense however small the last share was"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid is not None and (self.grid <= 0.0 or np.frexp(self.grid)[0] != 0.5):
            raise UsageError(f"grid {self.grid!r}, expected a power of two such as 2.0**-32, or None")

    def start(self, x: Array) -> Pushed:
        x = floats(x).astype(np.float64)
        return Pushed(x, np.ones((*x.shape[:-1], 1)))

    def params(self, state: Pushed) -> Array:
        params: Array = state.x / state.w
        return params

    def local(self, state: Pushed, delta: Array, round: int) -> Pushed:
        """Adds delta to the sum, so that every peer's steps count alike; x / w moves by delta / w.

        With a `grid`, delta is rounded down to it.
        """
        return replace(state, x=state.x + (delta if self.grid is None else np.floor(delta / self.grid) * self.grid))

    def _share(self, mass: Array, weight: float | Array, total: Array) -> tuple[Array, Array]:
        """(what `total` grows by, exactly; the new total) for a share `weight` of `mass`."""
        share = mass * weight
        if self.grid is not None:
            share = np.floor(share / self.grid) * self.grid
        grown = total + share
        return grown - total, grown

    def send(self, state: Pushed, round: int, links: Links, chance: np.random.Generator) -> tuple[Pushed, Outbox]:
        x, w = state.x, state.w
        sent, outbox = dict(state.sent), {}
        for neighbor, weight in links.heard_by.items():
            total = sent.get(neighbor) or Total(0, np.zeros_like(x), np.zeros_like(w))
            share_x, total_x = self._share(state.x, weight, total.x)
            share_w, total_w = self._share(state.w, weight, total.w)
            x, w = x - share_x, w - share_w
            sent[neighbor] = Total(total.n + 1, total_x, total_w)
            outbox[neighbor] = Packet({"x": total_x}, {"w": float(total_w[0]), "n": total.n + 1})
        return replace(state, x=x, w=w, sent=sent), outbox

    def receive(self, state: Pushed, sender: int, packet: Packet) -> tuple[Pushed, Outbox]:
        x, w = packet.arrays["x"], np.array([packet.scalars["w"]])
        n = int(packet.scalars["n"])
        seen = state.seen.get(sender) or Total(0, np.zeros_like(state.x), np.zeros_like(state.w))
        if n <= seen.n:
            return state, {}
        return replace(
            state,
            x=state.x + (x - seen.x),
            w=state.w + (w - seen.w),
            seen={**state.seen, sender: Total(n, x, w)},
        ), {}

    def weight(self, state: Pushed) -> float:
        return float(state.w[0])

    def give_up(self, state: Pushed, neighbor: int, taken: Packet | None = None) -> tuple[Pushed, Outbox]:
        """Takes back what was put on the link and not taken. If some of it was taken after all, the neighbor finds a
        smaller total in the next packet that comes, and gives back as much: no mass is counted twice.
        """
        total = state.sent.get(neighbor)
        if total is None:
            return state, {}
        x = np.zeros_like(state.x) if taken is None else taken.arrays["x"]
        w = np.zeros_like(state.w) if taken is None else np.array([taken.scalars["w"]])
        sent = {**state.sent, neighbor: Total(total.n, x, w)}
        return replace(state, x=state.x + (total.x - x), w=state.w + (total.w - w), sent=sent), {}

    def mix(self, state: Pushed, exchange: Exchange) -> tuple[Pushed, int]:
        nbytes = len(exchange.values) * (state.x[0].nbytes + 16)
        if exchange.is_whole and state.network is None and self.grid is None:
            return replace(state, x=exchange.weights @ state.x, w=exchange.weights @ state.w), nbytes
        return self._mix_late(state, exchange), nbytes

    def _mix_late(self, state: Pushed, exchange: Exchange) -> Pushed:
        """What arrives in its round is a product with W; the rest waits by link until some packet brings it."""
        peers, round, at_once = len(state.x), exchange.round, exchange.arrived
        keys = exchange.receivers * OPPOSITE_LINKS_MAX + exchange.senders
        sent = Network(keys, np.full(len(keys), round), exchange.senders, exchange.values, {round: (state.x, state.w)})
        if self.grid is None:
            matrix = exchange.only(at_once)
            x, w = matrix @ state.x, matrix @ state.w
        else:
            x, w = (
                np.floor(held[exchange.senders] * exchange.values[:, None] / self.grid) * self.grid
                for held in (state.x, state.w)
            )
            sent = Network(keys, sent.rounds, np.arange(len(keys)), np.ones(len(keys)), {round: (x, w)})
            out_x, out_w = sent.added(exchange.senders, peers)
            in_x, in_w = sent.only(at_once).added(exchange.receivers[at_once], peers) if at_once.any() else (0.0, 0.0)
            x, w = state.x - out_x + in_x, state.w - out_w + in_w
        known = state.network
        came = [(round, keys[at_once])]
        if known is not None:
            came += [(sent_in, link) for sent_in, at, link in known.coming if at <= round]
        coming = () if known is None else tuple(packets for packets in known.coming if packets[1] > round)
        if exchange.lag is not None:
            late = np.unique(exchange.lag[exchange.lag > 0]).tolist()
            coming += tuple((round, round + lag, keys[exchange.lag == lag]) for lag in late)
        network = replace(_with(known, sent.only(~at_once)), coming=coming)
        taken = np.zeros(len(network.keys), bool)
        for sent_in, link in came:
            taken |= (network.rounds <= sent_in) & _among(network.keys, link)
        if taken.any():
            come = network.only(taken)
            in_x, in_w = come.added(come.keys // OPPOSITE_LINKS_MAX, peers)
            x, w = x + in_x, w + in_w
            network = network.only(~taken)
        return replace(state, x=x, w=w, network=_few(network, round))

    def mass(self, state: Pushed) -> tuple[Array, float]:
        x, w = state.x.sum(axis=0), float(state.w.sum())
        if state.network is not None:
            for round, (of_x, of_w) in state.network.replicas.items():
                now = state.network.rounds == round
                held = np.bincount(state.network.rows[now], state.network.weights[now], minlength=len(of_x))
                x, w = x + held @ of_x, w + float((held @ of_w)[0])
        return x, w


def ledger(states: Mapping[int, Pushed]) -> tuple[Array, float]:
    """(sum of x, sum of w) over peers and over everything in flight between them."""
    x, w = sum_of(state.x for state in states.values()), sum_of(state.w for state in states.values())
    for me, state in states.items():
        for other, total in state.sent.items():
            seen = states[other].seen.get(me)
            x, w = x + total.x - (0.0 if seen is None else seen.x), w + total.w - (0.0 if seen is None else seen.w)
    return x, float(w[0])


def sum_of(arrays: Iterable[Array]) -> Array:
    """The sum of arrays of one shape."""
    total: Array = np.sum(list(arrays), axis=0)
    return total


def _with(network: Network | None, more: Network) -> Network:
    if network is None:
        return more
    return Network(
        np.concatenate([network.keys, more.keys]),
        np.concatenate([network.rounds, more.rounds]),
        np.concatenate([network.rows, more.rows]),
        np.concatenate([network.weights, more.weights]),
        {**network.replicas, **more.replicas},
    )


def _among(values: Integers, these: Integers) -> Bools:
    """Which values are among `these`; np.isin, several times as fast for the few there are."""
    if not len(values) or not len(these):
        return np.zeros(len(values), bool)
    these = np.sort(these)
    found: Bools = these[np.minimum(np.searchsorted(these, values), len(these) - 1)] == values
    return found


def _few(network: Network, round: int) -> Network:
    """Shares that are older than all packets on their way go together, link by link: whatever comes takes them all."""
    oldest = min((sent for sent, _, _ in network.coming), default=round + 1)
    old = network.rounds < oldest
    if len({*network.rounds[old].tolist()}) <= REPLICAS_MAX:
        return network
    before = network.only(old)
    keys = np.unique(before.keys)
    x, w = before.added(np.searchsorted(keys, before.keys), len(keys))
    last, count = int(before.rounds.max()), len(keys)
    together = Network(keys, np.full(count, last), np.arange(count), np.ones(count), {last: (x, w)})
    return replace(_with(together, network.only(~old)), coming=network.coming)
