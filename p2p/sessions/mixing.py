"""A session whose agents mix: replicas are averaged with those of neighbors, and the model is the mean of all.

a training:   begin -> tasks, and rounds of mixing meanwhile -> rounds alone, until all agree -> rest -> read all
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from gossip.errors import UsageError
from gossip.flat import Flat
from gossip.marks import Counted, packed
from gossip.messages import State
from gossip.mixing import Strategy
from gossip.mixing.neighbors import Plan
from gossip.topology import Topology
from p2p import engines
from p2p.adapters.model import Model
from p2p.agent.client import AgentSettings
from p2p.agent.mixing import pack_strategy
from p2p.agent.registrar_messages import Role
from p2p.agent.sketch import distance
from p2p.driver.consensus import Average, read_replicas
from p2p.driver.registrar import Member, Registrar
from p2p.driver.shown import Shown
from p2p.driver.watchers import Seen
from p2p.report import PeerReport, Report, Snapshot
from p2p.sessions.agents import STATUS_TIMEOUT_S, AgentSession, End, peer_report
from p2p.sessions.training import Training

CONSENSUS_DISTANCE = 1e-5
"""Replicas that agree so far, by their sketches, are taken for level."""
LOOK_S = 0.05
"""How often the sketches are looked at while all drain."""
FIRST_TASK_S = 2.0
"""For a peer's first task where some get none, and nobody knows who: Spark hands them out at once. One that comes later
still takes its steps, a few rounds after those of the others."""
REST_TIMEOUT_S = 10.0
"""For the last packets to be taken, once all agree."""


class MixSession(AgentSession):
    """Trains with agents that mix as `strategy` says, on the topology that `build` makes for however many there are."""

    _averages = True
    _adopts = False  # the observer keeps what a training begins with, for those who come, and merges nothing

    def __init__(
        self,
        model: Model,
        strategy: Strategy[Any],
        build: Callable[[int], Topology],
        *,
        peers: int | None,
        engine: engines.Engine | None = None,
        seed: int,
        drain_timeout_s: float,
    ) -> None:
        """
        Raises:
            UsageError: the model holds integers, or the topology does not fit `peers` or the strategy.
        """
        super().__init__(model, peers=peers, engine=engine, seed=seed, drain_timeout_s=drain_timeout_s)
        self._flat = Flat(model.layout)
        self._plan = Plan(build, strategy)
        self._packed_strategy = pack_strategy(strategy, build)
        self._era = 0
        """The number of what the agents are about: a training, or the consensus after it."""
        self._agreed = True
        """The replicas did, at the end of the last training."""
        self._apart = 0.0
        """Of the replicas when they were read last; relative."""
        self._unread: list[str] = []
        if peers is not None and peers > 1:
            self._plan.topology(peers)

    def train(self, training: Training) -> Report:
        if training.combine not in (None, "sum"):
            raise UsageError(
                f"combine={training.combine!r} with discipline='mix', expected None: there replicas are averaged"
            )
        if self._registrar is not None and self._shown.is_written():
            # a strategy's state belongs to what was learned before, so all begin anew with what the user wrote
            self.stop()
            self._run, self.epochs, self._shown = secrets.token_hex(16), 0, Shown(self._user_model)
        try:
            return super().train(replace(training, combine="sum"))
        except BaseException:
            if self._registrar is not None:  # else the agents would go on mixing
                self._registrar.call_off(self.epochs)
            raise

    def _show_what_there_is(self) -> None:
        """The mean of all replicas that live, read from their agents now; weighted where the strategy has weights."""
        registrar, observer = self._registrar, self._observer
        if registrar is None or observer is None or not observer.has_begun:
            return
        average, self._unread, _ = self._average(registrar)
        if not average.is_empty:
            observer.replace(average.mean())
            self._apart = average.distance()
        self._shown.fill(observer.agent.replica)

    def _average(self, registrar: Registrar) -> tuple[Average, list[str], list[State]]:
        """Of all replicas that live, read one after the other; whose could not be read, and the others' headers."""
        average, unread, states = Average(self._flat), [], []
        for member, buffer, state in read_replicas(self._flat.layout, self._speaking(registrar)):
            if state is None:
                unread.append(member.name)
            else:
                average.take_in(buffer, member.figures.mixing.weight)
                states.append(state)
        return average, unread, states

    def _read(self, model: Model, counts: bool = False) -> Seen:
        """Copy the mean of all replicas into `model`. While they train, those read first are a little older."""
        registrar = self._registrar
        assert registrar is not None
        registrar.ask_status(STATUS_TIMEOUT_S)  # the weights move as well
        # before the replicas are read: the mean has these updates at least
        merged = sum(member.figures.published for member in registrar.by_role("peer"))
        average, _, states = self._average(registrar)
        if average.is_empty:
            return super()._read(model)
        model.load(average.mean().arrays())
        return Seen(
            merged=merged,
            consensus_distance=average.distance(),
            spread=average.spread(),
            counted=_counted(states) if counts else None,
        )

    def _cut(self, model: Model) -> Seen:
        """The mean, and the units that any of its replicas has computed. These are read one after the other: of an
        update that is mixed meanwhile, the mean has a part, be its unit among them or not."""
        return self._read(model, counts=True)

    def _speaking(self, registrar: Registrar) -> list[Member]:
        """Who is heard, and not taken for dead by most others."""
        heard = [member for member in registrar.by_role("peer") if not registrar.is_silent(member)]
        votes = Counter(peer for member in heard for peer in member.figures.departed)
        return [member for member in heard if 2 * votes[member.peer] < len(heard)]

    def _settings(self, role: Role, registrar: Registrar) -> AgentSettings:
        return structs.replace(super()._settings(role, registrar), mixing=self._packed_strategy)

    def _begin(self, registrar: Registrar, tasks: int) -> None:
        self._show_what_there_is()
        peers = len(self._speaking(registrar))
        if peers > 1:
            self._plan.topology(peers)
        self._era += 1
        assert self._engine.current is not None
        without = self._engine.current.without_task(tasks)
        idle = {member.peer for member in registrar.by_role("peer") if member.pid in (without or ())}
        registrar.begin(self._era, idle, FIRST_TASK_S if without is None else None)

    def _drain(self, registrar: Registrar) -> None:
        """Rounds of consensus, until the sketches agree or the time is up; then all rest."""
        give_up = time.monotonic() + self._drain_timeout_s
        registrar.ask_status(STATUS_TIMEOUT_S)
        speaking = [m.figures.mixing for m in self._speaking(registrar) if m.figures.mixing.era == self._era]
        self._era += 1
        registrar.settle(self._era, max((figures.era_rounds for figures in speaking), default=0))
        while True:
            registrar.drop_sketches()  # who answers late shows what it had before
            registrar.ask_status(STATUS_TIMEOUT_S)
            self._check_troubles(registrar)
            sketches = [member.figures.mixing.sketch for member in self._speaking(registrar)]
            known = [sketch for sketch in sketches if sketch is not None]
            agree = len(known) == len(sketches) and distance(known) <= CONSENSUS_DISTANCE
            if agree or time.monotonic() > give_up:
                break
            time.sleep(LOOK_S)
        self._agreed = agree
        for _ in range(2):  # what is taken while all drain may be answered, which the second time waits for
            self._asked = registrar.drain(REST_TIMEOUT_S, self.epochs)
        registrar.ask_status(STATUS_TIMEOUT_S)

    def _check_troubles(self, registrar: Registrar) -> None:
        for member in self._speaking(registrar):
            if (trouble := member.figures.mixing.trouble) is not None:
                raise UsageError(f"{member.name} cannot mix: {trouble}")

    def _end(self, registrar: Registrar, accepted: int, before: Snapshot) -> End:
        self._show_what_there_is()
        apart = [] if self._agreed else [f"the replicas did not agree to {CONSENSUS_DISTANCE:g}"]
        if self._unread:
            apart.append(f"these replicas could not be read: {', '.join(self._unread)}")
        return End(
            None if self._observer is None else self._observer.agent.replica,
            {},
            gone=self._gone(registrar, accepted, before.updates),
            late=self._late(registrar.speaking()),
            apart="; ".join(apart),
        )

    def _gone(self, registrar: Registrar, accepted: int, before: int) -> int:
        """What died with an agent: updates that no neighbor had taken, and those that it never told of."""
        peers = registrar.by_role("peer")
        told: int = sum(member.figures.published for member in peers) - before
        dead = [member for member in peers if registrar.is_silent(member)]
        untaken: int = sum(max(0, member.figures.published - member.figures.mixing.taken) for member in dead)
        return max(0, accepted - told) + untaken

    def _peer_reports(self, registrar: Registrar) -> tuple[PeerReport, ...]:
        members = sorted(registrar.by_role("peer"), key=lambda member: member.name)
        return tuple(_peer_report(member) for member in members)

    def _report(self, registrar: Registrar, end: End, rows: int, before: Snapshot, seconds: float) -> Report:
        now = self.snapshot()
        members = sorted(registrar.by_role("peer"), key=lambda member: member.name)
        silent = [member.name for member in members if registrar.is_silent(member)]
        missing = {name for member in members for name in member.missed}
        return Report(
            peers=now.peers,
            mode="p2p",
            rows=rows,
            seconds=seconds,
            updates=now.updates - before.updates,
            updates_lost=end.gone,
            consensus_distance=self._apart,
            missing=tuple(sorted(missing | set(silent) | set(self._unread))),
            lost={"agent gone": end.gone} if end.gone else {},
            story=tuple(self._story(members, silent)),
        )

    def _story(self, members: list[Member], silent: list[str]) -> list[str]:
        live = [member for member in members if member.name not in silent]
        rounds = [member.figures.mixing.rounds for member in live]
        peers = len(live)
        where = repr(self._plan.topology(peers).name) if peers > 1 else "alone"
        lines = [
            f"mixing {self._plan.strategy!r} on {where}, {peers} peers, {min(rounds, default=0)} to "
            f"{max(rounds, default=0)} rounds"
        ]
        given_up = sum(member.figures.mixing.given_up for member in live)
        if given_up:
            lines.append(f"{given_up} rounds ended without all that they needed: the mean has moved")
        if silent:
            weight = sum(member.figures.mixing.weight for member in live)
            share = f"{1.0 - weight / len(members):.0%}" if members else "all"
            lines.append(f"with {', '.join(silent)} went {share} of the weight in the mean")
        return lines


def _counted(states: Sequence[State]) -> Counted:
    """The units that count in any of these replicas."""
    closed = max((state.closed for state in states), default=0)
    standing = {series._replace(attempt=0) for state in states for of in state.marks.values() for series in of}
    series = packed(mark for each in sorted(standing) for mark in each.marks() if each.epoch >= closed)
    # of epochs that are over, each replica knows how many units it computed itself, and of others none
    known = sum(of.size for state in states for marks in state.marks.values() for of in marks)
    over = sum(state.units for state in states) - known
    return Counted(closed, max(0, over) + sum(each.size for each in series), series)


def _peer_report(member: Member) -> PeerReport:
    mixing = member.figures.mixing
    report = peer_report(member, member.figures.published, mixing.received)
    return replace(report, rounds=mixing.rounds, edges=mixing.edges)
