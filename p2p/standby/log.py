"""The entries that a member keeps: the last ones, since those that are applied everywhere are needed no more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2p.standby.messages import Log


@dataclass(frozen=True)
class Kept:
    """An entry of the log."""

    tag: int
    """The view in which it got its number."""
    data: bytes


class Entries:
    """Entries behind `base`, by their numbers."""

    def __init__(self) -> None:
        self.base = 0
        """The number of the last one that is not kept."""
        self.nbytes = 0
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, number: int) -> Kept:
        return self._kept[number - self.base - 1]

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self.base + len(self._kept)

    def has(self, number: int) -> bool:
        """It is kept."""
        return self.base < number <= self.last

    def append(self, entry: Kept) -> None:
        """The next one."""
        self._kept.append(entry)
        self.nbytes += len(entry.data)

    def forget(self, number: int) -> None:
        """All up to this one, also where there are not so many."""
        gone = self._kept[: number - self.base]
        self.nbytes -= sum(len(entry.data) for entry in gone)
        del self._kept[: len(gone)]
        self.base = number

    def go_on_behind(self, number: int, entries: Iterable[Kept]) -> None:
        """Put these in the place of all behind `number`."""
        del self._kept[max(0, number - self.base) :]
        self.nbytes = sum(len(entry.data) for entry in self._kept)
        for entry in entries:
            self.append(entry)

    def told(self, committed: int) -> Log:
        """What others are told of them."""
        return Log(self.base, tuple(entry.tag for entry in self._kept), committed)
