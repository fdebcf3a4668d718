"""The master's ends of the connections to workers: a thread that answers them, one request after the other, also while
a descent that takes long runs in another one (`p2p.master.descending`).

    Begin -> the model as it is now: its file, or its bytes        Push -> the update -> coordinator: descent -> Applied

A worker waits for its answer, so there is at most one update of each, and none waits here once its worker was answered.
On one host models and updates are files of shared memory, which nobody copies on the way. From elsewhere updates come
in pieces, one worker's after the other's, so that memory does not grow with the number of workers.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import zmq

from gossip.arrays import Bytes, Layout
from gossip.errors import UsageError, WireError
from gossip.wire import BLOCK_BYTES
from gossip.zmq.sockets import Keys, bind, check_address, open_socket
from p2p.agent.local_socket import Process
from p2p.master.coordinator import Coordinator
from p2p.master.descending import Descending, Outcome
from p2p.master.served import Served
from p2p.master.snapshots import Snapshot
from p2p.master.tickets import Tickets, Turns
from p2p.server.any_update import inflate
from p2p.server.messages import (
    INLINE_BYTES_MAX,
    Address,
    Again,
    Applied,
    Begin,
    Dropped,
    Ended,
    Furthest,
    Hello,
    Known,
    Knows,
    Leaves,
    Moved,
    Part,
    Piece,
    Place,
    Push,
    Reached,
    Read,
    Ready,
    Refused,
    Said,
    Send,
    Those,
    Welcome,
    Where,
    Which,
    decode_request,
    encode,
)
from p2p.server.shared import SharedFile, open_at

log = logging.getLogger("p2p")

TURN_S = 0.05
"""How long the thread waits, where other masters are to hear of it."""
SENDING_MAX_S = 30.0
"""A worker that sends nothing of its update for so long loses its turn."""
UPDATE_BYTES_PER_MODEL = 4
"""An update from another host may be so many times as large as the model,"""
UPDATE_BYTES_MIN = 64 << 20
"""or as this."""


@dataclass(frozen=True)
class Settled:
    """What became of an update that a group of masters was to agree on."""

    token: Any
    new: bool
    """It was the first of its unit, and not nothing."""
    stale: int
    """Updates applied between the model that it was computed from, and it."""
    error: Exception | None
    """What descent raised."""


class Agreement(Protocol):
    """Several masters, that agree in which order updates are applied: `p2p.standby.group`."""

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Where the others are heard."""
        ...

    @property
    def leads(self) -> bool:
        """This one answers the workers."""
        ...

    @property
    def leader_face(self) -> str:
        """Where workers find who does; empty if that is not known."""
        ...

    @property
    def view(self) -> int:
        """It grows whenever who leads is another, or leads again."""
        ...

    def propose(self, push: Push, worker: str, arrays: Bytes, token: Hashable) -> None:
        """Have it applied everywhere."""
        ...

    def propose_nothing(self, dropped: Dropped, token: Hashable) -> None:
        """Have it known everywhere that nothing comes of these units."""
        ...

    def turn(self) -> list[Settled]:
        """To be called often. What was proposed, and has been applied."""
        ...


@dataclass(eq=False)
class Worker:
    """What is known of one."""

    name: str
    published: int = 0
    """Updates of it that were applied."""
    seen: int = 0
    """Updates in the model that it got last."""
    staleness: list[int] = field(default_factory=list)
    """Of each of them: updates applied between the model that it was computed from, and it."""
    bytes_in: int = 0
    """What it sent, also as files."""
    bytes_out: int = 0
    """What it was sent, the same."""
    memory_peak_bytes: int = 0
    files: dict[Place, SharedFile] = field(default_factory=dict)
    """Those that it writes updates to."""
    begins: Begin | None = None
    """It waits for the model,"""
    applied: Applied | None = None
    """and is to hear then what became of its update."""
    reads: Snapshot | None = None
    """What it reads in pieces."""
    push: Push | None = None
    """The update that it sends, or that is to be applied,"""
    buffer: bytearray = field(default_factory=bytearray)
    """and what has come of it, unless it is in a file,"""
    heard_at: float = 0.0
    """and when."""
    proposed: Push | Dropped | None = None
    """The update that other masters are to agree on."""

    @property
    def waits(self) -> bool:
        """It has not been answered."""
        return self.begins is not None or self.push is not None or self.proposed is not None

    def forget_files(self, of_the_dead: bool = False) -> None:
        """Close those that it writes updates to, or if its process is gone."""
        for place in [place for place in self.files if not (of_the_dead and Process(place.pid).alive)]:
            self.files.pop(place).close()


