"""States of a peer, by which a run tells whether it has seen every event in every state.

They are not exclusive: a peer that adopts may be alone at the same time. `docs/RELIABILITY.md` says what each means.
"""

from __future__ import annotations

from gossip.events import Event, Received
from gossip.lanes.peer import Peer
from gossip.membership import Membership, Told
from gossip.messages import Standing

STATES = (
    "level",
    "behind",
    "new",
    "needs",
    "pinning",
    "asking",
    "asked",
    "keeping",
    "alone",
    "missing",
    "forgetting",
    "suspecting",
    "doubting",
    "retaining",
    "closing",
    "watching",
    "congested",
    "draining",
)
"""In the order in which they are told."""


def states(peer: Peer) -> list[str]:
    """All in which it is."""
    lane, adopter, found = peer.replicator, peer.adopter, []
    if not peer.ready:
        found.append("new")
    elif any(origin.n > origin.frontier for origin in lane.origins.values()):
        found.append("behind")
    else:
        found.append("level")
    if adopter.needed or adopter.under_way:
        found.append(adopter.stage)
    if lane.pins:
        found.append("keeping")
        if any(pin.donor == peer.me for pin in lane.pins.values()):
            found.append("asked")
    if peer.members and len(peer.roster.gone) == len(peer.members):
        found.append("alone")
    if peer.roster.gone:
        found.append("missing")
        if any(peer.members[other].forgotten for other in peer.roster.gone):
            found.append("forgetting")
    found += _doubts(peer.membership)
    if peer.units.retained:
        found.append("retaining")
    known = peer.identities
    if known.dropped < known.closed:
        found.append("closing")
    if known._watched:
        found.append("watching")
    if peer.congested:
        found.append("congested")
    if peer.give_up_at is not None:
        found.append("draining")
    return found


def _doubts(membership: Membership | Told) -> list[str]:
    if not isinstance(membership, Membership):
        return []
    found = ["doubting"] if membership.health else []
    if any(contact.standing is Standing.SUSPECTED for contact in membership.contacts.values()):
        found.append("suspecting")
    return found


def name(event: Event) -> str:
    """Of what happens to a peer: of its message, where it gets one."""
    return type(event.message if isinstance(event, Received) else event).__name__
