"""A task: the rows of one partition -> gradient -> update, handed to the agent. User code runs here and nowhere else.

    copy of the replica -> gradient(model, rows) -> descent at the origin -> an additive delta -> the agent's lane

`descent` works on a private, fresh copy of the replica; what it changes there is the delta that travels. So a slow
`descent` keeps nobody from merging, one that raises leaves the replica whole, and all replicas add the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Literal, Protocol

import numpy as np

from gossip.arguments import one_of, seconds
from gossip.arrays import Array, Arrays, Layout, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.updates.stamps import RowStamps
from p2p import chance
from p2p.garbage import leave_out_what_stays
from p2p.model import Model
from p2p.replica import Replica
from p2p.row_order import numbered, other_rows, taken_apart
from p2p.update import flatten
from p2p.user_errors import PartitionError
from p2p.watch import is_nothing, nothing_returned
from p2p.working_copy import ExchangeSettings, Trained, WorkingCopy

Gradient = Callable[[Any, Iterator[Any]], Any]
"""`gradient(model, rows)`: what was learnt from the rows; None or {} for nothing.

A function may have an attribute `light`: what to send to workers in place of the model, where only it sees the model.
"""
Descent = Callable[[Any, Any], Any]
"""`descent(model, update)`: changes the model's arrays in place."""


class HandOver(Protocol):
    """Where a task writes its update."""

    def arrays(self) -> dict[str, Array]:
        """The named arrays as views."""
        ...


class Held(HandOver, Protocol):
    """A replica, or a copy of one."""

    @property
    def merged(self) -> int:
        """Updates merged so far, of all lanes."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Nobody merges meanwhile."""
        ...


class Readable(Held, Protocol):
    """A replica, as a task sees it."""

    @property
    def stamps(self) -> RowStamps:
        """Which rows updates have changed."""
        ...


class Neighbor(Protocol):
    """What a task needs of the agent beside it, a process or simulated; see `AgentClient`."""

    @property
    def replica(self) -> Readable: ...

    def knows(self, unit: tuple[int, int, int]) -> bool:
        """Some attempt of this unit has been published, here or elsewhere."""
        ...

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that has been published, here or elsewhere; -1 if none was."""
        ...

    def hand_over(self) -> HandOver:
        """Where the next update is written; free again when it is published."""
        ...

    def pack(self, arrays: Arrays) -> Any:
        """An update of rows, ready to be published."""
        ...

    def publish(
        self,
        update: Any,
        merged_at: int = 0,
        staleness: int | None = None,
        unit: tuple[int, int, int] | None = None,
        attempt: int = 0,
    ) -> bool:
        """Hand an update over. False if its unit was there before."""
        ...

    def leave(self, left: Arrays) -> None:
        """Leave what a codec has left of this worker's updates with the agent, in the place of what was left there
        before. It publishes that when the training ends, or this worker."""
        ...

    def take_back(self) -> None:
        """It goes with the next updates: the agent is not to publish it."""
        ...


EXCHANGE = ExchangeSettings()


@dataclass(frozen=True)
class Rhythm:
    """When a task exchanges what it has learned."""

    when: Literal["chunk", "partition", "continuous"] = "chunk"
    """After each chunk; once, at the end of the partition; or every so often, in the middle of a gradient."""
    every_s: float = 1.0
    """Between two exchanges, where they are continuous."""

    def __post_init__(self) -> None:
        one_of("when", self.when, ("chunk", "partition", "continuous"))
        object.__setattr__(self, "every_s", seconds("every_s", self.every_s))


BY_CHUNK = Rhythm()


def codec_of(rhythm: Rhythm) -> str | None:
    """How rows travel; the one exchange of a partition brings what others send with the next ones."""
    return "int16" if rhythm.when == "partition" else None


@dataclass(frozen=True)
class TaskInfo:
    """Where the running task stands in the training; for gradients that follow a schedule or draw random numbers."""

    run: str
    epoch: int
    epochs: int
    partition: int
    partitions: int
    chunk: int
    peers: int
    """Peers that train at the same time."""
    seed: int


@dataclass(frozen=True)
class Job:
    """One call of `train`, as the tasks need to know it. Sent by cloudpickle, by the user's own programs."""

    run: str
    mode: str
    skeleton: bytes
    gradient: Gradient
    descent: Descent | None
    epochs: int
    partitions: int
    chunk_rows: int | None
    peers: int
    seed: int
    epochs_before: int = 0
    """Of earlier trainings of the session: their units are other ones."""
    exchange: ExchangeSettings = EXCHANGE
    """How updates travel and add up."""
    rhythm: Rhythm = BY_CHUNK
    workers: int = 1
    """Tasks that run at the same time, each in a process with a copy of its own."""

    def going_on(self, epoch: int, partition: int) -> int:
        """How many workers get another partition like the one that is done with this, if tasks begin in order and take
        as long; 0 if it was its last."""
        return self.workers if (self.epochs - epoch) * self.partitions - partition > self.workers else 0


