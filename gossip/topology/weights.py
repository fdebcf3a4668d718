"""Mixing matrices: the weight that each peer gives to the packets of each other one, round by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from gossip.arguments import integer
from gossip.errors import UsageError

Matrix: TypeAlias = Any
"""A scipy.sparse.csr_array of float64; scipy ships no types."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
TOLERANCE = 1e-9
"""How far a sum of weights may be from one: far above rounding, far below any weight."""


class Needs(Flag):
    """What an algorithm's promise rests on."""

    ROWS = auto()
    """Every row sums to one: a consensus stays one."""
    COLUMNS = auto()
    """Every column sums to one: the mean is kept."""
    SYMMETRIC = auto()
    """What i gives to j, j gives to i."""
    NONNEGATIVE = auto()
    """No weight is below zero."""
    CONNECTED = auto()
    """Over the period every peer hears of every other one."""
    STATIC = auto()
    """The same neighbors in every round."""
    MATCHING = auto()
    """At most one neighbor in a round, in both directions, with weight 1/2."""
    EXACT = auto()
    """All weights are 1/n: everybody hears everybody, and one round gives the mean."""
    TREE = auto()
    """Links in both directions, and exactly one way from each peer to each other."""
    DOUBLY_STOCHASTIC = ROWS | COLUMNS | NONNEGATIVE | CONNECTED


class Weights(Enum):
    """How a graph becomes a mixing matrix."""

    METROPOLIS = "metropolis"
    """1 / (1 + max(degree i, degree j)): symmetric and doubly stochastic on any undirected graph."""
    UNIFORM = "uniform"
    """1 / (1 + in-degree): rows sum to one; columns too where all in- and out-degrees are equal."""
    PUSH = "push"
    """1 / (1 + out-degree): columns sum to one on any directed graph, which is all that push-sum needs."""


@dataclass(frozen=True)
class Links:
    """One peer's part of one round: whom it hears and who hears it."""

    me: int
    own: float
    """The weight it gives to itself."""
    hears: Mapping[int, float]
    """The weight it gives to each peer that sends to it: its row of W."""
    heard_by: Mapping[int, float]
    """The weight that each peer it sends to gives to it: its column of W."""
    peers: int
    """How many there are, itself included."""


@dataclass(frozen=True)
class Topology:
    """The mixing matrix of every round."""

    name: str
    peers: int
    period: int | None
    """After how many rounds it repeats; None where it is drawn anew each round."""
    weights: Callable[[int], Matrix] = field(repr=False, compare=False)
    """The matrix of a round, (peers, peers)."""
    expected: float | None = None
    """E[S'/S] of one round, S the sum of squared distances to the mean, where links are drawn anew and it is known."""

    def links(self, peer: int, round: int) -> Links:
        """`peer`'s row and column in `round`."""
        matrix = self.weights(round)
        row, column = matrix[[peer], :].tocoo(), matrix[:, [peer]].tocoo()
        hears = {int(j): float(w) for j, w in zip(row.coords[1], row.data, strict=True) if j != peer}
        heard_by = {int(i): float(w) for i, w in zip(column.coords[0], column.data, strict=True) if i != peer}
        return Links(peer, float(matrix[peer, peer]), MappingProxyType(hears), MappingProxyType(heard_by), self.peers)

    def all_links(self, round: int) -> list[Links]:
        """Every peer's links in `round`, in one pass over the matrix."""
        return all_links(self.weights(round))

    def over_period(self) -> list[Matrix]:
        """The matrices of one period, first round first.

        Raises:
            UsageError: the topology has no period.
        """
        if self.period is None:
            raise UsageError(f"{self.name} is drawn anew each round and has no period; measure it over many rounds")
        return [self.weights(round) for round in range(self.period)]


def from_entries(peers: int, receivers: Integers, senders: Integers, values: NDArray[Any]) -> Matrix:
    """The matrix of these entries, each place named once. Many times faster than by way of a coo_array."""
    order = np.argsort(receivers * peers + senders)
    starts = np.concatenate([[0], np.cumsum(np.bincount(receivers, minlength=peers))])
    return sparse.csr_array((values[order], senders[order], starts), shape=(peers, peers))


