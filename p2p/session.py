"""A session with agents: registrar, observer and engine, and the order in which a training happens.

    driver program: registrar (addresses), observer (what `dd.model` shows)        engine: tasks and agents

`Session` is what stands behind `DeepDist`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from gossip.errors import UsageError
from gossip.zmq_runtime import Keys, is_loopback
from p2p import engines, localhost
from p2p.agent_client import AgentSettings
from p2p.caution import Cautions
from p2p.consensus import consensus_distance
from p2p.coordinator import Coordinator
from p2p.evaluation import Evaluation, Evaluator
from p2p.model import Model
from p2p.observer import Observer
from p2p.registrar import Member, Registrar
from p2p.report import PeerReport, Report
from p2p.task import BY_CHUNK, Descent, Gradient, Job, Rhythm, codec_of, refresh
from p2p.working_copy import exchange_settings

ROSTER_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 5.0
WAIT_S = 0.05
"""How soon the driver program notices that the master has taken every update."""
ROLES = {"p2p": ("peer", "observer"), "master": ("worker", "hub")}
"""By mode: the role of the executors' agents, and of the driver program's."""


class Session(Protocol):
    """What `DeepDist` needs of where it trains. Its arguments have been checked."""

    def train(
        self,
        data: Any,
        gradient: Gradient,
        descent: Descent | None,
        epochs: int,
        chunk_rows: int | None,
        progress: engines.Progress,
        combine: str | None = None,
        rhythm: Rhythm = BY_CHUNK,
        evaluation: Evaluation | None = None,
    ) -> Report:
        """Train on `data`, an RDD or a list of partitions, and wait until all replicas are level."""
        ...

    def refresh(self) -> None:
        """Copy what has reached the driver program into the user's model."""
        ...

    def stop(self) -> None:
        """End everything that `train` started."""
        ...


class AgentSession:
    """Trains with agents: processes on this machine, or on the executors of Spark."""

    def __init__(self, model: Model, mode: str, *, peers: int | None, seed: int, drain_timeout_s: float) -> None:
        """Nothing is started before the first training; see `DeepDist` for the arguments."""
        self._mode = mode
        self._user_model = model
        self._peers = peers
        self._seed = seed
        self._drain_timeout_s = drain_timeout_s
        self._run = secrets.token_hex(16)
        self._engine: engines.Engine | None = None
        self._registrar: Registrar | None = None
        self._observer: Observer | None = None
        self._keys: Keys | None = None
        self._cautions = Cautions()
        self._applied: set[tuple[int, int, int]] = set()
        """Units of work that a master's `descent` has taken."""
        self._epochs = 0
        """Begun in this session."""

    def train(
        self,
        data: Any,
        gradient: Gradient,
        descent: Descent | None,
        epochs: int,
        chunk_rows: int | None,
        progress: engines.Progress,
        combine: str | None = None,
        rhythm: Rhythm = BY_CHUNK,
        evaluation: Evaluation | None = None,
    ) -> Report:
        engine = self._choose_engine(data)
        partitions = engine.partitions(data)
        self._cautions.give(engine.cautions(data), stacklevel=3)
        # a master's descent stays in the driver program, and may hold on to what cannot be sent
        sent = None if self._mode == "master" else descent
        light = getattr(gradient, "light", None) if sent is None else None
        seen = type(self._user_model.lightened(light))
        modules = {kind.__module__ for kind in (seen, gradient) if hasattr(kind, "__module__")}
        registrar, observer = self._start(engine, modules - {"__main__"})
        self._cautions.give(registrar.shortages(), stacklevel=3)
        self._begin(registrar)
        skeleton = self._user_model.skeleton()
        registrar.ask_status(STATUS_TIMEOUT_S)
        before = sum(_published(registrar).values())
        units_before = _units(registrar, observer)
        begin = time.monotonic()
        job = Job(
            self._run,
            self._mode,
            skeleton if light is None else self._user_model.skeleton(light),
            gradient,
            sent,
            epochs,
            partitions,
            chunk_rows,
            engine.peers,
            self._seed,
            self._epochs,
            exchange_settings(self._user_model, combine, engine.peers, codec=codec_of(rhythm)),
            rhythm,
            engine.workers,
        )
        self._epochs += epochs
        registrar.open = False
        try:
            progress(0, epochs * partitions)
            with (
                self._coordinator(engine, observer, skeleton, descent) as coordinator,
                Evaluator(evaluation, skeleton, observer.agent.replica, engine.cancel) as evaluator,
            ):
                try:
                    results = engine.run(job, data, progress)
                except Exception:
                    if coordinator is not None and coordinator.error is not None:
                        raise coordinator.error from None
                    if evaluator.error is not None:
                        raise evaluator.error from None
                    raise
                if evaluator.error is not None:
                    raise evaluator.error
                self._drain(registrar, coordinator)
                seconds = time.monotonic() - begin  # a last evaluation may take longer
        finally:
            registrar.open = True
        self._cautions.give(registrar.shortages(), stacklevel=3)  # of hosts that came meanwhile
        self.refresh()
        accepted = sum(result.units for result in results)
        gone = self._gone(registrar, observer, accepted, before, units_before)
        report = self._report(registrar, observer, sum(result.rows for result in results), before, gone, seconds)
        return replace(report, evaluations=evaluator.finish())

    def refresh(self) -> None:
        if self._observer is not None:
            refresh(self._user_model, self._observer.agent.replica)

    def stop(self) -> None:
        registrar, observer, engine = self._registrar, self._observer, self._engine
        self._registrar = self._observer = self._engine = None
        if registrar is not None:
            registrar.stop_agents()
            registrar.close()
        if observer is not None:
            observer.close()
        if engine is not None:
            engine.stop()

    # ------------------------------------------------------------------------------------------------- parts

    def _begin(self, registrar: Registrar) -> None:
        """All agents are there, and level."""
        self.refresh()

    def _gone(self, registrar: Registrar, observer: Observer, accepted: int, before: int, units_before: int) -> int:
        """Updates that tasks handed over in this training and that the driver program's replica never got."""
        if self._mode != "p2p":
            return 0
        return max(0, accepted - (_units(registrar, observer) - units_before))

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

    def _start(self, engine: engines.Engine, modules: Collection[str]) -> tuple[Registrar, Observer]:
        first = self._registrar is None
        try:
            return self._start_agents(engine, modules)
        except BaseException:
            if first:  # half a session is none: another training begins anew
                self.stop()
                self._run = secrets.token_hex(16)
            raise

    def _start_agents(self, engine: engines.Engine, modules: Collection[str]) -> tuple[Registrar, Observer]:
        worker_role, driver_role = ROLES[self._mode]
        with ThreadPoolExecutor(1, "deepdist-observer") as pool:
            loading: Future[None] | None = None
            if self._registrar is None:
                if not is_loopback(engine.address):
                    self._keys = Keys.generate()
                self._registrar = Registrar(self._run, engine.address, self._keys)
                self._observer = Observer(self._settings(driver_role, self._registrar))
                # beside the executors' agents, which wait for it
                loading = pool.submit(self._observer.load, self._user_model.arrays())
                loading.add_done_callback(partial(_tell_failure, self._registrar))
            assert self._observer is not None
            try:
                engine.start(self._settings(worker_role, self._registrar), self._registrar, modules)
            except UsageError:
                if loading is not None:
                    loading.result()  # it may say why the others waited in vain
                raise
            if loading is not None:
                loading.result()
        registrar = self._registrar
        if not registrar.wait(lambda: bool(registrar.by_role(driver_role)), ROSTER_TIMEOUT_S):
            raise UsageError("the driver program's own agent did not reach the registrar: see its messages above")
        registrar.wait_for_roster(ROSTER_TIMEOUT_S)
        return registrar, self._observer

    def _settings(self, role: str, registrar: Registrar) -> AgentSettings:
        keys = (self._keys.public, self._keys.secret) if self._keys is not None else None
        layout = localhost.layout_to_json(self._user_model.layout)
        return AgentSettings(self._run, role, registrar.endpoint, layout, keys)

    @contextmanager
    def _coordinator(
        self, engine: engines.Engine, observer: Observer, skeleton: bytes, descent: Descent | None
    ) -> Iterator[Coordinator | None]:
        if self._mode != "master":
            yield None
            return
        coordinator = Coordinator(observer.folder, skeleton, descent, engine.cancel, self._applied)
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


