"""Sessions that come and go in one driver program leave nothing of theirs in it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from p2p import DeepDist

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

CYCLES = 10
WARM_UP_CYCLES = 2
TIMEOUT_S = 60.0


def held(place: Any) -> dict[str, Any]:
    """What this process holds, and what it has started."""
    gc.collect()
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings of files without a name": Path("/proc/self/maps").read_text().count("(deleted)"),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        "left": place.leftovers(),
    }


@pytest.mark.long
def test_ten_sessions_leave_no_thread_no_descriptor_no_process_and_no_segment(
    place: Any, eventually: Callable[[Callable[[], bool], float], bool], settled: Any
) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        return {"w": np.full(300_000, float(sum(rows)))}

    def session() -> None:
        model = {"w": np.zeros(300_000)}
        with DeepDist(model, peers=2) as dd:
            dd.train([[1, 2], [3], [4, 5]], gradient)
        assert (model["w"] == 15).all()

    for _ in range(WARM_UP_CYCLES):
        session()
    assert eventually(lambda: not place.leftovers(), TIMEOUT_S)
    before = held(place)
    for _ in range(CYCLES):
        session()
    assert eventually(lambda: not place.leftovers(), TIMEOUT_S)
    assert settled(lambda: held(place), before) == before
