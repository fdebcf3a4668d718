"""`deepdist doctor` answers "will training run here?" before a cluster is asked, and who could reach it (`doors`).

A check looks at one thing that training needs and returns a finding; it repairs nothing and raises nothing. A finding
that is wrong stops training with Spark on this machine; a noteworthy one only slows it down, or cannot be told from
here. The last line is drawn from the findings alone: a finding with a remedy is never fine.
"""

import enum
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gossip.errors import printable

PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 14)  # requires-python in pyproject.toml
JAVA_MIN = 17  # Spark 4.0 dropped everything older

# Distribution -> the module that training imports. All that pyproject.toml requires; that click is there shows itself.
PACKAGES = {
    "cloudpickle": "cloudpickle",
    "fsspec": "fsspec",
    "gensim": "gensim.models",
    "msgspec": "msgspec",
    "networkx": "networkx",
    "numba": "numba",
    "numpy": "numpy",
    "pyspark": "pyspark",
    "pyzmq": "zmq",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy.sparse",
    "xxhash": "xxhash",
}

# What a worker and its agent import; pyspark comes from Spark. The probe prints its version and which of them it lacks.
WORKER_MODULES = (
    "cloudpickle",
    "gensim",
    "gossip",
    "msgspec",
    "networkx",
    "numba",
    "numpy",
    "p2p",
    "scipy",
    "xxhash",
    "zmq",
)
WORKER_PROBE = """
import sys, importlib.util
print("%d.%d" % sys.version_info[:2], *[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])
"""

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES_MIN = 128 << 20  # containers get 64 MiB unless asked; two layers of 50,000 rows × 100 take 40 MB
COMMAND_TIMEOUT_S = 10.0  # a cold `java -version` from a network drive takes a few seconds
LOOPBACK_TIMEOUT_S = 2.0  # a round trip takes about a millisecond: longer is a firewall, not a slow machine
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux holds 108, the last of them zero
SOCKET_NAME_BYTES_MAX = 48  # what an agent adds to the temporary folder: a folder of its own and a name in it


class Verdict(enum.Enum):
    """How bad a finding is; the value is the color of its row."""

    FINE = "green"
    NOTE = "yellow"
    WRONG = "red"


@dataclass(frozen=True)
class Finding:
    """What a check has seen."""

    check: str
    verdict: Verdict
    result: str
    remedy: str = ""  # what to do; empty if nothing is to be done

    def __post_init__(self) -> None:
        assert self.verdict is not Verdict.FINE or not self.remedy, f"{self.check} is fine and has a remedy"
        assert self.verdict is not Verdict.WRONG or self.remedy, f"{self.check} is wrong and has no remedy"


def python_version() -> Finding:
    """Python is new enough, and not newer than what all packages are built for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHON_MIN <= sys.version_info[:2] < PYTHON_BELOW:
        expected, below = (".".join(map(str, bound)) for bound in (PYTHON_MIN, PYTHON_BELOW))
        result = f"{version}, expected {expected} or newer, and older than {below}"
        return Finding("Python", Verdict.WRONG, result, f"Install Python {expected}.")
    return Finding("Python", Verdict.FINE, f"{version}, {sys.executable}")


def packages() -> Finding:
    """Every package that training needs can be imported."""
    found, broken = [], {}
    for distribution, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
            broken[distribution] = f"{distribution}: {type(error).__name__}: {error}"
    if broken:
        remedy = f"{sys.executable} -m pip install --force-reinstall {' '.join(broken)}"
        return Finding("Packages", Verdict.WRONG, "\n".join(broken.values()), remedy)
    return Finding("Packages", Verdict.FINE, ", ".join(found))


def java() -> Finding:
    """The Java that Spark would start, JAVA_HOME before PATH, is new enough."""
    install = (
        f"Install Java {JAVA_MIN} or newer: apt-get install openjdk-{JAVA_MIN}-jre-headless (Debian, Ubuntu), "
        f"brew install openjdk@{JAVA_MIN} (macOS). The local engine runs without Java."
    )
    home = os.environ.get("JAVA_HOME")
    if home:
        install = f"Unset JAVA_HOME or point it to a newer one. {install}"
    command = str(Path(home, "bin", "java")) if home else shutil.which("java")
    if command is None:
        return Finding("Java", Verdict.WRONG, "not found: JAVA_HOME is not set, no java on PATH", install)
    answer = _output_of(command, "-version")
    version = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', answer)
    if version is None:
        return Finding("Java", Verdict.WRONG, f"{command} does not tell its version: {answer}", install)
    if int(version[2]) < JAVA_MIN:
        return Finding("Java", Verdict.WRONG, f"{version[1]}, expected {JAVA_MIN} or newer: {command}", install)
    return Finding("Java", Verdict.FINE, f"{version[1]}, {command}")


def worker_python() -> Finding:
    """The Python that Spark would start for its workers on this machine has the driver's version and the packages."""
    name = os.environ.get("PYSPARK_PYTHON")
    says = f"PYSPARK_PYTHON is {name}" if name else "PYSPARK_PYTHON is not set: workers run python3 from their PATH"
    remedy = (
        f"export PYSPARK_PYTHON={sys.executable} if workers run on this machine, else the path of a Python on theirs "
        "that has deepdist-p2p"
    )
    command = shutil.which(name or "python3")
    if command is None:  # no Spark of this machine would start its workers; one named may be the cluster's
        verdict = Verdict.NOTE if name else Verdict.WRONG
        return Finding("Worker Python", verdict, f"{says}; it is not on this machine", remedy)
    version, *missing = _output_of(command, "-c", WORKER_PROBE, *WORKER_MODULES).split() or ["silent"]
    expected = "{}.{}".format(*sys.version_info[:2])
    if version != expected:
        says = f"{says}; {command} is {' '.join([version, *missing])}, expected {expected}"
        return Finding("Worker Python", Verdict.WRONG, says, remedy)
    if missing:
        return Finding("Worker Python", Verdict.WRONG, f"{says}; {command} lacks {', '.join(missing)}", remedy)
    return Finding("Worker Python", Verdict.FINE, f"{says}; here that is {command}")


