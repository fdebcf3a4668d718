"""Where sentences come from: an RDD, a DataFrame, text files or a list, as partitions of token lists or texts.

`sentences` returns what `DeepDist.train` takes: an RDD where Spark reads, else a list of partitions. Text files hold
one sentence per line, in UTF-8, with words between white space; they stay text until it is trained on. Without Spark a
plain file is cut into ranges of bytes that end where a line ends (or a word, if lines are very long), so peers read
side by side and hold one line each. A compressed file cannot be cut: each partition decompresses all of it and takes
every n-th line; that is cheap beside training.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from gossip.arguments import integer
from gossip.errors import UsageError
from p2p.models.lexicon import Row

LINE_BYTES_MAX = 1 << 16
"""A longer line is cut between words: about as many as a gensim kernel takes at once (10,000)."""
RANGE_BYTES_MIN = 1 << 12
"""A shorter piece of a file is not worth a partition."""
PARTITIONS_PER_PEER = 4
"""So that peers which are done early find more."""
COMPRESSED: dict[str, Callable[[str], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open}  # type: ignore[dict-item]

Partition = Sequence[Row] | Callable[[], Iterable[Row]]


def sentences(corpus: Any, column: str | None = None, sc: Any = None, peers: int | None = None) -> Any:
    """`corpus` as an RDD of rows, or as a list of partitions of them for `peers` processes of this machine.

    A row is a list of tokens, or a text, whose words stand between white space. `corpus` is an RDD of rows, a DataFrame
    (`column` holds arrays of strings, or texts; rows without are skipped), a path, or a list of rows. A path is a text
    file (also .gz and .bz2), a folder of them or a glob; Spark reads it if `sc` is a SparkContext, or if one is active
    and `peers` is not given.

    Raises `UsageError` for anything else, and for a path under which there is no file.
    """
    if peers is not None:
        peers = integer("peers", peers, 1)
    if column is not None and not isinstance(column, str):
        raise UsageError(f"column={column!r:.80}, expected the name of a column")
    is_path = isinstance(corpus, str | os.PathLike)
    if sc is not None and not is_path:
        raise UsageError(f"sc= beside a {type(corpus).__name__}, expected a path: leave it out, or give the path")
    if column is not None and not _is_frame(corpus):
        raise UsageError(f"column={column!r} beside a {type(corpus).__name__}, expected a DataFrame: leave it out")
    if is_path:
        if sc is not None and peers is not None:
            raise UsageError(f"sc= and peers={peers}, expected one: on Spark every executor is a peer")
        if sc is not None and not hasattr(sc, "textFile"):
            raise UsageError(f"sc is a {type(sc).__name__}, expected a SparkContext")
        context = sc if sc is not None or peers is not None else _active_context()
        path = os.fspath(corpus)
        return _read_files(path, _count(peers)) if context is None else _read_by_spark(context, path)
    if hasattr(corpus, "mapPartitionsWithIndex") or _is_frame(corpus):
        if peers is not None:
            raise UsageError(f"peers={peers} with data on Spark, expected None: every executor is a peer")
        return _column(corpus, column) if _is_frame(corpus) else corpus
    if isinstance(corpus, list | tuple):
        size = max(1, math.ceil(len(corpus) / _count(peers)))
        return [corpus[start : start + size] for start in range(0, len(corpus), size)] or [[]]
    raise UsageError(
        f"corpus is a {type(corpus).__name__}, expected an RDD of texts or token lists, a DataFrame, the path of text "
        "files, or a list of texts or token lists; of other iterables make a list, or write them to a file, one "
        "sentence per line"
    )


def rows(partitions: Iterable[Partition]) -> Iterator[Row]:
    """The rows of all `partitions`, one after the other."""
    for partition in partitions:
        yield from partition() if callable(partition) else partition


@dataclass(frozen=True)
class FileRange:
    """The sentences in the bytes from `start` to `end` of a text file."""

    path: str
    start: int
    end: int

    def __call__(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for line in lines(file, self.end - self.start):
                yield line.decode(errors="replace")


@dataclass(frozen=True)
class FileShare:
    """Every `of`-th sentence of a compressed text file, beginning with number `share`."""

    path: str
    share: int
    of: int

    def __call__(self) -> Iterator[str]:
        with COMPRESSED[Path(self.path).suffix](self.path) as file:
            for number, line in enumerate(lines(file)):
                if number % self.of == self.share:
                    yield line.decode(errors="replace")


def lines(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """The lines of the next `size` bytes (None: of all); those above `LINE_BYTES_MAX` in pieces of whole words."""
    left = sys.maxsize if size is None else size
    begun = b""  # a word that may go on
    while piece := file.readline(min(left, LINE_BYTES_MAX)):
        left -= len(piece)
        piece, begun = begun + piece, b""
        if len(piece) >= LINE_BYTES_MAX and not piece.endswith(b"\n"):
            end = _last_space(piece) + 1 or len(piece)
            piece, begun = piece[:end], piece[end:]
        yield piece
    if begun:
        yield begun


def cuts(path: str, count: int) -> list[int]:
    """Offsets that cut a text file into at most `count` pieces of about the same size, from 0 to its size in bytes.

    A cut is behind the end of a line or, where there is none for `LINE_BYTES_MAX`, between two words.
    """
    size = os.path.getsize(path)
    count = max(1, min(count, size // RANGE_BYTES_MIN))
    found = [0]
    with open(path, "rb") as file:
        for number in range(1, count):
            file.seek(size * number // count)
            piece = file.readline(LINE_BYTES_MAX)
            end = len(piece) if piece.endswith(b"\n") else _last_space(piece) + 1
            cut = size * number // count + end
            if end and found[-1] < cut < size:
                found.append(cut)
    return [*found, size]


def _last_space(piece: bytes) -> int:
    """-1 if there is none."""
    return max(piece.rfind(space) for space in (b" ", b"\t", b"\n"))


def _count(peers: int | None) -> int:
    return PARTITIONS_PER_PEER * (peers or os.cpu_count() or 1)


def _read_files(path: str, count: int) -> list[Partition]:
    """The partitions of all files under `path`, about `count` altogether."""
    found = _files(path)
    bytes_all = sum(map(os.path.getsize, found))
    partitions: list[Partition] = []
    for file in found:
        share = max(1, round(count * os.path.getsize(file) / max(1, bytes_all)))
        if Path(file).suffix in COMPRESSED:
            partitions += [FileShare(file, number, share) for number in range(share)]
        else:
            ends = cuts(file, share)
            partitions += [FileRange(file, start, end) for start, end in pairwise(ends)]
    return partitions


def _files(path: str) -> list[str]:
    """The text files under a path: itself, a folder's, or a glob's; hidden ones and markers are none, as on Hadoop."""
    if "://" in path:
        raise UsageError(
            f"the path {path!r} needs Spark, expected a file of this machine: start a SparkContext, or give it by sc="
        )
    path = os.path.abspath(os.path.expanduser(path))
    matches = [path] if os.path.exists(path) else sorted(glob.glob(path))
    found = []
    for match in matches:
        inside = sorted(os.path.join(match, name) for name in os.listdir(match)) if os.path.isdir(match) else [match]
        found += [file for file in inside if os.path.isfile(file) and (file == path or _is_visible(file))]
    if not found:
        raise UsageError(
            f"no text file at {path!r}, expected a file, a folder of files or a glob such as 'texts/*.txt'"
        )
    return found


def _is_visible(file: str) -> bool:
    return not os.path.basename(file).startswith((".", "_"))


# ------------------------------------------------------------------------------------------------------------ by Spark


def _active_context() -> Any:
    """The running SparkContext, if there is one; never starts one, and does not import pyspark for it."""
    if "pyspark" not in sys.modules:
        return None
    from pyspark import SparkContext

    return SparkContext._active_spark_context  # pyspark has no public way to ask without starting one


def _is_frame(corpus: Any) -> bool:
    return hasattr(corpus, "schema") and hasattr(corpus, "select")


def _read_by_spark(sc: Any, path: str) -> Any:
    from py4j.protocol import Py4JJavaError

    text = sc.textFile(path, PARTITIONS_PER_PEER * sc.defaultParallelism)
    try:
        partitions = text.getNumPartitions()
    except Py4JJavaError as error:
        raise UsageError(
            f"Spark cannot read {path!r}, expected a file, a folder of files or a glob that every executor reaches: "
            f"{error.java_exception.getMessage()}"
        ) from None
    # a compressed file is one partition; to read it in each of several tasks takes longer than to shuffle it
    if partitions < sc.defaultParallelism:
        text = text.repartition(PARTITIONS_PER_PEER * sc.defaultParallelism)
    return text


def _column(frame: Any, column: str | None) -> Any:
    """The sentences in a column of a DataFrame, as an RDD."""
    from pyspark.sql import functions
    from pyspark.sql.types import ArrayType, StringType

    if column is None and len(frame.columns) == 1:
        column = frame.columns[0]
    if column is None or column not in frame.columns:
        raise UsageError(f"column={column!r}, expected one of {', '.join(frame.columns)}")
    kind = frame.schema[column].dataType
    known = frame.select(column).where(frame[column].isNotNull())
    if isinstance(kind, StringType):
        return known.rdd.map(_first)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
        return known.select(functions.array_compact(column)).rdd.map(_first)
    raise UsageError(f"column {column!r} holds {kind.simpleString()}, expected array<string>, or string to be split")


def _first(row: Any) -> Any:
    return row[0]
