"""The benchmark of L-BFGS: what it calls a miss, and that both sides minimize the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from benchmarks.lbfgs import Memory, Pass, Passes, by_lbfgs, by_scipy, shortfalls, table
from benchmarks.linear import FEATURES, Data

OURS, SCIPYS = Passes("here", 150, 118, 2e-4, 0.32338, 5.0), Passes("scipy", 150, 131, 2e-4, 0.32338, 0.5)
FAST, SLOW = Pass("fast", 0.25, 0, 0), Pass("slow", 0.3, 9, 9)
SMALL, LARGE = Memory(1_000_000, 4_000_000, 4_600_000, 1.0), Memory(50_000_000, 200_000_000, 5_200_000, 9.0)


def test_each_target_is_held() -> None:
    assert list(shortfalls([OURS, SCIPYS], [FAST, SLOW], [SMALL, LARGE])) == []
    (far,) = shortfalls([replace(OURS, to_optimum=140), SCIPYS], [FAST, SLOW], [SMALL, LARGE])
    assert "140 passes to the optimum" in far
    assert list(shortfalls([replace(OURS, to_optimum=None), SCIPYS], [FAST, SLOW], [SMALL, LARGE])) != []
    (slow,) = shortfalls([OURS, SCIPYS], [FAST, replace(SLOW, seconds=0.34)], [SMALL, LARGE])
    assert "0.34 s a pass with a slow worker" in slow
    (large,) = shortfalls([OURS, SCIPYS], [FAST, SLOW], [SMALL, replace(LARGE, driver_bytes=9_000_000)])
    assert "4,600,000 to 9,000,000 bytes in the driver program" in large


def test_processes_and_scipy_minimize_the_same_objective() -> None:
    chance = np.random.default_rng(0)
    x = (chance.random((400, FEATURES)) < 0.1).astype(float)
    y = np.where(x @ chance.normal(size=FEATURES) + chance.logistic(size=400) > 0, 1.0, -1.0)
    data = Data(sparse.csr_array(x), y)
    ours, scipys = by_lbfgs(data, 60), by_scipy(data, 60)
    assert abs(ours.objective - scipys.objective) < 1e-4
    assert "here" not in table([ours, scipys], [FAST, SLOW], [SMALL, LARGE])
