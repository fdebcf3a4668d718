"""A session with a master: the model is in the driver program, and tasks come there for it, without any agent.

engine: tasks -> gradient -> p2p.driver.serving -> coordinator: descent -> the user's own model -> snapshots
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from gossip.marks import Unit
from gossip.zmq.sockets import Keys, is_loopback
from p2p import engines
from p2p.adapters.model import Model
from p2p.caution import Cautions, warn
from p2p.driver.coordinator import Coordinator, feeding
from p2p.driver.served import Served
from p2p.driver.serving import Server
from p2p.driver.watchers import NOTHING_TO_DO, Done, Moment, Seen, Watching
from p2p.engines.choice import SessionEngine
from p2p.report import PeerReport, Report, Snapshot
from p2p.row_order import other_rows
from p2p.server.shared import memory_peak_bytes
from p2p.sessions.training import Begun, Training
from p2p.worker.job import Job, TaskResult, codec_of
from p2p.worker.working_copy import exchange_settings

log = logging.getLogger("p2p")


class MasterSession:
    """See `p2p.sessions.agents.Session`."""

    begun: Begun | None = None
    mode: ClassVar[str] = "master"
    """As reports tell."""

    def __init__(self, model: Model, *, peers: int | None, engine: engines.Engine | None = None, seed: int) -> None:
        """Nothing is started before the first training; see `DeepDist` for the arguments."""
        self._user_model = model
        self._seed = seed
        self._run = secrets.token_hex(16)
        self._engine = SessionEngine(engine, peers)
        self._server: Server | None = None
        self._served: Served | None = None
        self._coordinator: Coordinator | None = None
        """Of the training that runs."""
        self._cautions = Cautions()
        self._epochs = 0
        """Begun in this session."""
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
            self._epochs = begun.epochs_before
        counters = None if begun is None else begun.counters
        training.begins(self._user_model, self._epochs, partitions, counters)
        job = Job(
            run=self._run,
            skeleton=self._user_model.skeleton(getattr(training.gradient, "light", None), counters),
            gradient=training.gradient,
            epochs=training.epochs,
            partitions=partitions,
            chunk_rows=training.chunk_rows,
            peers=engine.peers,
            seed=self._seed,
            epochs_before=self._epochs,
            exchange=exchange_settings(self._user_model, training.rule, engine.peers, codec=codec_of(training.rhythm)),
            rhythm=training.rhythm,
            resumes=begun is not None,
            workers=engine.workers,
            drops_bad=training.on_bad_update == "drop",
            master=server.address,
        )
        coordinator = self._coordinated(training, engine, job, served, () if begun is None else begun.units)
        self._epochs += training.epochs
        self.begun = None
        before = self.snapshot()
        self._coordinator = coordinator
        try:
            return self._run_job(training, engine, coordinator, job, before)
        finally:
            coordinator.close()
            self._coordinator, self._done = None, NOTHING_TO_DO
            self._units += coordinator.taken
            served.end()

    def _coordinated(
        self, training: Training, engine: engines.Engine, job: Job, served: Served, applied: Iterable[Unit]
    ) -> Coordinator:
        """The training's coordinator. `applied` are units that an earlier session has taken."""
        return Coordinator(
            served, training.descent, engine.cancel, job.epochs_before, applied, training.max_staleness, job.drops_bad
        )

    def _runs(
        self, training: Training, engine: engines.Engine, coordinator: Coordinator, job: Job, watching: Watching
    ) -> Iterator[list[TaskResult]]:
        """Run the engine until all is done, which is once here."""
        yield engine.run(job, training.data, self._done)

    def _run_job(
        self, training: Training, engine: engines.Engine, coordinator: Coordinator, job: Job, before: Snapshot
    ) -> Report:
        """Have the tasks run, and all that goes with them; then see what came of it."""
        assert self._server is not None
        self._done = Done(training.progress, job.epochs * job.partitions)
        try:
            with feeding([self._server], coordinator), self._watching(training, engine, coordinator) as watching:
                with (
                    self._errors_first(training, coordinator, watching) as results,
                    feeding(training.feeders, coordinator),
                ):
                    for found in self._runs(training, engine, coordinator, job, watching):
                        results += found
                seconds = time.monotonic() - before.at  # a last look may take longer
                self._check_rows(coordinator)
                self._tell(results, coordinator)
                watching.finish()
        except KeyboardInterrupt:
            self._keep_what_there_is(training, coordinator, before)
            raise
        now = self.snapshot()
        return training.reported(
            Report(
                peers=now.peers,
                mode=self.mode,
                rows=sum(result.rows for result in results),
                seconds=seconds,
                updates=now.updates - before.updates,
                updates_lost=coordinator.dropped,
                lost={"not finite": coordinator.dropped} if coordinator.dropped else {},
                consensus_distance=0.0,
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
        if self._server is not None:
            self._server.close()
        if self._served is not None:
            self._served.close()
        self._server = self._served = None

    # ------------------------------------------------------------------------------------------------- parts

    def _start(self, engine: engines.Engine) -> tuple[Server, Served]:
        if self._server is None or self._served is None:
            keys = None if is_loopback(engine.address) else Keys.generate()
            self._served = Served(self._user_model)
            self._server = Server(self._served, engine.address, self._run, keys)
        engine.start(None, None)
        return self._server, self._served

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

    def _check_rows(self, coordinator: Coordinator) -> None:
        """Attempts that ran side by side may have got different rows."""
        torn = coordinator.torn()
        if torn:
            epoch = min(epoch for epoch, _ in torn)
            where = [partition for other, partition in torn if other == epoch]
            raise other_rows(epoch - coordinator.epochs_before, where)

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
        workers = sorted(server.workers.values(), key=lambda worker: worker.name)
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
