"""The figures that an agent reports, and its answer to a request to drain: values, as JSON in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LaneFigures:
    """Of an agent whose peer has lanes."""

    frontiers: Mapping[str, int] = field(default_factory=dict)
    """By lane: the last update that its replica has."""
    units: int = 0
    """Units of work that count in its replica."""
    withdrawn: int = 0
    """Own updates that it took back, since another attempt at their unit counts."""
    adoptions: int = 0
    """Replicas of others that it took over."""
    waiting: int = 0
    """Of a hub: updates of workers that `descent` has not taken yet."""


@dataclass(frozen=True, kw_only=True)
class MixFigures:
    """Of an agent that mixes."""

    taken: int = 0
    """Own updates that some neighbor has taken in."""
    received: int = 0
    """Packets taken in."""
    late: int = 0
    """Packets of rounds that were over."""
    given_up: int = 0
    """Rounds that ended without all that they needed."""
    rounds: int = 0
    """Begun."""
    era: int = 0
    """What it is about; see `gossip.events.Resumed`."""
    era_rounds: int = 0
    """Begun in this era."""
    trouble: str | None = None
    """Why it cannot mix any more."""
    weight: float = 1.0
    """Of its replica in the mean."""
    edges: Mapping[str, int] = field(default_factory=dict)
    """Bytes of packets sent to each neighbor, by name."""
    sketch: Sequence[float] | None = None
    """Of its replica; only where it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of any agent, as of now."""

    question: int = 0
    """The number of the last one that it has answered."""
    roster_version: int = 0
    """Of the roster that it knows."""
    departed: Sequence[str] = ()
    """The peers that it takes for dead."""
    published: int = 0
    """Own updates: in its lane, or in the state that it mixes."""
    gated: int = 0
    """Updates that were not published, since their unit was before."""
    refused: int = 0
    """Of what others sent: dropped because it did not fit, or was not finite."""
    bytes_out: int = 0
    """Sent, or handed over as open files to agents of its host."""
    bytes_in: int = 0
    malformed: int = 0
    """Messages dropped because they were not well-formed."""
    memory_peak_bytes: int = 0
    lanes: LaneFigures = field(default_factory=LaneFigures)
    mixing: MixFigures = field(default_factory=MixFigures)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Figures:
        """From what `dataclasses.asdict` made of some; `TypeError` for others."""
        lanes, mixing = (fields.get(name, {}) for name in ("lanes", "mixing"))
        return cls(**{**fields, "lanes": LaneFigures(**lanes), "mixing": MixFigures(**mixing)})


@dataclass(frozen=True, kw_only=True)
class Drained:
    """An agent's answer to a request to drain."""

    missing: Sequence[str] = ()
    """Names of the agents that have not read everything."""
    staleness: Sequence[int] = ()
    """Of its newest updates: how many were merged into the replica since the copy that each was computed from."""
    torn: Sequence[tuple[int, int]] = ()
    """(epoch, partition) of which updates count whose rows were different."""
