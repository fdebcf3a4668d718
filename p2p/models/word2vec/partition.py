"""Word2vec: gensim's model, trained one partition at a time and without gensim's threads and job queue.

`build_vocab` gives every peer the same rows for the same words. `gradient` trains a private replica on the rows of one
partition and returns the changes. Three things make many small calls one training run:

- the learning rate falls along one line over all partitions, peers and epochs: `words_trained`, the number of corpus
  words trained by all peers, is one more array of the model, merged like the others;
- every (epoch, partition, chunk) draws its own negative samples, reproducibly;
- a text of any length is trained to its end: gensim's kernels stop after 10,000 words, so longer rows are cut into
  pieces.

Skip-gram with negative sampling is trained by `p2p.models.word2vec.skipgram`, several times as fast as by gensim's
kernel, whose losses and lock factors it does not have; all else is trained by gensim's Cython kernels.

Sources: Mikolov et al., Distributed Representations of Words and Phrases (arXiv:1310.4546), for the model;
gensim 4.4, `Word2Vec._do_train_job` and `_get_next_alpha`, for the calls of the kernels and the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gossip.errors import UsageError
from p2p.models.word2vec import word_counts
from p2p.models.word2vec.lexicon import Lexicon, Row, check_row
from p2p.models.word2vec.light import by_skipgram, check_no_loss, light
from p2p.worker import task

MAX_WORDS_IN_BATCH = 10_000
"""gensim's: its kernels stop there."""
LETTERS_PER_WORD = 6
"""With the space behind it; English has about so many."""


def gradient(model: Any, rows: Iterable[Sequence[str]]) -> Mapping[str, NDArray[Any]]:
    """Train the replica `model` on `rows` in place and return the change of each of its arrays.

    `model` is a gensim `Word2Vec` (skip-gram or CBOW, negative sampling or hierarchical softmax) with a vocabulary.
    `rows` are lists of tokens, or texts, whose words stand between white space: such rows reach a worker of Spark far
    sooner. They are read once and as a stream; words outside the vocabulary are skipped.

    The update holds new arrays: "wv.vectors" and, as the model has them, "syn1neg" and "syn1", (words, vector_size),
    float32; and "words_trained", (1,), float64: the words of `rows`, known or not. It is left out if the model has no
    such attribute. The update is empty if `rows` hold no words.

    Raises `UsageError` for a model that cannot be trained and for a row that is neither.
    """
    trained = check_trainable(model)
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
    ready, train_batch = _kernel(model)
    copy = task.in_place(model)
    if copy is not None:
        check_no_loss(model)
    before: dict[str, NDArray[Any]] = {}
    words = since = 0  # of all rows, and since the model saw what the others trained
    for batch in batches(map(ready, rows)):
        if copy is None and not before:
            before = {name: array.copy() for name, array in trained.items()}
        # The others train at about the same speed meanwhile, which the snapshot cannot know.
        alpha = learning_rate(model, (progress + peers * since) / words_all)
        count = train_batch(batch, alpha)
        words, since = words + count, since + count
        if copy is not None and words_trained is not None:
            words_trained += count
            if task.pause(untrained=1):  # the row that did not fit into the batch
                progress, since = _progress(model), 0

    model.wv.norms = None  # gensim caches the norms of the rows that have just changed
    if not words:
        return {}
    if copy is not None:
        return copy.trained({})
    counted = {} if words_trained is None else {"words_trained": np.array([words], np.float64)}
    return {**{name: np.subtract(trained[name], old, out=old) for name, old in before.items()}, **counted}


gradient.light = light  # type: ignore[attr-defined]  # what `DeepDist` sends to workers in place of a model


