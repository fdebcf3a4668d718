"""The message form of a strategy, peer by peer in lock-step, over a network that may lose, repeat and delay packets.

Slow and plain: the oracle that the vectorized form is held against, and a check for strategies of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.mixing.strategy import Packet, Strategy
from gossip.topology import Topology


@dataclass(frozen=True)
class Weather:
    """What happens to each packet, each with a probability of its own. Only for strategies that take it."""

    loss: float = 0.0
    """It never arrives."""
    repeat: float = 0.0
    """It arrives twice."""
    late: float = 0.0
    """It waits for one more round, again and again; others overtake it."""


@dataclass(frozen=True)
class Flight:
    """A packet under way."""

    sender: int
    receiver: int
    packet: Packet


class Swarm:
    """All peers of a topology, each with a state of its own."""

    def __init__(
        self,
        strategy: Strategy[Any],
        topology: Topology,
        x: Array,
        chance: np.random.Generator,
        weather: Weather | None = None,
    ) -> None:
        """`x` is (peers, parameters)."""
        self.strategy = strategy
        self.topology = topology
        self.states: dict[int, Any] = {peer: strategy.start(row) for peer, row in enumerate(x)}
        self.flying: list[Flight] = []
        self.nbytes = 0
        """Of all packets sent."""
        self._chance = chance
        self._weather = weather if weather is not None else Weather()

    def round(self, number: int, deltas: Array | None = None) -> None:
        """One round: local steps, sends, what arrives of it with the answers to it, and finishes."""
        strategy = self.strategy
        if deltas is not None:
            for peer, delta in enumerate(deltas):
                self.states[peer] = strategy.local(self.states[peer], delta, number)
        mixing = strategy.mixing_round(number)
        if mixing is None:
            self.states = {peer: strategy.rest(state) for peer, state in self.states.items()}
            return
        links = self.topology.all_links(mixing)
        for peer in self.states:
            self.states[peer], outbox = strategy.send(self.states[peer], mixing, links[peer], self._chance)
            self._post(peer, outbox)
        late: list[Flight] = []
        while self.flying:
            flight = self.flying.pop(0)
            if self._happens(self._weather.late):
                late.append(flight)
                continue
            for _ in range(1 + self._happens(self._weather.repeat)):
                self._deliver(flight)
        self.flying = late
        for peer in self.states:
            self.states[peer] = strategy.finish(self.states[peer], mixing, links[peer])

    def params(self) -> Array:
        """(peers, parameters)"""
        return np.stack([self.strategy.params(state) for state in self.states.values()])

    def _post(self, sender: int, outbox: Any) -> None:
        for receiver, packet in outbox.items():
            self.nbytes += packet.nbytes
            if not self._happens(self._weather.loss):
                self.flying.append(Flight(sender, receiver, packet))

    def _deliver(self, flight: Flight) -> None:
        state, replies = self.strategy.receive(self.states[flight.receiver], flight.sender, flight.packet)
        self.states[flight.receiver] = state
        self._post(flight.receiver, replies)

    def _happens(self, probability: float) -> bool:
        return probability > 0.0 and float(self._chance.random()) < probability
