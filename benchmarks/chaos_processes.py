"""Each kind of process of a training is killed or stopped at three moments: every row counts once, or is told of.

    python -m benchmarks.chaos --processes [--only lists|spark] [--kind K] [--signal S] [--quick] [--json F] [--check]

A line of the table is a training of its own, in p2p mode: two peers, 8 partitions, 304 gradient calls of 20 ms. The
model shows what became of each row: the gradient adds 1 to the row's element of `seen`, and the row's number to all
elements of `total`.

    kind      agent     of an executor, or of a peer of the local engine
              worker    the process in which gradients run
              executor  the JVM of a Spark executor
              driver    the driver program's own agent
    signal    kill      SIGKILL
              stop      SIGSTOP, and SIGCONT 8 s later: longer than peers (4 s) and the registrar (5 s) wait
              freeze    SIGSTOP for good; the driver program's own agent only, which is replaced then

A line is right if no row counts twice, `total` is exactly the sum of the numbers of the rows that count, and the others
are those that the report calls lost, to the row. Only what died may lose anything. A training may also end in
`IncompleteTraining`, whose report is held against the rows all the same. Anything else that is raised is wrong, and so
is a training that takes longer than two minutes.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import executors
from p2p import DeepDist, IncompleteTraining, Report
from p2p.agent.local_socket import Process

ENGINES = ("lists", "spark")
KINDS = ("agent", "worker", "executor", "driver")
SIGNALS = ("kill", "stop", "freeze")
MOMENTS = (0.1, 0.5, 0.9)
"""Parts of the gradient calls."""
QUICK_MOMENTS = (0.5,)

PEERS, PARTITIONS, CHUNKS = 2, 8, 38
CALLS = PARTITIONS * CHUNKS
CHUNK_ROWS_MAX = 5
CALL_S = 0.02
FREEZE_CALL_S = 0.06
"""A training that is still running when the driver program's own agent is found to stand still."""
STOP_S = 8.0
TRAIN_MAX_S = 120.0
"""A training that takes longer hangs."""
END_S = 30.0
"""What is left to a training that hangs, and was called off."""
EXECUTORS_TIMEOUT_S = 60.0
POLL_S = 0.005

COMMANDS = {
    "agent": "p2p.agent.process",
    "worker": "",
    "executor": "CoarseGrainedExecutorBackend",
    "driver": "p2p.agent.process",
}
"""What the command line of a process must hold that is to get a signal."""
SHOWN_MAX = 90
"""Characters of what was raised or warned."""


@dataclass(frozen=True)
class Case:
    """What happens to whom, and when."""

    engine: str
    kind: str
    signal: str
    moment: float
    chunk_rows: int

    @property
    def call_s(self) -> float:
        """How long a gradient takes."""
        return FREEZE_CALL_S if self.signal == "freeze" else CALL_S


