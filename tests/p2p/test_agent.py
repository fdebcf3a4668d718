"""Agents as processes, with a registrar and an observer but without tasks: what they report of each other."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gossip.arrays import Layout
from p2p import localhost
from p2p.agent_client import AgentClient, AgentSettings, is_free, start_agent
from p2p.observer import Observer
from p2p.registrar import SILENT_S, Member, Registrar

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

TIMEOUT_S = 30.0
INITIAL = {"w": np.arange(3.0)}


class Swarm:
    """A registrar, an observer, and as many agents as one likes."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(16)
        layout = localhost.layout_to_json(Layout.of(INITIAL))
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
        folder = localhost.private_folder(f"{self.run[:12]}-{len(self.folders)}")
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
        assert client.about["peer"] == member.peer
        np.testing.assert_array_equal(client.replica.arrays()["w"], INITIAL["w"])
        client.close()


def test_an_observer_that_never_began_is_ended_with_the_session(loading: Swarm) -> None:
    assert loading.registrar.members == {}


def test_an_agent_says_whom_it_takes_for_dead(swarm: Swarm) -> None:
    one, two = swarm.add(), swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    others = [swarm.registrar.members[swarm.observer.peer], one]
    assert [member.status["departed"] for member in others] == [[], []]
    os.kill(two.pid, signal.SIGKILL)
    assert swarm.registrar.wait(lambda: all(m.status["departed"] == [two.peer] for m in others), TIMEOUT_S)


def test_an_agent_that_goes_on_is_no_longer_taken_for_dead(swarm: Swarm) -> None:
    one, two = swarm.add(), swarm.add()
    swarm.registrar.wait_for_roster(TIMEOUT_S)
    os.kill(two.pid, signal.SIGSTOP)
    try:
        assert swarm.registrar.wait(lambda: one.status["departed"] == [two.peer], TIMEOUT_S)
    finally:
        os.kill(two.pid, signal.SIGCONT)
    assert swarm.registrar.wait(lambda: one.status["departed"] == [], TIMEOUT_S)


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
        assert late.status["adoptions"] == 0
    finally:
        for pid in donors:
            os.kill(pid, signal.SIGCONT)
    AgentClient(swarm.folders[-1]).close()
    assert eventually(lambda: late.status["adoptions"] == 1, TIMEOUT_S)


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
    assert [member.status["units"] for member in everybody] == [8, 8, 8, 8]
    assert [member.status["gated"] for member in members] == [1, 1]
    for client in clients:
        client.close()


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_an_agent_that_is_ended_while_it_starts_leaves_no_folder(swarm: Swarm, after_s: float) -> None:
    folder = localhost.private_folder(f"{swarm.run[:12]}-ended")
    Path(folder, "lock").touch()
    process = start_agent(swarm.settings, os.getpid(), folder)
    time.sleep(after_s)
    process.send_signal(signal.SIGHUP)  # what the daemon that forks Python workers sends to its group when it ends
    assert process.wait(TIMEOUT_S) == 0
    assert not os.path.exists(folder)


def test_an_agent_that_fails_when_nobody_is_there_to_read_why_leaves_no_folder(swarm: Swarm) -> None:
    folder = localhost.private_folder(f"{swarm.run[:12]}-alone")
    Path(folder, "lock").touch()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = replace(swarm.settings, registrar="tcp://nowhere.invalid:1")
    process = start_agent(settings, gone.pid, folder)
    assert process.wait(TIMEOUT_S) != 0
    assert not os.path.exists(folder)
