"""word2vec in the laboratory: a model with rows that every peer changes and rows that hardly any peer does.

The text is a file with one text per line, or by default the 300 news texts that come with gensim (Lee, Pincombe and
Welsh 2005). Each peer trains its own texts as `p2p.models.word2vec` does, at a constant rate.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import Word2Vec
from gensim.test.utils import datapath
from gensim.utils import simple_preprocess

from gossip.arrays import Array
from gossip.errors import UsageError
from gossip.topology import Floats
from p2p.lab.recording import Parts
from p2p.lab.workloads.workload import deal
from p2p.models.word2vec.partition import build_vocab, gradient

RATE = "0.05"
"""By default, in the laboratory."""
MIN_COUNT = 5
VECTOR_SIZE = 16
WINDOW = 5
NEGATIVE = 5
PAIRS_MAX = 5_000
"""Of a word and one near it, from which the loss is computed, each with NEGATIVE words that are not near."""


def texts(path: Path | None, rows: int) -> list[list[str]]:
    """The first `rows` texts as tokens.

    Raises:
        UsageError: the file cannot be read.
    """
    file = Path(datapath("lee_background.cor")) if path is None else path
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            found = [tokens for line in lines if (tokens := simple_preprocess(line))]
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if not found:
        raise UsageError(f"{file} holds no words, expected one text per line")
    return found[:rows]


class SkipGram:
    """Skip-gram with negative sampling; all peers' vectors in one array."""

    measure = "skip-gram loss in nats per pair of words, with 5 negative samples"

    def __init__(self, corpus: list[list[str]], peers: int, shards: str, rate: float, batch: int, seed: int) -> None:
        """`batch` texts per step, 0 for all of a peer's; with `shards` "label" a peer has texts that lie together.

        Raises:
            UsageError: there are fewer texts than peers, or no frequent words.
        """
        self._rows = deal(np.arange(len(corpus)), peers, shards, np.random.default_rng([seed, 5]))
        if batch > self._rows.shape[1]:
            raise UsageError(
                f"batch {batch}, expected at most the {self._rows.shape[1]} texts that each of {peers} peers has"
            )
        self._corpus, self._batch, self._seed, self._rate = corpus, batch or self._rows.shape[1], seed, rate
        model: Any = Word2Vec(
            sg=1,
            vector_size=VECTOR_SIZE,
            window=WINDOW,
            negative=NEGATIVE,
            min_count=MIN_COUNT,
            alpha=rate,
            min_alpha=rate,
            sample=0,
            seed=seed % 2**31,
            workers=1,
        )
        build_vocab(model, corpus)
        self._model = model
        words = len(model.wv)
        self._half = words * VECTOR_SIZE
        self.start: Array = np.concatenate([model.wv.vectors.ravel(), model.syn1neg.ravel()])
        counts = np.array([model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key], np.float64)
        shapes = {"wv.vectors": (words, VECTOR_SIZE), "syn1neg": (words, VECTOR_SIZE)}
        self.parts = Parts.of(shapes, dict.fromkeys(shapes, counts))
        self._pairs = self._draw_pairs(counts)

    def at(self, rate: float) -> SkipGram:
        other = copy(self)
        other._rate = rate
        return other

    def delta(self, x: Array, round: int) -> Array:
        self._model.alpha = self._model.min_alpha = self._model.min_alpha_yet_reached = self._rate
        model, deltas = self._model, np.empty(x.shape, np.float32)
        each = self._rows.shape[1]
        for peer, params in enumerate(x):
            model.wv.vectors[...] = params[: self._half].reshape(model.wv.vectors.shape)
            model.syn1neg[...] = params[self._half :].reshape(model.syn1neg.shape)
            sequence = np.random.SeedSequence([self._seed, 6, round, peer])
            model.random = np.random.RandomState(np.random.MT19937(sequence))
            mine = self._rows[peer, (round * self._batch + np.arange(self._batch)) % each]
            change = gradient(model, [self._corpus[row] for row in mine])
            if change:
                deltas[peer] = np.concatenate([change["wv.vectors"].ravel(), change["syn1neg"].ravel()])
            else:
                deltas[peer] = 0.0
        return deltas

    def loss(self, x: Floats) -> float:
        vectors, outputs = x[: self._half].reshape(-1, VECTOR_SIZE), x[self._half :].reshape(-1, VECTOR_SIZE)
        words, near, far = self._pairs
        right = np.einsum("pd,pd->p", vectors[words], outputs[near])
        wrong = np.einsum("pd,pnd->pn", vectors[words], outputs[far])
        return float(np.mean(np.logaddexp(0.0, -right) + np.logaddexp(0.0, wrong).sum(axis=1)))

    def _draw_pairs(self, counts: Floats) -> tuple[Array, Array, Array]:
        """(words, words near them, words drawn by count^3/4 as the model's own negative samples)."""
        random = np.random.default_rng([self._seed, 8])
        known = self._model.wv.key_to_index
        pairs = []
        for tokens in self._corpus:
            ids = [known[token] for token in tokens if token in known]
            pairs += [(word, ids[at + 1]) for at, word in enumerate(ids[:-1])]
        if not pairs:
            raise UsageError("the text has no two frequent words beside each other; take a longer one")
        chosen = np.array(pairs)[random.permutation(len(pairs))[:PAIRS_MAX]]
        share = counts**0.75 / np.sum(counts**0.75)
        far = random.choice(len(counts), size=(len(chosen), NEGATIVE), p=share)
        return chosen[:, 0], chosen[:, 1], far


def make(data: Path | None, *, rows: int, peers: int, shards: str, rate: float, batch: int, seed: int) -> SkipGram:
    """Skip-gram on the first `rows` texts of a file, or of those that come with gensim."""
    return SkipGram(texts(data, rows), peers, shards, rate, batch, seed)
