"""The process of a worker: it fetches points from shards, computes portions, and pushes their gradients to all shards.

It does one thing at a time. While it waits for a shard it hears the coordinator: where a shard was replaced, it gives
up the portion that it is at.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import zmq

from gossip.arrays import Array
from p2p import parcel
from p2p.agent import local_socket
from p2p.agent.local_socket import Process
from p2p.lbfgs import messages
from p2p.lbfgs.memory import memory_peak_bytes
from p2p.lbfgs.messages import (
    Compute,
    Computed,
    Dropped,
    Failed,
    Fetch,
    Here,
    Message,
    Numbers,
    Placement,
    Push,
    Pushed,
    Socket,
    Source,
)
from p2p.lbfgs.rows import Partition
from p2p.lbfgs.worker import Computer
from p2p.worker.errors import PartitionError

WORKER = "from p2p.lbfgs.worker_process import main; main()"
"""What the process runs, with arguments: its name, its folder, and the driver program's process."""


class GivenUpError(Exception):
    """The point is over, or a shard was replaced."""


class Worker:
    """What a worker keeps from portion to portion."""

    def __init__(self, context: zmq.Context[Socket], control: Socket, name: str) -> None:
        self._context = context
        self._control = control
        self._name = name.encode()
        self._told: deque[tuple[Any, list[zmq.Frame]]] = deque()
        """Messages of the coordinator that came while a shard was waited for."""
        self._computer: Computer | None = None
        self._partitions: dict[int, Partition] = {}
        self._read: int | None = None
        """The partition that was read last."""
        self._shards: list[tuple[Socket, int, int]] = []
        """Each with its range."""
        self._x = np.empty(0)
        self._point = 0
        """That of `_x`."""
        self._bytes_in = self._bytes_out = 0

    def serve(self) -> None:
        """Do what the coordinator says, until the process ends."""
        while True:
            message, frames = self._told.popleft() if self._told else messages.receive(self._control)
            try:
                self._do(message, frames)
            except GivenUpError:
                self._say(Dropped())
            except PartitionError as error:
                messages.send(self._control, Failed(), [error.pickled])

    def _do(self, message: Any, frames: Sequence[zmq.Frame]) -> None:
        if isinstance(message, Placement):
            self._place(message, frames)
        elif isinstance(message, Source):
            assert self._computer is not None
            self._source(message.partition, messages.joined(frames), self._computer)
        else:
            assert isinstance(message, Compute)
            self._compute(message)

    def _place(self, placement: Placement, frames: Sequence[zmq.Frame]) -> None:
        if frames:
            try:
                self._computer = Computer(parcel.loads(messages.joined(frames)))
            except BaseException as error:  # a model or a function that cannot be here
                raise PartitionError.of(error, None, 0) from error
        for socket, _, _ in self._shards:
            socket.close()
        self._shards = []
        for endpoint, (start, stop) in zip(placement.endpoints, placement.spans, strict=True):
            socket = messages.socket(self._context, zmq.DEALER, self._name)
            socket.connect(endpoint)
            self._shards.append((socket, start, stop))

    def _source(self, number: int, sent: bytes, computer: Computer) -> None:
        try:
            self._partitions[number] = Partition(parcel.loads(sent), computer.job.chunk_rows)
        except BaseException as error:
            raise PartitionError.of(error, None, number) from error

    def _compute(self, asked: Compute) -> None:
        computer = self._computer
        assert computer is not None
        self._fetch(asked.point, computer)
        if self._read not in (None, asked.partition):
            assert self._read is not None
            self._partitions[self._read].leave()
        self._read = asked.partition
        try:
            chunk = self._partitions[asked.partition].chunk(asked.chunk)
        except BaseException as error:
            raise PartitionError.of(error, asked.epoch, asked.partition) from error
        found = computer.compute(self._x, chunk, asked.epoch, asked.partition, asked.chunk)
        self._push(asked, found.gradient)
        self._say(
            Computed(
                point=asked.point,
                partition=asked.partition,
                chunk=asked.chunk,
                number=asked.number,
                loss=found.loss,
                rows=found.rows,
                count=found.count,
                more=chunk.more,
                memory_peak_bytes=memory_peak_bytes(),
                bytes_in=self._bytes_in,
                bytes_out=self._bytes_out,
            )
        )

    def _fetch(self, point: int, computer: Computer) -> None:
        """Have `_x` be that point."""
        if self._point == point:
            return
        if not len(self._x):
            self._x = np.empty(computer.flat.size, computer.flat.dtype)
        self._point = 0  # until it is whole
        for socket, _, _ in self._shards:
            messages.send(socket, Fetch(point))
        for socket, start, stop in self._shards:
            answer, frames = self._answer(socket, Numbers, point)
            if answer.size is None:
                raise GivenUpError
            self._take(frames, self._x[start:stop])
        self._point = point

    def _take(self, frames: Sequence[zmq.Frame], into: Array) -> None:
        messages.numbers(frames, into)
        self._bytes_in += into.nbytes

    def _push(self, asked: Compute, gradient: Array) -> None:
        push = Push(asked.point, asked.partition, asked.chunk, asked.number)
        for socket, start, stop in self._shards:
            part = gradient[start:stop]
            messages.send(socket, push, messages.blocks(part))
            self._bytes_out += part.nbytes
        for socket, _, _ in self._shards:
            if not self._answer(socket, Pushed, asked.point)[0].kept:
                raise GivenUpError

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
                message, frames = messages.receive(self._control)
                self._told.append((message, frames))
                if isinstance(message, Placement):
                    raise GivenUpError

    def _say(self, message: Message) -> None:
        messages.send(self._control, message)


def _point_of(answer: Any) -> int:
    point: int = answer.of if isinstance(answer, Numbers) else answer.point
    return point


def main() -> None:
    """A worker's process, until the driver program ends it, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, folder, driver = sys.argv[1:]
    local_socket.leave_with(Process(int(driver)), folder)
    context: zmq.Context[Socket] = zmq.Context()
    control = messages.socket(context, zmq.DEALER, name.encode())
    control.connect(f"ipc://{folder}/driver")
    messages.send(control, Here(os.getpid()))
    Worker(context, control, name).serve()
