"""The comparisons of torch: what counts as a miss, and that all sides are measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import torch_rules
from benchmarks.torch_rules import OPTIMIZERS, Found
from benchmarks.torch_speed import ALONE, DDP, OURS, shortfalls

ROOT = Path(__file__).resolve().parents[2]


def test_targets_are_held_against_medians_of_ratios() -> None:
    met = {OURS: [9.0, 20.0, 1.0], ALONE: [10.0, 20.0, 30.0], DDP: [9.0, 20.0, 1.0]}
    assert shortfalls(met) == []
    (missed,) = shortfalls({**met, ALONE: [10.1, 23.0, 30.0]})
    assert missed == "missed: 0.87 of the speed of alone, target 0.9"
    (missed,) = shortfalls({**met, DDP: [9.1, 20.0, 1.1]})
    assert "ddp" in missed


def test_the_default_rule_is_held_against_torch_alone() -> None:
    met = {"alone": Found(97.0, 0.1), "2 peers, mean": Found(96.0, 0.2), "4 peers, mean": Found(98.0, 0.1)}
    assert torch_rules.shortfalls({"SGD": met}) == []
    (missed,) = torch_rules.shortfalls({"SGD": {**met, "4 peers, mean": Found(95.5, 0.3)}})
    assert missed.startswith("missed: SGD, 4 peers by mean 1.5 points behind")


@pytest.mark.slow
@pytest.mark.sockets
def test_all_sides_take_turns(tmp_path: Path) -> None:
    figures = figures_of("torch_speed", tmp_path)
    assert set(figures["images_per_second"]) == {OURS, ALONE, DDP}
    assert all(len(each) == 3 and min(each) > 0 for each in figures["images_per_second"].values())
    assert set(figures["ratios"]) == {ALONE, DDP}


@pytest.mark.slow
def test_all_rules_are_tried(tmp_path: Path) -> None:
    figures = figures_of("torch_rules", tmp_path)
    assert set(figures) == set(OPTIMIZERS)
    assert all(len(found) == 1 + 2 * 5 for found in figures.values())


def figures_of(name: str, folder: Path) -> Any:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(folder / "figures")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "figures").read_text())
