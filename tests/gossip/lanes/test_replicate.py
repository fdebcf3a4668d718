"""Stories of one replicator, in `stories/replicate`: a line says what happens, indented ones below it what comes of it.

origin A B              the first line: a lane with these readers and nothing in it ("updates not summed")
reader A B              or one who reads these lanes and has nothing of them ("2 pulls at a time")
publish                 an update of the own lane        -> keep, extend
A pulls from 2, k=7     a pull that arrives              -> send range, send unknown
A has 2                 what an advert acknowledges      -> fold, forget
A is at 5               what an advert says of A's lane
range 3..5 of A         an answer that arrives           -> deliver
time 1.5                ask whoever is ahead             -> pull
block from A, time 1    part of an answer that arrives
show                    segments, readers, frontiers

`pytest tests/gossip/lanes/test_replicate.py --rewrite` writes what comes of it into the files, to be looked at by
`git diff`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gossip.arrays import Packed
from gossip.events import Deliver, Effect, Fold, Forget, Keep, Send
from gossip.lanes.replicate import Replicator
from gossip.marks import Mark, Unit
from gossip.messages import PeerId, Pull, Range, Unknown

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


def begin(line: str) -> Replicator:
    """Who the story is of, by its first line."""
    kind, *options = line.split(", ")
    who, _, peers = kind.partition(" ")
    match who, options:
        case "origin", []:
            return origin(peers)
        case "origin", ["updates not summed"]:
            return origin(peers, coalesce=False)
        case "reader", []:
            return reader(peers)
        case "reader", [pulls]:
            return reader(peers, pulls_max=int(pulls.removesuffix(" pulls at a time")))
        case "replicator", []:
            return replicator()
    raise ValueError(f"no story begins with {line!r}")


def told_again(story: str) -> str:
    """The same with what comes of it now."""
    first, *lines = story.splitlines()
    lane, came = begin(first), [first]
    for line in lines:
        if not line.startswith(" "):
            came += [line, *(f"  {outcome}" for outcome in step(lane, line))]
    return "\n".join(came) + "\n"


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


def frontiers(text: str) -> dict[PeerId, int]:
    """Of A:7 B:2."""
    return {PeerId(lane): int(n) for lane, n in (part.split(":") for part in text.split())}


def keep_up(replicator: Replicator, peer: str, last: int) -> None:
    """So many updates are published, and the peer pulls after each."""
    while replicator.n < last:
        before = replicator.n
        replicator.publish(UPDATE, ())
        replicator.on_pull(Pull(PeerId(peer), before, before + 1))


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
    r"deadline": lambda r: [f"{r.deadline():g}"],
    r"(\w) is a member": lambda r, peer: nothing(lambda: r.members.add(PeerId(peer))),
    r"(\w) is read": lambda r, peer: nothing(lambda: r.join(PeerId(peer), reads=False, read=True, level=True)),
    r"its replica stands at (.+)": lambda r, lanes: nothing(lambda: r.start(frontiers(lanes))),
    r"publish and (\w) pulls, up to (\d+)": lambda r, peer, last: nothing(lambda: keep_up(r, peer, int(last))),
}


STORIES = sorted((Path(__file__).parent / "stories" / "replicate").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path, request: pytest.FixtureRequest) -> None:
    told = path.read_text()
    came = told_again(told)
    if request.config.getoption("--rewrite"):
        path.write_text(came)
    else:
        assert came == told


def test_there_are_stories_and_a_wrong_one_is_told() -> None:
    assert len(STORIES) > 30
    assert told_again("origin A\npublish\n  keep 2\n") == "origin A\npublish\n  keep 1\n"
    with pytest.raises(ValueError, match="no story has 'A sleeps'"):
        told_again("origin A\nA sleeps\n")


# -------------------------------------------------------------------------------------------------------- the origin


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
@example([("publish", 0), ("lost", 1), ("late", 1), ("advert", 1), ("publish", 0), ("repeat", 1)])
def test_whatever_is_lost_or_repeated_every_reader_gets_each_update_with_its_marks(
    coalesce: bool, order: list[tuple[str, int]]
) -> None:
    lane, store, followers = origin("a b c", coalesce=coalesce), Store(), [Follower(name) for name in "abc"]

    def happen(effects: list[Effect]) -> list[Range]:
        store.happen(effects)
        assert store.segments == [(segment.lo, segment.hi) for segment in lane.segments]
        sent = [(effect.to, effect.message) for effect in effects if isinstance(effect, Send)]
        answers = []
        for to, answer in sent:
            if isinstance(answer, Unknown):  # to a pull that came twice, and late: its reader is beyond that by now
                assert answer.frontier < next(each.frontier for each in followers if each.name == to)
                continue
            assert isinstance(answer, Range)
            answers.append(answer)
            assert coalesce or answer.lo == answer.hi
            numbers = range(answer.lo, answer.hi + 1)
            marks = [mark for series in answer.marks for mark in series.marks()]
            assert marks == [Mark(Unit(0, 0, number), 0) for number in numbers if number % 3]
        return answers

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
