"""Real processes: masters that are killed, stand still or are stuck while workers train."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, DeepDistWarning, MastersLostError, current
from p2p import deepdist as deepdist_module
from p2p.sessions.master import MasterSession
from p2p.standby import group as group_module
from p2p.standby.group import Group
from p2p.standby.launch import Standbys
from p2p.standby.member import FETCHED_MAX, KEPT_MAX

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

PARTITIONS = 4
CHUNKS = 400
PAUSE_S = 0.004


def data() -> list[list[int]]:
    return [[1000 * partition + row for row in range(CHUNKS)] for partition in range(PARTITIONS)]


def gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    time.sleep(PAUSE_S)
    return {"w": np.full(3, float(sum(rows)))}


class Descent:
    """Adds; counts in the model; and in one process holds the interpreter's lock where a file says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self, model: Any, update: Any) -> None:
        model["w"] += update["w"]
        model["count"] = model.get("count", 0) + 1
        wish = os.path.join(self.folder, f"stick-{os.getpid()}")
        if os.path.exists(wish):
            with open(wish) as file:
                seconds = int(file.read())
            os.unlink(wish)
            ctypes.PyDLL(None).sleep(seconds)


def pids(dd: DeepDist[Any]) -> list[int]:
    """Of the standbys, the one that leads first first."""
    session = dd._session
    assert isinstance(session, MasterSession)
    assert session._standbys is not None
    return [here.pid for _, here in sorted(session._standbys.there.items())]


def later(do: Callable[[], None], dd: DeepDist[Any], updates: int) -> threading.Thread:
    """Do it once so many updates are applied in the driver program."""

    def wait() -> None:
        give_up = time.monotonic() + 60
        while dd._session.snapshot().updates < updates and time.monotonic() < give_up:
            time.sleep(0.01)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def trained(folder: Path, strike: Callable[[int, Path], None], times: int = 1) -> dict[str, Any]:
    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        for number in range(times):
            thread = later(lambda: strike(pids(dd)[0], folder), dd, number * PARTITIONS * CHUNKS + 200)
            report = dd.train(data(), gradient, Descent(folder), chunk_rows=1)
            thread.join(60)
            assert report.updates == PARTITIONS * CHUNKS
            expected = (number + 1) * sum(map(sum, data()))
            assert dd.model["w"].tolist() == [expected] * 3
            assert dd.model["count"] == (number + 1) * PARTITIONS * CHUNKS
            assert report.failovers >= 1
    return model


def kill(pid: int, folder: Path) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int, folder: Path, seconds: float = 4.0) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def stick(pid: int, folder: Path, seconds: int = 4) -> None:
    (folder / "wish").write_text(str(seconds))
    (folder / "wish").rename(folder / f"stick-{pid}")  # nobody reads half of it


@pytest.mark.parametrize("strike", [kill, *(pytest.param(each, marks=pytest.mark.long) for each in (freeze, stick))])
def test_another_leads_when_the_one_that_leads_is_lost(tmp_path: Path, strike: Callable[[int, Path], None]) -> None:
    trained(tmp_path, strike)


@pytest.mark.long
@pytest.mark.parametrize("strike", [kill, freeze, stick])
def test_five_times_in_a_row(tmp_path: Path, strike: Callable[[int, Path], None]) -> None:
    trained(tmp_path, strike, times=5)


