"""Units of work: what is known of them, and that each counts once."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Packed
from gossip.events import (
    Closed,
    Computed,
    Deliver,
    Departed,
    Effect,
    Gated,
    Joined,
    Negative,
    Received,
    Release,
    Retain,
    Send,
    Started,
    Ticked,
)
from gossip.identity import RESUMED, Identities
from gossip.lanes.peer import Peer
from gossip.marks import Counted, Series, packed
from gossip.messages import Advert, Mark, PeerId, Pin, Pinned, Range, State, StateRequest, Unit
from gossip.wire import decode, encode

ME, A, B = PeerId("me"), PeerId("a"), PeerId("z")
UNIT, OTHER = Unit(0, 1, 2), Unit(0, 1, 3)
UPDATE = Packed.of({"w": np.ones(3)})

lanes = st.sampled_from([A, B, ME])
marks = st.builds(Mark, st.sampled_from([UNIT, OTHER]), st.integers(0, 2), st.booleans())


def started() -> Peer:
    peer = Peer(ME, UPDATE.layout)
    for other in (A, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    return peer


def comes(lane: PeerId, number: int, *marks: Mark) -> Received:
    """Update `number` of a lane, with these marks."""
    return Received(Range(lane, number, number, 1, packed(marks), UPDATE.layout, UPDATE))


def delivered(effects: list[Effect]) -> list[Deliver]:
    return [effect for effect in effects if isinstance(effect, Deliver)]


# ------------------------------------------------------------------------------------------------------ what is known


def test_a_unit_is_known_from_when_some_lane_carries_it_even_when_it_is_taken_back() -> None:
    known = Identities()
    assert not known.knows(UNIT)
    known.note(A, [Mark(UNIT, 0)])
    assert known.knows(UNIT)
    assert not known.knows(OTHER)
    known.note(A, [Mark(UNIT, 0, withdraws=True)])
    assert known.knows(UNIT)
    assert known.standing(UNIT) == set()


def test_attempts_stand_side_by_side_until_one_is_taken_back() -> None:
    known = Identities()
    known.note(A, [Mark(UNIT, 1)])
    known.note(B, [Mark(UNIT, 0)])
    assert known.standing(UNIT) == {(0, B), (1, A)}
    known.note(A, [Mark(UNIT, 1, withdraws=True)])
    assert known.standing(UNIT) == {(0, B)}


def test_the_chunks_of_a_partition_span_from_the_lowest_to_the_highest_that_counts() -> None:
    known = Identities()
    assert known.spans(0) == {}
    known.note(A, [Mark(Unit(0, 1, 5), 0), Mark(Unit(1, 1, 7), 0), Mark(Unit(1, 2, 4), 1)])
    known.note(B, [Mark(Unit(1, 1, 3), 0), Mark(Unit(1, 2, 9), 2)])
    assert known.spans(0) == {(0, 1): (5, 5), (1, 1): (3, 7), (1, 2): (4, 9)}
    known.note(B, [Mark(Unit(1, 2, 9), 2, withdraws=True)])
    assert known.spans(1) == {(1, 1): (3, 7), (1, 2): (4, 4)}


class Plain:
    """What `Identities` is to know, as plainly as can be: nothing is packed and nothing dropped."""

    def __init__(self) -> None:
        self.published: dict[Unit, set[tuple[int, PeerId]]] = {}
        self.withdrawn: dict[Unit, set[tuple[int, PeerId]]] = {}

    def note(self, lane: PeerId, marks: Iterable[Mark]) -> None:
        for unit, attempt, withdraws in marks:
            known = self.withdrawn if withdraws else self.published
            known.setdefault(unit, set()).add((attempt, lane))

    def knows(self, unit: Unit) -> bool:
        return unit in self.published or unit in self.withdrawn

    def furthest(self, epoch: int, partition: int) -> int:
        units = self.published.keys() | self.withdrawn.keys()
        return max((unit.chunk for unit in units if unit[:2] == (epoch, partition)), default=-1)

    def standing(self, unit: Unit) -> set[tuple[int, PeerId]]:
        return self.published.get(unit, set()) - self.withdrawn.get(unit, set())

    @property
    def units(self) -> int:
        return sum(1 for unit in self.published if self.standing(unit))


def assert_same(known: Identities, plain: Plain, units: Iterable[Unit]) -> None:
    assert known.units == plain.units
    for unit in units:
        assert known.knows(unit) == plain.knows(unit)
        assert known.standing(unit) == plain.standing(unit)
        assert known.furthest(unit.epoch, unit.partition) == plain.furthest(unit.epoch, unit.partition)


def copied(known: Identities) -> Identities:
    """What one is told that adopts its replica."""
    return Identities.told(known.by_lane(), known.dropped, known.units)


few_units = [Unit(epoch, partition, chunk) for epoch in (0, 1) for partition in (0, 1) for chunk in range(12)]
few_marks = st.builds(Mark, st.sampled_from(few_units), st.integers(0, 1), st.integers(0, 9).map(lambda n: n == 0))
notes = st.lists(st.tuples(lanes, st.lists(few_marks, min_size=1, max_size=30)), max_size=8)


@given(notes, st.booleans())
def test_what_is_known_is_what_is_known_mark_by_mark(
    entries: list[tuple[PeerId, list[Mark]]], one_by_one: bool
) -> None:
    known, plain = Identities(), Plain()
    for lane, marks in entries:
        known.note(lane, marks if one_by_one else packed(marks))
        plain.note(lane, marks)
        assert_same(known, plain, few_units)
    assert_same(copied(known), plain, few_units)


def single(counted: Counted) -> list[Unit]:
    """One by one."""
    assert all(not mark.withdraws and mark.attempt == 0 for each in counted.series for mark in each.marks())
    return [mark.unit for each in counted.series for mark in each.marks()]


@given(notes)
def test_units_that_count_are_told_once_each_unless_one_is_undecided(
    entries: list[tuple[PeerId, list[Mark]]],
) -> None:
    known, plain = Identities(), Plain()
    for lane, marks in entries:
        known.note(lane, packed(marks))
        plain.note(lane, marks)
    counted = known.counted()
    if any(len(plain.standing(unit)) > 1 for unit in few_units):
        assert counted is None
        return
    assert counted is not None
    assert single(counted) == [unit for unit in few_units if plain.standing(unit)]
    assert (counted.closed, counted.units) == (0, plain.units)
    again = Identities.resumed(counted)
    assert again.counted() == counted
    assert [unit for unit in few_units if again.knows(unit)] == single(counted)


def test_of_dropped_epochs_only_their_number_is_told_and_not_while_a_unit_is_watched() -> None:
    known = Identities()
    known.note(A, [Mark(UNIT, 0), Mark(Unit(1, 0, 0), 0)])
    known.note(B, [Mark(UNIT, 1)])
    known.drop(1)
    assert known.counted() is None
    known.note(B, [Mark(UNIT, 1, withdraws=True)])
    counted = known.counted()
    assert counted is not None
    assert (counted.closed, counted.units, single(counted)) == (1, 2, [Unit(1, 0, 0)])


def test_a_peer_that_begins_where_units_count_takes_them_from_no_task() -> None:
    peer = Peer(ME, UPDATE.layout)
    peer.handle(Joined(A), 0.0)
    peer.handle(Started({}, closed=1, units=3, marks={RESUMED: packed([Mark(Unit(1, 1, 2), 0)])}), 0.0)
    assert peer.handle(Computed(UPDATE, Unit(1, 1, 2), 0), 1.0)[0] == Gated(Unit(1, 1, 2))
    assert Gated(UNIT) in peer.handle(Computed(UPDATE, UNIT, 0), 1.0)
    assert delivered(peer.handle(Computed(UPDATE, Unit(1, 1, 3), 0), 1.0))
    assert peer.identities.units == 4
    assert peer.identities.furthest(1, 1) == 3


def test_a_stranger_is_told_of_units_of_epochs_that_are_not_over() -> None:
    peer = started()
    peer.handle(comes(A, 1, Mark(UNIT, 0), Mark(Unit(1, 0, 0), 0)), 1.0)
    peer.handle(Closed(1), 1.1)
    states = [
        effect.message
        for effect in peer.handle(Received(StateRequest(PeerId("stranger"), 1)), 1.2)
        if isinstance(effect, Send) and isinstance(effect.message, State)
    ]
    assert [(state.closed, state.units) for state in states] == [(1, 2)]
    assert states[0].marks == {A: packed([Mark(Unit(1, 0, 0), 0)])}


@given(notes, st.randoms(use_true_random=False))
def test_marks_come_in_any_order_and_more_than_once(entries: list[tuple[PeerId, list[Mark]]], chance: Any) -> None:
    known, plain = Identities(), Plain()
    for lane, marks in entries:
        plain.note(lane, marks)
    shuffled = entries * 2
    chance.shuffle(shuffled)
    for lane, marks in shuffled:
        known.note(lane, packed(chance.sample(marks, len(marks))))
    assert_same(known, plain, few_units)


@given(notes)
def test_what_goes_one_by_one_is_told_before(entries: list[tuple[PeerId, list[Mark]]]) -> None:
    known = Identities()
    for lane, marks in entries:
        series = packed(marks)
        toil, looks = known.toil(lane, series), 0
        single = sum(len(each.runs) // 24 for each in series)

        class Counted(Identities):
            def _note_one(self, *arguments: Any) -> None:
                nonlocal looks
                looks += 1
                super()._note_one(*arguments)

        known.__class__ = Counted
        known.note(lane, series)
        known.__class__ = Identities
        assert looks <= toil + single


attempts_of_a_unit = st.lists(st.tuples(st.integers(0, 2), lanes), min_size=1, max_size=3, unique=True)
histories = st.lists(attempts_of_a_unit, min_size=1, max_size=12)


@given(histories, st.randoms(use_true_random=False))
def test_epochs_are_dropped_at_any_time_and_every_unit_still_counts_once(
    drawn: list[list[tuple[int, PeerId]]], chance: Any
) -> None:
    """All attempts but the first are taken back at last; who has dropped their epoch meanwhile comes to the same."""
    told: list[tuple[float, PeerId, Mark]] = []
    for unit, attempts in zip(few_units, drawn, strict=False):
        for attempt, lane in attempts:
            first, second = sorted((chance.random(), chance.random()))  # a lane is read in its order
            told.append((first, lane, Mark(unit, attempt)))
            if (attempt, lane) != min(attempts):
                told.append((second, lane, Mark(unit, attempt, withdraws=True)))
    story = [(lane, mark) for _, lane, mark in sorted(told)]
    own = [unit for unit, attempts in zip(few_units, drawn, strict=False) if any(lane == ME for _, lane in attempts)]
    known, plain = Identities(), Plain()
    while story:
        if chance.random() < 0.1:
            known.drop(chance.choice([1, 2]), own)
        if chance.random() < 0.1:
            known = copied(known)
        together = [story.pop(0)]
        while story and story[0][0] == together[0][0] and chance.random() < 0.8:  # what one message may bring
            together.append(story.pop(0))
        marks = [mark for _, mark in together]
        known.note(together[0][0], marks if chance.random() < 0.2 else packed(marks))
        plain.note(together[0][0], marks)
    assert known.units == plain.units == min(len(drawn), len(few_units))


def test_of_a_dropped_epoch_only_what_is_undecided_is_kept() -> None:
    known = Identities()
    known.note(A, [Mark(UNIT, 0), Mark(OTHER, 0)])
    known.note(B, [Mark(UNIT, 1)])
    known.drop(1)
    assert known.runs == 0
    assert known.watched == 1
    assert known.standing(UNIT) == {(0, A), (1, B)}
    assert known.knows(Unit(0, 7, 7))
    assert not known.knows(Unit(1, 7, 7))
    assert known.units == 2
    assert copied(known).standing(UNIT) == {(0, A), (1, B)}
    known.note(B, [Mark(UNIT, 1, withdraws=True)])
    assert known.watched == 0
    assert known.units == 2
    assert known.by_lane() == {}


def test_units_of_a_dropped_epoch_are_watched_while_there_is_something_to_decide() -> None:
    known, third = Identities(), Unit(0, 7, 9)
    known.note(A, [Mark(UNIT, 0), Mark(OTHER, 0)])
    known.note(ME, [Mark(UNIT, 1)])
    known.drop(1, [OTHER])
    assert known.watched == 2
    known.settle(UNIT)  # two attempts stand
    known.settle(third)  # of which nothing is known
    assert known.watched == 2
    known.settle(OTHER)
    assert (known.watched, known.standing(OTHER)) == (1, set())
    known.watch(OTHER, (0, A))
    known.watch(OTHER, (5, B))  # it is watched already
    known.watch(third, None)
    assert known.watched == 3
    assert known.standing(OTHER) == {(0, A)}
    assert known.standing(third) == set()
    known.prune([third])
    assert known.watched == 2
    assert known.standing(UNIT) == {(0, A), (1, ME)}
    assert known.standing(OTHER) == set()
    assert known.units == 2


def test_no_more_units_are_watched_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.identity.WATCHED_MAX", 4)
    known = Identities()
    for lane, attempt in ((A, 0), (B, 1), (ME, 2)):
        known.note(lane, [Mark(Unit(0, partition, chunk), attempt) for partition in (1, 2) for chunk in range(3)])
    known.note(B, [Mark(Unit(0, 1, 0), 1, withdraws=True)])
    known.drop(1)
    assert known.watched == 4
    assert len(known.standing(Unit(0, 1, 1))) == 3
    many = Series(0, 1, 0, False, array("q", [0, 1 << 40, 1]).tobytes())
    assert Identities.told({A: (many,)}, 1, 9).watched == 4


def runs(*runs: tuple[int, int, int]) -> bytes:
    return array("q", [number for run in runs for number in run]).tobytes()


def test_only_units_among_others_of_the_same_partition_are_toil() -> None:
    known = Identities()
    known.note(A, [Series(1, 0, 0, False, runs((0, 10, 2), (20, 30, 1)))])

    def toil(*series: Series, lane: PeerId = B) -> int:
        return known.toil(lane, series)

    assert toil(Series(1, 0, 1, False, runs((31, 99, 1)))) == 0  # behind
    assert toil(Series(1, 0, 1, False, runs((11, 19, 1)))) == 0  # between
    assert toil(Series(1, 1, 1, False, runs((0, 99, 1)))) == 0  # another partition
    assert toil(Series(1, 0, 1, False, runs((1, 9, 2)))) == 5
    assert toil(Series(1, 0, 1, False, runs((1, 9, 2), (11, 19, 1), (21, 23, 1)))) == 8
    assert toil(Series(1, 0, 1, True, runs((31, 99, 1)))) == 69
    assert toil(Series(1, 0, 1, False, runs((31, 40, 1))), Series(1, 0, 2, False, runs((40, 49, 1)))) == 10
    assert toil(Series(1, 0, 1, False, runs((31, 40, 1))), Series(1, 0, 2, False, runs((41, 49, 1)))) == 0
    assert toil(Series(1, 0, 0, False, runs((0, 10, 2))), lane=A) == 0  # known already
    assert toil(Series(1, 0, 0, False, runs((0, 10, 2))), lane=B) == 6
    known.drop(2)
    assert toil(Series(1, 0, 1, False, runs((1, 9, 2)))) == 0


def test_what_is_dropped_hides_no_toil_behind_it() -> None:
    known = Identities(closed=1)
    known.note(A, [Series(1, 0, 0, False, runs((0, 10, 2)))])
    series = Series(0, 0, 1, False, runs((1, 9, 2))), Series(1, 0, 1, False, runs((1, 9, 2)))
    assert known.toil(B, series) == 5


def test_series_of_one_partition_are_toil_where_they_reach_into_any_of_those_before() -> None:
    known = Identities()
    series = [Series(1, 0, attempt, False, runs(run)) for attempt, run in enumerate(((0, 9, 1), (20, 29, 1)))]
    assert known.toil(B, series) == 0
    among = Series(1, 0, 2, False, runs((15, 18, 1)))
    assert known.toil(B, [*series, among]) == 4
    assert known.toil(B, [series[1], series[0], among]) == 10 + 4
    first = Series(1, 0, 0, False, runs((0, 0, 1))), Series(1, 0, 1, False, runs((0, 0, 1)))
    assert known.toil(B, first) == 1
    assert known.toil(B, [first[0], Series(1, 0, 1, False, runs((1, 3, 1)))]) == 0


def test_only_own_units_of_epochs_that_are_dropped_are_watched() -> None:
    known = Identities()
    for epoch in range(3):
        known.note(ME, [Mark(Unit(epoch, 0, 0), 1)])
    known.drop(2, [Unit(epoch, 0, 0) for epoch in range(3)])
    assert known.watched == 2
    known.drop(2, [Unit(2, 0, 0)])
    assert known.watched == 2
    assert known.standing(Unit(2, 0, 0)) == {(1, ME)}


def test_units_that_were_watched_before_take_the_room_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.identity.WATCHED_MAX", 3)
    known = Identities()
    for lane, attempt in ((A, 0), (B, 1)):
        known.note(lane, [Mark(Unit(epoch, 0, chunk), attempt) for epoch in range(3) for chunk in range(2)])
    for epochs, watched in ((1, 2), (2, 3), (3, 3)):
        known.drop(epochs)
        assert known.watched == watched
    assert known.units == 6


def test_there_is_room_for_the_units_of_all_pairs_of_attempts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (0, 1, 2, 3):
        monkeypatch.setattr("gossip.identity.WATCHED_MAX", room)
        known = Identities()
        for lane, attempt, chunks in ((A, 0, (0, 1)), (B, 1, (0,)), (ME, 2, (1,))):
            known.note(lane, [Mark(Unit(0, 0, chunk), attempt) for chunk in chunks])
        known.drop(1)
        assert known.watched == min(room, 2)


def test_a_series_that_begins_with_a_unit_that_is_known_counts_that_once() -> None:
    series = Series(1, 0, 1, False, runs((5, 6, 1), (9, 9, 1)))
    published, withdrawn = Identities(), Identities()
    published.note(A, [Series(1, 0, 0, False, runs((0, 5, 1)))])
    assert published.toil(B, [series]) == 2  # the run that reaches into the other
    published.note(B, [series])
    assert published.units == 6 + 2
    withdrawn.note(B, [Mark(Unit(1, 0, 5), 1, withdraws=True)])
    assert withdrawn.toil(B, [series]) == 2
    withdrawn.note(B, [series])
    assert withdrawn.units == 2


def test_only_units_with_two_attempts_that_stand_are_watched() -> None:
    known = Identities()
    for lane, attempt in ((A, 0), (B, 1)):
        known.note(lane, [Mark(Unit(0, 0, chunk), attempt) for chunk in range(3)])
    known.note(A, [Mark(Unit(0, 0, 0), 0, withdraws=True)])
    known.note(B, [Mark(Unit(0, 0, 1), 1, withdraws=True)])
    known.drop(1)
    assert known.watched == 1
    assert known.standing(Unit(0, 0, 2)) == {(0, A), (1, B)}
    assert known.standing(Unit(0, 7, 0)) == set()


def test_what_was_taken_back_before_it_came_does_not_stand_when_it_comes_late() -> None:
    for dropped in (False, True):
        known = Identities()
        for lane, attempt in ((A, 0), (B, 1)):
            known.note(lane, [Mark(UNIT, attempt)])
        known.note(ME, [Mark(UNIT, 2, withdraws=True)])
        if dropped:
            known.drop(1)
        known.note(ME, [Mark(UNIT, 2)])
        assert known.standing(UNIT) == {(0, A), (1, B)}
        assert known.units == 1


def test_late_runs_count_by_the_units_that_they_have() -> None:
    known = Identities()
    for lane, attempt in ((A, 0), (B, 1)):
        known.note(lane, [Mark(Unit(0, 0, 3), attempt)])
    known.drop(1)
    known.note(ME, [Series(0, 0, 2, False, runs((2, 4, 2), (6, 9, 3)))])  # 3 is none of them
    assert known.units == 1 + 4
    assert isinstance(known.units, int)
    assert known.standing(Unit(0, 0, 3)) == {(0, A), (1, B)}
    known.note(ME, [Series(0, 0, 2, False, runs((0, 6, 3)))])  # and now it is
    assert known.units == 1 + 4 + 2
    assert known.standing(Unit(0, 0, 3)) == {(0, A), (1, B), (2, ME)}


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_late_run_is_every_so_many_th_unit_from_its_first(first: int) -> None:
    known = Identities()
    for lane, attempt in ((A, 0), (B, 1)):
        known.note(lane, [Mark(Unit(0, 0, chunk), attempt) for chunk in range(9)])
    known.drop(1)
    known.note(ME, [Series(0, 0, 2, False, runs((first, first + 6, 3)))])
    for chunk in range(9):
        assert ((2, ME) in known.standing(Unit(0, 0, chunk))) == (chunk % 3 == first)
    assert known.units == 9


@pytest.mark.parametrize("step", [1, 977])
def test_a_million_units_take_little_and_are_looked_at_in_no_time(step: int) -> None:
    known = Identities()
    for partition in range(10):
        for begin in range(0, 100_000, 1000):
            chunks = array("q", [step * begin, step * (begin + 999), step])
            known.note(A, [Series(0, partition, 0, False, chunks.tobytes())])
    assert known.units == 1_000_000
    assert known.runs == 10
    assert known.furthest(0, 3) == step * 99_999
    assert known.knows(Unit(0, 3, step * 5_000))
    assert not known.knows(Unit(0, 3, step * 100_000))


def test_units_that_follow_no_rule_take_twelve_bytes_each() -> None:
    known, chance = Identities(), random.Random(0)
    chunk = 0
    for _ in range(20_000):
        chunk += chance.randint(1, 5000)
        known.note(A, [Mark(Unit(0, 0, chunk), 0)])
    assert known.units == 20_000
    assert known.runs <= 10_001


# ---------------------------------------------------------------------------------------------------- each counts once


def test_a_unit_that_is_in_a_known_lane_is_not_published_again() -> None:
    peer = started()
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 1.0)
    assert Gated(UNIT) in peer.handle(Computed(UPDATE, UNIT, 1), 1.01)
    assert peer.replicator.n == 0
    peer.handle(Computed(UPDATE, OTHER, 0), 1.02)
    assert peer.replicator.n == 1


def test_an_own_unit_is_not_published_twice_either() -> None:
    peer = started()
    peer.handle(Computed(UPDATE, UNIT, 0), 1.0)
    assert Gated(UNIT) in peer.handle(Computed(UPDATE, UNIT, 1), 1.01)
    assert peer.replicator.n == 1


def test_updates_without_a_unit_are_never_held_back() -> None:
    peer = started()
    for _ in range(3):
        peer.handle(Computed(UPDATE), 1.0)
    assert peer.replicator.n == 3


def test_the_later_of_two_attempts_takes_its_own_back() -> None:
    peer = started()
    assert Retain(1, UPDATE) in peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    effects = peer.handle(comes(A, 1, Mark(UNIT, 0)), 1.01)
    assert delivered(effects) == [Deliver(A, 1, 1, UPDATE), Deliver(ME, 2, 2, Negative(1))]
    assert Release(1) in effects
    assert peer.units.withdrawn == 1
    assert peer.identities.standing(UNIT) == {(0, A)}


def test_of_equal_attempts_the_lane_with_the_smaller_name_keeps_the_unit() -> None:
    for other, withdrawn in ((A, 1), (B, 0)):
        peer = started()
        peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
        peer.handle(comes(other, 1, Mark(UNIT, 1)), 1.01)
        assert peer.units.withdrawn == withdrawn


def test_a_receiver_merges_both_attempts_and_what_takes_one_back() -> None:
    peer = started()
    for lane, number, mark in (
        (B, 1, Mark(UNIT, 1)),
        (A, 1, Mark(UNIT, 0)),
        (B, 2, Mark(UNIT, 1, withdraws=True)),
    ):
        assert delivered(peer.handle(comes(lane, number, mark), 1.0)) == [Deliver(lane, number, number, UPDATE)]
    assert peer.units.withdrawn == 0


def test_nothing_is_taken_back_for_a_dead_lane_before_the_survivors_agree_on_it() -> None:
    peer = started()
    settle = peer.settings.settle_s
    peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    peer.handle(Departed(A), 2.0)
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 2.01)
    peer.handle(Ticked(), 2.0 + 2.9 * settle)
    assert peer.units.withdrawn == 0
    assert peer.pending
    peer.handle(Ticked(), 2.0 + 3.1 * settle)
    assert peer.units.withdrawn == 1
    assert not peer.pending


def test_an_update_that_nobody_can_come_before_any_more_is_released() -> None:
    peer = started()
    peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    assert Release(1) not in peer.handle(Received(Advert(A, 0, {ME: 1})), 1.1)
    assert Release(1) not in peer.handle(Received(Advert(B, 1, {ME: 1})), 1.2)  # one update of B is not here yet
    assert Release(1) in peer.handle(comes(B, 1), 1.3)
    assert peer.units.withdrawn == 0


# ------------------------------------------------------------------------------------------------ epochs that are over


def adopting(donor: Peer, *others: PeerId) -> Peer:
    """One that comes late and takes over the replica of `donor`."""
    late = Peer(PeerId("late"), UPDATE.layout, chance=random.Random(0))
    late.handle(Started({}, ready=False), 1.0)
    for other in (donor.me, *others):
        late.handle(Joined(other, level=False), 1.0)
    donor.handle(Joined(late.me, level=False), 1.0)
    donor.handle(Received(Advert(late.me, 0, {}, ready=False)), 1.0)
    effects = late.handle(Received(Advert(donor.me, donor.replicator.n, {})), 1.1)
    while not late.ready:
        answers: list[Effect] = []
        for effect in effects:
            match effect:
                case Send(to, Pin(_, _, k)) if to != donor.me:
                    answers += late.handle(Received(Pinned(to, k)), 1.1)
                case Send(to, message) if to == donor.me:
                    for answer in donor.handle(Received(message), 1.1):
                        if isinstance(answer, Send) and answer.to == late.me:
                            sent = decode(encode(answer.message, UPDATE))
                            answers += late.handle(Received(sent), 1.1)
        assert answers, effects
        effects = answers
    return late


def with_chance() -> Peer:
    peer = Peer(ME, UPDATE.layout, chance=random.Random(0))
    for other in (A, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    return peer


def advert(peer: PeerId, n: int, frontiers: dict[PeerId, int]) -> Received:
    return Received(Advert(peer, n, frontiers))


def test_of_an_epoch_that_is_over_nothing_is_published() -> None:
    peer = started()
    peer.handle(Closed(1), 1.0)
    assert Gated(UNIT) in peer.handle(Computed(UPDATE, UNIT, 0), 1.1)
    peer.handle(Computed(UPDATE, Unit(1, 0, 0), 0), 1.2)
    assert peer.replicator.n == 1


def test_an_epoch_is_dropped_when_everybody_has_as_much() -> None:
    peer = with_chance()
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 1.0)
    peer.handle(Closed(1), 1.1)
    peer.handle(Ticked(), 2.0)
    assert peer.identities.runs == 1
    peer.handle(advert(A, 1, {}), 2.1)
    peer.handle(Ticked(), 3.0)
    assert peer.identities.runs == 1
    peer.handle(advert(B, 0, {A: 1}), 3.1)
    peer.handle(Ticked(), 4.0)
    assert peer.identities.runs == 0
    assert peer.identities.units == 1
    assert peer.identities.dropped == 1


def test_an_epoch_is_kept_for_one_that_is_out_of_reach_until_it_is_forgotten() -> None:
    peer = with_chance()
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 1.0)
    peer.handle(advert(A, 1, {}), 1.0)
    peer.handle(advert(B, 0, {A: 1}), 1.0)
    peer.handle(Departed(B), 1.1)
    peer.handle(Closed(1), 1.2)
    peer.handle(Ticked(), 3.0)
    assert peer.identities.runs == 1
    peer.handle(Ticked(), 10.0 + peer.settings.forget_s)
    peer.handle(Ticked(), 20.0 + peer.settings.forget_s)
    assert peer.identities.runs == 0


def test_what_comes_late_of_a_closed_epoch_is_kept_until_everybody_has_it_too() -> None:
    peer = with_chance()
    peer.handle(comes(B, 1, Mark(Unit(0, 7, 7), 0)), 0.9)
    peer.handle(Closed(1), 1.0)
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 1.1)
    peer.handle(advert(A, 1, {B: 1}), 1.2)
    peer.handle(advert(B, 1, {}), 1.2)
    peer.handle(Ticked(), 3.0)
    assert peer.identities.runs == 2
    peer.handle(advert(B, 1, {A: 1}), 3.1)
    peer.handle(Ticked(), 4.0)
    assert peer.identities.runs == 0


def test_an_own_second_attempt_is_taken_back_though_its_epoch_is_over() -> None:
    peer = with_chance()
    peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    for other in (A, B):
        peer.handle(advert(other, 0, {}), 1.0)
    peer.handle(Closed(1), 1.1)
    for other in (A, B):
        peer.handle(advert(other, 1, {ME: 1}), 1.2)
    peer.handle(Ticked(), 3.0)
    assert peer.identities.dropped == 1
    assert peer.units.withdrawn == 0
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 3.1)
    assert peer.units.withdrawn == 1
    assert peer.identities.units == 1
    assert peer.identities.watched == 0


def test_who_adopts_counts_as_its_donor_whether_epochs_were_dropped_or_not() -> None:
    for closed in (False, True):
        donor = started()
        donor.adopter = Peer(ME, UPDATE.layout, chance=random.Random(0)).adopter
        donor.adopter._replicator = donor.replicator  # type: ignore[union-attr]
        donor.handle(comes(A, 1, Mark(UNIT, 0), Mark(OTHER, 0)), 1.0)
        donor.handle(comes(A, 2, Mark(Unit(1, 0, 0), 0)), 1.0)
        if closed:
            donor.identities.drop(1)
        late = adopting(donor, A, B)
        assert late.identities.units == 3
        assert late.identities.dropped == int(closed)
        for unit in (UNIT, OTHER, Unit(1, 0, 0)):
            assert late.identities.knows(unit)
        assert not late.identities.knows(Unit(1, 0, 1))


def test_a_range_whose_marks_lie_among_too_many_others_is_refused_whole() -> None:
    peer = started()
    many = array("q", [0, 1 << 40, 2]).tobytes()
    peer.handle(Received(Range(A, 1, 1 << 40, 1, (Series(0, 1, 0, False, many),), UPDATE.layout, UPDATE)), 1.0)
    assert peer.identities.units == (1 << 39) + 1
    among = array("q", [1, (1 << 40) + 1, 2]).tobytes()
    effects = peer.handle(Received(Range(B, 1, 9, 1, (Series(0, 1, 0, False, among),), UPDATE.layout, UPDATE)), 1.1)
    assert delivered(effects) == []
    assert peer.refused == 1
    assert peer.replicator.origins[B].frontier == 0


def test_what_counts_of_more_units_than_can_be_written_out_is_told_by_its_ends() -> None:
    known = Identities()
    known.note(A, [Series(1, 0, 0, False, runs((0, 1 << 62, 1)))])
    known.note(A, [Series(1, 0, 0, True, runs((0, 2, 1), ((1 << 62) - 4, 1 << 62, 4)))])
    assert known.spans(1) == {(1, 0): (3, (1 << 62) - 1)}
    assert known.counted() is None
    known.note(A, [Series(2, 0, 0, False, runs((0, 9, 3))), Series(2, 0, 0, True, runs((0, 9, 3)))])
    assert (2, 0) not in known.spans(1)


def test_a_donor_that_has_an_update_and_does_not_say_of_which_unit_leaves_the_unit_known() -> None:
    peer = Peer(ME, None)
    peer.handle(Started({}), 0.0)
    peer.handle(Joined(A), 0.0)  # who may come before it: it is retained
    unit = Unit(1, 0, 5)
    peer.handle(Computed(Packed.of({"w": np.zeros(1)}), unit, 1), 0.0)
    peer.units.adopt(State(A, {ME: 1}, 1))
    assert peer.identities.knows(unit)
    peer.units.check()
