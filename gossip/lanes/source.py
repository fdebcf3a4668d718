"""Which peer is asked for a lane. A relay would be named here: a peer that has the lane's updates, and is nearer."""

from __future__ import annotations

from collections.abc import Callable

from gossip.messages import PeerId

Source = Callable[[PeerId], PeerId]
"""Of a lane, the peer that is asked for what follows, and from which alone that is taken."""


def owner(lane: PeerId) -> PeerId:
    """Whose updates they are."""
    return lane