@dataclass(frozen=True)
class TaskResult:
    """What a task did."""

    rows: int
    updates: int
    """Published by this attempt."""
    units: int
    """Chunks that led to an update, of this attempt or an earlier one."""
    cautions: Mapping[str, str] = field(default_factory=dict)
    """What the user should hear of, by name; see `p2p.caution`."""


_current: ContextVar[TaskInfo | None] = ContextVar("deepdist_task", default=None)
_copies: dict[int, WorkingCopy] = {}
"""The copy of the running training's model, kept by a worker process from task to task."""
_in_place: ContextVar[WorkingCopy | None] = ContextVar("deepdist_working_copy", default=None)
_pause: ContextVar[Callable[[int], bool] | None] = ContextVar("deepdist_pause", default=None)


def current() -> TaskInfo | None:
    """The running task, when called by a gradient or descent on a worker; else None."""
    return _current.get()


def in_place(model: Any) -> WorkingCopy | None:
    """For a gradient that trains its model in place: what keeps track of the change, cheaper than a copy of it all.

    To be called before the first change; the gradient then returns `trained(...)` of it. None outside of a task of
    `DeepDist`, and for another model than the task's.
    """
    copy = _in_place.get()
    if copy is None or copy.model.model is not model:
        return None
    copy.keep_base()
    return copy


def pause(untrained: int = 0) -> bool:
    """For a gradient that trains in place: say that nothing is half done, so that this is a moment to exchange.

    `untrained` of the rows that were read are not in the model yet: another attempt begins with them. Returns whether
    there was an exchange, which changes the model's arrays. There is none but with `exchange="continuous"`.
    """
    exchange = _pause.get()
    return exchange is not None and exchange(untrained)


def run_partition(
    job: Job,
    agent: Neighbor,
    epoch: int,
    partition: int,
    rows: Iterable[Any],
    attempt: int = 0,
    fingerprint: int | None = None,
) -> TaskResult:
    """Train one partition. Whatever the user's code raises comes out as `PartitionError`.

    `attempt` grows when the same partition of the same epoch is tried again; chunks that an earlier attempt published
    are not computed again. `fingerprint` is that of the rows, where another attempt might get others
    (`p2p.row_order`): if it did, a `UsageError` says so, also as `PartitionError`.
    """
    if job.rhythm.when == "continuous":
        return train_continuously(
            job, agent, _working_copy(job), epoch, partition, rows, attempt, fingerprint=fingerprint
        )
    chunks = train_chunks(job, agent, _working_copy(job), epoch, partition, rows, attempt, fingerprint)
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: TaskResult = end.value
            return result


