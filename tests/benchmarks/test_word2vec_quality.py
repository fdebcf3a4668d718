"""What the benchmark of word2vec's quality calls a miss."""

from __future__ import annotations

from benchmarks.word2vec_quality import Figures, shortfalls


def figures(peers: int, every: int, analogies: float) -> Figures:
    return Figures(1000, 1, "simulated", peers, every, "", analogies, 0.5, 1.0, 1.0)


def test_the_shortest_interval_is_held_against_the_target() -> None:
    gensim = figures(0, 0, 33.0)
    assert list(shortfalls([gensim, figures(2, 15_600, 32.0), figures(2, 62_000, 20.0)])) == []
    (missed,) = shortfalls([gensim, figures(2, 15_600, 31.9), figures(2, 62_000, 33.0)])
    assert missed.startswith("missed: analogies 31.9 % with 2 peers every 15,600 words, expected")


def test_gensim_alone_falls_behind_nothing() -> None:
    assert list(shortfalls([figures(0, 0, 33.0)])) == []
