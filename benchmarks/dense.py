"""Dense models by many peers: what the rules that add updates up, and codecs, cost in accuracy, and save in bytes.

    python -m benchmarks.dense [--quick] [--check] [--json FILE] [--data DIR]

A softmax regression (784-10) and a multilayer perceptron (784-128-10, relu) learn MNIST: ten passes over 60,000 rows in
float32, local steps of SGD over 32 rows, and an update after every four steps. Peers are simulated: a chunk takes a
second of virtual time, so that each peer is a round behind the others. One process with the same code and work stands
beside them. `--quick`: two passes over 6,000 rows, two and sixteen peers.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.wikipedia import DATA
from gossip.arrays import Array
from p2p import DeepDist, SimulatedCluster
from p2p.descents import SGD, LocalSteps

RATE, BATCH_ROWS, STEPS, HIDDEN = 0.1, 32, 4, 128
PEERS = (2, 4, 8, 16)
ADVERT_GAP_S = 0.25
"""A quarter of a chunk. Sixteen peers that tell of each update at once send more bytes of adverts than of two bits."""
DEFAULT = "outer", "auto"
"""What `train` and `DeepDist` do when they are told nothing."""
RULES = ("sum", "mean", "damp", "adasum")
CODECS = (None, "float16", "int8", "int2", "top-k")
BEHIND_MAX = 0.3
SAVED_MIN = 8.0
"""Targets, of the default at sixteen peers: points behind one process, and bytes of float32 over its own."""
FILES = tuple(f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
FETCH = """expected the data {path}, found none.
They are the four files of MNIST, as from https://ossci-datasets.s3.amazonaws.com/mnist. Put them at DIR/mnist, and name
DIR by --data or in DEEPDIST_DATA."""

Model = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Rows (n, 784) from 0 to 1, and their classes (n,)."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True)
class Figures:
    """What one training came to."""

    model: str
    peers: int
    rule: str
    codec: str
    percent: float
    """Of the test rows told right."""
    update_bytes: float
    """That a peer took in for each update of another; 0 in one process."""
    saved: float
    """Bytes of the model's arrays over these."""
    seconds: float


def read(folder: Path) -> Data:
    """MNIST's four files."""
    parts = []
    for name in FILES:
        with gzip.open(folder / name) as file:
            data = file.read()
        parts.append(np.frombuffer(data, np.uint8, offset=16 if "images" in name else 8))
    x, y, test_x, test_y = parts
    return Data(_scaled(x), y, _scaled(test_x), test_y)


def _scaled(pixels: Array) -> Array:
    return (pixels.reshape(-1, 784) / np.float32(255)).astype(np.float32)


def fresh(kind: str) -> Model:
    """A model before training."""
    chance = np.random.default_rng(0)
    sizes = (784, 10) if kind == "softmax" else (784, HIDDEN, 10)
    model: Model = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        width = 0.0 if kind == "softmax" else np.sqrt(1 / inputs)
        model[f"w{layer}"] = (chance.normal(size=(inputs, outputs)) * width).astype(np.float32)
        model[f"b{layer}"] = np.zeros(outputs, np.float32)
    return model


def layers(model: Model, x: Array) -> list[Array]:
    """What goes into each layer, and the scores."""
    found, last = [x], len(model) // 2 - 1
    for layer in range(last + 1):
        out = found[-1] @ model[f"w{layer}"] + model[f"b{layer}"]
        found.append(out if layer == last else np.maximum(out, 0))
    return found


def percent(model: Model, data: Data) -> float:
    """Of the test rows told right."""
    return 100 * float((layers(model, data.test_x)[-1].argmax(axis=1) == data.test_y).mean())


