"""Groups of masters in virtual time: kills, freezes and cuts, on good and bad networks."""

from __future__ import annotations

import random

import pytest

from p2p.standby import member as member_module
from p2p.standby.log import Kept
from p2p.standby.member import Commit, Effect, Leads, Member, Send
from p2p.standby.messages import (
    Committed,
    Copy,
    Entry,
    Fetch,
    Lead,
    Log,
    Place,
    Prepare,
    Prepared,
    Recovered,
    Report,
    Silent,
    Suspect,
)
from p2p.standby.simulated import Bad, Fault, Group, WrongError

FAULTS: tuple[Fault, ...] = ("kill", "stand still", "cut off", "deaf")


def bad_day(seed: int) -> Group:
    """A day with some faults, drawn by its seed; checked."""
    drawn = random.Random(seed)
    members = drawn.choice([3, 3, 5])
    bad = Bad(0.01, drawn.choice([0, 0, 0.05, 0.2]), drawn.choice([0, 0.1]), drawn.choice([0, 0.2]))
    group = Group(members, 4, seed, bad)
    at = 1.0
    for _ in range(drawn.randrange(1, 5)):
        at += drawn.uniform(0.5, 8)
        kind: Fault = drawn.choice(FAULTS)
        group.fault(at, kind, drawn.choice([None, None, *range(members)]), drawn.uniform(0.3, 8))
    group.run(at + 8)
    group.check()
    return group


@pytest.mark.parametrize("seed", range(8))
def test_nothing_acknowledged_is_lost(seed: int) -> None:
    group = bad_day(seed)
    assert len(group.acknowledged) > 20


