"""The coordinator, in the driver program: it has portions computed, shards do their sums, and lost processes replaced.

    evaluate:  TryStep to all shards; portions to idle workers; Count for each that comes first; Measure
    accept:    Accept to all shards; then x goes into the user's model, slice by slice
    restart:   a shard is gone: another one takes its seat, and all of them begin anew with x of the user's model

So the driver program holds the user's model, and beside it no vector longer than a piece of it. If a shard dies while x
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
from p2p.lbfgs import messages
from p2p.lbfgs.crew import Crew, Seat
from p2p.lbfgs.flat import Flat
from p2p.lbfgs.messages import (
    Accept,
    Accepted,
    Begin,
    Computed,
    Count,
    Direct,
    Dropped,
    Failed,
    Forget,
    Here,
    Leave,
    Measure,
    Measured,
    Message,
    Numbers,
    Ping,
    Placement,
    Read,
    Settle,
    Socket,
    TryStep,
    Write,
    Written,
)
from p2p.lbfgs.method.minimizer import HistoryLost, Value
from p2p.lbfgs.method.options import LBFGS
from p2p.lbfgs.portions import Portion
from p2p.lbfgs.workforce import Workforce, seats_of

log = logging.getLogger("p2p")

WAIT_S = 0.1
"""How soon it is noticed that a process has ended."""
START_TIMEOUT_S = 60.0
PIECE_NUMBERS = 1 << 18
"""Of x, that are between the user's model and a shard at the same time."""


@dataclass(frozen=True)
class Member:
    """A process that takes part."""

    role: str
    pid: int = 0
    """0 until it has spoken."""
    endpoint: str = ""
    portions: int = 0
    """That counted."""
    bytes_in: int = 0
    bytes_out: int = 0
    memory_peak_bytes: int = 0


