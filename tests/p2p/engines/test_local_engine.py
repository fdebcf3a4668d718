"""Training on this machine's own processes: what arrives in the model, what errors look like, what is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from p2p import DeepDist, DeepDistWarning, UsageError
from p2p.adapters.model import Model
from p2p.agent import local_socket
from p2p.agent.client import AgentClient
from p2p.engines.local import WORKER, LocalEngine, _Worker
from p2p.master.coordinator import Coordinator, feeding
from p2p.master.serving import Server
from p2p.server.client import MasterClient
from p2p.worker.job import Job, TaskResult
from p2p.worker.task import current, run_partition

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

MODES = ["p2p", "master"]
LONG_S = 50.0


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


def meet(folder: Path, name: str, count: int) -> None:
    """Leave a file, and wait until there are as many of them as wanted: so all workers take part."""
    folder.mkdir(exist_ok=True)
    (folder / name).touch()
    give_up = time.monotonic() + LONG_S
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{count} were to meet in {folder}, there are {sorted(os.listdir(folder))}")
        time.sleep(0.02)


def add(model, update):
    for name, value in update.items():
        model[name] += value


def rebind(model, update):
    for name, value in update.items():
        model[name] = model[name] + value


def tell(model, rows):
    """Rows are whole numbers: float64 adds them without rounding, in any order."""
    rows = list(rows)
    return {"sum": np.full(3, sum(rows), np.float64), "count": np.array([len(rows)])}


PARTITIONS = [[1, 2, 3], [4, 5], [], [6], list(range(7, 20))]


def model_of_zeros() -> dict[str, np.ndarray]:
    return {"sum": np.zeros(3), "count": np.zeros(1, np.int64), "still": np.full(2, 7.0, np.float32)}


# --------------------------------------------------------------------------------------------------------- what arrives


def test_the_report_counts_bytes_that_went_as_open_files() -> None:
    model = {"w": np.zeros(200_000)}
    with DeepDist(model, peers=2) as dd:
        report = dd.train([[1], [2]], lambda model, rows: {"w": np.full(200_000, float(sum(rows)))})
    readers = 2  # at least: the driver program's agent, and the peer that did not compute it
    assert sum(peer.bytes_in for peer in report.peers) >= readers * model["w"].nbytes
    assert sum(peer.bytes_out for peer in report.peers) >= readers * model["w"].nbytes


@pytest.mark.parametrize("descent", [None, add, rebind])
def test_the_end_is_the_sum_of_all_updates(mode: Any, descent: Any, tmp_path: Path) -> None:
    def gradient(model, rows):
        meet(tmp_path, str(os.getpid()), 2)
        return tell(model, rows)

    model = model_of_zeros()
    model["sum"] += 1000
    arrays = dict(model)
    with DeepDist(model, mode, peers=2) as dd:
        report = dd.train(PARTITIONS, gradient, descent, epochs=3)
        assert dd.model is model
        seen = {name: array.copy() for name, array in model.items()}
    np.testing.assert_array_equal(model["sum"], np.full(3, 1000 + 3 * 190.0))
    np.testing.assert_array_equal(model["count"], [3 * 19])
    np.testing.assert_array_equal(model["still"], [7, 7])
    for name, array in arrays.items():
        assert model[name] is array, "the user's own arrays are changed in place"
        np.testing.assert_array_equal(seen[name], array)
    assert report.mode == mode
    assert report.rows == 3 * 19
    assert report.updates == 3 * 4, "an empty partition has nothing to tell"
    assert report.updates_lost == 0
    assert report.consensus_distance == 0
    assert report.missing == ()
    workers = [peer for peer in report.peers if peer.role == {"p2p": "peer", "master": "worker"}[mode]]
    assert len(workers) == 2
    assert all(peer.published > 0 for peer in workers)
    assert sum(peer.published for peer in workers) == 12
    assert [peer.applied for peer in report.peers][-1] == 12
    assert mode == "master" or [peer.applied for peer in report.peers] == [12] * 3


def test_a_partition_is_trained_in_chunks(mode: Any) -> None:
    def gradient(model, rows):
        task = current()
        return {"longest": np.array([float(len(list(rows)))]), "chunks": np.eye(3)[task.chunk]}

    model = {"longest": np.zeros(1), "chunks": np.zeros(3)}
    with DeepDist(model, mode, peers=1) as dd:
        report = dd.train([range(5), range(2), []], gradient, chunk_rows=2)
    assert report.updates == 4
    assert report.rows == 7
    np.testing.assert_array_equal(model["longest"], [7])
    np.testing.assert_array_equal(model["chunks"], [2, 1, 1])


def test_two_trainings_of_one_session_add_up(mode: Any) -> None:
    model = model_of_zeros()
    with DeepDist(model, mode, peers=2) as dd:
        first = dd.train(PARTITIONS, tell, add)
        np.testing.assert_array_equal(dd.model["sum"], np.full(3, 190))
        second = dd.train([[10], [20]], tell, add)
    np.testing.assert_array_equal(model["sum"], np.full(3, 220))
    assert (first.updates, second.updates) == (4, 2)
    assert (first.rows, second.rows) == (19, 2)
    assert second.updates_lost == 0
    assert second.consensus_distance == 0


def test_what_changes_beside_the_arrays_between_two_trainings_reaches_the_workers() -> None:
    class Line:
        def __init__(self) -> None:
            self.w = np.zeros(1)
            self.step = 1.0

    def gradient(model, rows):
        return {"w": np.array([model.step])}

    line = Line()
    with DeepDist(line, peers=1) as dd:
        dd.train([[1]], gradient)
        dd.model.step = 10.0
        dd.train([[1]], gradient)
    assert line.w == [11.0]


def test_the_state_of_an_optimizer_is_one_more_array(tmp_path: Path) -> None:
    """AdaGrad: the squares that every replica has summed are those of all gradients of all workers."""

    def gradient(model, rows):
        meet(tmp_path, str(os.getpid()), 2)
        return np.arange(1.0, 4.0) * next(rows)

    def descent(model, g):
        before = model["w"].copy()
        model["squares"] += g**2
        model["w"] -= 0.5 * g / np.sqrt(model["squares"])
        task = current()
        np.save(tmp_path / f"delta-{task.epoch}-{task.partition}", model["w"] - before)

    model = {"w": np.zeros(3), "squares": np.zeros(3)}
    with DeepDist(model, peers=2) as dd:
        report = dd.train([[r] for r in range(1, 7)], gradient, descent, epochs=2)
    np.testing.assert_array_equal(model["squares"], 2 * 91 * np.array([1.0, 4.0, 9.0]))
    deltas = [np.load(path) for path in sorted(tmp_path.glob("delta-*"))]
    assert len(deltas) == report.updates == 12
    np.testing.assert_allclose(model["w"], np.sum(deltas, axis=0), rtol=1e-12)
    assert report.consensus_distance < 1e-12


def test_the_master_alone_runs_descent() -> None:
    here: list[int] = []

    def gradient(model, rows):
        return np.full(2, sum(rows)), {"weight": 2, "pids": [os.getpid(), 0.5, None, "text"]}

    def descent(model, update):
        total, extra = update
        assert isinstance(update, tuple)
        assert extra["pids"][1:] == [0.5, None, "text"]
        here.append(os.getpid())
        model["w"] += extra["weight"] * total
        model["pids"] = model["pids"] + np.array([extra["pids"][0] == os.getpid(), 1])

    model = {"w": np.zeros(2), "pids": np.zeros(2)}
    with DeepDist(model, "master", peers=2) as dd:
        report = dd.train([[1, 2], [3], [4]], gradient, descent, epochs=2)
    assert here == [os.getpid()] * 6
    np.testing.assert_array_equal(model["w"], [40, 40])
    np.testing.assert_array_equal(model["pids"], [0, 6])
    assert report.updates == 6
    assert report.updates_lost == 0
    assert report.consensus_distance == 0
    assert [peer.role for peer in report.peers] == ["worker", "worker", "master"]


def test_workers_run_descent_when_there_is_no_master() -> None:
    def descent(model, update):
        model["here"] += np.array([os.getpid() == update, 1])

    model = {"here": np.zeros(2)}
    with DeepDist(model, peers=2) as dd:
        dd.train([[1], [2], [3]], lambda model, rows: os.getpid(), descent)
    np.testing.assert_array_equal(model["here"], [3, 3])


@pytest.mark.parametrize("nothing", [None, {}, [], 0])
def test_nothing_learned_is_no_update(mode: Any, nothing: Any) -> None:
    model = {"w": np.ones(2)}
    with DeepDist(model, mode, peers=1) as dd:
        report = dd.train([[1, 2], [3], []], lambda model, rows: nothing)
    assert report.updates == 0
    assert report.rows == 3, "rows that no gradient asked for are read as well"
    np.testing.assert_array_equal(model["w"], [1, 1])


def test_the_model_can_be_looked_at_while_a_training_runs(mode: Any, tmp_path: Path, eventually: Any) -> None:
    def gradient(model, rows):
        if current().chunk == 1:
            meet(tmp_path, "worker", 2)
        return {"w": np.array([float(next(rows))])}

    model = {"w": np.zeros(1)}
    seen = []

    def look() -> None:
        eventually(lambda: dd.model["w"][0] != 0, LONG_S)
        seen.append(float(dd.model["w"][0]))
        (tmp_path / "user").touch()

    with DeepDist(model, mode, peers=1) as dd:
        looking = threading.Thread(target=look)
        dd.train([[0]], gradient)  # the session is up from here on
        looking.start()
        dd.train([[5, 7]], gradient, chunk_rows=1)
        looking.join()
    assert seen == [5.0]
    assert model["w"] == [12.0]


# -------------------------------------------------------------------------------------------------------- what comes in


def test_a_partition_is_any_iterable_or_a_function_that_returns_one() -> None:
    def made_there():
        yield from (100, 200)

    partitions = [[1, 2], (3, 4), range(5, 7), {7}, np.array([8, 9]), made_there]
    model = {"sum": np.zeros(1)}
    with DeepDist(model, peers=2) as dd:
        report = dd.train(partitions, lambda model, rows: {"sum": np.array([float(sum(rows))])}, epochs=2)
    assert report.rows == 2 * 11
    assert model["sum"] == [2 * 345]


def test_a_generator_is_refused_as_it_can_be_neither_sent_nor_read_again() -> None:
    with (
        DeepDist({"w": np.zeros(1)}, peers=1) as dd,
        pytest.raises(UsageError, match=r"data\[1\].*generator.*function"),
    ):
        dd.train([[1], (row for row in [2])], tell)


def test_nothing_to_train_on_is_refused() -> None:
    with DeepDist({"w": np.zeros(1)}) as dd:
        with pytest.raises(UsageError, match="data is an empty list, expected a list of partitions"):
            dd.train([], tell)
        with pytest.raises(UsageError, match=r"data\[1\] is a str, expected a partition"):
            dd.train([[1], "rows.txt"], tell)
        with pytest.raises(UsageError, match=r"data\[0\] is a int, expected a partition"):
            dd.train([1, 2], tell)
        with pytest.raises(UsageError, match="data is a dict, expected a Spark RDD or DataFrame, or a list"):
            dd.train({"rows": [1]}, tell)


def test_arguments_that_make_no_sense_are_refused() -> None:
    with DeepDist({"w": np.zeros(1)}) as dd:
        with pytest.raises(UsageError, match="epochs=0, expected at least 1"):
            dd.train([[1]], tell, epochs=0)
        with pytest.raises(UsageError, match="chunk_rows=0, expected at least 1"):
            dd.train([[1]], tell, chunk_rows=0)
        with pytest.raises(UsageError, match="gradient is a dict, expected a function"):
            dd.train([[1]], {"w": 1})
        with pytest.raises(UsageError, match="descent is a float, expected a function"):
            dd.train([[1]], tell, 0.1)


@pytest.mark.parametrize("peers", [0, -1])
def test_a_session_needs_a_peer(peers: int) -> None:
    with pytest.raises(UsageError, match=f"peers={peers}, expected at least 1"), DeepDist(tiny(), peers=peers) as dd:
        dd.train([[1]], tell)


def tiny() -> dict[str, np.ndarray]:
    return {"w": np.zeros(1)}


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="mode='ring', expected 'p2p', 'master', 'sync' or 'averaging'"):
        DeepDist(tiny(), "ring")


def test_training_is_for_the_inside_of_the_session() -> None:
    session = DeepDist(tiny(), peers=1)
    with pytest.raises(UsageError, match="outside of its session"):
        session.train([[1]], tell)
    with session:
        pass
    with pytest.raises(UsageError, match="session"):
        session.train([[1]], lambda model, rows: {"w": np.ones(1)})


def test_a_session_is_entered_once() -> None:
    session = DeepDist(tiny())
    with session, pytest.raises(UsageError, match="make a new DeepDist"):
        session.__enter__()
    with pytest.raises(UsageError, match="make a new DeepDist"), session:
        pass


# ------------------------------------------------------------------------------------------------ what errors look like


class UnreadableError(ValueError):
    """An exception of the user's own."""


