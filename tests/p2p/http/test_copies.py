"""Copies of the model that are sent: one of each moment, shared, and never more than a few."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from p2p.http.copies import COPIES_MAX, Copies
from p2p.http.tensors import parsed


class Source:
    def __init__(self) -> None:
        self.version = 0
        self.looked = 0
        self.arrays: dict[str, Any] = {"w": np.zeros(4)}

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        self.looked += 1
        yield self.version, self.arrays

    def change(self) -> None:
        self.version += 1
        self.arrays["w"] += 1


def test_who_asks_for_the_same_moment_shares_a_copy() -> None:
    source, copies = Source(), Copies({"w": np.zeros(4)})
    first = copies.current(source, (1, 0))
    assert copies.current(source, (1, 0)) is first
    assert (source.looked, first.readers) == (1, 2)
    source.change()
    second = copies.current(source, (1, 1))
    assert second is not first
    assert parsed(first.buffer)[0]["w"].tolist() == [0.0] * 4, "who is being sent it is sent that"
    assert parsed(second.buffer)[0]["w"].tolist() == [1.0] * 4
    assert first.etag != second.etag


def test_memory_is_used_again_when_nobody_is_sent_it() -> None:
    source, copies = Source(), Copies({"w": np.zeros(4)})
    for version in range(5):
        copy = copies.current(source, (1, version))
        assert copy.version == version
        copies.release(copy)
        source.change()
    assert len(copies._copies) == 1


def test_where_slow_readers_hold_all_copies_the_newest_is_sent_again() -> None:
    source, copies = Source(), Copies({"w": np.zeros(4)})
    held = []
    for version in range(COPIES_MAX + 2):
        held.append(copies.current(source, (1, version)))
        source.change()
    assert [copy.version for copy in held] == [0, 1, 2, 2, 2]
    assert len(copies._copies) == COPIES_MAX
    copies.release(held[0])
    assert copies.current(source, (1, source.version)).version == source.version


def test_the_same_version_of_another_training_or_of_none_is_looked_at_again() -> None:
    source, copies = Source(), Copies({"w": np.zeros(4)})
    for moment in ((1, 0), (2, 0), None, None, (2, 0)):
        copies.release(copies.current(source, moment))
    assert source.looked == 5


def test_a_look_that_fails_leaves_nothing_that_is_taken_for_the_model() -> None:
    source, copies = Source(), Copies({"w": np.zeros(4)})
    copies.release(copies.current(source, (1, 0)))
    source.change()
    source.arrays = {"w": np.zeros(3)}  # as a user might do between two trainings
    with pytest.raises(ValueError, match="broadcast"):
        copies.current(source, (1, 1))
    source.arrays = {"w": np.ones(4)}
    assert parsed(copies.current(source, (1, 0)).buffer)[0]["w"].tolist() == [1.0] * 4
