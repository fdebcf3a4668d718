"""Ranges as open files, without a link."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import MismatchError
from gossip.messages import PeerId, Range
from gossip.updates import KINDS
from gossip.wire import BLOCK_BYTES
from gossip.zmq import handover, same_host
from gossip.zmq.figures import Figures

pytestmark = [pytest.mark.sockets, pytest.mark.skipif(sys.platform != "linux", reason="there are no links")]

LARGE = {"w": np.zeros(3 * BLOCK_BYTES // 8)}


def test_a_file_that_cannot_be_kept_is_dropped(out_of_descriptors: Any) -> None:
    message = Range(PeerId("rogue"), 1, 1, 1, layout=Layout.of(LARGE))
    packed = Packed.of(LARGE)
    descriptor = same_host.small_file(packed.buffer)
    packet = same_host.Packet(b"", (same_host.Part(descriptor),))
    with out_of_descriptors(), pytest.raises(MismatchError, match="no room for another open file"):
        handover.received(message, packet, KINDS, Figures())
    packet.close()
