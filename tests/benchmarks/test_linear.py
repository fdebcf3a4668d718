"""The benchmark of linear models: how it reads its data, and what it calls a miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from benchmarks.linear import FEATURES, Data, Figures, by_lbfgs, by_peers, read, shortfalls, table

GOOD = Figures("8 peers", 7, 4, 0.32338, 1e-6, 84.99, 5.0, 121_000.0)


def test_libsvm_s_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("-1 3:1 11:0.5 \n+1 1:2 \n")
    data = read(path)
    assert data.x.shape == (2, FEATURES)
    assert data.y.tolist() == [-1, 1]
    assert data.x.toarray()[0, [2, 10]].tolist() == [1, 0.5]
    assert data.x.toarray()[1].tolist() == [2, *[0] * 122]


def test_each_target_is_held_against_the_peers() -> None:
    assert list(shortfalls(GOOD)) == []
    (far,) = shortfalls(replace(GOOD, above=0.0011))
    assert "expected at most 0.1% above 0.3233796" in far
    assert list(shortfalls(replace(GOOD, passes_to_target=None))) != []
    (wrong,) = shortfalls(replace(GOOD, accuracy_percent=84.8))
    assert "84.80 % of the test set" in wrong
    (large,) = shortfalls(replace(GOOD, update_bytes=968_000.0))
    assert "968,000 bytes an update" in large


def test_peers_and_one_process_train_the_same_objective() -> None:
    chance = np.random.default_rng(0)
    x = (chance.random((400, FEATURES)) < 0.1).astype(float)
    y = np.where(x @ chance.normal(size=FEATURES) + chance.logistic(size=400) > 0, 1.0, -1.0)
    data = Data(sparse.csr_array(x), y)
    peers, lbfgs = by_peers(data, data, 8, simulated=True), by_lbfgs(data, data)
    assert abs(peers.objective - lbfgs.objective) < 1e-4
    assert peers.objective <= lbfgs.objective
    assert table([peers, lbfgs]).splitlines()[-1].split()[-1] == "0.3233796"
