"""CHOCO: peers hold public copies of each other, and send compressed differences to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arguments import instance
from gossip.arrays import Array
from gossip.compression import Codec, Encoded
from gossip.errors import UsageError
from gossip.mixing.averaging import averaging_from
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Copies:
    """A replica, its public copy, and the public copies of the neighbors."""

    x: Array
    public: Array
    others: Mapping[int, Array] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Choco(Strategy[Copies]):
    """CHOCO-SGD: x_i <- x_i + gamma sum_j w_ij (public_j - public_i), where public_j <- public_j + Q(x_j - public_j).

    Keeps the mean exactly and converges to it for any codec that contracts, gamma small enough. Alone, without a codec,
    it sends differences in full and is D-PSGD with a step gamma. Every packet must arrive, once: a lost one would leave
    two copies of the same public value apart for ever. Source: Koloskova et al., arXiv:1902.00340.
    """

    gamma: float | None = None
    """Step of the averaging; None takes what the codec typically contracts by (`Codec.typical`), at least 1/100 (for a
    codec without contraction 1/10), and 1 without a codec. Theory's step for the worst case is hundreds of times
    smaller still."""
    codec: Codec | None = field(default=None, repr=False)
    """Set by `Compressed`."""

    needs = Needs.DOUBLY_STOCHASTIC | Needs.SYMMETRIC | Needs.STATIC
    synchronous = True
    steady = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec is not None:
            instance("codec", self.codec, Codec)
        if self.gamma is not None and not 0.0 < self.gamma <= 1.0:
            raise UsageError(f"gamma {self.gamma}, expected more than 0 and at most 1")

    def compressed(self, codec: Codec) -> Strategy[Any]:
        return replace(self, codec=codec)

    def check_network(self, *, loss: float = 0.0, delay: int = 0, churn: float = 0.0, crash: float = 0.0) -> None:
        super().check_network(loss=loss, delay=delay, churn=churn, crash=crash)
        for name, share in (("loss", loss), ("churn", churn)):
            if share:
                raise UsageError(
                    f"{name} {share} with {self!r}: it holds copies of its neighbors' values, which drift apart for "
                    f"ever when a packet does not come; use PushSum(), or DPsgd() with symmetric weights"
                )

    def _step(self, size: int) -> float:
        if self.gamma is not None:
            return self.gamma
        if self.codec is None:
            return 1.0
        return max(0.01, self.codec.typical(size) or 0.1)

    def start(self, x: Array) -> Copies:
        x = floats(x)
        return Copies(x, np.zeros_like(x))

    def params(self, state: Copies) -> Array:
        return state.x

    def consensus(self, state: Copies) -> tuple[Strategy[Any], Any]:
        """Plain averaging, whole: there are few rounds left."""
        return averaging_from(self.params(state))

    def local(self, state: Copies, delta: Array, round: int) -> Copies:
        return replace(state, x=state.x + delta)

    def send(self, state: Copies, round: int, links: Links, chance: np.random.Generator) -> tuple[Copies, Outbox]:
        difference = state.x - state.public
        if self.codec is None:
            packet, sent = Packet({"values": difference}), difference
        else:
            encoded = self.codec.encode(difference, chance)
            packet, sent = Packet(encoded.parts), self.codec.decode(encoded)
        return replace(state, public=state.public + sent), dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Copies, sender: int, packet: Packet) -> tuple[Copies, Outbox]:
        if self.codec is None:
            sent = packet.arrays["values"]
        else:
            sent = self.codec.decode(Encoded(packet.arrays, state.x.shape, state.x.dtype))
        known = state.others.get(sender)
        return replace(state, others={**state.others, sender: sent if known is None else known + sent}), {}

    def finish(self, state: Copies, round: int, links: Links) -> Copies:
        pull = np.zeros_like(state.x)
        for neighbor, weight in links.hears.items():
            if neighbor in state.others:
                pull = pull + weight * (state.others[neighbor] - state.public)
        return replace(state, x=state.x + self._step(state.x.size) * pull)

    def mix(self, state: Copies, exchange: Exchange) -> tuple[Copies, int]:
        """As with messages.

        Raises:
            UsageError: a packet is lost.
        """
        if not exchange.is_whole:
            raise UsageError(f"{self!r} with loss: its public copies would drift apart for ever; use PushSum()")
        difference = state.x - state.public
        sent, nbytes = (
            (difference, np.full(len(difference), difference[0].nbytes))
            if self.codec is None
            else self.codec.rows(difference, exchange.chance)
        )
        public = state.public + sent
        pull = averaged(exchange.weights, public) - public
        total = int(nbytes[exchange.senders].sum())
        return replace(state, x=state.x + self._step(state.x.shape[1]) * pull, public=public), total
