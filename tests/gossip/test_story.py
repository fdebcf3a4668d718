"""What a witness remembers of a peer, how it is told, and that a failure carries it."""

from __future__ import annotations

import json
import weakref
from random import Random
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.errors import InvariantError, UsageError
from gossip.events import (
    Adopt,
    Computed,
    Deliver,
    Effect,
    Event,
    Initialized,
    Joined,
    Keep,
    Negative,
    Own,
    Received,
    Retain,
    Send,
    Started,
    Ticked,
)
from gossip.lanes.peer import Peer
from gossip.lanes.replicate import Replicator
from gossip.marks import Mark, Unit, packed
from gossip.messages import Advert, PacketReply, PeerId, Pull, Range, State
from gossip.sim.proving_ground import run
from gossip.sim.simulator import Simulation
from gossip.story import HEADLINE, STEPS_MAX, Line, Witness, read, words

ME, A = PeerId("me"), PeerId("a")
UPDATE = Packed.of({"b": np.ones(1, np.float32), "w": np.ones((2, 3))})
ARRAYS = "<'b': float32 (1,) and 1 more, 128 bytes>"
MARKS = packed([Mark(Unit(0, 2, chunk), 1) for chunk in range(3)])


class Echo:
    """A peer that wants done what it is told to want."""

    me = ME
    layout = None
    ready = True

    def __init__(self, *effects: Effect) -> None:
        self.effects = list(effects)
        self.checked = 0
        self.trouble: Exception | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.trouble is not None:
            raise self.trouble
        return self.effects

    def check(self) -> None:
        self.checked += 1

    def deadline(self) -> float:
        return float("inf")

    def expects(self, header: Any) -> bool:
        return True


def told(event: Event, *effects: Effect) -> Line:
    """How that step is remembered."""
    witness = Witness(Echo(*effects))
    witness.handle(event, 1.5)
    (line,) = witness.lines()
    assert (line.time, line.peer) == (1.5, ME)
    return line


# ------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Ticked(), "Ticked()"),
        (Started({A: 2}), "Started(frontiers={'a': 2})"),
        (Joined(A, level=False), "Joined(peer='a', level=False)"),
        (Computed(UPDATE), f"Computed(payload={ARRAYS})"),
        (
            Computed(UPDATE, Unit(0, 1, 2), 3),
            f"Computed(payload={ARRAYS}, unit=Unit(epoch=0, partition=1, chunk=2), attempt=3)",
        ),
        (Initialized(UPDATE), f"Initialized(payload={ARRAYS})"),
        (Received(Advert(A, 3, {ME: 1})), "Received(message=Advert(peer='a', n=3, frontiers={'me': 1}))"),
        (
            Received(Range(A, 1, 2, 3, MARKS, UPDATE.layout, UPDATE)),
            f"Received(message=Range(peer='a', lo=1, hi=2, k=3, marks=(0/2: 3 from 0, attempt 1), layout={ARRAYS}))",
        ),
        (
            Received(State(A, {A: 2}, 3, {A: MARKS}, UPDATE.layout, UPDATE)),
            f"Received(message=State(peer='a', frontiers={{'a': 2}}, k=3, marks='of 1 lanes', layout={ARRAYS}))",
        ),
        (
            Received(PacketReply(A, 1, 2, 3, 4, {"weight": 0.5}, UPDATE.layout, UPDATE)),
            "Received(message=PacketReply(peer='a', n=1, newest=2, round=3, k=4, scalars={'weight': 0.5}, "
            f"layout={ARRAYS}))",
        ),
    ],
)
def test_an_event_is_told_without_arrays_and_without_what_goes_without_saying(event: Event, text: str) -> None:
    assert told(event) == Line(1.5, ME, text, ())


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Send(A, Pull(ME, 1, 2)), "Send(to='a', message=Pull(peer='me', frontier=1, k=2))"),
        (
            Send(A, PacketReply(ME, 1, 1, 0, 1, {}, UPDATE.layout, UPDATE)),
            f"Send(to='a', message=PacketReply(peer='me', n=1, newest=1, round=0, k=1, layout={ARRAYS}))",
        ),
        (Deliver(A, 1, 2, UPDATE), f"Deliver(lane='a', lo=1, hi=2, payload={ARRAYS})"),
        (Deliver(ME, 1, 2, Own(1, 2)), "Deliver(lane='me', lo=1, hi=2, payload=Own(lo=1, hi=2))"),
        (Keep(1, 2, UPDATE), f"Keep(lo=1, hi=2, payload={ARRAYS})"),
        (Keep(1, 2, Negative(1)), "Keep(lo=1, hi=2, payload=Negative(number=1))"),
        (Retain(1, UPDATE), f"Retain(number=1, payload={ARRAYS})"),
        (Adopt(UPDATE), f"Adopt(payload={ARRAYS})"),
    ],
)
def test_so_are_effects(effect: Effect, text: str) -> None:
    assert told(Ticked(), Send(A, Pull(ME, 0, 1)), effect).effects == (
        "Send(to='a', message=Pull(peer='me', frontier=0, k=1))",
        text,
    )


