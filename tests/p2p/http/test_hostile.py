"""Two hundred requests of somebody who means harm, drawn from a seed: each is refused with a reason, or hung up on.

None runs code, none changes the model, memory stays where it was, and whoever is honest is served meanwhile.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.http.connection import Limits
from p2p.http.tensors import packed

Serve = Callable[..., Any]
SEED = 20141130
REQUESTS = 200
TENSORS = "application/x-safetensors"
TIMEOUT_S = 60.0
UPDATE_BYTES_MAX = 1 << 16
GROWTH_BYTES_MAX = 64 << 20
"""Of this process, clients and all: a body that was held, or a structure that was unpacked, would take more."""
ONES = {"w": np.ones((64, 32), np.float32)}
QUICK = Limits(head_s=3.0, grace_s=3.0, bytes_s_min=1 << 20)
"""Too long for who is slow on purpose, and not for who waits for a core."""
PATHS = (
    "/../../etc/passwd",
    "/model/../update",
    "//model",
    "/model/",
    "/MODEL",
    "/model%00",
    "/%6dodel",
    "/model;a=b",
    "/console",
    "/shutdown",
    "/update/../../shutdown",
    "/static/..%2f..%2fetc/passwd",
    "http://evil.example/model",
    "*",
    "/.git/config",
    "/debug?__debugger__=yes&cmd=resource&f=debugger.js",
)


class Harm:
    """Makes `canary` when somebody opens it as a pickle."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def head(target: str = "/update", method: str = "POST", **lines: Any) -> bytes:
    named = {"Host": "localhost", "Content-Type": TENSORS, **{key.replace("_", "-"): lines[key] for key in lines}}
    text = f"{method} {target} HTTP/1.1\r\n"
    text += "".join(f"{key}: {value}\r\n" for key, value in named.items() if value is not None)
    return text.encode("latin-1") + b"\r\n"


def post(body: bytes | bytearray, **lines: Any) -> bytes:
    return head(Content_Length=len(body), **lines) + bytes(body)


