"""A task's connection to the master of its run. One of a worker process serves one task after the other.

begin(unit) -> None, or the model: a view of the master's file, or what came in its bytes
push        -> an update, once `descent` has taken it
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import zmq

from gossip.arrays import Array, Arrays, Layout
from gossip.errors import UsageError
from gossip.marks import Unit
from gossip.wire import BLOCK_BYTES
from gossip.zmq.sockets import WINDOW_BLOCKS, Keys, open_socket
from p2p.server.messages import (
    INLINE_BYTES_MAX,
    Address,
    Again,
    Answer,
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
    Request,
    Said,
    Send,
    Those,
    Welcome,
    Where,
    Which,
    decode_answer,
    encode,
)
from p2p.server.shared import SharedFile, memory_peak_bytes, open_at

LOOK_S = 5.0
"""How often a worker that waits looks whether the master still listens."""
GROUP_LOOK_S = 0.5
"""The same where there are several masters: whether another leads by now."""
GIVE_UP_S = 60.0
"""So long it is looked for one that leads."""
CONNECT_TIMEOUT_S = 5.0
FILES_MAX = 8
"""Of the master's, that are kept open."""

A = TypeVar("A", bound=Said)
T = TypeVar("T")


class NotNowError(Exception):
    """The task is to end, and another one goes on with its partition: see `p2p.master.barrier`."""


class MasterGoneError(UsageError):
    """Nobody listens where the master was."""


class MovedError(Exception):
    """Another master is to be asked."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is where it is; empty if that is not known."""
        super().__init__(endpoint)
        self.endpoint = endpoint


class ComputeAgainError(Exception):
    """The master that leads now does not know the model that the update was computed from."""


