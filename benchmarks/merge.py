"""64 MB of float32 exchanged and merged between two agents, next to hivemind's averager and torch's gloo all-reduce.

Each of two processes has 64 MB that the other wants added to its own. A round ends when both have both. In turns, one
round of each, and the medians are compared:

    agents      two updates are handed over at the same time; both replicas have both (exactly once, checked, kept for
                readers that come later). Agents of one machine hand each other the files in which updates lie
    sockets     the same of agents that exchange bytes over TCP on loopback, as agents of two machines do
    gloo        torch.distributed.all_reduce over TCP on loopback: a sum, all or nothing, with both waiting
    hivemind    DecentralizedAverager.step of a group of two, over TCP on loopback
    add         numpy adds 64 MB to 64 MB in memory: the least that a merge can cost

Then small updates, of some rows, go from one agent to the other, with nothing else to do and while large ones flow,
four a second: from the other agent only (`beside`), and from both (`among`), where small ones share a lane with large
ones; and from both as fast as they are taken (`flood`), which says how long the queue of a machine at its limit is.
As long as it takes from handing over to being in the other replica is their latency.

    pip install 'deepdist-p2p[bench]'     (torch is wanted as its build for CPUs)
    python -m benchmarks.merge [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.exchange import Swarm
from gossip.updates.rows import rows_of
from p2p.agent.client import AgentClient

MEGABYTES, MEGABYTES_QUICK = 64, 8
REPEATS, REPEATS_QUICK = 7, 3
HIVEMIND_RATIO_MIN = 5.0
"""Target: how many times as fast as hivemind."""
GLOO_RATIO_MIN = 0.7
"""Target: of gloo's speed."""
SMALL_RATIO_MAX = 3.0
"""Target: median latency of small updates beside and among large ones / with nothing else to do."""
SMALL_ROWS = 1000
"""Of one float each."""
SMALL_UPDATES, SMALL_UPDATES_QUICK = 20, 10
SMALL_PERIOD_S = 0.03
LARGE_PERIOD_S = 0.25
LATENCY_ROUNDS = 2
"""Each way of measuring small updates has so many turns."""
LARGE_FROM: dict[str, tuple[tuple[int, ...], float]] = {
    "quiet": ((), LARGE_PERIOD_S),
    "beside": ((1,), LARGE_PERIOD_S),
    "among": ((0, 1), LARGE_PERIOD_S),
    "flood": ((0, 1), 0.0),
}
"""Which agents publish large updates meanwhile, and how long after the last; small ones are the first's."""
TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 240.0
"""Torch and hivemind take a minute to start where the machine is busy."""
WARMING_ROUNDS = 2
"""First rounds of each side that do not count: memory that is used for the first time costs a fault per page."""


class Taken(NamedTuple):
    """What one round took."""

    seconds: float
    cpu_s: float
    """Of both sides' processes together: what is left when the machine has other things to do."""


Round = Callable[[], Taken]
"""Exchanges once."""


