"""Claims: two programs that write checkpoints to one place notice each other, and a place is tried beforehand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, DeepDistWarning, SimulatedCluster
from p2p.checkpoint import claims, reading
from p2p.checkpoint.claims import Claim, Claims
from p2p.checkpoint.store import Folder, store_at

from .conftest import DATA, counting
from .test_writing import moment, writer


def train(fresh: Any, where: Any, gradient: Any = counting) -> Any:
    with DeepDist(fresh(), engine=SimulatedCluster(peers=2, seed=1), progress=False) as dd:
        dd.train(DATA, gradient, checkpoint=where, every_s=1.0)
    return dd.model


def claim(**changes: Any) -> Claim:
    mine: dict[str, Any] = {
        "lineage": "another",
        "host": "elsewhere",
        "machine": "another boot",
        "pid": 7,
        "process": "1",
        "program": "other.py",
        "began": time.time(),
        "every_s": 1.0,
    }
    return Claim(**mine | changes)


def leave(folder: Any, of: Claim, token: str = "0123abcd") -> Path:
    Path(folder).mkdir(exist_ok=True)
    path = Path(folder) / f"writer-{token}.json"
    path.write_bytes(msgspec.json.encode(of))
    return path


def here(pid: int) -> dict[str, Any]:
    """Of a process of this machine."""
    return {"machine": claims._machine(), "pid": pid, "process": claims._process(pid) or "gone"}


# ----------------------------------------------------------------------------------------------- a place that cannot be


def never(model: Any, rows: Any) -> Any:
    raise AssertionError("the training has begun")


@pytest.mark.parametrize("below", ["", "/folder", "/folder/within"])
def test_a_file_in_the_way_is_told_before_the_training(tmp_path: Path, fresh: Any, below: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"file.*' cannot be written to \(.*\), expected a folder or a URL"):
        train(fresh, f"{tmp_path}/file{below}", never)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_folder_that_may_not_be_written_to_is_told_before_the_training(tmp_path: Path, fresh: Any) -> None:
    """In a process without the rights of the system's administrator, who may write anywhere."""
    program = (
        "import os\n"
        "from gossip.errors import UsageError\n"
        "from p2p.checkpoint.claims import Claims\n"
        "from p2p.checkpoint.store import store_at\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: Claims(store_at('.'), '.', 'x', 1.0).take(0.0)\n"
        "except UsageError as error: print(error)\n"
    )
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    found = subprocess.run([sys.executable, "-c", program], cwd=locked, capture_output=True, text=True, timeout=60)
    assert "cannot be written to (PermissionError" in found.stdout, found.stderr


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere://bucket/x", r"which fsspec does not open: .*nowhere"),
        ("s3://bucket/x", r"needs a package that is not installed \(.*s3fs"),
    ],
)
def test_an_address_that_is_not_known_is_told_before_the_training(
    fresh: Any, where: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UsageError, match=message):
        train(fresh, where, never)


def test_nothing_but_checkpoints_is_left(tmp_path: Path, fresh: Any) -> None:
    train(fresh, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert not list(tmp_path.glob("writer-*"))
    with pytest.raises(AssertionError):
        train(fresh, tmp_path / "new", never)
    assert not list((tmp_path / "new").glob("writer-*"))


# ----------------------------------------------------------------------------------------------------- two at one place


def test_a_second_program_at_one_place_is_refused_while_the_first_one_trains(tmp_path: Path, fresh: Any) -> None:
    seen: list[str] = []

    def gradient(model: Any, rows: Any) -> Any:
        if not seen:
            with pytest.raises(UsageError) as raised:
                train(fresh, tmp_path, never)
            seen.append(str(raised.value))
        return counting(model, rows)

    assert (train(fresh, tmp_path, gradient)["seen"] == 1.0).all()
    assert f"(process {os.getpid()} on " in seen[0]
    assert "choose another, or end that program and go on by DeepDist.resume(path)" in seen[0]


def test_two_cannot_go_on_with_the_same_checkpoints(tmp_path: Path, written: Path, fresh: Any) -> None:
    shutil.copytree(written, tmp_path / "run")
    leave(tmp_path / "run", claim(lineage=reading.read(str(written)).record.lineage, **here(os.getppid())))
    with DeepDist.resume(tmp_path / "run", engine=SimulatedCluster(peers=2), progress=False) as dd:
        with pytest.raises(UsageError, match="expected a place that no other program writes to"):
            dd.train(DATA, counting, checkpoint=tmp_path / "run")
        dd.train(DATA, counting, checkpoint=tmp_path / "elsewhere")


def test_a_program_that_was_killed_holds_up_nobody(tmp_path: Path, fresh: Any) -> None:
    program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    living = leave(tmp_path, claim(**here(program.pid)))
    try:
        with pytest.raises(UsageError, match="expected a place that no other program writes to"):
            train(fresh, tmp_path, never)
        program.kill()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)  # it is there, and has ended
        assert (train(fresh, tmp_path)["seen"] == 1.0).all()
    finally:
        program.kill()
        program.communicate()
    assert not living.exists()


