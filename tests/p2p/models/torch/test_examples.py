"""The examples of torch modules, as programs: peers end where torch alone ends with the same work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]


def run(place: Any, name: str) -> str:
    environment = {**os.environ, **place.environment, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(
        command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.sockets
def test_a_network_of_convolutions_is_right_as_often(place: Any) -> None:
    output = run(place, "torch_convnet.py")
    alone, peers = map(float, re.findall(r"([\d.]+)% of new images right", output))
    assert alone > 95, output
    assert peers > alone - 2, output


@pytest.mark.slow
@pytest.mark.sockets
def test_sequences_are_reversed_as_well(place: Any) -> None:
    output = run(place, "torch_seq2seq.py")
    alone, peers = map(float, re.findall(r"loss ([\d.]+) on new", output))
    assert alone < 0.55, output
    assert peers < 1.1 * alone, output
