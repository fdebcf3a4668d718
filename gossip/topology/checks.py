"""Checks of a mixing matrix: a wrong one is refused with the first peer whose row or column is wrong."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse

from gossip.errors import UsageError
from gossip.topology.weights import TOLERANCE, Matrix, Needs, Topology


def check(weights: Matrix, needs: Needs, name: str = "the mixing matrix") -> None:
    """Refuse a matrix that is not what `needs` says, naming the first peer that is wrong and what its sum was.

    Connectivity is that of this one matrix; `check_topology` looks at a whole period.

    Raises:
        UsageError: as said.
    """
    if weights.shape[0] != weights.shape[1]:
        raise UsageError(f"{name} has shape {weights.shape}, expected as many rows as columns")
    if not np.all(np.isfinite(weights.data)):
        raise UsageError(f"{name} holds a weight that is NaN or infinite")
    entries = weights.tocoo()
    if Needs.NONNEGATIVE in needs and (entries.data < -TOLERANCE).any():
        at = int(np.argmin(entries.data))
        i, j = int(entries.coords[0][at]), int(entries.coords[1][at])
        raise UsageError(f"{name}: peer {i} gives peer {j} the weight {entries.data[at]:.6g}, expected none below zero")
    for need, axis, line in ((Needs.ROWS, 1, "row"), (Needs.COLUMNS, 0, "column")):
        if need in needs:
            sums = np.asarray(weights.sum(axis=axis)).ravel()
            wrong = np.flatnonzero(np.abs(sums - 1.0) > TOLERANCE)
            if len(wrong):
                what = "what it gives to others' values" if axis else "what others give to its value: the mean moves"
                raise UsageError(
                    f"{name}: the {line} of peer {wrong[0]} ({what}) sums to {sums[wrong[0]]:.9g}, expected 1; "
                    f"{len(wrong)} of {len(sums)} peers are wrong"
                )
    if Needs.SYMMETRIC in needs:
        uneven = (weights - weights.T).tocoo()
        if uneven.nnz and np.abs(uneven.data).max() > TOLERANCE:
            at = int(np.argmax(np.abs(uneven.data)))
            i, j = int(uneven.coords[0][at]), int(uneven.coords[1][at])
            raise UsageError(
                f"{name}: peer {i} gives peer {j} the weight {weights[i, j]:.6g} and gets {weights[j, i]:.6g}, "
                f"expected the same in both directions"
            )
    if Needs.MATCHING in needs:
        _check_matching(weights, name)
    if Needs.EXACT in needs:
        peers = weights.shape[0]
        heard = np.diff(weights.indptr)
        if (heard != peers).any():
            peer = int(np.argmax(heard != peers))
            raise UsageError(f"{name}: peer {peer} hears {heard[peer]} of {peers} peers, itself included, expected all")
        if (np.abs(weights.data - 1.0 / peers) > TOLERANCE).any():
            raise UsageError(f"{name}: weights up to {weights.data.max():.6g}, expected 1/{peers} everywhere")
    if Needs.TREE in needs:
        _check_tree(weights, name)
    if Needs.CONNECTED in needs:
        _check_connected(weights, name)


def _check_tree(weights: Matrix, name: str) -> None:
    links = weights.tocoo()
    pairs = {(int(i), int(j)) for i, j in zip(*links.coords, strict=True) if i != j}
    for i, j in pairs:
        if (j, i) not in pairs:
            raise UsageError(f"{name}: peer {j} sends to peer {i} and not back, expected a tree with links both ways")
    if len(pairs) != 2 * (weights.shape[0] - 1):
        raise UsageError(
            f"{name}: {len(pairs) // 2} links between {weights.shape[0]} peers, expected {weights.shape[0] - 1}, a "
            f"tree such as path, star or networkx.balanced_tree"
        )
    _check_connected(weights, name)


def _check_matching(weights: Matrix, name: str) -> None:
    entries = weights.tocoo()
    apart = (entries.coords[0] != entries.coords[1]) & (entries.data != 0.0)
    receivers, senders, values = entries.coords[0][apart], entries.coords[1][apart], entries.data[apart]
    for peer_of, does in ((receivers, "hears"), (senders, "sends to")):
        counts = np.bincount(peer_of, minlength=weights.shape[0])
        if (counts > 1).any():
            peer = int(np.argmax(counts))
            raise UsageError(f"{name}: peer {peer} {does} {counts[peer]} others in one round, expected one partner")
    partner = dict(zip(receivers.tolist(), senders.tolist(), strict=True))
    for at, (i, j) in enumerate(zip(receivers.tolist(), senders.tolist(), strict=True)):
        if partner.get(j) != i:
            raise UsageError(f"{name}: peer {i} hears peer {j}, which does not hear it; a pair exchanges both ways")
        if abs(values[at] - 0.5) > TOLERANCE:
            raise UsageError(f"{name}: peer {i} gives its partner the weight {values[at]:.6g}, expected 0.5")


def _check_connected(weights: Matrix, name: str) -> None:
    count, label = sparse.csgraph.connected_components(weights, directed=True, connection="strong")
    if count > 1:
        first = int(np.flatnonzero(label != label[0])[0])
        raise UsageError(
            f"{name} falls into {count} parts: peer {first} and peer 0 do not hear of each other, however long it runs"
        )


def check_topology(topology: Topology, needs: Needs) -> None:
    """`check` for every round of the period (the first eight rounds where there is none), connectivity over all.

    A topology that is drawn anew each round is not checked for connectivity.
    """
    if Needs.STATIC in needs and topology.period != 1:
        raise UsageError(f"{topology.name} changes its links from round to round, expected one that does not")
    rounds = topology.period if topology.period is not None else 8
    union = sparse.csr_array((topology.peers, topology.peers))
    for round in range(rounds):
        weights = topology.weights(round)
        if weights.shape != (topology.peers, topology.peers):
            raise UsageError(f"{topology.name} gives shape {weights.shape} for {topology.peers} peers")
        name = topology.name if topology.period == 1 else f"{topology.name}, round {round}"
        check(weights, needs & ~Needs.CONNECTED, name)
        union = union + abs(weights)
    if Needs.CONNECTED in needs and topology.period is not None:
        _check_connected(union, topology.name)
