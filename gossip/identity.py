"""Which pieces of work are in which lane: each unit counts once, however often it is tried.

An origin does not publish a unit that is in a lane it knows. When two attempts raced, both are in lanes and reach
everybody; then the later one, by (attempt, lane), takes its own back. Receivers never filter: they would disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gossip.messages import Mark, PeerId, Unit

Attempt = tuple[int, PeerId]
"""Ordered: who comes first keeps the unit."""


class Identities:
    """What is known of all lanes' units."""

    def __init__(self) -> None:
        self._standing: dict[Unit, frozenset[Attempt]] = {}
        """Attempts that were published and not taken back. Most units have one, and share the set with its others."""
        self._withdrawn: dict[Unit, set[Attempt]] = {}

    def note(self, lane: PeerId, marks: Iterable[Mark]) -> None:
        """`lane` holds `marks`."""
        alone = frozenset({(0, lane)})
        of_attempt = 0
        for unit, attempt, withdraws in marks:
            if attempt != of_attempt:
                alone, of_attempt = frozenset({(attempt, lane)}), attempt
            if withdraws:
                self._withdrawn.setdefault(unit, set()).update(alone)
                if unit in self._standing:
                    self._standing[unit] -= alone
            elif unit not in self._withdrawn or self._withdrawn[unit].isdisjoint(alone):
                known = self._standing.setdefault(unit, alone)
                if known is not alone:
                    self._standing[unit] = known | alone

    def knows(self, unit: Unit) -> bool:
        """Some lane has carried it."""
        return unit in self._standing

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that some lane has carried; -1 if none has."""
        return max((u.chunk for u in self._standing if (u.epoch, u.partition) == (epoch, partition)), default=-1)

    def spans(self, epoch: int) -> Mapping[tuple[int, int], tuple[int, int]]:
        """By (epoch, partition), from this epoch on: the lowest and the highest chunk that counts."""
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        for unit, attempts in self._standing.items():
            if attempts and unit.epoch >= epoch:
                key = unit.epoch, unit.partition
                lowest, highest = spans.get(key, (unit.chunk, unit.chunk))
                spans[key] = min(lowest, unit.chunk), max(highest, unit.chunk)
        return spans

    @property
    def units(self) -> int:
        """Units that count now."""
        return sum(1 for attempts in self._standing.values() if attempts)

    def standing(self, unit: Unit) -> frozenset[Attempt]:
        """The attempts that count now; more than one only until the later ones are taken back."""
        return self._standing.get(unit, frozenset())

    def of_lane(self, lane: PeerId) -> tuple[Mark, ...]:
        """What is known of one lane."""
        return self.by_lane().get(lane, ())

    def by_lane(self) -> Mapping[PeerId, tuple[Mark, ...]]:
        """All that is known, for a state."""
        lanes: dict[PeerId, list[Mark]] = {}
        for withdraws, known in ((False, self._standing), (True, self._withdrawn)):
            for unit in sorted(known):
                for attempt, lane in sorted(known[unit]):
                    lanes.setdefault(lane, []).append(Mark(unit, attempt, withdraws))
        return {lane: tuple(marks) for lane, marks in sorted(lanes.items())}
