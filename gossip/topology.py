"""Who mixes with whom, and with which weights: the mixing matrix of each round.

`W[i, j]` is the weight that peer i gives to what peer j sends: j sends to i wherever it is not zero, and one round of
plain averaging is `X <- W X` with one row of X per peer. A `Topology` gives W for every round; W is sparse, so that
10,000 peers are no problem. The contraction of the distance to the mean is |W - J|_2 with J the matrix of 1/n, here
called SLEM (for the symmetric W of the textbooks it is the second largest eigenvalue modulus); for a topology that
changes from round to round it is |W_p ... W_1 - J|_2 over its period p.

    topology.ring(16)                                    a function of its own for each
    topology.named("ring", peers=16)                     by name, for command lines
    topology.graph(networkx.petersen_graph())            any networkx graph
    topology.changing(8, lambda round: some_graph)       another graph each round

`check` refuses a matrix that is not what an algorithm needs, and names the peer whose row or column is wrong.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from gossip.arguments import integer, plain
from gossip.errors import UsageError

Matrix: TypeAlias = Any
"""A scipy.sparse.csr_array of float64; scipy ships no types."""
AnyGraph: TypeAlias = "nx.Graph[Any] | nx.DiGraph[Any]"
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-9
"""How far a sum of weights may be from one: far above rounding, far below any weight."""

DENSE_PEERS_MAX = 512
"""Up to here singular values are computed densely, which is exact and takes less than half a second."""


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


# ---- from graphs to matrices -----------------------------------------------------------------------------------


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


def _adjacency(peers: int, receivers: Integers, senders: Integers) -> Matrix:
    """0 and 1, doubled edges counted once, no peer linked to itself."""
    apart = receivers != senders
    keys = np.unique(receivers[apart].astype(np.int64) * peers + senders[apart])
    return from_entries(peers, keys // peers, keys % peers, np.ones(len(keys)))


def _undirected(peers: int, left: Integers, right: Integers) -> Matrix:
    return _adjacency(peers, np.concatenate([left, right]), np.concatenate([right, left]))


def weigh(adjacency: Matrix, weights: Weights | str = Weights.METROPOLIS) -> Matrix:
    """The mixing matrix of a graph: `adjacency[i, j]` is 1 where j sends to i.

    Raises:
        UsageError: Metropolis weights are asked for a graph with a link in one direction only.
    """
    weights = _weights(weights)
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


def _weights(weights: Weights | str) -> Weights:
    try:
        return Weights(weights)
    except ValueError:
        raise UsageError(f"weights {weights!r}, expected one of {[each.value for each in Weights]}") from None


def _check_peers(peers: int, least: int, name: str, seed: int = 0) -> None:
    if peers < least:
        raise UsageError(f"{name} of {peers} peers, expected at least {least}")
    integer("seed", seed, 0)


def _static(name: str, adjacency: Matrix, weights: Weights | str) -> Topology:
    matrix = weigh(adjacency, weights)
    return Topology(name, matrix.shape[0], 1, lambda round: matrix)


def _periodic(name: str, peers: int, period: int, build: Callable[[int], Matrix]) -> Topology:
    kept = lru_cache(maxsize=period)(build)
    return Topology(name, peers, period, lambda round: kept(round % period))


# ---- the set ---------------------------------------------------------------------------------------------------


@plain
def ring(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Everybody has a left and a right neighbor. SLEM 1/3 + 2/3 cos(2 pi / n)."""
    _check_peers(peers, 3, "ring")
    each = np.arange(peers)
    return _static("ring", _undirected(peers, each, (each + 1) % peers), weights)


@plain
def directed_ring(peers: int) -> Topology:
    """Everybody sends to the next one only, weight 1/2. SLEM cos(pi / n)."""
    _check_peers(peers, 2, "directed ring")
    each = np.arange(peers)
    return _static("directed-ring", _adjacency(peers, (each + 1) % peers, each), Weights.UNIFORM)


