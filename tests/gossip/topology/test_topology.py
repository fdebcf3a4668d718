"""Mixing matrices: their spectra against closed forms, and what the validator refuses."""

from __future__ import annotations

import inspect
import math
import random

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import topology
from gossip.errors import UsageError
from gossip.topology import (
    NAMES,
    Needs,
    Topology,
    Weights,
    check,
    check_topology,
    entries,
    from_entries,
    named,
    rate,
    slem,
    slowest,
    weigh,
)

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


# ---- against plain loops ---------------------------------------------------------------------------------------


@st.composite
def adjacencies(draw: st.DrawFn, symmetric: bool) -> np.ndarray:
    """0 and 1, no peer linked to itself."""
    peers = draw(st.integers(1, 6))
    linked = np.array(draw(st.lists(st.booleans(), min_size=peers**2, max_size=peers**2))).reshape(peers, peers)
    linked = linked & ~np.eye(peers, dtype=bool)
    return np.where(linked | linked.T if symmetric else linked, 1.0, 0.0)


def weighed(adjacency: np.ndarray, weights: Weights) -> np.ndarray:
    """The mixing matrix, number by number as `Weights` says."""
    peers = len(adjacency)
    hears, heard_by = adjacency.sum(axis=1), adjacency.sum(axis=0)
    found = np.zeros((peers, peers))
    for i in range(peers):
        for j in range(peers):
            if adjacency[i, j]:
                degree = {
                    Weights.METROPOLIS: max(hears[i], hears[j]),
                    Weights.UNIFORM: hears[i],
                    Weights.PUSH: heard_by[j],
                }[weights]
                found[i, j] = 1 / (1 + degree)
    for i in range(peers):
        found[i, i] = 1 - (found[:, i] if weights is Weights.PUSH else found[i]).sum()
    return found


@pytest.mark.parametrize("weights", Weights)
@given(data=st.data())
def test_weights_are_those_of_their_formula_on_any_graph(weights: Weights, data: st.DataObject) -> None:
    adjacency = data.draw(adjacencies(symmetric=weights is Weights.METROPOLIS))
    found = weigh(sparse.csr_array(adjacency), weights.value)
    np.testing.assert_allclose(found.toarray(), weighed(adjacency, weights), atol=1e-15)
    assert found.dtype == np.float64
    receivers, senders, values = entries(found)
    assert sorted(zip(receivers.tolist(), senders.tolist(), strict=True)) == sorted(
        (i, j) for i in range(len(adjacency)) for j in range(len(adjacency)) if i == j or adjacency[i, j]
    )
    assert values.tolist() == [found[i, j] for i, j in zip(receivers.tolist(), senders.tolist(), strict=True)]


def test_metropolis_weights_name_the_link_that_goes_one_way() -> None:
    adjacency = sparse.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]], float))
    with pytest.raises(UsageError, match="peer 2 sends to peer 1 and not back"):
        weigh(adjacency)


def is_so(weights: np.ndarray, need: Needs) -> bool:
    """What `need` says, for a dense matrix."""
    n, linked = len(weights), weights != 0
    apart = linked & ~np.eye(n, dtype=bool)
    if need is Needs.ROWS:
        return all(abs(sum(weights[i]) - 1) < 1e-9 for i in range(n))
    if need is Needs.COLUMNS:
        return is_so(weights.T, Needs.ROWS)
    if need is Needs.SYMMETRIC:
        return all(abs(weights[i, j] - weights[j, i]) < 1e-9 for i in range(n) for j in range(n))
    if need is Needs.NONNEGATIVE:
        return bool((weights >= -1e-9).all())
    if need is Needs.MATCHING:
        return bool((apart.sum(axis=1) <= 1).all() and (apart == apart.T).all() and (weights[apart] == 0.5).all())
    if need is Needs.EXACT:
        return all(abs(weights[i, j] - 1 / n) < 1e-9 for i in range(n) for j in range(n))
    if need is Needs.STATIC:
        return True  # one matrix is, whatever it holds
    reach = np.linalg.matrix_power(np.eye(n) + apart, n) > 0
    if need is Needs.TREE:
        return bool((apart == apart.T).all() and apart.sum() == 2 * (n - 1) and reach.all())
    return bool(reach.all())


