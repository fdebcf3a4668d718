"""What must hold of a peer between two events is looked at, and each rule can be broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from gossip import topology
from gossip.arrays import Packed
from gossip.errors import InvariantError, hold
from gossip.events import Computed, Departed, Exhausted, Initialized, Joined, Received, Resumed, Settling, Started
from gossip.identity import Watched
from gossip.lanes.adopt import Adoption
from gossip.lanes.origin import Pinning, Reader, Segment
from gossip.lanes.peer import Peer, Settings
from gossip.lanes.reader import PullState
from gossip.lanes.replicate import Replicator
from gossip.lanes.units import Retained
from gossip.membership import Contact, Detection, Membership, Probe, Relay
from gossip.messages import Advert, Offer, PacketReply, PeerId, Pin, PingRequest, Pull, Rumor, Standing, Unit
from gossip.mixing import DPsgd, PushSum
from gossip.mixing.course import Phase
from gossip.mixing.neighbors import Plan
from gossip.mixing.packets import Incoming, Outgoing, Waiting
from gossip.mixing.peer import MixPeer, MixSettings
from gossip.mixing.strategy import Packet

ME, A, B, C, X = (PeerId(name) for name in ("b", "a", "c", "d", "x"))
UPDATE = Packed.of({"w": np.ones(3)})


def found(peer: Any) -> str:
    """What it says of itself when it is looked at."""
    with pytest.raises(InvariantError) as caught:
        peer.check()
    return str(caught.value)


def said(rule: str, *values: object) -> str:
    return f"{rule}: {', '.join(map(repr, values))}"


def lanes(**settings: Any) -> Peer:
    """In the middle of things: A reads, B is ahead, C adopts A's replica, and updates may have to be taken back."""
    peer = Peer(ME, UPDATE.layout, Settings(detection=Detection(), **settings), Random(1))
    for other in (A, B, C):
        peer.handle(Joined(other), 0.0)
    peer.handle(Started({}), 0.0)
    for number in range(4):
        peer.handle(Computed(UPDATE, Unit(0, 0, number), 1), 0.1)
        if number == 1:
            peer.handle(Received(Pull(A, 0, 1)), 0.2)
    peer.handle(Received(Pin(C, A, 1)), 0.3)
    peer.handle(Received(Advert(B, 7, {}, k=2)), 0.4)
    peer.check()
    assert len(peer.replicator.segments) == 2
    assert peer.replicator.origins[B].pull is not None
    assert peer.replicator.pins.keys() == {C}
    return peer


def adopting() -> Peer:
    peer = Peer(ME, UPDATE.layout, Settings(), Random(1))
    peer.handle(Started({}, ready=False), 0.0)
    peer.handle(Joined(A, level=False), 0.0)
    peer.handle(Received(Advert(A, 3, {})), 0.1)
    assert peer.adopter.under_way
    peer.check()
    return peer


def departing() -> Peer:
    """A is gone."""
    peer = lanes()
    peer.handle(Departed(A), 0.5)
    peer.check()
    return peer


def adoption(peer: Any) -> Adoption:
    return peer.adopter._adoption


def suspect(peer: Any) -> None:
    peer.membership.contacts[A].standing = Standing.SUSPECTED


def bury(peer: Any) -> None:
    peer.membership.contacts[A].standing, peer.membership.contacts[A].probe = Standing.DEAD, Probe(0, 1.0)


def close(peer: Any) -> None:
    peer.units.close(1)
    peer.units.closing = {A: 0}


def keep_for_nobody(peer: Any) -> None:
    peer.replicator.readers.clear()
    peer.replicator.pins.clear()


def sum_one_by_one(peer: Any) -> None:
    peer.replicator.coalesce = False


def serve_twice(peer: Any) -> None:
    peer.replicator.origins[A].n = 9
    peer.replicator.origins[A].pull = PullState(1.0, B)


def look_late(peer: Any) -> None:
    peer.replicator.looks_at += 1.0


def miss_an_advert(peer: Any) -> None:
    peer.replicator.origins[A].n = 9


def forget_to_admit(peer: Any) -> None:
    peer.replicator.members.discard(B)
    peer.replicator.readers.pop(B)


