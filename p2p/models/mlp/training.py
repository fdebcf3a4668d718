"""A multilayer perceptron in one call: `fit(model, data)` trains it by a descent of `p2p.descents`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from gossip.arguments import function, instance
from p2p.descents import SGD, AdaGrad, Adam, Linear
from p2p.driver.stopping import StopWhen
from p2p.engines import Engine
from p2p.models.checkpoints import Checkpointing
from p2p.models.mlp.network import MLP, gradient
from p2p.report import Report
from p2p.sessions.cluster import SimulatedCluster

RATE = 0.003
"""Of Adam: what its authors take, 0.001, times three, as it falls to 0."""


def fit(
    model: MLP,
    data: Any,
    descent: SGD | Callable[[Any, Any], Any] | None = None,
    *,
    epochs: int = 10,
    chunk_rows: int = 100,
    peers: int | None = None,
    mode: Literal["p2p", "master"] = "p2p",
    engine: SimulatedCluster | Engine | None = None,
    evaluate: Callable[[MLP], float | Mapping[str, float]] | None = None,
    evaluate_every_s: float | None = None,
    stop_when: StopWhen | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every_s: float | None = None,
    keep: int | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Train `model` on `data`, in place, and return the report.

    `data` is an RDD or a list of partitions of rows (features, label), or of blocks of rows (features (n, d), labels
    (n,)); features are dense arrays or sparse matrices of scipy. An update is made of `chunk_rows` elements: where
    these are blocks, take 1. `descent` is one of `p2p.descents` (default: `Adam`, with a rate that falls to 0), or
    your own. `resume` goes on with the newest of the checkpoints at `checkpoint`, and begins where none are. The
    other options are those of `DeepDist` and its `train`.

    Raises:
        UsageError: data, labels or an option cannot be.
    """
    instance("model", model, MLP)
    checkpoints = Checkpointing(checkpoint, every_s, keep, resume)
    if descent is None:
        descent = Adam(Linear(RATE) if mode == "p2p" else RATE)
    function("descent", descent, "descent(model, update)")
    if isinstance(descent, AdaGrad):
        descent.prepare(model)
    with checkpoints.session(model, mode, peers=peers, engine=engine, seed=seed, progress=progress) as dd:
        return dd.train(
            data,
            gradient,
            descent,
            epochs,
            chunk_rows=chunk_rows,
            evaluate=evaluate,
            evaluate_every_s=evaluate_every_s,
            stop_when=stop_when,
            **checkpoints.training,
        )
