"""Files of numbers between commas: `read_csv`.

A block goes through numpy's reader. One that numpy refuses, as it does quotes, is read line by line by the `csv`
module, which finds what is wrong with which line. A row is one line: in a quoted field there is no line end.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import flag, integer
from gossip.errors import UsageError
from p2p.data.files import File, Urls, find
from p2p.data.lines import Lines, LinesPartition, Range, split
from p2p.data.partitions import BLOCK_ROWS, handed_out, wanted
from p2p.data.values import Floats, Labels, are_fit, expected_of, found_number

KIND = "a csv file of numbers"


def read_csv(
    urls: Urls,
    label: str | int | None,
    *,
    header: bool = True,
    delimiter: str = ",",
    classes: int | Sequence[float] | None = None,
    block_rows: int = BLOCK_ROWS,
    partitions: int | None = None,
    sc: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Blocks (features (n, d) float32, labels (n,)) of files of numbers, as partitions or as an RDD.

    `urls` are a path, a URL, a glob, or a list of these; files may be gzipped. `label` is the column of labels, by its
    name in the `header`, or by its number from 0 (negative ones count from the end); with None blocks are features
    alone. The d other columns are features, in their order. Labels are float64, or int64 with `classes=10`: integers
    from 0 to 9. `classes=(-1, 1)` allows these two alone. Empty lines are passed by.

    Files are cut into about `partitions` ranges of bytes (default: 4 for each core), a gzip file is one. Rows come in
    the order of the file, `block_rows` a block. `sc` is a SparkContext, for an RDD. `storage_options` are those of
    fsspec, such as `{"anon": True}`; they travel with the partitions.

    Raises:
        UsageError: an argument or a file cannot be; also where a partition is read: with the file, the line and what
            was expected of a row that has other columns than the first line, a value that is no finite number of
            float32, a quote that is not closed, a label that is none of `classes`, or a file that has changed.
    """
    flag("header", header)
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii():
        raise UsageError(f"delimiter={delimiter!r}, expected one character, such as ',' or ';' or '\\t'")
    integer("block_rows", block_rows, 1)
    labels = Labels.of(classes)
    if label is None and classes is not None:
        raise UsageError(f"classes={classes!r} with label=None, expected the column that has the labels")
    count = wanted(partitions, sc)
    files = find(urls, storage_options, KIND)
    first = _first_line(files[0])
    names = _fields(first, 0, delimiter)
    table = _Table(tuple(names), _column(label, names, header, files[0]), header, delimiter, labels)
    if header:
        table.check_header(first)
    ranges = split(files, count) if partitions is None else split(files, count, 1)
    return handed_out([LinesPartition(each, table, block_rows) for each in ranges], sc)


def _first_line(file: File) -> Lines:
    first = next(Range(file, 0, file.size).read(1), None)
    if first is None:
        raise UsageError(f"{file.name!r} has no rows, expected at least one")
    if not first.lines[0].strip():
        raise first.wrong(0, f"an empty line, expected the first one of {KIND}")
    return first


def _column(label: str | int | None, names: list[str], header: bool, file: File) -> int | None:
    """Which column has the labels."""
    if label is None:
        return None
    if isinstance(label, str):
        stripped = [name.strip() for name in names]
        if not header:
            raise UsageError(f"label={label!r} with header=False, expected the number of a column, from 0")
        if stripped.count(label) != 1:
            raise UsageError(
                f"label={label!r} is the name of {stripped.count(label)} columns of {file.name!r}, expected one of "
                f"{', '.join(map(repr, stripped)):.300}"
            )
        column = stripped.index(label)
    else:
        column = integer("label", label)
        if not -len(names) <= column < len(names):
            raise UsageError(f"label={column}, expected a column from 0 to {len(names) - 1}: {file.name!r} has those")
        column %= len(names)
    if len(names) == 1:
        raise UsageError(f"{file.name!r} has one column, that of the labels, expected features beside it")
    return column


def _text(lines: Lines, index: int) -> str:
    try:
        return lines.lines[index].rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        byte = lines.lines[index][error.start]
        raise lines.wrong(
            index, f"byte 0x{byte:02x} at its place {error.start + 1} is no UTF-8, expected a text in UTF-8"
        ) from None


def _fields(lines: Lines, index: int, delimiter: str) -> list[str]:
    text = _text(lines, index)
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        hint = ", or a quote is not closed" if text.count('"') % 2 else ""
        raise lines.wrong(index, f"{text!r:.80} is no row of csv ({error}{hint}), expected a row in one line") from None
    return rows[0] if rows else []


@dataclass(frozen=True)
class _Table:
    """The columns of all files."""

    names: tuple[str, ...]
    """The header, or the fields of the first row."""
    label: int | None
    header: bool
    delimiter: str
    labels: Labels

    def check_header(self, lines: Lines) -> None:
        fields = tuple(_fields(lines, 0, self.delimiter))
        if fields != self.names:
            raise lines.wrong(
                0,
                f"a header of {len(fields)} columns {fields!r:.100}, expected that of the first file, "
                f"{len(self.names)} columns {self.names!r:.100}",
            )
        if all(found_number(field) is not None for field in fields):
            raise lines.wrong(0, f"{fields!r:.100} are numbers, expected the names of columns: say header=False")

    def block(self, lines: Lines) -> Any:
        values = self._fast(lines)
        if values is None:
            values = self._careful(lines)
        if not len(values):
            return None
        if self.label is None:
            return values.astype(np.float32)
        features = np.delete(values, self.label, axis=1).astype(np.float32)
        return features, self.labels.typed(values[:, self.label].copy())

    def _fast(self, lines: Lines) -> Floats | None:
        """(rows, columns), or None if anything is not as it should be."""
        joined = b"".join(lines.lines)
        if joined.count(b"\r") != joined.count(b"\r\n"):
            return None
        rows = [line for line in lines.lines if line.strip()]
        if not rows:
            return np.empty((0, len(self.names)))
        try:
            values = np.loadtxt(rows, np.float64, delimiter=self.delimiter, comments=None, ndmin=2, encoding="utf-8")
        except (ValueError, UnicodeDecodeError):
            return None
        if values.shape != (len(rows), len(self.names)) or not are_fit(values):
            return None
        return values if self.label is None or self.labels.first_wrong(values[:, self.label]) is None else None

    def _careful(self, lines: Lines) -> Floats:
        """The same, line by line; raises what is wrong with the first line that is."""
        found: list[NDArray[Any]] = []
        for index, line in enumerate(lines.lines):
            if line.strip():
                found.append(np.array(self._row(lines, index), np.float64))
        return np.stack(found) if found else np.empty((0, len(self.names)))

    def _row(self, lines: Lines, index: int) -> list[float]:
        fields = _fields(lines, index, self.delimiter)
        if len(fields) != len(self.names):
            raise lines.wrong(index, f"{len(fields)} columns, expected {len(self.names)} as in the first line")
        values = []
        for column, field in enumerate(fields):
            value = found_number(field)
            if value is None:
                name = f"column {self.names[column].strip()!r}" if self.header else f"column {column}"
                hint = (
                    ": say header=True if this is the header" if lines.offset == 0 == index and not self.header else ""
                )
                raise lines.wrong(index, f"{name} is {field!r:.40}, {expected_of(field)}{hint}")
            values.append(value)
        if self.label is not None and self.labels.first_wrong([values[self.label]]) is not None:
            raise lines.wrong(index, f"the label is {fields[self.label]!r:.40}, expected {self.labels.expected}")
        return values
