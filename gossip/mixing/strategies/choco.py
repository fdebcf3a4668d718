"""CHOCO: peers hold public copies of each other, and send compressed differences to them.

A copy has a number: that of the difference that it has last. A packet says which number it makes of the sender's copy,
and which one of the receiver's copy the sender holds. So both ends of a link know in the same round whether both
packets fit; if one does not, the link rests for this round at both ends, and whoever has another copy than the sender
of it thinks is sent the whole one in the next. All begin with copies of number 0, which are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arguments import instance
from gossip.arrays import Array
from gossip.compression import Codec, Encoded
from gossip.errors import UsageError
from gossip.mixing.strategies.averaging import averaging_from
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats
from gossip.topology import Links, Needs

HEAD_BYTES = 3 * 8
"""The numbers of two copies and a weight, in each packet."""


@dataclass(frozen=True)
class Copies:
    """A replica, its public copy, and the public copies of the neighbors."""

    x: Array
    public: Array
    n: int = 0
    """The number of the public copy."""
    others: Mapping[int, tuple[int, Array]] = field(default_factory=dict)
    """(number, public copy) of each neighbor."""
    told: Mapping[int, int] = field(default_factory=dict)
    """The number of the copy of ours that each neighbor has."""
    sent: Mapping[int, tuple[bool, float]] = field(default_factory=dict)
    """(whole, weight of the link) of the packets of this round."""
    met: Mapping[int, float] = field(default_factory=dict)
    """The weights of links both of whose packets of this round fit."""


@dataclass(frozen=True, repr=False)
class Choco(Strategy[Copies]):
    """CHOCO-SGD: x_i <- x_i + gamma sum_j w_ij (public_j - public_i), where public_j <- public_j + Q(x_j - public_j).

    Keeps the mean exactly and converges to it for any codec that contracts, gamma small enough. Alone, without a codec,
    it sends differences in full and is D-PSGD with a step gamma. A neighbor that is new, or that missed a packet, is
    sent the whole copy instead of a difference; where the two ends of a link give it different weights, since one knows
    already who has come or gone, the smaller one counts. So the mean stays where it is then, too. Source: Koloskova et
    al., arXiv:1902.00340.
    """

    gamma: float | None = None
    """Step of the averaging; None takes what the codec typically contracts by (`Codec.typical`), at least 1/100 (for a
    codec without contraction 1/10), and 1 without a codec. Theory's step for the worst case is hundreds of times
    smaller still."""
    codec: Codec | None = field(default=None, repr=False)
    """Set by `Compressed`."""

    needs = Needs.DOUBLY_STOCHASTIC | Needs.SYMMETRIC | Needs.STATIC
    synchronous = True

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
                    f"{name} {share} with {self!r}: its vectorized form holds one public copy of each peer, and a "
                    f"neighbor that a packet did not reach holds another; use PushSum(), or DPsgd() with symmetric "
                    f"weights, or gossip.sim.mix_simulator"
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
            parts: Mapping[str, Array] = {"values": difference}
            sent = difference
        else:
            encoded = self.codec.encode(difference, chance)
            parts, sent = encoded.parts, self.codec.decode(encoded)
        n, public = state.n + 1, state.public + sent
        packets: dict[tuple[bool, int, float], Packet] = {}
        outbox, posted = {}, {}
        for neighbor in links.heard_by:
            whole = state.told.get(neighbor, 0) != state.n
            has, _ = self._copy(state, neighbor)
            weight = links.hears.get(neighbor, 0.0)
            if (whole, has, weight) not in packets:
                scalars = {"n": n, "has": has, "weight": weight}
                packets[whole, has, weight] = Packet({"public": public} if whole else parts, scalars)
            outbox[neighbor], posted[neighbor] = packets[whole, has, weight], (whole, weight)
        return replace(state, public=public, n=n, sent=posted, met={}), outbox

    def _copy(self, state: Copies, neighbor: int) -> tuple[int, Array]:
        known = state.others.get(neighbor)
        return (0, np.zeros_like(state.x)) if known is None else known

    def receive(self, state: Copies, sender: int, packet: Packet) -> tuple[Copies, Outbox]:
        n, has = int(packet.scalars["n"]), int(packet.scalars["has"])
        number, copy = self._copy(state, sender)
        fits = True
        if "public" in packet.arrays:
            copy = packet.arrays["public"]
        elif n != number + 1:
            fits = False
        elif self.codec is None:
            copy = copy + packet.arrays["values"]
        else:
            copy = copy + self.codec.decode(Encoded(packet.arrays, state.x.shape, state.x.dtype))
        whole, weight = state.sent.get(sender, (False, 0.0))
        reached = sender in state.sent and (whole or has == state.n - 1)
        if fits:
            state = replace(state, others={**state.others, sender: (n, copy)})
        if fits and reached:
            state = replace(state, met={**state.met, sender: min(weight, packet.scalars["weight"])})
        return replace(state, told={**state.told, sender: state.n if reached else has}), {}

    def finish(self, state: Copies, round: int, links: Links) -> Copies:
        pull = np.zeros_like(state.x)
        for neighbor in links.hears:
            if neighbor in state.met:
                pull = pull + state.met[neighbor] * (state.others[neighbor][1] - state.public)
        others = {neighbor: each for neighbor, each in state.others.items() if neighbor in links.hears}
        told = {neighbor: each for neighbor, each in state.told.items() if neighbor in links.hears}
        x = state.x + self._step(state.x.size) * pull
        return replace(state, x=x, others=others, told=told, sent={}, met={})

    def mix(self, state: Copies, exchange: Exchange) -> tuple[Copies, int]:
        """As with messages.

        Raises:
            UsageError: a packet is lost.
        """
        if not exchange.is_whole:
            raise UsageError(f"{self!r} with loss: here there is one public copy of each peer for all; use PushSum()")
        difference = state.x - state.public
        sent, nbytes = (
            (difference, np.full(len(difference), difference[0].nbytes))
            if self.codec is None
            else self.codec.rows(difference, exchange.chance)
        )
        public = state.public + sent
        pull = averaged(exchange.weights, public) - public
        total = int((nbytes[exchange.senders] + HEAD_BYTES).sum())
        return replace(state, x=state.x + self._step(state.x.shape[1]) * pull, public=public), total
