"""The agent: one process per executor that owns the replica (shared memory) and the sockets.

    tasks of this executor --- Unix socket --->  agent  <--- ZeroMQ --->  the other agents
                           <-- shared memory --         <--- addresses --- registrar (driver program)

The agent runs no user code but, where agents mix, a strategy of the user's own, and with a codec of the user's own the
kinds of its updates: an exception, a slow `descent` or an interpreter lock held for seconds cannot stop the sockets. It
lives as long as its *anchor*: on Spark the daemon that forks the Python workers of one executor, elsewhere the driver
program. It ignores Ctrl-C, which is the driver program's to handle.

Its discipline (`p2p.agent.discipline`), which has the peer, says what it does with updates.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from typing import assert_never

import zmq

from gossip.errors import GossipError, UsageError, ran_out_of_files
from gossip.events import Closed, Exhausted, Leaving
from gossip.messages import PeerId
from gossip.story import Witness
from gossip.updates import KINDS
from gossip.updates.table import Kinds
from gossip.zmq.sockets import Keys, fingerprint
from p2p import open_files
from p2p.agent import local_socket
from p2p.agent.client import LEAVE_SIGNALS, START_TIMEOUT_S, STORY_SIGNAL, AgentSettings, read_settings
from p2p.agent.discipline import Discipline, House
from p2p.agent.lanes import Lanes
from p2p.agent.local_socket import Process
from p2p.agent.registrar_link import Enrollment, RegistrarLink, Reports
from p2p.agent.registrar_messages import (
    Begin,
    Drain,
    Drained,
    FromRegistrar,
    Hello,
    Question,
    Refused,
    Roster,
    Settle,
    Stop,
    Warned,
)
from p2p.agent.replica import Replica, shortage
from p2p.agent.requests import Welcome
from p2p.agent.tasks import Door, Tasks
from p2p.row_order import taken_apart

log = logging.getLogger("p2p.agent")


class Life:
    """It lasts until somebody asks the process to leave, or its anchor is gone."""

    def __init__(self, anchor: int) -> None:
        self._anchor = Process(anchor)
        self._ended = False

    def take_signals(self) -> None:
        """From now on some ask it to leave, and Ctrl-C does not; see `p2p.agent.client.start_agent`."""
        for name in LEAVE_SIGNALS:
            signal.signal(name, lambda *_: self.end())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*LEAVE_SIGNALS, signal.SIGINT})

    def end(self) -> None:
        """Somebody asks it to leave."""
        self._ended = True

    @property
    def goes_on(self) -> bool:
        return not self._ended and self._anchor.alive


class Storyteller:
    """Writes down what happened last to the agent's peer: when it is asked by a signal, and when the agent fails.

    The file is in this user's private temporary folder, `story-<pid>.jsonl`. It is written in the signal's handler, so
    that an agent that hangs tells where.
    """

    def __init__(self, witness: Witness, link: RegistrarLink) -> None:
        self._witness = witness
        self._link = link
        self._unsaid: str | None = None

    def take_signal(self) -> None:
        """From now on it may be asked."""
        signal.signal(STORY_SIGNAL, lambda *_: self.write())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {STORY_SIGNAL})

    def write(self) -> None:
        """Write the file, and log where it is. Where that cannot be, log why: the agent goes on."""
        try:
            path = os.path.join(local_socket.private_folder(), f"story-{os.getpid()}.jsonl")
            with open(f"{path}.new", "w") as file:
                file.writelines(f"{line.to_json()}\n" for line in self._witness.lines())
            os.rename(f"{path}.new", path)
            self._unsaid = f"its last events are in {path}: see deepdist simulate --story"
        except (OSError, UsageError) as error:
            self._unsaid = f"its last events cannot be written: {error}"
        log.warning("%s", self._unsaid)

    def tell(self) -> None:
        """Let the driver program know of it."""
        if self._unsaid is not None:
            self._link.say(Warned(peer=self._link.me, text=self._unsaid))
            self._unsaid = None


class Agent:
    """The process itself: what the registrar and the tasks want of it goes to its discipline."""

    def __init__(self, settings: AgentSettings, folder: str) -> None:
        self.settings = settings
        layout = settings.layout
        keys = None if settings.registrar_key is None else _keys(settings.secret)
        self.me = PeerId(os.urandom(16).hex()) if keys is None else fingerprint(keys.public)
        name = f"{socket.gethostname()}:{os.getpid()}"
        lacks = shortage(layout.nbytes)
        replica = Replica(layout, kinds=_kinds(settings.kinds))
        self._life = Life(settings.anchor)
        self._has_drained = False
        """The epochs so far are closed in the next turn."""
        self._drain_s: float | None = None
        """A request to drain that waits for the updates that were handed over before it."""
        self._context = zmq.Context()
        self._link = RegistrarLink(self._context, settings.registrar, keys, self.me, settings.registrar_key)
        self._enrollment = Enrollment()
        house = House(
            settings=settings,
            me=self.me,
            layout=layout,
            replica=replica,
            context=self._context,
            keys=keys,
            address=local_socket.address_towards(settings.registrar),
            names=self._enrollment.names,
            drained=self._on_drained,
            warn=self._link.warn,
        )
        self._discipline = _discipline(house, settings)
        self._runtime = self._discipline.runtime
        self._greeting = Hello(
            peer=self.me,
            run=settings.run,
            role=settings.role,
            name=name,
            pid=os.getpid(),
            adverts=self._runtime.endpoints.adverts,
            pulls=self._runtime.endpoints.pulls,
            key=self._runtime.endpoints.key,
            token=settings.token or "",
            shortage=lacks,
            adopts=settings.adopts,
        )
        self._reports = Reports(self._link, self._discipline, self._enrollment)
        welcome = Welcome(layout=layout, peer=self.me, name=name, pid=os.getpid(), mixes=settings.mixing is not None)
        self._tasks = Tasks(self._discipline, replica, welcome, loaded=self._hello, warn=self._link.warn)
        self._door = Door(folder)
        self._storyteller = Storyteller(self._runtime.witness, self._link)

    # --------------------------------------------------------------------------------------------------------- life

    def run(self) -> None:
        """Live until stopped or until the anchor is gone."""
        self._life.take_signals()
        self._storyteller.take_signal()
        try:
            self._door.shut()
            if not self._comes_later:
                self._door.open()
            self._tasks.listen(self._door.listener)
            if self._comes_later:
                self._enroll()
            self._runtime.register(self._link.socket, self._on_registrar)
            while self._life.goes_on:
                self._runtime.poll(self._discipline.turn())
                self._tasks.answer()
                self._begin_drain()
                self._close_epochs()
                self._reports.tell_if_due()
                self._storyteller.tell()
        except GossipError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            if ran_out_of_files(error):
                why = open_files.words(why)
            self._link.warn(f"an agent ends: {why}")
            self._storyteller.write()
            self._storyteller.tell()
            raise
        finally:
            self._leave()

    @property
    def _comes_later(self) -> bool:
        """It begins with somebody's replica, and not with what the driver program puts into its own."""
        return self.settings.role != "observer" or self.settings.adopts

    def _enroll(self) -> None:
        """Tell the registrar where we are, take the model's arrays from another agent, and let the tasks in."""
        self._hello()
        known, life, give_up = self._enrollment, self._life, time.monotonic() + START_TIMEOUT_S
        while not known.names and time.monotonic() < give_up and known.refused is None and life.goes_on:
            if self._link.wait(0.2):
                self._on_registrar()
        if not life.goes_on:
            return
        if known.refused is not None:
            raise UsageError(known.refused)
        if not known.names:
            raise UsageError(
                f"the driver program's registrar at {self.settings.registrar} did not answer within "
                f"{START_TIMEOUT_S:g} s: can this host reach that address (spark.driver.host)?"
            )
        # who comes late adopts a replica first; until then there is nothing to compute from
        while not self._runtime.peer.ready and time.monotonic() < give_up and life.goes_on:
            self._runtime.poll(0.1)
            self._on_registrar()
            self._reports.tell_if_due()
        if not life.goes_on:
            return
        if not self._runtime.peer.ready:
            raise UsageError(f"no other agent gave its replica within {START_TIMEOUT_S:g} s: are they alive?")
        self._door.open()

    def _hello(self) -> None:
        self._link.say(self._greeting)

    def _leave(self) -> None:
        self._door.close()
        try:
            self._runtime.happen(Leaving())
        finally:  # a peer whose state is broken has no farewell
            self._runtime.close()
            self._link.close()
            self._context.term()

    # ------------------------------------------------------------------------------------------------- the registrar

    def _on_registrar(self) -> None:
        for message in self._link.messages():
            self._on_message(message)

    def _on_message(self, message: FromRegistrar) -> None:
        match message:
            case Roster():
                self._on_roster(message)
            case Refused(why=why):
                self._enrollment.refused = why
            case Question(number=number):
                self._reports.tell(number)
            case Begin(era=era, idle=idle, wait_s=wait_s):
                self._discipline.resume(era, 0.0 if self.me in idle else wait_s)
            case Settle(era=era, rounds=rounds):
                self._discipline.settle(era, rounds)
            case Drain(timeout_s=timeout_s, epochs=epochs):
                self._tasks.close_epochs(epochs)
                self._drain_s = timeout_s
                self._begin_drain()
            case Stop():
                self._life.end()
            case _:
                assert_never(message)

    def _on_roster(self, roster: Roster) -> None:
        members = sorted(roster.members, key=lambda member: member.role != "observer")
        own = next((member for member in members if member.peer == self.me), None)
        if own is None or members[0].role != "observer":
            return  # everybody begins from the driver program's agent, which is still starting
        names = self._enrollment.names
        for member in members:
            if member.peer == self.me or member.peer in names:
                continue
            if not names and self._comes_later:
                self._discipline.enter([m for m in members if m.peer != self.me], own.level)
            names[member.peer] = member.name
            self._discipline.join(member)
        self._enrollment.version = roster.version
        self._reports.tell()

    def _begin_drain(self) -> None:
        if self._drain_s is not None and self._discipline.submissions.are_taken:
            timeout_s, self._drain_s = self._drain_s, None
            self._runtime.happen(Exhausted(timeout_s))

    def _close_epochs(self) -> None:
        """What is known of their units is not needed any more, now that everybody has them."""
        if self._has_drained:
            self._has_drained = False
            self._runtime.happen(Closed(self._tasks.epochs_closed))

    def _on_drained(self, missing: list[str]) -> None:
        self._has_drained = True
        self._reports.tell()
        # partitions of which updates count whose rows had different fingerprints
        spans = self._discipline.spans(0).items()
        torn = [where for where, (low, high) in spans if taken_apart(low)[0] != taken_apart(high)[0]]
        staleness = list(self._tasks.staleness)
        self._link.say(Drained(peer=self.me, missing=missing, staleness=staleness, torn=torn))


