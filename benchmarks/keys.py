"""What authentication and encryption cost agents: the same exchange with keys and without, in turns.

    python -m benchmarks.keys [--quick] [--json FILE] [--check]

Three agents, of which two publish, over files of one host and over sockets alone, as those of several hosts have them.
The named peer is the exchange without keys, which no session can be told to do.

    throughput     bytes of updates, over the seconds until all replicas have all
    latency        from handing an update of 4 kB over until it is merged at another agent, of one at a time
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.exchange import Swarm

PUBLISHERS, AGENTS = 2, 3
LARGE_BYTES, SMALL_BYTES = 16_000_000, 4000
FILES_COST_MAX = 0.03
"""Target: share of the throughput of large updates that keys may take where they go as files."""
TIMEOUT_S = 30.0


@dataclass
class Side:
    """One of the four, by size: seconds of each round."""

    name: str
    links: bool
    keys: bool
    large_s: list[float] = field(default_factory=list)
    small_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)


def exchange(swarm: Swarm, updates: int) -> float:
    """Seconds until all replicas have so many updates of each publisher."""
    begin = time.perf_counter()
    swarm.publish(PUBLISHERS, updates)
    swarm._drain()
    return time.perf_counter() - begin


def latencies(swarm: Swarm, updates: int) -> list[float]:
    """Of single updates: each is merged elsewhere before the next one is handed over."""
    publisher, reader = swarm.agents[0], swarm.agents[-1]
    found = []
    for _ in range(updates):
        publisher.hand_over().arrays()["w"][...] = 1
        before, begin = reader.replica.merged, time.perf_counter()
        publisher.publish(publisher.hand_over(), publisher.replica.merged)
        while reader.replica.merged == before:
            assert time.perf_counter() < begin + TIMEOUT_S, "an update did not come"
        found.append(time.perf_counter() - begin)
        swarm.sum += 1
    return found


def measure(rounds: int, large: int, small: int) -> list[Side]:
    """All sides, round by round."""
    sides = [Side(f"{way}, {said}", way == "files", said == "keys") for way in ("files", "sockets") for said in WAYS]
    swarms = [
        [Swarm(nbytes // 4, AGENTS, side.links, side.keys) for nbytes in (LARGE_BYTES, SMALL_BYTES)] for side in sides
    ]
    try:
        for number in range(rounds + 1):
            for side, (bulk, little) in zip(sides, swarms, strict=True):
                found = exchange(bulk, large), exchange(little, small), latencies(little, small)
                if number:  # what has to grow, and connections, are there
                    side.large_s.append(found[0])
                    side.small_s.append(found[1])
                    side.latency_s += found[2]
        for pair in swarms:
            for swarm in pair:
                assert all(np.all(agent.replica.arrays()["w"] == swarm.sum) for agent in swarm.agents), "not exact"
    finally:
        for pair in swarms:
            for swarm in pair:
                swarm.close()
    return sides


WAYS = ("keys", "none")


def ratio(sides: list[Side], links: bool, figure: str) -> float:
    """Median seconds without keys over those with them, pair by pair: 1 where keys cost nothing."""
    with_keys, without = (
        next(getattr(side, figure) for side in sides if side.links == links and side.keys == keys)
        for keys in (True, False)
    )
    return statistics.median(bare / sealed for sealed, bare in zip(with_keys, without, strict=True))


def main() -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and updates")
    parser.add_argument("--check", action="store_true", help="exit 1 if keys cost more than the target")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    rounds, large, small = (2, 4, 30) if arguments.quick else (9, 16, 300)
    sides = measure(rounds, large, small)
    print(f"{'':20}{'16 MB: MB/s':>14}{'4 kB: updates/s':>18}{'latency ms':>13}{'p95':>8}")
    for side in sides:
        late = sorted(side.latency_s)
        print(
            f"{side.name:20}{PUBLISHERS * large * LARGE_BYTES / 1e6 / statistics.median(side.large_s):>14.0f}"
            f"{PUBLISHERS * small / statistics.median(side.small_s):>18.0f}"
            f"{1e3 * statistics.median(late):>13.2f}{1e3 * late[int(0.95 * len(late))]:>8.2f}"
        )
    print("\nthroughput and latency with keys, those without are 1")
    for links in (True, False):
        found = [ratio(sides, links, figure) for figure in ("large_s", "small_s", "latency_s")]
        print(f"{'files' if links else 'sockets':20}{found[0]:>14.3f}{found[1]:>18.3f}{1 / found[2]:>13.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(side) for side in sides], indent=1))
    cost = 1 - ratio(sides, True, "large_s")
    if arguments.check and cost > FILES_COST_MAX:
        print(f"missed: keys cost {cost:.1%} of what goes as files, target {FILES_COST_MAX:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
