"""The own lane's segments: where a driver keeps the updates that `Keep`, `Fold` and `Forget` name.

Small logs stay in memory. Beyond `memory_bytes_max` the oldest segments move to an unlinked temporary file, so that a
reader that stands still costs its origin disk space and no memory. Everything is read, summed and moved in blocks.
Files that were lent are a segment without being copied, and updates of other kinds wait beside whole arrays. Beyond a
limit the oldest of these files are summed into a new one, which is lent to readers in its turn and never written to
again.

How updates add up is their kind's to say (`gossip.updates`). Here two sorts of kinds are told apart: those that are
read block by block, as whole arrays are, and those that are summed in memory. What does not add up there, as it is of
several kinds, is summed as whole arrays.
"""

from __future__ import annotations

import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gossip.arrays import Array, Bytes, Layout, Packed, Payload
from gossip.errors import UsageError
from gossip.events import Negative, Own
from gossip.updates import KINDS, kind_of, read_whole, total
from gossip.updates.dense import squares_in_pieces
from gossip.updates.table import Kinds
from gossip.wire import BLOCK_BYTES, allocate

BESIDE_BYTES_MAX = 1 << 22
"""Of updates that wait beside whole arrays of one segment; more are added to them."""
LENT_FILES_MAX = 8
"""Lent files to keep as they are: a range of more parts than a message over a link takes goes as bytes."""


class FilePayload:
    """Packed arrays in an open file, read by position: several may read the same file. Closes nothing by itself.

    It is read and not mapped, which costs the same for blocks that stay in the cache, and a file that was cut short is
    an error and not the end of the process.
    """

    def __init__(self, layout: Layout, descriptor: int, offset: int = 0) -> None:
        """They begin at byte `offset` of the file."""
        self.layout = layout
        self.descriptor = descriptor
        self.offset = offset

    def read(self, start: int, stop: int) -> bytes:
        data = os.pread(self.descriptor, stop - start, self.offset + start)
        if len(data) != stop - start:
            raise UsageError(f"a payload file ends at byte {start + len(data)}, expected {self.layout.nbytes}")
        return data


class Lent(ABC):
    """Whole arrays in files of somebody else's, looked at block by block before they are merged; takes no memory."""

    layout: Layout
    memory_bytes = 0

    @abstractmethod
    def read(self, start: int, stop: int) -> Bytes:
        """A fresh copy of bytes [start, stop)."""

    @cached_property
    def squares(self) -> float:
        """The sum of the squares of all floats; NaN if one of them is a NaN or an infinity. Looked at once."""
        return squares_in_pieces(self)

    @property
    def is_finite(self) -> bool:
        """No number is a NaN or an infinity."""
        return not math.isnan(self.squares)

    def arrays(self) -> dict[str, Array]:
        """A copy of the named arrays."""
        return self.layout.views(self.read(0, self.layout.nbytes))


class LentFile(FilePayload, Lent):
    """Packed arrays in somebody's file, which nobody writes to as long as this descriptor or a duplicate is open.

    So an update can be kept, and given to other peers of this machine, where its task wrote it, without a copy.
    """

    own = False
    """It is a sum of ours, and no task waits for its memory."""

    def again(self) -> LentFile:
        """The same once more, to be closed by itself."""
        again = LentFile(self.layout, os.dup(self.descriptor), self.offset)
        again.own = self.own
        return again

    def close(self) -> None:
        os.close(self.descriptor)


