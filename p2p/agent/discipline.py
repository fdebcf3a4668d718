"""A discipline: what an agent does with updates. It is the part of an agent that has the peer; an agent has one of
these.

    p2p.agent.lanes         every update at every peer, exactly once
    p2p.agent.mixing        replicas averaged with those of neighbors

The agent around the discipline is always the same: its life, the registrar, the tasks.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq

from gossip.arrays import Bytes, Layout
from gossip.marks import NO_UNITS, Counted
from gossip.messages import PeerId, State, Unit
from gossip.zmq.fetch import fetch_state
from gossip.zmq.runtime import Runtime
from gossip.zmq.sockets import Keys
from p2p.agent.client import AgentSettings
from p2p.agent.registrar_messages import Figures, Listed
from p2p.agent.replica import Replica
from p2p.agent.submissions import Submission, Submissions

Spans = Mapping[tuple[int, int], tuple[int, int]]
"""By (epoch, partition), the lowest and the highest chunk."""


@dataclass(frozen=True)
class House:
    """What the agent lends to its discipline."""

    settings: AgentSettings
    me: PeerId
    layout: Layout
    replica: Replica
    context: zmq.Context[zmq.Socket[bytes]]
    keys: Keys | None
    """The agent's own."""
    address: str
    """The interface towards the registrar."""
    names: Mapping[PeerId, str]
    """Of all on the roster."""
    drained: Callable[[list[str]], None]
    """Tell the registrar so, and whose agents (by name) did not take everything."""
    warn: Callable[[str], None]
    """Tell the user."""

    def fetch(self, member: Listed, timeout_s: float) -> State:
        """Take over this agent's replica."""

        def begin(state: State) -> Callable[[int, Bytes], None]:
            state.layout.check_fit(self.layout)

            def take(start: int, data: Bytes) -> None:
                self.replica.buffer[start : start + len(data)] = data

            return take

        return fetch_state(self.context, member.pulls, begin, timeout_s=timeout_s, key=member.key)


class Discipline(Protocol):
    """What the agent asks of it. It is the runtime's host as well."""

    runtime: Runtime
    submissions: Submissions
    """Where updates of tasks are handed over."""

    def load(self, counted: Counted = NO_UNITS) -> None:
        """The replica holds the user's arrays, in which these units count: begin."""
        ...

    def enter(self, members: Sequence[Listed], level: bool) -> None:
        """Begin from somebody's replica. `members` are all on the roster; the driver program's agent comes first.
        Not `level`: a training is running."""
        ...

    def join(self, member: Listed) -> None:
        """`member` is new on the roster."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why no update is dealt with any more; tasks that wait are told so."""
        ...

    def resume(self, era: int, wait_s: float | None) -> None:
        """A training begins; `era` is the number of what follows. The first task may take so long to come: 0 if none
        will, None where that is not known."""
        ...

    def settle(self, era: int, rounds: int) -> None:
        """All updates of the training are computed; somebody has begun so many rounds of it."""
        ...

    def begins(self, connection: socket.socket) -> None:
        """The task behind the connection trains a partition from now on."""
        ...

    def ends(self, connection: socket.socket) -> None:
        """It does not any more."""
        ...

    def turn(self) -> float:
        """Called after each turn of the loop; how long the next one may wait, in seconds."""
        ...

    def has_settled(self, submission: Submission) -> bool:
        """This update is dealt with, and its task may go on."""
        ...

    def knows(self, unit: Unit) -> bool:
        """Some attempt of this unit has been published."""
        ...

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that has been published; -1 if none was."""
        ...

    def counted(self) -> Counted | None:
        """The units that count in the replica; None while that is to be decided of one."""
        ...

    def spans(self, epoch: int) -> Spans:
        """Of all partitions that something counts of, from this epoch on."""
        ...

    def departed(self) -> list[PeerId]:
        """The peers that are taken for dead."""
        ...

    def figures(self, asked: bool) -> Figures:
        """Those of its peer; `asked` for, and not only the usual ones."""
        ...

    def hang_up(self, connection: socket.socket) -> None:
        """Whoever was behind the connection is gone."""
        ...
