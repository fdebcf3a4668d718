"""Lanes, at a peer that reads them: how far each is applied here, and which peer is asked for the rest.

behind --pull to the lane's source--> asked --range--> applied
                                        |
                                        +---- time is up ----> behind
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossip.errors import hold
from gossip.events import Deliver, Effect, Send
from gossip.lanes.source import Source, owner
from gossip.messages import PeerId, Pull, Range


@dataclass
class PullState:
    """A pull under way."""

    due: float
    """When to give it up and ask again."""
    source: PeerId
    """Of whom it was asked."""


@dataclass
class Origin:
    """What a reader knows of one lane it reads."""

    frontier: int
    n: int
    """How far the lane was when last heard of."""
    pulled_at: float = float("-inf")
    """When it was last asked: who waited longest is asked first."""
    pull: PullState | None = None
    reachable: bool = True
    """False while its peer is taken for dead."""
    kept_back: bool = False
    """What comes next is here, and is not to be merged yet."""


class LaneReader:
    """All lanes that one peer reads."""

    def __init__(self, me: PeerId, *, pull_timeout_s: float, pulls_max: int, source: Source = owner) -> None:
        """`source` says who is asked for a lane."""
        self.me = me
        self.pull_timeout_s = pull_timeout_s
        self.pulls_max = pulls_max
        self.origins: dict[PeerId, Origin] = {}
        """By lane."""
        self.frozen = False
        """An adoption is under way: nothing is pulled or applied, own updates go on."""
        self.k = 0
        """Of the newest pull or pin, to whomever, or one more since the pin is not needed any more."""
        self.void = 0
        """Answers to pulls up to this k are not applied: they are of before an adoption, done or given up. One may
        begin right after the frontier all the same, and end where the origin keeps no boundary any more."""
        self.looks_at = float("-inf")
        """Before that time there is nobody to ask who was not asked at the last look: when the first pull under way is
        to be given up. Minus infinity when something changed since that look."""
        self._source = source
        self._asked: dict[PeerId, PeerId] = {}
        """For which lane each source was asked last."""

    def start(self, frontiers: Mapping[PeerId, int]) -> None:
        """The replica stands at `frontiers`; lanes not named there are read from their beginning."""
        for lane, frontier in frontiers.items():
            if lane != self.me:
                origin = self.origins.setdefault(lane, Origin(0, 0))
                origin.frontier, origin.n, origin.pull = frontier, max(origin.n, frontier), None
        for lane, origin in self.origins.items():
            if lane not in frontiers:
                origin.frontier, origin.pull = 0, None
        self.looks_at = float("-inf")

    def read(self, lane: PeerId) -> None:
        """`lane` is read from now on."""
        self.origins.setdefault(lane, Origin(0, 0))

    def reached(self, lane: PeerId, reachable: bool) -> None:
        """The owner of `lane` answers, or is taken for dead."""
        if lane in self.origins:
            self.origins[lane].reachable = reachable
            self.origins[lane].pull = None
        self.looks_at = float("-inf")

    def keep_back(self, lane: PeerId, kept: bool) -> None:
        """Do not ask for more of `lane`, or do so again."""
        origin = self.origins.get(lane)
        if origin is not None and (origin.kept_back != kept or (kept and origin.pull is not None)):
            origin.kept_back, origin.pull = kept, None
            self.looks_at = float("-inf")

    def heard(self, peer: PeerId, n: int) -> None:
        """`peer`'s lane stands at `n` or beyond."""
        origin = self.origins.get(peer)
        if origin is not None and n > origin.n:
            if origin.n <= origin.frontier:  # else it is asked already, or waits for its turn
                self.looks_at = float("-inf")
            origin.n = n

    def on_range(self, message: Range) -> list[Effect]:
        """Apply it if it begins right after the frontier; a repeated or overtaken one changes nothing."""
        if not self.is_next(message):
            return []
        origin = self.origins[message.of]
        assert message.payload is not None
        origin.frontier = message.hi
        origin.n = max(origin.n, message.hi)
        origin.pull = None
        self.looks_at = float("-inf")
        return [Deliver(message.of, message.lo, message.hi, message.payload)]

    def is_next(self, message: Range) -> bool:
        """This range would be applied."""
        origin = self.origins.get(message.of)
        is_behind = origin is not None and message.lo == origin.frontier + 1
        return is_behind and not self.frozen and message.k > self.void and message.peer == self._source(message.of)

    def progressed(self, peer: PeerId, now: float) -> None:
        """Part of the answer came in: grant it another time-out."""
        origin = self.origins.get(self._asked[peer]) if peer in self._asked else None
        if origin is not None and origin.pull is not None:
            origin.pull.due = now + self.pull_timeout_s
            self.looks_at = float("-inf")

    def pulls(self, now: float) -> list[Effect]:
        """Ask for the lanes that are ahead, at most `pulls_max` at a time and one of each source, those first that
        waited longest."""
        if self.frozen or now < self.looks_at:
            return []
        busy: set[PeerId] = set()
        first_due = float("inf")
        behind: list[tuple[float, PeerId, Origin]] = []
        for lane, origin in self.origins.items():
            if origin.pull is not None and now >= origin.pull.due:
                origin.pull = None
            if origin.pull is not None:
                busy.add(origin.pull.source)
                if origin.pull.due < first_due:
                    first_due = origin.pull.due
            elif origin.n > origin.frontier and origin.reachable and not origin.kept_back:
                behind.append((origin.pulled_at, lane, origin))
        effects: list[Effect] = []
        for _, lane, origin in sorted(behind, key=lambda entry: entry[:2]):
            source = self._source(lane)
            if len(busy) >= self.pulls_max:
                break
            if source in busy:
                continue
            busy.add(source)
            self.k += 1
            origin.pulled_at = now
            origin.pull = PullState(now + self.pull_timeout_s, source)
            first_due = min(first_due, origin.pull.due)
            self._asked[source] = lane
            effects.append(Send(source, Pull(self.me, origin.frontier, self.k, lane if lane != source else None)))
        self.looks_at = first_due
        return effects

    def deadline(self) -> float:
        """When the first pull under way is to be given up."""
        if self.frozen:
            return float("inf")
        if self.looks_at > float("-inf"):
            return self.looks_at
        return min([o.pull.due for o in self.origins.values() if o.pull is not None], default=float("inf"))

    def check(self) -> None:
        """What must hold between two events."""
        hold(self.me not in self.origins, "nobody reads its own lane", self.me)
        hold(self.void <= self.k, "answers are void up to a pull that was made", self.void, self.k)
        pulls: dict[PeerId, PullState] = {}
        for lane, origin in self.origins.items():
            hold(0 <= origin.frontier <= origin.n, "no lane is applied beyond what was heard of it", lane, origin)
            if origin.pull is not None:
                hold(origin.n > origin.frontier, "only what is ahead is asked for", lane, origin)
                hold(origin.reachable, "only who is in reach is asked", lane, origin)
                hold(not origin.kept_back, "what is kept back is not asked for", lane, origin)
                hold(origin.pull.source not in pulls, "a source is asked for one lane at a time", lane, origin.pull)
                pulls[origin.pull.source] = origin.pull
        hold(len(pulls) <= self.pulls_max, "pulls_max pulls at the most", pulls, self.pulls_max)
        if self.looks_at > float("-inf") and not self.frozen:
            first = min((pull.due for pull in pulls.values()), default=float("inf"))
            hold(self.looks_at == first, "who has asked looks again when the first pull is due", self.looks_at, pulls)
            for lane, origin in self.origins.items() if len(pulls) < self.pulls_max else ():
                wants = origin.reachable and not origin.kept_back and origin.n > origin.frontier
                is_asked = not wants or self._source(lane) in pulls
                hold(is_asked, "who does not look has asked for all that is ahead", lane, origin, self.looks_at)
