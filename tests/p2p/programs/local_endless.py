"""Trains on this machine until somebody ends it: each gradient makes the file `training` and goes on for a minute."""

import os
import time
from pathlib import Path

import numpy as np

from p2p import DeepDist

HERE = os.getcwd()


def gradient(model, rows):
    (Path(HERE) / "training").touch()
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        time.sleep(0.05)


with DeepDist({"w": np.zeros(1000)}, peers=2) as dd:
    dd.train([[1], [2], [3], [4]], gradient)
