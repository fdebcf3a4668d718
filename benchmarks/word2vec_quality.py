"""Does word2vec lose quality when peers train it? gensim next to swarms of peers that do the same work together.

All sides start from the same vocabulary and weights, make the same passes over the same file, and answer the same
questions: Google's analogies (Mikolov et al., arXiv:1301.3781; total accuracy over the 30,000 most frequent words) and
WordSim-353 (Finkelstein et al. 2002; Spearman's rank correlation), both as shipped with gensim.

Sixteen peers do not run at speed on two cores, so the cluster is simulated: the peers' own code on virtual time, where
a word takes as long as on a core of its own and a message a millisecond. It costs the time of the work and is the same
each time. `--engine local` trains with processes instead.

    python -m benchmarks.word2vec_quality [--quick] [--epochs N] [--peers 2,8] [--every 15600,62000] [--check]

With `--json FILE` each result is added there as soon as it is known, and what is there already is not run again.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gensim.models import Word2Vec
from gensim.test.utils import datapath
from rich.console import Console
from rich.table import Table

from benchmarks.wikipedia import TEXT, Sentences, options, parse, unpack
from gossip.sim.simulator import Network
from p2p import DeepDist
from p2p.models.word2vec import build_vocab, gradient
from p2p.sessions.cluster import SimulatedCluster

ANALOGIES_LOSS_MAX = {2: 1.0, 4: 2.0, 8: 2.0, 16: 4.0}
"""Targets, by peers: percentage points of analogies that they may fall behind gensim at the shortest interval that is
measured. Two runs of gensim differ by one."""

PARTITIONS = 8
PEERS = (2, 4, 8, 16)
EVERY = (15_600, 62_000, 250_000)
"""Words that a peer trains between two exchanges."""
QUICK_PEERS, QUICK_EVERY = (2, 8), (15_600,)
WORDS_PER_S = 400_000
"""Of one peer, on virtual time: what one of two makes in `benchmarks.word2vec_speed`, exchanges and all."""
MESSAGE_S = 0.001
QUICK_TOKENS, QUICK_EPOCHS, EPOCHS = 5_000_000, 3, 5


@dataclass(frozen=True)
class Figures:
    """What one side reached."""

    words: int
    epochs: int
    engine: str
    peers: int
    """0 for gensim."""
    every: int
    """Words that a peer trains between two exchanges; 0 for gensim, where threads share memory."""
    combine: str
    analogies_percent: float
    wordsim_rho: float
    seconds: float
    update_bytes: float
    """Bytes sent to one reader for an update, on average; sums of several updates make it smaller."""

    @property
    def setting(self) -> tuple[int, int, str, int, int, str]:
        """What was asked for."""
        return self.words, self.epochs, self.engine, self.peers, self.every, self.combine


def main() -> int:
    """Run what is not known yet, print the table, and return the exit code."""
    parser = options(__doc__, "the first 5 million words, 3 epochs, one interval")
    parser.add_argument("--epochs", type=int, help=f"passes over the text (default {EPOCHS}, quick {QUICK_EPOCHS})")
    parser.add_argument("--peers", type=_numbers, help="default " + ",".join(map(str, PEERS)))
    parser.add_argument("--every", type=_numbers, help="words per exchange, default " + ",".join(map(str, EVERY)))
    parser.add_argument("--combine", default="", help="how updates add up (default: what DeepDist chooses)")
    parser.add_argument("--engine", choices=("simulated", "local"), default="simulated")
    arguments = parse(parser)
    quick = arguments.quick
    epochs = arguments.epochs or (QUICK_EPOCHS if quick else EPOCHS)
    peers = arguments.peers or (QUICK_PEERS if quick else PEERS)
    every = arguments.every or (QUICK_EVERY if quick else EVERY)
    tokens = arguments.tokens or (QUICK_TOKENS if quick else None)
    known = load(arguments.json)

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "text")
        unpack(arguments.data / TEXT, path, tokens)
        corpus = Sentences(path)
        model = Word2Vec(sg=1, vector_size=100, window=5, negative=5, sample=1e-4, alpha=0.05, min_count=5, workers=2)
        build_vocab(model, corpus)
        words = model.corpus_total_words
        print(f"{words:,} words in {model.corpus_count:,} rows, {len(model.wv):,} in the vocabulary; {epochs} epochs")
        wanted = [(words, epochs, "gensim", 0, 0, "")]
        wanted += [
            (words, epochs, arguments.engine, n, interval, arguments.combine) for n in peers for interval in every
        ]
        for setting in wanted:
            if all(figures.setting != setting for figures in known):
                known.append(measure(model, corpus, setting))
                save(arguments.json, known)
                print(f"  {known[-1]}", flush=True)

    shown = [next(figures for figures in known if figures.setting == setting) for setting in wanted]
    dense = sum(array.nbytes for array in (model.wv.vectors, model.syn1neg))
    Console().print(table(shown, dense))
    missed = list(shortfalls(shown))
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def measure(model: Word2Vec, corpus: Sentences, setting: tuple[int, int, str, int, int, str]) -> Figures:
    """Train a copy of `model`, and ask it the questions."""
    words, epochs, engine, peers, every, rule = setting
    alone, sent = copy.deepcopy(model), 0.0
    start = time.perf_counter()
    if peers == 0:
        alone.train(corpus, total_words=words, epochs=epochs)
    else:
        cluster = SimulatedCluster(
            peers=peers, network=Network(delay_mean_s=MESSAGE_S), seconds_per_chunk=every / WORDS_PER_S
        )
        simulated = engine == "simulated"
        partitions = corpus.partitions(max(PARTITIONS, peers))
        chunk_rows = max(1, round(every * model.corpus_count / words))
        with DeepDist(
            alone, engine=cluster if simulated else None, peers=None if simulated else peers, progress=False
        ) as dd:
            report = dd.train(partitions, gradient, epochs=epochs, chunk_rows=chunk_rows, combine=rule or None)
            alone = dd.model
        readers = len(report.peers) - 1  # the observer reads, too
        sent = sum(peer.bytes_out for peer in report.peers) / report.updates / readers
    seconds = time.perf_counter() - start
    analogies, _ = alone.wv.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
    _, spearman, _ = alone.wv.evaluate_word_pairs(datapath("wordsim353.tsv"))
    return Figures(*setting, 100 * analogies, float(spearman[0]), seconds, sent)


def load(path: Path | None) -> list[Figures]:
    """The figures in the file; none if there is none."""
    return [Figures(**entry) for entry in json.loads(path.read_text())] if path is not None and path.exists() else []


def save(path: Path | None, known: list[Figures]) -> None:
    """Write the file anew, whole or not at all."""
    if path is not None:
        new = path.with_suffix(".new")
        new.write_text(json.dumps([asdict(figures) for figures in known], indent=1))
        new.replace(path)


def table(shown: list[Figures], dense_bytes: int) -> Table:
    """One line a side."""
    result = Table(title="the same work, by so many peers")
    for column in ("peers", "words per exchange", "analogies %", "WordSim rho", "kB an update", "dense / sent", "s"):
        result.add_column(column, justify="right")
    for figures in shown:
        trained = figures.peers > 0
        result.add_row(
            str(figures.peers) if trained else "gensim",
            f"{figures.every:,}" if trained else "-",
            f"{figures.analogies_percent:.1f}",
            f"{figures.wordsim_rho:.3f}",
            f"{figures.update_bytes / 1e3:,.0f}" if trained else "-",
            f"{dense_bytes / figures.update_bytes:,.0f}" if trained else "-",
            f"{figures.seconds:.0f}",
        )
    return result


def shortfalls(shown: list[Figures]) -> Iterator[str]:
    """What falls short of the targets, in words."""
    gensim, *others = shown
    shortest = min((f.every for f in others), default=0)
    for f in others:
        loss_max = ANALOGIES_LOSS_MAX.get(f.peers)
        if loss_max is not None and f.every == shortest and f.analogies_percent < gensim.analogies_percent - loss_max:
            yield (
                f"missed: analogies {f.analogies_percent:.1f} % with {f.peers} peers every {f.every:,} words, expected "
                f"at least gensim's {gensim.analogies_percent:.1f} - {loss_max}"
            )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
