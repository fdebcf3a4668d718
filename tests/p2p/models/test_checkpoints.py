"""Trainers in one call write checkpoints, go on with them, and end early where evaluations say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossip.errors import UsageError
from p2p import DeepDist, Patience, SimulatedCluster
from p2p.checkpoint import reading
from p2p.descents import AdaGrad, Linear
from p2p.models import linear, mlp, word2vec

FEATURES, PARTITIONS = 4, 4
X = np.random.default_rng(0).normal(size=(160, FEATURES)).astype(np.float32)
LABELS = (X @ np.arange(1.0, FEATURES + 1) > 0).astype(int)
ROWS = [list(zip(X[part::PARTITIONS], LABELS[part::PARTITIONS], strict=True)) for part in range(PARTITIONS)]
SENTENCES = [["cat", "dog", "cow", "hen"], ["saw", "axe", "file", "drill"]] * 60


def cluster() -> SimulatedCluster:
    return SimulatedCluster(peers=1, seed=1)


def by_word2vec(corpus: Any = SENTENCES, **options: Any) -> tuple[Any, Any]:
    """(arrays, report)."""
    reports: list[Any] = []
    settings = {"vector_size": 8, "min_count": 1, "sg": 1, "sample": 0, "chunk_words": 40, "epochs": 2}
    model = word2vec.train(
        corpus, engine=cluster(), progress=False, on_report=reports.append, **{**settings, **options}
    )
    return [model.wv.vectors, model.syn1neg, model.words_trained], reports[0]


def by_torch(**options: Any) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from p2p.models.torch import train

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(FEATURES, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    reports: list[Any] = []
    told: dict[str, Any] = {"loss": torch.nn.functional.cross_entropy, "batch_size": 5, "local_steps": 2, "epochs": 2}
    told["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=0.05)
    train(module, ROWS, engine=cluster(), progress=False, on_report=reports.append, **{**told, **options})
    return [tensor.numpy() for tensor in module.state_dict().values()], reports[0]


def by_mlp(**options: Any) -> tuple[Any, Any]:
    model = mlp.MLP(FEATURES, hidden=(5,), classes=2, seed=3)
    told: dict[str, Any] = {"descent": AdaGrad(0.1), "chunk_rows": 10, "epochs": 2}
    report = mlp.fit(model, ROWS, engine=cluster(), progress=False, **{**told, **options})
    return [model.w0, model.b0, model.w1, model.b1], report


def by_descent(**options: Any) -> tuple[Any, Any]:
    model = linear.LogisticRegression(FEATURES)
    told: dict[str, Any] = {"descent": AdaGrad(Linear(0.3)), "chunk_rows": 10, "epochs": 2}
    report = linear.fit(model, ROWS, engine=cluster(), progress=False, **{**told, **options})
    return [model.weights, model.intercept], report


def by_sklearn(data: Any = ROWS, **options: Any) -> tuple[Any, Any]:
    linear_model = pytest.importorskip("sklearn.linear_model")
    from p2p.models.sklearn import fit

    estimator = linear_model.SGDClassifier(loss="log_loss", random_state=0)
    told: dict[str, Any] = {"classes": [0, 1], "chunk_rows": 10, "epochs": 2}
    report = fit(estimator, data, engine=cluster(), progress=False, **{**told, **options})
    return [estimator.coef_, estimator.intercept_, estimator.t_], report


TRAINERS = {
    "word2vec": by_word2vec,
    "torch": by_torch,
    "mlp": by_mlp,
    "linear, by a descent": by_descent,
    "sklearn": by_sklearn,
}
each_trainer = pytest.mark.parametrize("train", TRAINERS.values(), ids=TRAINERS)


def older(folder: Path) -> int:
    """Leave those of the first half of a training, as if its driver program was killed then; units of the newest."""
    manifests = sorted(folder.glob("*.json"))
    for manifest in manifests[len(manifests) // 2 :]:
        manifest.unlink()
    return reading.read(str(folder)).record.units.count


@each_trainer
def test_a_trainer_goes_on_in_the_middle_and_all_units_count(train: Callable[..., Any], tmp_path: Path) -> None:
    where: dict[str, Any] = {"checkpoint": tmp_path / "run", "every_s": 1.0, "keep": 100, "resume": True}
    expected, whole = train(**where)
    assert whole.checkpoints.written >= 4
    count = older(tmp_path / "run")
    assert 0 < count < whole.updates
    found, rest = train(**where)
    assert rest.updates == whole.updates - count
    assert rest.updates_lost == 0
    for mine, theirs in zip(found, expected, strict=True):
        assert np.allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    again, nothing = train(**where)
    assert nothing.updates == 0
    for mine, theirs in zip(again, found, strict=True):
        assert np.array_equal(mine, theirs)


def test_a_module_comes_back_from_its_pickle_and_goes_on(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from p2p.models.torch import OptimizerSteps

    expected, whole = by_torch(checkpoint=tmp_path, every_s=1.0, keep=100)
    count = older(tmp_path)
    with pytest.raises(UsageError, match=r"has its model, a torch\..*Sequential, as a pickle, .*allow_pickle=True"):
        DeepDist.resume(tmp_path)
    steps = OptimizerSteps(
        loss=torch.nn.functional.cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        batch_size=5,
    )
    with DeepDist.resume(tmp_path, allow_pickle=True, engine=cluster(), progress=False) as dd:
        assert type(dd.model) is torch.nn.Sequential
        report = dd.train(ROWS, steps)
        assert report.updates == whole.updates - count
        for mine, theirs in zip(dd.model.state_dict().values(), expected, strict=True):
            assert np.allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-5)


@each_trainer
def test_without_resume_checkpoints_of_another_training_are_left_alone(train: Any, tmp_path: Path) -> None:
    train(checkpoint=str(tmp_path), epochs=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UsageError, match="holds checkpoints of another training"):
        train(checkpoint=str(tmp_path), epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@each_trainer
def test_a_trainer_stops_where_evaluations_say_so(train: Any) -> None:
    values = iter([0.1, 0.5, 0.4, 0.3, *[0.2] * 1000])
    patience = Patience("value", rounds=2)
    every = {} if train is by_descent else {"evaluate_every_s": 2.0}
    _, report = train(epochs=60, evaluate=lambda model: next(values), stop_when=patience, **every)
    assert report.ended == "stopped: no improvement of value in 2 evaluations"


def test_a_training_that_was_stopped_goes_on_with_the_model_that_it_left(tmp_path: Path) -> None:
    values, seen = iter([0.1, 0.5, 0.4, 0.3]), []
    told: dict[str, Any] = {"epochs": 12, "evaluate_every_s": 2.0, "checkpoint": tmp_path, "resume": True}
    left, stopped = by_mlp(evaluate=lambda model: next(values, 0.0), stop_when=Patience("value", rounds=2), **told)
    left = [array.copy() for array in left]
    count = reading.read(str(tmp_path)).record.units.count
    _, rest = by_mlp(evaluate=lambda model: float(seen.append(model.w0.copy()) or 0), **told)
    assert np.array_equal(seen[0], left[0])
    assert stopped.ended.startswith("stopped")
    assert 0 < count < 12 * 16
    assert rest.updates == 12 * 16 - count


@each_trainer
def test_resume_needs_a_place(train: Any) -> None:
    with pytest.raises(UsageError, match="resume without checkpoint, expected both"):
        train(resume=True)
    with pytest.raises(UsageError, match="keep=2 without checkpoint, expected both"):
        train(keep=2)


def test_other_words_or_classes_are_refused_and_not_taken_for_those_of_the_checkpoint(tmp_path: Path) -> None:
    by_word2vec(checkpoint=tmp_path / "words")
    others = [["owl" if word == "cow" else word for word in sentence] for sentence in SENTENCES]
    with pytest.raises(UsageError, match=r"arrays are of 8 words of sha256 .*, expected those of 8 words of sha256"):
        by_word2vec(others, checkpoint=tmp_path / "words", resume=True)
    pytest.importorskip("sklearn")
    by_sklearn(checkpoint=tmp_path / "classes")
    with pytest.raises(UsageError, match=r"are of classes \[1, 2\], expected those of classes \[0, 1\]"):
        by_sklearn(
            [[(x, label + 1) for x, label in rows] for rows in ROWS],
            classes=[1, 2],
            checkpoint=tmp_path / "classes",
            resume=True,
        )


# ------------------------------------------------------------------------------------------- linear models by parabolas


def by_parabolas(**options: Any) -> tuple[Any, Any]:
    model = linear.LogisticRegression(FEATURES, l2=0.01)
    return model, linear.fit(model, ROWS, engine=SimulatedCluster(peers=2, seed=1), progress=False, **options)


def test_passes_that_are_done_count_and_the_minimum_is_the_same(tmp_path: Path) -> None:
    expected, whole = by_parabolas()
    where: dict[str, Any] = {"checkpoint": tmp_path, "every_s": 0.5, "keep": 1000}
    by_parabolas(**where)
    manifests = sorted(tmp_path.glob("*.json"))
    passes = [reading.read(str(each)).record.training.epochs_before for each in manifests]
    assert passes == sorted(passes)
    assert passes[-1] >= 3
    middle = passes.index(2) + 1
    for manifest in manifests[middle:]:
        manifest.unlink()
    found, rest = by_parabolas(resume=True, **where)
    assert np.allclose(found.weights, expected.weights, rtol=1e-5, atol=1e-6)
    assert 0 < rest.updates <= whole.updates - PARTITIONS, "two passes less, and one more"
    assert rest.checkpoints.written > rest.updates // PARTITIONS


def test_a_pass_that_was_begun_is_the_last_one_where_no_more_are_asked_for(tmp_path: Path) -> None:
    by_parabolas(checkpoint=tmp_path, epochs=2)
    _, report = by_parabolas(checkpoint=tmp_path, epochs=2, resume=True)
    assert report.updates == 0, "it was done"
    _, report = by_parabolas(checkpoint=tmp_path, epochs=3, resume=True)
    assert report.updates == PARTITIONS


def test_passes_stop_where_evaluations_say_so_and_the_best_model_is_left() -> None:
    weights: list[Any] = []

    def evaluate(model: Any) -> float:
        weights.append(model.weights.copy())
        return [0.3, 0.5, 0.4, 0.4][len(weights) - 1]

    model, report = by_parabolas(evaluate=evaluate, stop_when=Patience("value", rounds=2), tolerance=0.0)
    assert report.ended == "stopped: no improvement of value in 2 evaluations"
    assert len(report.evaluations) == 4
    assert np.array_equal(model.weights, weights[1])
    with pytest.raises(UsageError, match="stop_when without evaluate"):
        by_parabolas(stop_when=Patience("value"))


@pytest.mark.parametrize("mode", ["sync", "averaging"])
def test_trainers_in_one_call_take_no_synchronous_mode(mode: Any) -> None:
    with pytest.raises(UsageError, match=f"mode='{mode}', expected 'p2p' or 'master'"):
        mlp.fit(mlp.MLP(FEATURES, hidden=(5,), classes=2, seed=3), ROWS, mode=mode, peers=1)
