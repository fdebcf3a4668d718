"""Agents as processes, with a registrar and an observer but without tasks: what they report of each other."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from gossip.story import Line, read
from p2p.agent import client as client_module
from p2p.agent import local_socket, requests
from p2p.agent.client import AgentClient, AgentGoneError, AgentSettings, is_free, start_agent
from p2p.agent.local_socket import Process
from p2p.agent.ports import Left
from p2p.agent.requests import Known, Knows, Refused
from p2p.cli.main import main
from p2p.driver.observer import Observer
from p2p.driver.registrar import SILENT_S, Member, Registrar

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

TIMEOUT_S = 60.0
INITIAL = {"w": np.arange(3.0)}


class Swarm:
    """A registrar, an observer, and as many agents as one likes."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(16)
        layout = Layout.of(INITIAL)
        self.registrar = Registrar(self.run)
        self.observer = Observer(AgentSettings(self.run, "observer", self.registrar.endpoint, layout))
        self.settings = AgentSettings(self.run, "peer", self.registrar.endpoint, layout)
        self.folders: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def load(self) -> None:
        """Have the observer begin."""
        self.observer.load(INITIAL)
        assert self.registrar.wait(lambda: bool(self.registrar.by_role("observer")), TIMEOUT_S)

    def add(self) -> Member:
        """Start an agent, and wait until it has said hello."""
        folder = local_socket.private_folder(f"{self.run[:12]}-{len(self.folders)}")
        self.folders.append(folder)
        self.processes.append(start_agent(self.settings, os.getpid(), folder))
        pid = self.processes[-1].pid
        assert self.registrar.wait(lambda: any(m.pid == pid for m in self.registrar.members.values()), TIMEOUT_S)
        return next(m for m in self.registrar.members.values() if m.pid == pid)

    def close(self) -> None:
        """Agents leave in order."""
        self.registrar.stop_agents()
        self.registrar.close()
        self.observer.close()
        for process in self.processes:
            assert process.wait(TIMEOUT_S) in (0, -signal.SIGKILL)
        for folder in self.folders:  # who was killed leaves its socket
            for path in Path(folder).glob("*"):
                path.unlink()
            if os.path.exists(folder):
                os.rmdir(folder)


@pytest.fixture
def loading() -> Iterator[Swarm]:
    """A swarm whose observer has not begun."""
    swarm = Swarm()
    yield swarm
    swarm.close()


@pytest.fixture
def swarm(loading: Swarm) -> Swarm:
    loading.load()
    return loading


def test_agents_that_are_faster_than_the_observer_begin_with_its_model(loading: Swarm) -> None:
    early = loading.add()
    loading.load()
    late = loading.add()
    loading.registrar.wait_for_roster(TIMEOUT_S)
    for member, folder in zip((early, late), loading.folders, strict=True):
        client = AgentClient(folder)
        assert client.about.peer == member.peer
        np.testing.assert_array_equal(client.replica.arrays()["w"], INITIAL["w"])
        client.close()


def test_an_observer_that_never_began_is_ended_with_the_session(loading: Swarm) -> None:
    assert loading.registrar.members == {}


def test_an_agent_says_whom_it_takes_for_dead(swarm: Swarm) -> None:
    one, two = swarm.add(), swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    others = [swarm.registrar.members[swarm.observer.peer], one]
    assert [member.figures.departed for member in others] == [[], []]
    os.kill(two.pid, signal.SIGKILL)
    assert swarm.registrar.wait(lambda: all(m.figures.departed == [two.peer] for m in others), TIMEOUT_S)


