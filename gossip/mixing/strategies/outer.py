"""Local training for a while, then an outer step: peers exchange the moves that they made, not their replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arguments import instance
from gossip.arrays import Array
from gossip.compression import Codec, Encoded, with_feedback
from gossip.errors import UsageError
from gossip.mixing.strategies.averaging import averaging_from
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Outer:
    """A replica, the anchor it started this round from, and the outer optimizer's momentum."""

    x: Array
    anchor: Array
    momentum: Array
    residual: Array
    """What a codec left out so far."""
    sent: Array | None = None
    """What it told the others this round."""
    inbox: Mapping[int, Packet] = field(default_factory=dict)
    generation: int = 0
    """How often somebody has come or gone."""
    newest: int = 0
    """The newest generation that it knows of, which it enters when the round is over."""
    is_level: bool = True
    """The anchors of all were equal in this generation."""


def _started(x: Array) -> Outer:
    x = floats(x)
    zeros = np.zeros_like(x)
    return Outer(x, x, zeros, zeros)


class _Outer(Strategy[Outer]):
    synchronous = True

    def says_nothing(self, is_trained: bool) -> str:
        return (
            "its outer optimizer moves the mean by other steps than those of training, on purpose" if is_trained else ""
        )

    def params(self, state: Outer) -> Array:
        return state.x

    def consensus(self, state: Outer) -> tuple[Strategy[Any], Any]:
        """Plain averaging: the outer momentum would move the mean on."""
        return averaging_from(self.params(state))

    def local(self, state: Outer, delta: Array, round: int) -> Outer:
        return replace(state, x=state.x + delta)


@dataclass(frozen=True, repr=False)
class DiLoCo(_Outer):
    """All peers take the same outer step, Nesterov's, along the mean of what they moved by since the last one.

    v <- momentum v + d, anchor <- anchor + rate (d + momentum v), d the mean of x_i - anchor. All must start from the
    same parameters and hear all others; then their anchors are equal for ever, whatever a codec leaves out, since each
    takes of itself, too, what it told the others. `Every(500, DiLoCo())` is the paper's setting. Source: Douillard et
    al., arXiv:2311.08105.

    Who comes has the replica of one, and who goes has told some of its last move and others not. So whoever learns of
    it begins a new generation, as all do who hear of one: they send anchor and momentum, too, until they have
    those of all, and go on from their mean.
    """

    rate: float = 0.7
    momentum: float = 0.9
    codec: Codec | None = field(default=None, repr=False)
    """Set by `Compressed`."""

    needs = Needs.EXACT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codec is not None:
            instance("codec", self.codec, Codec)
        if self.rate <= 0.0 or not 0.0 <= self.momentum < 1.0:
            raise UsageError(f"rate {self.rate}, momentum {self.momentum}: expected rate > 0 and 0 <= momentum < 1")

    def compressed(self, codec: Codec) -> Strategy[Any]:
        return replace(self, codec=codec)

    def start(self, x: Array) -> Outer:
        if x.ndim == 2 and not np.array_equal(x, np.broadcast_to(x[0], x.shape)):
            raise UsageError(
                "DiLoCo with peers that start from different parameters: only what they move by is averaged, so they "
                "would stay apart; start all from the same, or use NoLoCo()"
            )
        return _started(x)

    def send(self, state: Outer, round: int, links: Links, chance: np.random.Generator) -> tuple[Outer, Outbox]:
        moved = state.x - state.anchor
        if self.codec is None:
            parts: Mapping[str, Array] = {"values": moved}
            state = replace(state, sent=moved)
        else:
            encoded, sent, residual = with_feedback(self.codec, state.residual, moved, chance)
            parts, state = encoded.parts, replace(state, sent=sent, residual=residual)
        if not state.is_level:
            parts = {**parts, "anchor": state.anchor, "momentum": state.momentum}
        packet = Packet(parts, {"generation": state.generation})
        return state, dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Outer, sender: int, packet: Packet) -> tuple[Outer, Outbox]:
        return replace(state, inbox={**state.inbox, sender: packet}), {}

    def finish(self, state: Outer, round: int, links: Links) -> Outer:
        assert state.sent is not None
        everything = {links.me: state.sent}
        for sender, packet in state.inbox.items():
            if self.codec is None:
                everything[sender] = packet.arrays["values"]
            else:
                everything[sender] = self.codec.decode(Encoded(packet.arrays, state.x.shape, state.x.dtype))
        # In the order of peers, so that all compute the same to the last bit.
        moved = np.sum([everything[peer] for peer in sorted(everything)], axis=0) / len(everything)
        state = self._levelled(state, links)
        return self._step(replace(state, sent=None, inbox={}), moved.astype(state.x.dtype, copy=False))

    def _levelled(self, state: Outer, links: Links) -> Outer:
        """Anchor and momentum are the mean of all, if all have sent them; and the newest generation is entered."""
        alike = {
            sender: packet.arrays
            for sender, packet in state.inbox.items()
            if packet.scalars["generation"] == state.generation and "anchor" in packet.arrays
        }
        newest = max([state.newest, *(int(packet.scalars["generation"]) for packet in state.inbox.values())])
        if state.is_level:
            newest = max(newest, state.generation + bool(alike))  # somebody has missed what levelled us
        elif alike.keys() == state.inbox.keys() == links.hears.keys():
            alike[links.me] = {"anchor": state.anchor, "momentum": state.momentum}
            anchor, momentum = (
                np.sum([alike[peer][name] for peer in sorted(alike)], axis=0) / len(alike)
                for name in ("anchor", "momentum")
            )
            state = replace(state, anchor=anchor, momentum=momentum, is_level=True)
        if newest > state.generation:
            state = replace(state, generation=newest, is_level=False)
        return replace(state, newest=newest)

    def regroup(self, state: Outer) -> Outer:
        return replace(state, newest=state.newest + 1)

    def _step(self, state: Outer, moved: Array) -> Outer:
        momentum = self.momentum * state.momentum + moved
        anchor = state.anchor + self.rate * (moved + self.momentum * momentum)
        return replace(state, x=anchor, anchor=anchor, momentum=momentum)

    def mix(self, state: Outer, exchange: Exchange) -> tuple[Outer, int]:
        moved = state.x - state.anchor
        nbytes = np.full(len(moved), moved[0].nbytes)
        if self.codec is not None:
            whole = state.residual + moved
            moved, nbytes = self.codec.rows(whole, exchange.chance)
            state = replace(state, residual=whole - moved)
        arrived = exchange.arrived
        if exchange.is_whole and len(arrived) == len(moved) * (len(moved) - 1):
            mean = np.broadcast_to(np.sum(moved, axis=0) / len(moved), moved.shape)
        else:
            came = np.bincount(exchange.receivers[arrived], minlength=len(moved))
            equal = exchange.matrix(1.0 / (1.0 + came[exchange.receivers[arrived]]), arrived, keep_rows=True)
            mean = averaged(equal, moved)
        total = int((nbytes[exchange.senders] + 8).sum())
        return self._step(state, mean.astype(state.x.dtype, copy=False)), total