def main() -> int:
    """Take turns, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{MEGABYTES_QUICK} MB, {REPEATS_QUICK} rounds")
    parser.add_argument("--repeats", type=int, help=f"rounds of each side (default {REPEATS})")
    parser.add_argument(
        "--without", action="append", default=[], choices=["sockets", "gloo", "hivemind"], help="leave a side out"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    floats = (MEGABYTES_QUICK if arguments.quick else MEGABYTES) * (1 << 20) // 4
    repeats = arguments.repeats or (REPEATS_QUICK if arguments.quick else REPEATS)
    with ExitStack() as stack:
        sides: dict[str, Round] = {"add": adding(floats), "agents": stack.enter_context(agents(floats))}
        if "sockets" not in arguments.without:
            sides["sockets"] = stack.enter_context(agents(floats, links=False))
        for name, work in (("gloo", _gloo), ("hivemind", _hivemind)):
            if name not in arguments.without:
                sides[name] = stack.enter_context(pair(work, floats))
        rounds: dict[str, list[Taken]] = {name: [] for name in sides}
        for number in range(repeats + WARMING_ROUNDS):
            for name, side in sides.items():
                taken = side()
                if number >= WARMING_ROUNDS:
                    rounds[name].append(taken)
    seconds = {name: [taken.seconds for taken in all_taken] for name, all_taken in rounds.items()}
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, value in median.items():
        low, high = min(seconds[name]), max(seconds[name])
        cpu = statistics.median(taken.cpu_s for taken in rounds[name])
        ratio = "" if name == "agents" else f"   agents' speed / its speed {value / median['agents']:.2f}"
        print(
            f"{name:<10}{1e3 * value:>9.1f} ms   ({1e3 * low:.1f} to {1e3 * high:.1f})   CPU {1e3 * cpu:.0f} ms{ratio}"
        )
    small = print_latencies(floats, SMALL_UPDATES_QUICK if arguments.quick else SMALL_UPDATES)
    if arguments.json:
        figures = {"floats": floats, "rounds": rounds, "small": small}
        arguments.json.write_text(json.dumps(figures, indent=1))
    missed = [*shortfalls(median), *latency_shortfalls(small)]
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


def print_latencies(floats: int, updates: int) -> dict[str, list[float]]:
    """Measure small updates with and without large ones, print the medians and return all, in seconds."""
    with small_updates(floats) as latency:
        taken: dict[str, list[float]] = {name: [] for name in LARGE_FROM}
        for _ in range(LATENCY_ROUNDS):
            for name, (publishers, period_s) in LARGE_FROM.items():
                taken[name] += latency(publishers, period_s, updates)
    for name, seconds in taken.items():
        quarters = statistics.quantiles(seconds, n=4)
        ratio = quarters[1] / statistics.median(taken["quiet"])
        print(
            f"small updates, {name:<8}{1e3 * quarters[1]:>7.1f} ms   (quarters {1e3 * quarters[0]:.1f}, "
            f"{1e3 * quarters[2]:.1f}; at most {1e3 * max(seconds):.0f})   {ratio:.1f} x quiet"
        )
    return taken


@contextmanager
def small_updates(floats: int) -> Iterator[Callable[[tuple[int, ...], float, int], list[float]]]:
    """Two agents; the call says which of them publish large updates meanwhile, how long after the last, and how many
    small ones to time."""
    swarm = Swarm(floats, 2)
    tasks = [AgentClient(folder) for folder in swarm.folders]
    rows = np.arange(min(SMALL_ROWS, floats), dtype=np.int32)
    expected = 0

    def flow(client: AgentClient, period_s: float, stopping: threading.Event) -> None:
        """Large updates, which leave the first element alone."""
        while not stopping.wait(period_s):
            update = client.hand_over()
            if update.arrays()["w"][-1] == 0:
                update.arrays()["w"][1:] = 1
            client.publish(update)

    def latency(publishers: tuple[int, ...], period_s: float, updates: int) -> list[float]:
        nonlocal expected
        stopping = threading.Event()
        threads = [threading.Thread(target=flow, args=(swarm.agents[n], period_s, stopping)) for n in publishers]
        for thread in threads:
            thread.start()
        seconds = []
        target = swarm.agents[1].replica.arrays()["w"]
        for _ in range(updates):
            expected += 1
            time.sleep(SMALL_PERIOD_S)
            begin = time.perf_counter()
            tasks[0].publish(tasks[0].pack(rows_of("w", rows, np.ones(len(rows), np.float32))))
            while target[0] < expected:
                if time.perf_counter() > begin + TIMEOUT_S:
                    raise TimeoutError(f"a replica has {target[0]:g} small updates, expected {expected}")
                time.sleep(2e-4)
            seconds.append(time.perf_counter() - begin)
        stopping.set()
        for thread in threads:
            thread.join()
        swarm.registrar.drain(TIMEOUT_S)
        return seconds

    try:
        yield latency
    finally:
        for task in tasks:
            task.close()
        swarm.close()


def shortfalls(median: dict[str, float]) -> Iterator[str]:
    """What falls short of the targets, in words."""
    for name, least in (("hivemind", HIVEMIND_RATIO_MIN), ("gloo", GLOO_RATIO_MIN)):
        if name in median and median[name] / median["agents"] < least:
            yield f"missed: {median[name] / median['agents']:.2f} of the speed of {name}, expected {least:g}"


def latency_shortfalls(small: dict[str, list[float]]) -> Iterator[str]:
    """Where small updates wait for large ones, in words; a machine at its limit (`flood`) has no target."""
    quiet = statistics.median(small["quiet"])
    for name in ("beside", "among"):
        ratio = statistics.median(small[name]) / quiet
        if ratio > SMALL_RATIO_MAX:
            yield f"missed: small updates {name} large ones take {ratio:.1f} x quiet, expected {SMALL_RATIO_MAX:g}"


def adding(floats: int) -> Round:
    """One array added to another, in memory."""
    target, source = np.zeros(floats, np.float32), np.ones(floats, np.float32)

    def round() -> Taken:
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        np.add(target, source, out=target)
        return Taken(time.perf_counter() - begin, time.thread_time() - cpu_begin)

    return round


@contextmanager
def agents(floats: int, links: bool = True) -> Iterator[Round]:
    """Two agents; each is handed one update, and a round ends when both replicas hold both.

    The observer, which is no side, stands still meanwhile.
    """
    swarm = Swarm(floats, 2, links)
    try:
        expected = 0

        def cpu() -> float:
            return sum(cpu_s(process.pid) for process in swarm.processes)

        def round() -> Taken:
            nonlocal expected
            expected += 2
            for agent in swarm.agents:
                agent.hand_over().arrays()["w"][...] = 1.0
            os.kill(swarm.observer.pid, signal.SIGSTOP)
            begin, cpu_begin = time.perf_counter(), cpu()
            threads = [
                threading.Thread(target=agent.publish, args=(agent.hand_over(), agent.replica.merged))
                for agent in swarm.agents
            ]
            for thread in threads:
                thread.start()
            _wait_for(expected, swarm.agents)
            taken = Taken(time.perf_counter() - begin, cpu() - cpu_begin)
            os.kill(swarm.observer.pid, signal.SIGCONT)
            for thread in threads:
                thread.join()
            for agent in swarm.agents:
                with agent.replica.reading():
                    found = agent.replica.arrays()["w"][:: max(1, floats // 1000)]
                    assert np.all(found == expected), f"a replica holds {found}, expected {expected}"
            _wait_for(expected, [swarm.observer.agent])
            time.sleep(0.05)  # the last words of this round
            return taken

        yield round
    finally:
        os.kill(swarm.observer.pid, signal.SIGCONT)
        swarm.close()


def _wait_for(expected: int, clients: Sequence[AgentClient]) -> None:
    give_up = time.perf_counter() + TIMEOUT_S
    while any(client.replica.merged < expected for client in clients):
        if time.perf_counter() > give_up:
            raise TimeoutError(f"replicas have {[client.replica.merged for client in clients]} updates")
        time.sleep(2e-4)


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

    def round() -> Taken:
        for connection in connections:
            connection.send(True)
        taken = [_answer(connection) for connection in connections]
        return Taken(max(each.seconds for each in taken), sum(each.cpu_s for each in taken))

    try:
        yield round
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def cpu_s(pid: int) -> float:
    """What a process and its children have used so far, to a hundredth of a second; 0 where that cannot be asked."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(cpu_s(child) for child in children)


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _answer(connection: Connection) -> Taken:
    if not connection.poll(ANSWER_TIMEOUT_S):
        raise TimeoutError(f"a process did not answer within {ANSWER_TIMEOUT_S:g} s")
    return Taken(*connection.recv())


def serve(connection: Connection, exchange: Callable[[], None]) -> None:
    """In a process of `pair`: exchange whenever a message comes."""
    connection.send(Taken(0.0, 0.0))
    try:
        while connection.recv():
            begin, cpu_begin = time.perf_counter(), time.process_time()
            exchange()
            connection.send(Taken(time.perf_counter() - begin, time.process_time() - cpu_begin))
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
        store = distributed.TCPStore("127.0.0.1", meeting.get(timeout=ANSWER_TIMEOUT_S), 2, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    tensor = torch.ones(floats)
    serve(connection, lambda: distributed.all_reduce(tensor))
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
            start=True, host_maddrs=["/ip4/127.0.0.1/tcp/0"], initial_peers=meeting.get(timeout=ANSWER_TIMEOUT_S)
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
            begin, cpu_begin = time.perf_counter(), cpu()
            control.allow_allreduce()
            if control.result(timeout=TIMEOUT_S):
                timed.append(Taken(time.perf_counter() - begin, cpu() - cpu_begin))
                return
        raise TimeoutError("no group of two came together")

    def cpu() -> float:
        return cpu_s(os.getpid())  # its averager and network run in processes of their own

    timed: list[Taken] = []
    connection.send(Taken(0.0, 0.0))
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