def forget_to_join(peer: Any) -> None:
    peer.replicator.origins.pop(A)


@pytest.mark.parametrize(
    ("rule", "make", "spoil", "shows"),
    [
        # its own lane
        (
            "segments follow each other, behind what is forgotten",
            lanes,
            lambda p: p.replicator.segments.pop(0),
            lambda p: (0, p.replicator.segments[0]),
        ),
        (
            "no segment is empty",
            lanes,
            lambda p: p.replicator.segments.insert(1, Segment(3, 2)),
            lambda p: (p.replicator.segments[1],),
        ),
        ("nothing is summed without coalesce", lanes, sum_one_by_one, lambda p: (p.replicator.segments[0],)),
        ("segments, or what is forgotten, end at n", lanes, lambda p: setattr(p.replicator, "n", 5), lambda p: (4, 5)),
        ("nothing is kept for nobody", lanes, keep_for_nobody, lambda p: (p.replicator.segments,)),
        (
            "acknowledged <= served <= n",
            lanes,
            lambda p: p.replicator.readers.update({A: Reader(2, 1)}),
            lambda p: (A, Reader(2, 1), 4),
        ),
        (
            "acknowledged <= served <= n",
            lanes,
            lambda p: p.replicator.readers.update({A: Reader(4, 5)}),
            lambda p: (A, Reader(4, 5), 4),
        ),
        (
            "readers stand at boundaries of segments",
            lanes,
            lambda p: p.replicator.readers.update({B: Reader(1, 1)}),
            lambda p: (B, Reader(1, 1), [0, 2, 4]),
        ),
        (
            "readers stand at boundaries of segments",
            lanes,
            lambda p: p.replicator.readers.update({B: Reader(2, 3)}),
            lambda p: (B, Reader(2, 3), [0, 2, 4]),
        ),
        (
            "readers are members",
            lanes,
            lambda p: p.replicator.readers.update({X: Reader(4, 4)}),
            lambda p: ([A, B, C, X], [A, B, C]),
        ),
        (
            "pins are of members",
            lanes,
            lambda p: p.replicator.pins.update({X: Pinning(ME, 1, {4})}),
            lambda p: ([C, X], [A, B, C]),
        ),
        (
            "pins are boundaries of segments",
            lanes,
            lambda p: p.replicator.pins[C].boundaries.add(1),
            lambda p: (C, p.replicator.pins[C], [0, 2, 4]),
        ),
        (
            "pinned is wherever the donor may stand",
            lanes,
            lambda p: p.replicator.pins[C].boundaries.discard(2),
            lambda p: (C, p.replicator.pins[C], p.replicator.readers[A]),
        ),
        # those of others
        ("nobody reads its own lane", lanes, lambda p: p.replicator.read(ME), lambda p: (ME,)),
        (
            "answers are void up to a pull that was made",
            lanes,
            lambda p: setattr(p.replicator, "void", 9),
            lambda p: (9, 1),
        ),
        (
            "no lane is applied beyond what was heard of it",
            lanes,
            lambda p: setattr(p.replicator.origins[A], "frontier", 1),
            lambda p: (A, p.replicator.origins[A]),
        ),
        (
            "no lane is applied beyond what was heard of it",
            lanes,
            lambda p: setattr(p.replicator.origins[A], "frontier", -1),
            lambda p: (A, p.replicator.origins[A]),
        ),
        (
            "only what is ahead is asked for",
            lanes,
            lambda p: setattr(p.replicator.origins[B], "n", 0),
            lambda p: (B, p.replicator.origins[B]),
        ),
        (
            "only who is in reach is asked",
            lanes,
            lambda p: setattr(p.replicator.origins[B], "reachable", False),
            lambda p: (B, p.replicator.origins[B]),
        ),
        ("a source is asked for one lane at a time", lanes, serve_twice, lambda p: (B, p.replicator.origins[B].pull)),
        (
            "pulls_max pulls at the most",
            lanes,
            lambda p: setattr(p.replicator, "pulls_max", 0),
            lambda p: ({B: p.replicator.origins[B].pull}, 0),
        ),
        (
            "who has asked looks again when the first pull is due",
            lanes,
            look_late,
            lambda p: (p.replicator.looks_at, {B: p.replicator.origins[B].pull}),
        ),
        (
            "who does not look has asked for all that is ahead",
            lanes,
            miss_an_advert,
            lambda p: (A, p.replicator.origins[A], p.replicator.looks_at),
        ),
        # who is there
        ("nobody is a member to itself", lanes, lambda p: p.roster.join(ME, True, True), lambda p: (ME,)),
        ("nobody is a stranger to itself", lanes, lambda p: p.roster.strangers.update({ME: 0.0}), lambda p: (ME,)),
        ("gone are those that departed", lanes, lambda p: p.roster.gone.add(A), lambda p: (A, p.members[A], [A])),
        (
            "gone are those that departed",
            departing,
            lambda p: p.roster.gone.discard(A),
            lambda p: (A, p.members[A], []),
        ),
        (
            "only who departed is forgotten",
            lanes,
            lambda p: setattr(p.members[A], "forgotten", True),
            lambda p: (A, p.members[A]),
        ),
        ("only members are gone", lanes, lambda p: p.roster.gone.add(X), lambda p: ([X],)),
        ("nobody is a member and a stranger", lanes, lambda p: p.roster.strangers.update({A: 0.0}), lambda p: ([A],)),
        ("who is gone is away", departing, lambda p: p.replicator.away.clear(), lambda p: ([], [A])),
        ("who is gone is away", lanes, lambda p: p.replicator.away.add(A), lambda p: ([A], [])),
        ("members of the lane are known", lanes, lambda p: p.replicator.members.add(X), lambda p: ([A, B, C, X],)),
        ("who reads is a member of the lane", lanes, forget_to_admit, lambda p: (B, p.members[B])),
        ("lanes of members are read", lanes, forget_to_join, lambda p: (A, p.members[A])),
        (
            "who is not gone is in reach",
            lanes,
            lambda p: setattr(p.replicator.origins[A], "reachable", False),
            lambda p: (A, p.members[A], p.replicator.origins[A]),
        ),
        (
            "who is not gone is in reach",
            departing,
            lambda p: setattr(p.replicator.origins[A], "reachable", True),
            lambda p: (A, p.members[A], p.replicator.origins[A]),
        ),
        # units
        (
            "retained are updates of the own lane",
            lanes,
            lambda p: p.units.retain(5, Unit(0, 0, 0), 1),
            lambda p: (5, p.units.retained[5], 4),
        ),
        (
            "retained are updates of the own lane",
            lanes,
            lambda p: p.units.retain(0, Unit(0, 0, 0), 1),
            lambda p: (0, p.units.retained[0], 4),
        ),
        (
            "no first attempt is retained",
            lanes,
            lambda p: setattr(p.units.retained[1], "attempt", 0),
            lambda p: (1, p.units.retained[1]),
        ),
        (
            "units of retained updates are known",
            lanes,
            lambda p: p.units.retain(1, Unit(0, 9, 9), 1),
            lambda p: (1, p.units.retained[1]),
        ),
        (
            "no unit is retained twice",
            lanes,
            lambda p: p.units.retain(2, Unit(0, 0, 0), 1),
            lambda p: (p.units.retained,),
        ),
        ("only members are awaited", lanes, lambda p: p.units.awaited.add(X), lambda p: ([X],)),
        ("epochs are dropped when all have as much as somebody had", lanes, close, lambda p: ({A: 0},)),
        (
            "no more is awaited than is here",
            lanes,
            lambda p: p.units.closing.update({A: 1}),
            lambda p: (A, 1, {A: 0, B: 0, C: 0, ME: 4}),
        ),
        (
            "no more is awaited than is here",
            lanes,
            lambda p: p.units.closing.update({X: 1}),
            lambda p: (X, 1, {A: 0, B: 0, C: 0, ME: 4}),
        ),
        (
            "who adopts or is gone may lack it",
            departing,
            lambda p: p.units.retained[1].known_to.update({A: 0}),
            lambda p: (1, p.units.retained[1]),
        ),
        (
            "who adopts or is gone may lack it",
            lanes,
            lambda p: p.units.retained[1].known_to.update({C: 0}),
            lambda p: (1, p.units.retained[1]),
        ),
        ("only what is closed is dropped", lanes, lambda p: setattr(p.identities, "dropped", 1), lambda p: (1, 0)),
        ("only what is closed is dropped", lanes, lambda p: setattr(p.identities, "dropped", -1), lambda p: (-1, 0)),
        (
            "nothing is kept of an epoch that is dropped",
            lanes,
            lambda p: vars(p.identities).update(dropped=1, closed=1),
            lambda p: (0, 1),
        ),
        (
            "only units of dropped epochs are watched",
            lanes,
            lambda p: p.identities._watched.update({(0, 0): {0: Watched()}}),
            lambda p: (0, 0, 0),
        ),
        (
            "no partition is watched without a unit",
            lanes,
            lambda p: p.identities._watched.update({(-1, 0): {}}),
            lambda p: (-1, 0),
        ),
        # adoption
        (
            "nothing is applied while a replica is adopted",
            adopting,
            lambda p: setattr(p.replicator, "frozen", False),
            lambda p: (False, adoption(p)),
        ),
        ("who has no replica needs one", adopting, lambda p: setattr(p.adopter, "needed", False), lambda p: ()),
        (
            "a donor is preferred where one is needed",
            lanes,
            lambda p: setattr(p.adopter, "preferred", A),
            lambda p: (A,),
        ),
        (
            "nobody adopts its own replica",
            adopting,
            lambda p: setattr(adoption(p), "donor", ME),
            lambda p: (adoption(p),),
        ),
        (
            "an adoption has the newest k",
            adopting,
            lambda p: setattr(p.replicator, "k", 7),
            lambda p: (adoption(p), 0, 7),
        ),
        (
            "an adoption has the newest k",
            adopting,
            lambda p: setattr(p.replicator, "void", 1),
            lambda p: (adoption(p), 1, 1),
        ),
        (
            "pins are awaited of those that were asked",
            adopting,
            lambda p: adoption(p).missing.add(X),
            lambda p: (adoption(p),),
        ),
        # membership
        ("nobody watches itself", lanes, lambda p: p.membership.contacts.update({ME: Contact(0.0)}), lambda p: (ME,)),
        ("doubts have bounds", lanes, lambda p: setattr(p.membership, "health", 9), lambda p: (9,)),
        ("doubts have bounds", lanes, lambda p: setattr(p.membership, "health", -1), lambda p: (-1,)),
        ("what is not told yet is a rumor", lanes, lambda p: p.membership._untold.add(X), lambda p: ({X}, {})),
        ("somebody suspects whoever is suspected", lanes, suspect, lambda p: (A, p.membership.contacts[A])),
        ("the dead are not pinged", lanes, bury, lambda p: (A, p.membership.contacts[A])),
        (
            "pings are numbered",
            lanes,
            lambda p: setattr(p.membership.contacts[A], "probe", Probe(5, 1.0)),
            lambda p: (A, p.membership.contacts[A], 0),
        ),
        (
            "pings for others are numbered",
            lanes,
            lambda p: p.membership._relays.update({5: Relay(A, 1, B, 1.0)}),
            lambda p: ({5: Relay(A, 1, B, 1.0)}, 0),
        ),
        (
            "rumors are told until they are done",
            lanes,
            lambda p: p.membership._rumors.update({A: (Rumor(A, Standing.ALIVE, 0, A), 0)}),
            lambda p: (A, Rumor(A, Standing.ALIVE, 0, A), 0),
        ),
        (
            "rumors are told until they are done",
            lanes,
            lambda p: p.membership._rumors.update({A: (Rumor(B, Standing.ALIVE, 0, A), 1)}),
            lambda p: (A, Rumor(B, Standing.ALIVE, 0, A), 1),
        ),
    ],
)
def test_a_peer_with_lanes_finds_what_is_wrong(
    rule: str, make: Callable[[], Peer], spoil: Callable[[Any], object], shows: Callable[[Any], tuple[object, ...]]
) -> None:
    peer = make()
    spoil(peer)
    assert found(peer) == said(rule, *shows(peer))


