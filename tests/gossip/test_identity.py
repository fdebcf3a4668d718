"""Units of work: what is known of them, and that each counts once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Packed
from gossip.events import (
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
    Started,
    Ticked,
)
from gossip.identity import Identities
from gossip.messages import Advert, Mark, PeerId, Range, Unit
from gossip.peer import Peer

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
    return Received(Range(lane, number, number, 1, marks, UPDATE.layout, UPDATE))


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


@given(st.lists(st.tuples(lanes, marks), max_size=12), st.randoms(use_true_random=False))
def test_marks_come_in_any_order_and_more_than_once(entries: list[tuple[PeerId, Mark]], chance: object) -> None:
    one, two = Identities(), Identities()
    for lane, mark in entries:
        one.note(lane, [mark])
    shuffled = entries * 2
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    for lane, mark in shuffled:
        two.note(lane, [mark])
    for unit in (UNIT, OTHER):
        assert one.standing(unit) == two.standing(unit)


@given(st.lists(st.tuples(lanes, marks), max_size=12))
def test_what_is_told_of_all_lanes_is_all_there_is_to_know(entries: list[tuple[PeerId, Mark]]) -> None:
    known, told = Identities(), Identities()
    for lane, mark in entries:
        known.note(lane, [mark])
    for lane, of_lane in known.by_lane().items():
        assert known.of_lane(lane) == of_lane
        told.note(lane, of_lane)
    assert told.by_lane() == known.by_lane()
    for unit in (UNIT, OTHER):
        assert told.standing(unit) == known.standing(unit)


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
    assert peer.withdrawn == 1
    assert peer.identities.standing(UNIT) == {(0, A)}


def test_of_equal_attempts_the_lane_with_the_smaller_name_keeps_the_unit() -> None:
    for other, withdrawn in ((A, 1), (B, 0)):
        peer = started()
        peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
        peer.handle(comes(other, 1, Mark(UNIT, 1)), 1.01)
        assert peer.withdrawn == withdrawn


def test_a_receiver_merges_both_attempts_and_what_takes_one_back() -> None:
    peer = started()
    for lane, number, mark in (
        (B, 1, Mark(UNIT, 1)),
        (A, 1, Mark(UNIT, 0)),
        (B, 2, Mark(UNIT, 1, withdraws=True)),
    ):
        assert delivered(peer.handle(comes(lane, number, mark), 1.0)) == [Deliver(lane, number, number, UPDATE)]
    assert peer.withdrawn == 0


def test_nothing_is_taken_back_for_a_dead_lane_before_the_survivors_agree_on_it() -> None:
    peer = started()
    settle = peer.settings.settle_s
    peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    peer.handle(Departed(A), 2.0)
    peer.handle(comes(A, 1, Mark(UNIT, 0)), 2.01)
    peer.handle(Ticked(), 2.0 + 2.9 * settle)
    assert peer.withdrawn == 0
    assert peer.pending
    peer.handle(Ticked(), 2.0 + 3.1 * settle)
    assert peer.withdrawn == 1
    assert not peer.pending


def test_an_update_that_nobody_can_come_before_any_more_is_released() -> None:
    peer = started()
    peer.handle(Computed(UPDATE, UNIT, 1), 1.0)
    assert Release(1) not in peer.handle(Received(Advert(A, 0, {ME: 1})), 1.1)
    assert Release(1) not in peer.handle(Received(Advert(B, 1, {ME: 1})), 1.2)  # one update of B is not here yet
    assert Release(1) in peer.handle(comes(B, 1), 1.3)
    assert peer.withdrawn == 0
