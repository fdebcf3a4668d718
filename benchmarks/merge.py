"""64 MB of float32 exchanged and merged between two agents, next to hivemind's averager and torch's gloo all-reduce.

Each of two processes has 64 MB that the other wants added to its own. A round ends when both have both. In turns, one
round of each, and the medians are compared:

    agents      two updates are handed over at the same time; both replicas have both (exactly once, checked, kept for
                readers that come later)
    gloo        torch.distributed.all_reduce over TCP on loopback: a sum, all or nothing, with both waiting
    hivemind    DecentralizedAverager.step of a group of two, over TCP on loopback
    add         numpy adds 64 MB to 64 MB in memory: the least that a merge can cost

    pip install 'deepdist-p2p[bench]'     (torch is wanted as its build for CPUs)
    python -m benchmarks.merge [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.exchange import Swarm

MEGABYTES, MEGABYTES_QUICK = 64, 8
REPEATS, REPEATS_QUICK = 7, 3
HIVEMIND_RATIO_MIN = 5.0
"""Target: how many times as fast as hivemind."""
GLOO_RATIO_MIN = 0.7
"""Target: of gloo's speed."""
TIMEOUT_S = 60.0

Round = Callable[[], float]
"""Exchanges once; returns seconds."""


def main() -> int:
    """Take turns, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{MEGABYTES_QUICK} MB, {REPEATS_QUICK} rounds")
    parser.add_argument("--repeats", type=int, help=f"rounds of each side (default {REPEATS})")
    parser.add_argument("--without", action="append", default=[], choices=["gloo", "hivemind"], help="leave a side out")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    floats = (MEGABYTES_QUICK if arguments.quick else MEGABYTES) * (1 << 20) // 4
    repeats = arguments.repeats or (REPEATS_QUICK if arguments.quick else REPEATS)
    with ExitStack() as stack:
        sides: dict[str, Round] = {"add": adding(floats), "agents": stack.enter_context(agents(floats))}
        for name, work in (("gloo", _gloo), ("hivemind", _hivemind)):
            if name not in arguments.without:
                sides[name] = stack.enter_context(pair(work, floats))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(repeats + 1):
            for name, side in sides.items():
                taken = side()
                if number:  # the first round of each warms it up
                    seconds[name].append(taken)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, value in median.items():
        low, high = min(seconds[name]), max(seconds[name])
        ratio = "" if name == "agents" else f"   agents' speed / its speed {value / median['agents']:.2f}"
        print(f"{name:<10}{1e3 * value:>9.1f} ms   ({1e3 * low:.1f} to {1e3 * high:.1f}){ratio}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"floats": floats, "seconds": seconds}, indent=1))
    missed = list(shortfalls(median))
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


def shortfalls(median: dict[str, float]) -> Iterator[str]:
    """What falls short of the targets, in words."""
    for name, least in (("hivemind", HIVEMIND_RATIO_MIN), ("gloo", GLOO_RATIO_MIN)):
        if name in median and median[name] / median["agents"] < least:
            yield f"missed: {median[name] / median['agents']:.2f} of the speed of {name}, expected {least:g}"


def adding(floats: int) -> Round:
    """One array added to another, in memory."""
    target, source = np.zeros(floats, np.float32), np.ones(floats, np.float32)

    def round() -> float:
        begin = time.perf_counter()
        np.add(target, source, out=target)
        return time.perf_counter() - begin

    return round


@contextmanager
def agents(floats: int) -> Iterator[Round]:
    """Two agents; each is handed one update, and a round ends when both replicas hold both."""
    swarm = Swarm(floats, 2)
    try:
        for agent in swarm.agents:
            agent.hand_over().arrays()["w"][...] = 1.0
        expected = 0

        def round() -> float:
            nonlocal expected
            expected += 2
            begin = time.perf_counter()
            threads = [
                threading.Thread(target=agent.publish, args=(agent.hand_over(), agent.replica.merged))
                for agent in swarm.agents
            ]
            for thread in threads:
                thread.start()
            while any(agent.replica.merged < expected for agent in swarm.agents):
                if time.perf_counter() > begin + TIMEOUT_S:
                    raise TimeoutError(f"replicas have {[agent.replica.merged for agent in swarm.agents]} updates")
                time.sleep(2e-4)
            seconds = time.perf_counter() - begin
            for thread in threads:
                thread.join()
            for agent in swarm.agents:
                with agent.replica.reading():
                    found = agent.replica.arrays()["w"][:: max(1, floats // 1000)]
                    assert np.all(found == expected), f"a replica holds {found}, expected {expected}"
            time.sleep(0.1)  # the observer has its turn too, and is no side
            return seconds

        yield round
    finally:
        swarm.close()


@contextmanager
def pair(work: Callable[[int, int, Connection, Any], None], floats: int) -> Iterator[Round]:
    """Two processes that run `work(rank, floats, connection, address)`: a message to each begins a round."""
    context = multiprocessing.get_context("spawn")
    meeting = context.Queue()
    connections, processes = [], []
    for rank in range(2):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(rank, floats, theirs, meeting))
        process.start()
        theirs.close()
        connections.append(mine)
        processes.append(process)
    for connection in connections:
        _answer(connection)

    def round() -> float:
        for connection in connections:
            connection.send(True)
        return max(_answer(connection) for connection in connections)

    try:
        yield round
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _answer(connection: Connection) -> float:
    if not connection.poll(TIMEOUT_S):
        raise TimeoutError(f"a process did not answer within {TIMEOUT_S:g} s")
    return float(connection.recv())


def _serve(connection: Connection, exchange: Callable[[], None]) -> None:
    connection.send(0.0)
    try:
        while connection.recv():
            begin = time.perf_counter()
            exchange()
            connection.send(time.perf_counter() - begin)
    except EOFError:
        pass


def _gloo(rank: int, floats: int, connection: Connection, meeting: Any) -> None:
    import torch
    import torch.distributed as distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if rank == 0:
        store = distributed.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        meeting.put(store.port)
    else:
        store = distributed.TCPStore("127.0.0.1", meeting.get(timeout=TIMEOUT_S), 2, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    tensor = torch.ones(floats)
    _serve(connection, lambda: distributed.all_reduce(tensor))
    distributed.destroy_process_group()


def _hivemind(rank: int, floats: int, connection: Connection, meeting: Any) -> None:
    import hivemind
    import torch
    from hivemind.averaging import DecentralizedAverager
    from hivemind.utils import get_dht_time

    multiprocessing.set_start_method("fork", force=True)  # as hivemind has it; a spawned process would go on spawning
    torch.set_num_threads(1)
    if rank == 0:
        dht = hivemind.DHT(start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
        meeting.put([str(address) for address in dht.get_visible_maddrs()])
    else:
        dht = hivemind.DHT(
            start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=meeting.get(timeout=TIMEOUT_S)
        )
    averager = DecentralizedAverager(
        [torch.ones(floats)],
        dht,
        prefix="merge",
        target_group_size=2,
        min_matchmaking_time=0.5,
        request_timeout=0.4,
        start=True,
    )

    def exchange() -> None:
        for _ in range(10):
            control = averager.step(wait=False, scheduled_time=get_dht_time() + 1.0, require_trigger=True)
            while control.stage.name != "AWAITING_TRIGGER" and not control.done():
                time.sleep(1e-3)
            begin = time.perf_counter()
            control.allow_allreduce()
            if control.result(timeout=TIMEOUT_S):
                timed.append(time.perf_counter() - begin)
                return
        raise TimeoutError("no group of two came together")

    timed: list[float] = []
    connection.send(0.0)
    try:
        while connection.recv():
            exchange()
            connection.send(timed[-1])  # the search for a group is not counted
    except EOFError:
        pass
    averager.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    sys.exit(main())
