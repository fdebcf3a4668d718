"""Runs other programs of this folder one after the other, as cells of a notebook: in one process, and so on one JVM.

Each line of input names one and the file for its results. A program that fails ends this one.
"""

import runpy
import sys
from pathlib import Path

for line in sys.stdin:
    name, results = line.split()
    sys.argv = [name, results]
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")), run_name="__main__")
    Path(f"{results}.done").touch()
