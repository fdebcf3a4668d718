"""What the table of strategies on processes takes for equal, and that it is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import mixing_real
from benchmarks.mixing_real import (
    PEERS,
    START,
    Busy,
    Line,
    exactly,
    in_time,
    line,
    meaning,
    on_average,
    side,
    simulated,
    without_a_line,
)
from gossip import topology
from gossip.arrays import Array
from gossip.mixing import DPsgd, Every, GradientTracking, PairwiseExchange, PushSum, RelaySum

ROOT = Path(__file__).resolve().parents[2]
STARTS = np.tile(START, (PEERS, 1))
RING = topology.ring(PEERS)
BLANK = Line("DPsgd()", "ring", "one step", exact=True, trainings=1)


def of_processes(strategy: Any, graph: Any, sign: float = 1.0, seed: int = 0, start: Array = STARTS) -> Array:
    """As they would be, the peers in an order of their own."""
    return simulated(strategy, graph, start, 12, [2, 0, 3, 1], sign, seed)


def test_replicas_that_are_the_simulators_in_some_order_are_equal() -> None:
    run = of_processes(GradientTracking(), RING)
    found = exactly(BLANK, GradientTracking(), RING, run)
    assert (found.verdict, found.right, found.apart) == ("equal", True, 0.0)
    assert found.distance == found.distance_simulated > 0.0
    assert found.bias == found.bias_simulated > 0.0
    run[5, 2, 1] += 1e-8
    found = exactly(BLANK, GradientTracking(), RING, run)
    assert (found.verdict, found.right) == ("differs by 1.0e-08", False)


def test_another_order_for_each_step_is_not_equal() -> None:
    run = of_processes(DPsgd(), RING)
    run[7:] = run[7:, ::-1]
    assert not exactly(BLANK, DPsgd(), RING, run).right


def test_means_are_held_against_simulations_from_the_same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing_real, "SIMULATED", 20)
    blank = replace(BLANK, exact=False)
    graph = topology.complete(PEERS)
    runs, start = [], STARTS
    for training in range(6):
        run = of_processes(PairwiseExchange(), graph, side(training), 100 + training, start)
        runs.append((side(training), run))
        start = np.tile(run[-1].mean(axis=0), (PEERS, 1))
    found = on_average(blank, PairwiseExchange(), graph, runs)
    assert found.right, found.verdict
    agreed = [(sign, np.concatenate([run[:-1], run[-1:] * 0 + run[-1].mean(axis=0)])) for sign, run in runs]
    assert not on_average(blank, PairwiseExchange(), graph, agreed).right


def test_what_both_refuse_is_right_and_says_why() -> None:
    found = line(RelaySum(), topology.ring, 2, 1)
    assert found.right
    assert found.verdict.startswith("refused: RelaySum() does not fit: ring: 4 links between 4 peers")


def test_what_one_of_them_refuses_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing_real, "in_time", lambda *_: [(1.0, of_processes(DPsgd(), RING))])
    found = line(RelaySum(), topology.ring, 2, 1)
    assert not found.right
    assert found.verdict.startswith("wrong: only the simulator refuses: RelaySum() does not fit")


def test_a_training_that_did_not_keep_the_time_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [0.1, 0.0, 0.1, 0.0]
    monkeypatch.setattr(mixing_real, "trained", lambda *_: ((STARTS, late_s) for late_s in late))
    assert [sign for sign, _ in in_time(PushSum(), topology.ring, 2, 2)] == [side(1), side(3)]
    late = [0.1] * 4
    with pytest.raises(Busy, match=r"rows were late by 0\.012 s and more in 4 of 4 trainings"):
        in_time(PushSum(), topology.ring, 2, 1)


def test_every_strategy_has_a_line() -> None:
    lines = [
        replace(BLANK, strategy=repr(strategy), topology=build.__name__) for strategy, build in mixing_real.pairs()
    ]
    assert without_a_line(lines) == []
    assert without_a_line([each for each in lines if "DiLoCo" not in each.strategy]) == ["DiLoCo"]
    refused = [replace(each, refused="DiLoCo" in each.strategy and "no") for each in lines]
    assert without_a_line(refused) == ["DiLoCo"], "one that is always refused has not been trained"


def test_what_a_round_is_is_said() -> None:
    assert meaning(DPsgd()) == "one step"
    assert meaning(Every(3, PushSum())) == "one step, and mixes after 3"
    assert meaning(PushSum()) == "by the clock: 0.02 s after a step, else 0.05 s"


@pytest.mark.slow
@pytest.mark.sockets
def test_processes_that_track_gradients_are_the_simulators(tmp_path: Path) -> None:
    choice = ("--quick", "--only", "GradientTracking", "--check", "--json", str(tmp_path / "figures"))
    command = [sys.executable, "-m", "benchmarks.mixing_real", *choice]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads((tmp_path / "figures").read_text())
    assert [each["topology"] for each in lines] == ["ring", "complete"]
    assert all(0.0 < each["bias"] == pytest.approx(each["bias_simulated"], abs=1e-9) for each in lines)
    assert all(each["apart"] < 1e-9 for each in lines)
    assert "GradientTracking()" in done.stdout
