"""csv files: what is written is read, however it is cut; fast and careful agree; damaged ones are told by line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p.data import read_csv
from p2p.data.csv_files import _Table
from p2p.data.files import find
from p2p.data.lines import Lines, Range
from p2p.data.values import Labels

HEADER = b"a,b,y\n"


def written(folder: Path, content: bytes, name: str = "rows.csv") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def some_rows(count: int, seed: int = 0) -> tuple[Any, Any, bytes]:
    """Features, labels, and the lines of them."""
    chance = np.random.default_rng(seed)
    x, y = chance.normal(size=(count, 2)).astype(np.float32), chance.integers(3, size=count)
    lines = [f"{float(a)!r},{float(b)!r},{label}\n" for (a, b), label in zip(x, y, strict=True)]
    return x, y, "".join(lines).encode()


def read(partitions: Any) -> tuple[Any, Any]:
    blocks = [block for partition in partitions for block in partition()]
    return np.concatenate([x for x, _ in blocks]), np.concatenate([y for _, y in blocks])


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("label", ["y", 2, -1])
def test_the_column_of_labels_is_named_or_numbered(tmp_path: Path, label: Any, pack: Any) -> None:
    x, y, text = some_rows(20)
    parts = read_csv(written(tmp_path, pack(HEADER + text)), label, classes=3, partitions=3)
    found, labels = read(parts)
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(labels, y)
    assert (found.dtype, labels.dtype) == (np.float32, np.int64)
    assert len(parts) == (3 if pack is bytes else 1)


@settings(max_examples=80)
@given(
    count=st.integers(1, 30), partitions=st.integers(1, 90), block_rows=st.integers(1, 9), header=st.booleans(),
    last=st.booleans(),
)  # fmt: skip
def test_each_row_is_in_one_partition(
    tmp_path_factory: Any, count: int, partitions: int, block_rows: int, header: bool, last: bool
) -> None:
    x, y, text = some_rows(count, seed=count)
    text = HEADER * header + (text if last else text.removesuffix(b"\n"))
    path = written(tmp_path_factory.mktemp("csv"), text)
    found, labels = read(read_csv(path, 2, header=header, partitions=partitions, block_rows=block_rows))
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(labels, y)


def test_quotes_spaces_empty_lines_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbf"a ""1""";b; y\r\n"1";2; 0\r\n\r\n 3 ;"-.5e1";1')
    found, labels = read(read_csv(path, "y", delimiter=";", partitions=1))
    np.testing.assert_array_equal(found, [[1, 2], [3, -5]])
    np.testing.assert_array_equal(labels, [0, 1])


def test_without_labels_blocks_are_features_alone(tmp_path: Path) -> None:
    (block,) = read_csv(written(tmp_path, b"1,2\n3,4\n"), None, header=False, partitions=1)[0]()
    np.testing.assert_array_equal(block, [[1, 2], [3, 4]])


def test_each_file_has_its_header(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path, HEADER + b"%d,0,1\n" % number, f"{number}.csv")
    found, _ = read(read_csv(f"{tmp_path}/*.csv", "y"))
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2])
    written(tmp_path, b"b,a,y\n7,0,1\n", "3.csv")
    with pytest.raises(UsageError, match=r"3\.csv', line 1 \(byte 0\): a header .*expected that of the first file"):
        read(read_csv(f"{tmp_path}/*.csv", "y"))