class MemorySegment:
    """A summed stretch in memory."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.buffer: Any = allocate(layout.nbytes)
        self.memory_bytes = layout.nbytes

    def read(self, start: int, stop: int) -> Bytes:
        return memoryview(self.buffer)[start:stop]

    def write(self, start: int, data: Bytes) -> None:
        memoryview(self.buffer)[start : start + len(data)] = data

    def close(self) -> None:
        self.buffer = None


class FileSegment(FilePayload):
    """A summed stretch in an unlinked temporary file."""

    memory_bytes = 0

    def __init__(self, layout: Layout, directory: str | None) -> None:
        descriptor, path = tempfile.mkstemp(prefix="deepdist-segment-", dir=directory)
        os.unlink(path)
        super().__init__(layout, descriptor)

    def write(self, start: int, data: Bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, start)
            view, start = view[written:], start + written

    def close(self) -> None:
        os.close(self.descriptor)


class LentSum(Lent):
    """The sum of lent files with whole arrays, and of updates of other kinds."""

    def __init__(
        self, layout: Layout, files: list[LentFile], others: Sequence[Packed] = (), kinds: Kinds = KINDS
    ) -> None:
        self.layout, self.files, self.others, self.kinds = layout, files, others, kinds

    def read(self, start: int, stop: int) -> Bytes:
        """A fresh copy of bytes [start, stop)."""
        return _sum(self.layout, [*self.files, *self.others], start, stop, self.kinds)

    def close(self) -> None:
        for file in self.files:
            file.close()


@dataclass
class Entry:
    """Updates lo..hi, summed, and where they lie."""

    lo: int
    hi: int
    segment: MemorySegment | FileSegment | LentSum
    beside: list[Packed] = field(default_factory=list)
    """To be added to whole arrays: small updates wait beside a large one, which need not be copied for them."""

    @property
    def memory_bytes(self) -> int:
        return self.segment.memory_bytes + self.beside_bytes

    @property
    def beside_bytes(self) -> int:
        return sum(part.layout.nbytes for part in self.beside)


Cut = tuple[tuple[int, int], ...]
"""First and last update of some segments."""


class Segments:
    """All segments of one lane, oldest first."""

    def __init__(
        self,
        memory_bytes_max: int = 1 << 26,
        directory: str | None = None,
        lent_bytes_max: int = 1 << 28,
        *,
        model: Layout | None = None,
        kinds: Kinds = KINDS,
    ) -> None:
        """`directory` is where the temporary files go; by default the system's. Of what is lent, the newest
        `lent_bytes_max` stay as they are, and one update at least; the rest is copied, so that its owner can use its
        memory again. `kinds`: of updates that are kept here. `model` is what these are added to, to be given where some
        of them do not add up but as whole arrays."""
        self.kinds = kinds
        self._model = model
        self._entries: list[Entry] = []
        self._retained: dict[int, MemorySegment | FileSegment] = {}
        self._last_sums: tuple[Cut, list[Packed]] = ((), [])
        """What was summed in memory last, and of which segments."""
        self._memory_bytes_max = memory_bytes_max
        self._directory = directory
        self._lent_bytes_max = lent_bytes_max

    def keep(self, lo: int, hi: int, payload: Payload) -> None:
        """Carry out `Keep`."""
        if lo < hi:
            entry = self._entries[-1]
            assert (entry.lo, entry.hi) == (lo, hi - 1)
            self._add(entry, payload)
            entry.hi = hi
        else:
            self._entries.append(Entry(lo, hi, _borrowed(payload) or self._stored(payload)))
        self._limit_lent()

    def fold(self, lo: int, hi: int) -> None:
        """Carry out `Fold`."""
        first, *others = [entry for entry in self._entries if lo <= entry.lo and entry.hi <= hi]
        for entry in others:
            self._add(first, entry.segment)
            for part in entry.beside:
                self._add(first, part)
            entry.segment.close()
            self._entries.remove(entry)
        first.hi = hi

    def forget(self, through: int) -> None:
        """Carry out `Forget`."""
        for entry in [entry for entry in self._entries if entry.hi <= through]:
            entry.segment.close()
            self._entries.remove(entry)

    def sum(self, lo: int, hi: int) -> RangeSum | Packed | None:
        """Updates lo..hi as one payload; None if segments do not end there.

        Whole arrays are summed block by block when they are read. Rows alone, for one, are summed at once: only their
        sum tells which they are.
        """
        entries = self._within(lo, hi)
        if not entries:
            return None
        whole = next((entry.segment.layout for entry in entries if self.in_blocks(entry.segment)), None)
        if whole is None:
            sums = self._sums(entries)
            if len(sums) == 1:
                return sums[0]
            whole = self._whole
        return RangeSum(self, lo, hi, whole)

    def bounds(self, lo: int, hi: int) -> Cut:
        """First and last update of each segment of lo..hi: while these are the same, so is the sum, to the last bit."""
        return tuple((entry.lo, entry.hi) for entry in self._within(lo, hi))

    def retain(self, number: int, payload: Payload) -> None:
        """Carry out `Retain`."""
        self._retained[number] = self.copy(payload)

    def release(self, number: int) -> None:
        """Carry out `Release`."""
        self._retained.pop(number).close()

    def resolve(self, payload: Payload | Own | Negative) -> Payload:
        """The payload that a reference names."""
        match payload:
            case Own(lo, hi):
                total = self.sum(lo, hi)
                assert total is not None, f"the peer wants its own {lo}..{hi}, which it does not keep"
                return total
            case Negative(number):
                retained = self._retained[number]
                return kind_of(retained.layout, self.kinds).negative(retained)
        return payload

    def copy(self, payload: Payload) -> MemorySegment | FileSegment:
        """A copy, in a file unless it is small; to be closed."""
        small = payload.layout.nbytes <= BLOCK_BYTES
        return (None if small else _filed(payload, self._directory)) or _copied(payload)

    @property
    def memory_bytes(self) -> int:
        """What the segments hold in memory."""
        return sum(entry.memory_bytes for entry in self._entries)

    @property
    def retained(self) -> int:
        """How many updates may have to be taken back."""
        return len(self._retained)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Give everything back."""
        for entry in self._entries:
            entry.segment.close()
        for segment in self._retained.values():
            segment.close()
        self._entries.clear()
        self._retained.clear()

    def _within(self, lo: int, hi: int) -> list[Entry]:
        """The segments that make up lo..hi exactly; empty if there are no such."""
        chosen = [entry for entry in self._entries if lo <= entry.lo and entry.hi <= hi]
        return chosen if chosen and chosen[0].lo == lo and chosen[-1].hi == hi else []

    def _limit_lent(self) -> None:
        """Copy what was lent longest ago, as far as tasks wait for too much of it."""
        lent = [entry.segment for entry in self._entries if isinstance(entry.segment, LentSum)]
        borrowed = [[file for file in segment.files if not file.own] for segment in lent]
        files = sum(len(each) for each in borrowed)
        nbytes = sum(file.layout.nbytes for each in borrowed for file in each)
        for segment, each in zip(lent, borrowed, strict=True):
            too_much = files > 1 and (files > LENT_FILES_MAX or nbytes > self._lent_bytes_max)
            is_copied = (too_much and each) or len(segment.files) > LENT_FILES_MAX
            sum_of_it = _filed(segment, self._directory) if is_copied else None
            if sum_of_it is not None:
                files -= len(each)
                nbytes -= sum(file.layout.nbytes for file in each)
                segment.close()
                segment.files = [LentFile(sum_of_it.layout, sum_of_it.descriptor)]
                segment.files[0].own = True

    def _stored(self, payload: Payload) -> MemorySegment | FileSegment:
        """A copy in memory, or in a file where memory is short."""
        self._spill(payload.layout.nbytes)
        return self._placed(payload)

    def _placed(self, payload: Payload) -> MemorySegment | FileSegment:
        """A copy where there is room now; nothing else moves."""
        in_memory = self.memory_bytes + payload.layout.nbytes <= self._memory_bytes_max
        return (None if in_memory else _filed(payload, self._directory)) or _copied(payload)

    def in_blocks(self, payload: Payload) -> bool:
        """It is read block by block, as whole arrays are."""
        return kind_of(payload.layout, self.kinds).in_blocks

    @property
    def _whole(self) -> Layout:
        """The layout of whole arrays."""
        assert self._model is not None, "updates that add up as whole arrays only need the model's layout"
        return self._model

    def _sums(self, entries: list[Entry]) -> list[Packed]:
        """Sums of updates of which none is read in blocks, as few as there can be. Readers often want the same."""
        cut = tuple((entry.lo, entry.hi) for entry in entries)
        if self._last_sums[0] != cut:
            sums: list[Packed] = []
            for entry in entries:
                self._gather(sums, read_whole(entry.segment))
            self._last_sums = cut, sums
        return self._last_sums[1]

    def _gather(self, sums: list[Packed], update: Packed) -> None:
        """Add an update to the first of `sums` to which it can be added, or put it behind them."""
        for at, one in enumerate(sums):
            found = total(one, update, self.kinds)
            if found is not None:
                sums[at] = found
                return
        sums.append(update)

    def _add(self, entry: Entry, source: Payload) -> None:
        kinds = [kind_of(payload.layout, self.kinds) for payload in (entry.segment, source)]
        whole = [kind.in_blocks for kind in kinds]
        if not any(whole):
            sums = [read_whole(entry.segment)]
            self._gather(sums, read_whole(source))
            self._replace(entry, sums[0] if len(sums) == 1 else Whole(self._whole, sums, self.kinds))
        elif not whole[1]:
            kinds[1].check_fit(source.layout, entry.segment.layout)
            self._add_beside(entry, source)
        elif not whole[0]:
            kinds[0].check_fit(entry.segment.layout, source.layout)
            before, entry.segment = entry.segment, _borrowed(source) or self._placed(source)
            self._add_beside(entry, before)
            before.close()
        else:
            kinds[1].check_fit(source.layout, entry.segment.layout)
            borrowed = _borrowed(source) if isinstance(entry.segment, LentSum) else None
            if isinstance(entry.segment, LentSum) and borrowed is not None:
                entry.segment.files += borrowed.files
            else:
                self._add_whole(self._own(entry), source)

    def _add_beside(self, entry: Entry, source: Payload) -> None:
        """Keep an update beside whole arrays, until there is much."""
        self._gather(entry.beside, Packed(source.layout, bytes(source.read(0, source.layout.nbytes))))
        if entry.beside_bytes > min(BESIDE_BYTES_MAX, self._memory_bytes_max):
            beside, entry.beside = entry.beside, []
            for part in beside:
                self._add_whole(self._own(entry), part)

    def _own(self, entry: Entry) -> MemorySegment | FileSegment:
        """The entry's segment, or a copy in its place if it is lent: what is added to."""
        if isinstance(entry.segment, LentSum):
            lent, entry.segment = entry.segment, self._placed(entry.segment)
            lent.close()
        return entry.segment

    def _replace(self, entry: Entry, payload: Payload) -> None:
        segment = self._stored(payload)  # which may move the one that it replaces
        entry.segment.close()
        entry.segment = segment

    def _add_whole(self, target: MemorySegment | FileSegment, source: Payload) -> None:
        """Add an update of any kind to whole arrays."""
        kind, nbytes = kind_of(source.layout, self.kinds), target.layout.nbytes
        for start in range(0, nbytes, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, nbytes)
            if isinstance(target, MemorySegment):
                kind.add_within(target.layout, memoryview(target.buffer)[start:stop], start, source)
            else:
                block = bytearray(target.read(start, stop))
                kind.add_within(target.layout, block, start, source)
                target.write(start, block)

    def _spill(self, wanted: int) -> None:
        """Move the oldest segments to files until `wanted` more bytes fit in memory, or none is left there."""
        for entry in self._entries:
            if self.memory_bytes + wanted <= self._memory_bytes_max:
                return
            moved = _filed(entry.segment, self._directory) if isinstance(entry.segment, MemorySegment) else None
            if moved is not None:
                entry.segment.close()
                entry.segment = moved


