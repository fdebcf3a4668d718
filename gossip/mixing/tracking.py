"""Gradient tracking: a second variable follows the mean of all peers' training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.mixing.averaging import averaging_from
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Tracked:
    """A replica, the tracked mean step, and the own step that it last took in."""

    x: Array
    y: Array
    last: Array
    inbox: Mapping[int, tuple[Array, Array]] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class GradientTracking(Strategy[Tracked]):
    """y_i <- sum_j w_ij y_j + d_i - d_i', x_i <- sum_j w_ij (x_j + y_j), d_i the training step and d_i' the one before.

    The mean of y is always the mean of d, so that all peers reach the minimum of the mean loss, at which their own
    gradients are not zero: D-PSGD with a fixed rate does not. `local` must be called once a round with a step that is
    -rate x gradient at a fixed rate. Sources: Di Lorenzo and Scutari, arXiv:1602.00591; Nedic et al., arXiv:1607.03218.
    """

    needs = Needs.DOUBLY_STOCHASTIC
    synchronous = True
    every_round = True
    _sends = "sends replicas and tracked steps whole; what a codec drops of a replica is lost, not late"

    def start(self, x: Array) -> Tracked:
        x = floats(x)
        zeros = np.zeros_like(x)
        return Tracked(x, zeros, zeros)

    def params(self, state: Tracked) -> Array:
        return state.x

    def consensus(self, state: Tracked) -> tuple[Strategy[Any], Any]:
        """Plain averaging: what is tracked are steps, and there are no more."""
        return averaging_from(self.params(state))

    def local(self, state: Tracked, delta: Array, round: int) -> Tracked:
        return replace(state, y=state.y + (delta - state.last), last=delta)

    def send(self, state: Tracked, round: int, links: Links, chance: np.random.Generator) -> tuple[Tracked, Outbox]:
        packet = Packet({"moved": state.x + state.y, "y": state.y})
        return state, dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Tracked, sender: int, packet: Packet) -> tuple[Tracked, Outbox]:
        came = (packet.arrays["moved"], packet.arrays["y"])
        return replace(state, inbox={**state.inbox, sender: came}), {}

    def finish(self, state: Tracked, round: int, links: Links) -> Tracked:
        own = links.own + sum(weight for sender, weight in links.hears.items() if sender not in state.inbox)
        x, y = own * (state.x + state.y), own * state.y
        for sender, weight in links.hears.items():
            if sender in state.inbox:
                moved, step = state.inbox[sender]
                x, y = x + weight * moved, y + weight * step
        return replace(state, x=x, y=y, inbox={})

    def mix(self, state: Tracked, exchange: Exchange) -> tuple[Tracked, int]:
        weights = exchange.mixing
        nbytes = len(exchange.values) * 2 * state.x[0].nbytes
        return replace(state, x=averaged(weights, state.x + state.y), y=averaged(weights, state.y)), nbytes
