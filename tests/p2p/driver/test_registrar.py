"""The registrar and agents that are no more than a socket: who is asked what, and who is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from gossip.errors import UsageError
from p2p.driver.registrar import Registrar

pytestmark = pytest.mark.sockets

TIMEOUT_MS = 60_000
LONG_S = 3600.0
"""Nobody waits so long: what ends sooner ended for another reason."""
SOON_S = 60.0
"""On a machine that has a lot else to do."""


class Agent:
    """It says what it is told to say."""

    def __init__(self, registrar: Registrar, name: str, timeout_ms: int = TIMEOUT_MS) -> None:
        self.name, self.timeout_ms = name, timeout_ms
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(registrar.endpoint)
        self.say("hello", run=registrar.run, role="peer", name=name, pid=1, adverts="", pulls="", shortage=None)
        assert self.hears("roster")["members"][-1]["peer"] == name

    def say(self, op: str, **message: Any) -> None:
        self.socket.send_json({"op": op, "peer": self.name, **message})

    def hears(self, op: str) -> dict[str, Any]:
        """The next message of this kind."""
        while self.socket.poll(self.timeout_ms):
            message = self.socket.recv_json()
            assert isinstance(message, dict)
            if message["op"] == op:
                return message
        raise TimeoutError(f"no {op} came")


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    registrar = Registrar("run")
    yield registrar
    registrar.close()


def test_a_drain_does_not_wait_for_who_came_later_and_was_not_asked(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    draining = threading.Thread(target=registrar.drain, args=(LONG_S,))
    draining.start()
    one.hears("drain")
    late = Agent(registrar, "late")
    one.say("drained", missing=[], staleness=[])
    draining.join(SOON_S)
    assert not draining.is_alive()
    for agent in (one, late):
        agent.socket.close()


def test_a_question_is_not_waited_for_from_who_came_later(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    asking = threading.Thread(target=registrar.ask_status, args=(LONG_S,))
    asking.start()
    question = one.hears("status")["question"]
    late = Agent(registrar, "late")
    one.say("status", question=question)
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
    one.hears("drain")
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
    assert one.hears("refused")["why"] == "no room"
    one.say("hello", run=registrar.run, role="peer", name="again", pid=1, adverts="", pulls="", shortage=None)
    assert one.hears("refused")["why"] == "no room"
    one.socket.close()


def test_a_newcomer_learns_who_has_a_replica_to_give(registrar: Registrar) -> None:
    one, dead, fresh = (Agent(registrar, name) for name in ("one", "dead", "fresh"))
    for agent in (one, dead):
        agent.say("status", question=0)
    assert registrar.wait(lambda: all(registrar.members[name].has_reported for name in ("one", "dead")), SOON_S)
    registrar.members["dead"].heard_at = float("-inf")
    late = Agent(registrar, "late")
    roster = fresh.hears("roster")["members"]
    assert {member["name"]: member["answers"] for member in roster} == {
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
    one.say("status", question=0)
    one.hears("stop")
    other.say("status", question=1)
    assert registrar.wait(lambda: registrar.members["other"].figures.question == 1, SOON_S)
    assert list(registrar.members) == ["other"]
    for agent in (one, other):
        agent.socket.close()


def test_the_hello_of_one_that_was_forgotten_before_comes_too_late(registrar: Registrar) -> None:
    registrar.forget({"late"})
    with pytest.raises(TimeoutError):
        Agent(registrar, "late", timeout_ms=200)
    assert registrar.members == {}
