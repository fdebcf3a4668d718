"""The master's ends of the connections to workers: a thread that answers them, one request after the other.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq

from gossip.arrays import Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from gossip.wire import BLOCK_BYTES
from gossip.zmq.sockets import Keys, bind, check_address, open_socket
from p2p.agent.local_socket import Process
from p2p.driver.coordinator import Coordinator
from p2p.driver.served import Served
from p2p.driver.snapshots import Snapshot
from p2p.driver.tickets import Tickets, Turns
from p2p.server.any_update import inflate
from p2p.server.messages import (
    INLINE_BYTES_MAX,
    Address,
    Applied,
    Begin,
    Dropped,
    Ended,
    Furthest,
    Hello,
    Known,
    Knows,
    Leaves,
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
    Welcome,
    decode_request,
    encode,
)
from p2p.server.shared import SharedFile, open_at

log = logging.getLogger("p2p")

SENDING_MAX_S = 30.0
"""A worker that sends nothing of its update for so long loses its turn."""
UPDATE_BYTES_PER_MODEL = 4
"""An update from another host may be so many times as large as the model,"""
UPDATE_BYTES_MIN = 64 << 20
"""or as this."""


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

    def forget_files(self, of_the_dead: bool = False) -> None:
        """Close those that it writes updates to, or if its process is gone."""
        for place in [place for place in self.files if not (of_the_dead and Process(place.pid).alive)]:
            self.files.pop(place).close()


class Server:
    """A feeder of coordinators, for all trainings of a session."""

    def __init__(self, served: Served, address: str, run: str, keys: Keys | None) -> None:
        """Listen at a free port of `address`; nobody is answered before `start`."""
        check_address(address, keys)
        self._served = served
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER, keys, server=True)
        self.address = Address(bind(self._socket, address), run, keys)
        self.workers: dict[bytes, Worker] = {}
        """Of the session, by the identity of their connection."""
        self._token = secrets.token_bytes(32)
        self._host = SharedFile(len(self._token))
        self._host.view()[: len(self._token)] = self._token
        self._coordinator: Coordinator | None = None
        self._tickets: Turns[bytes] = Tickets(None)
        self._senders: deque[bytes] = deque()
        """Who sends an update in pieces, and who waits for that."""
        self._wake = os.pipe()
        self._thread: threading.Thread | None = None

    def start(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._tickets = coordinator.turns
        self._thread = threading.Thread(target=self._run, name="deepdist-master", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is None:
            return
        os.write(self._wake[1], b"x")
        self._thread.join()
        os.read(self._wake[0], 1)
        self._thread = None

    def close(self) -> None:
        """Listen no more."""
        self.stop()
        if self._context.closed:
            return
        self._context.destroy(linger=0)
        for worker in self.workers.values():
            worker.forget_files()
        self._host.close()
        for descriptor in self._wake:
            os.close(descriptor)

    # ----------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake[0], zmq.POLLIN)
        assert self._coordinator is not None
        while True:
            ready = dict(poller.poll(1000 if self._senders or self._tickets.waits else None))
            if self._wake[0] in ready and self._socket not in ready:
                return  # all that was said is heard
            try:
                if self._socket in ready:
                    self._take(*self._socket.recv_multipart())
                self._go_on()
                self._look_after_senders()
            except BaseException as error:  # noqa: BLE001 - whatever it is, train() raises it
                self._coordinator.fail(error)

    def _take(self, identity: bytes, said: bytes, *frames: bytes) -> None:
        """Answer one message."""
        try:
            request = decode_request(said)
        except msgspec.MsgspecError as error:
            self._say(identity, Refused(f"not understood: {error}"))
            return
        worker = self.workers.get(identity)
        if isinstance(request, Hello):
            self._welcome(identity, request)
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
                coordinator.drop(Unit(*request.unit))
                self._say(identity, Known(True))
            case Knows():
                self._say(identity, Known(coordinator.knows(request.unit)))
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
            if self._senders[0] == identity:
                self._say(identity, Send())
            return
        self._is_there(identity)

    def _is_there(self, identity: bytes) -> None:
        """All of the update is."""
        if not self._tickets.push(identity):
            raise UsageError("another attempt at this partition has begun: the update of this one is not taken")

    def _go_on(self) -> None:
        """Apply updates, and give models, as it is their turn."""
        assert self._coordinator is not None
        while (step := self._tickets.next(self._served.version)) is not None:
            what, identity = step
            worker = self.workers[identity]
            with self._refusing(identity):
                if what == "give":
                    self._give(identity, worker)
                elif what == "later":
                    worker.begins = None
                    self._say_ready(identity, worker, Ready(later=True))
                else:
                    self._apply(identity, worker)

    def _apply(self, identity: bytes, worker: Worker) -> None:
        """Have `descent` take its update."""
        push, buffer, worker.push, worker.buffer = worker.push, worker.buffer, None, bytearray()
        assert push is not None
        file = worker.files.pop(push.place, None) if push.place is not None else None
        if file is None:
            self._applied(identity, worker, push, Applied(self._submit(worker, push, memoryview(buffer))[0]))
            return
        file.about_to_read()
        worker.bytes_in += push.layout.nbytes
        new, kept = self._submit(worker, push, file.view())
        if not kept:
            assert push.place is not None
            worker.files[push.place] = file
            file.leave()
        self._applied(identity, worker, push, Applied(new, kept))

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
        unit = Unit(*push.unit)
        stale = max(0, coordinator.version - push.version)
        new = coordinator.submit(update, unit, f"worker {worker.name}", push.version, checked=True)
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
        if push is None or not self._senders or self._senders[0] != identity or not frames:
            raise UsageError("a piece of an update that nobody waits for")
        worker.heard_at = time.monotonic()
        worker.buffer += frames[0]
        if len(worker.buffer) < push.layout.nbytes:
            return
        self._senders.popleft()
        try:
            self._is_there(identity)
        finally:
            self._next_sender()

    def _look_after_senders(self) -> None:
        """Who stands still in the middle of an update has no turn any more."""
        if self._senders and time.monotonic() - self.workers[self._senders[0]].heard_at > SENDING_MAX_S:
            worker = self.workers[self._senders.popleft()]
            log.warning("%s sent nothing of its update for %g s: it is not waited for", worker.name, SENDING_MAX_S)
            worker.push, worker.buffer = None, bytearray()
            self._next_sender()

    def _next_sender(self) -> None:
        if self._senders:
            self.workers[self._senders[0]].heard_at = time.monotonic()
            self._say(self._senders[0], Send())