@dataclass
class Outcome:
    """A training, as it ended."""

    case: Case
    signaled: bool = False
    """Somebody was there to get the signal before the training ended."""
    seconds: float = 0.0
    """From the first gradient to the end."""
    once: int = 0
    """Rows."""
    lost: int = 0
    twice: int = 0
    exact: bool = False
    """`total` is the sum of the numbers of those that count."""
    reported: int | None = None
    """`updates_lost` of the report: chunks."""
    causes: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Agents that were gone or late, as the report says."""
    calls: int = 0
    """Of the gradient; those of the attempts that failed are among them."""
    raised: str = ""
    incomplete: bool = False
    """What was raised is `IncompleteTraining`."""
    hangs: bool = False
    heard: list[str] = field(default_factory=list)
    """Warnings."""

    @property
    def wrong(self) -> list[str]:
        """What is not as it should be."""
        return [text for text, is_wrong in self._checks() if is_wrong]

    def _checks(self) -> Iterator[tuple[str, bool]]:
        yield "hangs", self.hangs
        yield "no signal", not self.signaled
        yield "raised", bool(self.raised) and not self.incomplete
        yield "rows count twice", self.twice > 0
        yield "total is not exact", not self.exact
        if self.reported is not None:
            rows = self.reported * self.case.chunk_rows
            yield f"{self.lost} rows are missing, the report explains {rows}", self.lost != rows
        # a stopped process goes on; that its training was told to be incomplete is no loss, but nor is it silent
        survives = self.case.signal != "kill" and not self.incomplete
        yield "lost though nobody died", survives and self.lost > 0


# ------------------------------------------------------------------------------------------------------- the training


@dataclass(frozen=True)
class Step:
    """A gradient that says where it runs."""

    folder: str
    seconds: float

    def __call__(self, model: Any, rows: Iterator[int]) -> dict[str, np.ndarray]:
        _note_call(self.folder)
        mine = np.fromiter(rows, int)
        update = {name: np.zeros_like(array) for name, array in model.items()}
        update["seen"][mine] = 1
        update["total"][:] = numbers(mine).sum()
        time.sleep(self.seconds)
        return update


def numbers(rows: np.ndarray) -> np.ndarray:
    """What each row adds to the total: whole, and all sums are exact."""
    return (rows * 7919) % 1009 + 1


def _note_call(folder: str) -> None:
    """One byte more in the file of this process, which is named after it and its parent."""
    path = os.path.join(folder, f"{os.getpid()}-{os.getppid()}")
    if not os.path.exists(path):
        faulthandler.register(signal.SIGUSR1, open(f"{path}.stack", "w"))  # noqa: SIM115 - as long as we live
    with open(path, "ab") as file:
        file.write(b".")


class Calls:
    """What the gradients of a training have noted down in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    @property
    def count(self) -> int:
        """Calls so far."""
        return sum(path.stat().st_size for path in self._files())

    def workers(self) -> list[tuple[int, int]]:
        """(process, parent) of all that have called, the one that called last first."""
        files = sorted(self._files(), key=lambda path: -path.stat().st_mtime_ns)
        return [(int(path.name.partition("-")[0]), int(path.name.partition("-")[2])) for path in files]

    def stacks(self) -> str:
        """Where the workers that are alive are now."""
        for pid, _ in self.workers():
            if Process(pid).alive:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(1.0)
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in self.folder.glob("*.stack"))

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.suffix != ".stack"]


def _victim(kind: str, session: Any, calls: Calls) -> int | None:
    """The process that is to get the signal, if it is there."""
    living = [(pid, parent) for pid, parent in calls.workers() if Process(pid).alive]
    candidates: list[int | None]
    match kind:
        case "agent":
            candidates = [member.pid for member in session._registrar.by_role("peer")]
        case "worker":
            candidates = [pid for pid, _ in living]
        case "executor":
            candidates = [_parent(parent) for _, parent in living]  # a worker's is Spark's daemon
        case "driver":
            observer = session._observer
            candidates = [] if observer is None else [observer.pid]
    return next((pid for pid in candidates if pid is not None and COMMANDS[kind] in _command(pid)), None)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""  # and no command is found in it


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


