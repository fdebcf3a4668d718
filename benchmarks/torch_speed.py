"""Images per second of a convolutional network: two peers, next to torch alone and to torch's DistributedDataParallel.

    peers    `DeepDist` with two processes of one thread each, which exchange after every eight steps
    alone    torch in this process, with two threads
    ddp      DistributedDataParallel over gloo on loopback: two processes of one thread each, which exchange every step

All train the same network (421,000 numbers) on as many images, in batches of 64, by SGD with momentum, and have their
images in memory. They take turns, after a round that warms up. A round of the peers ends when their replicas are level.
Each ratio is the median over the rounds.

Threads of torch that have nothing to do sleep (OMP_WAIT_POLICY). Where others use the cores, too, torch alone would be
several times as slow otherwise, since its threads wait for each other in loops.

    pip install 'deepdist-p2p[torch]'
    python -m benchmarks.torch_speed [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.merge import ANSWER_TIMEOUT_S, pair, serve
from p2p import DeepDist
from p2p.models.torch import OptimizerSteps

ALONE_RATIO_MIN = 0.9
"""Target: of the speed of torch alone with two threads."""
DDP_RATIO_MIN = 1.0
"""Target: of the speed of DistributedDataParallel."""
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
PEERS, BATCH, LOCAL_STEPS = 2, 64, 8
CHUNK = BATCH * LOCAL_STEPS
CHUNKS, CHUNKS_QUICK = 16, 4
"""Of images, in a round of all peers together."""
ROUNDS, ROUNDS_QUICK = 7, 3
OURS, ALONE, DDP = "peers", "alone", "ddp"

Side = Callable[[], float]
"""Trains one round, and returns its seconds."""


def main() -> int:
    """Let the sides take turns, print the table, and return the exit code."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # read when torch is loaded
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.torch_speed", *sys.argv[1:]], os.environ | ENVIRONMENT
        )
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{CHUNKS_QUICK * CHUNK} images, {ROUNDS_QUICK} rounds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    chunks = CHUNKS_QUICK if arguments.quick else CHUNKS
    with ExitStack() as stack:
        sides = {
            OURS: stack.enter_context(peers(chunks)),
            ALONE: alone(chunks),
            DDP: stack.enter_context(ddp(chunks)),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range((ROUNDS_QUICK if arguments.quick else ROUNDS) + 1):
            for name, side in sides.items():
                seconds = side()
                if number:  # the first round warms up
                    speeds[name].append(chunks * CHUNK / seconds)
    print_speeds(speeds)
    if arguments.json:
        ratios = {name: ratio(speeds, name) for name in (ALONE, DDP)}
        arguments.json.write_text(json.dumps({"images_per_second": speeds, "ratios": ratios}, indent=1))
    missed = shortfalls(speeds)
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def network() -> nn.Module:
    """Two convolutions with batch norms, and two layers on top, for images of 28 x 28."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """With momentum, and a rate that does no harm to images of noise."""
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


@cache
def images(chunks: int) -> list[tuple[Any, Any]]:
    """Blocks of images and labels, kept in each process that trains."""
    random = np.random.default_rng(0)
    return [
        (random.random((CHUNK, 1, 28, 28), dtype=np.float32), random.integers(10, size=CHUNK)) for _ in range(chunks)
    ]


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, chunks: int) -> None:
    """One pass over so many chunks."""
    for x, y in images(chunks):
        order = torch.randperm(CHUNK)
        xs, ys = torch.from_numpy(x), torch.from_numpy(y)
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(xs[rows]), ys[rows]).backward()
            optimizer.step()


@contextmanager
def peers(chunks: int) -> Iterator[Side]:
    """Two peers, whose processes live from round to round."""
    gradient = OptimizerSteps(loss=nn.functional.cross_entropy, optimizer=sgd, batch_size=BATCH, blocks=True, threads=1)
    data = [partial(images, chunks // PEERS)] * PEERS
    with DeepDist(network(), peers=PEERS, progress=False) as dd:

        def round() -> float:
            begin = time.perf_counter()
            dd.train(data, gradient, chunk_rows=1)
            return time.perf_counter() - begin

        yield round


def alone(chunks: int) -> Side:
    """One process with as many threads as there are peers."""
    module = network()
    optimizer = sgd(module.parameters())

    def round() -> float:
        torch.set_num_threads(PEERS)
        begin = time.perf_counter()
        steps(module, optimizer, chunks)
        return time.perf_counter() - begin

    return round


@contextmanager
def ddp(chunks: int) -> Iterator[Side]:
    """Processes that average their gradients at every step."""
    with pair(_ddp, chunks // PEERS) as exchange:
        yield lambda: exchange().seconds


def _ddp(rank: int, chunks: int, connection: Connection, meeting: Any) -> None:
    import torch.distributed as distributed
    from torch.nn.parallel import DistributedDataParallel

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if rank == 0:
        store = distributed.TCPStore("127.0.0.1", 0, PEERS, is_master=True, wait_for_workers=False)
        meeting.put(store.port)
    else:
        store = distributed.TCPStore("127.0.0.1", meeting.get(timeout=ANSWER_TIMEOUT_S), PEERS, is_master=False)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=PEERS)
    module = DistributedDataParallel(network())
    optimizer = sgd(module.parameters())
    serve(connection, lambda: steps(module, optimizer, chunks))
    distributed.destroy_process_group()


def ratio(speeds: dict[str, list[float]], name: str) -> float:
    """Our speed over that of a side, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(speeds[OURS], speeds[name], strict=True))


def print_speeds(speeds: dict[str, list[float]]) -> None:
    """The table."""
    table = Table(title=f"a network of convolutions, batches of {BATCH}")
    for column in ("side", "images/s", "lowest", "highest", "peers / side"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, each in speeds.items():
        found = "" if name == OURS else f"{ratio(speeds, name):.2f}"
        table.add_row(name, f"{statistics.median(each):.0f}", f"{min(each):.0f}", f"{max(each):.0f}", found)
    Console().print(table)


def shortfalls(speeds: dict[str, list[float]]) -> list[str]:
    """The targets that are missed."""
    held = ((ALONE, ALONE_RATIO_MIN), (DDP, DDP_RATIO_MIN))
    return [
        f"missed: {ratio(speeds, name):.2f} of the speed of {name}, target {least}"
        for name, least in held
        if ratio(speeds, name) < least
    ]


if __name__ == "__main__":
    from benchmarks import torch_speed  # by this name, workers find the images that they keep

    sys.exit(torch_speed.main())
