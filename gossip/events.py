"""Events that happen to a peer (past participles) and effects that it wants done (imperatives).

Effects are data. A driver carries them out in order and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gossip.arrays import Layout, Payload
from gossip.marks import NO_UNITS, Counted, Series
from gossip.messages import Bulk, Message, PeerId, Unit

# ---------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Started:
    """Begin. The replica is in place and stands at `frontiers` (empty: the initial model)."""

    frontiers: Mapping[PeerId, int]
    ready: bool = True
    """False for one that comes late and has no replica yet: it adopts one first."""
    closed: int = 0
    """Epochs that were over when the replica was taken, as `Closed` says it."""
    units: int = 0
    """Units of work that count in it."""
    marks: Mapping[PeerId, tuple[Series, ...]] = field(default_factory=dict)
    """Of those of epochs that are not over, by lane: a session goes on in the middle of a training."""


@dataclass(frozen=True)
class Initialized:
    """Begin, from this replica: to one that mixes, whose replica follows from its state."""

    payload: Payload
    counted: Counted = NO_UNITS
    """Units of work that count in it."""


@dataclass(frozen=True)
class Joined:
    """`peer` belongs to the swarm from now on; its replica holds all that this lane has published so far."""

    peer: PeerId
    reads: bool = True
    """It pulls from us: keep segments until it has them."""
    read: bool = True
    """We pull from it."""
    level: bool = True
    """Its replica holds all that this lane has published so far; else it will adopt somebody's."""
    exempt: bool = False
    """What it publishes is the user's own, and of any length."""


@dataclass(frozen=True)
class Departed:
    """`peer` does not answer any more: it is dead, or cut off for so long that it is taken for dead."""

    peer: PeerId


@dataclass(frozen=True)
class Returned:
    """`peer`, once departed, answers again: it was cut off."""

    peer: PeerId


@dataclass(frozen=True)
class Disconnected:
    """The connection to `peer` broke: its process may have ended."""

    peer: PeerId


@dataclass(frozen=True)
class Offended:
    """`peer` broke the protocol, as only itself can have done: see `gossip.trust.offences`."""

    peer: PeerId
    why: str


@dataclass(frozen=True)
class Received:
    """A message came in, whole."""

    message: Message


@dataclass(frozen=True)
class Progressed:
    """Part of the bulk message from `peer` came in: it is slow, not lost."""

    peer: PeerId
    arrived: bool = True
    """False if it came in before, and waits for the replica."""


@dataclass(frozen=True)
class Computed:
    """A task of this peer finished an update: publish it, unless somebody has published the same unit."""

    payload: Payload
    unit: Unit | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Closed:
    """The first `epochs` epochs of the session are over: whatever is still computed of them was published before."""

    epochs: int


@dataclass(frozen=True)
class Exhausted:
    """No more updates will be computed here: say when everybody has what was published, or after `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True)
class Resumed:
    """Updates will be computed: to one that mixes, which rests before and after a training."""

    era: int = 0
    """The training, the same number for all: packets and rounds of another one are strangers. Eras only grow."""
    wait_s: float | None = None
    """For the first task of this peer, before it follows others without a step; 0 for one that gets none, None where
    nothing is known of that."""


@dataclass(frozen=True)
class Tasked:
    """So many tasks of this peer compute updates now: to one that mixes, whose neighbors wait for its steps."""

    tasks: int


@dataclass(frozen=True)
class Settling:
    """All updates are computed: to one that mixes, which now only comes to agree with the others."""

    era: int = 0
    """Of the rounds that follow; see `Resumed`."""
    rounds: int = 0
    """Rounds of the training that somebody has begun: all take part in these before they go on to agree."""


@dataclass(frozen=True)
class Leaving:
    """This peer ends on purpose: the others need not find out by its silence."""


@dataclass(frozen=True)
class Ticked:
    """`deadline()` has come."""


Event = (
    Started
    | Initialized
    | Joined
    | Departed
    | Returned
    | Disconnected
    | Offended
    | Received
    | Progressed
    | Computed
    | Closed
    | Exhausted
    | Resumed
    | Tasked
    | Settling
    | Leaving
    | Ticked
)

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
    payload: Payload | Own | Negative


@dataclass(frozen=True)
class Adopt:
    """Replace the replica by `payload`, in the same critical section as the effects that follow."""

    payload: Payload


@dataclass(frozen=True)
class Own:
    """A payload by reference: the sum of the own updates lo..hi, from the segments."""

    lo: int
    hi: int


@dataclass(frozen=True)
class Negative:
    """A payload by reference: minus what was retained as update `number`."""

    number: int


@dataclass(frozen=True)
class Retain:
    """Keep the payload of the own update `number` by itself: it may have to be taken back."""

    number: int
    payload: Payload


@dataclass(frozen=True)
class Release:
    """The own update `number` cannot have to be taken back any more."""

    number: int


@dataclass(frozen=True)
class Gated:
    """The unit that was computed is in somebody's lane already, or was too long: what was computed is not published."""

    unit: Unit


@dataclass(frozen=True)
class Keep:
    """Add the payload of update `hi` to the own segment that begins at `lo`; `lo == hi` begins a new one."""

    lo: int
    hi: int
    payload: Payload | Negative


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
class Congested:
    """With `waits`, do not let another `Computed` happen until the peer says that it may."""

    waits: bool


@dataclass(frozen=True)
class PutOut:
    """`peer`, which may be this one, does not belong to the swarm any more: be not connected to it."""

    peer: PeerId
    why: str


@dataclass(frozen=True)
class Drained:
    """Everybody has what this peer published, except `missing` when the time ran out."""

    missing: tuple[PeerId, ...]


@dataclass(frozen=True)
class Warn:
    """Something a person should hear about; training goes on."""

    text: str


Effect = (
    Send
    | Publish
    | PutOut
    | Deliver
    | Adopt
    | Keep
    | Fold
    | Forget
    | Retain
    | Release
    | Congested
    | Gated
    | Drained
    | Warn
)

# ------------------------------------------------------------------------------------------------- what has them


class StateMachine(Protocol):
    """What a driver needs to know of whatever it drives."""

    me: PeerId

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what happened; return what is to be done, in order."""
        ...

    def deadline(self) -> float:
        """When to come back with `Ticked`."""
        ...

    @property
    def layout(self) -> Layout | None:
        """Of the model; None where any arrays are taken."""
        ...

    @property
    def ready(self) -> bool:
        """It has a replica."""
        ...

    def check(self) -> None:
        """Look whether all holds that must hold between two events.

        Raises:
            InvariantError: something does not.
        """
        ...

    def expects(self, header: Bulk) -> bool:
        """Whether the arrays of the bulk message with this header are wanted.

        Raises:
            MismatchError: they would be, but do not fit.
        """
        ...
