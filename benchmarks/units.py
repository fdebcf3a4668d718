"""What a long training costs a peer: ten million units of work, most of them of others.

    python -m benchmarks.units [--quick] [--json FILE] [--check]

One peer of three publishes a tenth of the units and takes in the others' in ranges of ten; all are of one epoch, which
is the worst case, since a training that has drained leaves nothing behind. `chunks` are of 1000 partitions, each in
order. `continuous` ones are of 60 partitions, by the rows that were trained, some 977 apart but never quite. The first
tenth is held against the last. At the end the epoch is closed, and dropped.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gossip.arrays import Packed
from gossip.events import Closed, Computed, Joined, Received, Send, Started, Ticked
from gossip.identity import Identities
from gossip.lanes.peer import Peer
from gossip.marks import packed
from gossip.messages import Advert, Mark, PeerId, Range, State, StateRequest, Unit
from gossip.wire import body_bytes, decode, encode

UNITS = 10_000_000
QUICK_UNITS = 200_000
PART = 10
"""The first and the last so many-th are compared."""
WORKERS = 10
RANGE = 10
"""Units of others that come at once."""
CHUNK_BYTES_MAX = 1.0
CONTINUOUS_BYTES_MAX = 24.0
"""Targets: memory of the peer for each unit."""
HEADER_BYTES_MAX = 4096
STATUS_MS_MAX = 1.0
SLOWER_MAX = 1.5
"""Targets: the header of a replica, the figures of a status, the last million against the first."""
ME, OTHERS = PeerId("m" * 32), (PeerId("a" * 32), PeerId("b" * 32))
UPDATE = Packed.of({"w": np.ones(3)})


@dataclass(frozen=True)
class Figures:
    """Of one peer, when all units have come."""

    kind: str
    units: int
    peer_bytes: int
    runs: int
    header_bytes: int
    marks_bytes: int
    """Of a replica, behind its arrays."""
    state_s: float
    """To make one, with its frames."""
    adopted_s: float
    """To read one, checked, and to know what it says."""
    status_ms: float
    first_us: float
    last_us: float
    """Processor time of a unit, in the first part and in the last."""
    dropped_bytes: int
    """Memory of the peer when the epoch is dropped."""


def chunks(count: int, worker: int) -> Iterator[Unit]:
    """What one worker of ten computes: 100 partitions, one after the other."""
    for partition in range(worker, 1000, WORKERS):
        for chunk in range(-(-count // 1000)):
            yield Unit(0, partition, chunk)


def continuous(count: int, worker: int) -> Iterator[Unit]:
    """The same of 6 partitions, by the rows that are trained."""
    chance = random.Random(worker)
    for partition in range(worker, 60, WORKERS):
        trained = 0
        for _ in range(-(-count // 60)):
            trained += 900 + int(chance.random() * 154)
            yield Unit(0, partition, trained)


def measured(kind: str, count: int) -> Figures:
    """Play `count` units to a peer."""
    units = [{"chunks": chunks, "continuous": continuous}[kind](count, worker) for worker in range(WORKERS)]
    peer = Peer(ME, UPDATE.layout, chance=random.Random(0))
    for other in OTHERS:
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    gc.collect()
    begun_with = weight(peer)
    seconds: list[float] = []
    now = 0.0
    numbers = dict.fromkeys(OTHERS, 0)
    for _ in range(PART):
        spent = 0.0
        for _ in range(count // PART // (WORKERS * RANGE)):
            now += 1.0
            events: list[Computed | Received] = [Computed(UPDATE, next(units[0])) for _ in range(RANGE)]
            for worker in range(1, WORKERS):
                lane = OTHERS[worker % 2]
                marks = packed([Mark(next(units[worker]), 0) for _ in range(RANGE)])
                first = numbers[lane] + 1
                numbers[lane] += RANGE
                events.append(Received(Range(lane, first, numbers[lane], 1, marks, UPDATE.layout, UPDATE)))
            begin = time.process_time()
            for event in events:
                peer.handle(event, now)
            for lane in OTHERS:
                peer.handle(Received(Advert(lane, numbers[lane], {ME: peer.replicator.n}, k=1)), now)
            spent += time.process_time() - begin
        seconds.append(spent)
    known = peer.identities
    milliseconds = min(timed(lambda: known.units) for _ in range(5)) * 1e3
    begin = time.process_time()
    request = StateRequest(OTHERS[0], 1, {}, OTHERS)
    (sent,) = [effect for effect in peer.handle(Received(request), now) if isinstance(effect, Send)]
    frames = encode(sent.message, UPDATE)
    state_s = time.process_time() - begin
    begin = time.process_time()
    state = decode(frames)
    assert isinstance(state, State)
    adopted = Identities.told(state.marks, state.closed, state.units)
    adopted_s = time.process_time() - begin
    assert (adopted.units, adopted.runs) == (known.units, known.runs)
    assert known.units == count
    marks_bytes = sum(len(frame) for frame in frames[2::2]) - body_bytes(Range(ME, 1, 1, 1, layout=UPDATE.layout))
    header_bytes, runs = len(frames[0]), known.runs
    peer_bytes = weight(peer) - begun_with
    peer.handle(Closed(1), now)
    for lane in OTHERS:
        peer.handle(Received(Advert(lane, numbers[lane], peer.replicator.frontiers(), k=1)), now + 1)
    peer.handle(Ticked(), now + 5)
    assert peer.identities.runs == 0
    return Figures(
        kind,
        known.units,
        peer_bytes,
        runs,
        header_bytes,
        marks_bytes,
        state_s,
        adopted_s,
        milliseconds,
        seconds[0] / (count // PART) * 1e6,
        seconds[-1] / (count // PART) * 1e6,
        weight(peer) - begun_with,
    )


def timed(action: Callable[[], object]) -> float:
    """Processor time, in seconds."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def weight(root: object) -> int:
    """Bytes of all objects that can be reached from `root`, but for types, modules and functions."""
    seen: set[int] = set()
    total, rest = 0, [root]
    while rest:
        thing = rest.pop()
        if id(thing) in seen or isinstance(thing, (type, type(sys), type(timed))):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        rest += gc.get_referents(thing)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_UNITS} units of each kind")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    count = QUICK_UNITS if arguments.quick else UNITS
    rounds = [measured(kind, count) for kind in ("chunks", "continuous")]
    table = Table(title=f"a peer that knows {count} units of one epoch")
    table.add_column("")
    for figures in rounds:
        table.add_column(figures.kind, justify="right")
    for name, text in (
        ("memory of the peer, MB", lambda f: f"{f.peer_bytes / 1e6:.2f}"),
        ("bytes a unit", lambda f: f"{f.peer_bytes / f.units:.2f}"),
        ("the same when the epoch is dropped, MB", lambda f: f"{f.dropped_bytes / 1e6:.2f}"),
        ("header of a replica, bytes", lambda f: str(f.header_bytes)),
        ("marks behind its arrays, MB", lambda f: f"{f.marks_bytes / 1e6:.2f}"),
        ("to make it / to read it, s", lambda f: f"{f.state_s:.3f} / {f.adopted_s:.3f}"),
        ("figures of a status, ms", lambda f: f"{f.status_ms:.4f}"),
        ("a unit in the first / last tenth, us", lambda f: f"{f.first_us:.2f} / {f.last_us:.2f}"),
    ):
        table.add_row(name, *(text(figures) for figures in rounds))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figures) for figures in rounds], indent=1))
    missed = []
    for figures, most in zip(rounds, (CHUNK_BYTES_MAX, CONTINUOUS_BYTES_MAX), strict=True):
        for what, seen, target in (
            ("bytes a unit", figures.peer_bytes / figures.units, most if not arguments.quick else 10 * most),
            ("bytes of a header", figures.header_bytes, HEADER_BYTES_MAX),
            ("ms of a status", figures.status_ms, STATUS_MS_MAX),
            ("times as slow in the end", figures.last_us / figures.first_us, SLOWER_MAX),
        ):
            if seen > target:
                missed.append(f"{figures.kind}: {seen:.3f} {what}, target {target:g}")
    if arguments.check and missed:
        print("\n".join(f"missed: {text}" for text in missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
