"""The text that word2vec is measured on, and the options that benchmarks on it have in common."""

from __future__ import annotations

import argparse
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from p2p.models.word2vec.corpus import FileRange, cuts

TEXT = "enwiki2015/enwiki2015.text8size.txt.gz"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FETCH = """expected the text {path}, found none.
It is 16.9 million words of the English Wikipedia of 2015, one paragraph a line, lower case letters only, from
https://github.com/jason-feng/wikiVisual (CC BY-SA 3.0). Any text of one paragraph a line will do. Put it, gzipped, at
    DIR/{text}
and name DIR by --data or in DEEPDIST_DATA."""


@dataclass(frozen=True)
class Sentences:
    """The lines of a text file: as lists of words, read anew each time, gensim's way to see a corpus; or in parts."""

    path: str

    def __iter__(self) -> Iterator[list[str]]:
        return map(str.split, FileRange(self.path, 0, os.path.getsize(self.path))())

    def partitions(self, count: int) -> list[FileRange]:
        """At most `count`, of about as many bytes."""
        return [FileRange(self.path, *ends) for ends in pairwise(cuts(self.path, count))]


def options(description: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with what all of them have; `quick` says what that option does."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--tokens", type=int, help="words of the text to take")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path(os.environ.get("DEEPDIST_DATA", DATA)))
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; says what to fetch if there is no text."""
    arguments = parser.parse_args()
    if not (arguments.data / TEXT).exists():
        parser.error(FETCH.format(path=arguments.data / TEXT, text=TEXT))
    return arguments


def unpack(source: Path, target: str, tokens_max: int | None) -> None:
    """Write the first `tokens_max` words of `source` to `target`, or all; whole lines."""
    tokens = 0
    with gzip.open(source, "rb") as text, open(target, "wb") as plain:
        for line in text:
            if tokens_max is not None and tokens >= tokens_max:
                break
            plain.write(line)
            tokens += len(line.split())
