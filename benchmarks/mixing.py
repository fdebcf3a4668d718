"""Ten thousand peers in one process: how long a simulation of consensus takes, and in how much memory.

    python -m benchmarks.mixing [--quick] [--json FILE] [--check]

Each row is a process of its own, so that memory is that of one simulation. The named peer is D-PSGD on the same graph.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gossip import topology
from gossip.compression import Int8
from gossip.mixing import Choco, Compressed, DPsgd, PairwiseExchange, PushSum, Strategy
from gossip.topology import Topology
from gossip.vectorized import simulate

SECONDS_MAX = 60.0
"""Target for 10,000 peers x 100 parameters x 200 rounds of D-PSGD on the static exponential graph."""
BYTES_MAX = 4e9
"""Target for the same."""


@dataclass(frozen=True)
class Row:
    """One simulation's figures."""

    strategy: str
    topology: str
    loss: float
    peers: int
    parameters: int
    rounds: int
    seconds: float
    peak_bytes: int
    distance: float
    """S at the end over S at the start."""
    bias: float


def simulations(peers: int) -> list[tuple[Strategy[Any], Topology, float]]:
    """What is measured."""
    square = topology.torus(peers)
    return [
        (DPsgd(), topology.exponential(peers), 0.0),
        (DPsgd(), topology.one_peer_exponential(peers), 0.0),
        (PushSum(), topology.one_peer_exponential(peers), 0.0),
        (PushSum(), topology.one_peer_exponential(peers // 10), 0.1),  # totals of all links: 14 x as much to hold
        (PairwiseExchange(), topology.random_matching(peers), 0.0),
        (Compressed(Int8(), Choco()), square, 0.0),
    ]


def one(number: int, peers: int, parameters: int, rounds: int) -> Row:
    """Run simulation `number` in this process."""
    strategy, links, loss = simulations(peers)[number]
    began = time.perf_counter()
    result = simulate(links, strategy, parameters=parameters, rounds=rounds, loss=loss)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    last = result.records[-1]
    relative = last.distance / result.start.distance
    return Row(repr(strategy), links.name, loss, links.peers, parameters, rounds, seconds, peak, relative, last.bias)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="900 peers and 20 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--check", action="store_true", help="hold the figures against the targets")
    options = parser.parse_args()
    peers, parameters, rounds = (900, 20, 20) if options.quick else (10_000, 100, 200)
    context = multiprocessing.get_context("spawn")
    rows = []
    for number in range(len(simulations(90))):
        with context.Pool(1) as pool:
            rows.append(pool.apply(one, (number, peers, parameters, rounds)))
    table = Table(title=f"{parameters} parameters x {rounds} rounds")
    for name in ("strategy", "topology", "peers", "loss", "seconds", "x D-PSGD", "peak MB", "S / S0", "bias"):
        table.add_column(name, justify="left" if name in ("strategy", "topology") else "right")
    for row in rows:
        table.add_row(
            row.strategy,
            row.topology,
            f"{row.peers:,}",
            f"{row.loss:g}",
            f"{row.seconds:.1f}",
            f"{row.seconds / rows[0].seconds:.1f}",
            f"{row.peak_bytes / 1e6:.0f}",
            f"{row.distance:.1e}",
            f"{row.bias:.1e}",
        )
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
    short = []
    if rows[0].seconds > SECONDS_MAX:
        short.append(f"{rows[0].seconds:.0f} s, target {SECONDS_MAX:.0f} s")
    if rows[0].peak_bytes > BYTES_MAX:
        short.append(f"{rows[0].peak_bytes / 1e9:.1f} GB, target {BYTES_MAX / 1e9:.0f} GB")
    for line in short if options.check else []:
        print(f"short of the target: {line}", file=sys.stderr)
    return 1 if options.check and short else 0


if __name__ == "__main__":
    sys.exit(main())
