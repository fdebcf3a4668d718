"""The coordinator, in the driver program: it has portions computed, shards do their sums, and lost processes replaced.

    evaluate:  TryStep to all shards; portions to idle workers; Count for each that comes first; Measure
    accept:    Accept to all shards; then x goes into the user's model, slice by slice
    restart:   a shard is gone: another one takes its seat, and all of them begin anew with x of the user's model

So the driver program holds the user's model, and beside it no vector longer than a slice of it. If a shard dies while x
is written into the model, the slices of the living follow the one that the dead shard has left there: all of the next
iterate, or all of the one before.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import zmq

from gossip.arrays import Array, Arrays
from gossip.errors import UsageError
from p2p import parcel
from p2p.lbfgs import messages
from p2p.lbfgs.crew import Crew, Seat
from p2p.lbfgs.flat import Flat
from p2p.lbfgs.messages import (
    Accept,
    Accepted,
    Begin,
    Compute,
    Computed,
    Count,
    Direct,
    Dropped,
    Failed,
    Forget,
    Here,
    Measure,
    Measured,
    Message,
    Numbers,
    Placement,
    Read,
    Settle,
    Socket,
    Source,
    TryStep,
    Write,
    Written,
)
from p2p.lbfgs.method.minimizer import HistoryLost, Value
from p2p.lbfgs.method.options import LBFGS
from p2p.lbfgs.portions import TRIES_MAX, Portion, Portions, Started
from p2p.worker.errors import told

log = logging.getLogger("p2p")

WAIT_S = 0.1
"""How soon it is noticed that a process has ended."""
START_TIMEOUT_S = 60.0
PIECE_NUMBERS = 1 << 20
"""Of x, that are between the user's model and a shard at the same time."""


class WorkerLostError(RuntimeError):
    """Workers ended at the same portion, one after the other."""


@dataclass(frozen=True)
class Member:
    """A process that takes part."""

    seat: Seat
    pid: int = 0
    """0 until it has spoken."""
    portions: int = 0
    """That counted."""
    bytes_in: int = 0
    bytes_out: int = 0
    memory_peak_bytes: int = 0


