"""The example trains a stack by two processes, by exchanges at the end of each partition."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[4] / "examples" / "dbn.py"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_the_example_tells_new_pictures_right() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (right,) = re.findall(r"([\d.]+)% of new pictures told right", done.stdout)
    assert float(right) > 90
    assert re.findall(r"(\d+) updates", done.stdout) == ["80", "80", "200"], "one of each partition in each pass"


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.long
def test_the_example_reads_files(place: Any) -> None:
    labels = np.random.default_rng(0).integers(10, size=900, dtype=np.uint8)
    pictures = (255 * (np.arange(10) == labels[:, None])).astype(np.uint8).repeat(4, axis=1)
    (place.folder / "x").write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 900, 8, 5) + pictures.tobytes())
    (place.folder / "y").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 900) + labels.tobytes())
    files = ["--input", f"file://{place.folder}/x", "--labels", str(place.folder / "y")]
    done = subprocess.run([sys.executable, str(EXAMPLE), *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (right,) = re.findall(r"([\d.]+)% of new pictures told right", done.stdout)
    assert float(right) > 90
