"""The rules against their formulas, written out for one row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gossip.arrays import Array
from gossip.errors import UsageError
from p2p.worker.combine import AGREEMENT_MAX, RULES, check_rule, combined, for_embeddings

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
    with pytest.raises(UsageError, match="combine='median', expected 'sum', 'mean', 'damp', 'adasum', or None"):
        check_rule("median")
