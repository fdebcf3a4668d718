"""The benchmark of dense models: how it reads its data, that its gradient is one, and what it calls a miss."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dense import (
    FILES,
    Data,
    Figures,
    fresh,
    gradient_of,
    layers,
    line,
    percent,
    plan,
    read,
    shortfalls,
    train,
)

ALONE = Figures("mlp", 1, "sum", "float32", 97.8, 0.0, 0.0, 1.0)
GOOD = Figures("mlp", 16, "outer", "auto", 97.6, 27_000.0, 15.0, 9.0)


def some(rows: int = 400) -> Data:
    chance = np.random.default_rng(3)
    centers = chance.random((10, 784)).astype(np.float32)
    y = chance.integers(0, 10, rows).astype(np.uint8)
    x = (centers[y] + chance.normal(0, 0.2, (rows, 784))).astype(np.float32)
    return Data(x, y, x, y)


def test_the_files_of_mnist_are_read(tmp_path: Path) -> None:
    for name, body in zip(FILES, (bytes(16) + bytes([255] * 784), bytes(8) + b"\7") * 2, strict=True):
        (tmp_path / name).write_bytes(gzip.compress(body))
    data = read(tmp_path)
    assert (data.x.shape, data.x[0, 0], data.y.tolist(), data.test_y.tolist()) == ((1, 784), 1.0, [7], [7])


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_the_gradient_is_that_of_the_cross_entropy(kind: str) -> None:
    data, chance = some(20), np.random.default_rng(1)
    model = {name: chance.normal(0, 0.1, array.shape) for name, array in fresh(kind).items()}

    def loss() -> float:
        scores = layers(model, data.x)[-1].astype(np.float64)
        return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(20), data.y]))

    for name, slope in gradient_of(data)(model, range(20)).items():
        for _ in range(5):
            at = tuple(chance.integers(0, side) for side in model[name].shape)
            before, step, around = model[name][at], 1e-5, []
            for sign in (1, -1):
                model[name][at] = before + sign * step
                around.append(loss())
            model[name][at] = before
            assert (around[0] - around[1]) / (2 * step) == pytest.approx(slope[at], rel=1e-3, abs=1e-7)


def test_peers_learn_nearly_what_one_process_does_and_send_fewer_bytes() -> None:
    data = some()
    alone = train("softmax", data, 1, "sum", None, 6)
    peers = train("softmax", data, 2, "outer", "auto", 6)
    assert (alone.update_bytes, alone.saved) == (0, 0)
    assert alone.percent == 100
    assert peers.percent > 95
    assert peers.saved > 1
    assert "2 peers" in line(peers, alone)


def test_nothing_is_learned_by_a_model_that_is_fresh() -> None:
    assert percent(fresh("softmax"), some()) < 30


def test_each_target_is_held_against_sixteen_peers() -> None:
    assert list(shortfalls([ALONE, GOOD])) == []
    (behind,) = shortfalls([ALONE, replace(GOOD, percent=97.49)])
    assert "expected at least 97.50" in behind
    (large,) = shortfalls([ALONE, replace(GOOD, saved=7.9)])
    assert "expected at least 8" in large
    assert list(shortfalls([ALONE, replace(GOOD, percent=10.0, codec="int8")])) == [], "of the default alone"


def test_all_rules_and_codecs_are_tried_at_sixteen_peers() -> None:
    assert len(set(plan(False))) == len(list(plan(False))) == 14
    assert sum(peers == 16 for peers, _, _ in plan(False)) == 10
