"""The process of a shard: it does what the coordinator says, and serves workers, in the order in which both come."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq

from p2p.lbfgs import messages
from p2p.lbfgs.launch import Begun, memory_peak_bytes
from p2p.lbfgs.messages import (
    Accept,
    Accepted,
    Begin,
    Count,
    Direct,
    Fetch,
    Forget,
    Leave,
    Measure,
    Measured,
    Message,
    Numbers,
    Ping,
    Push,
    Pushed,
    Read,
    Settle,
    Socket,
    TryStep,
    Write,
    Written,
)
from p2p.lbfgs.shard import Attempt, Shard

SHARD = "from p2p.lbfgs.shard_process import main; main()"
"""What the process runs."""

Reply = Callable[[Message, Sequence[memoryview]], None]


class Server:
    """A shard, and what others ask of it."""

    def __init__(self) -> None:
        self._shard: Shard | None = None
        self._x = np.empty(0)
        """What the shard began with."""
        self._early: list[tuple[Fetch, Reply]] = []
        """Workers that were told of a point before this process was."""
        self._bytes_in = self._bytes_out = 0

    def answer(self, message: Any, frames: Sequence[zmq.Frame], reply: Reply) -> None:
        """Do what a message says."""
        if isinstance(message, Begin):
            self._x = np.empty(message.size, message.dtype)
            self._shard = Shard(self._x, message.history, message.l2, message.iterate)
        elif isinstance(message, Leave):
            os._exit(0)
        elif isinstance(message, Ping):
            pass
        elif isinstance(message, Write):
            messages.numbers(frames, self._x[message.start : message.start + message.size])
            reply(Written(message.start), ())
        elif isinstance(message, Fetch):
            self._fetch(message, reply)
        elif isinstance(message, Push):
            self._push(message, frames, reply)
        else:
            self._obey(message, reply)

    def _obey(self, message: Any, reply: Reply) -> None:
        shard = self._shard
        assert shard is not None
        match message:
            case TryStep(point, step):
                shard.try_step(point, step)
                early, self._early = self._early, []
                for asked, to in early:
                    self._fetch(asked, to)
            case Count(point, partition, chunk, number):
                shard.count(Attempt(point, partition, chunk, number))
            case Measure(point):
                sums = shard.measure()
                figures = memory_peak_bytes(), self._bytes_in, self._bytes_out
                reply(Measured(point, sums.slope, sums.gradient_square, sums.trial_square, *figures), ())
            case Settle():
                shard.settle()
            case Accept():
                rows, x_square = shard.accept()
                reply(Accepted(shard.iterate, rows.tolist(), x_square), ())
            case Direct(coefficients, keeps):
                shard.direct(np.array(coefficients), keeps)
            case Forget():
                shard.forget()
            case Read(iterate, start, stop):
                x = shard.iterate_of(iterate)
                found = () if x is None else messages.blocks(x[start:stop])
                reply(Numbers(iterate, start, None if x is None else stop - start), found)
            case _:
                raise AssertionError(f"a shard was told {message}")

    def _fetch(self, asked: Fetch, reply: Reply) -> None:
        shard = self._shard
        if shard is None or shard.point < asked.point:
            self._early.append((asked, reply))
        elif shard.point > asked.point:
            reply(Numbers(asked.point, 0, None), ())
        else:
            self._bytes_out += shard.trial.nbytes
            reply(Numbers(asked.point, 0, len(shard.trial)), messages.blocks(shard.trial))

    def _push(self, pushed: Push, frames: Sequence[zmq.Frame], reply: Reply) -> None:
        shard = self._shard
        kept = shard is not None and shard.point == pushed.point
        if kept:
            assert shard is not None
            gradient = np.empty_like(shard.trial)
            messages.numbers(frames, gradient)
            self._bytes_in += gradient.nbytes
            attempt = Attempt(pushed.point, pushed.partition, pushed.chunk, pushed.number)
            shard.push(attempt, gradient)
        reply(Pushed(pushed.point, kept), ())


def serve(server: Server, control: Socket, workers: Socket) -> None:
    """Until the process ends."""
    poller = zmq.Poller()
    poller.register(control, zmq.POLLIN)
    poller.register(workers, zmq.POLLIN)

    def to_coordinator(message: Message, frames: Sequence[memoryview]) -> None:
        messages.send(control, message, frames)

    def to_worker(identity: bytes) -> Reply:
        def reply(message: Message, frames: Sequence[memoryview]) -> None:
            try:
                messages.send(workers, message, frames, identity)
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:  # else it is gone meanwhile
                    raise

        return reply

    while True:
        for ready, _ in poller.poll():
            if ready is control:
                server.answer(*messages.receive(control), to_coordinator)
            else:
                found = messages.receive_from(workers)
                if found is not None:
                    identity, message, frames = found
                    server.answer(message, frames, to_worker(identity))


def main() -> None:
    """A shard's process, until the driver program ends it, or is gone."""
    begun = Begun()
    workers = begun.listen()
    serve(Server(), begun.control, workers)
