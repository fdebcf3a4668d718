"""What `deepdist doctor` says of doors, on machines on which one of them is open."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from gossip.zmq.sockets import Keys, bind, open_socket
from p2p import DeepDist
from p2p.adapters.model import Model
from p2p.cli import doors
from p2p.cli.doors import Door, Port, State, asked, of_spark, other_processes, private_folder, temporary_folder
from p2p.http.server import Server
from p2p.http.settings import Master

OPEN, GUARDED, UNSEEN = State.OPEN, State.GUARDED, State.UNSEEN
TIMEOUT_S = 60.0


def states(found: Iterator[Door]) -> list[State]:
    return [door.state for door in found]


# ------------------------------------------------------------------------------------------------------------- ports


@pytest.mark.parametrize(
    ("digits", "host", "reach"),
    [
        ("0100007F", "127.0.0.1", "this machine"),
        ("00000000", "0.0.0.0", "every interface"),
        ("020200C0", "192.0.2.2", "the network"),
        ("00000000000000000000000001000000", "::1", "this machine"),
        ("00000000000000000000000000000000", "::", "every interface"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1", "this machine"),
        ("0000000000000000FFFF0000020200C0", "192.0.2.2", "the network"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="the kernel writes words as the processor has them")
def test_who_can_connect_is_read_from_the_kernels_table(digits: str, host: str, reach: str) -> None:
    port = Port(doors._address(digits), 80, "agent", 1)
    assert (port.host, port.reach) == (host, reach)


def port_of(address: str) -> Port:
    return Port("127.0.0.1", int(address.rpartition(":")[2]), "agent", 7)


@pytest.mark.sockets
def test_a_port_of_zeromq_tells_whether_it_asks_for_keys() -> None:
    with zmq.Context() as context:
        for keys, state, words in (
            (Keys.generate(), GUARDED, "who has keys of the run"),
            (None, OPEN, "asks for no keys (NULL)"),
        ):
            with open_socket(context, zmq.ROUTER, keys, server=True) as one:
                door = asked(port_of(bind(one, "127.0.0.1")))
            assert door.state is state
            assert words in door.words
            assert door.what.startswith("Port of agent 7, 127.0.0.1:")


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("token", "state", "words"), [(None, GUARDED, "asks for a token"), (False, OPEN, "without a token")]
)
def test_a_port_of_http_tells_whether_it_asks_for_a_token(
    token: Any, state: State, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = Server(Master(":0", token=token), Model({"w": np.zeros(1)}), lambda: None)
    server.open()
    try:
        door = asked(port_of(server.address))
    finally:
        server.close()
    assert door.state is state
    assert words in door.words


@pytest.mark.sockets
def test_a_token_that_goes_over_a_network_can_be_read_there() -> None:
    server = Server(Master("0.0.0.0:0"), Model({"w": np.zeros(1)}), lambda: None)
    server.open()
    try:
        door = asked(Port("0.0.0.0", int(server.address.rpartition(":")[2]), "driver program", 7))
    finally:
        server.close()
    assert door.state is GUARDED
    assert "not encrypted" in door.words


@pytest.mark.sockets
def test_what_says_nothing_or_something_else_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert asked(port_of(address)).state is UNSEEN
    assert asked(port_of(address)).state is UNSEEN, "it has gone meanwhile"


def process(proc: Path, pid: int, parent: int, command: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (folder / "stat").write_text(f"{pid} (some) name) S {parent} 0 0")


def test_processes_of_trainings_are_known_by_their_commands_and_driver_programs_by_their_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "PROC", tmp_path)
    process(tmp_path, 1, 0, "init")
    process(tmp_path, 10, 1, "python train.py")
    process(tmp_path, 11, 10, "python -c from p2p.agent.process import main; main() /tmp/x")
    process(tmp_path, 12, 10, "python -c from p2p.engines.local import main; main() 3 10")
    process(tmp_path, 13, 1, "java org.apache.spark.executor.CoarseGrainedExecutorBackend")
    process(tmp_path, 14, 1, "python another.py")
    (tmp_path / "15").mkdir()
    (tmp_path / "net").mkdir()
    assert doors.processes() == {11: "agent", 12: "worker", 13: "Spark", 10: "driver program"}
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert doors.processes() == {}, "another user's"


def test_ports_are_found_by_who_holds_their_sockets_and_sparks_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "PROC", tmp_path)
    monkeypatch.setattr(doors, "asked", lambda port: Door(GUARDED, f"{port}", port.role))
    assert states(doors.ports()) == [UNSEEN], "no /proc"
    process(tmp_path, 11, 1, "python -c from p2p.agent.process import main; main() /tmp/x")
    process(tmp_path, 13, 1, "java org.apache.spark.deploy.SparkSubmit")
    (tmp_path / "net").mkdir()
    lines = ["head"]
    for pid, inode, state in ((11, 70, "0A"), (11, 71, "01"), (13, 72, "0A"), (14, 73, "0A")):
        (tmp_path / str(pid) / "fd").mkdir(parents=True, exist_ok=True)
        (tmp_path / str(pid) / "fd" / str(inode)).symlink_to(f"socket:[{inode}]")
        lines.append(f"0: 0100007F:{inode:04X} 00000000:0000 {state} 0:0 00:0 0 0 0 {inode} 1")
    (tmp_path / "net" / "tcp").write_text("\n".join(lines))
    found = [(door.state, f"{door}") for door in doors.ports()]
    assert [state for state, _ in found] == [GUARDED, UNSEEN]
    assert "127.0.0.1:70 (this machine): agent" in found[0][1]
    assert "Ports of Spark: 127.0.0.1:72 (this machine)" in found[1][1]
    (tmp_path / "net" / "tcp").write_text("head")
    assert states(doors.ports()) == [UNSEEN], "no training runs"


@pytest.mark.sockets
@pytest.mark.slow
def test_all_ports_of_a_training_are_guarded(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, began = tmp_path / "ended", tmp_path / "began"

    def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        began.touch()
        give_up = time.monotonic() + TIMEOUT_S
        while not ended.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        return {"w": np.full(3, float(sum(rows)))}

    def train() -> None:
        with DeepDist({"w": np.zeros(3)}, peers=2, progress=False) as dd:
            dd.train([[1], [2]], gradient)

    look = doors.processes
    thread = threading.Thread(target=train)
    thread.start()
    try:
        give_up = time.monotonic() + TIMEOUT_S
        while not began.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        ours = {os.getpid(), *place.processes()}
        monkeypatch.setattr(doors, "processes", lambda: {pid: role for pid, role in look().items() if pid in ours})
        found = list(doors.ports())
    finally:
        ended.touch()
        thread.join()
    assert {door.state for door in found} == {GUARDED}, [str(door) for door in found]
    roles = [door.what.split()[2] for door in found]
    assert roles.count("agent") >= 4
    assert "driver" in roles


# ----------------------------------------------------------------------------------------------------------- folders


def given_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it is another user's."""
    if os.geteuid() == 0:
        os.chown(folder, 65534, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)


