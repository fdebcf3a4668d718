"""A workload of the convergence experiment: a model as flat parameters, all peers at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.topology import Floats
from p2p.lab.recording import Parts

SHARDS = ("iid", "label")
"""How rows are dealt to peers: at random, or sorted by label, so that a peer sees one or two labels only."""


class Workload(Protocol):
    """A model, and every peer's own rows."""

    start: Array
    """(parameters,) with which all peers begin."""
    parts: Parts
    measure: str
    """What `loss` is, in words."""

    def at(self, rate: float) -> Workload:
        """The same with another learning rate."""

    def delta(self, x: Array, round: int) -> Array:
        """What one training step on each peer's own rows adds, (peers, parameters).

        Depends on `x`, `round` and the seed only, so that all algorithms see the same rows.
        """

    def loss(self, x: Floats) -> float:
        """Of the model with the parameters `x`, (parameters,), over the rows of all peers."""


def deal(labels: Array, peers: int, shards: str, random: np.random.Generator) -> Array:
    """Row numbers of each peer, (peers, rows of one peer); what does not divide is left over.

    Raises:
        UsageError: there are fewer rows than peers, or `shards` is unknown.
    """
    if shards not in SHARDS:
        raise UsageError(f"shards {shards!r}, expected one of {', '.join(SHARDS)}")
    each = len(labels) // peers
    if each == 0:
        raise UsageError(f"{len(labels)} rows for {peers} peers, expected at least one row per peer")
    order = random.permutation(len(labels))
    if shards == "label":
        order = order[np.argsort(labels[order], kind="stable")]
    chosen = order[np.linspace(0, len(labels) - 1, each * peers).round().astype(int)]  # of all labels alike
    dealt: Array = chosen.reshape(peers, each)
    return dealt


def centralized(workload: Workload, peers: int, rounds: int) -> tuple[Floats, list[float]]:
    """(parameters, loss at the start and after each round) of SGD in one place.

    Each step is the mean of the steps that the peers would take from the same parameters on the same rows: what
    decentralized training would be if all mixed exactly and at once.
    """
    x: Floats = np.asarray(workload.start, np.float64)
    losses = [workload.loss(x)]
    with np.errstate(over="ignore", invalid="ignore"):  # a rate that is too long is shown as such
        for round in range(rounds):
            everywhere = np.repeat(x[None].astype(workload.start.dtype), peers, axis=0)
            x = x + workload.delta(everywhere, round).mean(axis=0, dtype=np.float64)
            losses.append(workload.loss(x))
    return x, losses
