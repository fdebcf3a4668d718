"""A peer-to-peer decentralized trainer: every executor keeps a replica, peers tell each other what they learned.

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
    from gossip.updates import Kind
    from p2p.adapters import Adapter, ByPath
    from p2p.caution import DeepDistWarning
    from p2p.codec import Codec
    from p2p.deepdist import DeepDist
    from p2p.driver.stopping import Patience
    from p2p.driver.watchers import Watcher
    from p2p.engines import Engine
    from p2p.http.client import fetch_model, send_gradient
    from p2p.http.settings import Master
    from p2p.lbfgs.method.options import LBFGS
    from p2p.master.coordinator import Feeder
    from p2p.report import IncompleteTraining, MastersLostError, Report
    from p2p.sessions.cluster import SimulatedCluster
    from p2p.worker.task import current, in_place, pause

__all__ = [
    "LBFGS",
    "Adapter",
    "ByPath",
    "Codec",
    "DeepDist",
    "DeepDistWarning",
    "Engine",
    "Faults",
    "Feeder",
    "IncompleteTraining",
    "Kind",
    "Master",
    "MastersLostError",
    "Network",
    "Patience",
    "Report",
    "SimulatedCluster",
    "UsageError",
    "Watcher",
    "current",
    "fetch_model",
    "in_place",
    "pause",
    "send_gradient",
]

_ROOMS = {
    "Adapter": "p2p.adapters",
    "ByPath": "p2p.adapters",
    "Codec": "p2p.codec",
    "DeepDist": "p2p.deepdist",
    "DeepDistWarning": "p2p.caution",
    "Engine": "p2p.engines",
    "Faults": "gossip.sim.faults",
    "Feeder": "p2p.master.coordinator",
    "IncompleteTraining": "p2p.report",
    "Kind": "gossip.updates",
    "LBFGS": "p2p.lbfgs.method.options",
    "Master": "p2p.http.settings",
    "MastersLostError": "p2p.report",
    "Network": "gossip.sim.simulator",
    "Patience": "p2p.driver.stopping",
    "Report": "p2p.report",
    "SimulatedCluster": "p2p.sessions.cluster",
    "UsageError": "gossip.errors",
    "Watcher": "p2p.driver.watchers",
    "current": "p2p.worker.task",
    "fetch_model": "p2p.http.client",
    "in_place": "p2p.worker.task",
    "pause": "p2p.worker.task",
    "send_gradient": "p2p.http.client",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: every run of pytest imports this package for its plugin."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