def entries(weights: Matrix) -> tuple[Integers, Integers, Floats]:
    """(receivers, senders, values) of what is stored, row by row."""
    receivers = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    return receivers, weights.indices.astype(np.int64, copy=False), weights.data


def all_links(weights: Matrix) -> list[Links]:
    """Every peer's row and column of `weights`, in one pass."""
    peers = weights.shape[0]
    hears: list[dict[int, float]] = [{} for _ in range(peers)]
    heard_by: list[dict[int, float]] = [{} for _ in range(peers)]
    own = [0.0] * peers
    for i, j, w in zip(*(each.tolist() for each in entries(weights)), strict=True):
        if i == j:
            own[i] = w
        else:
            hears[i][j] = w
            heard_by[j][i] = w
    return [Links(peer, own[peer], hears[peer], heard_by[peer], peers) for peer in range(peers)]


def adjacency_of(peers: int, receivers: Integers, senders: Integers) -> Matrix:
    """0 and 1, doubled edges counted once, no peer linked to itself."""
    apart = receivers != senders
    keys = np.unique(receivers[apart].astype(np.int64) * peers + senders[apart])
    return from_entries(peers, keys // peers, keys % peers, np.ones(len(keys)))


def undirected(peers: int, left: Integers, right: Integers) -> Matrix:
    """The adjacency of links between `left` and `right`, in both directions."""
    return adjacency_of(peers, np.concatenate([left, right]), np.concatenate([right, left]))


def weigh(adjacency: Matrix, weights: Weights | str = Weights.METROPOLIS) -> Matrix:
    """The mixing matrix of a graph: `adjacency[i, j]` is 1 where j sends to i.

    Raises:
        UsageError: Metropolis weights are asked for a graph with a link in one direction only.
    """
    weights = weights_named(weights)
    receivers, senders, _ = entries(adjacency)
    peers = adjacency.shape[0]
    heard, hearers = np.bincount(receivers, minlength=peers), np.bincount(senders, minlength=peers)
    if weights is Weights.METROPOLIS:
        one_way = ~np.isin(receivers * peers + senders, senders * peers + receivers)
        if one_way.any():
            at = int(np.argmax(one_way))
            i, j = int(receivers[at]), int(senders[at])
            raise UsageError(
                f"Metropolis weights need links in both directions, but peer {j} sends to peer {i} and not back; "
                f"use weights='push' with PushSum, or 'uniform' where all degrees are equal"
            )
        off: NDArray[Any] = 1.0 / (1.0 + np.maximum(heard[receivers], heard[senders]))
        own: NDArray[Any] = 1.0 - np.bincount(receivers, off, minlength=peers)
    elif weights is Weights.UNIFORM:
        off, own = 1.0 / (1.0 + heard[receivers]), 1.0 / (1.0 + heard)
    else:
        off, own = 1.0 / (1.0 + hearers[senders]), 1.0 / (1.0 + hearers)
    everyone = np.arange(peers)
    rows, columns = np.concatenate([receivers, everyone]), np.concatenate([senders, everyone])
    return from_entries(peers, rows, columns, np.concatenate([off, own]))


def weights_named(weights: Weights | str) -> Weights:
    """The weights of that name; `UsageError` for one that is not known."""
    try:
        return Weights(weights)
    except ValueError:
        raise UsageError(f"weights {weights!r}, expected one of {[each.value for each in Weights]}") from None


def check_peers(peers: int, least: int, name: str, seed: int = 0) -> None:
    """Refuse a topology of fewer than `least` peers, and a seed below zero."""
    if peers < least:
        raise UsageError(f"{name} of {peers} peers, expected at least {least}")
    integer("seed", seed, 0)


def static(name: str, adjacency: Matrix, weights: Weights | str) -> Topology:
    """The same graph in every round."""
    matrix = weigh(adjacency, weights)
    return Topology(name, matrix.shape[0], 1, lambda round: matrix)


def periodic(name: str, peers: int, period: int, build: Callable[[int], Matrix]) -> Topology:
    """Another matrix in each round, from the first one again after `period` rounds."""
    kept = lru_cache(maxsize=period)(build)
    return Topology(name, peers, period, lambda round: kept(round % period))