@pytest.mark.long
def test_attributes_and_the_state_of_descent_are_the_same_after_a_change(tmp_path: Path) -> None:
    """A descent that keeps something for itself."""

    class Momentum:
        def __init__(self) -> None:
            self.velocity = np.zeros(3)

        def __call__(self, model: Any, update: Any) -> None:
            self.velocity = 0.5 * self.velocity + 1.0
            model["w"] += self.velocity

    def one(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        time.sleep(PAUSE_S)
        return {"w": np.full(3, float(sum(rows)))}

    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        later(lambda: os.kill(pids(dd)[0], signal.SIGKILL), dd, 200)
        dd.train(data(), one, Momentum(), chunk_rows=1)
    velocity = expected = 0.0
    for _ in range(PARTITIONS * CHUNKS):
        velocity = 0.5 * velocity + 1.0
        expected += velocity
    np.testing.assert_allclose(model["w"], expected, rtol=1e-12)


@pytest.mark.long
def test_a_promise_of_staleness_is_kept_over_a_change(tmp_path: Path) -> None:
    seen: list[int] = []

    def versions(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        time.sleep(PAUSE_S)
        return {"w": np.full(3, float(sum(rows))), "seen": int(model.get("count", 0))}

    def descent(model: Any, update: Any) -> None:
        seen.append(model.get("count", 0) - update["seen"])
        model["w"] += update["w"]
        model["count"] = model.get("count", 0) + 1

    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=3, standbys=2) as dd:
        later(lambda: os.kill(pids(dd)[0], signal.SIGKILL), dd, 200)
        dd.train(data(), versions, descent, chunk_rows=1, max_staleness=1)
        assert dd.model["count"] == PARTITIONS * CHUNKS
    assert len(seen) == PARTITIONS * CHUNKS
    assert max(seen) == 1


def test_what_descent_raises_is_raised(tmp_path: Path) -> None:
    def descent(model: Any, update: Any) -> None:
        model["w"] += update["w"]
        if model["w"][0] > 5000:
            raise ValueError("too far")

    with (
        DeepDist({"w": np.zeros(3)}, mode="master", peers=2, standbys=2) as dd,
        pytest.raises(ValueError, match="too far"),
    ):
        dd.train(data(), gradient, descent, chunk_rows=1)


def test_updates_that_are_no_numbers_are_dropped_everywhere() -> None:
    def sometimes(model: Any, rows: Iterator[int]) -> dict[str, Any]:
        task = current()
        assert task is not None
        bad = task.chunk == 3
        return {"w": np.full(3, np.nan if bad else float(sum(rows)))}

    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        with pytest.warns(UserWarning, match="4 updates"):
            report = dd.train(data(), sometimes, chunk_rows=1, on_bad_update="drop")
        assert report.updates_lost == PARTITIONS
    assert model["w"][0] == sum(map(sum, data())) - sum(1000 * partition + 3 for partition in range(PARTITIONS))


@pytest.mark.long
def test_what_other_processes_send_counts_at_every_master() -> None:
    class Once:
        """A feeder."""

        def start(self, coordinator: Any) -> None:
            self.thread = threading.Thread(target=self.send, args=(coordinator,))
            self.new: list[bool] = []
            self.thread.start()

        def send(self, coordinator: Any) -> None:
            for _ in range(2):
                self.new.append(coordinator.submit({"w": np.ones(3)}, "mine"))
            self.new.append(coordinator.submit({"w": np.ones(3)}))
            self.new.append(coordinator.submit([]))

        def stop(self) -> None:
            self.thread.join()

    feeder = Once()
    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        dd.train(data(), gradient, chunk_rows=1, feeders=[feeder])
    assert feeder.new == [True, False, True, False]
    assert model["w"][0] == sum(map(sum, data())) + 2


def test_a_session_with_standbys_trains_in_other_modes_too() -> None:
    rows = [partition[:20] for partition in data()]
    model: dict[str, Any] = {"w": np.zeros(3)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        for mode in ("p2p", "sync", None):
            dd.train(rows, gradient, mode=mode, chunk_rows=1, combine="sum" if mode == "sync" else None)
    assert model["w"][0] == 3 * sum(map(sum, rows))


@pytest.mark.long
def test_updates_do_not_pile_up_where_descent_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a driver program that is busy with something else."""
    waiting: list[int] = []
    turn, here = Group.turn, os.getpid()

    def looked_at(group: Group) -> Any:
        waiting.append(group._applier.todo.qsize())
        return turn(group)

    def descent(model: Any, update: Any) -> None:
        model["w"] += update["w"]
        if os.getpid() == here:
            time.sleep(0.05)

    monkeypatch.setattr(Group, "turn", looked_at)
    monkeypatch.setattr(group_module, "BACKLOG_MAX", 5)
    model: dict[str, Any] = {"w": np.zeros(3)}
    rows = [partition[:40] for partition in data()]
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        report = dd.train(rows, gradient, descent, chunk_rows=1)
    assert model["w"][0] == sum(map(sum, rows))
    # where a new view begins, which on a loaded machine may be, all that is kept of its log comes at once
    assert 5 < max(waiting) <= (5 + FETCHED_MAX if not report.failovers else KEPT_MAX)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"standbys": 1, "mode": "master"}, "even number"),
        ({"standbys": -2, "mode": "master"}, "even number"),
        ({"standbys": 2}, "mode='master'"),
        ({"standbys": "two", "mode": "master"}, "standbys"),
    ],
)
def test_a_number_that_does_not_do_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DeepDist({"w": np.zeros(3)}, **options)


def test_a_model_that_cannot_be_there_is_told() -> None:
    class Here:
        """Of no other process."""

        def __init__(self) -> None:
            self.w = np.zeros(3)
            self.where = threading.Lock()

    with DeepDist(Here(), mode="master", peers=1, standbys=2) as dd, pytest.raises(Exception, match="pickle"):
        dd.train(data(), gradient)


def kill_most(dd: DeepDist[Any]) -> None:
    for pid in pids(dd):
        os.kill(pid, signal.SIGKILL)


def test_peers_go_on_where_most_masters_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row counts once, of whatever reached the driver program before or not."""
    monkeypatch.setattr(deepdist_module, "GOES_ON_S", 3.0)
    model: dict[str, Any] = {"w": np.zeros(3), "count": np.zeros(1)}
    with DeepDist(model, mode="master", peers=2, standbys=2, on_master_loss="p2p") as dd:
        later(lambda: kill_most(dd), dd, 200)
        with pytest.warns(DeepDistWarning, match="peers go on") as told:
            report = dd.train(data(), counted_gradient, add, chunk_rows=1)
        assert report.mode == "p2p"
        assert report.updates == PARTITIONS * CHUNKS
        assert dd.model["w"].tolist() == [sum(map(sum, data()))] * 3
        assert dd.model["count"].tolist() == [PARTITIONS * CHUNKS]
        again = dd.train(data(), counted_gradient, add, chunk_rows=100)
        assert again.mode == "master"
        assert dd.model["w"].tolist() == [2 * sum(map(sum, data()))] * 3
    before = int(re.search(r"after (\d+) updates", str(told[0].message))[1])
    assert 200 <= before < PARTITIONS * CHUNKS


@pytest.mark.long
def test_a_training_ends_where_most_masters_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what is there of it; another one is whole."""
    monkeypatch.setattr(deepdist_module, "LEADERLESS_S", 3.0)
    model: dict[str, Any] = {"w": np.zeros(3), "count": np.zeros(1)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        later(lambda: kill_most(dd), dd, 200)
        with pytest.raises(MastersLostError, match="on_master_loss") as lost:
            dd.train(data(), counted_gradient, add, chunk_rows=1)
        assert lost.value.report is not None
        before = float(dd.model["count"][0])
        assert 200 <= before == lost.value.report.updates < PARTITIONS * CHUNKS
        sums = dd.model["w"].copy()
        report = dd.train(data(), counted_gradient, add, chunk_rows=100)
        assert report.updates == PARTITIONS * CHUNKS // 100
        assert dd.model["w"].tolist() == [each + sum(map(sum, data())) for each in sums]


@pytest.mark.long
def test_what_peers_cannot_go_on_with_is_told_as_the_loss_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descent that keeps something on the model, as only a master's may."""
    monkeypatch.setattr(deepdist_module, "GOES_ON_S", 3.0)
    model: dict[str, Any] = {"w": np.zeros(3), "count": np.zeros(1)}
    with DeepDist(model, mode="master", peers=2, standbys=2, on_master_loss="p2p") as dd:
        later(lambda: kill_most(dd), dd, 200)
        with pytest.warns(DeepDistWarning, match="peers go on"), pytest.raises(MastersLostError) as lost:
            dd.train(data(), counted_gradient, keep, chunk_rows=1)
    assert "peers cannot go on with this training: descent changed 'kept'" in lost.value.__notes__[0]
    assert lost.value.report is not None
    assert model["count"][0] == model["kept"] >= 200


def test_one_that_is_lost_while_a_training_begins_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    opens, opened = Standbys._open, []

    def kill_one_and_open(standbys: Standbys, *arguments: Any) -> list[int]:
        if not opened:
            os.kill(standbys.there[1].pid, signal.SIGKILL)
        opened.append(arguments)
        return opens(standbys, *arguments)

    monkeypatch.setattr(Standbys, "_open", kill_one_and_open)
    model: dict[str, Any] = {"w": np.zeros(3), "count": np.zeros(1)}
    with DeepDist(model, mode="master", peers=2, standbys=2) as dd:
        dd.train(data(), counted_gradient, add, chunk_rows=100)
        assert dd.model["w"].tolist() == [sum(map(sum, data()))] * 3
    assert len(opened) == 2


def keep(model: Any, update: Any) -> None:
    add(model, update)
    model["kept"] = model.get("kept", 0) + 1


def counted_gradient(model: Any, rows: Iterator[int]) -> dict[str, Any]:
    time.sleep(PAUSE_S)
    found = list(rows)
    return {"w": np.full(3, float(sum(found))), "count": np.ones(1)}


def add(model: Any, update: Any) -> None:
    for name, array in update.items():
        model[name] += array