def gradient_of(data: Data) -> Callable[[Model, Iterable[int]], Model]:
    """The gradient of the mean cross entropy of rows that are named by their numbers."""

    def gradient(model: Model, rows: Iterable[int]) -> Model:
        chosen = np.fromiter(rows, np.int64)
        inputs = layers(model, data.x[chosen])
        back = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
        back /= back.sum(axis=1, keepdims=True)
        back[np.arange(len(chosen)), data.y[chosen]] -= 1
        back /= len(chosen)
        found: Model = {}
        for layer in reversed(range(len(model) // 2)):
            found[f"w{layer}"], found[f"b{layer}"] = inputs[layer].T @ back, back.sum(axis=0)
            back = (back @ model[f"w{layer}"].T) * (inputs[layer] > 0)
        return found

    return gradient


def train(kind: str, data: Data, peers: int, rule: str, codec: str | None, epochs: int) -> Figures:
    """One training, of one peer or of several."""
    model, begin = fresh(kind), time.perf_counter()
    order = np.random.default_rng(1).permutation(len(data.x))
    parts = [order[number::peers].tolist() for number in range(peers)]
    steps = LocalSteps(gradient_of(data), SGD(RATE), BATCH_ROWS)
    cluster = SimulatedCluster(peers, seed=1, advert_gap_s=ADVERT_GAP_S)
    chosen = None if rule == DEFAULT[0] else rule  # by default as the descent says
    with DeepDist(model, engine=cluster, codec=codec, progress=False) as dd:
        report = dd.train(parts, steps, epochs=epochs, chunk_rows=BATCH_ROWS * STEPS, combine=chosen)
    workers = [peer for peer in report.peers if peer.role == "peer"]
    others = sum(peer.applied - peer.published for peer in workers)
    took = sum(peer.bytes_in for peer in workers) / others if peers > 1 else 0.0
    saved = sum(array.nbytes for array in model.values()) / took if took else 0.0
    seconds = time.perf_counter() - begin
    return Figures(kind, peers, rule, codec or "float32", percent(model, data), took, saved, seconds)


def plan(quick: bool) -> Iterator[tuple[int, str, str | None]]:
    """(peers, rule, codec) of all trainings."""
    yield 1, "sum", None
    for peers in (2, 16) if quick else PEERS:
        yield peers, *DEFAULT
    for rule in RULES:
        yield 16, rule, "int2"
    for codec in CODECS:
        yield 16, DEFAULT[0], codec


def line(figures: Figures, alone: Figures) -> str:
    """A row of the table."""
    name = "one process" if figures.peers == 1 else f"{figures.peers} peers"
    took = f"{figures.update_bytes / 1e3:>8.1f}{figures.saved:>8.1f}" if figures.peers > 1 else f"{'-':>8}{'-':>8}"
    return (
        f"{figures.model:<8} {name:<12}{figures.rule:<8}{figures.codec:<9}{figures.percent:>7.2f}"
        f"{figures.percent - alone.percent:>8.2f}{took}{figures.seconds:>8.0f}"
    )


def shortfalls(found: list[Figures]) -> Iterator[str]:
    """What falls short of the targets, in words."""
    for alone in (each for each in found if each.peers == 1):
        for each in found:
            if (each.model, each.peers, each.rule, each.codec) != (alone.model, 16, *DEFAULT):
                continue
            if each.percent < alone.percent - BEHIND_MAX:
                yield f"missed: {each.model} {each.percent:.2f} %, expected at least {alone.percent - BEHIND_MAX:.2f}"
            if each.saved < SAVED_MIN:
                yield f"missed: {each.model} saves {each.saved:.1f} times, expected at least {SAVED_MIN:g}"


def main() -> int:
    """Train, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, two passes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if figures fall short of the targets")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path(os.environ.get("DEEPDIST_DATA", DATA)))
    arguments = parser.parse_args()
    folder = arguments.data / "mnist"
    for name in FILES:
        if not (folder / name).is_file():
            parser.error(FETCH.format(path=folder / name))
    data = read(folder)
    if arguments.quick:
        data = Data(data.x[:6000], data.y[:6000], data.test_x, data.test_y)
    print(f"{'':<9}{'':<12}{'rule':<8}{'codec':<9}{'test %':>7}{'behind':>8}{'kB':>8}{'saved':>8}{'seconds':>8}")
    found: list[Figures] = []
    for kind in ("softmax", "mlp"):
        first = len(found)
        for peers, rule, codec in plan(arguments.quick):
            found.append(train(kind, data, peers, rule, codec, 2 if arguments.quick else 10))
            print(line(found[-1], found[first]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in found], indent=2))
    missed = list(shortfalls(found))
    for each in missed:
        print(each)
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
