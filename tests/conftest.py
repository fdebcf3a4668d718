"""What holds for all tests: one way to run hypothesis; and for those with real processes.

Each of these gets a temporary folder of its own, and must leave nothing behind.

Whatever a test starts, however deep, inherits a mark in its environment; by that it is found in /proc.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None, print_blob=True)
# Mutants are many: a failure is not made smaller, and what few examples find is enough.
settings.register_profile(
    "mutation", settings.get_profile("deterministic"), max_examples=20, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))

SETTLED_TIMEOUT_S = 60.0

Seen = TypeVar("Seen")


NEEDS_TORCH = ("p2p/models/torch", "benchmarks/test_torch.py")
collect_ignore = [] if importlib.util.find_spec("torch") else list(NEEDS_TORCH)


def pytest_report_header() -> list[str]:
    return [f"torch is not installed: left out {', '.join(collect_ignore)}; make test-extras runs them"] * bool(
        collect_ignore
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what comes of stories into their files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names that differ from one process to the next: tests that run side by side are told apart by name.
    Those on Spark come first."""
    benchmarks = Path(__file__).parent / "benchmarks"
    on_spark = {item.path for item in items if item.get_closest_marker("spark")}
    items.sort(key=lambda item: item.path not in on_spark)  # minutes in one file: begun last, all would wait for it
    for item in items:
        if benchmarks in item.path.parents:
            item.add_marker(pytest.mark.long)
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name, expected a name of its own: give ids=")
        if "\\x1f\\x8b" in item.nodeid:  # with the time when it was packed
            raise pytest.UsageError(f"{item.nodeid} has a gzip file in its name, expected a name of its own: give ids=")


def _settled(look: Callable[[], Seen], expected: Seen) -> Seen:
    give_up = time.monotonic() + SETTLED_TIMEOUT_S
    while (seen := look()) != expected and time.monotonic() < give_up:
        time.sleep(0.01)
    return seen


@pytest.fixture(scope="session")
def settled() -> Callable[[Callable[[], Seen], Seen], Seen]:
    """`settled(look, expected)`: what `look()` sees, as soon as it is what was expected, or in the end.

    For what a process holds: the system shows a thread a little longer than it lives.
    """
    return _settled


@contextmanager
def _out_of_descriptors(left: int = 0) -> Iterator[None]:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, allowed[1]))
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    for _ in range(left):
        os.close(taken.pop())
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
        for descriptor in taken:
            os.close(descriptor)


@pytest.fixture(scope="session")
def out_of_descriptors() -> Callable[..., AbstractContextManager[None]]:
    """`with out_of_descriptors(left=0):` this process may open so many files more."""
    return _out_of_descriptors


# ------------------------------------------------------------------------------------------------- real processes

MARK = "DEEPDIST_TEST_MARK"
PROGRAMS = Path(__file__).parent / "p2p" / "programs"
GONE_TIMEOUT_S = 60.0
"""Agents look for their anchor twice a second; the rest is for a busy machine."""
POLL_S = 0.05


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look again and again, at most `timeout_s`; what was seen last."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_S)
    return True


