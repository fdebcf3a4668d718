"""Writing: what fails is counted, the training goes on, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from gossip.marks import Counted, Mark, Unit, packed
from p2p import DeepDist, DeepDistWarning, SimulatedCluster
from p2p.adapters.model import Model
from p2p.checkpoint import reading, store
from p2p.checkpoint.record import TrainingRecord
from p2p.checkpoint.resuming import Keeping
from p2p.checkpoint.writing import Place, Writer
from p2p.driver.stopping import Stopping
from p2p.driver.watchers import Moment

from .conftest import DATA, counting

TRAINING = TrainingRecord(
    epochs=1,
    epochs_before=0,
    partitions=2,
    chunk_rows=1,
    combine=None,
    exchange="chunk",
    exchange_s=1.0,
    counters={},
)


class Calls:
    """In the place of `os`: counts what changes files, and fails at the n-th as a full disk does."""

    def __init__(self, failing: int) -> None:
        self.count = 0
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in ("open", "write", "fsync", "rename", "makedirs"):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return found(*arguments, **options)

        return call


def writer(folder: Path, model: Any, keep: int = 3, keeping: Keeping | None = None) -> Writer:
    keeping = keeping or Keeping.of_session("p2p", "replicate", None, None, 0, None)
    made = Writer(Place(path=str(folder), every_s=1.0, keep=keep), keeping, Model(model), Stopping())
    made.training = TRAINING
    return made


def moment(chunks: int) -> Moment:
    marks = packed(Mark(Unit(0, 0, chunk), 0) for chunk in range(chunks))
    return Moment(seconds=0.0, updates=chunks, partitions_done=0, partitions=2, counted=Counted(0, chunks, marks))


def test_a_disk_that_is_full_at_any_write_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCK_BYTES", 1000)
    model = {"w": np.zeros(1000), "b": np.zeros(10)}
    calls = Calls(0)
    monkeypatch.setattr(store, "os", calls)
    writer(tmp_path / "dry", model).look(model, moment(1))
    assert calls.count > 12
    for failing in range(1, calls.count + 1):
        folder = tmp_path / str(failing)
        monkeypatch.setattr(store, "os", os)
        one = writer(folder, model)
        one.look(model, moment(1))
        monkeypatch.setattr(store, "os", broken := Calls(failing))
        with pytest.warns(DeepDistWarning, match="could not be written .*No space left on device"):
            one.look({name: array + 1 for name, array in model.items()}, moment(2))
        assert broken.count >= failing
        monkeypatch.setattr(store, "os", os)
        assert (one.figures.written, one.figures.failed) == (1, 1)
        assert "No space left" in one.figures.last_error
        assert reading.read(str(folder)).record.progress.updates == 1
        assert len(list(folder.iterdir())) == 2
        one.look(model, moment(3))
        assert (one.figures.written, one.figures.failed) == (2, 1)
        assert reading.read(str(folder)).record.progress.updates == 3


def test_a_failure_is_warned_of_once(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.Folder.write

    def claims_only(self: store.Folder, name: str, blocks: Any) -> int:
        if not name.startswith("writer-"):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return write(self, name, blocks)

    monkeypatch.setattr(store.Folder, "write", claims_only)
    model = {"w": np.zeros(3)}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        report = dd.train([[1]] * 6, lambda model, rows: {"w": np.ones(3)}, checkpoint=tmp_path, every_s=0.5)
        assert (dd.model["w"] == 6.0).all()
    assert report.checkpoints is not None
    assert report.checkpoints.written == 0
    assert report.checkpoints.failed > 3
    assert "Not a directory" in report.checkpoints.last_error
    assert "failed (at last: " in report.summary()
    assert len([each for each in recwarn if each.category is DeepDistWarning]) == 1


def test_the_newest_are_kept_and_nothing_else_of_ours_is(tmp_path: Path) -> None:
    model = {"w": np.zeros(3)}
    one = writer(tmp_path, model, keep=2)
    one.look(model, moment(1))
    torn = "checkpoint-000002-0123abcd.safetensors"
    (tmp_path / f"{torn}.89abcdef.part").write_bytes(b"torn by a kill")
    (tmp_path / "checkpoint-of-mine.json").write_text("a user's own")
    for chunks in range(2, 6):
        one.look(model, moment(chunks))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if name.endswith(".json")] == [
        "checkpoint-000004.json",
        "checkpoint-000005.json",
        "checkpoint-of-mine.json",
    ]
    assert len(names) == 5
    again = writer(tmp_path, model, keeping=one._keeping)
    again.look(model, moment(6))
    assert reading.read(str(tmp_path)).record.number == 6


def test_checkpoints_of_another_training_are_not_written_over(written: Path, fresh: Any) -> None:
    with DeepDist(fresh(), engine=SimulatedCluster(peers=2), progress=False) as dd:
        with pytest.raises(UsageError, match=r"holds checkpoints of another training .* by DeepDist\.resume\(path\)"):
            dd.train(DATA, counting, checkpoint=written)
        dd.train(DATA, counting)


def test_a_place_that_cannot_be_read_at_first_is_looked_at_again_before_anything_is_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"w": np.zeros(3)}
    first = writer(tmp_path, model)
    for chunks in range(1, 6):
        first.look(model, moment(chunks))

    def gone(self: Any) -> list[str]:
        raise OSError(errno.EIO, "the file system is gone")

    monkeypatch.setattr(store.Folder, "names", gone)
    again = writer(tmp_path, model, keeping=first._keeping)
    with pytest.warns(DeepDistWarning, match="the file system is gone"):
        again.look(model, moment(6))
    monkeypatch.undo()
    again.look(model, moment(7))
    assert (again.figures.written, again.figures.failed) == (1, 1)
    assert (reading.read(str(tmp_path)).record.number, reading.read(str(tmp_path)).record.progress.updates) == (6, 7)


def test_a_file_system_that_vanishes_and_comes_back_is_written_to_again(tmp_path: Path) -> None:
    model = {"w": np.zeros(3)}
    one = writer(tmp_path / "mount", model)
    one.look(model, moment(1))
    shutil.rmtree(tmp_path / "mount")
    (tmp_path / "mount").write_text("")
    with pytest.warns(DeepDistWarning, match="could not be written"):
        one.look(model, moment(2))
    (tmp_path / "mount").unlink()
    one.look(model, moment(3))
    assert reading.read(str(tmp_path / "mount")).record.progress.updates == 3


def test_a_moment_of_which_units_are_undecided_is_passed_over_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    one = writer(tmp_path, {"w": np.zeros(3)})
    one.look({"w": np.zeros(3)}, Moment(seconds=0.0, updates=1, partitions_done=0, partitions=2))
    assert (one.figures.written, one.figures.failed) == (0, 1)
    assert "not decided" in one.figures.last_error
    assert not list(tmp_path.iterdir())
    assert not list(recwarn)
    (tmp_path / "file").write_text("")
    later = writer(tmp_path / "file", {"w": np.zeros(3)})
    later.look({"w": np.zeros(3)}, Moment(seconds=0.0, updates=1, partitions_done=0, partitions=2))
    with pytest.warns(DeepDistWarning, match="could not be written"):
        later.look({"w": np.zeros(3)}, moment(1))


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("not permitted to mount a tmpfs")
    try:
        model = {"w": np.zeros(10_000)}
        one = writer(small, model, keep=3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for chunks in range(1, 6):
                one.look(model, moment(chunks))
        assert ["No space left on device" in str(each.message) for each in caught] == [True]
        found = reading.read(str(small))
        assert found.record.progress.updates == one.figures.written
        assert one.figures.failed == 5 - one.figures.written > 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_url_is_written_by_fsspec(fresh: Any) -> None:
    url = "memory://deepdist-test/checkpoints"
    with DeepDist(fresh(), engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        report = dd.train(DATA, counting, chunk_rows=2, checkpoint=url, every_s=1.0, keep=2)
    assert report.checkpoints is not None
    assert report.checkpoints.failed == 0
    with DeepDist.resume(url, engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train(DATA, counting)
        assert (dd.model["seen"] == 1.0).all()


def test_a_url_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=r"needs a package that is not installed \(.*s3fs.*\): install it"):
        DeepDist.resume("s3://bucket/x")
