"""How a session stands can be asked before, while it trains and afterwards, wherever it trains."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gossip.mixing import DPsgd
from p2p import DeepDist, SimulatedCluster
from p2p.driver.watchers import Moment
from p2p.report import Snapshot

ROWS = [[1.0] * 10] * 4
EPOCHS = 2


@dataclass
class Asking:
    """Asks the session whenever it looks."""

    session: Any
    every_s: float
    seen: list[Snapshot] = field(default_factory=list)

    def look(self, model: Any, moment: Moment) -> None:
        self.seen.append(self.session.snapshot())


def step(model: Any, rows: Any) -> dict[str, Any]:
    """Simulated, it takes no time."""
    return {"w": np.ones(3)}


def slow_step(model: Any, rows: Any) -> dict[str, Any]:
    time.sleep(0.05)
    return {"w": np.ones(3)}


real = [pytest.mark.slow, pytest.mark.sockets]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("options", "gradient", "roles"),
    [
        pytest.param({"engine": SimulatedCluster(3, seed=1)}, step, "pppo", id="simulated"),
        pytest.param({"peers": 2}, slow_step, "ppo", id="lanes", marks=real),
        pytest.param({"peers": 2, "mode": "master"}, slow_step, "wwm", id="master", marks=real),
        pytest.param(
            {"peers": 2, "discipline": "mix", "mixing": DPsgd(), "topology": "complete"},
            slow_step,
            "pp",
            id="mix",
            marks=real,
        ),
    ],
)
def test_a_session_says_how_it_stands(options: dict[str, Any], gradient: Any, roles: str) -> None:
    with DeepDist({"w": np.zeros(3)}, progress=False, **options) as dd:
        session = dd._session
        at_first = session.snapshot()
        assert (at_first.peers, at_first.updates, at_first.partitions) == ((), 0, 0)
        asking = Asking(session, 0.05)
        reports = [dd.train(ROWS, gradient, chunk_rows=2, epochs=EPOCHS, watchers=[asking]) for _ in range(2)]
        of_first, of_second = reports
        while_it_ran = [now for now in asking.seen if now.partitions]
        assert len(while_it_ran) == len(asking.seen), "it is asked while the training runs"
        assert {now.partitions for now in while_it_ran} == {len(ROWS) * EPOCHS}
        assert while_it_ran[-1].partitions_done == len(ROWS) * EPOCHS
        assert all(a.at <= b.at and a.updates <= b.updates for a, b in zip(asking.seen, asking.seen[1:], strict=False))
        assert any(0 < now.updates < of_first.updates for now in asking.seen)
        after = session.snapshot()
        assert (after.partitions_done, after.partitions) == (0, 0)
        assert after.updates == of_first.updates + of_second.updates
        assert "".join(peer.role[0] for peer in after.peers) == roles
        assert [peer.name for peer in after.peers] == [peer.name for peer in of_second.peers]