def _discipline(house: House, settings: AgentSettings) -> Discipline:
    if settings.mixing is None:
        return Lanes(house)
    from p2p.agent.mixing import Mixing  # with scipy and networkx, 40 MB that replicas in lanes do not need

    return Mixing(house, settings.mixing)


def _keys(secret: str) -> Keys:
    """The agent's own: those with this secret half, or new ones."""
    return Keys.of(secret) if secret else Keys.generate()


def _kinds(sent: str | None) -> Kinds:
    if sent is None:
        return KINDS
    from p2p.codec import unpacked  # with cloudpickle, which other agents do not need

    return unpacked(sent)


def main() -> None:
    """Run an agent in the folder given as argument, with `AgentSettings` on the standard input."""
    logging.basicConfig(format="deepdist agent %(process)d: %(message)s", level=logging.WARNING)
    folder = sys.argv[1]
    open_files.allow_many()
    settings = read_settings(sys.stdin.buffer.read())  # of a starter that was killed there is nothing
    anchor = Process(settings.anchor)
    try:
        local_socket.leave_with(anchor, folder)  # also out of a call that blocks
        Agent(settings, folder).run()
    except GossipError as error:
        _note_failure(folder, str(error), anchor)
        sys.exit(1)
    except BaseException:
        _note_failure(folder, traceback.format_exc(), anchor)
        raise


def _note_failure(folder: str, text: str, anchor: Process) -> None:
    """Leave a note for the tasks that wait for this agent; where their executor is gone, leave nothing."""
    if not anchor.alive:
        shutil.rmtree(folder, ignore_errors=True)
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    note = os.path.join(folder, "failed")
    with open(f"{note}.new", "w") as file:
        file.write(text)
    os.rename(f"{note}.new", note)  # nobody reads half of it