@pytest.mark.parametrize("seed", range(4))
def test_it_is_so_where_little_is_kept(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lags behind then needs a copy of the state."""
    monkeypatch.setattr(member_module, "KEPT_MAX", 4)
    bad_day(seed)


@pytest.mark.long
def test_three_hundred_bad_days(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 1300):
        monkeypatch.setattr(member_module, "KEPT_MAX", (1024, 4)[seed % 2])
        bad_day(seed)


@pytest.mark.parametrize("kind", FAULTS)
def test_thirty_times_in_a_row_another_takes_the_place_of_the_one_that_leads(kind: Fault) -> None:
    group = Group(3, 2, 7)
    for time in range(30):
        group.fault(2.0 + 10 * time, kind, None, 5.0 if kind == "kill" else 9.0)
    group.run(310)
    group.check()
    assert max(host.member.view for host in group.hosts) >= 30  # each time
    assert group.longest_wait() < 5


def test_without_most_of_the_members_nothing_is_acknowledged() -> None:
    group = Group(3, 2, 1)
    group.fault(1.0, "stand still", 0, 50.0)
    group.fault(1.0, "stand still", 1, 50.0)
    group.run(40)
    assert max(group.acknowledged.values()) > 1.0  # at the end they are back
    assert not [at for at in group.acknowledged.values() if 2.0 < at < 50.0]
    group.check()


def test_the_check_sees_what_is_lost() -> None:
    group = Group(3, 1, 1)
    group.run(1)
    group.acknowledged["another"] = 1.0
    with pytest.raises(WrongError, match="another"):
        group.check()
    group = Group(3, 1, 1)
    group.run(1)
    group.hosts[1].state.pop()
    with pytest.raises(WrongError, match="member 1"):
        group.check()


# ------------------------------------------------------------------------------------------------------- step by step


def said(effects: list[Effect], kind: type) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def commits(effects: list[Effect]) -> list[int]:
    return [effect.number for effect in effects if isinstance(effect, Commit)]


def test_an_entry_is_safe_when_most_hold_it() -> None:
    leader = Member(0, 5)
    effects = leader.propose(b"one", 0.0)
    assert [send.to for send in said(effects, Prepare)] == [1, 2, 3, 4]
    assert commits(effects) == []
    assert commits(leader.receive(3, Prepared(view=0, number=1), None, 0.1)) == []
    assert commits(leader.receive(3, Prepared(view=0, number=1), None, 0.1)) == []  # the same one again
    assert commits(leader.receive(1, Prepared(view=0, number=1), None, 0.1)) == [1]


def test_what_is_prepared_in_another_view_does_not_count() -> None:
    leader = Member(0, 3)
    leader.propose(b"one", 0.0)
    assert commits(leader.receive(1, Prepared(view=3, number=1), None, 0.1)) == []


def test_a_follower_holds_no_entry_without_those_before_it() -> None:
    follower = Member(1, 3)
    effects = follower.receive(0, Prepare(view=0, number=2, tag=0, committed=0), b"two", 0.0)
    assert said(effects, Prepared)[0].message == Prepared(view=0, number=0)
    assert follower.last == 0


def test_a_follower_applies_what_is_safe_and_no_more() -> None:
    follower = Member(1, 3)
    for number in (1, 2):
        follower.receive(0, Prepare(view=0, number=number, tag=0, committed=0), b"x", 0.0)
    assert commits(follower.receive(0, Committed(view=0, number=1, last=2), None, 0.1)) == [1]


def test_what_is_fetched_is_applied_as_it_comes() -> None:
    """Not all of it at the next beat: it would pile up."""
    follower = Member(1, 3)
    effects = follower.receive(0, Committed(view=0, number=2, last=3), None, 0.0)
    assert said(effects, Fetch)[0].message == Fetch(view=0, numbers=(1, 2, 3))
    came = [follower.receive(0, Entry(view=0, number=number, tag=0), b"x", 0.0) for number in (1, 2, 3)]
    assert [commits(effects) for effects in came] == [[1], [2], []]


def test_what_is_fetched_may_come_in_any_order() -> None:
    follower = Member(1, 3)
    follower.receive(0, Committed(view=0, number=4, last=4), None, 0.0)
    came = [follower.receive(0, Entry(view=0, number=number, tag=0), b"x", 0.0) for number in (3, 2, 2, 1, 3, 4)]
    assert [commits(effects) for effects in came] == [[], [], [], [1, 2, 3], [], [4]]


def test_what_was_fetched_in_an_earlier_view_is_none_of_a_later_one() -> None:
    follower = Member(1, 3)
    follower.receive(0, Committed(view=0, number=0, last=4), None, 0.0)
    follower.receive(0, Entry(view=0, number=2, tag=0), b"old", 0.0)
    follower.receive(2, Lead(view=2, log=Log(0, (), 0)), None, 1.0)
    effects = follower.receive(2, Committed(view=2, number=2, last=2), None, 2.0)
    assert said(effects, Fetch)[0].message == Fetch(view=2, numbers=(1, 2))
    follower.receive(2, Entry(view=2, number=1, tag=2), b"one", 2.0)
    assert follower.last == 1


def test_the_furthest_log_of_the_latest_view_begins_the_next_one() -> None:
    """A longer log of an older view has entries that nobody was told are safe."""
    member = Member(1, 3)
    effects = member.receive(2, Suspect(view=4), None, 0.0)
    assert Leads(None) in effects
    report = Report(view=4, normal_view=3, log=Log(0, (3,), 0))
    for data in (b"old", b"older"):
        member._entries.append(Kept(0, data))
    effects = member.receive(2, report, None, 0.0)
    assert not member.leads  # it has to fetch that log first
    assert member._change is not None
    assert member._change.log.tags == (3,)


def test_one_that_leads_no_more_learns_it_from_whoever_does() -> None:
    group = Group(3, 1, 3)
    group.fault(1.0, "cut off", 0, 6.0)
    group.run(10)
    assert {host.member.leader for host in group.hosts} == {1}
    group.check()


def test_what_was_held_in_an_earlier_view_does_not_count_when_it_leads_again() -> None:
    leader = Member(0, 5)
    for data in (b"one", b"two", b"three"):
        leader.propose(data, 0.0)
    leader.receive(1, Prepared(view=0, number=3), None, 0.0)  # of five members two have them
    for sender in (2, 3):
        leader.receive(sender, Suspect(view=5), None, 1.0)
    for sender in (2, 3):  # a later view has begun without them
        leader.receive(sender, Report(view=5, normal_view=4, log=Log(0, (), 0)), None, 1.0)
    assert leader.leads
    assert leader.last == 0
    assert commits(leader.propose(b"another", 1.0)) == []
    assert commits(leader.receive(2, Prepared(view=5, number=1), None, 1.0)) == []
    assert commits(leader.receive(3, Prepared(view=5, number=1), None, 1.0)) == [1]


def test_an_answer_to_an_earlier_life_is_none() -> None:
    member = Member(2, 3)
    member.recover(7, Place("tcp://here:1"), 0.0)
    for nonce in (6, 7):
        member.receive(0, Recovered(view=0, nonce=nonce, log=Log(0, (), 0)), None, 0.1)
        member.receive(1, Recovered(view=0, nonce=nonce, log=None), None, 0.1)
        assert (member.status == "normal") == (nonce == 7)


def test_a_copy_of_what_it_has_changes_nothing() -> None:
    follower = Member(1, 3)
    follower.receive(0, Prepare(view=0, number=1, tag=0, committed=1), b"one", 0.0)
    assert follower.receive(0, Copy(view=0, number=1), b"the state", 0.1) == []
    assert follower.last == 1


def test_one_that_stood_still_itself_suspects_nobody() -> None:
    follower = Member(1, 3)
    follower.receive(0, Committed(view=0, number=0, last=0), None, 100.0)
    follower.tick(100.1)
    assert said(follower.tick(130.0), Silent) == []
    assert said(follower.tick(130.5), Silent) == []
    late = [effect for time in range(20) for effect in follower.tick(130.5 + time / 10)]
    assert said(late, Silent) != []


def test_one_alone_that_does_not_hear_the_leader_changes_nothing() -> None:
    follower = Member(1, 3)
    follower.receive(0, Committed(view=0, number=0, last=0), None, 0.0)
    for time in range(1, 40):
        follower.tick(time / 10)
    assert (follower.view, follower.status) == (0, "normal")
    effects = follower.receive(2, Silent(view=0), None, 4.0)
    assert said(effects, Suspect)[0].message == Suspect(view=1)


def test_who_hears_the_leader_stays_with_it() -> None:
    """However many others do not."""
    follower = Member(1, 5)
    follower.receive(0, Committed(view=0, number=0, last=0), None, 0.0)
    for sender in (2, 3, 4):
        assert follower.receive(sender, Silent(view=0), None, 0.1) == []
    assert (follower.view, follower.status) == (0, "normal")


def test_what_was_not_heard_long_ago_does_not_count() -> None:
    follower = Member(1, 3)
    follower.receive(2, Silent(view=0), None, 0.0)
    follower.receive(0, Committed(view=0, number=0, last=0), None, 0.1)
    for time in range(1, 40):
        follower.tick(time / 10)
    assert (follower.view, follower.status) == (0, "normal")


def test_one_that_was_cut_off_does_not_change_the_view_when_it_returns() -> None:
    group = Group(3, 2, 3)
    group.fault(1.0, "cut off", 2, 8.0)
    group.run(14)
    assert {host.member.view for host in group.hosts} == {0}
    group.check()


def test_one_that_lags_far_behind_a_busy_leader_hears_it() -> None:
    """It gets no entries that it has not asked for, and there is no pause between those that others get."""
    leader = Member(0, 3)
    heard: list[Effect] = []
    for number in range(1, 400):
        now = number / 100
        leader.propose(b"x", now)
        leader.receive(1, Prepared(view=0, number=number), None, now)
        heard += [send for send in said(leader.tick(now), Committed) if send.to == 2]
    assert 12 < len(heard) < 20


def test_one_of_an_earlier_view_hears_of_a_later_one_whose_leader_is_gone() -> None:
    """From who is in it and hears nobody. It may be the only one with whom that one makes a majority."""
    behind = Member(0, 3)
    effects = behind.receive(2, Silent(view=1), None, 0.0)
    assert (behind.view, behind.status) == (1, "changing")
    assert [send.to for send in said(effects, Suspect)] == [1, 2]


def test_a_leader_whom_nobody_answers_falls_silent() -> None:
    """They may hear it all the same, and would wait for it for ever."""
    leader = Member(0, 3)
    leader.receive(1, Prepared(view=0, number=0), None, 1.0)
    beats = [now / 10 for now in range(10, 50) if said(leader.tick(now / 10), Committed)]
    assert 2.0 < max(beats) < 2.6
    assert not leader.is_led(4.0)
    leader.receive(2, Prepared(view=0, number=0), None, 5.0)
    assert leader.is_led(5.1)
    assert said(leader.tick(5.1), Committed)


def test_the_first_leader_waits_for_the_others_to_come() -> None:
    leader = Member(0, 3)
    beats = [now for now in range(20) if said(leader.tick(float(now)), Committed)]
    assert beats == list(range(20))  # each tick is late: it may have stood still itself
    leader = Member(0, 3)
    beats = [now / 10 for now in range(200) if said(leader.tick(now / 10), Committed)]
    assert 9.5 < max(beats) < 10.5


def test_one_that_only_speaks_and_does_not_hear_leads_no_more() -> None:
    group = Group(3, 2, 5)
    group.fault(2.0, "deaf", 0, 60.0)
    group.run(12)
    assert {host.member.leader for host in group.hosts[1:]} == {1}
    assert group.longest_wait() < 5
    group.check()
