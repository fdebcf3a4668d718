"""Every strategy of `gossip.mixing` on real processes, beside the vectorized simulator.

    python -m benchmarks.mixing_real [--quick] [--only TEXT] [--json FILE] [--check]

Four peers minimize a sum of quadratics. Each has a partition of its own, with another minimum and other curvatures than
the rest. A row is a local step: the gradient writes down the replica that it is given. So all four replicas are known
after each step, and not only the model in the end.

    exact        the strategy goes in step and draws nothing: all replicas after all steps are those of the simulator,
                 to 1e-9. Which place of the topology a peer has is not known before; one order of the peers must fit
                 them all. Only the first training counts: those after it begin where replicas agree to 1e-5
    on average   it goes by the clock, or draws: the means over trainings of the distance and of the bias are within
                 three standard errors of the simulator's. Where it goes by the clock, rows come by one, too, all 35 ms:
                 so a peer has one round a step. A training in which a row was late is repeated; this wants a machine
                 with four cores and little else to do. Peers that answer each other refuse while they wait for an
                 answer themselves, so it matters who speaks first: they step and speak one after the other, in an
                 order that is drawn for each step, with processes as in the simulator
    refused      the two do not fit; the simulator says so, too

The distance is the root of the mean square of a replica's distance to the mean, the bias the distance of the mean, or
of a replica (root of the mean square), to the optimum; all after the last step, before the peers come to agree. Of a
training of several, they are means.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from rich.console import Console
from rich.table import Table

import gossip.mixing
from gossip import topology
from gossip.arrays import Array
from gossip.compression import Float16, RandomK, TopK
from gossip.errors import UsageError
from gossip.mixing import (
    Choco,
    ClippedGossip,
    CombineThenAdapt,
    Compressed,
    DiLoCo,
    DPsgd,
    EpidemicLearning,
    Every,
    GradientTracking,
    NoLoCo,
    PairwiseExchange,
    PushSum,
    RelaySum,
    Strategy,
)
from gossip.mixing.peer import MixSettings
from gossip.sim.vectorized import simulate
from gossip.topology import Topology
from p2p import DeepDist
from p2p.worker import task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers know no benchmarks

APART_MAX = 1e-9
"""Between a replica and the simulator's, where nothing is left to chance."""
ERRORS_MAX = 3.0
"""Standard errors between the means, where something is."""
ERROR_MIN = 0.005
"""Standard errors are taken to be no less: a packet that comes a moment too late makes as much. From the start to the
optimum it is 1.7, and 4.4 from one to the other."""

PEERS = 4
STEPS, STEPS_QUICK = 24, 12
TRAININGS, TRAININGS_QUICK = 12, 5
"""Of a strategy whose figures are means."""
SIMULATED = 100
"""Simulations for each of them."""
TICK_S = 0.035
"""From row to row where rounds go by the clock: longer than the gap after a step, and shorter than a round without."""
TURN_S = 0.003
"""From the row of one peer to that of the next where peers answer each other: longer than an exchange takes."""
LATE_MAX_S = 0.012
"""A row that is later makes another round of it."""
TRIES = 4
"""Trainings for each that kept the time, at most."""
LEAD_S = 0.3
"""From the moment that all tasks are there to the first row."""
RATE = 0.1
MINIMA = np.array([[-3.0, 1.0, 2.0], [1.0, 4.0, -1.0], [2.0, -2.0, 0.5], [5.0, 0.0, 3.0]])
CURVATURES = np.array([[1.0, 0.5, 2.0], [2.0, 1.0, 0.5], [0.5, 1.5, 1.0], [1.5, 1.0, 1.0]])
OPTIMUM = np.sum(CURVATURES * MINIMA, axis=0) / np.sum(CURVATURES, axis=0)
START = np.arange(3.0)

Build = Callable[[int], Topology]
TOPOLOGIES: tuple[Build, ...] = (topology.ring, topology.complete)
OTHERS: dict[type, Build] = {
    EpidemicLearning: topology.random_senders,
    NoLoCo: topology.random_matching,
    RelaySum: topology.path,
}
"""What a strategy is made for, besides."""
STRATEGIES: tuple[Strategy[Any], ...] = (
    DPsgd(),
    CombineThenAdapt(),
    ClippedGossip(1.0),
    EpidemicLearning(),
    GradientTracking(),
    RelaySum(),
    Choco(),
    Compressed(TopK(0.4), Choco(0.3)),
    Compressed(RandomK(0.4), Choco(0.3)),
    DiLoCo(),
    Compressed(Float16(), DiLoCo()),
    NoLoCo(),
    Every(3, DPsgd()),
    Every(4, DiLoCo()),
    PushSum(),
    Every(3, PushSum()),
    PairwiseExchange(),
)


