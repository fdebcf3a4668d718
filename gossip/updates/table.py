"""Which kinds of updates there are, and the operations on an update whatever its kind.

The kinds of a run are a tuple, tried in order: the first that claims an update's layout is its kind. `KINDS` are those
that every peer knows; with `with_kinds(...)` others go before them. The tuple is given to the peers of a run
(`gossip.lanes.peer.Settings.kinds`) and to the owner of a replica: there is no registry that an import could fill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gossip.arrays import Layout, Packed, Payload, Update, check_finite, squares_of_piece
from gossip.errors import UsageError
from gossip.updates.dense import PIECE_BYTES, Dense, squares_in_pieces
from gossip.updates.entries import Entries
from gossip.updates.halves import Halves
from gossip.updates.kind import Kind, Measured, read_whole
from gossip.updates.levels import Levels
from gossip.updates.rows import Rows, rows_of
from gossip.updates.stamps import RowStamps

Kinds = tuple[Kind, ...]

KINDS: Kinds = (Rows(), Entries(), Halves(), Levels(), Dense())


def with_kinds(more: Iterable[Kind]) -> Kinds:
    """`KINDS`, behind others.

    Raises:
        UsageError: two of them have names of arrays in common, so that updates could be of either.
    """
    kinds = (*more, *KINDS)
    seen: dict[str, Kind] = {}
    for kind in kinds:
        for suffix in kind.suffixes:
            if suffix in seen:
                raise UsageError(f"{kind!r} and {seen[suffix]!r} both have arrays that end in {suffix!r}")
            seen[suffix] = kind
    return kinds


def kind_of(layout: Layout, kinds: Kinds = KINDS) -> Kind:
    """The kind of updates of this layout. The layout keeps the answer: every message of a lane asks anew."""
    known = layout.__dict__.get("_kind")
    if known is None or known[0] is not kinds:
        known = layout.__dict__["_kind"] = kinds, next(kind for kind in kinds if kind.claims(layout))
    return known[1]


def check(update: Update, model: Layout, kinds: Kinds = KINDS) -> None:
    """Raise `MismatchError` unless an update that anybody may have sent can be added to `model`."""
    kind = kind_of(update.layout, kinds)
    kind.check_fit(update.layout, model)
    if not update.is_finite:
        check_finite(update.arrays())  # which says where
    kind.check(update, model)


def norm(update: Payload, model: Layout, kinds: Kinds = KINDS) -> float:
    """How long an update is, over all floats that it adds to `model`: the Euclidean norm. It was checked.

    Infinite if its square is no number of its dtype; arrays of integers do not count.
    """
    kind = kind_of(update.layout, kinds)
    known: Any = update if kind.in_blocks else read_whole(update)
    if not isinstance(kind, Measured):
        squares = _squares_added(kind, known, model)
    elif hasattr(known, "squares"):
        squares = kind.squares(known)
    else:
        squares = squares_in_pieces(known)
    return math.sqrt(squares) if squares >= 0.0 else math.inf


def _squares_added(kind: Kind, known: Payload, model: Layout) -> float:
    """The same for any kind, at the price of adding it to zeros."""
    total = 0.0
    for start in range(0, model.nbytes, PIECE_BYTES):
        block = bytearray(min(PIECE_BYTES, model.nbytes - start))
        kind.add_within(model, block, start, known)
        total += squares_of_piece(model, block, start)
    return total


def nothing(model: Layout) -> Packed:
    """An update that adds nothing: no row of an array, or zeros where no array has rows."""
    for spec in model.specs:
        if spec.shape:
            return Packed.of(rows_of(spec.name, np.zeros(0), np.zeros((0, *spec.shape[1:]), spec.dtype)))
    return Packed(model, bytes(model.nbytes))


def merge(model: Layout, buffer: Any, stamps: RowStamps, payload: Payload, kinds: Kinds = KINDS) -> None:
    """Add an update to the packed `buffer` of a replica in place, and stamp the rows that it changes."""
    kind = kind_of(payload.layout, kinds)
    update = payload if kind.in_blocks else read_whole(payload)
    stamps.stamp(kind.changed_rows(model, update))
    kind.add(model, buffer, update)
    stamps.done()


def rehearse(update: Packed, model: Layout, kinds: Kinds) -> None:
    """Do with an update, where nothing can be lost, what peers will do with it: its kind may not be one of `KINDS`, and
    what that raises within a peer would end it.

    Raises:
        UsageError: the kind does not keep to what `Kind` says.
    """
    kind = kind_of(update.layout, kinds)
    if kind in KINDS:
        return
    try:
        whole, block = bytearray(model.nbytes), bytearray(model.nbytes)
        list(kind.changed_rows(model, update))
        kind.add(model, whole, update)
        kind.add_within(model, block, 0, update)
        if whole != block:
            raise UsageError(f"add_within of {kind!r} adds other numbers than add")
        kind.total(update.arrays(), update.arrays())
        kind.add(model, whole, read_whole(kind.negative(update)))
        if np.frombuffer(whole, np.uint8).any():
            raise UsageError(f"negative of {kind!r} does not take back what add adds")
    except Exception as error:
        error.add_note(f"in a rehearsal of {kind!r}, a kind of updates, before it is sent to any peer")
        raise


def total(one: Packed, other: Packed, kinds: Kinds = KINDS) -> Packed | None:
    """The sum of two updates in memory; None where only whole arrays hold it."""
    kind = kind_of(one.layout, kinds)
    if kind is not kind_of(other.layout, kinds):
        return None
    found = kind.total(one.arrays(), other.arrays())
    return None if found is None else Packed.of(found)
