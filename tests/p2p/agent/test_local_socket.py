"""Messages and open files between a task and its agent, the folder they meet in, and processes by pid and start."""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gossip.errors import UsageError
from p2p.agent import local_socket
from p2p.agent.local_socket import Process, private_folder, receive, send

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected ends."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.settimeout(10)
    with ours, theirs:
        yield ours, theirs


# ------------------------------------------------------------------------------------------------------------- messages


def test_messages_arrive_in_order_and_apart(pair: Pair) -> None:
    messages = [b"hello", b"", "wörter".encode()]
    for message in messages:
        send(pair[0], message)
    assert [receive(pair[1]) for _ in messages] == [(message, []) for message in messages]


def test_open_files_arrive_with_their_message(pair: Pair, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
    send(pair[0], b"two", tuple(files))
    send(pair[0], b"none")
    for descriptor in files:
        os.close(descriptor)
    message, descriptors = receive(pair[1])
    assert message == b"two"
    for name, descriptor in zip(b"ab", descriptors, strict=True):
        os.write(descriptor, bytes([name]))
        os.close(descriptor)
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]
    assert receive(pair[1]) == (b"none", [])


def test_a_message_larger_than_the_socket_s_buffer_arrives_whole(pair: Pair, tmp_path: Path) -> None:
    message = b"x" * 2_000_000
    with (tmp_path / "file").open("wb") as file:
        sender = threading.Thread(target=send, args=(pair[0], message, (file.fileno(),)))
        sender.start()
        got, descriptors = receive(pair[1])
        sender.join()
    assert got == message
    for descriptor in descriptors:
        os.close(descriptor)
    assert len(descriptors) == 1


def test_a_message_that_comes_byte_by_byte_is_put_together(pair: Pair) -> None:
    body = b"take"

    def trickle() -> None:
        for byte in struct.pack("!I", len(body)) + body:
            pair[0].send(bytes([byte]))

    sender = threading.Thread(target=trickle)
    sender.start()
    assert receive(pair[1]) == (b"take", [])
    sender.join()


