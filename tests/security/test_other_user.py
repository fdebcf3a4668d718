"""Another user of this host, at everything that a running training has: folders, sockets, files, memory, processes.

It knows more than such a user could: the pids, the open files of each process, the folders' contents, and the names of
all peers. Only root can start it; elsewhere these tests are skipped.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from p2p import DeepDist, Report

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform != "linux",
        reason="needs root on Linux, to become another user",
    ),
]

PARTITIONS, CHUNKS, WIDTH = 4, 10, 1000
TIMEOUT_S = 60.0
MODES: dict[str, dict[str, Any]] = {
    "p2p": {},
    "mix": {"discipline": "mix"},
    "master": {"mode": "master", "master": ":0"},
    "standbys": {"mode": "master", "standbys": 2},
}
AGENTS = ("p2p", "mix")
"""Modes with agents."""
REFUSED = ("PermissionError", 0)
"""How each attempt has to end: by the kernel, or with so many bytes."""

INTRUDER = """
import ctypes, json, os, socket, sys

def outcome(attempt):
    try:
        found = attempt()
    except OSError as error:
        return type(error).__name__
    return len(found) if isinstance(found, (bytes, list)) else "done"

def contents(path):
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 16)

def descriptor(pid, number):
    '''Of another process, by pidfd_getfd(2).'''
    process = os.pidfd_open(pid)
    try:
        found = libc.syscall(438, process, number, 0)
        if found < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return os.pread(found, 1 << 16, 0)
    finally:
        os.close(process)

def heard(address, kind, said):
    '''What comes until the other end closes: for ever would be a failure, too.'''
    with socket.socket(socket.AF_UNIX, kind) as link:
        link.settimeout(5)
        link.connect(address)
        found = b""
        try:
            link.send(said)
            while data := link.recv(1 << 16):
                found += data
        except (ConnectionResetError, BrokenPipeError):
            pass
        return found

