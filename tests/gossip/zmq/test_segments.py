"""The own log against a plain dict: the same sums, in memory and in files, and nothing left behind."""

from __future__ import annotations

import os
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.updates import kind_of, read_whole
from gossip.updates.rows import rows_of
from gossip.wire import BLOCK_BYTES
from gossip.zmq.segments import LENT_FILES_MAX, FilePayload, LentFile, RangeSum, Segments

NAMED = {"w": np.zeros((3, 5), np.int64), "b": np.zeros(9, np.int32), "e": np.zeros((0, 2))}
LAYOUT = Layout.of(NAMED)
assert LAYOUT.nbytes == 192
MEMORY = pytest.mark.parametrize("memory_bytes_max", [0, 500, 1 << 26])


def update(number: int) -> Packed:
    generator = np.random.default_rng(number)
    return Packed.of({name: generator.integers(0, 1000, a.shape).astype(a.dtype) for name, a in NAMED.items()})


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def lent(packed: Packed) -> LentFile:
    """The same in a file, behind some other bytes; to be closed."""
    descriptor = os.memfd_create("update")
    os.pwrite(descriptor, packed.buffer, 24)
    return LentFile(packed.layout, descriptor, 24)


class Oracle:
    """What a log is: the updates by number, and where it is cut."""

    def __init__(self) -> None:
        self.updates: dict[int, Packed] = {}
        self.n = 0
        self.cuts: list[tuple[int, int]] = []

    def sum(self, lo: int, hi: int) -> dict[str, Any] | None:
        if lo not in [cut[0] for cut in self.cuts] or hi not in [cut[1] for cut in self.cuts] or hi < lo:
            return None
        arrays = [self.updates[number].arrays() for number in range(lo, hi + 1)]
        return {
            name: np.sum([each[name] for each in arrays], axis=0, dtype=array.dtype) for name, array in NAMED.items()
        }


def read(payload: RangeSum, step: int = BLOCK_BYTES) -> dict[str, Any]:
    nbytes = payload.layout.nbytes
    data = b"".join(payload.read(start, min(start + step, nbytes)) for start in range(0, nbytes, step))
    return payload.layout.views(data)


def equal(got: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert expected is not None
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], strict=True)


steps = st.one_of(
    st.just(("begin", 0, 0)),
    st.just(("borrow", 0, 0)),
    st.just(("extend", 0, 0)),
    st.tuples(st.just("fold"), st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.just("forget"), st.integers(0, 9), st.just(0)),
)


@MEMORY
@given(script=st.lists(steps, max_size=25), step=st.sampled_from([64, 128, BLOCK_BYTES]))
def test_every_sum_is_that_of_its_updates(memory_bytes_max: int, script: list[Any], step: int) -> None:
    files = open_files()
    segments, oracle = Segments(memory_bytes_max), Oracle()
    held: dict[tuple[int, int], RangeSum] = {}
    for action, first, second in script:
        if action in ("begin", "borrow", "extend"):
            oracle.n += 1
            lo = oracle.cuts.pop()[0] if action == "extend" and oracle.cuts else oracle.n
            oracle.cuts.append((lo, oracle.n))
            oracle.updates[oracle.n] = update(oracle.n)
            if action == "borrow":
                file = lent(oracle.updates[oracle.n])
                segments.keep(lo, oracle.n, file)
                file.close()
            else:
                segments.keep(lo, oracle.n, oracle.updates[oracle.n])
        elif oracle.cuts and action == "fold":
            low, high = sorted(index % len(oracle.cuts) for index in (first, second))
            oracle.cuts[low : high + 1] = [(oracle.cuts[low][0], oracle.cuts[high][1])]
            segments.fold(*oracle.cuts[low])
        elif oracle.cuts and action == "forget":
            through = oracle.cuts[first % len(oracle.cuts)][1]
            oracle.cuts = [cut for cut in oracle.cuts if cut[1] > through]
            segments.forget(through)
        assert len(segments) == len(oracle.cuts)
        assert segments.memory_bytes <= memory_bytes_max
        assert open_files() - files <= len(segments) + LENT_FILES_MAX
        for lo, hi in combinations_with_replacement(range(1, oracle.n + 1), 2):
            payload = segments.sum(lo, hi)
            assert (payload is None) == (oracle.sum(lo, hi) is None)
            if payload is not None:
                held.setdefault((lo, hi), payload)
        for (lo, hi), payload in held.items():  # taken before whatever was folded or forgotten since
            if oracle.sum(lo, hi) is None:
                with pytest.raises(UsageError, match=rf"updates {lo}..{hi} are no longer kept"):
                    payload.read(0, 64)
            else:
                equal(read(payload, step), oracle.sum(lo, hi))
    segments.close()
    assert open_files() == files
    assert len(segments) == 0


