"""A strategy at work: its state, from which the replica follows, and the steps and packets that change it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossip.arrays import Array, Layout, Payload, check_finite
from gossip.errors import hold
from gossip.flat import Flat, PackedLater
from gossip.messages import PacketReply
from gossip.mixing.packets import check_packet, check_result, check_size, open_packet
from gossip.mixing.strategy import Outbox, Packet, Strategy
from gossip.topology import Links

PACKET_SIZES_MAX = 8
"""A packet may be so many times as large as the parameters in float64: strategies send one or two vectors."""


class Mixer:
    """The state of a strategy; of its consensus, when a training's rounds are complete."""

    def __init__(self, layout: Layout, strategy: Strategy[Any], chance: np.random.Generator) -> None:
        """`layout` is the model's.

        Raises:
            UsageError: the model holds arrays that have no mean.
        """
        self.flat = Flat(layout)
        self.strategy = strategy
        self.acting: Strategy[Any] = strategy
        """Whose state it is: the strategy, or its consensus."""
        self.state: Any = None
        self.moved = False
        """The state has changed, and the replica with it."""
        self._chance = chance
        self._whole: set[str] = set()
        """Arrays of packets that are as long as the parameters, as far as our own packets tell."""

    # ---------------------------------------------------------------------------------------------------- the replica

    def params(self) -> Array:
        """(parameters,) of the model, flat; not to be written to."""
        return self.acting.params(self.state)

    def replica(self) -> Payload:
        """The model as it is now. It is computed when it is read, and stays what it was."""
        strategy, state = self.acting, self.state
        return PackedLater(self.flat, lambda: strategy.params(state))

    @property
    def weight(self) -> float:
        """Of this replica in the mean of all."""
        return self.acting.weight(self.state) if self.state is not None else 1.0

    # -------------------------------------------------------------------------------------------------------- trainings

    def start(self, replica: Payload) -> None:
        """Begin with this replica."""
        self.acting, self.state = self.strategy, self.strategy.start(self.flat.flatten(replica))
        self.moved = True

    def resume(self) -> bool:
        """A training begins, from the replica as it is; whether with a new state."""
        if self.acting is self.strategy and not self.strategy.by_step:
            return False
        self.state = self.strategy.start(self.params())
        self.acting = self.strategy
        return True

    def agree(self) -> None:
        """From here on the consensus has rounds."""
        self.acting, self.state = self.acting.consensus(self.state)
        self.moved = True

    # ----------------------------------------------------------------------------------------------------------- rounds

    def learn(self, step: Array, round: int) -> None:
        """Take a local step."""
        self.state = self.acting.local(self.state, step, round)
        self.moved = True

    def rest(self) -> None:
        """A round without mixing."""
        self.state = self.acting.rest(self.state)
        self.moved = True

    def send(self, round: int, links: Links) -> Outbox:
        """Begin a round of mixing."""
        self.state, outbox = self.acting.send(self.state, round, links, self._chance)
        self.moved = True
        return outbox

    def finish(self, round: int, links: Links) -> None:
        """End a round of mixing."""
        self.state = self.acting.finish(self.state, round, links)
        self.moved = True

    def give_up(self, number: int, taken: Packet | None) -> Outbox:
        """The neighbor of that number is gone, and `taken` was the last packet that it took."""
        self.state, outbox = self.acting.give_up(self.state, number, taken)
        self.moved = True
        return outbox

    def regroup(self) -> None:
        """Who is whose neighbor may have changed."""
        self.state = self.acting.regroup(self.state)

    # ---------------------------------------------------------------------------------------------------------- packets

    def check_own(self, outbox: Outbox) -> None:
        """Raise `MismatchError` for numbers that are not finite: they reach nobody."""
        for packet in {id(packet): packet for packet in outbox.values()}.values():
            check_finite(packet.arrays)

    def sent(self, packet: Packet) -> None:
        """It shows what packets of this strategy look like."""
        self._whole |= {name for name, array in packet.arrays.items() if array.size == self.flat.size}

    def check_size(self, header: PacketReply) -> None:
        """Raise `MismatchError` for what is larger than any packet."""
        check_size(header.layout, PACKET_SIZES_MAX * 8 * self.flat.size + 4096)

    def receive(self, number: int, reply: PacketReply) -> Outbox:
        """Take in a packet of the neighbor of that number; what it is answered.

        Raises whatever a strategy raises at a packet that makes no sense; then nothing has changed.
        """
        packet = open_packet(reply)
        check_packet(packet, self._whole, self.flat.size)
        state, outbox = self.acting.receive(self.state, number, packet)
        check_result(self.acting.params(state), self.flat.size)
        self.state = state
        self.moved = True
        return outbox

    def check(self) -> None:
        """What must hold between two events."""
        if self.state is not None:
            shape = self.params().shape
            hold(shape == (self.flat.size,), "the replica has the size of the model", shape, self.flat.size)
