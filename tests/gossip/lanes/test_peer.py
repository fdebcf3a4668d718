"""The peer: what it says and when, what it lets near the replica, and when it is done."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gossip.arrays import Packed
from gossip.events import (
    Closed,
    Computed,
    Congested,
    Deliver,
    Departed,
    Drained,
    Effect,
    Event,
    Exhausted,
    Forget,
    Gated,
    Joined,
    Keep,
    Negative,
    Progressed,
    Publish,
    Received,
    Release,
    Returned,
    Send,
    Started,
    Ticked,
    Warn,
)
from gossip.lanes.adopt import GIVE_UP_S
from gossip.lanes.peer import Peer, Settings
from gossip.lanes.roster import RETURN_S
from gossip.marks import RUN, Series, packed
from gossip.membership import Detection
from gossip.messages import (
    Ack,
    Advert,
    Credit,
    Mark,
    Message,
    Nack,
    PeerId,
    Pin,
    Ping,
    PingRequest,
    Pinned,
    Pull,
    Range,
    Rumor,
    Standing,
    State,
    StateRequest,
    Unit,
    Unknown,
    Unpin,
)
from gossip.updates.rows import rows_of

pytestmark = pytest.mark.usefixtures("checked")

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")
UPDATE = Packed.of({"w": np.ones(3)})
FOREVER = float("inf")


def started(
    settings: Settings | None = None,
    *,
    others: tuple[PeerId, ...] = (A,),
    at: float = 0.0,
    chance: Random | None = None,
) -> Peer:
    """A peer that has said its first word at `at`; with `chance` it may adopt."""
    peer = Peer(ME, UPDATE.layout, settings, chance)
    for other in others:
        peer.handle(Joined(other), at)
    peer.handle(Started({}), at)
    return peer


def answer(lo: int, hi: int, payload: Packed = UPDATE, lane: PeerId = A) -> Received:
    return Received(Range(lane, lo, hi, 1, (), payload.layout, payload))


def adverts(effects: list[Effect]) -> list[Advert]:
    return [e.message for e in effects if isinstance(e, Publish) and isinstance(e.message, Advert)]


def pulls(effects: list[Effect]) -> list[tuple[PeerId, int]]:
    return [(e.to, e.message.frontier) for e in effects if isinstance(e, Send) and isinstance(e.message, Pull)]


def tick_until(peer: Peer, now: float) -> list[tuple[float, Effect]]:
    """Do as a driver does that has nothing else to do."""
    happened = []
    while peer.deadline() <= now:
        due = peer.deadline()
        happened += [(due, effect) for effect in peer.handle(Ticked(), due)]
    return happened


# ---------------------------------------------------------------------------------------------------------- adverts


def test_nothing_is_said_before_the_replica_is_in_place() -> None:
    peer = Peer(ME, UPDATE.layout)
    assert peer.handle(Joined(A), 0.0) == []
    assert peer.handle(Received(Advert(A, 5, {})), 1.0) == []
    assert peer.handle(Ticked(), 9.0) == []
    assert peer.handle(answer(1, 2), 9.0) == []
    assert peer.handle(Received(StateRequest(A, 1)), 9.0) == []
    assert not peer.ready
    assert peer.deadline() == FOREVER
    effects = peer.handle(Started({A: 2}), 10.0)
    assert adverts(effects) == [Advert(ME, 0, {A: 2}, k=1)]
    assert pulls(effects) == [(A, 2)]  # what it heard before is not forgotten
    assert len(effects) == 2


def test_an_advert_says_how_far_the_own_lane_and_all_others_are() -> None:
    peer = started(others=(A, B))
    peer.handle(answer(1, 4), 1.0)
    peer.handle(Computed(UPDATE), 1.1)
    (advert,) = adverts(peer.handle(Ticked(), 2.0))
    assert advert == Advert(ME, 1, {A: 4, B: 0})


def test_changes_in_quick_succession_share_one_advert() -> None:
    peer = started(Settings(advert_gap_s=0.02))
    assert [a.n for a in adverts(peer.handle(Computed(UPDATE), 5.0))] == [1]
    assert adverts(peer.handle(Computed(UPDATE), 5.001)) == []
    assert adverts(peer.handle(Computed(UPDATE), 5.002)) == []
    assert peer.deadline() == pytest.approx(5.02)
    assert [a.n for a in adverts(peer.handle(Ticked(), 5.02))] == [3]
    assert peer.deadline() == pytest.approx(5.52)


def test_own_updates_are_told_of_sooner_than_those_of_others() -> None:
    peer = started(Settings(advert_gap_s=0.02, advert_own_gap_s=0.005))
    assert [a.n for a in adverts(peer.handle(Computed(UPDATE), 5.0))] == [1]
    assert adverts(peer.handle(Computed(UPDATE), 5.001)) == []
    assert peer.deadline() == pytest.approx(5.005)
    assert [a.n for a in adverts(peer.handle(Ticked(), 5.005))] == [2]
    peer.handle(Received(Advert(A, 4, {})), 5.006)
    assert adverts(peer.handle(answer(1, 4), 5.007)) == []
    assert peer.deadline() == pytest.approx(5.025)


def test_an_advert_is_repeated_every_period_although_nothing_changes() -> None:
    peer = started(Settings(advert_period_s=0.5))
    times = [now for now, effect in tick_until(peer, 2.1) if isinstance(effect, Publish)]
    assert times == [0.5, 1.0, 1.5, 2.0]


@given(
    st.lists(st.tuples(st.floats(0, 1.5), st.sampled_from(["update", "range", "nothing"])), max_size=40),
    st.sampled_from([0.0, 1e3, 1e6]),
    st.sampled_from([(0.02, 0.5), (0.3, 0.5), (0.5, 0.5), (0.0, 0.1)]),
)
def test_adverts_keep_the_gap_and_the_period_and_follow_every_change(
    script: list[tuple[float, str]], now: float, times: tuple[float, float]
) -> None:
    gap, period = times
    peer = started(Settings(advert_gap_s=gap, advert_period_s=period), at=now)
    said = [now]
    changed = []
    frontier = 0
    happened: list[tuple[float, Effect]]
    for wait, kind in script:
        happened = tick_until(peer, now + wait)
        now += wait
        if kind == "update":
            changed.append(now)
            happened += [(now, effect) for effect in peer.handle(Computed(UPDATE), now)]
        elif kind == "range":
            changed.append(now)
            frontier += 1
            happened += [(now, effect) for effect in peer.handle(answer(frontier, frontier), now)]
        else:
            happened += [(now, effect) for effect in peer.handle(Received(Credit(A, 1, 1)), now)]
        said += [time for time, effect in happened if isinstance(effect, Publish)]
    said += [time for time, effect in tick_until(peer, now + period) if isinstance(effect, Publish)]
    for earlier, later in pairwise(said):
        assert earlier + gap <= later <= earlier + period
    for change in changed:
        assert any(change <= time <= change + gap + 1e-9 for time in said)
    assert said[-1] >= now


# --------------------------------------------------------------------------------------------------- the own updates


def test_an_own_update_is_kept_for_the_readers_and_merged_at_once() -> None:
    peer = started()
    assert peer.handle(Computed(UPDATE), 0.01) == [Keep(1, 1, UPDATE), Deliver(ME, 1, 1, UPDATE)]


def test_a_worker_leaves_its_updates_to_the_hub() -> None:
    peer = started(Settings(applies_own=False, coalesce=False))
    assert peer.handle(Computed(UPDATE), 0.01) == [Keep(1, 1, UPDATE)]
    assert peer.handle(Computed(UPDATE), 0.01) == [Keep(2, 2, UPDATE)]


def test_one_that_joins_level_reads_from_where_the_lane_stands() -> None:
    one = Peer(PeerId("one"), None)
    one.handle(Started({}), 0.0)
    one.handle(Computed(Packed.of({"w": np.ones(1)})), 0.1)
    for name, level in (("level", True), ("late", False)):
        one.handle(Joined(PeerId(name), level=level), 0.2)
    assert one.replicator.readers.keys() == {PeerId("level")}
    assert one.replicator.behind() == ()


def test_who_does_not_read_us_costs_nothing() -> None:
    peer = Peer(ME, UPDATE.layout)
    peer.handle(Joined(A, reads=False), 0.0)
    peer.handle(Started({}), 0.0)
    assert peer.handle(Computed(UPDATE), 0.01) == [Deliver(ME, 1, 1, UPDATE)]


def test_who_is_not_read_is_not_asked() -> None:
    peer = Peer(ME, UPDATE.layout)
    peer.handle(Joined(A, read=False), 0.0)
    peer.handle(Started({}), 0.0)
    assert pulls(peer.handle(Received(Advert(A, 3, {})), 0.1)) == []
    assert peer.handle(answer(1, 3), 0.1) == []


# ------------------------------------------------------------------------------------------------- what is let in


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"w": np.ones(4)}, "'w': shape (4,), expected (3,)"),
        ({"w": np.ones((3, 1))}, "'w': shape (3, 1), expected (3,)"),
        ({"w": np.ones(3, np.float32)}, "'w': dtype float32, expected float64"),
        ({"w": np.ones(3, np.int64)}, "'w': dtype int64, expected float64"),
        ({}, "'w' is missing, expected 'w': float64 (3,)"),
        ({"v": np.ones(3)}, "'w' is missing, expected 'w': float64 (3,)"),
        ({"w": np.ones(3), "v": np.ones(3)}, "'v' is not one of the model's arrays ['w']"),
        ({"w": np.array([1, np.nan, 1])}, "'w': 1 of 3 numbers are NaN or infinite, expected none"),
        ({"w": np.array([1, -np.inf, np.inf])}, "'w': 2 of 3 numbers are NaN or infinite, expected none"),
    ],
)
def test_what_does_not_fit_or_is_not_finite_is_not_merged(arrays: dict[str, Any], reason: str) -> None:
    peer = started()
    before = peer.replicator.frontiers()
    effects = peer.handle(answer(1, 2, Packed.of(arrays)), 0.01)
    assert effects == [Warn(f"updates 1..2 of peer a are not merged: {reason}")]
    assert peer.refused == 1
    assert peer.replicator.frontiers() == before
    assert Deliver(A, 1, 2, UPDATE) in peer.handle(answer(1, 2), 0.02)
    assert peer.refused == 1


@pytest.mark.parametrize("rows", [[3], [-1], [1, 0], [1, 1]])
def test_rows_that_are_none_of_the_model_s_are_not_merged(rows: list[int]) -> None:
    peer = Peer(ME, Packed.of({"w": np.ones((3, 2))}).layout)
    peer.handle(Joined(A), 0.0)
    peer.handle(Started({}), 0.0)
    wrong = Packed.of(rows_of("w", np.array(rows), np.ones((len(rows), 2))))
    (warning,) = peer.handle(answer(1, 1, wrong), 0.01)
    assert isinstance(warning, Warn)
    assert warning.text.startswith("updates 1..1 of peer a are not merged: 'w[rows]': expected ascending")
    right = Packed.of(rows_of("w", np.array([0, 2]), np.ones((2, 2))))
    assert Deliver(A, 1, 1, right) in peer.handle(answer(1, 1, right), 0.02)


@pytest.mark.parametrize(
    ("segments", "kept"),
    [(2, [2, 2, 2, 2, 0]), (3, [3, 3, 2, 2, 0]), (4, [4, 4, 2, 2, 0]), (5, [3, 3, 2, 2, 0])],
)
def test_the_more_is_kept_for_who_departed_the_sooner_it_is_forgotten(segments: int, kept: list[int]) -> None:
    """What it would need to go on is dropped then; it adopts a replica if it comes back."""
    late = [PeerId(f"z{index}") for index in range(segments)]  # all who are left have smaller names
    peer = started(Settings(segments_max=2), others=(A, *late))
    for index in range(segments):
        peer.handle(Received(Pull(late[index], index, 1)), 1.0)
        peer.handle(Computed(UPDATE), 1.0)
    assert len(peer.replicator.segments) == segments
    for one in late:
        peer.handle(Departed(one), 1.0)
    seen = []
    for number, now in enumerate((1.0, 5.9, 6.1, 600.9, 601.1), 1):
        peer.handle(Received(Advert(A, 0, {ME: segments}, k=number)), now)
        peer.handle(Ticked(), now)
        seen.append(len(peer.replicator.segments))
    assert seen == kept


def test_a_peer_without_a_layout_takes_any_arrays_that_are_finite() -> None:
    peer = Peer(ME, None)
    peer.handle(Joined(A), 0.0)
    peer.handle(Started({}), 0.0)
    other = Packed.of({"anything": np.ones((2, 2), np.float32)})
    assert peer.handle(answer(1, 1, other), 0.01) == [Deliver(A, 1, 1, other)]
    bad = Packed.of({"anything": np.full(2, np.nan)})
    assert [type(effect) for effect in peer.handle(answer(2, 2, bad), 0.011)] == [Warn]
    assert peer.refused == 1


def test_a_range_that_would_not_be_applied_is_not_even_checked() -> None:
    peer = started()
    bad = Packed.of({"w": np.full(3, np.nan)})
    assert peer.handle(answer(2, 2, bad), 0.01) == []
    assert peer.handle(answer(1, 1, bad, lane=B), 0.01) == []
    assert peer.refused == 0


def test_large_but_finite_updates_are_merged() -> None:
    peer = started()
    large = Packed.of({"w": np.full(3, np.finfo(float).max)})
    assert Deliver(A, 1, 1, large) in peer.handle(answer(1, 1, large), 0.01)


BAD = Packed.of({"w": np.array([np.nan, 1, 1])})


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B, PeerId("stranger")]), st.integers(1, 9), st.integers(0, 4), st.booleans()),
        max_size=60,
    )
)
def test_what_is_merged_of_a_lane_is_whole_and_in_order(
    answers: list[tuple[PeerId, int, int, bool]],
) -> None:
    peer = started(others=(A, B))
    merged: dict[PeerId, int] = defaultdict(int)
    for lane, lo, more, good in answers:
        effects = peer.handle(answer(lo, lo + more, UPDATE if good else BAD, lane), 1.0)
        for effect in effects:
            if isinstance(effect, Deliver):
                assert good
                assert effect.lo == merged[effect.lane] + 1
                merged[effect.lane] = effect.hi
        assert peer.replicator.frontiers() == {ME: 0, A: merged[A], B: merged[B]}
    assert merged.keys() <= {A, B}


def test_an_origin_that_cannot_serve_us_is_told_to_a_person() -> None:
    peer = started()
    (warning,) = [e for e in peer.handle(Received(Unknown(A, 0, 1)), 0.1) if isinstance(e, Warn)]
    assert "peer a cannot serve what follows update 0 of its lane" in warning.text
    assert peer.handle(Received(Unknown(A, 3, 1)), 0.1) == []
    assert peer.handle(Received(Unknown(B, 0, 1)), 0.1) == []


def test_a_state_is_given_to_whoever_asks_and_one_that_comes_unasked_is_ignored() -> None:
    peer = started()
    peer.handle(answer(1, 6), 0.01)
    effects = peer.handle(Received(StateRequest(B, 9)), 0.011)
    assert effects == [Send(B, State(ME, {A: 6, ME: 0}, 9))]
    state = State(A, {A: 50}, 1, {}, UPDATE.layout, UPDATE)
    assert peer.handle(Received(state), 0.012) == []
    assert peer.replicator.frontiers() == {A: 6, ME: 0}


# ------------------------------------------------------------------------------------------------------------- pulls


def test_who_is_ahead_is_pulled_from_and_again_from_where_the_answer_ends() -> None:
    peer = started()
    assert pulls(peer.handle(Received(Advert(A, 3, {})), 0.1)) == [(A, 0)]
    assert pulls(peer.handle(Received(Advert(A, 5, {})), 0.2)) == []
    assert pulls(peer.handle(answer(1, 3), 0.3)) == [(A, 3)]
    assert pulls(peer.handle(answer(4, 5), 0.4)) == []


def test_a_pull_that_is_not_answered_is_repeated_for_ever() -> None:
    peer = started(Settings(pull_timeout_s=1.25, advert_period_s=60.0))
    peer.handle(Received(Advert(A, 3, {})), 0.0)
    times = [now for now, effect in tick_until(peer, 5.1) if pulls([effect])]
    assert times == [1.25, 2.5, 3.75, 5.0]


def test_an_answer_on_its_way_extends_the_pull() -> None:
    peer = started(Settings(pull_timeout_s=1.5))
    peer.handle(Received(Advert(A, 3, {})), 0.0)
    for now in (1.0, 2.0, 3.0):
        assert pulls(peer.handle(Progressed(A), now)) == []
        assert not [effect for _, effect in tick_until(peer, now + 0.9) if pulls([effect])]
    assert [now for now, effect in tick_until(peer, 4.6) if pulls([effect])] == [4.5]


def test_progress_of_someone_who_was_not_asked_changes_nothing() -> None:
    peer = started()
    assert peer.handle(Progressed(A), 0.1) == []
    assert peer.handle(Progressed(PeerId("stranger")), 0.1) == []


def test_no_more_pulls_are_under_way_than_allowed() -> None:
    others = tuple(PeerId(f"p{index}") for index in range(10))
    peer = started(Settings(pulls_max=3), others=others)
    asked: list[PeerId] = []
    for other in others:
        asked += [to for to, _ in pulls(peer.handle(Received(Advert(other, 1, {})), 0.1))]
    assert asked == list(others[:3])
    for index in range(10):
        asked += [to for to, _ in pulls(peer.handle(answer(1, 1, lane=asked[index]), 0.2))]
        assert len(asked) == min(10, index + 4)
    assert sorted(asked) == sorted(others)


# ------------------------------------------------------------------------------------------------------------- drain


def drained(effects: list[Effect]) -> list[Drained]:
    return [effect for effect in effects if isinstance(effect, Drained)]


def served(peer: Peer, reader: PeerId, frontier: int, now: float) -> None:
    effects = peer.handle(Received(Pull(reader, frontier, 1)), now)
    assert any(isinstance(effect, Send) and isinstance(effect.message, Range) for effect in effects)


def test_who_published_nothing_is_drained_at_once() -> None:
    peer = started()
    assert drained(peer.handle(Exhausted(10.0), 1.0)) == [Drained(())]
    assert drained(peer.handle(Ticked(), 20.0)) == []


def test_a_peer_is_drained_when_every_reader_has_acknowledged() -> None:
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE), 0.1)
    assert drained(peer.handle(Exhausted(10.0), 1.0)) == []
    served(peer, A, 0, 1.1)
    served(peer, B, 0, 1.1)
    assert drained(peer.handle(Received(Advert(A, 0, {ME: 1})), 1.2)) == []
    assert drained(peer.handle(Received(Advert(A, 0, {ME: 1})), 1.3)) == []
    assert drained(peer.handle(Received(Pull(B, 1, 2)), 1.4)) == [Drained(())]
    assert drained(peer.handle(Ticked(), 20.0)) == []


def test_whoever_has_not_acknowledged_in_time_is_named() -> None:
    peer = started(others=(B, A, PeerId("c")))
    peer.handle(Computed(UPDATE), 0.1)
    served(peer, A, 0, 0.2)
    peer.handle(Received(Advert(A, 0, {ME: 1})), 0.3)
    peer.handle(Exhausted(2.25), 1.0)
    happened = [(now, effect) for now, effect in tick_until(peer, 10.0) if isinstance(effect, Drained)]
    assert happened == [(3.25, Drained((B, PeerId("c"))))]


def test_an_update_while_draining_is_waited_for_too() -> None:
    peer = started()
    peer.handle(Computed(UPDATE), 0.1)
    peer.handle(Exhausted(9.0), 1.0)
    served(peer, A, 0, 1.1)
    peer.handle(Computed(UPDATE), 1.2)
    assert drained(peer.handle(Received(Advert(A, 0, {ME: 1})), 1.3)) == []
    served(peer, A, 1, 1.4)
    assert drained(peer.handle(Received(Advert(A, 0, {ME: 2})), 1.5)) == [Drained(())]


def test_who_has_less_of_a_lane_than_others_is_not_drained() -> None:
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Departed(B), 0.1)
    peer.handle(Received(Advert(A, 0, {B: 2})), 0.2)  # A pulled what B published before it died
    assert drained(peer.handle(Exhausted(9.0), 0.3)) == []
    peer.replicator.start({A: 0, B: 2})  # as an adoption leaves it
    assert drained(peer.handle(Ticked(), 0.4)) == [Drained(())]


def test_who_has_less_of_a_lane_than_others_drains_when_the_time_is_up() -> None:
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Received(Advert(A, 0, {B: 2})), 0.2)
    peer.handle(Exhausted(2.0), 0.3)
    assert [now for now, effect in tick_until(peer, 10.0) if isinstance(effect, Drained)] == [2.3]


def test_a_peer_is_drained_when_everybody_alive_has_as_much_of_a_dead_lane() -> None:
    peer = Peer(ME, UPDATE.layout, chance=Random(1))
    for other in (A, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    peer.handle(Received(Advert(A, 1, {ME: 0})), 0.1)
    peer.handle(answer(1, 1, lane=A), 0.2)
    peer.handle(Departed(A), 0.3)
    peer.handle(Received(Advert(B, 0, {ME: 0, A: 0})), 0.4)
    assert drained(peer.handle(Exhausted(10.0), 0.5)) == []
    assert drained(peer.handle(Received(Advert(B, 0, {ME: 0, A: 1})), 0.6)) == [Drained(())]


def test_a_peer_is_not_drained_while_it_may_have_to_take_an_update_back() -> None:
    unit = Unit(0, 0, 0)
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE, unit, 1), 0.1)
    served(peer, B, 0, 0.2)
    peer.handle(Received(Advert(B, 0, {ME: 1})), 0.3)
    peer.handle(Departed(A), 0.4)
    peer.handle(Received(Range(A, 1, 1, 1, packed([Mark(unit, 0)]), UPDATE.layout, UPDATE)), 0.5)
    assert peer.pending
    assert drained(peer.handle(Exhausted(60.0), 0.6)) == []
    peer.handle(Ticked(), 0.5 + 3.1 * peer.settings.settle_s)
    assert peer.units.withdrawn == 1
    served(peer, B, 1, 18.0)
    assert drained(peer.handle(Received(Advert(B, 0, {ME: 2})), 18.1)) == [Drained(())]


def test_a_peer_may_drain_more_than_once() -> None:
    peer = started()
    assert drained(peer.handle(Exhausted(1.0), 0.1)) == [Drained(())]
    peer.handle(Computed(UPDATE), 0.2)
    assert drained(peer.handle(Exhausted(1.0), 0.3)) == []
    assert drained(peer.handle(Ticked(), 1.4)) == [Drained((A,))]


# ---------------------------------------------------------------------------------------------------------- deadline

lanes = st.sampled_from([A, B])
few = st.integers(0, 6)
events: st.SearchStrategy[Event] = (
    st.just(Ticked())
    | st.just(Computed(UPDATE))
    | st.builds(Joined, lanes, st.booleans(), st.booleans())
    | st.builds(Progressed, lanes)
    | st.builds(Exhausted, st.floats(0, 3))
    | st.builds(lambda lane, n, f: Received(Advert(lane, n, {ME: f})), lanes, few, few)
    | st.builds(lambda lane, f, k: Received(Pull(lane, f, k)), lanes, few, few)
    | st.builds(lambda lane, lo, more: answer(lo, lo + more, lane=lane), lanes, st.integers(1, 6), few)
    | st.builds(lambda lane, f: Received(Unknown(lane, f, 1)), lanes, few)
    | st.builds(lambda lane: Received(StateRequest(lane, 1)), lanes)
)


@given(
    st.lists(st.tuples(st.floats(0, 2), events), max_size=60),
    st.sampled_from([0.0, 12345.678, 1e7]),
    st.sampled_from([Settings(), Settings(pulls_max=1), Settings(advert_gap_s=0.0, coalesce=False)]),
)
def test_the_deadline_is_always_ahead_of_what_was_handled(
    script: list[tuple[float, Event]], now: float, settings: Settings
) -> None:
    peer = started(settings, others=(), at=now)
    assert peer.deadline() > now
    for wait, event in script:
        now += wait
        due = peer.deadline()
        if due <= now:  # a driver comes once in time, and then not before the next event
            peer.handle(Ticked(), due)
            assert peer.deadline() > due
        peer.handle(event, now)
        assert peer.deadline() > now
    for _ in range(20):
        due = peer.deadline()
        assert due < FOREVER
        peer.handle(Ticked(), due)
        assert peer.deadline() > due


def test_a_late_tick_does_everything_that_was_due() -> None:
    peer = started()
    peer.handle(Computed(UPDATE), 0.1)
    peer.handle(Received(Advert(A, 1, {})), 0.2)
    peer.handle(Exhausted(1.0), 0.3)
    effects = peer.handle(Ticked(), 60.0)
    assert pulls(effects) == [(A, 0)]
    assert len(adverts(effects)) == 1
    assert drained(effects) == [Drained((A,))]
    assert peer.deadline() > 60.0


def test_a_tick_that_comes_early_does_nothing() -> None:
    peer = started()
    assert peer.handle(Ticked(), 0.1) == []
    assert peer.deadline() == 0.5


# ------------------------------------------------------------------------------------------------- who is there

X, Y, Z = PeerId("x"), PeerId("y"), PeerId("z")
SETTLE_S = Settings().settle_s


def sent(effects: list[Effect]) -> list[tuple[PeerId, Message]]:
    return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]


def donors(effects: list[Effect]) -> set[PeerId]:
    """From whom a replica is to be adopted."""
    return {message.donor for _, message in sent(effects) if isinstance(message, Pin)}


def test_a_newcomer_is_told_of_without_delay() -> None:
    peer = started()
    peer.handle(Joined(B), 0.01)
    assert peer.deadline() == pytest.approx(0.02)


def test_who_has_no_replica_yet_does_not_wait_for_those_who_may_have_died_before_it_came() -> None:
    for ready in (False, True):
        peer = Peer(ME, UPDATE.layout, Settings(detection=Detection()), Random(1))
        peer.handle(Started({}, ready), 0.0)
        peer.handle(Joined(A), 0.0)
        tick_until(peer, Detection().greeting_s)
        assert (peer.members[A].departed_at is None) == ready


def test_a_ping_is_answered_and_what_it_says_of_others_is_told_to_all() -> None:
    peer = started(Settings(detection=Detection()), others=(A, B), chance=Random(1))
    said = Rumor(B, Standing.DEAD, 0, B)
    effects = peer.handle(Received(Ping(A, 7, (said,))), 0.1)
    ((to, ack),) = sent(effects)
    assert to == A
    assert isinstance(ack, Ack)
    assert (ack.k, ack.about) == (7, ME)
    (advert,) = adverts(effects)
    assert advert.rumors == (said,)
    assert peer.members[B].departed_at == 0.1


def test_a_peer_does_not_blame_itself_if_those_it_asked_got_no_answer_either() -> None:
    peer = started(Settings(detection=Detection()), others=(A, B, X), chance=Random(1))
    assert peer.membership is not None
    for to, ping in sent(peer.handle(Ticked(), 1.0)):
        assert isinstance(ping, Ping)
        if to != A:
            peer.handle(Received(Ack(to, ping.k, to)), 1.1)
    asked = sent(peer.handle(Ticked(), 1.5))
    assert {to for to, _ in asked} == {B, X}
    for to, request in asked:
        assert isinstance(request, PingRequest)
        peer.handle(Received(Nack(to, request.k, A)), 1.9)
    peer.handle(Ticked(), 2.0)
    assert peer.membership.contacts[A].standing is Standing.SUSPECTED
    assert peer.membership.health == 0


def test_a_peer_comes_back_when_somebody_is_to_be_pinged() -> None:
    peer = started(Settings(detection=Detection(), advert_period_s=60.0))
    assert peer.deadline() == Detection().silent_s


# ------------------------------------------------------------------------------------------- lanes of the dead

FAR = st.dictionaries(st.sampled_from([B, X, Y]), st.integers(0, 2))


@given(FAR, st.dictionaries(st.sampled_from([A, PeerId("n"), Z]), FAR, min_size=1))
def test_the_one_that_has_most_of_the_dead_lanes_gives_its_replica(
    mine: dict[PeerId, int], theirs: dict[PeerId, dict[PeerId, int]]
) -> None:
    """Of those that have as much the one with the largest name; who has just the same as that one adopts nothing."""
    peer = Peer(ME, UPDATE.layout, chance=Random(1))
    for other in (*theirs, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started(mine), 0.0)
    peer.handle(Departed(B), 0.0)  # nobody introduced X and Y
    for other, frontiers in theirs.items():
        peer.handle(Received(Advert(other, 0, frontiers)), 0.0)
    assert donors(peer.handle(Ticked(), SETTLE_S - 0.1)) == set()

    def of(frontiers: dict[PeerId, int]) -> list[int]:
        return [frontiers.get(lane, 0) for lane in (B, X, Y)]

    most = max([(sum(of(frontiers)), other) for other, frontiers in {**theirs, ME: mine}.items()])[1]
    wanted = {most} if of({**theirs, ME: mine}[most]) != of(mine) else set()
    assert donors(peer.handle(Ticked(), SETTLE_S)) == wanted


def test_who_has_the_same_as_the_one_that_has_most_does_not_adopt_from_the_next() -> None:
    """It would adopt from the first then, and from the next again, as long as there are the two."""
    peer = started(others=(A, B, X, PeerId("n")), chance=Random(1))
    for dead in (A, B):
        peer.handle(Departed(dead), 0.0)
    peer.handle(answer(1, 2), 0.1)
    peer.handle(answer(1, 1, lane=B), 0.1)
    peer.handle(Received(Advert(X, 0, {A: 2, B: 1})), 0.2)
    peer.handle(Received(Advert(PeerId("n"), 0, {A: 1, B: 2})), 0.2)
    assert donors(peer.handle(Ticked(), SETTLE_S)) == set()


def test_the_lane_of_a_stranger_is_dead_a_while_after_it_was_first_heard_of() -> None:
    peer = started(chance=Random(1))
    peer.handle(Received(Advert(A, 0, {X: 1})), 1.0)
    peer.handle(Received(Advert(A, 0, {X: 1, Y: 1})), 4.0)
    assert donors(peer.handle(Ticked(), 0.9 + SETTLE_S)) == set()
    assert donors(peer.handle(Ticked(), 1.0 + SETTLE_S)) == {A}


def test_only_one_that_was_taken_for_dead_and_is_back_puts_off_what_is_done_about_the_dead() -> None:
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Departed(B), 0.5)
    peer.handle(Received(Advert(A, 0, {X: 2})), 1.0)
    peer.handle(Returned(A), 0.9 + SETTLE_S)  # it was never away
    peer.handle(Departed(B), 0.9 + SETTLE_S)  # nor did this one come back
    assert donors(peer.handle(Ticked(), 1.0 + SETTLE_S)) == {A}


def test_what_an_overtaken_advert_says_of_a_dead_lane_is_no_reason_to_adopt() -> None:
    """Its peer has adopted another replica since; asked for its own again and again, it would give that."""
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Departed(B), 0.0)
    peer.handle(Received(Advert(A, 0, {B: 0}, k=3)), 0.1)
    peer.handle(Received(Advert(A, 0, {B: 2}, k=1)), 0.2)
    assert donors(peer.handle(Ticked(), SETTLE_S)) == set()
    assert donors(peer.handle(Received(Advert(A, 0, {B: 2}, k=3)), SETTLE_S + 0.1)) == {A}


def test_a_stranger_is_one_only_while_somebody_alive_knows_its_lane() -> None:
    peer = started(chance=Random(1))
    peer.handle(Received(Advert(A, 0, {X: 2})), 1.0)
    peer.handle(Departed(A), 1.1)
    peer.handle(Returned(A), 10.0)
    assert donors(peer.handle(Ticked(), 10.0 + RETURN_S)) == set()
    assert donors(peer.handle(Ticked(), 9.9 + SETTLE_S)) == set()
    assert donors(peer.handle(Ticked(), 10.0 + SETTLE_S)) == {A}


def test_who_has_no_replica_adopts_from_anyone_whoever_has_most_of_the_dead_lanes() -> None:
    """Those that come late are spread over all donors."""
    peer = Peer(ME, UPDATE.layout, chance=Random(1))
    peer.handle(Joined(A), 0.0)
    peer.handle(Started({}, ready=False), 0.0)
    peer.handle(Received(Advert(A, 0, {X: 2})), 0.1)
    peer.handle(Ticked(), 0.1 + GIVE_UP_S)
    assert not peer.adopter.under_way
    peer.handle(Ticked(), 0.1 + GIVE_UP_S)
    assert peer.roster.dead_lanes(SETTLE_S, 0.1 + GIVE_UP_S) == [X]
    assert peer.adopter.preferred is None


def test_all_that_was_kept_for_those_who_are_forgotten_is_dropped() -> None:
    peer = started(others=(A, Y, Z))
    peer.handle(Computed(UPDATE), 1.0)
    peer.handle(Received(Pull(Z, 0, 1)), 1.0)
    peer.handle(Computed(UPDATE), 1.0)
    peer.handle(Received(Pull(Z, 1, 2)), 1.0)
    peer.handle(Received(Advert(A, 0, {ME: 2}, k=1)), 1.0)
    for other in (Y, Z):
        peer.handle(Departed(other), 1.0)
    effects = peer.handle(Ticked(), 1.0 + peer.settings.forget_s)
    assert [effect for effect in effects if isinstance(effect, Forget)] == [Forget(1), Forget(2)]


# ---------------------------------------------------------------------------------------------------- readers


def test_who_has_no_replica_or_does_not_read_acknowledges_nothing() -> None:
    for reads, ready in ((True, False), (False, True), (True, True)):
        peer = Peer(ME, UPDATE.layout)
        peer.handle(Joined(A, reads=reads), 0.0)
        peer.handle(Joined(B), 0.0)
        peer.handle(Started({}), 0.0)
        peer.handle(Computed(UPDATE), 0.1)
        peer.handle(Received(Advert(A, 0, {ME: 1}, ready, k=1)), 0.2)
        frontiers = {reader: state.acknowledged for reader, state in peer.replicator.readers.items()}
        assert frontiers == {B: 0} | ({A: int(ready)} if reads else {})


def test_an_advert_that_does_not_name_us_acknowledges_nothing() -> None:
    peer = started()
    peer.handle(Computed(UPDATE), 0.1)
    peer.handle(Received(Pull(A, 0, 1)), 0.2)
    effects = peer.handle(Received(Advert(A, 0, {}, k=1)), 0.3)
    assert [effect for effect in effects if isinstance(effect, Forget)] == []
    assert peer.replicator.readers[A].acknowledged == 0


def test_who_is_forgotten_acknowledges_nothing_until_it_is_back() -> None:
    peer = started(others=(A, Z))
    peer.handle(Computed(UPDATE), 1.0)
    peer.handle(Departed(Z), 1.0)
    peer.handle(Ticked(), 1.0 + peer.settings.forget_s)
    for back in (False, True):
        if back:
            peer.handle(Returned(Z), 700.0)
        peer.handle(Received(Advert(Z, 0, {ME: 1}, k=1)), 700.0)
        assert (Z in peer.replicator.readers) == back


def test_pins_end_with_an_unpin_or_with_an_advert_of_after_the_adoption() -> None:
    for last in (Unpin(A, 3), Advert(A, 0, {ME: 0}, k=4)):
        peer = started(others=(A, B))
        assert (A, Pinned(ME, 3)) in sent(peer.handle(Received(Pin(A, B, 3)), 0.1))
        assert peer.replicator.pins.keys() == {A}
        peer.handle(Received(last), 0.2)
        assert peer.replicator.pins == {}


def test_who_never_adopts_heeds_no_pins_and_no_replica() -> None:
    peer = started()
    assert peer.handle(Received(Pinned(A, 1)), 0.01) == []
    assert peer.handle(Progressed(A), 0.01) == []


# ----------------------------------------------------------------------------------------------------- adoptions


def adopting(settings: Settings | None = None) -> tuple[Peer, int]:
    """One that came late and asks A for its replica, and the k of that."""
    peer = Peer(ME, UPDATE.layout, settings, Random(1))
    peer.handle(Started({}, ready=False), 0.0)
    peer.handle(Joined(A, level=False), 0.0)
    ((to, pin),) = sent(peer.handle(Received(Advert(A, 4, {})), 0.1))
    assert to == A
    assert isinstance(pin, Pin)
    peer.handle(Received(Pinned(A, pin.k)), 0.1)
    return peer, pin.k


def test_a_replica_that_does_not_fit_or_is_not_finite_is_not_adopted() -> None:
    peer, k = adopting()
    for number, arrays in enumerate([{"w": np.ones(4)}, {"w": np.array([1, np.nan, 1])}], 1):
        bad = Packed.of(arrays)
        effects = peer.handle(Received(State(A, {A: 4}, k, {}, bad.layout, bad)), 0.2)
        (warning,) = [effect for effect in effects if isinstance(effect, Warn)]
        assert warning.text.startswith("the replica of peer a is not adopted: 'w':")
        assert peer.refused == number
        assert not peer.ready
    (advert,) = adverts(peer.handle(Received(State(A, {A: 4}, k, {}, UPDATE.layout, UPDATE)), 0.3))
    assert advert == Advert(ME, 0, {A: 4}, True, peer.replicator.k)


def test_a_replica_on_its_way_is_waited_for() -> None:
    peer, k = adopting()
    peer.handle(Progressed(A), 5.0)
    assert sent(peer.handle(Ticked(), 0.1 + GIVE_UP_S)) == []
    assert (A, Unpin(ME, k)) in sent(peer.handle(Ticked(), 5.0 + GIVE_UP_S))


def test_after_an_adoption_that_failed_the_next_begins_in_time_however_rare_adverts_are() -> None:
    peer, _ = adopting(Settings(advert_period_s=60.0))
    peer.handle(Ticked(), 0.1 + GIVE_UP_S)
    assert peer.adopter is not None
    assert not peer.adopter.under_way
    assert peer.deadline() == peer.adopter.deadline()
    assert donors(peer.handle(Ticked(), peer.deadline())) == {A}


def readopts(peer: Peer, state: State, now: float) -> list[Effect]:
    """Have it adopt this replica, whatever its k."""
    peer.handle(Received(Advert(state.peer, 1, {})), now)
    asked = peer.handle(Received(Unknown(state.peer, 0, 1)), now)
    k = next(message.k for _, message in sent(asked) if isinstance(message, Pin))
    for other in peer.members:
        peer.handle(Received(Pinned(other, k)), now)
    return peer.handle(Received(structs.replace(state, k=k, layout=UPDATE.layout, payload=UPDATE)), now)


UNIT = Unit(0, 0, 0)


def test_own_units_that_the_donor_had_not_seen_are_known_after_an_adoption() -> None:
    peer = started(chance=Random(1))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    readopts(peer, State(A, {A: 1}, 0), 0.2)
    assert peer.identities.standing(UNIT) == {(1, ME)}
    assert peer.identities.units == 1
    assert peer.identities.watched == 0


def test_an_own_attempt_of_a_dropped_epoch_is_taken_back_for_one_that_came_with_a_replica() -> None:
    """The epoch was not kept for the donor, which was away: it has not seen our attempt, and knows of the other."""
    peer = started(others=(A, Z), chance=Random(1))
    peer.handle(Received(Advert(A, 0, {})), 0.1)
    peer.handle(Computed(UPDATE, UNIT, 1), 0.2)
    peer.handle(Departed(Z), 0.3)
    peer.handle(Closed(1), 0.3)
    peer.handle(Received(Advert(A, 1, {ME: 1})), 0.4)  # its update may be of an attempt before ours
    peer.handle(Ticked(), 1.0 + peer.settings.forget_s)
    peer.handle(Ticked(), 2.0 + peer.settings.forget_s)
    assert peer.identities.dropped == 1
    peer.handle(Returned(Z), 700.0)
    peer.handle(Departed(A), 701.0)
    effects = readopts(peer, State(Z, {Z: 1}, 0, {Z: packed([Mark(UNIT, 0)])}, units=1), 702.0)
    assert released(effects) == [1]
    assert peer.units.withdrawn == 1
    assert peer.identities.units == 1
    assert peer.identities.watched == 0


# ------------------------------------------------------------------------------------------- updates taken back


def released(effects: list[Effect]) -> list[int]:
    return [effect.number for effect in effects if isinstance(effect, Release)]


def test_updates_are_taken_back_together_and_whatever_waits_before_them() -> None:
    peer = started(others=(A, B), chance=Random(1))
    units = [Unit(0, 0, chunk) for chunk in range(3)]
    for unit in units:
        peer.handle(Computed(UPDATE, unit, 1), 0.1)
    marks = packed([Mark(unit, 0) for unit in units[1:]])
    effects = peer.handle(Received(Range(A, 1, 2, 1, marks, UPDATE.layout, UPDATE)), 0.2)
    assert [e.payload for e in effects if isinstance(e, Keep)] == [Negative(2), Negative(3)]
    assert [e.payload for e in effects if isinstance(e, Deliver)] == [UPDATE, Negative(2), Negative(3)]
    assert released(effects) == [2, 3]
    assert peer.units.withdrawn == 2


def test_an_update_taken_back_for_a_dead_peer_s_is_told_of_at_once() -> None:
    peer = started(Settings(advert_period_s=60.0))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    peer.handle(Departed(A), 0.5)
    peer.handle(Received(Range(A, 1, 1, 1, packed([Mark(UNIT, 0)]), UPDATE.layout, UPDATE)), 0.6)
    assert released(peer.handle(Ticked(), 0.4 + 3 * SETTLE_S)) == []
    effects = peer.handle(Ticked(), 0.5 + 3 * SETTLE_S)
    assert released(effects) == [1]
    assert [advert.n for advert in adverts(effects)] == [2]


def test_an_update_need_not_be_taken_back_any_more_when_all_readers_know_its_unit() -> None:
    peer = Peer(ME, UPDATE.layout)
    for other, reads in ((A, False), (B, True), (X, True)):
        peer.handle(Joined(other, reads=reads), 0.0)
    peer.handle(Started({}), 0.0)
    effects = peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    effects += peer.handle(Received(Advert(X, 0, {ME: 1})), 0.2)
    effects += peer.handle(Received(Advert(B, 2, {ME: 1})), 0.2)  # two updates may be of attempts before ours
    effects += peer.handle(answer(1, 1, lane=B), 0.3)
    assert released(effects) == []
    assert released(peer.handle(answer(2, 2, lane=B), 0.4)) == [1]


def test_an_update_is_kept_for_a_reader_that_had_it_and_adopted_a_replica_without_it() -> None:
    """It does not know the unit any more, and may publish an attempt that goes before ours."""
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    effects = peer.handle(Received(Advert(A, 0, {ME: 1}, k=1)), 0.2)
    effects += peer.handle(Received(Advert(A, 0, {}, k=3)), 0.3)
    effects += peer.handle(Received(Advert(A, 0, {ME: 1}, k=1)), 0.4)  # of before
    effects += peer.handle(Received(Advert(B, 0, {ME: 1})), 0.5)
    assert released(effects) == []
    effects = peer.handle(Received(Range(A, 1, 1, 1, packed([Mark(UNIT, 0)]), UPDATE.layout, UPDATE)), 0.6)
    assert released(effects) == [1]
    assert peer.units.withdrawn == 1


def test_an_update_is_released_when_who_adopted_a_replica_without_it_has_it_again() -> None:
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    peer.handle(Received(Advert(A, 0, {ME: 1}, k=1)), 0.2)
    peer.handle(Received(Advert(A, 1, {}, k=3)), 0.3)
    peer.handle(Received(Advert(B, 0, {ME: 1})), 0.4)
    effects = peer.handle(Received(Advert(A, 1, {ME: 1}, k=4)), 0.5)
    assert released(effects) == []  # what it published meanwhile is not here yet
    assert released(peer.handle(answer(1, 1), 0.6)) == [1]


def test_an_update_is_kept_until_who_was_out_of_reach_has_said_again_that_it_has_it() -> None:
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    effects = peer.handle(Received(Advert(A, 0, {ME: 1})), 0.2)
    effects += peer.handle(Departed(A), 0.3)
    effects += peer.handle(Received(Advert(B, 0, {ME: 1})), 0.4)
    effects += peer.handle(Received(Advert(A, 0, {ME: 1})), 0.5)  # late: it is still out of reach
    effects += peer.handle(Returned(A), 0.6)
    assert released(effects) == []
    assert released(peer.handle(Received(Advert(A, 0, {ME: 1})), 0.7)) == [1]


def test_the_advert_that_brings_one_back_may_be_of_before_and_is_not_believed_alone() -> None:
    peer = started(Settings(detection=Detection()), others=(A,), chance=Random(1))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    tick_until(peer, 60.0)
    assert peer.members[A].departed_at is not None
    assert released(peer.handle(Received(Advert(A, 0, {ME: 1})), 60.1)) == []
    assert peer.members[A].departed_at is None
    assert released(peer.handle(Received(Advert(A, 0, {ME: 1})), 60.2)) == [1]


def test_an_update_is_kept_until_who_adopts_has_come_out_with_it() -> None:
    peer = started(others=(A, B))
    peer.handle(Computed(UPDATE, UNIT, 1), 0.1)
    effects = peer.handle(Received(Advert(A, 0, {ME: 1}, k=1)), 0.2)
    effects += peer.handle(Received(Pin(A, B, 2)), 0.3)
    effects += peer.handle(Received(Advert(A, 0, {ME: 1}, k=2)), 0.4)
    effects += peer.handle(Received(Advert(B, 0, {ME: 1})), 0.5)
    effects += peer.handle(Received(Pull(A, 0, 4)), 0.6)
    assert released(effects) == []
    assert released(peer.handle(Received(Advert(A, 0, {ME: 1}, k=4)), 0.7)) == [1]


@pytest.mark.parametrize(("updates", "away", "count"), [(2, True, 0), (3, True, 1), (4, True, 2), (4, False, 0)])
def test_few_updates_are_kept_for_who_is_forgotten_and_all_for_who_is_not(updates: int, away: bool, count: int) -> None:
    peer = started(Settings(segments_max=2), others=(A, Z))
    for chunk in range(updates):
        peer.handle(Computed(UPDATE, Unit(0, 0, chunk), 1), 0.1)
    effects = peer.handle(Received(Advert(A, 0, {ME: updates})), 0.2)
    if away:
        effects += peer.handle(Departed(Z), 0.3)
    for now in (1.0, 2.0):
        effects += peer.handle(Ticked(), now + peer.settings.forget_s)
    assert released(effects) == list(range(1, count + 1))


# ------------------------------------------------------------------------------------------- epochs that are over


def test_a_session_goes_on_where_its_replica_was_taken() -> None:
    peer = Peer(ME, UPDATE.layout)
    peer.handle(Started({}, closed=2, units=5), 0.0)
    assert peer.identities.units == 5
    assert Gated(Unit(1, 0, 0)) in peer.handle(Computed(UPDATE, Unit(1, 0, 0)), 0.1)
    assert peer.handle(Computed(UPDATE, Unit(2, 0, 0)), 0.2) != []
    assert peer.identities.units == 6


@pytest.mark.parametrize("again", [False, True])
def test_an_epoch_waits_only_for_what_was_there_when_it_was_closed(again: bool) -> None:
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Received(Range(A, 1, 1, 1, packed([Mark(UNIT, 0)]), UPDATE.layout, UPDATE)), 0.1)
    peer.handle(Closed(1), 0.2)
    later = packed([Mark(Unit(1, 0, 0), 0)])
    peer.handle(Received(Range(B, 1, 1, 1, later, UPDATE.layout, UPDATE)), 0.3)
    if again:
        peer.handle(Closed(1), 0.3)
    peer.handle(Received(Advert(A, 1, {})), 0.4)
    peer.handle(Received(Advert(B, 1, {})), 0.4)
    peer.handle(Ticked(), 1.0)
    assert peer.identities.dropped == 0
    peer.handle(Received(Advert(B, 1, {A: 1})), 1.1)  # while A still has nothing of B
    peer.handle(Ticked(), 2.0)
    assert peer.identities.dropped == 1


@pytest.mark.parametrize("gone", [False, True])
def test_an_epoch_is_kept_for_one_that_had_as_much_and_has_less_again_or_is_out_of_reach(gone: bool) -> None:
    """Who adopts a replica without some of it could publish another attempt, and then adopt ours."""
    peer = started(others=(A, B), chance=Random(1))
    peer.handle(Received(Range(B, 1, 1, 1, packed([Mark(UNIT, 0)]), UPDATE.layout, UPDATE)), 0.1)
    peer.handle(Closed(1), 0.2)
    peer.handle(Received(Advert(A, 0, {B: 1}, k=1)), 0.3)
    peer.handle(Ticked(), 1.0)
    peer.handle(Departed(A) if gone else Received(Advert(A, 0, {}, k=3)), 1.1)
    peer.handle(Received(Advert(A, 0, {B: 1}, k=1)), 1.2)  # of before
    peer.handle(Received(Advert(B, 1, {})), 1.3)
    peer.handle(Ticked(), 2.0)
    assert peer.identities.dropped == 0
    peer.handle(Returned(A), 2.1)
    peer.handle(Received(Advert(A, 0, {B: 1}, k=3)), 2.2)
    peer.handle(Ticked(), 3.0)
    assert peer.identities.dropped == 1


def test_in_a_star_an_epoch_is_dropped_as_soon_as_it_is_closed() -> None:
    peer = started()
    peer.handle(Received(Range(A, 1, 1, 1, packed([Mark(UNIT, 0)]), UPDATE.layout, UPDATE)), 0.1)
    peer.handle(Closed(1), 0.2)
    assert peer.identities.dropped == 1


def test_who_has_no_replica_yet_drops_no_epoch() -> None:
    peer, k = adopting()
    peer.handle(Closed(1), 0.2)
    peer.handle(Ticked(), 1.0)
    assert peer.identities.dropped == 0
    peer.handle(Received(State(A, {A: 4}, k, {}, UPDATE.layout, UPDATE)), 1.1)
    peer.handle(Ticked(), 2.0)
    assert peer.identities.dropped == 1


# ------------------------------------------------------------------------------------------- what is let in, more


def test_a_peer_without_a_layout_takes_rows_too() -> None:
    peer = Peer(ME, None)
    peer.handle(Joined(A), 0.0)
    peer.handle(Started({}), 0.0)
    rows = Packed.of(rows_of("w", np.array([0, 2]), np.ones((2, 2))))
    assert Deliver(A, 1, 1, rows) in peer.handle(answer(1, 1, rows), 0.01)


def test_every_range_that_is_refused_is_counted() -> None:
    peer = started()
    for count in (1, 2, 3):
        peer.handle(answer(1, 1, BAD), 0.01)
        assert peer.refused == count


@pytest.mark.parametrize(("most", "refused"), [(5, 0), (4, 1)])
@pytest.mark.parametrize("more", [False, True])
def test_marks_that_are_looked_at_one_by_one_are_few(
    most: int, refused: int, more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.lanes.units.TOIL_MAX", most)
    peer = started(others=(A, B))
    even = packed([Mark(Unit(0, 1, chunk), 0) for chunk in range(0, 11, 2)])
    odd = [Mark(Unit(0, 1, chunk), 0) for chunk in range(1, 11, 2)]
    odd += [Mark(Unit(0, 0, 0), 0)] if more else []
    for number in (1, 2):  # the second time it is known
        peer.handle(Received(Range(A, number, number, 1, even, UPDATE.layout, UPDATE)), 0.1)
    assert peer.refused == 0
    assert peer.replicator.origins[A].frontier == 2
    peer.handle(Received(Range(B, 1, 1, 1, packed(odd), UPDATE.layout, UPDATE)), 0.2)
    assert peer.refused == refused
    assert peer.identities.units == 6 + (0 if refused else len(odd))


def test_more_units_than_can_be_told_are_not_taken() -> None:
    peer = started(others=(A, B))
    for number, origin in enumerate((A, B)):
        claim = (Series(0, number, 0, False, RUN.pack(0, (1 << 62) - 1 + number, 1)),)
        peer.handle(Received(Range(origin, 1, 1, 1, claim, UPDATE.layout, UPDATE)), 0.1)
        assert peer.refused == number
    assert peer.identities.units == 1 << 62


def test_congestion_is_told_when_it_begins_and_when_it_ends_and_not_between() -> None:
    peer = Peer(PeerId("me"), None, Settings(segments_max=1))
    told = []
    for adopters, segments in ((0, 3), (1, 1), (1, 2), (1, 3), (2, 3), (1, 1), (1, 1), (0, 0)):
        peer.replicator.pins = dict.fromkeys(map(PeerId, "ab"[:adopters]))  # type: ignore[arg-type]
        peer.replicator.segments = [None] * segments  # type: ignore[list-item]
        told.append(peer._keep_pace())
    assert told == [[], [], [Congested(True)], [], [], [Congested(False)], [], []]
