"""The simulated cluster: the user's own gradient and descent in one process, on virtual time, under faults.

    scheduler, in the manner of Spark  ->  executors: one task at a time each, a chunk takes virtual seconds
                                             |  copy of the replica at its begin, published at its end
                                           peers of `gossip.sim.simulator`: the same peer and codec as in production

Nothing is sent to another process, so a gradient may note down what it sees, and a debugger stops in it. All that is
left to chance is drawn from one seed: the same seed gives the same run, and the same model to the last bit.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gossip.arguments import check_fields, instance, integer, probability, seconds
from gossip.arrays import Array, Arrays, Layout, Packed, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.events import Computed
from gossip.lanes.peer import Settings
from gossip.membership import Detection
from gossip.messages import PeerId, Unit
from gossip.sim.faults import Disruption, Faults
from gossip.sim.simulator import Network, SimulatedPeer, Simulation
from gossip.updates.stamps import RowStamps
from p2p import chance
from p2p.adapters.model import Model
from p2p.agent.lanes import OWN_ADVERT_GAP_S, PAYLOADS_BYTES_MAX
from p2p.agent.ports import Left, refresh
from p2p.agent.process import STALENESS_SAMPLES_MAX
from p2p.caution import Cautions, warn
from p2p.chance import Borrowed
from p2p.codec import kinds_of
from p2p.driver.consensus import Envelope
from p2p.driver.watchers import Done, Moment, Watcher, look
from p2p.report import IncompleteTraining, PeerReport, Report
from p2p.sessions.training import Training
from p2p.worker.attempt import Attempt
from p2p.worker.errors import PartitionError
from p2p.worker.job import Job, Progress, TaskResult, codec_of
from p2p.worker.task import train_chunks
from p2p.worker.working_copy import WorkingCopy, exchange_settings, rows_for

OBSERVER = PeerId("observer")
HEARTBEAT_S = 0.5
"""How soon the scheduler notices executors that are gone, or came late and have their replica; and the session that its
observer is gone."""
KILL_MEAN_S = 0.5
"""How long the other copies of a finished task go on until they hear of it."""
LEVEL_STEP_S = 0.1
"""How often it is looked whether the replicas are level."""
WRITE_ROUNDS_MAX = 4
"""To have what the user wrote into the model at all replicas: two are enough, unless a peer that publishes it dies."""
LOST_SHARE_MAX = 0.01
"""Of the updates of a training: a warning tells if more were lost with the dead."""


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
        check_fields(self)
        for name in ("peers", "tasks_per_peer"):
            integer(name, getattr(self, name), 1)
        for name in ("fail", "speculate"):
            probability(name, getattr(self, name), below_one=True)
        seconds("seconds_per_chunk", self.seconds_per_chunk)
        if self.advert_gap_s is not None:
            seconds("advert_gap_s", self.advert_gap_s)
        network = instance("network", self.network, Network)
        probability("network.loss", network.loss, below_one=True)
        seconds("network.delay_mean_s", network.delay_mean_s)
        instance("faults", self.faults, Faults)

    def session(self, model: Model, seed: int, level_timeout_s: float) -> SimulatedSession:
        """A cluster that trains `model`; `seed` is that of the gradients' own random numbers."""
        return SimulatedSession(self, model, seed, level_timeout_s)


