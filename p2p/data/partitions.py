"""Partitions as an engine takes them: a list for processes of this machine, an RDD for Spark."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gossip.arguments import integer
from gossip.errors import UsageError

Partition = Callable[[], Iterable[Any]]

BLOCK_ROWS = 1000
"""Of a block: enough that products of matrices are fast, and a few MB of a thousand features."""
PARTITIONS_PER_CORE = 4
"""So that peers which are done early find more."""


def wanted(partitions: int | None, sc: Any) -> int:
    """How many partitions there should be about: as many as the user says, or some for each core."""
    if sc is not None:
        if not hasattr(sc, "parallelize"):
            raise UsageError(f"sc is a {type(sc).__name__}, expected a SparkContext")
        from p2p.engines.spark import check_runs

        check_runs(sc)
    if partitions is not None:
        return integer("partitions", partitions, 1)
    return PARTITIONS_PER_CORE * int(os.cpu_count() or 1 if sc is None else sc.defaultParallelism)


def handed_out(partitions: Sequence[Partition], sc: Any) -> Any:
    """The list of them, or with a SparkContext an RDD that has as many partitions, and says what they look like: see
    `p2p.checkpoint.likeness`."""
    if sc is None:
        return list(partitions)
    rdd = sc.parallelize(partitions, len(partitions)).flatMap(read)
    rdd.likenesses = [getattr(partition, "likeness", None) for partition in partitions]
    return rdd


def read(partition: Partition) -> Iterable[Any]:
    """The elements of a partition."""
    return partition()
