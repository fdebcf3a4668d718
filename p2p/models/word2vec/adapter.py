"""gensim's `Word2Vec` as a model: both layers, and the words that all peers have trained in all trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from gossip.arrays import Arrays
from gossip.errors import UsageError
from p2p.adapters import ByPath
from p2p.worker.combine import for_embeddings

LAYERS = ("syn1", "syn1neg")
"""`syn1neg` serves negative sampling, `syn1` hierarchical softmax."""


@dataclass(frozen=True)
class Word2VecAdapter(ByPath):
    """Its arrays are wv.vectors, those of `LAYERS` that it has, and words_trained."""

    counters: frozenset[str] = frozenset({"words_trained"})
    caches: frozenset[str] = frozenset({"norms"})
    row_codec: str | None = "int8"

    def names(self, model: Any) -> Sequence[str]:
        classes = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("gensim.")}
        if others := classes & {"FastText", "Doc2Vec"}:
            raise UsageError(
                f"a gensim {', '.join(others)} has arrays of its own beside those of Word2Vec: expected a Word2Vec, or "
                "parameters=(...) with the paths of all arrays to train"
            )
        if len(model.wv) == 0:
            raise UsageError("the Word2Vec model has no vocabulary: call build_vocab first")
        if not hasattr(model, "words_trained"):
            model.words_trained = np.zeros(1, np.float64)
        layers = [name for name in LAYERS if isinstance(getattr(model, name, None), np.ndarray)]
        return sorted(["wv.vectors", *layers, "words_trained"])

    def sending(self, model: Any, arrays: Arrays) -> None:
        """The learning rate falls along the words of this training, and not of earlier ones."""
        if "words_trained" in arrays:
            model.words_trained_before = float(arrays["words_trained"][0])

    def loaded(self, model: Any) -> None:
        model.wv.norms = None

    def meaning(self, model: Any) -> str:
        """A row is a word."""
        words = model.wv.index_to_key
        return f"{len(words)} words of sha256 {sha256(chr(0).join(words).encode(errors='surrogatepass')).hexdigest()}"

    def combine(self, peers: int) -> str:
        return for_embeddings(peers)

    def preload(self) -> None:
        from p2p.models.word2vec import light, partition, skipgram, word_counts  # noqa: F401

        word_counts.of_rows(["a b"])
        skipgram.load()


ADAPTER = Word2VecAdapter()