def train_chunks(
    job: Job,
    agent: Neighbor,
    copy: WorkingCopy,
    epoch: int,
    partition: int,
    rows: Iterable[Any],
    attempt: int,
    fingerprint: int | None = None,
) -> Generator[None, None, TaskResult]:
    """What `run_partition` does, with a stop after each gradient: where time is simulated, it passes there.

    `copy` is the task's own until the end.
    """
    counted = _Counted(rows)
    if fingerprint is not None:
        _published(job, agent, epoch, partition, fingerprint)
    updates = units = chunks = 0
    if copy.has_left:
        agent.take_back()
    for chunk, chunk_rows in enumerate(_chunks(counted, job.chunk_rows)):
        info = TaskInfo(job.run, epoch, job.epochs, partition, job.partitions, chunk, job.peers, job.seed)
        unit = (job.epochs_before + epoch, partition, numbered(fingerprint or 0, chunk))
        chunks = chunk + 1
        with _running(info, counted, copy):
            known = agent.knows(unit)
            if not known:
                chance.seed(job.seed, *unit[:2], chunk)
                merged_at = _begin(job, copy, agent.replica)
                update = copy.model.watch.gradient(copy.model, job.gradient, chunk_rows)
        if known:
            units += 1
            continue
        yield
        if is_nothing(update):
            continue
        with _running(info, counted, copy):
            updates += _publish(job, agent, copy, update, merged_at, unit, attempt)
            units += 1
    rest = {} if job.rhythm.when == "partition" else copy.rest(agent.replica, job.going_on(epoch, partition))
    if rest:
        # what was left for later is one more unit of work, which no other attempt computes unless it left it, too
        unit = (job.epochs_before + epoch, partition, numbered(fingerprint or 0, chunks))
        updates += agent.publish(agent.pack(rest), copy.merged_at, unit=unit, attempt=attempt)
        units += 1
    if copy.has_left:
        agent.leave(copy.left())
    return TaskResult(counted.count, updates, units, copy.model.watch.told())


def train_continuously(
    job: Job,
    agent: Neighbor,
    copy: WorkingCopy,
    epoch: int,
    partition: int,
    rows: Iterable[Any],
    attempt: int,
    clock: Callable[[], float] = time.monotonic,
    fingerprint: int | None = None,
) -> TaskResult:
    """Train a partition by one call of the gradient, and exchange when it pauses and the time has come.

    The chunk of an update's unit is the number of rows of the partition that are trained with it. So an attempt that
    comes later goes on where those before it have published, as far as this agent knows.
    """
    counted = _Counted(rows)
    info = TaskInfo(job.run, epoch, job.epochs, partition, job.partitions, 0, job.peers, job.seed)
    published = _published(job, agent, epoch, partition, fingerprint or 0) if attempt else 0
    updates = units = 0
    merged_at = exchanged = 0
    next_at = 0.0

    def publish(update: Arrays, trained: int) -> None:
        nonlocal updates, units, exchanged
        unit = (job.epochs_before + epoch, partition, numbered(fingerprint or 0, trained))
        if agent.publish(agent.pack(update), merged_at, unit=unit, attempt=attempt):
            copy.published(agent.replica)
            updates += 1
        units += 1
        exchanged = trained

    def begin() -> None:
        nonlocal merged_at, next_at
        merged_at = copy.begin(agent.replica, lambda: refresh(copy.model, agent.replica))
        copy.keep_base()
        next_at = clock() + job.rhythm.every_s

    def exchange(untrained: int) -> bool:
        trained = counted.count - untrained
        if clock() < next_at or trained <= exchanged:
            return False
        publish(copy.exchange(agent.replica, {}), trained)
        begin()
        return True

    for _ in islice(counted, published):
        exchanged += 1
    head = list(islice(counted, 1))
    if not head:
        return TaskResult(counted.count, 0, 0)
    with _running(info, counted, copy):
        begin()
        pausing = _pause.set(exchange)
        chance.seed(job.seed, job.epochs_before + epoch, partition, exchanged)
        try:
            update = copy.model.watch.gradient(copy.model, job.gradient, chain(head, counted), others_train=True)
        finally:
            _pause.reset(pausing)
        for _ in counted:  # what the gradient left
            pass
        if isinstance(update, Trained) and update.copy is copy:
            copy.model.watch.in_place()
            if counted.count > exchanged:
                publish(copy.exchange(agent.replica, update.extra), counted.count)
            if rest := copy.rest(agent.replica, job.going_on(epoch, partition)):
                publish(rest, counted.count + 1)
        elif is_nothing(update):
            if not updates and (changed := [name for name, change in copy.trained({}).items() if change.any()]):
                raise UsageError(nothing_returned(update, changed))
        else:
            raise UsageError(
                f"gradient returned a {type(update).__name__} with exchange='continuous', expected what "
                "p2p.task.in_place(model).trained({}) returns, as the gradients of p2p.models do: train the model "
                "in place, or choose exchange='chunk'"
            )
    return TaskResult(counted.count, updates, units, copy.model.watch.told())