def _shared_memory() -> set[str]:
    """What is in shared memory, but for the semaphores of other programs' process pools: we make none."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return "gone meanwhile"


class Place:
    """A temporary folder and a mark, for a test and all the processes it starts."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(16)
        self.folder = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))  # short: Unix sockets are made below it
        # and whatever agent is started checks its state after each event
        self.environment = {MARK: self.mark, "TMPDIR": str(self.folder), "DEEPDIST_CHECK": "1"}
        self._shared_memory = _shared_memory()
        self._threads = set(threading.enumerate())

    def processes(self) -> dict[int, str]:
        """The command lines of the living processes with our mark, by pid; this process is not one of them."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) == os.getpid():
                continue
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found[int(entry)] = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                pass  # it ended meanwhile, or is another user's
        return found

    def agents(self) -> set[int]:
        """The pids of the living agents with our mark."""
        return {pid for pid, command in self.processes().items() if "p2p.agent.process" in command}

    def agent_folders(self) -> dict[str, list[str]]:
        """What is left of the folders in which agents and tasks meet: the files of each, and notes of failed starts."""
        return {
            str(path): [file.name if file.name != "failed" else _text(file) for file in path.glob("*")]
            for path in self.folder.glob("deepdist-*/*")
        }

    def leftovers(self) -> dict[str, object]:
        """Everything that should not be there after a session, by kind; empty when all is well."""
        found: dict[str, object] = {
            "processes": self.processes(),
            "folders of agents": self.agent_folders(),
            "/dev/shm": sorted(_shared_memory() - self._shared_memory),
            "threads": sorted(thread.name for thread in set(threading.enumerate()) - self._threads),
        }
        return {kind: what for kind, what in found.items() if what}

    def close(self) -> dict[str, object]:
        """Wait until nothing is left over; end what did not go by itself, and tell what it was."""
        wait_until(lambda: not self.leftovers(), GONE_TIMEOUT_S)
        left = self.leftovers()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place for one test. What is left over at its end fails it."""
    tmp_path_factory.getbasetemp()  # pytest's own is made before TMPDIR changes
    place = Place()
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(place.folder))
    yield place
    assert place.close() == {}


class Program:
    """A program of `programs/`, run in a process group of its own as a shell would: `run(name, results)`.

    It writes its results to the JSON file it is given, and is ended when it takes too long. What it reads from its
    standard input is `self.process.stdin`, where it is asked for.
    """

    def __init__(
        self, place: Place, name: str, environment: dict[str, str] | None = None, *, reads: bool = False
    ) -> None:
        self.place = place
        self.name = name
        self._results = place.folder / f"{name}.json"
        self._output = place.folder / f"{name}.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / f"{name}.py"), str(self._results)],
                stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=place.folder,
                env={**os.environ, **place.environment, **(environment or {})},
                start_new_session=True,
            )

    def results(self, timeout_s: float) -> Any:
        """Wait for its end, which must be a good one, and read what it wrote."""
        code = self.wait(timeout_s)
        assert code == 0, f"{self.name} ended with exit code {code}; it said:\n{self.output}"
        return json.loads(self._results.read_text())

    def wait(self, timeout_s: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} runs after {timeout_s:g} s; it said:\n{self.output}") from None
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def wait_for_training(self, timeout_s: float) -> None:
        """Until a gradient runs: the programs that are interrupted make the file `training` then."""
        found = wait_until(
            lambda: self.process.poll() is not None or (self.place.folder / "training").exists(), timeout_s
        )
        assert found, f"{self.name} did not begin to train within {timeout_s:g} s; it said:\n{self.output}"
        assert self.process.poll() is None, f"{self.name} ended too early; it said:\n{self.output}"

    def press_ctrl_c(self) -> None:
        """What a terminal does: the whole process group gets it, workers and agents as well."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def output(self) -> str:
        return self._output.read_text()


@pytest.fixture(scope="session")
def make_place() -> type[Place]:
    """For fixtures that live longer than one test, and close their place themselves."""
    return Place


@pytest.fixture(scope="session")
def start_program() -> Callable[..., Program]:
    """`start_program(place, name, environment=None, reads=False)` starts a program of `programs/`."""
    return Program


@pytest.fixture(scope="session")
def spark_environment() -> Callable[[Place], dict[str, str]]:
    """`spark_environment(place)` has all that Spark writes kept below the place, not in the installed package."""

    def below(place: Place) -> dict[str, str]:
        import pyspark

        home = place.folder / "spark"
        home.mkdir()
        for entry in Path(pyspark.__file__).parent.iterdir():
            if entry.name != "work":
                (home / entry.name).symlink_to(entry)
        return {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_DIRS": str(place.folder / "local"),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": sys.executable,
            "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # a JVM that starts soon, on few cores
        }

    return below


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool], float], bool]:
    """`eventually(condition, timeout_s)` looks again and again."""
    return wait_until
