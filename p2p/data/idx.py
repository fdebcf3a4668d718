"""Files in the format of MNIST: `read_idx`.

    0 0 type dimensions | size of each dimension, 4 bytes | the numbers, row by row           the high byte first

A plain file is cut between rows. Of a gzip file each partition unpacks what is before its rows, which costs little
beside training.

Source: LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, "The IDX file format".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gossip.arguments import flag, integer
from gossip.errors import UsageError
from p2p.data.files import BROKEN, File, Urls, find
from p2p.data.partitions import BLOCK_ROWS, handed_out, wanted
from p2p.data.values import Labels

KIND = "an idx file"
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Of the numbers, by the third byte."""
ROW_BYTES_MAX = 1 << 28
"""A larger one is a header that is spoiled."""


def read_idx(
    images: Urls,
    labels: Urls | None = None,
    *,
    classes: int | Sequence[float] | None = None,
    scale: bool = True,
    block_rows: int = BLOCK_ROWS,
    partitions: int | None = None,
    sc: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Blocks (features (n, d) float32, labels (n,) int64) of idx files, as partitions or as an RDD.

    `images` and `labels` are each a path, a URL, a glob, or a list of these, as many files of either, in the same
    order; files may be gzipped. Without `labels` blocks are features alone. d is the product of all dimensions behind
    the first. With `scale` unsigned bytes are divided by 255, so that they are from 0 to 1. `classes=10` refuses labels
    that are not from 0 to 9, `classes=(0, 1)` all but these.

    Rows are cut into about `partitions` parts (default: 4 for each core), at least one for each file. They come in the
    order of the file, `block_rows` a block. `sc` is a SparkContext, for an RDD. `storage_options` are those of fsspec,
    such as `{"anon": True}`; they travel with the partitions.

    Raises:
        UsageError: an argument or a file cannot be: with the file, the byte or row and what was expected of a magic
            number, of a file that is shorter or longer than its header says, or of images and labels that are not
            equally many; where a partition is read, of a gzip file that is cut short, a label that is none of
            `classes`, a number that is not finite, or a file that has changed.
    """
    flag("scale", scale)
    integer("block_rows", block_rows, 1)
    if classes is not None and labels is None:
        raise UsageError(f"classes={classes!r} without labels, expected their file")
    known = Labels.of(classes)
    count = wanted(partitions, sc)
    of_images = [_header(file) for file in find(images, storage_options, KIND)]
    of_labels = None if labels is None else [_header(file) for file in find(labels, storage_options, KIND)]
    _check_images(of_images)
    pairs = [(each, None) for each in of_images] if of_labels is None else _pairs(of_images, of_labels)
    total = sum(each.rows for each in of_images)
    parts: list[IdxPartition] = []
    for found, its_labels in pairs:
        share = max(1, min(found.rows, round(count * found.rows / total)))
        ends = [found.rows * number // share for number in range(share + 1)]
        how = (known, scale, block_rows)
        parts += [IdxPartition(found, its_labels, start, end, *how) for start, end in pairwise(ends)]
    return handed_out(parts, sc)


@dataclass(frozen=True)
class IdxFile:
    """A file and what its header says."""

    file: File
    kind: str
    """Of the numbers, as numpy calls it."""
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * len(self.shape)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.kind).itemsize

    def blocks(self, start: int, end: int, rows: int) -> Iterator[NDArray[Any]]:
        """Rows from `start` to `end`, at most `rows` at a time, (n, d).

        Raises:
            UsageError: the file is cut short, spoiled, or goes on behind its last row.
        """
        with self.file.opened() as file:
            self._read(file, self.header_bytes, self.row_bytes * start, start, seek=True)
            for first in range(start, end, rows):
                count = min(rows, end - first)
                read = self._read(file, self.header_bytes + self.row_bytes * first, self.row_bytes * count, first)
                yield np.frombuffer(read, self.kind).reshape(count, -1)
            if end == self.rows and self._read(file, self.header_bytes + self.row_bytes * end, 1, end, least=0):
                raise self.wrong(f"byte {self.header_bytes + self.row_bytes * end}", "more", f"{self.rows} rows")

    def wrong(self, where: str, got: str, expected: str) -> UsageError:
        """The error of this file."""
        return UsageError(f"{self.file.name!r}, {where}: {got}, expected {expected}")

    def _read(
        self, file: IO[bytes], offset: int, count: int, row: int, *, seek: bool = False, least: int | None = None
    ) -> bytes:
        """`count` bytes at `offset`, or pass them by; `row` is told if they are not there."""
        try:
            if seek:
                file.seek(offset + count)
                return b""
            read = file.read(count)
        except BROKEN as error:
            raise self.file.is_broken(error, f"in the bytes from {offset} unpacked (row {row})") from None
        if len(read) < (count if least is None else least):
            there = row + len(read) // self.row_bytes
            raise self.wrong(f"byte {offset + len(read)} (row {there})", "the end", f"{self.rows} rows")
        return read


def _header(file: File) -> IdxFile:
    """What the header says, if the rest of the file agrees."""

    def wrong(byte: int, got: str, expected: str) -> UsageError:
        return UsageError(f"{file.name!r}, byte {byte}: {got}, expected {expected}")

    try:
        with file.opened() as opened:
            magic = opened.read(4)
            if len(magic) < 4:
                raise wrong(len(magic), "the end", "a magic number of 4 bytes, as an idx file has")
            if magic[:2] != b"\0\0":
                raise wrong(
                    0, f"magic number 0x{magic.hex()}", "one such as 0x00000803 for images, 0x00000801 for labels"
                )
            if magic[2] not in TYPES:
                raise wrong(2, f"type 0x{magic[2]:02x}", f"one of {', '.join(f'0x{kind:02x}' for kind in TYPES)}")
            if not magic[3]:
                raise wrong(3, "0 dimensions", "at least 1")
            sizes = opened.read(4 * magic[3])
    except BROKEN as error:
        raise file.is_broken(error, "in its header") from None
    if len(sizes) < 4 * magic[3]:
        raise wrong(4 + len(sizes), "the end", f"the sizes of {magic[3]} dimensions")
    found = IdxFile(file, TYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes))
    if 0 in found.shape:
        place = found.shape.index(0)
        raise wrong(4 + 4 * place, f"dimension {place} of size 0", "at least 1: a file with rows")
    if found.row_bytes > ROW_BYTES_MAX:
        raise wrong(8, f"rows of {found.row_bytes} bytes", f"at most {ROW_BYTES_MAX}")
    size = found.header_bytes + found.rows * found.row_bytes
    if not file.gzipped and file.size != size:
        there = (file.size - found.header_bytes) // found.row_bytes
        raise wrong(
            min(file.size, size),
            f"{'the end in' if file.size < size else 'more behind'} row {min(there, found.rows)}",
            f"{size} bytes: {found.rows} rows of {found.row_bytes}",
        )
    return found


def _check_images(images: list[IdxFile]) -> None:
    for each in images:
        if len(each.shape) == 1:
            raise each.wrong("byte 3", "1 dimension", "images, of 2 or more: this is a file of labels")
        if each.shape[1:] != images[0].shape[1:]:
            raise each.wrong("byte 8", f"rows of shape {each.shape[1:]}", f"{images[0].shape[1:]} as in the first file")


def _pairs(images: list[IdxFile], labels: list[IdxFile]) -> list[tuple[IdxFile, IdxFile | None]]:
    """Each file of images with that of its labels."""
    if len(images) != len(labels):
        raise UsageError(f"{len(images)} files of images with {len(labels)} of labels, expected as many")
    for of_images, of_labels in zip(images, labels, strict=True):
        if len(of_labels.shape) != 1 or np.dtype(of_labels.kind).kind not in "iu":
            got = f"{len(of_labels.shape)} dimensions of type {np.dtype(of_labels.kind).name}"
            raise of_labels.wrong("byte 2", got, "labels: integers of 1 dimension")
        if of_labels.rows != of_images.rows:
            expected = f"{of_images.rows} as there are images in {of_images.file.name!r}"
            raise of_labels.wrong("byte 4", f"{of_labels.rows} labels", expected)
    return [(of_images, of_labels) for of_images, of_labels in zip(images, labels, strict=True)]


@dataclass(frozen=True)
class IdxPartition:
    """Rows from `start` to `end`."""

    images: IdxFile
    labels: IdxFile | None
    start: int
    end: int
    known: Labels
    scale: bool
    block_rows: int

    @property
    def likeness(self) -> str:
        """What tells it from a partition of other data: see `p2p.checkpoint.likeness`."""
        return f"{self.images.file.likeness} {self.start} {self.end}"

    def __call__(self) -> Iterator[Any]:
        of_images = self.images.blocks(self.start, self.end, self.block_rows)
        if self.labels is None:
            for number, rows in enumerate(of_images):
                yield self._features(rows, self.start + number * self.block_rows)
            return
        of_labels = self.labels.blocks(self.start, self.end, self.block_rows)
        for number, (rows, labels) in enumerate(zip(of_images, of_labels, strict=True)):
            first = self.start + number * self.block_rows
            values = labels.reshape(-1).astype(np.int64)
            wrong = self.known.first_wrong(values)
            if wrong is not None:
                raise self.labels.wrong(f"row {first + wrong}", f"label {values[wrong]}", self.known.expected)
            yield self._features(rows, first), values

    def _features(self, rows: NDArray[Any], first: int) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            features = rows.astype(np.float32)
        if self.scale and rows.dtype == np.uint8:
            features /= 255
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            got = rows[row][~np.isfinite(features[row])][0]
            raise self.images.wrong(f"row {first + row}", f"{got}", "finite numbers of float32")
        return features
