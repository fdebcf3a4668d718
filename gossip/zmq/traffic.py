"""Messages out of sockets and into them: counted, and never waited for.

A message that is not well-formed, or does not fit, is its sender's fault: it is reported, dropped, and harms no other
peer. Where it is sure who sent it, the peer is told whose offence it is (`gossip.trust.offences`).
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from gossip.arrays import Bytes
from gossip.errors import MismatchError, WireError
from gossip.messages import PeerId
from gossip.zmq.figures import Figures

TURN_MESSAGES_MAX = 64
"""Messages taken from one socket before the others have their turn."""


TOLD_MAX = 64
"""Malformed messages of which each is told; of what follows, those whose number is a power of two."""


def is_told(count: int) -> bool:
    """Whether the malformed message with this number, from 1, is one to tell of: somebody may send them without end."""
    return count <= TOLD_MAX or count & (count - 1) == 0


class Traffic:
    """What goes over all sockets of one runtime."""

    def __init__(
        self,
        figures: Figures,
        warn: Callable[[str], None],
        offend: Callable[[PeerId, str], None] = lambda peer, why: None,
    ) -> None:
        """`offend(peer, why)`: this peer sent what nobody may send."""
        self.figures = figures
        self._warn = warn
        self._offend = offend

    def send(self, socket: zmq.Socket[bytes], frames: list[Bytes]) -> bool:
        """Queue it if there is room; what is dropped here is asked for again."""
        try:
            socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        self.figures.bytes_out += sum(len(frame) for frame in frames)
        return True

    def drain(
        self, socket: zmq.Socket[bytes], take: Callable[[list[Bytes]], None], sender: PeerId | None = None
    ) -> None:
        """Take in what has come, up to a limit. `sender`: all of it is surely of this peer."""
        self.drain_frames(socket, lambda frames: take([frame.buffer for frame in frames]), sender)

    def drain_frames(
        self, socket: zmq.Socket[bytes], take: Callable[[list[zmq.Frame]], None], sender: PeerId | None = None
    ) -> None:
        """The same, with what ZeroMQ knows of the frames."""
        for _ in range(TURN_MESSAGES_MAX):
            if socket.closed:  # its peer was put out for what came last
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self.figures.bytes_in += sum(len(frame) for frame in frames)
            self.attempt(lambda: take(frames), sender)  # noqa: B023 - it is called before the next turn

    def attempt(self, take: Callable[[], None], sender: PeerId | None = None) -> None:
        """Take in one message."""
        try:
            take()
        except WireError as error:
            self.refuse(error, sender)
        except MismatchError as error:
            self._warn(f"a message that does not fit was dropped: {error}")

    def refuse(self, error: WireError, sender: PeerId | None = None) -> None:
        """Drop a message that is not well-formed."""
        self.figures.malformed += 1
        if is_told(self.figures.malformed):
            so_far = f" ({self.figures.malformed} so far)" if self.figures.malformed >= TOLD_MAX else ""
            self._warn(f"a malformed message was dropped: {error}{so_far}")
        if sender is not None:
            self._offend(sender, str(error))


def single(frames: list[Bytes]) -> Bytes:
    """The only frame of a message; `WireError` if there are others."""
    if len(frames) != 1:
        raise WireError(f"message of {len(frames)} frames, expected 1")
    return frames[0]
