"""Entries of a group's log: what is to be applied, in the order in which it is proposed.

4 bytes: length of the head | head: one of these in MessagePack | padding | packed arrays
"""

from __future__ import annotations

import struct
from typing import Any

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from gossip.arrays import Bytes, Layout
from gossip.errors import WireError
from gossip.fields import Count
from gossip.marks import Unit

LENGTH = struct.Struct("!I")
ALIGNED_BYTES = 16


class Held(Struct, frozen=True, kw_only=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """An entry."""


class Update(Held, frozen=True, kw_only=True):
    """What the gradient of a task returned, flattened."""

    unit: Unit
    also: tuple[Unit, ...]
    bad: Count
    """Both as in `p2p.server.messages.Push`."""
    version: Count
    """Of the model that it was computed from."""
    worker: str
    layout: Layout


class NoNumber(Held, frozen=True, kw_only=True):
    """Of these units updates came that have a NaN or an infinity."""

    units: tuple[Unit, ...]
    bad: Count


class Fed(Held, frozen=True, kw_only=True):
    """What a feeder in the driver program brought."""

    offer: str
    """A name for it: it is applied once."""
    worker: str
    version: Count | None
    checked: bool
    unit: bytes
    """A parcel: see `p2p.parcel`."""
    layout: Layout


class Mark(Held, frozen=True, kw_only=True):
    """Nothing: who applies it has all before it."""

    offer: str


_encode = Encoder().encode
_decode = Decoder(Update | NoNumber | Fed | Mark).decode


def packed(head: Held, arrays: Bytes = b"") -> bytes:
    """One entry."""
    said = _encode(head)
    return b"".join([LENGTH.pack(len(said)), said, bytes(-(LENGTH.size + len(said)) % ALIGNED_BYTES), arrays])


def unpacked(data: bytes) -> tuple[Update | NoNumber | Fed | Mark, memoryview[Any]]:
    """Its head, and its packed arrays, where they lie. `WireError` if it is no entry."""
    view = memoryview(data)
    if len(view) < LENGTH.size:
        raise WireError(f"an entry of {len(view)} bytes, expected at least {LENGTH.size}")
    (length,) = LENGTH.unpack(view[: LENGTH.size])
    end = LENGTH.size + length
    try:
        head = _decode(view[LENGTH.size : end])
    except (ValueError, RecursionError, OverflowError, MemoryError) as error:  # msgspec's are ValueErrors
        raise WireError(f"{error!s:.200}") from None
    return head, view[end + -end % ALIGNED_BYTES :]