def shared_memory() -> Finding:
    """Replicas fit into shared memory; if there is none they live in temporary files."""
    if not (SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)):
        result = f"{SHARED_MEMORY} is not there or cannot be written: replicas live in temporary files"
        return Finding("Shared memory", Verdict.NOTE, result)
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    result = f"{free_bytes / (1 << 20):,.0f} MiB free in {SHARED_MEMORY}"
    if free_bytes < SHARED_MEMORY_BYTES_MIN:
        remedy = "Larger replicas go to temporary files; in a container, start it with --shm-size=1g."
        return Finding("Shared memory", Verdict.NOTE, result, remedy)
    return Finding("Shared memory", Verdict.FINE, result)


def loopback() -> Finding:
    """A ZeroMQ message comes back from a socket on this machine."""
    started = time.monotonic()
    try:
        _send_there_and_back(LOOPBACK_TIMEOUT_S)
    except (ImportError, OSError) as error:
        remedy = "Let this machine connect to itself: look at the firewall, and at the sandbox if there is one."
        return Finding("ZeroMQ", Verdict.WRONG, f"no round trip over 127.0.0.1: {error}", remedy)
    return Finding("ZeroMQ", Verdict.FINE, f"round trip over 127.0.0.1 in {(time.monotonic() - started) * 1000:.1f} ms")


def temporary_folder() -> Finding:
    """The temporary folder can be written, and a socket in it has a path that the system takes."""
    remedy = "Set TMPDIR to a short path that you can write, for example /tmp."
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("Temporary folder", Verdict.WRONG, f"cannot be written: {error}", remedy)
    path_bytes, path_bytes_max = len(os.fsencode(folder)), SOCKET_PATH_BYTES_MAX - SOCKET_NAME_BYTES_MAX
    if path_bytes > path_bytes_max:
        result = f"{folder}: {path_bytes} bytes, expected at most {path_bytes_max}, or no Unix socket fits into it"
        return Finding("Temporary folder", Verdict.WRONG, result, remedy)
    return Finding("Temporary folder", Verdict.FINE, folder)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python_version,
    packages,
    java,
    worker_python,
    shared_memory,
    loopback,
    temporary_folder,
)


def examine(doors: Iterable[object] = ()) -> bool:
    """Run all checks and print what they found, and the `doors`, a line each; whether nothing is wrong."""
    findings = [check() for check in CHECKS]
    table = Table(show_lines=True)
    for heading in ("check", "result", "what to do"):
        table.add_column(heading, overflow="fold")  # a path or a command is never cut short
    for finding in findings:
        table.add_row(Text(finding.check, finding.verdict.value), Text(finding.result), Text(finding.remedy))
    console = Console()
    console.print(table)
    for door in doors:
        console.print(printable(str(door)), highlight=False, markup=False, soft_wrap=True)
    named = {verdict: ", ".join(f.check for f in findings if f.verdict is verdict) for verdict in Verdict}
    if named[Verdict.WRONG]:
        console.print(f"Wrong: {named[Verdict.WRONG]}.", highlight=False)
    if named[Verdict.NOTE]:
        console.print(f"Stops nothing that this machine can tell, but look at: {named[Verdict.NOTE]}.", highlight=False)
    if not named[Verdict.WRONG] and not named[Verdict.NOTE]:
        console.print("Nothing is wrong.", highlight=False)
    return not named[Verdict.WRONG]


def _output_of(*command: str) -> str:
    """Return what a command prints, or in its place why it printed nothing."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.strip()


def _send_there_and_back(timeout_s: float) -> None:
    """Send a message over the loopback interface to a router and back; raise OSError if it is lost."""
    import zmq  # not above: a broken pyzmq is a finding too

    deadline = time.monotonic() + timeout_s

    def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
        if not socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
            raise TimeoutError(f"expected an answer within {timeout_s:g} s, got none")
        return socket.recv_multipart()

    try:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
            router.linger = dealer.linger = 0
            port = router.bind_to_random_port("tcp://127.0.0.1")
            dealer.connect(f"tcp://127.0.0.1:{port}")
            dealer.send(b"ping")
            router.send_multipart(receive(router))
            receive(dealer)
    except zmq.ZMQBaseError as error:
        raise OSError(str(error)) from error