def test_marks_that_are_many_are_counted() -> None:
    many = packed([Mark(Unit(0, partition, 0), 1) for partition in range(100)])
    assert "marks='100 series'" in told(Received(Range(A, 1, 100, 1, many, UPDATE.layout, UPDATE))).event


def test_whatever_it_is_there_are_words_for_it() -> None:
    assert words(UPDATE) == ARRAYS
    assert words(Packed.of({})) == "<no array, 0 bytes>"
    assert words((1, "a", (2.5, None))) == "(1, 'a', (2.5, None))"
    assert words(packed([Mark(Unit(1, 2, 3), 0, withdraws=True)])[0]) == "1/2: 1 from 3, attempt 0, taken back"
    assert len(words("x" * 10_000)) == 1000


def test_the_last_steps_are_kept_and_no_arrays() -> None:
    """The peer's segments have them, and its driver while it deals with them; nobody else."""
    witness = Witness(Peer(ME, UPDATE.layout, chance=Random(0)))
    for event in (Joined(A), Started({})):
        witness.handle(event, 0.0)
    for number in range(2 * STEPS_MAX):
        buffer = np.zeros(UPDATE.layout.nbytes, np.uint8)
        alive = weakref.ref(buffer)
        effects = witness.handle(Computed(Packed(UPDATE.layout, buffer), Unit(0, 0, number), 1), float(number))
        assert {type(effect) for effect in effects} >= {Keep, Deliver, Retain}
        del buffer, effects
        assert alive() is None
    lines = witness.lines()
    assert [line.time for line in lines] == [float(n) for n in range(STEPS_MAX, 2 * STEPS_MAX)]
    assert "chunk=99" in lines[-1].event


# ------------------------------------------------------------------------------------------------------- who carries it


def notes(error: pytest.ExceptionInfo[Any]) -> list[str]:
    """The lines of the story that it carries."""
    (note,) = error.value.__notes__
    headline, *lines = note.splitlines()
    assert headline.endswith(HEADLINE)
    return lines


def test_an_exception_of_the_peer_carries_what_happened_before_and_the_event_itself() -> None:
    witness = Witness(Echo())
    witness.handle(Joined(A), 0.25)
    witness.peer.trouble = KeyError("lost")  # type: ignore[attr-defined]
    with pytest.raises(KeyError) as caught:
        witness.handle(Computed(UPDATE), 0.5)
    assert notes(caught) == [
        "       0.250  me  Joined(peer='a')",
        f"       0.500  me  Computed(payload={ARRAYS})  ->  not done",
    ]
    witness.tell(caught.value)
    assert len(caught.value.__notes__) == 1, "it is told once"


def test_what_the_peer_still_deals_with_is_told_too() -> None:
    """An agent that hangs is asked in the middle of it."""
    seen: list[Line] = []

    class Curious(Echo):
        def handle(self, event: Event, now: float) -> list[Effect]:
            seen.extend(witness.lines())
            return []

    witness = Witness(Curious())
    witness.handle(Ticked(), 1.0)
    witness.handle(Joined(A), 2.0)
    assert seen == [
        Line(1.0, ME, "Ticked()", None),
        Line(1.0, ME, "Ticked()", ()),
        Line(2.0, ME, "Joined(peer='a')", None),
    ]
    assert witness.lines()[-1].effects == ()


