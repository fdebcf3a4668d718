"""Files of lines, cut at any byte: a partition has the lines that begin in its range of bytes.

    bytes     |aaaa\nbb|bbbb\ncc\n|d\n|         cuts where they happen to fall
    lines      aaaa, bbbb | cc        | d       a partition passes by what began before it, and reads on past its end

Nobody reads the file beforehand. Which line of the file a range begins with is counted only when an error has to say
it. A line ends with LF or CR LF. A gzip file cannot be cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import IO, Any, Protocol

from gossip.errors import UsageError
from p2p.data.files import BROKEN, File

LINE_BYTES_MAX = 1 << 24
"""A longer line is refused: a file without line ends would be held in memory whole."""
RANGE_BYTES_MIN = 1 << 16
"""A shorter piece of a file is not worth a partition, unless the user asks for it."""
COUNTED_BYTES_MAX = 1 << 30
"""So many bytes are read again to tell the number of a line; of one that is further behind, the byte is told."""
BOM = b"\xef\xbb\xbf"
"""That some programs write before UTF-8."""


@dataclass(frozen=True)
class Range:
    """The lines of a file that begin in the bytes from `start` to `end`."""

    file: File
    start: int
    end: int

    @property
    def likeness(self) -> str:
        """The same wherever the file is."""
        return f"{self.file.likeness} {self.start} {self.end}"

    @property
    def is_whole(self) -> bool:
        """It is all of the file."""
        return self.start == 0 and (self.file.gzipped or self.end >= self.file.size)

    def read(self, count: int, header: bool = False) -> Iterator[Lines]:
        """The lines, `count` at a time; of the first line of the file alone, if that is a `header`.

        Raises:
            UsageError: the file is cut short, has changed, or has a line that is too long.
        """
        sizes = chain([1] if header and not self.start else [], repeat(count))
        with self.file.opened() as file:
            reader = _Reader(self, file)
            reader.begin()
            while lines := reader.take(next(sizes)):
                yield lines

    def lines_before(self, offset: int) -> int:
        """How many lines end before a byte of the file."""
        with self.file.opened() as file:
            count = 0
            while offset > 0 and (piece := file.read(min(offset, 1 << 20))):
                count += piece.count(b"\n")
                offset -= len(piece)
        return count


@dataclass(frozen=True)
class Lines:
    """Some lines of a range, as they are in the file."""

    source: Range
    offset: int
    """The byte at which the first of them begins."""
    lines: Sequence[bytes]

    def wrong(self, index: int, what: str) -> UsageError:
        """The error that line `index` of these is: `what` says what it holds and what was expected."""
        return UsageError(f"{self.source.file.name!r}, {self.place(index)}: {what}")

    def place(self, index: int) -> str:
        """Where line `index` of these is in the file."""
        return _place(self.source, self.offset + sum(map(len, self.lines[:index])))


def _place(source: Range, offset: int) -> str:
    unpacked = " unpacked" if source.file.gzipped else ""
    if offset > COUNTED_BYTES_MAX:
        return f"the line at byte {offset}{unpacked}"
    return f"line {source.lines_before(offset) + 1} (byte {offset}{unpacked})"


class _Reader:
    """A range that is being read."""

    def __init__(self, source: Range, file: IO[bytes]) -> None:
        self._source = source
        self._file = file
        self._offset = 0
        self._count = 0
        """Of lines."""

    def begin(self) -> None:
        """Pass by the line that began before the range."""
        if self._source.start:
            self._file.seek(self._source.start - 1)
            self._offset = self._source.start - 1
            self._offset += len(self._line())

    def take(self, count: int) -> Lines | None:
        """The next lines, at most `count`; None behind the last one."""
        begun = self._offset
        lines: list[bytes] = []
        while len(lines) < count and self._offset < self._source.end and (line := self._line()):
            self._offset += len(line)
            if self._offset == len(line):
                begun = len(line) - len(line.removeprefix(BOM))
                line = line.removeprefix(BOM)
            lines.append(line)
        return Lines(self._source, begun, lines) if lines else None

    def _line(self) -> bytes:
        file = self._source.file
        try:
            line = self._file.readline(LINE_BYTES_MAX + 1)
        except BROKEN as error:
            raise file.is_broken(error, f"behind line {self._count} (byte {self._offset} unpacked)") from None
        if len(line) > LINE_BYTES_MAX:
            raise UsageError(
                f"{file.name!r}, {_place(self._source, self._offset)}: a line of more than {LINE_BYTES_MAX} bytes, "
                "expected shorter ones, each ended by a line feed"
            )
        self._count += 1
        return line


class Format(Protocol):
    """What lines mean."""

    @property
    def header(self) -> bool:
        """The first line of a file is none of its rows."""
        ...

    def check_header(self, lines: Lines) -> None:
        """Raise `UsageError` for a header that does not fit."""
        ...

    def block(self, lines: Lines) -> Any:
        """The block of rows that these lines are, or None if they are none. Raises `UsageError`."""
        ...


@dataclass(frozen=True)
class LinesPartition:
    """A partition of blocks of at most `rows` rows."""

    source: Range
    format: Format
    rows: int

    @property
    def likeness(self) -> str:
        """What tells it from a partition of other data: see `p2p.checkpoint.likeness`."""
        return self.source.likeness

    def __call__(self) -> Iterator[Any]:
        count = 0
        is_header = self.format.header and not self.source.start
        for lines in self.source.read(self.rows, is_header):
            if is_header:
                self.format.check_header(lines)
                is_header = False
                continue
            block = self.format.block(lines)
            if block is not None:
                count += 1
                yield block
        if not count and self.source.is_whole:
            raise UsageError(f"{self.source.file.name!r} has no rows, expected at least one")


def split(files: Sequence[File], count: int, least: int = RANGE_BYTES_MIN) -> list[Range]:
    """Ranges of all files: about `count` of the same size, none shorter than `least`, and at least one of each file."""
    total = sum(file.size for file in files)
    ranges: list[Range] = []
    for file in files:
        share = 1 if file.gzipped else max(1, min(round(count * file.size / total), file.size // least))
        ends = [file.size * number // share for number in range(share)] + [sys.maxsize if file.gzipped else file.size]
        ranges += [Range(file, start, end) for start, end in pairwise(ends)]
    return ranges
