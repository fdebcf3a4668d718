"""Counts of the parts of a text add up to the counts of the text."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import pytest

from p2p.models.word2vec import word_counts


def text(rows: int) -> list[list[str]]:
    chance = random.Random(3)
    return [[f"w{int(chance.paretovariate(0.3) % 1e5)}" for _ in range(chance.randrange(20))] for _ in range(rows)]


@pytest.mark.parametrize("parts", [1, 3, 40])
def test_parts_add_up(parts: int) -> None:
    rows = text(3_000)
    expected = Counter(word for row in rows for word in row)
    assert len(expected) > 4_000
    counted = [word_counts.of_rows(iter(rows[part::parts])) for part in range(parts)]
    everything = word_counts.of_parts(pickle.loads(pickle.dumps(counts.part())) for counts in counted)
    assert (everything.rows, everything.words) == (len(rows), expected.total())
    for least in (0, 1, 2, 50):
        assert everything.frequent(least) == {word: count for word, count in expected.items() if count >= least}


def test_shares_hold_each_word_once_whoever_counted_it() -> None:
    rows = text(500)
    counted = [word_counts.of_rows(rows[:200]), word_counts.of_rows(rows[200:])]
    by_owner: dict[int, list[word_counts.Part]] = {owner: [] for owner in range(7)}
    for counts in counted:
        for owner, part in counts.shares(7):
            by_owner[owner].append(part)
    shares = [word_counts.of_parts(parts) for parts in by_owner.values()]
    expected = Counter(word for row in rows for word in row)
    assert sum(len(share.frequent(0)) for share in shares) == len(expected)
    assert {word: count for share in shares for word, count in share.frequent(0).items()} == expected
    assert (sum(share.rows for share in shares), sum(share.words for share in shares)) == (500, expected.total())


def test_nothing_is_counted_in_no_rows() -> None:
    nothing = word_counts.of_rows([])
    assert (nothing.rows, nothing.words, nothing.frequent(0)) == (0, 0, {})
    assert word_counts.of_parts([nothing.part()]).frequent(0) == {}
    empty = word_counts.of_rows([[], "", " "])
    assert (empty.rows, empty.words) == (3, 0)