DAMAGED: dict[str, tuple[bytes, str, str]] = {
    "word": (b"1,abc,0", "column 'b' is 'abc'", "expected a finite number"),
    "nan": (b"NaN,1,0", "column 'a' is 'NaN'", "expected a finite number"),
    "inf": (b"1,inf,0", "column 'b' is 'inf'", "expected a finite number"),
    "too large": (b"1,-1e39,0", "column 'b' is '-1e39'", "which float32 does not hold, expected a number between"),
    "nothing": (b"1,,0", "column 'b' is ''", "expected a finite number"),
    "few": (b"1,0", "2 columns", "expected 3"),
    "many": (b"1,2,3,0", "4 columns", "expected 3"),
    "open quote": (b'1,"2,0', "unexpected end of data, or a quote is not closed", "expected a row in one line"),
    "behind a quote": (b'1,"2"3,0', "no row of csv", "expected a row in one line"),
    "latin-1": (b"1,\xe9,0", "byte 0xe9 at its place 3", "expected a text in UTF-8"),
    "label": (b"1,2,3", "the label is '3'", "expected an integer from 0 to 2"),
    "negative label": (b"1,2,-1", "the label is '-1'", "expected an integer from 0 to 2"),
    "half a label": (b"1,2,0.5", "the label is '0.5'", "expected an integer from 0 to 2"),
    "carriage return": (b"1,2,0\r1,2,0", "no row of csv", "expected a row in one line"),
    "spaces": (b"1 2 0", "1 columns", "expected 3"),
    "underscore": (b"1_0,2,0", "column 'a' is '1_0'", "expected a finite number"),
    "hexadecimal": (b"0x10,2,0", "column 'a' is '0x10'", "expected a finite number"),
}


@pytest.mark.parametrize("partitions", [1, 7])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_told_with_what_was_expected(tmp_path: Path, name: str, partitions: int) -> None:
    bad, got, expected = DAMAGED[name]
    _, _, text = some_rows(20)
    path = written(tmp_path, HEADER + text + b"\n" + bad + b"\n" + text)
    place = rf"line 23 \(byte {len(HEADER + text) + 1}\)"
    with pytest.raises(UsageError, match=rf"rows\.csv', {place}: .*{got}.*{expected}"):
        read(read_csv(path, "y", classes=3, partitions=partitions))


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (b"a,b,y\n", {}, r"rows\.csv' has no rows, expected at least one"),
        (b"\n1,2,3\n", {}, r"line 1 \(byte 0\): an empty line, expected the first one"),
        (
            b"1,2,3\n",
            {"label": 2},
            r"line 1 \(byte 0\): .*are numbers, expected the names of columns: say header=False",
        ),
        (HEADER, {"label": 2, "header": False}, r"line 1 .*column 0 is 'a', expected .*say header=True"),
        (HEADER, {"label": "z"}, "label='z' is the name of 0 columns of '.*', expected one of 'a', 'b', 'y'"),
        (b"y,a,y\n", {}, "label='y' is the name of 2 columns"),
        (HEADER, {"label": 3}, "label=3, expected a column from 0 to 2"),
        (HEADER, {"header": False}, "label='y' with header=False, expected the number of a column"),
        (b"y\n1\n", {}, "has one column, that of the labels, expected features beside it"),
        (HEADER, {"label": None, "classes": 3}, "classes=3 with label=None, expected the column"),
        (HEADER, {"delimiter": ", "}, "delimiter=', ', expected one character"),
        (HEADER, {"classes": (1,)}, r"classes=\(1,\), expected how many there are, or their labels"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes, arguments: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(read_csv(written(tmp_path, content), **{"label": "y", **arguments}))


TOKENS = st.sampled_from(
    [*"0123 \t,\n", "1,2,0\n", ",0\n", "-0.5", "e5", "nan", "\r\n", "\r", "_", "a", '"', "1e39", "#"]
)


@settings(max_examples=400)
@given(text=st.lists(TOKENS, min_size=1, max_size=12).map("".join))
def test_the_fast_way_reads_what_the_careful_one_reads(tmp_path_factory: Any, text: str) -> None:
    """And refuses all that the careful one refuses."""
    file = find(written(tmp_path_factory.mktemp("x"), text.encode()), None, "a file")[0]
    table = _Table(("a", "b", "y"), 2, False, ",", Labels(2))
    for lines in Range(file, 0, file.size).read(100):
        fast = table._fast(lines)
        if fast is not None:
            np.testing.assert_array_equal(fast, table._careful(lines))


def test_clean_rows_go_the_fast_way(tmp_path: Path) -> None:
    _, _, text = some_rows(20)
    file = find(written(tmp_path, text), None, "a file")[0]
    table = _Table(("a", "b", "y"), 2, False, ",", Labels(3))
    assert table._fast(Lines(Range(file, 0, 1), 0, text.splitlines(True))) is not None
