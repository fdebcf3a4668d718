"""Engines: which processes run the partitions, and where the agents live."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from p2p.agent.client import AgentSettings
from p2p.driver.registrar import Registrar
from p2p.worker.job import Job, Progress, TaskResult

__all__ = ["Engine", "Progress"]


class Engine(Protocol):
    """What `DeepDist` needs of an engine."""

    address: str
    """An interface of the driver program's host that the agents can reach."""

    @property
    def peers(self) -> int:
        """Peers that train at the same time, known after `start`."""
        ...

    @property
    def workers(self) -> int:
        """Tasks that run at the same time, known after `start`."""
        ...

    def partitions(self, data: Any) -> int:
        """How many partitions `data` has."""
        ...

    def cautions(self, data: Any) -> Mapping[str, str]:
        """What will make a training on `data` slower or lose more than it had to, by name."""
        ...

    def start(self, settings: AgentSettings | None, registrar: Registrar | None, modules: Collection[str] = ()) -> None:
        """Bring up the agents, or those that are new since the last training; where these are None, tasks need none:
        they come to a master.

        Workers that wait for them may import `modules` meanwhile.
        """
        ...

    def without_task(self, tasks: int) -> Collection[int] | None:
        """The processes of agents that get none of so many tasks; None if some get none, and it is not known which."""
        ...

    def run(self, job: Job, data: Any, progress: Progress) -> list[TaskResult]:
        """Train every partition, `job.epochs` times; what the user's code raises comes out unchanged."""
        ...

    def cancel(self) -> None:
        """Make `run` return or raise soon. From any thread."""
        ...

    def stop(self) -> None:
        """End everything that `start` started. It may be started again."""
        ...
