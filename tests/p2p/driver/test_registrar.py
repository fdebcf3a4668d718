"""The registrar and agents that are no more than a socket: who is asked what, and who is waited for."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import pytest
import zmq

from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.zmq.sockets import Keys, fingerprint
from p2p.agent.registrar_link import RegistrarLink
from p2p.agent.registrar_messages import (
    Begin,
    Drain,
    Drained,
    Figures,
    FromAgent,
    FromRegistrar,
    Hello,
    MixFigures,
    Question,
    Refused,
    Roster,
    Settle,
    Status,
    Stop,
    Warned,
    encode,
    from_registrar,
)
from p2p.agent.sketch import BUCKETS
from p2p.driver.registrar import SILENT_S, Member, Registrar

pytestmark = pytest.mark.sockets

TIMEOUT_MS = 60_000
LONG_S = 3600.0
"""Nobody waits so long: what ends sooner ended for another reason."""
SOON_S = 60.0
"""On a machine that has a lot else to do."""
M = TypeVar("M", bound=FromRegistrar)


class Agent:
    """It says what it is told to say."""

    def __init__(self, registrar: Registrar, name: str, timeout_ms: int = TIMEOUT_MS, **settings: Any) -> None:
        self.peer, self.timeout_ms = PeerId(name), timeout_ms
        self.run = registrar.run
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(registrar.endpoint)
        self.hello(name, **settings)
        assert self.hears(Roster).members[-1].peer == name

    def hello(self, name: str, **settings: Any) -> None:
        where = {"adverts": "tcp://127.0.0.1:1", "pulls": "tcp://127.0.0.1:2"}
        said = {"run": self.run, "role": "peer", "name": name, "pid": 1, **where, **settings}
        self.say(Hello(peer=self.peer, **said))

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

    def hears_next(self) -> FromRegistrar:
        """The next message, whatever it is."""
        assert self.socket.poll(self.timeout_ms)
        return from_registrar(self.socket.recv_multipart())

    def close(self) -> None:
        self.socket.close()


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


# ---------------------------------------------------------------------------------------------- what agents are told


def test_the_roster_lists_all_with_what_they_said_in_the_order_they_came(registrar: Registrar) -> None:
    one = Agent(registrar, "one", role="observer", pid=7)
    two = Agent(registrar, "two", adverts="tcp://127.0.0.1:3", pulls="tcp://127.0.0.1:4", adopts=True)
    roster = one.hears(Roster)
    assert (roster.version, registrar.version) == (2, 2)
    assert [(m.peer, m.role, m.name, m.adverts, m.pulls, m.level, m.answers) for m in roster.members] == [
        ("one", "observer", "one", "tcp://127.0.0.1:1", "tcp://127.0.0.1:2", True, False),
        ("two", "peer", "two", "tcp://127.0.0.1:3", "tcp://127.0.0.1:4", False, False),
    ]
    assert [member.name for member in registrar.by_role("peer")] == ["two"]
    assert [member.name for member in registrar.by_role("peer", "observer")] == ["one", "two"]
    assert [(member.peer, member.pid) for member in registrar.members.values()] == [("one", 7), ("two", 1)]
    for agent in (one, two):
        agent.close()


def test_who_comes_while_a_training_runs_is_not_level(registrar: Registrar) -> None:
    registrar.open = False
    late = Agent(registrar, "late")
    assert not registrar.members["late"].level
    registrar.open = True
    late.close()


def test_an_agent_of_another_session_is_refused(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    one.peer = PeerId("other")
    one.hello("other", run="another")
    assert one.hears(Refused).why == "agent other belongs to another session"
    assert list(registrar.members) == ["one"]
    one.close()


def test_a_training_is_announced_to_all_and_to_whoever_comes_late(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    registrar.begin(3, [PeerId("b"), PeerId("a")], 2.5)
    begin = Begin(era=3, idle=["a", "b"], wait_s=2.5)
    assert one.hears_next() == begin
    late = Agent(registrar, "late")
    assert late.hears_next() == begin
    registrar.settle(3, 9)
    settle = Settle(era=3, rounds=9)
    assert one.hears(Settle) == settle
    later = Agent(registrar, "later")
    assert [later.hears_next(), later.hears_next()] == [begin, settle], "and in this order"
    for agent in (one, late, later):
        agent.close()


def test_a_training_that_ends_early_is_called_off_and_announced_no_more(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    registrar.begin(1)
    assert one.hears_next() == Begin(era=1, idle=[])
    registrar.call_off(4)
    assert one.hears_next() == Drain(timeout_s=0.0, epochs=4)
    late = Agent(registrar, "late")
    registrar.stop_agents()
    assert late.hears_next() == Stop()
    for agent in (one, late):
        agent.close()


def test_a_drain_asks_all_waits_for_each_and_tells_what_was_missed(registrar: Registrar) -> None:
    one, two = Agent(registrar, "one"), Agent(registrar, "two")
    registrar.begin(1)
    asked: list[Member] = []
    draining = threading.Thread(target=lambda: asked.extend(registrar.drain(LONG_S, 2)))
    draining.start()
    assert one.hears(Drain) == two.hears(Drain) == Drain(timeout_s=LONG_S, epochs=2)
    first, second = registrar.members.values()
    assert (first.missed, second.missed) == (["one"], ["two"])
    one.say(Drained(peer=one.peer))
    assert registrar.wait(lambda: first.drained is not None, SOON_S)
    assert draining.is_alive()
    two.say(Drained(peer=two.peer, missing=["one"]))
    draining.join(SOON_S)
    assert [member.name for member in asked] == ["one", "two"]
    assert (first.missed, second.missed) == ([], ["one"])
    late = Agent(registrar, "late")
    registrar.stop_agents()
    assert late.hears_next() == Stop(), "the training is over, and is announced no more"
    again = threading.Thread(target=registrar.drain, args=(LONG_S,))
    again.start()
    one.hears(Drain)
    assert first.drained is None, "its answer to this one"
    for agent in (one, two, late):
        agent.say(Drained(peer=agent.peer))
    again.join(SOON_S)
    assert not again.is_alive()
    for agent in (one, two, late):
        agent.close()


def test_a_question_is_waited_for_and_has_a_number_of_its_own(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    for number in (1, 2):
        asking = threading.Thread(target=registrar.ask_status, args=(LONG_S,))
        asking.start()
        assert one.hears(Question).number == number
        one.tell(Figures(published=10 * number))
        assert registrar.wait(lambda n=number: registrar.members["one"].figures.published == 10 * n, SOON_S)
        assert asking.is_alive(), "that was no answer"
        one.tell(Figures(question=number))
        asking.join(SOON_S)
        assert not asking.is_alive()
    one.tell(Figures(published=5))
    assert registrar.wait(lambda: registrar.members["one"].figures.published == 5, SOON_S)
    assert registrar.members["one"].figures.question == 2, "what came later answers it as well"
    one.close()


# -------------------------------------------------------------------------------------------- what the registrar knows


def test_who_waits_for_the_roster_waits_for_all_that_speak(registrar: Registrar) -> None:
    one, two, silent = (Agent(registrar, name) for name in ("one", "two", "silent"))
    registrar.members["silent"].heard_at -= 2 * SILENT_S
    assert [member.name for member in registrar.speaking()] == ["one", "two"]
    for agent in (one, two):
        agent.tell(Figures(roster_version=3))
    registrar.wait_for_roster(SOON_S)
    one.tell(Figures(roster_version=2))
    assert registrar.wait(lambda: registrar.members["one"].figures.roster_version == 2, SOON_S)
    with pytest.raises(UsageError, match=r"after 0.01 s these agents have not connected to all others: one\. Can"):
        registrar.wait_for_roster(0.01)
    for agent in (one, two, silent):
        agent.close()


def test_what_hosts_lack_is_told_once_for_each(registrar: Registrar) -> None:
    settings = [("a:1", "no room"), ("a:2", "no room at all"), ("b:1", None), ("c:1", "too little")]
    agents = []
    for name, shortage in settings:
        agents.append(Agent(registrar, name, shortage=shortage))
    assert registrar.shortages() == {
        "shared memory of a": "on a, no room",
        "shared memory of c": "on c, too little",
    }
    for agent in agents:
        agent.close()


def test_a_process_is_here_while_it_runs_on_this_machine(registrar: Registrar) -> None:
    here, pid = socket.gethostname(), os.getpid()
    agents = [
        Agent(registrar, f"{here}:{pid}", pid=pid),
        Agent(registrar, f"elsewhere:{pid}", pid=pid),
        Agent(registrar, f"{here}:0", pid=0),
    ]
    assert [registrar.is_here(member) for member in registrar.members.values()] == [True, False, False]
    for agent in agents:
        agent.close()


def test_who_says_anything_is_heard(registrar: Registrar, caplog: pytest.LogCaptureFixture) -> None:
    one = Agent(registrar, "one")
    member = registrar.members["one"]
    assert not registrar.is_silent(member)
    assert not member.has_reported
    for message in (
        Status(peer=one.peer, figures=Figures()),
        Drained(peer=one.peer),
        Warned(peer=one.peer, text="few files"),
    ):
        member.heard_at = float("-inf")
        assert registrar.is_silent(member)
        one.say(message)
        assert registrar.wait(lambda: not registrar.is_silent(member), SOON_S)
    assert member.has_reported
    assert "one: few files" in caplog.text
    one.close()


def test_who_is_not_on_the_roster_is_not_heard(registrar: Registrar) -> None:
    one = Agent(registrar, "one")
    one.say(Status(peer=PeerId("nobody"), figures=Figures()))
    one.tell(Figures(published=1))
    assert registrar.wait(lambda: registrar.members["one"].figures.published == 1, SOON_S)
    assert list(registrar.members) == ["one"]
    one.close()


def test_those_that_are_lost_are_silent_and_no_others(registrar: Registrar) -> None:
    agents = [Agent(registrar, name, pid=pid) for name, pid in (("one", 5), ("two", 6), ("three", 7))]
    registrar.lose({5, 7})
    assert [registrar.is_silent(member) for member in registrar.members.values()] == [True, False, True]
    for agent in agents:
        agent.close()


def test_sketches_are_dropped_and_the_other_figures_stay(registrar: Registrar) -> None:
    one, two = Agent(registrar, "one"), Agent(registrar, "two")
    one.tell(Figures(published=3, mixing=MixFigures(rounds=4, sketch=[1.0] * BUCKETS)))
    two.tell(Figures(published=5))
    assert registrar.wait(lambda: all(member.has_reported for member in registrar.members.values()), SOON_S)
    before = registrar.members["two"].figures
    registrar.drop_sketches()
    assert registrar.members["one"].figures == Figures(
        published=3, departed=[], mixing=MixFigures(rounds=4, edges={}), lanes=before.lanes
    )
    assert registrar.members["two"].figures is before
    for agent in (one, two):
        agent.close()


def test_waiting_ends_when_time_runs_out(registrar: Registrar) -> None:
    assert registrar.wait(lambda: True, 0.0)
    assert not registrar.wait(lambda: False, 0.01)


def test_a_registrar_is_on_the_interface_that_it_was_given_and_keys_are_needed_off_this_machine() -> None:
    with pytest.raises(UsageError, match="keys"):
        Registrar("run", "192.0.2.1")
    registrar = Registrar("run")
    assert registrar.endpoint.startswith("tcp://127.0.0.1:")
    assert (registrar.run, registrar.open) == ("run", True)
    registrar.close()


def test_what_is_asked_for_before_the_end_is_still_sent() -> None:
    registrar = Registrar("run")
    one = Agent(registrar, "one")
    registrar.stop_agents()
    registrar.close()
    assert one.hears_next() == Stop()
    one.close()


WHERE = "tcp://127.0.0.1:1"


def greeting(keys: Keys, **said: Any) -> Hello:
    """Of an agent that has these keys."""
    told = {"run": "run", "role": "peer", "name": "name", "pid": 1, "adverts": WHERE, "pulls": WHERE, "token": "token"}
    return Hello(**{**told, "peer": fingerprint(keys.public), "key": keys.public, **said})


@pytest.fixture
def sealed() -> Iterator[Registrar]:
    registrar = Registrar("run", keys=Keys.generate(), token="token")
    yield registrar
    registrar.close()


def connected(registrar: Registrar, keys: Keys) -> RegistrarLink:
    return RegistrarLink(zmq.Context.instance(), registrar.endpoint, keys, fingerprint(keys.public), registrar.key)


def test_only_who_knows_the_registrar_s_key_is_heard(sealed: Registrar) -> None:
    keys = Keys.generate()
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.connect(sealed.endpoint)
    other = Keys.generate()
    guess = RegistrarLink(zmq.Context.instance(), sealed.endpoint, other, fingerprint(other.public), other.public)
    link = connected(sealed, keys)
    stranger.send(encode(greeting(Keys.generate())))
    guess.say(greeting(other))
    link.say(greeting(keys))
    assert sealed.wait(lambda: link.me in sealed.members, SOON_S)
    assert link.wait(SOON_S)
    (roster,) = link.messages()
    assert isinstance(roster, Roster)
    assert [(one.peer, one.key, one.pid) for one in roster.members] == [(link.me, keys.public, 1)]
    assert not sealed.wait(lambda: len(sealed.members) > 1, 0.3)
    stranger.close()
    guess.close()
    link.close()


def test_an_agent_is_heard_in_its_own_name_only(sealed: Registrar, caplog: pytest.LogCaptureFixture) -> None:
    """Who has the session's token and a key of its own is one agent, and no other."""
    keys = Keys.generate()
    link, member = connected(sealed, keys), connected(sealed, Keys.generate())
    link.say(greeting(keys))
    assert sealed.wait(lambda: link.me in sealed.members, SOON_S)
    route = sealed.members[link.me].route
    forged = [
        greeting(keys),
        Status(peer=link.me, figures=Figures(published=10**9)),
        Drained(peer=link.me),
        Warned(peer=link.me, text="forged"),
    ]
    for message in forged:
        member.say(message)
    link.say(Status(peer=link.me, figures=Figures(published=7)))
    assert sealed.wait(lambda: caplog.text.count("speaks for") == len(forged), SOON_S)
    assert sealed.wait(lambda: sealed.members[link.me].figures.published == 7, SOON_S)
    assert sealed.members[link.me].route == route
    assert sealed.members[link.me].drained is None
    assert "forged" not in caplog.text
    for each in (link, member):
        each.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"token": ""}, "does not have the session's token"),
        ({"token": "tokem"}, "does not have the session's token"),
        ({"run": "another"}, "belongs to another session"),
        ({"role": "observer"}, "is not the driver program's"),
        ({"key": None}, "tells another key"),
        ({"key": "k" * 40}, "tells another key"),
    ],
)
def test_who_is_not_let_in_is_told_why(sealed: Registrar, said: dict[str, Any], why: str) -> None:
    sealed.admission.observer = PeerId("the driver program's")
    keys = Keys.generate()
    link = connected(sealed, keys)
    link.say(greeting(keys, **said))
    assert link.wait(SOON_S)
    (refused,) = link.messages()
    assert isinstance(refused, Refused)
    assert why in refused.why
    assert not sealed.members
    link.close()


def test_answers_go_where_an_agent_spoke_last(sealed: Registrar) -> None:
    """A connection that broke is made anew, and has another number."""
    keys = Keys.generate()
    first, second = connected(sealed, keys), connected(sealed, keys)
    first.say(greeting(keys))
    assert first.wait(SOON_S)
    first.close()
    second.say(Status(peer=second.me, figures=Figures(published=1)))
    assert sealed.wait(lambda: sealed.members[second.me].figures.published == 1, SOON_S)
    sealed.stop_agents()
    assert second.wait(SOON_S)
    assert list(second.messages()) == [Stop()]
    second.close()
