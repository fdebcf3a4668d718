"""The benchmark of all modes: that all of them have the same objective, and say what they came to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from benchmarks import modes
from benchmarks.linear import FEATURES, Data
from benchmarks.modes import SIDES, Logistic, WordsDownpour, blocks_of, fresh, line, logistic

DATA = Data(
    sparse.csr_array((np.random.default_rng(0).random((420, FEATURES)) < 0.1).astype(float)),
    np.where(np.random.default_rng(1).random(420) < 0.5, 1.0, -1.0),
)


def test_gradients_are_those_of_the_objective() -> None:
    loss, model = Logistic(420), {"w": np.random.default_rng(2).normal(size=FEATURES)}
    blocks = [block for partition in blocks_of(DATA, 3) for block in partition]
    assert [len(y) for _, y in blocks] == [100, 40] * 3
    value, slope = loss.sums(model, iter(blocks))
    w = model["w"]
    assert value + float(w @ w) / 2 / 420 == pytest.approx(loss.objective(DATA, model), rel=1e-12)
    whole = loss.gradient(model, iter([(DATA.x, DATA.y)]))["w"]
    np.testing.assert_allclose(slope["w"] + w / 420, whole, rtol=1e-9, atol=1e-15)
    step = np.zeros(FEATURES)
    step[5] = 1e-6
    difference = loss.objective(DATA, {"w": w + step}) - loss.objective(DATA, {"w": w - step})
    assert difference / 2e-6 == pytest.approx(whole[5], rel=1e-5)


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("side", SIDES)
def test_each_way_learns_and_says_what_it_took(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "PEERS", 2)
    found = logistic(side, 0.1, DATA, DATA, 2)
    assert found.quality < np.log(2) - modes.OPTIMUM, "it is nearer than the start"
    assert found.nbytes > 0
    assert found.updates > 0
    assert found.curve
    assert side in line(found)


def test_downpour_steps_down_by_adagrad_and_counts_words() -> None:
    model: Any = fresh([["a", "b", "c"] * 3] * 9)
    model.words_trained, before = np.ones(1), model.wv.vectors.copy()
    descent = WordsDownpour(0.5)
    slope = np.where(np.arange(100) % 2, 2.0, -2.0) * np.ones_like(before)
    update = {"wv.vectors": slope, "syn1neg": np.zeros_like(model.syn1neg), "words_trained": np.array([7.0])}
    for _ in range(2):
        descent(model, update)
    np.testing.assert_allclose(model.wv.vectors, before - 0.5 * np.sign(slope) * (1 + 1 / np.sqrt(2)), atol=1e-5)
    assert model.words_trained == 1 + 14