def _kernel(model: Any) -> tuple[Callable[[Row], Row], Callable[[Sequence[Row], float], int]]:
    """What makes rows ready, and what trains `model` on a batch of them at a learning rate and returns its words.

    Draws random numbers as `model.random` says.
    """
    if by_skipgram(model):
        from p2p.models.word2vec import skipgram  # with numba, a compiler: for those only who train by it

        state, lexicon = skipgram.random_state(model.random), _lexicon(model)

        def train_numbers(batch: Sequence[Row], alpha: float) -> int:
            numbers, ends = lexicon.numbers(batch)
            skipgram.train_batch(model, numbers, ends, alpha, state)
            return len(numbers)

        return check_row, train_numbers

    from gensim.models.word2vec import train_batch_cbow, train_batch_sg  # with scipy, a second of CPU time

    work, neu1 = (np.zeros(model.layer1_size, np.float32) for _ in range(2))

    def train_tokens(batch: Sequence[Row], alpha: float) -> int:
        if model.sg:
            train_batch_sg(model, batch, alpha, work, model.compute_loss)
        else:
            train_batch_cbow(model, batch, alpha, work, neu1, model.compute_loss)
        return sum(map(len, batch))

    return _tokens, train_tokens


def _tokens(row: Any) -> Sequence[str]:
    checked = check_row(row)
    return checked.split() if isinstance(checked, str) else checked


_lexicons: WeakKeyDictionary[Any, tuple[list[str], Lexicon]] = WeakKeyDictionary()
"""By model, the list of its words, and their lexicon. Not in the model, which is sent to workers."""


def _lexicon(model: Any) -> Lexicon:
    words = model.wv.index_to_key
    known = _lexicons.get(model)
    if known is None or known[0] is not words or len(known[1]) != len(words):
        known = _lexicons[model] = (words, Lexicon(words))
    return known[1]


def _progress(model: Any) -> float:
    """Words that everybody trained of this schedule; what earlier trainings of the model counted is not of it."""
    words_trained = getattr(model, "words_trained", None)
    return 0.0 if words_trained is None else float(words_trained[0]) - getattr(model, "words_trained_before", 0.0)


