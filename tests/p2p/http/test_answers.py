"""What a master answers: every status, to requests that are written out byte by byte."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from gossip.errors import UsageError
from p2p.http.connection import Limits
from p2p.http.tensors import packed
from p2p.server.any_update import flatten

Serve = Callable[..., Any]
TENSORS = "application/x-safetensors"
TIMEOUT_S = 60.0
TOKEN = "a-token-of-thirty-two-characters"
ONES = {"w": np.ones((2, 3), np.float32)}


def test_the_model_is_sent_as_safetensors_with_its_version(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    training.version = 7
    answer = serving.ask("GET", "/model")
    assert (answer.status, answer.headers["Content-Type"]) == (200, TENSORS)
    assert answer.headers["DeepDist-Version"] == "7"
    found = safetensors.numpy.load(answer.content)
    assert {name: array.tolist() for name, array in found.items()} == {
        "w": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "n": [0, 0],
    }


def test_what_has_not_changed_is_not_sent_again(serve: Serve, settled: Any) -> None:
    serving = serve()
    serving.train()
    etag = serving.ask("GET", "/model").headers["ETag"]
    for known in (etag, f'"another", W/{etag}', "*"):
        again = serving.ask("GET", "/model", headers={"If-None-Match": known})
        assert (again.status, again.content) == (304, b"")
        assert (again.headers["ETag"], again.headers["DeepDist-Version"]) == (etag, "0")
    assert settled(lambda: [copy.readers for copy in serving.server.face._copies._copies], [0]) == [0]
    assert serving.post(ONES).status == 200
    changed = serving.ask("GET", "/model", headers={"If-None-Match": etag})
    assert changed.status == 200
    assert changed.headers["ETag"] != etag


def test_without_a_training_the_model_is_the_users_own_as_it_is_now(serve: Serve) -> None:
    serving = serve()
    first = serving.ask("GET", "/model")
    serving.model["w"][0, 0] = 9
    second = serving.ask("GET", "/model")
    assert safetensors.numpy.load(second.content)["w"][0, 0] == 9
    assert first.headers["ETag"] != second.headers["ETag"]
    serving.train().version = 1
    serving.model["w"][0, 0] = 10
    assert safetensors.numpy.load(serving.ask("GET", "/model").content)["w"][0, 0] == 9, "of the training"
    serving.end()
    assert safetensors.numpy.load(serving.ask("GET", "/model").content)["w"][0, 0] == 10
    assert serving.refreshed == [], "nobody but the user writes to the model when no training is under way"


def test_a_model_that_was_sent_before_a_training_is_not_taken_for_its_first(serve: Serve) -> None:
    serving = serve()
    serving.ask("GET", "/model")
    serving.model["w"][0, 0] = 9
    serving.train()
    answer = serving.ask("GET", "/model")
    assert answer.headers["DeepDist-Version"] == "0"
    assert safetensors.numpy.load(answer.content)["w"][0, 0] == 9


def test_the_same_version_of_the_next_training_is_another_model(serve: Serve) -> None:
    serving = serve()
    for number in (5, 6):
        serving.model["w"][0, 0] = number
        serving.train()
        assert safetensors.numpy.load(serving.ask("GET", "/model").content)["w"][0, 0] == number
        serving.end()


def test_a_unit_that_counted_in_one_training_is_known_in_the_next(serve: Serve) -> None:
    serving, told = serve(), []
    for _ in range(2):
        serving.train()
        told.append(serving.post(ONES, "?unit=a").told["outcome"])
        serving.end()
    assert told == ["applied", "known"]


def test_while_a_training_ends_its_result_is_sent(serve: Serve) -> None:
    serving = serve()
    with serving.server.face.training(None):
        serving.train()
        assert serving.post(ONES).status == 200
        serving.end()
        serving.training.version = 1  # type: ignore[union-attr]
        serving.ask("GET", "/model")
        assert serving.refreshed == [1]


def test_an_update_is_applied_and_a_unit_once(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    answer = serving.post(ONES, DeepDist_Unit="u1", DeepDist_Worker="host 7", DeepDist_Version="0")
    assert (answer.status, answer.told) == (200, {"outcome": "applied", "applied": True, "version": 1})
    again = serving.post(ONES, "?unit=u1")
    assert (again.status, again.told) == (200, {"outcome": "known", "applied": False, "version": 1})
    assert serving.post({}).told == {"outcome": "empty", "applied": False, "version": 1}
    (update, _, worker, version), *others = training.updates
    assert (worker, version, others) == ("host 7", 0, [])
    np.testing.assert_array_equal(update["w"], ONES["w"])
    assert training.model["w"].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_a_structured_update_is_what_a_gradient_has_returned(serve: Serve) -> None:
    from scipy import sparse

    serving = serve()
    training = serving.train(lambda model, update: None)
    sent = {"step": 0.5, "parts": [(1, "two"), {3: np.ones(2)}], "matrix": sparse.csr_matrix(np.eye(3)), "none": None}
    answer = serving.post(packed(flatten(sent), {"deepdist": "structured"}))
    assert answer.status == 200, answer.content
    found = training.updates[0][0]
    assert (found["step"], found["parts"][0], found["none"]) == (0.5, (1, "two"), None)
    assert found["parts"][1][3].tolist() == [1.0, 1.0]
    assert found["matrix"].toarray().tolist() == np.eye(3).tolist()


def test_rows_of_an_array_are_an_update(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    training.descent = lambda model, update: model["w"].__setitem__(1, model["w"][1] + update["w"][1])
    body = packed(flatten({"w": {1: np.ones(3, np.float32)}}), {"deepdist": "structured"})
    assert serving.post(body).status == 200
    assert training.model["w"].tolist() == [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]
    wrong = serving.post(packed(flatten({"w": {2: np.ones(3, np.float32)}}), {"deepdist": "structured"}))
    assert (wrong.status, wrong.why) == (422, "the update's 'w' has row 2, expected 0 to 1")


def test_what_is_unpacked_counts_against_the_memory_for_bodies(serve: Serve) -> None:
    serving = serve({"w": np.zeros((1000, 4))})
    used: list[int] = []
    serving.train(lambda model, update: used.append(serving.server.budget.used))
    mostly_zeros = np.zeros((1000, 4))
    mostly_zeros[7] = 1
    body = packed(flatten({"w": mostly_zeros}), {"deepdist": "structured"})
    assert serving.post(body).status == 200
    assert used == [len(body) + mostly_zeros.nbytes]


def test_the_body_may_come_in_chunks(serve: Serve) -> None:
    serving = serve()
    serving.train()
    body = packed(ONES)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    headers = {"Content-Type": TENSORS, "Transfer-Encoding": "chunked"}
    answer = serving.ask("POST", "/update", chunks + b"0\r\n\r\n", headers)
    assert answer.told["applied"]


def test_who_asks_first_is_told_to_go_on_or_is_refused_before_it_sends(serve: Serve) -> None:
    serving = serve()
    serving.train()
    body = packed(ONES)
    head = f"POST /update HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: {TENSORS}\r\n"
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        sock.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(1 << 10).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert serving.received(sock).told["applied"]
    answer = serving.raw(f"{head}Content-Length: {1 << 40}\r\n\r\n".encode())
    assert answer.status == 413


def test_many_requests_go_over_one_connection(serve: Serve) -> None:
    serving = serve()
    serving.train()
    body = bytes(packed(ONES))
    one = f"POST /update HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: {len(body)}\r\n".encode()
    one = one.replace(b"Host: x", b"Host: localhost")
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        sock.sendall((one + b"\r\n" + body) * 9 + one + b"Connection: close\r\n\r\n" + body)
        content = bytearray()
        while piece := sock.recv(1 << 16):
            content += piece
    assert content.count(b"HTTP/1.1 200") == 10
    assert serving.training is not None
    assert serving.training.version == 10


def test_the_status_tells_what_was_applied_and_refused(serve: Serve) -> None:
    serving = serve()
    assert serving.ask("GET", "/status").told["training"] is False
    serving.train()
    for version in (0, 0, 1):
        serving.post(ONES, f"?version={version}")
    serving.post(ONES, "?unit=a")
    serving.post(ONES, "?unit=a")
    serving.post({"x": np.zeros(1)})
    serving.ask("GET", "/nothing")
    told = serving.ask("GET", "/status").told
    assert told == {
        "version": 4,
        "training": True,
        "applied": 4,
        "known": 1,
        "empty": 0,
        "refused": {"404": 1, "422": 1},
        "staleness": {"updates": 3, "median": 1.0, "p95": 1.0, "max": 1},
        "update_bytes_max": told["update_bytes_max"],
        "model": {"bytes": 128, "arrays": {"n": ["int64", [2]], "w": ["float32", [2, 3]]}},
    }


def test_the_page_is_escaped_and_loads_nothing(serve: Serve) -> None:
    serving = serve({"<script>alert(1)</script>": np.zeros(2)})
    answer = serving.ask("GET", "/")
    page = answer.content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "src=" not in page
    assert "href=" not in page
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("target", ["/", "/model", "/status"])
def test_a_head_has_the_headers_and_no_body(serve: Serve, target: str) -> None:
    serving = serve()
    serving.train()
    whole, bare = serving.ask("GET", target), serving.ask("HEAD", target)
    assert (bare.status, bare.content) == (200, b"")
    assert bare.headers["Content-Length"] == str(len(whole.content))


def test_what_follows_a_head_is_told_in_full(serve: Serve) -> None:
    serving = serve()
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        sock.sendall(b"HEAD /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(1 << 12).startswith(b"HTTP/1.1 200")
        sock.sendall(b"nonsense\r\n\r\n")
        assert serving.received(sock).why.startswith("this is no HTTP/1.1")


def test_a_proposal_to_switch_protocols_is_not_taken_up(serve: Serve) -> None:
    serving = serve()
    lines = b"Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        for _ in range(2):
            sock.sendall(b"GET /status HTTP/1.1\r\n" + lines)
            assert serving.received(sock).status == 200


ASKED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "no path": (404, "nothing is at '/console'", {"target": "/console", "method": "GET"}),
    "no shutdown": (404, "nothing is at '/shutdown'", {"target": "/shutdown"}),
    "a method": (405, "'DELETE' of /model, expected GET, HEAD", {"target": "/model", "method": "DELETE"}),
    "an update that is read": (405, "'GET' of /update, expected POST", {"method": "GET", "body": None}),
    "no type": (415, "Content-Type '', expected application/x-safetensors", {"kind": None}),
    "a form": (415, "Content-Type 'application/x-www-form", {"kind": "application/x-www-form-urlencoded"}),
    "a zip": (415, "Content-Encoding 'gzip'", {"headers": {"Content-Encoding": "gzip"}}),
    "a pickle": (415, "a pickle runs code", {"kind": "application/x-pickle", "body": pickle.dumps(ONES)}),
    "a pickle of old": (415, "a pickle runs code", {"kind": "application/deepdist", "body": pickle.dumps(ONES, 2)}),
    "a pickle in disguise": (415, "a pickle runs code", {"body": pickle.dumps(ONES)}),
    "no length": (411, "neither Content-Length", {"body": None}),
    "too much": (413, "an update of 70000 bytes, expected at most 65536", {"body": bytes(70_000)}),
    "no tensors": (400, "these are no safetensors", {"body": b"0123456789"}),
    "two lengths": (
        400,
        "Content-Length and Transfer-Encoding, expected one",
        {"body": b"1\r\nx\r\n0\r\n\r\n", "headers": {"Transfer-Encoding": "chunked", "Content-Length": "11"}},
    ),
    "a version": (400, "version '-1', expected the number", {"target": "/update?version=-1"}),
    "a version of words": (400, "version 'one'", {"headers": {"DeepDist-Version": "one"}}),
    "a version of many digits": (400, "version '1111", {"target": "/update?version=" + "1" * 30}),
    "a version to come": (412, "version 5, and the model is at 0", {"target": "/update?version=5"}),
    "a version twice": (
        400,
        "version is told twice",
        {"target": "/update?version=0", "headers": {"DeepDist-Version": "1"}},
    ),
    "a unit": (400, "unit '<b>', expected", {"target": "/update?unit=<b>"}),
    "a long unit": (400, "unit 'uuu", {"target": "/update?unit=" + "u" * 129}),
    "a worker": (400, "worker 'a\\\\x00b', expected", {"target": "/update?worker=a%00b"}),
    "a unit twice": (
        400,
        "the header deepdist-unit is there several times",
        {"headers": {"DeepDist-Unit": "a", "deepdist-unit": "a"}},
    ),
    "a query": (400, "the query has 'debug'", {"target": "/update?debug=1"}),
    "a query of nothing": (400, "the query '&&'", {"target": "/update?&&"}),
    "a host": (421, "Host 'evil.example'", {"headers": {"Host": "evil.example"}}),
    "a page": (403, "a post from a page of 'http://evil.example'", {"headers": {"Origin": "http://evil.example"}}),
    "a name": (422, "the update has 'x', expected some of the model's arrays", {"body": {"x": np.zeros(2)}}),
    "a shape": (422, r"'w': shape \(3, 2\), expected \(2, 3\)", {"body": {"w": np.zeros((3, 2), np.float32)}}),
    "a dtype": (422, "'n': dtype float64, expected int64", {"body": {"n": np.zeros(2)}}),
    "a NaN": (422, "'w': 1 of 6 numbers are NaN or infinite", {"body": {"w": np.array([[np.nan, 0, 0], [0, 0, 0]])}}),
    "numbers beyond": (422, "'w' has numbers beyond float32", {"body": {"w": np.full((2, 3), 1e300)}}),
    "a structure": (
        400,
        "the structure of the update",
        {"body": packed({"a0": np.ones(1)}, {"deepdist": "structured"})},
    ),
}


@pytest.mark.parametrize("which", ASKED)
def test_what_is_refused_is_told_with_a_reason(serve: Serve, which: str) -> None:
    status, why, asked = ASKED[which]
    serving = serve(update_bytes_max=1 << 16)
    serving.train()
    body = asked.get("body", ONES)
    headers = {"Content-Type": asked.get("kind", TENSORS), **asked.get("headers", {})}
    headers = {name: value for name, value in headers.items() if value is not None}
    content = packed(body) if isinstance(body, dict) else body
    target = asked.get("target", "/update")
    answer = serving.ask(asked.get("method", "POST"), target, content, headers)
    assert answer.status == status, answer.content
    with pytest.raises(Exception, match=why):
        raise Exception(answer.why)
    assert serving.training is not None
    assert serving.training.version == 0
    assert serving.post(ONES).told["applied"]


def test_without_a_training_a_post_is_told_to_wait(serve: Serve) -> None:
    serving = serve()
    for _ in ("before", "after"):
        answer = serving.post(ONES)
        assert (answer.status, answer.why[:19]) == (409, "no training runs, e")
        assert answer.headers["Retry-After"] == "1"
        unread = serving.ask("POST", "/update", b"", {"Content-Type": TENSORS, "Content-Length": "1000"})
        assert unread.status == 409, "before a byte of the body was read"
        serving.train()
        serving.end()


def test_a_post_that_comes_when_a_training_ends_is_told_so(serve: Serve) -> None:
    serving = serve()
    serving.train().closed = True
    assert serving.post(ONES).status == 409
    assert serving.ask("GET", "/model").status == 200, "the user's own"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_with_a_token_nothing_goes_without_it(serve: Serve, method: str) -> None:
    serving = serve(token=TOKEN)
    serving.train()
    target, body = ("/status", None) if method == "GET" else ("/update", packed(ONES))
    kind = {"Content-Type": TENSORS}
    basic = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    for shown in (None, "", TOKEN, f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", "Basic ====", f"Digest {TOKEN}"):
        answer = serving.ask(method, target, body, kind | ({} if shown is None else {"Authorization": shown}))
        assert (answer.status, answer.why[:8]) == (401, "no token")
        assert TOKEN not in answer.content.decode()
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert serving.ask(method, target, body, kind | {"Authorization": f"Bearer {TOKEN}"}).status == 200
    by_browser = serving.ask(method, target, body, kind | {"Authorization": f"Basic {basic}"})
    assert by_browser.status == (200 if method == "GET" else 401), "a browser adds it to posts of other pages, too"
    unread = serving.ask("POST", "/update", b"", kind | {"Content-Length": "1000"})
    assert unread.status == 401, "before a byte of the body was read"


def test_pickles_are_opened_where_that_was_allowed(serve: Serve) -> None:
    serving = serve(allow_pickle=True)
    training = serving.train()
    for kind in ("application/x-pickle", "application/deepdist"):
        answer = serving.ask("POST", "/update", pickle.dumps(ONES), {"Content-Type": kind})
        assert answer.told["applied"]
    assert training.model["w"][0, 0] == 2
    broken = serving.ask("POST", "/update", b"\x80nonsense", {"Content-Type": "application/x-pickle"})
    assert (broken.status, broken.why[:27]) == (400, "the pickle cannot be opened")
    wrong = serving.ask("POST", "/update", pickle.dumps({"x": 1}), {"Content-Type": "application/x-pickle"})
    assert wrong.status == 422


def test_a_descent_that_raises_ends_the_training_and_is_told(serve: Serve) -> None:
    def descent(model: Any, update: Any) -> None:
        raise ZeroDivisionError("by hand")

    serving = serve()
    training = serving.train(descent)
    answer = serving.post(ONES)
    assert (answer.status, "ZeroDivisionError: by hand" in answer.why) == (500, True)
    assert isinstance(training.error, ZeroDivisionError)
    assert serving.post(ONES).status == 500, "the lock is not held: it is told the same"
    assert serving.ask("GET", "/model").status == 200
    serving.end()
    assert serving.post(ONES).status == 409


def test_a_slow_head_is_told_so_and_a_silent_connection_is_closed(serve: Serve) -> None:
    serving = serve(limits=Limits(head_s=0.2))
    for _ in range(100):  # where this test itself is held up, nothing came at all
        with socket.create_connection(serving.address, TIMEOUT_S) as sock:
            try:
                sock.sendall(b"GET /model HT")
                answer = serving.received(sock)
            except ConnectionError:
                continue
        break
    assert (answer.status, answer.why) == (408, "the head of a request took more than 0.2 s")
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        assert sock.recv(1) == b""


@pytest.mark.parametrize(
    ("framing", "body"), [("Content-Length: 100", b"some"), ("Transfer-Encoding: chunked", b"4\r\nsome\r\n")]
)
def test_a_slow_body_is_told_so(serve: Serve, settled: Any, framing: str, body: bytes) -> None:
    serving = serve(limits=Limits(grace_s=0.2, bytes_s_min=1 << 30))
    serving.train()
    head = f"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TENSORS}\r\n{framing}\r\n\r\n".encode()
    answer = serving.raw(head + body)
    assert (answer.status, " bytes came in " in answer.why) == (408, True)
    assert settled(lambda: serving.server.budget.used, 0) == 0


def test_who_is_refused_while_it_sends_may_finish_and_reads_why(serve: Serve) -> None:
    serving = serve(update_bytes_max=1 << 16)
    serving.train()
    body = bytes(8 << 20)
    head = f"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TENSORS}\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(serving.address, TIMEOUT_S) as sock:
            sock.sendall(head.encode())
            sock.sendall(body)
            assert serving.received(sock).status == 413


def test_a_body_that_trickles_is_cut_off_though_it_never_stops(serve: Serve) -> None:
    serving = serve(limits=Limits(grace_s=0.2, bytes_s_min=1 << 30))
    serving.train()
    head = f"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TENSORS}\r\nContent-Length: 100000\r\n\r\n"
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        sock.sendall(head.encode())
        sock.settimeout(0.01)
        for _ in range(6000):
            try:
                if sock.recv(1, socket.MSG_PEEK):
                    break
            except TimeoutError:
                sock.sendall(b"x")
        sock.settimeout(TIMEOUT_S)
        assert serving.received(sock).status == 408


def test_who_does_not_read_its_answer_is_let_go(serve: Serve, settled: Any) -> None:
    serving = serve({"w": np.zeros(1 << 21)}, limits=Limits(grace_s=0.2, bytes_s_min=1 << 30))
    serving.train()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(serving.address)
        sock.settimeout(TIMEOUT_S)
        sock.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
        assert settled(lambda: len(serving.server._connections), 0) == 0
    assert all(copy.readers == 0 for copy in serving.server.face._copies._copies)
    assert serving.ask("GET", "/status").status == 200


def test_connections_beyond_the_limit_are_told_to_come_later(serve: Serve, settled: Any) -> None:
    serving = serve(connections_max=2)
    held = [socket.create_connection(serving.address, TIMEOUT_S) for _ in range(2)]
    for sock in held:
        sock.sendall(b"HEAD /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(1 << 12).startswith(b"HTTP/1.1 200")
    with socket.create_connection(serving.address, TIMEOUT_S) as sock:
        answer = serving.received(sock)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    for sock in held:
        sock.close()
    settled(lambda: len(serving.server._connections), 0)
    assert serving.ask("GET", "/status").status == 200


def test_a_taken_port_is_told(serve: Serve) -> None:
    from p2p.adapters.model import Model
    from p2p.http.server import Server
    from p2p.http.settings import Master

    serving = serve()
    second = Server(Master(serving.server.address), Model({"w": np.zeros(1)}), lambda: None)
    with pytest.raises(UsageError, match=f"master='{serving.server.address}' cannot be listened on"):
        second.open()
    second.close()


def test_a_stop_waits_for_updates_under_way_and_no_longer(serve: Serve) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def descent(model: Any, update: Any) -> None:
        entered.set()
        assert go_on.wait(TIMEOUT_S)

    serving = serve()
    training = serving.train(descent)
    answers: list[Any] = []
    poster = threading.Thread(target=lambda: answers.append(serving.post(ONES)))
    poster.start()
    assert entered.wait(TIMEOUT_S)
    stopped = threading.Event()
    stopper = threading.Thread(target=lambda: (serving.server.face.gate.stop(), stopped.set()))
    stopper.start()
    assert not stopped.wait(0.05)
    go_on.set()
    stopper.join()
    poster.join()
    assert answers[0].told["applied"]
    assert training.version == 1


def test_the_same_unit_at_the_same_time_counts_once(serve: Serve) -> None:
    serving = serve()
    training = serving.train()
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(serving.post(ONES, "?unit=same").told["outcome"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == ["applied"] + ["known"] * 7
    assert training.version == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_takes_part(serve: Serve, tmp_path: Path) -> None:
    serving = serve(token=TOKEN)
    serving.train()
    url, model, update = f"http://{serving.server.address}", tmp_path / "model", tmp_path / "update"
    auth = ("--silent", "--show-error", "--max-time", "60", "-H", f"Authorization: Bearer {TOKEN}")

    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", *auth, *arguments], capture_output=True, text=True, check=True, timeout=120
        ).stdout

    curl("-o", str(model), "-D", str(tmp_path / "head"), f"{url}/model")
    assert safetensors.numpy.load_file(model)["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert "deepdist-version: 0" in (tmp_path / "head").read_text().lower()
    safetensors.numpy.save_file(ONES, update)
    sent = curl("-H", f"Content-Type: {TENSORS}", "--data-binary", f"@{update}", f"{url}/update?version=0&unit=curl-1")
    assert json.loads(sent)["applied"] is True
    assert json.loads(curl(f"{url}/status"))["applied"] == 1
    assert "DeepDist master" in curl(f"{url}/")
