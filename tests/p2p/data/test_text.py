"""Text files: each line is a row of one partition, however the file is cut, and what is no text is told by line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p.data import lines, read_text


def written(folder: Path, content: bytes, name: str = "lines.txt") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def read(partitions: Any) -> list[str]:
    return [row for partition in partitions for row in partition()]


@settings(max_examples=200)
@given(
    rows=st.lists(st.text(st.sampled_from("aé€ \r"), max_size=9), min_size=1, max_size=20),
    partitions=st.integers(1, 60),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
@example(rows=["", "", "a"], partitions=3, end="\n", last=True)
def test_each_line_is_in_one_partition(
    tmp_path_factory: Any, rows: list[str], partitions: int, end: str, last: bool
) -> None:
    rows = [row.rstrip("\r") for row in rows]
    text = end.join([*rows, ""] if last else [*rows[:-1], rows[-1] + "z"])
    rows = rows if last else [*rows[:-1], rows[-1] + "z"]
    parts = read_text(written(tmp_path_factory.mktemp("text"), text.encode()), partitions=partitions)
    assert read(parts) == rows
    assert len(parts) == min(partitions, len(text.encode()))


def test_a_partition_in_the_middle_of_a_line_is_empty_and_is_there(tmp_path: Path) -> None:
    parts = read_text(written(tmp_path, b"a" * 100 + b"\nb\n"), partitions=4)
    assert [list(part()) for part in parts] == [["a" * 100], [], [], ["b"]]


def test_lines_of_two_partitions_that_are_cut_at_a_line_end_are_told_apart(tmp_path: Path) -> None:
    parts = read_text(written(tmp_path, b"abc\ndef\n"), partitions=2)
    assert [list(part()) for part in parts] == [["abc"], ["def"]]


def test_short_files_are_not_cut_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, b"a\nb\n")
    assert len(read_text(path)) == 1
    assert len(read_text(path, partitions=2)) == 2


def test_gzip_files_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    written(tmp_path, gzip.compress("\ufeffdé\n\ng".encode()), "a")
    written(tmp_path, "\ufeffb\n".encode(), "b")
    assert read(read_text(f"{tmp_path}/*")) == ["dé", "", "g", "b"]


def test_another_encoding_is_read_if_it_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, b"x\n" * 50 + b"caf\xe9\n" + b"x\n" * 50)
    assert read(read_text(path, encoding="latin-1", partitions=3))[50] == "café"
    with pytest.raises(
        UsageError, match=r"lines\.txt', line 51 \(byte 100\): byte 0xe9 at its place 4 is none of utf-8"
    ):
        read(read_text(path, partitions=3))


@pytest.mark.parametrize("encoding", ["utf-16", "nothing", None, "utf-8-sig"])
def test_an_encoding_that_cannot_be_is_refused(tmp_path: Path, encoding: Any) -> None:
    with pytest.raises(UsageError, match="expected one that Python knows and that writes line ends as ASCII does"):
        read_text(written(tmp_path, b"a\n"), encoding=encoding)


def test_a_nul_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"line 2 \(byte 2\): a NUL at its byte 2, expected text"):
        read(read_text(written(tmp_path, b"a\nb\0\n")))


def test_a_file_without_line_ends_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES_MAX", 10)
    assert read(read_text(written(tmp_path, b"a\n123456789\n"))) == ["a", "123456789"]
    with pytest.raises(UsageError, match=r"line 2 \(byte 2\): a line of more than 10 bytes, expected shorter ones"):
        read(read_text(written(tmp_path, b"a\n1234567890\n")))


def test_far_behind_the_byte_is_told_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "COUNTED_BYTES_MAX", 3)
    with pytest.raises(UsageError, match=r"the line at byte 4: a NUL"):
        read(read_text(written(tmp_path, b"a\nb\n\0\n")))


@pytest.mark.parametrize("pack", [gzip.compress], ids=["gz"])
def test_a_gzip_file_of_nothing_has_no_lines(tmp_path: Path, pack: Any) -> None:
    with pytest.raises(UsageError, match="has no lines, expected at least one"):
        read(read_text(written(tmp_path, pack(b""))))
