"""The benchmark of deep belief networks: how it reads its data, what it measures, and what it calls a miss."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dbn import PEERS, SIDES, SIZES, Figures, Recipe, read, recipe, shortfalls, table, train
from p2p.models.rbm import CD, FineTuning
from p2p.models.rbm.local_steps import BLOCK_ROWS

GOOD = Figures("four peers", 1.3, 1.3, 900.0, 100.0, 1000.0, 500, 1e-6)


def test_mnist_s_files_are_read(tmp_path: Path) -> None:
    pixels = bytes(range(256)) * 49
    (tmp_path / "images").write_bytes(gzip.compress(bytes(16) + pixels))
    (tmp_path / "labels").write_bytes(gzip.compress(bytes(8) + bytes(range(16))))
    rows, labels = read(tmp_path, ("images", "labels"))
    assert rows.shape == (16, 784)
    assert rows.dtype == np.float32
    assert rows[0, :256:51].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert labels.tolist() == list(range(16))


def test_each_target_is_held_against_the_peers() -> None:
    good = {"one": GOOD, "peers": GOOD}
    assert list(shortfalls(good, False)) == []
    (far,) = shortfalls(
        {"one": replace(GOOD, test_error_percent=1.45), "peers": replace(GOOD, test_error_percent=1.41)}, False
    )
    assert "test error 1.41 % by four peers, expected at most 1.4 %" in far
    (apart,) = shortfalls({"one": replace(GOOD, test_error_percent=1.1), "peers": GOOD}, False)
    assert "0.20 points more than one process" in apart
    (slow,) = shortfalls({"one": GOOD, "peers": replace(GOOD, seconds=2800.0)}, False)
    assert "3700 seconds, expected at most 3600" in slow
    (lacking,) = shortfalls({"peers": GOOD}, False)
    assert "expected the sides one and peers" in lacking
    assert list(shortfalls(good | {"ring": replace(GOOD, seconds=100.0)}, True)) != []


def test_four_peers_differ_from_one_process_in_the_size_of_a_step_alone() -> None:
    assert recipe("one", False) == recipe("peers", False)
    assert SIDES["peers"].options["block_rows"] * PEERS == BLOCK_ROWS
    one, master = recipe("one", False), recipe("master", False)
    assert (one.epochs, one.fine_tuning_epochs) == (master.epochs, master.fine_tuning_epochs)
    assert one.fine_tuning.dropout == master.fine_tuning.dropout
    assert one != master


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["master", "peers"])
def test_a_side_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chance = np.random.default_rng(0)
    data = chance.random((200, SIZES[0]), np.float32), chance.integers(10, size=200)
    found = train(SIDES[name], *data, data, data, Recipe(1, 1, CD(), FineTuning()))
    assert found.updates == 4 * 8, "of four models by eight partitions"
    assert found.megabytes > 10
    assert 0 <= found.test_error_percent == found.other_error_percent <= 100
    assert found.seconds > found.pretraining_seconds > 0
    assert f"{found.test_error_percent:.2f}" in table([found]).splitlines()[1]
