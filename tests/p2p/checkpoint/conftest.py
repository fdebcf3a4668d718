"""Small trainings on a simulated cluster, which write checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, SimulatedCluster

PARTITIONS, ROWS = 6, 4
DATA = [[partition * ROWS + row for row in range(ROWS)] for partition in range(PARTITIONS)]


def counting(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    """One for each row: sums are exact in any order."""
    seen = np.zeros(PARTITIONS * ROWS)
    for row in rows:
        seen[row] += 1
    return {"seen": seen}


@pytest.fixture(scope="session")
def fresh() -> Callable[[], dict[str, Any]]:
    """A model that has seen nothing."""
    return lambda: {"seen": np.zeros(PARTITIONS * ROWS)}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, fresh: Any) -> Path:
    """A folder with checkpoints of one training, which nobody changes."""
    folder = tmp_path_factory.mktemp("written")
    with DeepDist(fresh(), engine=SimulatedCluster(peers=3, seed=3), progress=False) as dd:
        dd.train(DATA, counting, epochs=2, chunk_rows=2, checkpoint=folder, every_s=1.0, keep=100)
        assert (dd.model["seen"] == 2.0).all()
    return folder
