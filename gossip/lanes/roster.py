"""Peers that a peer knows: members that are introduced, those of them that departed, and lanes of strangers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gossip.errors import hold
from gossip.messages import Advert, PeerId

RETURN_S = 2.0
"""When a cut heals, all who were cut off are heard again within some adverts: nobody is buried before that."""


@dataclass
class Member:
    """Another peer, as far as it is known."""

    reads: bool
    read: bool
    ready: bool = False
    frontiers: Mapping[PeerId, int] = field(default_factory=dict)
    """Of its newest advert."""
    k: int = 0
    """Of the same: an adoption raises it, and may take its frontiers back in lanes of the dead."""
    departed_at: float | None = None
    forgotten: bool = False


class Roster:
    """All others."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.members: dict[PeerId, Member] = {}
        self.gone: set[PeerId] = set()
        """Members that departed; mostly none, and asked for at every event."""
        self.out: dict[PeerId, str] = {}
        """Who was put out, and why: they departed for good."""
        self.strangers: dict[PeerId, float] = {}
        """Lanes that are known while their peers are not, and since when."""
        self.lanes_changed = True
        """There may be other strangers than when it was looked for them."""
        self.smallest_since = float("-inf")
        """For how long no departed peer had a smaller name than all who are here."""
        self._returned_at = float("-inf")
        """When somebody who was taken for dead was heard again."""

    def join(self, peer: PeerId, reads: bool, read: bool) -> None:
        """`peer` is introduced."""
        self.members.setdefault(peer, Member(reads, read))
        self.lanes_changed |= bool(self.strangers)

    def reach(self, peer: PeerId, departed_at: float | None, now: float) -> bool:
        """`peer` departed, or is back; whether it is known."""
        member = self.members.get(peer)
        if member is None or (departed_at is None and peer in self.out):
            return False
        if departed_at is None and member.departed_at is not None:
            self._returned_at = now
        member.departed_at = departed_at
        member.forgotten = False
        if departed_at is None:
            self.gone.discard(peer)
        else:
            self.gone.add(peer)
        self.lanes_changed = True
        return True

    def heard(self, advert: Advert) -> bool:
        """What a member says of itself; whether it is the newest that it said."""
        member = self.members[advert.peer]
        is_newest = advert.k >= member.k  # else it is of before a pull or an adoption
        if is_newest:
            member.ready, member.frontiers, member.k = advert.ready, advert.all_frontiers, advert.k
        unknown = advert.frontiers.keys() - self.members.keys()
        self.lanes_changed |= bool(self.strangers) or not unknown <= {self.me}
        return is_newest

    def alive(self) -> list[PeerId]:
        """Who has not departed."""
        return [peer for peer in self.members if peer not in self.gone]

    def readable(self) -> list[PeerId]:
        """Living peers whose lanes we read."""
        return [peer for peer in self.alive() if self.members[peer].read]

    def donors(self) -> list[PeerId]:
        """Living peers that have a replica."""
        return [peer for peer in self.alive() if self.members[peer].ready]

    def departed(self) -> set[PeerId]:
        """Of whose lanes nothing more comes: members that departed, and strangers."""
        return self.gone | self.strangers.keys()

    def departures(self) -> list[tuple[float, PeerId]]:
        """When each departed, the first one first."""
        return sorted((self._departed_at(peer), peer) for peer in self.gone)

    def _departed_at(self, peer: PeerId) -> float:
        departed_at = self.members[peer].departed_at
        assert departed_at is not None
        return departed_at

    def look_for_strangers(self, lanes: Iterable[PeerId], now: float) -> None:
        """Lanes of peers that nobody introduced: they were dead before we came. `lanes` are those that we know."""
        if not self.lanes_changed:
            return
        self.lanes_changed = False
        known = set(lanes).union(*(self.members[peer].frontiers for peer in self.alive()))
        strangers = known - self.members.keys() - {self.me}
        self.strangers = {lane: self.strangers.get(lane, now) for lane in strangers}

    def dead_lanes(self, settle_s: float, now: float) -> list[PeerId]:
        """Lanes of which all that is under way has come; none as long as a cut may be healing."""
        dead = [lane for lane, since in self.strangers.items() if now >= since + settle_s]
        dead += [peer for peer in self.gone if now >= self._departed_at(peer) + settle_s]
        return dead if now >= self._returned_at + RETURN_S else []

    def is_smallest_since(self, now: float) -> float:
        """Since when our half has the smallest name: a cut's other half must not forget us while we forget it."""
        if not self.gone or min([self.me, *self.alive()]) > min(self.gone):
            self.smallest_since = now  # and not only for the moment in which a cut heals
        return self.smallest_since

    def stands(self, lane: PeerId, settle_s: float, now: float) -> bool:
        """What we have of `lane` will stay: it is alive, or the survivors have agreed on it."""
        member = self.members.get(lane)
        if member is None or member.departed_at is None:
            return True
        return now >= member.departed_at + 3 * settle_s

    def check(self) -> None:
        """What must hold between two events."""
        hold(self.me not in self.members, "nobody is a member to itself", self.me)
        hold(self.me not in self.strangers, "nobody is a stranger to itself", self.me)
        for peer, member in self.members.items():
            departed = member.departed_at is not None
            hold(departed == (peer in self.gone), "gone are those that departed", peer, member, sorted(self.gone))
            hold(departed or not member.forgotten, "only who departed is forgotten", peer, member)
        hold(self.gone <= self.members.keys(), "only members are gone", sorted(self.gone))
        known = self.strangers.keys() & self.members.keys()
        hold(self.lanes_changed or not known, "nobody is a member and a stranger", sorted(known))
