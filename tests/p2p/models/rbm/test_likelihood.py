"""The partition function is the sum over all states, and annealed importance sampling comes close to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.models.rbm import CD, RBM, ais, exact_gradient, exact_log_z, train
from p2p.models.rbm.likelihood import Estimate

MEANS = np.linspace(0.1, 0.9, 12)


def machine(n_visible: int, n_hidden: int, visible: str = "bernoulli", scale: float = 0.8) -> RBM:
    rbm = RBM(n_visible, n_hidden, visible, dtype="float64")
    random = np.random.default_rng(2)
    for array in (rbm.W, rbm.b, rbm.c):
        array[...] = random.normal(0, scale, array.shape)
    return rbm


def states(units: int) -> np.ndarray:
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


def bars(rbm_dtype: str = "float32") -> np.ndarray:
    """Bars and stripes on a field of 3 x 3, the empty and the full one once each; (14, 9)."""
    masks = states(3)
    stripes = np.array([np.tile(mask, (3, 1)) for mask in masks])
    both = np.concatenate([stripes.reshape(8, 9), stripes.transpose(0, 2, 1).reshape(8, 9)])
    return np.unique(both, axis=0).astype(rbm_dtype)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (14, 2), (2, 14)])
def test_log_z_is_the_sum_over_all_pairs_of_states(shape: tuple[int, int]) -> None:
    rbm = machine(*shape)
    v, h = states(shape[0]), states(shape[1])
    weights = (v @ rbm.b)[:, None] + h @ rbm.c + v @ rbm.W @ h.T
    assert exact_log_z(rbm) == pytest.approx(np.log(np.exp(weights).sum()), abs=1e-9)
    assert np.exp(rbm.log_likelihood(v, exact_log_z(rbm))).sum() == pytest.approx(1)


def test_log_z_of_gaussian_units_is_the_integral() -> None:
    rbm = machine(1, 3, "gaussian")
    grid = np.linspace(-15, 15, 30001)[:, None]
    integral = np.exp(-rbm.free_energy(grid)).sum() * 0.001
    assert exact_log_z(rbm) == pytest.approx(math.log(integral), abs=1e-9)


def test_log_z_of_many_units_beside_few() -> None:
    rbm = RBM(784, 3)
    rbm.W[...] = 0
    assert exact_log_z(rbm) == pytest.approx(787 * math.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("rbm", "rows"),
    [
        (machine(4, 3), states(4)[3:9]),
        (machine(3, 4), states(3)[2:7]),
        (machine(3, 3, "gaussian", 0.5), np.random.default_rng(1).normal(size=(5, 3))),
    ],
    ids=["hidden", "visible", "gaussian"],
)
def test_the_exact_gradient_is_the_slope_of_minus_the_log_likelihood(rbm: RBM, rows: np.ndarray) -> None:
    found = exact_gradient(rbm, rows)
    for name, array in (("W", rbm.W), ("b", rbm.b), ("c", rbm.c)):
        for index in np.ndindex(array.shape):
            kept, ends = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                ends.append(rbm.log_likelihood(rows, exact_log_z(rbm)).mean())
            array[index] = kept
            assert found[name][index] == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_sampling_comes_within_half_a_nat_of_the_sum(visible: str) -> None:
    rbm = machine(12, 10, visible, 0.5 if visible == "bernoulli" else 0.2)
    found, exact = ais(rbm, MEANS, 1), exact_log_z(rbm)
    assert abs(found.log_z - exact) < 0.5
    assert abs(found.log_z - exact) < 4 * found.standard_error
    assert 0 < found.standard_error < 0.2


def test_sampling_comes_within_half_a_nat_of_the_sum_for_a_trained_machine() -> None:
    data = bars()
    rbm = RBM(9, 10, seed=1)
    train(rbm, [data] * 500, CD(rate=0.1), 2, epochs=4)
    exact = exact_log_z(rbm)
    assert rbm.log_likelihood(data, exact).mean() > -4.5
    found = ais(rbm, data.mean(axis=0), 3)
    assert isinstance(found, Estimate)
    assert abs(found.log_z - exact) < 0.5


def test_the_standard_error_is_that_of_repeated_runs() -> None:
    rbm = machine(12, 10, scale=0.5)
    runs = [ais(rbm, MEANS, seed, chains=50, betas=100) for seed in range(40)]
    spread = np.std([run.log_z for run in runs])
    assert 0.6 < spread / np.mean([run.standard_error for run in runs]) < 1.6
    assert np.mean([run.log_z for run in runs]) == pytest.approx(exact_log_z(rbm), abs=0.03)


def test_a_machine_without_weights_is_known_at_once() -> None:
    """The base-rate model is the machine itself: each chain has the same weight."""
    rbm = RBM(12, 5, dtype="float64")
    rbm.W[...] = 0
    rbm.b[...] = np.log(MEANS / (1 - MEANS))
    found = ais(rbm, MEANS, 1, chains=3, betas=2)
    assert found.log_z == pytest.approx(exact_log_z(rbm), abs=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


def test_units_that_the_data_never_change_may_change_in_the_machine() -> None:
    rbm = machine(12, 10, scale=0.5)
    with np.errstate(all="raise", under="ignore"):
        found = ais(rbm, np.repeat([0.0, 1.0], 6), 1)
    assert abs(found.log_z - exact_log_z(rbm)) < 0.5


def test_temperatures_of_ones_own_are_the_even_ones() -> None:
    rbm = machine(12, 10)
    assert ais(rbm, MEANS, 1, betas=50) == ais(rbm, MEANS, 1, betas=np.linspace(0, 1, 50))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exact_log_z(RBM(21, 22)), "22 hidden and 21 visible units, expected at most 20 on a side"),
        (lambda: exact_log_z(RBM(2, 21, "gaussian")), "21 hidden units, expected at most 20"),
        (lambda: ais(machine(12, 2), MEANS[:5], 1), r"means has shape \(1, 5\), expected \(rows, 12\)"),
        (lambda: ais(machine(12, 2), MEANS, 1, chains=1), "chains=1, expected at least 2"),
        (lambda: ais(machine(12, 2), MEANS, 1, betas=1), "betas=1, expected at least 2"),
        (lambda: ais(machine(12, 2), MEANS, 1, betas=[0, 0.5, 0.5, 1]), "rise from 0 to 1"),
        (lambda: ais(machine(12, 2), MEANS, 1, betas=[0.1, 1]), "rise from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
