"""Workers and shards on Spark: each pass is a job of ordinary tasks, and shards are processes beside the executors.

    a pass         a job: each task fetches the point from the shards, and pushes its portions' gradients
    a late task    another job computes its partition again, on any executor; the first copy of each portion counts
    a shard        begun by a task; it ends with its executor, and is then begun elsewhere, with the history anew

No vector passes through Spark: the job carries places, and tasks return nothing.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec
import zmq
from msgspec.structs import replace
from pyspark import RDD, Broadcast, InheritableThread, SparkContext, TaskContext

from gossip.errors import UsageError
from gossip.zmq.sockets import Keys, bind
from p2p import parcel
from p2p.engines import spark
from p2p.lbfgs import messages
from p2p.lbfgs.crew import Seat
from p2p.lbfgs.launch import Settings, begin
from p2p.lbfgs.links import GivenUpError, Links
from p2p.lbfgs.messages import Computed, Dropped, Message, Placement, Push, Socket
from p2p.lbfgs.portions import Portions
from p2p.lbfgs.rows import Partition
from p2p.lbfgs.shard_process import SHARD
from p2p.lbfgs.worker import Computer
from p2p.lbfgs.worker_process import computed
from p2p.worker.errors import PartitionError, Seal

END_TIMEOUT_S = 1.0
"""For the tasks of a pass that is over; then their job is called off, since some of them are late."""
LATE_MIN_S = 1.0
"""A pass that is under way for less has no late tasks: to begin a job takes as long."""
HEARD_TIMEOUT_S = 30.0
"""For what tasks have said to come in, once they are over."""


def check_data(data: RDD[Any], chunk_rows: int | None, peers: int | None) -> None:
    """Raise `UsageError` for data of which each pass, or each copy of a task, may see other portions."""
    if peers is not None:
        raise UsageError("peers= is for lists of partitions: on Spark every executor is a peer")
    spark.check_input(data)
    order = spark.order_of(data)
    if order == "INDETERMINATE":
        raise UsageError(
            "the rows of data may be others each time that Spark computes them, expected the same in each pass: "
            "checkpoint data, or read it from a file that was written"
        )
    if order == "UNORDERED" and chunk_rows is not None:
        raise UsageError(
            f"chunk_rows={chunk_rows} with rows that come in another order each time that Spark computes them (behind "
            "a shuffle), expected None: let each partition be a portion, and have more partitions; or checkpoint data"
        )


class SparkCrew:
    """Shards beside the executors."""

    def __init__(self, context: SparkContext) -> None:
        spark.use_own_python(context)
        self._context = context
        self._address = spark.driver_address(context)
        self.keys: Keys | None = Keys.generate()
        self.driver = ""
        """Where the coordinator listens."""
        self._seats: dict[str, Seat] = {}
        self._gone: set[str] = set()
        self._begun = 0

    def listen(self, socket: Socket) -> None:
        self.driver = bind(socket, self._address)

    def begin(self, seats: Sequence[Seat]) -> list[str]:
        if not seats:
            return []
        names = [f"{seat.role}-{seat.index}-{self._begun + number}" for number, seat in enumerate(seats)]
        self._begun += len(seats)
        self._seats.update(zip(names, seats, strict=True))
        keys = None if self.keys is None else (self.keys.public, self.keys.secret)
        told = [msgspec.json.encode(Settings(name, self.driver, 0, keys=keys)) for name in names]
        self._context.parallelize(told, len(told)).foreach(_begin_shard)
        return names

    def unreachable(self, name: str) -> None:
        if name in self._seats:
            self._gone.add(name)

    def gone(self) -> dict[str, tuple[Seat, str]]:
        found = {name: self._seats.pop(name) for name in self._gone}
        self._gone.clear()
        return {name: (seat, f"{seat} can not be reached any more") for name, seat in found.items()}

    def stop(self) -> None:
        """Shards were told to leave, and those that did not hear it end with their executors."""


@dataclass(frozen=True)
class Pass:
    """What the tasks of a pass are told."""

    point: int
    epoch: int
    placement: Placement
    driver: str
    keys: Keys | None


class SparkTasks:
    """The tasks of a pass are the workers."""

    seats = 0

    def __init__(
        self, crew: SparkCrew, data: RDD[Any], job: bytes, portions: Portions, backup_after: float | None
    ) -> None:
        """`job` is a parcel."""
        self.portions = portions
        self._crew = crew
        self._data = data
        self._context: SparkContext = data.context
        self._shipped = self._context.broadcast(job)
        self._seal = Seal()
        self._backup_after = backup_after
        self._partitions = data.getNumPartitions()
        self._pass: Pass | None = None
        self._began = 0.0
        self._over: list[float] = []
        """When partitions were over in this pass, since it began."""
        self._copied: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self._silent_since: float | None = None

    def begin(self, point: int, epoch: int, placement: Placement) -> None:
        self._pass = Pass(point, epoch, placement, self._crew.driver, self._crew.keys)
        self._began = time.monotonic()
        self._over, self._copied, self._threads, self._errors, self._silent_since = [], set(), [], [], None
        self._run(range(self._partitions))

    def turn(self, send: Callable[[str, Message, Sequence[memoryview]], None]) -> None:
        now = time.monotonic()
        if self._errors:
            raise spark.explained(self._errors[0], self._seal)
        late = self._late(now)
        if late:
            self._copied |= late
            self.portions.backups += len(late)
            self._run(sorted(late))
        if any(thread.is_alive() for thread in self._threads):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > HEARD_TIMEOUT_S:
            raise UsageError(
                f"the tasks of a pass are over, and {len(self.portions.open_partitions)} partitions were not heard of: "
                f"can executors reach {self._crew.driver}? spark.python.worker.reuse has to be true"
            )

    def wait_s(self) -> float | None:
        return None

    def hear(self, name: str, message: Any, frames: Sequence[zmq.Frame]) -> bool:
        now = self._pass
        if not isinstance(message, Computed) or now is None or message.point != now.point:
            self.portions.dropped += isinstance(message, Computed | Dropped)
            return False
        self._silent_since = None
        if not message.more and message.partition in self.portions.open_partitions:
            self._over.append(time.monotonic() - self._began)
        return True

    def ended(self, name: str, words: str) -> None:
        raise AssertionError("a crew on Spark has no workers")

    def end(self) -> None:
        give_up = time.monotonic() + END_TIMEOUT_S
        for thread in self._threads if self._pass is not None and self.portions.are_done else ():
            thread.join(max(0.0, give_up - time.monotonic()))
        if self._pass is not None and any(thread.is_alive() for thread in self._threads):
            self._context.cancelJobGroup(self._group)
        self._pass = None

    def close(self) -> None:
        self._shipped.destroy()

    @property
    def _group(self) -> str:
        assert self._pass is not None
        return f"deepdist-lbfgs-{id(self)}-{self._pass.point}"

    def _late(self, now: float) -> set[int]:
        """Partitions to be computed again: all others are done, or under way as well, and these are for long."""
        left = self.portions.open_partitions - self._copied
        slots = self._context.defaultParallelism
        if self._backup_after is None or not self._over or len(left) >= min(slots, self._partitions):
            return set()
        limit_s = max(LATE_MIN_S, self._backup_after * median(self._over))
        return left if now - self._began >= limit_s else set()

    def _run(self, partitions: Iterable[int]) -> None:
        """Have tasks compute these."""
        shipped, seal, told, errors, group = self._shipped, self._seal, self._pass, self._errors, self._group
        assert told is not None

        def task(partition: int, rows: Iterable[Any]) -> Iterator[None]:
            _compute(shipped, seal, told, partition, rows)
            return iter(())

        trained = self._data.mapPartitionsWithIndex(task)
        wanted = list(partitions)

        def act() -> None:
            self._context.setJobGroup(group, "deepdist: a pass of L-BFGS")
            try:
                self._context.runJob(trained, _nothing, wanted)
            except Exception as error:  # noqa: BLE001 - raised again by the main thread
                errors.append(error)

        thread = InheritableThread(target=act, name="deepdist-lbfgs", daemon=True)
        self._threads.append(thread)
        thread.start()


def _nothing(rows: Iterable[Any]) -> Iterable[Any]:
    return list(rows)


# ------------------------------------------------------------------------------------------------------ on an executor

_kept: dict[Any, _Task] = {}
"""What this Python worker has of the training that runs."""


class _Task:
    """A Python worker's links and model, kept from task to task."""

    def __init__(self, job: bytes, told: Pass) -> None:
        self.computer = Computer(parcel.loads(job))
        self.context: zmq.Context[Socket] = zmq.Context()
        name = f"{socket.gethostname()}-{os.getpid()}".encode()
        self.control = messages.socket(self.context, zmq.DEALER, name, told.keys)
        self.control.setsockopt(zmq.LINGER, int(HEARD_TIMEOUT_S * 1e3))
        self.control.connect(told.driver)
        self.links = Links(self.context, told.keys, self.control)
        self.placement: Placement | None = None

    def place(self, placement: Placement) -> None:
        """Shards may be elsewhere than in the pass before."""
        if placement != self.placement:
            self.links.place(placement)
            self.placement = placement

    def close(self) -> None:
        """Leave a training that is over."""
        self.links.close()
        self.control.close(linger=0)
        self.context.term()


