"""Word2vec in one call, for users who have no gradient to write: `train(corpus)` returns a gensim `Word2Vec`.

`train` reads the corpus (`p2p.models.word2vec.corpus`), counts the words, makes the model or goes on with an earlier
one, and trains it with `p2p.models.word2vec.gradient`. For another gradient, a `descent` or averaging, take
`build_vocab`, `gradient` and `DeepDist` themselves.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypedDict, Unpack, cast

import numpy as np
from gensim.models import Word2Vec

from gossip.arguments import function, integer, number, one_of
from gossip.errors import UsageError
from p2p import arguments
from p2p.driver import evaluation as evaluations
from p2p.driver.evaluation import Evaluate
from p2p.driver.stopping import StopWhen
from p2p.models.checkpoints import Checkpointing
from p2p.models.word2vec import corpus as corpora
from p2p.models.word2vec import partition, questions
from p2p.models.word2vec.lexicon import Lexicon, Row, check_row
from p2p.models.word2vec.light import check_no_loss
from p2p.models.word2vec.word_counts import BLOCK_ROWS
from p2p.report import Report
from p2p.sessions.cluster import SimulatedCluster

CHUNK_WORDS = 20_000
"""Between two exchanges: a replica is then at most a fraction of a second behind the others."""


class Settings(TypedDict, total=False):
    """What `train` hands on to gensim's `Word2Vec`; its defaults are gensim's."""

    vector_size: int
    """Numbers per word (100)."""
    window: int
    """Words before and after a word, at most (5)."""
    min_count: int
    """Rarer words are left out (5)."""
    max_final_vocab: int | None
    """Only the most frequent words, about so many (None: all)."""
    sg: int
    """1 for skip-gram, 0 for CBOW (0)."""
    hs: int
    """1 for hierarchical softmax (0)."""
    negative: int
    """Negative samples per word; 0 for no negative sampling (5)."""
    sample: float
    """Words more frequent than this share of the text are left out at random (0.001)."""
    alpha: float
    """The learning rate at the beginning (0.025)."""
    min_alpha: float
    """The learning rate at the end (0.0001)."""
    epochs: int
    """Passes over the corpus (5)."""
    seed: int
    """Of the initial vectors and of what training draws (1)."""


OF_THE_MODEL = ("vector_size", "min_count", "max_final_vocab", "sg", "hs", "negative", "sample")
"""Settings that a model's vocabulary and arrays are made by; they stay when a training goes on."""
OF_ONE_PROCESS = ("compute_loss", "callbacks", "workers")
INTEGERS = {"vector_size": 1, "window": 1, "min_count": 0, "max_final_vocab": 1, "epochs": 1, "negative": 0, "seed": 0}
"""Settings that are integers, and how much they are at least."""
RATES = ("sample", "alpha", "min_alpha")
RATE_MAX = 1e30
"""gensim's kernels hold it in 32 bits, and crash on what is infinite there."""


