"""Where sentences come from: an RDD, a DataFrame, text files or a list, as partitions of token lists or texts.

`sentences` returns what `DeepDist.train` takes: an RDD where Spark reads, else a list of partitions. Text files hold
one sentence per line, in UTF-8 or another `encoding`, with words between white space; they stay text until it is
trained on. A plain file is cut into ranges of bytes that end where a line ends (or a word, if lines are very long), so
peers read side by side and hold one line each. A compressed file cannot be cut. Without Spark each partition
decompresses all of it and takes every n-th line, which is cheap beside training; Spark decompresses it once and
shuffles its lines.

    path -> this machine's files: their first bytes are looked at here -> partitions, for processes or for executors
         -> hdfs://, s3a://, ...: their names are looked at here       -> Hadoop reads them

So a local path is read by one and the same code with and without Spark, and what is no text is refused by both.

Source: the Unicode Standard, 23.8, for byte order marks.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import IO, Any

from gossip.arguments import integer
from gossip.errors import UsageError
from p2p.models.word2vec.lexicon import Row

LINE_BYTES_MAX = 1 << 16
"""A longer line is cut between words: about as many as a gensim kernel takes at once (10,000)."""
RANGE_BYTES_MIN = 1 << 12
"""A shorter piece of a file is not worth a partition."""
PARTITIONS_PER_PEER = 4
"""So that peers which are done early find more."""
SAMPLE_BYTES = 1 << 16
"""Of each file so many are looked at, decompressed, before anything is started."""
COMPRESSED: dict[bytes, Callable[[str], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}  # type: ignore[dict-item]
"""By the first bytes; what a file is called does not matter."""
NO_TEXT = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\xfd7zXZ\0": "an xz archive",
    b"(\xb5/\xfd": "compressed by Zstandard",
    b'\x04"M\x18': "compressed by LZ4",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x93NUMPY": "an array of numpy",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
}
"""By the first bytes, the longer ones first where one begins with another."""
NO_TEXT_NAMES = (".xz", ".zip", ".7z", ".rar", ".npy", ".npz", ".parquet", ".orc", ".avro", ".pkl", ".pdf")
HADOOP_NAMES = (".gz", ".bz2", ".zst", ".lz4", ".snappy", ".deflate")
"""By which Hadoop knows that a file is compressed, in lower case only."""
HADOOP_PATTERNS = {",": "{\\,}", **{letter: "\\" + letter for letter in "\\{}[]*?"}}
"""What stands for a letter that means something in a path of Hadoop's."""
ROWS_LOOKED_AT = 100
UTF_8 = "utf-8"

Partition = Sequence[Row] | Callable[[], Iterable[Row]]


def sentences(
    corpus: Any, column: str | None = None, sc: Any = None, peers: int | None = None, encoding: str | None = None
) -> Any:
    """`corpus` as an RDD of rows, or as a list of partitions of them for `peers` processes of this machine.

    A row is a list of tokens, or a text, whose words stand between white space. `corpus` is an RDD of rows, a DataFrame
    (`column` holds arrays of strings, or texts; rows without are skipped), a path, a list of rows, or the partitions
    that `p2p.data.read_text` makes of any URL. A path is a text file (plain, gzip or bz2), a folder of them, with the
    folders within, or a glob; Spark reads it if `sc` is a SparkContext, or if one is active and `peers` is not given.
    `encoding` is that of the files, which must write white space as ASCII does; bytes that are none of its letters are
    replaced. By default it is UTF-8, and a file that begins otherwise is refused.

    Raises `UsageError` for anything else, for a path under which there is no file, and for a file that is no text.
    """
    from p2p import arguments  # with the whole trainer, which workers that read a partition do not need

    if peers is not None:
        peers = integer("peers", peers, 1)
    if column is not None and not isinstance(column, str):
        raise UsageError(f"column={column!r:.80}, expected the name of a column")
    is_path = isinstance(corpus, str | os.PathLike)
    if sc is not None and not is_path:
        raise UsageError(f"sc= beside a {type(corpus).__name__}, expected a path: leave it out, or give the path")
    if column is not None and not _is_frame(corpus):
        raise UsageError(f"column={column!r} beside a {type(corpus).__name__}, expected a DataFrame: leave it out")
    if encoding is not None:
        if not is_path:
            raise UsageError(f"encoding={encoding!r} beside a {type(corpus).__name__}, expected a path: leave it out")
        _check_encoding(encoding)
    if is_path:
        if sc is not None and peers is not None:
            raise UsageError(f"sc= and peers={peers}, expected one: on Spark every executor is a peer")
        if sc is not None and not hasattr(sc, "textFile"):
            raise UsageError(f"sc is a {type(sc).__name__}, expected a SparkContext")
        context = sc if sc is not None or peers is not None else _active_context()
        path = os.fspath(corpus)
        if not path:
            raise UsageError("the corpus is an empty text, expected the path of a file or folder")
        if context is None:
            return _read_files(_files(path), _count(peers), encoding)
        return _read_by_spark(context, path, encoding)
    if hasattr(corpus, "mapPartitionsWithIndex") or _is_frame(corpus):
        if peers is not None:
            raise UsageError(f"peers={peers} with data on Spark, expected None: every executor is a peer")
        return arguments.partitions(_column(corpus, column) if _is_frame(corpus) else corpus)
    if isinstance(corpus, list | tuple):
        return _parts(corpus, peers)
    raise UsageError(
        f"corpus is {arguments.kind_of(corpus)}, expected an RDD of texts or token lists, a DataFrame of Spark, the "
        "path of text files, or a list of texts or token lists; of other iterables make a list, or write them to a "
        "file, one sentence per line; of a column of pandas, frame['text'].tolist()"
    )


