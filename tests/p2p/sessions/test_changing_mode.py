"""One session that trains by peers and with a master in turn, on this machine's processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, DeepDistWarning, SimulatedCluster
from p2p.checkpoint.reading import read
from p2p.engines.local import LocalEngine
from p2p.report import Report
from p2p.worker.task import current

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

ORDERS = [("p2p", "master", "p2p"), ("master", "p2p", "master")]


def add(model: Any, update: Any) -> None:
    model["w"] += update["w"]


def ones(model: Any, rows: Any) -> Any:
    return {"w": np.array([float(sum(rows))])}


def is_gone(name: str) -> bool:
    return not Path(f"/proc/{name.rpartition(':')[2]}").exists()


@pytest.mark.parametrize("order", ORDERS)
def test_trainings_of_both_modes_add_up(order: tuple[Any, ...], settled: Callable[..., Any]) -> None:
    model = {"w": np.zeros(1)}
    with DeepDist(model, order[0], peers=2) as dd:
        reports: list[Report] = []
        for mode in order:
            reports.append(dd.train([[1, 2], [3]], ones, add, epochs=2, chunk_rows=1, mode=mode))
            assert model["w"] == [12 * len(reports)]
            model["w"] += 0  # the model is the user's own between two trainings
        assert [report.mode for report in reports] == list(order)
        assert [report.updates for report in reports] == [6, 6, 6]
        roles = {"p2p": ["peer", "peer", "observer"], "master": ["worker", "worker", "master"]}
        assert [[peer.role for peer in report.peers] for report in reports] == [roles[mode] for mode in order]
        for report in reports[:2]:
            names = [peer.name for peer in report.peers if peer.role != "master"]
            assert all(settled(lambda: [is_gone(name) for name in names], [True] * len(names)))  # noqa: B023
        model["w"][0] = 100
        dd.train([[1]], ones, add)
        assert dd.model["w"] == [101], "what the user wrote counts, and the mode is the session's own again"


@pytest.mark.long
def test_random_numbers_are_those_of_a_session_that_stays_as_it_is() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        assert sum(rows) == 3
        return {"w": np.random.random(1)}

    found = []
    for modes in (("master", "master", "master"), ("master", "p2p", "master"), ("p2p", "p2p", "p2p")):
        with DeepDist({"w": np.zeros(1)}, peers=1, seed=5, codec=None) as dd:
            steps = [dd.model["w"].copy()]
            for mode in modes:
                dd.train([[1, 2]], gradient, add, epochs=2, mode=mode)
                steps.append(dd.model["w"].copy())
        found.append(np.ravel(steps).tolist())
    assert found[0] == found[1] == found[2]
    assert len(set(np.diff(found[0]))) == 3, "each training has its own"


def test_what_descent_kept_on_the_master_s_model_reaches_the_peers() -> None:
    def keep(model: Any, update: Any) -> None:
        add(model, update)
        model["calls"] = model.get("calls", 0) + 1

    def calls(model: Any, rows: Any) -> Any:
        return {"w": np.array([float(model["calls"])])}

    model: dict[str, Any] = {"w": np.zeros(1)}
    with DeepDist(model, "master", peers=1) as dd:
        dd.train([[1, 2, 3]], ones, keep, chunk_rows=1)
        assert model["calls"] == 3
        dd.train([[1]], calls, add, mode="p2p")
        assert model["w"] == [6 + 3]
        dd.train([[1, 2]], ones, keep, chunk_rows=1)
    assert (model["w"], model["calls"]) == ([12], 5)


@pytest.mark.parametrize("order", [ORDERS[0], pytest.param(ORDERS[1], marks=pytest.mark.long)])
def test_a_checkpoint_is_of_the_mode_of_its_training(order: tuple[Any, ...], tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(1)}, order[0], peers=1) as dd:
        for number, mode in enumerate(order):
            dd.train([[1, 2]], ones, add, epochs=2, chunk_rows=1, mode=mode, checkpoint=tmp_path / str(number))
    for number, mode in enumerate(order):
        record = read(str(tmp_path / str(number))).record
        assert (record.session.mode, record.training.epochs_before) == (mode, 2 * number)
        with DeepDist.resume(tmp_path / str(number), peers=1) as dd:
            report = dd.train([[1, 2]], ones, add, chunk_rows=1)
            assert (report.mode, report.updates) == (mode, 0), "all of it counts already"
            assert dd.model["w"] == [6 * (number + 1)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_checkpoint_goes_on_in_another_mode(order: tuple[Any, ...], tmp_path: Path) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if task.epoch == 1 and task.chunk == 1 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise KeyError("once")
        return ones(model, rows)

    with DeepDist({"w": np.zeros(1)}, order[0], peers=1) as dd:
        dd.train([[8]], ones, add)
        with pytest.raises(KeyError):
            dd.train([[1, 2, 4]], gradient, add, epochs=2, chunk_rows=1, checkpoint=tmp_path / "kept", every_s=0.01)
    with DeepDist.resume(tmp_path / "kept", peers=1) as dd:
        report = dd.train([[1, 2, 4]], gradient, add, chunk_rows=1, mode=order[1])
        assert report.mode == order[1]
        assert dd.model["w"] == [8 + 14]


def test_an_engine_of_one_s_own_is_started_again() -> None:
    with DeepDist({"w": np.zeros(1)}, engine=LocalEngine(2)) as dd:
        for mode in ("p2p", "master", "p2p"):
            dd.train([[1], [2]], ones, add, mode=mode)
        assert dd.model["w"] == [9]


@pytest.mark.parametrize(
    ("options", "mode", "message"),
    [
        ({}, "ring", r"mode='ring', expected 'p2p', 'master', 'sync' or 'averaging'"),
        ({"discipline": "mix"}, "master", r"discipline='mix' with mode='master', expected 'p2p'"),
        ({"engine": SimulatedCluster(2)}, "master", r"mode='master' on a simulated cluster, expected 'p2p'"),
        ({"codec": "int8"}, "master", r"a codec with mode='master', expected None"),
        ({"mode": "master", "master": "127.0.0.1:0"}, "p2p", r"mode='p2p' in a session with master=..., expected None"),
    ],
)
def test_a_mode_that_does_not_go_with_the_session_is_refused(options: Any, mode: Any, message: str) -> None:
    with DeepDist({"w": np.zeros(1)}, **options) as dd, pytest.raises(UsageError, match=message):
        dd.train([[1]], ones, add, mode=mode)


@pytest.mark.parametrize("mode", ["p2p", "master", "sync", "averaging"])
def test_a_training_that_was_finished_by_peers_has_nothing_left_for_another_mode(mode: Any, tmp_path: Path) -> None:
    """Its last checkpoint says that all units of its epochs count, and names none."""
    with DeepDist({"w": np.zeros(1)}, peers=2) as dd:
        dd.train([[1, 2], [3]], ones, epochs=2, chunk_rows=1, checkpoint=tmp_path)
    assert read(str(tmp_path)).record.units.closed == 2
    with pytest.warns(DeepDistWarning) if mode != "p2p" else nullcontext():
        again = DeepDist.resume(tmp_path, mode=mode, peers=2)
    with again as dd:
        report = dd.train([[1, 2], [3]], ones)
        assert (report.updates, report.mode) == (0, mode)
        assert dd.model["w"] == [12]
        dd.train([[1, 2], [3]], ones, chunk_rows=1, combine="sum" if mode == "sync" else None)
        assert dd.model["w"] == [15 if mode == "averaging" else 18]


@pytest.mark.parametrize("mode", ["master", "sync"])
def test_an_epoch_more_is_all_that_is_left(mode: Any, tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(1)}, peers=2) as dd:
        dd.train([[1, 2], [3]], ones, epochs=2, chunk_rows=1, combine="sum", checkpoint=tmp_path)
    with pytest.warns(DeepDistWarning):
        again = DeepDist.resume(tmp_path, mode=mode, peers=2)
    with again as dd:
        with pytest.warns(DeepDistWarning, match="epochs=3"):
            dd.train([[1, 2], [3]], ones, epochs=3)
        assert dd.model["w"] == [18]


def test_a_rule_that_a_mode_does_not_have_is_left_behind_with_a_warning(tmp_path: Path) -> None:
    with DeepDist({"w": np.zeros(1)}, peers=2) as dd:
        dd.train([[1, 2], [3]], ones, chunk_rows=1, combine="adasum", checkpoint=tmp_path)
    with pytest.warns(DeepDistWarning, match="mode"):
        again = DeepDist.resume(tmp_path, mode="master", peers=2)
    with again as dd:
        with pytest.warns(DeepDistWarning, match="combine='adasum'; with mode='master' updates do not add up by that"):
            dd.train([[1, 2], [3]], ones)
        with pytest.raises(UsageError, match="combine='sum' with mode='master', expected None"):
            dd.train([[1, 2], [3]], ones, combine="sum")
