"""A session that trains by L-BFGS: what stands behind `DeepDist(model, optimizer=LBFGS(...))`."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gossip.errors import UsageError
from p2p import parcel
from p2p.adapters.model import Model
from p2p.caution import Cautions
from p2p.engines.choice import is_rdd
from p2p.lbfgs.coordinator import Coordinator, Member
from p2p.lbfgs.crew import Crew, LocalCrew
from p2p.lbfgs.flat import Flat
from p2p.lbfgs.method.minimizer import Course, HistoryLost, Minimizer
from p2p.lbfgs.method.options import LBFGS
from p2p.lbfgs.portions import Portions
from p2p.lbfgs.report import LBFGSReport
from p2p.lbfgs.worker import Job
from p2p.lbfgs.workforce import LocalWorkers, Workforce
from p2p.report import PeerReport, Report, Snapshot
from p2p.sessions.training import Begun, Training

LEFT_OUT = (
    *(
        "mode",
        "descent",
        "combine",
        "exchange_s",
        "evaluate",
        "evaluate_every_s",
        "stop_when",
        "checkpoint",
        "every_s",
        "keep",
    ),
)
"""Arguments of `train` that say nothing here, and have to be None."""


def session(model: Model, optimizer: Any, *, peers: int | None, seed: int, **given: Any) -> LBFGSSession:
    """The session of `DeepDist(model, optimizer=...)`.

    Raises:
        UsageError: an argument in `given`, by name, does not go with L-BFGS.
    """
    if not isinstance(optimizer, LBFGS):
        raise UsageError(
            f"optimizer is a {type(optimizer).__name__}, expected p2p.LBFGS(...), or None for a gradient and a descent"
        )
    expected = {"mode": "p2p", "discipline": "replicate", "codec": "auto", "engine": None}
    for name, wanted in expected.items():
        if given[name] is not wanted and given[name] != wanted:
            raise UsageError(
                f"{name}={given[name]!r:.80} with optimizer=LBFGS(...), expected {name}={wanted!r}: L-BFGS has workers "
                "and shards of its own"
            )
    return LBFGSSession(model, optimizer, peers=peers, seed=seed)


def asked(optimizer: LBFGS, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `train`, with `epochs` for passes; `UsageError` for those that do not go with L-BFGS."""
    for name in LEFT_OUT:
        if arguments[name] is not None:
            raise UsageError(f"{name} with optimizer=LBFGS(...), expected none: L-BFGS chooses its steps by itself")
    for name in ("watchers", "feeders"):
        if arguments[name]:
            raise UsageError(f"{name} with optimizer=LBFGS(...), expected none: they are for asynchronous trainings")
    if arguments["exchange"] != "chunk":
        raise UsageError(f"exchange={arguments['exchange']!r} with optimizer=LBFGS(...), expected 'chunk'")
    return {**arguments, "epochs": optimizer.max_passes if arguments["epochs"] is None else arguments["epochs"]}


