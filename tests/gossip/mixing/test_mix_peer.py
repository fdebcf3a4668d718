"""One peer that mixes, told what happens, and what it wants done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip import topology
from gossip.arrays import Arrays, Layout, Packed
from gossip.errors import MismatchError, UsageError
from gossip.events import (
    Adopt,
    Closed,
    Computed,
    Departed,
    Disconnected,
    Drained,
    Effect,
    Event,
    Exhausted,
    Gated,
    Initialized,
    Joined,
    Leaving,
    Progressed,
    Publish,
    Received,
    Resumed,
    Returned,
    Send,
    Settling,
    Tasked,
    Ticked,
    Warn,
)
from gossip.membership import Detection
from gossip.messages import (
    Ack,
    Advert,
    Nack,
    Offer,
    PacketReply,
    PacketRequest,
    PeerId,
    Ping,
    PingRequest,
    Pull,
    Rumor,
    Standing,
    State,
    StateRequest,
    Unit,
)
from gossip.mixing import (
    CombineThenAdapt,
    DiLoCo,
    DPsgd,
    Every,
    GradientTracking,
    Packet,
    PairwiseExchange,
    PushSum,
    Strategy,
)
from gossip.mixing.course import ERA
from gossip.mixing.mixer import PACKET_SIZES_MAX
from gossip.mixing.neighbors import Plan, number_of
from gossip.mixing.peer import BEHIND_MAX, LIGHT, MixPeer, MixSettings

pytestmark = pytest.mark.usefixtures("checked")

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
    assert (made.rounds, made.figures.computed) == (2, 1)


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


def test_weight_goes_away_down_to_the_limit() -> None:
    made = active(PushSum(), others=(A,), build=topology.complete)
    weights = [made.weight]
    for n in (1, 2, 3):
        take(made, A, n, float(n))
        made.handle(Ticked(), float(n))
        weights.append(made.weight)
    assert weights == [LIGHT * 2, LIGHT, LIGHT / 2, LIGHT / 2]


def test_what_the_departed_did_not_take_comes_back_to_the_last_bit() -> None:
    made = active(PushSum(grid=2.0**-32), build=topology.exponential)
    take(made, A, 0, 0.1)
    take(made, A, 1, 0.1)
    assert made.weight < 0.4
    made.handle(Departed(B), 0.2)
    made.handle(Departed(A), 0.3)
    total = made.mixer.state.sent[number_of(A)]
    assert float(total.w[0]) > 0.0
    assert made.weight + float(total.w[0]) == 1.0, "what A has taken is not here; what B has not, is"
    assert float(made.mixer.state.sent[number_of(B)].w[0]) == 0.0


def test_a_lost_reply_is_asked_for_again() -> None:
    made = active(PushSum())
    (first,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.0))
    assert of(PacketRequest, made.handle(offer(A, 1, 1), 1.0)) == []
    (again,) = of(PacketRequest, made.handle(Ticked(), 1.5))
    assert (again.n, again.k > first.k) == (0, True)
    late = made.handle(packet(A, 1, 0, first.k, x=[3, 3]), 1.6)
    assert made.figures.received == 0, "the answer to a request that was given up"
    assert not of(Adopt, late)


def test_who_asks_for_what_a_new_training_has_made_void_is_sent_the_next_packet() -> None:
    """It would not ask again before its request is given up."""
    made = peer(PushSum(), build=topology.exponential)
    made.handle(Resumed(1), 0.0)
    assert made.mailbox.outgoing[A].waiting
    made.handle(Computed(ONES), 0.01)
    made.handle(Resumed(2), 0.02)
    assert made.place == 2 * ERA
    assert take(made, A, 0, 0.03, k=7) == []
    (reply,) = [sent for sent in of(PacketReply, made.handle(Ticked(), 0.1)) if sent.k == 7]
    assert (reply.n, reply.round // ERA) == (2, 2)
    assert of(PacketReply, made.handle(Ticked(), 1.2)) == [], "it answers once"


def test_who_only_says_that_all_came_is_owed_nothing() -> None:
    made = active(PushSum(), build=topology.exponential)
    take(made, A, 0, 0.1)
    take(made, A, 1, 0.1, k=2)
    assert of(PacketReply, made.handle(Ticked(), 1.0)) == []
    take(made, A, 1, 1.1, k=3)
    take(made, A, 2, 1.1, k=4)
    made.handle(Departed(A), 1.2)
    made.handle(Returned(A), 1.3)
    assert of(PacketReply, made.handle(Ticked(), 2.5)) == []


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
    assert (made.figures.computed, len(made.steps)) == (0, 1)
    for other in (A, B):
        take(made, other, 1, 0.2)
        come(made, other, 1, 0, 0.2, 4.0)
    assert (made.figures.computed, len(made.steps)) == (1, 0)
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
    assert made.figures.given_up == 1
    np.testing.assert_allclose(made.params(), [2, 2])  # (1 + 1 + 4) / 3: its weight went to the own value
    made.handle(packet(B, 1, 0, asked.k, x=[7.0, 7.0]), 5.3)
    assert made.figures.late == 1
    np.testing.assert_allclose(made.params(), [2, 2])


def test_a_neighbor_that_lives_and_has_not_begun_the_round_is_waited_for() -> None:
    made = active(DPsgd())
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    for now in (5.0, 50.0, 500.0):
        made.handle(Ticked(), now)
    assert (made.rounds, made.figures.given_up) == (1, 0)
    take(made, B, 1, 500.1)
    come(made, B, 1, 0, 500.2, 7.0)
    np.testing.assert_allclose(made.params(), [4, 4])


def test_nobody_waits_for_one_that_has_begun_the_round_and_left_us_out() -> None:
    made = active(DPsgd())
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(offer(B, 1, 0), 0.2)
    assert made.figures.given_up == 0
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
    assert (made.rounds, made.figures.computed) == (1, 1)


def test_a_round_takes_one_step_and_settles_it_when_it_is_over() -> None:
    made = training(DPsgd(), tasks=3)
    for _ in range(3):
        made.handle(Computed(ONES), 0.1)
    assert (made.figures.computed, len(made.steps), made.settled) == (1, 2, 0)
    finish(made, 0, 0.2)
    assert (made.figures.computed, len(made.steps), made.settled) == (2, 1, 1)
    finish(made, 1, 0.3)
    assert (made.figures.computed, len(made.steps), made.settled) == (3, 0, 2)
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
    assert [made.mailbox.outgoing[other].n for other in (A, B)] == [1, 1]
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
    assert (made.rounds, made.figures.computed) == (1, 0)


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
    assert (made.rounds, made.figures.computed) == (1, 0)


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
    assert (made.rounds, made.figures.late) == (1, 0)
    take(made, A, 1, 20.2)
    take(made, B, 1, 20.2)
    (request,) = of(PacketRequest, made.handle(offer(B, 2 * ERA + 1, 1), 20.2))
    made.handle(packet(B, 1, 2 * ERA, request.k, x=[7.0, 7.0]), 20.2)
    np.testing.assert_allclose(made.params(), [4, 4])


def test_settling_it_completes_the_rounds_of_the_training_first() -> None:
    made = peer(GradientTracking())
    made.handle(Resumed(1), 0.0)
    made.handle(Settling(2, 1), 0.1)
    assert (made.rounds, made.mixer.acting) == (1, GradientTracking())
    for other in (A, B):
        take(made, other, 1, 0.2)
        (request,) = of(PacketRequest, made.handle(offer(other, ERA + 1, 1), 0.2))
        made.handle(packet(other, 1, ERA, request.k, moved=[4.0, 4.0], y=[0.0, 0.0]), 0.2)
    assert made.mixer.acting == DPsgd()
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
    assert made.mixer.state.momentum.any()
    made.handle(Exhausted(1.0), 0.2)
    made.handle(Resumed(3), 0.3)
    assert not made.mixer.state.momentum.any()
    np.testing.assert_allclose(made.mixer.state.anchor, 1 + 0.7 * 1.9)
    assert made.place == 3 * ERA


@pytest.mark.parametrize("event", [Departed(B), Joined(PeerId("d"))], ids=["gone", "new"])
def test_a_strategy_is_told_of_who_comes_and_goes_in_the_middle_of_a_training(event: Any) -> None:
    made = training(GradientTracking())
    made.handle(event, 0.0)
    assert made.mixer.state.newest == 0, "before the first round nothing is remembered of anybody"
    made = training(GradientTracking())
    made.handle(Computed(ONES), 0.1)
    made.handle(event, 0.2)
    assert made.mixer.state.newest == 1


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
    assert made.figures.given_up == 0


def test_nobody_waits_for_one_that_is_past_the_round_and_had_left_us_out() -> None:
    made = active(DPsgd())
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(offer(B, 2, 0), 0.2)
    np.testing.assert_allclose(made.params(), [2, 2])


@pytest.mark.parametrize("strategy", [DPsgd(), Every(3, DPsgd())], ids=repr)
def test_who_was_away_goes_on_where_the_others_are(strategy: Strategy[Any]) -> None:
    made = peer(strategy)
    made.handle(offer(A, 1000, 0), 0.1)
    assert made.rounds == 1000
    made.handle(Resumed(1), 0.2)
    made.handle(Settling(2, 0), 0.3)
    begun = made.rounds
    far = 2 * (BEHIND_MAX + 3) * strategy.interval
    made.handle(offer(A, made.place + far, 0), 0.4)
    finish(made, made.place - 1, 0.5)
    assert made.rounds >= begun + far, "also in a later era"


@pytest.mark.parametrize("strategy", [DPsgd(), Every(3, DPsgd())], ids=repr)
def test_who_is_a_few_rounds_behind_goes_through_them_all(strategy: Strategy[Any]) -> None:
    made = peer(strategy)
    made.handle(offer(A, (BEHIND_MAX + 3) * strategy.interval, 0), 0.1)
    assert made.rounds == strategy.interval


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


def test_it_comes_back_when_time_is_up() -> None:
    made = active(PushSum())
    made.handle(Exhausted(0.1), 0.1)
    assert made.deadline() == pytest.approx(0.2)


def test_a_request_of_one_that_nothing_was_sent_to_takes_nothing() -> None:
    made = active(PushSum())
    made.handle(Received(PacketRequest(PeerId("stranger"), 5, 1)), 0.1)
    assert made.figures.taken == 0


def test_a_unit_counts_once() -> None:
    made = active(PushSum())
    unit = Unit(0, 1, 2)
    assert of(Gated, made.handle(Computed(ONES, unit), 0.1)) == []
    for again in (1, 2):
        assert of(Gated, made.handle(Computed(ONES, unit, again), 0.2)) == [Gated(unit)]
    assert (made.figures.computed, made.figures.gated) == (1, 2)


def test_a_unit_of_an_epoch_that_is_over_counts_no_more() -> None:
    made = active(PushSum())
    made.handle(Closed(1), 0.1)
    late, next_one = Unit(0, 1, 2), Unit(1, 1, 2)
    assert of(Gated, made.handle(Computed(ONES, late), 0.2)) == [Gated(late)]
    assert of(Gated, made.handle(Computed(ONES, next_one), 0.2)) == []
    assert (made.figures.computed, made.figures.gated) == (1, 1)


def test_what_it_learned_is_known_to_a_neighbor_once_that_has_taken_it() -> None:
    made = active(PushSum())
    take(made, A, 1, 0.1)
    made.handle(Computed(ONES), 0.2)
    assert (made.figures.computed, made.figures.taken) == (1, 0)
    take(made, A, 1, 0.3)
    assert made.figures.taken == 0
    take(made, A, 2, 0.4)
    assert made.figures.taken == 1


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
    assert made.figures.refused == len(of(Warn, effects)) == 1
    np.testing.assert_array_equal(made.params(), [1, 1])


def test_the_header_of_a_packet_that_is_too_large_is_refused_before_its_arrays_come() -> None:
    made = active(DPsgd())
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.1))
    layout = Layout.of({"x": np.zeros(100_000)})
    with pytest.raises(MismatchError, match="800000 bytes"):
        made.expects(PacketReply(A, 1, 1, 0, request.k, {}, layout))
    assert not made.expects(PacketReply(A, 1, 1, 0, request.k + 1, {}, layout)), "nobody asked"
    room = PACKET_SIZES_MAX * 8 * 2 + 4096
    largest, larger = (Layout.of({"x": np.zeros(size, np.int8)}) for size in (room, room + 1))
    assert made.expects(PacketReply(A, 1, 1, 0, request.k, {}, largest))
    with pytest.raises(MismatchError):
        made.expects(PacketReply(A, 1, 1, 0, request.k, {}, larger))
    assert not made.expects(State(A, {}, request.k))


def test_a_packet_may_be_so_many_times_as_large_as_the_model() -> None:
    layout = Layout.of({"w": np.zeros(10_000)})
    made = MixPeer(ME, layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), SETTINGS)
    room = PACKET_SIZES_MAX * layout.nbytes + 4096
    for size in (room, room + 64):
        header = PacketReply(A, 1, 1, 0, 1, {}, Layout.of({"x": np.zeros(size, np.int8)}))
        if size == room:
            made.mixer.check_size(header)
        else:
            with pytest.raises(MismatchError, match=f"expected at most {room}"):
                made.mixer.check_size(header)


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
    assert made.handle(Received(StateRequest(A, 7)), 0.1) == [Send(A, State(ME, {}, 7))]
    assert made.handle(Leaving(), 0.2) == [Publish(Offer(ME, made.place, {}, ()))]
    assert made.deadline() == float("inf")
    assert made.handle(Received(StateRequest(A, 8)), 0.3) == []


def test_it_knows_nothing_of_lanes() -> None:
    made = active(PushSum())
    take(made, A, 1, 0.1)
    before = made.mixer.state
    for message in (Advert(A, 3, {}), Pull(A, 3, 1)):
        made.handle(Received(message), 0.1)
    assert made.mixer.state is before
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


# ---------------------------------------------------------------------------------------------- what a strategy is told


@dataclass(frozen=True, repr=False)
class Told(DPsgd):
    """Writes down what it is asked."""

    told: list[Any] = field(default_factory=list, compare=False)

    def local(self, state: Any, delta: Any, round: int) -> Any:
        self.told.append(("local", round))
        return super().local(state, delta, round)

    def mixing_round(self, round: int) -> int:
        self.told.append(("mixing_round", round))
        return round

    def send(self, state: Any, round: int, links: Any, chance: Any) -> Any:
        assert isinstance(chance, np.random.Generator)
        self.told.append(("send", round, links))
        return super().send(state, round, links, chance)

    def finish(self, state: Any, round: int, links: Any) -> Any:
        self.told.append(("finish", round, links))
        return super().finish(state, round, links)


@dataclass(frozen=True, repr=False)
class ToldSoon(Told):
    """The same at its own pace."""

    synchronous = False


@dataclass(frozen=True, repr=False)
class Answering(DPsgd):
    """Answers each packet with what came, and tells one neighbor of another one that is gone."""

    def receive(self, state: Any, sender: int, packet: Packet) -> Any:
        state, _ = super().receive(state, sender, packet)
        return state, {sender: Packet({"back": packet.arrays["x"]})}

    def give_up(self, state: Any, neighbor: int, taken: Packet | None = None) -> Any:
        return state, {} if neighbor == number_of(A) else {number_of(A): Packet({"gone": state.x})}


@dataclass(frozen=True, repr=False)
class AnsweringSoon(Answering):
    """The same at its own pace."""

    synchronous = False


def test_rounds_of_each_training_are_counted_from_its_beginning() -> None:
    strategy = Told()
    made = training(strategy)
    for era in (1, 2):
        made.handle(Resumed(era), 0.0)
        strategy.told.clear()
        for round in range(3):
            made.handle(Computed(ONES), 0.1)
            finish(made, era * ERA + round, 0.2)
        links = made.neighbors.links(0)
        assert strategy.told == [
            told
            for round in range(3)
            for told in (("local", round), ("mixing_round", round), ("send", round, links), ("finish", round, links))
        ]


def test_where_nobody_waits_a_round_ends_with_the_links_it_began_with() -> None:
    strategy = ToldSoon()
    made = active(strategy)
    take(made, A, 1, 0.1)
    strategy.told.clear()
    made.handle(Ticked(), 1.0)
    _, (_, sent, links), finished = strategy.told
    assert finished == ("finish", sent, links)
    assert (sent, set(links.heard_by)) == (1, {number_of(A)}), "the other has not taken the last packet"


def test_in_step_every_answer_waits_for_its_reader_until_the_round_is_over() -> None:
    made = active(Answering())
    come(made, A, 1, 0, 0.1, 4.0)
    packets = [take(made, A, n, 0.2)[0] for n in (0, 1)]
    assert [list(each.payload.arrays()) for each in packets] == [["x"], ["back"]]
    assert [(each.peer, each.n, each.newest, each.round) for each in packets] == [(ME, 1, 2, 0), (ME, 2, 2, 0)]
    assert take(made, A, 2, 0.2) == []


def test_a_packet_is_checked_also_when_an_answer_has_other_arrays() -> None:
    made = active(Answering())
    come(made, A, 1, 0, 0.1, 4.0)
    (request,) = of(PacketRequest, made.handle(offer(B, 1, 1), 0.2))
    made.handle(packet(B, 1, 0, request.k, x=[1.0]), 0.2)
    assert (made.figures.received, made.figures.refused) == (1, 1)


def test_what_the_consensus_makes_of_the_replica_is_said_also_by_one_that_is_alone() -> None:
    class Moving(DPsgd):
        def consensus(self, state: Any) -> Any:
            return DPsgd(), DPsgd().start(state.x + 1.0)

    made = peer(Moving(), others=())
    (adopted,) = of(Adopt, made.handle(Settling(), 0.1))
    np.testing.assert_array_equal(np.frombuffer(adopted.payload.read(0, 16)), [2, 2])


def test_at_its_own_pace_a_newer_answer_takes_the_place_of_an_older_and_a_round_that_of_a_round() -> None:
    made = active(AnsweringSoon())
    for n in (1, 2):
        come(made, A, n, n - 1, 0.1, float(n))
    packets = [take(made, A, n, 0.2)[0] for n in (0, 1)]
    assert [list(each.payload.arrays()) for each in packets] == [["x"], ["back"]]
    np.testing.assert_array_equal(packets[1].payload.arrays()["back"], [2.0, 2.0])


def test_what_goes_out_because_a_neighbor_is_gone_takes_the_place_of_an_answer() -> None:
    made = active(AnsweringSoon())
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(Departed(B), 0.2)
    packets = [take(made, A, n, 0.3)[0] for n in (0, 1)]
    assert [list(each.payload.arrays()) for each in packets] == [["x"], ["gone"]]
    assert [each.n for each in packets] == [1, 3]


def test_a_packet_that_is_no_number_reaches_nobody_whoever_it_is_for() -> None:
    @dataclass(frozen=True, repr=False)
    class Partial(DPsgd):
        def send(self, state: Any, round: int, links: Any, chance: Any) -> Any:
            state, outbox = super().send(state, round, links, chance)
            first, *others = outbox
            bad = Packet({"x": np.array([np.nan, 1.0])})
            return state, {first: bad, **{each: outbox[each] for each in others}}

    made = peer(Partial())
    effects = made.handle(Settling(), 0.0)
    assert [each.text for each in of(Warn, effects)] == [made.trouble]
    assert made.trouble is not None
    assert not made.mailbox.outgoing


# ------------------------------------------------------------------------------------------------ what others are told


def test_it_offers_its_packets_as_soon_as_it_has_them() -> None:
    made = peer(DPsgd())
    effects = made.handle(Settling(), 0.0)
    assert of(Offer, effects) == [Offer(ME, 1, {A: 1, B: 1}, ())]
    assert of(Warn, effects) == []
    (reply,) = made.handle(Received(PacketRequest(A, 0, 7)), 0.1)
    assert isinstance(reply, Send)
    assert (reply.to, reply.message) == (A, PacketReply(ME, 1, 1, 0, 7, {}, Layout.of({"x": np.ones(2)})))
    take(made, A, 0, 0.2, k=8)
    assert made.mailbox.outgoing[A].nbytes == 2 * ONES.layout.nbytes, "it was sent twice"
    take(made, A, 1, 0.3)
    assert of(Offer, made.handle(Ticked(), 10.0)) == [Offer(ME, 1, {B: 1}, ())], "a lost offer is made again in time"


def test_who_asks_when_a_round_is_due_is_served() -> None:
    made = active(PushSum())
    assert of(PacketReply, made.handle(Received(PacketRequest(A, 0, 1)), 1.0))
    assert made.rounds == 2


def test_the_one_who_offers_is_asked() -> None:
    made = active(DPsgd())
    assert made.handle(offer(A, 1, 1), 0.1) == [Send(A, PacketRequest(ME, 0, 1))]


def test_it_says_what_its_replica_is_as_soon_as_it_changes() -> None:
    made = MixPeer(ME, ONES.layout, Plan(topology.ring, PushSum()), np.random.default_rng(0), SETTINGS, [A, B])
    assert (made.neighbors.live, made.layout) == ((A, ME, B), ONES.layout)
    assert made.handle(Joined(A), 0.0) == []
    assert made.deadline() == float("inf")
    assert of(Adopt, made.handle(Initialized(ONES), 0.0))
    assert of(Adopt, made.handle(Computed(ONES), 0.0)), "at rest"
    made.handle(Resumed(), 0.1)
    assert not of(Adopt, made.handle(Ticked(), 0.2))
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.3))
    arrays = Packed.of({"x": np.full(2, 0.5)})
    reply = PacketReply(A, 1, 1, 0, request.k, {"n": 1.0, "w": 0.5, "generation": 0.0}, arrays.layout, arrays)
    assert of(Adopt, made.handle(Received(reply), 0.3))
    assert made.figures.received == 1
    assert of(Adopt, made.handle(Departed(B), 0.4)), "what it has not taken is here again"


def test_a_local_step_in_a_round_without_mixing_is_in_the_replica() -> None:
    made = training(Every(3, CombineThenAdapt()))
    (adopted,) = of(Adopt, made.handle(Computed(ONES), 0.1))
    np.testing.assert_array_equal(np.frombuffer(adopted.payload.read(0, 16)), [2, 2])


@pytest.mark.parametrize("event", [Joined(PeerId("d")), Resumed(3)], ids=["somebody comes", "a training begins"])
def test_what_others_must_know_is_told_at_once(event: Event) -> None:
    made = peer(DPsgd())
    made.handle(Ticked(), 0.1)
    assert of(Offer, made.handle(event, 0.2)) == [Offer(ME, made.place, {}, ())]


def test_who_takes_packets_is_one_of_a_few_at_a_time() -> None:
    settings = MixSettings(round_s=1.0, pulls_max=2)
    others = tuple(PeerId(name) for name in "acdef")
    made = MixPeer(ME, ONES.layout, Plan(topology.complete, DPsgd()), np.random.default_rng(0), settings, others)
    made.handle(Initialized(ONES), 0.0)
    made.handle(Settling(), 0.0)
    requests = []
    for other in reversed(others):
        requests += made.handle(offer(other, 1, 1), 0.1)
    asked = [(each.to, each.message.k) for each in requests if isinstance(each, Send)]
    assert [to for to, _ in asked] == [PeerId("f"), PeerId("e")]
    came = packet(asked[0][0], 1, 0, asked[0][1], x=[2.0, 2.0])
    assert [each.to for each in made.handle(came, 0.2) if isinstance(each, Send)] == [PeerId("a")]
    assert made.handle(came, 0.2) == [], "it comes twice, before there was room to say that it had come"
    assert (made.figures.received, made.figures.late) == (1, 0)


def test_who_is_asked_does_not_keep_others_from_being_asked() -> None:
    made = active(DPsgd())
    for other, requests in ((A, 1), (A, 0), (B, 1)):
        assert len(of(PacketRequest, made.handle(offer(other, 1, 1), 0.1))) == requests


def test_progress_of_a_packet_gives_it_more_time() -> None:
    made = active(DPsgd())
    assert made.handle(Progressed(A), 0.0) == []
    made.handle(offer(A, 1, 1), 0.1)
    made.handle(Progressed(A), 1.0)
    assert of(PacketRequest, made.handle(Ticked(), 2.4)) == []
    assert of(PacketRequest, made.handle(Ticked(), 2.5)) == [PacketRequest(ME, 0, 2)]


def test_a_packet_that_answers_what_only_said_that_all_had_come_is_taken_in() -> None:
    made = active(PairwiseExchange(), build=topology.complete)
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.1))

    def busy(n: int, k: int) -> Received:
        return Received(PacketReply(A, n, n, 0, k, {"kind": 2.0, "n": 1.0}, Layout.of({}), Packed.of({})))

    (told,) = of(PacketRequest, made.handle(busy(1, request.k), 0.2))
    assert told.n == 1
    made.handle(busy(2, told.k), 0.3)
    assert made.figures.received == 2


# -------------------------------------------------------------------------------------------------- come, gone and back


def test_who_comes_back_is_a_neighbor_again() -> None:
    made = active(DPsgd())
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    made.handle(Departed(B), 0.2)
    assert (made.departed, made.neighbors.live) == ([B], (A, ME))
    made.handle(Returned(B), 0.3)
    assert (made.departed, made.neighbors.live) == ([], (A, ME, B))
    made.handle(Ticked(), 1.5)
    assert set(made.neighbors.links(1).hears) == {number_of(A), number_of(B)}
    assert made.mailbox.outgoing[B].waiting


def test_nobody_takes_itself_for_dead() -> None:
    made = active(DPsgd())
    made.handle(Departed(ME), 0.1)
    assert made.departed == []
    take(made, A, 1, 0.1)
    assert made.rounds == 1
    assert made.mailbox.outgoing[B].waiting


def test_the_dead_are_not_asked_again() -> None:
    made = active(PushSum())
    made.handle(offer(A, 1, 1), 0.1)
    made.handle(Departed(A), 0.2)
    assert of(PacketRequest, made.handle(Ticked(), 2.0)) == []


def test_the_dead_are_not_asked_when_there_is_room() -> None:
    settings = MixSettings(pulls_max=1)
    made = MixPeer(ME, ONES.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), settings, [A, B])
    made.handle(Initialized(ONES), 0.0)
    made.handle(Settling(), 0.0)
    (request,) = of(PacketRequest, made.handle(offer(A, 1, 1), 0.1))
    made.handle(offer(B, 1, 1), 0.1)
    made.handle(Departed(B), 0.2)
    effects = made.handle(packet(A, 1, 0, request.k, x=[1.0, 1.0]), 0.3)
    assert [each.to for each in effects if isinstance(each, Send)] == [A]


def test_a_packet_of_the_dead_that_came_early_is_not_taken_in() -> None:
    made = training(DPsgd())
    made.handle(Computed(ONES), 0.1)
    come(made, A, 1, 0, 0.1, 4.0)
    come(made, A, 2, 1, 0.1, 4.0)
    made.handle(Departed(A), 0.2)
    take(made, B, 1, 0.2)
    come(made, B, 1, 0, 0.2, 4.0)
    effects = made.handle(Computed(ONES), 0.3)
    assert (made.rounds, made.figures.received) == (2, 2)
    assert of(PacketRequest, effects) == []


@pytest.mark.parametrize("event", [Departed(B), Joined(PeerId("d")), Computed(ONES)], ids=["gone", "new", "a step"])
def test_a_consensus_that_was_reached_begins_again_when_something_changes(event: Event) -> None:
    made = active(DPsgd())
    finish(made, 0, 0.1)
    made.handle(Ticked(), 100.0)
    made.handle(Settling(), 100.0)
    assert made.rounds == 1, "also when it is told once more"
    made.handle(event, 101.0)
    assert made.rounds == 2


def test_a_consensus_begins_again_when_somebody_is_back() -> None:
    made = active(DPsgd())
    made.handle(Departed(B), 0.0)
    take(made, A, 1, 0.1)
    come(made, A, 1, 0, 0.1, 1.0)
    made.handle(Ticked(), 100.0)
    assert made.rounds == 1
    made.handle(Returned(B), 101.0)
    assert made.rounds == 2


def test_a_consensus_is_reached_when_all_links_were_tried() -> None:
    others = tuple(PeerId(name) for name in "acd")
    made = active(DPsgd(), others=others, build=topology.one_peer_exponential)
    assert made.neighbors.period == 2
    for round, now in enumerate((0.1, 1.1)):
        assert made.rounds == round + 1
        links = made.neighbors.links(round)
        (writer,), (reader,) = (made.neighbors.peer(*to) for to in (links.hears, links.heard_by))
        made.handle(offer(reader, round + 1, 0), now)
        take(made, reader, made.mailbox.outgoing[reader].n, now)
        come(
            made, writer, made.mailbox.incoming[writer].n + 1 if writer in made.mailbox.incoming else 1, round, now, 1.0
        )
        made.handle(Ticked(), now + 0.9)
    made.handle(Ticked(), 100.0)
    assert made.rounds == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("precisions", "goes_on"), [(1.0, False), (3.0, True)])
def test_a_round_moves_nothing_if_it_moves_less_than_precision(
    dtype: Any, scale: float, precisions: float, goes_on: bool
) -> None:
    small = max(1e-12 / 2, float(np.finfo(dtype).eps)) * precisions
    start = Packed.of({"w": np.full(2, scale, dtype)})
    made = MixPeer(ME, start.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), SETTINGS, [A, B])
    made.handle(Initialized(start), 0.0)
    made.handle(Settling(), 0.0)
    for other in (A, B):
        take(made, other, 1, 0.1)
        (request,) = of(PacketRequest, made.handle(offer(other, 1, 1), 0.1))
        arrays = Packed.of({"x": (np.full(2, scale) * (1.0 + 1.2 * small)).astype(dtype)})
        made.handle(Received(PacketReply(other, 1, 1, 0, request.k, {}, arrays.layout, arrays)), 0.1)
    made.handle(Ticked(), 100.0)
    assert (made.rounds == 2) == goes_on


def test_a_model_without_numbers_agrees_at_once() -> None:
    empty = Packed.of({"w": np.zeros(0)})
    made = MixPeer(ME, empty.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), SETTINGS, [A, B])
    made.handle(Initialized(empty), 0.0)
    made.handle(Settling(), 0.0)
    for other in (A, B):
        take(made, other, 1, 0.1)
        (request,) = of(PacketRequest, made.handle(offer(other, 1, 1), 0.1))
        made.handle(packet(other, 1, 0, request.k, x=[]), 0.1)
    made.handle(Ticked(), 100.0)
    assert (made.rounds, made.figures.received) == (1, 2)


def test_two_make_a_swarm() -> None:
    made = active(DPsgd(), others=(A,), build=topology.complete)
    assert made.mailbox.outgoing[A].waiting


# --------------------------------------------------------------------------------------------------- eras and trainings


def test_a_training_that_follows_another_at_once_is_a_new_one() -> None:
    made = training(DPsgd())
    made.handle(Resumed(1), 0.1)
    made.handle(Resumed(2), 0.2)
    assert made.place == 2 * ERA


def test_who_is_told_twice_of_a_training_does_not_begin_it_twice() -> None:
    made = peer(DPsgd())
    made.handle(Resumed(1), 0.0)
    made.handle(Resumed(1), 4.0)
    made.handle(offer(A, ERA + 1, 1), 4.1)
    made.handle(Ticked(), 5.0)
    assert made.rounds == 1, "it waits for its first task no longer than it would have"


def test_a_training_that_goes_on_goes_on_as_it_was() -> None:
    made = peer(Every(2, Told()))
    made.handle(Resumed(1), 0.0)
    made.handle(Computed(ONES), 0.1)
    made.handle(Exhausted(1.0), 0.2)
    made.handle(Resumed(1), 0.3)
    assert made.place == ERA + 1
    made.handle(Computed(ONES), 0.4)
    assert made.mailbox.outgoing[A].waiting, "the second round of two"


def test_a_training_may_be_told_of_before_there_is_a_replica() -> None:
    made = MixPeer(ME, ONES.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), SETTINGS, [A, B])
    assert made.handle(Resumed(2), 0.0) == []
    made.handle(Initialized(ONES), 0.1)
    made.handle(Computed(ONES), 0.2)
    assert made.place == 2 * ERA + 1


def test_a_task_may_begin_before_its_training_is_told_of() -> None:
    made = peer(DPsgd())
    made.handle(Tasked(1), 0.0)
    made.handle(Resumed(1), 0.1)
    made.handle(offer(A, ERA + 1, 1), 100.0)
    assert made.rounds == 0, "its step is waited for"


def test_who_ends_a_task_unnoticed_is_idle_a_while_later() -> None:
    made = training(DPsgd(), tasks=0)
    made.handle(Computed(ONES), 10.0)
    finish(made, 0, 10.1)
    made.handle(offer(A, 2, 2), 10.2)
    made.handle(Ticked(), 10.9)
    assert made.rounds == 1
    made.handle(Ticked(), 11.0)
    assert made.rounds == 2


def test_where_nobody_waits_mass_outlives_the_training() -> None:
    made = peer(PushSum())
    made.handle(Resumed(1), 0.0)
    weight = made.weight
    assert weight < 1.0
    made.handle(Exhausted(1.0), 0.1)
    made.handle(Resumed(2), 0.2)
    assert made.weight <= weight, "what is on the links is not here again"


def share(sender: PeerId, n: int, round: int, k: int) -> Received:
    arrays = Packed.of({"x": np.full(2, 0.5)})
    return Received(PacketReply(sender, n, n, round, k, {"n": n, "w": 0.5, "generation": 0.0}, arrays.layout, arrays))


@pytest.mark.parametrize(
    ("strategy", "round", "taken_in"),
    [
        (PushSum(), ERA + 5, True),
        (Every(2, PushSum()), ERA + 5, False),
        (Every(2, PushSum()), 2 * ERA, True),
    ],
    ids=["the state goes on", "a new state", "of the new training"],
)
def test_a_packet_for_a_state_that_is_gone_is_late(strategy: Strategy[Any], round: int, taken_in: bool) -> None:
    made = peer(strategy)
    for era in (1, 2):
        made.handle(Resumed(era), 0.0)
    for n in (1, 2):
        (request,) = of(PacketRequest, made.handle(offer(A, round + 1, n), 0.1))
        made.handle(share(A, n, round, request.k), 0.1)
    assert (made.figures.received, made.figures.late) == ((2, 0) if taken_in else (0, 2))


def test_rounds_of_a_later_training_are_completed_before_the_consensus() -> None:
    made = peer(Told())
    for era in (1, 2):
        made.handle(Resumed(era), 0.0)
        made.handle(Computed(ONES), 0.1)
        finish(made, era * ERA, 0.2)
    made.handle(Settling(3, 2), 0.3)
    assert (made.rounds, made.place) == (3, 2 * ERA + 2), "one more of this training is due"


def test_it_has_not_drained_in_the_middle_of_a_round() -> None:
    made = active(DPsgd())
    for reader in (A, B):
        take(made, reader, 1, 0.1)
    assert of(Drained, made.handle(Exhausted(10.0), 0.2)) == []
    come(made, A, 1, 0, 0.3, 4.0)
    (drained,) = of(Drained, come(made, B, 1, 0, 0.3, 4.0))
    assert drained.missing == ()


def test_a_training_that_begins_anew_is_not_drained() -> None:
    made = active(PushSum())
    made.handle(Exhausted(1.0), 0.1)
    made.handle(Resumed(), 0.2)
    assert of(Drained, made.handle(Ticked(), 2.0)) == []


# -------------------------------------------------------------------------------------------------- late and not taken


def test_packets_of_rounds_that_were_given_up_are_late_also_where_no_round_follows() -> None:
    made = training(DPsgd())
    for round in range(2):
        now = 10.0 * round
        made.handle(Computed(ONES), now)
        take(made, A, round + 1, now)
        come(made, A, round + 1, round, now, 1.0)
        made.handle(offer(B, round + 1, round + 1), now)
        (again,) = of(PacketRequest, made.handle(Ticked(), now + 4.9))
        made.handle(offer(B, round + 1, round + 1), now + 4.9)
        made.handle(Ticked(), now + 5.0)
        assert made.figures.given_up == round + 1, "however often it says that it has begun"
        made.handle(packet(B, round + 1, round, again.k, x=[7.0, 7.0]), now + 5.1)
        assert (made.figures.late, made.figures.received) == (round + 1, round + 1)


def test_two_packets_of_one_round_do_not_count_twice() -> None:
    made = active(DPsgd())
    for n in (1, 2, 3):
        come(made, A, n, 0, 0.1, 4.0)
    assert (made.figures.received, made.figures.late) == (1, 2)


def test_each_neighbor_is_complained_of_once() -> None:
    made = active(DPsgd())
    warned = []
    for n, other in ((1, A), (2, A), (1, B)):
        (request,) = of(PacketRequest, made.handle(offer(other, 1, n), 0.1))
        warned += of(Warn, made.handle(packet(other, n, 0, request.k, x=[1.0]), 0.2))
    assert made.figures.refused == 3
    assert [other for other in (A, B) for each in warned if f"peer {other} " in each.text] == [A, B]


def test_packets_that_came_early_and_do_not_fit_are_all_told_of() -> None:
    made = training(DPsgd())
    for other in (A, B):
        (request,) = of(PacketRequest, made.handle(offer(other, 1, 1), 0.1))
        assert of(Warn, made.handle(packet(other, 1, 0, request.k, x=[1.0]), 0.1)) == []
    assert len(of(Warn, made.handle(Computed(ONES), 0.2))) == 2


def one_way() -> tuple[MixPeer, PeerId, PeerId]:
    """One of four in a round in which it hears one and another one hears it; the packet that it waits for has come."""
    others = tuple(PeerId(name) for name in "acd")
    made = active(DPsgd(), others=others, build=topology.one_peer_exponential)
    links = made.neighbors.links(0)
    (writer,), (reader,) = (made.neighbors.peer(*to) for to in (links.hears, links.heard_by))
    assert writer != reader
    come(made, writer, 1, 0, 0.1, 3.0)
    return made, writer, reader


def test_a_reader_that_has_not_begun_the_round_is_waited_for() -> None:
    made, _, reader = one_way()
    for now in (5.0, 50.0, 500.0):
        made.handle(Ticked(), now)
    assert (made.rounds, made.figures.given_up) == (1, 0)
    take(made, reader, 1, 500.1)
    np.testing.assert_allclose(made.params(), [2, 2])


def test_a_reader_that_has_begun_the_round_is_waited_for_for_a_time() -> None:
    made, _, reader = one_way()
    made.handle(offer(reader, 1, 0), 1.0)
    np.testing.assert_array_equal(made.params(), [1, 1])
    assert made.deadline() == 6.0
    made.handle(Ticked(), 6.0)
    assert made.figures.given_up == 1
    np.testing.assert_allclose(made.params(), [2, 2])


def test_a_reader_whose_round_is_over_is_not_waited_for() -> None:
    made, _, reader = one_way()
    made.handle(offer(reader, 2, 0), 1.0)
    assert made.figures.given_up == 0
    np.testing.assert_allclose(made.params(), [2, 2])


# ---------------------------------------------------------------------------------------------------- the dead, in time


def watching(strategy: Strategy[Any] | None = None) -> MixPeer:
    """It looks after its neighbors itself."""
    settings = MixSettings(round_s=1.0, detection=Detection())
    plan = Plan(topology.ring, strategy or DPsgd())
    made = MixPeer(ME, ONES.layout, plan, np.random.default_rng(0), settings)
    made.handle(Initialized(ONES), 0.0)
    for other in (A, B):
        made.handle(Joined(other), 0.0)
    return made


def pass_time(made: MixPeer, start: float, end: float, *said: Event) -> list[tuple[float, Effect]]:
    """Every tenth of a second all this is said, and it is called when it wants to be; what it does, and when."""
    effects: list[tuple[float, Effect]] = []
    for step in range(round(10 * start) + 1, round(10 * end) + 1):
        now = step / 10
        while made.deadline() <= now:
            due = max(made.deadline(), now - 0.1)
            effects += [(due, each) for each in made.handle(Ticked(), due)]
        for event in said:
            effects += [(now, each) for each in made.handle(event, now)]
    return effects


def sent(kind: Any, effects: Iterable[tuple[float, Effect]]) -> list[tuple[PeerId, Any]]:
    return [(e.to, e.message) for _, e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


@pytest.mark.parametrize(
    ("event", "lives"),
    [(Progressed(B), True), (Progressed(B, arrived=False), False), (offer(B, 0, 0), True), (offer(A, 0, 0), False)],
    ids=["a packet comes in", "it waits for the replica", "an offer", "of another"],
)
def test_what_is_a_sign_of_life(event: Event, lives: bool) -> None:
    made = watching()
    pass_time(made, 0.0, 12.0, offer(A, 0, 0), event)
    assert made.departed == ([] if lives else [B])


def test_who_is_silent_is_pinged_by_us_and_then_by_others() -> None:
    made = watching()
    effects = pass_time(made, 0.0, 1.8, offer(A, 0, 0))
    assert sent(Ping, effects) == [(B, Ping(ME, 1))]
    assert sent(PingRequest, effects) == [(A, PingRequest(ME, 1, B))]


@pytest.mark.parametrize("answers", [True, False])
def test_whoever_asks_for_a_ping_hears_what_came_of_it(answers: bool) -> None:
    made = watching()
    effects = made.handle(Received(PingRequest(A, 7, B)), 0.1)
    assert sent(Ping, [(0.1, each) for each in effects]) == [(B, Ping(ME, 1))]
    late = [(0.2, each) for each in made.handle(Received(Ack(B, 1, B)), 0.2)] if answers else []
    late += pass_time(made, 0.2, 0.9)
    assert sent(Ack | Nack, late) == [(A, Ack(ME, 7, B) if answers else Nack(ME, 7, B))]


def test_pings_are_answered_where_somebody_looks_after_neighbors() -> None:
    ping = Received(Ping(A, 3, (Rumor(B, Standing.DEAD, 0, B),)))
    made = watching()
    effects = made.handle(ping, 0.1)
    ((to, ack),) = sent(Ack, [(0.1, each) for each in effects])
    assert (to, ack.peer, ack.k, ack.about) == (A, ME, 3, ME)
    assert made.departed == [B], "what came with it is believed"
    made.handle(Received(Ack(A, 3, A, (Rumor(B, Standing.ALIVE, 1, B),))), 0.2)
    assert made.departed == []
    assert sent(Ack, [(0.1, each) for each in active(DPsgd()).handle(ping, 0.1)]) == []


@pytest.mark.parametrize("nack", [True, False])
def test_who_gets_no_answer_from_others_either_doubts_itself(nack: bool) -> None:
    made = watching()
    pass_time(made, 0.0, 1.8, offer(A, 0, 0))
    if nack:
        made.handle(Received(Nack(A, 1, B)), 1.8)
    pass_time(made, 1.8, 2.1, offer(A, 0, 0))
    assert made.membership is not None
    assert made.membership.health == (0 if nack else 1)


def test_whose_connection_broke_is_suspected_at_once_and_all_are_told() -> None:
    made = watching()
    pass_time(made, 0.0, 1.0, offer(A, 0, 0))
    (told,) = of(Offer, made.handle(Disconnected(B), 1.1))
    assert told.rumors == (Rumor(B, Standing.SUSPECTED, 0, ME),)
    pass_time(made, 1.1, 1.9, offer(A, 0, 0))
    assert made.departed == [B]
    assert active(DPsgd()).handle(Disconnected(B), 1.1) == [], "where somebody else looks after neighbors"


def test_whoever_leaves_says_so_and_is_believed() -> None:
    made = watching()
    made.handle(offer(B, 0, 0), 0.1)
    made.handle(Received(Offer(B, 0, {}, (Rumor(B, Standing.DEAD, 0, B),))), 0.2)
    assert made.departed == [B]
    (goodbye,) = of(Offer, made.handle(Leaving(), 0.3))
    assert goodbye.rumors == (Rumor(ME, Standing.DEAD, 0, ME),)


def test_who_was_there_first_and_never_spoke_may_have_died_before() -> None:
    settings = MixSettings(detection=Detection(unheard_s=4.0, greeting_s=1.5))
    made = MixPeer(ME, ONES.layout, Plan(topology.ring, DPsgd()), np.random.default_rng(0), settings)
    made.handle(Joined(A), 0.0)
    made.handle(Initialized(ONES), 0.0)
    made.handle(Joined(B), 0.0)
    pass_time(made, 0.0, 1.7)
    assert made.departed == [A]


def test_somebody_new_is_told_at_once_of_us_also_when_nobody_is_suspected() -> None:
    made = watching()
    pass_time(made, 0.0, 0.1)
    assert of(Offer, made.handle(Joined(PeerId("d")), 0.2))


HAPPENINGS = [
    lambda n, now: Computed(ONES),
    lambda n, now: offer(A, n, n),
    lambda n, now: offer(B, n, 0),
    lambda n, now: offer(B, n, n),
    lambda n, now: Received(PacketRequest(A, n, 1)),
    lambda n, now: Received(PacketRequest(B, n, 1)),
    lambda n, now: Progressed(A),
    lambda n, now: Departed(A),
    lambda n, now: Returned(A),
    lambda n, now: Disconnected(B),
    lambda n, now: Tasked(n % 2),
    lambda n, now: Resumed(1),
    lambda n, now: Settling(2, 1),
    lambda n, now: Exhausted(1.0),
]


@pytest.mark.parametrize("strategy", [PushSum(), DPsgd(), Every(2, PushSum()), Every(2, DPsgd())], ids=repr)
@given(
    story=st.lists(
        st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 3), st.floats(0.01, 3.0), st.floats(0.0, 0.99)),
        max_size=12,
    )
)
def test_before_its_deadline_there_is_nothing_to_do(strategy: Strategy[Any], story: list[Any]) -> None:
    made, now = watching(strategy), 0.0
    for happening, n, wait, share in story:
        made.handle(happening(n, now), now)
        end = now + wait
        while now < end:
            due = made.deadline()
            assert due > now, "it would be called without end"
            early = min(now + share * (due - now), end)
            if early < due:
                assert made.handle(Ticked(), early) == []
                assert made.deadline() == due
            now = min(due, end)
            if now == due:
                made.handle(Ticked(), now)
