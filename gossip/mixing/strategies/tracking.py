"""Gradient tracking: a second variable follows the mean of all peers' training steps.

The sum of y - d' over all peers is 0, and must be. A peer that dies takes its part of the sum along, and then the
others would go on for ever by steps that no peer took. So a peer that learns that another came or went begins a new
*generation*: it sets y to its own d', for which the sum is 0, and tells the number. A peer that hears of a newer
generation than its own enters it in the same way. Tracked steps are mixed within a generation only, replicas always.
The newest generation is begun by the last who learns of a change, when all others know of it; so its sum is 0, and
stays 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.mixing.strategies.averaging import averaging_from
from gossip.mixing.strategy import Exchange, Outbox, Packet, Strategy, averaged, floats
from gossip.topology import Links, Needs


@dataclass(frozen=True)
class Tracked:
    """A replica, the tracked mean step, and the own step that it last took in."""

    x: Array
    y: Array
    last: Array
    generation: int = 0
    newest: int = 0
    """The newest generation that it knows of, which it enters when the round is over."""
    inbox: Mapping[int, tuple[Array, Array, int]] = field(default_factory=dict)


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
        packet = Packet({"moved": state.x + state.y, "y": state.y}, {"generation": state.generation})
        return state, dict.fromkeys(links.heard_by, packet)

    def receive(self, state: Tracked, sender: int, packet: Packet) -> tuple[Tracked, Outbox]:
        came = (packet.arrays["moved"], packet.arrays["y"], int(packet.scalars["generation"]))
        return replace(state, inbox={**state.inbox, sender: came}), {}

    def finish(self, state: Tracked, round: int, links: Links) -> Tracked:
        own = links.own + sum(weight for sender, weight in links.hears.items() if sender not in state.inbox)
        x, y, newest = own * (state.x + state.y), own * state.y, state.newest
        for sender, weight in links.hears.items():
            if sender in state.inbox:
                moved, step, generation = state.inbox[sender]
                x = x + weight * moved
                y = y + weight * (step if generation == state.generation else state.y)
                newest = max(newest, generation)
        y = state.last if newest > state.generation else y
        return replace(state, x=x, y=y, generation=newest, newest=newest, inbox={})

    def regroup(self, state: Tracked) -> Tracked:
        return replace(state, newest=state.newest + 1)

    def mix(self, state: Tracked, exchange: Exchange) -> tuple[Tracked, int]:
        weights = exchange.mixing
        nbytes = len(exchange.values) * (2 * state.x[0].nbytes + 8)
        return replace(state, x=averaged(weights, state.x + state.y), y=averaged(weights, state.y)), nbytes
