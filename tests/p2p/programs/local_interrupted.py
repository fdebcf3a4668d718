"""Trains on this machine with checkpoints until Ctrl-C, and then writes down what the model is.

With SLOWLY in the environment a disk takes its time, and the file `writing` says when a second checkpoint is begun.
"""

import os
import time
from pathlib import Path

import numpy as np
from spark_context import write_results

from p2p import DeepDist
from p2p.checkpoint import store

ROWS = 400
HERE = Path.cwd()


class SlowDisk:
    """In the place of `os`."""

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, data):
        if list(HERE.glob("checkpoints/checkpoint-*.json")):
            (HERE / "writing").touch()
        time.sleep(0.05)
        return os.write(descriptor, data)


def gradient(model, rows):
    seen = np.zeros(ROWS)
    for row in rows:
        seen[row] += 1
    if seen.any():
        Path("training").touch()
    time.sleep(0.05)
    return {"seen": seen}


if __name__ == "__main__":
    slowly = "SLOWLY" in os.environ
    if slowly:
        store.os, store.BLOCK_BYTES = SlowDisk(), 256
    data = [list(range(part * 100, part * 100 + 100)) for part in range(4)]
    with DeepDist({"seen": np.zeros(ROWS)}, peers=2, progress=False) as dd:
        try:
            every_s = 0.2 if slowly else 1000.0
            dd.train(data, gradient, chunk_rows=1, checkpoint="checkpoints", every_s=every_s)
        except KeyboardInterrupt:
            write_results({"seen": dd.model["seen"].tolist()})
            raise