@dataclass(frozen=True, repr=False)
class NoLoCo(_Outer):
    """DiLoCo without hearing all: an outer step with one random partner, and a pull of the two anchors together.

    v <- alpha v + beta (mean of the two moves) - gamma (anchor - mean of the two anchors), anchor <- anchor + v. The
    mean of the anchors moves as if there were no pull. Needs alpha < gamma < sqrt(2 + alpha^2), or the anchors drift
    apart. On `topology.random_matching`. Source: Kolehmainen et al., arXiv:2506.10911.
    """

    alpha: float = 0.5
    """Momentum."""
    beta: float = 0.7
    """Rate of the outer step."""
    gamma: float = 1.0
    """Strength of the pull."""

    needs = Needs.MATCHING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha < 1.0 or self.beta <= 0.0:
            raise UsageError(f"alpha {self.alpha}, beta {self.beta}: expected 0 <= alpha < 1 and beta > 0")
        if not self.alpha < self.gamma < (2.0 + self.alpha**2) ** 0.5:
            raise UsageError(
                f"gamma {self.gamma} with alpha {self.alpha}, expected more than alpha and less than "
                f"{(2.0 + self.alpha**2) ** 0.5:.3f}, or the anchors drift apart"
            )

    def start(self, x: Array) -> Outer:
        return _started(x)

    def send(self, state: Outer, round: int, links: Links, chance: np.random.Generator) -> tuple[Outer, Outbox]:
        packet = Packet({"moved": state.x - state.anchor, "anchor": state.anchor})
        return state, dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Outer, sender: int, packet: Packet) -> tuple[Outer, Outbox]:
        return replace(state, inbox={**state.inbox, sender: packet}), {}

    def finish(self, state: Outer, round: int, links: Links) -> Outer:
        moved, anchor = state.x - state.anchor, state.anchor
        for packet in state.inbox.values():  # one partner or none
            moved, anchor = (moved + packet.arrays["moved"]) / 2.0, (anchor + packet.arrays["anchor"]) / 2.0
        return self._step(replace(state, inbox={}), moved, anchor)

    def _step(self, state: Outer, moved: Array, mean: Array) -> Outer:
        momentum = self.alpha * state.momentum + self.beta * moved - self.gamma * (state.anchor - mean)
        anchor = state.anchor + momentum
        return replace(state, x=anchor, anchor=anchor, momentum=momentum)

    def mix(self, state: Outer, exchange: Exchange) -> tuple[Outer, int]:
        weights = exchange.mixing
        moved = averaged(weights, state.x - state.anchor)
        nbytes = len(exchange.values) * 2 * state.x[0].nbytes
        return self._step(state, moved, averaged(weights, state.anchor)), nbytes
