"""A kind of update, and the methods that it has. Only the kind asks how an update is laid out.

    the task      makes an update of some kind          `w[rows]`, `w[values]`: names say which
    the origin    keeps it, and sums what goes together         total, add_within, negative
    the wire      carries named arrays, as any others
    a reader      looks at it before it is merged               check_fit, check
    a replica     adds it in place                              changed_rows, add

A kind is a value without state. All peers of a run know the same kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from gossip.arrays import Array, Arrays, Layout, Packed, Payload, Update


class Kind(Protocol):
    """One way in which an update says what to add to a model.

    `check_fit` and `check` take what anybody may have sent. All other methods are given what these let pass, or what
    `total` and `negative` made of such.
    """

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Ends of names that are its own: no array of a model may have one. None where a layout is the model's."""
        ...

    @property
    def in_blocks(self) -> bool:
        """Its updates are laid out as the model: they are kept where they lie, and read and added block by block, and
        what is of another kind can be added to them. Others are read into memory; of these `total` is asked."""
        ...

    def claims(self, layout: Layout) -> bool:
        """An update of this layout is of this kind, by the names of its arrays. It may yet be malformed."""
        ...

    def check_fit(self, layout: Layout, model: Layout) -> None:
        """Raise `MismatchError` unless an update of this layout can be one of `model`; before its arrays are there."""
        ...

    def check(self, update: Update, model: Layout) -> None:
        """Raise `MismatchError` unless what its arrays hold can be added to `model`. It fits, and floats are finite."""
        ...

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        """Add an update to the packed `buffer` of the model, in place. It is in memory, unless read `in_blocks`."""
        ...

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        """Add what of an update lies within bytes [start, start + len(block)) of the packed model to `block`, in place:
        over all blocks the same numbers as `add`. `start` and the length are multiples of all items' sizes."""
        ...

    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        """One update that adds as much as two, as new arrays, without rounding where there is room; None if there is no
        such one: then whole arrays take its place. Not asked where updates are read `in_blocks`."""
        ...

    def negative(self, update: Payload) -> Payload:
        """What takes back an update exactly. It may read it later, as long as that is there."""
        ...

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        """(name, rows) of each array of the model that it touches: (n,) numbers along its first axis, in any order and
        as often as may be; None where it may be all of them."""
        ...


def read_whole(payload: Payload) -> Packed:
    """An update in memory."""
    if isinstance(payload, Packed):
        return payload
    return Packed(payload.layout, payload.read(0, payload.layout.nbytes))