def test_what_is_at_its_bound_is_in_order() -> None:
    """As many pulls as may be, while one more lane is ahead; the most doubt; the newest ping for another; one dead."""
    peer = lanes(pulls_max=1)
    peer.handle(Received(Advert(A, 9, {}, k=1)), 0.5)
    peer.handle(Received(PingRequest(B, 1, C)), 0.5)
    assert peer.replicator.origins[A].pull is None
    assert isinstance(peer.membership, Membership)
    assert peer.membership._relays.keys() == {peer.membership._k}
    peer.membership.health = Detection().health_max
    peer.membership.contacts[A].standing = Standing.DEAD
    peer.check()


def test_what_is_under_way_is_needed() -> None:
    """Also where there is a replica already."""
    peer = adopting()
    peer.adopter._has_replica, peer.adopter.needed = True, False
    assert found(peer) == said("what is under way is needed", adoption(peer))


def test_who_has_no_replica_looks_for_one() -> None:
    peer = adopting()
    peer.adopter.__dict__.update(_has_replica=True, needed=False, _adoption=None)
    peer.replicator.frozen = False
    assert found(peer) == "who has no replica looks for one: "


def test_where_nobody_adopts_nothing_waits() -> None:
    peer = Peer(ME, UPDATE.layout)
    peer.replicator.frozen = True
    assert found(peer) == "all that comes is applied where nobody adopts: "