@st.composite
def mixing_matrices(draw: st.DrawFn) -> np.ndarray:
    """Trees, matchings, complete and any other graphs, often with one weight that is wrong."""
    peers = draw(st.integers(2, 5))
    kind = draw(st.sampled_from(["tree", "complete", "matching", "any"]))
    if kind == "any":
        found = weighed(draw(adjacencies(symmetric=False)), draw(st.sampled_from([Weights.UNIFORM, Weights.PUSH])))
    elif kind == "matching":
        found = topology.random_matching(peers, seed=draw(st.integers(0, 9))).weights(0).toarray()
    else:
        tree = nx.random_labeled_tree(peers, seed=draw(st.integers(0, 9)))
        found = topology.graph(tree if kind == "tree" else nx.complete_graph(peers)).weights(0).toarray()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(found) - 1)), draw(st.integers(0, len(found) - 1))
        found[at] = draw(st.sampled_from([found[at] + 0.25, found[at] - 2e-9, 0.0, -0.5]))
    return found


@given(mixing_matrices())
def test_the_validator_refuses_what_is_wrong_and_nothing_else(weights: np.ndarray) -> None:
    for need in Needs:
        refused = False
        try:
            check(sparse.csr_array(weights), need)
        except UsageError:
            refused = True
        assert refused != is_so(weights, need), (need, weights)


def rounding(weights: np.ndarray) -> sparse.csr_array:
    """Every weight off by as much as rounding may do, and less than any weight."""
    return sparse.csr_array(weights + 1e-11 * np.sign(np.arange(weights.size).reshape(weights.shape) % 2 - 0.5))


def test_rounding_is_no_reason_to_refuse() -> None:
    pairs = np.kron(np.eye(2), np.full((2, 2), 0.5))
    check(rounding(np.full((4, 4), 0.25)), Needs.DOUBLY_STOCHASTIC | Needs.SYMMETRIC | Needs.EXACT)
    check(sparse.csr_array(pairs + np.where(pairs, 1e-11, 0.0)), Needs.MATCHING | Needs.ROWS)
    check(rounding(np.eye(3)), Needs.NONNEGATIVE)


def test_a_zero_that_is_stored_is_no_partner() -> None:
    pair = matrix([0.5, 0.5, 0.25], [0.5, 0.5, 0.25], [0.25, 0.25, 1])
    pair.data[pair.data == 0.25] = 0.0
    check(pair, Needs.MATCHING)
    with pytest.raises(UsageError, match=r"^the mixing matrix: the row of peer 0"):
        check(2 * pair, Needs.ROWS)
    with pytest.raises(UsageError, match=r"^one: the row of peer 0"):
        check_topology(Topology("one", 3, 1, lambda round: 2 * pair), Needs.ROWS)


FOUR = np.pad(np.full((3, 3), 1 / 3), (0, 1)) + np.diag([0.0, 0, 0, 1])
"""A circle of three and one alone: as many links as a tree of four."""
WORST = [
    (matrix([1.2, -0.1, -0.1], [0, 1, 0], [0.5, -0.2, 0.7]), Needs.NONNEGATIVE, "peer 2 gives peer 1 the weight -0.2,"),
    (
        matrix([1, 0, 0], [0, 0.8, 0.3], [0, 0, 0.7]),
        Needs.ROWS,
        r"row of peer 1 \(what it gives to others' values\) sums to 1.1, .*; 2 of 3 peers",
    ),
    (
        matrix([1, 0, 0], [0, 0.8, 0.3], [0, 0, 0.7]),
        Needs.COLUMNS,
        r"column of peer 1 \(what others give to its value: the mean moves\) .* 0.8, expected 1; 1 of 3",
    ),
    (matrix([0.5, 0.1, 0], [0, 1, 0.3], [0, 0.7, 0]), Needs.SYMMETRIC, "1 gives peer 2 the weight 0.3 and gets 0.7,"),
    (matrix([0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]), Needs.MATCHING, "peer 0 sends to 2 others in one round"),
    (matrix([1, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]), Needs.MATCHING, "peer 1 hears peer 2, which does not hear it"),
    (matrix([0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]), Needs.CONNECTED, "into 2 parts: peer 2 and peer 0 do not hear"),
    (matrix([0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]), Needs.TREE, "peer 1 sends to peer 2 and not back"),
    (topology.ring(4).weights(0), Needs.TREE, "4 links between 4 peers, expected 3, a tree such as"),
    (topology.matrix(FOUR, needs=Needs.ROWS).weights(0), Needs.TREE, "falls into 2 parts: peer 3 and peer 0"),
    (matrix([0.5, 0.5], [0, 1]), Needs.EXACT, "peer 1 hears 1 of 2 peers, itself included, expected all"),
]


