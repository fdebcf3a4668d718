"""The shared memory of an executor: where it is, who may look at it when, and that it is never left behind."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.updates.dense import PIECE_BYTES
from gossip.updates.stamps import stamps_bytes
from p2p.agent import replica as module
from p2p.agent.replica import HEADER_BYTES, Replica, anonymous_file

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7, np.int64)}
LAYOUT = Layout.of(ARRAYS)


@pytest.fixture
def replica() -> Iterator[Replica]:
    """A new one of `LAYOUT`."""
    replica = Replica(LAYOUT)
    yield replica
    replica.close()


def device(descriptor: int) -> int:
    return os.fstat(descriptor).st_dev


def test_a_new_replica_is_zeros_that_nothing_is_merged_in(replica: Replica) -> None:
    assert replica.merged == 0
    assert all(not array.any() for array in replica.arrays().values())
    assert replica.arrays()["w"].shape == (2, 3)


def test_who_attaches_sees_the_same_memory(replica: Replica) -> None:
    other = Replica(LAYOUT, os.dup(replica.descriptor))
    replica.arrays()["w"][1, 2] = 5
    replica.merged = 3
    assert other.arrays()["w"][1, 2] == 5
    assert other.merged == 3
    other.close()
    assert replica.arrays()["w"][1, 2] == 5


def test_the_file_has_no_name(replica: Replica) -> None:
    assert os.fstat(replica.descriptor).st_nlink == 0
    assert os.fstat(replica.descriptor).st_size == HEADER_BYTES + LAYOUT.nbytes + stamps_bytes(LAYOUT)


# ---------------------------------------------------------------------------------------------------------- where it is


def test_memory_is_shared_memory_where_there_is_room() -> None:
    descriptor = anonymous_file(1000)
    assert device(descriptor) == os.stat("/dev/shm").st_dev
    assert os.pread(descriptor, 2000, 0) == bytes(1000)
    os.close(descriptor)


def test_the_temporary_folder_serves_where_shared_memory_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY_SPARE_BYTES", 1 << 60)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    replica = Replica(LAYOUT)
    assert device(replica.descriptor) == os.stat(tmp_path).st_dev
    assert os.fstat(replica.descriptor).st_nlink == 0
    assert list(tmp_path.iterdir()) == []
    replica.arrays()["w"][...] = 1
    other = Replica(LAYOUT, os.dup(replica.descriptor))
    np.testing.assert_array_equal(other.arrays()["w"], np.ones((2, 3)))
    other.close()
    replica.close()


def test_the_temporary_folder_serves_where_there_is_no_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptor = anonymous_file(1000)
    assert device(descriptor) == os.stat(tmp_path).st_dev
    os.close(descriptor)


def test_no_room_anywhere_is_told_with_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing too"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match=r"no room for 1000 bytes of shared memory in .*missing too: .* TMPDIR"):
        anonymous_file(1000)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_stays_open_after_close() -> None:
    before = len(os.listdir("/proc/self/fd"))
    replica = Replica(LAYOUT)
    view = replica.arrays()["w"]
    replica.close()
    view[...] = 1  # a view outlives it, and keeps the memory
    del view, replica
    empty = Replica(Layout.of({}))
    empty.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------- who may look when

READER = """
import socket, sys
from gossip.arrays import ArraySpec, Layout
from p2p.agent.replica import Replica

connection = socket.socket(fileno=int(sys.argv[1]))
_, (descriptor,), _, _ = socket.recv_fds(connection, 1, 1)
replica = Replica(Layout((ArraySpec("w", "<f4", (2, 3)),)), descriptor)
with replica.reading():
    connection.send(b"r")
    connection.recv(1)
connection.send(b"d")
connection.recv(1)
"""


@contextmanager
def reader_of(replica: Replica) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Another process that reads `replica` until it is told to go on."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    process = subprocess.Popen([sys.executable, "-c", READER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    try:
        theirs.close()
        socket.send_fds(ours, [b"x"], [replica.descriptor])
        assert ours.recv(1) == b"r"
        yield process, ours
    finally:
        ours.close()
        process.kill()
        process.wait()


@pytest.mark.sockets
def test_nothing_is_merged_while_another_process_reads(replica: Replica) -> None:
    assert replica.acquire()
    replica.release()
    with reader_of(replica) as (_, connection):
        assert not replica.acquire()
        connection.send(b"x")
        assert connection.recv(1) == b"d"
        assert replica.acquire()
        replica.release()


@pytest.mark.sockets
def test_a_reader_that_is_killed_is_in_nobody_s_way(replica: Replica) -> None:
    with reader_of(replica) as (process, _):
        assert not replica.acquire()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert replica.acquire()
        replica.release()


WRITER_TRIES = """
import sys
from p2p.agent.replica import Replica
from gossip.arrays import ArraySpec, Layout

replica = Replica(Layout((ArraySpec("w", "<f4", (2, 3)),)), int(sys.argv[1]))
print("merges" if replica.acquire() else "waits")
"""


@pytest.mark.sockets
def test_one_of_two_readers_in_a_process_keeps_the_writer_out_when_the_other_is_done(replica: Replica) -> None:
    """The driver program looks at its replica from the user's thread and from the master's."""
    attached = Replica(LAYOUT, os.dup(replica.descriptor))
    first_reads, second_is_done = threading.Event(), threading.Event()
    verdict = ""

    def read_first() -> None:
        nonlocal verdict
        with replica.reading():
            first_reads.set()
            second_is_done.wait(0.5)  # in vain, if the second one waits for us
            verdict = subprocess.run(
                [sys.executable, "-c", WRITER_TRIES, str(replica.descriptor)],
                pass_fds=[replica.descriptor],
                capture_output=True,
                text=True,
                timeout=500,
            ).stdout

    first = threading.Thread(target=read_first)
    first.start()
    first_reads.wait(30)
    with attached.reading():
        pass
    attached.close()
    second_is_done.set()
    first.join()
    assert verdict == "waits\n"


# -------------------------------------------------------------------------------------------------------------- merging


class Recorded:
    """A payload that records how it is read."""

    def __init__(self, packed: Packed) -> None:
        self.layout = packed.layout
        self.packed = packed
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> Any:
        self.reads.append((start, stop))
        return self.packed.read(start, stop)


def test_an_update_is_merged_piece_by_piece() -> None:
    count = 2 * PIECE_BYTES // 8 + 5  # of a third piece, a little
    start = {"a": np.arange(count, dtype=np.float64), "b": np.arange(7, dtype=np.int32), "c": np.ones(3, np.float32)}
    layout = Layout.of(start)
    replica = Replica(layout)
    for name, view in replica.arrays().items():
        view[...] = start[name]
    update = Recorded(Packed.of({name: array * 2 for name, array in start.items()}))
    replica.add(update)
    for name, array in replica.arrays().items():
        np.testing.assert_array_equal(array, start[name] * 3)
    assert update.reads == [
        (0, PIECE_BYTES),
        (PIECE_BYTES, 2 * PIECE_BYTES),
        (2 * PIECE_BYTES, layout.nbytes),
    ]
    assert replica.merged == 0, "counting is the agent's: one sum may hold many updates"
    del array, view
    replica.close()


def test_read_is_a_copy(replica: Replica) -> None:
    before = replica.read(0, LAYOUT.nbytes)
    replica.arrays()["w"][...] = 9
    assert bytes(before) == bytes(LAYOUT.nbytes)
