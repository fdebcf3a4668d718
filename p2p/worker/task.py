"""A task: the rows of one partition -> gradient -> update, handed to the agent. User code runs here and nowhere else.

    copy of the replica -> gradient(model, rows) -> descent at the origin -> an additive delta -> the agent's lane

`descent` works on a private, fresh copy of the replica; what it changes there is the delta that travels. So a slow
`descent` keeps no peer from merging, one that raises leaves the replica whole, and all replicas add the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from gossip.errors import UsageError
from p2p.adapters.model import Model
from p2p.adapters.watch import is_nothing
from p2p.agent.ports import Neighbor
from p2p.server.client import connection
from p2p.worker.attempt import Attempt, BesideAgent
from p2p.worker.continuous import Continuous
from p2p.worker.delta import lighter, some_of, write_delta
from p2p.worker.errors import PartitionError
from p2p.worker.garbage import leave_out_what_stays
from p2p.worker.job import Job, TaskInfo, TaskResult
from p2p.worker.running import CountedRows, current, in_place, pause, running
from p2p.worker.with_master import LocalModel, WithMaster
from p2p.worker.working_copy import Trained, WorkingCopy

__all__ = ["TaskInfo", "current", "in_place", "pause", "run_partition", "train_chunks"]

_copies: dict[int, WorkingCopy] = {}
"""The copy of the running training's model, kept by a worker process from task to task."""


def run_partition(
    job: Job,
    agent: Neighbor | None,
    epoch: int,
    partition: int,
    rows: Iterable[Any],
    attempt: int = 0,
    fingerprint: int | None = None,
) -> TaskResult:
    """Train one partition. Whatever the user's code raises comes out as `PartitionError`.

    `agent` is the one beside the task; None where there is a master, which the task finds by itself.

    `attempt` grows when the same partition of the same epoch is tried again; chunks that an earlier attempt published
    are not computed again. `fingerprint` is that of the rows, where another attempt might get others
    (`p2p.row_order`): if it did, a `UsageError` says so, also as `PartitionError`.
    """
    try:
        copy = _working_copy(job)
    except UsageError as error:  # a model that cannot be here
        raise PartitionError.of(error, epoch, partition) from error
    if job.master is not None:
        return _run_with_master(job, copy, epoch, partition, rows, attempt, fingerprint)
    assert agent is not None
    this = Attempt(job=job, agent=agent, epoch=epoch, partition=partition, number=attempt, fingerprint=fingerprint)
    if job.rhythm.when == "continuous":
        return Continuous(this, copy).train(rows)
    chunks = train_chunks(this, copy, rows)
    while True:
        try:
            next(chunks)
        except StopIteration as end:
            result: TaskResult = end.value
            return result


def _run_with_master(
    job: Job, copy: WorkingCopy, epoch: int, partition: int, rows: Iterable[Any], attempt: int, fingerprint: int | None
) -> TaskResult:
    assert job.master is not None
    try:
        client = connection(job.master)
        this = Attempt(job=job, agent=client, epoch=epoch, partition=partition, number=attempt, fingerprint=fingerprint)
        if this.is_over:
            return TaskResult(0, 0, 0)
        if fingerprint is not None:
            this.published()
    except UsageError as error:
        raise PartitionError.of(error, epoch, partition) from error
    counted = CountedRows(rows, getattr(job.gradient, "rows_in", None))
    averages = job.pushes.wave is not None and job.pushes.wave.averages
    return (LocalModel if averages else WithMaster)(this, copy).train(_chunks(counted, job.chunk_rows), counted)


def train_chunks(attempt: BesideAgent, copy: WorkingCopy, rows: Iterable[Any]) -> Generator[None, None, TaskResult]:
    """What `run_partition` does, with a stop after each gradient: where time is simulated, it passes there.

    `copy` is the task's own until the end.
    """
    job, agent = attempt.job, attempt.agent
    if attempt.is_over:
        return TaskResult(0, 0, 0)
    counted = CountedRows(rows, getattr(job.gradient, "rows_in", None))
    if attempt.fingerprint is not None:
        attempt.published()
    updates = units = chunks = 0
    for chunk, chunk_rows in enumerate(_chunks(counted, job.chunk_rows)):
        info, unit = attempt.info(chunk), attempt.unit(chunk)
        chunks = chunk + 1
        with running(info, counted, copy):
            known = agent.knows(unit)
            if not known:
                attempt.seed(chunk)
                merged_at = _begin(attempt, copy)
                update = copy.model.watch.gradient(copy.model, job.gradient, chunk_rows)
        if known:
            units += 1
            continue
        yield
        if is_nothing(update):
            continue
        with running(info, counted, copy):
            updates += _publish(attempt, copy, update, merged_at, unit)
            units += 1
        update = None  # the next gradient may need the memory
    going_on = job.going_on(attempt.epoch, attempt.partition)
    rest = {} if job.rhythm.when == "partition" else copy.rest(agent.replica, going_on)
    if rest:
        # what was left for later is one more unit of work, which no other attempt computes unless it left it, too
        unit = attempt.unit(chunks)
        updates += agent.publish(agent.pack(rest), copy.merged_at, unit=unit, attempt=attempt.number)
        units += 1
    return TaskResult(counted.rows, updates, units, copy.model.watch.told())


def _begin(attempt: BesideAgent, copy: WorkingCopy) -> int:
    """Make the copy ready for a gradient; returns how many updates are merged in it."""
    merged_at = copy.begin(attempt.agent.replica)
    copy.residual.add_to(copy.model)
    if copy.outer is not None:
        copy.outer.look_ahead(copy.model.arrays())
    if copy.compares:
        copy.keep_base()
    return merged_at


def _publish(attempt: BesideAgent, copy: WorkingCopy, update: Any, merged_at: int, unit: tuple[int, int, int]) -> bool:
    """Hand over an update; whether it was the first of its unit."""
    job, agent = attempt.job, attempt.agent
    if isinstance(update, Trained):
        if job.descent is None and update.copy is copy and copy.travels_as_rows:
            copy.model.watch.in_place()
            exchanged = copy.exchanged(agent, update.extra, all_rows=job.rhythm.when == "partition")
            published = agent.publish(exchanged, merged_at, unit=unit, attempt=attempt.number)
            if published:
                copy.published(agent.replica)
            return published
        update = update.as_summed() if job.descent is None else dict(update)
    if job.descent is None and copy.publishes_as_it_is:
        some = some_of(copy.model, update)
        if some is not None:
            return agent.publish(agent.pack(some), merged_at, unit=unit, attempt=attempt.number)
    hand_over = agent.hand_over()
    write_delta(copy.model, job.descent, update, agent.replica, hand_over)
    copy.count(hand_over.arrays())
    if copy.corrects:
        with agent.replica.reading():
            copy.correct(hand_over.arrays(), agent.replica.arrays())
    if copy.model.codec is None:
        lightest = lighter(hand_over, copy.model, agent)
        published = agent.publish(lightest, merged_at, unit=unit, attempt=attempt.number)
        copy.counted(published)
        return published
    coded, residual = copy.residual.encoded(hand_over.arrays())
    left = copy.residual.left(residual)
    published = agent.publish(agent.pack(coded), merged_at, unit=unit, attempt=attempt.number, left=left)
    copy.counted(published)
    if published:
        copy.residual.leave(residual)
    return published


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
