"""Which units of work are in which lane: each unit counts once, however often it is tried.

An origin does not publish a unit that is in a lane it knows. When two attempts raced, both are in lanes and reach every
peer; then the later attempt, by (attempt, lane), is taken back by its origin. Receivers never filter: they would
disagree.

The units of an epoch are kept until the epoch is over:

    open --close--> closed: nothing of it is published any more --drop--> dropped: only `units` remembers it

Of a dropped epoch single units stay *watched*: units with two attempts that stand, and own units that may have to be
taken back. Any other unit has one attempt that stands. So a mark that comes late of a dropped epoch counts by itself:
an attempt is a unit more, and an attempt taken back is a unit less. The sum is right when both have come, in whichever
order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice, pairwise

from gossip.errors import hold
from gossip.marks import RUN_BYTES, Chunks, Counted, Mark, Marks, Run, Series, Unit
from gossip.messages import PeerId

Attempt = tuple[int, PeerId]
"""Ordered: who comes first keeps the unit."""

WATCHED_MAX = 10_000
"""Units of dropped epochs with two attempts that stand. Each is one race whose loser crashed before it took its own
back, or has not yet; of what is beyond, the two are counted as two."""
TOIL_MAX = 1 << 15
"""Units of one message that are looked at one by one, half a second's work. Only those are that came among others of
the same partition, which two attempts at a time make: as many as one exchanged while a reader was away, at fifty a
second for ten minutes. Who is away for longer is forgotten."""
COUNTED_MAX = 1 << 22
"""Units of one partition with several attempts, written out where it is to be told which of them count."""


RESUMED = PeerId("resumed")
"""In the place of the lanes of a session that was: whose units count here, and nobody takes back."""


class Carried:
    """What one lane holds of one partition by one attempt."""

    __slots__ = ("attempt", "chunks", "withdrawn")

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.chunks = Chunks()
        """All that it published, also what it took back."""
        self.withdrawn: Chunks | None = None

    def knows(self, chunk: int) -> bool:
        """It has carried it."""
        return chunk in self.chunks or (self.withdrawn is not None and chunk in self.withdrawn)

    def stands(self, chunk: int) -> bool:
        """It counts now."""
        return chunk in self.chunks and (self.withdrawn is None or chunk not in self.withdrawn)

    @property
    def ends(self) -> tuple[int, int] | None:
        """The lowest and the highest that count; None if none does."""
        if self.withdrawn is None:
            return (self.chunks.runs[0], self.chunks.last) if self.chunks.runs else None
        # what is taken back is few; what is claimed may be more than can be written out
        withdrawn = self.withdrawn
        lowest = next((chunk for chunk in self.chunks if chunk not in withdrawn), None)
        if lowest is None:
            return None
        return lowest, next(chunk for chunk in reversed(self.chunks) if chunk not in withdrawn)

    def reaches(self, first: int, last: int) -> bool:
        """It may know of some chunk in first..last."""
        return self.chunks.overlaps(first, last) or (
            self.withdrawn is not None and self.withdrawn.overlaps(first, last)
        )


class Watched:
    """A unit of a dropped epoch."""

    __slots__ = ("standing", "withdrawn")

    def __init__(self) -> None:
        self.standing: set[Attempt] = set()
        self.withdrawn: set[Attempt] = set()


class Identities:
    """What is known of all lanes' units."""

    def __init__(self, closed: int = 0, units: int = 0) -> None:
        """Of a session of which `closed` epochs are over, in which `units` counted."""
        self.units = units
        """Units that count now, of all epochs."""
        self.closed = closed
        """Earlier epochs are over: all their units are published."""
        self.dropped = closed
        """Of earlier epochs nothing is kept any more but `watched`."""
        self._watched: dict[tuple[int, int], dict[int, Watched]] = {}
        """Units of dropped epochs, by epoch and partition, and by chunk."""
        self._epochs: dict[int, dict[int, tuple[Carried, ...]]] = {}
        """By epoch and partition. Most partitions have one attempt."""
        self._attempts: dict[Attempt, Attempt] = {}
        """One object for equal ones."""

    @classmethod
    def told(cls, marks: Mapping[PeerId, Iterable[Series]], closed: int, units: int) -> Identities:
        """What another knows, by its state."""
        identities = cls(closed, units)
        for lane, of_lane in marks.items():
            for series in of_lane:
                if series.epoch < closed:
                    identities._watch_series(lane, series)
                    continue
                carried = identities._carried(series.epoch, series.partition, series.attempt, lane)
                if series.withdraws:
                    carried.withdrawn = Chunks(series.runs)
                else:
                    carried.chunks = Chunks(series.runs)
        return identities

    @classmethod
    def resumed(cls, counted: Counted) -> Identities:
        """What is known where a session goes on with a replica in which these units count."""
        return cls.told({RESUMED: counted.series}, counted.closed, counted.units)

    # ------------------------------------------------------------------------------------------------- what is known

    def knows(self, unit: Unit) -> bool:
        """Some lane has carried it, or will have: its epoch is over."""
        epoch, partition, chunk = unit
        return epoch < self.closed or any(carried.knows(chunk) for carried in self._partition(epoch, partition))

    def furthest(self, epoch: int, partition: int) -> int:
        """The highest chunk of this partition that some lane has carried; -1 if none has, or the epoch is dropped."""
        furthest = -1
        for carried in self._partition(epoch, partition):
            withdrawn = carried.withdrawn.last if carried.withdrawn is not None else -1
            furthest = max(furthest, carried.chunks.last, withdrawn)
        return furthest

    def spans(self, epoch: int) -> Mapping[tuple[int, int], tuple[int, int]]:
        """By (epoch, partition), of what is kept from this epoch on: the lowest and the highest chunk that counts."""
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        for number, partitions in self._epochs.items():
            for partition, sources in partitions.items() if number >= epoch else ():
                ends = [end for carried in sources if (end := carried.ends) is not None]
                if ends:
                    spans[number, partition] = min(low for low, _ in ends), max(high for _, high in ends)
        return spans

    def standing(self, unit: Unit) -> frozenset[Attempt]:
        """The attempts that count now; more than one only until the later ones are taken back."""
        epoch, partition, chunk = unit
        if epoch < self.dropped:
            known = self._watched.get((epoch, partition), {}).get(chunk)
            return frozenset(known.standing) if known is not None else frozenset()
        return frozenset(c.attempt for c in self._partition(epoch, partition) if c.stands(chunk))

    def counted(self) -> Counted | None:
        """The units that count now; None as long as two attempts of one do, of which one will be taken back, or where
        a partition with several attempts is said to have more units than anybody computes."""
        if any(len(known.standing) > 1 for chunks in self._watched.values() for known in chunks.values()):
            return None
        found = []
        for epoch, partitions in sorted(self._epochs.items()):
            for partition, sources in sorted(partitions.items()):
                chunks = sources[0].chunks
                if len(sources) > 1 or sources[0].withdrawn is not None:
                    if sum(each.chunks.size for each in sources) > COUNTED_MAX:
                        return None
                    standing = sorted(chunk for each in sources for chunk in each.chunks if each.stands(chunk))
                    if any(one == next for one, next in pairwise(standing)):
                        return None
                    chunks = Chunks()
                    for chunk in standing:
                        chunks.add(chunk)
                if chunks.runs:
                    found.append(Series(epoch, partition, 0, False, chunks.runs.tobytes()))
        return Counted(self.dropped, self.units, tuple(found))

    def by_lane(self, since: int = 0) -> Mapping[PeerId, tuple[Series, ...]]:
        """All that is known, for a state; of epochs from `since` on."""
        lanes: dict[PeerId, list[Series]] = {}
        watched: dict[PeerId, Marks] = {}
        for (epoch, partition), of_partition in self._watched.items():
            for chunk, known in of_partition.items() if epoch >= since else ():
                for attempts, withdraws in ((known.standing, False), (known.withdrawn, True)):
                    for attempt, lane in attempts:
                        mark = Mark(Unit(epoch, partition, chunk), attempt, withdraws)
                        watched.setdefault(lane, Marks()).add(mark)
        for lane, marks in watched.items():
            lanes[lane] = list(marks.packed())
        for epoch, partitions in self._epochs.items():
            for partition, sources in partitions.items() if epoch >= since else ():
                for carried in sources:
                    attempt, lane = carried.attempt
                    of_lane = lanes.setdefault(lane, [])
                    if carried.chunks.runs:
                        of_lane.append(Series(epoch, partition, attempt, False, carried.chunks.runs.tobytes()))
                    if carried.withdrawn is not None:
                        of_lane.append(Series(epoch, partition, attempt, True, carried.withdrawn.runs.tobytes()))
        return {lane: tuple(sorted(of_lane)) for lane, of_lane in sorted(lanes.items()) if of_lane}

    @property
    def watched(self) -> int:
        """How many units of dropped epochs are still watched."""
        return sum(map(len, self._watched.values()))

    @property
    def runs(self) -> int:
        """How many runs of chunks are kept."""
        return sum(
            len(chunks.runs) // 3
            for partitions in self._epochs.values()
            for sources in partitions.values()
            for carried in sources
            for chunks in (carried.chunks, carried.withdrawn)
            if chunks is not None
        )

    # -------------------------------------------------------------------------------------------------- what comes

    def note(self, lane: PeerId, marks: Iterable[Mark | Series]) -> None:
        """`lane` holds `marks`. With some that are not checked by `toil`, it may take long."""
        for mark in marks:
            if isinstance(mark, Mark):
                (epoch, partition, chunk), attempt, withdraws = mark
            else:
                epoch, partition, attempt, withdraws, _ = mark
                chunk = mark.chunk
            if epoch >= self.dropped:
                carried = self._carried(epoch, partition, attempt, lane)
                if chunk >= 0:
                    self._note_one(carried, epoch, partition, chunk, withdraws)
                elif isinstance(mark, Series):
                    self._note_series(carried, mark)
            elif chunk >= 0:
                self._note_late(lane, epoch, partition, attempt, withdraws, (chunk, chunk, 1))
            elif isinstance(mark, Series):
                for run in Chunks(mark.runs).each():
                    self._note_late(lane, epoch, partition, attempt, withdraws, run)

    def toil(self, lane: PeerId, marks: Iterable[Series]) -> int:
        """How many of these would have to be looked at one by one, if `lane` held them."""
        toil = 0
        behind: dict[tuple[int, int], int] = {}
        for series in marks:
            if series.epoch < self.dropped:
                continue
            first, last = series.ends
            place = series.epoch, series.partition
            among = first <= behind.get(place, -1)
            behind[place] = max(last, behind.get(place, -1))
            sources = self._partition(*place)
            if among or series.withdraws:
                toil += series.size
            elif not _is_behind(first, sources):
                carried = next((c for c in sources if c.attempt == (series.attempt, lane)), None)
                runs = Chunks(series.runs).each()
                toil += sum((b - a) // step + 1 for a, b, step in runs if not _is_alone((a, b, step), sources, carried))
        return toil

    def close(self, epochs: int) -> None:
        """The first `epochs` epochs are over: all their units are published."""
        self.closed = max(self.closed, epochs)

    def drop(self, epochs: int, retained: Iterable[Unit] = ()) -> None:
        """Keep nothing of the first `epochs` epochs, but what is still to be decided: that, and `retained`."""
        self.close(epochs)
        if epochs <= self.dropped:
            return
        own: dict[tuple[int, int], set[int]] = {}
        for epoch, partition, chunk in retained:
            if self.dropped <= epoch < epochs:
                own.setdefault((epoch, partition), set()).add(chunk)
        room = WATCHED_MAX - self.watched
        for epoch in [epoch for epoch in self._epochs if epoch < epochs]:
            for partition, sources in self._epochs.pop(epoch).items():
                doubled = _doubled(sources, room) if len(sources) > 1 else []
                room -= len(doubled)
                for chunk in own.pop((epoch, partition), set()).union(doubled):
                    known = self._watch((epoch, partition), chunk)
                    known.standing = {c.attempt for c in sources if c.stands(chunk)}
                    known.withdrawn = {c.attempt for c in sources if c.withdrawn is not None and chunk in c.withdrawn}
        for place, chunks in own.items():
            for chunk in chunks:
                self._watch(place, chunk)
        self.dropped = epochs
        self._attempts.clear()

    def watch(self, unit: Unit, counted: Attempt | None) -> None:
        """Keep what is known of a unit of a dropped epoch: that this attempt has counted, if nothing else was kept."""
        epoch, partition, chunk = unit
        if chunk not in self._watched.get((epoch, partition), {}):
            known = self._watch((epoch, partition), chunk)
            if counted is not None:
                known.standing.add(counted)

    def settle(self, unit: Unit) -> None:
        """The own attempt is not to be taken back any more: the unit need not be watched for that."""
        epoch, partition, chunk = unit
        known = self._watched.get((epoch, partition), {}).get(chunk)
        if known is not None and len(known.standing) < 2:
            self._unwatch((epoch, partition), chunk)

    def prune(self, own: Iterable[Unit]) -> None:
        """Watch no unit that another watches, told of it, because it may have to take back its own."""
        kept = set(own)
        for place, of_partition in list(self._watched.items()):
            for chunk, known in list(of_partition.items()):
                if len(known.standing) < 2 and Unit(*place, chunk) not in kept:
                    self._unwatch(place, chunk)

    def check(self) -> None:
        """What must hold between two events."""
        hold(0 <= self.dropped <= self.closed, "only what is closed is dropped", self.dropped, self.closed)
        first = min(self._epochs, default=self.dropped)
        hold(first >= self.dropped, "nothing is kept of an epoch that is dropped", first, self.dropped)
        for (epoch, partition), chunks in self._watched.items():
            hold(epoch < self.dropped, "only units of dropped epochs are watched", epoch, partition, self.dropped)
            hold(bool(chunks), "no partition is watched without a unit", epoch, partition)

    # ------------------------------------------------------------------------------------------------------- parts

    def _partition(self, epoch: int, partition: int) -> tuple[Carried, ...]:
        of_epoch = self._epochs.get(epoch)
        return () if of_epoch is None else of_epoch.get(partition, ())

    def _carried(self, epoch: int, partition: int, attempt: int, lane: PeerId) -> Carried:
        of_epoch = self._epochs.setdefault(epoch, {})
        sources = of_epoch.get(partition, ())
        for carried in sources:
            if carried.attempt == (attempt, lane):
                return carried
        carried = Carried(self._attempts.setdefault((attempt, lane), (attempt, lane)))
        of_epoch[partition] = (*sources, carried)
        return carried

    def _note_one(self, carried: Carried, epoch: int, partition: int, chunk: int, withdraws: bool) -> None:
        if withdraws:
            stood = carried.stands(chunk)
            if carried.withdrawn is None:
                carried.withdrawn = Chunks()
            carried.withdrawn.add(chunk)
            change = -stood
        else:
            is_new = carried.chunks.add(chunk)
            change = is_new and (carried.withdrawn is None or chunk not in carried.withdrawn)
        if change:
            sources = self._epochs[epoch][partition]
            if len(sources) == 1 or not any(c.stands(chunk) for c in sources if c is not carried):
                self.units += change

    def _note_series(self, carried: Carried, series: Series) -> None:
        sources = self._partition(series.epoch, series.partition)
        if not series.withdraws and len(series.runs) > RUN_BYTES and _is_behind(series.ends[0], sources):
            carried.chunks.extend(series.runs)
            self.units += series.size
            return
        for run in Chunks(series.runs).each():
            first, last, step = run
            if first < last and not series.withdraws and _is_alone(run, sources, carried):
                if not carried.chunks.covers(run):
                    carried.chunks.insert(run)
                    self.units += (last - first) // step + 1
            else:
                for chunk in range(first, last + 1, step):
                    self._note_one(carried, series.epoch, series.partition, chunk, series.withdraws)

    def _note_late(self, lane: PeerId, epoch: int, partition: int, attempt: int, withdraws: bool, run: Run) -> None:
        """Of a dropped epoch."""
        watched = self._watched.get((epoch, partition), {})
        first, last, step = run
        number = (last - first) // step + 1
        for chunk in [chunk for chunk in watched if first <= chunk <= last and (chunk - first) % step == 0]:
            number -= 1
            known = watched[chunk]
            counted = bool(known.standing)
            if withdraws:
                known.withdrawn.add((attempt, lane))
                known.standing.discard((attempt, lane))
            elif (attempt, lane) not in known.withdrawn:
                known.standing.add((attempt, lane))
            self.units += bool(known.standing) - counted
            if withdraws and len(known.standing) == 1:
                self._unwatch((epoch, partition), chunk)  # it is decided
        self.units += -number if withdraws else number

    def _watch(self, place: tuple[int, int], chunk: int) -> Watched:
        return self._watched.setdefault(place, {}).setdefault(chunk, Watched())

    def _unwatch(self, place: tuple[int, int], chunk: int) -> None:
        del self._watched[place][chunk]
        if not self._watched[place]:
            del self._watched[place]

    def _watch_series(self, lane: PeerId, series: Series) -> None:
        """What another still watches."""
        for mark in islice(series.marks(), WATCHED_MAX):
            known = self._watch((series.epoch, series.partition), mark.unit.chunk)
            (known.withdrawn if series.withdraws else known.standing).add((series.attempt, lane))


def _is_behind(first: int, sources: Iterable[Carried]) -> bool:
    """Everything that is known of the partition comes before this chunk."""
    return all(c.chunks.last < first and (c.withdrawn is None or c.withdrawn.last < first) for c in sources)


def _is_alone(run: Run, sources: Iterable[Carried], carried: Carried | None) -> bool:
    """Nothing that is known of the partition reaches into this run; or it is known whole, of the same attempt."""
    if carried is not None and carried.chunks.covers(run):
        return True
    return not any(each.reaches(run[0], run[1]) for each in sources)


def _doubled(sources: tuple[Carried, ...], most: int) -> list[int]:
    """Chunks with two attempts that stand, `most` at the most."""
    doubled: dict[int, None] = {}
    for index, one in enumerate(sources):
        for other in sources[:index]:
            for chunk in one.chunks.common(other.chunks, max(0, most)):
                if one.stands(chunk) and other.stands(chunk) and len(doubled) < most:
                    doubled[chunk] = None
    return list(doubled)
