"""Trains on this machine with checkpoints until Ctrl-C, and then writes down what the model is."""

import time
from pathlib import Path

import numpy as np
from spark_context import write_results

from p2p import DeepDist

ROWS = 400


def gradient(model, rows):
    seen = np.zeros(ROWS)
    for row in rows:
        seen[row] += 1
    if seen.any():
        Path("training").touch()
    time.sleep(0.05)
    return {"seen": seen}


if __name__ == "__main__":
    data = [list(range(part * 100, part * 100 + 100)) for part in range(4)]
    with DeepDist({"seen": np.zeros(ROWS)}, peers=2, progress=False) as dd:
        try:
            dd.train(data, gradient, chunk_rows=1, checkpoint="checkpoints", every_s=1000.0)
        except KeyboardInterrupt:
            write_results({"seen": dd.model["seen"].tolist()})
            raise
