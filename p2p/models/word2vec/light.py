"""A gensim `Word2Vec` as far as a worker needs it: workers that get this one need not import gensim.

With gensim comes all of scipy.stats, a second of a worker's CPU time before it trains the first word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossip.errors import UsageError

ATTRIBUTES = (
    "sg",
    "hs",
    "negative",
    "window",
    "shrink_windows",
    "sample",
    "alpha",
    "min_alpha",
    "epochs",
    "seed",
    "compute_loss",
    "vector_size",
    "corpus_total_words",
    "cum_table",
    "syn1neg",
)
"""Of a Word2Vec, what training by skip-gram and negative sampling reads."""
OPTIONAL = ("words_trained", "words_trained_before")


class LightVectors:
    """Of a `KeyedVectors`, what that training reads."""

    def __init__(self, keyed: Any) -> None:
        self.vectors: NDArray[np.float32] = keyed.vectors
        self.index_to_key: list[str] = keyed.index_to_key
        self.expandos: dict[str, NDArray[Any]] = {}
        if "sample_int" in keyed.expandos:
            self.expandos["sample_int"] = keyed.expandos["sample_int"]
        self.vectors_lockf = np.ones(1, np.float32)
        self.norms: None = None

    def __len__(self) -> int:
        return len(self.index_to_key)


class LightWord2Vec:
    """Shares the arrays and the words of the `Word2Vec` that it is made of."""

    def __init__(self, model: Any) -> None:
        for name in ATTRIBUTES:
            setattr(self, name, getattr(model, name))
        for name in OPTIONAL:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.wv = LightVectors(model.wv)
        self.random = np.random.RandomState(0)
        """A gradient makes its own before it draws."""


def by_skipgram(model: Any) -> bool:
    """`p2p.models.word2vec.skipgram` trains all that is to be trained of `model`, a Word2Vec or a light one."""
    locked = bool(np.any(model.wv.vectors_lockf != 1))
    return bool(model.sg and model.negative and not model.hs and not model.compute_loss and not locked)


def check_no_loss(model: Any) -> None:
    """Raise `UsageError` for a model that is to sum up its loss: that of replicas stays with them."""
    if model.compute_loss:
        raise UsageError(
            "compute_loss=True, expected False: peers do not add up what their replicas lose, and "
            "get_latest_training_loss() would be 0. Set model.compute_loss = False, and see how good the model is by "
            "evaluate="
        )


def light(model: Any) -> LightWord2Vec | None:
    """`model` without gensim; None if it is something else than a Word2Vec, or needs gensim to be trained."""
    kind = type(model)
    if (kind.__module__, kind.__name__) != ("gensim.models.word2vec", "Word2Vec"):
        return None
    check_no_loss(model)
    if not by_skipgram(model):
        return None
    return LightWord2Vec(model)
