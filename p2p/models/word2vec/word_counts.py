"""How often each word occurs in a text of any size: counted in parts, and the parts added up.

The text of a lexicon and an array travel from part to part, not objects of Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from p2p.models.word2vec.lexicon import NUL, Lexicon, Row, check_row
from p2p.worker.garbage import leave_out_modules

BLOCK_ROWS = 1000
"""Rows that are counted in one call."""
COLLECT_PARTS_MAX = 32
"""Of an RDD, whose counts the driver program adds up itself. Those of more partitions are added up on the cluster, by a
shuffle, which leaves rare words there; it costs a Spark that has made none before 4 seconds of compiling Java."""


class Part(NamedTuple):
    """The counts of a part of a text."""

    rows: int
    words: int
    lexicon: bytes
    """`Lexicon.text` of its different words."""
    counts: NDArray[np.int64]
    """By number."""


class WordCounts:
    """Rows, words, and how often each word occurs."""

    def __init__(self) -> None:
        self.rows = self.words = 0
        self._lexicon = Lexicon()
        self._counts = np.zeros(0, np.int64)

    def count(self, rows: Iterable[Row]) -> None:
        """Add the words of `rows`, which are read once and as a stream; raises `UsageError` for one that is no row."""
        rest = map(check_row, rows)
        while block := list(islice(rest, BLOCK_ROWS)):
            numbers, _ = self._lexicon.numbers(block, add=True)
            self.rows += len(block)
            self.words += len(numbers)
            self._room()
            np.add.at(self._counts, numbers, 1)

    def add(self, part: Part) -> None:
        """Add what was counted elsewhere."""
        self.rows += part.rows
        self.words += part.words
        numbers = self._lexicon.add_text(part.lexicon)
        self._room()
        self._counts[numbers] += part.counts

    def part(self) -> Part:
        """All of it, to be added to others."""
        return Part(self.rows, self.words, self._lexicon.text(), self._counts[: len(self._lexicon)])

    def shares(self, count: int) -> Iterator[tuple[int, Part]]:
        """All of it by word in `count` parts with their numbers, the same for everybody; the first has the totals."""
        words = self._lexicon.text().split(NUL)[:-1]
        owners = np.array([crc32(word) % count for word in words], np.int64)
        for owner in range(count):
            mine = np.flatnonzero(owners == owner)
            totals = (self.rows, self.words) if owner == 0 else (0, 0)
            if not any(totals) and not len(mine):
                continue
            yield owner, Part(*totals, b"".join(words[number] + NUL for number in mine), self._counts[mine])

    def frequent(self, least: int) -> dict[str, int]:
        """The words that occur at least so often, with their counts."""
        numbers = np.flatnonzero(self._counts[: len(self._lexicon)] >= least)
        counts = self._counts[numbers].tolist()
        return dict(zip(self._lexicon.words(numbers), counts, strict=True))

    def _room(self) -> None:
        if len(self._counts) < len(self._lexicon):
            more = np.zeros(2 * len(self._lexicon), np.int64)
            more[: len(self._counts)] = self._counts
            self._counts = more


def of_rows(rows: Iterable[Row]) -> WordCounts:
    """The counts of `rows`."""
    counts = WordCounts()
    counts.count(rows)
    return counts


def of_rdd(corpus: Any, least: int) -> tuple[int, int, dict[str, int]]:
    """(rows, words, counts of the words that occur at least so often), counted by Spark."""
    from p2p.engines.spark import check_input, collect

    check_input(corpus)
    parts = corpus.getNumPartitions()

    def of_partition(rows: Iterable[Row]) -> WordCounts:
        counts = of_rows(rows)
        leave_out_modules()
        return counts

    if parts <= COLLECT_PARTS_MAX:
        counts = of_parts(collect(corpus, lambda rows: [of_partition(rows).part()]))
        return counts.rows, counts.words, counts.frequent(least)

    def shares(rows: Iterable[Row]) -> Iterator[tuple[int, Part]]:
        return of_partition(rows).shares(parts)

    def frequent(share: tuple[int, Iterable[Part]]) -> tuple[int, int, dict[str, int]]:
        counts = of_parts(share[1])
        return counts.rows, counts.words, counts.frequent(least)

    counted = collect(corpus, shares, lambda shared: shared.groupByKey(parts).map(frequent))
    merged = {word: count for _, _, some in counted for word, count in some.items()}
    return sum(rows for rows, _, _ in counted), sum(words for _, words, _ in counted), merged


def of_parts(parts: Iterable[Part]) -> WordCounts:
    """The counts of `parts` together."""
    counts = WordCounts()
    for part in parts:
        counts.add(part)
    return counts
