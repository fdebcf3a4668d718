"""How many words a second would 1 to 64 hosts train together? Costs of one peer are measured, hosts are modelled.

Measured here, in one process: words a second of word2vec's training (68,000 words x 100, 54 MB), and from
`benchmarks.path` what an exchange costs at two intervals: rows, bytes, and processor time of the worker, of the log, of
serving a range and of merging one. Between and beyond the two intervals rows follow a power of the training time that
an update holds, and times a straight line in rows.

Modelled, in virtual time: N hosts, each with one core and a network card of 1 or 10 Gbit/s in both directions at once.
Everybody reads everybody's lane. A task trains for the interval and publishes; its agent and the task share the core
fairly. A range waits for its turn in the origin's card and in the reader's; a reader has as many pulls under way as an
agent has, and a reader that is behind gets the sum of what it lacks. Codecs differ in bytes only, but for whole arrays,
whose merging is measured: rows in int8 with exponents (as they travel), rows in float32, and the whole model.
Left out: losses, switches between hosts, several tasks of a host, and what staleness does to learning.

    python -m benchmarks.scaling [--quick] [--path FILE] [--check] [--json FILE]

`--path` takes the figures that `benchmarks.path --json` wrote in place of measuring them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HOSTS = (1, 2, 4, 8, 16, 32, 64)
INTERVALS_S = (0.05, 0.5, 5.0)
GBITS = (1, 10)
LATENCY_S = 0.001
"""From a message's end to what it causes, without queues: switch, kernel, and a turn of the agent's loop."""
INTERVALS_SIMULATED = 24
"""Simulated time, in intervals; the first third, in which nothing is full yet, is not counted."""
BEHIND = 1.5
"""Updates in a range: readers lag behind."""
FULL = 0.8
"""A card or core that is used so much is what others wait for."""
HOSTS_BEAT = (8, 16)
"""Target: the second trains more words a second than the first, with the default codec and interval."""
DEFAULT = ("int8 rows", 0.5, 10)


@dataclass(frozen=True)
class Cost:
    """One update or range: rows, bytes on the wire, and seconds of processor time."""

    rows: float
    nbytes: float
    worker_s: float
    """Schedule, merge, encode and hand over, in the task."""
    own_s: float
    """Keep and merge, in the origin's agent."""
    send_s: float
    """Serving one range to one reader."""
    merge_s: float
    """Receiving, checking and merging one range."""


@dataclass(frozen=True)
class Costs:
    """What was measured of one peer."""

    words_per_s: float
    model_bytes: float
    rows_max: float
    intervals_s: tuple[float, float]
    measured: tuple[Cost, Cost]
    whole: Cost
    """Of an update of the whole model."""

    def of(self, training_s: float, codec: str) -> Cost:
        """An update, or a sum of several, that holds `training_s` seconds of training."""
        if codec == "whole model":
            return self.whole
        one, other = self.measured
        power = math.log(other.rows / one.rows) / math.log(self.intervals_s[1] / self.intervals_s[0])
        rows = min(self.rows_max, one.rows * (training_s / self.intervals_s[0]) ** power)
        cost = Cost(*(_line(rows, one, other, name) for name in Cost.__dataclass_fields__))
        if codec == "float32 rows":
            # a row has 4 bytes of number and 1 a dimension and 1 of exponent; without, 4 a dimension
            row_bytes = cost.nbytes / rows
            return replace(cost, nbytes=rows * (4 + 4 * (row_bytes - 5)))
        return cost


CODECS = ("int8 rows", "float32 rows", "whole model")


def _line(rows: float, one: Cost, other: Cost, name: str) -> float:
    """The straight line through two measurements, and never less than in proportion from the nearer one below."""
    low, high = getattr(one, name), getattr(other, name)
    value = low + (high - low) * (rows - one.rows) / (other.rows - one.rows)
    return max(float(value), low * min(1.0, rows / one.rows))


@dataclass(frozen=True)
class Network:
    """Of every host."""

    gbits: float
    latency_s: float = LATENCY_S
    pulls_max: int = 8


@dataclass
class Host:
    """Where its servers stand, in virtual time, and what was counted."""

    lane: deque[float] = field(default_factory=deque)
    """When each of its updates was published."""
    frontiers: dict[int, int] = field(default_factory=dict)
    pulling: set[int] = field(default_factory=set)
    waiting: deque[int] = field(default_factory=deque)
    """Origins that are ahead and wait for one of the pulls."""
    train_end: float = 0.0
    agent_free: float = 0.0
    in_free: float = 0.0
    out_free: float = 0.0
    trained_s: float = 0.0
    agent_s: float = 0.0
    in_s: float = 0.0
    out_s: float = 0.0
    full_s: float = 0.0
    """How long as many pulls as it may have were under way, and others waited."""
    full_since: float | None = None


