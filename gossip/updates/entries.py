"""Entries: an update that touches some numbers of an array only, wherever they are. They travel as places and numbers.

An update names, for each array of the model, nothing (it did not change), the whole array under its own name, or

    w[entries]     (k,)   int32, ascending, each once: places in the array as if it had one dimension
    w[steps]       (k,)   what is added there
    w[powers]      (k,)   int8; if there: entry i of the steps is an integer, in units of 2 ** powers[i]

They are rows of the array as if it had one dimension, and are summed as these are, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, ArraySpec, Layout, Packed, Payload, Update
from gossip.errors import MismatchError
from gossip.updates import rows
from gossip.updates.kind import read_whole
from gossip.updates.rows import EXPONENTS, ROWS, VALUES, Rows

ENTRIES, STEPS, POWERS = "[entries]", "[steps]", "[powers]"
SUFFIXES = (ENTRIES, STEPS, POWERS)
_OF_ROWS = dict(zip(SUFFIXES, (ROWS, VALUES, EXPONENTS), strict=True))
_OF_ENTRIES = {theirs: mine for mine, theirs in _OF_ROWS.items()}
_FLAT = Rows()


def entries_of(name: str, entries: Array, steps: Array, powers: Array | None = None) -> dict[str, Array]:
    """Entries of the array `name` as part of an update; `entries` are ascending and distinct."""
    return _renamed(rows.rows_of(name, entries, steps, powers), _OF_ENTRIES)


@dataclass(frozen=True)
class Entries:
    """Updates of some entries of some arrays, beside others that are whole."""

    suffixes = SUFFIXES
    in_blocks = False

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(ENTRIES) for spec in layout.specs)

    def check_fit(self, layout: Layout, model: Layout) -> None:
        wholes = {spec.name for spec in layout.specs}
        for spec in layout.specs:
            if spec.name.endswith(tuple(_OF_ENTRIES)):
                raise MismatchError(f"{spec.name!r} beside entries, expected arrays of the model or {SUFFIXES}")
        specs = tuple(ArraySpec(_new_name(spec.name, _OF_ROWS), spec.dtype, spec.shape) for spec in layout.specs)
        # an array that is there whole has the model's shape, of any other the entries are rows
        theirs = tuple(spec if spec.name in wholes else _flat_spec(spec) for spec in model.specs)
        try:
            _FLAT.check_fit(Layout(specs), Layout(theirs))
        except MismatchError as error:
            raise MismatchError(_in_our_words(str(error))) from None

    def check(self, update: Update, model: Layout) -> None:
        try:
            _FLAT.check(_as_rows(update), _flat(model))
        except MismatchError as error:
            raise MismatchError(_in_our_words(str(error))) from None

    def squares(self, update: Update) -> float:
        parts = update.arrays()
        found = update.squares
        for name, powers in parts.items():
            if name.endswith(POWERS):
                found += rows.squares_in_units(parts[name.removesuffix(POWERS) + STEPS], powers)
        return found

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        _FLAT.add(_flat(model), buffer, _as_flat_rows(update))

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        _FLAT.add_within(_flat(model), block, start, _as_flat_rows(update))

    def total(self, left: Arrays, right: Arrays) -> Arrays:
        one, other = dict(left), dict(right)
        shapes = {}
        for arrays in (one, other):
            for name, array in arrays.items():
                if not name.endswith(SUFFIXES):
                    shapes[name], arrays[name] = array.shape, array.reshape(-1)
        found = _renamed(_FLAT.total(_renamed(one, _OF_ROWS), _renamed(other, _OF_ROWS)), _OF_ENTRIES)
        return {name: array.reshape(shapes[name]) if name in shapes else array for name, array in found.items()}

    def negative(self, update: Payload) -> Packed:
        return Packed.of(_renamed(_FLAT.negative(_as_rows(read_whole(update))).arrays(), _OF_ENTRIES))

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        shapes = {spec.name: spec.shape for spec in model.specs}
        for name, entries in _FLAT.changed_rows(model, _as_rows(read_whole(update))):
            width = max(1, math.prod(shapes[name][1:]))
            yield name, None if entries is None or not shapes[name] else np.asarray(entries // width)


def _flat_spec(spec: ArraySpec) -> ArraySpec:
    return ArraySpec(spec.name, spec.dtype, (math.prod(spec.shape),))


def _flat(model: Layout) -> Layout:
    """The model as if all its arrays had one dimension: they lie where they did. The layout keeps the answer."""
    found = model.__dict__.get("_flat")
    if found is None:
        found = model.__dict__["_flat"] = Layout(tuple(map(_flat_spec, model.specs)))
    return found


def _as_rows(update: Update) -> Packed:
    return Packed.of(_renamed(update.arrays(), _OF_ROWS))


def _as_flat_rows(update: Payload) -> Packed:
    """Also of whole arrays."""
    arrays = _renamed(read_whole(update).arrays(), _OF_ROWS)
    wholes = {name: part.reshape(-1) for name, part in arrays.items() if not name.endswith(rows.SUFFIXES)}
    return Packed.of({**arrays, **wholes})


def _renamed(arrays: Arrays, names: dict[str, str]) -> dict[str, Array]:
    return {_new_name(name, names): array for name, array in arrays.items()}


def _new_name(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _in_our_words(text: str) -> str:
    for theirs, mine in _OF_ENTRIES.items():
        text = text.replace(theirs, mine)
    return text.replace("some rows of", "some entries of").replace("rows", "entries").replace("each row", "each entry")
