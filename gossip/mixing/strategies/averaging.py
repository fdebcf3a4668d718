"""Averaging with the neighbors' replicas: x_i <- sum_j w_ij x_j, each round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats, summed
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Averaged:
    """A replica, what it must still add, and what has come this round."""

    x: Array
    late: Array | None = None
    """The local steps that combine-then-adapt adds after mixing."""
    inbox: Mapping[int, Array] = field(default_factory=dict)


class _Averaging(Strategy[Averaged]):
    """Everything but when the local step counts."""

    synchronous = True

    def start(self, x: Array) -> Averaged:
        return Averaged(floats(x))

    def params(self, state: Averaged) -> Array:
        return state.x

    def local(self, state: Averaged, delta: Array, round: int) -> Averaged:
        return replace(state, x=state.x + delta)

    def send(self, state: Averaged, round: int, links: Links, chance: np.random.Generator) -> tuple[Averaged, Outbox]:
        packet = Packet({"x": state.x})
        return state, dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Averaged, sender: int, packet: Packet) -> tuple[Averaged, Outbox]:
        return replace(state, inbox={**state.inbox, sender: packet.arrays["x"]}), {}

    def finish(self, state: Averaged, round: int, links: Links) -> Averaged:
        came = {sender: weight for sender, weight in links.hears.items() if sender in state.inbox}
        own = links.own + sum(weight for sender, weight in links.hears.items() if sender not in came)
        x = own * state.x
        for sender, weight in came.items():
            x = x + weight * state.inbox[sender]
        return self.rest(replace(state, x=x, inbox={}))

    def rest(self, state: Averaged) -> Averaged:
        return state if state.late is None else replace(state, x=state.x + state.late, late=None)

    def mix(self, state: Averaged, exchange: Exchange) -> tuple[Averaged, int]:
        x = averaged(exchange.mixing, state.x)
        nbytes = len(exchange.values) * state.x[0].nbytes
        return self.rest(replace(state, x=x)), nbytes


@dataclass(frozen=True, repr=False)
class DPsgd(_Averaging):
    """Decentralized parallel SGD: train, then average (adapt-then-combine), X <- W (X + delta).

    Keeps the mean, and contracts the distance to it by |W - J|_2 a round. Source: Lian et al., arXiv:1705.09056;
    adapt-then-combine from Chen and Sayed, arXiv:1111.0034.
    """

    needs = Needs.DOUBLY_STOCHASTIC


def averaging_from(x: Array) -> tuple[Strategy[Any], Any]:
    """`DPsgd()` and its state: consensus after strategies on doubly stochastic matrices that do more than average."""
    strategy = DPsgd()
    return strategy, strategy.start(x)


@dataclass(frozen=True, repr=False)
class CombineThenAdapt(_Averaging):
    """Decentralized parallel SGD in the other order: X <- W X + delta, the gradient taken before mixing.

    A peer may compute its gradient while the replicas are on their way. Source: Lian et al., arXiv:1705.09056.
    """

    needs = Needs.DOUBLY_STOCHASTIC

    def local(self, state: Averaged, delta: Array, round: int) -> Averaged:
        return replace(state, late=delta if state.late is None else state.late + delta)


@dataclass(frozen=True, repr=False)
class EpidemicLearning(_Averaging):
    """Everybody sends its replica to a few others drawn anew each round, and averages what came with its own, equally.

    Needs no agreement on weights and takes loss as it comes; keeps the mean in expectation only, so the peers agree on
    something else than the mean of what they started with. On `topology.random_senders`. Source: de Vos et al.,
    arXiv:2310.01972.
    """

    needs = Needs.ROWS | Needs.NONNEGATIVE

    def finish(self, state: Averaged, round: int, links: Links) -> Averaged:
        count = 1 + len(state.inbox)
        return replace(state, x=sum(state.inbox.values(), start=state.x) / count, inbox={})

    def mix(self, state: Averaged, exchange: Exchange) -> tuple[Averaged, int]:
        arrived = exchange.arrived
        came = np.bincount(exchange.receivers[arrived], minlength=len(state.x))
        equal = exchange.matrix(1.0 / (1.0 + came[exchange.receivers[arrived]]), arrived, keep_rows=True)
        nbytes = len(exchange.values) * state.x[0].nbytes
        return replace(state, x=averaged(equal, state.x)), nbytes


@dataclass(frozen=True, repr=False)
class ClippedGossip(_Averaging):
    """x_i <- x_i + sum_j w_ij clip(x_j - x_i, radius): no neighbor moves a peer by more than w_ij radius.

    Where everybody is honest the mean is kept, since both ends clip alike. Source: He et al., arXiv:2202.01545.
    """

    radius: float
    """Largest length of a difference that counts in full."""

    needs = Needs.DOUBLY_STOCHASTIC | Needs.SYMMETRIC

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius <= 0.0:
            raise UsageError(f"radius {self.radius}, expected more than 0")

    def _clipped(self, difference: Array) -> Array:
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        clipped: Array = difference * (self.radius / np.maximum(length, self.radius))
        return clipped

    def finish(self, state: Averaged, round: int, links: Links) -> Averaged:
        x = state.x
        for sender, weight in links.hears.items():
            if sender in state.inbox:
                x = x + weight * self._clipped(state.inbox[sender] - state.x)
        return replace(state, x=x, inbox={})

    def mix(self, state: Averaged, exchange: Exchange) -> tuple[Averaged, int]:
        arrived = exchange.arrived
        receivers, senders = exchange.receivers[arrived], exchange.senders[arrived]
        moves = exchange.values[arrived][:, None] * self._clipped(state.x[senders] - state.x[receivers])
        x = state.x + summed(receivers, moves, len(state.x))
        return replace(state, x=x.astype(state.x.dtype, copy=False)), len(exchange.values) * state.x[0].nbytes
