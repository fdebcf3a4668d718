"""A standby: a process with one member of a group of masters. On Spark it is beside an executor.

    driver program: Open -> the model and `descent`, unpacked -> p2p.master.serving + p2p.standby.group
                    Shut -> they are forgotten; the next training brings its own

It runs the user's `descent`. It lives as long as its anchor, and ignores Ctrl-C, as an agent does.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass

import msgspec
import zmq
from msgspec import Struct
from msgspec.structs import replace

from gossip.arrays import Arrays
from gossip.fields import Count
from gossip.marks import Unit
from gossip.zmq.sockets import Keys, is_loopback
from p2p import open_files, parcel
from p2p.adapters.model import Model
from p2p.agent.local_socket import Process, address_towards, leave_with
from p2p.master.served import Served
from p2p.master.serving import Server
from p2p.master.staleness import Weight
from p2p.standby.coordinator import GroupCoordinator
from p2p.standby.group import Group
from p2p.standby.member import Member
from p2p.standby.messages import Here, Leave, OfHouse, Open, Opened, Place, Shut
from p2p.standby.ties import Ties
from p2p.worker.job import Descent

log = logging.getLogger("p2p")

HERE_S = 1.0
"""How often it says that it is there."""
LOOK_S = 0.2


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a standby is told at its start, as JSON on its standard input."""

    run: str
    me: Count
    life: Count
    driver: int
    """The driver program's member,"""
    driver_endpoint: str
    """and where it listens."""
    address: str
    """The driver program's interface: loopback, or the standby listens at the one that leads there."""
    secret: str | None = None
    """The secret half of the masters' key towards workers,"""
    group_secret: str | None = None
    """and towards each other."""
    anchor: Count = 0
    name: str = ""
    """Of the executor that it is beside; see `is_beside`."""


@dataclass(frozen=True)
class Opening:
    """A training, as the standbys need to know it. Sent by cloudpickle."""

    skeleton: bytes
    arrays: Arrays
    descent: Descent | None
    epochs_before: int
    applied: set[Unit]
    max_staleness: int | None
    drops_bad: bool
    weight: Weight | None
    version: int


def is_beside(name: str) -> bool:
    """A standby was started with this name on this machine, and lives. Where the system has no such names, none is."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(f"\0{name}")
        except OSError:
            return False
        return True


def start_standby(settings: Settings, anchor: int, name: str = "") -> subprocess.Popen[bytes]:
    """Start one that lives as long as the process `anchor`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", "from p2p.standby.process import main; main()"],
            stdin=subprocess.PIPE,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(replace(settings, anchor=anchor, name=name)))
    process.stdin.close()
    return process


class Standby:
    """The process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        keys = None if settings.secret is None else Keys.of(settings.secret)
        group_keys = None if settings.group_secret is None else Keys.of(settings.group_secret)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        address = settings.address if is_loopback(settings.address) else address_towards(settings.driver_endpoint)
        self._ties = Ties(self._context, settings.run, settings.me, settings.life, address, group_keys)
        self._ties.connect(settings.driver, settings.driver_endpoint)
        self._server = Server(address, settings.run, keys)
        self._here = Here(place=Place(self._ties.endpoint, self._server.address.endpoint), pid=os.getpid())

    def run(self) -> None:
        """One training after the other, until the driver program says that there are no more."""
        come: tuple[OfHouse, bytes | None] | None = None
        while True:
            if come is None:
                come = self._wait()
            message, data = come
            if isinstance(message, Leave):
                return
            come = self._train(message, data) if isinstance(message, Open) and data is not None else None

    def close(self) -> None:
        """Listen no more."""
        self._server.close()
        self._ties.close()
        self._context.term()

    def _wait(self) -> tuple[OfHouse, bytes | None]:
        """For the driver program."""
        while True:
            self._ties.say(self._settings.driver, self._here)
            self._ties.inbox.poll(int(HERE_S * 1e3))
            for _, message, data in self._ties.hear():
                if isinstance(message, Leave | Open):
                    return message, data

    def _train(self, opening: Open, data: bytes) -> tuple[OfHouse, bytes | None] | None:
        """Take part in one. Returns what else the driver program wants, if anything."""
        settings, ties = self._settings, self._ties
        ties.training = opening.training
        try:
            told: Opening = parcel.loads(data)
            model = Model.from_skeleton(told.skeleton)
            model.load(told.arrays)
            served = Served(model)
            served.version = told.version
            coordinator = GroupCoordinator(
                served,
                told.descent,
                _nobody,
                told.epochs_before,
                told.applied,
                told.max_staleness,
                told.drops_bad,
                told.weight,
            )
        except Exception:  # noqa: BLE001 - the driver program raises it
            trouble = traceback.format_exc()
            ties.say(settings.driver, Opened(training=opening.training, trouble=trouble))
            return None
        member = Member(settings.me, len(opening.places), opening.training)
        group = Group(ties, member, opening.places, coordinator, self._server.wake, opening.recover)
        self._server.agreement = group
        self._server.start(coordinator)
        group.say(settings.driver, Opened(training=opening.training))
        try:
            return self._stay(group, opening)
        finally:
            self._server.stop()
            group.close()
            coordinator.close()
            served.close()
            self._server.forget_workers()

    def _stay(self, group: Group, opening: Open) -> tuple[OfHouse, bytes | None] | None:
        """Until the training is over, or what comes shows that it is. The sockets are the server's thread's now."""
        while True:
            if group.broken is not None:
                raise group.broken  # another process takes its place
            while group.house:
                sender, message, data = group.house.popleft()
                match message:
                    case Open() if message.training == opening.training:
                        group.say(sender, Opened(training=opening.training))
                    case Open() | Leave():
                        return message, data
                    case Shut():
                        return None
                    case _:
                        pass
            time.sleep(LOOK_S)


def _nobody() -> None:
    """The driver program's member applies the same, fails as well, and ends the tasks."""


def main() -> None:
    """Run a standby, with its settings on the standard input."""
    logging.basicConfig(format="deepdist standby %(process)d: %(message)s", level=logging.WARNING)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    open_files.allow_many()
    told = sys.stdin.buffer.read()
    if not told:
        return  # whoever started it was killed
    settings = msgspec.json.decode(told, type=Settings)
    leave_with(Process(settings.anchor))
    with socket.socket(socket.AF_UNIX) as beside:
        if settings.name and sys.platform == "linux":
            beside.bind(f"\0{settings.name}")
            beside.listen()
        standby = Standby(settings)
        try:
            standby.run()
        finally:
            standby.close()