@dataclass(frozen=True)
class Result:
    """What N hosts do together. Shares are of a host's time, on average."""

    hosts: int
    words_per_s: float
    efficiency: float
    """Of N times one host that trains alone and exchanges with nobody."""
    cpu: float
    """Of the core, for exchanging."""
    inward: float
    outward: float
    pulls: float
    """With all pulls under way and more origins waiting: cards may idle while many readers wait for the same origin."""
    summed: float
    """Updates in one range, on average."""
    age_s: float
    """From publishing to being merged, the median."""

    @property
    def limit(self) -> str:
        """What is used most, and so gives out first. Only the core takes from training; the rest takes longer."""
        shares = {"merge CPU": self.cpu, "in-bandwidth": self.inward, "out-bandwidth": self.outward}
        most = max(shares, key=lambda name: shares[name])
        return "pulls" if self.summed >= BEHIND and shares[most] < min(FULL, self.pulls) else most


class Simulation:
    """N hosts that all read each other, with events in a heap."""

    def __init__(
        self, hosts: int, interval_s: float, codec: str, costs: Costs, network: Network, seed: int = 0
    ) -> None:
        self.costs, self.network, self.interval_s, self.codec = costs, network, interval_s, codec
        self.chance = random.Random(seed)
        self.hosts = [Host(frontiers=dict.fromkeys(range(hosts), 0)) for _ in range(hosts)]
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._cost: dict[int, Cost] = {}
        self._counting = False
        self._summed: list[int] = []
        self._ages: list[float] = []

    def run(self, intervals: int = INTERVALS_SIMULATED) -> Result:
        """Simulate so many intervals; what is counted begins after a third."""
        for index, host in enumerate(self.hosts):
            # hosts are not in step
            host.train_end = self.interval_s * self.chance.random()
            self._at(host.train_end, lambda index=index: self._trained(index))
        begin, end = intervals * self.interval_s / 3, intervals * self.interval_s
        self._at(begin, self._count)
        while self._events and self._events[0][0] <= end:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return self._result(end - begin)

    def _result(self, seconds: float) -> Result:
        count = len(self.hosts)
        for host in self.hosts:
            host.full_s += 0.0 if host.full_since is None else self.now - host.full_since

        def share(name: str) -> float:
            return sum(getattr(host, name) for host in self.hosts) / count / seconds

        words = sum(host.trained_s for host in self.hosts) / seconds * self.costs.words_per_s
        return Result(
            hosts=count,
            words_per_s=words,
            efficiency=words / (count * self.costs.words_per_s),
            cpu=share("agent_s"),
            inward=share("in_s"),
            outward=share("out_s"),
            pulls=share("full_s"),
            summed=statistics.fmean(self._summed) if self._summed else 0.0,
            age_s=statistics.median(self._ages) if self._ages else 0.0,
        )

    def _count(self) -> None:
        self._counting = True
        for host in self.hosts:
            host.trained_s = host.agent_s = host.in_s = host.out_s = host.full_s = 0.0
            host.full_since = None if host.full_since is None else self.now

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, happen))

    def cost(self, updates: int) -> Cost:
        """Of a range of so many updates."""
        if updates not in self._cost:
            self._cost[updates] = self.costs.of(updates * self.interval_s, self.codec)
        return self._cost[updates]

    def _work(self, index: int, seconds: float) -> float:
        """The agent's next piece of work; returns when it is done. The task has half of the core meanwhile."""
        host = self.hosts[index]
        host.agent_free = max(self.now, host.agent_free) + 2 * seconds
        host.train_end += seconds
        host.agent_s += seconds
        return host.agent_free

    def _trained(self, index: int) -> None:
        """The task has trained for an interval, unless the agent took of its time."""
        host = self.hosts[index]
        if self.now < host.train_end:
            self._at(host.train_end, lambda: self._trained(index))
            return
        host.trained_s += self.interval_s
        cost = self.cost(1)
        host.agent_s += cost.worker_s
        host.train_end = self.now + cost.worker_s + self.interval_s
        self._at(host.train_end, lambda: self._trained(index))
        if len(self.hosts) > 1:
            self._at(self._work(index, cost.own_s), lambda: self._publish(index))

    def _publish(self, index: int) -> None:
        self.hosts[index].lane.append(self.now)
        for reader in range(len(self.hosts)):
            if reader != index:
                self._at(self.now + self.network.latency_s, lambda reader=reader: self._heard(reader, index))

    def _heard(self, reader: int, origin: int) -> None:
        host = self.hosts[reader]
        if origin not in host.pulling and origin not in host.waiting:
            host.waiting.append(origin)
            self._pull(reader)

    def _pull(self, reader: int) -> None:
        host = self.hosts[reader]
        while host.waiting and len(host.pulling) < self.network.pulls_max:
            origin = host.waiting.popleft()
            host.pulling.add(origin)
            self._at(self.now + self.network.latency_s, lambda origin=origin: self._serve(origin, reader))
        if host.full_since is not None:
            host.full_s += self.now - host.full_since
        host.full_since = self.now if host.waiting else None

    def _serve(self, origin: int, reader: int) -> None:
        after, through = self.hosts[reader].frontiers[origin], len(self.hosts[origin].lane)
        cost = self.cost(through - after)
        self._at(self._work(origin, cost.send_s), lambda: self._send(origin, reader, through, cost))

    def _send(self, origin: int, reader: int, through: int, cost: Cost) -> None:
        """Through both cards; the reader's takes it in while the origin's still sends."""
        source, target = self.hosts[origin], self.hosts[reader]
        seconds = cost.nbytes * 8 / (self.network.gbits * 1e9)
        begin = max(self.now, source.out_free)
        source.out_free = begin + seconds
        target.in_free = max(begin + self.network.latency_s, target.in_free) + seconds
        source.out_s += seconds
        target.in_s += seconds
        self._at(
            max(target.in_free, source.out_free + self.network.latency_s),
            lambda: self._at(self._work(reader, cost.merge_s), lambda: self._merged(origin, reader, through)),
        )

    def _merged(self, origin: int, reader: int, through: int) -> None:
        host = self.hosts[reader]
        after, lane = host.frontiers[origin], self.hosts[origin].lane
        if self._counting:
            self._summed.append(through - after)
            self._ages += [self.now - lane[number] for number in range(after, through)]
        host.frontiers[origin] = through
        host.pulling.discard(origin)
        if len(lane) > through:
            host.waiting.append(origin)
        self._pull(reader)


