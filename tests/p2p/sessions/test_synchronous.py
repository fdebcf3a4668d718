"""The synchronous baselines on this machine's processes, beside the same computation in one process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from p2p import DeepDist, DeepDistWarning, UsageError, current
from p2p.descents import SGD, LocalSteps, Momentum
from p2p.engines.local import LocalEngine
from p2p.master import barrier
from p2p.report import Report

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.usefixtures("place")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import this file

MODES: list[Any] = ["sync", "averaging"]
LONG_S = 50.0
RATE = 0.3


def logistic(model: Any, rows: Any) -> Any:
    """The mean gradient of some rows, as one product: the same rows give the same bits."""
    found = list(rows)
    x, y = np.array([row[0] for row in found]), np.array([row[1] for row in found])
    return {"w": x.T @ (1 / (1 + np.exp(-(x @ model["w"]))) - y) / len(found), "rows": np.array(len(found))}


def descent(model: Any, update: Any) -> None:
    model["w"] -= RATE * update["w"]
    model["rows"] += update["rows"]


def zeros() -> dict[str, Any]:
    return {"w": np.zeros(4), "rows": np.array(0)}


def rows_of(*sizes: int) -> list[list[Any]]:
    random = np.random.default_rng(7)
    return [[(random.normal(size=4), float(random.random() < 0.5)) for _ in range(size)] for size in sizes]


UNEVEN = rows_of(7, 4, 0, 9, 1)


def chunks(rows: Any, size: int) -> Iterator[list[Any]]:
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk


def stepped(data: Any, width: int, size: int, epochs: int, rule: Callable[[Any], Any] = np.mean) -> tuple[Any, int]:
    """What `width` workers come to by synchronous steps, and how many steps they take."""
    model, steps = zeros(), 0
    for _ in range(epochs):
        for first in range(0, len(data), width):
            wave = [list(chunks(rows, size)) for rows in data[first : first + width]]
            for step in range(max(map(len, wave))):
                updates = [logistic(model, cut[step]) for cut in wave if len(cut) > step]
                total = updates[0]["w"]
                for update in updates[1:]:
                    total = total + update["w"]
                model["w"] -= RATE * (total / len(updates) if rule is np.mean else total)
                model["rows"] += sum(int(update["rows"]) for update in updates)
                steps += 1
    return model, steps


def averaged(data: Any, size: int, epochs: int) -> Any:
    """What models that are trained by themselves come to, averaged after each epoch."""
    model = zeros()
    for _ in range(epochs):
        found = []
        for rows in data:
            mine = {name: array.copy() for name, array in model.items()}
            for chunk in chunks(rows, size):
                descent(mine, logistic(mine, chunk))
            found.append(mine["w"])
        model["w"][...] = np.average(found, axis=0, weights=[len(rows) for rows in data])
        model["rows"] += sum(map(len, data))
    return model


def trained(mode: Any, data: Any, peers: int, **options: Any) -> tuple[Any, Report]:
    model = zeros()
    with DeepDist(model, mode, peers=peers, progress=False) as dd:
        report = dd.train(data, **{"gradient": logistic, "descent": descent, "epochs": 2, "chunk_rows": 2, **options})
    return model, report


def once(folder: Path, name: str) -> bool:
    """Whether nobody was here before."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("peers", [1, 2, 5])
def test_steps_are_those_of_one_process_bit_for_bit(peers: int) -> None:
    """Also with fewer workers than partitions, which then are taken in waves."""
    model, report = trained("sync", UNEVEN, peers)
    expected, steps = stepped(UNEVEN, peers, 2, 2)
    assert model["w"].tobytes() == expected["w"].tobytes()
    assert model["rows"] == expected["rows"] == 2 * 21, "integers are summed"
    assert (report.mode, report.rows, report.updates, report.updates_lost) == ("sync", 42, steps, 0)
    assert "mode sync" in str(report)


