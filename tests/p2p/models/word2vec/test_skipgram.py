"""The compiled kernel is the plain algorithm with the same draws, and its steps are gradients."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gensim.models import Word2Vec
from scipy.stats import chisquare

import p2p
from gossip.errors import UsageError
from p2p.models import word2vec
from p2p.models.word2vec import skipgram
from p2p.models.word2vec.lexicon import Lexicon

Rows = list[list[str]]
Pieces = list[tuple[list[int], list[int]]]


def text(words: int = 300, seed: int = 5) -> Rows:
    """Sentences of 0, 1, 2 and more words, a few words much more frequent than others."""
    chance = np.random.default_rng(seed)
    lengths = [0, 1, 2, 30, 0, 7, 1, 55, 3]
    drawn = iter([f"w{int(number)}" for number in chance.zipf(1.5, 100 * words) if number <= 40])
    rows: Rows = []
    while sum(map(len, rows)) < words:
        rows.append([next(drawn) for _ in range(lengths[len(rows) % len(lengths)])])
    return rows


def make_model(rows: Rows, **settings: Any) -> Word2Vec:
    """A model with outputs that are not all zero, as they are before the first step."""
    model = Word2Vec(**{"sg": 1, "vector_size": 8, "min_count": 2, "sample": 0, **settings})
    word2vec.build_vocab(model, rows)
    chance = np.random.default_rng(3)
    for array in (model.wv.vectors, model.syn1neg):
        array[...] = chance.normal(0, 0.5, array.shape)
    return model


def state_of(seed: int) -> np.ndarray:
    return np.array([seed], np.uint64)


def train(model: Any, rows: Rows, alpha: float, state: np.ndarray) -> int:
    return skipgram.train_batch(model, *Lexicon(model.wv.index_to_key).numbers(rows), alpha, state)


class Draws:
    """SplitMix64 in Python's integers."""

    def __init__(self, state: int) -> None:
        self.state = state

    def __call__(self) -> int:
        z = self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def below(self, limit: int) -> int:
        return (self() >> 32) * limit >> 32


def pieces(model: Any, rows: Rows, draw: Draws) -> Iterator[Pieces]:
    """By sentence, (contexts, targets) of each step; the first of the targets is the center."""
    aliases = [(int(entry) >> 32, int(entry) & 0xFFFFFFFF) for entry in skipgram.alias_table(model.cum_table)]

    def negative() -> int:
        bits = draw()
        word = (bits >> 32) * len(aliases) >> 32
        return word if bits & 0xFFFFFFFF < aliases[word][0] else aliases[word][1]

    for row in rows:
        words = [model.wv.key_to_index[word] for word in row if word in model.wv.key_to_index]
        if model.sample:
            words = [word for word in words if model.wv.expandos["sample_int"][word] >= draw() >> 32]
        steps = []
        for at, center in enumerate(words):
            reach = model.window - (draw.below(model.window) if model.shrink_windows else 0)
            near = words[max(0, at - reach) : at] + words[at + 1 : at + 1 + reach]
            for step, start in enumerate(range(0, len(near), skipgram.CONTEXTS_MAX)):
                if step % skipgram.STEPS_PER_DRAW == 0:
                    negatives = [negative() for _ in range(model.negative)]
                targets = [center] + [word for word in negatives if word != center]
                steps.append((near[start : start + skipgram.CONTEXTS_MAX], targets))
        yield steps


def train_plainly(model: Any, rows: Rows, alpha: float, draw: Draws) -> None:
    """The algorithm in float64; the model ends with float64 arrays."""
    vectors, outputs = model.wv.vectors.astype(float), model.syn1neg.astype(float)
    for steps in pieces(model, rows, draw):
        for contexts, targets in steps:
            X, Y = vectors[contexts], outputs[targets]
            labels = np.array([1.0] + [0.0] * (len(targets) - 1))
            F = X @ Y.T
            G = alpha * np.where(np.abs(F) < 6, labels - 1 / (1 + np.exp(-F)), 0)
            np.add.at(vectors, contexts, G @ Y)
            np.add.at(outputs, targets, G.T @ X)
    model.wv.vectors, model.syn1neg = vectors, outputs


