"""Every sentence of a corpus is read once, however it is cut."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gossip.errors import UsageError
from p2p.models.word2vec import corpus
from p2p.models.word2vec.corpus import FileRange, cuts, lines, rows, sentences

LINE = b"the cat sat on the mat\n"
OPENERS: dict[str, Callable[..., Any]] = {"txt": open, "gz": gzip.open, "bz2": bz2.open}


def text(lines_all: int, seed: int = 1) -> list[list[str]]:
    """Lines of 0 to 20 words of all lengths, some of them not ASCII."""
    chance = random.Random(seed)
    return [["é" * chance.randrange(1, 9) for _ in range(chance.randrange(20))] for _ in range(lines_all)]


def words_of(partitions: Iterable[Any]) -> list[list[str]]:
    """The words of each row that is text."""
    return [row.split() for row in rows(partitions)]


def as_text(sentences_all: list[list[str]], end: str = "\n") -> bytes:
    return "".join(" ".join(words) + end for words in sentences_all).encode()


@pytest.fixture(autouse=True)
def no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_active_context", lambda: None)


@pytest.mark.parametrize("suffix", OPENERS)
@pytest.mark.parametrize("peers", [1, 3, 7])
def test_peers_read_every_line_of_a_file_once(suffix: str, peers: int, tmp_path: Path) -> None:
    expected = text(2_000)
    path = tmp_path / f"text.{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.write(as_text(expected))
    partitions = sentences(path, peers=peers)
    assert len(partitions) == 4 * peers
    assert sorted(words_of(partitions)) == sorted(expected)
    assert words_of(partitions) == words_of(partitions)
    sizes = [sum(len(row.split()) for row in partition()) for partition in partitions]
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_ranges_of_a_file_are_whole_lines_in_order(count: int, tmp_path: Path) -> None:
    path = tmp_path / "text"
    expected = text(3_000)
    path.write_bytes(as_text(expected, "\r\n")[:-2])  # the last line has no end
    ends = cuts(str(path), count)
    assert len(ends) == min(count, path.stat().st_size // corpus.RANGE_BYTES_MIN) + 1
    found = [row.split() for start, end in pairwise(ends) for row in FileRange(str(path), start, end)()]
    assert found == expected


@pytest.mark.parametrize("suffix", OPENERS)
def test_a_text_without_lines_is_cut_between_words(suffix: str, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(100_000)]
    path = tmp_path / f"text.{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.write(" ".join(words).encode())
    partitions = sentences(str(path), peers=2)
    assert len(partitions) == 8
    read = words_of(partitions)
    assert sorted(word for row in read for word in row) == sorted(words)
    assert max(map(len, read)) < 10_000


def test_a_word_longer_than_any_line_is_cut() -> None:
    pieces = list(lines(io.BytesIO(b"a " + b"b" * 200_000 + b" c\nd")))
    assert b"".join(pieces) == b"a " + b"b" * 200_000 + b" c\nd"
    assert max(map(len, pieces)) < 2 * corpus.LINE_BYTES_MAX


def test_a_folder_and_a_glob_are_all_their_files_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.log", ".hidden.txt", "_SUCCESS"):
        (tmp_path / name).write_text(f"{name} word\n")
    assert [row[0] for row in words_of(sentences(tmp_path, peers=1))] == ["a.txt", "b.txt", "c.log"]
    assert [row[0] for row in words_of(sentences(str(tmp_path / "*.txt"), peers=1))] == ["a.txt", "b.txt"]
    assert [row[0] for row in words_of(sentences(tmp_path / "_SUCCESS", peers=1))] == ["_SUCCESS"]


def test_a_folder_is_read_with_the_folders_within(tmp_path: Path) -> None:
    for name in ("AB/wiki_00", "AA/wiki_01", "AA/wiki_00", ".git/config", "_temporary/0/part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name} word\n")
    expected = ["AA/wiki_00", "AA/wiki_01", "AB/wiki_00"]
    assert [row[0] for row in words_of(sentences(tmp_path, peers=1))] == expected
    assert [row[0] for row in words_of(sentences(f"{tmp_path}/**/wiki_*", peers=1))] == expected


@pytest.mark.parametrize(
    "name", ["d,e.txt", "f[1].txt", "g{h,i}.txt", "j*.txt", "k l.txt", "m:n.txt", "o?.txt", "p\\q"]
)
def test_letters_that_are_patterns_elsewhere_may_be_in_the_name_of_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINE)
    assert words_of(sentences(tmp_path / name, peers=1)) == [LINE.decode().split()]
    assert words_of(sentences(f"file://{tmp_path}/{name}", peers=1)) == [LINE.decode().split()]


def test_the_home_folder_is_the_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text").write_bytes(LINE)
    assert words_of(sentences("~/text", peers=1)) == [LINE.decode().split()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark", codecs.BOM_UTF8 + LINE * 2),
        ("mark.gz", gzip.compress(codecs.BOM_UTF8 + LINE * 2)),
        ("windows", LINE.replace(b"\n", b"\r\n") * 2),
        ("old mac", LINE.replace(b"\n", b"\r") * 2),
        ("old mac.bz2", bz2.compress(LINE.replace(b"\n", b"\r") * 2)),
        ("upper case.GZ", gzip.compress(LINE * 2)),
        ("no ending", gzip.compress(LINE * 2)),
        ("bz2 of no ending", bz2.compress(LINE * 2)),
        ("unpacked.gz", LINE * 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_are_read_by_what_they_are(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert words_of(sentences(tmp_path, peers=1)) == [LINE.decode().split()] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the cat\n".encode("utf-16"), "is UTF-16, expected UTF-8: convert it, as by iconv -f UTF-16 -t UTF-8"),
        ("the cat\n".encode("utf-32"), "is UTF-32, expected UTF-8"),
        (gzip.compress("the cat\n".encode("utf-16")), "is UTF-16, expected UTF-8"),
        ("the cat\n".encode("utf-16-le"), r"is no text \(there is a NUL at byte 1\)"),
        (lzma.compress(LINE), "is an xz archive, expected a text file"),
        (b"PK\x03\x04 and so on", "is a zip archive"),
        (b"\x93NUMPY\x01", "is an array of numpy"),
        ("un café\n".encode("latin-1"), r"is not in UTF-8 \(byte 6 is 0xe9\): say its encoding=, such as 'latin-1'"),
        (gzip.compress(LINE * 1000, mtime=0)[:-40].replace(b"\x00", b"\xff"), "cannot be read, expected a text file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_text_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(LINE)
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(UsageError, match=f"other' {message}"):
        sentences(tmp_path, peers=1)


def test_a_letter_that_the_sample_cuts_in_two_is_one(tmp_path: Path) -> None:
    assert corpus.SAMPLE_BYTES % len("é ".encode()) == 1
    (tmp_path / "text").write_bytes("é ".encode() * corpus.SAMPLE_BYTES)
    words = [word for row in words_of(sentences(tmp_path / "text", peers=1)) for word in row]
    assert words == ["é"] * corpus.SAMPLE_BYTES


def test_files_are_read_in_the_encoding_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("un café\n".encode("latin-1"))
    (tmp_path / "latin.gz").write_bytes(gzip.compress("un café\n".encode("latin-1")))
    (tmp_path / "mark").write_bytes(codecs.BOM_UTF8 + b"good \xff bad\n")
    for name in ("latin", "latin.gz"):
        assert words_of(sentences(tmp_path / name, peers=1, encoding="latin-1")) == [["un", "café"]]
    said = words_of(sentences(tmp_path / "mark", encoding="UTF8"))
    assert said == [["good", "\N{REPLACEMENT CHARACTER}", "bad"]]


@pytest.mark.parametrize(
    ("rows_all", "message"),
    [
        ([Path(__file__)], r"a list of paths, such as '.*test_corpus.py', .* give one path, of a folder or a glob"),
        ([__file__, corpus.__file__], "a list of paths, such as"),
    ],
)
def test_a_list_of_paths_is_no_corpus_of_their_names(rows_all: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sentences(rows_all, peers=1)


def test_a_list_is_cut_into_partitions_in_order() -> None:
    expected = text(103)
    partitions = sentences(expected, peers=2)
    assert len(partitions) == 8
    assert list(rows(partitions)) == expected
    assert list(rows(sentences(expected[:3], peers=2))) == expected[:3]
    assert list(rows(sentences([], peers=2))) == []


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("nowhere/*.txt", {}, r"no text file at '.*nowhere/\*.txt', expected a file, a folder"),
        ("hdfs://host/text", {}, r"'hdfs://host/text' needs Spark"),
        ("text", {"column": "words"}, r"column='words' beside a str, expected a DataFrame"),
        ([["a"]], {"sc": object()}, r"sc= beside a list, expected a path"),
        ("text", {"sc": object(), "peers": 2}, r"sc= and peers=2, expected one"),
        ([["a"]], {"encoding": "latin-1"}, r"encoding='latin-1' beside a list, expected a path"),
        ("text", {"encoding": "utf-16"}, r"encoding='utf-16', expected one that writes white space as ASCII does"),
        ("text", {"encoding": "rot13"}, r"encoding='rot13' is not known to Python"),
        ("text", {"encoding": "klingon"}, r"encoding='klingon' is not known to Python"),
        ("text", {"encoding": 8}, r"encoding is a int, expected the name of one"),
        (iter([["a"]]), {}, r"corpus is a list_iterator, expected an RDD .*, or a list of texts or token lists"),
        (7, {}, r"corpus is a int, expected"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_is_no_corpus_is_refused(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sentences(data, **options)
