"""The registrar: a thread in the driver program that knows where the agents are, and nothing else of the training.

Agents say hello and get the roster, again whenever another agent comes. An agent that comes while nothing is in flight
is level with the others. An agent that comes while a training runs is told to adopt a replica (with a master it is
refused then). Training goes on without the registrar; it carries addresses, figures and requests to drain or stop,
never a weight.
"""

from __future__ import annotations

import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from msgspec.structs import replace

from gossip.errors import UsageError
from gossip.messages import PeerId
from gossip.zmq.sockets import Keys
from p2p.agent.local_socket import Process
from p2p.agent.registrar_messages import (
    Begin,
    Drain,
    Drained,
    Figures,
    FromAgent,
    FromRegistrar,
    Hello,
    Listed,
    Question,
    Refused,
    Role,
    Roster,
    Settle,
    Status,
    Stop,
    Warned,
)
from p2p.driver.reception import Admission, Reception

log = logging.getLogger("p2p")

SILENT_S = 5.0
"""Agents report twice a second."""
POLL_S = 0.02
"""How soon a request of the driver program leaves."""


UNHEARD = Figures()
"""Of an agent that has told of none."""


@dataclass(kw_only=True)
class Member:
    """An agent as the registrar knows it."""

    peer: PeerId
    role: Role
    name: str
    pid: int
    adverts: str
    pulls: str
    key: str | None
    """By which it is known at these."""
    route: bytes
    """The connection by which it spoke last."""
    level: bool
    """It came while nothing was in flight, and began with all that had been learned; others adopt a replica."""
    shortage: str | None
    """What its host lacks, for the user to hear."""
    heard_at: float
    """When it last said something."""
    figures: Figures = UNHEARD
    """Its newest ones."""
    drained: Drained | None = None
    """Its answer to the newest request to drain."""

    @property
    def has_reported(self) -> bool:
        """It has told of some figures."""
        return self.figures is not UNHEARD

    @property
    def missed(self) -> Sequence[str]:
        """Names of those that had not read everything when it had drained; its own if it did not say."""
        return [self.name] if self.drained is None else self.drained.missing


