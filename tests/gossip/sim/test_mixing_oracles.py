"""The parts that strategies are made of, against plain loops and told stories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given
from hypothesis import strategies as st

from gossip import topology
from gossip.arrays import Array
from gossip.compression import TopK
from gossip.errors import UsageError
from gossip.mixing import (
    Choco,
    ClippedGossip,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    NoLoCo,
    PairwiseExchange,
    PushSum,
    RelaySum,
    Strategy,
)
from gossip.mixing.rounds import Swarm, Weather
from gossip.mixing.strategies.bad import CompressedReplicas, DeltaBroadcast, OneWayPull, PlainPushSum, PubSubAveraging
from gossip.mixing.strategies.push_sum import Pushed, ledger
from gossip.mixing.strategy import GRID, Exchange, Outbox, Packet, averaged, floats, summed
from gossip.sim.vectorized import simulate
from gossip.topology import Links, Needs


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def links_of(me: int, *neighbors: int) -> Links:
    share = 1.0 / (1 + len(neighbors))
    return Links(me, share, dict.fromkeys(neighbors, share), dict.fromkeys(neighbors, share), 4)


# ---- matrices and exchanges ------------------------------------------------------------------------------------


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[np.ndarray, dict[tuple[int, int], int], Exchange]:
    """A dense matrix, the lag of each link (receiver, sender), and the exchange of both."""
    peers = draw(st.integers(1, 5))
    dense = np.array(draw(st.lists(st.integers(0, 3), min_size=peers**2, max_size=peers**2)), float) / 8
    dense = dense.reshape(peers, peers)
    dense[np.arange(peers), np.arange(peers)] = draw(st.sampled_from([1 / 16, 0.0]))
    exchange = Exchange(3, sparse.csr_array(dense), chance())
    if draw(st.booleans()):
        return dense, {}, exchange
    lag = np.array(draw(st.lists(st.integers(-1, 2), min_size=len(exchange.values), max_size=len(exchange.values))))
    links = zip(exchange.receivers.tolist(), exchange.senders.tolist(), strict=True)
    return dense, dict(zip(links, lag.tolist(), strict=True)), exchange.delayed(lag.astype(int))


@given(exchanges())
def test_an_exchange_tells_links_weights_and_what_arrives(
    drawn: tuple[np.ndarray, dict[tuple[int, int], int], Exchange],
) -> None:
    dense, lags, exchange = drawn
    peers = len(dense)
    links = [(i, j) for i in range(peers) for j in range(peers) if i != j and dense[i, j]]
    assert list(zip(exchange.receivers.tolist(), exchange.senders.tolist(), strict=True)) == links
    assert exchange.values.tolist() == [dense[link] for link in links]
    assert exchange.own.tolist() == [[dense[i, i]] for i in range(peers)]
    assert exchange.arrived.tolist() == [lags.get(link, 0) == 0 for link in links]
    assert exchange.is_whole == all(lags.get(link, 0) == 0 for link in links)
    assert DPsgd().ages(None, exchange) == dict(sorted(Counter(lags.get(link, 0) for link in links).items()))  # type: ignore[arg-type]
    mixing = dense.copy()
    only = np.diag(np.diag(dense))
    for i, j in links:
        if lags.get((i, j), 0):
            mixing[i, j] = 0.0
        else:
            only[i, j] = dense[i, j]
    np.testing.assert_allclose(exchange.only(exchange.arrived).toarray(), only)
    if not exchange.is_whole:
        mixing[np.arange(peers), np.arange(peers)] += 1 - mixing.sum(axis=1)
    np.testing.assert_allclose(exchange.mixing.toarray(), mixing)
    np.testing.assert_array_equal(exchange.weights.toarray(), dense)
    chosen = np.array([(i + j) % 2 == 0 for i, j in links], bool)
    for keep_rows in (True, False):
        matrix = np.zeros((peers, peers))
        for at, (i, j) in enumerate(links):
            matrix[i, j] = at / 7 if chosen[at] else 0.0
        matrix += np.diag(1 - matrix.sum(axis=1 if keep_rows else 0))
        made = exchange.matrix(np.arange(len(links))[chosen] / 7, chosen, keep_rows=keep_rows)
        np.testing.assert_allclose(made.toarray(), matrix)


@given(st.integers(1, 4), st.lists(st.integers(0, 3), max_size=12))
def test_sums_by_row_number_are_those_of_a_loop(columns: int, rows: list[int]) -> None:
    values = chance(len(rows)).standard_normal((len(rows), columns)).astype(np.float32)
    expected = np.zeros((4, columns))
    for row, value in zip(rows, values, strict=True):
        expected[row] += value
    found = summed(np.array(rows, int), values, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_weights_in_float32_are_the_nearest_on_a_grid_and_the_rest_stays_at_home() -> None:
    weights = topology.small_world(20, seed=1).weights(0)
    product = averaged(weights, np.eye(20, dtype=np.float32))
    assert product.dtype == np.float32
    short = product.astype(float)
    assert np.array_equal(short / GRID, np.rint(short / GRID))
    assert np.array_equal(short.sum(axis=1), np.ones(20))
    apart = ~np.eye(20, dtype=bool)
    assert np.abs(short - weights.toarray())[apart].max() <= GRID / 2
    float32 = sparse.csr_array(weights, dtype=np.float32)  # taken as it is
    np.testing.assert_array_equal(averaged(float32, np.eye(20, dtype=np.float32)), float32.toarray())
    half = averaged(weights, np.eye(20, dtype=np.float16))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, weights.toarray(), rtol=2.0**-10)
    assert averaged(weights, np.eye(20)).dtype == np.float64
    of_the_first = sparse.csr_array(np.array([[1.0, 0.0], [1.0, 0.0]]))  # nobody hears the last
    assert averaged(of_the_first, np.array([[3.0], [4.0]], np.float32)).tolist() == [[3.0], [3.0]]


def test_parameters_are_numbers_of_one_or_of_all_peers() -> None:
    assert floats(np.array([1, 2], np.uint8)).dtype == np.float64
    for x in (np.zeros(2, np.float16), np.zeros((2, 3))):
        assert floats(x) is x
    for wrong in (np.zeros(()), np.zeros((1, 1, 1)), np.array([True]), np.array(["a"]), np.zeros(1, complex)):
        with pytest.raises(UsageError, match="expected numbers of shape"):
            floats(wrong)


def test_a_delayed_exchange_knows_what_becomes_of_answers_and_is_otherwise_the_same() -> None:
    exchange = Exchange(4, topology.ring(5).weights(0), chance())

    def later(count: int) -> Any:
        return np.zeros(count, int)

    lag = np.zeros(10, int)
    delayed = exchange.delayed(lag, later)
    assert (delayed.round, delayed.later, exchange.lag, exchange.later) == (4, later, None, None)
    assert delayed.lag is lag
    assert delayed.weights is exchange.weights
    assert exchange.delayed(lag).later is None


def test_a_packet_is_as_long_as_its_arrays_and_eight_bytes_for_each_scalar() -> None:
    assert Packet({"x": np.zeros(3, np.float32), "y": np.zeros(2, np.uint8)}, {"n": 1, "w": 0.5}).nbytes == 14 + 16
    assert Packet({"x": np.zeros(3)}).nbytes == 24


# ---- what a strategy says of itself ----------------------------------------------------------------------------

STRATEGIES: list[Strategy[Any]] = [
    *(DPsgd(), CombineThenAdapt(), EpidemicLearning(), ClippedGossip(0.5), PushSum(), PairwiseExchange(), Choco()),
    *(DiLoCo(), NoLoCo(), GradientTracking(), RelaySum(3), PlainPushSum(), OneWayPull(0.3), PubSubAveraging()),
    *(CompressedReplicas(TopK(0.5)), DeltaBroadcast(), Every(3, DPsgd()), Compressed(TopK(0.5), Choco())),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_every_strategy_starts_with_what_it_is_given_and_learns_by_adding(strategy: Strategy[Any]) -> None:
    one, delta = np.array([1.0, -2.0, 0.5]), np.array([0.25, 0.5, -1.0])
    state = strategy.start(one)
    np.testing.assert_array_equal(strategy.params(state), one)
    assert strategy.weight(state) == 1.0
    if isinstance(strategy, DeltaBroadcast | PushSum) or not strategy.needs & Needs.MATCHING:
        after = strategy.rest(strategy.local(strategy.local(state, delta, 0), delta, 1))
        moved = strategy.params(after) - one
        if not isinstance(strategy, GradientTracking | RelaySum):
            np.testing.assert_allclose(moved, 2 * delta, atol=1e-15)
    for integers in (np.array([1, 2, 3]), np.array([[1, 2], [1, 2], [1, 2]])):
        assert strategy.params(strategy.start(integers)).dtype == np.float64
        mass, weight = strategy.mass(strategy.start(integers)) if integers.ndim == 2 else (None, None)
        assert mass is None or (mass.tolist(), weight) == ([3.0, 6.0], 3.0)
    goes_on, its = strategy.consensus(state)
    if isinstance(strategy, DiLoCo | NoLoCo | GradientTracking):
        assert goes_on == DPsgd(), "it remembers steps"
    elif isinstance(strategy, DPsgd | CombineThenAdapt | EpidemicLearning | ClippedGossip | PushSum | PairwiseExchange):
        assert goes_on is strategy
        assert its is state
    np.testing.assert_array_equal(goes_on.params(its), one)


def test_what_cannot_wait_says_so_and_what_cannot_miss_a_step_too() -> None:
    with pytest.raises(UsageError, match=r"delay 2 with DPsgd\(\), which waits"):
        DPsgd().check_network(delay=2)
    with pytest.raises(UsageError, match=r"churn 0.1 with GradientTracking\(\), which takes a step left out"):
        GradientTracking().check_network(churn=0.1)
    GradientTracking().check_network(loss=0.5)
    DPsgd().check_network(loss=0.5, churn=0.5, crash=0.5)
    PushSum().check_network(loss=0.5, delay=2, churn=0.5)
    for bad in (OneWayPull(), PubSubAveraging(), DeltaBroadcast()):
        bad.check_network(loss=0.5, churn=0.5, crash=0.5)
        with pytest.raises(UsageError, match="with delay is not built"):
            bad.check_network(delay=1)
    for name in ("OneWayPull(amount=0.0)", "OneWayPull(amount=1.0)", "PubSubAveraging(amount=-0.1)"):
        with pytest.raises(UsageError, match=r"amount .*, expected a share between 0 and 1"):
            eval(name)
    assert [each.says_nothing(True) != "" for each in (DPsgd(), DiLoCo(), NoLoCo(), DeltaBroadcast())] == [
        False,
        *[True] * 3,
    ]
    assert not any(each.says_nothing(False) for each in STRATEGIES if not isinstance(each, RelaySum))
    assert ClippedGossip(0.01).radius == 0.01
    for radius in (0.0, -1.0):
        with pytest.raises(UsageError, match=f"radius {radius}, expected more than 0"):
            ClippedGossip(radius)


def test_what_the_vectorized_form_cannot_bear_is_said_by_its_name_and_the_rest_is_borne() -> None:
    for strategy, names in ((Choco(), ("loss", "churn")), (RelaySum(2), ("churn", "crash"))):
        strategy.check_network()
        for name in names:
            with pytest.raises(UsageError, match=f"^{name} 0.1 with "):
                strategy.check_network(**{name: 0.1})  # type: ignore[arg-type]
    RelaySum().check_network(loss=0.1)
    Choco().check_network(crash=0.1)
    with pytest.raises(UsageError, match="codec is a str, expected a Codec"):
        Choco(codec="TopK")  # type: ignore[arg-type]
    assert RelaySum(2).local(RelaySum(2).start(np.array([1.0])), np.array([0.5]), 0).x.tolist() == [1.5]
    small = Compressed(TopK(0.1), Choco())
    _, outbox = small.send(small.start(np.arange(100.0)), 0, links_of(0, 1), chance())
    assert outbox[1].nbytes < 200


# ---- averaging -------------------------------------------------------------------------------------------------


def neighbors_average(strategy: Strategy[Any], weights: np.ndarray, x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """One round as the docstrings say it."""
    moved = x + delta
    match strategy:
        case CombineThenAdapt():
            return weights @ x + delta
        case EpidemicLearning():
            return np.array([moved[row > 0].mean(axis=0) for row in weights])
        case ClippedGossip():
            found = moved.copy()
            for i, j in zip(*np.nonzero(weights), strict=True):
                away = moved[j] - moved[i]
                length = np.linalg.norm(away)
                found[i] += weights[i, j] * away * (min(1.0, strategy.radius / length) if i != j else 0.0)
            return found
        case _:
            return weights @ moved


@pytest.mark.parametrize("strategy", STRATEGIES[:4], ids=repr)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_averaging_stays_in_the_precision_of_the_replicas(strategy: Strategy[Any], dtype: type[np.floating]) -> None:
    links = topology.ring(4)
    x = chance(1).standard_normal((4, 3)).astype(dtype)
    swarm, state = Swarm(strategy, links, x, chance()), strategy.start(x)
    for round in range(2):
        swarm.round(round, x)
        state, _ = strategy.mix(strategy.local(state, x, round), Exchange(round, links.weights(0), chance()))
        assert swarm.params().dtype == strategy.params(state).dtype == dtype
        np.testing.assert_allclose(strategy.params(state), swarm.params(), atol=0.02)


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("strategy", STRATEGIES[:4], ids=repr)
def test_a_round_of_averaging_is_what_the_docstring_says(strategy: Strategy[Any], columns: int) -> None:
    links = topology.star(6)
    x, delta = chance(1).standard_normal((6, columns)), chance(2).standard_normal((6, columns))
    swarm = Swarm(strategy, links, x, chance())
    state = strategy.start(x)
    expected = x
    for round in range(3):
        swarm.round(round, delta)
        state, nbytes = strategy.mix(strategy.local(state, delta, round), Exchange(round, links.weights(0), chance()))
        expected = neighbors_average(strategy, links.weights(0).toarray(), expected, delta)
        np.testing.assert_allclose(swarm.params(), expected, atol=1e-14)
        np.testing.assert_allclose(strategy.params(state), expected, atol=1e-14)
        assert nbytes == 10 * 8 * columns
    assert swarm.nbytes == 3 * nbytes


def test_what_clipping_leaves_is_as_long_as_the_radius_and_equal_replicas_stay() -> None:
    links = topology.path(2)
    far = np.array([[0.0, 0.0], [300.0, 400.0]])
    state, _ = ClippedGossip(5.0).mix(ClippedGossip(5.0).start(far), Exchange(0, links.weights(0), chance()))
    np.testing.assert_allclose(state.x, [[1.5, 2.0], [298.5, 398.0]])
    state, _ = ClippedGossip(5.0).mix(
        ClippedGossip(5.0).start(np.ones((2, 2))), Exchange(0, links.weights(0), chance())
    )
    np.testing.assert_array_equal(state.x, np.ones((2, 2)))


# ---- bad examples ----------------------------------------------------------------------------------------------


def test_bad_examples_do_what_their_docstrings_say() -> None:
    links = topology.complete(4)
    weights = links.weights(0).toarray()
    x, delta = chance(1).standard_normal((4, 6)), chance(2).standard_normal((4, 6))
    moved = x + delta
    pulled = moved.copy()
    for i in range(4):
        for j in range(4):  # in the order of the senders' numbers
            if i != j:
                pulled[i] += 0.3 * (moved[j] - pulled[i])
    largest = np.where(np.abs(moved) >= np.sort(np.abs(moved), axis=1)[:, [-2]], moved, 0.0)
    all_deltas = np.array([x[i] + 0.5 * delta.sum(axis=0) for i in range(4)])
    for strategy, expected, nbytes in (
        (OneWayPull(0.3), pulled, 48),
        (PubSubAveraging(0.3), pulled, 48),
        (PlainPushSum(), weights @ moved, 48 + 8),
        (CompressedReplicas(TopK(0.3)), moved + weights @ largest - largest, 2 * (8 + 2)),
        (DeltaBroadcast(0.5), all_deltas, 48),
    ):
        swarm = Swarm(strategy, links, x, chance())
        swarm.round(0, delta)
        state, sent = strategy.mix(strategy.local(strategy.start(x), delta, 0), Exchange(0, links.weights(0), chance()))
        np.testing.assert_allclose(swarm.params(), expected, atol=1e-14)
        np.testing.assert_allclose(strategy.params(state), expected, atol=1e-14)
        assert sent == swarm.nbytes == 12 * nbytes
        assert strategy.is_bad_example
    assert not DPsgd().is_bad_example
    assert (OneWayPull().amount, PubSubAveraging().amount, DeltaBroadcast().scale) == (0.5, 0.5, 1.0)


def test_shares_that_are_lost_are_lost_and_those_that_are_late_are_not() -> None:
    strategy, links = PlainPushSum(), topology.directed_ring(4)
    x = np.arange(8.0).reshape(4, 2)
    exchange = Exchange(5, links.weights(0), chance())
    lag = np.array([0, -1, 2, 1])
    state, _ = strategy.mix(strategy.start(x), exchange.delayed(lag))
    gone = 0.5 * x[exchange.senders[1]]
    mass, weight = strategy.mass(state)
    np.testing.assert_allclose(mass, x.sum(axis=0) - gone)
    assert weight == 4 - 0.5
    for round, late in ((6, 1), (7, 0)):
        state, _ = strategy.mix(state, replace(exchange, round=round))
        assert len(state.coming) == late
        np.testing.assert_allclose(strategy.mass(state)[0], mass)
        assert strategy.mass(state)[1] == pytest.approx(weight)
    np.testing.assert_allclose(state.x.sum(axis=0), mass)
    unlike = simulate(topology.random_senders(6, 2, weights="push"), strategy, rounds=100)
    assert unlike.records[-1].distance < 1e-20
    assert unlike.records[-1].bias < 1e-12


def test_running_sums_are_long_whatever_the_replicas_were() -> None:
    for strategy in (PushSum(), PlainPushSum()):
        assert strategy.params(strategy.start(np.ones(2, np.float32))).dtype == np.float64


# ---- outer steps -----------------------------------------------------------------------------------------------


def test_diloco_takes_nesterovs_step_along_the_mean_of_those_it_heard() -> None:
    strategy = DiLoCo(rate=0.5, momentum=0.8)
    chosen = chance(3)
    x = np.tile(chosen.standard_normal(3), (4, 1))
    swarm, state = Swarm(strategy, topology.complete(4), x, chance()), strategy.start(x)
    anchor, velocity = x[0], np.zeros(3)
    for round in range(5):
        delta = chosen.standard_normal((4, 3))
        swarm.round(round, delta)
        exchange = Exchange(round, topology.complete(4).weights(0), chance())
        state, _ = strategy.mix(strategy.local(state, delta, round), exchange)
        velocity = 0.8 * velocity + delta.mean(axis=0)
        anchor = anchor + 0.5 * (delta.mean(axis=0) + 0.8 * velocity)
        np.testing.assert_allclose(swarm.params(), np.tile(anchor, (4, 1)), atol=1e-13)
        np.testing.assert_allclose(state.x, np.tile(anchor, (4, 1)), atol=1e-13)


def test_a_codec_makes_the_packets_of_diloco_smaller_and_keeps_what_it_leaves_out() -> None:
    strategy, links = Compressed(TopK(0.25), DiLoCo(rate=1.0, momentum=0.0)), topology.complete(3)
    x, delta = np.zeros((3, 8)), np.tile(np.arange(1.0, 9.0), (3, 1))
    swarm = Swarm(strategy, links, x, chance())
    swarm.round(0, delta)
    np.testing.assert_array_equal(swarm.params(), np.where(delta >= 7.0, delta, 0.0))
    assert swarm.nbytes < 6 * 8 * 8 / 2
    for round in range(1, 4):
        swarm.round(round)
    np.testing.assert_array_equal(swarm.params(), delta)


def test_diloco_levels_anchors_and_momenta_after_somebody_came_and_not_before() -> None:
    strategy, links, x = DiLoCo(rate=1.0, momentum=0.5), topology.complete(3), np.zeros((3, 2))
    swarm = Swarm(strategy, links, x, chance())
    swarm.round(0, np.ones((3, 2)))
    plain = swarm.nbytes
    apart = {0: (0.0, 0.0), 1: (3.0, 6.0), 2: (6.0, 0.0)}
    for peer, (anchor, momentum) in apart.items():
        held = np.full(2, anchor)
        swarm.states[peer] = replace(swarm.states[peer], x=held, anchor=held, momentum=np.full(2, momentum))
    swarm.states[1] = strategy.regroup(swarm.states[1])
    sizes = []
    for round in (1, 2, 3, 4):
        if round == 3:  # one knew of it, then all, and now all send all they have
            anchor, momentum = (
                np.mean([getattr(state, name) for state in swarm.states.values()], axis=0)
                for name in ("anchor", "momentum")
            )
        before = swarm.nbytes
        swarm.round(round)
        sizes.append(swarm.nbytes - before)
        assert (len({*swarm.params()[:, 0].tolist()}) == 1) == (round >= 3)
        if round == 3:
            for state in swarm.states.values():
                np.testing.assert_allclose(state.momentum, 0.5 * momentum)
                np.testing.assert_allclose(state.x, anchor + 0.5 * 0.5 * momentum)
    # Two arrays more from the one, then from all; and short again.
    assert sizes == [plain, plain + 2 * 2 * 16, plain + 6 * 2 * 16, plain]
    assert {state.generation for state in swarm.states.values()} == {1}


def test_noloco_pulls_the_anchors_of_a_pair_together() -> None:
    strategy = NoLoCo(alpha=0.3, beta=0.6, gamma=0.9)
    chosen, links = chance(4), topology.random_matching(5, seed=2)
    x = chosen.standard_normal((5, 3))
    swarm, state = Swarm(strategy, links, x, chance()), strategy.start(x)
    anchor, velocity = x.copy(), np.zeros((5, 3))
    for round in range(6):
        delta = chosen.standard_normal((5, 3))
        swarm.round(round, delta)
        state, _ = strategy.mix(strategy.local(state, delta, round), Exchange(round, links.weights(round), chance()))
        pairs = links.weights(round).toarray()
        velocity = 0.3 * velocity + 0.6 * pairs @ delta - 0.9 * (anchor - pairs @ anchor)
        anchor = anchor + velocity
        np.testing.assert_allclose(swarm.params(), anchor, atol=1e-13)
        np.testing.assert_allclose(state.x, anchor, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DiLoCo(rate=0.0), "rate 0.0, momentum 0.9: expected rate > 0"),
        (lambda: DiLoCo(momentum=1.0), "momentum 1.0: expected"),
        (lambda: DiLoCo(momentum=-0.1), "momentum -0.1: expected"),
        (lambda: NoLoCo(alpha=1.0, gamma=1.2), "alpha 1.0, beta 0.7: expected 0 <= alpha < 1"),
        (lambda: NoLoCo(alpha=-0.1), "alpha -0.1"),
        (lambda: NoLoCo(beta=0.0), "beta 0.0"),
        (lambda: NoLoCo(alpha=0.5, gamma=0.5), "gamma 0.5 with alpha 0.5, expected more than alpha and less than 1.5"),
        (lambda: NoLoCo(alpha=0.5, gamma=1.5), "gamma 1.5 with alpha 0.5"),
        (lambda: DiLoCo(codec="TopK"), "codec is a str, expected a Codec"),  # type: ignore[arg-type]
        (lambda: Compressed("TopK", Choco()), "codec is a str, expected a Codec"),  # type: ignore[arg-type]
        (lambda: Compressed(TopK(0.5), "Choco"), "strategy is a str, expected a Strategy"),  # type: ignore[arg-type]
        (lambda: Every(2, "Choco"), "strategy is a str, expected a Strategy"),  # type: ignore[arg-type]
        (lambda: PairwiseExchange(0.0), "share 0.0, expected more than 0"),
        (lambda: PushSum(grid=-0.5), "grid -0.5, expected a power of two"),
        (lambda: PushSum(grid=0.0), "grid 0.0, expected a power of two"),
    ],
)
def test_numbers_outside_their_range_are_refused(make: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_numbers_at_the_edge_of_their_range_are_taken() -> None:
    assert NoLoCo(alpha=0.5, gamma=1.49).gamma == 1.49
    assert DiLoCo(momentum=0.0).momentum == NoLoCo(alpha=0.0).alpha == 0.0
    assert [PushSum(grid=grid).grid for grid in (4.0, 1.0, 2.0**-40)] == [4.0, 1.0, 2.0**-40]
    assert PairwiseExchange(0.5).share == 0.5
    assert Every(1, DPsgd()).rounds == 1
    assert (DiLoCo().rate, DiLoCo().momentum) == (0.7, 0.9)


def test_tracked_steps_have_the_mean_of_the_last_ones() -> None:
    strategy, links, chosen = GradientTracking(), topology.exponential(5), chance(5)
    weights, x = links.weights(0).toarray(), chance(1).standard_normal((5, 3))
    swarm, state = Swarm(strategy, links, x, chance()), strategy.start(x)
    y, last = np.zeros((5, 3)), np.zeros((5, 3))
    for round in range(5):
        delta = chosen.standard_normal((5, 3))
        swarm.round(round, delta)
        state, _ = strategy.mix(strategy.local(state, delta, round), Exchange(round, links.weights(0), chance()))
        y, last = y + delta - last, delta
        x, y = weights @ (x + y), weights @ y
        np.testing.assert_allclose(swarm.params(), x, atol=1e-13)
        np.testing.assert_allclose(state.x, x, atol=1e-13)
        np.testing.assert_allclose(state.y.mean(axis=0), delta.mean(axis=0), atol=1e-14)


# ---- one peer asks another -------------------------------------------------------------------------------------


def asking(strategy: PairwiseExchange, me: int, other: int, x: float) -> tuple[Any, Packet]:
    """A peer of three with its offer to `other`, which is drawn."""
    neighbors = [peer for peer in range(3) if peer != me]
    for seed in range(100):
        state, outbox = strategy.send(strategy.start(np.array([x])), 0, links_of(me, *neighbors), chance(seed))
        if other in outbox:
            return state, outbox[other]
    raise AssertionError("never drawn")


def test_a_pair_moves_by_its_share_once_however_often_the_offer_and_the_answer_come() -> None:
    strategy = PairwiseExchange(0.25)
    a, offer = asking(strategy, 0, 1, 8.0)
    b = strategy.send(strategy.start(np.array([0.0])), 0, links_of(1, 0), chance())[0]
    b, answer = strategy.receive(b, 0, offer)
    assert b.x.tolist() == [2.0]
    again, same = strategy.receive(b, 0, offer)
    assert again.x.tolist() == [2.0]
    assert same[0].arrays["d"].tolist() == answer[0].arrays["d"].tolist() == [2.0]
    a = strategy.local(a, np.array([1.0]), 0)
    resent = strategy.send(a, 1, links_of(0, 2), chance())[1]  # to whom it asked, with what it offered
    assert list(resent) == [1]
    assert resent[1].arrays["x"].tolist() == [8.0]
    a, nothing = strategy.receive(a, 1, answer[0])
    assert (a.x.tolist(), nothing) == ([7.0], {})
    assert strategy.receive(a, 1, answer[0])[0].x.tolist() == [7.0]
    newer, outbox = strategy.send(a, 2, links_of(0, 1), chance())  # an old answer is not for this offer
    assert list(outbox) == [1]
    assert strategy.receive(newer, 1, answer[0])[0] is newer
    assert strategy.receive(newer, 2, strategy.receive(b, 0, outbox[1])[1][0])[0] is newer
    late, none = strategy.receive(strategy.receive(b, 0, outbox[1])[0], 0, offer)  # an offer that was overtaken
    assert none == {}
    assert late.x.tolist() == [2.0 + 0.25 * (7.0 - 2.0)]


def test_who_has_asked_is_busy_for_a_third_and_the_refused_is_free_again() -> None:
    strategy = PairwiseExchange()
    a, _ = asking(strategy, 0, 1, 8.0)
    c, offer = asking(strategy, 2, 0, 4.0)
    a, busy = strategy.receive(a, 2, offer)
    assert a.x.tolist() == [8.0]
    assert list(busy) == [2]
    assert busy[2].arrays == {}
    assert strategy.receive(a, 2, offer)[1][2].arrays == {}, "also when it comes again"
    c, nothing = strategy.receive(c, 0, busy[2])
    assert (c.x.tolist(), nothing) == ([4.0], {})
    assert strategy.send(c, 1, links_of(2, 0, 1), chance())[0].n == 2


def test_two_who_ask_each_other_meet_once_and_the_smaller_number_is_served() -> None:
    strategy = PairwiseExchange()
    (a, to_b), (b, to_a) = asking(strategy, 0, 1, 8.0), asking(strategy, 1, 0, 4.0)
    b, waits = strategy.receive(b, 0, to_b)
    assert (waits, b.x.tolist()) == ({}, [4.0])
    a, busy = strategy.receive(a, 1, to_a)
    assert a.x.tolist() == [8.0]
    b, answer = strategy.receive(b, 0, busy[1])
    a, _ = strategy.receive(a, 1, answer[0])
    assert (a.x.tolist(), b.x.tolist()) == ([6.0], [6.0])
    for each in (a, b):
        assert (each.asked, each.offered, each.held) == (None, None, None), "nothing is kept of what is over"


def test_who_gives_up_is_free_for_the_offer_that_waited_but_not_for_that_of_the_dead() -> None:
    strategy = PairwiseExchange()
    _, to_b = asking(strategy, 0, 1, 8.0)
    b, _ = asking(strategy, 1, 0, 4.0)
    held, _ = strategy.receive(b, 0, to_b)
    assert strategy.give_up(held, 2)[0].asked == 0, "of somebody else"
    freed, outbox = strategy.give_up(held, 0)
    assert (freed.asked, freed.offered, freed.held) == (None, None, None)
    assert (outbox, freed.x.tolist()) == ({}, [4.0])
    other, _ = asking(strategy, 2, 1, 1.0)
    assert strategy.give_up(other, 1)[0].asked is None
    with_two, none = strategy.give_up(replace(held, asked=2), 2)  # it waited for 2, and 0 for it
    assert list(none) == [0]
    assert with_two.x.tolist() == [6.0]


def test_a_matching_meets_in_one_step_and_others_by_offers_and_answers() -> None:
    strategy, x = PairwiseExchange(0.25), chance(1).standard_normal((6, 3))
    pairs = Exchange(0, topology.one_peer_hypercube(2).weights(0), chance())
    state, nbytes = strategy.mix(strategy.start(x[:2]), pairs)
    np.testing.assert_allclose(state.x, [0.75 * x[0] + 0.25 * x[1], 0.25 * x[0] + 0.75 * x[1]])
    assert state.meeting is None
    assert (nbytes, dict(strategy.ages(state, pairs))) == (2 * (24 + 16), {0: 2})
    ring = Exchange(0, topology.ring(6).weights(0), chance())
    state, nbytes = strategy.mix(strategy.start(x), ring)
    assert dict(strategy.ages(state, ring)) == {0: 12}, "six offers, each with its answer"
    busy = (12 * (24 + 16) - nbytes) // 24
    assert 0 < busy < 6
    np.testing.assert_allclose(state.x.sum(axis=0), x.sum(axis=0), atol=1e-14)
    late = ring.delayed(np.full(12, 1))
    state, _ = strategy.mix(strategy.start(x), late)
    np.testing.assert_array_equal(state.x, x)
    assert dict(strategy.ages(state, late)) == {1: 6}
    state, _ = strategy.mix(state, replace(ring, round=1))
    assert not np.array_equal(state.x, x)


def test_of_a_pair_the_smaller_number_asks_and_nobody_asks_nobody() -> None:
    strategy = PairwiseExchange()
    for links, asks in ((links_of(1, 0), False), (links_of(0, 1), True), (links_of(0), False)):
        state, outbox = strategy.send(strategy.start(np.zeros(1)), 0, links, chance())
        assert (outbox != {}) == asks == (state.asked is not None)
    asked = Counter(
        next(iter(strategy.send(strategy.start(np.zeros(1)), 0, links_of(2, 0, 1, 3), chance(seed))[1]))
        for seed in range(300)
    )
    assert set(asked) == {0, 1, 3}
    assert min(asked.values()) > 60


# ---- running sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_push_sum_keeps_its_mass_through_losses_and_neighbors_given_up(seed: int) -> None:
    strategy, draws, links = PushSum(grid=2.0**-20), chance(seed), topology.complete(3, weights="push").all_links(0)
    x = draws.integers(-64, 64, (3, 2)).astype(float)
    states: dict[int, Pushed] = {peer: strategy.start(row) for peer, row in enumerate(x)}
    flying: list[tuple[int, int, Packet]] = []
    taken: dict[tuple[int, int], Packet] = {}
    learned = np.zeros(2)

    def step(is_calm: bool) -> None:
        nonlocal learned
        what, me = draws.random(), int(draws.integers(3))
        if what < 0.4:
            states[me], outbox = strategy.send(states[me], 0, links[me], draws)
            flying.extend((me, to, packet) for to, packet in outbox.items() if is_calm or draws.random() < 0.7)
        elif what < 0.9 and flying:
            sender, to, packet = flying[int(draws.integers(len(flying)))]  # any order, any number of times
            states[to], replies = strategy.receive(states[to], sender, packet)
            assert replies == {}
            if packet.scalars["n"] >= taken.get((sender, to), packet).scalars["n"]:
                taken[sender, to] = packet
        elif what < 0.95 and not is_calm:
            other = (me + 1) % 3
            known = taken.get((me, other)) if draws.random() < 0.5 else None  # it may have taken more than is known
            states[me], outbox = strategy.give_up(states[me], other, known)
            assert outbox == {}
        elif not is_calm:
            delta = draws.integers(-8, 8, 2) / 2.0**21  # half of them are between two places of the grid
            states[me] = strategy.local(states[me], delta, 0)
            learned = learned + np.floor(delta * 2.0**20) / 2.0**20

    for _ in range(300):
        step(is_calm=False)
        sums, weight = ledger(states)
        assert weight == 3.0
        assert np.array_equal(sums, x.sum(axis=0) + learned)
    for _ in range(1_500):
        step(is_calm=True)
        if len(flying) > 20:
            flying.pop(0)
    for state in states.values():
        np.testing.assert_allclose(strategy.params(state), (x.sum(axis=0) + learned) / 3, atol=0.1)
        assert strategy.weight(state) == state.w[0] != 1.0


@pytest.mark.parametrize("grid", [2.0**-30, None])
@pytest.mark.parametrize("options", [{"loss": 0.3}, {"delay": 3}, {"loss": 0.2, "delay": 2, "churn": 0.2}], ids=str)
def test_the_mass_of_all_at_once_is_what_they_started_with(grid: float | None, options: dict[str, Any]) -> None:
    x = chance(2).integers(-64, 64, (9, 3)).astype(float)
    links = topology.random_senders(9, 2, weights="push")
    result = simulate(links, PushSum(grid=grid), start=x, rounds=60, **options)
    for record in result.records:
        np.testing.assert_allclose(record.mass, x.sum(axis=0), rtol=0, atol=0.0 if grid else 1e-11)
        assert record.weight == pytest.approx(9.0, abs=0.0 if grid else 1e-12)
    assert result.records[-1].distance < 0.5 * result.start.distance


@pytest.mark.parametrize("grid", [2.0**-30, None])
def test_many_parameters_go_the_way_of_few(grid: float | None) -> None:
    x = chance(2).standard_normal((9, 2_000))
    links = topology.random_senders(9, 2, weights="push")
    many, few = (
        simulate(links, PushSum(grid=grid), start=start, rounds=40, loss=0.3, delay=2).params for start in (x, x[:, :2])
    )
    np.testing.assert_allclose(many[:, :2], few, atol=1e-12)


def test_a_packet_of_push_sum_holds_the_total_and_nothing_is_sent_twice() -> None:
    strategy = PushSum()
    state, first = strategy.send(strategy.start(np.array([8.0])), 0, links_of(0, 1), chance())
    assert (first[1].arrays["x"].tolist(), dict(first[1].scalars)) == ([4.0], {"w": 0.5, "n": 1})
    state, second = strategy.send(state, 1, links_of(0, 1), chance())
    assert (second[1].arrays["x"].tolist(), dict(second[1].scalars)) == ([6.0], {"w": 0.75, "n": 2})
    assert (state.x.tolist(), state.w.tolist()) == ([2.0], [0.25])
    assert strategy.receive(strategy.start(np.array([0.0])), 0, first[1])[0].x.tolist() == [4.0]
    other, _ = strategy.receive(strategy.start(np.array([0.0])), 0, second[1])
    assert (other.x.tolist(), other.w.tolist()) == ([6.0], [1.75])
    assert strategy.receive(other, 0, first[1])[0] is other
    back, _ = strategy.give_up(state, 1, first[1])  # takes back what it put there since
    assert (back.x.tolist(), back.w.tolist()) == ([4.0], [0.5])
    all_back, _ = strategy.give_up(state, 1)
    assert (all_back.x.tolist(), all_back.w.tolist()) == ([8.0], [1.0])
    assert strategy.give_up(state, 7) == (state, {})


# ---- composition -----------------------------------------------------------------------------------------------


def _spied(name: str) -> Any:
    return lambda self, *args, **options: (name, args, options)


ASKED: dict[str, tuple[Any, ...]] = {
    "start": ("x",),
    "params": ("state",),
    "local": ("state", "delta", 3),
    "send": ("state", 3, "links", "chance"),
    "receive": ("state", 1, "packet"),
    "finish": ("state", 3, "links"),
    "mixing_round": (3,),
    "rest": ("state",),
    "consensus": ("state",),
    "mix": ("state", "exchange"),
    "says_nothing": (True,),
    "ages": ("state", "exchange"),
    "weight": ("state",),
    "give_up": ("state", 1, "packet"),
    "mass": ("state",),
}
FLAGS = [name for name, value in vars(Strategy).items() if isinstance(value, bool)]
Spy = dataclass(frozen=True, repr=False)(
    type(
        "Spy",
        (Strategy,),
        {
            **{name: _spied(name) for name in ASKED},
            "check_network": lambda self, **options: (_ for _ in ()).throw(UsageError(str(options))),
            "compressed": lambda self, codec: self,
            "by_step": property(lambda self: "by step"),
            "interval": property(lambda self: "interval"),
            "needs": Needs.EXACT,
            "synchronous": "synchronous",
            **dict.fromkeys(FLAGS, "flag"),
        },
    )
)


def test_a_strategy_in_another_is_asked_everything_and_its_answers_are_given() -> None:
    spy = Spy()
    wrapped = Compressed(TopK(0.5), spy)
    for name, arguments in ASKED.items():
        assert getattr(wrapped, name)(*arguments) == (name, arguments, {})
    assert wrapped.give_up("state", 1) == ("give_up", ("state", 1, None), {})  # type: ignore[comparison-overlap]
    network = {"loss": 0.1, "delay": 2, "churn": 0.3, "crash": 0.4}
    with pytest.raises(UsageError) as raised:
        wrapped.check_network(**network)  # type: ignore[arg-type]
    assert str(raised.value) == str(network)
    with pytest.raises(UsageError, match=r"'loss': 0\.0, 'delay': 0, 'churn': 0\.0, 'crash': 0\.0"):
        wrapped.check_network()
    assert (wrapped.by_step, wrapped.interval, wrapped.needs) == ("by step", "interval", Needs.EXACT)
    assert wrapped.synchronous == "synchronous"  # type: ignore[comparison-overlap]
    assert [getattr(wrapped, name) for name in FLAGS] == ["flag"] * len(FLAGS)


def test_every_third_round_mixes_and_counts_by_itself() -> None:
    strategy = Every(3, CombineThenAdapt())
    assert [strategy.mixing_round(round) for round in range(9)] == [None, None, 0, None, None, 1, None, None, 2]
    assert (strategy.interval, strategy.by_step, CombineThenAdapt().interval) == (3, True, 1)
    assert Every(2, PushSum()).by_step
    assert not PushSum().by_step
    with pytest.raises(UsageError, match=r"Every\(0, \.\.\.\), expected a number of rounds from 1"):
        Every(0, DPsgd())


# ---- rounds of messages ----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Diary(Strategy[tuple[Any, ...]]):
    """Writes down what it is asked. Mixes in odd rounds; answers once."""

    needs = Needs.ROWS
    synchronous = False

    def start(self, x: Array) -> tuple[Any, ...]:
        return (x.tolist(),)

    def params(self, state: tuple[Any, ...]) -> Array:
        return np.array(state[0])

    def local(self, state: tuple[Any, ...], delta: Array, round: int) -> tuple[Any, ...]:
        return (*state, ("local", float(delta[0]), round))

    def rest(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*state, "rest")

    def mixing_round(self, round: int) -> int | None:
        return round // 2 if round % 2 else None

    def send(
        self, state: tuple[Any, ...], round: int, links: Links, chance: np.random.Generator
    ) -> tuple[tuple[Any, ...], Outbox]:
        packet = Packet({}, {"round": round})
        return (*state, ("send", round, links.me)), dict.fromkeys(links.heard_by, packet)

    def receive(
        self, state: tuple[Any, ...], sender: int, packet: Packet
    ) -> tuple[tuple[Any, ...], Mapping[int, Packet]]:
        is_answer = "answers" in packet.scalars
        state = (*state, ("answer" if is_answer else "packet", sender, packet.scalars["round"]))
        return state, {} if is_answer else {sender: Packet({}, {**packet.scalars, "answers": 1})}

    def finish(self, state: tuple[Any, ...], round: int, links: Links) -> tuple[Any, ...]:
        return (*state, ("finish", round, links.me))

    def mix(self, state: tuple[Any, ...], exchange: Exchange) -> tuple[tuple[Any, ...], int]:
        raise NotImplementedError


def test_a_round_asks_each_peer_in_turn_and_carries_packets_and_answers() -> None:
    swarm = Swarm(Diary(), topology.directed_ring(3), np.array([[5.0], [6.0], [7.0]]), chance())
    np.testing.assert_array_equal(swarm.params(), [[5.0], [6.0], [7.0]])
    swarm.round(0, np.array([[1.0], [2.0], [3.0]]))
    swarm.round(1)
    swarm.round(3, np.array([[4.0], [5.0], [6.0]]))
    first = [("local", 2.0, 0), "rest"]
    second = [("send", 0, 1), ("packet", 0, 0), ("answer", 2, 0), ("finish", 0, 1)]
    third = [("local", 5.0, 3), ("send", 1, 1), ("packet", 0, 1), ("answer", 2, 1), ("finish", 1, 1)]
    assert list(swarm.states[1]) == [[6.0], *first, *second, *third]
    assert swarm.nbytes == 2 * 3 * (8 + 16)
    assert swarm.flying == []


def weathered(weather: Weather, rounds: int = 400) -> tuple[Counter[str], list[int], Swarm]:
    """(what came how often, after how many rounds) of 3 packets and their answers in each round."""
    swarm = Swarm(Diary(), topology.directed_ring(3), np.zeros((3, 1)), chance(6), weather)
    came, ages = Counter[str](), []
    for number in range(rounds):
        before = {peer: len(state) for peer, state in swarm.states.items()}
        swarm.round(2 * number + 1)
        for peer, state in swarm.states.items():
            for each in state[before[peer] :]:
                came[each[0]] += 1
                if each[0] == "packet":
                    ages.append(number - each[2])
    return came, ages, swarm


def close(count: int, of: int, share: float) -> bool:
    return abs(count - of * share) < 4 * (of * share * (1 - share)) ** 0.5


def test_the_weather_loses_repeats_and_holds_back_as_often_as_it_says() -> None:
    calm, ages, swarm = weathered(Weather())
    assert (calm["packet"], calm["answer"], set(ages), swarm.nbytes) == (1_200, 1_200, {0}, 1_200 * 24)
    lossy, ages, swarm = weathered(Weather(loss=0.3))
    assert close(lossy["packet"], 1_200, 0.7)
    assert close(lossy["answer"], lossy["packet"], 0.7)
    assert set(ages) == {0}
    assert swarm.nbytes == 1_200 * 8 + lossy["packet"] * 16, "what is lost was sent"
    again, ages, _ = weathered(Weather(repeat=0.3))
    assert close(again["packet"] - 1_200, 1_200, 0.3)
    assert close(again["answer"] - again["packet"], again["packet"], 0.3), "each copy is answered"
    _, ages, swarm = weathered(Weather(late=0.3))
    assert close(sum(age > 0 for age in ages), len(ages), 0.3)
    assert close(sum(age > 1 for age in ages), len(ages), 0.09), "again and again"
    assert len(ages) > 1_190
