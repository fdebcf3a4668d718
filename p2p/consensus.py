"""How far the replicas are apart: read from every agent, block by block, and compared with each other exactly."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import numpy as np
import zmq

from gossip.arrays import Array, Bytes
from gossip.errors import GossipError
from gossip.messages import PeerId, State
from gossip.zmq_runtime import Keys, fetch_state
from p2p.registrar import Member
from p2p.replica import Replica

TIMEOUT_S = 30.0


def consensus_distance(
    reference: Replica, members: Sequence[Member], keys: Keys | None = None
) -> tuple[float, list[str]]:
    """(largest relative difference between any two replicas, names of the agents that could not be read).

    For each array it is the largest difference between two replicas in one element, over the largest absolute value.
    `reference` is a replica at hand; it counts as one of them. Meant for a swarm that has drained.
    """
    low = bytearray(reference.layout.nbytes)
    with reference.reading():
        low[:] = reference.read(0, reference.layout.nbytes)
    high = bytearray(low)
    unread = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        for member in members:
            try:
                _widen(context, member, reference, low, high, keys)
            except GossipError:
                unread.append(member.name)
    finally:
        context.term()
    lows, highs = reference.layout.views(low), reference.layout.views(high)
    return max((_spread(lows[name], highs[name]) for name in lows), default=0.0), unread


def _spread(low: Array, high: Array) -> float:
    if low.size == 0:
        return 0.0
    spread = float(np.max(np.subtract(high, low, dtype=np.float64)))
    scale = max(abs(float(np.max(high))), abs(float(np.min(low))))
    return spread / scale if spread else 0.0


def _widen(
    context: zmq.Context[zmq.Socket[bytes]],
    member: Member,
    reference: Replica,
    low: bytearray,
    high: bytearray,
    keys: Keys | None,
) -> None:
    """Take `member`'s replica into the element-wise lowest and highest values."""

    def begin(state: State) -> Callable[[int, Bytes], None]:
        state.layout.check_fit(reference.layout)

        def take(start: int, data: Bytes) -> None:
            for dtype, first, end in reference.layout.pieces(start, start + len(data)):
                count = (end - first) // np.dtype(dtype).itemsize
                theirs = np.frombuffer(data, dtype, count, first - start)
                for bound, choose in ((low, np.minimum), (high, np.maximum)):
                    mine = np.frombuffer(bound, dtype, count, first)
                    choose(mine, theirs, out=mine)

        return take

    fetch_state(context, member.pulls, PeerId(secrets.token_hex(16)), begin, timeout_s=TIMEOUT_S, keys=keys)