def _published(job: Job, agent: Neighbor, epoch: int, partition: int, fingerprint: int) -> int:
    """The highest number that earlier attempts have published, 0 if none; an error if their rows were others."""
    furthest = agent.furthest(job.epochs_before + epoch, partition)
    if furthest < 0:
        return 0
    of_rows, number = taken_apart(furthest)
    if of_rows != fingerprint:
        raise PartitionError.of(other_rows(epoch, [partition]), epoch, partition)
    return number


@contextmanager
def _running(info: TaskInfo, rows: _Counted, copy: WorkingCopy) -> Iterator[None]:
    """The user's code runs within: it finds the task by `current`, and its errors say where they happened."""
    token, working = _current.set(info), _in_place.set(copy)
    try:
        yield
    except BaseException as error:  # also sys.exit(): what would end the worker without a word
        if error is rows.error:
            raise  # the rows could not be read: Spark knows best what to do
        raise PartitionError.of(error, info.epoch, info.partition) from error
    finally:
        _current.reset(token)
        _in_place.reset(working)


def _publish(
    job: Job, agent: Neighbor, copy: WorkingCopy, update: Any, merged_at: int, unit: tuple[int, int, int], attempt: int
) -> bool:
    """Hand over an update; whether it was the first of its unit."""
    if isinstance(update, Trained):
        if job.mode != "master" and job.descent is None and update.copy is copy:
            copy.model.watch.in_place()
            exchange = copy.exchange_all if job.rhythm.when == "partition" else copy.exchange
            arrays = exchange(agent.replica, update.extra)
            published = agent.publish(agent.pack(arrays), merged_at, unit=unit, attempt=attempt)
            if published:
                copy.published(agent.replica)
            return published
        update = dict(update)
    if job.mode == "master":
        return _send_to_master(agent, update, merged_at, unit)
    hand_over = agent.hand_over()
    write_delta(copy.model, job.descent, update, agent.replica, hand_over)
    copy.count(hand_over.arrays())
    if job.exchange.combine != "sum":
        with agent.replica.reading():
            copy.correct(hand_over.arrays(), agent.replica.arrays())
    if copy.model.codec is None:
        return agent.publish(hand_over, merged_at, unit=unit, attempt=attempt)
    coded, residual = copy.encoded(hand_over.arrays())
    published = agent.publish(agent.pack(coded), merged_at, unit=unit, attempt=attempt)
    if published:
        copy.leave(residual)
    return published


def _begin(job: Job, copy: WorkingCopy, replica: Readable) -> int:
    """Make the copy ready for a gradient; returns how many updates are merged in it."""
    merged_at = copy.begin(replica, lambda: refresh(copy.model, replica))
    if job.exchange.combine != "sum" and job.mode != "master":
        copy.keep_base()
    return merged_at


def refresh(model: Model, replica: Held) -> int:
    """Copy the replica into the model; returns how many updates were merged in it."""
    with replica.reading():
        model.load(replica.arrays())
        return replica.merged


