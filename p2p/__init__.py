"""A peer-to-peer decentralized trainer: every executor keeps a replica, peers tell each other what they learnt.

with DeepDist(model) as dd:
    dd.train(rdd, gradient, descent)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossip.errors import UsageError
    from gossip.sim.faults import Faults
    from gossip.sim.simulator import Network
    from p2p.caution import DeepDistWarning
    from p2p.deepdist import DeepDist
    from p2p.engines.simulated import SimulatedCluster
    from p2p.report import IncompleteTraining, Report

__all__ = [
    "DeepDist",
    "DeepDistWarning",
    "Faults",
    "IncompleteTraining",
    "Network",
    "Report",
    "SimulatedCluster",
    "UsageError",
]

_ROOMS = {
    "DeepDist": "p2p.deepdist",
    "DeepDistWarning": "p2p.caution",
    "Faults": "gossip.sim.faults",
    "IncompleteTraining": "p2p.report",
    "Network": "gossip.sim.simulator",
    "Report": "p2p.report",
    "SimulatedCluster": "p2p.engines.simulated",
    "UsageError": "gossip.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: every run of pytest imports this package for its plugin."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
