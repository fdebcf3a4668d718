"""What the simulators of mixing cost, by number of peers.

    python -m benchmarks.consensus [--quick] [--json FILE] [--svg FILE] [--check]

The same strategies in three forms: all peers at once (`gossip.sim.vectorized`, sparse products), peer by peer with
messages in lock-step (`gossip.mixing.rounds`), and the peers of production on virtual time, where every message is
encoded, travels and is decoded (`gossip.sim.mix_simulator`; push-sum, until the last peer has begun its last round).
Each figure is from a process of its own, so that its peak of memory is its own, and the median of three runs. The last
lines are the large runs that are held against the targets, once: 10,000 peers x 100 parameters x 200 rounds at once on
the static exponential graph, and 1,000 peers x 20 rounds of events, of whom each sends to one other in a round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gossip import topology
from gossip.arrays import Array
from gossip.mixing import DPsgd, PushSum
from gossip.mixing.neighbors import Plan
from gossip.mixing.rounds import Swarm
from gossip.sim.mix_simulator import MixSimulation
from gossip.sim.simulator import Network
from gossip.sim.vectorized import simulate
from gossip.topology import Topology

SECONDS_MAX = 60.0
BYTES_MAX = 4e9
"""Targets of each large run, on two cores."""
PARAMETERS = 100
ROUNDS = 20
LARGE = (("vectorized", "exponential", 10_000, 200), ("events", "one-peer-exponential", 1_000, 20))
PEERS = (64, 256, 1_024, 4_096, 16_384)
PEERS_QUICK = (64, 256)
FORMS = (
    ("vectorized", "ring", PEERS[-1]),
    ("vectorized", "exponential", PEERS[-1]),
    ("vectorized", "one-peer-exponential", PEERS[-1]),
    ("messages", "exponential", 1_024),
    ("events", "one-peer-exponential", 256),
    ("events", "exponential", 256),
)
FORMS_SAID = {
    "vectorized": "all peers at once",
    "messages": "peer by peer in lock-step",
    "events": "peers of production on virtual time",
}
"""(form, topology, most peers)."""


@dataclass(frozen=True)
class Figure:
    """One run."""

    form: str
    topology: str
    peers: int
    rounds: int
    seconds: float
    """Of the rounds, the topology being built."""
    cpu_seconds: float
    """Of the rounds, which other work on the machine does not change."""
    build_seconds: float
    """Of the topology."""
    peak_bytes: int
    """Of the whole process."""
    distance: float
    """At the end, of the start's: it did mix."""


def measure(form: str, name: str, peers: int, rounds: int, runs: int = 3) -> Figure:
    """The median of so many runs in this process; of a large run, one."""
    runs = 1 if (form, name, peers, rounds) in LARGE else runs
    figures = sorted((_run(form, name, peers, rounds) for _ in range(runs)), key=_seconds)
    return figures[runs // 2]


def _seconds(figure: Figure) -> float:
    return figure.cpu_seconds


def _run(form: str, name: str, peers: int, rounds: int) -> Figure:
    begin = time.perf_counter()
    graph = topology.named(name, peers=peers)
    graph.weights(0)
    build_seconds = time.perf_counter() - begin
    start = np.random.default_rng(0).standard_normal((peers, PARAMETERS))
    before = float(np.sum((start - start.mean(axis=0)) ** 2))
    begin, cpu_begin = time.perf_counter(), time.process_time()
    if form == "vectorized":
        x = simulate(graph, DPsgd(), rounds=rounds, start=start, check=False).params
    elif form == "events":
        x = _by_events(graph, start, rounds)
    else:
        swarm = Swarm(DPsgd(), graph, start, np.random.default_rng(1))
        for number in range(rounds):
            swarm.round(number)
        x = swarm.params()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    after = float(np.sum((x - x.mean(axis=0)) ** 2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Figure(form, name, peers, rounds, seconds, cpu_seconds, build_seconds, peak, (after / before) ** 0.5)


def _by_events(graph: Topology, start: Array, rounds: int) -> Array:
    """The replicas when the last peer has begun its last round."""
    plan = Plan(lambda count: graph, PushSum())
    network = Network(delay_mean_s=0.01)
    swarm = MixSimulation(
        len(start), lambda peer: {"w": start[peer]}, plan, seed=1, network=network, only_neighbors=True
    )
    swarm.resume()
    while swarm.rounds() < rounds:
        swarm.run(swarm.now + 0.1)
    return swarm.params()


def measure_apart(form: str, name: str, peers: int, rounds: int) -> Figure:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.consensus", "--one", form, name, str(peers), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Figure(**json.loads(done.stdout))


def draw(figures: list[Figure]) -> str:
    """Seconds per round by number of peers, as SVG."""
    from p2p.lab.reports.plots import Line, Plot, svg

    lines = []
    for color, (form, name, _) in enumerate(FORMS):
        mine = [figure for figure in figures if (figure.form, figure.topology) == (form, name)]
        label = f"{name}, {FORMS_SAID[form]}"
        seconds = [figure.cpu_seconds / figure.rounds for figure in mine]
        lines.append(Line(label, [figure.peers for figure in mine], seconds, color))
    first = lines[1]
    linear = [first.y[-1] * peers / first.x[-1] for peers in first.x]
    lines.append(Line("proportional to peers", first.x, linear, -1, is_theory=True))
    title = f"Cost of a round, {PARAMETERS} parameters"
    return svg(Plot(title, "peers", "CPU seconds", tuple(lines), is_log_x=True))


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few peers, one run each in one process, and no large one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--svg", type=Path, help="draw the plot to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        form, name, peers, rounds = arguments.one
        print(json.dumps(asdict(measure(form, name, int(peers), int(rounds)))))
        return
    if arguments.quick:
        runs = [(form, name, peers) for form, name, most in FORMS for peers in PEERS_QUICK if peers < most]
        figures = [measure(*run, ROUNDS, runs=1) for run in runs]
    else:
        runs = [(form, name, peers) for form, name, most in FORMS for peers in PEERS if peers <= most]
        figures = [measure_apart(*run, ROUNDS) for run in runs]
    large = [] if arguments.quick else [measure_apart(*run) for run in LARGE]
    table = Table(title=f"{PARAMETERS} parameters of float64 each", title_justify="left")
    for heading in (
        "form",
        "topology",
        "peers",
        "rounds",
        "seconds",
        "CPU seconds",
        "CPU ms per round",
        "peak MB",
        "distance left",
    ):
        table.add_column(heading, justify="left" if heading in ("form", "topology") else "right")
    for figure in [*figures, *large]:
        table.add_row(
            figure.form,
            figure.topology,
            f"{figure.peers:,}",
            str(figure.rounds),
            f"{figure.seconds:.2f}",
            f"{figure.cpu_seconds:.2f}",
            f"{1e3 * figure.cpu_seconds / figure.rounds:.2f}",
            f"{figure.peak_bytes / 1e6:.0f}",
            f"{figure.distance:.1e}",
        )
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    if arguments.json:
        kinds = {"figures": figures, "large": large}
        rows = {kind: [asdict(figure) for figure in some] for kind, some in kinds.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))
    if arguments.svg:
        arguments.svg.write_text(draw(figures))
    missed = [
        f"missed: {figure.form}: {figure.seconds:.1f} s and {figure.peak_bytes / 1e9:.2f} GB, "
        f"targets {SECONDS_MAX:.0f} s and {BYTES_MAX / 1e9:.0f} GB"
        for figure in large
        if figure.seconds >= SECONDS_MAX or figure.peak_bytes >= BYTES_MAX
    ]
    if arguments.check and missed:
        print("\n".join(missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
