"""A lexicon numbers words as a dictionary would, however they are written."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.errors import UsageError
from p2p.models.word2vec.lexicon import SLOTS_MIN, Lexicon, Row

SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
tokens = st.text(st.sampled_from("ab\0é\ud800 \n"), max_size=4)
texts = st.text(st.sampled_from("ab\0é" + SPACES), max_size=12)


def split(row: Row) -> list[str]:
    return row.split() if isinstance(row, str) else list(row)


def numbered(rows: list[Row], known: dict[str, int], add: bool) -> list[int]:
    """By a dictionary."""
    words = list(chain.from_iterable(map(split, rows)))
    return [known.setdefault(word, len(known)) if add else known.get(word, -1) for word in words]


@settings(deadline=None)  # the first is compiled
@given(st.lists(st.tuples(st.booleans(), st.lists(st.one_of(texts, st.lists(tokens, max_size=5)), max_size=4))))
def test_it_numbers_words_like_a_dictionary(batches: list[tuple[bool, list[Row]]]) -> None:
    lexicon, known = Lexicon(), dict[str, int]()
    for add, rows in batches:
        numbers, ends = lexicon.numbers(rows, add)
        assert numbers.tolist() == numbered(rows, known, add)
        assert ends.tolist() == np.cumsum([len(split(row)) for row in rows]).tolist()
        assert (lexicon.words(), len(lexicon)) == (list(known), len(known))
    assert Lexicon(known).numbers([list(known)])[0].tolist() == list(range(len(known)))


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab\t\n\v\f\r\x1c\x1d\x1e\x1f ~\x7f"), max_size=12), min_size=1))
def test_lines_of_ascii_are_split_like_str_does(lines: list[str]) -> None:
    lexicon = Lexicon()
    numbers, ends = lexicon.numbers(lines, add=True)
    words = lexicon.words()
    assert [words[number] for number in numbers] == list(chain.from_iterable(map(str.split, lines)))
    assert ends.tolist() == np.cumsum([len(line.split()) for line in lines]).tolist()


@pytest.mark.parametrize("as_lines", [True, False])
def test_it_grows_with_many_words_and_with_long_ones(as_lines: bool) -> None:
    words = [f"w{number:x}" for number in range(20 * SLOTS_MIN)] + ["long" * 50_000, "end"]
    rows: list[Row] = [" ".join(words)] if as_lines else [words]
    lexicon = Lexicon()
    for add in (True, False):
        assert lexicon.numbers(rows, add)[0].tolist() == list(range(len(words)))
    assert lexicon.words() == words
    assert lexicon.words(np.array([3, 1])) == ["w3", "w1"]


def test_words_of_another_lexicon_are_taken_over() -> None:
    first, second = Lexicon(["a", "\0"]), Lexicon(["b", "", "\0"])
    assert first.add_text(second.text()).tolist() == [2, 3, 1]
    assert first.words() == ["a", "\0", "b", ""]


def test_words_whose_hashes_meet_are_told_apart() -> None:
    """With so many words as half the slots most of them are found behind others."""
    words = [f"{number}" for number in range(SLOTS_MIN // 2)]
    lexicon = Lexicon(words)
    assert lexicon.numbers([words])[0].tolist() == list(range(len(words)))
    assert set(lexicon.numbers([[f"{number}x" for number in range(5_000)]])[0].tolist()) == {-1}


@pytest.mark.parametrize("head", ["abcdef", "äöü", "\0\0\0", ""])
def test_words_that_begin_alike_are_told_apart_at_any_length(head: str) -> None:
    words = sorted({head + rest for length in range(6) for rest in ("x" * length, "x" * length + "y", "\0" * length)})
    known = words[::2]
    lexicon = Lexicon(known)
    expected = [known.index(word) if word in known else -1 for word in words]
    assert lexicon.numbers([words])[0].tolist() == expected
    assert lexicon.numbers([words], add=True)[0].tolist() == [
        number if number >= 0 else len(known) + at // 2 for at, number in enumerate(expected)
    ]
    assert lexicon.words() == known + words[1::2]


def test_a_token_that_is_no_str_is_refused() -> None:
    with pytest.raises(UsageError, match=r"lists of tokens \(str\), got one with a int: 7"):
        Lexicon().numbers([["a"], ["b", 7]])  # type: ignore[list-item]
