"""Units of work, and how a million of them take little room.

    Unit     epoch, partition, chunk
    Mark     one entry of a lane: a unit, which attempt at it, and whether the entry takes it back
    Series   marks of one partition, attempt and sign, packed: this is how they are kept, and how they travel
    Chunks   the chunks of a series, while more come

Chunks are kept as runs (first, last, step) that do not reach into each other. Those that count up by one are a single
run, however many; so are those of a task that exchanges after as many rows each time. Where they follow no rule (a task
that exchanges by the clock), two of them are a run: 12 bytes each. Nothing here writes a run out.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from math import gcd
from struct import Struct
from typing import NamedTuple

import numpy as np

from gossip.fields import Count

RUN = Struct("3q")
RUN_BYTES = RUN.size
Run = tuple[int, int, int]
"""Chunks first, first + step, ..., last; where it is one, the step is 1."""


class Unit(NamedTuple):
    """The piece of work that an update comes from: its logical identity, whoever computes it and how often."""

    epoch: Count
    partition: Count
    chunk: Count


class Mark(NamedTuple):
    """One numbered entry of a lane, logically. Attempts of one unit are ordered by (attempt, lane)."""

    unit: Unit
    attempt: int
    withdraws: bool = False
    """It takes back what this lane published for the unit before."""


class Series(NamedTuple):
    """Marks of one partition with the same attempt and sign; `runs` holds their chunks, at least one."""

    epoch: Count
    partition: Count
    attempt: Count
    withdraws: bool
    runs: bytes
    """Of 64-bit integers, three to a run, as `Chunks` keeps them."""

    @property
    def chunk(self) -> int:
        """The one that there is; -1 if there are several."""
        if len(self.runs) != RUN_BYTES:
            return -1
        first: int
        first, last, _ = RUN.unpack(self.runs)
        return first if first == last else -1

    @property
    def size(self) -> int:
        """Marks."""
        return size(self.runs)

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest chunk and the highest."""
        numbers = memoryview(self.runs).cast("q")
        return numbers[0], numbers[-2]

    def marks(self) -> Iterator[Mark]:
        """One by one: for few."""
        for chunk in Chunks(self.runs):
            yield Mark(Unit(self.epoch, self.partition, chunk), self.attempt, self.withdraws)


class Counted(NamedTuple):
    """The units that count in a replica, each once."""

    closed: Count = 0
    """All units of earlier epochs do,"""
    units: Count = 0
    """and so many in all,"""
    series: tuple[Series, ...] = ()
    """among them these; of first attempts, whoever computed them."""


NO_UNITS = Counted()
"""Where a session begins."""


