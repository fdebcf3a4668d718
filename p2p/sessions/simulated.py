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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from gossip.arrays import Array, Arrays, Packed, check_finite
from gossip.errors import MismatchError, UsageError
from gossip.events import Computed, Started
from gossip.identity import RESUMED
from gossip.lanes.peer import Settings
from gossip.marks import NO_UNITS, Counted
from gossip.membership import Detection
from gossip.messages import PeerId
from gossip.sim.faults import Disruption
from gossip.sim.simulator import SimulatedPeer, Simulation
from gossip.trust.norms import Limits, NormMax
from p2p.adapters.model import Model
from p2p.agent.lanes import OWN_ADVERT_GAP_S, PAYLOADS_BYTES_MAX, held_against
from p2p.agent.ports import refresh
from p2p.agent.registrar_messages import AGAINST_NOBODY
from p2p.caution import Cautions, warn
from p2p.checkpoint.writing import Writer
from p2p.codec import kinds_of
from p2p.driver.conduct import of_peer
from p2p.driver.consensus import Envelope
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import NOTHING_TO_DO, Done, Moment, Watcher, look, wants_units
from p2p.report import IncompleteTraining, PeerReport, Report, Snapshot
from p2p.sessions.cluster import SimulatedCluster
from p2p.sessions.scheduler import HEARTBEAT_S, Scheduler, SimulatedReplica
from p2p.sessions.training import Begun, Training, warn_of_absurd
from p2p.worker.job import Job, codec_of
from p2p.worker.pace import rows_for
from p2p.worker.working_copy import exchange_settings

OBSERVER = PeerId("observer")
LEVEL_STEP_S = 0.1
"""How often it is looked whether the replicas are level."""
WRITE_ROUNDS_MAX = 4
"""To have what the user wrote into the model at all replicas: two are enough, unless a peer that publishes it dies."""
LOST_SHARE_MAX = 0.01
"""Of the updates of a training: a warning tells if more were lost with the dead."""


class SimulatedSession:
    """What stands behind `DeepDist` when the cluster is simulated; see `p2p.sessions.agents.Session`."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        model: Model,
        seed: int,
        level_timeout_s: float,
        update_norm_max: NormMax = None,
    ) -> None:
        """A cluster that trains `model`; `seed` is that of the gradients' own random numbers."""
        self._cluster = cluster
        self._user_model = model
        self._seed = seed
        self._cautions = Cautions()
        self._level_timeout_s = level_timeout_s
        self._limits = Limits(update_norm_max)
        self._chance = random.Random(f"scheduler {cluster.seed}")
        self._epochs = 0
        """Begun in this session."""
        self.begun: Begun | None = None
        """As in `p2p.sessions.agents.Session`."""
        self._story: list[str] = []
        self._staleness: dict[PeerId, deque[int]] = {}
        self._disruption: Disruption | None = None
        self._swarm: Simulation | None = None
        self._shown: Shown | None = None
        self._gone: set[PeerId] = set()
        """Peers that were, when the newest training began."""
        self._done = NOTHING_TO_DO
        """Partitions of the training that runs."""

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
        if self.begun is not None:
            self.begun.check_data(data, len(data))
        try:
            return self._train(training)
        finally:
            self._done = NOTHING_TO_DO

    def _train(self, training: Training) -> Report:
        swarm, disruption = self._start()
        begun = self.begun
        if begun is not None:
            self._epochs = begun.epochs_before
        counters = None if begun is None else begun.counters
        training.begins(self._user_model, self._epochs, len(training.data), counters)
        self._gone = set(swarm.peers) - set(swarm.live())
        begin = swarm.now
        self._done = done = Done(training.progress, training.epochs * len(training.data))
        skeleton = self._user_model.skeleton()
        looks = _Looks(training.all_watchers, swarm, Model.from_skeleton(skeleton), done, training.stopping)
        with self._observed(swarm):
            try:
                disruption.active = True
                self._publish_written(swarm)
                before = self.snapshot()
                scheduler = self._scheduler(training, swarm, done, begun)
                self.begun = None
                looks.begin(scheduler.stop)
                try:
                    results = scheduler.run()
                except KeyboardInterrupt:
                    training.stopping.ended = "interrupted"
                    if training.writer is not None:
                        looks.keep(training.writer)
                    raise
                finally:
                    scheduler.stop()
            finally:
                looks.end()
                disruption.end()
            if self._limits.holds:
                swarm.exhaust(self._level_timeout_s)  # who is held is judged by what is known
            self._run_until_level(swarm, swarm.now + self._level_timeout_s)
        for result in results:
            self._cautions.give(result.cautions)
        looks.finish()
        self.refresh()
        now = self.snapshot()
        skipped = 0 if begun is None else begun.skipped(training.rhythm)
        accepted = sum(result.units for result in results) - skipped
        report = Report(
            peers=now.peers,
            mode="p2p",
            rows=sum(result.rows for result in results),
            seconds=now.at - begin,
            updates=now.updates - before.updates,
            consensus_distance=_distance(swarm),
            missing=_missing(swarm, set(swarm.peers) - self._gone),
            lost=(lost := _lost(swarm, accepted, before.units)),
            updates_lost=sum(lost.values()),
            digest=swarm.digest.hexdigest(),
            story=tuple(self._story),
        )
        report = training.reported(report)
        self._judge(report, training.on_incomplete)
        return report

    def _judge(self, report: Report, on_incomplete: str) -> None:
        """Raise, or warn, if the model lacks anything that is not lost with the dead; warn of what is."""
        warn_of_absurd(report)
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

    def snapshot(self) -> Snapshot:
        swarm = self._swarm
        peers = {} if swarm is None else {me: host for me, host in swarm.peers.items() if me not in self._gone}
        return Snapshot(
            at=0.0 if swarm is None else swarm.now,
            updates=0 if swarm is None else _published(swarm),
            units=0 if swarm is None else swarm.peers[swarm.source()].peer.identities.units,
            peers=tuple(self._peer_report(me, host) for me, host in peers.items()),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
        )

    def stop(self) -> None:
        swarm, self._swarm = self._swarm, None
        if swarm is not None:
            for host in swarm.peers.values():
                host.segments.close()

    def _scheduler(self, training: Training, swarm: Simulation, done: Done, begun: Begun | None) -> Scheduler:
        return Scheduler(
            self._cluster,
            swarm,
            self._chance,
            job=self._job(training, begun),
            data=training.data,
            progress=done,
            staleness=self._staleness,
        )

    def _job(self, training: Training, begun: Begun | None) -> Job:
        cluster = self._cluster
        job = Job(
            run=f"simulated {cluster.seed}",
            skeleton=self._user_model.skeleton(None, None if begun is None else begun.counters),
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
                training.rule,
                cluster.peers,
                rows_for(cluster.seconds_per_chunk, cluster.peers),
                codec_of(training.rhythm),
            ),
            rhythm=training.rhythm,
            resumes=begun is not None,
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
        for host in swarm.peers.values():
            host.peer.conduct.begin_anew()
        if not self._shown.written():
            return
        with _any_length(swarm):
            self._hand_in(swarm)

    def _hand_in(self, swarm: Simulation) -> None:
        assert self._shown is not None
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
                limits=self._limits,
            )
            self._shown = Shown(self._user_model)
            self._swarm = Simulation(
                cluster.peers,
                self._user_model.as_summed(self._shown.arrays),
                seed=cluster.seed,
                network=cluster.network,
                settings=settings,
                observer=OBSERVER,
                begin=_begin(NO_UNITS if self.begun is None else self.begun.counted),
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
        swarm = self._swarm
        view = AGAINST_NOBODY if swarm is None else held_against(swarm.peers[swarm.source()].peer)
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
            conduct=of_peer(me, view, host.peer.conduct.left_out),
        )


