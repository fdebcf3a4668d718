"""Stories of one replicator: a line says what happens, the indented lines below it what comes of that.

publish                 an update of the own lane        -> keep, extend
A pulls from 2, k=7     a pull that arrives              -> send range, send unknown
A has 2                 what an advert acknowledges      -> fold, forget
A is at 5               what an advert says of A's lane
range 3..5 of A         an answer that arrives           -> deliver
time 1.5                ask whoever is ahead             -> pull
block from A, time 1    part of an answer that arrives
show                    segments, readers, frontiers
"""

from __future__ import annotations

import re
from collections.abc import Callable
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.arrays import Packed
from gossip.events import Deliver, Effect, Fold, Forget, Keep, Send
from gossip.marks import Mark, Unit
from gossip.messages import PeerId, Pull, Range, Unknown
from gossip.replicate import Replicator

UPDATE = Packed.of({"w": np.ones(1)})


def replicator(*, pulls_max: int = 8, coalesce: bool = True) -> Replicator:
    return Replicator(PeerId("O"), pull_timeout_s=1.5, pulls_max=pulls_max, coalesce=coalesce)


def origin(readers: str, *, coalesce: bool = True) -> Replicator:
    """A lane with these readers and nothing in it."""
    lane = replicator(coalesce=coalesce)
    for reader in readers.split():
        lane.join(PeerId(reader), reads=True, read=False, level=True)
    return lane


def reader(origins: str, *, pulls_max: int = 8) -> Replicator:
    """One who reads these lanes and has nothing of them."""
    lane = replicator(pulls_max=pulls_max)
    for peer in origins.split():
        lane.join(PeerId(peer), reads=False, read=True, level=True)
    return lane


def follow(replicator: Replicator, story: str) -> None:
    """Play the story; it must come out as it was told."""
    told = [line for line in dedent(story).splitlines() if line.strip()]
    came = []
    for line in told:
        if not line.startswith(" "):
            came += [line, *(f"  {outcome}" for outcome in step(replicator, line))]
    assert "\n".join(came) == "\n".join(told)


def step(replicator: Replicator, line: str) -> list[str]:
    for pattern, action in STEPS.items():
        found = re.fullmatch(pattern, line)
        if found is not None:
            return [tell(outcome) for outcome in action(replicator, *found.groups())]
    raise ValueError(f"no story has {line!r}")


def tell(outcome: Effect | str) -> str:
    match outcome:
        case Keep(lo, hi, payload):
            assert payload is UPDATE
            return f"keep {lo}" if lo == hi else f"extend {lo}..{hi}"
        case Fold(lo, hi):
            return f"fold {lo}..{hi}"
        case Forget(through):
            return f"forget ..{through}"
        case Send(to, Range(peer, lo, hi, k)):
            assert peer == "O"
            return f"send range {lo}..{hi} to {to}, k={k}"
        case Send(to, Unknown(peer, frontier, k)):
            assert peer == "O"
            return f"send unknown {frontier} to {to}, k={k}"
        case Send(to, Pull(peer, frontier, k)):
            assert peer == "O"
            return f"pull {to} from {frontier}, k={k}"
        case Deliver(lane, lo, hi, payload):
            assert payload is UPDATE
            return f"deliver {lo}..{hi} of {lane}"
        case str():
            return outcome
    raise ValueError(f"no story has {outcome}")


def show(replicator: Replicator) -> list[str]:
    lines = []
    if replicator.readers:
        lines.append(f"n {replicator.n}")
        lines.append("segments " + (" ".join(f"{s.lo}..{s.hi}" for s in replicator.segments) or "none"))
        lines += [f"{name} [{r.acknowledged}, {r.served}]" for name, r in sorted(replicator.readers.items())]
        lines.append("behind " + (" ".join(replicator.behind()) or "nobody"))
    if replicator.origins:
        lines.append(" ".join(f"{lane}:{n}" for lane, n in sorted(replicator.frontiers().items())))
    return lines


