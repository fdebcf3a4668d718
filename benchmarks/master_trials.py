"""One trial of `benchmarks.master`, in a process of its own, so that its peak of memory is its own.

A worker's gradient costs next to nothing, and its update is as large as the model. Whatever the protocol, the update
says how many updates its copy of the model had seen, and `descent` notes when it came: both run the same two functions.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import p2p
from benchmarks import master_original
from benchmarks.linear import FEATURES, ROWS_FILE, read
from gossip.arrays import Array
from p2p import DeepDist

MASTER, HTTP, ORIGINAL, PEERS, SERIAL = "master", "master by HTTP", "the original's", "p2p", "serial"
"""The sides: the first two are ours, by the native path and by the HTTP face."""
WAIT_S = 60.0
"""For all workers to have begun."""
LOOK_S = 0.1
ROWS_MIN = 3
"""Of each worker, however long they take."""
CHUNK_ROWS, SLEEP_S, RATE = 50, 0.005, 0.5
TIMEOUT_S = 900.0
MARK = "figures: "


@dataclass(frozen=True)
class Exchange:
    """Updates as fast as they go."""

    side: str
    nbytes: int
    """Of the model."""
    workers: int
    seconds: float
    """From when all workers have begun."""


@dataclass(frozen=True)
class Exchanged:
    """What came of it."""

    updates_s: float
    cycle_s: float
    """Median time of a worker between two gradients: to send the update of one and to fetch the model of the next."""
    processor_s: float
    """Of all processes, for an update."""
    staleness_median: float
    """Updates that `descent` took between the copy that a gradient saw and its own."""
    staleness_p95: float
    driver_bytes: int
    """Peak of resident memory of the driver program, above that before there was a model."""
    updates: int
    exact: bool
    """The model is the sum of all updates."""


@dataclass(frozen=True)
class Quality:
    """Logistic regression on a9a."""

    side: str
    workers: int
    epochs: int
    rows: int
    data: str


@dataclass(frozen=True)
class Learned:
    """What came of it."""

    objective: float
    """Mean log loss over the rows that were trained on."""
    staleness_median: float
    seconds: float


# ------------------------------------------------------------------------------------------------- both protocols' code


@dataclass(frozen=True)
class Ticks:
    """A partition whose rows come until the time is over, which begins when all workers have sent an update."""

    folder: str
    workers: int
    seconds: float

    def __call__(self) -> Iterator[int]:
        yield 1
        Path(self.folder, str(os.getpid())).touch()
        give_up = time.monotonic() + WAIT_S
        while len(os.listdir(self.folder)) < self.workers and time.monotonic() < give_up:
            yield 1
        end, left = time.monotonic() + self.seconds, ROWS_MIN
        while time.monotonic() < end or left > 0:
            left -= 1
            yield 1


_left_at: dict[str, float] = {}
_ones: dict[str, Array] = {}


def probe(model: Any, rows: Iterator[int]) -> Any:
    """A gradient of ones; `cycle_s` is the time since the last one of this worker."""
    entered = time.perf_counter()
    for _ in rows:
        pass
    if "w" not in _ones:
        _ones["w"] = np.ones_like(model["w"])
    cycle_s = entered - _left_at.get("", entered)
    update = {"w": _ones["w"], "seen": int(model["count"][0]), "worker": os.getpid(), "cycle_s": cycle_s}
    _left_at[""] = time.perf_counter()
    return update


class Applied:
    """The descent; `taken` has (moment, worker, staleness, cycle_s) of each update."""

    def __init__(self, rate: float = 1.0) -> None:
        self.taken: list[tuple[float, int, int, float]] = []
        self._rate = rate

    def __call__(self, model: Any, update: Any) -> None:
        if self._rate == 1:
            model["w"] += update["w"]
        else:
            model["w"] -= self._rate * update["w"]
        staleness = int(model["count"][0]) - update["seen"]
        model["count"] += 1
        self.taken.append((time.monotonic(), update["worker"], staleness, update["cycle_s"]))


@dataclass(frozen=True)
class Logistic:
    """The gradient of the mean log loss of blocks (x, y), after a sleep; labels are -1 and 1."""

    def __call__(self, model: Any, rows: Iterator[Any]) -> Any:
        ((x, y),) = rows
        time.sleep(SLEEP_S)
        update = {"w": slope(model["w"], x, y), "seen": int(model["count"][0]), "worker": os.getpid(), "cycle_s": 0.0}
        return update


def slope(w: Array, x: Array, y: Array) -> Array:
    """The gradient of the mean log loss."""
    found: Array = -(x.T @ (y / (1 + np.exp(y * (x @ w))))) / len(y)
    return found


def step(model: Any, update: Any) -> None:
    """The descent of peers."""
    model["w"] -= RATE * update["w"]
    model["count"] += 1


# --------------------------------------------------------------------------------------------------------- the trials


def http_link() -> master_original.Link | None:
    """What workers that are no tasks of Spark fetch and send by; None where this library has no HTTP face."""
    fetch, send = getattr(p2p, "fetch_model", None), getattr(p2p, "send_gradient", None)
    return None if fetch is None or send is None else (fetch, send)


def exchange(trial: Exchange) -> Exchanged:
    """Run it in this process."""
    before = _memory("VmRSS")
    model: dict[str, Array] = {"w": np.ones(trial.nbytes // 4, np.float32), "count": np.zeros(1, np.int64)}
    applied = Applied()
    with tempfile.TemporaryDirectory() as folder, Processor() as processor:
        partitions = [Ticks(folder, trial.workers, trial.seconds) for _ in range(trial.workers)]
        if trial.side == ORIGINAL:
            master_original.train(model, partitions, probe, applied)
        elif trial.side == HTTP:
            by_http(model, partitions, applied)
        else:
            with DeepDist(model, "master", peers=trial.workers, progress=False) as dd:
                dd.train(partitions, probe, applied, chunk_rows=1)
    taken, count = applied.taken, len(applied.taken)
    exact = int(model["count"][0]) == count and bool((model["w"] == 1 + count).all())
    begin, end = window(taken)
    within = [each for each in taken if begin < each[0] <= end]
    staleness = [each[2] for each in within] or [0]
    return Exchanged(
        updates_s=len(within) / (end - begin) if end > begin else 0.0,
        cycle_s=statistics.median(each[3] for each in within) if within else float("inf"),
        processor_s=processor.between(begin, end) / max(1, len(within)),
        staleness_median=float(np.median(staleness)),
        staleness_p95=float(np.percentile(staleness, 95)),
        driver_bytes=_memory("VmHWM") - before,
        updates=len(within),
        exact=exact,
    )


def by_http(model: Any, partitions: list[Ticks], applied: Applied) -> None:
    """Ours, by processes that know nothing but an address; one task has the training go on meanwhile."""
    link = http_link()
    errors: list[BaseException] = []
    assert link is not None
    options: Any = {"master": "127.0.0.1:0"}
    with tempfile.TemporaryDirectory() as folder, DeepDist(model, "master", progress=False, **options) as dd:
        listening: Any = dd
        hold = Hold(folder)

        def run_workers() -> None:
            try:
                hold.wait_for("begun")
                master_original.run_workers(link, listening.master, probe, partitions)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)
            finally:
                Path(folder, "done").touch()

        workers = threading.Thread(target=run_workers)
        workers.start()
        try:
            dd.train([hold], nothing, applied)
        finally:
            Path(folder, "begun").touch()
            workers.join()
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Hold:
    """A partition whose one row comes when all is done."""

    folder: str

    def __call__(self) -> Iterator[int]:
        Path(self.folder, "begun").touch()
        self.wait_for("done")
        yield 1

    def wait_for(self, name: str) -> None:
        """Until there is a file of that name."""
        give_up = time.monotonic() + TIMEOUT_S
        while not Path(self.folder, name).exists() and time.monotonic() < give_up:
            time.sleep(0.01)


def nothing(model: Any, rows: Iterator[int]) -> None:
    """A gradient without an update."""
    for _ in rows:
        pass


def window(taken: list[tuple[float, int, int, float]]) -> tuple[float, float]:
    """From when every worker has had an update taken, until the first one has had its last."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for moment, worker, *_ in taken:
        first.setdefault(worker, moment)
        last[worker] = moment
    return max(first.values()), min(last.values())


