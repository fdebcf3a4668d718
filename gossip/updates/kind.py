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
from typing import Any, Protocol, runtime_checkable

from gossip.arrays import Array, Arrays, ArraySpec, Layout, Packed, Payload, Update, check_like
from gossip.errors import MismatchError


class Kind(Protocol):
    """One way in which an update says what to add to a model.

    `check_fit` and `check` take what anybody may have sent. All other methods are given what these let pass, or what
    `total` and `negative` made of such. A kind may have one method more, see `Measured`.
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


@runtime_checkable
class Measured(Protocol):
    """A kind that knows how long its updates are, without adding them to anything."""

    def squares(self, update: Update) -> float:
        """The sum of the squares of all floats that an update adds to a model. It fits, and was checked."""
        ...


def read_whole(payload: Payload) -> Packed:
    """An update in memory."""
    if isinstance(payload, Packed):
        return payload
    return Packed(payload.layout, payload.read(0, payload.layout.nbytes))


def split(name: str, suffixes: tuple[str, ...]) -> tuple[str, str]:
    """(the model's array, what of it): one of the suffixes, or nothing for a whole array."""
    for suffix in suffixes:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def parts_of(layout: Layout, model: Layout, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str, ArraySpec]]:
    """(the model's array, what of it, how it lies in the model) for each array of an update that is no whole one.

    Raises:
        MismatchError: of another array than the model's, or whole and not like that.
    """
    theirs = {spec.name: spec for spec in model.specs}
    for spec in layout.specs:
        base, suffix = split(spec.name, suffixes)
        if base not in theirs:
            raise MismatchError(f"{base!r} is not one of the model's arrays {sorted(theirs)}")
        if suffix:
            yield base, suffix, theirs[base]
        else:
            check_like(base, spec, theirs[base])
