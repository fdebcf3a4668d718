"""The simulated cluster: the user's own gradient and descent in one process, on virtual time, under faults.

    scheduler, in the manner of Spark  ->  executors: one task at a time each, a chunk takes virtual seconds
                                             |  copy of the replica at its begin, published at its end
                                           peers of `gossip.simulator`: the same peer and codec as in production

Nothing is sent to another process, so a gradient may note down what it sees, and a debugger stops in it. All that is
left to chance is drawn from one seed: the same seed gives the same run, and the same model to the last bit.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gossip.arrays import Array, Arrays, Layout, Packed
from gossip.errors import UsageError
from gossip.events import Computed
from gossip.faults import Disruption, Faults
from gossip.membership import Detection
from gossip.messages import PeerId, Unit
from gossip.peer import Settings
from gossip.row_stamps import RowStamps
from gossip.simulator import Network, SimulatedPeer, Simulation
from p2p.agent import STALENESS_SAMPLES_MAX
from p2p.consensus import Envelope
from p2p.engines import Progress
from p2p.evaluation import Evaluation
from p2p.lanes import OWN_ADVERT_GAP_S, PAYLOADS_BYTES_MAX
from p2p.model import Model
from p2p.report import Evaluated, PeerReport, Report
from p2p.task import (
    BY_CHUNK,
    Descent,
    Gradient,
    Job,
    Rhythm,
    TaskResult,
    codec_of,
    refresh,
    train_chunks,
)
from p2p.user_errors import PartitionError
from p2p.working_copy import WorkingCopy, exchange_settings, rows_for

OBSERVER = PeerId("observer")
HEARTBEAT_S = 0.5
"""How soon the scheduler notices executors that are gone, or came late and have their replica."""
KILL_MEAN_S = 0.5
"""How long the other copies of a finished task go on until they hear of it."""
LEVEL_STEP_S = 0.1
"""How often it is looked whether the replicas are level."""


@dataclass(frozen=True)
class SimulatedCluster:
    """What to simulate: `DeepDist(model, engine=SimulatedCluster(peers=16, seed=7))`. Times in virtual seconds."""

    peers: int = 4
    """Executors at the beginning; each is a peer."""
    seed: int = 0
    """Of all that is left to chance."""
    network: Network = field(default_factory=Network)
    """Loss, duplication and delay."""
    faults: Faults = field(default_factory=Faults)
    """What goes wrong, and when; the first training begins at 0. What is due after the last task is left out."""
    seconds_per_chunk: float = 1.0
    """Mean of what a chunk takes, its gradient and all; each takes half as long to one and a half times as long."""
    tasks_per_peer: int = 1
    """Cores of an executor."""
    fail: float = 0.0
    """Probability that an attempt at a partition fails, at its end or before, and is tried again."""
    speculate: float = 0.0
    """Probability that a second copy of a task is started beside the first."""
    advert_gap_s: float | None = None
    """Changes within this time share one advert: larger ones sum more updates, and are faster to simulate. None: as
    with agents, own updates sooner than those of others."""

    def __post_init__(self) -> None:
        for name in ("peers", "tasks_per_peer"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("fail", "speculate"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a probability below 1")
        for name in ("seconds_per_chunk", "advert_gap_s"):
            seconds = getattr(self, name)
            _check(name, seconds, seconds is None or 0 < seconds < math.inf, "more than 0 seconds")
        network, faults = self.network, self.faults
        _check("network.loss", network.loss, 0 <= network.loss < 1, "a probability below 1")
        _check("network.duplication", network.duplication, 0 <= network.duplication <= 1, "a probability")
        _check("network.delay_mean_s", network.delay_mean_s, 0 < network.delay_mean_s < math.inf, "more than 0 seconds")
        for name, begins in (
            ("partitions", [begin for begin, _, _ in faults.partitions]),
            ("crashes", faults.crashes),
            ("pauses", [time for pause in faults.pauses for time in pause]),
            ("joins", faults.joins),
        ):
            for begin in begins:
                _check(f"faults.{name}", begin, 0 <= begin < math.inf, "seconds from 0 on")

    def session(self, model: Model, seed: int, level_timeout_s: float) -> SimulatedSession:
        """A cluster that trains `model`; `seed` is that of the gradients' own random numbers."""
        return SimulatedSession(self, model, seed, level_timeout_s)


