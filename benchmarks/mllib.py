"""Word2vec by Spark's own MLlib next to peers on the same two executors: speed, and quality after equal time.

Same text, same vocabulary, same dimensions and window, one core an executor. MLlib trains skip-gram by hierarchical
softmax, with a copy of the model per partition that is collected and merged after each pass; the peers train skip-gram
by negative sampling, as word2vec users do. First both make one pass, in turns, so many times, and the medians of the
words per second are compared. Then MLlib makes `--passes` passes, the peers train for about as long, and both answer
Google's analogies (total accuracy over the 30,000 most frequent words) as shipped with gensim.

    python -m benchmarks.mllib [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from gensim.models import KeyedVectors, Word2Vec
from gensim.test.utils import datapath
from pyspark import RDD
from pyspark.ml.feature import Word2Vec as MLlibWord2Vec
from pyspark.sql import DataFrame, SparkSession

from benchmarks.executors import start
from benchmarks.wikipedia import TEXT, options, parse, unpack
from p2p import DeepDist
from p2p.models.word2vec import build_vocab, gradient

SPEED_RATIO_MIN = 5.0
"""Target: how many times MLlib's words per second."""
EXECUTORS, MEMORY_MB = 2, 3072
DIMENSIONS, WINDOW, MIN_COUNT = 100, 5, 5
CHUNK_ROWS = 4000
"""Between two exchanges: 230,000 words, two points of analogies behind every 16,000 (benchmarks.word2vec_quality)."""
TOKENS_QUICK = 1_000_000
REPEATS, REPEATS_QUICK = 3, 1
PASSES = 1


@dataclass(frozen=True)
class Quality:
    """What one side reached in its time."""

    side: str
    passes: int
    seconds: float
    analogies_percent: float


def main() -> int:
    """Run both sides in turns, print the figures, and return the exit code."""
    parser = options(__doc__, f"{TOKENS_QUICK:,} words, one repetition, one pass")
    parser.add_argument("--repeats", type=int, help=f"passes of each side that are timed (default {REPEATS})")
    parser.add_argument("--passes", type=int, help=f"MLlib's passes before the questions (default {PASSES})")
    arguments = parse(parser)
    quick = arguments.quick
    tokens = arguments.tokens or (TOKENS_QUICK if quick else None)
    repeats = arguments.repeats or (REPEATS_QUICK if quick else REPEATS)
    passes = arguments.passes or PASSES

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "text")
        unpack(arguments.data / TEXT, path, tokens)
        with start("mllib", EXECUTORS, MEMORY_MB, spark_driver_memory="3g") as sc:
            corpus = sc.textFile(path, minPartitions=4 * EXECUTORS).cache()
            rows = corpus.map(lambda text: (text.split(),))  # the lists of words that MLlib takes
            frame = SparkSession(sc).createDataFrame(rows, "text array<string>").cache()
            fresh = _fresh_model(corpus)
            words = fresh.corpus_total_words
            print(f"{words:,} words, {len(fresh.wv):,} in the vocabulary; {frame.count():,} rows", flush=True)

            speed: dict[str, list[float]] = {"MLlib": [], "peers": []}
            for _ in range(repeats):
                _, seconds = by_mllib(frame, 1)
                speed["MLlib"].append(words / seconds)
                _, seconds = by_peers(corpus, 1)
                speed["peers"].append(words / seconds)
                print("  ".join(f"{side} {rates[-1]:,.0f} words/s" for side, rates in speed.items()), flush=True)

            vectors, seconds = by_mllib(frame, passes)
            ranked = KeyedVectors(DIMENSIONS)  # in order of frequency, from which the questions' words are taken
            known = [word for word in fresh.wv.index_to_key if word in vectors]
            ranked.add_vectors(known, np.stack([vectors[word] for word in known]))
            sides = [Quality("MLlib", passes, seconds, analogies(ranked))]
            fitting = max(1, int(seconds * statistics.median(speed["peers"]) / words))
            model, seconds = by_peers(corpus, fitting)
            sides.append(Quality("peers", fitting, seconds, analogies(model.wv)))

    rates = {side: statistics.median(values) for side, values in speed.items()}
    print(table(rates, sides, words))
    if arguments.json:
        figures = {"words": words, "speed": speed, "quality": [asdict(side) for side in sides]}
        arguments.json.write_text(json.dumps(figures, indent=2))
    missed = list(shortfalls(rates, *sides))
    for line in missed:
        print(line)
    return 1 if arguments.check and missed else 0