class Registrar:
    """Start with `start`, end with `close`. Its methods may be called from any thread."""

    def __init__(
        self, run: str, address: str = "127.0.0.1", keys: Keys | None = None, token: str | None = None
    ) -> None:
        """`address` is an interface of the driver program's host that the agents can reach. `keys` are the registrar's
        own; agents are told the public half at their start, and a `token`, which they have to show."""
        self.run = run
        self.admission = Admission(run, token, keys is not None)
        self.members: Mapping[str, Member] = {}
        """Never changed, but replaced by another, so that any thread may go through it."""
        self.version = 0
        self._forgotten: set[str] = set()
        """Agents that are off the roster for good."""
        self.open = True
        """No training is running: who comes now copies the observer's replica. Later ones adopt one, in flight."""
        self._said: tuple[Begin | Settle, ...] = ()
        """Of the training that runs, to be heard by all, also by whoever comes late."""
        self._requests: queue.SimpleQueue[tuple[bytes, FromRegistrar]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False
        self._question = 0
        self._reception = Reception(address, keys, self._on_message)
        self._thread = threading.Thread(target=self._serve, name="deepdist-registrar", daemon=True)
        self._thread.start()

    def by_role(self, *roles: str) -> list[Member]:
        """The members with one of `roles`, in the order they came."""
        return [member for member in self.members.values() if member.role in roles]

    def shortages(self) -> dict[str, str]:
        """What the hosts of agents lack, one text per host."""
        found: dict[str, str] = {}
        for member in self.members.values():
            host = member.name.rpartition(":")[0]
            if member.shortage is not None:
                found.setdefault(f"shared memory of {host}", f"on {host}, {member.shortage}")
        return found

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `condition` holds (looked at whenever an agent said something); False if time runs out.

        `UsageError` with the reason when the session was given up.
        """
        with self._changed:
            holds = self._changed.wait_for(lambda: self.admission.given_up is not None or condition(), timeout_s)
            if self.admission.given_up is not None:
                raise UsageError(self.admission.given_up)
            return holds

    def is_silent(self, member: Member) -> bool:
        """Nothing was heard of it for so long that it is gone."""
        return time.monotonic() - member.heard_at > SILENT_S

    def is_here(self, member: Member) -> bool:
        """Its process is on this machine, and is there, though it may be stopped."""
        return member.name == f"{socket.gethostname()}:{member.pid}" and Process(member.pid).alive

    def speaking(self) -> list[Member]:
        """Those that were heard of lately."""
        return [member for member in list(self.members.values()) if not self.is_silent(member)]

    def wait_for_roster(self, timeout_s: float) -> None:
        """Wait until every agent knows of every other. `UsageError` names those that do not."""

        def late() -> list[str]:
            return [m.name for m in self.speaking() if m.figures.roster_version != self.version]

        if not self.wait(lambda: not late(), timeout_s):
            raise UsageError(
                f"after {timeout_s:g} s these agents have not connected to all others: {', '.join(late())}. "
                "Can every host reach every other on any port?"
            )

    def begin(self, era: int, idle: Collection[PeerId] = (), wait_s: float | None = None) -> None:
        """Tell every agent, also those that come late, that a training begins; `era` is the number of what follows.

        The peers that are `idle` get no task; the others may wait `wait_s` for their first.
        """
        self._say(Begin(era=era, idle=sorted(idle), wait_s=wait_s))

    def settle(self, era: int, rounds: int) -> None:
        """Tell every agent that all updates are computed, and how many rounds of the training somebody has begun."""
        self._say(*self._said, Settle(era=era, rounds=rounds))

    def _say(self, *messages: Begin | Settle) -> None:
        """Send the last of `messages` to every agent, and all of them to whoever comes late."""
        with self._changed:
            self._said = messages
            self._to_all(messages[-1])

    def call_off(self, epochs: int) -> None:
        """Tell every agent that a training has ended early; nobody waits for it."""
        self._said = ()
        self._to_all(Drain(timeout_s=0.0, epochs=epochs))

    def drain(self, timeout_s: float, epochs: int = 0) -> list[Member]:
        """Have everybody read everything; each answers when its lane is read by all, or with who is missing.

        Returns whom it asked. The first `epochs` epochs of the session are trained: what copies of their tasks still
        compute is not taken.
        """
        self._said = ()
        for member in list(self.members.values()):
            member.drained = None
        asked = self._to_all(Drain(timeout_s=timeout_s, epochs=epochs))
        self.wait(lambda: all(m.drained is not None for m in asked if not self.is_silent(m)), timeout_s + 5.0)
        return asked

    def ask_status(self, timeout_s: float) -> None:
        """Have every agent's figures as of now. Those of an agent that does not answer in time stay as they are."""
        self._question += 1
        asked = self._to_all(Question(number=self._question))
        self.wait(lambda: all(m.figures.question == self._question for m in asked if not self.is_silent(m)), timeout_s)

    def drop_sketches(self) -> None:
        """Until an agent answers anew, nothing is known of its replica."""
        with self._changed:
            for member in self.members.values():
                if member.figures.mixing.sketch is not None:
                    member.figures = replace(member.figures, mixing=replace(member.figures.mixing, sketch=None))

    def forget(self, peers: set[str]) -> None:
        """Take agents that are gone off the roster. One that only stood still is told to leave when it speaks again:
        those that came meanwhile know nothing of it."""
        with self._changed:
            self._forgotten |= peers
            self.members = {peer: member for peer, member in self.members.items() if peer not in peers}

    def lose(self, pids: set[int]) -> None:
        """These agents of this machine have ended, as their parent knows: nobody is to wait for them."""
        with self._changed:
            for member in self.members.values():
                if member.pid in pids:
                    member.heard_at = -math.inf
            self._changed.notify_all()

    def give_up(self, why: str) -> None:
        """The session cannot begin: whoever waits here hears why, and so do agents."""
        with self._changed:
            self.admission.given_up = why
            self._to_all(Refused(why=why))
            self._changed.notify_all()

    def stop_agents(self) -> None:
        """Ask every agent to leave."""
        self._to_all(Stop())

    def close(self) -> None:
        """Send what is left to be sent, and end."""
        self._closing = True
        self._thread.join()
        self._reception.close()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self._reception.endpoint

    @property
    def key(self) -> str | None:
        """The public half of its key; None where there are none."""
        return self._reception.key

    # ------------------------------------------------------------------------------------------------------- thread

    def _to_all(self, message: FromRegistrar) -> list[Member]:
        """Send to every agent; returns whom. Who comes later knows nothing of it, and is not to be waited for."""
        members = list(self.members.values())
        for member in members:
            self._requests.put((member.route, message))
        return members

    def _serve(self) -> None:
        while True:
            closing = self._closing
            self._reception.turn(POLL_S)
            while not self._requests.empty():
                route, request = self._requests.get()
                self._reception.send(route, request)
            if closing:
                return

    def _on_message(self, route: bytes, message: FromAgent) -> None:
        with self._changed:
            self._deal_with(route, message)
            self._changed.notify_all()

    def _deal_with(self, route: bytes, message: FromAgent) -> None:
        if message.peer in self._forgotten:
            self._requests.put((route, Stop()))
            return
        if isinstance(message, Hello):
            self._on_hello(route, message)
            return
        member = self.members.get(message.peer)
        if member is None:
            return
        member.heard_at = time.monotonic()
        member.route = route
        match message:
            case Status(figures=figures):
                # the figures never go back, and the answer to a question counts as one until the next
                member.figures = replace(figures, question=max(figures.question, member.figures.question))
            case Drained():
                member.drained = message
            case Warned(text=text):
                log.warning("%s: %s", member.name, text)
            case _:
                assert_never(message)

    def _on_hello(self, route: bytes, hello: Hello) -> None:
        why = self.admission.refusal(hello)
        if why is not None:
            self._requests.put((route, Refused(why=why)))
            return
        member = Member(
            peer=hello.peer,
            role=hello.role,
            name=hello.name,
            pid=hello.pid,
            adverts=hello.adverts,
            pulls=hello.pulls,
            key=hello.key,
            route=route,
            level=self.open and not hello.adopts,
            shortage=hello.shortage,
            heard_at=time.monotonic(),
        )
        self.members = {**self.members, member.peer: member}
        self.version += 1
        self._to_all(Roster(version=self.version, members=[self._listed(each) for each in self.members.values()]))
        for said in self._said:
            self._requests.put((route, said))

    def _listed(self, member: Member) -> Listed:
        return Listed(
            peer=member.peer,
            role=member.role,
            name=member.name,
            pid=member.pid,
            adverts=member.adverts,
            pulls=member.pulls,
            key=member.key,
            level=member.level,
            answers=member.has_reported and not self.is_silent(member),
        )
