"""The place of the driver program's agent, and the watch over it, with agents that are threads or nothing at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.marks import Counted
from p2p.adapters.model import Model
from p2p.agent.client import AgentSettings
from p2p.agent.replica import Replica
from p2p.agent.requests import Counting, Counts, Done, Loaded
from p2p.driver import observer as module
from p2p.driver.observer import Observer, Post, Watch

INITIAL = {"w": np.zeros(2), "b": np.ones(1)}
LAYOUT = Layout.of(INITIAL)
SETTINGS = AgentSettings("r" * 32, "observer", "tcp://127.0.0.1:1", LAYOUT)
SOON_S = 60.0


class Process:
    """It ends when it is killed, or is waited for where it was asked to leave."""

    pid = 42

    def __init__(self, leaves: bool = True) -> None:
        self.leaves, self.killed = leaves, 0
        self.waits: list[float | None] = []
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.killed += 1
        self.code = -9

    def wait(self, timeout_s: float | None = None) -> int:
        self.waits.append(timeout_s)
        if self.code is None and not self.leaves:
            assert timeout_s is not None, "it would wait for ever"
            raise subprocess.TimeoutExpired("agent", timeout_s)
        self.code = self.code or 0
        return self.code


class Client:
    """The connection to an agent whose replica is in memory."""

    made: list[Client]

    def __init__(self, folder: str, process: Any = None) -> None:
        self.folder, self.process = folder, process
        self.replica = Replica(LAYOUT)
        self.asked: list[Any] = []
        self.closed = 0
        self.about = self
        self.peer = "aa"
        self.made.append(self)

    def ask(self, request: Any, expected: Any) -> None:
        self.asked.append((type(request), expected))

    def close(self) -> None:
        self.closed += 1


class World:
    """What an observer starts and connects to."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.started: list[tuple[Any, int, str]] = []
        self.leaves = True

    def start(self, *said: Any) -> Process:
        self.started.append(said)
        self.processes.append(Process(self.leaves))
        return self.processes[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    folder = tempfile.mkdtemp(prefix="dd-", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    world = World()
    Client.made = []
    monkeypatch.setattr(module, "start_agent", world.start)
    monkeypatch.setattr(module, "AgentClient", Client)
    yield world
    for client in Client.made:
        client.replica.close()
    shutil.rmtree(folder)


def begun() -> Observer:
    observer = Observer(SETTINGS)
    observer.load(INITIAL)
    return observer


def test_an_observer_is_given_the_initial_arrays(world: World) -> None:
    observer = Observer(SETTINGS)
    ((settings, anchor, folder),) = world.started
    assert (settings, anchor, folder) == (SETTINGS, os.getpid(), observer.folder)
    assert Path(observer.folder).name.startswith("rrrrrrrrrrrr-observer-")
    assert Path(observer.folder).is_dir()
    assert not observer.has_begun
    observer.load({"w": np.array([1.0, 2.0]), "b": np.array([3.0])})
    (client,) = Client.made
    assert (client.folder, client.process) == (observer.folder, world.processes[0])
    assert {name: array.tolist() for name, array in client.replica.arrays().items()} == {"w": [1, 2], "b": [3]}
    assert client.asked == [(Loaded, Done)]
    assert observer.has_begun
    assert observer.agent is client  # type: ignore[comparison-overlap]
    assert (observer.peer, observer.pid, observer.alive) == ("aa", 42, True)
    assert Observer(SETTINGS).folder != observer.folder


def test_an_observer_that_was_asked_to_leave_is_waited_for(world: World) -> None:
    observer = begun()
    observer.close()
    (process,) = world.processes
    assert (process.waits, process.killed, Client.made[0].closed) == ([module.STOP_TIMEOUT_S], 0, 1)
    assert not Path(observer.folder).exists()
    assert not observer.alive


def test_an_observer_that_does_not_leave_is_killed(world: World) -> None:
    world.leaves = False
    observer = begun()
    observer.close()
    (process,) = world.processes
    assert (process.waits, process.killed) == ([module.STOP_TIMEOUT_S, None], 1)
    assert not Path(observer.folder).exists()


def test_an_observer_that_never_began_is_killed_at_once(world: World) -> None:
    world.leaves = False
    observer = Observer(SETTINGS)
    observer.close()
    assert world.processes[0].killed == 1
    assert not Path(observer.folder).exists()


def test_a_killed_observer_s_replica_stays(world: World) -> None:
    world.leaves = False
    observer = begun()
    observer.kill()
    assert (world.processes[0].killed, world.processes[0].waits, Client.made[0].closed) == (1, [None], 0)
    assert not Path(observer.folder).exists()
    assert observer.has_begun


def test_an_observer_adopts_when_its_agent_lets_it_in(world: World) -> None:
    observer = Observer(SETTINGS)
    asked = []

    def given_up() -> bool:
        asked.append(True)
        if len(asked) == 3:
            Path(observer.folder, "agent.sock").touch()
        return False

    observer.adopt(given_up)
    assert len(asked) == 3
    assert observer.agent is Client.made[0]  # type: ignore[comparison-overlap]
    assert Client.made[0].folder == observer.folder


@pytest.mark.parametrize("dies", [True, False])
def test_an_observer_that_nobody_wants_or_that_ends_does_not_adopt(world: World, dies: bool) -> None:
    observer = Observer(SETTINGS)
    if dies:
        world.processes[0].code = 1
    with pytest.raises(UsageError, match="the driver program's new agent did not begin"):
        observer.adopt(lambda: not dies)
    assert not observer.has_begun


def test_a_replica_is_replaced_when_nobody_reads_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = begun()
    replica = observer.agent.replica
    reader = Replica(LAYOUT, os.dup(replica.descriptor))
    reading = reader.reading()
    reading.__enter__()
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert replica.arrays()["w"].tolist() == [0, 0]
        if len(waits) == 2:
            reading.__exit__(None, None, None)

    monkeypatch.setattr(module.time, "sleep", wait)
    observer.replace(Packed.of({"w": np.array([7.0, 8.0]), "b": np.array([9.0])}))
    assert waits == [module.WAIT_S] * 2
    assert replica.arrays()["w"].tolist() == [7, 8]
    assert replica.merged == 1
    assert reader.acquire(), "it can be read again"
    reader.close()


# ------------------------------------------------------------------------------------------------------------ the place


def test_one_observer_follows_another_and_the_last_replica_can_be_read(world: World) -> None:
    post = Post()
    assert (post.replica, post.last_replica, post.vacate()) == (None, None, None)
    first, second, third, none = begun(), begun(), begun(), Observer(SETTINGS)
    post.take(first)
    assert post.observer is first
    assert post.replica is post.last_replica is first.agent.replica
    assert post.vacate() is first
    post.retire(first)
    assert (post.observer, post.replica) == (None, None)
    assert post.last_replica is first.agent.replica
    post.take(none)
    assert (post.replica, post.last_replica) == (None, first.agent.replica)
    post.take(second)
    assert post.last_replica is second.agent.replica
    assert Client.made[0].closed == 0
    post.vacate()
    post.retire(second)
    assert Client.made[0].closed == 1, "the one before is closed when the next is retired"
    assert world.processes[0].killed == world.processes[1].killed == 1
    post.take(third)
    post.close()
    assert [client.closed for client in Client.made] == [1, 1, 1]
    assert world.processes[2].killed == 0, "it was asked to stop"


def test_a_place_that_nobody_has_can_be_closed() -> None:
    Post().close()


def test_who_follows_has_moved_just_now_and_lacks_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    post = Post()
    assert not post.behind
    assert post.still_s({"a": 1}, {"a": 2}) == 0
    now[0] = 14.0
    assert post.still_s({"a": 1}, {"a": 2}) == 4
    post.behind = True
    post.take(begun())
    assert not post.behind
    assert post.still_s({"a": 1}, {"a": 2}) == 0


# ------------------------------------------------------------------------------------------------------------ the watch


class Guarded:
    """An observer that is well or not, and is replaced."""

    def __init__(self, well: bool = False) -> None:
        self.well, self.looks, self.replaced = well, 0, 0
        self.enough = threading.Event()
        self.error: Exception | None = None
        self.then: Callable[[], None] = lambda: None

    def is_well(self) -> bool:
        self.looks += 1
        if self.well and self.looks == 3:
            self.enough.set()
        return self.well

    def replace(self, given_up: Callable[[], bool]) -> None:
        assert not given_up()
        self.replaced += 1
        self.then()
        if self.error is not None:
            raise self.error


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0001)
    monkeypatch.setattr(module, "SLEPT_S", 1000.0)


def test_an_observer_that_is_well_stays(at_once: None) -> None:
    guarded = Guarded(well=True)
    with Watch(guarded.is_well, guarded.replace) as watch:
        assert guarded.enough.wait(SOON_S)
    assert guarded.replaced == 0
    assert not watch._thread.is_alive()


def test_an_observer_that_is_not_well_is_replaced(at_once: None) -> None:
    guarded = Guarded()

    def then() -> None:
        guarded.well, guarded.looks = True, 0

    guarded.then = then
    with Watch(guarded.is_well, guarded.replace):
        assert guarded.enough.wait(SOON_S)
    assert guarded.replaced == 1


def test_what_kills_so_many_will_kill_the_next_one_too(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESTARTS_MAX", 3)
    guarded = Guarded()
    with Watch(guarded.is_well, guarded.replace) as watch:
        watch._thread.join(SOON_S)
        assert not watch._thread.is_alive()
    assert guarded.replaced == 3


def test_an_observer_that_cannot_be_replaced_is_told_and_tried_again(
    at_once: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    monkeypatch.setattr(module, "RESTARTS_MAX", 2)
    guarded = Guarded()
    guarded.error = UsageError("no peer answers")
    with Watch(guarded.is_well, guarded.replace) as watch:
        watch._thread.join(SOON_S)
    assert guarded.replaced == 2
    assert caplog.text.count("the driver program's own agent was not replaced: no peer answers") == 2


def test_at_the_end_nobody_waits_for_the_next_one(at_once: None, caplog: pytest.LogCaptureFixture) -> None:
    guarded = Guarded()
    watch = Watch(guarded.is_well, guarded.replace)

    def then() -> None:
        watch._ended.set()
        guarded.error = UsageError("nobody wants it any more")

    guarded.then = then
    with watch:
        watch._thread.join(SOON_S)
    assert guarded.replaced == 1
    assert "was not replaced" not in caplog.text


class Clock:
    """Time passes as a test says, at each look."""

    def __init__(self, steps: list[float]) -> None:
        self.now, self.steps = 0.0, steps

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        assert seconds == module.LOOK_S
        if not self.steps:
            return True
        self.now += self.steps.pop(0)
        return False


def test_who_was_stopped_itself_waits_until_everybody_has_been_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(*steps: float) -> int:
        clock, guarded = Clock([*steps]), Guarded(well=True)
        monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
        watch = Watch(guarded.is_well, guarded.replace)
        watch._ended.wait = clock.wait  # type: ignore[method-assign, assignment]
        watch._run()
        return guarded.looks

    assert looks(0.25, 0.25, 0.25) == 3
    assert looks(module.SLEPT_S) == 1, "not longer than it may be"
    assert looks(module.SLEPT_S + 0.1, 0.25) == 0
    assert looks(module.SLEPT_S + 0.1, *[1.0] * 5) == 0
    assert looks(module.SLEPT_S + 0.1, *[1.0] * 6) == 1, "after that it looks again"
    assert looks(module.SLEPT_S + 0.1, *[1.0] * 5, module.SLEPT_S + 0.1, *[1.0] * 5) == 0


def test_a_cut_asks_for_the_units_while_nobody_can_merge(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, counted = begun(), Counted(1, 3)
    (client,) = Client.made
    writers = []

    def ask(request: Any, expected: Any) -> Any:
        agent = Replica(LAYOUT, os.dup(client.replica.descriptor))
        writers.append(agent.acquire())  # the agent's side of the same file
        os.close(agent.descriptor)
        assert (type(request), expected) == (Counts, Counting)
        return Counting(counted), []

    monkeypatch.setattr(client, "ask", ask)
    client.replica.arrays()["w"][:] = 7
    client.replica.merged = 5
    model = Model({name: array.copy() for name, array in INITIAL.items()})
    assert observer.cut(model) == (5, counted)
    assert writers == [False]
    assert model.arrays()["w"].tolist() == [7, 7]
    assert client.replica.acquire(), "it may be written to again"
