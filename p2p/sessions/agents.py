"""A session with agents: registrar, observer and engine, and the order in which a training happens.

    driver program: registrar (addresses), observer (what `dd.model` shows)        engine: tasks and agents

The observer is one replica among others: where it is not well, the model is read from a living peer, and the next
observer adopts that peer's replica while the training goes on.

`Session` is what stands behind `DeepDist`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from msgspec import structs

from gossip.errors import UsageError
from gossip.marks import Counted
from gossip.trust.norms import NormMax
from gossip.zmq.sockets import Keys, fingerprint
from p2p import engines
from p2p.adapters.model import Model
from p2p.agent.client import AgentSettings
from p2p.agent.ports import refresh
from p2p.agent.registrar_messages import AGAINST_NOBODY, Against, Role
from p2p.agent.replica import Replica
from p2p.caution import Cautions, warn
from p2p.codec import packed
from p2p.driver.conduct import of_peer
from p2p.driver.consensus import Fetched, consensus_distance, fetch_replica
from p2p.driver.level import furthest, lacks
from p2p.driver.observer import Observer, Post, Watch
from p2p.driver.registrar import Member, Registrar
from p2p.driver.shown import Shown
from p2p.driver.watchers import NOTHING_TO_DO, Done, Moment, Seen, Watching
from p2p.engines.choice import SessionEngine
from p2p.report import IncompleteTraining, PeerReport, Report, Snapshot
from p2p.row_order import other_rows
from p2p.sessions.training import Begun, Training, warn_of_absurd
from p2p.worker.job import Job, codec_of
from p2p.worker.working_copy import ExchangeSettings, exchange_settings

log = logging.getLogger("p2p")

ROSTER_TIMEOUT_S = 60.0
STATUS_TIMEOUT_S = 5.0
WAIT_S = 0.05
"""How soon the driver program notices that everybody has taken what the user wrote."""
HAND_IN_ROUNDS_MAX = 4
"""What the user wrote is in all replicas after two, but for numbers of very different size."""
FETCH_TIMEOUT_S = 10.0
"""For the replica of a peer that may have died; then another is asked."""
STUCK_S, STUCK_BYTES_S = 15.0, 10e6
"""An observer that lacks updates and does not move for so long, or for as long as a model takes at that rate, is cut
off from the peers."""
DECIDED_TIMEOUT_S = 2.0
"""For it to be decided which of two attempts at a unit counts, when a checkpoint is due; the next one is tried then."""
LOST_SHARE_MAX = 0.01
"""A larger part of the updates is not lost without a warning."""


class Session(Protocol):
    """What `DeepDist` needs of where it trains. Its arguments have been checked."""

    def train(self, training: Training) -> Report:
        """Train, and wait until all replicas are level.

        Raises:
            IncompleteTraining: the model lacks what living peers have; a warning where `on_incomplete` is "warn".
        """
        ...

    def refresh(self) -> None:
        """Copy what has reached the driver program into the user's model."""
        ...

    def snapshot(self) -> Snapshot:
        """How it stands now. From any thread, but for a simulated cluster."""
        ...

    def stop(self) -> None:
        """End everything that `train` started."""
        ...

    begun: Begun | None
    """Where the next training goes on, if another session began it; None once its tasks have begun here."""


@dataclass(frozen=True)
class End:
    """What the model has when a training ends."""

    replica: Replica | Fetched | None
    """It was filled from this."""
    lacking: Mapping[str, int]
    """By agent: updates that are in some living replica, and not in this one."""
    gone: int = 0
    """Units that tasks handed over, and that are in no living replica."""
    stopped: tuple[str, ...] = ()
    """Agents that stand still: their processes are there."""
    late: tuple[str, ...] = ()
    """Living agents that did not drain in time."""
    apart: str = ""
    """What else is the matter."""

    def text(self, timeout_s: float) -> str | None:
        """Why the training is incomplete; None if it is not."""
        what = []
        if self.lacking:
            lacking = ", ".join(f"{count} of {name}" for name, count in sorted(self.lacking.items()))
            what.append(f"it lacks {sum(self.lacking.values())} updates that living agents have: {lacking}")
        if self.stopped and self.gone:
            what.append(f"it lacks {self.gone} updates of agents that stand still: {', '.join(self.stopped)}")
        if self.apart:
            what.append(self.apart)
        if self.late and not what:
            what.append(f"after {timeout_s:g} s these agents had not read everything: {', '.join(self.late)}")
        if not what:
            return None
        return (
            f"the training is incomplete; of the model in dd.model: {'; '.join(what)}. Give it more time "
            f"(drain_timeout_s={timeout_s:g}), see whether all hosts reach each other, or take it as it is: "
            'train(..., on_incomplete="warn")'
        )


