"""A session with a master: the model is in the driver program, and tasks come there for it, without any agent.

engine: tasks -> gradient -> p2p.master.serving -> coordinator: descent -> the user's own model -> snapshots

With standbys the model is in several processes, one of which leads; the driver program's is one of them.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar

import numpy as np

from gossip.marks import Unit
from gossip.zmq.sockets import Keys
from p2p import engines
from p2p.adapters.model import Light, Model
from p2p.caution import Cautions, warn
from p2p.driver.watchers import NOTHING_TO_DO, Done, Moment, Seen, Watching
from p2p.engines.choice import SessionEngine
from p2p.master.coordinator import Coordinator, feeding
from p2p.master.served import Served
from p2p.master.serving import Server
from p2p.report import MastersLostError, PeerReport, Report, Snapshot
from p2p.row_order import other_rows
from p2p.server.messages import Address
from p2p.server.shared import memory_peak_bytes
from p2p.sessions.training import Begun, Training
from p2p.standby.coordinator import GroupCoordinator, WorkerFigures
from p2p.standby.group import Group, caught_up
from p2p.standby.launch import Followed, Standbys, starter
from p2p.standby.process import Opening
from p2p.worker.job import Job, TaskResult, codec_of
from p2p.worker.working_copy import exchange_settings

log = logging.getLogger("p2p")

ALONE = Followed()


class MasterSession:
    """See `p2p.sessions.agents.Session`."""

    begun: Begun | None = None
    mode: ClassVar[str] = "master"
    """As reports tell."""

    def __init__(
        self,
        model: Model,
        *,
        peers: int | None,
        engine: engines.Engine | None = None,
        seed: int,
        epochs: int = 0,
        followed: Followed = ALONE,
    ) -> None:
        """Nothing is started before the first training; see `DeepDist` for the arguments, and `epochs` as for
        `AgentSession`."""
        self._followed = followed
        self._standbys: Standbys | None = None
        self._workers: dict[str, WorkerFigures] = {}
        """Of the session, where there are standbys."""
        self._failovers = 0
        """Of the last training."""
        self._user_model = model
        self._seed = seed
        self._run = secrets.token_hex(16)
        self._engine = SessionEngine(engine, peers)
        self._server: Server | None = None
        self._served: Served | None = None
        self._coordinator: Coordinator | None = None
        """Of the training that runs."""
        self._cautions = Cautions()
        self.epochs = epochs
        """Begun, in all trainings."""
        self._units = 0
        """Of work that count, of all trainings."""
        self._done = NOTHING_TO_DO

    def train(self, training: Training) -> Report:
        engine = self._engine.for_data(training.data)
        partitions = engine.partitions(training.data)
        begun = self.begun
        if begun is not None:
            begun.check_data(training.data, partitions)
        self._cautions.give(engine.cautions(training.data))
        server, served = self._start(engine)
        if begun is not None:
            self.epochs = begun.epochs_before
        counters = None if begun is None else begun.counters
        done = 0 if begun is None else begun.epochs_done
        training.begins(self._user_model, self.epochs, partitions, counters)
        job = Job(
            run=self._run,
            skeleton=self._user_model.skeleton(_light(training), counters),
            gradient=training.gradient,
            descent=training.descent if training.pushes.n_fetch > 1 else None,
            epochs=training.epochs - done,
            partitions=partitions,
            chunk_rows=training.chunk_rows,
            peers=engine.peers,
            seed=self._seed,
            epochs_before=self.epochs + done,
            exchange=exchange_settings(self._user_model, training.rule, engine.peers, codec=codec_of(training.rhythm)),
            rhythm=training.rhythm,
            resumes=begun is not None,
            workers=engine.workers,
            pushes=training.pushes,
            master=self._address(server, training.staleness.most is not None),
        )
        coordinator = self._coordinated(training, engine, job, served, () if begun is None else begun.units)
        self.epochs += training.epochs
        self.begun = None
        before = self.snapshot()
        self._coordinator = coordinator
        if counters is None:
            arrays = self._user_model.arrays()
            counters = {name: arrays[name].copy() for name in self._user_model.counters}
        try:
            return self._run_job(training, engine, coordinator, job, before)
        except MastersLostError as error:
            model = Model.from_skeleton(self._user_model.skeleton())
            self.begun = Begun(coordinator.cut(model)[1], self.epochs - training.epochs, _any_data, counters)
            error.report = self._report(training, coordinator, 0, time.monotonic() - before.at, before)
            raise
        finally:
            coordinator.close()
            self._coordinator, self._done = None, NOTHING_TO_DO
            self._units += coordinator.taken
            served.end()

    def _coordinated(
        self, training: Training, engine: engines.Engine, job: Job, served: Served, applied: Iterable[Unit]
    ) -> Coordinator:
        """The training's coordinator. `applied` are units that an earlier session has taken."""
        made = Coordinator if self._standbys is None else GroupCoordinator
        coordinator = made(
            served,
            training.descent,
            engine.cancel,
            job.epochs_before,
            applied,
            training.staleness.most,
            job.pushes.drops_bad,
            training.staleness.weight,
        )
        if isinstance(coordinator, GroupCoordinator):
            coordinator.workers = self._workers
        return coordinator

    def _runs(
        self, training: Training, engine: engines.Engine, coordinator: Coordinator, job: Job, watching: Watching
    ) -> Iterator[list[TaskResult]]:
        """Run the engine until all is done, which is once here."""
        if job.epochs:
            yield engine.run(job, training.data, self._done)

    def _run_job(
        self, training: Training, engine: engines.Engine, coordinator: Coordinator, job: Job, before: Snapshot
    ) -> Report:
        """Have the tasks run, and all that goes with them; then see what came of it."""
        assert self._server is not None
        self._done = Done(training.progress, job.epochs * job.partitions)
        try:
            with (
                self._group(training, engine, coordinator) as group,
                feeding([self._server], coordinator),
                self._watching(training, engine, coordinator) as watching,
            ):
                with (
                    self._errors_first(training, coordinator, watching) as results,
                    feeding(training.feeders, coordinator),
                    caught_up(group),
                ):
                    for found in self._runs(training, engine, coordinator, job, watching):
                        results += found
                seconds = time.monotonic() - before.at  # a last look may take longer
                self._check_rows(coordinator, self.epochs - training.epochs)
                self._tell(results, coordinator)
                watching.finish()
        except KeyboardInterrupt:
            self._keep_what_there_is(training, coordinator, before)
            raise
        return self._report(training, coordinator, sum(result.rows for result in results), seconds, before)

    def _report(
        self, training: Training, coordinator: Coordinator, rows: int, seconds: float, before: Snapshot
    ) -> Report:
        now = self.snapshot()
        return training.reported(
            Report(
                peers=now.peers,
                mode=self.mode,
                rows=rows,
                seconds=seconds,
                updates=now.updates - before.updates,
                updates_lost=coordinator.dropped,
                lost={"not finite": coordinator.dropped} if coordinator.dropped else {},
                consensus_distance=0.0,
                failovers=self._failovers,
                staleness_weight=None if coordinator.weighing is None else coordinator.weighing.mean,
            )
        )

    @contextmanager
    def _errors_first(
        self, training: Training, coordinator: Coordinator, watching: Watching
    ) -> Iterator[list[TaskResult]]:
        """An error of `descent` or of a watcher ends the tasks, and is what is raised then, and not theirs."""
        try:
            yield []
        except Exception as error:
            first = coordinator.error or watching.error
            if first is not None and first is not error:
                raise first from None
            if first is not None or not training.stopping.has_stopped:
                raise
            log.info("the tasks were ended: %s", error)
        if (first := coordinator.error or watching.error) is not None:
            raise first

    def refresh(self) -> None:
        coordinator = self._coordinator
        if coordinator is not None:
            with coordinator.between_updates():
                self._user_model.adapter.loaded(self._user_model.model)

    def snapshot(self) -> Snapshot:
        coordinator, served = self._coordinator, self._served
        return Snapshot(
            at=time.monotonic(),
            updates=0 if served is None else served.version,
            units=self._units + (0 if coordinator is None else coordinator.taken),
            peers=() if self._server is None else tuple(self._peers(self._server)),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
        )

    def stop(self) -> None:
        engine = self._engine.take_out()
        if engine is not None:
            engine.stop()
        if self._standbys is not None:
            self._standbys.close()
        if self._server is not None:
            self._server.close()
        if self._served is not None:
            self._served.close()
        self._server = self._served = self._standbys = None

    # ------------------------------------------------------------------------------------------------- parts

    def _start(self, engine: engines.Engine) -> tuple[Server, Served]:
        if self._server is None or self._served is None:
            self._served = Served(self._user_model)
            keys = Keys.generate()
            self._server = Server(engine.address, self._run, keys)
            if self._followed.standbys:
                self._standbys = Standbys(self._followed, self._run, engine.address, keys)
        engine.start(None, None)
        if self._standbys is not None:
            self._standbys.start(starter(engine))
        return self._server, self._served

    def _address(self, server: Server, bounded: bool) -> Address:
        """Where tasks find who leads: any member of the group says so."""
        if self._standbys is None:
            return server.address
        first, *others = (place.face for place in self._standbys.places)
        return replace(server.address, endpoint=first, others=(*others, server.address.endpoint), bounded=bounded)

    @contextmanager
    def _group(self, training: Training, engine: engines.Engine, coordinator: Coordinator) -> Iterator[Group | None]:
        """The standbys take part within, if there are any."""
        if self._standbys is None:
            yield None
            return
        assert self._server is not None
        assert isinstance(coordinator, GroupCoordinator)
        opening = Opening(
            skeleton=self._user_model.skeleton(),
            arrays=self._user_model.arrays(),
            descent=training.descent,
            epochs_before=coordinator.epochs_before,
            applied=set(coordinator.applied),
            max_staleness=training.staleness.most,
            drops_bad=training.pushes.drops_bad,
            weight=training.staleness.weight,
            version=coordinator.version,
        )
        with self._standbys.training(self._server, coordinator, opening, starter(engine)) as group:
            yield group
            self._failovers = group.failovers

    def _watching(self, training: Training, engine: engines.Engine, coordinator: Coordinator) -> Watching:
        def cut(model: Model) -> Seen:
            merged, counted = coordinator.cut(model)
            return Seen(merged=merged, counted=counted)

        return Watching(
            training.all_watchers,
            self._user_model.skeleton,
            lambda model: Seen(merged=coordinator.read(model)),
            self._done,
            engine.cancel,
            cut,
            lambda: training.stopping.has_stopped,
        )

    def _keep_what_there_is(self, training: Training, coordinator: Coordinator, before: Snapshot) -> None:
        """A last checkpoint of a training that was interrupted, if any were asked for."""
        training.stopping.ended = "interrupted"
        if training.writer is None:
            return
        model = Model.from_skeleton(self._user_model.skeleton())
        _, counted = coordinator.cut(model)
        moment = Moment(
            seconds=time.monotonic() - before.at,
            updates=max(0, self.snapshot().updates - before.updates),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
            counted=counted,
        )
        training.writer.write(model.arrays(), moment, training.stopping.ended)

    def _check_rows(self, coordinator: Coordinator, epochs_before: int) -> None:
        """Attempts that ran side by side may have got different rows."""
        torn = coordinator.torn()
        if torn:
            epoch = min(epoch for epoch, _ in torn)
            where = [partition for other, partition in torn if other == epoch]
            raise other_rows(epoch - epochs_before, where)

    def _tell(self, results: list[TaskResult], coordinator: Coordinator) -> None:
        for cautions in (*(result.cautions for result in results), coordinator.cautions):
            self._cautions.give(cautions)
        if coordinator.dropped:
            warn(
                f"{coordinator.dropped} updates had numbers that are NaN or infinite, or would have made such of the "
                "model, and were dropped: the model lacks what was learned from their rows. A smaller learning rate "
                "may help"
            )

    def _peers(self, server: Server) -> Iterator[PeerReport]:
        for name, figures in sorted(self._workers.items()):
            yield PeerReport(
                name=name,
                role="worker",
                published=len(figures.staleness),
                applied=figures.seen,
                bytes_out=figures.bytes_out,
                bytes_in=figures.bytes_in,
                staleness_median=float(np.median(figures.staleness)),
                staleness_p95=float(np.percentile(figures.staleness, 95)),
                memory_peak_bytes=0,
            )
        workers = [] if self._workers else sorted(server.workers.values(), key=lambda worker: worker.name)
        for worker in workers:
            staleness = worker.staleness or [0]
            yield PeerReport(
                name=worker.name,
                role="worker",
                published=worker.published,
                applied=worker.seen,
                bytes_out=worker.bytes_in,
                bytes_in=worker.bytes_out,
                staleness_median=float(np.median(staleness)),
                staleness_p95=float(np.percentile(staleness, 95)),
                memory_peak_bytes=worker.memory_peak_bytes,
            )
        yield PeerReport(
            name=f"{socket.gethostname()}:{os.getpid()}",
            role="master",
            published=0,
            applied=0 if self._served is None else self._served.version,
            bytes_out=sum(worker.bytes_out for worker in workers),
            bytes_in=sum(worker.bytes_in for worker in workers),
            staleness_median=0.0,
            staleness_p95=0.0,
            memory_peak_bytes=memory_peak_bytes(),
        )


def _any_data(data: object, partitions: int) -> None:
    """It is the same call's."""


def _light(training: Training) -> Light | None:
    """What makes the model smaller for workers, where no descent runs there."""
    return None if training.pushes.n_fetch > 1 and training.descent else getattr(training.gradient, "light", None)
