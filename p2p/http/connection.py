"""One connection: requests one after the other, parsed by h11, each answered before the next is read.

    head (so many bytes, so many seconds) -> answer(request, body) -> [body, if it is asked for] -> reply

The body is read when the answer has looked at the head and asks for it: who is refused is not listened to any longer.
All waiting has an end: for a head, for the next piece of a body, and for a reader that takes no more of a reply.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h11

from p2p.http.budget import STEP_BYTES, Budget, Share
from p2p.http.messages import Refused, Reply, Request

log = logging.getLogger("p2p")

PIECE_BYTES = 1 << 16
"""Read at once of a body,"""
HEAD_PIECE_BYTES = 1 << 12
"""and of a head, whose limit h11 holds by what it has while the head is not whole."""
SENT_BYTES = 1 << 20
"""Written at once."""
LINGER_S, LINGER_BYTES = 2.0, 64 << 20
"""Who was refused while it sends may go on for so long: else its system drops the reply with the connection."""


@dataclass(frozen=True)
class Limits:
    """What one connection may take."""

    head_bytes_max: int = 16 << 10
    """As in h11 and IIS."""
    head_s: float = 10.0
    """From the first byte of a head, or from a connection's beginning, to its end."""
    idle_s: float = 60.0
    """Between two requests."""
    grace_s: float = 10.0
    """For a body or a reply, beside what its bytes take"""
    bytes_s_min: int = 256 << 10
    """at this rate: two megabits a second."""


class Slow(Exception):  # noqa: N818 - it is the other side that is
    """The other side did not do in time what it should."""


class Gone(Exception):  # noqa: N818
    """The other side has closed the connection, or it broke."""


