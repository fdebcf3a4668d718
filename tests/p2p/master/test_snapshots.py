"""Copies of a master's model that workers read while it changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import MismatchError
from p2p.master.snapshots import FILES_KEPT, FILES_MAX, PINNED_MAX, Snapshots
from p2p.server.shared import open_at

LAYOUT = Layout.of({"n": np.zeros(1, np.int64), "w": np.zeros((3, 2), np.float32)})


@pytest.fixture
def snapshots() -> Iterator[Snapshots]:
    snapshots = Snapshots(LAYOUT)
    yield snapshots
    snapshots.close()


def arrays(value: float) -> dict[str, Any]:
    return {"n": np.array([int(value)]), "w": np.full((2, 3), value, np.float32).T}


def seen(snapshots: Snapshots) -> tuple[int, list[float]]:
    found = LAYOUT.views(snapshots.current.read(0, snapshots.current.nbytes))
    return int(found["n"][0]), np.unique(found["w"]).tolist()


def test_the_current_one_is_what_was_published_last(snapshots: Snapshots) -> None:
    for version in range(4):
        snapshots.publish(arrays(version), version, None, 0)
        assert seen(snapshots) == (version, [version])
        assert (snapshots.current.version, snapshots.current.file.versions) == (version, (version, 0))


def test_two_files_are_enough_while_nobody_reads(snapshots: Snapshots) -> None:
    places = set()
    for version in range(10):
        snapshots.publish(arrays(version), version, None, 0)
        places.add(snapshots.current.file.place)
    assert len(places) == 2


def test_nobody_writes_to_what_is_read(snapshots: Snapshots) -> None:
    snapshots.publish(arrays(1), 1, None, 0)
    reader = open_at(snapshots.current.file.place, LAYOUT.nbytes)
    assert reader is not None
    with reader.reading():
        for version in range(2, 9):
            snapshots.publish(arrays(version), version, None, 0)
            assert seen(snapshots) == (version, [version])
        assert LAYOUT.views(reader.view())["n"][0] == 1
    reader.close()


def test_readers_that_stand_still_keep_their_files_and_take_no_more_and_more(snapshots: Snapshots) -> None:
    readers = []
    with ExitStack() as standing:
        for version in range(3 * FILES_MAX):
            snapshots.publish(arrays(version), version, None, 0)
            reader = open_at(snapshots.current.file.place, LAYOUT.nbytes)
            assert reader is not None
            standing.enter_context(reader.reading())
            readers.append(reader)
        assert len(snapshots._all) <= FILES_MAX + 1
        assert [LAYOUT.views(reader.view())["n"][0] for reader in readers] == list(range(3 * FILES_MAX))
    for version in range(3):
        snapshots.publish(arrays(version), version, None, 0)
    assert len(snapshots._all) == FILES_KEPT


def test_what_is_read_in_pieces_stays_until_it_is_given_back(snapshots: Snapshots) -> None:
    snapshots.publish(arrays(1), 1, None, 0)
    one, again = snapshots.pin(), snapshots.pin()
    assert one is again
    for version in range(2, 9):
        snapshots.publish(arrays(version), version, None, 0)
    assert one.version == 1
    snapshots.unpin(one)
    snapshots.publish(arrays(9), 9, None, 0)
    assert one.version == 1, "another still reads it"
    snapshots.unpin(again)
    for version in range(10, 13):
        snapshots.publish(arrays(version), version, None, 0)
    assert one.version > 9


def test_many_readers_in_pieces_share_a_few(snapshots: Snapshots) -> None:
    pinned = []
    for version in range(10):
        snapshots.publish(arrays(version), version, None, 0)
        pinned.append(snapshots.pin())
    assert len(set(map(id, pinned))) == PINNED_MAX
    assert pinned[-1].version == PINNED_MAX - 1, "the newest of these"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_not_published(snapshots: Snapshots, bad: float) -> None:
    snapshots.publish(arrays(1), 1, None, 0)
    broken = arrays(2)
    broken["w"][1, 1] = bad
    with pytest.raises(MismatchError, match="'w': 1 of 6 numbers are NaN or infinite"):
        snapshots.publish(broken, 2, None, 0)
    assert seen(snapshots) == (1, [1])
    snapshots.publish(arrays(3), 3, None, 0)
    assert seen(snapshots) == (3, [3])


def test_large_numbers_are_numbers(snapshots: Snapshots) -> None:
    snapshots.publish(arrays(float(np.float32(3e38))) | {"n": np.zeros(1, np.int64)}, 0, None, 0)
    assert seen(snapshots)[1] == [float(np.float32(3e38))]


def test_attributes_lie_behind_the_arrays_and_may_grow(snapshots: Snapshots) -> None:
    for size in (1, 1000, 10):
        packed = Packed.of({"a0": np.arange(size)})
        snapshots.publish(arrays(size), size, packed, size)
        current = snapshots.current
        assert (current.attributes, current.attributes_version) == (packed.layout, size)
        behind = current.read(LAYOUT.nbytes, current.nbytes)
        assert packed.layout.views(behind)["a0"].tolist() == list(range(size))
        assert seen(snapshots)[0] == size


def test_the_arrays_can_be_had_back_and_compared(snapshots: Snapshots) -> None:
    snapshots.publish(arrays(1), 1, None, 0)
    found: dict[str, Any] = {}
    snapshots.restore(lambda views: found.update({name: view.copy() for name, view in views.items()}))
    assert found["n"].tolist() == [1]
    changed = arrays(1)
    assert snapshots.holds(changed)
    changed["w"][0, 0] = 7
    assert not snapshots.holds(changed)
    told: dict[str, Any] = {}
    snapshots.compare(changed, told.update)
    assert [(name, int(each.sum())) for name, each in told.items()] == [("n", 0), ("w", 1)]