def test_a_partition_may_be_one_chunk_so_that_an_epoch_of_as_many_workers_is_one_full_gradient() -> None:
    model, report = trained("sync", rows_of(3, 5, 2), 3, chunk_rows=None, epochs=3)
    expected, _ = stepped(rows_of(3, 5, 2), 3, 100, 3)
    assert model["w"].tobytes() == expected["w"].tobytes()
    assert (report.rows, report.updates) == (30, 3)


def test_gradients_that_are_sums_are_summed_where_that_is_asked_for() -> None:
    model, _ = trained("sync", UNEVEN, 3, combine="sum")
    expected, _ = stepped(UNEVEN, 3, 2, 2, np.sum)
    assert model["w"].tobytes() == expected["w"].tobytes()


def test_updates_are_added_in_the_order_of_partitions_whoever_comes_first() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        (row,) = rows
        if row > 1:
            threading.Event().wait(0.3)
        return {"w": np.full(4, row)}

    data = [[1e16], [-1e16], [1.0]]  # any other order comes to 0
    model, _ = trained("sync", data, 3, gradient=gradient, descent=None, epochs=1, combine="sum")
    assert model["w"].tolist() == [1.0] * 4


@pytest.mark.parametrize("peers", [1, 3])
def test_models_are_averaged_by_rows_after_each_epoch(peers: int) -> None:
    model, report = trained("averaging", UNEVEN, peers, epochs=3)
    expected = averaged(UNEVEN, 2, 3)
    np.testing.assert_allclose(model["w"], expected["w"], rtol=0, atol=1e-14)
    assert model["rows"] == expected["rows"] == 3 * 21, "integers are summed"
    assert (report.mode, report.rows, report.updates, report.updates_lost) == ("averaging", 63, 3, 0)


def test_velocities_of_workers_begin_anew_with_each_partition() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        return {"w": logistic(model, rows)["w"]}

    found = [trained("averaging", UNEVEN, peers, gradient=gradient, descent=Momentum(0.1))[0]["w"] for peers in (1, 4)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-14)


def in_place(model: Any, rows: Any) -> Any:
    return LocalSteps(lambda model, rows: {"w": logistic(model, rows)["w"]}, SGD(RATE), rows=2)(model, rows)


