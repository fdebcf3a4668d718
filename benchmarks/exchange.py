"""Four agents as plain processes exchange large updates over real sockets: equal replicas, bounded memory, no waiting.

    python -m benchmarks.exchange [--quick] [--json FILE] [--check]

Three rounds with the same number of updates from the first three agents:

    all        every agent publishes and merges
    idle       the fourth agent only merges
    slow       the fourth agent only merges, and is stopped (SIGSTOP) nine tenths of the time

The named peer of the slow round is the idle round: publishing beside a slow reader against publishing beside a fast
one. Updates are integer-valued, so that the end is held against the exact sum.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from msgspec import structs
from rich.console import Console
from rich.table import Table

from gossip.arrays import Layout
from gossip.zmq.sockets import Keys
from p2p.agent import local_socket
from p2p.agent.client import AgentClient, AgentSettings, start_agent
from p2p.driver.consensus import consensus_distance
from p2p.driver.observer import Observer
from p2p.driver.registrar import Registrar

MEMORY_FACTOR = 3
MEMORY_EXTRA_BYTES = 60e6
"""Target: an agent's peak stays under MEMORY_FACTOR x model + MEMORY_EXTRA_BYTES."""
SLOWDOWN_MAX = 1.25
"""Target: time to publish beside a slow reader / beside a fast one. Two shared cores are noisy by more than a tenth."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Round:
    """One round's figures."""

    name: str
    publish_s: float
    """Until every update was in its origin's lane."""
    level_s: float
    """Until every replica had every update."""
    peak_bytes: tuple[int, ...]
    """Of each agent, since its start."""
    distance: float
    exact: bool