def _parts(corpus: Sequence[Any], peers: int | None) -> list[Any]:
    """Partitions of a list of rows; a list of functions is one of partitions already."""
    if corpus and all(map(callable, corpus)):
        return list(corpus)
    _check_no_paths(corpus)
    size = max(1, math.ceil(len(corpus) / _count(peers)))
    return [corpus[start : start + size] for start in range(0, len(corpus), size)] or [[]]


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
    encoding: str = UTF_8

    def __call__(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            yield from _texts(lines(file, self.end - self.start), self.encoding, self.start == 0)


@dataclass(frozen=True)
class FileShare:
    """Every `of`-th sentence of a compressed text file, beginning with number `share`."""

    path: str
    share: int
    of: int
    encoding: str = UTF_8

    def __call__(self) -> Iterator[str]:
        with _opener(self.path)(self.path) as file:
            yield from islice(_texts(lines(file), self.encoding), self.share, None, self.of)


def lines(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """The lines of the next `size` bytes (None: of all); those above `LINE_BYTES_MAX` in pieces of whole words.

    A line ends with LF, CR LF, or CR, as Hadoop has it, too.
    """
    left = sys.maxsize if size is None else size
    begun = b""  # a word that may go on
    while piece := file.readline(min(left, LINE_BYTES_MAX)):
        left -= len(piece)
        piece, begun = begun + piece, b""
        if len(piece) >= LINE_BYTES_MAX and not piece.endswith(b"\n"):
            end = _last_space(piece) + 1 or len(piece)
            piece, begun = piece[:end], piece[end:]
        if b"\r" in piece:
            yield from piece.splitlines()
        else:
            yield piece
    if begun:
        yield from begun.splitlines()


def _texts(lines: Iterable[bytes], encoding: str, from_the_beginning: bool = True) -> Iterator[str]:
    """The lines as text, without the byte order mark that some programs write before UTF-8."""
    for number, line in enumerate(lines):
        if number == 0 and from_the_beginning and _is_utf_8(encoding):
            line = line.removeprefix(codecs.BOM_UTF8)
        yield line.decode(encoding, errors="replace")


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
    return max(piece.rfind(space) for space in (b" ", b"\t", b"\n", b"\r"))


def _count(peers: int | None) -> int:
    return PARTITIONS_PER_PEER * (peers or os.cpu_count() or 1)


def _read_files(found: Sequence[str], count: int, encoding: str | None, shares: bool = True) -> list[Partition]:
    """The partitions of all files, about `count` altogether; without `shares` a compressed file is one."""
    for file in found:
        _check_file(file, encoding)
    used = encoding or UTF_8
    bytes_all = sum(map(os.path.getsize, found))
    partitions: list[Partition] = []
    for file in found:
        share = max(1, round(count * os.path.getsize(file) / max(1, bytes_all)))
        if _opener(file) is not _plain:
            share = share if shares else 1
            partitions += [FileShare(file, number, share, used) for number in range(share)]
        else:
            ends = cuts(file, share)
            partitions += [FileRange(file, start, end, used) for start, end in pairwise(ends)]
    return partitions


def _files(path: str) -> list[str]:
    """The text files under a path: itself, a folder's, or a glob's; hidden ones and markers are none, as on Hadoop."""
    path = _plain_path(path)
    if "://" in path:
        raise UsageError(
            f"the path {path!r} needs Spark, expected a file of this machine: start a SparkContext, give it by sc=, or "
            "give p2p.data.read_text(path)"
        )
    path = os.path.abspath(os.path.expanduser(path))
    matches = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    found = []
    for match in matches:
        inside = _inside(match) if os.path.isdir(match) else [match]
        found += [file for file in inside if os.path.isfile(file) and (file == path or _is_visible(file))]
    if not found:
        raise UsageError(
            f"no text file at {path!r}, expected a file, a folder of files or a glob such as 'texts/*.txt'"
        )
    return list(dict.fromkeys(found))


def _plain_path(path: str) -> str:
    """Without the scheme of files, file:///home/me or file:/home/me."""
    return "/" + path.removeprefix("file:").lstrip("/") if path.startswith("file:/") else path


def _inside(folder: str) -> list[str]:
    """The files of a folder and of the folders within, in order."""
    found: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(filter(_is_visible, folders))
        found += [os.path.join(here, name) for name in sorted(names)]
    return found


def _is_visible(file: str) -> bool:
    return not os.path.basename(file).startswith((".", "_"))


# ------------------------------------------------------------------------------------------------------- what is text


def _plain(path: str) -> IO[bytes]:
    return open(path, "rb")


def _opener(path: str) -> Callable[[str], IO[bytes]]:
    """What opens a file such that text comes out."""
    with open(path, "rb") as file:
        head = file.read(max(map(len, COMPRESSED)))
    return next((opener for magic, opener in COMPRESSED.items() if head.startswith(magic)), _plain)


def _check_file(path: str, encoding: str | None) -> None:
    """Raise `UsageError` for a file that is no text, or text in another encoding, as far as its beginning shows."""
    try:
        with _opener(path)(path) as file:
            sample = file.read(SAMPLE_BYTES)
    except (OSError, EOFError) as error:  # no permission, or no archive behind its first bytes
        raise UsageError(f"{path!r} cannot be read, expected a text file: {error}") from error
    for magic, kind in NO_TEXT.items():
        if sample.startswith(magic):
            if kind.startswith("UTF"):
                raise UsageError(f"{path!r} is {kind}, expected UTF-8: convert it, as by iconv -f {kind} -t UTF-8")
            raise _no_text(path, kind)
    if b"\0" in sample:
        raise _no_text(path, f"no text (there is a NUL at byte {sample.index(0)})")
    if encoding is None:
        try:
            codecs.getincrementaldecoder(UTF_8)().decode(sample)
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path!r} is not in UTF-8 (byte {error.start} is 0x{sample[error.start]:02x}): say its encoding=, "
                "such as 'latin-1' or 'cp1252'; or 'utf-8', which replaces what is none"
            ) from None


