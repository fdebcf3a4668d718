"""Adopting a replica: what is kept for it, who gives, and what comes of it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.events import (
    Adopt,
    Computed,
    Deliver,
    Departed,
    Effect,
    Forget,
    Joined,
    Own,
    Received,
    Returned,
    Send,
    Started,
    Ticked,
)
from gossip.lanes.adopt import BACKOFF_MAX_S, GIVE_UP_S, REPEAT_S
from gossip.lanes.origin import Reader
from gossip.lanes.peer import Peer, Settings
from gossip.lanes.replicate import Replicator
from gossip.lanes.roster import RETURN_S
from gossip.marks import Mark, Unit, packed
from gossip.messages import Advert, Message, PeerId, Pin, Pinned, Pull, Range, State, StateRequest, Unknown, Unpin

pytestmark = pytest.mark.usefixtures("checked")

ME, A, B, X = PeerId("me"), PeerId("a"), PeerId("b"), PeerId("x")
UPDATE = Packed.of({"w": np.ones(3)})
REPLICA = Packed.of({"w": np.full(3, 7.0)})


def origin(*readers: PeerId) -> Replicator:
    lane = Replicator(ME, pull_timeout_s=1.5, pulls_max=8, coalesce=True)
    for reader in readers:
        lane.join(reader, reads=True, read=True, level=True)
    lane.members.add(X)  # it came late: introduced, and no reader yet
    return lane


def publish(lane: Replicator, count: int) -> None:
    for _ in range(count):
        lane.publish(UPDATE, ())


def boundaries(lane: Replicator) -> list[int]:
    return [segment.hi for segment in lane.segments]


def sent(effects: list[Effect]) -> list[tuple[PeerId, Message]]:
    return [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]


def peer(*, ready: bool, others: tuple[PeerId, ...] = (A, B)) -> Peer:
    """One that knows the others, who have told that they have a replica."""
    one = Peer(ME, UPDATE.layout, chance=random.Random(1))
    one.handle(Started({}, ready), 0.0)
    for other in others:
        one.handle(Joined(other, level=False), 0.0)
    return one


def adopting(donor: PeerId = A) -> tuple[Peer, int]:
    """One that came late and has pinned, and the k of its pins."""
    one = peer(ready=False)
    pins = sent(one.handle(Received(Advert(donor, 4, {})), 0.1))
    assert [to for to, _ in pins] == [A, B]
    message = pins[0][1]
    assert isinstance(message, Pin)
    assert message.donor == donor
    return one, message.k


# -------------------------------------------------------------------------------------------------------------- pins


def test_a_pin_keeps_every_boundary_at_which_the_donor_may_stand() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))  # A stands at 0 or 2
    publish(lane, 2)
    assert sent(lane.on_pin(Pin(X, A, 1))) == [(X, Pinned(ME, 1))]
    lane.on_pull(Pull(A, 2, 2))  # now at 2 or 4
    publish(lane, 1)
    lane.on_pull(Pull(A, 4, 3))  # now at 4 or 5
    lane.on_pull(Pull(A, 5, 4))
    lane.on_pull(Pull(B, 0, 1))
    lane.on_pull(Pull(B, 5, 2))
    assert lane.pins[X].boundaries == {0, 2, 4, 5}
    assert boundaries(lane) == [2, 4, 5]  # the readers have everything


@pytest.mark.parametrize("stands", [0, 2, 4])
def test_the_adopter_goes_on_from_wherever_its_donor_stood(stands: int) -> None:
    lane = origin(A)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pin(Pin(X, A, 1))
    publish(lane, 2)
    lane.on_pull(Pull(A, 2, 2))
    publish(lane, 1)
    ((to, answer),) = sent(lane.on_pull(Pull(X, stands, 2)))
    assert (to, answer) == (X, Range(ME, stands + 1, 5, 2))
    assert lane.readers[X] == Reader(stands, 5, 2)
    assert X not in lane.pins


def test_a_pull_from_before_the_pin_is_void() -> None:
    lane = origin(A)
    lane.join(X, reads=True, read=True, level=True)
    publish(lane, 2)
    lane.on_pin(Pin(X, A, 7))
    assert lane.on_pull(Pull(X, 0, 6)) == []


def test_a_pin_or_a_request_of_an_adoption_that_is_over_pins_nothing() -> None:
    """It came late, or twice. An advert from before would end it, and take the reader back to where it was then."""
    lane = origin(A)
    lane.join(X, reads=True, read=True, level=True)
    publish(lane, 2)
    lane.on_pull(Pull(X, 0, 9))
    assert lane.on_pin(Pin(X, A, 7)) == []
    assert not lane.give_to(X, 7)
    assert lane.pins == {}


def test_an_answer_from_before_an_adoption_that_was_given_up_is_not_applied() -> None:
    one = peer(ready=True)
    ((_, pull),) = sent(one.handle(Received(Advert(A, 4, {})), 0.1))
    assert isinstance(pull, Pull)
    one.handle(Received(Unknown(B, 0, 1)), 0.2)
    assert one.adopter is not None
    assert one.adopter.under_way
    one.handle(Ticked(), 0.2 + GIVE_UP_S)
    assert not one.adopter.under_way
    late = Range(A, 1, 4, pull.k, (), UPDATE.layout, UPDATE)
    effects = one.handle(Received(late), 0.3 + GIVE_UP_S)
    assert not any(isinstance(effect, Deliver) for effect in effects)
    assert one.replicator.frontiers()[A] == 0


def test_a_lane_that_a_replica_does_not_hold_is_read_from_its_beginning() -> None:
    lane = origin(A, B)
    lane.start({A: 5, B: 4})
    lane.start({A: 7})
    assert lane.frontiers() == {A: 7, B: 0, ME: 0}
    assert {message.frontier for _, message in sent(lane.pulls(1.0)) if isinstance(message, Pull)} == {0}


def test_a_lane_that_is_new_with_a_replica_is_asked_for_nothing_until_its_peer_says_more() -> None:
    lane = origin(A)
    lane.start({A: 1, X: 3})
    assert lane.pulls(1.0) == []
    for n, asked in ((3, []), (4, [X])):
        lane.heard(X, n)
        assert [to for to, _ in sent(lane.pulls(1.0))] == asked


def test_who_does_not_answer_is_asked_again_when_it_is_back() -> None:
    lane = origin(A)
    lane.heard(A, 3)
    lane.reach(A, False)
    assert lane.pulls(1.0) == []
    lane.reach(A, True)
    assert [to for to, _ in sent(lane.pulls(1.0))] == [A]


def test_progress_of_one_that_was_not_asked_changes_nothing() -> None:
    lane = origin(A)
    lane.heard(A, 3)
    lane.progressed(A, 1.0)
    lane.progressed(X, 1.0)
    assert lane.deadline() == float("inf")


def test_an_advert_of_after_an_adoption_makes_pulls_of_before_it_void() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(B, 0, 3))
    lane.on_pin(Pin(B, A, 7))
    lane.acknowledge(B, 2, 8)
    assert lane.readers[B] == Reader(2, 2, 7)
    assert lane.on_pull(Pull(B, 2, 6)) == []
    publish(lane, 1)
    assert sent(lane.on_pull(Pull(B, 2, 9))) == [(B, Range(ME, 3, 3, 9))]


def test_a_reader_that_adopted_what_was_behind_its_last_answer_stands_there() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 2, 2))
    publish(lane, 1)
    lane.on_pull(Pull(B, 0, 1))  # the answer, up to 3, is on its way yet
    lane.on_pin(Pin(B, A, 7))  # A stands at 2
    lane.acknowledge(B, 2, 8)
    assert lane.readers[B] == Reader(2, 2, 8)
    assert lane.pins == {}


def test_a_member_that_says_it_has_everything_is_a_reader_from_there() -> None:
    for k in (0, 4):
        lane = origin(A)
        publish(lane, 3)
        lane.acknowledge(X, 3, k)
        assert lane.readers[X] == Reader(3, 3, k)


def test_a_pin_that_a_newer_one_overtook_changes_nothing() -> None:
    lane = origin(A, B)
    lane.on_pin(Pin(X, A, 3))
    assert lane.on_pin(Pin(X, B, 2)) == []
    assert (lane.pins[X].donor, lane.pins[X].k) == (A, 3)


def test_who_gave_up_its_adoption_says_by_an_advert_that_it_stands_where_it_stood() -> None:
    """Whatever was pinned for it goes: also if nothing else has changed."""
    lane = origin(A, B)
    publish(lane, 1)
    for reader in (A, B):
        lane.on_pull(Pull(reader, 0, 1))
        lane.on_pull(Pull(reader, 1, 2))
    publish(lane, 1)
    lane.on_pin(Pin(B, A, 7))
    lane.on_pull(Pull(A, 1, 3))
    lane.on_pull(Pull(A, 2, 4))
    assert lane.acknowledge(B, 1, 8) == []
    assert lane.pins == {}
    assert lane.acknowledge(B, 2, 8) == [Forget(2)]


def test_what_was_pinned_for_one_that_stands_where_it_stood_is_forgotten_at_once() -> None:
    lane = origin(A, B)
    publish(lane, 1)
    for reader in (A, B):
        lane.on_pull(Pull(reader, 0, 1))
        lane.on_pull(Pull(reader, 1, 2))
    publish(lane, 1)
    lane.on_pull(Pull(B, 1, 3))
    lane.on_pull(Pull(B, 2, 4))
    lane.on_pin(Pin(B, A, 7))  # A stands at 1
    lane.on_pull(Pull(A, 1, 3))
    assert lane.on_pull(Pull(A, 2, 4)) == []
    assert lane.acknowledge(B, 2, 8) == [Forget(2)]


def test_who_pulls_from_where_it_did_not_pin_is_no_reader_at_once() -> None:
    lane = origin(A)
    publish(lane, 1)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pin(Pin(X, A, 1))  # at 0 or 1
    publish(lane, 2)
    assert sent(lane.on_pull(Pull(X, 2, 2))) == [(X, Unknown(ME, 2, 2))]
    assert X not in lane.readers
    assert lane.pins == {}


def test_who_adopts_our_own_replica_may_come_out_where_we_stand_whoever_was_to_give_it_before() -> None:
    lane = origin(A)
    publish(lane, 2)
    lane.on_pin(Pin(X, ME, 1))
    assert lane.pins[X].boundaries == set()
    for number in (1, 1, 2):
        publish(lane, 1)
        assert lane.give_to(X, number)
        assert lane.pins[X].donor == ME
        assert lane.pins[X].k == number
    assert lane.pins[X].boundaries == {5}
    lane.pins.clear()
    lane.on_pin(Pin(X, A, 3))
    lane.give_to(X, 4)
    assert (lane.pins[X].donor, lane.pins[X].boundaries) == (ME, {5})


def test_without_readers_all_is_forgotten_that_was_published() -> None:
    lane = origin()
    publish(lane, 3)
    assert lane.forgotten == 3


def test_an_answer_to_the_last_pull_before_an_adoption_is_void_and_to_the_next_one_not() -> None:
    lane = origin(A)
    lane.void = 4
    for k, applies in ((4, False), (5, True)):
        assert lane.is_next(Range(A, 1, 1, k, (), UPDATE.layout, UPDATE)) == applies


def test_who_does_not_know_the_donor_does_not_pin() -> None:
    lane = origin(A)
    assert lane.on_pin(Pin(X, B, 1)) == []
    assert lane.pins == {}


def test_who_pulls_again_has_given_up_its_adoption_whether_or_not_it_could_say_so() -> None:
    lane = origin(A, B)
    publish(lane, 1)
    lane.on_pin(Pin(B, A, 1))
    publish(lane, 1)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 2, 2))
    lane.on_pull(Pull(B, 0, 2))
    assert lane.pins == {}
    publish(lane, 5)
    assert boundaries(lane) == [2, 7]


def test_for_an_adopter_that_fell_silent_what_was_kept_is_kept_and_grows_no_more() -> None:
    one = peer(ready=True)
    one.handle(Received(Pin(A, B, 1)), 0.1)
    one.handle(Departed(A), 1.0)
    for turn in range(20):
        one.handle(Computed(UPDATE), turn)
        one.handle(Received(Pull(B, turn, turn + 1)), turn)
    assert 0 in one.replicator.pins[A].boundaries
    assert len(one.replicator.pins[A].boundaries) <= 2
    assert len(boundaries(one.replicator)) <= 4
    one.handle(Received(Pin(A, B, 1)), 21.0)  # it was only cut off, and still wants to adopt
    assert {19, 20} & one.replicator.pins[A].boundaries


def test_an_advert_from_amid_an_adoption_does_not_end_the_pin() -> None:
    lane = origin(A, B)
    publish(lane, 1)
    lane.on_pin(Pin(B, A, 7))
    lane.acknowledge(B, 0, 7)  # where it stands until it has adopted
    publish(lane, 1)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 2, 2))  # A gives its replica now, and goes on
    publish(lane, 1)
    lane.on_pull(Pull(A, 2, 3))
    lane.acknowledge(A, 3)
    lane.acknowledge(B, 2, 8)
    assert lane.pins == {}
    assert sent(lane.on_pull(Pull(B, 2, 9))) == [(B, Range(ME, 3, 3, 9))]


def test_who_is_level_by_an_adoption_that_was_not_pinned_need_not_pull_to_say_so() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(B, 0, 1))
    lane.on_pull(Pull(A, 0, 1))
    publish(lane, 1)
    lane.acknowledge(A, 3, 0)  # older than its pull, and nothing that it was served
    assert lane.behind() == (A, B)
    lane.acknowledge(A, 3, 1)  # newer than that pull, which is the first of all
    lane.acknowledge(B, 3, 4)
    assert lane.behind() == ()
    assert lane.segments == []


def test_who_adopted_while_it_was_cut_off_goes_on_where_it_stands_if_a_segment_begins_there() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 2, 2))
    publish(lane, 1)
    lane.on_pull(Pull(B, 0, 1))  # B stands at 0 or 3, and A at 2: segments begin at 1 and 3
    ((to, answer),) = sent(lane.on_pull(Pull(B, 2, 2)))  # it adopted A's replica, and we were not asked to pin
    assert (to, answer) == (B, Range(ME, 3, 3, 2))
    assert lane.readers[B] == Reader(2, 3, 2)
    publish(lane, 1)
    assert sent(lane.on_pull(Pull(B, 1, 3))) == [(B, Unknown(ME, 1, 3))]  # in the middle of a segment


def test_a_pull_that_an_advert_overtook_leaves_the_reader_where_it_may_stand() -> None:
    lane = origin(A, B)
    publish(lane, 1)
    lane.on_pull(Pull(A, 0, 1))
    lane.acknowledge(A, 1)
    assert sent(lane.on_pull(Pull(A, 0, 1))) == [(A, Unknown(ME, 0, 1))]  # a copy: nothing new
    publish(lane, 1)
    assert sent(lane.on_pull(Pull(A, 0, 2))) == [(A, Range(ME, 1, 1, 2))]
    assert sent(lane.on_pull(Pull(A, 1, 3))) == [(A, Range(ME, 2, 2, 3))]


def test_an_unpin_releases_what_was_kept_and_one_of_an_older_pin_does_not() -> None:
    lane = origin(A)
    publish(lane, 1)
    lane.on_pin(Pin(X, A, 3))
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 1, 2))
    lane.on_unpin(Unpin(X, 2))
    assert boundaries(lane) == [1]
    lane.on_unpin(Unpin(X, 3))
    assert boundaries(lane) == []


def test_what_was_pinned_before_goes_when_another_donor_is_chosen_or_nobody_comes_back() -> None:
    lane = origin(A, B)
    publish(lane, 1)
    lane.on_pin(Pin(X, A, 1))  # A stands at 0
    for reader in (A, B):
        lane.on_pull(Pull(reader, 0, 1))
        lane.on_pull(Pull(reader, 1, 2))
    assert boundaries(lane) == [1]
    assert lane.on_pin(Pin(X, B, 2)) == [Forget(1), Send(X, Pinned(ME, 2))]  # and B at 1
    publish(lane, 1)
    for reader in (A, B):
        lane.on_pull(Pull(reader, 1, 3))
        lane.on_pull(Pull(reader, 2, 4))
    assert boundaries(lane) == [2]
    assert lane.forget_reader(X) == [Forget(2)]
    publish(lane, 1)
    assert lane.forget_reader(A) == []
    assert lane.forget_reader(B) == [Forget(3)]
    assert lane.readers == {}


def test_a_pin_follows_a_donor_that_an_adoption_moved() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 2, 2))
    publish(lane, 1)
    lane.on_pull(Pull(B, 0, 1))
    lane.on_pin(Pin(X, B, 1))
    lane.on_pull(Pull(B, 2, 2))  # it adopted A's replica while it was cut off
    assert lane.pins[X].boundaries == {0, 2, 3}
    publish(lane, 2)
    lane.acknowledge(B, 5, 9)  # and now that of one who has everything
    assert lane.pins[X].boundaries == {0, 2, 3, 5}


def test_what_is_pinned_for_one_that_died_does_not_grow() -> None:
    lane = origin(A)
    lane.on_pin(Pin(X, A, 1))
    publish(lane, 1)
    lane.on_pull(Pull(A, 0, 1))  # at 0 or 1
    lane.reach(X, False)
    for number in range(1, 50):
        publish(lane, 1)
        lane.on_pull(Pull(A, number, number + 1))
    assert lane.pins[X].boundaries == {0, 1}
    assert boundaries(lane) == [1, 49, 50]


def test_what_is_pinned_for_one_that_was_cut_off_goes_on_where_its_donor_stands() -> None:
    lane = origin(A)
    lane.on_pin(Pin(X, A, 1))
    lane.reach(X, False)
    for number in range(3):
        publish(lane, 1)
        lane.on_pull(Pull(A, number, number + 1))
    lane.reach(X, True)
    assert lane.pins[X].boundaries == {0, 2, 3}
    publish(lane, 1)
    lane.on_pull(Pull(A, 3, 4))
    assert lane.pins[X].boundaries == {0, 2, 3, 4}
    ((_, answer),) = sent(lane.on_pull(Pull(X, 3, 2)))
    assert answer == Range(ME, 4, 4, 2)


def test_a_pin_reaches_where_a_donor_comes_out_that_adopts_a_replica_itself() -> None:
    lane = origin(A, B)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    publish(lane, 1)
    lane.on_pin(Pin(B, A, 1))  # B adopts from A, and X from B, before or after B has A's replica
    lane.on_pin(Pin(X, B, 1))
    lane.on_pull(Pull(A, 2, 2))
    assert lane.pins[X].boundaries == {0, 2, 3}
    lane.on_pull(Pull(A, 3, 3))
    ((_, answer),) = sent(lane.on_pull(Pull(B, 2, 2)))
    assert answer == Range(ME, 3, 3, 2)
    ((_, answer),) = sent(lane.on_pull(Pull(X, 2, 2)))
    assert answer == Range(ME, 3, 3, 2)


def test_donors_that_adopt_from_each_other_are_no_endless_matter() -> None:
    lane = origin(A, B)
    lane.on_pin(Pin(A, B, 1))
    lane.on_pin(Pin(B, A, 1))
    publish(lane, 2)
    lane.give_to(A, 1)
    assert lane.pins[B].boundaries == {0, 2}


def test_of_only_two_each_gives_its_replica_to_the_other() -> None:
    one = peer(ready=True, others=(A,))
    assert (A, State(ME, {A: 0, ME: 0}, 5)) in sent(one.handle(Received(StateRequest(A, 5, {}, (A,))), 0.3))
    one = peer(ready=True, others=(A,))
    assert (A, State(ME, {A: 0, ME: 0}, 5)) in sent(one.handle(Received(StateRequest(A, 5, {}, (A, B))), 0.3))


def test_who_is_given_a_replica_without_marks_is_told_of_epochs_that_are_closed_and_who_adopts_of_those_dropped() -> (
    None
):
    one = peer(ready=True, others=(A,))
    mark = packed([Mark(Unit(0, 0, 0), 0)])
    one.handle(Received(Range(A, 1, 1, 1, mark, UPDATE.layout, UPDATE)), 0.1)
    one.identities.close(1)
    ((_, state),) = sent(one.adopter.on_request(StateRequest(X, 5), set(), [A], one.identities))  # type: ignore[union-attr]
    assert state == State(ME, {A: 1, ME: 0}, 5, closed=1, units=1)
    ((_, state),) = sent(one.adopter.on_request(StateRequest(A, 5, {}, (A,)), set(), [A], one.identities))  # type: ignore[union-attr]
    assert state == State(ME, {A: 1, ME: 0}, 5, {A: mark}, closed=0, units=1)


def test_nothing_is_kept_for_a_stranger() -> None:
    lane, stranger = origin(A), PeerId("stranger")
    publish(lane, 1)
    assert lane.on_pin(Pin(stranger, A, 1)) == []
    lane.give_to(stranger, 1)
    assert sent(lane.on_pull(Pull(stranger, 0, 2))) == [(stranger, Unknown(ME, 0, 2))]
    assert (lane.pins, set(lane.readers)) == ({}, {A})
    lane.on_pull(Pull(A, 0, 1))
    lane.acknowledge(A, 1)
    assert lane.segments == []


# ------------------------------------------------------------------------------------------------------------- donors


def test_a_peer_without_a_replica_is_no_donor() -> None:
    one = peer(ready=False)
    assert sent(one.handle(Received(StateRequest(B, 1)), 0.1)) == []
    assert sent(one.handle(Received(Advert(A, 0, {}, ready=False)), 0.2)) == []  # and nobody asks one
    pins = sent(one.handle(Received(Advert(B, 0, {})), 0.3))
    assert {message for _, message in pins} == {Pin(ME, B, 1)}


def test_a_donor_that_is_behind_stays_silent_until_it_is_not() -> None:
    one = peer(ready=True)
    request = Received(StateRequest(A, 9, {B: 2}, (A, B, ME)))
    assert sent(one.handle(request, 0.1)) == []
    one.handle(Received(Range(B, 1, 2, 1, (), UPDATE.layout, UPDATE)), 0.2)
    assert (A, State(ME, {A: 0, B: 2, ME: 0}, 9)) in sent(one.handle(request, 0.3))


def test_a_donor_that_has_not_heard_of_a_lane_is_behind_of_whoever_has_some_of_it() -> None:
    one = peer(ready=True)
    for seen in (1, 0):
        answers = sent(one.handle(Received(StateRequest(B, 5, {PeerId("new"): seen}, (ME, A))), 0.4))
        assert any(isinstance(message, State) for _, message in answers) == (seen == 0)


def test_a_donor_need_not_have_all_of_the_lane_of_the_one_that_asks() -> None:
    one = peer(ready=True)
    request = StateRequest(A, 9, {A: 5}, (B, ME))
    assert (A, State(ME, {A: 0, B: 0, ME: 0}, 9)) in sent(one.handle(Received(request), 0.1))


def test_a_donor_does_not_answer_one_that_took_for_dead_whom_the_donor_hears() -> None:
    one = peer(ready=True)
    without_b = Received(StateRequest(A, 9, {}, (ME,)))
    assert sent(one.handle(without_b, 0.1)) == []
    assert sent(one.handle(Received(StateRequest(A, 9, {}, (ME, B))), 0.2)) == [(A, State(ME, {A: 0, B: 0, ME: 0}, 9))]
    one.handle(Departed(B), 0.3)
    assert sent(one.handle(without_b, 0.4)) == [(A, State(ME, {A: 0, B: 0, ME: 0}, 9))]


def test_one_outside_of_the_swarm_need_not_pin_to_be_given_a_replica() -> None:
    one = peer(ready=True)
    assert sent(one.handle(Received(StateRequest(X, 9)), 0.1)) == [(X, State(ME, {A: 0, B: 0, ME: 0}, 9))]


def test_the_donor_keeps_its_lane_where_the_replica_stands() -> None:
    lane = origin(A)
    publish(lane, 2)
    lane.give_to(X, 1)
    publish(lane, 2)
    lane.on_pull(Pull(A, 0, 1))
    lane.on_pull(Pull(A, 4, 2))
    assert boundaries(lane) == [4]
    assert sent(lane.on_pull(Pull(X, 2, 2))) == [(X, Range(ME, 3, 4, 2))]


def test_an_overtaken_request_neither_gets_a_replica_nor_ends_the_newer_pin() -> None:
    one = peer(ready=True)
    one.handle(Received(Pin(A, B, 9)), 0.1)
    assert sent(one.handle(Received(StateRequest(A, 8, {}, (B, ME))), 0.2)) == []
    assert one.replicator.pins[A].donor == B


# ----------------------------------------------------------------------------------------------------------- adopters


def test_the_replica_is_asked_for_when_all_have_pinned() -> None:
    one, k = adopting()
    assert sent(one.handle(Received(Pinned(A, k)), 0.2)) == []
    assert sent(one.handle(Received(Pinned(A, k)), 0.2)) == []
    assert sent(one.handle(Received(Pinned(B, k + 1)), 0.2)) == []
    assert sent(one.handle(Received(Pinned(B, k)), 0.2)) == [(A, StateRequest(ME, k, {A: 0, B: 0}, (ME, A, B)))]


def test_one_that_came_late_stands_where_its_donor_stood() -> None:
    one, k = adopting()
    for other in (A, B):
        one.handle(Received(Pinned(other, k)), 0.2)
    assert not one.ready
    effects = one.handle(Received(State(A, {A: 4, B: 3}, k, {}, REPLICA.layout, REPLICA)), 0.3)
    assert effects[0] == Adopt(REPLICA)
    assert one.ready
    assert one.replicator.frontiers() == {A: 4, B: 3, ME: 0}
    assert not one.pending


def test_an_answer_to_a_pull_of_before_is_not_applied_though_it_would_fit() -> None:
    """Seed 1168 of the proving ground: its origin has forgotten where it ends."""
    one, k = adopting()
    for other in (A, B):
        one.handle(Received(Pinned(other, k)), 0.2)
    effects = one.handle(Received(State(A, {A: 4, B: 3}, k, {}, REPLICA.layout, REPLICA)), 0.3)
    effects += one.handle(Received(Advert(B, 5, {})), 0.3)
    one.handle(Received(Range(B, 4, 4, k, (), UPDATE.layout, UPDATE)), 0.4)
    assert one.replicator.frontiers()[B] == 3
    ((_, pull),) = [(to, message) for to, message in sent(effects) if to == B and isinstance(message, Pull)]
    one.handle(Received(Range(B, 4, 5, pull.k, (), UPDATE.layout, UPDATE)), 0.5)
    assert one.replicator.frontiers()[B] == 5


def test_a_replica_that_was_not_asked_for_is_not_adopted() -> None:
    one, k = adopting()
    for other in (A, B):
        one.handle(Received(Pinned(other, k)), 0.2)
    for giver, number in ((A, k + 1), (B, k)):
        state = State(giver, {A: 4, B: 3}, number, {}, REPLICA.layout, REPLICA)
        assert not any(isinstance(effect, Adopt) for effect in one.handle(Received(state), 0.3))
    assert not one.ready


def test_own_updates_that_the_donor_had_not_seen_are_added() -> None:
    one = peer(ready=True)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    pins = sent(one.handle(Received(Unknown(A, 0, 1)), 0.2))
    k = next(message.k for _, message in pins if isinstance(message, Pin))
    for other in (A, B):
        one.handle(Received(Pinned(other, k)), 0.3)
    for _ in range(3):
        one.handle(Computed(UPDATE), 0.4)
    effects = one.handle(Received(State(A, {A: 4, B: 0}, k, {}, REPLICA.layout, REPLICA)), 0.5)
    assert effects[:2] == [Adopt(REPLICA), Deliver(ME, 1, 3, Own(1, 3))]
    assert one.replicator.frontiers() == {A: 4, B: 0, ME: 3}
    assert one.adopter is not None
    assert one.adopter.done == 1


def test_own_attempts_can_be_taken_back_after_an_adoption_whether_the_donor_had_seen_them_or_not() -> None:
    one = peer(ready=True)
    units = Unit(0, 0, 0), Unit(0, 0, 1)
    one.handle(Computed(UPDATE, units[0], 1), 0.1)
    one.handle(Received(Pull(A, 0, 1)), 0.1)
    one.handle(Computed(UPDATE, units[1], 1), 0.1)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    pins = sent(one.handle(Received(Unknown(A, 0, 1)), 0.2))
    k = next(message.k for _, message in pins if isinstance(message, Pin))
    for other in (A, B):
        one.handle(Received(Pinned(other, k)), 0.3)
    state = State(A, {A: 4, B: 0, ME: 1}, k, {}, REPLICA.layout, REPLICA, closed=1, units=5)  # it has the first of them
    assert Deliver(ME, 2, 2, Own(2, 2)) in one.handle(Received(state), 0.5)
    assert one.identities.units == 6
    assert one.identities.watched == 2
    for number, unit in enumerate(units, 1):
        assert one.identities.standing(unit) == {(1, ME)}
        marks = packed([Mark(unit, 0)])
        one.handle(Received(Range(B, number, number, 99, marks, UPDATE.layout, UPDATE)), 0.6)
        assert one.units.withdrawn == number
        assert one.identities.units == 6
    assert one.identities.watched == 0


def test_who_has_a_replica_and_gives_up_another_goes_on_with_its_own() -> None:
    one = peer(ready=True)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    one.handle(Received(Unknown(A, 0, 1)), 0.2)
    effects = one.handle(Ticked(), 0.2 + GIVE_UP_S)
    assert {to for to, message in sent(effects) if isinstance(message, Unpin)} == {A, B}
    assert not one.pending
    effects = one.handle(Ticked(), 20.0)
    assert [to for to, message in sent(effects) if isinstance(message, Pull)] == [A]
    assert not any(isinstance(message, Pin) for _, message in sent(effects))


@pytest.mark.parametrize("seed", range(5))
def test_who_has_less_of_a_dead_lane_adopts_from_the_one_that_has_most(seed: int) -> None:
    one = Peer(ME, UPDATE.layout, chance=random.Random(seed))
    one.handle(Started({}), 0.0)
    for other in (A, B, X):
        one.handle(Joined(other), 0.0)
    for other, seen in ((A, 3), (B, 5)):
        one.handle(Received(Advert(other, 0, {X: seen})), 0.1)
    one.handle(Departed(X), 1.0)
    assert not one.pending
    effects = one.handle(Ticked(), 1.0 + one.settings.settle_s)
    assert {message.donor for _, message in sent(effects) if isinstance(message, Pin)} == {B}


def test_nothing_is_pulled_or_applied_while_a_replica_is_on_its_way() -> None:
    one = peer(ready=True)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    one.handle(Received(Unknown(A, 0, 1)), 0.2)
    assert one.adopter is not None
    assert one.adopter.under_way
    before = one.replicator.frontiers()
    effects = one.handle(Received(Range(A, 1, 4, 1, (), UPDATE.layout, UPDATE)), 0.3)
    effects += one.handle(Received(Advert(B, 2, {})), 0.4)
    assert not any(isinstance(effect, Deliver) for effect in effects)
    assert not any(isinstance(message, Pull) for _, message in sent(effects))
    assert one.replicator.frontiers() == before


def test_who_adopts_still_pins_for_others_and_gives_its_replica() -> None:
    one = peer(ready=True)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    one.handle(Received(Unknown(A, 0, 1)), 0.2)
    assert (B, Pinned(ME, 5)) in sent(one.handle(Received(Pin(B, ME, 5)), 0.3))
    request = StateRequest(B, 5, {}, (ME, A))
    assert (B, State(ME, {A: 0, B: 0, ME: 0}, 5)) in sent(one.handle(Received(request), 0.4))


def test_when_time_is_up_the_pins_are_taken_back_and_another_try_follows() -> None:
    one, k = adopting()
    told: list[tuple[PeerId, Message]] = []
    now = 0.1
    while now < 0.1 + GIVE_UP_S:
        now = one.deadline()
        told = sent(one.handle(Ticked(), now))
    assert told == [(A, Unpin(ME, k)), (B, Unpin(ME, k))]
    assert one.adopter is not None
    assert now < one.adopter.deadline() <= now + BACKOFF_MAX_S
    one.handle(Received(Advert(B, 0, {})), now)
    again: list[tuple[PeerId, Message]] = []
    while not again:
        now = one.deadline()
        again = sent(one.handle(Ticked(), now))
    assert {message.k for _, message in again if isinstance(message, Pin)} == {k + 2}


def test_a_pin_that_may_be_lost_is_repeated_however_rare_adverts_are() -> None:
    one = Peer(ME, UPDATE.layout, Settings(advert_period_s=60.0), random.Random(1))
    one.handle(Started({}, ready=False), 0.0)
    for other in (A, B):
        one.handle(Joined(other, level=False), 0.0)
    pins = sent(one.handle(Received(Advert(A, 4, {})), 0.1))
    one.handle(Ticked(), 0.2)
    assert one.deadline() == 0.1 + REPEAT_S
    assert sent(one.handle(Ticked(), 0.1 + REPEAT_S)) == pins


def test_a_donor_that_falls_silent_is_given_up_for_one_that_is_there() -> None:
    one, k = adopting()
    one.handle(Received(Advert(B, 0, {})), 0.2)
    assert (B, Unpin(ME, k)) in sent(one.handle(Departed(A), 0.3))
    pins: list[tuple[PeerId, Message]] = []
    while not pins:
        pins = sent(one.handle(Ticked(), one.deadline()))
    assert pins == [(B, Pin(ME, B, k + 2))]


def test_a_replica_that_comes_in_slowly_is_waited_for() -> None:
    one, k = adopting()
    assert one.adopter is not None
    one.adopter.progressed(A, 5.0)
    one.adopter.progressed(B, 6.0)  # who is not asked
    assert sent(one.handle(Ticked(), 0.1 + GIVE_UP_S + 1.0)) == []
    assert (B, Unpin(ME, k)) in sent(one.handle(Ticked(), 5.0 + GIVE_UP_S))


def test_when_a_cut_heals_nobody_is_buried_before_the_others_had_time_to_be_heard() -> None:
    one = Peer(ME, UPDATE.layout, Settings(), random.Random(1))
    one.handle(Started({}), 0.0)
    for other in (A, B):
        one.handle(Joined(other), 0.0)
    for other in (A, B):
        one.handle(Departed(other), 30.0)
    one.handle(Returned(A), 50.0)
    first = one.handle(Received(Advert(A, 1, {B: 5})), 50.0)  # it was on the other side with B
    assert not any(isinstance(message, Pin) for _, message in sent(first))
    one.handle(Received(Advert(A, 1, {B: 5})), 50.0 + RETURN_S - 0.1)
    assert not one.pending
    late = one.handle(Received(Advert(A, 1, {B: 5})), 50.0 + RETURN_S)  # B is dead after all
    assert [to for to, message in sent(late) if isinstance(message, Pin)] == [A]


def test_one_that_adopted_twice_has_a_replica_and_gives_up_a_third_without_another_try() -> None:
    one, k = adopting()
    adopter = one.adopter
    assert adopter is not None
    for count in (1, 2):
        for other in (A, B):
            one.handle(Received(Pinned(other, k)), count)
        voided = one.replicator.k
        one.handle(Received(State(A, {A: 4, B: 0}, k, {}, REPLICA.layout, REPLICA)), count)
        assert adopter.done == count
        assert one.replicator.void == voided + 1
        one.handle(Received(Advert(A, 5, {})), count)
        one.handle(Received(Advert(B, 0, {}, ready=False)), count)
        pins = sent(one.handle(Received(Unknown(A, 4, 1)), count))
        k = next(message.k for _, message in pins if isinstance(message, Pin))
    one.handle(Ticked(), 2.0 + GIVE_UP_S)
    assert not adopter.under_way
    assert not adopter.needed


def test_an_adoption_that_failed_may_be_tried_again_at_once_or_a_while_later() -> None:
    class Spread(random.Random):
        def uniform(self, a: float, b: float) -> float:
            asked.append((a, b))
            return a

    asked: list[tuple[float, float]] = []
    one = Peer(ME, UPDATE.layout, chance=Spread(1))
    one.handle(Started({}, ready=False), 0.0)
    one.handle(Joined(A, level=False), 0.0)
    one.handle(Received(Advert(A, 4, {})), 0.1)
    one.handle(Ticked(), 0.1 + GIVE_UP_S)
    assert asked == [(0, BACKOFF_MAX_S)]


def test_a_preferred_donor_that_is_there_no_more_is_not_asked() -> None:
    one = peer(ready=True)
    adopter = one.adopter
    assert adopter is not None
    adopter.preferred = X
    assert adopter.tick(9.0, [A, B], [A, B]) == []  # nothing calls for it
    adopter.needed = True
    assert {message.donor for _, message in sent(adopter.tick(9.0, [A], [A, B])) if isinstance(message, Pin)} == {A}
