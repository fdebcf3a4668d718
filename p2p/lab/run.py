"""One case through the vectorized simulator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gossip.arrays import Array
from gossip.sim.vectorized import Gradient, Result, simulate, without
from gossip.topology import Floats, Needs, Topology
from p2p.lab.grid import Case
from p2p.lab.recording import Parts, Recorder, histogram
from p2p.lab.results import Row, Step
from p2p.lab.sweep import Tick

LATE = 0.25
"""The share of the rounds, the last ones, over which what a training comes to is averaged."""


@dataclass(frozen=True)
class Run:
    """What one case came to."""

    result: Result
    steps: list[Step]
    """One per round, that before the first one first."""
    topology: Topology
    blank: str = ""
    """Why bias and mass error are left out."""

    def late(self, name: str, *, is_square: bool = False) -> float | None:
        """The mean of what was recorded in the last quarter of the rounds (of squares, its root); None if nothing was.

        The last round alone is as noisy as the training.
        """
        begin = self.steps[-1]["round"] * (1.0 - LATE)
        values = [step[name] for step in self.steps if step["round"] > begin and step.get(name) is not None]
        if not values:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.sqrt(np.mean(np.square(values))) if is_square else np.mean(values))

    def row(self, case: Case) -> Row:
        """The case's settings, and what all experiments say of it."""
        last = self.steps[-1]
        links = sum(record.links for record in self.result.records)
        return {
            **vars(case),
            "distance": last["distance"],
            "mean_distance": self.late("distance", is_square=True),
            "optimum_distance": self.late("optimum_distance", is_square=True),
            "optimum_bias": self.late("optimum_bias", is_square=True),
            "bias": last["bias"],
            "mass_error": last["mass_error"],
            "weight_error": last["weight_error"],
            "bytes_per_edge": sum(record.nbytes for record in self.result.records) / links if links else 0.0,
            "staleness_histogram": histogram(self.result.staleness),
            **({"blank": self.blank} if self.blank else {}),
        }


def run(
    case: Case,
    rounds: int,
    seed: int,
    start: Array,
    tick: Tick,
    *,
    crash_after: int,
    gradient: Gradient | None = None,
    parts: Parts | None = None,
    loss: Callable[[Floats], float] | None = None,
    loss_rounds: Callable[[int], bool] = lambda round: True,
    optimum: Floats | None = None,
) -> Run:
    """Simulate `case` from `start`, (peers, parameters), and record every round."""
    graph, parts = case.graph(seed), parts if parts is not None else Parts()
    strategy = case.strategy()
    crash = Crash.of(case, crash_after, seed)
    blank = strategy.says_nothing(gradient is not None)
    recorder = Recorder(
        case.peers, parts, loss, lambda number: loss_rounds(number + 1), crash.gone, optimum, bool(blank)
    )

    def observe(round: int, x: Array) -> None:
        recorder.observe(round, x)
        tick()

    recorder.observe(-1, strategy.params(strategy.start(start)))
    with np.errstate(over="ignore", invalid="ignore"):  # what diverges is shown as such
        result = simulate(
            crash.topology(graph, strategy.needs),
            strategy,
            rounds=rounds,
            seed=seed,
            start=start,
            gradient=None if gradient is None else crash.gradient(gradient),
            check=False,  # done before the sweep began, on the topology without crashes
            observe=observe,
            **case.faults(),
        )
        return Run(result, recorder.steps((result.start, *result.records)), graph, blank)


@dataclass(frozen=True)
class Crash:
    """Peers that are gone for good from a round on, without a word."""

    peers: np.ndarray
    """(peers,) whether each of them will be gone."""
    round: int
    """The first round without them."""

    @staticmethod
    def of(case: Case, after: int, seed: int) -> Crash:
        """The share that `case` says, drawn with `seed`, after `after` rounds."""
        peers = np.zeros(case.peers, bool)
        count = math.ceil(case.crash * case.peers) if case.crash else 0
        peers[np.random.default_rng([seed, 2]).permutation(case.peers)[: min(count, case.peers - 1)]] = True
        return Crash(peers, after)

    def gone(self, round: int) -> np.ndarray | None:
        """(peers,) who is gone in `round`; None if nobody is."""
        return self.peers if round >= self.round and self.peers.any() else None

    def topology(self, graph: Topology, needs: Needs) -> Topology:
        """`graph` without the links of those who are gone."""
        if not self.peers.any():
            return graph

        def weights(round: int):  # type: ignore[no-untyped-def]
            matrix = graph.weights(round)
            return without(matrix, self.peers, needs) if round >= self.round else matrix

        return replace(graph, period=None, weights=weights)

    def gradient(self, gradient: Gradient) -> Gradient:
        """`gradient` of those who are there."""
        if not self.peers.any():
            return gradient

        def of_the_living(x: Array, round: int) -> Array:
            delta = gradient(x, round)
            return delta * ~self.peers[:, None] if round >= self.round else delta

        return of_the_living