SETTINGS: list[dict[str, Any]] = [
    {},
    *({"vector_size": size} for size in (1, 7, 100, 130)),
    *({"negative": negative} for negative in (1, 6, 20)),
    *({"window": window} for window in (1, 3, 6, 10, 60)),
    {"sample": 1e-2},
    {"sample": 1e-2, "window": 3, "vector_size": 33},
    {"shrink_windows": False},
    {"shrink_windows": False, "window": 40},
    {"ns_exponent": -0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_kernel_is_the_plain_algorithm_with_the_same_draws(settings: dict[str, Any]) -> None:
    rows = text()
    compiled = make_model(rows, **settings)
    assert len(compiled.wv) < len({word for row in rows for word in row})  # some are unknown
    before = compiled.wv.vectors.copy(), compiled.syn1neg.copy()
    plain = copy.deepcopy(compiled)
    state, draw = state_of(7), Draws(7)
    for batch in (rows[:20], rows[20:]):
        train(compiled, batch, 0.02, state)
        train_plainly(plain, batch, 0.02, draw)
    assert int(state[0]) == draw.state
    np.testing.assert_allclose(compiled.wv.vectors, plain.wv.vectors, rtol=0, atol=2e-5)
    np.testing.assert_allclose(compiled.syn1neg, plain.syn1neg, rtol=0, atol=2e-5)
    assert np.abs(compiled.wv.vectors - before[0]).max() > 1e-2
    assert np.abs(compiled.syn1neg - before[1]).max() > 1e-2


def test_a_step_is_the_gradient_of_the_loss_of_negative_sampling() -> None:
    """Of the first words of a sentence, with their negatives held; the gradient is a difference quotient in float64."""
    alpha, draw = 1e-3, Draws(11)
    rows = [text()[7][:2]]
    model = make_model(text(), vector_size=5, window=1)
    (steps,) = pieces(model, rows, draw)
    assert len(steps) == 2
    arrays = model.wv.vectors.astype(float), model.syn1neg.astype(float)

    def loss() -> float:
        total = 0.0
        for contexts, targets in steps:
            for x in arrays[0][contexts]:
                total += np.logaddexp(0, -x @ arrays[1][targets[0]])
                total += sum(np.logaddexp(0, x @ arrays[1][negative]) for negative in targets[1:])
        return total

    gradients = tuple(np.zeros_like(array) for array in arrays)
    for array, gradient in zip(arrays, gradients, strict=True):
        for at in np.ndindex(array.shape):
            middle, losses = array[at], []
            for array[at] in (middle + 1e-5, middle - 1e-5):
                losses.append(loss())
            array[at] = middle
            gradient[at] = (losses[0] - losses[1]) / 2e-5
    train(model, rows, alpha, state_of(11))
    for trained, array, gradient in zip((model.wv.vectors, model.syn1neg), arrays, gradients, strict=True):
        assert np.abs(gradient).max() > 0.1
        # the second step sees what the first changed: of the order of alpha
        np.testing.assert_allclose((array - trained) / alpha, gradient, rtol=0, atol=3e-3)


@pytest.mark.parametrize("f", [-30.0, -6.0, -5.99, -1.0, 0.0, 0.3, 5.99, 6.0, 30.0])
def test_a_pair_takes_the_step_of_the_sigmoid_within_the_limit_and_none_beyond(f: float) -> None:
    """One pair without negatives moves by alpha (1 - sigmoid(f)) times the other."""
    model = make_model([["a", "b"], ["a", "b"]], vector_size=1, window=1, negative=1)
    a, b = (model.wv.key_to_index[word] for word in "ab")
    seed = next(seed for seed in range(99) if [len(targets) for _, targets in draws_of(model, seed)] == [1, 1])
    model.wv.vectors[:], model.syn1neg[:] = 1, f
    train(model, [["a", "b"]], 1.0, state_of(seed))
    step = 1 / (1 + np.exp(f)) if abs(f) < 6 else 0
    assert model.syn1neg[a, 0] == pytest.approx(f + step, abs=4e-6)
    assert model.wv.vectors[b, 0] == pytest.approx(1 + f * step, abs=2e-5)


def draws_of(model: Any, seed: int) -> Pieces:
    (steps,) = pieces(model, [["a", "b"]], Draws(seed))
    return steps


def test_a_negative_is_drawn_as_often_as_its_count_to_the_power_of_the_model() -> None:
    """Seen as in training: with outputs and a rate of next to nothing each negative moves its output by the same."""
    counts = {"center": 4, **{f"w{i}": 5 * (i + 1) ** 2 for i in range(30)}}
    rows = [[word] * count for word, count in counts.items()]
    model = make_model(rows, vector_size=1, window=1, negative=20)
    center = model.wv.key_to_index["center"]
    model.wv.vectors[:], model.syn1neg[:] = 1, 0
    alpha, steps = 2**-30, 4_000
    train(model, [["center", "center"]] * (steps // 2), alpha, state_of(2))
    drawn = np.delete(np.rint(model.syn1neg[:, 0].astype(float) / (-alpha / 2)), center)
    share = np.array([counts[word] for word in model.wv.index_to_key]) ** 0.75
    expected = np.delete(share / share.sum(), center)
    assert drawn.sum() == pytest.approx(steps * 20 * expected.sum(), rel=0.01)  # the center itself is left out
    assert chisquare(drawn, expected / expected.sum() * drawn.sum()).pvalue > 0.01


@pytest.mark.parametrize("words", [1, 2, 999, 70_000])
@pytest.mark.parametrize("domain", [40, 2**31 - 1, 2**32 - 1])
def test_the_shares_and_aliases_of_a_word_add_up_to_its_probability(words: int, domain: int) -> None:
    chance = np.random.default_rng(1)
    cumulative = np.round(np.cumsum(chance.dirichlet(np.full(words, 0.1))) * domain).astype(np.uint32)
    cumulative[-1] = domain
    table = skipgram.alias_table(cumulative)
    kept, alias = (table >> np.uint64(32)).astype(float) / 2**32, (table & np.uint64(0xFFFFFFFF)).astype(np.int64)
    probability = (kept + np.bincount(alias, 1 - kept, words)) / words
    expected = np.diff(cumulative.astype(float), prepend=0) / domain
    np.testing.assert_allclose(probability, expected, rtol=0, atol=2**-31)
    assert (kept[expected == 0] == 0).all()
    assert (expected[alias[expected == 0]] > 0).all(), "a word that never occurs is never drawn"


def test_subsampling_keeps_the_share_that_gensim_promises() -> None:
    counts = {f"w{i}": count for i, count in enumerate((20_000, 5_000, 1_000, 100))}
    model = make_model([[word] * count for word, count in counts.items()], sample=1e-2, window=1, negative=1)
    for word, count in counts.items():
        share = model.wv.get_vecattr(word, "sample_int") / (2**32 - 1)
        kept = train(model, [[word] * count], 0.0, state_of(3))
        assert kept == pytest.approx(count * share, abs=4 * np.sqrt(count * share * (1 - share)))
    model.sample = 0
    assert train(model, [["w0", "unheard", "w1"] * 1_000], 0.0, state_of(3)) == 2_000


def test_the_state_decides_and_goes_on() -> None:
    rows = text()
    model = make_model(rows, sample=1e-2)
    first, second, other = (copy.deepcopy(model) for _ in range(3))
    states = [state_of(7), state_of(7), state_of(8)]
    for replica, state in zip((first, second, other), states, strict=True):
        train(replica, rows, 0.05, state)
    assert np.array_equal(first.wv.vectors, second.wv.vectors)
    assert np.array_equal(first.syn1neg, second.syn1neg)
    assert not np.array_equal(first.syn1neg, other.syn1neg)
    assert states[0] == states[1] != 7


def test_not_a_number_is_not_hidden() -> None:
    rows = text()
    for spoiled in ("wv.vectors", "syn1neg"):
        model = make_model(rows)
        (model.wv.vectors if spoiled == "wv.vectors" else model.syn1neg)[0, 3] = np.nan
        train(model, rows, 0.05, state_of(1))
        assert np.isnan(model.wv.vectors).any()
        assert np.isnan(model.syn1neg).any()


@pytest.mark.parametrize(("window", "negative"), [(5, 5), (12, 5), (1_000, 5), (5, 20), (12, 20), (1_000, 100)])
def test_few_words_and_many_terms_of_a_step_do_not_blow_up(window: int, negative: int) -> None:
    """The same rows add up many terms of a step, which a small rate and six contexts at a time have to bear."""
    rows = [["a", "b"] * 150] * 10
    model = make_model(rows, window=window, shrink_windows=False, vector_size=16, negative=negative)
    for _ in range(5):
        train(model, rows, 0.1, state_of(1))
    assert np.isfinite(model.wv.vectors).all()
    assert np.isfinite(model.syn1neg).all()
    if negative == 5:
        assert np.linalg.norm(model.wv.vectors, axis=1).max() < 10


def test_a_new_table_of_negatives_is_used() -> None:
    model = make_model([["a", "b", "c"]] * 9, vector_size=1, window=1, negative=5)
    train(model, [["a", "b"]], 0.0, state_of(1))
    model.cum_table = np.array([0, 0, 2**31 - 1], np.uint32)
    before = model.syn1neg.copy()
    train(model, [["a", "b"]], 0.1, state_of(1))
    third = model.wv.key_to_index["c"]
    assert model.syn1neg[third, 0] != before[third, 0]


def test_a_model_that_has_trained_is_pickled_without_tables() -> None:
    model = make_model(text())
    size = len(pickle.dumps(model))
    train(model, text(), 0.05, state_of(1))
    assert len(pickle.dumps(model)) == size


def test_tables_that_do_not_fit_the_vocabulary_are_refused() -> None:
    def refused(message: str, spoil: Callable[[Any], None]) -> None:
        model = make_model(text(), sample=1e-2)
        spoil(model)
        with pytest.raises(UsageError, match=message):
            train(model, text(), 0.05, state_of(1))

    refused(r"cum_table of \d+ words, uint32, got None", lambda model: setattr(model, "cum_table", None))
    refused(r"got uint32 \(2,\)", lambda model: setattr(model, "cum_table", model.cum_table[:2]))
    refused(r"sample_int of \d+ words, got \(1,\)", lambda m: m.wv.expandos.update(sample_int=np.ones(1, np.uint32)))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("installed", ["in a folder", "in a zip"])
def test_it_trains_where_no_cache_can_be_written(installed: str, tmp_path: Path) -> None:
    """Neither beside the module, where a file is in the way, nor in the user's cache, which cannot be a folder."""
    project, site = Path(p2p.__file__).parents[1], tmp_path / "site"
    for package in ("gossip", "p2p"):
        shutil.copytree(project / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    (site / "p2p/models/word2vec/__pycache__").touch()
    if installed == "in a zip":
        site = Path(shutil.make_archive(str(tmp_path / "site"), "zip", site))
    program = "from p2p.models.word2vec import skipgram; print(skipgram.__file__); assert skipgram._compiled()"
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": os.devnull}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=500)
    assert (done.stdout.strip(), done.returncode) == (str(site / "p2p/models/word2vec/skipgram.py"), 0), done.stderr
