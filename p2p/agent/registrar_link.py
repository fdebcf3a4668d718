"""The link of an agent to the registrar in the driver program: addresses and figures, never a weight.

Nothing here waits for the driver program: where it does not listen, messages are dropped, and figures are sent again
soon.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq
from msgspec.structs import replace

from gossip.errors import WireError
from gossip.messages import PeerId
from gossip.zmq.sockets import Keys, open_socket
from p2p.agent.discipline import Discipline
from p2p.agent.registrar_messages import FromAgent, FromRegistrar, Status, Warned, encode, from_registrar
from p2p.logs import logger

log = logger("p2p.agent")

STATUS_PERIOD_S = 0.5


class RegistrarLink:
    """The connection to the registrar."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: Keys | None,
        me: PeerId,
        registrar_key: str | None = None,
    ) -> None:
        """`keys` are those of `me`."""
        self.me = me
        self.socket = open_socket(context, zmq.DEALER, keys, server_key=registrar_key)
        self.socket.connect(endpoint)

    def say(self, message: FromAgent) -> None:
        """Send one message, if the driver program listens."""
        try:
            self.socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            pass  # a status is sent again soon

    def warn(self, text: str) -> None:
        """Tell the user."""
        log.warning("%s", text)
        self.say(Warned(peer=self.me, text=text))

    def wait(self, timeout_s: float) -> bool:
        """Whether something has come, at the latest then."""
        return bool(self.socket.poll(int(timeout_s * 1e3)))

    def messages(self) -> Iterator[FromRegistrar]:
        """Those that have come; what is none is dropped with a warning."""
        while self.socket.poll(0):
            try:
                message = from_registrar(self.socket.recv_multipart())
            except WireError as error:
                self.warn(f"a malformed message of the registrar was dropped: {error!s:.200}")
            else:
                yield message

    def close(self) -> None:
        """Drop what is not sent."""
        self.socket.close(linger=0)


@dataclass
class Enrollment:
    """Who belongs to the swarm, as the registrar said last, and whether this agent does."""

    names: dict[PeerId, str] = field(default_factory=dict)
    version: int = 0
    """Of the roster."""
    refused: str | None = None
    """Why this agent does not belong to it."""


class Reports:
    """The figures of this agent, told twice a second, when somebody asks, and when it takes others for dead."""

    def __init__(self, link: RegistrarLink, discipline: Discipline, enrollment: Enrollment) -> None:
        self._link = link
        self._discipline = discipline
        self._enrollment = enrollment
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
            roster_version=self._enrollment.version,
            departed=self._departed,
            gated=runtime.figures.gated,
            bytes_out=runtime.figures.bytes_out + runtime.figures.handed_out,
            bytes_in=runtime.figures.bytes_in + runtime.figures.handed_in,
            malformed=runtime.figures.malformed,
            memory_peak_bytes=peak_memory_bytes(),
        )
        self._link.say(Status(peer=self._link.me, figures=figures))


def peak_memory_bytes() -> int:
    """The most memory this process has held, shared and mapped pages included."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
