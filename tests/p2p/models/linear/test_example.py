"""The example trains by two processes and tells the classes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "linear.py"


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_the_example_tells_new_people_right() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (right,) = re.findall(r"([\d.]+)% of new people told right", done.stdout)
    assert float(right) > 80
    rows = re.findall(r"(\d+) rows in", done.stdout)
    assert int(rows[0]) % 32_000 == 0
