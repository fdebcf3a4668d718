"""The portions of a pass: who computes which, which are computed twice, and which attempt counts.

    to do -> under way (at one worker; late ones at two) -> counted       the first attempt that comes counts

A worker goes on in the partition that it reads. One that has nothing to go on with begins a partition, or goes into the
middle of what is left of another. Where nothing is left, it computes a portion again that is long under way: the
back-up copies of Dean et al., Large Scale Distributed Deep Networks (NIPS 2012), section 4.2.

How many portions a partition has is known when its last one has come. So the first pass goes through each partition in
order, and any later one begins wherever it likes. A partition has the same rows in all passes, or an error says so.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from statistics import median

from gossip.errors import UsageError

COPIES_MAX = 2
"""Of a portion under way at the same time."""
TRIES_MAX = 4
"""Of one portion in a pass, as Spark's spark.task.maxFailures: workers that it ends count."""
DURATIONS_MAX = 1000
"""That the median is taken of."""

Worker = Hashable


@dataclass(frozen=True, order=True)
class Portion:
    """A chunk of a partition."""

    partition: int
    chunk: int


@dataclass(frozen=True)
class Started:
    """An attempt at a portion."""

    portion: Portion
    number: int
    """Among the attempts at this portion in this pass."""
    at: float


class Portions:
    """Of one training, pass by pass. Times are seconds of any clock."""

    def __init__(self, partitions: int, backup_after: float | None) -> None:
        self._partitions = partitions
        self._backup_after = backup_after
        self._rows: dict[Portion, int] = {}
        """What each portion had in the pass that saw it first."""
        self._chunks: dict[int, int] = {}
        """Of each partition, as far as its end was seen."""
        self._todo: dict[int, list[int]] = {}
        """Chunks that nobody has begun, by partition, in order."""
        self._open: set[Portion] = set()
        """To do, or under way."""
        self._tries: dict[Portion, int] = {}
        self._losses: dict[Portion, int] = {}
        self._working: dict[Worker, Started] = {}
        self._next: dict[Worker, Portion] = {}
        """Where each worker would go on reading."""
        self._durations: list[float] = []
        self.backups = 0
        """Copies that were begun of portions under way."""
        self.dropped = 0
        """Attempts that came after another one."""

    def begin(self) -> None:
        """A new pass. Workers may still be at portions of the one before."""
        known = {partition: list(range(self._chunks.get(partition, 1))) for partition in range(self._partitions)}
        self._todo = known
        self._open = {Portion(partition, chunk) for partition, chunks in known.items() for chunk in chunks}
        self._tries, self._losses = {}, {}
        self._working.clear()

    @property
    def are_done(self) -> bool:
        """Every portion has counted."""
        return not self._open

    @property
    def open_partitions(self) -> set[int]:
        """Those of which some portion has not counted."""
        return {portion.partition for portion in self._open}

    def take(self, worker: Worker, now: float) -> Started | None:
        """What an idle worker is to compute; None: nothing, for now."""
        portion = self._to_go_on_with(worker) or self._to_begin()
        if portion is None:
            portion = self._to_back_up(worker, now)
            if portion is None:
                return None
            self.backups += 1
        else:
            self._todo[portion.partition].remove(portion.chunk)
        number = self._tries.get(portion, 0)
        self._tries[portion] = number + 1
        started = self._working[worker] = Started(portion, number, now)
        self._next[worker] = Portion(portion.partition, portion.chunk + 1)
        return started

    def counts(self, worker: Worker, portion: Portion, rows: int, more: bool, now: float) -> bool:
        """An attempt of this pass has come; whether it is the first of its portion. `more`: others follow it.

        Raises:
            UsageError: the portion had other rows in an earlier pass, or from another attempt.
        """
        started = self._working.pop(worker, None)
        self._check(portion, rows, more)
        if portion not in self._open:
            self.dropped += 1
            return False
        if started is not None and started.portion == portion:
            self._durations = [*self._durations[1 - DURATIONS_MAX :], now - started.at]
        self._open.remove(portion)
        if portion.chunk in self._todo[portion.partition]:  # of a worker that was taken for lost
            self._todo[portion.partition].remove(portion.chunk)
        if more and portion.partition not in self._chunks:
            following = Portion(portion.partition, portion.chunk + 1)
            self._todo[portion.partition].append(following.chunk)
            self._open.add(following)
        elif not more:
            self._chunks[portion.partition] = portion.chunk + 1
        return True

    def late(self, worker: Worker) -> None:
        """A worker gave up its attempt, as its point is over or a shard is gone."""
        self._give_back(worker)

    def lost(self, worker: Worker) -> int:
        """A worker is gone: how many were lost now at its portion in this pass, 0 if it had none."""
        portion = self._give_back(worker)
        self._next.pop(worker, None)
        if portion is None:
            return 0
        self._losses[portion] = self._losses.get(portion, 0) + 1
        return self._losses[portion]

    def waits_s(self, now: float) -> float | None:
        """In how many seconds the next portion will be long under way; None if there is none that may be."""
        limit = self._limit_s
        if limit is None:
            return None
        ages = [now - each.at for each in self._working.values() if each.portion in self._open]
        return max(0.0, limit - max(ages)) if ages else None

    @property
    def _limit_s(self) -> float | None:
        """How long a portion may be under way before it is computed again."""
        if self._backup_after is None or not self._durations:
            return None
        return self._backup_after * median(self._durations)

    def _to_go_on_with(self, worker: Worker) -> Portion | None:
        following = self._next.get(worker)
        if following is not None and following.chunk in self._todo[following.partition]:
            return following
        return None

    def _to_begin(self) -> Portion | None:
        """The first chunk of a partition that nobody is in; else the middle of what is most."""
        taken = {each.portion.partition for each in self._working.values()}
        free = [partition for partition, chunks in self._todo.items() if chunks and partition not in taken]
        if free:
            return Portion(free[0], self._todo[free[0]][0])
        most = max(self._todo, key=lambda partition: len(self._todo[partition]))
        left = self._todo[most]
        return Portion(most, left[len(left) // 2]) if left else None

    def _to_back_up(self, worker: Worker, now: float) -> Portion | None:
        limit = self._limit_s
        if limit is None or worker in self._working:
            return None
        at: dict[Portion, list[float]] = {}
        for each in self._working.values():
            if each.portion in self._open:
                at.setdefault(each.portion, []).append(each.at)
        late = [
            (min(times), portion)
            for portion, times in at.items()
            if len(times) < COPIES_MAX and now - min(times) >= limit
        ]
        return min(late)[1] if late else None

    def _give_back(self, worker: Worker) -> Portion | None:
        """The portion that this worker was at is to do again, unless another one is at it."""
        started = self._working.pop(worker, None)
        if started is None or started.portion not in self._open:
            return None
        portion = started.portion
        chunks = self._todo[portion.partition]
        if all(each.portion != portion for each in self._working.values()) and portion.chunk not in chunks:
            chunks.append(portion.chunk)
            chunks.sort()
        return portion

    def _check(self, portion: Portion, rows: int, more: bool) -> None:
        before = self._rows.setdefault(portion, rows)
        count = self._chunks.get(portion.partition)
        if rows != before or (count is not None and more != (portion.chunk + 1 < count)):
            raise UsageError(
                f"partition {portion.partition} has other rows than in an earlier pass: chunk {portion.chunk} has "
                f"{rows} and is{' not' if more else ''} the last one, expected {before}. An objective is of the same "
                "rows in all passes: have its source give the same rows each time"
            )
