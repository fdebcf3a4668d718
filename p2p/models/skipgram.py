"""Skip-gram with negative sampling, a window at a time: the words of a window share their negative samples.

gensim trains each pair (center, context) on its own: it draws negatives for the pair, and reads and writes all rows
again. Here up to six contexts of a center take one step against one set of targets, the center and its negatives, so
rows are read and written once for all of them and the inner loops are small products of matrices:

    F = X Y'                                  X (contexts, vector_size), Y (targets, vector_size)
    G = alpha (labels - sigmoid(F))           labels: 1 for the center, 0 for a negative; G = 0 where |F| >= 6
    X += G Y,  Y += G' X                      both with the old X and Y

As in gensim, the center word is the target and its neighbors are the input; subsampling, windows and the distribution
of negatives are gensim's, from `sample_int`, `shrink_windows` and `cum_table` of the model. Compiled by numba.

Sources: Mikolov et al., Distributed Representations of Words and Phrases (arXiv:1310.4546), for the model; Ji et al.,
Parallelizing Word2Vec in Shared and Distributed Memory (arXiv:1604.04661), for shared negatives and the products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numba import boolean, float32, int32, int64, njit, uint32, uint64
from numba.types import Array
from numpy.typing import NDArray

from gossip.errors import UsageError
from p2p.compiled import ANY_ORDER, compile_and_keep

CONTEXTS_MAX = 6
"""Contexts that take one step together; a wider window takes several steps, each with its own negatives. The terms of a
step are computed from the same rows, so many contexts that are one and the same word overshoot: with 12 at a rate of
0.1 a vocabulary of two words ends in NaN. A multiple of BLOCK."""
LIMIT = np.float32(6)
"""A pair whose product is as large, right or wrong, takes no step, as in gensim; it also bounds what overshoots."""
BLOCK = 6
"""Rows that an inner loop of an update adds up before it writes; a multiple of the three by three of F."""
LANES = 8
"""Rows are padded with zeros to a multiple of this many float32, so that vector instructions meet no remainder."""
GUIDES = 1 << 16
"""Entries of the guide table. With 65,536 the search for a negative begins within a word or two of its end."""

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS = {"error_model": "numpy", "fastmath": ANY_ORDER}


def train_batch(
    model: Any, words: NDArray[np.int32], ends: NDArray[np.int64], alpha: float, state: NDArray[np.uint64]
) -> int:
    """Train `model` on sentences in place; returns the words that were neither unknown nor left out.

    `words` holds the numbers of the words of all sentences, -1 for an unknown one, which is skipped; `ends` where each
    sentence ends (`Lexicon.numbers`). `model` is a gensim `Word2Vec` with `sg=1` and `negative`; `wv.vectors` and
    `syn1neg` are changed, C-contiguous float32 (words, vector_size). `hs`, `compute_loss` and `vectors_lockf` are not
    looked at. `state`, (1,), is that of the random numbers and goes on (`random_state`).

    Raises `UsageError` if the tables of the model do not fit its vocabulary.
    """
    keep, cumulative, guide = _tables(model)
    kernel = _compiled()
    kept: int = kernel(
        model.wv.vectors,
        model.syn1neg,
        words,
        ends,
        keep,
        cumulative,
        guide,
        model.window,
        bool(model.shrink_windows),
        model.negative,
        alpha,
        state,
    )
    return kept


def random_state(random: np.random.RandomState) -> NDArray[np.uint64]:
    """A state for `train_batch`, (1,), drawn from `random`."""
    return random.randint(0, 2**64, size=1, dtype=np.uint64)


_guides: WeakKeyDictionary[Any, tuple[NDArray[np.uint32], NDArray[np.int32]]] = WeakKeyDictionary()
"""By model, the table of which the guide was made, and the guide. Not in the model, which is sent to workers."""


def _tables(model: Any) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int32]]:
    """What the kernel draws by: `sample_int` (empty without subsampling), `cum_table`, and its guide."""
    words = len(model.wv)
    keep = np.ascontiguousarray(model.wv.expandos["sample_int"] if model.sample else (), np.uint32)
    if model.sample and keep.shape != (words,):
        raise UsageError(f"expected sample_int of {words} words, got {keep.shape}; build the vocabulary anew")
    known = _guides.get(model)
    if known is None or known[0] is not model.cum_table:
        table = model.cum_table
        if table is None or table.shape != (words,) or table.dtype != np.uint32 or not table.flags.c_contiguous:
            got = "None" if table is None else f"{table.dtype} {table.shape}"
            raise UsageError(f"expected cum_table of {words} words, uint32, got {got}; call model.make_cum_table()")
        known = _guides[model] = (table, guide_table(table))
    return keep, *known


def guide_table(cumulative: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Where the search in `cumulative` may begin, (65,536,), by the upper 16 bits of a random number.

    Chen and Asau, On Generating Random Variates from an Empirical Distribution (1974): the method of guide tables.
    """
    smallest = (np.arange(GUIDES, dtype=np.uint64) * np.uint64(cumulative[-1])) >> np.uint64(16)
    return np.searchsorted(cumulative, smallest.astype(np.uint32)).astype(np.int32)


@cache
def _compiled() -> Callable[..., int]:
    """`_train` in machine code, from numba's cache on disk where there is one, else compiled in a few seconds."""

    def constant(kind: Any) -> Any:
        return Array(kind, 1, "C", readonly=True)

    rows = float32[:, ::1]
    words = (constant(int32), constant(int64), constant(uint32), constant(uint32), constant(int32))
    signature = int64(rows, rows, *words, int64, boolean, int64, float32, uint64[::1])
    return compile_and_keep(_train, signature, **OPTIONS)


def _part(function: Function) -> Function:
    """A function that is compiled into those that call it."""
    part: Function = njit(**OPTIONS)(function)
    return part


@_part
def _random(state: NDArray[np.uint64]) -> Any:
    """64 random bits: SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_part
def _below(random: Any, limit: Any) -> Any:
    """A number from 0 to limit - 1 by the upper 32 of 64 random bits; `limit` is at most 2^32."""
    return np.int64(((random >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32))


@_part
def _sigmoid(f: Any) -> Any:
    """1 / (1 + exp(-f)) to 2e-6 for |f| < 6, as (1 + tanh(f/2)) / 2 by Lambert's continued fraction; NaN for NaN.

    Without a table and an exponential the compiler makes vector instructions of it.
    """
    x = np.float32(0.5) * f
    q = x * x
    above = x * (np.float32(135135) + q * (np.float32(17325) + q * (np.float32(378) + q)))
    below = np.float32(135135) + q * (np.float32(62370) + q * (np.float32(3150) + q * np.float32(28)))
    return np.float32(0.5) + np.float32(0.5) * (above / below)


@_part
def _gather(rows: Any, indices: Any, count: int, gathered: Any) -> None:
    """Copy `count` rows by index; the padding of `gathered` stays zero."""
    for i in range(count):
        index = indices[i]
        for d in range(rows.shape[1]):
            gathered[i, d] = rows[index, d]


@_part
def _products(X: Any, Y: Any, contexts: int, F: Any) -> None:
    """F = X Y' for the first `contexts` rows of X, rounded up to a block, and all of Y."""
    for c in range(0, contexts, 3):
        for t in range(0, Y.shape[0], 3):
            f00 = f01 = f02 = f10 = f11 = f12 = f20 = f21 = f22 = np.float32(0)
            for d in range(X.shape[1]):
                x0, x1, x2 = X[c, d], X[c + 1, d], X[c + 2, d]
                y0, y1, y2 = Y[t, d], Y[t + 1, d], Y[t + 2, d]
                f00 += x0 * y0
                f01 += x0 * y1
                f02 += x0 * y2
                f10 += x1 * y0
                f11 += x1 * y1
                f12 += x1 * y2
                f20 += x2 * y0
                f21 += x2 * y1
                f22 += x2 * y2
            F[c, t], F[c, t + 1], F[c, t + 2] = f00, f01, f02
            F[c + 1, t], F[c + 1, t + 1], F[c + 1, t + 2] = f10, f11, f12
            F[c + 2, t], F[c + 2, t + 1], F[c + 2, t + 2] = f20, f21, f22


@_part
def _steps(F: Any, contexts: int, targets: int, alpha: Any) -> None:
    """G in the place of F; 0 where the padding of a block stands for a context or a target."""
    flat = F.ravel()
    for k in range(contexts * F.shape[1]):
        f = flat[k]
        flat[k] = np.float32(0) if abs(f) >= LIMIT else -alpha * _sigmoid(f)
    for c in range(contexts):
        if F[c, 0] != 0:  # within the limit, or NaN
            F[c, 0] += alpha
        for t in range(targets, F.shape[1]):
            F[c, t] = 0
    for c in range(contexts, _blocks(contexts)):
        for t in range(F.shape[1]):
            F[c, t] = 0


@_part
def _blocks(count: Any) -> Any:
    """`count` rounded up to whole blocks."""
    return (count + BLOCK - 1) // BLOCK * BLOCK


@_part
def _add(rows: Any, indices: Any, count: int, G: Any, others: Any, others_count: int) -> None:
    """Add G @ others, (count, vector_size), to `count` rows by index, one that is named twice twice."""
    for c in range(count):
        index = indices[c]
        for t in range(0, others_count, 6):
            g0, g1, g2, g3, g4, g5 = G[c, t], G[c, t + 1], G[c, t + 2], G[c, t + 3], G[c, t + 4], G[c, t + 5]
            for d in range(rows.shape[1]):
                rows[index, d] += (
                    g0 * others[t, d]
                    + g1 * others[t + 1, d]
                    + g2 * others[t + 2, d]
                    + g3 * others[t + 3, d]
                    + g4 * others[t + 4, d]
                    + g5 * others[t + 5, d]
                )


@_part
def _draw_negatives(negative: int, center: Any, cumulative: Any, guide: Any, state: Any, targets: Any) -> Any:
    """Write up to `negative` words that are not the center into `targets`, behind it; returns the number of targets."""
    count = 1
    for _ in range(negative):
        random = _random(state)
        at = _below(random, cumulative[-1])
        word = np.int64(guide[np.int64(random >> np.uint64(48))])
        while np.int64(cumulative[word]) < at:
            word += 1
        if word != center:
            targets[count] = word
            count += 1
    return count


@_part
def _subsample(words: Any, keep: Any, state: Any, kept: Any) -> Any:
    """Write the known words that are kept into `kept`; returns how many they are. An empty `keep` keeps all."""
    count = 0
    for position in range(words.shape[0]):
        word = words[position]
        if word < 0 or (keep.shape[0] > 0 and keep[word] < np.uint32(_random(state) >> np.uint64(32))):
            continue
        kept[count] = word
        count += 1
    return count


def _train(
    vectors: NDArray[np.float32],
    outputs: NDArray[np.float32],
    words: NDArray[np.int32],
    ends: NDArray[np.int64],
    keep: NDArray[np.uint32],
    cumulative: NDArray[np.uint32],
    guide: NDArray[np.int32],
    window: int,
    shrink: bool,
    negative: int,
    alpha: Any,
    state: NDArray[np.uint64],
) -> int:
    """Train `vectors` and `outputs` on sentences of word numbers, -1 for an unknown one; see `train_batch`.

    `words` holds all sentences, `ends` where each of them ends.
    """
    width = (vectors.shape[1] + LANES - 1) // LANES * LANES
    X = np.zeros((CONTEXTS_MAX, width), np.float32)
    Y = np.zeros((_blocks(negative + 1), width), np.float32)
    F = np.zeros((X.shape[0], Y.shape[0]), np.float32)
    contexts = np.empty(X.shape[0], np.int64)
    targets = np.empty(Y.shape[0], np.int64)
    kept = np.empty(words.shape[0], np.int64)
    trained = start = 0
    for end in ends:
        length = _subsample(words[start:end], keep, state, kept)
        start = end
        trained += length
        for center in range(length):
            reduced = _below(_random(state), window) if shrink else 0
            first, last = max(0, center - window + reduced), min(length - 1, center + window - reduced)
            position = first
            while position <= last:
                count = 0
                while position <= last and count < CONTEXTS_MAX:
                    if position != center:
                        contexts[count] = kept[position]
                        count += 1
                    position += 1
                if count == 0:
                    break
                targets[0] = kept[center]
                known = _draw_negatives(negative, kept[center], cumulative, guide, state, targets)
                # Rows of X and Y behind the last are those of an earlier window: they are multiplied by 0.
                _gather(vectors, contexts, count, X)
                _gather(outputs, targets, known, Y)
                _products(X, Y, count, F)
                _steps(F, count, known, alpha)
                _add(vectors, contexts, count, F, Y, Y.shape[0])
                _add(outputs, targets, known, F.T, X, _blocks(count))
    return trained
