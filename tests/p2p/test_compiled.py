"""Compiled functions where files cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from p2p.compiled import compiled

@compiled(any_order=True)
def total(numbers):
    result = 0.0
    for number in numbers:
        result += number
    return result

import numpy
print(total(numpy.arange(10.0)))
"""

CANNOT_CACHE = """
import numba
try:
    numba.njit(total.__wrapped__, cache=True)
except RuntimeError:
    print("cannot cache")
"""


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_function_works_where_there_is_no_file_to_keep_it_in() -> None:
    assert run("-c", PROGRAM) == "45.0\n"  # a program on the command line has no file


def test_a_function_works_where_no_directory_can_be_written(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + CANNOT_CACHE)
    (tmp_path / "__pycache__").write_text("a file where numba wants a directory; root would be let into any other")
    assert run(str(program), HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere") == "45.0\ncannot cache\n"