def quality(trial: Quality) -> Learned:
    """Train, and look at the objective."""
    data = read(Path(trial.data, ROWS_FILE))
    order = np.random.default_rng(0).permutation(len(data.y))[: trial.rows]
    x, y = data.x[order].toarray(), data.y[order]
    blocks = [(x[at : at + CHUNK_ROWS], y[at : at + CHUNK_ROWS]) for at in range(0, len(y), CHUNK_ROWS)]
    partitions = [blocks[number :: trial.workers] for number in range(trial.workers)]
    model: dict[str, Array] = {"w": np.zeros(FEATURES), "count": np.zeros(1, np.int64)}
    applied, begin, staleness = Applied(RATE), time.perf_counter(), 0.0
    if trial.side == SERIAL:
        for _ in range(trial.epochs):
            for block in blocks:
                model["w"] -= RATE * slope(model["w"], *block)
    elif trial.side == ORIGINAL:
        master_original.train(model, partitions, Logistic(), applied, trial.epochs)
    else:
        mode: Any = trial.side
        with DeepDist(model, mode, peers=trial.workers, progress=False) as dd:
            descent: Callable[[Any, Any], None] = step if mode == PEERS else applied
            report = dd.train(partitions, Logistic(), descent, trial.epochs, chunk_rows=1)
        staleness = statistics.median(peer.staleness_median for peer in report.peers if peer.role in ("peer", "worker"))
    if applied.taken:
        staleness = float(np.median([each[2] for each in applied.taken]))
    objective = float(np.logaddexp(0, -y * (x @ model["w"])).mean())
    return Learned(objective, staleness, time.perf_counter() - begin)


