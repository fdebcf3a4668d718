"""Files are found by path, URL, glob or list, in one order, and what is no file of rows is told by name."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from gossip.errors import UsageError
from p2p.data import read_csv, read_idx, read_libsvm, read_text

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def memory() -> Any:
    """A folder of URLs in this process's memory."""
    MEMORY.store.clear()
    yield "memory://bucket/rows"
    MEMORY.store.clear()


def read(partitions: Any) -> list[Any]:
    return [row for partition in partitions for row in partition()]


def test_each_format_is_read_by_url(memory: str) -> None:
    MEMORY.pipe({"/bucket/rows/x": bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 1, 255, 0])})
    MEMORY.pipe({"/bucket/rows/y": gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))})
    MEMORY.pipe({"/bucket/rows/svm": b"1 2:3\n" * 5, "/bucket/rows/csv": b"a,y\n" + b"5,1\n" * 5})
    MEMORY.pipe({"/bucket/rows/text": b"a b\n" * 5})
    blocks = read(read_idx(f"{memory}/x", f"{memory}/y", partitions=2))
    assert [(x.tolist(), y.tolist()) for x, y in blocks] == [([[1.0]], [7]), ([[0.0]], [3])]
    assert np.vstack([x.toarray() for x, _ in read(read_libsvm(f"{memory}/svm", 2, partitions=3))]).sum() == 15
    assert np.concatenate([x for x, _ in read(read_csv(f"{memory}/csv", "y", partitions=3))]).sum() == 25
    assert read(read_text(f"{memory}/text", partitions=3)) == ["a b"] * 5


def test_an_error_names_the_url(memory: str) -> None:
    MEMORY.pipe({"/bucket/rows/1.csv": b"a,y\n5,1\nx,1\n"})
    with pytest.raises(UsageError, match=r"'memory://bucket/rows/1\.csv', line 3 \(byte 8\): column 'a' is 'x'"):
        read(read_csv(f"{memory}/1.csv", "y"))
    with pytest.raises(UsageError, match=r"'memory://.*bucket/rows/1\.csv', line 3"):
        read(read_csv(f"{memory}/*.csv", "y"))


def test_files_come_in_the_order_of_the_list_and_within_a_glob_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.txt", "_SUCCESS", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder").mkdir()
    assert read(read_text(f"{tmp_path}/*")) == ["a.txt", "b.txt", "c.txt"]
    assert read(read_text([tmp_path / "c.txt", f"{tmp_path}/[ab].txt"])) == ["c.txt", "a.txt", "b.txt"]
    assert read(read_text(f"file://{tmp_path}/_SUCCESS")) == ["_SUCCESS"]


def test_a_name_with_brackets_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("this")
    (tmp_path / "a1.txt").write_text("other")
    assert read(read_text(tmp_path / "a[1].txt")) == ["this"]


def test_partitions_are_shared_by_size(tmp_path: Path) -> None:
    (tmp_path / "small").write_text("a\n" * 10)
    (tmp_path / "large").write_text("a\n" * 70)
    (tmp_path / "packed").write_bytes(gzip.compress(b"a\n" * 70))
    parts = read_text([tmp_path / "small", tmp_path / "large"], partitions=8)
    assert [part.source.file.name[-5:] for part in parts] == ["small"] + 7 * ["large"]
    assert len(read_text(tmp_path / "packed", partitions=8)) == 1


