"""Record the events that a peer was told, and play them to another one.

A driver calls `observe(now, peer, event, effects)` after every step. `Recorder.observe` keeps it; `replay` gives the
same events to fresh peers and returns what they want done, to be held against what was recorded. Because the peer is a
pure state machine, the two are equal, whichever driver ran it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import xxhash
from msgspec import structs

from gossip.arrays import Layout, Packed, Payload
from gossip.events import Computed, Effect, Event, Initialized, Received, StateMachine
from gossip.messages import Bulk, Header, PeerId

Observe = Callable[[float, PeerId, Event, list[Effect]], None]
"""What a driver calls after each step of a peer."""


@dataclass(frozen=True)
class Step:
    """One step: what happened to `peer` at `now`, and the fingerprints of what it wanted done."""

    now: float
    peer: PeerId
    event: Event
    effects: tuple[str, ...]


class Recorder:
    """Keeps every step of every peer, arrays included: for small runs."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def observe(self, now: float, peer: PeerId, event: Event, effects: list[Effect]) -> None:
        """Give this to a driver."""
        self.steps.append(Step(now, peer, _own(event), tuple(fingerprint(effect) for effect in effects)))


def replay(steps: Iterable[Step], peers: Mapping[PeerId, StateMachine]) -> list[Step]:
    """Play the recorded events to fresh `peers`; returns the steps as they came out this time."""
    return [
        replace(step, effects=tuple(fingerprint(e) for e in peers[step.peer].handle(step.event, step.now)))
        for step in steps
    ]


class Digest:
    """A running hash over all that happens: two runs with the same seed end with the same one.

    What a peer does about it is not part of it: that follows, and shows in what happens next.
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def happened(self, now: float, peer: PeerId, what: str) -> None:
        """`what` happened to `peer`, as text."""
        self._hash.update(f"{now!r} {peer} {what}".encode())

    def hexdigest(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest


def fingerprint(value: Any) -> str:
    """A value as text, with payloads by checksum: equal values give equal texts."""
    kind: Any = type(value)
    if kind in PLAIN or isinstance(value, tuple):
        return repr(value)
    if kind is Layout:
        return str(value.digest)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{fingerprint(value[key])}" for key in sorted(value)) + "}"
    names = _names(kind)
    if names is None:
        return f"<{value.layout.digest} {zlib.crc32(value.read(0, value.layout.nbytes)):08x}>"
    return f"{kind.__name__}(" + ",".join([fingerprint(getattr(value, name)) for name in names]) + ")"


PLAIN = frozenset((int, float, str, bool, type(None)))


@cache
def _names(kind: type[Any]) -> tuple[str, ...] | None:
    """The fields of an event, effect or message; None for a payload. Looked up for each of a simulation."""
    if issubclass(kind, Header):
        names: tuple[str, ...] = kind.__struct_fields__
        return names
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) and kind is not Packed else None


def _own(event: Event) -> Event:
    """The event with arrays that nobody will write to: a driver may use its buffers again."""
    match event:
        case Computed(payload) | Initialized(payload):
            return replace(event, payload=_copy(payload))
        case Received(message) if isinstance(message, Bulk) and message.payload is not None:
            return Received(structs.replace(message, payload=_copy(message.payload)))
    return event


def _copy(payload: Payload) -> Packed:
    return Packed(payload.layout, bytearray(payload.read(0, payload.layout.nbytes)))
