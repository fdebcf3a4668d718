"""Evaluation while a training runs: on copies of the driver program's replica, which nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.arrays import Layout, Packed
from gossip.errors import UsageError
from gossip.flat import Flat
from gossip.mixing import DPsgd, Every
from p2p import DeepDist, Report, SimulatedCluster
from p2p.adapters.model import Model
from p2p.driver.consensus import Average
from p2p.driver.watchers import Done, Moment, Seen, Watching


def one_each(model: Any, rows: Iterator[int]) -> dict[str, np.ndarray]:
    return {"w": np.full(1, float(len(list(rows))))}


def slow(model: Any, rows: Iterator[int]) -> dict[str, np.ndarray]:
    time.sleep(0.02)
    return one_each(model, rows)


def value(model: dict[str, np.ndarray]) -> float:
    return float(model["w"][0])


def simulated(**settings: Any) -> tuple[Report, float]:
    with DeepDist({"w": np.zeros(1)}, engine=SimulatedCluster(peers=3, seed=4), progress=False) as dd:
        report = dd.train([[1, 2]] * 6, one_each, epochs=3, **settings)
        return report, dd.model["w"][0]


def test_a_simulated_training_is_evaluated_in_virtual_time() -> None:
    report, w = simulated(evaluate=value, evaluate_every_s=1.5)
    first, *_, last = report.evaluations
    assert (first.seconds, first.updates, first.values) == (0, 0, {"value": 0})
    assert (last.updates, last.values) == (18, {"value": w})
    seconds = [result.seconds for result in report.evaluations]
    assert np.allclose(np.diff(seconds[:-1]), 1.5)
    assert len(seconds) > 4
    assert all(result.values["value"] == 2 * result.updates for result in report.evaluations)
    assert f"evaluated {len(seconds)} times: value 0 (apart 0.0e+00) at first, value 36 (apart" in str(report)
    apart = [result.consensus_distance for result in report.evaluations]
    assert apart[0] == apart[-1] == report.consensus_distance == 0.0
    assert max(each for each in apart if each is not None) > 0.0, "replicas differ while updates are on their way"


def test_evaluation_changes_nothing_in_what_is_trained() -> None:
    def spoils(model: dict[str, np.ndarray]) -> float:
        model["w"][0] = -7
        return 0.0

    evaluated, w = simulated(evaluate=spoils, evaluate_every_s=0.5)
    plain, expected = simulated()
    assert w == expected == 36
    assert evaluated.updates == plain.updates
    assert plain.evaluations == ()


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_processes_train_on_while_their_model_is_evaluated() -> None:
    threads = []

    def evaluate(model: dict[str, np.ndarray]) -> dict[str, float]:
        threads.append(threading.current_thread())
        return {"w": value(model), "half": value(model) / 2}

    with DeepDist({"w": np.zeros(1)}, peers=2, progress=False) as dd:
        dd.train([[1]] * 4, one_each)
        report = dd.train([[1]] * 40, slow, evaluate=evaluate, evaluate_every_s=0.05)
    first, *between, last = report.evaluations
    assert threading.main_thread() in threads[-1:], "the last one is of the model in the end"
    assert set(threads[:-1]) != {threading.main_thread()}
    assert (last.updates, last.values) == (40, {"w": 44, "half": 22})
    assert first.values["w"] == 4 + first.updates
    assert any(0 < result.updates < 40 for result in between)
    assert all(result.values["w"] == 4 + result.updates for result in report.evaluations)
    assert [result.seconds for result in report.evaluations] == sorted(result.seconds for result in report.evaluations)


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("discipline", ["replicate", "mix"])
@pytest.mark.parametrize("least", [0, 1])
def test_a_failing_evaluation_ends_the_training_with_its_error(least: int, discipline: Any) -> None:
    """Also one that fails before the first task has begun."""

    def fails(model: dict[str, np.ndarray]) -> float:
        if value(model) >= least:
            raise ZeroDivisionError("of the user")
        return 0.0

    with DeepDist({"w": np.zeros(1)}, discipline=discipline, peers=1, progress=False) as dd:
        with pytest.raises(ZeroDivisionError, match="of the user") as caught:
            dd.train([[1]] * 1000, slow, evaluate=fails, evaluate_every_s=0.05)
        assert caught.value.__notes__ == ["in evaluate(model), while the training ran"]
        assert dd.model["w"] < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": 3}, r"evaluate is a int, expected a function evaluate\(model\)"),
        ({"evaluate_every_s": 3}, r"evaluate_every_s=3 without evaluate, expected both"),
        ({"evaluate": value, "evaluate_every_s": 0}, r"evaluate_every_s=0, expected more than 0 seconds"),
        ({"evaluate": str}, r'evaluate returned "{\'w\': .*}", a str: expected a number, or a mapping'),
    ],
    ids=["no function", "period alone", "period of nothing", "no number"],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulated(**options)


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
def test_of_peers_that_mix_the_mean_is_evaluated_and_how_far_they_are_apart(tmp_path: Path) -> None:
    """Each peer takes one step, and none mixes before the last is evaluated."""
    seen = tmp_path / "seen"

    def evaluate(model: dict[str, np.ndarray]) -> float:
        if value(model) == 3.0:
            seen.touch()
        return value(model)

    def gradient(model: Any, rows: Iterator[str]) -> dict[str, np.ndarray] | None:
        (row,) = rows
        while row == "wait" and not seen.exists():
            time.sleep(0.01)
        return {"w": np.full(1, row)} if row != "wait" else None

    start = {"w": np.ones(1)}
    with DeepDist(
        start, discipline="mix", mixing=Every(9, DPsgd()), topology="complete", peers=2, progress=False
    ) as dd:
        report = dd.train(
            [[1.0, "wait"], [3.0, "wait"]], gradient, chunk_rows=1, evaluate=evaluate, evaluate_every_s=0.05
        )
        assert dd.model["w"] == pytest.approx(3.0)
    first, *between, last = report.evaluations
    assert (first.updates, first.values, first.consensus_distance, first.spread) == (0, {"value": 1.0}, 0.0, 0.0)
    apart = [each for each in between if each.values == {"value": 3.0} and each.spread]  # of replicas 2 and 4
    assert apart
    assert apart[0].updates <= 2, "it has those at least"
    assert apart[0].consensus_distance == 2.0 / 4.0
    assert apart[0].spread == 1.0
    assert (last.updates, last.consensus_distance) == (2, report.consensus_distance)
    assert last.values["value"] == pytest.approx(3.0)
    assert "value 1 (apart 0.0e+00) at first" in report.summary()


def test_an_average_of_replicas_is_weighted_and_knows_how_far_they_are_apart() -> None:
    rng = np.random.default_rng(0)
    replicas = [
        {"w": 1e6 + rng.standard_normal((2, 3)), "b": rng.standard_normal(4).astype(np.float32)} for _ in range(5)
    ]
    weights = np.array([1.0, 0.5, 2.0, 0.0, 1.5])
    average = Average(Flat(Layout.of(replicas[0])))
    assert average.is_empty
    for replica, weight in zip(replicas, weights, strict=True):
        average.take_in(bytes(Packed.of(replica).buffer), weight)
    flat = np.stack([np.concatenate([replica["w"].ravel(), replica["b"]]) for replica in replicas])
    mean = np.average(flat, axis=0, weights=weights)
    arrays = average.mean().arrays()
    np.testing.assert_allclose(arrays["w"].ravel(), mean[:6], rtol=1e-14)
    np.testing.assert_allclose(arrays["b"], mean[6:], rtol=1e-6)
    squares = np.average(np.square(flat - mean).sum(axis=1), weights=weights)
    assert average.spread() == pytest.approx(np.sqrt(squares), rel=1e-9)
    b = flat[:, 6:]
    assert average.distance() == pytest.approx(np.ptp(b, axis=0).max() / np.abs(b).max(), rel=1e-6)


def test_all_are_shown_the_beginning_however_far_the_peers_are_by_then() -> None:
    """What is read while they look is newer; the first look of each is not."""
    model, at = Model({"w": np.zeros(3)}), threading.Event()
    shown: list[tuple[list[float], int, bool]] = []
    now = [0.0]

    def read(target: Model) -> Seen:
        target.load({"w": np.full(3, now[0])})
        return Seen(merged=int(now[0]))

    class First:
        every_s = 1000.0

        def look(self, model: Any, moment: Moment) -> None:
            shown.append((model["w"].tolist(), moment.updates, moment.ended))
            model["w"][...] = -1.0
            if len(shown) == 3:
                at.set()

    watching = Watching([First(), First(), First()], model.skeleton, read, Done(lambda done, of: None, 1), lambda: None)
    now[0] = 7.0
    with watching:
        assert at.wait(30)
    watching.finish()
    assert shown == [([0.0] * 3, 0, False)] * 3 + [([7.0] * 3, 7, True)] * 3