class Hand:
    """Sends the signal in a thread, as soon as the gradient was called so often."""

    def __init__(self, case: Case, session: Any, calls: Calls) -> None:
        self._case, self._session, self._calls = case, session, calls
        self.signaled = False
        self.began_at: float | None = None
        """When the gradient was first called."""
        self._victim: Process | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hand")

    def __enter__(self) -> Hand:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self._go_on()

    def _run(self) -> None:
        pid = None
        while pid is None:
            if self._over.wait(POLL_S):
                return
            count = self._calls.count
            if count and self.began_at is None:
                self.began_at = time.monotonic()
            if count >= self._case.moment * CALLS:
                pid = _victim(self._case.kind, self._session, self._calls)
        self._victim = Process(pid)
        os.kill(pid, signal.SIGKILL if self._case.signal == "kill" else signal.SIGSTOP)
        self.signaled = True
        if self._case.signal == "stop":
            time.sleep(STOP_S)  # also past the end of a training that does not need it
            self._go_on()

    def _go_on(self) -> None:
        victim = self._victim
        if victim is not None and victim.alive and self._case.signal != "kill":
            try:
                os.kill(victim.pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # it was replaced, and ended


def run_case(case: Case, data: Callable[[int], Any], folder: Path) -> Outcome:
    """Train once while that happens. `data(rows)` are partitions of the numbers below `rows`."""
    outcome = Outcome(case)
    calls = Calls(folder)
    rows = CALLS * case.chunk_rows
    model = {"seen": np.zeros(rows), "total": np.zeros(8)}
    sessions: list[DeepDist] = []

    def work() -> None:
        with DeepDist(model, peers=PEERS if case.engine == "lists" else None, progress=False) as dd:
            sessions.append(dd)
            with Hand(case, dd._session, calls) as hand:
                try:
                    _note_report(
                        outcome, dd.train(data(rows), Step(str(calls.folder), case.call_s), chunk_rows=case.chunk_rows)
                    )
                except IncompleteTraining as error:
                    outcome.raised, outcome.incomplete = f"IncompleteTraining: {error}", True
                    _note_report(outcome, error.report)
                except Exception as error:  # noqa: BLE001 - shown as what it is
                    outcome.raised = f"{type(error).__name__}: {error}"
                outcome.seconds = time.monotonic() - (hand.began_at or time.monotonic())
                note_rows(outcome, dd.model)
            outcome.signaled = hand.signaled

    with _listening(outcome.heard):
        thread = threading.Thread(target=work, name="training", daemon=True)
        thread.start()
        thread.join(TRAIN_MAX_S)
        if thread.is_alive():
            outcome.hangs = True
            _call_off(sessions, calls)
            thread.join(END_S)
            if thread.is_alive():
                raise SystemExit(f"{case}: the training does not end, even called off")
    outcome.calls = calls.count
    return outcome


def _note_report(outcome: Outcome, report: Report) -> None:
    outcome.reported, outcome.causes, outcome.missing = report.updates_lost, dict(report.lost), report.missing


def note_rows(outcome: Outcome, model: Any) -> None:
    """What became of each row."""
    seen, total = np.array(model["seen"]), np.array(model["total"])
    outcome.lost, outcome.once = int((seen == 0).sum()), int((seen == 1).sum())
    outcome.twice = len(seen) - outcome.lost - outcome.once
    outcome.exact = bool(np.all(total == (seen * numbers(np.arange(len(seen)))).sum()))


def _call_off(sessions: Sequence[DeepDist], calls: Calls) -> None:
    """Show where everybody is, and end a training that hangs: what it waits for is gone then."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    print(calls.stacks(), file=sys.stderr)
    for dd in sessions:
        session: Any = dd._session
        if session is not None and session._engine.current is not None:
            session._engine.current.cancel()
    for pid, _ in calls.workers():
        if Process(pid).alive:
            os.kill(pid, signal.SIGKILL)


class _Ears(logging.Handler):
    """Writes down what is logged."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(f"log: {record.getMessage()}")


@contextmanager
def _listening(heard: list[str]) -> Iterator[None]:
    """What is warned of, and what `p2p` logs, goes to `heard`."""
    ears, log = _Ears(heard), logging.getLogger("p2p")
    log.addHandler(ears)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        log.removeHandler(ears)
        heard += [f"{one.category.__name__}: {one.message}" for one in caught]


# ------------------------------------------------------------------------------------------------------------ engines


def cases(engines: Sequence[str], kinds: Sequence[str], signals: Sequence[str], quick: bool) -> list[Case]:
    """All lines of the table."""
    found: list[Case] = []
    for engine in engines:
        for kind in kinds:
            for name in signals:
                if (kind == "executor" and engine == "lists") or (name == "freeze" and kind != "driver"):
                    continue
                for moment in QUICK_MOMENTS if quick else MOMENTS:
                    found.append(Case(engine, kind, name, moment, len(found) % CHUNK_ROWS_MAX + 1))
    return found


def run(wanted: Sequence[Case], told: Callable[[Outcome], None]) -> list[Outcome]:
    """One after the other; those of Spark in one SparkContext. `told` hears of each at once."""
    outcomes: list[Outcome] = []
    with _own_folder() as folder:

        def train(case: Case, data: Callable[[int], Any]) -> None:
            outcomes.append(run_case(case, data, folder / f"calls-{len(outcomes)}"))
            told(outcomes[-1])

        for case in wanted:
            if case.engine == "lists":
                train(case, _lists)
        on_spark = [case for case in wanted if case.engine == "spark"]
        if on_spark:
            with _spark(folder) as context:
                for case in on_spark:
                    _wait_for_executors(context)
                    train(case, lambda rows: context.parallelize(range(rows), PARTITIONS))
    return outcomes


def _lists(rows: int) -> list[range]:
    size = rows // PARTITIONS
    return [range(first, first + size) for first in range(0, rows, size)]


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Where all that this program and its children write is, until the end."""
    folder = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))  # short: Unix sockets are made below it
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _spark(folder: Path) -> Iterator[Any]:
    """A context with two executors that writes below `folder` only."""
    import pyspark

    home = folder / "spark"
    home.mkdir()
    for entry in Path(pyspark.__file__).parent.iterdir():
        if entry.name != "work":
            (home / entry.name).symlink_to(entry)
    root = str(Path(__file__).resolve().parents[1])
    os.environ.update(
        SPARK_HOME=str(home),
        SPARK_LOCAL_DIRS=str(folder / "local"),
        SPARK_LOCAL_IP="127.0.0.1",
        PYSPARK_PYTHON=sys.executable,
        PYTHONPATH=os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        JDK_JAVA_OPTIONS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # a JVM that starts soon, on few cores
    )
    context = executors.start(
        "chaos",
        PEERS,
        1024,
        spark_task_maxFailures="8",
        spark_excludeOnFailure_enabled="false",
        spark_deploy_maxExecutorRetries="-1",
    )
    context.setLogLevel("OFF")  # the executors that are killed would fill the screen
    try:
        yield context
    finally:
        context.stop()


def _wait_for_executors(context: Any) -> None:
    """Until Spark has started another one for the one that was killed."""
    from p2p.engines.spark import executor_count

    give_up = time.monotonic() + EXECUTORS_TIMEOUT_S
    while executor_count(context) != PEERS:
        if time.monotonic() > give_up:
            raise SystemExit(f"{executor_count(context)} executors after {EXECUTORS_TIMEOUT_S:g} s, expected {PEERS}")
        time.sleep(0.1)


# -------------------------------------------------------------------------------------------------------------- table


def table(outcomes: Sequence[Outcome]) -> Table:
    """As a table of the rich library."""
    shown = Table(title=f"two peers, {PARTITIONS} partitions, {CALLS} chunks of 1 to {CHUNK_ROWS_MAX} rows")
    numeric = ("moment", "s", "calls", "once", "lost", "twice", "told lost")
    for column in ("engine", "process", "signal", *numeric, "exact", "right", "raised or warned"):
        shown.add_column(column, justify="right" if column in numeric else "left")
    for outcome in outcomes:
        case = outcome.case
        heard = [outcome.raised, *outcome.heard]
        shown.add_row(
            case.engine,
            case.kind,
            case.signal,
            f"{case.moment:.0%}",
            f"{outcome.seconds:.1f}",
            str(outcome.calls),
            str(outcome.once),
            str(outcome.lost),
            str(outcome.twice),
            "-" if outcome.reported is None else str(outcome.reported * case.chunk_rows),
            "yes" if outcome.exact else "no",
            "; ".join(outcome.wrong) or "yes",
            "; ".join(text.strip().splitlines()[0][:SHOWN_MAX] for text in heard if text.strip()),
        )
    return shown


def main(
    only: str | None, kind: str | None, signal_name: str | None, *, quick: bool, json_file: Path | None, check: bool
) -> None:
    """Run what is asked for and print the table."""
    wanted = cases(
        ENGINES if only is None else (only,),
        KINDS if kind is None else (kind,),
        SIGNALS if signal_name is None else (signal_name,),
        quick,
    )

    def told(outcome: Outcome) -> None:
        case = outcome.case
        print(
            f"{case.engine} {case.kind} {case.signal} {case.moment:.0%}: {'; '.join(outcome.wrong) or 'right'} "
            f"after {outcome.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    outcomes = run(wanted, told)
    Console(width=240).print(table(outcomes))
    if json_file is not None:
        json_file.write_text(json.dumps([{**asdict(one), "wrong": one.wrong} for one in outcomes], indent=1))
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    if check and wrong:
        print(f"{len(wrong)} of {len(outcomes)} lines are wrong", file=sys.stderr)
        sys.exit(1)
