"""An engine that the trainer knows nothing of: it trains ranges, one after the other, in this very process."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, UsageError
from p2p.agent.client import AgentClient, AgentSettings, ensure_agent
from p2p.driver.registrar import Registrar
from p2p.engines import Progress
from p2p.worker.job import Job, TaskResult
from p2p.worker.task import run_partition

pytestmark = [pytest.mark.slow, pytest.mark.sockets, pytest.mark.usefixtures("place")]


class Ranges:
    """Partitions of `size` of a range of numbers."""

    address = "127.0.0.1"
    peers = workers = 1

    def __init__(self, size: int) -> None:
        self.size = size
        self.agent: AgentClient | None = None
        self.stopped = self._cancelled = False

    def partitions(self, data: Any) -> int:
        if not isinstance(data, range):
            raise UsageError(f"data is a {type(data).__name__}, expected a range")
        return -(-len(data) // self.size)

    def cautions(self, data: Any) -> Mapping[str, str]:
        return {}

    def start(self, settings: AgentSettings | None, registrar: Registrar | None, modules: Collection[str] = ()) -> None:
        if settings is None or registrar is None:
            return
        if self.agent is None:
            self.agent = ensure_agent(settings, os.getpid())
        assert registrar.wait(lambda: bool(registrar.by_role("peer")), 60.0)

    def without_task(self, tasks: int) -> Collection[int]:
        return ()

    def run(self, job: Job, data: Any, progress: Progress) -> list[TaskResult]:
        results = []
        for epoch in range(job.epochs):
            for index in range(job.partitions):
                if not self._cancelled:
                    rows = iter(data[index * self.size : (index + 1) * self.size])
                    with nullcontext() if self.agent is None else self.agent.training():
                        results.append(run_partition(job, self.agent, epoch, index, rows))
                    progress(len(results), job.epochs * job.partitions)
        return results

    def cancel(self) -> None:
        self._cancelled = True

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.close()
            self.agent = None
        self.stopped = True


def gradient(model: Any, rows: Any) -> Any:
    return {"sum": np.array([float(sum(rows))])}


def descent(model: Any, update: Any) -> None:
    model["sum"] += update["sum"]


@pytest.mark.parametrize("how", [{}, {"mode": "master"}, {"discipline": "mix"}], ids=["p2p", "master", "mix"])
def test_any_engine_trains_on_whatever_it_takes(how: Any) -> None:
    engine, model = Ranges(4), {"sum": np.zeros(1)}
    with DeepDist(model, engine=engine, **how) as dd:
        report = dd.train(range(10), gradient, descent, epochs=2)
        assert (report.rows, report.updates, report.missing) == (20, 6, ())
        with pytest.raises(UsageError, match="data is a list, expected a range"):
            dd.train([[1]], gradient)
        dd.model["sum"][:] = 100
        dd.train(range(3), gradient, descent)
    assert model["sum"].tolist() == [103.0]
    assert engine.stopped


def test_what_is_no_engine_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(UsageError, match=r"engine is a type without address, cancel, .*expected a SimulatedCluster"):
        DeepDist({"w": np.zeros(1)}, engine=int)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="peers=2 beside an engine"):
        DeepDist({"w": np.zeros(1)}, engine=Ranges(1), peers=2)
