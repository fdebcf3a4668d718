"""A task's connection to an agent that is a thread, and answers what it is told to answer."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from p2p.agent import client as module
from p2p.agent import local_socket, requests
from p2p.agent.client import (
    AgentClient,
    AgentGoneError,
    AgentSettings,
    HandOverFile,
    ensure_agent,
    failure,
    is_free,
    start_agent,
)
from p2p.agent.ports import Left
from p2p.agent.replica import HEADER_BYTES, Replica
from p2p.agent.requests import (
    Begins,
    Done,
    Ends,
    Furthest,
    Hello,
    Known,
    Knows,
    Publish,
    Published,
    Reached,
    Refused,
    Remainder,
    Welcome,
)

ARRAYS = {"w": np.zeros(3)}
LAYOUT = Layout.of(ARRAYS)
HOST = socket.gethostname()


class Agent:
    """It keeps what it is asked, with what is in the files that come along."""

    def __init__(self, folder: Path, mixes: bool = False) -> None:
        self.folder = folder
        self.replica = Replica(LAYOUT)
        self.welcome = Welcome(layout=LAYOUT, peer="me", name="host:1", pid=1, mixes=mixes)
        self.asked: list[Any] = []
        self.contents: list[list[bytes]] = []
        self.answers: dict[type, Any] = {
            Publish: Published(new=True),
            Knows: Known(True),
            Furthest: Reached(7),
            Begins: Done(),
            Ends: Done(),
        }
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "agent.sock"))
        self._listener.listen()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        while True:
            try:
                request, files = requests.receive_request(connection)
            except (EOFError, OSError):
                return
            if isinstance(request, Hello):
                requests.send(connection, self.welcome, (self.replica.descriptor,))
                continue
            self.asked.append(request)
            self.contents.append([os.pread(file, 1 << 16, HEADER_BYTES) for file in files])
            requests.close(files)
            answer = self.answers[type(request)]
            if answer is None:
                connection.shutdown(socket.SHUT_RDWR)
            else:
                requests.send(connection, answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(60.0)
        for end in [*self._ends, self._listener]:
            end.close()
        self.replica.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def agent(folder: Path) -> Iterator[Agent]:
    agent = Agent(folder)
    yield agent
    agent.close()


@pytest.fixture
def client(agent: Agent) -> Iterator[AgentClient]:
    client = AgentClient(str(agent.folder))
    yield client
    client.close()


def numbers(data: bytes, count: int = 3) -> list[float]:
    found: list[float] = np.frombuffer(data, float, count).tolist()
    return found


def test_who_connects_knows_the_agent_and_sees_its_replica(agent: Agent, client: AgentClient) -> None:
    assert (client.about, client.layout, client.folder) == (agent.welcome, LAYOUT, str(agent.folder))
    agent.replica.arrays()["w"][:] = 3
    assert client.replica.arrays()["w"].tolist() == [3, 3, 3]


def test_questions_are_of_units_and_partitions(agent: Agent, client: AgentClient) -> None:
    assert client.knows((1, 2, 3))
    agent.answers[Knows] = Known(False)
    assert not client.knows((1, 2, 4))
    assert client.furthest(5, 6) == 7
    assert agent.asked == [Knows(Unit(1, 2, 3)), Knows(Unit(1, 2, 4)), Furthest(5, 6)]


def test_what_the_agent_says_no_to_is_an_error(agent: Agent, client: AgentClient) -> None:
    agent.answers[Furthest] = Refused("not today")
    with pytest.raises(UsageError, match=r"^not today$"):
        client.furthest(0, 0)
    agent.answers[Furthest] = Known(True)
    with pytest.raises(UsageError, match=r"Furthest\(.*\) was answered with Known\(known=True\)"):
        client.furthest(0, 0)


def test_an_agent_that_hangs_up_is_gone(agent: Agent, client: AgentClient) -> None:
    assert client.alive
    agent.answers[Furthest] = None
    with pytest.raises(AgentGoneError, match=f"the agent on {HOST} is gone, and its replica with it"):
        client.furthest(0, 0)
    assert not client.alive


def test_who_is_interrupted_gets_an_error(client: AgentClient) -> None:
    client.interrupt()
    with pytest.raises(AgentGoneError):
        client.furthest(0, 0)
    assert not client.alive


def test_an_update_goes_with_all_that_is_known_of_it(agent: Agent, client: AgentClient) -> None:
    update = client.hand_over()
    update.arrays()["w"][:] = [1, 2, 3]
    assert client.publish(update, 5, unit=(1, 2, 3), attempt=4)
    (published,) = agent.asked
    assert published == Publish(layout=LAYOUT, merged_at=5, unit=Unit(1, 2, 3), attempt=4, lent=True)
    assert numbers(agent.contents[0][0]) == [1, 2, 3]
    agent.answers[Publish] = Published(new=False)
    assert not client.publish(client.hand_over(), staleness=9)
    assert agent.asked[1] == Publish(layout=LAYOUT, merged_at=0, staleness=9, lent=True)


def test_what_a_codec_left_goes_along(agent: Agent, client: AgentClient) -> None:
    update = client.pack({"a": np.array([4.0, 5.0])})
    before = len(os.listdir("/proc/self/fd"))
    for left in (Left(arrays=None, follows=False), Left(arrays={"b": np.array([6.0])}, follows=True)):
        client.publish(update, left=left)
    first, second = agent.asked
    assert first == Publish(layout=update.layout, merged_at=0, left=Remainder(False))
    assert second == Publish(layout=update.layout, merged_at=0, left=Remainder(True, Layout.of({"b": np.zeros(1)})))
    assert [numbers(data, 1) for data in agent.contents[1]] == [[4], [6]]
    assert len(os.listdir("/proc/self/fd")) == before, "what was left is closed"


def test_arrays_of_any_layout_are_packed_where_there_is_room(agent: Agent, client: AgentClient) -> None:
    small = client.pack({"a": np.arange(4.0)})
    assert isinstance(small, HandOverFile)
    assert small.layout == Layout.of({"a": np.zeros(4)})
    again = client.pack({"b": np.arange(5.0)})
    assert again.descriptor == small.descriptor, "a quarter more is there"
    client.publish(again)
    assert numbers(agent.contents[0][0], 5) == [0, 1, 2, 3, 4]
    assert not agent.asked[0].lent, "it is written to again"
    before = len(os.listdir("/proc/self/fd"))
    client.pack({"b": np.arange(500.0)})
    assert len(os.listdir("/proc/self/fd")) == before, "the smaller one is closed"


def test_what_was_published_is_not_written_to_while_somebody_reads_it(client: AgentClient) -> None:
    first = client.hand_over()
    assert client.hand_over() is first, "until it is published"
    client.publish(first)
    assert client.hand_over() is first, "nobody reads it"
    with first.reading():
        assert not is_free_elsewhere(first)
    client.publish(first)
    reader = Replica(LAYOUT, os.dup(first.descriptor))
    with reader.reading():
        second = client.hand_over()
        assert second is not first
        client.publish(second)
    assert is_free(first)
    assert client.hand_over() is first
    reader.close()


def is_free_elsewhere(file: Replica) -> bool:
    other = Replica(LAYOUT, os.dup(file.descriptor))
    try:
        return is_free(other)
    finally:
        other.close()


def test_there_are_a_few_files_to_hand_over(client: AgentClient) -> None:
    files, readers = [], []
    for _ in range(module.HAND_OVERS_MAX + 1):
        files.append(client.hand_over())
        readers.append(Replica(LAYOUT, os.dup(files[-1].descriptor)))
        readers[-1].acquire()
        client.publish(files[-1])
    assert len({id(file) for file in files}) == module.HAND_OVERS_MAX + 1
    assert len(client._hand_overs) == module.HAND_OVERS_MAX
    assert files[0] not in client._hand_overs
    assert not hasattr(files[0], "stamps"), "it is closed"
    for reader in readers:
        reader.close()


def test_where_agents_mix_they_are_told_when_a_task_trains(folder: Path) -> None:
    agent = Agent(folder, mixes=True)
    client = AgentClient(str(folder))
    with client.training():
        assert agent.asked == [Begins()]
    assert agent.asked == [Begins(), Ends()]
    agent.answers[Ends] = None
    with client.training():
        pass  # it is gone in the end, which whoever trains hears otherwise
    client.close()
    agent.close()


def test_others_are_not_told(agent: Agent, client: AgentClient) -> None:
    with client.training():
        pass
    assert agent.asked == []


def test_all_is_closed_in_the_end(agent: Agent) -> None:
    AgentClient(str(agent.folder)).close()
    before = len(os.listdir("/proc/self/fd")) - len(agent._ends)
    client = AgentClient(str(agent.folder))
    client.pack({"a": np.zeros(1)})
    client.publish(client.hand_over())
    client.close()
    assert len(os.listdir("/proc/self/fd")) - len(agent._ends) == before


# ------------------------------------------------------------------------------------------------ agents that start


def test_who_waits_for_an_agent_that_does_not_start_hears_of_it(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match=f"the agent on {HOST} did not start within 0.05 s"):
        AgentClient(str(folder), 0.05)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_agent_that_failed_has_left_a_note(folder: Path) -> None:
    assert failure(str(folder)) is None
    (folder / "failed").write_text("no room")
    assert failure(str(folder)) == "no room"
    with pytest.raises(UsageError, match=f"the agent on {HOST} did not start: no room"):
        AgentClient(str(folder))


def test_an_agent_that_ended_is_not_waited_for(folder: Path) -> None:
    words = f"the agent on {HOST} ended with exit code 3 while it started"
    command = [sys.executable, "-S", "-c", "raise SystemExit(3)"]
    with subprocess.Popen(command) as process, pytest.raises(UsageError, match=words):
        AgentClient(str(folder), process=process)


def test_a_socket_behind_which_nobody_listens_is_of_an_agent_that_is_gone(folder: Path) -> None:
    Agent(folder).close()
    with pytest.raises(AgentGoneError, match=f"the agent on {HOST} is gone, and its replica with it$"):
        AgentClient(str(folder))


def test_an_agent_that_comes_late_is_waited_for(folder: Path) -> None:
    agents: list[Agent] = []
    timer = threading.Timer(0.1, lambda: agents.append(Agent(folder)))
    timer.start()
    client = AgentClient(str(folder))
    timer.join()
    assert client.about == agents[0].welcome
    client.close()
    agents[0].close()


# -------------------------------------------------------------------------------------------- the agent of an executor

SETTINGS = AgentSettings("r" * 32, "peer", "tcp://127.0.0.1:1", LAYOUT)


class Started:
    """What `start_agent` was called with, and a process that it is."""

    def __init__(self, begin: Callable[[Path], Agent | None]) -> None:
        self.calls: list[tuple[AgentSettings, int, str]] = []
        self.agents: list[Agent | None] = []
        self.returncode: int | None = None
        self._begin = begin

    def __call__(self, settings: AgentSettings, anchor: int, folder: str) -> Started:
        self.calls.append((settings, anchor, folder))
        self.agents.append(self._begin(Path(folder)))
        return self

    def poll(self) -> int | None:
        return self.returncode


@pytest.fixture
def executor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return Path(local_socket.private_folder(f"{SETTINGS.run[:12]}-77"))


def test_whichever_task_comes_first_starts_the_agent(executor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(Agent)
    monkeypatch.setattr(module, "start_agent", started)
    clients = [ensure_agent(SETTINGS, 77, "/segments") for _ in range(2)]
    ((settings, anchor, folder),) = started.calls
    assert (settings.segments_folder, settings.run, anchor, folder) == ("/segments", SETTINGS.run, 77, str(executor))
    assert started.returncode == 0, "nobody waits for it"
    for client in clients:
        client.close()
    assert started.agents[0] is not None
    started.agents[0].close()
    again = ensure_agent(SETTINGS, 77)
    assert len(started.calls) == 2, "the first was gone, and had left its socket"
    assert started.calls[1][0].segments_folder is None
    again.close()
    assert started.agents[1] is not None
    started.agents[1].close()


def test_an_agent_that_could_not_start_is_not_started_again(executor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "failed").write_text("no room")

    started = Started(fail)
    monkeypatch.setattr(module, "start_agent", started)
    for _ in range(2):
        with pytest.raises(UsageError, match="no room"):
            ensure_agent(SETTINGS, 77)
    assert len(started.calls) == 1
    assert started.returncode == 0


def test_an_agent_is_started_by_exec_with_its_settings_on_the_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    executable = sys.executable
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    (folder / "python").write_text(
        f"#!{executable} -S\n"
        "import os, signal, sys\n"
        "os.chdir(sys.argv[3])\n"
        "names = ['OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_']\n"
        "blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))\n"
        "said = [sys.argv[1:], [os.environ[name] for name in names], os.environ['PYTHONPATH'], blocked]\n"
        "open('said', 'w').write(repr(said))\n"
        "open('settings', 'w').write(sys.stdin.read())\n"
        "print('what is said here goes nowhere')\n"
    )
    (folder / "python").chmod(0o700)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process = start_agent(SETTINGS, 42, str(folder))
    assert process.wait(60.0) == 0
    arguments, limits, path, blocked = ast.literal_eval((folder / "said").read_text())
    assert arguments == ["-c", "from p2p.agent.process import main; main()", str(folder)]
    assert limits == ["1", "1", str(32 << 20), str(32 << 20)]
    assert path.split(os.pathsep) == [path for path in sys.path if path]
    settings = module.read_settings((folder / "settings").read_bytes())
    assert (settings.anchor, settings.run, settings.layout) == (42, SETTINGS.run, LAYOUT)
    assert blocked == sorted({*module.LEAVE_SIGNALS, module.STORY_SIGNAL, signal.SIGINT}), "until it can leave in order"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert process.stdout is None
    assert capfd.readouterr().out == ""


def test_settings_that_are_none_say_where() -> None:
    with pytest.raises(UsageError, match="malformed settings of an agent: "):
        module.read_settings(b"{}")


@pytest.mark.parametrize(("value", "checks"), [("", False), ("0", False), ("1", True), (None, False)])
def test_an_agent_checks_its_state_where_the_environment_says_so(
    value: str | None, checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(module.CHECK_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(module.CHECK_VARIABLE, value)
    assert AgentSettings("run", "peer", "tcp://127.0.0.1:1", LAYOUT).checks is checks