def _begin_shard(told: bytes) -> None:
    """Start a shard, which ends with the executor."""
    settings = msgspec.json.decode(told, type=Settings)
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = begin(SHARD, replace(settings, anchor=os.getppid()), environment, speaks=False)
    process.returncode = 0  # it outlives this worker: nobody here waits for it


def _compute(shipped: Broadcast[bytes], seal: Seal, told: Pass, partition: int, rows: Iterable[Any]) -> None:
    """Compute all portions of a partition. Errors travel in the text of Spark's, under the seal."""
    context = TaskContext.get()
    assert context is not None
    try:
        task = _task(shipped, told)
    except BaseException as error:
        raise seal.sealed(PartitionError.of(error, told.epoch, partition)) from error
    try:
        task.place(told.placement)
        flat = task.computer.flat
        x = task.links.fetch(told.point, flat.size, flat.dtype)
        source, number, more = Partition(rows, task.computer.job.chunk_rows), 0, True
        while more:
            chunk = source.chunk(number)
            found = task.computer.compute(x, chunk, told.epoch, partition, number)
            push = Push(told.point, partition, number, context.taskAttemptId())
            task.links.push(push, found.gradient)
            messages.send(task.control, computed(push, found, chunk.more, task.links))
            number, more = number + 1, chunk.more
    except GivenUpError:
        messages.send(task.control, Dropped())
    except PartitionError as error:
        raise seal.sealed(error) from error.__cause__


def _task(shipped: Broadcast[bytes], told: Pass) -> _Task:
    key = (told.driver, hash(shipped.value))
    if key not in _kept:
        for old in _kept.values():
            old.close()
        _kept.clear()
        _kept[key] = _Task(shipped.value, told)
    return _kept[key]
