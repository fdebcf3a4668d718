"""The scheduler of a simulated cluster, in the manner of Spark: tasks, attempts at them, and which executor runs them.

task: one partition of one epoch  ->  attempts on executors, one after the other, or beside each other
                                        |  a chunk takes virtual seconds; between two of them anything may happen
                                      the simulated peer of the executor, in place of an agent
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gossip.arrays import Array, Arrays, Layout, Packed
from gossip.events import Computed
from gossip.messages import PeerId, Unit
from gossip.sim.simulator import SimulatedPeer, Simulation
from gossip.updates.stamps import RowStamps
from p2p import chance
from p2p.adapters.model import Model
from p2p.agent.ports import Left
from p2p.agent.tasks import STALENESS_SAMPLES_MAX
from p2p.chance import Borrowed
from p2p.sessions.cluster import SimulatedCluster
from p2p.worker.attempt import Attempt
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job, Progress, TaskResult
from p2p.worker.task import train_chunks
from p2p.worker.working_copy import WorkingCopy

HEARTBEAT_S = 0.5
"""How soon the scheduler notices executors that are gone, or came late and have their replica; and the session that its
observer is gone."""
KILL_MEAN_S = 0.5
"""How long the other copies of a finished task go on until they hear of it."""


Kept = dict[PeerId, dict[int, Packed]]
"""By executor and worker: what codecs have left, to be published when all tasks are done."""


@dataclass(eq=False)
class Task:
    """One partition of one epoch."""

    epoch: int
    partition: int
    attempts: int = 0
    """Begun so far; the next one gets this number."""
    copies: list[RunningAttempt] = field(default_factory=list)
    """Running now."""
    result: TaskResult | None = None


@dataclass(eq=False)
class RunningAttempt:
    """A task on an executor."""

    task: Task
    executor: PeerId
    model: WorkingCopy
    chunks: Any
    """What `train_chunks` returned."""
    borrowed: Borrowed
    """Of its worker."""
    fails: bool
    begun: bool = False
    killed: bool = False
    """Another copy has finished, and this one has heard of it."""


class Scheduler:
    """Runs the tasks of one training: in order, on whoever is free, again when they fail or their executor is gone."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        swarm: Simulation,
        chance: random.Random,
        *,
        job: Job,
        data: Sequence[Any],
        progress: Progress,
        staleness: dict[PeerId, deque[int]],
    ) -> None:
        """`staleness` takes the figures of each executor's updates."""
        self._cluster = cluster
        self._swarm = swarm
        self._chance = chance
        self._job = job
        self._data = data
        self._progress = progress
        self._staleness = staleness
        self._tasks = [Task(epoch, partition) for epoch in range(job.epochs) for partition in range(job.partitions)]
        self._waiting = deque(self._tasks)
        self._left = len(self._tasks)
        self._stopped = False
        self._error: Exception | None = None
        """Of the user's code."""
        self._running: dict[PeerId, list[RunningAttempt]] = {}
        self._models: dict[PeerId, list[WorkingCopy]] = {}
        """Those that no task uses now: as on Spark, a worker keeps its model from task to task."""
        self._kept: Kept = {}

    def run(self) -> list[TaskResult]:
        """Until every task is done. What the user's code raises comes out as it is, with a note that says where."""
        self._beat()
        self._swarm.run_while(lambda: self._left > 0 and self._error is None and not self._stopped)
        if self._error is not None:
            raise self._error
        for executor, kept in self._kept.items():
            for update in kept.values():
                self._swarm.happen(executor, Computed(update))
        return [task.result for task in self._tasks if task.result is not None]

    def stop(self) -> None:
        """Nothing that is still in the simulation's script of this training happens any more."""
        self._stopped = True

    def _beat(self) -> None:
        """Notice who is gone and who is new, now and every so often."""
        if self._stopped:
            return
        for executor, attempts in list(self._running.items()):  # others may get their first task meanwhile
            if not self._swarm.peers[executor].alive:
                for attempt in list(attempts):
                    self._end(attempt)
                    self._try_again(attempt.task)
        self._assign()
        self._swarm.at(self._swarm.now + HEARTBEAT_S, self._beat)

    def _assign(self) -> None:
        """Begin what waits, on executors that have room."""
        for task in list(self._waiting):
            free = self._free()
            if not free:
                return
            if task.result is None:
                free = [me for me in free if all(copy.executor != me for copy in task.copies)]
                if not free:
                    continue
                self._begin(task, self._chance.choice(free))
            self._waiting.remove(task)

    def _free(self) -> list[PeerId]:
        return [
            me
            for me, host in self._swarm.live().items()
            if me not in self._swarm.observing
            and host.peer.ready
            and len(self._running.get(me, ())) < self._cluster.tasks_per_peer
        ]

    def _begin(self, task: Task, executor: PeerId) -> None:
        models = self._models.setdefault(executor, [])
        model = models.pop() if models else WorkingCopy(Model.from_skeleton(self._job.skeleton), self._job.exchange)
        number, task.attempts = task.attempts, task.attempts + 1
        neighbor = SimulatedNeighbor(self._swarm, executor, self._staleness, self._kept, id(model))
        rows = self._data[task.partition]
        borrowed = Borrowed()
        try:
            with borrowed:
                chance.seed(self._job.seed, self._job.epochs_before + task.epoch, task.partition)
                source = rows() if callable(rows) else rows
            this = Attempt(job=self._job, agent=neighbor, epoch=task.epoch, partition=task.partition, number=number)
            chunks = train_chunks(this, model, source)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error, task, executor)
            return
        attempt = RunningAttempt(
            task, executor, model, chunks, borrowed, fails=self._chance.random() < self._cluster.fail
        )
        task.copies.append(attempt)
        self._running.setdefault(executor, []).append(attempt)
        if number == 0 and self._chance.random() < self._cluster.speculate:
            later = self._swarm.now + self._chance.uniform(0, 2 * self._cluster.seconds_per_chunk)
            self._swarm.at(later, partial(self._try_again, task))
        self._swarm.at(self._swarm.now, partial(self._advance, attempt))

    def _advance(self, attempt: RunningAttempt) -> None:
        """The end of a chunk, and the begin of the next one."""
        host = self._swarm.peers[attempt.executor]
        if self._stopped or not host.alive or attempt not in attempt.task.copies:
            return
        if self._swarm.now < host.paused_until:
            self._swarm.at(host.paused_until, partial(self._advance, attempt))
            return
        if attempt.killed:
            self._end(attempt)
            self._assign()
            return
        failed = attempt.begun and attempt.fails and self._chance.random() < 0.5
        if not failed:
            attempt.begun = True
            try:
                with attempt.borrowed:
                    next(attempt.chunks)
            except StopIteration as end:
                if not attempt.fails:
                    self._finish(attempt, end.value)
                    return
                failed = True  # all is published, and the scheduler never hears of it
            except Exception as error:  # noqa: BLE001 - raised again by `run`
                self._fail(error, attempt.task, attempt.executor)
                return
        if failed:
            self._end(attempt)
            self._try_again(attempt.task)
            return
        seconds = self._chance.uniform(0.5, 1.5) * self._cluster.seconds_per_chunk
        self._swarm.at(self._swarm.now + seconds, partial(self._advance, attempt))

    def _finish(self, attempt: RunningAttempt, result: TaskResult) -> None:
        self._end(attempt)
        task = attempt.task
        if task.result is None:
            task.result = result
            self._left -= 1
            self._progress(len(self._tasks) - self._left, len(self._tasks))
            for copy in task.copies:
                self._swarm.at(self._swarm.now + self._chance.expovariate(1 / KILL_MEAN_S), partial(self._kill, copy))
        self._assign()

    def _kill(self, attempt: RunningAttempt) -> None:
        attempt.killed = True

    def _try_again(self, task: Task) -> None:
        """Begin another attempt at `task` as soon as somebody has room."""
        if not self._stopped and task.result is None and task not in self._waiting:
            self._waiting.appendleft(task)
            self._assign()

    def _end(self, attempt: RunningAttempt) -> None:
        attempt.task.copies.remove(attempt)
        self._running[attempt.executor].remove(attempt)
        self._models[attempt.executor].append(attempt.model)

    def _fail(self, error: Exception, task: Task, executor: PeerId) -> None:
        """End the training by the user's own exception, which says where it came from."""
        original = error.original if isinstance(error, PartitionError) else error
        original.add_note(
            f"in partition {task.partition}, epoch {task.epoch}, on {executor} of the simulated cluster with seed "
            f"{self._cluster.seed}, after {self._swarm.now:.3f} virtual seconds"
        )
        self._error = original
        self.stop()


