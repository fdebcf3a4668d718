"""Training by L-BFGS on real processes: what arrives in the model, and what becomes of lost, slow and wrong ones."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import zmq

from gossip.errors import UsageError
from gossip.zmq.sockets import Keys, bind
from p2p import LBFGS, DeepDist, Patience, SimulatedCluster, current
from p2p.lbfgs.coordinator import Coordinator
from p2p.lbfgs.crew import LocalCrew
from p2p.lbfgs.launch import Settings
from p2p.lbfgs.method.minimizer import HistoryLost, Minimizer
from p2p.lbfgs.report import LBFGSReport
from p2p.lbfgs.workforce import WorkerLostError

pytestmark = [pytest.mark.sockets, pytest.mark.slow]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

LONG_S = 60.0
FEATURES = 6
EXACT = LBFGS(gradient_tolerance=1e-5, decrease_tolerance=0.0)


def partitions(count: int = 3, rows: int = 10) -> list[Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, rows, FEATURES)) * np.geomspace(1, 10, FEATURES)
    y = x @ np.arange(FEATURES) + 3 + rng.normal(size=(count, rows))
    return [list(zip(x[p], y[p], strict=True)) for p in range(count)]


def squares(model: Any, rows: Any) -> tuple[float, dict[str, Any]]:
    """Least squares, with an intercept."""
    x, y = map(np.array, zip(*rows, strict=True))
    off = x @ model["w"] + model["b"] - y
    return float(off @ off) / 2, {"w": x.T @ off, "b": off.sum()}


def model() -> dict[str, Any]:
    return {"w": np.zeros(FEATURES), "b": np.array(0.0)}


def solution(data: list[Any]) -> Any:
    rows = [row for partition in data for row in partition]
    x, y = np.array([x for x, _ in rows]), np.array([y for _, y in rows])
    return np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]


def check(trained: dict[str, Any], data: list[Any], atol: float = 1e-5) -> None:
    expected = solution(data)
    np.testing.assert_allclose(trained["w"], expected[:-1], atol=atol)
    np.testing.assert_allclose(trained["b"], expected[-1], atol=atol)


def train(
    function: Any = squares, optimizer: LBFGS = EXACT, data: list[Any] | None = None, **options: Any
) -> tuple[LBFGSReport, dict[str, Any]]:
    with DeepDist(model(), optimizer=optimizer, peers=options.pop("peers", 2)) as dd:
        report = dd.train(partitions() if data is None else data, function, **{"chunk_rows": 4, **options})
        assert isinstance(report, LBFGSReport)
        return report, dd.model


# ------------------------------------------------------------------------------------------------ what comes of it


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("peers", "shards", "chunk_rows"), [(1, None, None), (3, 2, 4), (2, 50, 3)])
def test_the_minimum_is_found_whatever_portions_workers_and_shards(
    peers: int, shards: int | None, chunk_rows: int | None
) -> None:
    optimizer = LBFGS(gradient_tolerance=1e-5, decrease_tolerance=0.0, shards=shards)
    report, found = train(optimizer=optimizer, peers=peers, chunk_rows=chunk_rows)
    check(found, partitions())
    assert report.ended == "gradient below 1e-05"
    assert report.rows == 30 * report.passes
    assert report.updates == report.passes * {None: 3, 4: 9, 3: 12}[chunk_rows], "each portion counts once a pass"
    assert len(report.objectives) == len(report.pass_seconds) == report.passes
    assert report.objective == min(report.objectives)
    assert sum(peer.role == "shard" for peer in report.peers) == min(shards or peers, FEATURES + 1)
    assert f"{report.passes} passes of {30 * report.passes} rows in all" in str(report)


@pytest.mark.usefixtures("place")
def test_processes_take_the_steps_of_shards_in_this_process(in_process: Any) -> None:
    data = partitions()

    def whole(x: Any) -> Any:
        loss, gradient = squares({"b": x[0], "w": x[1:]}, [row for partition in data for row in partition])
        return loss, np.concatenate([[gradient["b"]], gradient["w"]])

    optimizer = LBFGS(gradient_tolerance=0.0, decrease_tolerance=0.0, history=4)
    report, _ = train(optimizer=optimizer, epochs=12)
    course = Minimizer(in_process(whole, np.zeros(FEATURES + 1), history=4), optimizer, 12).run()
    assert report.passes == 12
    assert report.ended == "all 12 passes"
    np.testing.assert_allclose(report.objectives, course.by_pass, rtol=1e-10)


@pytest.mark.usefixtures("place")
def test_the_next_training_begins_with_what_the_user_wrote() -> None:
    data = partitions()
    with DeepDist(model(), optimizer=LBFGS(max_passes=5), peers=1) as dd:
        first = dd.train(data, squares)
        dd.model["w"][:] = solution(data)[:-1]
        dd.model["b"][...] = solution(data)[-1]
        second = dd.train(data, squares)
    assert first.passes == 5
    assert second.objectives[0] < first.objective


@pytest.mark.usefixtures("place")
def test_float32_stays_float32() -> None:
    def function(model: Any, rows: Any) -> Any:
        assert model["w"].dtype == np.float32
        return squares(model, rows)

    start = {"w": np.zeros(FEATURES, np.float32), "b": np.zeros((), np.float32)}
    with DeepDist(start, optimizer=LBFGS(gradient_tolerance=1e-3), peers=2) as dd:
        dd.train(partitions(), function)
        check(dd.model, partitions(), atol=1e-2)
        assert dd.model["w"].dtype == np.float32


class KeyedCrew(LocalCrew):
    """As on Spark: sockets are on TCP, and only who has the keys is heard."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = Keys.generate()
        self.endpoint = ""

    def listen(self, socket: Any) -> None:
        self.endpoint = bind(socket, "127.0.0.1")

    def settings(self, name: str) -> Settings:
        assert self.keys is not None
        return Settings(name, self.endpoint, os.getpid(), keys=(self.keys.public, self.keys.secret))


