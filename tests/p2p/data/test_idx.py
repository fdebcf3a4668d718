"""Files in the format of MNIST: what is written is read, however it is cut; and ten damaged ones are told by place."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p.data import read_idx
from p2p.data.idx import TYPES

CHANCE = np.random.default_rng(0)
IMAGES = CHANCE.integers(0, 256, (7, 2, 3), np.uint8)
LABELS = CHANCE.integers(0, 10, 7, np.uint8)


def idx(array: Any, kind: int = 0x08) -> bytes:
    values = np.asarray(array).astype(TYPES[kind])
    return bytes([0, 0, kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def both(folder: Path, end: str = "", pack: Any = bytes) -> tuple[str, str]:
    return (
        written(folder, f"images{end}", pack(idx(IMAGES))),
        written(folder, f"labels{end}", pack(idx(LABELS))),
    )


def rows(partitions: Any) -> tuple[Any, Any]:
    blocks = [block for partition in partitions for block in partition()]
    return np.concatenate([x for x, _ in blocks]), np.concatenate([y for _, y in blocks])


@pytest.mark.parametrize(("end", "pack"), [("", bytes), (".gz", gzip.compress)], ids=["plain", "gz"])
def test_images_are_read_as_rows_from_0_to_1(tmp_path: Path, end: str, pack: Any) -> None:
    x, y = rows(read_idx(*both(tmp_path, end, pack), classes=10, partitions=3, block_rows=2))
    np.testing.assert_array_equal(x, IMAGES.reshape(7, 6).astype(np.float32) / 255)
    np.testing.assert_array_equal(y, LABELS)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_whether_it_is_gzipped_the_content_says(tmp_path: Path) -> None:
    x, _ = rows(read_idx(*both(tmp_path, "-idx3-ubyte", gzip.compress), scale=False))
    np.testing.assert_array_equal(x, IMAGES.reshape(7, 6))


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_each_type_are_read(tmp_path: Path, kind: int) -> None:
    values = [[1, 2], [3, 100]] if kind == 0x08 else [[-1, 2], [3, -100]]
    (block,) = read_idx(written(tmp_path, "x", idx(values, kind)), scale=False, partitions=1)[0]()
    np.testing.assert_array_equal(block, values)
    assert block.dtype == np.float32


@settings(max_examples=60)
@given(count=st.integers(1, 20), partitions=st.integers(1, 30), block_rows=st.integers(1, 8), packed=st.booleans())
def test_each_row_is_in_one_partition(
    tmp_path_factory: Any, count: int, partitions: int, block_rows: int, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("idx")
    numbers = np.arange(count, dtype=np.uint8)
    pack = gzip.compress if packed else bytes
    files = [written(folder, name, pack(idx(x))) for name, x in (("x", numbers[:, None]), ("y", numbers))]
    parts = read_idx(*files, scale=False, partitions=partitions, block_rows=block_rows)
    x, y = rows(parts)
    np.testing.assert_array_equal(x[:, 0], numbers)
    np.testing.assert_array_equal(y, numbers)
    assert len(parts) == min(count, partitions)
    assert max(len(y) for part in parts for _, y in part()) <= block_rows


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    for number, part in enumerate(np.array_split(np.arange(7), 2)):
        written(tmp_path, f"x{number}", idx(IMAGES[part]))
        written(tmp_path, f"y{number}", idx(LABELS[part]))
    x, y = rows(read_idx(f"{tmp_path}/x*", [f"{tmp_path}/y0", f"{tmp_path}/y1"], partitions=4))
    np.testing.assert_array_equal(x, IMAGES.reshape(7, 6).astype(np.float32) / 255)
    np.testing.assert_array_equal(y, LABELS)


X, Y = idx(IMAGES), idx(LABELS)
NOT_FINITE = idx([[1.0, 2.0], [3.0, np.nan]], 0x0D)
DAMAGED: dict[str, tuple[bytes, bytes, str, str]] = {
    "magic": (b"\x01" + X[1:], Y, r"'.*images', byte 0: magic number 0x01000803", "expected one such as 0x00000803"),
    "type": (X[:2] + b"\x07" + X[3:], Y, r"'.*images', byte 2: type 0x07", "expected one of 0x08, 0x09"),
    "no magic": (b"\0\0\x08", Y, r"'.*images', byte 3: the end", "expected a magic number of 4 bytes"),
    "header": (X[:9], Y, r"'.*images', byte 9: the end", "expected the sizes of 3 dimensions"),
    "cut": (X[:-7], Y, r"'.*images', byte 51: the end in row 5", "expected 58 bytes: 7 rows of 6"),
    "more": (X + b"!", Y, r"'.*images', byte 58: more behind row 7", "expected 58 bytes: 7 rows of 6"),
    "gz cut": (
        gzip.compress(X)[:-20],
        Y,
        r"'.*images', in the bytes from .* \(row \d\)",
        "cut short, expected a whole",
    ),
    "gz short": (gzip.compress(X[:-7]), Y, r"'.*images', byte 51 \(row 5\): the end", "expected 7 rows"),
    "counts": (X, idx(LABELS[:6]), r"'.*labels', byte 4: 6 labels", "expected 7 as there are images in '.*images'"),
    "label": (X, Y[:-3] + b"\x0a" + Y[-2:], r"'.*labels', row 4: label 10", "expected an integer from 0 to 9"),
    "swapped": (Y, X, r"'.*images', byte 3: 1 dimension", "expected images, of 2 or more"),
    "not finite": (NOT_FINITE, idx([0, 1]), r"'.*images', row 1: nan", "expected finite numbers"),
    "gz more": (gzip.compress(X + b"!"), Y, r"'.*images', byte 58: more", "expected 7 rows"),
    "no rows": (idx(IMAGES[:0]), Y, r"'.*images', byte 4: dimension 0 of size 0", "expected at least 1"),
    "spoiled": (
        gzip.compress(X)[:-8] + bytes(8),
        Y,
        r"'.*images', in the bytes from .*spoiled",
        "expected a whole one",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_told_with_place_and_what_was_expected(tmp_path: Path, name: str) -> None:
    images, labels, got, expected = DAMAGED[name]
    files = written(tmp_path, "images", images), written(tmp_path, "labels", labels)
    with pytest.raises(UsageError, match=rf"{got}.*{expected}"):
        rows(read_idx(*files, classes=10, partitions=2, block_rows=2))


def test_files_of_images_and_labels_are_equally_many(tmp_path: Path) -> None:
    images, labels = both(tmp_path)
    other = written(tmp_path, "other", idx(CHANCE.integers(0, 9, (7, 3, 3), np.uint8)))
    with pytest.raises(UsageError, match="2 files of images with 1 of labels"):
        read_idx([images, written(tmp_path, "more", idx(IMAGES))], labels)
    with pytest.raises(UsageError, match=r"other', byte 8: rows of shape \(3, 3\), expected \(2, 3\)"):
        read_idx([images, other])


def test_classes_are_how_many_there_are_or_which(tmp_path: Path) -> None:
    files = both(tmp_path)
    for classes in (10, range(10), list(range(10)), np.arange(10)):
        assert rows(read_idx(*files, classes=classes))[1].dtype == np.int64
    present = sorted(set(LABELS.tolist()))
    assert rows(read_idx(*files, classes=present))[1].tolist() == LABELS.tolist()
    with pytest.raises(UsageError, match=r"label .*, expected one of"):
        rows(read_idx(*files, classes=present[1:]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 10, "labels": None}, "classes=10 without labels"),
        ({"classes": 1}, "classes=1, expected at least 2"),
        ({"block_rows": 0}, "block_rows=0, expected at least 1"),
        ({"partitions": 0}, "partitions=0, expected at least 1"),
        ({"scale": 255}, "scale=255, expected True or False"),
        ({"sc": 3}, "sc is a int, expected a SparkContext"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    images, labels = both(tmp_path)
    with pytest.raises(UsageError, match=words):
        read_idx(images, **{"labels": labels, **arguments})
