"""The original's protocol, as a peer that `benchmarks.master` measures beside `mode="master"`. It is our own code.

    worker                                   driver program
    fetch_model     -- GET /model  -->       pickle.dumps(model), made anew after every change
    gradient(model, rows)
    send_gradient   -- POST /update -->      pickle.loads, then descent(model, update) under a lock

It is written from the description of DeepDist (http://deepdist.com): a model server in the driver program, a copy of
the model for each call of `gradient`, and `descent` on the server. Each request is a connection and a thread of its
own. What is read here is unpickled, so the server is for this machine and for this measurement only.
"""

from __future__ import annotations

import http.server
import multiprocessing
import pickle
import threading
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any

TIMEOUT_S = 120.0
WORKERS_TIMEOUT_S = 600.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past all proxies: the server is on this machine."""


class Server(http.server.ThreadingHTTPServer):
    """The model server; `address` is where it is."""

    request_queue_size = 128  # else connections of more than five workers may wait a second
    daemon_threads = True

    def __init__(self, model: Any, descent: Callable[[Any, Any], Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.model = model
        self.address = f"http://127.0.0.1:{self.server_port}"
        self._descent = descent
        self._lock = threading.Lock()
        self._pickled: bytes | None = None
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def pickled(self) -> bytes:
        """The model as it is now."""
        with self._lock:
            if self._pickled is None:
                self._pickled = pickle.dumps(self.model)
            return self._pickled

    def update(self, pickled: bytes) -> None:
        """Apply one update."""
        update = pickle.loads(pickled)
        with self._lock:
            self._descent(self.model, update)
            self._pickled = None


class _Requests(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(200, self.server.pickled()) if self.path == "/model" else self._answer(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/update":
            self._answer(404, b"")
            return
        self.server.update(body)
        self._answer(200, b"OK")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a line for each request would cost as much as a small update."""


def fetch_model(address: str) -> Any:
    """The server's model, as a copy of one's own."""
    with OPENER.open(f"{address}/model", timeout=TIMEOUT_S) as answer:
        return pickle.loads(answer.read())


def send_gradient(update: Any, address: str) -> None:
    """Have the server apply an update; returns when it has."""
    request = urllib.request.Request(f"{address}/update", data=pickle.dumps(update), method="POST")
    with OPENER.open(request, timeout=TIMEOUT_S) as answer:
        answer.read()


Link = tuple[Callable[[str], Any], Callable[[Any, str], Any]]
"""(fetch a model, send an update), each given an address."""
LINK: Link = fetch_model, send_gradient


def work(link: Link, address: str, gradient: Callable[[Any, Any], Any], partition: Any, epochs: int) -> None:
    """A worker: fetch -> gradient -> send, for each row of its partition."""
    fetch, send = link
    for _ in range(epochs):
        rows: Iterable[Any] = partition() if callable(partition) else partition
        for row in rows:
            send(gradient(fetch(address), iter([row])), address)


def run_workers(
    link: Link, address: str, gradient: Callable[[Any, Any], Any], partitions: Sequence[Any], epochs: int = 1
) -> None:
    """A process for each partition; returns when all have ended.

    Raises:
        RuntimeError: one failed, or takes too long.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(link, address, gradient, each, epochs)) for each in partitions]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(WORKERS_TIMEOUT_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"{len(failed)} of {len(processes)} workers ended with {failed[0]}")


def train(
    model: Any, partitions: Sequence[Any], gradient: Callable[[Any, Any], Any], descent: Any, epochs: int = 1
) -> Any:
    """`DeepDist(model).train(...)` of the original: a server, and a worker for each partition. Returns the model."""
    with Server(model, descent) as server:
        run_workers(LINK, server.address, gradient, partitions, epochs)
    return model