# --------------------------------------------------------------------------------------------------- what it is seen by


class Processor:
    """Looks at the processor time of this process and of all that it has started, in a thread."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Processor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> float:
        """Seconds of processor time between two moments of `time.monotonic`; 0 if they are in another order."""
        if end <= begin:
            return 0.0
        moments, seconds = zip(*self._seen, strict=True)
        early, late = np.interp([begin, end], moments, seconds)
        return float(late - early)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._seen.append((time.monotonic(), sum(map(_processor_s, descendants(os.getpid())))))


def descendants(pid: int) -> list[int]:
    """The process, its children and theirs."""
    found = [pid]
    for at in found:
        try:
            for thread in os.listdir(f"/proc/{at}/task"):
                found += map(int, Path(f"/proc/{at}/task/{thread}/children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def _processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(what: str) -> int:
    """Of this process, in bytes: "VmRSS" now, "VmHWM" at its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {what}")


# ------------------------------------------------------------------------------------------- in a process of its own


def in_process(trial: Exchange | Quality) -> Any:
    """Run a trial in a new process, and return its figures.

    Raises:
        RuntimeError: it failed; what it said is in the text.
    """
    kind = "exchange" if isinstance(trial, Exchange) else "quality"
    command = [sys.executable, "-m", "benchmarks.master_trials", kind, json.dumps(asdict(trial))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found = json.loads(line.removeprefix(MARK))
            return Exchanged(**found) if kind == "exchange" else Learned(**found)
    raise RuntimeError(f"{trial} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def main() -> None:
    """Run the trial that the arguments are."""
    from benchmarks import master_trials  # by its own name, by which workers know its functions

    _, kind, told = sys.argv
    if kind == "exchange":
        found: Any = master_trials.exchange(master_trials.Exchange(**json.loads(told)))
    else:
        found = master_trials.quality(master_trials.Quality(**json.loads(told)))
    print(MARK + json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main()