def test_a_peer_is_checked_after_each_event_if_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Witness, "always_checks", False)
    for checks in (False, True):
        peer = Echo()
        witness = Witness(peer, checks=checks)
        witness.handle(Ticked(), 0.0)
        witness.handle(Ticked(), 0.0)
        assert peer.checked == 2 * checks


def spoil(peer: Any) -> None:
    """It stands where nothing was heard of."""
    peer.replicator.origins[A].frontier = 9


def test_a_broken_invariant_carries_the_story() -> None:
    peer = Peer(ME, None)
    witness = Witness(peer, checks=True)
    witness.handle(Joined(A), 0.0)
    spoil(peer)
    with pytest.raises(InvariantError, match="no lane is applied beyond what was heard of it: 'a', Origin") as caught:
        witness.handle(Ticked(), 1.0)
    assert notes(caught) == ["       0.000  me  Joined(peer='a')", "       1.000  me  Ticked()"]


@pytest.mark.sockets
def test_an_assertion_in_the_peer_of_a_runtime_carries_the_last_events(swarm: Any) -> None:
    node = swarm.add("me")
    node.publish({"w": np.ones(3)})
    node.runtime.peer.ready = False
    with pytest.raises(AssertionError, match="nothing to compute from") as caught:
        node.publish({"w": np.ones(3)})
    started, computed, failed = notes(caught)
    assert "Started(frontiers={})  ->  Publish(message=Advert(peer='me'" in started
    assert "Computed(payload=<'w': float64 (3,), 64 bytes>)  ->  Deliver(lane='me', lo=1, hi=1, " in computed
    assert failed.endswith("->  not done")


@pytest.mark.sockets
def test_so_does_one_of_what_the_peer_wants_done(swarm: Any) -> None:
    node = swarm.add("me")
    node.runtime.happen(Joined(A))
    node.publish({"w": np.ones(3)})
    node.runtime._segments.forget(1)
    with pytest.raises(AssertionError, match=r"the peer offered 1..1, which it does not keep") as caught:
        node.runtime.happen(Received(Pull(A, 0, 1)))
    assert "Send(to='a', message=Range(peer='me', lo=1, hi=1, k=1))" in notes(caught)[-1]


@pytest.mark.sockets
def test_a_runtime_that_is_to_check_finds_what_is_wrong(swarm: Any) -> None:
    node = swarm.add("me")
    node.runtime.happen(Joined(A))
    spoil(node.runtime.peer)
    with pytest.raises(InvariantError, match="no lane is applied beyond") as caught:
        node.publish({"w": np.ones(3)})
    assert len(notes(caught)) == 3


def test_a_simulation_tells_the_story_of_the_peer_that_failed() -> None:
    swarm = Simulation(3, {"w": np.zeros(2)}, seed=1, checks=True)
    swarm.run(20.0)
    swarm.peers[PeerId("p001")].peer.replicator.n += 1
    with pytest.raises(InvariantError, match="end at n") as caught:
        swarm.run(30.0)
    assert len(notes(caught)) == STEPS_MAX
    assert all("  p001  " in line for line in notes(caught))


class KeepsNothing(Replicator):
    """Loses what it publishes."""

    def publish(self, payload: Any, marks: Any) -> list[Effect]:
        effects = super().publish(payload, marks)
        self.segments.clear()
        return effects


def test_the_story_of_a_bad_day_ends_with_that_of_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.lanes.peer.Replicator", KeepsNothing)
    outcome = run(0, tell=True)
    assert outcome.violation is not None
    assert outcome.violation.startswith("InvariantError: segments, or what is forgotten, end at n")
    assert HEADLINE in outcome.story[-1]
    assert "Computed(" in outcome.story[-1].splitlines()[-1]


# ----------------------------------------------------------------------------------------------------------- in a file


def test_a_line_of_a_file_is_the_same_when_it_is_read() -> None:
    lines = [told(Computed(UPDATE), Adopt(UPDATE)), Line(2.0, A, "Ticked()", None)]
    written = [line.to_json() for line in lines]
    assert list(read([*written, "\n"])) == lines
    assert json.loads(written[0])["effects"] == [f"Adopt(payload={ARRAYS})"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"time": 1}', '{"time": "x", "peer": "", "event": "", "effects": []}']
)
def test_what_is_no_line_of_a_story_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a line of a story"):
        list(read([text]))