@dataclass(frozen=True)
class Line:
    """A strategy on a topology, with processes and simulated."""

    strategy: str
    topology: str
    round: str
    """What one is."""
    exact: bool
    trainings: int
    distance: float = 0.0
    """Of the processes, after the last step; the next two are those of the simulator's, and the error of both."""
    distance_simulated: float = 0.0
    distance_error: float = 0.0
    bias: float = 0.0
    """Of the mean."""
    bias_simulated: float = 0.0
    bias_error: float = 0.0
    replicas: float = 0.0
    """The bias of a replica."""
    replicas_simulated: float = 0.0
    apart: float = 0.0
    """Of an exact line: the largest difference to the simulator in one number. Else standard errors, the larger."""
    refused: str = ""
    """Why there is no such thing."""
    wrong: str = field(default="")
    """Anything else that was raised."""

    @property
    def verdict(self) -> str:
        if self.wrong:
            return f"wrong: {self.wrong}"
        if self.refused:
            return f"refused: {self.refused}"
        if self.exact:
            return "equal" if self.apart <= APART_MAX else f"differs by {self.apart:.1e}"
        return f"{self.apart:.1f} errors"

    @property
    def right(self) -> bool:
        if self.wrong or self.refused:
            return not self.wrong
        return self.apart <= (APART_MAX if self.exact else ERRORS_MAX)


def draws(strategy: Any) -> bool:
    """It draws random numbers of its own."""
    return "RandomK" in repr(strategy)


def meaning(strategy: Strategy[Any]) -> str:
    """What a round of it is with processes."""
    settings = MixSettings()
    if strategy.interval > 1:
        return f"one step, and mixes after {strategy.interval}"
    if strategy.by_step:
        return "one step"
    return f"by the clock: {settings.gap_s:g} s after a step, else {settings.round_s:g} s"


# ---- processes -------------------------------------------------------------------------------------------------


def steps_taken(
    model: Any, rows: Iterator[int], folder: Path, steps: int, losses: Sequence[int], sign: float
) -> dict[str, Array] | None:
    """A gradient that writes down what it is given. After the last step it only does that.

    Which of the `losses` is whose changes from one training to the next: peers keep their places on the topology.
    """
    (row,) = rows
    info = task.current()
    assert info is not None
    loss = losses[info.partition]
    with (folder / str(loss)).open("ab") as file:
        file.write(model["w"].tobytes())
    return None if row == steps else {"w": step(model["w"], loss, sign)}


def step(x: Array, loss: int | Sequence[int], sign: float) -> Array:
    """What a local step adds."""
    toward: Array = -RATE * CURVATURES[loss] * (x - sign * MINIMA[loss])
    return toward


def rows_by_the_clock(folder: Path, partition: int, tick_s: float, turns: Sequence[int]) -> Iterator[int]:
    """The rows of a partition, `tick_s` apart, from when all partitions were there; each at its place in `turns`."""
    (folder / f"there-{partition}").touch()
    while len(there := list(folder.glob("there-*"))) < PEERS:  # so each peer has one partition
        time.sleep(0.002)
    begin = max(file.stat().st_mtime for file in there) + LEAD_S
    late_s = 0.0
    for row, turn in enumerate(turns):
        if tick_s:
            due = begin + row * tick_s + turn * TURN_S
            time.sleep(max(0.0, due - time.time()))
            late_s = max(late_s, time.time() - due)
        yield row
    (folder / f"late-{partition}").write_text(str(late_s))


def trained(strategy: Strategy[Any], build: Build, steps: int, tick_s: float) -> Iterator[tuple[Array, float]]:
    """Of one training after the other: all replicas at the start and after each step, (steps + 1, peers, parameters);
    and by how much a row was late.

    The minima change sides from one training to the next, so that there is as far to go each time.
    """
    model = {"w": START.copy()}
    chance = np.random.default_rng(0)
    with DeepDist(model, discipline="mix", mixing=strategy, topology=build, peers=PEERS, progress=False) as dd:
        for training in itertools.count():
            folder = Path(tempfile.mkdtemp(prefix="mixing-real-"))
            try:
                turns = np.array([chance.permutation(PEERS) * strategy.answers for _ in range(steps + 1)])
                data = [partial(rows_by_the_clock, folder, place, tick_s, turns[:, place]) for place in range(PEERS)]
                losses = chance.permutation(PEERS).tolist()
                gradient = partial(steps_taken, folder=folder, steps=steps, losses=losses, sign=side(training))
                dd.train(data, gradient, chunk_rows=1)
                files = [np.fromfile(folder / str(place)) for place in range(PEERS)]
                late_s = max(float((folder / f"late-{place}").read_text()) for place in range(PEERS))
            finally:
                shutil.rmtree(folder)
            yield np.stack([file.reshape(steps + 1, len(START)) for file in files], axis=1), late_s