def chunked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def safetensors(entries: Any, numbers: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def structured(tree: Any, **arrays: Any) -> bytearray:
    structure = np.frombuffer(json.dumps([tree, {}]).encode(), np.uint8)
    return packed({**arrays, "structure": structure}, {"deepdist": "structured"})


class Hostile:
    """Draws requests. Each is a kind, and bytes, or a function that is given the socket."""

    def __init__(self, canary: Path) -> None:
        self.draw = random.Random(SEED)
        self.canary = canary
        self.kinds = [getattr(self, name) for name in sorted(vars(Hostile)) if name.startswith("a_")]

    def request(self, number: int) -> tuple[str, Any]:
        kind = self.kinds[number % len(self.kinds)]  # each kind, many times
        return kind.__name__, kind()

    def a_pickle(self) -> bytes:
        body = pickle.dumps({"w": Harm(self.canary)}, self.draw.randint(0, 5))
        kinds = (
            TENSORS,
            "application/octet-stream",
            "application/x-pickle",
            "application/deepdist",
            None,
            "text/plain",
        )
        return post(body, Content_Type=self.draw.choice(kinds))

    def a_large_body(self) -> bytes:
        size = self.draw.choice((UPDATE_BYTES_MAX + 1, 1 << 20, 1 << 40, 10**19))
        return head(Content_Length=size) + bytes(min(size, self.draw.randint(0, 1 << 18)))

    def a_large_body_of_chunks(self) -> bytes:
        pieces = (bytes(self.draw.randint(1, 1 << 14)) for _ in range(40))
        return head(Transfer_Encoding="chunked") + b"".join(chunked(pieces)) + b"0\r\n\r\n"

    def a_body_without_end(self) -> Callable[[socket.socket], None]:
        piece = b"%x\r\n%b\r\n" % (1 << 12, bytes(1 << 12))

        def send(sock: socket.socket) -> None:
            sock.sendall(head(Transfer_Encoding="chunked"))
            for _ in range(100_000):  # 400 MB, if nobody stopped it
                sock.sendall(piece)
            raise AssertionError("a body without end was taken")

        return send

    def a_slow_sender(self) -> Callable[[socket.socket], None]:
        start = self.draw.choice((b"", b"POST /upd", head(Content_Length=1000), head(Transfer_Encoding="chunked")))

        def send(sock: socket.socket) -> None:
            sock.sendall(start)
            sock.settimeout(0.02)
            give_up = time.monotonic() + TIMEOUT_S
            while time.monotonic() < give_up:
                try:
                    if sock.recv(1, socket.MSG_PEEK) or True:
                        return  # it was told, or hung up on
                except TimeoutError:
                    sock.sendall(b"1")
            raise AssertionError("a slow sender was waited for")

        return send

    def a_wrong_array(self) -> bytes:
        shape = tuple(self.draw.randint(0, 70) for _ in range(self.draw.randint(0, 3)))
        arrays = (
            {"w": np.zeros((65, *shape), np.float32)[:40]},
            {"w": np.zeros((32, 64), self.draw.choice(("f2", "f4", "f8")))},
            {"w": np.zeros((64, 32), np.complex64).view(np.float32)},
            {"n": np.zeros(2, np.float32)},
            {"n": np.full(2, 1 << 40, np.int64)} | {"w": np.zeros(1)},
            {self.draw.choice(("x", "W", "", "w ", "../w", "__class__", "w" * 5000)): np.zeros((64, 32), np.float32)},
            {**ONES, "more": np.zeros(1)},
        )
        return post(packed(self.draw.choice(arrays)))

    def a_number_that_is_none(self) -> bytes:
        array = np.zeros((64, 32), self.draw.choice((np.float32, np.float64, np.float16)))
        array[self.draw.randrange(64), self.draw.randrange(32)] = self.draw.choice((np.nan, np.inf, -np.inf))
        if array.dtype == np.float64 and self.draw.random() < 0.5:
            array[:] = 1e300
        return post(packed({"w": array}))

    def a_broken_file(self) -> bytes:
        whole = bytes(packed(ONES))
        at = self.draw.randrange(1, len(whole))
        entry = {"dtype": "F32", "shape": [64, 32], "data_offsets": [0, 8192]}
        bodies = (
            whole[:at],
            whole + b"more",
            self.draw.randbytes(self.draw.randint(0, 2000)),
            struct.pack("<Q", self.draw.choice((0, 1 << 63, (1 << 64) - 1, 1 << 20))) + whole[8:],
            struct.pack("<Q", 40_000) + b"[" * 40_000,
            struct.pack("<Q", 40_000) + b'{"a":' * 8000,
            safetensors({"w": {**entry, "data_offsets": [-8192, 0]}}, bytes(8192)),
            safetensors({"w": entry, "n": entry}, bytes(8192)),
            safetensors({"w": {**entry, "shape": [1 << 40, 1 << 40]}}, bytes(8192)),
            safetensors({"w": {**entry, "dtype": "O"}}, bytes(8192)),
            safetensors({"w": {**entry, "code": "__import__('os')"}}, bytes(8192)),
        )
        return post(self.draw.choice(bodies))

    def a_structure_that_grows(self) -> bytes:
        few, ones = np.zeros(1, np.int64), np.ones(1)
        trees: tuple[Any, ...] = (
            [5, [1 << 40], "a0", "a1"],
            [5, [1 << 20, 1 << 20, 1 << 20], "a0", "a1"],
            [7, [1 << 40, 1], "csr", True, [1, "a1"], [[1, "a0"], [1, "a0"]]],
            [7, [1 << 20, 1 << 20], "dia", True, [1, "a1"], [[1, "a0"], [1, "a0"]]],
            [2, [[1, "a1"]] * 3 + [[1, "a7"]]],
            [6, "a0", [1, "structure"], None],
            [6, "a0", [0, 1], None],
            [5, [4], "a1", "a0"],
            [9, "os.system"],
            [1, "a0", "more"],
            "a0",
            None,
        )
        tree = self.draw.choice(trees)
        if self.draw.random() < 0.2:
            for _ in range(200):
                tree = [2, [tree]]
        return post(structured(tree, a0=few, a1=ones))

    def a_path(self) -> bytes:
        path = self.draw.choice(PATHS)
        return head(path, self.draw.choice(("GET", "HEAD", "PUT")).replace("HEAD", "GET"), Content_Length=0)

    def a_method(self) -> bytes:
        method, path = self.draw.choice(("DELETE", "PUT", "TRACE", "OPTIONS", "PATCH", "BREW")), "/model"
        return head(path, method, Content_Length=0)

    def a_header(self) -> bytes:
        body = bytes(packed(ONES))
        length = len(body)
        lines: tuple[bytes, ...] = (
            b"Content-Length: %d\r\nTransfer-Encoding: chunked" % length,
            b"Content-Length: %d\r\nContent-Length: %d" % (length, length + 1),
            b"Content-Length: +%d" % length,
            b"Content-Length: 0x%x" % length,
            b"Content-Length: -1",
            b"Content-Length: %s" % (b"9" * 50),
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Content-Length : %d" % length,
            b"Content-Length: %d\r\n folded: yes" % length,
            b"Content-Length: %d\r\nDeepDist-Version: 0\r\nDeepDist-Version: 1" % length,
            b"Content-Length: %d\r\nDeepDist-Unit: a\r\nDeepDist-Unit: b" % length,
            b"Content-Length: %d\r\nDeepDist-Unit: <script>" % length,
            b"Content-Length: %d\r\nDeepDist-Worker: \xff\xfe" % length,
            b"Content-Length: %d\r\nDeepDist-Version: %s" % (length, b"1" * 4000),
            b"Content-Length: %d\r\nX: a\x00b" % length,
            b"Content-Length: %d\r\nX: %s" % (length, b"x" * 40_000),
            b"Content-Length: %d\r\n%s" % (length, b"X: y\r\n" * 9000 + b"X: z"),
            b"Content-Length: %d\r\nOrigin: http://evil.example" % length,
            b"Content-Length: %d\r\nContent-Encoding: deflate" % length,
            b"Content-Length: %d\r\n(): }" % length,
        )
        start = b"POST /update HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-safetensors\r\n"
        return start + self.draw.choice(lines) + b"\r\n\r\n" + body

    def a_first_line(self) -> bytes:
        return self.draw.choice(
            (
                b"GET /model HTTP/2.0\r\n\r\n",
                b"GET /model\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
                b"GET  /model HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"GET /model HTTP/1.1\r\n\r\n",
                b"GET /model HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"GET /" + b"a" * 30_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"\x80\x04\x95" + bytes(200),
            )
        )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sent(serving: Any, request: Any) -> Any:
    """The answer; None if it was hung up on."""
    try:
        if not callable(request):
            return serving.raw(request)
        with socket.create_connection(serving.address, TIMEOUT_S) as sock:
            try:
                request(sock)
            except OSError:
                pass  # it was hung up on, and may have been told why
            sock.settimeout(TIMEOUT_S)
            return serving.received(sock)
    except ConnectionError:
        return None


@pytest.mark.slow
def test_two_hundred_hostile_requests_are_refused_and_the_honest_are_served(
    serve: Serve, settled: Any, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    serving = serve(
        {"w": np.zeros((64, 32), np.float32), "n": np.zeros(2, np.int32)}, QUICK, update_bytes_max=UPDATE_BYTES_MAX
    )
    training = serving.train()
    assert serving.post(ONES).told["applied"]
    before, hostile, honest = resident(), Hostile(canary), 1
    answered: list[Future[Any]] = []
    kinds: set[str] = set()
    with ThreadPoolExecutor(REQUESTS) as slow:
        for number in range(REQUESTS):
            kind, request = hostile.request(number)
            kinds.add(kind)
            if kind == "a_slow_sender":
                slow.submit(sent, serving, request).add_done_callback(answered.append)
                continue
            where = f"request {number} of seed {SEED}, {kind}: {request!r:.300}"
            answer = sent(serving, request)
            if answer is None:
                assert kind in ("a_body_without_end", "a_large_body"), where
            else:
                assert 400 <= answer.status < 500, where
                assert len(answer.why) > 10, where
            if number % 10 == 0:
                assert serving.post(ONES).told["applied"], where
                honest += 1
    told = [answer.status for answer in (each.result() for each in answered) if answer is not None]
    assert set(told) <= {400, 408}, "or hung up on"
    assert 408 in told
    assert len(kinds) == len(hostile.kinds)
    assert not canary.exists(), "it was opened"
    assert training.version == honest, "of no hostile request anything was applied"
    assert training.model["w"].tolist() == np.full((64, 32), honest, np.float32).tolist()
    assert serving.ask("GET", "/model").status == 200
    assert settled(lambda: serving.server.budget.used, 0) == 0
    assert resident() - before < GROWTH_BYTES_MAX
    status = serving.ask("GET", "/status").told
    assert status["applied"] == honest
    assert status["refused"].keys() <= {str(status) for status in range(400, 500)}


def test_the_canary_sings_where_pickles_are_allowed(serve: Serve, tmp_path: Path) -> None:
    """Else the test above would not tell."""
    serving = serve(allow_pickle=True)
    serving.train()
    canary = tmp_path / "canary"
    body = pickle.dumps({"w": Harm(canary)})
    serving.ask("POST", "/update", body, {"Content-Type": "application/x-pickle"})
    assert canary.exists()


@pytest.mark.slow
def test_many_large_bodies_and_slow_readers_at_once_do_not_fill_the_memory(serve: Serve, settled: Any) -> None:
    size = 16 << 20
    limits = Limits(grace_s=TIMEOUT_S)
    serving = serve({"w": np.zeros(size // 8)}, limits, update_bytes_max=size + 4096)
    serving.train().updates = deque(maxlen=0)
    body, ones = packed({"w": np.ones(size // 8)}), {"w": np.ones(size // 8)}
    before = resident()
    posters, readers = [], []
    try:
        for _ in range(12):  # 192 MB, of which all but the last bytes are sent
            sock = socket.create_connection(serving.address, TIMEOUT_S)
            posters.append(sock)
            threading.Thread(target=_send_most, args=(sock, body), daemon=True).start()
        for _ in range(12):
            sock = socket.create_connection(serving.address, TIMEOUT_S)
            sock.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
            readers.append(sock)
            assert serving.server.face.gate.submit(ones, None, "", None) == "applied"
        assert settled(lambda: sum(map(_is_told, posters)), 12 - 4) == 12 - 4, "there is room for four"
        assert serving.server.budget.used <= serving.server.budget.bytes_max
        assert len(serving.server.face._copies._copies) == 3
        assert resident() - before < 4 * size + 3 * size + GROWTH_BYTES_MAX
    finally:
        for sock in (*posters, *readers):
            sock.close()


def _send_most(sock: socket.socket, body: bytearray) -> None:
    try:
        sock.sendall(head(Content_Length=len(body)))
        sock.sendall(memoryview(body)[: -(1 << 10)])
    except OSError:
        pass  # it was refused


def _is_told(sock: socket.socket) -> bool:
    """It was refused: it has an answer to read."""
    try:
        sock.settimeout(0)
        return sock.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 503"
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        sock.settimeout(TIMEOUT_S)