def test_an_error_in_the_gradient_arrives_as_it_is_and_the_session_goes_on(mode: Any) -> None:
    def gradient(model, rows):
        if 13 in rows:
            raise UnreadableError("thirteen", 13)
        return None

    model = model_of_zeros()
    with DeepDist(model, mode, peers=2) as dd:
        dd.train(PARTITIONS, tell, add)
        with pytest.raises(UnreadableError) as caught:
            dd.train([[1], [2], [12, 13], [3]], gradient, add)
        assert type(caught.value) is UnreadableError
        assert caught.value.args == ("thirteen", 13)
        (note,) = caught.value.__notes__
        assert f"partition 2, epoch 0, host {os.uname().nodename}, process " in note
        assert 'raise UnreadableError("thirteen", 13)' in note, "the traceback over there is part of it"
        report = dd.train(PARTITIONS, tell, add)
    np.testing.assert_array_equal(model["sum"], np.full(3, 2 * 190))
    assert report.updates == 4
    assert report.updates_lost == 0
    assert report.consensus_distance == 0


def test_an_error_in_descent_arrives_as_it_is_and_the_session_goes_on(mode: Any) -> None:
    def descent(model, update):
        model["sum"] += 10.0**6
        raise UnreadableError("descent", 1)

    model = model_of_zeros()
    with DeepDist(model, mode, peers=1) as dd:
        with pytest.raises(UnreadableError) as caught:
            dd.train([[1], [2]], tell, descent)
        assert caught.value.args == ("descent", 1)
        (note,) = caught.value.__notes__
        if mode == "p2p":
            assert "partition 0, epoch 0" in note
        else:
            assert "in descent, in the driver program, for an update of worker" in note
        np.testing.assert_array_equal(dd.model["sum"], [0, 0, 0], "half of an update is none")
        before = float(dd.model["count"][0])
        report = dd.train(PARTITIONS, tell, add)
        if mode == "p2p":
            assert before == 0
            np.testing.assert_array_equal(model["sum"], np.full(3, 190))
        assert report.consensus_distance == 0
        assert report.updates_lost == 0