def test_a_process_of_the_same_number_is_another_one(tmp_path: Path, fresh: Any) -> None:
    leave(tmp_path, claim(**here(os.getpid()) | {"process": "an earlier one"}))
    train(fresh, tmp_path)


def test_of_two_that_begin_at_once_neither_trains(tmp_path: Path) -> None:
    one, other = (Claims(store_at(str(tmp_path)), str(tmp_path), lineage, 1.0) for lineage in "ab")
    one._write(())
    with pytest.raises(UsageError, match="no other program"):
        other.take(0.0)
    other._write(())
    with pytest.raises(UsageError, match="no other program"):
        one.take(0.0)
    other.give_back()
    one.take(0.0)


def test_a_program_of_another_machine_counts_as_long_as_it_may_live(tmp_path: Path, fresh: Any) -> None:
    leave(tmp_path, claim())
    with pytest.raises(UsageError, match=r"other\.py \(process 7 on elsewhere"):
        train(fresh, tmp_path, never)
    gone = leave(tmp_path, claim(began=time.time() - 120))
    train(fresh, tmp_path)
    assert not gone.exists()


def test_who_goes_on_with_the_checkpoints_of_another_machine_is_warned_and_that_one_writes_none_any_more(
    tmp_path: Path,
) -> None:
    model = {"w": np.zeros(3)}
    first = writer(tmp_path, model)
    first._claims._write(())
    first.look(model, moment(1))
    path = tmp_path / first._claims.name
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(read_claim(path), machine="another")))
    second = writer(tmp_path, model, keeping=first._keeping)
    with ExitStack() as training:
        with pytest.warns(DeepDistWarning, match="whether it still runs cannot be seen from here"):
            training.enter_context(second.writing())
        assert not path.exists()
        second.look(model, moment(2))
        with pytest.warns(DeepDistWarning, match="goes on with these checkpoints, and took this program for gone"):
            first.look(model, moment(3))
        second.look(model, moment(4))
    assert (first.figures.written, first.figures.failed) == (1, 1)
    assert (second.figures.written, second.figures.failed) == (2, 0)
    assert reading.read(str(tmp_path)).record.progress.updates == 4


def read_claim(path: Path) -> Claim:
    return msgspec.json.decode(path.read_bytes(), type=Claim)


def test_a_url_has_claims_too(fresh: Any) -> None:
    url = "memory://deepdist-claims/run"
    other = Claims(store_at(url), url, "another", 1.0)
    other.take(0.0)
    with pytest.raises(UsageError, match="no other program"):
        train(fresh, url, never)
    other.give_back()
    train(fresh, url)
    assert not [name for name in store_at(url).names() if name.startswith("writer-")]


def test_a_claim_that_cannot_be_read_is_passed_by(tmp_path: Path, fresh: Any) -> None:
    (tmp_path / "writer-0123abcd.json").write_text("{")
    train(fresh, tmp_path)
    assert isinstance(store_at(str(tmp_path)), Folder)
