"""For any Python process: `fetch_model` and `send_gradient`, as the first DeepDist had them, by numpy and http.client.

    while True:
        model = fetch_model("host:5000", token=token)
        send_gradient(gradient(model, rows), "host:5000", token=token)

Each thread keeps its connections, and of the last model of each its bytes: what has not changed is not sent again. A
post that got no answer is posted again under the same unit, so that it counts once.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from gossip.errors import UsageError
from p2p.http.tensors import Array, TensorsError, packed, parsed
from p2p.http.token_files import address_of, find

LINKS_MAX = 4
"""Masters to which a thread keeps its connection."""
RETRY_S, RETRY_S_MAX = 0.05, 2.0
"""Before it is tried again, doubled each time."""
TENSORS_TYPE = "application/x-safetensors"
HOW = ": token= has it, and need not where the master is of this user, on this machine and with the same TMPDIR"
AGAIN = (408, 503)
"""Statuses after which the same request may be granted."""


class RefusedError(UsageError):
    """The master did not grant a request; the text is what it says. `status` is that of HTTP: 409 when no training
    runs, 401 without its token, 422 for arrays that are not the model's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FetchedModel(dict[str, Array]):
    """Arrays by name, of one moment; they are the caller's own."""

    version = 0
    """Updates that were in the model."""


def fetch_model(
    master: str = "127.0.0.1:5000", model: Any = None, *, token: str | None = None, timeout_s: float = 60.0
) -> FetchedModel:
    """The model of a master, as a dict of arrays with its `version`.

    `master` is "host:port", as `dd.master` says. `token` is `dd.token`: one that was drawn on loopback is found by
    processes of the same user. `model`: one of the user's own with the same arrays, which is filled as well: whatever
    `DeepDist` takes.

    Raises:
        RefusedError: the master says no.
        OSError: it did not answer within `timeout_s` seconds.
    """
    link = _link(master, token)
    known = {} if link.etag is None else {"If-None-Match": link.etag}
    status, headers, content = link.ask("GET", "/model", None, known, timeout_s)
    if status != 304:
        link.etag, link.content = headers["ETag"], content
    link.version = int(headers["DeepDist-Version"])
    try:
        arrays, _ = parsed(link.content)
    except TensorsError as error:
        raise UsageError(f"{master} sent no model: {error}; expected the address of a DeepDist master") from None
    fetched = FetchedModel({name: np.array(array) for name, array in arrays.items()})
    fetched.version = link.version
    if model is not None:
        _fill(model, fetched)
    return fetched


def send_gradient(
    update: Any,
    master: str = "127.0.0.1:5000",
    *,
    version: int | None = None,
    token: str | None = None,
    unit: str | None = None,
    worker: str | None = None,
    timeout_s: float = 60.0,
) -> bool:
    """Send an update to the training of a master; True when it is applied, False if it is nothing (None or an empty
    dict, which is not sent), or its unit had counted before.

    `update`: a dict of arrays, or whatever a gradient may return with `mode="master"`. `version`: of the model that it
    was computed from; None: of the one that this thread has fetched last. `unit`: what tells it from all others, up to
    128 letters and digits; None: one is drawn. `worker`: whose it is, in errors.

    Raises:
        RefusedError: the master says no, or none of its trainings runs (`status` 409).
        OSError: it did not answer within `timeout_s` seconds.
    """
    if update is None or (isinstance(update, Mapping) and not update):
        return False
    link = _link(master, token)
    version = link.version if version is None else version
    headers = {"Content-Type": TENSORS_TYPE, "DeepDist-Unit": unit or secrets.token_hex(16)}
    headers["DeepDist-Worker"] = worker or f"{os.getpid()}"
    if version is not None:
        headers["DeepDist-Version"] = str(version)
    _, _, content = link.ask("POST", "/update", _body(update), headers, timeout_s)
    outcome = json.loads(content)["outcome"]
    # a unit of our own is known by an earlier try, whose answer was lost
    return bool(outcome == "applied" or (outcome == "known" and unit is None))


