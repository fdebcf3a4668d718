"""RelaySum: on a tree, sums are passed on, so that every replica reaches everybody with the same weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, floats, summed
from gossip.topology import Links, Needs, Topology


@dataclass(frozen=True)
class Relayed:
    """A replica, and for each neighbor the newest sum from its side of the tree and how many replicas are in it."""

    x: Array
    sums: Mapping[int, tuple[Array, float]] = field(default_factory=dict)
    links: tuple[Array, Array] | None = None
    """The vectorized form: sums (links, parameters) and counts (links, 1), in the order of the exchange's links."""


@dataclass(frozen=True, repr=False)
class RelaySum(Strategy[Relayed]):
    """x_i <- 1/n (sum over all peers of their replica as it was so many rounds ago as they are hops away).

    Each peer sends its neighbor the sum of its own replica and of what its other neighbors sent. A replica that has not
    arrived yet counts as the own one. Data that differ from peer to peer do no harm, since no replica weighs more than
    another; but the mean of different starts is not kept, so start all from the same.

    A sum is made anew in each round and goes away from its sender, so that what it holds is gone from the tree after as
    many rounds as this is deep. When the tree changes, a peer therefore only drops the sums of those who are its
    neighbors no more, and the others' follow. Until then a replica may be in two sums: if they hold more than all
    peers, the mean is that of what they hold. Source: Vogels et al., arXiv:2110.04175.
    """

    peers: int | None = None
    """How many there are in the tree at first; None: whatever it has."""

    needs = Needs.TREE | Needs.STATIC
    synchronous = True
    _sends = "sends sums of replicas, and what a codec drops of a replica is lost, not late"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peers is not None and self.peers < 2:
            raise UsageError(f"{self!r}, expected the number of peers of the tree, at least 2")

    def check(self, topology: Topology) -> None:
        super().check(topology)
        if self.peers is not None and topology.peers != self.peers:
            raise UsageError(f"{self!r} on {topology.name} of {topology.peers} peers, expected {self.peers}")

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        super().check_network(loss=loss, delay=delay, churn=churn, crash=crash)
        for name, share in (("churn", churn), ("crash", crash)):
            if share:
                raise UsageError(
                    f"{name} {share} with {self!r}, whose vectorized form needs its tree whole; use loss, PushSum() or "
                    f"gossip.sim.mix_simulator"
                )

    def says_nothing(self, is_trained: bool) -> str:
        return (
            "its replicas are means of what others were some rounds ago, so that the mean of now follows the steps "
            "of training later, and forgets starts that differ"
        )

    def start(self, x: Array) -> Relayed:
        return Relayed(floats(x))

    def params(self, state: Relayed) -> Array:
        return state.x

    def local(self, state: Relayed, delta: Array, round: int) -> Relayed:
        return replace(state, x=state.x + delta)

    def send(self, state: Relayed, round: int, links: Links, chance: np.random.Generator) -> tuple[Relayed, Outbox]:
        outbox = {}
        for neighbor in links.heard_by:
            others = [each for sender, each in state.sums.items() if sender != neighbor and sender in links.hears]
            total = sum((part for part, _ in others), start=state.x)
            outbox[neighbor] = Packet({"sum": total}, {"count": 1.0 + sum(count for _, count in others)})
        return state, outbox

    def receive(self, state: Relayed, sender: int, packet: Packet) -> tuple[Relayed, Outbox]:
        came = (packet.arrays["sum"], packet.scalars["count"])
        return replace(state, sums={**state.sums, sender: came}), {}

    def finish(self, state: Relayed, round: int, links: Links) -> Relayed:
        sums = {sender: each for sender, each in state.sums.items() if sender in links.hears}
        count = 1.0 + sum(count for _, count in sums.values())
        total = sum((part for part, _ in sums.values()), start=state.x)
        peers = max(links.peers, count)
        return replace(state, x=(total + (peers - count) * state.x) / peers, sums=sums)

    def mix(self, state: Relayed, exchange: Exchange) -> tuple[Relayed, int]:
        receivers, senders, peers = exchange.receivers, exchange.senders, len(state.x)
        shape = (len(receivers), state.x.shape[1])
        sums, counts = (
            state.links if state.links is not None else (np.zeros(shape, state.x.dtype), np.zeros((shape[0], 1)))
        )
        heard, number = summed(receivers, sums, peers), summed(receivers, counts, peers)
        keys = receivers * peers + senders
        order = np.argsort(keys)
        back = order[np.searchsorted(keys[order], senders * peers + receivers)]
        sent = state.x[senders] + heard[senders] - sums[back]
        sent_counts = 1.0 + number[senders] - counts[back]
        arrived = exchange.arrived[:, None]
        sums, counts = np.where(arrived, sent, sums), np.where(arrived, sent_counts, counts)
        total = state.x + summed(receivers, sums, peers)
        count = 1.0 + summed(receivers, counts, peers)
        x = ((total + (peers - count) * state.x) / peers).astype(state.x.dtype, copy=False)
        return replace(state, x=x, links=(sums, counts)), len(receivers) * (state.x[0].nbytes + 8)
