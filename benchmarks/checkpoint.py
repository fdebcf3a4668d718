"""What checkpoints cost: the rate of a training with one every so often, and without any.

    python -m benchmarks.checkpoint [--megabytes 400] [--every-s 30] [--seconds 100] [--rounds 2] [--quick]
                                    [--folder PATH] [--json FILE] [--check]

Two peers on this machine train a model of rows of 100 numbers in place; a chunk changes a few thousand of them, and
computes for some 50 ms: as much in each chunk, so that what a checkpoint takes of the cores is missing there. The
trainings are interleaved, and the medians of their rates are compared. One checkpoint more than asked for is written at
the beginning and one at the end: "cost" is what one takes, of the 30 s in which one is due: (1 - ratio) * seconds /
written / 30. The table also says how long one took (a copy, its checksum, and the file on its disk), and how many
bytes a second that is. The target is a cost below 2 % of a checkpoint every 30 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from p2p import DeepDist, Report, current, in_place

COLUMNS, ROWS_A_CHUNK, PEERS = 100, 2000, 2
CHUNK_S = 0.05
COST_MAX, DUE_S = 0.02, 30.0
"""The target, of one in so many seconds."""


def gradient(model: Any, rows: Iterator[int]) -> Any:
    """Change some rows, and compute; the elements say how often."""
    place = in_place(model)
    chance = np.random.default_rng([current().partition, current().chunk])
    some = chance.integers(len(model["w"]), size=ROWS_A_CHUNK)
    model["w"][some] += 1e-3
    for _ in range(sum(rows)):
        compute(model["w"], some)
    return place.trained({})


def compute(array: Any, some: Any) -> None:
    """Some work of a processor."""
    np.tanh(array[some[:200]])


def repeats(rows: int) -> int:
    """How often that is done in the time of a chunk, on this machine, with a model of so many rows."""
    array, chance = np.ones((rows, COLUMNS), np.float32), np.random.default_rng(0)
    count, end = 0, time.monotonic() + 20 * CHUNK_S
    while time.monotonic() < end:
        compute(array, chance.integers(rows, size=ROWS_A_CHUNK))
        count += 1
    return max(1, count // 20)


def trained(megabytes: float, seconds: float, folder: str | None, every_s: float, work: int) -> Report:
    """One training of about so many seconds; without a folder there are no checkpoints. `work` is that of a chunk."""
    rows = int(megabytes * 1e6 / 4 / COLUMNS)
    chunks = int(seconds / CHUNK_S)
    options = {} if folder is None else {"checkpoint": folder, "every_s": every_s, "keep": 2}
    with DeepDist({"w": np.zeros((rows, COLUMNS), np.float32)}, peers=PEERS, progress=False) as dd:
        dd.train([[work]] * PEERS, gradient, chunk_rows=1)
        return dd.train([[work] * chunks] * PEERS, gradient, chunk_rows=1, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=400.0)
    parser.add_argument("--every-s", type=float, default=30.0)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="40 MB, one every 3 s, 10 s")
    parser.add_argument("--folder", help="below which checkpoints go; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help=f"exit 1 if one every {DUE_S:g} s costs over {COST_MAX}")
    arguments = parser.parse_args()
    megabytes, every_s, seconds = arguments.megabytes, arguments.every_s, arguments.seconds
    if arguments.quick:
        megabytes, every_s, seconds = 40.0, 3.0, 10.0
    rates: dict[str, list[float]] = {"without": [], "with": []}
    took: list[float] = []
    costs: list[float] = []
    work = repeats(int(megabytes * 1e6 / 4 / COLUMNS))
    for _ in range(arguments.rounds):
        for way in rates:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                report = trained(megabytes, seconds, folder if way == "with" else None, every_s, work)
            rates[way].append(report.rows / report.seconds)
            if report.checkpoints is not None:
                assert not report.checkpoints.failed, report.checkpoints
                took.append(report.checkpoints.seconds / report.checkpoints.written)
                costs.append(report.seconds / report.checkpoints.written)
    ratio = statistics.median(rates["with"]) / statistics.median(rates["without"])
    cost = (1 - ratio) * statistics.median(costs)
    table = Table(
        "MB", "every s", "chunks/s without", "with", "ratio", f"cost in {DUE_S:g} s", "s a checkpoint", "MB/s"
    )
    table.add_row(
        f"{megabytes:g}",
        f"{every_s:g}",
        f"{statistics.median(rates['without']):.1f}",
        f"{statistics.median(rates['with']):.1f}",
        f"{ratio:.3f}",
        f"{cost / DUE_S:.4f}",
        f"{statistics.median(took):.2f}",
        f"{megabytes / statistics.median(took):.0f}",
    )
    Console().print(table)
    if arguments.json is not None:
        figures = {
            "megabytes": megabytes,
            "every_s": every_s,
            "rates": rates,
            "seconds": took,
            "ratio": ratio,
            "cost_s": cost,
        }
        arguments.json.write_text(json.dumps(figures, indent=1))
    if arguments.check and cost / DUE_S > COST_MAX:
        print(f"a checkpoint every {DUE_S:g} s costs {cost / DUE_S:.4f} of the rate, expected at most {COST_MAX}")
        sys.exit(1)


if __name__ == "__main__":
    main()