def _no_text(path: str, kind: str) -> UsageError:
    return UsageError(
        f"{path!r} is {kind}, expected a text file with one sentence per line, plain, gzip or bz2: unpack or convert it"
    )


def _check_encoding(encoding: Any) -> None:
    """Raise `UsageError` for what is no encoding, or one whose white space, where files are cut, is not ASCII."""
    if not isinstance(encoding, str):
        raise UsageError(f"encoding is a {type(encoding).__name__}, expected the name of one, such as 'latin-1'")
    sample = "a b\tc\r\n"
    try:
        is_like_ascii = sample.encode(encoding) == sample.encode("ascii")
    except LookupError:
        raise UsageError(
            f"encoding={encoding!r} is not known to Python, expected one such as 'utf-8' or 'latin-1'"
        ) from None
    if not is_like_ascii and not _is_utf_8(encoding):
        raise UsageError(
            f"encoding={encoding!r}, expected one that writes white space as ASCII does, such as 'utf-8' or 'latin-1': "
            f"convert the files, as by iconv -f {encoding} -t UTF-8"
        )


def _is_utf_8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in (UTF_8, "utf-8-sig")


def _check_no_paths(rows: Sequence[Any]) -> None:
    """Raise `UsageError` for a list of files, which would be a corpus of their names."""
    some = rows[:ROWS_LOOKED_AT]
    if some and all(isinstance(row, os.PathLike) or (isinstance(row, str) and os.path.isfile(row)) for row in some):
        raise UsageError(
            f"corpus is a list of paths, such as {os.fspath(some[0])!r}, expected a list of texts or token lists: give "
            "one path, of a folder or a glob such as 'texts/*.txt'"
        )


# ------------------------------------------------------------------------------------------------------------ by Spark


def _active_context() -> Any:
    """The running SparkContext, if there is one; never starts one, and does not import pyspark for it."""
    if "pyspark" not in sys.modules:
        return None
    from pyspark import SparkContext

    return SparkContext._active_spark_context  # pyspark has no public way to ask without starting one


def _is_frame(corpus: Any) -> bool:
    return hasattr(corpus, "schema") and hasattr(corpus, "select")