class Coordinator:
    """The space of a `Minimizer`, made of the processes of a crew."""

    def __init__(
        self,
        crew: Crew,
        flat: Flat,
        arrays: Arrays,
        options: LBFGS,
        job: bytes,
        data: Sequence[Any],
        workers: int,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        """`arrays` are the user's, which x is written into; `job` is a parcel; `progress` hears of portions done."""
        self._crew = crew
        self._flat = flat
        self._arrays = arrays
        self._options = options
        self._job = job
        self._data = data
        self._progress = progress
        self.portions = Portions(len(data), options.backup_after)
        self.members: dict[str, Member] = {}
        """By name, the dead among them."""
        self.rows = 0
        """Of all passes."""
        self._workers = Workers(workers)
        self._shards = Shards(flat.spans(options.shards or workers))
        self._point = 0
        self._epoch = -1
        self._trial_square = 0.0
        context: zmq.Context[Socket] = zmq.Context()
        self._socket = messages.socket(context, zmq.ROUTER)
        self._socket.bind(crew.endpoint("driver"))

    def start(self) -> None:
        """Start all processes, and give the shards their ranges of the model."""
        for index in range(len(self._shards.spans)):
            self._seat_shard(index)
        for index in range(self._workers.count):
            self._seat_worker(index)
        self._begin_shards(range(len(self._shards.spans)))

    def close(self) -> None:
        """End all processes."""
        self._crew.stop()
        context = self._socket.context
        self._socket.close()
        context.term()

    # ----------------------------------------------------------------------------------------- as the minimizer's space

    def restart(self) -> None:
        iterate = self._shards.left_behind()
        for index, name in enumerate(self._shards.names):
            if name and self._shards.written[index] != iterate:
                self._pull(index, iterate)
        for index, name in enumerate(self._shards.names):
            if not name:
                self._seat_shard(index)
        self._shards.written = [iterate] * len(self._shards.names)
        self._begin_shards(range(len(self._shards.names)), iterate)
        for name in self._workers.told:
            self._send(name, self._placement())

    def forget(self) -> None:
        self._to_shards(Forget())

    def evaluate(self, step: float) -> Value:
        self._point += 1
        self._epoch += 1
        self._to_shards(TryStep(self._point, step))
        self.portions.begin()
        self._workers.losses.clear()
        while not self.portions.are_done:
            self._hand_out()
            self._turn()
        answers = self._ask(Measure(self._point), Measured, lambda answer: answer.point == self._point)
        for name, answer in zip(self._shards.names, answers, strict=True):
            self.members[name] = _with_figures(self.members[name], answer)
        self._trial_square = math.fsum(answer.trial_square for answer in answers)
        return Value(
            value=math.fsum([*self._workers.losses.values(), self._options.l2 / 2 * self._trial_square]),
            slope=math.fsum(answer.slope for answer in answers),
            gradient_square=math.fsum(answer.gradient_square for answer in answers),
        )

    def settle(self) -> float:
        self._to_shards(Settle())
        return self._trial_square

    def accept(self) -> tuple[Array, float]:
        answers = self._ask(Accept(), Accepted)
        self.write_back(answers[0].iterate)
        rows = np.array([answer.rows for answer in answers]).sum(axis=0)
        return rows, math.fsum(answer.x_square for answer in answers)

    def direct(self, coefficients: Array, keeps: bool) -> None:
        self._to_shards(Direct(coefficients.tolist(), keeps))

    # ------------------------------------------------------------------------------------------------- x in the model

    def write_back(self, iterate: int | None = None) -> None:
        """Have the user's model be this iterate; None: the last one, as far as it was begun to be written."""
        shards = self._shards
        wanted = max(shards.written) if iterate is None else iterate
        for index, name in enumerate(shards.names):
            if name and shards.written[index] != wanted:
                self._pull(index, wanted)

    def _pull(self, index: int, iterate: int) -> None:
        """Write a shard's numbers of an iterate into the model."""
        name, (first, end) = self._shards.names[index], self._shards.spans[index]
        for start in range(0, end - first, PIECE_NUMBERS):
            stop = min(start + PIECE_NUMBERS, end - first)
            self._send(name, Read(iterate, start, stop))
            answer, frames = self._answer_of(name, Numbers, partial(_is_piece, iterate, start))
            assert answer.size is not None, f"{name} has not iterate {iterate} any more"
            numbers = np.empty(stop - start, self._flat.dtype)
            messages.numbers(frames, numbers)
            self._flat.write(self._arrays, first + start, numbers)
        self._shards.written[index] = iterate

    # ------------------------------------------------------------------------------------------------------- messages

    def _turn(self) -> None:
        """Hear who has something to say, for a while."""
        waits_s = self.portions.waits_s(time.monotonic()) if self._workers.idle else None
        wait_s = WAIT_S if waits_s is None else min(WAIT_S, max(waits_s, 0.001))
        if self._socket.poll(int(wait_s * 1e3) + 1):
            self._hear()
        self._look_after_processes()

    def _hear(self) -> tuple[str, Any, list[zmq.Frame]] | None:
        """Take the next message; one that answers a question to a shard is returned."""
        identity, message, frames = messages.receive_from(self._socket)
        name = identity.decode()
        match message:
            case Here(pid):
                self.members[name] = replace(self.members[name], pid=pid)
                if self.members[name].seat.role == "worker":
                    self._workers.arrive(name)
            case Computed():
                self._workers.arrive(name)
                self._take(name, message)
            case Dropped():
                self._workers.arrive(name)
                self.portions.late(name)
                self.portions.dropped += 1
            case Failed():
                raise told(messages.joined(frames))
            case _:
                return name, message, frames
        return None

    def _take(self, name: str, message: Computed) -> None:
        """A portion's gradient is at all shards."""
        if message.point != self._point or name not in self._workers.there:
            self.portions.dropped += 1
            return
        portion = Portion(message.partition, message.chunk)
        if not self.portions.counts(name, portion, message.count, message.more, time.monotonic()):
            return
        self._to_shards(Count(message.point, message.partition, message.chunk, message.number))
        self._workers.losses[portion] = message.loss
        self.rows += message.rows
        member = self.members[name]
        self.members[name] = replace(_with_figures(member, message), portions=member.portions + 1)
        self._progress(len(self._workers.losses))

    def _hand_out(self) -> None:
        """Give idle workers something to do."""
        for name in list(self._workers.idle):
            started = self.portions.take(name, time.monotonic())
            if started is None:
                continue
            self._workers.idle.remove(name)
            self._give(name, started)

    def _give(self, name: str, started: Started) -> None:
        """Have a worker compute a portion, with all that it needs for that."""
        portion, there = started.portion, self._workers.there
        if name not in self._workers.told:
            self._workers.told[name] = set()
            self._send(name, self._placement(), messages.blocks(self._job))
        if name in there and portion.partition not in self._workers.told[name]:
            self._workers.told[name].add(portion.partition)
            rows = parcel.dumps(self._data[portion.partition])
            self._send(name, Source(portion.partition), messages.blocks(rows))
        if name in there:
            asked = Compute(self._point, self._epoch, portion.partition, portion.chunk, started.number)
            self._send(name, asked)

    def _placement(self) -> Placement:
        return Placement([self._crew.endpoint(shard) for shard in self._shards.names], self._shards.spans)

    def _ask(self, question: Message, expected: type[Any], fits: Callable[[Any], bool] = lambda _: True) -> list[Any]:
        """What all shards answer, in their order."""
        self._to_shards(question)
        found: dict[str, Any] = {}
        while len(found) < len(self._shards.names):
            heard = self._hear_shards()
            if heard is not None and isinstance(heard[1], expected) and fits(heard[1]):
                found[heard[0]] = heard[1]
        return [found[name] for name in self._shards.names]

    def _answer_of(self, name: str, expected: type[Any], fits: Callable[[Any], bool]) -> tuple[Any, list[zmq.Frame]]:
        while True:
            heard = self._hear_shards()
            if heard is not None and heard[0] == name and isinstance(heard[1], expected) and fits(heard[1]):
                return heard[1], heard[2]

    def _hear_shards(self) -> tuple[str, Any, list[zmq.Frame]] | None:
        heard = self._hear() if self._socket.poll(int(WAIT_S * 1e3)) else None
        if heard is None:
            self._look_after_processes()
        return heard

    def _to_shards(self, message: Message) -> None:
        for name in self._shards.names:
            self._send(name, message)

    def _send(self, name: str, message: Message, frames: Sequence[memoryview] = ()) -> None:
        try:
            messages.send(self._socket, message, frames, name.encode())
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._look_after_processes()  # it says who is gone, or does so soon

    # ------------------------------------------------------------------------------------------------------ processes

    def _seat_shard(self, index: int) -> None:
        seat = Seat("shard", index)
        name = self._shards.names[index] = self._crew.begin(seat)
        self.members[name] = Member(seat)

    def _seat_worker(self, index: int) -> None:
        seat = Seat("worker", index)
        self.members[self._crew.begin(seat)] = Member(seat)

    def _begin_shards(self, indices: Sequence[int], iterate: int = 0) -> None:
        """Give shards their ranges of x, as it is in the user's model, one after the other."""
        self._wait_for([self._shards.names[index] for index in indices])
        options = self._options
        for index in indices:
            name, (first, end) = self._shards.names[index], self._shards.spans[index]
            self._send(name, Begin(self._flat.dtype.str, end - first, options.history, options.l2, iterate))
            for start in range(0, end - first, PIECE_NUMBERS):
                stop = min(start + PIECE_NUMBERS, end - first)
                x = self._flat.read(self._arrays, first + start, first + stop)
                self._send(name, Write(start, stop - start), messages.blocks(x))
                self._answer_of(name, Written, partial(_starts, start))

    def _wait_for(self, names: Sequence[str]) -> None:
        """Until these processes have spoken."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while not all(self.members[name].pid for name in names):
            if time.monotonic() > give_up:
                raise UsageError(f"{len(names)} shards did not start within {START_TIMEOUT_S:g} s: see their messages")
            self._turn()

    def _look_after_processes(self) -> None:
        """Replace workers that have ended. Raises `HistoryLost` where a shard has."""
        lost = []
        for name, (seat, words) in self._crew.gone().items():
            if not self.members[name].pid:
                raise UsageError(f"{words} before it could begin: see its last words above")
            if seat.role == "shard":
                self._shards.names[seat.index] = ""
                lost.append(words)
                continue
            log.warning("%s; another one takes its place", words)
            self._workers.leave(name)
            if self.portions.lost(name) >= TRIES_MAX:
                raise WorkerLostError(f"{words}, as {TRIES_MAX - 1} before it at the same portion")
            self._seat_worker(seat.index)
        if lost:
            log.warning("%s, and its part of the history with it: L-BFGS begins anew from here", "; ".join(lost))
            raise HistoryLost("; ".join(lost))


class Workers:
    """What is known of the workers, by name."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.there: set[str] = set()
        self.idle: list[str] = []
        self.gone: set[str] = set()
        self.told: dict[str, set[int]] = {}
        """The partitions that they have been sent; a worker that is in here has the job, and knows the shards."""
        self.losses: dict[Portion, float] = {}
        """Of the portions that have counted in this pass."""

    def arrive(self, name: str) -> None:
        """It has nothing to do."""
        if name in self.gone:
            return  # what it said last comes late
        self.there.add(name)
        if name not in self.idle:
            self.idle.append(name)

    def leave(self, name: str) -> None:
        """It is gone."""
        self.gone.add(name)
        self.there.discard(name)
        self.told.pop(name, None)
        if name in self.idle:
            self.idle.remove(name)


class Shards:
    """Who has which range, and which iterate of it is in the user's model."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.spans = spans
        self.names = [""] * len(spans)
        """"" where the process is gone."""
        self.written = [0] * len(spans)

    def left_behind(self) -> int:
        """The iterate that the user's model is to be: that of the slices of shards that are gone."""
        iterates = {written for name, written in zip(self.names, self.written, strict=True) if not name}
        if len(iterates) > 1:
            log.warning("several shards ended while a step was written: L-BFGS goes on from a mixture of two iterates")
        return max(iterates, default=max(self.written))


def _with_figures(member: Member, said: Computed | Measured) -> Member:
    return replace(
        member,
        bytes_in=said.bytes_in,
        bytes_out=said.bytes_out,
        memory_peak_bytes=max(member.memory_peak_bytes, said.memory_peak_bytes),
    )


def _is_piece(iterate: int, start: int, found: Numbers) -> bool:
    return found.of == iterate and found.start == start


def _starts(start: int, found: Written) -> bool:
    return found.start == start
