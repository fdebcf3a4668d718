"""The agent's own loop, in this process: a registrar is a thread beside it, and another does what tasks do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.events import Closed, Event, Leaving
from gossip.messages import PeerId, State
from gossip.story import read
from gossip.updates import KINDS
from gossip.zmq.runtime import Runtime
from gossip.zmq.sockets import Keys, fingerprint
from p2p.agent import discipline as discipline_module
from p2p.agent import local_socket, registrar_link
from p2p.agent import process as module
from p2p.agent.client import LEAVE_SIGNALS, STORY_SIGNAL, AgentClient, AgentSettings
from p2p.agent.local_socket import Process
from p2p.agent.process import Agent, Life, main
from p2p.agent.registrar_link import RegistrarLink, Reports, peak_memory_bytes
from p2p.agent.registrar_messages import Figures, Hello, LaneFigures, Status, Warned, encode, from_agent
from p2p.agent.requests import Done, Loaded
from p2p.driver.consensus import fetch_replica
from p2p.driver.registrar import Member, Registrar

pytestmark = [pytest.mark.sockets, pytest.mark.usefixtures("signals")]

INITIAL = {"w": np.zeros(2)}
LAYOUT = Layout.of(INITIAL)
SOON_S = 60.0


def here() -> str:
    """The name of an agent of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


@pytest.fixture
def signals() -> Iterator[None]:
    """What an agent changes for its process is put back."""
    names = [*LEAVE_SIGNALS, STORY_SIGNAL, signal.SIGINT]
    before = {name: signal.getsignal(name) for name in names}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    (path / "agent").mkdir()
    yield path / "agent"
    shutil.rmtree(path)


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    registrar = Registrar("run")
    yield registrar
    registrar.close()


class Stage:
    """Runs an agent, and a script beside it; the agent is asked to leave when the script has ended."""

    def __init__(self, registrar: Registrar, folder: Path) -> None:
        self.registrar, self.folder = registrar, folder
        self.agent: Agent | None = None
        self._ended = threading.Event()

    def settings(self, **other: Any) -> AgentSettings:
        told = {"run": "run", "role": "observer", "anchor": os.getpid(), "checks": True, **other}
        return AgentSettings(registrar=self.registrar.endpoint, layout=LAYOUT, **told)

    def play(self, script: Callable[[], None], **settings: Any) -> None:
        errors: list[BaseException] = []
        self.agent = agent = Agent(self.settings(**settings), str(self.folder))

        def run() -> None:
            try:
                script()
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
            finally:
                agent._life.end()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            agent.run()
        finally:
            self._ended.set()
            thread.join(SOON_S)
            if errors:
                raise errors[0]

    def wait(self) -> None:
        """A script that does nothing until the agent has ended."""
        assert self._ended.wait(SOON_S)

    def member(self) -> Member:
        assert self.registrar.wait(lambda: bool(self.registrar.members), SOON_S)
        return next(iter(self.registrar.members.values()))

    def client(self) -> AgentClient:
        return AgentClient(str(self.folder))


@pytest.fixture
def stage(registrar: Registrar, folder: Path) -> Stage:
    return Stage(registrar, folder)


def test_the_driver_program_s_agent_begins_with_what_it_is_given(stage: Stage) -> None:
    def script() -> None:
        client = stage.client()
        assert stage.registrar.members == {}, "it says hello when it has something to give"
        client.replica.arrays()["w"][:] = [1, 2]
        client.ask(Loaded(), Done)
        member = stage.member()
        assert (member.role, member.name, member.pid, member.level) == ("observer", here(), os.getpid(), True)
        assert (client.about.peer, client.about.name, client.about.pid) == (member.peer, here(), os.getpid())
        assert not client.about.mixes
        assert client.publish(client.hand_over(), unit=(0, 0, 0))
        assert client.knows((0, 0, 0))
        client.close()

    stage.play(script)
    assert not stage.folder.exists()