class Server:
    """A feeder of coordinators, for all trainings of a session."""

    def __init__(self, address: str, run: str, keys: Keys | None) -> None:
        """Listen at a free port of `address`; nobody is answered before `start`."""
        check_address(address, keys)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, keys, server=True)
        self.address = Address(bind(self._socket, address), run, None if keys is None else keys.public)
        self.workers: dict[bytes, Worker] = {}
        """Of the session, by the identity of their connection."""
        self._token = secrets.token_bytes(32)
        self._host = SharedFile(len(self._token))
        self._host.view()[: len(self._token)] = self._token
        self._coordinator: Coordinator | None = None
        self._tickets: Turns[bytes] = Tickets(None)
        self._descending: Descending[tuple[bool, bool]] = Descending()
        self._senders: deque[bytes] = deque()
        """Who sends an update in pieces, and who waits for that;"""
        self._sending: bytes | None = None
        """who was told to."""
        self._wake = os.pipe()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.agreement: Agreement | None = None
        """Where there are several masters: to be set before `start`."""
        self._view = 0

    def wake(self) -> None:
        """Have the thread come round. From any thread."""
        os.write(self._wake[1], b"x")

    def start(self, coordinator: Coordinator) -> None:
        self._coordinator, self._stopping, self._view = coordinator, False, 0
        self._tickets = coordinator.turns
        self._thread = threading.Thread(target=self._run, name="deepdist-master", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._stopping = True
        self.wake()
        self._thread.join()
        self._thread = None

    @property
    def _served(self) -> Served:
        assert self._coordinator is not None
        return self._coordinator.served

    def forget_workers(self) -> None:
        """Those of a training that is over; to be called when the server is stopped."""
        for worker in self.workers.values():
            worker.forget_files()
        self.workers.clear()

    def close(self) -> None:
        """Listen no more."""
        self.stop()
        if self._context.closed:
            return
        self._context.destroy(linger=0)
        for worker in self.workers.values():
            worker.forget_files()
        self._host.close()
        self._descending.close()
        for descriptor in self._wake:
            os.close(descriptor)

    # ----------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake[0], zmq.POLLIN)
        poller.register(self._descending.done, zmq.POLLIN)
        assert self._coordinator is not None
        wait_ms = None
        if self.agreement is not None:
            poller.register(self.agreement.socket, zmq.POLLIN)
            wait_ms = int(TURN_S * 1e3)
        while True:
            looks_again = self._senders or self._tickets.waits
            waits_ms = 0 if self._stopping else 1000 if looks_again and wait_ms is None else wait_ms
            ready = dict(poller.poll(waits_ms))
            if self._wake[0] in ready:
                os.read(self._wake[0], 1 << 12)
            ends = self._stopping and self._socket not in ready
            if ends and not self._descending.is_under_way:
                self._descending.stop()
                return  # all that was said is heard
            try:
                if self._socket in ready:
                    self._take(*self._socket.recv_multipart())
                if self.agreement is not None:
                    self._agree(self.agreement)
                if self._descending.done in ready or (ends and self._descending.is_under_way):
                    self._descending.settle()
                    self._next_sender()
                self._go_on()
                self._look_after_senders()
            except BaseException as error:  # noqa: BLE001 - whatever it is, train() raises it
                self._coordinator.fail(error)

    def _take(self, identity: bytes, said: bytes, *frames: bytes) -> None:
        """Answer one message."""
        try:
            request = decode_request(said)
        except WireError as error:
            self._say(identity, Refused(f"not understood: {error}"))
            return
        worker = self.workers.get(identity)
        if self.agreement is not None and (isinstance(request, Where) or not self.agreement.leads):
            self._say(identity, Moved(self.agreement.leader_face))
        elif isinstance(request, Hello):
            self._welcome(identity, request)
        elif worker is None and self.agreement is not None:
            self._say(identity, Moved(self.agreement.leader_face))
        elif worker is None:
            self._say(identity, Refused("say Hello first: the master does not know this worker"))
        else:
            worker.bytes_in += len(said) + sum(map(len, frames))
            with self._refusing(identity):
                self._answer(identity, worker, request, frames)

    @contextmanager
    def _refusing(self, identity: bytes) -> Iterator[None]:
        """What fails within is told to the worker, which waits for an answer."""
        try:
            yield
        except BaseException as error:
            self._tickets.leave(identity)
            self._say(identity, Refused(str(error) or type(error).__name__))
            if not isinstance(error, UsageError):
                raise

    def _welcome(self, identity: bytes, hello: Hello) -> None:
        if not secrets.compare_digest(hello.run, self.address.run):
            self._say(identity, Refused("this is the master of another run"))
            return
        for other in self.workers.values():
            other.forget_files(of_the_dead=True)
        self.workers[identity] = Worker(hello.name)
        self._say(identity, Welcome(self._host.place, self._token))

    def _answer(self, identity: bytes, worker: Worker, request: Said, frames: tuple[bytes, ...]) -> None:
        coordinator = self._coordinator
        assert coordinator is not None
        match request:
            case Begin():
                self._done_reading(worker)
                self._begin(identity, worker, request)
            case Read():
                self._read(identity, worker, request)
            case Push():
                self._done_reading(worker)
                self._push(identity, worker, request, frames)
            case Part():
                self._part(identity, worker, frames)
            case Dropped():
                if self.agreement is not None:
                    worker.proposed = request
                    self.agreement.propose_nothing(request, (identity, request))
                    return
                coordinator.drop((request.unit, *request.also), request.bad)
                self._tickets.counts(request.unit)
                self._say(identity, Known(True))
            case Knows():
                self._say(identity, Known(coordinator.knows(request.unit)))
            case Which():
                self._say(identity, Those(tuple(unit for unit in request.units if coordinator.knows(unit))))
            case Furthest():
                self._say(identity, Reached(coordinator.furthest(request.epoch, request.partition)))
            case Ended():
                coordinator.end(request.epoch, request.partition)
                self._go_on()  # all that comes of it is done when the task is
                self._say(identity, Known(True))
            case Leaves():
                self._tickets.leave(identity)
                self._done_reading(worker)
                worker.forget_files()
                worker.memory_peak_bytes = request.memory_peak_bytes

    def _say(self, identity: bytes, answer: Said, frame: bytes | None = None) -> None:
        self._socket.send_multipart([identity, encode(answer), *([] if frame is None else [frame])])

    # ------------------------------------------------------------------------------------------- the model, to it

    def _begin(self, identity: bytes, worker: Worker, request: Begin) -> None:
        coordinator = self._coordinator
        assert coordinator is not None
        if coordinator.knows(request.unit):
            self._say(identity, Ready(known=True))
            return
        worker.begins, worker.applied = request, None
        self._tickets.ask(identity, request.unit, request.attempt)

    def _give(self, identity: bytes, worker: Worker) -> None:
        """Give it the model."""
        coordinator, request, worker.begins = self._coordinator, worker.begins, None
        assert coordinator is not None
        assert request is not None
        if coordinator.error is not None:
            raise UsageError(f"the training has ended: {coordinator.error}")
        if coordinator.knows(request.unit):  # by another attempt, meanwhile
            self._tickets.leave(identity)
            self._say_ready(identity, worker, Ready(known=True))
            return
        snapshots, frame = self._served.snapshots, None
        if snapshots.current.nbytes <= INLINE_BYTES_MAX:
            model = snapshots.pin()
            frame = model.read(0, model.nbytes)
            snapshots.unpin(model)
        elif request.shares:
            model = snapshots.current
        else:
            model = worker.reads = snapshots.pin()
        worker.seen = model.version
        has_others = model.attributes is not None and request.attributes != model.attributes_version
        ready = Ready(
            version=model.version,
            attributes=model.attributes_version,
            layout=model.attributes if has_others else None,
            place=model.file.place if frame is None and request.shares else None,
            inline=frame is not None,
        )
        worker.bytes_out += model.nbytes if worker.reads is None else 0
        self._say_ready(identity, worker, ready, frame)

    def _say_ready(self, identity: bytes, worker: Worker, ready: Ready, frame: bytes | None = None) -> None:
        before = [] if worker.applied is None else [encode(worker.applied)]
        worker.applied = None
        self._socket.send_multipart([identity, *before, encode(ready), *([] if frame is None else [frame])])

    def _read(self, identity: bytes, worker: Worker, request: Read) -> None:
        if worker.reads is None:
            raise UsageError("there is no model to read: say Begin first")
        if not request.start <= request.stop <= min(request.start + BLOCK_BYTES, worker.reads.nbytes):
            raise UsageError(f"bytes {request.start} to {request.stop}, expected at most {BLOCK_BYTES} of the model")
        piece = worker.reads.read(request.start, request.stop)
        worker.bytes_out += len(piece)
        self._say(identity, Piece(), piece)

    def _done_reading(self, worker: Worker) -> None:
        if worker.reads is not None:
            self._served.snapshots.unpin(worker.reads)
            worker.reads = None

    # ---------------------------------------------------------------------------------------- the update, from it

    def _push(self, identity: bytes, worker: Worker, push: Push, frames: tuple[bytes, ...]) -> None:
        worker.push, worker.buffer, worker.heard_at = push, bytearray(), time.monotonic()
        if push.inline:
            worker.buffer = bytearray(frames[0] if frames else b"")
        elif push.place is None or self._file(worker, push.place, push.layout) is None:
            self._check_size(push.layout)
            self._senders.append(identity)
            self._next_sender()
            return
        self._is_there(identity)

    def _is_there(self, identity: bytes) -> None:
        """All of the update is."""
        if self._tickets.push(identity, self._served.version):
            return
        coordinator, worker = self._coordinator, self.workers[identity]
        push, worker.push, worker.buffer = worker.push, None, bytearray()
        assert coordinator is not None
        assert push is not None
        if not coordinator.knows(push.unit):
            if self.agreement is not None:  # the ticket was another master's
                self._say(identity, Again())
                return
            raise UsageError("another attempt at this partition has begun: the update of this one is not taken")
        self._applied(identity, worker, push, Applied(False))

    def _go_on(self) -> None:
        """Apply updates, and give models, as it is their turn."""
        assert self._coordinator is not None
        while (step := self._tickets.next(self._served.version, self.agreement is not None)) is not None:
            what, identity = step
            worker = self.workers[identity]
            if what == "apply":
                self._apply(identity, worker)
                continue
            with self._refusing(identity):
                if what == "give":
                    self._give(identity, worker)
                elif what == "settle":
                    self._is_there(identity)
                else:
                    worker.begins = None
                    self._say_ready(identity, worker, Ready(later=True))

    def _apply(self, identity: bytes, worker: Worker) -> None:
        """Have `descent` take its update."""
        push, buffer, worker.push, worker.buffer = worker.push, worker.buffer, None, bytearray()
        assert push is not None
        file = worker.files.pop(push.place, None) if push.place is not None else None
        if self.agreement is not None:
            self._propose(self.agreement, identity, worker, push, memoryview(buffer) if file is None else file)
            return
        if file is not None:
            file.about_to_read()
            worker.bytes_in += push.layout.nbytes

        def finish(outcome: Outcome[tuple[bool, bool]]) -> None:
            with self._refusing(identity):
                found, error = outcome
                if error is not None:
                    raise error
                assert found is not None
                new, kept = found
                if file is not None and not kept:
                    assert push.place is not None
                    worker.files[push.place] = file
                    file.leave()
                self._tickets.applied(identity)
                self._applied(identity, worker, push, Applied(new, kept and file is not None))

        def descend() -> tuple[bool, bool]:
            return self._submit(worker, push, memoryview(buffer) if file is None else file.view())

        self._descending.run(descend, finish)

    def _propose(
        self, agreement: Agreement, identity: bytes, worker: Worker, push: Push, source: memoryview | SharedFile
    ) -> None:
        """Have the other masters hold its update, before it is applied."""
        worker.proposed = push
        if isinstance(source, memoryview):
            agreement.propose(push, worker.name, _of_size(source, push), (identity, push))
            return
        source.about_to_read()
        with source.view() as view:
            agreement.propose(push, worker.name, _of_size(view, push), (identity, push))
        assert push.place is not None
        worker.files[push.place] = source
        source.leave()

    def _agree(self, agreement: Agreement) -> None:
        """Hear the other masters."""
        settled = agreement.turn()
        if agreement.view != self._view:
            self._view = agreement.view
            self._send_away(agreement)
        for each in settled:
            identity: bytes
            request: Push | Dropped
            identity, request = each.token
            worker = self.workers.get(identity)
            if worker is None or worker.proposed is not request:
                continue
            worker.proposed = None
            if isinstance(request, Dropped):
                self._tickets.counts(request.unit)
                self._say(identity, Known(True))
                continue
            self._tickets.applied(identity)
            with self._refusing(identity):
                if each.error is not None:
                    raise each.error
                if each.new:
                    worker.published += 1
                    worker.staleness.append(each.stale)
                self._applied(identity, worker, request, Applied(each.new))

    def _send_away(self, agreement: Agreement) -> None:
        """Who waits for an answer is to ask another master, or again."""
        for identity, worker in self.workers.items():
            if worker.waits:
                self._say(identity, Moved(agreement.leader_face))
            self._done_reading(worker)
            worker.forget_files()
        self.workers.clear()
        self._senders.clear()
        self._sending = None
        assert self._coordinator is not None
        self._tickets = self._coordinator.turns

    def _applied(self, identity: bytes, worker: Worker, push: Push, applied: Applied) -> None:
        """Say so, now or with the model for what it does next."""
        if push.then is None:
            self._say(identity, applied)
            return
        worker.begins, worker.applied = push.then, applied
        self._tickets.ask(identity, push.then.unit, push.then.attempt)

    def _submit(self, worker: Worker, push: Push, view: memoryview) -> tuple[bool, bool]:
        """(whether it was the first of its unit, whether somebody holds on to its arrays)."""
        if len(view) < push.layout.nbytes:
            raise UsageError(f"an update of {len(view)} bytes, expected {push.layout.nbytes}")
        coordinator = self._coordinator
        assert coordinator is not None
        whole = np.frombuffer(view, np.uint8)
        nobody = sys.getrefcount(whole)
        update, _ = inflate(push.layout.views(whole))
        whose, stale = f"worker {worker.name}", max(0, coordinator.version - push.version)
        new = coordinator.submit(
            update, push.unit, whose, push.version, checked=True, also=push.also, left_out=push.bad
        )
        if new:
            worker.published += 1
            worker.staleness.append(stale)
        del update
        return new, sys.getrefcount(whole) > nobody  # each array that looks at it holds on to it

    def _file(self, worker: Worker, place: Place, layout: Layout) -> SharedFile | None:
        file = worker.files.get(place)
        if file is None:
            file = open_at(place, layout.nbytes)
            if file is not None:
                worker.files[place] = file
        return file

    def _check_size(self, layout: Layout) -> None:
        allowed = max(UPDATE_BYTES_PER_MODEL * self._served.snapshots.current.nbytes, UPDATE_BYTES_MIN)
        if layout.nbytes > allowed:
            raise UsageError(f"an update of {layout.nbytes} bytes, expected at most {allowed}")

    def _part(self, identity: bytes, worker: Worker, frames: tuple[bytes, ...]) -> None:
        push = worker.push
        if push is None or self._sending != identity or not frames:
            raise UsageError("a piece of an update that nobody waits for")
        worker.heard_at = time.monotonic()
        worker.buffer += frames[0]
        if len(worker.buffer) < push.layout.nbytes:
            return
        self._senders.popleft()
        self._sending = None
        try:
            self._is_there(identity)
        finally:
            self._next_sender()

    def _look_after_senders(self) -> None:
        """Who stands still in the middle of an update has no turn any more."""
        if self._sending is not None and time.monotonic() - self.workers[self._sending].heard_at > SENDING_MAX_S:
            self._senders.popleft()
            worker, self._sending = self.workers[self._sending], None
            log.warning("%s sent nothing of its update for %g s: it is not waited for", worker.name, SENDING_MAX_S)
            worker.push, worker.buffer = None, bytearray()
            self._next_sender()

    def _next_sender(self) -> None:
        """Have the next one send, unless a descent runs beside: its update would wait here."""
        if self._senders and self._sending is None and not self._descending.is_under_way:
            self._sending = self._senders[0]
            self.workers[self._sending].heard_at = time.monotonic()
            self._say(self._sending, Send())


def _of_size(view: memoryview, push: Push) -> memoryview:
    """The update's bytes, if they are there."""
    if len(view) < push.layout.nbytes:
        raise UsageError(f"an update of {len(view)} bytes, expected {push.layout.nbytes}")
    return view[: push.layout.nbytes]