def nothing(action: Callable[[], None]) -> list[Effect]:
    action()
    return []


STEPS: dict[str, Callable[..., list[Effect] | list[str]]] = {
    r"publish": lambda r: r.publish(UPDATE, ()),
    r"(\w) reads": lambda r, peer: nothing(lambda: r.join(peer, reads=True, read=False, level=True)),
    r"(\w) pulls from (\d+), k=(\d+)": lambda r, peer, f, k: r.on_pull(Pull(peer, int(f), int(k))),
    r"(\w) has (\d+)": lambda r, peer, f: r.acknowledge(peer, int(f)),
    r"(\w) is at (\d+)": lambda r, peer, n: nothing(lambda: r.heard(peer, int(n))),
    r"range (\d+)\.\.(\d+) of (\w)": lambda r, lo, hi, peer: r.on_range(
        Range(peer, int(lo), int(hi), 1, (), UPDATE.layout, UPDATE)
    ),
    r"time ([\d.]+)": lambda r, now: r.pulls(float(now)),
    r"block from (\w), time ([\d.]+)": lambda r, peer, now: nothing(lambda: r.progressed(peer, float(now))),
    r"show": show,
}


# -------------------------------------------------------------------------------------------------------- the origin


def test_updates_nobody_has_asked_for_are_one_sum() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        publish
          extend 1..2
        publish
          extend 1..3
        show
          n 3
          segments 1..3
          A [0, 0]
          behind A
        """,
    )


def test_a_pull_is_served_all_that_is_new_and_the_next_one_acknowledges_it() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        publish
          keep 2
        publish
          extend 2..3
        show
          n 3
          segments 1..1 2..3
          A [0, 1]
          behind A
        A pulls from 1, k=2
          forget ..1
          send range 2..3 to A, k=2
        A pulls from 3, k=3
          forget ..3
        show
          n 3
          segments none
          A [3, 3]
          behind nobody
        """,
    )


def test_a_lost_reply_is_served_again_exactly() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        publish
          extend 1..2
        A pulls from 0, k=1
          send range 1..2 to A, k=1
        publish
          keep 3
        publish
          extend 3..4
        A pulls from 0, k=2
          send range 1..2 to A, k=2
        publish
          extend 3..5
        A pulls from 0, k=3
          send range 1..2 to A, k=3
        A pulls from 2, k=4
          forget ..2
          send range 3..5 to A, k=4
        """,
    )


def test_a_repeated_pull_is_served_the_same_again() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        publish
          keep 2
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        """,
    )


def test_an_old_pull_is_ignored() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=2
          send range 1..1 to A, k=2
        publish
          keep 2
        A pulls from 1, k=3
          forget ..1
          send range 2..2 to A, k=3
        A pulls from 0, k=1
        A pulls from 0, k=2
        A pulls from 1, k=2
        show
          n 2
          segments 2..2
          A [1, 2]
          behind A
        """,
    )


def test_a_pull_with_nothing_new_acknowledges_and_is_not_answered() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        A pulls from 1, k=2
          forget ..1
        A pulls from 1, k=3
        publish
          keep 2
        A pulls from 1, k=4
          send range 2..2 to A, k=4
        """,
    )


def test_segments_are_cut_only_where_a_reader_may_stand() -> None:
    follow(
        origin("A B"),
        """
        publish
          keep 1
        publish
          extend 1..2
        A pulls from 0, k=1
          send range 1..2 to A, k=1
        publish
          keep 3
        B pulls from 0, k=1
          send range 1..3 to B, k=1
        publish
          keep 4
        publish
          extend 4..5
        show
          n 5
          segments 1..2 3..3 4..5
          A [0, 2]
          B [0, 3]
          behind A B
        A pulls from 2, k=2
          send range 3..5 to A, k=2
        publish
          keep 6
        A pulls from 5, k=3
          fold 1..3
          send range 6..6 to A, k=3
        show
          n 6
          segments 1..3 4..5 6..6
          A [5, 6]
          B [0, 3]
          behind A B
        """,
    )


