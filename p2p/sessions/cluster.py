"""The settings of a simulated cluster, as users give them, and their limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from gossip.arguments import check_fields, instance, integer, probability, seconds
from gossip.sim.faults import Faults
from gossip.sim.simulator import Network


@dataclass(frozen=True)
class SimulatedCluster:
    """What to simulate: `DeepDist(model, engine=SimulatedCluster(peers=16, seed=7))`. Times in virtual seconds."""

    peers: int = 4
    """Executors at the beginning; each is a peer."""
    seed: int = 0
    """Of all that is left to chance."""
    network: Network = field(default_factory=Network)
    """Loss, duplication and delay."""
    faults: Faults = field(default_factory=Faults)
    """What goes wrong, and when; the first training begins at 0. What is due after the last task is left out."""
    seconds_per_chunk: float = 1.0
    """Mean of what a chunk takes, its gradient and all; each takes half as long to one and a half times as long."""
    tasks_per_peer: int = 1
    """Cores of an executor."""
    fail: float = 0.0
    """Probability that an attempt at a partition fails, at its end or before, and is tried again."""
    speculate: float = 0.0
    """Probability that a second copy of a task is started beside the first."""
    advert_gap_s: float | None = None
    """Changes within this time share one advert: larger ones sum more updates, and are faster to simulate. None: as
    with agents, own updates sooner than those of others."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("peers", "tasks_per_peer"):
            integer(name, getattr(self, name), 1)
        for name in ("fail", "speculate"):
            probability(name, getattr(self, name), below_one=True)
        seconds("seconds_per_chunk", self.seconds_per_chunk)
        if self.advert_gap_s is not None:
            seconds("advert_gap_s", self.advert_gap_s)
        network = instance("network", self.network, Network)
        probability("network.loss", network.loss, below_one=True)
        seconds("network.delay_mean_s", network.delay_mean_s)
        instance("faults", self.faults, Faults)
