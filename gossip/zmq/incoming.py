"""Bulk messages being received: one from each peer, block by block, and whole when the last one is in.

Half a window is reported before the origin would have to wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gossip.arrays import Bytes
from gossip.errors import MismatchError
from gossip.events import Event, Progressed, Received
from gossip.messages import Bulk, Credit, PacketReply, PeerId
from gossip.wire import Assembly, allocate, body_bytes, decode_block
from gossip.zmq.sockets import WINDOW_BLOCKS


class Incoming:
    """Tells how messages progress, and of those that are whole."""

    def __init__(
        self,
        me: PeerId,
        *,
        send: Callable[[PeerId, Credit], None],
        happen: Callable[[Event], None],
        holds: Callable[[], bool],
    ) -> None:
        """While `holds`, messages that were told of still wait, in the buffers that they came in."""
        self._me = me
        self._send = send
        self._happen = happen
        self._holds = holds
        self._assemblies: dict[PeerId, Assembly] = {}
        self._spare: Any = None
        """A buffer for the next message: a fresh one of the same size costs a page fault per page."""

    def begin(self, peer: PeerId, message: Bulk) -> None:
        """Take in the blocks that follow this header, in place of what came from this peer before."""
        self._retire(self._assemblies.pop(peer, None))
        try:
            self._assemblies[peer] = Assembly(message, self._buffer(message.layout.nbytes))
        except OSError:  # where any layout is taken, or marks are many
            raise MismatchError(f"no room for {body_bytes(message)} bytes of arrays and marks") from None
        self._happen(Progressed(peer))
        self._complete(peer)

    def add(self, peer: PeerId, frames: list[Bytes]) -> None:
        """Take in a block, and report it where the origin's credit becomes short."""
        block = decode_block(*frames)
        assembly = self._assemblies.get(peer)
        if assembly is None or assembly.message.k != block.k:
            return  # of an answer that was given up
        assembly.add(block)
        received = block.index + 1
        if assembly.complete or received % (WINDOW_BLOCKS // 2) == 0:
            self._send(peer, Credit(self._me, block.k, received))
        self._happen(Progressed(peer))
        self._complete(peer)

    def drop(self, peer: PeerId) -> None:
        """Nothing more will come from this peer."""
        self._assemblies.pop(peer, None)

    def _complete(self, peer: PeerId) -> None:
        if self._assemblies[peer].complete:
            assembly = self._assemblies.pop(peer)
            self._happen(Received(assembly.finish()))
            if not self._holds() and not isinstance(assembly.message, PacketReply):  # which a strategy may keep
                self._retire(assembly)

    def _buffer(self, nbytes: int) -> Any:
        spare, self._spare = self._spare, None
        return spare if spare is not None and len(spare) == nbytes else allocate(nbytes)

    def _retire(self, assembly: Assembly | None) -> None:
        if assembly is not None:
            self._spare = assembly.buffer
