"""A member that lies: what becomes of the model with `update_norm_max="auto"`, and whether the report names it without.

    python -m benchmarks.liars [--quick] [--json FILE] [--check]

Five peers of a simulated cluster train softmax regression and word vectors. One of them publishes something else than
its tasks compute: updates a million times as long, noise as long as that, or noise of the usual length. It lies from
the beginning, so that nobody has heard an honest update of it. "broken" is a peer whose gradient is wrong, after three
chunks, and whose agent is not: it looks at its own updates. What the model is worth is held
against four honest peers on the same data. Targets are of updates that are too long; noise of the usual length is shown
for what it costs, since no norm tells it from an update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import Word2Vec
from rich.console import Console
from rich.table import Table

from gossip.arrays import Packed
from gossip.sim.faults import Lie
from gossip.updates import check, merge, norm
from gossip.updates.levels import in_blocks, levels_of
from gossip.updates.rows import rows_of
from gossip.updates.stamps import RowStamps
from p2p import DeepDist, DeepDistWarning, Faults, SimulatedCluster
from p2p.models.word2vec import build_vocab
from p2p.models.word2vec import gradient as word_gradient

POINTS_MAX = 1.0
"""Target: with the limit, the model of four peers and a liar is at most so many points of accuracy worse than that of
four peers."""
COST_MAX = 0.03
"""Target: to know how long updates of floats are takes a reader at most this part more."""
PEERS = 5
LIES: dict[str, tuple[Lie, ...]] = {
    "nobody": (),
    "1e6 times as long": (Lie(0.0),),
    "noise, 1e6 times as long": (Lie(0.0, noise=True),),
    "noise, as long as usual": (Lie(0.0, factor=1.0, noise=True),),
    "broken, 1e6 times as long": (Lie(3.0, checks=True),),
}
TOO_LONG = [name for name in LIES if "1e6" in name]


@dataclass(frozen=True)
class Workload:
    """A model to be trained."""

    name: str
    model: Callable[[], Any]
    data: list[Any]
    gradient: Callable[[Any, Any], Any]
    chunk_rows: int
    epochs: int
    accuracy: Callable[[Any], float]
    """In percent."""


def softmax(rows: int, seed: int = 0) -> Workload:
    """Ten classes of thirty features, with noise in the labels."""
    chance = np.random.default_rng(seed)
    truth, x = chance.normal(size=(30, 10)), chance.normal(size=(2 * rows, 30))
    y = (x @ truth + 2 * chance.normal(size=(2 * rows, 10))).argmax(axis=1)

    def gradient(model: Any, numbers: Iterator[int]) -> dict[str, Any]:
        chosen = np.array(list(numbers))
        scores = x[chosen] @ model["w"]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        odds[np.arange(len(chosen)), y[chosen]] -= 1.0
        return {"w": -0.2 * (x[chosen].T @ odds) / len(chosen)}

    def accuracy(model: Any) -> float:
        return float(100 * ((x[rows:] @ model["w"]).argmax(axis=1) == y[rows:]).mean())

    partitions = [list(range(start, rows, 20)) for start in range(20)]
    return Workload("softmax", lambda: {"w": np.zeros((30, 10))}, partitions, gradient, 10, 4, accuracy)


def words(sentences: int, seed: int = 0) -> Workload:
    """Twenty topics of ten words each; a third of a sentence is of one topic, and the rest of any. Accuracy: whose
    nearest word is of the same topic."""
    chance = np.random.default_rng(seed)
    names = [[f"t{topic}w{word}" for word in range(10)] for topic in range(20)]
    every = [name for topic in names for name in topic]
    texts = [
        [*chance.permutation([*chance.choice(names[chance.integers(20)], 4), *chance.choice(every, 8)])]
        for _ in range(sentences)
    ]
    partitions = [texts[start::20] for start in range(20)]

    def model() -> Word2Vec:
        fresh = Word2Vec(sg=1, vector_size=20, min_count=1, alpha=0.05, seed=1, sample=0, window=5)
        build_vocab(fresh, texts)
        return fresh

    def accuracy(trained: Any) -> float:
        vectors = trained.wv.get_normed_vectors()
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        topic = np.array([trained.wv.index_to_key[row].split("w")[0] for row in range(len(vectors))])
        return float(100 * (topic[near.argmax(axis=1)] == topic).mean())

    return Workload("word2vec", model, partitions, word_gradient, 25, 5, accuracy)


@dataclass(frozen=True)
class Outcome:
    """One training."""

    workload: str
    lie: str
    limit: str
    accuracy: float
    names: bool
    """The report says something of the liar, and of nobody else."""
    distance: float
    """Of the replicas."""


def outcome(workload: Workload, lie: str, limit: Any, peers: int = PEERS, seed: int = 1) -> Outcome:
    """Train, and look what came of it."""
    model = workload.model()
    cluster = SimulatedCluster(peers, seed=seed, faults=Faults(lies=LIES[lie]))
    with warnings.catch_warnings(), DeepDist(model, engine=cluster, progress=False, update_norm_max=limit) as dd:
        warnings.simplefilter("ignore", DeepDistWarning)
        with np.errstate(all="ignore"):
            report = dd.train(workload.data, workload.gradient, epochs=workload.epochs, chunk_rows=workload.chunk_rows)
            accuracy = workload.accuracy(dd.model)
    liars = {line.split()[2] for line in report.story if line.endswith("begins to lie")}
    named = {peer.name for peer in report.peers if str(peer.conduct)}
    return Outcome(workload.name, lie, str(limit), accuracy, named == liars, report.consensus_distance)


def updates() -> dict[str, tuple[Packed, Packed]]:
    """By kind: an update of a model of 16 MB, or of a quarter of its rows, and the model."""
    chance = np.random.default_rng(0)
    numbers = chance.normal(size=(1 << 15, 128)).astype(np.float32)
    model, some = Packed.of({"w": numbers}), np.arange(0, 1 << 15, 4)
    integers, units = (chance.integers(-9, 9, shape).astype(np.int8) for shape in ((len(some), 128), len(some)))
    steps = chance.integers(-1, 2, in_blocks(numbers).shape).astype(np.int8)
    made = {
        "whole arrays": {"w": numbers},
        "rows": rows_of("w", some, numbers[some]),
        "rows of int8": rows_of("w", some, integers, units),
        "two bits a number": levels_of("w", steps, chance.integers(-9, 9, len(steps)).astype(np.int8)),
    }
    return {kind: (Packed.of(update), model) for kind, update in made.items()}


def costs(repetitions: int) -> dict[str, float]:
    """By kind, what the norm of an update takes, beside what a reader does with it anyway: it is looked at, and merged.
    Of medians, of turns that take turns."""
    found = {}
    for kind, (packed, model) in updates().items():
        stamps, seconds = RowStamps(model.layout), defaultdict[bool, list[float]](list)
        for turn in range(2 * repetitions):
            measures = bool((turn + turn // 2) % 2)
            update = Packed(packed.layout, packed.buffer)  # which nobody has looked at yet
            begin = time.process_time()
            check(update, model.layout)
            if measures:
                norm(update, model.layout)
            merge(model.layout, model.buffer, stamps, update)
            seconds[measures].append(time.process_time() - begin)
        found[kind] = statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1.0
    return found


def shortfalls(outcomes: list[Outcome], shares: dict[str, float]) -> Iterator[str]:
    """What falls short of the targets."""
    alone = {each.workload: each.accuracy for each in outcomes if each.lie == "four peers"}
    for each in outcomes:
        where = f"{each.workload}, {each.lie}, update_norm_max={each.limit}"
        worse = alone[each.workload] - each.accuracy
        if each.limit == "auto" and each.lie in ("nobody", *TOO_LONG) and worse > POINTS_MAX:
            yield f"{where}: {worse:.1f} points worse than without it, target {POINTS_MAX:g}"
        if each.lie in TOO_LONG and not each.names:
            yield f"{where}: the report does not name the liar"
        if each.lie == "nobody" and not each.names:
            yield f"{where}: the report names somebody honest"
        if each.distance > 1e-4:
            yield f"{where}: replicas are {each.distance:.1e} apart"
    for kind in ("whole arrays", "rows"):
        if shares[kind] > COST_MAX:
            yield f"norms of {kind} take {100 * shares[kind]:.1f} % more of a reader, target {100 * COST_MAX:g} %"


def main() -> None:
    """Train each workload with each lie, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less data")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    workloads = [softmax(4000), words(2000)] if arguments.quick else [softmax(20_000), words(10_000)]
    outcomes: list[Outcome] = []
    table = Table(title=f"{PEERS} peers, one of which lies; accuracy in percent, and whether the report names it alone")
    for column in ("workload", "lie", "update_norm_max", "accuracy", "named", "replicas apart"):
        table.add_column(column, justify="left" if column in ("workload", "lie") else "right")
    for workload in workloads:
        honest = outcome(workload, "nobody", None, PEERS - 1)
        found = [Outcome(workload.name, "four peers", "None", honest.accuracy, honest.names, honest.distance)]
        found += [outcome(workload, lie, limit) for lie in LIES for limit in (None, "auto")]
        for each in found:
            row = (each.workload, each.lie, each.limit, f"{each.accuracy:.1f}", str(each.names), f"{each.distance:.0e}")
            table.add_row(*row)
        outcomes += found
    Console(width=120).print(table)
    shares = costs(40 if arguments.quick else 80)
    told = ", ".join(f"{kind} {100 * share:+.1f} %" for kind, share in shares.items())
    print(f"to know how long an update is, beside looking at it and merging it, takes of {told}")
    if arguments.json:
        figures = {"costs": shares, "outcomes": [asdict(each) for each in outcomes]}
        arguments.json.write_text(json.dumps(figures, indent=1))
    missed = list(shortfalls(outcomes, shares))
    if arguments.check and missed:
        print("\n".join(f"missed: {text}" for text in missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