def train(
    corpus: Any,
    *,
    column: str | None = None,
    encoding: str | None = None,
    start_from: Any = None,
    peers: int | None = None,
    mode: Literal["p2p", "master"] = "p2p",
    chunk_words: int | None = None,
    exchange: Literal["chunk", "partition", "continuous"] = "chunk",
    exchange_s: float | None = None,
    evaluate: str | os.PathLike[str] | Evaluate | None = None,
    evaluate_every_s: float | None = None,
    stop_when: StopWhen | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every_s: float | None = None,
    keep: int | None = None,
    resume: bool = False,
    sc: Any = None,
    engine: SimulatedCluster | None = None,
    progress: bool | None = None,
    on_report: Callable[[Report], Any] | None = None,
    **settings: Unpack[Settings],
) -> Word2Vec:
    """Train word2vec on `corpus` and return the gensim model.

    `corpus` is an RDD of texts, whose words stand between white space, or of token lists; a DataFrame, of which
    `column` holds texts or arrays of strings; the path of a text file with one sentence per line (also gzip or bz2), of
    a folder of such files, or a glob; a list of texts or token lists; or what `p2p.data.read_text` reads of any URL.
    Files are in UTF-8, or in `encoding`, such as "latin-1". Texts are several times cheaper to read than token lists.
    The executors of Spark train an RDD, a DataFrame, and a path if `sc` is given or a SparkContext is active;
    otherwise, and always if `peers` is given, so many processes of this machine do (default: one per core). The corpus
    is read once to count and once per epoch: cache an RDD that is costly to compute.

    `settings` are those of gensim's `Word2Vec`, with its defaults; see `Settings`. `start_from` goes on with a copy of
    a model, or with one that `save` wrote to a path, on its vocabulary; settings that shaped it are its own or left
    out. The learning rate falls again from `alpha` to `min_alpha` (default: the model's); lower it to change less.

    `evaluate` is a function of the model, "analogies" or "similarity" (by gensim's questions), or a file of one or the
    other (see `questions`). A chunk has `chunk_words` words (20,000). `resume` goes on with the newest checkpoint, on
    the same corpus, and begins where there is none. `on_report=print` shows the report. The other options are those of
    `DeepDist` and its `train`. `UsageError`: something cannot be; no peer was started.
    """
    arguments.rhythm(exchange, exchange_s, mode, None, None)
    settings, chunk_words = _checked(settings, chunk_words, exchange, on_report)
    checkpoints = Checkpointing(checkpoint, every_s, keep, resume)
    peers, *_ = arguments.of_session(mode, peers, engine, settings.get("seed", 1), progress, 0.0)
    measure = _measure(evaluate, evaluate_every_s)
    model = Word2Vec(**settings) if start_from is None else _earlier(start_from, settings)
    data = corpora.sentences(corpus, column, sc, peers if engine is None else engine.peers, encoding)
    _count(model, data, known=start_from is not None)
    options = {"peers": peers, "engine": engine, "seed": abs(model.seed or 0), "progress": progress}
    rows = _chunk_rows(model, chunk_words, exchange)
    told: Any = {"epochs": model.epochs, "chunk_rows": rows, "exchange": exchange, "exchange_s": exchange_s}
    told |= {"evaluate": measure, "evaluate_every_s": evaluate_every_s, "stop_when": stop_when}
    with checkpoints.session(model, mode, **options) as dd:
        report = dd.train(data, partition.gradient, **told, **checkpoints.training)
    if on_report is not None:
        on_report(report)
    return model


def _measure(evaluate: Any, evaluate_every_s: float | None) -> Evaluate | None:
    """What is called with the model every so often; None if nothing is."""
    measure = questions.of(evaluate)
    evaluations.checked(measure, evaluate_every_s, 0.0)
    return measure


def _checked(settings: Settings, chunk_words: Any, exchange: Any, on_report: Any) -> tuple[Settings, int | None]:
    """The settings and `chunk_words` as they are to be used."""
    known = Settings.__annotations__
    if idle := [name for name in OF_ONE_PROCESS if name in settings]:
        raise UsageError(
            f"{', '.join(idle)} is for gensim's own training in one process, expected to be left out: see how good the "
            "model is by evaluate=, and train in more processes by peers="
        )
    if unknown := [name for name in settings if name not in known]:
        raise UsageError(
            f"unknown settings {', '.join(unknown)}, expected some of {', '.join(known)}; for others make a Word2Vec "
            "and train it with p2p.DeepDist, build_vocab and gradient"
        )
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        if name in RATES:
            plain[name] = number(name, value, f"a number from 0 to {RATE_MAX:g}", lambda rate: 0 <= rate <= RATE_MAX)
        elif name == "max_final_vocab" and value is None:
            plain[name] = None
        elif name in INTEGERS:
            plain[name] = integer(name, value, INTEGERS[name])
        else:
            plain[name] = one_of(name, integer(name, value), (0, 1))
    if chunk_words is not None:
        chunk_words = integer("chunk_words", chunk_words, 1, "a number of words, at least 1")
        if exchange != "chunk":
            raise UsageError(
                f"chunk_words={chunk_words} with exchange={exchange!r}, expected None: leave one of them out"
            )
    if on_report is not None:
        function("on_report", on_report, "of a Report, such as print")
    return cast(Settings, plain), chunk_words