@pytest.mark.parametrize(("weights", "needs", "says"), WORST)
def test_the_validator_names_the_worst_or_the_first_peer(weights: sparse.csr_array, needs: Needs, says: str) -> None:
    with pytest.raises(UsageError, match=f"^mine.*{says}"):
        check(weights, needs, "mine")


def test_a_matrix_of_ones_own_is_taken_as_numbers_and_zeros_are_no_links() -> None:
    given_ = sparse.csr_array(np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], np.float32))
    given_[0, 1] = given_[1, 0] = 0.0  # still stored
    with pytest.raises(UsageError, match="own falls into 3 parts"):
        topology.matrix(given_, "own", Needs.CONNECTED)
    links = topology.matrix(np.array([[1, 0], [0, 1]]), needs=Needs.ROWS)
    assert links.weights(7).dtype == np.float64
    assert links.links(0, 0).hears == {}
    assert (links.name, links.peers, links.period) == ("matrix", 2, 1)
    half = sparse.csr_array(np.full((2, 2), HALF))
    own = topology.matrix(half)
    half[0, 0] = 3.0
    assert own.weights(0)[0, 0] == HALF


def test_a_period_is_connected_as_a_whole_and_each_round_is_checked() -> None:
    rounds = [matrix([0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]), matrix([1, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5])]
    check_topology(Topology("two", 3, 2, rounds.__getitem__), Needs.DOUBLY_STOCHASTIC)
    with pytest.raises(UsageError, match="two falls into 2 parts: peer 2"):
        check_topology(Topology("two", 3, 1, rounds.__getitem__), Needs.CONNECTED)
    with pytest.raises(UsageError, match="two changes its links"):
        check_topology(Topology("two", 3, 2, rounds.__getitem__), Needs.STATIC)
    with pytest.raises(UsageError, match="two, round 1: the row of peer 0"):
        check_topology(Topology("two", 3, 2, [rounds[0], 2 * rounds[1]].__getitem__), Needs.ROWS)
    with pytest.raises(UsageError, match=r"two gives shape \(3, 3\) for 4 peers"):
        check_topology(Topology("two", 4, 2, rounds.__getitem__), Needs.ROWS)
    opposed = [matrix([1.5, -0.5], [-0.5, 1.5]), matrix([0.5, 0.5], [0.5, 0.5])]  # their sum has no links
    check_topology(Topology("opposed", 2, 2, opposed.__getitem__), Needs.CONNECTED)


def test_what_is_drawn_anew_is_looked_at_for_eight_rounds_and_may_be_apart_in_each() -> None:
    asked: list[int] = []

    def draw(round: int) -> sparse.csr_array:
        asked.append(round)
        return matrix([1.0, 0.0], [0.0, 1.0])

    check_topology(Topology("drawn", 2, None, draw), Needs.DOUBLY_STOCHASTIC)
    assert asked == list(range(8))
    with pytest.raises(UsageError, match="drawn changes its links from round to round"):
        check_topology(Topology("drawn", 2, None, draw), Needs.STATIC)
    late = Topology("late", 2, None, lambda round: matrix([1.0, 0.0], [0.0, 1.0 if round < 7 else 0.5]))
    with pytest.raises(UsageError, match="late, round 7: the row of peer 1"):
        check_topology(late, Needs.ROWS)