def measure(path: list[dict[str, Any]] | None, quick: bool) -> Costs:
    """One peer's costs, of `benchmarks.path`'s figures, or of a short run of it."""
    from benchmarks.path import ROW_WORDS, SETTINGS, Way, gradient_in_place, zipf_model

    model, rows = zipf_model()
    if path is None:
        path = []
        for interval_s, _ in SETTINGS:
            medians = Way(model, "sum").run(rows, interval_s, 4 if quick else 12)
            path.append({"interval_s": interval_s, **medians})
    piece = rows[: 300 if quick else 1500]
    gradient_in_place(model, piece[:1])  # the kernel is loaded, or compiled
    begin = time.process_time()
    gradient_in_place(model, piece)
    words_per_s = len(piece) * ROW_WORDS / (time.process_time() - begin)
    return costs_of(path, words_per_s, _whole_s(model))


def costs_of(path: list[dict[str, Any]], words_per_s: float, whole: Cost) -> Costs:
    """From the figures of `benchmarks.path`, at two intervals."""
    if len(path) != 2:
        raise SystemExit(f"figures of {len(path)} intervals, expected two: python -m benchmarks.path --json FILE")
    one, other = (
        Cost(
            rows=figures["rows"],
            nbytes=figures["bytes"],
            worker_s=figures["schedule, merge, encode"] + figures["hand over"],
            own_s=figures["keep"] + figures["merge own"],
            send_s=figures["send"],
            merge_s=figures["receive, check"] + figures["merge other"],
        )
        for figures in sorted(path, key=lambda figures: float(figures["interval_s"]))
    )
    intervals = sorted(float(figures["interval_s"]) for figures in path)
    return Costs(words_per_s, whole.nbytes, whole.rows, (intervals[0], intervals[1]), (one, other), whole)


