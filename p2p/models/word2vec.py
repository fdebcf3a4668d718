"""Word2vec: gensim's model, trained one partition at a time and without gensim's threads and job queue.

`build_vocab` gives every peer the same rows for the same words. `gradient` trains a private replica on the rows of one
partition and returns what changed. Three things make many small calls one training run:

- the learning rate falls along one line over all partitions, peers and epochs: `words_trained`, the number of corpus
  words trained by everybody, is one more array of the model, merged like the others;
- every (epoch, partition, chunk) draws its own negative samples, reproducibly;
- a text of any length is trained to its end: gensim's kernels stop after 10,000 words, so longer rows are cut into
  pieces.

Skip-gram with negative sampling is trained by `p2p.models.skipgram`, several times as fast as by gensim's kernel, whose
losses and lock factors it does not have; all else is trained by gensim's Cython kernels.

Sources: Mikolov et al., Distributed Representations of Words and Phrases (arXiv:1310.4546), for the model;
gensim 4.4, `Word2Vec._do_train_job` and `_get_next_alpha`, for the calls of the kernels and the learning rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from gensim.models.word2vec import MAX_WORDS_IN_BATCH, train_batch_cbow, train_batch_sg
from numpy.typing import NDArray

from gossip.errors import UsageError
from p2p import task

if TYPE_CHECKING:
    from p2p.models.word2vec_training import train as train

COUNT_ROWS = 1000
"""Rows that are counted in one call."""

SENTENCES = ("sentences",)
"""The key under which `build_vocab` counts rows next to words. A tuple, as no word is one."""

WORDS = ("words",)
"""The key under which `build_vocab` counts words of any frequency."""


def gradient(model: Any, rows: Iterable[Sequence[str]]) -> Mapping[str, NDArray[Any]]:
    """Train the replica `model` on `rows` in place and return the change of each of its arrays.

    `model` is a gensim `Word2Vec` (skip-gram or CBOW, negative sampling or hierarchical softmax) with a vocabulary.
    `rows` are lists of tokens, read once and as a stream; words outside the vocabulary are skipped.

    The update holds new arrays: "wv.vectors" and, as the model has them, "syn1neg" and "syn1", (words, vector_size),
    float32; and "words_trained", (1,), float64: the words of `rows`, known or not. It is left out if the model has no
    such attribute. The update is empty if `rows` hold no words.

    Raises `UsageError` for a model that cannot be trained and for a row that is not a list of tokens.
    """
    trained = _check_trainable(model)
    run = task.current()
    epochs, peers = (model.epochs, 1) if run is None else (run.epochs, run.peers)
    if run is not None:
        # Replicas of one model arrive with one and the same generator, which would give all peers the same samples.
        # Outside a run there is one replica, and its own generator simply goes on.
        entropy = (abs(model.seed or 0), abs(run.seed))
        sequence = np.random.SeedSequence(entropy, spawn_key=(run.epoch, run.partition, run.chunk))
        model.random = np.random.RandomState(np.random.MT19937(sequence))

    words_trained = getattr(model, "words_trained", None)
    progress = _progress(model)
    words_all = model.corpus_total_words * epochs
    train_batch = _kernel(model)
    copy = task.in_place(model)
    before: dict[str, NDArray[Any]] = {}
    words = since = 0  # of all rows, and since the model saw what the others trained
    for batch in batches(rows):
        if copy is None and not before:
            before = {name: array.copy() for name, array in trained.items()}
        # The others train at about the same speed meanwhile, which the snapshot cannot know.
        alpha = learning_rate(model, (progress + peers * since) / words_all)
        train_batch(batch, alpha)
        count = sum(map(len, batch))
        words, since = words + count, since + count
        if copy is not None and words_trained is not None:
            words_trained += count
            if task.pause(untrained=1):  # the row that did not fit into the batch
                progress, since = _progress(model), 0

    model.wv.norms = None  # gensim caches the norms of the rows that have just changed
    if copy is not None:
        return copy.trained({}) if words else {}
    counted = {} if not words or words_trained is None else {"words_trained": np.array([words], np.float64)}
    return {**{name: np.subtract(trained[name], old, out=old) for name, old in before.items()}, **counted}


def _kernel(model: Any) -> Callable[[Sequence[Sequence[str]], float], int]:
    """What trains `model` on a batch at a learning rate; it draws random numbers as `model.random` says."""
    locked = bool(np.any(model.wv.vectors_lockf != 1))
    if model.sg and model.negative and not model.hs and not model.compute_loss and not locked:
        from p2p.models import skipgram  # with numba, a compiler: for those only who train by it

        state = skipgram.random_state(model.random)
        return lambda batch, alpha: skipgram.train_batch(model, batch, alpha, state)
    work, neu1 = (np.zeros(model.layer1_size, np.float32) for _ in range(2))
    if model.sg:
        return lambda batch, alpha: int(train_batch_sg(model, batch, alpha, work, model.compute_loss))
    return lambda batch, alpha: int(train_batch_cbow(model, batch, alpha, work, neu1, model.compute_loss))


def _progress(model: Any) -> float:
    """Words that everybody trained of this schedule; what earlier trainings of the model counted is not of it."""
    words_trained = getattr(model, "words_trained", None)
    return 0.0 if words_trained is None else float(words_trained[0]) - getattr(model, "words_trained_before", 0.0)


def learning_rate(model: Any, progress: float) -> float:
    """The rate at `progress` (0 to 1, anything above counts as 1): linear from `model.alpha` to `model.min_alpha`."""
    return float(model.alpha - (model.alpha - model.min_alpha) * min(1.0, progress))


def batches(rows: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Gather rows into batches of at most 10,000 words, the most that a kernel takes; cut longer rows into pieces.

    Raises `UsageError` for a row that is not a list of tokens.
    """
    batch: list[Sequence[str]] = []
    words = 0
    for row in rows:
        tokens = _check_tokens(row)
        for start in range(0, len(tokens), MAX_WORDS_IN_BATCH):
            piece = tokens if len(tokens) <= MAX_WORDS_IN_BATCH else tokens[start : start + MAX_WORDS_IN_BATCH]
            if words + len(piece) > MAX_WORDS_IN_BATCH:
                yield batch
                batch, words = [], 0
            batch.append(piece)
            words += len(piece)
    if batch:
        yield batch


