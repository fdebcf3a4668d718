"""Evaluation while a training runs: on copies of the driver program's replica, which nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, Report, SimulatedCluster


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
    assert f"evaluated {len(seconds)} times: value 0 at first, value 36 in the end" in str(report)


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
@pytest.mark.parametrize("least", [0, 1])
def test_a_failing_evaluation_ends_the_training_with_its_error(least: int) -> None:
    """Also one that fails before the first task has begun."""

    def fails(model: dict[str, np.ndarray]) -> float:
        if value(model) >= least:
            raise ZeroDivisionError("of the user")
        return 0.0

    with DeepDist({"w": np.zeros(1)}, peers=1, progress=False) as dd:
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


def test_peers_that_mix_have_no_one_model_to_evaluate() -> None:
    with (
        DeepDist({"w": np.zeros(1)}, discipline="mix", peers=1) as dd,
        pytest.raises(UsageError, match=r"evaluate= with discipline='mix', expected None"),
    ):
        dd.train([[1]], one_each, evaluate=value)
