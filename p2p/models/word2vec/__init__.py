"""Word2vec on gensim's `Word2Vec`: `train(corpus)` by one call, or `build_vocab` and `gradient` for `DeepDist`.

partition.py                  the gradient: trains one partition
skipgram.py row_products.py   its kernel, compiled, and the products of rows that it needs
lexicon.py word_counts.py     words by number, and how often each occurs
light.py                      a Word2Vec as far as its workers need it
adapter.py                    which of its arrays travel, and what workers import beforehand
training.py corpus.py         `train`, and where it reads sentences: RDDs, DataFrames, files, lists
questions.py                  analogies and similarities, as `evaluate=`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2p.models.word2vec.partition import build_vocab, gradient

if TYPE_CHECKING:
    from p2p.models.word2vec.training import train

__all__ = ["build_vocab", "gradient", "train"]


def __getattr__(name: str) -> Any:
    """`train` needs the whole trainer, which workers do not."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2p.models.word2vec.training import train

    return train