def test_what_it_knows_of_closed_epochs_is_let_go_when_everybody_has_it(stage: Stage) -> None:
    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        member = stage.member()
        stage.registrar.wait_for_roster(SOON_S)
        client.publish(client.hand_over(), merged_at=0, unit=(0, 0, 0))
        client.publish(client.hand_over(), staleness=5, unit=(1, 0, 0))
        (asked,) = stage.registrar.drain(SOON_S, 1)
        assert asked is member
        assert member.drained is not None
        assert (member.drained.missing, member.drained.staleness, member.drained.torn) == ([], [0, 5], [])
        stage.registrar.ask_status(SOON_S)
        figures = member.figures
        assert (figures.question, figures.published, figures.roster_version) == (1, 2, 1)
        assert figures.lanes == LaneFigures(frontiers={member.peer: 2}, units=2)
        assert figures.memory_peak_bytes > 1 << 20
        assert not client.publish(client.hand_over(), unit=(0, 7, 7)), "of a closed epoch"
        client.close()

    stage.play(script)
    assert stage.agent is not None
    assert stage.agent._discipline.spans(0).keys() == {(1, 0)}


def test_epochs_are_closed_once_they_are_drained_and_the_peer_says_farewell(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    happen = Runtime.happen

    def spy(self: Runtime, event: Event) -> None:
        events.append(event)
        happen(self, event)

    monkeypatch.setattr(Runtime, "happen", spy)

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        member = stage.member()
        stage.registrar.drain(SOON_S, 2)
        stage.registrar.ask_status(SOON_S)
        assert member.drained is not None
        assert stage.registrar.wait(lambda: Closed(2) in events, SOON_S)
        stage.registrar.ask_status(SOON_S)
        client.close()

    stage.play(script)
    assert [event for event in events if isinstance(event, Closed)] == [Closed(2)]
    assert events[-1] == Leaving()
    assert stage.agent is not None
    assert len(stage.agent.me) == 32


def test_partitions_whose_rows_differed_are_told_at_the_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = 5 << module_bits(), 6 << module_bits()
    spans = {(0, 3): (one, one + 4), (1, 4): (one, other), (1, 5): (one + 1, one + 1)}
    monkeypatch.setattr(module.Lanes, "spans", lambda self, epoch: spans if epoch == 0 else {})

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        member = stage.member()
        stage.registrar.drain(SOON_S)
        assert member.drained is not None
        assert member.drained.torn == [(1, 4)]
        client.close()

    stage.play(script)


def module_bits() -> int:
    from p2p.row_order import NUMBER_BITS

    return NUMBER_BITS


def test_a_request_to_drain_waits_for_updates_that_were_handed_over_before(stage: Stage) -> None:
    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        member = stage.member()
        with client.replica.reading():
            publishing = threading.Thread(target=client.publish, args=(client.hand_over(),))
            publishing.start()
            assert stage.agent is not None
            submissions = stage.agent._discipline.submissions
            stage.registrar.wait(lambda: not submissions.are_taken, SOON_S)
            draining = threading.Thread(target=stage.registrar.drain, args=(SOON_S,))
            draining.start()
            stage.registrar.wait(lambda: False, 0.3)
            assert member.drained is None
        draining.join(SOON_S)
        publishing.join(SOON_S)
        assert member.drained is not None
        stage.registrar.ask_status(SOON_S)
        assert member.figures.published == 1
        client.close()

    stage.play(script)


def test_what_the_registrar_says_of_a_training_is_the_discipline_s_to_do(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module.Lanes, "resume", lambda self, era, wait_s: said.append((era, wait_s)))
    monkeypatch.setattr(module.Lanes, "settle", lambda self, era, rounds: said.append((era, rounds)))

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        member = stage.member()
        stage.registrar.begin(1, [], 7.0)
        stage.registrar.begin(2, [member.peer], 7.0)
        stage.registrar.begin(3)
        stage.registrar.settle(3, 9)
        stage.registrar.ask_status(SOON_S)
        assert said == [(1, 7.0), (2, 0.0), (3, None), (3, 9)]
        client.close()

    stage.play(script)


def test_with_keys_everything_is_encrypted(folder: Path) -> None:
    keys = Keys.generate()
    registrar = Registrar("run", keys=keys)
    stage = Stage(registrar, folder)

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        client.replica.arrays()["w"][:] = 3
        member = stage.member()
        fetched = fetch_replica(LAYOUT, member, SOON_S)
        assert fetched is not None
        assert fetched.arrays()["w"].tolist() == [3, 3]
        for key in (None, keys.public):
            assert fetch_replica(LAYOUT, replace(member, key=key), 0.3) is None
        assert member.peer == fingerprint(str(member.key))
        client.close()

    own = Keys.generate()
    stage.play(script, registrar_key=keys.public, secret=own.secret)
    assert stage.agent is not None
    assert stage.agent.me == fingerprint(own.public)
    registrar.close()


def test_who_is_asked_to_stop_leaves(stage: Stage) -> None:
    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        stage.member()
        stage.registrar.stop_agents()
        stage.wait()
        client.close()

    stage.play(script)
    assert not stage.folder.exists()


# ------------------------------------------------------------------------------------------------ who comes later


class Driver:
    """The driver program's agent, as far as the roster knows it; its replica is in memory."""

    def __init__(self, registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(registrar.endpoint)
        where = {"adverts": "tcp://127.0.0.1:1", "pulls": "tcp://127.0.0.1:2"}
        said = {"run": "run", "role": "observer", "name": "driver:1", "pid": 1, **where}
        self.hello = encode(Hello(peer=PeerId("aa"), **said))
        self.fetched: list[str] = []
        monkeypatch.setattr(discipline_module, "fetch_state", self.fetch)

    def fetch(self, context: Any, endpoint: str, begin: Any, **how: Any) -> State:
        self.fetched.append(endpoint)
        packed = Packed.of({"w": np.array([4.0, 5.0])})
        state = State(peer=PeerId("aa"), frontiers={PeerId("aa"): 3}, k=1, layout=packed.layout)
        begin(state)(0, bytes(packed.buffer))
        return state

    def come(self) -> None:
        self.socket.send(self.hello)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def driver(registrar: Registrar, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver(registrar, monkeypatch)
    yield driver
    driver.close()


def test_a_peer_begins_when_the_driver_program_s_agent_is_there(stage: Stage, driver: Driver) -> None:
    def script() -> None:
        assert stage.registrar.wait(lambda: len(stage.registrar.members) == 1, SOON_S)
        assert not (stage.folder / "agent.sock").exists()
        assert driver.fetched == [], "everybody begins from the driver program's agent"
        driver.come()
        client = stage.client()
        assert driver.fetched == ["tcp://127.0.0.1:2"]
        assert client.replica.arrays()["w"].tolist() == [4, 5]
        assert stage.registrar.wait(lambda: stage.registrar.by_role("peer")[0].figures.roster_version == 2, SOON_S), (
            "it says which roster it knows"
        )
        (member,) = stage.registrar.by_role("peer")
        assert member.figures.lanes.frontiers == {"aa": 3, member.peer: 0}
        assert stage.agent is not None
        assert stage.agent._enrollment.names == {"aa": "driver:1"}
        client.close()

    stage.play(script, role="peer")


def test_a_peer_that_is_refused_says_why(stage: Stage) -> None:
    with pytest.raises(UsageError, match=f"^agent {here()} belongs to another session$"):
        stage.play(stage.wait, role="peer", run="other")
    assert not stage.folder.exists()


def test_a_registrar_that_does_not_answer_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.3)
    words = f"the driver program's registrar at {stage.registrar.endpoint} did not answer within 0.3 s"
    with pytest.raises(UsageError, match=words):
        stage.play(stage.wait, role="peer")


def test_who_comes_late_and_gets_no_replica_says_so(
    stage: Stage, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT_S", 0.8)
    stage.registrar.open = False
    driver.come()
    assert stage.registrar.wait(lambda: len(stage.registrar.members) == 1, SOON_S)
    with pytest.raises(UsageError, match=r"no other agent gave its replica within 0.8 s: are they alive\?"):
        stage.play(stage.wait, role="peer")
    assert driver.fetched == []
    (late,) = stage.registrar.by_role("peer")
    assert not late.level
    assert late.has_reported, "it reports while it waits"


def test_who_is_ended_while_it_waits_leaves_without_a_word(stage: Stage, driver: Driver) -> None:
    def script() -> None:
        assert stage.registrar.wait(lambda: bool(stage.registrar.members), SOON_S)

    stage.play(script, role="peer")
    stage.folder.mkdir()
    stage.registrar.open = False
    driver.come()

    def again() -> None:
        assert stage.registrar.wait(lambda: len(stage.registrar.by_role("peer")) == 2, SOON_S)
        assert stage.registrar.wait(lambda: stage.registrar.by_role("peer")[1].has_reported, SOON_S)

    stage.play(again, role="peer")
    assert not stage.folder.exists()


# ------------------------------------------------------------------------------------------------ its life and its end


def test_a_life_lasts_until_it_is_ended_or_its_anchor_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        one, other = Life(child.pid), Life(os.getpid())
        assert one.goes_on
        assert child.stdin is not None
        child.stdin.close()
        child.wait(SOON_S)
        assert not one.goes_on
    assert other.goes_on
    other.end()
    assert not other.goes_on


def test_signals_ask_to_leave_but_ctrl_c_does_not() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, LEAVE_SIGNALS)
    for name in LEAVE_SIGNALS:
        life = Life(os.getpid())
        life.take_signals()
        os.kill(os.getpid(), signal.SIGINT)
        assert life.goes_on
        os.kill(os.getpid(), name)
        assert not life.goes_on


def test_an_agent_whose_loop_fails_leaves_its_story(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("p2p.driver.registrar.log.warning", lambda text, *rest: said.append(text % rest))

    def fail(self: Any) -> float:
        raise ZeroDivisionError

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        stage.member()
        monkeypatch.setattr(module.Lanes, "turn", fail)
        stage.registrar.wait(lambda: bool(said), SOON_S)
        client.close()

    with pytest.raises(ZeroDivisionError):
        stage.play(script)
    (story,) = stage.folder.parent.glob(f"deepdist-*/story-{os.getpid()}.jsonl")
    assert any("Started" in line.event for line in read(story.read_text().splitlines()))
    assert any(f"its last events are in {story}" in text for text in said)
    assert not stage.folder.exists()


def test_a_story_that_cannot_be_written_is_told_and_the_agent_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*names: str) -> str:
        raise UsageError("no folder")

    def script() -> None:
        client = stage.client()
        client.ask(Loaded(), Done)
        stage.member()
        os.kill(os.getpid(), STORY_SIGNAL)
        assert client.furthest(0, 0) == -1
        client.close()

    monkeypatch.setattr(module.local_socket, "private_folder", refuse)
    stage.play(script)
    assert "its last events cannot be written: no folder" in caplog.text


def test_the_address_is_that_of_the_interface_towards_the_registrar() -> None:
    assert local_socket.address_towards("tcp://127.0.0.1:1234") == "127.0.0.1"


def test_agents_know_the_kinds_that_come_with_the_library() -> None:
    assert module._kinds(None) is KINDS


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = self
        self._data = data

    def read(self) -> bytes:
        return self._data


def begin(monkeypatch: pytest.MonkeyPatch, folder: Path, agent: Any, anchor: int) -> list[Any]:
    import msgspec

    told: list[Any] = []
    settings = AgentSettings("run", "peer", "tcp://127.0.0.1:1", LAYOUT, anchor=anchor)
    monkeypatch.setattr(sys, "argv", ["agent", str(folder)])
    monkeypatch.setattr(sys, "stdin", Stdin(msgspec.json.encode(settings)))
    monkeypatch.setattr(module.open_files, "allow_many", lambda: told.append("many"))
    monkeypatch.setattr(module.local_socket, "leave_with", lambda *said: told.append(said))
    monkeypatch.setattr(module, "Agent", agent)
    return told


class Fails:
    """An agent that does not live long."""

    error: BaseException | None = None

    def __init__(self, settings: AgentSettings, folder: str) -> None:
        assert settings.layout == LAYOUT

    def run(self) -> None:
        if self.error is not None:
            raise self.error


def test_an_agent_that_ends_well_leaves_no_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = begin(monkeypatch, folder, Fails, os.getpid())
    main()
    assert told[0] == "many"
    anchor, where = told[1]
    assert (anchor.pid, where) == (os.getpid(), str(folder))
    assert list(folder.iterdir()) == []


def test_an_agent_that_cannot_begin_leaves_a_note_in_words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fails, "error", UsageError("no room"))
    begin(monkeypatch, folder, Fails, os.getpid())
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"failed": "no room"}