@pytest.mark.parametrize(("mode", "state"), [(0o1777, GUARDED), (0o700, GUARDED), (0o777, OPEN), (0o770, OPEN)])
def test_a_temporary_folder_in_which_others_move_things_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, state: State
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(mode)
    assert states(temporary_folder()) == [state]
    given_away(tmp_path, monkeypatch)
    assert states(temporary_folder()) == [OPEN]


def test_folders_of_our_names_that_are_others_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name = tmp_path / f"deepdist-{os.getuid()}"
    (door,) = private_folder()
    assert (door.state, door.words.startswith(f"{name}, made when it is needed")) == (GUARDED, True)
    assert list(tmp_path.iterdir()) == [], "it is only looked at"
    name.mkdir(mode=0o700)
    (door,) = private_folder()
    assert (door.state, door.words.startswith(f"{name}, 0700 of ")) == (GUARDED, True)
    name.chmod(0o755)
    taken, mine = private_folder()
    assert "0755 of" in taken.words
    assert "passed by" in taken.words
    assert mine.words.startswith(f"{name}-1, made")
    for number in range(1, 10):
        (tmp_path / f"{name}-{number}").touch()
    found = list(private_folder())
    assert states(iter(found)) == [GUARDED] * 10 + [OPEN]
    assert "is no folder" in found[1].words


