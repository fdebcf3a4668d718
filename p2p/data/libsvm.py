"""Files in the format of LIBSVM: `read_libsvm`.

    -1 3:1 11:0.5 # a comment               label, then the features that are not 0: index from 1, and value

A block whose pattern holds becomes one array of numbers in numpy. Another one is read line by line, which finds what is
wrong with which line.

Source: Chang and Lin, LIBSVM: A Library for Support Vector Machines (ACM TIST 2, 2011), README of the program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from gossip.arguments import integer
from gossip.errors import UsageError
from p2p.data.files import Urls, find
from p2p.data.lines import Lines, LinesPartition, split
from p2p.data.partitions import BLOCK_ROWS, Partition, handed_out, wanted
from p2p.data.values import Labels, are_fit, expected_of, found_number

KIND = "a libsvm file"
FEATURES_MAX = 2**31 - 1
"""Indices of scipy's sparse matrices are int32 up to here."""
ROWS = re.compile(rb"(?:[^\s:]++(?:[ \t]++[0-9]{1,10}+:[^\s:]++)*+[ \t]*+\r?\n)*+")
COMMENT = re.compile(rb"#[^\n]*+")


def read_libsvm(
    urls: Urls,
    features: int | None = None,
    *,
    classes: int | Sequence[float] | None = None,
    block_rows: int = BLOCK_ROWS,
    partitions: int | None = None,
    sc: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Blocks (CSR of (n, features) float32, labels (n,)) of libsvm files, as partitions or as an RDD.

    `urls` are a path, a URL, a glob, or a list of these; files may be gzipped. Index i of a file is column i - 1.
    Labels are float64, or int64 with `classes=10`: integers from 0 to 9. `classes=(-1, 1)` allows these two alone. What
    follows a # is a comment; empty lines are passed by. Without `features` all files are read once beforehand, by the
    executors of Spark or here, and the largest index is taken. A model of other files may have more.

    Files are cut into about `partitions` ranges of bytes (default: 4 for each core), a gzip file is one. Rows come in
    the order of the file, `block_rows` a block. `sc` is a SparkContext, for an RDD. `storage_options` are those of
    fsspec, such as `{"anon": True}`; they travel with the partitions.

    Raises:
        UsageError: an argument or a file cannot be; also where a partition is read: with the file, the line and what
            was expected of an index that is less than 1, no more than the one before it or more than `features`, a
            value that is no finite number of float32, a label that is none of `classes`, or a file that has changed.
    """
    labels = Labels.of(classes)
    integer("block_rows", block_rows, 1)
    if features is not None:
        features = integer("features", features, 1)
        if features > FEATURES_MAX:
            raise UsageError(f"features={features}, expected at most {FEATURES_MAX}")
    count = wanted(partitions, sc)
    files = find(urls, storage_options, KIND)
    ranges = split(files, count) if partitions is None else split(files, count, 1)
    parts = [LinesPartition(each, _Rows(features or FEATURES_MAX, labels), block_rows) for each in ranges]
    if features is None:
        rows = _Rows(_largest_index(parts, sc), labels)
        parts = [replace(part, format=rows) for part in parts]
    return handed_out(parts, sc)


def _largest_index(parts: Sequence[Partition], sc: Any) -> int:
    if sc is None:
        found = [largest for part in parts for largest in _largest(part())]
    else:
        from p2p.engines.spark import collect

        found = collect(handed_out(parts, sc), _largest)
    if max(found) == 0:
        raise UsageError("no row has a feature, expected some, or features= to say how many there are")
    return max(found)


def _largest(blocks: Iterable[Any]) -> Iterator[int]:
    """The largest index of a partition, from 1; 0 if there is none."""
    yield max((int(x.indices.max()) + 1 for x, _ in blocks if len(x.indices)), default=0)


@dataclass(frozen=True)
class _Rows:
    """What a line may hold."""

    features: int
    labels: Labels
    header = False

    def check_header(self, lines: Lines) -> None:
        raise AssertionError("libsvm has none")

    def block(self, lines: Lines) -> Any:
        return self._fast(lines) or self._careful(lines)

    def _fast(self, lines: Lines) -> Any:
        """None if anything is not as it should be."""
        text = b"".join(lines.lines)
        if b"#" in text:
            text = COMMENT.sub(b"", text)
        rows = [line for line in text.split(b"\n") if line.strip()]
        text = b"\n".join(rows) + b"\n"
        if not rows or not ROWS.fullmatch(text):
            return None
        letters = np.frombuffer(text, np.uint8)
        ends = np.searchsorted(np.flatnonzero(letters == ord(":")), np.flatnonzero(letters == ord("\n")))
        indptr = np.concatenate([[0], ends])
        try:
            numbers = np.fromstring(text.replace(b":", b" "), sep=" ")
        except (ValueError, DeprecationWarning):
            return None
        if len(numbers) != len(rows) + 2 * indptr[-1]:
            return None
        is_label = np.zeros(len(numbers), bool)
        is_label[np.arange(len(rows)) + 2 * indptr[:-1]] = True
        labels, pairs = numbers[is_label], numbers[~is_label]
        indices, values = pairs[0::2], pairs[1::2]
        rises = np.diff(indices) > 0
        begins = indptr[1:-1]
        rises[begins[(begins > 0) & (begins < len(indices))] - 1] = True
        if len(indices) and not (rises.all() and indices.min() >= 1 and indices.max() <= self.features):
            return None
        if not are_fit(values) or not are_fit(labels) or self.labels.first_wrong(labels) is not None:
            return None
        return self._matrix(values, indices - 1, indptr), self.labels.typed(labels)

    def _careful(self, lines: Lines) -> Any:
        """The same, line by line; raises what is wrong with the first line that is."""
        labels: list[float] = []
        indices: list[int] = []
        values: list[float] = []
        indptr = [0]
        for number, line in enumerate(lines.lines):
            words = line.partition(b"#")[0].split()
            if not words:
                continue
            labels.append(self._label(lines, number, words[0]))
            before = 0
            for word in words[1:]:
                before, value = self._pair(lines, number, word, before)
                indices.append(before - 1)
                values.append(value)
            indptr.append(len(indices))
        if not labels:
            return None
        return self._matrix(values, indices, indptr), self.labels.typed(np.array(labels))

    def _matrix(self, values: Any, indices: Any, indptr: Any) -> Any:
        parts = (np.asarray(values, np.float32), np.asarray(indices, np.int32), np.asarray(indptr, np.int32))
        return sparse.csr_array(parts, (len(indptr) - 1, self.features))

    def _label(self, lines: Lines, number: int, word: bytes) -> float:
        text = word.decode(errors="backslashreplace")
        value = found_number(text)
        if value is None or self.labels.first_wrong([value]) is not None:
            expected = f"expected {self.labels.expected}" if self.labels.classes is not None else expected_of(text)
            raise lines.wrong(number, f"the label is {text!r:.40}, {expected}")
        return value

    def _pair(self, lines: Lines, number: int, word: bytes, before: int) -> tuple[int, float]:
        text = word.decode(errors="backslashreplace")
        first, colon, last = text.partition(":")
        if not colon or not (first.isascii() and first.isdigit()):
            raise lines.wrong(number, f"{text!r:.40}, expected a feature as index:value, such as 3:0.5")
        index = int(first) if len(first) <= 20 else FEATURES_MAX + 1
        if index < 1:
            raise lines.wrong(number, f"index {first}, expected 1 or more: the first feature is 1 in libsvm files")
        if index > self.features:
            raise lines.wrong(
                number, f"index {first:.40}, expected at most {self.features}: so many features there are"
            )
        if index <= before:
            raise lines.wrong(number, f"index {first} after {before}, expected indices that rise")
        value = found_number(last)
        if value is None:
            raise lines.wrong(number, f"feature {first} is {last!r:.40}, {expected_of(last)}")
        return index, value
