"""The discipline of a master's hub: the agent in the driver program, whose lane carries the changes by `descent`.

    workers' lanes -> queue -> (take) coordinator: descent -> own lane -> replica, and the replicas of all workers

Updates of executors are not merged here: they wait in files, a few of them, until the coordinator takes them.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from dataclasses import replace

from gossip.arrays import Layout, Payload
from gossip.events import Event, Received
from gossip.messages import PeerId, Range
from gossip.wire import BLOCK_BYTES
from p2p.agent import requests
from p2p.agent.discipline import House
from p2p.agent.lanes import MASTER_ADVERT_GAP_S, LaneDiscipline, lane_settings
from p2p.agent.replica import anonymous_file
from p2p.agent.requests import Taken

QUEUE_MAX = 4
"""Updates that wait for the master's `descent`; further ones stay with their workers."""


class Hub(LaneDiscipline):
    """Keeps updates of workers until the coordinator takes them."""

    def __init__(self, house: House) -> None:
        settings = replace(lane_settings(house), advert_gap_s=MASTER_ADVERT_GAP_S)
        super().__init__(house, None, settings, None)  # workers send what gradients returned, of any layout
        self._queue: deque[tuple[PeerId, Layout, int]] = deque()
        """Updates of workers, in files, until the master's descent takes them."""
        self._taker: socket.socket | None = None
        """The coordinator's connection, while it waits for an update."""
        self._in_descent = 0

    @property
    def merged(self) -> int:
        """Of the own lane; those of workers are merged as `descent` took them."""
        return self.peer.replicator.frontiers()[self.house.me]

    @property
    def waiting(self) -> int:
        """Those in the queue, and the one in `descent`."""
        return len(self._queue) + self._in_descent

    def acquire(self, event: Event) -> bool:
        if isinstance(event, Received) and isinstance(event.message, Range):
            return len(self._queue) < QUEUE_MAX
        return super().acquire(event)

    def deliver(self, lane: PeerId, lo: int, hi: int, payload: Payload) -> None:
        if lane != self.house.me:
            self._enqueue(lane, payload)
        else:
            super().deliver(lane, lo, hi, payload)

    def take(self, connection: socket.socket) -> None:
        self._in_descent = 0
        self._taker = connection
        self._serve_taker()

    def hang_up(self, connection: socket.socket) -> None:
        if self._taker is connection:
            self._taker = None

    def _enqueue(self, lane: PeerId, payload: Payload) -> None:
        descriptor = anonymous_file(payload.layout.nbytes)
        for start in range(0, payload.layout.nbytes, BLOCK_BYTES):
            os.pwrite(descriptor, payload.read(start, min(start + BLOCK_BYTES, payload.layout.nbytes)), start)
        self._queue.append((lane, payload.layout, descriptor))
        self._serve_taker()

    def _serve_taker(self) -> None:
        if self._taker is None or not self._queue:
            return
        lane, layout, descriptor = self._queue[0]
        taker, self._taker = self._taker, None
        try:
            requests.send(taker, Taken(self.house.names.get(lane, lane), layout), (descriptor,))
        except OSError:
            return  # the coordinator has gone; the next one takes it
        self._queue.popleft()
        self._in_descent = 1
        os.close(descriptor)
