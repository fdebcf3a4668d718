"""Trainings that end early: when, why, and which model is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, Patience, SimulatedCluster
from p2p.checkpoint import reading
from p2p.driver.stopping import Stopping
from p2p.models import word2vec
from p2p.report import Evaluated


def of(*values: float) -> list[Evaluated]:
    return [Evaluated(float(number), number, {"loss": value}) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "mode", "best", "stops"),
    [
        ((1, 2, 3), "max", 2, False),
        ((3, 2, 2), "max", 0, True),
        ((3, 2), "max", 0, False),
        ((3, 3, 3), "max", 0, True),
        ((3, 2, 1), "min", 2, False),
        ((1, 2, 2), "min", 0, True),
        ((1, float("nan"), 0.5), "min", 2, False),
        ((float("nan"), float("nan"), float("nan")), "max", 0, True),
        ((float("nan"), 1.0, 0.5), "max", 1, False),
    ],
)
def test_patience_goes_by_evaluations_since_the_best(values: Any, mode: Any, best: int, stops: bool) -> None:
    patience = Patience("loss", rounds=2, mode=mode)
    assert patience.best(of(*values)) == best
    assert patience(of(*values)) == stops


def test_a_small_improvement_is_none() -> None:
    patience = Patience("loss", rounds=2, mode="max", least=0.5)
    assert patience.best(of(1, 1.4, 1.5)) == 0
    assert patience.best(of(1, 1.4, 1.6)) == 2


def test_a_metric_that_is_not_evaluated_is_told() -> None:
    with pytest.raises(UsageError, match=r"looks for the metric 'accuracy', which evaluate does not return: .*'loss'"):
        Patience("accuracy")(of(1.0))


@pytest.mark.parametrize("wrong", [{"metric": 3}, {"rounds": 0}, {"mode": "best"}, {"least": -1}, {"least": "x"}])
def test_a_patience_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Patience(**{"metric": "loss", **wrong})


def test_the_best_model_is_a_copy_from_before_the_evaluation() -> None:
    stopping = Stopping(Patience("loss", rounds=1), lambda model: dict(model))
    model = {"w": np.zeros(1)}
    for number, value in enumerate((1.0, 3.0, 2.0)):
        model["w"][:] = number
        stopping.about_to_evaluate(model)
        model["w"][:] = -9
        stopping.evaluated(of(1.0, 3.0, 2.0)[: number + 1], False)
        assert stopping.has_stopped == (value == 2.0)
    assert stopping.best is not None
    assert stopping.best["w"].tolist() == [1.0]
    assert stopping.ended == "stopped: no improvement of loss in 1 evaluations"


# ---------------------------------------------------------------------------------------------------------- trainings

CHANCE = np.random.default_rng(5)
FEATURES = CHANCE.normal(size=(240, 4))
LABELS = (FEATURES @ CHANCE.normal(size=(4, 3))).argmax(axis=1)
PARTS = [list(range(start, start + 40)) for start in range(0, 240, 40)]


def probabilities(w: Any, x: Any) -> Any:
    scores = np.exp(x @ w - (x @ w).max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def softmax(model: Any, rows: Iterator[int]) -> Any:
    """A rate that is far too high: what is learned at first is lost again."""
    taken = list(rows)
    wrong = probabilities(model["w"], FEATURES[taken])
    wrong[np.arange(len(taken)), LABELS[taken]] -= 1
    return {"w": -0.02 * (1 + float(abs(model["w"]).sum())) * FEATURES[taken].T @ wrong}


def accuracy(model: Any) -> dict[str, float]:
    found = float((probabilities(model["w"], FEATURES).argmax(axis=1) == LABELS).mean())
    model["w"][...] = np.nan  # it is a copy
    return {"accuracy": found}


def trained(where: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    with DeepDist({"w": np.zeros((4, 3))}, progress=False, **where) as dd:
        report = dd.train(PARTS, softmax, chunk_rows=5, evaluate=accuracy, **options)
        return dd.model["w"].copy(), report


def check_stopped(w: Any, report: Any, epochs: int) -> None:
    assert report.ended == "stopped: no improvement of accuracy in 3 evaluations"
    assert report.ended in report.summary()
    assert report.updates < epochs * 48
    accuracies = [each.values["accuracy"] for each in report.evaluations]
    assert accuracy({"w": w.copy()})["accuracy"] == max(accuracies)


def test_a_metric_that_is_never_a_number_leaves_what_was_trained() -> None:
    model = {"w": np.zeros((4, 3))}
    with DeepDist(model, engine=SimulatedCluster(peers=2, seed=2), progress=False) as dd:
        report = dd.train(
            PARTS,
            softmax,
            epochs=50,
            chunk_rows=5,
            evaluate=lambda m: float("nan"),
            evaluate_every_s=2.0,
            stop_when=Patience("value", rounds=3),
        )
    assert report.ended.startswith("stopped")
    assert model["w"].any()


def test_a_simulated_training_stops_and_the_best_model_is_left(tmp_path: Path) -> None:
    where = {"engine": SimulatedCluster(peers=3, seed=2)}
    patience = Patience("accuracy", rounds=3)
    options: dict[str, Any] = {"epochs": 50, "evaluate_every_s": 2.0, "checkpoint": tmp_path, "every_s": 5.0}
    w, report = trained(where, stop_when=patience, **options)
    check_stopped(w, report, 50)
    assert report.updates_lost == 0
    found = reading.read(str(tmp_path))
    assert found.record.progress.ended == report.ended
    assert found.arrays["w"].tobytes() == w.tobytes()


def test_a_function_of_ones_own_ends_a_training() -> None:
    seen: list[int] = []

    def enough(evaluations: Any) -> bool:
        seen.append(len(evaluations))
        return len(evaluations) == 3

    _, report = trained({"engine": SimulatedCluster(peers=2)}, epochs=20, evaluate_every_s=1.0, stop_when=enough)
    assert report.ended == "stopped: enough(evaluations) said so"
    assert seen == [1, 2, 3]
    assert len(report.evaluations) == 4, "one more in the end"


def test_a_training_that_is_not_stopped_is_done_and_its_best_model_is_left_too() -> None:
    where = {"engine": SimulatedCluster(peers=2)}
    w, report = trained(where, epochs=2, evaluate_every_s=1.0, stop_when=Patience("accuracy", rounds=1000))
    assert report.ended == "done"
    assert accuracy({"w": w})["accuracy"] == max(each.values["accuracy"] for each in report.evaluations)


def test_the_next_training_begins_with_the_best_model() -> None:
    with DeepDist({"w": np.zeros((4, 3))}, engine=SimulatedCluster(peers=2), progress=False) as dd:
        dd.train(PARTS, softmax, epochs=8, evaluate=accuracy, evaluate_every_s=1.0, stop_when=Patience("accuracy"))
        best = dd.model["w"].copy()
        first: list[Any] = []
        dd.train(PARTS, softmax, evaluate=lambda model: first.append(model["w"].copy()) or 0.0)
        assert np.allclose(first[0], best, rtol=1e-12, atol=1e-12)


def test_what_stop_when_raises_ends_the_training_and_comes_out() -> None:
    def broken(evaluations: Any) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trained({"engine": SimulatedCluster(peers=2)}, stop_when=broken)


def test_stop_when_needs_something_to_go_by() -> None:
    with (
        DeepDist({"w": np.zeros((4, 3))}, engine=SimulatedCluster(peers=2), progress=False) as dd,
        pytest.raises(UsageError, match="stop_when without evaluate, expected both"),
    ):
        dd.train(PARTS, softmax, stop_when=Patience("accuracy"))


def test_word_vectors_stop_where_they_get_no_better_and_the_best_are_left() -> None:
    topics = [["cat", "dog", "cow", "hen"], ["saw", "axe", "file", "drill"]]
    chance = np.random.default_rng(5)
    corpus = [[str(word) for word in chance.choice(topic, 8)] for _ in range(100) for topic in topics]

    def margin(model: Any) -> dict[str, float]:
        """How much more similar words of one topic are than words of two."""
        together = [model.wv.similarity(a, b) for topic in topics for a in topic for b in topic if a < b]
        return {"margin": float(np.mean(together) - model.wv.n_similarity(*topics))}

    reports: list[Any] = []
    model = word2vec.train(
        corpus,
        engine=SimulatedCluster(peers=2, seed=1),
        evaluate=margin,
        evaluate_every_s=4.0,
        stop_when=Patience("margin", rounds=3),
        on_report=reports.append,
        progress=False,
        **{"sg": 1, "vector_size": 16, "min_count": 1, "sample": 0, "chunk_words": 400, "alpha": 0.1, "epochs": 400},
    )
    report = reports[0]
    assert report.ended == "stopped: no improvement of margin in 3 evaluations"
    margins = [each.values["margin"] for each in report.evaluations]
    best = int(np.argmax(margins))
    assert 0 < best < len(margins) - 1
    assert margin(model)["margin"] == margins[best] != margins[-1]
    assert report.updates < 400


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("options", [{}, {"mode": "master"}, {"discipline": "mix"}], ids=["p2p", "master", "mix"])
def test_agents_stop_and_the_best_model_is_left(options: dict[str, Any]) -> None:
    patience = Patience("accuracy", rounds=3)
    w, report = trained({"peers": 2, **options}, epochs=2000, evaluate_every_s=0.1, stop_when=patience)
    check_stopped(w, report, 2000)
