"""What an exchange costs, step by step, beside the training that it interrupts: word2vec, 68,000 words x 100, 54 MB.

One worker, its agent's part and a neighbor's part run in turn in one process, without sockets, on a text drawn from a
seed with Zipf's frequencies. A neighbor's updates come in as often as the own are published. Each step's time is the
median over the exchanges of one setting; shares are of the training time between two exchanges.

    python -m benchmarks.path [--quick] [--check] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gensim.models import Word2Vec
from rich.console import Console
from rich.table import Table

from gossip.arrays import Layout, Packed
from gossip.messages import PeerId, Range
from gossip.updates import check
from gossip.wire import decode, encode
from gossip.zmq.segments import Segments
from p2p.adapters.model import Model
from p2p.agent.replica import Replica
from p2p.models.word2vec import skipgram
from p2p.models.word2vec.lexicon import Lexicon
from p2p.models.word2vec.partition import batches
from p2p.worker.working_copy import CODECS, WorkingCopy, exchange_settings

SETTINGS = ((0.050, 0.10), (0.500, 0.02))
"""(seconds of training between two exchanges, target: the most that an exchange may cost of them)."""
WORDS, DIMENSIONS = 68_000, 100
ROW_WORDS = 60
TOKENS = 400_000
WORKER_STEPS = ("schedule, merge, encode", "hand over")
AGENT_STEPS = ("keep", "merge own", "send", "receive, check", "merge other")


def main() -> int:
    """Time the steps at each interval, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the exchanges")
    parser.add_argument("--combine", default="sum", help="how updates add up (default sum)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    arguments = parser.parse_args()
    model, rows = zipf_model()
    print(f"{len(model.wv):,} words x {model.vector_size}: {Model(model).layout.nbytes / 1e6:.0f} MB")
    figures, missed = [], []
    for interval_s, share_max in SETTINGS:
        exchanges = (30 if interval_s < 0.1 else 12) // (3 if arguments.quick else 1)
        way = Way(model, arguments.combine)
        medians = way.run(rows, interval_s, exchanges)
        share = show(medians, interval_s)
        figures.append({"interval_s": interval_s, "share": share, **medians})
        if share > share_max:
            missed.append(f"missed: an exchange every {interval_s:g} s costs {share:.1%}, target {share_max:.0%}")
    by_codec = {codec: Way(model, arguments.combine, codec).run(rows, 0.050, 8)["bytes"] for codec in CODECS}
    show_bytes(by_codec, Model(model).layout.nbytes)
    figures.append({"bytes": by_codec})
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))
    print("\n".join(missed), end="\n" if missed else "")
    return 1 if arguments.check and missed else 0


def zipf_model() -> tuple[Word2Vec, list[list[str]]]:
    """A model of `WORDS` words and a text of `TOKENS` in which they occur as often as Zipf's law says."""
    generator = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, WORDS + 1)
    counts = np.maximum(5, 17e6 * frequencies / frequencies.sum()).astype(int)
    model = Word2Vec(sg=1, vector_size=DIMENSIONS, window=5, negative=5, sample=1e-4, alpha=0.05, min_count=5)
    names = [f"w{index}" for index in range(WORDS)]
    model.build_vocab_from_freq(dict(zip(names, counts.tolist(), strict=True)), corpus_count=1)
    model.corpus_total_words = int(counts.sum())
    text = generator.choice(WORDS, TOKENS, p=counts / counts.sum())
    rows = [[names[word] for word in text[at : at + ROW_WORDS]] for at in range(0, TOKENS, ROW_WORDS)]
    return model, rows


