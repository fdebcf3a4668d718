"""Who broke the protocol, and how often: at the third time a peer is put out.

An offence is what only its sender can have done: a block that does not match its checksum, a message that is none, or
one in another's name, over a connection of which it is sure whose it is. What a lossy network does (messages that are
gone, repeated or late) is none.
"""

from __future__ import annotations

from collections import Counter

from gossip.messages import PeerId

OFFENCES_MAX = 3
"""One may be a bit that flipped in memory, two a bad day."""


class Offences:
    """Those that one peer has seen."""

    def __init__(self) -> None:
        self.counts: Counter[PeerId] = Counter()

    def offend(self, peer: PeerId, why: str) -> str | None:
        """`peer` did it again. Why it is put out, if this was once too often; None before and after that."""
        self.counts[peer] += 1
        if self.counts[peer] != OFFENCES_MAX:
            return None
        return f"it broke the protocol {OFFENCES_MAX} times, at last so: {why}"