class RowError(ValueError):
    """Its `__init__` wants other arguments than those it gives to its base."""

    def __init__(self, row: int, *, why: str) -> None:
        super().__init__(f"row {row}: {why}")
        self.row = row


def test_an_error_with_arguments_of_its_own_is_caught_by_its_class() -> None:
    def gradient(model, rows):
        raise RowError(3, why="unreadable")

    with DeepDist(tiny(), peers=1) as dd, pytest.raises(RowError, match=r"^row 3: unreadable\n") as caught:
        dd.train([[1]], gradient)
    assert caught.value.row == 3
    assert 'raise RowError(3, why="unreadable")' in caught.value.__notes__[0]


def leave(model, rows):
    sys.exit("out of here")


def interrupt(model, rows):
    raise KeyboardInterrupt("mine")


@pytest.mark.parametrize(
    ("functions", "text", "line"),
    [
        ((leave, None), "SystemExit: out of here", 'sys.exit("out of here")'),
        ((interrupt, None), "KeyboardInterrupt: mine", 'raise KeyboardInterrupt("mine")'),
        ((tell, leave), "SystemExit: out of here", 'sys.exit("out of here")'),
    ],
)
def test_user_code_that_would_end_its_worker_is_named_and_the_session_goes_on(
    functions: Any, text: str, line: str
) -> None:
    with DeepDist(model_of_zeros(), peers=1) as dd:
        dd.train([[1]], tell)
        with pytest.raises(RuntimeError, match=rf"^{text}\n") as caught:
            dd.train([[1]], *functions)
        assert "in partition 0, epoch 0" in caught.value.__notes__[0]
        assert line in caught.value.__notes__[0]
        dd.train([[1]], tell)
        assert dd.model["count"] == [2]


