"""Who is there: stories of one machine with the times at which it acts, properties of it under any events, and swarms.

A story is told in lines, `time: what was done or is thought`. In it a, b and c advertise twice a second and answer when
they are asked to ping, as long as a test does not say otherwise; x was heard at 0.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.events import Effect, Send
from gossip.membership import LATE_S, RUMORS_MAX, TRANSMISSIONS_FACTOR, Detection, Membership
from gossip.messages import Ack, Nack, PeerId, Ping, PingRequest, Rumor, Standing

ME, A, B, C, X = (PeerId(name) for name in ("me", "a", "b", "c", "x"))
ALIVE, SUSPECTED, DEAD = Standing
FAR = Detection()


def rumor(standing: Standing, incarnation: int = 0, by: PeerId = A, about: PeerId = X) -> Rumor:
    return Rumor(about, standing, incarnation, by)


def tick(one: Membership, now: float) -> list[Effect]:
    effects = one.tick(now)
    assert one.deadline() > now, "a driver would come back at once, and for ever"
    return effects


class Story:
    """One machine, and the time that passes for it."""

    def __init__(
        self,
        others: Sequence[PeerId] = (A, B, C, X),
        *,
        nacks: bool = True,
        relays: bool = True,
    ) -> None:
        self.one = Membership(ME, Detection(), random.Random(1) if relays else None)
        self.now = 0.0
        self.lines: list[str] = []
        self.pings: list[Ping] = []
        self.requests: list[PingRequest] = []
        self.talks = set(others) - {X}
        """Who advertises."""
        self.nacks = nacks
        """Whether those who are asked to ping answer that they do not hear it."""
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._thought = {X: ALIVE}
        self._order = 0
        for peer in others:
            self.one.join(peer, 0.0)

    def at(self, time: float, action: Callable[[], object]) -> None:
        """Let something happen then."""
        self._order += 1
        heapq.heappush(self._later, (time, self._order, action))

    def until(self, end: float) -> Story:
        """Let time pass, with everything that comes due."""
        for beat in range(math.floor(self.now * 2) + 1, math.floor(end * 2) + 1):
            self.at(beat / 2, lambda: [self.one.heard(peer, self.now) for peer in sorted(self.talks)])
        while min(self.one.deadline(), self._later[0][0] if self._later else math.inf) <= end:
            if self._later and self._later[0][0] <= self.one.deadline():
                self.now, _, action = heapq.heappop(self._later)
                action()
            else:
                self.now = self.one.deadline()
            self._tell(tick(self.one, self.now))
        self.now = end
        return self

    def tells(self, story: str) -> None:
        assert "\n".join(self.lines) == dedent(story).strip()

    def thinks(self, standing: Standing) -> bool:
        return self.one.contacts[X].standing is standing

    def _refuse(self, relay: PeerId, k: int, target: PeerId) -> None:
        assert self.one.on_message(Nack(relay, k, target), self.now) == []

    def _tell(self, effects: list[Effect]) -> None:
        asked = []
        for effect in effects:
            assert isinstance(effect, Send)
            match effect.message:
                case Ping() as ping:
                    self.pings.append(ping)
                    self.lines.append(f"{self.now:.1f}: ping {effect.to}")
                case PingRequest(_, k, target) as request:
                    self.requests.append(request)
                    asked.append(effect.to)
                    if self.nacks:
                        self.at(self.now + 0.4, lambda to=effect.to: self._refuse(to, k, target))
        if asked:
            self.lines.append(f"{self.now:.1f}: ask {' '.join(asked)}")
        thought = self.one.contacts[X].standing
        if thought is not self._thought[X]:
            self._thought[X] = thought
            self.lines.append(f"{self.now:.1f}: {thought}")
        for peer, gone in self.one.changes(self.now):
            self.lines.append(f"{self.now:.1f}: {peer} is {'gone' if gone else 'back'}")


# ------------------------------------------------------------------------------------------------ from silence to death


def test_a_silent_peer_is_pinged_asked_after_suspected_and_dead_in_time() -> None:
    story = Story().until(10.0)
    story.tells(
        """
        1.0: ping x
        1.5: ask a b c
        2.0: ping x
        2.0: suspected
        2.5: ping x
        3.0: ping x
        3.5: dead
        3.5: x is gone
        """
    )


def test_the_only_other_peer_is_found_dead_in_the_same_time() -> None:
    story = Story((X,)).until(10.0)
    assert story.lines[-2:] == ["3.5: dead", "3.5: x is gone"]


def test_without_chance_nobody_is_asked_and_the_dead_are_found_in_the_same_time() -> None:
    story = Story(relays=False).until(10.0)
    story.tells(
        """
        1.0: ping x
        2.0: ping x
        2.0: suspected
        2.5: ping x
        3.0: ping x
        3.5: dead
        3.5: x is gone
        """
    )


def test_nobody_who_advertises_is_pinged() -> None:
    story = Story()
    story.talks.add(X)
    assert story.until(60.0).lines == []


def test_an_answer_in_time_ends_it() -> None:
    story = Story().until(1.2)
    assert story.lines == ["1.0: ping x"]
    story.at(1.4, lambda: story.one.heard(X, story.now))
    assert story.until(2.3).lines == ["1.0: ping x"]
    assert story.until(2.4).lines == ["1.0: ping x", "2.4: ping x"]


def test_an_answer_through_another_ends_it_but_who_is_never_heard_is_gone_for_us() -> None:
    story = Story()

    def relay() -> None:
        while story.requests:
            story.one.on_ack(Ack(A, story.requests.pop().k, X), story.now)

    for tenth in range(1, 60):
        story.at(tenth / 10, relay)
    story.until(5.5)
    story.tells(
        """
        1.0: ping x
        1.5: ask a b c
        2.6: ping x
        3.1: ask a b c
        4.0: x is gone
        4.2: ping x
        4.7: ask a b c
        """
    )
    assert story.thinks(ALIVE)


def test_an_answer_through_another_that_comes_late_does_not_end_a_suspicion() -> None:
    story = Story().until(2.2)
    story.one.on_ack(Ack(A, story.requests[0].k, X), 2.2)
    assert story.thinks(SUSPECTED)


def test_a_suspect_is_told_in_the_ping_itself() -> None:
    story = Story().until(2.0)
    assert story.pings[0].rumors == ()
    assert story.pings[1].rumors[0] == rumor(SUSPECTED, by=ME)


def test_who_is_heard_again_is_back_and_watched_again() -> None:
    story = Story().until(10.0)
    story.lines.clear()
    story.at(20.0, lambda: story.one.heard(X, story.now))
    story.until(30.0)
    story.tells(
        """
        20.0: alive
        20.0: x is back
        21.0: ping x
        21.5: ask a b c
        22.0: ping x
        22.0: suspected
        22.5: ping x
        23.0: ping x
        23.5: dead
        23.5: x is gone
        """
    )


def test_the_only_other_peer_is_watched_again_when_it_is_back() -> None:
    story = Story((X,)).until(10.0)
    story.at(20.0, lambda: story.one.heard(X, story.now))
    assert story.until(30.0).lines[-2:] == ["23.5: dead", "23.5: x is gone"]


# -------------------------------------------------------------------------------------------------- relaying for others


def test_who_is_asked_pings_and_passes_the_answer_on() -> None:
    one = Story().one
    (ping,) = one.on_message(PingRequest(A, 7, X), 0.1)
    assert isinstance(ping, Send)
    assert isinstance(ping.message, Ping)
    assert ping.to == X
    assert one.on_message(Ack(X, ping.message.k, X), 0.2) == [Send(A, Ack(ME, 7, X))]
    assert tick(one, 0.6) == []


def test_who_is_asked_says_so_when_it_gets_no_answer_before_the_other_gives_up() -> None:
    one = Story().one
    one.on_ping_request(PingRequest(A, 7, X), 0.1)
    assert one.deadline() == pytest.approx(0.5)
    assert tick(one, one.deadline()) == [Send(A, Nack(ME, 7, X))]
    assert all(not isinstance(effect, Send) for effect in tick(one, 0.9))


def test_relays_are_bounded_and_for_members_only() -> None:
    one = Story().one
    bound = FAR.relays_max * 4
    assert one.on_ping_request(PingRequest(A, 1, PeerId("stranger")), 0.1) == []
    asked = [one.on_ping_request(PingRequest(A, k, X), 0.1) for k in range(100)]
    assert sum(len(effects) for effects in asked) == bound
    assert len(tick(one, 0.5)) == bound
    assert len(one.on_ping_request(PingRequest(A, 200, X), 0.5)) == 1


def test_a_ping_is_answered() -> None:
    assert Story().one.on_message(Ping(A, 9), 0.1) == [Send(A, Ack(ME, 9, ME))]


# ----------------------------------------------------------------------------------------------------------- own health


def test_relays_that_do_not_answer_at_all_make_us_doubt_ourselves() -> None:
    story = Story(nacks=False).until(2.0)
    assert story.one.health == 3
    story = Story().until(2.0)
    assert story.one.health == 0


def test_doubt_is_bounded_gives_more_time_and_goes_down_while_others_are_heard() -> None:
    story = Story(nacks=False).until(10.0)
    story.tells(
        """
        1.0: ping x
        1.5: ask a b c
        2.0: ping x
        2.0: suspected
        4.0: ping x
        4.0: x is gone
        5.0: dead
        """
    )
    assert story.one.health == 0
    for incarnation in range(20):
        story.one.on_rumors([rumor(SUSPECTED, incarnation, about=ME)], 10.0)
    assert story.one.health == FAR.health_max


def test_an_answered_ping_is_a_reason_to_trust_ourselves() -> None:
    story = Story(nacks=False).until(2.0)
    assert story.one.on_message(Ack(X, story.pings[-1].k, X), 2.1) == []
    assert story.one.health == 2


def test_who_hears_nobody_finds_all_out_of_reach_and_declares_nobody_dead_meanwhile() -> None:
    story = Story(nacks=False)
    story.talks.clear()
    story.until(4.0)
    assert [line for line in story.lines if "gone" in line] == [f"4.0: {peer} is gone" for peer in (A, B, C, X)]
    assert all(contact.standing is not DEAD for contact in story.one.contacts.values())


# -------------------------------------------------------------------------------------------------------- confirmations


@pytest.mark.parametrize("others", range(6))
def test_confirmations_shorten_suspicion_by_the_logarithm_of_lifeguards_formula(others: int) -> None:
    story = Story().until(2.0)
    doubters = [PeerId(f"doubter {index}") for index in range(others)]
    story.one.on_rumors([rumor(SUSPECTED, by=peer) for peer in doubters], 2.0)
    story.one.on_rumors([rumor(SUSPECTED, by=peer) for peer in doubters], 2.0)  # who repeats itself counts once
    story.until(10.0)
    share = math.log(min(others, 3) + 1) / math.log(3 + 1)
    died_at = 2.0 + max(0.5, 1.5 - (1.5 - 0.5) * share)
    assert story.lines[-1] == f"{died_at:.1f}: x is gone"


def test_confirmations_that_make_a_suspicion_long_over_are_no_pause_of_our_own() -> None:
    one = Membership(ME, Detection(), None)
    one.join(X, 0.0)
    one.health = 2  # everybody has three times as long
    one.on_rumors([rumor(SUSPECTED)], 1.0)
    while one.deadline() < 4.0:
        tick(one, one.deadline())
    assert one.contacts[X].standing is SUSPECTED
    one.on_rumors([rumor(SUSPECTED, by=peer) for peer in (B, C, ME)], 4.0)
    tick(one, 4.0)
    assert one.contacts[X].standing is DEAD


def test_where_no_confirmation_is_wanted_suspicion_is_short() -> None:
    one = Membership(ME, Detection(confirmations_max=0), random.Random(1))
    one.join(X, 0.0, known=True)
    one.on_rumors([rumor(SUSPECTED)], 1.0)
    one.tick(1.5)
    assert one.contacts[X].standing is DEAD


def test_who_learned_of_a_suspicion_confirms_it_when_its_own_ping_is_not_answered() -> None:
    story = Story()
    story.at(1.0, lambda: story.one.on_rumors([rumor(SUSPECTED)], 1.0))
    story.until(1.4)
    assert story.one.rumors() == (rumor(SUSPECTED),)
    story.until(1.5)
    assert story.one.rumors() == (rumor(SUSPECTED, by=ME),)
    story.until(10.0)
    story.tells(
        """
        1.0: ping x
        1.0: suspected
        1.5: ping x
        2.0: dead
        2.0: x is gone
        """
    )


# --------------------------------------------------------------------------------------------------------------- rumors


def test_a_suspect_objects_with_a_higher_incarnation_and_that_clears_it() -> None:
    story = Story().until(2.0)
    suspect = Membership(X, Detection(), random.Random(1))
    suspect.on_ping(story.pings[-1], 2.1)
    objection = rumor(ALIVE, 1, X)
    assert suspect.rumors() == (objection,)
    story.one.on_rumors([objection], 2.2)
    assert story.thinks(ALIVE)
    assert story.one.rumors() == (objection,)  # the others are to know, too
    story.one.on_rumors([rumor(SUSPECTED, 0, B), rumor(DEAD, 0, B)], 2.3)
    assert story.thinks(ALIVE)


def test_an_objection_that_was_missed_is_repeated_and_not_raised() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    one.on_rumors([rumor(SUSPECTED, 0, about=ME)], 0.0)
    while one.rumors():
        pass
    one.on_rumors([rumor(DEAD, 0, about=ME)], 1.0)
    assert one.rumors() == (rumor(ALIVE, 1, ME, ME),)
    assert one.health == 1


def test_an_incarnation_we_never_had_is_not_answered() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    one.on_rumors([rumor(SUSPECTED, (1 << 63) - 1, about=ME), rumor(ALIVE, 0, about=ME)], 0.0)
    assert (one.incarnation, one.rumors(), one.health) == (0, (), 0)


@pytest.mark.parametrize("standing", Standing)
def test_a_rumor_of_an_old_incarnation_changes_nothing(standing: Standing) -> None:
    story = Story().until(1.2)
    story.one.on_rumors([rumor(ALIVE, 5, X)], 1.2)
    before = story.one.contacts[X].standing, story.one.rumors()
    story.one.on_rumors([rumor(standing, 4)], 1.3)
    assert (story.one.contacts[X].standing, story.one.rumors()) == before


def test_within_an_incarnation_death_outweighs_suspicion_and_that_life() -> None:
    story = Story().until(1.2)
    for standing, thought in (
        (SUSPECTED, SUSPECTED),
        (ALIVE, SUSPECTED),
        (DEAD, DEAD),
        (SUSPECTED, DEAD),
        (ALIVE, DEAD),
    ):
        story.one.on_rumors([rumor(standing)], 1.2)
        assert story.thinks(thought)
    story.one.on_rumors([rumor(ALIVE, 1, X)], 1.2)
    assert story.thinks(ALIVE)


def test_who_was_heard_a_moment_ago_is_not_suspected_or_buried_on_rumors() -> None:
    story = Story()
    story.talks.add(X)
    story.until(2.9)
    story.one.on_rumors([rumor(SUSPECTED), rumor(DEAD), rumor(DEAD, 3, B)], 2.9)
    assert story.thinks(ALIVE)
    assert story.one.rumors() == ()


def test_a_farewell_is_believed_at_once_and_passed_on() -> None:
    story = Story()
    story.talks.add(X)
    leaver = Membership(X, Detection(), random.Random(1))
    story.at(2.6, lambda: story.one.on_rumors(leaver.farewell(), 2.6))
    story.at(2.6, lambda: story.talks.discard(X))
    story.until(9.0)
    story.tells(
        """
        2.6: dead
        2.6: x is gone
        """
    )
    assert story.one.rumors() == leaver.farewell()


def test_a_rumor_is_told_to_all_a_bounded_number_of_times() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    for index in range(30):
        one.join(PeerId(f"{index}"), 0.0)
    one.on_rumors([rumor(DEAD, about=PeerId("7"))], 5.0)
    told = 0
    while one.rumors():
        told += 1
    assert told == TRANSMISSIONS_FACTOR * math.ceil(math.log2(2 + 30))
    assert not one.news


def test_what_one_peer_is_told_does_not_count_as_told_to_all() -> None:
    story = Story().until(2.0)
    assert rumor(SUSPECTED, by=ME) in story.pings[-1].rumors
    assert story.one.news
    for k in range(100):
        (answer,) = story.one.on_ping(Ping(A, k), 2.1)
        assert isinstance(answer, Send)
        assert isinstance(answer.message, Ack)
        assert answer.message.rumors == (rumor(SUSPECTED, by=ME),)
    assert story.one.news
    assert story.one.rumors() == (rumor(SUSPECTED, by=ME),)
    assert not story.one.news


def test_many_rumors_take_turns_and_there_is_news_until_each_was_told() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    peers = [PeerId(f"{index:02}") for index in range(50)]
    for peer in peers:
        one.join(peer, 0.0)
    one.on_rumors([rumor(DEAD, about=peer) for peer in peers], 5.0)
    told: list[tuple[Rumor, ...]] = []
    while one.news:
        told.append(one.rumors())
    assert [len(rumors) for rumors in told] == [RUMORS_MAX] * 4
    assert {heard.about for rumors in told for heard in rumors} == set(peers)
    suspecting = [effect.message for effect in tick(one, one.deadline()) if isinstance(effect, Send)]
    assert all(len(ping.rumors) <= RUMORS_MAX for ping in suspecting if isinstance(ping, Ping))


def test_all_that_is_sent_to_one_carries_the_rumors() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    for peer in (A, B, X):
        one.join(peer, 0.0)
    news = rumor(DEAD, about=B)
    one.on_rumors([news], 5.0)
    sent = [*one.on_ping(Ping(A, 1), 0.1), *one.on_ping_request(PingRequest(A, 7, X), 0.1)]
    ping = sent[-1]
    assert isinstance(ping, Send)
    assert isinstance(ping.message, Ping)
    sent += [*one.on_ack(Ack(X, ping.message.k, X), 0.2), *tick(one, 1.2)]
    assert [(each.to, type(each.message)) for each in sent if isinstance(each, Send)] == [
        (A, Ack),
        (X, Ping),
        (A, Ack),
        (A, Ping),
        (X, Ping),
    ]
    for each in sent:
        assert isinstance(each, Send)
        assert isinstance(each.message, Ping | Ack)
        assert each.message.rumors == (news,)
    passed_on = sent[2]
    assert isinstance(passed_on, Send)
    assert passed_on.message == Ack(ME, 7, X, (news,))


def test_who_was_there_before_us_has_time_to_greet_us() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    one.join(X, 10.0, known=False)
    assert one.deadline() == 10.0 + FAR.greeting_s
    assert tick(one, 10.0 + FAR.greeting_s - 0.01) == []
    assert one.changes(10.0 + FAR.greeting_s - 0.01) == []
    assert [each.to for each in tick(one, 10.0 + FAR.greeting_s) if isinstance(each, Send)] == [X]
    assert one.changes(10.0 + FAR.greeting_s) == [(X, True)]


def test_who_was_there_before_us_is_not_looked_at_sooner_for_another() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    one.join(X, 0.0, known=False)
    one.join(A, 0.0)
    assert [each.to for each in tick(one, FAR.silent_s) if isinstance(each, Send)] == [A]
    assert one.changes(FAR.silent_s) == []
    assert X in [each.to for each in tick(one, FAR.greeting_s) if isinstance(each, Send)]


def test_each_ping_has_a_number_of_its_own_that_its_answer_names() -> None:
    story = Story((X, PeerId("y")), relays=False)
    story.talks.clear()
    story.until(FAR.silent_s)
    mine = [ping.k for ping in story.pings]
    (passed,) = story.one.on_ping_request(PingRequest(A, 7, X), 1.0)
    assert isinstance(passed, Send)
    assert isinstance(passed.message, Ping)
    assert len({*mine, passed.message.k}) == 3
    story.one.on_ack(Ack(X, mine[0], X), 1.1)
    assert story.one.contacts[X].probe is None
    assert story.one.contacts[PeerId("y")].probe is not None
    story.one.on_ack(Ack(PeerId("y"), mine[0], PeerId("y")), 1.1)  # of another ping
    assert story.one.contacts[PeerId("y")].probe is not None


def test_no_more_are_asked_to_ping_than_wanted() -> None:
    story = Story((*(PeerId(f"p{index}") for index in range(8)), X)).until(1.5)
    assert len(story.requests) == FAR.relays_max


def test_a_broken_connection_is_our_own_suspicion() -> None:
    one = Story().one
    one.disconnected(X, 0.1)
    assert one.rumors() == (rumor(SUSPECTED, by=ME),)


def test_one_that_said_farewell_is_back_when_others_hear_it_in_a_newer_incarnation() -> None:
    one = Story().one
    one.on_rumors([rumor(DEAD, by=X)], 0.1)
    assert one.changes(0.1) == [(X, True)]
    one.on_rumors([rumor(ALIVE, incarnation=1)], 0.2)
    assert one.changes(0.2) == [(X, False)]


def test_who_is_only_suspected_in_a_newer_incarnation_is_back_from_the_dead() -> None:
    one = Story().one
    one.on_rumors([rumor(DEAD)], 1.5)
    assert one.changes(1.5) == [(X, True)]
    one.on_rumors([rumor(SUSPECTED, incarnation=1)], 1.6)
    assert one.changes(1.6) == [(X, False)]


def test_who_finds_one_dead_tells_all_and_a_suspect_hears_of_it_among_no_more_than_fits() -> None:
    one = Membership(ME, Detection(confirmations_max=0), None)
    one.join(X, 0.0)
    others = [PeerId(f"{index:02}") for index in range(2 * RUMORS_MAX)]
    for peer in others:
        one.join(peer, 0.0)
    one.on_rumors([rumor(ALIVE, incarnation=1, about=peer) for peer in others], 0.1)
    now, said = 0.0, list[Ping]()
    while one.contacts[X].standing is not DEAD:
        now = one.deadline()
        for peer in others:
            one.heard(peer, now)
        effects = tick(one, now)
        said += [each.message for each in effects if isinstance(each, Send) and isinstance(each.message, Ping)]
    assert {len(ping.rumors) for ping in said} == {RUMORS_MAX}
    assert said[-1].rumors[0] == rumor(SUSPECTED, by=ME)
    assert rumor(DEAD, by=ME) in {heard for _ in range(3) for heard in one.rumors()}


def test_one_that_was_only_out_of_our_own_reach_is_back_when_we_hear_it() -> None:
    one = Membership(ME, Detection(), random.Random(1))
    one.join(X, 0.0, known=False)
    now = one.deadline()
    tick(one, now)
    assert one.changes(now) == [(X, True)]
    assert one.contacts[X].standing is ALIVE
    one.heard(X, now + 0.1)
    assert one.changes(now + 0.1) == [(X, False)]


def test_strangers_are_nobodys_rumors() -> None:
    one = Story().one
    one.on_rumors([rumor(standing, 3, about=PeerId("stranger")) for standing in Standing], 0.1)
    one.heard(PeerId("stranger"), 0.1)
    one.disconnected(PeerId("stranger"), 0.1)
    assert one.rumors() == ()
    assert PeerId("stranger") not in one.contacts


# --------------------------------------------------------------------------------------------------- broken connections


def test_a_broken_connection_is_death_in_a_moment_unless_heard_again() -> None:
    story = Story()
    story.talks.add(X)
    story.at(3.2, lambda: story.one.disconnected(X, story.now))
    story.at(3.2, lambda: story.talks.discard(X))
    story.until(10.0)
    story.tells(
        """
        3.2: suspected
        3.7: dead
        3.7: x is gone
        """
    )

    story = Story()
    story.talks.add(X)
    story.at(3.2, lambda: story.one.disconnected(X, story.now))
    story.until(10.0)
    story.tells(
        """
        3.2: suspected
        3.5: alive
        """
    )


def test_a_broken_connection_shortens_a_suspicion() -> None:
    story = Story()
    story.at(2.2, lambda: story.one.disconnected(X, story.now))
    assert story.until(10.0).lines[-2:] == ["2.5: dead", "2.5: x is gone"]


def test_a_broken_connection_to_one_that_is_dead_changes_nothing() -> None:
    story = Story().until(5.0)
    told = list(story.lines)
    story.at(6.0, lambda: story.one.disconnected(X, story.now))
    assert story.until(10.0).lines == told


def test_rumors_of_one_whose_connection_broke_are_believed_though_it_was_heard() -> None:
    story = Story()
    story.talks.add(X)
    story.until(2.9)
    story.one.disconnected(X, 2.9)
    story.one.on_rumors([rumor(DEAD)], 2.9)
    assert story.thinks(DEAD)


# ----------------------------------------------------------------------------------------------------------- own pauses


def resumed(one: Membership, now: float) -> None:
    """Nobody is blamed: whatever was heard before counts from now."""
    assert all(contact.standing is ALIVE for contact in one.contacts.values())
    assert one.changes(now) == []
    tick(one, now)
    assert all(contact.standing is ALIVE for contact in one.contacts.values())
    assert one.changes(now) == []


@pytest.mark.parametrize("seconds", [0.0, 1.2, 1.7, 2.2])
def test_after_a_pause_of_our_own_nobody_is_blamed_whatever_comes_first(seconds: float) -> None:
    """Before it, x was silent for so many seconds: it is not pinged yet, pinged, asked after, suspected."""
    woken: list[Callable[[Story], object]] = [
        lambda story: tick(story.one, 100.0),
        lambda story: story.one.heard(A, 100.0),
        lambda story: (story.one.heard(A, 100.0), story.one.on_rumors([rumor(SUSPECTED)], 100.0)),
    ]
    for wake in woken:
        story = Story().until(seconds)
        story.one.changes(seconds)
        wake(story)
        resumed(story.one, 100.0)
        assert story.one.health >= 1
        assert not any(isinstance(effect, Send) for effect in tick(story.one, 100.9))


def test_a_pause_of_our_own_is_one_reason_for_doubt_and_over_when_it_was_noticed() -> None:
    for notice in (lambda one: one.heard(A, 20.0), lambda one: one.tick(20.0)):
        one = Story().one
        notice(one)
        assert one.health == 1
        assert one.deadline() > 20.0
        one.heard(B, 20.1)
        assert one.health == 1


def test_connections_that_broke_in_a_pause_of_our_own_give_time_to_be_made_again() -> None:
    story = Story().until(1.2)
    for peer in (A, B, C, X):
        story.one.disconnected(peer, 100.0)  # the first thing we see
    tick(story.one, 100.0)
    resumed(story.one, 100.0)
    for peer in (A, B, C, X):
        story.one.disconnected(peer, 100.1)  # or the second
    tick(story.one, 101.0)
    assert all(contact.standing is SUSPECTED for contact in story.one.contacts.values())


def test_who_was_out_of_reach_before_a_pause_stays_so() -> None:
    story = Story(nacks=False).until(4.2)
    assert story.lines[-1] == "4.0: x is gone"
    story.one.heard(A, 100.0)
    tick(story.one, 100.0)
    story.one.on_rumors([Rumor(B, DEAD, 0, B)], 100.0)
    assert story.one.changes(100.0) == [(B, True)]


def test_who_comes_a_little_late_was_not_paused() -> None:
    story = Story().until(1.2)
    assert story.one.deadline() == 1.5
    tick(story.one, 1.5 + LATE_S - 0.1)
    assert story.one.contacts[X].heard_at == 0.0


# ----------------------------------------------------------------------------------------------------------- any events

others = st.sampled_from([A, B, C, X, PeerId("stranger")])
rumors = st.lists(
    st.builds(Rumor, others | st.just(ME), st.sampled_from(Standing), st.integers(0, 3), others | st.just(ME)),
    max_size=3,
).map(tuple)
gaps = st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 10.0])
steps = st.tuples(
    st.sampled_from(["heard", "broken", "ping", "request", "ack", "nack", "rumors", "nothing"]),
    others,
    others,
    st.integers(0, 30),
    rumors,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(gaps, st.booleans(), steps), max_size=40))
def test_whatever_happens_bounds_hold_and_there_is_always_a_next_deadline(
    events: list[tuple[float, bool, tuple[str, PeerId, PeerId, int, tuple[Rumor, ...]]]],
) -> None:
    one = Membership(ME, Detection(), random.Random(1))
    for peer in (A, B, C, X):
        one.join(peer, 0.0)
    now, gone, last_heard = 0.0, set[PeerId](), dict.fromkeys((A, B, C, X), 0.0)
    for gap, punctual, (kind, peer, other, k, said) in events:
        goal = now + gap
        while punctual and one.deadline() <= goal:
            now = max(now, one.deadline())
            tick(one, now)
        now = goal
        effects: list[Effect] = []
        match kind:
            case "heard":
                one.heard(peer, now)
                last_heard[peer] = now
            case "broken":
                one.disconnected(peer, now)
            case "ping":
                effects = one.on_ping(Ping(peer, k, said), now)
            case "request":
                effects = one.on_ping_request(PingRequest(peer, k, other), now)
            case "ack":
                effects = one.on_ack(Ack(peer, k, other, said), now)
            case "nack":
                one.on_nack(Nack(peer, k, other))
            case "rumors":
                one.on_rumors(said, now)
        effects += tick(one, now)
        for effect in effects:
            assert isinstance(effect, Send)
            if isinstance(effect.message, Ping | Ack):
                assert len(effect.message.rumors) <= RUMORS_MAX
        for changed, is_gone in one.changes(now):
            assert is_gone == (changed not in gone), "a change that is none"
            gone ^= {changed}
        assert set(one.contacts) == {A, B, C, X}
        assert 0 <= one.health <= FAR.health_max
        assert one.incarnation <= 4
        assert len(one.rumors()) <= 5
        assert one.deadline() <= now + max(FAR.unheard_s, FAR.suspicion_max_s * (1 + one.health)) or gone
        if kind == "heard":
            assert peer not in gone


# --------------------------------------------------------------------------------------------------------------- swarms


class Swarm:
    """Machines that advertise to each other through a queue, which loses and delays."""

    def __init__(self, count: int, seed: int, loss: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.adverts = 0
        self.peers = {
            PeerId(f"p{index}"): Membership(PeerId(f"p{index}"), Detection(), self.random) for index in range(count)
        }
        self.crashed: set[PeerId] = set()
        self.cut: Callable[[PeerId, PeerId], bool] = lambda sender, receiver: False
        self.gone: dict[PeerId, set[PeerId]] = {peer: set() for peer in self.peers}
        self.died: list[tuple[float, PeerId, PeerId]] = []
        """When who declared whom dead or out of reach."""
        self._advertised = {peer: self.random.uniform(-0.5, 0.0) for peer in self.peers}
        self._due = dict.fromkeys(self.peers, 0.0)
        self._queue: list[tuple[float, int, PeerId, Callable[[Membership], list[Effect]]]] = []
        self._order = 0
        for me, one in self.peers.items():
            for other in self.peers:
                if other != me:
                    one.join(other, 0.0)

    @property
    def living(self) -> list[PeerId]:
        return [peer for peer in self.peers if peer not in self.crashed]

    def until(self, end: float) -> None:
        while True:
            wakes = [(self._due[peer], peer) for peer in self.living]
            arrives = self._queue[0][0] if self._queue else math.inf
            if min(arrives, min(wakes)[0]) > end:
                break
            if arrives <= min(wakes)[0]:
                self.now, _, peer, act = heapq.heappop(self._queue)
                if peer not in self.crashed:
                    self._carry_out(peer, act(self.peers[peer]))
                    self._wake(peer)
            else:
                self.now, peer = min(wakes)
                self._wake(peer)
        self.now = end

    def _wake(self, peer: PeerId) -> None:
        one = self.peers[peer]
        self._carry_out(peer, tick(one, self.now))
        for other, is_gone in one.changes(self.now):
            self.gone[peer] ^= {other}
            if is_gone:
                self.died.append((self.now, peer, other))
        due = self._advertised[peer] + (0.02 if one.news else 0.5)
        if self.now >= due:
            self._advertised[peer] = self.now
            self.adverts += 1
            rumors = one.rumors()
            for other in self.peers:
                if other != peer:
                    self._send(peer, other, lambda them: them.on_rumors(rumors, self.now) or [])
            due = self.now + 0.5
        self._due[peer] = min(due, one.deadline())

    def _send(self, sender: PeerId, to: PeerId, act: Callable[[Membership], list[Effect]]) -> None:
        if self.random.random() < self.loss or self.cut(sender, to):
            return

        def arrive(them: Membership) -> list[Effect]:
            them.heard(sender, self.now)
            return act(them)

        self._order += 1
        heapq.heappush(self._queue, (self.now + self.random.uniform(0.001, 0.02), self._order, to, arrive))

    def _carry_out(self, peer: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            assert isinstance(effect, Send)
            message = effect.message
            match message:
                case Ping():
                    self._send(peer, effect.to, lambda them, m=message: them.on_ping(m, self.now))
                case PingRequest():
                    self._send(peer, effect.to, lambda them, m=message: them.on_ping_request(m, self.now))
                case Ack():
                    self._send(peer, effect.to, lambda them, m=message: them.on_ack(m, self.now))
                case Nack():
                    self._send(peer, effect.to, lambda them, m=message: them.on_nack(m) or [])


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_crashed_peer_is_found_by_all_in_time_and_nobody_else(count: int, seed: int) -> None:
    swarm = Swarm(count, seed)
    swarm.until(swarm.random.uniform(5.0, 7.0))
    assert swarm.died == []
    crashed_at, crashed = swarm.now, swarm.random.choice(sorted(swarm.peers))
    swarm.crashed.add(crashed)
    swarm.until(30.0)
    assert {other for _, _, other in swarm.died} == {crashed}
    assert len(swarm.died) == count - 1
    assert all(when <= crashed_at + 3.6 for when, _, _ in swarm.died)


@pytest.mark.parametrize("seed", SEEDS)
def test_those_who_crash_together_are_found_before_their_silence_alone_would_tell(seed: int) -> None:
    swarm = Swarm(8, seed)
    swarm.until(5.0)
    swarm.crashed.update(swarm.random.sample(sorted(swarm.peers), 3))
    swarm.until(5.0 + FAR.unheard_s + 0.1)
    assert all(swarm.gone[peer] == swarm.crashed for peer in swarm.living)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_agree_again_when_loss_and_cuts_have_ended(seed: int) -> None:
    swarm = Swarm(7, seed, loss=0.6)
    names = sorted(swarm.peers)
    swarm.until(5.0)
    side = set(swarm.random.sample(names, 3))
    swarm.cut = lambda sender, receiver: sender in side and receiver not in side
    swarm.until(15.0)
    swarm.cut = lambda sender, receiver: (sender in side) != (receiver in side)
    swarm.crashed.add(swarm.random.choice(names))
    swarm.until(30.0)
    assert swarm.died  # there was something to mend
    swarm.loss, swarm.cut = 0.0, lambda sender, receiver: False
    swarm.until(36.0)
    assert all(swarm.gone[peer] == swarm.crashed for peer in swarm.living)
    healed = len(swarm.died)
    swarm.until(60.0)
    assert len(swarm.died) == healed
    assert all(swarm.peers[peer].health == 0 for peer in swarm.living)


@pytest.mark.parametrize("seed", SEEDS)
def test_rumors_do_not_echo(seed: int) -> None:
    swarm = Swarm(8, seed)
    swarm.until(5.0)
    before = swarm.adverts
    swarm.crashed.add(swarm.random.choice(sorted(swarm.peers)))
    swarm.until(20.0)
    regular = 7 * 15.0 / 0.5
    # each learns of the suspicion, at most three confirmations and the death, and says so once
    assert swarm.adverts - before <= regular + 7 * 5
    assert all(swarm.peers[peer].rumors() == () for peer in swarm.living)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_whose_words_reach_only_some_is_dead_to_nobody_whom_they_reach(seed: int) -> None:
    swarm = Swarm(6, seed)
    swarm.cut = lambda sender, receiver: (sender, receiver) == ("p0", "p1")
    swarm.until(60.0)
    assert {peer: gone for peer, gone in swarm.gone.items() if gone} == {"p1": {"p0"}}
