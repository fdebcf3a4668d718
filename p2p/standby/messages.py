"""What the members of a group of masters say to each other: one class for each message.

    leader                                       follower
    Prepare    the next update                -> Prepared   I have all up to this number
    Committed  all up to this number is safe  -> Prepared

    who does not hear the leader                 all
    Silent    I do not hear it                -> Silent     nor do I: then the next view begins
    Suspect   this view begins                -> Suspect    I join it
                                                 Report     to its leader: this is my log
    leader of the new view
    Lead      this is the log                 -> Prepared

    who lacks entries                            who has them
    Fetch     these                           -> Entry      one of them
                                                 Copy       the whole state, where they are no longer kept
    who has lost all
    Recover   what is the view?               -> Recovered  this, and the log if I lead

    a standby                                    driver program
    Here      this is where I listen          <- Open       a training begins, or: take part in it
    Opened    I am ready                      <- Shut       it is over
                                              <- Offer      to the leader: an update that came here
                                              <- Leave

The first frame of a message is one of these in MessagePack; what an entry or a copy holds is the second.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.msgpack import Decoder, Encoder

from gossip.errors import WireError
from gossip.fields import Count

PLACES_MAX = 1 << 10
"""Members of a group."""
NUMBERS_MAX = 1 << 14
Numbers = Annotated[tuple[Count, ...], Meta(max_length=NUMBERS_MAX)]


class Log(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member has: entries behind `base`, each told by the view in which its number was given to it."""

    base: Count
    """The number of the last entry that is no longer kept, since it is applied."""
    tags: Numbers
    """By entry, its view: no two entries have the same number and view."""
    committed: Count

    @property
    def last(self) -> int:
        """The number of its last entry."""
        return self.base + len(self.tags)


class Told(Struct, frozen=True, kw_only=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """A message of a member."""

    view: Count
    """Of whoever says it. Each view has one leader."""


class Prepare(Told, frozen=True, kw_only=True):
    """Hold this entry."""

    number: Count
    tag: Count
    committed: Count


class Prepared(Told, frozen=True, kw_only=True):
    """It is held, with all before it."""

    number: Count


class Committed(Told, frozen=True, kw_only=True):
    """So much is safe; said at every beat, so that nobody suspects the leader."""

    number: Count
    last: Count
    """There is so much."""


class Silent(Told, frozen=True, kw_only=True):
    """Its sender does not hear the leader of the view, and takes part in it none the less."""


class Suspect(Told, frozen=True, kw_only=True):
    """The view begins: most members did not hear the leader of an earlier one. Its sender has left that."""


class Report(Told, frozen=True, kw_only=True):
    """What its sender has."""

    normal_view: Count
    """The last one that it took part in."""
    log: Log


class Lead(Told, frozen=True, kw_only=True):
    """The log that the view begins with."""

    log: Log


class Fetch(Told, frozen=True, kw_only=True):
    """Send these entries."""

    numbers: Numbers


class Entry(Told, frozen=True, kw_only=True):
    """One that was fetched."""

    number: Count
    tag: Count


class Copy(Told, frozen=True, kw_only=True):
    """The state after this entry."""

    number: Count


class Place(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a member listens."""

    endpoint: str = ""
    """To the other members,"""
    face: str = ""
    """and to workers."""


class Recover(Told, frozen=True, kw_only=True):
    """Its sender begins anew, with nothing."""

    nonce: Count
    place: Place
    """Where it listens now."""


class Recovered(Told, frozen=True, kw_only=True):
    """To `Recover`, of a member that takes part in its view."""

    nonce: Count
    log: Log | None
    """Of the leader."""


class House(Struct, frozen=True, kw_only=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """A message that is of no view, and of no training."""


class Here(House, frozen=True, kw_only=True):
    """A standby is up."""

    place: Place
    pid: Count


class Open(House, frozen=True, kw_only=True):
    """Take part in a training, as what comes with it says."""

    training: Count
    places: Annotated[tuple[Place, ...], Meta(max_length=PLACES_MAX)]
    recover: bool
    """It has begun already."""


class Opened(House, frozen=True, kw_only=True):
    """To `Open`."""

    training: Count
    trouble: str = ""
    """Why it cannot."""


class Shut(House, frozen=True, kw_only=True):
    """The training is over."""


class Offer(House, frozen=True, kw_only=True):
    """To whoever leads: propose this entry."""


class Leave(House, frozen=True, kw_only=True):
    """The session is over."""


Message = Prepare | Prepared | Committed | Silent | Suspect | Report | Lead | Fetch | Entry | Copy | Recover | Recovered
OfHouse = Here | Open | Opened | Shut | Offer | Leave
Said = Message | OfHouse

encode = Encoder().encode
_DECODER: Decoder[Said] = Decoder(Said)


def decode(frame: bytes) -> Said:
    """The message in a first frame. `WireError` if there is none."""
    try:
        return _DECODER.decode(frame)
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise WireError(f"{error!s:.200}") from None