def test_a_job_that_cannot_be_opened_on_a_worker_says_why() -> None:
    class Unopened:
        def __reduce__(self):
            return refuse, ()

    def refuse():
        raise ZeroDivisionError("cannot be opened")

    what = Unopened()
    with DeepDist(tiny(), peers=1) as dd:
        with pytest.raises(ZeroDivisionError, match="cannot be opened") as caught:
            dd.train([[1]], lambda model, rows: what)
        with pytest.raises(ZeroDivisionError, match="cannot be opened"):
            dd.train([[what]], tell)
        assert "in partition 0, epoch 0" in caught.value.__notes__[0]
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        assert dd.model["w"] == [1]


def test_what_was_learned_before_an_error_stays_and_is_not_counted_again(mode: Any, tmp_path: Path) -> None:
    """Of a master: what it has applied; the rest of a training that fails is dropped."""

    def gradient(model, rows):
        if current().chunk == 2:
            meet(tmp_path, "failing", 3)
            raise UnreadableError("chunk 2")
        return {"w": np.array([float(sum(rows))])}

    def descent(model, update):
        model["w"] += update["w"]
        (tmp_path / f"applied-{update['w'][0]:g}").touch()

    model = tiny()
    with DeepDist(model, mode, peers=1) as dd:
        with pytest.raises(UnreadableError):
            dd.train([[10, 20, 30]], gradient, descent, chunk_rows=1)
        report = dd.train([[1], [2]], gradient, descent)
    assert model["w"] == [33]
    assert report.updates == 2
    assert report.updates_lost == 0


def test_after_ctrl_c_the_session_goes_on(mode: Any, tmp_path: Path, eventually: Any) -> None:
    """As in a notebook, which stays when a training is interrupted."""

    def gradient(model, rows):
        meet(tmp_path, f"worker-{os.getpid()}", 3)  # more than will ever come

    def press() -> None:
        if eventually(lambda: len(os.listdir(tmp_path)) == 2, LONG_S):
            os.kill(os.getpid(), signal.SIGINT)

    model = tiny()
    with DeepDist(model, mode, peers=2) as dd:
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        pressing = threading.Thread(target=press)
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            dd.train([[1], [2], [3]], gradient)
        pressing.join()
        report = dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)})
    assert model["w"] == [3]
    assert report.updates == 2
    assert report.consensus_distance == 0


def test_a_worker_that_dies_is_named_with_its_partition() -> None:
    with DeepDist(tiny(), peers=2) as dd:
        with pytest.raises(RuntimeError, match=r"worker process \d+ ended in partition 0, epoch 0 with exit code 3"):
            dd.train([[1]], lambda model, rows: os._exit(3))
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)})
        assert dd.model["w"] == [2]


def test_numbers_that_are_not_finite_reach_no_replica(mode: Any) -> None:
    def gradient(model, rows):
        return {"sum": np.array([1, np.nan, np.inf])}

    model = model_of_zeros()
    with DeepDist(model, mode, peers=1) as dd:
        with pytest.raises(UsageError, match=r"'sum'.*2 of 3 numbers are NaN or infinite"):
            dd.train([[1]], gradient, add)
        np.testing.assert_array_equal(dd.model["sum"], [0, 0, 0])
        report = dd.train(PARTITIONS, tell, add)
        np.testing.assert_array_equal(dd.model["sum"], np.full(3, 190))
        assert report.updates == 4


def test_an_update_of_another_shape_is_refused_by_name(mode: Any) -> None:
    with DeepDist(tiny(), mode, peers=1) as dd:
        with pytest.raises(UsageError, match=r"the update's 'w': shape \(2,\), expected \(1,\)"):
            dd.train([[1]], lambda model, rows: {"w": np.ones(2)})
        assert dd.model["w"] == [0]


def test_rows_that_cannot_be_read_are_named_by_partition() -> None:
    def broken():
        yield 1
        raise UnreadableError("row 2")

    with DeepDist(tiny(), peers=1) as dd, pytest.raises(UnreadableError) as caught:
        dd.train([[1], broken], lambda model, rows: {"w": np.array([float(sum(rows))])})
    assert "partition 1, epoch 0" in caught.value.__notes__[0]