def learning_rate(model: Any, progress: float) -> float:
    """The rate at `progress` (0 to 1, anything above counts as 1): linear from `model.alpha` to `model.min_alpha`."""
    return float(model.alpha - (model.alpha - model.min_alpha) * min(1.0, progress))


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Gather rows into batches of at most 10,000 words, the most that a kernel takes; cut longer rows into pieces.

    Of a text the words are guessed by its length.
    """
    batch: list[Row] = []
    words = 0
    for row in rows:
        count = len(row) // LETTERS_PER_WORD + 1 if isinstance(row, str) else len(row)
        if isinstance(row, str) and count > MAX_WORDS_IN_BATCH:
            row = row.split()
            count = len(row)
        for start in range(0, count, MAX_WORDS_IN_BATCH):
            piece = row if count <= MAX_WORDS_IN_BATCH else row[start : start + MAX_WORDS_IN_BATCH]
            size = min(count - start, MAX_WORDS_IN_BATCH)
            if words + size > MAX_WORDS_IN_BATCH:
                yield batch
                batch, words = [], 0
            batch.append(piece)
            words += size
    if batch:
        yield batch


def build_vocab(model: Any, corpus: Any) -> None:
    """Count the words of `corpus` and give `model` its vocabulary and fresh weights, in one order for everybody.

    `corpus` is an RDD, which Spark then counts, or any iterable, of token lists or of texts, whose words stand between
    white space. The rows of the model follow (-count, word), so the same text gives the same rows whatever its order
    and partitioning; gensim's own `build_vocab` breaks ties by appearance, which differs from one reader to the next.
    `min_count`, `max_final_vocab`, `sample` and `hs` work as in gensim; `max_vocab_size`, which prunes while counting
    and by order, is refused.

    Sets `corpus_count` (rows) and `corpus_total_words`, from which the learning rate follows. Raises `UsageError` for a
    model that has a vocabulary already, a row that is neither, and a corpus in which no word is frequent enough.
    """
    if not hasattr(model, "wv"):
        raise UsageError(f"model is a {type(model).__name__}, expected a gensim Word2Vec")
    if isinstance(corpus, str | bytes) or not (hasattr(corpus, "mapPartitions") or hasattr(corpus, "__iter__")):
        raise UsageError(
            f"corpus is a {type(corpus).__name__}, expected an RDD or an iterable of texts or token lists, such as "
            "open(path)"
        )
    if isinstance(corpus, Mapping) or hasattr(corpus, "iloc"):
        raise UsageError(
            f"corpus is a {type(corpus).__name__}, of which the rows would be the keys or the names of columns: "
            "expected an RDD or an iterable of texts or token lists, such as list(corpus['text'])"
        )
    if len(model.wv):
        raise UsageError(
            f"expected a model without a vocabulary, got one with {len(model.wv)} words; make a new Word2Vec(...)"
        )
    if model.max_vocab_size:
        raise UsageError(
            f"expected max_vocab_size=None, got {model.max_vocab_size}: pruning while counting depends on the order of "
            "the text; limit the vocabulary by min_count or max_final_vocab"
        )
    if hasattr(corpus, "mapPartitions"):
        sentences, words, frequent = word_counts.of_rdd(corpus, model.min_count)
    else:
        counts = word_counts.of_rows(corpus)
        sentences, words, frequent = counts.rows, counts.words, counts.frequent(model.min_count)
    ordered = sorted(frequent.items())
    ordered.sort(key=itemgetter(1), reverse=True)  # and words that occur equally often stay as they are
    if words == sentences > 0 and (not ordered or any(len(word.split()) > 1 for word, _ in ordered)):
        raise UsageError(
            f"expected texts or lists of tokens, got one token in each of {sentences} rows: a text is a str, "
            "and not a list of one; split it, as by row[0].split(), or give row[0] itself"
        )
    if not ordered:
        raise UsageError(
            f"expected words that occur at least min_count={model.min_count} times, got none among {words} words in "
            f"{sentences} rows; check that the corpus holds texts or lists of tokens, or lower min_count"
        )
    model.corpus_count, model.corpus_total_words = sentences, words
    _set_vocabulary(model, [word for word, _ in ordered], np.array([count for _, count in ordered], np.int64))


def _set_vocabulary(model: Any, words: list[str], counts: NDArray[np.int64]) -> None:
    """Give `model` these words, the most frequent first, the tables that follow from their counts, and fresh weights.

    To the last bit what `Word2Vec.build_vocab_from_freq` of gensim 4.4 does, which takes a tenth of the time that two
    executors train on the text. It would put words that occur equally often into the reverse of our order.
    """
    least = model.min_count
    if model.max_final_vocab is not None and model.max_final_vocab < len(words):
        least = max(least, int(counts[model.max_final_vocab]) + 1)
        words = words[: np.count_nonzero(counts >= least)]
        counts = counts[: len(words)]
        if not words:
            raise UsageError(
                f"max_final_vocab={model.max_final_vocab} leaves no word: more of them are equally frequent"
            )
    model.effective_min_count = least
    keyed = model.wv
    keyed.index_to_key, keyed.key_to_index = words, {word: index for index, word in enumerate(words)}
    keyed.allocate_vecattrs(["count", "sample_int"], [int, np.uint32])
    keyed.expandos["count"][:] = counts
    if not model.sample:
        threshold = float(counts.sum())
    elif model.sample < 1:
        threshold = model.sample * float(counts.sum())
    else:
        threshold = float(int(model.sample * (3 + np.sqrt(5)) / 2))
    share = np.minimum(1, (np.sqrt(counts / threshold) + 1) * (threshold / counts))
    keyed.expandos["sample_int"][:] = (share * (2**32 - 1)).astype(np.uint32)
    if model.null_word:
        model.add_null_word()
    if model.hs:
        model.create_binary_tree()
    if model.negative:
        cumulative = np.cumsum([count ** float(model.ns_exponent) for count in keyed.expandos["count"].tolist()])
        model.cum_table = np.rint(cumulative / cumulative[-1] * (2**31 - 1)).astype(np.uint32)
    model.init_weights()


def check_trainable(model: Any) -> dict[str, NDArray[Any]]:
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