@pytest.mark.usefixtures("place")
def test_processes_speak_over_encrypted_sockets_where_others_can_reach_them(monkeypatch: pytest.MonkeyPatch) -> None:
    crews = []

    def crew() -> KeyedCrew:
        crews.append(KeyedCrew())
        return crews[-1]

    strangers: list[zmq.Socket[bytes]] = []
    context: zmq.Context[Any] = zmq.Context()

    def squares_and_a_stranger(self: Coordinator, step: float) -> Any:
        if not strangers:  # without keys it is not heard, and nothing comes of what it says
            strangers.append(context.socket(zmq.DEALER))
            strangers[0].connect(crews[0].endpoint)
            strangers[0].send(b"nonsense")
        return real(self, step)

    real = Coordinator.evaluate
    monkeypatch.setattr(Coordinator, "evaluate", squares_and_a_stranger)
    monkeypatch.setattr("p2p.lbfgs.session.LocalCrew", crew)
    report, found = train()
    context.destroy(linger=0)
    check(found, partitions())
    assert strangers
    assert report.updates == 9 * report.passes


@pytest.mark.usefixtures("place")
def test_what_is_no_message_is_dropped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real, context, sent = Coordinator.evaluate, zmq.Context(), []

    def with_a_stranger(self: Coordinator, step: float) -> Any:
        if not sent:
            assert isinstance(self._crew, LocalCrew)
            for endpoint in (f"ipc://{self._crew.folder}/driver", self.members[self._shards.names[0]].endpoint):
                sent.append(context.socket(zmq.DEALER))
                sent[-1].connect(endpoint)
                sent[-1].send(b"nonsense")
                sent[-1].send_multipart([b"", b""])
                sent[-1].send(b"\x91\xa5Count")
        return real(self, step)

    monkeypatch.setattr(Coordinator, "evaluate", with_a_stranger)
    _, found = train()
    context.destroy(linger=0)
    check(found, partitions())
    assert sum("no message" in record.message for record in caplog.records) == 3


# ------------------------------------------------------------------------------------------------- lost and slow ones


