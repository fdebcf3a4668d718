"""How long updates are, by lane: what is usual, and what is absurd beside it.

An update is judged by the others' alone, so that nobody moves the measure that is put to itself. What is usual is the
median over lanes of the longest of each lane's newest updates: it bears up to half of the lanes lying, whatever they
send. Of a sum of k updates the sum alone is known. By the triangle inequality it is no longer than k times the longest
of them, and about as long as the square root of k times one of them where these point anywhere.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from gossip.errors import UsageError
from gossip.messages import PeerId

AUTO: Literal["auto"] = "auto"
NormMax = float | Literal["auto"] | None

NEWEST = 32
"""Updates of a lane that say how long its updates are."""
ORIGIN_FACTOR = 8.0
"""A peer leaves out its own updates that are so many times as long as is usual;"""
READER_FACTOR = 32.0
"""and does not merge those of another that are so many times as long. More than its own: what is usual differs from
peer to peer, by what each has heard so far."""
ROUNDING = 1e-3
"""By so much more may a sum be longer than it may be, since norms are of rounded numbers."""
WITNESSES_MIN = 2
"""Other lanes that say what is usual before a peer is named for what it sends, and, where there are so many, before it
is refused: of two peers with data of different scale neither is to blame."""
NAMED_MIN = 3
"""So many absurd updates name a peer; fewer do if most other lanes have none: where all peers begin to take longer
steps, the first of them seem absurd."""


@dataclass(frozen=True)
class Limits:
    """How long updates may be."""

    norm_max: NormMax = None
    """Of any update of any lane: a number; "auto", by what is usual; None: any."""
    watches: bool = True
    """Updates of others are looked at even if they may be of any length: whoever sends absurd ones is named."""

    def __post_init__(self) -> None:
        value = self.norm_max
        if value is not None and value != AUTO and not (isinstance(value, int | float) and 0.0 < value < math.inf):
            raise UsageError(
                f"norm_max={value!r}, expected a number above 0, 'auto', or None for updates of any length"
            )

    @property
    def holds(self) -> bool:
        """Some updates are not merged."""
        return self.norm_max is not None


ANY = Limits()


@dataclass
class Suspicion:
    """Absurd updates of one lane."""

    updates: int = 0
    ratio: float = 0.0
    """Of the longest to what was usual then."""


@dataclass
class _Lane:
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST))
    longest: float = 0.0


class Norms:
    """Of all lanes that one peer reads, and of its own."""

    def __init__(self) -> None:
        self.suspicions: dict[PeerId, Suspicion] = {}
        """By lane, the first one first."""
        self._lanes: dict[PeerId, _Lane] = {}
        self._claims: dict[PeerId, int] = {}
        """The newest update that each says to have left out."""

    def note(self, lane: PeerId, norm: float, updates: int, sent: bool = True) -> None:
        """A sum of so many updates of `lane` has this norm; one of zeros says nothing. Who only says how long an update
        is, and has not `sent` it, is no suspect."""
        if norm == 0.0:
            return
        each = norm / math.sqrt(updates)
        usual = self.usual(lane)
        has_witnesses = len(self.known(lane)) >= WITNESSES_MIN
        if sent and usual is not None and has_witnesses and each > READER_FACTOR * usual:
            suspicion = self.suspicions.setdefault(lane, Suspicion())
            suspicion.updates += updates
            suspicion.ratio = max(suspicion.ratio, each / usual)
        known = self._lanes.setdefault(lane, _Lane())
        known.newest.append(each)
        known.longest = max(known.newest)

    def claims(self, lane: PeerId, number: int, norm: float) -> bool:
        """Another peer says that it left out its update of that number, and how long it was; whether that is new."""
        if not 0.0 < norm < math.inf or self._claims.get(lane) == number:
            return False
        self._claims[lane] = number
        self.note(lane, norm, 1, sent=False)
        return True

    def usual(self, but: PeerId) -> float | None:
        """How long updates are, but for those of one lane; None where no other is known."""
        longest = [known.longest for lane, known in self._lanes.items() if lane != but]
        return statistics.median_high(longest) if longest else None

    def known(self, but: PeerId) -> set[PeerId]:
        """The lanes that say what is usual."""
        return self._lanes.keys() - {but}

    def forget(self, lane: PeerId) -> None:
        """Its updates say nothing of what is usual any more."""
        self._lanes.pop(lane, None)

    def begin_anew(self) -> None:
        """Another training begins, whose updates may be of another length."""
        self._lanes.clear()

    def named(self, lanes: Collection[PeerId]) -> dict[PeerId, Suspicion]:
        """Those of `lanes` whose updates were absurd."""
        few = 2 * len(self.suspicions) < len(lanes)
        return {
            lane: suspicion
            for lane, suspicion in self.suspicions.items()
            if lane in lanes and (few or suspicion.updates >= NAMED_MIN)
        }
