"""What agents hold against each other, as a report tells it: one agent's view of all, and what each left out itself.

The view is that of the driver program's own agent, since a peer that lies may say of others what it likes.
"""

from __future__ import annotations

from p2p.agent.registrar_messages import Against
from p2p.report import Conduct


def of_peer(peer: str, view: Against, left_out: int) -> Conduct:
    """What is held against one peer, which left out so many of its own updates."""
    absurd, ratio = view.absurd.get(peer, (0, 0.0))
    return Conduct(
        absurd=absurd,
        ratio=ratio,
        refused=view.refused.get(peer, 0),
        left_out=left_out,
        put_out=view.put_out.get(peer, ""),
    )
