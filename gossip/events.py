"""What happens to a peer (events, past participles) and what it wants done (effects, imperatives).

Effects are data. A driver carries them out in order and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossip.arrays import Payload
from gossip.messages import Message, PeerId

# ---------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Started:
    """The replica is in place and stands at `frontiers` (empty: the initial model)."""

    frontiers: Mapping[PeerId, int]


@dataclass(frozen=True)
class Joined:
    """`peer` belongs to the swarm from now on; its replica holds all that this lane has published so far."""

    peer: PeerId
    reads: bool = True
    """It pulls from us: keep segments until it has them."""
    read: bool = True
    """We pull from it."""


@dataclass(frozen=True)
class Received:
    """A message came in, whole."""

    message: Message


@dataclass(frozen=True)
class Progressed:
    """Part of the bulk message from `peer` came in: it is slow, not lost."""

    peer: PeerId


@dataclass(frozen=True)
class Computed:
    """A task of this peer finished an update: publish it."""

    payload: Payload


@dataclass(frozen=True)
class Exhausted:
    """No more updates will be computed here: say when everybody has what was published, or after `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True)
class Ticked:
    """`deadline()` has come."""


Event = Started | Joined | Received | Progressed | Computed | Exhausted | Ticked

# --------------------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True)
class Send:
    """To one peer. A bulk message goes without payload: Range is filled from the segments, State from the replica."""

    to: PeerId
    message: Message


@dataclass(frozen=True)
class Publish:
    """To all who subscribed; any of them may miss it."""

    message: Message


@dataclass(frozen=True)
class Deliver:
    """Merge updates lo..hi of `lane` into the replica, in one critical section."""

    lane: PeerId
    lo: int
    hi: int
    payload: Payload


@dataclass(frozen=True)
class Keep:
    """Add the payload of update `hi` to the own segment that begins at `lo`; `lo == hi` begins a new one."""

    lo: int
    hi: int
    payload: Payload


@dataclass(frozen=True)
class Fold:
    """Sum the own segments within [lo, hi] into one."""

    lo: int
    hi: int


@dataclass(frozen=True)
class Forget:
    """Drop the own segments up to and including update `through`: every reader has them."""

    through: int


@dataclass(frozen=True)
class Drained:
    """Everybody has what this peer published, except `missing` when the time ran out."""

    missing: tuple[PeerId, ...]


@dataclass(frozen=True)
class Warn:
    """Something a person should hear about; training goes on."""

    text: str


Effect = Send | Publish | Deliver | Keep | Fold | Forget | Drained | Warn
