"""Some frames that nobody honest sends, and peers that hear anything: a short run of `make fuzz`, always the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_no_frame_and_no_message_raises_or_takes_much_memory(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / ".ci" / "fuzz.py"), "--frames", "20000", "--seed", "1", "--slow-ms", "5000"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "each invariant held after each" in done.stdout
    assert not list(tmp_path.iterdir())
