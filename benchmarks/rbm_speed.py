"""Images per second of a restricted Boltzmann machine, 784 x 500, next to the core's own peak and to scikit-learn.

A step of CD-1 is five products of block x 784 x 500: two upward, one downward, and two for the gradient, which are
computed as one. The peak is what a product of 1024 x 1024 matrices of float32 reaches in the same round. It stands in
the table as the images per second that it allows. All sides have one thread, take turns, and are measured by the time
that the thread itself has run, as the core may be shared. Each ratio is the median over the rounds.

    pip install 'deepdist-p2p[bench]'     (scikit-learn, which is left out where it is not installed)
    python -m benchmarks.rbm_speed [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from p2p.models.rbm import CD, PCD, RBM, Trainer
from p2p.models.rbm.units import draw_ones, sigmoid

PEAK_SHARE_MIN = 0.5
"""Target: of the peak, for CD-1 on blocks of 100."""
SKLEARN_RATIO_MIN = 1.2
"""Target: best block over scikit-learn's best with float32. Its products are the same, and take 60 % of its time, so
that 1.6 times its speed is all there is."""
SKLEARN_DEFAULT_RATIO_MIN = 5.0
"""Target: blocks of 100 over scikit-learn's default, batches of 10 with float64."""
VISIBLE, HIDDEN = 784, 500
STEP_FLOP = 5 * 2 * VISIBLE * HIDDEN
"""Of one image."""
ON = 0.19
"""Share of ones, as in MNIST; none of the sides depends on it."""
IMAGES, IMAGES_QUICK = 4000, 1000
ROUNDS, ROUNDS_QUICK = 7, 3
PEAK_SIZE, PEAK_PRODUCTS = 1024, 4
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PEAK, OURS, THEIRS, DEFAULT = "peak", "CD-1, blocks of 100", "scikit-learn", "scikit-learn float64, batches of 10"

Side = Callable[[], int]
"""Does its work, and returns how many images that was."""


def main() -> int:
    """Let the sides take turns, print the tables, and return the exit code."""
    if any(os.environ.get(name) != count for name, count in THREADS.items()):  # BLAS reads them when it is loaded
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.rbm_speed", *sys.argv[1:]], os.environ | THREADS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{IMAGES_QUICK} images, {ROUNDS_QUICK} rounds")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    images = IMAGES_QUICK if arguments.quick else IMAGES
    rounds = ROUNDS_QUICK if arguments.quick else ROUNDS
    rows = (np.random.default_rng(1).random((images, VISIBLE)) < ON).astype(np.float32)
    sides = {PEAK: peak(), **machines(rows), **sklearn(rows)}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            begin = time.thread_time()
            done = side()
            if number:  # the first round warms up
                speeds[name].append(done / (time.thread_time() - begin))
    shares = print_speeds(speeds)
    spent = print_parts(rows[:100], 200 if arguments.quick else 1000)
    if arguments.json:
        figures = {"images_per_second": speeds, "of_peak": shares, "microseconds_of_a_step": spent}
        arguments.json.write_text(json.dumps(figures, indent=1))
    missed = shortfalls(speeds)
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def peak() -> Side:
    """Products of square matrices, as many images as that would be."""
    random = np.random.default_rng(1)
    a, b = (random.random((PEAK_SIZE, PEAK_SIZE), dtype=np.float32) for _ in "ab")
    c = np.empty_like(a)

    def work() -> int:
        for _ in range(PEAK_PRODUCTS):
            np.matmul(a, b, out=c)
        return PEAK_PRODUCTS * 2 * PEAK_SIZE**3 // STEP_FLOP

    return work


