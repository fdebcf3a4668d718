"""How what a peer wants done is done, the same way by each driver.

A driver owns four things, and every effect is for one of them:

    network     Send, Publish, PutOut
    pace        Congested
    store       Keep, Fold, Forget, Retain, Release         the own lane's segments
    host        Deliver, Adopt, Gated, Drained, Warn        whoever owns the replica
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, assert_never

from gossip.arrays import Payload
from gossip.events import (
    Adopt,
    Congested,
    Deliver,
    Drained,
    Effect,
    Fold,
    Forget,
    Gated,
    Keep,
    Negative,
    Own,
    Publish,
    PutOut,
    Release,
    Retain,
    Send,
    Warn,
)
from gossip.messages import Message, PeerId, Unit


class Network(Protocol):
    """Carries messages to other peers."""

    def send(self, to: PeerId, message: Message) -> None:
        """To one peer. A range comes without its sum, a state without the replica: the network fills them in."""
        ...

    def publish(self, message: Message) -> None:
        """To all who subscribed."""
        ...

    def put_out(self, peer: PeerId, why: str) -> None:
        """`peer` is not spoken to any more; where it is this one, all others do so."""
        ...


class Pace(Protocol):
    """Hands computed updates to the peer."""

    congested: bool
    """They wait until this is false again."""


class Store(Protocol):
    """Keeps the own lane's segments; see the effects of the same names."""

    def resolve(self, payload: Payload | Own | Negative) -> Payload:
        """What a reference stands for."""
        ...

    def keep(self, lo: int, hi: int, payload: Payload) -> None: ...

    def fold(self, lo: int, hi: int) -> None: ...

    def forget(self, through: int) -> None: ...

    def retain(self, number: int, payload: Payload) -> None: ...

    def release(self, number: int) -> None: ...


class Host(Protocol):
    """Owns the replica, and speaks with people."""

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        """Merge updates lo..hi of `lane`."""
        ...

    def adopt(self, payload: Payload) -> None:
        """Replace the replica."""
        ...

    def gated(self, unit: Unit) -> None:
        """The unit was published before, here or elsewhere."""
        ...

    def drained(self, missing: tuple[PeerId, ...]) -> None:
        """Everybody has what this peer published, except `missing`."""
        ...

    def warn(self, text: str) -> None:
        """A person should hear of it."""
        ...


def carry_out(effects: Iterable[Effect], network: Network, pace: Pace, store: Store, host: Host) -> None:
    """Do what a peer wants done, in order."""
    for effect in effects:
        match effect:
            case Send(to, message):
                network.send(to, message)
            case Publish(message):
                network.publish(message)
            case PutOut(peer, why):
                network.put_out(peer, why)
            case Deliver(lane, lo, hi, payload):
                host.deliver(lane, lo, hi, store.resolve(payload))
            case Keep() | Fold() | Forget() | Retain() | Release():
                _carry_out_at(store, effect)
            case Congested(waits):
                pace.congested = waits
            case Adopt(payload):
                host.adopt(payload)
            case Gated(unit):
                host.gated(unit)
            case Drained(missing):
                host.drained(missing)
            case Warn(text):
                host.warn(text)
            case _:
                assert_never(effect)


def _carry_out_at(store: Store, effect: Keep | Fold | Forget | Retain | Release) -> None:
    match effect:
        case Keep(lo, hi, payload):
            store.keep(lo, hi, store.resolve(payload))
        case Fold(lo, hi):
            store.fold(lo, hi)
        case Forget(through):
            store.forget(through)
        case Retain(number, kept):
            store.retain(number, kept)
        case Release(number):
            store.release(number)
        case _:
            assert_never(effect)