class LBFGSSession:
    """Trains by L-BFGS, on processes of this machine or on Spark, which are there for one training each."""

    def __init__(self, model: Model, optimizer: LBFGS, *, peers: int | None, seed: int) -> None:
        """`UsageError` where an array of the model is no float32 or float64."""
        self._model = model
        self._flat = Flat(model.layout)
        self._optimizer = optimizer
        self._peers = peers
        self._seed = seed
        self._cautions = Cautions()
        self._members: Mapping[str, Member] = {}
        self._passes = (0, 0)
        """Done, of at most so many, in the training that runs."""
        self._times: list[float] = []
        """When it began, and when each pass was over."""
        self.begun: Begun | None = None
        """As in `p2p.sessions.agents.Session`; such a training is refused."""

    def train(self, training: Training) -> Report:
        """Train until the objective is at its minimum, or all passes are over.

        Ctrl-C leaves the last accepted step in the model.
        """
        if self.begun is not None:
            raise UsageError("a checkpoint with optimizer=LBFGS(...), expected none: go on without the optimizer")
        self._times, passes_max = [time.monotonic()], training.epochs
        coordinator = self._on_spark(training) if is_rdd(training.data) else self._here(training)
        self._members = coordinator.members

        def tell(course: Course) -> None:
            self._passes = course.passes, passes_max
            self._times.append(time.monotonic())
            training.progress(*self._passes)

        minimizer = Minimizer(coordinator, self._optimizer, passes_max, tell)
        try:
            coordinator.start()
            minimizer.run()
        except HistoryLost as loss:
            raise UsageError(f"L-BFGS could not begin: {loss}") from None
        except KeyboardInterrupt:
            coordinator.write_back()
            raise
        finally:
            coordinator.close()
            self._passes = (0, 0)
        return self._report(coordinator, minimizer.course)

    def _here(self, training: Training) -> Coordinator:
        """On processes of this machine."""
        data = training.data
        workers = self._peers or max(1, min(len(data), os.cpu_count() or 1))
        portions = Portions(len(data), self._optimizer.backup_after)
        workforce = LocalWorkers(workers, self._job(training, len(data), workers), data, portions)
        return self._coordinated(LocalCrew(), workforce, workers)

    def _on_spark(self, training: Training) -> Coordinator:
        """On the executors of its SparkContext."""
        from p2p.engines.spark import cautions_of_secrets, executors_wanted
        from p2p.lbfgs.spark import SparkCrew, SparkTasks, check_data  # only here is pyspark needed

        data = training.data
        check_data(data, training.chunk_rows, self._peers)
        self._cautions.give(cautions_of_secrets(data.context))
        crew, partitions = SparkCrew(data.context), data.getNumPartitions()
        executors = executors_wanted(data.context)
        after = self._optimizer.backup_after
        job = self._job(training, partitions, executors)
        workforce = SparkTasks(crew, data, job, Portions(partitions, after), after)
        return self._coordinated(crew, workforce, executors)

    def _job(self, training: Training, partitions: int, peers: int) -> bytes:
        job = Job(
            run=secrets.token_hex(16),
            skeleton=self._model.skeleton(),
            function=training.gradient,
            chunk_rows=training.chunk_rows,
            passes=training.epochs,
            partitions=partitions,
            peers=peers,
            seed=self._seed,
        )
        return parcel.dumps(job)

    def _coordinated(self, crew: Crew, workforce: Workforce, peers: int) -> Coordinator:
        shards = self._optimizer.shards or peers
        return Coordinator(crew, self._flat, self._model.arrays(), self._optimizer, workforce, shards)

    def refresh(self) -> None:
        """The user's model always is the last accepted step."""

    def snapshot(self) -> Snapshot:
        done, of = self._passes
        peers = self._peer_reports()
        return Snapshot(
            at=time.monotonic(),
            updates=sum(peer.published for peer in peers),
            units=0,
            peers=peers,
            partitions_done=done,
            partitions=of,
        )

    def stop(self) -> None:
        """Nothing is left of a training that is over."""

    def _report(self, coordinator: Coordinator, course: Course) -> LBFGSReport:
        peers = self._peer_reports()
        seconds = time.monotonic() - self._times[0]
        return LBFGSReport(
            peers=peers,
            mode="lbfgs",
            rows=coordinator.rows,
            seconds=seconds,
            updates=sum(peer.published for peer in peers),
            updates_lost=0,
            consensus_distance=0.0,
            ended=course.ended,
            passes=course.passes,
            iterations=course.iterations,
            objective=course.value,
            gradient_norm=course.gradient_norm,
            objectives=tuple(course.by_pass),
            pass_seconds=tuple(later - earlier for earlier, later in pairwise(self._times)),
            restarts=course.restarts,
            skipped=course.skipped,
            backups=coordinator.portions.backups,
            dropped=coordinator.portions.dropped,
        )

    def _peer_reports(self) -> tuple[PeerReport, ...]:
        return tuple(
            PeerReport(
                name=f"{name} ({member.pid})" if member.pid else name,
                role=member.role,
                published=member.portions,
                applied=0,
                bytes_out=member.bytes_out,
                bytes_in=member.bytes_in,
                staleness_median=0.0,
                staleness_p95=0.0,
                memory_peak_bytes=member.memory_peak_bytes,
            )
            for name, member in list(self._members.items())
        )
