"""Questions to word vectors: analogies ("Athens Greece Baghdad Iraq") and similarity as people see it.

The files are those that come with gensim, or the user's own. A file of analogies has sections that begin with
": name" and four words a line; one of similarity has two words and a number a line, separated by tabs.

Analogies are answered many at a time, by one product of matrices; gensim, which finds the same share, makes one for
each of 20,000 questions.

Sources: Mikolov et al. (arXiv:1301.3781) for the analogies; Finkelstein et al., WordSim-353 (TOIS 2002).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gensim.test.utils import datapath
from numpy.typing import NDArray

from gossip.errors import UsageError
from p2p.driver.evaluation import Evaluate

NAMED = {"analogies": "questions-words.txt", "similarity": "wordsim353.tsv"}
"""Files that come with gensim."""
QUESTIONS = 64
"""Answered at a time: with 100,000 words that takes 26 MB."""


@dataclass(frozen=True)
class Analogies:
    """The share of right answers to the questions whose words are all known, and how many these are."""

    path: str

    def __call__(self, model: Any) -> Mapping[str, float]:
        vectors = model.wv.vectors
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(vectors.dtype).tiny)
        asked = self._questions(model.wv.index_to_key)
        right = 0
        for start in range(0, len(asked), QUESTIONS):
            piece = asked[start : start + QUESTIONS]
            a, b, c, d = piece.T
            scores = (unit[b] - unit[a] + unit[c]) @ unit.T
            np.put_along_axis(scores, piece[:, :3], -np.inf, axis=1)
            right += int(np.count_nonzero(scores.argmax(axis=1) == d))
        return {"analogies": right / max(1, len(asked)), "asked": float(len(asked))}

    def _questions(self, words: Sequence[str]) -> NDArray[np.int64]:
        """The rows of the four words of each question whose words are all known, (questions, 4)."""
        rows = {word.upper(): row for row, word in reversed(list(enumerate(words)))}
        with open(self.path, encoding="utf-8") as file:
            lines = [line.upper().split() for line in file if not line.startswith(":")]
        known = [[rows[word] for word in line] for line in lines if len(line) == 4 and all(w in rows for w in line)]
        return np.array(known, np.int64).reshape(-1, 4)


@dataclass(frozen=True)
class Similarity:
    """Spearman's rank correlation with what people said of pairs of words, and how many pairs are known."""

    path: str

    def __call__(self, model: Any) -> Mapping[str, float]:
        with open(self.path, encoding="utf-8") as file:
            fields = [line.split("\t") for line in file if not line.startswith("#")]
        pairs = [row for row in fields if row[0].lower() in model.wv and row[1].lower() in model.wv]
        if len(pairs) < 2:
            return {"similarity": 0.0, "asked": float(len(pairs))}
        _, (correlation, _), _ = model.wv.evaluate_word_pairs(self.path)
        return {"similarity": float(np.nan_to_num(correlation)), "asked": float(len(pairs))}


def of(evaluate: Any) -> Evaluate | None:
    """What `evaluate=` of `p2p.models.word2vec.train` means: a name, the path of a file, or a function as it is."""
    if evaluate is None or callable(evaluate):
        return evaluate  # type: ignore[no-any-return]
    if not isinstance(evaluate, str | os.PathLike):
        raise UsageError(
            f"evaluate is a {type(evaluate).__name__}, expected {', '.join(map(repr, NAMED))}, the path of a file of "
            "analogies or of similarity, or a function of the model"
        )
    path = os.path.abspath(datapath(NAMED[evaluate])) if evaluate in NAMED else os.fspath(evaluate)
    if not os.path.isfile(path):
        raise UsageError(
            f"evaluate={path!r}: no such file, expected {', '.join(map(repr, NAMED))}, or the path of a file of "
            "analogies or of similarity"
        )
    with open(path, encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip() and not line.startswith("#")), "")
    if first.startswith(":"):
        return Analogies(path)
    if len(first.split("\t")) == 3:
        return Similarity(path)
    raise UsageError(
        f"evaluate={path!r} begins with {first[:40]!r}, expected ': name' of a section of analogies, or two words and "
        "a number separated by tabs"
    )
