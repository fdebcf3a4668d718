"""Chunks against plain sets, and marks against plain lists."""

from __future__ import annotations

from array import array
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gossip.marks import Chunks, Mark, Marks, Run, Series, Unit, packed, size


def bytes_of(runs: list[Run]) -> bytes:
    return array("q", [number for run in runs for number in run]).tobytes()


def numbers(run: Run) -> set[int]:
    first, last, step = run
    return set(range(first, last + 1, step))


@st.composite
def runs_of_chunks(draw: st.DrawFn, begin: int = 0) -> list[Run]:
    """Runs that do not reach into each other, from `begin` on."""
    runs = []
    for gap, count, step in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 7)), min_size=1, max_size=5)
    ):
        first = begin + gap
        last = first + (count - 1) * step
        runs.append((first, last, step if count > 1 else 1))
        begin = last + 1
    return runs


def assert_is(chunks: Chunks, plain: set[int]) -> None:
    assert list(chunks) == sorted(plain)
    assert len(chunks) == len(plain)
    assert chunks.last == max(plain, default=-1)
    assert [chunk for chunk in range(-1, max(plain, default=0) + 5) if chunk in chunks] == sorted(plain)
    runs = list(chunks.each())
    assert all(first <= last and step >= 1 and (last - first) % step == 0 for first, last, step in runs)
    assert all(step == 1 for first, last, step in runs if first == last)
    assert all(one[1] < two[0] for one, two in pairwise(runs))


@given(st.lists(st.integers(0, 30), max_size=40))
def test_chunks_are_a_set_that_grows(order: list[int]) -> None:
    chunks, plain = Chunks(), set[int]()
    assert_is(chunks, plain)
    for chunk in order:
        assert chunks.add(chunk) == (chunk not in plain)
        plain.add(chunk)
        assert_is(chunks, plain)


@given(runs_of_chunks(), st.lists(st.integers(0, 60), max_size=8))
def test_runs_from_elsewhere_grow_as_well(runs: list[Run], more: list[int]) -> None:
    chunks, plain = Chunks(bytes_of(runs)), set[int]().union(*map(numbers, runs))
    assert_is(chunks, plain)
    for chunk in more:
        assert chunks.add(chunk) == (chunk not in plain)
        plain.add(chunk)
        assert_is(chunks, plain)


@given(st.data(), runs_of_chunks() | st.just([]))
def test_runs_go_behind_those_that_are_there(data: st.DataObject, runs: list[Run]) -> None:
    chunks = Chunks(bytes_of(runs))
    behind = data.draw(runs_of_chunks(chunks.last + 1))
    chunks.extend(bytes_of(behind))
    assert_is(chunks, set[int]().union(*map(numbers, runs + behind)))


@given(runs_of_chunks(), runs_of_chunks())
def test_a_run_goes_where_none_reaches_into_it(runs: list[Run], others: list[Run]) -> None:
    chunks, plain = Chunks(bytes_of(runs)), set[int]().union(*map(numbers, runs))
    for first, last, step in others:
        reaches = any(one <= last and first <= other for one, other, _ in chunks.each())
        assert chunks.overlaps(first, last) == reaches
        if not reaches:
            chunks.insert((first, last, step))
            plain |= numbers((first, last, step))
            assert_is(chunks, plain)


@given(runs_of_chunks() | st.just([]), runs_of_chunks() | st.just([]), st.integers(0, 12))
@example([], [(0, 0, 1)], 1)
@example([(0, 0, 1)], [], 1)
def test_what_chunks_have_in_common(runs: list[Run], others: list[Run], most: int) -> None:
    one, two = Chunks(bytes_of(runs)), Chunks(bytes_of(others))
    assert one.common(two, most) == sorted(set(one) & set(two))[:most]
    for run in others:
        assert one.covers(run) == any(numbers(run) <= numbers(each) for each in runs)
    for run in runs:
        assert one.covers(run)


def test_two_chunks_that_follow_no_rule_are_one_run_however_they_came() -> None:
    added, extended, inserted = (Chunks(bytes_of([(3, 3, 1)])) for _ in range(3))
    added.add(8)
    extended.extend(bytes_of([(8, 8, 1)]))
    inserted.insert((8, 8, 1))
    for chunks in (added, extended, inserted):
        assert list(chunks.each()) == [(3, 8, 5)]


ends = st.tuples(st.integers(0, 1 << 62), st.integers(0, 1 << 62), st.integers(1, 5))


@example([(0, (1 << 62) + 1, 1)])
@example([(0, 1 << 62, 1)] * 3)
@given(st.lists(ends.map(lambda run: (min(run[:2]), max(run[:2]), run[2])), min_size=1, max_size=6))
def test_as_many_chunks_are_counted_as_are_claimed_however_many(runs: list[Run]) -> None:
    assert size(bytes_of(runs)) == sum((last - first) // step + 1 for first, last, step in runs)


series = st.sampled_from([(0, 0, 0, False), (0, 0, 0, True), (0, 0, 1, False), (0, 1, 0, False), (1, 0, 0, False)])
marks_of_anything = st.lists(
    st.tuples(series, st.integers(0, 20)).map(lambda each: Mark(Unit(*each[0][:2], each[1]), *each[0][2:])), max_size=20
)


def in_order(marks: list[Mark]) -> list[Mark]:
    return sorted(set(marks), key=lambda mark: (*mark.unit[:2], mark.attempt, mark.withdraws, mark.unit.chunk))


@given(marks_of_anything, marks_of_anything)
def test_marks_travel_sorted_and_once_however_they_were_gathered(some: list[Mark], others: list[Mark]) -> None:
    def gathered(marks: list[Mark]) -> Marks:
        all_of_them = Marks()
        for mark in marks:
            all_of_them.add(mark)
        return all_of_them

    both = gathered(some)
    both.merge(gathered(others))
    found = both.packed()
    assert [mark for each in found for mark in each.marks()] == in_order(some + others)
    assert len({each[:4] for each in found}) == len(found)
    assert [set(each.marks()) for each in packed(some + others)] == [set(each.marks()) for each in found]


@given(runs_of_chunks())
def test_a_series_tells_how_many_marks_it_has_and_between_which_chunks(runs: list[Run]) -> None:
    some = Series(0, 1, 2, False, bytes_of(runs))
    chunks = [mark.unit.chunk for mark in some.marks()]
    assert some.size == len(chunks)
    assert some.ends == (min(chunks), max(chunks))
    assert some.chunk == (chunks[0] if len(chunks) == 1 else -1)