def _body(update: Any) -> bytearray:
    """A dict of whole arrays as it is, all else with its structure."""
    if isinstance(update, Mapping) and all(
        isinstance(name, str) and type(value) is np.ndarray for name, value in update.items()
    ):
        try:
            return packed(update)
        except TensorsError as error:
            raise UsageError(f"the update cannot be sent: {error}") from None
    from p2p.server.any_update import flatten

    return packed(flatten(update), {"deepdist": "structured"})


def _fill(model: Any, fetched: FetchedModel) -> None:
    from gossip.arrays import Layout
    from gossip.errors import MismatchError
    from p2p.adapters.model import Model

    own = Model(model, tuple(fetched))
    try:
        Layout.of(fetched).check_fit(own.own)
    except MismatchError as error:
        raise UsageError(f"the master's model is another than the one to fill: {error}") from None
    own.load(fetched)


class _Link:
    """The connection of one thread to one master."""

    def __init__(self, master: str, token: str | None) -> None:
        host, separator, port = master.removeprefix("http://").rstrip("/").rpartition(":")
        if not separator or not port.isdigit():
            raise UsageError(f'master={master!r:.100}, expected "host:port", as dd.master says')
        self._connection = http.client.HTTPConnection(host.strip("[]") or "127.0.0.1", int(port))
        self._given = token
        self._token = token
        """The same, or what the master that it came to has left."""
        self._came_to = ""
        self.etag: str | None = None
        self.content: bytes = b""
        """The last model."""
        self.version: int | None = None

    def ask(
        self, method: str, path: str, body: bytearray | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, content). Tried again where the connection broke, or the master had no room."""
        deadline, pause = time.monotonic() + timeout_s, RETRY_S
        while True:
            try:
                status, found, content = self._once(method, path, body, headers, deadline)
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if time.monotonic() + pause > deadline:
                    if isinstance(error, OSError):
                        raise
                    raise ConnectionError(f"the master's answer broke off: {error!r}") from error
            else:
                if status < 400:
                    return status, found, content
                if status == 401 and self._finds_another():
                    continue
                if status not in AGAIN or time.monotonic() + pause > deadline:
                    raise RefusedError(status, _reason(status, content) + (HOW if status == 401 else ""))
            time.sleep(pause)
            pause = min(2 * pause, RETRY_S_MAX)

    def _once(
        self, method: str, path: str, body: bytearray | None, headers: Mapping[str, str], deadline: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = self._connection
        connection.timeout = max(0.001, deadline - time.monotonic())
        if connection.sock is None:
            self._connect()
        else:
            connection.sock.settimeout(connection.timeout)
        shown = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            connection.request(method, path, body, {**shown, **headers})
        except (BrokenPipeError, ConnectionResetError):
            if connection.sock is None:
                raise
            # who refuses a body may say so before all of it was sent
        response = connection.getresponse()
        content = response.read()
        return response.status, {name: response.headers[name] for name in response.headers}, content

    def _connect(self) -> None:
        self._connection.connect()
        self._came_to = address_of(self._connection.sock.getpeername())
        self._finds_another()

    def _finds_another(self) -> bool:
        """Whether a master of this user has left another token than the one that was shown."""
        if self._given is not None:
            return False
        before, self._token = self._token, find(self._came_to)
        return self._token != before


def _reason(status: int, content: bytes) -> str:
    try:
        return f"{json.loads(content)['error']} ({status})"
    except (ValueError, KeyError, TypeError):
        return f"status {status}, expected the answer of a DeepDist master"


class _Links(threading.local):
    def __init__(self) -> None:
        self.of: OrderedDict[tuple[str, str | None, int], _Link] = OrderedDict()


_links = _Links()


def _link(master: str, token: str | None) -> _Link:
    """That of this thread, of this process: a connection does not survive a fork."""
    key = master, token, os.getpid()
    links = _links.of
    if key not in links:
        links[key] = _Link(master, token)
        while len(links) > LINKS_MAX:
            links.popitem(last=False)[1]._connection.close()
    links.move_to_end(key)
    return links[key]