def _whole_s(model: Any) -> Cost:
    """An update of the whole model: what copying, sending and adding it takes, the median of five."""
    from gossip.arrays import Layout, Packed
    from gossip.messages import PeerId, Range
    from gossip.wire import decode, encode
    from p2p.adapters.model import Model
    from p2p.agent.replica import Replica

    arrays = Model(model).arrays()
    layout = Layout.of(arrays)
    packed, replica = Packed.of(arrays), Replica(layout)
    taken: dict[str, list[float]] = {"copy": [], "send": [], "receive": [], "merge": []}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = step()
        taken[name].append(time.process_time() - begin)
        return result

    for _ in range(5):
        timed("copy", lambda: replica.replace(packed))
        frames = timed("send", lambda: encode(Range(PeerId("a"), 1, 1, 1), packed))
        received = timed("receive", lambda: decode(frames))  # noqa: B023 - called at once
        timed("receive", lambda: received.payload.is_finite)  # noqa: B023
        timed("merge", lambda: replica.add(received.payload))  # noqa: B023
    replica.close()
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    receive = sum(taken["receive"]) / 5
    rows = float(sum(spec.shape[0] for spec in layout.specs if len(spec.shape) == 2))
    # the worker copies the model, takes the difference and hands it over: three passes like a copy
    return Cost(rows, layout.nbytes, 3 * median["copy"], median["merge"], median["send"], receive + median["merge"])


def show(results: dict[tuple[str, float, int], list[Result]]) -> None:
    """Print the words a second of all settings, and what limits 64 hosts."""
    most = max(HOSTS)
    table = Table(
        title="thousands of words a second, modelled; and of the most hosts, what they do and what limits them"
    )
    for column in ("codec", "interval s", "Gbit/s", *map(str, HOSTS), "efficiency", "limit"):
        table.add_column(column, justify="right")
    for column in ("CPU", "in", "out", "pulls", "updates a range", "age s"):
        table.add_column(column, justify="right")
    for (codec, interval_s, gbits), row in results.items():
        last = row[-1]
        assert last.hosts == most
        words = [f"{result.words_per_s / 1e3:,.0f}" for result in row]
        shares = [f"{share:.0%}" for share in (last.cpu, last.inward, last.outward, last.pulls)]
        table.add_row(
            codec, f"{interval_s:g}", str(gbits), *words, f"{last.efficiency:.0%}", last.limit, *shares,
            f"{last.summed:.1f}", f"{last.age_s:.2f}",
        )  # fmt: skip
    Console(width=max(180, Console().width)).print(table)


def shortfalls(results: dict[tuple[str, float, int], list[Result]]) -> list[str]:
    """What falls short of the target, in words."""
    by_hosts = {result.hosts: result.words_per_s for result in results[DEFAULT]}
    fewer, more = HOSTS_BEAT
    if by_hosts[more] > by_hosts[fewer]:
        return []
    return [f"missed: {more} hosts train {by_hosts[more]:,.0f} words a second, {fewer} train {by_hosts[fewer]:,.0f}"]


def main() -> int:
    """Measure, simulate all settings, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter measurements, and only the default interval")
    parser.add_argument("--path", metavar="FILE", type=Path, help="figures of benchmarks.path --json")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if the target is missed")
    arguments = parser.parse_args()
    known = json.loads(arguments.path.read_text()) if arguments.path else None
    costs = measure(known and [figures for figures in known if "interval_s" in figures], arguments.quick)
    print(f"one host alone: {costs.words_per_s:,.0f} words a second")
    for interval_s, cost in zip(costs.intervals_s, costs.measured, strict=True):
        print(
            f"an update of {interval_s:g} s: {cost.rows:,.0f} rows, {cost.nbytes / 1e3:,.0f} kB; worker "
            f"{1e3 * cost.worker_s:.1f} ms, own {1e3 * cost.own_s:.1f}, send {1e3 * cost.send_s:.1f}, "
            f"merge {1e3 * cost.merge_s:.1f}"
        )
    pulls_max = pulls_of_an_agent(costs.model_bytes)
    results = {
        (codec, interval_s, gbits): [
            Simulation(hosts, interval_s, codec, costs, Network(gbits, pulls_max=pulls_max)).run() for hosts in HOSTS
        ]
        for codec in CODECS
        for interval_s in ((DEFAULT[1],) if arguments.quick else INTERVALS_S)
        for gbits in GBITS
    }
    show(results)
    if arguments.json:
        rows = [
            {"codec": codec, "interval_s": interval_s, "gbits": gbits, "hosts": [asdict(result) for result in row]}
            for (codec, interval_s, gbits), row in results.items()
        ]
        arguments.json.write_text(json.dumps({"costs": asdict(costs), "results": rows}, indent=1))
    missed = shortfalls(results)
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def pulls_of_an_agent(model_bytes: float) -> int:
    """How many pulls an agent has under way for a model of this size."""
    from p2p.agent.lanes import PAYLOADS_BYTES_MAX

    return max(1, int(PAYLOADS_BYTES_MAX // model_bytes))


if __name__ == "__main__":
    sys.exit(main())
