"""What a task and its agent say to each other: all comes back as it went, and what is none is refused, in words."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.fields import COUNT_MAX
from gossip.marks import Counted, Mark, Unit, packed
from gossip.messages import PeerId
from p2p.agent import local_socket, requests
from p2p.agent.requests import (
    Answer,
    Begins,
    Counting,
    Counts,
    Done,
    Ends,
    Furthest,
    Hello,
    Known,
    Knows,
    Loaded,
    Publish,
    Published,
    Reached,
    Refused,
    Remainder,
    Request,
    Welcome,
)

Pair = tuple[socket.socket, socket.socket]

LAYOUT = Layout.of({"w": np.zeros((2, 3), np.float32), "n": np.zeros((), np.int64), "empty": np.zeros((0, 4))})
UNIT = Unit(1, 2, 3)
COUNTED = Counted(1, 7, packed([Mark(Unit(1, 2, chunk), 0) for chunk in (0, 1, 5)]))
REQUESTS: list[Request] = [
    Hello(),
    Loaded(),
    Loaded(COUNTED),
    Counts(),
    Publish(layout=LAYOUT, merged_at=3),
    Publish(layout=LAYOUT, merged_at=0, staleness=2, unit=UNIT, attempt=1, lent=True, left=Remainder(False)),
    Publish(layout=LAYOUT, merged_at=COUNT_MAX, left=Remainder(True, LAYOUT)),
    Knows(UNIT),
    Furthest(1, 2),
    Begins(),
    Ends(),
]
ANSWERS: list[Answer] = [
    Welcome(layout=LAYOUT, peer=PeerId("p"), name="host:1", pid=1, mixes=True),
    Done(),
    Published(False),
    Known(True),
    Reached(-1),
    Counting(COUNTED),
    Counting(None),
    Refused("no"),
]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected ends."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(10)
    with ours, theirs:
        yield ours, theirs


def send(connection: socket.socket, message: Any, files: int) -> None:
    """The message, or any bytes or object in its place, with so many open files."""
    with open(os.devnull) as file:
        descriptors = (file.fileno(),) * files
        if isinstance(message, requests.Said):
            requests.send(connection, message, descriptors)  # type: ignore[arg-type]
        else:
            body = message if isinstance(message, bytes) else json.dumps(message).encode()
            local_socket.send(connection, body, descriptors)


@pytest.mark.parametrize("message", [*REQUESTS, *ANSWERS], ids=lambda message: type(message).__name__)
def test_each_comes_back_as_it_went_with_its_open_files(pair: Pair, message: Request | Answer) -> None:
    send(pair[0], message, message.files)
    receive = requests.receive_request if message in REQUESTS else requests.receive_answer
    back, descriptors = receive(pair[1])
    requests.close(descriptors)
    assert (type(back), back) == (type(message), message)
    assert len(descriptors) == message.files


def test_there_is_one_of_each_kind_above() -> None:
    assert {type(message) for message in REQUESTS} == set(get_args(Request))
    assert {type(message) for message in ANSWERS} == set(get_args(Answer))


def test_a_message_can_be_read_as_it_passes(pair: Pair) -> None:
    requests.send(pair[0], Knows(UNIT))
    assert local_socket.receive(pair[1]) == (b'{"op":"knows","unit":[1,2,3]}', [])


PUBLISH: dict[str, Any] = {"op": "publish", "layout": [[["w", "<f8", [3]]]], "merged_at": 0}


def test_what_needs_not_be_said_is_as_if_it_had_been(pair: Pair) -> None:
    send(pair[0], PUBLISH, 1)
    request, descriptors = requests.receive_request(pair[1])
    requests.close(descriptors)
    assert request == Publish(layout=Layout.of({"w": np.zeros(3)}), merged_at=0)


@pytest.mark.parametrize(
    ("message", "files", "why"),
    [
        (b"", 0, "Input data was truncated"),
        (b"\xff", 0, "JSON is malformed"),
        (b"[" * 100_000, 0, "Expected `object`, got `array`"),
        (b'{"op":"knows","unit":' + b"[" * 100_000, 0, "Expected `int`, got `array` - at `$.unit[0]`"),
        (b'{"op":"hello"}{"op":"hello"}', 0, "trailing characters"),
        ([1], 0, "Expected `object`, got `array`"),
        ({}, 0, "missing required field `op`"),
        ({"op": "dance"}, 0, "Invalid value 'dance' - at `$.op`"),
        ({"op": 3}, 0, "Expected `str` - at `$.op`"),
        ({"op": "hello", "name": "x"}, 0, "unknown field `name`"),
        ({"op": "welcome"}, 0, "Invalid value 'welcome' - at `$.op`"),
        ({"op": "knows"}, 0, "missing required field `unit`"),
        ({"op": "knows", "unit": [1]}, 0, "`array` of length 3 - at `$.unit`"),
        ({"op": "knows", "unit": [1, 2, 3, 4]}, 0, "`array` of length 3 - at `$.unit`"),
        ({"op": "knows", "unit": [1, 2, "three"]}, 0, "Expected `int`, got `str` - at `$.unit[2]`"),
        ({"op": "knows", "unit": [1, 2, True]}, 0, "Expected `int`, got `bool` - at `$.unit[2]`"),
        ({"op": "knows", "unit": [1, 2, 2.5]}, 0, "Expected `int`, got `float` - at `$.unit[2]`"),
        ({"op": "knows", "unit": [-1, 2, 3]}, 0, "Expected `int` >= 0 - at `$.unit[0]`"),
        ({"op": "knows", "unit": [COUNT_MAX + 1, 2, 3]}, 0, "`$.unit[0]`"),
        ({"op": "furthest", "epoch": 1}, 0, "missing required field `partition`"),
        ({**PUBLISH, "layout": 3}, 1, "Expected `array`, got `int` - at `$.layout`"),
        ({**PUBLISH, "layout": [[["w", "O", [3]]]]}, 1, "Invalid enum value 'O' - at `$.layout[0][0][1]`"),
        ({**PUBLISH, "layout": [[["w", "<f8", [-3]]]]}, 1, "Expected `int` >= 0 - at `$.layout[0][0][2][0]`"),
        ({**PUBLISH, "layout": [[["w", "<f8"]]]}, 1, "length 3, got 2 - at `$.layout[0][0]`"),
        ({**PUBLISH, "unit": [{}, 0, 0]}, 1, "Expected `int`, got `object` - at `$.unit[0]`"),
        ({**PUBLISH, "attempt": None}, 1, "Expected `int`, got `null` - at `$.attempt`"),
        ({**PUBLISH, "staleness": -1}, 1, "Expected `int` >= 0 - at `$.staleness`"),
        ({**PUBLISH, "lent": 1}, 1, "Expected `bool`, got `int` - at `$.lent`"),
        ({**PUBLISH, "left": {"layout": None}}, 1, "missing required field `follows` - at `$.left`"),
        ({**PUBLISH, "left": {"follows": "yes"}}, 1, "Expected `bool`, got `str` - at `$.left.follows`"),
        ({**PUBLISH, "left": {"follows": True, "rest": 1}}, 1, "unknown field `rest` - at `$.left`"),
        (PUBLISH, 0, "0 open files came with it, expected 1"),
        (PUBLISH, 2, "2 open files came with it, expected 1"),
        ({**PUBLISH, "left": {"follows": True, "layout": [[]]}}, 1, "1 open files came with it, expected 2"),
        (Hello(), 1, "1 open files came with it, expected 0"),
    ],
)
def test_what_is_no_request_is_refused_and_its_files_are_closed(pair: Pair, message: Any, files: int, why: str) -> None:
    send(pair[0], message, files)
    before = os.listdir("/dev/fd")
    with pytest.raises(UsageError) as caught:
        requests.receive_request(pair[1])
    assert str(caught.value).startswith("a malformed request of a task: ")
    assert why in str(caught.value)
    assert os.listdir("/dev/fd") == before
    requests.send(pair[0], Begins())
    assert requests.receive_request(pair[1]) == (Begins(), [])


@pytest.mark.parametrize(
    ("message", "files", "why"),
    [
        (Begins(), 0, "Invalid value 'begins' - at `$.op`"),
        ({"op": "known", "known": 1}, 0, "Expected `bool`, got `int` - at `$.known`"),
        ({"op": "reached", "chunk": -2}, 0, "Expected `int` >= -1 - at `$.chunk`"),
        ({"op": "published"}, 0, "missing required field `new`"),
    ],
)
def test_what_is_no_answer_is_refused(pair: Pair, message: Any, files: int, why: str) -> None:
    send(pair[0], message, files)
    with pytest.raises(UsageError) as caught:
        requests.receive_answer(pair[1])
    assert str(caught.value).startswith("a malformed answer of an agent: ")
    assert why in str(caught.value)