def test_a_gradient_that_cannot_be_sent_is_an_error() -> None:
    lock = threading.Lock()
    with DeepDist(tiny(), peers=1) as dd:
        with pytest.raises((TypeError, UsageError), match="cannot pickle"):
            dd.train([[1]], lambda model, rows: lock)
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
    assert dd.model["w"] == [1]


def test_an_update_that_the_master_has_begun_to_apply_counts_when_a_worker_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stop = Server.stop

    def announced(server: Server) -> None:
        (tmp_path / "ends" / "closing").touch()
        stop(server)

    monkeypatch.setattr(Server, "stop", announced)

    def gradient(model, rows):
        meet(tmp_path / "begun", str(current().partition), 2)  # a master that applies an update answers nobody
        if current().partition == 1:
            meet(tmp_path / "ends", "gradient", 2)
            raise UnreadableError("partition 1")
        return {"w": np.ones(1)}

    def descent(model, update):
        meet(tmp_path / "ends", "descent", 3)
        model["w"] += update["w"]

    model = tiny()
    with DeepDist(model, "master", peers=2) as dd:
        with pytest.raises(UnreadableError):
            dd.train([[1], [2]], gradient, descent, chunk_rows=1)
        assert dd.model["w"] == [1]
        report = dd.train([[3]], lambda model, rows: {"w": np.ones(1)}, add)
    assert model["w"] == [2]
    assert report.updates_lost == 0


def test_descent_may_hold_on_to_what_only_the_driver_program_has_when_there_is_a_master() -> None:
    lock = threading.Lock()

    def descent(model, update):
        with lock:
            model["w"] += update["w"]

    model = tiny()
    with DeepDist(model, "master", peers=1) as dd:
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, descent)
    assert model["w"] == [1]


@pytest.mark.parametrize("bound", [0, 1])
def test_no_update_is_older_than_a_master_allows(bound: int, tmp_path: Path) -> None:
    def gradient(model, rows):
        time.sleep(0.01 * (1 + 3 * (current().partition == 0)))
        return {"w": np.ones(1), "seen": model["w"].copy()}

    behind: list[float] = []

    def descent(model, update):
        behind.append(float(model["w"][0] - update["seen"][0]))
        model["w"] += update["w"]

    model = tiny()
    with DeepDist(model, "master", peers=3) as dd:
        report = dd.train([range(10)] * 3, gradient, descent, chunk_rows=1, max_staleness=bound)
        with pytest.raises(UsageError, match="max_staleness=-1, expected at least 0"):
            dd.train([[1]], gradient, descent, max_staleness=-1)
    assert model["w"] == [30]
    assert max(behind) <= bound
    assert max(peer.staleness_p95 for peer in report.peers) <= bound


def test_a_master_gives_less_weight_to_stale_updates_where_that_is_asked_for(tmp_path: Path) -> None:
    def gradient(model, rows):
        if current().epoch == 0:
            meet(tmp_path, str(current().partition), 3)  # all have the same model
        return {"w": np.ones(1)}

    model = tiny()
    with DeepDist(model, "master", peers=3) as dd:
        report = dd.train([[1], [2], [3]], gradient, add, staleness_weight="inverse")
        assert model["w"] == [1 + 1 + 0.5]
        assert report.staleness_weight == pytest.approx(2.5 / 3)
        report = dd.train([[1]], gradient, add)
        assert report.staleness_weight is None
        with pytest.raises(UsageError, match=r"staleness_weight and update\['n'\], which is a int"):
            dd.train([[1]], lambda model, rows: {"w": np.ones(1), "n": 1}, add, staleness_weight="inverse")
    assert model["w"] == [3.5]


def test_a_master_leaves_out_updates_that_are_no_numbers_where_that_is_asked_for() -> None:
    def gradient(model, rows):
        (row,) = rows
        return {"w": np.array([np.nan if row == 7 else 1.0])}

    model = tiny()
    with DeepDist(model, "master", peers=2) as dd:
        with pytest.warns(DeepDistWarning, match="1 updates had numbers that are NaN or infinite"):
            report = dd.train([range(10)], gradient, add, chunk_rows=1, on_bad_update="drop")
        assert (report.updates, report.updates_lost, report.lost) == (9, 1, {"not finite": 1})
        assert model["w"] == [9]
        with pytest.raises(UsageError, match="1 of 1 numbers are NaN or infinite"):
            dd.train([range(10)], gradient, add, chunk_rows=1)


def test_a_step_to_infinity_is_undone_and_left_out_where_that_is_asked_for() -> None:
    def descent(model, update):
        with np.errstate(all="ignore"):
            model["w"] *= np.inf if update["w"][0] == 5 else 1
        model["w"] += update["w"]

    model = {"w": np.ones(1)}
    with DeepDist(model, "master", peers=1) as dd, pytest.warns(DeepDistWarning, match="1 updates had numbers"):
        report = dd.train(
            [range(7)],
            lambda model, rows: {"w": np.array([float(sum(rows))])},
            descent,
            chunk_rows=1,
            on_bad_update="drop",
        )
    assert model["w"] == [1 + 21 - 5]
    assert (report.updates, report.lost) == (6, {"not finite": 1})