def build_vocab(model: Any, corpus: Any) -> None:
    """Count the words of `corpus` and give `model` its vocabulary and fresh weights, in one order for everybody.

    `corpus` is an RDD of token lists, which Spark then counts, or any iterable of token lists. The rows of the model
    follow (-count, word), so the same text gives the same rows whatever its order and partitioning; gensim's own
    `build_vocab` breaks ties by appearance, which differs from one reader to the next. `min_count`, `max_final_vocab`,
    `sample` and `hs` work as in gensim; `max_vocab_size`, which prunes while counting and by order, is refused.

    Sets `corpus_count` (rows) and `corpus_total_words`, from which the learning rate follows. Raises `UsageError` for a
    model that has a vocabulary already, a row that is not a list of tokens, and a corpus in which no word is frequent
    enough.
    """
    if len(model.wv):
        raise UsageError(
            f"expected a model without a vocabulary, got one with {len(model.wv)} words; make a new Word2Vec(...)"
        )
    if model.max_vocab_size:
        raise UsageError(
            f"expected max_vocab_size=None, got {model.max_vocab_size}: pruning while counting depends on the order of "
            "the text; limit the vocabulary by min_count or max_final_vocab"
        )
    counts = _count_rdd(corpus, model.min_count) if hasattr(corpus, "flatMap") else dict(_count(corpus))
    sentences, words = counts.pop(SENTENCES, 0), counts.pop(WORDS, 0)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    if not any(count >= model.min_count for count in ordered.values()):
        raise UsageError(
            f"expected words that occur at least min_count={model.min_count} times, got none among {words} words in "
            f"{sentences} rows; check that the corpus holds lists of tokens, or lower min_count"
        )
    sorts = model.sorted_vocab
    model.sorted_vocab = 0  # gensim's own sort would put equal counts into the reverse of our order
    try:
        model.build_vocab_from_freq(ordered, corpus_count=sentences)
    finally:
        model.sorted_vocab = sorts
    model.corpus_total_words = words


def _count(rows: Iterable[Sequence[str]]) -> Iterator[tuple[Any, int]]:
    """The words of `rows` with their counts, and the counts of rows and words under `SENTENCES` and `WORDS`."""
    counts: Counter[Any] = Counter()
    sentences = 0
    checked = map(_check_tokens, rows)
    while block := list(islice(checked, COUNT_ROWS)):
        counts.update(chain.from_iterable(block))
        sentences += len(block)
    words = counts.total()
    return chain(counts.items(), ((SENTENCES, sentences), (WORDS, words)) if sentences else ())