def test_open_files_that_cannot_be_taken_are_told_and_the_next_message_is_read(
    pair: Pair, out_of_descriptors: Any
) -> None:
    with open(os.devnull) as file:
        send(pair[0], b"two", (file.fileno(), file.fileno()))
        send(pair[0], b"none")
    with out_of_descriptors(left=1):
        with pytest.raises(UsageError, match=r"has as many files open as it may, .*ulimit -n"):
            receive(pair[1])
        os.close(os.open(os.devnull, os.O_RDONLY))  # the one that had come is closed
        assert receive(pair[1]) == (b"none", [])


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x09", b"\0\0\0\x09{"])
def test_a_closed_connection_is_the_end(pair: Pair, sent: bytes) -> None:
    pair[0].send(sent)
    pair[0].close()
    with pytest.raises(EOFError):
        receive(pair[1])


def test_a_message_may_not_claim_any_size(pair: Pair) -> None:
    pair[0].send(b"\xff\xff\xff\xff")
    with pytest.raises(UsageError, match="claims 4294967295 bytes, at most 16777216"):
        receive(pair[1])


# ------------------------------------------------------------------------------------------------------ private folders


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short name."""
    with tempfile.TemporaryDirectory(prefix="dd-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_private_folder_is_made_for_this_user_alone(temporary: Path) -> None:
    path = Path(private_folder("run-1"))
    root = temporary / f"deepdist-{os.getuid()}"
    assert path == root / "run-1"
    assert root.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "file").touch()
    assert private_folder("run-1") == str(path)
    assert (path / "file").exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_left_alone(temporary: Path, mode: int) -> None:
    root = temporary / f"deepdist-{os.getuid()}"
    root.mkdir()
    root.chmod(mode)
    assert private_folder("run") == f"{root}-1/run"
    assert private_folder("run") == f"{root}-1/run"
    assert list(root.iterdir()) == []


def test_a_link_to_a_folder_is_left_alone(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (temporary / f"deepdist-{os.getuid()}").symlink_to(elsewhere)
    assert private_folder("run") == str(temporary / f"deepdist-{os.getuid()}-1" / "run")
    assert list(elsewhere.iterdir()) == []


def test_the_folder_that_is_there_is_found_again_though_the_first_name_is_free_by_now(temporary: Path) -> None:
    """A task and its agent look for it one after the other."""
    first = temporary / f"deepdist-{os.getuid()}"
    first.touch()
    made = private_folder("run")
    first.unlink()
    assert private_folder("run") == made


def test_where_others_have_taken_all_names_it_is_said_what_to_do(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.getuid() + 1
    for number in ("", *(f"-{number}" for number in range(1, local_socket.ROOTS_MAX))):
        (temporary / f"deepdist-{me}{number}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: me)
    with pytest.raises(UsageError, match="none is a folder that only this user can enter: set TMPDIR"):
        private_folder("run")


def test_a_socket_fits_into_the_folder_however_long_the_temporary_one_is(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary / ("x" * 50)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert private_folder("short").startswith(str(deep))
    name = f"test-{os.getpid()}-{'y' * 20}"
    path = private_folder(name)
    try:
        assert path == f"/tmp/deepdist-{os.getuid()}/{name}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.join(path, "agent.sock"))
    finally:
        os.unlink(os.path.join(path, "agent.sock"))
        os.rmdir(path)


# ------------------------------------------------------------------------------------------------------------ processes


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until its input ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_lives_until_it_ends_even_if_nobody_has_fetched_its_exit_code(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    assert process.alive
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    assert not process.alive
    assert not Process(child.pid).alive
    child.wait()
    assert not process.alive


def test_a_pid_that_is_used_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    was = Process(child.pid)
    assert was.started is not None
    assert Process(child.pid, was.started).alive
    assert not Process(child.pid, str(int(was.started) - 1)).alive


def test_this_process_is_alive_and_a_pid_without_process_is_not() -> None:
    assert Process(os.getpid()).alive
    with open("/proc/sys/kernel/pid_max") as file:
        assert not Process(int(file.read()) + 1).alive


def test_a_process_whose_name_looks_like_its_state_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / ") Z 1 2 (x"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        assert local_socket.Process(process.pid).alive
        process.kill()


def test_who_is_out_of_descriptors_takes_nobody_for_dead(
    child: subprocess.Popen[bytes], out_of_descriptors: Any
) -> None:
    process = Process(child.pid)
    with out_of_descriptors():
        assert process.alive
        begun = Process(child.pid)
        assert begun.alive
        child.kill()
        child.wait()
        assert not process.alive
        assert not begun.alive
    assert not begun.alive


def test_a_process_that_was_begun_to_watch_out_of_descriptors_is_watched_later(
    child: subprocess.Popen[bytes], out_of_descriptors: Any
) -> None:
    with out_of_descriptors():
        process = Process(child.pid)
    assert process.alive


WATCHER = """
import os, resource, sys, threading, time
from p2p.agent import local_socket
local_socket.WATCH_S = 0.01
local_socket.leave_with(local_socket.Process(os.getppid()))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
try:
    while True:
        files.append(open(os.devnull))
except OSError:
    pass
threading.Event().wait(0.5)
for file in files:
    file.close()
"""


def test_a_worker_with_as_many_files_open_as_it_may_lives_on() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run([sys.executable, "-c", WATCHER], env=environment).returncode == 0


def test_a_process_that_is_stopped_is_seen(child: subprocess.Popen[bytes]) -> None:
    process = Process(child.pid)
    assert not process.stopped
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process.stopped
    assert process.alive
    os.kill(child.pid, signal.SIGCONT)
    os.waitid(os.P_PID, child.pid, os.WCONTINUED)
    assert not process.stopped


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_who_listens_at_a_socket_is_known(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connection:
        listener.bind(path)
        listener.listen()
        connection.connect(path)
        found = local_socket.process_behind(connection)
        assert found is not None
        assert (found.pid, found.alive) == (os.getpid(), True)