def _tell_failure(registrar: Registrar, loading: Future[None]) -> None:
    error = loading.exception()
    if error is not None:
        registrar.give_up(str(error))


def _all_taken(registrar: Registrar) -> bool:
    """The master's `descent` has taken every update of every worker. Asks them now."""
    registrar.ask_status(STATUS_TIMEOUT_S)
    (hub,) = registrar.by_role("hub")
    taken = hub.status["frontiers"]
    return hub.status["waiting"] == 0 and all(
        taken.get(worker.peer, 0) >= worker.status["n"] for worker in registrar.by_role("worker")
    )


def _published(registrar: Registrar) -> dict[str, int]:
    """Updates that gradients led to, by lane; those of a master's hub are made of them.

    An agent that died may not have said how far its lane was: then others know more of it.
    """
    heard = [member.status.get("frontiers", {}) for member in registrar.members.values()]
    return {
        member.peer: max(member.status.get("n", 0), *(frontiers.get(member.peer, 0) for frontiers in heard))
        for member in registrar.by_role("peer", "worker")
    }


def _units(registrar: Registrar, observer: Observer) -> int:
    """Units of work that count in the driver program's replica."""
    return int(registrar.members[observer.peer].status.get("units", 0))


def _peer_report(member: Member, mode: str) -> PeerReport:
    status = member.status
    frontiers = status.get("frontiers", {})
    own = status.get("n", 0)
    if mode == "p2p" or member.role == "worker":
        applied = sum(frontiers.values()) - (own if member.role == "worker" else 0)
    else:
        applied = own
    return peer_report(member, own, applied)


def peer_report(member: Member, published: int, applied: int) -> PeerReport:
    """The figures that all agents have, with those that depend on what they do."""
    status = member.status
    staleness = (member.drained or {}).get("staleness") or [0]
    return PeerReport(
        name=member.name,
        role=member.role,
        published=published,
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