def test_an_agent_that_fails_leaves_its_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fails, "error", KeyError("sad"))
    begin(monkeypatch, folder, Fails, os.getpid())
    folder.rmdir()
    with pytest.raises(KeyError):
        main()
    (note,) = folder.iterdir()
    assert note.name == "failed"
    assert "KeyError: 'sad'" in note.read_text()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_where_the_anchor_is_gone_nothing_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fails, "error", UsageError("no room"))
    begin(monkeypatch, folder, Fails, 0)
    monkeypatch.setattr(module, "Process", lambda pid: Process(pid, ""))
    with pytest.raises(SystemExit):
        main()
    assert not folder.exists()


# ------------------------------------------------------------------------------------------------------- the reports


class Said:
    me = PeerId("me")

    def __init__(self) -> None:
        self.said: list[Any] = []

    def say(self, message: Any) -> None:
        self.said.append(message)


class Quiet:
    """A discipline that has little to tell."""

    def __init__(self) -> None:
        self.gone: list[PeerId] = []
        self.asked: list[bool] = []
        self.runtime = self
        self.figures_ = Figures(published=3, refused=4)
        self.gated, self.bytes_out, self.handed_out, self.bytes_in, self.handed_in, self.malformed = 1, 2, 30, 4, 50, 6

    def departed(self) -> list[PeerId]:
        return list(self.gone)

    @property
    def figures(self) -> Any:
        return self

    def __call__(self, asked: bool) -> Figures:
        self.asked.append(asked)
        return self.figures_


