"""What `deepdist doctor` says of doors: who could reach a training, on this machine or beyond, and what is in the way.

A door is open, guarded, or was not looked at. Ports are those of trainings of this user that run now. Each is asked how
it is guarded: a ZeroMQ socket says so before anybody has shown anything. Nothing is changed, and nothing raised.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import pwd
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TIMEOUT_S = 1.0
"""For a port to answer: all are of this machine."""
LISTENS = "0A"
"""A socket's state in /proc/net/tcp."""
ROLES = {
    "p2p.agent.process": "agent",
    "p2p.engines.local": "worker",
    "p2p.standby.process": "standby",
    "p2p.lbfgs.shard_process": "shard",
    "p2p.lbfgs.worker_process": "worker",
    "org.apache.spark.": "Spark",
}
"""Of a process, by what is in its command."""
GREETING = bytes.fromhex("ff00000000000000017f03")
"""How a ZeroMQ socket begins (ZMTP 3.0, rfc.zeromq.org/spec/23); the other end then names its mechanism."""
STATUS = b"GET /status HTTP/1.0\r\n\r\n"


class State(enum.Enum):
    """Of a door."""

    OPEN = "open"
    GUARDED = "guarded"
    UNSEEN = "not looked at"


@dataclass(frozen=True)
class Door:
    """A way in."""

    state: State
    what: str
    words: str

    def __str__(self) -> str:
        return f"{self.state.value:<14}{self.what}: {self.words}"


# ------------------------------------------------------------------------------------------------------------- ports


@dataclass(frozen=True)
class Port:
    """One that a process listens on."""

    host: str
    port: int
    role: str
    pid: int

    @property
    def reach(self) -> str:
        """Who can connect."""
        address = ipaddress.ip_address(self.host)
        if address.is_loopback:
            return "this machine"
        return "every interface" if address.is_unspecified else "the network"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port} ({self.reach})"


def ports() -> Iterator[Door]:
    """Those of all trainings of this user that run now."""
    if not (PROC / "net" / "tcp").exists():
        yield Door(State.UNSEEN, "Ports", "this system has no /proc to find them in")
        return
    found = sorted(listening(processes()), key=lambda port: (port.role, port.pid, port.port))
    if not found:
        words = "no training of this user listens here now: ask again while one runs"
        yield Door(State.UNSEEN, "Ports", words)
    for port in found:
        if port.role != "Spark":
            yield asked(port)
    if others := [str(port) for port in found if port.role == "Spark"]:
        yield Door(State.UNSEEN, "Ports of Spark", f"{', '.join(others)}: its own settings guard them, see Spark below")