def test_a_worker_that_is_killed_while_a_master_waits_for_it_is_replaced(tmp_path: Path) -> None:
    def gradient(model, rows):
        (row,) = rows
        if row == 3 and once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": np.ones(1)}

    model = tiny()
    with DeepDist(model, "master", peers=2) as dd:
        report = dd.train([range(6)] * 2, gradient, add, chunk_rows=1, max_staleness=0)
    assert model["w"] == [12]
    assert (report.updates, report.updates_lost) == (12, 0)


@pytest.mark.parametrize(("n_fetch", "n_push"), [(1, 4), (4, 1), (2, 4), (4, 3)])
def test_a_worker_that_is_killed_within_a_group_of_chunks_costs_none_of_them(
    n_fetch: int, n_push: int, tmp_path: Path
) -> None:
    """Two chunks of the group were computed, and go with the worker: the next attempt computes all of it."""

    def gradient(model, rows):
        (row,) = rows
        if row == 6 and once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": np.array([2.0**row])}

    model = tiny()
    with DeepDist(model, "master", peers=2) as dd:
        report = dd.train([range(10)] * 2, gradient, add, chunk_rows=1, n_fetch=n_fetch, n_push=n_push)
        assert (tmp_path / "killed").exists()
        assert model["w"] == [2 * (2**10 - 1)]
        assert (report.updates, report.updates_lost) == (2 * -(-10 // n_push), 0)
        assert dd._session.snapshot().units == 20


@pytest.mark.parametrize("bound", [0, 2])
def test_a_group_of_chunks_is_no_older_than_a_master_allows(bound: int) -> None:
    def gradient(model, rows):
        time.sleep(0.005 * (1 + 3 * (current().partition == 0)))
        return {"w": np.ones(1)}

    model = tiny()
    with DeepDist(model, "master", peers=3) as dd:
        report = dd.train([range(10)] * 3, gradient, add, chunk_rows=1, n_fetch=2, n_push=2, max_staleness=bound)
    assert model["w"] == [30]
    assert report.updates == 15
    assert max(peer.staleness_p95 for peer in report.peers) <= bound


def test_a_descent_that_cannot_be_sent_is_an_error_where_workers_run_it() -> None:
    lock = threading.Lock()

    def descent(model, update):
        with lock:
            model["w"] += update["w"]

    model = tiny()
    with DeepDist(model, "master", peers=1) as dd:
        with pytest.raises((TypeError, UsageError), match="cannot pickle"):
            dd.train([[1, 2]], lambda model, rows: {"w": np.ones(1)}, descent, chunk_rows=1, n_fetch=2)
        dd.train([[1, 2]], lambda model, rows: {"w": np.ones(1)}, descent, chunk_rows=1, n_push=2)
    assert model["w"] == [2]


def test_a_master_applies_one_attempt_of_a_chunk() -> None:
    model = tiny()
    with DeepDist(model, "master", peers=2) as dd:
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, add)
        server = dd._session._server
        job = Job(
            run=dd._session._run,
            skeleton=Model(tiny()).skeleton(),
            gradient=lambda model, rows: {"w": np.ones(1)},
            partitions=1,
            chunk_rows=1,
            peers=2,
            seed=0,
            epochs_before=1,
            master=server.address,
        )
        coordinator = Coordinator(dd._session._served, add, lambda: None)
        with feeding([server], coordinator):
            for attempt in range(3):
                result = run_partition(job, None, 0, 0, range(3), attempt)
                assert result == TaskResult(rows=3, updates=0 if attempt else 3, units=3), attempt
        assert dd.model["w"] == [4]
        assert coordinator.applied == {(1, 0, 0), (1, 0, 1), (1, 0, 2)}
    assert model["w"] == [4]


def test_a_training_in_which_two_attempts_had_different_rows_is_an_error(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither heard of the other in time; each has published."""

    def raced(engine: LocalEngine, job: Job, data: Any, progress: Any) -> Any:
        def attempt(number: int, fingerprint: int) -> TaskResult:
            if job.master is not None:
                return run_partition(job, None, 0, 3, range(3), number, fingerprint)
            agent = AgentClient(engine._seats[number].folder)
            agent.furthest = lambda epoch, partition: -1  # type: ignore[method-assign]
            try:
                return run_partition(job, agent, 0, 3, range(3), number, fingerprint)
            finally:
                agent.close()

        return [attempt(number, fingerprint) for number, fingerprint in enumerate(fingerprints)][:1]  # as Spark does

    monkeypatch.setattr(MasterClient, "furthest", lambda client, epoch, partition: -1)
    monkeypatch.setattr(LocalEngine, "run", raced)
    with DeepDist(tiny(), mode, peers=2) as dd:
        fingerprints = 5, 5
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, add, chunk_rows=1)
        assert dd.model["w"] == [3]
        fingerprints = 5, 6
        for _ in range(2):
            with pytest.raises(UsageError, match=r"partition 3 of epoch 0: .* got different ones"):
                dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, add, chunk_rows=1)
        fingerprints = 7, 7
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)}, add, chunk_rows=1)


# ------------------------------------------------------------------------------------------------- processes that die


def agents_of(dd: DeepDist[Any]) -> list[int]:
    """The pids of the workers' agents that live."""
    registrar = dd._session._registrar
    pids = [member.pid for member in registrar.by_role("peer")]
    return [pid for pid in pids if local_socket.Process(pid).alive]


def once(folder: Path, name: str) -> bool:
    """True for the first one who asks."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def test_a_worker_that_is_killed_costs_no_chunk(mode: Any, tmp_path: Path) -> None:
    def gradient(model, rows):
        (row,) = rows
        if row == 2 and once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": np.full(1, float(row))}

    model = tiny()
    with DeepDist(model, mode, peers=2) as dd:
        report = dd.train([[1, 2, 3], [10, 20]], gradient, chunk_rows=1, epochs=2)
    assert model["w"] == [2 * 36]
    assert (report.updates, report.updates_lost, report.rows) == (10, 0, 10)
    assert report.missing == ()


def test_tries_are_counted_and_the_last_failure_is_raised(tmp_path: Path) -> None:
    def gradient(model, rows):
        (tmp_path / f"tried-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        DeepDist(tiny(), peers=1) as dd,
        pytest.raises(RuntimeError, match=r"worker process \d+ ended in partition 0, epoch 0 by SIGKILL") as caught,
    ):
        dd.train([[1]], gradient)
    assert caught.value.__notes__ == ["partition 0, epoch 0 was tried 4 times"]
    assert len(list(tmp_path.glob("tried-*"))) == 4


def test_an_attempt_of_a_partition_is_told_from_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    train = _Worker.train

    def spied(self, job, folder, epoch, partition, attempt, rows):
        seen.append((epoch, partition, attempt))
        return train(self, job, folder, epoch, partition, attempt, rows)

    monkeypatch.setattr(_Worker, "train", spied)

    def gradient(model, rows):
        if once(tmp_path, "first") or once(tmp_path, "second"):
            os._exit(3)
        return {"w": np.ones(1)}

    with DeepDist(tiny(), peers=1) as dd:
        dd.train([[1], [2]], gradient)
    assert seen == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)]


def test_an_error_of_the_user_s_code_is_not_tried_again(tmp_path: Path) -> None:
    def gradient(model, rows):
        (tmp_path / f"tried-{time.monotonic_ns()}").touch()
        raise UnreadableError("always")

    with DeepDist(tiny(), peers=1) as dd, pytest.raises(UnreadableError):
        dd.train([[1]], gradient)
    assert len(list(tmp_path.glob("tried-*"))) == 1


class Killer:
    """Kills agents when a gradient asks for it, by a file, and lets it go on."""

    def __init__(self, folder: Path, choose: Any) -> None:
        self.folder = folder
        self.killed: list[int] = []
        self._choose = choose
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        if wait_for(self.folder / "now"):
            self.killed = self._choose()
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)
        (self.folder / "done").touch()

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._thread.join()


def wait_for(file: Path) -> bool:
    give_up = time.monotonic() + LONG_S
    while not file.exists():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("discipline", "how_many"),
    [
        ("replicate", 1),
        ("mix", 2),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [("replicate", 2), ("mix", 1)]),
    ],
)
def test_a_training_outlives_its_agents(discipline: Any, how_many: int, tmp_path: Path, eventually: Any) -> None:
    """One of two, and both at once: then the replica lives on in the driver program."""

    def gradient(model, rows):
        (row,) = rows
        if row == 5 and current().epoch == 1 and once(tmp_path, "now"):
            wait_for(tmp_path / "done")
        return {"w": np.ones(1)}

    def chosen() -> list[int]:
        if discipline == "replicate":  # 35 are published until all stand still
            eventually(lambda: dd.model["w"][0] >= 33, LONG_S)
        return agents_of(dd)[:how_many]

    model = tiny()
    with DeepDist(model, discipline=discipline, peers=2) as dd:
        with Killer(tmp_path, chosen) as killer:
            report = dd.train([range(10), range(10)], gradient, chunk_rows=1, epochs=3)
        assert len(killer.killed) == how_many
        assert 1 <= len(agents_of(dd)) <= 2, "a seat that gets no partition any more has none"
        assert {int(name.rpartition(":")[2]) for name in report.missing} == set(killer.killed)
        assert report.rows == 60
        if discipline == "replicate":
            assert report.consensus_distance == 0
            assert report.updates_lost <= 4, "what an agent had accepted and nobody had pulled"
            assert dd.model["w"] == [60 - report.updates_lost]
        before = float(dd.model["w"][0])
        report = dd.train([[1], [2]], gradient)
        assert (report.updates, report.updates_lost, report.missing) == (2, 0, ())
        if discipline == "replicate":
            assert dd.model["w"] == [before + 2]


def test_an_agent_that_was_killed_between_trainings_is_replaced(place: Any, eventually: Any) -> None:
    model = tiny()
    with DeepDist(model, peers=2) as dd:
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)})
        os.kill(agents_of(dd)[0], signal.SIGKILL)
        assert eventually(lambda: len(agents_of(dd)) == 1, LONG_S)
        begin = time.monotonic()
        report = dd.train([[1], [2], [3]], lambda model, rows: {"w": np.ones(1)})
        assert time.monotonic() - begin < LONG_S
        assert (report.updates, report.updates_lost, report.missing) == (3, 0, ())
        assert len(place.agents()) == 3
    assert model["w"] == [5]


# ------------------------------------------------------------------------------------------------- starts that fail

LIMITED = """
import os, resource, sys
if os.path.exists({flag!r}) and "from p2p.agent.process import main; main()" in sys.orig_argv:
    {what}
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`failing(what)`: agents do that before anything else, as long as the file that it returns is there."""

    def begin(what: str) -> Path:
        flag = tmp_path / "failing"
        flag.touch()
        (tmp_path / "sitecustomize.py").write_text(LIMITED.format(flag=str(flag), what=what))
        monkeypatch.syspath_prepend(tmp_path)
        return flag

    return begin


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))", r"did not start: no room for \d+ bytes of"),
        ("sys.modules['numpy'] = None", "ended with exit code 1 while it started: see its last words"),
    ],
    ids=["no room", "no numpy"],
)
def test_a_start_that_fails_says_why_soon_and_another_may_succeed(failing: Any, what: str, why: str) -> None:
    flag = failing(what)
    model = {"w": np.zeros(100_000)}
    with DeepDist(model, peers=2) as dd:
        for _ in range(2):
            begin = time.monotonic()
            with pytest.raises(UsageError, match=why):
                dd.train([[1], [2]], lambda model, rows: {"w": np.ones(100_000)})
            assert time.monotonic() - begin < LONG_S
        assert dd.model["w"][0] == 0
        flag.unlink()
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(100_000)})
    assert model["w"][0] == 2


def test_a_session_whose_start_failed_ends_without_another_error(failing: Any) -> None:
    failing("resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))")
    with (
        pytest.raises(UsageError, match="no room for"),
        DeepDist({"w": np.zeros(100_000)}, peers=1) as dd,
    ):
        dd.train([[1]], lambda model, rows: {"w": np.ones(100_000)})


# -------------------------------------------------------------------------------------------------- what is left behind


def test_an_error_of_the_user_ends_the_session_with_the_model_up_to_date(place: Any) -> None:
    def notebook() -> None:
        with DeepDist(model, peers=2) as dd:
            dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)})
            assert len(place.agents()) == 3
            raise KeyError("mine")

    model = tiny()
    with pytest.raises(KeyError, match="mine"):
        notebook()
    assert model["w"] == [2]
    assert place.leftovers() == {}


def test_ctrl_c_ends_everything(place: Any, start_program: Any, eventually: Any) -> None:
    program = start_program(place, "local_endless")
    program.wait_for_training(LONG_S)
    assert len(place.agents()) == 3
    program.press_ctrl_c()
    assert program.wait(LONG_S) != 0
    assert "KeyboardInterrupt" in program.output
    assert eventually(lambda: place.leftovers() == {}, LONG_S), place.leftovers()


def test_a_worker_whose_driver_program_is_gone_before_it_looks_ends() -> None:
    """It may have been sent a task already."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(LONG_S)
    ours, theirs = Pipe()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(theirs.fileno()), str(gone.pid)], pass_fds=[theirs.fileno()]
    )
    try:
        assert worker.wait(LONG_S) == 1
    finally:
        worker.kill()
        worker.wait(LONG_S)
        ours.close()
        theirs.close()


