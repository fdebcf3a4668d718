"""The methods that a task needs of the agent beside it, be that a process or simulated."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from gossip.arrays import Array, Arrays
from gossip.updates.stamps import RowStamps

if TYPE_CHECKING:  # agents need no model
    from p2p.adapters.model import Model


class HandOver(Protocol):
    """Where a task writes its update."""

    def arrays(self) -> dict[str, Array]:
        """The named arrays as views."""
        ...


class Held(HandOver, Protocol):
    """A replica, or a copy of one."""

    @property
    def merged(self) -> int:
        """Updates merged so far, of all lanes."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Nobody merges meanwhile."""
        ...


class Readable(Held, Protocol):
    """A replica, as a task sees it."""

    @property
    def stamps(self) -> RowStamps:
        """Which rows updates have changed."""
        ...


@dataclass(frozen=True)
class Left:
    """What a codec has left of a worker's updates."""

    arrays: Arrays | None
    """As an update that adds it as it is; None if nothing is left."""
    follows: bool
    """What the worker left before is in this or in its update; else both are to count."""


class Knowing(Protocol):
    """Who knows which units of work count: the agent beside a task, or the master."""

    def knows(self, unit: tuple[int, int, int]) -> bool:
        """Some attempt of this unit has been published, here or elsewhere."""
        ...

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that has been published, here or elsewhere; -1 if none was."""
        ...


class Neighbor(Knowing, Protocol):
    """What a task needs of the agent beside it, a process or simulated; see `p2p.agent.client.AgentClient`."""

    @property
    def replica(self) -> Readable: ...

    def hand_over(self) -> HandOver:
        """Where the next update is written; free again when it is published."""
        ...

    def pack(self, arrays: Arrays) -> Any:
        """An update of rows, ready to be published."""
        ...

    def publish(
        self,
        update: Any,
        merged_at: int = 0,
        staleness: int | None = None,
        unit: tuple[int, int, int] | None = None,
        attempt: int = 0,
        left: Left | None = None,
    ) -> bool:
        """Hand an update over. False if its unit was there before.

        `left`: what a codec has left of it. The agent publishes that when this worker ends, or the training, unless
        another update of the same worker comes before.
        """
        ...


def refresh(model: Model, replica: Held) -> int:
    """Copy the replica into the model; returns how many updates were merged in it."""
    with replica.reading():
        model.load(replica.arrays())
        return replica.merged
