"""Whose updates are merged: the others of a swarm judge a peer that lies, or is broken, and put it out by majority.

own      absurd  -> an update of zeros takes its place, and others hear how long it was
other's  within  -> merged
         beyond  -> held --others are as long by now, or most have merged it--> merged
                      +----others went on, and are not----> refused --most refuse it--> put out

A range is merged whole or not at all, so a replica stays the initial model and a prefix of each lane, and all replicas
come to hold the same prefixes. If each receiver shortened what it takes for too long, each would add another sum, since
each gets the updates of a lane in other sums. Adverts say which lanes a peer refuses. Who is refused by most others
that live has departed for good: the survivors agree on a prefix of its lane, as they do of the dead, but on the middle
one of those that they have and not on the longest. Who is refused by few is merged by these, too, once half have it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gossip.arrays import Layout, Payload
from gossip.errors import hold
from gossip.events import PutOut
from gossip.fields import REFUSED_MAX
from gossip.lanes.replicate import Replicator
from gossip.lanes.roster import Roster
from gossip.messages import Advert, PeerId, Range
from gossip.trust.norms import AUTO, ORIGIN_FACTOR, READER_FACTOR, ROUNDING, WITNESSES_MIN, Limits, Norms
from gossip.trust.offences import Offences
from gossip.updates import norm
from gossip.updates.table import Kinds


@dataclass
class Held:
    """A range that is not merged, as it is too long."""

    lo: int
    hi: int
    norm: float
    fresh: set[PeerId] = field(default_factory=set)
    """Lanes of which something was heard since."""
    refused: bool = False


class Conduct:
    """What one peer holds against others, and what it hears that these do."""

    def __init__(self, me: PeerId, replicator: Replicator, roster: Roster, limits: Limits, kinds: Kinds) -> None:
        self.norms = Norms()
        self.offences = Offences()
        self.held: dict[PeerId, Held] = {}
        """By lane."""
        self.refused: Counter[PeerId] = Counter()
        """Updates, by lane."""
        self.left_out = 0
        """Own updates that were not published;"""
        self.norm_left_out = 0.0
        """and the norm of the newest own update, if it was not."""
        self.exempt: set[PeerId] = set()
        """Lanes of the user's own updates, which may be of any length."""
        self.suspended = False
        """Whatever comes is merged."""
        self.closing = False
        """No more updates are computed: who is held is judged by what is known."""
        self._me = me
        self._replicator = replicator
        self._roster = roster
        self._limits = limits
        self._kinds = kinds
        self._votes: dict[PeerId, frozenset[PeerId]] = {}
        """Whom each other peer refuses, as it said last, if anybody."""
        self._said: tuple[PeerId, ...] = ()

    # ----------------------------------------------------------------------------------------------- what is looked at

    def leaves_out(self, payload: Payload, model: Layout | None) -> bool:
        """Whether an own update is too long to be published."""
        if not self._limits.holds or model is None or self.suspended:
            return False
        length = norm(payload, model, self._kinds)
        leaves_out = self._may_be(self._me, length, 1, ORIGIN_FACTOR) is False
        self._note(self._me, length, 1, sent=not leaves_out)
        self.left_out += leaves_out
        self.norm_left_out = length if leaves_out and math.isfinite(length) else 0.0
        return leaves_out

    def admits(self, message: Range, model: Layout | None) -> bool:
        """Whether this range, which is the next of its lane, may be merged now."""
        lane, updates = message.of, message.hi - message.lo + 1
        if not (self._limits.holds or self._limits.watches) or model is None or lane in self.exempt or self.suspended:
            self.held.pop(lane, None)
            return True
        held = self.held.get(lane)
        assert message.payload is not None
        length = norm(message.payload, model, self._kinds)
        if held is None or held.hi != message.hi:
            self._note(lane, length, updates)
            held = Held(message.lo, message.hi, length)
        if not self._limits.holds or self._admits(lane, held):
            self.held.pop(lane, None)
            return True
        self.held[lane] = held
        self._replicator.keep_back(lane, True)
        return False

    def _note(self, lane: PeerId, length: float, updates: int, sent: bool = True) -> None:
        self.norms.note(lane, length, updates, sent)
        self._is_fresh(lane)

    def _is_fresh(self, lane: PeerId) -> None:
        for other, held in self.held.items():
            if other != lane:
                held.fresh.add(lane)

    def _may_be(self, lane: PeerId, length: float, updates: int, factor: float) -> bool | None:
        """Whether a sum of so many updates of `lane` may be so long; None if nobody says what is usual."""
        limit = self._limits.norm_max
        if limit == AUTO:
            usual = self.norms.usual(lane)
            return None if usual is None else length <= updates * factor * usual
        assert isinstance(limit, int | float)
        return length <= updates * limit * (1.0 + ROUNDING)

    def _admits(self, lane: PeerId, held: Held) -> bool:
        fits = self._may_be(lane, held.norm, held.hi - held.lo + 1, READER_FACTOR)
        if fits is None:  # nobody to compare with
            fits = self.closing or not self._others(lane)
        return fits or self._is_overruled(lane, held)

    def _others(self, lane: PeerId) -> set[PeerId]:
        """Whose lanes may tell what is usual, but for `lane`."""
        reads = any(member.reads for member in self._roster.members.values())
        return {*self._roster.readable(), *([self._me] if reads else [])} - {lane}

    def _is_conclusive(self, lane: PeerId, held: Held) -> bool:
        """Others have gone on since, and know no such length."""
        if self._limits.norm_max != AUTO:
            return True
        known = self.norms.known(lane)
        if self.closing:
            return bool(known)
        return len(known) >= min(WITNESSES_MIN, len(self._others(lane))) and 2 * len(held.fresh & known) > len(known)

    # ------------------------------------------------------------------------------------------------------- the votes

    def offend(self, peer: PeerId, why: str) -> list[PutOut]:
        """`peer` broke the protocol: once too often, and it is put out here, whatever others hold of it."""
        if peer == self._me or peer not in self._roster.members:
            return []
        enough = self.offences.offend(peer, why)
        return [] if enough is None else [PutOut(peer, enough)]

    def heard(self, advert: Advert) -> None:
        """Whom a peer refuses, and how long its updates have become."""
        if advert.left_out and self.norms.claims(advert.peer, advert.n, advert.left_out):
            self._is_fresh(advert.peer)
        if advert.refuses:
            self._votes[advert.peer] = frozenset(advert.refuses)
        else:
            self._votes.pop(advert.peer, None)

    def refuses(self) -> tuple[PeerId, ...]:
        """Whom we refuse, to be told with each advert; those first who are not put out yet."""
        refused = sorted(lane for lane, held in self.held.items() if held.refused)
        if not refused and not self._roster.out:
            return ()
        return (*refused, *sorted(self._roster.out.keys() - {self._me, *refused}))[:REFUSED_MAX]

    def judge(self) -> list[PutOut]:
        """Look again at what is held, and count who is refused by most."""
        if not (self.held or self._votes):
            return []
        for lane, held in self.held.items():
            admits = self._admits(lane, held)
            self._replicator.keep_back(lane, not admits)
            refused = not admits and self._is_conclusive(lane, held)
            if refused and not held.refused:
                self.refused[lane] += held.hi - held.lo + 1
            held.refused = refused
        mine = self.refuses()
        verdicts: list[PutOut] = []
        for lane in self._accused(mine):
            voters = self._voters(lane)
            against = [voter for voter in voters if lane in (mine if voter == self._me else self._votes.get(voter, ()))]
            if 2 * len(against) > len(voters):
                verdicts.append(
                    PutOut(lane, f"{len(against)} of {len(voters)} others refuse its updates{self._why(lane)}")
                )
        return verdicts

    def _accused(self, mine: Collection[PeerId]) -> list[PeerId]:
        """Whom somebody refuses, of all that are known and not put out yet."""
        named = {*mine, *(each for votes in self._votes.values() for each in votes)} - self._roster.out.keys()
        return sorted(named & {self._me, *self._roster.members, *self._roster.strangers})

    @property
    def news(self) -> bool:
        """We refuse others than we said last."""
        return self.refuses() != self._said

    def said(self) -> tuple[PeerId, ...]:
        """What an advert says now."""
        self._said = self.refuses()
        return self._said

    def put_out(self, peer: PeerId) -> None:
        """Nothing of this peer counts any more."""
        self._votes.pop(peer, None)
        self.norms.forget(peer)
        self._release(peer)

    def adopted(self) -> None:
        """Another's replica has taken the place of ours: what was held may be in it, or follow it no more."""
        for lane in list(self.held):
            self._release(lane)

    def begin_anew(self) -> None:
        """The updates so far are everywhere; those of the next training may be of another length."""
        self.norms.begin_anew()
        self.closing = False

    def _release(self, lane: PeerId) -> None:
        if self.held.pop(lane, None) is not None:
            self._replicator.keep_back(lane, False)

    def _voters(self, lane: PeerId) -> list[PeerId]:
        """All who live and have a replica, but the one that it is about."""
        return [peer for peer in (self._me, *self._roster.donors()) if peer != lane]

    def _is_overruled(self, lane: PeerId, held: Held) -> bool:
        """At least half of the others have merged it: to be level with them, so do we."""
        voters = self._voters(lane)
        merged = [peer for peer in voters if peer != self._me and self._has(peer, lane, held.hi)]
        return bool(merged) and 2 * len(merged) >= len(voters)

    def _has(self, peer: PeerId, lane: PeerId, number: int) -> bool:
        return self._roster.members[peer].frontiers.get(lane, 0) >= number

    def _why(self, lane: PeerId) -> str:
        held, usual = self.held.get(lane), self.norms.usual(lane)
        if held is None:
            return ""
        beside = f", where those of others have {usual:.3g}" if usual is not None else ""
        return f": {held.lo}..{held.hi} have the norm {held.norm:.3g}{beside}"

    # -------------------------------------------------------------------------------------------------- the survivors

    def donor(self, ranks: Mapping[PeerId, Mapping[PeerId, int]], dead: Collection[PeerId]) -> PeerId:
        """Whose replica survivors come to have, as far as the lanes of the dead go: of those that were put out the
        middle frontier counts, which most had not taken for absurd, and of all others the one that is furthest."""
        out = [lane for lane in dead if lane in self._roster.out]
        middle = {lane: statistics.median_low(front.get(lane, 0) for front in ranks.values()) for lane in out}
        others = [lane for lane in dead if lane not in self._roster.out]

        def rank(peer: PeerId) -> tuple[int, int, PeerId]:
            front = ranks[peer]
            apart = sum(abs(front.get(lane, 0) - middle[lane]) for lane in out)
            return -apart, sum(front.get(lane, 0) for lane in others), peer

        return max(ranks, key=rank)

    def check(self) -> None:
        """What must hold between two events."""
        hold(self._me not in self._roster.out or not self.held, "who is put out judges nobody", self.held)
        hold(self.held.keys() <= self._replicator.origins.keys(), "held are lanes that are read", sorted(self.held))
        hold(self.held.keys().isdisjoint(self._roster.out), "who is put out is not held", sorted(self.held))
        for lane, held in self.held.items():
            hold(held.hi > self._replicator.origins[lane].frontier, "what is held is not merged", lane, held)