def machines(rows: np.ndarray) -> dict[str, Side]:
    """Ours, each on blocks of some size."""

    def work(trainer: Trainer, blocks: list[np.ndarray]) -> int:
        for block in blocks:
            trainer.step(block)
        return len(rows)

    sides: dict[str, Side] = {}
    for name, options in (("CD-1", CD()), ("PCD-1", PCD()), ("CD-1 of means", CD(visible_means=True))):
        for size in (10, 100, 500):
            trainer = Trainer(RBM(VISIBLE, HIDDEN), options, size, 1)
            sides[f"{name}, blocks of {size}"] = partial(work, trainer, np.split(rows, len(rows) // size))
    return sides


def sklearn(rows: np.ndarray) -> dict[str, Side]:
    """scikit-learn's `BernoulliRBM`, which is PCD-1, for one pass over the rows."""
    if importlib.util.find_spec("sklearn") is None:
        print("scikit-learn is not installed, and is left out")
        return {}
    from sklearn.neural_network import BernoulliRBM  # type: ignore[import-not-found,unused-ignore]

    def work(machine: Any, rows: np.ndarray) -> int:
        machine.fit(rows)
        return len(rows)

    sides: dict[str, Side] = {}
    for kind in (np.float32, np.float64):
        for size in (10, 100, 500, 1000):
            machine = BernoulliRBM(HIDDEN, batch_size=size, n_iter=1, learning_rate=0.01, random_state=1)
            sides[f"scikit-learn {kind.__name__}, batches of {size}"] = partial(work, machine, rows.astype(kind))
    return sides


def print_speeds(speeds: dict[str, list[float]]) -> dict[str, float]:
    """Print the medians; returns each side's share of the peak."""
    best = fastest(speeds, f"{THEIRS} float32")
    table = Table(title=f"{VISIBLE} x {HIDDEN}, one thread, medians")
    for column in ("side", "images/s", "of the peak", *(("/ best scikit-learn",) if best else ())):
        table.add_column(column, justify="right")
    shares = {}
    for name, mine in speeds.items():
        shares[name] = ratio(mine, speeds[PEAK])
        more = (f"{ratio(mine, speeds[best]):.2f}",) if best else ()
        table.add_row(name, f"{statistics.median(mine):,.0f}", f"{shares[name]:.2f}", *more)
    Console().print(table)
    print(f"peak: {statistics.median(speeds[PEAK]) * STEP_FLOP / 1e9:.0f} GFLOP/s")
    return shares


def print_parts(block: np.ndarray, steps: int) -> dict[str, float]:
    """Print where the time of a step goes, each part by itself on arrays of the same shapes; in microseconds."""
    rbm = RBM(VISIBLE, HIDDEN)
    trainer = Trainer(rbm, CD(), len(block), 1)
    space, n, random = trainer.workspace, len(block), trainer.random
    V, H = space.V, space.H
    h, W, velocity = space.drawn, space.W, trainer.velocity.of["W"]

    def products() -> None:
        np.matmul(V[:n], rbm.W, out=H[:n])
        np.matmul(h, rbm.W.T, out=V[n:])
        np.matmul(V[n:], rbm.W, out=H[n:])
        np.matmul(V.T, H, out=W)

    def sigmoids() -> None:
        for x in (H[:n], V[n:], H[n:]):
            sigmoid(x)

    def draws() -> None:
        draw_ones(H[:n], random, space.uniforms(h), h)
        draw_ones(V[n:], random, space.uniforms(V[n:]), V[n:])

    def momentum() -> None:
        trainer.velocity.step({"W": rbm.W, "b": rbm.b, "c": rbm.c}, zero, 0.01, 0.5)

    trainer.step(block)
    zero = {"W": np.zeros_like(rbm.W), "b": np.zeros_like(rbm.b), "c": np.zeros_like(rbm.c)}
    velocity[...] = 0
    parts: dict[str, Callable[[], None]] = {
        "all": partial(trainer.step, block),
        "draws": draws,
        "sigmoids": sigmoids,
        "products": products,
        "momentum": momentum,
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(steps):
        trainer.step(block)
        for name, part in parts.items():
            begin = time.thread_time()
            part()
            seconds[name].append(time.thread_time() - begin)
    spent = {name: 1e6 * statistics.median(each) for name, each in seconds.items()}
    spent["checks, biases, copies"] = spent["all"] - sum(spent[name] for name in parts if name != "all")
    table = Table(title=f"where a step of {len(block)} rows spends its time")
    for column in ("part", "microseconds", "share"):
        table.add_column(column, justify="right")
    for name, each in spent.items():
        table.add_row(name, f"{each:.0f}", f"{each / spent['all']:.0%}")
    Console().print(table)
    return spent


def ratio(mine: list[float], theirs: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def fastest(speeds: dict[str, list[float]], prefix: str) -> str:
    """Of the sides with this beginning; empty if there is none."""
    names = [name for name in speeds if name.startswith(prefix)]
    return max(names, key=lambda name: statistics.median(speeds[name]), default="")


def shortfalls(speeds: dict[str, list[float]]) -> list[str]:
    """The targets that are missed."""
    best, ours = fastest(speeds, f"{THEIRS} float32"), fastest(speeds, "CD-1, ")
    held = [(f"{OURS} / peak", ratio(speeds[OURS], speeds[PEAK]), PEAK_SHARE_MIN)]
    if best:
        held.append((f"{ours} / {best}", ratio(speeds[ours], speeds[best]), SKLEARN_RATIO_MIN))
        held.append((f"{OURS} / {DEFAULT}", ratio(speeds[OURS], speeds[DEFAULT]), SKLEARN_DEFAULT_RATIO_MIN))
    return [f"missed: {what} {found:.2f}, target {least}" for what, found, least in held if found < least]


if __name__ == "__main__":
    sys.exit(main())