def _count_rdd(corpus: Any, min_count: int) -> dict[Any, int]:
    """`_count` by Spark; words that are too rare stay in the cluster.

    What is shuffled are dictionaries, one for each pair of partitions, not pairs of word and count.
    """
    parts = corpus.getNumPartitions()

    def split(rows: Iterable[Sequence[str]]) -> Iterator[tuple[int, dict[Any, int]]]:
        counts: list[dict[Any, int]] = [{} for _ in range(parts)]
        for word, count in _count(rows):
            # tuples, which stand for totals, are no words; Python's own hash differs from one process to the next
            counts[crc32(word.encode(errors="surrogatepass")) % parts if isinstance(word, str) else 0][word] = count
        return ((part, some) for part, some in enumerate(counts) if some)

    def frequent(part: tuple[int, dict[Any, int]]) -> Iterator[tuple[Any, int]]:
        return (item for item in part[1].items() if item[1] >= min_count or item[0] in (SENTENCES, WORDS))

    return dict(corpus.mapPartitions(split).reduceByKey(_add_counts, parts).flatMap(frequent).collect())


def _add_counts(one: dict[Any, int], other: dict[Any, int]) -> dict[Any, int]:
    for word, count in other.items():
        one[word] = one.get(word, 0) + count
    return one


def _check_tokens(row: Any) -> Sequence[str]:
    """`row` as a list or tuple of tokens; raise `UsageError` if it is something else."""
    if isinstance(row, str | bytes):
        raise UsageError(
            f"expected rows that are lists of tokens, got the {type(row).__name__} {row[:40]!r}; split the text, for "
            "example rdd.map(str.split)"
        )
    if not isinstance(row, Iterable):
        raise UsageError(f"expected rows that are lists of tokens, got {type(row).__name__} {row!r:.40}")
    tokens = row if isinstance(row, list | tuple) else list(row)
    if tokens and not isinstance(tokens[0], str):
        raise UsageError(
            f"expected rows that are lists of tokens (str), got a {type(row).__name__} of {type(tokens[0]).__name__}; "
            "for a DataFrame, take the column: frame.rdd.map(lambda row: row.tokens)"
        )
    return tokens


def _check_trainable(model: Any) -> dict[str, NDArray[Any]]:
    """The arrays that training changes, by name; raise `UsageError` if the kernels cannot train them.

    The kernels write through raw pointers: an array of another dtype or shape would be memory corruption, not an error.
    """
    if not len(model.wv):
        raise UsageError(
            "expected a model with a vocabulary, got an empty one; call build_vocab(model, corpus) before training"
        )
    if model.corpus_total_words <= 0:
        raise UsageError(
            f"expected corpus_total_words > 0, from which the learning rate follows, got {model.corpus_total_words}; "
            "call p2p.models.word2vec.build_vocab(model, corpus), or set it to the number of words of the corpus"
        )
    if not 0 <= model.min_alpha <= model.alpha:
        raise UsageError(f"expected 0 <= min_alpha <= alpha, got min_alpha={model.min_alpha} and alpha={model.alpha}")
    if not model.hs and not model.negative:
        raise UsageError("expected hs=1 or negative > 0, got hs=0 and negative=0, with which nothing is trained")
    trained = {"wv.vectors": model.wv.vectors}
    if model.negative:
        trained["syn1neg"] = model.syn1neg
    if model.hs:
        trained["syn1"] = model.syn1
    shape = (len(model.wv), model.vector_size)
    for name, array in trained.items():
        if array.dtype != np.float32 or array.shape != shape or not array.flags.carray:
            raise UsageError(
                f"{name!r}: expected a writable C-contiguous float32 array {shape}, got {array.dtype} {array.shape}, "
                f"contiguous {array.flags.c_contiguous}, writable {array.flags.writeable}; copy it with "
                "np.require(array, np.float32, 'CW')"
            )
    return trained


def __getattr__(name: str) -> Any:
    """`train`, when somebody asks for it: it needs the whole trainer, which a worker that runs `gradient` does not."""
    if name == "train":
        from p2p.models.word2vec_training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
