"""The ways to train beside each other, on one engine: what each has learned by when, and what it sent for that.

    python -m benchmarks.modes [--quick] [--json FILE] [--svg FILE] [--data DIR] [--only logistic|words]

    p2p          replicas that exchange updates, asynchronously
    master       the same descent, at a master
    Downpour     a master with AdaGrad (Dean et al., Large Scale Distributed Deep Networks, NIPS 2012)
    L-BFGS       full gradients, by `p2p.LBFGS`; logistic regression only
    sync         synchronous steps: one by the mean of all workers' gradients
    averaging    models that workers train on their own, averaged after each epoch

logistic: a9a (32,561 rows), l2 = 1/n, no intercept, chunks of 100 rows, from zeros; the mean objective above the known
optimum. Each way is run with each of a few rates, and stands here with the one that came nearest to the optimum.
words: skip-gram with negative sampling on the head of text8 (549,570 words), by the rate of word2vec (of Downpour by
one of a few); the mean log loss of 5,000 pairs of words that stand beside each other, each with 5 drawn by frequency,
and WordSim-353 at the end.

All start from the same model and take the same epochs over the same partitions, as many as workers. Bytes are what all
processes sent, also as shared memory. The seconds of the table are those of the whole training, and the plot has the
quality by them; an evaluation takes some of the same cores. `--quick` takes a quarter of the rows and words, fewer
epochs, and one rate. `--svg` writes two files, FILE with "_logistic" and "_words" in its name.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import Word2Vec
from gensim.test.utils import datapath

from benchmarks.linear import FEATURES, FETCH, OPTIMUM, ROWS_FILE, TEST_FILE, Data, read
from benchmarks.wikipedia import DATA
from gossip.arrays import Array
from p2p import LBFGS, DeepDist
from p2p.descents import SGD, AdaGrad
from p2p.models import word2vec
from p2p.report import Report

P2P, MASTER, DOWNPOUR, BFGS, SYNC, AVERAGING = SIDES = ("p2p", "master", "Downpour", "L-BFGS", "sync", "averaging")
MODE_OF: dict[str, Any] = {P2P: "p2p", MASTER: "master", DOWNPOUR: "master", SYNC: "sync", AVERAGING: "averaging"}
TEXT_FILE = "small_text/text8.split.head"
FETCH_TEXT = """expected the text {path}, found none.
It is the head of text8 (http://mattmahoney.net/dc/textdata), one sentence or so a line. Any text will do.
Put it at DIR/{text}, and name DIR by --data or in DEEPDIST_DATA."""
PEERS, WORDS_PEERS = 4, 2
CHUNK_ROWS, EPOCHS = 100, 10
RATES: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
ADAGRAD_RATES: tuple[float, ...] = (0.03, 0.1, 0.3)
TEXT_CHUNK_ROWS, TEXT_EPOCHS = 50, 5
TEXT_ADAGRAD_RATES: tuple[float, ...] = (0.03, 0.1, 0.3)
PAIRS, NEGATIVE = 5_000, 5


@dataclass(frozen=True)
class Outcome:
    """One side of one task."""

    task: str
    side: str
    rate: float
    """0 where it is chosen by the method."""
    quality: float
    """Objective above the optimum, or mean log loss: less is better."""
    test_percent: float
    """Of a9a.t, rows that are told right; of WordSim-353, Spearman's correlation as a percentage."""
    seconds: float
    updates: int
    """Changes of the model, or updates of peers."""
    nbytes: int
    curve: list[tuple[float, float]]
    """(seconds, quality)."""


def sent(report: Report) -> int:
    """Bytes that all processes sent."""
    return sum(peer.bytes_out for peer in report.peers)


def curve_of(report: Report, of: Callable[[float], float] = float) -> list[tuple[float, float]]:
    """What its evaluations said."""
    return [(point.seconds, of(point.values["value"])) for point in report.evaluations]


# ------------------------------------------------------------------------------------------------ logistic regression


@dataclass(frozen=True)
class Logistic:
    """The objective: mean log loss, and l2 / 2 |w|^2 with l2 = 1 / rows."""

    rows: int

    def loss(self, w: Array, x: Any, y: Array) -> tuple[float, Array]:
        """The mean log loss of some rows, and its gradient."""
        scores = y * (x @ w)
        return float(np.logaddexp(0, -scores).mean()), -(x.T @ (y / (1 + np.exp(scores)))) / len(y)

    def gradient(self, model: dict[str, Array], blocks: Iterator[Any]) -> dict[str, Array]:
        """Of the whole objective, by one block of rows."""
        ((x, y),) = blocks
        return {"w": self.loss(model["w"], x, y)[1] + model["w"] / self.rows}

    def sums(self, model: dict[str, Array], blocks: Iterator[Any]) -> tuple[float, dict[str, Array]]:
        """As L-BFGS takes it, which adds l2 by itself: over the number of all rows."""
        found = [(len(y) / self.rows, *self.loss(model["w"], x, y)) for x, y in blocks]
        gradient = np.sum([share * slope for share, _, slope in found], axis=0)
        return sum(share * loss for share, loss, _ in found), {"w": gradient}

    def objective(self, data: Data, model: dict[str, Array]) -> float:
        """Of all rows."""
        w = model["w"]
        return self.loss(w, data.x, data.y)[0] + float(w @ w) / 2 / self.rows


def blocks_of(data: Data, peers: int) -> list[list[Any]]:
    """A partition for each worker, of blocks of rows."""
    parts = np.array_split(np.random.default_rng(1).permutation(len(data.y)), peers)
    chunks = [[part[at : at + CHUNK_ROWS] for at in range(0, len(part), CHUNK_ROWS)] for part in parts]
    return [[(data.x[chunk], data.y[chunk]) for chunk in part] for part in chunks]


def logistic(side: str, rate: float, train: Data, test: Data, epochs: int) -> Outcome:
    """Train on a9a."""
    loss, data = Logistic(len(train.y)), blocks_of(train, PEERS)
    model = {"w": np.zeros(FEATURES)}
    if side == BFGS:
        optimizer = LBFGS(l2=1 / len(train.y), max_passes=epochs, gradient_tolerance=0, decrease_tolerance=0)
        with DeepDist(model, optimizer=optimizer, peers=PEERS, progress=False) as dd:
            report: Any = dd.train(data, loss.sums)
        curve = [(sum(report.pass_seconds[: at + 1]), value - OPTIMUM) for at, value in enumerate(report.objectives)]
    else:
        descent = AdaGrad(rate) if side == DOWNPOUR else SGD(rate)
        model = AdaGrad(rate).prepare(model) if side == DOWNPOUR else model
        with DeepDist(model, MODE_OF[side], peers=PEERS, progress=False) as dd:
            evaluate = partial(loss.objective, train)
            report = dd.train(
                *(data, loss.gradient, descent, epochs),
                chunk_rows=1,
                evaluate=evaluate,
                evaluate_every_s=0.25,
            )
        curve = curve_of(report, lambda value: value - OPTIMUM)
    quality = loss.objective(train, model) - OPTIMUM
    right = 100 * float(np.mean((test.x @ model["w"] > 0) == (test.y > 0)))
    return Outcome("logistic", side, rate, quality, right, report.seconds, report.updates, sent(report), curve)


# ------------------------------------------------------------------------------------------------------------ word2vec


def negated(model: Any, rows: Any) -> Any:
    """What training some rows changes, as a gradient: downwards is where it went, at a rate of 1."""
    change = dict(word2vec.gradient(model, rows))
    return {name: array if name == "words_trained" else -array for name, array in change.items()}


class WordsDownpour:
    """AdaGrad on the changes of word2vec, in the driver program; its sums stay there."""

    def __init__(self, rate: float) -> None:
        self._descent = AdaGrad(rate)
        self._sums: dict[str, Array] = {}

    def __call__(self, model: Any, update: dict[str, Array]) -> None:
        """Change the model's vectors in place."""
        arrays = {"wv.vectors": model.wv.vectors, "syn1neg": model.syn1neg, **self._sums}
        if not self._sums:
            self._descent.prepare(arrays)
            self._sums = {name: array for name, array in arrays.items() if name.endswith("_adagrad")}
        self._descent(arrays, {name: update[name] for name in ("wv.vectors", "syn1neg")})
        model.words_trained += update["words_trained"]


class Pairs:
    """The log loss of pairs of words, and words that are not near."""

    def __init__(self, model: Word2Vec, texts: list[list[str]]) -> None:
        random = np.random.default_rng(3)
        known = model.wv.key_to_index
        beside = [pair for text in texts for pair in pairwise(known.get(word, -1) for word in text) if min(pair) >= 0]
        chosen = np.array(beside)[random.permutation(len(beside))[:PAIRS]]
        counts = np.array([model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key]) ** 0.75
        self._words, self._near = chosen[:, 0], chosen[:, 1]
        self._far = random.choice(len(counts), size=(len(chosen), NEGATIVE), p=counts / counts.sum())

    def loss(self, model: Any) -> float:
        """The mean over pairs."""
        vectors, outputs = model.wv.vectors[self._words], model.syn1neg
        right = np.einsum("pd,pd->p", vectors, outputs[self._near])
        wrong = np.einsum("pd,pnd->pn", vectors, outputs[self._far])
        return float(np.mean(np.logaddexp(0.0, -right) + np.logaddexp(0.0, wrong).sum(axis=1)))


def words(side: str, rate: float, start: Word2Vec, texts: list[list[str]], pairs: Pairs, epochs: int) -> Outcome:
    """Train word vectors."""
    model: Any = copy.deepcopy(start)
    model.epochs = epochs
    cut = -(-len(texts) // WORDS_PEERS)
    data = [texts[first : first + cut] for first in range(0, len(texts), cut)]
    downpour = side == DOWNPOUR
    with DeepDist(model, MODE_OF[side], peers=WORDS_PEERS, progress=False) as dd:
        report = dd.train(
            *(data, negated if downpour else word2vec.gradient, WordsDownpour(rate) if downpour else None, epochs),
            chunk_rows=None if side == AVERAGING else TEXT_CHUNK_ROWS,
            evaluate=pairs.loss,
            evaluate_every_s=1.0,
        )
        found: Any = dd.model
    _, (rho, _), _ = found.wv.evaluate_word_pairs(datapath("wordsim353.tsv"))
    quality, figures = pairs.loss(found), (report.seconds, report.updates, sent(report), curve_of(report))
    return Outcome("words", side, rate, quality, 100 * float(rho), *figures)


def fresh(texts: list[list[str]]) -> Word2Vec:
    """The model before training."""
    model = Word2Vec(sg=1, vector_size=100, window=5, negative=NEGATIVE, sample=1e-4, alpha=0.05, min_count=5, seed=1)
    word2vec.build_vocab(model, texts)
    return model


# ----------------------------------------------------------------------------------------------------------------- all


def outcomes(data: Path, quick: bool, only: str | None) -> Iterator[Outcome]:
    """Of each task and side the one with the best rate."""
    if only != "words":
        train, test = read(data / ROWS_FILE), read(data / TEST_FILE)
        rows = len(train.y) // 4 if quick else len(train.y)
        train, epochs = Data(train.x[:rows], train.y[:rows]), 3 if quick else EPOCHS
        for side in SIDES:
            rates: tuple[float, ...] = (0.0,) if side == BFGS else ADAGRAD_RATES if side == DOWNPOUR else RATES
            rates = rates[len(rates) // 2 :][:1] if quick else rates
            tried = [logistic(side, rate, train, test, epochs) for rate in rates]
            yield min(tried, key=lambda each: each.quality)
    if only != "logistic":
        texts = [line.split() for line in (data / TEXT_FILE).read_text().splitlines() if line]
        texts = texts[: len(texts) // 4] if quick else texts
        start = fresh(texts)
        pairs = Pairs(start, texts)
        for side in SIDES:
            if side == BFGS:
                continue
            rates = (0.0,) if side != DOWNPOUR else TEXT_ADAGRAD_RATES[1:2] if quick else TEXT_ADAGRAD_RATES
            tried = [words(side, rate, start, texts, pairs, 2 if quick else TEXT_EPOCHS) for rate in rates]
            yield min(tried, key=lambda each: each.quality)


HEAD = f"{'':<10}{'':<11}{'rate':>6}{'quality':>11}{'test %':>8}{'seconds':>9}{'updates':>9}{'kB':>11}"


def line(each: Outcome) -> str:
    """A row of the table."""
    rate = f"{each.rate:g}" if each.rate else "-"
    return (
        f"{each.task:<10}{each.side:<11}{rate:>6}{each.quality:>11.5f}{each.test_percent:>8.1f}{each.seconds:>9.1f}"
        f"{each.updates:>9,}{each.nbytes / 1e3:>11,.0f}"
    )


def draw(found: list[Outcome], task: str) -> str:
    """The quality by seconds, as SVG; needs matplotlib."""
    from p2p.lab.reports.plots import Line, Plot, svg

    lines = tuple(
        Line(each.side, [at for at, _ in each.curve], [value for _, value in each.curve], color)
        for color, each in enumerate(each for each in found if each.task == task)
    )
    y_label = {"logistic": "objective above the optimum", "words": "log loss of a pair"}[task]
    return svg(Plot(f"{task}: what is learned by when", "seconds", y_label, lines, is_log=task == "logistic"))


def main() -> int:
    """Train by all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the rows and words, and one rate")
    parser.add_argument("--only", choices=("logistic", "words"), help="one task")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the plots to files with this name")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path(os.environ.get("DEEPDIST_DATA", DATA)))
    arguments = parser.parse_args()
    for name in (ROWS_FILE, TEST_FILE, TEXT_FILE):
        if not (arguments.data / name).is_file():
            fetch = FETCH_TEXT if name == TEXT_FILE else FETCH
            parser.error(fetch.format(path=arguments.data / name, text=name))
    print(HEAD, flush=True)
    found = []
    for each in outcomes(arguments.data, arguments.quick, arguments.only):
        found.append(each)
        print(line(each), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in found], indent=1))
    if arguments.svg:
        for task in sorted({each.task for each in found}):
            arguments.svg.with_stem(f"{arguments.svg.stem}_{task}").write_text(draw(found, task))
    return 0


if __name__ == "__main__":
    sys.exit(main())