@plain
def path(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """A ring that is open at one place. SLEM 1/3 + 2/3 cos(pi / n) for n >= 3."""
    _check_peers(peers, 2, "path")
    each = np.arange(peers - 1)
    return _static("path", _undirected(peers, each, each + 1), weights)


@plain
def star(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Peer 0 is the hub. SLEM 1 - 1/n for n >= 3."""
    _check_peers(peers, 2, "star")
    leaves = np.arange(1, peers)
    return _static("star", _undirected(peers, np.zeros_like(leaves), leaves), weights)


@plain
def binary_tree(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Peer i has the children 2 i + 1 and 2 i + 2, as far as there are so many; peer 0 is the root."""
    _check_peers(peers, 2, "binary tree")
    children = np.arange(1, peers)
    return _static("binary-tree", _undirected(peers, (children - 1) // 2, children), weights)


@plain
def complete(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """All with all: the exact mean in one round. peers^2 weights are held."""
    _check_peers(peers, 2, "complete graph")
    left, right = np.triu_indices(peers, 1)
    return _static("complete", _undirected(peers, left.astype(np.int64), right.astype(np.int64)), weights)


@plain
def torus(peers: int, rows: int | None = None, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """A grid that closes in both directions, as square as `peers` allows unless `rows` is given.

    SLEM (3 + 2 cos(2 pi / max(a, b))) / 5 for sides a, b >= 3.
    """
    _check_peers(peers, 9, "torus")
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
    return _static("torus", _undirected(peers, np.concatenate([each, each]), np.concatenate([right, below])), weights)


@plain
def hypercube(peers: int, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Neighbors differ in one bit of their number. SLEM 1 - 2 / (d + 1) for 2^d peers."""
    bits = _bits(peers, "hypercube")
    each = np.arange(peers)
    left = np.concatenate([each for _ in range(bits)])
    right = np.concatenate([each ^ (1 << bit) for bit in range(bits)])
    return _static("hypercube", _undirected(peers, left, right), weights)


@plain
def one_peer_hypercube(peers: int) -> Topology:
    """In round t everybody averages with the one whose number differs in bit t: the exact mean after log2 n rounds."""
    bits = _bits(peers, "hypercube")
    each = np.arange(peers)
    return _periodic(
        "one-peer-hypercube", peers, bits, lambda round: weigh(_adjacency(peers, each ^ (1 << round), each))
    )


@plain
def exponential(peers: int) -> Topology:
    """Everybody sends 1, 2, 4, ... places ahead, ceil(log2 n) hops in all, with equal weights (arXiv:2110.13363).

    SLEM 1 - 2 / (tau + 1) for even n and tau hops.
    """
    _check_peers(peers, 2, "exponential graph")
    each = np.arange(peers)
    hops = [1 << bit for bit in range(_hops(peers))]
    receivers = np.concatenate([(each + hop) % peers for hop in hops])
    return _static("exponential", _adjacency(peers, receivers, np.concatenate([each] * len(hops))), Weights.UNIFORM)


@plain
def one_peer_exponential(peers: int) -> Topology:
    """In round t everybody sends 2^t places ahead only, weight 1/2 (arXiv:2110.13363).

    The exact mean after log2 n rounds where n is a power of two, and for no other n.
    """
    _check_peers(peers, 2, "one-peer exponential graph")
    each = np.arange(peers)
    return _periodic(
        "one-peer-exponential",
        peers,
        _hops(peers),
        lambda round: weigh(_adjacency(peers, (each + (1 << round)) % peers, each), Weights.UNIFORM),
    )


@plain
def base(peers: int, k: int = 1) -> Topology:
    """The Base-(k+1) graph: the exact mean after one period for any n, at most k neighbors in a round.

    Source: Takezawa et al., arXiv:2305.11420. Of the simple construction and the one that factors n first, the
    shorter is taken.
    """
    _check_peers(peers, 2, "Base-(k+1) graph")
    if not 1 <= k < peers:
        raise UsageError(f"Base-(k+1) graph of {peers} peers with k = {k}, expected 1 <= k < peers")
    rounds = min(_simple_base(list(range(peers)), k), _factored_base(peers, k), key=len)

    def build(round: int) -> Matrix:
        matrix = sparse.lil_array((peers, peers))
        matrix.setdiag(1.0)
        for (i, j), weight in rounds[round].items():
            matrix[i, j] = matrix[j, i] = weight
            matrix[i, i] -= weight
            matrix[j, j] -= weight
        return matrix.tocsr()

    return _periodic(f"base-{k + 1}", peers, len(rounds), build)


Edges = dict[tuple[int, int], float]


def _factors(count: int, largest: int) -> list[int] | None:
    """`count` as a product of as few numbers up to `largest` as this greedy search finds; None if a prime is larger."""
    factors: list[int] = []
    while count > 1:
        factor = next((each for each in range(min(largest, count), 1, -1) if count % each == 0), None)
        if factor is None:
            return None
        factors.append(factor)
        count //= factor
    return factors


def _hyper_hypercube(members: list[int], factors: list[int]) -> list[Edges]:
    """Round l averages groups that differ in digit l of the mixed radix number: the mean of all after the last."""
    rounds, stride = [], 1
    for factor in factors:
        edges: Edges = {}
        for start in range(len(members)):
            if start // stride % factor == 0:
                group = [members[start + digit * stride] for digit in range(factor)]
                edges |= {(a, b): 1.0 / factor for at, a in enumerate(group) for b in group[at + 1 :]}
        rounds.append(edges)
        stride *= factor
    return rounds


def _simple_base(members: list[int], k: int) -> list[Edges]:
    """Groups of a (k+1)^p peers average; each swaps with all smaller ones, which sets the means of its a parts right;
    the parts average."""
    count, digits, power = len(members), [], 0
    while count:
        count, digit = divmod(count, k + 1)
        if digit:
            digits.append((digit, power))
        power += 1
    digits.reverse()
    groups: list[list[list[int]]] = []  # group -> parts -> members
    start = 0
    for parts, power in digits:
        size = (k + 1) ** power
        groups.append([members[start + part * size : start + (part + 1) * size] for part in range(parts)])
        start += parts * size
    whole = [[peer for part in group for peer in part] for group in groups]
    first = [
        _hyper_hypercube(group, [k + 1] * power + ([parts] if parts > 1 else []))
        for group, (parts, power) in zip(whole, digits, strict=True)
    ]
    if len(groups) == 1:
        return first[0]
    lead = len(first[0])
    last = [
        [_hyper_hypercube(part, [k + 1] * power) for part in group]
        for group, (_, power) in zip(groups, digits, strict=True)
    ]
    length = lead + max(at + 1 + digits[at][1] for at in range(len(groups) - 1))
    rounds: list[Edges] = [{} for _ in range(length)]
    for at in range(len(groups)):
        for number, edges in enumerate(first[at]):
            rounds[number] |= edges
        if at == len(groups) - 1:
            break
        rest = [peer for group in whole[at + 1 :] for peer in group]
        weight = len(whole[at]) / (len(groups[at]) * (len(whole[at]) + len(rest)))
        for part in groups[at]:
            rounds[lead + at] |= dict.fromkeys(zip(part, rest, strict=False), weight)
        for part_rounds in last[at]:
            for number, edges in enumerate(part_rounds):
                rounds[lead + at + 1 + number] |= edges
    return rounds


def _factored_base(peers: int, k: int) -> list[Edges]:
    """peers = p q with p as large as numbers up to k + 1 allow: simple graphs of q peers, then averages across them."""
    across, rest = 1, peers
    for factor in range(2, k + 2):
        while rest % factor == 0:
            rest //= factor
            across *= factor
    factors = _factors(across, k + 1) or []
    rounds: list[Edges] = []
    blocks = [_simple_base(list(range(start, start + rest)), k) for start in range(0, peers, rest)]
    for parallel in zip(*blocks, strict=True):
        rounds.append({pair: weight for edges in parallel for pair, weight in edges.items()})
    columns = [_hyper_hypercube(list(range(column, peers, rest)), factors) for column in range(rest)]
    for parallel in zip(*columns, strict=True):
        rounds.append({pair: weight for edges in parallel for pair, weight in edges.items()})
    return rounds


@plain
def random_regular(peers: int, degree: int = 4, seed: int = 0, weights: Weights | str = Weights.METROPOLIS) -> Topology:
    """Everybody has `degree` neighbors, drawn once. SLEM tends to (1 + 2 sqrt(d - 1)) / (d + 1)."""
    _check_peers(peers, 3, "random regular graph", seed)
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
    _check_peers(peers, 2, "Erdos-Renyi graph", seed)
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
    _check_peers(peers, 3, "small world", seed)
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
    _check_peers(peers, 2, "random matching", seed)

    def build(round: int) -> Matrix:
        order = np.random.default_rng([seed, round]).permutation(peers)
        half = peers // 2
        return weigh(_undirected(peers, order[:half], order[half : 2 * half]))

    expected = 1.0 - (peers // 2) / (peers - 1)
    return Topology("random-matching", peers, None, lru_cache(maxsize=1)(build), expected)


@plain
def random_pair(peers: int, seed: int = 0) -> Topology:
    """One pair in a round, drawn anew each round: randomized gossip, a round being one exchange.

    E[S'/S] = 1 - 1/(n - 1).
    """
    _check_peers(peers, 2, "random pair", seed)

    def build(round: int) -> Matrix:
        left, right = np.random.default_rng([seed, round]).choice(peers, 2, replace=False)
        return weigh(_undirected(peers, np.array([left]), np.array([right])))

    return Topology("random-pair", peers, None, lru_cache(maxsize=1)(build), 1.0 - 1.0 / (peers - 1))


@plain
def random_groups(peers: int, size: int = 4, seed: int = 0) -> Topology:
    """Groups of `size` that average exactly, drawn anew each round. E[S'/S] = (n / size - 1) / (n - 1)."""
    _check_peers(peers, 2, "random groups", seed)
    if not 2 <= size <= peers or peers % size:
        raise UsageError(f"{peers} peers in groups of {size}, expected a size from 2 that divides the number of peers")
    left, right = np.triu_indices(size, 1)

    def build(round: int) -> Matrix:
        groups = np.random.default_rng([seed, round]).permutation(peers).reshape(-1, size)
        return weigh(_undirected(peers, groups[:, left].ravel(), groups[:, right].ravel()))

    expected = (peers / size - 1.0) / (peers - 1.0)
    return Topology("random-groups", peers, None, lru_cache(maxsize=1)(build), expected)


@plain
def random_senders(peers: int, fanout: int = 2, seed: int = 0, weights: Weights | str = Weights.UNIFORM) -> Topology:
    """Everybody sends to `fanout` others, drawn anew each round; rows sum to one, columns on average only.

    The random graph of epidemic learning (de Vos et al., arXiv:2310.01972); `weights='push'` makes it fit for push-sum.
    """
    _check_peers(peers, 2, "random senders", seed)
    if not 1 <= fanout < peers:
        raise UsageError(f"fanout {fanout} with {peers} peers, expected 1 <= fanout < peers")
    senders = np.repeat(np.arange(peers), fanout)
    weights = _weights(weights)

    def build(round: int) -> Matrix:
        chance = np.random.default_rng([seed, round])
        if fanout == 1:
            ahead = chance.integers(1, peers, size=(peers, 1))
        else:
            ahead = 1 + np.array([chance.choice(peers - 1, fanout, replace=False) for _ in range(peers)])
        return weigh(_adjacency(peers, (senders + ahead.ravel()) % peers, senders), weights)

    return Topology("random-senders", peers, None, lru_cache(maxsize=1)(build))


@plain
def random_pull(peers: int, amount: float = 0.5, seed: int = 0) -> Topology:
    """In each round one peer hears one other and gives it the weight `amount`; nobody hears it in turn."""
    _check_peers(peers, 2, "random pull", seed)
    _check_amount(amount)

    def build(round: int) -> Matrix:
        receiver, sender = np.random.default_rng([seed, round]).choice(peers, 2, replace=False)
        return _overwritten(peers, np.array([receiver]), np.array([sender]), amount)

    return Topology("random-pull", peers, None, lru_cache(maxsize=1)(build))


@plain
def random_publisher(peers: int, amount: float = 0.5, seed: int = 0) -> Topology:
    """In each round one peer is heard by all others, who give it the weight `amount`; it hears nobody."""
    _check_peers(peers, 2, "random publisher", seed)
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
    topology = _static(name, _from_networkx(any_graph), weights)
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
    _check_peers(peers, 2, "changing graph")
    if period is not None:
        integer("period", period, 1)
    weights = _weights(weights)

    def build(round: int) -> Matrix:
        drawn = graph_of(round)
        if set(drawn) != set(range(peers)):
            raise UsageError(f"the graph of round {round} has {len(drawn)} nodes, expected 0 to {peers - 1}")
        return weigh(_from_networkx(drawn), weights)

    if period is not None:
        return _periodic(name, peers, period, build)
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
    return _adjacency(arcs.shape[0], receivers.astype(np.int64), senders.astype(np.int64))


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


# ---- what a matrix must be -------------------------------------------------------------------------------------


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


# ---- what theory says ------------------------------------------------------------------------------------------


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
