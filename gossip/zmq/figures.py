"""Figures that a driver counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Figures:
    """Of one runtime, since it began."""

    bytes_out: int = 0
    bytes_in: int = 0
    handed_out: int = 0
    """Bytes of updates that readers of this machine got as open files, beside `bytes_out`."""
    handed_in: int = 0
    computed: int = 0
    """Events `Computed` that were dealt with."""
    malformed: int = 0
    """Messages dropped because they were not well-formed."""
    gated: int = 0
    """Updates that were not published, since their unit was before."""
    too_large: Counter[type] = field(default_factory=Counter)
    """Messages that were not sent because there was no room for them, by kind."""
