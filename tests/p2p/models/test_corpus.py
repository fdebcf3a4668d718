"""Every sentence of a corpus is read once, however it is cut."""

from __future__ import annotations

import bz2
import gzip
import io
import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gossip.errors import UsageError
from p2p.models import corpus
from p2p.models.corpus import FileRange, cuts, lines, rows, sentences

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


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"good \xff bad\n")
    assert words_of(sentences(tmp_path / "text")) == [["good", "\N{REPLACEMENT CHARACTER}", "bad"]]


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
        (iter([["a"]]), {}, r"corpus is a list_iterator, expected an RDD .*, or a list of texts or token lists"),
        (7, {}, r"corpus is a int, expected"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_is_no_corpus_is_refused(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sentences(data, **options)
