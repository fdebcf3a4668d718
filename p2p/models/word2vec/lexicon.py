"""Words by number: rows of text become arrays of numbers in one compiled loop, without a Python object for each word.

A dictionary of Python takes a quarter of a microsecond a word on text with tens of thousands of different words, to
hash a str and to find another one somewhere in memory; that is a third of what training on the word takes. Here the
rows of a batch are joined into one text of bytes: the words of all rows in UTF-8, or lines as they are, each followed
by NUL. A loop cuts it into words, and finds the number of each in an open table (`p2p.models.word2vec.word_table`).

NUL within a word is written as in Java's modified UTF-8, by two bytes that occur in no other text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.errors import UsageError

Row = str | Sequence[str]
"""A text, whose words stand between white space, or its words."""

NUL, NUL_IN_A_WORD = b"\0", b"\xc0\x80"
SLOTS_MIN = 1 << 12
BLOB_MIN = 1 << 15


class Lexicon:
    """Words and their numbers, from 0, in the order in which they came."""

    def __init__(self, words: Iterable[str] = ()) -> None:
        """Of `words`, each a different one."""
        self._size = 0
        self._blob, self._starts = np.zeros(BLOB_MIN, np.uint8), np.zeros(1, np.int64)
        self._heads = np.zeros(0, np.uint64)
        self._make_room()
        self.numbers([tuple(words)], add=True)

    def __len__(self) -> int:
        return self._size

    def words(self, numbers: NDArray[Any] | None = None) -> list[str]:
        """Those of `numbers`, or all."""
        words = self.text().split(NUL)[:-1]
        return [_decoded(word) for word in (words if numbers is None else map(words.__getitem__, numbers))]

    def text(self) -> bytes:
        """The words by number, each followed by NUL; what `add_text` takes."""
        return self._blob[: self._starts[self._size]].tobytes()

    def numbers(self, rows: Sequence[Row], add: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The numbers of the words of all `rows`, (words,), and where each row ends among them, (rows,).

        Unknown words are -1, or get the next numbers with `add`. A row that is text is split like `str.split` does.
        Raises `UsageError` for a token that is not a str.
        """
        if all(type(row) is str for row in rows):
            lines = "\0".join(map(_ascii_spaced, rows))  # type: ignore[arg-type]
            if lines.count("\0") == len(rows) - 1:
                return self._scan(lines.encode(errors="surrogatepass") + NUL, True, add, len(rows))
        lists = [row.split() if isinstance(row, str) else row for row in rows]
        ends = np.cumsum(list(map(len, lists)), dtype=np.int64)
        numbers, _ = self._scan(_joined(lists, int(ends[-1]) if lists else 0), False, add, 0)
        return numbers, ends

    def add_text(self, text: bytes) -> NDArray[np.int32]:
        """The numbers of the words of another lexicon's `text`, (words,); unknown ones get the next numbers."""
        return self._scan(text, False, True, 0)[0]

    def _scan(self, text: bytes, lines: bool, add: bool, rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        from p2p.models.word2vec import word_table

        read = np.frombuffer(text, np.uint8)
        numbers, ends = np.empty(len(text) // 2 + 1 if lines else text.count(NUL), np.int32), np.empty(rows, np.int64)
        state = np.array([self._size, 0, 0, 0], np.int64)
        while not word_table.scan(
            read, lines, add, self._slots, self._heads, self._starts, self._blob, state, numbers, ends
        ):
            self._size = int(state[0])
            self._make_room(len(text) - int(state[1]))
        self._size = int(state[0])
        return numbers[: state[2]], ends

    def _make_room(self, longest: int = 0) -> None:
        """For as many words again, and for one of `longest` bytes."""
        from p2p.models.word2vec import word_table

        slots = SLOTS_MIN
        while slots < 4 * self._size:
            slots *= 2
        used = self._starts[self._size]
        blob = np.zeros(max(len(self._blob), 2 * int(used) + longest + 1), np.uint8)
        blob[:used] = self._blob[:used]
        starts = np.zeros(slots // 2 + 1, np.int64)
        starts[: self._size + 1] = self._starts[: self._size + 1]
        self._blob, self._starts = blob, starts
        self._slots, self._heads = np.zeros(slots, np.uint64), np.zeros(slots // 2, np.uint64)
        word_table.fill(self._slots, self._heads, self._starts, self._blob, self._size)


def check_row(row: Any) -> Row:
    """`row` as a text or as a list or tuple of tokens; raise `UsageError` if it is something else."""
    if isinstance(row, str):
        return row
    if isinstance(row, Mapping | Set) or hasattr(row, "__fields__"):
        raise UsageError(
            f"expected rows that are texts (str) or lists of tokens, got a {type(row).__name__} {row!r:.40}: take one "
            "of its values, such as row['text']; for a DataFrame, its column: frame.rdd.map(lambda row: row.text)"
        )
    if isinstance(row, bytes) or not isinstance(row, Iterable):
        raise UsageError(f"expected rows that are texts (str) or lists of tokens, got {type(row).__name__} {row!r:.40}")
    tokens = row if isinstance(row, list | tuple) else list(row)
    if tokens and not isinstance(tokens[0], str):
        raise UsageError(
            f"expected rows that are lists of tokens (str), got a {type(row).__name__} of {type(tokens[0]).__name__}; "
            "for a DataFrame, take the column: frame.rdd.map(lambda row: row.tokens)"
        )
    return tokens


def _ascii_spaced(text: str) -> str:
    """The same words, with no white space that only Unicode knows."""
    return text if text.isascii() else " ".join(text.split())


def _encoded(word: str) -> bytes:
    return word.encode(errors="surrogatepass").replace(NUL, NUL_IN_A_WORD)


def _decoded(word: bytes) -> str:
    return word.replace(NUL_IN_A_WORD, NUL).decode(errors="surrogatepass")


def _joined(rows: list[Sequence[str]], words: int) -> bytes:
    """The text of the tokens of `rows`, which are so many, each followed by NUL."""
    try:
        text = "\0".join(map("\0".join, filter(len, rows))).encode(errors="surrogatepass")
    except TypeError:
        other = next(token for row in rows for token in row if not isinstance(token, str))
        raise UsageError(
            f"expected rows that are lists of tokens (str), got one with a {type(other).__name__}: {other!r:.40}"
        ) from None
    if text.count(NUL) >= words > 0:
        text = NUL.join(map(_encoded, chain.from_iterable(rows)))
    return text + NUL if words else b""
