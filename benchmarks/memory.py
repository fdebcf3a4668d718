"""Memory of a training on this machine, process by process, as multiples of the model.

    driver program      the user's model, and a replica while that is read
    worker              its copy of the model, the update that it writes, and what the gradient makes
    agent               the replica

A few dense updates are trained by two peers. A process counts by its PSS (`/proc/PID/smaps_rollup`): pages that several
processes have mapped are divided among them. Files in shared memory that nobody has mapped just then, such as an update
that waits for its readers, count for no process; `shared files` are all of them, each once. Of the peak of a process is
taken what one of its role takes with a model of 4 kB; `sum` is all memory of all processes, at its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import p2p
from p2p import DeepDist

TARGETS = {"driver": 2.0, "worker": 2.0}
"""Models at most; of a worker beside the one that its gradient makes."""
ROOM_BYTES = 100_000_000
"""More of each process is no miss: pieces of the model that are on their way."""
GRADIENTS_OWN = 1.0
"""Models that the gradient of this program makes."""
LOOK_S = 0.01
WIDTH = 100
UPDATES = 8
"""Of each peer."""


def whole(model: Any, rows: Iterator[int]) -> Any:
    """One model-sized array."""
    gradient = np.empty_like(model["w"])
    gradient[...] = sum(rows)
    return {"w": gradient}


def step(model: Any, update: Any) -> None:
    """A descent that needs no memory."""
    model["w"] += update["w"]


def in_place(model: Any, rows: Iterator[int]) -> Any:
    """Nothing but the model."""
    copy = p2p.in_place(model)
    assert copy is not None
    for row in rows:
        model["w"] += row
    return copy.trained({})


CASES: dict[str, tuple[Callable[[Any, Iterator[int]], Any], Any, bool]] = {
    "whole": (whole, None, True),
    "descent": (whole, step, True),
    "in place": (in_place, None, False),
}
"""(gradient, descent, whether `TARGETS` are for it): a copy trained in place is two models before any update."""


class Watch:
    """Looks at this process and those that it has started, in a thread."""

    def __init__(self) -> None:
        self.peaks: dict[tuple[str, int], int] = {}
        """By role and process."""
        self.files_peak = self.sum_peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            everybody, private = _descendants(os.getpid()), 0
            for pid in everybody:
                role, taken, anonymous = _role(pid), _proportional_bytes(pid), _proportional_bytes(pid, "Pss_Anon")
                self.peaks[role, pid] = max(self.peaks.get((role, pid), 0), taken)
                private += anonymous
            files = _file_bytes(everybody)
            self.files_peak, self.sum_peak = max(self.files_peak, files), max(self.sum_peak, private + files)


def _proportional_bytes(pid: int, what: str = "Pss") -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{what}:")), 0)
    except OSError:  # it has ended
        return 0


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for at in found:
        try:
            for thread in os.listdir(f"/proc/{at}/task"):
                with open(f"/proc/{at}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue
    return found


def _role(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return "agent" if "p2p.agent.process" in file.read() else "worker"
    except OSError:
        return "worker"


def _file_bytes(pids: list[int]) -> int:
    """What unnamed files take that these processes have open, each counted once."""
    found = {}
    for pid in pids:
        try:
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                place = f"/proc/{pid}/fd/{descriptor}"
                if os.readlink(place).endswith("(deleted)"):
                    about = os.stat(place)
                    found[about.st_dev, about.st_ino] = about.st_blocks * 512
        except OSError:
            continue
    return sum(found.values())


def train(case: str, nbytes: int) -> tuple[Watch, bool]:
    """Train a model of so many bytes; returns what was seen, and whether it came out as it should."""
    gradient, descent, _ = CASES[case]
    gc.collect()  # the session before this one
    with Watch() as watch:
        model = {"w": np.ones((nbytes // (4 * WIDTH), WIDTH), np.float32)}
        with DeepDist(model, peers=2, progress=False) as dd:
            dd.train([[1] * UPDATES] * 2, gradient, descent, chunk_rows=1)
            return watch, bool((dd.model["w"] == 1 + 2 * UPDATES).all())


def measure(case: str, megabytes: int, smallest: dict[str, int]) -> dict[str, Any]:
    """Train, and return peaks in bytes: by role the largest of its processes, beyond `smallest`."""
    watch, exact = train(case, megabytes * 1_000_000)
    result: dict[str, Any] = {"case": case, "exact": exact, "model_bytes": megabytes * 1_000_000}
    result |= {role: peak - smallest[role] for role, peak in by_role(watch).items()}
    return result | {"shared files": watch.files_peak, "sum": watch.sum_peak}


def by_role(watch: Watch) -> dict[str, int]:
    """The highest peak of each."""
    found: dict[str, int] = {}
    for (role, _), peak in watch.peaks.items():
        found[role] = max(found.get(role, 0), peak)
    return found


def misses(result: dict[str, Any]) -> list[str]:
    """What is beyond the targets."""
    found = [] if result["exact"] else [f"{result['case']}: the model is not the sum of all updates"]
    if not CASES[result["case"]][2]:
        return found
    for role, models in TARGETS.items():
        limit = (models + GRADIENTS_OWN * (role == "worker")) * result["model_bytes"] + ROOM_BYTES
        if result[role] > limit:
            found.append(f"{result['case']}: a {role} took {result[role] / 1e6:.0f} MB, at most {limit / 1e6:.0f}")
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400, help="of the model")
    parser.add_argument("--quick", action="store_true", help="a model of 100 MB")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="hold the figures against the targets")
    options = parser.parse_args()
    megabytes = 100 if options.quick else options.megabytes
    roles = ("driver", "worker", "agent", "shared files", "sum")
    print(f"{'models of ' + str(megabytes) + ' MB':>18}", *(f"{role:>12}" for role in roles), f"{'s':>6}")
    results = []
    smallest = by_role(train("whole", 4000)[0])
    for case in CASES:
        began = time.perf_counter()
        results.append(measure(case, megabytes, smallest))
        figures = (results[-1][role] / results[-1]["model_bytes"] for role in roles)
        print(f"{case:>18}", *(f"{figure:12.2f}" for figure in figures), f"{time.perf_counter() - began:6.0f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file)
    found = [miss for result in results for miss in misses(result)] if options.check else []
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
