"""What agents and the registrar say to each other: all comes back as it went, and what is none is refused, in words."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import WireError
from gossip.messages import PeerId
from p2p.agent.registrar_messages import (
    Begin,
    Drain,
    Drained,
    Figures,
    FromAgent,
    FromRegistrar,
    Hello,
    LaneFigures,
    Listed,
    MixFigures,
    Question,
    Refused,
    Roster,
    Settle,
    Status,
    Stop,
    Warned,
    encode,
    from_agent,
    from_registrar,
)
from p2p.agent.sketch import BUCKETS

A, B = PeerId("a"), PeerId("b")
WHERE = "tcp://127.0.0.1:4711"
SKETCH = [0.25, -1.0, math.inf, -math.inf, *([0.0] * (BUCKETS - 4))]
FIGURES = Figures(
    question=3,
    departed=[A],
    published=7,
    lanes=LaneFigures(frontiers={A: 2, B: 7}, units=9),
    mixing=MixFigures(weight=math.inf, edges={"host:1": 80}, sketch=SKETCH, trouble="none"),
)
LISTED = Listed(
    peer=A,
    role="peer",
    name="host:1",
    pid=1,
    adverts=WHERE,
    pulls="tcp://[::1]:1",
    key="k" * 40,
    level=True,
    answers=False,
)
OF_AGENTS: list[FromAgent] = [
    Hello(
        peer=A,
        run="run",
        role="observer",
        name="host:1",
        pid=1,
        adverts=WHERE,
        pulls=WHERE,
        shortage="all",
        adopts=True,
    ),
    Status(peer=A, figures=FIGURES),
    Drained(peer=A, missing=["host:1"], staleness=[0, 2], torn=[(0, 1)]),
    Warned(peer=A, text="wörds"),
]
OF_THE_REGISTRAR: list[FromRegistrar] = [
    Roster(version=3, members=[LISTED]),
    Refused(why="no"),
    Question(number=4),
    Begin(era=1, idle=[A], wait_s=2.5),
    Settle(era=2, rounds=30),
    Drain(timeout_s=math.inf, epochs=1),
    Stop(),
]


@pytest.mark.parametrize("message", OF_AGENTS, ids=lambda message: type(message).__name__)
def test_what_an_agent_says_comes_back_as_it_went(message: FromAgent) -> None:
    back = from_agent([encode(message)])
    assert (type(back), back) == (type(message), message)


@pytest.mark.parametrize("message", OF_THE_REGISTRAR, ids=lambda message: type(message).__name__)
def test_what_the_registrar_says_comes_back_as_it_went(message: FromRegistrar) -> None:
    back = from_registrar([encode(message)])
    assert (type(back), back) == (type(message), message)


def test_there_is_one_of_each_kind_above() -> None:
    assert {type(message) for message in OF_AGENTS} == set(get_args(FromAgent))
    assert {type(message) for message in OF_THE_REGISTRAR} == set(get_args(FromRegistrar))


def test_what_an_agent_does_not_tell_is_nothing() -> None:
    frame = msgspec.msgpack.encode({"op": "status", "peer": "a", "figures": {"question": 1}})
    assert from_agent([frame]) == Status(peer=A, figures=Figures(question=1))


def built(message: FromAgent | FromRegistrar, **changes: Any) -> dict[str, Any]:
    """The map that the message is, with other fields; those that are None are left out."""
    fields = {**msgspec.to_builtins(message), **changes}
    return {name: value for name, value in fields.items() if value is not None}


HELLO, STATUS, DRAINED, WARNED = OF_AGENTS
ROSTER, _, QUESTION, BEGIN, _, DRAIN, _ = OF_THE_REGISTRAR


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ([1, 2], "Expected `object`, got `array`"),
        ("text", "Expected `object`, got `str`"),
        ({"no": "op"}, "missing required field `op`"),
        ({"op": "dance"}, "Invalid value 'dance' - at `$.op`"),
        (built(DRAIN), "Invalid value 'drain' - at `$.op`"),
        (built(HELLO, run=3), "Expected `str`, got `int` - at `$.run`"),
        (built(HELLO, peer=""), "Expected `str` of length >= 1 - at `$.peer`"),
        (built(HELLO, role="king"), "Invalid enum value 'king' - at `$.role`"),
        (built(HELLO, pid=-1), "Expected `int` >= 0 - at `$.pid`"),
        (built(HELLO, adverts="nowhere"), "- at `$.adverts`"),
        (built(HELLO, name="n" * 257), "Expected `str` of length <= 256 - at `$.name`"),
        ({name: value for name, value in built(HELLO).items() if name != "pulls"}, "missing required field `pulls`"),
        (built(HELLO, dance=1), "unknown field `dance`"),
        (built(STATUS, figures={"dance": 1}), "unknown field `dance` - at `$.figures`"),
        (built(STATUS, figures={"lanes": {"dance": 1}}), "unknown field `dance` - at `$.figures.lanes`"),
        (built(STATUS, figures={"mixing": 3}), "Expected `object`, got `int` - at `$.figures.mixing`"),
        (built(STATUS, figures={"lanes": {"frontiers": 5}}), "got `int` - at `$.figures.lanes.frontiers`"),
        (
            built(STATUS, figures={"lanes": {"frontiers": {"a": -1}}}),
            "`int` >= 0 - at `$.figures.lanes.frontiers[...]`",
        ),
        (built(STATUS, figures={"mixing": {"sketch": [1.0]}}), f"length >= {BUCKETS} - at `$.figures.mixing.sketch`"),
        (built(STATUS, figures={"published": 2.5}), "Expected `int`, got `float` - at `$.figures.published`"),
        (built(STATUS, peer=["a"]), "Expected `str`, got `array` - at `$.peer`"),
        (built(DRAINED, torn=[[1]]), "length 2, got 1 - at `$.torn[0]`"),
        (built(DRAINED, staleness=[-1]), "Expected `int` >= 0 - at `$.staleness[0]`"),
        (built(WARNED, text=3), "Expected `str`, got `int` - at `$.text`"),
    ],
)
def test_what_no_agent_says_is_refused(message: Any, why: str) -> None:
    with pytest.raises(WireError) as caught:
        from_agent([msgspec.msgpack.encode(message)])
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (built(HELLO), "Invalid value 'hello' - at `$.op`"),
        (built(ROSTER, members=[]), "Expected `array` of length >= 1 - at `$.members`"),
        (built(ROSTER, members=[{"peer": "a"}]), "missing required field `role` - at `$.members[0]`"),
        (built(QUESTION, number=-1), "Expected `int` >= 0 - at `$.number`"),
        (built(BEGIN, wait_s=-0.5), "Expected `float` >= 0.0 - at `$.wait_s`"),
        (built(BEGIN, idle="a"), "Expected `array`, got `str` - at `$.idle`"),
        (built(DRAIN, timeout_s=math.nan), "`$.timeout_s`"),
        (built(DRAIN, epochs="one"), "Expected `int`, got `str` - at `$.epochs`"),
    ],
)
def test_what_no_registrar_says_is_refused(message: Any, why: str) -> None:
    with pytest.raises(WireError) as caught:
        from_registrar([msgspec.msgpack.encode(message)])
    assert why in str(caught.value)


@pytest.mark.parametrize("frames", [[], [encode(Stop())] * 2])
def test_a_message_is_one_frame(frames: list[bytes]) -> None:
    with pytest.raises(WireError, match=f"{len(frames)} frames, expected 1"):
        from_registrar(frames)


def test_a_message_that_is_cut_short_or_goes_on_is_none() -> None:
    for message in OF_AGENTS:
        whole = encode(message)
        for frame in [*(whole[:end] for end in range(len(whole))), whole + b"\0"]:
            with pytest.raises(WireError):
                from_agent([frame])


@given(st.binary(max_size=60), st.integers(0, 500))
def test_whatever_comes_is_a_message_or_an_error_of_the_wire(junk: bytes, at: int) -> None:
    for decode, whole in ((from_agent, encode(STATUS)), (from_registrar, encode(ROSTER))):
        for frame in (junk, whole[:at] + junk + whole[at + len(junk) :]):
            try:
                decode([frame])
            except WireError:
                pass