@pytest.mark.usefixtures("place")
def test_a_worker_that_ends_is_replaced_and_its_portion_computed_again(tmp_path: Path) -> None:
    def function(model: Any, rows: Any) -> Any:
        rows = list(rows)
        if float(model["b"]) != 0.0:
            with suppress(FileExistsError), (tmp_path / "once").open("x"):  # of two at the same time only one dies
                os.kill(os.getpid(), signal.SIGKILL)
        return squares(model, rows)

    report, found = train(function)
    check(found, partitions())
    assert (tmp_path / "once").exists()
    assert sum(peer.role == "worker" for peer in report.peers) == 3
    assert report.updates == 9 * report.passes
    assert report.restarts == 0


@pytest.mark.usefixtures("place")
def test_a_portion_that_ends_all_workers_ends_the_training() -> None:
    def function(model: Any, rows: Any) -> Any:
        os._exit(3)

    with pytest.raises(WorkerLostError, match="ended with exit code 3, as 3 before it at the same portion"):
        train(function, data=[[(np.zeros(FEATURES), 0.0)]], peers=1)


def kill_a_shard(coordinator: Coordinator, index: int) -> None:
    crew = coordinator._crew
    assert isinstance(crew, LocalCrew)
    _, process = crew._processes[coordinator._shards.names[index]]
    process.kill()
    process.wait(LONG_S)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("when", ["evaluate", "accept", "direct", "pull first", "pull last"])
def test_a_shard_that_ends_costs_the_history_and_nothing_else(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    name = "_pull" if when.startswith("pull") else when
    real = getattr(Coordinator, name)

    def killing(self: Coordinator, *given: Any) -> Any:
        calls.append(given)
        # of two shards the first one is read at odd calls: at the eighth it has been read, and the other one has not
        if len(calls) == (8 if when == "pull last" else 7):
            kill_a_shard(self, 0 if when == "pull last" else 1)
        return real(self, *given)

    monkeypatch.setattr(Coordinator, name, killing)
    data = partitions()
    evaluated, begun_from = [], []
    evaluate, restart = Coordinator.evaluate, Coordinator.restart

    def evaluating(self: Coordinator, step: float) -> Any:
        found = evaluate(self, step)
        if not begun_from:
            evaluated.append(found.value)
        return found

    def restarting(self: Coordinator) -> None:
        restart(self)
        begun_from.append({name: np.array(value) for name, value in self._arrays.items()})

    monkeypatch.setattr(Coordinator, "evaluate", evaluating)
    monkeypatch.setattr(Coordinator, "restart", restarting)
    report, found = train()
    check(found, data)
    assert report.restarts == 1
    assert 9 * report.passes - 9 <= report.updates <= 9 * report.passes
    assert "the history began anew 1 times, as a shard was gone" in str(report)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(report.objectives))
    whole = [row for partition in data for row in partition]
    at = squares(begun_from[0], iter(whole))[0]
    assert any(at == pytest.approx(each, rel=1e-12) for each in evaluated), "it goes on from a point that was whole"


@pytest.mark.usefixtures("place")
def test_a_portion_of_a_worker_that_stands_still_is_computed_by_another(tmp_path: Path) -> None:
    """The first worker that comes to the fourth pass waits for the end of the training, which does not wait for it."""

    def function(model: Any, rows: Any) -> Any:
        rows = list(rows)
        task = current()
        if task is not None and task.epoch == 3:
            try:
                (tmp_path / "slow").mkdir()
            except FileExistsError:
                pass
            else:
                give_up = time.monotonic() + LONG_S
                while not (tmp_path / "over").exists():
                    if time.monotonic() > give_up:
                        raise TimeoutError("the training waits for a worker that stands still")
                    time.sleep(0.02)
        return squares(model, rows)

    report, found = train(function)
    (tmp_path / "over").touch()
    check(found, partitions())
    assert (tmp_path / "slow").exists()
    assert report.backups >= 1
    assert report.updates == 9 * report.passes