def test_a_driver_program_that_is_killed_takes_its_agents_and_workers_along(
    place: Any, start_program: Any, eventually: Any
) -> None:
    program = start_program(place, "local_endless")
    program.wait_for_training(LONG_S)
    os.kill(program.process.pid, signal.SIGKILL)
    program.wait(LONG_S)
    assert eventually(lambda: place.processes() == {}, LONG_S), place.processes()
    assert place.leftovers() == {}


# ------------------------------------------------------------------------------------- what was wrong without a word


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_descent_of_the_master_that_would_end_its_thread_is_told(error: BaseException) -> None:
    def descent(model, update):
        raise error

    with DeepDist(tiny(), "master", peers=2) as dd:
        with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
            dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)}, descent)
        assert "in descent, in the driver program" in caught.value.__notes__[0]
        dd.train([[1], [2]], lambda model, rows: {"w": np.ones(1)}, add)
        assert dd.model["w"] == [2]


def test_rows_in_a_set_come_in_the_same_order_again(tmp_path: Path) -> None:
    words = {f"word {number}" for number in range(200)}

    def gradient(model, rows):
        (tmp_path / str(os.getpid())).write_text("\n".join(rows))
        if once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"w": np.ones(1)}

    with DeepDist(tiny(), peers=1) as dd:
        dd.train([words], gradient)
    first, second = [path.read_text() for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert first == second


def test_a_sum_of_finite_updates_that_is_not_finite_is_told(mode: Any) -> None:
    largest = float(np.finfo(np.float32).max)
    with (
        DeepDist({"w": np.zeros(1, np.float32)}, mode, peers=1) as dd,
        pytest.raises((UsageError, RuntimeError), match=r"'w'.*(not|NaN)"),
    ):
        dd.train(
            [[1], [2]], lambda model, rows: {"w": np.full(1, largest, np.float32)}, None if mode == "p2p" else add2
        )


def add2(model, update):
    with np.errstate(over="ignore"):
        model["w"] += update["w"]


@pytest.mark.parametrize("value", [None, [1.0], 1.0, np.zeros(3), np.zeros(1, object)], ids=repr)
def test_what_is_no_such_array_in_the_place_of_one_is_refused(value: Any) -> None:
    with DeepDist(tiny(), peers=1) as dd:
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        dd.model["w"] = value
        with pytest.raises(UsageError, match="'w'"):
            dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        dd.model["w"] = np.full(1, 5.0)
        dd.train([[1]], lambda model, rows: {"w": np.ones(1)})
        assert dd.model["w"] == [6]
