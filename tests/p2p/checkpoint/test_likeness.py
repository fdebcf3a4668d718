"""Other data is noticed when a checkpoint is gone on with, and the same data is not taken for other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p import DeepDist, DeepDistWarning, SimulatedCluster
from p2p.checkpoint.likeness import LENGTH_MAX, first_other, of_data
from p2p.data import read_csv, read_text

from .conftest import DATA, counting

SOME: list[Any] = [np.arange(4.0), "text", b"bytes", 1, 2.5, None, True, (np.ones((2, 2)), [1]), {"x": np.zeros(2)}]


def go_on(path: Any, data: Any) -> None:
    with DeepDist.resume(path, engine=SimulatedCluster(peers=2), progress=False) as dd:
        dd.train(data, counting)


@pytest.mark.parametrize("change", ["another row", "another order", "one row more", "another partition"])
def test_other_data_is_told_when_a_checkpoint_is_gone_on_with(written: Path, change: str) -> None:
    data = [list(partition) for partition in DATA]
    if change == "another row":
        data[2][0] = 0
    elif change == "another order":
        data[2].reverse()
    elif change == "one row more":
        data[2].append(data[2][-1])
    else:
        data[2] = data[3]
    with pytest.warns(DeepDistWarning, match="partition 2 of the data has other rows than in the checkpoint at"):
        go_on(written, data)


def test_the_same_data_is_the_same(written: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on(written, [list(partition) for partition in DATA])
        go_on(written, [lambda rows=partition: rows for partition in DATA])  # what these return nobody has seen


@pytest.mark.parametrize("row", SOME, ids=lambda row: type(row).__name__)
def test_rows_of_every_kind_are_told_apart(row: Any) -> None:
    mine = of_data([[row, row]])
    assert mine == of_data([[row, row]]) == of_data([(row, row)])
    assert [len(digest) for _, digest in mine] == [16]
    others = [other for other in [*SOME, np.arange(4.0) + 1, "texts", 2] if other is not row]
    assert all(of_data([[other, row]]) != mine != of_data([[row, other]]) for other in others)
    assert of_data([[row] * 3]) != mine


def test_the_beginning_of_a_large_row_is_enough() -> None:
    large = np.zeros(10 * LENGTH_MAX)
    changed = large.copy()
    changed[LENGTH_MAX - 1] = 1
    assert of_data([[large]]) != of_data([[changed]])
    assert of_data([[large]]) != of_data([[large.astype(np.float32)]])


def test_some_of_many_partitions_are_looked_at() -> None:
    many = [[index] for index in range(1000)]
    found = of_data(many)
    assert (found[0][0], found[-1][0], len(found)) == (0, 999, 64)
    assert first_other(found, of_data([*many[:-1], [0]])) == 999
    assert first_other(found, of_data(many)) is None
    assert of_data([[1]]) == of_data([[1]]) != of_data([[]])


def test_partitions_of_readers_are_told_by_their_files(tmp_path: Path) -> None:
    for folder, text in (("a", "1,2\n"), ("b", "1,2\n"), ("c", "1,2\n3,4\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text(text)
    a, b, c = (
        of_data(read_csv(str(tmp_path / folder / "x.csv"), None, header=False, partitions=1)) for folder in "abc"
    )
    assert a == b != c, "the same file elsewhere is the same"
    texts = [of_data(read_text(str(tmp_path / folder / "x.csv"), partitions=1)) for folder in "ac"]
    assert texts[0] != texts[1]


class Context:
    """Of Spark, as far as a reader needs it."""

    defaultParallelism = 2  # noqa: N815 - PySpark's, as the next
    parallelize = flatMap = lambda self, *args: self  # noqa: N815


def test_an_rdd_of_a_reader_looks_as_its_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2p.engines.spark.check_runs", lambda sc: None)
    (tmp_path / "x.csv").write_text("1,2\n")
    options: dict[str, Any] = {"label": None, "header": False, "partitions": 1}
    path = str(tmp_path / "x.csv")
    assert of_data(read_csv(path, sc=Context(), **options)) == of_data(read_csv(path, **options)) != ()


class Rdd:
    def __init__(self, *files: str) -> None:
        self.files = files

    def toDebugString(self) -> bytes:  # noqa: N802 - PySpark's
        lines = [
            "(2) PythonRDD[4] at RDD at PythonRDD.scala:58 []",
            *(f" |  {name} MapPartitionsRDD[3] at textFile at <unknown>:0 []" for name in self.files),
            *(f" +-(2) {name} HadoopRDD[2] at textFile at <unknown>:0 []" for name in self.files),
        ]
        return "\n".join(lines).encode()


def test_an_rdd_is_told_by_the_files_that_it_names() -> None:
    assert of_data(Rdd("/x/a.txt")) == of_data(Rdd("/x/a.txt")) != of_data(Rdd("/x/b c.txt"))
    assert first_other(of_data(Rdd("/x/a")), of_data(Rdd("/x/b"))) == -1
    assert of_data(Rdd()) == ()
    assert first_other((), of_data(Rdd("/x/a"))) is None
