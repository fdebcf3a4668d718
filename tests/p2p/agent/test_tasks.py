"""The tasks of an executor as its agent serves them, with a discipline that settles updates when it is told to."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.marks import RUN, Counted, Mark, Series, Unit, packed
from gossip.zmq.segments import FilePayload, LentFile
from p2p.agent import requests
from p2p.agent import tasks as module
from p2p.agent.local_socket import MESSAGE_BYTES_MAX
from p2p.agent.local_socket import send as send_bytes
from p2p.agent.replica import HEADER_BYTES, Replica, anonymous_file
from p2p.agent.requests import (
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
    Welcome,
)
from p2p.agent.submissions import Outcome, Submission
from p2p.agent.tasks import Door, Tasks, borrowed

LAYOUT = Layout.of({"w": np.zeros(3)})
WELCOME = Welcome(layout=LAYOUT, peer="me", name="host:1", pid=1, mixes=False)


class Runtime:
    """It calls what was registered when a test says that there is something to read."""

    def __init__(self) -> None:
        self.peer = SimpleNamespace(ready=True)
        self.callbacks: dict[Any, Callable[[], None]] = {}
        self.rests: list[tuple[Any, float]] = []

    def register(self, source: Any, callback: Callable[[], None]) -> None:
        self.callbacks[source] = callback

    def unregister(self, source: Any) -> None:
        del self.callbacks[source]

    def rest(self, source: Any, seconds: float) -> None:
        self.rests.append((source, seconds))


class Discipline:
    """Its peer takes what it is handed when `settle` is called, each unit once."""

    def __init__(self) -> None:
        self.runtime = Runtime()
        self.submissions = self
        self.trouble: str | None = None
        self.log: list[tuple[Any, ...]] = []
        self.handed: list[tuple[Any, Unit | None, int, bytes]] = []
        self.given: list[Submission] = []
        self.units: set[Unit | None] = set()
        self.outcome: Outcome | None = None

    def submit(self, payload: Any, unit: Unit | None = None, attempt: int = 0) -> Submission:
        data = os.pread(payload.descriptor, payload.layout.nbytes, payload.offset)
        self.handed.append((payload, unit, attempt, data))
        self.given.append(Submission(len(self.given) + 1, self.outcome))
        return self.given[-1]

    def has_settled(self, submission: Submission) -> bool:
        return submission.outcome is not None

    def knows(self, unit: Unit) -> bool:
        return unit == Unit(5, 1, 2)

    def furthest(self, epoch: int, partition: int) -> int:
        return 10 * epoch + partition

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> None:
            if name == "take":
                raise UsageError("no queue here")
            self.log.append((name, *arguments))

        return note


class Agent:
    """A `Tasks` with all that it stands between."""

    def __init__(self) -> None:
        self.discipline = Discipline()
        self.runtime = self.discipline.runtime
        self.replica = Replica(LAYOUT)
        self.loads = 0
        self.warned: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")
        self.listener.listen()
        self.tasks = Tasks(
            self.discipline,  # type: ignore[arg-type]
            self.replica,
            WELCOME,
            loaded=self.loaded,
            warn=self.warned.append,
        )
        self.tasks.listen(self.listener)
        self.ends: list[socket.socket] = []

    def loaded(self) -> None:
        self.loads += 1

    def connect(self) -> Task:
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(self.listener.getsockname())
        before = set(self.runtime.callbacks)
        self.runtime.callbacks[self.listener]()
        (theirs,) = self.runtime.callbacks.keys() - before
        self.ends += [ours, theirs]
        return Task(self, ours, theirs)

    def close(self) -> None:
        for end in [*self.ends, self.listener]:
            end.close()
        self.replica.close()


class Task:
    """One end of a connection."""

    def __init__(self, agent: Agent, ours: socket.socket, theirs: socket.socket) -> None:
        self.agent, self.ours, self.theirs = agent, ours, theirs
        ours.settimeout(60.0)

    def say(self, request: Any, files: tuple[int, ...] = ()) -> None:
        requests.send(self.ours, request, files)
        self.agent.runtime.callbacks[self.theirs]()

    def ask(self, request: Any, files: tuple[int, ...] = ()) -> Any:
        self.say(request, files)
        return self.answer()

    def answer(self) -> Any:
        answer, files = requests.receive_answer(self.ours)
        requests.close(files)
        return answer

    @property
    def waits(self) -> bool:
        """Nothing has been said to it."""
        return select.select([self.ours], [], [], 0) == ([], [], [])

    def publish(self, values: Any = (1, 2, 3), left: Any = None, **settings: Any) -> None:
        files = [update(values)]
        if left is not None and left.layout is not None:
            files.append(update((7, 7, 7)))
        self.say(Publish(layout=LAYOUT, left=left, **{"merged_at": 0, **settings}), tuple(files))
        requests.close(files)

    def hang_up(self) -> None:
        self.ours.close()
        self.agent.runtime.callbacks[self.theirs]()


def update(values: Any) -> int:
    descriptor = anonymous_file(HEADER_BYTES + LAYOUT.nbytes)
    os.pwrite(descriptor, np.array(values, float).tobytes(), HEADER_BYTES)
    return descriptor


def values_of(data: bytes) -> list[float]:
    found: list[float] = np.frombuffer(data, float, 3).tolist()
    return found


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.close()


@pytest.fixture
def task(agent: Agent) -> Task:
    return agent.connect()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_who_says_hello_is_told_who_it_is_and_gets_the_replica(agent: Agent, task: Task) -> None:
    requests.send(task.ours, Hello())
    agent.runtime.callbacks[task.theirs]()
    answer, (descriptor,) = requests.receive_answer(task.ours)
    assert answer == WELCOME
    attached = Replica(LAYOUT, descriptor)
    agent.replica.arrays()["w"][:] = 4
    assert attached.arrays()["w"].tolist() == [4, 4, 4]
    attached.close()


def test_a_task_that_says_nothing_more_does_not_hold_the_agent_up(task: Task) -> None:
    assert task.theirs.gettimeout() == 5.0


def test_the_driver_program_s_arrays_begin_the_peer_before_it_is_told(agent: Agent, task: Task) -> None:
    counted = Counted(1, 2)
    assert task.ask(Loaded(counted)) == Done()
    assert agent.discipline.log == [("load", counted)]
    assert agent.loads == 1


def test_who_asks_is_told_the_units_that_count_unless_they_are_too_many(
    agent: Agent, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Counted | None] = [None, Counted(0, 1, packed([Mark(Unit(0, 0, 3), 0)]))]
    for counted in told:
        monkeypatch.setattr(agent.discipline, "counted", lambda counted=counted: counted, raising=False)
        assert task.ask(Counts()) == Counting(counted)
    monkeypatch.setattr(module, "COUNTED_BYTES_MAX", 20)
    answer = task.ask(Counts())
    assert isinstance(answer, Refused)
    assert answer.why == "units of work in 24 bytes of runs, at most 20"


def test_a_task_that_begins_and_ends_is_told_to_the_discipline(agent: Agent, task: Task) -> None:
    assert [task.ask(Begins()), task.ask(Ends())] == [Done(), Done()]
    assert agent.discipline.log == [("begins", task.theirs), ("ends", task.theirs)]


def test_questions_are_the_discipline_s_to_answer(agent: Agent, task: Task) -> None:
    assert task.ask(Knows(Unit(5, 1, 2))) == Known(True)
    assert task.ask(Knows(Unit(5, 1, 3))) == Known(False)
    assert task.ask(Furthest(3, 4)) == Reached(34)


def test_a_malformed_request_is_answered_and_the_connection_goes_on(agent: Agent, task: Task) -> None:
    send_bytes(task.ours, b"{")
    agent.runtime.callbacks[task.theirs]()
    assert "a malformed request of a task" in task.answer().why
    assert task.ask(Furthest(0, 1)) == Reached(1)
    send_bytes(task.ours, b"[")
    agent.runtime.callbacks[task.theirs]()
    task.answer()
    (warning,) = agent.warned  # of the first alone
    assert "something that is no task of ours speaks to an agent, and is refused: a malformed request" in warning


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "claims 1195725856 bytes, at most 16777216"),
        (b"\xff" * 100, "claims 4294967295 bytes"),
        (struct.pack("!I", MESSAGE_BYTES_MAX + 1), "claims 16777217 bytes"),
        (struct.pack("!I", 2) + b"{}more", "4 bytes came behind a message"),
    ],
)
def test_who_sends_what_no_message_begins_with_is_hung_up_on(agent: Agent, data: bytes, why: str) -> None:
    other, *strangers = agent.connect(), agent.connect(), agent.connect()
    for stranger in strangers:
        stranger.ours.sendall(data)
        agent.runtime.callbacks[stranger.theirs]()
        assert why in stranger.answer().why
        with pytest.raises((EOFError, ConnectionResetError)):
            stranger.answer()
        assert stranger.theirs not in agent.runtime.callbacks
    assert len(agent.warned) == 1
    assert why in agent.warned[0]
    assert other.ask(Furthest(0, 1)) == Reached(1)


def test_nobody_waits_for_the_rest_of_a_message(agent: Agent, task: Task) -> None:
    stranger = agent.connect()
    claim = struct.pack("!I", MESSAGE_BYTES_MAX)
    for part in (claim[:1], claim[1:], b"x" * 100):
        stranger.ours.sendall(part)
        agent.runtime.callbacks[stranger.theirs]()
        assert stranger.theirs in agent.runtime.callbacks  # who was waited for in vain was hung up on
        assert stranger.waits
        assert task.ask(Furthest(0, 1)) == Reached(1)
    stranger.hang_up()
    assert agent.warned == []


def test_a_request_in_parts_is_dealt_with_when_it_is_whole_and_its_file_is_kept_until_then(agent: Agent) -> None:
    before = open_files()
    task = agent.connect()
    body = msgspec.json.encode(Publish(layout=LAYOUT, merged_at=0))
    for hangs_up in (False, True):
        file = update((1, 2, 3))
        socket.send_fds(task.ours, [struct.pack("!I", len(body))], [file])
        agent.runtime.callbacks[task.theirs]()
        for part in (body[:3], body[3:-1]):
            task.ours.sendall(part)
            agent.runtime.callbacks[task.theirs]()
        os.close(file)
        if hangs_up:
            task.hang_up()
        else:
            task.ours.sendall(body[-1:])
            agent.runtime.callbacks[task.theirs]()
            agent.discipline.given[0].outcome = Outcome.PUBLISHED
            agent.tasks.answer()
            assert task.answer() == Published(True)
    assert len(agent.discipline.handed) == 1
    assert open_files() == before


@pytest.mark.parametrize("kind", ["pipe", "folder", "short", "write only", "another model", "not ready"])
def test_an_update_that_cannot_be_one_is_refused_and_its_file_closed(agent: Agent, task: Task, kind: str) -> None:
    before = open_files()
    layout, files = LAYOUT, []
    match kind:
        case "pipe":
            files += os.pipe()
        case "folder":
            files.append(os.open("/", os.O_RDONLY))
        case "short":
            files.append(anonymous_file(HEADER_BYTES + LAYOUT.nbytes - 1))
        case "write only":
            whole = update((1, 2, 3))
            files += os.open(f"/proc/self/fd/{whole}", os.O_WRONLY), whole
        case "another model":
            files.append(update((1, 2, 3)))
            layout = Layout.of({"w": np.zeros(2)})
        case _:
            files.append(update((1, 2, 3)))
            agent.runtime.peer.ready = False
    answer = task.ask(Publish(layout=layout, merged_at=0), (files[0],))
    requests.close(files)
    assert isinstance(answer, Refused)
    assert agent.discipline.handed == []
    assert open_files() == before
    assert task.ask(Furthest(0, 1)) == Reached(1)


@pytest.mark.parametrize("runs", [b"x", b"", RUN.pack(3, 1, 1), RUN.pack(0, 1, 1) * 2])
def test_a_replica_in_which_no_units_count_that_are_none_is_not_begun_with(
    agent: Agent, task: Task, runs: bytes
) -> None:
    answer = task.ask(Loaded(Counted(1, 3, (Series(1, 0, 0, False, runs),))))
    assert "units of work that are none" in answer.why
    assert agent.discipline.log == []


def test_an_update_is_answered_when_it_has_settled(agent: Agent, task: Task) -> None:
    before = open_files()
    task.publish((1, 2, 3), unit=Unit(0, 1, 2), attempt=4)
    assert task.waits
    (handed,) = agent.discipline.handed
    payload, unit, attempt, data = handed
    assert (type(payload), payload.layout, unit, attempt, values_of(data)) == (
        FilePayload,
        LAYOUT,
        Unit(0, 1, 2),
        4,
        [1, 2, 3],
    )
    agent.tasks.answer()
    assert task.waits
    agent.discipline.given[0].outcome = Outcome.PUBLISHED
    agent.tasks.answer()
    assert task.answer() == Published(new=True)
    assert open_files() == before
    agent.tasks.answer()
    assert task.waits, "it is answered once"


def test_an_update_of_a_known_unit_is_not_new(agent: Agent, task: Task) -> None:
    agent.discipline.outcome = Outcome.KNOWN
    task.publish()
    assert task.answer() == Published(new=False)


def test_updates_are_answered_in_the_order_in_which_they_came(agent: Agent, task: Task) -> None:
    other = agent.connect()
    task.publish()
    other.publish()
    first, second = agent.discipline.given
    second.outcome = Outcome.PUBLISHED
    agent.tasks.answer()
    assert task.waits
    assert other.waits
    first.outcome = Outcome.KNOWN
    agent.tasks.answer()
    assert (task.answer(), other.answer()) == (Published(new=False), Published(new=True))


def test_tasks_that_wait_are_told_of_trouble(agent: Agent, task: Task) -> None:
    other = agent.connect()
    task.publish()
    other.publish()
    agent.discipline.trouble = "the strategy fails"
    agent.tasks.answer()
    assert task.answer() == other.answer() == Refused("the strategy fails")


def test_a_task_that_was_killed_is_in_nobody_s_way(agent: Agent, task: Task) -> None:
    other = agent.connect()
    task.publish()
    other.publish()
    task.hang_up()
    for submission in agent.discipline.given:
        submission.outcome = Outcome.PUBLISHED
    agent.tasks.answer()
    assert other.answer() == Published(new=True)
    assert agent.discipline.log == [("hang_up", task.theirs)]
    assert task.theirs not in agent.runtime.callbacks
    assert task.theirs.fileno() == -1


def test_staleness_is_what_was_merged_since_or_what_the_task_says(agent: Agent, task: Task) -> None:
    agent.replica.merged = 10
    agent.discipline.outcome = Outcome.PUBLISHED
    for settings in ({"merged_at": 7}, {"merged_at": 12}, {"merged_at": 7, "staleness": 1}):
        task.publish(**settings)
    assert list(agent.tasks.staleness) == [3, 0, 1]
    assert agent.tasks.staleness.maxlen == module.STALENESS_SAMPLES_MAX


def test_units_of_closed_epochs_are_known_and_their_updates_are_not_taken(agent: Agent, task: Task) -> None:
    agent.tasks.close_epochs(2)
    assert agent.tasks.epochs_closed == 2
    assert [task.ask(Knows(Unit(epoch, 0, 0))) for epoch in (1, 2)] == [Known(True), Known(False)]
    before = open_files()
    task.publish(unit=Unit(1, 0, 0))
    assert task.answer() == Published(new=False)
    assert open_files() == before
    assert agent.discipline.handed == []
    agent.discipline.outcome = Outcome.PUBLISHED
    task.publish(unit=Unit(2, 0, 0))
    task.publish(unit=None)
    assert [task.answer(), task.answer()] == [Published(new=True), Published(new=True)]


def test_a_lent_file_is_locked_until_its_update_is_dealt_with(agent: Agent, task: Task) -> None:
    before = open_files()
    descriptor = update((1, 2, 3))
    task.say(Publish(layout=LAYOUT, merged_at=0, lent=True), (descriptor,))
    payload = agent.discipline.handed[0][0]
    assert isinstance(payload, LentFile)
    mine = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    with pytest.raises(OSError):  # noqa: PT011 - whichever the system says
        fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    agent.discipline.given[0].outcome = Outcome.PUBLISHED
    agent.tasks.answer()
    assert task.answer() == Published(new=True)
    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
    requests.close([mine, descriptor])
    assert open_files() == before


def test_a_file_that_is_written_to_is_not_borrowed() -> None:
    descriptor = update((1, 2, 3))
    mine = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    fcntl.flock(mine, fcntl.LOCK_EX)
    before = open_files()
    payload = FilePayload(LAYOUT, descriptor, HEADER_BYTES)
    assert borrowed(payload) is None
    assert open_files() == before
    fcntl.flock(mine, fcntl.LOCK_UN)
    lent = borrowed(payload)
    assert lent is not None
    assert (lent.layout, lent.offset) == (LAYOUT, HEADER_BYTES)
    assert values_of(bytes(lent.read(0, LAYOUT.nbytes))) == [1, 2, 3]
    with pytest.raises(OSError):  # noqa: PT011 - it is open for reading only
        os.write(lent.descriptor, b"x")
    requests.close([descriptor, mine, lent.descriptor])
    assert borrowed(payload) is None, "it is closed"


# ---------------------------------------------------------------------------------------------- what codecs leave

REST = Remainder(follows=False, layout=LAYOUT)
NOTHING = Remainder(follows=False)


@pytest.fixture
def settling(agent: Agent) -> Agent:
    agent.discipline.outcome = Outcome.PUBLISHED
    return agent


def handed(agent: Agent) -> list[tuple[Unit | None, list[float]]]:
    return [(unit, values_of(data)) for _, unit, _, data in agent.discipline.handed]


LEFT = (None, [7.0, 7.0, 7.0])


def test_what_is_left_is_published_when_its_worker_hangs_up(settling: Agent, task: Task) -> None:
    before = open_files()
    task.publish(unit=Unit(0, 0, 0), left=REST)
    assert task.answer() == Published(new=True)
    assert len(settling.discipline.handed) == 1
    task.hang_up()
    assert handed(settling)[1:] == [LEFT]
    assert open_files() == before - 2, "the connection's two ends are closed as well"


def test_what_is_left_is_published_when_the_epochs_are_closed(settling: Agent, task: Task) -> None:
    other = settling.connect()
    for each in (task, other):
        each.publish(left=REST)
        each.answer()
    settling.tasks.close_epochs(1)
    assert handed(settling)[2:] == [LEFT, LEFT]
    task.hang_up()
    assert len(settling.discipline.handed) == 4, "each was published once"
    assert other.waits


def test_what_follows_takes_the_place_of_what_was_left_before(settling: Agent, task: Task) -> None:
    task.publish(left=REST)
    task.answer()
    before = open_files()
    task.publish(left=Remainder(follows=True, layout=LAYOUT))
    task.answer()
    assert open_files() == before, "what was left before is closed"
    assert len(settling.discipline.handed) == 2
    task.publish(left=Remainder(follows=True))
    task.answer()
    assert open_files() == before - 1
    task.hang_up()
    assert len(settling.discipline.handed) == 3, "nothing was left"


def test_what_does_not_follow_has_what_was_left_published_before(settling: Agent, task: Task) -> None:
    task.publish(left=REST)
    task.answer()
    task.publish((4, 5, 6), left=NOTHING)
    assert task.answer() == Published(new=True)
    assert handed(settling) == [(None, [1, 2, 3]), (None, [4, 5, 6]), LEFT]
    assert task.waits, "nobody waits for what was left"


def test_an_update_that_does_not_count_leaves_what_was_left_before(settling: Agent, task: Task) -> None:
    task.publish(left=REST)
    task.answer()
    before = open_files()
    settling.discipline.outcome = Outcome.KNOWN
    task.publish(left=REST)
    assert task.answer() == Published(new=False)
    assert open_files() == before
    assert len(settling.discipline.handed) == 2
    task.hang_up()
    assert handed(settling)[2:] == [LEFT]


# ------------------------------------------------------------------------------------------------------- the door


def test_tasks_wait_where_no_descriptor_is_left(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    class Out:
        def __init__(self, code: int) -> None:
            self.code = code

        def accept(self) -> Any:
            raise OSError(self.code, "no")

    gone, full = Out(errno.ECONNABORTED), Out(errno.EMFILE)
    for listener in (gone, full, full):
        agent.tasks.listen(listener)  # type: ignore[arg-type]
        agent.runtime.callbacks[listener]()
    assert agent.runtime.rests == [(full, module.ACCEPT_RETRY_S)] * 2
    assert len(agent.warned) == 1, "the user is told once"
    assert "tasks have to wait for their agent" in agent.warned[0]


def test_the_door_has_its_name_when_it_is_open_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "agent.new").touch()  # of one that was killed while it started
    (folder / "lock").touch()
    door = Door(str(folder))
    door.shut()
    assert sorted(os.listdir(folder)) == ["agent.new", "lock"]
    door.open()
    assert sorted(os.listdir(folder)) == ["agent.sock", "lock"]
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(folder / "agent.sock"))
    door.close()
    assert not folder.exists()
    assert door.listener.fileno() == -1
    door.close()


def test_the_note_of_a_failed_start_stays(tmp_path: Path) -> None:
    (tmp_path / "failed").touch()
    door = Door(str(tmp_path))
    door.shut()
    door.close()
    assert os.listdir(tmp_path) == ["failed"]
