"""Training raises the likelihood, and steps are those of the formula."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.descents import SGD
from p2p.models.rbm import (
    CD,
    PCD,
    RBM,
    Sparsity,
    Trainer,
    Velocity,
    cd_gradient,
    exact_gradient,
    exact_log_z,
    pcd_gradient,
    train,
)
from p2p.models.rbm.gradients import new_chains


def bars() -> np.ndarray:
    """Bars and stripes on a field of 3 x 3; (14, 9)."""
    stripes = np.array([np.tile(mask, (3, 1)) for mask in itertools.product([0, 1], repeat=3)])
    both = np.concatenate([stripes.reshape(8, 9), stripes.transpose(0, 2, 1).reshape(8, 9)])
    return np.unique(both, axis=0).astype(np.float32)


def likelihood(rbm: RBM) -> float:
    return float(rbm.log_likelihood(bars(), exact_log_z(rbm)).mean())


@pytest.mark.parametrize(
    "options", [CD(rate=0.1), CD(k=3, rate=0.1), PCD(rate=0.05), CD(rate=0.1, weight_decay=1e-4, momentum=0.8)]
)
def test_bars_and_stripes_are_learned(options: CD) -> None:
    """All patterns equally likely would be -log 14 = -2.64, and units by themselves -6.2."""
    rbm = RBM(9, 12, seed=1)
    before = likelihood(rbm)
    train(rbm, [bars()] * 1000, options, 2, epochs=4)
    assert before == pytest.approx(-9 * np.log(2), abs=0.1)
    assert likelihood(rbm) > -4.0


def test_a_gaussian_machine_finds_two_clusters() -> None:
    random = np.random.default_rng(1)
    data = random.normal(size=(400, 2)) + np.where(random.random((400, 1)) < 0.5, 3.0, -3.0)
    rbm = RBM(2, 4, "gaussian", seed=1)
    alone = float(rbm.log_likelihood(data, exact_log_z(rbm)).mean())
    train(rbm, np.split(data, 8), CD(rate=0.02), 2, epochs=200)
    found = float(rbm.log_likelihood(data, exact_log_z(rbm)).mean())
    truth = float(
        np.log(sum(0.5 * np.exp(-0.5 * ((data - at) ** 2).sum(axis=1)) for at in (3, -3)) / (2 * np.pi)).mean()
    )
    assert alone < truth - 5
    assert truth - 0.5 < found


def test_sparsity_brings_the_means_to_their_target() -> None:
    means = {}
    for cost in (0.0, 2.0):
        rbm = RBM(9, 12, seed=1)
        train(rbm, [bars()] * 500, CD(sparsity=Sparsity(0.1, cost)), 2, epochs=2)
        means[cost] = rbm.transform(bars()).mean()
    assert abs(means[2.0] - 0.1) < 0.05 < abs(means[0.0] - 0.1)


def test_a_step_is_momentum_times_the_last_and_rate_times_gradient() -> None:
    rbm, twin = RBM(9, 3, seed=1), RBM(9, 3, seed=1)
    trainer = Trainer(rbm, CD(rate=0.2, momentum=0.5), 14, np.random.default_rng(4))
    random, velocity = np.random.default_rng(4), {"W": 0.0, "b": 0.0, "c": 0.0}
    arrays = {"W": rbm.W, "b": rbm.b, "c": rbm.c}
    for rate, momentum in ((None, None), (None, None), (0.1, 0.9)):
        trainer.step(bars(), rate, momentum)
        gradient = cd_gradient(twin, bars(), random)
        for name, array in (("W", twin.W), ("b", twin.b), ("c", twin.c)):
            velocity[name] = velocity[name] * (momentum or 0.5) - (rate or 0.2) * gradient[name]
            array += velocity[name]
            np.testing.assert_allclose(arrays[name], array, atol=1e-6)
    assert rbm.W is arrays["W"]


def test_the_chains_of_pcd_are_kept_from_step_to_step() -> None:
    rbm, twin = RBM(9, 3, seed=1), RBM(9, 3, seed=1)
    trainer = Trainer(rbm, PCD(rate=0.1), 14, np.random.default_rng(4), chains=5)
    random = np.random.default_rng(4)
    chains = new_chains(twin, 5, random)
    for _ in range(3):
        trainer.step(bars())
        gradient, chains = pcd_gradient(twin, bars(), chains, random)
        Velocity({"W": twin.W, "b": twin.b, "c": twin.c}).step({"W": twin.W, "b": twin.b, "c": twin.c}, gradient, 0.1)
        np.testing.assert_allclose(rbm.W, twin.W, atol=1e-6)
    assert trainer.chains is not None
    assert np.array_equal(trainer.chains, chains)


def test_the_machine_is_a_model_of_named_arrays() -> None:
    rbm = RBM(9, 12, seed=1)

    def gradient(model: RBM, rows: object) -> dict[str, np.ndarray]:
        trained = copy.deepcopy(model)
        train(trained, [np.array(list(rows))] * 100, CD(rate=0.03), np.random.randint(2**31))  # type: ignore[call-overload]
        return {name: getattr(trained, name) - getattr(model, name) for name in ("W", "b", "c")}

    with DeepDist(rbm, engine=SimulatedCluster(peers=3, seed=1), progress=False) as dd:
        dd.train([list(bars())] * 6, gradient, epochs=20)
    assert likelihood(rbm) > -4.5


@pytest.mark.parametrize(
    "gradient_of", [cd_gradient, lambda model, rows, chance: exact_gradient(model, rows)], ids=["CD", "exact"]
)
def test_descents_raise_the_likelihood(gradient_of: Any) -> None:
    rbm = RBM(9, 10, seed=1)
    rbm.W *= 50
    before = likelihood(rbm)

    def gradient(model: RBM, rows: Any) -> Any:
        return gradient_of(model, np.array(list(rows)), np.random.randint(2**31))

    with DeepDist(rbm, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train([list(bars())] * 4, gradient, SGD(0.1), epochs=5)
    assert likelihood(rbm) > before + 0.1


def test_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="rows=0, expected at least 1"):
        Trainer(RBM(9, 3), CD(), 0, 1)
    with pytest.raises(UsageError, match="options is a dict, expected a CD"):
        Trainer(RBM(9, 3), {}, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no block"):
        train(RBM(9, 3), [], CD(), 1)