def processes() -> dict[int, str]:
    """The roles of this user's processes that belong to trainings, by pid; a driver program is the parent of others."""
    roles, parents = {}, {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if entry.stat().st_uid != os.getuid():
                continue
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
        role = next((role for part, role in ROLES.items() if part in command), None)
        if role is not None:
            roles[int(entry.name)] = role
    drivers = {parents[pid] for pid in roles} & parents.keys() - roles.keys() - {1}
    return {**roles, **dict.fromkeys(drivers, "driver program")}


def listening(roles: Mapping[int, str]) -> Iterator[Port]:
    """The ports of these processes."""
    holders = {}
    for pid in roles:
        try:
            for entry in os.scandir(PROC / str(pid) / "fd"):
                holders[os.readlink(entry.path)] = pid
        except OSError:
            continue  # it has ended meanwhile, or may not be looked at
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue  # no IPv6
        for line in lines:
            fields = line.split()
            holder = holders.get(f"socket:[{fields[9]}]")
            if fields[3] == LISTENS and holder is not None:
                host, _, number = fields[1].partition(":")
                yield Port(_address(host), int(number, 16), roles[holder], holder)


def _address(digits: str) -> str:
    """Of /proc/net/tcp and tcp6: words of four bytes, as the processor has them."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def asked(port: Port) -> Door:
    """How a port says that it is guarded."""
    what = f"Port of {port.role} {port.pid}, {port}"
    greeted = _answer(port, GREETING, 64)
    if greeted[:1] == b"\xff":
        mechanism = greeted[12:32].rstrip(b"\0").decode("ascii", "replace")
        if mechanism == "CURVE":
            return Door(State.GUARDED, what, "ZeroMQ, speaks to who has keys of the run")
        words = (
            f"ZeroMQ, asks for no keys ({mechanism or 'no mechanism'}): a notebook's kernel may, a training does not"
        )
        return Door(State.OPEN, what, words)
    status = _answer(port, STATUS, 16)
    if not status.startswith(b"HTTP/"):
        return Door(State.UNSEEN, what, "speaks neither ZeroMQ nor HTTP: none of a training's")
    if status[9:12] == b"401":
        words = "HTTP, asks for a token"
        if port.reach != "this machine":
            words += "; it is not encrypted, so whoever can listen on the network between can read it"
        return Door(State.GUARDED, what, words)
    return Door(State.OPEN, what, "HTTP without a token: who can connect may read the model and send updates")


def _answer(port: Port, said: bytes, nbytes: int) -> bytes:
    """The first bytes that come back."""
    address = ipaddress.ip_address(port.host)
    host = port.host if not address.is_unspecified else "127.0.0.1" if address.version == 4 else "::1"
    found = b""
    try:
        with socket.create_connection((host, port.port), TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.sendall(said)
            while len(found) < nbytes and (data := connection.recv(nbytes - len(found))):
                found += data
    except OSError:
        pass  # what has come says enough
    return found


# ----------------------------------------------------------------------------------------------------------- folders


def temporary_folder() -> Iterator[Door]:
    """Whose it is, and who else may move what is in it."""
    folder = tempfile.gettempdir()
    found = os.stat(folder)
    mode, what = stat.S_IMODE(found.st_mode), "Temporary folder"
    words = f"{folder}, {mode:04o} of {_user(found.st_uid)}"
    if found.st_uid not in (0, os.getuid()):
        yield Door(State.OPEN, what, f"{words}, who may move and remove what is in it: set TMPDIR to one of your own")
    elif mode & 0o022 and not mode & stat.S_ISVTX:
        yield Door(State.OPEN, what, f"{words}: others may move and remove what is in it (chmod +t)")
    else:
        yield Door(State.GUARDED, what, f"{words}: others leave alone what is yours")


def private_folder() -> Iterator[Door]:
    """In which agents and tasks meet: which it is, and who has taken the names before it."""
    from p2p.agent import local_socket

    what = "Private folder"
    for root in local_socket.roots(tempfile.gettempdir()):
        try:
            found = os.lstat(root)
        except OSError:
            yield Door(State.GUARDED, what, f"{root}, made when it is needed, for this user alone")
            return
        if local_socket.is_private(root):
            yield Door(State.GUARDED, what, f"{root}, 0700 of {_user(found.st_uid)}: nobody else enters")
            return
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no folder"
        words = f"{root} is {kind}, {stat.S_IMODE(found.st_mode):04o} of {_user(found.st_uid)}: it is passed by"
        yield Door(State.GUARDED, what, words)
    yield Door(State.OPEN, what, "all its names are taken, so no training begins: set TMPDIR to a folder of your own")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


# --------------------------------------------------------------------------------------------------------- processes


def other_processes() -> Iterator[Door]:
    """What processes of this user can do to each other, and what others see of them."""
    what = "Processes of this user"
    if not (PROC / "self" / "mounts").exists():
        yield Door(State.UNSEEN, what, "this system has no /proc to tell")
        return
    scope = _read(PROC / "sys" / "kernel" / "yama" / "ptrace_scope")
    traces = "trace" if scope in (None, "0") else f"not trace (ptrace_scope {scope})"
    words = f"each can open the files of the others, {traces} and end them: what you do not trust needs another user"
    yield Door(State.OPEN, what, words)
    mounts = (_read(PROC / "self" / "mounts") or "").splitlines()
    options = [line.split()[3] for line in mounts if " /proc proc " in line]
    hidden = [each for line in options for each in line.split(",") if each.startswith("hidepid=")]
    if hidden and hidden[0] not in ("hidepid=0", "hidepid=off"):
        yield Door(State.GUARDED, "Arguments of processes", "/proc hides them from other users (hidepid)")
    else:
        yield Door(State.OPEN, "Arguments of processes", "all users see them (no hidepid); a training's have no keys")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


# ------------------------------------------------------------------------------------------------------------- Spark


def of_spark(master: str | None, conf: Mapping[str, str]) -> Iterator[Door]:
    """How the traffic of a Spark cluster is guarded, which has the keys in it, by its master's URL and settings."""
    what = "Spark"
    master = master or conf.get("spark.master")
    if master is None and not conf:
        yield Door(State.UNSEEN, what, "say --spark-master, --spark-conf or --spark-properties")
        return
    try:
        from p2p.engines.spark_secrets import is_on, lacking
    except ImportError as error:
        yield Door(State.UNSEEN, what, f"the packages are not all there: {error}")
        return
    found = lacking(conf.get)
    if master is not None and master.startswith("local"):
        yield _local_spark(is_on(conf.get, "spark.authenticate"), conf)
    elif found:
        words = f"{' and '.join(found)} off: the keys of a run go over the network as they are"
        yield Door(State.OPEN, what, words)
    else:
        yield Door(State.GUARDED, what, "traffic is encrypted, and only who has its secret can connect")
    if is_on(conf.get, "spark.io.encryption.enabled"):
        yield Door(State.GUARDED, "Disks of Spark", "encrypted")
    else:
        where = conf.get("spark.local.dir") or "spark.local.dir"
        words = f"{where} may have keys of a run, not encrypted (spark.io.encryption.enabled), in folders of one user"
        yield Door(State.GUARDED, "Disks of Spark", words)
    if is_on(conf.get, "spark.eventLog.enabled"):
        where = conf.get("spark.eventLog.dir") or "/tmp/spark-events"
        words = f"{where}: it has no keys, but texts of errors, with what they quote of rows and paths"
        yield Door(State.UNSEEN, "Event log of Spark", words)


def _local_spark(authenticates: bool, conf: Mapping[str, str]) -> Door:
    """The driver program listens for executors even where there are none."""
    if authenticates:
        return Door(State.GUARDED, "Spark", "nothing leaves this machine, and only who has its secret can connect")
    host = conf.get("spark.driver.bindAddress") or conf.get("spark.driver.host") or os.environ.get("SPARK_LOCAL_IP")
    reach = "of this machine" if host in ("127.0.0.1", "localhost", "::1") else "on the network"
    words = f"who can connect to its ports, {reach}, may ask for what tasks carry: set spark.authenticate=true"
    return Door(State.OPEN, "Spark", words + ("" if reach == "of this machine" else ", or SPARK_LOCAL_IP=127.0.0.1"))


def settings(given: Iterable[str], properties: str | None) -> dict[str, str]:
    """Of a file such as spark-defaults.conf, and NAME=VALUE of the command line, which override it.

    `ValueError` for what is neither, `OSError` where there is no file.
    """
    found = {}
    if properties is not None:
        for line in Path(properties).read_text(errors="replace").splitlines():
            name, _, value = line.strip().replace("=", " ", 1).partition(" ")
            if name and not name.startswith("#"):
                found[name] = value.strip()
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"{each!r:.80}, expected NAME=VALUE, such as spark.authenticate=true")
        found[name.strip()] = value.strip()
    return found


# ---------------------------------------------------------------------------------------------------------------- all


def doors(master: str | None = None, conf: Mapping[str, str] | None = None) -> Iterator[Door]:
    """All of them."""
    looks: tuple[Callable[[], Iterator[Door]], ...] = (
        ports,
        temporary_folder,
        private_folder,
        other_processes,
        lambda: of_spark(master, conf or {}),
    )
    for look in looks:
        try:
            yield from look()
        except (OSError, ImportError) as error:
            yield Door(State.UNSEEN, "More", f"{error}")