def test_graphs_are_read_with_their_numbers_names_and_arcs_and_without_their_weights() -> None:
    mixed = nx.MultiGraph([(2, 1), (1, 0), (1, 0), (1, 1)])  # 2 comes first, one link is doubled, one goes nowhere
    mixed.add_edge(0, 1, weight="heavy")
    links = topology.graph(mixed)
    assert links.name == "graph"
    np.testing.assert_allclose(links.weights(0).toarray(), topology.path(3).weights(0).toarray())
    named_ = topology.graph(nx.DiGraph([("b", "a"), ("a", "c"), ("c", "b")]), "three", "push")  # b is peer 0
    assert named_.name == "three"
    assert named_.links(1, 0).hears == {0: HALF}
    assert named_.links(1, 0).heard_by == {2: HALF}
    with pytest.raises(UsageError, match="a graph with 1 nodes, expected at least 2"):
        topology.graph(nx.empty_graph(1))


def test_a_topology_of_changing_graphs_repeats_after_its_period() -> None:
    asked: list[int] = []

    def graph_of(round: int) -> nx.Graph:
        asked.append(round)
        return nx.Graph([(0, 1), (2, 3)] if round % 2 else [(0, 2), (1, 3)])

    links = topology.changing(4, graph_of, period=2)
    for round in (0, 1, 2, 3, 5):
        assert (links.links(0, round).hears == {1: HALF}) == (round % 2 == 1)
    assert asked == [0, 1]  # each is made once


@settings(max_examples=40)
@given(st.integers(2, 300), st.integers(1, 6))
def test_base_graphs_are_as_short_as_their_paper_says(peers: int, k: int) -> None:
    k = min(k, peers - 1)
    period = topology.base(peers, k).period
    assert period is not None
    assert math.log(peers, k + 1) - 1e-9 <= period <= 2 * math.log(peers, k + 1) + 2
    factors = [factor for factor in range(2, k + 2) if peers == factor ** round(math.log(peers, factor))]
    if factors:  # and as short as can be where numbers up to k + 1 make up the whole
        assert period <= round(math.log(peers, factors[-1]))


def test_large_topologies_are_measured_as_small_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [
        topology.one_peer_exponential(24),
        topology.random_regular(24, 4, seed=1),
        topology.base(24),
        topology.directed_ring(9),
    ]
    dense = [slowest(each)[0] for each in links]
    monkeypatch.setattr(topology, "DENSE_PEERS_MAX", 8)
    for each, value in zip(links, dense, strict=True):
        product = np.eye(each.peers)
        for weights in each.over_period():
            product = weights @ product
        assert value == pytest.approx(np.linalg.norm(product - 1 / each.peers, 2), abs=1e-12)
        found, start = slowest(each)
        assert found == pytest.approx(value, abs=1e-7)
        assert (found == 0.0) == (value == 0.0)
        assert start.mean() == pytest.approx(0.0, abs=1e-15)
        assert np.linalg.norm(start) == pytest.approx(1.0)
        assert np.linalg.norm(product @ start) == pytest.approx(value, abs=1e-6)


def test_singular_values_that_lie_close_together_are_found_where_weights_are_symmetric_else_refused() -> None:
    path = topology.path(1_500)
    value, start = slowest(path)
    assert value == pytest.approx(1 / 3 + 2 / 3 * COS(math.pi / 1_500), abs=1e-12)
    assert np.linalg.norm(start) == pytest.approx(1.0)
    assert np.linalg.norm(path.weights(0) @ start) == pytest.approx(value, abs=1e-12)
    twice = Topology("path twice", 1_500, 2, path.weights)
    for each in (topology.directed_ring(1_500), twice):
        with pytest.raises(UsageError, match="this topology of 1500 peers lie too close together"):
            slowest(each)