class Connection:
    """Serves one socket in the thread of the caller."""

    def __init__(
        self, sock: socket.socket, answer: Callable[[Request, Body], Reply], budget: Budget, limits: Limits
    ) -> None:
        """`answer` may raise `Refused`."""
        self._sock = sock
        self._answer = answer
        self._budget = budget
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes_max)
        self._wants_body = True
        """The request is not one for a head alone."""

    def serve(self) -> None:
        """Answer requests until one side has had enough; closes the socket."""
        try:
            wait_s = self._limits.head_s
            while self._exchange(wait_s):
                wait_s = self._limits.idle_s
        except (Slow, Gone, OSError, h11.LocalProtocolError) as error:
            log.debug("a connection of the master ended: %s", error)
        finally:
            self._sock.close()

    def _exchange(self, wait_s: float) -> bool:
        """One request and its reply; False if there was none, or the connection is not to be used again."""
        self._wants_body = True
        with self._budget.share() as share:
            try:
                head = self._head(wait_s)
            except Refused as refused:
                self._reply(refused.reply(), close=True)
                return False
            if head is None:
                return False
            self._wants_body = head.method != b"HEAD"
            body = Body(self, head, share)
            try:
                reply = self._answer(_request(head), body)
            except Refused as refused:
                reply = refused.reply()
            try:
                if body.is_over and self._http.their_state is h11.SEND_BODY:
                    self._http.next_event()  # the end of a body of no bytes
                self._reply(reply, close=not body.is_over)
            finally:
                reply.sent()
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    # ------------------------------------------------------------------------------------------------- reading

    def _head(self, wait_s: float) -> h11.Request | None:
        """The next request; None if the other side has closed the connection."""
        begun = self._http.trailing_data[0] != b""
        deadline = time.monotonic() + (self._limits.head_s if begun else wait_s)
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise _malformed(error) from None
            if isinstance(event, h11.Request):
                return event
            if isinstance(event, h11.ConnectionClosed):
                return None
            try:
                self.receive(deadline, HEAD_PIECE_BYTES)
            except Slow:
                if not begun:
                    return None  # nobody has asked anything
                raise Refused(408, f"the head of a request took more than {self._limits.head_s:g} s") from None
            if not begun:
                begun, deadline = True, time.monotonic() + self._limits.head_s

    def receive(self, deadline: float, nbytes: int = PIECE_BYTES) -> None:
        """Give h11 what comes next."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise Slow("nothing came in time")
        self._sock.settimeout(left)
        try:
            piece = self._sock.recv(nbytes)
        except TimeoutError:
            raise Slow("nothing came in time") from None
        except OSError as error:
            raise Gone(str(error)) from None
        try:
            self._http.receive_data(piece)
        except RuntimeError:  # it was closed, and here is more
            raise Gone("it was closed") from None

    def next_data(self, deadline: Callable[[], float]) -> Any:
        """The next piece of the body; None at its end."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise _malformed(error) from None
            if isinstance(event, h11.Data):
                return event.data
            if isinstance(event, h11.EndOfMessage):
                return None
            if event is not h11.NEED_DATA:
                raise Gone("it was closed in the middle of a body")
            self.receive(deadline())

    # ------------------------------------------------------------------------------------------------- writing

    def go_on(self) -> None:
        """Tell who has asked first (Expect: 100-continue) that the body is wanted."""
        if self._http.they_are_waiting_for_100_continue:
            self._write([self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b""], 0)

    def _reply(self, reply: Reply, close: bool) -> None:
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            ("X-Content-Type-Options", "nosniff"),
            *reply.headers.items(),
        ]
        if reply.status == 304:
            del headers[:2]
        if close:
            headers.append(("Connection", "close"))
        try:
            event = h11.Response(status_code=reply.status, headers=headers)
            parts: list[Any] = [self._http.send(event) or b""]
            if len(reply.body) and self._has_body(reply):
                parts += self._http.send_with_data_passthrough(h11.Data(data=reply.body)) or []
            parts.append(self._http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:  # the other side broke the rules before
            raise Gone(str(error)) from None
        if len(reply.body) <= PIECE_BYTES:
            parts = [b"".join(parts)]  # one packet, mostly
        self._write(parts, len(reply.body))
        if close:
            self._linger()

    def _has_body(self, reply: Reply) -> bool:
        return reply.status != 304 and self._wants_body

    def _write(self, parts: Iterable[Any], nbytes: int) -> None:
        deadline = time.monotonic() + self._limits.grace_s + nbytes / self._limits.bytes_s_min
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), SENT_BYTES):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Slow("a reply was not taken in time")
                self._sock.settimeout(left)
                self._sock.sendall(view[start : start + SENT_BYTES])

    def _linger(self) -> None:
        """Let the other side read the reply, though it may still be sending."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
            deadline, left = time.monotonic() + LINGER_S, LINGER_BYTES
            while left > 0 and (wait_s := deadline - time.monotonic()) > 0:
                self._sock.settimeout(wait_s)
                piece = self._sock.recv(PIECE_BYTES)
                if not piece:
                    return
                left -= len(piece)
        except OSError:
            pass  # it is closed either way


class Body:
    """The body of one request, read when it is asked for."""

    def __init__(self, connection: Connection, head: h11.Request, share: Share) -> None:
        self._connection = connection
        self._share = share
        headers = dict(head.headers)
        self.chunked = b"transfer-encoding" in headers
        self.length = int(headers[b"content-length"]) if b"content-length" in headers and not self.chunked else None
        self.is_over = not self.chunked and not self.length
        """Nothing of it is under way."""

    def read(self, bytes_max: int) -> bytearray:
        """All of it."""
        if (self.length or 0) > bytes_max:
            raise _too_large(f"{self.length} bytes", bytes_max)
        if self.length is not None:
            self._share.grow(self.length)
        self._connection.go_on()
        content = bytearray()
        begun = time.monotonic()
        limits = self._connection._limits

        def deadline() -> float:
            return begun + limits.grace_s + len(content) / limits.bytes_s_min

        try:
            while (piece := self._connection.next_data(deadline)) is not None:
                size = len(content) + len(piece)
                if size > bytes_max:
                    raise _too_large(f"more than {bytes_max} bytes", bytes_max)
                if self.length is None:
                    self._share.grow(min(bytes_max, -(-size // STEP_BYTES) * STEP_BYTES))
                content += piece
        except Slow:
            raise Refused(
                408,
                f"{len(content)} bytes came in {time.monotonic() - begun:.0f} s, expected all of the body, or "
                f"{limits.bytes_s_min} bytes a second after the first {limits.grace_s:g} s",
            ) from None
        self.is_over = True
        return content

    def reserve(self, nbytes: int) -> None:
        """Have memory for what is made of the body, beside itself; raises `Refused` if there is none now."""
        self._share.grow(self._share.nbytes + nbytes)


def _too_large(what: str, bytes_max: int) -> Refused:
    """Of a body."""
    return Refused(
        413,
        f"an update of {what}, expected at most {bytes_max}: send it sparse, or raise Master(update_bytes_max=...)",
    )


def _malformed(error: h11.RemoteProtocolError) -> Refused:
    status = error.error_status_hint
    return Refused(status if 400 <= status < 500 else 400, f"this is no HTTP/1.1: {error!s:.200}")


def _request(head: h11.Request) -> Request:
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    path, _, query = head.target.decode("latin-1").partition("?")
    return Request(head.method.decode("latin-1"), path, query, headers, head.http_version.decode("latin-1"))
