"""The registrar and agents that are no more than a socket: who is asked what, and who is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import pytest
import zmq

from gossip.errors import UsageError
from gossip.messages import PeerId
from p2p.agent.registrar_messages import (
    Drain,
    Drained,
    Figures,
    FromAgent,
    FromRegistrar,
    Hello,
    Question,
    Refused,
    Roster,
    Status,
    Stop,
    encode,
    from_registrar,
)
from p2p.driver.registrar import Registrar

pytestmark = pytest.mark.sockets

TIMEOUT_MS = 60_000
LONG_S = 3600.0
"""Nobody waits so long: what ends sooner ended for another reason."""
SOON_S = 60.0
"""On a machine that has a lot else to do."""
M = TypeVar("M", bound=FromRegistrar)


class Agent:
    """It says what it is told to say."""

    def __init__(self, registrar: Registrar, name: str, timeout_ms: int = TIMEOUT_MS) -> None:
        self.peer, self.timeout_ms = PeerId(name), timeout_ms
        self.run = registrar.run
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(registrar.endpoint)
        self.hello(name)
        assert self.hears(Roster).members[-1].peer == name

    def hello(self, name: str) -> None:
        where = "tcp://127.0.0.1:1"
        self.say(Hello(peer=self.peer, run=self.run, role="peer", name=name, pid=1, adverts=where, pulls=where))

    def tell(self, figures: Figures) -> None:
        self.say(Status(peer=self.peer, figures=figures))

    def say(self, message: FromAgent) -> None:
        self.socket.send(encode(message))

    def hears(self, kind: type[M]) -> M:
        """The next message of this kind."""
        while self.socket.poll(self.timeout_ms):
            message = from_registrar(self.socket.recv_multipart())
            if isinstance(message, kind):
                return message
        raise TimeoutError(f"no {kind.__name__} came")


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    registrar = Registrar("run")
    yield registrar
    registrar.close()


def test_a_drain_does_not_wait_for_who_came_later_and_was_not_asked(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    draining = threading.Thread(target=registrar.drain, args=(LONG_S,))
    draining.start()
    one.hears(Drain)
    late = Agent(registrar, "late")
    one.say(Drained(peer=one.peer))
    draining.join(SOON_S)
    assert not draining.is_alive()
    for agent in (one, late):
        agent.socket.close()


def test_a_question_is_not_waited_for_from_who_came_later(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    asking = threading.Thread(target=registrar.ask_status, args=(LONG_S,))
    asking.start()
    question = one.hears(Question).number
    late = Agent(registrar, "late")
    one.tell(Figures(question=question))
    asking.join(SOON_S)
    assert not asking.is_alive()
    for agent in (one, late):
        agent.socket.close()


def test_who_was_asked_and_speaks_is_waited_for(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    begin = time.monotonic()
    registrar.ask_status(0.2)
    assert time.monotonic() - begin >= 0.2
    one.socket.close()


def test_members_do_not_change_under_who_goes_through_them(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    members = registrar.members
    going = iter(members.values())
    late = Agent(registrar, "late")
    registrar.forget({"one"})
    assert [member.name for member in going] == ["one"]
    assert list(registrar.members) == ["late"]
    for agent in (one, late):
        agent.socket.close()


def test_nobody_waits_for_an_agent_that_its_parent_saw_end(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    draining = threading.Thread(target=registrar.drain, args=(LONG_S,))
    draining.start()
    one.hears(Drain)
    registrar.lose({1})
    draining.join(SOON_S)
    assert not draining.is_alive()
    one.socket.close()


def test_when_a_session_is_given_up_whoever_waits_hears_why(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    said = []

    def wait() -> None:
        with pytest.raises(UsageError, match="no room") as caught:
            registrar.wait(lambda: False, LONG_S)
        said.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    registrar.give_up("no room")
    waiting.join(SOON_S)
    assert len(said) == 1
    assert one.hears(Refused).why == "no room"
    one.hello("again")
    assert one.hears(Refused).why == "no room"
    one.socket.close()


def test_a_newcomer_learns_who_has_a_replica_to_give(registrar: Registrar) -> None:
    one, dead, fresh = (Agent(registrar, name) for name in ("one", "dead", "fresh"))
    for agent in (one, dead):
        agent.tell(Figures())
    assert registrar.wait(lambda: all(registrar.members[name].has_reported for name in ("one", "dead")), SOON_S)
    registrar.members["dead"].heard_at = float("-inf")
    late = Agent(registrar, "late")
    roster = fresh.hears(Roster).members
    assert {member.name: member.answers for member in roster} == {
        "one": True,
        "dead": False,
        "fresh": False,
        "late": False,
    }
    for agent in (one, dead, fresh, late):
        agent.socket.close()


def test_who_was_forgotten_and_speaks_again_is_told_to_leave(registrar: Registrar) -> None:
    one, other = Agent(registrar, "one"), Agent(registrar, "other")
    registrar.forget({"one"})
    one.tell(Figures())
    one.hears(Stop)
    other.tell(Figures(question=1))
    assert registrar.wait(lambda: registrar.members["other"].figures.question == 1, SOON_S)
    assert list(registrar.members) == ["other"]
    for agent in (one, other):
        agent.socket.close()


def test_the_hello_of_one_that_was_forgotten_before_comes_too_late(registrar: Registrar) -> None:
    registrar.forget({"late"})
    with pytest.raises(TimeoutError):
        Agent(registrar, "late", timeout_ms=200)
    assert registrar.members == {}


def junk(name: str) -> list[list[bytes]]:
    """Frames that are no message of the agent `name`."""
    hello = {"op": "hello", "peer": name, "run": "run", "role": "peer", "name": name, "pid": 1}
    objects: list[Any] = [
        [1, 2],
        "text",
        None,
        {"no": "op"},
        {"op": "dance", "peer": name},
        {"op": "stop"},
        {"op": "status", "peer": [name], "figures": {}},
        {"op": "status", "peer": name},
        {"op": "status", "peer": name, "figures": {"lanes": {"frontiers": 5}}},
        {"op": "status", "peer": name, "figures": {"mixing": {"sketch": [0.5]}}},
        {"op": "drained", "peer": name, "torn": [[1]]},
        {"op": "drained", "peer": name, "staleness": {"a": 1}},
        {"op": "warned", "peer": name, "text": 3},
        {**hello, "adverts": "nowhere", "pulls": "nowhere"},
        hello,
    ]
    whole = encode(Status(peer=PeerId(name), figures=Figures()))
    return [*([msgspec.msgpack.encode(each)] for each in objects), [b""], [b"\xc1"], [whole[:-1]], [whole, whole]]


def test_what_is_no_message_is_dropped_and_logged_and_the_registrar_goes_on(
    registrar: Registrar, caplog: pytest.LogCaptureFixture
) -> None:
    one = Agent(registrar, "one")
    sent = junk("one")
    for frames in sent:
        one.socket.send_multipart(frames)
    one.tell(Figures(question=7))
    assert registrar.wait(lambda: registrar.members["one"].figures.question == 7, SOON_S)
    assert caplog.text.count("the registrar dropped a malformed message: ") == len(sent)
    assert "Expected `object`, got `int` - at `$.figures.lanes.frontiers`" in caplog.text
    member = registrar.members["one"]
    assert (member.drained, member.figures) == (None, Figures(question=7, departed=[]))
    one.socket.close()