class Coordinator:
    """The space of a `Minimizer`, made of the processes of a crew."""

    def __init__(
        self, crew: Crew, flat: Flat, arrays: Arrays, options: LBFGS, workforce: Workforce, shards: int
    ) -> None:
        """`arrays` are the user's, which x is written into."""
        self._crew = crew
        self._flat = flat
        self._arrays = arrays
        self._options = options
        self._workforce = workforce
        self.portions = workforce.portions
        self.members: dict[str, Member] = {}
        """By name, the dead among them."""
        self.rows = 0
        """Of all passes."""
        self._shards = Shards(flat.spans(shards))
        self._losses: dict[Portion, float] = {}
        """Of the portions that have counted in this pass."""
        self._point = 0
        self._epoch = -1
        self._trial_square = 0.0
        context: zmq.Context[Socket] = zmq.Context()
        self._socket = messages.socket(context, zmq.ROUTER, keys=crew.keys)
        crew.listen(self._socket)

    def start(self) -> None:
        """Start all processes, and give the shards their ranges of the model."""
        self._seat([Seat("shard", index) for index in range(len(self._shards.spans))])
        self._seat(seats_of(self._workforce))
        self._begin_shards(0)

    def close(self) -> None:
        """End all processes."""
        self._workforce.end()
        self._workforce.close()
        for name in filter(None, self._shards.names):
            if self.members[name].pid:
                self._say(name, Leave(), ())
        self._crew.stop()
        context = self._socket.context
        self._socket.close()
        context.term()

    # ----------------------------------------------------------------------------------------- as the minimizer's space

    def restart(self) -> None:
        self._workforce.end()
        shards = self._shards
        iterate = shards.left_behind()
        self.write_back(iterate)
        shards.written = [iterate] * len(shards.names)
        self._seat([Seat("shard", index) for index, name in enumerate(shards.names) if not name])
        self._begin_shards(iterate)

    def forget(self) -> None:
        self._to_shards(Forget())

    def evaluate(self, step: float) -> Value:
        self._point += 1
        self._epoch += 1
        self._to_shards(TryStep(self._point, step))
        self.portions.begin()
        self._losses.clear()
        self._workforce.begin(self._point, self._epoch, self._placement())
        while not self.portions.are_done:
            self._workforce.turn(self._say)
            self._turn()
        self._workforce.end()
        answers = self._ask(Measure(self._point), Measured, lambda answer: answer.point == self._point)
        for name, answer in zip(self._shards.names, answers, strict=True):
            self.members[name] = _with_figures(self.members[name], answer)
        self._trial_square = math.fsum(answer.trial_square for answer in answers)
        return Value(
            value=math.fsum([*self._losses.values(), self._options.l2 / 2 * self._trial_square]),
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
        waits_s = self._workforce.wait_s()
        wait_s = WAIT_S if waits_s is None else min(WAIT_S, max(waits_s, 0.001))
        if self._socket.poll(int(wait_s * 1e3) + 1):
            self._hear()
        self._look_after_processes()

    def _hear(self) -> tuple[str, Any, list[zmq.Frame]] | None:
        """Take the next message; one that answers a question to a shard is returned."""
        found = messages.receive_from(self._socket)
        if found is None:
            return None
        name, (_, message, frames) = found[0].decode(errors="replace"), found
        if isinstance(message, Here) and name in self.members:
            self.members[name] = replace(self.members[name], pid=message.pid, endpoint=message.endpoint)
            if self.members[name].role == "shard":
                return None
        if not isinstance(message, Here | Computed | Dropped | Failed):
            return name, message, frames
        if self._workforce.hear(name, message, frames) and isinstance(message, Computed):
            self._take(name, message)
        return None

    def _take(self, name: str, message: Computed) -> None:
        """A portion's gradient is at all shards."""
        portion = Portion(message.partition, message.chunk)
        if not self.portions.counts(name, portion, message.count, message.more, time.monotonic()):
            return
        self._to_shards(Count(message.point, message.partition, message.chunk, message.number))
        self._losses[portion] = message.loss
        self.rows += message.rows
        member = self.members.get(name, Member("worker"))
        self.members[name] = replace(_with_figures(member, message), portions=member.portions + 1)

    def _placement(self) -> Placement:
        return Placement([self.members[name].endpoint for name in self._shards.names], self._shards.spans)

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
            self._say(name, message, ())
        self._look_after_processes()

    def _send(self, name: str, message: Message, frames: Sequence[memoryview] = ()) -> None:
        self._say(name, message, frames)
        self._look_after_processes()

    def _say(self, name: str, message: Message, frames: Sequence[memoryview]) -> None:
        """Send a message. That its reader is gone is noticed at the next look after processes."""
        try:
            messages.send(self._socket, message, frames, name.encode())
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._crew.unreachable(name)

    # ------------------------------------------------------------------------------------------------------ processes

    def _seat(self, seats: Sequence[Seat]) -> None:
        """Start processes."""
        for seat, name in zip(seats, self._crew.begin(seats), strict=True):
            self.members[name] = Member(seat.role)
            if seat.role == "shard":
                self._shards.names[seat.index] = name

    def _begin_shards(self, iterate: int) -> None:
        """Give all shards their ranges of x, as it is in the user's model, one after the other."""
        names, options = self._shards.names, self._options
        give_up = time.monotonic() + START_TIMEOUT_S
        while not all(self.members[name].pid for name in names):
            if time.monotonic() > give_up:
                raise UsageError(f"{len(names)} shards did not start within {START_TIMEOUT_S:g} s: see their messages")
            self._turn()
        for name, (first, end) in zip(names, self._shards.spans, strict=True):
            self._send(name, Begin(self._flat.dtype.str, end - first, options.history, options.l2, iterate))
            for start in range(0, end - first, PIECE_NUMBERS):
                stop = min(start + PIECE_NUMBERS, end - first)
                x = self._flat.read(self._arrays, first + start, first + stop)
                self._send(name, Write(start, stop - start), messages.blocks(x))
                self._answer_of(name, Written, partial(_starts, start))

    def _look_after_processes(self) -> None:
        """Replace workers that have ended. Raises `HistoryLost` where a shard has."""
        lost = []
        if self._shards.are_due(time.monotonic()):
            for name in filter(None, self._shards.names):
                if self.members[name].pid:
                    self._say(name, Ping(), ())
        for name, (seat, words) in self._crew.gone().items():
            if not self.members[name].pid:
                raise UsageError(f"{words} before it could begin: see its last words above")
            if seat.role == "shard":
                self._shards.names[seat.index] = ""
                lost.append(words)
            else:
                self._workforce.ended(name, words)
                self._seat([seat])
        if lost:
            log.warning("%s, and its part of the history with it: L-BFGS begins anew from here", "; ".join(lost))
            raise HistoryLost("; ".join(lost))


class Shards:
    """Who has which range, and which iterate of it is in the user's model."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.spans = spans
        self.names = [""] * len(spans)
        """"" where the process is gone."""
        self.written = [0] * len(spans)
        self._looked = 0.0

    def left_behind(self) -> int:
        """The iterate that the user's model is to be: that of the slices of shards that are gone."""
        iterates = {written for name, written in zip(self.names, self.written, strict=True) if not name}
        if len(iterates) > 1:
            log.warning("several shards ended while a step was written: L-BFGS goes on from a mixture of two iterates")
        return max(iterates, default=max(self.written))

    def are_due(self, now: float) -> bool:
        """Whether nobody has looked for so long if they can be reached."""
        due = now - self._looked > 1.0
        self._looked = now if due else self._looked
        return due


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