@MEMORY
def test_a_sum_that_is_being_read_does_not_change_when_segments_below_it_are_folded(memory_bytes_max: int) -> None:
    segments = Segments(memory_bytes_max)
    for number in range(1, 7):
        segments.keep(number, number, update(number))
    payload = segments.sum(2, 5)
    assert payload is not None
    expected = bytes(payload.read(0, LAYOUT.nbytes))
    first = bytes(payload.read(0, 64))
    segments.fold(2, 3)
    second = bytes(payload.read(64, 128))
    segments.forget(1)
    segments.fold(2, 5)
    segments.keep(6, 7, update(7))
    assert first + second + bytes(payload.read(128, LAYOUT.nbytes)) == expected
    segments.close()


def test_a_sum_has_other_bounds_when_segments_below_it_are_folded() -> None:
    segments = Segments()
    for number in (1, 2, 3):
        segments.keep(number, number, Packed.of(NAMED))
    assert segments.bounds(1, 2) == ((1, 1), (2, 2))
    segments.fold(1, 2)
    assert segments.bounds(1, 2) == ((1, 2),)


def test_what_is_read_is_a_copy() -> None:
    segments = Segments()
    segments.keep(1, 1, update(1))
    payload = segments.sum(1, 1)
    assert payload is not None
    data = payload.read(0, LAYOUT.nbytes)
    before = bytes(data)
    segments.keep(1, 2, update(2))
    assert data == before
    segments.close()


def test_an_update_that_was_kept_may_be_written_over() -> None:
    segments = Segments()
    mine = update(1)
    expected = bytes(mine.buffer)
    segments.keep(1, 1, mine)
    mine.buffer[:] = bytes(LAYOUT.nbytes)
    payload = segments.sum(1, 1)
    assert payload is not None
    assert payload.read(0, LAYOUT.nbytes) == expected
    segments.close()