def test_what_one_reader_acknowledged_is_kept_for_the_other() -> None:
    follow(
        origin("A B"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        B pulls from 0, k=1
          send range 1..1 to B, k=1
        A has 1
        B has 1
          forget ..1
        """,
    )


def test_a_slow_reader_gets_one_sum() -> None:
    lane = origin("A B")
    follow(
        lane,
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        B pulls from 0, k=1
          send range 1..1 to B, k=1
        """,
    )
    for number in range(2, 100):  # B keeps up, A does not
        lane.publish(UPDATE, ())
        lane.on_pull(Pull(PeerId("B"), number - 1, number))
    follow(
        lane,
        """
        show
          n 99
          segments 1..1 2..98 99..99
          A [0, 1]
          B [98, 99]
          behind A B
        A pulls from 1, k=2
          forget ..1
          send range 2..99 to A, k=2
        """,
    )


def test_an_advert_acknowledges_like_a_pull() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        publish
          keep 2
        A has 1
          forget ..1
        A has 1
        show
          n 2
          segments 2..2
          A [1, 1]
          behind A
        A pulls from 1, k=2
          send range 2..2 to A, k=2
        """,
    )


def test_an_old_advert_acknowledges_nothing() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        A has 1
          forget ..1
        publish
          keep 2
        A pulls from 1, k=2
          send range 2..2 to A, k=2
        A has 0
        A has 1
        show
          n 2
          segments 2..2
          A [1, 2]
          behind A
        """,
    )


def test_an_advert_of_what_was_never_served_acknowledges_nothing() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        publish
          extend 1..2
        A has 1
        A has 2
        A has 900
        B has 0
        A pulls from 0, k=1
          send range 1..2 to A, k=1
        """,
    )


def test_everything_acknowledged_is_forgotten() -> None:
    lane = origin("A B C")
    for name in "ABC":
        lane.publish(UPDATE, ())
        lane.on_pull(Pull(PeerId(name), 0, 1))
    follow(
        lane,
        """
        show
          n 3
          segments 1..1 2..2 3..3
          A [0, 1]
          B [0, 2]
          C [0, 3]
          behind A B C
        C has 3
        B has 2
        A has 1
          forget ..1
        A pulls from 1, k=2
          send range 2..3 to A, k=2
        B pulls from 2, k=2
          send range 3..3 to B, k=2
        A has 3
          forget ..2
        B has 3
          forget ..3
        show
          n 3
          segments none
          A [3, 3]
          B [3, 3]
          C [3, 3]
          behind nobody
        """,
    )


def test_a_late_member_that_begins_before_anything_was_forgotten_is_served() -> None:
    lane = origin("A")
    lane.members.add(PeerId("X"))
    follow(
        lane,
        """
        publish
          keep 1
        X pulls from 0, k=4
          send range 1..1 to X, k=4
        show
          n 1
          segments 1..1
          A [0, 0]
          X [0, 1]
          behind A X
        """,
    )


def test_a_member_is_served_from_any_boundary_that_is_kept_also_that_of_another_reader() -> None:
    lane = origin("A B")
    lane.members.add(PeerId("X"))
    follow(
        lane,
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        publish
          keep 2
        publish
          extend 2..3
        X pulls from 1, k=4
          send range 2..3 to X, k=4
        B pulls from 1, k=1
          send range 2..3 to B, k=1
        X pulls from 2, k=5
          send unknown 2 to X, k=5
        show
          n 3
          segments 1..1 2..3
          A [0, 1]
          B [1, 3]
          X [1, 3]
          behind A B X
        """,
    )


def test_a_member_that_has_everything_is_a_reader_from_there() -> None:
    lane = origin("A")
    lane.members.add(PeerId("X"))
    follow(
        lane,
        """
        publish
          keep 1
        X pulls from 1, k=4
        publish
          keep 2
        X pulls from 1, k=5
          send range 2..2 to X, k=5
        """,
    )


