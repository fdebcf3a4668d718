"""A poller: which function is called when a socket of ZeroMQ, or anything else that has a descriptor, is readable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import zmq


class Poller:
    """Sources and their callbacks. A source may rest for a while: it is not listened to, and heard later."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._callbacks: dict[Any, Callable[[], None]] = {}
        self._resting: list[tuple[float, Any]] = []
        """Sources that are not listened to, and until when."""

    def register(self, source: Any, callback: Callable[[], None]) -> None:
        """Call `callback` in `turn` when `source` (a ZeroMQ socket, or anything with a descriptor) is readable."""
        self._poller.register(source, zmq.POLLIN)
        self._callbacks[_key(source)] = callback

    def unregister(self, source: Any) -> None:
        """Undo `register`, before the source is closed."""
        resting = [(until, one) for until, one in self._resting if one is not source]
        if len(resting) == len(self._resting):
            self._poller.unregister(source)
        self._resting = resting
        del self._callbacks[_key(source)]

    def rest(self, source: Any, seconds: float) -> None:
        """Do not listen to `source` for a while: something is there, and cannot be dealt with now."""
        self._poller.unregister(source)
        self._resting.append((time.monotonic() + seconds, source))

    def turn(self, timeout_s: float) -> None:
        """Wait for something to come, at most `timeout_s`, and call whom it is for."""
        self._wake()
        wait = timeout_s
        for until, _ in self._resting:
            wait = min(wait, until - time.monotonic())
        for source, _ in self._poller.poll(math.ceil(max(0.0, wait) * 1e3)):
            callback = self._callbacks.get(source)
            if callback is not None:  # not undone by one of those before
                callback()

    def _wake(self) -> None:
        now = time.monotonic()
        for until, source in self._resting:
            if until <= now:
                self._poller.register(source, zmq.POLLIN)
        self._resting = [(until, source) for until, source in self._resting if until > now]


def _key(source: Any) -> Any:
    """As what the poller returns it."""
    if isinstance(source, zmq.Socket | int):
        return source
    return int(source.fileno())
