"""Messages between an agent and the registrar in the driver program: addresses and figures, never a weight.

Nothing here waits for the driver program: where it does not listen, messages are dropped, and figures are sent again
soon.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import zmq

from gossip.messages import PeerId
from gossip.zmq.sockets import Keys, open_socket
from p2p.agent.discipline import Discipline
from p2p.agent.local_socket import Json

log = logging.getLogger("p2p.agent")

STATUS_PERIOD_S = 0.5


class RegistrarLink:
    """The connection to the registrar."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: Keys | None, me: PeerId) -> None:
        self._me = me
        self.socket = open_socket(context, zmq.DEALER, keys)
        self.socket.connect(endpoint)

    def say(self, op: str, **fields: Any) -> None:
        """Send one message, if the driver program listens."""
        try:
            self.socket.send_json({"op": op, "peer": self._me, **fields}, zmq.NOBLOCK)
        except zmq.Again:
            pass  # a status is sent again soon

    def warn(self, text: str) -> None:
        """Tell the user."""
        log.warning("%s", text)
        self.say("warning", text=text)

    def wait(self, timeout_s: float) -> bool:
        """Whether something has come, at the latest then."""
        return bool(self.socket.poll(int(timeout_s * 1e3)))

    def messages(self) -> Iterator[Json]:
        """Those that have come; what is none is dropped with a warning."""
        while self.socket.poll(0):
            message: Any
            try:
                message = self.socket.recv_json()
            except (ValueError, RecursionError) as error:
                message = error
            if isinstance(message, dict) and "op" in message:
                yield message
            else:
                self.warn(f"a malformed message of the registrar was dropped: {message!r:.200}")

    def close(self) -> None:
        """Drop what is not sent."""
        self.socket.close(linger=0)


@dataclass
class Roster:
    """Who belongs to the swarm, as the registrar said last."""

    names: dict[PeerId, str] = field(default_factory=dict)
    version: int = 0
    refused: str | None = None
    """Why this agent does not belong to it."""


class Reports:
    """The figures of this agent, told twice a second, when somebody asks, and when it takes others for dead."""

    def __init__(self, link: RegistrarLink, discipline: Discipline, roster: Roster) -> None:
        self._link = link
        self._discipline = discipline
        self._roster = roster
        self._next_at = 0.0
        self._departed: list[PeerId] = []
        """As it was told last."""

    def tell_if_due(self) -> None:
        """It is time, or somebody is taken for dead or has come back."""
        if time.monotonic() >= self._next_at or self._discipline.departed() != self._departed:
            self._next_at = time.monotonic() + STATUS_PERIOD_S
            self.tell()

    def tell(self, question: int | None = None) -> None:
        """`question`: the number of the one that this answers."""
        runtime = self._discipline.runtime
        self._departed = self._discipline.departed()
        figures = replace(
            self._discipline.figures(question is not None),
            question=question or 0,
            roster_version=self._roster.version,
            departed=self._departed,
            gated=runtime.figures.gated,
            bytes_out=runtime.figures.bytes_out + runtime.figures.handed_out,
            bytes_in=runtime.figures.bytes_in + runtime.figures.handed_in,
            malformed=runtime.figures.malformed,
            memory_peak_bytes=peak_memory_bytes(),
        )
        self._link.say("status", **asdict(figures))


def peak_memory_bytes() -> int:
    """The most memory this process has held, shared and mapped pages included."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
