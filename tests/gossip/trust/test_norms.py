"""What is usual, and what is absurd beside it."""

from __future__ import annotations

from typing import Any

import pytest

from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.trust.norms import NAMED_MIN, NEWEST, READER_FACTOR, Limits, Norms, Suspicion

A, B, C, D, E = (PeerId(name) for name in "abcde")


def noted(*lengths: tuple[PeerId, float]) -> Norms:
    norms = Norms()
    for lane, length in lengths:
        norms.note(lane, length, 1)
    return norms


def test_the_usual_is_the_median_of_the_others_longest() -> None:
    norms = noted((A, 1.0), (B, 2.0), (B, 3.0), (C, 5.0), (D, 1e9))
    assert norms.usual(D) == 3.0
    assert norms.usual(A) == 5.0
    assert Norms().usual(A) is None
    assert noted((A, 1.0)).usual(A) is None, "nobody is measured by itself"


def test_as_many_liars_as_honest_lanes_do_not_make_an_honest_one_absurd() -> None:
    assert noted((A, 1.0), (B, 1.0), (D, 1e-9), (E, 1e-9)).usual(C) == 1.0
    assert noted((A, 1.0), (B, 1.0), (C, 1.0), (E, 1e9)).usual(D) == 1.0, "nor those of a liar usual, while most do not"


def test_a_sum_counts_as_long_as_one_of_updates_that_point_anywhere() -> None:
    norms = Norms()
    norms.note(A, 12.0, 9)
    assert norms.usual(B) == 4.0


def test_only_the_newest_updates_of_a_lane_count_and_zeros_say_nothing() -> None:
    norms = noted((A, 100.0), *[(A, 1.0)] * (NEWEST - 1), (A, 0.0))
    assert norms.usual(B) == 100.0
    norms.note(A, 1.0, 1)
    assert norms.usual(B) == 1.0


def test_who_sends_absurd_updates_is_named_with_how_absurd() -> None:
    norms = noted((A, 1.0), (B, 1.0), (C, 1.0), (D, READER_FACTOR), (E, 2 * READER_FACTOR), (E, 3 * READER_FACTOR))
    assert norms.named([A, B, C, D, E]) == {E: Suspicion(2, 3 * READER_FACTOR)}
    assert norms.named([A, B, C, D]) == {}


def test_one_other_lane_is_no_witness() -> None:
    """Of two peers whose data differ in scale neither is to blame."""
    one = noted((A, 1.0), *[(B, 1e6)] * 9)
    assert not one.suspicions
    assert not one.named([A, B])
    two = noted((A, 1.0), (C, 1.0), *[(B, 1e6)] * 9)
    assert two.named([A, B, C]).keys() == {B}


def test_where_all_begin_to_take_longer_steps_the_first_of_them_are_not_named() -> None:
    norms = noted(*((lane, 1.0) for lane in (A, B, C, D)), *((lane, 1e3) for lane in (A, B, C, D)))
    assert len(norms.suspicions) == 2
    assert norms.named([A, B, C, D]) == {}
    for _ in range(NAMED_MIN):
        norms.note(A, 1e6, 1)
    assert norms.named([A, B, C, D]).keys() == {A}


def test_what_a_peer_that_is_out_has_sent_is_usual_no_more() -> None:
    norms = noted((A, 1.0), (D, 1e9), (E, 1e9))
    assert norms.usual(B) == 1e9
    norms.forget(D)
    norms.forget(E)
    assert norms.usual(B) == 1.0


def test_a_peer_says_once_how_long_an_update_is_that_it_leaves_out_and_is_no_suspect() -> None:
    norms = noted((A, 1.0), (B, 1.0), (C, 1.0))
    assert norms.claims(D, 7, 1e6)
    assert not norms.claims(D, 7, 1e6), "adverts repeat it"
    assert not norms.claims(D, 8, float("nan"))
    assert not norms.claims(D, 8, float("inf"))
    assert norms.named([A, B, C, D]) == {}
    assert norms.known(A) == {B, C, D}


def test_another_training_begins_with_nothing_known_but_who_was_absurd() -> None:
    norms = noted((A, 1.0), (B, 1.0), (C, 1.0), (D, 1e3))
    norms.begin_anew()
    assert norms.usual(A) is None
    assert norms.named([A, B, C, D]).keys() == {D}


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), "high", [1.0]])
def test_a_limit_is_a_length(value: Any) -> None:
    with pytest.raises(UsageError, match="norm_max="):
        Limits(value)