class Busy(Exception):  # noqa: N818 - what it is
    """Other work on this machine: nothing can be said."""


def in_time(strategy: Strategy[Any], build: Build, steps: int, trainings: int) -> list[tuple[float, Array]]:
    """So many trainings with the signs of their minima; by the clock only those count that kept its time.

    Raises:
        Busy: the machine does not keep up.
    """
    found: list[tuple[float, Array]] = []
    tries = 0
    with closing(trained(strategy, build, steps, 0.0 if strategy.synchronous else TICK_S)) as runs:
        for tries, (run, late_s) in enumerate(runs):
            if late_s < LATE_MAX_S:
                found.append((side(tries), run))
            if len(found) == trainings:
                return found
            if tries + 1 == TRIES * trainings:
                break
    raise Busy(f"rows were late by {LATE_MAX_S:g} s and more in {tries + 1 - len(found)} of {tries + 1} trainings")


def side(training: int) -> float:
    """The sign of all minima."""
    return -1.0 if training % 2 else 1.0


# ---- simulated -------------------------------------------------------------------------------------------------


def simulated(
    strategy: Strategy[Any], graph: Topology, start: Array, steps: int, order: Sequence[int], sign: float, seed: int = 0
) -> Array:
    """The same as `trained` of one training, where the peer at place i of the topology has the loss order[i]."""
    seen = [start]

    def observe(round: int, x: Array) -> None:
        seen.append(x.copy())

    simulate(
        graph,
        strategy,
        rounds=steps,
        seed=seed,
        start=start,
        gradient=lambda x, round: step(x, order, sign),
        in_turn=strategy.answers,
        observe=observe,
    )
    return np.stack(seen)[:, np.argsort(order)]


def figures(x: Array, sign: float) -> Array:
    """(distance, bias of the mean, bias of a replica) of the replicas x, (peers, parameters)."""
    mean = x.mean(axis=0)
    squares = (np.square(x - mean).sum(axis=1).mean(), np.square(x - sign * OPTIMUM).sum(axis=1).mean())
    return np.array([np.sqrt(squares[0]), np.linalg.norm(mean - sign * OPTIMUM), np.sqrt(squares[1])])


# ---- both ------------------------------------------------------------------------------------------------------


def line(strategy: Strategy[Any], build: Build, steps: int, trainings: int) -> Line:
    """One line of the table; what the strategy refuses, and whatever else is raised, is in it."""
    graph = build(PEERS)
    exact = strategy.synchronous and not draws(strategy)
    trainings = 1 if exact else trainings
    blank = Line(repr(strategy), graph.name, meaning(strategy), exact, trainings)
    try:
        simulated(strategy, graph, np.tile(START, (PEERS, 1)), 1, range(PEERS), 1.0)
        of_simulator = ""
    except UsageError as error:
        of_simulator = str(error)
    try:
        runs = in_time(strategy, build, steps, trainings)
    except UsageError as error:
        why = str(error)
        return Line(**{**asdict(blank), "refused" if why == of_simulator else "wrong": why})
    except Busy as error:
        return Line(**{**asdict(blank), "wrong": f"not shown, {error}"})
    except Exception as error:  # noqa: BLE001 - a line of the table
        return Line(**{**asdict(blank), "wrong": f"{type(error).__name__}: {error}"})
    if of_simulator:
        return Line(**{**asdict(blank), "wrong": f"only the simulator refuses: {of_simulator}"})
    return exactly(blank, strategy, graph, runs[0][1]) if exact else on_average(blank, strategy, graph, runs)


def exactly(blank: Line, strategy: Strategy[Any], graph: Topology, run: Array) -> Line:
    """`blank` with what one training says of a strategy that leaves nothing to chance."""
    steps = len(run) - 1
    of_orders = [simulated(strategy, graph, run[0], steps, order, 1.0) for order in orders()]
    nearest = min(of_orders, key=lambda other: float(np.abs(run - other).max()))
    ours, theirs = figures(run[-1], 1.0), figures(nearest[-1], 1.0)
    return filled(blank, ours, theirs, np.zeros(3), float(np.abs(run - nearest).max()))