def reports() -> tuple[Reports, Said, Quiet, Any]:
    link, quiet, enrollment = Said(), Quiet(), registrar_link.Enrollment(version=8)
    return Reports(link, quiet, enrollment), link, quiet, enrollment  # type: ignore[arg-type]


def test_a_report_has_the_figures_of_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    report, link, quiet, _ = reports()
    monkeypatch.setattr(registrar_link, "peak_memory_bytes", lambda: 77)
    quiet.gone = [PeerId("dead")]
    report.tell(5)
    report.tell()
    expected = {
        "published": 3,
        "refused": 4,
        "roster_version": 8,
        "departed": [PeerId("dead")],
        "gated": 1,
        "bytes_out": 32,
        "bytes_in": 54,
        "malformed": 6,
        "memory_peak_bytes": 77,
    }
    assert link.said == [
        Status(peer=PeerId("me"), figures=Figures(question=question, **expected))  # type: ignore[arg-type]
        for question in (5, 0)
    ]
    assert quiet.asked == [True, False]


def test_reports_come_in_time_and_at_once_where_somebody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    report, link, quiet, _ = reports()
    now = [100.0]
    monkeypatch.setattr(registrar_link.time, "monotonic", lambda: now[0])
    report.tell_if_due()
    report.tell_if_due()
    assert len(link.said) == 1
    now[0] += registrar_link.STATUS_PERIOD_S - 0.01
    report.tell_if_due()
    assert len(link.said) == 1
    now[0] += 0.01
    report.tell_if_due()
    assert len(link.said) == 2
    for gone in ([PeerId("dead")], []):
        quiet.gone = gone
        report.tell_if_due()
        report.tell_if_due()
    assert len(link.said) == 4


