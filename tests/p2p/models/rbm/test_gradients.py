"""Contrastive divergence, with every draw that it can make, is the expectation that the papers write down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.models.rbm import CD, PCD, RBM, Sparsity, Workspace, cd_gradient, new_chains, pcd_gradient
from p2p.models.rbm.gradients import moments


def machine(n_visible: int, n_hidden: int, dtype: str = "float64") -> RBM:
    rbm = RBM(n_visible, n_hidden, dtype=dtype)
    random = np.random.default_rng(2)
    for array in (rbm.W, rbm.b, rbm.c):
        array[...] = random.normal(0, 0.8, array.shape)
    return rbm


def states(units: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


class Scripted(np.random.Generator):
    """Draws units as it is told: 1 by a uniform number of 0, and 0 by one just below 1."""

    def __init__(self, units: Any) -> None:
        super().__init__(np.random.PCG64(0))
        self.units: Iterator[float] = iter(units)

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        out.ravel()[...] = [1 - 1e-7 if next(self.units) == 0 else 0.0 for _ in range(out.size)]
        return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def probability(means: np.ndarray, drawn: np.ndarray) -> float:
    return float(np.prod(np.where(drawn == 1, means, 1 - means)))


def plain_moments(rbm: RBM, v: np.ndarray) -> dict[str, np.ndarray]:
    h = sigmoid(v @ rbm.W + rbm.c)
    return {"W": np.outer(v, h), "b": v, "c": h}


def expected_cd(rbm: RBM, v: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """By the chain's transition matrix over all visible states."""
    all_h, all_v = states(rbm.n_hidden), states(rbm.n_visible)
    up = np.array([[probability(sigmoid(v @ rbm.W + rbm.c), h) for h in all_h] for v in all_v])
    down = np.array([[probability(sigmoid(rbm.W @ h + rbm.b), v) for v in all_v] for h in all_h])
    start = np.array([(each == v).all() for each in all_v], float)
    end = start @ np.linalg.matrix_power(up @ down, k)
    found = {name: -moment for name, moment in plain_moments(rbm, v).items()}
    for share, each in zip(end, all_v, strict=True):
        for name, moment in plain_moments(rbm, each).items():
            found[name] = found[name] + share * moment
    return found


@pytest.mark.parametrize("k", [1, 2])
def test_cd_is_in_expectation_what_enumeration_says(k: int) -> None:
    rbm, v = machine(3, 2), np.array([1.0, 0.0, 1.0])
    total = {"W": np.zeros((3, 2)), "b": np.zeros(3), "c": np.zeros(2)}
    for units in itertools.product([0.0, 1.0], repeat=5 * k):
        script, share, before = np.array(units), 1.0, v
        for step in range(k):
            h, after = script[5 * step : 5 * step + 2], script[5 * step + 2 : 5 * step + 5]
            share *= probability(sigmoid(before @ rbm.W + rbm.c), h) * probability(sigmoid(rbm.W @ h + rbm.b), after)
            before = after
        found = cd_gradient(rbm, v[None], Scripted(script), CD(k=k))
        for name in total:
            total[name] += share * found[name]
    for name, expected in expected_cd(rbm, v, k).items():
        np.testing.assert_allclose(total[name], expected, atol=1e-6)


def test_pcd_is_in_expectation_what_enumeration_says() -> None:
    """Of two chains and three rows, so that neither is divided by the number of the other."""
    rbm = machine(2, 2)
    v, chains = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    total = {name: np.zeros_like(array) for name, array in (("W", rbm.W), ("b", rbm.b), ("c", rbm.c))}
    seen: dict[tuple[float, ...], float] = {}
    for units in itertools.product([0.0, 1.0], repeat=8):
        down, up = np.array(units[:4]).reshape(2, 2), np.array(units[4:]).reshape(2, 2)
        share = probability(sigmoid(chains @ rbm.W.T + rbm.b), down) * probability(sigmoid(down @ rbm.W + rbm.c), up)
        found, after = pcd_gradient(rbm, v, chains, Scripted(units))
        assert np.array_equal(after, up)
        seen[units] = share
        for name in total:
            total[name] += share * found[name]
    assert sum(seen.values()) == pytest.approx(1)
    expected = {name: np.zeros_like(array) for name, array in total.items()}
    for row in v:
        for name, moment in plain_moments(rbm, row).items():
            expected[name] -= moment / 3
    for h, down in itertools.product(chains, states(2)):
        share = probability(sigmoid(rbm.W @ h + rbm.b), down)
        for name, moment in plain_moments(rbm, down).items():
            expected[name] += share * moment / 2
    for name in total:
        np.testing.assert_allclose(total[name], expected[name], atol=1e-6)


def test_chains_go_on_where_they_were() -> None:
    rbm = machine(3, 2)
    chains = new_chains(rbm, 20000, 3)
    np.testing.assert_allclose(chains.mean(axis=0), sigmoid(rbm.c), atol=0.02)
    kept = chains.copy()
    block = np.ones((2, 3))
    for _ in range(8):
        found, chains = pcd_gradient(rbm, block, chains, 5, PCD(k=3))
    assert np.array_equal(kept, new_chains(rbm, 20000, 3)), "chains that come in are a value"
    weights = np.exp(-rbm.free_energy(states(3)))
    of_model = moments(rbm, states(3), weights / weights.sum())
    of_data = moments(rbm, block)
    for name, array in found.items():
        np.testing.assert_allclose(array, of_model[name] - of_data[name], atol=0.02)