def asked(port, path):
    '''The numbers that a master tells over HTTP; none with a refusal.'''
    with socket.create_connection(("127.0.0.1", port), 5) as link:
        link.sendall(f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n".encode())
        found = b""
        while data := link.recv(1 << 16):
            found += data
    head, _, body = found.partition(b"\\r\\n\\r\\n")
    return b"" if b" 401 " in head.partition(b"\\r\\n")[0] else body

libc = ctypes.CDLL(None, use_errno=True)
known = json.load(sys.stdin)
b"".hex().encode("idna"), "".encode("utf-8")  # codecs are found while they may be read
os.setgroups([])
os.setresgid(known["gid"], known["gid"], known["gid"])
os.setresuid(known["uid"], known["uid"], known["uid"])
capabilities = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff"))]
assert {int(each, 16) for each in capabilities} == {0}, capabilities

tried = []
def attempt(what, function, *arguments):
    tried.append((what, outcome(lambda: function(*arguments))))

for pid, numbers in known["processes"].items():
    for name in ("environ", "mem", "maps"):
        attempt(f"/proc/PID/{name}", contents, f"/proc/{pid}/{name}")
    attempt("/proc/PID/fd", os.listdir, f"/proc/{pid}/fd")
    attempt("/proc/PID/cwd", os.listdir, f"/proc/{pid}/cwd")
    for number, what in numbers.items():
        attempt(what, contents, f"/proc/{pid}/fd/{number}")
        attempt("pidfd_getfd", descriptor, int(pid), int(number))
    for number in (0, 10, 15):  # is it there, write your story, end
        attempt("kill", os.kill, int(pid), number)
for folder in known["folders"]:
    attempt("list a folder", os.listdir, folder)
    attempt("enter a folder", os.chdir, folder)
    attempt("add a file", lambda: os.open(f"{folder}/mine", os.O_CREAT | os.O_RDWR))
    attempt("move a folder", os.rename, folder, f"{folder}-moved")
    attempt("remove a folder", os.rmdir, folder)
    attempt("open a folder", os.chmod, folder, 0o777)
for path in known["files"]:
    attempt("read a file", contents, path)
    attempt("write a file", lambda: os.open(path, os.O_WRONLY))
    attempt("remove a file", os.unlink, path)
for path in known["sockets"]:
    attempt("a socket in a folder", heard, path, socket.SOCK_STREAM, b"\\0\\0\\0\\1x")
for name in known["links"]:
    for said in (b"", known["me"].encode(), bytes(32) + known["me"].encode(), b"\\1" * 1000):
        attempt("a link of one host", heard, b"\\0" + name.encode(), socket.SOCK_SEQPACKET, said)
for port in known["http"]:
    for path in ("/", "/model", "/status"):
        attempt("HTTP", asked, port, path)
arguments = b"".join(contents(f"/proc/{pid}/cmdline") for pid in known["processes"])
json.dump({"tried": tried, "arguments": arguments.hex()}, sys.stdout)
"""


def waiting(ended: Path) -> Any:
    """A gradient whose last chunk of each partition ends when this file is there."""

    def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        seen = list(rows)
        if seen[-1] % 100 == CHUNKS - 1:
            (ended.parent / f"waits-{seen[-1]}").touch()
        give_up = time.monotonic() + TIMEOUT_S
        while seen[-1] % 100 == CHUNKS - 1 and not ended.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        return {"w": np.full(WIDTH, float(sum(seen)))}

    return gradient


class Training:
    """One that runs until it is told to end."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.model = {"w": np.zeros(WIDTH)}
        self.dd = DeepDist(self.model, peers=2, progress=False, **MODES[mode])
        self.report: Report | None = None
        self._ended = folder / "ended"
        self._data = [[100 * partition + row for row in range(CHUNKS)] for partition in range(PARTITIONS)]
        self._thread = threading.Thread(target=self._train, daemon=True)

    def __enter__(self) -> Training:
        self._thread.start()
        give_up = time.monotonic() + TIMEOUT_S
        while len([*self._ended.parent.glob("waits-*")]) < 2 and time.monotonic() < give_up:
            assert self._thread.is_alive()
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.touch()
        self._thread.join(TIMEOUT_S)

    @property
    def total(self) -> float:
        return float(sum(map(sum, self._data)))

    def _train(self) -> None:
        with self.dd:
            self.report = self.dd.train(self._data, waiting(self._ended), chunk_rows=1)


def open_files(pid: int) -> dict[int, str]:
    """The descriptors of a process that are files, and whether each is shared memory."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            name = os.readlink(entry.path)
        except OSError:
            continue
        if name.startswith("/") and name != os.devnull:
            found[int(entry.name)] = "shared memory" if name.startswith(("/dev/shm/", "/memfd:")) else "an open file"
    return found


def known(place: Any, training: Training) -> dict[str, Any]:
    """All that the intruder is told."""
    nobody = pwd.getpwnam("nobody")
    below = [path for root in place.folder.glob("deepdist-*") for path in (root, *root.rglob("*"))]
    links = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@deepdist-" in line]
    registrar = getattr(training.dd._session, "_registrar", None)
    members = [] if registrar is None else list(registrar.members)
    master = training.dd.master
    return {
        "uid": nobody.pw_uid,
        "gid": nobody.pw_gid,
        "me": members[0] if members else "a" * 32,
        "processes": {pid: open_files(pid) for pid in (os.getpid(), *place.processes())},
        "folders": [str(path) for path in below if path.is_dir()],
        "files": [str(path) for path in below if path.is_file()],
        "sockets": [str(path) for path in below if path.is_socket()],
        "links": sorted({link[1:] for link in links if any(link.endswith(member) for member in members)}),
        "http": [] if master is None else [int(master.rpartition(":")[2])],
    }


def written(place: Any) -> list[Path]:
    """The stories that the agents were asked for."""
    agents = place.agents()
    for pid in agents:
        os.kill(pid, signal.SIGUSR1)
    give_up = time.monotonic() + TIMEOUT_S
    while len(found := [*place.folder.glob("deepdist-*/story-*.jsonl")]) < len(agents) and time.monotonic() < give_up:
        time.sleep(0.02)
    return found


def intrude(told: dict[str, Any]) -> Any:
    """What another user's process found."""
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER], input=json.dumps(told), capture_output=True, text=True, timeout=3 * TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["p2p", *(pytest.param(each, marks=pytest.mark.long) for each in [*MODES][1:])])
def test_another_user_reads_nothing_and_changes_nothing(
    place: Any, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.folder.chmod(0o1777)  # as /tmp is
    drawn: list[bytes] = []
    draw = zmq.curve_keypair
    monkeypatch.setattr(zmq, "curve_keypair", lambda: drawn.extend(pair := draw()) or pair)
    with Training(mode, tmp_path) as training:
        stories = written(place)
        told = known(place, training)
        try:
            found = intrude(told)
        finally:
            for story in stories:
                story.unlink()
    tried = [(what, outcome) for what, outcome in found["tried"] if outcome not in REFUSED]
    assert tried == []
    counts = Counter(what for what, _ in found["tried"])
    expected = {"/proc/PID/environ", "/proc/PID/mem", "an open file", "shared memory", "pidfd_getfd", "kill"}
    if mode in AGENTS:
        expected |= {"list a folder", "add a file", "read a file", "a socket in a folder"}
        assert len(stories) >= 2
    if mode == "p2p":
        assert counts["a link of one host"] >= 2 * len(stories)
    if "master" in MODES[mode]:
        expected |= {"HTTP", "read a file"}
    assert expected <= set(counts)
    assert drawn
    assert not [key for key in drawn if key in bytes.fromhex(found["arguments"])], "arguments are for all to read"
    assert training.report is not None, "the training did not end"
    assert training.report.updates_lost == 0
    mean_of = 2 if mode == "mix" else 1
    assert training.model["w"].tolist() == [training.total / mean_of] * WIDTH
