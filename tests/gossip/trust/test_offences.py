"""At the third offence, and only then, a peer is put out."""

from __future__ import annotations

from gossip.messages import PeerId
from gossip.trust.offences import OFFENCES_MAX, Offences

A, B = PeerId("a"), PeerId("b")


def test_the_third_offence_is_one_too_often_and_each_peer_has_its_own() -> None:
    offences = Offences()
    said = [offences.offend(A, f"number {number}") for number in range(OFFENCES_MAX + 2)]
    assert [why is not None for why in said] == [False, False, True, False, False]
    assert said[2] == "it broke the protocol 3 times, at last so: number 2"
    assert offences.offend(B, "once") is None
    assert offences.counts == {A: 5, B: 1}
