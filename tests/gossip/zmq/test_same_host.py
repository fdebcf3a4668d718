"""Messages with open files over a Unix socket: who is talked to, and what is no message."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import numpy as np
import pytest

from gossip.errors import WireError
from gossip.messages import PeerId
from gossip.wire import BLOCK_BYTES
from gossip.zmq import same_host

pytestmark = [pytest.mark.sockets, pytest.mark.skipif(sys.platform != "linux", reason="there are no links")]

SMALL = {"w": np.zeros(3)}
LARGE = {"w": np.zeros(3 * BLOCK_BYTES // 8)}


def open_files() -> int:
    """Of updates; sockets come and go by themselves."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum("memfd" in os.readlink(link) for link in links if os.path.islink(link))


@pytest.mark.parametrize("end", ["listens", "connects"])
def test_a_process_of_another_user_is_not_linked_to(swarm: Any, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Whoever else is on this machine can take an abstract name, and connect to one."""
    one, two = (swarm.add(name, LARGE, links=True) for name in ("one", "two"))
    real, other_user = same_host._trusted, os.getuid() + 1
    refused = []

    def seen_from_one(connection: socket.socket) -> socket.socket | None:
        listens = connection.getsockname() == same_host._address(one.me)
        if listens == (end == "listens"):
            with monkeypatch.context() as patch:
                patch.setattr(os, "getuid", lambda: other_user)
                trusted = real(connection)
            refused.append(connection)
            return trusted
        return real(connection)

    monkeypatch.setattr(same_host, "_trusted", seen_from_one)
    swarm.link()
    one.publish(LARGE)
    two.publish(LARGE)
    assert swarm.turn(lambda: bool(refused) and one.frontiers["two"] == 1 and two.frontiers["one"] == 1)
    assert all(connection.fileno() == -1 for connection in refused)


@pytest.mark.parametrize("data", [b"\x00", b"\x01", b"\x05" + bytes(12), b"\x00x" * 50, b"\x01" + b"\xff" * 12])
def test_a_message_of_a_link_that_is_cut_short_is_malformed(data: bytes) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    files = open_files()
    descriptor = same_host.small_file(b"x")
    socket.send_fds(one, [data], [descriptor])
    os.close(descriptor)
    with pytest.raises(WireError):
        same_host.receive(two)
    assert open_files() == files
    one.close()
    two.close()


def test_a_link_that_nobody_empties_takes_no_more_and_stops_nobody() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    two.setblocking(False)
    frame = bytes(10_000)
    sent = 0
    while same_host.send(one, frame):
        sent += 1
        assert sent < 10_000
    received = 0
    while same_host.receive(two) is not None:
        received += 1
    assert received == sent > 0
    assert not same_host.send(one, bytes(same_host.FRAME_BYTES_MAX + 1))
    one.close()
    with pytest.raises(EOFError):
        same_host.receive(two)
    two.close()


def test_a_name_that_is_no_text_is_refused() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.send(b"\xff\xfe")
    with pytest.raises(WireError):
        same_host.receive_name(two, PeerId("me"))
    one.close()
    two.close()


def test_nobody_is_found_under_a_name_that_nobody_listens_to() -> None:
    files = len(os.listdir("/proc/self/fd"))
    assert same_host.connect(PeerId("me"), PeerId("nobody")) is None
    assert len(os.listdir("/proc/self/fd")) == files


def test_nobody_is_linked_without_a_descriptor(swarm: Any, out_of_descriptors: Any) -> None:
    swarm.add("node", LARGE, links=True)
    with out_of_descriptors():
        assert same_host.connect(PeerId("reader"), PeerId("node")) is None
