"""Theory of a topology: how fast plain averaging on it agrees."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from gossip.errors import UsageError
from gossip.topology.checks import check_topology
from gossip.topology.weights import TOLERANCE, Floats, Matrix, Needs, Topology

DENSE_PEERS_MAX = 512
"""Up to here singular values are computed densely, which is exact and takes less than half a second."""


def slem(topology: Topology) -> float:
    """|W_p ... W_1 - J|_2 over the period p: by how much the distance to the mean shrinks at least in p rounds.

    The weights must keep the mean and a consensus (rows and columns sum to one).

    Raises:
        UsageError: the topology has no period, or its matrix is not doubly stochastic.
    """
    check_topology(topology, Needs.ROWS | Needs.COLUMNS)
    return slowest(topology)[0]


def rate(topology: Topology) -> float:
    """The predicted contraction of the distance |X - mean| per round.

    `slem` to the power 1 / period; the root of E[S'/S] where links are drawn anew and that is known.
    """
    if topology.expected is not None:
        return math.sqrt(topology.expected)
    value = slem(topology)
    assert topology.period is not None
    return math.pow(value, 1.0 / topology.period)


def slowest(topology: Topology) -> tuple[float, Floats]:
    """(`slem`, the start from which it is reached, (peers,), of length one and mean zero).

    A result within rounding of zero is given as zero: the mean is exact after one period.
    """
    factors = topology.over_period()
    peers = topology.peers
    if peers <= DENSE_PEERS_MAX:
        product = np.eye(peers)
        for factor in factors:
            product = factor @ product
        _, values, starts = np.linalg.svd(product - 1.0 / peers)
        value, start = float(values[0]), starts[0]
    else:
        value, start = _slowest_sparse(factors, peers)
    if value < peers * 1e-15:
        value = 0.0
    start = start - start.mean()
    return value, start / np.linalg.norm(start)


def _slowest_sparse(factors: list[Matrix], peers: int) -> tuple[float, Floats]:
    def apply(x: Floats) -> Floats:
        x = np.asarray(x).ravel()
        x = x - x.mean()
        for factor in factors:
            x = factor @ x
        for factor in reversed(factors):
            x = factor.T @ x
        centered: Floats = x - x.mean()
        return centered

    start = np.random.default_rng(0).standard_normal(peers)
    square = LinearOperator((peers, peers), matvec=apply, dtype=np.float64)
    try:
        values, vectors = eigsh(square, k=1, which="LM", v0=start, maxiter=200, tol=1e-10)
    except ArpackNoConvergence:
        # Rings and grids: the largest are too close together, but a factorization of 1 - W is cheap.
        if len(factors) > 1 or abs(factors[0] - factors[0].T).max() > TOLERANCE:
            raise UsageError(
                f"the singular values of this topology of {peers} peers lie too close together to be found; "
                f"take fewer peers or its formula"
            ) from None
        near, starts = eigsh(factors[0].tocsc(), k=3, sigma=1.0 + 1e-7, which="LM", v0=start)
        order = np.argsort(near)
        return float(near[order[-2]]), np.asarray(starts[:, order[-2]])
    return math.sqrt(max(0.0, float(values[0]))), np.asarray(vectors[:, 0])