@contextmanager
def _any_length(swarm: Simulation) -> Iterator[None]:
    """What the user writes is published by peers, and may be of any length."""
    judging = [host.peer.conduct for host in swarm.peers.values() if not host.peer.conduct.suspended]
    for each in judging:
        each.suspended = True
    try:
        yield
    finally:
        for each in judging:
            each.suspended = False


def _begin(counted: Counted) -> Started:
    """What all peers are told at first, where these units count."""
    marks = {RESUMED: counted.series} if counted.series else {}
    return Started({}, closed=counted.closed, units=counted.units, marks=marks)


class _Looks:
    """The watchers of one training. Looking takes no virtual time."""

    def __init__(
        self, watchers: Sequence[Watcher], swarm: Simulation, model: Model, done: Done, stopping: Stopping
    ) -> None:
        """They are shown `model`, filled from whoever has most."""
        self._watchers = watchers
        self._swarm = swarm
        self._model = model
        self._done = done
        self._stopping = stopping
        self._began = swarm.now
        self._merged_before = 0
        self._running = False

    def begin(self, stop: Callable[[], None]) -> None:
        """Look now, and every so often; `stop()` ends the tasks."""
        self._running = True
        self._stop = stop
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
        if self._running and wants_units(watcher) and self._counted() is None:
            # which of two attempts at a unit counts is decided soon
            self._swarm.at(self._swarm.now + LEVEL_STEP_S, partial(self._look_again, watcher))
        elif self._running:
            self._look(watcher)
            if self._stopping.has_stopped:
                self._stop()
            self._swarm.at(self._swarm.now + float(watcher.every_s), partial(self._look_again, watcher))

    def keep(self, writer: Writer) -> None:
        """Have a last checkpoint of a training that was interrupted."""
        self._model.load(self._source().arrays())
        writer.write(self._model.arrays(), self._moment(writer, self._source().merged), self._stopping.ended)

    def _look(self, watcher: Watcher, *, ended: bool = False) -> None:
        merged = refresh(self._model, self._source())
        look(watcher, self._model.model, self._moment(watcher, merged, ended))

    def _moment(self, watcher: Watcher, merged: int, ended: bool = False) -> Moment:
        return Moment(
            seconds=self._swarm.now - self._began,
            updates=max(0, merged - self._merged_before),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
            ended=ended,
            consensus_distance=_distance(self._swarm),
            counted=self._counted() if wants_units(watcher) else None,
        )

    def _counted(self) -> Counted | None:
        return self._swarm.peers[self._swarm.source()].peer.identities.counted()

    def _source(self) -> SimulatedReplica:
        return SimulatedReplica(self._swarm.peers[self._swarm.source()])


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
        for name in self._model.names:
            update[name] = np.zeros_like(replica[name])
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
