"""One peer that mixes, told what happens, and what it wants done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Arrays, Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.events import (
    Adopt,
    Computed,
    Departed,
    Drained,
    Effect,
    Exhausted,
    Gated,
    Initialized,
    Joined,
    Leaving,
    Publish,
    Received,
    Resumed,
    Send,
    Settling,
    Tasked,
    Ticked,
    Warn,
)
from gossip.membership import Detection
from gossip.messages import Advert, Offer, PacketReply, PacketRequest, PeerId, Pull, State, StateRequest, Unit
from gossip.mix_peer import ERA, LIGHT, MixPeer, MixSettings
from gossip.mixing import DiLoCo, DPsgd, Every, GradientTracking, PairwiseExchange, PushSum, Strategy
from gossip.neighbors import Plan, number_of

ME, A, B = PeerId("b"), PeerId("a"), PeerId("c")
"""In the middle of a ring of three: everybody hears everybody."""
SETTINGS = MixSettings(round_s=1.0, gap_s=0.1, wait_s=5.0, advert_period_s=10.0, pull_timeout_s=1.5)
ONES = Packed.of({"w": np.ones(2)})


def peer(strategy: Strategy[Any], others: tuple[PeerId, ...] = (A, B), build: Any = topology.ring) -> MixPeer:
    made = MixPeer(ME, ONES.layout, Plan(build, strategy), np.random.default_rng(0), SETTINGS)
    for other in others:
        made.handle(Joined(other), 0.0)
    made.handle(Initialized(ONES), 0.0)
    return made


def active(strategy: Strategy[Any], **options: Any) -> MixPeer:
    """Its first round has begun, at time 0."""
    made = peer(strategy, **options)
    made.handle(Settling() if strategy.synchronous else Resumed(), 0.0)
    assert made.rounds == 1
    return made


def of(kind: Any, effects: list[Effect]) -> list[Any]:
    """What of one kind there is among effects, or among the messages that they send."""
    return [e for e in effects if isinstance(e, kind)] + [
        e.message for e in effects if isinstance(e, Send | Publish) and isinstance(e.message, kind)
    ]


def packet(sender: PeerId, n: int, round: int, k: int, newest: int | None = None, **arrays: Any) -> Received:
    payload = Packed.of({name: np.asarray(array, np.float64) for name, array in arrays.items()})
    scalars = {"generation": 0.0}  # as those strategies have it that know of any
    return Received(PacketReply(sender, n, newest or n, round, k, scalars, payload.layout, payload))


def offer(sender: PeerId, rounds: int, n: int) -> Received:
    return Received(Offer(sender, rounds, {ME: n} if n else {}))


def come(made: MixPeer, sender: PeerId, n: int, round: int, now: float, w: float) -> list[Effect]:
    """The neighbor offers packet `n`, it is asked for, and it comes."""
    (request,) = of(PacketRequest, made.handle(offer(sender, round + 1, n), now))
    return made.handle(packet(sender, n, round, request.k, x=[w, w]), now)


def take(made: MixPeer, reader: PeerId, n: int, now: float, k: int = 1) -> list[Any]:
    """The neighbor says that it has all up to `n`."""
    return of(PacketReply, made.handle(Received(PacketRequest(reader, n, k)), now))


# --------------------------------------------------------------------------------------------------------------- rounds


def test_it_rests_until_a_training_begins() -> None:
    made = peer(PushSum(), build=topology.exponential)
    made.handle(Ticked(), 50.0)
    assert made.rounds == 0
    made.handle(Resumed(), 50.0)
    assert made.rounds == 1


def test_a_round_follows_an_update_soon_and_nothing_late() -> None:
    made = active(PushSum(), build=topology.exponential)
    for reader in (A, B):
        assert take(made, reader, 0, 0.01)
        assert not take(made, reader, 1, 0.01)
    made.handle(Ticked(), 0.9)
    assert made.rounds == 1
    assert made.deadline() == 1.0
    made.handle(Computed(ONES), 0.95)
    assert (made.rounds, made.computed) == (2, 1)


def test_nobody_is_sent_more_than_it_takes() -> None:
    made = active(PushSum(), build=topology.exponential)
    weight = made.weight
    for now in (1.1, 2.2, 3.3):
        assert of(Offer, made.handle(Ticked(), now)) == []
    assert (made.rounds, made.weight) == (4, weight), "nobody has taken anything: nothing further is put there"
    take(made, A, 1, 3.4)
    made.handle(Ticked(), 4.4)
    assert made.weight < weight
    (for_a,), (for_b,) = take(made, A, 1, 4.5), take(made, B, 0, 4.5)
    assert (for_a.n, for_b.n, for_b.newest) == (2, 1, 1)
    assert not take(made, B, 1, 4.6)


def test_who_has_little_weight_left_gives_nothing_away() -> None:
    made = active(PushSum(), build=topology.exponential)
    now, n = 0.1, 1
    while n < 20:
        for reader in (A, B):
            take(made, reader, n, now)
        now, n = now + 1.0, n + 1
        made.handle(Ticked(), now)
    assert LIGHT / 3 < made.weight < LIGHT
    before = made.weight
    made.handle(Ticked(), now + 5.0)
    assert made.weight == before


def test_what_the_departed_did_not_take_comes_back_to_the_last_bit() -> None:
    made = active(PushSum(grid=2.0**-32), build=topology.exponential)
    take(made, A, 0, 0.1)
    take(made, A, 1, 0.1)
    assert made.weight < 0.4
    made.handle(Departed(B), 0.2)
    made.handle(Departed(A), 0.3)
    total = made.state.sent[number_of(A)]
    assert made.weight + float(total.w[0]) == 1.0, "what A has taken is not here; what B has not, is"
    assert float(made.state.sent[number_of(B)].w[0]) == 0.0


def test_a_lost_reply_is_asked_for_again() -> None:
    made = active(PushSum())
    (first,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.0))
    assert of(PacketRequest, made.handle(offer(A, 1, 1), 1.0)) == []
    (again,) = of(PacketRequest, made.handle(Ticked(), 1.5))
    assert (again.n, again.k > first.k) == (0, True)
    late = made.handle(packet(A, 1, 0, first.k, x=[3, 3]), 1.6)
    assert made.received == 0, "the answer to a request that was given up"
    assert not of(Adopt, late)


def test_who_does_not_know_that_its_packet_came_is_told_again() -> None:
    made = active(DPsgd())
    come(made, A, 1, 0, 0.1, 4.0)
    (told,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.2))
    assert told.n == 1


# ----------------------------------------------------------------------------------------------------------- in step


def test_a_synchronous_round_waits_for_all_and_for_all_to_take() -> None:
    made = active(DPsgd())
    come(made, A, 1, 0, 0.1, 4.0)
    take(made, A, 1, 0.2)
    take(made, B, 1, 0.2)
    np.testing.assert_array_equal(made.params(), [1, 1])
    effects = come(made, B, 1, 0, 0.3, 7.0)
    np.testing.assert_allclose(made.params(), [4, 4])
    (adopted,) = of(Adopt, effects)
    np.testing.assert_allclose(Packed(ONES.layout, adopted.payload.read(0, ONES.layout.nbytes)).arrays()["w"], [4, 4])
    assert made.rounds == 1
    made.handle(Ticked(), 1.0)
    assert made.rounds == 2


def test_what_is_computed_during_a_round_counts_from_the_next_one_on() -> None:
    made = active(DPsgd())
    made.handle(Computed(ONES), 0.1)
    assert (made.computed, made.pending) == (0, 1)
    for other in (A, B):
        take(made, other, 1, 0.2)
        come(made, other, 1, 0, 0.2, 4.0)
    assert (made.computed, made.pending) == (1, 0)
    np.testing.assert_allclose(made.params(), [4, 4])
    assert made.rounds == 2


def test_a_packet_of_a_neighbor_that_is_ahead_waits_and_makes_us_follow() -> None:
    made = active(DPsgd())
    come(made, A, 1, 0, 0.1, 4.0)
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    come(made, A, 2, 1, 0.2, 5.0)
    assert of(PacketRequest, made.handle(offer(A, 3, 3), 0.2))[0].n == 2, "no more is asked for, but it came"
    np.testing.assert_array_equal(made.params(), [1, 1])
    come(made, B, 1, 0, 0.3, 7.0)
    assert made.rounds == 2, "at once, though a second has not passed"
    take(made, A, 2, 0.3)
    take(made, B, 2, 0.3)
    come(made, B, 2, 1, 0.4, 6.0)
    np.testing.assert_allclose(made.params(), [(4 + 5 + 6) / 3] * 2)


def test_a_round_is_given_up_when_a_packet_does_not_come_and_it_is_late_then() -> None:
    made = active(DPsgd())
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(offer(B, 1, 1), 0.2)
    (asked,) = of(PacketRequest, made.handle(Ticked(), 5.1))
    assert made.deadline() <= 5.2
    made.handle(Ticked(), 5.2)
    assert made.given_up == 1
    np.testing.assert_allclose(made.params(), [2, 2])  # (1 + 1 + 4) / 3: its weight went to the own value
    made.handle(packet(B, 1, 0, asked.k, x=[7.0, 7.0]), 5.3)
    assert made.late == 1
    np.testing.assert_allclose(made.params(), [2, 2])


def test_a_neighbor_that_lives_and_has_not_begun_the_round_is_waited_for() -> None:
    made = active(DPsgd())
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    for now in (5.0, 50.0, 500.0):
        made.handle(Ticked(), now)
    assert (made.rounds, made.given_up) == (1, 0)
    take(made, B, 1, 500.1)
    come(made, B, 1, 0, 500.2, 7.0)
    np.testing.assert_allclose(made.params(), [4, 4])


def test_nobody_waits_for_one_that_has_begun_the_round_and_left_us_out() -> None:
    made = active(DPsgd())
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(offer(B, 1, 0), 0.2)
    assert made.given_up == 0
    np.testing.assert_allclose(made.params(), [2, 2])


# ----------------------------------------------------------------------------------------------------- rounds are steps


def training(strategy: Strategy[Any], tasks: int = 1) -> MixPeer:
    """A task has begun, at time 0."""
    made = peer(strategy)
    made.handle(Resumed(), 0.0)
    made.handle(Tasked(tasks), 0.0)
    return made


def finish(made: MixPeer, round: int, now: float, w: float = 1.0) -> None:
    """Both neighbors do their part in the open round."""
    for other in (A, B):
        take(made, other, round + 1, now)
        come(made, other, round + 1, round, now, w)


def test_there_is_a_round_when_there_is_a_step_and_not_by_the_clock() -> None:
    made = training(DPsgd())
    for now in (1.0, 10.0, 100.0):
        made.handle(Ticked(), now)
    assert made.rounds == 0
    made.handle(Computed(ONES), 100.0)
    assert (made.rounds, made.computed) == (1, 1)


def test_a_round_takes_one_step_and_settles_it_when_it_is_over() -> None:
    made = training(DPsgd(), tasks=3)
    for _ in range(3):
        made.handle(Computed(ONES), 0.1)
    assert (made.computed, made.pending, made.settled) == (1, 2, 0)
    finish(made, 0, 0.2)
    assert (made.computed, made.pending, made.settled) == (2, 1, 1)
    finish(made, 1, 0.3)
    assert (made.computed, made.pending, made.settled) == (3, 0, 2)
    finish(made, 2, 0.4)
    assert (made.rounds, made.settled) == (3, 3)


def test_a_step_that_counts_elsewhere_is_settled_after_those_before_it() -> None:
    made = training(DPsgd())
    made.handle(Computed(ONES, Unit(0, 0, 0)), 0.1)
    assert of(Gated, made.handle(Computed(ONES, Unit(0, 0, 0), 1), 0.1)) == [Gated(Unit(0, 0, 0))]
    assert made.settled == 0
    finish(made, 0, 0.2)
    assert made.settled == 2


def test_rounds_without_mixing_are_over_at_once() -> None:
    made = training(Every(3, DPsgd()))
    for step in range(2):
        made.handle(Computed(ONES), 0.1)
        assert (made.rounds, made.settled) == (step + 1, step + 1)
    made.handle(Computed(ONES), 0.1)
    assert (made.rounds, made.settled) == (3, 2)
    np.testing.assert_array_equal(made.params(), [4, 4])


def test_every_few_steps_is_every_few_steps_also_where_nobody_waits() -> None:
    made = training(Every(3, PushSum()))
    for now in (1.0, 10.0, 100.0):
        made.handle(Ticked(), now)
    assert made.rounds == 0
    for _ in range(4):
        made.handle(Computed(ONES), 100.0)
    assert (made.rounds, made.settled) == (4, 4)
    assert [made.outgoing[other].n for other in (A, B)] == [1, 1]
    made.handle(Tasked(0), 100.0)
    for now in (101.0, 102.0, 103.0):
        made.handle(Ticked(), now)
    assert made.rounds == 7, "idle, it goes by the clock, or what it is given would stay with it"


def test_who_computes_is_not_dragged_along_without_its_step() -> None:
    made = training(DPsgd())
    made.handle(offer(A, 1, 1), 0.1)
    made.handle(Ticked(), 100.0)
    assert made.rounds == 0
    made.handle(Computed(ONES), 100.0)
    assert made.rounds == 1


def test_who_is_idle_for_a_while_follows_without_a_step() -> None:
    made = training(DPsgd())
    made.handle(Tasked(0), 5.0)
    made.handle(offer(A, 1, 1), 5.1)
    assert (made.rounds, made.deadline()) == (0, 6.0)
    made.handle(Ticked(), 6.0)
    assert (made.rounds, made.computed) == (1, 0)


def test_before_its_first_task_a_peer_is_waited_for_a_little_longer() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(), 1.0)
    made.handle(offer(A, 1, 1), 1.1)
    made.handle(Ticked(), 5.9)
    assert made.rounds == 0
    made.handle(Ticked(), 6.0)
    assert made.rounds == 1


def test_who_is_told_that_it_gets_no_task_follows_from_the_start() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(0, 0.0), 1.0)
    assert made.rounds == 0, "nobody has begun a round"
    made.handle(offer(A, 1, 1), 1.1)
    assert (made.rounds, made.computed) == (1, 0)


def test_a_task_that_comes_unexpected_is_waited_for() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(0, 0.0), 1.0)
    made.handle(Tasked(1), 1.0)
    made.handle(offer(A, 1, 1), 100.0)
    assert made.rounds == 0


def test_how_long_to_wait_for_the_first_task_may_be_said() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(0, 2.0), 1.0)
    made.handle(offer(A, 1, 1), 1.1)
    made.handle(Ticked(), 2.9)
    assert made.rounds == 0
    made.handle(Ticked(), 3.0)
    assert made.rounds == 1


def test_a_round_of_another_era_is_not_followed_and_its_packet_waits() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(1), 0.0)
    (request,) = of(PacketRequest, made.handle(offer(A, 2 * ERA + 1, 1), 20.0))
    made.handle(packet(A, 1, 2 * ERA, request.k, x=[4.0, 4.0]), 20.0)
    assert made.rounds == 0
    made.handle(Settling(2, 0), 20.1)
    assert (made.rounds, made.late) == (1, 0)
    take(made, A, 1, 20.2)
    take(made, B, 1, 20.2)
    (request,) = of(PacketRequest, made.handle(offer(B, 2 * ERA + 1, 1), 20.2))
    made.handle(packet(B, 1, 2 * ERA, request.k, x=[7.0, 7.0]), 20.2)
    np.testing.assert_allclose(made.params(), [4, 4])


def test_settling_it_completes_the_rounds_of_the_training_first() -> None:
    made = peer(GradientTracking())
    made.handle(Resumed(1), 0.0)
    made.handle(Settling(2, 1), 0.1)
    assert (made.rounds, made.acting) == (1, GradientTracking())
    for other in (A, B):
        take(made, other, 1, 0.2)
        (request,) = of(PacketRequest, made.handle(offer(other, ERA + 1, 1), 0.2))
        made.handle(packet(other, 1, ERA, request.k, moved=[4.0, 4.0], y=[0.0, 0.0]), 0.2)
    assert made.acting == DPsgd()
    np.testing.assert_allclose(made.params(), [3, 3])
    made.handle(Ticked(), 2.0)
    assert (made.rounds, made.place) == (2, 2 * ERA + 1)


def test_a_consensus_that_is_reached_ends() -> None:
    made = active(DPsgd())
    finish(made, 0, 0.1, w=4.0)
    made.handle(Ticked(), 1.0)
    assert made.rounds == 2
    finish(made, 1, 1.1, w=float(made.params()[0]))
    made.handle(Ticked(), 100.0)
    assert made.rounds == 2, "the last round moved nothing"
    made.handle(offer(A, 3, 3), 100.1)
    assert made.rounds == 3, "unless a neighbor begins one"


def test_the_next_training_begins_with_a_new_state() -> None:
    made = training(DiLoCo())
    made.handle(Computed(ONES), 0.1)
    for other in (A, B):
        take(made, other, 1, 0.1)
        (request,) = of(PacketRequest, made.handle(offer(other, 1, 1), 0.1))
        made.handle(packet(other, 1, 0, request.k, values=[1.0, 1.0]), 0.1)
    np.testing.assert_allclose(made.params(), 1 + 0.7 * 1.9)
    assert made.state.momentum.any()
    made.handle(Exhausted(1.0), 0.2)
    made.handle(Resumed(3), 0.3)
    assert not made.state.momentum.any()
    np.testing.assert_allclose(made.state.anchor, 1 + 0.7 * 1.9)
    assert made.place == 3 * ERA


@pytest.mark.parametrize("event", [Departed(B), Joined(PeerId("d"))], ids=["gone", "new"])
def test_a_strategy_is_told_of_who_comes_and_goes_in_the_middle_of_a_training(event: Any) -> None:
    made = training(GradientTracking())
    made.handle(event, 0.0)
    assert made.state.newest == 0, "before the first round nothing is remembered of anybody"
    made = training(GradientTracking())
    made.handle(Computed(ONES), 0.1)
    made.handle(event, 0.2)
    assert made.state.newest == 1


def test_a_replica_that_is_no_number_stops_its_peer_and_is_told_once() -> None:
    made = training(DPsgd())
    with np.errstate(all="ignore"):
        effects = made.handle(Computed(Packed.of({"w": np.array([np.inf, 1.0])})), 0.1)
        for now in (0.2, 20.0, 40.0):
            effects += made.handle(Computed(ONES), now)
    (told,) = of(Warn, effects)
    assert told.text == made.trouble
    assert "'x'" in told.text
    assert (made.rounds, made.settled) == (1, 1)


def test_nobody_waits_for_the_dead() -> None:
    made = active(DPsgd())
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(Departed(B), 0.2)
    np.testing.assert_allclose(made.params(), [2, 2])
    assert made.given_up == 0


def test_nobody_waits_for_one_that_is_past_the_round_and_had_left_us_out() -> None:
    made = active(DPsgd())
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(offer(B, 2, 0), 0.2)
    np.testing.assert_allclose(made.params(), [2, 2])


def test_who_was_away_goes_on_where_the_others_are() -> None:
    made = peer(DPsgd())
    made.handle(offer(A, 1000, 0), 0.1)
    assert made.rounds == 1000


# ------------------------------------------------------------------------------------------------------------- the rest


def test_it_has_drained_when_all_has_been_taken() -> None:
    made = active(PushSum())
    effects = made.handle(Exhausted(10.0), 0.1)
    assert of(Drained, effects) == []
    made.handle(Received(PacketRequest(A, 1, 1)), 0.2)
    (drained,) = of(Drained, made.handle(Received(PacketRequest(B, 1, 1)), 0.3))
    assert drained.missing == ()
    made.handle(Ticked(), 100.0)
    assert made.rounds == 1


def test_it_says_who_has_not_taken_when_time_is_up() -> None:
    made = active(PushSum())
    made.handle(Exhausted(10.0), 0.1)
    made.handle(Received(PacketRequest(A, 1, 1)), 0.2)
    assert made.deadline() <= 10.1
    (drained,) = of(Drained, made.handle(Ticked(), 10.1))
    assert drained.missing == (B,)


def test_a_unit_counts_once() -> None:
    made = active(PushSum())
    unit = Unit(0, 1, 2)
    assert of(Gated, made.handle(Computed(ONES, unit), 0.1)) == []
    assert of(Gated, made.handle(Computed(ONES, unit, 1), 0.2)) == [Gated(unit)]
    assert (made.computed, made.gated) == (1, 1)


def test_what_it_learned_is_known_to_a_neighbor_once_that_has_taken_it() -> None:
    made = active(PushSum())
    take(made, A, 1, 0.1)
    made.handle(Computed(ONES), 0.2)
    assert (made.computed, made.taken) == (1, 0)
    take(made, A, 1, 0.3)
    assert made.taken == 0
    take(made, A, 2, 0.4)
    assert made.taken == 1


@pytest.mark.parametrize(
    "arrays",
    [{"x": [1.0, 2.0, 3.0]}, {"y": [1.0, 2.0]}, {"x": [np.nan, 1.0]}, {"x": [1.0]}],
    ids=["too long", "another name", "not a number", "too short"],
)
def test_a_packet_that_does_not_fit_is_dropped(arrays: Arrays) -> None:
    made = active(DPsgd())
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.1))
    effects = made.handle(packet(A, 1, 0, request.k, **arrays), 0.2)
    come(made, B, 1, 0, 0.3, 1.0)
    made.handle(Ticked(), 5.0)
    assert made.refused == len(of(Warn, effects)) == 1
    np.testing.assert_array_equal(made.params(), [1, 1])


def test_the_header_of_a_packet_that_is_too_large_is_refused_before_its_arrays_come() -> None:
    made = active(DPsgd())
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.1))
    layout = Layout.of({"x": np.zeros(100_000)})
    with pytest.raises(MismatchError, match="800000 bytes"):
        made.expects(PacketReply(A, 1, 1, 0, request.k, {}, layout))
    assert not made.expects(PacketReply(A, 1, 1, 0, request.k + 1, {}, layout)), "nobody asked"
    assert not made.expects(State(A, {}, request.k))


def test_arrays_of_integers_have_no_mean() -> None:
    layout = Layout.of({"count": np.zeros(3, np.int64), "w": np.zeros(3)})
    with pytest.raises(UsageError, match=r"'count': int64 \(3,\).*discipline='replicate'"):
        MixPeer(ME, layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0))


def test_arrays_of_several_precisions_are_one_vector_and_come_back_as_they_were() -> None:
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.full((2, 2), 0.1), "c": np.zeros((0, 4), np.float16)}
    made = MixPeer(ME, Layout.of(arrays), Plan(topology.ring, DPsgd()), np.random.default_rng(0))
    made.handle(Initialized(Packed.of(arrays)), 0.0)
    assert made.params().dtype == np.float64
    replica = made.replica()
    found = Packed(replica.layout, replica.read(0, replica.layout.nbytes)).arrays()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_it_gives_its_replica_and_says_farewell() -> None:
    made = active(PushSum())
    assert of(State, made.handle(Received(StateRequest(A, 7)), 0.1)) == [State(ME, {}, 7)]
    (goodbye,) = of(Offer, made.handle(Leaving(), 0.2))
    assert goodbye.waiting == {}
    assert made.handle(Received(StateRequest(A, 8)), 0.3) == []


def test_it_knows_nothing_of_lanes() -> None:
    made = active(PushSum())
    take(made, A, 1, 0.1)
    before = made.state
    for message in (Advert(A, 3, {}), Pull(A, 3, 1)):
        made.handle(Received(message), 0.1)
    assert made.state is before
    for name in ("replicator", "adopter", "members"):
        assert not hasattr(made, name)


def test_numbers_compare_like_names_and_do_not_change() -> None:
    names = [PeerId(name) for name in ("00ff", "0100", "abcd", "ffff")]
    assert sorted(names, key=number_of) == names
    assert len({number_of(name) for name in names}) == 4


def test_where_there_is_no_topology_for_those_who_live_the_old_links_stay() -> None:
    others = tuple(PeerId(f"p{index}") for index in range(7))
    made = active(PairwiseExchange(), others=others, build=topology.one_peer_hypercube)
    effects = made.handle(Departed(others[0]), 0.1) + made.handle(Ticked(), 2.0)
    assert [("7 peers" in each.text, "old links stay" in each.text) for each in of(Warn, effects)] == [(True, True)]
    for now in (4.0, 6.0, 8.0):
        effects = made.handle(Ticked(), now)
        assert of(Warn, effects) == []
    assert made.rounds > 3


def test_the_weights_of_the_departed_go_to_the_own_value_where_the_old_links_stay() -> None:
    others = tuple(PeerId(f"p{index}") for index in range(7))
    made = peer(DPsgd(), others=others, build=topology.hypercube)
    before = made.neighbors.links(0)
    gone = made.neighbors.peer(min(before.hears))
    made.handle(Departed(gone), 0.0)
    after = made.neighbors.links(0)
    assert after.own == pytest.approx(before.own + before.hears[number_of(gone)])
    assert after.hears.keys() == before.hears.keys() - {number_of(gone)}


def test_the_silent_are_found_dead_and_left_out() -> None:
    settings = MixSettings(round_s=1.0, detection=Detection())
    made = MixPeer(ME, ONES.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), settings)
    for other in (A, B):
        made.handle(Joined(other), 0.0)
    made.handle(Initialized(ONES), 0.0)
    now = 0.0
    while now < 12.0:
        now += 0.1
        made.handle(offer(A, 0, 0), now)
        if made.deadline() <= now:
            made.handle(Ticked(), now)
    assert made.departed == [B]
    assert made.neighbors.live == (A, ME)
