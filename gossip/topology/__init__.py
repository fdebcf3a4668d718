"""Which peers mix with each other, and with which weights: the mixing matrix of each round.

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

from gossip.topology.base_graph import base
from gossip.topology.checks import check, check_topology
from gossip.topology.graphs import (
    NAMES,
    binary_tree,
    changing,
    complete,
    directed_ring,
    erdos_renyi,
    exponential,
    graph,
    hypercube,
    matrix,
    named,
    one_peer_exponential,
    one_peer_hypercube,
    path,
    random_groups,
    random_matching,
    random_pair,
    random_publisher,
    random_pull,
    random_regular,
    random_senders,
    ring,
    small_world,
    star,
    torus,
)
from gossip.topology.theory import DENSE_PEERS_MAX, rate, slem, slowest
from gossip.topology.weights import (
    Floats,
    Links,
    Matrix,
    Needs,
    Topology,
    Weights,
    all_links,
    entries,
    from_entries,
    weigh,
)

__all__ = [
    "DENSE_PEERS_MAX",
    "NAMES",
    "Floats",
    "Links",
    "Matrix",
    "Needs",
    "Topology",
    "Weights",
    "all_links",
    "base",
    "binary_tree",
    "changing",
    "check",
    "check_topology",
    "complete",
    "directed_ring",
    "entries",
    "erdos_renyi",
    "exponential",
    "from_entries",
    "graph",
    "hypercube",
    "matrix",
    "named",
    "one_peer_exponential",
    "one_peer_hypercube",
    "path",
    "random_groups",
    "random_matching",
    "random_pair",
    "random_publisher",
    "random_pull",
    "random_regular",
    "random_senders",
    "rate",
    "ring",
    "slem",
    "slowest",
    "small_world",
    "star",
    "torus",
    "weigh",
]