@MEMORY
def test_updates_of_several_blocks_are_summed_block_by_block(memory_bytes_max: int) -> None:
    elements = (5 * BLOCK_BYTES // 2) // 8
    large = [Packed.of({"w": np.arange(elements) * factor}) for factor in (1, 10, 100)]
    segments = Segments(memory_bytes_max)
    segments.keep(1, 1, large[0])
    segments.keep(2, 2, large[1])
    segments.keep(2, 3, large[2])
    payload = segments.sum(1, 3)
    assert payload is not None
    np.testing.assert_array_equal(read(payload)["w"], np.arange(elements) * 111)
    segments.fold(1, 3)
    np.testing.assert_array_equal(read(payload)["w"], np.arange(elements) * 111)
    segments.close()


def test_what_is_lent_is_kept_where_it_is_and_so_is_what_is_added_to_it() -> None:
    segments = Segments()
    first, second = lent(update(1)), lent(update(2))
    before = first.read(0, LAYOUT.nbytes)
    for number, file in ((1, first), (2, second)):
        segments.keep(number, number, file)
        total = segments.sum(number, number)
        assert isinstance(total, RangeSum)
        borrowed = total.lent()
        assert borrowed is not None
        assert os.path.sameopenfile(borrowed[0][0].descriptor, file.descriptor)
    assert segments.memory_bytes == 0
    segments.fold(1, 2)
    segments.keep(1, 3, first)
    total = segments.sum(1, 3)
    assert isinstance(total, RangeSum)
    borrowed = total.lent()
    assert borrowed is not None
    assert len(borrowed[0]) == 3
    expected = 2 * update(1).arrays()["w"] + update(2).arrays()["w"]
    np.testing.assert_array_equal(Packed(LAYOUT, total.read(0, LAYOUT.nbytes)).arrays()["w"], expected)
    segments.keep(1, 4, update(3))
    assert total.lent() is None
    assert first.read(0, LAYOUT.nbytes) == before
    for file in (first, second):
        file.close()
    segments.close()


def test_what_was_lent_first_is_copied_beyond_the_limit_and_lent_again() -> None:
    segments = Segments(lent_bytes_max=2 * LAYOUT.nbytes)
    given = [lent(update(number)) for number in (1, 2, 3)]
    for number, file in enumerate(given, 1):
        segments.keep(number, number, file)
    for number, file in enumerate(given, 1):
        total = segments.sum(number, number)
        assert isinstance(total, RangeSum)
        borrowed = total.lent()
        assert borrowed is not None
        assert os.path.sameopenfile(borrowed[0][0].descriptor, file.descriptor) == (number > 1)
        assert total.read(0, LAYOUT.nbytes) == update(number).buffer
    for file in given:
        file.close()
    segments.close()


def test_one_update_is_lent_whatever_the_limit() -> None:
    segments = Segments(lent_bytes_max=0)
    file = lent(update(1))
    segments.keep(1, 1, file)
    total = segments.sum(1, 1)
    assert isinstance(total, RangeSum)
    borrowed = total.lent()
    assert borrowed is not None
    assert os.path.sameopenfile(borrowed[0][0].descriptor, file.descriptor)
    file.close()
    segments.close()


@pytest.mark.parametrize("folds", [False, True])
def test_only_so_many_files_are_lent_however_small_they_are(folds: bool) -> None:
    segments = Segments()
    files = open_files()
    for number in range(1, 4 * LENT_FILES_MAX):
        file = lent(update(number))
        segments.keep(number if folds else 1, number, file)
        file.close()
        if folds and number > 2:
            segments.fold(1, number - 1)
        assert open_files() - files <= LENT_FILES_MAX + 2, "a sum, and the one that came last"
    segments.close()
    assert open_files() == files


def test_a_lent_update_is_finite_as_a_whole() -> None:
    for place in (0, 400_000, 999_999):
        array = np.ones(1_000_000, np.float32)
        file = lent(Packed.of({"w": array, "n": np.ones(3, np.int8)}))
        assert file.is_finite
        file.close()
        array[place] = np.inf
        file = lent(Packed.of({"w": array, "n": np.ones(3, np.int8)}))
        assert not file.is_finite
        file.close()
    large = lent(Packed.of({"w": np.full(9, 1e38, np.float32)}))
    assert large.is_finite  # though the sum of squares is not
    large.close()


def rows_update(number: int) -> Packed:
    """Some rows of `w`, sometimes all of `b`."""
    generator = np.random.default_rng(number)
    rows = np.flatnonzero(generator.integers(0, 2, 3))
    part: dict[str, Any] = rows_of("w", rows, generator.integers(0, 1000, (len(rows), 5)))
    if generator.integers(0, 2):
        part["b"] = generator.integers(0, 1000, 9).astype(np.int32)
    return Packed.of(part)


@MEMORY
@given(
    kinds=st.lists(
        st.sampled_from(["whole", "lent", "rows", "rows and fold", "rows onto the last", "fold"]), max_size=12
    ),
    step=st.sampled_from([16, 64, 128]),
)
def test_rows_and_whole_arrays_in_one_lane_are_summed(memory_bytes_max: int, kinds: list[str], step: int) -> None:
    files = open_files()
    segments = Segments(memory_bytes_max)
    expected = Packed.of(NAMED)
    n, first, any_whole = 0, 1, False
    for kind in kinds:
        if kind != "fold":
            n += 1
            payload = update(n) if kind in ("whole", "lent") else rows_update(n)
            any_whole |= kind in ("whole", "lent")
            kind_of(payload.layout).add(LAYOUT, expected.buffer, payload)
            file = lent(payload)
            first = first if kind == "rows onto the last" and n > 1 else n
            segments.keep(first, n, file if kind == "lent" else payload)
            file.close()
        if "fold" in kind and n:
            segments.fold(1, n)
            first = 1
        total = segments.sum(1, n)
        assert (total is None) == (n == 0)
        if total is not None and any_whole:
            assert isinstance(total, RangeSum)
            assert total.layout == LAYOUT
            equal(read(total, step), expected.arrays())
        elif total is not None:
            whole = read_whole(total)
            got = Packed.of(NAMED)
            kind_of(whole.layout).add(LAYOUT, got.buffer, whole)
            assert got == expected
    segments.close()
    assert open_files() == files


def test_rows_beside_a_lent_update_do_not_have_it_copied() -> None:
    segments = Segments()
    file = lent(update(1))
    segments.keep(1, 1, file)
    segments.keep(1, 2, rows_update(2))
    assert segments.memory_bytes == rows_update(2).layout.nbytes
    assert file.read(0, LAYOUT.nbytes) == update(1).buffer
    total = segments.sum(1, 2)
    assert isinstance(total, RangeSum)
    parts = total.lent()
    assert parts is not None
    assert [len(each) for each in parts] == [1, 1]
    file.close()
    segments.close()


def test_the_oldest_segments_move_to_files_and_the_newest_stay_in_memory() -> None:
    segments = Segments(3 * LAYOUT.nbytes)
    files = open_files()
    for number in range(1, 11):
        segments.keep(number, number, update(number))
        assert segments.memory_bytes == min(number, 3) * LAYOUT.nbytes
        assert open_files() - files == max(0, number - 3)
    segments.forget(5)
    assert open_files() - files == 2
    segments.fold(6, 10)
    assert open_files() - files == 1
    assert segments.memory_bytes == 0
    segments.close()
    assert open_files() == files


def test_files_have_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    segments = Segments(0, str(tmp_path))
    segments.keep(1, 1, update(1))
    assert list(tmp_path.iterdir()) == []
    payload = segments.sum(1, 1)
    assert payload is not None
    assert payload.read(0, LAYOUT.nbytes) == update(1).buffer
    segments.close()


def test_closing_twice_and_forgetting_nothing_is_fine() -> None:
    segments = Segments(0)
    segments.forget(10)
    segments.keep(1, 1, update(1))
    segments.close()
    segments.close()
    assert segments.sum(1, 1) is None


def test_an_update_of_another_layout_is_not_added() -> None:
    segments = Segments()
    segments.keep(1, 1, update(1))
    with pytest.raises(MismatchError, match="'b' is missing"):
        segments.keep(1, 2, Packed.of({"w": NAMED["w"]}))
    payload = segments.sum(1, 1)
    assert payload is not None
    assert payload.read(0, LAYOUT.nbytes) == update(1).buffer
    segments.close()


def test_updates_without_arrays_are_kept_too() -> None:
    for memory_bytes_max in (0, 1 << 26):
        segments = Segments(memory_bytes_max)
        segments.keep(1, 1, Packed.of({}))
        segments.keep(1, 2, Packed.of({}))
        payload = segments.sum(1, 2)
        assert payload is not None
        assert payload.read(0, 0) == b""
        segments.close()


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(bytes(100))
    with path.open("rb") as file:
        payload = FilePayload(LAYOUT, file.fileno())
        assert payload.read(10, 60) == bytes(50)
        with pytest.raises(UsageError, match="ends at byte 100, expected 192"):
            payload.read(64, 192)


def test_when_the_disk_is_full_memory_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    segments = Segments(memory_bytes_max=0)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pwrite", full)
    segments.keep(1, 1, Packed.of({"w": np.arange(3.0)}))
    total = segments.sum(1, 1)
    assert total is not None
    np.testing.assert_array_equal(Packed(total.layout, total.read(0, total.layout.nbytes)).arrays()["w"], [0, 1, 2])
    assert len(os.listdir("/proc/self/fd")) == before