@dataclass
class MasterModel:
    """The model as the master gave it, to be read once."""

    layout: Layout
    version: int
    """Updates that are in it; under `reading` also where the master has put a newer one there meanwhile."""
    attributes_version: int
    """The same, of its attributes."""
    attributes: Layout | None
    """What lies behind the arrays, if it is not what the worker has."""
    _source: SharedFile | memoryview

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nobody writes to it meanwhile."""
        if not isinstance(self._source, SharedFile):
            yield
            return
        with self._source.reading():
            told = self.attributes_version
            self.version, self.attributes_version = self._source.versions
            if self.attributes_version != told:
                self.attributes = None  # of another layout, maybe: they come with the next one
                self.attributes_version = -1
            self._source.about_to_read()
            try:
                yield
            finally:
                self._source.leave()

    def arrays(self) -> dict[str, Array]:
        """The named arrays, as views; to be read under `reading`."""
        return self.layout.views(self._bytes())

    def attribute_arrays(self) -> dict[str, Array]:
        """What lies behind them, copied; the same."""
        assert self.attributes is not None
        start = self.layout.nbytes
        return self.attributes.views(bytearray(self._bytes()[start : start + self.attributes.nbytes]))

    def _bytes(self) -> memoryview:
        return self._source.view() if isinstance(self._source, SharedFile) else self._source


class MasterClient:
    """The connection. What it is asked waits for the master's answer."""

    def __init__(self, address: Address) -> None:
        """Connect. `UsageError` if the master lets this worker not in, or is not there."""
        self.address = address
        self._endpoint: str
        """Where the master is that leads."""
        self._led_at = time.monotonic()
        """Somebody led then, as far as it is known."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connect(address.endpoint)
        self._files: dict[Place, SharedFile] = {}
        """Of the master's."""
        self._own: SharedFile | None = None
        """Where updates are written that are not small."""
        self._ready: tuple[Unit, Ready, list[bytes]] | None = None
        """What came along for the next unit."""
        self.shares_memory = False
        try:
            self._surely(self._greet)
        except BaseException:
            self.close()
            raise

    def _open(self) -> zmq.Socket[bytes]:
        """A socket to a master, by keys of its own."""
        keys = None if self.address.key is None else Keys.generate()
        return open_socket(self._context, zmq.DEALER, keys, server_key=self.address.key)

    def _connect(self, endpoint: str) -> None:
        self._socket = self._open()
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        """Where ZeroMQ tells that the connection broke, which it makes again by itself."""
        self._socket.connect(endpoint)
        self._endpoint = endpoint

    def _disconnect(self) -> None:
        self._socket.disable_monitor()
        self._socket.close(linger=0)
        self._monitor.close(linger=0)

    def _greet(self) -> None:
        welcome, _ = self._ask_for(Hello(self.address.run, f"{socket.gethostname()}:{os.getpid()}"), Welcome)
        host = open_at(welcome.host, len(welcome.token))
        self.shares_memory = False
        if host is not None:
            self.shares_memory = bytes(host.view()[: len(welcome.token)]) == welcome.token
            host.close()

    def begin(self, unit: Unit, attempt: int, layout: Layout, attributes: int) -> MasterModel | None:
        """The model to compute the unit's gradient from, of this layout; None if the unit counts already. The worker
        has the `attributes` of that version. `NotNowError` if another task is to compute it."""
        return self._surely(lambda: self._begin(unit, attempt, layout, attributes))

    def _begin(self, unit: Unit, attempt: int, layout: Layout, attributes: int) -> MasterModel | None:
        came, self._ready = self._ready, None
        if came is not None and came[0] == unit:
            _, ready, frames = came
        else:
            ready, frames = self._ask_for(self.begins(unit, attempt, attributes), Ready)
        if ready.later:
            raise NotNowError
        if ready.known:
            return None
        nbytes = layout.nbytes + (0 if ready.layout is None else ready.layout.nbytes)
        source: SharedFile | memoryview
        if ready.inline:
            source = memoryview(frames[0])
        elif ready.place is not None:
            file = self._file(ready.place, nbytes)
            if file is None:  # the master went on to another one meanwhile
                return self._begin(unit, attempt, layout, attributes)
            source = file
        else:
            source = self._read(nbytes)
        return MasterModel(layout, ready.version, ready.attributes, ready.layout, source)

    def begins(self, unit: Unit, attempt: int, attributes: int) -> Begin:
        """The request of `begin`."""
        return Begin(unit, attempt, attributes, self.shares_memory)

    def push(
        self,
        unit: Unit,
        version: int,
        arrays: Arrays,
        then: Begin | None = None,
        also: Sequence[Unit] = (),
        bad: int = 0,
    ) -> bool:
        """Hand over a flattened update; False if its unit was there before, or it is nothing. The model for the next
        unit, `then`, comes with the answer. The update stands for the units `also`, too, and `bad` are left out.

        Raises:
            ComputeAgainError: the master is another one by now, and cannot take it.
        """
        return self._surely(lambda: self._push(unit, version, arrays, then, tuple(also), bad))

    def _push(
        self, unit: Unit, version: int, arrays: Arrays, then: Begin | None, also: tuple[Unit, ...], bad: int
    ) -> bool:
        layout = Layout.of(arrays)
        if layout.nbytes <= INLINE_BYTES_MAX:
            buffer = bytearray(layout.nbytes)
            _write(arrays, layout, memoryview(buffer))
            push = Push(unit=unit, also=tuple(also), bad=bad, version=version, layout=layout, inline=True, then=then)
            return self._applied(push, *self._ask(push, buffer)).new
        file = self._room(layout.nbytes)
        file.about_to_write()
        with file.view() as view:
            _write(arrays, layout, view)
        place = file.place if self.shares_memory else None
        push = Push(unit=unit, also=tuple(also), bad=bad, version=version, layout=layout, place=place, then=then)
        answer, frames = self._ask(push)
        if isinstance(answer, Send):
            answer, frames = self._send(file, layout.nbytes)
        if not isinstance(answer, Applied) or answer.kept:
            file.close()
            self._own = None
        else:
            file.leave()
        return self._applied(push, answer, frames).new

    def _applied(self, push: Push, answer: Answer, frames: list[bytes]) -> Applied:
        if isinstance(answer, Again):
            raise ComputeAgainError
        if not isinstance(answer, Applied):
            raise UsageError(answer.why if isinstance(answer, Refused) else f"Push was answered with {answer}")
        if push.then is not None:
            said, *rest = frames
            ready = decode_answer(said)
            assert isinstance(ready, Ready)
            self._ready = push.then.unit, ready, rest
        return answer

    def drop(self, unit: Unit, also: Sequence[Unit] = (), bad: int = 1) -> None:
        """Its update has a NaN or an infinity: it counts as done, and nothing is sent. So do `also`, of which `bad` in
        all had such updates."""
        self.ask(Dropped(unit, tuple(also), bad), Known)

    def counting(self, units: Sequence[Unit]) -> set[Unit]:
        """Those of the units that count already."""
        return set(self.ask(Which(tuple(units)), Those)[0].units)

    def knows(self, unit: tuple[int, int, int]) -> bool:
        """It counts already."""
        return self.ask(Knows(Unit(*unit)), Known)[0].known

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that counts; -1 if none does."""
        return self.ask(Furthest(epoch, partition), Reached)[0].chunk

    def ended(self, epoch: int, partition: int) -> None:
        """A partition has no more chunks."""
        self.ask(Ended(epoch, partition), Known)

    def leave(self) -> None:
        """The task is over."""
        self._ready = None
        self._socket.send(encode(Leaves(memory_peak_bytes())))

    def close(self) -> None:
        """Hang up."""
        self._context.destroy(linger=0)
        for file in (*self._files.values(), self._own):
            if file is not None:
                file.close()
        self._files.clear()
        self._own = None

    def ask(self, request: Request, expected: type[A]) -> tuple[A, list[bytes]]:
        """Wait for the answer; `UsageError` if it is no."""
        return self._surely(lambda: self._ask_for(request, expected))

    def _ask_for(self, request: Request, expected: type[A]) -> tuple[A, list[bytes]]:
        answer, frames = self._ask(request)
        if isinstance(answer, expected):
            return answer, frames
        raise UsageError(answer.why if isinstance(answer, Refused) else f"{request} was answered with {answer}")

    def _ask(self, request: Request, frame: bytearray | None = None) -> tuple[Answer, list[bytes]]:
        self._socket.send_multipart([encode(request), *([] if frame is None else [frame])])
        return self._receive()

    def _receive(self) -> tuple[Answer, list[bytes]]:
        while not self._socket.poll(int((GROUP_LOOK_S if self.address.others else LOOK_S) * 1e3)):
            self._look()
        said, *frames = self._socket.recv_multipart()
        answer = decode_answer(said)
        if isinstance(answer, Moved):
            raise MovedError(answer.endpoint)
        return answer, frames

    def _look(self) -> None:
        """Raise `MasterGoneError` if nobody listens any more, and `MovedError` if another master leads. One that is
        busy still does."""
        if self.address.others:
            leader = self._leader_by(endpoint for endpoint in self._endpoints() if endpoint != self._endpoint)
            if leader:
                self._led_at = time.monotonic()
            if leader not in ("", self._endpoint):
                raise MovedError(leader)
            self._check_led()
            return
        host, _, port = self.address.endpoint.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise MasterGoneError(f"the master at {host}:{port} is gone ({error})") from None
        if self._monitor.poll(0):
            raise MovedError(self._endpoint)  # it is another connection by now: the answer may never come

    # ---------------------------------------------------------------------------------- where there are several masters

    def _surely(self, do: Callable[[], T]) -> T:
        """Do it, again with each master that comes to lead. All that is asked may be asked twice."""
        while True:
            try:
                return do()
            except MovedError as moved:
                self._move(moved.endpoint)

    def _move(self, endpoint: str) -> None:
        """Greet whoever leads now, which may be at `endpoint`."""
        self._ready = None
        if self._own is not None:
            self._own.close()  # the one before may still read it
            self._own = None
        while True:
            leader = endpoint or self._leader_by(self._endpoints())
            endpoint = ""
            if leader:
                self._disconnect()
                self._connect(leader)
                try:
                    self._greet()
                    self._led_at = time.monotonic()
                    return
                except MovedError as moved:
                    endpoint = moved.endpoint if moved.endpoint != leader else ""
            self._check_led()
            time.sleep(GROUP_LOOK_S / 5)

    def _check_led(self) -> None:
        if time.monotonic() - self._led_at > GIVE_UP_S:
            raise MasterGoneError(f"none of {1 + len(self.address.others)} masters leads for {GIVE_UP_S:g} s")

    def _endpoints(self) -> tuple[str, ...]:
        return (self.address.endpoint, *self.address.others)

    def _leader_by(self, endpoints: Iterable[str]) -> str:
        """Where the master that leads is, as the first of these says who answers; empty if none does."""
        asked = [(endpoint, self._open()) for endpoint in endpoints]
        try:
            poller = zmq.Poller()
            for endpoint, probe in asked:
                probe.connect(endpoint)
                probe.send(encode(Where()))
                poller.register(probe, zmq.POLLIN)
            give_up = time.monotonic() + GROUP_LOOK_S
            while (left_s := give_up - time.monotonic()) > 0:
                for probe, _ in poller.poll(int(left_s * 1e3) + 1):
                    answer = decode_answer(probe.recv_multipart()[0])
                    if isinstance(answer, Moved) and answer.endpoint:
                        return answer.endpoint
            return ""
        finally:
            for _, probe in asked:
                probe.close(linger=0)

    def _file(self, place: Place, nbytes: int) -> SharedFile | None:
        file = self._files.get(place)
        if file is None:
            file = open_at(place, nbytes)
            if file is not None:
                if len(self._files) >= FILES_MAX:
                    self._files.pop(next(iter(self._files))).close()
                self._files[place] = file
        return file

    def _room(self, nbytes: int) -> SharedFile:
        if self._own is None or self._own.nbytes < nbytes:
            if self._own is not None:
                self._own.close()
            self._own = SharedFile(nbytes + nbytes // 4)
        return self._own

    def _read(self, nbytes: int) -> memoryview:
        """The model in pieces, a few of which are asked for ahead."""
        buffer = bytearray(nbytes)
        asked: deque[int] = deque()
        for start in [*range(0, nbytes, BLOCK_BYTES), *[nbytes] * WINDOW_BLOCKS]:
            if start < nbytes:
                self._socket.send(encode(Read(start, min(start + BLOCK_BYTES, nbytes))))
                asked.append(start)
            if asked and (start >= nbytes or len(asked) >= WINDOW_BLOCKS):
                answer, frames = self._receive()
                if not isinstance(answer, Piece):
                    raise UsageError(answer.why if isinstance(answer, Refused) else f"Read was answered with {answer}")
                at = asked.popleft()
                buffer[at : at + len(frames[0])] = frames[0]
        return memoryview(buffer)

    def _send(self, file: SharedFile, nbytes: int) -> tuple[Answer, list[bytes]]:
        with file.view() as view:
            for start in range(0, nbytes, BLOCK_BYTES):
                piece = bytes(view[start : min(start + BLOCK_BYTES, nbytes)])
                self._socket.send_multipart([encode(Part()), piece])
        return self._receive()


def _write(arrays: Mapping[str, Array], layout: Layout, view: Any) -> None:
    for name, target in layout.views(view).items():
        target[...] = arrays[name]


_clients: dict[Address, MasterClient] = {}


def connection(address: Address) -> MasterClient:
    """This process's connection to a master: the same one from task to task."""
    client = _clients.get(address)
    if client is None:
        for old in _clients.values():
            old.close()
        _clients.clear()
        client = _clients[address] = MasterClient(address)
    return client
