"""The example trains by two processes and tells the classes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "linear.py"


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.long
def test_the_example_tells_new_people_right() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (right,) = re.findall(r"([\d.]+)% of new people told right", done.stdout)
    assert float(right) > 80
    rows = re.findall(r"(\d+) rows in", done.stdout)
    assert int(rows[0]) % 32_000 == 0


@pytest.mark.slow
@pytest.mark.sockets
def test_the_example_reads_a_file(place: Any) -> None:
    rows = [f"{label} {1 if label > 0 else 2}:1 3:{value}" for label, value in [(1, 0.5), (-1, 2)] * 50]
    (place.folder / "rows").write_text("\n".join(rows))
    url = f"file://{place.folder}/rows"
    done = subprocess.run([sys.executable, str(EXAMPLE), "--input", url], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "100.0% of these rows told right" in done.stdout
