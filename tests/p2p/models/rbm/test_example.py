"""The example trains a stack by two processes, by exchanges at the end of each partition."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "dbn.py"


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_the_example_tells_new_pictures_right() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (right,) = re.findall(r"([\d.]+)% of new pictures told right", done.stdout)
    assert float(right) > 90
    assert re.findall(r"(\d+) updates", done.stdout) == ["80", "80", "200"], "one of each partition in each pass"