def test_partitions_travel(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a\nb\n")
    assert read(pickle.loads(pickle.dumps(read_text(tmp_path / "a", partitions=2)))) == ["a", "b"]


def missing(folder: Path) -> Any:
    return folder / "none"


def empty(folder: Path) -> Any:
    (folder / "empty").touch()
    return folder / "empty"


def no_gzip(folder: Path) -> Any:
    (folder / "text.gz").write_text("1 1:1")
    return folder / "text.gz"


def other(content: bytes) -> Any:
    def make(folder: Path) -> Any:
        (folder / "other").write_bytes(content)
        return folder / "other"

    return make


def twice(folder: Path) -> Any:
    (folder / "a").write_text("1 1:1")
    return [folder / "a", f"{folder}/*"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, r"no file at '.*none', expected a libsvm file, or a glob"),
        (lambda folder: f"{folder}/*.none", r"no file at '.*none', expected a libsvm file"),
        (lambda folder: folder, r" is a folder, expected a libsvm file: name its files by a glob, as .*/\*"),
        (empty, r"empty' is empty, expected a libsvm file"),
        (no_gzip, r"text\.gz' begins with 3120, expected 1f8b"),
        (twice, r"a' is named twice, expected each file once"),
        (other("1 1:1".encode("utf-16")), "is UTF-16, expected a libsvm file, plain or gzipped"),
        (other(b"PK\x03\x04..."), "is a zip archive, expected a libsvm file"),
        (other(b"BZh9"), "is compressed by bzip2, expected a libsvm file"),
        (lambda _: "nothing://bucket/key", "'nothing://bucket/key' cannot be read .*nothing"),
        (lambda _: "dropbox://bucket/key", "'dropbox://bucket/key' needs a package that is not installed"),
        (lambda _: [], r"\[\] is no path, expected a path, a URL, a glob, or a list"),
        (lambda _: 3, "3 is no path"),
        (lambda _: "", "a path is an empty text, expected that of a libsvm file"),
    ],
)
def test_what_is_no_file_of_rows_is_refused_before_anything_is_started(tmp_path: Path, make: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_libsvm(make(tmp_path), 1)


def test_a_file_that_has_changed_or_gone_is_told_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a\nb\n")
    parts = read_text(path)
    path.write_text("a\nb\nc\n")
    with pytest.raises(UsageError, match=r"a' has 6 bytes, expected 4 as the driver program found"):
        read(parts)
    path.unlink()
    with pytest.raises(UsageError, match=r"a' is not there, expected the file that the driver program found"):
        read(parts)


def test_a_server_that_sends_no_parts_of_files_is_told(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe({"/bucket/rows/a": b"a line\n"})
    monkeypatch.setattr(type(MEMORY), "cat_ranges", lambda self, paths, *_, **__: [MEMORY.cat(path) for path in paths])
    with pytest.raises(
        UsageError, match=r"a' is sent whole where 6 bytes .* as by 'simplecache::memory://bucket/rows/a'"
    ):
        read_text(f"{memory}/a")


def test_sizes_that_a_listing_leaves_out_are_asked_for(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe({"/bucket/rows/a": b"a line\n"})
    listed = {"/bucket/rows/a": {"type": "file", "size": None}}
    monkeypatch.setattr(type(MEMORY), "glob", lambda *_, **__: listed)
    assert read(read_text(f"{memory}/*")) == ["a line"]
    monkeypatch.setattr(type(MEMORY), "info", lambda *_, **__: listed["/bucket/rows/a"])
    with pytest.raises(UsageError, match="is of a size that its server does not tell"):
        read_text(f"{memory}/a")


def test_a_file_is_read_through_a_cache(memory: str) -> None:
    MEMORY.pipe({"/bucket/rows/a": b"a\nb\n"})
    assert read(read_text(f"simplecache::{memory}/a", partitions=2)) == ["a", "b"]


def test_a_connection_that_ends_is_told_as_it_is_with_the_file(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise ConnectionResetError("by the server")

    MEMORY.pipe({"/bucket/rows/a": b"a\n"})
    parts = read_text(f"{memory}/a")
    monkeypatch.setattr(type(MEMORY), "open", lambda *_, **__: Ended(b"a\n"))
    with pytest.raises(ConnectionResetError, match="by the server") as error:
        read(parts)
    assert error.value.__notes__ == ["when 'memory://bucket/rows/a' was read"]


def test_why_there_is_no_file_is_told_if_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("http://host/x") from ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(type(MEMORY), "info", info)
    with pytest.raises(UsageError, match=r"no file at 'memory://bucket/a', expected .*: nobody listens"):
        read_text("memory://bucket/a")


def test_storage_options_are_those_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="storage_options is a int, expected a dict"):
        read_text(tmp_path / "a", storage_options=3)  # type: ignore[arg-type]
    (tmp_path / "a").write_text("a\n")
    (part,) = read_text(f"{tmp_path}/a", storage_options={"auto_mkdir": True})
    assert part.source.file.system.auto_mkdir
