"""Five agents are killed and frozen while updates flow: every update at most once, nothing of the living lost.

    python -m benchmarks.chaos [--quick] [--json FILE] [--check] [--seed N]
    python -m benchmarks.chaos --processes ...      each kind of process dies once: see benchmarks/chaos_processes.py

kill     Every few seconds an agent drawn by lot is killed (SIGKILL) and another one started in its place, which adopts
         a replica in flight. Update number i adds 1 to slot i of the model and a whole number to all other elements, so
         that the end shows for each update whether it counts, and every element is held against the exact sum. An
         update whose agent died before it answered is tried again at the next one, as Spark tries a task again.
freeze   Four agents publish as fast as they can while the fifth, which only merges, runs or is stopped (SIGSTOP), in
         turns. Its named peer is the window before it, in which all five run. On a machine with few cores the ratio may
         be above 1: who is stopped gives its share of the processor to the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from benchmarks import chaos_processes
from gossip.arrays import Bytes, Layout
from gossip.errors import UsageError
from gossip.messages import State
from gossip.zmq.fetch import fetch_state
from gossip.zmq.sockets import Keys
from p2p.agent import local_socket
from p2p.agent.client import AgentClient, AgentSettings, start_agent
from p2p.driver.observer import Observer
from p2p.driver.registrar import Member, Registrar

AGENTS = 5
FLOATS = 250_000
SLOTS = 25_000
"""Of the floats, how many are slots: a fifth of them for each place."""
RATE_PER_S = 20.0
"""Updates of one place while agents are killed; the freeze part goes as fast as it can."""

NOTICE_KILL_MAX_S = 1.0
"""Target: from SIGKILL until every other agent has told that it takes the agent for dead."""
NOTICE_FREEZE_MAX_S = 4.0
"""Target: the same from SIGSTOP."""
LEVEL_EXTRA_S = 5.0
"""Target: a newcomer is level within two transfers of a replica and this."""
MEMORY_BASE_BYTES = 64e6
"""Target: an agent's peak stays under this (Python, numpy and ZeroMQ 43 MB, own updates 16 MiB) ..."""
MEMORY_MODELS = 16
"""... and so many models: the replica, one in and one out for each of five others, and what is used again."""
GROWTH_MAX_BYTES = 2e6
"""Target: growth of an agent between the second and the last third of a time: two models, which are two buffers."""
LOG_MEMORY_BYTES = 16 << 20
"""Target: the same while agents are killed. What the dead had not read is kept for ten minutes, in case they were only
cut off: so much of it in memory (SEGMENTS_MEMORY_BYTES_MAX of p2p.agent.lanes) and the rest in files ..."""
FILES_MODELS_MAX = 128
"""... and so many models in all (twice `segments_max` of gossip.lanes.peer.Settings)."""
SLOWDOWN_MAX = 0.05
"""Target: what the others lose of their throughput while one is frozen."""
TIMEOUT_S = 60.0
SAMPLE_S = 0.25
POLL_S = 0.02


@dataclass(frozen=True)
class Setting:
    """How long everything takes."""

    kills: int
    kill_every_s: float
    windows: int
    """Pairs of a running and a frozen window."""
    window_s: float


FULL = Setting(kills=12, kill_every_s=5.0, windows=3, window_s=30.0)
QUICK = Setting(kills=2, kill_every_s=2.0, windows=1, window_s=5.0)


@dataclass(frozen=True)
class Sample:
    """An agent's memory at one time."""

    at: float
    resident_bytes: int
    peak_bytes: int
    segments_bytes: int
    """In files without a name."""


@dataclass
class Life:
    """One agent, from its start to its end."""

    place: int
    folder: str
    process: subprocess.Popen[bytes]
    started_at: float
    peer: str = ""
    hello_at: float = float("inf")
    """When the registrar knew it."""
    ready_at: float = float("inf")
    """When a task could connect."""
    goal: dict[str, int] = field(default_factory=dict)
    """Where the living lanes stood then."""
    level_at: float = float("inf")
    killed_at: float = float("inf")
    stopped: list[tuple[float, float]] = field(default_factory=list)
    """From SIGSTOP to SIGCONT."""

    def is_stopped(self, at: float, after_s: float = 1.0) -> bool:
        """It stood still at `at`, or shortly before."""
        return any(begin <= at <= end + after_s for begin, end in self.stopped)