@dataclass(frozen=True)
class SimulatedReplica:
    """A simulated peer's replica, as a task sees it."""

    _host: SimulatedPeer

    @property
    def merged(self) -> int:
        return sum(self._host.peer.replicator.frontiers().values())

    @property
    def stamps(self) -> RowStamps:
        return self._host.stamps

    def arrays(self) -> dict[str, Array]:
        return self._host.replica.arrays()

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


class SimulatedNeighbor:
    """What stands in for the agent beside a task; see `p2p.agent.ports.Neighbor`."""

    def __init__(
        self, swarm: Simulation, me: PeerId, staleness: dict[PeerId, deque[int]], kept: Kept, worker: int
    ) -> None:
        """Who trains is a `worker` of the executor `me`, which keeps what its workers leave."""
        self._swarm, self._me = swarm, me
        self._kept, self._worker = kept.setdefault(me, {}), worker
        self._host = swarm.peers[me]
        self._staleness = staleness.setdefault(me, deque(maxlen=STALENESS_SAMPLES_MAX))
        self.replica = SimulatedReplica(self._host)

    def knows(self, unit: tuple[int, int, int]) -> bool:
        return self._host.peer.identities.knows(Unit(*unit))

    def furthest(self, epoch: int, partition: int) -> int:
        return self._host.peer.identities.furthest(epoch, partition)

    def hand_over(self) -> Packed:
        layout: Layout = self._swarm.layout
        return Packed(layout, bytearray(layout.nbytes))

    def pack(self, arrays: Arrays) -> Packed:
        return Packed.of(arrays)

    def publish(
        self,
        update: Any,
        merged_at: int = 0,
        staleness: int | None = None,
        unit: tuple[int, int, int] | None = None,
        attempt: int = 0,
        left: Left | None = None,
    ) -> bool:
        self._staleness.append(max(0, self.replica.merged - merged_at) if staleness is None else staleness)
        gated = self._host.units_gated
        self._swarm.happen(self._me, Computed(update, None if unit is None else Unit(*unit), attempt))
        published = self._host.units_gated == gated
        if published and left is not None:
            before = self._kept.pop(self._worker, None)
            if before is not None and not left.follows:
                self._swarm.happen(self._me, Computed(before))
            if left.arrays is not None:
                self._kept[self._worker] = Packed.of(left.arrays)
        return published
