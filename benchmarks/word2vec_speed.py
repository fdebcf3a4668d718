"""Words per second: peers on this machine, as processes and as Spark executors, next to gensim's threads.

Same text, same vocabulary, same settings, as many cores. The sides take turns; each ratio is the median over the
rounds of a side's words per second over gensim's in the same round. Counted is one call of `train`, from the first row
until all replicas are level; agents, executors and JVM are up by then, as gensim's vocabulary is.

    python -m benchmarks.word2vec_speed [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from gensim.models import Word2Vec
from pyspark import SparkContext
from rich.console import Console
from rich.table import Table

from benchmarks.executors import start
from benchmarks.wikipedia import TEXT, Sentences, options, parse, unpack
from p2p import DeepDist
from p2p.models.word2vec import build_vocab, gradient

LOCAL_RATIO_MIN = 0.95
SPARK_RATIO_MIN = 0.90
"""Targets: words per second of two peers over those of gensim with two threads."""
PEERS = 2
CHUNK_ROWS = 2000
TOKENS_QUICK, ROUNDS, ROUNDS_QUICK = 2_000_000, 3, 1
MEMORY_MB = 2048
MEMORY_PERIOD_S = 0.25


@dataclass(frozen=True)
class Run:
    """One side in one round."""

    side: str
    words_per_second: float
    cpu_s: float
    """Of all cores, in Python processes, for a million words: what it costs where cores are shared with others."""
    memory_bytes: int
    """Most memory that the processes of this side held at a time, shared pages counted once; the JVMs apart."""


def main() -> int:
    """Let the sides take turns, print the table, and return the exit code."""
    parser = options(__doc__, f"{TOKENS_QUICK:,} words, one round")
    parser.add_argument("--rounds", type=int, help=f"turns of each side (default {ROUNDS})")
    parser.add_argument("--chunk-rows", type=int, default=CHUNK_ROWS, help=f"rows per exchange (default {CHUNK_ROWS})")
    parser.add_argument("--sides", default="gensim,local,spark", help="which to run (default gensim,local,spark)")
    arguments = parse(parser)
    names = arguments.sides.split(",")
    rounds = arguments.rounds or (ROUNDS_QUICK if arguments.quick else ROUNDS)
    tokens = arguments.tokens or (TOKENS_QUICK if arguments.quick else None)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "text")
        unpack(arguments.data / TEXT, path, tokens)
        model = Word2Vec(
            sg=1, vector_size=100, window=5, negative=5, sample=1e-4, alpha=0.05, min_count=5, workers=PEERS
        )
        corpus = Sentences(path)
        build_vocab(model, corpus)
        print(f"{model.corpus_total_words:,} words, {len(model.wv):,} in the vocabulary; {rounds} rounds", flush=True)
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            "gensim": partial(by_gensim, model, corpus),
            "local": partial(by_local, model, corpus, arguments.chunk_rows),
        }
        context = start("word2vec_speed", PEERS, MEMORY_MB) if "spark" in names else None
        if context is not None:
            sides["spark"] = partial(by_spark, context, model, path, arguments.chunk_rows)
        try:
            for _ in range(rounds):
                for name in names:
                    runs.append(measure(name, sides[name], model.corpus_total_words))
                    print(f"  {name}: {runs[-1].words_per_second:,.0f} words/s", flush=True)
        finally:
            if context is not None:
                context.stop()
    ratios = print_table(runs, names)
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, "runs": [asdict(r) for r in runs]}, indent=1))
    missed = [
        f"missed: {name} / gensim {ratios[name]:.2f}, target {least}"
        for name, least in (("local", LOCAL_RATIO_MIN), ("spark", SPARK_RATIO_MIN))
        if name in ratios and ratios[name] < least
    ]
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def by_gensim(model: Word2Vec, corpus: Sentences) -> tuple[float, float]:
    """Seconds of one pass with gensim's threads."""
    alone = copy.deepcopy(model)
    words = model.corpus_total_words
    return timed(lambda: alone.train(corpus, total_words=words, epochs=1))


def by_local(model: Word2Vec, corpus: Sentences, chunk_rows: int) -> tuple[float, float]:
    """Seconds of one pass with worker processes."""
    partitions = corpus.partitions(4 * PEERS)
    with DeepDist(copy.deepcopy(model), peers=PEERS, progress=False) as dd:
        dd.train([[["warm"]]] * PEERS, gradient)
        return timed(lambda: dd.train(partitions, gradient, chunk_rows=chunk_rows))


def by_spark(context: SparkContext, model: Word2Vec, path: str, chunk_rows: int) -> tuple[float, float]:
    """Seconds of one pass with executors."""
    rows = context.textFile(path, minPartitions=4 * PEERS)
    with DeepDist(copy.deepcopy(model), progress=False) as dd:
        dd.train(context.parallelize([["warm"]] * PEERS, PEERS), gradient)
        return timed(lambda: dd.train(rows, gradient, chunk_rows=chunk_rows))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of all cores of the machine."""
    begin, cpu_begin = time.perf_counter(), _cpu_s()
    work()
    return time.perf_counter() - begin, _cpu_s() - cpu_begin


def measure(name: str, side: Callable[[], tuple[float, float]], words: int) -> Run:
    """One turn of one side."""
    before, peak, done = _memory_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(MEMORY_PERIOD_S):
            peak = max(peak, _memory_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seconds, cpu_s = side()
    finally:
        done.set()
        watcher.join()
    return Run(name, words / seconds, 1e6 * cpu_s / words, max(0, peak - before))


def _memory_bytes() -> int:
    """Proportional memory of this process and all Python processes below it, as Linux tells it."""
    total = 0
    for process in _processes():
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            pass  # it ended meanwhile
    return total


def _cpu_s() -> float:
    """Seconds that all cores of this machine have worked, for whatever program: some of ours have ended meanwhile."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _processes() -> list[int]:
    """This process and all Python processes below it."""
    parents: dict[int, tuple[str, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, fields = stat.read_text().rpartition(")")
            parents[int(stat.parent.name)] = head.partition("(")[2], int(fields.split()[1])
        except OSError:
            pass  # it ended meanwhile
    below = {os.getpid()}
    while children := {process for process in parents.keys() - below if parents[process][1] in below}:
        below |= children
    return [process for process in below if "python" in parents[process][0]]


def print_table(runs: list[Run], names: list[str]) -> dict[str, float]:
    """Print the medians; returns each side's ratio to gensim."""
    by_side = {name: [run for run in runs if run.side == name] for name in names}
    ratios = {
        name: statistics.median(
            mine.words_per_second / theirs.words_per_second
            for mine, theirs in zip(by_side[name], by_side["gensim"], strict=True)
        )
        for name in names
        if name != "gensim" and "gensim" in by_side
    }
    table = Table(title="one pass, medians")
    for column in ("side", "words/s", "/ gensim", "core s of the machine per million words", "peak memory MB"):
        table.add_column(column, justify="right")
    for name, mine in by_side.items():
        table.add_row(
            name,
            f"{statistics.median(run.words_per_second for run in mine):,.0f}",
            f"{ratios[name]:.2f}" if name in ratios else "1",
            f"{statistics.median(run.cpu_s for run in mine):.2f}",
            f"{statistics.median(run.memory_bytes for run in mine) / 1e6:.0f}",
        )
    Console().print(table)
    return ratios


if __name__ == "__main__":
    sys.exit(main())
