"""How long an update is, of each kind: as long as what it adds to a model of zeros."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Arrays, Layout, Packed, Payload
from gossip.updates import KINDS, Kind, kind_of, merge, norm, nothing, with_kinds
from gossip.updates.entries import entries_of
from gossip.updates.halves import HALF
from gossip.updates.levels import LEVELS, SCALES, in_blocks, levels_of
from gossip.updates.rows import rows_of
from gossip.updates.stamps import RowStamps
from gossip.zmq.segments import FilePayload, LentFile

CHANCE = np.random.default_rng(0)
W = CHANCE.normal(size=(600, 40)).astype(np.float32)
MODEL = Layout.of({"w": W, "b": np.zeros(7), "n": np.zeros(3, np.int64), "s": np.float32(0.0) * W[0, 0]})
WHOLE = {"b": CHANCE.normal(size=7), "n": np.full(3, 10**6), "s": np.array(2.0, np.float32)}
ROWS = np.arange(5, 300, 3)
BYTES, EXPONENTS = (
    CHANCE.integers(-127, 128, (len(ROWS), 40)).astype("i1"),
    CHANCE.integers(-9, 9, len(ROWS)).astype("i1"),
)
STEPS = CHANCE.integers(-1, 2, in_blocks(W).shape).astype("i1")
STEPS[-1, W.size % 256 or 256 :] = 0
UNITS = CHANCE.integers(-9, 9, len(STEPS)).astype("i1")

UPDATES: dict[str, Arrays] = {
    "dense": {"w": W, **WHOLE},
    "rows": {**rows_of("w", ROWS, W[ROWS]), **WHOLE},
    "rows of integers": rows_of("w", ROWS, BYTES, EXPONENTS),
    "no rows": rows_of("w", ROWS[:0], W[:0]),
    "entries": entries_of("w", ROWS, W.reshape(-1)[ROWS]),
    "entries of integers": entries_of("w", ROWS, BYTES[:, 0].astype("<i2"), EXPONENTS),
    "halves": {"w" + HALF: W.astype("f2"), **WHOLE},
    "levels": {**levels_of("w", STEPS, UNITS), **WHOLE},
    "levels of sums": {"w" + LEVELS: 3 * STEPS, "w" + SCALES: UNITS, **WHOLE},
}


class Doubled:
    """A kind that does not say how long its updates are: twice what it has."""

    suffixes = ("[half of it]",)
    in_blocks = False

    def __getattr__(self, name: str) -> Any:
        if name == "squares":
            raise AttributeError(name)
        return getattr(KINDS[-1], name)

    def claims(self, layout: Layout) -> bool:
        return layout.specs[0].name.endswith(self.suffixes)

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        (half,) = Packed(update.layout, update.read(0, update.layout.nbytes)).arrays().values()
        for _ in range(2):
            model.add(block, half.tobytes()[start : start + len(block)], start, len(block))


def added(update: Packed, model: Layout = MODEL) -> float:
    """The norm of all floats that it adds."""
    buffer = bytearray(model.nbytes)
    merge(model, buffer, RowStamps(model), update)
    floats = [array for array in model.views(buffer).values() if array.dtype.kind == "f"]
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in floats))


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_an_update_of_each_kind_is_as_long_as_what_it_adds(update: Arrays) -> None:
    packed = Packed.of(update)
    assert norm(packed, MODEL) == pytest.approx(added(packed), rel=1e-4)


def test_each_kind_is_tried() -> None:
    assert {type(kind_of(Packed.of(update).layout)) for update in UPDATES.values()} == set(map(type, KINDS))


@pytest.fixture
def file() -> Iterator[int]:
    packed = Packed.of(UPDATES["dense"])
    descriptor = os.memfd_create("update")
    os.pwrite(descriptor, packed.buffer, 0)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("kind", [LentFile, FilePayload])
def test_an_update_in_a_file_is_as_long_as_one_in_memory(kind: Any, file: int) -> None:
    packed = Packed.of(UPDATES["dense"])
    assert norm(kind(packed.layout, file), MODEL) == pytest.approx(norm(packed, MODEL), rel=1e-6)


def test_a_kind_that_does_not_say_is_added_to_zeros() -> None:
    kind: Kind = Doubled()  # type: ignore[assignment]
    model = Layout.of({"w": W})
    assert norm(Packed.of({"w[half of it]": W}), model, with_kinds([kind])) == pytest.approx(
        2 * np.linalg.norm(W), rel=1e-4
    )


def test_what_is_too_large_for_its_dtype_is_infinitely_long() -> None:
    model = Layout.of({"w": np.zeros(2, np.float32)})
    assert norm(Packed.of({"w": np.full(2, 1e30, np.float32)}), model) == math.inf
    assert norm(Packed.of({"w": np.full(2, np.nan, np.float32)}), model) == math.inf


@pytest.mark.parametrize("model", [MODEL, Layout.of({"s": np.array(1.0)}), Layout.of({"s": np.array(1)})])
def test_nothing_adds_nothing(model: Layout) -> None:
    update, buffer = nothing(model), bytearray(model.nbytes)
    kind_of(update.layout).check_fit(update.layout, model)
    merge(model, buffer, RowStamps(model), update)
    assert not any(buffer)
    assert norm(update, model) == 0.0
    assert update.layout.nbytes <= 64
