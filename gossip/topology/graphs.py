"""Graphs by name, drawn at random, or the user's own, as topologies."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import scipy.sparse as sparse

from gossip.arguments import integer, plain
from gossip.errors import UsageError
from gossip.topology.base_graph import base
from gossip.topology.checks import check, check_topology
from gossip.topology.weights import (
    Floats,
    Integers,
    Matrix,
    Needs,
    Topology,
    Weights,
    adjacency_of,
    check_peers,
    from_entries,
    periodic,
    static,
    undirected,
    weigh,
    weights_named,
)

AnyGraph: TypeAlias = "nx.Graph[Any] | nx.DiGraph[Any]"


@plain
def ring(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Everybody has a left and a right neighbor. SLEM 1/3 + 2/3 cos(2 pi / n)."""
    check_peers(peers, 3, "ring")
    each = np.arange(peers)
    return static("ring", undirected(peers, each, (each + 1) % peers), weights)


@plain
def directed_ring(peers: int) -> Topology:
    """Everybody sends to the next one only, weight 1/2. SLEM cos(pi / n)."""
    check_peers(peers, 2, "directed ring")
    each = np.arange(peers)
    return static("directed-ring", adjacency_of(peers, (each + 1) % peers, each), Weights.UNIFORM)


@plain
def path(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """A ring that is open at one place. SLEM 1/3 + 2/3 cos(pi / n) for n >= 3."""
    check_peers(peers, 2, "path")
    each = np.arange(peers - 1)
    return static("path", undirected(peers, each, each + 1), weights)


@plain
def star(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Peer 0 is the hub. SLEM 1 - 1/n for n >= 3."""
    check_peers(peers, 2, "star")
    leaves = np.arange(1, peers)
    return static("star", undirected(peers, np.zeros_like(leaves), leaves), weights)


@plain
def binary_tree(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Peer i has the children 2 i + 1 and 2 i + 2, as far as there are so many; peer 0 is the root."""
    check_peers(peers, 2, "binary tree")
    children = np.arange(1, peers)
    return static("binary-tree", undirected(peers, (children - 1) // 2, children), weights)


@plain
def complete(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """All with all: the exact mean in one round. peers^2 weights are held."""
    check_peers(peers, 2, "complete graph")
    left, right = np.triu_indices(peers, 1)
    return static("complete", undirected(peers, left.astype(np.int64), right.astype(np.int64)), weights)


@plain
def torus(peers: int, rows: int | None = None, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """A grid that closes in both directions, as square as `peers` allows unless `rows` is given.

    SLEM (3 + 2 cos(2 pi / max(a, b))) / 5 for sides a, b >= 3.
    """
    check_peers(peers, 9, "torus")
    if rows is None:
        rows = next((side for side in range(math.isqrt(peers), 0, -1) if peers % side == 0), 0)
    if rows < 3 or peers % rows or peers // rows < 3:
        raise UsageError(
            f"torus of {peers} peers in {rows} rows, expected peers = a x b with both sides at least 3: "
            f"take another number of peers, or a ring"
        )
    columns = peers // rows
    each = np.arange(peers)
    row, column = each // columns, each % columns
    right, below = row * columns + (column + 1) % columns, (row + 1) % rows * columns + column
    return static("torus", undirected(peers, np.concatenate([each, each]), np.concatenate([right, below])), weights)


@plain
def hypercube(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Neighbors differ in one bit of their number. SLEM 1 - 2 / (d + 1) for 2^d peers."""
    bits = _bits(peers, "hypercube")
    each = np.arange(peers)
    left = np.concatenate([each for _ in range(bits)])
    right = np.concatenate([each ^ (1 << bit) for bit in range(bits)])
    return static("hypercube", undirected(peers, left, right), weights)


@plain
def one_peer_hypercube(peers: int) -> Topology:
    """In round t everybody averages with the one whose number differs in bit t: the exact mean after log2 n rounds."""
    bits = _bits(peers, "hypercube")
    each = np.arange(peers)
    return periodic(
        "one-peer-hypercube", peers, bits, lambda round: weigh(adjacency_of(peers, each ^ (1 << round), each))
    )


@plain
def exponential(peers: int) -> Topology:
    """Everybody sends 1, 2, 4, ... places ahead, ceil(log2 n) hops in all, with equal weights (arXiv:2110.13363).

    SLEM 1 - 2 / (tau + 1) for even n and tau hops.
    """
    check_peers(peers, 2, "exponential graph")
    each = np.arange(peers)
    hops = [1 << bit for bit in range(_hops(peers))]
    receivers = np.concatenate([(each + hop) % peers for hop in hops])
    return static("exponential", adjacency_of(peers, receivers, np.concatenate([each] * len(hops))), Weights.UNIFORM)


@plain
def one_peer_exponential(peers: int) -> Topology:
    """In round t everybody sends 2^t places ahead only, weight 1/2 (arXiv:2110.13363).

    The exact mean after log2 n rounds where n is a power of two, and for no other n.
    """
    check_peers(peers, 2, "one-peer exponential graph")
    each = np.arange(peers)
    return periodic(
        "one-peer-exponential",
        peers,
        _hops(peers),
        lambda round: weigh(adjacency_of(peers, (each + (1 << round)) % peers, each), Weights.UNIFORM),
    )


@plain
def random_regular(peers: int, degree: int = 4, seed: int = 0, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Everybody has `degree` neighbors, drawn once. SLEM tends to (1 + 2 sqrt(d - 1)) / (d + 1)."""
    check_peers(peers, 3, "random regular graph", seed)
    if not 2 <= degree < peers or peers * degree % 2:
        raise UsageError(
            f"random regular graph of {peers} peers with degree {degree}, expected 2 <= degree < peers and an even "
            f"peers x degree"
        )
    return graph(nx.random_regular_graph(degree, peers, seed=seed), "random-regular", weights)


@plain
def erdos_renyi(
    peers: int, probability: float | None = None, seed: int = 0, weights: Weights | str = Weights.METROPOLIS
) -> Topology:
    """Each pair is linked with `probability`, 2 ln(n) / n by default, which is connected almost always.

    Raises:
        UsageError: the graph that was drawn is not connected.
    """
    check_peers(peers, 2, "Erdos-Renyi graph", seed)
    if probability is None:
        probability = min(1.0, 2.0 * math.log(peers) / peers)
    if not 0.0 < probability <= 1.0:
        raise UsageError(f"probability {probability}, expected more than 0 and at most 1")
    return graph(nx.fast_gnp_random_graph(peers, probability, seed=seed), "erdos-renyi", weights)


@plain
def small_world(
    peers: int,
    degree: int = 4,
    rewired: float = 0.1,
    seed: int = 0,
    weights: Weights | str = Weights.METROPOLIS,
) -> Topology:
    """A ring with `degree` nearest neighbors of which a share is rewired at random (Watts and Strogatz 1998)."""
    check_peers(peers, 3, "small world", seed)
    if not 2 <= degree < peers:
        raise UsageError(f"small world of {peers} peers with degree {degree}, expected 2 <= degree < peers")
    if not 0.0 <= rewired <= 1.0:
        raise UsageError(f"rewired {rewired}, expected a share from 0 to 1")
    return graph(nx.connected_watts_strogatz_graph(peers, degree, rewired, seed=seed), "small-world", weights)


@plain
def random_matching(peers: int, seed: int = 0) -> Topology:
    """Disjoint pairs, drawn anew each round; with an odd number of peers one rests.

    E[S'/S] = (n - 2) / (2 (n - 1)) for even n, 1/2 for odd n.
    """
    check_peers(peers, 2, "random matching", seed)

    def build(round: int) -> Matrix:
        order = np.random.default_rng([seed, round]).permutation(peers)
        half = peers // 2
        return weigh(undirected(peers, order[:half], order[half : 2 * half]))

    expected = 1.0 - (peers // 2) / (peers - 1)
    return Topology("random-matching", peers, None, lru_cache(maxsize=1)(build), expected)


@plain
def random_pair(peers: int, seed: int = 0) -> Topology:
    """One pair in a round, drawn anew each round: randomized gossip, a round being one exchange.

    E[S'/S] = 1 - 1/(n - 1).
    """
    check_peers(peers, 2, "random pair", seed)

    def build(round: int) -> Matrix:
        left, right = np.random.default_rng([seed, round]).choice(peers, 2, replace=False)
        return weigh(undirected(peers, np.array([left]), np.array([right])))

    return Topology("random-pair", peers, None, lru_cache(maxsize=1)(build), 1.0 - 1.0 / (peers - 1))


@plain
def random_groups(peers: int, size: int = 4, seed: int = 0) -> Topology:
    """Groups of `size` that average exactly, drawn anew each round. E[S'/S] = (n / size - 1) / (n - 1)."""
    check_peers(peers, 2, "random groups", seed)
    if not 2 <= size <= peers or peers % size:
        raise UsageError(f"{peers} peers in groups of {size}, expected a size from 2 that divides the number of peers")
    left, right = np.triu_indices(size, 1)

    def build(round: int) -> Matrix:
        groups = np.random.default_rng([seed, round]).permutation(peers).reshape(-1, size)
        return weigh(undirected(peers, groups[:, left].ravel(), groups[:, right].ravel()))

    expected = (peers / size - 1.0) / (peers - 1.0)
    return Topology("random-groups", peers, None, lru_cache(maxsize=1)(build), expected)


@plain
def random_senders(peers: int, fanout: int = 2, seed: int = 0, weights: Weights | str = Weights.UNIFORM) -> Topology:
    """Everybody sends to `fanout` others, drawn anew each round; rows sum to one, columns on average only.

    The random graph of epidemic learning (de Vos et al., arXiv:2310.01972); `weights='push'` makes it fit for push-sum.
    """
    check_peers(peers, 2, "random senders", seed)
    if not 1 <= fanout < peers:
        raise UsageError(f"fanout {fanout} with {peers} peers, expected 1 <= fanout < peers")
    senders = np.repeat(np.arange(peers), fanout)
    weights = weights_named(weights)

    def build(round: int) -> Matrix:
        chance = np.random.default_rng([seed, round])
        if fanout == 1:
            ahead = chance.integers(1, peers, size=(peers, 1))
        else:
            ahead = 1 + np.array([chance.choice(peers - 1, fanout, replace=False) for _ in range(peers)])
        return weigh(adjacency_of(peers, (senders + ahead.ravel()) % peers, senders), weights)

    return Topology("random-senders", peers, None, lru_cache(maxsize=1)(build))


@plain
def random_pull(peers: int, amount: float = 0.5, seed: int = 0) -> Topology:
    """In each round one peer hears one other and gives it the weight `amount`; nobody hears it in turn."""
    check_peers(peers, 2, "random pull", seed)
    _check_amount(amount)

    def build(round: int) -> Matrix:
        receiver, sender = np.random.default_rng([seed, round]).choice(peers, 2, replace=False)
        return _overwritten(peers, np.array([receiver]), np.array([sender]), amount)

    return Topology("random-pull", peers, None, lru_cache(maxsize=1)(build))


@plain
def random_publisher(peers: int, amount: float = 0.5, seed: int = 0) -> Topology:
    """In each round one peer is heard by all others, who give it the weight `amount`; it hears nobody."""
    check_peers(peers, 2, "random publisher", seed)
    _check_amount(amount)

    def build(round: int) -> Matrix:
        sender = int(np.random.default_rng([seed, round]).integers(peers))
        receivers = np.delete(np.arange(peers), sender)
        return _overwritten(peers, receivers, np.full(peers - 1, sender), amount)

    return Topology("random-publisher", peers, None, lru_cache(maxsize=1)(build))


def _check_amount(amount: float) -> None:
    if not 0.0 < amount < 1.0:
        raise UsageError(f"amount {amount}, expected a weight between 0 and 1")


def _overwritten(peers: int, receivers: Integers, senders: Integers, amount: float) -> Matrix:
    own = np.ones(peers)
    own[receivers] -= amount
    rows, columns = np.concatenate([receivers, np.arange(peers)]), np.concatenate([senders, np.arange(peers)])
    return from_entries(peers, rows, columns, np.concatenate([np.full(len(receivers), amount), own]))


def graph(any_graph: AnyGraph, name: str = "graph", weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Any networkx graph: nodes 0 to n - 1 are the peers of these numbers, others in the order in which it lists them.

    An arc u -> v of a directed graph means that u sends to v.

    Raises:
        UsageError: it is not (strongly) connected, or has directed links and Metropolis weights are asked for.
    """
    topology = static(name, _from_networkx(any_graph), weights)
    check_topology(topology, Needs.CONNECTED)
    return topology


@plain
def changing(
    peers: int,
    graph_of: Callable[[int], AnyGraph],
    period: int | None = None,
    name: str = "changing",
    weights: Weights | str = Weights.METROPOLIS,
) -> Topology:
    """Another networkx graph in each round, of the nodes 0 to peers - 1.

    `period` if it repeats, which makes its rate predictable.
    """
    check_peers(peers, 2, "changing graph")
    if period is not None:
        integer("period", period, 1)
    weights = weights_named(weights)

    def build(round: int) -> Matrix:
        drawn = graph_of(round)
        if set(drawn) != set(range(peers)):
            raise UsageError(f"the graph of round {round} has {len(drawn)} nodes, expected 0 to {peers - 1}")
        return weigh(_from_networkx(drawn), weights)

    if period is not None:
        return periodic(name, peers, period, build)
    return Topology(name, peers, None, lru_cache(maxsize=1)(build))


def matrix(weights: Floats | Matrix, name: str = "matrix", needs: Needs = Needs.DOUBLY_STOCHASTIC) -> Topology:
    """A mixing matrix of your own, (peers, peers), the same in every round, checked for `needs`."""
    own = sparse.csr_array(weights, dtype=np.float64, copy=True)
    own.sum_duplicates()
    own.eliminate_zeros()  # what is stored is a link
    check(own, needs, name)
    return Topology(name, own.shape[0], 1, lambda round: own)


def _from_networkx(any_graph: AnyGraph) -> Matrix:
    if any_graph.number_of_nodes() < 2:
        raise UsageError(f"a graph with {any_graph.number_of_nodes()} nodes, expected at least 2")
    nodes = list(any_graph)
    if set(nodes) == set(range(len(nodes))):
        nodes = list(range(len(nodes)))
    arcs: Matrix = nx.to_scipy_sparse_array(any_graph, nodes, weight=None, format="coo")
    senders, receivers = arcs.coords
    return adjacency_of(arcs.shape[0], receivers.astype(np.int64), senders.astype(np.int64))


def _hops(peers: int) -> int:
    return max(1, (peers - 1).bit_length())


def _bits(peers: int, name: str) -> int:
    if peers < 2 or peers & (peers - 1):
        raise UsageError(f"{name} of {peers} peers, expected a power of two; base(peers) is as good for any number")
    return peers.bit_length() - 1


NAMES: Mapping[str, Callable[..., Topology]] = MappingProxyType(
    {
        "base": base,
        "complete": complete,
        "directed-ring": directed_ring,
        "erdos-renyi": erdos_renyi,
        "exponential": exponential,
        "hypercube": hypercube,
        "one-peer-exponential": one_peer_exponential,
        "one-peer-hypercube": one_peer_hypercube,
        "path": path,
        "random-groups": random_groups,
        "random-matching": random_matching,
        "random-pair": random_pair,
        "random-publisher": random_publisher,
        "random-pull": random_pull,
        "random-regular": random_regular,
        "random-senders": random_senders,
        "ring": ring,
        "small-world": small_world,
        "star": star,
        "torus": torus,
        "binary-tree": binary_tree,
    }
)
"""Every topology that a command line can ask for."""


def named(name: str, peers: int, **options: object) -> Topology:
    """The topology of that name; `options` are the other arguments of its function.

    >>> named("ring", peers=16)
    Topology(name='ring', peers=16, period=1, expected=None)

    Raises:
        UsageError: no such name or option (the known ones are listed), or a number of peers that it cannot have.
    """
    if name not in NAMES:
        raise UsageError(f"topology {name!r} is not known, expected one of {', '.join(NAMES)}")
    known = [each for each in inspect.signature(NAMES[name]).parameters if each != "peers"]
    for option in options:
        if option not in known:
            raise UsageError(f"topology {name!r} has no option {option!r}, expected one of {known}")
    return NAMES[name](peers, **options)
