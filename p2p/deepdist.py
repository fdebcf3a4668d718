"""The public interface: `DeepDist(model)`, `train`, `model`.

with DeepDist(model, mode="p2p") as dd:            driver program: registrar (addresses), observer (dd.model)
    dd.train(data, gradient, descent)              engine: tasks and agents
    dd.model
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gossip.errors import UsageError
from gossip.zmq_runtime import Keys, is_loopback
from p2p import engines, localhost
from p2p.agent_client import AgentSettings
from p2p.caution import Cautions
from p2p.consensus import consensus_distance
from p2p.coordinator import Coordinator
from p2p.model import Model
from p2p.observer import Observer
from p2p.registrar import Member, Registrar
from p2p.report import PeerReport, Report
from p2p.task import Descent, Gradient, Job, refresh

M = TypeVar("M")

ROSTER_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 5.0
WAIT_S = 0.05
"""How soon the driver program notices that the master has taken every update."""
ROLES = {"p2p": ("peer", "observer"), "master": ("worker", "hub")}
"""By mode: the role of the executors' agents, and of the driver program's."""


class DeepDist(Generic[M]):
    """Trains `model` on partitions of data, asynchronously, without a master (or with one: `mode="master"`).

    The model is a gensim Word2Vec, a dict of numpy arrays, or any object with numpy attributes (`parameters` chooses
    among them). It is changed in place: after the `with` block, and whenever `dd.model` is read, it holds what was
    learnt. Each session has its own agents, which end with the `with` block.
    """

    def __init__(
        self,
        model: M,
        mode: Literal["p2p", "master"] = "p2p",
        *,
        parameters: Sequence[str] | None = None,
        peers: int | None = None,
        seed: int = 0,
        progress: bool | None = None,
        drain_timeout_s: float = 60.0,
    ) -> None:
        """`peers`: processes of the local engine (default: one per core, at most one per partition); on Spark every
        executor is a peer. `seed`: of the random numbers that gradients draw by `p2p.task.current()`. `progress`: show
        a bar (default: on a terminal). `drain_timeout_s`: how long `train` may wait at its end for level replicas.
        """
        if mode not in ROLES:
            raise UsageError(f"mode={mode!r}, expected 'p2p' or 'master'")
        if peers is not None and peers < 1:
            raise UsageError(f"peers={peers}, expected at least 1")
        self._mode = mode
        self._user_model = Model(model, parameters)
        self._peers = peers
        self._seed = seed
        self._progress = progress
        self._drain_timeout_s = drain_timeout_s
        self._run = secrets.token_hex(16)
        self._session = "new"  # then "open", then "ended"
        self._engine: engines.Engine | None = None
        self._registrar: Registrar | None = None
        self._observer: Observer | None = None
        self._keys: Keys | None = None
        self._cautions = Cautions()
        self._applied: set[tuple[int, int, int]] = set()
        """Units of work that a master's `descent` has taken."""
        self._epochs = 0
        """Begun in this session."""

    def __enter__(self) -> Self:
        if self._session != "new":
            raise UsageError(f"this session is {self._session}, and each is entered once: make a new DeepDist(model)")
        self._session = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._observer is not None:
                refresh(self._user_model, self._observer.agent.replica)
        finally:
            self._session = "ended"
            self._stop()

    @property
    def model(self) -> M:
        """The user's model, with all that has reached the driver program so far, also while a training runs."""
        if self._observer is not None:
            refresh(self._user_model, self._observer.agent.replica)
        model: M = self._user_model.model
        return model

    def train(
        self,
        data: Any,
        gradient: Gradient,
        descent: Descent | None = None,
        epochs: int = 1,
        *,
        chunk_rows: int | None = None,
    ) -> Report:
        """Train on every partition of `data`, `epochs` times, and wait until all replicas are level.

        `data` is a Spark RDD or DataFrame, or a list of partitions, each an iterable of rows or a function that
        returns one. `gradient(model, rows)` runs on the workers: `model` is a local replica that it may change freely,
        `rows` an iterator over one partition, or over `chunk_rows` rows of it; what it returns is the update, None or
        {} for nothing. `descent(model, update)` changes the model's arrays in place; without one, the update is a dict
        of named arrays that are added to the model's. Errors of the user's functions are raised here, unchanged.
        """
        if self._session != "open":
            raise UsageError(
                f"train() outside of its session, which is {self._session}: write "
                "`with DeepDist(model) as dd: dd.train(...)`"
            )
        _check_arguments(gradient, descent, epochs, chunk_rows)
        data = _partitions(data)
        engine = self._choose_engine(data)
        partitions = engine.partitions(data)
        self._cautions.give(engine.cautions(data), stacklevel=2)
        registrar, observer = self._start(engine)
        self._cautions.give(registrar.shortages(), stacklevel=2)
        refresh(self._user_model, observer.agent.replica)
        skeleton = self._user_model.skeleton()
        registrar.ask_status(STATUS_TIMEOUT_S)
        before = sum(_published(registrar).values())
        units_before = _units(registrar, observer)
        begin = time.monotonic()
        # a master's descent stays in the driver program, and may hold on to what cannot be sent
        sent = None if self._mode == "master" else descent
        job = Job(
            self._run,
            self._mode,
            skeleton,
            gradient,
            sent,
            epochs,
            partitions,
            chunk_rows,
            engine.peers,
            self._seed,
            self._epochs,
        )
        self._epochs += epochs
        registrar.open = False
        try:
            with (
                self._bar(epochs * partitions) as show,
                self._coordinator(engine, observer, job, descent) as coordinator,
            ):
                try:
                    results = engine.run(job, data, show)
                except Exception:
                    if coordinator is not None and coordinator.error is not None:
                        raise coordinator.error from None
                    raise
                self._drain(registrar, coordinator)
        finally:
            registrar.open = True
        seconds = time.monotonic() - begin
        self._cautions.give(registrar.shortages(), stacklevel=2)  # of hosts that came meanwhile
        refresh(self._user_model, observer.agent.replica)
        accepted = sum(result.units for result in results)
        merged = _units(registrar, observer) - units_before
        gone = max(0, accepted - merged) if self._mode == "p2p" else 0
        return self._report(registrar, observer, sum(result.rows for result in results), before, gone, seconds)

    # ------------------------------------------------------------------------------------------------------ session

    def _choose_engine(self, data: Any) -> engines.Engine:
        on_spark = hasattr(data, "mapPartitionsWithIndex")
        if self._engine is None:
            if on_spark:
                from p2p.engines.spark import SparkEngine

                if self._peers is not None:
                    raise UsageError("peers= is for lists of partitions: on Spark every executor is a peer")
                self._engine = SparkEngine(data.context)
            else:
                from p2p.engines.local import LocalEngine

                self._engine = LocalEngine(self._peers or max(1, min(len(data), os.cpu_count() or 1)))
        elif on_spark != hasattr(self._engine, "context"):
            raise UsageError("this session trains on Spark or on lists, not on both: make a new DeepDist(model)")
        return self._engine

    def _start(self, engine: engines.Engine) -> tuple[Registrar, Observer]:
        worker_role, driver_role = ROLES[self._mode]
        if self._registrar is None:
            if not is_loopback(engine.address):
                self._keys = Keys.generate()
            self._registrar = Registrar(self._run, engine.address, self._keys)
            settings = self._settings(driver_role, self._registrar)
            self._observer = Observer(settings, self._user_model.arrays())
            if not self._registrar.wait(lambda: bool(self._registrar and self._registrar.members), ROSTER_TIMEOUT_S):
                raise UsageError("the driver program's own agent did not reach the registrar: see its messages above")
        assert self._observer is not None
        engine.start(self._settings(worker_role, self._registrar), self._registrar)
        self._registrar.wait_for_roster(ROSTER_TIMEOUT_S)
        return self._registrar, self._observer

    def _settings(self, role: str, registrar: Registrar) -> AgentSettings:
        keys = (self._keys.public, self._keys.secret) if self._keys is not None else None
        layout = localhost.layout_to_json(self._user_model.layout)
        return AgentSettings(self._run, role, registrar.endpoint, layout, keys)

    @contextmanager
    def _coordinator(
        self, engine: engines.Engine, observer: Observer, job: Job, descent: Descent | None
    ) -> Iterator[Coordinator | None]:
        if self._mode != "master":
            yield None
            return
        coordinator = Coordinator(observer.folder, job.skeleton, descent, engine.cancel, self._applied)
        try:
            yield coordinator
        finally:
            coordinator.close()

    def _drain(self, registrar: Registrar, coordinator: Coordinator | None) -> None:
        """Until everybody has everything, or the time is up."""
        if coordinator is not None:
            give_up = time.monotonic() + self._drain_timeout_s
            while time.monotonic() < give_up and not coordinator.error and not _all_taken(registrar):
                time.sleep(WAIT_S)
            if coordinator.error is not None:
                raise coordinator.error
        registrar.drain(self._drain_timeout_s, self._epochs)
        registrar.ask_status(STATUS_TIMEOUT_S)

    def _stop(self) -> None:
        registrar, observer, engine = self._registrar, self._observer, self._engine
        self._registrar = self._observer = self._engine = None
        if registrar is not None:
            registrar.stop_agents()
            registrar.close()
        if observer is not None:
            observer.close()
        if engine is not None:
            engine.stop()

    # ------------------------------------------------------------------------------------------------------- report

    def _report(
        self, registrar: Registrar, observer: Observer, rows: int, before: int, gone: int, seconds: float
    ) -> Report:
        members = sorted(
            registrar.members.values(), key=lambda member: (member.role in ("observer", "hub"), member.name)
        )
        others = [member for member in members if member.peer != observer.peer]
        speaking = [member for member in others if not registrar.is_silent(member)]
        distance, unread = consensus_distance(observer.agent.replica, speaking, self._keys)
        published = _published(registrar)
        missing = {name for member in members for name in (member.drained or {}).get("missing", [member.name])}
        lost = _lost(members, published, gone, self._mode, registrar.is_silent)
        return Report(
            peers=tuple(_peer_report(member, self._mode) for member in members),
            mode=self._mode,
            rows=rows,
            seconds=seconds,
            updates=sum(published.values()) - before,
            updates_lost=sum(lost.values()),
            consensus_distance=distance,
            missing=tuple(sorted(missing | set(unread))),
            lost=lost,
        )

    @contextmanager
    def _bar(self, total: int) -> Iterator[engines.Progress]:
        shown = self._progress if self._progress is not None else sys.stderr.isatty()
        from rich.console import Console

        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("partitions"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
            task = bar.add_task("training", total=total)
            yield lambda done, of: bar.update(task, completed=done, total=of)


def _all_taken(registrar: Registrar) -> bool:
    """The master's `descent` has taken every update of every worker. Asks them now."""
    registrar.ask_status(STATUS_TIMEOUT_S)
    (hub,) = registrar.by_role("hub")
    taken = hub.status["frontiers"]
    return hub.status["waiting"] == 0 and all(
        taken.get(worker.peer, 0) >= worker.status["n"] for worker in registrar.by_role("worker")
    )


def _published(registrar: Registrar) -> dict[str, int]:
    """Updates that gradients led to, by lane; those of a master's hub are made of them."""
    return {member.peer: member.status.get("n", 0) for member in registrar.by_role("peer", "worker")}


def _units(registrar: Registrar, observer: Observer) -> int:
    """Units of work that count in the driver program's replica."""
    return int(registrar.members[observer.peer].status.get("units", 0))


def _peer_report(member: Member, mode: str) -> PeerReport:
    status = member.status
    staleness = (member.drained or {}).get("staleness") or [0]
    frontiers = status.get("frontiers", {})
    own = status.get("n", 0)
    if mode == "p2p" or member.role == "worker":
        applied = sum(frontiers.values()) - (own if member.role == "worker" else 0)
    else:
        applied = own
    return PeerReport(
        name=member.name,
        role=member.role,
        published=own,
        applied=applied,
        bytes_out=status.get("bytes_out", 0),
        bytes_in=status.get("bytes_in", 0),
        staleness_median=float(np.median(staleness)),
        staleness_p95=float(np.percentile(staleness, 95)),
        memory_peak_bytes=status.get("memory_peak_bytes", 0),
    )


def _lost(
    members: list[Member], published: dict[str, int], gone: int, mode: str, is_silent: Callable[[Member], bool]
) -> dict[str, int]:
    """Updates that some replica (of the master: the hub) never got, by cause.

    `gone` are those that the driver program's replica never got, as far as tasks told: an agent that dies may not have
    said how far its lane was.
    """
    silent = {member.peer for member in members if is_silent(member)}
    readers = [m for m in members if m.peer not in silent and (mode == "p2p" or m.role == "hub")]
    unread = {
        lane: max(0, n - min((m.status.get("frontiers", {}).get(lane, 0) for m in readers), default=0))
        for lane, n in published.items()
    }
    late = sum(count for lane, count in unread.items() if lane not in silent)
    dead = max(gone, sum(unread.values())) - late
    return {cause: count for cause, count in (("agent gone", dead), ("not read in time", late)) if count}


def _check_arguments(gradient: Any, descent: Any, epochs: int, chunk_rows: int | None) -> None:
    if not callable(gradient):
        raise UsageError(f"gradient is a {type(gradient).__name__}, expected a function gradient(model, rows)")
    if descent is not None and not callable(descent):
        raise UsageError(f"descent is a {type(descent).__name__}, expected a function descent(model, update) or None")
    if epochs < 1:
        raise UsageError(f"epochs={epochs}, expected at least 1")
    if chunk_rows is not None and chunk_rows < 1:
        raise UsageError(f"chunk_rows={chunk_rows}, expected at least 1, or None for whole partitions")


def _partitions(data: Any) -> Any:
    """An RDD as it is, a DataFrame as its RDD, a list of partitions as a list."""
    if hasattr(data, "mapPartitionsWithIndex"):
        return data
    if hasattr(data, "schema") and hasattr(data, "rdd"):
        return data.rdd
    if isinstance(data, list | tuple):
        if not data:
            raise UsageError("data is an empty list, expected a list of partitions")
        for index, partition in enumerate(data):
            if hasattr(partition, "__next__"):
                raise UsageError(
                    f"data[{index}] is a {type(partition).__name__}, which can be neither sent to a worker nor read "
                    "again: expected a list of rows, or a function that returns an iterable"
                )
            if isinstance(partition, str | bytes) or not (callable(partition) or hasattr(partition, "__iter__")):
                raise UsageError(
                    f"data[{index}] is a {type(partition).__name__}, expected a partition: an iterable of rows, or a "
                    "function that returns one"
                )
        return list(data)
    raise UsageError(f"data is a {type(data).__name__}, expected a Spark RDD or DataFrame, or a list of partitions")
