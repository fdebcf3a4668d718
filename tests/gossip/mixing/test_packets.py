"""What waits on a link until it is taken."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.arrays import Packed
from gossip.errors import MismatchError
from gossip.messages import PeerId
from gossip.mixing.packets import Incoming, Outgoing, check_packet, check_result, check_size, open_packet
from gossip.mixing.strategy import Packet


def packet(value: float) -> Packet:
    return Packet({"x": np.array([value, 0.5])}, {"n": value})


def test_packets_are_numbered_and_taken_in_order_and_tell_what_they_had_learned() -> None:
    link = Outgoing()
    for at in range(3):
        link.put(at, packet(at), 10 * at, answers=False, replaces=False)
    link.put(3, packet(3), 30, answers=True, replaces=False)
    assert [(each.n, each.round, each.answers, each.computed) for each in link.waiting] == [
        (1, 0, False, 0),
        (2, 1, False, 10),
        (3, 2, False, 20),
        (4, 3, True, 30),
    ]
    assert link.taken(0) == 0
    assert link.last is None
    assert link.taken(2) == 10
    assert link.last is not None
    assert link.last.scalars["n"] == 1
    assert link.taken(2) == 0
    assert link.taken(9) == 30
    assert link.last.scalars["n"] == 2, "an answer begins no round"
    assert not link.waiting
    link.put(4, packet(4), 0, answers=False, replaces=True)
    assert (link.n, link.waiting[0].n) == (5, 5)


def test_a_newer_one_takes_the_place_of_the_last_of_its_kind() -> None:
    link = Outgoing()
    link.put(0, packet(0), 0, answers=False, replaces=True)
    link.put(0, packet(1), 0, answers=True, replaces=True)
    link.put(1, packet(2), 0, answers=True, replaces=True)
    assert [each.n for each in link.waiting] == [1, 3]
    link.put(1, packet(3), 0, answers=False, replaces=True)
    assert [each.n for each in link.waiting] == [3, 4]


def test_a_packet_arrives_as_it_was_sent() -> None:
    link = Outgoing()
    link.put(7, packet(2.5), 3, answers=True, replaces=False)
    reply = link.waiting[0].reply(PeerId("owner"), 9, 4)
    assert (reply.peer, reply.n, reply.newest, reply.round, reply.k) == (PeerId("owner"), 1, 9, 7, 4)
    assert reply.layout == reply.payload.layout  # type: ignore[union-attr]
    opened = open_packet(reply)
    assert dict(opened.scalars) == {"n": 2.5}
    assert {name: array.tolist() for name, array in opened.arrays.items()} == {"x": [2.5, 0.5]}


def test_what_is_no_packet_of_this_model_is_refused() -> None:
    check_packet(packet(1.0), {"x", "y"}, 2)
    check_packet(Packet({"part": np.ones(5), "x": np.ones(2)}), {"x"}, 2)
    with pytest.raises(MismatchError, match=r"'x' of a packet: shape \(2,\), expected \(3,\)"):
        check_packet(packet(1.0), {"x"}, 3)
    with pytest.raises(MismatchError, match=r"'y' of a packet"):
        check_packet(Packet({"part": np.ones(5), "x": np.ones(2), "y": np.ones((1, 2))}), {"x", "y"}, 2)
    with pytest.raises(MismatchError, match="'x': 1 of 2 numbers are NaN"):
        check_packet(packet(float("nan")), set(), 2)
    check_result(np.ones(2), 2)
    for wrong in (np.ones(3), np.ones((2, 1))):
        with pytest.raises(MismatchError, match="a packet makes a replica of shape"):
            check_result(wrong, 2)
    layout = Packed.of({"x": np.ones(2)}).layout
    check_size(layout, layout.nbytes)
    with pytest.raises(MismatchError, match=f"a packet of {layout.nbytes} bytes, expected at most {layout.nbytes - 1}"):
        check_size(layout, layout.nbytes - 1)


def test_nothing_was_heard_at_first() -> None:
    assert Incoming() == Incoming(0, 0, 0, float("-inf"), None)
