"""libsvm files: what is written is read, however it is cut; fast and careful agree; damaged ones are told by line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from gossip.errors import UsageError
from p2p.data import read_libsvm
from p2p.data.files import find
from p2p.data.libsvm import _Rows
from p2p.data.lines import Lines, Range
from p2p.data.values import Labels

FEATURES = 12


def written(folder: Path, content: bytes, name: str = "rows.libsvm") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def some_rows(count: int, seed: int = 0) -> tuple[Any, Any, bytes]:
    """Features, labels, and the file of them."""
    chance = np.random.default_rng(seed)
    x = (chance.normal(size=(count, FEATURES)) * (chance.random((count, FEATURES)) < 0.4)).astype(np.float32)
    y = chance.choice([-1.0, 1.0], count)
    lines = []
    for row, label in zip(x, y, strict=True):
        pairs = [f"{index + 1}:{float(row[index])!r}" for index in np.flatnonzero(row)]
        lines.append(" ".join([f"{label:+g}", *pairs]) + "\n")
    return x, y, "".join(lines).encode()


def read(partitions: Any) -> tuple[Any, Any]:
    blocks = [block for partition in partitions for block in partition()]
    return sparse.vstack([x for x, _ in blocks], "csr").toarray(), np.concatenate([y for _, y in blocks])


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_rows_come_as_sparse_blocks(tmp_path: Path, pack: Any) -> None:
    x, y, text = some_rows(25)
    parts = read_libsvm(written(tmp_path, pack(text)), FEATURES, partitions=4, block_rows=3)
    block, labels = next(iter(parts[0]()))
    assert (block.format, block.shape, block.dtype, labels.dtype) == ("csr", (3, FEATURES), np.float32, np.float64)
    found, labels = read(parts)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(labels, y)
    assert len(parts) == (4 if pack is bytes else 1)


@settings(max_examples=80)
@given(count=st.integers(1, 30), partitions=st.integers(1, 90), block_rows=st.integers(1, 9), last=st.booleans())
def test_each_row_is_in_one_partition(
    tmp_path_factory: Any, count: int, partitions: int, block_rows: int, last: bool
) -> None:
    x, y, text = some_rows(count, seed=count)
    path = written(tmp_path_factory.mktemp("libsvm"), text if last else text.removesuffix(b"\n"))
    found, labels = read(read_libsvm(path, FEATURES, partitions=partitions, block_rows=block_rows))
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(labels, y)


def test_comments_empty_lines_and_line_ends_of_windows_are_passed_by(tmp_path: Path) -> None:
    path = written(tmp_path, b"# all\r\n\r\n1 2:3 # a comment: 4:5\r\n  \n0\t1:.5  12:-1e-1\t\n-1 # none\n")
    found, labels = read(read_libsvm(path, FEATURES, partitions=1))
    assert found.shape == (3, FEATURES)
    assert (found[0, 1], found[1, 0], found[1, 11]) == (3, 0.5, np.float32(-0.1))
    np.testing.assert_array_equal(labels, [1, 0, -1])


def test_labels_of_classes_are_integers(tmp_path: Path) -> None:
    _, labels = read(read_libsvm(written(tmp_path, b"1 1:1\n0 2:1\n"), 2, classes=2, partitions=1))
    assert labels.dtype == np.int64


def test_without_features_the_largest_index_is_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path, b"1 2:3\n0 1:1 7:2\n1\n")
    assert [x.shape[1] for part in read_libsvm(path, partitions=3) for x, _ in part()] == [7, 7, 7]
    with pytest.raises(UsageError, match="no row has a feature, expected some, or features="):
        read_libsvm(written(tmp_path, b"1\n0\n", "bare"))


DAMAGED: dict[str, tuple[bytes, str, str]] = {
    "index 0": (b"0:1", "index 0", "expected 1 or more"),
    "descending": (b"3:1 2:1", "index 2 after 3", "expected indices that rise"),
    "twice": (b"3:1 3:1", "index 3 after 3", "expected indices that rise"),
    "beyond": (b"13:1", "index 13", "expected at most 12"),
    "word": (b"3:abc", "feature 3 is 'abc'", "expected a finite number"),
    "nan": (b"3:nan", "feature 3 is 'nan'", "expected a finite number"),
    "inf": (b"3:-Infinity", "feature 3 is '-Infinity'", "expected a finite number"),
    "too large": (b"3:1e39", "feature 3 is '1e39'", "which float32 does not hold, expected a number"),
    "no value": (b"3:", "feature 3 is ''", "expected a finite number"),
    "no colon": (b"3", "'3'", "expected a feature as index:value"),
    "two colons": (b"3:1:2", "feature 3 is '1:2'", "expected a finite number"),
    "query": (b"qid:3 1:1", "'qid:3'", "expected a feature as index:value"),
    "negative": (b"-3:1", "'-3:1'", "expected a feature as index:value"),
    "underscore": (b"3:1_0", "feature 3 is '1_0'", "expected a finite number"),
    "latin-1": (b"3:\xe9", r"feature 3 is '.*xe9'", "expected a finite number"),
    "huge index": (b"9" * 5000 + b":1", "index 9999", "expected at most 12"),
}
BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "no label": (b"3:1", "'3:1'"),
    "other label": (b"2 3:1", "'2'"),
    "word": (b"yes 3:1", "'yes'"),
    "nan": (b"nan 3:1", "'nan'"),
}


@pytest.mark.parametrize("partitions", [1, 7])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_told_with_what_was_expected(tmp_path: Path, name: str, partitions: int) -> None:
    bad, got, expected = DAMAGED[name]
    _, _, text = some_rows(20)
    path = written(tmp_path, text + b"\n+1 " + bad + b"\n" + text)
    with pytest.raises(UsageError, match=rf"rows\.libsvm', line 22 \(byte {len(text) + 1}\): {got}.*{expected}"):
        read(read_libsvm(path, FEATURES, partitions=partitions))


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_label_that_there_is_not_is_told(tmp_path: Path, name: str) -> None:
    bad, got = BAD_LABELS[name]
    _, _, text = some_rows(20)
    path = written(tmp_path, text + bad + b"\n" + text)
    with pytest.raises(UsageError, match=rf"line 21 \(byte {len(text)}\): the label is {got}, expected one of -1, 1"):
        read(read_libsvm(path, FEATURES, classes=(-1, 1), partitions=3))


def test_a_gzip_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    _, _, text = some_rows(3000)
    path = written(tmp_path, gzip.compress(text)[:-1000], "rows.gz")
    with pytest.raises(UsageError, match=r"rows\.gz', behind line \d+ .*cut short, expected a whole one"):
        read(read_libsvm(path, FEATURES))


TOKENS = st.sampled_from([*"0123 \t:#\n", "1:", " 2:", "+1 ", "1 1:1\n", "-0.5", "e5", "nan", "\r\n", "_", "a", "1e39"])


@settings(max_examples=400)
@given(text=st.lists(TOKENS, min_size=1, max_size=12).map("".join))
@example("1 1:1 2:2\n-1 3:1\n2\n\n1 12:1")
@example("1\n1 1:1\n1\n1 1:1")
def test_the_fast_way_reads_what_the_careful_one_reads(tmp_path_factory: Any, text: str) -> None:
    """And refuses all that the careful one refuses."""
    file = find(written(tmp_path_factory.mktemp("x"), text.encode()), None, "a file")[0]
    for lines in Range(file, 0, file.size).read(100):
        rows = _Rows(FEATURES, Labels(None))
        fast = rows._fast(lines)
        if fast is not None:
            careful = rows._careful(lines)
            np.testing.assert_array_equal(fast[0].toarray(), careful[0].toarray())
            np.testing.assert_array_equal(fast[1], careful[1])


def test_clean_rows_go_the_fast_way(tmp_path: Path) -> None:
    _, _, text = some_rows(20)
    file = find(written(tmp_path, text), None, "a file")[0]
    assert _Rows(FEATURES, Labels((-1, 1)))._fast(Lines(Range(file, 0, 1), 0, text.splitlines(True))) is not None
