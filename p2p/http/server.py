"""The server of a master: a thread that accepts connections, and one for each of them, from `open` to `close`.

h11 parses; what is bounded, and how, is in `connection` and `budget`. A connection beyond the limit is told to come
later, and costs no thread.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable

from gossip.errors import UsageError
from gossip.zmq.sockets import is_loopback
from p2p.adapters.model import Model
from p2p.http import token_files
from p2p.http.budget import BODIES_MAX, Budget
from p2p.http.connection import Connection, Limits
from p2p.http.face import Face
from p2p.http.settings import Master, drawn

log = logging.getLogger("p2p")

BACKLOG = 64
CLOSE_TIMEOUT_S = 5.0
"""For answers that are under way when it is closed."""
ACCEPT_RETRY_S = 0.1
"""When the process has no file left for a connection."""
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%b"
)


class Server:
    """One for each session."""

    def __init__(self, given: Master, model: Model, refresh: Callable[[], None], limits: Limits | None = None) -> None:
        """`refresh` fills `model` with what a training came to."""
        self.settings = settings = drawn(given)
        self._leaves_token = settings is not given and is_loopback(settings.host)
        """Clients of this user find what was drawn."""
        self.face = Face(settings, model, refresh)
        self.address = settings.address
        """Where it listens, once it is open."""
        self._limits = limits or Limits()
        self.budget = Budget(BODIES_MAX * settings.body_bytes_max(model.own.nbytes))
        self._wake: socket.socket | None = None
        """Closed to have `_thread` end."""
        self._thread: threading.Thread | None = None
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Listen. `UsageError` if the address is taken, or is none of this machine's, or the token cannot be left."""
        host, port = self.settings.host, self.settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise UsageError(
                f"master={self.settings.address!r} cannot be listened on ({error}), expected a free port of an address "
                f"of this machine; port 0 finds one"
            ) from None
        self.address = token_files.address_of(listener.getsockname())
        if self._leaves_token:
            try:
                path = token_files.leave(self.address, self.settings.shown or "")
            except UsageError:
                listener.close()
                raise
            log.info("the master at %s asks for the token in %s", self.address, path)
        self._wake, woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, args=(listener, woken), name="deepdist-master", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections; answers that are under way have a few seconds."""
        if self._thread is None or self._wake is None:
            return
        self._wake.close()
        self._thread.join()
        self._thread = None
        if self._leaves_token:
            token_files.take_back(self.address, self.settings.shown or "")
        give_up = time.monotonic() + CLOSE_TIMEOUT_S
        with self._lock:
            left = dict(self._connections)
        for sock in left:
            _shut(sock, socket.SHUT_RD)  # who waits for a request hears of the end, and who answers may finish
        for thread in left.values():
            thread.join(max(0.0, give_up - time.monotonic()))
        for sock, thread in left.items():
            _shut(sock, socket.SHUT_RDWR)
            thread.join(max(0.1, give_up - time.monotonic()))

    def _run(self, listener: socket.socket, woken: socket.socket) -> None:
        """Accept until `_wake` is closed."""
        with listener, woken:
            while True:
                ready, _, _ = select.select([listener, woken], [], [])
                if woken in ready:
                    return
                try:
                    sock, _ = listener.accept()
                except OSError as error:
                    log.warning("the master could not accept a connection: %s", error)
                    time.sleep(ACCEPT_RETRY_S)
                    continue
                self._begin(sock)

    def _begin(self, sock: socket.socket) -> None:
        with self._lock:
            if len(self._connections) >= self.settings.connections_max:
                _turn_away(sock)
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="deepdist-master-answer", daemon=True)
            self._connections[sock] = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            with self._lock:
                del self._connections[sock]
            _turn_away(sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Connection(sock, self.face.answer, self.budget, self._limits).serve()
        except Exception:
            log.exception("a connection of the master failed")
        finally:
            with self._lock:
                del self._connections[sock]
            sock.close()


def _turn_away(sock: socket.socket) -> None:
    text = b'{"error": "all connections of the master are in use: come again", "status": 503}\n'
    try:
        sock.setblocking(False)
        sock.send(BUSY % (len(text), text))
    except OSError:
        pass  # it is closed either way
    finally:
        sock.close()


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        pass  # it is closed already
