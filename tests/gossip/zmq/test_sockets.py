"""What every socket of ours has, over loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import zmq

from gossip.zmq.sockets import open_socket

pytestmark = pytest.mark.sockets


def test_the_kernel_looks_after_every_connection(swarm: Any) -> None:
    """A host that loses its power says nothing, and nothing else would ever tell."""
    for server in (False, True):
        with open_socket(swarm.context, zmq.DEALER, server=server) as opened:
            idle_s, interval_s, probes = (
                opened.getsockopt(option)
                for option in (zmq.TCP_KEEPALIVE_IDLE, zmq.TCP_KEEPALIVE_INTVL, zmq.TCP_KEEPALIVE_CNT)
            )
            assert opened.getsockopt(zmq.TCP_KEEPALIVE) == 1
            assert 0 < idle_s + interval_s * probes <= 5
            assert 0 < opened.getsockopt(zmq.TCP_MAXRT) <= 5000


SLOW_READER = """
import time, zmq
from gossip.zmq.sockets import open_socket
context = zmq.Context()
with open_socket(context, zmq.PUSH, server=True) as origin, open_socket(context, zmq.PULL) as reader:
    reader.connect(f"tcp://127.0.0.1:{origin.bind_to_random_port('tcp://127.0.0.1')}")
    sent = received = 0
    while origin.poll(300, zmq.POLLOUT):
        origin.send(bytes(100_000))
        sent += 1
    time.sleep(3)
    while reader.poll(500):
        reader.recv()
        received += 1
    print(sent > 32, received == sent)
context.term()
"""


@pytest.mark.slow
def test_who_reads_nothing_for_seconds_lives_on_and_loses_nothing() -> None:
    # in a process of its own, since heartbeats of libzmq ended it
    done = subprocess.run(
        [sys.executable, "-c", SLOW_READER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr
