"""Skip-gram with negative sampling, a window at a time: the words of a window share their negative samples.

gensim trains each pair (center, context) on its own: it draws negatives for the pair, and reads and writes all rows
again. Here up to six contexts of a center take one step against one set of targets, the center and its negatives, so
rows are read and written once for all of them and the inner loops are small products of matrices:

    F = X Y'                                  X (contexts, vector_size), Y (targets, vector_size)
    G = alpha (labels - sigmoid(F))           labels: 1 for the center, 0 for a negative; G = 0 where |F| >= 6
    X += G Y,  Y += G' X                      both with the old X and Y, of which Y is copied

As in gensim, the center word is the target and its neighbors are the input; subsampling, windows and the distribution
of negatives are gensim's, from `sample_int`, `shrink_windows` and `cum_table` of the model. Compiled by numba.

A negative is drawn by two lookups and no search (Walker's alias method): each word has one of as many equal shares of
the probability, and gives what it does not need of it to one other word.

Sources: Mikolov et al., Distributed Representations of Words and Phrases (arXiv:1310.4546), for the model; Ji et al.,
Parallelizing Word2Vec in Shared and Distributed Memory (arXiv:1604.04661), for shared negatives and the products; Vose,
A Linear Algorithm for Generating Random Numbers with a Given Distribution (1991), for the table of aliases.
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
from p2p.compiled import ANY_ORDER, compile_and_keep, compiled
from p2p.models.word2vec.row_products import (
    add_six,
    add_six_to_two,
    add_three,
    add_three_to_two,
    copy_row,
    prefetch,
    products,
)

CONTEXTS_MAX = 6
"""Contexts that take one step together; a wider window takes several steps, each with its own negatives. The terms of a
step are computed from the same rows, so many contexts that are one and the same word overshoot: with 12 at a rate of
0.1 a vocabulary of two words ends in NaN. A multiple of BLOCK."""
STEPS = 64
"""Steps that are drawn before the first of them is taken, so that rows can be fetched before they are needed."""
AHEAD = 2
"""How many steps before: one takes about as long as memory. With 1 or 3 no faster, without 15 % slower."""
LIMIT = np.float32(6)
"""A pair whose product is as large, right or wrong, takes no step, as in gensim; it also bounds what overshoots."""
BLOCK = 6
"""Rows that an inner loop of an update adds up before it writes; a multiple of the three by three of F."""
STEPS_PER_DRAW = 2
"""Steps of a center with the same negatives: all of a window of 5. Shared by two centers they cost two points of
analogies."""
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)

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
    keep, aliases = _tables(model)
    kernel = _compiled()
    kept: int = kernel(
        model.wv.vectors,
        model.syn1neg,
        words,
        ends,
        keep,
        aliases,
        model.window,
        bool(model.shrink_windows),
        model.negative,
        alpha,
        state,
    )
    return kept


def load() -> None:
    """Have the kernel ready, which the first `train_batch` waits for otherwise."""
    _compiled()


def random_state(random: np.random.RandomState) -> NDArray[np.uint64]:
    """A state for `train_batch`, (1,), drawn from `random`."""
    return random.randint(0, 2**64, size=1, dtype=np.uint64)


_aliases: WeakKeyDictionary[Any, tuple[NDArray[np.uint32], NDArray[np.uint64]]] = WeakKeyDictionary()
"""By model, the table of which the aliases were made, and these. Not in the model, which is sent to workers."""


def _tables(model: Any) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """What the kernel draws by: `sample_int` (empty without subsampling), and the aliases of `cum_table`."""
    words = len(model.wv)
    keep = np.ascontiguousarray(model.wv.expandos["sample_int"] if model.sample else (), np.uint32)
    if model.sample and keep.shape != (words,):
        raise UsageError(f"expected sample_int of {words} words, got {keep.shape}; build the vocabulary anew")
    known = _aliases.get(model)
    if known is None or known[0] is not model.cum_table:
        table = model.cum_table
        if table is None or table.shape != (words,) or table.dtype != np.uint32 or not table.flags.c_contiguous:
            got = "None" if table is None else f"{table.dtype} {table.shape}"
            raise UsageError(f"expected cum_table of {words} words, uint32, got {got}; call model.make_cum_table()")
        known = _aliases[model] = (table, alias_table(table))
    return keep, known[1]


def alias_table(cumulative: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """For each word the probability that it keeps its share, times 2^32, and below that who gets it else; (words,).

    `cumulative`, (words,), ascending, has the probabilities of the words up to each; the last entry stands for 1.
    """
    table = np.empty(len(cumulative), np.uint64)
    rest = np.diff(cumulative.astype(np.int64), prepend=0) * len(table)
    _fill_aliases(rest, np.int64(cumulative[-1]), np.empty(len(table), np.int64), table)
    return table


@compiled()
def _fill_aliases(rest: Any, share: Any, waiting: Any, table: Any) -> None:
    """Of `rest`, what is left to be given to each word, until each has had a whole `share`."""
    words = rest.shape[0]
    poor, rich = 0, words  # `waiting` has those with less than a share from its begin, and the others from its end
    for word in range(words):
        if rest[word] < share:
            waiting[poor] = word
            poor += 1
        else:
            rich -= 1
            waiting[rich] = word
            table[word] = LOWER << HALF | np.uint64(word)
    while poor > 0 and rich < words:
        poor -= 1
        word, other = waiting[poor], waiting[rich]
        table[word] = (np.uint64(rest[word]) << HALF) // np.uint64(share) << HALF | np.uint64(other)
        rest[other] -= share - rest[word]
        if rest[other] < share:
            rich += 1
            waiting[poor] = other
            poor += 1


@cache
def _compiled() -> Callable[..., int]:
    """`_train` in machine code, from numba's cache on disk where there is one, else compiled in a few seconds."""

    def constant(kind: Any) -> Any:
        return Array(kind, 1, "C", readonly=True)

    rows = float32[:, ::1]
    words = (constant(int32), constant(int64), constant(uint32), constant(uint64))
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
def _products(X: Any, contexts: Any, count: int, Y: Any, F: Any) -> None:
    """F = X[contexts] Y' for the first `count` contexts, rounded up to three, and all of Y."""
    for c in range(0, count, 3):
        for t in range(0, Y.shape[0], 3):
            products(X, contexts[c], contexts[c + 1], contexts[c + 2], Y, t, F, c, t)


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
def _add(rows: Any, indices: Any, count: int, G: Any, others: Any, picked: Any, picked_count: int) -> None:
    """Add G @ others[picked], (count, vector_size), to `count` rows by index, one that is named twice twice."""
    c = 0
    while c < count:
        pair = c + 1 < count and indices[c] != indices[c + 1]
        t = 0
        while t + 3 < picked_count:
            six = (picked[t], picked[t + 1], picked[t + 2], picked[t + 3], picked[t + 4], picked[t + 5])
            first = (G[c, t], G[c, t + 1], G[c, t + 2], G[c, t + 3], G[c, t + 4], G[c, t + 5])
            if pair:
                d = c + 1
                second = (G[d, t], G[d, t + 1], G[d, t + 2], G[d, t + 3], G[d, t + 4], G[d, t + 5])
                add_six_to_two(rows, indices[c], indices[d], others, six, first, second)
            else:
                add_six(rows, indices[c], others, six, first)
            t += 6
        if t < picked_count:
            three = (picked[t], picked[t + 1], picked[t + 2])
            some = (G[c, t], G[c, t + 1], G[c, t + 2])
            if pair:
                d = c + 1
                add_three_to_two(rows, indices[c], indices[d], others, three, some, (G[d, t], G[d, t + 1], G[d, t + 2]))
            else:
                add_three(rows, indices[c], others, three, some)
        c += 2 if pair else 1


@_part
def _draw(count: int, aliases: Any, state: Any, drawn: Any) -> None:
    """Write `count` words into `drawn`."""
    for k in range(count):
        random = _random(state)
        word = _below(random, aliases.shape[0])
        entry = aliases[word]
        drawn[k] = word if random & LOWER < entry >> HALF else np.int64(entry & LOWER)


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


@_part
def _plan(
    words: Any,
    center: int,
    window: int,
    shrink: bool,
    negative: int,
    aliases: Any,
    state: Any,
    drawn: Any,
    contexts: Any,
    targets: Any,
    counts: Any,
) -> Any:
    """Draw the steps of the next centers of a sentence; returns the center after them, and how many they are.

    `counts` is how many contexts and targets a step has; behind the last of its contexts stands the first again.
    `drawn` is for the negatives of a center, (negative,); those that are the center itself are left out.
    """
    steps = 0
    while center < words.shape[0] and steps + -(-2 * window // CONTEXTS_MAX) <= counts.shape[0]:
        reduced = _below(_random(state), window) if shrink else 0
        position = max(0, center - window + reduced)
        last = min(words.shape[0] - 1, center + window - reduced)
        first = steps
        while position <= last:
            count = 0
            while position <= last and count < CONTEXTS_MAX:
                if position != center:
                    contexts[steps, count] = words[position]
                    count += 1
                position += 1
            if count == 0:
                break
            for c in range(count, CONTEXTS_MAX):
                contexts[steps, c] = contexts[steps, 0]
            if (steps - first) % STEPS_PER_DRAW == 0:
                _draw(negative, aliases, state, drawn)
            targets[steps, 0] = words[center]
            known = 1
            for k in range(negative):
                if drawn[k] != words[center]:
                    targets[steps, known] = drawn[k]
                    known += 1
            counts[steps, 0], counts[steps, 1] = count, known
            steps += 1
        center += 1
    return center, steps


def _train(
    vectors: NDArray[np.float32],
    outputs: NDArray[np.float32],
    words: NDArray[np.int32],
    ends: NDArray[np.int64],
    keep: NDArray[np.uint32],
    aliases: NDArray[np.uint64],
    window: int,
    shrink: bool,
    negative: int,
    alpha: Any,
    state: NDArray[np.uint64],
) -> int:
    """Train `vectors` and `outputs` on sentences of word numbers, -1 for an unknown one; see `train_batch`.

    `words` holds all sentences, `ends` where each of them ends.
    """
    Y = np.zeros((_blocks(negative + 1), vectors.shape[1]), np.float32)
    F = np.zeros((CONTEXTS_MAX, Y.shape[0]), np.float32)
    all_of_Y = np.arange(Y.shape[0])
    planned = max(STEPS, -(-2 * window // CONTEXTS_MAX))
    contexts, targets = np.empty((planned, CONTEXTS_MAX), np.int64), np.empty((planned, Y.shape[0]), np.int64)
    counts, drawn = np.empty((planned, 2), np.int64), np.empty(negative, np.int64)
    kept = np.empty(words.shape[0], np.int64)
    trained = start = 0
    for end in ends:
        length = _subsample(words[start:end], keep, state, kept)
        start = end
        trained += length
        center = 0
        while center < length:
            center, steps = _plan(
                kept[:length], center, window, shrink, negative, aliases, state, drawn, contexts, targets, counts
            )
            for step in range(-AHEAD, steps):
                soon = step + AHEAD
                if soon < steps:
                    for t in range(counts[soon, 1]):
                        prefetch(outputs, targets[soon, t])
                    prefetch(vectors, contexts[soon, counts[soon, 0] - 1])  # the others were contexts a step ago
                if step < 0:
                    continue
                count, known = counts[step, 0], counts[step, 1]
                for t in range(known):
                    copy_row(outputs, targets[step, t], Y, t)
                # Rows of Y behind the last are those of an earlier step: they are multiplied by 0.
                _products(vectors, contexts[step], count, Y, F)
                _steps(F, count, known, alpha)
                _add(outputs, targets[step], known, F.T, vectors, contexts[step], count)
                _add(vectors, contexts[step], count, F, Y, all_of_Y, Y.shape[0])
    return trained