class SimulatedSession:
    """What stands behind `DeepDist` when the cluster is simulated; see `p2p.sessions.agents.Session`."""

    def __init__(self, cluster: SimulatedCluster, model: Model, seed: int, level_timeout_s: float) -> None:
        self._cluster = cluster
        self._user_model = model
        self._seed = seed
        self._cautions = Cautions()
        self._level_timeout_s = level_timeout_s
        self._chance = random.Random(f"scheduler {cluster.seed}")
        self._epochs = 0
        """Begun in this session."""
        self._story: list[str] = []
        self._staleness: dict[PeerId, deque[int]] = {}
        self._disruption: Disruption | None = None
        self._swarm: Simulation | None = None
        self._shown: Shown | None = None

    def train(self, training: Training) -> Report:
        data = training.data
        if hasattr(data, "mapPartitionsWithIndex"):
            raise UsageError(
                "a simulated cluster trains on a list of partitions, not on an RDD: give it some of the rows, as in "
                "rdd.sample(False, 0.01).glom().collect()"
            )
        if training.rhythm.when == "continuous":
            raise UsageError(
                "exchange='continuous' on a simulated cluster, where no time passes within a gradient: expected "
                "'chunk' or 'partition'"
            )
        self._user_model.check_unchanged()
        swarm, disruption = self._start()
        before = set(swarm.peers)
        members, begin = swarm.live(), swarm.now
        done = Done(training.progress, training.epochs * len(data))
        looks = _Looks(training.all_watchers, swarm, Model.from_skeleton(self._user_model.skeleton()), done)
        with self._observed(swarm):
            try:
                disruption.active = True
                self._publish_written(swarm)
                units_before = swarm.peers[swarm.source()].peer.identities.units
                published_before = _published(swarm)
                job = self._job(training)
                looks.begin()
                scheduler = Scheduler(self._cluster, swarm, self._chance, job, data, done, self._staleness)
                try:
                    results = scheduler.run()
                finally:
                    scheduler.stop()
            finally:
                looks.end()
                disruption.end()
            self._run_until_level(swarm, swarm.now + self._level_timeout_s)
        for result in results:
            self._cautions.give(result.cautions)
        looks.finish()
        self.refresh()
        members |= {me: host for me, host in swarm.peers.items() if me not in before}
        accepted = sum(result.units for result in results)
        report = Report(
            peers=tuple(self._peer_report(me, host) for me, host in members.items()),
            mode="p2p",
            rows=sum(result.rows for result in results),
            seconds=swarm.now - begin,
            updates=_published(swarm) - published_before,
            consensus_distance=_distance(swarm),
            missing=_missing(swarm, members),
            lost=(lost := _lost(swarm, accepted, units_before)),
            updates_lost=sum(lost.values()),
            digest=swarm.digest.hexdigest(),
            story=tuple(self._story),
            evaluations=training.evaluations,
        )
        self._judge(report, training.on_incomplete)
        return report

    def _judge(self, report: Report, on_incomplete: str) -> None:
        """Raise, or warn, if the model lacks anything that is not lost with the dead; warn of what is."""
        swarm = self._swarm
        assert swarm is not None
        if report.lost.get("agent gone", 0) > LOST_SHARE_MAX * report.updates:
            warn(_lost_text(report))
        unmerged = _unmerged(swarm, swarm.peers[swarm.source()])
        if unmerged or not swarm.is_level(but=swarm.observing):
            text = _incomplete_text(swarm, unmerged, report.missing, self._level_timeout_s)
            if on_incomplete == "raise":
                raise IncompleteTraining(text, report)
            warn(text)

    def refresh(self) -> None:
        if self._swarm is not None:
            assert self._shown is not None
            host = self._swarm.peers[self._swarm.source()]
            self._shown.show(host.peer.replicator.frontiers(), host.replica.arrays())

    def stop(self) -> None:
        swarm, self._swarm = self._swarm, None
        if swarm is not None:
            for host in swarm.peers.values():
                host.segments.close()

    def _job(self, training: Training) -> Job:
        cluster = self._cluster
        job = Job(
            run=f"simulated {cluster.seed}",
            mode="p2p",
            skeleton=self._user_model.skeleton(),
            gradient=training.gradient,
            descent=training.descent,
            epochs=training.epochs,
            partitions=len(training.data),
            chunk_rows=training.chunk_rows,
            peers=cluster.peers,
            seed=self._seed,
            epochs_before=self._epochs,
            exchange=exchange_settings(
                self._user_model,
                training.combine,
                cluster.peers,
                rows_for(cluster.seconds_per_chunk, cluster.peers),
                codec_of(training.rhythm),
            ),
            rhythm=training.rhythm,
            workers=cluster.peers * cluster.tasks_per_peer,
        )
        self._epochs += training.epochs
        return job

    @contextmanager
    def _observed(self, swarm: Simulation) -> Iterator[None]:
        """Whenever the observer is gone, another one is started soon."""
        lasts = True

        def look() -> None:
            if lasts:
                if (me := swarm.renew_observer()) is not None:
                    self._note(f"{me} is started")
                swarm.at(swarm.now + HEARTBEAT_S, look)

        look()
        try:
            yield
        finally:
            lasts = False

    def _publish_written(self, swarm: Simulation) -> None:
        """Have every replica take in what the user wrote into the model since it was shown.

        What rounding leaves of the difference travels when all have merged the first one: their sum would lose it.
        Nor is looked for what is missing before all are level: it may be on its way.
        """
        self.refresh()
        assert self._shown is not None
        if not self._shown.written():
            return
        give_up = swarm.now + self._level_timeout_s
        for round in range(WRITE_ROUNDS_MAX):
            self._run_until_level(swarm, give_up, but=swarm.observing)
            if round and not swarm.is_level(but=swarm.observing):
                text = "what was written into dd.model has not reached all peers yet: some may begin without it"
                warn(text)
                break
            me = swarm.source(but=swarm.observing)
            host = swarm.peers[me]
            update = self._shown.difference(host.replica.arrays())
            if not update:
                break
            n = host.peer.replicator.n
            swarm.happen(me, Computed(Packed.of(update)))
            while host.alive and host.peer.replicator.n == n and swarm.now < give_up:
                swarm.run(swarm.now + LEVEL_STEP_S)
        self._shown.keep(swarm.peers[swarm.source()].peer.replicator.frontiers())

    def _run_until_level(self, swarm: Simulation, give_up: float, but: Container[PeerId] = ()) -> None:
        while not swarm.is_level(but) and swarm.now < give_up:
            swarm.run(swarm.now + LEVEL_STEP_S)

    def _start(self) -> tuple[Simulation, Disruption]:
        if self._swarm is None:
            cluster, layout = self._cluster, self._user_model.layout
            settings = Settings(
                advert_gap_s=cluster.advert_gap_s or Settings.advert_gap_s,
                advert_own_gap_s=cluster.advert_gap_s or OWN_ADVERT_GAP_S,
                pulls_max=max(1, PAYLOADS_BYTES_MAX // max(1, layout.nbytes)),
                detection=Detection(),
                kinds=kinds_of(self._user_model.codec),
            )
            self._shown = Shown(self._user_model)
            self._swarm = Simulation(
                cluster.peers,
                self._shown.arrays,
                seed=cluster.seed,
                network=cluster.network,
                settings=settings,
                observer=OBSERVER,
            )
            chance = random.Random(f"faults {cluster.seed}")
            self._disruption = Disruption(self._swarm, cluster.faults, chance, self._note)
        assert self._disruption is not None
        return self._swarm, self._disruption

    def _note(self, text: str) -> None:
        assert self._swarm is not None
        self._story.append(f"{self._swarm.now:.3f} s: {text}")

    def _peer_report(self, me: PeerId, host: SimulatedPeer) -> PeerReport:
        staleness = list(self._staleness.get(me, ())) or [0]
        return PeerReport(
            name=me,
            role="observer" if self._swarm is not None and me in self._swarm.observing else "peer",
            published=host.peer.replicator.n,
            applied=sum(host.peer.replicator.frontiers().values()),
            bytes_out=host.bytes_out,
            bytes_in=host.bytes_in,
            staleness_median=float(np.median(staleness)),
            staleness_p95=float(np.percentile(staleness, 95)),
            memory_peak_bytes=0,
        )


class _Looks:
    """The watchers of one training. Looking takes no virtual time."""

    def __init__(self, watchers: Sequence[Watcher], swarm: Simulation, model: Model, done: Done) -> None:
        """They are shown `model`, filled from whoever has most."""
        self._watchers = watchers
        self._swarm = swarm
        self._model = model
        self._done = done
        self._began = swarm.now
        self._merged_before = 0
        self._running = False

    def begin(self) -> None:
        """Look now, and every so often."""
        self._running = True
        self._merged_before = self._source().merged
        for watcher in self._watchers:
            self._look_again(watcher)

    def end(self) -> None:
        """What is in the simulation's script of it yet does not happen."""
        self._running = False

    def finish(self) -> None:
        """Look at the model as it is in the end."""
        for watcher in self._watchers:
            self._look(watcher, ended=True)

    def _look_again(self, watcher: Watcher) -> None:
        if self._running:
            self._look(watcher)
            self._swarm.at(self._swarm.now + float(watcher.every_s), partial(self._look_again, watcher))

    def _look(self, watcher: Watcher, *, ended: bool = False) -> None:
        merged = refresh(self._model, self._source())
        moment = Moment(
            seconds=self._swarm.now - self._began,
            updates=max(0, merged - self._merged_before),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
            ended=ended,
            consensus_distance=_distance(self._swarm),
        )
        look(watcher, self._model.model, moment)

    def _source(self) -> _Replica:
        return _Replica(self._swarm.peers[self._swarm.source()])


# ----------------------------------------------------------------------------------------------------- the user's model


class Shown:
    """What the user's model was last filled with, to be told from what the user has written into it since."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.keep({})

    def keep(self, frontiers: Mapping[PeerId, int]) -> None:
        """The model is as replicas at `frontiers` are: from now on, what differs is the user's."""
        self.arrays = {name: array.copy() for name, array in self._model.arrays().items()}
        self._frontiers = _updates(frontiers)

    def show(self, frontiers: Mapping[PeerId, int], replica: Arrays) -> None:
        """Copy into the model what is new in a replica at `frontiers`; what the user has written stays."""
        if _updates(frontiers) == self._frontiers:
            return
        written = {name: (where, self._model.arrays()[name][where]) for name, where in self.written().items()}
        self._model.load(replica)
        self.keep(frontiers)
        for name, (where, values) in written.items():
            self._model.arrays()[name][where] = values

    def difference(self, replica: Arrays) -> dict[str, Array]:
        """What to add to a replica, so that it holds what the user has written; empty if it does.

        Raises:
            UsageError: the user has written what is not a finite number.
        """
        update, differs = {}, False
        for name, array in self._model.arrays().items():
            update[name] = np.zeros_like(array)
        for name, where in self.written().items():
            written = self._model.arrays()[name][where]
            with np.errstate(over="ignore", invalid="ignore"):
                update[name][where] = written - replica[name][where]
            differs |= bool(np.any(written != replica[name][where]))
        try:
            check_finite(update)
        except MismatchError as error:
            raise UsageError(f"the model was given numbers that cannot be published: {error}") from None
        return update if differs else {}

    def written(self) -> dict[str, Array]:
        """Where the user has written, by array; those that are as they were shown are left out."""
        written = {}
        for name, array in self._model.arrays().items():
            shown = self.arrays[name]
            if isinstance(array, np.ndarray) and (array.shape, array.dtype) == (shown.shape, shown.dtype):
                where = (array != shown) & ((array == array) | (shown == shown))  # two NaNs are the same
                if where.any():
                    written[name] = where
        return written


def _updates(frontiers: Mapping[PeerId, int]) -> dict[PeerId, int]:
    """Those lanes only that have some."""
    return {lane: n for lane, n in frontiers.items() if n}


# ------------------------------------------------------------------------------------------------------- the scheduler


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
        self._swarm.run_while(lambda: self._left > 0 and self._error is None)
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
        neighbor = _Neighbor(self._swarm, executor, self._staleness, self._kept, id(model))
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


Kept = dict[PeerId, dict[int, Packed]]
"""By executor and worker: what codecs have left, to be published when all tasks are done."""


class _Neighbor:
    """What stands in for the agent beside a task; see `p2p.agent.ports.Neighbor`."""

    def __init__(
        self, swarm: Simulation, me: PeerId, staleness: dict[PeerId, deque[int]], kept: Kept, worker: int
    ) -> None:
        """Who trains is a `worker` of the executor `me`, which keeps what its workers leave."""
        self._swarm, self._me = swarm, me
        self._kept, self._worker = kept.setdefault(me, {}), worker
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
        left: Left | None = None,
    ) -> bool:
        self._staleness.append(max(0, self.replica.merged - merged_at) if staleness is None else staleness)
        gated = self._host.gated
        self._swarm.happen(self._me, Computed(update, None if unit is None else Unit(*unit), attempt))
        published = self._host.gated == gated
        if published and left is not None:
            before = self._kept.pop(self._worker, None)
            if before is not None and not left.follows:
                self._swarm.happen(self._me, Computed(before))
            if left.arrays is not None:
                self._kept[self._worker] = Packed.of(left.arrays)
        return published