# --------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("scope", "options", "traces", "arguments"),
    [
        (None, "rw,relatime", "trace", OPEN),
        ("0", "rw,hidepid=0", "trace", OPEN),
        ("1", "rw,hidepid=2", "not trace (ptrace_scope 1)", GUARDED),
        ("1", "rw,hidepid=invisible", "not trace (ptrace_scope 1)", GUARDED),
    ],
)
def test_what_processes_of_one_user_may_do_to_each_other_is_told(
    scope: str | None, options: str, traces: str, arguments: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "PROC", tmp_path)
    assert states(other_processes()) == [UNSEEN]
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mounts").write_text(f"tmpfs /tmp tmpfs rw 0 0\nproc /proc proc {options} 0 0\n")
    if scope is not None:
        (tmp_path / "sys" / "kernel" / "yama").mkdir(parents=True)
        (tmp_path / "sys" / "kernel" / "yama" / "ptrace_scope").write_text(f"{scope}\n")
    own, seen = other_processes()
    assert own.state is OPEN
    assert f"each can open the files of the others, {traces} and end them" in own.words
    assert seen.state is arguments


# ------------------------------------------------------------------------------------------------------------- Spark

AUTHENTICATED = {"spark.authenticate": "true"}
ENCRYPTED = {**AUTHENTICATED, "spark.network.crypto.enabled": "true"}


@pytest.mark.parametrize(
    ("master", "conf", "expected", "words"),
    [
        (None, {}, [UNSEEN], "say --spark-master"),
        ("spark://host:7077", {}, [OPEN, GUARDED], "spark.authenticate and spark.network.crypto.enabled off"),
        ("yarn", AUTHENTICATED, [OPEN, GUARDED], "spark.network.crypto.enabled off"),
        ("yarn", ENCRYPTED, [GUARDED, GUARDED], "traffic is encrypted"),
        (None, ENCRYPTED, [GUARDED, GUARDED], "traffic is encrypted"),
        ("local[2]", {}, [OPEN, GUARDED], "on the network, may ask for what tasks carry"),
        (None, {"spark.master": "local[*]"}, [OPEN, GUARDED], "SPARK_LOCAL_IP=127.0.0.1"),
        ("local[2]", {"spark.driver.host": "127.0.0.1"}, [OPEN, GUARDED], "of this machine, may ask"),
        ("local[2]", AUTHENTICATED, [GUARDED, GUARDED], "nothing leaves this machine"),
        ("yarn", {**ENCRYPTED, "spark.eventLog.enabled": "true"}, [GUARDED, GUARDED, UNSEEN], "encrypted"),
    ],
)
def test_sparks_settings_are_judged(
    master: str | None, conf: dict[str, str], expected: list[State], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    found = list(of_spark(master, conf))
    assert states(iter(found)) == expected
    assert words in found[0].words
    disks = list(of_spark(master, {**conf, "spark.io.encryption.enabled": "true", "spark.local.dir": "/scratch"}))[1]
    assert disks.words == "encrypted"


def test_all_doors_are_looked_at_whatever_one_of_them_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/none")
    monkeypatch.setattr(doors, "processes", lambda: {})
    found = list(doors.doors())
    assert [door.what for door in found if door.state is UNSEEN][:2] == ["Ports", "More"]
    assert found[-1].what == "Spark"
