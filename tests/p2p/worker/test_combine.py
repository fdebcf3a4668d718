"""The rules against their formulas, written out for one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.descents import SGD, AdaGrad, Adam, Momentum, RMSProp
from p2p.sessions.training import Training
from p2p.worker.combine import AGREEMENT_MAX, MOMENTUM_MAX, RULES, OuterSteps, check_rule, combined, for_embeddings

PEERS = 4


def damp(d: Array, m: Array) -> Array:
    norm = float(np.linalg.norm(d))
    return d * norm / (norm + max(0.0, float(d @ m)) / norm)


def adasum(d: Array, m: Array) -> Array:
    if not m.any():
        return d
    dm = float(d @ m)
    return (1 - dm / (2 * float(d @ d))) * d - dm / (2 * float(m @ m)) * m


FORMULAS: dict[str, Callable[[Array, Array], Array]] = {
    "sum": lambda d, m: d,
    "mean": lambda d, m: d / PEERS,
    "damp": damp,
    "adasum": adasum,
}


def test_every_rule_has_a_formula() -> None:
    assert FORMULAS.keys() == RULES.keys()


@pytest.mark.parametrize("rule", FORMULAS)
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 2), (5,)])
def test_a_rule_is_its_formula_in_each_row(rule: str, shape: tuple[int, ...]) -> None:
    chance = np.random.default_rng(1)
    d, m = chance.standard_normal((2, *shape))
    if len(shape) > 1:
        m[2] = 0  # nobody else touched that row
        m[3] = d[3]
    got = combined(rule, d, m, PEERS)
    rows = len(d) if len(shape) > 1 else 1
    expected = [FORMULAS[rule](a, b) for a, b in zip(d.reshape(rows, -1), m.reshape(rows, -1), strict=True)]
    np.testing.assert_allclose(got.reshape(rows, -1), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", ["sum", "damp", "adasum"])
def test_a_row_that_nobody_else_touched_stays_as_it_is(rule: str) -> None:
    d = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    got = combined(rule, d, np.zeros_like(d), PEERS)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, d)


@pytest.mark.parametrize("rule", RULES)
def test_rows_without_a_change_give_none(rule: str) -> None:
    got = combined(rule, np.zeros((2, 3)), np.zeros((2, 3)), PEERS)
    np.testing.assert_array_equal(got, np.zeros((2, 3)))


def test_equal_updates_damp_to_a_harmonic_sum() -> None:
    d = np.array([[3.0, 4.0]])
    m = np.zeros_like(d)
    for n in range(1, 6):
        step = combined("damp", d, m, PEERS)
        np.testing.assert_allclose(step, d / (1 + (m @ d.T).item() / 25))
        m = m + step
        assert n == 1 or step[0, 0] < d[0, 0]


@pytest.mark.parametrize("peers", [4, 8, 16, 100])
def test_an_update_of_all_peers_counts_no_more_than_so_often_under_damp(peers: int) -> None:
    d = np.array([[3.0, 4.0]])
    recent = [d] * (peers - 1)
    for _ in range(5000):  # each publishes the same in turn, after the others did
        recent = [*recent[1:], combined("damp", d, sum(recent, np.zeros_like(d)), peers)]
    total = sum(step[0, 0] for step in recent) / 3.0
    assert total < AGREEMENT_MAX
    if peers > 8:
        assert total == pytest.approx(AGREEMENT_MAX * (peers - 1) / peers, rel=1e-6)


def test_adasum_is_the_mean_of_equals_and_the_sum_of_orthogonals() -> None:
    d, other = np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])
    np.testing.assert_allclose(d + combined("adasum", d, d, PEERS), d)
    np.testing.assert_allclose(other + combined("adasum", d, other, PEERS), [[2.0, 5.0]])


def test_embeddings_of_more_than_two_peers_are_damped() -> None:
    assert [for_embeddings(peers) for peers in (1, 2, 3, 16)] == ["sum", "sum", "damp", "damp"]


def test_an_unknown_rule_is_refused_by_name() -> None:
    check_rule(None)
    with pytest.raises(
        UsageError, match="combine='median', expected 'sum', 'mean', 'damp', 'adasum', 'outer', or None"
    ):
        check_rule("median")


# --------------------------------------------------------------------------------------------------------- outer steps


def test_outer_steps_of_all_peers_are_one_step_of_nesterov_on_their_mean() -> None:
    chance = np.random.default_rng(1)
    origins, velocity = [OuterSteps(PEERS) for _ in range(PEERS)], np.zeros(5)
    for _ in range(7):
        learned = chance.normal(1, 0.1, (PEERS, 5))
        velocity = (1 - 1 / PEERS) * velocity + learned.mean(axis=0)
        published = []
        for origin, d in zip(origins, learned.copy(), strict=True):
            delta = {"w": d}
            origin.take(delta, ())
            origin.counted()
            published.append(delta["w"])
        np.testing.assert_allclose(sum(published), learned.mean(axis=0) + (1 - 1 / PEERS) * velocity, rtol=1e-12)


def test_what_peers_agree_on_moves_the_model_as_far_as_one_peer_with_all_steps_would() -> None:
    origin, published = OuterSteps(PEERS), 0.0
    for number in range(200):
        delta = {"w": np.full(1, 1.0 if number < 10 else 0.0)}
        origin.take(delta, ())
        origin.counted()
        published += float(delta["w"][0])
    assert published == pytest.approx(10)


def test_an_update_that_does_not_count_leaves_no_momentum() -> None:
    origin, other = OuterSteps(PEERS), OuterSteps(PEERS)
    for update in (1.0, 5.0, 2.0):
        delta = {"w": np.full(3, update)}
        origin.take(delta, ())
        if update != 5.0:
            origin.counted()
            expected = {"w": np.full(3, update)}
            other.take(expected, ())
            other.counted()
            np.testing.assert_array_equal(delta["w"], expected["w"])
    origin.drop()
    delta = {"w": np.ones(3)}
    origin.take(delta, ())
    np.testing.assert_allclose(delta["w"], 1 / PEERS * (2 - 1 / PEERS))


def test_a_copy_begins_where_the_momentum_of_all_peers_leads_if_it_is_that_of_this_one() -> None:
    origin, arrays = OuterSteps(PEERS), {"w": np.full(2, 5.0, np.float32), "n": np.full(2, 3)}
    for step, moved in ((1.0, 1.0), (2.0, (1 - 1 / PEERS) * 1.0 + 2.0)):
        origin.take({"w": np.full(2, step, np.float32), "n": np.full(2, 3)}, ())
        seen = {name: array.copy() for name, array in arrays.items()}
        if step == 2.0:
            origin.look_ahead(seen)  # of the update before: this one is not published yet
            np.testing.assert_allclose(seen["w"], 5 + (1 - 1 / PEERS) * 1.0, rtol=1e-6)
        origin.counted()
        seen = {name: array.copy() for name, array in arrays.items()}
        origin.look_ahead(seen)
        np.testing.assert_allclose(seen["w"], 5 + (1 - 1 / PEERS) * moved, rtol=1e-6)
        np.testing.assert_array_equal(seen["n"], arrays["n"], strict=True)
    origin.drop()
    origin.look_ahead(arrays)
    np.testing.assert_array_equal(arrays["w"], np.full(2, 5.0, np.float32), strict=True)


def test_counters_and_integers_are_summed_and_one_peer_alone_takes_its_own_steps() -> None:
    delta = {"n": np.full(2, 3), "seen": np.full(2, 3.0), "w": np.full(2, 3.0)}
    OuterSteps(PEERS).take(delta, {"seen"})
    assert (delta["n"].tolist(), delta["seen"].tolist()) == ([3, 3], [3.0, 3.0])
    alone = OuterSteps(1)
    for _ in range(3):
        delta = {"w": np.full(2, 3.0, np.float32)}
        alone.take(delta, ())
        alone.counted()
        np.testing.assert_array_equal(delta["w"], np.full(2, 3.0, np.float32), strict=True)


def test_a_row_that_an_update_leaves_as_it_was_rests_and_keeps_its_momentum() -> None:
    """As if it had not been there meanwhile."""
    origin, alone = OuterSteps(PEERS), OuterSteps(PEERS)
    touched = [[True, True, False], [True, False, False], [False, True, False]]
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    for rows in touched:
        update = {"w": values * np.array(rows)[:, None]}
        origin.take(update, ())
        origin.counted()
        assert update["w"].any(axis=1).tolist() == rows
    for _ in range(2):
        row = {"w": values[1:2].copy()}
        alone.take(row, ())
        alone.counted()
    np.testing.assert_allclose(update["w"][1], row["w"][0])


def test_momentum_is_bounded_where_peers_are_many() -> None:
    assert [OuterSteps(peers).momentum_max for peers in (2, 4, 100)] == [0.5, 0.75, MOMENTUM_MAX]


def test_a_descent_says_how_its_steps_add_up_unless_the_call_does() -> None:
    def rule(**options: Any) -> str | None:
        return Training(data=[], gradient=lambda model, rows: None, progress=lambda done, of: None, **options).rule

    assert rule(descent=lambda model, update: None) is None
    assert rule(descent=SGD(0.1)) == "outer"
    assert rule(descent=Adam(0.1)) == rule(descent=Momentum(0.1)) == rule(descent=RMSProp(0.1)) == "mean"
    assert rule(descent=AdaGrad(0.1)) == "sum"
    assert rule(descent=SGD(0.1), combine="damp") == "damp"


def test_steps_of_sgd_by_many_peers_do_not_overshoot_where_whole_steps_would() -> None:
    """A parabola: at this rate one process is there in a step, and eight that add whole steps leave it for ever."""

    def gradient(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        list(rows)
        return {"w": model["w"] - 3.0}

    def end(combine: str | None) -> float:
        model = {"w": np.zeros(4)}
        with DeepDist(model, engine=SimulatedCluster(8, seed=1), progress=False) as dd:
            dd.train([range(20)] * 8, gradient, SGD(1.0), chunk_rows=1, combine=combine)
        return float(np.abs(model["w"] - 3.0).max())

    assert end("sum") > 1e6
    assert end(None) < 0.1


def test_outer_steps_in_the_middle_of_a_gradient_are_refused() -> None:
    refused = pytest.raises(UsageError, match="combine='outer' with exchange='continuous', expected exchange='chunk'")
    with DeepDist({"w": np.zeros(4)}, engine=SimulatedCluster(2), progress=False) as dd, refused:
        dd.train([[1]], lambda model, rows: None, combine="outer", exchange="continuous")


@pytest.mark.parametrize("rule", ["mean", "damp", "adasum", "outer"])
def test_integers_are_summed_whatever_the_rule(rule: str) -> None:
    def ones(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        return {"w": np.ones(3), "n": np.full(3, len(list(rows)))}

    model = {"w": np.zeros(3), "n": np.zeros(3, np.int64)}
    with DeepDist(model, engine=SimulatedCluster(3, seed=1), progress=False) as dd:
        dd.train([range(4)] * 3, ones, chunk_rows=1, combine=rule)
    assert model["n"].tolist() == [12, 12, 12]


@pytest.mark.parametrize("rule", ["damp", "adasum", "outer"])
def test_products_of_small_floats_do_not_overflow(rule: str) -> None:
    def large(model: dict[str, Any], rows: Iterator[int]) -> dict[str, Any]:
        return {"w": np.full(10_000, 5.0 * len(list(rows)), np.float16)}

    model = {"w": np.zeros(10_000, np.float16)}
    with DeepDist(model, engine=SimulatedCluster(2, seed=1), progress=False) as dd:
        dd.train([range(3)] * 2, large, chunk_rows=1, combine=rule)
    assert 15 <= model["w"].min() <= model["w"].max() <= 30