def test_means_in_the_place_of_draws() -> None:
    rbm, v = machine(3, 2), np.array([1.0, 0.0, 1.0])
    h = np.array([1.0, 0.0])
    found = cd_gradient(rbm, v[None], Scripted(h), CD(visible_means=True))
    expected, chain = plain_moments(rbm, v), plain_moments(rbm, sigmoid(rbm.W @ h + rbm.b))
    for name, array in found.items():
        np.testing.assert_allclose(array, chain[name] - expected[name], atol=1e-12)


def test_gaussian_units_have_the_gradient_of_their_log_likelihood() -> None:
    """With many chains that run for long, CD is the exact gradient: here of a machine with closed-form moments."""
    rbm = RBM(1, 1, "gaussian", dtype="float64")
    rbm.W[...], rbm.b[...], rbm.c[...] = 0.8, 0.3, -0.2
    v = np.linspace(-2, 2, 20000)[:, None]
    found = cd_gradient(rbm, v, 4, CD(k=20))
    grid = np.linspace(-12, 12, 24001)[:, None]
    weights = np.exp(-rbm.free_energy(grid))
    of_data, of_model = moments(rbm, v), moments(rbm, grid, weights / weights.sum())
    for name, array in found.items():
        np.testing.assert_allclose(array, of_model[name] - of_data[name], atol=0.03)


def test_weight_decay_and_sparsity_are_added() -> None:
    rbm, v = machine(3, 2), np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    plain = cd_gradient(rbm, v, 1)
    found = cd_gradient(rbm, v, 1, CD(weight_decay=0.1, sparsity=Sparsity(target=0.3, cost=2.0)))
    np.testing.assert_allclose(found["W"], plain["W"] + 0.1 * rbm.W, atol=1e-12)
    np.testing.assert_allclose(found["b"], plain["b"], atol=1e-12)
    np.testing.assert_allclose(found["c"], plain["c"] - 2.0 * (0.3 - rbm.transform(v).mean(axis=0)), atol=1e-12)


def test_a_gradient_changes_nothing_that_it_is_given_and_repeats() -> None:
    rbm, block = machine(3, 2), np.array([[1.0, 0.0, 1.0]])
    kept = [array.copy() for array in (rbm.W, rbm.b, rbm.c, block)]
    first = cd_gradient(rbm, block, 9)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (rbm.W, rbm.b, rbm.c, block), strict=True))
    space = Workspace(rbm, 4)
    again = cd_gradient(rbm, block, 9, workspace=space)
    assert again["W"] is space.W
    for name, array in first.items():
        assert np.array_equal(array, again[name])


def test_a_step_in_float32_is_that_in_float64() -> None:
    fine, coarse = machine(4, 3), machine(4, 3, dtype="float32")
    block, script = states(4)[:6], np.random.default_rng(1).integers(0, 2, 100)
    expected, found = cd_gradient(fine, block, Scripted(script)), cd_gradient(coarse, block, Scripted(script))
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_weighted_moments_are_sums() -> None:
    rbm, v = machine(3, 2), states(3)
    weights = np.random.default_rng(1).random(8)
    for name, array in moments(rbm, v, weights).items():
        expected = sum(w * plain_moments(rbm, row)[name] for w, row in zip(weights, v, strict=True))
        np.testing.assert_allclose(array, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cd_gradient(machine(3, 2), np.ones((1, 2)), 1), r"block has shape \(1, 2\), expected \(rows, 3\)"),
        (lambda: cd_gradient(machine(3, 2), np.ones((1, 3)), 1, PCD()), "pcd_gradient"),
        (lambda: pcd_gradient(machine(3, 2), np.ones((1, 3)), np.ones((1, 2)), 1, CD()), "expected PCD"),  # type: ignore[arg-type]
        (lambda: pcd_gradient(machine(3, 2), np.ones((1, 3)), np.ones((1, 3)), 1), r"chains has shape \(1, 3\)"),
        (
            lambda: cd_gradient(machine(3, 2), np.ones((5, 3)), 1, workspace=Workspace(machine(3, 2), 4)),
            "workspace for 4 rows and 4 chains, got 5 and 5: make a larger one",
        ),
        (
            lambda: cd_gradient(machine(3, 2), np.ones((1, 3)), 1, workspace=Workspace(machine(2, 2), 4)),
            r"workspace for W float64 \(2, 2\), expected float64 \(3, 2\)",
        ),
        (lambda: moments(machine(3, 2), np.ones((2, 3)), [1.0]), r"weights have shape \(1,\), expected \(2,\)"),
        (lambda: CD(k=0), "k=0, expected at least 1"),
        (lambda: CD(rate=0.0), "rate=0.0, expected more than 0"),
        (lambda: CD(momentum=1.0), "momentum=1.0, expected a probability below 1"),
        (lambda: CD(weight_decay=-1.0), "weight_decay=-1.0, expected at least 0"),
        (lambda: CD(sparsity=0.1), "sparsity is a float, expected a Sparsity"),  # type: ignore[arg-type]
        (lambda: Sparsity(target=1.0), "sparsity.target=1.0, expected more than 0 and less than 1"),
        (lambda: Sparsity(cost=-1.0), "sparsity.cost=-1.0, expected at least 0"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_a_machine_that_has_diverged_is_told() -> None:
    rbm = machine(3, 2)
    rbm.W[0, 0] = np.nan
    with pytest.raises(UsageError, match="diverged"):
        cd_gradient(rbm, np.ones((1, 3)), 1)