class Way:
    """The whole way of an update, by hand."""

    def __init__(self, model: Word2Vec, rule: str, codec: str = "int8") -> None:
        skeleton_of = Model(model)
        arrays = {name: array.copy() for name, array in skeleton_of.arrays().items()}
        self.layout = Layout.of(arrays)
        self.replica, self.other = Replica(self.layout), Replica(self.layout)
        for replica in (self.replica, self.other):
            for name, view in replica.arrays().items():
                view[...] = arrays[name]
        settings = replace(exchange_settings(skeleton_of, rule, 2), codec=codec)
        skeleton = skeleton_of.skeleton()
        self.copies = [WorkingCopy(Model.from_skeleton(skeleton), settings, time.process_time) for _ in range(2)]
        self.segments = Segments()
        self.number = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def run(self, rows: list[list[str]], interval_s: float, exchanges: int) -> dict[str, float]:
        """Medians of each step's seconds, and of what was sent."""
        at, chunk = 0, 50
        for exchange in range(exchanges + 4):
            for copy, replica in zip(self.copies, (self.replica, self.other), strict=True):
                copy.begin(replica)
                copy.keep_base()
                some = [rows[(at + index) % len(rows)] for index in range(chunk)]
                at += chunk
                seconds = self._train(copy, some)
                chunk = max(10, round(chunk * interval_s / max(seconds, 1e-4)))
                self._exchange(copy, replica, self.other if replica is self.replica else self.replica)
            if exchange == 3:  # the first ones set out the schedule, and fit the chunk to the interval
                self.seconds.clear()
        return {name: statistics.median(values) for name, values in self.seconds.items()}

    def _train(self, copy: WorkingCopy, rows: list[list[str]]) -> float:
        model = copy.model.model
        begin = time.process_time()
        gradient_in_place(model, rows)
        self.seconds["training"].append(time.process_time() - begin)
        return self.seconds["training"][-1]

    def _exchange(self, copy: WorkingCopy, replica: Replica, other: Replica) -> None:
        arrays = self._time("schedule, merge, encode", lambda: copy.exchange(replica, {}))
        packed = self._time("hand over", lambda: Packed.of(arrays))
        self.number += 1
        self._time("keep", lambda: self.segments.keep(self.number, self.number, packed))
        self._time("merge own", lambda: replica.add(packed))
        copy.published(replica)
        message = Range(PeerId("a"), self.number, self.number, 1)
        total = self.segments.sum(self.number, self.number)
        frames = self._time("send", lambda: encode(message, total))

        def receive() -> Any:
            payload = decode(frames).payload
            check(payload, self.layout)
            return payload

        payload = self._time("receive, check", receive)
        self._time("merge other", lambda: other.add(payload))
        self.segments.forget(self.number)
        self.seconds["bytes"].append(sum(len(frame) for frame in frames))
        self.seconds["rows"].append(sum(len(array) for name, array in arrays.items() if name.endswith("[rows]")))

    def _time(self, name: str, step: Callable[[], Any]) -> Any:
        begin = time.process_time()
        result = step()
        self.seconds[name].append(time.process_time() - begin)
        return result


def gradient_in_place(model: Word2Vec, rows: list[list[str]]) -> None:
    state = skipgram.random_state(model.random)
    lexicon = Lexicon(model.wv.index_to_key)
    for batch in batches(rows):
        skipgram.train_batch(model, *lexicon.numbers(batch), model.alpha, state)


def show_bytes(by_codec: dict[str, float], dense_bytes: int) -> None:
    """Print what is sent to one reader for an update."""
    table = Table(title="bytes of one update, an exchange every 0.05 s")
    for column in ("rows travel as", "kB", "dense float32 / sent"):
        table.add_column(column, justify="right")
    table.add_row("dense float32", f"{dense_bytes / 1e3:,.0f}", "1")
    for codec, nbytes in by_codec.items():
        table.add_row(codec, f"{nbytes / 1e3:,.0f}", f"{dense_bytes / nbytes:,.0f}")
    Console().print(table)


def show(medians: dict[str, float], interval_s: float) -> float:
    """Print one table; returns the share of an exchange."""
    table = Table(title=f"an exchange every {interval_s:g} s of training")
    for column in ("step", "ms", "% of training"):
        table.add_column(column, justify="right")
    total = sum(medians[name] for name in (*WORKER_STEPS, *AGENT_STEPS))
    for name in ("training", *WORKER_STEPS, *AGENT_STEPS):
        table.add_row(name, f"{1e3 * medians[name]:.2f}", f"{100 * medians[name] / medians['training']:.1f}")
    table.add_row("exchange", f"{1e3 * total:.2f}", f"{100 * total / medians['training']:.1f}")
    Console().print(table)
    print(f"{medians['rows']:,.0f} rows, {medians['bytes'] / 1e3:,.0f} kB an update")
    return total / medians["training"]


if __name__ == "__main__":
    sys.exit(main())
