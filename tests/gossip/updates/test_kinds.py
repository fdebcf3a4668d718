"""Kinds of updates: that of whole arrays, and what is done with an update whatever its kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Array, Arrays, Bytes, Layout, Packed, Payload, Update
from gossip.errors import MismatchError, UsageError
from gossip.updates import KINDS, check, dense, kind_of, merge, read_whole, rehearse, total, with_kinds
from gossip.updates.dense import Dense
from gossip.updates.entries import entries_of
from gossip.updates.rows import ROWS, rows_of
from gossip.updates.stamps import RowStamps

MODEL: dict[str, Any] = {
    "w": np.zeros((20, 3), np.float32),
    "n": np.zeros((4, 2), np.int64),
    "t": np.zeros(70, np.int8),
    "b": np.zeros(5),
    "s": np.zeros(()),
}
LAYOUT = Layout.of(MODEL)


@dataclass(frozen=True)
class Plus:
    """`w[plus]` (), which is added to every number of `w`."""

    suffix: str = "[plus]"
    in_blocks = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (self.suffix,)

    def claims(self, layout: Layout) -> bool:
        return any(spec.name.endswith(self.suffix) for spec in layout.specs)

    def check_fit(self, layout: Layout, model: Layout) -> None:
        names = {spec.name + self.suffix for spec in model.specs}
        if not names.issuperset(spec.name for spec in layout.specs):
            raise MismatchError(f"{layout}, expected some of {sorted(names)}")

    def check(self, update: Update, model: Layout) -> None:
        if any(number < 0 for number in update.arrays().values()):
            raise MismatchError("less than nothing, expected more")

    def add(self, model: Layout, buffer: Any, update: Payload) -> None:
        assert isinstance(update, Packed)
        for name, number in update.arrays().items():
            model.views(buffer)[name.removesuffix(self.suffix)][...] += number

    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        whole = bytearray(model.nbytes)
        self.add(model, whole, read_whole(update))
        model.add(block, whole[start : start + len(block)], start, len(block))

    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        return {name: left[name] + right[name] for name in left} if left.keys() == right.keys() else None

    def negative(self, update: Payload) -> Payload:
        return Packed.of({name: -number for name, number in read_whole(update).arrays().items()})

    def changed_rows(self, model: Layout, update: Payload) -> Iterator[tuple[str, Array | None]]:
        for spec in model.specs:
            if any(each.name == spec.name + self.suffix for each in update.layout.specs):
                yield spec.name, np.arange(spec.shape[0])


PLUS = Plus()
ALL = with_kinds([PLUS])


class Read:
    """An update that somebody else keeps: notes how many bytes are read at a time."""

    def __init__(self, arrays: Arrays) -> None:
        self._packed = Packed.of(arrays)
        self.layout = self._packed.layout
        self.nbytes: list[int] = []

    def read(self, start: int, stop: int) -> Bytes:
        self.nbytes.append(stop - start)
        return self._packed.read(start, stop)


def whole(seed: int) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    return {name: chance.integers(1, 50, array.shape).astype(array.dtype) for name, array in MODEL.items()}


def plus(**numbers: float) -> Packed:
    return Packed.of({name + "[plus]": np.array(number, MODEL[name].dtype) for name, number in numbers.items()})


def rows() -> Packed:
    return Packed.of(rows_of("w", np.array([3]), np.ones((1, 3), np.float32)))


def equal(got: Arrays, expected: Arrays) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, name, strict=True)


# -------------------------------------------------------------------------------------------------------- whole arrays


@pytest.mark.parametrize("nbytes", [64, 128, 1 << 19])
def test_whole_arrays_are_added_piece_by_piece(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "PIECE_BYTES", nbytes)
    model, update = Packed.of(whole(1)), Read(whole(2))
    Dense().add(LAYOUT, model.buffer, update)
    equal(model.arrays(), {name: array + whole(1)[name] for name, array in whole(2).items()})
    assert sum(update.nbytes) == LAYOUT.nbytes
    assert max(update.nbytes) == min(nbytes, LAYOUT.nbytes)


@pytest.mark.parametrize("step", [8, 24, 64, 1000])
def test_minus_whole_arrays_is_read_in_stretches_of_any_length_and_leaves_them_as_they_are(step: int) -> None:
    update = Packed.of(whole(1))
    negative = Dense().negative(update)
    stretches = [negative.read(at, min(at + step, LAYOUT.nbytes)) for at in range(0, LAYOUT.nbytes, step)]
    assert negative.layout == LAYOUT
    equal(LAYOUT.views(b"".join(stretches)), {name: -array for name, array in whole(1).items()})
    equal(update.arrays(), whole(1))


def test_a_total_of_whole_arrays_is_their_sum() -> None:
    found = total(Packed.of(whole(1)), Packed.of(whole(2)))
    assert found is not None
    equal(found.arrays(), {name: array + whole(1)[name] for name, array in whole(2).items()})


def test_any_array_of_an_update_of_whole_arrays_may_change_in_all_its_rows() -> None:
    assert dict(Dense().changed_rows(LAYOUT, Packed.of(whole(1)))) == dict.fromkeys(MODEL)


# -------------------------------------------------------------------------------------------------------- of any kind


def test_kinds_of_a_run_are_tried_before_those_that_everybody_knows() -> None:
    first, second = Plus("[first]"), Plus("[second]")
    assert with_kinds(iter([first, second])) == (first, second, *KINDS)
    assert kind_of(plus(w=1).layout, ALL) is PLUS
    assert kind_of(plus(w=1).layout) is KINDS[-1]
    layout = plus(w=1).layout
    assert [kind_of(layout, kinds) for kinds in (ALL, KINDS, ALL)] == [PLUS, KINDS[-1], PLUS], "it keeps no other's"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([PLUS, PLUS], "Plus(suffix='[plus]') and Plus(suffix='[plus]') both have arrays that end in '[plus]'"),
        ([PLUS, Plus(ROWS)], "Rows() and Plus(suffix='[rows]') both have arrays that end in '[rows]'"),
    ],
)
def test_two_kinds_of_the_same_names_are_refused_with_both(kinds: list[Plus], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        with_kinds(kinds)


def test_what_anybody_sent_is_looked_at_by_its_kind() -> None:
    check(plus(w=1), LAYOUT, ALL)
    with pytest.raises(MismatchError, match="less than nothing"):
        check(plus(w=-1), LAYOUT, ALL)
    with pytest.raises(MismatchError, match="expected some of"):
        check(Packed.of({"x[plus]": np.ones(())}), LAYOUT, ALL)
    with pytest.raises(MismatchError, match="'b' is missing"):  # which nobody knows, so that it may be whole arrays
        check(plus(w=1), LAYOUT)


def test_what_is_not_finite_is_refused_by_its_name() -> None:
    check(Packed.of(whole(1)), LAYOUT)
    for bad in (np.nan, np.inf):
        with pytest.raises(MismatchError, match="'b': 1 of 5 numbers are NaN or infinite"):
            check(Packed.of({**whole(1), "b": np.array([0, bad, 0, 0, 0])}), LAYOUT)
        with pytest.raises(MismatchError, match=r"'w\[plus\]': 1 of 1 numbers are NaN or infinite"):
            check(plus(w=bad), LAYOUT, ALL)


def test_an_update_is_merged_by_its_kind_and_the_rows_are_stamped_that_it_changes() -> None:
    replica, stamps = Packed.of(MODEL), RowStamps(LAYOUT)
    merge(LAYOUT, replica.buffer, stamps, rows(), ALL)
    assert (stamps.count, stamps.since("w", 0).tolist()) == (1, [3])
    merge(LAYOUT, replica.buffer, stamps, plus(n=2), ALL)
    assert (stamps.count, stamps.since("n", 1).tolist(), stamps.since("w", 1).tolist()) == (2, [0, 1, 2, 3], [])
    merge(LAYOUT, replica.buffer, stamps, Packed.of(whole(1)), ALL)
    expected = whole(1)
    expected["w"][3] += 1
    expected["n"] += 2
    equal(replica.arrays(), expected)
    assert (stamps.count, stamps.since("w", 2).tolist()) == (3, [])


def test_whole_arrays_are_merged_without_being_in_memory_and_what_is_of_another_kind_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense, "PIECE_BYTES", 64)
    replica, stamps = Packed.of(MODEL), RowStamps(LAYOUT)
    for update, nbytes in (
        (Read(whole(1)), [64] * (LAYOUT.nbytes // 64)),
        (Read(rows_of("w", np.arange(20), np.ones((20, 3), np.float32))), [128 + 256]),
        (Read(plus(w=1, n=1).arrays()), [64 + 64]),
    ):
        merge(LAYOUT, replica.buffer, stamps, update, ALL)
        assert update.nbytes == nbytes
    expected = whole(1)
    expected["w"] += 2
    expected["n"] += 1
    equal(replica.arrays(), expected)


@pytest.mark.parametrize("update", [Packed.of(whole(1)), rows(), plus(w=1, n=2)], ids=["whole", "rows", "plus"])
def test_minus_an_update_takes_it_back_from_the_whole_model_and_from_its_parts(update: Packed) -> None:
    kind, model, stamps = kind_of(update.layout, ALL), Packed.of(whole(2)), RowStamps(LAYOUT)
    merge(LAYOUT, model.buffer, stamps, update, ALL)
    blocks = Packed.of(whole(2))
    for start in range(0, LAYOUT.nbytes, 24):
        kind.add_within(LAYOUT, memoryview(blocks.buffer)[start : start + 24], start, update)
    equal(blocks.arrays(), model.arrays())
    merge(LAYOUT, model.buffer, stamps, kind.negative(update), ALL)
    equal(model.arrays(), whole(2))


def test_updates_of_one_kind_have_a_total_unless_it_has_none_for_them() -> None:
    found = total(plus(w=1, n=3), plus(w=5, n=1), ALL)
    assert found is not None
    equal(found.arrays(), plus(w=6, n=4).arrays())
    assert total(plus(w=1), plus(n=1), ALL) is None


def test_updates_of_several_kinds_have_no_total() -> None:
    for one, other in ((rows(), plus(w=1)), (plus(w=1), rows()), (plus(w=1), Packed.of(whole(1)))):
        assert total(one, other, ALL) is None


@dataclass(frozen=True)
class TakesNothingBack(Plus):
    def negative(self, update: Payload) -> Payload:
        return update


@dataclass(frozen=True)
class OddInBlocks(Plus):
    def add_within(self, model: Layout, block: Any, start: int, update: Payload) -> None:
        """Adds nothing."""


@dataclass(frozen=True)
class HasNoSum(Plus):
    def total(self, left: Arrays, right: Arrays) -> Arrays | None:
        raise ZeroDivisionError("of the user")


def test_a_kind_is_rehearsed_before_peers_hear_of_it() -> None:
    update = Packed.of({"w[plus]": np.float32(2)})
    rehearse(update, LAYOUT, ALL)
    rehearse(Packed.of(MODEL), LAYOUT, with_kinds([HasNoSum()]))  # which is of a kind that all know
    for kind, error, words in (
        (TakesNothingBack(), UsageError, "negative of TakesNothingBack(.*) does not take back what add adds"),
        (OddInBlocks(), UsageError, "add_within of OddInBlocks(.*) adds other numbers than add"),
        (HasNoSum(), ZeroDivisionError, "of the user"),
    ):
        with pytest.raises(error, match=words) as caught:
            rehearse(update, LAYOUT, with_kinds([kind]))
        assert caught.value.__notes__[0].startswith(f"in a rehearsal of {kind!r}")


# --------------------------------------------------------------------------------------------- entries, halves, levels


def test_a_sum_of_halves_keeps_the_smallest_number_beside_the_largest() -> None:
    halves = {"w[half]": np.full((20, 3), 2.0**15, np.float16)}, {"w[half]": np.full((20, 3), 2.0**-24, np.float16)}
    found = total(Packed.of(halves[0]), Packed.of(halves[1]))
    assert found is not None
    assert (found.arrays()["w[half]"] == np.float64(2.0**15 + 2.0**-24)).all(), "a plain float would be rounded first"
    near = total(Packed.of(halves[0]), Packed.of(halves[0]))
    assert near is not None
    assert near.arrays()["w[half]"].dtype == np.float32, "where that holds it exactly"


def test_entries_tell_the_rows_that_they_are_in() -> None:
    update = Packed.of(entries_of("w", np.array([0, 4, 5, 59]), np.ones(4, np.float32)))
    ((name, numbers),) = kind_of(update.layout).changed_rows(LAYOUT, update)
    assert numbers is not None
    assert (name, sorted(set(numbers.tolist()))) == ("w", [0, 1, 19])


def test_an_entry_out_of_place_is_refused_in_the_words_of_entries() -> None:
    update = Packed.of(entries_of("w", np.array([60]), np.ones(1, np.float32)))
    with pytest.raises(MismatchError, match=re.escape("'w[entries]': expected ascending numbers of entries below 60")):
        check(update, LAYOUT)
