"""Torch modules in one call: `train(module, data, loss=..., optimizer=...)` trains the module in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack

from gossip.arguments import function, integer
from gossip.errors import UsageError
from p2p import arguments
from p2p.adapters import adapter_of
from p2p.codec import Codec
from p2p.driver.evaluation import Evaluate
from p2p.driver.stopping import StopWhen
from p2p.engines import Engine
from p2p.engines.choice import is_rdd
from p2p.models.checkpoints import Checkpointing
from p2p.models.torch import batches
from p2p.models.torch.adapter import ADAPTER
from p2p.models.torch.local_steps import Loss, MakeOptimizer, OptimizerSteps
from p2p.report import Report
from p2p.sessions.cluster import SimulatedCluster

M = TypeVar("M")
LOCAL_STEPS = 8
"""Between two exchanges."""


class Session(TypedDict, total=False):
    """What `train` hands on to `DeepDist`, whose defaults hold."""

    peers: int | None
    """Processes of this machine."""
    codec: Codec | str | None
    """How updates travel."""
    engine: SimulatedCluster | Engine | None
    """What to train on instead."""
    seed: int
    """Of the order of rows, and of dropout."""
    progress: bool | None
    """Show a bar."""


def train(
    module: M,
    data: Any,
    *,
    loss: Loss,
    optimizer: MakeOptimizer,
    local_steps: int = LOCAL_STEPS,
    batch_size: int = 32,
    blocks: bool = False,
    shuffle: bool = True,
    epochs: int = 1,
    combine: str | None = None,
    device: str | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every_s: float | None = None,
    stop_when: StopWhen | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every_s: float | None = None,
    keep: int | None = None,
    resume: bool = False,
    on_report: Callable[[Report], Any] | None = None,
    **session: Unpack[Session],
) -> M:
    """Train `module` in place on the partitions of `data`, and return it.

    `data` is a Spark RDD, or a list of partitions, of rows (x, y) or, with `blocks`, of blocks of them (xs, ys). Each
    peer takes `local_steps` steps of `batch_size` rows between two exchanges; blocks are cut anew to that. `loss`,
    `optimizer`, `batch_size`, `blocks` and `shuffle` are those of `OptimizerSteps`.

    By default updates of peers are averaged (`combine="mean"`): as many peers take one step together, of as many times
    the rows. With "sum" each adds its whole step; see `p2p.worker.combine`. Running means of batch norms are averaged
    in any case, and counts summed. `device` is where peers train (default: where the module is); replicas are on the
    CPU, and so is the module that `evaluate(module)` gets. Peers of this machine share its cores, a Spark task has one.

    `session` are arguments of `DeepDist`, see `Session`; `epochs`, `evaluate`, `stop_when`, `checkpoint` and what goes
    with these are those of its `train`. `resume` goes on with the newest of the checkpoints at `checkpoint`, whose
    numbers are put into `module`, and begins where none are. What optimizers keep is not in them, and begins anew.
    `on_report` is called with the `Report` at the end.

    Raises:
        UsageError: an argument, or a tensor of the module, that cannot be, before peers are started.
    """
    device = _checked(module, device, on_report)
    checkpoints = Checkpointing(checkpoint, every_s, keep, resume)
    rows = integer("local_steps", local_steps, 1) * integer("batch_size", batch_size, 1)
    data, threads = _taken(data, session)
    steps = partial(OptimizerSteps, loss=loss, optimizer=optimizer, batch_size=batch_size)
    gradient = steps(blocks=blocks, shuffle=shuffle, device=device, threads=threads)
    told: dict[str, Any] = {"epochs": epochs, "chunk_rows": 1 if blocks else rows, "combine": combine}
    told |= {"evaluate": evaluate, "evaluate_every_s": evaluate_every_s, "stop_when": stop_when}
    with checkpoints.session(module, **session) as dd:
        report = dd.train(_cut(data, rows) if blocks else data, gradient, **told, **checkpoints.training)
    if on_report is not None:
        on_report(report)
    return module


def _taken(data: Any, session: Session) -> tuple[Any, int | None]:
    """The data, looked at, and torch's threads for each peer: its share of the cores, or the one of a task of Spark."""
    if unknown := [name for name in session if name not in Session.__annotations__]:
        raise UsageError(
            f"unknown arguments {', '.join(unknown)}, expected some of {', '.join(Session.__annotations__)}; for "
            "others take DeepDist(module) and OptimizerSteps"
        )
    engine = session.get("engine")
    if engine is not None and not isinstance(engine, SimulatedCluster):
        return data, None
    data = arguments.partitions(data)
    if engine is not None:
        return data, None
    if is_rdd(data):
        return data, 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    peers = session.get("peers")
    return data, max(1, cores // min(cores if peers is None else integer("peers", peers, 1), len(data)))


def _checked(module: Any, device: str | None, on_report: Any) -> str:
    """Where to train the module, which is one."""
    if adapter_of(module) is not ADAPTER:
        raise UsageError(f"module is a {type(module).__name__}, expected a torch.nn.Module")
    if on_report is not None:
        function("on_report", on_report, "of a Report, such as print")
    from p2p.models.torch import tensors

    return tensors.device_of(module) if device is None else str(device)


def _cut(data: Any, rows: int) -> Any:
    """The same partitions, of blocks of so many rows."""
    if is_rdd(data):
        return data.mapPartitions(partial(batches.of_length, rows=rows))
    return [partial(batches.of_length, partition, rows) for partition in data]