def _fresh_model(corpus: RDD[str]) -> Word2Vec:
    model = Word2Vec(
        sg=1, vector_size=DIMENSIONS, window=WINDOW, negative=5, sample=1e-4, alpha=0.05, min_count=MIN_COUNT
    )
    build_vocab(model, corpus)
    return model


def by_mllib(frame: DataFrame, passes: int) -> tuple[dict[str, Any], float]:
    """The vectors by word, and the seconds that all of it took: MLlib's counting of words is part of its training."""
    trainer = MLlibWord2Vec(
        vectorSize=DIMENSIONS,
        windowSize=WINDOW,
        minCount=MIN_COUNT,
        numPartitions=EXECUTORS,
        maxIter=passes,
        seed=1,
        inputCol="text",
        outputCol="vector",
    )
    begin = time.perf_counter()
    rows = trainer.fit(frame).getVectors().collect()
    seconds = time.perf_counter() - begin
    return {row["word"]: row["vector"].toArray().astype(np.float32) for row in rows}, seconds


def by_peers(corpus: RDD[str], passes: int) -> tuple[Word2Vec, float]:
    """The model, and the seconds that all of it took: counting words and starting agents are part of it."""
    begin = time.perf_counter()
    model = _fresh_model(corpus)
    with DeepDist(model) as dd:
        dd.train(corpus, gradient, epochs=passes, chunk_rows=CHUNK_ROWS)
        trained = dd.model
    return trained, time.perf_counter() - begin


def analogies(vectors: KeyedVectors) -> float:
    """Per cent of Google's questions answered right, over the 30,000 words that come first."""
    share, _ = vectors.evaluate_word_analogies(datapath("questions-words.txt"), restrict_vocab=30_000)
    return float(100 * share)


def table(rates: dict[str, float], sides: list[Quality], words: int) -> str:
    """The figures side by side."""
    lines = [f"{'':<24}" + "".join(f"{side.side:>14}" for side in sides)]
    lines.append(f"{'words/s, one pass':<24}" + "".join(f"{rates[side.side]:>14,.0f}" for side in sides))
    lines.append(f"{'passes, for quality':<24}" + "".join(f"{side.passes:>14}" for side in sides))
    lines.append(f"{'seconds':<24}" + "".join(f"{side.seconds:>14.1f}" for side in sides))
    lines.append(
        f"{'words/s of these passes':<24}" + "".join(f"{words * side.passes / side.seconds:>14,.0f}" for side in sides)
    )
    lines.append(f"{'analogies %':<24}" + "".join(f"{side.analogies_percent:>14.1f}" for side in sides))
    lines.append(f"peers / MLlib: {rates['peers'] / rates['MLlib']:.1f} times the words per second")
    return "\n".join(lines)


def shortfalls(rates: dict[str, float], mllib: Quality, peers: Quality) -> Iterator[str]:
    """What falls short of the targets, in words."""
    ratio = rates["peers"] / rates["MLlib"]
    if ratio < SPEED_RATIO_MIN:
        yield f"missed: {ratio:.1f} times the words per second of MLlib, expected {SPEED_RATIO_MIN:g}"
    if peers.analogies_percent <= mllib.analogies_percent:
        yield (
            f"missed: analogies {peers.analogies_percent:.1f} %, expected more than MLlib's "
            f"{mllib.analogies_percent:.1f} in equal time"
        )


if __name__ == "__main__":
    sys.exit(main())