def test_an_agent_writes_down_its_last_events_when_it_is_asked(
    swarm: Swarm, eventually: Callable[[Callable[[], bool], float], bool], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = swarm.add(), swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    file = Path(local_socket.private_folder(), f"story-{one.pid}.jsonl")
    lines: list[Line] = []

    def told_of_the_other() -> bool:  # a slow machine's agent is asked before it has heard of the other
        os.kill(one.pid, signal.SIGUSR1)
        assert eventually(file.exists, TIMEOUT_S)
        lines[:] = read(file.read_text().splitlines())
        file.unlink()
        return any(line.event.startswith(f"Received(message=Advert(peer='{two.peer}'") for line in lines)

    assert eventually(told_of_the_other, TIMEOUT_S)
    assert {line.peer for line in lines} == {one.peer}
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert eventually(lambda: f"{one.name}: its last events are in {file}" in caplog.text, TIMEOUT_S)
    file.write_text("\n".join(line.to_json() for line in lines))
    printed = CliRunner().invoke(main, ["simulate", "--story", str(file), "--last", "2"])
    file.unlink()
    assert printed.exit_code == 0
    assert lines[-1].event in printed.output
    assert eventually(lambda: one.heard_at > time.monotonic() - 0.5, TIMEOUT_S), "it goes on"


BROKEN = """#!/bin/sh
exec {python} -c '
from gossip.lanes.roster import Roster
Roster.join = lambda self, peer, reads, read: self.gone.add(peer)
from p2p.agent.process import main
main()
' "$3"
"""


def test_an_agent_whose_state_is_not_sound_fails_with_its_story(
    swarm: Swarm, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = place.folder / "python"
    program.write_text(BROKEN.format(python=sys.executable))
    program.chmod(0o700)
    folder = local_socket.private_folder("broken")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        process = start_agent(swarm.settings, os.getpid(), folder)
    assert process.wait(TIMEOUT_S) == 1
    words = client_module.failure(folder)
    assert words is not None
    assert "InvariantError: only members are gone: " in words
    file = Path(local_socket.private_folder(), f"story-{process.pid}.jsonl")
    *_, last = read(file.read_text().splitlines())
    assert last.event.startswith(f"Joined(peer='{swarm.observer.peer}'")
    assert str(last) in words
    file.unlink()
    shutil.rmtree(folder)


def test_an_agent_that_goes_on_is_no_longer_taken_for_dead(swarm: Swarm) -> None:
    one, two = swarm.add(), swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    os.kill(two.pid, signal.SIGSTOP)
    try:
        assert swarm.registrar.wait(lambda: one.figures.departed == [two.peer], TIMEOUT_S)
    finally:
        os.kill(two.pid, signal.SIGCONT)
    assert swarm.registrar.wait(lambda: one.figures.departed == [], TIMEOUT_S)


def test_a_late_agent_reports_while_it_waits_for_a_replica(
    swarm: Swarm, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    one = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    swarm.registrar.open = False
    donors = [one.pid, swarm.registrar.members[swarm.observer.peer].pid]
    for pid in donors:
        os.kill(pid, signal.SIGSTOP)
    try:
        late = swarm.add()
        hello_at = late.heard_at
        assert swarm.registrar.wait(lambda: late.heard_at > hello_at + 1.0, SILENT_S)
        assert late.figures.lanes.adoptions == 0
    finally:
        for pid in donors:
            os.kill(pid, signal.SIGCONT)
    AgentClient(swarm.folders[-1]).close()
    assert eventually(lambda: late.figures.lanes.adoptions == 1, TIMEOUT_S)


def test_an_update_is_written_over_when_nobody_reads_it_any_more(swarm: Swarm) -> None:
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    client = AgentClient(swarm.folders[0])
    os.kill(swarm.observer.pid, signal.SIGSTOP)
    try:
        first = client.hand_over()
        assert client.hand_over() is first
        first.arrays()["w"][...] = 1
        client.publish(first)
        second = client.hand_over()
        assert second is not first
    finally:
        os.kill(swarm.observer.pid, signal.SIGCONT)
    assert swarm.registrar.wait(lambda: is_free(first), TIMEOUT_S)
    second.arrays()["w"][...] = 2
    client.publish(second)
    assert client.hand_over() is first
    assert swarm.registrar.wait(lambda: swarm.observer.agent.replica.merged == 2, TIMEOUT_S)
    assert (swarm.observer.agent.replica.arrays()["w"] == INITIAL["w"] + 3).all()
    client.close()


def test_what_workers_leave_is_published_at_their_end_or_the_training_s_unless_something_follows(swarm: Swarm) -> None:
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    replica = swarm.observer.agent.replica
    workers = [AgentClient(swarm.folders[0]) for _ in range(3)]

    def publish(number: int, left: float | None, *, follows: bool = True, unit: tuple[int, int, int]) -> bool:
        update = workers[number].hand_over()
        update.arrays()["w"][...] = 0.5
        arrays = None if left is None else {"w": np.full(3, left)}
        return workers[number].publish(update, unit=unit, left=Left(arrays, follows=follows))

    for number, left in ((0, 1.0), (1, 10.0), (2, 100.0)):
        assert publish(number, 5 * left, follows=False, unit=(0, number, 0))
        assert publish(number, left, unit=(0, number, 1))  # in the place of the former
    assert publish(2, None, unit=(0, 2, 2))
    assert not publish(1, 7.0, unit=(0, 0, 0)), "what it leaves does not count either"
    assert not publish(1, None, unit=(0, 0, 1))
    for count, total, end in (
        (8, 4.5, workers[0].close),
        (9, 14.5, lambda: swarm.registrar.drain(TIMEOUT_S, 1)),
    ):
        end()
        assert swarm.registrar.wait(lambda: replica.merged == count, TIMEOUT_S)  # noqa: B023 - it is called here
        assert (replica.arrays()["w"] == INITIAL["w"] + total).all()
    for worker in workers[1:]:
        worker.close()
    swarm.registrar.drain(TIMEOUT_S, 2)
    assert replica.merged == 9


def test_what_a_worker_left_counts_when_it_begins_anew(swarm: Swarm) -> None:
    """As after an error in user code: its copy of the model is another, and knows of nothing."""
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    replica = swarm.observer.agent.replica
    worker = AgentClient(swarm.folders[0])
    for unit, left, follows in ((0, 1.0, False), (1, 10.0, False), (2, 100.0, True)):
        update = worker.hand_over()
        update.arrays()["w"][...] = 0.5
        assert worker.publish(update, unit=(0, 0, unit), left=Left({"w": np.full(3, left)}, follows=follows))
    swarm.registrar.drain(TIMEOUT_S, 1)
    assert swarm.registrar.wait(lambda: replica.merged == 5, TIMEOUT_S)
    assert (replica.arrays()["w"] == INITIAL["w"] + 1.5 + 1.0 + 100.0).all()
    worker.close()


def test_epochs_that_are_drained_leave_their_count_and_nothing_else(
    swarm: Swarm, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    members = [swarm.add(), swarm.add()]
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    clients = [AgentClient(folder) for folder in swarm.folders]
    for partition, client in enumerate(clients):
        for chunk in range(3):
            assert client.publish(client.hand_over(), unit=(0, partition, chunk))
        assert not client.publish(client.hand_over(), unit=(0, partition, 1), attempt=1)
    assert clients[0].furthest(0, 0) == 2
    swarm.registrar.drain(TIMEOUT_S, 1)
    for client in clients:
        assert eventually(lambda client=client: client.furthest(0, 0) == -1, TIMEOUT_S)
        assert client.knows((0, 7, 7))
        assert not client.knows((1, 7, 7))
        assert not client.publish(client.hand_over(), unit=(0, 0, 9))
        assert client.publish(client.hand_over(), unit=(1, clients.index(client), 0))
    late = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    swarm.registrar.drain(TIMEOUT_S, 2)
    swarm.registrar.ask_status(TIMEOUT_S)
    everybody = [*members, late, swarm.registrar.members[swarm.observer.peer]]
    assert [member.figures.lanes.units for member in everybody] == [8, 8, 8, 8]
    assert [member.figures.gated for member in members] == [1, 1]
    for client in clients:
        client.close()


ENDED_AT = """
import os, signal, sys

def look(frame, event, arg):
    if event == {event!r} and frame.f_code.co_qualname == {where!r}:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGHUP)

if "from p2p.agent.process import main; main()" in sys.orig_argv:
    sys.setprofile(look)
"""


@pytest.mark.parametrize(
    ("event", "where"),
    [
        ("call", "main"),
        ("call", "leave_with"),
        ("return", "Runtime.__init__"),
        ("return", "Agent.__init__"),
        ("call", "Agent.run"),
        ("call", "Agent._enroll"),
        ("return", "Agent._hello"),
        ("call", "Agent._on_registrar"),
        ("return", "Agent._on_roster"),
    ],
    ids=str,
)
def test_an_agent_that_is_ended_while_it_starts_leaves_no_folder(
    swarm: Swarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, where: str
) -> None:
    """By the signal that the daemon that forks Python workers sends to its group when it ends."""
    (tmp_path / "sitecustomize.py").write_text(ENDED_AT.format(event=event, where=where))
    monkeypatch.syspath_prepend(tmp_path)
    folder = local_socket.private_folder(f"{swarm.run[:12]}-ended")
    Path(folder, "lock").touch()
    process = start_agent(swarm.settings, os.getpid(), folder)
    assert process.wait(TIMEOUT_S) == 0
    assert not os.path.exists(folder)


def test_an_agent_that_fails_when_nobody_is_there_to_read_why_leaves_no_folder(swarm: Swarm) -> None:
    folder = local_socket.private_folder(f"{swarm.run[:12]}-alone")
    Path(folder, "lock").touch()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = replace(swarm.settings, registrar="tcp://nowhere.invalid:1")
    process = start_agent(settings, gone.pid, folder)
    assert process.wait(TIMEOUT_S) != 0
    assert not os.path.exists(folder)


# ----------------------------------------------------------------------------------------------- what tasks may ask for


@pytest.fixture
def connection(swarm: Swarm) -> Iterator[socket.socket]:
    """A task's connection to an agent."""
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    AgentClient(swarm.folders[0]).close()  # it lets tasks in
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(os.path.join(swarm.folders[0], "agent.sock"))
        yield connection


def test_what_is_no_request_is_answered_with_words_that_say_where_and_the_agent_goes_on(
    connection: socket.socket,
) -> None:
    for body, where in (
        (b"\xff", "JSON is malformed"),
        (b'{"op":"dance"}', "Invalid value 'dance' - at `$.op`"),
        (b'{"op":"knows","unit":[1,2,"three"]}', "Expected `int`, got `str` - at `$.unit[2]`"),
    ):
        local_socket.send(connection, body)
        answer, _ = requests.receive_answer(connection)
        assert isinstance(answer, Refused)
        assert answer.why.startswith("a malformed request of a task: ")
        assert where in answer.why
    requests.send(connection, Knows(Unit(0, 0, 0)))
    assert requests.receive_answer(connection) == (Known(False), [])


def test_an_agent_drops_what_is_no_message_of_its_registrar(
    swarm: Swarm, caplog: pytest.LogCaptureFixture, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    member = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    nonsenses: list[Any] = [
        [1, 2],
        "text",
        {"no": "op"},
        {"op": "dance"},
        {"op": "roster", "version": 1, "members": []},
    ]
    for nonsense in nonsenses:
        swarm.registrar._requests.put((member.route, nonsense))
    assert eventually(lambda: caplog.text.count("a malformed message of the registrar was dropped") == 5, TIMEOUT_S)
    swarm.registrar.ask_status(TIMEOUT_S)
    assert swarm.registrar.members[member.peer].figures.question == 1


# ---------------------------------------------------------------------------------- agents that stand still, or ran out


def test_an_agent_that_stands_still_is_ended_when_somebody_waits_for_it(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STOPPED_MAX_S", 0.3)
    monkeypatch.setattr(client_module, "LOOK_S", 0.05)
    member = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    client = AgentClient(swarm.folders[0])
    os.kill(member.pid, signal.SIGSTOP)
    with pytest.raises(AgentGoneError, match="is gone, and its replica with it"):
        client.knows((0, 0, 0))
    client.close()
    assert swarm.processes[0].wait(TIMEOUT_S) == -signal.SIGKILL


def test_a_task_that_comes_to_an_agent_that_stands_still_does_not_wait_for_ever(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "STOPPED_MAX_S", 0.3)
    monkeypatch.setattr(client_module, "LOOK_S", 0.05)
    member = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    AgentClient(swarm.folders[0]).close()
    os.kill(member.pid, signal.SIGSTOP)
    with pytest.raises(AgentGoneError):
        AgentClient(swarm.folders[0])
    with pytest.raises(AgentGoneError, match="is gone"):
        AgentClient(swarm.folders[0])  # and who comes then hears it at once


def test_an_agent_that_stood_still_for_a_moment_answers(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    looks: list[bool] = []
    monkeypatch.setattr(client_module, "LOOK_S", 0.02)
    stopped = Process.stopped.fget
    assert stopped is not None
    monkeypatch.setattr(Process, "stopped", property(lambda self: looks.append(stopped(self)) or looks[-1]))
    member = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    client = AgentClient(swarm.folders[0])
    os.kill(member.pid, signal.SIGSTOP)

    def let_go() -> None:
        eventually(lambda: looks.count(True) > 3, TIMEOUT_S)
        os.kill(member.pid, signal.SIGCONT)

    letting_go = threading.Thread(target=let_go)
    letting_go.start()
    assert not client.knows((0, 0, 0))
    letting_go.join()
    client.close()


def test_who_waits_for_a_busy_agent_may_wait_for_any_time(
    monkeypatch: pytest.MonkeyPatch, swarm: Swarm, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    """It is not stopped, it only takes its time; the test is at the other end."""
    monkeypatch.setattr(client_module, "STOPPED_MAX_S", 0.0)
    monkeypatch.setattr(client_module, "LOOK_S", 0.01)
    looks: list[int] = []
    monkeypatch.setattr(Process, "stopped", property(lambda self: bool(looks.append(self.pid))))
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    client = AgentClient(swarm.folders[0])
    client._connection.close()
    client._connection, theirs = socket.socketpair()

    def answer() -> None:
        local_socket.receive(theirs)
        eventually(lambda: len(looks) > 20, TIMEOUT_S)
        requests.send(theirs, Known(True))

    answering = threading.Thread(target=answer)
    answering.start()
    assert client.knows((0, 0, 0))
    answering.join()
    theirs.close()
    client.close()


def test_an_agent_that_is_out_of_descriptors_tells_it_once_and_lets_tasks_in_later(
    swarm: Swarm, caplog: pytest.LogCaptureFixture, eventually: Callable[[Callable[[], bool], float], bool]
) -> None:
    member = swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    AgentClient(swarm.folders[0]).close()
    allowed = resource.prlimit(member.pid, resource.RLIMIT_NOFILE)
    assert allowed[0] == allowed[1], "it takes what the system allows"
    taken = list(map(int, os.listdir(f"/proc/{member.pid}/fd")))
    resource.prlimit(member.pid, resource.RLIMIT_NOFILE, (max(taken) + 1, allowed[1]))
    come = max(taken) + 1 - len(taken) + 8  # some find a gap, or what was being closed when it was looked at
    clients: list[AgentClient] = []
    coming = [threading.Thread(target=lambda: clients.append(AgentClient(swarm.folders[0]))) for _ in range(come)]
    for thread in coming:
        thread.start()
    assert eventually(lambda: "tasks have to wait for their agent" in caplog.text, TIMEOUT_S)
    heard = member.heard_at
    assert eventually(lambda: member.heard_at > heard + 1.5, TIMEOUT_S), "it lives, and goes on reporting"
    assert len(clients) < come
    resource.prlimit(member.pid, resource.RLIMIT_NOFILE, allowed)
    for thread in coming:
        thread.join(TIMEOUT_S)
    assert [client.about.pid for client in clients] == [member.pid] * come
    assert caplog.text.count("tasks have to wait for their agent") == 1
    for client in clients:
        client.close()


def test_a_task_without_a_descriptor_for_the_replica_says_so(swarm: Swarm, out_of_descriptors: Any) -> None:
    swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    AgentClient(swarm.folders[0]).close()
    with out_of_descriptors(left=1), pytest.raises(UsageError, match="has as many files open as it may"):
        AgentClient(swarm.folders[0])


# ---------------------------------------------------------------------------------------------- agents that never begin


def test_an_agent_that_ends_while_it_starts_is_noticed_at_once(place: Any) -> None:
    folder = local_socket.private_folder("ended")
    with subprocess.Popen([sys.executable, "-c", "import nothing_of_that_name"], stderr=subprocess.DEVNULL) as process:
        begin = time.monotonic()
        with pytest.raises(UsageError, match="ended with exit code 1 while it started: see its last words"):
            AgentClient(folder, process=process)
        assert time.monotonic() - begin < TIMEOUT_S / 2
    os.rmdir(folder)


def test_an_agent_that_cannot_start_ends_with_an_error_and_its_own_words(swarm: Swarm) -> None:
    folder = local_socket.private_folder(f"{swarm.run[:12]}-refused")
    swarm.folders.append(folder)
    process = start_agent(replace(swarm.settings, run="another"), os.getpid(), folder)
    with pytest.raises(UsageError, match=r"did not start: agent .* belongs to another session"):
        AgentClient(folder, process=process)
    assert process.wait(TIMEOUT_S) == 1