def size(runs: bytes) -> int:
    """Chunks in these runs."""
    if len(runs) == RUN_BYTES:
        first, last, step = RUN.unpack(runs)
        return int((last - first) // step + 1)
    table = np.frombuffer(runs, np.int64).reshape(-1, 3)
    more = (table[:, 1] - table[:, 0]) // table[:, 2]
    # what is claimed may be more than 64 bits can add up
    return len(more) + (int(more.sum()) if len(more) * float(more.max()) < 2.0**62 else sum(more.tolist()))


class Chunks:
    """A set of chunks of one partition, that grows. Most come in order, at the end."""

    __slots__ = ("runs",)

    def __init__(self, runs: bytes = b"") -> None:
        self.runs = array("q")
        self.runs.frombytes(runs)

    def __contains__(self, chunk: int) -> bool:
        at = self._at(chunk)
        if at < 0:
            return False
        first, last, step = self.runs[at : at + 3]
        return chunk <= last and (chunk - first) % step == 0

    def __iter__(self) -> Iterator[int]:
        for first, last, step in self.each():
            yield from range(first, last + 1, step)

    def __reversed__(self) -> Iterator[int]:
        runs = self.runs
        for at in range(len(runs) - 3, -1, -3):
            yield from range(runs[at + 1], runs[at] - 1, -runs[at + 2])

    @property
    def size(self) -> int:
        """How many, which may be more than `len` can say."""
        return size(self.runs.tobytes()) if self.runs else 0

    def __len__(self) -> int:
        return self.size

    @property
    def last(self) -> int:
        """The highest; -1 if there is none."""
        return self.runs[-2] if self.runs else -1

    def add(self, chunk: int) -> bool:
        """One more; False if it was there."""
        runs = self.runs
        at = self._at(chunk)
        if at < 0:
            self._put(0, 0, [(chunk, chunk, 1)])
            return True
        first, last, step = runs[at], runs[at + 1], runs[at + 2]
        if chunk > last:
            if at + 3 == len(runs) and (first == last or chunk == last + step):  # the usual case, quickly
                runs[at + 1], runs[at + 2] = chunk, chunk - last
            else:
                self._put(at + 3, at + 3, [(chunk, chunk, 1)])
            return True
        if (chunk - first) % step == 0:
            return False
        below = chunk - (chunk - first) % step
        self._put(at, at + 3, [_run(first, below, step), (chunk, chunk, 1), _run(below + step, last, step)])
        return True

    def extend(self, runs: bytes) -> None:
        """All of these, which must begin behind the last that is here."""
        if self.runs:
            self._put(len(self.runs), len(self.runs), [_first(runs)])
            self.runs.frombytes(runs[RUN_BYTES:])
        else:
            self.runs.frombytes(runs)

    def insert(self, run: Run) -> None:
        """A whole run, into which none that is here reaches."""
        at = self._at(run[0]) + 3
        self._put(at, at, [run])

    def overlaps(self, first: int, last: int) -> bool:
        """Whether some run reaches into first..last."""
        at = self._at(last)
        return at >= 0 and self.runs[at + 1] >= first

    def covers(self, run: Run) -> bool:
        """Whether one of the runs holds all of this one."""
        at = self._at(run[0])
        if at < 0:
            return False
        first, last, step = self.runs[at : at + 3]
        return run[1] <= last and (run[0] - first) % step == 0 and (run[2] % step == 0 or run[0] == run[1])

    def common(self, other: Chunks, most: int) -> list[int]:
        """Chunks that are in both, `most` at the most. It takes as long as there are runs."""
        found: list[int] = []
        mine, theirs = self.each(), other.each()
        one, two = next(mine, None), next(theirs, None)
        while one is not None and two is not None and len(found) < most:
            found += _common(one, two)[: most - len(found)]
            if one[1] <= two[1]:
                one = next(mine, None)
            else:
                two = next(theirs, None)
        return found

    def each(self) -> Iterator[Run]:
        """Its runs."""
        runs = self.runs
        for at in range(0, len(runs), 3):
            yield runs[at], runs[at + 1], runs[at + 2]

    def _at(self, chunk: int) -> int:
        """Where the last run is that begins at `chunk` or before; -3 if there is none."""
        runs = self.runs
        end = len(runs) - 3
        if end < 0 or runs[end] <= chunk:
            return end
        return 3 * bisect_right(range(len(runs) // 3), chunk, key=lambda index: runs[3 * index]) - 3

    def _put(self, start: int, stop: int, pieces: list[Run]) -> None:
        """Put `pieces` in the place of start:stop, and make one run of neighbors that are one."""
        runs = self.runs
        low, high = max(0, start - 3), min(len(runs), stop + 3)
        joined: list[Run] = []
        for run in (*_triples(runs[low:start]), *pieces, *_triples(runs[stop:high])):
            both = _joined(joined[-1], run) if joined else None
            if both is None:
                joined.append(run)
            else:
                joined[-1] = both
        runs[low:high] = array("q", [number for run in joined for number in run])


class Marks:
    """Marks being gathered."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, int, int, bool], Chunks] = {}

    def add(self, mark: Mark) -> None:
        """One more."""
        (epoch, partition, chunk), attempt, withdraws = mark
        self._of((epoch, partition, attempt, withdraws)).add(chunk)

    def merge(self, other: Marks) -> None:
        """All of `other`, which is mostly of later entries."""
        for key, theirs in other._chunks.items():
            mine = self._of(key)
            if theirs.runs[0] > mine.last:
                mine.extend(theirs.runs.tobytes())
            else:
                for chunk in theirs:
                    mine.add(chunk)

    def packed(self) -> tuple[Series, ...]:
        """In the order in which series travel."""
        return tuple(Series(*key, chunks.runs.tobytes()) for key, chunks in sorted(self._chunks.items()))

    def _of(self, key: tuple[int, int, int, bool]) -> Chunks:
        chunks = self._chunks.get(key)
        if chunks is None:
            chunks = self._chunks[key] = Chunks()
        return chunks


def packed(marks: Iterable[Mark]) -> tuple[Series, ...]:
    """These marks, as they travel."""
    gathered = Marks()
    for mark in marks:
        gathered.add(mark)
    return gathered.packed()


def _triples(runs: array[int]) -> list[Run]:
    return [(runs[at], runs[at + 1], runs[at + 2]) for at in range(0, len(runs), 3)]


def _first(runs: bytes) -> Run:
    first, last, step = RUN.unpack_from(runs)
    return first, last, step


def _run(first: int, last: int, step: int) -> Run:
    return first, last, step if first < last else 1


def _joined(left: Run, right: Run) -> Run | None:
    """Both as one run, if they are one."""
    step = right[0] - left[1]
    if (left[0] < left[1] and left[2] != step) or (right[0] < right[1] and right[2] != step):
        return None
    return left[0], right[1], step


def _common(one: Run, two: Run) -> range:
    """Chunks that are in both runs, by the Chinese remainder theorem."""
    (first, last, step), (other_first, other_last, other_step) = one, two
    low, high = max(first, other_first), min(last, other_last)
    divisor = gcd(step, other_step)
    if low > high or (other_first - first) % divisor:
        return range(0)
    period = other_step // divisor
    begin = first + step * ((other_first - first) // divisor * pow(step // divisor, -1, period) % period)
    step *= period
    begin += -(-(low - begin) // step) * step
    return range(begin, high + 1, step)