# --------------------------------------------------------------------------------------------------------- the figures


def _published(swarm: Simulation) -> int:
    return sum(host.peer.replicator.n for host in swarm.peers.values())


def _lost(swarm: Simulation, accepted: int, units_before: int) -> dict[str, int]:
    """Updates that some replica never got, by cause; `accepted` units were handed over by tasks."""
    source = swarm.peers[swarm.source()]
    gone = accepted - (source.peer.identities.units - units_before) - sum(_unmerged(swarm, source).values())
    lost = {"agent gone": max(0, gone), "not read in time": _unread(swarm)}
    return {cause: count for cause, count in lost.items() if count}


def _unread(swarm: Simulation) -> int:
    """Updates of living peers that some other living peer has not got."""
    fronts = [host.peer.replicator.frontiers() for me, host in swarm.live().items() if me not in swarm.observing]
    return sum(host.peer.replicator.n - min(front.get(me, 0) for front in fronts) for me, host in swarm.live().items())


def _unmerged(swarm: Simulation, source: SimulatedPeer) -> dict[PeerId, int]:
    """By living peer: how many of its updates `source` has not got."""
    front = source.peer.replicator.frontiers()
    unmerged = {me: host.peer.replicator.n - front.get(me, 0) for me, host in swarm.live().items()}
    return {me: count for me, count in unmerged.items() if count}


def _incomplete_text(swarm: Simulation, unmerged: Mapping[PeerId, int], missing: Iterable[str], waited_s: float) -> str:
    lacks = ", ".join(f"{count} of {me}" for me, count in unmerged.items())
    behind = ", ".join(me for me in missing if me in swarm.live())
    return (
        (f"dd.model lacks {sum(unmerged.values())} updates of living peers ({lacks}). " if unmerged else "")
        + f"Replicas were not level {waited_s:g} virtual seconds after the last task ({behind}); dd.model is that of "
        f"{swarm.source()}, which has most. Wait longer by DeepDist(..., drain_timeout_s={2 * waited_s:g}), train on, "
        "or take the model as it is by train(..., on_incomplete='warn')"
    )


def _lost_text(report: Report) -> str:
    return (
        f"{report.lost['agent gone']} of {report.updates} updates are lost with agents that died: shorter chunks "
        "(chunk_rows=) put less at risk at a time, and another epoch learns it again"
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