def test_an_unknown_reader_gets_unknown_when_what_it_wants_is_gone() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        A pulls from 1, k=2
          forget ..1
        X pulls from 0, k=4
          send unknown 0 to X, k=4
        show
          n 1
          segments none
          A [1, 1]
          behind nobody
        """,
    )


def test_a_frontier_at_which_no_reader_can_stand_gets_unknown() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        X pulls from 1, k=4
          send unknown 1 to X, k=4
        A pulls from 7, k=1
          send unknown 7 to A, k=1
        A pulls from 0, k=2
          send range 1..1 to A, k=2
        """,
    )


def test_a_frontier_between_acknowledged_and_served_is_unknown() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        publish
          extend 1..2
        A pulls from 0, k=1
          send range 1..2 to A, k=1
        A pulls from 1, k=2
          send unknown 1 to A, k=2
        """,
    )


def test_without_readers_nothing_is_kept_and_who_comes_later_has_it_already() -> None:
    follow(
        replicator(),
        """
        publish
        publish
        A reads
        show
          n 2
          segments none
          A [2, 2]
          behind nobody
        publish
          keep 3
        A pulls from 2, k=1
          send range 3..3 to A, k=1
        A reads
        A has 3
          forget ..3
        """,
    )


def test_a_later_reader_cuts_the_lane_where_it_joined() -> None:
    follow(
        origin("A"),
        """
        publish
          keep 1
        publish
          extend 1..2
        B reads
        publish
          keep 3
        publish
          extend 3..4
        B pulls from 2, k=1
          send range 3..4 to B, k=1
        A pulls from 0, k=1
          send range 1..4 to A, k=1
        """,
    )


def test_a_worker_lane_is_never_summed() -> None:
    follow(
        origin("A", coalesce=False),
        """
        publish
          keep 1
        publish
          keep 2
        publish
          keep 3
        A pulls from 0, k=1
          send range 1..1 to A, k=1
        A pulls from 0, k=2
          send range 1..1 to A, k=2
        A pulls from 1, k=3
          forget ..1
          send range 2..2 to A, k=3
        A has 2
          forget ..2
        publish
          keep 4
        A pulls from 2, k=4
          send range 3..3 to A, k=4
        A pulls from 3, k=5
          forget ..3
          send range 4..4 to A, k=5
        A pulls from 4, k=6
          forget ..4
        """,
    )


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_no_more_segments_are_kept_than_places_where_readers_may_stand(count: int) -> None:
    names = [PeerId(f"r{index}") for index in range(count)]
    lane = replicator()
    for name in names:
        lane.join(name, reads=True, read=False, level=True)
    standing = dict.fromkeys(names, 0)
    for number in range(1, 400):
        lane.publish(UPDATE, ())
        name = names[number * 7 % count]
        if number % 3:  # the others do not get their reply
            standing[name] = lane.readers[name].served
        lane.on_pull(Pull(name, standing[name], number))
        assert len(lane.segments) <= 2 * count + 1
        boundaries = {segment.hi for segment in lane.segments[:-1]}
        assert boundaries <= {b for r in lane.readers.values() for b in (r.acknowledged, r.served)}


class Follower:
    """Who reads a lane: it applies a range that begins right after its frontier, whenever that comes."""

    def __init__(self, name: str) -> None:
        self.name, self.frontier, self.k = PeerId(name), 0, 0
        self.pulls: list[Pull] = []
        self.answers: list[Range] = []

    def pull(self) -> Pull:
        self.k += 1
        self.pulls.append(Pull(self.name, self.frontier, self.k))
        return self.pulls[-1]

    def take(self, answer: Range) -> None:
        if answer.lo == self.frontier + 1:
            self.frontier = answer.hi


class Store:
    """Where a driver keeps what the effects say: which segments there are, as (lo, hi)."""

    def __init__(self) -> None:
        self.segments: list[tuple[int, int]] = []

    def happen(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Keep(lo, hi, _):
                    if lo < hi:
                        assert self.segments.pop() == (lo, hi - 1)
                    self.segments.append((lo, hi))
                case Fold(lo, hi):
                    inside = [each for each in self.segments if lo <= each[0] and each[1] <= hi]
                    assert len(inside) > 1
                    assert (inside[0][0], inside[-1][1]) == (lo, hi)
                    at = self.segments.index(inside[0])
                    self.segments[at : at + len(inside)] = [(lo, hi)]
                case Forget(through):
                    assert self.segments[0][1] <= through
                    self.segments = [each for each in self.segments if each[1] > through]
                case Send(_, Range(_, lo, hi)):
                    served = [each for each in self.segments if lo <= each[0] and each[1] <= hi]
                    assert [number for one, last in served for number in range(one, last + 1)] == [*range(lo, hi + 1)]


deeds = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "pull", "lost", "repeat", "late", "advert"]), st.integers(0, 2)),
    max_size=40,
)


@pytest.mark.parametrize("coalesce", [True, False])
@given(deeds)
def test_whatever_is_lost_or_repeated_every_reader_gets_each_update_with_its_marks(
    coalesce: bool, order: list[tuple[str, int]]
) -> None:
    lane, store, followers = origin("a b c", coalesce=coalesce), Store(), [Follower(name) for name in "abc"]

    def happen(effects: list[Effect]) -> list[Range]:
        store.happen(effects)
        assert store.segments == [(segment.lo, segment.hi) for segment in lane.segments]
        answers = [effect.message for effect in effects if isinstance(effect, Send)]
        for answer in answers:
            assert isinstance(answer, Range)
            assert coalesce or answer.lo == answer.hi
            numbers = range(answer.lo, answer.hi + 1)
            marks = [mark for series in answer.marks for mark in series.marks()]
            assert marks == [Mark(Unit(0, 0, number), 0) for number in numbers if number % 3]
        return [answer for answer in answers if isinstance(answer, Range)]

    def pulls(follower: Follower) -> None:
        for answer in happen(lane.on_pull(follower.pull())):
            follower.take(answer)

    for deed, which in order:
        follower = followers[which]
        match deed:
            case "publish":
                number = lane.n + 1
                happen(lane.publish(UPDATE, (Mark(Unit(0, 0, number), 0),) if number % 3 else ()))
            case "pull":
                pulls(follower)
            case "lost":
                follower.answers += happen(lane.on_pull(follower.pull()))
            case "repeat" if follower.pulls:
                follower.answers += happen(lane.on_pull(follower.pulls[-1]))
            case "late" if follower.answers:
                follower.take(follower.answers.pop())
            case "advert":
                happen(lane.acknowledge(follower.name, follower.frontier, follower.k))
        assert {each.name for each in followers if each.frontier < lane.n} <= set(lane.behind())
        assert all(lane.readers[each.name].acknowledged <= each.frontier for each in followers)
    for follower in followers:
        while follower.frontier < lane.n:
            before = follower.frontier
            pulls(follower)
            assert follower.frontier > before
        happen(lane.acknowledge(follower.name, follower.frontier, follower.k))
    assert lane.behind() == ()
    assert lane.segments == []
    assert lane.forgotten == lane.n


# -------------------------------------------------------------------------------------------------------- the reader


def test_who_is_ahead_is_asked_once() -> None:
    follow(
        reader("A B"),
        """
        time 0
        A is at 3
        time 0
          pull A from 0, k=1
        A is at 4
        time 1
        range 1..4 of A
          deliver 1..4 of A
        time 1
        A is at 5
        A is at 2
        time 1.2
          pull A from 4, k=2
        show
          A:4 B:0 O:0
        """,
    )


def test_a_range_is_applied_only_right_after_the_frontier() -> None:
    follow(
        reader("A"),
        """
        A is at 9
        time 0
          pull A from 0, k=1
        range 2..3 of A
        range 3..3 of A
        range 1..3 of A
          deliver 1..3 of A
        range 1..3 of A
        range 1..9 of A
        range 3..5 of A
        range 5..5 of A
        range 4..5 of A
          deliver 4..5 of A
        show
          A:5 O:0
        """,
    )


def test_a_range_of_a_lane_that_is_not_read_changes_nothing() -> None:
    follow(
        reader("A"),
        """
        X is at 5
        range 1..5 of X
        range 1..5 of O
        time 0
        show
          A:0 O:0
        """,
    )


def test_lanes_go_on_where_the_replica_stands() -> None:
    lane = replicator()
    lane.start({PeerId("A"): 7, PeerId("O"): 3})
    lane.join(PeerId("A"), reads=False, read=True, level=True)
    lane.join(PeerId("B"), reads=False, read=True, level=True)
    follow(
        lane,
        """
        show
          A:7 B:0 O:0
        O is at 9
        time 0
        range 1..8 of A
        A is at 8
        time 0
          pull A from 7, k=1
        range 8..8 of A
          deliver 8..8 of A
        """,
    )


def test_a_pull_without_an_answer_is_sent_again() -> None:
    follow(
        reader("A"),
        """
        A is at 1
        time 0
          pull A from 0, k=1
        time 1.4
        time 1.5
          pull A from 0, k=2
        time 2.9
        time 3.0
          pull A from 0, k=3
        """,
    )


def test_an_answer_that_comes_in_slowly_is_waited_for() -> None:
    follow(
        reader("A"),
        """
        A is at 1
        time 0
          pull A from 0, k=1
        block from A, time 1.4
        time 1.6
        block from A, time 2.8
        time 4.2
        time 4.3
          pull A from 0, k=2
        """,
    )


def test_pulls_are_limited_and_the_longest_waiting_goes_first() -> None:
    follow(
        reader("A B C D", pulls_max=2),
        """
        A is at 9
        B is at 9
        C is at 9
        D is at 9
        time 0
          pull A from 0, k=1
          pull B from 0, k=2
        time 1
        range 1..3 of B
          deliver 1..3 of B
        time 1
          pull C from 0, k=3
        range 1..3 of A
          deliver 1..3 of A
        time 1.1
          pull D from 0, k=4
        range 1..3 of D
          deliver 1..3 of D
        time 1.2
          pull A from 3, k=5
        range 1..3 of C
          deliver 1..3 of C
        time 1.3
          pull B from 3, k=6
        """,
    )


def test_one_more_that_is_ahead_waits_until_one_of_the_pulls_is_over() -> None:
    follow(
        reader("A B C", pulls_max=2),
        """
        A is at 1
        B is at 1
        time 0
          pull A from 0, k=1
          pull B from 0, k=2
        C is at 1
        time 0.1
        range 1..1 of A
          deliver 1..1 of A
        time 0.2
          pull C from 0, k=3
        """,
    )


def test_who_does_not_answer_gives_way_to_the_others() -> None:
    follow(
        reader("A B C", pulls_max=1),
        """
        A is at 9
        B is at 9
        C is at 9
        time 0
          pull A from 0, k=1
        time 1.5
          pull B from 0, k=2
        time 3.0
          pull C from 0, k=3
        time 4.5
          pull A from 0, k=4
        """,
    )


def test_a_late_answer_to_a_pull_given_up_counts() -> None:
    follow(
        reader("A"),
        """
        A is at 2
        time 0
          pull A from 0, k=1
        time 1.5
          pull A from 0, k=2
        range 1..2 of A
          deliver 1..2 of A
        range 1..2 of A
        time 9
        """,
    )


def test_the_first_pull_to_be_given_up_is_the_deadline() -> None:
    lane = reader("A B")
    assert lane.deadline() == float("inf")
    lane.heard(PeerId("A"), 1)
    lane.pulls(1.0)
    lane.heard(PeerId("B"), 1)
    lane.pulls(2.0)
    assert lane.deadline() == 2.5
    lane.progressed(PeerId("A"), 2.4)
    assert lane.deadline() == 3.5
    lane.on_range(Range(PeerId("B"), 1, 1, 2, (), UPDATE.layout, UPDATE))
    assert lane.deadline() == pytest.approx(3.9)