def _read_by_spark(sc: Any, path: str, encoding: str | None) -> Any:
    from p2p.engines.spark import check_runs

    check_runs(sc)
    count = PARTITIONS_PER_PEER * sc.defaultParallelism
    path = _plain_path(path)
    if "://" in path or not (_is_on_this_machine(sc) or os.path.exists(path)):
        text = _read_by_hadoop(sc, path, count, encoding)
    else:
        parts = _read_files(_files(path), count, encoding, shares=False)
        text = sc.parallelize(parts, len(parts)).flatMap(_read)
    # a compressed file is one partition; to read it in each of several tasks takes longer than to shuffle it
    if text.getNumPartitions() < sc.defaultParallelism:
        text = text.repartition(count)
    return text


def _read(part: Callable[[], Iterable[str]]) -> Iterable[str]:
    return part()


def _is_on_this_machine(sc: Any) -> bool:
    """Whether a path without a scheme is one of files, and not of a cluster's file system."""
    configuration = sc._jsc.hadoopConfiguration()
    default = sc._jvm.org.apache.hadoop.fs.FileSystem.getDefaultUri(configuration)
    return str(default.getScheme()) == "file"


def _read_by_hadoop(sc: Any, path: str, count: int, encoding: str | None) -> Any:
    """The lines of files that Hadoop knows, of which names are all that is looked at here."""
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    if encoding is not None and not _is_utf_8(encoding):
        raise UsageError(
            f"encoding={encoding!r} for {path!r}, which Hadoop reads as UTF-8: convert the files, or give an RDD of "
            "texts"
        )
    try:
        found = _files_of_hadoop(sc, path)
        for file in found:
            _check_name(file)
        if not found:
            raise UsageError(f"no text file at {path!r}, expected a file, a folder of files or a glob")
        text = sc.textFile(",".join(map(_literal, found)), count)
        text.getNumPartitions()
    except (Py4JJavaError, PySparkException) as error:
        why = error.java_exception.getMessage() if isinstance(error, Py4JJavaError) else error
        raise UsageError(
            f"Spark cannot read {path!r}, expected a file, a folder of files or a glob that every executor reaches: "
            f"{why}"
        ) from None
    return text


def _files_of_hadoop(sc: Any, path: str) -> list[str]:
    """As `_files`, by Hadoop."""
    where = sc._jvm.org.apache.hadoop.fs.Path(path)
    system = where.getFileSystem(sc._jsc.hadoopConfiguration())
    matches = [system.getFileStatus(where)] if system.exists(where) else system.globStatus(where) or []
    found: list[str] = []
    for match in matches:
        root = match.getPath().toString()
        if not match.isDirectory():
            found += [root] if root == where.toString() or len(matches) == 1 or _is_visible(root) else []
            continue
        inside = system.listFiles(match.getPath(), True)
        while inside.hasNext():
            file = inside.next().getPath().toString()
            if all(map(_is_visible, file.removeprefix(root).strip("/").split("/"))):
                found.append(file)
    return sorted(found)


def _check_name(file: str) -> None:
    """Raise `UsageError` for a name that Hadoop would take for plain text and that says something else."""
    name = file.lower()
    if name.endswith(NO_TEXT_NAMES):
        raise _no_text(file, "no text by its name")
    if name.endswith(HADOOP_NAMES) and not file.endswith(HADOOP_NAMES):
        raise UsageError(
            f"{file!r} would be read as plain text by Hadoop, expected its ending in lower case: rename it"
        )


def _literal(file: str) -> str:
    """A path for Hadoop, where no letter is a pattern; a comma would end the path, but for braces."""
    return "".join(HADOOP_PATTERNS.get(letter, letter) for letter in file)


def _column(frame: Any, column: str | None) -> Any:
    """The sentences in a column of a DataFrame, as an RDD."""
    from pyspark.sql import functions
    from pyspark.sql.types import ArrayType, StringType

    if column is None and len(frame.columns) == 1:
        column = frame.columns[0]
    found = None if column is None else _found(frame, column)
    if found is None:
        raise UsageError(f"column={column!r}, expected one of {', '.join(frame.columns)}")
    chosen, kind = found
    known = frame.select(chosen.alias("sentence")).where("sentence is not null")
    if isinstance(kind, StringType):
        return known.rdd.map(_first)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
        return known.select(functions.array_compact("sentence")).rdd.map(_first)
    raise UsageError(f"column {column!r} holds {kind.simpleString()}, expected array<string>, or string to be split")


def _found(frame: Any, column: str) -> tuple[Any, Any] | None:
    """A column, or a field of a struct such as document.text, and its type."""
    from pyspark.sql import functions
    from pyspark.sql.types import StructType

    parts = [column] if column in frame.columns else column.split(".")
    kind = frame.schema
    for part in parts:
        if not isinstance(kind, StructType) or kind.names.count(part) != 1:
            return None
        kind = kind[part].dataType
    return functions.col(".".join("`" + part.replace("`", "``") + "`" for part in parts)), kind


def _first(row: Any) -> Any:
    return row[0]