class Swarm:
    """A registrar, an observer and `count` agents without tasks."""

    def __init__(self, floats: int, count: int, links: bool = True, keys: bool = True) -> None:
        """Without `links` the agents exchange bytes over sockets, as those of several machines do; without `keys`
        nothing is authenticated nor encrypted."""
        self.run = secrets.token_hex(16)
        self.initial = {"w": np.zeros(floats, np.float32)}
        layout = Layout.of(self.initial)
        token = secrets.token_hex(32) if keys else None
        self.registrar = Registrar(self.run, keys=Keys.generate() if keys else None, token=token)
        told = self.registrar.endpoint, layout, self.registrar.key, token
        settings = AgentSettings(self.run, "observer", *told, links=links)
        self.observer = Observer(settings)
        self.observer.load(self.initial)
        assert self.registrar.wait(lambda: len(self.registrar.members) == 1, TIMEOUT_S)
        self.folders = [local_socket.private_folder(f"{self.run[:12]}-{index}") for index in range(count)]
        settings = structs.replace(settings, role="peer")
        self.processes: list[subprocess.Popen[bytes]] = [
            start_agent(settings, os.getpid(), folder) for folder in self.folders
        ]
        self.agents = [AgentClient(folder) for folder in self.folders]
        assert self.registrar.wait(lambda: len(self.registrar.members) == count + 1, TIMEOUT_S)
        self.registrar.wait_for_roster(TIMEOUT_S)
        self.sum = 0

    def publish(self, publishers: int, updates: int) -> float:
        """Let the first `publishers` agents publish `updates` each, together; seconds until all are handed over."""

        def work(agent: AgentClient, number: int) -> None:
            for update in range(updates):
                agent.hand_over().arrays()["w"][...] = 1 + number + update
                agent.publish(agent.hand_over(), agent.replica.merged)

        begin = time.monotonic()
        threads = [threading.Thread(target=work, args=(self.agents[n], n)) for n in range(publishers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.sum += sum(1 + number + update for number in range(publishers) for update in range(updates))
        return time.monotonic() - begin

    def round(self, name: str, publishers: int, updates: int, slow: bool) -> Round:
        """One round, until all replicas are level."""
        begin = time.monotonic()
        stopping = threading.Event()
        slowing = threading.Thread(target=_slow_down, args=(self.processes[-1].pid, stopping))
        if slow:
            slowing.start()
        try:
            publish_s = self.publish(publishers, updates)
        finally:
            stopping.set()
            if slow:
                slowing.join()
        self._drain()
        level_s = time.monotonic() - begin
        self.registrar.ask_status(TIMEOUT_S)
        distance, unread = consensus_distance(self.observer.agent.replica, self.registrar.by_role("peer"))
        assert not unread, f"agents that could not be read: {unread}"
        exact = all(bool(np.all(agent.replica.arrays()["w"] == self.sum)) for agent in self.agents)
        peaks = tuple(member.figures.memory_peak_bytes for member in self.registrar.by_role("peer"))
        return Round(name, publish_s, level_s, peaks, distance, exact)

    def _drain(self) -> None:
        """Until all replicas are level. Whoever says nothing for seconds, as on a busy machine, is not waited for, so
        it is asked again."""
        give_up = time.monotonic() + TIMEOUT_S
        while time.monotonic() < give_up:
            asked = self.registrar.drain(TIMEOUT_S)
            if all(member.drained is not None and not member.drained.missing for member in asked):
                return
            time.sleep(0.5)

    def close(self) -> None:
        """Stop everything that was started."""
        self.registrar.stop_agents()
        self.registrar.close()
        self.observer.close()
        for agent, process, folder in zip(self.agents, self.processes, self.folders, strict=True):
            agent.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _slow_down(pid: int, stopping: threading.Event) -> None:
    """Stop the process nine tenths of the time."""
    try:
        while not stopping.is_set():
            os.kill(pid, signal.SIGSTOP)
            stopping.wait(0.45)
            os.kill(pid, signal.SIGCONT)
            stopping.wait(0.05)
    finally:
        os.kill(pid, signal.SIGCONT)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 MB instead of 40 MB, fewer updates, one repetition")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    megabytes, updates, repetitions = (8, 6, 1) if arguments.quick else (40, 12, 3)
    model_bytes = megabytes * 1_000_000
    swarm = Swarm(model_bytes // 4, 4)
    rounds: list[Round] = []
    try:
        for _ in range(repetitions):
            rounds.append(swarm.round("all", 4, updates, slow=False))
            rounds.append(swarm.round("idle", 3, updates, slow=False))
            rounds.append(swarm.round("slow", 3, updates, slow=True))
    finally:
        swarm.close()
    limit = MEMORY_FACTOR * model_bytes + MEMORY_EXTRA_BYTES
    title = f"4 agents, model and updates of {megabytes} MB, {updates} updates each; median of {repetitions}"
    table = Table(title=title)
    for column in ("round", "publish s", "level s", "MB/s published", "peak MB per agent", "distance", "exact"):
        table.add_column(column, justify="right")
    median: dict[str, float] = {}
    for name, publishers in (("all", 4), ("idle", 3), ("slow", 3)):
        mine = [r for r in rounds if r.name == name]
        median[name] = statistics.median(r.publish_s for r in mine)
        table.add_row(
            name,
            f"{median[name]:.2f}",
            f"{statistics.median(r.level_s for r in mine):.2f}",
            f"{publishers * updates * model_bytes / median[name] / 1e6:.0f}",
            " ".join(f"{peak / 1e6:.0f}" for peak in mine[-1].peak_bytes),
            f"{max(r.distance for r in mine):.0e}",
            str(all(r.exact for r in mine)),
        )
    Console().print(table)
    slowdown = median["slow"] / median["idle"]
    peak = max(max(r.peak_bytes) for r in rounds)
    print(f"peak memory of an agent: {peak / 1e6:.0f} MB; limit 3 x model + 60 MB = {limit / 1e6:.0f} MB")
    print(f"publishing beside a slow reader / beside a fast one: {slowdown:.2f}")
    if arguments.json:
        figures = {"model_bytes": model_bytes, "updates": updates, "slowdown": slowdown, "peak_bytes": peak}
        arguments.json.write_text(json.dumps({**figures, "rounds": [asdict(r) for r in rounds]}, indent=1))
    missed = [
        text
        for text, met in (
            (f"peak memory {peak / 1e6:.0f} MB, target under {limit / 1e6:.0f} MB", peak < limit),
            (f"slow / fast {slowdown:.2f}, target at most {SLOWDOWN_MAX}", slowdown <= SLOWDOWN_MAX),
            ("replicas are not equal to the exact sum", all(r.exact and r.distance == 0 for r in rounds)),
        )
        if not met
    ]
    if arguments.check and missed:
        print("\n".join(f"missed: {text}" for text in missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
