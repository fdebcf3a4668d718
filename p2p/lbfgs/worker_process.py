"""The process of a worker: it fetches points from shards, computes portions, and pushes their gradients to all shards.

It does one thing at a time. While it waits for a shard it hears the coordinator: where a shard was replaced, it gives
up the portion that it is at.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

from p2p import parcel
from p2p.lbfgs import messages
from p2p.lbfgs.launch import Begun, memory_peak_bytes
from p2p.lbfgs.links import GivenUpError, Links
from p2p.lbfgs.messages import Compute, Computed, Dropped, Failed, Here, Placement, Push, Source
from p2p.lbfgs.rows import Partition
from p2p.lbfgs.worker import Computer, Found
from p2p.worker.errors import PartitionError

WORKER = "from p2p.lbfgs.worker_process import main; main()"
"""What the process runs."""


class Worker:
    """What a worker keeps from portion to portion."""

    def __init__(self, begun: Begun) -> None:
        self._control = begun.control
        self._links = Links(begun.context, begun.keys, begun.control, self._hear)
        self._told: deque[tuple[Any, list[zmq.Frame]]] = deque()
        """Messages of the coordinator that came while a shard was waited for."""
        self._computer: Computer | None = None
        self._partitions: dict[int, Partition] = {}
        self._read: int | None = None
        """The partition that was read last."""

    def serve(self) -> None:
        """Do what the coordinator says, until the process ends."""
        while True:
            message, frames = self._told.popleft() if self._told else messages.receive(self._control)
            try:
                self._do(message, frames)
            except GivenUpError:
                messages.send(self._control, Dropped())
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
            assert self._computer is not None
            self._compute(message, self._computer)

    def _place(self, placement: Placement, frames: Sequence[zmq.Frame]) -> None:
        if frames:
            try:
                self._computer = Computer(parcel.loads(messages.joined(frames)))
            except BaseException as error:  # a model or a function that cannot be here
                raise PartitionError.of(error, None, 0) from error
        self._links.place(placement)

    def _source(self, number: int, sent: bytes, computer: Computer) -> None:
        try:
            self._partitions[number] = Partition(parcel.loads(sent), computer.job.chunk_rows)
        except BaseException as error:
            raise PartitionError.of(error, None, number) from error

    def _compute(self, asked: Compute, computer: Computer) -> None:
        x = self._links.fetch(asked.point, computer.flat.size, computer.flat.dtype)
        if self._read is not None and self._read != asked.partition:
            self._partitions[self._read].leave()
        self._read = asked.partition
        try:
            chunk = self._partitions[asked.partition].chunk(asked.chunk)
        except BaseException as error:
            raise PartitionError.of(error, asked.epoch, asked.partition) from error
        found = computer.compute(x, chunk, asked.epoch, asked.partition, asked.chunk)
        push = Push(asked.point, asked.partition, asked.chunk, asked.number)
        self._links.push(push, found.gradient)
        messages.send(self._control, computed(push, found, chunk.more, self._links))

    def _hear(self) -> None:
        """The coordinator speaks while a shard is waited for."""
        message, frames = messages.receive(self._control)
        self._told.append((message, frames))
        if isinstance(message, Placement):
            raise GivenUpError


def computed(push: Push, found: Found, more: bool, links: Links) -> Computed:
    """What the coordinator is told of a portion that all shards have."""
    return Computed(
        point=push.point,
        partition=push.partition,
        chunk=push.chunk,
        number=push.number,
        loss=found.loss,
        rows=found.rows,
        count=found.count,
        more=more,
        memory_peak_bytes=memory_peak_bytes(),
        bytes_in=links.bytes_in,
        bytes_out=links.bytes_out,
    )


def main() -> None:
    """A worker's process, until the driver program ends it, or is gone."""
    begun = Begun()
    messages.send(begun.control, Here(os.getpid(), ""))
    Worker(begun).serve()
