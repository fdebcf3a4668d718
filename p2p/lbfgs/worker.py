"""A worker's part: a portion's loss and gradient, by the user's function, at a point that the shards have.

User code runs here and nowhere else. It sees a copy of the model, made anew for each portion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import chance
from p2p.adapters.model import Model
from p2p.adapters.sparse import dense
from p2p.lbfgs.flat import Flat
from p2p.lbfgs.rows import Chunk
from p2p.worker.errors import PartitionError
from p2p.worker.job import TaskInfo
from p2p.worker.running import CountedRows, running

LossAndGradient = Callable[[Any, Iterator[Any]], tuple[float, Mapping[str, Any]]]
"""`loss_and_gradient(model, rows)`: sums over the rows; of the gradient, arrays that are not named are 0."""


@dataclass(frozen=True)
class Job:
    """A training, as workers need to know it. Sent as a parcel, by the user's own programs."""

    run: str
    skeleton: bytes
    function: LossAndGradient
    chunk_rows: int | None
    passes: int
    partitions: int
    peers: int
    seed: int


@dataclass(frozen=True)
class Found:
    """What the user's function says of a portion."""

    loss: float
    gradient: Array
    """Of all numbers of the model, as a vector."""
    rows: int
    count: int
    """Of elements."""


class Computer:
    """Computes portions of one training."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._model = Model.from_skeleton(job.skeleton)
        self.flat = Flat(self._model.layout)

    def compute(self, x: Array, chunk: Chunk, epoch: int, partition: int, number: int) -> Found:
        """Loss and gradient at `x`, the model as a vector. What user code raises comes out as `PartitionError`."""
        job = self.job
        self._model.load(self.flat.views(x))
        rows = CountedRows(chunk.rows, getattr(job.function, "rows_in", None))
        # the same numbers in each pass: a function that draws any has to be the same function all the time
        chance.seed(job.seed, partition, number)
        info = TaskInfo(job.run, epoch, job.passes, partition, job.partitions, number, job.peers, job.seed)
        try:
            with running(info, rows, None):
                loss, gradient = self._taken_apart(job.function(self._model.model, rows))
                for _ in rows:  # what the function left
                    pass
        except PartitionError:
            raise
        except BaseException as error:  # rows that cannot be read
            raise PartitionError.of(error, epoch, partition) from error
        return Found(loss, gradient, rows.rows, rows.count)

    def _taken_apart(self, found: Any) -> tuple[float, Array]:
        """The loss, and the gradient as a vector; `UsageError` if they are something else."""
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
            raise UsageError(
                f"loss_and_gradient returned {_kind(found)}, expected (loss, {{name: gradient}}): two values, of which "
                "the second is a dict of arrays by the names of the model's"
            )
        loss, named = found
        try:
            value = float(loss)
        except (TypeError, ValueError):
            raise UsageError(f"the loss is a {type(loss).__name__}, expected a number") from None
        arrays = self._model.arrays()
        if strange := sorted(map(str, named.keys() - arrays.keys())):
            raise UsageError(f"the gradient has {', '.join(strange)}, expected names of {sorted(arrays)}")
        vector = np.zeros(self.flat.size, self.flat.dtype)
        whole = {name: _checked(name, value, arrays[name]) for name, value in named.items()}
        start = 0
        for spec in self.flat.layout.specs:
            size = arrays[spec.name].size
            if spec.name in whole:
                vector[start : start + size] = whole[spec.name].reshape(-1)
            start += size
        return value, vector


def _checked(name: str, value: Any, like: Array) -> Array:
    """A gradient of one array, whole."""
    found = dense(name, value, like)
    if found.shape != like.shape or found.dtype.kind not in "biuf":
        raise UsageError(f"the gradient's {name!r}: {found.dtype} {found.shape}, expected {like.dtype} {like.shape}")
    return found


def _kind(found: Any) -> str:
    return f"a tuple of {len(found)}" if isinstance(found, tuple) and len(found) != 2 else f"a {type(found).__name__}"
