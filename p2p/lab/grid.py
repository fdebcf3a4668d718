"""A grid to sweep: every combination of its values is one case, and one row of the result."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from gossip import topology
from gossip.errors import UsageError
from gossip.mixing import Strategy
from gossip.sim.vectorized import simulate
from gossip.topology import Topology
from p2p.lab import strategies
from p2p.lab.strategies import codec_named, compressed, strategy_named

PEERS_MAX = 100_000
"""Of one case: 100 parameters of so many peers take 80 MB a copy."""
TRIED_MAX = 64
"""How far from the wanted number of peers a number is looked for that a topology can have."""


@dataclass(frozen=True)
class Case:
    """One row's settings."""

    algorithm: str
    topology: str
    peers: int
    compression: str = "none"
    loss: float = 0.0
    """Probability that a packet never arrives."""
    delay: int = 0
    """A packet takes 0 to this many rounds more."""
    staleness: int = 0
    """A training step sees the parameters of this many rounds ago."""
    churn: float = 0.0
    """Probability that a peer is absent in a round."""
    crash: float = 0.0
    """Share of the peers that is gone for good after some rounds; at least one peer if above 0."""
    rate: float | None = None
    """Learning rate, where a model is trained."""

    def strategy(self) -> Strategy[Any]:
        """The algorithm with its compression."""
        return compressed(strategy_named(self.algorithm, self.peers), codec_named(self.compression))

    def graph(self, seed: int) -> Topology:
        """The topology, drawn with `seed` where it is random."""
        return named_topology(self.topology, self.peers, seed)

    @property
    def is_ideal(self) -> bool:
        """Nothing is lost, late, absent or compressed."""
        return self == Case(self.algorithm, self.topology, self.peers)

    def check(self, seed: int, *, is_same_start: bool = False) -> None:
        """Raise `UsageError` if it cannot run; the text names the case. `is_same_start` if all peers begin alike."""
        if not 0.0 <= self.crash < 1.0:
            raise UsageError(f"crash {self.crash:g}, expected a share from 0 to less than 1")
        if self.peers > PEERS_MAX:
            raise UsageError(f"{self.peers} peers, expected at most {PEERS_MAX}")
        try:
            strategy = self.strategy()
            strategy.check_network(crash=self.crash)
            start = np.zeros((self.peers, 1)) if is_same_start else None
            simulate(self.graph(seed), strategy, rounds=0, start=start, **self.faults())
        except UsageError as error:
            raise UsageError(f"{error} (asked for: {self})") from None

    def faults(self) -> dict[str, Any]:
        """What `simulate` is to do wrong."""
        return {"loss": self.loss, "delay": self.delay, "staleness": self.staleness, "churn": self.churn}

    def __str__(self) -> str:
        shown = [f"{self.algorithm} on {self.topology} of {self.peers} peers"]
        for each in fields(self)[3:]:
            value = getattr(self, each.name)
            if value != each.default and value is not None:
                shown.append(f"{each.name} {value:g}" if not isinstance(value, str) else f"{each.name} {value}")
        return ", ".join(shown)


@dataclass(frozen=True)
class Grid:
    """The values of each setting; the last one changes fastest."""

    algorithm: tuple[str, ...] = ("DPsgd()",)
    topology: tuple[str, ...] = ("ring",)
    peers: tuple[int, ...] = (16,)
    compression: tuple[str, ...] = ("none",)
    loss: tuple[float, ...] = (0.0,)
    delay: tuple[int, ...] = (0,)
    staleness: tuple[int, ...] = (0,)
    churn: tuple[float, ...] = (0.0,)
    crash: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        for each in fields(self):
            values = getattr(self, each.name)
            if not values:
                raise UsageError(f"no value for {each.name}, expected at least one")
            repeated = [value for at, value in enumerate(values) if value in values[:at]]
            if repeated:
                raise UsageError(f"{each.name} {repeated[0]} is given twice, expected each value once")

    def cases(self) -> list[Case]:
        """Every combination, in the order of the fields."""
        return [Case(*values) for values in itertools.product(*asdict(self).values())]

    def checked(
        self, seeds: Sequence[int], *, skip: bool = False, is_same_start: bool = False
    ) -> tuple[list[Case], list[str]]:
        """(the cases that can run with all `seeds`, why the others cannot).

        Raises:
            UsageError: a case cannot run and `skip` is false, or none can.
        """
        possible, refused = [], []
        for case in self.cases():
            try:
                for seed in seeds:
                    case.check(seed, is_same_start=is_same_start)
                possible.append(case)
            except UsageError as error:
                if not skip:
                    raise
                refused.append(str(error))
        if not possible:
            raise UsageError(f"none of the {len(refused)} combinations can run; the first: {refused[0]}")
        return possible, refused


def canonical(grid: Grid) -> Grid:
    """`grid` with algorithms and codecs as they print: "dpsgd" and "DPsgd()" are one and the same."""
    return replace(
        grid,
        algorithm=tuple(strategies.canonical(text) for text in grid.algorithm),
        compression=tuple(strategies.canonical(text) for text in grid.compression),
    )


def named_topology(name: str, peers: int, seed: int) -> Topology:
    """The topology of that name, drawn with `seed` where it is random.

    Raises:
        UsageError: no such topology, or not for this many peers; then the nearest numbers are named that work.
    """
    try:
        is_drawn = name in topology.NAMES and "seed" in inspect.signature(topology.NAMES[name]).parameters
        return topology.named(name, peers, **({"seed": seed} if is_drawn else {}))
    except UsageError as error:
        if name not in topology.NAMES:
            raise
        below = _first(range(peers - 1, max(1, peers - TRIED_MAX), -1), lambda count: topology.named(name, count))
        above = _first(range(max(2, peers + 1), peers + TRIED_MAX), lambda count: topology.named(name, count))
        works = " or ".join(str(count) for count in (below, above) if count is not None)
        raise UsageError(f"{error}" + (f" ({name} works with {works} peers)" if works else "")) from None


def _first(counts: Sequence[int], attempt: Callable[[int], object]) -> int | None:
    for count in counts:
        try:
            attempt(count)
        except UsageError:
            continue
        return count
    return None


def split(text: str) -> Iterator[str]:
    """The values of a comma list; commas within parentheses belong to the value.

    >>> list(split("dpsgd, Every(4, DPsgd())"))
    ['dpsgd', 'Every(4, DPsgd())']
    """
    depth, value = 0, ""
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            yield value.strip()
            value = ""
        else:
            value += letter
    yield value.strip()
