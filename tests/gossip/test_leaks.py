"""Swarms on real sockets that are opened and closed a thousand times in one process leave nothing behind."""

from __future__ import annotations

import gc
import os
import resource
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.lanes.peer import Settings

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

CYCLES = 1000
WARM_UP_CYCLES = 50
"""Until what is made once is made: memory of libzmq's and of the interpreter that is used again."""
GROWTH_MAX_BYTES = 8 << 20
"""8 KiB a cycle: an opened context alone takes more."""
PROMPT = Settings(advert_period_s=0.002, advert_gap_s=0.001)
"""The first advert goes out before anybody listens; the next one comes at once."""


@dataclass(frozen=True)
class Held:
    """What this process holds."""

    threads: int
    descriptors: int
    mappings: int
    """Of files without a name: shared memory, and what is handed over."""
    shared_memory: tuple[str, ...]

    @classmethod
    def now(cls) -> Held:
        """Looked up at the system."""
        gc.collect()
        return cls(
            threads=len(os.listdir("/proc/self/task")),
            descriptors=len(os.listdir("/proc/self/fd")),
            mappings=Path("/proc/self/maps").read_text().count("(deleted)"),
            shared_memory=tuple(sorted(name for name in os.listdir("/dev/shm") if not name.startswith("sem."))),
        )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.long
def test_a_thousand_swarms_leave_no_thread_no_descriptor_and_no_memory(swarm: Any, settled: Any) -> None:
    def cycle(number: int) -> None:
        origin, reader = (swarm.add(name, settings=PROMPT) for name in ("origin", "reader"))
        swarm.link()
        origin.publish({"w": np.full(3, float(number))})
        assert swarm.turn(lambda: reader.frontiers.get(origin.me) == 1)
        assert (reader.arrays()["w"] == number).all()
        for node in (origin, reader):
            node.runtime.close()
        swarm.nodes.clear()

    for number in range(WARM_UP_CYCLES):
        cycle(number)
    before, resident = Held.now(), resident_bytes()
    for number in range(CYCLES):
        cycle(number)
    assert astuple(settled(Held.now, before)) == astuple(before)
    assert resident_bytes() < resident + GROWTH_MAX_BYTES
