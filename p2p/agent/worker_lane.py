"""The discipline of executors with a master: agents whose lanes carry single updates to the hub, and to no other agent.

An update of an executor comes back to its replica by the hub's lane, as `descent` took it.
"""

from __future__ import annotations

from dataclasses import replace

from p2p.agent.discipline import House
from p2p.agent.lanes import MASTER_ADVERT_GAP_S, LaneDiscipline, lane_settings
from p2p.agent.submissions import Submission

OUTSTANDING_MAX = 2
"""Updates of one worker that the master has not taken yet; then the worker waits."""


class WorkerLane(LaneDiscipline):
    """Publishes updates one by one, and merges what the master makes of them."""

    def __init__(self, house: House) -> None:
        settings = replace(lane_settings(house), advert_gap_s=MASTER_ADVERT_GAP_S, coalesce=False, applies_own=False)
        super().__init__(house, house.layout, settings, None)  # in the star nobody but the hub has a replica to give

    @property
    def merged(self) -> int:
        """Of the hub's lane; the own updates come back by that."""
        frontiers = self.peer.replicator.frontiers()
        return sum(frontiers.values()) - frontiers[self.house.me]

    def has_settled(self, submission: Submission) -> bool:
        """It is in the lane, and the master keeps up."""
        return super().has_settled(submission) and self._outstanding() <= OUTSTANDING_MAX

    def _outstanding(self) -> int:
        replicator = self.peer.replicator
        return replicator.n - min((r.acknowledged for r in replicator.readers.values()), default=replicator.n)