class AgentSession:
    """Trains with agents: processes on this machine, or on the executors of Spark."""

    _averages = False
    """What counts is the mean of all replicas, and not that all have the same."""
    _adopts = True
    """An observer that comes later begins with a living peer's replica, and not with the user's model."""

    def __init__(
        self,
        model: Model,
        *,
        peers: int | None,
        engine: engines.Engine | None = None,
        seed: int,
        drain_timeout_s: float,
        epochs: int = 0,
        update_norm_max: NormMax = None,
    ) -> None:
        """Nothing is started before the first training; see `DeepDist` for the arguments. `epochs` were begun before,
        by a session that this one takes the place of."""
        self._user_model = model
        self._shown = Shown(model)
        self._seed = seed
        self._drain_timeout_s = drain_timeout_s
        self._update_norm_max = update_norm_max
        self._run = secrets.token_hex(16)
        self._engine = SessionEngine(engine, peers)
        self._registrar: Registrar | None = None
        self._post = Post()
        """Where the driver program's own agent is."""
        self._cautions = Cautions()
        self.epochs = epochs
        """Begun, in all trainings."""
        self.begun: Begun | None = None
        """As in `Session`."""
        self._done = NOTHING_TO_DO
        """Partitions of the training that runs: what is shown of the model moves."""
        self._asked: list[Member] = []
        """To drain, at the end of the last training."""
        self._parted: dict[str, PeerReport] = {}
        """Of agents that were put out: what was known of them."""

    @property
    def _observer(self) -> Observer | None:
        return self._post.observer

    def train(self, training: Training) -> Report:
        engine = self._engine.for_data(training.data)
        partitions = engine.partitions(training.data)
        begun = self.begun
        if begun is not None:
            begun.check_data(training.data, partitions)
        self._cautions.give(engine.cautions(training.data))
        light = getattr(training.gradient, "light", None) if training.descent is None else None
        seen = type(self._user_model.lightened(light))
        modules = {kind.__module__ for kind in (seen, training.gradient) if hasattr(kind, "__module__")}
        registrar = self._start(engine, modules - {"__main__"})
        self._cautions.give(registrar.shortages())
        self._begin(registrar, training.epochs * partitions)
        registrar.ask_status(STATUS_TIMEOUT_S)
        before = self.snapshot()
        if begun is not None:
            self.epochs = begun.epochs_before
        counters = None if begun is None else begun.counters
        training.begins(self._user_model, self.epochs, partitions, counters)
        job = Job(
            run=self._run,
            skeleton=self._user_model.skeleton(light, counters),
            gradient=training.gradient,
            descent=training.descent,
            epochs=training.epochs,
            partitions=partitions,
            chunk_rows=training.chunk_rows,
            peers=engine.peers,
            seed=self._seed,
            epochs_before=self.epochs,
            exchange=self._exchange(training, engine),
            rhythm=training.rhythm,
            resumes=begun is not None,
            workers=engine.workers,
        )
        self.epochs += training.epochs
        self.begun = None
        registrar.open = False
        try:
            return self._run_job(training, engine, registrar, job, before, begun)
        finally:
            self._done = NOTHING_TO_DO
            registrar.open = True

    def _run_job(
        self,
        training: Training,
        engine: engines.Engine,
        registrar: Registrar,
        job: Job,
        before: Snapshot,
        begun: Begun | None,
    ) -> Report:
        """Have the tasks run, and all that goes with them; then see what came of it."""
        try:
            self._done = done = Done(training.progress, job.epochs * job.partitions)
            with self._watching(training, engine) as watching, self._watch():
                try:
                    results = engine.run(job, training.data, done)
                except Exception as error:
                    if watching.error is not None:
                        raise watching.error from None
                    if not training.stopping.has_stopped:
                        raise
                    log.info("the tasks were ended: %s", error)
                    results = []
                if watching.error is not None:
                    raise watching.error
                self._drain(registrar)
                self._check_rows(job.epochs_before)
                seconds = time.monotonic() - before.at  # a last look may take longer
            self._cautions.give(registrar.shortages())  # of hosts that came meanwhile
            for result in results:
                self._cautions.give(result.cautions)
            # of those that an earlier session has published, tasks that see all rows again count them again
            accepted = sum(result.units for result in results) - (begun.skipped(training.rhythm) if begun else 0)
            end = self._end(registrar, accepted, before)
            report = self._report(registrar, end, sum(result.rows for result in results), before, seconds)
            watching.finish()
            report = training.reported(report)
        except BaseException as error:
            self._show_what_there_is()
            if isinstance(error, KeyboardInterrupt):
                self._keep_what_there_is(training, before)
            raise
        self._judge(report, end, accepted, training.on_incomplete)
        return report

    def refresh(self) -> None:
        if self._done is not NOTHING_TO_DO:
            self._show_what_there_is()
            return
        replica = self._post.replica
        if replica is not None and self._shown.holds(replica) and not self._shown.is_written():
            self._shown.fill(replica)  # of a training that failed, something may have come in since

    def snapshot(self) -> Snapshot:
        registrar = self._registrar
        members = () if registrar is None else registrar.members.values()
        return Snapshot(
            at=time.monotonic(),
            updates=0 if registrar is None else sum(_published(registrar).values()),
            units=max((member.figures.lanes.units for member in members), default=0),
            peers=() if registrar is None else self._peer_reports(registrar),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
        )

    def stop(self) -> None:
        registrar, post, engine = self._registrar, self._post, self._engine.take_out()
        self._registrar, self._post = None, Post()
        if registrar is not None:
            registrar.stop_agents()
            registrar.close()
        post.close()
        if engine is not None:
            engine.stop()

    # ------------------------------------------------------------------------------------------------- parts

    def _exchange(self, training: Training, engine: engines.Engine) -> ExchangeSettings:
        counts = engine.peers if self._averages else 1
        codec = codec_of(training.rhythm)
        return exchange_settings(self._user_model, training.rule, engine.peers, codec=codec, counts=counts)

    def _begin(self, registrar: Registrar, tasks: int) -> None:
        """All agents are there, and level: they get what the user wrote into the model since the last training."""
        observer = self._observer
        assert observer is not None
        if not self._shown.is_written():
            self._shown.fill(observer.agent.replica)
            return
        rounds = 0
        while rounds < HAND_IN_ROUNDS_MAX and self._shown.hand_in(observer.agent):
            rounds += 1
            self._wait_for_own_lane(registrar, observer)

    def _wait_for_own_lane(self, registrar: Registrar, observer: Observer) -> None:
        """Until everybody has applied what the observer has published."""
        give_up = time.monotonic() + self._drain_timeout_s
        while True:
            registrar.ask_status(STATUS_TIMEOUT_S)
            speaking = registrar.speaking()
            n = registrar.members[observer.peer].figures.published
            late = [m.name for m in speaking if _front(m).get(observer.peer, 0) < n]
            if not late:
                return
            if time.monotonic() > give_up:
                raise UsageError(
                    f"what was written into the model since the last training did not reach {', '.join(late)} within "
                    f"{self._drain_timeout_s:g} s (drain_timeout_s); nothing was trained"
                )
            time.sleep(WAIT_S)

    def _read(self, model: Model) -> Seen:
        """Copy what has been learned so far into `model`."""
        replica = self._replica()
        return Seen(merged=refresh(model, replica) if replica is not None else 0)

    def _cut(self, model: Model) -> Seen:
        """The same, with the units that count in what was read: all of one moment."""
        give_up = time.monotonic() + DECIDED_TIMEOUT_S
        while (seen := self._cut_once(model)).counted is None and time.monotonic() < give_up:
            time.sleep(WAIT_S)
        return seen

    def _cut_once(self, model: Model) -> Seen:
        if self._is_well() and self._observer is not None:
            try:
                merged, counted = self._observer.cut(model)
                return Seen(merged=merged, counted=counted)
            except UsageError as error:
                log.info("the driver program's own agent did not tell its units: %s", error)  # a living peer may
        replica = self._replica()
        if replica is None:
            return Seen(merged=0)
        return Seen(merged=refresh(model, replica), counted=replica.counted if isinstance(replica, Fetched) else None)

    def _watching(self, training: Training, engine: engines.Engine) -> Watching:
        return Watching(
            training.all_watchers,
            self._user_model.skeleton,
            self._read,
            self._done,
            engine.cancel,
            self._cut,
            lambda: training.stopping.has_stopped,
        )

    def _keep_what_there_is(self, training: Training, before: Snapshot) -> None:
        """A last checkpoint of a training that was interrupted, if any were asked for."""
        training.stopping.ended = "interrupted"
        if training.writer is None:
            return
        model = Model.from_skeleton(self._user_model.skeleton())
        seen = self._cut(model)
        moment = Moment(
            seconds=time.monotonic() - before.at,
            updates=max(0, self.snapshot().updates - before.updates),
            partitions_done=self._done.count,
            partitions=self._done.partitions,
            counted=seen.counted,
        )
        training.writer.write(model.arrays(), moment, training.stopping.ended)

    def _replica(self) -> Replica | Fetched | None:
        """The observer's, or a copy of a living peer's where that is not well; None if there is neither."""
        registrar, post = self._registrar, self._post
        if registrar is None or self._is_well():
            return post.replica
        peers = sorted(registrar.by_role("peer"), key=lambda member: -sum(_front(member).values()))
        for member in peers:
            if not registrar.is_silent(member):
                fetched = fetch_replica(self._user_model.layout, member, FETCH_TIMEOUT_S)
                if fetched is not None:
                    return fetched
        return post.replica

    def _show_what_there_is(self) -> None:
        replica = self._replica()
        if replica is not None:
            self._shown.fill(replica)

    def _is_well(self) -> bool:
        """The observer is there, and hears the peers."""
        registrar, observer = self._registrar, self._observer
        if registrar is None or observer is None or not observer.has_begun:
            return False
        member = registrar.members.get(observer.peer)
        if not observer.alive or member is None or registrar.is_silent(member):
            return False
        all_of = furthest(_front(other) for other in registrar.speaking())
        return self._post.still_s(_front(member), all_of) < STUCK_S + self._user_model.layout.nbytes / STUCK_BYTES_S

    def _watch(self) -> AbstractContextManager[object]:
        """The observer is replaced meanwhile, should it die or stand still."""
        return Watch(self._is_well, self._replace_observer)

    def _replace_observer(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """End the observer, if it is still there, and have the next one adopt a living peer's replica."""
        registrar = self._registrar
        assert registrar is not None
        old = self._post.vacate()
        if old is not None:
            log.warning("the driver program's own agent is gone or stands still: the next one takes its place")
            if old.has_begun:
                registrar.forget({old.peer})
            self._post.retire(old)
        donors = [member for member in registrar.by_role("peer") if not registrar.is_silent(member)]
        adopts = self._adopts and bool(donors)
        new = Observer(structs.replace(self._observer_settings(registrar), adopts=adopts))
        peer = registrar.admission.observer
        assert peer is not None
        try:
            if adopts:
                new.adopt(given_up)
            else:
                new.load(self._user_model.arrays())
        except BaseException:
            new.kill()
            registrar.forget({peer})  # also where it had not spoken yet: what it said last may be on its way
            raise
        self._post.take(new)

    def _end(self, registrar: Registrar, accepted: int, before: Snapshot) -> End:
        """What the model has in the end, which is filled here, from whichever replica lacks least.

        `accepted` units were handed over by the tasks of this training.
        """
        observer = self._observer
        living = registrar.speaking()
        stopped = [m for m in registrar.by_role("peer") if registrar.is_silent(m) and registrar.is_here(m)]
        all_of = furthest([*map(_front, living), *({str(m.peer): m.figures.published} for m in stopped)])
        for member in sorted(living, key=lambda m: (sum(lacks(_front(m), all_of).values()), m.role == "peer")):
            replica: Replica | Fetched | None
            if observer is not None and observer.has_begun and member.peer == observer.peer:
                replica, front = observer.agent.replica if observer.alive else None, _front(member)
            elif member.role == "peer":
                replica = fetch_replica(self._user_model.layout, member, FETCH_TIMEOUT_S)
                front = replica.front if replica is not None else {}
            if replica is None:
                continue
            self._shown.fill(replica)
            self._post.behind = observer is None or member.peer != observer.peer
            lacking = lacks(front, all_of)
            names: dict[str, str] = {m.peer: m.name for m in registrar.members.values()}
            gone = max(0, accepted - (member.figures.lanes.units - before.units))
            return End(
                replica,
                {names.get(lane, lane): count for lane, count in lacking.items()},
                gone=gone,
                stopped=tuple(m.name for m in stopped),
                late=self._late(living),
            )
        replica = self._post.last_replica
        if replica is not None:
            self._shown.fill(replica)
        return End(replica, {}, apart="no agent lives any more, and it holds what the driver program's last one had")

    def _check_rows(self, epochs_before: int) -> None:
        """Attempts that ran side by side, and did not hear of each other in time, may have got different rows."""
        torn = {
            (epoch, partition)
            for member in self._asked
            if member.drained is not None
            for epoch, partition in member.drained.torn
            if epoch >= epochs_before
        }
        if torn:
            epoch = min(epoch for epoch, _ in torn)
            raise other_rows(epoch - epochs_before, [partition for where, partition in torn if where == epoch])

    def _late(self, living: Sequence[Member]) -> tuple[str, ...]:
        """Who of the living did not answer the request to drain, or is named by another's answer."""
        names = {member.name for member in living}
        silent = {member.name for member in self._asked if member.drained is None}
        named = {name for member in self._asked if member.drained is not None for name in member.drained.missing}
        return tuple(sorted(names & (silent | named)))

    def _judge(self, report: Report, end: End, accepted: int, on_incomplete: str) -> None:
        """Raise, or warn, if the model lacks anything that is not lost with the dead; warn of what is."""
        warn_of_absurd(report)
        text = end.text(self._drain_timeout_s)
        if text is not None:
            if on_incomplete == "raise":
                raise IncompleteTraining(text, report)
            warn(text)
        elif report.updates_lost > LOST_SHARE_MAX * accepted:
            warn(
                f"{report.updates_lost} of {accepted} updates died with their agents before anybody had pulled them: "
                "the model lacks what they had learned. Somebody ends these agents: see the executors' logs, and how "
                "much memory they may use"
            )

    def _start(self, engine: engines.Engine, modules: Collection[str]) -> Registrar:
        first = self._registrar is None
        try:
            return self._start_agents(engine, modules)
        except BaseException:
            if first:  # half a session is none: another training begins anew
                self.stop()
                self._run = secrets.token_hex(16)
            raise

    def _start_agents(self, engine: engines.Engine, modules: Collection[str]) -> Registrar:
        if self._registrar is not None and (self._post.behind or not self._is_well()):
            self._registrar.open = False  # who comes meanwhile has nobody to begin with but the peers
            try:
                self._replace_observer()
            finally:
                self._registrar.open = True
        with ThreadPoolExecutor(1, "deepdist-observer") as pool:
            loading: Future[None] | None = None
            if self._registrar is None:
                self._registrar = Registrar(self._run, engine.address, Keys.generate(), secrets.token_hex(32))
                observer = Observer(self._observer_settings(self._registrar), starts=False)
                self._post.take(observer)  # whoever is interrupted here finds it where it will be ended
                observer.start()
                # beside the executors' agents, which wait for it
                counted = Counted(closed=self.epochs) if self.begun is None else self.begun.counted
                loading = pool.submit(observer.load, self._user_model.arrays(), counted)
                loading.add_done_callback(partial(_tell_failure, self._registrar))
            try:
                engine.start(self._settings("peer", self._registrar), self._registrar, modules)
            except UsageError:
                if loading is not None:
                    loading.result()  # it may say why the others waited in vain
                raise
            if loading is not None:
                loading.result()
        registrar = self._registrar
        if not registrar.wait(lambda: bool(registrar.by_role("observer")), ROSTER_TIMEOUT_S):
            raise UsageError("the driver program's own agent did not reach the registrar: see its messages above")
        registrar.wait_for_roster(ROSTER_TIMEOUT_S)
        return registrar

    def _settings(self, role: Role, registrar: Registrar) -> AgentSettings:
        codec = self._user_model.codec
        return AgentSettings(
            self._run,
            role,
            registrar.endpoint,
            self._user_model.layout,
            registrar.key,
            registrar.admission.token,
            kinds=None if codec is None else packed(codec.kinds),
            update_norm_max=self._update_norm_max,
        )

    def _observer_settings(self, registrar: Registrar) -> AgentSettings:
        """Those of the driver program's agent, which the registrar knows before it comes: no other is one."""
        keys = Keys.generate()
        registrar.admission.observer = fingerprint(keys.public)
        return structs.replace(self._settings("observer", registrar), secret=keys.secret)

    def _drain(self, registrar: Registrar) -> None:
        """Until everybody has everything, or the time is up. Who was put out by then is not waited for."""
        self._part(registrar)
        self._asked = registrar.drain(self._drain_timeout_s, self.epochs)
        registrar.ask_status(STATUS_TIMEOUT_S)
        self._part(registrar)

    def _part(self, registrar: Registrar) -> None:
        """Know nothing more of agents that the driver program's own one knows to be put out."""
        out = self._against(registrar).put_out
        parted = [member for member in registrar.members.values() if member.peer in out]
        self._parted.update({member.peer: _peer_report(member) for member in parted})
        registrar.forget(set(out))

    def _against(self, registrar: Registrar) -> Against:
        """What the driver program's own agent holds against others."""
        observers = registrar.by_role("observer")
        return observers[-1].figures.lanes.against if observers else AGAINST_NOBODY

    def _peer_reports(self, registrar: Registrar) -> tuple[PeerReport, ...]:
        members = sorted(registrar.members.values(), key=lambda member: (member.role == "observer", member.name))
        view = self._against(registrar)
        known = {str(member.peer): _peer_report(member) for member in members} | self._parted
        left_out = {str(member.peer): member.figures.lanes.left_out for member in members}
        return tuple(
            replace(report, conduct=of_peer(peer, view, left_out.get(peer, 0))) for peer, report in known.items()
        )

    def _report(self, registrar: Registrar, end: End, rows: int, before: Snapshot, seconds: float) -> Report:
        members = list(registrar.members.values())
        others = [m for m in registrar.speaking() if self._observer is None or m.peer != self._observer.peer]
        distance, unread = (0.0, []) if end.replica is None else consensus_distance(end.replica, others)
        now = self.snapshot()
        missing = {name for member in members for name in member.missed}
        lost = _lost(members, _published(registrar), end.gone, registrar.is_silent)
        return Report(
            peers=now.peers,
            mode="p2p",
            rows=rows,
            seconds=seconds,
            updates=now.updates - before.updates,
            updates_lost=sum(lost.values()),
            consensus_distance=distance,
            missing=tuple(sorted(missing | set(unread))),
            lost=lost,
        )


def _tell_failure(registrar: Registrar, loading: Future[None]) -> None:
    error = loading.exception()
    if error is not None:
        registrar.give_up(str(error))


def _published(registrar: Registrar) -> dict[str, int]:
    """Updates that gradients led to, by lane.

    An agent that died may not have said how far its lane was: then others know more of it.
    """
    heard = [_front(member) for member in registrar.members.values()]
    return {
        member.peer: max(member.figures.published, *(frontiers.get(member.peer, 0) for frontiers in heard))
        for member in registrar.by_role("peer")
    }


def _front(member: Member) -> Mapping[str, int]:
    """How far its replica has applied each lane, as it said last."""
    return member.figures.lanes.frontiers


def _peer_report(member: Member) -> PeerReport:
    return peer_report(member, member.figures.published, sum(_front(member).values()))


def peer_report(member: Member, published: int, applied: int) -> PeerReport:
    """The figures that all agents have, with those that depend on what they do."""
    figures = member.figures
    staleness = (member.drained.staleness if member.drained is not None else None) or [0]
    return PeerReport(
        name=member.name,
        role=member.role,
        published=published,
        applied=applied,
        bytes_out=figures.bytes_out,
        bytes_in=figures.bytes_in,
        staleness_median=float(np.median(staleness)),
        staleness_p95=float(np.percentile(staleness, 95)),
        memory_peak_bytes=figures.memory_peak_bytes,
    )


def _lost(
    members: list[Member], published: dict[str, int], gone: int, is_silent: Callable[[Member], bool]
) -> dict[str, int]:
    """Updates that some replica never got, by cause.

    `gone` are those that the driver program's replica never got, as far as tasks told: an agent that dies may not have
    said how far its lane was.
    """
    silent = {member.peer for member in members if is_silent(member)}
    readers = [m for m in members if m.peer not in silent]
    unread = {
        lane: max(0, n - min((_front(m).get(lane, 0) for m in readers), default=0)) for lane, n in published.items()
    }
    late = sum(count for lane, count in unread.items() if lane not in silent)
    dead = max(gone, sum(unread.values())) - late
    return {cause: count for cause, count in (("agent gone", dead), ("not read in time", late)) if count}