def orders() -> list[list[int]]:
    """In which peers may sit on the topology."""
    return [list(order) for order in itertools.permutations(range(PEERS))]


def on_average(blank: Line, strategy: Strategy[Any], graph: Topology, runs: Sequence[tuple[float, Array]]) -> Line:
    """`blank` with what several trainings say, each held against simulations from its own start."""
    chance = np.random.default_rng(0)
    ours, theirs, variances = [], [], []
    for sign, run in runs:
        start = np.tile(run[0].mean(axis=0), (PEERS, 1))
        many = [
            figures(simulated(strategy, graph, start, len(run) - 1, chance.permutation(PEERS), sign, seed)[-1], sign)
            for seed in range(SIMULATED)
        ]
        ours.append(figures(run[-1], sign))
        theirs.append(np.mean(many, axis=0))
        variances.append(np.var(many, axis=0))
    apart = np.array(ours) - np.array(theirs)
    # a few trainings may by chance lie close together: what many simulations say of the spread holds for them as well
    of_one = np.maximum(np.var(apart, axis=0, ddof=1), np.mean(variances, axis=0))
    error = np.sqrt(of_one / len(runs) + np.mean(variances, axis=0) / (SIMULATED * len(runs)))
    errors = np.abs(apart.mean(axis=0))[:2] / np.maximum(error[:2], ERROR_MIN)
    return filled(blank, np.mean(ours, axis=0), np.mean(theirs, axis=0), error, float(errors.max()))


def filled(blank: Line, ours: Array, theirs: Array, error: Array, apart: float) -> Line:
    """`blank` with its figures."""
    found = {
        "distance": ours[0],
        "distance_simulated": theirs[0],
        "distance_error": error[0],
        "bias": ours[1],
        "bias_simulated": theirs[1],
        "bias_error": error[1],
        "replicas": ours[2],
        "replicas_simulated": theirs[2],
    }
    return Line(**{**asdict(blank), **{name: float(value) for name, value in found.items()}, "apart": apart})


def without_a_line(lines: Sequence[Line]) -> list[str]:
    """Strategies that `gossip.mixing` exports, and that no line has trained."""
    kinds = {name for name in gossip.mixing.__all__ if _is_strategy(getattr(gossip.mixing, name))}
    ran = " ".join(each.strategy for each in lines if not each.refused and not each.wrong)
    return sorted(name for name in kinds if f"{name}(" not in ran)


def _is_strategy(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strategy) and kind is not Strategy


def pairs(only: str = "") -> list[tuple[Strategy[Any], Build]]:
    """All that is to be trained."""
    found = []
    for strategy in STRATEGIES:
        if only in repr(strategy):
            builds = (*TOPOLOGIES, *([OTHERS[type(strategy)]] if type(strategy) in OTHERS else []))
            found += [(strategy, build) for build in builds]
    return found


def table(lines: Sequence[Line]) -> Table:
    """For people."""
    made = Table(title=f"{PEERS} peers: processes / simulator", title_justify="left")
    for heading in ("strategy", "topology", "a round is", "distance", "bias of the mean", "bias of a replica", ""):
        made.add_column(heading, overflow="fold")
    for each in lines:
        pairs_of = (
            (each.distance, each.distance_simulated),
            (each.bias, each.bias_simulated),
            (each.replicas, each.replicas_simulated),
        )
        shown = [""] * 3 if each.refused or each.wrong else [f"{ours:.4f} / {theirs:.4f}" for ours, theirs in pairs_of]
        made.add_row(each.strategy, each.topology, each.round, *shown, each.verdict)
    return made


def main() -> None:
    """Train all and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and trainings")
    parser.add_argument("--only", default="", help="strategies that have this text in them")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 if processes and simulator differ")
    arguments = parser.parse_args()
    steps, trainings = (STEPS_QUICK, TRAININGS_QUICK) if arguments.quick else (STEPS, TRAININGS)
    lines = []
    for strategy, build in pairs(arguments.only):
        lines.append(line(strategy, build, steps, trainings))
        print(f"{lines[-1].strategy} on {lines[-1].topology}: {lines[-1].verdict}", file=sys.stderr, flush=True)
    console = Console()
    console.width = max(console.width, 160)
    console.print(table(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in lines], indent=1))
    missed = [f"missed: {each.strategy} on {each.topology}: {each.verdict}" for each in lines if not each.right]
    if not arguments.only:
        missed += [f"missed: {name} is exported, and no line trains it" for name in without_a_line(lines)]
    if arguments.check and missed:
        print("\n".join(missed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
