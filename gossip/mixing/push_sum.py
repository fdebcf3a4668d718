"""Push-sum whose mass is never lost: each link carries the running total of what was ever put on it.

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

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Integers, Outbox, Packet, Strategy, floats, summed
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
    """The totals of all links at once, rows in the order of `keys`; x and w stand side by side in columns."""

    keys: Integers
    """(links,) sorted; receiver and sender of each."""
    sent: Array
    """(links, parameters + 1)"""
    seen: Array
    """(links, parameters + 1)"""
    newest: Integers
    """(links,) round of the newest packet seen; -1 for none."""
    coming: tuple[tuple[int, int, Integers, Array], ...] = ()
    """Packets on their way: (round of sending, round of arrival, keys, totals)."""


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
        peers, columns = len(state.x), state.x.shape[1] + 1
        held = np.concatenate([state.x, state.w], axis=1)
        order = np.lexsort((exchange.senders, exchange.receivers))
        senders = exchange.senders[order]
        keys = exchange.receivers[order] * OPPOSITE_LINKS_MAX + senders
        network = _with_keys(state.network, keys, columns)
        rows = np.searchsorted(network.keys, keys)
        share, totals = self._share(held[senders], exchange.values[order][:, None], network.sent[rows])
        held = held - summed(senders, share, peers)
        sent = network.sent.copy()
        sent[rows] = totals
        lag = np.zeros(len(keys), np.int64) if exchange.lag is None else exchange.lag[order]
        coming = list(network.coming)
        for late in np.unique(lag[lag >= 0]).tolist():
            now = lag == late
            coming.append((exchange.round, exchange.round + late, keys[now], totals[now]))
        seen, newest = network.seen.copy(), network.newest.copy()
        for sent_round, at, link_keys, values in coming:
            if at > exchange.round:
                continue
            rows = np.searchsorted(network.keys, link_keys)
            new = newest[rows] < sent_round
            rows, values = rows[new], values[new]
            held = held + summed(network.keys[rows] // OPPOSITE_LINKS_MAX, values - seen[rows], peers)
            seen[rows] = values
            newest[rows] = sent_round
        still = tuple(packets for packets in coming if packets[1] > exchange.round)
        return replace(
            state,
            x=held[:, :-1],
            w=held[:, -1:],
            network=Network(network.keys, sent, seen, newest, still),
        )

    def mass(self, state: Pushed) -> tuple[Array, float]:
        x, w = state.x.sum(axis=0), float(state.w.sum())
        if state.network is not None:
            flying = (state.network.sent - state.network.seen).sum(axis=0)
            x, w = x + flying[:-1], w + float(flying[-1])
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


def _with_keys(network: Network | None, keys: Integers, columns: int) -> Network:
    """`network` with a row for each of `keys`."""
    if network is None:
        zeros = np.zeros((len(keys), columns))
        return Network(keys, zeros, zeros, np.full(len(keys), -1))
    if len(keys) == len(network.keys) and np.array_equal(keys, network.keys):
        return network
    union = np.union1d(network.keys, keys)
    if len(union) == len(network.keys):
        return network
    rows = np.searchsorted(union, network.keys)
    sent, seen = np.zeros((len(union), columns)), np.zeros((len(union), columns))
    newest = np.full(len(union), -1)
    sent[rows], seen[rows], newest[rows] = network.sent, network.seen, network.newest
    return replace(network, keys=union, sent=sent, seen=seen, newest=newest)
