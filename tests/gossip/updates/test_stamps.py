"""Whoever follows a replica finds every row that an update has changed, whenever it looks."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossip.arrays import Layout, Packed
from gossip.updates import kind_of
from gossip.updates.rows import rows_of
from gossip.updates.stamps import RowStamps, stamps_bytes

MODEL = Layout.of({"v": np.zeros((50, 3), np.float32), "u": np.zeros((20, 2, 2)), "n": np.zeros(4)})


def update_of(**rows: list[int]) -> Packed:
    parts: dict[str, Any] = {}
    for name, numbers in rows.items():
        shape = next(spec.shape[1:] for spec in MODEL.specs if spec.name == name)
        parts |= rows_of(name, np.array(numbers), np.ones((len(numbers), *shape), np.float32))
    return Packed.of(parts)


def add(stamps: RowStamps, update: Packed) -> None:
    stamps.stamp(kind_of(update.layout).changed_rows(MODEL, update))
    stamps.done()


def test_rows_changed_since_a_count_are_found_and_no_others() -> None:
    stamps = RowStamps(MODEL)
    add(stamps, update_of(v=[1, 5], u=[0]))
    noted = stamps.count
    add(stamps, update_of(v=[5, 7]))
    add(stamps, update_of(v=[2]))
    assert noted == 1
    assert stamps.since("v", noted).tolist() == [2, 5, 7]
    assert stamps.since("u", noted).tolist() == []
    assert stamps.since("v", 0).tolist() == [1, 2, 5, 7]
    assert stamps.since("v", stamps.count).tolist() == []


def test_a_row_that_is_being_changed_while_somebody_looks_is_found_again() -> None:
    stamps = RowStamps(MODEL)
    update = update_of(v=[3])
    stamps.stamp(kind_of(update.layout).changed_rows(MODEL, update))
    noted = stamps.count  # the writer is between the stamp and its end: what is read of the row may be old
    assert stamps.since("v", 0).tolist() == [3]
    stamps.done()
    assert stamps.since("v", noted).tolist() == [3]
    assert stamps.since("v", stamps.count).tolist() == []


def test_whoever_shares_the_memory_sees_the_same() -> None:
    memory = bytearray(stamps_bytes(MODEL))
    writer, reader = RowStamps(MODEL, memory), RowStamps(MODEL, memory)
    add(writer, update_of(u=[19]))
    assert (reader.count, reader.since("u", 0).tolist()) == (1, [19])


def test_an_update_of_whole_arrays_counts_but_stamps_no_row() -> None:
    stamps = RowStamps(MODEL)
    add(stamps, Packed.of({spec.name: np.ones(spec.shape, spec.dtype) for spec in MODEL.specs}))
    assert stamps.count == 1
    assert stamps.since("v", 0).tolist() == []


def test_numbers_of_an_array_of_one_dimension_have_no_stamps() -> None:
    stamps = RowStamps(MODEL)
    add(stamps, Packed.of(rows_of("n", np.array([1, 2]), np.ones(2)) | rows_of("v", np.array([4]), np.ones((1, 3)))))
    assert (stamps.count, stamps.since("v", 0).tolist()) == (1, [4])
    assert stamps_bytes(Layout.of({"n": np.zeros(1000)})) == stamps_bytes(Layout.of({}))


def test_stamps_tell_updates_apart_however_many_there_were() -> None:
    memory = bytearray(stamps_bytes(MODEL))
    many = (1 << 62) + 1  # more than a float64 counts one by one
    memory[:8] = many.to_bytes(8, "little")
    stamps = RowStamps(MODEL, memory)
    assert stamps.count == many
    for row in (3, 4):
        add(stamps, update_of(v=[row]))
    assert stamps.count == many + 2
    assert [stamps.since("v", many + more).tolist() for more in range(3)] == [[3, 4], [4], []]