def write_delta(model: Model, descent: Descent | None, update: Any, replica: Readable, out: HandOver) -> None:
    """What `descent(model, update)` would change in the replica, written to `out`. The model is overwritten."""
    delta = out.arrays()
    returned = None
    if descent is None:
        _copy_update(update, delta)
    else:
        if isinstance(update, Mapping):
            _check_numbers({name: value for name, value in update.items() if isinstance(value, np.ndarray)})
        update = _apart(update, model)
        refresh(model, replica)
        for name, array in model.arrays().items():
            np.copyto(delta[name], array)
        returned = model.watch.descent(model, descent, update)
        for name, array in model.arrays().items():
            np.subtract(array, delta[name], out=delta[name])
    _check_numbers(delta)
    model.watch.effect(model, update, returned, delta)


def _apart(update: Any, model: Model) -> Any:
    """The update, with copies of what lies in the model's arrays: they are loaded anew before `descent` is called."""
    if update is model.model:
        raise UsageError(
            "gradient returned its copy of the model, expected an update: what was learned, such as the difference to "
            "the model that it was given"
        )
    arrays = list(model.arrays().values())

    def apart(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy() if any(np.may_share_memory(value, array) for array in arrays) else value
        if type(value) is dict:
            return {key: apart(part) for key, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(apart(part) for part in value)
        return value

    return apart(update)


def _copy_update(update: Any, delta: Arrays) -> None:
    if not isinstance(update, Mapping):
        raise UsageError(
            f"gradient returned a {type(update).__name__}: without a descent, expected a dict of named arrays to add "
            f"to {sorted(delta)}, or None"
        )
    for name in update:
        if name not in delta:
            raise UsageError(f"the update has {name!r}, expected some of the model's arrays {sorted(delta)}")
    for name, target in delta.items():
        if name not in update:
            target[...] = 0
            continue
        source = np.asarray(update[name])
        if source.shape != target.shape:
            raise UsageError(f"the update's {name!r}: shape {source.shape}, expected {target.shape}")
        if not np.can_cast(source.dtype, target.dtype, "same_kind"):
            raise UsageError(f"the update's {name!r}: dtype {source.dtype}, expected {target.dtype}")
        if source.dtype != target.dtype and target.dtype.kind in "iu" and source.size:
            limits = np.iinfo(target.dtype)
            if int(source.min()) < limits.min or int(source.max()) > limits.max:
                raise UsageError(
                    f"the update's {name!r}: numbers from {source.min()} to {source.max()}, expected such as fit into "
                    f"{target.dtype}"
                )
        np.copyto(target, source, casting="same_kind")


def _check_numbers(arrays: Arrays) -> None:
    try:
        check_finite(arrays)
    except MismatchError as error:
        raise UsageError(f"the update's {error}; nothing of it was merged. A smaller learning rate may help") from None


def _send_to_master(agent: Neighbor, update: Any, merged_at: int, unit: tuple[int, int, int]) -> bool:
    """The master takes the first attempt that comes, so none is ever taken back: to the agents it is the only one."""
    epoch, partition, chunk = unit
    arrays = flatten(update, merged_at=merged_at, epoch=epoch, partition=partition, chunk=chunk)
    packed = Replica(Layout.of(arrays))
    try:
        for name, view in packed.arrays().items():
            view[...] = arrays[name]
        return agent.publish(packed, merged_at, unit=unit)
    finally:
        packed.close()


def _working_copy(job: Job) -> WorkingCopy:
    training = hash((job.run, job.skeleton, job.exchange))
    if training not in _copies or _copies[training].model.watch.spoiled:
        _copies.clear()
        _copies[training] = WorkingCopy(Model.from_skeleton(job.skeleton), job.exchange, time.perf_counter)
        leave_out_what_stays()
    copy = _copies[training]
    copy.begin_training(job.epochs_before)
    return copy


def _chunks(rows: Iterator[Any], chunk_rows: int | None) -> Iterator[Iterator[Any]]:
    """The rows in pieces of `chunk_rows`; an empty partition has none."""
    for first in rows:
        piece = chain([first], rows if chunk_rows is None else islice(rows, chunk_rows - 1))
        yield piece
        for _ in piece:  # what the gradient left
            pass


class _Counted:
    """Rows, counted, and whether reading them failed."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = iter(rows)
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            row = next(self._rows)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.count += 1
        return row