def _borrowed(payload: Payload) -> LentSum | None:
    """The payload where it is, if it is lent."""
    if not isinstance(payload, LentFile | LentSum):
        return None
    if isinstance(payload, LentFile):
        return LentSum(payload.layout, [payload.again()])
    return LentSum(payload.layout, [file.again() for file in payload.files], payload.others, payload.kinds)


def _copied(payload: Payload) -> MemorySegment:
    """The payload in memory."""
    segment = MemorySegment(payload.layout)
    _copy(payload, segment)
    return segment


def _filed(payload: Payload, directory: str | None) -> FileSegment | None:
    """The payload in a file; None if the disk is full: then memory has to do."""
    try:
        segment = FileSegment(payload.layout, directory)
    except OSError:
        return None
    try:
        _copy(payload, segment)
    except OSError:
        segment.close()
        return None
    return segment


def _copy(payload: Payload, segment: MemorySegment | FileSegment) -> None:
    for start in range(0, payload.layout.nbytes, BLOCK_BYTES):
        segment.write(start, payload.read(start, min(start + BLOCK_BYTES, payload.layout.nbytes)))


class Whole:
    """Updates of any kinds as whole arrays of the model."""

    def __init__(self, layout: Layout, updates: Sequence[Payload], kinds: Kinds) -> None:
        self.layout, self._updates, self._kinds = layout, updates, kinds

    def read(self, start: int, stop: int) -> Bytes:
        return _sum(self.layout, self._updates, start, stop, self._kinds)


