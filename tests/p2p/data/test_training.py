"""Models train on what the readers read, and an error in a file comes to the driver program as it is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, SimulatedCluster
from p2p.data import read_csv, read_idx, read_libsvm, read_text
from p2p.descents import SGD
from p2p.models.linear import LogisticRegression, fit, gradient
from p2p.models.mlp import MLP
from p2p.models.mlp import fit as fit_mlp
from p2p.models.rbm import StackedRBM
from p2p.models.word2vec import train

ROWS = 300


def cluster(**options: Any) -> SimulatedCluster:
    return SimulatedCluster(peers=3, seed=1, **options)


@pytest.fixture
def rows() -> tuple[Any, Any]:
    chance = np.random.default_rng(0)
    x = np.round(chance.normal(size=(ROWS, 4)), 3)
    return x, np.where(x @ [1, -2, 3, 0] + 0.3 * chance.normal(size=ROWS) > 0, 1, 0)


@pytest.fixture
def libsvm(tmp_path: Path, rows: tuple[Any, Any]) -> str:
    lines = [
        " ".join([str(label), *(f"{index + 1}:{value!r}" for index, value in enumerate(row.tolist()))])
        for row, label in zip(*rows, strict=True)
    ]
    (tmp_path / "rows.libsvm").write_text("\n".join(lines))
    return str(tmp_path / "rows.libsvm")


@pytest.fixture
def csv(tmp_path: Path, rows: tuple[Any, Any]) -> str:
    np.savetxt(tmp_path / "rows.csv", np.column_stack(rows), "%g", ",", header="a,b,c,d,y", comments="")
    return str(tmp_path / "rows.csv")


def in_memory(data: list[Any]) -> list[list[Any]]:
    return [list(part()) for part in data]


def test_a_linear_model_is_the_same_as_that_of_the_arrays(libsvm: str, csv: str, rows: tuple[Any, Any]) -> None:
    x, y = rows[0].astype(np.float32), rows[1]
    weights = []
    for data in (read_libsvm(libsvm, partitions=5), read_csv(csv, "y", partitions=5, block_rows=50), [[(x, y)]]):
        model = LogisticRegression(4, l2=0.01)
        assert fit(model, data, engine=cluster()).rows % ROWS == 0
        weights.append(model.weights)
    np.testing.assert_allclose(weights[0], weights[2], rtol=1e-4)
    np.testing.assert_allclose(weights[1], weights[2], rtol=1e-4)


def test_a_linear_model_is_fitted_by_url(libsvm: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/test_training/rows", Path(libsvm).read_bytes())
    model = LogisticRegression(4)
    assert fit(model, read_libsvm("memory://test_training/rows", partitions=3), engine=cluster()).rows % ROWS == 0
    memory.rm("/test_training", recursive=True)


def test_a_network_is_trained_on_blocks_as_on_those_in_memory(csv: str, rows: tuple[Any, Any]) -> None:
    data = read_csv(csv, "y", classes=2, block_rows=20, partitions=3)
    weights = []
    for each in (data, in_memory(data)):
        model = MLP(4, (8,), classes=2)
        start = model.accuracy(*rows)
        assert fit_mlp(model, each, chunk_rows=1, epochs=2, engine=cluster()).rows == 2 * ROWS
        assert model.accuracy(*rows) > start
        weights.append(model.w0)
    np.testing.assert_array_equal(*weights)


def test_a_stack_is_trained_on_pictures_as_on_those_in_memory(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(3, size=240, dtype=np.uint8)
    pictures = (chance.random((240, 3, 3)) < np.where(np.arange(3) == labels[:, None], 0.9, 0.1)[:, :, None]) * 255
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pictures.shape)
    (tmp_path / "x").write_bytes(header + pictures.astype(np.uint8).tobytes())
    (tmp_path / "y").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 240) + labels.tobytes())
    data = read_idx(tmp_path / "x", tmp_path / "y", classes=3, partitions=4)
    held_out = (pictures.reshape(240, 9) / 255, labels)
    weights = []
    for each in (data, in_memory(data)):
        stack = StackedRBM([9, 8])
        fitted = stack.fit(each, classes=3, engine=cluster(), epochs=2, fine_tuning_epochs=2, held_out=held_out)
        assert fitted.pretraining[0].rows == 480
        weights.append(fitted.network.weights[0])
    np.testing.assert_array_equal(*weights)


def test_word_vectors_are_trained_on_lines(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the cat sat on the mat\n" * 200)
    reports: list[Any] = []
    data = read_text(tmp_path / "text", partitions=3)
    model = train(data, engine=cluster(), vector_size=8, sg=1, epochs=1, on_report=reports.append)
    assert (model.corpus_count, model.corpus_total_words, len(model.wv)) == (200, 1200, 5)
    assert reports[0].rows == 200


def count_rows(model: dict[str, Any], blocks: Any) -> dict[str, Any]:
    return {"rows": np.array([float(sum(len(y) for _, y in blocks))])}


def add(model: dict[str, Any], update: dict[str, Any]) -> None:
    model["rows"] += update["rows"]


def test_each_row_counts_once_when_tasks_are_tried_again(libsvm: str) -> None:
    begun: list[int] = []

    def counted(part: Any) -> Any:
        return lambda: begun.append(1) or part()  # type: ignore[func-returns-value]

    model = {"rows": np.zeros(1)}
    data = [counted(part) for part in read_libsvm(libsvm, 4, partitions=6, block_rows=10)]
    with DeepDist(model, engine=cluster(fail=0.5)) as dd:
        dd.train(data, count_rows, add, chunk_rows=1)
    assert len(begun) > 6
    assert model["rows"][0] == ROWS


class Last:
    """The last look at a training."""

    every_s = 60.0
    moment: Any = None

    def look(self, model: Any, moment: Any) -> None:
        self.moment = moment


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_processes_tell_a_damaged_line_as_it_is_and_count_empty_partitions(libsvm: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1 1:1" + " " * 100)
    empty = read_libsvm(tmp_path / "one", 4, partitions=4)[1:]
    assert in_memory(empty) == [[], [], []]
    last = Last()
    with DeepDist(LogisticRegression(4), peers=2, progress=False) as dd:
        data = read_libsvm(libsvm, 4, partitions=6)
        report = dd.train([*data, *empty], gradient, SGD(0.1), watchers=[last])
        assert report.rows == ROWS
        assert (last.moment.partitions_done, last.moment.partitions) == (9, 9)
        content = Path(libsvm).read_text()
        Path(libsvm).write_text(content[:-3] + "x" * 3)
        with pytest.raises(
            UsageError, match=rf"rows\.libsvm', line {ROWS} \(byte \d+\): feature 4 is '.*xxx', expected"
        ):
            dd.train(data, gradient, SGD(0.1))