@pytest.mark.usefixtures("place")
def test_ctrl_c_leaves_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    real_evaluate, real_pull, values, pulls = Coordinator.evaluate, Coordinator._pull, [], []

    def evaluate(self: Coordinator, step: float) -> Any:
        values.append(real_evaluate(self, step))
        return values[-1]

    def pull(self: Coordinator, index: int, iterate: int) -> None:
        pulls.append(index)
        if len(pulls) == 6:  # one of two slices of the third step is written
            raise KeyboardInterrupt
        real_pull(self, index, iterate)

    monkeypatch.setattr(Coordinator, "evaluate", evaluate)
    monkeypatch.setattr(Coordinator, "_pull", pull)
    trained = model()
    with DeepDist(trained, optimizer=EXACT, peers=2) as dd, pytest.raises(KeyboardInterrupt):
        dd.train(partitions(), squares)
    whole = [row for partition in partitions() for row in partition]
    assert squares(trained, iter(whole))[0] == pytest.approx(values[-1].value, rel=1e-12)
    assert values[-1].value < values[0].value


# -------------------------------------------------------------------------------------------------------- wrong ones


@pytest.mark.usefixtures("place")
def test_what_the_users_function_raises_is_raised_here() -> None:
    def function(model: Any, rows: Any) -> Any:
        if float(model["b"]) != 0:
            raise ValueError("mine")
        return squares(model, rows)

    trained = model()
    with DeepDist(trained, optimizer=EXACT, peers=2) as dd:
        with pytest.raises(ValueError, match="mine") as error:
            dd.train(partitions(), function)
        assert "partition " in str(error.value.__notes__)
        dd.train(partitions(), squares)  # another training is none the worse
        check(dd.model, partitions())


@pytest.mark.usefixtures("place")
def test_a_source_with_other_rows_in_each_pass_is_refused() -> None:
    def source() -> Any:
        return [(np.random.default_rng().normal(size=FEATURES), 1.0)] * np.random.default_rng().integers(1, 1000)

    with pytest.raises(UsageError, match="partition 0 has other rows than in an earlier pass"):
        train(data=[source], peers=1, chunk_rows=None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lbfgs"}, "optimizer is a str, expected p2p.LBFGS"),
        ({"mode": "master"}, "mode='master' with optimizer=LBFGS(...), expected mode='p2p'"),
        ({"discipline": "mix"}, "discipline='mix' with optimizer=LBFGS(...), expected discipline='replicate'"),
        ({"engine": SimulatedCluster(peers=2)}, "with optimizer=LBFGS(...), expected engine=None"),
        ({"codec": "int8"}, "codec='int8' with optimizer=LBFGS(...), expected codec='auto'"),
    ],
)
def test_sessions_that_it_does_not_go_with_are_refused(options: Any, words: str) -> None:
    with pytest.raises(UsageError) as error:
        DeepDist(model(), **{"optimizer": LBFGS(), **options})
    assert words in str(error.value)


def test_numbers_that_it_does_not_train_are_refused() -> None:
    with pytest.raises(UsageError, match="'n' of the model has dtype int64, expected float32 or float64"):
        DeepDist({"n": np.zeros(3, np.int64)}, optimizer=LBFGS())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"descent": lambda model, update: None}, "descent with optimizer=LBFGS(...), expected none"),
        ({"combine": "mean"}, "combine with optimizer=LBFGS(...), expected none"),
        ({"exchange": "partition"}, "exchange='partition' with optimizer=LBFGS(...), expected 'chunk'"),
        ({"evaluate": len, "stop_when": Patience("value", mode="max")}, "evaluate with optimizer=LBFGS(...)"),
        ({"checkpoint": "somewhere"}, "checkpoint with optimizer=LBFGS(...), expected none"),
        ({"watchers": (1,)}, "watchers with optimizer=LBFGS(...), expected none"),
        ({"epochs": 0}, "epochs=0, expected at least 1"),
        ({"data": []}, "data is an empty list"),
    ],
)
def test_trainings_that_it_does_not_go_with_are_refused(options: Any, words: str) -> None:
    asked = {"data": partitions(), "gradient": squares, **options}
    with DeepDist(model(), optimizer=LBFGS()) as dd, pytest.raises(UsageError) as error:
        dd.train(**asked)
    assert words in str(error.value)


def test_a_history_lost_at_the_start_is_told(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    def start(self: Coordinator) -> None:
        raise HistoryLost("shard 0")

    monkeypatch.setattr(Coordinator, "start", start)
    with pytest.raises(UsageError, match="L-BFGS could not begin: shard 0"):
        train()
