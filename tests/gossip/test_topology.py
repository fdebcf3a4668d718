"""Mixing matrices: their spectra against closed forms, and what the validator refuses."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import topology
from gossip.errors import UsageError
from gossip.topology import NAMES, Needs, Topology, check, check_topology, named, rate, slem, slowest

COS = math.cos
SPECTRA = [
    *((topology.complete(n), 0.0) for n in (2, 5, 16, 64)),
    *((topology.ring(n), abs(1 / 3 + 2 / 3 * COS(2 * math.pi / n))) for n in (3, 4, 5, 16, 64)),
    *((topology.directed_ring(n), COS(math.pi / n)) for n in (3, 8, 16)),
    *((topology.path(n), 1 / 3 + 2 / 3 * COS(math.pi / n)) for n in (3, 4, 16, 64)),
    *(
        (topology.torus(a * b, a), (3 + 2 * COS(2 * math.pi / max(a, b))) / 5)
        for a, b in ((3, 3), (4, 4), (3, 7), (8, 8))
    ),
    *((topology.hypercube(2**d), 1 - 2 / (d + 1)) for d in (1, 2, 4, 6)),
    *((topology.star(n), 1 - 1 / n) for n in (3, 4, 16)),
    *((topology.exponential(n), 1 - 2 / (math.ceil(math.log2(n)) + 1)) for n in (4, 6, 10, 16, 18, 64)),
]


@pytest.mark.parametrize(("links", "expected"), SPECTRA, ids=lambda each: f"{getattr(each, 'name', '')}{each}"[-40:])
def test_the_slem_is_that_of_the_closed_form(links: Topology, expected: float) -> None:
    assert slem(links) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_ten_thousand_peers_have_the_slem_of_the_closed_form() -> None:
    n = 10_000
    assert slem(topology.exponential(n)) == pytest.approx(1 - 2 / 15, abs=1e-9)
    assert slem(topology.ring(n)) == pytest.approx(1 / 3 + 2 / 3 * COS(2 * math.pi / n), abs=1e-12)
    assert slem(topology.torus(n)) == pytest.approx((3 + 2 * COS(2 * math.pi / 100)) / 5, abs=1e-9)


@pytest.mark.parametrize("degree", [3, 4, 6])
def test_a_random_regular_graph_comes_close_to_the_slem_of_an_infinite_tree(degree: int) -> None:
    # Friedman: 2 sqrt(d - 1) + o(1); at 2,000 peers the o(1) is below one percent of the degree.
    expected = (1 + 2 * math.sqrt(degree - 1)) / (degree + 1)
    assert slem(topology.random_regular(2_000, degree, seed=1)) == pytest.approx(expected, abs=0.01)


@settings(max_examples=50)
@given(st.integers(2, 90), st.integers(1, 6))
def test_base_graphs_give_the_exact_mean_after_one_period_for_any_number_of_peers(peers: int, k: int) -> None:
    k = min(k, peers - 1)
    links = topology.base(peers, k)
    check_topology(links, Needs.DOUBLY_STOCHASTIC | Needs.SYMMETRIC)
    product = np.eye(peers)
    for weights in links.over_period():
        assert np.diff(weights.indptr).max() - 1 <= k
        product = weights @ product
    np.testing.assert_allclose(product, np.full((peers, peers), 1 / peers), atol=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 40))
def test_one_peer_exponential_is_exact_for_powers_of_two_and_for_no_other_number(peers: int) -> None:
    links = topology.one_peer_exponential(peers)
    assert links.period == max(1, math.ceil(math.log2(peers)))
    if peers & (peers - 1):
        # A dyadic number is no 1/n unless n is a power of two, so no number of rounds is enough.
        assert rate(links) > 0.01
    else:
        assert rate(links) == 0.0


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_one_peer_hypercube_is_exact_after_as_many_rounds_as_bits(bits: int) -> None:
    links = topology.one_peer_hypercube(2**bits)
    assert links.period == bits
    assert rate(links) == 0.0
    check_topology(links, Needs.MATCHING)


@pytest.mark.parametrize(
    ("name", "peers"),
    [(name, peers) for name in NAMES for peers in (4, 16) if (name, peers) != ("torus", 4)],  # its sides are 3 at least
)
def test_every_named_topology_keeps_a_consensus(name: str, peers: int) -> None:
    options = {"degree": 2} if name in ("random-regular", "small-world") and peers == 4 else {}
    links = named(name, peers=peers, **options)
    check_topology(links, Needs.ROWS | Needs.NONNEGATIVE | Needs.CONNECTED)
    for round in range(3):
        rows = [links.links(peer, round) for peer in range(peers)]
        assert rows == links.all_links(round)
        matrix = links.weights(round).toarray()
        for row in rows:
            assert row.own == matrix[row.me, row.me]
            assert all(matrix[row.me, j] == weight for j, weight in row.hears.items())
            assert all(matrix[i, row.me] == weight for i, weight in row.heard_by.items())
            assert len(row.hears) == np.count_nonzero(matrix[row.me]) - (row.own != 0)


def test_the_distance_shrinks_by_the_slem_at_least_and_from_the_slowest_start_exactly() -> None:
    for links in (topology.ring(16), topology.torus(64), topology.exponential(16), topology.star(9)):
        value, direction = slowest(links)
        x = np.random.default_rng(0).standard_normal(links.peers)
        x -= x.mean()
        start, weights = np.linalg.norm(x), links.weights(0)
        for t in range(1, 31):
            x, direction = weights @ x, weights @ direction
            assert np.linalg.norm(x - x.mean()) <= value**t * start * (1 + 1e-12)
            assert np.linalg.norm(direction) == pytest.approx(value**t, rel=1e-12, abs=1e-12)


def test_random_matchings_are_drawn_again_and_repeat_with_the_seed() -> None:
    first, again = topology.random_matching(10, seed=4), topology.random_matching(10, seed=4)
    assert (first.weights(3) - again.weights(3)).nnz == 0
    assert (first.weights(3) - first.weights(2)).nnz > 0
    check_topology(first, Needs.MATCHING | Needs.SYMMETRIC | Needs.ROWS)


def test_any_networkx_graph_and_any_sequence_of_them_is_a_topology() -> None:
    petersen = topology.graph(nx.petersen_graph())
    assert slem(petersen) == pytest.approx(max(abs(1 + 1), abs(1 - 2)) / 4, abs=1e-9)  # eigenvalues 3, 1, -2
    halves = topology.changing(4, lambda round: nx.Graph([(0, 1), (2, 3)] if round % 2 else [(0, 2), (1, 3)]), period=2)
    assert slem(halves) == 0.0
    with pytest.raises(UsageError, match="round 0 has 2 nodes, expected 0 to 3"):
        topology.changing(4, lambda round: nx.Graph([(0, 1)])).weights(0)
    arcs = topology.graph(nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)]), weights="push")
    check_topology(arcs, Needs.COLUMNS | Needs.CONNECTED)
    assert arcs.links(0, 0).heard_by == {1: 1 / 3, 2: 1 / 3}


def matrix(*rows: list[float]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows))


HALF = 0.5
REFUSED = [
    (matrix([HALF, HALF], [HALF, 0.4]), Needs.ROWS, "row of peer 1 .* sums to 0.9, expected 1; 1 of 2 peers"),
    (matrix([HALF, HALF], [0.25, 0.75]), Needs.COLUMNS, "column of peer 0 .* sums to 0.75, expected 1; 2 of 2"),
    (matrix([1.5, -0.5], [-0.5, 1.5]), Needs.NONNEGATIVE, "peer 0 gives peer 1 the weight -0.5"),
    (matrix([0.2, 0.8, 0], [0, 0.2, 0.8], [0.8, 0, 0.2]), Needs.SYMMETRIC, "weight 0.8 and gets 0, expected the same"),
    (matrix([1.0, 0.0], [0.0, 1.0]), Needs.CONNECTED, "falls into 2 parts: peer 1 and peer 0"),
    (matrix([0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]), Needs.MATCHING, "peer 1 hears 2 others"),
    (matrix([0.5, 0.5], [0, 1]), Needs.MATCHING, "peer 0 hears peer 1, which does not hear it"),
    (matrix([0.7, 0.3], [0.3, 0.7]), Needs.MATCHING, "gives its partner the weight 0.3, expected 0.5"),
    (matrix([0.7, 0.3], [0.3, 0.7]), Needs.EXACT, "weights up to 0.7, expected 1/2 everywhere"),
    (matrix([1.0, float("nan")], [0.0, 1.0]), Needs.ROWS, "NaN"),
    (matrix([1.0, 0.0]), Needs.ROWS, "as many rows as columns"),
]


@pytest.mark.parametrize(("weights", "needs", "says"), REFUSED)
def test_the_validator_names_the_peer_and_what_was_wrong(weights: sparse.csr_array, needs: Needs, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check(weights, needs)


@given(st.integers(3, 12), st.integers(0, 11), st.sampled_from([-0.01, 0.003, 0.2]))
def test_one_wrong_weight_is_found_at_its_peer(peers: int, peer: int, change: float) -> None:
    peer %= peers
    weights = topology.ring(peers).weights(0).tolil()
    weights[peer, (peer + 1) % peers] += change
    with pytest.raises(UsageError, match=f"the row of peer {peer} "):
        check(weights.tocsr(), Needs.ROWS)
    with pytest.raises(UsageError, match=f"the column of peer {(peer + 1) % peers} "):
        check(weights.tocsr(), Needs.COLUMNS)


def test_uniform_weights_on_unequal_degrees_do_not_keep_the_mean() -> None:
    with pytest.raises(UsageError, match=r"the column of peer 0 .* the mean moves"):
        check_topology(topology.star(5, weights="uniform"), Needs.DOUBLY_STOCHASTIC)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: named("rign", peers=8), "'rign' is not known, expected one of base, complete, .*ring"),
        (lambda: named("ring", peers=8, sides=2), "no option 'sides', expected one of \\['weights'\\]"),
        (lambda: named("hypercube", peers=12), "12 peers, expected a power of two; base"),
        (lambda: topology.torus(14), "both sides at least 3"),
        (lambda: topology.ring(2), "ring of 2 peers, expected at least 3"),
        (lambda: topology.ring(8, weights="best"), "'best', expected one of \\['metropolis', 'uniform', 'push'\\]"),
        (lambda: topology.graph(nx.DiGraph([(0, 1), (1, 2), (2, 0)])), "peer . sends to peer . and not back"),
        (lambda: topology.graph(nx.Graph([(0, 1), (2, 3)])), "falls into 2 parts"),
        (lambda: slem(topology.random_matching(4)), "no period"),
        (lambda: slem(topology.star(4, weights="push")), "the row of peer"),
    ],
)
def test_what_cannot_be_is_refused(ask: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ask()  # type: ignore[operator]