def _check(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value!r}, expected {expected}")


class SimulatedSession:
    """What stands behind `DeepDist` when the cluster is simulated; see `p2p.session.Session`."""

    def __init__(self, cluster: SimulatedCluster, model: Model, seed: int, level_timeout_s: float) -> None:
        self._cluster = cluster
        self._user_model = model
        self._seed = seed
        self._level_timeout_s = level_timeout_s
        self._chance = random.Random(f"scheduler {cluster.seed}")
        self._epochs = 0
        """Begun in this session."""
        self._story: list[str] = []
        self._staleness: dict[PeerId, deque[int]] = {}
        self._disruption: Disruption | None = None
        self._swarm: Simulation | None = None

    def train(
        self,
        data: Any,
        gradient: Gradient,
        descent: Descent | None,
        epochs: int,
        chunk_rows: int | None,
        progress: Progress,
        combine: str | None = None,
        rhythm: Rhythm = BY_CHUNK,
        evaluation: Evaluation | None = None,
    ) -> Report:
        if hasattr(data, "mapPartitionsWithIndex"):
            raise UsageError(
                "a simulated cluster trains on a list of partitions, not on an RDD: give it some of the rows, as in "
                "rdd.sample(False, 0.01).glom().collect()"
            )
        if rhythm.when == "continuous":
            raise UsageError(
                "exchange='continuous' on a simulated cluster, where no time passes within a gradient: expected "
                "'chunk' or 'partition'"
            )
        swarm, disruption = self._start()
        self.refresh()
        model = Model.from_skeleton(self._user_model.skeleton())
        evaluations: list[Evaluated] = []
        members = swarm.live()
        published, units, begin = _published(swarm), swarm.peers[OBSERVER].peer.identities.units, swarm.now
        job = Job(
            f"simulated {self._cluster.seed}",
            "p2p",
            self._user_model.skeleton(),
            gradient,
            descent,
            epochs,
            len(data),
            chunk_rows,
            self._cluster.peers,
            self._seed,
            self._epochs,
            exchange_settings(
                self._user_model,
                combine,
                self._cluster.peers,
                rows_for(self._cluster.seconds_per_chunk, self._cluster.peers),
                codec_of(rhythm),
            ),
            rhythm,
            self._cluster.peers * self._cluster.tasks_per_peer,
        )
        self._epochs += epochs
        disruption.active = True

        observed = _Replica(swarm.peers[OBSERVER])
        merged_before = observed.merged

        def evaluate() -> None:
            """Takes no virtual time."""
            if evaluation is not None:
                updates = refresh(model, observed) - merged_before
                evaluations.append(evaluation.of(model.model, swarm.now - begin, updates))

        def evaluate_again() -> None:
            if evaluation is not None and training:
                evaluate()
                swarm.at(swarm.now + evaluation.every_s, evaluate_again)

        training = True
        evaluate_again()
        scheduler = Scheduler(self._cluster, swarm, self._chance, job, data, progress, self._staleness)
        try:
            results = scheduler.run()
        finally:
            scheduler.stop()
            disruption.end()
            training = False
        give_up = swarm.now + self._level_timeout_s
        while not swarm.is_level() and swarm.now < give_up:
            swarm.run(swarm.now + LEVEL_STEP_S)
        evaluate()
        self.refresh()
        accepted = sum(result.units for result in results)
        gone = accepted - (swarm.peers[OBSERVER].peer.identities.units - units)
        members.update({me: host for me, host in swarm.peers.items() if host.alive})
        return Report(
            peers=tuple(self._peer_report(me, host) for me, host in members.items()),
            mode="p2p",
            rows=sum(result.rows for result in results),
            seconds=swarm.now - begin,
            updates=_published(swarm) - published,
            updates_lost=max(0, gone, _unread(swarm)),
            consensus_distance=_distance(swarm),
            missing=_missing(swarm, members),
            digest=swarm.digest.hexdigest(),
            story=tuple(self._story),
            evaluations=tuple(evaluations),
        )

    def refresh(self) -> None:
        if self._swarm is not None:
            refresh(self._user_model, _Replica(self._swarm.peers[OBSERVER]))

    def stop(self) -> None:
        swarm, self._swarm = self._swarm, None
        if swarm is not None:
            for host in swarm.peers.values():
                host.segments.close()

    def _start(self) -> tuple[Simulation, Disruption]:
        if self._swarm is None:
            cluster, layout = self._cluster, self._user_model.layout
            settings = Settings(
                advert_gap_s=cluster.advert_gap_s or Settings.advert_gap_s,
                advert_own_gap_s=cluster.advert_gap_s or OWN_ADVERT_GAP_S,
                pulls_max=max(1, PAYLOADS_BYTES_MAX // max(1, layout.nbytes)),
                detection=Detection(),
            )
            initial = self._user_model.arrays()
            self._swarm = Simulation(
                cluster.peers,
                {name: array.copy() for name, array in initial.items()},
                seed=cluster.seed,
                network=cluster.network,
                settings=settings,
                observer=OBSERVER,
            )
            chance = random.Random(f"faults {cluster.seed}")
            self._disruption = Disruption(self._swarm, cluster.faults, chance, self._note, (OBSERVER,))
        assert self._disruption is not None
        return self._swarm, self._disruption

    def _note(self, text: str) -> None:
        assert self._swarm is not None
        self._story.append(f"{self._swarm.now:.3f} s: {text}")

    def _peer_report(self, me: PeerId, host: SimulatedPeer) -> PeerReport:
        staleness = list(self._staleness.get(me, ())) or [0]
        return PeerReport(
            name=me,
            role="observer" if me == OBSERVER else "peer",
            published=host.peer.replicator.n,
            applied=sum(host.peer.replicator.frontiers().values()),
            bytes_out=host.bytes_out,
            bytes_in=host.bytes_in,
            staleness_median=float(np.median(staleness)),
            staleness_p95=float(np.percentile(staleness, 95)),
            memory_peak_bytes=0,
        )


# ------------------------------------------------------------------------------------------------------- the scheduler


@dataclass(eq=False)
class Task:
    """One partition of one epoch."""

    epoch: int
    partition: int
    attempts: int = 0
    """Begun so far; the next one gets this number."""
    copies: list[Attempt] = field(default_factory=list)
    """Running now."""
    result: TaskResult | None = None


@dataclass(eq=False)
class Attempt:
    """A task on an executor."""

    task: Task
    executor: PeerId
    model: WorkingCopy
    chunks: Any
    """What `train_chunks` returned."""
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
        self._running: dict[PeerId, list[Attempt]] = {}
        self._models: dict[PeerId, list[WorkingCopy]] = {}
        """Those that no task uses now: as on Spark, a worker keeps its model from task to task."""

    def run(self) -> list[TaskResult]:
        """Until every task is done. What the user's code raises comes out as it is, with a note that says where."""
        self._progress(0, len(self._tasks))
        self._beat()
        self._swarm.run_while(lambda: self._left > 0 and self._error is None)
        if self._error is not None:
            raise self._error
        return [task.result for task in self._tasks if task.result is not None]

    def stop(self) -> None:
        """Nothing that is still in the simulation's script of this training happens any more."""
        self._stopped = True

    def _beat(self) -> None:
        """Notice who is gone and who is new, now and every so often."""
        if self._stopped:
            return
        for executor, attempts in self._running.items():
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
            if me != OBSERVER and host.peer.ready and len(self._running.get(me, ())) < self._cluster.tasks_per_peer
        ]

    def _begin(self, task: Task, executor: PeerId) -> None:
        models = self._models.setdefault(executor, [])
        model = models.pop() if models else WorkingCopy(Model.from_skeleton(self._job.skeleton), self._job.exchange)
        number, task.attempts = task.attempts, task.attempts + 1
        neighbor = _Neighbor(self._swarm, executor, self._staleness)
        rows = self._data[task.partition]
        try:
            source = rows() if callable(rows) else rows
            chunks = train_chunks(self._job, neighbor, model, task.epoch, task.partition, source, number)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error, task, executor)
            return
        attempt = Attempt(task, executor, model, chunks, fails=self._chance.random() < self._cluster.fail)
        task.copies.append(attempt)
        self._running.setdefault(executor, []).append(attempt)
        if number == 0 and self._chance.random() < self._cluster.speculate:
            later = self._swarm.now + self._chance.uniform(0, 2 * self._cluster.seconds_per_chunk)
            self._swarm.at(later, partial(self._try_again, task))
        self._swarm.at(self._swarm.now, partial(self._advance, attempt))

    def _advance(self, attempt: Attempt) -> None:
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

    def _finish(self, attempt: Attempt, result: TaskResult) -> None:
        self._end(attempt)
        task = attempt.task
        if task.result is None:
            task.result = result
            self._left -= 1
            self._progress(len(self._tasks) - self._left, len(self._tasks))
            for copy in task.copies:
                self._swarm.at(self._swarm.now + self._chance.expovariate(1 / KILL_MEAN_S), partial(self._kill, copy))
        self._assign()

    def _kill(self, attempt: Attempt) -> None:
        attempt.killed = True

    def _try_again(self, task: Task) -> None:
        """Begin another attempt at `task` as soon as somebody has room."""
        if not self._stopped and task.result is None and task not in self._waiting:
            self._waiting.appendleft(task)
            self._assign()

    def _end(self, attempt: Attempt) -> None:
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
class _Replica:
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