def test_a_gradient_that_trains_in_place_is_averaged_or_its_change_is() -> None:
    data = rows_of(6, 6, 6)
    whole, _ = trained("averaging", data, 3, gradient=in_place, descent=None, chunk_rows=None)
    steps, _ = trained("sync", data, 3, gradient=in_place, descent=None, chunk_rows=None)
    expected = averaged(data, 2, 2)["w"]
    np.testing.assert_allclose(whole["w"], expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(steps["w"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_updates_without_a_descent_are_added(mode: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        found = list(rows)
        model["w"] += 100  # of a copy
        return {"w": np.full(4, float(sum(found))), "rows": np.array(len(found))}

    model, _ = trained(mode, [[1, 2, 3], [5, 6, 7]], 2, gradient=gradient, descent=None, epochs=1, chunk_rows=1)
    assert model["w"].tolist() == [12.0] * 4
    assert model["rows"] == 6


@pytest.mark.parametrize("mode", MODES)
def test_nothing_learned_changes_nothing_and_is_no_part_of_a_mean(mode: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        (row,) = rows
        return {"w": np.ones(4)} if row else None

    data = [[0, 1, 0, 0], [0, 1, 1, 0], [0]]
    model, report = trained(mode, data, 3, gradient=gradient, descent=None, epochs=1, chunk_rows=1)
    expected = {"sync": 2.0, "averaging": (4 * 1 + 4 * 2) / 9}[mode]
    np.testing.assert_allclose(model["w"], [expected] * 4, rtol=1e-15)
    assert (report.rows, report.updates) == (9, {"sync": 2, "averaging": 1}[mode])


@pytest.mark.parametrize("mode", MODES)
def test_partitions_that_are_all_empty_leave_the_model_as_it_is(mode: Any) -> None:
    model, report = trained(mode, [[], []], 2)
    assert model["w"].tolist() == [0] * 4
    assert (report.rows, report.updates) == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_user_code_is_told_where_it_is_and_trainings_go_on_from_each_other(mode: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        assert (task.epochs, task.partitions) == (2, 3)
        for _ in rows:
            pass
        seen = np.zeros((2, 3))
        seen[task.epoch, task.partition] = task.chunk + 1
        return {"seen": seen}

    model = {"seen": np.zeros((2, 3))}
    told: list[tuple[int, int]] = []
    with DeepDist(model, mode, peers=2, progress=False) as dd:
        for _ in range(2):
            dd.train([[1, 2], [3], [4, 5]], gradient, epochs=2, chunk_rows=1)
            told.append((dd._session.snapshot().partitions_done, len(dd._session.snapshot().peers)))
    if mode == "sync":  # waves of two partitions, of which the first has two steps, of one or two gradients
        expected = [[0.5 + 2.0, 0.5, 3.0]] * 2
    else:
        expected = [[3.0 * 2 / 5, 1.0 * 1 / 5, 3.0 * 2 / 5]] * 2
    np.testing.assert_allclose(model["seen"], 2 * np.array(expected), rtol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_words_are_trained_in_place(mode: Any) -> None:
    from gensim.models import Word2Vec

    from p2p.models import word2vec

    texts = [["king", "queen", "man", "woman"] * 5] * 40
    model = Word2Vec(vector_size=8, min_count=1, seed=1, workers=1)
    word2vec.build_vocab(model, texts)
    before = model.wv.vectors.copy()
    with DeepDist(model, mode, peers=2, progress=False) as dd:
        report = dd.train([texts[:20], texts[20:]], word2vec.gradient, epochs=2, chunk_rows=10)
    assert (model.wv.vectors != before).any()
    assert np.isfinite(model.wv.vectors).all()
    assert model.words_trained == 2 * 40 * 20, "what counts is summed"
    assert report.updates == {"sync": 4, "averaging": 2}[mode]


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_is_killed_costs_nothing_and_counts_nothing_twice(mode: Any, tmp_path: Path) -> None:
    """Others wait for it meanwhile, until another attempt has come as far."""

    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if (task.epoch, task.partition, task.chunk) == (1, 3, 2) and once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return logistic(model, rows)

    model, report = trained(mode, UNEVEN, 5, gradient=gradient)
    expected = stepped(UNEVEN, 5, 2, 2)[0] if mode == "sync" else averaged(UNEVEN, 2, 2)
    np.testing.assert_allclose(model["w"], expected["w"], rtol=0, atol=0 if mode == "sync" else 1e-14)
    assert model["rows"] == 42
    assert (report.rows, report.updates_lost) == (42, 0)
    assert list(tmp_path.iterdir())


def test_a_worker_that_is_killed_once_its_update_is_taken_counts_once(tmp_path: Path) -> None:
    """Its thread goes on after the update has gone, and ends the process while the step waits for the others."""

    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if task.partition == 0 and task.chunk == 1 and once(tmp_path, "killed"):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if task.partition == 1 and task.chunk == 1:
            threading.Event().wait(1.0)
        return logistic(model, rows)

    data = rows_of(6, 6)
    model, report = trained("sync", data, 2, gradient=gradient, epochs=1)
    expected, steps = stepped(data, 2, 2, 1)
    assert model["w"].tobytes() == expected["w"].tobytes()
    assert (report.rows, report.updates) == (12, steps)


class TooFew(LocalEngine):
    """One that says that it has more workers than there are."""

    @property
    def workers(self) -> int:
        return 4


def test_an_engine_with_fewer_workers_than_it_says_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "PATIENCE_S", 0.5)
    model, data = zeros(), rows_of(6, 4, 6, 4)
    with DeepDist(model, "sync", engine=TooFew(2), progress=False) as dd:
        report = dd.train(data, logistic, descent, epochs=1, chunk_rows=2)
    expected, steps = stepped(data, 4, 2, 1)
    assert model["w"].tobytes() == expected["w"].tobytes()
    assert (report.rows, report.updates) == (20, steps)


class Idle(LocalEngine):
    """One that forgets a partition."""

    def run(self, job: Any, data: Any, progress: Any) -> Any:
        return super().run(job, data[:1], progress)


def test_an_engine_that_leaves_out_partitions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "PATIENCE_S", 0.2)
    words = "some of partitions 0 to 1 have not been computed"
    with DeepDist(zeros(), "sync", engine=Idle(2), progress=False) as dd, pytest.raises(UsageError, match=words):
        dd.train(rows_of(4, 4), logistic, descent, chunk_rows=2)


class UnreadableError(ValueError):
    """An exception of the user's own."""


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_the_gradient_arrives_as_it_is_and_the_session_goes_on(mode: Any) -> None:
    """While others wait for its update."""

    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if (task.epoch, task.partition, task.chunk) == (1, 1, 1):
            raise UnreadableError("thirteen", 13)
        return logistic(model, rows)

    model, data = zeros(), rows_of(6, 6, 6)
    with DeepDist(model, mode, peers=3, progress=False) as dd:
        with pytest.raises(UnreadableError) as caught:
            dd.train(data, gradient, descent, epochs=2, chunk_rows=2)
        assert caught.value.args == ("thirteen", 13)
        assert "partition 1, epoch 1, host " in caught.value.__notes__[0]
        rows = {"sync": 18 + 6, "averaging": 18}[mode]
        assert dd.model["rows"] == rows, "whole steps, or whole epochs"
        report = dd.train(data, logistic, descent, chunk_rows=2)
        assert dd.model["rows"] == rows + 18
    assert report.rows == 18


@pytest.mark.parametrize("mode", MODES)
def test_an_error_in_descent_arrives_as_it_is_and_the_session_goes_on(mode: Any) -> None:
    def fails(model: Any, update: Any) -> None:
        descent(model, update)
        if mode == "averaging" or model["rows"] > 6:
            raise UnreadableError("descent", 1)

    model, data = zeros(), rows_of(6, 6, 6)
    with DeepDist(model, mode, peers=3, progress=False) as dd:
        with pytest.raises(UnreadableError, match=r"descent|1") as caught:
            dd.train(data, logistic, fails, chunk_rows=2)
        assert caught.value.args == ("descent", 1)
        where = "in descent, in the driver program, for 3 updates of step 2" if mode == "sync" else "partition "
        assert where in caught.value.__notes__[0]
        assert dd.model["rows"] == {"sync": 6, "averaging": 0}[mode], "half of a step is none"
        report = dd.train(data, logistic, descent, chunk_rows=2)
    assert report.rows == 18


@pytest.mark.parametrize("mode", MODES)
def test_numbers_that_are_no_numbers_end_the_training_or_are_left_out(mode: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        found = logistic(model, rows)
        return {**found, "w": found["w"] * np.nan} if (task.partition, task.chunk) == (1, 1) else found

    data = rows_of(4, 6)
    model = zeros()
    with DeepDist(model, mode, peers=2, progress=False) as dd:
        with pytest.raises(UsageError, match="numbers are NaN or infinite, expected none"):
            dd.train(data, gradient, descent, chunk_rows=2)
        assert dd.model["rows"] == {"sync": 4, "averaging": 0}[mode]
    model = zeros()
    with DeepDist(model, mode, peers=2, progress=False) as dd, pytest.warns(DeepDistWarning, match="1 updates had"):
        report = dd.train(data, gradient, descent, chunk_rows=2, on_bad_update="drop")
    assert (report.rows, report.updates_lost) == (10, 1)
    assert model["rows"] == {"sync": 8, "averaging": 4}[mode]
    if mode == "averaging":
        expected = averaged(data[:1], 2, 1)["w"]
        np.testing.assert_allclose(model["w"], expected, rtol=0, atol=1e-14)


def test_updates_of_a_step_that_cannot_be_added_up_are_told_by_place() -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        return {"w": np.ones(4 + task.partition)}

    words = r"'w' of a worker's update is of shape \(5,\), expected of \(4,\)"
    with DeepDist(zeros(), "sync", peers=2, progress=False) as dd, pytest.raises(UsageError, match=words):
        dd.train([[1], [2]], gradient, descent)


# ---------------------------------------------------------------------------------------------------------- its course


@pytest.mark.parametrize("mode", MODES)
def test_a_training_stops_when_its_evaluations_say_so(mode: Any) -> None:
    model = zeros()
    with DeepDist(model, mode, peers=2, progress=False) as dd:
        report = dd.train(
            *(rows_of(4, 4), logistic, descent),
            epochs=100_000,
            chunk_rows=2,
            evaluate=lambda model: float(model["rows"]),
            evaluate_every_s=0.1,
            stop_when=lambda evaluations: evaluations[-1].values["value"] > 0,
        )
    assert report.ended.startswith("stopped")
    assert 0 < model["rows"] < 800_000
    assert model["rows"] == report.evaluations[-1].values["value"]
    assert model["rows"] % {"sync": 4, "averaging": 8}[mode] == 0


@pytest.mark.parametrize("mode", MODES)
def test_after_ctrl_c_the_session_goes_on(mode: Any, tmp_path: Path, eventually: Any) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if task.partition == 1:  # the other one waits for it, or is done
            (tmp_path / "here").touch()
            threading.Event().wait(LONG_S)
        return logistic(model, rows)

    def press() -> None:
        if eventually((tmp_path / "here").exists, LONG_S):
            os.kill(os.getpid(), signal.SIGINT)

    data = rows_of(4, 4)
    with DeepDist(zeros(), mode, peers=2, progress=False) as dd:
        pressing = threading.Thread(target=press)
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            dd.train(data, gradient, descent, chunk_rows=2)
        pressing.join()
        assert dd.model["rows"] == 0
        report = dd.train(data, logistic, descent, chunk_rows=2)
        assert dd.model["rows"] == report.rows == 8


@pytest.mark.parametrize("mode", MODES)
def test_a_training_that_was_cut_short_goes_on_from_its_checkpoint_to_the_same_model(mode: Any, tmp_path: Path) -> None:
    def gradient(model: Any, rows: Any) -> Any:
        task = current()
        assert task is not None
        if (task.epoch, task.partition, task.chunk) == (1, 3, 2) and once(tmp_path, "failed"):
            raise UnreadableError
        return logistic(model, rows)

    saved = tmp_path / "saved"
    with DeepDist(zeros(), mode, peers=5, progress=False) as dd, pytest.raises(UnreadableError):
        dd.train(UNEVEN, gradient, descent, epochs=2, chunk_rows=2, checkpoint=saved, every_s=0.01)
    with DeepDist.resume(saved, peers=5, progress=False) as dd:
        dd.train(UNEVEN, gradient, descent)
        model = dd.model
    expected = stepped(UNEVEN, 5, 2, 2)[0] if mode == "sync" else averaged(UNEVEN, 2, 2)
    np.testing.assert_allclose(model["w"], expected["w"], rtol=0, atol=0 if mode == "sync" else 1e-14)
    assert model["rows"] == 42


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("session", "train", "words"),
    [
        ({"discipline": "mix"}, {}, "where there is a master, nobody mixes"),
        ({"topology": "ring"}, {}, "topology='ring' with discipline='replicate'"),
        ({"codec": "int8"}, {}, "a codec with mode="),
        ({"master": ":0"}, {}, "expected mode='master'"),
        ({}, {"max_staleness": 1}, "max_staleness=1 with mode=.*no update is stale there"),
        ({}, {"exchange": "continuous"}, "exchange='continuous' with mode="),
        ({}, {"combine": "damp"}, "combine='damp' with mode="),
        ({}, {"feeders": [object()]}, "feeder"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_options_that_say_nothing_here_are_refused(mode: Any, session: Any, train: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words), DeepDist(zeros(), mode, peers=1, progress=False, **session) as dd:
        dd.train([[1]], logistic, **train)


@pytest.mark.parametrize("train", [{"combine": "mean"}, {"exchange": "partition"}], ids=str)
def test_models_are_averaged_by_one_rule_and_at_one_time(train: Any) -> None:
    with DeepDist(zeros(), "averaging", peers=1) as dd, pytest.raises(UsageError, match="with mode='averaging'"):
        dd.train([[1]], logistic, **train)