@dataclass(frozen=True)
class Sighting:
    """`watcher` has told that it takes `peer` for dead."""

    at: float
    watcher: str
    peer: str


class Swarm:
    """A registrar, an observer and an agent without tasks in each of `AGENTS` places."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(16)
        initial = {"slots": np.zeros(SLOTS, np.float32), "w": np.zeros(FLOATS - SLOTS, np.float32)}
        self.layout = Layout.of(initial)
        token = secrets.token_hex(32)
        self.registrar = Registrar(self.run, keys=Keys.generate(), token=token)
        told = self.registrar.endpoint, self.layout, self.registrar.key, token
        self.observer = Observer(AgentSettings(self.run, "observer", *told))
        self.observer.load(initial)
        assert self.registrar.wait(lambda: len(self.registrar.members) == 1, TIMEOUT_S)
        self.settings = AgentSettings(self.run, "peer", *told)
        self.lives: list[Life] = []
        self.sightings: list[Sighting] = []
        self.samples: dict[int, list[Sample]] = {}
        """By process."""
        self._departed: dict[str, set[str]] = {}
        self._closing = threading.Event()
        for place in range(AGENTS):
            self._start(place)
        assert self.registrar.wait(lambda: len(self.registrar.members) == AGENTS + 1, TIMEOUT_S)
        self.registrar.wait_for_roster(TIMEOUT_S)
        self.registrar.open = False
        self._threads = [threading.Thread(target=work) for work in (self._watch, self._sample)]
        for thread in self._threads:
            thread.start()

    def _start(self, place: int) -> None:
        folder = local_socket.private_folder(f"{self.run[:12]}-{len(self.lives)}")
        begin = time.monotonic()
        self.lives.append(Life(place, folder, start_agent(self.settings, os.getpid(), folder), begin))

    def in_place(self, place: int) -> Life:
        """The newest agent of this place."""
        return next(life for life in reversed(self.lives) if life.place == place)

    def living(self) -> list[Life]:
        """All that were not killed, and did not die by themselves."""
        return [life for life in self.lives if life.killed_at == float("inf") and life.process.poll() is None]

    def died(self) -> int:
        """How many ended though nobody killed them."""
        return sum(1 for life in self.lives if life.killed_at == float("inf") and life.process.poll() is not None)

    def members(self) -> list[Member]:
        """The living as the registrar knows them, the observer first."""
        peers = {life.peer for life in self.living()}
        return [m for m in list(self.registrar.members.values()) if m.role == "observer" or m.peer in peers]

    def replace(self, place: int) -> None:
        """Kill the agent of this place and start another."""
        life = self.in_place(place)
        life.killed_at = time.monotonic()
        life.process.kill()
        self._start(place)
        life.process.wait()

    def connect(self, place: int, stopping: threading.Event | None = None) -> tuple[Life, AgentClient] | None:
        """As soon as the agent of this place, or the one that takes its place, lets a task in; None if it is late."""
        stopping = stopping or threading.Event()
        give_up = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up and not stopping.wait(POLL_S):
            life = self.in_place(place)
            if os.path.exists(os.path.join(life.folder, "agent.sock")):
                try:
                    client = AgentClient(life.folder, timeout_s=0.0)
                except UsageError:
                    continue  # killed before it could answer
                return life, client
        return None

    def level(self, timeout_s: float, ready_at: float = float("inf")) -> bool:
        """Wait until those that had a replica at `ready_at` have told that they stand at the same of every lane."""
        ready = {life.peer for life in self.living() if life.ready_at < ready_at} | {str(self.observer.peer)}

        def is_level() -> bool:
            members = [member for member in self.members() if member.peer in ready]
            frontiers = [Counter(member.figures.lanes.frontiers) for member in members]
            # an observer has an empty lane of its own, which a Counter takes for none
            return all(one == frontiers[0] for one in frontiers)

        return self.registrar.wait(is_level, timeout_s)

    def fetch(self, member: Member) -> tuple[dict[str, Any], State]:
        """A member's replica."""
        buffer = bytearray(self.layout.nbytes)

        def begin(state: State) -> Callable[[int, Bytes], None]:
            state.layout.check_fit(self.layout)

            def take(start: int, data: Bytes) -> None:
                buffer[start : start + len(data)] = data

            return take

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            state = fetch_state(context, member.pulls, begin, timeout_s=TIMEOUT_S, key=member.key)
        finally:
            context.term()
        return self.layout.views(buffer), state

    def close(self) -> None:
        """Stop everything that was started."""
        self._closing.set()
        self.registrar.stop_agents()
        for thread in self._threads:
            thread.join()
        self.registrar.close()
        self.observer.close()
        for life in self.lives:
            try:
                life.process.wait(5)
            except subprocess.TimeoutExpired:
                life.process.kill()
                life.process.wait()
            shutil.rmtree(life.folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        while not self._closing.is_set():
            self.registrar.wait(self._look, SAMPLE_S)

    def _look(self) -> bool:
        """Whenever an agent has said something: who has come, who is level, and who is taken for dead by whom."""
        now = time.monotonic()
        by_pid = {member.pid: member for member in self.registrar.members.values()}
        for life in self.lives:
            member = by_pid.get(life.process.pid)
            if member is not None and not life.peer:
                life.peer, life.hello_at = member.peer, now
            if life.ready_at == float("inf") and os.path.exists(os.path.join(life.folder, "agent.sock")):
                life.goal = {member.peer: member.figures.published for member in self.members()}
                life.ready_at = now
            if member is not None and now > life.ready_at and life.level_at == float("inf"):
                frontiers = member.figures.lanes.frontiers
                if all(frontiers.get(lane, 0) >= n for lane, n in life.goal.items()):
                    life.level_at = now
        for member in by_pid.values():
            departed = set(member.figures.departed)
            for peer in departed - self._departed.get(member.peer, set()):
                self.sightings.append(Sighting(now, member.peer, peer))
            self._departed[member.peer] = departed
        return self._closing.is_set()

    def _sample(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            for pid in (self.registrar.members[self.observer.peer].pid, *(life.process.pid for life in self.living())):
                try:
                    self.samples.setdefault(pid, []).append(_memory(pid))
                except OSError:
                    pass  # it has just been killed

    def noticed(self, life: Life, at: float, until: float) -> list[float]:
        """How long after `at` the others told that they take `life` for dead; infinite for who did not."""
        watchers = {w.peer for w in self.lives if w is not life and w.hello_at < at and w.killed_at > until}
        first: dict[str, float] = dict.fromkeys({*watchers, str(self.observer.peer)}, float("inf"))
        for sighting in self.sightings:
            if sighting.peer == life.peer and sighting.watcher in first and at <= sighting.at:
                first[sighting.watcher] = min(first[sighting.watcher], sighting.at - at)
        return list(first.values())

    def false_alarms(self) -> int:
        """How often one that lived was taken for dead, but for what agents say that have just been let go on."""
        lives = {life.peer: life for life in self.lives}
        return sum(
            1
            for s in self.sightings
            if s.peer in lives
            and s.at < lives[s.peer].killed_at
            and not lives[s.peer].is_stopped(s.at)
            and not (s.watcher in lives and lives[s.watcher].is_stopped(s.at))
        )


def _memory(pid: int) -> Sample:
    """A process's memory and files without a name."""
    kilobytes = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                kilobytes[name] = int(value.split()[0])
    if len(kilobytes) < 2:
        raise ProcessLookupError(pid)
    segments = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{descriptor}"
        try:
            if "deepdist-segment-" in os.readlink(path):
                segments += os.stat(path).st_size
        except OSError:
            pass  # closed meanwhile
    return Sample(time.monotonic(), kilobytes["VmRSS"] * 1024, kilobytes["VmHWM"] * 1024, segments)


def _growth(samples: Sequence[Sample], begin: float, end: float, figure: Callable[[Sample], int]) -> float:
    """By how much the median of the last third is above that of the second."""
    third = (end - begin) / 3

    def median(low: float, high: float) -> float:
        return statistics.median(figure(sample) for sample in samples if low <= sample.at < high)

    return median(end - third, end) - median(begin + third, end - third)


def _resident(sample: Sample) -> int:
    return sample.resident_bytes


def _resident_and_files(sample: Sample) -> int:
    return sample.resident_bytes + sample.segments_bytes


# ----------------------------------------------------------------------------------------------------------------- kill


@dataclass(frozen=True)
class Killed:
    """The figures of the kill part."""

    accepted: int
    """Updates that an agent took, or said that it knew them already."""
    merged: int
    """Of them, those that are in the replicas."""
    lost: int
    unanswered: int
    """Updates that are in the replicas though the agent that was given them died before it could say so."""
    lost_of_living: int
    """Lost though no agent that was given them was killed."""
    doubled: int
    tried_again: int
    died: int
    """Agents that ended though nobody killed them."""
    units: tuple[int, ...]
    """Units that count, as each living agent says."""
    equal: bool
    exact: bool
    equal_when_drained: bool
    drain_s: float
    level_s: float
    """From the last update until all living agents stood at the same."""
    transfer_s: float
    noticed_s: tuple[float, ...]
    """For each kill, until the last of the others had noticed."""
    false_alarms: int
    ready_s: tuple[float, ...]
    """For each newcomer that lived long enough, from its start until a task could connect."""
    joined_s: tuple[float, ...]
    """The same, from the registrar's first word of it until it was level."""
    peak_bytes: tuple[int, ...]
    """Of every agent that lived."""
    growth_bytes: float
    """In memory, of those that lived through the last two thirds and the observer; most of them."""
    files_bytes: int
    """The most that an agent had in files: what it keeps for those that died, which may be cut off only."""


class Ledger:
    """Who was given which update, and which ones were taken."""

    def __init__(self) -> None:
        self.accepted: set[int] = set()
        self.lives: dict[int, list[Life]] = {}

    @staticmethod
    def value(number: int) -> int:
        """What update `number` adds to every element that is no slot."""
        return 1 + number % 7


def _flow(swarm: Swarm, ledger: Ledger, place: int, stopping: threading.Event) -> None:
    """Publish updates in one place, each until it is taken or the time is up, whichever agent is there."""
    client: AgentClient | None = None
    for chunk in range(SLOTS // AGENTS):
        if stopping.wait(1 / RATE_PER_S):
            break
        number = place * (SLOTS // AGENTS) + chunk
        tried = ledger.lives[number] = []
        while number not in ledger.accepted:
            if client is None:
                found = swarm.connect(place, stopping)
                if found is None:
                    return
                life, client = found
            arrays = client.hand_over().arrays()
            arrays["slots"][...] = 0
            arrays["slots"][number] = 1
            arrays["w"][...] = Ledger.value(number)
            tried.append(life)
            unit = (0, place, chunk)
            try:
                client.publish(client.hand_over(), client.replica.merged, unit=unit, attempt=len(tried) - 1)
                ledger.accepted.add(number)
            except UsageError:  # killed
                client.close()
                client = None
    if client is not None:
        client.close()


def kill(setting: Setting, seed: int) -> Killed:
    """Kill and replace agents while updates flow; then look what is left."""
    chance = random.Random(seed)
    swarm = Swarm()
    ledger = Ledger()
    stopping = threading.Event()
    try:
        with ThreadPoolExecutor(AGENTS) as pool:
            begin = time.monotonic()
            flows = [pool.submit(_flow, swarm, ledger, place, stopping) for place in range(AGENTS)]
            try:
                for _ in range(setting.kills):
                    time.sleep(setting.kill_every_s)
                    swarm.replace(chance.randrange(AGENTS))
            finally:
                end = time.monotonic()
                stopping.set()
            for flow in flows:
                flow.result()
        return _look_back(swarm, ledger, begin, end)
    finally:
        swarm.close()


def _look_back(swarm: Swarm, ledger: Ledger, begin: float, end: float) -> Killed:
    drain_begin = time.monotonic()
    swarm.registrar.drain(TIMEOUT_S)
    drain_s = time.monotonic() - drain_begin
    swarm.registrar.ask_status(TIMEOUT_S)
    equal_when_drained = swarm.level(0.0, drain_begin)  # who came later was not asked to drain
    for place in range(AGENTS):
        _, client = swarm.connect(place) or (None, None)
        if client is not None:
            client.close()
    swarm.level(TIMEOUT_S)
    level_s = time.monotonic() - drain_begin
    swarm.registrar.ask_status(TIMEOUT_S)
    fetch_begin = time.monotonic()
    replicas = [swarm.fetch(member)[0] for member in swarm.members()]
    transfer_s = (time.monotonic() - fetch_begin) / len(replicas)
    slots = replicas[0]["slots"]
    merged = set(np.flatnonzero(slots).tolist())
    lost = ledger.accepted - merged
    expected = sum(int(slots[number]) * Ledger.value(number) for number in merged)
    newcomers = [life for life in swarm.lives if life.started_at > begin and life.level_at < float("inf")]
    steady = [life.process.pid for life in swarm.living() if life.hello_at < begin + (end - begin) / 3]
    steady.append(swarm.registrar.members[swarm.observer.peer].pid)
    return Killed(
        accepted=len(ledger.accepted),
        merged=len(merged & ledger.accepted),
        lost=len(lost),
        unanswered=len(merged - ledger.accepted),
        lost_of_living=sum(1 for n in lost if all(life.killed_at == float("inf") for life in ledger.lives[n])),
        doubled=int(np.count_nonzero(slots > 1)),
        tried_again=sum(1 for lives in ledger.lives.values() if len(lives) > 1),
        died=swarm.died(),
        units=tuple(member.figures.lanes.units for member in swarm.members()),
        equal=all(np.array_equal(one[name], replicas[0][name]) for one in replicas for name in one),
        exact=bool(np.all(replicas[0]["w"] == expected)),
        equal_when_drained=equal_when_drained,
        drain_s=drain_s,
        level_s=level_s,
        transfer_s=transfer_s,
        noticed_s=tuple(
            max(swarm.noticed(life, life.killed_at, life.killed_at + 2 * NOTICE_FREEZE_MAX_S))
            for life in swarm.lives
            if life.killed_at < float("inf") and life.hello_at < life.killed_at
        ),
        false_alarms=swarm.false_alarms(),
        ready_s=tuple(life.ready_at - life.started_at for life in newcomers),
        joined_s=tuple(life.level_at - life.hello_at for life in newcomers),
        peak_bytes=tuple(samples[-1].peak_bytes for samples in swarm.samples.values()),
        growth_bytes=max(_growth(swarm.samples[pid], begin, end, _resident) for pid in steady),
        files_bytes=max(sample.segments_bytes for samples in swarm.samples.values() for sample in samples),
    )


# --------------------------------------------------------------------------------------------------------------- freeze


@dataclass(frozen=True)
class Window:
    """One stretch of time in the freeze part."""

    frozen: bool
    published_per_s: float
    merged_per_s: float
    """By the observer."""
    noticed_s: float = 0.0
    """Until the last of the others had noticed."""
    catch_up_s: float = 0.0
    """From SIGCONT until the one that stood still had all that the observer had at SIGCONT."""
    growth_bytes: float = 0.0
    """Of the others; most of them."""
    segments_bytes: int = 0
    """Most that one of the others had in files."""


@dataclass(frozen=True)
class Frozen:
    """The figures of the freeze part."""

    windows: tuple[Window, ...]
    peak_bytes: tuple[int, ...]
    false_alarms: int
    died: int
    drain_s: float
    equal: bool
    exact: bool

    def ratio(self, figure: Callable[[Window], float]) -> float:
        """Frozen / running, the median of all pairs."""
        pairs = zip(self.windows[::2], self.windows[1::2], strict=True)
        return statistics.median(figure(frozen) / figure(running) for running, frozen in pairs)


def _flood(client: AgentClient, counts: list[int], place: int, stopping: threading.Event) -> None:
    """Publish ones as fast as they are taken."""
    while not stopping.is_set():
        for array in client.hand_over().arrays().values():
            array[...] = 1
        client.publish(client.hand_over(), client.replica.merged)
        counts[place] += 1


def _measure(swarm: Swarm, counts: list[int], seconds: float) -> tuple[float, float]:
    """(updates published, updates merged by the observer) per second."""
    begin, published, merged = time.monotonic(), sum(counts), swarm.observer.agent.replica.merged
    time.sleep(seconds)
    passed = time.monotonic() - begin
    return (sum(counts) - published) / passed, (swarm.observer.agent.replica.merged - merged) / passed


def _freeze_once(swarm: Swarm, counts: list[int], client: AgentClient, seconds: float) -> Window:
    """Stop the last agent for a while, and see how it goes on."""
    last = swarm.in_place(AGENTS - 1)
    begin = time.monotonic()
    os.kill(last.process.pid, signal.SIGSTOP)
    last.stopped.append((begin, float("inf")))
    try:
        published, merged = _measure(swarm, counts, seconds)
    finally:
        end = time.monotonic()
        last.stopped[-1] = (begin, end)
        goal = swarm.observer.agent.replica.merged
        os.kill(last.process.pid, signal.SIGCONT)
    while client.replica.merged < goal and time.monotonic() < end + TIMEOUT_S:
        time.sleep(0.005)
    catch_up_s = time.monotonic() - end
    others = [samples for pid, samples in swarm.samples.items() if pid != last.process.pid]
    return Window(
        True,
        published,
        merged,
        max(swarm.noticed(last, begin, end)),
        catch_up_s,
        max(_growth(samples, begin, end, _resident_and_files) for samples in others),
        max(sample.segments_bytes for samples in others for sample in samples if begin <= sample.at <= end),
    )


def freeze(setting: Setting) -> Frozen:
    """Measure the others' throughput while one agent runs, and while it is stopped."""
    swarm = Swarm()
    clients: list[AgentClient] = []
    counts = [0] * AGENTS
    stopping = threading.Event()
    windows: list[Window] = []
    try:
        clients += [AgentClient(swarm.in_place(place).folder) for place in range(AGENTS)]
        with ThreadPoolExecutor(AGENTS) as pool:
            floods = [pool.submit(_flood, clients[n], counts, n, stopping) for n in range(AGENTS - 1)]
            try:
                _measure(swarm, counts, setting.window_s / 6)  # buffers are made, pages are touched
                for _ in range(setting.windows):
                    windows.append(Window(False, *_measure(swarm, counts, setting.window_s)))
                    windows.append(_freeze_once(swarm, counts, clients[-1], setting.window_s))
            finally:
                stopping.set()
            for flood in floods:
                flood.result()
        begin = time.monotonic()
        swarm.registrar.drain(TIMEOUT_S)
        drain_s = time.monotonic() - begin
        replicas = [swarm.fetch(member)[0] for member in swarm.members()]
        return Frozen(
            windows=tuple(windows),
            peak_bytes=tuple(samples[-1].peak_bytes for samples in swarm.samples.values()),
            false_alarms=swarm.false_alarms(),
            died=swarm.died(),
            drain_s=drain_s,
            equal=all(np.array_equal(one[name], replicas[0][name]) for one in replicas for name in one),
            exact=all(bool(np.all(array == sum(counts))) for array in replicas[0].values()),
        )
    finally:
        for client in clients:
            client.close()
        swarm.close()


# ---------------------------------------------------------------------------------------------------------------- table


def _spread(values: Iterable[float], unit: str = "s") -> str:
    """Median and largest."""
    numbers = list(values)
    return f"{statistics.median(numbers):.2f} / {max(numbers):.2f} {unit}" if numbers else "-"


def _print(setting: Setting, seed: int, killed: Killed, frozen: Frozen) -> None:
    pairs = [
        ("updates accepted", f"{killed.accepted}, of which {killed.tried_again} were tried again"),
        ("= merged + lost", f"{killed.merged} + {killed.lost}"),
        ("merged without an answer", str(killed.unanswered)),
        ("units that count, as agents say", " ".join(map(str, sorted(set(killed.units))))),
        ("counted twice; lost of living lanes", f"{killed.doubled}; {killed.lost_of_living}"),
        ("replicas equal; equal to the exact sum", f"{killed.equal}; {killed.exact}"),
        ("drained after; equal then", f"{killed.drain_s:.2f} s; {killed.equal_when_drained}"),
        ("all equal after", f"{killed.level_s:.2f} s"),
        ("a kill seen by all others (median / max)", _spread(killed.noticed_s)),
        ("living ones taken for dead; died by themselves", f"{killed.false_alarms}; {killed.died}"),
        ("newcomer: start to first task (median / max)", _spread(killed.ready_s)),
        ("newcomer: hello to level (median / max)", _spread(killed.joined_s)),
        ("transfer of a replica", f"{killed.transfer_s * 1e3:.0f} ms"),
        ("peak of an agent (median / max)", _spread((peak / 1e6 for peak in killed.peak_bytes), "MB")),
        ("growth in the last third", f"{killed.growth_bytes / 1e6:+.2f} MB"),
        ("most in files", f"{killed.files_bytes / 1e6:.0f} MB"),
    ]
    table = Table(
        title=f"kill: {AGENTS} agents, {setting.kills} kills, one every {setting.kill_every_s:g} s, seed {seed}"
    )
    table.add_column("figure")
    table.add_column("seen", justify="right")
    for pair in pairs:
        table.add_row(*pair)
    console = Console(width=120)
    console.print(table)
    table = Table(title=f"freeze: windows of {setting.window_s:g} s, one agent running and frozen in turns")
    for column in ("window", "published/s", "merged/s", "seen after s", "caught up s", "growth MB", "files MB"):
        table.add_column(column, justify="right")
    for window in frozen.windows:
        rates = (f"{window.published_per_s:.1f}", f"{window.merged_per_s:.1f}")
        if not window.frozen:
            table.add_row("running", *rates)
            continue
        growth, files = f"{window.growth_bytes / 1e6:+.2f}", f"{window.segments_bytes / 1e6:.1f}"
        table.add_row("frozen", *rates, f"{window.noticed_s:.2f}", f"{window.catch_up_s:.2f}", growth, files)
    published, merged = (frozen.ratio(figure) for figure in (_published, _merged))
    table.add_row("ratio", f"{published:.3f}", f"{merged:.3f}", end_section=True)
    console.print(table)
    peaks = _spread((peak / 1e6 for peak in frozen.peak_bytes), "MB")
    print(
        f"peak of an agent (median / max): {peaks}; living ones taken for dead: {frozen.false_alarms}; "
        f"drained after {frozen.drain_s:.2f} s; replicas equal: {frozen.equal}, to the exact sum: {frozen.exact}"
    )


def _published(window: Window) -> float:
    return window.published_per_s


def _merged(window: Window) -> float:
    return window.merged_per_s


def _missed(killed: Killed, frozen: Frozen) -> list[str]:
    """What falls short of the targets."""
    level_limit = 2 * killed.transfer_s + LEVEL_EXTRA_S
    limit = MEMORY_BASE_BYTES + MEMORY_MODELS * 4 * FLOATS
    peak = max(*killed.peak_bytes, *frozen.peak_bytes)
    growth = max(window.growth_bytes for window in frozen.windows)
    files_limit = FILES_MODELS_MAX * 4 * FLOATS
    kill_s, freeze_s = max(killed.noticed_s), max(window.noticed_s for window in frozen.windows)
    slowest = max(killed.joined_s, default=0.0)
    ratio = min(frozen.ratio(_published), frozen.ratio(_merged))
    units = killed.merged + killed.unanswered
    checks = [
        (f"{killed.died + frozen.died} agents died by themselves", killed.died == frozen.died == 0),
        ("replicas are not equal", killed.equal and frozen.equal),
        ("replicas are not equal to the exact sum", killed.exact and frozen.exact),
        (f"{killed.doubled} updates count twice", killed.doubled == 0),
        (f"{killed.lost_of_living} updates of living lanes are lost", killed.lost_of_living == 0),
        (f"units {killed.units}, in the replicas {units}", set(killed.units) == {units}),
        ("replicas were not equal when the swarm had drained", killed.equal_when_drained),
        (f"a kill was seen after {kill_s:.2f} s, target {NOTICE_KILL_MAX_S:g} s", kill_s <= NOTICE_KILL_MAX_S),
        (
            f"a freeze was seen after {freeze_s:.2f} s, target {NOTICE_FREEZE_MAX_S:g} s",
            freeze_s <= NOTICE_FREEZE_MAX_S,
        ),
        ("living agents were taken for dead", killed.false_alarms == frozen.false_alarms == 0),
        (f"a newcomer was level after {slowest:.2f} s, target {level_limit:.2f} s", slowest <= level_limit),
        (f"peak memory {peak / 1e6:.0f} MB, target under {limit / 1e6:.0f} MB", peak < limit),
        (
            f"growth beside a frozen one {growth / 1e6:.2f} MB, target at most {GROWTH_MAX_BYTES / 1e6:.2f} MB",
            growth <= GROWTH_MAX_BYTES,
        ),
        (
            f"growth while agents die {killed.growth_bytes / 1e6:.2f} MB, target {LOG_MEMORY_BYTES / 1e6:.2f} MB",
            killed.growth_bytes <= LOG_MEMORY_BYTES,
        ),
        (
            f"files of {killed.files_bytes / 1e6:.0f} MB, target at most {files_limit / 1e6:.0f} MB",
            killed.files_bytes <= files_limit,
        ),
        (f"frozen / running {ratio:.3f}, target at least {1 - SLOWDOWN_MAX:g}", ratio >= 1 - SLOWDOWN_MAX),
    ]
    return [text for text, met in checks if not met]


def main() -> None:
    """Run both parts and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two kills, one frozen window of 5 s; one moment")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--seed", type=int, default=1, help="draws who is killed")
    parser.add_argument("--processes", action="store_true", help="trainings in which one process dies or stands still")
    of_processes = parser.add_argument_group("with --processes")
    of_processes.add_argument("--only", choices=chaos_processes.ENGINES)
    of_processes.add_argument("--kind", choices=chaos_processes.KINDS)
    of_processes.add_argument("--signal", choices=chaos_processes.SIGNALS)
    arguments = parser.parse_args()
    if arguments.processes:
        chaos_processes.main(
            arguments.only,
            arguments.kind,
            arguments.signal,
            quick=arguments.quick,
            json_file=arguments.json,
            check=arguments.check,
        )
        return
    setting = QUICK if arguments.quick else FULL
    killed = kill(setting, arguments.seed)
    frozen = freeze(setting)
    _print(setting, arguments.seed, killed, frozen)
    if arguments.json:
        arguments.json.write_text(json.dumps({"kill": asdict(killed), "freeze": asdict(frozen)}, indent=1))
    missed = _missed(killed, frozen)
    if arguments.check and missed:
        print("\n".join(f"missed: {text}" for text in missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
