"""For tests of a gradient, a descent, an adapter or a codec: one partition, trained in this process as a worker does.

    trained = train_partition(model, gradient, rows, chunk_rows=100)
    assert len(trained.updates) == 3
    assert loss(trained.model) < loss(model)

There is no Spark, no socket and no second process: in the place of the agent stands a `Neighbor`, which merges at once
and remembers what it was handed. For whole trainings with peers and faults there is `p2p.SimulatedCluster`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gossip.arrays import Array, Arrays, Layout, Packed
from gossip.updates import KINDS, check
from gossip.updates.table import Kinds
from p2p.adapters import Adapter
from p2p.adapters.model import Model
from p2p.agent.ports import Left
from p2p.agent.replica import Replica
from p2p.codec import Codec, kinds_of
from p2p.worker.job import Descent, Gradient, Job, Rhythm, TaskResult
from p2p.worker.task import run_partition
from p2p.worker.working_copy import exchange_settings

__all__ = ["Neighbor", "TrainedPartition", "train_partition"]

Unit = tuple[int, int, int]
"""Epoch, partition, chunk."""

_runs = itertools.count()
"""Each call is a training of its own: a worker keeps nothing of the one before."""


class Neighbor:
    """Stands in for the agent beside a task: it merges at once, and remembers what it was handed."""

    def __init__(self, arrays: Arrays, kinds: Kinds = KINDS) -> None:
        """`arrays` are those of the replica, copied. `kinds`: of updates, where a codec has its own."""
        self.layout = Layout.of(arrays).for_sums
        self.replica = Replica(self.layout, kinds=kinds)
        for name, view in self.replica.arrays().items():
            view[...] = arrays[name]
        self.published: list[dict[str, Array]] = []
        """Copies of all updates, in order."""
        self.merged_at: list[int] = []
        """How many updates were merged in the replica that each was computed on."""
        self.units: dict[Unit, int] = {}
        """By unit that was published: which attempt it was."""
        self.left: list[Left] = []
        """What a codec has left of each update."""

    def knows(self, unit: Unit) -> bool:
        """It was published."""
        return unit in self.units

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that was published; -1 if none was."""
        return max((chunk for e, p, chunk in self.units if (e, p) == (epoch, partition)), default=-1)

    def hand_over(self) -> Replica:
        """Where the next update is written."""
        return Replica(self.layout)

    def pack(self, arrays: Arrays) -> Packed:
        """An update of another kind."""
        return Packed.of(arrays)

    def publish(
        self,
        update: Any,
        merged_at: int = 0,
        staleness: int | None = None,
        unit: Unit | None = None,
        attempt: int = 0,
        left: Left | None = None,
    ) -> bool:
        """Merge an update; False if its unit was published before."""
        if unit is not None:
            if unit in self.units:
                return False
            self.units[unit] = attempt
        self.published.append({name: array.copy() for name, array in update.arrays().items()})
        self.merged_at.append(merged_at)
        if left is not None:
            self.left.append(left)
        if isinstance(update, Packed):
            check(update, self.layout, self.replica.kinds)
        if isinstance(update, Packed) or update.layout == self.layout:
            self.replica.add(update)
            self.replica.merged += 1
        return True


@dataclass(frozen=True)
class TrainedPartition:
    """What came of a partition."""

    result: TaskResult
    """Rows, updates and units; `cautions` are what the user is warned of, by name."""
    updates: list[dict[str, Array]]
    """What was published, in order: named arrays, as they travel."""
    model: Any
    """A copy of the model with all of them merged; of the user's own kind."""
    neighbor: Neighbor


def train_partition(
    model: Any,
    gradient: Gradient,
    rows: Iterable[Any],
    descent: Descent | None = None,
    *,
    chunk_rows: int | None = None,
    exchange: str = "chunk",
    peers: int = 1,
    combine: str | None = None,
    adapter: Adapter | None = None,
    codec: Codec | None = None,
    seed: int = 0,
) -> TrainedPartition:
    """Train one partition of one epoch, as `DeepDist(model, adapter=..., codec=...).train(...)` has a worker do it.

    The model is sent to the worker as its skeleton, as ever, and so is not changed here. Options mean what they mean
    there; `peers` that train at the same time decide how updates add up.

    Raises:
        PartitionError: the user's code raised; its cause is that error.
        UsageError: the model or an option cannot be.
    """
    taken = Model(model, adapter=adapter, codec=codec)
    job = Job(
        run=f"test {next(_runs)}",
        skeleton=taken.skeleton(getattr(gradient, "light", None)),
        gradient=gradient,
        descent=descent,
        partitions=1,
        chunk_rows=chunk_rows,
        peers=peers,
        seed=seed,
        exchange=exchange_settings(taken, combine, peers),
        rhythm=Rhythm(exchange),  # type: ignore[arg-type]  # it looks at it
    )
    neighbor = Neighbor(taken.arrays(), kinds_of(codec))
    result = run_partition(job, neighbor, 0, 0, rows)
    trained = Model.from_skeleton(job.skeleton)
    trained.load(neighbor.replica.arrays())
    return TrainedPartition(result, neighbor.published, trained.model, neighbor)