class RangeSum:
    """Updates lo..hi of a lane as a payload. Folding may go on underneath: it does not change the sum of a range."""

    def __init__(self, segments: Segments, lo: int, hi: int, layout: Layout) -> None:
        self._segments, self.lo, self.hi, self.layout = segments, lo, hi, layout
        self._others_of: tuple[Cut, list[Packed]] = ((), [])

    def lent(self) -> tuple[list[LentFile], list[Packed]] | None:
        """The files that this range is the sum of, and updates of other kinds; None unless all whole arrays of it are
        lent."""
        entries = self._segments._within(self.lo, self.hi)
        segments = [entry.segment for entry in entries if self._segments.in_blocks(entry.segment)]
        lent = [segment for segment in segments if isinstance(segment, LentSum)]
        files = [file for segment in lent for file in segment.files]
        return (files, self._others(entries)) if files and len(lent) == len(segments) else None

    def read(self, start: int, stop: int) -> Bytes:
        """A fresh copy of bytes [start, stop); `UsageError` if the range is gone."""
        entries = self._segments._within(self.lo, self.hi)
        if not entries:
            raise UsageError(f"updates {self.lo}..{self.hi} are no longer kept")
        segments = [entry.segment for entry in entries if self._segments.in_blocks(entry.segment)]
        return _sum(self.layout, [*segments, *self._others(entries)], start, stop, self._segments.kinds)

    def _others(self, entries: list[Entry]) -> list[Packed]:
        """What is to be added to whole arrays; read once, as long as the segments are the same."""
        cut = tuple((entry.lo, entry.hi) for entry in entries)
        if self._others_of[0] != cut:
            others = [read_whole(entry.segment) for entry in entries if not self._segments.in_blocks(entry.segment)]
            self._others_of = cut, others + [part for entry in entries for part in entry.beside]
        return self._others_of[1]


def _sum(layout: Layout, updates: Sequence[Payload], start: int, stop: int, kinds: Kinds) -> Bytes:
    """Bytes [start, stop) of the sum of updates of a model of `layout`, as a fresh copy. Whole arrays come first."""
    first, others = updates[0], updates[1:]
    if not kind_of(first.layout, kinds).in_blocks:
        block, others = bytearray(stop - start), updates
    else:
        data = first.read(start, stop)
        if not others and isinstance(data, bytes):
            return data  # from a file: it is a copy
        block = bytearray(data)
    for update in others:
        kind_of(update.layout, kinds).add_within(layout, block, start, update)
    return block
