"""Real processes: a whole run is killed and goes on, Ctrl-C leaves a checkpoint, and every discipline resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.checkpoint_kills import Outcome, killed_and_resumed
from gossip.mixing import DPsgd
from p2p import DeepDist, in_place, pause
from p2p.checkpoint import reading

pytestmark = [pytest.mark.slow, pytest.mark.sockets]

LONG_S = 120.0


def counts(path: Path) -> dict[Path, int]:
    """Units of each checkpoint, by its manifest."""
    return {
        each: json.loads(each.read_bytes())["checkpoint"]["units"]["count"]
        for each in sorted(path.glob("checkpoint-*.json"))
    }


def middle(path: Path, units: int) -> tuple[Path, int]:
    """The checkpoint that is nearest to the middle of so many units, and what it has of them."""
    manifest, count = min(counts(path).items(), key=lambda found: abs(found[1] - units / 2))
    assert 0 < count < units
    return manifest, count


@pytest.mark.parametrize(("seed", "mode"), [(1, "p2p"), pytest.param(2, "master", marks=pytest.mark.long)])
def test_a_run_that_is_killed_whole_goes_on_and_every_row_counts_once(place: Any, seed: int, mode: str) -> None:
    outcome = killed_and_resumed(seed, place.folder / "kills", mode, kills_max=1)
    assert outcome.wrong == []
    assert outcome.kills > 0


def test_what_must_not_be_is_seen() -> None:
    right = Outcome(1, 1, (-1, 4), twice=0, lost=0, exact=True, seconds=1.0)
    assert right.wrong == []
    wrong = Outcome(1, 1, (-1, 4), twice=2, lost=3, exact=False, seconds=1.0, output="it says")
    assert wrong.wrong == ["total is not exact", "2 rows count twice", "3 rows are lost", "it says"]


def test_ctrl_c_leaves_the_model_trained_so_far_and_a_last_checkpoint(
    place: Any, start_program: Any, eventually: Any
) -> None:
    program = start_program(place, "local_interrupted")
    program.wait_for_training(LONG_S)
    time.sleep(0.3)
    program.press_ctrl_c()
    assert program.wait(LONG_S) != 0
    assert "KeyboardInterrupt" in program.output
    assert eventually(lambda: place.leftovers() == {}, LONG_S), place.leftovers()
    seen = json.loads((place.folder / "local_interrupted.json").read_text())["seen"]
    assert 0 < sum(seen) < 400
    found = reading.read(str(place.folder / "checkpoints"))
    assert found.record.number == 2, "one at the beginning, and one in the end"
    assert found.record.progress.ended == "interrupted"
    assert found.record.units.count == found.arrays["seen"].sum() >= sum(seen)
    assert set(found.arrays["seen"]) <= {0.0, 1.0}


@pytest.mark.long
@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.5, 1.0])
def test_ctrl_c_while_agents_start_leaves_the_model_and_nothing_else(
    place: Any, start_program: Any, eventually: Any, after_s: float
) -> None:
    program = start_program(place, "local_interrupted")
    assert eventually(lambda: place.agent_folders() or program.process.poll() is not None, LONG_S)
    time.sleep(after_s)
    program.press_ctrl_c()
    assert program.wait(LONG_S) != 0
    assert "KeyboardInterrupt" in program.output
    assert eventually(lambda: place.leftovers() == {}, LONG_S), place.leftovers()
    assert set(json.loads((place.folder / "local_interrupted.json").read_text())["seen"]) <= {0.0, 1.0}
    assert [path.name for path in (place.folder / "checkpoints").glob("writer-*")] == []


@pytest.mark.long
def test_ctrl_c_while_a_checkpoint_is_written_leaves_one_that_is_whole(
    place: Any, start_program: Any, eventually: Any
) -> None:
    program = start_program(place, "local_interrupted", {"SLOWLY": "1"})
    assert eventually(lambda: (place.folder / "writing").exists() or program.process.poll() is not None, LONG_S)
    program.press_ctrl_c()
    assert program.wait(LONG_S) != 0
    assert "KeyboardInterrupt" in program.output
    assert eventually(lambda: place.leftovers() == {}, LONG_S), place.leftovers()
    seen = json.loads((place.folder / "local_interrupted.json").read_text())["seen"]
    found = reading.read(str(place.folder / "checkpoints"))
    assert found.record.units.count == found.arrays["seen"].sum() >= sum(seen)
    assert found.record.progress.ended == "interrupted"
    assert {path.suffix for path in (place.folder / "checkpoints").iterdir()} == {".json", ".safetensors"}
    assert not list((place.folder / "checkpoints").glob("writer-*"))


def counting(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    seen = np.zeros(32)
    for row in rows:
        seen[row] += 1
    time.sleep(0.02)
    return {"seen": seen}


def descent(model: Any, update: Any) -> None:
    model["seen"] += update["seen"]


DATA = [list(range(part * 8, part * 8 + 8)) for part in range(4)]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("mode", ["p2p", pytest.param("master", marks=pytest.mark.long)])
def test_a_checkpoint_is_resumed_by_another_number_of_peers(tmp_path: Path, mode: Any) -> None:
    with DeepDist({"seen": np.zeros(32)}, mode, peers=2, progress=False) as dd:
        report = dd.train(DATA, counting, descent, 2, chunk_rows=1, checkpoint=tmp_path, every_s=0.1, keep=100)
    assert report.checkpoints is not None
    assert (report.checkpoints.failed, report.ended) == (0, "done")
    first, *_, last = counts(tmp_path).values()
    assert (first, last) == (0, 64)
    manifest, began = middle(tmp_path, 64)
    with DeepDist.resume(manifest, peers=3, progress=False) as dd:
        report = dd.train(DATA, counting, descent)
        assert (dd.model["seen"] == 2.0).all()
        assert (report.updates, report.updates_lost) == (64 - began, 0)
        dd.train(DATA, counting, descent)
        assert (dd.model["seen"] == 3.0).all()


@pytest.mark.long
@pytest.mark.usefixtures("place")
def test_peers_that_mix_go_on_from_the_mean_of_their_replicas(tmp_path: Path) -> None:
    """Of an update that is mixed while replicas are read, the mean may have a part: one of two peers has some 32."""
    options: dict[str, Any] = {"discipline": "mix", "mixing": DPsgd(), "topology": "complete"}
    with DeepDist({"seen": np.zeros(32)}, peers=2, progress=False, **options) as dd:
        dd.train(DATA, counting, epochs=2, chunk_rows=1, checkpoint=tmp_path, every_s=0.1, keep=100)
        expected = dd.model["seen"].copy()
    assert list(counts(tmp_path).values())[-1] == 64
    manifest, began = middle(tmp_path, 64)
    with pytest.raises(Exception, match=r"of mixing=DPsgd\(\): give a strategy, resume\(path, mixing=\.\.\.\)"):
        DeepDist.resume(manifest)
    with DeepDist.resume(manifest, peers=2, progress=False, **options) as dd:
        report = dd.train(DATA, counting)
        assert report.updates == 64 - began
        assert abs(dd.model["seen"] - expected).sum() <= 4.0


def steadily(model: Any, rows: Iterator[int]) -> Any:
    place = in_place(model)
    for row in rows:
        model["seen"][row] += 1
        time.sleep(0.02)
        pause()
    return place.trained({})


@pytest.mark.long
@pytest.mark.usefixtures("place")
def test_exchanges_in_the_middle_of_a_gradient_go_on_behind_the_rows_that_count(tmp_path: Path) -> None:
    data = [list(range(part * 25, part * 25 + 25)) for part in range(4)]
    with DeepDist({"seen": np.zeros((100, 1))}, peers=2, progress=False) as dd:
        options: dict[str, Any] = {"exchange": "continuous", "exchange_s": 0.05, "checkpoint": tmp_path}
        dd.train(data, steadily, every_s=0.1, keep=100, **options)
        assert (dd.model["seen"] == 1.0).all()
    manifest, began = middle(tmp_path, list(counts(tmp_path).values())[-1])
    for each, updates in ((manifest, list(counts(tmp_path).values())[-1] - began), (tmp_path, 0)):
        with DeepDist.resume(each, peers=2, progress=False) as dd:
            report = dd.train(data, steadily, exchange="continuous", exchange_s=0.05)
            assert (dd.model["seen"] == 1.0).all()
            assert report.updates_lost == 0
            assert (report.updates > 0) == (updates > 0)
