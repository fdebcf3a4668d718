"""A stack trained over peers: one machine after the other, then all of it as a network.

    rows -> machine 0        rows -> machine 0 -> machine 1        ...        rows -> Classifier or AutoEncoder

Each arrow to the last machine is one training of `DeepDist`: workers turn their rows into the hidden means of the
machines below, which came with the gradient.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import instance, integer, one_of
from gossip.errors import UsageError
from p2p import arguments
from p2p.models.checkpoints import Checkpointing
from p2p.models.rbm.elements import blocks
from p2p.models.rbm.evaluation import MachineEvaluation, NetworkEvaluation
from p2p.models.rbm.local_steps import BackPropagation, ContrastiveDivergence
from p2p.models.rbm.networks import AutoEncoder, Classifier, FineTuning
from p2p.models.rbm.options import CD
from p2p.models.rbm.stack import Stack, for_each
from p2p.report import Report
from p2p.sessions.cluster import SimulatedCluster

STEPS = 10
"""Between two exchanges, where the rows are an array: a peer of 784-500-500-2000 then computes for some 0.2 s."""
SAMPLE_ROWS = 1000
"""Of training rows, whose free energy is compared with that of held-out ones."""


@dataclass(frozen=True)
class Fitted:
    """What came of `StackedRBM.fit`."""

    network: Classifier | AutoEncoder
    """The stack unrolled, and fine-tuned as a whole."""
    pretraining: tuple[Report, ...]
    """Of each machine, the lowest first; empty without epochs for them."""
    fine_tuning: Report | None
    """None without epochs for it."""

    def __str__(self) -> str:
        parts = [(f"machine {number}", report) for number, report in enumerate(self.pretraining)]
        parts += [] if self.fine_tuning is None else [("network", self.fine_tuning)]
        return "\n".join(f"{name}: {report.summary()}" for name, report in parts)


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a stack is trained; fields as `StackedRBM.fit` says."""

    epochs: int | Sequence[int]
    fine_tuning_epochs: int
    pretraining: CD | Sequence[CD]
    fine_tuning: FineTuning
    block_rows: int
    session: dict[str, Any]
    """Options of `DeepDist`."""
    training: dict[str, Any]
    """Options of its `train`, `combine` and `chunk_rows` among them."""
    checkpoint: tuple[str | None, bool]
    """Where checkpoints go, and whether those that are there are gone on with."""

    def __post_init__(self) -> None:
        integer("fine_tuning_epochs", self.fine_tuning_epochs, 0)
        integer("block_rows", self.block_rows, 1)
        folder, resume = self.checkpoint
        Checkpointing(folder, resume=resume)
        instance("fine_tuning", self.fine_tuning, FineTuning)
        one_of("exchange", self.training["exchange"], ("chunk", "partition"))
        asked = ("mode", "peers", "engine", "seed", "progress", "drain_timeout_s")
        arguments.of_session(*(self.session[name] for name in asked))

    def fit(self, stack: Stack, data: Any, labels: Any, classes: int | None, held_out: Any) -> Fitted:
        """Train `stack` in place; see `StackedRBM.fit`."""
        layers = stack.layers
        ways = for_each("pretraining", self.pretraining, CD, layers)
        counts = [integer("epochs", count, 0) for count in for_each("epochs", self.epochs, int | np.integer, layers)]
        if labels is not None:
            classes = _classes(_labels(labels), classes)
        held = _held_out(stack, held_out, classes is not None)
        if held is None and self.training["evaluate_every_s"] is not None:
            raise UsageError("evaluate_every_s without held_out, expected both: say which rows to evaluate")
        parts, chunk_rows = self._partitions(stack, data, labels)
        sample = sample_of(parts, stack.sizes[0], 0 if held is None else len(held[0]))
        is_master = self.session["mode"] == "master"
        reports = []
        for number, (layer, way, count) in enumerate(zip(layers, ways, counts, strict=True)):
            below = tuple(layers[:number])
            step = ContrastiveDivergence(way, self.block_rows, below, is_master)
            evaluate = None if held is None else MachineEvaluation(sample, held[0], below)
            if count:
                place = f"machine-{number}"
                reports.append(self._train(place, layer, parts, step, count, chunk_rows, evaluate))
        network = AutoEncoder(stack) if classes is None else Classifier(stack, classes)
        tuned = None
        if self.fine_tuning_epochs:
            back = BackPropagation(self.fine_tuning, self.block_rows, is_master)
            judge = None if held is None else NetworkEvaluation(*held)
            tuned = self._train("network", network, parts, back, self.fine_tuning_epochs, chunk_rows, judge)
        return Fitted(network, tuple(reports), tuned)

    def _train(
        self, place: str, model: Any, parts: Any, step: Any, epochs: int, chunk_rows: int | None, evaluate: Any
    ) -> Report:
        """`place` is where checkpoints go, below that of the stack."""
        options = {**self.training, "chunk_rows": chunk_rows, "evaluate": evaluate}
        if evaluate is None:
            options["evaluate_every_s"] = None
        folder, resume = self.checkpoint
        checkpoints = Checkpointing(folder and f"{folder}/{place}", resume=resume)
        with checkpoints.session(model, **self.session) as dd:
            return dd.train(parts, step, epochs=epochs, **options, **checkpoints.training)

    def _partitions(self, stack: Stack, data: Any, labels: Any) -> tuple[Any, int | None]:
        """The data as `DeepDist` takes them, and how many elements are between two exchanges."""
        chunk_rows = self.training["chunk_rows"]
        if not isinstance(data, np.ndarray):
            if labels is not None:
                raise UsageError(
                    f"labels beside data that are a {type(data).__name__}, expected labels in its rows, as (row, "
                    "label) or (block, labels), with classes=; or data as an array"
                )
            return data, chunk_rows
        rows = stack.layers[0].rows(data, "data")
        of_rows = None if labels is None else _labels(labels)
        if of_rows is not None and len(of_rows) != len(rows):
            raise UsageError(f"data of {len(rows)} rows with {len(of_rows)} labels, expected as many")
        if chunk_rows is None and self.training["exchange"] == "chunk":
            chunk_rows = 1
        return self._cut(rows, of_rows), chunk_rows

    def _cut(self, rows: NDArray[Any], labels: NDArray[Any] | None) -> list[list[Any]]:
        """Two partitions for each peer, of blocks whose rows make `STEPS` steps, in an order drawn once."""
        engine, peers = self.session["engine"], self.session["peers"]
        if isinstance(engine, SimulatedCluster):
            peers = engine.peers
        partitions = 2 * (peers or getattr(engine, "peers", None) or os.cpu_count() or 1)
        order = np.random.default_rng(abs(self.session["seed"])).permutation(len(rows))
        size = STEPS * self.block_rows
        return [
            [
                rows[some] if labels is None else (rows[some], labels[some])
                for some in np.array_split(part, max(1, -(-len(part) // size)))
            ]
            for part in np.array_split(order, min(partitions, len(rows)))
        ]


def sample_of(data: Any, width: int, count: int) -> NDArray[Any]:
    """Up to `count` rows that are trained on, of the first partition or of the first elements of an RDD."""
    if not count:
        return np.empty((0, width))
    count = min(count, SAMPLE_ROWS)
    if isinstance(data, list | tuple):
        first = data[0] if data else ()
        elements = islice(first() if callable(first) else first, count)
    else:
        elements = iter((data.rdd if hasattr(data, "rdd") else data).take(count))
    found: list[NDArray[Any]] = []
    for block, _ in blocks(elements, width, count):
        found.append(block)
        if sum(map(len, found)) >= count:
            break
    if not found:
        raise UsageError("the first partition has no rows, expected some to compare held_out with")
    return np.concatenate(found)[:count]


def _held_out(stack: Stack, held_out: Any, labeled: bool) -> tuple[Any, Any] | None:
    """Rows and labels, or None for none."""
    if held_out is None:
        return None
    pair = isinstance(held_out, tuple) and len(held_out) == 2
    if pair != labeled:
        expected = "(rows, labels), as there are classes" if labeled else "rows alone, as there are no classes"
        raise UsageError(f"held_out is a {type(held_out).__name__}, expected {expected}")
    rows = stack.layers[0].rows(held_out[0] if pair else held_out, "held_out")
    labels = _labels(held_out[1]) if pair else None
    if labels is not None and len(labels) != len(rows):
        raise UsageError(f"held_out of {len(rows)} rows with {len(labels)} labels, expected as many")
    return rows, labels


def _classes(labels: NDArray[Any], classes: int | None) -> int:
    """As many as are given, or else one more than the largest label."""
    low, high = int(labels.min()), int(labels.max())
    count = max(2, high + 1) if classes is None else integer("classes", classes, 2)
    if low < 0 or high >= count:
        raise UsageError(f"labels from {low} to {high}, expected 0 to {count - 1}")
    return count


def _labels(labels: Any) -> NDArray[Any]:
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise UsageError(f"labels are {found.dtype} {found.shape}, expected integers (rows,)")
    return found
