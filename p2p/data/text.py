"""Files of text, one row a line: `read_text`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gossip.errors import UsageError
from p2p.data.files import Urls, find
from p2p.data.lines import Lines, Range, split
from p2p.data.partitions import handed_out, wanted

KIND = "a text file"
LINES = 1000
"""Read at a time."""


def read_text(
    urls: Urls,
    *,
    encoding: str = "utf-8",
    partitions: int | None = None,
    sc: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """The lines of files as rows, each a str without its line end, as partitions or as an RDD.

    `urls` are a path, a URL, a glob, or a list of these; files may be gzipped. An empty line is a row, too. `encoding`
    must write line ends as ASCII does.

    Files are cut into about `partitions` ranges of bytes (default: 4 for each core), a gzip file is one. Rows come in
    the order of the file. `sc` is a SparkContext, for an RDD. `storage_options` are those of fsspec, such as
    `{"anon": True}`; they travel with the partitions.

    Raises:
        UsageError: an argument or a file cannot be; also where a partition is read: with the file and the line of bytes
            that are none of the encoding's letters, of a NUL, of a line above 16 MiB, or a file that has changed.
    """
    _check_encoding(encoding)
    count = wanted(partitions, sc)
    files = find(urls, storage_options, KIND)
    ranges = split(files, count) if partitions is None else split(files, count, 1)
    return handed_out([TextPartition(each, encoding) for each in ranges], sc)


def _check_encoding(encoding: Any) -> None:
    try:
        is_like_ascii = isinstance(encoding, str) and "a b\r\n".encode(encoding) == b"a b\r\n"
    except LookupError:
        is_like_ascii = False
    if not is_like_ascii:
        raise UsageError(
            f"encoding={encoding!r:.40}, expected one that Python knows and that writes line ends as ASCII does, such "
            "as 'utf-8' or 'latin-1'"
        )


@dataclass(frozen=True)
class TextPartition:
    """The lines of a range, as text."""

    source: Range
    encoding: str

    @property
    def likeness(self) -> str:
        """What tells it from a partition of other data: see `p2p.checkpoint.likeness`."""
        return self.source.likeness

    def __call__(self) -> Iterator[str]:
        count = 0
        for lines in self.source.read(LINES):
            for index in range(len(lines.lines)):
                count += 1
                yield self._text(lines, index)
        if not count and self.source.is_whole:
            raise UsageError(f"{self.source.file.name!r} has no lines, expected at least one")

    def _text(self, lines: Lines, index: int) -> str:
        line = lines.lines[index]
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\0" in line:
            raise lines.wrong(index, f"a NUL at its byte {line.index(0) + 1}, expected text")
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise lines.wrong(
                index,
                f"byte 0x{line[error.start]:02x} at its place {error.start + 1} is none of {self.encoding}, expected a "
                "text in that encoding: say another encoding=, such as 'latin-1'",
            ) from None
