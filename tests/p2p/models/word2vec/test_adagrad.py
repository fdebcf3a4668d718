"""The example with AdaGrad learns, tells how it goes, and draws it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "word2vec_adagrad.py"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_the_example_learns_and_draws_its_curve(tmp_path: Path) -> None:
    plot = tmp_path / "curve.svg"
    small = ["--epochs", "2", "--size", "16", "--peers", "2", "--rate", "0.4", "--evaluate-every-s", "0.5"]
    command = [sys.executable, str(EXAMPLE), *small, "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "too small to learn analogies" in done.stdout
    curve = [tuple(map(float, point)) for point in re.findall(r"(\d+) updates: neighbors ([\d.]+), ana", done.stdout)]
    assert len(curve) > 2, "at the beginning, meanwhile, and at the end"
    assert curve[0][0] < curve[-1][0]
    assert [updates for updates, _ in curve] == sorted(updates for updates, _ in curve)
    assert curve[-1][1] > 0.56
    assert "<svg" in plot.read_text()
