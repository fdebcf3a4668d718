"""What a master answers: a page at `/`, `/model`, `/update` and `/status`, and nothing else.

A request is looked at from the cheapest to the dearest: who asks, for what, in which form, how large; then its body is
read, then its numbers are looked at, then `descent` has them.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.http import access, updates
from p2p.http.connection import Body
from p2p.http.copies import Copies
from p2p.http.gate import Gate
from p2p.http.messages import TENSORS_TYPE, UNIT, VERSION, WORKER, Refused, Reply, Request, told
from p2p.http.pages import POLICY, page
from p2p.http.settings import Master
from p2p.http.tensors import TensorsError, head

log = logging.getLogger("p2p")

METHODS = {"/": ("GET", "HEAD"), "/model": ("GET", "HEAD"), "/status": ("GET", "HEAD"), "/update": ("POST",)}
NAME = re.compile(r"[A-Za-z0-9._:@/-][A-Za-z0-9 ._:@/-]{0,127}")
"""Of a unit or a worker: it comes back in messages."""
ARGUMENTS = {"version": VERSION, "unit": UNIT, "worker": WORKER}
"""Of a query, and the header in whose place each is."""
SINGLE = ("host", "authorization", "content-type", "content-encoding", "content-length", "origin", *ARGUMENTS.values())
"""Headers that are there once."""
VERSION_DIGITS_MAX = 18


class Face:
    """That of one session. From any thread."""

    def __init__(self, settings: Master, model: Model, refresh: Callable[[], None]) -> None:
        """`refresh` fills the user's model with what a training came to. `UsageError` if it cannot be sent."""
        self.settings = settings
        self.gate = Gate()
        self._model = model
        self._refresh = refresh
        like = {spec.name: np.broadcast_to(np.zeros((), spec.dtype), spec.shape) for spec in model.own.specs}
        try:
            head(like)
        except TensorsError as error:
            raise UsageError(f"the model cannot be sent by a master: {error}") from None
        self._copies = Copies(like)
        self._bytes_max = settings.body_bytes_max(model.own.nbytes)
        self._training = False
        """`train` was called, and has not returned."""
        self._still = threading.Lock()
        """Held while the user's model is copied, or while `train` writes to it."""
        self._refused: Counter[int] = Counter()
        self._counting = threading.Lock()

    @contextmanager
    def training(self, descent: Any) -> Iterator[None]:
        """A training is under way within."""
        # a descent of the user's own may take other arrays than the model's
        self.gate.strict = descent is None or type(descent).__module__ == "p2p.descents"
        self._training = True
        try:
            yield
        finally:
            self._training = False

    @contextmanager
    def still(self) -> Iterator[None]:
        """The user's model may be written to within."""
        with self._still:
            yield

    # ------------------------------------------------------------------------------------------------- requests

    def answer(self, request: Request, body: Body) -> Reply:
        """The reply. `Refused` for what is not granted, which is counted."""
        try:
            return self._answer(request, body)
        except Refused as refused:
            with self._counting:
                self._refused[refused.status] += 1
            raise
        except Exception:
            log.exception("the master failed at %s %.80s", request.method, request.path)
            raise Refused(500, "an error of the master's own, which is in its log") from None

    def _answer(self, request: Request, body: Body) -> Reply:
        reads = request.method in ("GET", "HEAD")
        if request.http not in ("1.0", "1.1"):
            raise Refused(400, f"HTTP/{request.http}, expected HTTP/1.1")
        for name in SINGLE:
            if ", " in request.headers.get(name, ""):
                raise Refused(400, f"the header {name} is there several times, expected once")
        access.check(request.headers, self.settings.shown, self.settings.host, reads=reads)
        if request.path not in METHODS:
            raise Refused(404, f"nothing is at {request.path!r:.80}, expected {', '.join(METHODS)}")
        if request.method not in METHODS[request.path]:
            allowed = ", ".join(METHODS[request.path])
            raise Refused(405, f"{request.method!r:.20} of {request.path}, expected {allowed}", {"Allow": allowed})
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            raise Refused(400, "Content-Length and Transfer-Encoding, expected one of them")
        if reads and not body.is_over:
            raise Refused(400, f"{request.method} with a body, expected none")
        match request.path:
            case "/model":
                return self._send_model(request)
            case "/update":
                return self._take_update(request, body)
            case "/status":
                return told(200, self.status())
        policy = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        return Reply(200, "text/html; charset=utf-8", page(self.status(), type(self._model.model).__name__), policy)

    def status(self) -> dict[str, Any]:
        """What `/status` tells."""
        with self._counting:
            refused = {str(status): count for status, count in sorted(self._refused.items())}
        gate = self.gate
        return {
            "version": gate.version,
            "training": gate.is_open,
            "applied": gate.applied,
            "known": gate.known,
            "empty": gate.empty,
            "refused": refused,
            "staleness": gate.staleness(),
            "update_bytes_max": self._bytes_max,
            "model": {
                "bytes": self._model.own.nbytes,
                "arrays": {each.name: [np.dtype(each.dtype).name, each.shape] for each in self._model.own.specs},
            },
        }

    # ------------------------------------------------------------------------------------------------- the model

    def _send_model(self, request: Request) -> Reply:
        _arguments(request, ())
        copy = self._copies.current(self._look, self.gate.moment)
        headers = {"ETag": copy.etag, "DeepDist-Version": str(copy.version), "Cache-Control": "no-cache"}
        known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if copy.etag in known or "*" in known:
            self._copies.release(copy)
            return Reply(304, headers=headers)
        return Reply(200, TENSORS_TYPE, memoryview(copy.buffer), headers, lambda: self._copies.release(copy))

    @contextmanager
    def _look(self) -> Iterator[tuple[int, Mapping[str, Array]]]:
        """(version, arrays) of one moment."""
        with self.gate.look() as seen:
            if seen is not None:
                yield seen
                return
        with self._still:
            if self._training and self.gate.version:
                self._refresh()
            yield self.gate.version, self._model.arrays()

    # ------------------------------------------------------------------------------------------------- an update

    def _take_update(self, request: Request, body: Body) -> Reply:
        headers = request.headers
        arguments = _arguments(request, tuple(ARGUMENTS))
        is_pickle = updates.check_type(
            headers.get("content-type", ""), headers.get("content-encoding", ""), self.settings.allow_pickle
        )
        self.gate.check_open()
        version = self._version(arguments["version"])
        unit, worker = _name("unit", arguments["unit"]), _name("worker", arguments["worker"])
        if body.length is None and not body.chunked:
            raise Refused(411, "neither Content-Length nor chunks, expected one of them")
        update = updates.read(
            body,
            self._model.own,
            is_pickle=is_pickle,
            strict=self.gate.strict,
            bytes_max=self._bytes_max,
        )
        outcome = self.gate.submit(update, unit, worker or "another process", version)
        return told(200, {"outcome": outcome, "applied": outcome == "applied", "version": self.gate.version})

    def _version(self, text: str | None) -> int | None:
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > VERSION_DIGITS_MAX:
            raise Refused(400, f"version {text!r:.40}, expected the number that came with the model")
        if int(text) > self.gate.version:
            raise Refused(
                412,
                f"version {text}, and the model is at {self.gate.version}: it came from another session, fetch it anew",
            )
        return int(text)


def _arguments(request: Request, allowed: tuple[str, ...]) -> dict[str, str | None]:
    """By name: from the query, or else the header in its place."""
    found: dict[str, str | None] = {name: request.headers.get(ARGUMENTS[name]) for name in allowed}
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    except ValueError:
        if request.query:
            raise Refused(400, f"the query {request.query!r:.80}, expected name=value&...") from None
        pairs = []
    for name, value in pairs:
        if name not in allowed:
            raise Refused(400, f"the query has {name!r:.40}, expected {', '.join(allowed) or 'none'}")
        if found[name] not in (None, value):
            raise Refused(400, f"{name} is told twice, expected once")
        found[name] = value
    return found


def _name(what: str, text: str | None) -> str | None:
    if text is not None and not NAME.fullmatch(text):
        raise Refused(400, f"{what} {text!r:.40}, expected up to 128 letters, digits, spaces or ._:@/-")
    return text