def test_the_peak_of_memory_grows_with_what_is_taken() -> None:
    before = peak_memory_bytes()
    held = np.ones(max(before, 64 << 20) // 8)
    assert peak_memory_bytes() >= held.nbytes
    assert before > 10 << 20


def test_a_message_for_which_there_is_no_room_is_dropped_and_what_is_malformed_is_told() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    link = RegistrarLink(context, f"tcp://127.0.0.1:{port}", None, PeerId("me"))
    link.say(Warned(peer=PeerId("me"), text="hello"))
    assert router.poll(SOON_S * 1e3)
    route, frame = router.recv_multipart()
    assert from_agent([frame]) == Warned(peer=PeerId("me"), text="hello")
    assert not link.wait(0.01)
    router.send_multipart([route, b"junk"])
    assert link.wait(SOON_S)
    assert list(link.messages()) == []
    assert router.poll(SOON_S * 1e3)
    warned = from_agent(router.recv_multipart()[1:])
    assert isinstance(warned, Warned)
    assert warned.text.startswith("a malformed message of the registrar was dropped: ")
    router.close()
    link.close()
    nobody = RegistrarLink(context, "tcp://127.0.0.1:1", None, PeerId("me"))
    for _ in range(5000):
        nobody.say(Warned(peer=PeerId("me"), text="x" * 100))
    nobody.close()
    context.term()
