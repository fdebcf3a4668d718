"""Does word2vec lose quality when peers train it? Plain gensim next to a swarm of local peers, on the same text.

Both sides start from the same vocabulary and weights, make the same passes over the same file, and answer the same
questions: Google's analogies (Mikolov et al., arXiv:1301.3781; total accuracy over the 30,000 most frequent words) and
WordSim-353 (Finkelstein et al. 2002; Spearman's rank correlation), both as shipped with gensim.

    python -m benchmarks.word2vec_quality [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from gensim.models import Word2Vec
from gensim.test.utils import datapath

from p2p import DeepDist
from p2p.models.word2vec import build_vocab, gradient

ANALOGIES_LOSS_MAX = 2.0
"""Target: percentage points of analogies that the peers may fall behind gensim. Two runs of gensim differ by one."""

WORDSIM_LOSS_MAX = 0.05
"""Target: how much lower the peers' rank correlation may be."""

PARTITIONS = 8
CHUNK_ROWS = 2000
"""Paragraphs, of 57 words on average, between two exchanges. Two peers lost no quality at 250 to 4,000 of them; fewer
exchanges cost less time."""

QUICK_TOKENS, QUICK_EPOCHS, EPOCHS = 5_000_000, 3, 5
GENSIM_THREADS = 2

TEXT = "enwiki2015/enwiki2015.text8size.txt.gz"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FETCH = """expected the text {path}, found none.
It is 16.9 million words of the English Wikipedia of 2015, one paragraph a line, lower case letters only, from
https://github.com/jason-feng/wikiVisual (CC BY-SA 3.0). Any text of one paragraph a line will do. Put it, gzipped, at
    DIR/{text}
and name DIR by --data or in DEEPDIST_DATA."""


@dataclass(frozen=True)
class Figures:
    """What one side reached."""

    side: str
    words_per_second: float
    seconds: float
    analogies_percent: float
    wordsim_rho: float
    exchange_tokens: float | None
    """Words that a peer trains between two exchanges; None where memory is shared."""


@dataclass(frozen=True)
class Sentences:
    """The lines of a part of a file as lists of words, read anew each time: gensim's way to see a corpus."""

    path: str
    start: int
    stop: int

    def __iter__(self) -> Iterator[list[str]]:
        with open(self.path, "rb") as text:
            text.seek(self.start)
            position = self.start
            for line in text:
                if position >= self.stop:
                    return
                position += len(line)
                yield line.decode().split()


def main() -> int:
    """Run both sides, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first 5 million words, 3 epochs")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path(os.environ.get("DEEPDIST_DATA", DATA)))
    parser.add_argument(
        "--epochs", type=int, help=f"passes over the text (default {EPOCHS}, with --quick {QUICK_EPOCHS})"
    )
    parser.add_argument("--peers", type=int, default=2, help="local peers (default 2)")
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help=f"rows per exchange (default {CHUNK_ROWS})")
    arguments = parser.parse_args()
    if not (arguments.data / TEXT).exists():
        parser.error(FETCH.format(path=arguments.data / TEXT, text=TEXT))
    epochs = arguments.epochs or (QUICK_EPOCHS if arguments.quick else EPOCHS)

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "text")
        offsets = unpack(arguments.data / TEXT, path, QUICK_TOKENS if arguments.quick else None)
        corpus = Sentences(path, 0, offsets[-1])
        model = Word2Vec(
            sg=1, vector_size=100, window=5, negative=5, sample=1e-4, alpha=0.05, min_count=5, workers=GENSIM_THREADS
        )
        build_vocab(model, corpus)
        words, rows = model.corpus_total_words, model.corpus_count
        print(f"{words:,} words in {rows:,} rows, {len(model.wv):,} in the vocabulary; {epochs} epochs", flush=True)

        def by_gensim() -> Word2Vec:
            alone = copy.deepcopy(model)
            alone.train(corpus, total_words=words, epochs=epochs)
            return alone

        def by_peers() -> Word2Vec:
            partitions = [partial(Sentences, path, start, stop) for start, stop in itertools.pairwise(offsets)]
            dd.train(partitions, gradient, epochs=epochs, chunk_rows=arguments.chunk_rows)
            return dd.model

        sides = [measure(f"gensim, {GENSIM_THREADS} threads", by_gensim, words * epochs, None)]
        with DeepDist(model, peers=arguments.peers) as dd:
            exchange_tokens = arguments.chunk_rows * words / rows
            sides.append(measure(f"{arguments.peers} peers", by_peers, words * epochs, exchange_tokens))

    print(table(sides))
    if arguments.json:
        settings = {"words": words, "epochs": epochs, "peers": arguments.peers, "chunk_rows": arguments.chunk_rows}
        Path(arguments.json).write_text(json.dumps({**settings, "sides": [asdict(side) for side in sides]}, indent=2))
    missed = list(shortfalls(*sides))
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


def unpack(source: Path, target: str, tokens_max: int | None) -> list[int]:
    """Write the first `tokens_max` words of `source` to `target`; return where its partitions begin, and its end."""
    tokens, ends = 0, [0]
    with gzip.open(source, "rb") as text, open(target, "wb") as plain:
        for line in text:
            if tokens_max is not None and tokens >= tokens_max:
                break
            plain.write(line)
            tokens += len(line.split())
            ends.append(ends[-1] + len(line))
    lines = len(ends) - 1
    return [ends[lines * index // PARTITIONS] for index in range(PARTITIONS + 1)]


def measure(side: str, train: Callable[[], Word2Vec], words: int, exchange_tokens: float | None) -> Figures:
    """Train, and ask the model the questions."""
    start = time.perf_counter()
    model = train()
    seconds = time.perf_counter() - start
    analogies, _ = model.wv.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
    _, spearman, _ = model.wv.evaluate_word_pairs(datapath("wordsim353.tsv"))
    return Figures(side, words / seconds, seconds, 100 * analogies, float(spearman[0]), exchange_tokens)


def table(sides: list[Figures]) -> str:
    """The figures side by side, one column a side."""
    rows = [
        ("", *(side.side for side in sides)),
        ("words/s", *(f"{side.words_per_second:,.0f}" for side in sides)),
        ("seconds", *(f"{side.seconds:.1f}" for side in sides)),
        ("analogies %", *(f"{side.analogies_percent:.1f}" for side in sides)),
        ("WordSim rho", *(f"{side.wordsim_rho:.3f}" for side in sides)),
        ("tokens per exchange", *("-" if (x := side.exchange_tokens) is None else f"{x:,.0f}" for side in sides)),
    ]
    return "\n".join(f"{name:<20}" + "".join(f"{value:>20}" for value in values) for name, *values in rows)


def shortfalls(gensim: Figures, peers: Figures) -> Iterator[str]:
    """What falls short of the targets, in words."""
    if peers.analogies_percent < gensim.analogies_percent - ANALOGIES_LOSS_MAX:
        yield (
            f"missed: analogies {peers.analogies_percent:.1f} %, expected at least gensim's "
            f"{gensim.analogies_percent:.1f} - {ANALOGIES_LOSS_MAX}"
        )
    if peers.wordsim_rho < gensim.wordsim_rho - WORDSIM_LOSS_MAX:
        yield (
            f"missed: WordSim rho {peers.wordsim_rho:.3f}, expected at least gensim's "
            f"{gensim.wordsim_rho:.3f} - {WORDSIM_LOSS_MAX}"
        )


if __name__ == "__main__":
    sys.exit(main())
