"""`fetch_model` and `send_gradient`, and the lines of the documents, against a server on loopback."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import fetch_model, send_gradient
from p2p.http import client
from p2p.http.client import RefusedError

Serve = Callable[..., Any]
MASTER_MD = Path(__file__).resolve().parents[3] / "docs" / "MASTER.md"
ONES = {"w": np.ones((2, 3), np.float32)}
TOKEN = "a-token-of-thirty-two-characters"
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def _links() -> Iterator[None]:
    yield
    while client._links.of:
        client._links.of.popitem()[1]._connection.close()


def test_the_model_is_fetched_with_its_version_and_is_the_callers_own(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    training.version = 3
    first = fetch_model(serving.server.address)
    assert (first.version, first["w"].tolist()) == (3, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    first["w"][:] = -1
    assert fetch_model(serving.server.address)["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_model_that_has_not_changed_comes_once(serve: Serve) -> None:
    serving = serve()
    serving.train()
    fetch_model(serving.server.address)
    link = client._link(serving.server.address, None)
    content = link.content
    fetch_model(serving.server.address)
    assert link.content is content
    send_gradient(ONES, serving.server.address)
    assert fetch_model(serving.server.address)["w"][0, 0] == 1
    assert link.content is not content
    assert len(serving.server._connections) == 1, "one connection for all of it"


def test_a_model_of_ones_own_is_filled(serve: Serve) -> None:
    class Mine:
        def __init__(self) -> None:
            self.w = np.zeros((2, 3), np.float32)
            self.n = np.ones(2, np.int64)
            self.other = np.ones(1)

    serving, mine = serve(), Mine()
    fetch_model(serving.server.address, mine)
    assert (mine.w.tolist(), mine.n.tolist(), mine.other.tolist()) == ([[0, 1, 2], [3, 4, 5]], [0, 0], [1])
    with pytest.raises(UsageError, match="the master's model is another than the one to fill: 'w': shape"):
        fetch_model(serving.server.address, {"w": np.zeros(1, np.float32), "n": np.zeros(2, np.int64)})


def test_an_update_is_applied_as_of_the_version_that_was_fetched_last(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    training.version = 5
    assert send_gradient(ONES, serving.server.address)
    fetch_model(serving.server.address)
    assert send_gradient(ONES, serving.server.address, worker="mine")
    assert send_gradient(ONES, serving.server.address, version=2)
    assert [merged_at for _, _, _, merged_at in training.updates] == [None, 6, 2]
    assert [worker for _, _, worker, _ in training.updates][1] == "mine"
    assert len({unit for _, unit, _, _ in training.updates}) == 3


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_not_sent(nothing: Any) -> None:
    assert send_gradient(nothing, "127.0.0.1:1") is False, "nobody listens there"


def test_a_unit_counts_once(serve: Serve) -> None:
    serving = serve()
    serving.train()
    assert [send_gradient(ONES, serving.server.address, unit="u") for _ in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    "update",
    [
        {"w": {1: np.ones(3, np.float32)}},
        [np.ones(2), ("text", 1.5, None)],
        {"w": 2.0},
        {"w": np.float32(2)},
        {3: np.ones(2)},
    ],
    ids=["rows", "a list", "a number", "a scalar", "a row"],
)
def test_whatever_a_gradient_returns_is_sent(serve: Serve, update: Any) -> None:
    serving = serve()
    training = serving.train(lambda model, update: None)
    assert send_gradient(update, serving.server.address)
    assert repr(training.updates[0][0]) == repr(update)


def test_what_the_master_refuses_is_raised_with_its_words(serve: Serve) -> None:
    serving = serve(token=TOKEN)
    address = serving.server.address
    for token in (None, TOKEN[:-1] + "x"):
        with pytest.raises(RefusedError, match="no token, or another one") as caught:
            fetch_model(address, token=token)
        assert caught.value.status == 401
    with pytest.raises(RefusedError, match="no training runs") as caught:
        send_gradient(ONES, address, token=TOKEN)
    assert caught.value.status == 409
    serving.train()
    with pytest.raises(RefusedError, match=r"'w': shape \(1,\), expected \(2, 3\)") as caught:
        send_gradient({"w": np.ones(1)}, address, token=TOKEN)
    assert caught.value.status == 422
    with pytest.raises(RefusedError, match=r"an update of \d+ bytes, expected at most"):
        send_gradient({"w": np.ones(1 << 20)}, address, token=TOKEN)
    assert send_gradient(ONES, address, token=TOKEN)


def test_what_cannot_be_sent_is_told_here(serve: Serve) -> None:
    with pytest.raises(UsageError, match="the update cannot be sent: 'w' has dtype complex128"):
        send_gradient({"w": np.ones(1, complex)}, "127.0.0.1:1")
    with pytest.raises(UsageError, match="update is a set"):
        send_gradient({1, 2}, "127.0.0.1:1")
    for address in ("host", "", "host:port"):
        with pytest.raises(UsageError, match=r'expected "host:port", as dd\.master says'):
            fetch_model(address)


def test_who_does_not_answer_is_given_up(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            fetch_model(address, timeout_s=0.2)
    with pytest.raises(ConnectionRefusedError):
        fetch_model(address, timeout_s=0.2)


class Flaky:
    """A proxy that hangs up on the first requests, after the master had them."""

    def __init__(self, to: tuple[str, int], cuts: int) -> None:
        self.to, self.cuts = to, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                ours, _ = self.listener.accept()
            except OSError:
                return
            with ours, socket.create_connection(self.to, TIMEOUT_S) as theirs:
                ours.settimeout(TIMEOUT_S)
                asked = ours.recv(1 << 20)
                while b"\r\n\r\n" not in asked:
                    asked += ours.recv(1 << 20)
                head, _, body = asked.partition(b"\r\n\r\n")
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += ours.recv(1 << 20)
                asked = head + b"\r\nConnection: close\r\n\r\n" + body
                theirs.sendall(asked)
                told = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
                if self.cuts:
                    self.cuts -= 1
                    continue
                ours.sendall(told)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_a_post_whose_answer_was_lost_is_sent_again_and_counts_once(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    flaky = Flaky(serving.address, cuts=2)
    try:
        assert send_gradient(ONES, flaky.address) is True, "by the first try"
    finally:
        flaky.close()
    assert training.version == 1
    assert serving.server.face.gate.known == 2


def test_a_connection_that_the_master_has_closed_is_opened_again(serve: Serve) -> None:
    from p2p.http.connection import Limits

    serving = serve(limits=Limits(idle_s=0.05))
    serving.train()
    for _ in range(3):
        assert send_gradient(ONES, serving.server.address)
        while serving.server._connections:
            threading.Event().wait(0.01)


def test_who_only_fetches_and_sends_imports_numpy_and_little_else() -> None:
    unwanted = {"zmq", "msgspec", "xxhash", "scipy", "gensim", "pyspark", "h11", "p2p.deepdist", "p2p.adapters"}
    program = f"import sys, p2p; p2p.fetch_model, p2p.send_gradient; print(*sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.split() == []


def test_the_lines_of_the_documents_take_part(serve: Serve) -> None:
    blocks = re.findall(r"```python\n(.*?)```", MASTER_MD.read_text(), re.DOTALL)
    (lines,) = [block for block in blocks if "urllib" in block]
    names: dict[str, Any] = {}
    exec(lines, names)
    serving = serve({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(2.5)}, token=TOKEN)
    serving.train()
    at = f"http://{serving.server.address}", TOKEN
    assert names["fetch"](*at)["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert names["fetch"](*at)["b"] == 2.5
    assert b'"applied": true' in names["send"](*at, "w", np.ones((2, 3)))
    assert names["fetch"](*at)["w"].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
