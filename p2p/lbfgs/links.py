"""What computes portions, seen from the shards: it fetches points, and pushes gradients to all of them, in slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from gossip.arrays import Array
from gossip.zmq.sockets import Keys
from p2p.lbfgs import messages
from p2p.lbfgs.messages import Fetch, Numbers, Placement, Push, Pushed, Socket


class GivenUpError(Exception):
    """The point is over, or a shard was replaced."""


def nothing_else() -> None:
    """Nobody but shards has anything to say."""


class Links:
    """The links to all shards, and the point that was fetched last."""

    def __init__(
        self,
        context: zmq.Context[Socket],
        keys: Keys | None,
        control: Socket,
        hear: Callable[[], None] = nothing_else,
    ) -> None:
        """`hear` is called when `control` has something to say while a shard is waited for; it may raise."""
        self._context = context
        self._keys = keys
        self._control = control
        self._hear = hear
        self._shards: list[tuple[Socket, int, int]] = []
        """Each with its range."""
        self._x = np.empty(0)
        self._point = 0
        """That of `_x`."""
        self.bytes_in = self.bytes_out = 0

    def place(self, placement: Placement) -> None:
        """The shards are here from now on."""
        self.close()
        for endpoint, (start, stop) in zip(placement.endpoints, placement.spans, strict=True):
            # without a name: a router would not take another link of that before it has noticed the old one's end
            socket = messages.socket(self._context, zmq.DEALER, keys=self._keys)
            socket.connect(endpoint)
            self._shards.append((socket, start, stop))

    def fetch(self, point: int, size: int, dtype: Any) -> Array:
        """The numbers of a point, not to be written to. `GivenUpError` if it is over."""
        if self._point == point:
            return self._x
        if len(self._x) != size or self._x.dtype != dtype:
            self._x = np.empty(size, dtype)
        self._point = 0  # until it is whole
        for socket, _, _ in self._shards:
            messages.send(socket, Fetch(point))
        for socket, start, stop in self._shards:
            answer, frames = self._answer(socket, Numbers, point)
            if answer.size is None:
                raise GivenUpError
            messages.numbers(frames, self._x[start:stop])
            self.bytes_in += (stop - start) * self._x.itemsize
        self._point = point
        return self._x

    def push(self, push: Push, gradient: Array) -> None:
        """Return when all shards have it. `GivenUpError` if its point is over."""
        for socket, start, stop in self._shards:
            part = gradient[start:stop]
            messages.send(socket, push, messages.blocks(part))
            self.bytes_out += part.nbytes
        for socket, _, _ in self._shards:
            if not self._answer(socket, Pushed, push.point)[0].kept:
                raise GivenUpError

    def close(self) -> None:
        """Leave all shards."""
        for socket, _, _ in self._shards:
            socket.close()
        self._shards = []

    def _answer(self, socket: Socket, expected: type[Any], point: int) -> tuple[Any, list[zmq.Frame]]:
        """What a shard answers of this point; what is left of earlier points is passed by."""
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._control, zmq.POLLIN)
        while True:
            ready = [each for each, _ in poller.poll()]
            if socket in ready:
                answer, frames = messages.receive(socket)
                if isinstance(answer, expected) and _point_of(answer) == point:
                    return answer, frames
            if self._control in ready:
                self._hear()


def _point_of(answer: Any) -> int:
    point: int = answer.of if isinstance(answer, Numbers) else answer.point
    return point
