"""Whole arrays: an update that is laid out as the model, and has a number for each of its numbers.

It may be as large as the model, so it is never read into memory as a whole: it is added, and negated, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, Bytes, Layout, Payload, Update, squares_of_piece

PIECE_BYTES = 1 << 19
"""Of an update that is looked at or added: 64 MB take 18 ms in pieces of 512 KiB, and 22 in smaller or larger ones."""


def squares_in_pieces(payload: Payload) -> float:
    """The sum of the squares of all floats of packed arrays, wherever they are kept: NaN if one of them is a NaN or an
    infinity, and infinite if it is too large."""
    nbytes = payload.layout.nbytes
    return sum(
        squares_of_piece(payload.layout, payload.read(start, min(start + PIECE_BYTES, nbytes)), start)
        for start in range(0, nbytes, PIECE_BYTES)
    )


@dataclass(frozen=True)
class Dense:
    """Updates of whole arrays. It claims what no other kind does, and goes behind them."""

    suffixes = ()
    in_blocks = True

    def claims(self, layout: Layout) -> bool:
        return True

    def check_fit(self, layout: Layout, model: Layout) -> None:
        layout.check_fit(model)

    def check(self, update: Update, model: Layout) -> None:
        """Any numbers will do."""

    def squares(self, update: Update) -> float:
        return update.squares

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        for start in range(0, model.nbytes, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, model.nbytes)
            model.add(buffer, update.read(start, stop), start, stop - start, target_start=0)

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        model.add(block, update.read(start, start + len(block)), start, len(block))

    def total(self, left: Arrays, right: Arrays) -> Arrays:
        return {name: left[name] + right[name] for name in left}

    def negative(self, update: Payload) -> Payload:
        return NegativePayload(update)

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        for spec in update.layout.specs:
            yield spec.name, None


class NegativePayload:
    """Minus another payload."""

    def __init__(self, payload: Payload) -> None:
        self._payload, self.layout = payload, payload.layout

    def read(self, start: int, stop: int) -> Bytes:
        """A fresh copy of bytes [start, stop), negated by dtype."""
        data = bytearray(self._payload.read(start, stop))
        for dtype, low, high in self.layout.pieces(start, stop):
            numbers = np.frombuffer(data, dtype, (high - low) // dtype.itemsize, low - start)
            np.subtract(0, numbers, out=numbers)
        return data
