"""The fixture `simulated_cluster` for tests of training jobs; pytest finds it where this package is installed.

    def test_my_job_survives_a_crash(simulated_cluster):
        with DeepDist(model, engine=simulated_cluster(peers=8, seed=1, faults=Faults(crashes=(5.0,)))) as dd:
            report = dd.train(partitions, gradient, epochs=2)

Every run of pytest imports this module, whether it uses the fixture or not: so nothing large is imported at its head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from p2p.sessions.cluster import SimulatedCluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--simulated-seed`."""
    group = parser.getgroup("deepdist")
    group.addoption(
        "--simulated-seed",
        type=int,
        default=None,
        metavar="N",
        help="the seed of every simulated cluster, to try others",
    )


@pytest.fixture
def simulated_cluster(request: pytest.FixtureRequest) -> Callable[..., SimulatedCluster]:
    """Make a `SimulatedCluster` with the settings given; a test that fails shows those of all it made."""

    def make(peers: int = 4, **settings: Any) -> SimulatedCluster:
        from p2p.sessions.cluster import SimulatedCluster

        seed = request.config.getoption("--simulated-seed")
        if seed is not None:
            settings["seed"] = seed
        cluster = SimulatedCluster(peers, **settings)
        request.node.add_report_section("call", "simulated clusters", f"{cluster}\n")
        return cluster

    return make
