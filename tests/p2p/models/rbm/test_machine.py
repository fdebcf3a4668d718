"""The machine says what a sum over all states says, and refuses what it cannot take."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.models.rbm import RBM, exact_log_z


def machine(n_visible: int = 5, n_hidden: int = 4, visible: str = "bernoulli", dtype: str = "float64") -> RBM:
    rbm = RBM(n_visible, n_hidden, visible, seed=1, dtype=dtype)
    random = np.random.default_rng(2)
    for array in (rbm.W, rbm.b, rbm.c):
        array[...] = random.normal(0, 0.8, array.shape)
    return rbm


def states(units: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


def energy(rbm: RBM, v: np.ndarray, h: np.ndarray) -> float:
    own = 0.5 * float((v - rbm.b) @ (v - rbm.b)) if rbm.units.name == "gaussian" else -float(v @ rbm.b)
    return own - float(h @ rbm.c) - float(v @ rbm.W @ h)


def rows(rbm: RBM, count: int = 6) -> np.ndarray:
    random = np.random.default_rng(3)
    if rbm.units.name == "gaussian":
        return random.normal(size=(count, rbm.n_visible))
    return (random.random((count, rbm.n_visible)) < 0.5).astype(float)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_free_energy_and_hidden_means_are_sums_over_all_hidden_states(visible: str) -> None:
    rbm = machine(visible=visible)
    given = rows(rbm)
    for v, free, means in zip(given, rbm.free_energy(given), rbm.transform(given), strict=True):
        weights = np.exp([-energy(rbm, v, h) for h in states(4)])
        assert free == pytest.approx(-np.log(weights.sum()), abs=1e-10)
        np.testing.assert_allclose(means, weights @ states(4) / weights.sum(), atol=1e-10)


def test_visible_means_are_sums_over_all_visible_states() -> None:
    rbm = machine()
    for h in states(4):
        weights = np.exp([-energy(rbm, v, h) for v in states(5)])
        drawn = rbm.sample_visible(np.tile(h, (40000, 1)), 5)
        np.testing.assert_allclose(drawn.mean(axis=0), weights @ states(5) / weights.sum(), atol=0.015)
        assert set(np.unique(drawn)) <= {0.0, 1.0}


def test_gaussian_units_are_normal_around_their_input() -> None:
    rbm = machine(visible="gaussian")
    h = np.array([1.0, 0.0, 1.0, 1.0])
    drawn = rbm.sample_visible(np.tile(h, (40000, 1)), 5)
    np.testing.assert_allclose(drawn.mean(axis=0), rbm.b + rbm.W @ h, atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(5), atol=0.03)


def test_hidden_units_are_drawn_by_their_means() -> None:
    rbm = machine()
    v = rows(rbm, 1)
    drawn = rbm.sample_hidden(np.tile(v, (40000, 1)), 5)
    np.testing.assert_allclose(drawn.mean(axis=0), rbm.transform(v)[0], atol=0.015)
    assert set(np.unique(drawn)) == {0.0, 1.0}


def test_reconstruction_is_of_the_hidden_means() -> None:
    rbm = machine()
    v = rows(rbm)
    np.testing.assert_allclose(rbm.reconstruct(v), 1 / (1 + np.exp(-(rbm.transform(v) @ rbm.W.T + rbm.b))), atol=1e-12)


@pytest.mark.parametrize("start", [False, True])
def test_long_chains_have_the_distribution_of_the_machine(start: bool) -> None:
    rbm = machine(3, 2)
    given = np.ones((20000, 3)) if start else None
    drawn = rbm.sample(20000, 30, 7, given)
    expected = np.exp(-rbm.free_energy(states(3)) - exact_log_z(rbm))
    found = np.array([(drawn == state).all(axis=1).mean() for state in states(3)])
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_pseudo_likelihood_is_in_the_mean_that_of_all_units() -> None:
    rbm = machine()
    v = rows(rbm, 1)
    log_p = []
    for unit in range(5):
        flipped = v.copy()
        flipped[0, unit] = 1 - v[0, unit]
        mine, other = np.exp(-rbm.free_energy(v)), np.exp(-rbm.free_energy(flipped))
        log_p.append(float(np.log(mine / (mine + other))[0]))
    found = rbm.pseudo_likelihood(np.tile(v, (1000, 1)), 11)
    assert set(np.round(found, 8)) == set(np.round(5 * np.array(log_p), 8))
    assert found.mean() == pytest.approx(sum(log_p), rel=0.05)
    assert np.array_equal(rbm.pseudo_likelihood(np.where(v == 1, 0.9, 0.2), 3), rbm.pseudo_likelihood(v, 3))


def test_large_numbers_overflow_nowhere() -> None:
    rbm = machine(dtype="float32")
    rbm.W *= 1000
    rbm.c *= 1000
    v = rows(rbm)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(rbm.free_energy(v)).all()
        assert np.isfinite(rbm.transform(v)).all()
        assert np.isfinite(rbm.pseudo_likelihood(v, 1)).all()


def test_shapes_and_dtypes() -> None:
    rbm = RBM(6, 3, seed=4)
    assert [(a.shape, a.dtype.name) for a in (rbm.W, rbm.b, rbm.c)] == [
        ((6, 3), "float32"),
        ((6,), "float32"),
        ((3,), "float32"),
    ]
    v = np.ones((2, 6), np.uint8)
    for found, width in (
        (rbm.transform(v), 3),
        (rbm.sample_hidden(v, 1), 3),
        (rbm.reconstruct(v), 6),
        (rbm.sample(2, 1, 1), 6),
        (rbm.sample_visible(np.ones((2, 3)), 1), 6),
    ):
        assert found.shape == (2, width)
        assert found.dtype == np.float32
    assert rbm.free_energy(v).shape == rbm.pseudo_likelihood(v, 1).shape == (2,)
    assert np.array_equal(v, np.ones((2, 6)))


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    assert np.array_equal(RBM(6, 3, seed=4).W, RBM(6, 3, seed=4).W)
    assert not np.array_equal(RBM(6, 3, seed=4).W, RBM(6, 3, seed=5).W)
    rbm = machine()
    assert np.array_equal(rbm.sample(4, 3, 1), rbm.sample(4, 3, np.random.Generator(np.random.SFC64(1))))


def test_chains_of_no_steps_are_a_copy_of_their_start() -> None:
    start = rows(machine())
    found = machine().sample(6, 0, 1, start)
    assert np.array_equal(found, start)
    assert not np.shares_memory(found, start)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rbm: rbm.transform(np.ones((2, 4))), r"v has shape \(2, 4\), expected \(rows, 5\)"),
        (lambda rbm: rbm.transform(np.ones(5)), r"v has shape \(5,\), expected \(rows, 5\)"),
        (lambda rbm: rbm.transform(np.ones((0, 5))), "at least one row"),
        (lambda rbm: rbm.transform([[1.0], [1.0, 2.0]]), "v is not an array, expected rows of 5 numbers"),
        (lambda rbm: rbm.transform([["a"] * 5]), "expected numbers"),
        (lambda rbm: rbm.transform(np.full((2, 5), 255)), "from 255 to 255, expected numbers from 0 to 1: scale"),
        (lambda rbm: rbm.transform(np.full((2, 5), np.nan)), "from nan to nan"),
        (lambda rbm: rbm.sample_visible(np.ones((2, 5)), 1), r"h has shape \(2, 5\), expected \(rows, 4\)"),
        (lambda rbm: rbm.sample(0, 1, 1), "n=0, expected at least 1"),
        (lambda rbm: rbm.sample(2, 1, 1, np.ones((3, 5))), "start has 3 rows, expected n=2"),
        (lambda rbm: rbm.sample_hidden(np.ones((2, 5)), None), "random=None, expected an integer, a numpy Generator"),
        (lambda rbm: RBM(0, 3), "n_visible=0, expected at least 1"),
        (lambda rbm: RBM(3, 2.0), r"n_hidden=2.0, expected an integer"),  # type: ignore[arg-type]
        (lambda rbm: RBM.of(rbm.W, rbm.c, rbm.b), "expected .n_visible, n_hidden., .n_visible,. and .n_hidden,."),
        (lambda rbm: RBM.of(rbm.W, rbm.b.astype(np.float32), rbm.c), "W, b and c are"),
        (lambda rbm: RBM(3, 2, "softmax"), "visible='softmax', expected 'bernoulli' or 'gaussian'"),
        (lambda rbm: RBM(3, 2, dtype="float16"), "dtype='float16', expected 'float32' or 'float64'"),
        (lambda rbm: machine(visible="gaussian").pseudo_likelihood(np.ones((2, 5)), 1), "expected bernoulli"),
        (lambda rbm: machine(visible="gaussian").transform(np.full((2, 5), np.inf)), "expected finite numbers"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[RBM], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(machine())