# ------------------------------------------------------------------------------------------------------------ mixing


def introduced(strategy: Any) -> MixPeer:
    peer = MixPeer(ME, UPDATE.layout, Plan(topology.ring, strategy), np.random.default_rng(0), MixSettings())
    for other in (A, B):
        peer.handle(Joined(other), 0.0)
    peer.handle(Initialized(UPDATE), 0.0)
    peer.handle(Resumed(1), 0.0)
    return peer


def mixing() -> MixPeer:
    """Its round is open, with a step; another step waits."""
    peer = introduced(DPsgd())
    for now in (0.1, 0.2):
        peer.handle(Computed(UPDATE), now)
    peer.handle(Received(Offer(A, 1, {ME: 1})), 0.3)
    peer.check()
    assert peer._open is not None
    assert len(peer.steps) == 1
    assert peer.mailbox.waits(A)
    return peer


def resting() -> MixPeer:
    peer = introduced(PushSum())
    peer.handle(Exhausted(9.0), 0.4)
    peer.check()
    return peer


class OutOfStep(DPsgd):
    """Has rounds of its own pace."""

    synchronous = False


def waiting(n: int) -> Waiting:
    return Waiting(n, 0, Packet({}, {}), False, 0)


def early(peer: MixPeer) -> None:
    peer.mailbox.early[A] = PacketReply(A, 5, 5, 0, 1)