def test_the_rate_is_per_round() -> None:
    links = topology.one_peer_exponential(6)
    assert links.period == 3
    assert rate(links) == pytest.approx(slem(links) ** (1 / 3), rel=1e-12)
    assert rate(topology.random_pair(10)) == pytest.approx(math.sqrt(1 - 1 / 9), rel=1e-12)
    assert rate(topology.ring(8)) == slem(topology.ring(8))
    with pytest.raises(UsageError, match="changing is drawn anew each round and has no period"):
        rate(topology.changing(4, lambda round: nx.path_graph(4)))


def test_no_round_of_a_base_graph_is_idle_and_smooth_numbers_take_a_round_for_each_factor() -> None:
    for peers in range(2, 37):
        for k in range(1, min(peers, 4)):
            rounds = topology.base(peers, k).over_period()
            assert all(weights.nnz > peers for weights in rounds)
            rest, factors = peers, 0
            for factor in range(2, k + 2):
                while rest % factor == 0:
                    rest, factors = rest // factor, factors + 1
            assert rest > 1 or len(rounds) <= factors


@given(st.integers(1, 6), st.sets(st.integers(0, 35)), st.randoms(use_true_random=False))
def test_a_matrix_of_entries_in_any_order_is_sorted_and_as_large_as_there_are_peers(
    peers: int, places: set[int], shuffled: random.Random
) -> None:
    pairs = [(place // 6, place % 6) for place in sorted(places) if place // 6 < peers and place % 6 < peers]
    shuffled.shuffle(pairs)
    dense = np.zeros((peers, peers))
    for at, pair in enumerate(pairs):
        dense[pair] = at + 1
    receivers, senders = np.array(pairs, int).reshape(-1, 2).T
    found = from_entries(peers, receivers, senders, np.arange(1.0, len(pairs) + 1))
    assert found.shape == (peers, peers)
    np.testing.assert_array_equal(found.toarray(), dense)
    for row in range(peers):
        assert (
            sorted(found.indices[found.indptr[row] : found.indptr[row + 1]].tolist())
            == found.indices[found.indptr[row] : found.indptr[row + 1]].tolist()
        )


def test_who_keeps_nothing_of_its_own_has_the_own_weight_zero() -> None:
    swap = topology.matrix(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert [links.own for links in swap.all_links(0)] == [0.0, 0.0]
    assert swap.links(0, 0) == swap.all_links(0)[0]


@pytest.mark.parametrize("name", NAMES)
def test_topologies_have_their_names_and_seeds_from_zero(name: str) -> None:
    links = named(name, peers=16)
    assert links.name == ("base-2" if name == "base" else name)
    if "seed" in inspect.signature(NAMES[name]).parameters:
        named(name, peers=16, seed=0)
        with pytest.raises(UsageError, match="seed=-1, expected at least 0"):
            named(name, peers=16, seed=-1)


@pytest.mark.parametrize("name", ["random-pull", "random-publisher"])
def test_a_replica_moves_by_the_amount_towards_the_one_it_hears(name: str) -> None:
    weights = named(name, peers=5, amount=0.3).weights(2).toarray()
    check_topology(named(name, peers=5, amount=0.3), Needs.ROWS)
    assert {*weights[~np.eye(5, dtype=bool)].tolist()} == {0.0, 0.3}
    assert {*np.round(np.diag(weights), 12).tolist()} == {1.0, 0.7}
    for amount in (0.0, 1.0, -0.5):
        with pytest.raises(UsageError, match=f"amount {amount}, expected a weight between 0 and 1"):
            named(name, peers=5, amount=amount)


def test_numbers_at_the_edge_are_taken_and_those_beyond_it_are_not() -> None:
    assert topology.graph(nx.path_graph(2)).peers == topology.ring(3).peers - 1 == topology.hypercube(2).peers == 2
    for wrong in (6, 3, 10):
        with pytest.raises(UsageError, match=f"hypercube of {wrong} peers, expected a power of two"):
            topology.hypercube(wrong)
