"""Which replicas are level, and which updates the others lack: from the figures that agents give.

A *front* is how far a replica has applied each lane, its own included. An update that no living replica has is lost,
and no replica lacks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Front = Mapping[str, int]
"""By lane: the last update that is applied."""


def furthest(fronts: Iterable[Front]) -> dict[str, int]:
    """Of each lane, how far the one that is furthest has applied it."""
    found: dict[str, int] = {}
    for front in fronts:
        for lane, frontier in front.items():
            found[lane] = max(found.get(lane, 0), frontier)
    return found


def lacks(front: Front, all_of: Front) -> dict[str, int]:
    """By lane: how many updates `front` lacks of `all_of`."""
    missing = {lane: frontier - front.get(lane, 0) for lane, frontier in all_of.items()}
    return {lane: count for lane, count in missing.items() if count > 0}


class Stillness:
    """How long a replica has not moved though it lacks something."""

    def __init__(self) -> None:
        self._front: Front = {}
        self._since: float | None = None

    def seconds(self, front: Front, all_of: Front, now: float) -> float:
        """Look at it again. 0 while it moves, or lacks nothing."""
        if self._since is None or front != self._front or not lacks(front, all_of):
            self._front, self._since = dict(front), now
        return now - self._since