@pytest.mark.parametrize(
    ("rule", "make", "spoil", "shows"),
    [
        ("rounds are of their era", mixing, lambda p: setattr(p.course, "_first", 9), lambda p: (p.course.rounds, 9)),
        (
            "a training is completed while it settles",
            mixing,
            lambda p: setattr(p.course, "settling", Settling()),
            lambda p: (Phase.TRAINING, Settling()),
        ),
        (
            "only who rests drains",
            resting,
            lambda p: setattr(p.course, "phase", Phase.TRAINING),
            lambda p: (Phase.TRAINING, 9.4),
        ),
        ("who has tasks is not idle", mixing, lambda p: setattr(p.course, "tasks", 1), lambda p: (1, p.course.idle_at)),
        ("rounds that moved nothing are counted", mixing, lambda p: setattr(p.course, "still", -1), lambda p: (-1,)),
        (
            "steps wait in the order of their numbers",
            mixing,
            lambda p: p.steps._pending.append((1, np.ones(3))),
            lambda p: (2, 1, 2),
        ),
        (
            "steps wait in the order of their numbers",
            mixing,
            lambda p: setattr(p.steps, "handed", 1),
            lambda p: (0, 2, 1),
        ),
        (
            "nobody sends packets to itself",
            mixing,
            lambda p: p.mailbox.outgoing.update({ME: Outgoing()}),
            lambda p: (ME,),
        ),
        (
            "packets wait in the order of their numbers",
            mixing,
            lambda p: p.mailbox.outgoing[A].waiting.append(waiting(1)),
            lambda p: (A, 1, 1),
        ),
        (
            "the newest packet that waits is number n",
            mixing,
            lambda p: setattr(p.mailbox.outgoing[A], "n", 9),
            lambda p: (A, 1, 9),
        ),
        (
            "who waits for a packet is given it when there is one",
            mixing,
            lambda p: setattr(p.mailbox.outgoing[A], "owed_k", 1),
            lambda p: (A, 1),
        ),
        (
            "requests are numbered",
            mixing,
            lambda p: p.mailbox.incoming.update({B: Incoming(k=9)}),
            lambda p: (B, Incoming(k=9), p.mailbox._k),
        ),
        ("only owners of packets are to be asked", mixing, lambda p: p.mailbox._asking.add(X), lambda p: ([X],)),
        ("only owners of packets are asked", mixing, lambda p: p.mailbox._asked.update({X: 0.0}), lambda p: ([A, X],)),
        (
            "requests_max requests at the most",
            mixing,
            lambda p: setattr(p.mailbox, "_requests_max", 0),
            lambda p: ([A],),
        ),
        ("no more is asked for before an early packet is taken in", mixing, early, lambda p: (A, 5, 0)),
        ("one lives to itself", mixing, lambda p: setattr(p.neighbors, "live", (A, B)), lambda p: (ME, (A, B))),
        ("places go by name", mixing, lambda p: setattr(p.neighbors, "live", (B, ME, A)), lambda p: ((B, ME, A),)),
        (
            "the topology has a place for its owner",
            mixing,
            lambda p: setattr(p.neighbors, "_planned", (A, B)),
            lambda p: (ME, (A, B)),
        ),
        (
            "the replica has the size of the model",
            mixing,
            lambda p: setattr(p.mixer, "state", p.mixer.strategy.start(np.ones(9))),
            lambda p: ((9,), 3),
        ),
        (
            "steps are learned, wait, or are gated",
            mixing,
            lambda p: setattr(p.figures, "gated", 1),
            lambda p: ((1, 1, 1), 2),
        ),
        ("who departed is nobody's neighbor", mixing, lambda p: p._departed.add(A), lambda p: ([A],)),
        ("a state is not younger than its era", mixing, lambda p: setattr(p, "_born", 2), lambda p: (2, 1)),
        (
            "only rounds in step stay open",
            mixing,
            lambda p: setattr(p.mixer, "acting", OutOfStep()),
            lambda p: (p.mixer.acting, p._open.number),
        ),
        (
            "the open round is the one begun last",
            mixing,
            lambda p: setattr(p.course, "rounds", p.course.rounds + 1),
            lambda p: (p._open.place, p.place),
        ),
        (
            "the step of the open round does not wait any more",
            mixing,
            lambda p: setattr(p._open, "taking", 2),
            lambda p: (2, 2, 1),
        ),
    ],
)
def test_a_peer_that_mixes_finds_what_is_wrong(
    rule: str, make: Callable[[], MixPeer], spoil: Callable[[Any], object], shows: Callable[[Any], tuple[object, ...]]
) -> None:
    peer = make()
    spoil(peer)
    assert found(peer) == said(rule, *shows(peer))


# --------------------------------------------------------------------------------------------------------- the error


def test_the_error_says_which_rule_and_the_values() -> None:
    with pytest.raises(InvariantError, match=r"lanes end: 'a', Retained.*attempt=2") as caught:
        hold(False, "lanes end", A, Retained(Unit(0, 1, 2), 2))
    assert isinstance(caught.value, AssertionError)


def test_a_lane_can_be_looked_at_without_its_peer() -> None:
    lane = Replicator(ME, pull_timeout_s=1.0, pulls_max=1, coalesce=True)
    lane.join(A, reads=True, read=True, level=True)
    lane.publish(UPDATE, ())
    lane.check()
    lane.segments = [replace(lane.segments[0], hi=2)]
    assert found(lane) == "segments, or what is forgotten, end at n: 2, 1"
