"""A replica, fetched from a peer outside of any swarm: to begin with it, or to see how far it is from others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import zmq

from gossip.arrays import Bytes
from gossip.errors import UsageError, WireError
from gossip.messages import Credit, State, StateRequest
from gossip.wire import block_count, block_span, body_bytes, decode_block, decode_header, encode_header, with_marks
from gossip.zmq.sockets import WINDOW_BLOCKS, Keys, fingerprint, open_socket


def fetch_state(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    begin: Callable[[State], Callable[[int, Bytes], None]],
    *,
    timeout_s: float,
    key: str | None = None,
    retry_s: float = 3.0,
) -> State:
    """Ask the peer at `endpoint` (of pulls), who has this public `key`, for its replica, outside of any swarm. Of a
    quiet peer, it is consistent.

    `begin(header)` is called when the answer begins (again, if it was interrupted) and returns what takes each block,
    `(first byte, bytes)`. Returns the header, with the marks. `UsageError` when nothing comes within `timeout_s`.
    """
    give_up = time.monotonic() + timeout_s
    keys = Keys.generate()
    me = fingerprint(keys.public)
    k = 0
    state: State | None = None
    take: Callable[[int, Bytes], None] | None = None
    received = 0
    table = bytearray()
    with open_socket(context, zmq.DEALER, None if key is None else keys, server_key=key) as dealer:
        dealer.connect(endpoint)
        while time.monotonic() < give_up:
            k += 1
            try:
                dealer.send(encode_header(StateRequest(me, k)), zmq.NOBLOCK)
            except zmq.Again:
                pass  # earlier requests still wait for a connection
            while dealer.poll(math.ceil(min(retry_s, max(0.0, give_up - time.monotonic())) * 1e3)):
                frames: list[Bytes] = [frame.buffer for frame in dealer.recv_multipart(copy=False)]
                try:
                    message = decode_header(frames[0]) if len(frames) == 1 else None
                    block = decode_block(*frames) if len(frames) == 2 else None
                except WireError:
                    continue  # asked for again
                if isinstance(message, State):  # to whichever request: a slow one answers after it was asked again
                    state, take, received, table = message, begin(message), 0, bytearray()
                elif block is not None and state is not None and take is not None:
                    start, stop = block_span(body_bytes(state), received)
                    if block.k == state.k and block.index == received and len(block.data) == stop - start > 0:
                        if start < state.layout.nbytes:
                            take(start, memoryview(block.data)[: state.layout.nbytes - start])
                        table += memoryview(block.data)[max(0, state.layout.nbytes - start) :]
                        received += 1
                        if received % (WINDOW_BLOCKS // 2) == 0 or received == block_count(body_bytes(state)):
                            dealer.send(encode_header(Credit(me, state.k, received)))
                if state is not None and received == block_count(body_bytes(state)):
                    try:
                        return with_marks(state, table)
                    except WireError:
                        state = None  # asked for again
            retry_s *= 2  # it begins anew when it is asked again: the time to begin must not always be too short
    raise UsageError(
        f"no replica came from {endpoint} within {timeout_s:g} s: is the process alive and the port "
        "reachable from here?"
    )