class _Neighbor:
    """What stands in for the agent beside a task; see `p2p.task.Neighbor`."""

    def __init__(self, swarm: Simulation, me: PeerId, staleness: dict[PeerId, deque[int]]) -> None:
        self._swarm, self._me = swarm, me
        self._host = swarm.peers[me]
        self._staleness = staleness.setdefault(me, deque(maxlen=STALENESS_SAMPLES_MAX))
        self.replica = _Replica(self._host)

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
    ) -> bool:
        self._staleness.append(max(0, self.replica.merged - merged_at) if staleness is None else staleness)
        gated = self._host.gated
        self._swarm.happen(self._me, Computed(update, None if unit is None else Unit(*unit), attempt))
        return self._host.gated == gated


# --------------------------------------------------------------------------------------------------------- the figures


def _published(swarm: Simulation) -> int:
    return sum(host.peer.replicator.n for host in swarm.peers.values())


def _unread(swarm: Simulation) -> int:
    """Updates of living peers that some living peer has not got."""
    fronts = [host.peer.replicator.frontiers() for host in swarm.live().values()]
    return sum(
        host.peer.replicator.n - min(front.get(me, 0) for front in fronts)
        for me, host in swarm.live().items()
        if me != OBSERVER
    )


def _missing(swarm: Simulation, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Those that are gone, have not got what somebody has, or have something to take back."""
    highest: Counter[PeerId] = Counter()
    for host in swarm.live().values():
        highest |= Counter(host.peer.replicator.frontiers())
    missing = []
    for me in sorted(members):
        host = swarm.peers[me]
        level = host.peer.ready and not host.peer.pending
        if not (host.alive and level and highest <= Counter(host.peer.replicator.frontiers())):
            missing.append(me)
    return tuple(missing)


def _distance(swarm: Simulation) -> float:
    first, *others = [bytes(host.replica.buffer) for host in swarm.live().values() if host.peer.ready]
    envelope = Envelope(swarm.layout, first)
    for other in others:
        envelope.widen(0, other)
    return envelope.distance()