def _earlier(start_from: Any, settings: Settings) -> Any:
    """The model to go on with, with the new settings; not the one given, but a copy."""
    model = _load(os.fspath(start_from)) if isinstance(start_from, str | os.PathLike) else copy.deepcopy(start_from)
    if not isinstance(model, Word2Vec):
        raise UsageError(
            f"start_from is a {type(model).__name__}, expected a gensim Word2Vec or the path of one that `save` wrote; "
            "word vectors alone lack the output layer and cannot be trained on"
        )
    check_no_loss(model)
    for name in OF_THE_MODEL:
        if name in settings and settings[name] != getattr(model, name):  # type: ignore[literal-required]
            raise UsageError(
                f"{name}={settings[name]!r}, expected the {getattr(model, name)!r} of start_from, "  # type: ignore[literal-required]
                "whose arrays are made for it: leave it out, or train a new model"
            )
    for name, value in settings.items():
        setattr(model, name, value)
    return model


def _load(path: str) -> Any:
    if not os.path.isfile(path):
        raise UsageError(f"start_from={path!r}: no such file, expected one that model.save(path) wrote")
    try:
        return Word2Vec.load(path)
    except (pickle.UnpicklingError, AttributeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise UsageError(
            f"start_from={path!r}: expected a Word2Vec that model.save(path) wrote, got something else ({error}); "
            "word vectors alone, as of save_word2vec_format, cannot be trained on"
        ) from error


class _Totals:
    """Counts rows, words, and words that a model knows; a class, so that Spark can send it."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def __call__(self, rows: Iterable[Row]) -> Iterator[tuple[int, int, int]]:
        lexicon = Lexicon(self._known)
        sentences = words = known = 0
        rest = map(check_row, rows)
        while block := list(islice(rest, BLOCK_ROWS)):
            numbers, _ = lexicon.numbers(block)
            sentences += len(block)
            words += len(numbers)
            known += int(np.count_nonzero(numbers >= 0))
        yield sentences, words, known


def _count(model: Any, data: Any, *, known: bool) -> None:
    """Set the size of the corpus that `model` is to be trained on, and its vocabulary if that is not `known`."""
    if known:
        _count_known(model, data)
    else:
        partition.build_vocab(model, corpora.rows(data) if isinstance(data, list) else data)
    partition.check_trainable(model)


def _chunk_rows(model: Any, words: int | None, exchange: str) -> int | None:
    """Rows between two exchanges, which have about so many words; None if these are not by rows."""
    if exchange != "chunk":
        return None
    rows: int = round((words or CHUNK_WORDS) * model.corpus_count / model.corpus_total_words)
    return max(1, rows)


def _count_known(model: Any, data: Any) -> None:
    """Set the size of the corpus that `model` is now to be trained on, from which its learning rate follows."""
    count = _Totals(model.wv.index_to_key)
    if isinstance(data, list):
        totals = list(count(corpora.rows(data)))
    else:
        from p2p.engines.spark import collect

        totals = collect(data, count)
    sentences, words, known = (sum(column) for column in zip(*totals, strict=True)) if totals else (0, 0, 0)
    if not known:
        raise UsageError(
            f"expected words of the vocabulary of start_from ({len(model.wv)} words), got none among {words} words in "
            f"{sentences} rows; train a new model for another vocabulary"
        )
    model.corpus_count, model.corpus_total_words = sentences, words
